//! Streams, events and captured graphs, owned.

use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUgraph, CUgraphExec, CUstream};
use neural_forecast_runtime::DeviceError;

use super::context::Context;
use super::error::NOT_READY;

/// A queue of work in order.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver orders what several threads enqueue.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that waits for no other; a smaller number goes first.
    pub(crate) fn new(context: &Arc<Context>, priority: i32) -> Result<Stream, DeviceError> {
        const NON_BLOCKING: u32 = 1;
        let library = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let code =
            unsafe { (library.cuStreamCreateWithPriority)(&raw mut raw, NON_BLOCKING, priority) };
        context.check(code, || "cuStreamCreateWithPriority".into())?;
        Ok(Stream { context: Arc::clone(context), raw })
    }

    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits for everything enqueued.
    pub(crate) fn synchronize(&self) -> Result<(), DeviceError> {
        let library = self.context.enter()?;
        // SAFETY: the stream is alive.
        let code = unsafe { (library.cuStreamSynchronize)(self.raw) };
        self.context.check(code, || "cuStreamSynchronize".into())
    }

    /// Whether everything enqueued is done.
    pub(crate) fn is_done(&self) -> Result<bool, DeviceError> {
        let library = self.context.enter()?;
        // SAFETY: the stream is alive.
        let code = unsafe { (library.cuStreamQuery)(self.raw) };
        if code == NOT_READY {
            return Ok(false);
        }
        self.context.check(code, || "cuStreamQuery".into()).map(|()| true)
    }

    /// Lets what is enqueued from now on wait for a mark in another stream.
    pub(crate) fn wait_for(&self, event: &Event) -> Result<(), DeviceError> {
        let library = self.context.enter()?;
        // SAFETY: both are alive.
        let code = unsafe { (library.cuStreamWaitEvent)(self.raw, event.raw, 0) };
        self.context.check(code, || "cuStreamWaitEvent".into())
    }

    /// What `enqueue` puts into the stream, as a graph that can be launched again and again.
    pub(crate) fn capture(
        &self,
        enqueue: impl FnOnce(&Stream) -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        // Other threads may allocate meanwhile.
        const RELAXED: u32 = 2;
        let library = self.context.enter()?;
        // SAFETY: the stream is alive and not capturing: only this function captures, and streams
        // of programs are not shared while they are compiled.
        let code = unsafe { (library.cuStreamBeginCapture_v2)(self.raw, RELAXED) };
        self.context.check(code, || "cuStreamBeginCapture".into())?;
        let enqueued = enqueue(self);
        let mut captured: CUgraph = std::ptr::null_mut();
        // SAFETY: ends the capture begun above, also where enqueuing failed.
        let code = unsafe { (library.cuStreamEndCapture)(self.raw, &raw mut captured) };
        let ended = self.context.check(code, || "cuStreamEndCapture".into());
        let graph = enqueued.and(ended).and_then(|()| {
            let mut raw = std::ptr::null_mut();
            // SAFETY: the graph was just captured.
            let code = unsafe { (library.cuGraphInstantiateWithFlags)(&raw mut raw, captured, 0) };
            self.context.check(code, || "cuGraphInstantiate".into())?;
            Ok(Graph { context: Arc::clone(&self.context), raw })
        });
        if !captured.is_null() {
            // SAFETY: the instantiated graph does not need it.
            let _ = unsafe { (library.cuGraphDestroy)(captured) };
        }
        let graph = graph?;
        // SAFETY: both are alive.
        let code = unsafe { (library.cuGraphUpload)(graph.raw, self.raw) };
        self.context.check(code, || "cuGraphUpload".into())?;
        Ok(graph)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let library = self.context.enter_to_free();
        // SAFETY: created in `new`, destroyed once; the driver lets pending work finish.
        let _ = unsafe { (library.cuStreamDestroy_v2)(self.raw) };
    }
}

/// A captured graph, ready to launch.
#[derive(Debug)]
pub(crate) struct Graph {
    context: Arc<Context>,
    raw: CUgraphExec,
}

// SAFETY: the driver's handles may be used from any thread; one thread launches at a time, because
// a program does and is not shared.
unsafe impl Send for Graph {}

impl Graph {
    /// Enqueues a run.
    pub(crate) fn launch(&self, stream: &Stream) -> Result<(), DeviceError> {
        let library = self.context.enter()?;
        // SAFETY: both are alive.
        let code = unsafe { (library.cuGraphLaunch)(self.raw, stream.raw) };
        self.context.check(code, || "cuGraphLaunch".into())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let library = self.context.enter_to_free();
        // SAFETY: instantiated in `capture`, destroyed once.
        let _ = unsafe { (library.cuGraphExecDestroy)(self.raw) };
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// An event with a time stamp.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Event, DeviceError> {
        let library = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let code = unsafe { (library.cuEventCreate)(&raw mut raw, 0) };
        context.check(code, || "cuEventCreate".into())?;
        Ok(Event { context: Arc::clone(context), raw })
    }

    /// Marks the end of what is enqueued so far.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        let library = self.context.enter()?;
        // SAFETY: both are alive.
        let code = unsafe { (library.cuEventRecord)(self.raw, stream.raw) };
        self.context.check(code, || "cuEventRecord".into())
    }

    /// Whether the mark was reached.
    pub(crate) fn is_done(&self) -> Result<bool, DeviceError> {
        let library = self.context.enter()?;
        // SAFETY: the event is alive.
        let code = unsafe { (library.cuEventQuery)(self.raw) };
        if code == NOT_READY {
            return Ok(false);
        }
        self.context.check(code, || "cuEventQuery".into()).map(|()| true)
    }

    /// Waits for the mark.
    pub(crate) fn synchronize(&self) -> Result<(), DeviceError> {
        let library = self.context.enter()?;
        // SAFETY: the event is alive.
        let code = unsafe { (library.cuEventSynchronize)(self.raw) };
        self.context.check(code, || "cuEventSynchronize".into())
    }

    /// Microseconds from an earlier mark to this one; both were reached.
    pub(crate) fn since_us(&self, earlier: &Event) -> Result<f64, DeviceError> {
        let library = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: the pointer is to a local, both events are alive.
        let code =
            unsafe { (library.cuEventElapsedTime)(&raw mut milliseconds, earlier.raw, self.raw) };
        self.context.check(code, || "cuEventElapsedTime".into())?;
        Ok(f64::from(milliseconds) * 1000.0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let library = self.context.enter_to_free();
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { (library.cuEventDestroy_v2)(self.raw) };
    }
}
