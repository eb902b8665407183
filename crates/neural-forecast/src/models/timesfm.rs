//! TimesFM 2.5: a causal decoder over patches, each scaled by statistics of everything up to it.
//!
//! What is not here, because it is not the network's: NaN inside a series (the forecaster
//! interpolates linearly; missing steps here are those before a series begins), the clipping of
//! forecasts of series without negative values, and external regressors.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::ops::{
    Activation, Attention, AttentionLayer, BinaryKind, Center, Columns, Denormalize, FeedForward,
    Keep, KeyValueRing, Masked, NormPlacement, NormWeights, Normalize, Op, Operand, QkNorm, Rope,
    Scaler, Slice, Spread, Stack, Statistics, Sublayer, SublayerKind, ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, Plan, PlanBuilder, StateId, StateKind, ValueId,
};
use serde::Deserialize;

use super::blocks::{
    LAYERS_MAX, ResidualBlock, affine, binary, check_heads, check_levels, check_sizes, concat,
    expand, in_range, linear, norm, observed, product, reshape, rms_norm, slice,
};
use super::rearranged::Rearranged;

/// The fields of `config.json` that matter at inference, by transformers' names and by those of the
/// original package. Defaults are the published 200M network's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Patch length `P` in steps.
    #[serde(alias = "input_patch_len")]
    pub patch_length: usize,
    /// Context length `T` in steps, a multiple of the patch: shorter series are padded to it, and
    /// where inputs are normalised the padding counts, so it is fixed.
    pub context_length: usize,
    /// Steps of one output, a multiple of the patch.
    #[serde(alias = "output_patch_len")]
    pub horizon_length: usize,
    /// Steps of the continuous quantile head.
    pub output_quantile_len: usize,
    /// Quantile levels. Outputs are the mean and then these.
    pub quantiles: Vec<f64>,
    /// Model width `D`.
    #[serde(alias = "model_dims")]
    pub hidden_size: usize,
    /// Width of the feed-forward.
    #[serde(alias = "hidden_dims")]
    pub intermediate_size: usize,
    /// Attention heads.
    #[serde(alias = "num_heads")]
    pub num_attention_heads: usize,
    /// Heads of keys and values; must be those of the queries.
    pub num_key_value_heads: Option<usize>,
    /// Layers `S`.
    #[serde(alias = "num_layers")]
    pub num_hidden_layers: usize,
    /// The output that is fed back and that quantiles are spread around: the median's.
    pub decode_index: usize,
    /// Whether quantiles come from the continuous quantile head.
    pub use_continuous_quantile_head: bool,
    /// Whether a series and its negative are both forecast, and the difference taken.
    pub force_flip_invariance: bool,
    /// Whether contexts are scaled as a whole first; transformers always does.
    pub normalize_inputs: bool,
    /// Whether crossing quantiles are straightened.
    pub fix_quantile_crossing: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            patch_length: 32,
            context_length: 16384,
            horizon_length: 128,
            output_quantile_len: 1024,
            quantiles: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
            hidden_size: 1280,
            intermediate_size: 1280,
            num_attention_heads: 16,
            num_key_value_heads: None,
            num_hidden_layers: 20,
            decode_index: 5,
            use_continuous_quantile_head: true,
            force_flip_invariance: true,
            normalize_inputs: true,
            fix_quantile_crossing: false,
        }
    }
}

const PLACE: &str = "timesfm";

/// Below this deviation a window is divided by 1.
const TOLERANCE: f32 = 1e-6;

/// Of every norm.
const EPS: f32 = 1e-6;

/// Over the whole padded context.
const GLOBAL: Scaler = Scaler {
    center: Center::Mean,
    spread: Spread::SampleDeviation,
    zero: ZeroSpread::Collapse(TOLERANCE),
    eps: 0.0,
    asinh: false,
};

/// Of each patch, by all steps up to its end.
const PREFIX: Scaler = Scaler { spread: Spread::Deviation, ..GLOBAL };

/// The matrix that makes the outputs of one or two passes and of one or two heads into one.
const COMBINE: &str = "combine.weight";

/// Builds the entries `full`, `prefill` and `step`.
///
/// - `full`: `y [B, T]`, NaN before a series begins; `forecast [B, H, 1 + Q]`, mean and quantiles,
///   for one output patch, with everything that the configuration asks for.
/// - `prefill`: the same input; the raw outputs of one pass in units of the scaled context, for
///   [`combine`]: `forecast [B, H, 1 + Q]`, `spread [B, H', 1 + Q]` (of the continuous quantile
///   head, if used), `feedback [B, H]`, and `statistics [B, 2, 1]` of the context, if scaled. Fills
///   the states.
/// - `step`: `y [B, H]`, the last `feedback`; `forecast` and `feedback`.
///
/// A roll-out over `n` output patches is `prefill` and `n − 1` times `step`; states hold
/// `output_patches` of them. With flip invariance the negative of a series is another sequence.
///
/// # Errors
/// A configuration that no network can have, or one that is not supported, by name.
pub fn plan(config: &Config, output_patches: usize) -> Result<Plan, PlanError> {
    config.check(output_patches)?;
    let mut builder = PlanBuilder::new("TimesFM-2.5", Context::Fixed(config.context_length));
    let states = config.states(&mut builder, output_patches);
    config.full(&mut builder)?;
    config.prefill(&mut builder, &states)?;
    config.step(&mut builder, &states)?;
    builder.finish()
}

/// The framework's tensors under the plan's names, from files of either package.
///
/// # Errors
/// A tensor is missing or misshapen.
pub fn rearrange<'a>(
    config: &Config,
    source: &'a dyn WeightSource,
) -> Result<Rearranged<'a>, PlanError> {
    config.check(1)?;
    let mut weights = Rearranged::new(source);
    let ours = weights.holds("model.layers.0.self_attn.q_proj.weight");
    if ours {
        rename(config, &mut weights)?;
    } else {
        for l in 0..config.num_hidden_layers {
            let name = format!("stacked_xf.{l}.attn");
            let parts = ["query", "key", "value"].map(|part| format!("{name}.{part}.weight"));
            let parts = parts.each_ref().map(String::as_str);
            weights.split(&parts, &format!("{name}.qkv_proj.weight"))?;
        }
    }
    if config.use_continuous_quantile_head {
        let rows = config.horizon_length * config.outputs();
        let first = if ours { "input_layer" } else { "hidden_layer" };
        let name = "output_projection_quantiles";
        let of = |part: &str| format!("{name}.{part}.weight");
        weights.rename(&format!("{NEAR}.hidden_layer.weight"), &of(first))?;
        for part in ["output_layer", "residual_layer"] {
            weights.rows(&format!("{NEAR}.{part}.weight"), &of(part), rows)?;
        }
    }
    let combination = config.combination();
    let shape = [config.outputs(), config.passes() * config.outputs()];
    weights.own(COMBINE, &shape, &combination)?;
    Ok(weights)
}

/// The quantile head's first steps, as many as one output has: all that `full` needs of it.
const NEAR: &str = "output_projection_quantiles.near";

/// From transformers' names to the original's.
fn rename(config: &Config, weights: &mut Rearranged<'_>) -> Result<(), PlanError> {
    for (ours, theirs) in [("hidden", "input"), ("output", "output"), ("residual", "residual")] {
        for part in ["weight", "bias"] {
            let to = format!("tokenizer.{ours}_layer.{part}");
            weights.rename(&to, &format!("model.input_ff_layer.{theirs}_layer.{part}"))?;
        }
        for head in ["output_projection_point", "output_projection_quantiles"] {
            let to = format!("{head}.{ours}_layer.weight");
            weights.rename(&to, &format!("{head}.{theirs}_layer.weight"))?;
        }
    }
    for l in 0..config.num_hidden_layers {
        for (ours, theirs) in [
            ("pre_attn_ln.scale", "input_layernorm.weight"),
            ("post_attn_ln.scale", "post_attention_layernorm.weight"),
            ("pre_ff_ln.scale", "pre_feedforward_layernorm.weight"),
            ("post_ff_ln.scale", "post_feedforward_layernorm.weight"),
            ("attn.query.weight", "self_attn.q_proj.weight"),
            ("attn.key.weight", "self_attn.k_proj.weight"),
            ("attn.value.weight", "self_attn.v_proj.weight"),
            ("attn.out.weight", "self_attn.o_proj.weight"),
            ("attn.query_ln.scale", "self_attn.q_norm.weight"),
            ("attn.key_ln.scale", "self_attn.k_norm.weight"),
            ("attn.per_dim_scale.per_dim_scale", "self_attn.scaling"),
            ("ff0.weight", "mlp.fc1.weight"),
            ("ff1.weight", "mlp.fc2.weight"),
        ] {
            weights
                .rename(&format!("stacked_xf.{l}.{ours}"), &format!("model.layers.{l}.{theirs}"))?;
        }
    }
    Ok(())
}

/// The raw outputs of one roll-out of one series, in units of its scaled context.
#[derive(Clone, Copy, Debug)]
pub struct Rollout<'a> {
    /// `[n·H, 1 + Q]`: the outputs of `prefill` and of every `step`, one after the other.
    pub forecast: &'a [f32],
    /// `[H', 1 + Q]`: what `prefill` gave as `spread`; empty without the continuous quantile head.
    pub spread: &'a [f32],
}

/// The forecast `[n·H, 1 + Q]` of a series from its roll-out, from that of its negative (with flip
/// invariance), and from shift and scale of its context (0 and 1 if it was not scaled). Computes
/// what `full` computes inside the plan.
///
/// # Errors
/// Slices whose lengths do not fit each other or the configuration.
pub fn combine(
    config: &Config,
    rollout: Rollout<'_>,
    negative: Option<Rollout<'_>>,
    (shift, scale): (f32, f32),
) -> Result<Vec<f32>, PlanError> {
    config.check(1)?;
    let m = config.outputs();
    let passes: Vec<Rollout<'_>> = std::iter::once(rollout).chain(negative).collect();
    let steps = rollout.forecast.len() / m;
    let spread = if config.use_continuous_quantile_head { steps * m } else { 0 };
    let fits = |r: &Rollout<'_>| r.forecast.len() == steps * m && r.spread.len() >= spread;
    if negative.is_some() != config.force_flip_invariance || !passes.iter().all(fits) {
        let message = format!("roll-outs of {steps} steps do not fit the configuration");
        return Err(PlanError::new(PLACE, message));
    }
    let matrix = config.combination();
    let mut combined = Vec::with_capacity(steps * m);
    for step in 0..steps {
        let mut inputs = Vec::with_capacity(config.passes() * m);
        for pass in &passes {
            inputs.extend_from_slice(&pass.forecast[step * m..(step + 1) * m]);
            if config.use_continuous_quantile_head {
                inputs.extend_from_slice(&pass.spread[step * m..(step + 1) * m]);
            }
        }
        let rows = matrix.chunks_exact(inputs.len());
        let mut y: Vec<f32> =
            rows.map(|row| row.iter().zip(&inputs).map(|(w, x)| w * x).sum()).collect();
        if config.fix_quantile_crossing {
            for i in (1..config.decode_index).rev() {
                y[i] = y[i].min(y[i + 1]);
            }
            for i in config.decode_index + 1..m {
                y[i] = y[i].max(y[i - 1]);
            }
        }
        combined.extend(y.iter().map(|y| y * scale + shift));
    }
    Ok(combined)
}

/// The state slots of a sequence.
struct States {
    statistics: StateId,
    rings: Vec<KeyValueRing>,
}

impl Config {
    fn check(&self, output_patches: usize) -> Result<(), PlanError> {
        check_sizes(
            PLACE,
            &[
                ("patch_length", self.patch_length),
                ("context_length", self.context_length),
                ("horizon_length", self.horizon_length),
                ("output_quantile_len", self.output_quantile_len),
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("output patches", output_patches),
            ],
        )?;
        check_levels(PLACE, &self.quantiles)?;
        check_heads(PLACE, self.hidden_size, self.num_attention_heads)?;
        in_range(PLACE, "num_hidden_layers", self.num_hidden_layers, 1, LAYERS_MAX)?;
        in_range(PLACE, "decode_index", self.decode_index, 1, self.quantiles.len())?;
        let heads = self.num_attention_heads;
        let shared = self.num_key_value_heads.unwrap_or(heads);
        in_range(PLACE, "num_key_value_heads", shared, heads, heads)?;
        for (name, length) in
            [("context_length", self.context_length), ("horizon_length", self.horizon_length)]
        {
            if !length.is_multiple_of(self.patch_length) {
                let patch = self.patch_length;
                let message = format!("`{name}` is {length}, expected a multiple of {patch}");
                return Err(PlanError::new(PLACE, message));
            }
        }
        let steps = self.horizon_length / self.patch_length;
        let capacity = (output_patches - 1) * steps + self.context_length / self.patch_length;
        check_sizes(PLACE, &[("patches of context and roll-out", capacity)])?;
        if self.use_continuous_quantile_head && self.output_quantile_len < self.horizon_length {
            let (found, least) = (self.output_quantile_len, self.horizon_length);
            let message = format!("`output_quantile_len` is {found}, expected at least {least}");
            return Err(PlanError::new(PLACE, message));
        }
        Ok(())
    }

    /// Channels of an output: the mean and the quantiles.
    fn outputs(&self) -> usize {
        self.quantiles.len() + 1
    }

    /// Sets of outputs that a forecast is combined of.
    fn passes(&self) -> usize {
        (1 + usize::from(self.force_flip_invariance))
            * (1 + usize::from(self.use_continuous_quantile_head))
    }

    /// The matrix `[1 + Q, passes · (1 + Q)]` over (point, spread) of the series, then of its
    /// negative. A negative's quantiles are the series' in reverse order, with the other sign; the
    /// continuous head gives distances from the median, the point head the median.
    fn combination(&self) -> Vec<f32> {
        let (m, median) = (self.outputs(), self.decode_index);
        let heads = 1 + usize::from(self.use_continuous_quantile_head);
        let columns = self.passes() * m;
        let mut matrix = vec![0.0; m * columns];
        let mut add = |row: usize, head: usize, channel: usize, weight: f32| {
            if !self.force_flip_invariance {
                matrix[row * columns + head * m + channel] += weight;
                return;
            }
            let mirrored = if channel == 0 { 0 } else { m - channel };
            matrix[row * columns + head * m + channel] += weight / 2.0;
            matrix[row * columns + (heads + head) * m + mirrored] -= weight / 2.0;
        };
        for row in 0..m {
            if self.use_continuous_quantile_head && row > 0 && row != median {
                add(row, 1, row, 1.0);
                add(row, 1, median, -1.0);
                add(row, 0, median, 1.0);
            } else {
                add(row, 0, row, 1.0);
            }
        }
        matrix
    }

    fn channels(&self) -> Vec<Channel> {
        let levels = self.quantiles.iter().map(|&level| Channel::Quantile(level));
        std::iter::once(Channel::Point).chain(levels).collect()
    }

    fn states(&self, b: &mut PlanBuilder, output_patches: usize) -> States {
        let statistics = b.state("statistics", StateKind::ScalerStatistics, &[3, 1]);
        let (p, d) = (self.patch_length, self.hidden_size);
        let steps = self.horizon_length / p * (output_patches - 1);
        let shape = [self.context_length / p + steps, d];
        let rings = (0..self.num_hidden_layers).map(|l| KeyValueRing {
            keys: b.state(format!("stacked_xf.{l}.keys"), StateKind::KeyRing, &shape),
            values: b.state(format!("stacked_xf.{l}.values"), StateKind::ValueRing, &shape),
            position: b.state(format!("stacked_xf.{l}.position"), StateKind::RingPosition, &[1]),
        });
        States { statistics, rings: rings.collect() }
    }

    fn full(&self, b: &mut PlanBuilder) -> Result<(), PlanError> {
        b.begin(EntryKind::Full);
        let (t, signs) = (self.context_length, 1 + usize::from(self.force_flip_invariance));
        let (y, mask, global) = self.context(b)?;
        let rows = Dim::Batch(signs);
        let (y, mask) = if self.force_flip_invariance {
            let y = reshape(b, y, &[Dim::BATCH, 1.into(), t.into()])?;
            let negative = affine(b, y, -1.0, 0.0)?;
            let both = concat(b, &[y, negative], 1)?;
            let mask = expand(b, Operand::Value(mask), 1, 2)?;
            (reshape(b, both, &[rows, t.into()])?, reshape(b, mask, &[rows, t.into()])?)
        } else {
            (y, mask)
        };
        let (x, visible, statistics) = self.patches(b, y, Some(mask), rows, None)?;
        b.scope("stacked_xf");
        let layers = (0..self.num_hidden_layers).map(|l| self.layer(b, l)).collect();
        let mut stack = Stack::new(x, layers);
        stack.mask = visible;
        stack.keep = Keep::Last(1);
        let x = b.one(Op::EncoderStack(stack))?;
        let h = self.horizon_length;
        let mut heads = vec![self.head(b, x, "output_projection_point", h, statistics)?];
        if self.use_continuous_quantile_head {
            heads.push(self.head(b, x, NEAR, h, statistics)?);
        }
        let y = self.combined(b, &heads, signs)?;
        let y = if self.fix_quantile_crossing { self.straighten(b, y)? } else { y };
        let y = match global {
            Some(statistics) => denormalize(b, y, statistics, GLOBAL, false)?,
            None => y,
        };
        b.output("forecast", y, self.channels());
        Ok(())
    }

    fn prefill(&self, b: &mut PlanBuilder, states: &States) -> Result<(), PlanError> {
        b.begin(EntryKind::Prefill);
        let (y, mask, global) = self.context(b)?;
        let running = Some(states.statistics);
        let (x, visible, statistics) = self.patches(b, y, Some(mask), Dim::BATCH, running)?;
        let x = self.layers(b, x, visible, states)?;
        self.emit(b, x, statistics)?;
        if self.use_continuous_quantile_head {
            let (name, steps) = ("output_projection_quantiles", self.output_quantile_len);
            let spread = self.head(b, x, name, steps, statistics)?;
            b.output("spread", spread, self.channels());
        }
        if let Some(global) = global {
            b.output("statistics", global, Vec::new());
        }
        Ok(())
    }

    fn step(&self, b: &mut PlanBuilder, states: &States) -> Result<(), PlanError> {
        b.begin(EntryKind::Step);
        let y = b.input("y", DType::F32, &[Dim::BATCH, self.horizon_length.into()]);
        let running = Some(states.statistics);
        let (x, visible, statistics) = self.patches(b, y, None, Dim::BATCH, running)?;
        let x = self.layers(b, x, visible, states)?;
        self.emit(b, x, statistics)
    }

    /// The context `[B, T]`, zero and scaled where it is padding, its mask, and its statistics.
    fn context(
        &self,
        b: &mut PlanBuilder,
    ) -> Result<(ValueId, ValueId, Option<ValueId>), PlanError> {
        b.scope("context");
        let t = self.context_length;
        let y = b.input("y", DType::F32, &[Dim::BATCH, t.into()]);
        let (y, mask) = observed(b, y)?;
        if !self.normalize_inputs {
            return Ok((y, mask, None));
        }
        let y = reshape(b, y, &[Dim::BATCH, t.into(), 1.into()])?;
        let scaled = b.step(Normalize::window(y, None, GLOBAL))?;
        Ok((reshape(b, scaled[0], &[Dim::BATCH, t.into()])?, mask, Some(scaled[1])))
    }

    /// Series `[rows, steps]` to tokens `[rows, N, D]`, which of them are visible `[rows, N]`, and
    /// the statistics `[rows, N, 2]`.
    fn patches(
        &self,
        b: &mut PlanBuilder,
        y: ValueId,
        mask: Option<ValueId>,
        rows: Dim,
        running: Option<StateId>,
    ) -> Result<(ValueId, Option<ValueId>, ValueId), PlanError> {
        b.scope("patches");
        let p = self.patch_length;
        let steps = b.shape_of(y)[1].fixed().unwrap_or(0);
        let n = steps / p;
        let shape = [rows, n.into(), p.into()];
        let y = reshape(b, y, &shape)?;
        let mask = mask.map(|mask| reshape(b, mask, &shape)).transpose()?;
        let scaled = b.step(Normalize {
            statistics: Statistics::Prefix,
            masked: Masked::Zero,
            running,
            ..Normalize::window(y, mask, PREFIX)
        })?;
        let (padding, visible) = match mask {
            Some(mask) => {
                // A patch counts as padding if its last step does.
                let last = slice(b, mask, 2, p - 1, 1)?;
                let visible = reshape(b, last, &[rows, n.into()])?;
                (affine(b, mask, -1.0, 1.0)?, Some(visible))
            }
            None => (affine(b, scaled[0], 0.0, 0.0)?, None),
        };
        let x = concat(b, &[scaled[0], padding], 2)?;
        let d = self.hidden_size;
        let tokenizer = self.block("tokenizer", [2 * p, d, d], true);
        Ok((tokenizer.build(b, x)?, visible, scaled[1]))
    }

    fn block<'n>(&self, name: &'n str, widths: [usize; 3], bias: bool) -> ResidualBlock<'n> {
        let (hidden_layer, activation) = ("hidden_layer", Activation::Silu);
        ResidualBlock { name, hidden_layer, widths, activation, bias }
    }

    /// A layer as sublayers of a stack.
    fn layer(&self, b: &mut PlanBuilder, l: usize) -> Vec<Sublayer> {
        let [before, after, ff_before, ff_after] = self.norms(b, l);
        let (d, heads, ff) = (self.hidden_size, self.num_attention_heads, self.intermediate_size);
        let name = |part: &str| format!("stacked_xf.{l}.{part}");
        let attention = AttentionLayer {
            query: product(b, &name("attn.query"), [d, d], false),
            key: product(b, &name("attn.key"), [d, d], false),
            value: product(b, &name("attn.value"), [d, d], false),
            output: product(b, &name("attn.out"), [d, d], false),
            heads,
            head: d / heads,
            scale: 1.0,
            causal: true,
            bias: None,
            rope: Some(ROPE),
            qk_norm: Some(self.qk_norm(b, l)),
            per_dim_scale: Some(b.weight(name("attn.per_dim_scale.per_dim_scale"), &[d / heads])),
        };
        let feed_forward = FeedForward {
            up: product(b, &name("ff0"), [ff, d], false),
            gate: None,
            down: product(b, &name("ff1"), [d, ff], false),
            activation: Activation::Silu,
        };
        vec![
            Sublayer {
                kind: SublayerKind::SelfAttention(attention),
                norm: NormPlacement::Sandwich { before, after },
            },
            Sublayer {
                kind: SublayerKind::FeedForward(feed_forward),
                norm: NormPlacement::Sandwich { before: ff_before, after: ff_after },
            },
        ]
    }

    fn norms(&self, b: &mut PlanBuilder, l: usize) -> [NormWeights; 4] {
        ["pre_attn_ln", "post_attn_ln", "pre_ff_ln", "post_ff_ln"]
            .map(|part| rms_norm(b, &format!("stacked_xf.{l}.{part}.scale"), self.hidden_size, EPS))
    }

    fn qk_norm(&self, b: &mut PlanBuilder, l: usize) -> QkNorm {
        let head = self.hidden_size / self.num_attention_heads;
        QkNorm {
            query: b.weight(format!("stacked_xf.{l}.attn.query_ln.scale"), &[head]),
            key: b.weight(format!("stacked_xf.{l}.attn.key_ln.scale"), &[head]),
            eps: EPS,
        }
    }

    /// All layers one by one, because their keys and values go into rings; the last token
    /// `[B, 1, D]`.
    fn layers(
        &self,
        b: &mut PlanBuilder,
        mut x: ValueId,
        visible: Option<ValueId>,
        states: &States,
    ) -> Result<ValueId, PlanError> {
        let (d, heads, ff) = (self.hidden_size, self.num_attention_heads, self.intermediate_size);
        for (l, ring) in states.rings.iter().enumerate() {
            b.scope(format!("stacked_xf.{l}"));
            let name = |part: &str| format!("stacked_xf.{l}.{part}");
            let [before, after, ff_before, ff_after] = self.norms(b, l);
            let inner = norm(b, x, before)?;
            let mut columns = |part: &str| {
                let map = linear(b, inner, &name(part), [d, d], false);
                b.one(map).map(|value| Columns::all(value, d))
            };
            let (q, k, v) = (columns("attn.query")?, columns("attn.key")?, columns("attn.value")?);
            let scale = b.weight(name("attn.per_dim_scale.per_dim_scale"), &[d / heads]);
            let attention = Attention {
                causal: true,
                key_mask: visible,
                rope: Some(ROPE),
                qk_norm: Some(self.qk_norm(b, l)),
                per_dim_scale: Some(scale),
                ring: Some(*ring),
                ..Attention::new(q, k, v, heads, 1.0)
            };
            let y = b.one(attention)?;
            let output = linear(b, y, &name("attn.out"), [d, d], false);
            let y = b.one(output)?;
            let y = norm(b, y, after)?;
            x = binary(b, y, BinaryKind::Add, x)?;
            let inner = norm(b, x, ff_before)?;
            let up = linear(b, inner, &name("ff0"), [ff, d], false).activation(Activation::Silu);
            let up = b.one(up)?;
            let down = linear(b, up, &name("ff1"), [d, ff], false);
            let y = b.one(down)?;
            let y = norm(b, y, ff_after)?;
            x = binary(b, y, BinaryKind::Add, x)?;
        }
        b.one(Slice::last(x, 1, 1))
    }

    /// The outputs of one pass: forecast, and what the next step reads.
    fn emit(&self, b: &mut PlanBuilder, x: ValueId, statistics: ValueId) -> Result<(), PlanError> {
        let h = self.horizon_length;
        let forecast = self.head(b, x, "output_projection_point", h, statistics)?;
        let feedback = slice(b, forecast, 2, self.decode_index, 1)?;
        let feedback = reshape(b, feedback, &[Dim::BATCH, h.into()])?;
        b.output("forecast", forecast, self.channels());
        b.output("feedback", feedback, Vec::new());
        Ok(())
    }

    /// The last token `[rows, 1, D]` to `[rows, steps, 1 + Q]`, scaled back by its patch.
    fn head(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        name: &str,
        steps: usize,
        statistics: ValueId,
    ) -> Result<ValueId, PlanError> {
        b.scope("head");
        let (d, m) = (self.hidden_size, self.outputs());
        let rows = b.shape_of(x)[0];
        let x = self.block(name, [d, d, steps * m], false).build(b, x)?;
        let x = reshape(b, x, &[rows, steps.into(), m.into()])?;
        denormalize(b, x, statistics, PREFIX, true)
    }

    /// Heads `[signs · B, H, 1 + Q]` to one forecast `[B, H, 1 + Q]`.
    fn combined(
        &self,
        b: &mut PlanBuilder,
        heads: &[ValueId],
        signs: usize,
    ) -> Result<ValueId, PlanError> {
        b.scope("combine");
        let (h, m) = (self.horizon_length, self.outputs());
        let mut parts = Vec::with_capacity(self.passes());
        for sign in 0..signs {
            for &head in heads {
                let x = reshape(b, head, &[Dim::BATCH, signs.into(), h.into(), m.into()])?;
                let x = slice(b, x, 1, sign, 1)?;
                parts.push(reshape(b, x, &[Dim::BATCH, h.into(), m.into()])?);
            }
        }
        if let [only] = parts.as_slice() {
            return Ok(*only);
        }
        let x = concat(b, &parts, 2)?;
        let combine = linear(b, x, "combine", [m, self.passes() * m], false);
        b.one(combine)
    }

    /// Quantiles below the median never above their upper neighbour, and above it never below
    /// their lower one.
    fn straighten(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        b.scope("straighten");
        let (m, median) = (self.outputs(), self.decode_index);
        let mut columns = Vec::with_capacity(m);
        for i in 0..m {
            columns.push(slice(b, x, 2, i, 1)?);
        }
        // The minimum is the maximum of the negatives.
        let mut upper = affine(b, columns[median], -1.0, 0.0)?;
        for i in (1..median).rev() {
            let negative = affine(b, columns[i], -1.0, 0.0)?;
            upper = binary(b, negative, BinaryKind::Maximum, upper)?;
            columns[i] = affine(b, upper, -1.0, 0.0)?;
        }
        for i in median + 1..m {
            columns[i] = binary(b, columns[i], BinaryKind::Maximum, columns[i - 1])?;
        }
        concat(b, &columns, 2)
    }
}

/// Positions count the visible patches.
const ROPE: Rope = Rope { theta: 10_000.0, skip_masked: true };

fn denormalize(
    b: &mut PlanBuilder,
    x: ValueId,
    statistics: ValueId,
    scaler: Scaler,
    prefix: bool,
) -> Result<ValueId, PlanError> {
    b.one(Denormalize { x, statistics, prefix, channel: None, scaler, affine: None })
}
