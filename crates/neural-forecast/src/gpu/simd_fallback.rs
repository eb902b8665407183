//! Matrix and element operations on the CPU's vector units, over plain slices.
//!
//! The same kernels as the CPU device's. Not the way of a forecast, whose weights are packed once:
//! a product here packs its right side every time.

pub mod benchmarks;

use std::fmt::Display;

use neural_forecast_cpu::gemm::Activation;
use neural_forecast_cpu::isa::Isa;
use neural_forecast_cpu::slices::{Pairwise, SliceKernels};
use neural_forecast_cpu::team::{Team, TeamError};

use crate::error::{Error, ErrorKind, Result};

/// Operations over slices on the best vector units of this machine, or those that `NF_CPU_ISA`
/// names, with as many threads as this process may use. Calls from several threads take turns.
///
/// ```
/// use neural_forecast::gpu::simd_fallback::SIMDMatrixOps;
///
/// fn use_simd_fallback() -> Result<(), Box<dyn std::error::Error>> {
///     let simd_ops = SIMDMatrixOps::new();
///
///     // Vectorized matrix multiplication
///     let a = vec![1.0f32; 1024 * 1024];
///     let b = vec![2.0f32; 1024 * 1024];
///     let mut c = vec![0.0f32; 1024 * 1024];
///
///     simd_ops.matmul_f32(&a, &b, &mut c, 1024, 1024, 1024)?;
///
///     // Vectorized ReLU activation
///     let mut input = vec![-1.0, 0.0, 1.0, -2.0, 3.0];
///     let mut output = vec![0.0; 5];
///     simd_ops.relu_f32(&input, &mut output)?;
///
///     println!("SIMD operations completed");
/// #   assert!(c.iter().all(|&c| c == 2048.0));
/// #   assert_eq!(output, [0.0, 0.0, 1.0, 0.0, 3.0]);
/// #   input.clear();
///     Ok(())
/// }
/// # use_simd_fallback().unwrap();
/// ```
#[derive(Debug)]
pub struct SIMDMatrixOps {
    /// Every operation reports why there are no kernels; making one never fails, as in the guide.
    kernels: std::result::Result<SliceKernels, Error>,
}

impl Default for SIMDMatrixOps {
    fn default() -> Self {
        SIMDMatrixOps::new()
    }
}

impl SIMDMatrixOps {
    /// With as many threads as this process may use.
    pub fn new() -> Self {
        SIMDMatrixOps::with_threads(Team::default_workers())
    }

    /// With this many threads, the caller's included (at least 1).
    pub fn with_threads(threads: usize) -> Self {
        let device = |error: &dyn Display| Error::new(ErrorKind::Device, error);
        let kernels = Isa::from_environment()
            .map_err(|error| device(&error))
            .and_then(|isa| SliceKernels::new(isa, threads).map_err(|error| device(&error)));
        SIMDMatrixOps { kernels }
    }

    /// The vector units in use: `portable`, `avx2` or `avx512`.
    ///
    /// # Errors
    /// `Device`: `NF_CPU_ISA` names units that this machine has not, or no thread could be started.
    /// So for every other operation.
    pub fn instruction_set(&self) -> Result<&'static str> {
        Ok(self.kernels()?.isa().name())
    }

    /// Threads in use, the caller's included.
    ///
    /// # Errors
    /// As [`SIMDMatrixOps::instruction_set`].
    pub fn threads(&self) -> Result<usize> {
        Ok(self.kernels()?.workers())
    }

    /// `c = a · b` of row-major `a` `[m, k]`, `b` `[k, n]` and `c` `[m, n]`.
    ///
    /// # Errors
    /// `Usage`: a slice has not its matrix's length.
    pub fn matmul_f32(
        &self,
        a: &[f32],
        b: &[f32],
        c: &mut [f32],
        m: usize,
        n: usize,
        k: usize,
    ) -> Result<()> {
        expect_matrix("a", a.len(), ("m", m), ("k", k))?;
        expect_matrix("b", b.len(), ("k", k), ("n", n))?;
        expect_matrix("c", c.len(), ("m", m), ("n", n))?;
        self.kernels()?.matmul(a, b, c, (m, n, k)).map_err(panicked)
    }

    /// `max(x, 0)`; NaN stays NaN.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn relu_f32(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.map(Activation::Relu, input, output)
    }

    /// `1 / (1 + e⁻ˣ)`.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn sigmoid_f32(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.map(Activation::Sigmoid, input, output)
    }

    /// Hyperbolic tangent.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn tanh_f32(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.map(Activation::Tanh, input, output)
    }

    /// `x · Φ(x)` by the error function.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn gelu_f32(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.map(Activation::Gelu, input, output)
    }

    /// `x · sigmoid(x)`.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn silu_f32(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.map(Activation::Silu, input, output)
    }

    /// Softmax of each row of `width` elements, with the row's maximum subtracted first.
    ///
    /// # Errors
    /// `Usage`: the lengths differ, or are no whole number of rows.
    pub fn softmax_f32(&self, input: &[f32], output: &mut [f32], width: usize) -> Result<()> {
        expect_length("output", output.len(), input.len())?;
        if !input.is_empty() && (width == 0 || !input.len().is_multiple_of(width)) {
            return Err(Error::usage(format!(
                "`input` has {} elements, expected a multiple of `width` = {width}",
                input.len()
            )));
        }
        self.kernels()?.softmax(input, output, width).map_err(panicked)
    }

    /// `a + b`.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn add_f32(&self, a: &[f32], b: &[f32], output: &mut [f32]) -> Result<()> {
        self.pairwise(Pairwise::Add, a, b, output)
    }

    /// `a − b`.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn subtract_f32(&self, a: &[f32], b: &[f32], output: &mut [f32]) -> Result<()> {
        self.pairwise(Pairwise::Subtract, a, b, output)
    }

    /// `a · b`, element by element.
    ///
    /// # Errors
    /// `Usage`: the lengths differ.
    pub fn multiply_f32(&self, a: &[f32], b: &[f32], output: &mut [f32]) -> Result<()> {
        self.pairwise(Pairwise::Multiply, a, b, output)
    }

    fn kernels(&self) -> Result<&SliceKernels> {
        self.kernels.as_ref().map_err(Error::clone)
    }

    fn map(&self, f: Activation, input: &[f32], output: &mut [f32]) -> Result<()> {
        expect_length("output", output.len(), input.len())?;
        self.kernels()?.map(f, input, output).map_err(panicked)
    }

    fn pairwise(&self, f: Pairwise, a: &[f32], b: &[f32], output: &mut [f32]) -> Result<()> {
        expect_length("b", b.len(), a.len())?;
        expect_length("output", output.len(), a.len())?;
        self.kernels()?.pairwise(f, a, b, output).map_err(panicked)
    }
}

fn expect_length(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::usage(format!("`{name}` has {found} elements, expected {expected}")))
}

fn expect_matrix(
    name: &str,
    found: usize,
    (rows_name, rows): (&str, usize),
    (columns_name, columns): (&str, usize),
) -> Result<()> {
    if rows.checked_mul(columns) == Some(found) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "`{name}` has {found} elements, expected {rows_name} · {columns_name} = {rows} · {columns}"
    )))
}

#[cold]
fn panicked(error: TeamError) -> Error {
    Error::new(ErrorKind::Device, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_product_by_hand() {
        let ops = SIMDMatrixOps::new();
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, -1.0, 2.0, 0.5, 1.0]);
        let mut c = [f32::NAN; 4];
        ops.matmul_f32(&a, &b, &mut c, 2, 2, 3).unwrap();
        assert_eq!(c, [0.5, 7.0, 2.0, 16.0]);
        assert!(ops.threads().unwrap() >= 1);
        let served = ops.instruction_set().unwrap();
        assert!(Isa::available().iter().any(|isa| isa.name() == served), "{served}");
    }

    #[test]
    fn functions_have_known_values() {
        let ops = SIMDMatrixOps::with_threads(1);
        let x = [-1.0f32, 0.0, 2.0];
        let mut y = [f32::NAN; 3];
        let mut close = |f: &dyn Fn(&mut [f32]) -> Result<()>, expected: [f32; 3]| {
            f(&mut y).unwrap();
            for (y, e) in y.iter().zip(expected) {
                assert!((y - e).abs() <= 1e-6, "{y}, expected {e}");
            }
        };
        close(&|y| ops.relu_f32(&x, y), [0.0, 0.0, 2.0]);
        close(&|y| ops.sigmoid_f32(&x, y), [0.268_941_42, 0.5, 0.880_797_1]);
        close(&|y| ops.tanh_f32(&x, y), [-0.761_594_2, 0.0, 0.964_027_6]);
        close(&|y| ops.gelu_f32(&x, y), [-0.158_655_25, 0.0, 1.954_499_7]);
        close(&|y| ops.silu_f32(&x, y), [-0.268_941_42, 0.0, 1.761_594_2]);
        close(&|y| ops.softmax_f32(&x, y, 3), [0.042_010_07, 0.114_195_19, 0.843_794_7]);
        close(&|y| ops.add_f32(&x, &[1.0; 3], y), [0.0, 1.0, 3.0]);
        close(&|y| ops.subtract_f32(&x, &[1.0; 3], y), [-2.0, -1.0, 1.0]);
        close(&|y| ops.multiply_f32(&x, &x, y), [1.0, 0.0, 4.0]);
    }

    #[test]
    fn wrong_lengths_are_named() {
        let ops = SIMDMatrixOps::with_threads(1);
        let error = ops.matmul_f32(&[0.0; 6], &[0.0; 5], &mut [0.0; 4], 2, 2, 3).unwrap_err();
        assert_eq!(error.to_string(), "`b` has 5 elements, expected k · n = 3 · 2");
        let huge = ops.matmul_f32(&[], &[], &mut [], usize::MAX, 2, 3).unwrap_err();
        assert_eq!(huge.kind(), ErrorKind::Usage);
        let error = ops.relu_f32(&[0.0; 5], &mut [0.0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "`output` has 4 elements, expected 5");
        let error = ops.softmax_f32(&[0.0; 5], &mut [0.0; 5], 2).unwrap_err();
        assert!(error.to_string().contains("`width` = 2"), "{error}");
        assert!(ops.softmax_f32(&[0.0; 5], &mut [0.0; 5], 0).is_err());
        assert!(ops.add_f32(&[0.0; 2], &[0.0; 3], &mut [0.0; 2]).is_err());
        ops.softmax_f32(&[], &mut [], 0).unwrap();
    }
}
