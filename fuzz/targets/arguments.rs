//! The fuzzer of `neural_forecast_fuzz::arguments`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| neural_forecast_fuzz::arguments::run(bytes));
