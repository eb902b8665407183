//! A buffer that is the host's between runs and the device's during one.
//!
//! WebGPU lets either side have a buffer, never both. A window is given to the device before a
//! submission and asked for again after it; asking takes no time, and the answer comes with the
//! poll that sees the end of the run. Much data is written by several threads: one thread moves
//! some 10 GB/s, the way to a device takes several times that.

use std::num::NonZero;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

/// Whose a window is; the last two are set by wgpu's callback.
const GIVEN: u8 = 0;
const ASKED: u8 = 1;
const HELD: u8 = 2;
const FAILED: u8 = 3;

/// Bytes that a thread takes at a time; a thread costs about as much as writing a tenth of them.
const PIECE: usize = 1 << 20;

/// Most threads that write.
const WRITERS_MAX: usize = 4;

/// What became of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// None yet, or nobody asked.
    None,
    /// The window is the host's.
    Held,
    /// The device did not give it.
    Failed,
}

/// A buffer with who has it.
#[derive(Debug)]
pub(crate) struct Window {
    buffer: wgpu::Buffer,
    mode: wgpu::MapMode,
    /// What it is, for messages.
    what: &'static str,
    state: Arc<AtomicU8>,
}

impl Window {
    /// Of a buffer that is mapped, if `held`.
    pub(crate) fn new(
        what: &'static str,
        buffer: wgpu::Buffer,
        mode: wgpu::MapMode,
        held: bool,
    ) -> Window {
        let state = Arc::new(AtomicU8::new(if held { HELD } else { GIVEN }));
        Window { buffer, mode, what, state }
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Lets the device have it. Whoever asked before is answered that it failed.
    pub(crate) fn give(&self) {
        if self.state.load(Ordering::Acquire) != GIVEN {
            self.buffer.unmap();
            self.state.store(GIVEN, Ordering::Release);
        }
    }

    /// Asks for it, once what was submitted with it has ended.
    pub(crate) fn ask(&self) {
        self.state.store(ASKED, Ordering::Release);
        let told = Arc::clone(&self.state);
        self.buffer.slice(..).map_async(self.mode, move |result| {
            told.store(if result.is_ok() { HELD } else { FAILED }, Ordering::Release);
        });
    }

    pub(crate) fn answer(&self) -> Answer {
        match self.state.load(Ordering::Acquire) {
            HELD => Answer::Held,
            FAILED => Answer::Failed,
            _ => Answer::None,
        }
    }

    /// What the host sees of it.
    ///
    /// # Errors
    /// `Execution` where it is not the host's.
    pub(crate) fn view(&self) -> Result<wgpu::BufferView, DeviceError> {
        self.buffer.slice(..).get_mapped_range().map_err(|error| self.refused(&error))
    }

    /// Copies bytes to a place in it.
    ///
    /// # Errors
    /// As [`Window::view`].
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let view = self.buffer.slice(..).get_mapped_range_mut();
        let mut view = view.map_err(|error| self.refused(&error))?;
        let at = at as usize;
        copy(view.slice(at..at + bytes.len()), bytes);
        Ok(())
    }

    #[cold]
    fn refused(&self, error: &wgpu::MapRangeError) -> DeviceError {
        let message = format!("{} cannot be reached: {error}", self.what);
        DeviceError::new(DeviceErrorKind::Execution, message)
    }
}

/// Copies by as many threads as there are pieces and processors for.
fn copy(into: wgpu::WriteOnly<'_, [u8]>, bytes: &[u8]) {
    let (pieces, mut rest) = into.into_chunks::<PIECE>();
    let (whole, tail) = bytes.as_chunks::<PIECE>();
    rest.copy_from_slice(tail);
    let pieces: Vec<_> = pieces.into_iter().zip(whole).collect();
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let writers = pieces.len().min(processors).min(WRITERS_MAX);
    let left = Mutex::new(pieces);
    let take = || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let write = || {
        while let Some((into, piece)) = take() {
            wgpu::WriteOnly::<[u8]>::from(into).copy_from_slice(piece);
        }
    };
    thread::scope(|scope| {
        for _ in 1..writers {
            // What a thread that is not to be had would write, the others write.
            let _ = thread::Builder::new().spawn_scoped(scope, write);
        }
        write();
    });
}
