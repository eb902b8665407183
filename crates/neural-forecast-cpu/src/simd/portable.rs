//! The tier that every machine has: four-lane arrays that the compiler vectorises as it can.
//!
//! Multiplies and adds are fused only where the target always fuses; elsewhere they round twice,
//! because a fused multiply-add in software costs more than the whole forecast.

use super::{Kernel, Simd};
use crate::f16::f16_value;

/// Token of the portable tier.
#[derive(Clone, Copy, Debug)]
pub struct Portable {
    _proof: (),
}

const LANES: usize = 4;
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// One expression a lane, written out: as loops, the compiler took four minutes to unroll those
/// that meet in one kernel.
macro_rules! lanewise {
    ($i:ident => $e:expr) => {{
        let lane0 = {
            let $i = 0;
            $e
        };
        let lane1 = {
            let $i = 1;
            $e
        };
        let lane2 = {
            let $i = 2;
            $e
        };
        let lane3 = {
            let $i = 3;
            $e
        };
        [lane0, lane1, lane2, lane3]
    }};
}

impl Simd for Portable {
    type V = [f32; LANES];
    type M = [bool; LANES];
    const LANES: usize = LANES;
    const ROWS: [usize; 4] = [8, 4, 3, 2];
    const NAME: &'static str = "portable";

    fn new() -> Option<Self> {
        Some(Portable { _proof: () })
    }
    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        fn outlined<K: Kernel>(kernel: K, simd: Portable) -> K::Output {
            kernel.run(simd)
        }
        outlined(kernel, self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller grants `LANES` floats; alignment is not assumed.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V {
        // SAFETY: only the first `n` floats are read, which the caller grants.
        lanewise!(i => if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller grants `LANES` floats; alignment is not assumed.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: Self::V, n: usize) {
        for (i, lane) in v.iter().enumerate().take(n) {
            // SAFETY: only the first `n` floats are written, which the caller grants.
            unsafe { *p.add(i) = *lane }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::V {
        // SAFETY: the caller grants `LANES` f16.
        lanewise!(i => f16_value(unsafe { p.add(i).read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn load_low(self, p: *const u32) -> Self::V {
        // SAFETY: the caller grants `LANES` words.
        lanewise!(i => f32::from_bits(unsafe { p.add(i).read_unaligned() } << 16))
    }
    #[inline(always)]
    unsafe fn load_high(self, p: *const u32) -> Self::V {
        // SAFETY: the caller grants `LANES` words.
        lanewise!(i => f32::from_bits(unsafe { p.add(i).read_unaligned() } & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn load_difference(self, p: *const i32, q: *const i32) -> Self::V {
        // SAFETY: the caller grants `LANES` integers of both.
        lanewise!(i => unsafe { p.add(i).read().wrapping_sub(q.add(i).read()) } as f32)
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn reciprocal_rough(self, a: Self::V) -> Self::V {
        lanewise!(i => 1.0 / a[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanewise!(i => if FUSED { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanewise!(i => if FUSED { (-a[i]).mul_add(b[i], c[i]) } else { c[i] - a[i] * b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        lanewise!(i => a[i].sqrt())
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        lanewise!(i => a[i].abs())
    }
    #[inline(always)]
    fn copysign(self, magnitude: Self::V, sign: Self::V) -> Self::V {
        lanewise!(i => magnitude[i].copysign(sign[i]))
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // Adding and taking away 1.5·2²³ rounds to even without a library call; larger magnitudes
        // are integers already.
        const BIG: f32 = 12_582_912.0;
        lanewise!(i => if a[i].abs() < 4_194_304.0 { (a[i] + BIG) - BIG } else { a[i] })
    }
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        // In two steps, because one factor would leave the exponent's range. NaN converts to 0.
        lanewise!(i => {
            let n = n[i] as i32;
            let half = n >> 1;
            let two_to = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            a[i] * two_to(half) * two_to(n - half)
        })
    }
    #[inline(always)]
    fn less(self, a: Self::V, b: Self::V) -> Self::M {
        lanewise!(i => a[i] < b[i])
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::V, no: Self::V) -> Self::V {
        lanewise!(i => if mask[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn maximum(self, a: Self::V) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
}
