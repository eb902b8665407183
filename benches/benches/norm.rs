//! `norm`: layer and RMS normalisation of the Transformers' rows.

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast_benches::{Bench, Case};
use neural_forecast_runtime::ops::Norm;

fn case(rows: usize, d: usize, layer: bool) -> Case {
    let kind = if layer { "layer" } else { "rms" };
    Case::new(format!("{kind} {rows}x{d}"), 1, &[&[rows, d]], |b, x| {
        let weight = b.weight("weight", &[d]);
        if layer {
            let bias = b.weight("bias", &[d]);
            b.one(Norm::layer(x[0], weight, bias, 1e-5))
        } else {
            b.one(Norm::rms(x[0], weight, 1e-6))
        }
    })
}

fn norm(c: &mut Criterion) {
    let mut bench = Bench::new(c, "norm");
    for (rows, d) in [(64, 128), (512, 768), (4096, 128)] {
        bench.bytes(&case(rows, d, true));
        bench.bytes(&case(rows, d, false));
    }
    bench.finish();
}

criterion_group!(benches, norm);
criterion_main!(benches);
