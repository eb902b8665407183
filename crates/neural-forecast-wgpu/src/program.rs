//! One entry compiled for one bucket: an arena, pipelines and bind groups made beforehand, and the
//! dispatches that a run records into one compute pass and submits once.
//!
//! How inputs get in and outputs out is for `exchange`; a run's header says how many rows are in
//! use and in which slots. Command buffers of WebGPU serve once, so every run needs a recording of
//! its own, which leaves out workgroups of rows that are not in use. It is made ahead: while the
//! device works on a run, the next one is recorded in the expectation that it is like this one, so
//! that a steady caller waits for no recording.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use neural_forecast_runtime::arena::{ALIGNMENT, ArenaPlan, MemoryLine};
use neural_forecast_runtime::counters::Runs;
use neural_forecast_runtime::device::{
    Cancel, Data, Precision, Program, ProgramInfo, Request, Run,
};
use neural_forecast_runtime::plan::{DType, Dim, Entry, elements, sizes};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::clock::Clock;
use crate::device::Shared as Gpu;
use crate::exchange::{self, Exchange, Fresh, HEADER_WORDS};
use crate::kernel::{PARAMETER_BYTES, PARAMETER_SIZE};
use crate::resident::Shared;
use crate::step::{Build, Dispatch, Grid, Loaded, Means, Places};
use crate::window::{Answer, Window};

/// How long a wait asks again and again: a driver takes tens of microseconds to wake a thread,
/// which is much of a short forecast. A browser cannot wait; it polls.
const SPIN: Duration = Duration::from_millis(1);
/// From then on it asks between naps of this part of the time that has passed, and only after so
/// long does it block: a blocked thread was woken 240 to 430 µs late (H200, 2026-11-22).
const NAPS_OF_ELAPSED: u32 = 32;
const NAPS_UNTIL: Duration = Duration::from_millis(100);

/// Bytes taken of a resident's budget until dropped.
#[derive(Debug)]
struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
    lines: Vec<MemoryLine>,
}

impl Reservation {
    fn take(&mut self, owner: &str, bytes: u64) -> Result<(), DeviceError> {
        self.shared.budget.reserve(owner, bytes)?;
        self.bytes += bytes;
        if bytes > 0 {
            self.lines.push(MemoryLine::new(owner, bytes));
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.budget.release(self.bytes);
    }
}

/// A dispatch with all that wgpu needs for it.
#[derive(Debug)]
struct Ready {
    pipeline: Arc<wgpu::ComputePipeline>,
    /// Index of the bind group.
    group: usize,
    /// Bytes of its parameters' place.
    parameters: u32,
    grid: Grid,
}

#[derive(Debug)]
enum Flight {
    Idle,
    Flying { index: wgpu::SubmissionIndex },
    Landed(Result<(), DeviceError>),
}

/// What makes a recording fit a run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Likeness {
    rows: usize,
    fresh: Fresh,
    timed: bool,
}

/// The commands of one run.
#[derive(Debug)]
struct Recording {
    likeness: Likeness,
    commands: wgpu::CommandBuffer,
    /// Bytes that they copy between memory of the host and memory of the device.
    copied: u64,
}

/// The program of [`crate::WgpuDevice`].
#[derive(Debug)]
pub(crate) struct WgpuProgram {
    info: ProgramInfo,
    dtypes: Vec<DType>,
    slots: Option<usize>,
    exchange: Exchange,
    groups: Vec<wgpu::BindGroup>,
    dispatches: Vec<Ready>,
    /// Where runs are timed.
    clock: Option<Clock>,
    /// Made ahead for the next run.
    ahead: Option<Recording>,
    flight: Flight,
    /// Rows of the run in flight, and of the last one that succeeded.
    rows: usize,
    ran: usize,
    runs: Arc<Runs>,
    room: Reservation,
}

/// The arena of a program: values, scratch of the steps, constants; all in bytes.
struct Layout {
    values: ArenaPlan,
    scratch: usize,
    constants: usize,
}

impl Layout {
    fn bytes(&self) -> usize {
        self.constants_at() + self.constants
    }

    fn scratch_at(&self) -> usize {
        self.values.bytes()
    }

    fn constants_at(&self) -> usize {
        (self.scratch_at() + self.scratch).next_multiple_of(ALIGNMENT)
    }
}

fn places(shared: &Shared, entry: &Entry, request: Request, layout: &Layout) -> Places {
    let bucket = request.bucket;
    let values = &entry.values;
    let mut offsets = vec![0; values.len()];
    let written = entry.inputs.iter().map(|input| input.value);
    let written = written.chain(entry.steps.iter().flat_map(|step| step.outputs.iter().copied()));
    for id in written {
        offsets[id.index()] = layout.values.region(id).offset / 4;
    }
    Places {
        values: offsets,
        shapes: values.iter().map(|value| sizes(&value.shape, bucket)).collect(),
        batched: values
            .iter()
            .map(|value| matches!(value.shape.first(), Some(Dim::Batch(_))))
            .collect(),
        states: shared.states.clone(),
        scratch: layout.scratch_at() / 4,
        constants: layout.constants_at() / 4,
    }
}

/// The dispatches of an entry, with the arena that they need.
fn plan_dispatches(
    shared: &Shared,
    entry: &Entry,
    steps: &[Box<dyn Loaded>],
    request: Request,
) -> Result<(Layout, Vec<Dispatch>, Vec<u32>), DeviceError> {
    let most = shared.gpu.binding_bytes_max();
    let too_large = |bytes: u64| {
        let (name, bucket) = (request.entry.name(), request.bucket);
        let message = format!(
            "entry `{name}` in {bucket:?} needs {bytes} bytes in one binding, the device has \
             {most} at most"
        );
        DeviceError::new(DeviceErrorKind::OutOfMemory, message)
    };
    let mut values_bytes = 0_u64;
    for value in &entry.values {
        let bytes = (elements(&value.shape, request.bucket) as u64).saturating_mul(4);
        values_bytes = values_bytes.max(bytes);
    }
    if values_bytes > most {
        return Err(too_large(values_bytes));
    }
    let values = ArenaPlan::new(entry, request.bucket);
    let mut layout = Layout { values, scratch: 0, constants: 0 };
    let build = |layout: &Layout| {
        let bytes = layout.bytes() as u64;
        if bytes > most {
            return Err(too_large(bytes));
        }
        let places = places(shared, entry, request, layout);
        let means = Means {
            limits: &shared.gpu.limits,
            half: shared.options.precision == Precision::F16,
            cooperative: shared.cooperative,
        };
        let mut build = Build::new(means, request, &places);
        for step in steps {
            step.build(&mut build)?;
            build.end_step();
        }
        Ok(build.finish())
    };
    // Once to learn how much scratch and how many constants there are, once with their places.
    let (_, scratch, constants) = build(&layout)?;
    (layout.scratch, layout.constants) = (scratch * 4, constants.len() * 4);
    let (dispatches, again, constants) = build(&layout)?;
    assert_eq!(again, scratch, "steps ask for the same scratch every time");
    Ok((layout, dispatches, constants))
}

impl WgpuProgram {
    pub(crate) fn compile(
        shared: Arc<Shared>,
        entry: &Entry,
        steps: &[Box<dyn Loaded>],
        request: Request,
    ) -> Result<WgpuProgram, DeviceError> {
        let gpu = Arc::clone(&shared.gpu);
        gpu.health.check_lost()?;
        let mut info = ProgramInfo::new(&shared.plan, entry, request, shared.options.precision);
        let mut room = Reservation { shared: Arc::clone(&shared), bytes: 0, lines: Vec::new() };
        let (layout, dispatches, constants) = plan_dispatches(&shared, entry, steps, request)?;
        for line in layout.values.lines() {
            room.take(&line.owner, line.bytes)?;
        }
        room.take("scratch of the steps", layout.scratch as u64)?;
        room.take("constants of the steps", layout.constants as u64)?;

        let stateful = entry.uses_states();
        let header_words = HEADER_WORDS + if stateful { request.bucket.batch } else { 0 };
        let value = |id, &(all, row): &(usize, usize)| exchange::Value {
            arena: layout.values.region(id).offset as u64,
            all: all as u64 * 4,
            row: row as u64 * 4,
        };
        let inputs = entry.inputs.iter().zip(&info.input_elements);
        let inputs: Vec<_> = inputs.map(|(input, counts)| value(input.value, counts)).collect();
        let outputs = entry.outputs.iter().zip(&info.output_elements);
        let outputs: Vec<_> = outputs.map(|(output, counts)| value(output.value, counts)).collect();
        let parameter_bytes = dispatches.len() * PARAMETER_BYTES;
        let staging = exchange::staging_bytes(&gpu, header_words, (&inputs, &outputs));
        room.take("run header", header_words as u64 * 4)?;
        room.take("parameters of dispatches", parameter_bytes as u64)?;
        room.take("inputs from the host", staging.0)?;
        room.take("outputs for the host", staging.1)?;

        let mut words = vec![0_u32; dispatches.len() * PARAMETER_BYTES / 4];
        for (place, dispatch) in words.chunks_exact_mut(PARAMETER_BYTES / 4).zip(&dispatches) {
            place[..dispatch.words.len()].copy_from_slice(&dispatch.words);
        }
        let (words, usage) = (bytemuck::cast_slice(&words), wgpu::BufferUsages::UNIFORM);
        let parameters = gpu.filled_buffer("parameters", words, usage)?;
        let exchange = Exchange::new(
            &gpu,
            (layout.bytes() as u64, header_words),
            (layout.constants_at() as u64, &constants),
            (inputs, outputs),
        )?;
        let buffers = [&parameters, exchange.arena(), exchange.header()];
        let (groups, ready) = prepare_dispatches(&shared, &dispatches, buffers)?;
        let counted = dispatches.iter().map(|dispatch| dispatch.counter.as_str());
        let runs = gpu.counters.program(counted);

        info.memory = std::mem::take(&mut room.lines);
        Ok(WgpuProgram {
            dtypes: entry.inputs.iter().map(|input| entry.value(input.value).dtype).collect(),
            slots: stateful.then_some(shared.options.state_slots),
            info,
            exchange,
            groups,
            dispatches: ready,
            clock: None,
            ahead: None,
            flight: Flight::Idle,
            rows: 0,
            ran: 0,
            runs,
            room,
        })
    }

    fn gpu(&self) -> &Gpu {
        &self.room.shared.gpu
    }

    fn check_not_flying(&self) {
        assert!(
            !matches!(self.flight, Flight::Flying { .. }),
            "the caller broke the contract: a run is in flight"
        );
    }

    /// Records the copies in, the pass and the copies out.
    fn record(&self, likeness: Likeness) -> Recording {
        let Likeness { rows, fresh, timed } = &likeness;
        let clock = self.clock.as_ref().filter(|_| *timed);
        let mut encoder = self.gpu().device.create_command_encoder(&Default::default());
        let mut copied = self.exchange.copy_in(&mut encoder, fresh);
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: clock.map(Clock::writes),
            });
            let mut pipeline = None;
            for ready in &self.dispatches {
                let (x, y) = ready.grid.workgroups(*rows);
                let same = pipeline.is_some_and(|last| Arc::ptr_eq(last, &ready.pipeline));
                if !same {
                    pass.set_pipeline(&ready.pipeline);
                    pipeline = Some(&ready.pipeline);
                }
                pass.set_bind_group(0, &self.groups[ready.group], &[ready.parameters]);
                pass.dispatch_workgroups(x, y, 1);
            }
        }
        copied += self.exchange.copy_out(&mut encoder, *rows);
        if let Some(clock) = clock {
            clock.copy_out(&mut encoder);
        }
        Recording { commands: encoder.finish(), copied, likeness }
    }

    /// Submits a run like this one, recorded ahead if it was; asks for what the host reads.
    fn launch(&mut self, likeness: &Likeness) -> Result<wgpu::SubmissionIndex, DeviceError> {
        let name = self.info.request.entry.name();
        let ahead = self.ahead.take().filter(|ahead| ahead.likeness == *likeness);
        let program = &*self;
        let gpu = program.gpu();
        let (index, copied) = gpu.checked(DeviceErrorKind::Execution, name, || {
            let recording = ahead.unwrap_or_else(|| program.record(likeness.clone()));
            program.exchange.give();
            let clock = program.clock.as_ref().filter(|_| likeness.timed);
            let timed = clock.map(|clock| &clock.window);
            timed.into_iter().for_each(Window::give);
            let index = gpu.queue.submit([recording.commands]);
            program.exchange.ask();
            timed.into_iter().for_each(Window::ask);
            (index, recording.copied)
        })?;
        gpu.staged.fetch_add(copied, Ordering::Relaxed);
        self.exchange.delivered();
        Ok(index)
    }

    fn land(&mut self, result: Result<(), DeviceError>) {
        if result.is_ok() {
            self.ran = self.rows;
        }
        self.flight = Flight::Landed(result);
    }

    /// What a run came to, if it has ended.
    fn progress(&self) -> Option<Result<(), DeviceError>> {
        if !matches!(self.flight, Flight::Flying { .. }) {
            return None;
        }
        if let Err(error) = self.gpu().health.check() {
            return Some(Err(error));
        }
        // The clock's times come with the outputs; without them there is a forecast all the same.
        match self.exchange.answer() {
            Answer::None => None,
            Answer::Held => Some(Ok(())),
            Answer::Failed => {
                let message = "the outputs could not be mapped after the run";
                Some(Err(DeviceError::new(DeviceErrorKind::Execution, message)))
            }
        }
    }
}

/// Pipelines and bind groups of dispatches; `buffers` are parameters, arena and header.
fn prepare_dispatches(
    shared: &Shared,
    dispatches: &[Dispatch],
    [parameters, arena, header]: [&wgpu::Buffer; 3],
) -> Result<(Vec<wgpu::BindGroup>, Vec<Ready>), DeviceError> {
    let gpu = &shared.gpu;
    let mut groups = Vec::new();
    let mut known: Vec<(usize, bool, bool)> = Vec::new();
    let mut ready = Vec::new();
    for (i, dispatch) in dispatches.iter().enumerate() {
        let pipeline =
            gpu.pipelines.get(&gpu.device, &gpu.health, (dispatch.kernel, &dispatch.constants))?;
        let (stateful, half) = (dispatch.kernel.stateful, dispatch.kernel.tier.is_half());
        let key = (dispatch.weights, stateful, half);
        let group = match known.iter().position(|other| *other == key) {
            Some(group) => group,
            None => {
                let window = wgpu::BufferBinding {
                    buffer: parameters,
                    offset: 0,
                    size: Some(PARAMETER_SIZE),
                };
                let window = wgpu::BindingResource::Buffer(window);
                let mut entries = vec![
                    wgpu::BindGroupEntry { binding: 0, resource: window },
                    whole(1, arena),
                    whole(2, &shared.weights[dispatch.weights]),
                    whole(3, header),
                ];
                if stateful {
                    entries.push(whole(4, &shared.store));
                }
                if half {
                    entries.push(whole(5, &shared.weights[dispatch.weights]));
                }
                let descriptor = wgpu::BindGroupDescriptor {
                    label: None,
                    layout: gpu.pipelines.bindings(stateful, half),
                    entries: &entries,
                };
                let create = || gpu.device.create_bind_group(&descriptor);
                groups.push(gpu.checked(DeviceErrorKind::Compile, "bind groups", create)?);
                known.push(key);
                known.len() - 1
            }
        };
        let parameters = (i * PARAMETER_BYTES) as u32;
        ready.push(Ready { pipeline, group, parameters, grid: dispatch.grid });
    }
    Ok((groups, ready))
}

/// A whole buffer at a binding.
fn whole(binding: u32, buffer: &wgpu::Buffer) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }
}

/// Waits for a submission and maps a buffer that it wrote.
pub(crate) fn until_mapped(
    gpu: &Gpu,
    buffer: wgpu::Buffer,
    index: wgpu::SubmissionIndex,
) -> Result<wgpu::BufferView, DeviceError> {
    let window = Window::new("what was copied out", buffer, wgpu::MapMode::Read, false);
    gpu.checked(DeviceErrorKind::Execution, "mapping", || window.ask())?;
    wait_for(gpu, index)?;
    gpu.health.check()?;
    window.view()
}

/// Blocks until a submission has finished.
fn wait_for(gpu: &Gpu, index: wgpu::SubmissionIndex) -> Result<(), DeviceError> {
    let until = wgpu::PollType::Wait { submission_index: Some(index), timeout: None };
    match gpu.device.poll(until) {
        Ok(_) => Ok(()),
        Err(error) => {
            gpu.health.check()?;
            Err(DeviceError::new(DeviceErrorKind::Execution, format!("waiting: {error}")))
        }
    }
}

fn cancelled() -> DeviceError {
    DeviceError::new(DeviceErrorKind::Cancelled, "before the run began")
}

impl Program for WgpuProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn write(&mut self, input: usize, data: Data<'_>) {
        self.check_not_flying();
        let dtype = self.dtypes.get(input).copied().unwrap_or(DType::F32);
        self.info.check_write(input, dtype, &data);
        let bytes: &[u8] = match data {
            Data::F32(data) => bytemuck::cast_slice(data),
            Data::I32(data) => bytemuck::cast_slice(data),
        };
        let gpu = &self.room.shared.gpu;
        let written = gpu.health.check_lost();
        let written = written.and_then(|()| self.exchange.write(gpu, input, bytes));
        if let (Err(error), false) = (written, matches!(self.flight, Flight::Landed(Err(_)))) {
            self.flight = Flight::Landed(Err(error));
        }
    }

    fn submit(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        self.check_not_flying();
        if let Flight::Landed(Err(error)) = &self.flight {
            return Err(error.clone());
        }
        self.info.check_run(run, self.slots);
        self.gpu().health.check()?;
        if run.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            self.flight = Flight::Landed(Err(cancelled()));
            return Ok(());
        }
        let slots = if self.slots.is_some() { run.slots } else { &[] };
        self.exchange.begin(&self.room.shared.gpu, run.rows, slots)?;
        self.rows = run.rows;
        let (fresh, timed) = (self.exchange.fresh().clone(), self.clock.is_some());
        let likeness = Likeness { rows: run.rows, fresh, timed };
        let index = self.launch(&likeness)?;
        self.runs.count();
        self.flight = Flight::Flying { index };
        // What fails here fails again where the recording is needed, which says so.
        let program = &*self;
        let next = || program.record(likeness);
        self.ahead = program.gpu().checked(DeviceErrorKind::Execution, "ahead", next).ok();
        Ok(())
    }

    fn poll(&mut self) -> bool {
        if !matches!(self.flight, Flight::Flying { .. }) {
            return true;
        }
        let polled = self.gpu().device.poll(wgpu::PollType::Poll);
        let result = match polled {
            Ok(_) => self.progress(),
            Err(error) => {
                let message = format!("polling: {error}");
                Some(Err(DeviceError::new(DeviceErrorKind::Execution, message)))
            }
        };
        match result {
            Some(result) => {
                self.land(result);
                true
            }
            None => false,
        }
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        let begun = Instant::now();
        while !self.poll() {
            match begun.elapsed() {
                elapsed if elapsed < SPIN => std::hint::spin_loop(),
                elapsed if elapsed < NAPS_UNTIL => std::thread::sleep(elapsed / NAPS_OF_ELAPSED),
                _ => break,
            }
        }
        if let Flight::Flying { index } = &self.flight {
            let waited = wait_for(self.gpu(), index.clone());
            let result = waited.and_then(|()| {
                let silent = || {
                    let message = "the run ended and its outputs were not mapped";
                    DeviceError::new(DeviceErrorKind::Execution, message)
                };
                self.progress().unwrap_or_else(|| Err(silent()))
            });
            self.land(result);
        }
        match std::mem::replace(&mut self.flight, Flight::Idle) {
            Flight::Landed(result) => result,
            _ => Ok(()),
        }
    }

    fn time_runs(&mut self) -> Result<(), DeviceError> {
        self.check_not_flying();
        if self.clock.is_none() {
            self.clock = Clock::new(&self.room.shared.gpu)?;
        }
        Ok(())
    }

    fn device_us(&self) -> Option<f64> {
        self.clock.as_ref()?.between_us()
    }

    fn read(&mut self, output: usize, into: &mut [f32]) -> Result<(), DeviceError> {
        self.check_not_flying();
        assert!(self.ran > 0, "the caller broke the contract: no run has succeeded");
        self.gpu().health.check_lost()?;
        self.info.check_read(output, into.len(), self.ran);
        if into.is_empty() {
            return Ok(());
        }
        self.exchange.read(output, bytemuck::cast_slice_mut(into))
    }
}

impl Drop for WgpuProgram {
    fn drop(&mut self) {
        // wgpu keeps what a run uses until the run has ended; memory is given back to the budget
        // only then.
        if let Flight::Flying { index } = &self.flight {
            let _ = wait_for(self.gpu(), index.clone());
        }
    }
}
