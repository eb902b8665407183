//! Encoder stacks of sizes that tensor cores take, compared with the reference implementation.
//!
//! The shared cases have heads of four columns, which only the f32 kernels take. Without a GPU
//! nothing is tested, which is printed; `NF_REQUIRE=cuda` makes that a failure.

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::device::{Device, KernelClass, LoadOptions, Precision, Request, Run};
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, FeedForward, Keep, NormKind, NormPlacement, NormWeights, Op,
    Product, Stack, Sublayer, SublayerKind,
};
use neural_forecast_runtime::plan::{Bucket, Dim, EntryKind};
use neural_forecast_runtime::testing::{Case, CaseBuilder, conform_all, device_or_skip};

fn product(c: &mut CaseBuilder, outputs: usize, inputs: usize) -> Product {
    Product { weight: c.weight(&[outputs, inputs]), bias: Some(c.bias(outputs)) }
}

fn norm(c: &mut CaseBuilder, d: usize, kind: NormKind) -> NormWeights {
    let (weight, bias) = (Some(c.positive(d)), Some(c.bias(d)));
    NormWeights { kind, weight, weight_offset: 0.0, bias, eps: 1e-5 }
}

/// One shape of stack.
struct Shape {
    rows: usize,
    time: usize,
    heads: usize,
    head: usize,
    placement: usize,
    keep: Keep,
    masked: bool,
    causal: bool,
}

fn case(shape: &Shape) -> Case {
    let Shape { rows, time, heads, head, placement, keep, masked, causal } = *shape;
    let name = format!(
        "encoder_stack {rows}x{time} {heads}x{head} placement {placement} {keep:?} masked \
         {masked} causal {causal}"
    );
    let d = heads * head;
    let mut c = CaseBuilder::new(name, Bucket { batch: rows, length: time });
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, d.into()]);
    let mask = masked.then(|| c.mask(&[Dim::BATCH, Dim::LENGTH]));
    let mut layers = Vec::new();
    for l in 0..2 {
        let kind = if l == 0 { NormKind::Layer } else { NormKind::Rms };
        let place = |c: &mut CaseBuilder| match placement {
            0 => NormPlacement::None,
            1 => NormPlacement::Pre(norm(c, d, kind)),
            2 => NormPlacement::Post(norm(c, d, kind)),
            _ => NormPlacement::Sandwich { before: norm(c, d, kind), after: norm(c, d, kind) },
        };
        let attention = AttentionLayer {
            query: product(&mut c, d, d),
            key: product(&mut c, d, d),
            value: product(&mut c, d, d),
            output: product(&mut c, d, d),
            heads,
            head,
            scale: 1.0 / (head as f32).sqrt(),
            causal,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        };
        let norm = place(&mut c);
        let attention = Sublayer { kind: SublayerKind::SelfAttention(attention), norm };
        // Such that products that make up for norms divide it, also where 48 does not divide `d`.
        let ff = if d % 48 == 0 { 2 * d } else { 3 * d };
        let feed_forward = FeedForward {
            up: product(&mut c, ff, d),
            gate: (placement == 2).then(|| product(&mut c, ff, d)),
            down: product(&mut c, d, ff),
            activation: if placement == 2 { Activation::Silu } else { Activation::Gelu },
        };
        let norm = place(&mut c);
        let feed = Sublayer { kind: SublayerKind::FeedForward(feed_forward), norm };
        layers.push(vec![attention, feed]);
    }
    let final_norm = (placement != 2).then(|| norm(&mut c, d, NormKind::Layer));
    c.terms(400);
    let y = c.step(Op::EncoderStack(Stack { mask, keep, final_norm, ..Stack::new(x, layers) }));
    c.finish(&[y])
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [(3, 7, 2, 8), (2, 33, 4, 16), (3, 70, 2, 32), (2, 130, 2, 64), (1, 65, 1, 128)];
    for (i, (rows, time, heads, head)) in sizes.into_iter().enumerate() {
        for placement in 0..4 {
            let number = i * 4 + placement;
            let keep = [Keep::All, Keep::Last(1), Keep::Last(5)][number % 3];
            let (masked, causal) = (number % 2 == 1, number % 4 >= 2);
            let shape = Shape { rows, time, heads, head, placement, keep, masked, causal };
            cases.push(case(&shape));
        }
    }
    // Every size of the norm's kernels; a context of many tiles of keys.
    let wide = [(2, 512, 2, 64), (2, 9, 6, 64), (1, 20, 12, 64), (2, 5, 8, 128), (3, 85, 3, 64)];
    for (rows, time, heads, head) in wide {
        let (placement, keep, masked, causal) = (1, Keep::Last(1), false, false);
        cases.push(case(&Shape { rows, time, heads, head, placement, keep, masked, causal }));
    }
    // Norms ahead that products make up for, to the last position of the last layer.
    for (rows, time, heads, keep) in [(1, 64, 12, Keep::All), (2, 65, 6, Keep::Last(2))] {
        let (head, placement, masked, causal) = (64, 1, rows == 2, rows == 1);
        cases.push(case(&Shape { rows, time, heads, head, placement, keep, masked, causal }));
    }
    cases
}

#[test]
fn stacks_on_tensor_cores() {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    let mut failures = Vec::new();
    for (precision, more) in [
        (Precision::F32, 0.0),
        (Precision::Tf32, 0.006),
        (Precision::F16, 0.006),
        (Precision::Bf16, 0.04),
        (Precision::Int8, 0.06),
    ] {
        let cases: Vec<Case> = cases().iter().map(|case| case.widened(more)).collect();
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let (ran, failed) = conform_all(&device, &cases, &options);
        println!("{}: {ran} of {} ran, {} failed", precision.name(), cases.len(), failed.len());
        failures.extend(failed.into_iter().map(|m| format!("{}: {m}", precision.name())));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Products of few rows and of many, which describe the stream and make up for norms in tiles of
/// different kinds, or leave one of it to a kernel of its own.
#[test]
fn a_series_has_its_bits_in_every_batch() {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    let (time, heads, head, batch) = (256, 6, 64, 48);
    let shape = |rows| Shape {
        rows,
        time,
        heads,
        head,
        placement: 1,
        keep: Keep::Last(3),
        masked: false,
        causal: false,
    };
    // Weights follow from the name, which has the batch.
    let all = case(&shape(batch));
    for precision in [Precision::F16, Precision::Bf16, Precision::Tf32] {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let mut resident = device.load(&all.plan, &all.weights, &options).expect("it loads");
        let mut run = |first: usize, rows: usize| {
            let bucket = Bucket { batch: rows, length: time };
            let class = KernelClass::Latency;
            let request = Request { entry: EntryKind::Full, bucket, class };
            let mut program = resident.compile(request).expect("it compiles");
            all.write(&mut *program, first..first + rows);
            program.submit(&Run { rows, ..Run::default() }).expect("it starts");
            program.wait().expect("it runs");
            let mut y = vec![f32::NAN; rows * 3 * heads * head];
            program.read(0, &mut y).expect("it is there");
            assert!(y.iter().all(|y| y.is_finite()), "{} of {rows}", precision.name());
            y.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let together = run(0, batch);
        for (first, rows) in [(0, 1), (batch - 1, 1), (7, 5)] {
            let each = 3 * heads * head;
            let expected = &together[first * each..(first + rows) * each];
            assert!(run(first, rows) == expected, "{} from {first}", precision.name());
        }
    }
}
