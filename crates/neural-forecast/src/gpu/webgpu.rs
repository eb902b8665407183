//! WebGPU adapters as the integration guide addresses them: choose one, ask what it is, run single
//! operations on it, hand it to models.
//!
//! A thin face of the WebGPU backend. Models do not need it: they take a device by name.

use std::fmt;
use std::sync::Arc;

use neural_forecast_runtime::device::{
    Data, Device, KernelClass, KernelCount, LoadOptions, Request, Run,
};
use neural_forecast_runtime::ops::{Activation, Linear, Unary, UnaryKind};
use neural_forecast_runtime::plan::{Bucket, Context, DType, Dim, EntryKind, PlanBuilder};
use neural_forecast_runtime::{MemoryWeights, PlanError};
use neural_forecast_wgpu::{WgpuDevice, WgpuOptions};

use crate::config::GPUConfig;
use crate::device::OpenDevice;
use crate::engine::device_error;
use crate::error::{Error, ErrorKind, Result};
use crate::run_info::launched;

/// What an adapter is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The maker's name.
    pub name: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `CPU` or `other`.
    pub device_type: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The driver's name and version.
    pub driver: String,
}

/// An opened WebGPU adapter.
///
/// ```
/// # #[tokio::main]
/// # async fn main() {
/// #     if let Err(absent) = setup_webgpu().await { println!("skipped: {absent}"); }
/// # }
/// use neural_forecast::config::GPUConfig;
/// use neural_forecast::gpu::{GPUBackend, GPUOperation, KernelParams};
///
/// async fn setup_webgpu() -> Result<(), Box<dyn std::error::Error>> {
///     let gpu_config = GPUConfig {
///         preferred_backend: Some("vulkan".to_string()),
///         memory_limit: Some(4 * 1024 * 1024 * 1024), // 4GB
///         ..Default::default()
///     };
///
///     let backend = GPUBackend::new(gpu_config).await?;
///
///     // Get device info
///     let info = backend.device_info();
///     println!("WebGPU Device: {} ({}) - {}",
///              info.name, info.device_type, info.backend);
/// #   assert_eq!(info.backend, "vulkan");
/// #   let params = KernelParams { rows: 1, columns: 2, inner: 2 };
/// #   let product = backend.run(GPUOperation::MatMul, &params, &[&[1., 2.], &[1., 2., 3., 4.]])?;
/// #   assert_eq!(product.output, [7.0, 10.0]);
///
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct GPUBackend {
    device: Arc<WgpuDevice>,
    info: DeviceInfo,
}

/// An operation over matrices in host memory, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GPUOperation {
    /// `a[rows, inner] · b[inner, columns]`; two inputs.
    MatMul,
    /// `max(x, 0)` of `x[rows, columns]`; one input, as for all that follow.
    ReLU,
    /// GELU by the error function.
    GELU,
    /// Softmax of each row.
    Softmax,
}

/// The sizes of a [`GPUOperation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelParams {
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// What a product sums over; the others pass it by.
    pub inner: usize,
}

/// What an operation came to.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationResult {
    /// `[rows, columns]`, row-major.
    pub output: Vec<f32>,
    /// Kernels that it launched, with their counts.
    pub kernels: Vec<KernelCount>,
}

impl fmt::Display for GPUOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GPUOperation::MatMul => "matmul",
            GPUOperation::ReLU => "relu",
            GPUOperation::GELU => "gelu",
            GPUOperation::Softmax => "softmax",
        })
    }
}

impl GPUBackend {
    /// Opens the first adapter, real GPUs first; of one backend where the configuration prefers it.
    /// The work is done when the future is first polled.
    ///
    /// # Errors
    /// `Config`: limits that no device can have; `Device`: no driver, no adapter, or none of the
    /// preferred backend.
    pub async fn new(config: GPUConfig) -> Result<Self> {
        Self::on(0, config)
    }

    /// As [`GPUBackend::new`] on an adapter by number.
    ///
    /// # Errors
    /// As there.
    pub fn on(ordinal: usize, config: GPUConfig) -> Result<Self> {
        let device = open(ordinal, &config)?;
        let adapter = device.adapter();
        let info = DeviceInfo {
            name: adapter.name.clone(),
            device_type: adapter.device_type.to_owned(),
            backend: adapter.backend.to_owned(),
            driver: adapter.driver.clone(),
        };
        Ok(GPUBackend { device, info })
    }

    /// What it is.
    pub fn device_info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The device as models take it.
    pub fn open_device(&self) -> OpenDevice {
        OpenDevice { device: Arc::clone(&self.device) as Arc<dyn Device>, fallback: None }
    }

    /// Runs an operation through the same plans, programs and kernels as a model does.
    ///
    /// # Errors
    /// `Usage`: another number of inputs, or a length that is not the sizes'; `Device`: what the
    /// device reports.
    pub fn run(
        &self,
        operation: GPUOperation,
        params: &KernelParams,
        inputs: &[&[f32]],
    ) -> Result<OperationResult> {
        let &KernelParams { rows, columns, inner } = params;
        let shapes = match operation {
            GPUOperation::MatMul => vec![(rows, inner), (inner, columns)],
            _ => vec![(rows, columns)],
        };
        if inputs.len() != shapes.len() {
            let (found, wanted) = (inputs.len(), shapes.len());
            return Err(Error::usage(format!(
                "`{operation}` has {found} inputs, expected {wanted}"
            )));
        }
        for (i, (input, &(rows, columns))) in inputs.iter().zip(&shapes).enumerate() {
            let found = input.len();
            if rows.checked_mul(columns) != Some(found) {
                return Err(Error::usage(format!(
                    "input {i} of `{operation}` has {found} elements, expected {rows} x {columns}"
                )));
            }
        }
        if rows == 0 || columns == 0 {
            return Ok(OperationResult { output: Vec::new(), kernels: Vec::new() });
        }
        let mut weights = MemoryWeights::new();
        if let [_, b] = inputs {
            // Products take their weights as `[outputs, inputs]`.
            let at = |i: usize| b[i % inner * columns + i / inner];
            let transposed: Vec<f32> = (0..b.len()).map(at).collect();
            weights.insert("b", &[columns, inner], &transposed);
        }
        let plan = plan(operation, params)
            .map_err(|error| Error::new(ErrorKind::Usage, error).context(operation.to_string()))?;
        let resident = self.device.load(&plan, &weights, &LoadOptions::default());
        let mut resident = resident.map_err(device_error)?;
        let bucket = Bucket { batch: rows, length: 1 };
        let class = KernelClass::Throughput;
        let request = Request { entry: EntryKind::Full, bucket, class };
        let mut program = resident.compile(request).map_err(device_error)?;
        let before = self.device.kernel_counts();
        program.write(0, Data::F32(inputs[0]));
        program.submit(&Run { rows, ..Run::default() }).map_err(device_error)?;
        program.wait().map_err(device_error)?;
        let mut output = vec![0.0; rows * columns];
        program.read(0, &mut output).map_err(device_error)?;
        let kernels = launched(&before, &self.device.kernel_counts());
        Ok(OperationResult { output, kernels })
    }
}

/// The plan of an operation: rows are the batch.
fn plan(
    operation: GPUOperation,
    params: &KernelParams,
) -> std::result::Result<neural_forecast_runtime::plan::Plan, PlanError> {
    let mut plan = PlanBuilder::new(operation.to_string(), Context::Fixed(1));
    plan.begin(EntryKind::Full);
    let width = match operation {
        GPUOperation::MatMul => params.inner,
        _ => params.columns,
    };
    let x = plan.input("x", DType::F32, &[Dim::BATCH, width.into()]);
    let y = match operation {
        GPUOperation::MatMul => {
            let b = plan.weight("b", &[params.columns, params.inner]);
            plan.step(Linear::new(x, b))?
        }
        GPUOperation::ReLU => plan.step(Unary::activation(x, Activation::Relu))?,
        GPUOperation::GELU => plan.step(Unary::activation(x, Activation::Gelu))?,
        GPUOperation::Softmax => plan.step(Unary { x, kind: UnaryKind::Softmax })?,
    };
    plan.output("y", y[0], Vec::new());
    plan.finish()
}

/// Opens an adapter within the limits of a configuration.
pub(crate) fn open(ordinal: usize, config: &GPUConfig) -> Result<Arc<WgpuDevice>> {
    config.validate()?;
    let options = WgpuOptions {
        backend: config.preferred_backend.clone(),
        memory_bytes_max: config.memory_limit,
        pipeline_folder: config.pipeline_folder.clone(),
        ..WgpuOptions::default()
    };
    let device = WgpuDevice::open(ordinal, options).map_err(|error| {
        Error::new(ErrorKind::Device, error)
            .context(format!("device `gpu:{ordinal}` is not available"))
    })?;
    Ok(Arc::new(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_before_an_adapter_is_looked_for() {
        let none = GPUConfig { memory_limit: Some(0), ..GPUConfig::default() };
        let error = GPUBackend::on(0, none).expect_err("no device has no memory");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }

    #[test]
    fn an_adapter_that_is_not_there_is_an_error() {
        let error = GPUBackend::on(4096, GPUConfig::default()).expect_err("nobody has so many");
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.to_string().contains("gpu:4096"), "{error}");
    }

    #[test]
    fn operations_compute_and_refuse_by_name() {
        use neural_forecast_runtime::testing::device_or_skip;
        let opened = GPUBackend::on(0, GPUConfig::default());
        let Some(backend) = device_or_skip("wgpu", opened) else { return };
        let sizes = KernelParams { rows: 2, columns: 3, inner: 0 };
        let x = [-1.0, 0.0, 2.0, 3.0, -4.0, 0.5];
        let relu = backend.run(GPUOperation::ReLU, &sizes, &[&x]).expect("it runs");
        assert_eq!(relu.output, [0.0, 0.0, 2.0, 3.0, 0.0, 0.5]);
        assert_eq!(relu.kernels.len(), 1);
        let shares = backend.run(GPUOperation::Softmax, &sizes, &[&x]).expect("it runs").output;
        assert!((shares[..3].iter().sum::<f32>() - 1.0).abs() <= 1e-6, "{shares:?}");
        let error = backend.run(GPUOperation::MatMul, &sizes, &[&x]).expect_err("one of two");
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        let error = backend.run(GPUOperation::GELU, &sizes, &[&x[1..]]).expect_err("too short");
        assert!(error.to_string().contains("5 elements"), "{error}");
    }
}
