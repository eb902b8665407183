//! The vector operations that kernels are written over, once, for every instruction set.
//!
//! Not a general SIMD library: `f32` lanes, the handful of operations that the kernels use, and
//! proof tokens. A token can only be made by [`Simd::new`], which detects the features, so whoever
//! holds one may run its instructions.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::dot::bf16_bits;
pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16, Avx512Fp16, Avx512Vnni};

/// Code that runs with a tier's features switched on; entered by [`Simd::vectorize`].
pub trait Kernel {
    /// What it returns.
    type Output;
    /// The code, generic over the tier. Must be `#[inline(always)]`, so that it is compiled inside
    /// the function that has the features.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// One instruction set, held as proof that the machine has it.
///
/// `min`, `max` follow the x86 rule: the second operand where either is NaN.
pub trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// A vector of `LANES` floats.
    type V: Copy;
    /// A mask of `LANES` flags.
    type M: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of a register tile that is 1, 2, 3 or 4 vectors wide: as many as the registers hold.
    const ROWS: [usize; 4];
    /// Name in kernel counters and in `NF_CPU_ISA`.
    const NAME: &'static str;

    /// The token, if this machine has the features.
    fn new() -> Option<Self>;
    /// Runs `kernel` in a function compiled with the features.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is readable for `LANES` floats.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// The first `n` lanes, the rest zero. `n` above `LANES` means all.
    /// # Safety
    /// `p` is readable for `min(n, LANES)` floats.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// `p` is writable for `LANES` floats.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Stores the first `n` lanes. `n` above `LANES` means all.
    /// # Safety
    /// `p` is writable for `min(n, LANES)` floats.
    unsafe fn store_first(self, p: *mut f32, v: Self::V, n: usize);
    /// The low halves of `LANES` words, as bf16 widened to `f32`.
    /// # Safety
    /// `p` is readable for `LANES` words.
    unsafe fn load_low(self, p: *const u32) -> Self::V;
    /// The high halves of `LANES` words, as bf16 widened to `f32`.
    /// # Safety
    /// `p` is readable for `LANES` words.
    unsafe fn load_high(self, p: *const u32) -> Self::V;
    /// `LANES` consecutive f16 widened to `f32`; NaN stays NaN.
    /// # Safety
    /// `p` is readable for `LANES` f16.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;

    /// Rounds both to bf16, ties to even: `low` to the low halves of `LANES` words, `high` to the
    /// high halves. NaN stays NaN.
    /// # Safety
    /// `p` is writable for `LANES` words.
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u32, low: Self::V, high: Self::V) {
        let (mut a, mut b) = ([0.0f32; 16], [0.0f32; 16]);
        // SAFETY: `LANES` is at most 16 on every tier; the caller grants the words.
        unsafe {
            self.store(a.as_mut_ptr(), low);
            self.store(b.as_mut_ptr(), high);
            for i in 0..Self::LANES {
                p.add(i).write_unaligned(bf16_bits(a[i]) | bf16_bits(b[i]) << 16);
            }
        }
    }

    /// As [`Simd::store_pairs`] for what is not negative, with ties up, which takes half of the
    /// operations. A NaN may become another number.
    /// # Safety
    /// `p` is writable for `LANES` words.
    #[inline(always)]
    unsafe fn store_weights(self, p: *mut u32, low: Self::V, high: Self::V) {
        let (mut a, mut b) = ([0.0f32; 16], [0.0f32; 16]);
        let half = |x: f32| x.to_bits().wrapping_add(0x8000);
        // SAFETY: `LANES` is at most 16 on every tier; the caller grants the words.
        unsafe {
            self.store(a.as_mut_ptr(), low);
            self.store(b.as_mut_ptr(), high);
            for i in 0..Self::LANES {
                p.add(i).write_unaligned(half(a[i]) >> 16 | half(b[i]) & 0xffff_0000);
            }
        }
    }

    /// Rounds to bf16, ties to even, and stores the first `n` lanes one after another. NaN stays
    /// NaN; `n` above `LANES` means all.
    /// # Safety
    /// `p` is writable for `min(n, LANES)` bf16.
    #[inline(always)]
    unsafe fn store_halves(self, p: *mut u16, v: Self::V, n: usize) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `LANES` is at most 16 on every tier; the caller grants the bf16.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            for (i, x) in lanes.iter().enumerate().take(n.min(Self::LANES)) {
                p.add(i).write_unaligned(bf16_bits(*x) as u16);
            }
        }
    }

    /// [`Simd::store_halves`] of all lanes of `a`, then of `b`.
    /// # Safety
    /// `p` is writable for `2 · LANES` bf16.
    #[inline(always)]
    unsafe fn store_halves_of_two(self, p: *mut u16, a: Self::V, b: Self::V) {
        // SAFETY: the caller's.
        unsafe {
            self.store_halves(p, a, Self::LANES);
            self.store_halves(p.add(Self::LANES), b, Self::LANES);
        }
    }

    /// The first `n` of consecutive bf16 widened to `f32`, the rest zero. `n` above `LANES` means
    /// all.
    /// # Safety
    /// `p` is readable for `min(n, LANES)` bf16.
    #[inline(always)]
    unsafe fn load_halves(self, p: *const u16, n: usize) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `LANES` is at most 16 on every tier; the caller grants the bf16.
        unsafe {
            for (i, x) in lanes.iter_mut().enumerate().take(n.min(Self::LANES)) {
                *x = f32::from_bits(u32::from(p.add(i).read_unaligned()) << 16);
            }
            self.load(lanes.as_ptr())
        }
    }

    /// The differences `p[i] − q[i]` of integers, rounded to floats.
    /// # Safety
    /// `p` and `q` are readable for `LANES` integers.
    unsafe fn load_difference(self, p: *const i32, q: *const i32) -> Self::V;

    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a − b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `1 / a` to 2⁻¹³ of itself, for `a` in 1 to 2¹²⁶.
    fn reciprocal_rough(self, a: Self::V) -> Self::V;
    /// `a · b + c`, rounded once where the machine can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c − a · b`, rounded once where the machine can.
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Magnitude.
    fn abs(self, a: Self::V) -> Self::V;
    /// `magnitude` with the sign of `sign`.
    fn copysign(self, magnitude: Self::V, sign: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a · 2ⁿ` for integral `n` in −252..=252, correct into the subnormals.
    fn scale(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a < b`
    fn less(self, a: Self::V, b: Self::V) -> Self::M;
    /// `yes` where the mask is set, `no` elsewhere.
    fn select(self, mask: Self::M, yes: Self::V, no: Self::V) -> Self::V;
    /// Sum of the lanes as a tree of fixed shape.
    fn sum(self, a: Self::V) -> f32;
    /// Maximum of the lanes.
    fn maximum(self, a: Self::V) -> f32;

    /// Turns a square: lane `j` of vector `i` becomes lane `i` of vector `j`, for the first `LANES`
    /// vectors; the others stay.
    #[inline(always)]
    fn turn(self, square: &mut [Self::V; 16]) {
        let mut lanes = [[0.0f32; 16]; 16];
        // SAFETY: `LANES` is at most 16 on every tier.
        unsafe {
            for (row, v) in lanes.iter_mut().zip(square.iter()).take(Self::LANES) {
                self.store(row.as_mut_ptr(), *v);
            }
            for (j, v) in square.iter_mut().enumerate().take(Self::LANES) {
                let mut column = [0.0f32; 16];
                for (to, row) in column.iter_mut().zip(&lanes) {
                    *to = row[j];
                }
                *v = self.load(column.as_ptr());
            }
        }
    }

    /// Applies a scalar function to each lane: for functions off the hot path.
    #[inline(always)]
    fn map(self, a: Self::V, f: impl Fn(f32) -> f32) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `LANES` is at most 16 on every tier.
        unsafe {
            self.store(lanes.as_mut_ptr(), a);
            for lane in &mut lanes[..Self::LANES] {
                *lane = f(*lane);
            }
            self.load(lanes.as_ptr())
        }
    }
}
