//! Checkpoints: folders and files of trained models, read into [`Checkpoint`].
//!
//! Reads what neuralforecast saves (format 2) and the project's own format. Does not run anything,
//! and trusts nothing in a file: every number is checked before it is used.

mod folder;
mod hyper_parameters;
mod loss;
mod native;
mod neuralforecast;
mod safetensors;
mod tagged;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::plan::Plan;

use self::folder::Folder;
use self::tagged::wrong;
use crate::calendar::Frequency;
use crate::error::{Error, Result, ResultExt};
use crate::models::Network;
use crate::run_info::ContentHash;
use crate::weights::{Bytes, Weights};

/// Which format a checkpoint was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder written by neuralforecast 3.2 or later (format 2).
    NeuralForecast,
    /// The project's own file.
    Native,
}

/// A per-series scaler of the training framework, by its framework name, with the statistics it was
/// fitted with. The framework fits scalers anew on whatever frame it forecasts; the statistics
/// matter only for forecasts of the very series that are stored in the checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalScaler {
    /// `standard`, `robust`, `robust-iqr`, `minmax` or `boxcox`.
    pub kind: String,
    /// For each scaled column two numbers a series, in the order of [`Checkpoint::ids`].
    pub statistics: BTreeMap<String, Vec<[f32; 2]>>,
}

/// Errors of cross-validation that conformal intervals are made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConformalScores {
    /// `conformal_distribution` or `conformal_error`.
    pub method: String,
    /// Number of validation windows.
    pub windows: usize,
    /// Steps between windows.
    pub step: usize,
    /// The series of each row; rows are grouped by series, then by window, then by step.
    pub ids: Vec<String>,
    /// For each output column (alias and suffix) its absolute errors, row by row.
    pub errors: BTreeMap<String, Vec<f64>>,
}

/// One or several networks that were saved together, with what their forecasts need.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Networks, in the order of their files' names.
    pub models: Vec<Network>,
    /// Distance between stamps; `None` where the format does not say.
    pub frequency: Option<Frequency>,
    /// Name of the series column.
    pub id_column: String,
    /// Name of the stamp column.
    pub time_column: String,
    /// Name of the target column.
    pub target_column: String,
    /// The horizon of the checkpoint, the models' own.
    pub horizon: usize,
    /// Scaler of target and temporal columns, fitted to each series before windows are cut.
    pub local_scaler: Option<LocalScaler>,
    /// Scaler of static columns, fitted over all series.
    pub static_scaler: Option<LocalScaler>,
    /// Conformal intervals.
    pub conformal: Option<ConformalScores>,
    /// Series of the training data, where the checkpoint names them.
    pub ids: Vec<String>,
    /// Which format it was read from.
    pub format: Format,
    /// What a native file says about its training; empty otherwise.
    pub training: BTreeMap<String, String>,
    /// Hash of the weights' names, shapes, types and bytes, 64 bits as 16 hex digits. Tells models
    /// apart; not cryptographic, and of this library's own making.
    pub hash: String,
}

impl Checkpoint {
    /// Reads a folder saved by neuralforecast, one network's file of it, or a native file.
    ///
    /// # Errors
    /// Io: a file cannot be read. Checkpoint: a file is not what it claims to be. Unsupported: a
    /// format or a network that cannot be loaded, with what to do instead. Messages name the file
    /// and the tensor or field, what was expected and what was found.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let kind =
            std::fs::metadata(path).map_err(|error| Error::from(error).context(path.display()))?;
        if kind.is_dir() {
            let mut checkpoint = neuralforecast::read(&Folder::open(path)?)?;
            checkpoint.hash = hash(&checkpoint.models);
            return Ok(checkpoint);
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = stem.unwrap_or_default();
        read_file(&name, folder::map(path)?).with_context(|| path.display())
    }

    /// Reads files in memory as [`Checkpoint::open`] reads a folder, or one native file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(files: &[(&str, &[u8])]) -> Result<Checkpoint> {
        from_folder(&Folder::from_bytes(files))
    }

    /// As [`Checkpoint::from_bytes`] for files inside the program, which are not copied.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_static(files: &'static [(&'static str, &'static [u8])]) -> Result<Checkpoint> {
        from_folder(&Folder::from_static(files))
    }

    /// Writes one of the networks as a native file, whole or not at all. Its weights must not have
    /// been dropped.
    ///
    /// # Errors
    /// Usage: there is no such network. Unsupported: the checkpoint has conformal scores, which the
    /// format cannot hold. Io.
    pub fn save(&self, model: usize, path: impl AsRef<Path>) -> Result<()> {
        let network = self
            .models
            .get(model)
            .ok_or_else(|| Error::usage(format!("network {model} of {}", self.models.len())))?;
        let bytes = native::write(self, network)?;
        crate::frame::write_whole(path, &bytes)
    }
}

fn from_folder(folder: &Folder) -> Result<Checkpoint> {
    let names = folder.names();
    if let [name] = names[..]
        && name.ends_with(".safetensors")
    {
        let stem = name.trim_end_matches(".safetensors");
        return read_file(stem, folder.bytes(name)?).with_context(|| folder.display(name));
    }
    let mut checkpoint = neuralforecast::read(folder)?;
    checkpoint.hash = hash(&checkpoint.models);
    Ok(checkpoint)
}

/// A native file, or one network of neuralforecast without its folder.
fn read_file(name: &str, bytes: Arc<dyn Bytes>) -> Result<Checkpoint> {
    let header = safetensors::parse(bytes.bytes())?;
    let mut checkpoint = if header.metadata.contains_key(native::VERSION) {
        native::read(&header, bytes)?
    } else if header.metadata.contains_key("nf_format") {
        let alias = name.rsplit_once('_').map_or(name, |(alias, _)| alias);
        neuralforecast::lone(alias, bytes)?
    } else {
        let (native, framework) = (native::VERSION, "nf_format");
        return Err(wrong(format!(
            "metadata has neither `{native}` nor `{framework}`, so it is no network that can be \
             loaded"
        )));
    };
    checkpoint.hash = hash(&checkpoint.models);
    Ok(checkpoint)
}

/// Checks that `weights` hold what a plan needs and nothing else but what `ignored` names, and
/// drops the rest.
fn check_weights(plan: &Plan, weights: &mut Weights, ignored: impl Fn(&str) -> bool) -> Result<()> {
    for weight in &plan.weights {
        let (name, expected) = (&weight.name, &weight.shape);
        match weights.weight(name) {
            None => {
                let message = format!("tensor `{name}` of floats, shape {expected:?}, is missing");
                return Err(wrong(message));
            }
            Some(view) if view.shape != *expected => {
                let found = view.shape;
                let message = format!("tensor `{name}` has shape {found:?}, expected {expected:?}");
                return Err(wrong(message));
            }
            Some(_) => {}
        }
    }
    let rest: Vec<String> = weights
        .names()
        .filter(|name| !plan.weights.iter().any(|weight| weight.name == *name))
        .map(str::to_owned)
        .collect();
    for name in rest {
        if !ignored(&name) {
            return Err(wrong(format!("tensor `{name}` belongs to no part of the network")));
        }
        weights.remove(&name);
    }
    Ok(())
}

/// Hash of the weights of networks, in their plans' order.
fn hash(networks: &[Network]) -> String {
    let mut hash = ContentHash::default();
    networks.iter().for_each(|network| hash.weights(&network.plan, &network.weights));
    hash.finish()
}

/// Reads bytes as a safetensors header; for fuzzing, which must find no panic.
#[doc(hidden)]
pub fn fuzz_safetensors(bytes: &[u8]) {
    if let Ok(header) = safetensors::parse(bytes) {
        let held = header.tensors.values().all(|info| bytes.get(info.range.clone()).is_some());
        assert!(held, "a tensor that was accepted lies outside the file");
    }
}

/// Reads bytes as one network's file, native or neuralforecast's; for fuzzing.
#[doc(hidden)]
pub fn fuzz_network(bytes: &[u8]) {
    let _ = read_file("fuzzed_0", Arc::new(bytes.to_vec()));
}

/// Reads bytes as a configuration; for fuzzing.
#[doc(hidden)]
pub fn fuzz_configuration(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = neuralforecast::configuration(text, None);
    }
}

/// Reads bytes as the hyper-parameters of a network of each class, and builds its plan; for
/// fuzzing.
#[doc(hidden)]
pub fn fuzz_hyper_parameters(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let Ok(fields) = tagged::Fields::of(&value, "hyper_parameters") else { return };
    for class in hyper_parameters::CLASSES.split(", ") {
        if let Ok(hyper) = hyper_parameters::read(class, fields, 3) {
            let channel = neural_forecast_runtime::plan::Channel::Point;
            let window = hyper.definition.window();
            // Unrolled steps are bounded by the horizon's own limit; small ones show the same.
            let _ = hyper.definition.plan(window.horizon.min(64), vec![channel; 3]);
        }
    }
}

/// The tensors of a safetensors file that describes no network, for a network that is described
/// elsewhere. The file stays mapped while the weights are there.
///
/// # Errors
/// `Io`: it cannot be read; `Checkpoint`: it is malformed, or a tensor holds no floats.
pub fn open_weights(path: &Path) -> Result<Weights> {
    let bytes = folder::map(path)?;
    let read = || {
        let mut weights = Weights::new();
        for (name, info) in safetensors::parse(bytes.bytes())?.tensors {
            let safetensors::ElementType::Float(dtype) = info.dtype else {
                return Err(wrong(format!("tensor `{name}` holds no floats")));
            };
            weights.insert_view(name, dtype, info.shape, Arc::clone(&bytes), info.range);
        }
        Ok(weights)
    };
    read().map_err(|error: Error| error.context(path.display()))
}
