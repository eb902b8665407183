//! Every op on every instruction set of this machine, compared with the reference implementations.
//!
//! The cases are the runtime's, shared by all devices; what is this crate's own: tiers, workers,
//! precisions, counters, and bits across all of them.

mod machine;

use machine::{device, tiers};
use neural_forecast_cpu::{CpuDevice, CpuOptions, Isa, isa};
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{Device, LoadOptions, Precision};
use neural_forecast_runtime::ops::Linear;
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::testing::{Case, CaseBuilder, Tolerance, cases, conform_all};

#[test]
fn every_op_on_every_tier() {
    let cases = cases();
    for isa in tiers() {
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

/// All cases in a precision on every tier, with so much added to their tolerances.
fn stay_close(precision: Precision, more: f64) {
    let cases: Vec<Case> = cases().iter().map(|case| case.widened(more)).collect();
    let options = LoadOptions { precision, ..LoadOptions::default() };
    for isa in tiers() {
        let (ran, failures) = conform_all(&device(isa, 2), &cases, &options);
        assert!(failures.is_empty(), "{}:\n{}", isa.name(), failures.join("\n"));
        assert_eq!(ran, cases.len(), "{}: some cases were not supported", isa.name());
    }
}

#[test]
fn f16_stays_close() {
    // Weights keep 11 bits: each term is off by 2⁻¹² of itself.
    stay_close(Precision::F16, 0.005);
}

#[test]
fn bf16_stays_close() {
    // Weights, and on some tiers inputs, keep 8 bits, so a sum of terms of about 1 is off by 2⁻⁹ of
    // each; recurrences and stacks carry that on.
    stay_close(Precision::Bf16, 0.05);
}

#[test]
fn int8_stays_close() {
    // Weights and inputs keep 7 bits of the largest of an output and of a row: up to 2⁻⁸ of that
    // each, where bf16 is off by 2⁻⁹ of the number itself.
    stay_close(Precision::Int8, 0.1);
}

#[test]
fn f16_refuses_weights_that_it_cannot_hold() {
    let mut b = CaseBuilder::new("large", Bucket { batch: 1, length: 1 });
    let x = b.input(&[Dim::BATCH, 3.into()]);
    let weight = b.weight(&[2, 3]);
    let y = b.step(Linear::new(x, weight));
    let case = b.finish(&[y]);
    let name = &case.plan.weight(weight).name;
    let device = device(Isa::best().expect("there is a tier"), 1);
    for (large, fits) in [(65_519.996, true), (65_520.0, false), (-1e9, false)] {
        let mut weights = MemoryWeights::new();
        weights.insert(name, &[2, 3], &[1.0, 2.0, large, 4.0, 5.0, 6.0]);
        let load = |precision| {
            let options = LoadOptions { precision, ..LoadOptions::default() };
            device.load(&case.plan, &weights, &options).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(load(Precision::F32), Ok(()));
        match load(Precision::F16) {
            Ok(()) => assert!(fits, "{large} was taken"),
            Err(error) => assert!(!fits && error.contains(name.as_str()), "{large}: {error}"),
        }
    }
}

#[test]
fn an_absent_tier_is_an_error_that_names_it() {
    let options = CpuOptions { isa: Some("avx10".into()), ..CpuOptions::default() };
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
            let best = Isa::best().map(Isa::name);
            assert_eq!(Some(device.expect("it opens").isa().name()), best);
        }
    }
}

#[test]
fn the_environment_forces_a_tier() {
    let program = std::env::current_exe().expect("a test knows its program");
    // An emulator is no part of the program's own path; without it the child would run on the host.
    let runner = std::env::var("NF_TEST_RUNNER").unwrap_or_default();
    let mut command: Vec<&std::ffi::OsStr> = runner.split_whitespace().map(AsRef::as_ref).collect();
    command.push(program.as_os_str());
    for name in isa::TIERS.into_iter().chain(["avx10"]) {
        let status = std::process::Command::new(command[0])
            .args(&command[1..])
            .args(["--exact", "the_environment_is_obeyed"])
            .env("NF_CPU_ISA", name)
            .output()
            .expect("the test can run itself");
        assert!(status.status.success(), "{name}: {}", String::from_utf8_lossy(&status.stdout));
    }
}

#[test]
fn counters_name_the_kernel_that_served() {
    for isa in tiers() {
        for precision in [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8] {
            let device = device(isa, 1);
            let wide = Tolerance { absolute: 0.1, relative: 0.1 };
            let linear =
                cases().into_iter().filter(|case| case.name.starts_with("linear 9x17->33"));
            let one: Vec<Case> =
                linear.take(1).map(|case| Case { tolerance: wide, ..case }).collect();
            let options = LoadOptions { precision, ..LoadOptions::default() };
            let (ran, failures) = conform_all(&device, &one, &options);
            assert!(ran == 1 && failures.is_empty(), "{failures:?}");
            let name = format!("gemm-{}-{}", isa.name(), precision.name());
            let counts = device.kernel_counts();
            let served = counts.iter().find(|count| count.kernel == name);
            assert!(served.is_some_and(|count| count.launches > 0), "{name}: {counts:?}");
        }
    }
}
