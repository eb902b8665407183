//! Loaded kernels and their launches.

use std::ffi::{CStr, CString, c_int, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction, CUmodule};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::context::{Context, cluster_attribute};
use super::stream::Stream;
use crate::gpu::Gpu;
use crate::launch::Launch;

/// Attributes of a function by the driver's numbers.
const MAX_THREADS: c_int = 0;
const SHARED_BYTES: c_int = 1;
const MAX_DYNAMIC_SHARED_BYTES: c_int = 8;
const NON_PORTABLE_CLUSTER: c_int = 14;

/// An image on the device.
#[derive(Debug)]
pub(crate) struct Module {
    context: Arc<Context>,
    raw: CUmodule,
    name: String,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a fat binary, or PTX that ends in NUL. Where the driver refuses the machine code, it
    /// compiles the PTX.
    ///
    /// # Errors
    /// `Compile`, with what the driver says.
    pub(crate) fn load(
        context: &Arc<Context>,
        name: &str,
        image: &[u8],
    ) -> Result<Module, DeviceError> {
        match load(context, name, image, None) {
            Err(error) if error.kind() == DeviceErrorKind::Compile => {
                const PREFER_PTX: usize = 0;
                load(context, name, image, Some(PREFER_PTX)).map_err(|_| error)
            }
            other => other,
        }
    }

    /// A kernel by its name.
    ///
    /// # Errors
    /// `Compile` if the image has no such kernel.
    pub(crate) fn function(self: &Arc<Self>, name: &str) -> Result<Function, DeviceError> {
        let absent = || {
            let message = format!("module `{}` has no kernel `{name}`", self.name);
            DeviceError::new(DeviceErrorKind::Compile, message)
        };
        let library = self.context.enter()?;
        let c_name = CString::new(name).map_err(|_| absent())?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local, the name ends in NUL, the module is alive.
        let code =
            unsafe { (library.cuModuleGetFunction)(&raw mut raw, self.raw, c_name.as_ptr()) };
        const NOT_FOUND: u32 = 500;
        if code == NOT_FOUND {
            return Err(absent());
        }
        self.context.check(code, || format!("cuModuleGetFunction of `{name}`"))?;
        Ok(Function { module: Arc::clone(self), raw, name: name.to_owned() })
    }
}

fn load(
    context: &Arc<Context>,
    name: &str,
    image: &[u8],
    fallback: Option<usize>,
) -> Result<Module, DeviceError> {
    const FALLBACK_STRATEGY: u32 = 10;
    const ERROR_LOG: u32 = 5;
    const ERROR_LOG_BYTES: u32 = 6;
    let library = context.enter()?;
    let mut log = [0_u8; 2048];
    let mut options = [ERROR_LOG, ERROR_LOG_BYTES, FALLBACK_STRATEGY];
    let mut values = [
        log.as_mut_ptr().cast::<c_void>(),
        (log.len() - 1) as *mut c_void,
        fallback.unwrap_or(0) as *mut c_void,
    ];
    let count = if fallback.is_some() { 3 } else { 2 };
    let mut raw = std::ptr::null_mut();
    // SAFETY: options and values have `count` elements, the log is as long as is said; the image
    // is a fat binary or ends in NUL, as the caller promises, and outlives the call.
    let code = unsafe {
        (library.cuModuleLoadDataEx)(
            &raw mut raw,
            image.as_ptr().cast(),
            count,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    context.check(code, || {
        let log = CStr::from_bytes_until_nul(&log).map_or("".into(), CStr::to_string_lossy);
        let log = log.trim();
        let colon = if log.is_empty() { "" } else { ": " };
        format!("loading the kernels of `{name}`{colon}{log}")
    })?;
    Ok(Module { context: Arc::clone(context), raw, name: name.to_owned() })
}

impl Drop for Module {
    fn drop(&mut self) {
        let library = self.context.enter_to_free();
        // SAFETY: loaded in `load`, unloaded once; functions and programs keep it alive.
        let _ = unsafe { (library.cuModuleUnload)(self.raw) };
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    module: Arc<Module>,
    raw: CUfunction,
    name: String,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    fn context(&self) -> &Arc<Context> {
        &self.module.context
    }

    fn attribute(&self, number: c_int) -> Result<usize, DeviceError> {
        let library = self.context().enter()?;
        let mut value = 0;
        // SAFETY: the pointer is to a local, the function is alive.
        let code = unsafe { (library.cuFuncGetAttribute)(&raw mut value, number, self.raw) };
        self.context().check(code, || format!("cuFuncGetAttribute of `{}`", self.name))?;
        Ok(usize::try_from(value).unwrap_or(0))
    }

    fn set(&self, number: c_int, value: c_int) -> Result<(), DeviceError> {
        let library = self.context().enter()?;
        // SAFETY: the function is alive.
        let code = unsafe { (library.cuFuncSetAttribute)(self.raw, number, value) };
        self.context()
            .check(code, || format!("cuFuncSetAttribute of `{}`: {number} to {value}", self.name))
    }

    /// Permits what a launch asks for: more dynamic shared memory than 48 KiB, clusters of 16.
    ///
    /// # Errors
    /// If the device does not have as much, naming the kernel, what it needs and what there is.
    pub(crate) fn permit(&self, launch: &Launch, gpu: &Gpu) -> Result<(), DeviceError> {
        let (name, shared_max) = (&self.name, gpu.shared_bytes_max);
        let fixed = self.attribute(SHARED_BYTES)?;
        let needed = fixed + launch.shared_bytes as usize;
        let refuse = |message| Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        if needed > shared_max as usize {
            return refuse(format!(
                "kernel `{name}` needs {needed} bytes of shared memory, the GPU has {shared_max}"
            ));
        }
        let threads = launch.block.iter().product::<u32>() as usize;
        let most = self.attribute(MAX_THREADS)?;
        if threads == 0 || threads > most || launch.grid.contains(&0) {
            let (grid, block) = (launch.grid, launch.block);
            return refuse(format!(
                "kernel `{name}` in blocks of {block:?} threads and a grid of {grid:?}: a block \
                 has 1 to {most} threads, a grid at least one block"
            ));
        }
        // Attributes belong to the kernel, and programs that share it differ: never lowered.
        if launch.shared_bytes as usize > self.attribute(MAX_DYNAMIC_SHARED_BYTES)? {
            self.set(MAX_DYNAMIC_SHARED_BYTES, launch.shared_bytes as c_int)?;
        }
        if launch.cluster > 8 {
            self.set(NON_PORTABLE_CLUSTER, 1)?;
        }
        if launch.cooperative && launch.cluster == 1 {
            let blocks = launch.grid.iter().map(|&n| n as usize).product::<usize>();
            let most = self.blocks_per_multiprocessor(launch)? * gpu.multiprocessors as usize;
            if blocks > most {
                return refuse(format!(
                    "kernel `{name}` needs {blocks} blocks at once, the GPU holds {most}"
                ));
            }
        }
        Ok(())
    }

    /// Enqueues a launch of this kernel, or records it where the stream is being captured.
    pub(crate) fn launch(&self, launch: &Launch, stream: &Stream) -> Result<(), DeviceError> {
        let library = self.context().enter()?;
        let mut attributes = attributes(launch, self.context().has_dependents());
        let config = config(launch, &mut attributes.0[..attributes.1], stream);
        let mut arguments = [launch.arguments().as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one struct by value whose bytes are the launch's (`Arguments`);
        // the driver copies them before it returns. Everything else is alive until the return.
        let code = unsafe {
            (library.cuLaunchKernelEx)(
                &raw const config,
                self.raw,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context().check(code, || {
            let Launch { grid, block, cluster, shared_bytes, .. } = launch;
            format!(
                "launching `{}`: grid {grid:?}, block {block:?}, cluster {cluster}, \
                 {shared_bytes} bytes of dynamic shared memory",
                self.name
            )
        })
    }

    /// How many clusters of a launch fit on the device at once; 0 where none does.
    pub(crate) fn clusters(&self, launch: &Launch, stream: &Stream) -> Result<usize, DeviceError> {
        let library = self.context().enter()?;
        let mut attributes = attributes(launch, self.context().has_dependents());
        let config = config(launch, &mut attributes.0[..attributes.1], stream);
        let mut clusters = 0;
        // SAFETY: the pointers are to locals, the function is alive.
        let code = unsafe {
            (library.cuOccupancyMaxActiveClusters)(&raw mut clusters, self.raw, &raw const config)
        };
        self.context().check(code, || "cuOccupancyMaxActiveClusters".into())?;
        Ok(usize::try_from(clusters).unwrap_or(0))
    }

    /// How many blocks of a launch fit on one multiprocessor.
    fn blocks_per_multiprocessor(&self, launch: &Launch) -> Result<usize, DeviceError> {
        let library = self.context().enter()?;
        let threads = launch.block.iter().product::<u32>() as c_int;
        let mut blocks = 0;
        // SAFETY: the pointer is to a local, the function is alive.
        let code = unsafe {
            (library.cuOccupancyMaxActiveBlocksPerMultiprocessor)(
                &raw mut blocks,
                self.raw,
                threads,
                launch.shared_bytes as usize,
            )
        };
        self.context().check(code, || "cuOccupancyMaxActiveBlocksPerMultiprocessor".into())?;
        Ok(usize::try_from(blocks).unwrap_or(0))
    }
}

/// The launch's attributes and how many of them count.
fn attributes(launch: &Launch, dependents: bool) -> ([sys::CUlaunchAttribute; 2], usize) {
    let mut attributes = [cluster_attribute(launch.cluster); 2];
    let mut count = usize::from(launch.cluster > 1);
    if launch.cooperative {
        attributes[count] = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { cooperative: 1 },
        };
        count += 1;
    } else if launch.programmatic && dependents {
        attributes[count] = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        count += 1;
    }
    (attributes, count)
}

fn config(
    launch: &Launch,
    attributes: &mut [sys::CUlaunchAttribute],
    stream: &Stream,
) -> sys::CUlaunchConfig {
    let (grid, block) = (launch.grid, launch.block);
    sys::CUlaunchConfig {
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: block[0],
        blockDimY: block[1],
        blockDimZ: block[2],
        sharedMemBytes: launch.shared_bytes,
        hStream: stream.raw(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}
