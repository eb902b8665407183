//! One entry compiled for one bucket: an arena, pipelines and bind groups made beforehand, and the
//! dispatches that a run records into one compute pass and submits once.
//!
//! Inputs go into the arena as they are written; the run's header says how many rows are in use and
//! in which slots. What comes back is the outputs alone, into memory that the host maps. Command
//! buffers of WebGPU serve once, so a run records its pass anew and leaves out workgroups of rows
//! that are not in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use neural_forecast_runtime::arena::{ALIGNMENT, ArenaPlan, MemoryLine};
use neural_forecast_runtime::counters::Runs;
use neural_forecast_runtime::device::{
    Cancel, Data, Precision, Program, ProgramInfo, Request, Run,
};
use neural_forecast_runtime::plan::{DType, Dim, Entry, elements, sizes};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::device::Shared as Gpu;
use crate::kernel::{PARAMETER_BYTES, PARAMETER_SIZE};
use crate::resident::Shared;
use crate::step::{Build, Dispatch, Grid, Loaded, Means, Places};

/// Words of the run header before the slots; mirrors `RUN_SLOTS` of `wgsl/prelude.wgsl`.
const HEADER_WORDS: usize = 4;

/// How long a wait asks again and again before it blocks: a driver takes tens of microseconds to
/// wake a thread, which is much of a short forecast. A browser cannot wait; it polls.
const SPIN: Duration = Duration::from_millis(1);

/// Bytes of two times by the device's clock.
const TIMES_BYTES: u64 = 16;

/// The device's clock before and after the pass of a run, where it has one.
#[derive(Debug)]
struct Clock {
    times: wgpu::QuerySet,
    /// Where the times are written to before the host gets them with the outputs.
    resolved: wgpu::Buffer,
    /// Bytes of the result where they are.
    at: u64,
    /// Nanoseconds of a tick.
    period: f64,
}

impl Clock {
    fn new(gpu: &Gpu, at: u64) -> Result<Option<Clock>, DeviceError> {
        if !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Ok(None);
        }
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.buffer("times of a run", TIMES_BYTES, usage)?;
        let descriptor = wgpu::QuerySetDescriptor {
            label: Some("times of a run"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        };
        let create = || gpu.device.create_query_set(&descriptor);
        let times = gpu.checked(DeviceErrorKind::OutOfMemory, "times of a run", create)?;
        let period = f64::from(gpu.queue.get_timestamp_period());
        Ok(Some(Clock { times, resolved, at, period }))
    }

    fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.times,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    fn copy(&self, encoder: &mut wgpu::CommandEncoder, result: &wgpu::Buffer) {
        encoder.resolve_query_set(&self.times, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, result, self.at, Some(TIMES_BYTES));
    }

    /// Between two ticks as the result has them, in microseconds.
    fn between(&self, times: &[u8]) -> Option<f64> {
        let (ticks, _) = times.as_chunks::<8>();
        let [begin, end] = *ticks else { return None };
        let ticks = u64::from_le_bytes(end).checked_sub(u64::from_le_bytes(begin))?;
        Some(ticks as f64 * self.period / 1e3)
    }
}

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

/// Whether the result is mapped: set by wgpu's callback.
const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const FAILED: u8 = 2;

#[derive(Debug)]
enum Flight {
    Idle,
    Flying { index: wgpu::SubmissionIndex, mapped: Arc<AtomicU8> },
    Landed(Result<(), DeviceError>),
}

/// The program of [`crate::WgpuDevice`].
#[derive(Debug)]
pub(crate) struct WgpuProgram {
    info: ProgramInfo,
    dtypes: Vec<DType>,
    slots: Option<usize>,
    arena: wgpu::Buffer,
    header: wgpu::Buffer,
    groups: Vec<wgpu::BindGroup>,
    dispatches: Vec<Ready>,
    /// Bytes of the arena where each input and output begins.
    inputs: Vec<u64>,
    outputs: Vec<u64>,
    /// Where the host reads outputs, and where in it each begins.
    result: wgpu::Buffer,
    results: Vec<u64>,
    clock: Option<Clock>,
    /// Whether `result` is mapped, so that the next run must unmap it first.
    is_mapped: bool,
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
        let result_bytes: usize = info.output_elements.iter().map(|(all, _)| all * 4).sum();
        let parameter_bytes = dispatches.len() * PARAMETER_BYTES;
        room.take("run header", header_words as u64 * 4)?;
        room.take("parameters of dispatches", parameter_bytes as u64)?;
        room.take("outputs for the host", result_bytes as u64)?;

        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let arena_usage = storage | wgpu::BufferUsages::COPY_SRC;
        let arena = gpu.buffer("the program's values", layout.bytes() as u64, arena_usage)?;
        let header = gpu.buffer("run header", header_words as u64 * 4, storage)?;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let parameters = gpu.buffer("parameters", parameter_bytes as u64, uniform)?;
        let mappable = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let clock = Clock::new(&gpu, (result_bytes as u64).next_multiple_of(8))?;
        let times = clock.as_ref().map_or(0, |_| TIMES_BYTES + 8);
        let result = gpu.buffer("outputs for the host", result_bytes as u64 + times, mappable)?;

        let mut words = vec![0_u32; dispatches.len() * PARAMETER_BYTES / 4];
        for (place, dispatch) in words.chunks_exact_mut(PARAMETER_BYTES / 4).zip(&dispatches) {
            place[..dispatch.words.len()].copy_from_slice(&dispatch.words);
        }
        gpu.checked(DeviceErrorKind::Execution, "parameters and constants", || {
            gpu.queue.write_buffer(&parameters, 0, bytemuck::cast_slice(&words));
            let at = layout.constants_at() as u64;
            gpu.queue.write_buffer(&arena, at, bytemuck::cast_slice(&constants));
        })?;
        let buffers = [&parameters, &arena, &header];
        let (groups, ready) = prepare_dispatches(&shared, &dispatches, buffers)?;
        let counted = dispatches.iter().map(|dispatch| dispatch.counter.as_str());
        let runs = gpu.counters.program(counted);

        let place = |id| layout.values.region(id).offset as u64;
        let mut next = 0;
        let results = info.output_elements.iter().map(|(all, _)| {
            let at = next;
            next += *all as u64 * 4;
            at
        });
        let results = results.collect();
        info.memory = std::mem::take(&mut room.lines);
        Ok(WgpuProgram {
            dtypes: entry.inputs.iter().map(|input| entry.value(input.value).dtype).collect(),
            slots: stateful.then_some(shared.options.state_slots),
            inputs: entry.inputs.iter().map(|input| place(input.value)).collect(),
            outputs: entry.outputs.iter().map(|output| place(output.value)).collect(),
            info,
            arena,
            header,
            groups,
            dispatches: ready,
            result,
            results,
            clock,
            is_mapped: false,
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

    /// Records the pass and the copies out, and submits them.
    fn record(&self, run: &Run<'_>) -> wgpu::SubmissionIndex {
        let gpu = self.gpu();
        let mut header = vec![0; HEADER_WORDS];
        header[0] = run.rows as u32;
        if self.slots.is_some() {
            header.extend_from_slice(run.slots);
        }
        gpu.queue.write_buffer(&self.header, 0, bytemuck::cast_slice(&header));
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: self.clock.as_ref().map(Clock::writes),
            });
            for ready in &self.dispatches {
                let (x, y) = ready.grid.workgroups(run.rows);
                pass.set_pipeline(&ready.pipeline);
                pass.set_bind_group(0, &self.groups[ready.group], &[ready.parameters]);
                pass.dispatch_workgroups(x, y, 1);
            }
        }
        let places = self.outputs.iter().zip(&self.results);
        for ((&from, &to), &(all, row)) in places.zip(&self.info.output_elements) {
            let bytes = 4 * if row == 0 { all } else { row * run.rows } as u64;
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(&self.arena, from, &self.result, to, Some(bytes));
            }
        }
        if let Some(clock) = &self.clock {
            clock.copy(&mut encoder, &self.result);
        }
        gpu.queue.submit([encoder.finish()])
    }

    fn land(&mut self, result: Result<(), DeviceError>) {
        if let Flight::Flying { mapped, .. } = &self.flight {
            self.is_mapped = mapped.load(Ordering::Acquire) == MAPPED;
        }
        if result.is_ok() {
            self.ran = self.rows;
        }
        self.flight = Flight::Landed(result);
    }

    /// What a run came to, if it has ended.
    fn progress(&self) -> Option<Result<(), DeviceError>> {
        let Flight::Flying { mapped, .. } = &self.flight else { return None };
        if let Err(error) = self.gpu().health.check() {
            return Some(Err(error));
        }
        match mapped.load(Ordering::Acquire) {
            PENDING => None,
            MAPPED => Some(Ok(())),
            _ => {
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
    buffer: &wgpu::Buffer,
    index: wgpu::SubmissionIndex,
) -> Result<wgpu::BufferView, DeviceError> {
    let mapped = map(buffer);
    wait_for(gpu, index)?;
    gpu.health.check()?;
    if mapped.load(Ordering::Acquire) != MAPPED {
        let message = "a buffer could not be mapped";
        return Err(DeviceError::new(DeviceErrorKind::Execution, message));
    }
    view(buffer)
}

/// Begins to map a buffer; the callback says how it went.
fn map(buffer: &wgpu::Buffer) -> Arc<AtomicU8> {
    let mapped = Arc::new(AtomicU8::new(PENDING));
    let told = Arc::clone(&mapped);
    buffer.slice(..).map_async(wgpu::MapMode::Read, move |result| {
        let state = if result.is_ok() { MAPPED } else { FAILED };
        told.store(state, Ordering::Release);
    });
    mapped
}

fn view(buffer: &wgpu::Buffer) -> Result<wgpu::BufferView, DeviceError> {
    buffer.slice(..).get_mapped_range().map_err(|error| {
        DeviceError::new(DeviceErrorKind::Execution, format!("the outputs are not mapped: {error}"))
    })
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
        let gpu = self.gpu();
        let copy = || gpu.queue.write_buffer(&self.arena, self.inputs[input], bytes);
        let written = gpu.checked(DeviceErrorKind::Execution, "inputs", copy);
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
        if std::mem::take(&mut self.is_mapped) {
            self.result.unmap();
        }
        self.rows = run.rows;
        let name = self.info.request.entry.name();
        let submit = || {
            let index = self.record(run);
            (index, map(&self.result))
        };
        let (index, mapped) = self.gpu().checked(DeviceErrorKind::Execution, name, submit)?;
        self.runs.count();
        self.flight = Flight::Flying { index, mapped };
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
        while !self.poll() && begun.elapsed() < SPIN {
            std::hint::spin_loop();
        }
        if let Flight::Flying { index, .. } = &self.flight {
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

    fn device_us(&self) -> Option<f64> {
        let clock = self.clock.as_ref().filter(|_| self.is_mapped && self.ran > 0)?;
        let view = view(&self.result).ok()?;
        let at = clock.at as usize;
        clock.between(view.get(at..at + TIMES_BYTES as usize)?)
    }

    fn read(&mut self, output: usize, into: &mut [f32]) -> Result<(), DeviceError> {
        self.check_not_flying();
        assert!(self.ran > 0, "the caller broke the contract: no run has succeeded");
        self.gpu().health.check_lost()?;
        self.info.check_read(output, into.len(), self.ran);
        if into.is_empty() {
            return Ok(());
        }
        if !self.is_mapped {
            let message = "the outputs of the last run that succeeded are gone";
            return Err(DeviceError::new(DeviceErrorKind::Execution, message));
        }
        let view = view(&self.result)?;
        let bytes = bytemuck::cast_slice_mut::<f32, u8>(into);
        let at = self.results[output] as usize;
        bytes.copy_from_slice(&view[at..at + bytes.len()]);
        Ok(())
    }
}

impl Drop for WgpuProgram {
    fn drop(&mut self) {
        // wgpu keeps what a run uses until the run has ended; memory is given back to the budget
        // only then.
        if let Flight::Flying { index, .. } = &self.flight {
            let _ = wait_for(self.gpu(), index.clone());
        }
    }
}
