//! What a measurement found: plain data that serialises.

use serde::Serialize;

use super::Mode;
use crate::run_info::RunInfo;

/// Which positions the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// The last one; work that it never reads is left out.
    Last,
    /// All; nothing is left out.
    All,
}

/// Percentiles of the time of one call, in microseconds. The percentile `p` of `n` sorted times is
/// time number `⌊n · p⌋`, counted from 0, as the peers' script takes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Shortest.
    pub min_us: f64,
    /// Half of the calls were at most this long.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000; the longest where there were fewer calls.
    pub p999_us: f64,
    /// Longest.
    pub max_us: f64,
    /// Mean.
    pub mean_us: f64,
    /// Number of calls.
    pub runs: usize,
}

impl Latency {
    /// Of times in microseconds; `None` if there are none.
    pub fn of(mut times_us: Vec<f64>) -> Option<Latency> {
        times_us.sort_by(f64::total_cmp);
        let n = times_us.len();
        let (min_us, max_us) = (*times_us.first()?, *times_us.last()?);
        let at = |p: f64| times_us[((n as f64 * p) as usize).min(n - 1)];
        Some(Latency {
            min_us,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us,
            mean_us: times_us.iter().sum::<f64>() / n as f64,
            runs: n,
        })
    }
}

/// One row of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchResult {
    /// The workload.
    pub workload: String,
    /// What the clock covered.
    pub mode: Mode,
    /// Windows of a call.
    pub batch: usize,
    /// Which positions the head read.
    pub positions: Positions,
    /// Device, precision, kernel class, weights and the kernels that one call launched.
    #[serde(flatten)]
    pub info: RunInfo,
    /// The maker's name of the device.
    pub device_name: String,
    /// Facts about it: threads, instruction tier, limits.
    pub device_features: Vec<(String, String)>,
    /// Time of a call.
    #[serde(flatten)]
    pub latency: Latency,
    /// The same call with windows and forecasts that stay on the device, for the full-window mode
    /// on a device with memory of its own.
    pub device_resident: Option<Latency>,
    /// The same call from host memory (f32) to host memory (f32), for the throughput mode on a
    /// device with memory of its own.
    pub end_to_end: Option<Latency>,
    /// What the device's own clock says of one run's kernels at the median, where it has one.
    pub device_us: Option<f64>,
    /// Windows a second at the median.
    pub windows_per_second: f64,
    /// Floating-point operations of the products of a call, as executed.
    pub flops: u64,
    /// The same if every layer computed every position.
    pub flops_nominal: u64,
    /// `flops` a second at the median, in 10⁹.
    pub gflops_per_second: f64,
    /// `flops` a second over the device's peak at this precision, where that is known.
    pub peak_fraction: Option<f64>,
    /// Mean power of the device while calls were timed, in watts, where it has a counter.
    pub power_watts: Option<f64>,
    /// Bytes of packed weights and states.
    pub resident_bytes: u64,
    /// Bytes of the program: its arena and what its kernels need beside it.
    pub program_bytes: u64,
    /// Standard deviation of the forecasts over all windows; a constant forecast would make the
    /// error below mean nothing.
    pub output_std: f64,
    /// Runs, of those on the first clock and its warm-up, that kernels served without a launch,
    /// because they had lingered on the device.
    pub runs_lingering: u64,
    /// Largest `|d| / max(1, |ref|)` against the `f64` reference; `None` if nothing was compared.
    pub error_max: Option<f64>,
    /// Fresh windows that were compared.
    pub error_windows: usize,
    /// Version of this library.
    pub version: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_peers() {
        let latency = Latency::of((0..2000).rev().map(f64::from).collect()).unwrap();
        assert_eq!((latency.min_us, latency.max_us, latency.runs), (0.0, 1999.0, 2000));
        assert_eq!((latency.p50_us, latency.p99_us, latency.p999_us), (1000.0, 1980.0, 1998.0));
        assert_eq!(latency.mean_us, 999.5);
        assert_eq!(Latency::of(vec![3.0]).unwrap().p999_us, 3.0);
        assert_eq!(Latency::of(Vec::new()), None);
    }
}
