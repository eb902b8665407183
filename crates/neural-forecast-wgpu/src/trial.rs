//! A trial of the matrices that subgroups multiply together, on the device itself: products of
//! small whole numbers, whose sums are exact in any order, in every tile that `linear_cooperative`
//! has.
//!
//! The feature is experimental in wgpu, so that it serves only where it has given every bit right.
//! One thing is known to be wanting: such shaders are under Vulkan's memory model, and wgpu 30 does
//! not mark accesses to workgroup memory as shared between invocations there, so that a driver
//! might, by the letter, move them across barriers. It is tried once a device, when the first plan
//! is loaded in half precision; what came of it is kept and can be asked for.

use std::sync::Arc;

use neural_forecast_runtime::device::{
    Data, KernelClass, LoadOptions, Precision, Request, Resident, Run,
};
use neural_forecast_runtime::ops::{Activation, Linear};
use neural_forecast_runtime::plan::{Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder};
use neural_forecast_runtime::{DeviceError, MemoryWeights, PlanError};

use crate::device::Shared;
use crate::resident::WgpuResident;

/// Batch, time, inputs and outputs: for each kind of tile, none a multiple of it.
const SIZES: [[usize; 4]; 3] = [[2, 261, 72, 136], [133, 1, 72, 136], [133, 1, 40, 52]];

/// A whole number in −4..=4 from a place.
fn number(place: usize, seed: usize) -> f32 {
    let mixed = (place + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503) >> 7;
    (mixed % 9) as f32 - 4.0
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|place| number(place, seed)).collect()
}

/// `relu(x·Wᵀ + b)`.
fn plan([_, time, inputs, outputs]: [usize; 4]) -> Result<Plan, PlanError> {
    let mut plan = PlanBuilder::new("trial", Context::Fixed(time));
    plan.begin(EntryKind::Full);
    let x = plan.input("x", DType::F32, &[Dim::BATCH, time.into(), inputs.into()]);
    let (weight, bias) = (plan.weight("w", &[outputs, inputs]), plan.weight("b", &[outputs]));
    let y = plan.step(Linear::new(x, weight).bias(bias).activation(Activation::Relu))?;
    plan.output("y", y[0], Vec::new());
    plan.finish()
}

/// What `plan` gives, in whole numbers.
fn expected(sizes: [usize; 4], x: &[f32], w: &[f32], b: &[f32]) -> Vec<f32> {
    let [_, _, inputs, _] = sizes;
    let row = |x: &[f32]| -> Vec<f32> {
        let sum = |w: &[f32]| -> f32 { x.iter().zip(w).map(|(x, w)| x * w).sum() };
        w.chunks(inputs).zip(b).map(|(w, b)| (sum(w) + b).max(0.0)).collect()
    };
    x.chunks(inputs).flat_map(row).collect()
}

/// Runs all products; `lanes` are those of the subgroups that shall multiply matrices together.
///
/// # Errors
/// The first element that is not what it must be, or what the device reports.
pub(crate) fn run(gpu: &Arc<Shared>, lanes: Option<u32>) -> Result<(), String> {
    for sizes in SIZES {
        for class in [KernelClass::Latency, KernelClass::Throughput] {
            product(gpu, lanes, sizes, class)?;
        }
    }
    Ok(())
}

fn product(
    gpu: &Arc<Shared>,
    lanes: Option<u32>,
    sizes: [usize; 4],
    class: KernelClass,
) -> Result<(), String> {
    let [batch, time, inputs, outputs] = sizes;
    let plan = plan(sizes).map_err(|error| error.to_string())?;
    let x = numbers(batch * time * inputs, 1);
    let (w, b) = (numbers(outputs * inputs, 2), numbers(outputs, 3));
    let mut weights = MemoryWeights::new();
    weights.insert("w", &[outputs, inputs], &w);
    weights.insert("b", &[outputs], &b);
    let options = LoadOptions { precision: Precision::F16, ..LoadOptions::default() };
    let computed = || -> Result<Vec<f32>, DeviceError> {
        let mut resident = WgpuResident::load(Arc::clone(gpu), &plan, &weights, (&options, lanes))?;
        let bucket = Bucket { batch, length: time };
        let mut program = resident.compile(Request { entry: EntryKind::Full, bucket, class })?;
        program.write(0, Data::F32(&x));
        program.submit(&Run { rows: batch, ..Run::default() })?;
        program.wait()?;
        let mut y = vec![f32::NAN; batch * time * outputs];
        program.read(0, &mut y)?;
        Ok(y)
    };
    let found = computed().map_err(|error| error.to_string())?;
    let wanted = expected(sizes, &x, &w, &b);
    match found.iter().zip(&wanted).position(|(found, wanted)| found != wanted) {
        None => Ok(()),
        Some(i) => Err(format!(
            "{} product of {sizes:?}: element {i} is {}, expected {}",
            class.name(),
            found[i],
            wanted[i]
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{WgpuDevice, WgpuOptions};
    use neural_forecast_runtime::device::Device;
    use neural_forecast_runtime::testing::device_or_skip;

    #[test]
    fn the_products_are_exact_without_matrices_of_subgroups() {
        let opened = WgpuDevice::open(0, WgpuOptions::default());
        let Some(device) = device_or_skip("wgpu", opened) else { return };
        if device.capabilities().precisions.contains(&Precision::F16) {
            assert_eq!(run(device.shared(), None), Ok(()));
        }
    }

    #[test]
    fn a_device_that_computes_nothing_does_not_pass() {
        let device = WgpuDevice::open_noop(&WgpuOptions::default()).expect("it is always there");
        let failed = run(device.shared(), None).expect_err("its results are not the products'");
        assert!(!failed.is_empty());
    }
}
