//! Neural time-series forecasting: series in, forecasts out.
#![forbid(unsafe_code)]

pub mod calendar;
pub mod checkpoint;
pub mod config;
pub mod conformal;
pub mod device;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod forecaster;
pub mod frame;
pub mod gpu;
pub mod inspect;
pub mod metrics;
pub mod models;
pub mod quantiles;
pub mod run_info;
pub mod scale;
pub mod shipped;
pub mod verify;
pub mod weights;
pub mod workloads;

pub use error::{Error, ErrorKind, Result};
pub use neural_forecast_runtime::device::{KernelClass, Precision};
pub use run_info::RunInfo;
