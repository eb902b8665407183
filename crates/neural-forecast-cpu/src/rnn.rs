//! Stacked recurrences: LSTM (projected or not), GRU, plain RNN, sLSTM; one or two directions.
//!
//! The input products of a chunk of steps are one product before the time loop; the recurrent
//! product is packed with its gates interleaved, so that the tile of a vector of units ends with
//! all their gates in reach and the state update happens right there. A gate is
//! `(W_ih·x + b_ih) + (W_hh·h + b_hh)`: two sums, added once, so that a streaming tick which has
//! one of them ready gives the bits of the whole window.
//!
//! Three ways to share the work, chosen from batch and weights: by rows of the batch (no meeting at
//! all), by direction (one meeting a layer), by units (one meeting a step). The bits are the same.
//! What the caller does not keep is not computed: the last layer's backward direction runs only the
//! steps that are kept.

use crate::counters::{Precision, Stem, count};
use crate::gemm::{Finish, Gemm, Packed, Product, Scratch};
use crate::isa::Isa;
use crate::memory::{Buffer, RowMap, Shared};
use crate::simd::Simd;
use crate::team::Worker;
use crate::vecmath;
use std::ops::Range;

/// Rows of a batch that go through all steps together. Hidden states and gates of that many rows
/// stay in L2.
const BLOCK_ROWS: usize = 48;
/// Rows (of the batch, times steps) of one input product.
const CHUNK_ROWS: usize = 256;
/// Recurrent weights up to this size stay in L2 beside what else a step touches.
const L2_WEIGHT_BYTES: usize = 1_500_000;

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

/// How the team shares a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Each worker takes rows of the batch through everything.
    Rows,
    /// All workers take the same rows, and split directions or units.
    Units,
}

/// A stack compiled for a batch, a number of steps and a team; owns the memory between steps.
#[derive(Debug)]
pub struct Schedule {
    batch: usize,
    steps: usize,
    keep: usize,
    mode: Mode,
    block: usize,
    chunk: usize,
    layout: Layout,
    memory: Buffer,
    workers: usize,
}

/// Offsets in a worker's (or the team's) memory, in floats.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    /// Two sequences `[block, steps, directions · width]`.
    sequence: usize,
    /// Per direction: gates `[block · chunk, padded]`, then states.
    direction: usize,
    gates: usize,
    hidden: usize,
    state: usize,
    bytes: usize,
}

fn line(n: usize) -> usize {
    n.next_multiple_of(16)
}

impl Rnn {
    /// Packs a stack for a tier. `layers[l]` holds one direction or two.
    pub fn new(
        isa: Isa,
        precision: Precision,
        cell: Cell,
        (inputs, hidden, projection): (usize, usize, Option<usize>),
        layers: &[Vec<Weights<'_>>],
    ) -> Rnn {
        let width = projection.unwrap_or(hidden);
        let directions = layers.first().map_or(1, Vec::len);
        let pack = |layer: usize, w: &Weights<'_>| {
            let k = if layer == 0 { inputs } else { directions * width };
            let heads = pack_heads(isa, precision, cell, (k, hidden, width), w);
            let projection = w.w_hr.zip(projection);
            let projection =
                projection.map(|(w, p)| Packed::new(isa, precision, w, (p, hidden), 1, None));
            Direction { heads, projection }
        };
        let layers = layers
            .iter()
            .enumerate()
            .map(|(l, layer)| layer.iter().map(|w| pack(l, w)).collect())
            .collect();
        Rnn { isa, cell, hidden, width, inputs, layers, precision }
    }

    /// Under which name runs are counted.
    pub fn counted(&self) -> (Stem, Precision) {
        (self.cell.stem(), self.precision)
    }

    /// Directions of a layer.
    pub fn directions(&self) -> usize {
        self.layers.first().map_or(1, Vec::len)
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        let heads = self.layers.iter().flatten().flat_map(|d| &d.heads);
        let heads: usize = heads.map(|h| h.w_ih.bytes() + h.w_hh.bytes()).sum();
        let projections = self.layers.iter().flatten().filter_map(|d| d.projection.as_ref());
        heads + projections.map(Packed::bytes).sum::<usize>()
    }

    /// Gate columns of one row, padding included.
    fn padded(&self) -> usize {
        let direction = self.layers.iter().flatten().next();
        direction.map_or(0, |d| d.heads.iter().map(|h| h.w_hh.padded_outputs()).sum())
    }

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
        let by_rows = self.splits_rows(batch, workers);
        let mode = if by_rows { Mode::Rows } else { Mode::Units };
        let share = if by_rows { batch.div_ceil(workers) } else { batch };
        let blocks = share.div_ceil(BLOCK_ROWS).max(1);
        let block = share.div_ceil(blocks);
        let chunk = (CHUNK_ROWS / block.max(1)).clamp(1, steps.max(1));
        let sequences = match self.layers.len() {
            0 | 1 => 0,
            2 => 1,
            _ => 2,
        };
        let directions = self.directions();
        let mut layout = Layout {
            sequence: line(block * steps * directions * self.width),
            gates: line(block * chunk * self.padded()),
            hidden: line(block * self.width.max(self.hidden)),
            state: line(block * self.hidden),
            ..Layout::default()
        };
        layout.direction = layout.gates + 3 * layout.hidden + 3 * layout.state;
        layout.bytes = sequences * layout.sequence + directions * layout.direction;
        let copies = if by_rows { workers } else { 1 };
        let memory = Buffer::zeroed(copies * layout.bytes);
        Schedule { batch, steps, keep, mode, block, chunk, layout, memory, workers }
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
            Mode::Units => (0..call.batch, 0),
        };
        let memory = schedule.memory.as_ptr().cast_mut();
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start + schedule.block);
            // SAFETY: the memory holds a layout at `base`; the rest is the caller's.
            unsafe {
                let memory = memory.add(base);
                let block = Block { rnn: self, call, schedule, rows: start..end, memory };
                block.run(worker, scratch);
            }
            start = end;
        }
    }
}

fn pack_heads(
    isa: Isa,
    precision: Precision,
    cell: Cell,
    (inputs, hidden, width): (usize, usize, usize),
    w: &Weights<'_>,
) -> Vec<Head> {
    let (gates, heads) = (cell.gates(), cell.heads());
    if !matches!(cell, Cell::Slstm { .. }) {
        let n = gates * hidden;
        let w_ih = Packed::new(isa, precision, w.w_ih, (n, inputs), gates, w.b_ih);
        let w_hh = Packed::new(isa, precision, w.w_hh, (n, width), gates, w.b_hh);
        return vec![Head { w_ih, w_hh }];
    }
    let d = hidden / heads;
    let take = |matrix: &[f32], head: usize, k: usize| -> Vec<f32> {
        let part = |gate: usize| {
            let start = (gate * heads + head) * d * k;
            matrix[start..start + d * k].iter().copied()
        };
        (0..gates).flat_map(part).collect()
    };
    let pack = |matrix: &[f32], bias: Option<&[f32]>, head: usize| {
        let matrix = take(matrix, head, d);
        let bias = bias.map(|bias| take(bias, head, 1));
        Packed::new(isa, precision, &matrix, (gates * d, d), gates, bias.as_deref())
    };
    let head = |h| Head { w_ih: pack(w.w_ih, w.b_ih, h), w_hh: pack(w.w_hh, w.b_hh, h) };
    (0..heads).map(head).collect()
}

impl Schedule {
    /// Bytes of its memory.
    pub fn bytes(&self) -> usize {
        self.memory.len() * 4
    }
}

/// Some rows of a batch on their way through all layers.
struct Block<'a> {
    rnn: &'a Rnn,
    call: &'a Call<'a>,
    schedule: &'a Schedule,
    rows: Range<usize>,
    memory: *mut f32,
}

/// One direction of one layer for those rows.
struct Pass<'a> {
    block: &'a Block<'a>,
    weights: &'a Direction,
    /// `layer · directions + direction`
    row: usize,
    backward: bool,
    steps: usize,
    /// Input row of the first step of the first batch row, and its geometry.
    x: *const f32,
    x_width: usize,
    /// Output of step 0 of the first batch row, with the steps that are written.
    y: *mut f32,
    y_stride: usize,
    y_sequence: usize,
    y_first: usize,
    memory: *mut f32,
    /// The worker whose team splits the units; `None` for a pass of one worker.
    team: Option<Worker<'a>>,
}

impl Block<'_> {
    unsafe fn run(&self, worker: Worker<'_>, scratch: &mut Scratch) {
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

impl Pass<'_> {
    fn gates(&self) -> *mut f32 {
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
        self.team.is_none_or(|worker| worker.index() == 0)
    }

    fn meet(&self) {
        if let Some(worker) = self.team {
            worker.barrier();
        }
    }

    /// This worker's panels of the heads, which are numbered through.
    fn panels(&self, head: usize, per_head: usize) -> Range<usize> {
        let heads = self.weights.heads.len();
        let all = self.team.map_or(0..heads * per_head, |w| w.share(heads * per_head));
        let clip = |p: usize| p.clamp(head * per_head, (head + 1) * per_head) - head * per_head;
        clip(all.start)..clip(all.end)
    }

    unsafe fn run(&self, scratch: &mut Scratch) {
        let s = self.block.schedule;
        // SAFETY: as `Rnn::run`; meetings order what one worker writes and another reads.
        unsafe {
            if self.leads() {
                self.enter();
            }
            self.meet();
            let mut done = 0;
            while done < self.steps {
                let n = s.chunk.min(self.steps - done);
                let first = if self.backward { s.steps - done - n } else { done };
                self.inputs(first, n, scratch);
                for i in 0..n {
                    let t = if self.backward { first + n - 1 - i } else { first + i };
                    self.step(t, t - first, n, done + i, scratch);
                }
                done += n;
            }
            if self.leads() {
                self.leave();
            }
        }
    }

    /// Initial states into place.
    unsafe fn enter(&self) {
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

    /// Final states out; after the last step's meeting.
    unsafe fn leave(&self) {
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

    /// The input products of steps `first .. first + n`, into gates `[rows, n, padded]`. A worker
    /// computes the gates of its own units, so nobody waits for them.
    unsafe fn inputs(&self, first: usize, n: usize, scratch: &mut Scratch) {
        let (rnn, s) = (self.block.rnn, self.block.schedule);
        let padded = rnn.padded();
        let mut offset = 0;
        for (h, head) in self.weights.heads.iter().enumerate() {
            // SAFETY: steps and columns exist; the gates hold a chunk of steps.
            unsafe {
                let x = self.x.add(first * self.x_width);
                let x = if rnn.cell.heads() > 1 { x.add(h * head.w_ih.terms()) } else { x };
                let product = Gemm {
                    x_map: RowMap::sequences(n, self.x_width, s.steps * self.x_width),
                    y_map: RowMap::dense(padded),
                    padded: true,
                    ..Gemm::new(x, self.rows() * n, &head.w_ih, self.gates().add(offset))
                };
                let panels = self.panels(h, head.w_ih.panels());
                product.run_part(rnn.isa, 0..product.rows, panels, scratch);
            }
            offset += head.w_ih.padded_outputs();
        }
    }

    /// Step `t`, which is step `at` of a chunk of `n`, and the `number`-th of this pass.
    unsafe fn step(&self, t: usize, at: usize, n: usize, number: usize, scratch: &mut Scratch) {
        let (rnn, rows) = (self.block.rnn, self.rows());
        let padded = rnn.padded();
        let kept = t >= self.y_first;
        // SAFETY: all offsets are inside the direction's memory; `h` of this step and of the one
        // before are different buffers.
        unsafe {
            let y = kept.then(|| self.y.add((t - self.y_first) * self.y_stride));
            let (h, next) = (self.hidden(number % 2), self.hidden((number + 1) % 2));
            let projection = self.weights.projection.as_ref();
            let mut offset = 0;
            for (i, head) in self.weights.heads.iter().enumerate() {
                let units = head.w_hh.outputs() / rnn.cell.gates();
                let unit = i * units;
                let finish = Update {
                    cell: rnn.cell,
                    weights: &head.w_hh,
                    units,
                    gates: self.gates().add(at * padded + offset),
                    gates_stride: n * padded,
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
                    finish,
                };
                if !product.panels.is_empty() && rows > 0 {
                    product.run(rnn.isa, scratch);
                }
                offset += head.w_hh.padded_outputs();
            }
            self.meet();
            if let Some(projection) = projection {
                let product = Gemm::new(self.hidden(2), rows, projection, next);
                let all = 0..projection.panels();
                let panels = self.team.map_or(all.clone(), |w| w.share(all.end));
                product.run_part(rnn.isa, 0..rows, panels, scratch);
                self.meet();
                if let (Some(y), true) = (y, self.leads()) {
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

/// The state update that follows the recurrent product of a vector of units.
#[derive(Clone, Copy)]
struct Update<'a> {
    cell: Cell,
    weights: &'a Packed,
    units: usize,
    gates: *const f32,
    gates_stride: usize,
    h: *const f32,
    h_stride: usize,
    /// `c`, `n`, `m`
    states: [*mut f32; 3],
    stride: usize,
    next: *mut f32,
    y: Option<*mut f32>,
    y_stride: usize,
}

impl Finish for Update<'_> {
    #[inline(always)]
    fn place<S: Simd>(&self, _: usize, _: usize) -> Option<(*mut f32, usize)> {
        None
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, p: usize, r: usize, sums: *const f32) {
        let width = self.weights.width();
        // SAFETY: the caller's; offsets stay inside the panel.
        unsafe {
            let gates = self.gates.add(r * self.gates_stride + p * width);
            let bias = self.weights.panel_bias(p);
            if self.cell.gates() > 1 {
                return self.units(s, p * S::LANES, r, gates, sums, bias);
            }
            // One gate: a panel is several vectors of units.
            let mut at = 0;
            while at < width && p * width + at < self.units {
                let bias = bias.map(|bias| bias.add(at));
                self.units(s, p * width + at, r, gates.add(at), sums.add(at), bias);
                at += S::LANES;
            }
        }
    }
}

impl Update<'_> {
    /// Updates one vector of units from `unit` on; their gates, sums and biases lie `LANES` apart.
    #[inline(always)]
    unsafe fn units<S: Simd>(
        &self,
        s: S,
        unit: usize,
        r: usize,
        gates: *const f32,
        sums: *const f32,
        bias: Option<*const f32>,
    ) {
        let n = (self.units - unit).min(S::LANES);
        let next_stride = if self.next_is_hidden() { self.stride } else { self.h_stride };
        // SAFETY: the panel's units, and row `r` of every array, exist.
        unsafe {
            macro_rules! input {
                ($g:expr) => {
                    s.load(gates.add($g * S::LANES))
                };
            }
            macro_rules! recurrent {
                ($g:expr) => {{
                    let sum = s.load(sums.add($g * S::LANES));
                    match bias {
                        Some(bias) => s.add(sum, s.load(bias.add($g * S::LANES))),
                        None => sum,
                    }
                }};
            }
            macro_rules! gate {
                ($g:expr) => {
                    s.add(input!($g), recurrent!($g))
                };
            }
            let at = r * self.stride + unit;
            let one = s.splat(1.0);
            let h = match self.cell {
                Cell::Lstm => {
                    let c = self.states[0].add(at);
                    let i = vecmath::sigmoid(s, gate!(0));
                    let f = vecmath::sigmoid(s, gate!(1));
                    let g = vecmath::tanh(s, gate!(2));
                    let o = vecmath::sigmoid(s, gate!(3));
                    let new = s.fma(f, s.load_first(c, n), s.mul(i, g));
                    s.store_first(c, new, n);
                    s.mul(o, vecmath::tanh(s, new))
                }
                Cell::Gru => {
                    let old = s.load_first(self.h.add(r * self.h_stride + unit), n);
                    let reset = vecmath::sigmoid(s, gate!(0));
                    let z = vecmath::sigmoid(s, gate!(1));
                    let new = vecmath::tanh(s, s.fma(reset, recurrent!(2), input!(2)));
                    s.fma(s.sub(one, z), new, s.mul(z, old))
                }
                Cell::Tanh => vecmath::tanh(s, gate!(0)),
                Cell::Relu => vecmath::relu(s, gate!(0)),
                Cell::Slstm { .. } => {
                    let [c, n_at, m_at] = self.states.map(|state| state.add(at));
                    let (i, f) = (gate!(0), gate!(1));
                    let z = vecmath::tanh(s, gate!(2));
                    let o = vecmath::sigmoid(s, gate!(3));
                    let (c_old, n_old) = (s.load_first(c, n), s.load_first(n_at, n));
                    let lf = s.sub(
                        s.load_first(m_at, n),
                        s.map(s.sub(s.splat(0.0), f), vecmath::softplus),
                    );
                    // While n is 0 nothing has been stored, and the stabiliser starts at i.
                    let started = s.less(s.splat(0.0), s.abs(n_old));
                    let m = s.select(started, s.max(i, lf), i);
                    let ig = s.min(one, vecmath::exp(s, s.sub(i, m)));
                    let fg = s.min(one, vecmath::exp(s, s.sub(lf, m)));
                    let c_new = s.fma(fg, c_old, s.mul(ig, z));
                    let n_new = s.fma(fg, n_old, ig);
                    s.store_first(c, c_new, n);
                    s.store_first(n_at, n_new, n);
                    s.store_first(m_at, m, n);
                    s.mul(o, s.div(c_new, n_new))
                }
            };
            s.store_first(self.next.add(r * next_stride + unit), h, n);
            if let Some(y) = self.y {
                s.store_first(y.add(r * self.y_stride + unit), h, n);
            }
        }
    }

    /// Whether `next` holds unprojected rows of `stride` rather than `h` rows.
    #[inline(always)]
    fn next_is_hidden(&self) -> bool {
        self.h_stride != self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::team::Team;

    #[derive(Clone)]
    struct Own {
        w_ih: Vec<f32>,
        w_hh: Vec<f32>,
        b_ih: Vec<f32>,
        b_hh: Vec<f32>,
        w_hr: Option<Vec<f32>>,
    }

    struct Case {
        cell: Cell,
        inputs: usize,
        hidden: usize,
        projection: Option<usize>,
        layers: Vec<Vec<Own>>,
    }

    impl Case {
        fn new(
            random: &mut Random,
            cell: Cell,
            (inputs, hidden, projection): (usize, usize, Option<usize>),
            layers: usize,
            directions: usize,
        ) -> Case {
            let width = projection.unwrap_or(hidden);
            let g = cell.gates();
            let mut make = |l: usize| {
                let k = if l == 0 { inputs } else { directions * width };
                let (ih, hh) = match cell {
                    Cell::Slstm { heads } => {
                        (g * hidden * hidden / heads, g * hidden * hidden / heads)
                    }
                    _ => (g * hidden * k, g * hidden * width),
                };
                let scale = 1.5 / (k.max(width).max(1) as f32).sqrt();
                let mut scaled =
                    |n| -> Vec<f32> { random.floats(n).into_iter().map(|x| x * scale).collect() };
                Own {
                    w_ih: scaled(ih),
                    w_hh: scaled(hh),
                    b_ih: scaled(g * hidden),
                    b_hh: scaled(g * hidden),
                    w_hr: projection.map(|p| scaled(p * hidden)),
                }
            };
            let layers = (0..layers).map(|l| (0..directions).map(|_| make(l)).collect()).collect();
            Case { cell, inputs, hidden, projection, layers }
        }

        fn packed(&self, isa: Isa, precision: Precision) -> Rnn {
            fn view(own: &Own) -> Weights<'_> {
                Weights {
                    w_ih: &own.w_ih,
                    w_hh: &own.w_hh,
                    b_ih: Some(&own.b_ih),
                    b_hh: Some(&own.b_hh),
                    w_hr: own.w_hr.as_deref(),
                }
            }
            let layers: Vec<Vec<Weights<'_>>> =
                self.layers.iter().map(|layer| layer.iter().map(view).collect()).collect();
            let shape = (self.inputs, self.hidden, self.projection);
            Rnn::new(isa, precision, self.cell, shape, &layers)
        }

        fn width(&self) -> usize {
            self.projection.unwrap_or(self.hidden)
        }

        /// Unit by unit in `f64`; `states[i][row][unit]`, updated.
        fn reference(&self, x: &[f32], steps: usize, states: &mut [Vec<Vec<f64>>]) -> Vec<f64> {
            let mut sequence: Vec<Vec<f64>> = (0..steps)
                .map(|t| {
                    x[t * self.inputs..(t + 1) * self.inputs]
                        .iter()
                        .map(|&x| f64::from(x))
                        .collect()
                })
                .collect();
            for (l, layer) in self.layers.iter().enumerate() {
                let mut out = vec![Vec::new(); steps];
                for (d, w) in layer.iter().enumerate() {
                    let row = l * layer.len() + d;
                    let mut state: Vec<Vec<f64>> = states.iter().map(|s| s[row].clone()).collect();
                    for i in 0..steps {
                        let t = if d == 1 { steps - 1 - i } else { i };
                        self.reference_step(w, &sequence[t], &mut state);
                        out[t].extend_from_slice(&state[0]);
                    }
                    for (s, state) in states.iter_mut().zip(state) {
                        s[row] = state;
                    }
                }
                sequence = out;
            }
            sequence.concat()
        }

        fn reference_step(&self, w: &Own, x: &[f64], state: &mut [Vec<f64>]) {
            let d = self.hidden;
            let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
            let sum = |matrix: &[f32], bias: &[f32], row: usize, v: &[f64]| -> f64 {
                let (k, from) = match self.cell {
                    Cell::Slstm { heads } => (d / heads, row % d / (d / heads) * (d / heads)),
                    _ => (v.len(), 0),
                };
                let terms = (0..k).map(|i| f64::from(matrix[row * k + i]) * v[from + i]);
                terms.sum::<f64>() + f64::from(bias[row])
            };
            let h = state[0].clone();
            let a = |g: usize, u: usize| sum(&w.w_ih, &w.b_ih, g * d + u, x);
            let b = |g: usize, u: usize| sum(&w.w_hh, &w.b_hh, g * d + u, &h);
            let mut new = vec![0.0; d];
            for (u, new) in new.iter_mut().enumerate() {
                let gate = |g: usize| a(g, u) + b(g, u);
                *new = match self.cell {
                    Cell::Lstm => {
                        let c = &mut state[1][u];
                        *c = sigma(gate(1)) * *c + sigma(gate(0)) * gate(2).tanh();
                        sigma(gate(3)) * c.tanh()
                    }
                    Cell::Gru => {
                        let n = (a(2, u) + sigma(gate(0)) * b(2, u)).tanh();
                        let z = sigma(gate(1));
                        (1.0 - z) * n + z * h[u]
                    }
                    Cell::Tanh => gate(0).tanh(),
                    Cell::Relu => gate(0).max(0.0),
                    Cell::Slstm { .. } => {
                        let (i, f) = (gate(0), gate(1));
                        let lf = sigma(f).ln() + state[3][u];
                        let m = if state[2][u] == 0.0 { i } else { i.max(lf) };
                        let (ig, fg) = ((i - m).exp().min(1.0), (lf - m).exp().min(1.0));
                        state[1][u] = fg * state[1][u] + ig * gate(2).tanh();
                        state[2][u] = fg * state[2][u] + ig;
                        state[3][u] = m;
                        sigma(gate(3)) * state[1][u] / state[2][u]
                    }
                };
            }
            if let Some(w_hr) = &w.w_hr {
                let project =
                    |row: usize| (0..d).map(|u| f64::from(w_hr[row * d + u]) * new[u]).sum::<f64>();
                new = (0..self.width()).map(project).collect();
            }
            state[0] = new;
        }
    }

    struct Result {
        y: Vec<f32>,
        finals: Vec<Vec<f32>>,
    }

    fn run(
        rnn: &Rnn,
        workers: usize,
        x: &[f32],
        (batch, steps, keep): (usize, usize, usize),
        initial: Option<&[Vec<f32>]>,
        with_finals: bool,
    ) -> Result {
        let rows = rnn.layers.len() * rnn.directions();
        let widths: Vec<usize> =
            (0..rnn.cell.states()).map(|i| if i == 0 { rnn.width } else { rnn.hidden }).collect();
        let mut y = vec![f32::NAN; batch * keep * rnn.directions() * rnn.width];
        let mut finals: Vec<Vec<f32>> =
            widths.iter().map(|w| vec![f32::NAN; batch * rows * w]).collect();
        let view = |s: &[f32], w: usize| StateRows::dense(s.as_ptr().cast_mut(), rows * w);
        let initial_rows: Option<Vec<StateRows>> =
            initial.map(|s| s.iter().zip(&widths).map(|(s, &w)| view(s, w)).collect());
        let final_rows: Vec<StateRows> = finals
            .iter_mut()
            .zip(&widths)
            .map(|(s, &w)| StateRows::dense(s.as_mut_ptr(), rows * w))
            .collect();
        let call = Call {
            x: x.as_ptr(),
            batch,
            y: y.as_mut_ptr(),
            initial: initial_rows.as_deref(),
            finals: with_finals.then_some(&final_rows),
        };
        let schedule = rnn.schedule(batch, steps, keep, workers);
        let mut team = Team::new(workers).unwrap();
        // Twice: a second run must not see the first.
        for _ in 0..2 {
            team.run(|worker| {
                // SAFETY: all arrays have the call's shape and outlive it.
                unsafe { rnn.run(&call, &schedule, worker, &mut Scratch::new()) }
            })
            .unwrap();
        }
        Result { y, finals }
    }

    fn cases(random: &mut Random) -> Vec<Case> {
        let slstm = Cell::Slstm { heads: 4 };
        vec![
            Case::new(random, Cell::Lstm, (3, 5, None), 1, 1),
            Case::new(random, Cell::Lstm, (10, 32, None), 2, 2),
            Case::new(random, Cell::Lstm, (7, 33, Some(3)), 3, 1),
            Case::new(random, Cell::Lstm, (7, 20, Some(5)), 2, 2),
            Case::new(random, Cell::Gru, (1, 17, None), 2, 2),
            Case::new(random, Cell::Gru, (4, 48, None), 3, 1),
            Case::new(random, Cell::Tanh, (4, 15, None), 2, 2),
            Case::new(random, Cell::Relu, (4, 64, None), 1, 1),
            Case::new(random, slstm, (32, 32, None), 2, 1),
            Case::new(random, slstm, (72, 72, None), 1, 1),
        ]
    }

    #[test]
    fn every_cell_follows_its_definition() {
        let mut random = Random::new("rnn");
        for case in cases(&mut random) {
            for isa in Isa::available() {
                let rnn = case.packed(isa, Precision::F32);
                let rows = case.layers.len() * rnn.directions();
                for (batch, steps, keep) in [(1, 1, 1), (1, 9, 1), (3, 7, 7), (17, 5, 2)] {
                    let x = random.floats(batch * steps * case.inputs);
                    let width = |i| if i == 0 { case.width() } else { case.hidden };
                    let mut initial: Vec<Vec<f32>> = (0..case.cell.states())
                        .map(|i| random.floats(batch * rows * width(i)))
                        .collect();
                    if let Some(n) = initial.get_mut(2) {
                        n.iter_mut().for_each(|n| *n = n.abs() + 0.1);
                    }
                    for start in [None, Some(&initial[..])] {
                        let found = run(&rnn, 2, &x, (batch, steps, keep), start, true);
                        let out = rnn.directions() * case.width();
                        for b in 0..batch {
                            let of = |i: usize, s: &Vec<f32>| -> Vec<Vec<f64>> {
                                let w = width(i);
                                let row = |r: usize| {
                                    let at = (b * rows + r) * w;
                                    let s = s[at..at + w].iter();
                                    s.map(|&s| if start.is_some() { f64::from(s) } else { 0.0 })
                                        .collect()
                                };
                                (0..rows).map(row).collect()
                            };
                            let mut states: Vec<_> =
                                initial.iter().enumerate().map(|(i, s)| of(i, s)).collect();
                            let n = steps * case.inputs;
                            let y = case.reference(&x[b * n..(b + 1) * n], steps, &mut states);
                            let y = &y[(steps - keep) * out..];
                            let mine = &found.y[b * keep * out..(b + 1) * keep * out];
                            for (f, e) in mine.iter().zip(y) {
                                let error = (f64::from(*f) - e).abs();
                                assert!(error <= 2e-5, "{:?} {f} {e} {}", case.cell, isa.name());
                            }
                            for (i, state) in states.iter().enumerate() {
                                let w = width(i) * rows;
                                let mine = &found.finals[i][b * w..(b + 1) * w];
                                for (f, e) in mine.iter().zip(state.concat()) {
                                    let error = (f64::from(*f) - e).abs();
                                    assert!(error <= 5e-5, "{:?} state {i}: {f} {e}", case.cell);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_batch_workers_or_what_is_kept() {
        let mut random = Random::new("rnn bits");
        for case in cases(&mut random) {
            for isa in Isa::available() {
                for precision in [Precision::F32, Precision::Bf16] {
                    let rnn = case.packed(isa, precision);
                    let (batch, steps) = (53, 6);
                    let x = random.floats(batch * steps * case.inputs);
                    let all = run(&rnn, 1, &x, (batch, steps, steps), None, false).y;
                    for workers in [2, 3] {
                        let other = run(&rnn, workers, &x, (batch, steps, steps), None, true).y;
                        assert!(all == other, "{:?} {workers} workers", case.cell);
                    }
                    let out = rnn.directions() * case.width();
                    for b in [0, 1, 26, 52] {
                        let n = steps * case.inputs;
                        let x = &x[b * n..(b + 1) * n];
                        for (workers, keep) in [(1, steps), (2, 1), (1, 1), (2, 2)] {
                            let one = run(&rnn, workers, x, (1, steps, keep), None, false).y;
                            let end = (b + 1) * steps * out;
                            assert!(
                                one == all[end - keep * out..end],
                                "{:?} row {b} {} {workers} {keep}",
                                case.cell,
                                isa.name()
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_window_equals_its_steps() {
        let mut random = Random::new("rnn steps");
        let case = Case::new(&mut random, Cell::Lstm, (10, 24, None), 2, 1);
        for isa in Isa::available() {
            let rnn = case.packed(isa, Precision::F32);
            let steps = 11;
            let x = random.floats(steps * case.inputs);
            let window = run(&rnn, 2, &x, (1, steps, 1), None, true);
            let mut states: Vec<Vec<f32>> = vec![vec![0.0; 2 * 24]; 2];
            let mut last = Vec::new();
            for t in 0..steps {
                let x = &x[t * case.inputs..(t + 1) * case.inputs];
                let tick = run(&rnn, 1, x, (1, 1, 1), Some(&states), true);
                states = tick.finals;
                last = tick.y;
            }
            assert_eq!((window.y, window.finals), (last, states), "{}", isa.name());
        }
    }
}
