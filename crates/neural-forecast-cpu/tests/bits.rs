//! Bits: a row forecasts alike in any batch and with any number of workers, and a cancelled run
//! changes no state.
//!
//! Closeness to the reference is the conformance test's business.

mod machine;

use machine::{device, tiers};
use neural_forecast_cpu::{CpuDevice, Isa};
use neural_forecast_runtime::DeviceErrorKind;
use neural_forecast_runtime::device::{
    Cancel, Device, KernelClass, LoadOptions, Precision, Program, Request, Resident, Run,
};
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::testing::{Case, cases};
use std::ops::Range;

struct Bench<'a> {
    case: &'a Case,
    rows: Range<usize>,
    resident: Box<dyn Resident>,
    program: Box<dyn Program>,
}

impl<'a> Bench<'a> {
    /// Some rows of a case, in a bucket of just these.
    fn new(device: &CpuDevice, case: &'a Case, precision: Precision, rows: Range<usize>) -> Self {
        let options = LoadOptions { precision, state_slots: rows.len(), ..LoadOptions::default() };
        let mut resident =
            device.load(&case.plan, &case.weights, &options).expect("every case loads");
        let bucket = Bucket { batch: rows.len(), ..case.bucket };
        let class = KernelClass::Throughput;
        let request = Request { entry: case.entry, bucket, class };
        let program = resident.compile(request).expect("every case compiles");
        Bench { case, rows, resident, program }
    }

    fn run(&mut self, cancel: Option<Cancel>) -> Result<Vec<Vec<f32>>, DeviceErrorKind> {
        let entry = self.case.plan.entry(self.case.entry).expect("the case has its entry");
        self.case.write(self.program.as_mut(), self.rows.clone());
        let slots: Vec<u32> = (0..self.rows.len() as u32).collect();
        let slots = if entry.uses_states() { slots.as_slice() } else { &[] };
        let run = Run { rows: self.rows.len(), slots, cancel };
        self.program.submit(&run).map_err(|e| e.kind())?;
        self.program.wait().map_err(|e| e.kind())?;
        let counts = self.program.info().output_elements.clone();
        let read = |(i, (all, _)): (usize, (usize, usize))| {
            let mut y = vec![0.0; all];
            self.program.read(i, &mut y).expect("a finished run can be read");
            y
        };
        Ok(counts.into_iter().enumerate().map(read).collect())
    }
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// Whether rows of the case do not meet, and are the first axis of everything.
fn separable(case: &Case) -> bool {
    let entry = case.plan.entry(case.entry).expect("the case has its entry");
    let grouped = entry.steps.iter().any(|step| match &step.op {
        Op::Attention(op) => op.groups.is_some(),
        Op::EncoderStack(op) | Op::DecoderStack(op) => op.groups.is_some(),
        _ => false,
    });
    let first = |shape: &[Dim]| {
        matches!(shape.first(), Some(Dim::Batch(1)))
            || !shape.iter().any(|dim| matches!(dim, Dim::Batch(_)))
    };
    !grouped && entry.values.iter().all(|value| first(&value.shape))
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_team() {
    let mut checked = 0;
    for isa in tiers() {
        let (alone, team) = (device(isa, 1), device(isa, 3));
        for case in cases().iter().filter(|case| separable(case)) {
            for precision in [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8] {
                let batch = case.bucket.batch;
                let run = |device: &CpuDevice, rows: Range<usize>| {
                    let mut bench = Bench::new(device, case, precision, rows);
                    bench.run(None).expect("nothing stops the run")
                };
                let all = run(&alone, 0..batch);
                let name = format!("{} on {}", case.name, isa.name());
                for (a, b) in all.iter().zip(run(&team, 0..batch)) {
                    assert!(bits(a) == bits(&b), "{name}: one worker and three differ");
                }
                for row in 0..batch {
                    let device = if row % 2 == 0 { &alone } else { &team };
                    for (all, one) in all.iter().zip(run(device, row..row + 1)) {
                        let n = one.len();
                        let part = if n == all.len() { 0..n } else { row * n..(row + 1) * n };
                        assert!(bits(&all[part]) == bits(&one), "{name}: row {row} alone differs");
                    }
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "only {checked} cases were checked");
}

#[test]
fn a_cancelled_run_changes_no_state() {
    let isa = Isa::available().pop().expect("there is a tier");
    for threads in [1, 2] {
        let device = device(isa, threads);
        let mut checked = 0;
        for case in &cases() {
            let mut bench = Bench::new(&device, case, Precision::F32, 0..case.bucket.batch);
            let raised = Cancel::new();
            raised.cancel();
            let stopped = bench.run(Some(raised)).map(|_| ());
            assert_eq!(stopped, Err(DeviceErrorKind::Cancelled), "{}", case.name);
            for slot in 0..case.bucket.batch as u32 {
                let states = bench.resident.export_state(slot).expect("the slot exists");
                assert!(states.iter().flatten().all(|&x| x == 0.0), "{}", case.name);
                checked += states.len();
            }
            bench.run(Some(Cancel::new())).expect("a flag that is not raised stops nothing");
        }
        assert!(checked > 0, "no case has states");
    }
}
