//! Attention in a run: columns of values, and the ring of earlier keys.

use super::{Context, DEPTH_MAX, Loaded, Room, shared};
use crate::attention;
use crate::team::Worker;
use neural_forecast_runtime::ops;

impl Loaded {
    pub(super) unsafe fn attention(
        &self,
        op: &ops::Attention,
        kernel: &attention::Attention,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        // SAFETY: columns are inside their values; the room was made for this op.
        unsafe {
            let view = |columns: &ops::Columns| {
                let numbers = self.numbers(columns.value);
                let at = numbers.at(c.at(columns.value), columns.start);
                attention::View { at, stride: c.shape(columns.value)[2], numbers }
            };
            let mut queries = [attention::View::floats(std::ptr::null(), 0); DEPTH_MAX];
            let mut keys = queries;
            for (i, (q, k)) in op.queries.iter().zip(&op.keys).enumerate() {
                (queries[i], keys[i]) = (view(q), view(k));
            }
            let depth = op.queries.len();
            let keys_each = c.shape(op.keys[0].value)[1];
            let ring = op.ring.map(|ring| attention::Ring {
                keys: c.state_rows(ring.keys),
                values: c.state_rows(ring.values),
                position: c.state_rows(ring.position),
                capacity: c.states[ring.keys.index()].stride / op.keys[0].width,
                new_keys: shared(&room.pending[0]),
            });
            let call = attention::Call {
                queries: &queries[..depth],
                keys: &keys[..depth],
                values: view(&op.values),
                batch: c.shape(op.queries[0].value)[0],
                queries_each: c.shape(op.queries[0].value)[1],
                keys_each,
                key_mask: op.key_mask.map(|mask| c.at(mask).cast_const()),
                groups: op.groups.map(|groups| c.at(groups).cast_const().cast()),
                ring,
                y: c.at(self.out(0)),
                y_numbers: self.numbers(self.out(0)),
            };
            if let Some(all) = &room.attention {
                kernel.run(&call, worker, all.get(worker.index()));
            }
            if ring.is_some() && worker.index() == 0 {
                // Values and visibility of the new rows: the arena may reuse theirs before the
                // commit.
                for row in 0..call.batch * keys_each {
                    let from = call.values.at.add(row * call.values.stride);
                    let to = shared(&room.pending[1]).add(row * op.values.width);
                    std::ptr::copy_nonoverlapping(from, to, op.values.width);
                    *shared(&room.pending[2]).add(row) =
                        call.key_mask.map_or(1.0, |mask| *mask.add(row));
                }
            }
        }
    }
}
