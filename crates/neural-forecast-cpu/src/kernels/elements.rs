//! Data movement and functions of elements, in a run.

use super::{Context, Loaded, Room, shared};
use crate::elementwise::{Combine, Function, Map, Pair, Softmax, WeightedSum};
use crate::layout::{self, AXES_MAX, Copy};
use crate::team::Worker;
use neural_forecast_runtime::ops::{self, BinaryKind, Operand, PatchPad, PoolKind, UnaryKind};

impl Loaded {
    pub(super) unsafe fn patch(&self, op: &ops::Patch, c: &Context<'_>, worker: Worker<'_>) {
        let time = c.shape(op.x).last().copied().unwrap_or(0);
        let out = c.shape(self.out(0));
        let (windows, p) = (out[out.len() - 2], out[out.len() - 1]);
        let outer: usize = out[..out.len() - 2].iter().product();
        // Position of window 0 relative to the first step; negative where zeros come first.
        let first = match op.pad {
            PatchPad::DropFirst => time as isize - (p + op.stride * (windows - 1)) as isize,
            PatchPad::RepeatLast(_) => 0,
            PatchPad::ZeroFirst => time as isize - time.next_multiple_of(op.stride) as isize,
        };
        for i in worker.share(outer * windows) {
            let (row, window) = (i / windows, i % windows);
            for j in 0..p {
                let at = first + (window * op.stride + j) as isize;
                // SAFETY: the position is clamped to the row.
                unsafe {
                    *c.at(self.out(0)).add(i * p + j) = match at {
                        ..0 => 0.0,
                        at => *c.at(op.x).add(row * time + (at as usize).min(time - 1)),
                    };
                }
            }
        }
    }

    pub(super) unsafe fn embedding(
        &self,
        op: &ops::Embedding,
        table: &[f32],
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let d = c.shape(self.out(0)).last().copied().unwrap_or(0);
        let rows = table.len().checked_div(d).unwrap_or(0);
        for i in worker.share(c.elements(op.indices)) {
            // SAFETY: the index is clamped to the table; the row is this worker's.
            unsafe {
                let index = *c.at(op.indices).cast::<i32>().add(i);
                let index = (index.max(0) as usize).min(rows.saturating_sub(1));
                let from = table[index * d..].as_ptr();
                std::ptr::copy_nonoverlapping(from, c.at(self.out(0)).add(i * d), d);
            }
        }
    }

    pub(super) unsafe fn concat(&self, op: &ops::Concat, c: &Context<'_>, worker: Worker<'_>) {
        let to_strides = layout::strides(c.shape(self.out(0)));
        let mut start = 0;
        for &part in &op.parts {
            let shape = c.shape(part);
            let copy = Copy { to_strides, ..Copy::dense(shape, layout::strides(shape)) };
            // SAFETY: parts lie side by side in the result.
            unsafe {
                let to = c.at(self.out(0)).add(start * to_strides[op.axis]);
                copy.run(c.at(part), to, worker);
            }
            start += shape[op.axis];
        }
    }

    pub(super) unsafe fn gather(&self, op: &ops::Gather, c: &Context<'_>, worker: Worker<'_>) {
        let (from, to) = (c.shape(op.x), c.shape(self.out(0)));
        let (n, m) = (from[op.axis], to[op.axis]);
        let inner: usize = from[op.axis + 1..].iter().product();
        let outer: usize = from[..op.axis].iter().product();
        if n == 0 {
            return;
        }
        for i in worker.share(outer * m) {
            // SAFETY: the index is clamped to the axis.
            unsafe {
                let index = *c.at(op.indices).cast::<i32>().add(i % m);
                let index = (index.max(0) as usize).min(n - 1);
                let from = c.at(op.x).add((i / m * n + index) * inner);
                std::ptr::copy_nonoverlapping(from, c.at(self.out(0)).add(i * inner), inner);
            }
        }
    }

    pub(super) unsafe fn expand(
        &self,
        op: &ops::Expand,
        weight: Option<&[f32]>,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let to = c.shape(self.out(0));
        let mut strides = [0; AXES_MAX];
        let mut step = 1;
        for (axis, &n) in to.iter().enumerate().rev() {
            if axis != op.axis {
                strides[axis] = step;
                step *= n;
            }
        }
        let from = match (op.x, weight) {
            (Operand::Value(x), _) => c.at(x).cast_const(),
            (Operand::Weight(_), Some(weight)) => weight.as_ptr(),
            (Operand::Weight(_), None) => return,
        };
        // SAFETY: the repeated axis has stride 0, the others those of the source.
        unsafe { Copy::dense(to, strides).run(from, c.at(self.out(0)), worker) }
    }

    pub(super) unsafe fn pool(&self, op: &ops::Pool, c: &Context<'_>, worker: Worker<'_>) {
        let (from, to) = (c.shape(op.x), c.shape(self.out(0)));
        let (n, m) = (from[op.axis], to[op.axis]);
        let inner: usize = from[op.axis + 1..].iter().product();
        let outer: usize = from[..op.axis].iter().product();
        let kernel = op.kernel.unwrap_or(n).max(1);
        for i in worker.share(outer * m) {
            let start = i % m * kernel;
            let window = start..(start + kernel).min(n);
            for d in 0..inner {
                // SAFETY: the window is inside the axis.
                unsafe {
                    let at = |t: usize| *c.at(op.x).add((i / m * n + t) * inner + d);
                    let elements = window.clone().map(at);
                    *c.at(self.out(0)).add(i * inner + d) = match op.kind {
                        PoolKind::Mean => {
                            let sum: f64 = elements.map(f64::from).sum();
                            (sum / window.len() as f64) as f32
                        }
                        PoolKind::Maximum => elements.fold(f32::NEG_INFINITY, |a, b| {
                            if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
                        }),
                    };
                }
            }
        }
    }

    pub(super) unsafe fn unary(&self, op: &ops::Unary, c: &Context<'_>, worker: Worker<'_>) {
        let (x, y, n) = (c.at(op.x), c.at(self.out(0)), c.elements(op.x));
        let f = match op.kind {
            UnaryKind::Activation(activation) => {
                Function::Activation(super::activation(activation))
            }
            UnaryKind::Asinh => Function::Asinh,
            UnaryKind::Sinh => Function::Sinh,
            UnaryKind::Exp => Function::Exp,
            UnaryKind::Sqrt => Function::Sqrt,
            UnaryKind::Affine { factor, offset } => Function::Affine(factor, offset),
            UnaryKind::Observed => Function::Observed,
            UnaryKind::NanToZero => Function::NanToZero,
            UnaryKind::Softmax => {
                let width = c.shape(op.x).last().copied().unwrap_or(0).max(1);
                let rows = worker.share(n / width);
                // SAFETY: the rows are this worker's.
                unsafe {
                    let (x, y) = (x.add(rows.start * width), y.add(rows.start * width));
                    c.isa.run(Softmax { x, y, rows: rows.len(), n: width });
                }
                return;
            }
        };
        let part = worker.share(n);
        // SAFETY: the part is this worker's.
        unsafe {
            c.isa.run(Map { x: x.add(part.start), y: y.add(part.start), n: part.len(), f });
        }
    }

    pub(super) unsafe fn binary(
        &self,
        op: &ops::Binary,
        weight: Option<&[f32]>,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let f = match op.kind {
            BinaryKind::Add => Pair::Add,
            BinaryKind::Subtract => Pair::Subtract,
            BinaryKind::Multiply => Pair::Multiply,
            BinaryKind::Divide => Pair::Divide,
            BinaryKind::Maximum => Pair::Maximum,
        };
        let shape = c.shape(op.a);
        let (b, b_shape) = match (op.b, weight) {
            (Operand::Value(b), _) => (c.at(b).cast_const(), c.shape(b)),
            (Operand::Weight(_), Some(weight)) => (weight.as_ptr(), self.weight_shape()),
            (Operand::Weight(_), None) => return,
        };
        // Trailing axes that agree form one run of elements; a trailing axis of one in `b` alone is
        // a run against one element.
        let missing = shape.len() - b_shape.len();
        let agree =
            b_shape.iter().rev().zip(shape.iter().rev()).take_while(|(b, a)| b == a).count();
        let one = agree == 0 && !b_shape.is_empty();
        let run_axes =
            if b_shape.is_empty() || one { usize::from(!shape.is_empty()) } else { agree };
        let one = one || b_shape.is_empty();
        let inner: usize = shape[shape.len() - run_axes..].iter().product();
        let outer_axes = shape.len() - run_axes;
        let outer: usize = shape[..outer_axes].iter().product();
        let strides = layout::strides(b_shape);
        let combine = |first: usize, n: usize, b: *const f32| {
            // SAFETY: the run is this worker's; `b` holds as many elements, or the one.
            unsafe {
                let (a, y) = (c.at(op.a).add(first).cast_const(), c.at(self.out(0)).add(first));
                c.isa.run(Combine { a, b, one, y, n, f });
            }
        };
        if outer == 1 {
            let part = worker.share(inner);
            // SAFETY: `b` has `inner` elements unless it is one.
            let b = if one { b } else { unsafe { b.add(part.start) } };
            return combine(part.start, part.len(), b);
        }
        for i in worker.share(outer) {
            let (mut rest, mut at) = (i, 0);
            for axis in (0..outer_axes).rev() {
                let index = rest % shape[axis];
                rest /= shape[axis];
                if axis >= missing && b_shape[axis - missing] != 1 {
                    at += index * strides[axis - missing];
                }
            }
            // SAFETY: the offset is inside `b`, by its own strides.
            combine(i * inner, inner, unsafe { b.add(at) });
        }
    }

    pub(super) unsafe fn weighted_sum(
        &self,
        op: &ops::WeightedSum,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let shape = c.shape(op.x);
        let (n, d) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let outer: usize = shape[..shape.len() - 2].iter().product();
        let rows = worker.share(outer);
        // SAFETY: the rows are this worker's, and so is its part of the room.
        unsafe {
            let own = shared(&room.floats).add(worker.index() * n.next_multiple_of(16));
            c.isa.run(WeightedSum {
                w: c.at(op.weights).add(rows.start * n),
                weights: op.softmax.then_some(own),
                x: c.at(op.x).add(rows.start * n * d),
                y: c.at(self.out(0)).add(rows.start * d),
                rows: rows.len(),
                n,
                d,
            });
        }
    }
}
