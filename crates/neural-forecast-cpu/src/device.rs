//! The CPU as a device of the runtime: opened, plans made resident, entries compiled, runs.
//!
//! Runs happen inside `submit`, on the device's team; programs of one device take turns. Holds the
//! memory; what is computed with it is in `kernels`.

use crate::counters::{self, Precision as Kept};
use crate::gemm::Scratch;
use crate::isa::Isa;
use crate::kernels::{Context, Loaded, Packer, Room, Slots};
use crate::memory::{Buffer, PerWorker};
use crate::team::Team;
use neural_forecast_runtime::arena::{ArenaPlan, MemoryLine};
use neural_forecast_runtime::device::{
    Capabilities, Data, Device, DeviceKind, KernelCount, LoadOptions, Precision, Program,
    ProgramInfo, Request, Resident, Run, Support, WeightSource, check_weights, weight_f32,
};
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::{Bucket, DType, Entry, Plan, StateId, sizes};
use neural_forecast_runtime::prepare;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How a CPU device is opened.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Workers; by default as many as the process may use cores.
    pub threads: Option<usize>,
    /// `portable`, `avx2` or `avx512`; by default what `NF_CPU_ISA` says, or the best there is.
    pub isa: Option<String>,
}

/// This host's processor.
#[derive(Debug)]
pub struct CpuDevice {
    capabilities: Capabilities,
    isa: Isa,
    crew: Arc<Mutex<Crew>>,
    workers: usize,
}

/// The team and what each worker needs for products.
#[derive(Debug)]
struct Crew {
    team: Team,
    scratch: PerWorker<Scratch>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A run that panicked is reported as an error; what the lock guards is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line of a `/proc` file that begins with `key`, without it.
fn system(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}

impl CpuDevice {
    /// Opens it: chooses the instruction set and starts the team.
    ///
    /// # Errors
    /// `Unsupported` if the instruction set does not exist here; `OutOfMemory` if the system gives
    /// no threads.
    pub fn new(options: CpuOptions) -> Result<CpuDevice, DeviceError> {
        let isa = match &options.isa {
            Some(name) => Isa::named(Some(name)),
            None => Isa::from_environment(),
        };
        let isa = isa.map_err(|e| DeviceError::new(DeviceErrorKind::Unsupported, e.to_string()))?;
        let threads = options.threads.unwrap_or_else(Team::default_workers);
        if threads == 0 || threads > crate::team::WORKERS_MAX {
            let most = crate::team::WORKERS_MAX;
            let message = format!("{threads} threads, expected 1 to {most}");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let team = Team::new(threads).map_err(|error| {
            let message = format!("cannot start {threads} threads: {error}");
            DeviceError::new(DeviceErrorKind::OutOfMemory, message)
        })?;
        let workers = team.workers();
        let kilobytes = system("/proc/meminfo", "MemTotal");
        let kilobytes = kilobytes.and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
        let capabilities = Capabilities {
            kind: DeviceKind::Cpu,
            id: "cpu".into(),
            name: system("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.into()),
            precisions: vec![Precision::F32, Precision::Bf16],
            memory_bytes: kilobytes.map_or(u64::MAX, |k| k.saturating_mul(1024)),
            bindings_max: usize::MAX,
            binding_bytes_max: u64::MAX,
            unified_memory: true,
            cooperative: false,
            features: vec![
                ("isa".into(), isa.name().into()),
                ("threads".into(), workers.to_string()),
            ],
        };
        let crew = Crew { team, scratch: PerWorker::new(workers, Scratch::new) };
        Ok(CpuDevice { capabilities, isa, crew: Arc::new(Mutex::new(crew)), workers })
    }

    /// The instruction set that serves.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Workers, the caller included.
    pub fn threads(&self) -> usize {
        self.workers
    }
}

fn kept(precision: Precision) -> Option<Kept> {
    match precision {
        Precision::F32 => Some(Kept::F32),
        Precision::Bf16 => Some(Kept::Bf16),
        _ => None,
    }
}

fn has_kernel(op: &Op) -> bool {
    !matches!(op, Op::EncoderStack(_) | Op::DecoderStack(_))
}

fn no_precision(precision: Precision) -> String {
    format!("precision `{}` on the CPU, which has f32 and bf16", precision.name())
}

impl Device for CpuDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn support(&self, op: &Op, precision: Precision) -> Support {
        match kept(precision) {
            None => Support::Unsupported(no_precision(precision)),
            Some(_) if has_kernel(op) => Support::Native,
            Some(_) => Support::Lowered,
        }
    }

    fn load(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Resident>, DeviceError> {
        let Some(precision) = kept(options.precision) else {
            let message = no_precision(options.precision);
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        };
        check_weights(plan, weights)?;
        let (plan, _) = prepare(plan, options, &has_kernel)?;
        let needed = plan.states.iter().map(|state| state.shape.iter().product::<usize>());
        let state_bytes = needed.sum::<usize>() as u64 * options.state_slots as u64 * 4;
        let weight_bytes = plan.parameters() as u64 * options.precision.weight_bytes() as u64;
        let budget = Budget { most: options.memory_bytes_max, used: Mutex::new(0) };
        budget.reserve("weights and states", state_bytes.saturating_add(weight_bytes))?;
        let read = |id| weight_f32(&plan, id, weights);
        let shape = |id| plan.weight(id).shape.clone();
        let mut packer = Packer::new(self.isa, precision, &read, &shape);
        let mut entries = Vec::new();
        for entry in &plan.entries {
            let steps = entry.steps.iter().map(|step| packer.load(step));
            entries.push((entry.clone(), Arc::new(steps.collect::<Result<Vec<_>, _>>()?)));
        }
        let packed = packer.bytes() as u64;
        budget.release(weight_bytes);
        budget.reserve("packed weights", packed)?;
        let states = plan.states.iter().map(|state| {
            Buffer::zeroed(state.shape.iter().product::<usize>() * options.state_slots)
        });
        let states = Mutex::new(states.collect());
        let shared = Arc::new(Shared {
            states,
            plan,
            options: options.clone(),
            budget,
            isa: self.isa,
            crew: Arc::clone(&self.crew),
            workers: self.workers,
        });
        Ok(Box::new(CpuResident { shared, entries, packed }))
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        let counts = counters::snapshot().into_iter();
        counts.map(|(kernel, launches)| KernelCount { kernel, launches }).collect()
    }
}

/// Bytes in use of at most so many.
#[derive(Debug)]
struct Budget {
    most: Option<u64>,
    used: Mutex<u64>,
}

impl Budget {
    fn reserve(&self, owner: &str, bytes: u64) -> Result<(), DeviceError> {
        let mut used = lock(&self.used);
        let total = used.saturating_add(bytes);
        match self.most {
            Some(most) if total > most => Err(DeviceError::new(
                DeviceErrorKind::OutOfMemory,
                format!("{owner} need {bytes} bytes beside {}, limit {most}", *used),
            )),
            _ => {
                *used = total;
                Ok(())
            }
        }
    }

    fn release(&self, bytes: u64) {
        let mut used = lock(&self.used);
        *used = used.saturating_sub(bytes);
    }
}

/// What a resident plan and its programs share.
#[derive(Debug)]
struct Shared {
    plan: Plan,
    options: LoadOptions,
    budget: Budget,
    /// Each state's slots, one after another.
    states: Mutex<Vec<Buffer>>,
    isa: Isa,
    crew: Arc<Mutex<Crew>>,
    workers: usize,
}

impl Shared {
    fn state_elements(&self, state: StateId) -> usize {
        self.plan.state(state).shape.iter().product()
    }

    fn slot(&self, slot: u32) -> usize {
        let slots = self.options.state_slots;
        assert!((slot as usize) < slots, "the caller broke the contract: slot {slot} of {slots}");
        slot as usize
    }
}

#[derive(Debug)]
struct CpuResident {
    shared: Arc<Shared>,
    entries: Vec<(Entry, Arc<Vec<Loaded>>)>,
    packed: u64,
}

impl Resident for CpuResident {
    fn memory(&self) -> Vec<MemoryLine> {
        let states = self.shared.plan.states.iter().map(|state| {
            let bytes = state.shape.iter().product::<usize>() * self.shared.options.state_slots * 4;
            MemoryLine::new(format!("state `{}`", state.name), bytes as u64)
        });
        std::iter::once(MemoryLine::new("packed weights", self.packed)).chain(states).collect()
    }

    fn compile(&mut self, request: Request) -> Result<Box<dyn Program>, DeviceError> {
        let shared = &self.shared;
        let entry = self.entries.iter().find(|(entry, _)| entry.kind == request.entry);
        let (entry, steps) = entry.expect("the caller broke the contract: the plan has the entry");
        entry.check_bucket(request.bucket)?;
        let arena = ArenaPlan::new(entry, request.bucket);
        let mut info = ProgramInfo::new(&shared.plan, entry, request, shared.options.precision);
        shared.budget.reserve("the program's values", arena.bytes() as u64)?;
        let shapes = shapes(entry, request.bucket);
        let mut rooms: Vec<Room> = steps
            .iter()
            .map(|step| {
                let elements = |state| shared.state_elements(state);
                step.room(&shapes, request.bucket, shared.workers, &elements)
            })
            .collect();
        for (room, step) in rooms.iter_mut().zip(steps.iter()) {
            let bytes = room.bytes() as u64;
            if bytes > 0 {
                info.memory.push(MemoryLine::new(format!("step `{}`", step.step.label), bytes));
            }
        }
        let bytes: u64 = info.memory.iter().map(|line| line.bytes).sum();
        let rest = bytes.saturating_sub(arena.bytes() as u64);
        if let Err(error) = shared.budget.reserve("the program's steps", rest) {
            shared.budget.release(arena.bytes() as u64);
            return Err(error);
        }
        let offset = |v: usize| arena.region(value_id(entry, v)).offset / 4;
        Ok(Box::new(CpuProgram {
            offsets: (0..entry.values.len()).map(offset).collect(),
            memory: Buffer::zeroed(arena.bytes() / 4),
            rows: request.bucket.batch,
            slots: Vec::with_capacity(request.bucket.batch),
            ran: 0,
            entry: entry.clone(),
            steps: Arc::clone(steps),
            shared: Arc::clone(shared),
            info,
            shapes,
            rooms,
            bytes,
            pending: None,
        }))
    }

    fn export_state(&self, slot: u32) -> Result<Vec<Vec<f32>>, DeviceError> {
        let slot = self.shared.slot(slot);
        let states = lock(&self.shared.states);
        let export = states.iter().zip(&self.shared.plan.states).map(|(buffer, state)| {
            let n: usize = state.shape.iter().product();
            buffer.as_slice()[slot * n..(slot + 1) * n].to_vec()
        });
        Ok(export.collect())
    }

    fn import_state(&mut self, slot: u32, states: &[Vec<f32>]) -> Result<(), DeviceError> {
        let slot = self.shared.slot(slot);
        let declared = &self.shared.plan.states;
        assert_eq!(states.len(), declared.len(), "the caller broke the contract: states imported");
        let mut store = lock(&self.shared.states);
        for ((buffer, state), new) in store.iter_mut().zip(declared).zip(states) {
            let n: usize = state.shape.iter().product();
            let name = &state.name;
            assert_eq!(new.len(), n, "the caller broke the contract: elements of state `{name}`");
            buffer.as_mut_slice()[slot * n..(slot + 1) * n].copy_from_slice(new);
        }
        Ok(())
    }

    fn reset_state(&mut self, slot: u32) -> Result<(), DeviceError> {
        let slot = self.shared.slot(slot);
        let mut store = lock(&self.shared.states);
        for (buffer, state) in store.iter_mut().zip(&self.shared.plan.states) {
            let n: usize = state.shape.iter().product();
            buffer.as_mut_slice()[slot * n..(slot + 1) * n].fill(0.0);
        }
        Ok(())
    }
}

fn shapes(entry: &Entry, bucket: Bucket) -> Vec<Vec<usize>> {
    entry.values.iter().map(|value| sizes(&value.shape, bucket)).collect()
}

/// The id of the value at a position: inputs and step outputs name all of them.
fn value_id(entry: &Entry, position: usize) -> neural_forecast_runtime::plan::ValueId {
    let inputs = entry.inputs.iter().map(|input| input.value);
    let outputs = entry.steps.iter().flat_map(|step| step.outputs.iter().copied());
    let found = inputs.chain(outputs).find(|value| value.index() == position);
    found.expect("every value is an input or the output of a step")
}

#[derive(Debug)]
struct CpuProgram {
    info: ProgramInfo,
    entry: Entry,
    steps: Arc<Vec<Loaded>>,
    shared: Arc<Shared>,
    rooms: Vec<Room>,
    memory: Buffer,
    offsets: Vec<usize>,
    /// Shapes for `rows` rows.
    shapes: Vec<Vec<usize>>,
    rows: usize,
    slots: Vec<u32>,
    /// Rows of the last run that succeeded.
    ran: usize,
    bytes: u64,
    /// The result of a run that has not been waited for.
    pending: Option<Result<(), DeviceError>>,
}

impl CpuProgram {
    fn run(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        if run.rows != self.rows {
            let bucket = Bucket { batch: run.rows, ..self.info.request.bucket };
            self.shapes = shapes(&self.entry, bucket);
            self.rows = run.rows;
        }
        self.slots.clear();
        self.slots.extend_from_slice(run.slots);
        let shared = Arc::clone(&self.shared);
        let mut crew = lock(&shared.crew);
        let mut store = lock(&shared.states);
        let states: Vec<Slots> = store
            .iter_mut()
            .zip(&shared.plan.states)
            .map(|(buffer, state)| Slots {
                at: buffer.as_mut_ptr(),
                stride: state.shape.iter().product(),
            })
            .collect();
        let context = Context {
            isa: shared.isa,
            base: self.memory.as_mut_ptr(),
            offsets: &self.offsets,
            shapes: &self.shapes,
            rows: run.rows,
            length: self.info.request.bucket.length,
            slots: &self.slots,
            states: &states,
        };
        let Crew { team, scratch } = &mut *crew;
        let (steps, rooms, scratch) = (&*self.steps, &self.rooms, &*scratch);
        let cancelled = AtomicBool::new(false);
        let stop = || run.cancel.as_ref().is_some_and(|cancel| cancel.is_cancelled());
        let outcome = team.run(|worker| {
            // SAFETY: each worker takes its own scratch, once.
            let scratch = unsafe { scratch.get(worker.index()) };
            for (step, room) in steps.iter().zip(rooms) {
                // One worker looks, and all see the same after the barrier.
                if worker.index() == 0 && stop() {
                    cancelled.store(true, Ordering::Relaxed);
                }
                if !matches!(step.step.op, Op::Reshape(_)) {
                    worker.barrier();
                }
                if cancelled.load(Ordering::Relaxed) {
                    return;
                }
                // SAFETY: context and rooms belong to this program and bucket; the crew's lock
                // keeps other runs out.
                unsafe { step.run(room, &context, worker, scratch) };
            }
        });
        outcome.map_err(|e| DeviceError::new(DeviceErrorKind::Execution, e.to_string()))?;
        if cancelled.load(Ordering::Relaxed) || (!states.is_empty() && stop()) {
            return Err(DeviceError::new(DeviceErrorKind::Cancelled, "before the run's end"));
        }
        for (step, room) in steps.iter().zip(rooms) {
            // SAFETY: as above; the team is idle.
            unsafe { step.commit(room, &context) };
        }
        self.ran = run.rows;
        Ok(())
    }
}

impl Program for CpuProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn write(&mut self, input: usize, data: Data<'_>) {
        let declared = self.info.inputs.get(input);
        let dtype = declared.map_or(DType::F32, |i| self.entry.value(i.value).dtype);
        self.info.check_write(input, dtype, &data);
        let start = self.offsets[self.info.inputs[input].value.index()];
        let to = &mut self.memory.as_mut_words()[start..start + data.len()];
        match data {
            Data::F32(data) => to.iter_mut().zip(data).for_each(|(to, x)| *to = x.to_bits()),
            Data::I32(data) => to.iter_mut().zip(data).for_each(|(to, x)| *to = *x as u32),
        }
    }

    fn submit(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        if let Some(Err(error)) = &self.pending {
            return Err(error.clone());
        }
        assert!(self.pending.is_none(), "the caller broke the contract: a run is in flight");
        let slots = self.entry.uses_states().then_some(self.shared.options.state_slots);
        self.info.check_run(run, slots);
        self.pending = Some(self.run(run));
        Ok(())
    }

    fn poll(&mut self) -> bool {
        true
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.pending.take().unwrap_or(Ok(()))
    }

    fn read(&mut self, output: usize, into: &mut [f32]) -> Result<(), DeviceError> {
        assert!(self.pending.is_none(), "the caller broke the contract: a run is in flight");
        assert!(self.ran > 0, "the caller broke the contract: no run has succeeded");
        self.info.check_read(output, into.len(), self.ran);
        let start = self.offsets[self.info.outputs[output].value.index()];
        into.copy_from_slice(&self.memory.as_slice()[start..start + into.len()]);
        Ok(())
    }
}

impl Drop for CpuProgram {
    fn drop(&mut self) {
        self.shared.budget.release(self.bytes);
    }
}
