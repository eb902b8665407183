//! Chronos-2: an encoder over patches of the context and of the horizon, attending over time and
//! over the series of a group.
//!
//! One pass covers the whole horizon. Longer horizons than the trained number of output patches are
//! the forecaster's business.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, BinaryKind, Center, Denormalize, FeedForward, Keep, Masked,
    NormPlacement, NormWeights, Normalize, Op, Operand, Ramp, Rope, Scaler, Slice, Spread, Stack,
    Sublayer, SublayerKind, UnaryKind, ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, LengthDim, Plan, PlanBuilder, ValueId,
};
use serde::Deserialize;

use super::blocks::{
    LAYERS_MAX, ResidualBlock, affine, binary, check_levels, check_sizes, concat, expand, in_range,
    observed, product, reshape, rms_norm, shift_and_scale, slice, transpose, unary,
};
use super::chronos_bolt::{patches, token};

/// The fields of `config.json` that matter at inference. Defaults are `Chronos2CoreConfig`'s.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Model width `D`.
    pub d_model: usize,
    /// Width of an attention head.
    pub d_kv: usize,
    /// Width of the feed-forward and of the residual blocks.
    pub d_ff: usize,
    /// Layers `S`.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Inside the roots of the norms.
    pub layer_norm_epsilon: f64,
    /// Base of the rotary positions.
    pub rope_theta: f64,
    /// `relu` is the one that Chronos-2 uses.
    pub feed_forward_proj: String,
    /// Row of the token that follows the context, in the table of tokens.
    pub reg_token_id: usize,
    /// Rows of that table.
    pub vocab_size: usize,
    /// The rest.
    pub chronos_config: ForecastConfig,
}

/// `chronos_config`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ForecastConfig {
    /// Longest context in steps.
    pub context_length: usize,
    /// Steps of an output patch; must be the input patch's.
    pub output_patch_size: usize,
    /// Patch length `P` in steps.
    pub input_patch_size: usize,
    /// Steps between the starts of patches; must be the patch length.
    pub input_patch_stride: usize,
    /// Quantile levels.
    pub quantiles: Vec<f64>,
    /// Whether a learned token follows the context's patches.
    #[serde(default)]
    pub use_reg_token: bool,
    /// Whether `asinh` follows the scaling.
    #[serde(default)]
    pub use_arcsinh: bool,
    /// Most output patches of one pass.
    #[serde(default = "one")]
    pub max_output_patches: usize,
    /// Steps that count as 1 in the time encoding; the context length if absent.
    #[serde(default)]
    pub time_encoding_scale: Option<usize>,
}

/// What a plan is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Output patches of a pass; the horizon is this many patches long.
    pub output_patches: usize,
    /// Whether series attend to the others of their group, through the input `groups`. Without it
    /// every series stands alone, and group attention is one product (exactly: a softmax over one).
    pub grouped: bool,
    /// Whether known future values come in, through the input `future`.
    pub future: bool,
}

fn one() -> usize {
    1
}

impl Default for Config {
    fn default() -> Self {
        Config {
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            layer_norm_epsilon: 1e-6,
            rope_theta: 10000.0,
            feed_forward_proj: "relu".to_owned(),
            reg_token_id: 1,
            vocab_size: 2,
            chronos_config: ForecastConfig {
                context_length: 8192,
                output_patch_size: 16,
                input_patch_size: 16,
                input_patch_stride: 16,
                quantiles: vec![0.1, 0.5, 0.9],
                use_reg_token: true,
                use_arcsinh: true,
                max_output_patches: 64,
                time_encoding_scale: None,
            },
        }
    }
}

const PLACE: &str = "chronos2";

/// Builds the entry `full`, for any context length.
///
/// Inputs `y [B, L]`, NaN where missing or before the series begins; with groups `groups [B]`
/// (`i32`, equal for series of one group); with future values `future [B, H]`, NaN where unknown.
/// Output `forecast [B, H, Q]` for every series, known covariates included. Weights are the
/// framework's own.
///
/// # Errors
/// A configuration that no network can have, or one that is not supported, by name.
pub fn plan(config: &Config, shape: Shape) -> Result<Plan, PlanError> {
    let network = Network::new(config, shape)?;
    let c = &config.chronos_config;
    let context = Context::Free { max: c.context_length, multiple: c.input_patch_size };
    let mut builder = PlanBuilder::new("Chronos2Model", context);
    builder.begin(EntryKind::Full);
    network.full(&mut builder)?;
    builder.finish()
}

struct Network<'a> {
    c: &'a Config,
    f: &'a ForecastConfig,
    shape: Shape,
    scaler: Scaler,
}

impl<'a> Network<'a> {
    fn new(c: &'a Config, shape: Shape) -> Result<Self, PlanError> {
        let f = &c.chronos_config;
        check_sizes(
            PLACE,
            &[
                ("d_model", c.d_model),
                ("d_ff", c.d_ff),
                ("d_kv", c.d_kv),
                ("num_heads", c.num_heads),
                ("vocab_size", c.vocab_size),
                ("context_length", f.context_length),
                ("input_patch_size", f.input_patch_size),
                ("time_encoding_scale", f.time_encoding_scale.unwrap_or(1)),
            ],
        )?;
        check_sizes(PLACE, &[("num_heads · d_kv", c.num_heads * c.d_kv)])?;
        check_levels(PLACE, &f.quantiles)?;
        in_range(PLACE, "num_layers", c.num_layers, 1, LAYERS_MAX)?;
        in_range(PLACE, "reg_token_id", c.reg_token_id, 0, c.vocab_size - 1)?;
        let patch = f.input_patch_size;
        in_range(PLACE, "input_patch_stride", f.input_patch_stride, patch, patch)?;
        in_range(PLACE, "output_patch_size", f.output_patch_size, patch, patch)?;
        check_sizes(PLACE, &[("max_output_patches", f.max_output_patches)])?;
        in_range(PLACE, "output patches", shape.output_patches, 1, f.max_output_patches)?;
        if c.feed_forward_proj != "relu" {
            let message =
                format!("`feed_forward_proj` is `{}`, expected `relu`", c.feed_forward_proj);
            return Err(PlanError::new(PLACE, message));
        }
        let scaler = Scaler {
            center: Center::Mean,
            spread: Spread::Deviation,
            zero: ZeroSpread::Value(1e-5),
            eps: 0.0,
            asinh: f.use_arcsinh,
        };
        Ok(Network { c, f, shape, scaler })
    }

    fn horizon(&self) -> usize {
        self.shape.output_patches * self.f.output_patch_size
    }

    fn full(&self, b: &mut PlanBuilder) -> Result<(), PlanError> {
        let (c, f) = (self.c, self.f);
        let y = b.input("y", DType::F32, &[Dim::BATCH, Dim::LENGTH]);
        let y = reshape(b, y, &[Dim::BATCH, Dim::LENGTH, 1.into()])?;
        let mask = unary(b, y, UnaryKind::Observed)?;
        let window = Normalize::window(y, Some(mask), self.scaler);
        let scaled = b.step(Normalize { masked: Masked::Zero, ..window })?;
        let (x, visible) = patches(b, &[scaled[0], mask], f.input_patch_size)?;
        let time = self.past(b)?;
        let x = concat(b, &[time, x], 2)?;
        b.scope("embed");
        let x = self.embed(b, x)?;
        let mut parts = vec![x];
        if f.use_reg_token {
            let table = b.weight("shared.weight", &[c.vocab_size, c.d_model]);
            parts.push(token(b, table, c.reg_token_id)?);
        }
        parts.push(self.future(b, scaled[1])?);
        let x = concat(b, &parts, 1)?;
        let visible = self.visible(b, visible)?;
        let x = self.encode(b, x, visible)?;
        self.head(b, x, scaled[1])
    }

    /// Time encodings of the context's patches `[B, N, P]`: steps before the forecast, scaled. The
    /// progression is as long as the longest context and the last part of it is used, so that a
    /// context which does not fill its first patch counts as the framework's does.
    fn past(&self, b: &mut PlanBuilder) -> Result<ValueId, PlanError> {
        b.scope("time");
        let p = self.f.input_patch_size;
        let longest = self.f.context_length.next_multiple_of(p);
        let (start, factor) = (-(longest as f64), self.time_factor());
        let ramp = b.one(Ramp { start, length_factor: 0.0, factor, count: longest.into() })?;
        let (shift, stride) = (p as isize - 1, p);
        let steps = Dim::Length(LengthDim { times: p, shift, stride, offset: 0 });
        let count = Dim::Length(LengthDim { times: 1, shift, stride, offset: 0 });
        let ramp = b.one(Slice::last(ramp, 0, steps))?;
        let ramp = reshape(b, ramp, &[count, p.into()])?;
        expand(b, Operand::Value(ramp), 0, Dim::BATCH)
    }

    fn time_factor(&self) -> f64 {
        1.0 / self.f.time_encoding_scale.unwrap_or(self.f.context_length) as f64
    }

    /// Embedded patches of the horizon `[B, M, D]`.
    fn future(&self, b: &mut PlanBuilder, statistics: ValueId) -> Result<ValueId, PlanError> {
        b.scope("future");
        let (m, p, h) = (self.shape.output_patches, self.f.output_patch_size, self.horizon());
        let ramp = |factor| Ramp { start: 0.0, length_factor: 0.0, factor, count: h.into() };
        let time = b.one(ramp(self.time_factor()))?;
        let time = reshape(b, time, &[m.into(), p.into()])?;
        if !self.shape.future {
            // The same for all series: embedded once, repeated.
            let unknown = b.one(ramp(0.0))?;
            let unknown = reshape(b, unknown, &[m.into(), p.into()])?;
            let x = concat(b, &[time, unknown, unknown], 1)?;
            let x = self.embed(b, x)?;
            return expand(b, Operand::Value(x), 0, Dim::BATCH);
        }
        let future = b.input("future", DType::F32, &[Dim::BATCH, h.into()]);
        let (x, mask) = observed(b, future)?;
        let x = reshape(b, x, &[Dim::BATCH, h.into(), 1.into()])?;
        let (shift, scale) = shift_and_scale(b, statistics)?;
        let x = binary(b, x, BinaryKind::Subtract, shift)?;
        let mut x = binary(b, x, BinaryKind::Divide, scale)?;
        if self.scaler.asinh {
            x = unary(b, x, UnaryKind::Asinh)?;
        }
        let shape = [Dim::BATCH, m.into(), p.into()];
        let x = reshape(b, x, &shape)?;
        let mask = reshape(b, mask, &shape)?;
        let x = binary(b, x, BinaryKind::Multiply, mask)?;
        let time = expand(b, Operand::Value(time), 0, Dim::BATCH)?;
        let x = concat(b, &[time, x, mask], 2)?;
        self.embed(b, x)
    }

    /// The mask over all tokens: patches of the context as observed, all others visible.
    fn visible(&self, b: &mut PlanBuilder, patches: ValueId) -> Result<ValueId, PlanError> {
        let others = self.shape.output_patches + usize::from(self.f.use_reg_token);
        let one = slice(b, patches, 1, 0, 1)?;
        let one = affine(b, one, 0.0, 1.0)?;
        let one = reshape(b, one, &[Dim::BATCH])?;
        let ones = expand(b, Operand::Value(one), 1, others)?;
        concat(b, &[patches, ones], 1)
    }

    fn embed(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        let (inputs, c) = (3 * self.f.input_patch_size, self.c);
        ResidualBlock {
            name: "input_patch_embedding",
            hidden_layer: "hidden_layer",
            widths: [inputs, c.d_ff, c.d_model],
            activation: Activation::Relu,
            bias: true,
        }
        .build(b, x)
    }

    fn encode(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        visible: ValueId,
    ) -> Result<ValueId, PlanError> {
        let c = self.c;
        let groups = self.shape.grouped.then(|| b.input("groups", DType::I32, &[Dim::BATCH]));
        b.scope("encoder");
        let mut layers = Vec::with_capacity(c.num_layers);
        for l in 0..c.num_layers {
            let name = |sublayer: usize| format!("encoder.block.{l}.layer.{sublayer}");
            let mut time = self.attention(b, &name(0));
            time.rope = Some(Rope { theta: c.rope_theta as f32, skip_masked: false });
            let group = self.group(b, &name(1));
            let feed_forward = FeedForward {
                up: product(b, &format!("{}.mlp.wi", name(2)), [c.d_ff, c.d_model], false),
                gate: None,
                down: product(b, &format!("{}.mlp.wo", name(2)), [c.d_model, c.d_ff], false),
                activation: Activation::Relu,
            };
            layers.push(vec![
                self.sublayer(b, &name(0), SublayerKind::SelfAttention(time)),
                self.sublayer(b, &name(1), group),
                self.sublayer(b, &name(2), SublayerKind::FeedForward(feed_forward)),
            ]);
        }
        let mut stack = Stack::new(x, layers);
        stack.mask = Some(visible);
        stack.groups = groups;
        stack.final_norm = Some(self.norm(b, "encoder.final_layer_norm"));
        stack.keep = Keep::Last(self.shape.output_patches);
        b.one(Op::EncoderStack(stack))
    }

    /// Attention over the group, or what it is for a series that stands alone: `o(v(x))`.
    fn group(&self, b: &mut PlanBuilder, name: &str) -> SublayerKind {
        if self.shape.grouped {
            return SublayerKind::GroupAttention(self.attention(b, name));
        }
        let (d, width) = (self.c.d_model, self.c.num_heads * self.c.d_kv);
        SublayerKind::FeedForward(FeedForward {
            up: product(b, &format!("{name}.self_attention.v"), [width, d], false),
            gate: None,
            down: product(b, &format!("{name}.self_attention.o"), [d, width], false),
            activation: Activation::Identity,
        })
    }

    fn attention(&self, b: &mut PlanBuilder, name: &str) -> AttentionLayer {
        let (d, heads, head) = (self.c.d_model, self.c.num_heads, self.c.d_kv);
        let width = heads * head;
        let mut map =
            |part: &str, shape| product(b, &format!("{name}.self_attention.{part}"), shape, false);
        AttentionLayer {
            query: map("q", [width, d]),
            key: map("k", [width, d]),
            value: map("v", [width, d]),
            output: map("o", [d, width]),
            heads,
            head,
            scale: 1.0,
            causal: false,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        }
    }

    fn sublayer(&self, b: &mut PlanBuilder, name: &str, kind: SublayerKind) -> Sublayer {
        let norm = NormPlacement::Pre(self.norm(b, &format!("{name}.layer_norm")));
        Sublayer { kind, norm }
    }

    fn norm(&self, b: &mut PlanBuilder, name: &str) -> NormWeights {
        let eps = self.c.layer_norm_epsilon as f32;
        rms_norm(b, &format!("{name}.weight"), self.c.d_model, eps)
    }

    fn head(&self, b: &mut PlanBuilder, x: ValueId, statistics: ValueId) -> Result<(), PlanError> {
        b.scope("head");
        let (c, f) = (self.c, self.f);
        let (levels, m, p) = (f.quantiles.len(), self.shape.output_patches, f.output_patch_size);
        let head = ResidualBlock {
            name: "output_patch_embedding",
            hidden_layer: "hidden_layer",
            widths: [c.d_model, c.d_ff, levels * p],
            activation: Activation::Relu,
            bias: true,
        };
        let x = head.build(b, x)?;
        let x = reshape(b, x, &[Dim::BATCH, m.into(), levels.into(), p.into()])?;
        let x = transpose(b, x, &[0, 1, 3, 2])?;
        let x = reshape(b, x, &[Dim::BATCH, self.horizon().into(), levels.into()])?;
        let (prefix, channel, scaler, affine) = (false, None, self.scaler, None);
        let y = b.one(Denormalize { x, statistics, prefix, channel, scaler, affine })?;
        b.output("forecast", y, f.quantiles.iter().map(|&q| Channel::Quantile(q)).collect());
        Ok(())
    }
}
