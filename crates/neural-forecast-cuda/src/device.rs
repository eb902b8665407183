//! A GPU as a device of the runtime: opened, listed, measured; plans made resident on it.

use std::sync::{Arc, OnceLock};

use neural_forecast_runtime::counters::Counters;
use neural_forecast_runtime::device::{
    Capabilities, Device, DeviceKind, KernelCount, LoadOptions, Precision, Resident, Support,
    WeightSource,
};
use neural_forecast_runtime::lower::{has_epilogue, is_stack};
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::Plan;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::crew::Crew;
use crate::driver::{
    self, Context, DeviceMemory, Event, HostMemory, Library, MemoryPolicy, Stream, attribute,
};
use crate::gpu::Gpu;
use crate::image::Images;
use crate::resident::CudaResident;
use crate::step;
use crate::surround;
use crate::telemetry::Telemetry;

/// What the embedded kernels need at least.
const COMPUTE_CAPABILITY_MIN: (u32, u32) = (8, 0);

/// How a GPU is opened.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Most bytes of device memory that everything on the device may take together.
    pub memory_bytes_max: Option<u64>,
    /// Least major and minor compute capability; the backend's own minimum is 8.0.
    pub compute_capability_min: Option<(u32, u32)>,
    /// Whether freed device memory is kept for later programs of the same size instead of going
    /// back to the driver.
    pub memory_pooling: bool,
    /// Whether device memory is managed by the driver, so that it may exceed what the GPU has, at
    /// the cost of page faults.
    pub unified_memory: bool,
    /// Whether programs of the latency class time their runs, at the cost of two events a run.
    pub timing: bool,
    /// For how long the kernel of a program of the latency class that is a single kernel stays on
    /// its multiprocessors after an answer, in microseconds, so that a run that follows sooner
    /// needs no launch; 0 for not at all. Meanwhile it holds what it holds while it runs, and
    /// takes power; other programs of the device, and memory calls, have it leave first. Not with
    /// `timing`.
    pub linger_us: u32,
}

/// Copy rates in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// From pinned host memory to the device.
    pub host_to_device: f64,
    /// From the device to pinned host memory.
    pub device_to_host: f64,
    /// Inside the device, counting bytes read and bytes written.
    pub device: f64,
}

/// The GPUs that the driver sees, in its order. Opens none.
///
/// # Errors
/// `Unsupported` without a driver, or with one older than CUDA 12.0.
pub fn gpus() -> Result<Vec<Gpu>, DeviceError> {
    let library = Library::open()?;
    (0..driver::count(library)?).map(|ordinal| driver::gpu(library, ordinal)).collect()
}

/// An opened GPU. Residents and programs keep it open.
#[derive(Debug)]
pub struct CudaDevice {
    shared: Arc<Shared>,
}

/// What a device, its residents and their programs share.
#[derive(Debug)]
pub(crate) struct Shared {
    // Dropped in this order: streams and kernels before the context that they belong to.
    /// Where programs run whose blocks wait for one another: its order keeps them apart, so that
    /// no two are half-resident at once.
    pub(crate) exclusive: Arc<Stream>,
    pub(crate) images: Images,
    pub(crate) counters: Arc<Counters>,
    pub(crate) capabilities: Capabilities,
    pub(crate) gpu: Gpu,
    /// Priorities of streams for the throughput and the latency class.
    pub(crate) priorities: (i32, i32),
    pub(crate) timing: bool,
    /// `CudaOptions::linger_us` in nanoseconds.
    pub(crate) linger_ns: u32,
    /// Started when first needed.
    crew: OnceLock<Crew>,
    /// Found when first asked for; absent where the management library is.
    telemetry: OnceLock<Option<Telemetry>>,
    pub(crate) context: Arc<Context>,
}

impl CudaDevice {
    /// Opens a GPU by its number among the driver's.
    ///
    /// # Errors
    /// `Unsupported` without a driver of CUDA 12.0 or newer, without such a GPU, or with one of
    /// less compute capability than is needed; `OutOfMemory` where it gives no context.
    pub fn open(ordinal: usize, options: CudaOptions) -> Result<CudaDevice, DeviceError> {
        let library = Library::open()?;
        let mut gpu = driver::gpu(library, ordinal)?;
        let asked = options.compute_capability_min.unwrap_or(COMPUTE_CAPABILITY_MIN);
        check_capability(&gpu, asked.max(COMPUTE_CAPABILITY_MIN))?;
        let policy = MemoryPolicy {
            bytes_max: options.memory_bytes_max,
            pooling: options.memory_pooling,
            managed: options.unified_memory,
        };
        let context = Context::open(library, ordinal, policy)?;
        if options.unified_memory && context.ask(attribute::MANAGED_MEMORY) == 0 {
            let message = format!("cuda:{ordinal} ({}) has no managed memory", gpu.name);
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let priorities = context.priorities()?;
        let exclusive = Arc::new(Stream::new(&context, priorities.1)?);
        let images = Images::new(Arc::clone(&context));
        gpu.cluster_max = cluster_max(&images, &gpu, &exclusive)?;
        let capabilities = capabilities(&context, &gpu, library.version, &options);
        let shared = Shared {
            exclusive,
            images,
            counters: Arc::default(),
            capabilities,
            gpu,
            priorities,
            timing: options.timing,
            linger_ns: options.linger_us.saturating_mul(1000),
            crew: OnceLock::new(),
            telemetry: OnceLock::new(),
            context,
        };
        Ok(CudaDevice { shared: Arc::new(shared) })
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The GPU's facts.
    pub fn gpu(&self) -> &Gpu {
        &self.shared.gpu
    }

    /// Power, energy, temperature and clocks, where the management library is there.
    pub fn telemetry(&self) -> Option<&Telemetry> {
        let find = || {
            let ask = |what| self.shared.context.ask(what);
            let (domain, bus) = (ask(attribute::PCI_DOMAIN), ask(attribute::PCI_BUS));
            let device = ask(attribute::PCI_DEVICE);
            Telemetry::new(format!("{domain:08x}:{bus:02x}:{device:02x}.0")).ok()
        };
        self.shared.telemetry.get_or_init(find).as_ref()
    }

    /// Free and total bytes of device memory, as the driver sees them.
    ///
    /// # Errors
    /// `Lost`.
    pub fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.shared.context.memory()
    }

    /// Bytes of device memory that everything made from this device takes now.
    pub fn used_bytes(&self) -> u64 {
        self.shared.context.used_bytes()
    }

    /// How often the driver was asked for device or pinned memory since the device opened. Runs
    /// do not change it.
    pub fn allocations(&self) -> u64 {
        self.shared.context.allocations()
    }

    /// Measures copies of 256 MiB.
    ///
    /// # Errors
    /// `OutOfMemory`, `Lost`.
    pub fn copy_bandwidth(&self) -> Result<Bandwidth, DeviceError> {
        const BYTES: usize = 256 << 20;
        let context = &self.shared.context;
        let host = HostMemory::new(context, "the measurement of copies", BYTES, false)?;
        let near = DeviceMemory::new(context, "the measurement of copies", BYTES)?;
        let far = DeviceMemory::new(context, "the measurement of copies", BYTES)?;
        let stream = Stream::new(context, self.shared.priorities.0)?;
        let (begin, end) = (Event::new(context)?, Event::new(context)?);
        let measure = |copy: &dyn Fn() -> Result<(), DeviceError>| {
            let mut best = f64::INFINITY;
            for _ in 0..4 {
                begin.record(&stream)?;
                copy()?;
                end.record(&stream)?;
                end.synchronize()?;
                best = best.min(end.since_us(&begin)?);
            }
            Ok::<f64, DeviceError>(BYTES as f64 / best * 1e6)
        };
        Ok(Bandwidth {
            host_to_device: measure(&|| near.copy_in(0, &host, 0, BYTES, &stream))?,
            device_to_host: measure(&|| near.copy_out(0, &host, 0, BYTES, &stream))?,
            device: 2.0 * measure(&|| far.copy_from(&near, BYTES, &stream))?,
        })
    }
}

impl Shared {
    /// Threads that help programs to write large inputs.
    pub(crate) fn crew(&self) -> &Crew {
        self.crew.get_or_init(Crew::new)
    }
}

fn check_capability(gpu: &Gpu, needed: (u32, u32)) -> Result<(), DeviceError> {
    if gpu.compute_capability >= needed {
        return Ok(());
    }
    let (found, Gpu { ordinal, name, .. }) = (gpu.compute_capability, gpu);
    let message = format!(
        "cuda:{ordinal} ({name}) has compute capability {}.{}, needed is {}.{}",
        found.0, found.1, needed.0, needed.1
    );
    Err(DeviceError::new(DeviceErrorKind::Unsupported, message))
}

/// The largest cluster whose blocks each may have all shared memory, as the driver counts.
fn cluster_max(images: &Images, gpu: &Gpu, stream: &Stream) -> Result<u32, DeviceError> {
    for blocks in [16, 8].into_iter().filter(|&blocks| blocks <= gpu.cluster_max) {
        let launch = surround::probe(blocks, gpu.shared_bytes_max);
        let function = images.function(&launch)?;
        function.permit(&launch, gpu)?;
        if function.clusters(&launch, stream)? > 0 {
            return Ok(blocks);
        }
    }
    Ok(0)
}

fn capabilities(context: &Context, gpu: &Gpu, version: i32, options: &CudaOptions) -> Capabilities {
    let mut precisions =
        vec![Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16, Precision::Int8];
    if gpu.has_fp8() {
        precisions.push(Precision::Fp8);
    }
    let (major, minor) = gpu.compute_capability;
    let feature = |name: &str, value: String| (name.to_owned(), value);
    Capabilities {
        kind: DeviceKind::Cuda,
        id: format!("cuda:{}", gpu.ordinal),
        name: gpu.name.clone(),
        precisions,
        memory_bytes: options.memory_bytes_max.unwrap_or(u64::MAX).min(gpu.memory_bytes),
        bindings_max: usize::MAX,
        binding_bytes_max: u64::MAX,
        unified_memory: context.ask(attribute::INTEGRATED) != 0,
        cooperative: gpu.cooperative,
        peak_flops: peak_flops(gpu, context.ask(attribute::CLOCK_KHZ)),
        features: vec![
            feature("compute_capability", format!("{major}.{minor}")),
            feature("driver", format!("CUDA {}", driver::version_name(version))),
            feature("multiprocessors", gpu.multiprocessors.to_string()),
            feature("l2_bytes", gpu.l2_bytes.to_string()),
            feature("cluster_max", gpu.cluster_max.to_string()),
        ],
    }
}

/// Dense operations a second at the highest clock, by what a multiprocessor of each architecture
/// does in a clock cycle (NVIDIA's architecture papers); nothing for those that are not known.
fn peak_flops(gpu: &Gpu, clock_khz: i32) -> Vec<(Precision, f64)> {
    // f32 outside of the tensor cores, tf32, 16-bit with f32 sums, 8-bit.
    let a_cycle = match gpu.compute_capability {
        (8, 0) => [128.0, 1024.0, 2048.0, 4096.0],
        (8, 6) => [256.0, 256.0, 512.0, 2048.0],
        (8, 9) => [256.0, 512.0, 1024.0, 2048.0],
        (9, 0) => [256.0, 2048.0, 4096.0, 8192.0],
        _ => return Vec::new(),
    };
    let cycles = f64::from(gpu.multiprocessors) * f64::from(clock_khz) * 1e3;
    let [f32, tf32, half, byte] = a_cycle.map(|flops| flops * cycles);
    vec![
        (Precision::F32, f32),
        (Precision::Tf32, tf32),
        (Precision::F16, half),
        (Precision::Bf16, half),
        (Precision::Int8, byte),
        (Precision::Fp8, byte),
    ]
}

impl Device for CudaDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn support(&self, op: &Op, precision: Precision) -> Support {
        if !self.shared.capabilities.precisions.contains(&precision) {
            return Support::Unsupported(no_precision(&self.shared, precision));
        }
        if step::has_kernel(op, &self.shared.gpu, precision) {
            return Support::Native;
        }
        let lowerable = match op {
            Op::Linear(linear) => has_epilogue(linear),
            op => is_stack(op),
        };
        if lowerable {
            return Support::Lowered;
        }
        let message = format!("op `{}` in `{}` on CUDA", op.name(), precision.name());
        Support::Unsupported(message)
    }

    fn load(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Resident>, DeviceError> {
        if !self.shared.capabilities.precisions.contains(&options.precision) {
            let message = no_precision(&self.shared, options.precision);
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let resident = CudaResident::load(Arc::clone(&self.shared), plan, weights, options)?;
        Ok(Box::new(resident))
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        self.shared.counters.snapshot()
    }

    fn energy_joules(&self) -> Option<f64> {
        self.telemetry()?.read().energy_joules
    }
}

fn no_precision(shared: &Shared, precision: Precision) -> String {
    let has: Vec<&str> = shared.capabilities.precisions.iter().map(|p| p.name()).collect();
    let Capabilities { id, name, .. } = &shared.capabilities;
    format!("precision `{}` on {id} ({name}), which has {}", precision.name(), has.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(compute_capability: (u32, u32)) -> Gpu {
        Gpu {
            ordinal: 1,
            name: "a GPU".into(),
            compute_capability,
            multiprocessors: 1,
            shared_bytes_max: 49152,
            l2_bytes: 1,
            memory_bytes: 1,
            cluster_max: 0,
            cooperative: true,
        }
    }

    #[test]
    fn an_old_gpu_is_refused_by_name() {
        let error = check_capability(&gpu((7, 5)), COMPUTE_CAPABILITY_MIN).expect_err("too old");
        assert_eq!(error.kind(), DeviceErrorKind::Unsupported);
        let message = error.to_string();
        for part in ["cuda:1", "a GPU", "7.5", "8.0"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(check_capability(&gpu((8, 0)), COMPUTE_CAPABILITY_MIN).is_ok());
        assert!(check_capability(&gpu((8, 9)), (9, 0)).is_err());
    }

    #[test]
    fn an_ordinal_that_nobody_has_is_an_error() {
        let error = CudaDevice::open(4096, CudaOptions::default()).expect_err("there is none");
        assert_eq!(error.kind(), DeviceErrorKind::Unsupported, "{error}");
    }
}
