//! The runtime of `neural-forecast`: plans of model-level ops, their reference implementations, and
//! the contract between plans and devices.
//!
//! A forecaster builds a [`plan::Plan`]; a backend implements [`device::Device`] and compiles one
//! of the plan's entries into a [`device::Program`]; everything between the two is here: the closed
//! list of [`ops`], arenas, lowering and fusion.
//!
//! What this crate does not know: models and their names, files and formats, threads, HTTP, async.
//! `unsafe` lives in the one module `sys`.

#![deny(unsafe_code)]

pub mod arena;
mod budget;
pub mod counters;
pub mod device;
mod error;
pub mod flops;
pub mod fuse;
pub mod lower;
pub mod ops;
pub mod plan;
mod prepare;
pub mod recording;
pub mod reference;
pub mod sys;
pub mod testing;
mod weights;

pub use budget::Budget;
pub use error::{DeviceError, DeviceErrorKind, PlanError};
pub use prepare::prepare;
pub use weights::MemoryWeights;
