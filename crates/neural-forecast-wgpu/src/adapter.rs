//! The adapters that a machine has: listed, chosen, described.
//!
//! Opens no device.

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

/// An adapter as people want to know it.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// Its number, which [`crate::WgpuDevice::open`] takes.
    pub ordinal: usize,
    /// The maker's name.
    pub name: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `CPU` or `other`.
    pub device_type: &'static str,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: &'static str,
    /// The driver's name and version.
    pub driver: String,
}

/// The backends that a choice by name leaves; all that this build has without a name.
///
/// # Errors
/// `Unsupported` where no backend has the name.
pub(crate) fn backends(name: Option<&str>) -> Result<wgpu::Backends, DeviceError> {
    let known = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    match name {
        None => Ok(known),
        Some("vulkan") => Ok(wgpu::Backends::VULKAN),
        Some("metal") => Ok(wgpu::Backends::METAL),
        Some("dx12") => Ok(wgpu::Backends::DX12),
        Some(other) => Err(DeviceError::new(
            DeviceErrorKind::Unsupported,
            format!("unknown backend `{other}`, expected vulkan, metal or dx12"),
        )),
    }
}

/// The adapters of some backends, real GPUs first; otherwise in the drivers' order.
///
/// # Errors
/// `Unsupported` where there is none.
pub(crate) fn find(backends: wgpu::Backends) -> Result<Vec<wgpu::Adapter>, DeviceError> {
    let built = wgpu::Instance::enabled_backend_features() & backends;
    let none = |why: &str| Err(DeviceError::new(DeviceErrorKind::Unsupported, why.to_owned()));
    if built.is_empty() {
        return none("this build has none of the backends that were asked for");
    }
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = built;
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(built));
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    if adapters.is_empty() {
        return none("no WebGPU adapter: no driver for Vulkan, Metal or DX12 was found");
    }
    Ok(adapters)
}

/// Real GPUs before software.
fn rank(device_type: wgpu::DeviceType) -> usize {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// Every adapter of this machine, in the order of their numbers; of one backend where it is named
/// (`vulkan`, `metal`, `dx12`).
///
/// # Errors
/// `Unsupported` where there is none, or no backend has the name.
pub fn adapters(backend: Option<&str>) -> Result<Vec<AdapterReport>, DeviceError> {
    let adapters = find(backends(backend)?)?;
    Ok(adapters
        .iter()
        .enumerate()
        .map(|(ordinal, adapter)| report(ordinal, &adapter.get_info()))
        .collect())
}

pub(crate) fn report(ordinal: usize, info: &wgpu::AdapterInfo) -> AdapterReport {
    let driver = format!("{} {}", info.driver, info.driver_info);
    AdapterReport {
        ordinal,
        name: info.name.clone(),
        device_type: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "CPU",
            wgpu::DeviceType::Other => "other",
        },
        backend: info.backend.to_str(),
        driver: driver.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_nobody_has_is_refused_by_name() {
        let error = backends(Some("glide")).expect_err("there is none");
        assert_eq!(error.kind(), DeviceErrorKind::Unsupported);
        assert!(error.to_string().contains("`glide`"), "{error}");
        assert_eq!(backends(Some("vulkan")).expect("it is one"), wgpu::Backends::VULKAN);
    }
}
