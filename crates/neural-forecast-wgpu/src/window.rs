//! A buffer that is the host's between runs and the device's during one.
//!
//! WebGPU lets either side have a buffer, never both. A window is given to the device before a
//! submission and asked for again after it; asking takes no time, and the answer comes with the
//! poll that sees the end of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

/// Whose a window is; the last two are set by wgpu's callback.
const GIVEN: u8 = 0;
const ASKED: u8 = 1;
const HELD: u8 = 2;
const FAILED: u8 = 3;

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
        view.slice(at..at + bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    #[cold]
    fn refused(&self, error: &wgpu::MapRangeError) -> DeviceError {
        let message = format!("{} cannot be reached: {error}", self.what);
        DeviceError::new(DeviceErrorKind::Execution, message)
    }
}
