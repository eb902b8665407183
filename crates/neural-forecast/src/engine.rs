//! A plan resident on a device, with its programs compiled as batch sizes ask for them.
//!
//! Knows plans, buckets and rows. Does not know series or columns: those are the forecaster's.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use neural_forecast_runtime::arena::{ArenaPlan, MemoryLine};
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Precision, Program, Request, Resident, Run,
    WeightSource,
};
use neural_forecast_runtime::plan::{Bucket, EntryKind, Plan};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::error::{Error, ErrorKind, Result};

/// Bytes that the values of one program may take; decides how many rows travel together. 64 MiB
/// holds thousands of rows of a small model and a few of a wide one, and is far below what a
/// laptop has.
const ARENA_BYTES_MAX: usize = 64 << 20;

/// Most rows of one program, whatever their size: beyond it nothing is gained on any workload of
/// the benchmark suite, and the first answer comes later.
const ROWS_MAX: usize = 1024;

/// Programs kept for reuse per entry and bucket; more callers at once compile their own.
const IDLE_MAX: usize = 4;

/// How an engine is made.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Number format of weights and products.
    pub precision: Precision,
    /// Which kernels.
    pub class: KernelClass,
    /// Whether the fusion pass runs.
    pub fuse: bool,
    /// Whether stacks are lowered even where the device has them fused.
    pub lower: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            precision: Precision::F32,
            class: KernelClass::Latency,
            fuse: true,
            lower: false,
        }
    }
}

/// A resident plan. Callers on several threads run at once, each on a program of its own.
#[derive(Debug)]
pub struct Engine {
    plan: Plan,
    options: EngineOptions,
    rows_max: usize,
    resident: Mutex<Box<dyn Resident>>,
    idle: Mutex<BTreeMap<Request, Vec<Box<dyn Program>>>>,
}

/// The outputs of one run, in the entry's order.
pub type Outputs = Vec<Vec<f32>>;

impl Engine {
    /// Loads a plan onto a device.
    ///
    /// # Errors
    /// `Device`: memory, an unsupported precision; `Checkpoint`: a weight that is missing or has
    /// another shape.
    pub fn new(
        device: &dyn Device,
        plan: Plan,
        weights: &dyn WeightSource,
        options: EngineOptions,
    ) -> Result<Engine> {
        let rows_max = rows_max(&plan, device.capabilities().binding_bytes_max);
        let load = LoadOptions {
            precision: options.precision,
            fuse: options.fuse,
            lower: options.lower,
            state_slots: if plan.states.is_empty() { 0 } else { rows_max },
            memory_bytes_max: None,
        };
        let resident = device.load(&plan, weights, &load).map_err(device_error)?;
        Ok(Engine {
            plan,
            options,
            rows_max,
            resident: Mutex::new(resident),
            idle: Mutex::new(BTreeMap::new()),
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How it was made.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Most rows of one run; more rows go in chunks.
    pub fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// Memory of weights and states, one named line per owner.
    pub fn memory(&self) -> Vec<MemoryLine> {
        lock(&self.resident).memory()
    }

    /// Memory of one program of `rows` rows, one named line per owner.
    pub fn program_memory(&self, entry: EntryKind, rows: usize) -> Result<Vec<MemoryLine>> {
        let program = self.program(self.request(entry, rows)?)?;
        let memory = program.info().memory.clone();
        self.put_back(program);
        Ok(memory)
    }

    /// Runs an entry over `rows` rows, at most [`Engine::rows_max`]. Inputs by name; `slots` names
    /// the state slot of each row where the entry has states.
    ///
    /// # Errors
    /// `Device`: what the device reports.
    ///
    /// # Panics
    /// If an input is missing or has not `rows` rows: the caller built them from the same plan.
    pub fn run(
        &self,
        entry: EntryKind,
        rows: usize,
        inputs: &[(&str, Data<'_>)],
        slots: &[u32],
    ) -> Result<Outputs> {
        let mut program = self.program(self.request(entry, rows)?)?;
        let result = run_program(program.as_mut(), rows, inputs, slots);
        // A program whose run failed is dropped rather than reused.
        if result.is_ok() {
            self.put_back(program);
        }
        result
    }

    fn request(&self, entry: EntryKind, rows: usize) -> Result<Request> {
        if self.plan.entry(entry).is_none() {
            let (plan, entry) = (&self.plan.name, entry.name());
            let message = format!("model `{plan}` has no entry `{entry}`");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let length = self.plan.context.longest();
        let batch = Plan::batch_bucket(rows, self.rows_max);
        let bucket = Bucket { batch, length };
        Ok(Request { entry, bucket, class: self.options.class })
    }

    fn program(&self, request: Request) -> Result<Box<dyn Program>> {
        if let Some(program) = lock(&self.idle).get_mut(&request).and_then(Vec::pop) {
            return Ok(program);
        }
        lock(&self.resident).compile(request).map_err(device_error)
    }

    fn put_back(&self, program: Box<dyn Program>) {
        let mut idle = lock(&self.idle);
        let programs = idle.entry(program.info().request).or_default();
        if programs.len() < IDLE_MAX {
            programs.push(program);
        }
    }
}

fn run_program(
    program: &mut dyn Program,
    rows: usize,
    inputs: &[(&str, Data<'_>)],
    slots: &[u32],
) -> Result<Outputs> {
    for index in 0..program.info().inputs.len() {
        let name = &program.info().inputs[index].name;
        let data = inputs.iter().find(|(given, _)| given == name).map(|(_, data)| *data);
        let data = data.unwrap_or_else(|| panic!("input `{name}` of the plan is not given"));
        program.write(index, data);
    }
    program.submit(&Run { rows, slots, cancel: None }).map_err(device_error)?;
    program.wait().map_err(device_error)?;
    let mut outputs = Vec::with_capacity(program.info().output_elements.len());
    for index in 0..program.info().output_elements.len() {
        let (full, per_row) = program.info().output_elements[index];
        let mut output = vec![0.0; if per_row == 0 { full } else { per_row * rows }];
        program.read(index, &mut output).map_err(device_error)?;
        outputs.push(output);
    }
    Ok(outputs)
}

/// The largest power of two of rows whose widest entry fits [`ARENA_BYTES_MAX`], and an eighth of
/// what the device binds at once: a stack that is lowered adds queries, keys, values and the width
/// of its feed-forward to the values that the plan names.
fn rows_max(plan: &Plan, binding_bytes_max: u64) -> usize {
    let length = plan.context.longest();
    let row_bytes = plan
        .entries
        .iter()
        .map(|entry| ArenaPlan::new(entry, Bucket { batch: 1, length }).bytes())
        .max()
        .unwrap_or(1)
        .max(1);
    let bound = usize::try_from(binding_bytes_max / 8).unwrap_or(usize::MAX);
    let rows = (ARENA_BYTES_MAX.min(bound) / row_bytes).clamp(1, ROWS_MAX);
    1 << rows.ilog2()
}

/// A poisoned lock protects plain data here: a panic between lock and unlock leaves it whole.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device's error as the library's.
pub(crate) fn device_error(error: DeviceError) -> Error {
    let kind = match error.kind() {
        DeviceErrorKind::Weights => ErrorKind::Checkpoint,
        DeviceErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Device,
    };
    Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TransformerConfig;
    use crate::models::transformer;
    use neural_forecast_runtime::ops::Keep;

    #[test]
    fn fewer_rows_travel_together_where_less_is_bound_at_once() {
        let config = TransformerConfig::default();
        let plan = transformer::plan(&config, 8, Keep::Last(1)).expect("the default is valid");
        let unbound = rows_max(&plan, u64::MAX);
        assert_eq!(rows_max(&plan, 8 * ARENA_BYTES_MAX as u64), unbound);
        let least = rows_max(&plan, 128 << 20);
        assert!((1..unbound).contains(&least), "{least} of {unbound}");
        assert_eq!(rows_max(&plan, 0), 1, "one row goes on its own, or is refused by the device");
    }
}
