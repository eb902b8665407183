//! Transformers' `PatchTSTForPrediction`: a channel-independent encoder over patches.
//!
//! Not neuralforecast's PatchTST, whose norms, residual scores and flatten order differ.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, Binary, BinaryKind, Center, Denormalize, FeedForward, Linear,
    NormKind, NormPlacement, NormWeights, Normalize, Op, Operand, Patch, PatchPad, Pool, PoolKind,
    Scaler, Spread, Stack, Sublayer, SublayerKind, UnaryKind, ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, Plan, PlanBuilder, ValueId,
};
use serde::Deserialize;

use super::blocks::{
    LAYERS_MAX, affine, binary, check_heads, check_sizes, concat, expand, in_range, layer_norm,
    linear, product, reshape, shift_and_scale, slice, transpose, unary,
};

/// The fields of `config.json` that matter at inference. Defaults are those of `PatchTSTConfig`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Variates `C`.
    pub num_input_channels: usize,
    /// Context length `T` in steps.
    pub context_length: usize,
    /// Patch length `P` in steps.
    pub patch_length: usize,
    /// Steps between the starts of patches.
    pub patch_stride: usize,
    /// Layers `S`.
    pub num_hidden_layers: usize,
    /// Model width `D`.
    pub d_model: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the feed-forward.
    pub ffn_dim: usize,
    /// Whether all channels share one patch embedding.
    pub share_embedding: bool,
    /// Whether each layer also attends over channels.
    pub channel_attention: bool,
    /// `batchnorm` or `layernorm`.
    pub norm_type: String,
    /// Inside the roots of the norms.
    pub norm_eps: f64,
    /// Whether the feed-forward has biases.
    pub bias: bool,
    /// `gelu` or `relu`.
    pub activation_function: String,
    /// Norms before the sublayers, else after.
    pub pre_norm: bool,
    /// Whether a learned token precedes the patches and alone feeds the head.
    pub use_cls_token: bool,
    /// Whether all channels share one head; without it the framework's own forward fails.
    pub share_projection: bool,
    /// How windows are scaled.
    pub scaling: Scaling,
    /// `mean`, `max` or none.
    pub pooling_type: Option<String>,
    /// Horizon `H` in steps.
    pub prediction_length: usize,
    /// `mse`, or `nll` for a distribution's parameters.
    pub loss: Option<String>,
    /// `student_t` or `normal`, with `nll`.
    pub distribution_output: String,
}

/// The value of `scaling`: a name, or a flag.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Scaling {
    /// `std` or `mean`.
    Named(String),
    /// `true` is `mean`.
    Flag(bool),
    /// None.
    Absent(()),
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_input_channels: 1,
            context_length: 32,
            patch_length: 1,
            patch_stride: 1,
            num_hidden_layers: 3,
            d_model: 128,
            num_attention_heads: 4,
            ffn_dim: 512,
            share_embedding: true,
            channel_attention: false,
            norm_type: "batchnorm".to_owned(),
            norm_eps: 1e-5,
            bias: true,
            activation_function: "gelu".to_owned(),
            pre_norm: true,
            use_cls_token: false,
            share_projection: true,
            scaling: Scaling::Named("std".to_owned()),
            pooling_type: Some("mean".to_owned()),
            prediction_length: 24,
            loss: Some("mse".to_owned()),
            distribution_output: "student_t".to_owned(),
        }
    }
}

const PLACE: &str = "hf_patchtst";

/// The parameters of the distribution head, in the order of its projections.
const STUDENT_T: &[&str] = &["df", "loc", "scale"];
const NORMAL: &[&str] = &["loc", "scale"];

/// The smallest scale of a distribution, the epsilon of f32.
const SCALE_MIN: f32 = f32::EPSILON;

/// Builds the entry `full`.
///
/// Inputs `y [B, T, C]` and `mask [B, T, C]` (1 where observed; NaN in `y` counts as 0, as the
/// framework asks of its callers). Output `forecast [B, H, C]`; with `nll` instead `df` (of a
/// Student-t), `loc` and `scale`, each `[B, H, C]` in the units of the data. Weights are the
/// framework's own.
///
/// # Errors
/// A configuration that no network can have, or one that is not supported, by name.
pub fn plan(config: &Config) -> Result<Plan, PlanError> {
    let network = Network::new(config)?;
    let mut builder =
        PlanBuilder::new("PatchTSTForPrediction", Context::Fixed(network.c.context_length));
    builder.begin(EntryKind::Full);
    network.full(&mut builder)?;
    builder.finish()
}

struct Network<'a> {
    c: &'a Config,
    patches: usize,
    activation: Activation,
    scaler: Scaler,
    parameters: &'static [&'static str],
    pool: Option<PoolKind>,
}

impl<'a> Network<'a> {
    fn new(c: &'a Config) -> Result<Self, PlanError> {
        check_sizes(
            PLACE,
            &[
                ("num_input_channels", c.num_input_channels),
                ("context_length", c.context_length),
                ("patch_length", c.patch_length),
                ("patch_stride", c.patch_stride),
                ("d_model", c.d_model),
                ("ffn_dim", c.ffn_dim),
                ("prediction_length", c.prediction_length),
            ],
        )?;
        in_range(PLACE, "num_hidden_layers", c.num_hidden_layers, 1, LAYERS_MAX)?;
        in_range(PLACE, "patch_length", c.patch_length, 1, c.context_length)?;
        check_heads(PLACE, c.d_model, c.num_attention_heads)?;
        let refuse = |what: &str, found: &str, expected: &str| {
            Err(PlanError::new(PLACE, format!("`{what}` is `{found}`, expected {expected}")))
        };
        if !c.share_projection {
            return refuse("share_projection", "false", "true");
        }
        if !matches!(c.norm_type.as_str(), "batchnorm" | "layernorm") {
            return refuse("norm_type", &c.norm_type, "`batchnorm` or `layernorm`");
        }
        let activation = match c.activation_function.as_str() {
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            other => return refuse("activation_function", other, "`gelu` or `relu`"),
        };
        let pool = match c.pooling_type.as_deref() {
            None => None,
            Some("mean") => Some(PoolKind::Mean),
            Some("max") => Some(PoolKind::Maximum),
            Some(other) => return refuse("pooling_type", other, "`mean`, `max` or null"),
        };
        let parameters = match (c.loss.as_deref(), c.distribution_output.as_str()) {
            (Some("nll"), "student_t") => STUDENT_T,
            (Some("nll"), "normal") => NORMAL,
            (Some("nll"), other) => {
                return refuse("distribution_output", other, "`student_t` or `normal`");
            }
            (Some("mse"), _) => &[],
            (other, _) => return refuse("loss", other.unwrap_or("null"), "`mse` or `nll`"),
        };
        let scaler = match &c.scaling {
            Scaling::Named(name) if name == "std" => deviation(),
            Scaling::Named(name) if name == "mean" => magnitude(),
            Scaling::Flag(true) => magnitude(),
            Scaling::Flag(false) | Scaling::Absent(()) => Scaler::IDENTITY,
            Scaling::Named(other) => return refuse("scaling", other, "`std`, `mean` or null"),
        };
        let patches = (c.context_length - c.patch_length) / c.patch_stride + 1;
        Ok(Network { c, patches, activation, scaler, parameters, pool })
    }

    /// Tokens of one channel.
    fn tokens(&self) -> usize {
        self.patches + usize::from(self.c.use_cls_token)
    }

    fn full(&self, b: &mut PlanBuilder) -> Result<(), PlanError> {
        let (c, channels) = (self.c, self.c.num_input_channels);
        let shape = [Dim::BATCH, c.context_length.into(), channels.into()];
        let y = b.input("y", DType::F32, &shape);
        let mask = b.input("mask", DType::F32, &shape);
        let y = unary(b, y, UnaryKind::NanToZero)?;
        let scaled = b.step(Normalize::window(y, Some(mask), self.scaler))?;
        let (scaled, statistics) = (scaled[0], scaled[1]);
        let x = self.embed(b, scaled)?;
        let x = self.encode(b, x)?;
        let x = self.pooled(b, x)?;
        if self.parameters.is_empty() {
            let x = self.project(b, x, "head.projection")?;
            let forecast = self.denormalize(b, x, statistics)?;
            b.output("forecast", forecast, vec![Channel::Point; channels]);
            return Ok(());
        }
        let (_, scale) = shift_and_scale(b, statistics)?;
        for (i, &parameter) in self.parameters.iter().enumerate() {
            let x = self.project(b, x, &format!("head.projection.proj.{i}"))?;
            let value = match parameter {
                "loc" => self.denormalize(b, x, statistics)?,
                "df" => {
                    let x = squareplus(b, x)?;
                    affine(b, x, 1.0, 2.0)?
                }
                _ => {
                    // max(x, minimum) by what the op list has.
                    let x = squareplus(b, x)?;
                    let x = affine(b, x, 1.0, -SCALE_MIN)?;
                    let x = unary(b, x, UnaryKind::Activation(Activation::Relu))?;
                    let x = affine(b, x, 1.0, SCALE_MIN)?;
                    binary(b, x, BinaryKind::Multiply, scale)?
                }
            };
            b.output(parameter, value, vec![Channel::Parameter(parameter); channels]);
        }
        Ok(())
    }

    /// `[B, T, C]` to tokens `[C·B, N, D]` with their positions.
    fn embed(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        b.scope("embed");
        let (c, channels, d) = (self.c, self.c.num_input_channels, self.c.d_model);
        let (n, p) = (self.patches, c.patch_length);
        let rows = Dim::Batch(channels);
        let x = transpose(b, x, &[0, 2, 1])?;
        let x = b.one(Patch { x, length: p, stride: c.patch_stride, pad: PatchPad::DropFirst })?;
        let name = "model.encoder.embedder.input_embedding";
        let x = if c.share_embedding {
            let x = reshape(b, x, &[rows, n.into(), p.into()])?;
            let embedding = linear(b, x, name, [d, p], true);
            b.one(embedding)?
        } else {
            let mut embedded = Vec::with_capacity(channels);
            for channel in 0..channels {
                let x = slice(b, x, 1, channel, 1)?;
                let embedding = linear(b, x, &format!("{name}.{channel}"), [d, p], true);
                embedded.push(b.one(embedding)?);
            }
            let x = concat(b, &embedded, 1)?;
            reshape(b, x, &[rows, n.into(), d.into()])?
        };
        let x = if c.use_cls_token {
            let token = b.weight("model.encoder.positional_encoder.cls_token", &[1, 1, 1, d]);
            let token = expand(b, Operand::Weight(token), 0, rows)?;
            let token = reshape(b, token, &[rows, 1.into(), d.into()])?;
            concat(b, &[token, x], 1)?
        } else {
            x
        };
        let name = "model.encoder.positional_encoder.position_enc";
        let positions = b.weight(name, &[self.tokens(), d]);
        b.one(Binary::weight(x, BinaryKind::Add, positions))
    }

    fn encode(&self, b: &mut PlanBuilder, mut x: ValueId) -> Result<ValueId, PlanError> {
        b.scope("encoder");
        let layers = self.c.num_hidden_layers;
        if !self.c.channel_attention {
            let layers = (0..layers)
                .map(|l| vec![self.attention(b, l, 1), self.feed_forward(b, l)])
                .collect();
            return b.one(Op::EncoderStack(Stack::new(x, layers)));
        }
        let (channels, n, d) = (self.c.num_input_channels, self.tokens(), self.c.d_model);
        for l in 0..layers {
            let time = self.attention(b, l, 1);
            x = b.one(Op::EncoderStack(Stack::new(x, vec![vec![time]])))?;
            x = swap(b, x, [channels, n, d])?;
            let across = self.attention(b, l, 2);
            x = b.one(Op::EncoderStack(Stack::new(x, vec![vec![across]])))?;
            x = swap(b, x, [n, channels, d])?;
            let feed_forward = self.feed_forward(b, l);
            x = b.one(Op::EncoderStack(Stack::new(x, vec![vec![feed_forward]])))?;
        }
        Ok(x)
    }

    /// Self-attention of layer `l` with the norm of a sublayer; time and channels share its maps.
    fn attention(&self, b: &mut PlanBuilder, l: usize, sublayer: usize) -> Sublayer {
        let (d, heads) = (self.c.d_model, self.c.num_attention_heads);
        let mut map = |part: &str| {
            product(b, &format!("model.encoder.layers.{l}.self_attn.{part}_proj"), [d, d], true)
        };
        let head = d / heads;
        let attention = AttentionLayer {
            query: map("q"),
            key: map("k"),
            value: map("v"),
            output: map("out"),
            heads,
            head,
            scale: (head as f32).powf(-0.5),
            causal: false,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        };
        Sublayer { kind: SublayerKind::SelfAttention(attention), norm: self.norm(b, l, sublayer) }
    }

    fn feed_forward(&self, b: &mut PlanBuilder, l: usize) -> Sublayer {
        let (d, ff, bias) = (self.c.d_model, self.c.ffn_dim, self.c.bias);
        let up = product(b, &format!("model.encoder.layers.{l}.ff.0"), [ff, d], bias);
        let down = product(b, &format!("model.encoder.layers.{l}.ff.3"), [d, ff], bias);
        let feed_forward = FeedForward { up, gate: None, down, activation: self.activation };
        Sublayer { kind: SublayerKind::FeedForward(feed_forward), norm: self.norm(b, l, 3) }
    }

    fn norm(&self, b: &mut PlanBuilder, l: usize, sublayer: usize) -> NormPlacement {
        let (d, eps) = (self.c.d_model, self.c.norm_eps as f32);
        let name = format!("model.encoder.layers.{l}.norm_sublayer{sublayer}");
        let weights = if self.c.norm_type == "layernorm" {
            layer_norm(b, &name, d, eps)
        } else {
            let name = format!("{name}.batchnorm");
            let mean = b.weight(format!("{name}.running_mean"), &[d]);
            let variance = b.weight(format!("{name}.running_var"), &[d]);
            let kind = NormKind::Batch { mean, variance };
            NormWeights { kind, ..layer_norm(b, &name, d, eps) }
        };
        if self.c.pre_norm { NormPlacement::Pre(weights) } else { NormPlacement::Post(weights) }
    }

    /// Tokens `[C·B, N, D]` to what the head reads, `[C·B, 1, width]`.
    fn pooled(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        b.scope("head");
        if self.c.use_cls_token {
            return slice(b, x, 1, 0, 1);
        }
        match self.pool {
            Some(kind) => b.one(Pool { x, axis: 1, kernel: None, kind }),
            None => {
                let width = self.patches * self.c.d_model;
                reshape(b, x, &[Dim::Batch(self.c.num_input_channels), 1.into(), width.into()])
            }
        }
    }

    /// One map of the head, `[C·B, 1, width] → [B, H, C]`.
    fn project(&self, b: &mut PlanBuilder, x: ValueId, name: &str) -> Result<ValueId, PlanError> {
        let (horizon, channels) = (self.c.prediction_length, self.c.num_input_channels);
        let flat = !self.c.use_cls_token && self.pool.is_none();
        let width = if flat { self.patches * self.c.d_model } else { self.c.d_model };
        let map: Linear = linear(b, x, name, [horizon, width], true);
        let x = b.one(map)?;
        let x = reshape(b, x, &[Dim::BATCH, channels.into(), horizon.into()])?;
        transpose(b, x, &[0, 2, 1])
    }

    fn denormalize(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        statistics: ValueId,
    ) -> Result<ValueId, PlanError> {
        let scaler = self.scaler;
        b.one(Denormalize { x, statistics, prefix: false, channel: None, scaler, affine: None })
    }
}

/// `(x + √(x² + 4)) / 2`, the map of the framework to positive numbers.
fn squareplus(b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
    let square = binary(b, x, BinaryKind::Multiply, x)?;
    let square = affine(b, square, 1.0, 4.0)?;
    let root = unary(b, square, UnaryKind::Sqrt)?;
    let sum = binary(b, root, BinaryKind::Add, x)?;
    affine(b, sum, 0.5, 0.0)
}

/// `[inner·B, n, D] → [n·B, inner, D]`: what was position becomes row.
fn swap(b: &mut PlanBuilder, x: ValueId, [inner, n, d]: [usize; 3]) -> Result<ValueId, PlanError> {
    let x = reshape(b, x, &[Dim::BATCH, inner.into(), n.into(), d.into()])?;
    let x = transpose(b, x, &[0, 2, 1, 3])?;
    reshape(b, x, &[Dim::Batch(n), inner.into(), d.into()])
}

/// `(x − mean) / √(var + 1e-5)`.
const fn deviation() -> Scaler {
    Scaler {
        center: Center::Mean,
        spread: Spread::DeviationInside(1e-5),
        zero: ZeroSpread::Keep,
        eps: 0.0,
        asinh: false,
    }
}

/// `x / mean|x|`. The framework's floor of 1e-10 is applied to a spread of exactly 0; its default
/// for a window without observations, the mean of the batch, would make a row depend on its batch
/// and is 1 here.
const fn magnitude() -> Scaler {
    Scaler {
        center: Center::Zero,
        spread: Spread::MeanMagnitude,
        zero: ZeroSpread::Value(1e-10),
        eps: 0.0,
        asinh: false,
    }
}
