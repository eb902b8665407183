//! The project's own format: one safetensors file a network, its definition in the metadata.
//!
//! | metadata | what |
//! |---|---|
//! | `neural_forecast.format_version` | `1` |
//! | `neural_forecast.network` | JSON: names, outputs, exogenous columns, definition |
//! | `neural_forecast.series` | JSON: frequency, column names, local and static scaler |
//! | `neural_forecast.training` | JSON object of strings, free: data, steps, date, scores |
//!
//! Tensors are the weights of the plan that the definition builds, under its names and in its
//! shapes: what was re-arranged from a framework's order stays re-arranged. f32, f16, bf16 or f64.
//!
//! # Compatibility
//! A reader takes files of its own version and refuses others by number. Fields are added and
//! defaults chosen so that older files of the same version keep their forecasts; whatever would
//! change a forecast, or a field that a reader must not pass over, makes a new version, whose
//! reader also reads version 1. Unknown fields are refused, unknown metadata keys are passed over.

use std::collections::BTreeMap;
use std::sync::Arc;

use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::plan::Channel;
use serde::{Deserialize, Serialize};

use super::safetensors::{self, ElementType, Header, TensorToWrite};
use super::tagged::wrong;
use super::{Checkpoint, Format, LocalScaler};
use crate::calendar::Frequency;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Definition, Exogenous, Network, OutputColumn};
use crate::scale::ScalerKind;
use crate::weights::{Bytes, Weights};

/// Metadata key of the version; a file that has it is of this format.
pub(crate) const VERSION: &str = "neural_forecast.format_version";
const CURRENT: &str = "1";
const NETWORK: &str = "neural_forecast.network";
const SERIES: &str = "neural_forecast.series";
const TRAINING: &str = "neural_forecast.training";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    alias: String,
    architecture: String,
    loss: String,
    outputs: Vec<StoredOutput>,
    feedback: Option<usize>,
    #[serde(default)]
    historic: Vec<String>,
    #[serde(default)]
    future: Vec<String>,
    #[serde(default)]
    statics: Vec<String>,
    #[serde(default)]
    start_padding: bool,
    definition: Definition,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredOutput {
    suffix: String,
    /// Absent for a point forecast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantile: Option<f64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    #[serde(default)]
    frequency: Option<String>,
    id_column: String,
    time_column: String,
    target_column: String,
    /// Scalers by name; they are fitted to the series that are forecast, so statistics are not
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local_scaler: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    static_scaler: Option<String>,
}

/// Reads a file whose header says that it is of this format.
///
/// # Errors
/// Unsupported: another version. Checkpoint: what does not fit together.
pub(crate) fn read(header: &Header, bytes: Arc<dyn Bytes>) -> Result<Checkpoint> {
    let version = header.metadata.get(VERSION).map_or("", String::as_str);
    if version != CURRENT {
        let message = format!("`{VERSION}` is `{version}`, expected `{CURRENT}`");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let stored: Stored = parse(header, NETWORK)?;
    let series: Series = parse(header, SERIES)?;
    let training = match header.metadata.contains_key(TRAINING) {
        true => parse(header, TRAINING)?,
        false => BTreeMap::new(),
    };
    let frequency = series.frequency.as_deref().map(str::parse::<Frequency>).transpose()?;
    let network = network(stored, header, &bytes)?;
    let horizon = network.horizon;
    Ok(Checkpoint {
        models: vec![network],
        frequency,
        id_column: series.id_column,
        time_column: series.time_column,
        target_column: series.target_column,
        horizon,
        local_scaler: scaler(series.local_scaler)?,
        static_scaler: scaler(series.static_scaler)?,
        conformal: None,
        ids: Vec::new(),
        format: Format::Native,
        training,
        hash: String::new(),
    })
}

fn scaler(name: Option<String>) -> Result<Option<LocalScaler>> {
    let Some(name) = name else { return Ok(None) };
    let kind: ScalerKind = name.parse()?;
    Ok(Some(LocalScaler { kind: kind.as_str().to_owned(), statistics: BTreeMap::new() }))
}

fn parse<'a, T: Deserialize<'a>>(header: &'a Header, key: &str) -> Result<T> {
    let text = header.metadata.get(key);
    let text = text.ok_or_else(|| wrong(format!("metadata `{key}` is missing")))?;
    serde_json::from_str(text).map_err(|error| wrong(format!("metadata `{key}`: {error}")))
}

fn network(stored: Stored, header: &Header, bytes: &Arc<dyn Bytes>) -> Result<Network> {
    let mut weights = Weights::new();
    for (name, info) in &header.tensors {
        let ElementType::Float(dtype) = info.dtype else {
            return Err(wrong(format!("tensor `{name}` holds no floats")));
        };
        let (shape, range) = (info.shape.clone(), info.range.clone());
        weights.insert_view(name.clone(), dtype, shape, Arc::clone(bytes), range);
    }
    let exogenous =
        Exogenous { historic: stored.historic, future: stored.future, statics: stored.statics };
    let outputs: Vec<OutputColumn> = stored
        .outputs
        .into_iter()
        .map(|output| OutputColumn {
            suffix: output.suffix,
            channel: output.quantile.map_or(Channel::Point, Channel::Quantile),
        })
        .collect();
    check_network(&stored.definition, &exogenous, &outputs, stored.feedback)?;
    let channels = outputs.iter().map(|output| output.channel).collect();
    let window = stored.definition.window();
    let (horizon, context) = (window.horizon, window.context);
    let plan = stored.definition.plan(horizon, channels);
    let plan = plan.map_err(|error| Error::new(ErrorKind::Checkpoint, error))?;
    super::check_weights(&plan, &mut weights, |_| false)?;
    Ok(Network {
        alias: stored.alias,
        architecture: stored.architecture,
        loss: stored.loss,
        plan,
        weights,
        horizon,
        context,
        outputs,
        feedback: stored.feedback,
        exogenous,
        decoding: stored.definition.decoding(),
        start_padding: stored.start_padding,
        series: None,
        definition: stored.definition,
    })
}

fn check_network(
    definition: &Definition,
    exogenous: &Exogenous,
    outputs: &[OutputColumn],
    feedback: Option<usize>,
) -> Result<()> {
    let window = definition.window();
    let counts = [
        ("outputs", outputs.len(), window.outputs),
        ("historic columns", exogenous.historic.len(), window.historic),
        ("future columns", exogenous.future.len(), window.future),
        ("static columns", exogenous.statics.len(), window.statics),
    ];
    for (what, named, defined) in counts {
        if named != defined {
            return Err(wrong(format!("{named} {what} are named, the definition has {defined}")));
        }
    }
    let level = |output: &OutputColumn| match output.channel {
        Channel::Quantile(level) if !(level > 0.0 && level < 1.0) => Some(level),
        _ => None,
    };
    if let Some(level) = outputs.iter().find_map(level) {
        return Err(wrong(format!("quantile {level}, expected one in (0, 1)")));
    }
    match feedback {
        Some(output) if output >= outputs.len() => {
            Err(wrong(format!("feedback is output {output} of {}", outputs.len())))
        }
        _ => Ok(()),
    }
}

/// The bytes of a file that holds one network of a checkpoint.
///
/// # Errors
/// Unsupported: conformal scores, which the format has no place for. Usage: the network's weights
/// were dropped.
pub(crate) fn write(checkpoint: &Checkpoint, network: &Network) -> Result<Vec<u8>> {
    let mut file = header(checkpoint, network)?;
    for weight in &network.plan.weights {
        if let Some(view) = network.weights.weight(&weight.name) {
            file.extend_from_slice(view.bytes);
        }
    }
    Ok(file)
}

/// Everything before the tensors.
fn header(checkpoint: &Checkpoint, network: &Network) -> Result<Vec<u8>> {
    if checkpoint.conformal.is_some() {
        let message = format!("conformal scores, which format {CURRENT} cannot hold");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let outputs = network.outputs.iter().map(|output| {
        let quantile = match output.channel {
            Channel::Quantile(level) => Some(level),
            Channel::Point | Channel::Parameter(_) => None,
        };
        StoredOutput { suffix: output.suffix.clone(), quantile }
    });
    let stored = Stored {
        alias: network.alias.clone(),
        architecture: network.architecture.clone(),
        loss: network.loss.clone(),
        outputs: outputs.collect(),
        feedback: network.feedback,
        historic: network.exogenous.historic.clone(),
        future: network.exogenous.future.clone(),
        statics: network.exogenous.statics.clone(),
        start_padding: network.start_padding,
        definition: network.definition.clone(),
    };
    let series = Series {
        frequency: checkpoint.frequency.map(|frequency| frequency.to_string()),
        id_column: checkpoint.id_column.clone(),
        time_column: checkpoint.time_column.clone(),
        target_column: checkpoint.target_column.clone(),
        local_scaler: checkpoint.local_scaler.as_ref().map(|scaler| scaler.kind.clone()),
        static_scaler: checkpoint.static_scaler.as_ref().map(|scaler| scaler.kind.clone()),
    };
    let mut metadata = BTreeMap::new();
    metadata.insert(VERSION.to_owned(), CURRENT.to_owned());
    metadata.insert(NETWORK.to_owned(), text(&stored)?);
    metadata.insert(SERIES.to_owned(), text(&series)?);
    if !checkpoint.training.is_empty() {
        metadata.insert(TRAINING.to_owned(), text(&checkpoint.training)?);
    }
    let mut tensors = Vec::with_capacity(network.plan.weights.len());
    for weight in &network.plan.weights {
        let view = network.weights.weight(&weight.name).ok_or_else(|| {
            Error::usage(format!("tensor `{}` is no longer held by the network", weight.name))
        })?;
        tensors.push(TensorToWrite {
            name: &weight.name,
            dtype: view.dtype,
            shape: view.shape,
            bytes: view.bytes,
        });
    }
    safetensors::header_bytes(&metadata, &tensors)
}

fn text(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| wrong(error.to_string()))
}
