//! A program's pinned host memory: what is where, and how numbers get in and out.
//!
//! Starts no copy and launches nothing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::arena::ALIGNMENT;
use neural_forecast_runtime::device::{Data, ProgramInfo, Run};

use super::Reservation;
use crate::driver::HostMemory;
use crate::linger::Words;
use crate::staging;
use crate::step::gemm::Element;
use crate::step::whole::HostPages;
use crate::surround::{STAGE_CHUNKS, STAGE_FLAG_BYTES};

/// Bytes of the run header before the slots; mirrors `ptx/run.cuh`: sequence number, rows, the
/// launch that is to leave, how long a launch lingers.
const HEADER_BYTES: usize = 16;
const LEAVE: usize = 8;

/// Numbers from which the processor's caches are passed by.
const STREAMED_MIN: usize = (256 << 10) / 4;

/// The program's pinned host memory: header, flag, inputs, outputs, each aligned.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) memory: Arc<HostMemory>,
    pub(super) flag: usize,
    /// Where a launch that lingered says that it left.
    left: usize,
    /// Flags of the chunks of each input.
    pub(super) stages: Vec<usize>,
    pub(super) header_bytes: usize,
    pub(super) inputs: Vec<usize>,
    pub(super) outputs: Vec<usize>,
}

impl Pages {
    pub(super) fn new(
        info: &ProgramInfo,
        stateful: bool,
        room: &mut Reservation,
    ) -> Result<Pages, DeviceError> {
        let slots = if stateful { info.request.bucket.batch } else { 0 };
        let header_bytes = HEADER_BYTES + 4 * slots;
        let mut next = 0;
        let mut place = |bytes: usize| {
            let at = next;
            next += bytes.max(1).next_multiple_of(ALIGNMENT);
            at
        };
        place(header_bytes);
        let (flag, left) = (place(4), place(4));
        let all = info.input_elements.iter();
        let stages = all.map(|_| place(STAGE_CHUNKS * STAGE_FLAG_BYTES)).collect();
        let inputs = info.input_elements.iter().map(|(all, _)| place(all * 4)).collect();
        let outputs = info.output_elements.iter().map(|(all, _)| place(all * 4)).collect();
        let owner = "inputs and outputs in pinned host memory";
        room.take(owner, next)?;
        let memory = Arc::new(HostMemory::new(&room.shared.gpu.context, owner, next, false)?);
        Ok(Pages { memory, flag, left, stages, header_bytes, inputs, outputs })
    }

    pub(super) fn device(&self, offset: usize) -> u64 {
        self.memory.device_address() + offset as u64
    }

    /// `lingers`: whether the kernel may stay on the device.
    pub(super) fn addresses(&self, lingers: bool) -> HostPages {
        let all = |offsets: &[usize]| offsets.iter().map(|&at| self.device(at)).collect();
        HostPages {
            header: self.device(0),
            inputs: all(&self.inputs),
            outputs: all(&self.outputs),
            flag: self.device(self.flag),
            left: lingers.then(|| self.device(self.left)),
        }
    }

    /// Writes the run header: rows, slots, how long the launch may linger, and last the sequence
    /// number, which a kernel that lingers waits for.
    pub(super) fn set_header(&mut self, sequence: u32, run: &Run<'_>, linger_ns: u32) {
        let at = self.memory.at(0, self.header_bytes).cast::<u32>();
        // SAFETY: the header's bytes, aligned, are this program's; no run is in flight, so that
        // the device reads none of them but, where a kernel lingers, the number of the sequence,
        // which is written atomically, and what it only compares with the clock.
        unsafe {
            at.add(1).write_volatile(run.rows as u32);
            let slots = at.add(HEADER_BYTES / 4);
            let room = (self.header_bytes - HEADER_BYTES) / 4;
            for (i, &slot) in run.slots.iter().take(room).enumerate() {
                slots.add(i).write_volatile(slot);
            }
            at.add(3).write_volatile(linger_ns);
            AtomicU32::from_ptr(at).store(sequence, Ordering::Release);
        }
    }

    pub(super) fn flag(&self) -> &AtomicU32 {
        word(&self.memory, self.flag)
    }

    /// What a kernel that lingers and its host share.
    pub(super) fn words(&self) -> Box<dyn Words> {
        let memory = Arc::clone(&self.memory);
        Box::new(LingerWords { memory, flag: self.flag, left: self.left })
    }

    /// Raises or lowers the flag that says of a chunk of an input that it is written.
    fn set_written(&self, input: usize, chunk: usize, written: bool) {
        let at = self.stages[input] + chunk * STAGE_FLAG_BYTES;
        let at = self.memory.at(at, 4).cast::<u32>();
        // SAFETY: aligned, alive as long as `self`, and only accessed atomically by the host.
        let flag = unsafe { AtomicU32::from_ptr(at) };
        flag.store(u32::from(written), Ordering::Release);
    }

    /// Writes some of an input's numbers to their place in it, in the format that it is stored in.
    /// Threads that do so at the same time have numbers of their own.
    pub(super) fn put(
        &self,
        input: usize,
        stored: Element,
        data: &Data<'_>,
        numbers: Range<usize>,
    ) {
        let each = bytes_of(stored);
        let to = self.memory.at(self.inputs[input] + numbers.start * each, numbers.len() * each);
        let from = match data {
            Data::F32(data) if stored != Element::F32 => {
                // SAFETY: the range is checked and aligned; no run is in flight that reads it, no
                // copy to the device, and no other thread.
                return unsafe { staging::round(to, &data[numbers], stored) };
            }
            Data::F32(data) => data[numbers.clone()].as_ptr().cast::<u8>(),
            Data::I32(data) => data[numbers.clone()].as_ptr().cast::<u8>(),
        };
        // SAFETY: as above; `from` is a slice of as many numbers of four bytes.
        unsafe {
            if data.len() >= STREAMED_MIN {
                staging::copy_streaming(to, from, numbers.len() * 4);
            } else {
                to.copy_from_nonoverlapping(from, numbers.len() * 4);
            }
        }
    }

    /// Copies an output's first elements.
    pub(super) fn get(&self, at: usize, into: &mut [f32]) {
        let from = self.memory.at(at, size_of_val(into)).cast::<f32>();
        // SAFETY: the range is checked and aligned; the run that wrote it has ended.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }
}

/// A word that host and device share, at a multiple of four.
fn word(memory: &HostMemory, at: usize) -> &AtomicU32 {
    let at = memory.at(at, 4).cast::<u32>();
    // SAFETY: aligned, alive as long as the memory, and only accessed atomically by the host.
    unsafe { AtomicU32::from_ptr(at) }
}

/// The words of [`Words`] in a program's pages.
#[derive(Debug)]
struct LingerWords {
    memory: Arc<HostMemory>,
    flag: usize,
    left: usize,
}

impl Words for LingerWords {
    fn leave(&self) -> &AtomicU32 {
        word(&self.memory, LEAVE)
    }

    fn flag(&self) -> &AtomicU32 {
        word(&self.memory, self.flag)
    }

    fn left(&self) -> &AtomicU32 {
        word(&self.memory, self.left)
    }
}

/// Numbers of a chunk of an input of so many: whole cache lines in every format.
pub(super) fn stage_chunk(all: usize) -> usize {
    all.div_ceil(STAGE_CHUNKS).next_multiple_of(32).max(32)
}

/// Bytes of a number that is stored so.
pub(super) fn bytes_of(stored: Element) -> usize {
    if stored == Element::F32 { 4 } else { 2 }
}

/// An input on its way chunk by chunk. When this ends, by whatever way, all flags have been raised:
/// the kernel on the device waits for them, and lowers them.
pub(super) struct Staging<'a> {
    pages: &'a Pages,
    input: usize,
    chunks: usize,
    /// A bit for each chunk whose flag was raised.
    raised: AtomicU32,
}

const _: () = assert!(STAGE_CHUNKS <= 32, "a bit for each");

impl<'a> Staging<'a> {
    /// No other copy of the input may be under way.
    pub(super) fn new(pages: &'a Pages, input: usize, chunks: usize) -> Staging<'a> {
        Staging { pages, input, chunks, raised: AtomicU32::new(0) }
    }

    /// Says that a chunk is written.
    pub(super) fn raise(&self, chunk: usize) {
        let bit = 1 << chunk;
        if self.raised.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.pages.set_written(self.input, chunk, true);
        }
    }

    /// Lowers the flags where no kernel was started that does.
    pub(super) fn abandon(self) {
        self.raised.store(u32::MAX, Ordering::Relaxed);
        (0..self.chunks).for_each(|chunk| self.pages.set_written(self.input, chunk, false));
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        (0..self.chunks).for_each(|chunk| self.raise(chunk));
    }
}
