//! The integration guide's Transformer: an embedding, a pre-norm encoder and a linear head on the
//! last position.
//!
//! PyTorch's `nn.TransformerEncoder` of `nn.TransformerEncoderLayer(…, activation="gelu",
//! norm_first=True)` as `encoder`, without a final norm, between `nn.Linear` `embed` and `head`,
//! under those names. It has no positions of its own: features that tell the time do that.

use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, FeedForward, Keep, Linear, NormKind, NormPlacement, NormWeights,
    Op, Product, Stack, Sublayer, SublayerKind,
};
use neural_forecast_runtime::plan::{Context, DType, Dim, EntryKind, PlanBuilder};

use super::lazy::{self, Architecture, Lazy, Planned};
use super::lstm;
use super::rearranged::Rearranged;
use super::seeded::Init;
use crate::config::{TransformerConfig, check_features};
use crate::error::{Error, ErrorKind, Result};

/// A Transformer encoder forecaster of a fixed window: `[batch, time, features]` in, `[batch,
/// output_length, 1]` out.
///
/// Lazy as [`LSTMModel`](super::LSTMModel) is. Without a weight file weights are PyTorch's
/// defaults: products uniform in ±1/√(inputs), the joint query, key and value product in
/// ±√(6 / 4D), attention biases 0, norms 1 and 0, drawn
/// as [`draw`](super::seeded::draw) documents.
///
/// `use_flash_attention = false` runs the layers lowered and unfused: queries, keys and values,
/// attention, norms and products each as an op of its own with its result in memory.
///
/// ```
/// use neural_forecast::models::{TransformerModel, Model};
/// use neural_forecast::config::TransformerConfig;
/// # use ndarray::Array3;
///
/// # fn main() { transformer_gpu_example().unwrap() }
/// #[tokio::main]
/// async fn transformer_gpu_example() -> Result<(), Box<dyn std::error::Error>> {
///     let config = TransformerConfig {
///         input_length: 512,
///         output_length: 10,
///         d_model: 768,
///         num_heads: 12,
///         num_layers: 6,
///         d_ff: 3072,
///         dropout: 0.1,
///         use_flash_attention: true,
///     };
///
///     let mut model = TransformerModel::new_from_config(config)?;
/// #   let model = &mut model;
///
///     // Create input data
///     let input_data = Array3::ones((16, 512, 768)); // batch_size=16, seq_len=512, d_model=768
///
///     // GPU-accelerated transformer inference
///     let output = model.predict(&input_data).await?;
///     println!("Transformer output shape: {:?}", output.shape());
/// #   assert_eq!(output.shape(), [16, 10, 1]);
/// #   assert!(output.iter().all(|y| y.is_finite()));
///
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct TransformerModel(Lazy<TransformerConfig>);

lazy::model!(TransformerModel, TransformerConfig);

impl Architecture for TransformerConfig {
    const NAME: &'static str = "TransformerModel";
    const FEATURES_OF: &'static str = "embed.weight";

    fn lengths(&self) -> (usize, usize) {
        (self.input_length, self.output_length)
    }

    fn check_features(&self, features: usize) -> Result<()> {
        check_features(features, self.input_length, self.d_model)
    }

    fn plan(&self, features: usize) -> Planned {
        plan(self, features, Keep::Last(1))
    }

    fn init(&self, features: usize, name: &str) -> Init {
        init(self, features, name)
    }

    fn fused(&self) -> bool {
        self.use_flash_attention
    }

    fn stored_name<'a>(&self, name: &'a str) -> &'a str {
        match name.rsplit_once('.') {
            Some((joint, part)) if PARTS.contains(&part) => joint,
            _ => name,
        }
    }

    fn stored<'a>(&self, file: &'a dyn WeightSource) -> Result<Box<dyn WeightSource + 'a>> {
        Ok(Box::new(split_projections(self, file)?))
    }
}

/// The plan of an encoder over `features` features. Input `x` `[B, T, F]`; output `forecast`
/// `[B, H, 1]` where the last position is kept, `[B, T', H]` where more are. Of the last layer only
/// keys and values are computed for positions that are not kept.
///
/// # Errors
/// Shapes that do not fit, which [`TransformerConfig::validate`] rules out.
pub fn plan(config: &TransformerConfig, features: usize, keep: Keep) -> Planned {
    let (d, h) = (config.d_model, config.output_length);
    let mut b = PlanBuilder::new("transformer", Context::Fixed(config.input_length));
    let embed = product(&mut b, "embed", d, features);
    let layers = (0..config.num_layers).map(|layer| sublayers(&mut b, config, layer)).collect();
    let head = product(&mut b, "head", h, d);
    b.begin(EntryKind::Full);
    let shape = [Dim::BATCH, config.input_length.into(), features.into()];
    let x = b.input("x", DType::F32, &shape);
    b.scope("embed");
    let embedded = b.one(Linear::new(x, embed.weight).bias(embed.bias))?;
    b.scope("encoder");
    let stack = Stack { keep, ..Stack::new(embedded, layers) };
    let encoded = b.one(Op::EncoderStack(stack))?;
    b.scope("head");
    let forecast = b.one(Linear::new(encoded, head.weight).bias(head.bias))?;
    lstm::finish(b, forecast, h, keep)
}

fn product(b: &mut PlanBuilder, name: &str, outputs: usize, inputs: usize) -> Product {
    let weight = b.weight(format!("{name}.weight"), &[outputs, inputs]);
    Product { weight, bias: Some(b.weight(format!("{name}.bias"), &[outputs])) }
}

/// Self-attention and feed-forward of one layer, each `x + f(norm(x))`.
fn sublayers(b: &mut PlanBuilder, config: &TransformerConfig, layer: usize) -> Vec<Sublayer> {
    let (d, heads) = (config.d_model, config.num_heads);
    let name = format!("encoder.layers.{layer}");
    let mut norm = |number: usize| NormWeights {
        kind: NormKind::Layer,
        weight: Some(b.weight(format!("{name}.norm{number}.weight"), &[d])),
        weight_offset: 0.0,
        bias: Some(b.weight(format!("{name}.norm{number}.bias"), &[d])),
        eps: 1e-5,
    };
    let (norm1, norm2) = (norm(1), norm(2));
    let [query, key, value] = PARTS.map(|part| Product {
        weight: b.weight(format!("{name}.self_attn.{IN_WEIGHT}.{part}"), &[d, d]),
        bias: Some(b.weight(format!("{name}.self_attn.{IN_BIAS}.{part}"), &[d])),
    });
    let attention = AttentionLayer {
        query,
        key,
        value,
        output: product(b, &format!("{name}.self_attn.out_proj"), d, d),
        heads,
        head: d / heads,
        scale: 1.0 / ((d / heads) as f32).sqrt(),
        causal: false,
        bias: None,
        rope: None,
        qk_norm: None,
        per_dim_scale: None,
    };
    let feed_forward = FeedForward {
        up: product(b, &format!("{name}.linear1"), config.d_ff, d),
        gate: None,
        down: product(b, &format!("{name}.linear2"), d, config.d_ff),
        activation: Activation::Gelu,
    };
    vec![
        Sublayer { kind: SublayerKind::SelfAttention(attention), norm: NormPlacement::Pre(norm1) },
        Sublayer { kind: SublayerKind::FeedForward(feed_forward), norm: NormPlacement::Pre(norm2) },
    ]
}

/// PyTorch's defaults, see [`TransformerModel`].
pub fn init(config: &TransformerConfig, features: usize, name: &str) -> Init {
    let is = |part: &str| name.contains(part);
    if is(".norm") {
        return Init::Constant(if name.ends_with(".weight") { 1.0 } else { 0.0 });
    }
    if is(IN_BIAS) || name.ends_with("out_proj.bias") {
        return Init::Constant(0.0);
    }
    if is(IN_WEIGHT) {
        return Init::Uniform((6.0 / (4.0 * config.d_model as f32)).sqrt());
    }
    let inputs = match () {
        () if is("embed.") => features,
        () if is(".linear2.") => config.d_ff,
        () => config.d_model,
    };
    Init::Uniform(1.0 / (inputs as f32).sqrt())
}

/// PyTorch stores queries, keys and values of a layer as one weight `[3·D, D]` and one bias
/// `[3·D]`; the plan names their thirds.
const PARTS: [&str; 3] = ["query", "key", "value"];
const IN_WEIGHT: &str = "in_proj_weight";
const IN_BIAS: &str = "in_proj_bias";

/// A file's weights with the joint projections of each layer cut into thirds.
fn split_projections<'a>(
    config: &TransformerConfig,
    file: &'a dyn WeightSource,
) -> Result<Rearranged<'a>> {
    let d = config.d_model;
    let mut stored = Rearranged::new(file);
    for layer in 0..config.num_layers {
        let shapes: [(&str, &[usize]); 2] = [(IN_WEIGHT, &[3 * d, d]), (IN_BIAS, &[3 * d])];
        for (part, expected) in shapes {
            let name = format!("encoder.layers.{layer}.self_attn.{part}");
            lazy::expect_tensor(file, &name, expected)?;
            let thirds = PARTS.map(|part| format!("{name}.{part}"));
            let thirds = thirds.each_ref().map(String::as_str);
            stored
                .split(&thirds, &name)
                .map_err(|error| Error::new(ErrorKind::Checkpoint, error))?;
        }
    }
    Ok(stored)
}
