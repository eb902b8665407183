//! What a neuralforecast loss says about a network's outputs.
//!
//! Losses themselves are of no use here; their number of outputs, names and quantile levels are.

use neural_forecast_runtime::plan::Channel;
use serde_json::Value;

use super::tagged::{self, Fields, Tensors, wrong};
use crate::error::{Error, ErrorKind, Result};
use crate::models::OutputColumn;

/// Most quantiles of one network.
const OUTPUTS_MAX: usize = 1024;

/// A loss, read.
pub(crate) struct Loss {
    /// Its class.
    pub name: String,
    /// What the network's outputs are, in its order.
    pub outputs: Vec<OutputColumn>,
    /// The output that is fed back in a roll-out: the median, or the only one.
    pub feedback: Option<usize>,
}

/// Reads the field `loss` of hyper-parameters.
///
/// # Errors
/// Unsupported: losses whose networks put out something else than points and quantiles.
/// Checkpoint: it is no loss, or its parts do not fit together.
pub(crate) fn read(value: &Value, tensors: Option<Tensors<'_>>) -> Result<Loss> {
    let fields = Fields::of(value, "loss")?;
    let name = fields.text("cls", "")?;
    if tagged::tag(value) != Some("loss") || name.is_empty() {
        return Err(wrong(format!("`loss` is {}, expected a loss", tagged::kind(value))));
    }
    match name {
        "MAE" | "MSE" | "RMSE" | "MAPE" | "SMAPE" | "MASE" | "FreDF" | "HuberLoss"
        | "TukeyLoss" => Ok(one(name, String::new(), Channel::Point)),
        "QuantileLoss" | "HuberQLoss" => quantile(name, fields),
        "MQLoss" | "HuberMQLoss" => quantiles(name, fields, tensors),
        "IQLoss" | "HuberIQLoss" => Err(unsupported(
            name,
            "its network takes the quantile as an input; train with MQLoss instead",
        )),
        "DistributionLoss" | "PMM" | "GMM" | "NBMM" => Err(unsupported(
            name,
            "its forecasts are samples of a distribution; train with MQLoss instead",
        )),
        _ => Err(unsupported(name, "it is not one of neuralforecast's point and quantile losses")),
    }
}

fn one(name: &str, suffix: String, channel: Channel) -> Loss {
    let outputs = vec![OutputColumn { suffix, channel }];
    Loss { name: name.to_owned(), outputs, feedback: Some(0) }
}

fn quantile(name: &str, fields: Fields<'_>) -> Result<Loss> {
    let args = Fields::of(fields.needed("args")?, "loss.args")?;
    let level = args.needed("q")?.as_f64().unwrap_or(f64::NAN);
    check_level(level)?;
    let suffix = match names(fields)? {
        Some(mut names) if names.len() == 1 => names.remove(0),
        Some(names) => return Err(wrong(format!("{} output names for one output", names.len()))),
        None => format!("_ql{level}"),
    };
    Ok(one(name, suffix, Channel::Quantile(level)))
}

fn quantiles(name: &str, fields: Fields<'_>, tensors: Option<Tensors<'_>>) -> Result<Loss> {
    let state = Fields::of(fields.needed("state")?, "loss.state")?;
    let (_, levels) = tagged::numbers(state.needed("quantiles")?, tensors, "loss.quantiles")?;
    let suffixes = names(fields)?.ok_or_else(|| wrong("`output_names` is missing".to_owned()))?;
    if suffixes.len() != levels.len() || !(1..=OUTPUTS_MAX).contains(&levels.len()) {
        return Err(wrong(format!(
            "{} output names for {} quantiles",
            suffixes.len(),
            levels.len()
        )));
    }
    let mut outputs = Vec::with_capacity(levels.len());
    for (suffix, level) in suffixes.into_iter().zip(levels) {
        let level = decimal(level);
        check_level(level)?;
        outputs.push(OutputColumn { suffix, channel: Channel::Quantile(level) });
    }
    let feedback = outputs.iter().position(|output| output.channel == Channel::Quantile(0.5));
    Ok(Loss { name: name.to_owned(), outputs, feedback })
}

fn names(fields: Fields<'_>) -> Result<Option<Vec<String>>> {
    let Some(state) = fields.get("state") else { return Ok(None) };
    let state = Fields::of(state, "loss.state")?;
    state.get("output_names").map(|_| state.names("output_names")).transpose()
}

/// The level that was meant by a level stored as f32: its shortest decimal.
fn decimal(level: f64) -> f64 {
    let single = level as f32;
    if f64::from(single) != level {
        return level;
    }
    single.to_string().parse().unwrap_or(level)
}

fn check_level(level: f64) -> Result<()> {
    if level > 0.0 && level < 1.0 {
        return Ok(());
    }
    Err(wrong(format!("quantile {level} of the loss, expected one in (0, 1)")))
}

#[cold]
fn unsupported(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("loss `{name}` cannot be forecast with: {why}"))
}
