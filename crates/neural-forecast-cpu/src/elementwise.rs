//! Functions of each element, functions of two broadcast operands, softmax of rows, weighted sums.
//!
//! Runs of elements are vectorised; what has no vector form goes lane by lane through the standard
//! library.

use crate::gemm::Activation;
use crate::simd::{Kernel, Simd};
use crate::vecmath;

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// An activation.
    Activation(Activation),
    /// `asinh x`
    Asinh,
    /// `sinh x`
    Sinh,
    /// `eˣ`
    Exp,
    /// `√x`
    Sqrt,
    /// `factor · x + offset`
    Affine(f32, f32),
    /// 1 where `x` is a number, 0 where it is NaN.
    Observed,
    /// `x`, NaN replaced by 0.
    NanToZero,
}

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// `a + b`
    Add,
    /// `a − b`
    Subtract,
    /// `a · b`
    Multiply,
    /// `a / b`
    Divide,
    /// The larger; NaN if either is.
    Maximum,
}

/// `y[i] = f(x[i])`.
pub struct Map {
    /// Input.
    pub x: *const f32,
    /// Output.
    pub y: *mut f32,
    /// Elements.
    pub n: usize,
    /// Function.
    pub f: Function,
}

impl Kernel for Map {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.n {
            // SAFETY: whoever made the map grants `n` elements of both.
            unsafe {
                let x = s.load_first(self.x.add(i), self.n - i);
                let y = match self.f {
                    Function::Activation(activation) => activation.apply(s, x),
                    Function::Asinh => s.map(x, |x| f64::from(x).asinh() as f32),
                    Function::Sinh => s.map(x, |x| f64::from(x).sinh() as f32),
                    Function::Exp => vecmath::exp(s, x),
                    Function::Sqrt => s.sqrt(x),
                    Function::Affine(factor, offset) => s.fma(x, s.splat(factor), s.splat(offset)),
                    Function::Observed => s.map(x, |x| f32::from(u8::from(!x.is_nan()))),
                    Function::NanToZero => s.map(x, |x| if x.is_nan() { 0.0 } else { x }),
                };
                s.store_first(self.y.add(i), y, self.n - i);
            }
            i += S::LANES;
        }
    }
}

/// `y[i] = f(a[i], b[i · step])` with `step` 0 or 1.
pub struct Combine {
    /// First operand.
    pub a: *const f32,
    /// Second operand.
    pub b: *const f32,
    /// Whether `b` is one element for all.
    pub one: bool,
    /// Output.
    pub y: *mut f32,
    /// Elements.
    pub n: usize,
    /// Function.
    pub f: Pair,
}

impl Kernel for Combine {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.n {
            let rest = self.n - i;
            // SAFETY: whoever made it grants `n` elements of all (one of `b` where `one`).
            unsafe {
                let a = s.load_first(self.a.add(i), rest);
                let b = if self.one { s.splat(*self.b) } else { s.load_first(self.b.add(i), rest) };
                let y = match self.f {
                    Pair::Add => s.add(a, b),
                    Pair::Subtract => s.sub(a, b),
                    Pair::Multiply => s.mul(a, b),
                    Pair::Divide => s.div(a, b),
                    Pair::Maximum => {
                        // Equal or unordered: `a`, plus nothing where `b` is a number.
                        let bounded = s.max(s.splat(-1.0), s.min(s.splat(1.0), b));
                        let other = s.fma(s.splat(0.0), bounded, a);
                        let other = s.select(s.less(b, a), a, other);
                        s.select(s.less(a, b), b, other)
                    }
                };
                s.store_first(self.y.add(i), y, rest);
            }
            i += S::LANES;
        }
    }
}

/// Softmax of `rows` rows of `n`, the maximum subtracted.
pub struct Softmax {
    /// Input.
    pub x: *const f32,
    /// Output.
    pub y: *mut f32,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub n: usize,
}

impl Kernel for Softmax {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for r in 0..self.rows {
            // SAFETY: whoever made it grants the rows.
            unsafe { softmax(s, self.x.add(r * self.n), self.y.add(r * self.n), self.n) }
        }
    }
}

#[inline(always)]
unsafe fn softmax<S: Simd>(s: S, x: *const f32, y: *mut f32, n: usize) {
    // SAFETY: the caller grants `n` elements of both.
    unsafe {
        let mut maximum = f32::NEG_INFINITY;
        for i in 0..n {
            maximum = maximum.max(*x.add(i));
        }
        let mut total = 0.0;
        let mut i = 0;
        while i < n {
            let e = vecmath::exp(s, s.sub(s.load_first(x.add(i), n - i), s.splat(maximum)));
            s.store_first(y.add(i), e, n - i);
            i += S::LANES;
        }
        for i in 0..n {
            total += *y.add(i);
        }
        i = 0;
        while i < n {
            let e = s.div(s.load_first(y.add(i), n - i), s.splat(total));
            s.store_first(y.add(i), e, n - i);
            i += S::LANES;
        }
    }
}

/// `y[r, d] = Σₙ w[r, n] · x[r, n, d]` for `rows` rows.
pub struct WeightedSum {
    /// `[rows, n]`, overwritten by their softmax in `weights` where that is asked.
    pub w: *const f32,
    /// Room for one row of weights, if they go through a softmax.
    pub weights: Option<*mut f32>,
    /// `[rows, n, d]`
    pub x: *const f32,
    /// `[rows, d]`
    pub y: *mut f32,
    /// Rows.
    pub rows: usize,
    /// Vectors of a row.
    pub n: usize,
    /// Width.
    pub d: usize,
}

impl Kernel for WeightedSum {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for r in 0..self.rows {
            // SAFETY: whoever made it grants the rows.
            unsafe {
                let mut w = self.w.add(r * self.n);
                if let Some(weights) = self.weights {
                    softmax(s, w, weights, self.n);
                    w = weights;
                }
                let mut d = 0;
                while d < self.d {
                    let rest = self.d - d;
                    let mut acc = s.splat(0.0);
                    for i in 0..self.n {
                        let x = s.load_first(self.x.add((r * self.n + i) * self.d + d), rest);
                        acc = s.fma(s.splat(*w.add(i)), x, acc);
                    }
                    s.store_first(self.y.add(r * self.d + d), acc, rest);
                    d += S::LANES;
                }
            }
        }
    }
}
