//! `patch`: cutting the last axis into windows of equal length.
//!
//! Does not project them; a `linear` does.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// What to do where the length is not what the windows need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchPad {
    /// Drop steps at the start until the windows fit.
    DropFirst,
    /// Repeat the last step this many times at the end, then drop what does not fit at the end.
    RepeatLast(usize),
    /// Prepend zeros until the length is a multiple of the stride (which is the patch length).
    ZeroFirst,
}

/// Parameters of `patch`: `[…, T] → […, N, P]`. Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// Input, time last.
    pub x: ValueId,
    /// Patch length `P` in steps.
    pub length: usize,
    /// Steps between the starts of neighbours.
    pub stride: usize,
    /// Padding.
    pub pad: PatchPad,
}

impl Patch {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.shape(self.x);
        let Some(&time) = x.last() else { return Err(c.error("`x` is a scalar")) };
        let (p, s) = (self.length, self.stride);
        if p == 0 || s == 0 {
            return Err(c.error(format!("patch length {p} and stride {s} must be positive")));
        }
        // Lengths that are no signed number are longer than any axis.
        let signed = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
        let windows = match self.pad {
            PatchPad::DropFirst => time.windows(-signed(p), s, 1),
            PatchPad::RepeatLast(n) => time.windows(signed(n) - signed(p), s, 1),
            PatchPad::ZeroFirst if p == s => time.windows(signed(s) - 1, s, 0),
            PatchPad::ZeroFirst => {
                return Err(c.error(format!("padding in front needs stride {s} = length {p}")));
            }
        };
        let windows = windows.filter(|n| n.fixed() != Some(0)).ok_or_else(|| {
            c.error(format!("no patch of {p} steps at stride {s} fits into {time:?} steps"))
        })?;
        let mut out = x[..x.len() - 1].to_vec();
        out.extend([windows, p.into()]);
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Patch {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let (p, s) = (self.length, self.stride);
        let outer = &x.shape[..x.shape.len() - 1];
        let padded: Vec<Vec<f64>> = x.rows().map(|row| self.padded(row)).collect();
        let time = padded.first().map_or(p, Vec::len);
        let windows = (time - p) / s + 1;
        let mut y = Vec::new();
        for row in &padded {
            for n in 0..windows {
                y.extend_from_slice(&row[n * s..n * s + p]);
            }
        }
        vec![Tensor::new([outer, &[windows, p]].concat(), y)]
    }

    /// A row with its padding, without what is dropped at the start.
    fn padded(&self, row: &[f64]) -> Vec<f64> {
        match self.pad {
            PatchPad::DropFirst => {
                let used = self.length + self.stride * ((row.len() - self.length) / self.stride);
                row[row.len() - used..].to_vec()
            }
            PatchPad::RepeatLast(n) => {
                let last = row.last().copied().into_iter();
                row.iter().copied().chain(last.cycle().take(n)).collect()
            }
            PatchPad::ZeroFirst => {
                let missing = row.len().next_multiple_of(self.stride) - row.len();
                std::iter::repeat_n(0.0, missing).chain(row.iter().copied()).collect()
            }
        }
    }
}
