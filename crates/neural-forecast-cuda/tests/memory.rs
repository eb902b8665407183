//! Runs take no memory: neither of the device, nor pinned, nor of the host.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Program, Request, Run,
};
use neural_forecast_runtime::ops::{Linear, Reshape};
use neural_forecast_runtime::plan::{Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder};
use neural_forecast_runtime::testing::device_or_skip;

/// Counts what is asked of the host's allocator.
struct Counting;

static ASKED: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 96;
const BATCH: usize = 16;
const RUNS: usize = 10_000;

/// The first GPU, unless there is none and nobody insists.
fn device() -> Option<CudaDevice> {
    device_or_skip("cuda", CudaDevice::open(0, CudaOptions::default()))
}

/// A product and a reshape.
fn plan() -> (Plan, MemoryWeights) {
    let mut plan = PlanBuilder::new("memory", Context::Fixed(1));
    plan.begin(EntryKind::Full);
    let x = plan.input("x", DType::F32, &[Dim::BATCH, WIDTH.into()]);
    let w = plan.weight("w", &[WIDTH, WIDTH]);
    let y = plan.step(Linear::new(x, w)).expect("it is legal")[0];
    let shape = vec![Dim::BATCH, 2.into(), (WIDTH / 2).into()];
    let y = plan.step(Reshape { x: y, shape }).expect("it is legal")[0];
    plan.output("y", y, Vec::new());
    let mut weights = MemoryWeights::new();
    let identity: Vec<f32> =
        (0..WIDTH * WIDTH).map(|i| if i / WIDTH == i % WIDTH { 1.0 } else { 0.0 }).collect();
    weights.insert("w", &[WIDTH, WIDTH], &identity);
    (plan.finish().expect("it is complete"), weights)
}

/// Runs with every number of rows in turn.
fn run_many(program: &mut dyn Program, x: &[f32], y: &mut [f32]) {
    for i in 0..RUNS {
        let rows = 1 + i % BATCH;
        program.write(0, Data::F32(&x[..rows * WIDTH]));
        program.submit(&Run { rows, ..Run::default() }).expect("it is submitted");
        program.wait().expect("it ends");
        program.read(0, &mut y[..rows * WIDTH]).expect("there are outputs");
    }
}

#[test]
fn ten_thousand_runs_take_no_memory() {
    let Some(device) = device() else { return };
    let (plan, weights) = plan();
    let mut resident = device.load(&plan, &weights, &LoadOptions::default()).expect("it loads");
    let x: Vec<f32> = (0..WIDTH * BATCH).map(|i| i as f32).collect();
    let mut y = vec![0.0; WIDTH * BATCH];
    for class in [KernelClass::Latency, KernelClass::Throughput] {
        let bucket = Bucket { batch: BATCH, length: 1 };
        let request = Request { entry: EntryKind::Full, bucket, class };
        let mut program = resident.compile(request).expect("it compiles");
        run_many(program.as_mut(), &x, &mut y);
        let counts = || (device.used_bytes(), device.allocations(), ASKED.load(Ordering::Relaxed));
        let free = || device.memory().expect("the device answers").0;
        // Others may use the GPU: a run of runs without them settles it.
        let mut settled = false;
        for _ in 0..5 {
            let (before, free_before) = (counts(), free());
            run_many(program.as_mut(), &x, &mut y);
            assert_eq!(counts(), before, "{}: used bytes, allocations, host", class.name());
            if free() == free_before {
                settled = true;
                break;
            }
        }
        assert!(settled, "{}: the device's free memory changes", class.name());
        let rows = 1 + (RUNS - 1) % BATCH;
        assert_eq!(x[..rows * WIDTH], y[..rows * WIDTH]);
    }
    let lines = resident.memory();
    let packed: u64 = lines.iter().map(|line| line.bytes).sum();
    assert!(packed >= (WIDTH * WIDTH * 4) as u64, "{lines:?}");
}
