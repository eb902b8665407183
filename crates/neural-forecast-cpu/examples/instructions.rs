//! One forward pass of a fixed case, for an instruction counter: `instructions CASE`, or `--list`.
//!
//! Runs under `valgrind --tool=callgrind --toggle-collect='*counted_run*'`; `cargo xtask
//! instructions` does that for every case and compares with the committed table. One thread, fixed
//! weights and inputs, warmed by two passes that are not counted: the count is the same each time.

mod networks;

use networks::{Failure, lstm, patches, recurrent, transformer};
use neural_forecast_cpu::{CpuDevice, CpuOptions};
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Precision, Program, Request, Run,
};
use neural_forecast_runtime::ops::Cell;
use neural_forecast_runtime::plan::{Bucket, Context, EntryKind, Plan, elements};
use neural_forecast_runtime::{DeviceError, MemoryWeights};

/// Cases: network, rows of the batch, precision. The table is written in this order.
const CASES: [(&str, usize, Precision); 11] = [
    ("lstm", 1, Precision::F32),
    ("lstm", 1, Precision::F16),
    ("lstm", 1, Precision::Bf16),
    ("lstm", 1, Precision::Int8),
    ("lstm", 16, Precision::F32),
    ("gru", 1, Precision::F32),
    ("encoder", 1, Precision::F32),
    ("encoder", 1, Precision::F16),
    ("encoder", 1, Precision::Bf16),
    ("encoder", 1, Precision::Int8),
    ("patches", 1, Precision::F32),
];

fn name((network, rows, precision): (&str, usize, Precision)) -> String {
    format!("{network}-{rows}-{}", precision.name())
}

fn network(name: &str) -> Result<(Plan, MemoryWeights), Failure> {
    match name {
        "lstm" => lstm(name, (50, 100), (2, 100), 1, 1),
        "gru" => recurrent(name, Cell::Gru, (50, 100), (2, 100), 1, 1),
        "encoder" => transformer(name, (64, 16), (3, 128, 8, 256), 10),
        "patches" => patches(name, (96, 24), (16, 8), (3, 128, 16, 256)),
        _ => Err(format!("no network `{name}`").into()),
    }
}

/// Input in host memory to result in host memory.
#[inline(never)]
fn pass(
    program: &mut dyn Program,
    rows: usize,
    input: &[f32],
    output: &mut [f32],
) -> Result<(), DeviceError> {
    program.write(0, Data::F32(input));
    program.submit(&Run { rows, ..Run::default() })?;
    program.wait()?;
    program.read(0, output)
}

/// The pass that is counted: by this function's name.
#[inline(never)]
fn counted_run(run: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
    run()
}

fn main() -> Result<(), Failure> {
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "--list".into());
    if wanted == "--list" {
        CASES.into_iter().for_each(|case| println!("{}", name(case)));
        return Ok(());
    }
    let case = CASES.into_iter().find(|&case| name(case) == wanted);
    let (network_name, rows, precision) = case.ok_or_else(|| format!("no case `{wanted}`"))?;
    let (plan, weights) = network(network_name)?;
    let device = CpuDevice::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
    let mut resident =
        device.load(&plan, &weights, &LoadOptions { precision, ..LoadOptions::default() })?;
    let entry = plan.entry(EntryKind::Full).ok_or("the plan has no full entry")?;
    let Context::Fixed(length) = plan.context else { return Err("its context is free".into()) };
    let bucket = Bucket { batch: rows, length };
    let class = KernelClass::Latency;
    let mut program = resident.compile(Request { entry: EntryKind::Full, bucket, class })?;
    let count = elements(&entry.value(entry.inputs[0].value).shape, bucket);
    let input: Vec<f32> = (0..count).map(|i| ((i * 37) as f32).sin()).collect();
    let mut output = vec![0.0; program.info().output_elements[0].0];
    let mut once = || pass(program.as_mut(), rows, &input, &mut output);
    once()?;
    once()?;
    counted_run(&mut once)?;
    if !output.iter().all(|y| y.is_finite()) {
        return Err(format!("{wanted}: the result is not finite").into());
    }
    println!("{wanted} on {}: {:?}", device.isa().name(), output.first());
    Ok(())
}
