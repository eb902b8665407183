//! Some rows of a batch on their way through all layers.

use super::pass::Pass;
use super::schedule::Mode;
use super::{Call, Direction, Rnn, Schedule};
use crate::gemm::Scratch;
use crate::team::Worker;
use std::ops::Range;

/// Some rows of a batch on their way through all layers.
pub(super) struct Block<'a> {
    pub(super) rnn: &'a Rnn,
    pub(super) call: &'a Call<'a>,
    pub(super) schedule: &'a Schedule,
    pub(super) rows: Range<usize>,
    pub(super) memory: *mut f32,
}

impl Block<'_> {
    pub(super) unsafe fn run(&self, worker: Worker<'_>, scratch: &mut Scratch) {
        let (rnn, s) = (self.rnn, self.schedule);
        let directions = rnn.directions();
        for (l, layer) in rnn.layers.iter().enumerate() {
            let last = l + 1 == rnn.layers.len();
            let whole = self.call.finals.is_some() || !last;
            // Backward steps that nobody reads are not run.
            let backward_steps = if whole { s.steps } else { s.keep };
            let pass = |d: usize, team| {
                let steps = if d == 1 { backward_steps } else { s.steps };
                // SAFETY: offsets stay inside the block's memory and the call's arrays.
                unsafe { self.pass(l, d, &layer[d], steps, last, team) }
            };
            let one_each = directions == 2 && worker.workers() == 2 && backward_steps == s.steps;
            // SAFETY: each pass writes its own direction's memory and columns; a split pass is
            // entered by the whole team.
            unsafe {
                match s.mode {
                    Mode::Units if one_each => pass(worker.index(), None).run(scratch),
                    Mode::Units => {
                        for d in 0..directions {
                            pass(d, Some(worker)).run(scratch);
                        }
                    }
                    Mode::Rows => {
                        for d in 0..directions {
                            pass(d, None).run(scratch);
                        }
                    }
                }
            }
            if s.mode == Mode::Units {
                // The next layer reads the sequence that all workers wrote.
                worker.barrier();
            }
        }
    }

    unsafe fn pass<'p>(
        &'p self,
        l: usize,
        d: usize,
        weights: &'p Direction,
        steps: usize,
        last: bool,
        team: Option<Worker<'p>>,
    ) -> Pass<'p> {
        let (rnn, s) = (self.rnn, self.schedule);
        let directions = rnn.directions();
        let out = directions * rnn.width;
        let layout = s.layout;
        // SAFETY: sequence buffers alternate; the caller grants input and output.
        unsafe {
            let sequence = |l: usize| self.memory.add(l % 2 * layout.sequence);
            let buffers = match rnn.layers.len() {
                0 | 1 => 0,
                2 => 1,
                _ => 2,
            };
            let (x, x_width) = match l {
                0 => (self.call.x.add(self.rows.start * s.steps * rnn.inputs), rnn.inputs),
                _ => (sequence(l - 1).cast_const(), out),
            };
            let (y, y_sequence, y_first) = match last {
                true => (self.call.y.add(self.rows.start * s.keep * out), s.keep, s.steps - s.keep),
                false => (sequence(l), s.steps, 0),
            };
            let memory = self.memory.add(buffers * layout.sequence + d * layout.direction);
            Pass {
                block: self,
                weights,
                row: l * directions + d,
                backward: d == 1,
                steps,
                x,
                x_width,
                y: y.add(d * rnn.width),
                y_stride: out,
                y_sequence: y_sequence * out,
                y_first,
                memory,
                team,
            }
        }
    }
}
