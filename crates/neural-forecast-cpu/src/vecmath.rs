//! Vectorised elementary functions, one polynomial for all tiers.
//!
//! Bounds, asserted by the tests below against `f64`: `exp` 2 ulp, `tanh` 4, `sigmoid` 3, `erf` 3,
//! `sigmoid_tanh` 6 (of the result, subnormals included); `gelu`, `gelu_tanh` and `silu` the larger
//! of 4 ulp and `2⁻²³·|x|` (their lower tail is a difference); the rough functions 2⁻¹² of the
//! result, `rough_exp2_negative` 2⁻¹⁶; `gelu_close` the larger of 128 ulp and `2⁻²²·|x|`.
//! Infinities and NaN behave as in IEEE. Not the functions off the hot path (`ln`, `asinh`,
//! `sinh`, softplus), which go lane by lane through the standard library.

use crate::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// High part of ln 2: nine bits, so that its product with an exponent is exact without FMA.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// `(eʳ − 1 − r) / r²` over `|r| ≤ ln 2 / 2`, lowest power first: minimax, `eʳ − 1` to 1.4e-8 of
/// `r`.
const EXP: [f32; 5] = [0.5, 0.166_665_42, 4.166_628e-2, 8.366_644e-3, 1.394_655_4e-3];

/// A quotient before its division: those of one expression share a division.
#[derive(Clone, Copy, Debug)]
struct Quotient<V> {
    over: V,
    /// From 1 to 2.
    under: V,
}

/// `(n, r)` with `x = n·ln 2 + r`, `|r| ≤ ln 2 / 2`.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.fnma(n, s.splat(LN2_HIGH), x);
    (n, s.fnma(n, s.splat(LN2_LOW), r))
}

/// `eʳ − 1` for `|r| ≤ ln 2 / 2`. In squares of `r`, which shortens the chain of dependent
/// operations and costs none more.
#[inline(always)]
fn exp_m1_reduced<S: Simd>(s: S, r: S::V) -> S::V {
    let c = EXP.map(|c| s.splat(c));
    let q = s.mul(r, r);
    let low = s.fma(c[1], r, c[0]);
    let high = s.fma(c[4], q, s.fma(c[3], r, c[2]));
    s.fma(s.fma(high, q, low), q, r)
}

/// `eˣ` for `x` in −104..=89, and for NaN.
#[inline(always)]
fn exp_bounded<S: Simd>(s: S, x: S::V) -> S::V {
    let (n, r) = reduce(s, x);
    s.scale(s.add(exp_m1_reduced(s, r), s.splat(1.0)), n)
}

/// `eˣ`
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // Below −104 the result rounds to 0, above 89 to infinity; NaN passes both.
    exp_bounded(s, s.max(s.splat(-104.0), s.min(s.splat(89.0), x)))
}

/// `eˣ − 1` for `x ≤ 0`, as ELU needs it.
#[inline(always)]
pub fn exp_m1_negative<S: Simd>(s: S, x: S::V) -> S::V {
    let (n, r) = reduce(s, s.max(s.splat(-104.0), x));
    let p = exp_m1_reduced(s, r);
    let two_n = s.scale(s.splat(1.0), n);
    s.fma(two_n, p, s.sub(two_n, s.splat(1.0)))
}

/// `−|x|`, at least `least`.
#[inline(always)]
fn minus_magnitude<S: Simd>(s: S, x: S::V, least: f32) -> S::V {
    s.max(s.splat(least), s.copysign(x, s.splat(-1.0)))
}

/// `tanh x = (1 − e) / (1 + e)`, `e = e^−2|x|`, with `1 − e` formed without cancellation.
#[inline(always)]
fn tanh_quotient<S: Simd>(s: S, x: S::V) -> Quotient<S::V> {
    // From |x| = 10 on the quotient is 1 exactly.
    let t = minus_magnitude(s, x, -10.0);
    // 2t = n·ln 2 + r. One constant does for ln 2: its error times n is 1e-9·n, and reaches the
    // result times 2ⁿ.
    let n = s.round(s.mul(t, s.splat(2.0 * LOG2_E)));
    let r = s.fma(s.splat(2.0), t, s.mul(n, s.splat(-std::f32::consts::LN_2)));
    let p = exp_m1_reduced(s, r);
    let two_n = s.scale(s.splat(1.0), n);
    let e_m1 = s.fma(two_n, p, s.sub(two_n, s.splat(1.0)));
    Quotient { over: s.copysign(e_m1, x), under: s.add(e_m1, s.splat(2.0)) }
}

/// `1 / (1 + e⁻ˣ)`, formed from `e^−|x|` so that the lower tail keeps its digits.
#[inline(always)]
fn sigmoid_quotient<S: Simd>(s: S, x: S::V) -> Quotient<S::V> {
    let one = s.splat(1.0);
    let e = exp_bounded(s, minus_magnitude(s, x, -104.0));
    Quotient { over: s.select(s.less(x, s.splat(0.0)), e, one), under: s.add(one, e) }
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let q = tanh_quotient(s, x);
    s.div(q.over, q.under)
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let q = sigmoid_quotient(s, x);
    s.div(q.over, q.under)
}

/// `sigmoid(a) · tanh(b)` with one division.
#[inline(always)]
pub fn sigmoid_tanh<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
    let (a, b) = (sigmoid_quotient(s, a), tanh_quotient(s, b));
    s.div(s.mul(a.over, b.over), s.mul(a.under, b.under))
}

/// `(2ᶠ − 1) / f` over `|f| ≤ 1/2`, lowest power first: minimax, to 3.0e-4 and to 1.1e-5.
const ROUGH_3: [f32; 3] = [0.693_126_26, 0.242_035_82, 0.055_922_102];
const ROUGH_4: [f32; 4] = [0.693_136_75, 0.240_221_68, 0.055_838_33, 0.009_676_043];

/// `2^(x · factor)` with the exponent kept in ±60, so that products of two stay in range.
#[inline(always)]
fn rough_exp2<S: Simd, const N: usize>(s: S, x: S::V, factor: f32, c: [f32; N]) -> S::V {
    // NaN passes both.
    let t = s.max(s.splat(-60.0), s.min(s.splat(60.0), s.mul(x, s.splat(factor))));
    let n = s.round(t);
    let f = s.sub(t, n);
    let mut p = s.splat(c[N - 1]);
    for c in c[..N - 1].iter().rev() {
        p = s.fma(p, f, s.splat(*c));
    }
    s.scale(s.fma(p, f, s.splat(1.0)), n)
}

/// `2ˣ` for `x ≤ 0` to 2⁻¹⁶ of itself, 0 from −150 on: for weights that become bf16.
#[inline(always)]
pub fn rough_exp2_negative<S: Simd>(s: S, x: S::V) -> S::V {
    // NaN passes.
    let t = s.max(s.splat(-150.0), x);
    let n = s.round(t);
    let f = s.sub(t, n);
    let c = ROUGH_4.map(|c| s.splat(c));
    let p = s.fma(s.fma(s.fma(c[3], f, c[2]), f, c[1]), f, c[0]);
    s.scale(s.fma(p, f, s.splat(1.0)), n)
}

/// `e^−2x`, with which `tanh x = (1 − e) / (1 + e)`.
#[inline(always)]
fn rough_tanh_exp<S: Simd>(s: S, x: S::V) -> S::V {
    rough_exp2(s, x, -2.0 * LOG2_E, ROUGH_4)
}

/// The sigmoid to 2⁻¹² of itself (below 2⁻¹⁰: to 2⁻²²), for gates whose sums have bf16 or integer
/// terms.
#[inline(always)]
pub fn rough_sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = rough_exp2(s, x, -LOG2_E, ROUGH_3);
    s.reciprocal_rough(s.add(s.splat(1.0), e))
}

/// The hyperbolic tangent as [`rough_sigmoid`] is the sigmoid.
#[inline(always)]
pub fn rough_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let e = rough_tanh_exp(s, x);
    s.mul(s.sub(one, e), s.reciprocal_rough(s.add(one, e)))
}

/// `sigmoid(a) · tanh(b)` of the rough functions, to 2⁻¹¹ of itself (below 2⁻¹¹: to 2⁻²²).
#[inline(always)]
pub fn rough_sigmoid_tanh<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
    let one = s.splat(1.0);
    let (a, b) = (rough_exp2(s, a, -LOG2_E, ROUGH_3), rough_tanh_exp(s, b));
    let under = s.mul(s.add(one, a), s.add(one, b));
    s.mul(s.sub(one, b), s.reciprocal_rough(under))
}

/// The functions of a gated cell, exact or rough.
pub trait Gates: Copy {
    /// `1 / (1 + e⁻ˣ)`
    fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V;
    /// Hyperbolic tangent.
    fn tanh<S: Simd>(s: S, x: S::V) -> S::V;
    /// `sigmoid(a) · tanh(b)`
    fn sigmoid_tanh<S: Simd>(s: S, a: S::V, b: S::V) -> S::V;
}

/// [`sigmoid`], [`tanh`], [`sigmoid_tanh`].
#[derive(Clone, Copy, Debug)]
pub struct Exact;
/// [`rough_sigmoid`], [`rough_tanh`], [`rough_sigmoid_tanh`]: for precisions below `f32` alone.
#[derive(Clone, Copy, Debug)]
pub struct Rough;

macro_rules! gates {
    ($name:ident: $sigmoid:ident $tanh:ident $sigmoid_tanh:ident) => {
        impl Gates for $name {
            #[inline(always)]
            fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
                $sigmoid(s, x)
            }
            #[inline(always)]
            fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
                $tanh(s, x)
            }
            #[inline(always)]
            fn sigmoid_tanh<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
                $sigmoid_tanh(s, a, b)
            }
        }
    };
}

gates!(Exact: sigmoid tanh sigmoid_tanh);
gates!(Rough: rough_sigmoid rough_tanh rough_sigmoid_tanh);

/// `(erf |x|, 1 − erf |x|)` for `|x| > 0.9277`, and `erf` with its sign below: Juffa's two
/// polynomials.
#[inline(always)]
fn erf_parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V, S::V) {
    let t = s.abs(x);
    let q = s.mul(x, x);
    let mut near = s.splat(-5.967_617e-4);
    for c in [4.991_194e-3, -2.676_813_5e-2, 0.112_819_925, -0.376_125_34, 0.128_379_17] {
        near = s.fma(near, q, s.splat(c));
    }
    let near = s.fma(near, x, x);
    let far = s.fma(s.splat(-1.728_534_7e-5), t, s.splat(3.831_971_3e-4));
    let next = s.fma(s.splat(-3.883_964_4e-3), t, s.splat(2.425_462_2e-2));
    let mut far = s.fma(far, q, next);
    for c in [-0.106_777_88, -0.634_846_7, -0.128_717_51] {
        far = s.fma(far, t, s.splat(c));
    }
    let complement = exp(s, s.fma(far, t, s.sub(s.splat(0.0), t)));
    (near, complement, t)
}

const ERF_SPLIT: f32 = 0.927_734_4;

/// The error function.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    // From 4 on the result is 1; the polynomial is not meant for larger arguments.
    let bounded = s.copysign(s.min(s.splat(4.0), s.abs(x)), x);
    let (near, complement, t) = erf_parts(s, bounded);
    let far = s.copysign(s.sub(s.splat(1.0), complement), x);
    s.select(s.less(s.splat(ERF_SPLIT), t), far, near)
}

/// `x · Φ(x)`; the lower tail uses the complement, so it does not cancel.
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let z = s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let bounded = s.copysign(s.min(s.splat(4.0), s.abs(z)), z);
    let (near, complement, t) = erf_parts(s, bounded);
    let one = s.splat(1.0);
    // Below −4·√2 the product is smaller than any digit that matters; it is 0 there.
    let complement = s.select(s.less(t, s.splat(4.0)), complement, s.splat(0.0));
    let far = s.select(s.less(z, s.splat(0.0)), complement, s.sub(s.splat(2.0), complement));
    let twice = s.select(s.less(s.splat(ERF_SPLIT), t), far, s.add(one, near));
    let y = s.mul(s.mul(s.splat(0.5), x), twice);
    // −∞ · 0 would be NaN; the limit is 0.
    s.select(s.less(x, s.splat(-1e4)), s.splat(0.0), y)
}

/// `log₂(Φ(x) / (1 − Φ(x))) / x` in powers of `x²` up to [`LOGIT_END`], where it makes the error of
/// `x · Φ(x)` smallest.
const LOGIT: [f32; 6] =
    [2.302_168, 0.104_934_25, -1.654_140_5e-4, -1.376_183e-4, 8.259_003e-6, -1.709_887_8e-7];
const LOGIT_END: f32 = 5.5 * 5.5;
/// As [`ROUGH_4`], to 9.2e-8.
#[expect(clippy::approx_constant, reason = "fitted: near ln 2, and not ln 2")]
const ROUGH_5: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// `x · Φ(x)` to 128 ulp or 2⁻²² of `x`, whichever is more, in half of the operations of
/// [`gelu`]: for products whose terms have eight bits.
#[inline(always)]
pub fn gelu_close<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let u = s.min(s.splat(LOGIT_END), s.mul(x, x));
    let mut logit = s.splat(LOGIT[5]);
    for c in LOGIT[..5].iter().rev() {
        logit = s.fma(logit, u, s.splat(*c));
    }
    let under = s.add(one, rough_exp2(s, s.mul(x, logit), -1.0, ROUGH_5));
    // One step of Newton's.
    let share = s.reciprocal_rough(under);
    let share = s.mul(share, s.fnma(under, share, s.splat(2.0)));
    let y = s.mul(x, share);
    // The exponent was bounded; from here on the product is 0 beside `x`.
    s.select(s.less(x, s.splat(-1e4)), s.splat(0.0), y)
}

/// GELU by its tanh approximation.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // 0.5·(1 + tanh u) = sigmoid(2u), which does not cancel.
    let q = s.mul(x, x);
    let u = s.mul(x, s.fma(q, s.splat(2.0 * 0.797_884_6 * 0.044_715), s.splat(2.0 * 0.797_884_6)));
    let y = s.mul(x, sigmoid(s, u));
    s.select(s.less(x, s.splat(-1e4)), s.splat(0.0), y)
}

/// `x · sigmoid(x)`
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let y = s.mul(x, sigmoid(s, x));
    s.select(s.less(x, s.splat(-1e4)), s.splat(0.0), y)
}

/// `max(x, 0)`, NaN staying NaN.
#[inline(always)]
pub fn relu<S: Simd>(s: S, x: S::V) -> S::V {
    s.max(s.splat(0.0), x)
}

/// `ln(1 + eˣ)` of one number, without overflow.
pub fn softplus(x: f32) -> f32 {
    // Beyond 20 the difference to `x` is below half an ulp.
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::Kernel;
    use std::ops::Range;

    struct Map<'a, F>(&'a [f32], &'a mut [f32], F);

    trait Function: Copy {
        fn apply<S: Simd>(self, s: S, x: S::V) -> S::V;
    }

    impl<F: Function> Kernel for Map<'_, F> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                // SAFETY: both chunks hold `x.len()` floats.
                unsafe {
                    let v = self.2.apply(s, s.load_first(x.as_ptr(), x.len()));
                    s.store_first(y.as_mut_ptr(), v, y.len());
                }
            }
        }
    }

    macro_rules! function {
        ($name:ident) => {{
            #[derive(Clone, Copy)]
            struct F;
            impl Function for F {
                #[inline(always)]
                fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
                    $name(s, x)
                }
            }
            F
        }};
    }

    // The C library's, in double precision: independent of the polynomials under test, and fast
    // enough to be asked for every float.
    mod libm {
        unsafe extern "C" {
            pub(super) safe fn erf(x: f64) -> f64;
            pub(super) safe fn erfc(x: f64) -> f64;
        }
    }
    use libm::{erf as erf64, erfc as erfc64};

    fn ulp(y: f64) -> f64 {
        let y = (y.abs() as f32).max(f32::MIN_POSITIVE);
        if y.is_infinite() { f64::INFINITY } else { f64::from(y.next_up()) - f64::from(y) }
    }

    /// A function with its bound: `ulps` of the larger of the result's ulp and `floor · |x|`.
    struct Bound<F, O> {
        name: &'static str,
        function: F,
        oracle: O,
        ulps: f64,
        floor: f64,
        /// Whether `f(−x) = −f(x)`, bit for bit; the oracle is then asked for one sign only.
        odd: bool,
    }

    impl<F: Function + Send + Sync, O: Fn(f64) -> f64 + Sync> Bound<F, O> {
        /// Checks the floats whose bits are `step` apart in a range, on all cores.
        fn check(&self, isa: Isa, bits: Range<u64>, step: u64) {
            let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
            let part = (bits.end - bits.start).div_ceil(workers).next_multiple_of(step);
            let worst = std::thread::scope(|scope| {
                let start = |w: u64| {
                    let first = bits.start + w * part;
                    let range = first..bits.end.min(first + part);
                    scope.spawn(move || self.check_alone(isa, range, step))
                };
                let threads: Vec<_> = (0..workers).map(start).collect();
                let found = threads.into_iter().map(|thread| thread.join().unwrap());
                found.fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
            });
            println!("{} {}: {:.3} ulp at {:e}", self.name, isa.name(), worst.0, worst.1);
        }

        fn check_alone(&self, isa: Isa, bits: Range<u64>, step: u64) -> (f64, f32) {
            let mut worst = (0.0, 0.0f32);
            let (mut x, mut y, mut mirrored) = (Vec::new(), Vec::new(), Vec::new());
            let mut next = bits.start;
            while next < bits.end {
                x.clear();
                let all = (next..bits.end).step_by(step as usize).take(4096);
                x.extend(all.map(|bits| f32::from_bits(bits as u32)));
                next += x.len() as u64 * step;
                y.resize(x.len(), 0.0);
                isa.run(Map(&x, &mut y, self.function));
                if self.odd {
                    mirrored.resize(x.len(), 0.0);
                    let minus: Vec<f32> = x.iter().map(|x| -x).collect();
                    isa.run(Map(&minus, &mut mirrored, self.function));
                    for ((x, y), m) in x.iter().zip(&y).zip(&mirrored) {
                        let same = y.is_nan() && m.is_nan() || (-y).to_bits() == m.to_bits();
                        assert!(same, "{}({x}) = {y}, but {m} at −x", self.name);
                    }
                }
                for (&x, &y) in x.iter().zip(&y) {
                    if !(self.odd && x < 0.0) {
                        let error = self.error(isa, x, y);
                        if error > worst.0 {
                            worst = (error, x);
                        }
                    }
                }
            }
            worst
        }

        fn error(&self, isa: Isa, x: f32, y: f32) -> f64 {
            let (name, isa) = (self.name, isa.name());
            let expected = (self.oracle)(f64::from(x));
            if expected.is_nan() || x.is_nan() {
                assert!(y.is_nan(), "{name}({x}) = {y} on {isa}, expected NaN");
                return 0.0;
            }
            if expected.abs() > f64::from(f32::MAX) {
                assert!(!y.is_nan() && y.abs() >= f32::MAX, "{name}({x}) = {y} on {isa}");
                return 0.0;
            }
            let unit = ulp(expected).max(self.floor * f64::from(x).abs());
            let error = (f64::from(y) - expected).abs() / unit;
            assert!(error <= self.ulps, "{name}({x}) = {y}, {error} ulp on {isa}");
            error
        }
    }

    fn all(isa: Isa, bits: &Range<u64>, step: u64) {
        macro_rules! check {
            ($function:ident, $oracle:expr, $ulps:expr, $floor:expr, $odd:expr) => {
                Bound {
                    name: stringify!($function),
                    function: function!($function),
                    oracle: $oracle,
                    ulps: $ulps,
                    floor: $floor,
                    odd: $odd,
                }
                .check(isa, bits.clone(), step)
            };
        }
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        let tail = 2f64.powi(-25);
        check!(exp, f64::exp, 2.0, 0.0, false);
        check!(tanh, f64::tanh, 4.0, 0.0, true);
        check!(sigmoid, sigma, 3.0, 0.0, false);
        check!(erf, |x| erf64(x), 3.0, 0.0, true);
        check!(relu, |x: f64| if x.is_nan() { x } else { x.max(0.0) }, 0.0, 0.0, false);
        let gelu64 = |x: f64| {
            let z = -x * std::f64::consts::FRAC_1_SQRT_2;
            let twice = if z > 3.0 { erfc64(z) } else { 1.0 - erf64(z) };
            if x == f64::NEG_INFINITY { 0.0 } else { 0.5 * x * twice }
        };
        check!(gelu, gelu64, 4.0, tail, false);
        check!(gelu_close, gelu64, 128.0, 2f64.powi(-29), false);
        let silu64 = |x: f64| if x == f64::NEG_INFINITY { 0.0 } else { x * sigma(x) };
        check!(silu, silu64, 4.0, tail, false);
        let gelu_tanh64 = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            if x == f64::NEG_INFINITY { 0.0 } else { x * sigma(2.0 * u) }
        };
        check!(gelu_tanh, gelu_tanh64, 4.0, tail, false);
        // Of the rough functions the bound is 2⁻¹² of the result, or 2⁻²² where that is more.
        let rough = 2f64.powi(-12);
        let close = |name, function_error: f64| {
            assert!(function_error <= rough, "{name}: {function_error:e} on {}", isa.name());
            println!("{name} {}: {function_error:.3e}", isa.name());
        };
        close("rough_sigmoid", relative(isa, function!(rough_sigmoid), sigma, bits, step));
        close("rough_tanh", relative(isa, function!(rough_tanh), f64::tanh, bits, step));
    }

    /// Largest error relative to the result, results below 2⁻¹⁰ counting as that.
    fn relative<F: Function>(
        isa: Isa,
        function: F,
        oracle: impl Fn(f64) -> f64,
        bits: &Range<u64>,
        step: u64,
    ) -> f64 {
        let mut worst = 0.0f64;
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let mut next = bits.start;
        while next < bits.end {
            x.clear();
            let all = (next..bits.end).step_by(step as usize).take(4096);
            x.extend(all.map(|bits| f32::from_bits(bits as u32)));
            next += x.len() as u64 * step;
            y.resize(x.len(), 0.0);
            isa.run(Map(&x, &mut y, function));
            for (&x, &y) in x.iter().zip(&y) {
                let expected = oracle(f64::from(x));
                if x.is_nan() {
                    assert!(y.is_nan(), "{y} for NaN on {}", isa.name());
                    continue;
                }
                let error = (f64::from(y) - expected).abs() / expected.abs().max(2f64.powi(-10));
                assert!(!error.is_nan(), "{y} for {x} on {}", isa.name());
                worst = worst.max(error);
            }
        }
        worst
    }

    const ALL: Range<u64> = 0..1 << 32;

    #[test]
    fn functions_keep_their_bounds() {
        for isa in Isa::available() {
            all(isa, &ALL, 10_007);
        }
    }

    #[test]
    fn the_rough_power_keeps_its_bound() {
        for isa in Isa::available() {
            // All that is not positive down to −∞, then NaN.
            let (bits, nan) = (0x8000_0000..0xff80_0001, 0xff80_0001..0xffff_ffff);
            let error = relative(isa, function!(rough_exp2_negative), f64::exp2, &bits, 10_007);
            assert!(error <= 2f64.powi(-16), "{error:e} on {}", isa.name());
            relative(isa, function!(rough_exp2_negative), f64::exp2, &nan, 1_000_003);
            let mut y = [1.0f32; 16];
            isa.run(Map(&[-150.0; 16], &mut y, function!(rough_exp2_negative)));
            assert_eq!(y, [0.0; 16], "{}", isa.name());
        }
    }

    #[test]
    fn shared_divisions_keep_their_bounds() {
        struct Pairs<'a>(&'a [f32], &'a [f32], [&'a mut [f32]; 2]);
        impl Kernel for Pairs<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                for i in (0..self.0.len()).step_by(S::LANES) {
                    // SAFETY: the lengths are multiples of every tier's vector.
                    unsafe {
                        let (a, b) =
                            (s.load(self.0.as_ptr().add(i)), s.load(self.1.as_ptr().add(i)));
                        s.store(self.2[0].as_mut_ptr().add(i), sigmoid_tanh(s, a, b));
                        s.store(self.2[1].as_mut_ptr().add(i), rough_sigmoid_tanh(s, a, b));
                    }
                }
            }
        }
        let mut random = crate::random::Random::new("sigmoid times tanh");
        let special = [0.0, -0.0, 1e-30, -1e-40, 0.3, 17.0, -17.0, 90.0, -90.0, -120.0];
        let ends = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1.0];
        let special: Vec<f32> = special.iter().chain(&ends).copied().collect();
        let mut a: Vec<f32> = random.floats(1 << 16).iter().map(|x| x * 20.0).collect();
        let mut b: Vec<f32> = random.floats(1 << 16).iter().map(|x| x * 5.0).collect();
        for x in &special {
            a.extend(&special);
            b.extend(special.iter().map(|_| x));
        }
        for isa in Isa::available() {
            let mut y = [vec![0.0; a.len()], vec![0.0; a.len()]];
            let [exact, rough] = &mut y;
            isa.run(Pairs(&a, &b, [exact, rough]));
            for (i, (&a, &b)) in a.iter().zip(&b).enumerate() {
                let (f, r) = (f64::from(y[0][i]), f64::from(y[1][i]));
                let e = f64::from(b).tanh() / (1.0 + (-f64::from(a)).exp());
                if e.is_nan() {
                    assert!(f.is_nan() && r.is_nan(), "{a} {b} = {f}, {r}");
                    continue;
                }
                assert!((f - e).abs() <= 6.0 * ulp(e), "{a} {b} = {f}, not {e}, {}", isa.name());
                let bound = 2f64.powi(-11) * e.abs().max(2f64.powi(-11));
                assert!((r - e).abs() <= bound, "rough {a} {b} = {r}, not {e}, {}", isa.name());
            }
        }
    }

    /// Every float, or part `i` of `n` of them: `NF_EVERY_F32=0/8 cargo test --release -p
    /// neural-forecast-cpu --lib every_float -- --ignored --nocapture`, for the best tier or that
    /// of `NF_CPU_ISA`.
    #[test]
    #[ignore = "minutes: every f32"]
    fn every_float_keeps_the_bounds() {
        let part = std::env::var("NF_EVERY_F32").unwrap_or_else(|_| "0/1".into());
        let parsed =
            part.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (i, n): (u64, u64) = parsed.expect("NF_EVERY_F32 is `i/n`");
        assert!(i < n, "NF_EVERY_F32: part {i} of {n}");
        let isa = Isa::from_environment().unwrap();
        println!(
            "NF_CPU_ISA={} NF_EVERY_F32={i}/{n} cargo test --release -p neural-forecast-cpu --lib \
             every_float -- --ignored --nocapture",
            isa.name()
        );
        // Parts are interleaved: all have the same share of the slow ranges.
        all(isa, &(i..ALL.end), n);
    }
}
