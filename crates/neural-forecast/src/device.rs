//! Which device runs a forecast: by name, by environment, or the best that is there.
//!
//! Opens devices. Does not fall back behind the caller's back: a device that was named and is not
//! there is an error, and a fallback that was asked for is in the result with its reason.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use neural_forecast_runtime::device::{Capabilities, Device};

use crate::config::GPUConfig;
use crate::engine::device_error;
use crate::error::{Error, ErrorKind, Result};

/// Environment variable that names the device where the caller leaves it to `auto`.
pub const DEVICE_VARIABLE: &str = "NEURAL_FORECAST_DEVICE";

/// Environment variable that forces the CPU, whatever was asked for: `1` or `true`.
pub const FALLBACK_VARIABLE: &str = "FORCE_CPU_FALLBACK";

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best device that this build has and this machine offers.
    #[default]
    Auto,
    /// This host's processor.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
    /// A WebGPU adapter by number.
    Gpu(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let (kind, number) = match name.split_once(':') {
            Some((kind, number)) => (kind, number.parse().ok()),
            None => (name, Some(0)),
        };
        match (kind, number) {
            ("auto", Some(0)) if name == "auto" => Ok(DeviceChoice::Auto),
            ("cpu", Some(0)) if name == "cpu" => Ok(DeviceChoice::Cpu),
            ("cuda", Some(n)) => Ok(DeviceChoice::Cuda(n)),
            ("gpu", Some(n)) => Ok(DeviceChoice::Gpu(n)),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("unknown device `{name}`, expected auto, cpu, cuda[:N] or gpu[:N]"),
            )),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
            DeviceChoice::Gpu(n) => write!(f, "gpu:{n}"),
        }
    }
}

/// How devices are opened.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Threads of the CPU engine; `None` is what this process may use.
    pub threads: Option<usize>,
    /// Limits and wishes for a GPU.
    pub gpu: GPUConfig,
}

/// An opened device, and why it is not the one that was asked for.
#[derive(Clone, Debug)]
pub struct OpenDevice {
    /// The device.
    pub device: Arc<dyn Device>,
    /// The reason, where the CPU stands in for another device.
    pub fallback: Option<String>,
}

/// A row of the list of devices.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// How to name it, for example `cpu`.
    pub id: String,
    /// What it can do, or why it cannot be used.
    pub state: std::result::Result<Capabilities, String>,
}

/// Opens a device. `auto` is what [`DEVICE_VARIABLE`] names, or else the first NVIDIA GPU where
/// this build has the feature `cuda` and the machine a driver, or else the CPU, with the reason in
/// the result where a driver is there and its GPU cannot be used; [`FALLBACK_VARIABLE`] puts the
/// CPU in the place of any device. A WebGPU adapter is taken only where it is named: in `f32`,
/// which forecasts have by default, even a large one answers a small forecast later than the CPU.
///
/// # Errors
/// `Device`: it is not in this build or not on this machine; `Usage`: an unknown name in the
/// environment.
pub fn open(choice: DeviceChoice, options: &DeviceOptions) -> Result<OpenDevice> {
    let choice = match (choice, std::env::var(DEVICE_VARIABLE)) {
        (DeviceChoice::Auto, Ok(name)) if !name.is_empty() => {
            name.parse::<DeviceChoice>().map_err(|e| e.context(DEVICE_VARIABLE))?
        }
        _ => choice,
    };
    let forced = std::env::var(FALLBACK_VARIABLE).is_ok_and(|v| v == "1" || v == "true");
    match choice {
        DeviceChoice::Cpu => open_cpu(options, None),
        DeviceChoice::Auto if forced => open_cpu(options, None),
        DeviceChoice::Auto => open_best(options),
        other if forced => {
            let reason = format!("{FALLBACK_VARIABLE} puts the CPU in the place of `{other}`");
            open_cpu(options, Some(reason))
        }
        DeviceChoice::Cuda(ordinal) => open_cuda(ordinal, options),
        DeviceChoice::Gpu(ordinal) => open_gpu(ordinal, options),
    }
}

/// The first NVIDIA GPU, or the CPU with the reason where one is there and cannot be used.
#[cfg(feature = "cuda")]
fn open_best(options: &DeviceOptions) -> Result<OpenDevice> {
    if !neural_forecast_cuda::is_driver_present() {
        return open_cpu(options, None);
    }
    match open_cuda(0, options) {
        Ok(opened) => Ok(opened),
        Err(error) => open_cpu(options, Some(format!("`cuda:0` cannot be used: {error}"))),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_best(options: &DeviceOptions) -> Result<OpenDevice> {
    open_cpu(options, None)
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize, options: &DeviceOptions) -> Result<OpenDevice> {
    let device = crate::gpu::cuda::open(ordinal, &options.gpu)?;
    Ok(OpenDevice { device, fallback: None })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(ordinal: usize, _options: &DeviceOptions) -> Result<OpenDevice> {
    Err(Error::new(ErrorKind::Device, unavailable(DeviceChoice::Cuda(ordinal))))
}

/// Every NVIDIA GPU, or why there is none.
#[cfg(feature = "cuda")]
fn list_cuda(options: &DeviceOptions) -> Vec<DeviceReport> {
    let report = |choice: DeviceChoice, state| DeviceReport { id: choice.to_string(), state };
    match neural_forecast_cuda::gpus() {
        Err(error) => vec![report(DeviceChoice::Cuda(0), Err(error.to_string()))],
        Ok(gpus) => gpus
            .iter()
            .map(|gpu| {
                let opened = crate::gpu::cuda::open(gpu.ordinal, &options.gpu);
                let state = opened.map_err(|error| error.to_string());
                let state = state.map(|device| crate::gpu::cuda::described(&device));
                report(DeviceChoice::Cuda(gpu.ordinal), state)
            })
            .collect(),
    }
}

#[cfg(not(feature = "cuda"))]
fn list_cuda(_options: &DeviceOptions) -> Vec<DeviceReport> {
    let choice = DeviceChoice::Cuda(0);
    vec![DeviceReport { id: choice.to_string(), state: Err(unavailable(choice)) }]
}

#[cfg(feature = "gpu")]
fn open_gpu(ordinal: usize, options: &DeviceOptions) -> Result<OpenDevice> {
    let device = crate::gpu::webgpu::open(ordinal, &options.gpu)?;
    Ok(OpenDevice { device, fallback: None })
}

#[cfg(not(feature = "gpu"))]
fn open_gpu(ordinal: usize, _options: &DeviceOptions) -> Result<OpenDevice> {
    Err(Error::new(ErrorKind::Device, unavailable(DeviceChoice::Gpu(ordinal))))
}

/// Every WebGPU adapter, or why there is none.
#[cfg(feature = "gpu")]
fn list_gpu(options: &DeviceOptions) -> Vec<DeviceReport> {
    let report = |choice: DeviceChoice, state| DeviceReport { id: choice.to_string(), state };
    match neural_forecast_wgpu::adapters(options.gpu.preferred_backend.as_deref()) {
        Err(error) => vec![report(DeviceChoice::Gpu(0), Err(error.to_string()))],
        Ok(adapters) => adapters
            .iter()
            .map(|adapter| {
                let opened = crate::gpu::webgpu::open(adapter.ordinal, &options.gpu);
                let state = opened.map(|device| device.capabilities().clone());
                let state = state.map_err(|error| format!("{}: {error}", adapter.name));
                report(DeviceChoice::Gpu(adapter.ordinal), state)
            })
            .collect(),
    }
}

#[cfg(not(feature = "gpu"))]
fn list_gpu(_options: &DeviceOptions) -> Vec<DeviceReport> {
    let choice = DeviceChoice::Gpu(0);
    vec![DeviceReport { id: choice.to_string(), state: Err(unavailable(choice)) }]
}

/// All devices that this build knows, usable or not.
pub fn list(options: &DeviceOptions) -> Vec<DeviceReport> {
    let cpu = open_cpu(options, None)
        .map(|open| open.device.capabilities().clone())
        .map_err(|error| error.to_string());
    let mut reports = vec![DeviceReport { id: "cpu".to_string(), state: cpu }];
    reports.extend(list_cuda(options));
    reports.extend(list_gpu(options));
    reports
}

fn open_cpu(options: &DeviceOptions, fallback: Option<String>) -> Result<OpenDevice> {
    let cpu = neural_forecast_cpu::CpuOptions { threads: options.threads, ..Default::default() };
    let device = neural_forecast_cpu::CpuDevice::new(cpu).map_err(device_error)?;
    Ok(OpenDevice { device: Arc::new(device), fallback })
}

#[cfg(not(all(feature = "cuda", feature = "gpu")))]
fn unavailable(choice: DeviceChoice) -> String {
    let why = match choice {
        DeviceChoice::Gpu(_) => "this build has no WebGPU backend (feature `gpu`)",
        _ => "this build has no CUDA backend (feature `cuda`)",
    };
    format!("device `{choice}` is not available: {why}; use `cpu`, or set {FALLBACK_VARIABLE}=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "gpu:1"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for name in ["", "CPU", "cpu:0", "cuda:", "cuda:-1", "gpu:x", "tpu", "auto:1"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }
}
