//! Numbers on their way from a caller's memory to pinned memory: copied past the caches, or rounded
//! to 16 bits where that is all that the device will read of them.
//!
//! Knows pointers and formats; which thread writes what is the program's.

use half::{bf16, f16};

use crate::step::gemm::Element;

/// Copies bytes past the caches: faster for what the processor will not read again, and the device
/// finds them in memory.
///
/// # Safety
/// Both ranges are valid for `bytes`, and do not overlap.
pub(crate) unsafe fn copy_streaming(to: *mut u8, from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    if to.addr().is_multiple_of(16) {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        let lines = bytes / 64;
        // SAFETY: the caller's ranges; stores go to multiples of 16, loads anywhere. SSE2 is part
        // of the architecture.
        unsafe {
            for line in 0..lines {
                let (to, from) = (to.add(line * 64), from.add(line * 64));
                let parts = [0, 16, 32, 48].map(|at| _mm_loadu_si128(from.add(at).cast()));
                for (part, at) in parts.into_iter().zip([0, 16, 32, 48]) {
                    _mm_stream_si128(to.add(at).cast(), part);
                }
            }
            // Before the device is told of the bytes.
            _mm_sfence();
            let done = lines * 64;
            to.add(done).copy_from_nonoverlapping(from.add(done), bytes - done);
        }
        return;
    }
    // SAFETY: the caller's ranges.
    unsafe { to.copy_from_nonoverlapping(from, bytes) };
}

/// Rounds numbers to a 16-bit format, to nearest and ties to even, as the device does.
///
/// # Safety
/// `to` is valid for two bytes a number and a multiple of two.
pub(crate) unsafe fn round(to: *mut u8, from: &[f32], element: Element) {
    let to = to.cast::<u16>();
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if element == Element::F16 && is_x86_feature_detected!("f16c") {
        done = from.len() / 8 * 8;
        // SAFETY: the caller's range; the processor has the instructions.
        unsafe { round_f16c(to, &from[..done]) };
    }
    for (i, &x) in from.iter().enumerate().skip(done) {
        let bits = match element {
            Element::F16 => f16::from_f32(x).to_bits(),
            Element::F32 | Element::Bf16 => bf16::from_f32(x).to_bits(),
        };
        // SAFETY: the caller's range.
        unsafe { to.add(i).write(bits) };
    }
}

/// [`round`] to f16 of a multiple of eight numbers.
///
/// # Safety
/// As there, and the processor has F16C (and with it AVX).
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "f16c")]
unsafe fn round_f16c(to: *mut u16, from: &[f32]) {
    use std::arch::x86_64::{
        _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_prefetch, _mm_storeu_si128, _mm256_cvtps_ph,
        _mm256_loadu_ps,
    };
    /// How far ahead numbers are asked for.
    const AHEAD: usize = 512;
    for (i, eight) in from.chunks_exact(8).enumerate() {
        // SAFETY: eight numbers are there and room for eight; what is asked for ahead is not
        // accessed, wherever it is.
        unsafe {
            if i % 2 == 0 {
                _mm_prefetch::<_MM_HINT_T0>(eight.as_ptr().wrapping_add(AHEAD).cast());
            }
            let half =
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(eight.as_ptr()));
            _mm_storeu_si128(to.add(8 * i).cast(), half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_copies_every_byte_and_no_other() {
        let from: Vec<u8> = (0..1000_u32).map(|i| (i % 251) as u8).collect();
        for (at, offset, bytes) in [(0, 0, 1000), (16, 3, 997), (8, 1, 64), (32, 0, 63), (0, 0, 0)]
        {
            let mut to = vec![255_u8; 2048];
            // So that `at` is the distance from a multiple of 64.
            let base = to.as_ptr().align_offset(64) + at;
            // SAFETY: both ranges are inside their vectors.
            unsafe {
                copy_streaming(to.as_mut_ptr().add(base), from.as_ptr().add(offset), bytes);
            }
            assert_eq!(to[base..base + bytes], from[offset..offset + bytes]);
            assert!(to[..base].iter().chain(&to[base + bytes..]).all(|&byte| byte == 255));
        }
    }

    #[test]
    fn rounding_is_that_of_one_number_at_a_time() {
        // Ties, subnormals, what overflows, infinities, signs of zero, and whatever lies between.
        let special = [0.0, -0.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 6e-8, 3e-8, -2.9e-8];
        let large = [65504.0, 65519.9, 65520.0, -1e9, f32::INFINITY, f32::NEG_INFINITY, 1e-30];
        let mut numbers: Vec<f32> = special.into_iter().chain(large).collect();
        numbers.extend((0..1000_u32).map(|i| f32::from_bits(i.wrapping_mul(4_291_111_231))));
        numbers.retain(|x| !x.is_nan());
        for count in [0, 1, 7, 8, 9, 63, numbers.len()] {
            for element in [Element::F16, Element::Bf16] {
                let mut rounded = vec![0xabcd_u16; numbers.len() + 1];
                // SAFETY: there is room for all.
                unsafe { round(rounded.as_mut_ptr().cast(), &numbers[..count], element) };
                for (&x, &bits) in numbers[..count].iter().zip(&rounded) {
                    let expected = match element {
                        Element::F16 => f16::from_f32_const(x).to_bits(),
                        _ => bf16::from_f32(x).to_bits(),
                    };
                    assert_eq!(bits, expected, "{x:e} as {element:?}");
                }
                assert!(rounded[count..].iter().all(|&bits| bits == 0xabcd));
            }
        }
        for element in [Element::F16, Element::Bf16] {
            let mut rounded = [0_u16; 8];
            // SAFETY: there is room for all.
            unsafe { round(rounded.as_mut_ptr().cast(), &[f32::NAN; 8], element) };
            let is_nan = |bits| match element {
                Element::F16 => f16::from_bits(bits).is_nan(),
                _ => bf16::from_bits(bits).is_nan(),
            };
            assert!(rounded.into_iter().all(is_nan));
        }
    }
}
