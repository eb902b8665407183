//! LSTM and GRU stacks over many rows on Hopper: `ptx/rnn_batch.cuh`.
//!
//! Decides how units are sliced over multiprocessors, packs the weights in the order in which the
//! kernel's fragments hold them, and lays out sequences and counters. Not other cells, nor
//! projected ones: `rnn_stack` has those. 8-bit weights are multiplied as the halves nearest to
//! what they stand for; f32 as three products of numbers rounded to tf32.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::ops::{Cell, Initial, Keep, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::{ValueId, WeightId};

use super::gemm::round_tf32;
use super::rnn_stack::levels;
use super::{Build, Packer};
use crate::gpu::Gpu;
use crate::launch::{Arguments, Launch};

/// Rows of a tile.
const ROWS: usize = 64;
/// Bytes of a strip (16 bytes of every row) of a tile, and of a stage of the ring of input tiles.
const STRIP_BYTES: usize = ROWS * 16;
const CHUNK: usize = 8;
const STAGE_BYTES: usize = CHUNK * STRIP_BYTES;
/// Most lanes of a launch: `LANES`.
const LANES: usize = 8;
/// Threads of a block: two consumer warpgroups and one of producers.
const THREADS: u32 = 384;
/// Fewest and most stages of a ring.
const STAGES_MIN: usize = 3;
const STAGES_MAX: usize = 8;
/// Slots of a sequence that the layer above reads in the same launch. Two would do; eight let
/// layers drift apart by some steps and still keep the sequence in the L2 cache. Chosen.
const DEPTH: usize = 8;
/// Shared memory that is not for operands: barriers.
const RESERVED_BYTES: usize = 1024;
/// Columns of a slice that there are kernels for, with the names of the layouts.
const WIDTHS: [(usize, [&str; 3]); 6] = [
    (64, ["tiles of 64", "tiles of 64, two inputs", "biases of tiles of 64"]),
    (112, ["tiles of 112", "tiles of 112, two inputs", "biases of tiles of 112"]),
    (128, ["tiles of 128", "tiles of 128, two inputs", "biases of tiles of 128"]),
    (160, ["tiles of 160", "tiles of 160, two inputs", "biases of tiles of 160"]),
    (208, ["tiles of 208", "tiles of 208, two inputs", "biases of tiles of 208"]),
    (256, ["tiles of 256", "tiles of 256, two inputs", "biases of tiles of 256"]),
];
/// Products up to which the warpgroups of a block multiply in turns rather than as it comes. Of
/// five workloads (H200, 2026-11-21) the three launches with 1152 to 1536 cycles gained 3 to 11%
/// in turns, those with 2176 and more lost 6 to 20%.
const ORDERED_CYCLES_MAX: usize = 1600;
/// Scratch of a chunk of rows.
const SCRATCH_BYTES_MAX: usize = 4 << 30;

/// How the kernels keep inputs and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    F16,
    Bf16,
    Tf32,
    /// 16 columns of f32 as four strips rounded to tf32 and four of the rests.
    Split,
}

impl Format {
    fn of(precision: Precision) -> Format {
        match precision {
            Precision::F32 => Format::Split,
            Precision::Tf32 => Format::Tf32,
            Precision::Bf16 => Format::Bf16,
            Precision::F16 | Precision::Int8 | Precision::Fp8 => Format::F16,
        }
    }

    /// In the names of kernels.
    fn name(self) -> &'static str {
        match self {
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::Tf32 => "tf32",
            Format::Split => "f32",
        }
    }

    /// The file with its kernels.
    fn module(self) -> &'static str {
        match self {
            Format::F16 | Format::Bf16 => "rnn_batch_hopper",
            Format::Tf32 | Format::Split => "rnn_batch_f32_hopper",
        }
    }

    /// Columns of two strips.
    fn columns(self) -> usize {
        match self {
            Format::F16 | Format::Bf16 => 16,
            Format::Tf32 => 8,
            Format::Split => 4,
        }
    }

    /// Strips of a row of so many elements, an even number.
    fn strips_of(self, elements: usize) -> usize {
        match self {
            Format::Split => elements.div_ceil(16) * 8,
            _ => elements.div_ceil(self.columns()) * 2,
        }
    }

    /// Writes a weight of row `row` and column `k` to strips of `rows` rows.
    fn put(self, strips: &mut [u8], rows: usize, row: usize, k: usize, x: f32) {
        let mut write = |strip: usize, byte: usize, bytes: &[u8]| {
            let at = (strip * rows + row) * 16 + byte;
            strips[at..at + bytes.len()].copy_from_slice(bytes);
        };
        match self {
            Format::F16 => write(k / 8, k % 8 * 2, &half::f16::from_f32(x).to_le_bytes()),
            Format::Bf16 => write(k / 8, k % 8 * 2, &half::bf16::from_f32(x).to_le_bytes()),
            Format::Tf32 => write(k / 4, k % 4 * 4, &round_tf32(x).to_le_bytes()),
            Format::Split => {
                let strip = k / 16 * 8 + k % 16 / 4;
                let high = round_tf32(x);
                write(strip, k % 4 * 4, &high.to_le_bytes());
                write(strip + 4, k % 4 * 4, &round_tf32(x - high).to_le_bytes());
            }
        }
    }
}

/// A stack with its weights on the device.
#[derive(Debug)]
pub(crate) struct RnnBatch {
    op: RnnStack,
    outputs: Vec<ValueId>,
    inputs: usize,
    format: Format,
    launches: Vec<Group>,
}

/// Lanes that run in one launch.
#[derive(Debug)]
struct Group {
    lanes: Vec<PackedLane>,
    tiling: Tiling,
}

/// A direction of a layer.
#[derive(Clone, Copy, Debug)]
struct PackedLane {
    layer: usize,
    direction: usize,
    w: u64,
    bias: u64,
}

/// How the units of a layer are sliced.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tiling {
    /// Index into `WIDTHS`, columns of a slice, and slices.
    width: usize,
    columns: usize,
    slices: usize,
    /// Octets of the longest rows of weights.
    strips: usize,
    /// Whether weights stay in shared memory.
    stays: bool,
    stages: usize,
    /// Least cycles of the products of a task.
    products: usize,
}

impl Tiling {
    /// The slicing with the least estimated time for many rows: the bits do not depend on it.
    /// `inputs` are the strips of the widest input.
    fn new(
        format: Format,
        hidden: usize,
        lanes: usize,
        inputs: usize,
        gpu: &Gpu,
    ) -> Option<Tiling> {
        let shared = (gpu.shared_bytes_max as usize).checked_sub(RESERVED_BYTES)?;
        let units_at_once = gpu.multiprocessors as usize;
        let strips = inputs + format.strips_of(hidden);
        let mut best: Option<(f64, Tiling)> = None;
        for (width, &(columns, _)) in WIDTHS.iter().enumerate() {
            let slices = hidden.div_ceil(columns / 4);
            let left = shared.saturating_sub(strips * columns * 16);
            let kept = (left / (2 * STAGE_BYTES)).min(STAGES_MAX);
            let stays = kept >= STAGES_MIN && lanes * slices <= units_at_once;
            let streamed = shared / (CHUNK * columns * 16 + 2 * STAGE_BYTES);
            let stages = if stays { kept } else { streamed.min(STAGES_MAX) };
            if stages < STAGES_MIN {
                continue;
            }
            let used = lanes * slices;
            let idle =
                if stays { (units_at_once % used) as f64 / units_at_once as f64 } else { 0.0 };
            let mut tiling = Tiling { width, columns, slices, strips, stays, stages, products: 0 };
            tiling.products = tiling.product_cycles(format);
            let cost = tiling.cycles(format) / (1.0 - idle);
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, tiling));
            }
        }
        best.map(|(_, tiling)| tiling)
    }

    /// Cycles that the products of 64 rows and a slice take at least.
    fn product_cycles(&self, format: Format) -> usize {
        let once = self.strips / 2 * (self.columns / 2);
        // Three products of half the strips.
        if format == Format::Split { once * 3 / 2 } else { once }
    }

    /// Estimated cycles of 64 rows on one multiprocessor of an H200: the longest of the products,
    /// the cells' special functions (one a value, two where they are exact), and operands from the
    /// L2 cache at 24 bytes a cycle; and about 1000 that a task waits for besides.
    fn cycles(&self, format: Format) -> f64 {
        let cells = self.units() * if format == Format::Split { 40 } else { 20 };
        // Both warpgroups share weights that stream.
        let rows = if self.stays { ROWS } else { ROWS + self.columns / 2 };
        let operands = self.strips * 16 * rows / 24;
        (self.slices * (1000 + self.products.max(cells).max(operands))) as f64
    }

    fn units(&self) -> usize {
        self.columns / 4
    }
}

/// The unit and gate of a column of a slice: a thread's fragments hold all gates of its units, and
/// two neighbouring units in neighbouring fragments.
fn column(columns: usize, column: usize) -> (usize, usize) {
    let (group, quad) = (column / 16, column % 8 / 2);
    let gate = column % 16 / 8 * 2 + column % 2;
    let paired = (group | 1) < columns / 16;
    let unit = if paired { group / 2 * 8 + 2 * quad + group % 2 } else { group * 4 + quad };
    (unit, gate)
}

/// What a column of a unit's four sums: gates of the weights of the layer below and of the own
/// `h`, and what they are multiplied by.
#[derive(Clone, Copy, Debug)]
struct Gate {
    below: Option<usize>,
    own: Option<usize>,
    factor: f32,
}

/// The sum of a column. Kernels compute sigmoids of twice their argument, so those sums are halved,
/// which is exact. A GRU's candidate has two sums, because reset gates one of them alone.
fn gate_of(cell: Cell, gate: usize) -> Gate {
    let (below, own) = match (cell, gate) {
        (Cell::Gru, 2) => (Some(2), None),
        (Cell::Gru, 3) => (None, Some(2)),
        _ => (Some(gate), Some(gate)),
    };
    let sigmoid = if cell == Cell::Gru { gate < 2 } else { gate != 2 };
    Gate { below, own, factor: if sigmoid { 0.5 } else { 1.0 } }
}

impl RnnBatch {
    /// `None` where these kernels do not serve the op.
    pub(crate) fn load(
        op: &RnnStack,
        outputs: &[ValueId],
        packer: &mut Packer<'_>,
    ) -> Result<Option<RnnBatch>, DeviceError> {
        let gpu = packer.gpu();
        let precision = packer.precision();
        let format = Format::of(precision);
        let own = matches!(op.cell, Cell::Lstm | Cell::Gru) && op.projection.is_none();
        let Some(first) = op.layers.first().and_then(|layer| layer.first()) else {
            return Ok(None);
        };
        if !own || !gpu.is_hopper() || !gpu.cooperative {
            return Ok(None);
        }
        let inputs = packer.shape(first.w_ih).last().copied().unwrap_or(0);
        let mut launches = Vec::new();
        for lanes in lanes_of_launches(op) {
            let of_layer = |&(layer, _): &(usize, usize)| {
                let own = if layer == 0 { inputs } else { op.hidden };
                let parts = if layer == 0 { 1 } else { op.directions() };
                parts * format.strips_of(own)
            };
            let widest = lanes.iter().map(of_layer).max().unwrap_or(0);
            let Some(tiling) = Tiling::new(format, op.hidden, lanes.len(), widest, gpu) else {
                return Ok(None);
            };
            let packed = lanes.iter().map(|&(layer, direction)| {
                let weights = &op.layers[layer][direction];
                let parts = if layer == 0 { 1 } else { op.directions() };
                let (w, bias) = pack(packer, op, weights, parts, tiling)?;
                Ok(PackedLane { layer, direction, w, bias })
            });
            let lanes = packed.collect::<Result<Vec<_>, DeviceError>>()?;
            launches.push(Group { lanes, tiling });
        }
        let outputs = outputs.to_vec();
        Ok(Some(RnnBatch { op: op.clone(), outputs, inputs, format, launches }))
    }
}

/// Lanes of each launch: layers of one direction overlap as a wavefront; a layer of two directions
/// needs all of the layer below, and one that ends early leaves the device to the other.
fn lanes_of_launches(op: &RnnStack) -> Vec<Vec<(usize, usize)>> {
    let layers = op.layers.len();
    if op.directions() == 1 {
        let all: Vec<(usize, usize)> = (0..layers).map(|layer| (layer, 0)).collect();
        return all.chunks(LANES).map(<[_]>::to_vec).collect();
    }
    let mut launches: Vec<_> = (0..layers).map(|layer| vec![(layer, 0), (layer, 1)]).collect();
    if op.keep != Keep::All && !wants_finals(op) {
        launches.pop();
        launches.extend([vec![(layers - 1, 0)], vec![(layers - 1, 1)]]);
    }
    launches
}

/// Whether final states are wanted by anybody.
fn wants_finals(op: &RnnStack) -> bool {
    op.finals || op.states.as_ref().is_some_and(|states| states.write)
}

/// Weights of a lane, `[slice][strip][columns][16 bytes]`, and biases, `[slice][columns]` f32.
fn pack(
    packer: &mut Packer<'_>,
    op: &RnnStack,
    weights: &RnnWeights,
    parts: usize,
    tiling: Tiling,
) -> Result<(u64, u64), DeviceError> {
    let (_, names) = WIDTHS[tiling.width];
    let (hidden, cell) = (op.hidden, op.cell);
    let precision = packer.precision();
    let format = Format::of(precision);
    let inputs = packer.shape(weights.w_ih).last().copied().unwrap_or(0);
    let of_part = inputs / parts;
    let columns = tiling.columns;
    let bytes_of = |elements: usize| format.strips_of(elements) * columns * 16;
    let of_slice = parts * bytes_of(of_part) + bytes_of(hidden);
    let ids = [Some(weights.w_ih), Some(weights.w_hh)];
    let w = packer.packed(names[parts - 1], &ids, |packer| {
        let (w_ih, w_hh) = (packer.read(weights.w_ih)?, packer.read(weights.w_hh)?);
        let mut bytes = vec![0; tiling.slices * of_slice];
        for (slice, bytes) in bytes.chunks_exact_mut(of_slice).enumerate() {
            let (below, own) = bytes.split_at_mut(parts * bytes_of(of_part));
            for c in 0..columns {
                let (unit, gate) = column(columns, c);
                let unit = slice * tiling.units() + unit;
                if unit >= hidden {
                    continue;
                }
                let Gate { below: of_x, own: of_h, factor: halved } = gate_of(cell, gate);
                if let Some(gate) = of_x {
                    let row = &w_ih[(gate * hidden + unit) * inputs..][..inputs];
                    let (level, factor) = levels(row, precision);
                    for (k, level) in level.into_iter().enumerate() {
                        let part = &mut below[k / of_part * bytes_of(of_part)..];
                        format.put(part, columns, c, k % of_part, halved * factor * level);
                    }
                }
                if let Some(gate) = of_h {
                    let row = &w_hh[(gate * hidden + unit) * hidden..][..hidden];
                    let (level, factor) = levels(row, precision);
                    for (k, level) in level.into_iter().enumerate() {
                        format.put(own, columns, c, k, halved * factor * level);
                    }
                }
            }
        }
        Ok(bytes)
    })?;
    let ids = [weights.b_ih, weights.b_hh, Some(weights.w_hh)];
    let bias = packer.packed(names[2], &ids, |packer| {
        let read = |id: Option<WeightId>| {
            id.map_or_else(|| Ok(vec![0.0; cell.gates() * hidden]), |id| packer.read(id))
        };
        let (b_ih, b_hh) = (read(weights.b_ih)?, read(weights.b_hh)?);
        let of_column = |i: usize| {
            let (unit, gate) = column(columns, i % columns);
            let unit = i / columns * tiling.units() + unit;
            let gate = gate_of(cell, gate);
            let of = |biases: &[f32], gate: Option<usize>| match gate {
                Some(gate) if unit < hidden => biases[gate * hidden + unit],
                _ => 0.0,
            };
            gate.factor * (of(&b_ih, gate.below) + of(&b_hh, gate.own))
        };
        Ok((0..tiling.slices * columns).flat_map(|i| of_column(i).to_le_bytes()).collect())
    })?;
    Ok((w, bias))
}

/// `Lane` of `ptx/rnn_batch.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Lane {
    w: u64,
    bias: u64,
    inputs: [u64; 2],
    h: u64,
    c: u64,
    y: u64,
    end_h: [u64; 2],
    end_c: [u64; 2],
    in_strips: [u32; 2],
    in_depth: [u32; 2],
    in_first: [u32; 2],
    in_reverse: [u32; 2],
    in_lane: [i32; 2],
    h_strips: u32,
    h_depth: u32,
    reader: i32,
    reverse: u32,
    steps: u32,
    offset: u32,
    initial: u32,
    reserved: u32,
}

/// `BatchArguments` of `ptx/rnn_batch.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct BatchArguments {
    lanes: [Lane; LANES],
    done: u64,
    lane_count: u32,
    slices: u32,
    blocks: u32,
    tiles: u32,
    batch: u32,
    time: u32,
    hidden: u32,
    y_steps: u32,
    y_width: u32,
    state_stride: u32,
    stages_a: u32,
    stages_b: u32,
    ordered: u32,
    gru: u32,
}

// SAFETY: `#[repr(C)]`; a `Lane` is 11 fields of 8 bytes and 18 of 4, then come one of 8 and 14 of
// 4, so nothing is padded; the fields are those of the structs in `ptx/rnn_batch.cuh`.
unsafe impl Arguments for BatchArguments {}

/// `PrepareArguments` of `ptx/rnn_batch.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct PrepareArguments {
    x: u64,
    tiled: u64,
    batch: u32,
    time: u32,
    width: u32,
    strips: u32,
    tiles: u32,
    reserved: u32,
}

// SAFETY: `#[repr(C)]`; 2 fields of 8 bytes, then 6 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/rnn_batch.cuh`.
unsafe impl Arguments for PrepareArguments {}

/// `StatesArguments` of `ptx/rnn_batch.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct StatesArguments {
    from_h: u64,
    from_c: u64,
    header: u64,
    h: u64,
    c: u64,
    batch: u32,
    hidden: u32,
    tiles: u32,
    slices: u32,
    groups: u32,
    strips: u32,
    stride: u32,
    slots: u32,
    row: u32,
    reserved: u32,
}

// SAFETY: `#[repr(C)]`; 5 fields of 8 bytes, then 10 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/rnn_batch.cuh`.
unsafe impl Arguments for StatesArguments {}

/// `ZeroArguments` of `ptx/rnn_batch.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct ZeroArguments {
    to: u64,
    words: u64,
}

// SAFETY: `#[repr(C)]`; 2 fields of 8 bytes, those of the struct in `ptx/rnn_batch.cuh`.
unsafe impl Arguments for ZeroArguments {}

/// Rows of a bucket on their way through the stack.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    first: usize,
    rows: usize,
    tiles: usize,
    time: usize,
    kept: usize,
}

/// Where a lane's sequence and cells are.
#[derive(Clone, Copy, Debug, Default)]
struct LaneRoom {
    h: u64,
    depth: usize,
    c: u64,
}

/// Memory of a chunk, lanes in the order of the launches.
#[derive(Debug)]
struct Room {
    x: u64,
    lanes: Vec<Vec<LaneRoom>>,
    /// Of each launch.
    counters: Vec<u64>,
    /// What must be zero before: counters, and sequences with columns that no unit writes.
    zero: (u64, usize),
}

impl RnnBatch {
    /// Appends the launches.
    pub(crate) fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.op.x);
        let (batch, time) = (shape[0], shape[1]);
        if batch == 0 || time == 0 {
            return Ok(());
        }
        let kept = match self.op.keep {
            Keep::All => time,
            Keep::Last(n) => n,
        };
        let of_tile = self.tile_bytes(time).max(1);
        // Pairs of tiles, because both warpgroups of a block need as many tasks.
        let most = (SCRATCH_BYTES_MAX / of_tile / 2 * 2).max(2) * ROWS;
        let tiles = |rows: usize| rows.div_ceil(ROWS).next_multiple_of(2);
        let room = self.room(build, tiles(most.min(batch)), time);
        for first in (0..batch).step_by(most) {
            let rows = most.min(batch - first);
            let chunk = Chunk { first, rows, tiles: tiles(rows), time, kept };
            self.chunk(build, chunk, &room);
        }
        Ok(())
    }

    /// Slots of a lane's sequence: all steps where a later launch reads it.
    fn depth(&self, group: usize, lane: usize, time: usize) -> usize {
        let lanes = &self.launches[group].lanes;
        if lanes[lane].layer + 1 == self.op.layers.len() {
            2
        } else if self.op.directions() == 1 && lane + 1 < lanes.len() {
            DEPTH.min(time + 1)
        } else {
            time + 1
        }
    }

    /// Scratch bytes of a tile.
    fn tile_bytes(&self, time: usize) -> usize {
        let mut bytes = time * self.format.strips_of(self.inputs) * STRIP_BYTES;
        for (g, group) in self.launches.iter().enumerate() {
            for lane in 0..group.lanes.len() {
                bytes +=
                    self.depth(g, lane, time) * self.format.strips_of(self.op.hidden) * STRIP_BYTES;
                bytes += group.tiling.slices * group.tiling.columns * ROWS;
            }
        }
        bytes
    }

    fn room(&self, build: &mut Build<'_>, tiles: usize, time: usize) -> Room {
        let strips = self.format.strips_of(self.op.hidden);
        let x = build.scratch(time * tiles * self.format.strips_of(self.inputs) * STRIP_BYTES);
        let mut counters = Vec::new();
        let mut zero = (0, 0);
        let mut zeroed = |build: &mut Build<'_>, bytes: usize| {
            let bytes = bytes.next_multiple_of(256);
            let at = build.scratch(bytes);
            if zero.1 == 0 {
                zero.0 = at;
            }
            zero.1 += bytes;
            at
        };
        for group in &self.launches {
            counters.push(zeroed(build, 4 * group.lanes.len() * tiles));
        }
        let mut lanes = Vec::new();
        for (g, group) in self.launches.iter().enumerate() {
            let padded =
                group.tiling.slices * group.tiling.units() < strips / 2 * self.format.columns();
            let of_lane = |lane: usize| {
                let depth = self.depth(g, lane, time);
                let bytes = depth * tiles * strips * STRIP_BYTES;
                let h = if padded { zeroed(build, bytes) } else { 0 };
                LaneRoom { h, depth, c: 0 }
            };
            lanes.push((0..group.lanes.len()).map(of_lane).collect::<Vec<_>>());
        }
        // Behind what must be zero, which is one piece.
        for (group, rooms) in self.launches.iter().zip(&mut lanes) {
            for room in rooms {
                if room.h == 0 {
                    room.h = build.scratch(room.depth * tiles * strips * STRIP_BYTES);
                }
                let cells = group.tiling.slices * group.tiling.units() * ROWS;
                room.c = build.scratch(4 * tiles * cells);
            }
        }
        Room { x, lanes, counters, zero }
    }

    fn chunk(&self, build: &mut Build<'_>, chunk: Chunk, room: &Room) {
        let of_rows = |elements: usize| 4 * (chunk.first * elements) as u64;
        let words = (room.zero.1 / 16) as u64;
        let blocks = (words.div_ceil(256) as u32).clamp(1, 8 * build.gpu().multiprocessors);
        let zero = ZeroArguments { to: room.zero.0, words };
        self.launch(build, "batch_zero".into(), [blocks, 1, 1], [256, 1, 1], zero);
        let tiled = PrepareArguments {
            x: build.value(self.op.x) + of_rows(chunk.time * self.inputs),
            tiled: room.x,
            batch: chunk.rows as u32,
            time: chunk.time as u32,
            width: self.inputs as u32,
            strips: self.format.strips_of(self.inputs) as u32,
            tiles: chunk.tiles as u32,
            reserved: 0,
        };
        let grid = [(chunk.time * chunk.tiles) as u32, 1, 1];
        let function = format!("batch_tile_{}", self.format.name());
        self.launch(build, function, grid, [256, 1, 1], tiled);
        for (g, group) in self.launches.iter().enumerate() {
            if self.op.initial != Initial::Zero {
                for lane in 0..group.lanes.len() {
                    self.initial(build, chunk, room, g, lane);
                }
            }
            self.group(build, chunk, room, g);
        }
    }

    fn launch<A: Arguments>(
        &self,
        build: &mut Build<'_>,
        function: String,
        grid: [u32; 3],
        block: [u32; 3],
        arguments: A,
    ) {
        let counter = format!("rnn_stack-batch-{}", build.precision().name());
        build.launch(Launch::new(self.format.module(), function, counter, grid, block, arguments));
    }

    /// Elements from the first of a row's states to the next row's, and those before a lane's.
    fn state_place(&self, lane: &PackedLane) -> (usize, usize) {
        let (hidden, directions) = (self.op.hidden, self.op.directions());
        let before = (lane.layer * directions + lane.direction) * hidden;
        (self.op.layers.len() * directions * hidden, before)
    }

    fn initial(&self, build: &mut Build<'_>, chunk: Chunk, room: &Room, g: usize, lane: usize) {
        let (group, place) = (&self.launches[g], room.lanes[g][lane]);
        let (stride, before) = self.state_place(&group.lanes[lane]);
        let rows = 4 * (chunk.first * stride) as u64;
        let from = |state: usize| match (&self.op.initial, &self.op.states) {
            (Initial::Values(values), _) => build.value(values[state]) + 4 * before as u64 + rows,
            (Initial::Slots, Some(states)) => build.state(states.slots[state]) + 4 * before as u64,
            _ => 0,
        };
        let arguments = StatesArguments {
            from_h: from(0),
            // A GRU's exact `h` is where an LSTM's cell is.
            from_c: if self.op.cell == Cell::Gru { from(0) } else { from(1) },
            header: build.header(),
            h: place.h,
            c: place.c,
            batch: chunk.rows as u32,
            hidden: self.op.hidden as u32,
            tiles: chunk.tiles as u32,
            slices: group.tiling.slices as u32,
            groups: (group.tiling.columns / 16) as u32,
            strips: self.format.strips_of(self.op.hidden) as u32,
            stride: stride as u32,
            slots: u32::from(self.op.initial == Initial::Slots),
            row: chunk.first as u32,
            reserved: 0,
        };
        let cells = chunk.tiles * ROWS * group.tiling.slices * group.tiling.units();
        let grid = [cells.div_ceil(256) as u32, 1, 1];
        let function = format!("batch_states_{}", self.format.name());
        self.launch(build, function, grid, [256, 1, 1], arguments);
    }

    fn lane(&self, build: &Build<'_>, chunk: Chunk, room: &Room, g: usize, lane: usize) -> Lane {
        let op = &self.op;
        let own = &self.launches[g].lanes[lane];
        let (hidden, directions) = (op.hidden, op.directions());
        let place = room.lanes[g][lane];
        let top = own.layer + 1 == op.layers.len();
        let early = own.direction == 1 && top && !wants_finals(op);
        let mut to = Lane {
            w: own.w,
            bias: own.bias,
            h: place.h,
            c: place.c,
            in_depth: [1; 2],
            in_lane: [-1; 2],
            h_strips: self.format.strips_of(hidden) as u32,
            h_depth: place.depth as u32,
            reader: -1,
            reverse: own.direction as u32,
            steps: if early { chunk.kept } else { chunk.time } as u32,
            offset: if directions == 1 { lane as u32 } else { 0 },
            initial: u32::from(op.initial != Initial::Zero),
            ..Lane::default()
        };
        if own.layer == 0 {
            to.inputs[0] = room.x;
            to.in_strips[0] = self.format.strips_of(self.inputs) as u32;
            to.in_depth[0] = chunk.time as u32;
        } else {
            for d in 0..directions {
                let (from_group, from_lane) = self.place_of(own.layer - 1, d);
                let below = room.lanes[from_group][from_lane];
                to.inputs[d] = below.h;
                to.in_strips[d] = self.format.strips_of(hidden) as u32;
                to.in_depth[d] = below.depth as u32;
                to.in_first[d] = 1;
                to.in_reverse[d] = d as u32;
                if from_group == g {
                    to.in_lane[d] = from_lane as i32;
                }
            }
        }
        if directions == 1 && lane + 1 < self.launches[g].lanes.len() {
            to.reader = lane as i32 + 1;
        }
        if top {
            let before = chunk.first * chunk.kept * directions + own.direction;
            to.y = build.value(self.outputs[0]) + 4 * (before * hidden) as u64;
        }
        let (stride, before) = self.state_place(own);
        let row = 4 * (chunk.first * stride + before) as u64;
        if op.finals {
            to.end_h[0] = build.value(self.outputs[1]) + row;
            if op.cell == Cell::Lstm {
                to.end_c[0] = build.value(self.outputs[2]) + row;
            }
        }
        if let Some(states) = op.states.as_ref().filter(|states| states.write) {
            to.end_h[1] = build.new_state(states.slots[0]) + row;
            if op.cell == Cell::Lstm {
                to.end_c[1] = build.new_state(states.slots[1]) + row;
            }
        }
        to
    }

    /// Launch and lane of a direction of a layer.
    fn place_of(&self, layer: usize, direction: usize) -> (usize, usize) {
        let is = |lane: &PackedLane| (lane.layer, lane.direction) == (layer, direction);
        let mut groups = self.launches.iter().enumerate();
        groups
            .find_map(|(g, group)| group.lanes.iter().position(is).map(|lane| (g, lane)))
            .unwrap_or_default()
    }

    fn group(&self, build: &mut Build<'_>, chunk: Chunk, room: &Room, g: usize) {
        let group = &self.launches[g];
        let tiling = group.tiling;
        let mut lanes = [Lane::default(); LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(group.lanes.len()) {
            *lane = self.lane(build, chunk, room, g, i);
        }
        let units = build.gpu().multiprocessors as usize;
        let count = group.lanes.len() * tiling.slices;
        // Of a slice of a lane; no more than there are pairs of tiles.
        let blocks = (units / count.max(1)).min(chunk.tiles.div_ceil(2));
        let stage_b = if tiling.stays { 0 } else { CHUNK * tiling.columns * 16 };
        let kept_b = if tiling.stays { tiling.strips * tiling.columns * 16 } else { 0 };
        let shared = kept_b + tiling.stages * (2 * STAGE_BYTES + stage_b);
        let arguments = BatchArguments {
            lanes,
            done: room.counters[g],
            lane_count: group.lanes.len() as u32,
            slices: tiling.slices as u32,
            blocks: if tiling.stays { blocks as u32 } else { 0 },
            tiles: chunk.tiles as u32,
            batch: chunk.rows as u32,
            time: chunk.time as u32,
            hidden: self.op.hidden as u32,
            y_steps: chunk.kept as u32,
            y_width: (self.op.directions() * self.op.hidden) as u32,
            state_stride: self.state_place(&group.lanes[0]).0 as u32,
            stages_a: tiling.stages as u32,
            stages_b: if tiling.stays { tiling.strips } else { tiling.stages } as u32,
            ordered: u32::from(tiling.stays && tiling.products <= ORDERED_CYCLES_MAX),
            gru: u32::from(self.op.cell == Cell::Gru),
        };
        let grid = if tiling.stays { blocks * count } else { units.min(count * chunk.tiles / 2) };
        let launch = Launch::new(
            self.format.module(),
            format!("batch_{}_{}", self.format.name(), tiling.columns),
            format!("rnn_stack-batch-{}", build.precision().name()),
            [grid as u32, 1, 1],
            [THREADS, 1, 1],
            arguments,
        );
        build.launch(launch.shared(shared as u32).cooperative());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_has_its_four_gates_once() {
        for (columns, _) in WIDTHS {
            let mut seen = vec![false; columns];
            for c in 0..columns {
                let (unit, gate) = column(columns, c);
                assert!(unit < columns / 4 && gate < 4);
                assert!(!std::mem::replace(&mut seen[unit * 4 + gate], true));
            }
        }
    }
}
