//! Latency of the benchmark suite's shapes on this machine: `cargo run --release --example
//! workloads [name | grid] [--f16 | --bf16 | --int8] [--threads N]`. Random weights; p50 and least
//! of repeated runs, input in host memory to result in host memory; how far another precision is
//! off f32. `grid` varies steps and layers.
//!
//! For tuning this crate; the project's benchmarks compare with peers.

mod networks;

use networks::{Failure, lstm, transformer};
use neural_forecast_cpu::{CpuDevice, CpuOptions};
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Precision, Program, Request, Run,
};
use neural_forecast_runtime::plan::{Bucket, EntryKind, Plan};
use std::time::{Duration, Instant};

/// Steps and layers of `lstm_a`'s neighbours: latency should be linear in both.
const GRID: [(usize, usize); 8] =
    [(25, 2), (50, 2), (100, 2), (200, 2), (400, 2), (100, 1), (100, 4), (100, 8)];

/// Microseconds that the calling thread was on a core, where the system says so: what a run costs
/// on a machine that is not quiet.
fn cpu_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e3
}

fn measure(
    device: &CpuDevice,
    precision: Precision,
    exact: Option<&[f32]>,
    (plan, weights): &(Plan, MemoryWeights),
    (steps, features): (usize, usize),
    batch: usize,
) -> Result<Vec<f32>, Failure> {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let mut resident = device.load(plan, weights, &options)?;
    let bucket = Bucket { batch, length: steps };
    let request = Request { entry: EntryKind::Full, bucket, class: KernelClass::Latency };
    let mut program = resident.compile(request)?;
    let x: Vec<f32> = (0..batch * steps * features).map(|i| ((i * 37) as f32).sin()).collect();
    let mut y = vec![0.0; program.info().output_elements[0].0];
    let mut once = |program: &mut Box<dyn Program>| -> Result<Duration, Failure> {
        let start = Instant::now();
        program.write(0, Data::F32(&x));
        program.submit(&Run { rows: batch, ..Run::default() })?;
        program.wait()?;
        program.read(0, &mut y)?;
        Ok(start.elapsed())
    };
    for _ in 0..3 {
        once(&mut program)?;
    }
    let (mut times, begin, cpu) = (Vec::new(), Instant::now(), cpu_time());
    while times.len() < 2000 && begin.elapsed() < Duration::from_millis(1500) {
        times.push(once(&mut program)?);
    }
    let cpu = (cpu_time() - cpu) / times.len().max(1) as f64;
    times.sort();
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    let flops = program.info().flops as f64;
    let (p50, least) = (us(times[times.len() / 2]), us(times[0]));
    // Largest error over the root mean square of what f32 forecasts.
    let error = exact.map_or(0.0, |exact| {
        let most = y.iter().zip(exact).fold(0f32, |most, (y, e)| most.max((y - e).abs()));
        let square = exact.iter().map(|e| e * e).sum::<f32>() / exact.len() as f32;
        most / square.sqrt()
    });
    println!(
        "{:18} {:5} B {batch:4}  p50 {p50:11.1} µs  min {least:11.1} µs  {:7.1} GFLOP/s, \
         caller's CPU {cpu:11.1} µs, off by {error:.5}",
        plan.name,
        precision.name(),
        flops / p50 / 1e3
    );
    Ok(y)
}

/// One model at one batch; other precisions after f32, which they are compared with.
fn compare(
    device: &CpuDevice,
    precision: Precision,
    model: &(Plan, MemoryWeights),
    input: (usize, usize),
    batch: usize,
) -> Result<(), Failure> {
    let exact = measure(device, Precision::F32, None, model, input, batch)?;
    if precision != Precision::F32 {
        measure(device, precision, Some(&exact), model, input, batch)?;
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let asked = |flag: &str| arguments.iter().any(|a| a == flag);
    let precision = match () {
        () if asked("--f16") => Precision::F16,
        () if asked("--bf16") => Precision::Bf16,
        () if asked("--int8") => Precision::Int8,
        () => Precision::F32,
    };
    let threads = arguments.iter().position(|a| a == "--threads");
    let threads = threads.and_then(|i| arguments.get(i + 1)?.parse().ok());
    let device = CpuDevice::new(CpuOptions { threads, ..CpuOptions::default() })?;
    let wanted = |name: &str| {
        let named = arguments.first().filter(|a| !a.starts_with("--"));
        named.is_none_or(|a| name.starts_with(a.as_str()))
    };
    println!("{} x {}", device.isa().name(), device.threads());
    let recurrent = [
        ("lstm_a", (50, 100), (2, 100), 1, 1, [1].as_slice()),
        ("lstm_b", (100, 250), (3, 200), 1, 1, &[1]),
        ("lstm_c", (100, 500), (4, 1000), 1, 1, &[1]),
        ("lstm_guide_128", (100, 10), (2, 128), 10, 2, &[1, 32, 512]),
        ("lstm_guide_256", (100, 10), (2, 256), 10, 2, &[1, 32]),
    ];
    for (name, input, shape, out, directions, batches) in recurrent {
        if wanted(name) {
            let model = lstm(name, input, shape, out, directions)?;
            for &batch in batches {
                compare(&device, precision, &model, input, batch)?;
            }
        }
    }
    if arguments.first().is_some_and(|a| a == "grid") {
        for (steps, layers) in GRID {
            let model = lstm(&format!("t{steps} l{layers}"), (steps, 100), (layers, 100), 1, 1)?;
            compare(&device, precision, &model, (steps, 100), 1)?;
        }
    }
    let encoders = [
        ("transformer_small", (64, 16), (3, 128, 8, 256), [1, 32, 512].as_slice()),
        ("transformer_guide", (512, 768), (6, 768, 12, 3072), &[1]),
    ];
    for (name, input, shape, batches) in encoders {
        if wanted(name) {
            let model = transformer(name, input, shape, 10)?;
            for &batch in batches {
                compare(&device, precision, &model, input, batch)?;
            }
        }
    }
    Ok(())
}
