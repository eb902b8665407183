//! `interpolate`: resampling the last axis to another length.
//!
//! Follows PyTorch's `interpolate` with `align_corners = false`.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};

/// Between which points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterpolateKind {
    /// The knot at `⌊i · n / m⌋`.
    Nearest,
    /// Linear between the two nearest knot centres, constant outside.
    Linear,
    /// Cubic convolution with `a = −0.75`, edge knots repeated.
    Cubic,
}

/// Parameters of `interpolate`: `[…, n] → […, size]`. Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Interpolate {
    /// Input.
    pub x: ValueId,
    /// New length `m`.
    pub size: usize,
    /// Method.
    pub kind: InterpolateKind,
}

impl Interpolate {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let mut out = c.shape(self.x).to_vec();
        let knots = c.fixed("the last axis of `x`", out.last())?;
        if knots == 0 || self.size == 0 {
            return Err(c.error(format!("cannot resample {knots} knots to {} points", self.size)));
        }
        if let Some(last) = out.last_mut() {
            *last = Dim::Fixed(self.size);
        }
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}
