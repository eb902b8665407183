//! The fuzzer of `neural_forecast_fuzz::csv`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| neural_forecast_fuzz::csv::run(bytes));
