//! What to measure, and for how long.

use std::fmt;
use std::str::FromStr;

use neural_forecast_runtime::device::{KernelClass, Precision};
use serde::Serialize;

use super::Positions;
use super::measure::Way;
use crate::device::DeviceChoice;
use crate::error::Error;

/// What the clock covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Windows in host memory to forecasts in host memory, one call, nothing reused; kernels of the
    /// latency class. The same call with windows and forecasts that stay on the device is reported
    /// beside it where the device has memory of its own.
    FullWindow,
    /// A large batch and kernels of the throughput class, windows and forecasts on the device. The
    /// call from host memory to host memory is reported beside it where the device has memory of
    /// its own; on a CPU the two are one.
    Throughput,
}

impl Mode {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::FullWindow => "full-window",
            Mode::Throughput => "throughput",
        }
    }

    /// What is timed first; the other is reported beside it.
    pub(super) fn way(self) -> Way {
        match self {
            Mode::FullWindow => Way::EndToEnd,
            Mode::Throughput => Way::Resident,
        }
    }

    pub(super) fn class(self) -> KernelClass {
        match self {
            Mode::FullWindow => KernelClass::Latency,
            Mode::Throughput => KernelClass::Throughput,
        }
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Mode::FullWindow, Mode::Throughput].into_iter().find(|m| m.name() == name).ok_or_else(
            || Error::usage(format!("unknown mode `{name}`, expected full-window or throughput")),
        )
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to measure, and for how long. The default is every workload at its batches on the default
/// device in `f32`, full window, as long as the peers' script takes for each.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchOptions {
    /// Names; empty means all.
    pub workloads: Vec<String>,
    /// Batches; empty means the workload's own for the mode.
    pub batches: Vec<usize>,
    /// Which device.
    pub device: DeviceChoice,
    /// Threads of the CPU engine; `None` is what this process may use.
    pub threads: Option<usize>,
    /// As [`GPUConfig::linger_us`](crate::config::GPUConfig::linger_us).
    pub linger_us: u32,
    /// Number formats; one row each.
    pub precisions: Vec<Precision>,
    /// Modes; one row each.
    pub modes: Vec<Mode>,
    /// Which positions the head reads.
    pub positions: Positions,
    /// Whether the fusion pass runs.
    pub fuse: bool,
    /// Whether stacks are lowered even where the device has them fused.
    pub lower: bool,
    /// Calls off the clock first; none is started after `seconds`.
    pub warm_up: usize,
    /// Most calls on the clock.
    pub runs_max: usize,
    /// No call is started after this many seconds; at least one is made.
    pub seconds: f64,
    /// Most fresh windows that are compared with the `f64` reference; 0 for none.
    pub error_windows_max: usize,
    /// No comparison is started after this many seconds; at least one is made unless none may be.
    pub error_seconds: f64,
    /// Seed of weights and windows.
    pub seed: u64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            workloads: Vec::new(),
            batches: Vec::new(),
            device: DeviceChoice::Auto,
            threads: None,
            linger_us: 0,
            precisions: vec![Precision::F32],
            modes: vec![Mode::FullWindow],
            positions: Positions::Last,
            fuse: true,
            lower: false,
            warm_up: 5,
            runs_max: 2000,
            seconds: 2.0,
            error_windows_max: 1000,
            error_seconds: 2.0,
            seed: 1,
        }
    }
}
