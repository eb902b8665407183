//! `unary` and `binary`: activations and sums, as ops of their own.

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast_benches::{Bench, Case};
use neural_forecast_runtime::ops::{Activation, Binary, BinaryKind, Unary, UnaryKind};

fn unary(name: &str, kind: UnaryKind, rows: usize, width: usize) -> Case {
    Case::new(format!("{name} {rows}x{width}"), 1, &[&[rows, width]], |b, x| {
        b.one(Unary { x: x[0], kind })
    })
}

fn elementwise(c: &mut Criterion) {
    let mut bench = Bench::new(c, "elementwise");
    for (name, activation) in [
        ("relu", Activation::Relu),
        ("sigmoid", Activation::Sigmoid),
        ("tanh", Activation::Tanh),
        ("gelu", Activation::Gelu),
        ("gelu_tanh", Activation::GeluTanh),
        ("silu", Activation::Silu),
    ] {
        bench.bytes(&unary(name, UnaryKind::Activation(activation), 512, 768));
    }
    bench.bytes(&unary("softmax", UnaryKind::Softmax, 512, 768));
    bench.bytes(&unary("asinh", UnaryKind::Asinh, 512, 768));
    for (name, kind) in [("add", BinaryKind::Add), ("divide", BinaryKind::Divide)] {
        let shape: &[usize] = &[512, 768];
        bench.bytes(&Case::new(format!("{name} 512x768"), 1, &[shape, shape], |b, x| {
            // Divisors near 0 would make the check depend on rounding.
            let away = UnaryKind::Activation(Activation::Softplus);
            let divisor = match kind {
                BinaryKind::Divide => b.one(Unary { x: x[1], kind: away })?,
                _ => x[1],
            };
            b.one(Binary::values(x[0], kind, divisor))
        }));
    }
    bench.finish();
}

criterion_group!(benches, elementwise);
criterion_main!(benches);
