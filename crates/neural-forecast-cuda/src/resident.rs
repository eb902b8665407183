//! A plan with its weights and states on a GPU.

use std::sync::Arc;

use neural_forecast_runtime::arena::MemoryLine;
use neural_forecast_runtime::device::{
    LoadOptions, Program, Request, Resident, WeightSource, check_weights,
};
use neural_forecast_runtime::plan::{Entry, Plan};
use neural_forecast_runtime::prepare;
use neural_forecast_runtime::{Budget, DeviceError};

use crate::device::Shared as Gpu;
use crate::driver::{DeviceMemory, Stream};
use crate::program::CudaProgram;
use crate::step::whole::Whole;
use crate::step::{self, Loaded, Packer};

/// A state's slots on the device, `[slots, elements]` f32.
#[derive(Debug)]
pub(crate) struct StateStore {
    pub(crate) memory: DeviceMemory,
    pub(crate) elements: usize,
}

/// What a resident plan and its programs share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) plan: Plan,
    pub(crate) options: LoadOptions,
    pub(crate) budget: Budget,
    pub(crate) states: Vec<StateStore>,
    /// Where programs with states run, and where states are exported and imported: its order
    /// keeps what follows on one another's states apart.
    pub(crate) stateful: Arc<Stream>,
    /// Keeps the packed weights.
    _weights: Vec<DeviceMemory>,
}

/// An entry with its weights on the device.
#[derive(Debug)]
struct LoadedEntry {
    entry: Entry,
    steps: Vec<Box<dyn Loaded>>,
    whole: Vec<Box<dyn Whole>>,
}

/// The resident of [`crate::CudaDevice`].
#[derive(Debug)]
pub(crate) struct CudaResident {
    shared: Arc<Shared>,
    entries: Vec<LoadedEntry>,
    memory: Vec<MemoryLine>,
}

impl CudaResident {
    pub(crate) fn load(
        gpu: Arc<Gpu>,
        plan: &Plan,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<CudaResident, DeviceError> {
        check_weights(plan, weights)?;
        let precision = options.precision;
        let (plan, _) = prepare(plan, options, &|op| step::has_kernel(op, &gpu.gpu, precision))?;
        let budget = Budget::new(options.memory_bytes_max);
        let mut memory = Vec::new();
        let stateful = Arc::new(Stream::new(&gpu.context, gpu.priorities.1)?);
        let states = allocate_states(&gpu, &plan, options, &budget, &stateful, &mut memory)?;
        let mut packed = Vec::new();
        let mut upload = |owner: &str, bytes: &[u8]| {
            let owner = format!("weights {owner}");
            budget.reserve(&owner, bytes.len() as u64)?;
            let weights = DeviceMemory::new(&gpu.context, &owner, bytes.len())?;
            weights.upload(0, bytes)?;
            memory.push(MemoryLine::new(owner, bytes.len() as u64));
            let address = weights.address();
            packed.push(weights);
            Ok(address)
        };
        let mut packer = Packer::new(&gpu.gpu, &plan, weights, precision, &mut upload);
        let mut entries = Vec::new();
        for entry in &plan.entries {
            let whole = step::whole::load(entry, &mut packer)?;
            let steps = entry.steps.iter().map(|step| step::load(step, &mut packer));
            let steps = steps.collect::<Result<Vec<_>, _>>()?;
            entries.push(LoadedEntry { entry: entry.clone(), steps, whole });
        }
        // States are zero and weights are there before anything runs on another stream.
        stateful.synchronize()?;
        let shared = Shared {
            gpu,
            plan,
            options: options.clone(),
            budget,
            states,
            stateful,
            _weights: packed,
        };
        Ok(CudaResident { shared: Arc::new(shared), entries, memory })
    }

    /// The first entry's steps, for tests to change.
    #[cfg(test)]
    pub(crate) fn first_steps(&mut self) -> &mut Vec<Box<dyn Loaded>> {
        &mut self.entries[0].steps
    }

    /// The first entry's whole-forecast kernels, for tests to change.
    #[cfg(test)]
    pub(crate) fn first_whole(&mut self) -> &mut Vec<Box<dyn Whole>> {
        &mut self.entries[0].whole
    }

    fn slot(&self, slot: u32) -> usize {
        let slots = self.shared.options.state_slots;
        assert!((slot as usize) < slots, "the caller broke the contract: slot {slot} of {slots}");
        slot as usize
    }
}

fn allocate_states(
    gpu: &Gpu,
    plan: &Plan,
    options: &LoadOptions,
    budget: &Budget,
    stream: &Stream,
    lines: &mut Vec<MemoryLine>,
) -> Result<Vec<StateStore>, DeviceError> {
    let mut states = Vec::new();
    for state in &plan.states {
        let elements = state.shape.iter().product::<usize>();
        let owner = format!("state `{}`", state.name);
        let bytes = elements.saturating_mul(options.state_slots).saturating_mul(4);
        budget.reserve(&owner, bytes as u64)?;
        let memory = DeviceMemory::new(&gpu.context, &owner, bytes)?;
        memory.zero(0, bytes, stream)?;
        lines.push(MemoryLine::new(owner, bytes as u64));
        states.push(StateStore { memory, elements });
    }
    Ok(states)
}

impl Resident for CudaResident {
    fn memory(&self) -> Vec<MemoryLine> {
        self.memory.clone()
    }

    fn compile(&mut self, request: Request) -> Result<Box<dyn Program>, DeviceError> {
        let loaded = self.entries.iter().find(|loaded| loaded.entry.kind == request.entry);
        let loaded = loaded.expect("the caller broke the contract: the plan has the entry");
        loaded.entry.check_bucket(request.bucket)?;
        let shared = Arc::clone(&self.shared);
        let program =
            CudaProgram::compile(shared, &loaded.entry, &loaded.steps, &loaded.whole, request)?;
        Ok(Box::new(program))
    }

    fn export_state(&self, slot: u32) -> Result<Vec<Vec<f32>>, DeviceError> {
        let slot = self.slot(slot);
        self.shared.stateful.synchronize()?;
        let export = self.shared.states.iter().map(|state| {
            let mut elements = vec![0.0; state.elements];
            state.memory.download(slot * state.elements * 4, &mut elements)?;
            Ok(elements)
        });
        export.collect()
    }

    fn import_state(&mut self, slot: u32, states: &[Vec<f32>]) -> Result<(), DeviceError> {
        let slot = self.slot(slot);
        let shared = &self.shared;
        let found = states.len();
        assert_eq!(found, shared.states.len(), "the caller broke the contract: states imported");
        for (new, (state, declared)) in
            states.iter().zip(shared.states.iter().zip(&shared.plan.states))
        {
            let name = &declared.name;
            assert_eq!(
                new.len(),
                state.elements,
                "the caller broke the contract: elements of state `{name}`"
            );
        }
        shared.stateful.synchronize()?;
        for (new, state) in states.iter().zip(&shared.states) {
            let bytes: Vec<u8> = new.iter().flat_map(|x| x.to_ne_bytes()).collect();
            state.memory.upload(slot * state.elements * 4, &bytes)?;
        }
        Ok(())
    }

    fn reset_state(&mut self, slot: u32) -> Result<(), DeviceError> {
        let slot = self.slot(slot);
        for state in &self.shared.states {
            let bytes = state.elements * 4;
            state.memory.zero(slot * bytes, bytes, &self.shared.stateful)?;
        }
        self.shared.stateful.synchronize()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nothing may still use weights or states; programs have waited for their own runs.
        let _ = self.stateful.synchronize();
    }
}
