//! A trial of the matrices that subgroups multiply together, on the device itself: products of
//! small whole numbers, whose sums are exact in any order, in every tile that `linear_cooperative`
//! has; and recurrences and attention, beside what the kernels give that every device has.
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
use neural_forecast_runtime::ops::{
    Activation, Attention, Cell, Columns, Linear, RnnStack, RnnWeights,
};
use neural_forecast_runtime::plan::{Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder};
use neural_forecast_runtime::{DeviceError, MemoryWeights, PlanError};

use crate::device::Shared;
use crate::resident::WgpuResident;

/// Batch, time, inputs and outputs: for each kind of tile, none a multiple of it.
const SIZES: [[usize; 4]; 3] = [[2, 261, 72, 136], [133, 1, 72, 136], [133, 1, 40, 52]];

/// Rows, steps and inputs of the recurrences, and their units: rows and units no multiple of a
/// matrix's side, and as many units as there may be.
const ROWS: usize = 37;
const STEPS: usize = 5;
const INPUTS: usize = 10;
const HIDDEN: [usize; 2] = [20, 128];

/// Positions and columns of a head of the attentions: of one tile of keys and of several.
const HEADS: [(usize, usize); 2] = [(61, 16), (150, 64)];

/// How far outputs between −1 and 1 may be from those of sums in another order, whose operands are
/// not rounded.
const DIFFERENCE_MAX: f32 = 5e-3;

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
    let Some(lanes) = lanes else { return Ok(()) };
    for hidden in HIDDEN {
        let (plan, weights) = recurrence_plan(hidden).map_err(|error| error.to_string())?;
        let sizes = [ROWS, STEPS, INPUTS, 2 * hidden];
        beside(gpu, lanes, (&plan, &weights), sizes)
            .map_err(|message| format!("recurrence of {hidden} units: {message}"))?;
    }
    for (time, head) in HEADS {
        let plan = attention_plan(time, head).map_err(|error| error.to_string())?;
        let sizes = [2, time, 6 * head, 2 * head];
        beside(gpu, lanes, (&plan, &MemoryWeights::new()), sizes)
            .map_err(|message| format!("attention of heads of {head}: {message}"))?;
    }
    Ok(())
}

/// Causal attention of two heads.
fn attention_plan(time: usize, head: usize) -> Result<Plan, PlanError> {
    let mut plan = PlanBuilder::new("trial", Context::Fixed(time));
    plan.begin(EntryKind::Full);
    let width = 2 * head;
    let value = plan.input("x", DType::F32, &[Dim::BATCH, time.into(), (3 * width).into()]);
    let columns = |i: usize| Columns { value, start: i * width, width };
    let attention = Attention::new(columns(0), columns(1), columns(2), 2, 0.5);
    let y = plan.step(Attention { causal: true, ..attention })?;
    plan.output("y", y[0], Vec::new());
    plan.finish()
}

/// An LSTM in both directions: a layer whose inputs are operands of the recurrence, and one whose
/// sums over the inputs are there before.
fn recurrence_plan(hidden: usize) -> Result<(Plan, MemoryWeights), PlanError> {
    let mut plan = PlanBuilder::new("trial", Context::Fixed(STEPS));
    let mut weights = MemoryWeights::new();
    // Of the size that keeps states between −1 and 1 without driving them there.
    let scale = 0.25 / (hidden as f32).sqrt();
    let mut weight = |plan: &mut PlanBuilder, shape: &[usize]| {
        let name = format!("w{}", weights.names().count());
        let count = shape.iter().product();
        let seed = 10 + weights.names().count();
        let elements: Vec<f32> = numbers(count, seed).iter().map(|x| x * scale).collect();
        weights.insert(name.clone(), shape, &elements);
        plan.weight(name, shape)
    };
    let mut layers = Vec::new();
    for inputs in [INPUTS, 2 * hidden] {
        let mut layer = Vec::new();
        for _ in 0..2 {
            layer.push(RnnWeights {
                w_ih: weight(&mut plan, &[4 * hidden, inputs]),
                w_hh: weight(&mut plan, &[4 * hidden, hidden]),
                b_ih: Some(weight(&mut plan, &[4 * hidden])),
                b_hh: Some(weight(&mut plan, &[4 * hidden])),
                w_hr: None,
            });
        }
        layers.push(layer);
    }
    plan.begin(EntryKind::Full);
    let x = plan.input("x", DType::F32, &[Dim::BATCH, STEPS.into(), INPUTS.into()]);
    let y = plan.step(RnnStack::new(x, Cell::Lstm, hidden, layers))?;
    plan.output("y", y[0], Vec::new());
    Ok((plan.finish()?, weights))
}

/// What subgroups give beside what all other kernels do; rows, steps, and elements of a step of the
/// input and of the output.
fn beside(
    gpu: &Arc<Shared>,
    lanes: u32,
    plan: (&Plan, &MemoryWeights),
    [rows, steps, inputs, outputs]: [usize; 4],
) -> Result<(), String> {
    let x: Vec<f32> = numbers(rows * steps * inputs, 3).iter().map(|x| x * 0.25).collect();
    let sizes = [rows, steps, rows * steps * outputs];
    let run = |lanes| {
        let computed = computed(gpu, lanes, plan, KernelClass::Throughput, sizes, &x);
        computed.map_err(|error| error.to_string())
    };
    let (found, wanted) = (run(Some(lanes))?, run(None)?);
    let differs = |(found, wanted): (&f32, &f32)| {
        let difference = (found - wanted).abs();
        difference.is_nan() || difference > DIFFERENCE_MAX
    };
    match found.iter().zip(&wanted).position(differs) {
        None => Ok(()),
        Some(i) => Err(format!("element {i} is {}, expected {}", found[i], wanted[i])),
    }
}

/// The only output of a plan, of `[rows, steps, elements]`.
fn computed(
    gpu: &Arc<Shared>,
    lanes: Option<u32>,
    (plan, weights): (&Plan, &MemoryWeights),
    class: KernelClass,
    [rows, steps, elements]: [usize; 3],
    x: &[f32],
) -> Result<Vec<f32>, DeviceError> {
    let options = LoadOptions { precision: Precision::F16, ..LoadOptions::default() };
    let mut resident = WgpuResident::load(Arc::clone(gpu), plan, weights, (&options, lanes))?;
    let bucket = Bucket { batch: rows, length: steps };
    let mut program = resident.compile(Request { entry: EntryKind::Full, bucket, class })?;
    program.write(0, Data::F32(x));
    program.submit(&Run { rows, ..Run::default() })?;
    program.wait()?;
    let mut y = vec![f32::NAN; elements];
    program.read(0, &mut y)?;
    Ok(y)
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
    let sizes_of_y = [batch, time, batch * time * outputs];
    let found = computed(gpu, lanes, (&plan, &weights), class, sizes_of_y, &x)
        .map_err(|error| error.to_string())?;
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
