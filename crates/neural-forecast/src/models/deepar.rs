//! neuralforecast's DeepAR: a recurrence over the past whose outputs are a distribution's
//! parameters, rolled out step by step on the distribution's mean.
//!
//! Not GluonTS's DeepAR, which feeds samples and lags back. No samples are drawn here: quantiles of
//! the distribution are the forecaster's.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, BinaryKind, Cell, Initial, Keep, Operand, RnnStack, RnnStates, RnnWeights,
    UnaryKind,
};
use neural_forecast_runtime::plan::{
    Channel, DType, Dim, EntryKind, Plan, PlanBuilder, StateId, StateKind, ValueId,
};
use serde::{Deserialize, Serialize};

use super::blocks::{
    LAYERS_MAX, affine, binary, check_sizes, concat, expand, in_range, linear, shift_and_scale,
    slice, unary,
};
use super::nonlinearity::Nonlinearity;
use super::window::{Window, WindowConfig, WindowScaler, zeros};

/// The hyper-parameters that matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepArConfig {
    /// Inputs, outputs (the distribution's parameters) and scaling. The context is one step longer
    /// than `input_size`, as for every recurrent model.
    pub window: WindowConfig,
    /// `lstm_n_layers`.
    pub layers: usize,
    /// `lstm_hidden_size`, `D`.
    pub hidden: usize,
    /// `decoder_hidden_layers`.
    pub decoder_layers: usize,
    /// `decoder_hidden_size`, where there are such layers.
    pub decoder_hidden: usize,
    /// `decoder_activation`.
    pub activation: Nonlinearity,
    /// The distribution of the loss.
    pub distribution: Distribution,
}

/// Distributions whose parameters are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distribution {
    /// Degrees of freedom, location, scale.
    StudentT,
    /// Mean, standard deviation.
    Normal,
}

impl Distribution {
    /// Names of the parameters, in the network's order.
    pub fn parameters(self) -> &'static [&'static str] {
        match self {
            Distribution::StudentT => &["df", "loc", "scale"],
            Distribution::Normal => &["loc", "scale"],
        }
    }

    /// What the framework adds to the scale before it unscales it.
    fn floor(self) -> f32 {
        match self {
            Distribution::StudentT => 0.1,
            Distribution::Normal => 0.2,
        }
    }
}

const PLACE: &str = "deepar";

/// Builds the entries `full`, `prefill` and `step`, all of them with the inputs that the
/// configuration's window names.
///
/// - `full`: `forecast [B, H, O]`, the distribution's parameters in the units of the data, every
///   step fed with the mean of the one before.
/// - `prefill`: the inputs of a horizon of one step; `forecast [B, 1, O]`, the scaled mean
///   `feedback [B, 1, 1]`, the `statistics [B, 2, 1]` of a window that is scaled, and the states.
/// - `step`: `y [B, 1, 1]`, scaled (a `feedback`); `statistics`, if the window is scaled;
///   `futr_exog [B, 1, F]` of the step that it forecasts, `stat_exog [B, S]`. Outputs `forecast`
///   and `feedback`.
///
/// # Errors
/// A number that is out of its range; a scaler that the framework cannot have either.
pub fn plan(config: &DeepArConfig) -> Result<Plan, PlanError> {
    config.check()?;
    let mut builder = PlanBuilder::new("DeepAR", config.window.plan_context());
    let shape = [config.layers, config.hidden];
    let slots = vec![
        builder.state("h", StateKind::Hidden, &shape),
        builder.state("c", StateKind::Cell, &shape),
    ];
    config.full(&mut builder)?;
    config.prefill(&mut builder, slots.clone())?;
    config.step(&mut builder, slots)?;
    builder.finish()
}

/// Columns beside the target at the steps that the recurrence takes them with: those of the step
/// that it forecasts.
struct Beside {
    /// `[B, n, X]`.
    historic: Option<ValueId>,
    /// `[B, n, F]`.
    future: Option<ValueId>,
    /// `[B, S]`.
    statics: Option<ValueId>,
}

impl DeepArConfig {
    fn check(&self) -> Result<(), PlanError> {
        self.window.check(PLACE)?;
        check_sizes(PLACE, &[("lstm_hidden_size", self.hidden)])?;
        in_range(PLACE, "lstm_n_layers", self.layers, 1, LAYERS_MAX)?;
        in_range(PLACE, "decoder_hidden_layers", self.decoder_layers, 0, LAYERS_MAX)?;
        if self.decoder_layers > 0 {
            check_sizes(PLACE, &[("decoder_hidden_size", self.decoder_hidden)])?;
        }
        let parameters = self.distribution.parameters().len();
        in_range(PLACE, "outputs", self.window.outputs, parameters, parameters)?;
        if self.window.scaler == WindowScaler::Revin {
            let message = "`scaler_type` is `revin`, which does not go with a distribution";
            return Err(PlanError::new(PLACE, message));
        }
        Ok(())
    }

    fn full(&self, b: &mut PlanBuilder) -> Result<(), PlanError> {
        b.begin(EntryKind::Full);
        let horizon = self.window.horizon;
        let window = self.window.begin(b, horizon, false)?;
        let unknown = self.unknown(b)?;
        let x = self.past(b, &window, unknown)?;
        let mut stack = self.recurrence(b, x);
        let mut forecasts = Vec::with_capacity(horizon);
        for step in 0..horizon {
            b.scope(format!("step{step}"));
            stack.finals = step + 1 < horizon;
            let values = b.step(stack.clone())?;
            let raw = self.decode(b, values[0])?;
            let (forecast, feedback) = self.parameters(b, raw, window.statistics)?;
            forecasts.push(forecast);
            if step + 1 == horizon {
                break;
            }
            let at = self.window.context + step + 1;
            let future = window.future.map(|x| slice(b, x, 1, at, 1)).transpose()?;
            let beside = Beside { historic: unknown, future, statics: window.statics };
            stack.x = self.inputs(b, feedback, &beside, 1)?;
            stack.initial = Initial::Values(values[1..].to_vec());
        }
        let forecast = concat(b, &forecasts, 1)?;
        b.output("forecast", forecast, self.channels());
        Ok(())
    }

    fn prefill(&self, b: &mut PlanBuilder, slots: Vec<StateId>) -> Result<(), PlanError> {
        b.begin(EntryKind::Prefill);
        let window = self.window.begin(b, 1, false)?;
        let unknown = self.unknown(b)?;
        let x = self.past(b, &window, unknown)?;
        let states = Some(RnnStates { slots, write: true });
        let stack = RnnStack { states, ..self.recurrence(b, x) };
        self.emit(b, stack, window.statistics)?;
        if let Some(statistics) = window.statistics {
            b.output("statistics", statistics, Vec::new());
        }
        Ok(())
    }

    fn step(&self, b: &mut PlanBuilder, slots: Vec<StateId>) -> Result<(), PlanError> {
        b.begin(EntryKind::Step);
        let (one, window) = (Dim::Fixed(1), &self.window);
        let y = b.input("y", DType::F32, &[Dim::BATCH, one, one]);
        let scaled = window.scaler != WindowScaler::Identity;
        let statistics =
            scaled.then(|| b.input("statistics", DType::F32, &[Dim::BATCH, 2.into(), one]));
        let (future, statics) = (window.future, window.statics);
        let beside = Beside {
            historic: self.unknown(b)?,
            future: (future > 0)
                .then(|| b.input("futr_exog", DType::F32, &[Dim::BATCH, one, future.into()])),
            statics: (statics > 0)
                .then(|| b.input("stat_exog", DType::F32, &[Dim::BATCH, statics.into()])),
        };
        let x = self.inputs(b, y, &beside, 1)?;
        let states = Some(RnnStates { slots, write: true });
        let stack = RnnStack { initial: Initial::Slots, states, ..self.recurrence(b, x) };
        self.emit(b, stack, statistics)
    }

    /// Historic columns where they are not known, `[B, 1, X]`.
    fn unknown(&self, b: &mut PlanBuilder) -> Result<Option<ValueId>, PlanError> {
        let historic = self.window.historic;
        if historic == 0 { Ok(None) } else { zeros(b, &[1, historic]).map(Some) }
    }

    /// The recurrence's inputs over the window: each target with the columns one step later.
    fn past(
        &self,
        b: &mut PlanBuilder,
        window: &Window,
        unknown: Option<ValueId>,
    ) -> Result<ValueId, PlanError> {
        let context = self.window.context;
        let historic = match (window.historic, unknown) {
            (Some(x), Some(unknown)) if context > 1 => {
                let known = slice(b, x, 1, 1, context - 1)?;
                Some(concat(b, &[known, unknown], 1)?)
            }
            (_, unknown) => unknown,
        };
        let future = window.future.map(|x| slice(b, x, 1, 1, context)).transpose()?;
        let beside = Beside { historic, future, statics: window.statics };
        self.inputs(b, window.target, &beside, context)
    }

    /// `[B, steps, 1 + X + F + S]`: target, historic, future, static columns.
    fn inputs(
        &self,
        b: &mut PlanBuilder,
        target: ValueId,
        beside: &Beside,
        steps: usize,
    ) -> Result<ValueId, PlanError> {
        let mut parts = vec![target];
        parts.extend(beside.historic);
        parts.extend(beside.future);
        if let Some(statics) = beside.statics {
            parts.push(expand(b, Operand::Value(statics), 1, steps)?);
        }
        if let [only] = parts.as_slice() { Ok(*only) } else { concat(b, &parts, 2) }
    }

    /// The recurrence from zero, of which the last output is read.
    fn recurrence(&self, b: &mut PlanBuilder, x: ValueId) -> RnnStack {
        let d = self.hidden;
        let WindowConfig { historic, future, statics, .. } = self.window;
        let mut inputs = 1 + historic + future + statics;
        let mut layers = Vec::with_capacity(self.layers);
        for l in 0..self.layers {
            layers.push(vec![RnnWeights {
                w_ih: b.weight(format!("hist_encoder.weight_ih_l{l}"), &[4 * d, inputs]),
                w_hh: b.weight(format!("hist_encoder.weight_hh_l{l}"), &[4 * d, d]),
                b_ih: Some(b.weight(format!("hist_encoder.bias_ih_l{l}"), &[4 * d])),
                b_hh: Some(b.weight(format!("hist_encoder.bias_hh_l{l}"), &[4 * d])),
                w_hr: None,
            }]);
            inputs = d;
        }
        RnnStack { keep: Keep::Last(1), ..RnnStack::new(x, Cell::Lstm, d, layers) }
    }

    fn emit(
        &self,
        b: &mut PlanBuilder,
        stack: RnnStack,
        statistics: Option<ValueId>,
    ) -> Result<(), PlanError> {
        let hidden = b.one(stack)?;
        let raw = self.decode(b, hidden)?;
        let (forecast, feedback) = self.parameters(b, raw, statistics)?;
        b.output("forecast", forecast, self.channels());
        b.output("feedback", feedback, Vec::new());
        Ok(())
    }

    fn decode(&self, b: &mut PlanBuilder, mut x: ValueId) -> Result<ValueId, PlanError> {
        let mut inputs = self.hidden;
        // The framework keeps map, activation and dropout as three neighbours in one list.
        for l in 0..self.decoder_layers {
            let width = self.decoder_hidden;
            let map = linear(b, x, &format!("decoder.layers.{}", 3 * l), [width, inputs], true);
            x = b.one(map.activation(self.activation.activation()))?;
            inputs = width;
        }
        let name = format!("decoder.layers.{}", 3 * self.decoder_layers);
        let map = linear(b, x, &name, [self.window.outputs, inputs], true);
        b.one(map)
    }

    /// Raw outputs `[B, 1, O]` to parameters in the units of the data, and the mean as the window
    /// is scaled. The framework unscales every scaler's distribution by shift and scale alone.
    fn parameters(
        &self,
        b: &mut PlanBuilder,
        raw: ValueId,
        statistics: Option<ValueId>,
    ) -> Result<(ValueId, ValueId), PlanError> {
        let softplus = UnaryKind::Activation(Activation::Softplus);
        let pair = statistics.map(|statistics| shift_and_scale(b, statistics)).transpose()?;
        let (mut parts, mut feedback) = (Vec::new(), raw);
        for (i, &parameter) in self.distribution.parameters().iter().enumerate() {
            let x = slice(b, raw, 2, i, 1)?;
            parts.push(match (parameter, pair) {
                ("loc", pair) => {
                    feedback = self.feedback(b, x)?;
                    match pair {
                        Some((shift, scale)) => {
                            let x = binary(b, x, BinaryKind::Multiply, scale)?;
                            binary(b, x, BinaryKind::Add, shift)?
                        }
                        None => x,
                    }
                }
                ("df", _) => {
                    let x = unary(b, x, softplus)?;
                    affine(b, x, 1.0, 3.0)?
                }
                (_, pair) => {
                    let x = unary(b, x, softplus)?;
                    let x = affine(b, x, 1.0, self.distribution.floor())?;
                    match pair {
                        Some((_, scale)) => binary(b, x, BinaryKind::Multiply, scale)?,
                        None => x,
                    }
                }
            });
        }
        Ok((concat(b, &parts, 2)?, feedback))
    }

    /// The mean, unscaled and scaled again as the window is.
    fn feedback(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        match self.window.scaler {
            WindowScaler::MinMax1 => affine(b, x, 2.0, -1.0),
            WindowScaler::Invariant => unary(b, x, UnaryKind::Asinh),
            _ => Ok(x),
        }
    }

    fn channels(&self) -> Vec<Channel> {
        self.distribution.parameters().iter().map(|&name| Channel::Parameter(name)).collect()
    }
}
