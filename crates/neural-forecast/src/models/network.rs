//! A loaded network: a plan with its weights, and what a forecaster must know to feed it.
//!
//! # The contract of every entry that takes windows
//! Inputs by name, `B` rows, `L` context steps, `H` horizon, all `f32`:
//!
//! | input | shape | what |
//! |---|---|---|
//! | `y` | `[B, L, 1]` | the target, 0 where it is not available |
//! | `mask` | `[B, L, 1]` | 1 where it is available |
//! | `hist_exog` | `[B, L, X]` | historic columns, in the order of [`Exogenous::historic`] |
//! | `futr_exog` | `[B, L + H, F]` | future columns, in the order of [`Exogenous::future`] |
//! | `stat_exog` | `[B, S]` | static columns, in the order of [`Exogenous::statics`] |
//!
//! An entry declares only the inputs that it reads. The output `forecast` is `[B, H, O]`, in the
//! units of `y`: scaling by the window's statistics is inside the plan, scaling by a series' own
//! statistics is the forecaster's. Multivariate networks take and give series instead of the last
//! axis (`y` and `mask` are `[B, L, N]`).

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::plan::{Channel, Plan};
use serde::{Deserialize, Serialize};

use super::{nhits, patchtst, recurrent, tft};
use crate::error::{Error, ErrorKind};
use crate::weights::Weights;

/// One output of a network and the column it becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputColumn {
    /// Follows the alias in the column's name: empty, `-median`, `-lo-90`, `_ql0.3`.
    pub suffix: String,
    /// What the number is.
    pub channel: Channel,
}

/// Names of the columns beside the target, in the order in which the network takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exogenous {
    /// Known in the past only, `X` of them.
    pub historic: Vec<String>,
    /// Known in the past and over the horizon, `F` of them.
    pub future: Vec<String>,
    /// One number a series, `S` of them.
    pub statics: Vec<String>,
}

impl Exogenous {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.historic.is_empty() && self.future.is_empty() && self.statics.is_empty()
    }
}

/// How a network reaches its horizon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// All steps at once. Longer horizons are rolled out by the forecaster, block by block.
    Direct,
    /// Step after step, each fed with the one before. The entry `full` unrolls the horizon it was
    /// built for; [`Network::plan_for`] builds it for another. The entries `prefill` and `step` go
    /// on without an end, see [`recurrent::plan`].
    Recurrent,
}

/// A loaded network with what a forecaster needs to know about it.
#[derive(Clone, Debug)]
pub struct Network {
    /// Prefix of the output columns, for example `LSTM`.
    pub alias: String,
    /// The architecture's name, for example `LSTM`.
    pub architecture: String,
    /// The loss it was trained with, by the training framework's name.
    pub loss: String,
    /// The computation.
    pub plan: Plan,
    /// Its weights; dropped with their file mapping once a device has packed them.
    pub weights: Weights,
    /// Steps of one forecast, `H`.
    pub horizon: usize,
    /// Steps of a window, `L`.
    pub context: usize,
    /// The outputs, in the order of the channels of `forecast`.
    pub outputs: Vec<OutputColumn>,
    /// The output that is fed back as `y` when the forecaster rolls out a longer horizon: the
    /// median, or the only output. `None` if it was trained without a median.
    pub feedback: Option<usize>,
    /// Columns beside the target.
    pub exogenous: Exogenous,
    /// How it reaches its horizon.
    pub decoding: Decoding,
    /// Whether training windows may begin before their series.
    pub start_padding: bool,
    /// Number of series that a multivariate network forecasts together; `None` for one at a time.
    pub series: Option<usize>,
    /// What the plan was built from.
    pub(crate) definition: Definition,
}

impl Network {
    /// The plan for a horizon. For the network's own it is [`Network::plan`]; only a recurrent
    /// network has others.
    ///
    /// # Errors
    /// `Usage`: a horizon of 0; `Unsupported`: another horizon of a direct network.
    pub fn plan_for(&self, horizon: usize) -> crate::Result<Plan> {
        if horizon == 0 {
            return Err(Error::usage("the horizon is 0, expected at least 1"));
        }
        if horizon == self.horizon {
            return Ok(self.plan.clone());
        }
        if self.decoding == Decoding::Direct {
            return Err(Error::unsupported(format!(
                "model `{}` forecasts {} steps at once, not {horizon}",
                self.alias, self.horizon
            )));
        }
        let channels = self.outputs.iter().map(|output| output.channel).collect();
        let plan = self.definition.plan(horizon, channels);
        plan.map_err(|error| Error::new(ErrorKind::Config, error))
    }

    /// Number of trained parameters.
    pub fn parameters(&self) -> usize {
        self.plan.parameters()
    }
}

/// The configuration that a network's plan is built from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Definition {
    Recurrent(recurrent::RecurrentConfig),
    PatchTst(patchtst::PatchTstConfig),
    Nhits(nhits::NhitsConfig),
    Tft(tft::TftConfig),
}

impl Definition {
    /// The plan for a horizon, which matters to recurrent networks only.
    pub(crate) fn plan(&self, horizon: usize, channels: Vec<Channel>) -> Result<Plan, PlanError> {
        match self {
            Definition::Recurrent(config) => recurrent::plan(config, horizon, channels),
            Definition::PatchTst(config) => patchtst::plan(config, channels),
            Definition::Nhits(config) => nhits::plan(config, channels),
            Definition::Tft(config) => tft::plan(config, channels),
        }
    }

    /// Makes the plan's weights of the training framework's.
    pub(crate) fn rearrange(&self, weights: &mut Weights) -> Result<(), PlanError> {
        self.window().rearrange(weights)?;
        match self {
            Definition::Recurrent(_) => Ok(()),
            Definition::PatchTst(config) => patchtst::rearrange(config, weights),
            Definition::Nhits(config) => nhits::rearrange(config, weights),
            Definition::Tft(config) => halve_gates(config, weights),
        }
    }

    /// Inputs, outputs and scaling.
    pub(crate) fn window(&self) -> &super::WindowConfig {
        match self {
            Definition::Recurrent(config) => &config.window,
            Definition::PatchTst(config) => &config.window,
            Definition::Nhits(config) => &config.window,
            Definition::Tft(config) => &config.window,
        }
    }

    /// How the network reaches its horizon.
    pub(crate) fn decoding(&self) -> Decoding {
        match self {
            Definition::Recurrent(config) => config.decoding(),
            _ => Decoding::Direct,
        }
    }
}

/// Puts the halves of every gated unit of a TFT in the place of the whole.
fn halve_gates(config: &tft::TftConfig, weights: &mut Weights) -> Result<(), PlanError> {
    let plan = tft::plan(config, Vec::new())?;
    let halves = tft::rearrange(config, weights)?;
    let mut made = Vec::new();
    for weight in &plan.weights {
        let whole = [".value.", ".gate."]
            .iter()
            .find_map(|half| weight.name.contains(half).then(|| weight.name.replace(half, ".")));
        if let (Some(whole), Some(view)) = (whole, halves.weight(&weight.name)) {
            made.push((weight.name.clone(), whole, view.shape.to_vec(), view.to_f32()));
        }
    }
    for (name, whole, shape, elements) in made {
        weights.remove(&whole);
        weights.insert(name, &shape, &elements);
    }
    Ok(())
}

/// The elements of a tensor that must have this shape.
pub(crate) fn elements(
    weights: &dyn WeightSource,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, PlanError> {
    let wrong = |message| PlanError::new(format!("tensor `{name}`"), message);
    let view = weights.weight(name).ok_or_else(|| wrong("is missing".to_owned()))?;
    if view.shape != shape {
        return Err(wrong(format!("has shape {:?}, expected {shape:?}", view.shape)));
    }
    Ok(view.to_f32())
}
