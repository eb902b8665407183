//! Which device runs a forecast: by name, by environment, or the best that is there.
//!
//! Opens devices. Does not fall back behind the caller's back: a device that was named and is not
//! there is an error, and a fallback that was asked for is in the result with its reason.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use neural_forecast_runtime::device::{Capabilities, Device};

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

/// Opens a device. `auto` is what [`DEVICE_VARIABLE`] names, or else the CPU (the other backends
/// arrive with their features); [`FALLBACK_VARIABLE`] puts the CPU in the place of any device.
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
        DeviceChoice::Auto | DeviceChoice::Cpu => open_cpu(options, None),
        other if forced => {
            let reason = format!("{FALLBACK_VARIABLE} puts the CPU in the place of `{other}`");
            open_cpu(options, Some(reason))
        }
        other => Err(Error::new(ErrorKind::Device, unavailable(other))),
    }
}

/// All devices that this build knows, usable or not.
pub fn list(options: &DeviceOptions) -> Vec<DeviceReport> {
    let cpu = open_cpu(options, None)
        .map(|open| open.device.capabilities().clone())
        .map_err(|error| error.to_string());
    let absent = |choice| DeviceReport { id: format!("{choice}"), state: Err(unavailable(choice)) };
    vec![
        DeviceReport { id: "cpu".to_string(), state: cpu },
        absent(DeviceChoice::Cuda(0)),
        absent(DeviceChoice::Gpu(0)),
    ]
}

fn open_cpu(options: &DeviceOptions, fallback: Option<String>) -> Result<OpenDevice> {
    let cpu = neural_forecast_cpu::CpuOptions { threads: options.threads, ..Default::default() };
    let device = neural_forecast_cpu::CpuDevice::new(cpu).map_err(device_error)?;
    Ok(OpenDevice { device: Arc::new(device), fallback })
}

fn unavailable(choice: DeviceChoice) -> String {
    let (backend, feature) = match choice {
        DeviceChoice::Gpu(_) => ("WebGPU", "gpu"),
        _ => ("CUDA", "cuda"),
    };
    format!(
        "device `{choice}` is not available: this version has no {backend} backend yet (feature \
         `{feature}`); use `cpu`, or set {FALLBACK_VARIABLE}=1"
    )
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
