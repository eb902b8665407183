//! The benchmark suite of the integration guide: operations and whole networks, on every backend
//! that was added to it.
//!
//! Every suite has the CPU; other backends join it when their features bring them. Prints nothing.

use std::time::Instant;

use neural_forecast_runtime::device::{KernelCount, Precision};

use super::power::EnergyMeter;
use super::simd_fallback::SIMDMatrixOps;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::workloads::{self, BenchOptions, Latency, Mode};

/// How a suite measures.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchmarkConfig {
    /// Calls off the clock first.
    pub warmup_iterations: usize,
    /// Calls on the clock; fewer where `max_seconds` ends them.
    pub benchmark_iterations: usize,
    /// Whether results say how much memory a network takes.
    pub measure_memory_usage: bool,
    /// Whether results say how much power the processor drew, where the host shows it.
    pub measure_power_consumption: bool,
    /// Whether results list the kernels that a call launched.
    pub detailed_profiling: bool,
    /// No call of a benchmark is started after this many seconds.
    pub max_seconds: f64,
    /// Batches at which networks are measured.
    pub batch_sizes: Vec<usize>,
    /// Networks of [`crate::workloads`] by name; empty means all.
    pub workloads: Vec<String>,
}

impl Default for BenchmarkConfig {
    fn default() -> Self {
        BenchmarkConfig {
            warmup_iterations: 5,
            benchmark_iterations: 100,
            measure_memory_usage: true,
            measure_power_consumption: false,
            detailed_profiling: false,
            max_seconds: 1.0,
            batch_sizes: vec![1],
            workloads: Vec::new(),
        }
    }
}

/// Times and rates of one benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct PerformanceMetrics {
    /// Mean time of a call in microseconds.
    pub average_latency_us: f64,
    /// Half of the calls were at most this long.
    pub p50_latency_us: f64,
    /// 99 of 100.
    pub p99_latency_us: f64,
    /// 999 of 1000.
    pub p999_latency_us: f64,
    /// Longest.
    pub max_latency_us: f64,
    /// Calls on the clock.
    pub iterations: usize,
    /// Floating-point operations of products a second, at the mean; for an activation, elements.
    pub flops_per_sec: f64,
    /// Calls (times their batch, for networks) a second, at the mean.
    pub throughput_per_sec: f64,
    /// Bytes of weights and buffers, for networks where it was asked for.
    pub memory_usage_bytes: Option<u64>,
    /// Watts of all processor packages, or of the GPU, other processes' share included; `None`
    /// where it was not asked for or the host does not show it.
    pub power_watts: Option<f64>,
}

/// One benchmark with its figures.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchmarkResult {
    /// Device, operation or network, and size.
    pub name: String,
    /// The device's id.
    pub device: String,
    /// Figures.
    pub metrics: PerformanceMetrics,
    /// Kernels that one call launched, where profiling was asked for.
    pub kernels: Vec<KernelCount>,
}

/// A set of benchmarks over one or more backends.
///
/// ```
/// use neural_forecast::gpu::performance_benchmarks::{GPUBenchmarkSuite, BenchmarkConfig};
///
/// # fn main() { benchmark_gpu_performance().unwrap() }
/// #[tokio::main]
/// async fn benchmark_gpu_performance() -> Result<(), Box<dyn std::error::Error>> {
///     let benchmark_config = BenchmarkConfig {
///         warmup_iterations: 10,
///         benchmark_iterations: 100,
///         measure_memory_usage: true,
///         measure_power_consumption: true,
///         detailed_profiling: true,
/// #       max_seconds: 0.1,
/// #       workloads: vec!["lstm_a".to_string(), "transformer_small".to_string()],
///         ..Default::default()
///     };
///
///     let mut suite = GPUBenchmarkSuite::new(benchmark_config)?;
/// #   let suite = &mut suite;
///
///     // Initialize backends
/// #   #[cfg(feature = "cuda")]
/// #   let here = matches!(neural_forecast::gpu::cuda::check_cuda_availability(), Ok(true));
/// #   #[cfg(feature = "cuda")]
/// #   if !here { println!("skipped: with_cuda, no CUDA device"); }
/// #   #[cfg(feature = "cuda")]
/// #   if here {
///     #[cfg(feature = "cuda")]
///     suite.with_cuda()?;
/// #   }
///
/// #   #[cfg(feature = "gpu")]
/// #   if neural_forecast::gpu::GPUBackend::new(Default::default()).await.is_ok() {
///     suite.with_webgpu().await?;
/// #   } else { println!("skipped: with_webgpu, no WebGPU adapter"); }
///
///     // Run comprehensive benchmarks
///     let results = suite.run_full_benchmark().await?;
///
///     for result in &results {
///         println!("Benchmark: {} - {:.2} μs avg latency, {:.2} GFLOPS",
///                  result.name,
///                  result.metrics.average_latency_us,
///                  result.metrics.flops_per_sec / 1e9);
///     }
/// #   assert!(results.iter().any(|result| result.name.ends_with("lstm_a, batch 1")));
///
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct GPUBenchmarkSuite {
    config: BenchmarkConfig,
    /// Where networks run, and in which formats.
    backends: Vec<(DeviceChoice, Vec<Precision>)>,
}

impl GPUBenchmarkSuite {
    /// A suite with the CPU.
    ///
    /// # Errors
    /// `Usage`: no iterations, an unknown network or an impossible time.
    pub fn new(config: BenchmarkConfig) -> Result<Self> {
        if config.benchmark_iterations == 0 {
            return Err(Error::usage("`benchmark_iterations` is 0, expected at least 1"));
        }
        // Written so that NaN fails.
        if !(0.0..=86_400.0).contains(&config.max_seconds) {
            let seconds = config.max_seconds;
            return Err(Error::usage(format!("`max_seconds` is {seconds}, expected 0 to 86400")));
        }
        for name in &config.workloads {
            workloads::named(name)?;
        }
        let backends = vec![(DeviceChoice::Cpu, vec![Precision::F32])];
        Ok(GPUBenchmarkSuite { config, backends })
    }

    /// Adds the first NVIDIA GPU: networks are measured on it too, in f32 and f16.
    ///
    /// # Errors
    /// `Device`: no driver, no GPU, or one that cannot be used; the suite stays as it was.
    #[cfg(feature = "cuda")]
    pub fn with_cuda(&mut self) -> Result<&mut Self> {
        let choice = DeviceChoice::Cuda(0);
        crate::device::open(choice, &crate::device::DeviceOptions::default())?;
        if !self.backends.iter().any(|(known, _)| *known == choice) {
            self.backends.push((choice, vec![Precision::F32, Precision::F16]));
        }
        Ok(self)
    }

    /// Adds the first WebGPU adapter: networks are measured on it too, in f32.
    ///
    /// # Errors
    /// `Device`: no driver, no adapter, or one that cannot be used; the suite stays as it was.
    #[cfg(feature = "gpu")]
    pub async fn with_webgpu(&mut self) -> Result<&mut Self> {
        let choice = DeviceChoice::Gpu(0);
        crate::device::open(choice, &crate::device::DeviceOptions::default())?;
        if !self.backends.iter().any(|(known, _)| *known == choice) {
            self.backends.push((choice, vec![Precision::F32]));
        }
        Ok(self)
    }

    /// As [`GPUBenchmarkSuite::run_blocking`] for callers in an async function; the work is done
    /// when the future is first polled.
    ///
    /// # Errors
    /// As there.
    pub async fn run_full_benchmark(&mut self) -> Result<Vec<BenchmarkResult>> {
        self.run_blocking()
    }

    /// Runs every benchmark on every backend of the suite.
    ///
    /// # Errors
    /// What a device reports.
    pub fn run_blocking(&mut self) -> Result<Vec<BenchmarkResult>> {
        let mut results = Vec::new();
        let ops = SIMDMatrixOps::new();
        for size in [128, 512, 1024] {
            results.push(self.matmul(&ops, size)?);
        }
        results.push(self.elements(&ops, "relu", SIMDMatrixOps::relu_f32)?);
        results.push(self.elements(&ops, "gelu", SIMDMatrixOps::gelu_f32)?);
        for (device, precisions) in &self.backends {
            self.networks(*device, precisions, &mut results)?;
        }
        Ok(results)
    }

    fn matmul(&self, ops: &SIMDMatrixOps, size: usize) -> Result<BenchmarkResult> {
        let a: Vec<f32> = (0..size * size).map(|i| (i % 13) as f32 - 6.0).collect();
        let mut c = vec![0.0; a.len()];
        let flops = 2.0 * (size as f64).powi(3);
        self.measure(format!("matmul {size}x{size}x{size}"), flops, || {
            ops.matmul_f32(&a, &a, &mut c, size, size, size)
        })
    }

    fn elements(
        &self,
        ops: &SIMDMatrixOps,
        name: &str,
        function: impl Fn(&SIMDMatrixOps, &[f32], &mut [f32]) -> Result<()>,
    ) -> Result<BenchmarkResult> {
        let x: Vec<f32> = (0..1 << 20).map(|i| (i % 17) as f32 * 0.5 - 4.0).collect();
        let mut y = vec![0.0; x.len()];
        self.measure(format!("{name} {}", x.len()), x.len() as f64, || function(ops, &x, &mut y))
    }

    /// Times an operation over slices.
    fn measure(
        &self,
        name: String,
        work: f64,
        mut call: impl FnMut() -> Result<()>,
    ) -> Result<BenchmarkResult> {
        for _ in 0..self.config.warmup_iterations {
            call()?;
        }
        let before = self.kernel_counts();
        call()?;
        let kernels = crate::run_info::launched(&before, &self.kernel_counts());
        let meter = self.meter();
        let start = Instant::now();
        let mut times = Vec::new();
        while times.is_empty()
            || (times.len() < self.config.benchmark_iterations
                && start.elapsed().as_secs_f64() < self.config.max_seconds)
        {
            let at = Instant::now();
            call()?;
            times.push(at.elapsed().as_secs_f64() * 1e6);
        }
        let power = watts(meter, start);
        let latency = Latency::of(times).ok_or_else(|| Error::usage("no call was timed"))?;
        let metrics = metrics(&latency, work, 1.0, None, power);
        Ok(BenchmarkResult { name: format!("cpu: {name}"), device: "cpu".into(), metrics, kernels })
    }

    fn networks(
        &self,
        device: DeviceChoice,
        precisions: &[Precision],
        results: &mut Vec<BenchmarkResult>,
    ) -> Result<()> {
        let config = &self.config;
        let names = match config.workloads.as_slice() {
            [] => workloads::all().iter().map(|w| w.name.to_string()).collect(),
            names => names.to_vec(),
        };
        for name in names {
            for &batch in &config.batch_sizes {
                let options = BenchOptions {
                    workloads: vec![name.clone()],
                    batches: vec![batch],
                    device,
                    precisions: precisions.to_vec(),
                    modes: vec![Mode::FullWindow],
                    warm_up: config.warmup_iterations,
                    runs_max: config.benchmark_iterations,
                    seconds: config.max_seconds,
                    error_windows_max: 0,
                    ..BenchOptions::default()
                };
                // A GPU has a counter of its own; the processor's says nothing of it.
                let meter = if device == DeviceChoice::Cpu { self.meter() } else { None };
                let start = Instant::now();
                let rows = workloads::run(&options)?;
                let power = watts(meter, start);
                results.extend(rows.into_iter().map(|row| {
                    let bytes = row.resident_bytes + row.program_bytes;
                    let memory = config.measure_memory_usage.then_some(bytes);
                    let rows = row.batch as f64;
                    let asked = config.measure_power_consumption;
                    let power = row.power_watts.filter(|_| asked).or(power);
                    let metrics = metrics(&row.latency, row.flops as f64, rows, memory, power);
                    let kernels = match config.detailed_profiling {
                        true => row.info.kernels,
                        false => Vec::new(),
                    };
                    let (device, precision) = (row.info.device, row.info.precision);
                    let format = match precision {
                        Precision::F32 => String::new(),
                        other => format!(", {}", other.name()),
                    };
                    let name = format!("{device}: {}, batch {batch}{format}", row.workload);
                    BenchmarkResult { name, device, metrics, kernels }
                }));
            }
        }
        Ok(())
    }

    fn meter(&self) -> Option<EnergyMeter> {
        self.config.measure_power_consumption.then(EnergyMeter::start).flatten()
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        if !self.config.detailed_profiling {
            return Vec::new();
        }
        let counts = neural_forecast_cpu::counters::snapshot().into_iter();
        counts.map(|(kernel, launches)| KernelCount { kernel, launches, lingering: 0 }).collect()
    }
}

fn watts(meter: Option<EnergyMeter>, start: Instant) -> Option<f64> {
    let joules = meter?.joules()?;
    let seconds = start.elapsed().as_secs_f64();
    (seconds > 0.0).then(|| joules / seconds)
}

fn metrics(
    latency: &Latency,
    work: f64,
    rows: f64,
    memory_usage_bytes: Option<u64>,
    power_watts: Option<f64>,
) -> PerformanceMetrics {
    // The clock may be too coarse for the smallest calls; a rate stays finite.
    let seconds = (latency.mean_us / 1e6).max(1e-9);
    PerformanceMetrics {
        average_latency_us: latency.mean_us,
        p50_latency_us: latency.p50_us,
        p99_latency_us: latency.p99_us,
        p999_latency_us: latency.p999_us,
        max_latency_us: latency.max_us,
        iterations: latency.runs,
        flops_per_sec: work / seconds,
        throughput_per_sec: rows / seconds,
        memory_usage_bytes,
        power_watts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_without_iterations_is_refused() {
        let none = BenchmarkConfig { benchmark_iterations: 0, ..Default::default() };
        let error = GPUBenchmarkSuite::new(none).unwrap_err();
        assert!(error.to_string().contains("`benchmark_iterations`"), "{error}");
        let odd = BenchmarkConfig { workloads: vec!["lstm_z".into()], ..Default::default() };
        assert!(GPUBenchmarkSuite::new(odd).unwrap_err().to_string().contains("`lstm_z`"));
        let never = BenchmarkConfig { max_seconds: f64::NAN, ..Default::default() };
        assert!(GPUBenchmarkSuite::new(never).is_err());
    }

    #[test]
    fn slices_are_measured() {
        let config = BenchmarkConfig {
            benchmark_iterations: 3,
            detailed_profiling: true,
            ..Default::default()
        };
        let suite = GPUBenchmarkSuite::new(config).unwrap();
        let found = suite.matmul(&SIMDMatrixOps::new(), 64).unwrap();
        assert_eq!(found.name, "cpu: matmul 64x64x64");
        assert_eq!(found.metrics.iterations, 3);
        assert!(found.metrics.flops_per_sec > 0.0 && found.metrics.flops_per_sec.is_finite());
        assert!(found.metrics.p50_latency_us <= found.metrics.max_latency_us);
        assert!(found.kernels.iter().any(|k| k.kernel.starts_with("gemm-")), "{found:?}");
        assert_eq!(found.metrics.memory_usage_bytes, None);
    }
}
