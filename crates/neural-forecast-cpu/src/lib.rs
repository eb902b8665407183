//! SIMD backend of `neural-forecast`: kernels over packed weights, one small team of threads, and
//! the device contract on top of them.
//!
//! Knows no model, file or network. `unsafe` lives here: intrinsics, and slices that the workers of
//! a team share while each writes its own part.

pub mod attention;
pub mod counters;
pub mod gemm;
pub mod isa;
pub mod memory;
#[cfg(test)]
mod random;
pub mod rnn;
pub mod simd;
pub mod slices;
pub mod team;
pub mod tile;
pub mod vecmath;

pub use isa::{Isa, IsaError};
