//! `attention`: the two Transformers' shapes and longer contexts.

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast_benches::{Bench, Case};
use neural_forecast_runtime::ops::{Attention, Columns};

fn case(batch: usize, time: usize, heads: usize, head: usize, causal: bool) -> Case {
    let d = heads * head;
    let name = format!("B{batch}xT{time}x{heads}x{head}{}", if causal { " causal" } else { "" });
    Case::new(name, batch, &[&[time, 3 * d]], |b, x| {
        let part = |i: usize| Columns { value: x[0], start: i * d, width: d };
        let scale = 1.0 / (head as f32).sqrt();
        let attention = Attention::new(part(0), part(1), part(2), heads, scale);
        b.one(Attention { causal, ..attention })
    })
}

fn attention(c: &mut Criterion) {
    let mut bench = Bench::new(c, "attention");
    for (batch, time, heads, head) in [(1, 64, 8, 16), (32, 64, 8, 16), (1, 512, 12, 64)] {
        bench.flops(&case(batch, time, heads, head, false));
    }
    bench.flops(&case(1, 2048, 4, 64, false));
    bench.flops(&case(1, 512, 12, 64, true));
    bench.finish();
}

criterion_group!(benches, attention);
criterion_main!(benches);
