//! neuralforecast's DeepAR: a recurrence over the past whose outputs are a distribution's
//! parameters, rolled out step by step on the distribution's mean.
//!
//! Not GluonTS's DeepAR, which feeds samples and lags back. No samples are drawn here: quantiles of
//! the distribution are the forecaster's.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, BinaryKind, Cell, Denormalize, Initial, Keep, Normalize, Operand, RnnStack,
    RnnStates, RnnWeights, Scaler, UnaryKind,
};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, Plan, PlanBuilder, StateId, StateKind, ValueId,
};
use serde::Deserialize;

use super::blocks::{
    LAYERS_MAX, affine, binary, check_sizes, concat, expand, in_range, linear, shift_and_scale,
    slice, unary,
};

/// The hyper-parameters that matter at inference. Defaults are the constructor's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Horizon `H` in steps.
    pub h: usize,
    /// Context length `T` in steps, as the constructor takes it (the framework adds one step, which
    /// its shift of the target uses up).
    pub input_size: usize,
    /// Recurrent layers.
    pub lstm_n_layers: usize,
    /// Recurrent width `D`.
    pub lstm_hidden_size: usize,
    /// Hidden layers of the decoder.
    pub decoder_hidden_layers: usize,
    /// Their width.
    pub decoder_hidden_size: usize,
    /// Their activation, by PyTorch's name.
    pub decoder_activation: Option<String>,
    /// Historic exogenous columns.
    pub hist_exog_list: Vec<String>,
    /// Future exogenous columns.
    pub futr_exog_list: Vec<String>,
    /// Static exogenous columns.
    pub stat_exog_list: Vec<String>,
    /// The distribution of the loss.
    pub distribution: Distribution,
    /// How the target's window is scaled; the identity by default.
    #[serde(skip, default = "identity")]
    pub scaler: Scaler,
}

/// Distributions whose parameters are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Distribution {
    /// Degrees of freedom, location, scale.
    StudentT,
    /// Mean, standard deviation.
    Normal,
}

fn identity() -> Scaler {
    Scaler::IDENTITY
}

impl Default for Config {
    fn default() -> Self {
        Config {
            h: 1,
            input_size: 1,
            lstm_n_layers: 2,
            lstm_hidden_size: 128,
            decoder_hidden_layers: 0,
            decoder_hidden_size: 0,
            decoder_activation: None,
            hist_exog_list: Vec::new(),
            futr_exog_list: Vec::new(),
            stat_exog_list: Vec::new(),
            distribution: Distribution::StudentT,
            scaler: Scaler::IDENTITY,
        }
    }
}

impl Distribution {
    /// Names of the parameters, in the network's order.
    pub fn parameters(self) -> &'static [&'static str] {
        match self {
            Distribution::StudentT => &["df", "loc", "scale"],
            Distribution::Normal => &["loc", "scale"],
        }
    }

    /// What the framework adds to the scale before it is unscaled.
    fn floor(self) -> f32 {
        match self {
            Distribution::StudentT => 0.1,
            Distribution::Normal => 0.2,
        }
    }
}

const PLACE: &str = "deepar";

/// Builds the entries `full`, `prefill` and `step`.
///
/// - `full`: `y [B, T, 1]`, `mask [B, T, 1]` (1 where available), then as configured
///   `hist_exog [B, T, X]`, `futr_exog [B, T, F]`, `stat_exog [B, S]`, already scaled. Outputs
///   `raw [B, H, O]`, the network's last `H` positions before any map (what the framework's forward
///   gives), and `forecast [B, H, O]`, their parameters in the units of the data.
/// - `prefill`: the same inputs; outputs `forecast [B, 1, O]`, the scaled mean `feedback [B, 1, 1]`,
///   the scaler's `statistics [B, 2, 1]`, and the recurrence's states.
/// - `step`: `y [B, 1, 1]` (the last `feedback`), `statistics`, the exogenous columns of that step;
///   outputs `forecast` and `feedback`.
///
/// A roll-out of `H` steps is `prefill` over the context and `H − 1` times `step`. The
/// framework's window is one step longer and shifted: its exogenous columns at position `t` are
/// those of the stamp after `y[t]` for future columns, as the forecaster aligns them.
///
/// # Errors
/// A configuration that no network can have, or one that is not supported, by name.
pub fn plan(config: &Config) -> Result<Plan, PlanError> {
    let network = Network::new(config)?;
    let mut builder = PlanBuilder::new("DeepAR", Context::Fixed(config.input_size));
    let shape = [config.lstm_n_layers, config.lstm_hidden_size];
    let slots = vec![
        builder.state("h", StateKind::Hidden, &shape),
        builder.state("c", StateKind::Cell, &shape),
    ];
    if config.h <= config.input_size {
        network.full(&mut builder)?;
    }
    network.prefill(&mut builder, slots.clone())?;
    network.step(&mut builder, slots)?;
    builder.finish()
}

struct Network<'a> {
    c: &'a Config,
    activation: Activation,
}

impl<'a> Network<'a> {
    fn new(c: &'a Config) -> Result<Self, PlanError> {
        check_sizes(PLACE, &[
            ("h", c.h),
            ("input_size", c.input_size),
            ("lstm_hidden_size", c.lstm_hidden_size),
            ("hist_exog_list", c.hist_exog_list.len() + 1),
            ("futr_exog_list", c.futr_exog_list.len() + 1),
            ("stat_exog_list", c.stat_exog_list.len() + 1),
        ])?;
        in_range(PLACE, "lstm_n_layers", c.lstm_n_layers, 1, LAYERS_MAX)?;
        in_range(PLACE, "decoder_hidden_layers", c.decoder_hidden_layers, 0, LAYERS_MAX)?;
        if c.decoder_hidden_layers > 0 {
            check_sizes(PLACE, &[("decoder_hidden_size", c.decoder_hidden_size)])?;
        }
        let activation = match c.decoder_activation.as_deref() {
            None | Some("ReLU") => Activation::Relu,
            Some("Tanh") => Activation::Tanh,
            Some("GELU") => Activation::Gelu,
            Some("SiLU") => Activation::Silu,
            Some("ELU") => Activation::Elu,
            Some("SELU") => Activation::Selu,
            Some("Sigmoid") => Activation::Sigmoid,
            Some("Softplus") => Activation::Softplus,
            Some("LeakyReLU") => Activation::LeakyRelu(0.01),
            Some(other) => {
                let message = format!("`decoder_activation` is `{other}`, which is not supported");
                return Err(PlanError::new(PLACE, message));
            }
        };
        Ok(Network { c, activation })
    }

    fn full(&self, b: &mut PlanBuilder) -> Result<(), PlanError> {
        b.begin(EntryKind::Full);
        let (y, statistics) = self.window(b)?;
        let x = self.inputs(b, y, self.c.input_size)?;
        let stack = RnnStack { keep: Keep::Last(self.c.h), ..self.recurrence(b, x) };
        let hidden = b.one(stack)?;
        let raw = self.decode(b, hidden)?;
        let (forecast, _) = self.parameters(b, raw, statistics)?;
        b.output("raw", raw, Vec::new());
        b.output("forecast", forecast, self.channels());
        Ok(())
    }

    fn prefill(&self, b: &mut PlanBuilder, slots: Vec<StateId>) -> Result<(), PlanError> {
        b.begin(EntryKind::Prefill);
        let (y, statistics) = self.window(b)?;
        let x = self.inputs(b, y, self.c.input_size)?;
        let states = Some(RnnStates { slots, write: true });
        self.emit(b, x, Initial::Zero, states, statistics)?;
        b.output("statistics", statistics, Vec::new());
        Ok(())
    }

    fn step(&self, b: &mut PlanBuilder, slots: Vec<StateId>) -> Result<(), PlanError> {
        b.begin(EntryKind::Step);
        let y = b.input("y", DType::F32, &[Dim::BATCH, 1.into(), 1.into()]);
        let statistics = b.input("statistics", DType::F32, &[Dim::BATCH, 2.into(), 1.into()]);
        let x = self.inputs(b, y, 1)?;
        let states = Some(RnnStates { slots, write: true });
        self.emit(b, x, Initial::Slots, states, statistics)
    }

    /// The target's window, scaled, and its statistics.
    fn window(&self, b: &mut PlanBuilder) -> Result<(ValueId, ValueId), PlanError> {
        let shape = [Dim::BATCH, self.c.input_size.into(), 1.into()];
        let y = b.input("y", DType::F32, &shape);
        let mask = b.input("mask", DType::F32, &shape);
        let scaled = b.step(Normalize::window(y, Some(mask), self.c.scaler))?;
        Ok((scaled[0], scaled[1]))
    }

    /// The recurrence's inputs `[B, T, 1 + X + F + S]`: target, historic, future, static columns.
    fn inputs(&self, b: &mut PlanBuilder, y: ValueId, time: usize) -> Result<ValueId, PlanError> {
        let mut parts = vec![y];
        for (name, columns) in
            [("hist_exog", &self.c.hist_exog_list), ("futr_exog", &self.c.futr_exog_list)]
        {
            if !columns.is_empty() {
                let shape = [Dim::BATCH, time.into(), columns.len().into()];
                parts.push(b.input(name, DType::F32, &shape));
            }
        }
        let columns = self.c.stat_exog_list.len();
        if columns > 0 {
            let x = b.input("stat_exog", DType::F32, &[Dim::BATCH, columns.into()]);
            parts.push(expand(b, Operand::Value(x), 1, time)?);
        }
        if let [only] = parts.as_slice() { Ok(*only) } else { concat(b, &parts, 2) }
    }

    fn recurrence(&self, b: &mut PlanBuilder, x: ValueId) -> RnnStack {
        let (c, d) = (self.c, self.c.lstm_hidden_size);
        let lists = [&c.hist_exog_list, &c.futr_exog_list, &c.stat_exog_list];
        let mut inputs = 1 + lists.iter().map(|list| list.len()).sum::<usize>();
        let mut layers = Vec::with_capacity(c.lstm_n_layers);
        for l in 0..c.lstm_n_layers {
            layers.push(vec![RnnWeights {
                w_ih: b.weight(format!("hist_encoder.weight_ih_l{l}"), &[4 * d, inputs]),
                w_hh: b.weight(format!("hist_encoder.weight_hh_l{l}"), &[4 * d, d]),
                b_ih: Some(b.weight(format!("hist_encoder.bias_ih_l{l}"), &[4 * d])),
                b_hh: Some(b.weight(format!("hist_encoder.bias_hh_l{l}"), &[4 * d])),
                w_hr: None,
            }]);
            inputs = d;
        }
        b.scope("hist_encoder");
        RnnStack::new(x, Cell::Lstm, d, layers)
    }

    /// One output of the recurrence, `[B, 1, …]`.
    fn emit(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        initial: Initial,
        states: Option<RnnStates>,
        statistics: ValueId,
    ) -> Result<(), PlanError> {
        let stack = RnnStack { keep: Keep::Last(1), initial, states, ..self.recurrence(b, x) };
        let hidden = b.one(stack)?;
        let raw = self.decode(b, hidden)?;
        let (forecast, feedback) = self.parameters(b, raw, statistics)?;
        b.output("forecast", forecast, self.channels());
        b.output("feedback", feedback, Vec::new());
        Ok(())
    }

    fn decode(&self, b: &mut PlanBuilder, mut x: ValueId) -> Result<ValueId, PlanError> {
        b.scope("decoder");
        let outputs = self.c.distribution.parameters().len();
        let mut inputs = self.c.lstm_hidden_size;
        // The framework keeps map, activation and dropout as three neighbours in one list.
        for l in 0..self.c.decoder_hidden_layers {
            let width = self.c.decoder_hidden_size;
            let map = linear(b, x, &format!("decoder.layers.{}", 3 * l), [width, inputs], true);
            x = b.one(map.activation(self.activation))?;
            inputs = width;
        }
        let name = format!("decoder.layers.{}", 3 * self.c.decoder_hidden_layers);
        let map = linear(b, x, &name, [outputs, inputs], true);
        b.one(map)
    }

    /// Raw outputs `[B, n, O]` to parameters in the units of the data, and the scaled mean.
    fn parameters(
        &self,
        b: &mut PlanBuilder,
        raw: ValueId,
        statistics: ValueId,
    ) -> Result<(ValueId, ValueId), PlanError> {
        b.scope("parameters");
        let distribution = self.c.distribution;
        let (_, scale) = shift_and_scale(b, statistics)?;
        let softplus = UnaryKind::Activation(Activation::Softplus);
        let (mut parts, mut feedback) = (Vec::new(), raw);
        for (i, &parameter) in distribution.parameters().iter().enumerate() {
            let x = slice(b, raw, 2, i, 1)?;
            parts.push(match parameter {
                "loc" => {
                    feedback = x;
                    let (scaler, prefix) = (self.c.scaler, false);
                    let (channel, affine) = (None, None);
                    b.one(Denormalize { x, statistics, prefix, channel, scaler, affine })?
                }
                "df" => {
                    let x = unary(b, x, softplus)?;
                    affine(b, x, 1.0, 3.0)?
                }
                _ => {
                    let x = unary(b, x, softplus)?;
                    let x = affine(b, x, 1.0, distribution.floor())?;
                    binary(b, x, BinaryKind::Multiply, scale)?
                }
            });
        }
        Ok((concat(b, &parts, 2)?, feedback))
    }

    fn channels(&self) -> Vec<Channel> {
        self.c.distribution.parameters().iter().map(|&name| Channel::Parameter(name)).collect()
    }
}
