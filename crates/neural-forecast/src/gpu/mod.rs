//! The integration guide's `gpu` module: what serves in the place of a GPU, and the benchmark suite
//! that every backend joins.
//!
//! Here whatever the features; only the devices themselves depend on them, and their modules arrive
//! with their backends.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod cuda_kernels;
pub mod performance_benchmarks;
mod power;
pub mod simd_fallback;
#[cfg(feature = "gpu")]
pub mod webgpu;

#[cfg(feature = "gpu")]
pub use webgpu::{DeviceInfo, GPUBackend, GPUOperation, KernelParams};
