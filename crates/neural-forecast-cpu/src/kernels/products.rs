//! Products in a run: over features, by heads, over time, with their norm before and their residual
//! after.

use super::{Context, Loaded, Room, shared};
use crate::gemm::{self, Gemm, Packed, Scratch};
use crate::layout::{AXES_MAX, Copy};
use crate::memory::{Numbers, RowMap};
use crate::norm::Norm;
use crate::team::Worker;
use neural_forecast_runtime::ops::{self, LinearAxis};
use std::sync::Arc;

impl Loaded {
    pub(super) unsafe fn linear(
        &self,
        op: &ops::Linear,
        (packed, norm, activation): (&[Arc<Packed>], Option<&Norm>, gemm::Activation),
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let shape = c.shape(op.x);
        let width = shape.last().copied().unwrap_or(0);
        let out_width = c.shape(self.out(0)).last().copied().unwrap_or(0);
        let rows: usize = shape[..shape.len() - 1].iter().product();
        let gate = op.gate.as_ref().map(|gate| super::activation(gate.activation));
        let (mut x, y) = (c.at(op.x).cast_const(), c.at(self.out(0)));
        // SAFETY: values and room have the op's shapes; barriers order what workers exchange.
        unsafe {
            if op.axis == LinearAxis::Time {
                return self.over_time(op, &packed[0], activation, room, c, worker, scratch);
            }
            let mut x_numbers = self.numbers(op.x);
            if let Some(norm) = norm {
                // What is normalised for products alone is kept as they round it.
                if packed.iter().all(|packed| packed.takes_halves()) {
                    x_numbers = Numbers::Halves;
                }
                // Few rows, which are split by columns: every worker normalises all for itself.
                let (to, own) = match room.by_rows {
                    true => (shared(&room.floats), worker.share(rows)),
                    false => (shared(&room.floats).add(worker.index() * rows * width), 0..rows),
                };
                norm.run(c.isa, (x, to, x_numbers), width, own, worker);
                x = to;
            }
            let heads = packed.len();
            let n = out_width / heads.max(1);
            for (h, weights) in packed.iter().enumerate() {
                let residual = op
                    .residual
                    .map(|r| (c.at(r).add(h * n).cast_const(), RowMap::dense(out_width)));
                let product = Gemm {
                    x_map: RowMap::dense(width),
                    x_numbers,
                    y_map: RowMap::dense(out_width),
                    y_numbers: self.numbers(self.out(0)),
                    activation,
                    gate,
                    residual,
                    ..Gemm::new(x_numbers.at(x, h * weights.terms()), rows, weights, y.add(h * n))
                };
                if room.by_rows {
                    product.run_rows(c.isa, worker, scratch);
                } else {
                    product.run(c.isa, worker, scratch);
                }
            }
        }
    }

    /// A product over time: channels become rows, and their results columns again.
    #[allow(clippy::too_many_arguments)] // the arguments of `linear`
    unsafe fn over_time(
        &self,
        op: &ops::Linear,
        weights: &Packed,
        activation: gemm::Activation,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let shape = c.shape(op.x);
        let (time, channels) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let outer: usize = shape[..shape.len() - 2].iter().product();
        let out = c.shape(self.out(0));
        let horizon = out[out.len() - 2];
        let rows = outer * channels;
        let gate = op.gate.as_ref().map(|gate| super::activation(gate.activation));
        // SAFETY: the room holds both transposed values; barriers order what workers exchange.
        unsafe {
            let turned = shared(&room.floats);
            let result = turned.add(rows * time);
            let mut strides = [0; AXES_MAX];
            strides[..3].copy_from_slice(&[time * channels, 1, channels]);
            let copy = Copy::dense(&[outer, channels, time], strides);
            copy.run(c.at(op.x), turned, worker);
            worker.barrier();
            let product = Gemm {
                y_map: RowMap::dense(horizon),
                activation,
                gate,
                ..Gemm::new(turned, rows, weights, result)
            };
            product.run(c.isa, worker, scratch);
            worker.barrier();
            let y = c.at(self.out(0));
            for i in worker.share(outer * horizon) {
                let (o, h) = (i / horizon, i % horizon);
                for k in 0..channels {
                    let at = i * channels + k;
                    let value = *result.add((o * channels + k) * horizon + h);
                    *y.add(at) = value + op.residual.map_or(0.0, |r| *c.at(r).add(at));
                }
            }
        }
    }
}
