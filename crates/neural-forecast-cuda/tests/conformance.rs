//! Every op on a GPU, compared with the reference implementations.
//!
//! The cases are the runtime's, shared by all devices. Without a GPU nothing is tested, which is
//! printed; `NF_REQUIRE=cuda` makes that a failure. `NF_CASES=linear,norm` keeps the cases whose
//! names begin so, `NF_PRECISION=f16` tests one precision instead of all.

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::device::{Device, LoadOptions, Precision};
use neural_forecast_runtime::testing::{Case, cases, conform_all, device_or_skip};

/// The first GPU, unless there is none and nobody insists.
fn device() -> Option<CudaDevice> {
    device_or_skip("cuda", CudaDevice::open(0, CudaOptions::default()))
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

/// What a precision may add to a case's tolerance. A weight of f16 keeps 11 bits, tf32 the same,
/// bf16 8, an 8-bit integer about 7, e4m3 4; a sum of terms of about 1 is off by half a last place
/// of each, and recurrences and stacks carry that on.
fn widened(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 0.0,
        Precision::Tf32 | Precision::F16 => 0.01,
        Precision::Bf16 => 0.05,
        Precision::Int8 => 0.05,
        Precision::Fp8 => 0.25,
    }
}

/// Programs of all sizes whose kernels stay on the device where they can, and make room for others.
#[test]
fn every_op_where_kernels_linger() {
    let options = CudaOptions { linger_us: 100, ..CudaOptions::default() };
    let Some(device) = device_or_skip("cuda", CudaDevice::open(0, options)) else { return };
    check(&device, Precision::F16, &wanted());
}

fn check(device: &CudaDevice, precision: Precision, cases: &[Case]) {
    let more = widened(precision);
    let cases: Vec<Case> = cases.iter().map(|case| case.widened(more)).collect();
    let mut failures = Vec::new();
    for (fuse, lower) in [(true, false), (false, true)] {
        let options = LoadOptions { precision, fuse, lower, ..LoadOptions::default() };
        let (ran, failed) = conform_all(device, &cases, &options);
        let name = precision.name();
        println!("{name}, fuse {fuse}: {ran} of {} ran, {} failed", cases.len(), failed.len());
        failures.extend(failed.into_iter().map(|message| format!("fuse {fuse}: {message}")));
    }
    assert!(failures.is_empty(), "{}:\n{}", precision.name(), failures.join("\n"));
}

#[test]
fn every_op_in_every_precision() {
    let Some(device) = device() else { return };
    let only = std::env::var("NF_PRECISION").ok().filter(|name| !name.is_empty());
    let only = only.map(|name| name.parse::<Precision>().expect("NF_PRECISION is a precision"));
    let cases = wanted();
    println!("{}: {} cases", device.capabilities().name, cases.len());
    for &precision in &device.capabilities().precisions {
        if only.is_none_or(|only| only == precision) {
            check(&device, precision, &cases);
        }
    }
}
