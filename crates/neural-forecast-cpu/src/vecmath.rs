//! Vectorised elementary functions, one polynomial for all tiers.
//!
//! Bounds, asserted by the tests below against `f64`: `exp` 2 ulp, `tanh` 4, `sigmoid` 3, `erf` 3
//! (of the result, subnormals included); `gelu`, `gelu_tanh` and `silu` the larger of 4 ulp and
//! `2⁻²³·|x|` (their lower tail is a difference). Infinities and NaN behave as in IEEE. Not the
//! functions off the hot path (`ln`, `asinh`, `sinh`, softplus), which go lane by lane through the
//! standard library.

use crate::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// High part of ln 2: nine bits, so that its product with an exponent is exact without FMA.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `(n, eʳ − 1)` with `x = n·ln 2 + r`, `|r| ≤ ln 2 / 2`; the polynomial is Cephes' `expf`.
#[inline(always)]
fn exp_parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.fnma(n, s.splat(LN2_HIGH), x);
    let r = s.fnma(n, s.splat(LN2_LOW), r);
    let mut p = s.splat(1.987_569_2e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    (n, s.fma(s.mul(p, r), r, r))
}

/// `eˣ`
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // Below −104 the result rounds to 0, above 89 to infinity; NaN passes both.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let (n, p) = exp_parts(s, x);
    s.scale(s.add(p, s.splat(1.0)), n)
}

/// `eˣ − 1` for `x ≤ 0`, as ELU needs it.
#[inline(always)]
pub fn exp_m1_negative<S: Simd>(s: S, x: S::V) -> S::V {
    let (n, p) = exp_parts(s, s.max(s.splat(-104.0), x));
    let two_n = s.scale(s.splat(1.0), n);
    s.fma(two_n, p, s.sub(two_n, s.splat(1.0)))
}

/// `tanh x = (e − 1) / (e + 1)`, `e = e^2|x|`, with `e − 1` formed without cancellation.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // From 2|x| = 20 on the quotient is 1 exactly.
    let a = s.abs(x);
    let (n, p) = exp_parts(s, s.min(s.splat(20.0), s.add(a, a)));
    let two_n = s.scale(s.splat(1.0), n);
    let e_m1 = s.fma(two_n, p, s.sub(two_n, s.splat(1.0)));
    s.copysign(s.div(e_m1, s.add(e_m1, s.splat(2.0))), x)
}

/// `1 / (1 + e⁻ˣ)`, formed from `e^−|x|` so that the lower tail keeps its digits.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let one = s.splat(1.0);
    let e = exp(s, s.sub(zero, s.abs(x)));
    s.div(s.select(s.less(x, zero), e, one), s.add(one, e))
}

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

    fn erf64(x: f64) -> f64 {
        // Series below 3, continued fraction above: independent of the polynomials under test.
        let a = x.abs();
        let y = if a < 3.0 {
            let (mut term, mut sum, mut n) = (a, a, 0.0);
            while term.abs() > 1e-18 * sum.abs() {
                n += 1.0;
                term *= -a * a / n;
                sum += term / (2.0 * n + 1.0);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            1.0 - erfc64(a)
        };
        y.copysign(x)
    }

    fn erfc64(a: f64) -> f64 {
        let mut f = 0.0;
        for k in (1..200).rev() {
            f = k as f64 / 2.0 / (a + f);
        }
        (-a * a).exp() / (a + f) / std::f64::consts::PI.sqrt()
    }

    fn ulp(y: f64) -> f64 {
        let y = (y.abs() as f32).max(f32::MIN_POSITIVE);
        if y.is_infinite() { f64::INFINITY } else { f64::from(y.next_up()) - f64::from(y) }
    }

    fn samples(step: u32) -> Vec<f32> {
        (0..=u32::MAX / step).map(|i| f32::from_bits(i * step)).collect()
    }

    fn check<F: Function>(
        name: &str,
        f: F,
        oracle: impl Fn(f64) -> f64,
        ulps: f64,
        floor: f64,
        step: u32,
    ) {
        for isa in Isa::available() {
            let x = samples(step);
            let mut y = vec![0.0; x.len()];
            isa.run(Map(&x, &mut y, f));
            let mut worst = (0.0, 0.0f32, 0.0f32);
            for (&x, &y) in x.iter().zip(&y) {
                let expected = oracle(f64::from(x));
                if expected.is_nan() || x.is_nan() {
                    assert!(y.is_nan(), "{name}({x}) = {y} on {}, expected NaN", isa.name());
                    continue;
                }
                if expected.abs() > f64::from(f32::MAX) {
                    assert!(!y.is_nan() && y.abs() >= f32::MAX, "{name}({x}) = {y}");
                    continue;
                }
                let unit = ulp(expected).max(floor * f64::from(x).abs());
                let error = (f64::from(y) - expected).abs() / unit;
                assert!(error <= ulps, "{name}({x}) = {y}, {error} ulp on {}", isa.name());
                if error > worst.0 {
                    worst = (error, x, y);
                }
            }
            println!("{name} {}: {:.2} ulp at {}", isa.name(), worst.0, worst.1);
        }
    }

    fn all(step: u32) {
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        let tail = 2f64.powi(-25);
        check("exp", function!(exp), f64::exp, 2.0, 0.0, step);
        check("tanh", function!(tanh), f64::tanh, 4.0, 0.0, step);
        check("sigmoid", function!(sigmoid), sigma, 3.0, 0.0, step);
        check("erf", function!(erf), erf64, 3.0, 0.0, step);
        check("relu", function!(relu), |x| if x.is_nan() { x } else { x.max(0.0) }, 0.0, 0.0, step);
        let gelu64 = |x: f64| {
            let z = -x * std::f64::consts::FRAC_1_SQRT_2;
            let twice = if z > 3.0 { erfc64(z) } else { 1.0 - erf64(z) };
            if x == f64::NEG_INFINITY { 0.0 } else { 0.5 * x * twice }
        };
        check("gelu", function!(gelu), gelu64, 4.0, tail, step);
        let silu64 = |x: f64| if x == f64::NEG_INFINITY { 0.0 } else { x * sigma(x) };
        check("silu", function!(silu), silu64, 4.0, tail, step);
        let gelu_tanh64 = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            if x == f64::NEG_INFINITY { 0.0 } else { x * sigma(2.0 * u) }
        };
        check("gelu_tanh", function!(gelu_tanh), gelu_tanh64, 4.0, tail, step);
    }

    #[test]
    fn functions_keep_their_bounds() {
        all(10_007);
    }

    /// Every float: `cargo test --release -p neural-forecast-cpu every_float -- --ignored`.
    #[test]
    #[ignore = "minutes: every f32"]
    fn every_float_keeps_the_bounds() {
        all(1);
    }
}
