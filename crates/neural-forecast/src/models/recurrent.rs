//! neuralforecast's LSTM, GRU and RNN: a recurrence over the window with an MLP over its last
//! states (direct), or a recurrence that is fed with its own forecasts (recurrent).
//!
//! Not the integration guide's LSTM, which is in `lstm`. `encoder_activation` of the RNN has no
//! effect, because the framework never hands it to PyTorch: the cell is always tanh.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, Cell, Initial, Keep, Linear, LinearAxis, Operand, Pool, PoolKind, RnnStack,
    RnnStates, RnnWeights,
};
use neural_forecast_runtime::plan::{
    Channel, DType, Dim, EntryKind, Plan, PlanBuilder, StateKind, ValueId,
};
use serde::{Deserialize, Serialize};

use super::blocks::{self, LAYERS_MAX, check_sizes, in_range};
use super::network::Decoding;
use super::nonlinearity::Nonlinearity;
use super::window::{Window, WindowConfig, WindowScaler, zeros};

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
/// A recurrent network has two entries more, for horizons that are not known beforehand:
/// `prefill` takes the window (`futr_exog` one step longer than it) and gives the first step,
/// `step` gives one step more. Both write `forecast` `[B, 1, O]` and `feedback` `[B, 1, 1]`, which
/// is what the next `step` takes under that name, with the `futr_exog` `[B, 1, F]` of the step
/// after the one it predicts from. Statistics of the window (`statistics` `[B, 2, 1]`,
/// `futr_statistics` `[B, 2, F]`), where there are any, go from the one to all of the others; the
/// recurrence's state is in the slots.
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
    match &config.decoder {
        Decoder::Direct { hidden, layers, activation } => {
            check_sizes(place, &[("decoder_hidden_size", *hidden)])?;
            in_range(place, "decoder_layers", *layers, 1, LAYERS_MAX)?;
            let scaled =
                config.direct(&mut b, &window, *hidden, *layers, activation.activation())?;
            let forecast = config.window.unscale(&mut b, scaled, window.statistics)?;
            b.output("forecast", forecast, channels);
        }
        Decoder::Recurrent => {
            let scaled = config.unrolled(&mut b, &window, horizon)?;
            config.report(&mut b, scaled, window.statistics, horizon, channels.clone())?;
            config.stepwise(&mut b, &channels)?;
        }
    }
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

    /// The window as the recurrence takes it. Targets meet the exogenous columns of the step they
    /// predict, so those are shifted by one; historic columns are 0 where they are not known.
    fn shifted(&self, b: &mut PlanBuilder, window: &Window) -> Result<(ValueId, Ahead), PlanError> {
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
        Ok((x, Ahead { historic: unknown, statics: repeat_statics(b, window.statics, 1)? }))
    }

    /// The window, then step after step, `[B, horizon, 1]` of the scaled target.
    fn unrolled(
        &self,
        b: &mut PlanBuilder,
        window: &Window,
        horizon: usize,
    ) -> Result<ValueId, PlanError> {
        let context = self.window.context;
        let (x, ahead) = self.shifted(b, window)?;
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
            let future = match window.future {
                Some(x) => Some(blocks::slice(b, x, 1, context + step + 1, 1)?),
                None => None,
            };
            stack.x = join(b, &[Some(target), ahead.historic, ahead.statics, future])?;
            stack.initial = Initial::Values(values[1..].to_vec());
            stack.finals = step + 2 < horizon;
        }
        if let [one] = results[..] {
            return Ok(one);
        }
        blocks::concat(b, &results, 1)
    }

    /// The entries `prefill` and `step`, which carry the state in slots.
    fn stepwise(&self, b: &mut PlanBuilder, channels: &[Channel]) -> Result<(), PlanError> {
        let WindowConfig { historic, future, statics, scaler, .. } = self.window;
        let slots = self.cell.cell().states().iter().map(|&kind| {
            let (name, width) = match kind {
                StateKind::Hidden => ("hidden", self.width()),
                _ => ("cell", self.hidden),
            };
            b.state(name, kind, &[self.layers, width])
        });
        let states = Some(RnnStates { slots: slots.collect(), write: true });

        b.begin(EntryKind::Prefill);
        let window = self.window.begin(b, 1, false)?;
        let (x, _) = self.shifted(b, &window)?;
        let keep = Keep::Last(1);
        let stack = RnnStack { keep, states: states.clone(), ..self.stack(b, x) };
        let y = b.one(stack)?;
        let target = self.feedback(b, y)?;
        self.report(b, target, window.statistics, 1, channels.to_vec())?;
        b.output("feedback", target, Vec::new());
        for (name, statistics) in
            [("statistics", window.statistics), ("futr_statistics", window.future_statistics)]
        {
            if let Some(statistics) = statistics {
                b.output(name, statistics, Vec::new());
            }
        }

        b.begin(EntryKind::Step);
        let input = |b: &mut PlanBuilder, name: &str, shape: &[usize]| {
            let shape: Vec<Dim> =
                std::iter::once(Dim::BATCH).chain(shape.iter().map(|&n| n.into())).collect();
            let there = shape.iter().all(|dim| *dim != Dim::Fixed(0));
            there.then(|| b.input(name, DType::F32, &shape))
        };
        let target = input(b, "feedback", &[1, 1]);
        let x = input(b, "futr_exog", &[1, future]);
        let fixed = input(b, "stat_exog", &[statics]);
        let scaled = usize::from(scaler != WindowScaler::Identity);
        let statistics = input(b, "statistics", &[2, scaled]);
        let of_future = input(b, "futr_statistics", &[2, scaled * future]);
        let x = match x {
            Some(x) => Some(self.window.scale_by(b, x, of_future)?),
            None => None,
        };
        let unknown = if historic > 0 { Some(zeros(b, &[1, historic])?) } else { None };
        let fixed = repeat_statics(b, fixed, 1)?;
        let x = join(b, &[target, unknown, fixed, x])?;
        let stack = RnnStack { initial: Initial::Slots, states, ..self.stack(b, x) };
        let y = b.one(stack)?;
        let target = self.feedback(b, y)?;
        self.report(b, target, statistics, 1, channels.to_vec())?;
        b.output("feedback", target, Vec::new());
        Ok(())
    }

    /// The output `forecast` of the fed-back target `[B, horizon, 1]`: in the target's units, and
    /// in every column the same, as the framework reports it.
    fn report(
        &self,
        b: &mut PlanBuilder,
        target: ValueId,
        statistics: Option<ValueId>,
        horizon: usize,
        channels: Vec<Channel>,
    ) -> Result<(), PlanError> {
        let mut forecast = self.window.unscale(b, target, statistics)?;
        let outputs = self.window.outputs;
        if outputs > 1 {
            forecast = blocks::expand(b, Operand::Value(forecast), 3, outputs)?;
            let shape = [Dim::BATCH, horizon.into(), outputs.into()];
            forecast = blocks::reshape(b, forecast, &shape)?;
        }
        b.output("forecast", forecast, channels);
        Ok(())
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

/// What a step takes beside the target and the future columns.
struct Ahead {
    /// Historic columns, which are not known, `[B, 1, X]` zeros.
    historic: Option<ValueId>,
    /// `[B, 1, S]`.
    statics: Option<ValueId>,
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
