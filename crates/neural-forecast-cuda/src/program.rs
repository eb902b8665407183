//! One entry compiled for one bucket: a captured graph with its memory, and the way in and out.
//!
//! Inputs of which the device would only read 16 bits a number are rounded on their way to pinned
//! memory. Large ones are written by several threads.
//!
//! Latency class: inputs, outputs, the run header and the completion flag are in mapped host
//! memory; the graph is `program_begin`, the steps, `program_finish`, or one whole-forecast kernel
//! alone. A large input is read chunk by chunk while the host still writes it, by a kernel that
//! `write` launches; what is left for `program_begin` is the header, and nothing where no step
//! reads it. `wait` spins on the flag; no stream is synchronised and no copy engine takes part
//! unless inputs or outputs are larger still. Throughput class: inputs go to the device as they are
//! written and stay there; outputs come back by the copy engine; completion is an event.
//!
//! A whole-forecast kernel may linger (`crate::linger`): then a run that follows soon is not
//! launched at all, but asked for by its number in the header.
//!
//! Every other run is a graph, also one of a single kernel: launching it takes 1.0 µs of the host
//! where launching the kernel takes 2.4 (H200, 2026-11-21), and its tail is shorter.
//!
//! A graph cannot be stopped between its nodes, so a long program is several graphs, each of about
//! a yield interval. A run that can be cancelled has at most two of them enqueued; its states are
//! committed by the last. What a single kernel does cannot be stopped. Work of higher priority gets
//! in between all the same: its blocks are placed before those of lower priority as
//! multiprocessors become free.

mod capture;
mod pages;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use neural_forecast_runtime::arena::{ALIGNMENT, ArenaPlan, MemoryLine};
use neural_forecast_runtime::counters::Runs;
use neural_forecast_runtime::device::{
    Cancel, Data, KernelClass, Program, ProgramInfo, Request, Residency, Run,
};
use neural_forecast_runtime::plan::{DType, Entry, StateId, ValueId, sizes};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::driver::{DeviceMemory, Event, Graph, Stream};
use crate::launch::Launch;
use crate::linger::{Guest, Seen};
use crate::resident::Shared;
use crate::step::gemm::Element;
use crate::step::whole::Whole;
use crate::step::{Build, Loaded, Places, value_elements};
use crate::surround::{self, Announcement, NewState, Region};
use capture::{graphs, is_resident, segments};
use pages::{Pages, bytes_of, stage_chunk};

/// Bytes of inputs, and of outputs, up to which the latency class moves them by kernels through
/// mapped memory rather than by the copy engine, which takes 5 µs more at 1 MiB; beyond that its
/// copies go on while the host still writes.
const MAPPED_BYTES_MAX: usize = 1 << 20;
/// Bytes of inputs that the latency class copies while they are written.
const STAGED_BYTES: Range<usize> = 256 << 10..8 << 20;
/// How often a run that does not announce its end is looked after, and after how long the waiting
/// thread lets others run.
const CHECK_EVERY: Duration = Duration::from_micros(200);
const YIELD_AFTER: Duration = Duration::from_millis(2);
/// Reads of the flag between two looks at the clock.
const SPINS: usize = 64;
/// Bytes taken of a resident's budget until dropped.
#[derive(Debug)]
struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
    lines: Vec<MemoryLine>,
}

impl Reservation {
    fn take(&mut self, owner: &str, bytes: usize) -> Result<(), DeviceError> {
        self.shared.budget.reserve(owner, bytes as u64)?;
        self.bytes += bytes as u64;
        if bytes > 0 {
            self.lines.push(MemoryLine::new(owner, bytes as u64));
        }
        Ok(())
    }

    /// As [`Reservation::take`], and allocates.
    fn device(&mut self, owner: &str, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        self.take(owner, bytes)?;
        DeviceMemory::new(&self.shared.gpu.context, owner, bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.budget.release(self.bytes);
    }
}

/// How inputs reach the device and outputs the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Kernels read and write mapped host memory.
    Mapped,
    /// As inputs are written, a kernel copies what is there.
    Staged,
    /// The copy engine, at these offsets of the arena's memory.
    Copied,
}

/// A program as launches, with the memory that they use.
struct Compiled {
    launches: Vec<Launch>,
    memory: Vec<DeviceMemory>,
    /// Where the first memory holds each input and output, for copies.
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    /// The formats of the inputs on the device.
    stored: Vec<Element>,
    ways: (Way, Way),
    /// Of staged inputs, the launches that copy them.
    stages: Vec<Launch>,
    /// Whether the end is announced in host memory.
    announced: bool,
}

/// What the two passes over the steps need.
struct Source<'a> {
    shared: &'a Arc<Shared>,
    entry: &'a Entry,
    request: Request,
    info: &'a ProgramInfo,
    pages: &'a Pages,
}

impl Source<'_> {
    fn places(&self) -> Places {
        let bucket = self.request.bucket;
        let values = &self.entry.values;
        Places {
            values: vec![0; values.len()],
            shapes: values.iter().map(|value| sizes(&value.shape, bucket)).collect(),
            states: self.shared.states.iter().map(|state| state.memory.address()).collect(),
            new_states: vec![0; self.shared.states.len()],
            ..Places::default()
        }
    }

    fn build<'a>(&'a self, places: &'a Places) -> Build<'a> {
        let Request { class, bucket, .. } = self.request;
        Build::new(&self.shared.gpu.gpu, self.shared.options.precision, class, bucket, places)
    }

    /// Memory that the steps use while they run and between runs, as the sizing pass says.
    fn work_memory(
        &self,
        places: &mut Places,
        (scratch, persistent): (u64, u64),
        room: &mut Reservation,
    ) -> Result<Vec<DeviceMemory>, DeviceError> {
        // Never nothing: address 0 means that sizes are being asked for.
        let scratch = room.device("scratch of the steps", scratch.max(1) as usize)?;
        let bytes = (persistent as usize).max(1);
        let persistent = room.device("flags between blocks", bytes)?;
        persistent.zero(0, bytes, &self.shared.stateful)?;
        self.shared.stateful.synchronize()?;
        (places.scratch, places.persistent) = (scratch.address(), persistent.address());
        Ok(vec![scratch, persistent])
    }

    /// The entry as one kernel, where one serves it.
    fn whole(
        &self,
        whole: &[Box<dyn Whole>],
        room: &mut Reservation,
    ) -> Result<Option<Compiled>, DeviceError> {
        let gpu = &self.shared.gpu;
        // Marks in the stream would wait for a kernel that lingers.
        let lingers = gpu.linger_ns > 0 && !gpu.timing && gpu.gpu.cooperative;
        let mut pages = self.pages.addresses(lingers);
        let mut places = Places { header: pages.header, ..self.places() };
        for kernel in whole {
            let mut sizing = self.build(&places);
            if !kernel.build(&mut sizing, &pages)? {
                continue;
            }
            let (mut launches, mut scratch, mut persistent) = sizing.finish();
            if !launches.iter().all(|launch| !launch.lingers || is_resident(gpu, launch)) {
                pages.left = None;
                let mut sizing = self.build(&places);
                kernel.build(&mut sizing, &pages)?;
                (launches, scratch, persistent) = sizing.finish();
            }
            drop(launches);
            let memory = self.work_memory(&mut places, (scratch, persistent), room)?;
            let mut build = self.build(&places);
            kernel.build(&mut build, &pages)?;
            let (launches, _, _) = build.finish();
            return Ok(Some(Compiled {
                launches,
                memory,
                inputs: Vec::new(),
                outputs: Vec::new(),
                stored: vec![Element::F32; self.entry.inputs.len()],
                ways: (Way::Mapped, Way::Mapped),
                stages: Vec::new(),
                announced: true,
            }));
        }
        Ok(None)
    }

    /// The states that the entry's steps touch.
    fn touched(&self) -> Vec<StateId> {
        let steps = self.entry.steps.iter();
        let mut states: Vec<StateId> = steps.flat_map(|step| step.op.states()).collect();
        states.sort_unstable();
        states.dedup();
        states
    }

    /// The entry step by step.
    fn steps(
        &self,
        steps: &[Box<dyn Loaded>],
        room: &mut Reservation,
    ) -> Result<Compiled, DeviceError> {
        let layout = Layout::new(self);
        for line in layout.arena.lines() {
            room.take(&line.owner, line.bytes as usize)?;
        }
        room.take("run header and new states", layout.bytes - layout.arena.bytes())?;
        let context = &self.shared.gpu.context;
        let memory = DeviceMemory::new(context, "the program's values", layout.bytes)?;
        memory.zero(0, memory.bytes(), &self.shared.stateful)?;
        let base = memory.address();
        let mut places = Places { header: base + layout.header as u64, ..self.places() };
        for id in value_ids(self.entry) {
            places.values[id.index()] = base + layout.arena.region(id).offset as u64;
        }
        places.elements = value_elements(self.entry, steps, &self.build(&places));
        let inputs = self.entry.inputs.iter();
        let stored = inputs.map(|input| places.elements[input.value.index()]);
        let stored: Vec<Element> = stored.collect();
        for new in &layout.new {
            places.new_states[new.state.index()] = base + new.offset as u64;
        }
        let mut sizing = self.build(&places);
        build_steps(steps, &mut sizing)?;
        let (_, scratch, persistent) = sizing.finish();
        let work = self.work_memory(&mut places, (scratch, persistent), room)?;
        let mut build = self.build(&places);
        build_steps(steps, &mut build)?;
        let headed = build.needs_header() || !layout.new.is_empty();
        let (steps, _, _) = build.finish();

        let class = self.request.class;
        let way = |bytes: usize| {
            let mapped = class == KernelClass::Latency && bytes <= MAPPED_BYTES_MAX;
            if mapped { Way::Mapped } else { Way::Copied }
        };
        let inputs = self.info.input_elements.iter().zip(&stored);
        let inputs = inputs.map(|((all, _), &stored)| all * bytes_of(stored)).sum::<usize>();
        let outputs = self.info.output_elements.iter().map(|(all, _)| all * 4).sum();
        let alone = self.entry.inputs.len() == 1 && STAGED_BYTES.contains(&inputs);
        let staged = class == KernelClass::Latency && alone;
        let ways = (if staged { Way::Staged } else { way(inputs) }, way(outputs));
        // Copied outputs follow the kernels, so their end is an event.
        let announced = class == KernelClass::Latency && ways.1 == Way::Mapped;
        let mut launches = match ways.0 {
            // Nothing to bring: what ends the run looks for the header where it is.
            Way::Staged | Way::Copied if announced && !headed => Vec::new(),
            way => self.begin(&layout, base, way, &stored),
        };
        launches.extend(steps);
        launches.extend(self.finish(&layout, base, ways.1, announced));
        let memory = std::iter::once(memory).chain(work).collect();
        let Layout { inputs, outputs, .. } = layout;
        let stages = match ways.0 {
            Way::Staged => self.stages(&inputs, base, &stored),
            Way::Mapped | Way::Copied => Vec::new(),
        };
        Ok(Compiled { launches, memory, inputs, outputs, stored, ways, stages, announced })
    }

    /// For each input the launch that copies it while it is written.
    fn stages(&self, to: &[usize], base: u64, stored: &[Element]) -> Vec<Launch> {
        let pages = self.pages;
        let stage = |input: usize| {
            let (from, to) = (pages.device(pages.inputs[input]), base + to[input] as u64);
            let (all, _) = self.info.input_elements[input];
            let each = bytes_of(stored[input]);
            let flags = pages.device(pages.stages[input]);
            surround::stage(from, to, all * each, stage_chunk(all) * each, flags)
        };
        (0..to.len()).map(stage).collect()
    }

    /// The launches before the steps; `base` is the address of the memory laid out.
    fn begin(&self, layout: &Layout, base: u64, way: Way, stored: &[Element]) -> Vec<Launch> {
        let pages = self.pages;
        let header = base + layout.header as u64;
        let mut regions = vec![Region::new(pages.device(0), header, pages.header_bytes)];
        if way == Way::Mapped {
            let places = pages.inputs.iter().zip(&layout.inputs).zip(&self.info.input_elements);
            regions.extend(places.zip(stored).map(|(((&from, &to), (all, _)), &stored)| {
                Region::new(pages.device(from), base + to as u64, all * bytes_of(stored))
            }));
        }
        surround::begin(&regions)
    }

    /// The launches after the steps.
    fn finish(&self, layout: &Layout, base: u64, way: Way, announced: bool) -> Vec<Launch> {
        let pages = self.pages;
        let mut regions = Vec::new();
        if way == Way::Mapped {
            let places = layout.outputs.iter().zip(&pages.outputs).zip(&self.info.output_elements);
            regions.extend(places.map(|((&from, &to), (all, _))| {
                Region::new(base + from as u64, pages.device(to), all * 4)
            }));
        }
        let commit = |new: &NewRows| NewState {
            rows: base + new.offset as u64,
            store: self.shared.states[new.state.index()].memory.address(),
            elements: new.elements as u64,
        };
        let commits: Vec<NewState> = layout.new.iter().map(commit).collect();
        let (flag, counter) = (pages.device(pages.flag), base + layout.counter as u64);
        let announcement = announced.then_some(Announcement { flag, counter });
        // On the device where rows and slots are read too.
        let header = if commits.is_empty() { pages.device(0) } else { base + layout.header as u64 };
        surround::finish(header, &commits, &regions, self.request.bucket.batch, announcement)
    }
}

/// The rows of a state that a run writes and the end of the run commits.
struct NewRows {
    state: StateId,
    /// Of one row.
    elements: usize,
    offset: usize,
}

/// Offsets in a program's one allocation: values, run header, a counter, new states.
struct Layout {
    arena: ArenaPlan,
    header: usize,
    counter: usize,
    new: Vec<NewRows>,
    /// Of each input and output.
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    bytes: usize,
}

impl Layout {
    fn new(source: &Source<'_>) -> Layout {
        let (entry, bucket) = (source.entry, source.request.bucket);
        let arena = ArenaPlan::new(entry, bucket);
        let mut bytes = arena.bytes();
        let mut place = |size: usize| {
            let at = bytes.next_multiple_of(ALIGNMENT);
            bytes = at + size.next_multiple_of(ALIGNMENT);
            at
        };
        let header = place(source.pages.header_bytes);
        let counter = place(4);
        let new = source.touched().into_iter().map(|state| {
            let elements = source.shared.states[state.index()].elements;
            NewRows { state, elements, offset: place(elements * bucket.batch * 4) }
        });
        let new = new.collect();
        let offset = |value| arena.region(value).offset;
        let inputs = entry.inputs.iter().map(|input| offset(input.value)).collect();
        let outputs = entry.outputs.iter().map(|output| offset(output.value)).collect();
        Layout { header, counter, new, inputs, outputs, bytes, arena }
    }
}

/// The values that something writes.
fn value_ids(entry: &Entry) -> impl Iterator<Item = ValueId> {
    let outputs = entry.steps.iter().flat_map(|step| step.outputs.iter().copied());
    entry.inputs.iter().map(|input| input.value).chain(outputs)
}

fn build_steps(steps: &[Box<dyn Loaded>], build: &mut Build<'_>) -> Result<(), DeviceError> {
    for step in steps {
        step.build(build)?;
        build.end_step();
    }
    Ok(())
}

/// A run on its way.
#[derive(Clone, Debug)]
struct Flying {
    /// When it was last looked after.
    checked: Instant,
    /// The segments that are launched.
    launched: usize,
    cancel: Option<Cancel>,
    cancelled: bool,
    /// Whether no launch was made, because the kernel lingered.
    rung: bool,
}

/// Where a program is between `submit` and `wait`.
#[derive(Debug)]
enum Flight {
    Idle,
    Flying(Flying),
    /// Ended, and nobody has waited for it.
    Landed(Result<(), DeviceError>),
}

/// The program of [`crate::CudaDevice`].
#[derive(Debug)]
pub(crate) struct CudaProgram {
    info: ProgramInfo,
    dtypes: Vec<DType>,
    /// Slots of the store, for an entry with states.
    slots: Option<usize>,
    /// The graphs of a run, in order; the last commits and announces.
    segments: Vec<Graph>,
    /// The ends of segments with even and with odd numbers, where there are several.
    turnstile: Option<[Event; 2]>,
    stream: Arc<Stream>,
    /// For an entry with states that does not run on the resident's stream: marks by which the two
    /// streams wait for one another.
    turns: Option<(Event, Event)>,
    /// Before the first kernel, after the last, after the copies.
    marks: Option<(Event, Event, Event)>,
    /// Of a kernel that may linger.
    guest: Option<Arc<Guest>>,
    pages: Pages,
    memory: Vec<DeviceMemory>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    stored: Vec<Element>,
    ways: (Way, Way),
    /// For each staged input, what copies it while it is written.
    stages: Vec<Graph>,
    announced: bool,
    /// Whether copies to the device may still read the pages.
    copying: bool,
    sequence: u32,
    flight: Flight,
    /// Rows of the run in flight, and of the last that succeeded.
    rows: usize,
    ran: usize,
    runs: Arc<Runs>,
    room: Reservation,
}

impl CudaProgram {
    pub(crate) fn compile(
        shared: Arc<Shared>,
        entry: &Entry,
        steps: &[Box<dyn Loaded>],
        whole: &[Box<dyn Whole>],
        request: Request,
    ) -> Result<CudaProgram, DeviceError> {
        let precision = shared.options.precision;
        let mut info = ProgramInfo::new(&shared.plan, entry, request, precision);
        let mut room = Reservation { shared: Arc::clone(&shared), bytes: 0, lines: Vec::new() };
        let pages = Pages::new(&info, entry.uses_states(), &mut room)?;
        let source = Source { shared: &shared, entry, request, info: &info, pages: &pages };
        let compiled = match source.whole(whole, &mut room)? {
            Some(compiled) => compiled,
            None => source.steps(steps, &mut room)?,
        };
        let gpu = &shared.gpu;
        let cooperative = compiled.launches.iter().any(|launch| launch.cooperative);
        if cooperative {
            info.residency = Residency::Exclusive { units: gpu.gpu.multiprocessors };
        }
        let priority = match request.class {
            KernelClass::Throughput => gpu.priorities.0,
            KernelClass::Latency => gpu.priorities.1,
        };
        // Kernels of a graph have the priority of the stream that they were captured from.
        let own = Arc::new(Stream::new(&gpu.context, priority)?);
        let parts = segments(&info, &shared, compiled.launches.len());
        let segments = graphs(&shared, &compiled.launches, parts, &own)?;
        let stages = compiled.stages.chunks(1);
        let stages =
            stages.map(|stage| graphs(&shared, stage, 1, &own)).collect::<Result<Vec<_>, _>>();
        let stages = stages?.into_iter().flatten().collect();
        own.synchronize()?;
        shared.stateful.synchronize()?;
        let stateful = entry.uses_states();
        let event = || Event::new(&gpu.context);
        let turnstile = if segments.len() > 1 { Some([event()?, event()?]) } else { None };
        let turns = if stateful && cooperative { Some((event()?, event()?)) } else { None };
        let stream = match (cooperative, stateful) {
            (true, _) => Arc::clone(&gpu.exclusive),
            (false, true) => Arc::clone(&shared.stateful),
            (false, false) => own,
        };
        let throughput = request.class == KernelClass::Throughput;
        let timed = !compiled.announced || throughput || gpu.timing;
        let marks = if timed { Some((event()?, event()?, event()?)) } else { None };
        let kernels = compiled.launches.iter().map(|launch| launch.counter.as_str());
        let runs = gpu.counters.program(kernels);
        let lingers = compiled.launches.iter().any(|launch| launch.lingers);
        let guest = lingers.then(|| Arc::new(Guest::new(pages.words())));
        guest.iter().for_each(|guest| gpu.context.guests.add(guest));
        info.memory = std::mem::take(&mut room.lines);
        let inputs = entry.inputs.iter();
        Ok(CudaProgram {
            dtypes: inputs.map(|input| entry.value(input.value).dtype).collect(),
            slots: stateful.then_some(shared.options.state_slots),
            info,
            segments,
            turnstile,
            stream,
            turns,
            marks,
            guest,
            pages,
            memory: compiled.memory,
            inputs: compiled.inputs,
            outputs: compiled.outputs,
            stored: compiled.stored,
            ways: compiled.ways,
            stages,
            announced: compiled.announced,
            copying: false,
            sequence: 0,
            flight: Flight::Idle,
            rows: 0,
            ran: 0,
            runs,
            room,
        })
    }

    fn check_not_flying(&self) {
        assert!(
            !matches!(self.flight, Flight::Flying(_)),
            "the caller broke the contract: a run is in flight"
        );
    }

    /// Enqueues what comes before the first segment.
    fn launch_begin(&self) -> Result<(), DeviceError> {
        if let Some((before, _)) = &self.turns {
            before.record(&self.room.shared.stateful)?;
            self.stream.wait_for(before)?;
        }
        match &self.marks {
            Some((begin, _, _)) => begin.record(&self.stream),
            None => Ok(()),
        }
    }

    /// Enqueues a segment, and after the last one what comes then.
    fn launch_segment(&self, i: usize) -> Result<(), DeviceError> {
        let (stream, guests) = (&self.stream, &self.room.shared.gpu.context.guests);
        match &self.guest {
            Some(guest) => {
                guests.launch(guest, self.sequence, || self.segments[i].launch(stream))?;
            }
            None => {
                let _asked = guests.ask_all();
                self.segments[i].launch(stream)?;
            }
        }
        if i + 1 < self.segments.len() {
            return match &self.turnstile {
                Some(ends) => ends[i % 2].record(stream),
                None => Ok(()),
            };
        }
        if let Some((_, end, copied)) = &self.marks {
            end.record(stream)?;
            if self.ways.1 == Way::Copied {
                self.copy_outputs()?;
            }
            copied.record(stream)?;
        }
        self.yield_turn()
    }

    /// Lets what follows on the resident's stream wait for this run.
    fn yield_turn(&self) -> Result<(), DeviceError> {
        let Some((_, after)) = &self.turns else { return Ok(()) };
        after.record(&self.stream)?;
        self.room.shared.stateful.wait_for(after)
    }

    /// Enqueues as many segments as may be: all of a run that cannot be cancelled, else up to two
    /// that have not ended. Whether the run has them all, or was cancelled and has ended.
    fn advance(&self, flying: &mut Flying) -> Result<bool, DeviceError> {
        while flying.launched < self.segments.len() {
            let i = flying.launched;
            let ends = self.turnstile.as_ref().filter(|_| flying.cancel.is_some());
            if let Some(ends) = ends {
                if flying.cancelled || flying.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
                    flying.cancelled = true;
                    return Ok(i == 0 || ends[(i - 1) % 2].is_done()?);
                }
                if i >= 2 && !ends[i % 2].is_done()? {
                    return Ok(false);
                }
            }
            self.launch_segment(i)?;
            flying.launched += 1;
        }
        Ok(true)
    }

    /// Moves a run on: what it came to, if it has ended.
    fn progress(&mut self) -> Option<Result<(), DeviceError>> {
        let Flight::Flying(flying) = &self.flight else { return None };
        let mut flying = flying.clone();
        let result = self.look(&mut flying);
        self.flight = Flight::Flying(flying);
        result.transpose()
    }

    fn look(&self, flying: &mut Flying) -> Result<Option<()>, DeviceError> {
        if flying.launched < self.segments.len() && !self.advance(flying)? {
            return Ok(None);
        }
        if flying.cancelled {
            self.yield_turn()?;
            return Err(cancelled());
        }
        if let (Some(guest), true) = (&self.guest, flying.rung) {
            match guest.look(self.sequence) {
                Seen::Answered => return Ok(Some(())),
                Seen::Waiting => {}
                Seen::Gone => {
                    (flying.rung, flying.launched) = (false, 0);
                    self.advance(flying)?;
                    self.runs.count();
                }
            }
        }
        match &self.marks {
            Some((_, _, copied)) if !self.announced => Ok(copied.is_done()?.then_some(())),
            _ if self.has_announced() => Ok(Some(())),
            _ => {
                let now = Instant::now();
                if now - flying.checked >= CHECK_EVERY {
                    flying.checked = now;
                    self.look_after()?;
                }
                Ok(None)
            }
        }
    }

    /// Whether a run is in flight that was asked for without a launch.
    fn is_rung(&self) -> bool {
        matches!(&self.flight, Flight::Flying(flying) if flying.rung)
    }

    fn copy_outputs(&self) -> Result<(), DeviceError> {
        let outputs = self.outputs.iter().zip(&self.pages.outputs);
        for ((&from, &to), &(all, row)) in outputs.zip(&self.info.output_elements) {
            let bytes = 4 * if row == 0 { all } else { row * self.rows };
            self.memory[0].copy_out(from, &self.pages.memory, to, bytes, &self.stream)?;
        }
        Ok(())
    }

    fn has_announced(&self) -> bool {
        self.pages.flag().load(Ordering::Acquire) == self.sequence
    }

    /// Whether a run that has not announced its end is still on its way; an error if it never
    /// will.
    fn look_after(&self) -> Result<(), DeviceError> {
        if !self.stream.is_done()? || self.has_announced() {
            return Ok(());
        }
        if let Some(guest) = &self.guest {
            // It has just left, and somebody looks again.
            if guest.look(self.sequence) == Seen::Gone && self.is_rung() {
                return Ok(());
            }
            guest.forget();
        }
        let name = &self.info.request.entry.name();
        let message = format!("the run of `{name}` ended without announcing it");
        Err(DeviceError::new(DeviceErrorKind::Execution, message))
    }

    /// Spins until the run has ended.
    fn spin(&mut self) -> Result<(), DeviceError> {
        let begun = Instant::now();
        loop {
            // The shortest way first: what is usual is that a run of microseconds ends.
            for _ in 0..SPINS {
                if self.announced && self.has_announced() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if let Some(result) = self.progress() {
                return result;
            }
            if begun.elapsed() >= YIELD_AFTER {
                std::thread::yield_now();
            }
        }
    }

    fn land(&mut self, result: Result<(), DeviceError>) {
        if result.is_ok() {
            self.ran = self.rows;
        }
        if self.is_rung() {
            self.runs.count_lingering();
        }
        self.copying = false;
        self.flight = Flight::Landed(result);
    }
}

fn cancelled() -> DeviceError {
    DeviceError::new(DeviceErrorKind::Cancelled, "before the run's end")
}

impl Program for CudaProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn write(&mut self, input: usize, data: Data<'_>) {
        self.check_not_flying();
        let dtype = self.dtypes.get(input).copied().unwrap_or(DType::F32);
        self.info.check_write(input, dtype, &data);
        if let Err(error) = self.write_numbers(input, &data)
            && !matches!(self.flight, Flight::Landed(Err(_)))
        {
            self.flight = Flight::Landed(Err(error));
        }
    }

    fn submit(&mut self, run: &Run<'_>) -> Result<(), DeviceError> {
        self.check_not_flying();
        if let Flight::Landed(Err(error)) = &self.flight {
            return Err(error.clone());
        }
        self.info.check_run(run, self.slots);
        if run.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            self.guest.iter().for_each(|guest| guest.ask());
            self.flight = Flight::Landed(Err(cancelled()));
            return Ok(());
        }
        let rung = self.guest.as_ref().is_some_and(|guest| guest.is_here());
        // 0 is what the flag holds before the first run.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.rows = run.rows;
        self.pages.set_header(self.sequence, run, self.room.shared.gpu.linger_ns);
        let (checked, cancel) = (Instant::now(), run.cancel.clone());
        let launched = if rung { self.segments.len() } else { 0 };
        let mut flying = Flying { checked, launched, cancel, cancelled: false, rung };
        if !rung {
            self.launch_begin()?;
            self.advance(&mut flying)?;
            self.runs.count();
        }
        self.flight = Flight::Flying(flying);
        Ok(())
    }

    fn poll(&mut self) -> bool {
        if !matches!(self.flight, Flight::Flying(_)) {
            return true;
        }
        match self.progress() {
            Some(result) => {
                self.land(result);
                true
            }
            None => false,
        }
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        if let Flight::Flying(flying) = &self.flight {
            let all = flying.launched == self.segments.len();
            let result = match &self.marks {
                Some((_, _, copied)) if all && !self.announced => copied.synchronize(),
                _ => self.spin(),
            };
            self.land(result);
        }
        match std::mem::replace(&mut self.flight, Flight::Idle) {
            Flight::Landed(result) => result,
            _ => Ok(()),
        }
    }

    fn device_us(&self) -> Option<f64> {
        let (begin, end, _) = self.marks.as_ref()?;
        if self.ran == 0 || !matches!(self.flight, Flight::Idle) {
            return None;
        }
        // A run that announced its end may be a moment ahead of its mark.
        end.synchronize().and_then(|()| end.since_us(begin)).ok()
    }

    fn read(&mut self, output: usize, into: &mut [f32]) -> Result<(), DeviceError> {
        self.check_not_flying();
        assert!(self.ran > 0, "the caller broke the contract: no run has succeeded");
        if let Some(error) = self.room.shared.gpu.context.lost() {
            return Err(error.clone());
        }
        self.info.check_read(output, into.len(), self.ran);
        self.pages.get(self.pages.outputs[output], into);
        Ok(())
    }
}

impl Drop for CudaProgram {
    fn drop(&mut self) {
        // Kernels and copies may still use the memory that goes now. Where the device is lost,
        // nothing runs any more. Another program's kernel that lingers may be ahead in the stream.
        drop(self.room.shared.gpu.context.guests.ask_all());
        let _ = self.stream.synchronize();
    }
}

#[cfg(test)]
mod tests;
