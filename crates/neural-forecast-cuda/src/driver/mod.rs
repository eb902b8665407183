//! The NVIDIA driver behind owning handles: contexts, memory, streams, graphs, modules.
//!
//! Every handle keeps its context alive and makes it current before a call, so that handles may be
//! dropped in any order and used from any thread. Knows no plan and no op.

mod context;
mod error;
mod library;
mod memory;
mod module;
mod stream;
mod tensor_map;

pub(crate) use context::{Context, MemoryPolicy, attribute, count, gpu};
pub use library::is_driver_present;
pub(crate) use library::{Library, version_name};
pub(crate) use memory::{DeviceMemory, HostMemory};
pub(crate) use module::{Function, Module};
pub(crate) use stream::{Event, Graph, Stream};
pub(crate) use tensor_map::{Panels, TensorMap};
