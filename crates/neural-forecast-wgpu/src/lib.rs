//! Vulkan, Metal and DX12 GPUs through WebGPU: kernels are `wgsl/*.wgsl`, embedded as text.
//!
//! A [`WgpuDevice`] is opened by number or by what [`adapters`] lists. A plan is made resident in
//! read-only buffers; an entry compiled for a bucket is one arena, pipelines and bind groups made
//! beforehand, and a list of dispatches that a run records into a single compute pass. Only
//! WebGPU's own features are needed; half precision and matrices of subgroups are used where an
//! adapter has them. Does not know models or series. Its only unsafe code, in `experiments`, gives
//! wgpu two promises.

#![deny(unsafe_code)]

mod adapter;
mod cache;
mod clock;
mod device;
mod exchange;
#[allow(unsafe_code)]
mod experiments;
mod health;
mod kernel;
mod program;
mod resident;
#[cfg(test)]
mod spirv;
mod step;
mod text;
mod trial;
#[cfg(test)]
mod variants;
#[cfg(test)]
#[path = "../tests/cases/mod.rs"]
mod wide_cases;
mod window;

pub use adapter::{AdapterReport, adapters};
pub use cache::{PipelineCacheReport, PipelinesFound};
pub use device::{WgpuDevice, WgpuOptions};
