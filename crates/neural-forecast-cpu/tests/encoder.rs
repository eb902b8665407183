//! Whole encoders with enough rows that workers take rows through several steps without a meeting:
//! close to the reference, and the same bits for every team, batch and way of sharing the work.
//!
//! Small stacks with every option are conformance cases; in those the workers split columns.

mod machine;

use machine::{device, tiers};
use neural_forecast_cpu::CpuDevice;
use neural_forecast_runtime::device::{Device, KernelClass, LoadOptions, Precision, Request, Run};
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, FeedForward, Keep, Linear, NormKind, NormPlacement, NormWeights,
    Op, Product, Stack, Sublayer, SublayerKind,
};
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::testing::{Case, CaseBuilder, conform};

const FEATURES: usize = 5;

#[derive(Clone, Copy)]
struct Shape {
    d: usize,
    heads: usize,
    ff: usize,
    kind: NormKind,
    post: bool,
    keep: Keep,
}

fn product(b: &mut CaseBuilder, n: usize, k: usize) -> Product {
    Product { weight: b.weight(&[n, k]), bias: Some(b.bias(n)) }
}

fn norm(b: &mut CaseBuilder, shape: Shape) -> NormPlacement {
    let weights = NormWeights {
        kind: shape.kind,
        weight: Some(b.weight(&[shape.d])),
        weight_offset: 1.0,
        bias: (shape.kind != NormKind::Rms).then(|| b.bias(shape.d)),
        eps: 1e-5,
    };
    if shape.post { NormPlacement::Post(weights) } else { NormPlacement::Pre(weights) }
}

/// An embedding and two layers.
fn encoder(bucket: Bucket, shape: Shape) -> Case {
    let Shape { d, heads, ff, .. } = shape;
    let name = format!(
        "encoder {d}/{heads}/{ff} {:?} post {} {:?} {bucket:?}",
        shape.kind, shape.post, shape.keep
    );
    let mut b = CaseBuilder::new(name, bucket);
    b.terms(64 * (d + ff));
    let x = b.input(&[Dim::BATCH, Dim::LENGTH, FEATURES.into()]);
    let embedding = product(&mut b, d, FEATURES);
    let x = b.step(Linear::new(x, embedding.weight).bias(embedding.bias));
    let mut layers = Vec::new();
    for _ in 0..2 {
        let attention = AttentionLayer {
            query: product(&mut b, d, d),
            key: product(&mut b, d, d),
            value: product(&mut b, d, d),
            output: product(&mut b, d, d),
            heads,
            head: d / heads,
            scale: 1.0 / ((d / heads) as f32).sqrt(),
            causal: false,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        };
        let forward = FeedForward {
            up: product(&mut b, ff, d),
            gate: None,
            down: product(&mut b, d, ff),
            activation: Activation::Gelu,
        };
        let kinds = [SublayerKind::SelfAttention(attention), SublayerKind::FeedForward(forward)];
        layers.push(kinds.map(|kind| Sublayer { kind, norm: norm(&mut b, shape) }).to_vec());
    }
    let stack = Stack { keep: shape.keep, ..Stack::new(x, layers) };
    let y = b.step(Op::EncoderStack(stack));
    b.finish(&[y])
}

fn shapes() -> Vec<Shape> {
    let layer = NormKind::Layer;
    vec![
        Shape { d: 32, heads: 2, ff: 48, kind: layer, post: false, keep: Keep::Last(1) },
        Shape { d: 24, heads: 3, ff: 40, kind: layer, post: true, keep: Keep::All },
        Shape { d: 20, heads: 4, ff: 33, kind: NormKind::Rms, post: false, keep: Keep::All },
    ]
}

/// The rows of a case that begin at `first`, in a bucket of `batch` rows.
fn run(
    device: &CpuDevice,
    case: &Case,
    precision: Precision,
    first: usize,
    batch: usize,
) -> Vec<u32> {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let mut resident = device.load(&case.plan, &case.weights, &options).expect("it loads");
    let bucket = Bucket { batch, ..case.bucket };
    let request = Request { entry: case.entry, bucket, class: KernelClass::Throughput };
    let mut program = resident.compile(request).expect("it compiles");
    case.write(program.as_mut(), first..first + batch);
    program.submit(&Run { rows: batch, ..Run::default() }).expect("it runs");
    program.wait().expect("it ends");
    let mut y = vec![0.0; program.info().output_elements[0].0];
    program.read(0, &mut y).expect("a finished run can be read");
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn encoders_match_the_reference_however_they_are_shared() {
    for isa in tiers() {
        for shape in shapes() {
            for (batch, length) in [(1, 16), (1, 17), (1, 67), (3, 40), (5, 13)] {
                let case = encoder(Bucket { batch, length }, shape);
                for threads in [1, 2, 3] {
                    let found = conform(&device(isa, threads), &case, &LoadOptions::default());
                    let name = format!("{} on {}, {threads} threads", case.name, isa.name());
                    assert!(found.as_ref().is_ok_and(|ran| *ran), "{name}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn bits_are_the_same_for_every_team_and_batch() {
    for isa in tiers() {
        for shape in shapes() {
            let case = encoder(Bucket { batch: 5, length: 37 }, shape);
            for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
                let all = run(&device(isa, 1), &case, precision, 0, 5);
                let each = all.len() / 5;
                for (threads, batch) in [(2, 5), (3, 5), (1, 1), (2, 1), (3, 1), (4, 2)] {
                    for first in [0, 5 - batch] {
                        let part = run(&device(isa, threads), &case, precision, first, batch);
                        assert!(
                            part == all[first * each..(first + batch) * each],
                            "{} on {}: {threads} threads, {batch} rows from {first}",
                            case.name,
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}
