//! f16 pairs multiplied and summed in f16: chains of [`CHAIN`] words, each of which is then widened
//! and added to a sum in `f32`.
//!
//! # How far a sum is off
//! Rows and columns are scaled by powers of two, so that their largest numbers lie in 1 to 2; then
//! no chain overflows (16 terms below 4) and every number down to 2⁻¹⁴ of the largest keeps its 11
//! digits. Rounding an operand takes at most 2⁻¹¹ of a term. Each of the 16 roundings of a chain
//! takes at most 2⁻¹¹ of what is summed so far (2⁻²⁵ of the scales where that is subnormal), so at
//! most 2⁻⁷ of the terms' magnitudes, and 8.5·2⁻¹¹ where they are alike. Sums of chains are those
//! of `f32`. Errors of random terms add as squares: sums of 128 were off by 6.3e-4 of their root
//! mean square, where weights alone rounded to f16 take 2.2e-4 and both operands rounded to bf16
//! 2.4e-3.
//!
//! # Why chains, and why so long
//! A Xeon of the fifth generation (virtual, 3.0 GHz, one core, 2026-11-22), matrix times vector
//! from L2, 384 × 104: `f32` reads its weights at 45 bytes a cycle, `VDPBF16PS` at 29, f16 that is
//! widened by `VCVTPH2PS` before `f32` multiply-adds at 20: no sooner done than `f32`, because the
//! conversion takes more of the ports than the multiply-add. Chains of 4, 8, 16 and 32 read at 34,
//! 44, 46 and 48, those of 8 to 32 about as fast as L2 gives. Eight rows by 48 columns, operations
//! a cycle: `f32` 59, `VDPBF16PS` 30, chains of 4, 8, 16 and 32: 36, 55, 76, 94; errors of these:
//! 4.2e-4, 5.4e-4, 6.3e-4, 7.9e-4. Sixteen is the shortest that beats `f32` with many rows, too.

use super::unit::{tiles, tiles_of_one_instruction};
use super::{Args, Dot, Multiply, half_scales};
use crate::simd::Avx512Fp16;
use std::arch::x86_64::*;

/// Words of a chain. Two sums of so many terms, the even ones and the odd ones, so that a word of
/// weights is multiplied as it lies in memory.
const CHAIN: usize = 16;
/// Words in a vector.
const LANES: usize = 16;

/// What the tile needs of f16.
trait Halves {
    /// 32 numbers: pairs, the even term of a column first.
    type Pairs: Copy;

    /// One word of terms for every column.
    /// # Safety
    /// The machine has the instructions; `x` is readable.
    unsafe fn terms(x: *const u32) -> Self::Pairs;
    /// # Safety
    /// As `terms`, for [`LANES`] words.
    unsafe fn weights(p: *const u32) -> Self::Pairs;
    /// `x · w`, rounded to f16.
    /// # Safety
    /// As `terms`.
    unsafe fn mul(x: Self::Pairs, w: Self::Pairs) -> Self::Pairs;
    /// `sum + x · w`, rounded once to f16.
    /// # Safety
    /// As `terms`.
    unsafe fn add(sum: Self::Pairs, x: Self::Pairs, w: Self::Pairs) -> Self::Pairs;
    /// `even + odd` to [`LANES`] floats at `to`, or `(to + even) + odd`.
    /// # Safety
    /// As `terms`; `to` is writable, and readable if it is added to.
    unsafe fn widen(to: *mut f32, sum: Self::Pairs, add: bool);
}

/// `M` rows times `P` panels of `V` vectors.
///
/// # Safety
/// As [`super::Dot::tile`], and the machine has the instructions.
// Indices rather than iterators: the arrays are walked together, and the loops must unroll.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn tile<U: Halves, const M: usize, const V: usize, const P: usize>(a: &Args) {
    let Args { words, x, x_stride, panel, panel_stride, out, out_stride, .. } = *a;
    let (width, out) = (V * LANES, out.cast::<f32>());
    // SAFETY: the caller grants `M` rows of `words` words, `P` panels of as many word rows, and
    // `M` rows of `P · width` sums.
    unsafe {
        if words == 0 {
            for m in 0..M {
                out.add(m * out_stride).write_bytes(0, P * width);
            }
        }
        for start in (0..words).step_by(CHAIN) {
            let weights = |t: usize, p: usize, v: usize| {
                U::weights(panel.add(t * width + p * panel_stride + v * LANES))
            };
            let mut chains = [[[weights(start, 0, 0); V]; P]; M];
            for m in 0..M {
                let x = U::terms(x.add(m * x_stride + start));
                for p in 0..P {
                    for v in 0..V {
                        chains[m][p][v] = U::mul(x, weights(start, p, v));
                    }
                }
            }
            for t in start + 1..words.min(start + CHAIN) {
                let mut w = [[weights(t, 0, 0); V]; P];
                for p in 0..P {
                    for v in 0..V {
                        w[p][v] = weights(t, p, v);
                    }
                }
                for m in 0..M {
                    let x = U::terms(x.add(m * x_stride + t));
                    for p in 0..P {
                        for v in 0..V {
                            chains[m][p][v] = U::add(chains[m][p][v], x, w[p][v]);
                        }
                    }
                }
            }
            for m in 0..M {
                for p in 0..P {
                    for v in 0..V {
                        let to = out.add(m * out_stride + p * width + v * LANES);
                        U::widen(to, chains[m][p][v], start > 0);
                    }
                }
            }
        }
    }
}

/// Rows of a tile over panels of 1 to 4 vectors: as many as 32 registers hold.
const ROWS: [usize; 4] = [12, 12, 8, 6];

/// `VFMADDPH`.
pub(super) fn f16(_: Avx512Fp16) -> &'static Dot {
    static DOT: Dot = Dot {
        rows: ROWS,
        panels: super::x86::panels_512,
        tile: Multiply::Vectors(chain_tile),
        convert: halves_of_row,
        convert_halves: None,
    };
    &DOT
}

/// The instructions.
struct Native;

/// Even halves of a vector's words, then the odd ones.
static SPLIT: [u16; 32] = {
    let mut split = [0; 32];
    let mut i = 0;
    while i < 16 {
        split[i] = 2 * i as u16;
        split[16 + i] = 2 * i as u16 + 1;
        i += 1;
    }
    split
};

impl Halves for Native {
    type Pairs = __m512h;

    #[inline(always)]
    unsafe fn terms(x: *const u32) -> __m512h {
        // SAFETY: the caller's.
        unsafe { _mm512_castsi512_ph(_mm512_set1_epi32(*x as i32)) }
    }
    #[inline(always)]
    unsafe fn weights(p: *const u32) -> __m512h {
        // SAFETY: the caller's.
        unsafe { _mm512_castsi512_ph(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn mul(x: __m512h, w: __m512h) -> __m512h {
        // SAFETY: the caller's.
        unsafe { _mm512_mul_ph(x, w) }
    }
    #[inline(always)]
    unsafe fn add(sum: __m512h, x: __m512h, w: __m512h) -> __m512h {
        // SAFETY: the caller's.
        unsafe { _mm512_fmadd_ph(x, w, sum) }
    }
    #[inline(always)]
    unsafe fn widen(to: *mut f32, sum: __m512h, add: bool) {
        // SAFETY: the caller's; stores and loads are unaligned.
        unsafe {
            let order = _mm512_loadu_si512(SPLIT.as_ptr().cast());
            let split = _mm512_permutexvar_epi16(order, _mm512_castph_si512(sum));
            let even = _mm512_cvtph_ps(_mm512_castsi512_si256(split));
            let odd = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(split));
            let even = if add { _mm512_add_ps(_mm512_loadu_ps(to), even) } else { even };
            _mm512_storeu_ps(to, _mm512_add_ps(even, odd));
        }
    }
}

tiles_of_one_instruction! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512fp16")]
    chain_tile = Native
}

/// [`Dot::convert`]: infinities and NaN stay what they are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn halves_of_row(x: *const f32, k: usize, to: *mut u32, words: usize) -> f32 {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // SAFETY: terms below `k` are read, and `2 · words` of the caller's f16 written.
    unsafe {
        let infinite = _mm512_set1_epi32(0x7f80_0000);
        let mut most = _mm512_setzero_si512();
        for t in (0..k).step_by(16) {
            let bits = _mm512_castps_si512(super::x86::terms_512(x, k, t));
            let bits = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
            let finite = _mm512_cmplt_epi32_mask(bits, infinite);
            most = _mm512_mask_max_epi32(most, finite, most, bits);
        }
        let (down, up) = half_scales(_mm512_reduce_max_epi32(most) as u32);
        let down = _mm512_set1_ps(down);
        for t in (0..2 * words).step_by(16) {
            let scaled = _mm512_mul_ps(super::x86::terms_512(x, k, t), down);
            let halves = _mm512_cvtps_ph::<NEAREST>(scaled);
            _mm256_storeu_si256(to.cast::<u16>().add(t).cast(), halves);
        }
        up
    }
}

/// The same tile in integer arithmetic, for tests on machines without the instructions.
#[cfg(test)]
pub(crate) mod emulated {
    use super::{Args, Dot, Halves, LANES, Multiply, ROWS, tile, tiles, tiles_of_one_instruction};
    use crate::f16::f16_value;
    use crate::simd::Avx512;

    /// A table that multiplies as [`super::f16`]'s does; converting takes AVX-512 alone.
    pub(crate) fn f16(_: Avx512) -> &'static Dot {
        static DOT: Dot = Dot {
            rows: ROWS,
            panels: super::super::x86::panels_512,
            tile: Multiply::Vectors(emulated_tile),
            convert: super::halves_of_row,
            convert_halves: None,
        };
        &DOT
    }

    struct Emulated;

    tiles_of_one_instruction! { emulated_tile = Emulated }

    impl Halves for Emulated {
        type Pairs = [u16; 2 * LANES];

        unsafe fn terms(x: *const u32) -> Self::Pairs {
            // SAFETY: the caller's.
            let word = unsafe { x.read() };
            std::array::from_fn(|i| (word >> (16 * (i % 2))) as u16)
        }
        unsafe fn weights(p: *const u32) -> Self::Pairs {
            // SAFETY: the caller's.
            std::array::from_fn(|i| unsafe { (p.add(i / 2).read() >> (16 * (i % 2))) as u16 })
        }
        unsafe fn mul(x: Self::Pairs, w: Self::Pairs) -> Self::Pairs {
            // Negative zero is what leaves every product as it is.
            std::array::from_fn(|i| multiply_add(x[i], w[i], 0x8000))
        }
        unsafe fn add(sum: Self::Pairs, x: Self::Pairs, w: Self::Pairs) -> Self::Pairs {
            std::array::from_fn(|i| multiply_add(x[i], w[i], sum[i]))
        }
        unsafe fn widen(to: *mut f32, sum: Self::Pairs, add: bool) {
            for i in 0..LANES {
                let (even, odd) = (f16_value(sum[2 * i]), f16_value(sum[2 * i + 1]));
                // SAFETY: the caller's.
                unsafe {
                    let to = to.add(i);
                    let even = if add { to.read() + even } else { even };
                    to.write(even + odd);
                }
            }
        }
    }

    const NAN: u16 = 0x7e00;
    const INFINITY: u16 = 0x7c00;

    /// A finite number in units of 2⁻²⁴.
    fn units(half: u16) -> i128 {
        let (exponent, digits) = (half >> 10 & 31, i128::from(half & 0x3ff));
        let magnitude = if exponent == 0 { digits } else { (1024 + digits) << (exponent - 1) };
        if half & 0x8000 == 0 { magnitude } else { -magnitude }
    }

    /// `a · b + c`, rounded once to the nearest, ties to even.
    pub(crate) fn multiply_add(a: u16, b: u16, c: u16) -> u16 {
        let magnitude = |x: u16| x & 0x7fff;
        let sign = (a ^ b) & 0x8000;
        if [a, b, c].into_iter().any(|x| magnitude(x) > INFINITY) {
            return NAN;
        }
        if magnitude(a) == INFINITY || magnitude(b) == INFINITY {
            let undefined = magnitude(a) == 0 || magnitude(b) == 0;
            let opposite = magnitude(c) == INFINITY && c & 0x8000 != sign;
            return if undefined || opposite { NAN } else { sign | INFINITY };
        }
        if magnitude(c) == INFINITY {
            return c;
        }
        // In units of 2⁻⁴⁸: below 2⁸¹.
        let exact = units(a) * units(b) + (units(c) << 24);
        if exact == 0 {
            let product_is_zero = magnitude(a) == 0 || magnitude(b) == 0;
            // Zeros of one sign keep it; what cancels is positive.
            let negative = product_is_zero && sign != 0 && c == 0x8000;
            return if negative { 0x8000 } else { 0 };
        }
        let sign = if exact < 0 { 0x8000 } else { 0 };
        let magnitude = exact.unsigned_abs();
        // Eleven digits stay, or those down to 2⁻²⁴.
        let drop = (128 - magnitude.leading_zeros()).saturating_sub(11).max(24);
        let (kept, rest) = (magnitude >> drop, magnitude & ((1 << drop) - 1));
        let half = 1u128 << (drop - 1);
        let up = rest > half || rest == half && kept & 1 == 1;
        let bits = (u128::from(drop - 24) << 10) + kept + u128::from(up);
        sign | if bits >= u128::from(INFINITY) { INFINITY } else { bits as u16 }
    }
}
