//! Fused operations: the integration guide's `FusedOperation`.
//!
//! A description of what is fused, the plan of it, and a way to run it; the fusing itself is the
//! runtime's pass and the backend's kernels.

use neural_forecast_cuda::CudaDevice;
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{KernelCount, Precision};
use neural_forecast_runtime::ops::{Activation, Linear, Norm};
use neural_forecast_runtime::plan::{Context, DType, Dim, EntryKind, Plan, PlanBuilder};

use super::LaunchConfig;
use crate::error::{Error, ErrorKind, Result};

/// Rows for which a launch configuration is given where none are named.
const ROWS: usize = 1024;

/// What PyTorch's `LayerNorm` adds to the variance.
const EPSILON: f32 = 1e-5;

/// What a fused product ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms, reason = "the integration guide's names")]
pub enum ActivationType {
    /// `max(x, 0)`.
    ReLU,
    /// `x · Φ(x)` by the error function.
    GELU,
    /// `x · sigmoid(x)`.
    SiLU,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

impl From<ActivationType> for Activation {
    fn from(kind: ActivationType) -> Activation {
        match kind {
            ActivationType::ReLU => Activation::Relu,
            ActivationType::GELU => Activation::Gelu,
            ActivationType::SiLU => Activation::Silu,
            ActivationType::Sigmoid => Activation::Sigmoid,
            ActivationType::Tanh => Activation::Tanh,
        }
    }
}

/// Operations that one kernel (or as few as the device has) computes without a result in memory
/// between them.
///
/// ```
/// use neural_forecast::gpu::cuda_kernels::kernel_fusion::{FusedOperation, ActivationType};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # async fn use_kernel_fusion() -> Result<(), Box<dyn std::error::Error>> {
///     // Fuse linear transformation with ReLU activation
///     let fused_op = FusedOperation::LinearReLU {
///         in_features: 1024,
///         out_features: 512,
///     };
///
///     let launch_config = fused_op.launch_config();
///     println!("Fused operation config: {:?}", launch_config);
/// #   assert!(!launch_config.is_empty());
///
///     // Fuse layer normalization, linear transformation, and GELU
///     let complex_fusion = FusedOperation::LayerNormLinearActivation {
///         feature_size: 768,
///         out_features: 3072,
///         activation: ActivationType::GELU,
///     };
///
///     println!("Complex fusion configured");
/// #   assert!(!complex_fusion.launch_config().is_empty());
///
///     Ok(())
/// # }
/// # use_kernel_fusion().await
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FusedOperation {
    /// `max(x·Wᵀ + b, 0)`.
    LinearReLU {
        /// Columns of `x`.
        in_features: usize,
        /// Columns of the result.
        out_features: usize,
    },
    /// `gelu(x·Wᵀ + b)`.
    LinearGELU {
        /// Columns of `x`.
        in_features: usize,
        /// Columns of the result.
        out_features: usize,
    },
    /// `activation(layer_norm(x)·Wᵀ + b)`.
    LayerNormLinearActivation {
        /// Columns of `x`.
        feature_size: usize,
        /// Columns of the result.
        out_features: usize,
        /// What it ends with.
        activation: ActivationType,
    },
}

/// Weights of a [`FusedOperation`], row-major in host memory.
#[derive(Clone, Copy, Debug)]
pub struct FusedWeights<'a> {
    /// `[out, in]`.
    pub weight: &'a [f32],
    /// `[out]`.
    pub bias: &'a [f32],
    /// Scale and shift of the norm, `[in]` each; read by operations with a norm alone.
    pub norm: Option<(&'a [f32], &'a [f32])>,
}

impl FusedOperation {
    /// Columns in, columns out.
    pub fn widths(&self) -> (usize, usize) {
        match *self {
            FusedOperation::LinearReLU { in_features, out_features }
            | FusedOperation::LinearGELU { in_features, out_features } => {
                (in_features, out_features)
            }
            FusedOperation::LayerNormLinearActivation { feature_size, out_features, .. } => {
                (feature_size, out_features)
            }
        }
    }

    fn activation(&self) -> Activation {
        match *self {
            FusedOperation::LinearReLU { .. } => Activation::Relu,
            FusedOperation::LinearGELU { .. } => Activation::Gelu,
            FusedOperation::LayerNormLinearActivation { activation, .. } => activation.into(),
        }
    }

    fn has_norm(&self) -> bool {
        matches!(self, FusedOperation::LayerNormLinearActivation { .. })
    }

    fn plan(&self) -> Result<Plan> {
        let (k, n) = self.widths();
        let built = || {
            let mut builder = PlanBuilder::new("fused", Context::Fixed(1));
            let weight = builder.weight("weight", &[n, k]);
            let bias = builder.weight("bias", &[n]);
            let norm = self
                .has_norm()
                .then(|| (builder.weight("norm.weight", &[k]), builder.weight("norm.bias", &[k])));
            builder.begin(EntryKind::Full);
            let mut x = builder.input("x", DType::F32, &[Dim::BATCH, k.into()]);
            if let Some((scale, shift)) = norm {
                x = builder.one(Norm::layer(x, scale, shift, EPSILON))?;
            }
            let product = Linear::new(x, weight).bias(bias).activation(self.activation());
            let y = builder.one(product)?;
            builder.output("y", y, Vec::new());
            builder.finish()
        };
        built().map_err(|error| Error::new(ErrorKind::Config, error))
    }

    /// Its launches over 1024 rows in f16, on the first GPU of this machine, or on a typical GPU
    /// of compute capability 8.0 where there is none. Empty where a width is 0.
    pub fn launch_config(&self) -> Vec<LaunchConfig> {
        let Ok(plan) = self.plan() else { return Vec::new() };
        super::launch_config(&plan, ROWS, Precision::F16)
    }

    /// Computes it: `x` `[rows, in]` to `y` `[rows, out]`, row-major in host memory; gives the
    /// kernels that were launched, with their counts.
    ///
    /// # Errors
    /// `Usage`: a length that does not fit, or a norm without its weights; `Device`: what the
    /// device reports.
    pub fn launch(
        &self,
        device: &CudaDevice,
        precision: Precision,
        weights: FusedWeights<'_>,
        x: &[f32],
        y: &mut [f32],
    ) -> Result<Vec<KernelCount>> {
        let (k, n) = self.widths();
        let rows = x.len() / k.max(1);
        let (scale, shift) = match (self.has_norm(), weights.norm) {
            (false, _) => Default::default(),
            (true, Some(norm)) => norm,
            (true, None) => return Err(Error::usage("a norm needs `norm` weights, found none")),
        };
        let normed = if self.has_norm() { k } else { 0 };
        for (name, found, expected) in [
            ("x", x.len(), rows.saturating_mul(k)),
            ("y", y.len(), rows.saturating_mul(n)),
            ("weight", weights.weight.len(), n.saturating_mul(k)),
            ("bias", weights.bias.len(), n),
            ("norm scale", scale.len(), normed),
            ("norm shift", shift.len(), normed),
        ] {
            if found != expected {
                let message = format!("`{name}` has {found} elements, expected {expected}");
                return Err(Error::usage(message));
            }
        }
        if y.is_empty() {
            return Ok(Vec::new());
        }
        let mut store = MemoryWeights::new();
        store.insert("weight", &[n, k], weights.weight);
        store.insert("bias", &[n], weights.bias);
        if self.has_norm() {
            store.insert("norm.weight", &[k], scale);
            store.insert("norm.bias", &[k], shift);
        }
        super::run_rows(device, &self.plan()?, &store, precision, x, y)
    }
}
