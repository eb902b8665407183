//! How time grows: latency with the steps of a window and with layers, time a window with the
//! batch.
//!
//! An LSTM and an encoder of the suite's small sizes, one dimension varied at a time. Prints for
//! each point the median of single calls and what it is of a straight line through the first point
//! (for batches: of the time a window at the first batch); 1.00 is linear, or flat. Attention's own
//! work grows with the square of the window and is part of the encoder's line: the FLOP of a point
//! are printed beside its time.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast::device::{self, DeviceChoice, DeviceOptions};
use neural_forecast::workloads::{self, Network, Positions, Workload};
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Program, Request, Run,
};
use neural_forecast_runtime::plan::{Bucket, EntryKind};

const TIMES: [usize; 5] = [25, 50, 100, 200, 400];
const LAYERS: [usize; 4] = [1, 2, 4, 8];
const BATCHES: [usize; 5] = [64, 128, 256, 512, 1024];

/// How long a point is measured.
const POINT: Duration = Duration::from_millis(500);

fn all(_: &mut Criterion) {
    let opened = device::open(DeviceChoice::Auto, &DeviceOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let device = &*opened.device;
    for name in ["lstm_a", "transformer_small"] {
        let base = workloads::named(name).unwrap_or_else(|error| panic!("{error}"));
        let times = TIMES.map(|time| (time, with(&base, Some(time), None), 1));
        line(device, name, "steps", &times);
        let layers = LAYERS.map(|layers| (layers, with(&base, None, Some(layers)), 1));
        line(device, name, "layers", &layers);
        let batches = BATCHES.map(|batch| (batch, base.clone(), batch));
        line(device, name, "batch", &batches);
    }
}

/// The workload with other steps or layers.
fn with(base: &Workload, time: Option<usize>, layers: Option<usize>) -> Workload {
    let mut workload = base.clone();
    match &mut workload.network {
        Network::Lstm(config) => {
            config.input_length = time.unwrap_or(config.input_length);
            config.num_layers = layers.unwrap_or(config.num_layers);
        }
        Network::Transformer(config) => {
            config.input_length = time.unwrap_or(config.input_length);
            config.num_layers = layers.unwrap_or(config.num_layers);
        }
    }
    workload
}

/// Times the points of one line: what is varied, the workload, the batch.
fn line(device: &dyn Device, name: &str, varied: &str, points: &[(usize, Workload, usize)]) {
    let mut first = None;
    for (point, workload, batch) in points {
        let time = median_us(device, workload, *batch);
        let unit = time / *point as f64;
        let of_line = unit / *first.get_or_insert(unit);
        let gflops = workload.flops_last(*batch) as f64 / time / 1e3;
        println!(
            "{name} {varied} {point}: p50 {time:.1} µs, {unit:.2} each, {of_line:.2} of the line, \
             {gflops:.0} GFLOP/s"
        );
    }
}

fn median_us(device: &dyn Device, workload: &Workload, batch: usize) -> f64 {
    let mut program = compile(device, workload, batch);
    let input = workload.inputs(batch, 1);
    let mut output = vec![0.0; program.info().output_elements[0].0];
    // A test wants to see every case run once.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (calls, limit) = if measured { (1000, POINT) } else { (1, Duration::ZERO) };
    let (mut times, start) = (Vec::with_capacity(calls), Instant::now());
    call(program.as_mut(), batch, &input, &mut output);
    while times.is_empty() || (times.len() < calls && start.elapsed() < limit) {
        let begun = Instant::now();
        call(program.as_mut(), batch, &input, &mut output);
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn compile(device: &dyn Device, workload: &Workload, batch: usize) -> Box<dyn Program> {
    let plan = workload.plan(Positions::Last).unwrap_or_else(|error| panic!("{error}"));
    let weights = workload.weights(&plan, 1);
    let bucket = Bucket { batch, length: workload.time() };
    let request = Request { entry: EntryKind::Full, bucket, class: KernelClass::Latency };
    device
        .load(&plan, &weights, &LoadOptions::default())
        .and_then(|mut resident| resident.compile(request))
        .unwrap_or_else(|error| panic!("{}: {error}", workload.name))
}

fn call(program: &mut dyn Program, batch: usize, input: &[f32], output: &mut [f32]) {
    program.write(0, Data::F32(input));
    let run = program.submit(&Run { rows: batch, slots: &[], cancel: None });
    run.and_then(|()| program.wait())
        .and_then(|()| program.read(0, output))
        .unwrap_or_else(|error| panic!("{error}"));
}

criterion_group!(benches, all);
criterion_main!(benches);
