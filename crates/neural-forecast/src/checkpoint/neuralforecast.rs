//! Folders that neuralforecast saves (format 2): `configuration.json`, its tensors beside it, and
//! one file a network.
//!
//! Does not unpickle: older checkpoints are refused with the framework's own way to convert them.
//! A data set saved in the folder is not read; forecasts are of series that the caller gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use neural_forecast_runtime::plan::Channel;
use serde_json::Value;

use super::folder::Folder;
use super::safetensors::{self, ElementType, Header};
use super::tagged::{self, Fields, Tensors, wrong};
use super::{Checkpoint, ConformalScores, Format, LocalScaler, hyper_parameters, loss};
use crate::calendar::Frequency;
use crate::conformal::Method;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::models::Network;
use crate::scale::ScalerKind;
use crate::weights::{Bytes, Weights};

const CONFIGURATION: &str = "configuration.json";
const CONFIGURATION_TENSORS: &str = "configuration.safetensors";
const DATASET_TENSORS: &str = "dataset.safetensors";

/// Prefix of tensors that belong to hyper-parameters.
const HYPER_PARAMETERS: &str = "__hparams__.";

/// How to make a current folder of an old one.
const MIGRATE: &str = "it holds pickles, which can run code when they are read; convert it once \
                       with `python -m neuralforecast.migrate`";

/// Reads a folder.
///
/// # Errors
/// Io: a file cannot be read. Checkpoint: a file is not what it claims to be. Unsupported: an
/// older format, or a model that cannot be loaded, with what to do instead.
pub(crate) fn read(folder: &Folder) -> Result<Checkpoint> {
    check_format(folder)?;
    let text = folder.text(CONFIGURATION)?;
    let sidecar = Sidecar::read(folder)?;
    let mut checkpoint = configuration(&text, sidecar.as_ref().map(Sidecar::tensors))
        .with_context(|| folder.display(CONFIGURATION))?;
    let mut names = folder.names();
    names.retain(|name| {
        name.ends_with(".safetensors") && ![CONFIGURATION_TENSORS, DATASET_TENSORS].contains(name)
    });
    let mut aliases = BTreeMap::new();
    for name in names {
        let bytes = folder.bytes(name)?;
        // The file's name is the alias and a counter of equal aliases.
        let stem = name.trim_end_matches(".safetensors");
        let alias = stem.rsplit_once('_').map_or(stem, |(alias, _)| alias);
        let mut network = network(alias, bytes).with_context(|| folder.display(name))?;
        // The framework numbers the columns of equal aliases from the second on.
        let number = aliases.entry(alias).and_modify(|n| *n += 1).or_insert(0_usize);
        if *number > 0 {
            network.alias.push_str(&number.to_string());
        }
        checkpoint.models.push(network);
    }
    if checkpoint.models.is_empty() {
        return Err(wrong("no model in it, expected files `NAME_0.safetensors`".to_owned())
            .context(folder.place()));
    }
    Ok(checkpoint)
}

/// Whether the folder is of this format; if not, what it seems to be.
fn check_format(folder: &Folder) -> Result<()> {
    if folder.has(CONFIGURATION) {
        return Ok(());
    }
    let names = folder.names();
    let ends = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|e| name.ends_with(e)));
    if let Some(name) = ends(&[".ckpt", ".pkl"]) {
        return Err(Error::new(ErrorKind::Unsupported, format!("`{name}`: {MIGRATE}"))
            .context(folder.place()));
    }
    if folder.has("config.json") {
        let message = "a Hugging Face folder (`config.json`) cannot be loaded, expected one saved \
                       by neuralforecast";
        return Err(Error::new(ErrorKind::Unsupported, message).context(folder.place()));
    }
    Err(wrong(format!("no `{CONFIGURATION}` in it, expected a folder saved by neuralforecast"))
        .context(folder.place()))
}

/// A safetensors file with its checked header.
struct Sidecar {
    header: Header,
    bytes: Arc<dyn Bytes>,
}

impl Sidecar {
    fn read(folder: &Folder) -> Result<Option<Sidecar>> {
        if !folder.has(CONFIGURATION_TENSORS) {
            return Ok(None);
        }
        let bytes = folder.bytes(CONFIGURATION_TENSORS)?;
        let header = safetensors::parse(bytes.bytes())
            .with_context(|| folder.display(CONFIGURATION_TENSORS))?;
        Ok(Some(Sidecar { header, bytes }))
    }

    fn tensors(&self) -> Tensors<'_> {
        Tensors { header: &self.header, bytes: self.bytes.bytes() }
    }
}

/// Everything but the networks.
pub(crate) fn configuration(text: &str, tensors: Option<Tensors<'_>>) -> Result<Checkpoint> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| wrong(format!("not JSON as it is saved: {error}")))?;
    let outer = Fields::of(&value, "configuration")?;
    check_version(outer.text("nf_format", "")?)?;
    let fields = Fields::of(outer.needed("configuration")?, "configuration")?;
    let frequency = match fields.needed("freq")? {
        Value::String(name) => name.parse::<Frequency>().context("`freq`")?,
        value => {
            let step = value.as_u64().ok_or_else(|| {
                wrong(format!("`freq` is {}, expected a name or a step", tagged::kind(value)))
            })?;
            Frequency::integer(step).context("`freq`")?
        }
    };
    let ids = match fields.get("uids") {
        Some(value) => tagged::strings(value, tensors, "uids")?,
        None => Vec::new(),
    };
    let scaler = |kind: &str, columns: &str| -> Result<Option<LocalScaler>> {
        let Some(kind) = fields.get(kind) else { return Ok(None) };
        let name = kind.as_str().unwrap_or_default();
        let kind: ScalerKind = name.parse()?;
        let statistics = fields.get(columns).map(|value| statistics(value, tensors)).transpose()?;
        let statistics = statistics.unwrap_or_default();
        Ok(Some(LocalScaler { kind: kind.as_str().to_owned(), statistics }))
    };
    let column = |name: &str, default| fields.text(name, default).map(str::to_owned);
    Ok(Checkpoint {
        models: Vec::new(),
        frequency: Some(frequency),
        id_column: column("id_col", "unique_id")?,
        time_column: column("time_col", "ds")?,
        target_column: column("target_col", "y")?,
        horizon: fields.count("h", None)?,
        local_scaler: scaler("local_scaler_type", "scalers_")?,
        static_scaler: scaler("local_static_scaler_type", "static_scalers_")?,
        conformal: conformal(fields, tensors)?,
        ids,
        format: Format::NeuralForecast,
        training: BTreeMap::new(),
        hash: String::new(),
    })
}

fn check_version(version: &str) -> Result<()> {
    match version {
        "2" => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("`nf_format` is `{version}`, expected `2`"),
        )),
    }
}

/// Two numbers a series for each column.
fn statistics(
    value: &Value,
    tensors: Option<Tensors<'_>>,
) -> Result<BTreeMap<String, Vec<[f32; 2]>>> {
    let mut statistics = BTreeMap::new();
    for (column, scaler) in Fields::of(value, "scalers_")?.0 {
        let Some(stats) = scaler.get("stats_").filter(|stats| !stats.is_null()) else { continue };
        let (shape, numbers) = tagged::numbers(stats, tensors, column)?;
        let pairs = numbers.as_chunks::<2>();
        if shape.last() != Some(&2) || !pairs.1.is_empty() {
            return Err(wrong(format!(
                "statistics of `{column}` have shape {shape:?}, expected two numbers a series"
            )));
        }
        let pairs = pairs.0.iter().map(|[a, b]| [*a as f32, *b as f32]).collect();
        statistics.insert(column.clone(), pairs);
    }
    Ok(statistics)
}

fn conformal(fields: Fields<'_>, tensors: Option<Tensors<'_>>) -> Result<Option<ConformalScores>> {
    let (Some(intervals), Some(frame)) = (fields.get("prediction_intervals"), fields.get("_cs_df"))
    else {
        return Ok(None);
    };
    let intervals = Fields::of(intervals, "prediction_intervals")?;
    let method: Method = intervals.text("method", "conformal_distribution")?.parse()?;
    let mut scores = ConformalScores {
        method: method.to_string(),
        windows: intervals.count("n_windows", 2)?,
        step: intervals.count("step_size", 1)?,
        ..ConformalScores::default()
    };
    let id = fields.text("id_col", "unique_id")?;
    let time = fields.text("time_col", "ds")?;
    let columns = frame.get("columns").and_then(Value::as_array);
    let columns = columns.ok_or_else(|| wrong("`_cs_df` has no columns".to_owned()))?;
    for column in columns {
        let pair = column.as_array().map(Vec::as_slice);
        let Some([Value::String(name), data]) = pair else {
            return Err(wrong("a column of `_cs_df` has no name".to_owned()));
        };
        if name == id {
            scores.ids = tagged::strings(data, tensors, name)?;
        } else if name != time && name != "cutoff" {
            let (_, errors) = tagged::numbers(data, tensors, name)?;
            scores.errors.insert(name.clone(), errors);
        }
    }
    if let Some((name, errors)) = scores.errors.iter().find(|(_, e)| e.len() != scores.ids.len()) {
        let (found, expected) = (errors.len(), scores.ids.len());
        let message = format!("column `{name}` of `_cs_df` has {found} rows, expected {expected}");
        return Err(wrong(message));
    }
    Ok(Some(scores))
}

/// One network's file without its folder: what the folder would say has the framework's defaults,
/// and the frequency is open.
pub(crate) fn lone(alias: &str, bytes: Arc<dyn Bytes>) -> Result<Checkpoint> {
    let network = network(alias, bytes)?;
    Ok(Checkpoint {
        horizon: network.horizon,
        models: vec![network],
        frequency: None,
        id_column: "unique_id".to_owned(),
        time_column: "ds".to_owned(),
        target_column: "y".to_owned(),
        local_scaler: None,
        static_scaler: None,
        conformal: None,
        ids: Vec::new(),
        format: Format::NeuralForecast,
        training: BTreeMap::new(),
        hash: String::new(),
    })
}

/// Reads one network's file.
pub(crate) fn network(alias: &str, bytes: Arc<dyn Bytes>) -> Result<Network> {
    let header = safetensors::parse(bytes.bytes())?;
    let text = |key: &str| {
        let found = header.metadata.get(key).map(String::as_str);
        found.ok_or_else(|| wrong(format!("metadata `{key}` is missing")))
    };
    check_version(text("nf_format")?)?;
    let class = text("model_class")?;
    let hyper: Value = serde_json::from_str(text("hyper_parameters")?)
        .map_err(|error| wrong(format!("metadata `hyper_parameters`: {error}")))?;
    let fields = Fields::of(&hyper, "hyper_parameters")?;
    let tensors = Tensors { header: &header, bytes: bytes.bytes() };
    let known = hyper_parameters::CLASSES.split(", ").any(|known| known == class);
    if !known {
        let known = hyper_parameters::CLASSES;
        let message = format!("architecture `{class}` cannot be loaded, expected one of {known}");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let loss = loss::read(fields.needed("loss")?, Some(tensors))?;
    let hyper = hyper_parameters::read(class, fields, loss.outputs.len())?;
    let mut weights = weights(&header, &bytes);
    let refuse = |error| Error::new(ErrorKind::Checkpoint, error);
    // The network's numbers are checked before anything of their sizes is made.
    let channels: Vec<Channel> = loss.outputs.iter().map(|output| output.channel).collect();
    let horizon = hyper.definition.window().horizon;
    let plan = hyper.definition.plan(horizon, channels).map_err(refuse)?;
    hyper.definition.rearrange(&mut weights).map_err(refuse)?;
    super::check_weights(&plan, &mut weights, of_no_part)?;
    Ok(Network {
        alias: alias.to_owned(),
        architecture: class.to_owned(),
        loss: loss.name,
        plan,
        weights,
        horizon,
        context: hyper.definition.window().context,
        outputs: loss.outputs,
        feedback: loss.feedback,
        exogenous: hyper.exogenous,
        decoding: hyper.definition.decoding(),
        start_padding: hyper.start_padding,
        series: None,
        definition: hyper.definition,
    })
}

/// Tensors that the framework keeps and no forecast reads.
fn of_no_part(name: &str) -> bool {
    name.starts_with("loss.")
        || name.starts_with("valid_loss.")
        // Constants of PatchTST's and TFT's attention.
        || name.ends_with(".sdp_attn.scale")
        || name.ends_with(".attention._mask")
        // TFT's weights of a context that there is not.
        || name.ends_with(".lin_c.weight")
}

/// The file's tensors of floats, without those of hyper-parameters.
fn weights(header: &Header, bytes: &Arc<dyn Bytes>) -> Weights {
    let mut weights = Weights::new();
    for (name, info) in &header.tensors {
        if let (ElementType::Float(dtype), false) = (info.dtype, name.starts_with(HYPER_PARAMETERS))
        {
            let (shape, range) = (info.shape.clone(), info.range.clone());
            weights.insert_view(name.clone(), dtype, shape, Arc::clone(bytes), range);
        }
    }
    // Tied names are saved once; only losses tie theirs in the classes that are loaded, and those
    // hold no weights. A plan that misses a tied name says so.
    weights
}
