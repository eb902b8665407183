//! How a team shares a run, and the memory between its steps: fixed when a stack is compiled for a
//! batch, a number of steps and a team.

use super::Rnn;
use super::cost::Model;
use super::pipeline::{Pipeline, Task};
use crate::caches::Caches;
use crate::memory::Buffer;
use std::ops::Range;

/// Rows of a batch that go through all steps together. Hidden states and gates of that many rows
/// stay in L2.
const BLOCK_ROWS: usize = 48;
/// Bytes that the sums of one input product may take, so that they are still in L2 when the steps
/// of its chunk read them, where its weights are.
const CHUNK_BYTES: usize = 256 << 10;
/// Rows (of the batch, times steps) of one input product: enough to fill tiles, and no more than
/// one pass of a product takes.
const CHUNK_ROWS: Range<usize> = 48..256;
/// Recurrent weights up to this size stay in L2 beside what else a step touches.
const L2_WEIGHT_BYTES: usize = 1_500_000;

/// How the team shares a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Each worker takes rows of the batch through everything.
    Rows,
    /// All workers take the same rows, and split directions or units.
    Units,
    /// All workers take the same rows, and each runs its list of chunks of steps of any layer.
    Layers,
}

/// A stack compiled for a batch, a number of steps and a team; owns the memory between steps.
#[derive(Debug)]
pub struct Schedule {
    pub(super) batch: usize,
    pub(super) steps: usize,
    pub(super) keep: usize,
    pub(super) mode: Mode,
    pub(super) block: usize,
    pub(super) chunk: usize,
    pub(super) layout: Layout,
    pub(super) memory: Buffer,
    pub(super) workers: usize,
    /// Of each worker, where layers are shared, and the most that one has.
    pub(super) tasks: Vec<Vec<Task>>,
    pub(super) longest: u32,
}

/// Offsets in a worker's (or the team's) memory, in floats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    /// Buffers between layers: two that alternate, or one behind each layer but the last.
    pub(super) sequences: usize,
    /// One `[block, steps, directions · width]`.
    pub(super) sequence: usize,
    /// Per direction, or per layer of a pipeline: sums of the input products
    /// `[panel, chunk, block, width]`, then states.
    pub(super) direction: usize,
    pub(super) gates: usize,
    pub(super) hidden: usize,
    pub(super) state: usize,
    pub(super) bytes: usize,
}

fn line(n: usize) -> usize {
    n.next_multiple_of(16)
}

impl Schedule {
    /// Bytes of its memory.
    pub fn bytes(&self) -> usize {
        self.memory.len() * 4
    }
}

impl Rnn {
    /// Whether a team had better split the rows of a batch than the units of the layers. With few
    /// rows each it had better share weights: those that do not fit a core's cache would be read
    /// once by each worker.
    pub fn splits_rows(&self, batch: usize, workers: usize) -> bool {
        let recurrent = self.layers.iter().flatten().flat_map(|d| &d.heads);
        let weights = recurrent.map(|h| h.w_hh.bytes()).max().unwrap_or(0) * self.cell.heads();
        let rows_each = if weights > L2_WEIGHT_BYTES { 24 } else { 6 };
        workers == 1 || batch >= workers * rows_each
    }

    /// Plans runs of up to `batch` rows and exactly `steps` steps of which the last `keep` are
    /// written, and allocates their memory.
    pub fn schedule(&self, batch: usize, steps: usize, keep: usize, workers: usize) -> Schedule {
        let way = if self.splits_rows(batch, workers) {
            Way::Rows
        } else {
            let caches = Caches::of_this_machine();
            let rows = batch.min(BLOCK_ROWS);
            let model = Model { rnn: self, caches, rows, steps };
            model.pipeline(workers).map_or(Way::Units, Way::Layers)
        };
        self.schedule_as(way, (batch, steps, keep), workers)
    }

    /// Rows of one input product.
    fn chunk_rows(&self) -> usize {
        let weights = self.layers.iter().flatten().map(|d| {
            let heads = d.heads.iter().map(|h| h.w_ih.bytes());
            heads.sum::<usize>()
        });
        if weights.max() > Some(Caches::of_this_machine().l2) {
            // Each chunk reads them from further away, and the sums are the lesser traffic.
            return CHUNK_ROWS.end;
        }
        let rows = CHUNK_BYTES / (4 * self.padded()).max(1);
        rows.clamp(CHUNK_ROWS.start, CHUNK_ROWS.end)
    }

    /// As [`Rnn::schedule`], shared the given way.
    pub(super) fn schedule_as(
        &self,
        way: Way,
        (batch, steps, keep): (usize, usize, usize),
        workers: usize,
    ) -> Schedule {
        let share = if matches!(way, Way::Rows) { batch.div_ceil(workers) } else { batch };
        let blocks = share.div_ceil(BLOCK_ROWS).max(1);
        let block = share.div_ceil(blocks);
        let chunk = (self.chunk_rows() / block.max(1)).clamp(1, steps.max(1));
        let (layers, directions) = (self.layers.len(), self.directions());
        let between = layers.saturating_sub(1);
        let none = Pipeline { tasks: Vec::new(), chunk, cost: 0.0 };
        let (mode, pipeline, sequences, places) = match way {
            Way::Rows => (Mode::Rows, none, between.min(2), directions),
            Way::Units => (Mode::Units, none, between.min(2), directions),
            Way::Layers(pipeline) => (Mode::Layers, pipeline, between, layers),
        };
        let (longest, Pipeline { tasks, chunk, .. }) = (pipeline.longest(), pipeline);
        let mut layout = Layout {
            sequences,
            sequence: line(block * steps * directions * self.width),
            gates: line(block * chunk * self.padded()),
            hidden: line(block * self.width.max(self.hidden)),
            state: line(block * self.hidden),
            ..Layout::default()
        };
        layout.direction = layout.gates + 3 * layout.hidden + 3 * layout.state;
        layout.bytes = sequences * layout.sequence + places * layout.direction;
        let copies = if mode == Mode::Rows { workers } else { 1 };
        let memory = Buffer::zeroed(copies * layout.bytes);
        Schedule { batch, steps, keep, mode, block, chunk, layout, memory, workers, tasks, longest }
    }
}

/// A [`Mode`] with what it needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Way {
    Rows,
    Units,
    Layers(Pipeline),
}
