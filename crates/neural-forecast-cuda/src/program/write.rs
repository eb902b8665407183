//! How a caller's numbers get into a program's input: by which threads, in which chunks, and what
//! brings them to the device.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::Data;

use super::pages::{Staging, bytes_of, stage_chunk};
use super::{CudaProgram, Way};
use crate::crew::Crew;

/// Numbers that a thread writes to pinned memory at a time. Of 328 MB, one thread moves 14 GB/s,
/// six 49, where the bus does 55 (H200, 2026-11-21; chunks of 1 MiB 47, of 2 MiB 49, of 4 MiB 50).
/// Where each is followed by a copy to the device, which takes the host some microseconds, they are
/// larger.
const CHUNK_MAX: usize = (2 << 20) / 4;
const CHUNK_MIN: usize = (64 << 10) / 4;
const CHUNK_COPIED_MIN: usize = (256 << 10) / 4;
/// Chunks for each thread.
const WRITER_CHUNKS: usize = 3;
/// Numbers from which several threads write.
const SHARED_MIN: usize = (512 << 10) / 4;

impl CudaProgram {
    /// Puts numbers into an input, and starts their copy to the device.
    pub(super) fn write_numbers(
        &mut self,
        input: usize,
        data: &Data<'_>,
    ) -> Result<(), DeviceError> {
        if self.ways.0 != Way::Mapped && std::mem::replace(&mut self.copying, true) {
            self.stream.synchronize()?;
        }
        let CudaProgram { pages, memory, stream, inputs, ways: (way, _), .. } = &*self;
        let stored = self.stored[input];
        let shared = data.len() >= SHARED_MIN;
        let crew = shared.then(|| self.room.shared.gpu.crew());
        let (all, _) = self.info.input_elements[input];
        let chunk = match way {
            Way::Staged => stage_chunk(all),
            Way::Mapped | Way::Copied => {
                let hands = crew.map_or(1, Crew::hands);
                let least = if *way == Way::Copied { CHUNK_COPIED_MIN } else { CHUNK_MIN };
                data.len().div_ceil(WRITER_CHUNKS * hands).clamp(least, CHUNK_MAX)
            }
        };
        let stage = self.stages.get(input);
        let staging = stage.map(|_| Staging::new(pages, input, all.div_ceil(chunk)));
        let (next, failed) = (AtomicUsize::new(0), OnceLock::new());
        let write = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let first = number.saturating_mul(chunk);
                if first >= data.len() {
                    return;
                }
                let numbers = first..data.len().min(first + chunk);
                pages.put(input, stored, data, numbers.clone());
                if let Some(staging) = &staging {
                    staging.raise(number);
                }
                match way {
                    Way::Mapped | Way::Staged => {}
                    Way::Copied => {
                        let each = bytes_of(stored);
                        let (offset, bytes) = (first * each, numbers.len() * each);
                        let (from, to) = (pages.inputs[input] + offset, inputs[input] + offset);
                        let copied = memory[0].copy_in(to, &pages.memory, from, bytes, stream);
                        // The first failure is told; others follow from it.
                        copied.unwrap_or_else(|error| _ = failed.set(error));
                    }
                }
            }
        };
        // The others write meanwhile.
        let mut staged = Ok(());
        let mut first = || staged = stage.map_or(Ok(()), |copy| copy.launch(stream));
        match crew {
            Some(crew) => crew.run(first, &write),
            None => {
                first();
                write();
            }
        }
        if let (Err(_), Some(staging)) = (&staged, staging) {
            staging.abandon();
        }
        staged.and_then(|()| failed.into_inner().map_or(Ok(()), Err))
    }
}
