//! `unary`, `binary` and `weighted_sum`: what is left between the products.
//!
//! Not a fallback for whole layers: models use these for gates, residuals and mixtures, and the
//! fusion pass folds most of them into the product before them.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};

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
