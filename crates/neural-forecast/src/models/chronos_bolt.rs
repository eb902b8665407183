//! Chronos-Bolt: a T5 encoder over patches of the context, and one decoder token that becomes all
//! quantiles of the whole horizon.
//!
//! Horizons beyond the network's are not here: the forecaster repeats the context once for each
//! quantile's path, appends the path, runs `full` on all of them and takes empirical quantiles of
//! the quantiles, as the framework's pipeline does.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, AttentionBias, AttentionLayer, Center, Denormalize, FeedForward, Masked,
    NormPlacement, NormWeights, Normalize, Op, Operand, Patch, PatchPad, Pool, PoolKind, Scaler,
    Spread, Stack, Sublayer, SublayerKind, UnaryKind, ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, Plan, PlanBuilder, ValueId, WeightId,
};
use serde::Deserialize;

use super::blocks::{
    LAYERS_MAX, ResidualBlock, affine, check_levels, check_sizes, concat, expand, in_range,
    product, reshape, rms_norm, slice, transpose, unary,
};

/// The fields of `config.json` that matter at inference: T5's, and `chronos_config`. Defaults are
/// those of `T5Config`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Model width `D`.
    pub d_model: usize,
    /// Width of the feed-forward and of the residual blocks.
    pub d_ff: usize,
    /// Width of an attention head.
    pub d_kv: usize,
    /// Encoder layers `S`.
    pub num_layers: usize,
    /// Decoder layers; as many as encoder layers if absent.
    pub num_decoder_layers: Option<usize>,
    /// Attention heads.
    pub num_heads: usize,
    /// Buckets of relative positions.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on positions share a bucket.
    pub relative_attention_max_distance: usize,
    /// Inside the roots of the norms.
    pub layer_norm_epsilon: f64,
    /// `relu` is the one that Chronos-Bolt uses.
    pub feed_forward_proj: String,
    /// The part that is not T5's.
    pub chronos_config: ForecastConfig,
}

/// `chronos_config`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ForecastConfig {
    /// Longest context in steps.
    pub context_length: usize,
    /// Horizon `H` in steps.
    pub prediction_length: usize,
    /// Patch length `P` in steps.
    pub input_patch_size: usize,
    /// Steps between the starts of patches; must be the patch length.
    pub input_patch_stride: usize,
    /// Quantile levels.
    pub quantiles: Vec<f64>,
    /// Whether a learned token follows the patches.
    #[serde(default)]
    pub use_reg_token: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            d_model: 512,
            d_ff: 2048,
            d_kv: 64,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            chronos_config: ForecastConfig {
                context_length: 2048,
                prediction_length: 64,
                input_patch_size: 16,
                input_patch_stride: 16,
                quantiles: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
                use_reg_token: true,
            },
        }
    }
}

const PLACE: &str = "chronos_bolt";

/// Rows of the token table.
const DECODER_START: usize = 0;
const REG: usize = 1;

/// `(x − mean) / deviation`; a deviation of 0 becomes 1e-5.
const SCALER: Scaler = Scaler {
    center: Center::Mean,
    spread: Spread::Deviation,
    zero: ZeroSpread::Value(1e-5),
    eps: 0.0,
    asinh: false,
};

/// Builds the entry `full`, for any context length.
///
/// Input `y [B, L]`, NaN where missing or before the series begins; output `forecast [B, H, Q]`.
/// Weights are the framework's own. A window without any observation and without the learned token
/// attends to nothing here, to everything alike there.
///
/// # Errors
/// A configuration that no network can have, or one that is not supported, by name.
pub fn plan(config: &Config) -> Result<Plan, PlanError> {
    let network = Network::new(config)?;
    let c = &config.chronos_config;
    let context = Context::Free { max: c.context_length, multiple: c.input_patch_size };
    let mut builder = PlanBuilder::new("ChronosBoltModelForForecasting", context);
    builder.begin(EntryKind::Full);
    network.full(&mut builder)?;
    builder.finish()
}

struct Network<'a> {
    c: &'a Config,
    f: &'a ForecastConfig,
    decoder_layers: usize,
    /// The table of tokens.
    tokens: usize,
}

impl<'a> Network<'a> {
    fn new(c: &'a Config) -> Result<Self, PlanError> {
        let f = &c.chronos_config;
        check_sizes(
            PLACE,
            &[
                ("d_model", c.d_model),
                ("d_ff", c.d_ff),
                ("d_kv", c.d_kv),
                ("num_heads", c.num_heads),
                ("relative_attention_num_buckets", c.relative_attention_num_buckets),
                ("relative_attention_max_distance", c.relative_attention_max_distance),
                ("context_length", f.context_length),
                ("prediction_length", f.prediction_length),
                ("input_patch_size", f.input_patch_size),
            ],
        )?;
        check_sizes(PLACE, &[("num_heads · d_kv", c.num_heads * c.d_kv)])?;
        check_levels(PLACE, &f.quantiles)?;
        let decoder_layers = c.num_decoder_layers.unwrap_or(c.num_layers);
        in_range(PLACE, "num_layers", c.num_layers, 1, LAYERS_MAX)?;
        in_range(PLACE, "num_decoder_layers", decoder_layers, 1, LAYERS_MAX)?;
        let patch = f.input_patch_size;
        in_range(PLACE, "input_patch_stride", f.input_patch_stride, patch, patch)?;
        if c.feed_forward_proj != "relu" {
            let message =
                format!("`feed_forward_proj` is `{}`, expected `relu`", c.feed_forward_proj);
            return Err(PlanError::new(PLACE, message));
        }
        Ok(Network { c, f, decoder_layers, tokens: 1 + usize::from(f.use_reg_token) })
    }

    fn full(&self, b: &mut PlanBuilder) -> Result<(), PlanError> {
        let (c, f) = (self.c, self.f);
        let y = b.input("y", DType::F32, &[Dim::BATCH, Dim::LENGTH]);
        let y = reshape(b, y, &[Dim::BATCH, Dim::LENGTH, 1.into()])?;
        let mask = unary(b, y, UnaryKind::Observed)?;
        let masked = Masked::Zero;
        let scaled = b.step(Normalize { masked, ..Normalize::window(y, Some(mask), SCALER) })?;
        let (x, visible) = patches(b, &[scaled[0], mask], f.input_patch_size)?;
        b.scope("embed");
        let embedding = ResidualBlock {
            name: "input_patch_embedding",
            hidden_layer: "hidden_layer",
            widths: [2 * f.input_patch_size, c.d_ff, c.d_model],
            activation: Activation::Relu,
            bias: true,
        };
        let x = embedding.build(b, x)?;
        let (x, visible) =
            if f.use_reg_token { self.with_reg(b, x, visible)? } else { (x, visible) };
        let memory = self.encode(b, x, visible)?;
        let x = self.decode(b, memory, visible)?;
        b.scope("head");
        let (levels, horizon) = (f.quantiles.len(), f.prediction_length);
        let head = ResidualBlock {
            name: "output_patch_embedding",
            widths: [c.d_model, c.d_ff, levels * horizon],
            ..embedding
        };
        let x = head.build(b, x)?;
        let x = reshape(b, x, &[Dim::BATCH, levels.into(), horizon.into()])?;
        let x = transpose(b, x, &[0, 2, 1])?;
        let (statistics, scaler) = (scaled[1], SCALER);
        let (prefix, channel, affine) = (false, None, None);
        let y = b.one(Denormalize { x, statistics, prefix, channel, scaler, affine })?;
        b.output("forecast", y, f.quantiles.iter().map(|&q| Channel::Quantile(q)).collect());
        Ok(())
    }

    /// Appends the learned token, which is always visible.
    fn with_reg(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        visible: ValueId,
    ) -> Result<(ValueId, ValueId), PlanError> {
        let table = self.table(b);
        let token = token(b, table, REG)?;
        let x = concat(b, &[x, token], 1)?;
        let one = slice(b, visible, 1, 0, 1)?;
        let one = affine(b, one, 0.0, 1.0)?;
        Ok((x, concat(b, &[visible, one], 1)?))
    }

    fn table(&self, b: &mut PlanBuilder) -> WeightId {
        b.weight("shared.weight", &[self.tokens, self.c.d_model])
    }

    fn encode(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        visible: ValueId,
    ) -> Result<ValueId, PlanError> {
        b.scope("encoder");
        let c = self.c;
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let table = b.weight(name, &[c.relative_attention_num_buckets, c.num_heads]);
        let bias = AttentionBias::Relative {
            table,
            max_distance: c.relative_attention_max_distance,
            bidirectional: true,
        };
        let mut layers = Vec::with_capacity(c.num_layers);
        for l in 0..c.num_layers {
            let name = format!("encoder.block.{l}.layer");
            let mut attention = self.attention(b, &format!("{name}.0.SelfAttention"));
            attention.bias = Some(bias);
            layers.push(vec![
                self.sublayer(b, &format!("{name}.0"), SublayerKind::SelfAttention(attention)),
                self.feed_forward(b, &format!("{name}.1")),
            ]);
        }
        let mut stack = Stack::new(x, layers);
        stack.mask = Some(visible);
        stack.final_norm = Some(self.norm(b, "encoder.final_layer_norm"));
        b.one(Op::EncoderStack(stack))
    }

    /// The one decoder token `[B, 1, D]`. Its self-attention sees itself alone, so the decoder's
    /// relative positions, which the file holds, change nothing and are not read.
    fn decode(
        &self,
        b: &mut PlanBuilder,
        memory: ValueId,
        visible: ValueId,
    ) -> Result<ValueId, PlanError> {
        b.scope("decoder");
        let table = self.table(b);
        let x = token(b, table, DECODER_START)?;
        let mut layers = Vec::with_capacity(self.decoder_layers);
        for l in 0..self.decoder_layers {
            let name = format!("decoder.block.{l}.layer");
            let own = self.attention(b, &format!("{name}.0.SelfAttention"));
            let cross = self.attention(b, &format!("{name}.1.EncDecAttention"));
            layers.push(vec![
                self.sublayer(b, &format!("{name}.0"), SublayerKind::SelfAttention(own)),
                self.sublayer(b, &format!("{name}.1"), SublayerKind::CrossAttention(cross)),
                self.feed_forward(b, &format!("{name}.2")),
            ]);
        }
        let mut stack = Stack::new(x, layers);
        stack.memory = Some(memory);
        stack.memory_mask = Some(visible);
        stack.final_norm = Some(self.norm(b, "decoder.final_layer_norm"));
        b.one(Op::DecoderStack(stack))
    }

    /// T5's attention: no biases, no scale.
    fn attention(&self, b: &mut PlanBuilder, name: &str) -> AttentionLayer {
        let (d, heads, head) = (self.c.d_model, self.c.num_heads, self.c.d_kv);
        let width = heads * head;
        AttentionLayer {
            query: product(b, &format!("{name}.q"), [width, d], false),
            key: product(b, &format!("{name}.k"), [width, d], false),
            value: product(b, &format!("{name}.v"), [width, d], false),
            output: product(b, &format!("{name}.o"), [d, width], false),
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

    fn feed_forward(&self, b: &mut PlanBuilder, name: &str) -> Sublayer {
        let (d, ff) = (self.c.d_model, self.c.d_ff);
        let feed_forward = FeedForward {
            up: product(b, &format!("{name}.DenseReluDense.wi"), [ff, d], false),
            gate: None,
            down: product(b, &format!("{name}.DenseReluDense.wo"), [d, ff], false),
            activation: Activation::Relu,
        };
        self.sublayer(b, name, SublayerKind::FeedForward(feed_forward))
    }

    fn sublayer(&self, b: &mut PlanBuilder, name: &str, kind: SublayerKind) -> Sublayer {
        let norm = NormPlacement::Pre(self.norm(b, &format!("{name}.layer_norm")));
        Sublayer { kind, norm }
    }

    fn norm(&self, b: &mut PlanBuilder, name: &str) -> NormWeights {
        let eps = self.c.layer_norm_epsilon as f32;
        rms_norm(b, &format!("{name}.weight"), self.c.d_model, eps)
    }
}

/// Series `[B, L, 1]`, the last of them a mask, to patches side by side `[B, N, n·P]`, and which
/// patches hold an observation `[B, N]`. Zeros fill the first patch.
pub(super) fn patches(
    b: &mut PlanBuilder,
    series: &[ValueId],
    length: usize,
) -> Result<(ValueId, ValueId), PlanError> {
    b.scope("patch");
    let mut parts = Vec::with_capacity(series.len());
    for &x in series {
        let x = reshape(b, x, &[Dim::BATCH, Dim::LENGTH])?;
        parts.push(b.one(Patch { x, length, stride: length, pad: PatchPad::ZeroFirst })?);
    }
    let mask = *parts.last().ok_or_else(|| PlanError::new("patch", "no series"))?;
    let count = b.shape_of(mask)[1];
    let any = b.one(Pool { x: mask, axis: 2, kernel: None, kind: PoolKind::Maximum })?;
    let any = reshape(b, any, &[Dim::BATCH, count])?;
    Ok((concat(b, &parts, 2)?, any))
}

/// Row `row` of a table of tokens for every sequence, `[B, 1, D]`.
pub(super) fn token(
    b: &mut PlanBuilder,
    table: WeightId,
    row: usize,
) -> Result<ValueId, PlanError> {
    let table = expand(b, Operand::Weight(table), 0, Dim::BATCH)?;
    slice(b, table, 1, row, 1)
}
