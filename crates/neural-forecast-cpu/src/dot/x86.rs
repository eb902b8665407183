//! The tiles of the x86-64 tiers.
//!
//! Without VNNI bytes are widened to 16 bits and multiplied in pairs: `VPMADDUBSW` would be shorter
//! and saturate.

use super::unit::{Unit, tile, tiles, tiles_of_one_instruction};
use super::{Args, Dot, Multiply, byte_scales};
use crate::simd::{Avx2, Avx512, Avx512Bf16, Avx512Vnni};
use std::arch::x86_64::*;

/// Enough accumulators in flight for the latency of the multiply-add, as far as registers go.
pub(super) fn panels_512(rows: usize, vectors: usize) -> usize {
    match (rows, vectors) {
        (1 | 2, 1 | 2) => 4,
        (1 | 2, _) | (3 | 4, 1 | 2) => 2,
        _ => 1,
    }
}

/// `VDPBF16PS`.
pub(super) fn bf16(_: Avx512Bf16) -> &'static Dot {
    static DOT: Dot = Dot {
        rows: [12, 12, 8, 6],
        panels: panels_512,
        tile: Multiply::Vectors(pair_tile),
        convert: pairs_of_row,
        convert_halves: Some(super::pairs_of_halves),
    };
    &DOT
}

/// `VPDPBUSD`.
pub(super) fn int8_vnni(_: Avx512Vnni) -> &'static Dot {
    static DOT: Dot = Dot {
        rows: [12, 12, 8, 6],
        panels: panels_512,
        tile: Multiply::Vectors(byte_tile_vnni),
        convert: bytes_of_row_512,
        convert_halves: Some(bytes_of_halves_512),
    };
    &DOT
}

/// `VPMADDWD` on 512 bits.
pub(super) fn int8_avx512(_: Avx512) -> &'static Dot {
    static DOT: Dot = Dot {
        rows: [12, 10, 6, 4],
        panels: |_, _| 1,
        tile: Multiply::Vectors(byte_tile_512),
        convert: bytes_of_row_512,
        convert_halves: Some(bytes_of_halves_512),
    };
    &DOT
}

/// `VPMADDWD` on 256 bits.
pub(super) fn int8_avx2(_: Avx2) -> &'static Dot {
    static DOT: Dot = Dot {
        rows: [8, 4, 2, 1],
        panels: |_, _| 1,
        tile: Multiply::Vectors(byte_tile_256),
        convert: bytes_of_row_256,
        convert_halves: None,
    };
    &DOT
}

/// Functions of a unit whose only obligations are the feature and the memory they name.
macro_rules! unit {
    ($unit:ident, $lanes:literal, $sum:ty, $weights:ty, $terms:ty;
        zero $zero:expr;
        weights($p:ident) $load:expr;
        terms($x:ident) $terms_of:expr;
        add($sum_of:ident, $a:ident, $b:ident) $add:expr;
        store($to:ident, $from:ident) $store:expr;
    ) => {
        struct $unit;

        impl Unit for $unit {
            type Sum = $sum;
            type Weights = $weights;
            type Terms = $terms;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn zero() -> $sum {
                // SAFETY: the caller grants the features.
                unsafe { $zero }
            }
            #[inline(always)]
            unsafe fn weights($p: *const u32) -> $weights {
                // SAFETY: the caller grants the features and the words; loads are unaligned.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn terms($x: *const u32) -> $terms {
                // SAFETY: the caller grants the features and the word.
                unsafe { $terms_of }
            }
            #[inline(always)]
            unsafe fn add($sum_of: $sum, $a: $terms, $b: $weights) -> $sum {
                // SAFETY: the caller grants the features.
                unsafe { $add }
            }
            #[inline(always)]
            unsafe fn store($to: *mut u32, $from: $sum) {
                // SAFETY: the caller grants the features and the words; stores are unaligned.
                unsafe { $store }
            }
        }
    };
}

unit! { Pairs, 16, __m512, __m512i, __m512i;
    zero _mm512_setzero_ps();
    weights(p) _mm512_loadu_si512(p.cast());
    terms(x) _mm512_set1_epi32(*x as i32);
    add(sum, a, b) {
        // The same bits under the type that the instruction's function asks for.
        let a = std::mem::transmute::<__m512i, __m512bh>(a);
        let b = std::mem::transmute::<__m512i, __m512bh>(b);
        _mm512_dpbf16_ps(sum, a, b)
    };
    store(to, sum) _mm512_storeu_ps(to.cast(), sum);
}

unit! { BytesVnni, 16, __m512i, __m512i, __m512i;
    zero _mm512_setzero_si512();
    weights(p) _mm512_loadu_si512(p.cast());
    terms(x) _mm512_set1_epi32(*x as i32);
    add(sum, a, b) _mm512_dpbusd_epi32(sum, a, b);
    store(to, sum) _mm512_storeu_si512(to.cast(), sum);
}

// Even bytes and odd bytes as 16-bit numbers: weights with their sign, terms without.
unit! { Bytes512, 16, __m512i, (__m512i, __m512i), (__m512i, __m512i);
    zero _mm512_setzero_si512();
    weights(p) {
        let w = _mm512_loadu_si512(p.cast());
        (_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(w)), _mm512_srai_epi16::<8>(w))
    };
    terms(x) {
        let x = _mm512_set1_epi32(*x as i32);
        (_mm512_and_si512(x, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(x))
    };
    add(sum, a, b) {
        let even = _mm512_add_epi32(sum, _mm512_madd_epi16(a.0, b.0));
        _mm512_add_epi32(even, _mm512_madd_epi16(a.1, b.1))
    };
    store(to, sum) _mm512_storeu_si512(to.cast(), sum);
}

unit! { Bytes256, 8, __m256i, (__m256i, __m256i), (__m256i, __m256i);
    zero _mm256_setzero_si256();
    weights(p) {
        let w = _mm256_loadu_si256(p.cast());
        (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)), _mm256_srai_epi16::<8>(w))
    };
    terms(x) {
        let x = _mm256_set1_epi32(*x as i32);
        (_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(x))
    };
    add(sum, a, b) {
        let even = _mm256_add_epi32(sum, _mm256_madd_epi16(a.0, b.0));
        _mm256_add_epi32(even, _mm256_madd_epi16(a.1, b.1))
    };
    store(to, sum) _mm256_storeu_si256(to.cast(), sum);
}

tiles_of_one_instruction! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pair_tile = Pairs
}
tiles_of_one_instruction! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    byte_tile_vnni = BytesVnni
}

tiles! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    byte_tile_512 = Bytes512;
    1: 1 2 3 4 5 6 7 8 9 10 11 12;
    2: 1 2 3 4 5 6 7 8 9 10;
    3: 1 2 3 4 5 6;
    4: 1 2 3 4;
}

tiles! {
    #[target_feature(enable = "avx2,fma")]
    byte_tile_256 = Bytes256;
    1: 1 2 3 4 5 6 7 8;
    2: 1 2 3 4;
    3: 1 2;
    4: 1;
}

#[inline]
fn lane_mask(n: usize) -> __mmask16 {
    if n >= 16 { 0xffff } else { (1u16 << n) - 1 }
}

/// Sixteen floats from `t` on, zero from term `k` on.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn terms_512(x: *const f32, k: usize, t: usize) -> __m512 {
    // SAFETY: only terms below `k` are read, which the caller grants.
    unsafe { _mm512_maskz_loadu_ps(lane_mask(k.saturating_sub(t)), x.wrapping_add(t)) }
}

/// [`Dot::convert`] of pairs. `VCVTNE2PS2BF16` takes subnormals as zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pairs_of_row(x: *const f32, k: usize, to: *mut u32, words: usize) -> f32 {
    let whole = k / 32 * 16;
    // SAFETY: terms below `k` are read, and sixteen of the caller's words at a time written.
    unsafe {
        let store = |w: usize, low, high| {
            let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.add(w).cast(), pairs);
        };
        for w in (0..whole).step_by(16) {
            store(w, _mm512_loadu_ps(x.add(2 * w)), _mm512_loadu_ps(x.add(2 * w + 16)));
        }
        for w in (whole..words).step_by(16) {
            store(w, terms_512(x, k, 2 * w), terms_512(x, k, 2 * w + 16));
        }
    }
    1.0
}

/// Sixteen bf16 from `t` on widened to floats, zero from term `k` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn halves_512(x: *const u16, k: usize, t: usize) -> __m512 {
    // SAFETY: only terms below `k` are read, which the caller grants.
    unsafe {
        let mask = lane_mask(k.saturating_sub(t));
        let halves = _mm256_maskz_loadu_epi16(mask, x.wrapping_add(t).cast());
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}

/// [`Dot::convert`] of bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn bytes_of_row_512(x: *const f32, k: usize, to: *mut u32, words: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe { bytes_512(k, to, words, |t| terms_512(x, k, t)) }
}

/// [`Dot::convert_halves`] of bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn bytes_of_halves_512(x: *const u16, k: usize, to: *mut u32, words: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe { bytes_512(k, to, words, |t| halves_512(x, k, t)) }
}

/// Bytes of `k` numbers, of which `terms` gives sixteen from one on, zeros after the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn bytes_512(k: usize, to: *mut u32, words: usize, terms: impl Fn(usize) -> __m512) -> f32 {
    // SAFETY: `4 · words` of the caller's bytes are written.
    unsafe {
        // Magnitudes compare as their bits, NaN above all.
        let bits = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff));
        let mut most = _mm512_setzero_si512();
        for t in (0..k).step_by(16) {
            most = _mm512_max_epi32(most, bits(terms(t)));
        }
        let (down, up) = byte_scales(_mm512_reduce_max_epi32(most) as u32);
        let down = _mm512_set1_ps(down);
        for t in (0..4 * words).step_by(16) {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(terms(t), down)));
            let bytes = _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN));
            _mm_storeu_si128(to.cast::<u8>().add(t).cast(), bytes);
        }
        up
    }
}

/// Eight words of which the last `n` of the first half select the first `n` lanes.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Eight floats from `t` on, zero from term `k` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn terms_256(x: *const f32, k: usize, t: usize) -> __m256 {
    let window = &FIRST[8 - k.saturating_sub(t).min(8)..];
    // SAFETY: eight words follow that index; only terms below `k` are read, which the caller
    // grants.
    unsafe { _mm256_maskload_ps(x.wrapping_add(t), _mm256_loadu_si256(window.as_ptr().cast())) }
}

/// [`Dot::convert`] of bytes.
#[target_feature(enable = "avx2,fma")]
unsafe fn bytes_of_row_256(x: *const f32, k: usize, to: *mut u32, words: usize) -> f32 {
    // SAFETY: terms below `k` are read, and `4 · words` of the caller's bytes written.
    unsafe {
        let magnitude = _mm256_set1_epi32(0x7fff_ffff);
        let mut most = _mm256_setzero_si256();
        for t in (0..k).step_by(8) {
            let bits = _mm256_and_si256(_mm256_castps_si256(terms_256(x, k, t)), magnitude);
            most = _mm256_max_epi32(most, bits);
        }
        let mut lanes = [0u32; 8];
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), most);
        let (down, up) = byte_scales(lanes.into_iter().max().unwrap_or(0));
        let down = _mm256_set1_ps(down);
        // Packing works on halves of vectors; this puts their words in order.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        for w in (0..words).step_by(8) {
            let whole =
                |i: usize| _mm256_cvtps_epi32(_mm256_mul_ps(terms_256(x, k, 4 * w + 8 * i), down));
            let (a, b) =
                (_mm256_packs_epi32(whole(0), whole(1)), _mm256_packs_epi32(whole(2), whole(3)));
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
            let bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(i8::MIN));
            _mm256_storeu_si256(to.add(w).cast(), bytes);
        }
        up
    }
}
