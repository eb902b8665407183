//! TiRex: sLSTM blocks over patches of the context, each token forecasting the next patch's
//! quantiles.
//!
//! The framework rounds states, gate inputs and recurrent kernels to bfloat16 at every step, on
//! every device; this plan does not, and differs from it by about that rounding. Two roll-outs
//! exist: the default one appends a patch of unknowns and runs `full` anew over the last
//! `train_ctx_len` steps; the accelerated one goes on from the states (`full` with more than one
//! output patch, or `prefill` and `step`). They are two functions, and the forecaster chooses.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::ops::{
    Activation, BinaryKind, Cell, Center, Denormalize, Gate, Initial, Keep, Masked, Norm, NormKind,
    Normalize, Operand, Ramp, RnnStack, RnnStates, RnnWeights, Scaler, Slice, Spread, UnaryKind,
    ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, Plan, PlanBuilder, StateId, ValueId,
};
use serde::Deserialize;

use super::blocks::{
    LAYERS_MAX, ResidualBlock, binary, check_heads, check_levels, check_sizes, concat, expand,
    in_range, linear, norm, observed, reshape, rms_norm, shift_and_scale, transpose, unary,
};
use super::rearranged::Rearranged;

/// The fields of the model's configuration that matter at inference.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Config {
    /// Patch length `P` in steps.
    pub input_patch_size: usize,
    /// Steps of an output patch; must be the input patch's.
    pub output_patch_size: usize,
    /// Quantile levels.
    pub quantiles: Vec<f64>,
    /// Widths of the blocks.
    pub block_kwargs: Blocks,
    /// Hidden width of the residual blocks.
    pub input_ff_dim: usize,
    /// Context length `T` in steps: shorter series are padded to it, longer ones cut, and both
    /// change the result, so it is fixed. A multiple of the patch length.
    pub train_ctx_len: usize,
}

/// `block_kwargs`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Blocks {
    /// Model width `D`.
    pub embedding_dim: usize,
    /// Heads of the recurrence.
    pub num_heads: usize,
    /// Blocks `S`.
    pub num_blocks: usize,
    /// Feed-forward width over model width, before it is rounded up to a multiple of 64.
    #[serde(default = "projection")]
    pub ffn_proj_factor: f64,
}

fn projection() -> f64 {
    2.6667
}

const PLACE: &str = "tirex";

/// `(x − mean) / deviation`; a deviation of 0 becomes `|mean| + 1e-5`.
const SCALER: Scaler = Scaler {
    center: Center::Mean,
    spread: Spread::Deviation,
    zero: ZeroSpread::CenterMagnitude(1e-5),
    eps: 0.0,
    asinh: false,
};

/// Builds the entries `full`, `prefill` and `step`.
///
/// - `full`: `y [B, T]`, NaN where missing or before the series begins; `forecast [B, n·P, Q]` of
///   `output_patches` patches, those after the first from tokens of unknowns.
/// - `prefill`: `y [B, T]`; `forecast [B, P, Q]`, the scaler's `statistics [B, 2, 1]`, the states.
/// - `step`: `y [B, P]`, the patch that came in (or NaN), and `statistics`; `forecast [B, P, Q]` of
///   the patch after it.
///
/// # Errors
/// A configuration that no network can have.
pub fn plan(config: &Config, output_patches: usize) -> Result<Plan, PlanError> {
    let network = Network::new(config)?;
    in_range(PLACE, "output patches", output_patches, 1, LAYERS_MAX)?;
    let mut builder = PlanBuilder::new("TiRex", Context::Fixed(config.train_ctx_len));
    let kinds = Cell::Slstm { heads: config.block_kwargs.num_heads }.states();
    let mut slots = Vec::with_capacity(config.block_kwargs.num_blocks);
    for i in 0..config.block_kwargs.num_blocks {
        let slot =
            |(kind, name)| builder.state(format!("blocks.{i}.{name}"), kind, &[1, network.width()]);
        slots.push(kinds.iter().copied().zip(["h", "c", "n", "m"]).map(slot).collect());
    }
    network.full(&mut builder, output_patches)?;
    network.prefill(&mut builder, &slots)?;
    network.step(&mut builder, &slots)?;
    builder.finish()
}

/// The framework's tensors under the plan's names: gates stacked in the order that the cell reads
/// them in.
///
/// The layer concatenates its gates as f, i, z, o and the cell reads i, f, z, o, so that the map
/// named `fgate` feeds the input gate. The recurrent kernel is `[heads, inputs, gates · outputs]`
/// and the bias `[heads, gates, outputs]`.
///
/// # Errors
/// A tensor is missing or misshapen.
pub fn rearrange<'a>(
    config: &Config,
    source: &'a dyn WeightSource,
) -> Result<Rearranged<'a>, PlanError> {
    Network::new(config)?;
    let (d, heads) = (config.block_kwargs.embedding_dim, config.block_kwargs.num_heads);
    let head = d / heads;
    let mut weights = Rearranged::new(source);
    for i in 0..config.block_kwargs.num_blocks {
        let name = format!("blocks.{i}.slstm_layer");
        let mut inputs = Vec::with_capacity(4 * d * head);
        for gate in ["fgate", "igate", "zgate", "ogate"] {
            let gate = format!("{name}.{gate}.weight");
            inputs.extend(weights.elements(&gate, &[heads, head, head])?);
        }
        weights.own(&format!("{name}.w_ih"), &[4, heads, head, head], &inputs)?;
        let kernel = format!("{name}.slstm_cell._recurrent_kernel_");
        let kernel = weights.elements(&kernel, &[heads, head, 4 * head])?;
        let bias = weights.elements(&format!("{name}.slstm_cell._bias_"), &[4 * d])?;
        let (mut recurrent, mut biases) = (Vec::with_capacity(4 * d * head), Vec::new());
        for gate in 0..4 {
            for h in 0..heads {
                for output in 0..head {
                    biases.push(bias[(h * 4 + gate) * head + output]);
                    let column = gate * head + output;
                    let rows = (0..head).map(|input| (h * head + input) * 4 * head + column);
                    recurrent.extend(rows.map(|at| kernel[at]));
                }
            }
        }
        weights.own(&format!("{name}.w_hh"), &[4, heads, head, head], &recurrent)?;
        weights.own(&format!("{name}.bias"), &[4 * d], &biases)?;
    }
    Ok(weights)
}

struct Network<'a> {
    c: &'a Config,
    feed_forward: usize,
}

impl<'a> Network<'a> {
    fn new(c: &'a Config) -> Result<Self, PlanError> {
        let blocks = &c.block_kwargs;
        check_sizes(
            PLACE,
            &[
                ("input_patch_size", c.input_patch_size),
                ("input_ff_dim", c.input_ff_dim),
                ("train_ctx_len", c.train_ctx_len),
                ("embedding_dim", blocks.embedding_dim),
            ],
        )?;
        check_levels(PLACE, &c.quantiles)?;
        check_heads(PLACE, blocks.embedding_dim, blocks.num_heads)?;
        in_range(PLACE, "num_blocks", blocks.num_blocks, 1, LAYERS_MAX)?;
        let patch = c.input_patch_size;
        in_range(PLACE, "output_patch_size", c.output_patch_size, patch, patch)?;
        if !c.train_ctx_len.is_multiple_of(patch) {
            let found = c.train_ctx_len;
            let message = format!("`train_ctx_len` is {found}, expected a multiple of {patch}");
            return Err(PlanError::new(PLACE, message));
        }
        let width = blocks.embedding_dim as f64 * blocks.ffn_proj_factor;
        let feed_forward = (((width + 63.0) / 64.0).floor() * 64.0) as usize;
        check_sizes(PLACE, &[("ffn_proj_factor · embedding_dim", feed_forward)])?;
        Ok(Network { c, feed_forward })
    }

    fn width(&self) -> usize {
        self.c.block_kwargs.embedding_dim
    }

    fn full(&self, b: &mut PlanBuilder, output_patches: usize) -> Result<(), PlanError> {
        b.begin(EntryKind::Full);
        let (mut x, statistics) = self.context(b)?;
        if output_patches > 1 {
            // Tokens of unknowns: the same for all series, embedded once, repeated.
            let (unknown, p) = (output_patches - 1, self.c.input_patch_size);
            let count = Dim::Fixed(unknown * 2 * p);
            let zeros = b.one(Ramp { start: 0.0, length_factor: 0.0, factor: 0.0, count })?;
            let zeros = reshape(b, zeros, &[unknown.into(), (2 * p).into()])?;
            let zeros = self.embed(b, zeros)?;
            let zeros = expand(b, Operand::Value(zeros), 0, Dim::BATCH)?;
            x = concat(b, &[x, zeros], 1)?;
        }
        let x = self.blocks(b, x, output_patches, None)?;
        self.head(b, x, statistics, output_patches)
    }

    fn prefill(&self, b: &mut PlanBuilder, slots: &[Vec<StateId>]) -> Result<(), PlanError> {
        b.begin(EntryKind::Prefill);
        let (x, statistics) = self.context(b)?;
        let x = self.blocks(b, x, 1, Some((slots, Initial::Zero)))?;
        self.head(b, x, statistics, 1)?;
        b.output("statistics", statistics, Vec::new());
        Ok(())
    }

    fn step(&self, b: &mut PlanBuilder, slots: &[Vec<StateId>]) -> Result<(), PlanError> {
        b.begin(EntryKind::Step);
        let p = self.c.input_patch_size;
        let y = b.input("y", DType::F32, &[Dim::BATCH, p.into()]);
        let statistics = b.input("statistics", DType::F32, &[Dim::BATCH, 2.into(), 1.into()]);
        let (y, mask) = observed(b, y)?;
        let (shift, scale) = shift_and_scale(b, statistics)?;
        let y = reshape(b, y, &[Dim::BATCH, p.into(), 1.into()])?;
        let y = binary(b, y, BinaryKind::Subtract, shift)?;
        let y = binary(b, y, BinaryKind::Divide, scale)?;
        let y = reshape(b, y, &[Dim::BATCH, p.into()])?;
        let y = binary(b, y, BinaryKind::Multiply, mask)?;
        let x = concat(b, &[y, mask], 1)?;
        let x = reshape(b, x, &[Dim::BATCH, 1.into(), (2 * p).into()])?;
        let x = self.embed(b, x)?;
        let x = self.blocks(b, x, 1, Some((slots, Initial::Slots)))?;
        self.head(b, x, statistics, 1)
    }

    /// Embedded patches of the whole context `[B, N, D]`, and the scaler's statistics.
    fn context(&self, b: &mut PlanBuilder) -> Result<(ValueId, ValueId), PlanError> {
        let (t, p) = (self.c.train_ctx_len, self.c.input_patch_size);
        let y = b.input("y", DType::F32, &[Dim::BATCH, t.into()]);
        let y = reshape(b, y, &[Dim::BATCH, t.into(), 1.into()])?;
        let mask = unary(b, y, UnaryKind::Observed)?;
        let masked = Masked::Zero;
        let scaled = b.step(Normalize { masked, ..Normalize::window(y, Some(mask), SCALER) })?;
        let shape = [Dim::BATCH, (t / p).into(), p.into()];
        let y = reshape(b, scaled[0], &shape)?;
        let mask = reshape(b, mask, &shape)?;
        let x = concat(b, &[y, mask], 2)?;
        Ok((self.embed(b, x)?, scaled[1]))
    }

    fn embed(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        b.scope("embed");
        let widths = [2 * self.c.input_patch_size, self.c.input_ff_dim, self.width()];
        self.residual("input_patch_embedding", widths).build(b, x)
    }

    fn residual<'n>(&self, name: &'n str, widths: [usize; 3]) -> ResidualBlock<'n> {
        let (hidden_layer, activation) = ("hidden_layer", Activation::Relu);
        ResidualBlock { name, hidden_layer, widths, activation, bias: true }
    }

    /// All blocks; the last computes the last `keep` tokens only.
    fn blocks(
        &self,
        b: &mut PlanBuilder,
        mut x: ValueId,
        keep: usize,
        states: Option<(&[Vec<StateId>], Initial)>,
    ) -> Result<ValueId, PlanError> {
        let count = self.c.block_kwargs.num_blocks;
        for i in 0..count {
            b.scope(format!("blocks.{i}"));
            let name = |part: &str| format!("blocks.{i}.{part}");
            let states = states.as_ref().map(|(slots, initial)| {
                (RnnStates { slots: slots[i].clone(), write: true }, initial.clone())
            });
            let keep = (i + 1 == count).then_some(keep);
            x = self.recurrence(b, x, i, keep, states)?;
            let rms = rms_norm(b, &name("norm_ffn.weight"), self.width(), 1e-6);
            let inner = norm(b, x, rms)?;
            let (d, ff) = (self.width(), self.feed_forward);
            let weight = b.weight(name("ffn.proj_up_gate.weight"), &[ff, d]);
            let gate = Gate { weight, bias: None, activation: Activation::Silu };
            let up = linear(b, inner, &name("ffn.proj_up"), [ff, d], false).gate(gate);
            let up = b.one(up)?;
            let down = linear(b, up, &name("ffn.proj_down"), [d, ff], false).residual(x);
            x = b.one(down)?;
        }
        Ok(x)
    }

    /// `x + group_norm(sLSTM(norm(x)))`.
    fn recurrence(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        i: usize,
        keep: Option<usize>,
        states: Option<(RnnStates, Initial)>,
    ) -> Result<ValueId, PlanError> {
        let (d, heads) = (self.width(), self.c.block_kwargs.num_heads);
        let name = |part: &str| format!("blocks.{i}.{part}");
        let head = d / heads;
        let rms = rms_norm(b, &name("norm_slstm.weight"), d, 1e-6);
        let inner = norm(b, x, rms)?;
        let weights = RnnWeights {
            w_ih: b.weight(name("slstm_layer.w_ih"), &[4, heads, head, head]),
            w_hh: b.weight(name("slstm_layer.w_hh"), &[4, heads, head, head]),
            b_ih: Some(b.weight(name("slstm_layer.bias"), &[4 * d])),
            b_hh: None,
            w_hr: None,
        };
        let mut stack = RnnStack::new(inner, Cell::Slstm { heads }, d, vec![vec![weights]]);
        if let Some((states, initial)) = states {
            (stack.states, stack.initial) = (Some(states), initial);
        }
        let mut skip = x;
        if let Some(keep) = keep {
            stack.keep = Keep::Last(keep);
            skip = b.one(Slice::last(x, 1, keep))?;
        }
        let y = b.one(stack)?;
        let weight = Some(b.weight(name("slstm_layer.group_norm.weight"), &[d]));
        let (kind, bias) = (NormKind::Group(heads), None);
        let y = b.one(Norm { x: y, kind, weight, weight_offset: 1.0, bias, eps: 1e-5 })?;
        binary(b, y, BinaryKind::Add, skip)
    }

    /// Tokens `[B, n, D]` to quantiles `[B, n·P, Q]` in the units of the data.
    fn head(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        statistics: ValueId,
        patches: usize,
    ) -> Result<(), PlanError> {
        b.scope("head");
        let (levels, p) = (self.c.quantiles.len(), self.c.output_patch_size);
        let rms = rms_norm(b, "out_norm.weight", self.width(), 1e-6);
        let x = norm(b, x, rms)?;
        let widths = [self.width(), self.c.input_ff_dim, levels * p];
        let x = self.residual("output_patch_embedding", widths).build(b, x)?;
        let x = reshape(b, x, &[Dim::BATCH, patches.into(), levels.into(), p.into()])?;
        let x = transpose(b, x, &[0, 1, 3, 2])?;
        let x = reshape(b, x, &[Dim::BATCH, (patches * p).into(), levels.into()])?;
        let (prefix, channel, affine) = (false, None, None);
        let y = b.one(Denormalize { x, statistics, prefix, channel, scaler: SCALER, affine })?;
        let channels = self.c.quantiles.iter().map(|&level| Channel::Quantile(level));
        b.output("forecast", y, channels.collect());
        Ok(())
    }
}
