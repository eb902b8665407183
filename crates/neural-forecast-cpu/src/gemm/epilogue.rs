//! What happens to finished sums: bias, activation, gate, residual, or a caller's own end.
//!
//! Not the sums themselves; those are the tiles'.

use super::{Gemm, Packed};
use crate::memory::{Numbers, prefetch};
use crate::simd::Simd;
use crate::vecmath;
use std::ops::Range;

/// Function that ends a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x · Φ(x)`
    Gelu,
    /// The same to 128 ulp, for products in bf16 and int8.
    GeluClose,
    /// GELU by tanh.
    GeluTanh,
    /// `x · sigmoid(x)`
    Silu,
    /// `1 / (1 + e^−x)`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x` above 0, `alpha · (e^x − 1)` below, all times `scale`.
    Elu {
        /// Factor below 0.
        alpha: f32,
        /// Factor everywhere.
        scale: f32,
    },
    /// `ln(1 + e^x)`
    Softplus,
    /// `x` above 0, `slope · x` below.
    LeakyRelu(f32),
}

impl Activation {
    /// The function as exactly as products with these weights need it.
    pub fn after(self, weights: &Packed) -> Activation {
        match self {
            Activation::Gelu if weights.gives_halves() => Activation::GeluClose,
            other => other,
        }
    }

    /// Applies it to a vector.
    #[inline(always)]
    pub fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        match self {
            Activation::Identity => x,
            Activation::Relu => vecmath::relu(s, x),
            Activation::Gelu => vecmath::gelu(s, x),
            Activation::GeluClose => vecmath::gelu_close(s, x),
            Activation::GeluTanh => vecmath::gelu_tanh(s, x),
            Activation::Silu => vecmath::silu(s, x),
            Activation::Sigmoid => vecmath::sigmoid(s, x),
            Activation::Tanh => vecmath::tanh(s, x),
            Activation::Elu { alpha, scale } => {
                let negative = s.mul(s.splat(alpha), vecmath::exp_m1_negative(s, x));
                s.mul(s.splat(scale), s.select(s.less(x, s.splat(0.0)), negative, x))
            }
            Activation::Softplus => s.map(x, vecmath::softplus),
            Activation::LeakyRelu(slope) => {
                s.select(s.less(x, s.splat(0.0)), s.mul(x, s.splat(slope)), x)
            }
        }
    }
}

/// What happens to finished sums, and where unfinished ones may wait.
pub trait Finish: Copy {
    /// Where the sums of a panel of a row may be kept, and how many of its columns: in place where
    /// that is the whole panel. `None` if there is no such place; then all terms are summed in one
    /// go.
    fn place<S: Simd>(&self, p: usize, r: usize) -> Option<(*mut f32, usize)>;

    /// Takes the finished sums of panel `p` of row `r`.
    ///
    /// # Safety
    /// `sums` holds the panel's width; the row and the panel are of the product being run.
    unsafe fn row<S: Simd>(&self, s: S, p: usize, r: usize, sums: *const f32);

    /// Takes the finished sums of panel `p` of some rows, which are `stride` floats apart.
    ///
    /// # Safety
    /// As [`Finish::row`], for each row.
    #[inline(always)]
    unsafe fn rows<S: Simd>(
        &self,
        s: S,
        p: usize,
        rows: Range<usize>,
        sums: *const f32,
        stride: usize,
    ) {
        for (i, r) in rows.enumerate() {
            // SAFETY: the caller's.
            unsafe { self.row(s, p, r, sums.add(i * stride)) }
        }
    }

    /// Asks for the memory that panel `p` of some rows will need at its end, while its products
    /// are summed.
    #[inline(always)]
    fn expect(&self, _p: usize, _rows: Range<usize>) {}
}

impl Finish for Gemm<'_> {
    #[inline(always)]
    fn place<S: Simd>(&self, p: usize, r: usize) -> Option<(*mut f32, usize)> {
        if self.gate.is_some() || self.y_numbers == Numbers::Halves {
            return None;
        }
        // SAFETY: callers pass a row and a panel of this product.
        let at = unsafe { self.y.add(self.y_map.offset(r) + p * self.weights.width()) };
        Some((at, self.columns::<S>(p)))
    }

    /// Bias, activation, gate and residual, from `sums` to the output (maybe the same place).
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, p: usize, r: usize, sums: *const f32) {
        let w = self.weights;
        let bias = w.panel_bias(p);
        let columns = self.columns::<S>(p);
        if columns == w.width() && self.gate.is_none() {
            // SAFETY: the caller's.
            unsafe {
                let y = self.y.cast_const().wrapping_add(self.y_map.offset(r) + p * w.width());
                let halves = self.y_numbers == Numbers::Halves;
                let plain = self.activation == Activation::Identity && self.residual.is_none();
                if plain && bias.is_none() && y == sums && !halves {
                    return;
                }
                let end = End { product: self, p, rows: r..r + 1, sums, stride: 0 };
                return end.whole(s, self.activation);
            }
        }
        let start = if self.gate.is_some() { p * S::LANES } else { p * w.width() };
        // SAFETY: `sums` and `bias` hold the panel's width; output and residual its columns.
        unsafe {
            let residual = self.residual.map(|(at, map)| at.add(map.offset(r) + start));
            let vectors = if self.gate.is_some() { 1 } else { w.vectors };
            for v in 0..vectors {
                let at = v * S::LANES;
                if at >= columns {
                    break;
                }
                let mut value = self.activation.apply(s, biased(s, sums, bias, at));
                if let Some(gate) = self.gate {
                    value = s.mul(value, gate.apply(s, biased(s, sums, bias, S::LANES)));
                }
                if let Some(residual) = residual {
                    value = s.add(s.load_first(residual.add(at), columns - at), value);
                }
                self.store(s, self.y_map.offset(r) + start + at, value, columns - at);
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<S: Simd>(
        &self,
        s: S,
        p: usize,
        rows: Range<usize>,
        sums: *const f32,
        stride: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            if self.gate.is_some() || self.columns::<S>(p) < self.weights.width() {
                for (i, r) in rows.enumerate() {
                    self.row(s, p, r, sums.add(i * stride));
                }
                return;
            }
            // Which function is asked once a tile: a row of a tile is over in few cycles.
            let end = End { product: self, p, rows, sums, stride };
            match self.activation {
                Activation::Identity => end.whole(s, Same),
                Activation::GeluClose => end.whole(s, GeluClose),
                other => end.whole(s, other),
            }
        }
    }

    #[inline(always)]
    fn expect(&self, p: usize, rows: Range<usize>) {
        if self.gate.is_some() || self.y_numbers == Numbers::Halves {
            return;
        }
        let width = self.weights.width();
        for r in rows {
            prefetch(self.y.wrapping_add(self.y_map.offset(r) + p * width), width);
            if let Some((at, map)) = self.residual {
                prefetch(at.wrapping_add(map.offset(r) + p * width), width);
            }
        }
    }
}

impl Gemm<'_> {
    /// Puts the first `n` lanes into the output from number `at` on.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, at: usize, value: S::V, n: usize) {
        // SAFETY: the caller grants these numbers of the output.
        unsafe {
            match self.y_numbers {
                Numbers::Floats => s.store_first(self.y.add(at), value, n),
                Numbers::Halves => s.store_halves(self.y.cast::<u16>().add(at), value, n),
            }
        }
    }
}

/// The end of all columns of a panel, without a gate.
struct End<'a, 'g> {
    product: &'a Gemm<'g>,
    p: usize,
    rows: Range<usize>,
    sums: *const f32,
    stride: usize,
}

/// A function that ends a product, known when it is compiled or not. Not a closure: those are
/// compiled without the tier's features where they are not inlined.
trait Function: Copy {
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V;
}

#[derive(Clone, Copy)]
struct Same;
#[derive(Clone, Copy)]
struct GeluClose;

impl Function for Same {
    #[inline(always)]
    fn of<S: Simd>(self, _: S, x: S::V) -> S::V {
        x
    }
}

impl Function for GeluClose {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
        vecmath::gelu_close(s, x)
    }
}

impl Function for Activation {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
        self.apply(s, x)
    }
}

impl End<'_, '_> {
    #[inline(always)]
    unsafe fn whole<S: Simd, F: Function>(self, s: S, f: F) {
        // SAFETY: the caller's.
        unsafe {
            match self.product.y_numbers {
                Numbers::Floats => self.to::<S, F, false>(s, f),
                Numbers::Halves => self.to::<S, F, true>(s, f),
            }
        }
    }

    #[inline(always)]
    unsafe fn to<S: Simd, F: Function, const HALVES: bool>(self, s: S, f: F) {
        let Gemm { weights: w, y, y_map, residual, .. } = *self.product;
        let (bias, start) = (w.panel_bias(self.p), self.p * w.width());
        for (i, r) in self.rows.enumerate() {
            // SAFETY: `sums` and `bias` hold the panel's width, as do output and residual.
            unsafe {
                let sums = self.sums.add(i * self.stride);
                let to = y_map.offset(r) + start;
                let residual = residual.map(|(at, map)| at.add(map.offset(r) + start));
                let part = Part { sums, bias, residual };
                let mut at = 0;
                while HALVES && at + 2 * S::LANES <= w.width() {
                    let (a, b) = (part.end(s, f, at), part.end(s, f, at + S::LANES));
                    s.store_halves_of_two(y.cast::<u16>().add(to + at), a, b);
                    at += 2 * S::LANES;
                }
                while at < w.width() {
                    let value = part.end(s, f, at);
                    if HALVES {
                        s.store_halves(y.cast::<u16>().add(to + at), value, S::LANES);
                    } else {
                        s.store(y.add(to + at), value);
                    }
                    at += S::LANES;
                }
            }
        }
    }
}

/// A panel of a row.
struct Part {
    sums: *const f32,
    bias: Option<*const f32>,
    residual: Option<*const f32>,
}

impl Part {
    /// The vector at `at`, ended.
    #[inline(always)]
    unsafe fn end<S: Simd, F: Function>(&self, s: S, f: F, at: usize) -> S::V {
        // SAFETY: the caller's: all hold the panel's width.
        unsafe {
            let value = f.of(s, biased(s, self.sums, self.bias, at));
            match self.residual {
                Some(residual) => s.add(s.load(residual.add(at)), value),
                None => value,
            }
        }
    }
}

/// The vector at `at`, with its bias.
#[inline(always)]
unsafe fn biased<S: Simd>(s: S, sums: *const f32, bias: Option<*const f32>, at: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let sum = s.load(sums.add(at));
        match bias {
            Some(bias) => s.add(sum, s.load(bias.add(at))),
            None => sum,
        }
    }
}
