//! A recurrent stack in one launch, for one forecast as soon as possible: weights stay in the
//! registers of a block or a cluster of blocks, layers run as a wavefront.
//!
//! Translates [`RnnStack`] to the roles of `ptx/rnn_latency.cuh`, for [`super::rnn_stack`] and,
//! with a head, for [`super::rnn_whole`]. Takes neither sLSTM, nor projections; those are
//! `rnn_stack`'s. Widths whose recurrent weights exceed a cluster are [`super::rnn_wide`]'s.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::{KernelClass, Precision};
use neural_forecast_runtime::ops::{Cell, Initial, Keep, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::{StateId, ValueId, WeightId};

use super::rnn_stack::levels;
use super::{Build, Packer};
use crate::gpu::Gpu;
use crate::launch::{Arguments, Launch};

/// Units of a group: two tiles of 16 gate rows.
pub(super) const GROUP: usize = 8;
/// Rows of the batch that a block takes together: the columns of a product.
pub(super) const COLUMNS: usize = 8;
/// Rows of a k-step are 32 bytes.
pub(super) const STEP_BYTES: usize = 32;
/// Bytes of a k-step of weights of a group.
pub(super) const TILES_BYTES: usize = 1024;
/// `ROLES_MAX` of the kernels.
const ROLES_MAX: usize = 32;
/// Most row groups of a launch; a larger batch takes several, which share their memory.
const ROW_GROUPS_MAX: usize = 8;
/// Steps beyond the last whose sums the kernels read, for nothing.
const AHEAD_STEPS: usize = 4;
/// Bytes of `Turn` (`ptx/linger.cuh`).
const TURN_BYTES: usize = 132;
/// Shared memory that weights may take.
const KEPT_BYTES_MAX: usize = 184 * 1024;
/// Widest stack of layers' inputs, in k-steps: what an input block can hold beside its weights.
const INPUT_STEPS_MAX: usize = 256;

/// The format of weights and `h` in the kernels. 8-bit weights are levels that f16 holds exactly,
/// with their scales applied to the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) name: &'static str,
    pub(super) bytes: usize,
    bf16: bool,
}

impl Number {
    pub(super) fn of(precision: Precision) -> Number {
        let (name, bytes) = match precision {
            Precision::F32 => ("f32", 4),
            Precision::Tf32 => ("tf32", 4),
            Precision::Bf16 => ("bf16", 2),
            Precision::F16 | Precision::Int8 | Precision::Fp8 => ("f16", 2),
        };
        Number { name, bytes, bf16: precision == Precision::Bf16 }
    }

    /// K-steps that hold so many units.
    pub(super) fn k_steps(self, units: usize) -> usize {
        (units * self.bytes).div_ceil(STEP_BYTES)
    }

    /// 32-bit words of so many units.
    pub(super) fn words(self, units: usize) -> usize {
        (units * self.bytes).div_ceil(4)
    }

    fn encode(self, x: f32, to: &mut [u8]) {
        match self.bytes {
            4 => to.copy_from_slice(&x.to_le_bytes()),
            _ if self.bf16 => to.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
            _ => to.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
        }
    }
}

/// The kernel instance for a hidden width.
#[derive(Clone, Copy, Debug)]
struct Instance {
    /// K-steps of recurrent weights in registers.
    k_steps: usize,
    /// Further ones in shared memory.
    extra: usize,
    /// Whether there is a kernel for a block alone, and for clusters.
    alone: bool,
    cluster: bool,
}

impl Instance {
    /// The kernels of `ptx/rnn_latency.cu` and `ptx/rnn_latency_hopper.cu` for this width.
    fn choose(gpu: &Gpu, number: Number, groups: usize) -> Option<Instance> {
        let (alone, cluster): (&[usize], &[usize]) = match number.name {
            "f16" => (&[2, 4, 7, 8], &[7, 8, 13, 16]),
            "bf16" => (&[2, 4, 8], &[8, 16]),
            _ => (&[4, 8], &[16]),
        };
        let cluster = if gpu.is_hopper() && gpu.cluster_max >= 8 { cluster } else { &[] };
        let need = number.k_steps(groups * GROUP);
        let fitting = |list: &[usize]| list.iter().copied().find(|&k| k >= need);
        let alone_groups = match number.bytes {
            4 => 8,
            _ => 16,
        };
        let found = match (fitting(alone), fitting(cluster)) {
            (Some(a), _) if groups <= alone_groups => {
                Instance { k_steps: a, extra: 0, alone: true, cluster: cluster.contains(&a) }
            }
            (_, Some(c)) => Instance { k_steps: c, extra: 0, alone: false, cluster: true },
            _ => {
                let k_steps = *cluster.last()?;
                let extra = need.saturating_sub(k_steps).next_multiple_of(2);
                Instance { k_steps, extra, alone: false, cluster: true }
            }
        };
        let fits = found.alone || found.blocks(gpu, number, groups, 1).is_some();
        fits.then_some(found)
    }

    /// Blocks of a cluster: at least what the weights need, and at most `wanted` beyond that.
    fn blocks(&self, gpu: &Gpu, number: Number, groups: usize, wanted: usize) -> Option<usize> {
        if !self.cluster || (wanted <= 1 && self.alone) {
            return self.alone.then_some(1);
        }
        // A word goes to 32 / words-of-a-group peers a round, and there are rounds for 16.
        let most = gpu.cluster_max.min(16) as usize;
        let fits = |blocks: &usize| {
            let each = groups.div_ceil(*blocks);
            each <= 8 && each * (self.extra * TILES_BYTES + 256) <= KEPT_BYTES_MAX
        };
        let _ = number;
        let least = [2, 4, 8, 16].into_iter().filter(|&b| b <= most).find(fits)?;
        // A power of two: the kernels shift where they would divide.
        Some(least.max(wanted.min(groups).min(most)).next_power_of_two())
    }
}

/// A stack with its weights on the device.
#[derive(Debug)]
pub(crate) struct RnnLatency {
    op: RnnStack,
    outputs: Vec<ValueId>,
    /// Width of `x`.
    features: usize,
    number: Number,
    precision: Precision,
    instance: Instance,
    layers: Vec<Vec<Packed>>,
}

/// Weights of one direction of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    pub(super) w_ih: u64,
    pub(super) affine_ih: u64,
    /// K-steps of `w_ih`.
    pub(super) k_steps: usize,
    pub(super) w_hh: u64,
    pub(super) affine_hh: u64,
}

/// What surrounds a stack.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    /// The run header.
    pub(crate) header: u64,
    /// `[B, T, F]`, on the device or in mapped host memory.
    pub(crate) x: u64,
    /// `[B, kept, directions · D]`, or 0.
    pub(crate) y: u64,
    /// A product with the last `h`, `[outputs, directions · D]` and `[outputs]` or 0.
    pub(crate) head: Option<Head>,
}

/// See [`Ends::head`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head {
    pub(crate) weights: u64,
    pub(crate) bias: u64,
    pub(crate) outputs: usize,
    /// `[B, outputs]`.
    pub(crate) y: u64,
    /// Becomes the sequence number in the end.
    pub(crate) flag: u64,
    /// As [`HostPages::left`](super::whole::HostPages::left).
    pub(crate) left: Option<u64>,
}

/// `Role` of `ptx/rnn_latency.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Role {
    weights: u64,
    affine: u64,
    source: [u64; 2],
    sums: u64,
    hidden: u64,
    last: u64,
    kind: u32,
    steps: u32,
    reverse: u32,
    slices: u32,
    phases: u32,
    k_steps: u32,
    words: u32,
    row: u32,
    side: u32,
    outwards: u32,
    keep: u32,
    extra: u32,
    chunk: u32,
    unused: u32,
}

const INPUTS: u32 = 0;
const RECURRENCE: u32 = 1;
const HEAD: u32 = 2;
const STAGE: u32 = 3;

/// `RnnLatency` of `ptx/rnn_latency.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Parameters {
    header: u64,
    y: u64,
    initial: [u64; 2],
    finals: [u64; 2],
    new_states: [u64; 2],
    head_weights: u64,
    head_bias: u64,
    out: u64,
    flag: u64,
    arrivals: u64,
    epoch: u64,
    clocks: u64,
    turn: u64,
    left: u64,
    batch: u32,
    steps: u32,
    features: u32,
    hidden: u32,
    groups: u32,
    columns: u32,
    row_groups: u32,
    cell: u32,
    kept: u32,
    directions: u32,
    state_rows: u32,
    start: u32,
    outputs: u32,
    roles: u32,
    first_group: u32,
    passes: u32,
    pass: u32,
    others: u32,
    first: [u32; ROLES_MAX],
    role: [Role; ROLES_MAX],
}

// SAFETY: `#[repr(C)]`; a `Role` is 7 fields of 8 bytes and 14 of 4, this struct 17 of 8, 18 + 32
// of 4 and 32 roles, so nothing is padded; the fields are those of `ptx/rnn_latency.cuh`.
unsafe impl Arguments for Parameters {}

/// Sizes of a launch.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    time: usize,
    kept: usize,
    columns: usize,
    row_groups: usize,
    groups: usize,
    /// Blocks of a cluster.
    blocks: usize,
}

/// Roles as they are laid out.
#[derive(Debug)]
struct Roles {
    first: [u32; ROLES_MAX],
    role: [Role; ROLES_MAX],
    count: usize,
    /// Blocks so far, and those of them that have a part.
    blocks: usize,
    parts: usize,
    cluster: usize,
    /// Most dynamic shared memory of any.
    shared: usize,
}

impl Roles {
    fn new(cluster: usize) -> Roles {
        Roles {
            first: [u32::MAX; ROLES_MAX],
            role: [Role::default(); ROLES_MAX],
            count: 0,
            blocks: 0,
            parts: 0,
            cluster,
            shared: 0,
        }
    }

    fn push(&mut self, role: Role, blocks: usize, shared: usize) {
        self.first[self.count] = self.blocks as u32;
        self.role[self.count] = role;
        self.count += 1;
        self.parts += blocks;
        self.blocks = (self.blocks + blocks).next_multiple_of(self.cluster);
        self.shared = self.shared.max(shared);
    }
}

/// Bytes between columns in shared memory, as `column_stride` of the kernels.
pub(super) fn column_stride(k_steps: usize) -> usize {
    (k_steps * STEP_BYTES + 64).next_multiple_of(128) - 64
}

impl RnnLatency {
    /// Packs the weights of a stack that these kernels take.
    pub(crate) fn load(
        op: &RnnStack,
        outputs: &[ValueId],
        packer: &mut Packer<'_>,
    ) -> Result<Option<Self>, DeviceError> {
        let precision = packer.precision();
        let number = Number::of(precision);
        let groups = op.hidden.div_ceil(GROUP);
        let roles = 2 + 2 * op.layers.len() * op.directions();
        let taken = !matches!(op.cell, Cell::Slstm { .. }) && op.projection.is_none();
        let Some(first) = op.layers.first().and_then(|layer| layer.first()) else {
            return Ok(None);
        };
        let features = packer.shape(first.w_ih).last().copied().unwrap_or(0);
        let above = number.k_steps(op.directions() * groups * GROUP);
        let widest = number.k_steps(features).max(if op.layers.len() > 1 { above } else { 0 });
        if !taken || roles > ROLES_MAX || features == 0 || widest > INPUT_STEPS_MAX {
            return Ok(None);
        }
        let Some(instance) = Instance::choose(packer.gpu(), number, groups) else {
            return Ok(None);
        };
        let mut layers = Vec::new();
        for (l, layer) in op.layers.iter().enumerate() {
            let columns = match l {
                0 => (0..features).map(Some).collect(),
                _ => padded_columns(op.directions(), op.hidden, groups),
            };
            let packed = layer
                .iter()
                .map(|w| Packed::load(op, w, &columns, number, &instance, packer))
                .collect::<Result<Vec<_>, _>>()?;
            layers.push(packed);
        }
        let (op, outputs) = (op.clone(), outputs.to_vec());
        Ok(Some(RnnLatency { op, outputs, features, number, precision, instance, layers }))
    }

    /// Appends the launches, or none and `false` for another class.
    pub(crate) fn build(&self, build: &mut Build<'_>) -> Result<bool, DeviceError> {
        let ends = Ends {
            header: build.header(),
            x: build.value(self.op.x),
            y: build.value(self.outputs[0]),
            head: None,
        };
        if build.class() != KernelClass::Latency {
            return Ok(false);
        }
        self.launch(build, &ends, "rnn_stack");
        Ok(true)
    }

    /// Appends the launches of a stack between its ends.
    pub(crate) fn launch(&self, build: &mut Build<'_>, ends: &Ends, op: &str) {
        let shape = build.shape(self.op.x);
        let (batch, time) = (shape[0], shape[1]);
        if batch == 0 || time == 0 {
            return;
        }
        let kept = match self.op.keep {
            Keep::All => time,
            Keep::Last(n) => n,
        };
        let all = batch.div_ceil(COLUMNS);
        let row_groups = all.min(ROW_GROUPS_MAX);
        let groups = self.op.hidden.div_ceil(GROUP);
        let blocks = self.blocks(build.gpu(), row_groups);
        let columns = batch.min(COLUMNS);
        let sizes = Sizes { batch, time, kept, columns, row_groups, groups, blocks };
        let roles = self.roles(build, ends, sizes);
        let [arrivals, epoch] = match ends.head {
            Some(_) => [build.persistent(4), build.persistent(4)],
            None => [0; 2],
        };
        let passes = all.div_ceil(row_groups);
        // One head conducts.
        let left = ends.head.and_then(|head| head.left).filter(|_| row_groups == 1);
        let turn = left.map(|_| build.persistent(TURN_BYTES));
        for pass in 0..passes {
            let here = row_groups.min(all - pass * row_groups);
            let mut parameters = self.parameters(build, ends, sizes, &roles);
            (parameters.arrivals, parameters.epoch) = (arrivals, epoch);
            (parameters.turn, parameters.left) = (turn.unwrap_or(0), left.unwrap_or(0));
            parameters.others = roles.parts as u32 - 1;
            (parameters.passes, parameters.pass) = (passes as u32, pass as u32);
            parameters.first_group = (pass * row_groups) as u32;
            parameters.row_groups = here as u32;
            if pass + 1 < passes {
                parameters.flag = 0;
            }
            let launch = self.launch_of(&roles, sizes, parameters, op);
            build.launch(if turn.is_some() { launch.cooperative().lingers() } else { launch });
        }
    }

    /// Blocks of a cluster, for so many row groups.
    fn blocks(&self, gpu: &Gpu, row_groups: usize) -> usize {
        let groups = self.op.hidden.div_ceil(GROUP);
        let wanted = wanted_blocks(groups, self.number, row_groups);
        self.instance.blocks(gpu, self.number, groups, wanted).unwrap_or(1)
    }

    fn launch_of(&self, roles: &Roles, sizes: Sizes, parameters: Parameters, op: &str) -> Launch {
        let Instance { k_steps, .. } = self.instance;
        let name = self.number.name;
        let (module, function) = match sizes.blocks {
            1 => ("rnn_latency", format!("rnn_latency_{name}_{k_steps}")),
            _ => ("rnn_latency_hopper", format!("rnn_latency_cluster_{name}_{k_steps}")),
        };
        let warps = sizes.groups.div_ceil(sizes.blocks).max(8);
        let grid = [roles.blocks as u32, 1, 1];
        let counter = format!("{op}-latency-{}", self.precision.name());
        Launch::new(module, function, counter, grid, [warps as u32 * 32, 1, 1], parameters)
            .shared(roles.shared as u32)
            .clusters(sizes.blocks as u32)
    }

    fn parameters(
        &self,
        build: &Build<'_>,
        ends: &Ends,
        sizes: Sizes,
        roles: &Roles,
    ) -> Parameters {
        let op = &self.op;
        let written = op.states.as_ref().filter(|states| states.write);
        let ids = |values: &[ValueId]| pair(values.iter().map(|&id| build.value(id)));
        let states =
            |ids: &[StateId], of: &dyn Fn(StateId) -> u64| pair(ids.iter().map(|&id| of(id)));
        let (start, initial) = match (&op.initial, &op.states) {
            (Initial::Values(values), _) => (1, ids(values)),
            (Initial::Slots, Some(s)) => (2, states(&s.slots, &|id| build.state(id))),
            _ => (0, [0; 2]),
        };
        let finals = if op.finals { ids(&self.outputs[1..]) } else { [0; 2] };
        let new_states = written.map_or([0; 2], |s| states(&s.slots, &|id| build.new_state(id)));
        let head = ends.head.unwrap_or_default();
        Parameters {
            header: ends.header,
            y: ends.y,
            initial,
            finals,
            new_states,
            head_weights: head.weights,
            head_bias: head.bias,
            out: head.y,
            flag: head.flag,
            batch: sizes.batch as u32,
            steps: sizes.time as u32,
            features: self.features as u32,
            hidden: op.hidden as u32,
            groups: sizes.groups as u32,
            columns: sizes.columns as u32,
            cell: match op.cell {
                Cell::Lstm | Cell::Slstm { .. } => 0,
                Cell::Gru => 1,
                Cell::RnnTanh => 2,
                Cell::RnnRelu => 3,
            },
            kept: sizes.kept as u32,
            directions: op.directions() as u32,
            state_rows: (op.layers.len() * op.directions()) as u32,
            start,
            outputs: head.outputs as u32,
            roles: roles.count as u32,
            first: roles.first,
            role: roles.role,
            ..Parameters::default()
        }
    }

    /// The roles of a launch, lowest layers first: a block waits for none of a higher index but
    /// those of its cluster.
    fn roles(&self, build: &mut Build<'_>, ends: &Ends, sizes: Sizes) -> Roles {
        let Sizes { time, columns, row_groups, groups, blocks, .. } = sizes;
        let op = &self.op;
        let mut roles = Roles::new(blocks);
        let shared_max = build.gpu().shared_bytes_max as usize;
        let words = self.number.words(self.features);
        let threads = groups.div_ceil(blocks).max(8) * 32;
        let sequence = |build: &mut Build<'_>, words: usize| {
            build.persistent(row_groups * time * columns * words * 8)
        };
        let staged = sequence(build, words);
        let phases = (row_groups * time * columns * words).div_ceil(threads).clamp(1, STAGE_BLOCKS);
        let role = Role {
            source: [ends.x, 0],
            hidden: staged,
            phases: phases as u32,
            words: words as u32,
            kind: STAGE,
            ..Role::default()
        };
        roles.push(role, phases, 0);
        let last = match ends.head {
            Some(_) => {
                build.persistent(row_groups * op.directions() * columns * groups * GROUP * 8)
            }
            None => 0,
        };
        let mut below = Below { source: [staged, 0], words, ready: true };
        for (l, layer) in self.layers.iter().enumerate() {
            let top = l + 1 == self.layers.len();
            let h_words = self.number.words(groups * GROUP);
            let mut recurrences = Vec::new();
            let mut hidden = [0; 2];
            for (d, packed) in layer.iter().enumerate() {
                let steps = if top && d == 1 && !self.wants_finals() { sizes.kept } else { time };
                let sums = build
                    .persistent((row_groups * steps + AHEAD_STEPS) * groups * columns * GROUP * 16);
                hidden[d] = if top { 0 } else { sequence(build, h_words) };
                self.inputs(&mut roles, packed, &below, (l, d, steps, sums), sizes, shared_max);
                recurrences.push(Role {
                    weights: packed.w_hh,
                    affine: packed.affine_hh,
                    sums,
                    hidden: hidden[d],
                    last: if top { last } else { 0 },
                    kind: RECURRENCE,
                    steps: steps as u32,
                    reverse: d as u32,
                    slices: blocks as u32,
                    row: (l * layer.len() + d) as u32,
                    side: d as u32,
                    extra: self.instance.extra as u32,
                    ..Role::default()
                });
            }
            let Instance { k_steps, extra, .. } = self.instance;
            let shared = 64
                + 2 * COLUMNS * column_stride(k_steps + extra)
                + groups.div_ceil(blocks) * (extra * TILES_BYTES + 256);
            for role in recurrences {
                roles.push(role, blocks * row_groups, shared);
            }
            below = Below { source: hidden, words: h_words, ready: layer.len() > 1 };
        }
        if let Some(head) = ends.head {
            let width = op.directions() * op.hidden;
            let kept = head.outputs * width * 4;
            let keep = kept <= 64 * 1024;
            let shared = 64 + columns * width * 4 + if keep { kept } else { 0 };
            let role = Role { last, keep: u32::from(keep), kind: HEAD, ..Role::default() };
            roles.push(role, row_groups, shared);
        }
        roles
    }

    /// Whether the last state of every direction is asked for.
    fn wants_finals(&self) -> bool {
        self.op.finals || self.op.states.as_ref().is_some_and(|states| states.write)
    }

    /// The input products of one direction of a layer.
    fn inputs(
        &self,
        roles: &mut Roles,
        packed: &Packed,
        below: &Below,
        (layer, direction, steps, sums): (usize, usize, usize, u64),
        sizes: Sizes,
        shared_max: usize,
    ) {
        let Sizes { columns, row_groups, groups, .. } = sizes;
        let k_steps = packed.k_steps;
        let full = COLUMNS / columns;
        // Steps that come one by one are taken one by one, by blocks in turn.
        let chunk = if below.ready { full } else { 1 };
        let items = steps.div_ceil(chunk) * row_groups;
        let slices = input_slices(groups, k_steps, row_groups);
        let blocks = match below.ready || row_groups > 1 {
            true => input_blocks(layer, row_groups),
            false => (TURN_BLOCKS / self.layers.len()).clamp(PHASES, TURN_BLOCKS_MAX),
        };
        let phases = (blocks / slices).max(PHASES).min(items);
        let kept = groups.div_ceil(slices) * k_steps * TILES_BYTES;
        let columns_bytes = COLUMNS * column_stride(k_steps);
        let keep = kept <= KEPT_BYTES_MAX && 64 + columns_bytes + kept <= shared_max;
        let shared = 64 + columns_bytes + if keep { kept } else { 0 };
        // Both directions below have a step when the later of them has.
        let outwards = layer > 0 && below.ready && chunk < steps;
        let role = Role {
            weights: packed.w_ih,
            affine: packed.affine_ih,
            source: below.source,
            sums,
            kind: INPUTS,
            outwards: u32::from(outwards),
            steps: steps as u32,
            reverse: direction as u32,
            slices: slices as u32,
            phases: phases as u32,
            k_steps: k_steps as u32,
            words: below.words as u32,
            keep: u32::from(keep),
            chunk: chunk as u32,
            ..Role::default()
        };
        roles.push(role, slices * phases, shared);
    }
}

/// What a layer reads.
struct Below {
    source: [u64; 2],
    /// Of a column of each source.
    words: usize,
    /// Whether it comes at once rather than step by step.
    ready: bool,
}

/// Blocks that bring the input. Reads of host memory take a microsecond or two whatever their
/// number, so many are in flight at once.
const STAGE_BLOCKS: usize = 32;
/// K-steps of weights, over all groups, of a block of input products: few for one row group, whose
/// forecast waits for them, more where each block serves several.
const SLICE_STEPS: usize = 64;
const SLICE_STEPS_MAX: usize = 144;
/// Fewest blocks that take turns with a slice of the input products of a direction.
const PHASES: usize = 4;

/// Blocks among which the units are split for input products.
fn input_slices(groups: usize, k_steps: usize, row_groups: usize) -> usize {
    match row_groups {
        1 => (groups * k_steps).div_ceil(SLICE_STEPS).clamp(1, groups),
        _ => groups.div_ceil((SLICE_STEPS_MAX / k_steps).max(1)),
    }
}

/// Blocks that take a lone forecast's steps in turn as the layer below makes them: of all layers
/// together, so that these are resident at once, and most of one.
const TURN_BLOCKS: usize = 96;
const TURN_BLOCKS_MAX: usize = 32;

/// Blocks for the input products of one direction of a layer where there is more than one column,
/// or where the steps are there at once. Several row groups: the first layer's leave room for the
/// recurrences that wait for them, the others' run beside those. A recurrence starts when these
/// have, so that more blocks than multiprocessors would be served in turns.
fn input_blocks(layer: usize, row_groups: usize) -> usize {
    match (layer, row_groups) {
        (_, 1) | (0, _) => 16,
        _ => 64,
    }
}

/// Blocks that share a layer where the weights would fit fewer.
fn wanted_blocks(groups: usize, number: Number, row_groups: usize) -> usize {
    let _ = number;
    match (groups, row_groups) {
        (..=8, _) => 1,
        (..=16, _) => 4,
        (_, 1) => 8,
        _ => 4,
    }
}

/// The addresses of `h` and `c`, 0 where there is none.
pub(super) fn pair(addresses: impl Iterator<Item = u64>) -> [u64; 2] {
    let mut all = [0; 2];
    for (to, from) in all.iter_mut().zip(addresses) {
        *to = from;
    }
    all
}

/// Which input each unit of the directions below is, padded to whole groups.
pub(super) fn padded_columns(
    directions: usize,
    hidden: usize,
    groups: usize,
) -> Vec<Option<usize>> {
    let side = |d: usize| (0..groups * GROUP).map(move |u| (u < hidden).then_some(d * hidden + u));
    (0..directions).flat_map(side).collect()
}

impl Packed {
    fn load(
        op: &RnnStack,
        weights: &RnnWeights,
        columns: &[Option<usize>],
        number: Number,
        instance: &Instance,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let groups = op.hidden.div_ceil(GROUP);
        let recurrent = padded_columns(1, op.hidden, groups);
        let k_steps = number.k_steps(columns.len());
        let all = instance.k_steps + instance.extra;
        let tiles = Tiles { cell: op.cell, hidden: op.hidden, groups, number };
        Ok(Packed {
            w_ih: tiles.pack(packer, weights.w_ih, columns, k_steps)?,
            affine_ih: tiles.affine(packer, weights.w_ih, weights.b_ih)?,
            k_steps,
            w_hh: tiles.pack(packer, weights.w_hh, &recurrent, all)?,
            affine_hh: tiles.affine(packer, weights.w_hh, weights.b_hh)?,
        })
    }
}

/// How gate rows become tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    pub(super) cell: Cell,
    pub(super) hidden: usize,
    /// Groups of units, at least as many as there are: the others are zeros.
    pub(super) groups: usize,
    pub(super) number: Number,
}

impl Tiles {
    /// Weights `[gates · D, K]` in the order of the registers of `mma`: `[groups, k-steps, 2, 32]`
    /// of 16 bytes. The rows of tile `i` are gates `2 i` and `2 i + 1` of the eight units.
    pub(super) fn pack(
        &self,
        packer: &mut Packer<'_>,
        id: WeightId,
        columns: &[Option<usize>],
        k_steps: usize,
    ) -> Result<u64, DeviceError> {
        let precision = packer.precision();
        let gates = self.cell.gates();
        let layout = format!("tiles of {} groups of units, {k_steps} k-steps", self.groups);
        packer.packed(layout, &[Some(id)], |packer| {
            let width = packer.shape(id).last().copied().unwrap_or(1).max(1);
            let rows = packer.read(id)?;
            let rows: Vec<Vec<f32>> =
                rows.chunks_exact(width).map(|row| levels(row, precision).0).collect();
            let mut to = vec![0; self.groups * k_steps * TILES_BYTES];
            for (i, word) in to.chunks_exact_mut(4).enumerate() {
                let (register, lane, tile) = (i % 4, i / 4 % 32, i / 128 % 2);
                let (k_step, group) = (i / 256 % k_steps, i / 256 / k_steps);
                let (gate, unit) = (tile * 2 + register % 2, group * GROUP + lane / 4);
                if gate >= gates || unit >= self.hidden {
                    continue;
                }
                let row = &rows[gate * self.hidden + unit];
                let at = self.first(k_step, k_steps, lane % 4, register / 2);
                for (j, to) in word.chunks_exact_mut(self.number.bytes).enumerate() {
                    if let Some(&Some(column)) = columns.get(at + j) {
                        self.number.encode(row[column], to);
                    }
                }
            }
            Ok(to)
        })
    }

    /// The first column of K of a register. Two k-steps take 64 bytes of a column of `h`, 16 to
    /// each of four lanes; a last one alone takes 32, 8 to each.
    fn first(&self, k_step: usize, k_steps: usize, q: usize, half: usize) -> usize {
        let words = if k_steps % 2 == 1 && k_step + 1 == k_steps {
            k_step * 8 + q * 2 + half
        } else {
            k_step / 2 * 16 + q * 4 + k_step % 2 * 2 + half
        };
        words * 4 / self.number.bytes
    }

    /// `[groups · 8]` of the scales and the biases of four gates.
    pub(super) fn affine(
        &self,
        packer: &mut Packer<'_>,
        id: WeightId,
        bias: Option<WeightId>,
    ) -> Result<u64, DeviceError> {
        let precision = packer.precision();
        let gates = self.cell.gates();
        let layout = format!("scales and biases of {} groups of units", self.groups);
        packer.packed(layout, &[Some(id), bias], |packer| {
            let bias = bias.map(|bias| packer.read(bias)).transpose()?;
            let scales: Vec<f32> = match precision {
                Precision::Int8 | Precision::Fp8 => {
                    let width = packer.shape(id).last().copied().unwrap_or(1).max(1);
                    let rows = packer.read(id)?;
                    rows.chunks_exact(width).map(|row| levels(row, precision).1).collect()
                }
                _ => vec![1.0; gates * self.hidden],
            };
            let units = self.groups * GROUP;
            let mut all = Vec::with_capacity(units * 32);
            for unit in 0..units {
                let row = |gate: usize| {
                    (gate < gates && unit < self.hidden).then_some(gate * self.hidden + unit)
                };
                let scale = |gate| row(gate).map_or(1.0, |row| scales[row]);
                let shift = |gate| bias.as_ref().zip(row(gate)).map_or(0.0, |(b, row)| b[row]);
                let numbers = (0..4).map(scale).chain((0..4).map(shift));
                all.extend(numbers.flat_map(f32::to_le_bytes));
            }
            Ok(all)
        })
    }
}
