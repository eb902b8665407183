//! Every op on a WebGPU adapter, compared with the reference implementations.
//!
//! The cases are the runtime's, shared by all devices. Without an adapter nothing is tested, which
//! is printed; `NF_REQUIRE=wgpu` makes that a failure. `NF_CASES=linear,norm` keeps the cases whose
//! names begin so, `NF_PRECISION=f16` tests one precision instead of all that the adapter has.

mod shared;

use neural_forecast_runtime::device::{Device, LoadOptions, Precision};
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

/// What half precision may add: weights are rounded to 11 bits, and operands too where subgroups
/// multiply matrices.
const HALF: f64 = 6e-3;

fn check(device: &WgpuDevice, (fuse, lower): (bool, bool)) {
    let only = std::env::var("NF_PRECISION").ok().filter(|name| !name.is_empty());
    let only = only.map(|name| name.parse::<Precision>().expect("NF_PRECISION is a precision"));
    let mut checked = 0;
    for &precision in &device.capabilities().precisions {
        if only.is_some_and(|only| only != precision) {
            continue;
        }
        let more = if precision == Precision::F32 { 0.0 } else { HALF };
        let cases: Vec<Case> = wanted().iter().map(|case| case.widened(more)).collect();
        let options = LoadOptions { precision, fuse, lower, ..LoadOptions::default() };
        let (ran, failures) = conform_all(device, &cases, &options);
        let name = precision.name();
        println!(
            "{}, {name}, fuse {fuse}: {ran} of {} ran, {} failed",
            device.capabilities().name,
            cases.len(),
            failures.len()
        );
        assert!(failures.is_empty(), "{name}, fuse {fuse}:\n{}", failures.join("\n"));
        assert_eq!(ran, cases.len(), "some cases were not supported");
        checked += 1;
    }
    assert!(checked > 0 || only.is_some(), "no precision was tested");
    let counts = device.kernel_counts();
    let cooperative = counts.iter().find(|count| count.kernel.starts_with("linear_cooperative"));
    if let Some(tried) = device.cooperative_trial() {
        assert_eq!(tried, Ok(()), "the trial of matrices of subgroups");
    }
    println!("products by matrices of subgroups: {}", cooperative.map_or(0, |c| c.launches));
}

#[test]
fn every_op_fused() {
    let Some(device) = device(WgpuOptions::default()) else { return };
    check(&device, (true, false));
}

#[test]
fn every_op_on_its_own_with_the_least_that_webgpu_guarantees() {
    let options = WgpuOptions { minimum_limits: true, ..WgpuOptions::default() };
    let Some(device) = device(options) else { return };
    check(&device, (false, true));
}

#[test]
fn what_subgroups_share_where_they_multiply_matrices() {
    let Some(device) = device(WgpuOptions::default()) else { return };
    let listed = device.capabilities().features.iter();
    let mut listed = listed.filter(|(name, _)| name == "cooperative_matrix");
    if listed.all(|(_, value)| value == "no") {
        println!("skipped: {} has no matrices of subgroups", device.capabilities().name);
        return;
    }
    let own = shared::recurrences().into_iter().chain(shared::attentions());
    let cases: Vec<Case> = own.map(|case| case.widened(HALF)).collect();
    let options = LoadOptions { precision: Precision::F16, ..LoadOptions::default() };
    let (ran, failures) = conform_all(&device, &cases, &options);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(ran, cases.len(), "some cases were not supported");
    assert_eq!(device.cooperative_trial(), Some(Ok(())));
    let counts = device.kernel_counts();
    for kernel in ["rnn_cooperative-wgsl-f16", "attention_cooperative-wgsl-f16"] {
        assert!(counts.iter().any(|count| count.kernel == kernel), "{counts:?}");
    }
}

#[test]
fn half_precision_is_refused_by_name_where_there_is_none() {
    let options = WgpuOptions { minimum_limits: true, ..WgpuOptions::default() };
    let Some(device) = device(options) else { return };
    let case = wanted().into_iter().next().expect("there are cases");
    let options = LoadOptions { precision: Precision::F16, ..LoadOptions::default() };
    let error = device.load(&case.plan, &case.weights, &options).expect_err("it has f32 alone");
    assert!(error.to_string().contains("`f16`"), "{error}");
}
