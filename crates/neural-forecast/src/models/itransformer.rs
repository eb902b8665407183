//! neuralforecast's iTransformer: attention over series, each embedded whole as one token.
//!
//! Multivariate: one window holds all series. Not the variant of other repositories, whose head and
//! embedding have other names.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, Center, Denormalize, FeedForward, NormPlacement, Normalize, Op,
    Scaler, Spread, Stack, Sublayer, SublayerKind, ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, Plan, PlanBuilder, ValueId,
};
use serde::Deserialize;

use super::blocks::{
    LAYERS_MAX, check_heads, check_sizes, concat, in_range, layer_norm, linear, product, reshape,
    slice, transpose,
};
use super::rearranged::Rearranged;

/// The hyper-parameters that matter at inference. Defaults are the constructor's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Horizon `H` in steps.
    pub h: usize,
    /// Context length `T` in steps.
    pub input_size: usize,
    /// Series `C`.
    pub n_series: usize,
    /// Model width `D`.
    pub hidden_size: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Layers `S`.
    pub e_layers: usize,
    /// Width of the feed-forward.
    pub d_ff: usize,
    /// Whether each series is scaled by mean and deviation of its window.
    pub use_norm: bool,
    /// Outputs `O` of the loss per step and series.
    pub outputs: usize,
    /// Names of future exogenous columns.
    pub futr_exog_list: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            h: 1,
            input_size: 1,
            n_series: 1,
            hidden_size: 512,
            n_heads: 8,
            e_layers: 2,
            d_ff: 2048,
            use_norm: true,
            outputs: 1,
            futr_exog_list: Vec::new(),
        }
    }
}

const PLACE: &str = "itransformer";

/// `(x − mean) / √(var + 1e-5)`.
const SCALER: Scaler = Scaler {
    center: Center::Mean,
    spread: Spread::DeviationInside(1e-5),
    zero: ZeroSpread::Keep,
    eps: 0.0,
    asinh: false,
};

/// Builds the entry `full`.
///
/// Inputs `y [B, T, C]` and, with future columns, `futr_exog [B, F, T + H, C]`. Output
/// `forecast [B, H, C·O]` in the framework's own flat order: it reads the result as
/// `[H, C, O]` although the network wrote `[H, O, C]` (with one output the two agree), and trained
/// weights depend on that.
///
/// # Errors
/// A configuration that no network can have.
pub fn plan(config: &Config) -> Result<Plan, PlanError> {
    check(config)?;
    let mut builder = PlanBuilder::new("iTransformer", Context::Fixed(config.input_size));
    builder.begin(EntryKind::Full);
    full(config, &mut builder)?;
    builder.finish()
}

/// The framework's tensors under the plan's names: kernels of width 1 become plain maps.
///
/// # Errors
/// A tensor is missing or misshapen.
pub fn rearrange<'a>(
    config: &Config,
    source: &'a dyn WeightSource,
) -> Result<Rearranged<'a>, PlanError> {
    check(config)?;
    let (d, ff) = (config.hidden_size, config.d_ff);
    let mut weights = Rearranged::new(source);
    for l in 0..config.e_layers {
        let name = format!("encoder.attn_layers.{l}");
        let (up, down) = (format!("{name}.conv1.weight"), format!("{name}.conv2.weight"));
        weights.reshape(&up, &up, &[ff, d])?;
        weights.reshape(&down, &down, &[d, ff])?;
    }
    Ok(weights)
}

fn check(c: &Config) -> Result<(), PlanError> {
    check_sizes(
        PLACE,
        &[
            ("h", c.h),
            ("input_size", c.input_size),
            ("n_series", c.n_series),
            ("hidden_size", c.hidden_size),
            ("d_ff", c.d_ff),
            ("outputs", c.outputs),
            ("futr_exog_list", c.futr_exog_list.len() + 1),
        ],
    )?;
    check_sizes(
        PLACE,
        &[
            ("h · outputs", c.h * c.outputs),
            ("n_series · outputs", c.n_series * c.outputs),
            ("n_series · futr_exog_list", c.n_series * c.futr_exog_list.len() + 1),
        ],
    )?;
    in_range(PLACE, "e_layers", c.e_layers, 1, LAYERS_MAX)?;
    check_heads(PLACE, c.hidden_size, c.n_heads)
}

fn full(c: &Config, b: &mut PlanBuilder) -> Result<(), PlanError> {
    let (t, series, d) = (c.input_size, c.n_series, c.hidden_size);
    let y = b.input("y", DType::F32, &[Dim::BATCH, t.into(), series.into()]);
    let (y, statistics) = if c.use_norm {
        let scaled = b.step(Normalize::window(y, None, SCALER))?;
        (scaled[0], Some(scaled[1]))
    } else {
        (y, None)
    };
    b.scope("embed");
    let y = transpose(b, y, &[0, 2, 1])?;
    let embedding = linear(b, y, "enc_embedding.value_embedding", [d, t], true);
    let mut tokens = b.one(embedding)?;
    let future = c.futr_exog_list.len();
    if future > 0 {
        let shape = [Dim::BATCH, future.into(), (t + c.h).into(), series.into()];
        let x = b.input("futr_exog", DType::F32, &shape);
        let x = transpose(b, x, &[0, 3, 1, 2])?;
        let x = reshape(b, x, &[Dim::BATCH, (series * future).into(), (t + c.h).into()])?;
        let embedding = linear(b, x, "futr_embedding", [d, t + c.h], true);
        let x = b.one(embedding)?;
        tokens = concat(b, &[tokens, x], 1)?;
    }
    let x = encode(c, b, tokens)?;
    b.scope("head");
    let x = if future > 0 { slice(b, x, 1, 0, series)? } else { x };
    let rows = c.h * c.outputs;
    let projector = linear(b, x, "projector", [rows, d], true);
    let x = b.one(projector)?;
    let x = transpose(b, x, &[0, 2, 1])?;
    let x = match statistics {
        Some(statistics) => b.one(Denormalize {
            x,
            statistics,
            prefix: false,
            channel: None,
            scaler: SCALER,
            affine: None,
        })?,
        None => x,
    };
    let width = series * c.outputs;
    let forecast = reshape(b, x, &[Dim::BATCH, c.h.into(), width.into()])?;
    b.output("forecast", forecast, vec![Channel::Point; width]);
    Ok(())
}

fn encode(c: &Config, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
    b.scope("encoder");
    let mut layers = Vec::with_capacity(c.e_layers);
    for l in 0..c.e_layers {
        layers.push(layer(c, b, &format!("encoder.attn_layers.{l}")));
    }
    let mut stack = Stack::new(x, layers);
    stack.final_norm = Some(layer_norm(b, "encoder.norm", c.hidden_size, 1e-5));
    b.one(Op::EncoderStack(stack))
}

fn layer(c: &Config, b: &mut PlanBuilder, name: &str) -> Vec<Sublayer> {
    let (d, ff, heads) = (c.hidden_size, c.d_ff, c.n_heads);
    let mut map =
        |part: &str| product(b, &format!("{name}.attention.{part}_projection"), [d, d], true);
    let attention = AttentionLayer {
        query: map("query"),
        key: map("key"),
        value: map("value"),
        output: map("out"),
        heads,
        head: d / heads,
        scale: ((d / heads) as f32).powf(-0.5),
        causal: false,
        bias: None,
        rope: None,
        qk_norm: None,
        per_dim_scale: None,
    };
    let feed_forward = FeedForward {
        up: product(b, &format!("{name}.conv1"), [ff, d], true),
        gate: None,
        down: product(b, &format!("{name}.conv2"), [d, ff], true),
        activation: Activation::Gelu,
    };
    let norm1 = layer_norm(b, &format!("{name}.norm1"), d, 1e-5);
    let norm2 = layer_norm(b, &format!("{name}.norm2"), d, 1e-5);
    vec![
        Sublayer { kind: SublayerKind::SelfAttention(attention), norm: NormPlacement::Post(norm1) },
        Sublayer {
            kind: SublayerKind::FeedForward(feed_forward),
            norm: NormPlacement::Post(norm2),
        },
    ]
}
