//! `linear`: products of the workloads' shapes, from one row to a batch of windows.

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast_benches::{Bench, Case};
use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::ops::{Activation, Linear};

fn case(rows: usize, k: usize, n: usize, activation: Activation) -> Case {
    Case::new(format!("{rows}x{k}x{n}"), 1, &[&[rows, k]], |b, x| {
        let weight = b.weight("weight", &[n, k]);
        let bias = b.weight("bias", &[n]);
        b.one(Linear::new(x[0], weight).bias(bias).activation(activation))
    })
}

fn linear(c: &mut Criterion) {
    let precisions = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];
    let mut bench = Bench::new(c, "linear").precisions(&precisions);
    // One row: a recurrent step, a head.
    for (k, n) in [(100, 400), (200, 800), (1000, 4000), (768, 3072)] {
        bench.flops(&case(1, k, n, Activation::Identity));
    }
    // A window: input products of a recurrence, projections of a small and a wide Transformer.
    for (rows, k, n) in [(50, 100, 400), (100, 500, 4000), (64, 128, 256), (512, 768, 2304)] {
        bench.flops(&case(rows, k, n, Activation::Identity));
    }
    bench.flops(&case(512, 768, 3072, Activation::Gelu));
    bench.flops(&case(512, 3072, 768, Activation::Identity));
    bench.finish();
}

criterion_group!(benches, linear);
criterion_main!(benches);
