//! Cases of products, norms, elementwise ops, data movement, resampling and samples.
//!
//! Not sequences (`sequence`, `recurrent`) and not scalers (`scaling`).

use super::{Case, CaseBuilder};
use crate::ops::{
    Activation, Binary, BinaryKind, Concat, Distribution, Embedding, EmpiricalQuantiles, Expand,
    From, Gate, Gather, Interpolate, InterpolateKind, Linear, LinearAxis, Norm, NormKind, Operand,
    Patch, PatchPad, Pool, PoolKind, Ramp, Reshape, Sample, Slice, Transpose, Unary, UnaryKind,
    WeightedSum,
};
use crate::plan::{Bucket, DType, Dim, ValueId};

/// All activations, with parameters.
pub(crate) const ACTIVATIONS: [Activation; 11] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::Elu,
    Activation::Softplus,
    Activation::LeakyRelu(0.1),
    Activation::Selu,
];

pub(super) fn bucket(batch: usize, length: usize) -> Bucket {
    Bucket { batch, length }
}

/// One case of one step and one input `[B, T, width]`.
fn single(
    cases: &mut Vec<Case>,
    name: String,
    (batch, time, width): (usize, usize, usize),
    build: impl FnOnce(&mut CaseBuilder, ValueId) -> ValueId,
) {
    let mut case = CaseBuilder::new(name, bucket(batch, time));
    let x = case.input(&[Dim::BATCH, Dim::LENGTH, width.into()]);
    case.terms(width);
    let y = build(&mut case, x);
    cases.push(case.finish(&[y]));
}

/// `linear` and `norm`.
pub(super) fn products(cases: &mut Vec<Case>) {
    let sizes = [
        (1, 1, 1),
        (3, 7, 5),
        (8, 16, 16),
        (9, 17, 33),
        (2, 64, 48),
        (17, 127, 65),
        (1, 3, 257),
        (40, 300, 150),
    ];
    for (rows, k, n) in sizes {
        for bias in [false, true] {
            single(cases, format!("linear {rows}x{k}->{n} bias {bias}"), (rows, 3, k), |c, x| {
                let (weight, shift) = (c.weight(&[n, k]), c.bias(n));
                c.step(Linear::new(x, weight).bias(bias.then_some(shift)))
            });
        }
        single(cases, format!("linear {rows}x{k}->{n} all"), (rows, 2, k), |c, x| {
            let (weight, bias, gate) = (c.weight(&[n, k]), c.bias(n), c.weight(&[n, k]));
            let residual = c.input(&[Dim::BATCH, Dim::LENGTH, n.into()]);
            let (scale, shift, gate_bias) = (c.positive(k), c.bias(k), c.bias(n));
            let mut linear = Linear::new(x, weight)
                .bias(bias)
                .activation(Activation::Tanh)
                .gate(Gate { weight: gate, bias: Some(gate_bias), activation: Activation::Sigmoid })
                .residual(residual);
            linear.prologue = Some(Norm::layer(x, scale, shift, 1e-3));
            c.step(linear)
        });
    }
    for activation in ACTIVATIONS {
        single(cases, format!("linear ending in {activation:?}"), (5, 3, 19), |c, x| {
            let (weight, bias) = (c.weight(&[21, 19]), c.bias(21));
            c.step(Linear::new(x, weight).bias(bias).activation(activation))
        });
        single(cases, format!("linear gated by {activation:?}"), (5, 3, 19), |c, x| {
            let (weight, gate) = (c.weight(&[21, 19]), c.weight(&[21, 19]));
            c.step(Linear::new(x, weight).gate(Gate { weight: gate, bias: None, activation }))
        });
    }
    for (time, outputs, channels) in [(1, 1, 1), (7, 5, 3), (17, 33, 2), (96, 24, 7)] {
        let name = format!("linear over time {time}->{outputs} of {channels}");
        let mut c = CaseBuilder::new(name, bucket(3, time));
        let x = c.input(&[Dim::BATCH, time.into(), channels.into()]);
        let residual = c.input(&[Dim::BATCH, outputs.into(), channels.into()]);
        let (weight, bias, gate) =
            (c.weight(&[outputs, time]), c.bias(outputs), c.weight(&[outputs, time]));
        c.terms(time);
        let along = Linear::new(x, weight).bias(bias).along(LinearAxis::Time);
        let plain = c.step(along.clone().activation(Activation::Relu));
        let gate = Gate { weight: gate, bias: None, activation: Activation::Silu };
        let all = c.step(along.gate(gate).residual(residual));
        cases.push(c.finish(&[plain, all]));
    }
    for (heads, k, n) in [(1, 5, 3), (2, 8, 8), (3, 7, 17), (4, 16, 5)] {
        single(cases, format!("linear {heads} heads {k}->{n}"), (5, 3, heads * k), |c, x| {
            let (weight, bias) = (c.weight(&[heads, n, k]), c.bias(heads * n));
            let heads = LinearAxis::Heads(heads);
            c.step(Linear::new(x, weight).bias(bias).along(heads).activation(Activation::Gelu))
        });
    }
    ranks(cases);
    norms(cases);
}

/// Products of values of other ranks than three.
fn ranks(cases: &mut Vec<Case>) {
    let mut c = CaseBuilder::new("linear of a matrix", bucket(9, 1));
    let x = c.input(&[Dim::BATCH, 13.into()]);
    let weight = c.weight(&[4, 13]);
    c.terms(13);
    let y = c.step(Linear::new(x, weight));
    cases.push(c.finish(&[y]));

    let mut c = CaseBuilder::new("linear of rank four", bucket(2, 5));
    let x = c.input(&[Dim::BATCH, 3.into(), Dim::LENGTH, 6.into()]);
    let weight = c.weight(&[7, 6]);
    c.terms(6);
    let y = c.step(Linear::new(x, weight));
    cases.push(c.finish(&[y]));

    let mut c = CaseBuilder::new("linear without a batch", bucket(2, 11));
    let x = c.input(&[Dim::BATCH, 3.into()]);
    let ramp = c.step(Ramp { start: 0.5, length_factor: 0.0, factor: 0.1, count: 6.into() });
    let weight = c.weight(&[3, 6]);
    c.terms(6);
    let shared = c.step(Linear::new(ramp, weight));
    let y = c.step(Binary::values(x, BinaryKind::Add, shared));
    cases.push(c.finish(&[y]));
}

fn norms(cases: &mut Vec<Case>) {
    for width in [1, 4, 7, 16, 33, 130] {
        for (kind, what) in
            ["layer", "rms", "batch", "group", "one", "bare"].into_iter().enumerate()
        {
            single(cases, format!("norm {what} of {width}"), (3, 5, width), |c, x| {
                let (mean, variance) = (c.bias(width), c.positive(width));
                let (weight, bias) = (Some(c.positive(width)), Some(c.bias(width)));
                let groups = if width % 2 == 0 { 2 } else { 1 };
                let norm =
                    Norm { x, kind: NormKind::Layer, weight, weight_offset: 0.0, bias, eps: 1e-5 };
                c.step(match kind {
                    0 => norm,
                    1 => Norm { kind: NormKind::Rms, bias: None, ..norm },
                    2 => Norm { kind: NormKind::Batch { mean, variance }, ..norm },
                    3 => Norm { kind: NormKind::Group(groups), weight_offset: 1.0, ..norm },
                    4 => Norm { kind: NormKind::Rms, weight_offset: 1.0, ..norm },
                    _ => Norm { weight: None, bias: None, ..norm },
                })
            });
        }
    }
}

/// `unary`, `binary`, `weighted_sum`, `embedding`.
pub(super) fn elementwise(cases: &mut Vec<Case>) {
    let functions = [
        UnaryKind::Asinh,
        UnaryKind::Sinh,
        UnaryKind::Exp,
        UnaryKind::Affine { factor: -2.5, offset: 0.75 },
        UnaryKind::Softmax,
    ];
    let activations = ACTIVATIONS.map(UnaryKind::Activation);
    for kind in functions.into_iter().chain(activations) {
        for (rows, time, width) in [(1, 1, 1), (3, 5, 17), (2, 3, 64)] {
            let name = format!("unary {kind:?} of {rows}x{time}x{width}");
            single(cases, name, (rows, time, width), |c, x| {
                // Ten times as wide as the inputs, to reach where functions saturate.
                let wide = UnaryKind::Affine { factor: 10.0, offset: 0.0 };
                let wide = c.step(Unary { x, kind: wide });
                c.terms(30);
                c.step(Unary { x: wide, kind })
            });
        }
    }
    for kind in [UnaryKind::Observed, UnaryKind::NanToZero, UnaryKind::Sqrt] {
        let mut c = CaseBuilder::new(format!("unary {kind:?}"), bucket(4, 9));
        let shape = [Dim::BATCH, Dim::LENGTH];
        let mut element = |at: &[usize]| match (at[0] + at[1]) % 3 {
            0 => f64::NAN,
            _ => at[1] as f64,
        };
        let x = c.input_of(&shape, DType::F32, &mut element);
        let y = c.step(Unary { x, kind });
        cases.push(c.finish(&[y]));
    }
    binaries(cases);
    for (n, d, softmax) in [(1, 1, false), (5, 7, true), (16, 33, true), (9, 64, false)] {
        let name = format!("weighted_sum of {n}x{d} softmax {softmax}");
        let mut c = CaseBuilder::new(name, bucket(3, 4));
        let weights = c.input(&[Dim::BATCH, Dim::LENGTH, n.into()]);
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, n.into(), d.into()]);
        c.terms(n);
        let y = c.step(WeightedSum { weights, x, softmax });
        cases.push(c.finish(&[y]));
    }
    let mut c = CaseBuilder::new("embedding", bucket(5, 3));
    let indices = c.integers(&[Dim::BATCH, Dim::LENGTH], -2, 9);
    let table = c.weight(&[6, 17]);
    let y = c.step(Embedding { indices, table });
    cases.push(c.finish(&[y]));
}

fn binaries(cases: &mut Vec<Case>) {
    let kinds = [
        BinaryKind::Add,
        BinaryKind::Subtract,
        BinaryKind::Multiply,
        BinaryKind::Divide,
        BinaryKind::Maximum,
    ];
    for kind in kinds {
        let mut c = CaseBuilder::new(format!("binary {kind:?}"), bucket(3, 5));
        let (rows, time, width) = (Dim::BATCH, Dim::LENGTH, Dim::Fixed(17));
        let a = c.input(&[rows, time, width]);
        let away = |at: &[usize]| 0.5 + at.iter().sum::<usize>() as f64;
        let b = c.input_of(&[rows, time, width], DType::F32, &mut { away });
        let column = c.input_of(&[rows, time, 1.into()], DType::F32, &mut { away });
        let row = c.input_of(&[rows, 1.into(), width], DType::F32, &mut { away });
        let weight = c.positive(17);
        let same = c.step(Binary::values(a, kind, b));
        let same = c.step(Binary::values(same, kind, column));
        let same = c.step(Binary::values(same, kind, row));
        let y = c.step(Binary::weight(same, kind, weight));
        let with_itself = c.step(Binary::values(b, kind, b));
        c.terms(4);
        cases.push(c.finish(&[y, with_itself]));
    }
    let mut c = CaseBuilder::new("binary with a learned matrix", bucket(2, 3));
    let a = c.input(&[Dim::BATCH, 3.into(), 5.into()]);
    let positions = c.weight(&[3, 5]);
    let y = c.step(Binary::weight(a, BinaryKind::Add, positions));
    cases.push(c.finish(&[y]));
}

/// `concat`, `slice`, `gather`, `transpose`, `expand`, `reshape`, `ramp`, `patch`.
pub(super) fn movement(cases: &mut Vec<Case>) {
    let (rows, time) = (Dim::BATCH, Dim::LENGTH);
    let mut c = CaseBuilder::new("concat along each axis", bucket(3, 7));
    let a = c.input(&[rows, time, 5.into()]);
    let b = c.input(&[rows, time, 1.into()]);
    let token = c.input(&[rows, 2.into(), 5.into()]);
    let wide = c.step(Concat { parts: vec![a, b, a], axis: 2 });
    let long = c.step(Concat { parts: vec![token, a], axis: 1 });
    let one = c.step(Concat { parts: vec![b], axis: 2 });
    cases.push(c.finish(&[wide, long, one]));

    let mut c = CaseBuilder::new("slice from both ends", bucket(3, 9));
    let x = c.input(&[rows, time, 11.into()]);
    let last = c.step(Slice::last(x, 1, 4));
    let first = c.step(Slice::range(x, 1, 2, 3));
    let columns = c.step(Slice { x, axis: 2, from: From::Start(10), length: 1.into() });
    let all = c.step(Slice::last(x, 2, 11));
    cases.push(c.finish(&[last, first, columns, all]));

    let mut c = CaseBuilder::new("gather", bucket(3, 9));
    let x = c.input(&[rows, time, 5.into()]);
    let indices = c.integers(&[6.into()], -3, 12);
    let positions = c.step(Gather { x, axis: 1, indices });
    let columns = c.step(Gather { x, axis: 2, indices });
    cases.push(c.finish(&[positions, columns]));

    let mut c = CaseBuilder::new("transpose", bucket(3, 7));
    let x = c.input(&[rows, time, 5.into(), 2.into()]);
    let swapped = c.step(Transpose { x, permutation: vec![0, 2, 1, 3] });
    let turned = c.step(Transpose { x, permutation: vec![0, 3, 1, 2] });
    let same = c.step(Transpose { x, permutation: vec![0, 1, 2, 3] });
    cases.push(c.finish(&[swapped, turned, same]));

    let mut c = CaseBuilder::new("expand", bucket(3, 7));
    let x = c.input(&[rows, 5.into()]);
    let token = c.weight(&[2, 5]);
    let repeated = c.step(Expand { x: Operand::Value(x), axis: 1, count: time });
    let tail = c.step(Expand { x: Operand::Value(x), axis: 2, count: 3.into() });
    let tokens = c.step(Expand { x: Operand::Weight(token), axis: 0, count: rows });
    cases.push(c.finish(&[repeated, tail, tokens]));

    let mut c = CaseBuilder::new("reshape", bucket(3, 7));
    let x = c.input(&[rows, 4.into(), 6.into()]);
    let flat = c.step(Reshape { x, shape: vec![rows, 24.into()] });
    let folded = c.step(Reshape { x: flat, shape: vec![Dim::Batch(4), 2.into(), 3.into()] });
    let doubled = c.step(Unary { x: folded, kind: UnaryKind::Affine { factor: 2.0, offset: 0.0 } });
    cases.push(c.finish(&[flat, doubled]));

    let mut c = CaseBuilder::new("ramp", bucket(3, 10));
    let x = c.input(&[rows, time]);
    let ramp = c.step(Ramp { start: 1.0, length_factor: -1.0, factor: 0.125, count: time });
    let y = c.step(Binary::values(x, BinaryKind::Add, ramp));
    cases.push(c.finish(&[y, ramp]));

    let pads = [PatchPad::DropFirst, PatchPad::RepeatLast(3), PatchPad::ZeroFirst];
    for (length, p, s) in [(7, 3, 3), (16, 8, 8), (17, 4, 4), (16, 5, 2), (96, 16, 8), (3, 3, 1)] {
        for pad in pads.into_iter().filter(|&pad| p == s || pad != PatchPad::ZeroFirst) {
            let mut c =
                CaseBuilder::new(format!("patch {length} by {p}/{s} {pad:?}"), bucket(3, length));
            let x = c.input(&[rows, 2.into(), time]);
            let y = c.step(Patch { x, length: p, stride: s, pad });
            cases.push(c.finish(&[y]));
        }
    }
}

/// `pool`, `interpolate`, `empirical_quantiles`, `sample`.
pub(super) fn resampling(cases: &mut Vec<Case>) {
    let (rows, time) = (Dim::BATCH, Dim::LENGTH);
    for kind in [PoolKind::Maximum, PoolKind::Mean] {
        for (length, kernel) in [(1, 1), (7, 2), (16, 4), (17, 4), (9, 20)] {
            let mut c =
                CaseBuilder::new(format!("pool {kind:?} {length} by {kernel}"), bucket(3, length));
            let x = c.input(&[rows, time, 5.into()]);
            let windows = c.step(Pool { x, axis: 1, kernel: Some(kernel), kind });
            let whole = c.step(Pool { x, axis: 2, kernel: None, kind });
            c.terms(kernel);
            cases.push(c.finish(&[windows, whole]));
        }
    }
    let kinds = [InterpolateKind::Nearest, InterpolateKind::Linear, InterpolateKind::Cubic];
    for kind in kinds {
        for (knots, size) in [(1, 1), (1, 5), (3, 12), (4, 24), (12, 5), (7, 7)] {
            let mut c =
                CaseBuilder::new(format!("interpolate {kind:?} {knots}->{size}"), bucket(3, 1));
            let x = c.input(&[rows, 2.into(), knots.into()]);
            c.terms(4);
            let y = c.step(Interpolate { x, size, kind });
            cases.push(c.finish(&[y]));
        }
    }
    for samples in [1, 2, 9, 100] {
        let mut c = CaseBuilder::new(format!("empirical_quantiles of {samples}"), bucket(3, 4));
        let x = c.input(&[rows, time, samples.into()]);
        let levels = vec![0.0, 0.1, 0.5, 0.77, 1.0];
        let y = c.step(EmpiricalQuantiles { x, levels });
        cases.push(c.finish(&[y]));
    }
    for (distribution, width) in [(Distribution::Normal, 2), (Distribution::StudentT, 3)] {
        let mut c = CaseBuilder::new(format!("sample {distribution:?}"), bucket(3, 5));
        let mut element = |at: &[usize]| (width as f64 + at[1] as f64) / (at[2] + 1) as f64;
        let parameters = c.input_of(&[rows, time, width.into()], DType::F32, &mut element);
        let seed = c.integers(&[rows, 2.into()], -1000, 1000);
        // A sample near a pole of its formula loses digits.
        c.terms(400);
        let y = c.step(Sample { parameters, distribution, count: 7, seed });
        cases.push(c.finish(&[y]));
    }
}
