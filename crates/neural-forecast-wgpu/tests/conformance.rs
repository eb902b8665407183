//! Every op on a WebGPU adapter, compared with the reference implementations.
//!
//! The cases are the runtime's, shared by all devices. Without an adapter nothing is tested, which
//! is printed; `NF_REQUIRE=wgpu` makes that a failure. `NF_CASES=linear,norm` keeps the cases whose
//! names begin so.

use neural_forecast_runtime::device::{Device, LoadOptions};
use neural_forecast_runtime::testing::{Case, cases, conform_all, device_or_skip};
use neural_forecast_wgpu::{WgpuDevice, WgpuOptions};

/// The first adapter, unless there is none and nobody insists.
fn device(options: WgpuOptions) -> Option<WgpuDevice> {
    device_or_skip("wgpu", WgpuDevice::open(0, options))
}

/// The cases that were asked for.
fn wanted() -> Vec<Case> {
    let prefixes = std::env::var("NF_CASES").unwrap_or_default();
    let prefixes: Vec<&str> = prefixes.split(',').filter(|prefix| !prefix.is_empty()).collect();
    let wanted = |case: &Case| {
        prefixes.is_empty() || prefixes.iter().any(|prefix| case.name.starts_with(prefix))
    };
    cases().into_iter().filter(wanted).collect()
}

fn check(device: &WgpuDevice, fuse: bool, lower: bool) {
    let cases = wanted();
    let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
    let (ran, failures) = conform_all(device, &cases, &options);
    println!(
        "{}, fuse {fuse}: {ran} of {} ran, {} failed",
        device.capabilities().name,
        cases.len(),
        failures.len()
    );
    assert!(failures.is_empty(), "fuse {fuse}:\n{}", failures.join("\n"));
    assert_eq!(ran, cases.len(), "some cases were not supported");
}

#[test]
fn every_op_fused() {
    let Some(device) = device(WgpuOptions::default()) else { return };
    check(&device, true, false);
}

#[test]
fn every_op_on_its_own_with_the_least_that_webgpu_guarantees() {
    let options = WgpuOptions { minimum_limits: true, ..WgpuOptions::default() };
    let Some(device) = device(options) else { return };
    check(&device, false, true);
}
