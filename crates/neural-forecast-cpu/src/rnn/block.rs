//! Some rows of a batch on their way through all layers.

use super::meetings::Meetings;
use super::pass::Pass;
use super::schedule::Mode;
use super::{Call, Direction, Rnn, Schedule};
use crate::gemm::Scratch;
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
    pub(super) unsafe fn run(&self, meetings: &Meetings<'_>, scratch: &mut Scratch) {
        let (rnn, s, worker) = (self.rnn, self.schedule, meetings.worker());
        if s.mode == Mode::Layers {
            // SAFETY: the caller's.
            return unsafe { self.wavefront(meetings, scratch) };
        }
        let directions = rnn.directions();
        for (l, layer) in rnn.layers.iter().enumerate() {
            let last = l + 1 == rnn.layers.len();
            let whole = self.call.finals.is_some() || !last;
            // Backward steps that nobody reads are not run.
            let backward_steps = if whole { s.steps } else { s.keep };
            let pass = |d: usize, team| {
                let steps = if d == 1 { backward_steps } else { s.steps };
                // SAFETY: offsets stay inside the block's memory and the call's arrays.
                unsafe { self.pass(l, d, &layer[d], steps, team) }
            };
            let one_each = directions == 2 && worker.workers() == 2 && backward_steps == s.steps;
            // SAFETY: each pass writes its own direction's memory and columns; a split pass is
            // entered by the whole team.
            unsafe {
                match s.mode {
                    Mode::Units if one_each => pass(worker.index(), None).run(scratch),
                    Mode::Units => {
                        for d in 0..directions {
                            pass(d, Some(meetings)).run(scratch);
                        }
                    }
                    _ => {
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

    /// A direction of a layer with its memory and its neighbours'.
    pub(super) unsafe fn pass<'p>(
        &'p self,
        l: usize,
        d: usize,
        weights: &'p Direction,
        steps: usize,
        team: Option<&'p Meetings<'p>>,
    ) -> Pass<'p> {
        let (rnn, s) = (self.rnn, self.schedule);
        let directions = rnn.directions();
        let out = directions * rnn.width;
        let layout = s.layout;
        let last = l + 1 == rnn.layers.len();
        // SAFETY: sequence buffers alternate, or each layer has its own; the caller grants input
        // and output.
        unsafe {
            let sequence = |l: usize| self.memory.add(l % layout.sequences * layout.sequence);
            let (x, x_width) = match l {
                0 => (self.call.x.add(self.rows.start * s.steps * rnn.inputs), rnn.inputs),
                _ => (sequence(l - 1).cast_const(), out),
            };
            let (y, y_sequence, y_first) = match last {
                true => (self.call.y.add(self.rows.start * s.keep * out), s.keep, s.steps - s.keep),
                false => (sequence(l), s.steps, 0),
            };
            let place = if s.mode == Mode::Layers { l } else { d };
            let directions_at = self.memory.add(layout.sequences * layout.sequence);
            let memory = directions_at.add(place * layout.direction);
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
