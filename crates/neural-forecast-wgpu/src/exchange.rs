//! How a program's inputs reach its arena, and its outputs the host.
//!
//! A device with memory of its own copies within the run's one submission: from a buffer that the
//! host filled, and into one that the host reads. Both are made when the program is compiled and
//! are the host's between runs, so a run allocates nothing and no second submission is needed. What
//! the host has not written since the last run is not copied again. Where host and device share
//! memory and the adapter lets storage be mapped, the host writes and reads the arena itself and
//! nothing is copied at all.

use neural_forecast_runtime::arena::ALIGNMENT;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::device::Shared as Gpu;
use crate::window::{Answer, Window};

/// Words of the run header before the slots; mirrors `RUN_SLOTS` of `wgsl/prelude.wgsl`.
pub(crate) const HEADER_WORDS: usize = 4;

/// An input or output: where it begins in the arena, and its bytes in a full bucket and in a row of
/// the batch (0 where it has none).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value {
    pub(crate) arena: u64,
    pub(crate) all: u64,
    pub(crate) row: u64,
}

impl Value {
    /// Bytes that so many rows take.
    fn of(self, rows: usize) -> u64 {
        if self.row == 0 { self.all } else { self.row * rows as u64 }
    }
}

/// What the host has written since the device last had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fresh {
    header: bool,
    /// Bytes of each input.
    inputs: Vec<u64>,
}

/// The buffers of a program that its kernels are given.
#[derive(Debug)]
pub(crate) struct Exchange {
    arena: wgpu::Buffer,
    header: wgpu::Buffer,
    way: Way,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// Where each begins in what the host sees.
    inputs_at: Vec<u64>,
    outputs_at: Vec<u64>,
    /// The run header that was written last.
    words: Vec<u32>,
    fresh: Fresh,
}

#[derive(Debug)]
enum Way {
    /// Header and inputs are copied from one buffer, outputs into another.
    Copied { upload: Window, result: Window },
    /// The host has the arena and the header themselves.
    Shared { arena: Window, header: Window },
}

/// Places one behind the other, and the end.
fn side_by_side(first: u64, values: &[Value]) -> (Vec<u64>, u64) {
    let mut next = first;
    let places = values.iter().map(|value| {
        let at = next;
        next = (next + value.all).next_multiple_of(ALIGNMENT as u64);
        at
    });
    (places.collect(), next)
}

/// Bytes that an exchange takes beside the arena and the header: of inputs and of outputs.
pub(crate) fn staging_bytes(
    gpu: &Gpu,
    header_words: usize,
    (inputs, outputs): (&[Value], &[Value]),
) -> (u64, u64) {
    if gpu.mappable {
        return (0, 0);
    }
    let first = (header_words as u64 * 4).next_multiple_of(ALIGNMENT as u64);
    (side_by_side(first, inputs).1, side_by_side(0, outputs).1)
}

impl Exchange {
    /// For an arena of so many bytes, of which `constants` are put where they say.
    ///
    /// # Errors
    /// `OutOfMemory`, `Lost`.
    pub(crate) fn new(
        gpu: &Gpu,
        (arena_bytes, header_words): (u64, usize),
        (constants_at, constants): (u64, &[u32]),
        (inputs, outputs): (Vec<Value>, Vec<Value>),
    ) -> Result<Exchange, DeviceError> {
        let header_bytes = header_words as u64 * 4;
        let (upload_bytes, result_bytes) = staging_bytes(gpu, header_words, (&inputs, &outputs));
        let constants = (constants_at, bytemuck::cast_slice(constants));
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let mappable = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE;
        let (values, run_header) = ("the program's values", "run header");
        let (arena, header, way, inputs_at, outputs_at);
        if gpu.mappable {
            let usage = wgpu::BufferUsages::STORAGE | mappable;
            arena = gpu.mapped_buffer(values, arena_bytes, usage)?;
            header = gpu.mapped_buffer(run_header, header_bytes, usage)?;
            let window = |what, buffer: &wgpu::Buffer| {
                Window::new(what, buffer.clone(), wgpu::MapMode::Write, true)
            };
            let arena = window(values, &arena);
            let (at, bytes) = constants;
            arena.write(at, bytes)?;
            way = Way::Shared { arena, header: window(run_header, &header) };
            inputs_at = inputs.iter().map(|input| input.arena).collect();
            outputs_at = outputs.iter().map(|output| output.arena).collect();
        } else {
            arena = gpu.buffer(values, arena_bytes, storage | wgpu::BufferUsages::COPY_SRC)?;
            header = gpu.buffer(run_header, header_bytes, storage)?;
            gpu.upload("constants", &arena, constants)?;
            let (what, usage) = ("inputs", wgpu::BufferUsages::MAP_WRITE);
            let usage = usage | wgpu::BufferUsages::COPY_SRC;
            let upload = gpu.mapped_buffer(what, upload_bytes, usage)?;
            let upload = Window::new(what, upload, wgpu::MapMode::Write, true);
            let (what, usage) = ("outputs", wgpu::BufferUsages::MAP_READ);
            let usage = usage | wgpu::BufferUsages::COPY_DST;
            let result = gpu.buffer(what, result_bytes, usage)?;
            let result = Window::new(what, result, wgpu::MapMode::Read, false);
            way = Way::Copied { upload, result };
            let first = header_bytes.next_multiple_of(ALIGNMENT as u64);
            inputs_at = side_by_side(first, &inputs).0;
            outputs_at = side_by_side(0, &outputs).0;
        }
        let fresh = Fresh { header: true, inputs: vec![0; inputs.len()] };
        let words = vec![0; header_words];
        Ok(Exchange { arena, header, way, inputs, outputs, inputs_at, outputs_at, words, fresh })
    }

    pub(crate) fn arena(&self) -> &wgpu::Buffer {
        &self.arena
    }

    pub(crate) fn header(&self) -> &wgpu::Buffer {
        &self.header
    }

    /// What the host writes to, and what it reads from if that is another.
    fn windows(&self) -> [&Window; 2] {
        match &self.way {
            Way::Copied { upload, result } => [upload, result],
            Way::Shared { arena, header } => [arena, header],
        }
    }

    /// Makes sure that the host can write: after a run that failed the device may still have what
    /// the host writes to. Nothing is in flight then, so it is the host's at once.
    fn hold(&self, gpu: &Gpu) -> Result<(), DeviceError> {
        let written: &[&Window] = match &self.way {
            Way::Copied { upload, .. } => &[upload],
            Way::Shared { arena, header } => &[arena, header],
        };
        if written.iter().all(|window| window.answer() == Answer::Held) {
            return Ok(());
        }
        gpu.checked(DeviceErrorKind::Execution, "inputs", || {
            for window in written {
                window.give();
                window.ask();
            }
            // What it says is what the windows answer.
            let _ = gpu.device.poll(wgpu::PollType::Poll);
        })
    }

    /// Takes an input.
    ///
    /// # Errors
    /// `Lost`, `Execution` where the device does not let go of what the host writes to.
    pub(crate) fn write(
        &mut self,
        gpu: &Gpu,
        input: usize,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        self.hold(gpu)?;
        let at = self.inputs_at[input];
        match &self.way {
            Way::Copied { upload: window, .. } | Way::Shared { arena: window, .. } => {
                window.write(at, bytes)?;
            }
        }
        let fresh = &mut self.fresh.inputs[input];
        *fresh = (*fresh).max(bytes.len() as u64);
        Ok(())
    }

    /// Takes the run header: rows in use, and the slot of each.
    ///
    /// # Errors
    /// As [`Exchange::write`].
    pub(crate) fn begin(
        &mut self,
        gpu: &Gpu,
        rows: usize,
        slots: &[u32],
    ) -> Result<(), DeviceError> {
        self.hold(gpu)?;
        let used = HEADER_WORDS + slots.len();
        let same = self.words[0] == rows as u32 && self.words[HEADER_WORDS..used] == *slots;
        if same && !self.fresh.header {
            return Ok(());
        }
        self.words[0] = rows as u32;
        self.words[HEADER_WORDS..used].copy_from_slice(slots);
        self.fresh.header = true;
        let bytes = bytemuck::cast_slice(&self.words);
        match &self.way {
            Way::Copied { upload: window, .. } | Way::Shared { header: window, .. } => {
                window.write(0, bytes)
            }
        }
    }

    /// What a run must copy; equal for runs that are recorded alike.
    pub(crate) fn fresh(&self) -> &Fresh {
        &self.fresh
    }

    /// Records the copies into the arena; how many bytes they are.
    pub(crate) fn copy_in(&self, encoder: &mut wgpu::CommandEncoder, fresh: &Fresh) -> u64 {
        let Way::Copied { upload, .. } = &self.way else { return 0 };
        let mut copied = 0;
        let mut copy = |from: u64, to: &wgpu::Buffer, at: u64, bytes: u64| {
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(upload.buffer(), from, to, at, Some(bytes));
                copied += bytes;
            }
        };
        if fresh.header {
            copy(0, &self.header, 0, self.words.len() as u64 * 4);
        }
        let places = self.inputs.iter().zip(&self.inputs_at);
        for ((input, &from), &bytes) in places.zip(&fresh.inputs) {
            copy(from, &self.arena, input.arena, bytes);
        }
        copied
    }

    /// Records the copies out of the arena; how many bytes they are.
    pub(crate) fn copy_out(&self, encoder: &mut wgpu::CommandEncoder, rows: usize) -> u64 {
        let Way::Copied { result, .. } = &self.way else { return 0 };
        let mut copied = 0;
        for (output, &to) in self.outputs.iter().zip(&self.outputs_at) {
            let bytes = output.of(rows);
            if bytes > 0 {
                let (from, into) = (output.arena, result.buffer());
                encoder.copy_buffer_to_buffer(&self.arena, from, into, to, Some(bytes));
                copied += bytes;
            }
        }
        copied
    }

    /// Lets the device have everything.
    pub(crate) fn give(&self) {
        self.windows().into_iter().for_each(Window::give);
    }

    /// Asks for everything back once what was submitted has ended.
    pub(crate) fn ask(&self) {
        self.windows().into_iter().for_each(Window::ask);
    }

    /// Notes that a submission has taken all that was written.
    pub(crate) fn delivered(&mut self) {
        self.fresh.header = false;
        self.fresh.inputs.fill(0);
    }

    /// Whether everything is the host's again.
    pub(crate) fn answer(&self) -> Answer {
        let [first, second] = self.windows().map(Window::answer);
        match (first, second) {
            (Answer::Failed, _) | (_, Answer::Failed) => Answer::Failed,
            (Answer::Held, Answer::Held) => Answer::Held,
            _ => Answer::None,
        }
    }

    /// Copies the first bytes of an output of the last run.
    ///
    /// # Errors
    /// `Execution` where they are not the host's.
    pub(crate) fn read(&self, output: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        let (Way::Copied { result: window, .. } | Way::Shared { arena: window, .. }) = &self.way;
        let at = self.outputs_at[output] as usize;
        into.copy_from_slice(&window.view()?[at..at + into.len()]);
        Ok(())
    }
}
