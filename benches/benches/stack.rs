//! `encoder_stack`: whole Transformer networks, fused and lowered into ops of their own.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use neural_forecast::device::{self, DeviceChoice, DeviceOptions};
use neural_forecast::workloads::{self, Positions};
use neural_forecast_runtime::device::{Data, KernelClass, LoadOptions, Request, Run};
use neural_forecast_runtime::plan::{Bucket, EntryKind};

fn stack(c: &mut Criterion) {
    let opened = device::open(DeviceChoice::Auto, &DeviceOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let mut group = c.benchmark_group("encoder_stack");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.sample_size(10);
    let workload = workloads::named("transformer_small").unwrap_or_else(|error| panic!("{error}"));
    let plan = workload.plan(Positions::All).unwrap_or_else(|error| panic!("{error}"));
    let weights = workload.weights(&plan, 1);
    for (form, fuse, lower) in
        [("fused", true, false), ("lowered, fused", true, true), ("lowered", false, true)]
    {
        let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
        for batch in [1, 32] {
            let bucket = Bucket { batch, length: workload.time() };
            let request = Request { entry: EntryKind::Full, bucket, class: KernelClass::Latency };
            let program = opened.device.load(&plan, &weights, &options);
            let mut program = program
                .and_then(|mut resident| resident.compile(request))
                .unwrap_or_else(|error| panic!("{form}: {error}"));
            let input = workload.inputs(batch, 1);
            group.throughput(Throughput::Elements(workload.flops_nominal(batch)));
            group.bench_function(BenchmarkId::new(form, batch), |b| {
                b.iter(|| {
                    program.write(0, Data::F32(&input));
                    let run = Run { rows: batch, slots: &[], cancel: None };
                    program
                        .submit(&run)
                        .and_then(|()| program.wait())
                        .unwrap_or_else(|error| panic!("{form}: {error}"));
                });
            });
        }
    }
}

criterion_group!(benches, stack);
criterion_main!(benches);
