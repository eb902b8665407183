//! Whole forecasts through the library: windows, scaling, network, quantiles, stamps.
//!
//! The shipped models, and the folders named in `NF_BENCH_FOLDERS` (separated by colons), such as
//! neuralforecast's own defaults saved by `neuralforecast_defaults.py`; `NF_BENCH_PRECISION=bf16`
//! is another format than f32. For one series it prints p50, p99, p99.9 and max of single calls
//! beside criterion's mean, because users wait for calls and not for means, and beside them the
//! forward program alone, called in turn with the whole forecast: what lies between the two is the
//! library's own work. For many series it prints series a second, whole and forward alone.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast::calendar::TimeAxis;
use neural_forecast::checkpoint::Checkpoint;
use neural_forecast::device::{self, DeviceChoice, DeviceOptions, OpenDevice};
use neural_forecast::engine::{Engine, EngineOptions};
use neural_forecast::forecaster::{ForecastRequest, Forecaster, ForecasterOptions};
use neural_forecast::frame::{Frame, Series};
use neural_forecast::models::Network;
use neural_forecast::shipped;
use neural_forecast_runtime::device::{Data, LoadOptions, Precision, Program, Request, Run};
use neural_forecast_runtime::plan::{Bucket, EntryKind};

/// Steps of history, more than any measured model looks back.
const HISTORY: usize = 720;

/// Calls whose times make the percentiles.
const CALLS: usize = 2000;

/// Series of a bulk forecast.
const MANY: usize = 10_000;

/// Bulk forecasts of which the median is taken.
const BULK_CALLS: usize = 5;

/// What all of it computes in: `NF_BENCH_PRECISION`, or f32.
fn precision() -> Precision {
    let named = std::env::var("NF_BENCH_PRECISION").ok();
    named.map_or(Precision::F32, |name| name.parse().expect("NF_BENCH_PRECISION is a precision"))
}

/// `measured` under `cargo bench`; `once` where a test only wants to see every case run.
fn sized(measured: usize, once: usize) -> usize {
    if std::env::args().any(|argument| argument == "--bench") { measured } else { once }
}

fn all(c: &mut Criterion) {
    let open = device::open(DeviceChoice::Auto, &DeviceOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let frame = history(1);
    let mut group = c.benchmark_group("forecaster");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group.sample_size(10);
    for (name, checkpoint) in checkpoints() {
        let mut forward = Forward::new(&open, &checkpoint.models[0], &frame, 1);
        let forecaster = forecaster(&name, checkpoint, &open);
        let call = || predict(&name, &forecaster, &frame);
        side_by_side(&name, &call, &mut || forward.call());
        group.bench_function(&name, |b| b.iter(call));
    }
}

fn bulk(_: &mut Criterion) {
    let open = device::open(DeviceChoice::Auto, &DeviceOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let (many, calls) = (sized(MANY, 64), sized(BULK_CALLS, 1));
    let frame = history(many);
    for (name, checkpoint) in checkpoints() {
        let network = &checkpoint.models[0];
        let options = EngineOptions { precision: precision(), ..EngineOptions::default() };
        let engine =
            Engine::new(open.device.as_ref(), network.plan.clone(), &network.weights, options)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        let rows = engine.rows_max().min(many);
        let mut forward = Forward::new(&open, network, &frame, rows);
        let forecaster = forecaster(&name, checkpoint, &open);
        let whole = median_us(calls, || drop(predict(&name, &forecaster, &frame)));
        let alone = median_us(calls, || forward.call());
        let (whole, alone) = (many as f64 / whole * 1e6, rows as f64 / alone * 1e6);
        let share = (alone / whole - 1.0) * 100.0;
        println!(
            "{name}: {many} series: {whole:.0} series/s; forward alone, batch {rows}: \
             {alone:.0}; the rest adds {share:.1}%"
        );
    }
}

/// What is measured, each with one network.
fn checkpoints() -> Vec<(String, Checkpoint)> {
    let mut all: Vec<(String, Checkpoint)> = shipped::names()
        .map(|name| (format!("shipped-{name}"), shipped::named(name).expect("it ships")))
        .collect();
    for folder in std::env::var("NF_BENCH_FOLDERS").unwrap_or_default().split(':') {
        if folder.is_empty() {
            continue;
        }
        let saved = Checkpoint::open(folder).unwrap_or_else(|error| panic!("{error}"));
        for network in &saved.models {
            let one = Checkpoint { models: vec![network.clone()], ..saved.clone() };
            all.push((format!("neuralforecast-{}", network.alias), one));
        }
    }
    all
}

fn forecaster(name: &str, checkpoint: Checkpoint, open: &OpenDevice) -> Forecaster {
    let options = ForecasterOptions { precision: precision(), ..ForecasterOptions::default() };
    Forecaster::new(checkpoint, open, options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn predict(
    name: &str,
    forecaster: &Forecaster,
    frame: &Frame,
) -> neural_forecast::forecaster::Forecast {
    forecaster
        .predict(frame, &ForecastRequest::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The program that a forecast runs, with its inputs in host memory: a write, a run, a read.
struct Forward {
    program: Box<dyn Program>,
    rows: usize,
    y: Vec<f32>,
    mask: Vec<f32>,
    forecast: Vec<f32>,
}

impl Forward {
    fn new(open: &OpenDevice, network: &Network, frame: &Frame, rows: usize) -> Forward {
        let load = LoadOptions { precision: precision(), ..LoadOptions::default() };
        let bucket = Bucket { batch: rows, length: network.context };
        let class = ForecasterOptions::default().class;
        let request = Request { entry: EntryKind::Full, bucket, class };
        let program = open
            .device
            .load(&network.plan, &network.weights, &load)
            .and_then(|mut resident| resident.compile(request))
            .unwrap_or_else(|error| panic!("{}: {error}", network.alias));
        let windows = frame.series[..rows].iter();
        let y: Vec<f32> = windows
            .flat_map(|series| &series.values[series.len() - network.context..])
            .copied()
            .collect();
        let mask = vec![1.0; y.len()];
        let forecast = vec![0.0; program.info().output_elements[0].0];
        Forward { program, rows, y, mask, forecast }
    }

    fn call(&mut self) {
        for index in 0..self.program.info().inputs.len() {
            let data = match self.program.info().inputs[index].name.as_str() {
                "y" => &self.y,
                "mask" => &self.mask,
                other => panic!("input `{other}`: networks with exogenous columns are not here"),
            };
            self.program.write(index, Data::F32(data));
        }
        self.program
            .submit(&Run { rows: self.rows, slots: &[], cancel: None })
            .and_then(|()| self.program.wait())
            .and_then(|()| self.program.read(0, &mut self.forecast))
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Times two ways in turn, so that a machine that slows down slows both.
fn side_by_side<T>(name: &str, whole: &impl Fn() -> T, forward: &mut impl FnMut()) {
    let calls = sized(CALLS, 1);
    let mut times = [Vec::with_capacity(calls), Vec::with_capacity(calls)];
    for number in 0..calls + calls / 10 {
        let first = time_us(whole);
        let second = time_us(&mut *forward);
        if number >= calls / 10 {
            times[0].push(first);
            times[1].push(second);
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let at = |times: &[f64], share: f64| times[((calls - 1) as f64 * share) as usize];
    let [whole, forward] = &times;
    let (p50, p99, p999, max) = (at(whole, 0.5), at(whole, 0.99), at(whole, 0.999), at(whole, 1.0));
    let alone = at(forward, 0.5);
    let share = (p50 / alone - 1.0) * 100.0;
    println!(
        "{name}: p50 {p50:.1} µs, p99 {p99:.1}, p99.9 {p999:.1}, max {max:.1}; forward alone p50 \
         {alone:.1}, the rest adds {:.1} ({share:.1}%)",
        p50 - alone
    );
}

fn median_us(calls: usize, mut call: impl FnMut()) -> f64 {
    call();
    let mut times: Vec<f64> = (0..calls).map(|_| time_us(&mut call)).collect();
    times.sort_by(f64::total_cmp);
    times[calls / 2]
}

fn time_us<T>(call: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(call());
    start.elapsed().as_secs_f64() * 1e6
}

/// Hourly series with a daily cycle, each with a level and a phase of its own.
fn history(series: usize) -> Frame {
    let hour = 3_600_000_000;
    let one = |number: usize| Series {
        id: format!("series {number}"),
        stamps: (0..HISTORY as i64).map(|t| t * hour).collect(),
        values: (0..HISTORY)
            .map(|t| {
                let phase = (t + number) as f32 * std::f32::consts::TAU / 24.0;
                100.0 + (number % 97) as f32 + 30.0 * phase.sin()
            })
            .collect(),
        exog: Vec::new(),
    };
    let axis = TimeAxis::DateTime(Default::default());
    let frequency = "h".parse().expect("pandas' name of an hour");
    let series = (0..series).map(one).collect();
    Frame::from_series(axis, frequency, Vec::new(), series).expect("stamps on the grid")
}

criterion_group!(benches, all, bulk);
criterion_main!(benches);
