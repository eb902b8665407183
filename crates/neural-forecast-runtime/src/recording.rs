//! A device for tests: it logs every call, checks the contract from the device's side, behaves like
//! devices that are not here, and fails when told to. Its numbers are the reference's.
//!
//! Tests of everything above the contract (engine, multiplexer, server) run on it; it also proves
//! that the contract fits devices unlike this host's processor. Measures nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arena::{ALIGNMENT, ArenaPlan, MemoryLine};
use crate::device::{
    Cancel, Capabilities, Data, Device, DeviceKind, KernelCount, LoadOptions, Precision, Program,
    ProgramInfo, Request, Residency, Resident, Run, Support, WeightSource, check_limits,
    check_weights,
};
use crate::error::{DeviceError, DeviceErrorKind};
use crate::lower::is_stack;
use crate::ops::Op;
use crate::plan::{Bucket, Entry, Plan, ValueId, elements};
use crate::prepare;
use crate::reference::{Buffers, Flight, Loaded, Tensor, run_watched, zero_states};

/// Which device it behaves like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Persona {
    /// Captured graphs on an NVIDIA GPU: runs complete some polls later, stacks are one cooperative
    /// kernel that holds its multiprocessors exclusively.
    CudaGraph,
    /// The least that WebGPU guarantees, in a browser: 8 bindings of 128 MiB, no stack kernels, and
    /// a `wait` for a run that has not been polled to its end is a breach, because nothing can
    /// block there.
    WebGpuMinimum,
    /// A processor: runs are finished when `submit` returns, all ops have kernels.
    Cpu,
}

impl Persona {
    /// All of them.
    pub const ALL: [Persona; 3] = [Persona::CudaGraph, Persona::WebGpuMinimum, Persona::Cpu];

    /// How often `poll` says no before it says yes.
    fn polls(self) -> usize {
        match self {
            Persona::CudaGraph => 2,
            Persona::WebGpuMinimum => 1,
            Persona::Cpu => 0,
        }
    }

    fn capabilities(self) -> Capabilities {
        let (id, bindings_max, binding_bytes_max) = match self {
            Persona::CudaGraph => ("recording:cuda", usize::MAX, u64::MAX),
            Persona::WebGpuMinimum => ("recording:webgpu", 8, 128 << 20),
            Persona::Cpu => ("recording:cpu", usize::MAX, u64::MAX),
        };
        Capabilities {
            kind: DeviceKind::Test,
            id: id.into(),
            name: format!("recording device as {self:?}"),
            precisions: vec![Precision::F32],
            memory_bytes: 16 << 30,
            bindings_max,
            binding_bytes_max,
            unified_memory: self == Persona::Cpu,
            cooperative: self == Persona::CudaGraph,
            peak_flops: Vec::new(),
            features: Vec::new(),
        }
    }
}

/// A failure to come. Compiles and runs are counted from 0 over the life of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Compile number `compile` finds no memory.
    OutOfMemory {
        /// Which.
        compile: usize,
    },
    /// The device goes away in run number `run`.
    Lost {
        /// Which.
        run: usize,
    },
    /// A kernel of run number `run` fails.
    Kernel {
        /// Which.
        run: usize,
        /// The step that fails; the number of steps is the commit of states.
        step: usize,
    },
    /// Run number `run` sees its cancel flag raised, whether or not it has one.
    Cancel {
        /// Which.
        run: usize,
        /// The step before which it stops.
        step: usize,
    },
}

/// One call that the device has seen. Programs are numbered in the order they were compiled.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// A plan was loaded.
    Load {
        /// Its name.
        plan: String,
        /// Steps of all entries after preparation.
        steps: usize,
    },
    /// An entry was compiled.
    Compile {
        /// The program's number.
        program: usize,
        /// For what.
        request: Request,
    },
    /// An input was written.
    Write {
        /// Into which program.
        program: usize,
        /// Which input.
        input: usize,
        /// How many elements.
        elements: usize,
    },
    /// A run was started.
    Submit {
        /// Of which program.
        program: usize,
        /// How many rows.
        rows: usize,
        /// Which slots.
        slots: Vec<u32>,
    },
    /// `poll` was answered.
    Poll {
        /// By which program.
        program: usize,
        /// With what.
        finished: bool,
    },
    /// `wait` was answered.
    Wait {
        /// By which program.
        program: usize,
        /// With which error, if with one.
        error: Option<DeviceErrorKind>,
    },
    /// An output was read.
    Read {
        /// From which program.
        program: usize,
        /// Which output.
        output: usize,
        /// How many elements.
        elements: usize,
    },
    /// A slot's states were copied out.
    Export {
        /// Which slot.
        slot: u32,
    },
    /// A slot's states were set.
    Import {
        /// Which slot.
        slot: u32,
    },
    /// A slot's states were zeroed.
    Reset {
        /// Which slot.
        slot: u32,
    },
    /// A program was dropped.
    Drop {
        /// Which.
        program: usize,
    },
}

/// The device. Cheap to clone; clones share log, faults and fate.
#[derive(Clone, Debug)]
pub struct RecordingDevice {
    capabilities: Capabilities,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    persona: Persona,
    lost: AtomicBool,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    log: Vec<Call>,
    faults: Vec<Fault>,
    compiles: usize,
    runs: usize,
    /// The program that holds multiprocessors exclusively and is in flight.
    exclusive: Option<usize>,
    launches: BTreeMap<String, u64>,
}

impl RecordingDevice {
    /// Opens a device that behaves like `persona`.
    pub fn new(persona: Persona) -> Self {
        let shared = Shared { persona, lost: AtomicBool::new(false), ledger: Mutex::default() };
        RecordingDevice { capabilities: persona.capabilities(), shared: Arc::new(shared) }
    }

    /// Everything that was called so far.
    pub fn log(&self) -> Vec<Call> {
        self.shared.ledger().log.clone()
    }

    /// Plans a failure.
    pub fn inject(&self, fault: Fault) {
        self.shared.ledger().faults.push(fault);
    }

    /// Loses the device now.
    pub fn lose(&self) {
        self.shared.lost.store(true, Ordering::Release);
    }

    fn native(persona: Persona, op: &Op) -> bool {
        persona != Persona::WebGpuMinimum || !is_stack(op) || !op.states().is_empty()
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A test that panicked while it held the ledger has already failed.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, call: Call) {
        self.ledger().log.push(call);
    }

    fn check_lost(&self) -> Result<(), DeviceError> {
        match self.lost.load(Ordering::Acquire) {
            true => Err(DeviceError::new(DeviceErrorKind::Lost, "the recording device is lost")),
            false => Ok(()),
        }
    }
}

impl Device for RecordingDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn support(&self, op: &Op, precision: Precision) -> Support {
        match precision {
            Precision::F32 if Self::native(self.shared.persona, op) => Support::Native,
            Precision::F32 => Support::Lowered,
            other => Support::Unsupported(format!("the recording device has no {}", other.name())),
        }
    }

    fn load(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Resident>, DeviceError> {
        self.shared.check_lost()?;
        if options.precision != Precision::F32 {
            let message = format!("precision {} on this device", options.precision.name());
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        check_weights(plan, weights)?;
        let persona = self.shared.persona;
        let (prepared, _) = prepare(plan, options, &|op| Self::native(persona, op))?;
        let steps = prepared.entries.iter().map(|entry| entry.steps.len()).sum();
        let loaded = Arc::new(Loaded::new(prepared, weights, options)?);
        self.shared.record(Call::Load { plan: plan.name.clone(), steps });
        Ok(Box::new(RecordingResident {
            loaded,
            shared: Arc::clone(&self.shared),
            capabilities: self.capabilities.clone(),
        }))
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        let ledger = self.shared.ledger();
        let counts = ledger.launches.iter();
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
struct RecordingResident {
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    capabilities: Capabilities,
}

impl Resident for RecordingResident {
    fn memory(&self) -> Vec<MemoryLine> {
        self.loaded.memory()
    }

    fn compile(&mut self, request: Request) -> Result<Box<dyn Program>, DeviceError> {
        self.shared.check_lost()?;
        let number = {
            let mut ledger = self.shared.ledger();
            ledger.compiles += 1;
            ledger.compiles - 1
        };
        if self.shared.ledger().faults.contains(&Fault::OutOfMemory { compile: number }) {
            let message = format!("compile {number} was to find none");
            return Err(DeviceError::new(DeviceErrorKind::OutOfMemory, message));
        }
        let plan = &self.loaded.plan;
        let entry = plan.entry(request.entry);
        let entry = entry.expect("the caller broke the contract: the plan has the entry").clone();
        entry.check_bucket(request.bucket)?;
        let exceeded = check_limits(plan, &entry, request.bucket, &self.capabilities);
        if let Some((label, reason)) = exceeded.first() {
            let message = format!("step `{label}` {reason}");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        check_arena(&entry, request.bucket);
        let mut info = ProgramInfo::new(plan, &entry, request, Precision::F32);
        let stacked = entry.steps.iter().any(|step| {
            matches!(step.op, Op::RnnStack(_) | Op::EncoderStack(_) | Op::DecoderStack(_))
        });
        if self.shared.persona == Persona::CudaGraph && stacked {
            info.residency = Residency::Exclusive { units: 8 };
        }
        let bytes = info.memory.iter().map(|line| line.bytes).sum();
        self.loaded.reserve("the program's values", bytes)?;
        self.shared.record(Call::Compile { program: number, request });
        Ok(Box::new(RecordingProgram {
            number,
            buffers: Buffers::new(&info),
            info,
            entry,
            loaded: Arc::clone(&self.loaded),
            shared: Arc::clone(&self.shared),
            bytes,
            flight: Flight::Idle,
        }))
    }

    fn export_state(&self, slot: u32) -> Result<Vec<Vec<f32>>, DeviceError> {
        self.shared.check_lost()?;
        self.shared.record(Call::Export { slot });
        Ok(self.loaded.export(slot))
    }

    fn import_state(&mut self, slot: u32, states: &[Vec<f32>]) -> Result<(), DeviceError> {
        self.shared.check_lost()?;
        self.loaded.import(slot, states);
        self.shared.record(Call::Import { slot });
        Ok(())
    }

    fn reset_state(&mut self, slot: u32) -> Result<(), DeviceError> {
        self.shared.check_lost()?;
        self.loaded.reset(slot);
        self.shared.record(Call::Reset { slot });
        Ok(())
    }
}

/// A run between `submit` and its end.
#[derive(Debug)]
struct Pending {
    number: usize,
    rows: usize,
    slots: Vec<u32>,
    cancel: Option<Cancel>,
    /// Polls that still say no.
    polls: usize,
}

#[derive(Debug)]
struct RecordingProgram {
    number: usize,
    info: ProgramInfo,
    entry: Entry,
    buffers: Buffers,
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    bytes: u64,
    flight: Flight<Pending>,
}

impl RecordingProgram {
    fn exclusive(&self) -> bool {
        matches!(self.info.residency, Residency::Exclusive { .. })
    }

    /// Computes the run now; what it cost the device's clock is up to the persona.
    fn finish(&mut self, run: &Pending) -> Result<(), DeviceError> {
        if self.exclusive() {
            self.shared.ledger().exclusive = None;
        }
        self.shared.check_lost()?;
        let bucket = Bucket { batch: run.rows, ..self.info.request.bucket };
        let inputs = self.buffers.inputs(&self.entry, bucket);
        let stateful = self.entry.uses_states();
        let before = match stateful {
            true => self.loaded.gather(&run.slots),
            false => zero_states(&self.loaded.plan, run.rows),
        };
        let mut states = before.clone();
        let (entry, shared) = (&self.entry, &self.shared);
        let mut watch = |step: usize| watch_step(shared, entry, run, step);
        let (plan, kind) = (&self.loaded.plan, self.info.request.entry);
        let weights = &self.loaded.weights;
        let ran = run_watched(plan, kind, bucket, weights, &inputs, &mut states, &mut watch);
        match ran {
            Ok(outputs) => {
                if stateful {
                    self.loaded.scatter(&run.slots, &states);
                }
                self.buffers.keep(run.rows, outputs);
                Ok(())
            }
            Err(error) => {
                let untouched: Vec<Tensor> =
                    if stateful { self.loaded.gather(&run.slots) } else { before.clone() };
                assert_eq!(untouched, before, "the device broke the contract: states of no run");
                Err(error)
            }
        }
    }
}

/// Faults and cancellation before a step, and its launch.
fn watch_step(
    shared: &Shared,
    entry: &Entry,
    run: &Pending,
    step: usize,
) -> Result<(), DeviceError> {
    let mut ledger = shared.ledger();
    let label = entry.steps.get(step).map_or("commit", |step| step.label.as_str());
    let number = run.number;
    if ledger.faults.contains(&Fault::Lost { run: number }) {
        shared.lost.store(true, Ordering::Release);
        return Err(DeviceError::new(DeviceErrorKind::Lost, format!("in run {number}")));
    }
    if ledger.faults.contains(&Fault::Kernel { run: number, step }) {
        let message = format!("step `{label}` of run {number}");
        return Err(DeviceError::new(DeviceErrorKind::Execution, message));
    }
    let cancelled = run.cancel.as_ref().is_some_and(Cancel::is_cancelled);
    if cancelled || ledger.faults.contains(&Fault::Cancel { run: number, step }) {
        return Err(DeviceError::new(DeviceErrorKind::Cancelled, format!("before `{label}`")));
    }
    if let Some(step) = entry.steps.get(step) {
        *ledger.launches.entry(format!("{}-recording-f64", step.op.name())).or_default() += 1;
    }
    Ok(())
}

impl Program for RecordingProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn write(&mut self, input: usize, data: Data<'_>) {
        // An error of an earlier run does not keep inputs from being written.
        let _ = self.flight.check_idle("an input was written");
        self.buffers.write(&self.info, &self.entry, input, data);
        let elements = data.len();
        self.shared.record(Call::Write { program: self.number, input, elements });
    }

    fn submit(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        self.flight.check_idle("a run was submitted")?;
        self.shared.check_lost()?;
        let slots = self.entry.uses_states().then_some(self.loaded.options.state_slots);
        self.info.check_run(run, slots);
        let mut pending = Pending {
            number: 0,
            rows: run.rows,
            slots: run.slots.to_vec(),
            cancel: run.cancel.clone(),
            polls: self.shared.persona.polls(),
        };
        {
            let mut ledger = self.shared.ledger();
            if self.exclusive() {
                let other = ledger.exclusive.replace(self.number);
                assert!(
                    other.is_none(),
                    "the caller broke the contract: programs {other:?} and {} are exclusive and in \
                     flight together",
                    self.number
                );
            }
            pending.number = ledger.runs;
            ledger.runs += 1;
            let slots = run.slots.to_vec();
            ledger.log.push(Call::Submit { program: self.number, rows: run.rows, slots });
        }
        self.buffers.forget();
        self.flight = Flight::Flying(pending);
        Ok(())
    }

    fn poll(&mut self) -> bool {
        let finished = match self.flight.take() {
            Flight::Flying(mut pending) if pending.polls > 0 => {
                pending.polls -= 1;
                self.flight = Flight::Flying(pending);
                false
            }
            Flight::Flying(pending) => {
                self.flight = Flight::Landed(self.finish(&pending));
                true
            }
            landed => {
                self.flight = landed;
                true
            }
        };
        self.shared.record(Call::Poll { program: self.number, finished });
        finished
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        let result = match self.flight.take() {
            Flight::Flying(pending) => {
                let blocks = self.shared.persona == Persona::WebGpuMinimum;
                assert!(!blocks, "the caller broke the contract: `wait` would block in a browser");
                self.finish(&pending)
            }
            Flight::Landed(result) => result,
            Flight::Idle => self.shared.check_lost(),
        };
        let error = result.as_ref().err().map(DeviceError::kind);
        self.shared.record(Call::Wait { program: self.number, error });
        result
    }

    fn read(&mut self, output: usize, into: &mut [f32]) -> Result<(), DeviceError> {
        self.flight.check_idle("an output was read")?;
        self.shared.check_lost()?;
        self.buffers.read(&self.info, output, into);
        let elements = into.len();
        self.shared.record(Call::Read { program: self.number, output, elements });
        Ok(())
    }
}

impl Drop for RecordingProgram {
    fn drop(&mut self) {
        if self.exclusive() && matches!(self.flight, Flight::Flying(_)) {
            self.shared.ledger().exclusive = None;
        }
        self.loaded.release(self.bytes);
        self.shared.record(Call::Drop { program: self.number });
    }
}

/// Checks an arena without the arena's own liveness: which bytes hold which value is followed step
/// by step, and no write may destroy a value that is read later.
///
/// # Panics
/// If values that live together share bytes, an offset is not aligned, a value lies outside of the
/// arena, or the memory lines do not sum up.
pub fn check_arena(entry: &Entry, bucket: Bucket) {
    let arena = ArenaPlan::new(entry, bucket);
    let lines: u64 = arena.lines().iter().map(|line| line.bytes).sum();
    assert_eq!(lines, arena.bytes() as u64, "the runtime broke the contract: memory lines");
    let range = |id: ValueId| {
        let region = arena.region(id);
        let bytes = elements(&entry.value(id).shape, bucket) * 4;
        assert_eq!(region.bytes, bytes, "the runtime broke the contract: bytes of {id:?}");
        assert!(
            region.offset.is_multiple_of(ALIGNMENT) && region.offset + bytes <= arena.bytes(),
            "the runtime broke the contract: {id:?} at {region:?} of {}",
            arena.bytes()
        );
        region.offset..region.offset + bytes
    };
    // The values that are wanted after each step: outputs at the end, then backwards.
    let mut wanted: Vec<ValueId> = entry.outputs.iter().map(|output| output.value).collect();
    // The host may write inputs for the next run at any time: they stay.
    wanted.extend(entry.inputs.iter().map(|input| input.value));
    for step in entry.steps.iter().rev() {
        // A reshape writes nothing: its result is its source under another name.
        let source = match &step.op {
            Op::Reshape(reshape) => Some(reshape.x),
            _ => None,
        };
        for &written in &step.outputs {
            let bytes = range(written);
            let others = wanted.iter().chain(step.outputs.iter());
            for &other in others.filter(|&&other| other != written && Some(other) != source) {
                let alias = source.is_some() && range(other) == bytes;
                let meets = range(other).start < bytes.end && bytes.start < range(other).end;
                assert!(
                    alias || !meets,
                    "the runtime broke the contract: {written:?} overwrites {other:?} at `{}`",
                    step.label
                );
            }
        }
        wanted.retain(|value| !step.outputs.contains(value));
        for read in step.op.reads() {
            let result = step.outputs.first().map(|&id| range(id));
            let meets = result.is_some_and(|r| {
                source.is_none() && range(read).start < r.end && r.start < range(read).end
            });
            assert!(
                !meets,
                "the runtime broke the contract: `{}` writes over its own input",
                step.label
            );
            if !wanted.contains(&read) {
                wanted.push(read);
            }
        }
    }
}
