//! Networks with random weights, as plans: what the measuring examples run.
//!
//! The benchmark suite's own workloads are the library's; this crate knows no models, so the shapes
//! are given by numbers. The seed is fixed.
#![allow(dead_code, reason = "each example that includes this file uses a part of it")]

use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, Binary, BinaryKind, Cell, Center, Denormalize, FeedForward,
    Initial, Keep, Linear, NormKind, NormPlacement, NormWeights, Normalize, Op, Patch, PatchPad,
    Product, Reshape, RnnStack, RnnWeights, Scaler, Spread, Stack, Sublayer, SublayerKind,
    ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Context, DType, Dim, EntryKind, Plan, PlanBuilder, ValueId, WeightId,
};

/// Why an example cannot go on.
pub(crate) type Failure = Box<dyn std::error::Error>;

struct Build {
    plan: PlanBuilder,
    weights: MemoryWeights,
    count: usize,
    state: u64,
}

impl Build {
    fn float(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn weight(&mut self, shape: &[usize]) -> WeightId {
        let name = format!("w{}", self.count);
        self.count += 1;
        let scale = 1.0 / (shape.last().copied().unwrap_or(1) as f32).sqrt();
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| self.float() * scale).collect();
        self.weights.insert(name.clone(), shape, &values);
        self.plan.weight(name, shape)
    }

    fn product(&mut self, n: usize, k: usize) -> Product {
        Product { weight: self.weight(&[n, k]), bias: Some(self.weight(&[n])) }
    }

    fn norm(&mut self, d: usize) -> NormWeights {
        let (weight, bias) = (Some(self.weight(&[d])), Some(self.weight(&[d])));
        NormWeights { kind: NormKind::Layer, weight, weight_offset: 1.0, bias, eps: 1e-5 }
    }

    fn batch_norm(&mut self, d: usize) -> NormWeights {
        let mean = self.weight(&[d]);
        let name = format!("w{}", self.count);
        self.count += 1;
        // A variance is positive.
        let values: Vec<f32> = (0..d).map(|_| 1.0 + 0.5 * self.float()).collect();
        self.weights.insert(name.clone(), &[d], &values);
        let variance = self.plan.weight(name, &[d]);
        let (weight, bias) = (Some(self.weight(&[d])), Some(self.weight(&[d])));
        let kind = NormKind::Batch { mean, variance };
        NormWeights { kind, weight, weight_offset: 1.0, bias, eps: 1e-5 }
    }
}

fn start(name: &str, steps: usize) -> Build {
    let mut plan = PlanBuilder::new(name, Context::Fixed(steps));
    plan.begin(EntryKind::Full);
    Build { plan, weights: MemoryWeights::new(), count: 0, state: 42 }
}

/// LSTM layers over `[B, steps, features]`, a head on the last position.
pub(crate) fn lstm(
    name: &str,
    input: (usize, usize),
    shape: (usize, usize),
    out: usize,
    directions: usize,
) -> Result<(Plan, MemoryWeights), Failure> {
    recurrent(name, Cell::Lstm, input, shape, out, directions)
}

/// Recurrent layers of a cell over `[B, steps, features]`, a head on the last position.
pub(crate) fn recurrent(
    name: &str,
    cell: Cell,
    (steps, features): (usize, usize),
    (layers, d): (usize, usize),
    out: usize,
    directions: usize,
) -> Result<(Plan, MemoryWeights), Failure> {
    let mut b = start(name, steps);
    let x = b.plan.input("x", DType::F32, &[Dim::BATCH, steps.into(), features.into()]);
    let (mut stack, gates) = (Vec::new(), cell.gates() * d);
    for l in 0..layers {
        let k = if l == 0 { features } else { directions * d };
        let mut layer = Vec::new();
        for _ in 0..directions {
            layer.push(RnnWeights {
                w_ih: b.weight(&[gates, k]),
                w_hh: b.weight(&[gates, d]),
                b_ih: Some(b.weight(&[gates])),
                b_hh: Some(b.weight(&[gates])),
                w_hr: None,
            });
        }
        stack.push(layer);
    }
    let h = b.plan.one(RnnStack {
        x,
        cell,
        hidden: d,
        projection: None,
        layers: stack,
        initial: Initial::Zero,
        states: None,
        keep: Keep::Last(1),
        finals: false,
    })?;
    finish(b, h, directions * d, out)
}

/// Pre-norm encoder layers over `[B, steps, features]`, a head on the last position.
pub(crate) fn transformer(
    name: &str,
    (steps, features): (usize, usize),
    (layers, d, heads, ff): (usize, usize, usize, usize),
    out: usize,
) -> Result<(Plan, MemoryWeights), Failure> {
    let mut b = start(name, steps);
    let x = b.plan.input("x", DType::F32, &[Dim::BATCH, steps.into(), features.into()]);
    let embed = b.product(d, features);
    let x = b.plan.one(Linear::new(x, embed.weight).bias(embed.bias))?;
    let stack = encoder(&mut b, layers, d, heads, ff, |b| NormPlacement::Pre(b.norm(d)));
    let stack = Stack { keep: Keep::Last(1), ..Stack::new(x, stack) };
    let h = b.plan.one(Op::EncoderStack(stack))?;
    finish(b, h, d, out)
}

/// Encoder layers of self-attention and feed-forward, `norm` before or after each sublayer.
fn encoder(
    b: &mut Build,
    layers: usize,
    d: usize,
    heads: usize,
    ff: usize,
    norm: impl Fn(&mut Build) -> NormPlacement,
) -> Vec<Vec<Sublayer>> {
    let mut stack = Vec::new();
    for _ in 0..layers {
        let head = d / heads;
        let attention = AttentionLayer {
            query: b.product(d, d),
            key: b.product(d, d),
            value: b.product(d, d),
            output: b.product(d, d),
            heads,
            head,
            scale: 1.0 / (head as f32).sqrt(),
            causal: false,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        };
        let norms = [norm(b), norm(b)];
        let forward = FeedForward {
            up: b.product(ff, d),
            gate: None,
            down: b.product(d, ff),
            activation: Activation::Gelu,
        };
        stack.push(vec![
            Sublayer { kind: SublayerKind::SelfAttention(attention), norm: norms[0] },
            Sublayer { kind: SublayerKind::FeedForward(forward), norm: norms[1] },
        ]);
    }
    stack
}

/// A PatchTST-like network: a window of one channel scaled, in overlapping patches, through an
/// encoder with batch norms, all patches into one head, and scaled back.
pub(crate) fn patches(
    name: &str,
    (steps, horizon): (usize, usize),
    (length, stride): (usize, usize),
    (layers, d, heads, ff): (usize, usize, usize, usize),
) -> Result<(Plan, MemoryWeights), Failure> {
    let mut b = start(name, steps);
    let x = b.plan.input("x", DType::F32, &[Dim::BATCH, steps.into(), 1.into()]);
    let (center, spread) = (Center::Mean, Spread::Deviation);
    let scaler = Scaler { center, spread, zero: ZeroSpread::Value(1.0), eps: 1e-5, asinh: false };
    let scaled = b.plan.step(Normalize::window(x, None, scaler))?;
    let [scaled, statistics] = scaled[..] else { return Err("a scaler writes two values".into()) };
    let x = b.plan.one(Reshape { x: scaled, shape: vec![Dim::BATCH, steps.into()] })?;
    let pad = PatchPad::RepeatLast(stride);
    let x = b.plan.one(Patch { x, length, stride, pad })?;
    let embed = b.product(d, length);
    let x = b.plan.one(Linear::new(x, embed.weight).bias(embed.bias))?;
    let count = (steps + stride - length) / stride + 1;
    let positions = b.weight(&[count, d]);
    let x = b.plan.one(Binary::weight(x, BinaryKind::Add, positions))?;
    let stack = encoder(&mut b, layers, d, heads, ff, |b| NormPlacement::Post(b.batch_norm(d)));
    let h = b.plan.one(Op::EncoderStack(Stack::new(x, stack)))?;
    let flat = b.plan.one(Reshape { x: h, shape: vec![Dim::BATCH, (count * d).into()] })?;
    let head = b.product(horizon, count * d);
    let y = b.plan.one(Linear::new(flat, head.weight).bias(head.bias))?;
    let y = b.plan.one(Reshape { x: y, shape: vec![Dim::BATCH, horizon.into(), 1.into()] })?;
    let (prefix, channel, affine) = (false, Some(0), None);
    let y = b.plan.one(Denormalize { x: y, statistics, prefix, channel, scaler, affine })?;
    b.plan.output("y", y, Vec::new());
    Ok((b.plan.finish()?, b.weights))
}

fn finish(
    mut b: Build,
    h: ValueId,
    width: usize,
    out: usize,
) -> Result<(Plan, MemoryWeights), Failure> {
    let flat = b.plan.one(Reshape { x: h, shape: vec![Dim::BATCH, width.into()] })?;
    let head = b.product(out, width);
    let y = b.plan.one(Linear::new(flat, head.weight).bias(head.bias))?;
    b.plan.output("y", y, Vec::new());
    Ok((b.plan.finish()?, b.weights))
}
