//! `pool`: maximum or mean over windows of one axis.
//!
//! Not a softmax-weighted mean (`weighted_sum`), and not resampling (`interpolate`).

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// What a window becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Its maximum; NaN if any element is.
    Maximum,
    /// Its mean over the elements that exist.
    Mean,
}

/// Parameters of `pool`. Windows start every `kernel` positions; the last one may be shorter. The
/// axis shrinks to `⌈n / kernel⌉`, or to 1 with `kernel: None`. Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Input.
    pub x: ValueId,
    /// Pooled axis.
    pub axis: usize,
    /// Window and stride; `None` is the whole axis.
    pub kernel: Option<usize>,
    /// What a window becomes.
    pub kind: PoolKind,
}

impl Pool {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let mut out = c.shape(self.x).to_vec();
        c.axis(self.axis, &out)?;
        out[self.axis] = match self.kernel {
            None => Dim::Fixed(1),
            Some(kernel) => isize::try_from(kernel)
                .ok()
                .and_then(|signed| out[self.axis].windows(signed - 1, kernel, 0))
                .ok_or_else(|| c.error(format!("cannot pool {:?} by {kernel}", out[self.axis])))?,
        };
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Pool {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let n = x.shape[self.axis];
        let kernel = self.kernel.unwrap_or(n).max(1);
        let mut shape = x.shape.clone();
        shape[self.axis] = if self.kernel.is_none() { 1 } else { n.div_ceil(kernel) };
        let y = Tensor::from_fn(shape, |at| {
            let start = at[self.axis] * kernel;
            let window = start..(start + kernel).min(n);
            let count = window.len() as f64;
            let elements = window.map(|i| {
                let mut from = at.to_vec();
                from[self.axis] = i;
                x.at(&from)
            });
            match self.kind {
                PoolKind::Mean => elements.sum::<f64>() / count,
                PoolKind::Maximum => elements.fold(f64::NEG_INFINITY, |a, b| {
                    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
                }),
            }
        });
        vec![y]
    }
}
