//! What goes wrong outside of the backend: no driver, no such GPU, too little memory.
//!
//! A kernel that traps, and orders of dropping, are tested beside the programs.

use neural_forecast_cuda::{CudaDevice, CudaOptions, gpus};
use neural_forecast_runtime::DeviceErrorKind;

#[test]
fn a_list_of_gpus_needs_no_gpu() {
    match gpus() {
        Ok(gpus) => {
            for (i, gpu) in gpus.iter().enumerate() {
                assert_eq!(gpu.ordinal, i);
                assert!(!gpu.name.is_empty() && gpu.memory_bytes > 0 && gpu.multiprocessors > 0);
            }
        }
        Err(error) => assert_eq!(error.kind(), DeviceErrorKind::Unsupported, "{error}"),
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let error = CudaDevice::open(77, CudaOptions::default()).expect_err("there is none");
    assert_eq!(error.kind(), DeviceErrorKind::Unsupported, "{error}");
    let message = error.to_string();
    assert!(message.contains("driver") || message.contains("CUDA"), "{message}");
}

#[test]
fn a_capability_that_nobody_has_is_an_error() {
    let options = CudaOptions { compute_capability_min: Some((99, 0)), ..CudaOptions::default() };
    let error = CudaDevice::open(0, options).expect_err("nobody has it");
    assert_eq!(error.kind(), DeviceErrorKind::Unsupported, "{error}");
}

/// Run by [`no_visible_gpu_is_no_crash`] with the GPUs hidden.
#[test]
fn hidden_gpus_are_absent() {
    if std::env::var_os("NF_HIDDEN").is_none() {
        return;
    }
    let listed = gpus();
    assert!(listed.as_ref().is_ok_and(Vec::is_empty) || listed.is_err(), "{listed:?}");
    let error = CudaDevice::open(0, CudaOptions::default()).expect_err("there is none");
    assert_eq!(error.kind(), DeviceErrorKind::Unsupported, "{error}");
    println!("absent: {error}");
}

#[test]
fn no_visible_gpu_is_no_crash() {
    let program = std::env::current_exe().expect("a test knows its program");
    let output = std::process::Command::new(program)
        .args(["--exact", "hidden_gpus_are_absent", "--nocapture"])
        .env("NF_HIDDEN", "1")
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("the test can run itself");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("absent: "), "{text}");
}
