//! A forward pass allocates nothing once it has run before, whatever the worker that would do it.
//!
//! Alone in its binary, because it counts every allocation of the process.

use neural_forecast_cpu::{CpuDevice, CpuOptions};
use neural_forecast_runtime::device::{Device, KernelClass, LoadOptions, Precision, Request, Run};
use neural_forecast_runtime::testing::cases;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_warm_forward_pass_allocates_nothing() {
    for threads in [1, 2] {
        let options =
            CpuOptions { threads: Some(threads), alone_flops: Some(0), ..CpuOptions::default() };
        let device = CpuDevice::new(options).unwrap();
        let precisions = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];
        for (case, precision) in
            cases().into_iter().flat_map(|case| precisions.map(|p| (case.clone(), p)))
        {
            let batch = case.bucket.batch;
            let options = LoadOptions { precision, state_slots: batch, ..LoadOptions::default() };
            let mut resident = device.load(&case.plan, &case.weights, &options).unwrap();
            let class = KernelClass::Latency;
            let request = Request { entry: case.entry, bucket: case.bucket, class };
            let mut program = resident.compile(request).unwrap();
            let entry = case.plan.entry(case.entry).unwrap();
            case.write(program.as_mut(), 0..batch);
            let slots: Vec<u32> = (0..batch as u32).collect();
            let slots = if entry.uses_states() { &slots[..] } else { &[] };
            let run = Run { rows: batch, slots, cancel: None };
            let mut once = || {
                program.submit(&run).unwrap();
                program.wait().unwrap();
            };
            once();
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            once();
            once();
            let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
            let name = precision.name();
            assert_eq!(made, 0, "{} in {name} with {threads} threads", case.name);
        }
    }
}
