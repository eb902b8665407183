//! Whole forecasts of one series through the library: windows, scaling, network, quantiles, stamps.
//!
//! The shipped models, and the folders named in `NF_BENCH_FOLDERS` (separated by colons), such as
//! neuralforecast's own defaults saved by `neuralforecast_defaults.py`. Prints p50, p99, p99.9 and
//! max of single calls beside criterion's mean, because users wait for calls and not for means.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast::calendar::TimeAxis;
use neural_forecast::checkpoint::Checkpoint;
use neural_forecast::device::{self, DeviceChoice, DeviceOptions};
use neural_forecast::forecaster::{ForecastRequest, Forecaster, ForecasterOptions};
use neural_forecast::frame::{Frame, Series};
use neural_forecast::shipped;

/// Steps of history, more than any measured model looks back.
const HISTORY: usize = 720;

/// Calls whose times make the percentiles.
const CALLS: usize = 2000;

fn all(c: &mut Criterion) {
    let mut checkpoints: Vec<(String, Checkpoint)> = shipped::names()
        .map(|name| (format!("shipped-{name}"), shipped::named(name).expect("it ships")))
        .collect();
    for folder in std::env::var("NF_BENCH_FOLDERS").unwrap_or_default().split(':') {
        if folder.is_empty() {
            continue;
        }
        let all = Checkpoint::open(folder).unwrap_or_else(|error| panic!("{error}"));
        for network in &all.models {
            let one = Checkpoint { models: vec![network.clone()], ..all.clone() };
            checkpoints.push((format!("neuralforecast-{}", network.alias), one));
        }
    }
    let open = device::open(DeviceChoice::Auto, &DeviceOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let frame = history();
    let mut group = c.benchmark_group("forecaster");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group.sample_size(10);
    for (name, checkpoint) in checkpoints {
        let horizon = checkpoint.horizon;
        let forecaster = Forecaster::new(checkpoint, &open, ForecasterOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let request = ForecastRequest { horizon: Some(horizon), ..ForecastRequest::default() };
        let call =
            || forecaster.predict(&frame, &request).unwrap_or_else(|e| panic!("{name}: {e}"));
        percentiles(&name, &call);
        group.bench_function(&name, |b| b.iter(call));
    }
}

fn percentiles<T>(name: &str, call: &impl Fn() -> T) {
    for _ in 0..CALLS / 10 {
        call();
    }
    let mut times: Vec<f64> = (0..CALLS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(call());
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((CALLS - 1) as f64 * share) as usize];
    let (p50, p99, p999, max) = (at(0.5), at(0.99), at(0.999), at(1.0));
    println!("{name}: p50 {p50:.1} µs, p99 {p99:.1}, p99.9 {p999:.1}, max {max:.1}");
}

/// One hourly series with a daily cycle.
fn history() -> Frame {
    let hour = 3_600_000_000;
    let series = Series {
        id: "a".to_string(),
        stamps: (0..HISTORY as i64).map(|t| t * hour).collect(),
        values: (0..HISTORY)
            .map(|t| 100.0 + 30.0 * (t as f32 * std::f32::consts::TAU / 24.0).sin())
            .collect(),
        exog: Vec::new(),
    };
    let axis = TimeAxis::DateTime(Default::default());
    let frequency = "h".parse().expect("pandas' name of an hour");
    Frame::from_series(axis, frequency, Vec::new(), vec![series]).expect("stamps on the grid")
}

criterion_group!(benches, all);
criterion_main!(benches);
