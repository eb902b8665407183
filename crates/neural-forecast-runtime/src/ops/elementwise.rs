//! `unary`, `binary` and `weighted_sum`: what is left between the products.
//!
//! Not a fallback for whole layers: models use these for gates, residuals and mixtures, and the
//! fusion pass folds most of them into the product before them.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// Activation functions that a product can end with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x`.
    Identity,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x · Φ(x)` by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x` above 0, `e^x − 1` below.
    Elu,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `x` above 0, `slope · x` below.
    LeakyRelu(f32),
    /// SELU with its standard constants.
    Selu,
}

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UnaryKind {
    /// An activation.
    Activation(Activation),
    /// `asinh(x)`.
    Asinh,
    /// `sinh(x)`.
    Sinh,
    /// `e^x`.
    Exp,
    /// `√x`.
    Sqrt,
    /// `factor · x + offset`.
    Affine {
        /// Multiplies.
        factor: f32,
        /// Is added.
        offset: f32,
    },
    /// 1 where `x` is a number, 0 where it is NaN.
    Observed,
    /// `x`, with NaN replaced by 0.
    NanToZero,
    /// Softmax over the last axis, with the maximum subtracted first.
    Softmax,
}

/// Parameters of `unary`. Writes one value of the shape of `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// Input.
    pub x: ValueId,
    /// Function.
    pub kind: UnaryKind,
}

/// The second operand of a [`Binary`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// A value.
    Value(ValueId),
    /// A weight, for example learned positions.
    Weight(WeightId),
}

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// `a + b`.
    Add,
    /// `a − b`.
    Subtract,
    /// `a · b`.
    Multiply,
    /// `a / b`.
    Divide,
    /// The larger; NaN if either is.
    Maximum,
}

/// Parameters of `binary`. `b` broadcasts to the shape of `a`: aligned at the last axis, each axis
/// of `b` equal or 1, missing leading axes repeated. Writes one value of the shape of `a`.
#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    /// First operand, whose shape the result has.
    pub a: ValueId,
    /// Second operand.
    pub b: Operand,
    /// Function.
    pub kind: BinaryKind,
}

/// Parameters of `weighted_sum`: `y[…, d] = Σₙ w[…, n] · x[…, n, d]`, with `w` through a softmax
/// over `n` first where asked. Writes one value `[…, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedSum {
    /// Weights `[…, N]`.
    pub weights: ValueId,
    /// Vectors `[…, N, D]`.
    pub x: ValueId,
    /// Whether `weights` are logits.
    pub softmax: bool,
}

impl Unary {
    /// An activation as an op of its own.
    pub fn activation(x: ValueId, activation: Activation) -> Self {
        Unary { x, kind: UnaryKind::Activation(activation) }
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        Ok(vec![(DType::F32, c.shape(self.x).to_vec())])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Binary {
    /// Two values.
    pub fn values(a: ValueId, kind: BinaryKind, b: ValueId) -> Self {
        Binary { a, b: Operand::Value(b), kind }
    }

    /// A value and a weight.
    pub fn weight(a: ValueId, kind: BinaryKind, b: WeightId) -> Self {
        Binary { a, b: Operand::Weight(b), kind }
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let a = c.shape(self.a);
        let b: Vec<Dim> = match self.b {
            Operand::Value(b) => c.shape(b).to_vec(),
            Operand::Weight(b) => c.weight(b).iter().map(|&n| Dim::Fixed(n)).collect(),
        };
        let fits = b.len() <= a.len()
            && b.iter().rev().zip(a.iter().rev()).all(|(b, a)| b == a || *b == Dim::Fixed(1));
        if !fits {
            return Err(c.error(format!("`b` has shape {b:?}, which does not broadcast to {a:?}")));
        }
        Ok(vec![(DType::F32, a.to_vec())])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.a);
        if let Operand::Value(b) = &mut self.b {
            visit(b);
        }
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        if let Operand::Weight(b) = &mut self.b {
            visit(b);
        }
    }
}

impl WeightedSum {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let (weights, x) = (c.shape(self.weights), c.shape(self.x));
        if x.len() < 2 || weights != &x[..x.len() - 1] {
            return Err(c.error(format!(
                "`weights` has shape {weights:?} and `x` {x:?}, expected […, N] and […, N, D]"
            )));
        }
        let mut out = x[..x.len() - 2].to_vec();
        out.push(x[x.len() - 1]);
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.weights);
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Activation {
    /// Its number in the kernels of GPUs (`ptx/activation.cuh`, `wgsl/math.wgsl`), and its slope, 0
    /// where it has none.
    pub fn code(self) -> (u32, f32) {
        match self {
            Activation::Identity => (0, 0.0),
            Activation::Relu => (1, 0.0),
            Activation::Gelu => (2, 0.0),
            Activation::GeluTanh => (3, 0.0),
            Activation::Silu => (4, 0.0),
            Activation::Sigmoid => (5, 0.0),
            Activation::Tanh => (6, 0.0),
            Activation::Elu => (7, 0.0),
            Activation::Softplus => (8, 0.0),
            Activation::LeakyRelu(slope) => (9, slope),
            Activation::Selu => (10, 0.0),
        }
    }

    /// The function itself, in double precision.
    pub(crate) fn apply(self, x: f64) -> f64 {
        match self {
            Activation::Identity => x,
            // `max` would turn NaN into 0.
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Gelu => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Silu => x * sigmoid(x),
            Activation::Sigmoid => sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Elu if x > 0.0 => x,
            Activation::Elu => x.exp_m1(),
            Activation::Softplus => softplus(x),
            Activation::LeakyRelu(slope) if x < 0.0 => x * f64::from(slope),
            Activation::LeakyRelu(_) => x,
            Activation::Selu => {
                // The constants of the paper, as PyTorch has them.
                let (alpha, scale) = (1.673_263_242_354_377_2, 1.050_700_987_355_480_5);
                scale * if x > 0.0 { x } else { alpha * x.exp_m1() }
            }
        }
    }
}

/// `1 / (1 + e^−x)`.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + e^x)`, without overflow.
pub(crate) fn softplus(x: f64) -> f64 {
    if x.is_nan() { x } else { x.max(0.0) + (-x.abs()).exp().ln_1p() }
}

/// The error function, by the series `2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!`, whose terms are
/// all of one sign.
fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > sum.abs() * 1e-17 {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Softmax of a row in place, with the maximum subtracted.
pub(crate) fn softmax(row: &mut [f64]) {
    let maximum = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|x| *x = (*x - maximum).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

impl Unary {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let mut y = c.value(self.x).clone();
        let width = y.width().max(1);
        if self.kind == UnaryKind::Softmax {
            y.data.chunks_exact_mut(width).for_each(softmax);
            return vec![y];
        }
        for x in &mut y.data {
            *x = match self.kind {
                UnaryKind::Activation(activation) => activation.apply(*x),
                UnaryKind::Asinh => x.asinh(),
                UnaryKind::Sinh => x.sinh(),
                UnaryKind::Exp => x.exp(),
                UnaryKind::Sqrt => x.sqrt(),
                UnaryKind::Affine { factor, offset } => f64::from(factor) * *x + f64::from(offset),
                UnaryKind::Observed => f64::from(u8::from(!x.is_nan())),
                UnaryKind::NanToZero if x.is_nan() => 0.0,
                UnaryKind::NanToZero | UnaryKind::Softmax => *x,
            };
        }
        vec![y]
    }
}

impl Binary {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let a = c.value(self.a);
        let b = match self.b {
            Operand::Value(b) => c.value(b),
            Operand::Weight(b) => c.weight(b),
        };
        let missing = a.shape.len() - b.shape.len();
        let y = Tensor::from_fn(a.shape.as_slice(), |at| {
            let inner = at[missing..].iter().zip(&b.shape);
            let other: Vec<usize> = inner.map(|(&i, &n)| if n == 1 { 0 } else { i }).collect();
            let (a, b) = (a.at(at), b.at(&other));
            match self.kind {
                BinaryKind::Add => a + b,
                BinaryKind::Subtract => a - b,
                BinaryKind::Multiply => a * b,
                BinaryKind::Divide => a / b,
                BinaryKind::Maximum if a.is_nan() || b.is_nan() => f64::NAN,
                BinaryKind::Maximum => a.max(b),
            }
        });
        vec![y]
    }
}

impl WeightedSum {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let (weights, x) = (c.value(self.weights), c.value(self.x));
        let rank = x.shape.len();
        let (n, d) = (x.shape[rank - 2], x.shape[rank - 1]);
        let outer: usize = x.shape[..rank - 2].iter().product();
        let mut y = vec![0.0; outer * d];
        for row in 0..outer {
            let mut w = weights.data[row * n..(row + 1) * n].to_vec();
            if self.softmax {
                softmax(&mut w);
            }
            for (i, w) in w.iter().enumerate() {
                for k in 0..d {
                    y[row * d + k] += w * x.data[(row * n + i) * d + k];
                }
            }
        }
        vec![Tensor::new([&x.shape[..rank - 2], &[d]].concat(), y)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_have_known_values() {
        // At x = 0.7 and x = −1.3, from the definitions by another language's mathematics library.
        let known = [
            (Activation::Identity, 0.7, -1.3),
            (Activation::Relu, 0.7, 0.0),
            (Activation::Gelu, 0.530_625_443_443_848_9, -0.125_840_629_961_293_47),
            (Activation::GeluTanh, 0.530_570_134_705_116_7, -0.126_070_987_682_690_6),
            (Activation::Silu, 0.467_731_440_517_716_26, -0.278_414_522_044_673_8),
            (Activation::Sigmoid, 0.668_187_772_168_166_2, 0.214_165_016_957_441_4),
            (Activation::Tanh, 0.604_367_777_117_163_6, -0.861_723_159_313_306_3),
            (Activation::Elu, 0.7, -0.727_468_206_965_987_5),
            (Activation::Softplus, 1.103_186_048_885_458, 0.241_008_453_832_992_2),
            (Activation::LeakyRelu(0.5), 0.7, -0.65),
            (Activation::Selu, 0.735_490_691_148_836_3, -1.278_961_375_154_325_6),
        ];
        for (activation, above, below) in known {
            for (x, expected) in [(0.7, above), (-1.3, below)] {
                let found = activation.apply(x);
                let difference = (found - expected).abs();
                assert!(difference <= 1e-12, "{activation:?}({x}) = {found}, expected {expected}");
            }
            assert!(activation.apply(f64::NAN).is_nan(), "{activation:?} of NaN");
        }
    }

    #[test]
    fn the_error_function_has_known_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, expected) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - expected).abs() <= 1e-10);
            assert!((erf(-x) + expected).abs() <= 1e-10);
        }
        assert_eq!(erf(40.0), 1.0);
    }

    #[test]
    fn softmax_does_not_overflow() {
        let mut row = [1000.0, 1000.0, f64::NEG_INFINITY];
        softmax(&mut row);
        assert_eq!(row, [0.5, 0.5, 0.0]);
    }
}
