//! Single kernels of the CUDA backend, as the integration guide names them.
//!
//! Each runs through the same plans, programs and kernels as a model does; there is no second
//! implementation behind this face.

pub mod kernel_fusion;
pub mod mixed_precision;

use std::sync::Arc;

use neural_forecast_cuda::CudaDevice;
use neural_forecast_cuda::dry::LaunchShape;
use neural_forecast_cuda::gpu::Gpu;
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, KernelCount, LoadOptions, Precision, Request, Run,
};
use neural_forecast_runtime::plan::{Bucket, EntryKind, Plan};

use self::mixed_precision::TensorCoreConfig;
use crate::engine::device_error;
use crate::error::{Error, ErrorKind, Result};
use crate::run_info::launched;

/// A kernel's launch: blocks, threads, shared memory, and the name it is counted under.
pub type LaunchConfig = LaunchShape;

/// The products by name: what they are called, in which precision they run.
const PRODUCTS: [(&str, Precision); 6] = [
    ("mixed_precision_gemm", Precision::F16),
    ("bf16_gemm", Precision::Bf16),
    ("tf32_gemm", Precision::Tf32),
    ("f32_gemm", Precision::F32),
    ("int8_gemm", Precision::Int8),
    ("fp8_gemm", Precision::Fp8),
];

/// The kernels of a GPU by name.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// #     use neural_forecast::gpu::cuda::{CudaBackend, check_cuda_availability};
/// #     if !matches!(check_cuda_availability(), Ok(true)) {
/// #         println!("skipped: no CUDA device");
/// #         return Ok(());
/// #     }
/// #     let cuda_device = CudaBackend::new(Default::default())?.device();
/// use neural_forecast::gpu::cuda_kernels::{CudaKernelRegistry, mixed_precision::TensorCoreConfig};
///
/// # async fn use_mixed_precision(
/// #     cuda_device: std::sync::Arc<neural_forecast::gpu::cuda::CudaDevice>,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
///     let kernel_registry = CudaKernelRegistry::new(cuda_device.clone())?;
///
///     // Configure tensor cores for FP16
///     let tensor_config = TensorCoreConfig {
///         m: 1024,
///         n: 1024,
///         k: 1024,
///         use_tf32: false,
///         use_int8: false,
///     };
///
///     let launch_config = tensor_config.launch_config();
///     println!("Tensor core config: {:?}", launch_config);
///
///     // Execute mixed precision GEMM
///     if let Some(kernel) = kernel_registry.get_kernel("mixed_precision_gemm") {
///         // Launch kernel with optimal configuration
///         println!("Launching mixed precision kernel");
/// #       let (a, b) = (vec![0.5; 1024 * 1024], vec![0.25; 1024 * 1024]);
/// #       let mut c = vec![f32::NAN; 1024 * 1024];
/// #       let launches = kernel.launch(&tensor_config, &a, &b, &mut c)?;
/// #       assert!(!launches.is_empty() && c.iter().all(|&c| c == 128.0));
///     }
///
///     Ok(())
/// # }
/// # use_mixed_precision(cuda_device).await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CudaKernelRegistry {
    device: Arc<CudaDevice>,
    kernels: Vec<CudaKernel>,
}

impl CudaKernelRegistry {
    /// The kernels that a device has.
    ///
    /// # Errors
    /// `Unsupported`: it has none.
    pub fn new(device: Arc<CudaDevice>) -> Result<Self> {
        let has = |precision| device.capabilities().precisions.contains(&precision);
        let kernels: Vec<CudaKernel> = PRODUCTS
            .into_iter()
            .filter(|&(_, precision)| has(precision))
            .map(|(name, precision)| CudaKernel { name, precision, device: Arc::clone(&device) })
            .collect();
        if kernels.is_empty() {
            let message = format!("device `{}` has no kernel", device.capabilities().id);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(CudaKernelRegistry { device, kernels })
    }

    /// The kernel of this name.
    pub fn get_kernel(&self, name: &str) -> Option<&CudaKernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kernels.iter().map(|kernel| kernel.name)
    }

    /// The device.
    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }
}

/// A matrix product in one precision.
#[derive(Clone, Debug)]
pub struct CudaKernel {
    name: &'static str,
    precision: Precision,
    device: Arc<CudaDevice>,
}

impl CudaKernel {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The number format of its products; sums are always f32.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// `c[m, n] = a[m, k] · b[k, n]`, all row-major in host memory; gives the kernels that were
    /// launched, with their counts.
    ///
    /// # Errors
    /// `Usage`: a length that is not the configuration's; `Device`: what the device reports.
    pub fn launch(
        &self,
        config: &TensorCoreConfig,
        a: &[f32],
        b: &[f32],
        c: &mut [f32],
    ) -> Result<Vec<KernelCount>> {
        let (m, n, k) = (config.m, config.n, config.k);
        for (name, found, rows, columns) in
            [("a", a.len(), m, k), ("b", b.len(), k, n), ("c", c.len(), m, n)]
        {
            if rows.checked_mul(columns) != Some(found) {
                return Err(Error::usage(format!(
                    "`{name}` has {found} elements, expected {rows} x {columns}"
                )));
            }
        }
        if c.is_empty() {
            return Ok(Vec::new());
        }
        let mut transposed = vec![0.0; b.len()];
        for (row, values) in b.chunks_exact(n).enumerate() {
            for (column, &value) in values.iter().enumerate() {
                transposed[column * k + row] = value;
            }
        }
        let mut weights = MemoryWeights::new();
        weights.insert("b", &[n, k], &transposed);
        let plan = mixed_precision::plan(k, n)?;
        run_rows(&self.device, &plan, &weights, self.precision, a, c)
    }
}

/// Runs a plan of one input and one output over as many rows as `x` has.
fn run_rows(
    device: &CudaDevice,
    plan: &Plan,
    weights: &MemoryWeights,
    precision: Precision,
    x: &[f32],
    y: &mut [f32],
) -> Result<Vec<KernelCount>> {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let mut resident = device.load(plan, weights, &options).map_err(device_error)?;
    let width = plan.entries[0].values[0].shape.last().and_then(|dim| dim.fixed()).unwrap_or(1);
    let rows = x.len() / width.max(1);
    let mut program = resident.compile(request(rows)).map_err(device_error)?;
    let before = device.kernel_counts();
    program.write(0, Data::F32(x));
    program.submit(&Run { rows, slots: &[], cancel: None }).map_err(device_error)?;
    program.wait().map_err(device_error)?;
    program.read(0, y).map_err(device_error)?;
    drop(program);
    Ok(launched(&before, &device.kernel_counts()))
}

fn request(rows: usize) -> Request {
    Request {
        entry: EntryKind::Full,
        bucket: Bucket { batch: rows, length: 1 },
        class: KernelClass::Throughput,
    }
}

/// What a plan launches on the first GPU here, or on a typical one where there is none.
fn launch_config(plan: &Plan, rows: usize, precision: Precision) -> Vec<LaunchConfig> {
    let here = neural_forecast_cuda::gpus().ok().and_then(|gpus| gpus.into_iter().next());
    let gpu = here.unwrap_or_else(|| Gpu::typical((8, 0)));
    let options = LoadOptions { precision, ..LoadOptions::default() };
    // A plan that cannot be compiled launches nothing.
    neural_forecast_cuda::dry::launches(plan, request(rows), &options, &gpu).unwrap_or_default()
}
