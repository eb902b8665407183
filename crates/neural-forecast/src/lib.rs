//! Neural time-series forecasting: series in, forecasts out.
#![forbid(unsafe_code)]

pub mod calendar;
pub mod checkpoint;
pub mod config;
pub mod engine;
pub mod error;
pub mod frame;
pub mod models;
pub mod run_info;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
pub use run_info::RunInfo;
