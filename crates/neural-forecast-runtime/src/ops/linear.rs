//! `linear`: an affine map along the last axis, along time, or head by head, with the epilogue that
//! kernels fuse.
//!
//! `y = residual + activation(x·Wᵀ + b) ⊙ gate(x·W_gᵀ + b_g)`, each part optional. Not a general
//! einsum: the contracted axis is the last one, or the one before it.

use super::{Activation, Norm, ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor, dot};

/// Which axis the product contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearAxis {
    /// `[…, K] → […, N]`, weight `[N, K]`.
    Features,
    /// `[…, T, C] → […, H, C]`, weight `[H, T]`: the same map for every channel.
    Time,
    /// `[…, heads · K] → […, heads · N]`, weight `[heads, N, K]`: a block-diagonal map.
    Heads(usize),
}

/// The second product of a gated unit: `value ⊙ activation(x·Wᵀ + b)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// Same shape as the weight it gates.
    pub weight: WeightId,
    /// Same length as the outputs.
    pub bias: Option<WeightId>,
    /// `Sigmoid` for GLU, `Silu` for SwiGLU.
    pub activation: Activation,
}

/// Parameters of `linear`. Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Input, at least rank 2 for [`LinearAxis::Time`], at least rank 1 otherwise.
    pub x: ValueId,
    /// Normalisation of the rows of `x` before the product (`axis` must be `Features`); set by the
    /// fusion pass. Its own `x` is ignored.
    pub prologue: Option<Norm>,
    /// Weight, shaped as [`LinearAxis`] says.
    pub weight: WeightId,
    /// One bias per output (`[heads · N]` for heads, `[H]` over time).
    pub bias: Option<WeightId>,
    /// Contracted axis.
    pub axis: LinearAxis,
    /// Applied to the product and its bias.
    pub activation: Activation,
    /// Multiplies the activated product.
    pub gate: Option<Gate>,
    /// Added last; has the output's shape.
    pub residual: Option<ValueId>,
}

impl Linear {
    /// A plain product without bias, over features.
    pub fn new(x: ValueId, weight: WeightId) -> Self {
        Linear {
            x,
            prologue: None,
            weight,
            bias: None,
            axis: LinearAxis::Features,
            activation: Activation::Identity,
            gate: None,
            residual: None,
        }
    }

    /// With a bias.
    pub fn bias(mut self, bias: impl Into<Option<WeightId>>) -> Self {
        self.bias = bias.into();
        self
    }

    /// Along another axis.
    pub fn along(mut self, axis: LinearAxis) -> Self {
        self.axis = axis;
        self
    }

    /// With an activation.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// With a gate.
    pub fn gate(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// With a residual.
    pub fn residual(mut self, residual: ValueId) -> Self {
        self.residual = Some(residual);
        self
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.shape(self.x);
        let weight = c.weight(self.weight);
        let mut out = x.to_vec();
        let outputs = match self.axis {
            LinearAxis::Features => {
                let k = c.fixed("the last axis of `x`", x.last())?;
                let n = *weight.first().unwrap_or(&0);
                c.expect_weight("weight", self.weight, &[n, k], "[outputs, inputs]")?;
                *out.last_mut().ok_or_else(|| c.error("`x` is a scalar"))? = Dim::Fixed(n);
                n
            }
            LinearAxis::Time => {
                if x.len() < 2 {
                    return Err(
                        c.error(format!("`x` has shape {x:?}, expected […, time, channels]"))
                    );
                }
                let t = c.fixed("the time axis of `x`", x.get(x.len() - 2))?;
                let h = *weight.first().unwrap_or(&0);
                c.expect_weight("weight", self.weight, &[h, t], "[outputs, time]")?;
                out[x.len() - 2] = Dim::Fixed(h);
                h
            }
            LinearAxis::Heads(heads) => {
                let k = c.fixed("the last axis of `x`", x.last())?;
                if heads == 0 || k % heads != 0 {
                    return Err(c.error(format!("{k} features do not divide into {heads} heads")));
                }
                let n = *weight.get(1).unwrap_or(&0);
                let expected = [heads, n, k / heads];
                c.expect_weight("weight", self.weight, &expected, "[heads, outputs, inputs]")?;
                let outputs = heads.saturating_mul(n);
                *out.last_mut().ok_or_else(|| c.error("`x` is a scalar"))? = Dim::Fixed(outputs);
                outputs
            }
        };
        if let Some(bias) = self.bias {
            c.expect_weight("bias", bias, &[outputs], "[outputs]")?;
        }
        if let Some(gate) = &self.gate {
            c.expect_weight("gate.weight", gate.weight, weight, "the weight's shape")?;
            if let Some(bias) = gate.bias {
                c.expect_weight("gate.bias", bias, &[outputs], "[outputs]")?;
            }
        }
        if let Some(prologue) = &self.prologue {
            if self.axis != LinearAxis::Features {
                return Err(c.error("a prologue needs a product over features"));
            }
            prologue.check(c, x)?;
        }
        if let Some(residual) = self.residual {
            c.expect_value("residual", residual, &out, "the output's shape")?;
        }
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
        self.residual.iter_mut().for_each(visit);
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        if let Some(prologue) = &mut self.prologue {
            prologue.visit_weights(visit);
        }
        visit(&mut self.weight);
        self.bias.iter_mut().for_each(&mut *visit);
        if let Some(gate) = &mut self.gate {
            visit(&mut gate.weight);
            gate.bias.iter_mut().for_each(visit);
        }
    }
}

impl Linear {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let normed = self.prologue.as_ref().map(|norm| norm.apply(c, x));
        let x = normed.as_ref().unwrap_or(x);
        let mut y = self.product(c, x, self.weight, self.bias);
        for value in &mut y.data {
            *value = self.activation.apply(*value);
        }
        if let Some(gate) = &self.gate {
            let gates = self.product(c, x, gate.weight, gate.bias);
            for (value, gated) in y.data.iter_mut().zip(gates.data) {
                *value *= gate.activation.apply(gated);
            }
        }
        if let Some(residual) = self.residual {
            for (value, residual) in y.data.iter_mut().zip(&c.value(residual).data) {
                *value += residual;
            }
        }
        vec![y]
    }

    /// The product along the axis, and its bias.
    fn product(
        &self,
        c: &ReferenceContext<'_>,
        x: &Tensor,
        weight: WeightId,
        bias: Option<WeightId>,
    ) -> Tensor {
        let (w, bias) = (c.weight(weight), c.optional(bias));
        match self.axis {
            LinearAxis::Features => product(x, w, bias),
            LinearAxis::Time => {
                let (time, channels) = (x.shape.len() - 2, x.shape.len() - 1);
                let mut shape = x.shape.clone();
                shape[time] = w.shape[0];
                Tensor::from_fn(shape, |at| {
                    let mut from = at.to_vec();
                    let mut sum = bias.map_or(0.0, |bias| bias[at[time]]);
                    for t in 0..x.shape[time] {
                        from[time] = t;
                        from[channels] = at[channels];
                        sum += w.at(&[at[time], t]) * x.at(&from);
                    }
                    sum
                })
            }
            LinearAxis::Heads(heads) => {
                let (n, k) = (w.shape[1], w.shape[2]);
                let mut shape = x.shape.clone();
                shape[x.shape.len() - 1] = heads * n;
                let mut y = Vec::with_capacity(shape.iter().product());
                for row in x.rows() {
                    for output in 0..heads * n {
                        let (head, j) = (output / n, output % n);
                        let terms = (0..k).map(|i| w.at(&[head, j, i]) * row[head * k + i]);
                        y.push(bias.map_or(0.0, |bias| bias[output]) + terms.sum::<f64>());
                    }
                }
                Tensor::new(shape, y)
            }
        }
    }
}

/// Rows that one walk over a weight serves.
const ROWS: usize = 16;

/// `x·Wᵀ + b` along the last axis: `x` `[…, K]`, `w` `[N, K]`, result `[…, N]`.
pub(crate) fn product(x: &Tensor, w: &Tensor, bias: Option<&[f64]>) -> Tensor {
    let mut shape = x.shape.clone();
    let last = shape.len() - 1;
    shape[last] = w.shape[0];
    // A product over no inputs is its bias; there are no rows to walk then.
    let mut y = Tensor::from_fn(shape, |at| bias.map_or(0.0, |bias| bias[at[last]]));
    let (inputs, outputs) = (x.width().max(1), y.width().max(1));
    // A few rows at a time, so that a large weight is not read anew for each.
    let rows = x.data.chunks(ROWS * inputs).zip(y.data.chunks_mut(ROWS * outputs));
    for (x, y) in rows {
        for (n, weights) in w.rows().enumerate() {
            for (row, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                y[n] += dot(weights, row);
            }
        }
    }
    y
}
