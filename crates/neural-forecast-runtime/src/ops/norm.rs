//! `norm`: layer, RMS, batch (eval) and group normalisation over the last axis.
//!
//! Not the scaling of series (`normalize`), which computes statistics over time and keeps them.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};

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
