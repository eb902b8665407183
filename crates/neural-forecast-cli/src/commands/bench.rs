//! `bench`: measures the library's workloads and prints a row as soon as it is there.

use super::{count, print, print_json};
use crate::args::BenchArgs;
use crate::failure::Outcome;
use neural_forecast::workloads::{BenchOptions, BenchResult, run_each};

const COLUMNS: usize = 14;

/// `other us`: with windows and forecasts on the device in the full-window mode, from host memory
/// to host memory in throughput; `-` where device and host share memory. `lingering`: runs that
/// kernels served without a launch, of those of the row's first clock and its warm-up.
const HEADER: [&str; COLUMNS] = [
    "workload",
    "batch",
    "format",
    "p50 us",
    "p99 us",
    "other us",
    "clock us",
    "per second",
    "GFLOP/s",
    "% peak",
    "watts",
    "error",
    "runs",
    "lingering",
];

/// Measures and prints.
pub(super) fn run(args: &BenchArgs) -> Outcome {
    let options = BenchOptions {
        workloads: if args.workload == "all" { Vec::new() } else { vec![args.workload.clone()] },
        batches: args.batch.map(count).into_iter().collect(),
        device: args.run.device,
        threads: args.run.threads.map(count),
        linger_us: args.run.linger,
        precisions: vec![args.run.precision],
        modes: vec![args.mode],
        seconds: args.seconds,
        error_windows_max: count(args.error_windows),
        error_seconds: args.seconds,
        ..BenchOptions::default()
    };
    if args.json {
        let mut results = Vec::new();
        run_each(&options, &mut |result| results.push(result))?;
        return print_json(&results);
    }
    let mut printed = Ok(());
    let mut first = true;
    run_each(&options, &mut |result| {
        if std::mem::take(&mut first) {
            let device = format!("{} ({})\n", result.device_name, args.mode);
            printed = print(format!("{device}{}", line(&HEADER.map(String::from))).as_bytes());
        }
        if printed.is_ok() {
            printed = print(line(&cells(&result)).as_bytes());
        }
    })?;
    printed
}

fn cells(result: &BenchResult) -> [String; COLUMNS] {
    let or_none = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_string(), |value| format!("{value:.digits$}"))
    };
    let other = result.device_resident.as_ref().or(result.end_to_end.as_ref());
    [
        result.workload.clone(),
        result.batch.to_string(),
        result.info.precision.name().to_string(),
        format!("{:.1}", result.latency.p50_us),
        format!("{:.1}", result.latency.p99_us),
        or_none(other.map(|latency| latency.p50_us), 1),
        or_none(result.device_us, 1),
        format!("{:.0}", result.windows_per_second),
        format!("{:.1}", result.gflops_per_second),
        or_none(result.peak_fraction.map(|fraction| fraction * 100.0), 1),
        or_none(result.power_watts, 0),
        result.error_max.map_or_else(|| "-".to_string(), |error| format!("{error:.1e}")),
        result.latency.runs.to_string(),
        result.runs_lingering.to_string(),
    ]
}

/// Rows come one by one, so the widths are fixed.
fn line(cells: &[String; COLUMNS]) -> String {
    let [name, rest @ ..] = cells;
    let rest: String = rest.iter().map(|cell| format!(" {cell:>10}")).collect();
    format!("{name:<18}{rest}\n")
}
