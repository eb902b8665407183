//! Device memory and pinned host memory, owned.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::context::Context;
use super::stream::Stream;

/// Bytes on the device, 256-byte aligned.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
}

/// What the pool and the driver hand out: sizes that programs share.
const GRAIN: usize = 512;

impl DeviceMemory {
    /// Allocates; `owner` is for messages.
    ///
    /// # Errors
    /// `OutOfMemory` with owner, bytes and limit.
    pub(crate) fn new(
        context: &Arc<Context>,
        owner: &str,
        bytes: usize,
    ) -> Result<DeviceMemory, DeviceError> {
        let bytes = bytes.max(1).next_multiple_of(GRAIN);
        let refuse = |message| Err(DeviceError::new(DeviceErrorKind::OutOfMemory, message));
        let used = context.used.fetch_add(bytes as u64, Ordering::Relaxed);
        let memory = DeviceMemory { context: Arc::clone(context), address: 0, bytes };
        match context.policy.bytes_max {
            // Dropping `memory` takes its bytes off again.
            Some(most) if used + bytes as u64 > most => {
                return refuse(format!(
                    "{owner} need {bytes} bytes of device memory beside {used}, limit {most}"
                ));
            }
            _ => {}
        }
        let mut memory = memory;
        if context.policy.pooling {
            let mut pool = context.pool();
            if let Some(address) = pool.get_mut(&bytes).and_then(Vec::pop) {
                memory.address = address;
                return Ok(memory);
            }
        }
        memory.address = match allocate(context, bytes, owner) {
            Err(error) if error.kind() == DeviceErrorKind::OutOfMemory => {
                // What the pool keeps may be what is lacking.
                context.drain_pool();
                allocate(context, bytes, owner)?
            }
            other => other?,
        };
        Ok(memory)
    }

    /// The first byte's address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, offset: usize, bytes: usize) {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
    }

    /// Copies bytes in and waits for them.
    pub(crate) fn upload(&self, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        self.check(offset, from.len());
        if from.is_empty() {
            return Ok(());
        }
        let library = self.context.enter()?;
        let to = self.address + offset as u64;
        // SAFETY: both ranges are valid for the length: checked above, and by the slice.
        let code = unsafe { (library.cuMemcpyHtoD_v2)(to, from.as_ptr().cast(), from.len()) };
        self.context.check(code, || format!("cuMemcpyHtoD of {} bytes", from.len()))
    }

    /// Copies bytes out and waits for them.
    pub(crate) fn download(&self, offset: usize, to: &mut [f32]) -> Result<(), DeviceError> {
        let bytes = size_of_val(to);
        self.check(offset, bytes);
        if bytes == 0 {
            return Ok(());
        }
        let library = self.context.enter()?;
        let from = self.address + offset as u64;
        // SAFETY: both ranges are valid for the length; any bytes are an f32.
        let code = unsafe { (library.cuMemcpyDtoH_v2)(to.as_mut_ptr().cast(), from, bytes) };
        self.context.check(code, || format!("cuMemcpyDtoH of {bytes} bytes"))
    }

    /// Sets bytes to zero, in the stream's order.
    pub(crate) fn zero(
        &self,
        offset: usize,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        self.check(offset, bytes);
        if bytes == 0 {
            return Ok(());
        }
        let library = self.context.enter()?;
        let at = self.address + offset as u64;
        // SAFETY: the range is inside the allocation.
        let code = unsafe { (library.cuMemsetD8Async)(at, 0, bytes, stream.raw()) };
        self.context.check(code, || format!("cuMemsetD8Async of {bytes} bytes"))
    }

    /// Starts a copy from another allocation of the device.
    pub(crate) fn copy_from(
        &self,
        from: &DeviceMemory,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        self.check(0, bytes);
        from.check(0, bytes);
        let library = self.context.enter()?;
        let (to, from) = (self.address, from.address);
        // SAFETY: both ranges are inside their allocations, which the caller keeps until the
        // stream has done the copy.
        let code = unsafe { (library.cuMemcpyDtoDAsync_v2)(to, from, bytes, stream.raw()) };
        self.context.check(code, || format!("cuMemcpyDtoDAsync of {bytes} bytes"))
    }

    /// Starts a copy from pinned memory.
    pub(crate) fn copy_in(
        &self,
        offset: usize,
        from: &HostMemory,
        from_offset: usize,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        self.check(offset, bytes);
        from.check(from_offset, bytes);
        if bytes == 0 {
            return Ok(());
        }
        let library = self.context.enter()?;
        let to = self.address + offset as u64;
        // SAFETY: both ranges are inside their allocations, which the caller keeps until the
        // stream has done the copy.
        let code = unsafe {
            let from = from.at.cast::<u8>().add(from_offset).cast::<c_void>();
            (library.cuMemcpyHtoDAsync_v2)(to, from, bytes, stream.raw())
        };
        self.context.check(code, || format!("cuMemcpyHtoDAsync of {bytes} bytes"))
    }

    /// Starts a copy to pinned memory.
    pub(crate) fn copy_out(
        &self,
        offset: usize,
        to: &HostMemory,
        to_offset: usize,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        self.check(offset, bytes);
        to.check(to_offset, bytes);
        if bytes == 0 {
            return Ok(());
        }
        let library = self.context.enter()?;
        let from = self.address + offset as u64;
        // SAFETY: as in `copy_in`.
        let code = unsafe {
            let to = to.at.cast::<u8>().add(to_offset).cast::<c_void>();
            (library.cuMemcpyDtoHAsync_v2)(to, from, bytes, stream.raw())
        };
        self.context.check(code, || format!("cuMemcpyDtoHAsync of {bytes} bytes"))
    }
}

fn allocate(context: &Context, bytes: usize, owner: &str) -> Result<u64, DeviceError> {
    let library = context.enter()?;
    let _asked = context.guests.ask_all();
    context.allocations.fetch_add(1, Ordering::Relaxed);
    let mut address = 0;
    let code = if context.policy.managed {
        const ATTACH_GLOBAL: u32 = 1;
        // SAFETY: the pointer is to a local.
        unsafe { (library.cuMemAllocManaged)(&raw mut address, bytes, ATTACH_GLOBAL) }
    } else {
        // SAFETY: as above.
        unsafe { (library.cuMemAlloc_v2)(&raw mut address, bytes) }
    };
    context.check(code, || {
        let free = context.memory().map_or_else(|_| "unknown".into(), |(free, _)| free.to_string());
        format!("{owner} need {bytes} bytes of device memory, {free} bytes are free")
    })?;
    Ok(address)
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.context.used.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        if self.address == 0 {
            return;
        }
        if self.context.policy.pooling && self.context.lost().is_none() {
            self.context.pool().entry(self.bytes).or_default().push(self.address);
            return;
        }
        // The driver waits for the device.
        let _asked = self.context.guests.ask_all();
        let library = self.context.enter_to_free();
        // SAFETY: allocated in `new`, freed once; owners wait for the work that uses it before
        // they drop it, and the driver waits for the device besides.
        let _ = unsafe { (library.cuMemFree_v2)(self.address) };
    }
}

/// Page-locked bytes of the host that the device can read and write.
#[derive(Debug)]
pub(crate) struct HostMemory {
    context: Arc<Context>,
    at: *mut c_void,
    device: u64,
    bytes: usize,
}

// SAFETY: plain memory, owned; references to it follow the borrow of the owner.
unsafe impl Send for HostMemory {}
// SAFETY: as above; `&HostMemory` gives no safe access to the bytes.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Allocates zeroed memory; `owner` is for messages. Write-combined memory is for data that
    /// the host writes in order and never reads.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn new(
        context: &Arc<Context>,
        owner: &str,
        bytes: usize,
        write_combined: bool,
    ) -> Result<HostMemory, DeviceError> {
        const PORTABLE: u32 = 1;
        const DEVICEMAP: u32 = 2;
        const WRITECOMBINED: u32 = 4;
        let bytes = bytes.max(1).next_multiple_of(4096);
        let flags = PORTABLE | DEVICEMAP | if write_combined { WRITECOMBINED } else { 0 };
        let library = context.enter()?;
        let asked = context.guests.ask_all();
        context.allocations.fetch_add(1, Ordering::Relaxed);
        let mut at = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let code = unsafe { (library.cuMemHostAlloc)(&raw mut at, bytes, flags) };
        drop(asked);
        context.check(code, || format!("{owner} need {bytes} bytes of pinned host memory"))?;
        let mut memory = HostMemory { context: Arc::clone(context), at, device: 0, bytes };
        // SAFETY: the memory was just allocated with this length.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        // SAFETY: the pointer is to a local, the memory is mapped.
        let code = unsafe { (library.cuMemHostGetDevicePointer_v2)(&raw mut memory.device, at, 0) };
        context.check(code, || "cuMemHostGetDevicePointer".into())?;
        Ok(memory)
    }

    fn check(&self, offset: usize, bytes: usize) {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
    }

    /// The first byte's address on the device.
    pub(crate) fn device_address(&self) -> u64 {
        self.device
    }

    /// Address on the host of a checked range.
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        self.check(offset, bytes);
        // SAFETY: inside the allocation.
        unsafe { self.at.cast::<u8>().add(offset) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let library = self.context.enter_to_free();
        // SAFETY: allocated in `new`, freed once; owners wait for the work that uses it first.
        let _ = unsafe { (library.cuMemFreeHost)(self.at) };
    }
}
