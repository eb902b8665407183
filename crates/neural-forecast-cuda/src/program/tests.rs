//! Programs of launches made for the purpose: values, faults, drop orders, and how long the way to
//! the device and back takes.

use super::*;
use crate::device::{CudaDevice, CudaOptions};
use crate::driver::Module;
use crate::launch::Arguments;
use crate::trial::{self, Copies, CopyWhole};
use neural_forecast_runtime::device::{Device, LoadOptions, Resident};
use neural_forecast_runtime::testing::{Case, cases, conform_all};

const CLASSES: [KernelClass; 2] = [KernelClass::Latency, KernelClass::Throughput];

fn numbers(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|i| seed + i as f32).collect()
}

#[test]
fn what_goes_in_comes_out_in_every_way() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    // Small and large, so that mapped memory and the copy engine both serve.
    for (width, batch) in [(1, 1), (3, 5), (1000, 7), (5003, 41)] {
        for class in CLASSES {
            for launches in [0, 2] {
                let request = trial::request(batch, class);
                let steps =
                    |value| -> Vec<Box<dyn Loaded>> { vec![Box::new(Copies { value, launches })] };
                let (_resident, mut program) =
                    trial::program(&device, width, request, steps, Vec::new());
                for (i, rows) in [batch, 1, batch.div_ceil(2), batch].into_iter().enumerate() {
                    let x = numbers(width * rows, 1.0 + i as f32);
                    let y = trial::run(program.as_mut(), &x, rows).expect("it runs");
                    assert_eq!(x, y, "{width} × {rows} of {batch}, {}", class.name());
                }
                let timed = program.device_us().is_some();
                assert!(timed || class == KernelClass::Latency, "{width}, {batch}");
            }
        }
    }
}

#[test]
fn a_whole_kernel_runs_alone() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let request = trial::request(4, KernelClass::Latency);
    let whole: Vec<Box<dyn Whole>> = vec![Box::new(CopyWhole { bytes: 4 * 4 * 100 })];
    let (_resident, mut program) = trial::program(&device, 100, request, |_| Vec::new(), whole);
    let before = trial::counted(&device, "program-begin");
    for i in 0..10 {
        let x = numbers(400, i as f32);
        assert_eq!(trial::run(program.as_mut(), &x, 4).expect("it runs"), x);
    }
    assert_eq!(trial::counted(&device, "program-begin"), before, "nothing but the kernel ran");
    assert!(trial::counted(&device, "program-finish") >= 10);
}

#[test]
fn a_run_without_a_write_uses_what_was_written_last() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    for class in CLASSES {
        let request = trial::request(2, class);
        let (_resident, mut program) =
            trial::program(&device, 9, request, |_| Vec::new(), Vec::new());
        let x = numbers(18, 0.5);
        trial::run(program.as_mut(), &x, 2).expect("it runs");
        for _ in 0..3 {
            program.submit(&Run { rows: 2, ..Run::default() }).expect("it is submitted");
            while !program.poll() {}
            program.wait().expect("it ends");
        }
        let mut y = vec![0.0; 18];
        program.read(0, &mut y).expect("there are outputs");
        assert_eq!(x[..4], y[..4]);
    }
}

#[test]
fn a_cancelled_run_is_reported_once() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let request = trial::request(1, KernelClass::Latency);
    let (_resident, mut program) = trial::program(&device, 4, request, |_| Vec::new(), Vec::new());
    let cancel = Cancel::new();
    cancel.cancel();
    program.write(0, Data::F32(&[1.0; 4]));
    let run = Run { rows: 1, cancel: Some(cancel), ..Run::default() };
    program.submit(&run).expect("it is submitted");
    assert!(program.poll());
    let again = program.submit(&Run { rows: 1, ..Run::default() }).expect_err("not waited for");
    assert_eq!(again.kind(), DeviceErrorKind::Cancelled);
    assert_eq!(program.wait().expect_err("cancelled").kind(), DeviceErrorKind::Cancelled);
    program.wait().expect("nothing is in flight");
    assert_eq!(trial::run(program.as_mut(), &[2.0; 4], 1).expect("it runs"), [2.0; 4]);
}

#[test]
fn a_long_run_stops_between_its_graphs() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    for class in CLASSES {
        let request = trial::request(1, class);
        let copies =
            |value| -> Vec<Box<dyn Loaded>> { vec![Box::new(Copies { value, launches: 500 })] };
        let (_resident, mut program) = trial::program(&device, 999, request, copies, Vec::new());
        let x = numbers(999, 1.0);
        for cancels in [false, true, false] {
            let cancel = Cancel::new();
            program.write(0, Data::F32(&x));
            let run = Run { rows: 1, cancel: Some(cancel.clone()), ..Run::default() };
            program.submit(&run).expect("it is submitted");
            if cancels {
                cancel.cancel();
                let error = program.wait().expect_err("it is cancelled");
                assert_eq!(error.kind(), DeviceErrorKind::Cancelled, "{error}");
                continue;
            }
            while !program.poll() {}
            program.wait().expect("it ends");
            let mut y = vec![0.0; 999];
            program.read(0, &mut y).expect("there are outputs");
            assert_eq!(x, y);
        }
        assert_eq!(trial::run(program.as_mut(), &x, 1).expect("it runs"), x);
    }
}

#[test]
fn cooperative_programs_keep_their_states_in_order() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let device = trial::CooperativeDevice(device);
    let stateful = cases().into_iter().filter(|case| case.plan.entries[0].uses_states());
    let some: Vec<Case> = stateful.step_by(3).collect();
    let (ran, failures) = conform_all(&device, &some, &LoadOptions::default());
    assert!(failures.is_empty() && ran > 0, "{}", failures.join("\n"));
    let case = &some[0];
    let options = LoadOptions { state_slots: 4, ..LoadOptions::default() };
    let mut resident = device.load(&case.plan, &case.weights, &options).expect("it loads");
    let class = KernelClass::Latency;
    let request = Request { entry: case.entry, bucket: case.bucket, class };
    let program = resident.compile(request).expect("it compiles");
    assert!(matches!(program.info().residency, Residency::Exclusive { units } if units > 0));
}

#[test]
fn programs_of_several_threads_run_beside_one_another() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let cooperative = trial::CooperativeDevice(device);
    std::thread::scope(|scope| {
        for i in 0..6_usize {
            let cooperative = &cooperative;
            scope.spawn(move || {
                let (plan, _) = trial::plan(100 + i);
                let weights = neural_forecast_runtime::MemoryWeights::new();
                let options = LoadOptions::default();
                let device: &dyn Device = if i % 2 == 0 { cooperative } else { &cooperative.0 };
                let mut resident = device.load(&plan, &weights, &options).expect("it loads");
                let request = trial::request(3, CLASSES[i / 3]);
                let mut program = resident.compile(request).expect("it compiles");
                for run in 0..500 {
                    let x = numbers((100 + i) * 3, run as f32);
                    assert_eq!(trial::run(program.as_mut(), &x, 3).expect("it runs"), x);
                }
            });
        }
    });
}

#[test]
fn every_gpu_runs_programs() {
    let listed = crate::gpus().unwrap_or_default();
    let opened = listed.iter().map(|gpu| CudaDevice::open(gpu.ordinal, CudaOptions::default()));
    let devices: Vec<CudaDevice> = opened.map(|device| device.expect("it opens")).collect();
    for (i, device) in devices.iter().enumerate() {
        assert_eq!(device.capabilities().id, format!("cuda:{i}"));
        for class in CLASSES {
            let (_resident, mut program) =
                trial::program(device, 77, trial::request(3, class), |_| Vec::new(), Vec::new());
            let x = numbers(77 * 3, i as f32);
            assert_eq!(trial::run(program.as_mut(), &x, 3).expect("it runs"), x);
        }
    }
}

/// Rates of the bus, and of writes to an input that is far larger than the caches.
#[test]
#[ignore = "a measurement"]
fn bus() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    println!("{:?}", device.copy_bandwidth().expect("it measures"));
    for (width, batch) in [(1 << 20, 4), (1 << 20, 16), (1 << 20, 96)] {
        let request = trial::request(batch, KernelClass::Throughput);
        let (_resident, mut program) =
            trial::program(&device, width, request, |_| Vec::new(), Vec::new());
        let x = numbers(width * batch, 0.0);
        let mut times: Vec<f64> = (0..7)
            .map(|_| {
                let begun = Instant::now();
                program.write(0, Data::F32(&x));
                let written = begun.elapsed().as_secs_f64();
                program.submit(&Run { rows: batch, ..Run::default() }).expect("it is submitted");
                program.wait().expect("it ends");
                println!("  written after {:.3} ms", written * 1e3);
                begun.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let bytes = (width * batch * 4) as f64;
        println!(
            "{} MiB in and out: {:.3} ms, {:.1} GB/s each",
            bytes / 1048576.0,
            times[3] * 1e3,
            bytes / times[3] / 1e9
        );
    }
}

#[test]
fn everything_may_be_dropped_in_any_order() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let request = trial::request(64, KernelClass::Throughput);
    let copies = |value| -> Vec<Box<dyn Loaded>> { vec![Box::new(Copies { value, launches: 20 })] };
    let (resident, mut program) = trial::program(&device, 9999, request, copies, Vec::new());
    program.write(0, Data::F32(&numbers(64 * 9999, 0.0)));
    program.submit(&Run { rows: 64, ..Run::default() }).expect("it is submitted");
    drop(device);
    drop(resident);
    // In flight.
    drop(program);
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let (resident, mut program) = trial::program(&device, 3, request, copies, Vec::new());
    drop(resident);
    drop(device);
    let x = numbers(3 * 64, 0.0);
    assert_eq!(trial::run(program.as_mut(), &x, 64).expect("it runs"), x);
}

#[test]
fn memory_is_counted_limited_and_reused() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let before = device.used_bytes();
    let request = trial::request(1, KernelClass::Latency);
    let made = trial::program(&device, 1 << 20, request, |_| Vec::new(), Vec::new());
    assert!(device.used_bytes() >= before + (4 << 20));
    drop(made);
    assert_eq!(device.used_bytes(), before);

    let options = CudaOptions { memory_bytes_max: Some(1 << 20), ..CudaOptions::default() };
    let limited = trial::device(options).expect("it opened before");
    let (plan, _) = trial::plan(1 << 20);
    let weights = neural_forecast_runtime::MemoryWeights::new();
    let load = |device: &CudaDevice, most| {
        let options = LoadOptions { memory_bytes_max: most, ..LoadOptions::default() };
        device.load(&plan, &weights, &options).expect("it loads")
    };
    for (mut resident, limit) in
        [(load(&limited, None), "1048576"), (load(&device, Some(1 << 21)), "2097152")]
    {
        let error = resident.compile(request).expect_err("it is too large");
        assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory);
        assert!(error.to_string().contains(limit), "{error}");
    }

    let options = CudaOptions { memory_pooling: true, ..CudaOptions::default() };
    let pooled = trial::device(options).expect("it opened before");
    let make = || trial::program(&pooled, 1 << 20, request, |_| Vec::new(), Vec::new());
    drop(make());
    let (used, allocations) = (pooled.used_bytes(), pooled.allocations());
    let (_resident, mut program) = make();
    let x = numbers(1 << 20, 3.0);
    assert_eq!(trial::run(program.as_mut(), &x, 1).expect("it runs"), x);
    assert!(pooled.used_bytes() > used);
    // Pinned pages are not pooled.
    assert_eq!(pooled.allocations(), allocations + 1);

    let options = CudaOptions { unified_memory: true, ..CudaOptions::default() };
    let managed = trial::device(options).expect("it opened before");
    let (_resident, mut program) =
        trial::program(&managed, 1000, request, |_| Vec::new(), Vec::new());
    let x = numbers(1000, 3.0);
    assert_eq!(trial::run(program.as_mut(), &x, 1).expect("it runs"), x);
}

/// What the device cannot give, and that it goes on afterwards.
#[test]
fn exhaustion_is_an_error_with_sizes() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let (_, total) = device.memory().expect("it answers");
    let context = &device.shared().context;
    let error = DeviceMemory::new(context, "the test", total as usize * 2).expect_err("too much");
    assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory);
    let message = error.to_string();
    assert!(message.contains("the test") && message.contains("bytes are free"), "{message}");
    let request = trial::request(1, KernelClass::Latency);
    let (_resident, mut program) = trial::program(&device, 4, request, |_| Vec::new(), Vec::new());
    assert_eq!(trial::run(program.as_mut(), &[2.0; 4], 1).expect("it runs"), [2.0; 4]);
}

const TRAP: &str = ".version 8.0\n.target sm_80\n.address_size 64\n\
    .visible .entry trap(.param .align 8 .b8 p[8]) { trap; ret; }\n\
    .visible .entry grown(.param .align 8 .b8 p[8]) { ret; }\n\0";

#[repr(C)]
#[derive(Clone, Copy)]
struct Eight(u64);

// SAFETY: one field of 8 bytes, as the kernels of `TRAP` take.
unsafe impl Arguments for Eight {}

/// A step that launches a kernel of `TRAP`.
#[derive(Debug)]
struct Launches(Launch);

impl Loaded for Launches {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        build.launch(self.0.clone());
        Ok(())
    }
}

fn launch(function: &str) -> Launch {
    Launch::new("trap", function, function, [1, 1, 1], [1, 1, 1], Eight(0))
}

#[test]
fn what_a_kernel_cannot_have_is_refused_by_name() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let shared = device.shared();
    let module = Module::load(&shared.context, "trap", TRAP.as_bytes()).expect("it compiles");
    shared.images.add("trap", module);
    let cases = [
        (launch("absent"), DeviceErrorKind::Compile, "absent"),
        (launch("grown").shared(10 << 20), DeviceErrorKind::Unsupported, "shared memory"),
        (
            Launch::new("trap", "grown", "grown", [1, 1, 1], [2048, 1, 1], Eight(0)),
            DeviceErrorKind::Unsupported,
            "2048",
        ),
    ];
    for (launch, kind, part) in cases {
        let function = shared.images.function(&launch);
        let error = function
            .and_then(|function| function.permit(&launch, &shared.gpu))
            .expect_err("it is refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let broken = Module::load(&shared.context, "broken", b".version 8.0\n nonsense\0");
    let error = broken.expect_err("it is no program");
    assert_eq!(error.kind(), DeviceErrorKind::Compile, "{error}");
    let future = Module::load(&shared.context, "future", b".version 99.0\n.target sm_80\n\0");
    let error = future.expect_err("nobody reads it");
    assert_eq!(error.kind(), DeviceErrorKind::Compile, "{error}");
    assert!(error.to_string().contains("the driver supports CUDA"), "{error}");
}

/// Run by [`a_trap_loses_the_device`] in a process of its own.
#[test]
fn in_a_process_of_its_own_a_kernel_traps() {
    if std::env::var_os("NF_TRAP").is_none() {
        return;
    }
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    let shared = device.shared();
    let module = Module::load(&shared.context, "trap", TRAP.as_bytes()).expect("it compiles");
    shared.images.add("trap", module);
    let request = trial::request(1, KernelClass::Latency);
    let (_resident, mut other) = trial::program(&device, 8, request, |_| Vec::new(), Vec::new());
    trial::run(other.as_mut(), &[1.0; 8], 1).expect("it runs");
    let trap = |_| -> Vec<Box<dyn Loaded>> { vec![Box::new(Launches(launch("trap")))] };
    let (mut resident, mut program) = trial::program(&device, 8, request, trap, Vec::new());
    let error = trial::run(program.as_mut(), &[1.0; 8], 1).expect_err("it traps");
    assert_eq!(error.kind(), DeviceErrorKind::Lost, "{error}");
    let lost = |result: Result<(), DeviceError>, what: &str| {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), DeviceErrorKind::Lost, "{what}: {error}");
    };
    lost(program.submit(&Run { rows: 1, ..Run::default() }), "the program");
    lost(other.submit(&Run { rows: 1, ..Run::default() }), "another program");
    lost(other.read(0, &mut [0.0; 8]), "outputs of before");
    lost(resident.compile(request).map(|_| ()), "another program's compilation");
    lost(device.memory().map(|_| ()), "the device");
    let (plan, _) = trial::plan(8);
    let weights = neural_forecast_runtime::MemoryWeights::new();
    lost(device.load(&plan, &weights, &LoadOptions::default()).map(|_| ()), "another plan");
    drop((program, resident));
    println!("lost: {error}");
}

#[test]
fn a_trap_loses_the_device() {
    if trial::device(CudaOptions::default()).is_none() {
        return;
    }
    let program = std::env::current_exe().expect("a test knows its program");
    let output = std::process::Command::new(program)
        .args(["--exact", "program::tests::in_a_process_of_its_own_a_kernel_traps", "--nocapture"])
        .env("NF_TRAP", "1")
        .output()
        .expect("the test can run itself");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("lost: "), "{text}\n{errors}");
}

/// How long one run takes from the input in host memory to the output in host memory.
#[test]
#[ignore = "a measurement"]
fn floor() {
    let Some(device) = trial::device(CudaOptions::default()) else { return };
    for (name, width, launches) in [
        ("one launch", 5000, None),
        ("begin, finish", 5000, Some(0)),
        ("begin, 3, finish", 5000, Some(3)),
        ("begin, 8, finish", 5000, Some(8)),
        ("one launch", 16, None),
        ("begin, finish", 16, Some(0)),
        ("one launch", 32768, None),
        ("begin, finish", 32768, Some(0)),
        ("copied in", 131072, Some(0)),
    ] {
        let request = trial::request(1, KernelClass::Latency);
        let steps = |value| -> Vec<Box<dyn Loaded>> {
            vec![Box::new(Copies { value, launches: launches.unwrap_or(0) })]
        };
        let whole: Vec<Box<dyn Whole>> = match launches {
            None => vec![Box::new(CopyWhole { bytes: 16 })],
            Some(_) => Vec::new(),
        };
        let (_resident, mut program) = trial::program(&device, width, request, steps, whole);
        let x = numbers(width, 1.0);
        let mut y = vec![0.0; width];
        let mut times = Vec::new();
        for i in 0..20_500 {
            let begun = Instant::now();
            program.write(0, Data::F32(&x));
            program.submit(&Run { rows: 1, ..Run::default() }).expect("it is submitted");
            program.wait().expect("it ends");
            program.read(0, &mut y).expect("there are outputs");
            if i >= 500 {
                times.push(begun.elapsed().as_nanos() as f64 / 1000.0);
            }
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
        println!(
            "{name}, {width} floats: p50 {:.2} p99 {:.2} p99.9 {:.2} max {:.1} µs",
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
        assert_eq!(x[..4], y[..4]);
    }
}
