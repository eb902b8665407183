//! The driver's library: found at run time, its functions looked up once.
//!
//! Types are `cudarc`'s. The functions are looked up here rather than called through it, because
//! its wrappers end the process where a library or a symbol is missing, and because a newer driver
//! may return codes that its enum of results does not know: codes are plain numbers here.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec,
    CUlaunchConfig, CUmodule, CUstream,
};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

/// The oldest driver that reads the embedded kernels: CUDA 12.0.
pub(crate) const VERSION_MIN: c_int = 12000;

/// What the driver says where it sees no device.
const NO_DEVICE: Code = 100;

/// What a driver function returns; 0 is success.
pub(crate) type Code = u32;

macro_rules! functions {
    ($($name:ident($($argument:ty),* $(,)?);)*) => {
        /// The functions of the driver that the backend calls.
        #[allow(non_snake_case)]
        pub(crate) struct Library {
            /// The driver's version: 1000 · major + 10 · minor.
            pub(crate) version: c_int,
            /// Whether the driver sees any device; without, it is not initialised.
            pub(crate) has_devices: bool,
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Library {
            fn look_up(version: c_int) -> Result<Library, &'static str> {
                let has_devices = true;
                Ok(Library {
                    version,
                    has_devices,
                    $($name: symbol(concat!(stringify!($name), "\0"))?,)*
                })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorName(Code, *mut *const c_char);
    cuGetErrorString(Code, *mut *const c_char);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceTotalMem_v2(*mut usize, CUdevice);
    cuDeviceGetAttribute(*mut c_int, c_int, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxSetCurrent(CUcontext);
    cuCtxGetStreamPriorityRange(*mut c_int, *mut c_int);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemAllocManaged(*mut CUdeviceptr, usize, c_uint);
    cuMemFree_v2(CUdeviceptr);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);
    cuMemcpyHtoD_v2(CUdeviceptr, *const c_void, usize);
    cuMemcpyDtoH_v2(*mut c_void, CUdeviceptr, usize);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
    cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
    cuStreamCreateWithPriority(*mut CUstream, c_uint, c_int);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamQuery(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuStreamBeginCapture_v2(CUstream, c_uint);
    cuStreamEndCapture(CUstream, *mut CUgraph);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventDestroy_v2(CUevent);
    cuEventRecord(CUevent, CUstream);
    cuEventQuery(CUevent);
    cuEventSynchronize(CUevent);
    cuEventElapsedTime(*mut f32, CUevent, CUevent);
    cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, u64);
    cuGraphUpload(CUgraphExec, CUstream);
    cuGraphLaunch(CUgraphExec, CUstream);
    cuGraphDestroy(CUgraph);
    cuGraphExecDestroy(CUgraphExec);
    cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut c_uint, *mut *mut c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuFuncSetAttribute(CUfunction, c_int, c_int);
    cuFuncGetAttribute(*mut c_int, c_int, CUfunction);
    cuLaunchKernelEx(*const CUlaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void);
    cuTensorMapEncodeTiled(*mut c_void, c_int, c_uint, *mut c_void, *const u64, *const u64,
        *const c_uint, *const c_uint, c_int, c_int, c_int, c_int);
    cuOccupancyMaxActiveClusters(*mut c_int, CUfunction, *const CUlaunchConfig);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, CUfunction, c_int, usize);
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("version", &self.version).finish_non_exhaustive()
    }
}

/// A function of the library by its name, which ends in NUL.
fn symbol<F: Copy>(name: &'static str) -> Result<F, &'static str> {
    // SAFETY: `Library::open` looks nothing up before it has found the library, so this does not
    // panic; `F` is the function type that the driver documents for the name (the table above).
    let found = unsafe { sys::culib().get::<F>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| name.trim_end_matches('\0'))
}

impl Library {
    /// The library, found, of a version that serves, and initialised. Looked for once a process;
    /// where it is missing, every call says so again.
    pub(crate) fn open() -> Result<&'static Library, DeviceError> {
        static LIBRARY: OnceLock<Result<Library, DeviceError>> = OnceLock::new();
        LIBRARY.get_or_init(Library::find).as_ref().map_err(DeviceError::clone)
    }

    fn find() -> Result<Library, DeviceError> {
        let unsupported =
            |message: String| Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        if !is_driver_present() {
            let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
            return unsupported(format!(
                "no NVIDIA driver: `{name}` was not found (CUDA needs driver 525 or newer)"
            ));
        }
        let version = match driver_version() {
            Ok(version) => version,
            Err(message) => return unsupported(message),
        };
        if version < VERSION_MIN {
            let found = version_name(version);
            return unsupported(format!(
                "the NVIDIA driver supports CUDA {found}, needed is 12.0 (driver 525 or newer)"
            ));
        }
        let mut library = match Library::look_up(version) {
            Ok(library) => library,
            Err(name) => {
                let found = version_name(version);
                return unsupported(format!(
                    "the NVIDIA driver (CUDA {found}) has no function `{name}`"
                ));
            }
        };
        // SAFETY: no precondition.
        let code = unsafe { (library.cuInit)(0) };
        library.has_devices = code != NO_DEVICE;
        match code {
            0 | NO_DEVICE => Ok(library),
            code => Err(super::error::describe(&library, code, "cuInit")),
        }
    }
}

/// Whether the NVIDIA driver's library is installed; it may still be too old, or see no GPU.
pub fn is_driver_present() -> bool {
    // SAFETY: loads and unloads the driver's library, whose initialisers are safe to run.
    unsafe { sys::is_culib_present() }
}

/// `12.4` for 12040.
pub(crate) fn version_name(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn driver_version() -> Result<c_int, String> {
    let get: unsafe extern "C" fn(*mut c_int) -> Code = symbol("cuDriverGetVersion\0")
        .map_err(|name| format!("the NVIDIA driver has no function `{name}`"))?;
    let mut version = 0;
    // SAFETY: the pointer is to a local.
    match unsafe { get(&raw mut version) } {
        0 => Ok(version),
        code => Err(format!("the NVIDIA driver does not say its version: error {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_an_error() {
        match Library::open() {
            Ok(library) => assert!(library.version >= VERSION_MIN),
            Err(error) => {
                assert_eq!(error.kind(), DeviceErrorKind::Unsupported);
                assert!(error.to_string().contains("driver") || error.to_string().contains("CUDA"));
            }
        }
    }

    #[test]
    fn versions_have_names() {
        assert_eq!(version_name(12040), "12.4");
        assert_eq!(version_name(13000), "13.0");
    }
}
