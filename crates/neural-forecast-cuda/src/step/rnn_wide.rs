//! A wide recurrent stack for few rows, as soon as possible: recurrent weights stay in the
//! registers and the shared memory of the whole GPU, layers run as a wavefront.
//!
//! Translates [`RnnStack`] to `ptx/rnn_wide.cuh`, for [`super::rnn_stack`] and, with a head, for
//! [`super::rnn_whole`], where [`super::rnn_latency`] does not: widths whose recurrent weights
//! exceed a cluster. Takes neither sLSTM, nor projections, nor weights that exceed the GPU.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::{KernelClass, Precision};
use neural_forecast_runtime::ops::{Cell, Initial, Keep, RnnStack};
use neural_forecast_runtime::plan::{StateId, ValueId};

use super::rnn_latency::{
    COLUMNS, Ends, GROUP, Number, Packed, STEP_BYTES, Tiles, column_stride, padded_columns, pair,
};
use super::{Build, Packer};
use crate::gpu::Gpu;
use crate::launch::{Arguments, Launch};

/// `WIDE_LANES` of the kernels.
const LANES: usize = 8;
/// Warps that multiply W_hh, and W_ih.
const WARPS: usize = 8;
const INPUT_WARPS: usize = 4;
const THREADS: u32 = 32 * (WARPS + INPUT_WARPS) as u32;
/// K-steps of W_ih that a warp is brought at a time, their bytes, and most times ahead.
const STAGE_STEPS: usize = 4;
const STAGE_BYTES: usize = STAGE_STEPS * 1024;
const STAGE_SLOTS_MAX: usize = 4;
/// Shared memory of barriers, of scales and biases, and of chunks of input sums.
const FIXED_BYTES: usize = 256 + 1024 + 3 * 4096;
/// Bytes of a fragment of weights: the registers of a warp for one product.
const FRAGMENT_BYTES: usize = 512;
/// Blocks that bring the input.
const EXTRAS_MAX: usize = 4;

/// The kernels for a hidden width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instance {
    /// Groups of units of a block.
    groups: usize,
    /// K-steps of a warp.
    k_steps: usize,
    /// Fragments of W_hh that a warp keeps in registers, for one column and for more.
    registers: [usize; 2],
}

impl Instance {
    /// The kernels of `ptx/rnn_wide_hopper.cu` whose warps hold so many k-steps.
    fn choose(number: Number, k_steps: usize) -> Option<Instance> {
        let instance = |groups, k_steps, registers| Instance { groups, k_steps, registers };
        let all: &[Instance] = match number.name {
            "f16" | "bf16" => &[instance(4, 8, [36, 40]), instance(2, 16, [32, 40])],
            "tf32" => &[instance(2, 16, [32, 40])],
            _ => &[instance(2, 16, [32, 36])],
        };
        all.iter().copied().find(|found| found.k_steps * WARPS >= k_steps)
    }

    /// Bytes of shared memory, without stages of W_ih, where inputs have so many k-steps.
    fn shared(&self, columns: usize, k_steps: usize) -> usize {
        let registers = self.registers[usize::from(columns > 1)];
        let kept = 2 * self.groups * self.k_steps - registers;
        let partial = 2 * WARPS * columns * 32 * 16;
        FIXED_BYTES + WARPS * kept * FRAGMENT_BYTES + partial + COLUMNS * column_stride(k_steps)
    }

    /// Most rows of a pass for which shared memory suffices, whatever their number up to that.
    fn rows(&self, gpu: &Gpu, k_steps: usize) -> Option<usize> {
        let fits = |columns| self.slots(gpu, columns, k_steps) > 0;
        [COLUMNS, 4, 2, 1].into_iter().find(|&rows| fits(rows) && fits(1))
    }

    /// Stages of W_ih that fit beside that.
    fn slots(&self, gpu: &Gpu, columns: usize, k_steps: usize) -> usize {
        let left = (gpu.shared_bytes_max as usize).saturating_sub(self.shared(columns, k_steps));
        (left / (INPUT_WARPS * STAGE_BYTES)).min(STAGE_SLOTS_MAX)
    }
}

/// A stack with its weights on the device.
#[derive(Debug)]
pub(crate) struct RnnWide {
    op: RnnStack,
    outputs: Vec<ValueId>,
    /// Width of `x`.
    features: usize,
    number: Number,
    precision: Precision,
    instance: Instance,
    /// Blocks of a lane, lanes of a launch, and rows of a pass.
    slices: usize,
    at_once: usize,
    rows: usize,
    /// Directions of layers, lowest layers first.
    lanes: Vec<Packed>,
}

/// `WideLane` of `ptx/rnn_wide.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Lane {
    w_ih: u64,
    affine_ih: u64,
    w_hh: u64,
    affine_hh: u64,
    source: [u64; 2],
    hidden: u64,
    last: u64,
    steps: u32,
    reverse: u32,
    k_steps: u32,
    words: u32,
    row: u32,
    side: u32,
    top: u32,
    reserved: u32,
}

/// `RnnWide` of `ptx/rnn_wide.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Parameters {
    header: u64,
    x: u64,
    staged: u64,
    y: u64,
    initial: [u64; 2],
    finals: [u64; 2],
    new_states: [u64; 2],
    head_weights: u64,
    head_bias: u64,
    out: u64,
    flag: u64,
    last: u64,
    epoch: u64,
    clocks: u64,
    batch: u32,
    steps: u32,
    features: u32,
    hidden: u32,
    groups: u32,
    columns: u32,
    first_row: u32,
    cell: u32,
    kept: u32,
    directions: u32,
    state_rows: u32,
    start: u32,
    outputs: u32,
    lanes: u32,
    slices: u32,
    extras: u32,
    stages: u32,
    words: u32,
    ends: u32,
    stage_slots: u32,
    lane: [Lane; LANES],
}

// SAFETY: `#[repr(C)]`; a `Lane` is 8 fields of 8 bytes and 8 of 4, this struct 17 of 8, 20 of 4
// and 8 lanes, so nothing is padded; the fields are those of `ptx/rnn_wide.cuh`.
unsafe impl Arguments for Parameters {}

/// Words of a column of the input: pairs of them are read, and whole k-steps need not be.
fn input_words(number: Number, features: usize) -> usize {
    number.words(features).next_multiple_of(4)
}

impl RnnWide {
    /// Packs the weights of a stack that these kernels take.
    pub(crate) fn load(
        op: &RnnStack,
        outputs: &[ValueId],
        packer: &mut Packer<'_>,
    ) -> Result<Option<Self>, DeviceError> {
        let gpu = packer.gpu();
        let precision = packer.precision();
        let number = Number::of(precision);
        let taken = !matches!(op.cell, Cell::Slstm { .. }) && op.projection.is_none();
        let Some(first) = op.layers.first().and_then(|layer| layer.first()) else {
            return Ok(None);
        };
        let features = packer.shape(first.w_ih).last().copied().unwrap_or(0);
        if !taken || features == 0 || !gpu.is_hopper() || !gpu.cooperative {
            return Ok(None);
        }
        let groups = op.hidden.div_ceil(GROUP);
        let Some(instance) = Instance::choose(number, number.k_steps(groups * GROUP)) else {
            return Ok(None);
        };
        let k_steps = |layer: usize| {
            let words = match layer {
                0 => input_words(number, features),
                _ => op.directions() * number.words(groups * GROUP),
            };
            (words * 4).div_ceil(STEP_BYTES).next_multiple_of(STAGE_STEPS)
        };
        let slices = groups.div_ceil(instance.groups);
        let beside = (gpu.multiprocessors as usize).saturating_sub(1);
        let at_once = (beside / slices).min(LANES).min(op.layers.len() * op.directions());
        let widest = (0..op.layers.len().min(2)).map(k_steps).max().unwrap_or(0);
        let Some(rows) = instance.rows(gpu, widest).filter(|_| at_once > 0) else {
            return Ok(None);
        };
        let tiles =
            Tiles { cell: op.cell, hidden: op.hidden, groups: slices * instance.groups, number };
        let own = padded_columns(1, op.hidden, groups);
        let mut lanes = Vec::new();
        for (l, layer) in op.layers.iter().enumerate() {
            let below = match l {
                0 => (0..features).map(Some).collect(),
                _ => padded_columns(op.directions(), op.hidden, groups),
            };
            for w in layer {
                lanes.push(Packed {
                    w_ih: tiles.pack(packer, w.w_ih, &below, k_steps(l))?,
                    affine_ih: tiles.affine(packer, w.w_ih, w.b_ih)?,
                    k_steps: k_steps(l),
                    w_hh: tiles.pack(packer, w.w_hh, &own, instance.k_steps * WARPS)?,
                    affine_hh: tiles.affine(packer, w.w_hh, w.b_hh)?,
                });
            }
        }
        Ok(Some(RnnWide {
            op: op.clone(),
            outputs: outputs.to_vec(),
            features,
            number,
            precision,
            instance,
            slices,
            at_once,
            rows,
            lanes,
        }))
    }

    /// Appends the launches, or none and `false` for another class.
    pub(crate) fn build(&self, build: &mut Build<'_>) -> Result<bool, DeviceError> {
        if build.class() != KernelClass::Latency {
            return Ok(false);
        }
        let ends = Ends {
            header: build.header(),
            x: build.value(self.op.x),
            y: build.value(self.outputs[0]),
            head: None,
        };
        self.launch(build, &ends, "rnn_stack");
        Ok(true)
    }

    /// Appends the launches of a stack between its ends: for a few rows after another, for as many
    /// lanes as the GPU holds at once.
    pub(crate) fn launch(&self, build: &mut Build<'_>, ends: &Ends, op: &str) {
        let shape = build.shape(self.op.x);
        let (batch, time) = (shape[0], shape[1]);
        if batch == 0 || time == 0 {
            return;
        }
        let columns = batch.min(self.rows);
        let k_steps = self.lanes.iter().map(|lane| lane.k_steps).max().unwrap_or(0);
        let slots = self.instance.slots(build.gpu(), columns, k_steps);
        let shared = self.instance.shared(columns, k_steps) + slots * INPUT_WARPS * STAGE_BYTES;
        let mut all = self.parameters(build, ends, (batch, time, columns));
        all.stage_slots = slots as u32;
        let lanes = self.lanes(build, &all);
        let beyond = build.gpu().multiprocessors as usize;
        for first in (0..batch).step_by(self.rows) {
            for (i, lanes) in lanes.chunks(self.at_once).enumerate() {
                let mut parameters = all;
                let blocks = lanes.len() * self.slices;
                let extras = (beyond - blocks).min(EXTRAS_MAX);
                parameters.lane[..lanes.len()].copy_from_slice(lanes);
                parameters.lanes = lanes.len() as u32;
                parameters.extras = extras as u32;
                parameters.first_row = first as u32;
                parameters.stages = u32::from(i == 0);
                parameters.ends = u32::from((i + 1) * self.at_once >= self.lanes.len());
                if first + self.rows < batch {
                    parameters.flag = 0;
                }
                let one = if columns == 1 { "_one" } else { "" };
                let (name, k_steps) = (self.number.name, self.instance.k_steps);
                let launch = Launch::new(
                    "rnn_wide_hopper",
                    format!("rnn_wide_{name}_{k_steps}{one}"),
                    format!("{op}-wide-{}", self.precision.name()),
                    [(blocks + extras) as u32, 1, 1],
                    [THREADS, 1, 1],
                    parameters,
                );
                build.launch(launch.shared(shared as u32).cooperative());
            }
        }
    }

    /// What all launches have in common.
    fn parameters(
        &self,
        build: &mut Build<'_>,
        ends: &Ends,
        (batch, time, columns): (usize, usize, usize),
    ) -> Parameters {
        let op = &self.op;
        let groups = op.hidden.div_ceil(GROUP);
        let words = input_words(self.number, self.features);
        let staged = build.persistent(time * columns * words * 8);
        let epoch = build.persistent(8);
        let last = match ends.head {
            Some(_) => build.persistent(op.directions() * columns * groups * GROUP * 8),
            None => 0,
        };
        let written = op.states.as_ref().filter(|states| states.write);
        let values = |ids: &[ValueId]| pair(ids.iter().map(|&id| build.value(id)));
        let states =
            |ids: &[StateId], of: &dyn Fn(StateId) -> u64| pair(ids.iter().map(|&id| of(id)));
        let (start, initial) = match (&op.initial, &op.states) {
            (Initial::Values(ids), _) => (1, values(ids)),
            (Initial::Slots, Some(s)) => (2, states(&s.slots, &|id| build.state(id))),
            _ => (0, [0; 2]),
        };
        let head = ends.head.unwrap_or_default();
        Parameters {
            header: ends.header,
            x: ends.x,
            staged,
            y: ends.y,
            initial,
            finals: if op.finals { values(&self.outputs[1..]) } else { [0; 2] },
            new_states: written.map_or([0; 2], |s| states(&s.slots, &|id| build.new_state(id))),
            head_weights: head.weights,
            head_bias: head.bias,
            out: head.y,
            flag: head.flag,
            last,
            epoch,
            batch: batch as u32,
            steps: time as u32,
            features: self.features as u32,
            hidden: op.hidden as u32,
            groups: groups as u32,
            columns: columns as u32,
            cell: match op.cell {
                Cell::Lstm | Cell::Slstm { .. } => 0,
                Cell::Gru => 1,
                Cell::RnnTanh => 2,
                Cell::RnnRelu => 3,
            },
            kept: match op.keep {
                Keep::All => time,
                Keep::Last(n) => n,
            } as u32,
            directions: op.directions() as u32,
            state_rows: self.lanes.len() as u32,
            start,
            outputs: head.outputs as u32,
            slices: self.slices as u32,
            words: words as u32,
            ..Parameters::default()
        }
    }

    /// The directions of layers, lowest layers first.
    fn lanes(&self, build: &mut Build<'_>, all: &Parameters) -> Vec<Lane> {
        let op = &self.op;
        let directions = op.directions();
        let h_words = self.number.words(op.hidden.div_ceil(GROUP) * GROUP);
        let units = op.hidden.div_ceil(GROUP) * GROUP;
        let (time, columns) = (all.steps as usize, all.columns as usize);
        let finals = op.finals || op.states.as_ref().is_some_and(|states| states.write);
        let mut lanes: Vec<Lane> = Vec::new();
        for (i, packed) in self.lanes.iter().enumerate() {
            let (layer, side) = (i / directions, i % directions);
            let top = layer + 1 == op.layers.len();
            // What nobody keeps is not computed.
            let early = top && side == 1 && !finals;
            let (mut source, mut words) = ([all.staged, 0], all.words);
            if layer > 0 {
                let below = &lanes[(layer - 1) * directions..layer * directions];
                source = pair(below.iter().map(|lane| lane.hidden));
                words = h_words as u32;
            }
            let last = match all.last {
                address if top && address > 0 => address + (side * columns * units * 8) as u64,
                _ => 0,
            };
            lanes.push(Lane {
                w_ih: packed.w_ih,
                affine_ih: packed.affine_ih,
                w_hh: packed.w_hh,
                affine_hh: packed.affine_hh,
                source,
                hidden: build.persistent(time * columns * h_words * 8),
                last,
                steps: if early { all.kept } else { all.steps },
                reverse: side as u32,
                k_steps: packed.k_steps as u32,
                words,
                row: i as u32,
                side: side as u32,
                top: u32::from(top),
                reserved: 0,
            });
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_layers_fit_in_every_precision() {
        let gpu = Gpu::typical((9, 0));
        // 1000 units below, and the rows that then fit beside their weights.
        for (precision, rows) in [(Precision::F16, 8), (Precision::Tf32, 8), (Precision::F32, 4)] {
            let number = Number::of(precision);
            let k_steps = number.k_steps(1000);
            let instance = Instance::choose(number, k_steps).expect("it is narrow enough");
            assert_eq!(instance.rows(&gpu, k_steps.next_multiple_of(STAGE_STEPS)), Some(rows));
        }
        assert_eq!(Instance::choose(Number::of(Precision::F32), 129), None);
        let f32 = Instance::choose(Number::of(Precision::F32), 128).expect("it is narrow enough");
        assert_eq!(f32.rows(&gpu, 256), None);
    }
}
