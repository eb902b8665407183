//! The suite's workloads at their CPU batches, full window, in single precision.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use neural_forecast::device::{self, DeviceChoice, DeviceOptions};
use neural_forecast::workloads::{self, Positions, Workload};
use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Program, Request, Run,
};
use neural_forecast_runtime::plan::{Bucket, EntryKind};

/// Work beyond which a workload is left to `neural-forecast bench`: criterion wants many calls.
const FLOPS_MAX: u64 = 5_000_000_000;

fn all(c: &mut Criterion) {
    let opened = device::open(DeviceChoice::Auto, &DeviceOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let mut group = c.benchmark_group("workloads");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group.sample_size(10);
    for workload in workloads::all() {
        for &batch in
            workload.cpu.full_window.iter().filter(|&&b| workload.flops_last(b) < FLOPS_MAX)
        {
            let mut program = compile(&*opened.device, &workload, batch)
                .unwrap_or_else(|error| panic!("{}: {error}", workload.name));
            let input = workload.inputs(batch, 1);
            let mut output = vec![0.0; program.info().output_elements[0].0];
            group.throughput(Throughput::Elements(workload.flops_last(batch)));
            group.bench_function(BenchmarkId::new(workload.name, batch), |b| {
                b.iter(|| call(program.as_mut(), batch, &input, &mut output));
            });
        }
    }
}

fn compile(
    device: &dyn Device,
    workload: &Workload,
    batch: usize,
) -> Result<Box<dyn Program>, DeviceError> {
    let plan = workload.plan(Positions::Last).unwrap_or_else(|error| panic!("{error}"));
    let weights = workload.weights(&plan, 1);
    let bucket = Bucket { batch, length: workload.time() };
    let request = Request { entry: EntryKind::Full, bucket, class: KernelClass::Latency };
    device.load(&plan, &weights, &LoadOptions::default())?.compile(request)
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
