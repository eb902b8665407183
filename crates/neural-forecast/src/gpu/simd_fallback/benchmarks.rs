//! Quick measurements of the slice operations, as the integration guide calls them.
//!
//! Not the benchmark suite: `benches/` compares kernels, [`crate::workloads`] whole networks.
//!
//! ```
//! use neural_forecast::gpu::simd_fallback::benchmarks;
//!
//! # fn main() { benchmark_simd().unwrap() }
//! #[tokio::main]
//! async fn benchmark_simd() -> Result<(), Box<dyn std::error::Error>> {
//!     // Benchmark matrix multiplication
//!     let matmul_result = benchmarks::benchmark_matmul(1024, 100)?;
//!     println!("SIMD MatMul: {:.2} GFLOPS efficiency", matmul_result.efficiency);
//!
//!     // Benchmark activation functions
//!     let relu_result = benchmarks::benchmark_activation(1024 * 1024, 1000)?;
//!     println!("SIMD ReLU: {:.2} μs avg latency", relu_result.duration.as_micros());
//!
//!     Ok(())
//! }
//! ```

use std::time::{Duration, Instant};

use super::SIMDMatrixOps;
use crate::error::{Error, Result};

/// Most elements of a matrix or vector, 1 GiB of floats.
const ELEMENTS_MAX: usize = 1 << 28;

/// What a measurement found.
#[derive(Clone, Debug, PartialEq)]
pub struct SIMDBenchmark {
    /// What was measured, with its size.
    pub name: String,
    /// Calls on the clock.
    pub iterations: usize,
    /// Mean time of a call.
    pub duration: Duration,
    /// 10⁹ operations a second: a multiply-add is two operations, an element of an activation one.
    pub efficiency: f64,
    /// Vector units in use.
    pub instruction_set: &'static str,
    /// Threads in use.
    pub threads: usize,
}

/// Multiplies two `size × size` matrices `iterations` times, after one call off the clock.
///
/// # Errors
/// `Usage`: a size or count of 0, or a size beyond 16384; `Device`: no vector units.
pub fn benchmark_matmul(size: usize, iterations: usize) -> Result<SIMDBenchmark> {
    let elements = bounded(size.checked_mul(size), iterations)?;
    let (a, b) = (ramp(elements, 0.25), ramp(elements, 0.5));
    let mut c = vec![0.0; elements];
    let flops = 2.0 * (size as f64).powi(3);
    measure(format!("matmul {size}x{size}x{size}"), flops, iterations, |ops| {
        ops.matmul_f32(&a, &b, &mut c, size, size, size)
    })
}

/// Applies ReLU to `size` elements `iterations` times, after one call off the clock.
///
/// # Errors
/// `Usage`: a size or count of 0, or a size beyond 2²⁸; `Device`: no vector units.
pub fn benchmark_activation(size: usize, iterations: usize) -> Result<SIMDBenchmark> {
    let elements = bounded(Some(size), iterations)?;
    let x = ramp(elements, 0.75);
    let mut y = vec![0.0; elements];
    measure(format!("relu {size}"), size as f64, iterations, |ops| ops.relu_f32(&x, &mut y))
}

fn measure(
    name: String,
    operations: f64,
    iterations: usize,
    mut call: impl FnMut(&SIMDMatrixOps) -> Result<()>,
) -> Result<SIMDBenchmark> {
    let ops = SIMDMatrixOps::new();
    call(&ops)?;
    let start = Instant::now();
    for _ in 0..iterations {
        call(&ops)?;
    }
    let seconds = start.elapsed().as_secs_f64() / iterations as f64;
    Ok(SIMDBenchmark {
        name,
        iterations,
        duration: Duration::from_secs_f64(seconds),
        efficiency: operations / seconds.max(f64::MIN_POSITIVE) / 1e9,
        instruction_set: ops.instruction_set()?,
        threads: ops.threads()?,
    })
}

fn bounded(elements: Option<usize>, iterations: usize) -> Result<usize> {
    if iterations == 0 {
        return Err(Error::usage("`iterations` is 0, expected at least 1"));
    }
    elements.filter(|n| (1..=ELEMENTS_MAX).contains(n)).ok_or_else(|| {
        Error::usage(format!("`size` gives no elements or more than {ELEMENTS_MAX}"))
    })
}

/// Numbers of both signs, none subnormal.
fn ramp(elements: usize, step: f32) -> Vec<f32> {
    (0..elements).map(|i| (i % 17) as f32 * step - 4.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_fit_together() {
        let found = benchmark_matmul(64, 3).unwrap();
        assert_eq!((found.name.as_str(), found.iterations), ("matmul 64x64x64", 3));
        assert!(found.efficiency > 0.0 && found.efficiency.is_finite());
        let flops = found.efficiency * 1e9 * found.duration.as_secs_f64();
        // A duration counts whole nanoseconds.
        let whole = 2.0 * 64f64.powi(3);
        assert!((flops / whole - 1.0).abs() <= 0.05, "{flops}, expected {whole}");
        assert_eq!(benchmark_activation(1000, 2).unwrap().name, "relu 1000");
    }

    #[test]
    fn sizes_are_bounded() {
        for (size, iterations) in [(0, 1), (8, 0), (usize::MAX, 1), (1 << 20, 1)] {
            assert!(benchmark_matmul(size, iterations).is_err(), "{size} {iterations}");
        }
        assert!(benchmark_activation(usize::MAX, 1).is_err());
    }
}
