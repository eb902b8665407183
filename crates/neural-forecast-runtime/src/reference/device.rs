//! The reference as a device: the whole contract, computed in `f64`, inputs, outputs and states in
//! f32.
//!
//! The oracle that other devices are compared with through the same three traits. Runs happen
//! inside `submit`; nothing is fused, nothing lowered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Buffers, Flight, Loaded, run_watched};
use crate::arena::MemoryLine;
use crate::device::{
    Capabilities, Data, Device, DeviceKind, KernelCount, LoadOptions, Precision, Program,
    ProgramInfo, Request, Resident, Run, Support, WeightSource,
};
use crate::error::{DeviceError, DeviceErrorKind};
use crate::ops::Op;
use crate::plan::{Bucket, Entry};

/// The device of the reference implementations. Takes every op, in [`Precision::F32`] (which it
/// exceeds).
#[derive(Debug)]
pub struct ReferenceDevice {
    capabilities: Capabilities,
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl ReferenceDevice {
    /// Opens it.
    pub fn new() -> Self {
        let capabilities = Capabilities {
            kind: DeviceKind::Test,
            id: "reference".into(),
            name: "reference implementations in f64".into(),
            precisions: vec![Precision::F32],
            memory_bytes: u64::MAX,
            bindings_max: usize::MAX,
            binding_bytes_max: u64::MAX,
            unified_memory: true,
            cooperative: false,
            peak_flops: Vec::new(),
            features: Vec::new(),
        };
        ReferenceDevice { capabilities, counts: Arc::default() }
    }
}

impl Default for ReferenceDevice {
    fn default() -> Self {
        ReferenceDevice::new()
    }
}

impl Device for ReferenceDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn support(&self, _: &Op, precision: Precision) -> Support {
        match precision {
            Precision::F32 => Support::Native,
            other => Support::Unsupported(format!("the reference has no {}", other.name())),
        }
    }

    fn load(
        &self,
        plan: &crate::plan::Plan,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Resident>, DeviceError> {
        if options.precision != Precision::F32 {
            let message = format!("precision {} on the reference", options.precision.name());
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let loaded = Arc::new(Loaded::new(plan.clone(), weights, options)?);
        Ok(Box::new(ReferenceResident { loaded, counts: Arc::clone(&self.counts) }))
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.iter();
        counts
            .map(|(kernel, &launches)| KernelCount {
                kernel: kernel.clone(),
                launches,
                lingering: 0,
            })
            .collect()
    }
}

#[derive(Debug)]
struct ReferenceResident {
    loaded: Arc<Loaded>,
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Resident for ReferenceResident {
    fn memory(&self) -> Vec<MemoryLine> {
        self.loaded.memory()
    }

    fn compile(&mut self, request: Request) -> Result<Box<dyn Program>, DeviceError> {
        let plan = &self.loaded.plan;
        let entry = plan.entry(request.entry);
        let entry = entry.expect("the caller broke the contract: the plan has the entry").clone();
        entry.check_bucket(request.bucket)?;
        let info = ProgramInfo::new(plan, &entry, request, self.loaded.options.precision);
        let bytes = info.memory.iter().map(|line| line.bytes).sum();
        self.loaded.reserve("the program's values", bytes)?;
        Ok(Box::new(ReferenceProgram {
            buffers: Buffers::new(&info),
            info,
            entry,
            loaded: Arc::clone(&self.loaded),
            counts: Arc::clone(&self.counts),
            bytes,
            flight: Flight::Idle,
        }))
    }

    fn export_state(&self, slot: u32) -> Result<Vec<Vec<f32>>, DeviceError> {
        Ok(self.loaded.export(slot))
    }

    fn import_state(&mut self, slot: u32, states: &[Vec<f32>]) -> Result<(), DeviceError> {
        self.loaded.import(slot, states);
        Ok(())
    }

    fn reset_state(&mut self, slot: u32) -> Result<(), DeviceError> {
        self.loaded.reset(slot);
        Ok(())
    }
}

#[derive(Debug)]
struct ReferenceProgram {
    info: ProgramInfo,
    entry: Entry,
    buffers: Buffers,
    loaded: Arc<Loaded>,
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
    bytes: u64,
    /// A run's result, which is there at once.
    flight: Flight<Result<(), DeviceError>>,
}

impl ReferenceProgram {
    fn run(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        let bucket = Bucket { batch: run.rows, ..self.info.request.bucket };
        let inputs = self.buffers.inputs(&self.entry, bucket);
        let stateful = self.entry.uses_states();
        let mut states = match stateful {
            true => self.loaded.gather(run.slots),
            false => super::zero_states(&self.loaded.plan, run.rows),
        };
        let (entry, counts) = (&self.entry, &self.counts);
        let mut watch = |i: usize| {
            if run.cancel.as_ref().is_some_and(|cancel| cancel.is_cancelled()) {
                let step = entry.steps.get(i).map_or("commit", |step| step.label.as_str());
                let message = format!("before {step}");
                return Err(DeviceError::new(DeviceErrorKind::Cancelled, message));
            }
            if let Some(step) = entry.steps.get(i) {
                let kernel = format!("{}-reference-f64", step.op.name());
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                *counts.entry(kernel).or_default() += 1;
            }
            Ok(())
        };
        let (plan, kind) = (&self.loaded.plan, self.info.request.entry);
        let weights = &self.loaded.weights;
        let outputs = run_watched(plan, kind, bucket, weights, &inputs, &mut states, &mut watch)?;
        if stateful {
            self.loaded.scatter(run.slots, &states);
        }
        self.buffers.keep(run.rows, outputs);
        Ok(())
    }
}

impl Program for ReferenceProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn write(&mut self, input: usize, data: Data<'_>) {
        // An error of an earlier run does not keep inputs from being written.
        let _ = self.flight.check_idle("an input was written");
        self.buffers.write(&self.info, &self.entry, input, data);
    }

    fn submit(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        self.flight.check_idle("a run was submitted")?;
        let slots = self.entry.uses_states().then_some(self.loaded.options.state_slots);
        self.info.check_run(run, slots);
        self.buffers.forget();
        self.flight = Flight::Flying(self.run(run));
        Ok(())
    }

    fn poll(&mut self) -> bool {
        self.flight = match self.flight.take() {
            Flight::Flying(result) => Flight::Landed(result),
            landed => landed,
        };
        true
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        match self.flight.take() {
            Flight::Flying(result) | Flight::Landed(result) => result,
            Flight::Idle => Ok(()),
        }
    }

    fn read(&mut self, output: usize, into: &mut [f32]) -> Result<(), DeviceError> {
        self.flight.check_idle("an output was read")?;
        self.buffers.read(&self.info, output, into);
        Ok(())
    }
}

impl Drop for ReferenceProgram {
    fn drop(&mut self) {
        self.loaded.release(self.bytes);
    }
}
