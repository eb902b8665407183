//! `rnn_stack`: recurrent layers of every cell, from zeros, values or slots.
//!
//! The input products of all steps are one matrix product a layer and direction; what recurs is
//! left to `ptx/rnn_stack.cu`: a kernel that walks all steps, or, for wide layers, a product and an
//! elementwise kernel a step. Most cells have faster ways that are tried first:
//! [`super::rnn_latency`], [`super::rnn_wide`] and [`super::rnn_batch`].

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::{KernelClass, Precision};
use neural_forecast_runtime::ops::{Activation, Cell, Initial, Keep, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::{ValueId, WeightId};

use super::gemm::{Element, Gemm, Matrix, Product, Weights, pack_weights};
use super::rnn_batch::RnnBatch;
use super::rnn_latency::RnnLatency;
use super::rnn_wide::RnnWide;
use super::{Build, Loaded, Packer};
use crate::launch::{Arguments, Launch};

/// Widest layer whose recurrent weights every block reads for itself. Beyond it a step is a product
/// of its own. Estimated: for few rows, at 256 units a block needs about 10 µs a step from L2, and
/// two launches about 4; for 4,096 rows of 128 units two launches need about 12 µs a step, of which
/// a product on tensor cores is a small part, and f32 FMAs alone 7 at their peak.
fn walked_hidden_max(class: KernelClass) -> usize {
    match class {
        KernelClass::Latency => 256,
        KernelClass::Throughput => 64,
    }
}

/// Bytes of input products of a chunk of rows.
const GATE_BYTES_MAX: usize = 512 << 20;

/// Rows of a block where there are many.
const BLOCK_ROWS: usize = 8;

/// Threads of a block of an elementwise kernel.
const THREADS: u32 = 256;

/// A stack with its weights on the device.
#[derive(Debug)]
pub(crate) struct LoadedRnn {
    op: RnnStack,
    outputs: Vec<ValueId>,
    /// Width of `x`.
    inputs: usize,
    layers: Vec<Vec<Packed>>,
    batch: Option<RnnBatch>,
    latency: Option<RnnLatency>,
    wide: Option<RnnWide>,
}

/// Weights of one direction of a layer.
#[derive(Debug)]
struct Packed {
    w_ih: Weights,
    b_ih: u64,
    b_hh: u64,
    /// For a kernel that walks all steps.
    rows: Option<RowsWeights>,
    /// For a product a step: of `h`, and of the projection.
    steps: Option<(Weights, Option<Weights>)>,
}

/// `[K, D, gates]` and `[D, P]`, two or four bytes each, with factors of the outputs.
#[derive(Debug)]
struct RowsWeights {
    w_hh: u64,
    scale: u64,
    w_hr: u64,
    scale_hr: u64,
}

impl LoadedRnn {
    pub(crate) fn load(
        op: &RnnStack,
        outputs: &[ValueId],
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let mut layers = Vec::new();
        for layer in &op.layers {
            let packed = layer.iter().map(|weights| Packed::load(op, weights, packer));
            layers.push(packed.collect::<Result<Vec<_>, _>>()?);
        }
        let inputs = match (op.cell, op.layers.first().and_then(|layer| layer.first())) {
            (Cell::Slstm { .. }, _) | (_, None) => op.hidden,
            (_, Some(first)) => packer.shape(first.w_ih).last().copied().unwrap_or(0),
        };
        let latency = RnnLatency::load(op, outputs, packer)?;
        let wide = match latency {
            Some(_) => None,
            None => RnnWide::load(op, outputs, packer)?,
        };
        Ok(LoadedRnn {
            op: op.clone(),
            outputs: outputs.to_vec(),
            inputs,
            layers,
            batch: RnnBatch::load(op, outputs, packer)?,
            latency,
            wide,
        })
    }
}

impl Packed {
    fn load(
        op: &RnnStack,
        weights: &RnnWeights,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let classes = [KernelClass::Latency, KernelClass::Throughput];
        let walks = classes.map(|class| op.hidden <= walked_hidden_max(class));
        let rows = match walks.contains(&true) {
            true => Some(RowsWeights::load(op, weights, packer)?),
            false => None,
        };
        let steps = match (walks.contains(&false), weights.w_hr) {
            (false, _) => None,
            (true, None) => Some((pack_weights(packer, &[Some(weights.w_hh)])?, None)),
            (true, Some(w_hr)) => {
                let w_hh = pack_weights(packer, &[Some(weights.w_hh)])?;
                Some((w_hh, Some(pack_weights(packer, &[Some(w_hr)])?)))
            }
        };
        Ok(Packed {
            w_ih: pack_weights(packer, &[Some(weights.w_ih)])?,
            b_ih: packer.optional(weights.b_ih)?,
            b_hh: packer.optional(weights.b_hh)?,
            rows,
            steps,
        })
    }
}

impl RowsWeights {
    fn load(
        op: &RnnStack,
        weights: &RnnWeights,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let gates = op.cell.gates();
        let w_hh = transposed(packer, weights.w_hh, gates, if gates == 1 { 1 } else { 4 })?;
        let w_hr = match weights.w_hr {
            Some(id) => transposed(packer, id, 1, 1)?,
            None => (0, 0),
        };
        Ok(RowsWeights { w_hh: w_hh.0, scale: w_hh.1, w_hr: w_hr.0, scale_hr: w_hr.1 })
    }
}

/// Weights `[gates · D, K]` as `[K, D, slots]`, `slots` at least `gates`, and the factors of the
/// outputs for 8-bit formats, whose levels are exact in f16.
fn transposed(
    packer: &mut Packer<'_>,
    id: WeightId,
    gates: usize,
    slots: usize,
) -> Result<(u64, u64), DeviceError> {
    let precision = packer.precision();
    let shape = packer.shape(id);
    let k = shape.last().copied().unwrap_or(1);
    let units = shape.iter().product::<usize>() / k.max(1) / gates;
    let layout = match (gates, slots) {
        (1, _) => "units by inputs",
        (3, _) => "three gates of units by inputs",
        _ => "four gates of units by inputs",
    };
    let address = packer.packed(layout, &[Some(id)], |packer| {
        let all = packer.read(id)?;
        let mut to = vec![0.0; k * units * slots];
        for (row, weights) in all.chunks_exact(k.max(1)).enumerate() {
            let (levels, _) = levels(weights, precision);
            for (i, level) in levels.into_iter().enumerate() {
                to[(i * units + row % units) * slots + row / units] = level;
            }
        }
        Ok(encode(&to, precision))
    })?;
    let scale = match precision {
        Precision::Int8 | Precision::Fp8 => packer.packed("scales", &[Some(id)], |packer| {
            let all = packer.read(id)?;
            let scales = all.chunks_exact(k.max(1)).map(|row| levels(row, precision).1);
            Ok(scales.flat_map(f32::to_le_bytes).collect())
        })?,
        _ => 0,
    };
    Ok((address, scale))
}

/// A row in an 8-bit format: levels and the factor that they are of. Other formats: the row and 1.
pub(super) fn levels(row: &[f32], precision: Precision) -> (Vec<f32>, f32) {
    let most = match precision {
        Precision::Int8 => 127.0,
        Precision::Fp8 => 448.0,
        _ => return (row.to_vec(), 1.0),
    };
    let largest = row.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let scale = if largest / most > 0.0 { largest / most } else { 1.0 };
    let level = |&x: &f32| match precision {
        Precision::Int8 => (x / scale).round_ties_even().clamp(-127.0, 127.0),
        _ => e4m3(x / scale),
    };
    (row.iter().map(level).collect(), scale)
}

/// The nearest number with four bits of exponent (bias 7) and three of mantissa, at most 448.
fn e4m3(x: f32) -> f32 {
    let magnitude = x.abs().min(448.0);
    // Neighbours are 2^(exponent − 3) apart, and 2^−9 below the least normal number 2^−6.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let step = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    ((magnitude / step).round_ties_even() * step).min(448.0).copysign(x)
}

/// Numbers in the format that kernels read weights of a precision in.
fn encode(numbers: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 | Precision::Tf32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Precision::Bf16 => {
            let half = |&x| half::bf16::from_f32(x).to_le_bytes();
            numbers.iter().flat_map(half).collect()
        }
        Precision::F16 | Precision::Int8 | Precision::Fp8 => {
            let half = |&x| half::f16::from_f32(x).to_le_bytes();
            numbers.iter().flat_map(half).collect()
        }
    }
}

/// `States` of `ptx/rnn_stack.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct States {
    from: [u64; 4],
    to: [[u64; 4]; 2],
    header: u64,
    stride: [u32; 4],
    slots: u32,
    row: u32,
}

/// `RowsArguments` of `ptx/rnn_stack.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct RowsArguments {
    states: States,
    gates: [u64; 2],
    w_hh: [u64; 2],
    b_hh: [u64; 2],
    scale: [u64; 2],
    w_hr: [u64; 2],
    scale_hr: [u64; 2],
    y: u64,
    gate_steps: [u32; 2],
    steps: [u32; 2],
    batch: u32,
    time: u32,
    hidden: u32,
    width: u32,
    inputs: u32,
    head: u32,
    y_steps: u32,
    y_width: u32,
    relu: u32,
    count: u32,
}

// SAFETY: `#[repr(C)]`; `States` is 13 fields of 8 bytes and 6 of 4, this struct goes on with 13 of
// 8 and 14 of 4, so nothing is padded; the fields are those of the struct in `ptx/rnn_stack.cu`.
unsafe impl Arguments for RowsArguments {}

/// `CellArguments` of `ptx/rnn_stack.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct CellArguments {
    states: States,
    gates: u64,
    sums: u64,
    state: [u64; 4],
    raw: u64,
    y: u64,
    gate_stride: u32,
    y_stride: u32,
    batch: u32,
    hidden: u32,
    width: u32,
    direction: u32,
    relu: u32,
    count: u32,
}

// SAFETY: `#[repr(C)]`; after `States` (128 bytes) 8 fields of 8 bytes and 8 of 4, so nothing is
// padded; the fields are those of the struct in `ptx/rnn_stack.cu`, in its order.
unsafe impl Arguments for CellArguments {}

/// Rows `first..first + rows` of a bucket on their way through the stack.
struct Chunk {
    first: usize,
    rows: usize,
    time: usize,
    /// Positions of the output.
    kept: usize,
    /// Steps whose input products are made at once.
    hoisted: usize,
}

/// Memory of a stack while it runs.
struct Room {
    /// Of each direction: input products.
    gates: [u64; 2],
    /// Outputs of a layer and of the next.
    sequences: [u64; 2],
    /// For steps: recurrent products, states of a direction, `h` before projection.
    sums: u64,
    state: [u64; 4],
    raw: u64,
}

impl Loaded for LoadedRnn {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        // Wide layers that no latency kernel takes: a launch for all steps rather than two a step.
        let unserved = self.latency.is_none() && self.wide.is_none() && !self.walks(build);
        if let Some(batch) = &self.batch
            && (build.class() == KernelClass::Throughput || unserved)
        {
            return batch.build(build);
        }
        if let Some(latency) = &self.latency
            && latency.build(build)?
        {
            return Ok(());
        }
        if let Some(wide) = &self.wide
            && wide.build(build)?
        {
            return Ok(());
        }
        let shape = build.shape(self.op.x);
        let (batch, time) = (shape[0], shape[1]);
        if batch == 0 || time == 0 {
            return Ok(());
        }
        let steps = self.hoisted(self.walks(build), batch, time);
        let of_row = 4 * steps * self.op.cell.gates() * self.op.hidden * self.op.directions();
        let most = if steps == time { (GATE_BYTES_MAX / of_row.max(1)).max(1) } else { batch };
        let most = most.min(batch);
        let room = self.room(build, most, time, steps);
        let kept = match self.op.keep {
            Keep::All => time,
            Keep::Last(n) => n,
        };
        for first in (0..batch).step_by(most) {
            let rows = most.min(batch - first);
            let chunk = Chunk { first, rows, time, kept, hoisted: steps };
            self.chunk(build, &chunk, &room)?;
        }
        Ok(())
    }
}

impl LoadedRnn {
    /// Whether a kernel walks all steps.
    fn walks(&self, build: &Build<'_>) -> bool {
        self.op.hidden <= walked_hidden_max(build.class())
    }

    /// Steps whose input products are made at once: all, or one where they would take too much.
    fn hoisted(&self, walks: bool, batch: usize, time: usize) -> usize {
        let bytes = 4 * batch * time * self.op.cell.gates() * self.op.hidden;
        let all = walks || bytes * self.op.directions() <= GATE_BYTES_MAX;
        if all { time } else { 1 }
    }

    fn room(&self, build: &mut Build<'_>, rows: usize, time: usize, steps: usize) -> Room {
        let op = &self.op;
        let (hidden, width, directions) = (op.hidden, op.width(), op.directions());
        let gates = op.cell.gates() * hidden;
        let mut room = Room { gates: [0; 2], sequences: [0; 2], sums: 0, state: [0; 4], raw: 0 };
        for gates_at in room.gates.iter_mut().take(directions) {
            *gates_at = build.scratch(4 * rows * steps * gates);
        }
        let between = op.layers.len().saturating_sub(1).min(2);
        for sequence in room.sequences.iter_mut().take(between) {
            *sequence = build.scratch(4 * rows * time * width * directions);
        }
        if !self.walks(build) {
            room.sums = build.scratch(4 * rows * gates);
            for (at, &kind) in room.state.iter_mut().zip(op.cell.states()) {
                *at = build.scratch(4 * rows * op.state_width(kind));
            }
            if op.projection.is_some() {
                room.raw = build.scratch(4 * rows * hidden);
            }
        }
        room
    }

    /// Whether final states are wanted by anybody.
    fn wants_finals(&self) -> bool {
        self.op.finals || self.op.states.as_ref().is_some_and(|states| states.write)
    }

    /// Steps that a direction of a layer walks, and positions whose input products it needs: what
    /// nobody keeps is not computed.
    fn steps(&self, layer: usize, direction: usize, chunk: &Chunk) -> (usize, usize) {
        let partial = direction == 1 && layer + 1 == self.op.layers.len() && !self.wants_finals();
        match chunk.kept {
            _ if !partial => (chunk.time, chunk.time),
            1 => (1, 1),
            kept => (kept, chunk.time),
        }
    }

    fn chunk(&self, build: &mut Build<'_>, chunk: &Chunk, room: &Room) -> Result<(), DeviceError> {
        let op = &self.op;
        let all_width = op.width() * op.directions();
        let mut x = build.value(op.x) + 4 * (chunk.first * chunk.time * self.inputs) as u64;
        for (l, layer) in self.layers.iter().enumerate() {
            let last = l + 1 == self.layers.len();
            let y = if last {
                build.value(self.outputs[0]) + 4 * (chunk.first * chunk.kept * all_width) as u64
            } else {
                room.sequences[l % 2]
            };
            let inputs = if l == 0 { self.inputs } else { all_width };
            if chunk.hoisted == chunk.time {
                for (d, packed) in layer.iter().enumerate() {
                    let (_, steps) = self.steps(l, d, chunk);
                    let from = x + 4 * ((chunk.time - steps) * inputs) as u64;
                    let (m, stride) = match steps {
                        1 => (chunk.rows, chunk.time * inputs),
                        _ => (chunk.rows * chunk.time, inputs),
                    };
                    self.products(build, packed, m, matrix(from, stride), room.gates[d])?;
                }
            }
            if self.walks(build) {
                self.walk(build, chunk, room, l, y);
            } else {
                self.step_by_step(build, chunk, room, l, (x, inputs), y)?;
            }
            x = y;
        }
        Ok(())
    }

    /// Input products of `m` vectors with `b_ih`, to `[m, gates · D]`.
    fn products(
        &self,
        build: &mut Build<'_>,
        packed: &Packed,
        m: usize,
        x: Matrix,
        to: u64,
    ) -> Result<(), DeviceError> {
        self.product(build, packed.w_ih, packed.b_ih, m, x, to)
    }

    /// `[m, gates · D]` from weights of all gates; head by head for an sLSTM.
    fn product(
        &self,
        build: &mut Build<'_>,
        w: Weights,
        bias: u64,
        m: usize,
        x: Matrix,
        to: u64,
    ) -> Result<(), DeviceError> {
        let (gates, hidden) = (self.op.cell.gates(), self.op.hidden);
        let whole = Gemm {
            m,
            x,
            w,
            bias,
            activation: Activation::Identity,
            residual: None,
            y: matrix(to, gates * hidden),
        };
        let Cell::Slstm { heads } = self.op.cell else {
            return whole.launch(build, "rnn_stack");
        };
        for gate in 0..gates {
            let rows = gate * hidden;
            let bias = if bias == 0 { 0 } else { bias + (rows * size_of::<f32>()) as u64 };
            let w = w.rows(rows, hidden);
            let y = matrix(to + 4 * rows as u64, gates * hidden);
            let gemm = Gemm { w, bias, y, ..whole };
            let heads = Product { outputs: hidden / heads, batches: heads, ..Product::new(gemm) };
            heads.launch(build, "rnn_stack")?;
        }
        Ok(())
    }

    /// Where the states of a layer come from and go to.
    fn states(&self, build: &Build<'_>, chunk: &Chunk, layer: usize) -> States {
        let op = &self.op;
        let rows = op.layers.len() * op.directions();
        let mut states = States {
            header: build.header(),
            slots: u32::from(op.initial == Initial::Slots),
            row: chunk.first as u32,
            ..States::default()
        };
        for (s, &kind) in op.cell.states().iter().enumerate() {
            let width = op.state_width(kind);
            let stride = rows * width;
            let own = 4 * (layer * op.directions() * width) as u64;
            let chunked = own + 4 * (chunk.first * stride) as u64;
            states.stride[s] = stride as u32;
            states.from[s] = match (&op.initial, &op.states) {
                (Initial::Values(values), _) => build.value(values[s]) + chunked,
                (Initial::Slots, Some(slots)) => build.state(slots.slots[s]) + own,
                _ => 0,
            };
            if op.finals {
                states.to[0][s] = build.value(self.outputs[1 + s]) + chunked;
            }
            if let Some(written) = op.states.as_ref().filter(|states| states.write) {
                states.to[1][s] = build.new_state(written.slots[s]) + chunked;
            }
        }
        states
    }

    fn cell_name(&self) -> &'static str {
        match self.op.cell {
            Cell::Lstm => "lstm",
            Cell::Gru => "gru",
            Cell::RnnTanh | Cell::RnnRelu => "rnn",
            Cell::Slstm { .. } => "slstm",
        }
    }

    /// A layer in one kernel.
    fn walk(&self, build: &mut Build<'_>, chunk: &Chunk, room: &Room, layer: usize, y: u64) {
        let op = &self.op;
        let (hidden, width, directions) = (op.hidden, op.width(), op.directions());
        let head = if let Cell::Slstm { heads } = op.cell { hidden / heads } else { 0 };
        let count = op.cell.states().len();
        let mut arguments = RowsArguments {
            states: self.states(build, chunk, layer),
            y,
            batch: chunk.rows as u32,
            time: chunk.time as u32,
            hidden: hidden as u32,
            width: width as u32,
            inputs: if head > 0 { head } else { width } as u32,
            head: head as u32,
            y_steps: if layer + 1 == op.layers.len() { chunk.kept } else { chunk.time } as u32,
            y_width: (width * directions) as u32,
            relu: u32::from(op.cell == Cell::RnnRelu),
            count: count as u32,
            ..RowsArguments::default()
        };
        for (d, packed) in self.layers[layer].iter().enumerate() {
            let Some(weights) = &packed.rows else { continue };
            let (steps, gate_steps) = self.steps(layer, d, chunk);
            arguments.steps[d] = steps as u32;
            arguments.gate_steps[d] = gate_steps as u32;
            arguments.gates[d] = room.gates[d];
            arguments.b_hh[d] = packed.b_hh;
            arguments.w_hh[d] = weights.w_hh;
            arguments.scale[d] = weights.scale;
            arguments.w_hr[d] = weights.w_hr;
            arguments.scale_hr[d] = weights.scale_hr;
        }
        let raw = if op.projection.is_some() { hidden } else { 0 };
        let of_row = 4 * (2 * width + (count - 1) * hidden + raw);
        // Few rows get a block each, so that all multiprocessors work; the bits are the same.
        let many = chunk.rows * directions > 2 * build.gpu().multiprocessors as usize;
        let fits = of_row * BLOCK_ROWS <= build.gpu().shared_bytes_max as usize;
        let rows = if many && fits { BLOCK_ROWS } else { 1 };
        let weights = match build.precision() {
            Precision::F32 | Precision::Tf32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 | Precision::Int8 | Precision::Fp8 => "f16",
        };
        let grid = [chunk.rows.div_ceil(rows) as u32, directions as u32, 1];
        let threads = hidden.next_multiple_of(32).min(512) as u32;
        let launch = Launch::new(
            "rnn_stack",
            format!("rows_{}_{weights}_{rows}", self.cell_name()),
            format!("rnn_stack-rows-{}", build.precision().name()),
            grid,
            [threads, 1, 1],
            arguments,
        );
        build.launch(launch.shared((of_row * rows) as u32));
    }

    /// A layer as a product and an elementwise kernel a step.
    fn step_by_step(
        &self,
        build: &mut Build<'_>,
        chunk: &Chunk,
        room: &Room,
        layer: usize,
        (x, inputs): (u64, usize),
        y: u64,
    ) -> Result<(), DeviceError> {
        let op = &self.op;
        let (hidden, width, directions) = (op.hidden, op.width(), op.directions());
        let gates = op.cell.gates() * hidden;
        let y_steps = if layer + 1 == op.layers.len() { chunk.kept } else { chunk.time };
        for (d, packed) in self.layers[layer].iter().enumerate() {
            let Some((w_hh, w_hr)) = &packed.steps else { continue };
            let (steps, gate_steps) = self.steps(layer, d, chunk);
            let gate_steps = if chunk.hoisted == chunk.time { gate_steps } else { 1 };
            let mut arguments = CellArguments {
                states: self.states(build, chunk, layer),
                sums: room.sums,
                state: room.state,
                raw: if w_hr.is_some() { room.raw } else { 0 },
                gate_stride: (gate_steps * gates) as u32,
                y_stride: (y_steps * width * directions) as u32,
                batch: chunk.rows as u32,
                hidden: hidden as u32,
                width: width as u32,
                direction: d as u32,
                relu: u32::from(op.cell == Cell::RnnRelu),
                count: op.cell.states().len() as u32,
                ..CellArguments::default()
            };
            self.elementwise(build, "begin", &arguments);
            for step in 0..steps {
                let t = if d == 0 { step } else { chunk.time - 1 - step };
                let mut position = t - (chunk.time - gate_steps).min(t);
                if chunk.hoisted != chunk.time {
                    position = 0;
                    let from = matrix(x + 4 * (t * inputs) as u64, chunk.time * inputs);
                    self.products(build, packed, chunk.rows, from, room.gates[d])?;
                }
                arguments.gates = room.gates[d] + 4 * (position * gates) as u64;
                arguments.y = match t.checked_sub(chunk.time - y_steps) {
                    Some(kept) => y + 4 * ((kept * directions + d) * width) as u64,
                    None => 0,
                };
                let h = matrix(room.state[0], width);
                self.product(build, *w_hh, packed.b_hh, chunk.rows, h, room.sums)?;
                self.elementwise(build, self.cell_name(), &arguments);
                if let Some(w_hr) = w_hr {
                    self.project(build, *w_hr, &arguments)?;
                }
            }
            if self.wants_finals() {
                self.elementwise(build, "end", &arguments);
            }
        }
        Ok(())
    }

    /// The projection after a step, into the state and the output.
    fn project(
        &self,
        build: &mut Build<'_>,
        w_hr: Weights,
        arguments: &CellArguments,
    ) -> Result<(), DeviceError> {
        let projection = Gemm {
            m: arguments.batch as usize,
            x: matrix(arguments.raw, self.op.hidden),
            w: w_hr,
            bias: 0,
            activation: Activation::Identity,
            residual: None,
            y: matrix(arguments.state[0], self.op.width()),
        };
        projection.launch(build, "rnn_stack")?;
        if arguments.y != 0 {
            self.elementwise(build, "keep", arguments);
        }
        Ok(())
    }

    /// One of the elementwise kernels `cell_*`.
    fn elementwise(&self, build: &mut Build<'_>, name: &str, arguments: &CellArguments) {
        let widest = (arguments.hidden.max(arguments.width) as usize) * arguments.batch as usize;
        let states = if matches!(name, "begin" | "end") { arguments.count } else { 1 };
        build.launch(Launch::new(
            "rnn_stack",
            format!("cell_{name}"),
            format!("rnn_stack-cell-{}", build.precision().name()),
            [widest.div_ceil(THREADS as usize) as u32, states, 1],
            [THREADS, 1, 1],
            *arguments,
        ));
    }
}

fn matrix(address: u64, stride: usize) -> Matrix {
    Matrix { address, element: Element::F32, stride }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_round_to_nearest() {
        assert_eq!(e4m3(1.0), 1.0);
        assert_eq!(e4m3(1.06), 1.0);
        assert_eq!(e4m3(1.07), 1.125);
        assert_eq!(e4m3(-500.0), -448.0);
        assert_eq!(e4m3(0.0009), 0.0);
        assert_eq!(e4m3(0.0011), 2.0_f32.powi(-9));
        let (levels, scale) = levels(&[1.0, -0.5, 0.0], Precision::Int8);
        assert_eq!(levels, [127.0, -64.0, 0.0]);
        assert_eq!(scale, 1.0 / 127.0);
    }
}
