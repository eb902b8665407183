//! What the driver's management library says of a GPU: power, energy, temperature, clocks.
//!
//! Reads only; nothing here changes a setting. Absent where the library is: a GPU computes without
//! it.

use std::sync::OnceLock;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};

/// The library, opened once a process; the reason where it cannot be.
static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();

fn nvml() -> Result<&'static Nvml, String> {
    let opened = NVML.get_or_init(|| {
        // Distributions without development packages have the versioned name alone.
        let versioned = std::ffi::OsStr::new("libnvidia-ml.so.1");
        Nvml::builder()
            .lib_path(versioned)
            .init()
            .or_else(|_| Nvml::init())
            .map_err(|e| format!("the NVIDIA management library cannot be used: {e}"))
    });
    opened.as_ref().map_err(Clone::clone)
}

/// A moment of a GPU; what it does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Power now, in watts.
    pub power_watts: Option<f64>,
    /// Energy since the driver was loaded, in joules.
    pub energy_joules: Option<f64>,
    /// Temperature of the chip, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Clock of the streaming multiprocessors now, in MHz.
    pub clock_mhz: Option<u32>,
    /// Highest clock of the streaming multiprocessors, in MHz.
    pub clock_mhz_max: Option<u32>,
}

/// A GPU as the management library knows it.
#[derive(Clone, Debug)]
pub struct Telemetry {
    bus_id: String,
}

impl Telemetry {
    /// The GPU at a PCI bus id such as `0000:3b:00.0`.
    ///
    /// # Errors
    /// Why the library is not there, or does not know the GPU.
    pub fn new(bus_id: impl Into<String>) -> Result<Telemetry, String> {
        let bus_id = bus_id.into();
        nvml()?
            .device_by_pci_bus_id(bus_id.as_str())
            .map_err(|e| format!("the NVIDIA management library has no GPU at `{bus_id}`: {e}"))?;
        Ok(Telemetry { bus_id })
    }

    /// A moment of it.
    pub fn read(&self) -> Reading {
        let Some(device) =
            nvml().ok().and_then(|nvml| nvml.device_by_pci_bus_id(self.bus_id.as_str()).ok())
        else {
            return Reading::default();
        };
        Reading {
            power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            energy_joules: device
                .total_energy_consumption()
                .ok()
                .map(|millijoules| millijoules as f64 / 1e3),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            clock_mhz: device.clock_info(Clock::SM).ok(),
            clock_mhz_max: device.max_clock_info(Clock::SM).ok(),
        }
    }
}

/// The driver's version as the management library prints it, for example `580.159.04`.
pub fn driver_version() -> Option<String> {
    nvml().ok()?.sys_driver_version().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_is_refused() {
        let refused = Telemetry::new("ffff:ff:1f.7").expect_err("no such address");
        assert!(refused.contains("NVIDIA management library"), "{refused}");
    }
}
