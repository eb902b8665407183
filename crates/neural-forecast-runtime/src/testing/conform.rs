//! The comparison of a device with the reference, case by case.
//!
//! Takes `&dyn Device`, so that every backend runs the same function over the same cases.

use super::{Case, Tolerance};
use crate::device::{Device, KernelClass, LoadOptions, Program, Request, Resident, Run, Support};
use crate::ops::Op;
use crate::plan::Bucket;
use crate::reference::ReferenceDevice;

/// Runs of a case with states: enough to carry something and to wrap a small ring.
const STATEFUL_RUNS: usize = 3;

/// Compares a device with the reference on one case. Checks the outputs, the states after several
/// runs, that a run in a larger bucket gives the same bits, that a repeated run does, and that a
/// row alone does; all with the kernels of either class.
///
/// # Errors
/// What differs, as text. `Ok(false)` where the device does not support an op of the case.
pub fn conform(device: &dyn Device, case: &Case, options: &LoadOptions) -> Result<bool, String> {
    let entry = case.plan.entry(case.entry).ok_or("the case has no such entry")?;
    let unsupported = |step: &crate::plan::Step| {
        matches!(device.support(&step.op, options.precision), Support::Unsupported(_))
    };
    if entry.steps.iter().any(unsupported) {
        return Ok(false);
    }
    let reference_options =
        LoadOptions { precision: crate::device::Precision::F32, ..options.clone() };
    let reference = ReferenceDevice::new();
    let mut reference =
        Bench::new(&reference, case, &reference_options, case.bucket, KernelClass::Latency)?;
    let runs = if entry.uses_states() { STATEFUL_RUNS } else { 1 };
    let outputs: Result<Vec<_>, String> = (0..runs).map(|_| reference.run(case)).collect();
    let expected = Expected { outputs: outputs?, resident: reference.resident };
    for class in [KernelClass::Latency, KernelClass::Throughput] {
        let exact = Bench::new(device, case, options, case.bucket, class)?;
        let spare = if class == KernelClass::Latency { 3 } else { 61 };
        let roomy = Bucket { batch: case.bucket.batch + spare, ..case.bucket };
        let larger = Bench::new(device, case, options, roomy, class)?;
        compare_runs(case, &expected, exact, larger)
            .map_err(|message| format!("{} kernels: {message}", class.name()))?;
    }
    Ok(true)
}

/// What the reference gave.
struct Expected {
    /// Of each run, each output.
    outputs: Vec<Vec<Vec<f32>>>,
    /// With the states after the last run.
    resident: Box<dyn Resident>,
}

/// Runs a case on the device, and on the device in a larger bucket.
fn compare_runs(
    case: &Case,
    expected: &Expected,
    mut exact: Bench,
    mut larger: Bench,
) -> Result<(), String> {
    let entry = case.plan.entry(case.entry).ok_or("the case has no such entry")?;
    for (run, expected) in expected.outputs.iter().enumerate() {
        let found = exact.run(case)?;
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            compare(found, expected, case.tolerance)
                .map_err(|m| format!("run {run}, output {i}: {m}"))?;
        }
        if bits(&larger.run(case)?).ne(bits(&found)) {
            return Err(format!("run {run}: bits depend on the bucket's batch"));
        }
    }
    if entry.uses_states() {
        for slot in 0..case.bucket.batch as u32 {
            let found = exact.resident.export_state(slot).map_err(|e| e.to_string())?;
            let expected = expected.resident.export_state(slot).map_err(|e| e.to_string())?;
            for ((found, expected), state) in found.iter().zip(&expected).zip(&case.plan.states) {
                compare(found, expected, case.tolerance)
                    .map_err(|m| format!("state `{}` of slot {slot}: {m}", state.name))?;
            }
        }
        return Ok(());
    }
    let all = exact.run(case)?;
    if bits(&all).ne(bits(&exact.run(case)?)) {
        return Err("bits differ between two equal runs".into());
    }
    // Rows of the batch see one another in attention over groups alone.
    let coupled = |op: &Op| match op {
        Op::Attention(op) => op.groups.is_some(),
        Op::EncoderStack(op) | Op::DecoderStack(op) => op.groups.is_some(),
        _ => false,
    };
    if entry.steps.iter().any(|step| coupled(&step.op)) {
        return Ok(());
    }
    let alone = exact.run_rows(case, 1)?;
    for (i, (alone, all)) in alone.iter().zip(&all).enumerate() {
        let row = exact.program.info().output_elements[i].1;
        if row > 0 && alone.iter().map(|x| x.to_bits()).ne(all[..row].iter().map(|x| x.to_bits())) {
            return Err(format!("output {i}: bits of a row depend on the other rows"));
        }
    }
    Ok(())
}

/// Runs [`conform`] on many cases and gives the names and messages of all that failed, and how many
/// ran.
pub fn conform_all(
    device: &dyn Device,
    cases: &[Case],
    options: &LoadOptions,
) -> (usize, Vec<String>) {
    let mut ran = 0;
    let mut failures = Vec::new();
    for case in cases {
        match conform(device, case, options) {
            Ok(did) => ran += usize::from(did),
            Err(message) => failures.push(format!("{}: {message}", case.name)),
        }
    }
    (ran, failures)
}

/// Compares two buffers; says where the difference is largest for its tolerance.
///
/// # Errors
/// The first length or element that differs by more than the tolerance.
pub fn compare(found: &[f32], expected: &[f32], tolerance: Tolerance) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} elements, expected {}", found.len(), expected.len()));
    }
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        if !tolerance.accepts(f64::from(found), f64::from(expected)) {
            return Err(format!(
                "element {i} is {found}, expected {expected} within {tolerance:?}"
            ));
        }
    }
    Ok(())
}

fn bits(outputs: &[Vec<f32>]) -> impl Iterator<Item = u32> {
    outputs.iter().flatten().map(|x| x.to_bits())
}

/// A case compiled on a device.
struct Bench {
    resident: Box<dyn Resident>,
    program: Box<dyn Program>,
    slots: Vec<u32>,
}

impl Bench {
    fn new(
        device: &dyn Device,
        case: &Case,
        options: &LoadOptions,
        bucket: Bucket,
        class: KernelClass,
    ) -> Result<Bench, String> {
        let batch = case.bucket.batch;
        let options = LoadOptions { state_slots: batch, ..options.clone() };
        let resident = device.load(&case.plan, &case.weights, &options);
        let mut resident = resident.map_err(|e| format!("load: {e}"))?;
        let request = Request { entry: case.entry, bucket, class };
        let program = resident.compile(request).map_err(|e| format!("compile: {e}"))?;
        let stateful = case.plan.entry(case.entry).is_some_and(|entry| entry.uses_states());
        let slots = if stateful { (0..batch as u32).rev().collect() } else { Vec::new() };
        Ok(Bench { resident, program, slots })
    }

    /// Runs all rows.
    fn run(&mut self, case: &Case) -> Result<Vec<Vec<f32>>, String> {
        self.run_rows(case, case.bucket.batch)
    }

    /// Writes the first rows of the inputs, runs, waits and reads all outputs.
    fn run_rows(&mut self, case: &Case, rows: usize) -> Result<Vec<Vec<f32>>, String> {
        case.write(self.program.as_mut(), 0..rows);
        let slots = self.slots.get(..rows).unwrap_or_default();
        let run = Run { rows, slots, cancel: None };
        self.program.submit(&run).map_err(|e| format!("submit: {e}"))?;
        // Polled to its end first, because some devices cannot block.
        while !self.program.poll() {
            std::thread::yield_now();
        }
        self.program.wait().map_err(|e| format!("wait: {e}"))?;
        let counts = self.program.info().output_elements.clone();
        let mut outputs = Vec::new();
        for (i, (all, row)) in counts.into_iter().enumerate() {
            let mut output = vec![0.0; if row == 0 { all } else { row * rows }];
            self.program.read(i, &mut output).map_err(|e| format!("read: {e}"))?;
            outputs.push(output);
        }
        Ok(outputs)
    }
}
