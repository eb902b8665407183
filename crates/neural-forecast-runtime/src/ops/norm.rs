//! `norm`: layer, RMS, batch (eval) and group normalisation over the last axis.
//!
//! Not the scaling of series (`normalize`), which computes statistics over time and keeps them.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// Which statistics a row is normalised by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// `(x − mean) / √(var + eps)` of the row, population variance.
    Layer,
    /// `x / √(mean(x²) + eps)` of the row.
    Rms,
    /// Trained statistics, one pair per feature: `(x − mean) / √(var + eps)`.
    Batch {
        /// Running mean, `[D]`.
        mean: WeightId,
        /// Running variance, `[D]`.
        variance: WeightId,
    },
    /// As `Layer`, separately for each of this many equal groups of the row.
    Group(usize),
}

/// Parameters of `norm`: `y = normalised · (weight + weight_offset) + bias`. Writes one value of
/// the shape of `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Input `[…, D]`.
    pub x: ValueId,
    /// Statistics.
    pub kind: NormKind,
    /// Scale `[D]`; absent means 1.
    pub weight: Option<WeightId>,
    /// Added to the scale: 1 where a framework stores `scale − 1`.
    pub weight_offset: f32,
    /// Shift `[D]`; absent means 0.
    pub bias: Option<WeightId>,
    /// Inside the square root.
    pub eps: f32,
}

impl Norm {
    /// Layer normalisation with scale and shift.
    pub fn layer(x: ValueId, weight: WeightId, bias: WeightId, eps: f32) -> Self {
        let (weight, bias) = (Some(weight), Some(bias));
        Norm { x, kind: NormKind::Layer, weight, weight_offset: 0.0, bias, eps }
    }

    /// RMS normalisation with a scale.
    pub fn rms(x: ValueId, weight: WeightId, eps: f32) -> Self {
        let weight = Some(weight);
        Norm { x, kind: NormKind::Rms, weight, weight_offset: 0.0, bias: None, eps }
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.shape(self.x);
        self.check(c, x)?;
        Ok(vec![(DType::F32, x.to_vec())])
    }

    pub(crate) fn check(&self, c: &ShapeContext<'_>, x: &[Dim]) -> Result<(), PlanError> {
        let d = c.fixed("the last axis of `x`", x.last())?;
        for (what, weight) in [("weight", self.weight), ("bias", self.bias)] {
            if let Some(weight) = weight {
                c.expect_weight(what, weight, &[d], "[features]")?;
            }
        }
        match self.kind {
            NormKind::Batch { mean, variance } => {
                c.expect_weight("mean", mean, &[d], "[features]")?;
                c.expect_weight("variance", variance, &[d], "[features]")
            }
            NormKind::Group(groups) if groups == 0 || d % groups != 0 => {
                Err(c.error(format!("{d} features do not divide into {groups} groups")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        if let NormKind::Batch { mean, variance } = &mut self.kind {
            visit(mean);
            visit(variance);
        }
        self.weight.iter_mut().for_each(&mut *visit);
        self.bias.iter_mut().for_each(visit);
    }
}

impl Norm {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        vec![self.apply(c, c.value(self.x))]
    }

    /// The norm of the rows of any value.
    pub(crate) fn apply(&self, c: &ReferenceContext<'_>, x: &Tensor) -> Tensor {
        let eps = f64::from(self.eps);
        let (weight, bias) = (c.optional(self.weight), c.optional(self.bias));
        let mut y = x.clone();
        let width = x.width().max(1);
        for row in y.data.chunks_exact_mut(width) {
            match self.kind {
                NormKind::Layer => layer(row, eps),
                NormKind::Group(groups) => {
                    row.chunks_exact_mut(width / groups).for_each(|group| layer(group, eps));
                }
                NormKind::Rms => {
                    let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
                    row.iter_mut().for_each(|x| *x /= (square + eps).sqrt());
                }
                NormKind::Batch { mean, variance } => {
                    let (mean, variance) = (&c.weight(mean).data, &c.weight(variance).data);
                    for (d, x) in row.iter_mut().enumerate() {
                        *x = (*x - mean[d]) / (variance[d] + eps).sqrt();
                    }
                }
            }
            for (d, x) in row.iter_mut().enumerate() {
                *x *= weight.map_or(1.0, |w| w[d] + f64::from(self.weight_offset));
                *x += bias.map_or(0.0, |b| b[d]);
            }
        }
        y
    }
}

/// `(x − mean) / √(var + eps)` in place.
fn layer(row: &mut [f64], eps: f64) {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    row.iter_mut().for_each(|x| *x = (*x - mean) / (variance + eps).sqrt());
}
