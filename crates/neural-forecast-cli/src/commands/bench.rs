//! `bench`: measures the library's workloads and prints a row as soon as it is there.

use super::{count, print, print_json};
use crate::args::BenchArgs;
use crate::failure::Outcome;
use neural_forecast::workloads::{BenchOptions, BenchResult, run_each};

const HEADER: [&str; 9] = [
    "workload",
    "batch",
    "precision",
    "p50 us",
    "p99 us",
    "per second",
    "GFLOP/s",
    "error",
    "runs",
];

/// Measures and prints.
pub(super) fn run(args: &BenchArgs) -> Outcome {
    let options = BenchOptions {
        workloads: if args.workload == "all" { Vec::new() } else { vec![args.workload.clone()] },
        batches: args.batch.map(count).into_iter().collect(),
        device: args.run.device,
        threads: args.run.threads.map(count),
        precisions: vec![args.run.precision],
        modes: vec![args.mode],
        seconds: args.seconds,
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

fn cells(result: &BenchResult) -> [String; 9] {
    [
        result.workload.clone(),
        result.batch.to_string(),
        result.info.precision.name().to_string(),
        format!("{:.1}", result.latency.p50_us),
        format!("{:.1}", result.latency.p99_us),
        format!("{:.0}", result.windows_per_second),
        format!("{:.1}", result.gflops_per_second),
        result.error_max.map_or_else(|| "-".to_string(), |error| format!("{error:.1e}")),
        result.latency.runs.to_string(),
    ]
}

/// Rows come one by one, so the widths are fixed.
fn line(cells: &[String; 9]) -> String {
    let [name, rest @ ..] = cells;
    let rest: String = rest.iter().map(|cell| format!(" {cell:>11}")).collect();
    format!("{name:<18}{rest}\n")
}
