//! The benchmark suite's results hold together: work, percentiles, errors. Nothing is timed against
//! a bound.

use neural_forecast::gpu::performance_benchmarks::{BenchmarkConfig, GPUBenchmarkSuite};
use neural_forecast::gpu::simd_fallback::benchmarks;
use neural_forecast::workloads::{self, BenchOptions, Mode, Positions};

/// One call each: what is asserted here does not depend on the clock.
fn quick(workloads: &[&str]) -> BenchOptions {
    BenchOptions {
        workloads: workloads.iter().map(|name| name.to_string()).collect(),
        warm_up: 0,
        runs_max: 1,
        seconds: 0.0,
        error_windows_max: 2,
        error_seconds: 0.0,
        ..BenchOptions::default()
    }
}

#[test]
fn workloads_are_right_before_they_are_fast() {
    let names = ["lstm_a", "lstm_guide_128", "transformer_small"];
    let options = BenchOptions { batches: vec![1, 3], ..quick(&names) };
    let results = workloads::run(&options).unwrap();
    assert_eq!(results.len(), 6);
    for row in &results {
        let name = (&row.workload, row.batch);
        let error = row.error_max.unwrap();
        assert!(error <= 1e-5, "{name:?}: error {error}");
        assert!(row.output_std >= 0.1, "{name:?}: forecasts vary by {}", row.output_std);
        assert_eq!(row.error_windows, 1);
        assert_eq!(row.latency.runs, 1);
        assert!(row.latency.p50_us <= row.latency.p99_us && row.latency.p99_us.is_finite());
        assert!(row.flops <= row.flops_nominal && row.flops > 0);
        assert!(row.gflops_per_second > 0.0);
        assert_eq!(row.info.fallback, None);
    }
    let json = serde_json::to_value(&results[0]).unwrap();
    for key in ["workload", "mode", "batch", "device", "precision", "kernel_class", "p50_us"] {
        assert!(json.get(key).is_some(), "`{key}` is missing in {json}");
    }
    assert_eq!(json["mode"], "full-window");
}

#[test]
fn modes_and_positions_are_rows_of_their_own() {
    let options = BenchOptions {
        modes: vec![Mode::FullWindow, Mode::Throughput],
        batches: vec![2],
        error_windows_max: 0,
        ..quick(&["transformer_small"])
    };
    let rows = workloads::run(&options).unwrap();
    let classes: Vec<_> = rows.iter().map(|row| row.info.kernel_class.name()).collect();
    assert_eq!(classes, ["latency", "throughput"]);
    assert!(rows.iter().all(|row| row.error_max.is_none()));
    let all = BenchOptions { positions: Positions::All, ..options };
    let row = &workloads::run(&all).unwrap()[0];
    assert_eq!(row.flops, row.flops_nominal);
}

#[test]
fn impossible_options_are_refused() {
    let refuse = |options: BenchOptions, expected: &str| {
        let error = workloads::run(&options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse(quick(&["lstm_z"]), "`lstm_z`");
    refuse(BenchOptions { batches: vec![0], ..quick(&["lstm_a"]) }, "batch is 0");
    refuse(BenchOptions { batches: vec![usize::MAX], ..quick(&["lstm_a"]) }, "batch is");
    refuse(BenchOptions { batches: vec![60_000], ..quick(&["transformer_guide"]) }, "bytes");
    refuse(BenchOptions { seconds: f64::NAN, ..quick(&["lstm_a"]) }, "seconds is NaN");
    refuse(BenchOptions { runs_max: 0, ..quick(&["lstm_a"]) }, "runs is 0");
    assert!("streaming".parse::<Mode>().is_err());
}

#[test]
fn the_suite_measures_operations_and_networks() {
    let config = BenchmarkConfig {
        warmup_iterations: 1,
        benchmark_iterations: 2,
        measure_power_consumption: true,
        max_seconds: 0.1,
        workloads: vec!["lstm_a".into()],
        ..Default::default()
    };
    let mut suite = GPUBenchmarkSuite::new(config).unwrap();
    let results = suite.run_blocking().unwrap();
    let names: Vec<_> = results.iter().map(|result| result.name.as_str()).collect();
    assert!(names.iter().any(|name| name.contains("matmul 1024x1024x1024")), "{names:?}");
    assert!(names.iter().any(|name| name.ends_with("lstm_a, batch 1")), "{names:?}");
    for result in &results {
        let m = &result.metrics;
        assert!(m.flops_per_sec > 0.0 && m.flops_per_sec.is_finite(), "{}", result.name);
        assert!(m.p50_latency_us <= m.p999_latency_us, "{}", result.name);
        assert!(m.average_latency_us <= m.max_latency_us, "{}", result.name);
        assert!(m.power_watts.is_none_or(f64::is_finite), "{}", result.name);
    }
    let network = results.iter().find(|r| r.name.contains("lstm_a")).unwrap();
    assert!(network.metrics.memory_usage_bytes.is_some_and(|bytes| bytes > 600_000));
}

#[test]
fn slice_benchmarks_count_their_work() {
    let product = benchmarks::benchmark_matmul(96, 2).unwrap();
    assert!(product.efficiency > 0.0 && product.threads >= 1);
    let relu = benchmarks::benchmark_activation(4096, 2).unwrap();
    assert!(relu.efficiency > 0.0);
}
