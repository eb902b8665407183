//! A plan with its weights and states on a device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use neural_forecast_runtime::arena::{ALIGNMENT, MemoryLine};
use neural_forecast_runtime::device::{
    LoadOptions, Program, Request, Resident, WeightSource, check_weights,
};
use neural_forecast_runtime::plan::{Entry, Plan};
use neural_forecast_runtime::prepare;
use neural_forecast_runtime::{Budget, DeviceError, DeviceErrorKind};

use crate::device::Shared as Gpu;
use crate::program::{WgpuProgram, until_mapped};
use crate::step::{self, Loaded, Packer};

/// Where a state's slots are in the store, `[slots, elements]`; both in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatePlace {
    pub(crate) first: usize,
    pub(crate) elements: usize,
}

/// What a resident plan and its programs share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) plan: Plan,
    pub(crate) options: LoadOptions,
    /// Lanes of the subgroups that multiply matrices together, where they shall.
    pub(crate) cooperative: Option<u32>,
    pub(crate) budget: Budget,
    /// Packed weights; a step's are all in one of them. At least one, so that every bind group has
    /// something to bind.
    pub(crate) weights: Vec<wgpu::Buffer>,
    /// All states.
    pub(crate) store: wgpu::Buffer,
    pub(crate) states: Vec<StatePlace>,
}

/// An entry with its weights on the device.
#[derive(Debug)]
struct LoadedEntry {
    entry: Entry,
    steps: Vec<Box<dyn Loaded>>,
}

/// The resident of [`crate::WgpuDevice`].
#[derive(Debug)]
pub(crate) struct WgpuResident {
    shared: Arc<Shared>,
    entries: Vec<LoadedEntry>,
    memory: Vec<MemoryLine>,
}

impl WgpuResident {
    pub(crate) fn load(
        gpu: Arc<Gpu>,
        plan: &Plan,
        weights: &dyn WeightSource,
        (options, cooperative): (&LoadOptions, Option<u32>),
    ) -> Result<WgpuResident, DeviceError> {
        gpu.health.check_lost()?;
        check_weights(plan, weights)?;
        let (plan, _) = prepare(plan, options, &step::has_kernel)?;
        let limits = [options.memory_bytes_max, gpu.memory_bytes_max];
        let budget = Budget::new(limits.into_iter().flatten().min());
        let mut memory = Vec::new();
        let (store, states) = make_store(&gpu, &plan, options, &budget, &mut memory)?;

        let mut packer = Packer::new(&gpu.limits, &plan, weights, options.precision);
        let mut entries = Vec::new();
        for entry in &plan.entries {
            let steps = entry.steps.iter().map(|step| step::load(step, &mut packer));
            let steps = steps.collect::<Result<Vec<_>, _>>()?;
            entries.push(LoadedEntry { entry: entry.clone(), steps });
        }
        let mut buffers = Vec::new();
        for (i, packed) in packer.finish().into_iter().enumerate() {
            let owner = format!("packed weights {i}");
            let bytes = packed.len() as u64 * 4;
            budget.reserve(&owner, bytes)?;
            let (words, usage) = (bytemuck::cast_slice(&packed), wgpu::BufferUsages::STORAGE);
            let buffer = gpu.filled_buffer(&owner, words, usage)?;
            memory.push(MemoryLine::new(owner, bytes));
            buffers.push(buffer);
        }
        let options = options.clone();
        let weights = buffers;
        let shared = Shared { gpu, plan, options, cooperative, budget, weights, store, states };
        Ok(WgpuResident { shared: Arc::new(shared), entries, memory })
    }

    fn slot(&self, slot: u32) -> usize {
        let slots = self.shared.options.state_slots;
        assert!((slot as usize) < slots, "the caller broke the contract: slot {slot} of {slots}");
        slot as usize
    }
}

/// The store of all states, zero, and where each is in it.
fn make_store(
    gpu: &Gpu,
    plan: &Plan,
    options: &LoadOptions,
    budget: &Budget,
    lines: &mut Vec<MemoryLine>,
) -> Result<(wgpu::Buffer, Vec<StatePlace>), DeviceError> {
    let mut states = Vec::new();
    let mut next = 0_usize;
    for state in &plan.states {
        let elements = state.shape.iter().product::<usize>();
        let all = elements.saturating_mul(options.state_slots);
        let owner = format!("state `{}`", state.name);
        let bytes = all.saturating_mul(4) as u64;
        budget.reserve(&owner, bytes)?;
        lines.push(MemoryLine::new(owner, bytes));
        states.push(StatePlace { first: next, elements });
        next = next.saturating_add(all).next_multiple_of(ALIGNMENT / 4);
    }
    let (bytes, most) = (next as u64 * 4, gpu.binding_bytes_max());
    if bytes > most {
        let slots = options.state_slots;
        let message =
            format!("{slots} slots of states take {bytes} bytes in one binding, at most {most}");
        return Err(DeviceError::new(DeviceErrorKind::OutOfMemory, message));
    }
    let usage =
        wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    Ok((gpu.buffer("states", bytes, usage)?, states))
}

impl Resident for WgpuResident {
    fn memory(&self) -> Vec<MemoryLine> {
        self.memory.clone()
    }

    fn compile(&mut self, request: Request) -> Result<Box<dyn Program>, DeviceError> {
        let loaded = self.entries.iter().find(|loaded| loaded.entry.kind == request.entry);
        let loaded = loaded.expect("the caller broke the contract: the plan has the entry");
        loaded.entry.check_bucket(request.bucket)?;
        let shared = Arc::clone(&self.shared);
        let program = WgpuProgram::compile(shared, &loaded.entry, &loaded.steps, request)?;
        self.shared.gpu.save_pipelines();
        Ok(Box::new(program))
    }

    fn export_state(&self, slot: u32) -> Result<Vec<Vec<f32>>, DeviceError> {
        let slot = self.slot(slot);
        let Shared { gpu, states, store, .. } = &*self.shared;
        gpu.health.check()?;
        let elements: usize = states.iter().map(|state| state.elements).sum();
        let bytes = elements as u64 * 4;
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let staging = gpu.buffer("exported states", bytes, usage)?;
        let submit = || {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            let mut to = 0;
            for state in states {
                let size = state.elements as u64 * 4;
                let from = (state.first + slot * state.elements) as u64 * 4;
                encoder.copy_buffer_to_buffer(store, from, &staging, to, Some(size));
                to += size;
            }
            gpu.queue.submit([encoder.finish()])
        };
        let index = gpu.checked(DeviceErrorKind::Execution, "exported states", submit)?;
        let view = until_mapped(gpu, staging, index)?;
        gpu.staged.fetch_add(bytes, Ordering::Relaxed);
        let all: &[f32] = bytemuck::cast_slice(&view);
        let mut rest = &all[..elements];
        let mut exported = Vec::new();
        for state in states {
            let (own, others) = rest.split_at(state.elements);
            exported.push(own.to_vec());
            rest = others;
        }
        Ok(exported)
    }

    fn import_state(&mut self, slot: u32, states: &[Vec<f32>]) -> Result<(), DeviceError> {
        let slot = self.slot(slot);
        let shared = &*self.shared;
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
        for (new, state) in states.iter().zip(&shared.states) {
            let at = (state.first + slot * state.elements) as u64 * 4;
            let bytes = bytemuck::cast_slice(new);
            shared.gpu.upload("imported states", &shared.store, (at, bytes))?;
        }
        Ok(())
    }

    fn reset_state(&mut self, slot: u32) -> Result<(), DeviceError> {
        let zeros: Vec<Vec<f32>> =
            self.shared.states.iter().map(|state| vec![0.0; state.elements]).collect();
        self.import_state(slot, &zeros)
    }
}
