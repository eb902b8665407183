//! `attention`: which keys each query sees, queries and keys made ready, and the products.
//!
//! [`Scores`] computes the op with all its features in f32; [`Flash`] the plain case on tensor
//! cores, for stacks. Neither projects. Kernels in `ptx/attention.cu` and, on Hopper,
//! `ptx/attention_hopper.cu` and, for f32 on tensor cores, `ptx/attention_tf32_hopper.cu`.

use neural_forecast_runtime::ops::{
    Attention, AttentionBias, AttentionLayer, Columns, KeyValueRing, QkNorm, Rope, relative_bucket,
};
use neural_forecast_runtime::plan::{ValueId, WeightId};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::gemm::Element;
use super::{Build, Loaded, Packer};
use crate::gpu::Gpu;
use crate::launch::{Arguments, Launch};

const MODULE: &str = "attention";
const MODULE_TF32: &str = "attention_tf32_hopper";

/// Shared memory of the widest f32 kernel on tensor cores: 64 queries, and two tiles of keys and of
/// values.
const F32_BYTES_MAX: u32 = (64 + 4 * 64) * 128 * 4;

/// `PAIRS_MAX` of the kernels.
const PAIRS_MAX: usize = 64;

/// Blocks from which on a launch fills a large GPU twice over.
const BLOCKS_MANY: usize = 256;

fn refuse(what: String) -> DeviceError {
    DeviceError::new(DeviceErrorKind::Unsupported, format!("attention has no kernel for {what}"))
}

/// A size as the kernels count.
fn int(what: &str, size: usize) -> Result<i32, DeviceError> {
    i32::try_from(size).map_err(|_| refuse(format!("{size} {what}")))
}

/// Blocks of a grid's first axis.
fn blocks(count: usize) -> Result<u32, DeviceError> {
    match u32::try_from(count) {
        Ok(count) if count <= i32::MAX as u32 => Ok(count),
        _ => Err(refuse(format!("{count} blocks"))),
    }
}

/// Which keys the queries of each row see, on the device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lists {
    key_rows: u64,
    key_positions: u64,
    counts: u64,
    olds: u64,
    query_from: u64,
    query_until: u64,
    query_positions: u64,
    query_turns: u64,
    key_turns: u64,
    capacity: usize,
}

/// What [`Lists`] are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ListOf {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// `[batch, keys]` f32, or 0.
    pub(crate) mask: u64,
    pub(crate) causal: bool,
    pub(crate) skip_masked: bool,
    /// Positions `[slots]` and rows of a ring; zeros without one.
    pub(crate) ring: (u64, usize),
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ListArguments {
    header: u64,
    mask: u64,
    ring_position: u64,
    key_rows: u64,
    key_positions: u64,
    counts: u64,
    olds: u64,
    query_from: u64,
    query_until: u64,
    query_positions: u64,
    query_turns: u64,
    key_turns: u64,
    batch: i32,
    queries: i32,
    keys: i32,
    capacity: i32,
    ring_rows: i32,
    causal: i32,
    skip_masked: i32,
    pad: i32,
}

// SAFETY: `#[repr(C)]`; 12 fields of 8 bytes, then 8 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/attention.cu`, in its order.
unsafe impl Arguments for ListArguments {}

impl Lists {
    /// Appends the launch that makes them, in the step's scratch.
    pub(crate) fn launch(
        build: &mut Build<'_>,
        counter: &str,
        of: &ListOf,
    ) -> Result<Lists, DeviceError> {
        let capacity = of.keys + of.ring.1;
        let mut ints = |rows: usize| build.scratch(of.batch * rows * 4);
        let lists = Lists {
            key_rows: ints(capacity),
            key_positions: ints(capacity),
            counts: ints(1),
            olds: ints(1),
            query_from: ints(of.queries),
            query_until: ints(of.queries),
            query_positions: ints(of.queries),
            query_turns: ints(of.queries),
            key_turns: ints(of.keys),
            capacity,
        };
        let arguments = ListArguments {
            header: build.header(),
            mask: of.mask,
            ring_position: of.ring.0,
            key_rows: lists.key_rows,
            key_positions: lists.key_positions,
            counts: lists.counts,
            olds: lists.olds,
            query_from: lists.query_from,
            query_until: lists.query_until,
            query_positions: lists.query_positions,
            query_turns: lists.query_turns,
            key_turns: lists.key_turns,
            batch: int("rows", of.batch)?,
            queries: int("queries", of.queries)?,
            keys: int("keys", of.keys)?,
            capacity: int("keys", capacity)?,
            ring_rows: int("rows of a ring", of.ring.1)?,
            causal: i32::from(of.causal),
            skip_masked: i32::from(of.skip_masked),
            pad: 0,
        };
        let grid = [blocks(of.batch)?, 1, 1];
        let name = format!("{counter}-list-i32");
        let launch = Launch::new(MODULE, "attention_list", name, grid, [32, 1, 1], arguments);
        build.launch(launch.programmatic());
        Ok(lists)
    }
}

/// Rows of f32 queries, keys or values: row `(b, t)` begins `(b · T + t) · stride` floats on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) address: u64,
    pub(crate) stride: usize,
}

impl View {
    fn of(build: &Build<'_>, columns: &Columns) -> View {
        let stride = build.shape(columns.value)[2];
        View { address: build.value(columns.value) + 4 * columns.start as u64, stride }
    }

    /// Whether all heads of all rows begin at multiples of 16 bytes.
    fn is_aligned(&self, head: usize) -> bool {
        self.address.is_multiple_of(16) && self.stride.is_multiple_of(4) && head.is_multiple_of(4)
    }
}

#[derive(Clone, Copy, Debug)]
enum Bias {
    /// `[heads, distances]`.
    Relative { table: u64, distances: usize, origin: usize },
    /// `[heads, Tq, Tk]`.
    Matrix { data: u64, heads: usize },
}

/// What stays the same from run to run, on the device.
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    heads: usize,
    head: usize,
    head_v: usize,
    scales: Vec<f32>,
    causal: bool,
    mean_heads: bool,
    bias: Option<Bias>,
    rope: Option<Rope>,
    /// Weights of queries and keys.
    qk_norm: Option<(u64, u64, f32)>,
    /// `[head]`, or 0.
    query_scale: u64,
}

/// A ring's stores, the rows that replace them, and its length.
#[derive(Clone, Copy, Debug)]
struct RingPlaces {
    /// Keys, values, positions.
    old: [u64; 3],
    new: [u64; 3],
    rows: usize,
}

/// One run of [`Scores`].
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) queries: Vec<View>,
    pub(crate) keys: Vec<View>,
    pub(crate) values: View,
    pub(crate) batch: usize,
    pub(crate) queries_each: usize,
    pub(crate) keys_each: usize,
    /// `[batch, keys_each]` f32, or 0.
    pub(crate) mask: u64,
    /// `[batch]` i32, or 0.
    pub(crate) groups: u64,
    /// Rows `width` of the values apart.
    pub(crate) y: u64,
    ring: Option<RingPlaces>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Pair {
    queries: u64,
    keys: u64,
    query_stride: i32,
    key_stride: i32,
    scale: f32,
    aligned: i32,
}

const NO_PAIR: Pair =
    Pair { queries: 0, keys: 0, query_stride: 0, key_stride: 0, scale: 0.0, aligned: 0 };

#[repr(C)]
#[derive(Clone, Copy)]
struct F32Arguments {
    header: u64,
    values: u64,
    y: u64,
    key_rows: u64,
    key_positions: u64,
    counts: u64,
    query_from: u64,
    query_until: u64,
    query_positions: u64,
    ring_keys: u64,
    ring_values: u64,
    groups: u64,
    group_mask: u64,
    bias: u64,
    batch: i32,
    queries: i32,
    keys: i32,
    heads: i32,
    head: i32,
    head_v: i32,
    value_stride: i32,
    y_stride: i32,
    values_aligned: i32,
    capacity: i32,
    ring_rows: i32,
    causal: i32,
    mean_heads: i32,
    pairs: i32,
    distances: i32,
    origin: i32,
    bias_heads: i32,
    tiles: i32,
    slices: i32,
    row_factor: i32,
    pair: [Pair; PAIRS_MAX],
}

// SAFETY: `#[repr(C)]`; 14 fields of 8 bytes, 20 of 4, then pairs of 2 fields of 8 bytes and 4 of
// 4, so nothing is padded; the fields are those of the structs in `ptx/attention.cu`, in order.
unsafe impl Arguments for F32Arguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct PrepareArguments {
    x: u64,
    y: u64,
    turns: u64,
    norm: u64,
    scale: u64,
    frequency_log2: f64,
    batch: i32,
    time: i32,
    heads: i32,
    head: i32,
    stride: i32,
    first: i32,
    rotate: i32,
    eps: f32,
}

// SAFETY: `#[repr(C)]`; 6 fields of 8 bytes, then 8 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/attention.cu`, in its order.
unsafe impl Arguments for PrepareArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct RingArguments {
    header: u64,
    old: [u64; 3],
    new: [u64; 3],
    keys: u64,
    values: u64,
    key_rows: u64,
    counts: u64,
    olds: u64,
    batch: i32,
    time: i32,
    capacity: i32,
    rows: i32,
    key_width: i32,
    value_width: i32,
    key_stride: i32,
    value_stride: i32,
}

// SAFETY: `#[repr(C)]`; 12 fields of 8 bytes, then 8 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/attention.cu`, in its order.
unsafe impl Arguments for RingArguments {}

impl Scores {
    /// Of the op.
    fn load(op: &Attention, packer: &mut Packer<'_>) -> Result<Scores, DeviceError> {
        if op.queries.len() > PAIRS_MAX {
            return Err(refuse(format!(
                "scores of {} layers, at most {PAIRS_MAX}",
                op.queries.len()
            )));
        }
        let head_v = if op.mean_heads { op.values.width } else { op.values.width / op.heads };
        let mut scores = Scores {
            heads: op.heads,
            head: op.head(),
            head_v,
            scales: op.scales.clone(),
            causal: op.causal,
            mean_heads: op.mean_heads,
            bias: None,
            rope: op.rope,
            qk_norm: None,
            query_scale: 0,
        };
        // A matrix has no rows for the keys of a ring.
        let matrix = matches!(op.bias, Some(AttentionBias::Weight(_)));
        let bias = op.bias.filter(|_| !(matrix && op.ring.is_some()));
        scores.load_weights(bias, op.qk_norm, op.per_dim_scale, packer)?;
        Ok(scores)
    }

    /// Of a layer of a stack.
    pub(crate) fn of_layer(
        a: &AttentionLayer,
        packer: &mut Packer<'_>,
    ) -> Result<Scores, DeviceError> {
        let mut scores = Scores {
            heads: a.heads,
            head: a.head,
            head_v: a.head,
            scales: vec![a.scale],
            causal: a.causal,
            mean_heads: false,
            bias: None,
            rope: a.rope,
            qk_norm: None,
            query_scale: 0,
        };
        scores.load_weights(a.bias, a.qk_norm, a.per_dim_scale, packer)?;
        Ok(scores)
    }

    fn load_weights(
        &mut self,
        bias: Option<AttentionBias>,
        qk_norm: Option<QkNorm>,
        per_dim_scale: Option<WeightId>,
        packer: &mut Packer<'_>,
    ) -> Result<(), DeviceError> {
        self.bias = match bias {
            None => None,
            Some(AttentionBias::Weight(id)) => {
                let heads = packer.shape(id).first().copied().unwrap_or(1);
                Some(Bias::Matrix { data: packer.plain(id)?, heads })
            }
            Some(AttentionBias::Relative { table, max_distance, bidirectional }) => {
                Some(self.relative(table, max_distance, bidirectional, packer)?)
            }
        };
        self.qk_norm = match qk_norm {
            None => None,
            Some(norm) => Some((packer.plain(norm.query)?, packer.plain(norm.key)?, norm.eps)),
        };
        if let Some(id) = per_dim_scale {
            let factor = std::f64::consts::LOG2_E / (self.head as f64).sqrt();
            self.query_scale =
                packer.packed("scales of query dimensions", &[Some(id)], |packer| {
                    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
                    let scales = packer.read(id)?;
                    let scales = scales.iter().map(|&w| (factor * softplus(f64::from(w))) as f32);
                    Ok(scales.flat_map(f32::to_le_bytes).collect())
                })?;
        }
        Ok(())
    }

    /// A bias by distance, as far as distances differ.
    fn relative(
        &self,
        table: WeightId,
        max_distance: usize,
        bidirectional: bool,
        packer: &mut Packer<'_>,
    ) -> Result<Bias, DeviceError> {
        let buckets = packer.shape(table).first().copied().unwrap_or(0);
        let heads = self.heads;
        // Beyond the maximal distance (and the exact half) the bucket is always the last.
        let origin = max_distance.max(buckets) + 1;
        let distances = 2 * origin + 1;
        int("distances", distances)?;
        // The key spells the maximal distance in binary: a table may serve several.
        let digits = (0..usize::BITS).map(|i| (max_distance >> i & 1 == 1).then_some(table));
        let key: Vec<_> = std::iter::once(Some(table)).chain(digits).collect();
        let layout = if bidirectional { "bias by distance" } else { "bias by distance behind" };
        let table = packer.packed(layout, &key, |packer| {
            let data = packer.read(table)?;
            let mut bytes = Vec::with_capacity(heads * distances * 4);
            for h in 0..heads {
                for d in 0..distances {
                    let relative = d as isize - origin as isize;
                    let bucket = relative_bucket(relative, buckets, max_distance, bidirectional);
                    bytes.extend(data[bucket * heads + h].to_le_bytes());
                }
            }
            Ok(bytes)
        })?;
        Ok(Bias::Relative { table, distances, origin })
    }

    /// Whether positions are counted over visible rows.
    pub(crate) fn skips_masked(&self) -> bool {
        self.rope.is_some_and(|rope| rope.skip_masked)
    }

    pub(crate) fn causal(&self) -> bool {
        self.causal
    }

    /// Appends the launches. `lists` where there is a mask or a ring (and no groups).
    pub(crate) fn launch(
        &self,
        build: &mut Build<'_>,
        counter: &str,
        call: &Call,
        lists: Option<&Lists>,
    ) -> Result<(), DeviceError> {
        if call.batch == 0 || call.queries_each == 0 {
            return Ok(());
        }
        let shift = call.keys_each as i64 - call.queries_each as i64;
        let mut ready = call.clone();
        for i in 0..call.queries.len() {
            let (norm_q, norm_k, eps) = self.qk_norm.unwrap_or((0, 0, 0.0));
            let turns = lists.map_or((0, 0), |lists| (lists.query_turns, lists.key_turns));
            let each = call.queries_each;
            let queries = Ready { norm: norm_q, scale: self.query_scale, eps, turns: turns.0 };
            ready.queries[i] =
                self.prepared(build, counter, call, (call.queries[i], each, shift), queries)?;
            let keys = Ready { norm: norm_k, scale: 0, eps, turns: turns.1 };
            ready.keys[i] =
                self.prepared(build, counter, call, (call.keys[i], call.keys_each, 0), keys)?;
        }
        self.products(build, counter, &ready, lists)?;
        match (call.ring, lists) {
            (Some(ring), Some(lists)) => self.commit(build, counter, &ready, ring, lists),
            _ => Ok(()),
        }
    }

    /// Queries or keys rotated, normalised and scaled, where any of that is asked for.
    fn prepared(
        &self,
        build: &mut Build<'_>,
        counter: &str,
        call: &Call,
        (x, time, first): (View, usize, i64),
        with: Ready,
    ) -> Result<View, DeviceError> {
        if self.rope.is_none() && with.norm == 0 && with.scale == 0 {
            return Ok(x);
        }
        let width = self.heads * self.head;
        let rows = call.batch * time;
        let y = build.scratch(rows * width * 4);
        let rotate = self.rope.filter(|_| call.groups == 0);
        let arguments = PrepareArguments {
            x: x.address,
            y,
            turns: with.turns,
            norm: with.norm,
            scale: with.scale,
            frequency_log2: rotate.map_or(0.0, |rope| -2.0 * f64::from(rope.theta).log2()),
            batch: int("rows", call.batch)?,
            time: int("positions", time)?,
            heads: int("heads", self.heads)?,
            head: int("columns", self.head)?,
            stride: int("columns", x.stride)?,
            first: i32::try_from(first).map_err(|_| refuse(format!("{first} as a position")))?,
            rotate: i32::from(rotate.is_some()),
            eps: with.eps,
        };
        const WARPS: usize = 4;
        let grid = [blocks((rows * self.heads).div_ceil(WARPS))?, 1, 1];
        let name = format!("{counter}-prepare-f32");
        let block = [32 * WARPS as u32, 1, 1];
        let launch = Launch::new(MODULE, "attention_prepare", name, grid, block, arguments);
        build.launch(launch.programmatic());
        Ok(View { address: y, stride: width })
    }

    fn products(
        &self,
        build: &mut Build<'_>,
        counter: &str,
        call: &Call,
        lists: Option<&Lists>,
    ) -> Result<(), DeviceError> {
        let grouped = call.groups != 0;
        let (sequences, queries) = match grouped {
            true => (call.keys_each, call.batch),
            false => (call.batch, call.queries_each),
        };
        let width = match self.head_v {
            0..=32 => 32,
            33..=64 => 64,
            _ => 128,
        };
        let slices = self.head_v.div_ceil(width);
        let heads = if self.mean_heads { 1 } else { self.heads };
        // The bits are the same either way.
        let many = sequences * heads * slices * queries.div_ceil(64) >= BLOCKS_MANY;
        let tile = if many && queries > 16 { 64 } else { 16 };
        let tiles = queries.div_ceil(tile);
        let arguments = self.arguments(build, call, lists, (tiles, slices))?;
        let (row, column, depth, keys) = (tile + 4, width + 4, 32, 64);
        let shared = 4 * (depth * row + depth * (keys + 4) + keys * row + keys * column);
        let along = u32::try_from(heads * slices).ok().filter(|&n| n <= 65_535);
        let along = along.ok_or_else(|| refuse(format!("{heads} heads")))?;
        let grid = [blocks(sequences * tiles)?, along, 1];
        let function = format!("attention_f32_q{tile}_v{width}");
        let block = [4 * tile as u32, 1, 1];
        let name = format!("{counter}-tiles-f32");
        let launch = Launch::new(MODULE, function, name, grid, block, arguments);
        build.launch(launch.shared(shared as u32).programmatic());
        Ok(())
    }

    fn arguments(
        &self,
        build: &Build<'_>,
        call: &Call,
        lists: Option<&Lists>,
        (tiles, slices): (usize, usize),
    ) -> Result<F32Arguments, DeviceError> {
        let grouped = call.groups != 0;
        let lists = lists.copied().unwrap_or_default();
        let mut pair = [NO_PAIR; PAIRS_MAX];
        let sources = call.queries.iter().zip(&call.keys).zip(&self.scales);
        for (pair, ((q, k), &scale)) in pair.iter_mut().zip(sources) {
            *pair = Pair {
                queries: q.address,
                keys: k.address,
                query_stride: int("columns", q.stride)?,
                key_stride: int("columns", k.stride)?,
                scale,
                aligned: i32::from(q.is_aligned(self.head) && k.is_aligned(self.head)),
            };
        }
        let (bias, distances, origin, bias_heads) = match self.bias {
            None => (0, 0, 0, 0),
            Some(Bias::Relative { table, distances, origin }) => (table, distances, origin, 0),
            Some(Bias::Matrix { data, heads }) => (data, 0, 0, heads),
        };
        let y_stride = if self.mean_heads { self.head_v } else { self.heads * self.head_v };
        Ok(F32Arguments {
            header: build.header(),
            values: call.values.address,
            y: call.y,
            key_rows: lists.key_rows,
            key_positions: lists.key_positions,
            counts: lists.counts,
            query_from: lists.query_from,
            query_until: lists.query_until,
            query_positions: lists.query_positions,
            ring_keys: call.ring.map_or(0, |ring| ring.old[0]),
            ring_values: call.ring.map_or(0, |ring| ring.old[1]),
            groups: call.groups,
            group_mask: if grouped { call.mask } else { 0 },
            bias,
            batch: int("rows", call.batch)?,
            queries: int("queries", call.queries_each)?,
            keys: int("keys", call.keys_each)?,
            heads: int("heads", self.heads)?,
            head: int("columns", self.head)?,
            head_v: int("columns", self.head_v)?,
            value_stride: int("columns", call.values.stride)?,
            y_stride: int("columns", y_stride)?,
            values_aligned: i32::from(call.values.is_aligned(self.head_v)),
            capacity: int("keys", lists.capacity)?,
            ring_rows: int("rows of a ring", call.ring.map_or(0, |ring| ring.rows))?,
            causal: i32::from(self.causal),
            mean_heads: i32::from(self.mean_heads),
            pairs: call.queries.len() as i32,
            distances: int("distances", distances)?,
            origin: int("distances", origin)?,
            bias_heads: int("heads", bias_heads)?,
            tiles: int("tiles", tiles)?,
            slices: int("slices", slices)?,
            row_factor: int("rows", call.batch / build.bucket().batch.max(1))?,
            pair,
        })
    }

    /// Writes the ring as it is after the run.
    fn commit(
        &self,
        build: &mut Build<'_>,
        counter: &str,
        call: &Call,
        ring: RingPlaces,
        lists: &Lists,
    ) -> Result<(), DeviceError> {
        let value_width = if self.mean_heads { self.head_v } else { self.heads * self.head_v };
        let arguments = RingArguments {
            header: build.header(),
            old: ring.old,
            new: ring.new,
            keys: call.keys[0].address,
            values: call.values.address,
            key_rows: lists.key_rows,
            counts: lists.counts,
            olds: lists.olds,
            batch: int("rows", call.batch)?,
            time: int("positions", call.keys_each)?,
            capacity: int("keys", lists.capacity)?,
            rows: int("rows of a ring", ring.rows)?,
            key_width: int("columns", self.heads * self.head)?,
            value_width: int("columns", value_width)?,
            key_stride: int("columns", call.keys[0].stride)?,
            value_stride: int("columns", call.values.stride)?,
        };
        let along = u32::try_from(call.batch).ok().filter(|&n| n <= 65_535);
        let along = along.ok_or_else(|| refuse(format!("{} rows with rings", call.batch)))?;
        let grid = [blocks(ring.rows)?, along, 1];
        let name = format!("{counter}-ring-f32");
        let launch = Launch::new(MODULE, "attention_ring", name, grid, [128, 1, 1], arguments);
        build.launch(launch.programmatic());
        Ok(())
    }
}

impl Call {
    /// Attention over time, without groups or a ring.
    pub(crate) fn over_time(
        [queries, keys, values]: [View; 3],
        batch: usize,
        (queries_each, keys_each): (usize, usize),
        mask: u64,
        y: u64,
    ) -> Call {
        Call {
            queries: vec![queries],
            keys: vec![keys],
            values,
            batch,
            queries_each,
            keys_each,
            mask,
            groups: 0,
            y,
            ring: None,
        }
    }
}

/// How queries or keys are made ready.
#[derive(Clone, Copy, Debug)]
struct Ready {
    norm: u64,
    scale: u64,
    eps: f32,
    turns: u64,
}

/// The op with its weights on the device.
#[derive(Debug)]
pub(crate) struct LoadedAttention {
    op: Attention,
    y: ValueId,
    scores: Scores,
    /// Rows of the ring, 0 without one.
    ring_rows: usize,
}

impl LoadedAttention {
    pub(crate) fn load(
        op: &Attention,
        y: ValueId,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let ring_rows = op.ring.map_or(0, |ring| packer.state_shape(ring.keys)[0]);
        Ok(LoadedAttention { op: op.clone(), y, scores: Scores::load(op, packer)?, ring_rows })
    }

    fn ring(&self, build: &Build<'_>, ring: &KeyValueRing) -> RingPlaces {
        let states = [ring.keys, ring.values, ring.position];
        RingPlaces {
            old: states.map(|id| build.state(id)),
            new: states.map(|id| build.new_state(id)),
            rows: self.ring_rows,
        }
    }
}

impl Loaded for LoadedAttention {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.op;
        let batch = build.shape(op.queries[0].value)[0];
        let call = Call {
            queries: op.queries.iter().map(|q| View::of(build, q)).collect(),
            keys: op.keys.iter().map(|k| View::of(build, k)).collect(),
            values: View::of(build, &op.values),
            batch,
            queries_each: build.shape(op.queries[0].value)[1],
            keys_each: build.shape(op.keys[0].value)[1],
            mask: op.key_mask.map_or(0, |id| build.value(id)),
            groups: op.groups.map_or(0, |id| build.value(id)),
            y: build.value(self.y),
            ring: op.ring.as_ref().map(|ring| self.ring(build, ring)),
        };
        let counter = "attention";
        let listed = call.groups == 0 && (call.mask != 0 || call.ring.is_some());
        let lists = match listed && batch > 0 {
            true => {
                let of = ListOf {
                    batch,
                    queries: call.queries_each,
                    keys: call.keys_each,
                    mask: call.mask,
                    causal: op.causal,
                    skip_masked: self.scores.skips_masked(),
                    ring: call.ring.map_or((0, 0), |ring| (ring.old[2], ring.rows)),
                };
                Some(Lists::launch(build, counter, &of)?)
            }
            false => None,
        };
        self.scores.launch(build, counter, &call, lists.as_ref())
    }
}

/// Attention of one query, key and value on tensor cores, all features absent but causality and a
/// mask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flash {
    pub(crate) heads: usize,
    pub(crate) head: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
    /// Of queries, keys, values and results.
    pub(crate) element: Element,
    /// F32 is multiplied as it is, not as tf32.
    pub(crate) exact: bool,
}

/// One run of [`Flash`]; addresses and strides as `FlashArguments` of `ptx/attention.cuh` has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlashCall {
    pub(crate) q: u64,
    pub(crate) k: u64,
    pub(crate) v: u64,
    pub(crate) y: u64,
    /// Elements from one batch row's queries to the next's.
    pub(crate) q_batch: usize,
    pub(crate) q_stride: usize,
    pub(crate) kv_stride: usize,
    pub(crate) y_stride: usize,
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FlashArguments {
    q: u64,
    k: u64,
    v: u64,
    y: u64,
    key_rows: u64,
    counts: u64,
    query_until: u64,
    q_batch: u64,
    batch: i32,
    queries: i32,
    keys: i32,
    heads: i32,
    head: i32,
    q_stride: i32,
    kv_stride: i32,
    y_stride: i32,
    causal: i32,
    tiles: i32,
    scale_log2: f32,
    pad: i32,
}

// SAFETY: `#[repr(C)]`; 8 fields of 8 bytes, then 12 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/attention.cuh`, in its order.
unsafe impl Arguments for FlashArguments {}

impl Flash {
    /// Whether a layer's attention is of this kind, and there are kernels for it.
    pub(crate) fn takes(a: &AttentionLayer, element: Element, gpu: &Gpu) -> bool {
        let plain = a.bias.is_none()
            && a.rope.is_none()
            && a.qk_norm.is_none()
            && a.per_dim_scale.is_none();
        let fits = a.head.is_multiple_of(8) && a.head <= 128;
        let has_kernel =
            element != Element::F32 || gpu.is_hopper() && gpu.shared_bytes_max >= F32_BYTES_MAX;
        plain && fits && has_kernel && a.scale > 0.0 && a.scale.is_finite()
    }

    /// Appends the launch. `lists` where there is a mask.
    pub(crate) fn launch(
        &self,
        build: &mut Build<'_>,
        counter: &str,
        call: &FlashCall,
        lists: Option<&Lists>,
    ) -> Result<(), DeviceError> {
        if call.batch == 0 || call.queries == 0 {
            return Ok(());
        }
        let (module, family, name, bytes) = match self.element {
            Element::F16 => (MODULE, "attention_mma_f16", "f16", 2),
            Element::Bf16 => (MODULE, "attention_mma_bf16", "bf16", 2),
            Element::F32 if self.exact => (MODULE_TF32, "attention_split", "f32", 4),
            Element::F32 => (MODULE_TF32, "attention_tf32", "tf32", 4),
        };
        let units = call.batch * self.heads;
        if build.gpu().is_hopper() && self.head > 32 && self.element != Element::F32 {
            return self.launch_hopper(build, (counter, name), call, lists);
        }
        let width = match self.head {
            0..=16 => 16,
            17..=32 => 32,
            33..=64 => 64,
            65..=96 if self.element != Element::F32 => 96,
            _ => 128,
        };
        // Two parts a warp read keys half as often, one fills the GPU sooner; the bits are the
        // same.
        let many = call.queries > 64 && units * call.queries.div_ceil(128) >= BLOCKS_MANY;
        let two = width <= 64 && !self.exact && many;
        let parts = if two { 2 } else { 1 };
        let tile = 64 * parts;
        let tiles = call.queries.div_ceil(tile);
        let arguments = self.arguments(call, lists, tiles)?;
        let function = format!("{family}_w{width}_p{parts}");
        let counter = format!("{counter}-mma-{name}");
        let grid = [blocks(units * tiles)?, 1, 1];
        let pitch = if width == 96 { 128 } else { width };
        let shared = (tile + 4 * 64) * pitch * bytes;
        let launch = Launch::new(module, function, counter, grid, [128, 1, 1], arguments);
        build.launch(launch.shared(shared as u32).programmatic());
        Ok(())
    }

    /// Blocks that stay, each with its share of the units.
    fn launch_hopper(
        &self,
        build: &mut Build<'_>,
        (counter, name): (&str, &str),
        call: &FlashCall,
        lists: Option<&Lists>,
    ) -> Result<(), DeviceError> {
        let (width, stages) = if self.head <= 64 { (64, 4) } else { (128, 3) };
        let multiprocessors = build.gpu().multiprocessors.max(1) as usize;
        let heads = call.batch * self.heads;
        // Two groups of queries read keys half as often, one fills the GPU sooner; the bits are
        // the same.
        let groups = match heads * call.queries.div_ceil(128) >= multiprocessors {
            true if call.queries > 64 => 2,
            _ => 1,
        };
        let tiles = call.queries.div_ceil(64 * groups);
        let units = heads * tiles;
        int("units of attention", units)?;
        let arguments = self.arguments(call, lists, tiles)?;
        let function = format!("attention_wgmma_{name}_w{width}_g{groups}");
        let grid = [blocks(units.min(multiprocessors))?, 1, 1];
        let threads = 128 * groups as u32 + 128;
        // The ring of keys and values, and each warp's results on their way out.
        let shared = stages * 2 * 128 * width * 2 + groups * 64 * width * 2;
        let counter = format!("{counter}-wgmma-{name}");
        let module = "attention_hopper";
        let launch = Launch::new(module, function, counter, grid, [threads, 1, 1], arguments);
        build.launch(launch.shared(shared as u32).programmatic());
        Ok(())
    }

    fn arguments(
        &self,
        call: &FlashCall,
        lists: Option<&Lists>,
        tiles: usize,
    ) -> Result<FlashArguments, DeviceError> {
        let lists = lists.copied().unwrap_or_default();
        Ok(FlashArguments {
            q: call.q,
            k: call.k,
            v: call.v,
            y: call.y,
            key_rows: lists.key_rows,
            counts: lists.counts,
            query_until: lists.query_until,
            q_batch: call.q_batch as u64,
            batch: int("rows", call.batch)?,
            queries: int("queries", call.queries)?,
            keys: int("keys", call.keys)?,
            heads: int("heads", self.heads)?,
            head: int("columns", self.head)?,
            q_stride: int("columns", call.q_stride)?,
            kv_stride: int("columns", call.kv_stride)?,
            y_stride: int("columns", call.y_stride)?,
            causal: i32::from(self.causal),
            tiles: int("tiles", tiles)?,
            scale_log2: self.scale * std::f32::consts::LOG2_E,
            pad: 0,
        })
    }
}
