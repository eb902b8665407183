//! Every op on every instruction set of this machine, compared with the reference implementations.
//!
//! The cases are the runtime's, shared by all devices; what is this crate's own: tiers, workers,
//! precisions, counters, and bits across all of them.

use neural_forecast_cpu::{CpuDevice, CpuOptions, Isa};
use neural_forecast_runtime::device::{Device, LoadOptions, Precision};
use neural_forecast_runtime::testing::{Case, Tolerance, cases, conform_all};

fn device(isa: Isa, threads: usize) -> CpuDevice {
    let options =
        CpuOptions { threads: Some(threads), isa: Some(isa.name().into()), alone_flops: Some(0) };
    CpuDevice::new(options).expect("this machine has the instruction set")
}

#[test]
fn every_op_on_every_tier() {
    let cases = cases();
    for isa in Isa::available() {
        for threads in [1, 2] {
            for (fuse, lower) in [(true, false), (false, true)] {
                let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
                let (ran, failures) = conform_all(&device(isa, threads), &cases, &options);
                let tier = isa.name();
                assert!(
                    failures.is_empty(),
                    "{tier}, {threads} threads, fuse {fuse}: {} of {} failed\n{}",
                    failures.len(),
                    cases.len(),
                    failures.join("\n")
                );
                assert_eq!(ran, cases.len(), "{tier}: some cases were not supported");
            }
        }
    }
}

#[test]
fn bf16_weights_stay_close() {
    // A weight keeps 8 bits, so a sum of terms of about 1 is off by 2⁻⁹ of each; recurrences and
    // stacks carry that on.
    let widen = |case: Case| {
        let Tolerance { absolute, relative } = case.tolerance;
        let tolerance = Tolerance { absolute: absolute + 0.05, relative: relative + 0.05 };
        Case { tolerance, ..case }
    };
    let cases: Vec<Case> = cases().into_iter().map(widen).collect();
    let options = LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() };
    for isa in Isa::available() {
        let (_, failures) = conform_all(&device(isa, 2), &cases, &options);
        assert!(failures.is_empty(), "{}:\n{}", isa.name(), failures.join("\n"));
    }
}

#[test]
fn an_absent_tier_is_an_error_that_names_it() {
    let options = CpuOptions { threads: Some(1), isa: Some("avx10".into()), alone_flops: None };
    let error = CpuDevice::new(options).expect_err("there is no such tier");
    assert!(error.to_string().contains("`avx10`"), "{error}");
}

/// What [`the_environment_forces_a_tier`] runs with the variable set; alone it checks the default.
#[test]
fn the_environment_is_obeyed() {
    let device = CpuDevice::new(CpuOptions { threads: Some(1), ..CpuOptions::default() });
    match std::env::var("NF_CPU_ISA").ok().filter(|name| !name.is_empty()) {
        Some(name) if Isa::named(Some(&name)).is_err() => {
            let error = device.expect_err("the tier is not there");
            assert!(error.to_string().contains(&name), "{error}");
        }
        Some(name) => assert_eq!(device.expect("the tier is there").isa().name(), name),
        None => {
            let best = Isa::available().pop().map(Isa::name);
            assert_eq!(Some(device.expect("it opens").isa().name()), best);
        }
    }
}

#[test]
fn the_environment_forces_a_tier() {
    let program = std::env::current_exe().expect("a test knows its program");
    for name in ["portable", "avx2", "avx512", "avx10"] {
        let status = std::process::Command::new(&program)
            .args(["--exact", "the_environment_is_obeyed"])
            .env("NF_CPU_ISA", name)
            .output()
            .expect("the test can run itself");
        assert!(status.status.success(), "{name}: {}", String::from_utf8_lossy(&status.stdout));
    }
}

#[test]
fn counters_name_the_kernel_that_served() {
    for isa in Isa::available() {
        let device = device(isa, 1);
        let one: Vec<Case> =
            cases().into_iter().filter(|case| case.name.starts_with("linear")).take(1).collect();
        let (ran, failures) = conform_all(&device, &one, &LoadOptions::default());
        assert!(ran == 1 && failures.is_empty(), "{failures:?}");
        let name = format!("gemm-{}-f32", isa.name());
        let counts = device.kernel_counts();
        let served = counts.iter().find(|count| count.kernel == name);
        assert!(served.is_some_and(|count| count.launches > 0), "{counts:?}");
    }
}
