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

/// The tiers to test: every one of this machine, or with `NF_TIERS=best` the best alone, where what
/// is looked for does not depend on instructions.
pub(crate) fn tiers() -> Vec<Isa> {
    let all = Isa::available();
    match std::env::var("NF_TIERS").as_deref() {
        Err(_) => all,
        Ok("best") => all.into_iter().next_back().into_iter().collect(),
        Ok(other) => panic!("NF_TIERS: expected `best` or nothing, found `{other}`"),
    }
}
