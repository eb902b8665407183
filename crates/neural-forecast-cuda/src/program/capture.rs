//! A program's launches as graphs: how many, and whether a launch is resident at once.
//!
//! Runs nothing.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::{ProgramInfo, YIELD_US_MAX};

use crate::device::Shared as Gpu;
use crate::driver::{Function, Graph, Stream};
use crate::launch::Launch;
use crate::resident::Shared;

/// How many graphs a program is, so that each takes about a yield interval. An estimate: a third
/// of the peak, and 2 µs a launch at least.
pub(super) fn segments(info: &ProgramInfo, shared: &Shared, launches: usize) -> usize {
    let peak = shared.gpu.capabilities.peak(info.precision).unwrap_or(1e13);
    let us = (info.flops as f64 / peak * 3e6).max(2.0 * launches as f64);
    ((us / YIELD_US_MAX as f64) as usize).clamp(1, launches.max(1))
}

/// Whether all blocks of a launch are resident at once on a device that does nothing else.
pub(super) fn is_resident(gpu: &Gpu, launch: &Launch) -> bool {
    let fits = || -> Result<bool, DeviceError> {
        let function = gpu.images.function(launch)?;
        function.permit(launch, &gpu.gpu)?;
        if launch.cluster == 1 {
            return Ok(true);
        }
        let clusters = function.clusters(launch, &gpu.exclusive)?;
        Ok(launch.grid[0] as usize <= clusters * launch.cluster as usize)
    };
    // One that cannot be asked about runs without.
    fits().unwrap_or(false)
}

/// The launches as so many graphs.
pub(super) fn graphs(
    shared: &Shared,
    launches: &[Launch],
    parts: usize,
    stream: &Stream,
) -> Result<Vec<Graph>, DeviceError> {
    let gpu = &shared.gpu;
    let mut kernels = Vec::new();
    for launch in launches {
        let function = gpu.images.function(launch)?;
        function.permit(launch, &gpu.gpu)?;
        kernels.push((function, launch));
    }
    let graph = |kernels: &[(Function, &Launch)]| {
        stream.capture(|stream| {
            kernels.iter().try_for_each(|(function, launch)| function.launch(launch, stream))
        })
    };
    kernels.chunks(kernels.len().div_ceil(parts).max(1)).map(graph).collect()
}
