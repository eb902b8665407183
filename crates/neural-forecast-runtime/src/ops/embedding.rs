//! `embedding`: rows of a table chosen by index.
//!
//! Not learned positions: those are a `binary` with a weight.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// Parameters of `embedding`. Writes `[…, D]`. An index outside the table is clamped to it: devices
/// cannot fail in the middle of a run, and the forecaster checks indices before.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Indices `[…]`, `I32`.
    pub indices: ValueId,
    /// Table `[rows, D]`.
    pub table: WeightId,
}

impl Embedding {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        if c.entry.value(self.indices).dtype != DType::I32 {
            return Err(c.error("`indices` must be i32"));
        }
        let &[rows, d] = c.weight(self.table) else {
            let shape = c.weight(self.table);
            return Err(c.error(format!("`table` has shape {shape:?}, expected [rows, D]")));
        };
        if rows == 0 {
            return Err(c.error("`table` has no rows"));
        }
        let mut out = c.shape(self.indices).to_vec();
        out.push(Dim::Fixed(d));
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.indices);
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        visit(&mut self.table);
    }
}

impl Embedding {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let (indices, table) = (c.value(self.indices), c.weight(self.table));
        let last = (table.shape[0] - 1) as f64;
        let mut shape = indices.shape.clone();
        shape.push(table.width());
        let y = Tensor::from_fn(shape, |at| {
            let (&d, index) = at.split_last().expect("the result has the features as an axis");
            table.at(&[indices.at(index).clamp(0.0, last) as usize, d])
        });
        vec![y]
    }
}
