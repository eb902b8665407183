//! Recurrences in a run: where their states come from and go to.

use super::{Context, Loaded, Room, shared};
use crate::gemm::Scratch;
use crate::rnn::{self, Rnn, StateRows};
use crate::team::Worker;
use neural_forecast_runtime::ops::{self, Initial};
use neural_forecast_runtime::plan::ValueId;

impl Loaded {
    pub(super) unsafe fn rnn(
        &self,
        op: &ops::RnnStack,
        rnn: &Rnn,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let Some(schedule) = &room.schedule else { return };
        let kinds = op.cell.states().len();
        let empty = StateRows::dense(std::ptr::null_mut(), 0);
        let (mut initial, mut finals) = ([empty; 4], [empty; 4]);
        let dense = |value: ValueId| {
            let shape = c.shape(value);
            StateRows::dense(c.at(value), shape[1] * shape[2])
        };
        let from = match (&op.initial, &op.states) {
            (Initial::Values(values), _) => {
                for (to, &value) in initial.iter_mut().zip(values) {
                    *to = dense(value);
                }
                true
            }
            (Initial::Slots, Some(states)) => {
                for (to, &slot) in initial.iter_mut().zip(&states.slots) {
                    *to = c.state_rows(slot);
                }
                true
            }
            _ => false,
        };
        let write = op.states.as_ref().is_some_and(|states| states.write);
        for (i, to) in finals.iter_mut().enumerate().take(kinds) {
            if op.finals {
                *to = dense(self.out(1 + i));
            } else if let (true, Some(pending)) = (write, room.pending.get(i)) {
                let stride = op.states.as_ref().map_or(0, |s| c.states[s.slots[i].index()].stride);
                *to = StateRows::dense(shared(pending), stride);
            }
        }
        let call = rnn::Call {
            x: c.at(op.x),
            batch: c.shape(op.x)[0],
            y: c.at(self.out(0)),
            initial: from.then_some(&initial[..kinds]),
            finals: (op.finals || write).then_some(&finals[..kinds]),
        };
        // SAFETY: values, states and room have the op's shapes.
        unsafe {
            rnn.run(&call, schedule, worker, scratch);
            if op.finals && write {
                worker.barrier();
                if worker.index() == 0 {
                    for (i, pending) in room.pending.iter().enumerate() {
                        let (from, n) = (c.at(self.out(1 + i)), c.elements(self.out(1 + i)));
                        std::ptr::copy_nonoverlapping(from, shared(pending), n);
                    }
                }
            }
        }
    }
}
