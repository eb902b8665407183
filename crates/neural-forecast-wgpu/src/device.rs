//! An adapter as a device of the runtime: opened, described, watched.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use neural_forecast_runtime::counters::Counters;
use neural_forecast_runtime::device::{
    Capabilities, Device, DeviceKind, KernelCount, LoadOptions, Precision, Resident, Support,
    WeightSource,
};
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::Plan;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::adapter::{self, AdapterReport};
use crate::cache::{PipelineCache, PipelineCacheReport};
use crate::health::{Health, checked};
use crate::kernel::Pipelines;
use crate::resident::WgpuResident;
use crate::{experiments, step, trial};

/// How an adapter is opened.
#[derive(Clone, Debug, Default)]
pub struct WgpuOptions {
    /// Take adapters of this backend alone: `vulkan`, `metal` or `dx12`.
    pub backend: Option<String>,
    /// Most bytes that the weights, states and programs of one plan may take.
    pub memory_bytes_max: Option<u64>,
    /// Ask for no more than WebGPU guarantees everywhere, whatever the adapter has: neither limits
    /// nor half precision nor matrices of subgroups.
    pub minimum_limits: bool,
    /// Do without matrices that subgroups multiply together, whatever the adapter has.
    pub without_cooperative: bool,
    /// Copy inputs and outputs even where host and device share memory.
    pub without_mappable: bool,
    /// A folder to keep compiled pipelines in, where the driver hands them out (Vulkan). It must be
    /// as trusted as the program itself: a driver takes what is in it as its own.
    pub pipeline_folder: Option<PathBuf>,
}

/// An opened adapter. Residents and programs keep it open.
#[derive(Debug)]
pub struct WgpuDevice {
    shared: Arc<Shared>,
}

/// What a device, its residents and their programs share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    pub(crate) pipelines: Pipelines,
    cache: Option<PipelineCache>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) health: Arc<Health>,
    pub(crate) capabilities: Capabilities,
    pub(crate) memory_bytes_max: Option<u64>,
    /// Whether the host writes and reads storage itself.
    pub(crate) mappable: bool,
    /// Bytes that were copied between memory of the host and memory of the device.
    pub(crate) staged: AtomicU64,
    /// Lanes of the subgroups that multiply matrices of 16 by 16 halves together, where the adapter
    /// lists that, and what came of its trial.
    cooperative: Option<u32>,
    tried: OnceLock<Result<(), String>>,
    report: AdapterReport,
}

impl Shared {
    /// Makes calls with their errors caught; see [`checked`].
    pub(crate) fn checked<T>(
        &self,
        kind: DeviceErrorKind,
        what: &str,
        calls: impl FnOnce() -> T,
    ) -> Result<T, DeviceError> {
        checked(&self.device, &self.health, (kind, what), calls)
    }

    /// A buffer of so many bytes, of zeros.
    pub(crate) fn buffer(
        &self,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, DeviceError> {
        self.create(what, bytes, (usage, false))
    }

    /// The same, mapped for the host to write to; with `MAP_WRITE` it is the very memory that the
    /// device reads.
    pub(crate) fn mapped_buffer(
        &self,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, DeviceError> {
        self.create(what, bytes, (usage, true))
    }

    /// A buffer with these bytes in front.
    pub(crate) fn filled_buffer(
        &self,
        what: &str,
        bytes: &[u8],
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, DeviceError> {
        let size = bytes.len() as u64;
        if !self.mappable {
            let buffer = self.buffer(what, size, usage | wgpu::BufferUsages::COPY_DST)?;
            self.upload(what, &buffer, (0, bytes))?;
            return Ok(buffer);
        }
        let buffer = self.mapped_buffer(what, size, usage | wgpu::BufferUsages::MAP_WRITE)?;
        self.checked(DeviceErrorKind::Execution, what, || {
            match buffer.slice(..).get_mapped_range_mut() {
                Ok(mut view) => view.slice(..bytes.len()).copy_from_slice(bytes),
                Err(error) => {
                    let message = format!("{what} cannot be written: {error}");
                    return Err(DeviceError::new(DeviceErrorKind::Execution, message));
                }
            }
            buffer.unmap();
            Ok(())
        })??;
        Ok(buffer)
    }

    /// Copies bytes to a place in a buffer of the device.
    pub(crate) fn upload(
        &self,
        what: &str,
        buffer: &wgpu::Buffer,
        (at, bytes): (u64, &[u8]),
    ) -> Result<(), DeviceError> {
        let copy = || self.queue.write_buffer(buffer, at, bytes);
        self.checked(DeviceErrorKind::Execution, what, copy)?;
        self.staged.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn create(
        &self,
        what: &str,
        bytes: u64,
        (usage, mapped_at_creation): (wgpu::BufferUsages, bool),
    ) -> Result<wgpu::Buffer, DeviceError> {
        let most = self.limits.max_buffer_size;
        if bytes > most {
            let message =
                format!("{what}: a buffer of {bytes} bytes, the device has {most} at most");
            return Err(DeviceError::new(DeviceErrorKind::OutOfMemory, message));
        }
        let descriptor = wgpu::BufferDescriptor {
            label: Some(what),
            size: bytes.max(16).next_multiple_of(16),
            usage,
            mapped_at_creation,
        };
        let create = || self.device.create_buffer(&descriptor);
        self.checked(DeviceErrorKind::OutOfMemory, what, create)
    }

    /// Keeps what pipelines were made, where that is wanted.
    pub(crate) fn save_pipelines(&self) {
        if let Some(cache) = &self.cache {
            cache.save(self.pipelines.count());
        }
    }

    /// Most bytes that a storage binding may have.
    pub(crate) fn binding_bytes_max(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size
    }
}

impl WgpuDevice {
    /// Opens an adapter by its number in [`crate::adapters`] of the same backend.
    ///
    /// # Errors
    /// `Unsupported` without a driver or an adapter of this number, `OutOfMemory` or `Lost` where
    /// it gives no device.
    pub fn open(ordinal: usize, options: WgpuOptions) -> Result<WgpuDevice, DeviceError> {
        let backends = adapter::backends(options.backend.as_deref())?;
        let mut adapters = adapter::find(backends)?;
        if ordinal >= adapters.len() {
            let message = format!("gpu:{ordinal} of {} WebGPU adapters", adapters.len());
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        WgpuDevice::from_adapter(ordinal, &adapters.swap_remove(ordinal), &options)
    }

    /// As [`WgpuDevice::open`], of the device that computes nothing and checks every call, with the
    /// least that WebGPU guarantees.
    ///
    /// # Errors
    /// Where wgpu gives none.
    #[cfg(test)]
    pub(crate) fn open_noop(options: &WgpuOptions) -> Result<WgpuDevice, DeviceError> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::NOOP;
        descriptor.backend_options.noop = wgpu::NoopBackendOptions::enabled();
        let instance = wgpu::Instance::new(descriptor);
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::NOOP));
        let none = || DeviceError::new(DeviceErrorKind::Unsupported, "no noop adapter");
        WgpuDevice::from_adapter(0, adapters.first().ok_or_else(none)?, options)
    }

    /// Every shader variant made so far.
    #[cfg(test)]
    pub(crate) fn variants(&self) -> Vec<(crate::kernel::Key, crate::kernel::Constants)> {
        self.shared.pipelines.variants()
    }

    fn from_adapter(
        ordinal: usize,
        adapter: &wgpu::Adapter,
        options: &WgpuOptions,
    ) -> Result<WgpuDevice, DeviceError> {
        let report = adapter::report(ordinal, &adapter.get_info());
        let limits = match options.minimum_limits {
            true => wgpu::Limits::defaults(),
            false => adapter.limits(),
        };
        let cooperative = cooperative(adapter, &limits, options);
        let mappable = unified(&adapter.get_info())
            && !options.minimum_limits
            && !options.without_mappable
            && adapter.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS, mappable);
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if !options.minimum_limits {
            features |=
                adapter.features() & (wgpu::Features::SHADER_F16 | wgpu::Features::TIMESTAMP_QUERY);
        }
        if options.pipeline_folder.is_some() {
            features |= adapter.features() & wgpu::Features::PIPELINE_CACHE;
        }
        if cooperative.is_some() {
            features |= COOPERATIVE;
            experimental_features = experiments::wanted();
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("neural-forecast"),
            required_features: features,
            required_limits: limits,
            experimental_features,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| {
            let message = format!("gpu:{ordinal} ({}): {error}", report.name);
            DeviceError::new(DeviceErrorKind::Unsupported, message)
        })?;
        let health = Arc::new(Health::default());
        let kept = Arc::clone(&health);
        device.on_uncaptured_error(Arc::new(move |error| kept.record(&error)));
        let lost = Arc::clone(&health);
        let name = format!("gpu:{ordinal} ({})", report.name);
        device.set_device_lost_callback(move |reason, message| {
            lost.lose(format!("{name}: {reason:?} {message}").trim_end().to_owned());
        });
        let limits = device.limits();
        let folder = options.pipeline_folder.as_deref();
        let place = (&device, &*health);
        let cache = folder.map(|folder| PipelineCache::open(folder, &adapter.get_info(), place));
        let cache = cache.transpose()?;
        let handle = cache.as_ref().and_then(PipelineCache::handle);
        let place = (DeviceErrorKind::Compile, "binding layouts");
        let pipelines = checked(&device, &health, place, || Pipelines::new(&device, handle))?;
        let capabilities = capabilities(&report, adapter, (&limits, features), options);
        let shared = Shared {
            device,
            queue,
            limits,
            pipelines,
            cache,
            counters: Arc::default(),
            health,
            capabilities,
            memory_bytes_max: options.memory_bytes_max,
            mappable,
            staged: AtomicU64::new(0),
            cooperative,
            tried: OnceLock::new(),
            report,
        };
        Ok(WgpuDevice { shared: Arc::new(shared) })
    }

    /// The adapter's facts.
    pub fn adapter(&self) -> &AdapterReport {
        &self.shared.report
    }

    /// What came of the trial of matrices that subgroups multiply together: nothing before the
    /// first plan is loaded in half precision or where the adapter does not list them, an error
    /// with the reason where products go without.
    pub fn cooperative_trial(&self) -> Option<Result<(), &str>> {
        let tried = self.shared.tried.get()?;
        Some(tried.as_ref().copied().map_err(String::as_str))
    }

    /// What became of the folder of compiled pipelines, if there is to be one.
    pub fn pipeline_cache(&self) -> Option<PipelineCacheReport> {
        self.shared.cache.as_ref().map(PipelineCache::report)
    }

    /// Bytes that were copied between memory of the host and memory of the device since it was
    /// opened: weights, inputs, run headers, outputs. Where host and device share memory and the
    /// adapter lets storage be mapped, forecasts copy nothing.
    pub fn staged_bytes(&self) -> u64 {
        self.shared.staged.load(Ordering::Relaxed)
    }

    /// For what tries a device.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Lanes of the subgroups that multiply matrices together in a plan of this precision.
    fn lanes(&self, precision: Precision) -> Option<u32> {
        let lanes = self.shared.cooperative.filter(|_| precision == Precision::F16)?;
        let tried = self.shared.tried.get_or_init(|| trial::run(&self.shared, Some(lanes)));
        tried.is_ok().then_some(lanes)
    }

    /// Gives the device up as a driver does that resets it: everything on it answers
    /// [`DeviceErrorKind::Lost`] from then on.
    pub fn destroy(&self) {
        self.shared.device.destroy();
        // The callback may come later, or not at all for a loss by one's own hand.
        self.shared.health.lose(format!("{} was given up", self.shared.capabilities.id));
    }
}

/// Whether host and device share memory.
fn unified(info: &wgpu::AdapterInfo) -> bool {
    matches!(info.device_type, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu)
}

/// Features that matrices of subgroups need.
const COOPERATIVE: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::SHADER_F16);

/// Most bytes of workgroup memory that the smallest tile of `linear_cooperative` takes.
const COOPERATIVE_BYTES: u32 = 20 << 10;

/// Lanes of the subgroups that multiply matrices of 16 by 16 halves together and add them up in
/// single precision, where the adapter lists that and all its subgroups have one size.
fn cooperative(
    adapter: &wgpu::Adapter,
    limits: &wgpu::Limits,
    options: &WgpuOptions,
) -> Option<u32> {
    let listed = adapter.cooperative_matrix_properties().iter().any(|known| {
        (known.m_size, known.n_size, known.k_size) == (16, 16, 16)
            && known.ab_type == wgpu::CooperativeScalarType::F16
            && known.cr_type == wgpu::CooperativeScalarType::F32
    });
    let info = adapter.get_info();
    let lanes = info.subgroup_min_size;
    let usable = !options.minimum_limits
        && !options.without_cooperative
        && listed
        && adapter.features().contains(COOPERATIVE)
        && info.subgroup_max_size == lanes
        && (lanes == 32 || lanes == 64)
        && limits.max_compute_workgroup_storage_size >= COOPERATIVE_BYTES
        && limits.max_compute_invocations_per_workgroup >= 8 * lanes;
    usable.then_some(lanes)
}

/// What the adapter lists: rows, columns and depth, format of operands and of sums.
fn configurations(adapter: &wgpu::Adapter) -> String {
    let name = |known: &wgpu::CooperativeMatrixProperties| {
        let (m, n, k) = (known.m_size, known.n_size, known.k_size);
        format!("{m}x{n}x{k} {:?} {:?}", known.ab_type, known.cr_type).to_lowercase()
    };
    let mut all: Vec<String> = adapter.cooperative_matrix_properties().iter().map(name).collect();
    all.dedup();
    if all.is_empty() { "no".to_owned() } else { all.join(", ") }
}

fn capabilities(
    report: &AdapterReport,
    adapter: &wgpu::Adapter,
    (limits, enabled): (&wgpu::Limits, wgpu::Features),
    options: &WgpuOptions,
) -> Capabilities {
    let info = adapter.get_info();
    let feature = |name: &str, value: String| (name.to_owned(), value);
    let has = |what: wgpu::Features| match adapter.features().contains(what) {
        true => "yes".to_owned(),
        false => "no".to_owned(),
    };
    let mut precisions = vec![Precision::F32];
    if enabled.contains(wgpu::Features::SHADER_F16) {
        precisions.push(Precision::F16);
    }
    Capabilities {
        kind: DeviceKind::Gpu,
        id: format!("gpu:{}", report.ordinal),
        name: report.name.clone(),
        precisions,
        // WebGPU tells no more of a device's memory than its largest buffer.
        memory_bytes: options.memory_bytes_max.unwrap_or(u64::MAX).min(limits.max_buffer_size),
        bindings_max: limits.max_storage_buffers_per_shader_stage as usize,
        binding_bytes_max: limits.max_storage_buffer_binding_size,
        unified_memory: unified(&info),
        // A grid cannot wait for itself in WebGPU.
        cooperative: false,
        peak_flops: Vec::new(),
        features: vec![
            feature("backend", report.backend.to_owned()),
            feature("type", report.device_type.to_owned()),
            feature("driver", report.driver.clone()),
            feature("binding_bytes_max", limits.max_storage_buffer_binding_size.to_string()),
            feature("buffer_bytes_max", limits.max_buffer_size.to_string()),
            feature("workgroup_bytes_max", limits.max_compute_workgroup_storage_size.to_string()),
            feature(
                "workgroup_invocations_max",
                limits.max_compute_invocations_per_workgroup.to_string(),
            ),
            feature("subgroups", format!("{}..{}", info.subgroup_min_size, info.subgroup_max_size)),
            feature("subgroup_operations", has(wgpu::Features::SUBGROUP)),
            feature("shader_f16", has(wgpu::Features::SHADER_F16)),
            feature("cooperative_matrix", configurations(adapter)),
            feature("mappable_storage", has(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)),
            feature("pipeline_cache", has(wgpu::Features::PIPELINE_CACHE)),
            feature("timestamps", has(wgpu::Features::TIMESTAMP_QUERY)),
        ],
    }
}

impl Device for WgpuDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn support(&self, op: &Op, precision: Precision) -> Support {
        if !self.shared.capabilities.precisions.contains(&precision) {
            return Support::Unsupported(no_precision(&self.shared, precision));
        }
        match op {
            Op::EncoderStack(_) | Op::DecoderStack(_) => Support::Lowered,
            _ if step::has_kernel(op) => Support::Native,
            _ => Support::Unsupported(format!("op `{}` on WebGPU", op.name())),
        }
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
        let gpu = Arc::clone(&self.shared);
        let lanes = self.lanes(options.precision);
        let resident = WgpuResident::load(gpu, plan, weights, (options, lanes))?;
        Ok(Box::new(resident))
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        self.shared.counters.snapshot()
    }
}

fn no_precision(shared: &Shared, precision: Precision) -> String {
    let Capabilities { id, name, precisions, .. } = &shared.capabilities;
    let known: Vec<&str> = precisions.iter().map(|known| known.name()).collect();
    format!("precision `{}` on {id} ({name}), which has {}", precision.name(), known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_says_so_and_goes_on() {
        // It has no limits of its own, and the host has no pebibyte.
        let device = WgpuDevice::open_noop(&WgpuOptions::default()).expect("it is always there");
        let (gpu, storage) = (device.shared(), wgpu::BufferUsages::STORAGE);
        let map = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        for _ in 0..2 {
            let huge = gpu.buffer("weights", 1 << 50, storage);
            for refused in [huge, gpu.mapped_buffer("weights", 1 << 50, map)] {
                let error = refused.expect_err("nobody has so much");
                assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory, "{error}");
                assert!(error.to_string().contains("weights"), "{error}");
            }
            gpu.filled_buffer("weights", &[1; 64], storage).expect("a little is there");
            gpu.health.check().expect("nothing is left of it");
        }
    }
}
