//! The CPU as a device of the runtime: opened, plans made resident, entries compiled, runs.
//!
//! Runs happen inside `submit`, on the device's team; programs of one device take turns. Holds the
//! memory; what is computed with it is in `kernels`.

use crate::counters::{Counters, Precision as Kept};
use crate::crew::{Crew, team_options};
use crate::gemm::Scratch;
use crate::isa::Isa;
use crate::kernels::{Context, Loaded, Packer, Room, Slots, keep_halves};
use crate::layout::AXES_MAX;
use crate::memory::{Buffer, PerWorker, Shared as Floats};
use crate::team::{Pin, StartError, Worker};
use crate::together;
use crate::way::{ALONE_FLOPS, Way};
use neural_forecast_runtime::arena::{ArenaPlan, MemoryLine};
use neural_forecast_runtime::device::{
    Capabilities, Data, Device, DeviceKind, KernelCount, LoadOptions, Precision, Program,
    ProgramInfo, Request, Resident, Run, Support, WeightSource, check_weights, weight_f32,
};
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::{Bucket, DType, Entry, Plan, StateId, sizes};
use neural_forecast_runtime::prepare;
use neural_forecast_runtime::{Budget, DeviceError, DeviceErrorKind};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a CPU device is opened.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads of a run, the caller's included; by default what `NF_CPU_THREADS` says, or as many
    /// as the process may use cores (affinity and cgroup quota included).
    pub threads: Option<usize>,
    /// One of [`crate::isa::TIERS`]; by default what `NF_CPU_ISA` says, or the best there is.
    pub isa: Option<String>,
    /// Operations below which a program runs on the calling thread alone; by default as many as a
    /// core does while a sleeping worker wakes.
    pub alone_flops: Option<u64>,
    /// How long an idle worker polls for the next run before it sleeps; by default what
    /// `NF_CPU_SPIN_US` says, or [`crate::team::SPIN`]. With zero it sleeps at once.
    pub spin: Option<Duration>,
    /// Cores of the workers; by default what `NF_CPU_PIN` says, or wherever the system puts them.
    /// The first core is for the calling thread, which is not bound to it: only the caller may do
    /// that, by [`crate::team::pin_this_thread`].
    pub pin: Option<Pin>,
}

/// This host's processor.
#[derive(Debug)]
pub struct CpuDevice {
    capabilities: Capabilities,
    isa: Isa,
    crew: Arc<Crew>,
    workers: usize,
    counters: Arc<Counters>,
    alone_flops: u64,
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
    /// Opens it: chooses the instruction set and starts the team, or joins the one that another
    /// device of this process has started with the same threads, spin and cores. Runs of devices
    /// that share a team take turns in the order of asking; runs that one thread does alone do
    /// not wait for it.
    ///
    /// # Errors
    /// `Unsupported` if the instruction set does not exist here, threads cannot be bound as asked,
    /// or a number or variable makes no sense; `OutOfMemory` if the system gives no threads.
    pub fn new(options: CpuOptions) -> Result<CpuDevice, DeviceError> {
        let isa = match &options.isa {
            Some(name) => Isa::named(Some(name)),
            None => Isa::from_environment(),
        };
        let isa = isa.map_err(|e| DeviceError::new(DeviceErrorKind::Unsupported, e.to_string()))?;
        let unsupported = |message| DeviceError::new(DeviceErrorKind::Unsupported, message);
        let team = team_options(options.threads, options.spin, options.pin).map_err(unsupported)?;
        let workers = team.workers;
        let crew = Crew::shared(&team).map_err(|error| match error {
            StartError::Thread(_) => {
                let message = format!("cannot start {workers} threads: {error}");
                DeviceError::new(DeviceErrorKind::OutOfMemory, message)
            }
            StartError::Pin(_) => unsupported(format!("cannot bind threads to cores: {error}")),
        })?;
        let mut features = vec![
            ("isa".into(), isa.name().into()),
            ("threads".into(), workers.to_string()),
            ("idle spin".into(), format!("{} µs", team.spin.as_micros())),
        ];
        if let Pin::Cores(cores) = &team.pin {
            let bound = format!("to cores {:?}, the calling thread not bound", &cores[1..]);
            features.push(("threads bound".into(), bound));
        }
        let kilobytes = system("/proc/meminfo", "MemTotal");
        let kilobytes = kilobytes.and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
        let capabilities = Capabilities {
            kind: DeviceKind::Cpu,
            id: "cpu".into(),
            name: system("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.into()),
            precisions: vec![Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8],
            memory_bytes: kilobytes.map_or(u64::MAX, |k| k.saturating_mul(1024)),
            bindings_max: usize::MAX,
            binding_bytes_max: u64::MAX,
            unified_memory: true,
            cooperative: false,
            peak_flops: Vec::new(),
            features,
        };
        let counters = Arc::default();
        let alone_flops = options.alone_flops.unwrap_or(ALONE_FLOPS);
        Ok(CpuDevice { capabilities, isa, crew, workers, counters, alone_flops })
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
        Precision::F16 => Some(Kept::F16),
        Precision::Bf16 => Some(Kept::Bf16),
        Precision::Int8 => Some(Kept::Int8),
        _ => None,
    }
}

/// Refuses values with more axes than kernels walk.
fn check_ranks(plan: &Plan) -> Result<(), DeviceError> {
    let mut values = plan.entries.iter().flat_map(|entry| &entry.values);
    let Some(value) = values.find(|value| value.shape.len() > AXES_MAX) else { return Ok(()) };
    let (name, rank) = (&value.name, value.shape.len());
    let message = format!("value `{name}` has {rank} axes, at most {AXES_MAX}");
    Err(DeviceError::new(DeviceErrorKind::Unsupported, message))
}

fn has_kernel(op: &Op) -> bool {
    !matches!(op, Op::EncoderStack(_) | Op::DecoderStack(_))
}

fn no_precision(precision: Precision) -> String {
    format!("precision `{}` on the CPU, which has f32, f16, bf16 and int8", precision.name())
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
        check_ranks(plan)?;
        let (mut plan, _) = prepare(plan, options, &has_kernel)?;
        plan.entries.iter_mut().for_each(together::order);
        let plan = plan;
        let needed = plan.states.iter().map(|state| state.shape.iter().product::<usize>());
        let state_bytes = needed.sum::<usize>() as u64 * options.state_slots as u64 * 4;
        let weight_bytes = plan.parameters() as u64 * options.precision.weight_bytes() as u64;
        // More than the machine has would not fail here but end the process later.
        let machine = self.capabilities.memory_bytes;
        let most = options.memory_bytes_max.map_or(machine, |most| most.min(machine));
        let budget = Budget::new(Some(most));
        budget.reserve("weights and states", state_bytes.saturating_add(weight_bytes))?;
        let read = |id| weight_f32(&plan, id, weights);
        let mut packer = Packer::new(self.isa, precision, &read, &plan);
        let mut entries = Vec::new();
        for entry in &plan.entries {
            let steps = entry.steps.iter().map(|step| packer.load(step));
            let mut steps = steps.collect::<Result<Vec<_>, _>>()?;
            keep_halves(entry, &mut steps);
            entries.push((entry.clone(), Arc::new(steps)));
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
            counters: Arc::clone(&self.counters),
            alone_flops: self.alone_flops,
        });
        Ok(Box::new(CpuResident { shared, entries, packed }))
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        let counts = self.counters.snapshot().into_iter();
        counts.map(|(kernel, launches)| KernelCount { kernel, launches, lingering: 0 }).collect()
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
    crew: Arc<Crew>,
    workers: usize,
    counters: Arc<Counters>,
    alone_flops: u64,
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
        let program = CpuProgram::new(Arc::clone(shared), entry, Arc::clone(steps), request)?;
        Ok(Box::new(program))
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

/// What walks the steps: memory for some rows.
#[derive(Debug)]
struct Lane {
    memory: Buffer,
    rooms: Vec<Room>,
    /// Shapes for `rows` rows.
    shapes: Vec<Vec<usize>>,
    rows: usize,
    /// First float of each value.
    places: Vec<Floats>,
}

impl Lane {
    fn fit(&mut self, entry: &Entry, bucket: Bucket) {
        if self.rows != bucket.batch {
            self.shapes = shapes(entry, bucket);
            self.rows = bucket.batch;
        }
    }
}

#[derive(Debug)]
struct CpuProgram {
    info: ProgramInfo,
    entry: Entry,
    steps: Arc<Vec<Loaded>>,
    /// Steps between two meetings of the workers.
    stretches: Vec<Range<usize>>,
    shared: Arc<Shared>,
    way: Way,
    lanes: PerWorker<Lane>,
    /// First float of each value in a lane.
    offsets: Vec<usize>,
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
    slots: Vec<u32>,
    states: Vec<Slots>,
    /// Whether the entry reads or writes states.
    stateful: bool,
    /// Rows of the last run that succeeded.
    ran: usize,
    bytes: u64,
    /// The result of a run that has not been waited for.
    pending: Option<Result<(), DeviceError>>,
}

// SAFETY: the pointers in lanes and states are set anew in every run, from memory that the program
// owns or holds locked.
unsafe impl Send for CpuProgram {}

impl CpuProgram {
    fn new(
        shared: Arc<Shared>,
        entry: &Entry,
        steps: Arc<Vec<Loaded>>,
        request: Request,
    ) -> Result<CpuProgram, DeviceError> {
        let mut info = ProgramInfo::new(&shared.plan, entry, request, shared.options.precision);
        let way =
            Way::choose(entry, &steps, request, shared.workers, (info.flops, shared.alone_flops));
        let (rows, lanes, workers) = match way {
            Way::Alone => (request.bucket.batch, 1, 1),
            Way::Together => (request.bucket.batch, 1, shared.workers),
            Way::Apart(rows) => (rows, shared.workers, 1),
        };
        let bucket = Bucket { batch: rows, ..request.bucket };
        let all_shapes = shapes(entry, bucket);
        let split = steps.iter().map(|step| step.split_rows(&all_shapes, workers));
        let stretches = together::stretches(&split.collect::<Vec<_>>());
        let arena = ArenaPlan::with_stretches(entry, bucket, &stretches);
        let staged = |counts: &[(usize, usize)]| -> u64 {
            counts.iter().map(|(all, _)| *all as u64 * 4).sum()
        };
        let (inputs, outputs) = (staged(&info.input_elements), staged(&info.output_elements));
        let values = arena.bytes() as u64 * lanes as u64;
        let mut bytes = inputs + outputs + values;
        shared.budget.reserve("the program's values", bytes)?;
        let elements = |state| shared.state_elements(state);
        let mut lanes = PerWorker::new(lanes, || {
            let shapes = shapes(entry, bucket);
            let room = |step: &Loaded| step.room(&shapes, bucket, workers, &elements);
            let rooms = steps.iter().map(room).collect();
            let places = vec![Floats(std::ptr::null_mut()); entry.values.len()];
            Lane { memory: Buffer::zeroed(arena.bytes() / 4), rooms, shapes, rows, places }
        });
        info.memory = vec![
            MemoryLine::new("inputs", inputs),
            MemoryLine::new("outputs", outputs),
            MemoryLine::new("values", values),
        ];
        for (i, step) in steps.iter().enumerate() {
            let room: usize = lanes.iter_mut().map(|lane| lane.rooms[i].bytes()).sum();
            if room > 0 {
                info.memory
                    .push(MemoryLine::new(format!("step `{}`", step.step.label), room as u64));
            }
        }
        let all: u64 = info.memory.iter().map(|line| line.bytes).sum();
        if let Err(error) = shared.budget.reserve("the program's steps", all - bytes) {
            shared.budget.release(bytes);
            return Err(error);
        }
        bytes = all;
        let buffers = |counts: &[(usize, usize)]| {
            counts.iter().map(|(all, _)| Buffer::zeroed(*all)).collect::<Vec<_>>()
        };
        let mut offsets = vec![0; entry.values.len()];
        let outputs_of = entry.steps.iter().flat_map(|step| step.outputs.iter().copied());
        for value in entry.inputs.iter().map(|input| input.value).chain(outputs_of) {
            offsets[value.index()] = arena.region(value).offset / 4;
        }
        Ok(CpuProgram {
            inputs: buffers(&info.input_elements),
            outputs: buffers(&info.output_elements),
            slots: Vec::with_capacity(request.bucket.batch),
            states: Vec::with_capacity(shared.plan.states.len()),
            ran: 0,
            stateful: entry.uses_states(),
            entry: entry.clone(),
            steps,
            stretches,
            shared,
            way,
            lanes,
            offsets,
            info,
            bytes,
            pending: None,
        })
    }

    fn run(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        self.slots.clear();
        self.slots.extend_from_slice(run.slots);
        let shared = Arc::clone(&self.shared);
        self.states.clear();
        // Before the turn, so that nobody waits for states with the turn in hand.
        let mut store = self.stateful.then(|| lock(&shared.states));
        if let Some(store) = &mut store {
            for (buffer, state) in store.iter_mut().zip(&shared.plan.states) {
                let stride = state.shape.iter().product();
                self.states.push(Slots { at: buffer.as_mut_ptr(), stride });
            }
        }
        let cancelled = AtomicBool::new(false);
        let this = Alive(self);
        let alone = self.way == Way::Alone;
        let outcome = shared.crew.run(alone, |worker, scratch| {
            this.get().walk(run, worker, scratch, &cancelled);
        });
        outcome.map_err(|e| DeviceError::new(DeviceErrorKind::Execution, e.to_string()))?;
        if cancelled.load(Ordering::Relaxed) || (self.stateful && is_cancelled(run)) {
            return Err(DeviceError::new(DeviceErrorKind::Cancelled, "before the run's end"));
        }
        if self.stateful {
            self.commit(run.rows);
        }
        self.ran = run.rows;
        Ok(())
    }

    /// One worker's part of a run.
    fn walk(
        &self,
        run: &Run<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
        cancelled: &AtomicBool,
    ) {
        match self.way {
            Way::Together | Way::Alone => {
                if worker.index() == 0 {
                    // SAFETY: the only lane; the others wait at the barrier until it is set up.
                    unsafe { self.set_up(0, 0..run.rows) };
                }
                worker.barrier();
                // SAFETY: nobody writes the lane's fields from here on.
                let lane = unsafe { self.lanes.peek(0) };
                for (i, stretch) in self.stretches.iter().enumerate() {
                    // One worker looks, and all see the same after the barrier.
                    if worker.index() == 0 && is_cancelled(run) {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                    if i > 0 {
                        worker.barrier();
                    }
                    if run.cancel.is_some() {
                        if i == 0 {
                            worker.barrier();
                        }
                        if cancelled.load(Ordering::Relaxed) {
                            return;
                        }
                        // Before the first worker looks again.
                        worker.barrier();
                    }
                    let context = self.context(lane, 0..run.rows);
                    for i in stretch.clone() {
                        // SAFETY: context and rooms belong to this program and bucket, and `run`
                        // has it exclusively.
                        unsafe { self.steps[i].run(&lane.rooms[i], &context, worker, scratch) };
                    }
                }
                worker.barrier();
                if worker.index() == 0 {
                    self.collect(lane, 0..run.rows);
                }
            }
            Way::Apart(rows) => {
                for piece in worker.share(run.rows.div_ceil(rows)) {
                    let part = piece * rows..(piece * rows + rows).min(run.rows);
                    // SAFETY: every worker has its own lane.
                    unsafe { self.set_up(worker.index(), part.clone()) };
                    // SAFETY: as above.
                    let lane = unsafe { self.lanes.peek(worker.index()) };
                    let context = self.context(lane, part.clone());
                    for (i, step) in self.steps.iter().enumerate() {
                        if cancelled.load(Ordering::Relaxed) || is_cancelled(run) {
                            cancelled.store(true, Ordering::Relaxed);
                            return;
                        }
                        // SAFETY: as above; rows of other workers are not touched.
                        unsafe { step.run(&lane.rooms[i], &context, Worker::alone(), scratch) };
                    }
                    self.collect(lane, part);
                }
            }
        }
    }

    /// Points a lane at some rows: inputs where they were written, the rest in its own memory.
    ///
    /// # Safety
    /// Nobody else uses the lane.
    unsafe fn set_up(&self, lane: usize, rows: Range<usize>) {
        // SAFETY: the caller's.
        let lane = unsafe { self.lanes.get(lane) };
        lane.fit(&self.entry, Bucket { batch: rows.len(), ..self.info.request.bucket });
        let base = lane.memory.as_mut_ptr();
        for (place, &offset) in lane.places.iter_mut().zip(&self.offsets) {
            // SAFETY: offsets are inside the lane's memory.
            *place = Floats(unsafe { base.add(offset) });
        }
        let inputs = self.entry.inputs.iter().zip(&self.inputs);
        for ((input, buffer), (_, row)) in inputs.zip(&self.info.input_elements) {
            // Kernels read inputs and never write them.
            let at = buffer.as_ptr().cast_mut();
            // SAFETY: the rows are inside the input's buffer.
            lane.places[input.value.index()] = Floats(unsafe { at.add(rows.start * row) });
        }
        for step in self.steps.iter() {
            if let Op::Reshape(reshape) = &step.step.op {
                let place = lane.places[reshape.x.index()];
                for output in &step.step.outputs {
                    lane.places[output.index()] = place;
                }
            }
        }
    }

    fn context<'a>(&'a self, lane: &'a Lane, rows: Range<usize>) -> Context<'a> {
        Context {
            isa: self.shared.isa,
            counters: &self.shared.counters,
            places: &lane.places,
            shapes: &lane.shapes,
            rows: rows.len(),
            length: self.info.request.bucket.length,
            slots: self.slots.get(rows).unwrap_or(&[]),
            states: &self.states,
        }
    }

    /// Copies the outputs of some rows out of a lane.
    fn collect(&self, lane: &Lane, rows: Range<usize>) {
        let outputs = self.entry.outputs.iter().zip(&self.outputs);
        for ((output, buffer), &(all, row)) in outputs.zip(&self.info.output_elements) {
            let (start, n) = match row {
                0 => (0, lane.shapes[output.value.index()].iter().product::<usize>().min(all)),
                row => (rows.start * row, rows.len() * row),
            };
            // Values without a batch axis are equal in all lanes; one writes them.
            if row == 0 && rows.start > 0 {
                continue;
            }
            let to = buffer.as_ptr().cast_mut();
            // SAFETY: rows of the output are this worker's; both sides hold them.
            unsafe {
                let from = lane.places[output.value.index()].0.cast_const();
                std::ptr::copy_nonoverlapping(from, to.add(start), n);
            }
        }
    }

    /// Puts new states into their slots.
    fn commit(&mut self, rows: usize) {
        let (lanes, each) = match self.way {
            Way::Together | Way::Alone => (1, rows),
            Way::Apart(each) => (self.shared.workers, each),
        };
        // The pieces that each worker took; one, because the entry has states.
        let pieces = rows.div_ceil(each.max(1));
        for index in 0..lanes {
            let taken = pieces * index / lanes..pieces * (index + 1) / lanes;
            for piece in taken {
                let part = piece * each..(piece * each + each).min(rows);
                // SAFETY: the team is idle.
                let lane = unsafe { self.lanes.peek(index) };
                let context = self.context(lane, part);
                for (step, room) in self.steps.iter().zip(&lane.rooms) {
                    // SAFETY: as above; the store is locked by the run.
                    unsafe { step.commit(room, &context) };
                }
            }
        }
    }
}

/// Shares a program with the team for the time of a run.
struct Alive<'a>(&'a CpuProgram);

// SAFETY: workers read the program, and write lanes and buffers by disjoint parts.
unsafe impl Sync for Alive<'_> {}

impl Alive<'_> {
    fn get(&self) -> &CpuProgram {
        self.0
    }
}

fn is_cancelled(run: &Run<'_>) -> bool {
    run.cancel.as_ref().is_some_and(|cancel| cancel.is_cancelled())
}

impl Program for CpuProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn write(&mut self, input: usize, data: Data<'_>) {
        let declared = self.info.inputs.get(input);
        let dtype = declared.map_or(DType::F32, |i| self.entry.value(i.value).dtype);
        self.info.check_write(input, dtype, &data);
        let to = &mut self.inputs[input].as_mut_words()[..data.len()];
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
        let slots = self.stateful.then_some(self.shared.options.state_slots);
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
        into.copy_from_slice(&self.outputs[output].as_slice()[..into.len()]);
        Ok(())
    }
}

impl Drop for CpuProgram {
    fn drop(&mut self) {
        self.shared.budget.release(self.bytes);
    }
}
