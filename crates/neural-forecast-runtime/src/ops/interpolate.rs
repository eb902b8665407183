//! `interpolate`: resampling the last axis to another length.
//!
//! Follows PyTorch's `interpolate` with `align_corners = false`.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

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

impl Interpolate {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let y = x.rows().flat_map(|row| (0..self.size).map(|i| self.point(row, i)));
        let y: Vec<f64> = y.collect();
        let mut shape = x.shape.clone();
        let last = shape.len() - 1;
        shape[last] = self.size;
        vec![Tensor::new(shape, y)]
    }

    /// Point `i` of `size` over these knots.
    fn point(&self, knots: &[f64], i: usize) -> f64 {
        let n = knots.len();
        // Where the centre of point `i` lies, in knots.
        let center = (i as f64 + 0.5) * n as f64 / self.size as f64 - 0.5;
        match self.kind {
            InterpolateKind::Nearest => knots[i * n / self.size],
            InterpolateKind::Linear => {
                let center = center.max(0.0);
                let left = (center.floor() as usize).min(n - 1);
                let right = (left + 1).min(n - 1);
                let t = center - left as f64;
                knots[left] * (1.0 - t) + knots[right] * t
            }
            InterpolateKind::Cubic => {
                let left = center.floor();
                let t = center - left;
                let knot = |offset: f64| knots[(left + offset).clamp(0.0, n as f64 - 1.0) as usize];
                let near = |d: f64| (1.25 * d - 2.25) * d * d + 1.0;
                let far = |d: f64| ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0;
                knot(-1.0) * far(t + 1.0)
                    + knot(0.0) * near(t)
                    + knot(1.0) * near(1.0 - t)
                    + knot(2.0) * far(2.0 - t)
            }
        }
    }
}
