//! What happens to finished sums: bias, activation, gate, residual, or a caller's own end.
//!
//! Not the sums themselves; those are the tiles'.

use super::Gemm;
use crate::simd::Simd;
use crate::vecmath;

/// Function that ends a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x · Φ(x)`
    Gelu,
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
    /// Applies it to a vector.
    #[inline(always)]
    pub fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        match self {
            Activation::Identity => x,
            Activation::Relu => vecmath::relu(s, x),
            Activation::Gelu => vecmath::gelu(s, x),
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
}

impl Finish for Gemm<'_> {
    #[inline(always)]
    fn place<S: Simd>(&self, p: usize, r: usize) -> Option<(*mut f32, usize)> {
        if self.gate.is_some() {
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
        let start = if self.gate.is_some() { p * S::LANES } else { p * w.width() };
        // SAFETY: `sums` and `bias` hold the panel's width; output and residual its columns.
        unsafe {
            let y = self.y.add(self.y_map.offset(r) + start);
            let residual = self.residual.map(|(at, map)| at.add(map.offset(r) + start));
            let plain = self.activation == Activation::Identity && residual.is_none();
            if plain && bias.is_none() && self.gate.is_none() && y.cast_const() == sums {
                return;
            }
            if columns == w.width() && self.gate.is_none() {
                for v in 0..w.vectors {
                    let at = v * S::LANES;
                    let mut value = self.activation.apply(s, biased(s, sums, bias, at));
                    if let Some(residual) = residual {
                        value = s.add(s.load(residual.add(at)), value);
                    }
                    s.store(y.add(at), value);
                }
                return;
            }
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
                s.store_first(y.add(at), value, columns - at);
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
