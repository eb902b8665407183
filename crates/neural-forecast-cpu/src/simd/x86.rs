//! The x86-64 tiers: AVX2 with FMA and F16C, AVX-512 (F, BW, VL, DQ), and the tokens of what
//! AVX-512 grew.
//!
//! No algorithm lives here, only the mapping of [`Simd`] to intrinsics.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Token of the AVX2 + FMA + F16C tier; no processor has the first without the others.
#[derive(Clone, Copy, Debug)]
pub struct Avx2 {
    _proof: (),
}

/// Token of the AVX-512 tier.
#[derive(Clone, Copy, Debug)]
pub struct Avx512 {
    _proof: (),
}

/// Token of AVX-512 with VNNI, which multiplies bytes. Its `f32` kernels are AVX-512's.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Vnni {
    base: Avx512,
}

/// Token of AVX-512 with VNNI and BF16, which multiplies pairs of bf16. Its `f32` kernels are
/// AVX-512's.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16 {
    vnni: Avx512Vnni,
}

/// Token of AVX-512 with VNNI, BF16 and FP16.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Fp16 {
    bf16: Avx512Bf16,
}

impl Avx512Vnni {
    /// Name in kernel counters and in `NF_CPU_ISA`.
    pub const NAME: &'static str = "avx512-vnni";

    /// The token, if this machine has the features.
    pub fn new() -> Option<Self> {
        let base = Avx512::new()?;
        is_x86_feature_detected!("avx512vnni").then_some(Avx512Vnni { base })
    }

    /// The tier that it extends.
    pub fn base(self) -> Avx512 {
        self.base
    }
}

impl Avx512Bf16 {
    /// Name in kernel counters and in `NF_CPU_ISA`.
    pub const NAME: &'static str = "avx512-bf16";

    /// The token, if this machine has the features.
    pub fn new() -> Option<Self> {
        let vnni = Avx512Vnni::new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Avx512Bf16 { vnni })
    }

    /// The tier that it extends.
    pub fn vnni(self) -> Avx512Vnni {
        self.vnni
    }
}

impl Avx512Fp16 {
    /// Name in kernel counters and in `NF_CPU_ISA`.
    pub const NAME: &'static str = "avx512-fp16";

    /// The token, if this machine has the features.
    pub fn new() -> Option<Self> {
        let bf16 = Avx512Bf16::new()?;
        is_x86_feature_detected!("avx512fp16").then_some(Avx512Fp16 { bf16 })
    }

    /// The tier that it extends.
    pub fn bf16(self) -> Avx512Bf16 {
        self.bf16
    }
}

/// Methods whose only obligation is the CPU feature.
macro_rules! intrinsics {
    ($($name:ident($($a:ident: $t:ty),*) -> $r:ty { $e:expr })*) => {
        $(#[inline(always)]
        fn $name(self, $($a: $t),*) -> $r {
            // SAFETY: `self` exists only on machines that have the features.
            unsafe { $e }
        })*
    };
}

/// Methods that touch memory.
macro_rules! memory {
    ($($name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? { $e:expr })*) => {
        $(#[inline(always)]
        unsafe fn $name(self, $($a: $t),*) $(-> $r)? {
            // SAFETY: `self` proves the features; the caller grants the memory named in the trait,
            // and every access is unaligned.
            unsafe { $e }
        })*
    };
}

/// The high halves of the words of two vectors.
static ODD: [u16; 32] = {
    let mut odd = [0; 32];
    let mut i = 0;
    while i < 32 {
        odd[i] = 2 * i as u16 + 1;
        i += 1;
    }
    odd
};

#[inline(always)]
fn lane_mask(n: usize) -> __mmask16 {
    if n >= 16 { 0xffff } else { (1u16 << n) - 1 }
}

impl Simd for Avx512 {
    type V = __m512;
    type M = __mmask16;
    const LANES: usize = 16;
    const ROWS: [usize; 4] = [12, 12, 8, 6];
    const NAME: &'static str = "avx512";

    fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        found.then_some(Avx512 { _proof: () })
    }

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
        #[inline(never)]
        fn outlined<K: Kernel>(kernel: K, simd: Avx512) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only on machines that have the features.
        unsafe { outlined(kernel, self) }
    }

    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u32, low: __m512, high: __m512) {
        // SAFETY: `self` proves the features; the caller grants the words, stores are unaligned.
        unsafe {
            let low = _mm512_srli_epi32::<16>(bf16_words(low));
            // Each bit from the high word where the mask has it, else from the low one.
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let pairs = _mm512_ternarylogic_epi32::<0xca>(mask, bf16_words(high), low);
            _mm512_storeu_si512(p.cast(), pairs);
        }
    }

    memory! {
        load(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        load_first(p: *const f32, n: usize) -> __m512 { _mm512_maskz_loadu_ps(lane_mask(n), p) }
        store(p: *mut f32, v: __m512) { _mm512_storeu_ps(p, v) }
        store_first(p: *mut f32, v: __m512, n: usize) {
            _mm512_mask_storeu_ps(p, lane_mask(n), v)
        }
        store_weights(p: *mut u32, low: __m512, high: __m512) {{
            let half = _mm512_set1_epi32(0x8000);
            let low = _mm512_add_epi32(_mm512_castps_si512(low), half);
            let high = _mm512_add_epi32(_mm512_castps_si512(high), half);
            // Each bit from the high word where the mask has it, else from the low one.
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let low = _mm512_srli_epi32::<16>(low);
            _mm512_storeu_si512(p.cast(), _mm512_ternarylogic_epi32::<0xca>(mask, high, low));
        }}
        store_halves(p: *mut u16, v: __m512, n: usize) {{
            // Narrowed in a register: `VPMOVDW` to memory is slow where it is masked.
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bf16_words(v)));
            if n >= 16 {
                _mm256_storeu_si256(p.cast(), halves);
            } else {
                _mm256_mask_storeu_epi16(p.cast(), lane_mask(n), halves);
            }
        }}
        store_halves_of_two(p: *mut u16, a: __m512, b: __m512) {{
            let odd = _mm512_loadu_si512(ODD.as_ptr().cast());
            let halves = _mm512_permutex2var_epi16(bf16_words(a), odd, bf16_words(b));
            _mm512_storeu_si512(p.cast(), halves);
        }}
        load_halves(p: *const u16, n: usize) -> __m512 {{
            let halves = _mm256_maskz_loadu_epi16(lane_mask(n), p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }}
        load_f16(p: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        load_low(p: *const u32) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(p.cast())))
        }
        load_high(p: *const u32) -> __m512 {
            _mm512_castsi512_ps(_mm512_and_si512(
                _mm512_loadu_si512(p.cast()),
                _mm512_set1_epi32(0xffff_0000_u32 as i32),
            ))
        }
        load_difference(p: *const i32, q: *const i32) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_sub_epi32(
                _mm512_loadu_si512(p.cast()),
                _mm512_loadu_si512(q.cast()),
            ))
        }
    }
    #[inline(always)]
    fn turn(self, square: &mut [__m512; 16]) {
        // SAFETY: `self` exists only on machines that have the features.
        unsafe { turn16(square) }
    }

    intrinsics! {
        splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        reciprocal_rough(a: __m512) -> __m512 { _mm512_rcp14_ps(a) }
        fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fnma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
        min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
        abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
        copysign(magnitude: __m512, sign: __m512) -> __m512 {{
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign))
        }}
        round(a: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        scale(a: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(a, n) }
        less(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
        select(mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
            _mm512_mask_blend_ps(mask, no, yes)
        }
        sum(a: __m512) -> f32 {{
            let high = _mm512_extractf32x8_ps::<1>(a);
            sum8(_mm256_add_ps(_mm512_castps512_ps256(a), high))
        }}
        maximum(a: __m512) -> f32 {{
            let high = _mm512_extractf32x8_ps::<1>(a);
            maximum8(_mm256_max_ps(_mm512_castps512_ps256(a), high))
        }}
    }
}

/// Words whose high halves are the floats rounded to bf16, ties to even; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16_words(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_blend_epi32(nan, _mm512_add_epi32(bits, half), _mm512_set1_epi32(0x7fc0_0000))
}

/// Turns a square of floats: pairs, then fours within each quarter, then the quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn16(square: &mut [__m512; 16]) {
    let mut pairs = *square;
    for i in 0..8 {
        let (a, b) = (square[2 * i], square[2 * i + 1]);
        pairs[2 * i] = _mm512_unpacklo_ps(a, b);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(a, b);
    }
    // Vector `4·i + c` holds column `c` of each quarter, of the rows `4·i..4·i + 4`.
    let mut fours = pairs;
    for i in 0..4 {
        for high in 0..2 {
            let a = _mm512_castps_pd(pairs[4 * i + high]);
            let b = _mm512_castps_pd(pairs[4 * i + 2 + high]);
            fours[4 * i + 2 * high] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[4 * i + 2 * high + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    for c in 0..4 {
        let (a, b) = (fours[c], fours[4 + c]);
        let (d, e) = (fours[8 + c], fours[12 + c]);
        // Quarters 0 and 2, then 1 and 3, of the upper and the lower rows.
        let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (even_low, odd_low) =
            (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        square[c] = _mm512_shuffle_f32x4::<0x88>(even, even_low);
        square[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, even_low);
        square[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd_low);
        square[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_low);
    }
}

/// Eight words of which the last `n` of the first half select the first `n` lanes.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline]
#[target_feature(enable = "avx")]
fn first_lanes(n: usize) -> __m256i {
    let window = &FIRST[8 - n.min(8)..];
    // SAFETY: at least eight words follow index `8 − n`.
    unsafe { _mm256_loadu_si256(window.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn sum8(a: __m256) -> f32 {
    let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
}

#[inline]
#[target_feature(enable = "avx")]
fn maximum8(a: __m256) -> f32 {
    let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn two_to(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
}

impl Simd for Avx2 {
    type V = __m256;
    type M = __m256;
    const LANES: usize = 8;
    const ROWS: [usize; 4] = [8, 6, 4, 2];
    const NAME: &'static str = "avx2";

    fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Avx2 { _proof: () })
    }

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn outlined<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only on machines that have the features.
        unsafe { outlined(kernel, self) }
    }

    memory! {
        load(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        load_first(p: *const f32, n: usize) -> __m256 { _mm256_maskload_ps(p, first_lanes(n)) }
        store(p: *mut f32, v: __m256) { _mm256_storeu_ps(p, v) }
        store_first(p: *mut f32, v: __m256, n: usize) {
            _mm256_maskstore_ps(p, first_lanes(n), v)
        }
        load_f16(p: *const u16) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        load_low(p: *const u32) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(p.cast())))
        }
        load_high(p: *const u32) -> __m256 {
            _mm256_castsi256_ps(_mm256_and_si256(
                _mm256_loadu_si256(p.cast()),
                _mm256_set1_epi32(0xffff_0000_u32 as i32),
            ))
        }
        load_difference(p: *const i32, q: *const i32) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_sub_epi32(
                _mm256_loadu_si256(p.cast()),
                _mm256_loadu_si256(q.cast()),
            ))
        }
    }
    intrinsics! {
        splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        // The eleven bits of `vrcpps` are too few.
        reciprocal_rough(a: __m256) -> __m256 { _mm256_div_ps(_mm256_set1_ps(1.0), a) }
        fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fnma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        sqrt(a: __m256) -> __m256 { _mm256_sqrt_ps(a) }
        abs(a: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        copysign(magnitude: __m256, sign: __m256) -> __m256 {{
            let bit = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign))
        }}
        round(a: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        scale(a: __m256, n: __m256) -> __m256 {{
            // In two steps, because one factor would leave the exponent's range.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            _mm256_mul_ps(_mm256_mul_ps(a, two_to(half)), two_to(_mm256_sub_epi32(n, half)))
        }}
        less(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
        select(mask: __m256, yes: __m256, no: __m256) -> __m256 {
            _mm256_blendv_ps(no, yes, mask)
        }
        sum(a: __m256) -> f32 { sum8(a) }
        maximum(a: __m256) -> f32 { maximum8(a) }
    }
}
