//! One direction of one layer: the input products of a chunk of steps, then its steps.

use super::Direction;
use super::block::Block;
use super::meetings::Meetings;
use super::update::{Keep, Update};
use crate::gemm::{Arrival, Gemm, Product, Scratch};
use crate::memory::{RowMap, prefetch};
use std::ops::Range;

/// One direction of one layer for those rows.
pub(super) struct Pass<'a> {
    pub(super) block: &'a Block<'a>,
    pub(super) weights: &'a Direction,
    /// `layer · directions + direction`
    pub(super) row: usize,
    pub(super) backward: bool,
    pub(super) steps: usize,
    /// Input row of the first step of the first batch row, and its geometry.
    pub(super) x: *const f32,
    pub(super) x_width: usize,
    /// Output of step 0 of the first batch row, with the steps that are written.
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    pub(super) y_sequence: usize,
    pub(super) y_first: usize,
    pub(super) memory: *mut f32,
    /// The meetings of the team that splits the units; `None` for a pass of one worker.
    pub(super) team: Option<&'a Meetings<'a>>,
}

impl Pass<'_> {
    /// Of the input products.
    fn sums(&self) -> *mut f32 {
        self.memory
    }

    /// `h` of even and odd steps, and the unprojected `h`.
    unsafe fn hidden(&self, i: usize) -> *mut f32 {
        let layout = self.block.schedule.layout;
        // SAFETY: the direction's memory holds three of them after the gates.
        unsafe { self.memory.add(layout.gates + i * layout.hidden) }
    }

    /// `c`, `n`, `m`.
    unsafe fn state(&self, i: usize) -> *mut f32 {
        let layout = self.block.schedule.layout;
        // SAFETY: the direction's memory holds three of them at its end.
        unsafe { self.memory.add(layout.gates + 3 * layout.hidden + i * layout.state) }
    }

    fn rows(&self) -> usize {
        self.block.rows.len()
    }

    fn leads(&self) -> bool {
        self.team.is_none_or(|team| team.worker().index() == 0)
    }

    /// What this worker wrote in this step may be read.
    fn publish(&self) {
        if let Some(team) = self.team {
            team.publish();
        }
    }

    /// What the others wrote before their latest publication is here.
    fn wait(&self) {
        if let Some(team) = self.team {
            team.wait();
        }
    }

    fn share(&self, n: usize) -> Range<usize> {
        self.team.map_or(0..n, |team| team.worker().share(n))
    }

    /// This worker's panels of the heads, which are numbered through.
    fn panels(&self, head: usize, per_head: usize) -> Range<usize> {
        let heads = self.weights.heads.len();
        let all = self.share(heads * per_head);
        let clip = |p: usize| p.clamp(head * per_head, (head + 1) * per_head) - head * per_head;
        clip(all.start)..clip(all.end)
    }

    pub(super) unsafe fn run(&self, scratch: &mut Scratch) {
        let s = self.block.schedule;
        // SAFETY: as `Rnn::run`; meetings order what one worker writes and another reads.
        unsafe {
            if self.leads() {
                self.enter();
            }
            if let Some(team) = self.team {
                team.worker().barrier();
            }
            let mut done = 0;
            while done < self.steps {
                let n = s.chunk.min(self.steps - done);
                self.chunk(done, n, scratch);
                done += n;
            }
            if self.leads() {
                self.wait();
                self.leave();
            }
        }
    }

    /// The `n` steps after the first `done`.
    pub(super) unsafe fn chunk(&self, done: usize, n: usize, scratch: &mut Scratch) {
        let steps = self.block.schedule.steps;
        let first = if self.backward { steps - done - n } else { done };
        // SAFETY: as `run`.
        unsafe {
            self.inputs(first, n, scratch);
            for i in 0..n {
                let t = if self.backward { first + n - 1 - i } else { first + i };
                self.step(t, t - first, done + i, scratch);
            }
        }
    }

    /// Fetches the input of those steps, which another worker has written.
    pub(super) fn fetch(&self, done: usize, n: usize) {
        let sequence = self.block.schedule.steps * self.x_width;
        for r in 0..self.rows() {
            prefetch(self.x.wrapping_add(r * sequence + done * self.x_width), n * self.x_width);
        }
    }

    /// Rows of a whole chunk of input sums. Panels lie that far apart in shorter chunks too, so
    /// that a worker which is a step ahead never writes where another still reads the chunk before.
    fn room(&self) -> usize {
        self.rows() * self.block.schedule.chunk
    }

    /// Initial states into place.
    pub(super) unsafe fn enter(&self) {
        let rnn = self.block.rnn;
        for i in 0..rnn.cell.states() {
            let width = if i == 0 { rnn.width } else { rnn.hidden };
            // SAFETY: the states' memory holds `rows` of `width`; initial rows are the caller's.
            unsafe {
                let to = if i == 0 { self.hidden(0) } else { self.state(i - 1) };
                for (r, b) in self.block.rows.clone().enumerate() {
                    let to = to.add(r * width);
                    match self.block.call.initial {
                        Some(states) => {
                            let from = states[i].row(b).add(self.row * width);
                            std::ptr::copy_nonoverlapping(from, to, width);
                        }
                        None => std::ptr::write_bytes(to, 0, width),
                    }
                }
            }
        }
    }

    /// Final states out; when all workers have published the last step.
    pub(super) unsafe fn leave(&self) {
        let rnn = self.block.rnn;
        let Some(finals) = self.block.call.finals else { return };
        for (i, state) in finals.iter().enumerate() {
            let width = if i == 0 { rnn.width } else { rnn.hidden };
            // SAFETY: as `enter`.
            unsafe {
                let from = if i == 0 { self.hidden(self.steps % 2) } else { self.state(i - 1) };
                for (r, b) in self.block.rows.clone().enumerate() {
                    let to = state.row(b).add(self.row * width);
                    std::ptr::copy_nonoverlapping(from.add(r * width), to, width);
                }
            }
        }
    }

    /// The input products of steps `first .. first + n`, without their bias, into `sums`: head by
    /// head, panel by panel, step by step, row by row. A worker computes the gates of its own
    /// units, so nobody waits for them.
    unsafe fn inputs(&self, first: usize, n: usize, scratch: &mut Scratch) {
        let (rnn, s) = (self.block.rnn, self.block.schedule);
        let rows = self.rows() * n;
        let mut at = self.sums();
        for (h, head) in self.weights.heads.iter().enumerate() {
            let w = &head.w_ih;
            // SAFETY: steps and columns exist; the sums hold a chunk of steps.
            unsafe {
                let x = self.x.add(first * self.x_width);
                let product = Product {
                    x: if rnn.cell.heads() > 1 { x.add(h * w.terms()) } else { x },
                    // Rows of one step, then those of the next.
                    x_map: RowMap::sequences(self.rows(), s.steps * self.x_width, self.x_width),
                    weights: w,
                    rows: 0..rows,
                    panels: self.panels(h, w.panels()),
                    backwards: false,
                    arrival: None,
                    finish: Keep { at, rows: self.room(), width: w.width() },
                };
                at = at.add(self.room() * w.padded_outputs());
                if !product.panels.is_empty() && rows > 0 {
                    product.run(rnn.isa, scratch);
                }
            }
        }
    }

    /// Terms of `h` that this worker wrote itself and sums first: those of the first worker, whose
    /// first panels then cover the time until the others' arrive.
    fn early_terms(&self) -> Option<usize> {
        let team = self.team.filter(|team| team.worker().index() == 0)?;
        let [head] = &self.weights.heads[..] else { return None };
        if team.worker().workers() < 2 || self.weights.projection.is_some() {
            return None;
        }
        let units = head.w_hh.width() / self.block.rnn.cell.gates();
        let terms = self.share(head.w_hh.panels()).end * units;
        (0 < terms && terms < head.w_hh.terms()).then_some(terms)
    }

    /// Step `t`, which is step `at` of its chunk, and the `number`-th of this pass.
    unsafe fn step(&self, t: usize, at: usize, number: usize, scratch: &mut Scratch) {
        let (rnn, rows) = (self.block.rnn, self.rows());
        let kept = t >= self.y_first;
        // SAFETY: all offsets are inside the direction's memory; `h` of this step and of the one
        // before are different buffers.
        unsafe {
            let y = kept.then(|| self.y.add((t - self.y_first) * self.y_stride));
            let (h, next) = (self.hidden(number % 2), self.hidden((number + 1) % 2));
            let projection = self.weights.projection.as_ref();
            let first = self.early_terms();
            let wait = || {
                self.wait();
                if self.team.is_some() {
                    prefetch(h, rows * rnn.width);
                }
            };
            if first.is_none() {
                wait();
            }
            let mut sums = self.sums().cast_const();
            for (i, head) in self.weights.heads.iter().enumerate() {
                let units = head.w_hh.outputs() / rnn.cell.gates();
                let unit = i * units;
                let finish = Update {
                    cell: rnn.cell,
                    inputs: &head.w_ih,
                    weights: &head.w_hh,
                    units,
                    sums: sums.add(at * rows * head.w_hh.width()),
                    sums_stride: self.room() * head.w_hh.width(),
                    h: h.add(unit),
                    h_stride: rnn.width,
                    states: [0, 1, 2].map(|i| self.state(i).add(unit)),
                    stride: rnn.hidden,
                    next: projection.map_or(next, |_| self.hidden(2)).add(unit),
                    y: if projection.is_none() { y.map(|y| y.add(unit)) } else { None },
                    y_stride: self.y_sequence,
                };
                let product = Product {
                    x: h.add(if rnn.cell.heads() > 1 { unit } else { 0 }),
                    x_map: RowMap::dense(rnn.width),
                    weights: &head.w_hh,
                    rows: 0..rows,
                    panels: self.panels(i, head.w_hh.panels()),
                    backwards: number % 2 == 1,
                    arrival: first.map(|terms| Arrival { terms, wait: &wait }),
                    finish,
                };
                if !product.panels.is_empty() && rows > 0 {
                    product.run(rnn.isa, scratch);
                }
                sums = sums.add(self.room() * head.w_hh.padded_outputs());
            }
            self.publish();
            if let Some(projection) = projection {
                self.wait();
                let product = Gemm::new(self.hidden(2), rows, projection, next);
                let panels = self.share(projection.panels());
                product.run_part(rnn.isa, 0..rows, panels, scratch);
                self.publish();
                if let (Some(y), true) = (y, self.leads()) {
                    self.wait();
                    for r in 0..rows {
                        let from = next.add(r * rnn.width);
                        let to = y.add(r * self.y_sequence);
                        std::ptr::copy_nonoverlapping(from, to, rnn.width);
                    }
                }
            }
        }
    }
}
