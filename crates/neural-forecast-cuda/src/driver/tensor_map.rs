//! Tensor maps: what the bulk tensor copies of Hopper know about a matrix in device memory.
//!
//! Only row-major matrices whose boxes are 128 bytes wide with the 128-byte swizzle.

use std::ffi::{c_int, c_void};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::error::describe;
use super::library::Library;

/// Bytes of a row of a box.
const BOX_BYTES: usize = 128;

/// A `CUtensorMap`, as kernels take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct TensorMap([u64; 16]);

/// A matrix as boxes of 128 bytes by some rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    /// Device address of the first element, a multiple of 16.
    pub(crate) address: u64,
    /// Bytes of an element: 2 or 4.
    pub(crate) element_bytes: usize,
    pub(crate) rows: usize,
    /// Elements of a row. What a box has beyond them, or beyond the rows, is read as zeros and not
    /// written.
    pub(crate) columns: usize,
    /// Elements from one row to the next; a multiple of 16 bytes.
    pub(crate) stride: usize,
    /// Rows of a box, 1 to 256.
    pub(crate) box_rows: usize,
    /// Whether copies to shared memory round f32 to tf32 (to nearest).
    pub(crate) rounded: bool,
}

impl TensorMap {
    /// Of nothing: for a kernel that does not look at it, or that is never launched.
    pub(crate) const NONE: TensorMap = TensorMap([0; 16]);

    /// The map of a matrix. Its memory need not exist yet.
    ///
    /// # Errors
    /// If the driver refuses an address, a size or a stride.
    pub(crate) fn of(panels: &Panels) -> Result<TensorMap, DeviceError> {
        let &Panels { address, element_bytes, rows, columns, stride, box_rows, rounded } = panels;
        let aligned = address.is_multiple_of(16) && (stride * element_bytes).is_multiple_of(16);
        if !aligned || !matches!(element_bytes, 2 | 4) || box_rows == 0 || box_rows > 256 {
            let message = format!("a matrix that tensor maps cannot describe: {panels:?}");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let library = Library::open()?;
        // Copied bit by bit, so 16-bit floats of both formats are halves.
        let data_type = match element_bytes {
            2 => FLOAT16,
            _ if rounded => TFLOAT32,
            _ => FLOAT32,
        };
        let sizes = [columns as u64, rows as u64];
        let strides = [(stride * element_bytes) as u64];
        let box_sizes = [(BOX_BYTES / element_bytes) as u32, box_rows as u32];
        let element_strides = [1_u32; 2];
        let mut map = Encoded(TensorMap::NONE);
        // SAFETY: the pointers are to locals with as many elements as two dimensions need; the map
        // is 128 bytes, more than 64-byte aligned; the address is recorded and not followed.
        let code = unsafe {
            (library.cuTensorMapEncodeTiled)(
                (&raw mut map).cast::<c_void>(),
                data_type,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                box_sizes.as_ptr(),
                element_strides.as_ptr(),
                INTERLEAVE_NONE,
                SWIZZLE_128B,
                PROMOTION_256B,
                FILL_ZEROS,
            )
        };
        if code == 0 {
            Ok(map.0)
        } else {
            Err(describe(library, code, &format!("cuTensorMapEncodeTiled of {panels:?}")))
        }
    }
}

/// Aligned as the newest headers want a map that is being encoded.
#[repr(C, align(128))]
struct Encoded(TensorMap);

// Of the driver's `CUtensorMapDataType`, `…Interleave`, `…Swizzle`, `…L2promotion` and
// `…FloatOOBfill`.
const FLOAT16: c_int = 6;
const FLOAT32: c_int = 7;
const TFLOAT32: c_int = 11;
const INTERLEAVE_NONE: c_int = 0;
const SWIZZLE_128B: c_int = 3;
const PROMOTION_256B: c_int = 3;
const FILL_ZEROS: c_int = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn panels() -> Panels {
        Panels {
            address: 4096,
            element_bytes: 2,
            rows: 7,
            columns: 100,
            stride: 104,
            box_rows: 64,
            rounded: false,
        }
    }

    #[test]
    fn what_copies_cannot_address_is_refused_without_a_driver() {
        for refused in [
            Panels { address: 4100, ..panels() },
            Panels { stride: 100, ..panels() },
            Panels { element_bytes: 8, ..panels() },
            Panels { box_rows: 257, ..panels() },
            Panels { box_rows: 0, ..panels() },
        ] {
            let error = TensorMap::of(&refused).unwrap_err();
            assert_eq!(error.kind(), DeviceErrorKind::Unsupported, "{refused:?}");
        }
    }
}
