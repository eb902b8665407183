//! SIMD backend of `neural-forecast`: kernels over packed weights, one small team of threads, and
//! the device contract on top of them.
//!
//! Knows no model and no network, and reads no file but the system's description of itself.
//! `unsafe` lives here: intrinsics, and memory that the workers of a team share while each writes
//! its own part.

pub mod amx;
pub mod attention;
pub mod caches;
#[doc(hidden)]
pub mod ceilings;
pub mod counters;
mod crew;
mod device;
pub mod dot;
pub mod elementwise;
pub mod f16;
pub mod gemm;
pub mod isa;
mod kernels;
pub mod layout;
pub mod memory;
pub mod norm;
#[cfg(test)]
mod random;
pub mod rnn;
pub mod series;
pub mod simd;
pub mod slices;
pub mod team;
pub mod tile;
mod together;
pub mod vecmath;
mod way;

pub use crew::{PIN_VARIABLE, SPIN_VARIABLE, THREADS_VARIABLE};
pub use device::{CpuDevice, CpuOptions};
pub use isa::{Isa, IsaError};
