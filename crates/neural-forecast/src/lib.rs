//! Neural time-series forecasting: series in, forecasts out.
#![forbid(unsafe_code)]

pub mod calendar;
pub mod engine;
pub mod error;

pub use error::{Error, ErrorKind, Result};
