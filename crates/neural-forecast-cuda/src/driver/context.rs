//! A GPU's primary context: retained once a device, made current before each call.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUcontext, CUdevice};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::error::{describe, kind};
use super::library::{Code, Library};
use crate::gpu::Gpu;
use crate::linger::Guests;

/// Attributes of a device by the driver's numbers.
pub(crate) mod attribute {
    use std::ffi::c_int;

    pub(crate) const CLOCK_KHZ: c_int = 13;
    pub(crate) const MULTIPROCESSORS: c_int = 16;
    pub(crate) const PCI_BUS: c_int = 33;
    pub(crate) const PCI_DEVICE: c_int = 34;
    pub(crate) const L2_BYTES: c_int = 38;
    pub(crate) const PCI_DOMAIN: c_int = 50;
    pub(crate) const MAJOR: c_int = 75;
    pub(crate) const MINOR: c_int = 76;
    pub(crate) const MANAGED_MEMORY: c_int = 83;
    pub(crate) const INTEGRATED: c_int = 18;
    pub(crate) const COOPERATIVE: c_int = 95;
    pub(crate) const SHARED_BYTES_OPTIN: c_int = 97;
    pub(crate) const CLUSTERS: c_int = 120;
}

/// How a context treats device memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemoryPolicy {
    /// Most bytes that may be allocated at once.
    pub(crate) bytes_max: Option<u64>,
    /// Whether freed memory is kept for the next allocation of its size.
    pub(crate) pooling: bool,
    /// Whether device memory is managed, so that it may exceed what the device has.
    pub(crate) managed: bool,
}

/// A retained primary context.
#[derive(Debug)]
pub(crate) struct Context {
    library: &'static Library,
    device: CUdevice,
    ordinal: usize,
    raw: CUcontext,
    /// Whether kernels may be started before those ahead of them have ended.
    dependents: bool,
    /// The error after which nothing works any more.
    lost: OnceLock<DeviceError>,
    pub(super) policy: MemoryPolicy,
    /// Device bytes in use, and how many allocations the driver was asked for.
    pub(super) used: AtomicU64,
    pub(super) allocations: AtomicU64,
    /// Kernels that linger: asked to leave before the driver waits for the device.
    pub(crate) guests: Guests,
    /// Freed device memory by size.
    pub(super) pool: Mutex<BTreeMap<usize, Vec<u64>>>,
}

// SAFETY: the driver's handles may be used from any thread; the context is made current in each.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Context {}

/// A number of GPUs.
///
/// # Errors
/// Without a driver.
pub(crate) fn count(library: &Library) -> Result<usize, DeviceError> {
    if !library.has_devices {
        return Ok(0);
    }
    let mut count = 0;
    // SAFETY: the pointer is to a local.
    let code = unsafe { (library.cuDeviceGetCount)(&raw mut count) };
    match code {
        0 => Ok(usize::try_from(count).unwrap_or(0)),
        code => Err(describe(library, code, "cuDeviceGetCount")),
    }
}

fn handle(library: &Library, ordinal: usize) -> Result<CUdevice, DeviceError> {
    let found = count(library)?;
    if ordinal >= found {
        let message = match found {
            0 => format!("no GPU `cuda:{ordinal}`: the driver sees none"),
            found => format!("no GPU `cuda:{ordinal}`: the driver sees {found}, from `cuda:0`"),
        };
        return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
    }
    let mut device = 0;
    // SAFETY: the pointer is to a local.
    let code = unsafe { (library.cuDeviceGet)(&raw mut device, ordinal as c_int) };
    match code {
        0 => Ok(device),
        code => Err(describe(library, code, &format!("cuDeviceGet of GPU {ordinal}"))),
    }
}

/// What the driver says of a GPU without a context. The cluster limit is the architecture's; an
/// opened device asks the driver instead.
///
/// # Errors
/// If there is no such GPU.
pub(crate) fn gpu(library: &Library, ordinal: usize) -> Result<Gpu, DeviceError> {
    let device = handle(library, ordinal)?;
    let ask = |number: c_int| {
        let mut value = 0;
        // SAFETY: the pointer is to a local, the device is valid.
        let code = unsafe { (library.cuDeviceGetAttribute)(&raw mut value, number, device) };
        match code {
            0 => Ok(u32::try_from(value).unwrap_or(0)),
            code => {
                let what = format!("cuDeviceGetAttribute {number} of GPU {ordinal}");
                Err(describe(library, code, &what))
            }
        }
    };
    let mut name = [0 as c_char; 256];
    // SAFETY: the buffer has the length that is passed.
    let code = unsafe { (library.cuDeviceGetName)(name.as_mut_ptr(), 255, device) };
    let name = if code == 0 {
        let bytes = name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect::<Vec<u8>>();
        String::from_utf8_lossy(&bytes).into_owned()
    } else {
        format!("GPU {ordinal}")
    };
    let mut memory = 0;
    // SAFETY: the pointer is to a local.
    let code = unsafe { (library.cuDeviceTotalMem_v2)(&raw mut memory, device) };
    if code != 0 {
        return Err(describe(library, code, &format!("cuDeviceTotalMem of GPU {ordinal}")));
    }
    let compute_capability = (ask(attribute::MAJOR)?, ask(attribute::MINOR)?);
    // Older drivers do not know the attribute; what they drive has no clusters.
    let clusters = compute_capability >= (9, 0) && ask(attribute::CLUSTERS).unwrap_or(0) != 0;
    let cluster_max = match compute_capability {
        _ if !clusters => 0,
        (9, 0) => 16,
        _ => 8,
    };
    Ok(Gpu {
        ordinal,
        name,
        compute_capability,
        multiprocessors: ask(attribute::MULTIPROCESSORS)?,
        shared_bytes_max: ask(attribute::SHARED_BYTES_OPTIN)?,
        l2_bytes: u64::from(ask(attribute::L2_BYTES)?),
        memory_bytes: memory as u64,
        cluster_max,
        cooperative: ask(attribute::COOPERATIVE)? != 0,
    })
}

impl Context {
    /// Retains the primary context of a GPU.
    ///
    /// # Errors
    /// If there is no such GPU, or it gives no context.
    pub(crate) fn open(
        library: &'static Library,
        ordinal: usize,
        policy: MemoryPolicy,
    ) -> Result<Arc<Context>, DeviceError> {
        let device = handle(library, ordinal)?;
        // What the machine code for this architecture alone waits for; graphs have it since 12.3.
        let dependents =
            gpu(library, ordinal)?.compute_capability == (9, 0) && library.version >= 12030;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local, the device is valid.
        let code = unsafe { (library.cuDevicePrimaryCtxRetain)(&raw mut raw, device) };
        if code != 0 {
            let what = format!("cuDevicePrimaryCtxRetain of GPU {ordinal}");
            return Err(describe(library, code, &what));
        }
        Ok(Arc::new(Context {
            library,
            device,
            ordinal,
            raw,
            dependents,
            lost: OnceLock::new(),
            policy,
            used: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            guests: Guests::default(),
            pool: Mutex::new(BTreeMap::new()),
        }))
    }

    /// The driver's functions, with this context current on the calling thread.
    ///
    /// # Errors
    /// `Lost` once the context is.
    pub(crate) fn enter(&self) -> Result<&'static Library, DeviceError> {
        if let Some(error) = self.lost.get() {
            return Err(error.clone());
        }
        // SAFETY: the context is retained until drop.
        let code = unsafe { (self.library.cuCtxSetCurrent)(self.raw) };
        self.check(code, || "cuCtxSetCurrent".into())?;
        Ok(self.library)
    }

    /// As [`Context::enter`], for drops: frees what can be freed even of a lost context.
    pub(super) fn enter_to_free(&self) -> &'static Library {
        // SAFETY: as in `enter`; a failure makes the calls that follow fail, which frees nothing.
        let _ = unsafe { (self.library.cuCtxSetCurrent)(self.raw) };
        self.library
    }

    /// An error for a code that is not success. A code that ends the context is kept: it is what
    /// every call returns from then on.
    pub(crate) fn check(
        &self,
        code: Code,
        what: impl FnOnce() -> String,
    ) -> Result<(), DeviceError> {
        if code == 0 {
            return Ok(());
        }
        Err(self.failed(code, &what()))
    }

    #[cold]
    fn failed(&self, code: Code, what: &str) -> DeviceError {
        let what = format!("cuda:{}: {what}", self.ordinal);
        let error = describe(self.library, code, &what);
        if kind(code) == DeviceErrorKind::Lost {
            return self.lost.get_or_init(|| error).clone();
        }
        error
    }

    /// The error after which nothing works, if there was one.
    pub(crate) fn lost(&self) -> Option<&DeviceError> {
        self.lost.get()
    }

    /// Device bytes in use by this process's handles of this context.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How often the driver was asked for device or pinned memory.
    pub(crate) fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    /// Whether programmatic launches are started early.
    pub(super) fn has_dependents(&self) -> bool {
        self.dependents
    }

    /// Free and total bytes of the device, as the driver sees them.
    pub(crate) fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let library = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to locals.
        let code = unsafe { (library.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.check(code, || "cuMemGetInfo".into())?;
        Ok((free as u64, total as u64))
    }

    /// The least and the greatest priority of streams; greater is the smaller number.
    pub(crate) fn priorities(&self) -> Result<(c_int, c_int), DeviceError> {
        let library = self.enter()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: the pointers are to locals.
        let code =
            unsafe { (library.cuCtxGetStreamPriorityRange)(&raw mut least, &raw mut greatest) };
        self.check(code, || "cuCtxGetStreamPriorityRange".into())?;
        Ok((least, greatest))
    }

    /// An attribute of the device; 0 where the driver does not know it.
    pub(crate) fn ask(&self, number: c_int) -> c_int {
        let mut value = 0;
        // SAFETY: the pointer is to a local, the device is valid.
        let code =
            unsafe { (self.library.cuDeviceGetAttribute)(&raw mut value, number, self.device) };
        if code == 0 { value } else { 0 }
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<u64>>> {
        // Every change of the map is a single call, so that a panic leaves it whole.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives pooled memory back to the driver.
    pub(crate) fn drain_pool(&self) {
        let library = self.enter_to_free();
        for address in std::mem::take(&mut *self.pool()).into_values().flatten() {
            // SAFETY: the address was allocated here, and nothing uses what is in the pool.
            let _ = unsafe { (library.cuMemFree_v2)(address) };
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.drain_pool();
        // SAFETY: retained in `open`, released once; every handle made from it is gone, because
        // each keeps the context alive.
        let _ = unsafe { (self.library.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// The launch attribute of a cluster of `blocks` along x.
pub(super) fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 },
        },
    }
}
