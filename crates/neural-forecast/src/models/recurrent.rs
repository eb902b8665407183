//! neuralforecast's LSTM, GRU and RNN: a recurrence over the window with an MLP over its last
//! states (direct), or a recurrence that is fed with its own forecasts (recurrent).
//!
//! Not the integration guide's LSTM, which is in `lstm`. `encoder_activation` of the RNN has no
//! effect, because the framework never hands it to PyTorch: the cell is always tanh.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, Cell, Initial, Keep, Linear, LinearAxis, Operand, Pool, PoolKind, RnnStack,
    RnnWeights,
};
use neural_forecast_runtime::plan::{Channel, Dim, EntryKind, Plan, PlanBuilder, ValueId};
use serde::{Deserialize, Serialize};

use super::blocks::{self, LAYERS_MAX, check_sizes, in_range};
use super::network::Decoding;
use super::nonlinearity::Nonlinearity;
use super::window::{Window, WindowConfig, zeros};

/// Most steps of a recurrent network's horizon, each of which is a part of its plan.
const STEPS_MAX: usize = 4096;

/// The recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CellKind {
    /// Long short-term memory.
    Lstm,
    /// Gated recurrent unit.
    Gru,
    /// tanh recurrence.
    Rnn,
}

impl CellKind {
    fn cell(self) -> Cell {
        match self {
            CellKind::Lstm => Cell::Lstm,
            CellKind::Gru => Cell::Gru,
            CellKind::Rnn => Cell::RnnTanh,
        }
    }
}

/// What follows the recurrence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Decoder {
    /// All steps at once, by an MLP over the last states.
    Direct {
        /// Width of its hidden layers.
        hidden: usize,
        /// Number of its affine maps.
        layers: usize,
        /// Between them.
        activation: Nonlinearity,
    },
    /// Step by step: outputs are a projection of the state, their mean is the next input.
    Recurrent,
}

/// The hyper-parameters that matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecurrentConfig {
    /// Inputs, outputs and scaling.
    pub window: WindowConfig,
    /// The recurrence.
    pub cell: CellKind,
    /// `encoder_n_layers`.
    pub layers: usize,
    /// `encoder_hidden_size`.
    pub hidden: usize,
    /// `encoder_bias`.
    pub bias: bool,
    /// What follows.
    pub decoder: Decoder,
}

/// Builds the plan of a configuration, for a horizon (the configuration's own, if direct).
///
/// # Errors
/// A number that is out of its range.
pub fn plan(
    config: &RecurrentConfig,
    horizon: usize,
    channels: Vec<Channel>,
) -> Result<Plan, PlanError> {
    let place = "recurrent network";
    config.window.check(place)?;
    check_sizes(place, &[("encoder_hidden_size", config.hidden), ("horizon", horizon)])?;
    in_range(place, "encoder_n_layers", config.layers, 1, LAYERS_MAX)?;
    if config.decoder == Decoder::Recurrent {
        in_range(place, "horizon", horizon, 1, STEPS_MAX)?;
    }
    let mut b = PlanBuilder::new(place, config.window.plan_context());
    b.begin(EntryKind::Full);
    let window = config.window.begin(&mut b, horizon, false)?;
    let scaled = match &config.decoder {
        Decoder::Direct { hidden, layers, activation } => {
            check_sizes(place, &[("decoder_hidden_size", *hidden)])?;
            in_range(place, "decoder_layers", *layers, 1, LAYERS_MAX)?;
            let activation = activation.activation();
            config.direct(&mut b, &window, *hidden, *layers, activation)?
        }
        Decoder::Recurrent => config.unrolled(&mut b, &window, horizon)?,
    };
    let mut forecast = config.window.unscale(&mut b, scaled, window.statistics)?;
    if config.decoder == Decoder::Recurrent && config.window.outputs > 1 {
        // The framework reports the mean that it feeds back in every column.
        let outputs = config.window.outputs;
        forecast = blocks::expand(&mut b, Operand::Value(forecast), 3, outputs)?;
        let shape = [Dim::BATCH, horizon.into(), outputs.into()];
        forecast = blocks::reshape(&mut b, forecast, &shape)?;
    }
    b.output("forecast", forecast, channels);
    b.finish()
}

impl RecurrentConfig {
    /// How it reaches its horizon.
    pub fn decoding(&self) -> Decoding {
        match self.decoder {
            Decoder::Direct { .. } => Decoding::Direct,
            Decoder::Recurrent => Decoding::Recurrent,
        }
    }

    /// Columns of the recurrence's input.
    fn inputs(&self) -> usize {
        1 + self.window.historic + self.window.statics + self.window.future
    }

    /// Width that the recurrence carries from step to step.
    fn width(&self) -> usize {
        self.projection().unwrap_or(self.hidden)
    }

    /// A recurrent LSTM projects inside its cell; GRU and RNN project after it.
    fn projection(&self) -> Option<usize> {
        let projected = self.decoder == Decoder::Recurrent && self.cell == CellKind::Lstm;
        projected.then_some(self.window.outputs)
    }

    fn stack(&self, b: &mut PlanBuilder, x: ValueId) -> RnnStack {
        let gates = self.cell.cell().gates() * self.hidden;
        let name = |part: &str, layer: usize| format!("hist_encoder.{part}_l{layer}");
        let mut inputs = self.inputs();
        let mut layers = Vec::with_capacity(self.layers);
        for layer in 0..self.layers {
            let mut bias = |part| self.bias.then(|| b.weight(name(part, layer), &[gates]));
            let (b_ih, b_hh) = (bias("bias_ih"), bias("bias_hh"));
            let w_ih = b.weight(name("weight_ih", layer), &[gates, inputs]);
            let w_hh = b.weight(name("weight_hh", layer), &[gates, self.width()]);
            let projection = self.projection();
            let w_hr = projection.map(|p| b.weight(name("weight_hr", layer), &[p, self.hidden]));
            layers.push(vec![RnnWeights { w_ih, w_hh, b_ih, b_hh, w_hr }]);
            inputs = self.width();
        }
        let stack = RnnStack::new(x, self.cell.cell(), self.hidden, layers);
        RnnStack { projection: self.projection(), ..stack }
    }

    fn direct(
        &self,
        b: &mut PlanBuilder,
        window: &Window,
        hidden: usize,
        layers: usize,
        activation: Activation,
    ) -> Result<ValueId, PlanError> {
        let WindowConfig { context, horizon, future, outputs, .. } = self.window;
        let past = match window.future {
            Some(x) => Some(blocks::slice(b, x, 1, 0, context)?),
            None => None,
        };
        b.scope("hist_encoder");
        let statics = repeat_statics(b, window.statics, context)?;
        let x = join(b, &[Some(window.target), window.historic, statics, past])?;
        let mut stack = self.stack(b, x);
        let mut y = if horizon > context {
            let states = b.one(stack)?;
            b.scope("upsample_sequence");
            let weight = b.weight("upsample_sequence.weight", &[horizon, context]);
            let bias = b.weight("upsample_sequence.bias", &[horizon]);
            b.one(Linear::new(states, weight).bias(bias).along(LinearAxis::Time))?
        } else {
            stack.keep = Keep::Last(horizon);
            b.one(stack)?
        };
        b.scope("mlp_decoder");
        if let Some(x) = window.future {
            let ahead = blocks::slice(b, x, 1, context, horizon)?;
            y = blocks::concat(b, &[y, ahead], 2)?;
        }
        let mut inputs = self.hidden + future;
        for layer in 0..layers {
            // Each affine map is followed by an activation and a dropout, which count as layers.
            let name = format!("mlp_decoder.layers.{}", 3 * layer);
            let last = layer + 1 == layers;
            let width = if last { outputs } else { hidden };
            let linear = blocks::linear(b, y, &name, [width, inputs], true);
            let end = if last { Activation::Identity } else { activation };
            y = b.one(linear.activation(end))?;
            inputs = width;
        }
        Ok(y)
    }

    /// The window, then step after step. Targets meet the exogenous columns of the step they
    /// predict, so those are shifted by one; historic columns are 0 where they are not known.
    fn unrolled(
        &self,
        b: &mut PlanBuilder,
        window: &Window,
        horizon: usize,
    ) -> Result<ValueId, PlanError> {
        let WindowConfig { context, historic, .. } = self.window;
        b.scope("hist_encoder");
        let unknown = if historic > 0 { Some(zeros(b, &[1, historic])?) } else { None };
        let known = match (window.historic, unknown) {
            (Some(x), Some(unknown)) if context > 1 => {
                let known = blocks::slice(b, x, 1, 1, context - 1)?;
                Some(blocks::concat(b, &[known, unknown], 1)?)
            }
            (_, unknown) => unknown,
        };
        let past = match window.future {
            Some(x) => Some(blocks::slice(b, x, 1, 1, context)?),
            None => None,
        };
        let statics = repeat_statics(b, window.statics, context)?;
        let x = join(b, &[Some(window.target), known, statics, past])?;
        let now = repeat_statics(b, window.statics, 1)?;
        let mut stack = self.stack(b, x);
        stack.keep = Keep::Last(1);
        stack.finals = horizon > 1;
        let mut results = Vec::with_capacity(horizon);
        for step in 0..horizon {
            let values = b.step(stack.clone())?;
            let target = self.feedback(b, values[0])?;
            results.push(target);
            if step + 1 == horizon {
                break;
            }
            b.scope(format!("step{}", step + 1));
            let ahead = match window.future {
                Some(x) => Some(blocks::slice(b, x, 1, context + step + 1, 1)?),
                None => None,
            };
            stack.x = join(b, &[Some(target), unknown, now, ahead])?;
            stack.initial = Initial::Values(values[1..].to_vec());
            stack.finals = step + 2 < horizon;
        }
        if let [one] = results[..] {
            return Ok(one);
        }
        blocks::concat(b, &results, 1)
    }

    /// The outputs of a step, or their mean: what is reported and fed back, `[B, 1, 1]`.
    fn feedback(&self, b: &mut PlanBuilder, state: ValueId) -> Result<ValueId, PlanError> {
        let outputs = self.window.outputs;
        let y = if self.projection().is_some() {
            state
        } else {
            let linear = blocks::linear(b, state, "proj", [outputs, self.hidden], true);
            b.one(linear)?
        };
        if outputs == 1 {
            return Ok(y);
        }
        b.one(Pool { x: y, axis: 2, kernel: None, kind: PoolKind::Mean })
    }
}

/// Static columns `[B, S]` at each of `steps` steps, `[B, steps, S]`.
fn repeat_statics(
    b: &mut PlanBuilder,
    statics: Option<ValueId>,
    steps: usize,
) -> Result<Option<ValueId>, PlanError> {
    statics.map(|x| blocks::expand(b, Operand::Value(x), 1, steps)).transpose()
}

/// What is there, joined along the features.
fn join(b: &mut PlanBuilder, parts: &[Option<ValueId>]) -> Result<ValueId, PlanError> {
    let parts: Vec<ValueId> = parts.iter().copied().flatten().collect();
    match parts[..] {
        [one] => Ok(one),
        _ => blocks::concat(b, &parts, 2),
    }
}
