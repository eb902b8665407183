//! CUDA backend of `neural-forecast`: NVIDIA GPUs with nothing but the driver.
//!
//! Kernels are in `ptx/` and embedded as built; nothing is compiled on the user's machine. Knows no
//! model. `unsafe` lives here: calls into the driver, and kernels that read and write the device
//! addresses they are given.

mod crew;
mod device;
mod driver;
pub mod dry;
pub mod gpu;
mod image;
mod launch;
mod linger;
mod program;
mod resident;
mod staging;
mod step;
mod surround;
pub mod telemetry;
#[cfg(test)]
mod trial;

pub use device::{Bandwidth, CudaDevice, CudaOptions, gpus};
pub use driver::is_driver_present;
