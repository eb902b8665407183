//! Runs workloads with a clock, and compares their forecasts with the reference.
//!
//! Uses the device contract directly, so that a call on the clock is a write, a run and a read and
//! nothing else.

use std::time::Instant;

use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::arena::{ArenaPlan, MemoryLine};
use neural_forecast_runtime::device::{
    Data, Device, DeviceKind, KernelClass, LoadOptions, Precision, Program, Request, Resident, Run,
};
use neural_forecast_runtime::plan::{Bucket, EntryKind, Plan};
use neural_forecast_runtime::reference::{Tensor, load_weights, run_loaded, zero_states};

use super::{BenchOptions, BenchResult, Latency, Mode, Positions, Workload, all, named};
use crate::config::GPUConfig;
use crate::device::{self, DeviceOptions};
use crate::engine::device_error;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::run_info::{RunInfo, launched, weights_hash};

/// Largest batch that may be asked for; the tables end at 16384.
const BATCH_MAX: usize = 1 << 16;

/// Most bytes of a program's values, so that a mistyped batch is an error and not a machine out of
/// memory.
const ARENA_BYTES_MAX: usize = 4 << 30;

/// Sets of windows that calls take in turn, so that no call finds its input in the cache of the one
/// before; fewer where they would take more than [`INPUT_BYTES_MAX`].
const INPUT_SETS: usize = 8;
const INPUT_BYTES_MAX: usize = 256 << 20;

/// Runs whose device time is read.
const DEVICE_CLOCK_RUNS: usize = 100;

/// Measures everything that is asked for.
///
/// # Errors
/// `Usage`: an unknown workload or an impossible batch; `Device`, `Unsupported`: what the device
/// reports.
pub fn run(options: &BenchOptions) -> Result<Vec<BenchResult>> {
    let mut results = Vec::new();
    run_each(options, &mut |result| results.push(result))?;
    Ok(results)
}

/// As [`run`], giving each row as soon as it is there.
///
/// # Errors
/// As [`run`]; rows before the error were given.
pub fn run_each(options: &BenchOptions, give: &mut dyn FnMut(BenchResult)) -> Result<()> {
    check(options)?;
    let workloads = match options.workloads.as_slice() {
        [] => all(),
        names => names.iter().map(|name| named(name)).collect::<Result<_>>()?,
    };
    let gpu = GPUConfig { linger_us: options.linger_us, ..GPUConfig::default() };
    let device_options = DeviceOptions { threads: options.threads, gpu };
    let opened = device::open(options.device, &device_options)?;
    for workload in &workloads {
        let plan = workload.plan(options.positions)?;
        let weights = workload.weights(&plan, options.seed);
        let mut reference = Reference {
            workload,
            plan: &plan,
            weights: &weights,
            loaded: None,
            seed: options.seed,
            known: Vec::new(),
        };
        let info = RunInfo {
            device: opened.device.capabilities().id.clone(),
            precision: Precision::F32,
            kernel_class: KernelClass::Latency,
            model_hash: weights_hash(&plan, &weights),
            fallback: opened.fallback.clone(),
            kernels: Vec::new(),
        };
        for &precision in &options.precisions {
            let load = LoadOptions {
                precision,
                fuse: options.fuse,
                lower: options.lower,
                ..LoadOptions::default()
            };
            let load = opened.device.load(&plan, &weights, &load).map_err(device_error);
            let mut bench = Bench {
                workload,
                options,
                device: &*opened.device,
                resident: load.context(workload.name)?,
                plan: &plan,
                info: RunInfo { precision, ..info.clone() },
            };
            bench.rows(&mut reference, give).context(workload.name)?;
        }
    }
    Ok(())
}

fn check(options: &BenchOptions) -> Result<()> {
    let wrong = |message: String| Err(Error::new(ErrorKind::Usage, message));
    if let Some(batch) = options.batches.iter().find(|&&batch| !(1..=BATCH_MAX).contains(&batch)) {
        return wrong(format!("batch is {batch}, expected 1 to {BATCH_MAX}"));
    }
    for (name, seconds) in [("seconds", options.seconds), ("error seconds", options.error_seconds)]
    {
        // Written so that NaN fails.
        if !(0.0..=86_400.0).contains(&seconds) {
            return wrong(format!("{name} is {seconds}, expected 0 to 86400"));
        }
    }
    if options.runs_max == 0 {
        return wrong("runs is 0, expected at least 1".to_string());
    }
    Ok(())
}

/// A workload resident in one precision.
struct Bench<'a> {
    workload: &'a Workload,
    options: &'a BenchOptions,
    device: &'a dyn Device,
    resident: Box<dyn Resident>,
    plan: &'a Plan,
    /// Of every row; its class and kernels are the row's.
    info: RunInfo,
}

impl Bench<'_> {
    /// The rows of all modes and batches.
    fn rows(
        &mut self,
        reference: &mut Reference<'_>,
        give: &mut dyn FnMut(BenchResult),
    ) -> Result<()> {
        for &mode in &self.options.modes {
            let of_device = match self.device.capabilities().kind {
                DeviceKind::Cuda | DeviceKind::Gpu => &self.workload.gpu,
                DeviceKind::Cpu | DeviceKind::Test => &self.workload.cpu,
            };
            let own = match mode {
                Mode::FullWindow => of_device.full_window,
                Mode::Throughput => of_device.throughput,
            };
            let batches = match self.options.batches.as_slice() {
                [] => own.to_vec(),
                asked => asked.to_vec(),
            };
            for batch in batches {
                give(self.row(mode, batch, reference)?);
            }
        }
        Ok(())
    }

    fn row(
        &mut self,
        mode: Mode,
        batch: usize,
        reference: &mut Reference<'_>,
    ) -> Result<BenchResult> {
        let mut program = self.compile(mode, batch)?;
        let bytes = |lines: &[MemoryLine]| lines.iter().map(|line| line.bytes).sum::<u64>();
        let mut caller = Caller::new(program.as_mut(), self.workload, batch, self.options.seed);
        let before = self.device.kernel_counts();
        caller.call().map_err(device_error)?;
        let kernels = launched(&before, &self.device.kernel_counts());
        let capabilities = self.device.capabilities();
        let energy = self.device.energy_joules();
        let begun = Instant::now();
        // Where host memory is the device's, the two ways are one.
        let way = if capabilities.unified_memory { Way::EndToEnd } else { mode.way() };
        let before = self.device.kernel_counts();
        let first = clock(&mut caller, self.options, way)?;
        let served = launched(&before, &self.device.kernel_counts());
        let runs_lingering = served.iter().map(|count| count.lingering).sum();
        let seconds = begun.elapsed().as_secs_f64();
        let power_watts = energy.zip(self.device.energy_joules()).map(|(a, b)| (b - a) / seconds);
        let second = match capabilities.unified_memory {
            true => None,
            false => Some(clock(&mut caller, self.options, way.other())?),
        };
        let device_us = caller.device_us(self.options)?;
        let (latency, device_resident, end_to_end) = match mode {
            Mode::FullWindow => (first, second, None),
            Mode::Throughput => (first, None, second),
        };
        let output_std = caller.output_std().map_err(device_error)?;
        let program_bytes = bytes(&program.info().memory);
        let errors = self.errors(mode, reference)?;
        let whole = self.workload.flops_nominal(batch);
        let flops = match self.options.positions {
            Positions::Last => self.workload.flops_last(batch),
            Positions::All => whole,
        };
        let seconds = latency.p50_us / 1e6;
        let rate = flops as f64 / seconds;
        Ok(BenchResult {
            workload: self.workload.name.to_string(),
            mode,
            batch,
            positions: self.options.positions,
            info: RunInfo { kernel_class: mode.class(), kernels, ..self.info.clone() },
            device_name: capabilities.name.clone(),
            device_features: capabilities.features.clone(),
            windows_per_second: batch as f64 / seconds,
            flops,
            flops_nominal: whole,
            gflops_per_second: rate / 1e9,
            peak_fraction: capabilities.peak(self.info.precision).map(|peak| rate / peak),
            power_watts,
            device_resident,
            end_to_end,
            device_us,
            resident_bytes: bytes(&self.resident.memory()),
            program_bytes,
            output_std,
            runs_lingering,
            error_max: errors.iter().copied().reduce(worst),
            error_windows: errors.len(),
            latency,
            version: env!("CARGO_PKG_VERSION"),
        })
    }

    fn compile(&mut self, mode: Mode, batch: usize) -> Result<Box<dyn Program>> {
        let bucket = Bucket { batch, length: self.workload.time() };
        let entry = self.plan.entry(EntryKind::Full);
        let bytes = entry.map_or(0, |entry| ArenaPlan::new(entry, bucket).bytes());
        if bytes > ARENA_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("batch {batch} takes {bytes} bytes, expected at most {ARENA_BYTES_MAX}"),
            ));
        }
        let request = Request { entry: EntryKind::Full, bucket, class: mode.class() };
        self.resident.compile(request).map_err(device_error)
    }

    /// Largest error of each fresh window, one at a time: a row's bits do not depend on its batch.
    fn errors(&mut self, mode: Mode, reference: &mut Reference<'_>) -> Result<Vec<f64>> {
        if self.options.error_windows_max == 0 {
            return Ok(Vec::new());
        }
        let mut program = self.compile(mode, 1)?;
        let mut errors = Vec::new();
        let start = Instant::now();
        for number in 0..self.options.error_windows_max {
            if number > 0 && start.elapsed().as_secs_f64() >= self.options.error_seconds {
                break;
            }
            let (window, expected) = reference.window(number)?;
            let found = forecast(program.as_mut(), 1, &window).map_err(device_error)?;
            errors.push(relative_error(&found, &expected));
        }
        Ok(errors)
    }
}

/// Largest `|d| / max(1, |ref|)`; NaN where any of them is.
fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let pairs = found.iter().zip(expected);
    let error = |(&y, &r): (&f32, &f64)| (f64::from(y) - r).abs() / r.abs().max(1.0);
    pairs.map(error).fold(0.0, worst)
}

/// The larger; NaN if either is, so that a broken forecast cannot look right.
fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Forecasts of fresh windows by the reference implementation, computed once for all rows of a
/// workload.
struct Reference<'a> {
    workload: &'a Workload,
    plan: &'a Plan,
    weights: &'a MemoryWeights,
    loaded: Option<Vec<Tensor>>,
    seed: u64,
    known: Vec<(Vec<f32>, Vec<f64>)>,
}

impl Reference<'_> {
    /// A window and its forecast.
    fn window(&mut self, number: usize) -> Result<(Vec<f32>, Vec<f64>)> {
        while self.known.len() <= number {
            let next = self.compute(self.known.len())?;
            self.known.push(next);
        }
        Ok(self.known[number].clone())
    }

    fn compute(&mut self, number: usize) -> Result<(Vec<f32>, Vec<f64>)> {
        if self.loaded.is_none() {
            self.loaded = Some(load_weights(self.plan, self.weights).map_err(device_error)?);
        }
        let loaded = self.loaded.as_deref().unwrap_or_default();
        reference_window(self.workload, self.plan, loaded, self.seed, number)
    }
}

/// A fresh window of a workload and its forecast in f64.
pub(super) fn reference_window(
    workload: &Workload,
    plan: &Plan,
    loaded: &[Tensor],
    seed: u64,
    number: usize,
) -> Result<(Vec<f32>, Vec<f64>)> {
    // Far from the seeds of timed windows.
    let window = workload.inputs(1, seed.wrapping_add(1 << 32) + number as u64);
    let (time, features) = (workload.time(), workload.features);
    let bucket = Bucket { batch: 1, length: time };
    let inputs = [("x", Tensor::from_f32([1, time, features], &window))];
    let mut states = zero_states(plan, 1);
    let outputs = run_loaded(plan, EntryKind::Full, bucket, loaded, &inputs, &mut states)
        .map_err(device_error)?;
    Ok((window, outputs.into_iter().flat_map(|(_, tensor)| tensor.data).collect()))
}

/// A program with windows to give it.
struct Caller<'a> {
    program: &'a mut dyn Program,
    batch: usize,
    sets: Vec<Vec<f32>>,
    next: usize,
    output: Vec<f32>,
}

impl<'a> Caller<'a> {
    fn new(program: &'a mut dyn Program, workload: &Workload, batch: usize, seed: u64) -> Self {
        let bytes = batch * workload.window() * size_of::<f32>();
        let sets = (INPUT_BYTES_MAX / bytes.max(1)).clamp(1, INPUT_SETS) as u64;
        let sets = (0..sets).map(|set| workload.inputs(batch, seed + set)).collect();
        let output = vec![0.0; program.info().output_elements.first().map_or(0, |e| e.0)];
        Caller { program, batch, sets, next: 0, output }
    }

    /// A call whose windows and forecasts stay on the device: those of the last write.
    fn run(&mut self) -> std::result::Result<(), neural_forecast_runtime::DeviceError> {
        self.program.submit(&Run { rows: self.batch, slots: &[], cancel: None })?;
        self.program.wait()
    }

    /// What the device's clock says of a run, at the median of some.
    fn device_us(&mut self, options: &BenchOptions) -> Result<Option<f64>> {
        self.program.time_runs().map_err(device_error)?;
        let mut times = Vec::new();
        let start = Instant::now();
        for _ in 0..DEVICE_CLOCK_RUNS {
            self.run().map_err(device_error)?;
            let Some(time) = self.program.device_us() else { return Ok(None) };
            times.push(time);
            if start.elapsed().as_secs_f64() >= options.seconds {
                break;
            }
        }
        Ok(Latency::of(times).map(|latency| latency.p50_us))
    }

    /// Windows in host memory to forecasts in host memory.
    fn call(&mut self) -> std::result::Result<(), neural_forecast_runtime::DeviceError> {
        self.program.write(0, Data::F32(&self.sets[self.next]));
        self.next = (self.next + 1) % self.sets.len();
        self.program.submit(&Run { rows: self.batch, slots: &[], cancel: None })?;
        self.program.wait()?;
        self.program.read(0, &mut self.output)
    }

    /// Over the forecasts of all sets, element by element of a row, averaged over elements.
    fn output_std(&mut self) -> std::result::Result<f64, neural_forecast_runtime::DeviceError> {
        let width = (self.output.len() / self.batch).max(1);
        let mut rows = Vec::new();
        for _ in 0..self.sets.len() {
            self.call()?;
            rows.extend(self.output.iter().map(|&y| f64::from(y)));
        }
        let n = (rows.len() / width) as f64;
        let stds = (0..width).map(|column| {
            let column = || rows.iter().skip(column).step_by(width);
            let mean = column().sum::<f64>() / n;
            (column().map(|y| (y - mean) * (y - mean)).sum::<f64>() / n).sqrt()
        });
        Ok(stds.sum::<f64>() / width as f64)
    }
}

/// Between which places a call is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Host memory to host memory.
    EndToEnd,
    /// The device's memory to the device's memory.
    Resident,
}

impl Way {
    fn other(self) -> Way {
        match self {
            Way::EndToEnd => Way::Resident,
            Way::Resident => Way::EndToEnd,
        }
    }
}

fn clock(caller: &mut Caller<'_>, options: &BenchOptions, way: Way) -> Result<Latency> {
    let mut timed = || match way {
        Way::EndToEnd => caller.call().map_err(device_error),
        Way::Resident => caller.run().map_err(device_error),
    };
    let start = Instant::now();
    for _ in 0..options.warm_up {
        if start.elapsed().as_secs_f64() >= options.seconds {
            break;
        }
        timed()?;
    }
    let mut times = Vec::with_capacity(options.runs_max.min(1 << 20));
    let start = Instant::now();
    loop {
        let call = Instant::now();
        timed()?;
        times.push(call.elapsed().as_secs_f64() * 1e6);
        if times.len() >= options.runs_max || start.elapsed().as_secs_f64() >= options.seconds {
            break;
        }
    }
    let none = || Error::new(ErrorKind::Device, "no call was timed");
    Latency::of(times).ok_or_else(none)
}

fn forecast(
    program: &mut dyn Program,
    rows: usize,
    windows: &[f32],
) -> std::result::Result<Vec<f32>, neural_forecast_runtime::DeviceError> {
    program.write(0, Data::F32(windows));
    program.submit(&Run { rows, slots: &[], cancel: None })?;
    program.wait()?;
    let elements = program.info().output_elements.first().map_or(0, |e| e.0);
    let mut output = vec![0.0; elements];
    program.read(0, &mut output)?;
    Ok(output)
}
