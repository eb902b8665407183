//! NVIDIA GPUs as the integration guide addresses them: is there one, what is it, open it.
//!
//! A thin face of the CUDA backend. Models do not need it: they take a device by name, or
//! `enable_cuda_acceleration`.

use std::sync::Arc;

pub use neural_forecast_cuda::CudaDevice;
use neural_forecast_cuda::CudaOptions;
use neural_forecast_runtime::device::{Capabilities, Device};

pub use super::cuda_kernels::CudaKernelRegistry;
use crate::config::GPUConfig;
use crate::device::OpenDevice;
use crate::engine::device_error;
use crate::error::{Error, ErrorKind, Result};

/// Whether this machine has an NVIDIA GPU that its driver can use. `false` where there is no
/// driver, or no GPU.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use neural_forecast::gpu::cuda::check_cuda_availability;
///
/// if !check_cuda_availability()? {
///     println!("CUDA not available, falling back to CPU");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `Device`: there is a driver, and it cannot be used; the message says why (it is too old, it
/// does not start).
pub fn check_cuda_availability() -> Result<bool> {
    if !neural_forecast_cuda::is_driver_present() {
        return Ok(false);
    }
    Ok(!neural_forecast_cuda::gpus().map_err(device_error)?.is_empty())
}

/// What a GPU is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeviceProperties {
    /// Number among the driver's devices.
    pub ordinal: usize,
    /// The maker's name.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of level-2 cache.
    pub l2_bytes: u64,
    /// Most bytes of shared memory of a block.
    pub shared_bytes_max: u32,
}

/// An opened NVIDIA GPU.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// #     match neural_forecast::gpu::cuda::check_cuda_availability() {
/// #         Ok(true) => setup_cuda().await,
/// #         absent => { println!("skipped: no CUDA device ({absent:?})"); Ok(()) }
/// #     }
/// # }
/// use neural_forecast::gpu::cuda::{CudaBackend, CudaKernelRegistry};
/// use neural_forecast::config::GPUConfig;
///
/// async fn setup_cuda() -> Result<(), Box<dyn std::error::Error>> {
///     let gpu_config = GPUConfig {
///         memory_limit: Some(8 * 1024 * 1024 * 1024), // 8GB
///         memory_pooling: true,
///         use_unified_memory: false,
///         compute_capability: Some((8, 0)), // Ampere
///         ..Default::default()
///     };
///
///     let cuda_backend = CudaBackend::new(gpu_config)?;
///
///     // Get device properties
///     let properties = cuda_backend.get_device_properties();
///     println!("CUDA Device: Compute Capability {}.{}",
///              properties.compute_capability.0,
///              properties.compute_capability.1);
/// #   assert!(properties.compute_capability >= (8, 0));
///
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct CudaBackend {
    device: Arc<CudaDevice>,
    properties: DeviceProperties,
}

impl CudaBackend {
    /// Opens the first GPU, within the limits of `config`.
    ///
    /// # Errors
    /// `Config`: limits that no device can have; `Device`: no driver, no GPU, or one below the
    /// least compute capability.
    pub fn new(config: GPUConfig) -> Result<Self> {
        Self::on(0, config)
    }

    /// As [`CudaBackend::new`] on a GPU by number.
    ///
    /// # Errors
    /// As there.
    pub fn on(ordinal: usize, config: GPUConfig) -> Result<Self> {
        let device = open(ordinal, &config)?;
        let gpu = device.gpu();
        let properties = DeviceProperties {
            ordinal: gpu.ordinal,
            name: gpu.name.clone(),
            compute_capability: gpu.compute_capability,
            multiprocessors: gpu.multiprocessors,
            memory_bytes: gpu.memory_bytes,
            l2_bytes: gpu.l2_bytes,
            shared_bytes_max: gpu.shared_bytes_max,
        };
        Ok(CudaBackend { device, properties })
    }

    /// What it is.
    pub fn get_device_properties(&self) -> &DeviceProperties {
        &self.properties
    }

    /// The device, for [`CudaKernelRegistry::new`].
    pub fn device(&self) -> Arc<CudaDevice> {
        Arc::clone(&self.device)
    }

    /// The device as models take it.
    pub fn open_device(&self) -> OpenDevice {
        OpenDevice { device: self.device(), fallback: None }
    }
}

/// Opens a GPU within the limits of a configuration.
pub(crate) fn open(ordinal: usize, config: &GPUConfig) -> Result<Arc<CudaDevice>> {
    config.validate()?;
    let options = CudaOptions {
        memory_bytes_max: config.memory_limit,
        compute_capability_min: config.compute_capability,
        memory_pooling: config.memory_pooling,
        unified_memory: config.use_unified_memory,
        linger_us: config.linger_us,
        ..CudaOptions::default()
    };
    let device = CudaDevice::open(ordinal, options).map_err(|error| {
        Error::new(ErrorKind::Device, error)
            .context(format!("device `cuda:{ordinal}` is not available"))
    })?;
    Ok(Arc::new(device))
}

/// What a device can do, with what takes a measurement or the management library to know.
pub(crate) fn described(device: &CudaDevice) -> Capabilities {
    let mut capabilities = device.capabilities().clone();
    let mut add = |name: &str, value: String| capabilities.features.push((name.into(), value));
    match device.copy_bandwidth() {
        Ok(measured) => {
            let gigabytes = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
            add("copy_to_device", gigabytes(measured.host_to_device));
            add("copy_from_device", gigabytes(measured.device_to_host));
            add("copy_on_device", gigabytes(measured.device));
        }
        Err(error) => add("copy_bandwidth", format!("not measured: {error}")),
    }
    if let Ok((free, _)) = device.memory() {
        add("memory_free_bytes", free.to_string());
    }
    if let Some(version) = neural_forecast_cuda::telemetry::driver_version() {
        add("driver_version", version);
    }
    if let Some(telemetry) = device.telemetry() {
        let now = telemetry.read();
        if let Some(watts) = now.power_watts {
            add("power", format!("{watts:.0} W"));
        }
        if let Some(celsius) = now.temperature_celsius {
            add("temperature", format!("{celsius} °C"));
        }
        if let (Some(now), Some(most)) = (now.clock_mhz, now.clock_mhz_max) {
            add("clock", format!("{now} of {most} MHz"));
        }
    }
    capabilities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_before_a_device_is_looked_for() {
        let none = GPUConfig { memory_limit: Some(0), ..GPUConfig::default() };
        let error = CudaBackend::new(none).expect_err("no device has no memory");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = CudaBackend::on(4096, GPUConfig::default()).expect_err("nobody has so many");
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.to_string().contains("cuda:4096"), "{error}");
    }
}
