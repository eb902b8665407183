//! neuralforecast's PatchTST: patches of one series, a transformer encoder with batch norms, a
//! linear head over all patches.
//!
//! Not Hugging Face's PatchTST, which is another network (`hf_patchtst`). With `res_attention` off
//! the framework drops attention weights out even when it forecasts; that is a defect of it and
//! not reproduced.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, Affine, AttentionLayer, Binary, BinaryKind, Center, Denormalize, FeedForward,
    Linear, NormKind, NormPlacement, NormWeights, Normalize, Op, Patch, PatchPad, Scaler, Spread,
    Stack, Sublayer, SublayerKind, ZeroSpread,
};
use neural_forecast_runtime::plan::{Channel, Dim, EntryKind, Plan, PlanBuilder, ValueId};
use serde::{Deserialize, Serialize};

use super::blocks::{self, LAYERS_MAX, check_heads, check_sizes, in_range};
use super::nonlinearity::Nonlinearity;
use super::window::WindowConfig;
use crate::weights::Weights;

/// Name of the head's weight with its inputs patch by patch, `[H · O, N · E]`.
const HEAD: &str = "model.head.patch_major.weight";

/// Instance normalisation inside the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceNorm {
    /// `revin_affine`.
    pub affine: bool,
    /// `revin_subtract_last`: the last value is subtracted instead of the mean.
    pub subtract_last: bool,
}

/// The hyper-parameters that matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchTstConfig {
    /// Inputs, outputs and scaling.
    pub window: WindowConfig,
    /// Steps of a patch `P`, at most the context and one stride.
    pub patch: usize,
    /// Steps between patches.
    pub stride: usize,
    /// `encoder_layers`.
    pub layers: usize,
    /// `n_heads`.
    pub heads: usize,
    /// `hidden_size`, `E`.
    pub hidden: usize,
    /// `linear_hidden_size`.
    pub feed_forward: usize,
    /// `activation`.
    pub activation: Nonlinearity,
    /// `res_attention`: scores of earlier layers are added.
    pub residual_scores: bool,
    /// `batch_normalization`, which in truth puts the norms before the sublayers.
    pub pre_norm: bool,
    /// `revin`.
    pub instance_norm: Option<InstanceNorm>,
}

impl PatchTstConfig {
    /// Number of patches `N`; the last ones reach into a stride of repeated last values.
    fn patches(&self) -> usize {
        (self.window.context + self.stride).saturating_sub(self.patch) / self.stride.max(1) + 1
    }

    fn check(&self) -> Result<(), PlanError> {
        let place = "PatchTST";
        self.window.check(place)?;
        check_sizes(
            place,
            &[
                ("patch_len", self.patch),
                ("stride", self.stride),
                ("hidden_size", self.hidden),
                ("linear_hidden_size", self.feed_forward),
            ],
        )?;
        in_range(place, "encoder_layers", self.layers, 1, LAYERS_MAX)?;
        in_range(place, "patch_len", self.patch, 1, self.window.context + self.stride)?;
        check_heads(place, self.hidden, self.heads)
    }
}

/// Builds the plan of a configuration.
///
/// # Errors
/// A number that is out of its range.
pub fn plan(config: &PatchTstConfig, channels: Vec<Channel>) -> Result<Plan, PlanError> {
    config.check()?;
    let WindowConfig { context, horizon, outputs, .. } = config.window;
    let mut b = PlanBuilder::new("PatchTST", config.window.plan_context());
    b.begin(EntryKind::Full);
    let window = config.window.begin(&mut b, horizon, false)?;
    let (x, instance) = config.normalize(&mut b, window.target)?;
    let x = blocks::reshape(&mut b, x, &[Dim::BATCH, context.into()])?;
    let encoded = config.encode(&mut b, x)?;
    b.scope("model.head");
    let (patches, width) = (config.patches(), config.hidden);
    let flat = blocks::reshape(&mut b, encoded, &[Dim::BATCH, (patches * width).into()])?;
    let weight = b.weight(HEAD, &[horizon * outputs, patches * width]);
    let bias = b.weight("model.head.linear.bias", &[horizon * outputs]);
    let head = Linear::new(flat, weight).bias(bias);
    let y = b.one(head)?;
    let mut y = blocks::reshape(&mut b, y, &[Dim::BATCH, horizon.into(), outputs.into()])?;
    if let Some(mut undo) = instance {
        undo.x = y;
        y = b.one(undo)?;
    }
    let forecast = config.window.unscale(&mut b, y, window.statistics)?;
    b.output("forecast", forecast, channels);
    b.finish()
}

/// Makes the head's weight, which the framework keeps hidden-major, patch-major.
///
/// # Errors
/// The head is missing or has another shape.
pub(crate) fn rearrange(config: &PatchTstConfig, weights: &mut Weights) -> Result<(), PlanError> {
    config.check()?;
    let (patches, width) = (config.patches(), config.hidden);
    let rows = config.window.horizon * config.window.outputs;
    let name = "model.head.linear.weight";
    let shape = [rows, width * patches];
    let stored = super::elements(weights, name, &shape)?;
    let mut moved = Vec::with_capacity(stored.len());
    for row in stored.chunks_exact(width * patches) {
        for patch in 0..patches {
            moved.extend((0..width).map(|e| row[e * patches + patch]));
        }
    }
    weights.remove(name);
    weights.insert(HEAD, &shape, &moved);
    Ok(())
}

impl PatchTstConfig {
    /// The instance norm `[B, L, 1]`, and the op that undoes it.
    fn normalize(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
    ) -> Result<(ValueId, Option<Denormalize>), PlanError> {
        let Some(norm) = self.instance_norm else { return Ok((x, None)) };
        b.scope("model.revin_layer");
        let scaler = Scaler {
            center: if norm.subtract_last { Center::Last } else { Center::Mean },
            spread: Spread::DeviationInside(1e-5),
            zero: ZeroSpread::Keep,
            eps: 0.0,
            asinh: false,
        };
        let affine = norm.affine.then(|| Affine {
            weight: b.weight("model.revin_layer.affine_weight", &[1]),
            bias: b.weight("model.revin_layer.affine_bias", &[1]),
            // The framework adds eps² where it divides by the weight.
            eps: 1e-10,
        });
        let values = b.step(Normalize { affine, ..Normalize::window(x, None, scaler) })?;
        let (scaled, statistics) = (values[0], values[1]);
        let undo =
            Denormalize { x: scaled, statistics, prefix: false, channel: Some(0), scaler, affine };
        Ok((scaled, Some(undo)))
    }

    /// Patches `[B, N, E]` of `[B, L]`, encoded.
    fn encode(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        b.scope("model.backbone");
        let pad = PatchPad::RepeatLast(self.stride);
        let x = b.one(Patch { x, length: self.patch, stride: self.stride, pad })?;
        let name = "model.backbone.W_P";
        let embed = blocks::linear(b, x, name, [self.hidden, self.patch], true);
        let x = b.one(embed)?;
        let positions = b.weight("model.backbone.W_pos", &[self.patches(), self.hidden]);
        let mut x = b.one(Binary::weight(x, BinaryKind::Add, positions))?;
        let norms: Vec<NormWeights> = (0..self.layers)
            .flat_map(|layer| [(layer, "norm_attn"), (layer, "norm_ffn")])
            .map(|(layer, norm)| self.batch_norm(b, layer, norm))
            .collect();
        // With norms in front the framework adds to what is normed: `n + f(n)` with `n = norm(x)`.
        // That is one norm first, and then norms after all sublayers but the last.
        let after = |sublayer: usize| {
            let shift = usize::from(self.pre_norm);
            norms.get(sublayer + shift).map_or(NormPlacement::None, |n| NormPlacement::Post(*n))
        };
        if let (true, Some(first)) = (self.pre_norm, norms.first()) {
            x = b.one(first.op(x))?;
        }
        let layers = (0..self.layers).map(|layer| {
            let attention = SublayerKind::SelfAttention(self.attention(b, layer));
            let feed_forward = SublayerKind::FeedForward(self.feed_forward(b, layer));
            vec![
                Sublayer { kind: attention, norm: after(2 * layer) },
                Sublayer { kind: feed_forward, norm: after(2 * layer + 1) },
            ]
        });
        let layers = layers.collect();
        let stack = Stack { residual_scores: self.residual_scores, ..Stack::new(x, layers) };
        b.one(Op::EncoderStack(stack))
    }

    fn batch_norm(&self, b: &mut PlanBuilder, layer: usize, norm: &str) -> NormWeights {
        let mut weight = |part: &str| {
            let name = format!("model.backbone.encoder.layers.{layer}.{norm}.1.{part}");
            b.weight(name, &[self.hidden])
        };
        let (mean, variance) = (weight("running_mean"), weight("running_var"));
        NormWeights {
            kind: NormKind::Batch { mean, variance },
            weight: Some(weight("weight")),
            weight_offset: 0.0,
            bias: Some(weight("bias")),
            eps: 1e-5,
        }
    }

    fn attention(&self, b: &mut PlanBuilder, layer: usize) -> AttentionLayer {
        let width = self.hidden;
        let mut product = |part: &str| {
            let name = format!("model.backbone.encoder.layers.{layer}.self_attn.{part}");
            blocks::product(b, &name, [width, width], true)
        };
        let head = width / self.heads;
        AttentionLayer {
            query: product("W_Q"),
            key: product("W_K"),
            value: product("W_V"),
            output: product("to_out.0"),
            heads: self.heads,
            head,
            scale: (head as f32).powf(-0.5),
            causal: false,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        }
    }

    fn feed_forward(&self, b: &mut PlanBuilder, layer: usize) -> FeedForward {
        let (width, inner) = (self.hidden, self.feed_forward);
        let name = |part: usize| format!("model.backbone.encoder.layers.{layer}.ff.{part}");
        let activation: Activation = self.activation.activation();
        FeedForward {
            up: blocks::product(b, &name(0), [inner, width], true),
            gate: None,
            down: blocks::product(b, &name(3), [width, inner], true),
            activation,
        }
    }
}
