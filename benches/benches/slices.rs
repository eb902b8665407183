//! Operations over plain slices, which pack the right side of a product every time.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use neural_forecast::gpu::simd_fallback::SIMDMatrixOps;

fn slices(c: &mut Criterion) {
    let ops = SIMDMatrixOps::new();
    let mut group = c.benchmark_group("slices");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.sample_size(20);
    for size in [64, 256, 1024] {
        let a: Vec<f32> = (0..size * size).map(|i| (i % 13) as f32 - 6.0).collect();
        let mut y = vec![0.0; a.len()];
        group.throughput(Throughput::Elements(2 * (size as u64).pow(3)));
        group.bench_function(BenchmarkId::new("matmul", size), |b| {
            b.iter(|| ops.matmul_f32(&a, &a, &mut y, size, size, size));
        });
    }
    let x: Vec<f32> = (0..1 << 20).map(|i| (i % 17) as f32 * 0.5 - 4.0).collect();
    let mut y = vec![0.0; x.len()];
    group.throughput(Throughput::Bytes(8 * x.len() as u64));
    group.bench_function("relu/1048576", |b| b.iter(|| ops.relu_f32(&x, &mut y)));
    group.bench_function("tanh/1048576", |b| b.iter(|| ops.tanh_f32(&x, &mut y)));
    group.bench_function("softmax/1024x1024", |b| b.iter(|| ops.softmax_f32(&x, &mut y, 1024)));
}

criterion_group!(benches, slices);
criterion_main!(benches);
