//! Small encoders at the sizes that their one launch takes: alone, and between an embedding and a
//! head. Without a GPU nothing is tested, which is printed; `NF_REQUIRE=cuda` makes that a failure.

mod lingering;

use std::time::Instant;

use lingering::{forecast, served, with_pauses};
use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::device::{
    Device, KernelClass, LoadOptions, Precision, Program, Request,
};
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, FeedForward, Keep, Linear, NormKind, NormPlacement, NormWeights,
    Op, Product, Reshape, Stack, Sublayer, SublayerKind,
};
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::testing::{Case, CaseBuilder, conform_all, device_or_skip};

/// How the names of kernels of whole encoders begin.
const KERNELS: &str = "encoder_whole";

/// A stack's sizes.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    time: usize,
    width: usize,
    heads: usize,
    head: usize,
    inner: usize,
    layers: usize,
}

/// `transformer_small`, with fewer layers for the reference's sake.
const SMALL: Shape =
    Shape { rows: 3, time: 64, width: 128, heads: 8, head: 16, inner: 256, layers: 2 };

#[derive(Clone, Copy, PartialEq)]
enum Norms {
    PreLayer,
    PostLayer,
    PostBatch,
    PreRms,
    None,
}

fn product(c: &mut CaseBuilder, outputs: usize, inputs: usize) -> Product {
    Product { weight: c.weight(&[outputs, inputs]), bias: Some(c.bias(outputs)) }
}

fn placement(c: &mut CaseBuilder, norms: Norms, width: usize) -> NormPlacement {
    let kind = match norms {
        Norms::None => return NormPlacement::None,
        Norms::PreLayer | Norms::PostLayer => NormKind::Layer,
        Norms::PreRms => NormKind::Rms,
        Norms::PostBatch => NormKind::Batch { mean: c.bias(width), variance: c.positive(width) },
    };
    let weight = Some(c.positive(width));
    let bias = (norms != Norms::PreRms).then(|| c.bias(width));
    let norm = NormWeights { kind, weight, weight_offset: 0.0, bias, eps: 1e-5 };
    match norms {
        Norms::PreLayer | Norms::PreRms => NormPlacement::Pre(norm),
        _ => NormPlacement::Post(norm),
    }
}

fn layers(
    c: &mut CaseBuilder,
    shape: Shape,
    norms: Norms,
    activation: Activation,
    change: &dyn Fn(&mut CaseBuilder, &mut AttentionLayer, &mut FeedForward),
) -> Vec<Vec<Sublayer>> {
    let Shape { width, heads, head, inner, .. } = shape;
    let layer = |c: &mut CaseBuilder| {
        let mut a = AttentionLayer {
            query: product(c, heads * head, width),
            key: product(c, heads * head, width),
            value: product(c, heads * head, width),
            output: product(c, width, heads * head),
            heads,
            head,
            scale: 1.0 / (head as f32).sqrt(),
            causal: false,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        };
        let mut f = FeedForward {
            up: product(c, inner, width),
            gate: None,
            down: product(c, width, inner),
            activation,
        };
        change(c, &mut a, &mut f);
        let first = placement(c, norms, width);
        let second = placement(c, norms, width);
        vec![
            Sublayer { kind: SublayerKind::SelfAttention(a), norm: first },
            Sublayer { kind: SublayerKind::FeedForward(f), norm: second },
        ]
    };
    (0..shape.layers).map(|_| layer(c)).collect()
}

fn nothing(_: &mut CaseBuilder, _: &mut AttentionLayer, _: &mut FeedForward) {}

/// A stack alone.
fn stack(name: &str, shape: Shape, norms: Norms, activation: Activation, keep: Keep) -> Case {
    stack_with(name, shape, norms, activation, keep, &nothing)
}

fn stack_with(
    name: &str,
    shape: Shape,
    norms: Norms,
    activation: Activation,
    keep: Keep,
    change: &dyn Fn(&mut CaseBuilder, &mut AttentionLayer, &mut FeedForward),
) -> Case {
    let name = format!("{name} {}x{} {keep:?}", shape.rows, shape.time);
    let bucket = Bucket { batch: shape.rows, length: shape.time };
    let mut c = CaseBuilder::new(name, bucket);
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, shape.width.into()]);
    let layers = layers(&mut c, shape, norms, activation, change);
    c.terms(400);
    let y = c.step(Op::EncoderStack(Stack { keep, ..Stack::new(x, layers) }));
    c.finish(&[y])
}

/// Embedding, stack, head.
fn whole(name: &str, shape: Shape, norms: Norms, features: usize, outputs: usize) -> Case {
    let bucket = Bucket { batch: shape.rows, length: shape.time };
    let name = format!("whole {name} {}x{}x{features}", shape.rows, shape.time);
    let mut c = CaseBuilder::new(name, bucket);
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, features.into()]);
    let embed = product(&mut c, shape.width, features);
    let x = c.step(Linear::new(x, embed.weight).bias(embed.bias));
    let layers = layers(&mut c, shape, norms, Activation::Gelu, &nothing);
    c.terms(400);
    let stack = Stack { keep: Keep::Last(1), ..Stack::new(x, layers) };
    let y = c.step(Op::EncoderStack(stack));
    let head = product(&mut c, outputs, shape.width);
    let y = c.step(Linear::new(y, head.weight).bias(head.bias));
    let y = c.step(Reshape { x: y, shape: vec![Dim::BATCH, outputs.into(), Dim::Fixed(1)] });
    c.finish(&[y])
}

fn cases() -> Vec<Case> {
    let gelu = Activation::Gelu;
    let mut cases = vec![
        stack("plain", SMALL, Norms::PreLayer, gelu, Keep::Last(1)),
        stack("plain", Shape { rows: 7, ..SMALL }, Norms::PreLayer, gelu, Keep::All),
        stack("plain", Shape { rows: 1, ..SMALL }, Norms::PreLayer, gelu, Keep::Last(20)),
        whole("plain", SMALL, Norms::PreLayer, 16, 10),
        whole("plain", Shape { rows: 1, ..SMALL }, Norms::PreLayer, 16, 10),
        whole("odd", Shape { time: 17, ..SMALL }, Norms::PostLayer, 7, 33),
        whole("one position", Shape { time: 1, ..SMALL }, Norms::PreLayer, 3, 1),
    ];
    for (rows, time) in [(1, 1), (2, 15), (3, 16), (7, 17), (5, 63), (2, 65), (3, 128)] {
        let shape = Shape { rows, time, ..SMALL };
        cases.push(stack("sizes", shape, Norms::PreLayer, gelu, Keep::All));
        cases.push(stack("sizes", shape, Norms::PreLayer, gelu, Keep::Last(1)));
    }
    let patches = Shape { rows: 7, time: 42, heads: 16, head: 8, ..SMALL };
    cases.push(stack("batch norms", patches, Norms::PostBatch, gelu, Keep::All));
    let narrow = Shape { rows: 33, time: 12, width: 16, heads: 4, head: 4, inner: 128, layers: 3 };
    cases.push(stack("narrow", narrow, Norms::PostBatch, gelu, Keep::All));
    let odd = Shape { rows: 5, time: 50, width: 101, heads: 3, head: 7, inner: 33, layers: 2 };
    cases.push(stack("odd", odd, Norms::None, Activation::Relu, Keep::Last(2)));
    let wide = Shape { rows: 2, time: 20, width: 64, heads: 1, head: 64, inner: 500, layers: 1 };
    cases.push(stack("wide head", wide, Norms::PostLayer, Activation::Silu, Keep::All));
    let gated = Shape { rows: 3, time: 40, width: 96, heads: 3, head: 32, inner: 100, layers: 2 };
    let change = |c: &mut CaseBuilder, a: &mut AttentionLayer, f: &mut FeedForward| {
        a.causal = true;
        f.gate = Some(product(c, 100, 96));
    };
    let activation = Activation::Silu;
    cases.push(stack_with("gated", gated, Norms::PreRms, activation, Keep::All, &change));
    cases
}

fn program(device: &CudaDevice, case: &Case, precision: Precision) -> Box<dyn Program> {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let mut resident = device.load(&case.plan, &case.weights, &options).expect("the plan loads");
    let request = Request { entry: case.entry, bucket: case.bucket, class: KernelClass::Latency };
    resident.compile(request).expect("the program compiles")
}

/// Windows in turn, with pauses around the time that the kernel lingers; every number of layers,
/// because two barriers take turns.
#[test]
fn lingering_changes_no_bits() {
    const LINGER_US: u32 = 20;
    let Some(device) = device_or_skip("cuda", CudaDevice::open(0, CudaOptions::default())) else {
        return;
    };
    let options = CudaOptions { linger_us: LINGER_US, ..CudaOptions::default() };
    let lingering = CudaDevice::open(0, options).expect("it opened before");
    for (layers, features, precision) in
        [(3, 16, Precision::F16), (1, 7, Precision::F16), (2, 16, Precision::Bf16)]
    {
        let shape = Shape { rows: 1, layers, ..SMALL };
        let case = whole("lingering", shape, Norms::PreLayer, features, 10);
        let mut plain = program(&device, &case, precision);
        let mut kept = program(&lingering, &case, precision);
        let name = format!("{}, {layers} layers", case.name);
        let stays = (&lingering, LINGER_US, KERNELS);
        let (_, without) = with_pauses(&name, plain.as_mut(), kept.as_mut(), stays, 3000);
        assert!(without > 0, "{name}: never lingered");
    }
}

#[test]
#[ignore = "prints times, for a GPU that does nothing else"]
fn times_of_the_workload() {
    for linger_us in [0, 200] {
        let options = CudaOptions { linger_us, ..CudaOptions::default() };
        let Some(device) = device_or_skip("cuda", CudaDevice::open(0, options)) else { return };
        let shape = Shape { rows: 1, layers: 3, ..SMALL };
        let case = whole("transformer_small", shape, Norms::PreLayer, 16, 10);
        let mut program = program(&device, &case, Precision::F16);
        let x = vec![0.25; program.info().input_elements[0].0];
        let mut once = || {
            let begun = Instant::now();
            forecast(program.as_mut(), &x);
            begun.elapsed().as_secs_f64() * 1e6
        };
        let mut times: Vec<f64> = (0..5000).map(|_| once()).skip(500).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[(share * (times.len() - 1) as f64) as usize];
        let [p50, p99, p999, most] = [0.5, 0.99, 0.999, 1.0].map(at);
        let launches = served(&device, KERNELS).0;
        println!(
            "lingering for {linger_us} us: p50 {p50:.1} us, p99 {p99:.1}, p99.9 {p999:.1}, max \
             {most:.1}, {launches} launches"
        );
    }
}

#[test]
fn one_launch_is_what_the_reference_computes() {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    for (precision, more) in [(Precision::F16, 0.01), (Precision::Bf16, 0.08)] {
        let cases: Vec<Case> = cases().iter().map(|case| case.widened(more)).collect();
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let (ran, failed) = conform_all(&device, &cases, &options);
        println!("{}: {ran} of {}, {} failed", precision.name(), cases.len(), failed.len());
        assert!(failed.is_empty(), "{}:\n{}", precision.name(), failed.join("\n"));
        assert_eq!(ran, cases.len());
    }
}
