//! Products with residuals of many tiles give the same bits every time, on rows enough that copies
//! run ahead of those who read.
//!
//! The residual comes through the ring of stages that the next tile's operands are copied to; a
//! stage that is given back too early shows as results that differ from run to run, and only under
//! load. Whether results are right is `products`. Without a GPU nothing is tested, which is
//! printed; `NF_REQUIRE=cuda` makes that a failure.

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Precision, Request, Run,
};
use neural_forecast_runtime::ops::Linear;
use neural_forecast_runtime::plan::{Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder};
use neural_forecast_runtime::testing::device_or_skip;

const ROWS: usize = 16_384;
const INPUTS: usize = 256;
const OUTPUTS: usize = 768;
const RUNS: usize = 12;

/// Numbers in (−1, 1) that do not repeat soon.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn plan() -> (Plan, MemoryWeights) {
    let mut plan = PlanBuilder::new("residuals", Context::Fixed(1));
    plan.begin(EntryKind::Full);
    let x = plan.input("x", DType::F32, &[Dim::BATCH, INPUTS.into()]);
    let residual = plan.input("residual", DType::F32, &[Dim::BATCH, OUTPUTS.into()]);
    let w = plan.weight("w", &[OUTPUTS, INPUTS]);
    let y = plan.step(Linear::new(x, w).residual(residual)).expect("it is legal")[0];
    plan.output("y", y, Vec::new());
    let mut weights = MemoryWeights::new();
    weights.insert("w", &[OUTPUTS, INPUTS], &numbers(OUTPUTS * INPUTS, 1));
    (plan.finish().expect("it is complete"), weights)
}

#[test]
fn residuals_are_read_before_their_place_is_written() {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    let (plan, weights) = plan();
    let (x, residual) = (numbers(ROWS * INPUTS, 2), numbers(ROWS * OUTPUTS, 3));
    let (mut first, mut again) = (vec![0.0; ROWS * OUTPUTS], vec![0.0; ROWS * OUTPUTS]);
    for precision in [Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16] {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let mut resident = device.load(&plan, &weights, &options).expect("it loads");
        let bucket = Bucket { batch: ROWS, length: 1 };
        let class = KernelClass::Throughput;
        let request = Request { entry: EntryKind::Full, bucket, class };
        let mut program = resident.compile(request).expect("it compiles");
        program.write(0, Data::F32(&x));
        program.write(1, Data::F32(&residual));
        for run in 0..RUNS {
            program.submit(&Run { rows: ROWS, ..Run::default() }).expect("it is submitted");
            program.wait().expect("it ends");
            let to = if run == 0 { &mut first } else { &mut again };
            program.read(0, to).expect("there are outputs");
            if run > 0 {
                let pairs = first.iter().zip(&again);
                let differ = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                assert_eq!(differ, 0, "{}, run {run}: results that differ", precision.name());
            }
        }
        assert!(first.iter().all(|y| y.is_finite()), "{}", precision.name());
    }
}
