//! `concat`, `slice`, `gather`, `transpose`, `expand`, `reshape`, `ramp`: data movement.
//!
//! No arithmetic. A backend may satisfy `reshape` and a leading `slice` without a copy.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// Parameters of `concat`: at least one value, joined along `axis`. Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// Parts; equal shapes but for `axis`.
    pub parts: Vec<ValueId>,
    /// Joined axis.
    pub axis: usize,
}

/// Where a slice starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// This many positions from the start.
    Start(usize),
    /// So that it ends at the end.
    End,
}

/// Parameters of `slice`: `length` positions of `axis`. Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Input.
    pub x: ValueId,
    /// Sliced axis.
    pub axis: usize,
    /// First position.
    pub from: From,
    /// Number of positions.
    pub length: Dim,
}

/// Parameters of `gather`: positions of `axis` by index, clamped to the axis. Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// Input.
    pub x: ValueId,
    /// Indexed axis.
    pub axis: usize,
    /// Indices `[M]`, `I32`.
    pub indices: ValueId,
}

/// Parameters of `transpose`: axis `i` of the result is axis `permutation[i]` of `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Transpose {
    /// Input.
    pub x: ValueId,
    /// A permutation of the axes.
    pub permutation: Vec<usize>,
}

/// Parameters of `expand`: inserts an axis of `count` before axis `axis` and repeats `x` along it.
#[derive(Clone, Debug, PartialEq)]
pub struct Expand {
    /// Input: a value, or a weight such as a learned token.
    pub x: super::Operand,
    /// Position of the new axis.
    pub axis: usize,
    /// Repetitions.
    pub count: Dim,
}

/// Parameters of `reshape`: the same elements in the same order.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// Input.
    pub x: ValueId,
    /// New shape.
    pub shape: Vec<Dim>,
}

/// Parameters of `ramp`: `y[i] = (start + i + length_factor · L) · factor`, `i` in `0..count`.
/// Positions and time encodings whose number depends on the context length. Writes `[count]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ramp {
    /// First index.
    pub start: f64,
    /// Times the context length of the bucket, added to each index; −1 makes the last context step
    /// index −1.
    pub length_factor: f64,
    /// Multiplies each index.
    pub factor: f64,
    /// Number of elements.
    pub count: Dim,
}

impl Concat {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let Some((&first, rest)) = self.parts.split_first() else {
            return Err(c.error("joins no parts"));
        };
        let mut out = c.shape(first).to_vec();
        c.axis(self.axis, &out)?;
        for &part in rest {
            let shape = c.shape(part);
            let same = shape.len() == out.len()
                && shape.iter().zip(&out).enumerate().all(|(i, (a, b))| i == self.axis || a == b);
            let joined = same.then(|| out[self.axis].sum(shape[self.axis])).flatten();
            out[self.axis] = joined.ok_or_else(|| {
                c.error(format!("cannot join {shape:?} to {out:?} along axis {}", self.axis))
            })?;
        }
        Ok(vec![(c.entry.value(first).dtype, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        self.parts.iter_mut().for_each(visit);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Slice {
    /// The last `length` positions.
    pub fn last(x: ValueId, axis: usize, length: impl Into<Dim>) -> Self {
        Slice { x, axis, from: From::End, length: length.into() }
    }

    /// `length` positions from `start` on.
    pub fn range(x: ValueId, axis: usize, start: usize, length: impl Into<Dim>) -> Self {
        Slice { x, axis, from: From::Start(start), length: length.into() }
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.shape(self.x);
        c.axis(self.axis, x)?;
        if let (Dim::Fixed(n), Dim::Fixed(m)) = (x[self.axis], self.length) {
            let start = match self.from {
                From::Start(start) => start,
                From::End => 0,
            };
            if start.saturating_add(m) > n {
                return Err(c.error(format!(
                    "takes {m} positions from {start} of axis {}, which has {n}",
                    self.axis
                )));
            }
        }
        let mut out = x.to_vec();
        out[self.axis] = self.length;
        Ok(vec![(c.entry.value(self.x).dtype, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Gather {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.shape(self.x);
        c.axis(self.axis, x)?;
        if c.entry.value(self.indices).dtype != DType::I32 {
            return Err(c.error("`indices` must be i32"));
        }
        let indices = c.expect_rank("indices", self.indices, 1, "[M]")?;
        let mut out = x.to_vec();
        out[self.axis] = indices[0];
        Ok(vec![(c.entry.value(self.x).dtype, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
        visit(&mut self.indices);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Transpose {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.shape(self.x);
        let mut sorted = self.permutation.clone();
        sorted.sort_unstable();
        if sorted != (0..x.len()).collect::<Vec<_>>() {
            return Err(c.error(format!("{:?} does not permute {x:?}", self.permutation)));
        }
        let out = self.permutation.iter().map(|&axis| x[axis]).collect();
        Ok(vec![(c.entry.value(self.x).dtype, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Expand {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let mut out: Vec<Dim> = match self.x {
            super::Operand::Value(x) => c.shape(x).to_vec(),
            super::Operand::Weight(w) => c.weight(w).iter().map(|&n| Dim::Fixed(n)).collect(),
        };
        if self.axis > out.len() {
            return Err(c.error(format!("cannot insert axis {} into {out:?}", self.axis)));
        }
        out.insert(self.axis, self.count);
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        if let super::Operand::Value(x) = &mut self.x {
            visit(x);
        }
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        if let super::Operand::Weight(w) = &mut self.x {
            visit(w);
        }
    }
}

impl Reshape {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        use crate::plan::{Bucket, elements};
        let x = c.shape(self.x);
        // Symbolic products are compared at three buckets, which no two different products of
        // dimensions of our form agree on for all of.
        let probes =
            [(1, 240), (7, 1680), (3, 3600)].map(|(batch, length)| Bucket { batch, length });
        if probes.iter().any(|&b| elements(x, b) != elements(&self.shape, b)) {
            return Err(c.error(format!("{x:?} has not the elements of {:?}", self.shape)));
        }
        Ok(vec![(c.entry.value(self.x).dtype, self.shape.clone())])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Ramp {
    pub(crate) fn shape(&self, _: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        Ok(vec![(DType::F32, vec![self.count])])
    }

    pub(crate) fn visit_values(&mut self, _: &mut dyn FnMut(&mut ValueId)) {}

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Concat {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let parts: Vec<&Tensor> = self.parts.iter().map(|&part| c.value(part)).collect();
        let mut shape = parts[0].shape.clone();
        shape[self.axis] = parts.iter().map(|part| part.shape[self.axis]).sum();
        let y = Tensor::from_fn(shape, |at| {
            let mut from = at.to_vec();
            let mut parts = parts.iter();
            loop {
                let part = parts.next().expect("an index of the joined axis is in some part");
                if from[self.axis] < part.shape[self.axis] {
                    return part.at(&from);
                }
                from[self.axis] -= part.shape[self.axis];
            }
        });
        vec![y]
    }
}

impl Slice {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let mut shape = x.shape.clone();
        shape[self.axis] = c.at(self.length);
        let start = match self.from {
            From::Start(start) => start,
            From::End => x.shape[self.axis] - shape[self.axis],
        };
        let y = Tensor::from_fn(shape, |at| {
            let mut from = at.to_vec();
            from[self.axis] += start;
            x.at(&from)
        });
        vec![y]
    }
}

impl Gather {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let (x, indices) = (c.value(self.x), c.value(self.indices));
        let mut shape = x.shape.clone();
        let last = x.shape[self.axis].saturating_sub(1) as f64;
        shape[self.axis] = indices.data.len();
        let y = Tensor::from_fn(shape, |at| {
            let mut from = at.to_vec();
            from[self.axis] = indices.data[at[self.axis]].clamp(0.0, last) as usize;
            x.at(&from)
        });
        vec![y]
    }
}

impl Transpose {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let shape: Vec<usize> = self.permutation.iter().map(|&axis| x.shape[axis]).collect();
        let y = Tensor::from_fn(shape, |at| {
            let mut from = vec![0; at.len()];
            for (&i, &axis) in at.iter().zip(&self.permutation) {
                from[axis] = i;
            }
            x.at(&from)
        });
        vec![y]
    }
}

impl Expand {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = match self.x {
            super::Operand::Value(x) => c.value(x),
            super::Operand::Weight(w) => c.weight(w),
        };
        let mut shape = x.shape.clone();
        shape.insert(self.axis, c.at(self.count));
        let y = Tensor::from_fn(shape, |at| {
            let mut from = at.to_vec();
            from.remove(self.axis);
            x.at(&from)
        });
        vec![y]
    }
}

impl Reshape {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let shape = crate::plan::sizes(&self.shape, c.bucket());
        vec![Tensor::new(shape, c.value(self.x).data.as_slice())]
    }
}

impl Ramp {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let length = c.bucket().length as f64;
        let y = Tensor::from_fn([c.at(self.count)], |at| {
            (self.start + at[0] as f64 + self.length_factor * length) * self.factor
        });
        vec![y]
    }
}
