//! Bytes on every machine: the same integers, in plain Rust.

use super::unit::{Unit, tile, tiles};
use super::{Args, Dot, Multiply, byte_scales};

const LANES: usize = 4;

/// The portable tier's kernels of bytes.
pub(super) fn int8() -> &'static Dot {
    static DOT: Dot = Dot {
        rows: [4, 2, 2, 1],
        panels: |_, _| 1,
        tile: Multiply::Vectors(byte_tile),
        convert: bytes_of_row,
        convert_halves: None,
    };
    &DOT
}

struct Bytes;

impl Unit for Bytes {
    type Sum = [i32; LANES];
    type Weights = [[i8; 4]; LANES];
    type Terms = [u8; 4];
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn weights(p: *const u32) -> Self::Weights {
        // SAFETY: the caller grants the words; bytes have no alignment.
        unsafe { *p.cast() }
    }

    #[inline(always)]
    unsafe fn terms(x: *const u32) -> Self::Terms {
        // SAFETY: the caller grants the word; bytes have no alignment.
        unsafe { *x.cast() }
    }

    #[inline(always)]
    unsafe fn add(mut sum: Self::Sum, x: Self::Terms, w: Self::Weights) -> Self::Sum {
        for lane in 0..LANES {
            for i in 0..4 {
                sum[lane] += i32::from(x[i]) * i32::from(w[lane][i]);
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn store(p: *mut u32, sum: Self::Sum) {
        // SAFETY: the caller grants the words; alignment is not assumed.
        unsafe { p.cast::<Self::Sum>().write_unaligned(sum) }
    }
}

tiles! {
    byte_tile = Bytes;
    1: 1 2 3 4;
    2: 1 2;
    3: 1 2;
    4: 1;
}

/// [`Dot::convert`] of bytes.
unsafe fn bytes_of_row(x: *const f32, k: usize, to: *mut u32, words: usize) -> f32 {
    /// Adding and taking away 1.5·2²³ rounds small numbers to even without a library call.
    const BIG: f32 = 12_582_912.0;
    // SAFETY: the caller's.
    let (x, to) = unsafe {
        let to = std::slice::from_raw_parts_mut(to.cast::<u8>(), 4 * words);
        (std::slice::from_raw_parts(x, k), to)
    };
    // Magnitudes compare as their bits, NaN above all.
    let most = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let (down, up) = byte_scales(most);
    let (terms, padding) = to.split_at_mut(k);
    for (to, x) in terms.iter_mut().zip(x) {
        *to = (((x * down + BIG) - BIG) as i32 as u8) ^ 0x80;
    }
    padding.fill(0x80);
    up
}
