//! Products on tensor cores: the integration guide's `TensorCoreConfig`.
//!
//! Describes a product; [`super::CudaKernel`] runs it.

use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::ops::Linear;
use neural_forecast_runtime::plan::{Context, DType, Dim, EntryKind, Plan, PlanBuilder};

use super::LaunchConfig;
use crate::error::{Error, ErrorKind, Result};

/// A product `c[m, n] = a[m, k] · b[k, n]` and the format of its factors: f16, unless a flag says
/// otherwise. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorCoreConfig {
    /// Rows of `a` and `c`.
    pub m: usize,
    /// Columns of `b` and `c`.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// Factors in TF32.
    pub use_tf32: bool,
    /// `b` in 8-bit integers with a scale per column; wins over `use_tf32`.
    pub use_int8: bool,
}

impl TensorCoreConfig {
    /// The format that the flags name.
    pub fn precision(&self) -> Precision {
        match (self.use_int8, self.use_tf32) {
            (true, _) => Precision::Int8,
            (false, true) => Precision::Tf32,
            (false, false) => Precision::F16,
        }
    }

    /// The launches of this product on the first GPU of this machine, or on a typical GPU of
    /// compute capability 8.0 where there is none. Empty where `n` or `k` is 0.
    ///
    /// ```
    /// use neural_forecast::gpu::cuda_kernels::mixed_precision::TensorCoreConfig;
    ///
    /// let config =
    ///     TensorCoreConfig { m: 1024, n: 1024, k: 1024, use_tf32: false, use_int8: false };
    /// let launches = config.launch_config();
    /// assert!(launches.iter().all(|launch| launch.block[0] > 0));
    /// assert!(!launches.is_empty());
    /// ```
    pub fn launch_config(&self) -> Vec<LaunchConfig> {
        let Ok(plan) = plan(self.k, self.n) else { return Vec::new() };
        super::launch_config(&plan, self.m, self.precision())
    }
}

/// One product of `[B, k]` with a weight `b` `[n, k]`.
pub(super) fn plan(k: usize, n: usize) -> Result<Plan> {
    let built = || {
        let mut builder = PlanBuilder::new("product", Context::Fixed(1));
        let weight = builder.weight("b", &[n, k]);
        builder.begin(EntryKind::Full);
        let x = builder.input("a", DType::F32, &[Dim::BATCH, k.into()]);
        let y = builder.one(Linear::new(x, weight))?;
        builder.output("c", y, Vec::new());
        builder.finish()
    };
    built().map_err(|error| Error::new(ErrorKind::Config, error))
}
