//! Vulkan, Metal and DX12 GPUs through WebGPU: kernels are `wgsl/*.wgsl`, embedded as text.
//!
//! A [`WgpuDevice`] is opened by number or by what [`adapters`] lists. A plan is made resident in
//! read-only buffers; an entry compiled for a bucket is one arena, pipelines and bind groups made
//! beforehand, and a list of dispatches that a run records into a single compute pass. Only
//! WebGPU's own features are needed; half precision and matrices of subgroups are used where an
//! adapter has them. Does not know models or series. Its only unsafe code says that an experimental
//! feature is wanted.

#![deny(unsafe_code)]

mod adapter;
mod device;
#[allow(unsafe_code)]
mod experiments;
mod health;
mod kernel;
mod program;
mod resident;
mod step;
mod text;
mod trial;
#[cfg(test)]
mod variants;
#[cfg(test)]
#[path = "../tests/cases/mod.rs"]
mod wide_cases;

pub use adapter::{AdapterReport, adapters};
pub use device::{WgpuDevice, WgpuOptions};
