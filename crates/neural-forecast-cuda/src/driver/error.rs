//! What the driver's error codes mean for a caller.

use std::ffi::{CStr, c_char};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::library::{Code, Library, version_name};

/// A question whose answer is "not yet"; no error.
pub(crate) const NOT_READY: Code = 600;

/// Which kind of failure a code is. Codes that leave the context unusable are `Lost`: nothing that
/// came from the device works after them.
pub(crate) fn kind(code: Code) -> DeviceErrorKind {
    match code {
        2 => DeviceErrorKind::OutOfMemory,
        // Deinitialised, unavailable, no context, ECC, NVLink, illegal address, launch timeout,
        // destroyed context, assert, hardware stack, illegal instruction, misaligned address,
        // address space, program counter, launch failure, contained error, tensor memory leak,
        // external device, unknown.
        4 | 46 | 201 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 722 | 911 | 999 => {
            DeviceErrorKind::Lost
        }
        // Images: invalid, no binary for this GPU, PTX invalid, compiler missing, PTX too new,
        // compiling switched off, source.
        200 | 209 | 218 | 221..=223 | 300 => DeviceErrorKind::Compile,
        // No device, no such device, licence, limits, driver and system do not match, not
        // supported, too many resources for a launch, cooperative grid too large.
        100..=102 | 215 | 701 | 720 | 801..=804 => DeviceErrorKind::Unsupported,
        _ => DeviceErrorKind::Execution,
    }
}

/// The error of a code that `what` (a call with its sizes) returned.
#[cold]
pub(crate) fn describe(library: &Library, code: Code, what: &str) -> DeviceError {
    let name = text(library.cuGetErrorName, code).unwrap_or_else(|| format!("error {code}"));
    let mut message = format!("{what}: {name}");
    if let Some(meaning) = text(library.cuGetErrorString, code) {
        message.push_str(&format!(" ({meaning})"));
    }
    if kind(code) == DeviceErrorKind::Compile {
        let found = version_name(library.version);
        message.push_str(&format!(
            "; the driver supports CUDA {found}, the embedded kernels are built for compute \
             capability 8.0 and newer and need a driver of CUDA 12.0 or newer"
        ));
    }
    DeviceError::new(kind(code), message)
}

fn text(get: unsafe extern "C" fn(Code, *mut *const c_char) -> Code, code: Code) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: the pointer is to a local; the driver sets it to a static string, or to null for a
    // code that it does not know.
    let found = unsafe { get(code, &raw mut text) } == 0 && !text.is_null();
    // SAFETY: as above.
    found.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_kinds_that_the_contract_names() {
        assert_eq!(kind(2), DeviceErrorKind::OutOfMemory);
        for sticky in [700, 710, 715, 716, 717, 718, 719, 214, 999] {
            assert_eq!(kind(sticky), DeviceErrorKind::Lost, "{sticky}");
        }
        for image in [209, 218, 221, 222] {
            assert_eq!(kind(image), DeviceErrorKind::Compile, "{image}");
        }
        for absent in [100, 101, 720, 801] {
            assert_eq!(kind(absent), DeviceErrorKind::Unsupported, "{absent}");
        }
        assert_eq!(kind(1), DeviceErrorKind::Execution);
        assert_eq!(kind(123_456), DeviceErrorKind::Execution);
    }
}
