//! What several tests of the backend begin with. No test of its own.

use neural_forecast_cpu::{CpuDevice, CpuOptions, Isa};

/// A device of this tier that shares even the smallest program among its threads.
pub(crate) fn device(isa: Isa, threads: usize) -> CpuDevice {
    let options = CpuOptions {
        threads: Some(threads),
        isa: Some(isa.name().into()),
        alone_flops: Some(0),
        ..CpuOptions::default()
    };
    CpuDevice::new(options).expect("this machine has the instruction set")
}
