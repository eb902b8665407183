//! Stacked recurrences: LSTM (projected or not), GRU, plain RNN, sLSTM; one or two directions.
//!
//! The input products of a chunk of steps are one product before the time loop; the recurrent
//! product is packed with its gates interleaved, so that the tile of a vector of units ends with
//! all their gates in reach and the state update happens right there. A gate is
//! `(W_ih·x + b_ih) + (W_hh·h + b_hh)`: two sums, added once, so that a streaming tick which has
//! one of them ready gives the bits of the whole window.
//!
//! Four ways to share the work, chosen from batch, weights and caches: by rows of the batch (no
//! meeting at all), by direction (one meeting a layer), by layers (a pipeline, one hand-over a
//! chunk of steps), by units (one hand-over a step). The bits are the same.
//! What the caller does not keep is not computed: the last layer's backward direction runs only the
//! steps that are kept.

mod block;
mod cost;
mod meetings;
mod pack;
mod pass;
mod pipeline;
mod schedule;
#[cfg(test)]
mod tests;
mod update;
mod wavefront;

pub use schedule::Schedule;

use crate::counters::{Precision, Stem, count};
use crate::gemm::{Packed, Scratch};
use crate::isa::Isa;
use crate::memory::Shared;
use crate::team::Worker;
use block::Block;
use meetings::Meetings;
use schedule::Mode;

/// The recurrence. Gate orders: LSTM `i, f, g, o`; GRU `r, z, n`; sLSTM `i, f, z, o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Long short-term memory.
    Lstm,
    /// Gated recurrent unit, PyTorch's form.
    Gru,
    /// `tanh`.
    Tanh,
    /// `max(·, 0)`.
    Relu,
    /// Scalar LSTM with exponential gates, block-diagonal over this many heads.
    Slstm {
        /// Number of heads.
        heads: usize,
    },
}

impl Cell {
    /// Gates of a unit.
    pub fn gates(self) -> usize {
        match self {
            Cell::Lstm | Cell::Slstm { .. } => 4,
            Cell::Gru => 3,
            Cell::Tanh | Cell::Relu => 1,
        }
    }

    /// States carried from step to step: `h`, then `c`, then `n` and `m`.
    pub fn states(self) -> usize {
        match self {
            Cell::Lstm => 2,
            Cell::Slstm { .. } => 4,
            _ => 1,
        }
    }

    fn heads(self) -> usize {
        match self {
            Cell::Slstm { heads } => heads,
            _ => 1,
        }
    }

    fn stem(self) -> Stem {
        match self {
            Cell::Lstm => Stem::RnnLstm,
            Cell::Gru => Stem::RnnGru,
            Cell::Tanh => Stem::RnnTanh,
            Cell::Relu => Stem::RnnRelu,
            Cell::Slstm { .. } => Stem::RnnSlstm,
        }
    }
}

/// Weights of one direction of one layer, as the model stores them.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// `[G·D, K]`; sLSTM `[G, heads, D/heads, D/heads]`.
    pub w_ih: &'a [f32],
    /// `[G·D, R]`; sLSTM `[G, heads, D/heads, D/heads]`.
    pub w_hh: &'a [f32],
    /// `[G·D]`.
    pub b_ih: Option<&'a [f32]>,
    /// `[G·D]`.
    pub b_hh: Option<&'a [f32]>,
    /// `[R, D]`.
    pub w_hr: Option<&'a [f32]>,
}

/// One head (the only one, but for sLSTM) of a direction.
#[derive(Debug)]
struct Head {
    w_ih: Packed,
    w_hh: Packed,
}

#[derive(Debug)]
struct Direction {
    heads: Vec<Head>,
    projection: Option<Packed>,
}

/// A packed stack.
#[derive(Debug)]
pub struct Rnn {
    isa: Isa,
    cell: Cell,
    /// Hidden units `D`.
    hidden: usize,
    /// Width `R` of `h`: `hidden`, or the projection's.
    width: usize,
    inputs: usize,
    layers: Vec<Vec<Direction>>,
    precision: Precision,
}

/// The rows of `[batch, S · directions, width]` states: row `b` starts at `slot(b) · stride`.
#[derive(Clone, Copy, Debug)]
pub struct StateRows {
    /// First row.
    pub at: Shared,
    /// Floats between rows.
    pub stride: usize,
    /// Slot of each batch row; null means the row itself.
    pub slots: *const u32,
}

// SAFETY: a plain description of memory; whoever dereferences it argues for itself.
unsafe impl Send for StateRows {}
// SAFETY: as above.
unsafe impl Sync for StateRows {}

impl StateRows {
    /// Dense rows of `stride` floats.
    pub fn dense(at: *mut f32, stride: usize) -> Self {
        StateRows { at: Shared(at), stride, slots: std::ptr::null() }
    }

    /// # Safety
    /// Row `b` exists.
    pub(crate) unsafe fn row(&self, b: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe {
            let slot = if self.slots.is_null() { b } else { *self.slots.add(b) as usize };
            self.at.0.add(slot * self.stride)
        }
    }
}

/// One run of a stack.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Input `[batch, steps, inputs]`.
    pub x: *const f32,
    /// Rows.
    pub batch: usize,
    /// Output `[batch, keep, directions · width]`.
    pub y: *mut f32,
    /// Initial states in the cell's order; zeros where absent.
    pub initial: Option<&'a [StateRows]>,
    /// Where final states go.
    pub finals: Option<&'a [StateRows]>,
}

// SAFETY: pointers to memory that the workers of one run share by disjoint parts.
unsafe impl Send for Call<'_> {}
// SAFETY: as above.
unsafe impl Sync for Call<'_> {}

impl Rnn {
    /// Under which name runs are counted.
    pub fn counted(&self) -> (Stem, Precision) {
        (self.cell.stem(), self.precision)
    }

    /// Directions of a layer.
    pub fn directions(&self) -> usize {
        self.layers.first().map_or(1, Vec::len)
    }

    /// Gate columns of one row, padding included.
    fn padded(&self) -> usize {
        let direction = self.layers.iter().flatten().next();
        direction.map_or(0, |d| d.heads.iter().map(|h| h.w_hh.padded_outputs()).sum())
    }

    /// This worker's part of a run. Ends without a barrier.
    ///
    /// # Safety
    /// The pointers of `call` reach what its fields say for `schedule`'s steps; all workers of the
    /// team pass the same call and schedule, and nobody else touches their memory meanwhile.
    pub unsafe fn run(
        &self,
        call: &Call<'_>,
        schedule: &Schedule,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        assert!(call.batch <= schedule.batch && worker.workers() == schedule.workers);
        if worker.index() == 0 {
            count(self.cell.stem(), self.isa, self.precision);
        }
        let (rows, base) = match schedule.mode {
            Mode::Rows => (worker.share(call.batch), worker.index() * schedule.layout.bytes),
            Mode::Units | Mode::Layers => (0..call.batch, 0),
        };
        let memory = schedule.memory.as_ptr().cast_mut();
        let meetings = Meetings::new(worker);
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start + schedule.block);
            // SAFETY: the memory holds a layout at `base`; the rest is the caller's.
            unsafe {
                let memory = memory.add(base);
                let block = Block { rnn: self, call, schedule, rows: start..end, memory };
                block.run(&meetings, scratch);
            }
            start = end;
        }
    }
}
