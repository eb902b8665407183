//! neuralforecast's Temporal Fusion Transformer: variable selection, two recurrences, interpretable
//! attention, all of them gated.
//!
//! Not the variant of other libraries with categorical embeddings. Dropout, and the weights that
//! the framework keeps for explanations, have no part in a forecast.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::ops::{
    Activation, Attention, Binary, BinaryKind, Cell, Columns, Gate, Initial, Linear, Operand,
    RnnStack, RnnWeights, Slice, Unary, WeightedSum,
};
use neural_forecast_runtime::plan::{Channel, Dim, EntryKind, Plan, PlanBuilder, ValueId};
use serde::{Deserialize, Serialize};

use super::blocks::{
    LAYERS_MAX, binary, check_heads, check_sizes, concat, expand, in_range, layer_norm, linear,
    norm, reshape, slice,
};
use super::nonlinearity::Nonlinearity;
use super::rearranged::Rearranged;
use super::window::{Window, WindowConfig};

/// The hyper-parameters that matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TftConfig {
    /// Inputs, outputs and scaling.
    pub window: WindowConfig,
    /// `hidden_size`, `E`.
    pub hidden: usize,
    /// `n_head`.
    pub heads: usize,
    /// `rnn_type`.
    pub recurrence: Recurrence,
    /// `n_rnn_layers`.
    pub layers: usize,
    /// `one_rnn_initial_state`: all layers of a recurrence begin alike.
    pub one_initial_state: bool,
    /// `grn_activation`.
    pub activation: Nonlinearity,
}

/// The recurrences of the temporal encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recurrence {
    /// Long short-term memory.
    Lstm,
    /// Gated recurrent unit.
    Gru,
}

const PLACE: &str = "tft";

/// Of every layer norm.
const EPS: f32 = 1e-3;

impl Recurrence {
    fn cell(self) -> Cell {
        match self {
            Recurrence::Lstm => Cell::Lstm,
            Recurrence::Gru => Cell::Gru,
        }
    }
}

/// Builds the entry `full`, with the inputs that the configuration's window names; `channels`
/// describe the outputs of `forecast [B, H, O]`.
///
/// # Errors
/// A number that is out of its range.
pub fn plan(config: &TftConfig, channels: Vec<Channel>) -> Result<Plan, PlanError> {
    config.check()?;
    let mut b = PlanBuilder::new("TFT", config.window.plan_context());
    b.begin(EntryKind::Full);
    let window = config.window.begin(&mut b, config.window.horizon, false)?;
    let statistics = window.statistics;
    let scaled = config.network(&mut b, window)?;
    let forecast = config.window.unscale(&mut b, scaled, statistics)?;
    b.output("forecast", forecast, channels);
    b.finish()
}

/// The framework's tensors under the plan's names: the halves of every gated unit apart.
///
/// # Errors
/// A tensor is missing or misshapen.
pub fn rearrange<'a>(
    config: &TftConfig,
    source: &'a dyn WeightSource,
) -> Result<Rearranged<'a>, PlanError> {
    let plan = plan(config, Vec::new())?;
    let mut weights = Rearranged::new(source);
    for weight in &plan.weights {
        for part in ["weight", "bias"] {
            let Some(name) = weight.name.strip_suffix(&format!(".value.{part}")) else { continue };
            let halves = [format!("{name}.value.{part}"), format!("{name}.gate.{part}")];
            weights.split(&halves.each_ref().map(String::as_str), &format!("{name}.{part}"))?;
        }
    }
    Ok(weights)
}

/// What is known of a series beside its window: context vectors `[B, 1, E]` for selection and
/// enrichment, and the recurrence's initial states.
struct Statics {
    selection: Option<ValueId>,
    enrichment: Option<ValueId>,
    initial: Initial,
}

impl TftConfig {
    fn check(&self) -> Result<(), PlanError> {
        self.window.check(PLACE)?;
        check_sizes(PLACE, &[("hidden_size", self.hidden)])?;
        check_heads(PLACE, self.hidden, self.heads)?;
        in_range(PLACE, "n_rnn_layers", self.layers, 1, LAYERS_MAX)
    }

    /// The scaled forecast `[B, H, O]`.
    fn network(&self, b: &mut PlanBuilder, window: Window) -> Result<ValueId, PlanError> {
        let (l, h) = (self.window.context, self.window.horizon);
        let future = match window.future {
            Some(future) => future,
            // Without future columns the last value stands for one.
            None => {
                let last = b.one(Slice::last(window.target, 1, 1))?;
                let last = reshape(b, last, &[Dim::BATCH, 1.into()])?;
                expand(b, Operand::Value(last), 1, l + h)?
            }
        };
        b.scope("embedding");
        let columns = self.window.future.max(1);
        let future = self.embed(b, future, "futr_exog", columns)?;
        let target = self.embed(b, window.target, "tgt", 1)?;
        let mut past = vec![slice(b, future, 1, 0, l)?, target];
        if let Some(historic) = window.historic {
            past.insert(0, self.embed(b, historic, "hist_exog", self.window.historic)?);
        }
        let past = concat(b, &past, 2)?;
        let ahead = slice(b, future, 1, l, h)?;
        let statics = self.statics(b, window.statics)?;
        let features = self.temporal(b, [past, ahead], &statics)?;
        let x = self.fuse(b, features, statics.enrichment)?;
        let adapter = linear(b, x, "output_adapter", [self.window.outputs, self.hidden], true);
        b.one(adapter)
    }

    /// Columns `[…, n]` to vectors `[…, n, E]`.
    fn embed(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        name: &str,
        columns: usize,
    ) -> Result<ValueId, PlanError> {
        let axis = b.shape_of(x).len();
        let x = expand(b, Operand::Value(x), axis, self.hidden)?;
        let shape = [columns, self.hidden];
        let vectors = b.weight(format!("embedding.{name}_embedding_vectors"), &shape);
        let bias = b.weight(format!("embedding.{name}_embedding_bias"), &shape);
        let x = b.one(Binary::weight(x, BinaryKind::Multiply, vectors))?;
        b.one(Binary::weight(x, BinaryKind::Add, bias))
    }

    fn statics(&self, b: &mut PlanBuilder, x: Option<ValueId>) -> Result<Statics, PlanError> {
        let Some(x) = x else {
            return Ok(Statics { selection: None, enrichment: None, initial: Initial::Zero });
        };
        b.scope("static_encoder");
        let x = self.embed(b, x, "stat_exog", self.window.statics)?;
        let shape = [Dim::BATCH, 1.into(), self.window.statics.into(), self.hidden.into()];
        let x = reshape(b, x, &shape)?;
        let x = self.select(b, x, "static_encoder.vsn", self.window.statics, None)?;
        let context = |b: &mut PlanBuilder, i: usize| {
            let name = format!("static_encoder.context_grns.{i}");
            self.grn(b, x, &name, [self.hidden, self.hidden], None, false)
        };
        let selection = Some(context(b, 0)?);
        let enrichment = Some(context(b, 1)?);
        // One vector for each state and layer, or for each state.
        let each = if self.one_initial_state { 1 } else { self.layers };
        let mut values = Vec::new();
        for state in 0..self.recurrence.cell().states().len() {
            let mut rows = Vec::with_capacity(self.layers);
            for layer in 0..each {
                rows.push(context(b, 2 + state * each + layer)?);
            }
            rows.extend(std::iter::repeat_n(rows[0], self.layers - each));
            values.push(concat(b, &rows, 1)?);
        }
        Ok(Statics { selection, enrichment, initial: Initial::Values(values) })
    }

    /// Past and future variables `[B, T, n, E]` to features `[B, L + H, E]`.
    fn temporal(
        &self,
        b: &mut PlanBuilder,
        [past, ahead]: [ValueId; 2],
        statics: &Statics,
    ) -> Result<ValueId, PlanError> {
        b.scope("temporal_encoder");
        let context = statics.selection;
        let columns = self.window.future.max(1);
        let all = columns + self.window.historic + 1;
        let past = self.select(b, past, "temporal_encoder.history_vsn", all, context)?;
        let ahead = self.select(b, ahead, "temporal_encoder.future_vsn", columns, context)?;
        let name = "temporal_encoder.history_encoder";
        let mut encoder = self.recurrence(b, past, name, statics.initial.clone());
        encoder.finals = true;
        let outputs = b.step(encoder)?;
        let (first, finals) = (outputs[0], outputs[1..].to_vec());
        let name = "temporal_encoder.future_encoder";
        let decoder = self.recurrence(b, ahead, name, Initial::Values(finals));
        let second = b.one(decoder)?;
        let skip = concat(b, &[past, ahead], 1)?;
        let x = concat(b, &[first, second], 1)?;
        self.gated(b, x, "temporal_encoder.input_gate", skip)
    }

    fn recurrence(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        name: &str,
        initial: Initial,
    ) -> RnnStack {
        let (d, cell) = (self.hidden, self.recurrence.cell());
        let rows = cell.gates() * d;
        let layers = (0..self.layers).map(|l| {
            vec![RnnWeights {
                w_ih: b.weight(format!("{name}.weight_ih_l{l}"), &[rows, d]),
                w_hh: b.weight(format!("{name}.weight_hh_l{l}"), &[rows, d]),
                b_ih: Some(b.weight(format!("{name}.bias_ih_l{l}"), &[rows])),
                b_hh: Some(b.weight(format!("{name}.bias_hh_l{l}"), &[rows])),
                w_hr: None,
            }]
        });
        let layers = layers.collect();
        RnnStack { initial, ..RnnStack::new(x, cell, d, layers) }
    }

    /// Features `[B, L + H, E]` to what the adapter reads, `[B, H, E]`.
    fn fuse(
        &self,
        b: &mut PlanBuilder,
        features: ValueId,
        context: Option<ValueId>,
    ) -> Result<ValueId, PlanError> {
        let name = |part: &str| format!("temporal_fusion_decoder.{part}");
        b.scope("temporal_fusion_decoder");
        let (d, h) = (self.hidden, self.window.horizon);
        let enriched = self.grn(b, features, &name("enrichment_grn"), [d, d], context, false)?;
        let x = self.attend(b, enriched)?;
        let enriched = b.one(Slice::last(enriched, 1, h))?;
        let x = self.gated(b, x, &name("attention_gate"), enriched)?;
        let x = self.grn(b, x, &name("positionwise_grn"), [d, d], None, false)?;
        let features = b.one(Slice::last(features, 1, h))?;
        self.gated(b, x, &name("decoder_gate"), features)
    }

    /// Interpretable attention of the horizon over everything up to each step: heads share their
    /// values and are averaged.
    fn attend(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        let (d, heads, h) = (self.hidden, self.heads, self.window.horizon);
        let head = d / heads;
        let name = "temporal_fusion_decoder.attention";
        let columns = (2 * heads + 1) * head;
        let qkv = linear(b, x, &format!("{name}.qkv_linears"), [columns, d], false);
        let value = b.one(qkv)?;
        let last = b.one(Slice::last(value, 1, h))?;
        let query = Columns { value: last, start: 0, width: d };
        let key = Columns { value, start: d, width: d };
        let values = Columns { value, start: 2 * d, width: head };
        let scale = (head as f32).powf(-0.5);
        let attention = Attention::new(query, key, values, heads, scale);
        let x = b.one(Attention { causal: true, mean_heads: true, ..attention })?;
        let output = linear(b, x, &format!("{name}.out_proj"), [d, head], false);
        b.one(output)
    }

    /// Selects among `n` variables `[B, T, n, E]` → `[B, T, E]`.
    fn select(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        name: &str,
        n: usize,
        context: Option<ValueId>,
    ) -> Result<ValueId, PlanError> {
        let d = self.hidden;
        let [rows, time] = [b.shape_of(x)[0], b.shape_of(x)[1]];
        let flat = reshape(b, x, &[rows, time, (n * d).into()])?;
        let joint = format!("{name}.joint_grn");
        let weights = self.grn(b, flat, &joint, [n * d, n], context, true)?;
        let mut parts = Vec::with_capacity(n);
        for i in 0..n {
            let variable = slice(b, flat, 2, i * d, d)?;
            let variable =
                self.grn(b, variable, &format!("{name}.var_grns.{i}"), [d, d], None, false)?;
            parts.push(reshape(b, variable, &[rows, time, 1.into(), d.into()])?);
        }
        let x = concat(b, &parts, 2)?;
        b.one(WeightedSum { weights, x, softmax: true })
    }

    /// A gated residual network. `projected` says whether the residual is an affine map of the
    /// input; with one output there is no norm.
    fn grn(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        name: &str,
        [inputs, outputs]: [usize; 2],
        context: Option<ValueId>,
        projected: bool,
    ) -> Result<ValueId, PlanError> {
        let d = self.hidden;
        let part = |part: &str| format!("{name}.{part}");
        // The contexts of static variables are made without the framework's chosen activation.
        let chosen = !name.starts_with("static_encoder.context_grns");
        let activation = if chosen { self.activation.activation() } else { Activation::Elu };
        let first = linear(b, x, &part("lin_a"), [d, inputs], true);
        let inner = match context {
            None => b.one(first.activation(activation))?,
            Some(context) => {
                let map = linear(b, context, &part("lin_c"), [d, d], false);
                let context = b.one(map)?;
                let inner = b.one(first)?;
                let inner = binary(b, inner, BinaryKind::Add, context)?;
                b.one(Unary::activation(inner, activation))?
            }
        };
        let second = linear(b, inner, &part("lin_i"), [d, d], true);
        let inner = b.one(second)?;
        let skip = if projected {
            let map = linear(b, x, &part("out_proj"), [outputs, inputs], true);
            b.one(map)?
        } else {
            x
        };
        let unit = self.glu(b, inner, &part("glu"), outputs);
        let x = b.one(unit.residual(skip))?;
        if projected && outputs == 1 {
            return Ok(x);
        }
        let weights = layer_norm(b, &part("layer_norm.ln"), outputs, EPS);
        norm(b, x, weights)
    }

    /// A gated linear unit, its residual and its norm.
    fn gated(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        name: &str,
        skip: ValueId,
    ) -> Result<ValueId, PlanError> {
        let unit = self.glu(b, x, name, self.hidden);
        let x = b.one(unit.residual(skip))?;
        let weights = match name.strip_suffix("_gate") {
            // `input_gate_ln`, but `attention_ln` and `decoder_ln`.
            Some(stem) if !stem.ends_with("input") => format!("{stem}_ln"),
            _ => format!("{name}_ln"),
        };
        let weights = layer_norm(b, &weights, self.hidden, EPS);
        norm(b, x, weights)
    }

    fn glu(&self, b: &mut PlanBuilder, x: ValueId, name: &str, outputs: usize) -> Linear {
        let value = linear(b, x, &format!("{name}.lin.value"), [outputs, self.hidden], true);
        let weight = b.weight(format!("{name}.lin.gate.weight"), &[outputs, self.hidden]);
        let bias = Some(b.weight(format!("{name}.lin.gate.bias"), &[outputs]));
        value.gate(Gate { weight, bias, activation: Activation::Sigmoid })
    }
}
