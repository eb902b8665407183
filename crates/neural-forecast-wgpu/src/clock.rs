//! The device's clock before and after the pass of a run.
//!
//! Made and read only for those who ask: it costs a run three command buffers more.

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::device::Shared as Gpu;
use crate::window::Window;

/// Bytes of two times.
const TIMES_BYTES: u64 = 16;

/// Two times of a run, on their way to the host.
#[derive(Debug)]
pub(crate) struct Clock {
    times: wgpu::QuerySet,
    /// Where the times are written to before they are copied for the host.
    resolved: wgpu::Buffer,
    pub(crate) window: Window,
    /// Nanoseconds of a tick.
    period: f64,
}

impl Clock {
    /// Nothing where the device has none.
    ///
    /// # Errors
    /// `OutOfMemory`, `Lost`.
    pub(crate) fn new(gpu: &Gpu) -> Result<Option<Clock>, DeviceError> {
        if !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Ok(None);
        }
        let what = "times of a run";
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.buffer(what, TIMES_BYTES, usage)?;
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let host = gpu.buffer(what, TIMES_BYTES, usage)?;
        let descriptor = wgpu::QuerySetDescriptor {
            label: Some(what),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        };
        let create = || gpu.device.create_query_set(&descriptor);
        let times = gpu.checked(DeviceErrorKind::OutOfMemory, what, create)?;
        let period = f64::from(gpu.queue.get_timestamp_period());
        let window = Window::new(what, host, wgpu::MapMode::Read, false);
        Ok(Some(Clock { times, resolved, window, period }))
    }

    pub(crate) fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.times,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    /// Records the way of the times to the host.
    pub(crate) fn copy_out(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.times, 0..2, &self.resolved, 0);
        let host = self.window.buffer();
        encoder.copy_buffer_to_buffer(&self.resolved, 0, host, 0, Some(TIMES_BYTES));
    }

    /// Between the two times of the last run that had them taken, in microseconds.
    pub(crate) fn between_us(&self) -> Option<f64> {
        let view = self.window.view().ok()?;
        let (ticks, _) = view.as_chunks::<8>();
        let &[begin, end] = ticks else { return None };
        let ticks = u64::from_le_bytes(end).checked_sub(u64::from_le_bytes(begin))?;
        Some(ticks as f64 * self.period / 1e3)
    }
}
