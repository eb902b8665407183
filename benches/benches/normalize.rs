//! `normalize`: the scalers of windows, by mean and by median.

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast_benches::{Bench, Case};
use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Center, Masked, Normalize, Scaler, Spread, Statistics, ZeroSpread,
};

fn case(name: &str, center: Center, spread: Spread, batch: usize, time: usize) -> Case {
    Case::new(format!("{name} {batch}x{time}"), batch, &[&[time, 1]], |b, x| {
        let scaler =
            Scaler { center, spread, zero: ZeroSpread::Value(1.0), eps: 1e-5, asinh: false };
        let written = b.step(Normalize {
            x: x[0],
            mask: None,
            scaler,
            statistics: Statistics::Window,
            masked: Masked::Scaled,
            affine: None,
            running: None,
        })?;
        written.first().copied().ok_or_else(|| PlanError::new("normalize", "writes no value"))
    })
}

fn normalize(c: &mut Criterion) {
    let mut bench = Bench::new(c, "normalize");
    for (batch, time) in [(1, 336), (1024, 336)] {
        bench.bytes(&case("standard", Center::Mean, Spread::Deviation, batch, time));
        bench.bytes(&case("robust", Center::Median, Spread::MedianDeviation, batch, time));
        bench.bytes(&case("minmax", Center::Minimum, Spread::Range, batch, time));
    }
    bench.finish();
}

criterion_group!(benches, normalize);
criterion_main!(benches);
