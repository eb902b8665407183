//! The embedded kernels: one fat binary a source of `ptx/`, loaded when first used.
//!
//! Each holds machine code for the architectures that ship and PTX for those that follow. Names
//! no kernel: a launch does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::driver::{Context, Function, Module};
use crate::launch::Launch;

/// Bytes at an address that the driver reads as words.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// The fat binaries by the stems of their sources.
macro_rules! images {
    ($($name:literal,)*) => {
        static IMAGES: &[(&str, &Aligned<[u8]>)] = &[
            $(($name, &Aligned(*include_bytes!(concat!("../ptx/", $name, ".fatbin")))),)*
        ];
    };
}

// One line a source, in order.
images! {
    "attention",
    "attention_hopper",
    "attention_tf32_hopper",
    "elementwise",
    "encoder",
    "encoder_small_bf16_hopper",
    "encoder_small_hopper",
    "gemm",
    "gemm_few",
    "gemm_f32_hopper",
    "gemm_hopper",
    "gemm_tf32_hopper",
    "layout",
    "norm",
    "normalize",
    "program",
    "quantile",
    "resample",
    "rnn_batch_f32_hopper",
    "rnn_batch_hopper",
    "rnn_latency",
    "rnn_latency_hopper",
    "rnn_wide_hopper",
    "rnn_stack",
}

/// The kernels of one device, as far as they are loaded.
#[derive(Debug)]
pub(crate) struct Images {
    context: Arc<Context>,
    modules: Mutex<HashMap<&'static str, Arc<Module>>>,
    functions: Mutex<HashMap<(&'static str, String), Function>>,
}

impl Images {
    pub(crate) fn new(context: Arc<Context>) -> Images {
        Images { context, modules: Mutex::default(), functions: Mutex::default() }
    }

    /// The kernel of a launch.
    ///
    /// # Errors
    /// `Compile` if the driver refuses the image, or there is no such kernel in it.
    pub(crate) fn function(&self, launch: &Launch) -> Result<Function, DeviceError> {
        let key = (launch.module, launch.function.clone());
        // The maps only grow, each by a single call, so that a panic leaves them whole.
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&key) {
            return Ok(function.clone());
        }
        let function = self.module(launch.module)?.function(&launch.function)?;
        functions.insert(key, function.clone());
        Ok(function)
    }

    #[cfg(test)]
    pub(crate) fn add(&self, name: &'static str, module: Module) {
        let mut modules = self.modules.lock().expect("no test panicked with it");
        modules.insert(name, Arc::new(module));
    }

    fn module(&self, name: &'static str) -> Result<Arc<Module>, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(name) {
            return Ok(Arc::clone(module));
        }
        let Some((_, image)) = IMAGES.iter().find(|(known, _)| *known == name) else {
            let message = format!("no kernels `{name}` are embedded");
            return Err(DeviceError::new(DeviceErrorKind::Compile, message));
        };
        let module = Arc::new(Module::load(&self.context, name, &image.0)?);
        modules.insert(name, Arc::clone(&module));
        Ok(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_a_fat_binary_and_named_once() {
        for (i, (name, image)) in IMAGES.iter().enumerate() {
            assert!(image.0.starts_with(&[0x50, 0xed, 0x55, 0xba]), "`{name}` is no fat binary");
            assert!(image.0.as_ptr().addr().is_multiple_of(64), "`{name}` is not aligned");
            assert!(IMAGES[..i].iter().all(|(other, _)| other != name), "`{name}` twice");
        }
    }
}
