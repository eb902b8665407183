//! Which tiers the machine has, and that the others are refused by name.
//!
//! Made for emulated processors: the gate runs this crate's tests on some without AVX-512 and
//! without AVX, and says in `NF_EXPECT_TIERS` what such a machine must find.

use neural_forecast_cpu::isa::TIERS;
use neural_forecast_cpu::{CpuDevice, CpuOptions, Isa};

fn available() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

#[test]
fn the_machine_has_the_tiers_that_are_expected_of_it() {
    let found = available();
    assert_eq!(found.first(), Some(&"portable"), "every machine has it, and it is the slowest");
    assert!(found.iter().all(|name| TIERS.contains(name)), "{found:?}");
    if let Ok(expected) = std::env::var("NF_EXPECT_TIERS") {
        assert_eq!(found.join(","), expected);
    }
}

#[test]
fn a_tier_that_is_not_there_is_refused_by_name() {
    let found = available();
    for name in TIERS.into_iter().filter(|name| !found.contains(name)) {
        let options = CpuOptions { isa: Some(name.into()), ..CpuOptions::default() };
        let error = CpuDevice::new(options).expect_err(name).to_string();
        assert!(error.contains(&format!("no `{name}` instructions")), "{error}");
        assert!(error.contains(&found.join(", ")), "{error}");
    }
    let options = CpuOptions { isa: Some("avx10".into()), ..CpuOptions::default() };
    let error = CpuDevice::new(options).expect_err("there is no such tier").to_string();
    assert!(error.contains("unknown instruction set `avx10`"), "{error}");
}
