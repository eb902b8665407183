//! Small encoders in one launch: widths to 128, heads to 64, rows of up to 128 positions.
//!
//! Packs weights in the order in which the kernel's warps multiply, and decides how many tiles of
//! 16 positions a block owns, which never changes a bit (`ptx/encoder_small.cuh`). Not for f32,
//! rotary positions, score biases, residual scores, groups or cross attention: what is declined
//! here runs in `encoder_stack` or is lowered.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, FeedForward, Keep, NormKind, NormPlacement, NormWeights, Op,
    Product, Stack, Sublayer, SublayerKind,
};
use neural_forecast_runtime::plan::{ValueId, WeightId};

use super::{Build, Packer};
use crate::launch::{self, Launch};

/// Warps of a block. Mirrors `WARPS` of the kernels.
const WARPS: usize = 8;
/// Positions and outputs of a tile.
const TILE: usize = 16;
/// Bytes of a tile of weights or of operands, and of keys and values.
const TILE_BYTES: usize = 512;
const KEY_BYTES: usize = 1024;
/// Most positions of a row, in tiles; blocks of a cluster everywhere.
const TILES_MAX: usize = 8;
/// Most weights in bytes: beyond, a block a row reads too much to be of use.
const STREAM_BYTES_MAX: usize = 16 << 20;
/// Width; heads, tiles of a head and width inside the feed-forward; positions of plain stacks.
const PLAIN: (usize, (usize, usize, usize), usize) = (128, (8, 1, 256), 64);
/// Numbers of the kernel's options.
const CAUSAL: u32 = 1;
const GATED: u32 = 2;
const WHOLE: u32 = 4;
const FINAL_NORM: u32 = 8;
const ALIAS: u32 = 16;

/// Mirrors `encoder_small::Arguments`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Arguments {
    x: u64,
    y: u64,
    header: u64,
    mask: u64,
    stream: u64,
    vectors: u64,
    flag: u64,
    counter: u64,
    left: u64,
    time: u32,
    keep: u32,
    layers: u32,
    width: u32,
    heads: u32,
    head_tiles: u32,
    attention_tiles: u32,
    inner_tiles: u32,
    tiles: u32,
    rows_per_block: u32,
    groups: u32,
    options: u32,
    features: u32,
    feature_tiles: u32,
    outputs: u32,
    output_tiles: u32,
    batch: u32,
    key_tiles: u32,
    inverse_heads: f32,
    inverse_tiles: f32,
    inverse_width: f32,
    reserved: u32,
}

// SAFETY: `#[repr(C)]`, nine fields of 8 bytes and then twenty-two of 4: no padding; mirrors the
// kernel's struct field by field.
unsafe impl launch::Arguments for Arguments {}

/// What surrounds the layers of a whole forecast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// `[width, features]`.
    pub(super) embedding: Product,
    /// `[outputs, width]`.
    pub(super) head: Product,
}

/// Sizes of a stack that the kernel takes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    width: usize,
    /// The width that the kernel is compiled for.
    padded: usize,
    heads: usize,
    head: usize,
    /// Tiles of a head, of all heads, and of the inside of the feed-forward sublayers.
    head_tiles: usize,
    attention_tiles: usize,
    inner_tiles: usize,
    layers: usize,
    causal: bool,
    gated: bool,
    final_norm: bool,
    /// Whether it is what the kernel has its smallest instances for.
    plain: bool,
    keep: Keep,
    features: usize,
    feature_tiles: usize,
    outputs: usize,
    output_tiles: usize,
}

impl Sizes {
    /// Of the stack, or nothing where the kernel cannot compute it.
    fn of(op: &Stack, ends: Option<&Ends>, packer: &Packer<'_>) -> Option<Sizes> {
        let plain = op.memory.is_none() && op.groups.is_none() && !op.residual_scores;
        let norms = op.final_norm.iter().all(takes_norm);
        let layers: Option<Vec<_>> = op.layers.iter().map(|layer| pair(layer)).collect();
        let layers = layers.filter(|layers| plain && norms && !layers.is_empty())?;
        let (a, f) = layers[0];
        let width = *packer.shape(a.query.weight).last()?;
        let inner = *packer.shape(f.up.weight).first()?;
        let same = |&(b, g): &(&AttentionLayer, &FeedForward)| {
            (b.heads, b.head, b.causal) == (a.heads, a.head, a.causal)
                && g.gate.is_some() == f.gate.is_some()
                && packer.shape(g.up.weight)[0] == inner
                && b.bias.is_none()
                && b.rope.is_none()
                && b.qk_norm.is_none()
                && b.per_dim_scale.is_none()
        };
        let padded = [64, 128].into_iter().find(|&d| width <= d)?;
        let head_tiles = [1, 2, 4].into_iter().find(|&tiles| a.head <= tiles * TILE)?;
        if width == 0 || inner == 0 || !layers.iter().all(same) {
            return None;
        }
        let unit = unit(padded);
        let tiles = |n: usize| n.div_ceil(TILE).next_multiple_of(unit);
        let (features, outputs) = ends.map_or((0, 0), |ends| {
            let last = |id| packer.shape(id).last().copied().unwrap_or(0);
            (last(ends.embedding.weight), packer.shape(ends.head.weight)[0])
        });
        Some(Sizes {
            width,
            padded,
            heads: a.heads,
            head: a.head,
            head_tiles,
            attention_tiles: (a.heads * head_tiles).next_multiple_of(unit),
            inner_tiles: tiles(inner),
            layers: layers.len(),
            causal: a.causal,
            gated: f.gate.is_some(),
            final_norm: op.final_norm.is_some(),
            plain: width == PLAIN.0
                && (a.heads, head_tiles, inner) == PLAIN.1
                && !a.causal
                && op.mask.is_none()
                && op.layers.iter().all(|layer| is_plain(layer)),
            keep: op.keep,
            features,
            feature_tiles: tiles(features),
            outputs,
            output_tiles: outputs.div_ceil(TILE),
        })
    }

    /// Tiles across the width.
    fn across(&self) -> usize {
        self.padded / TILE
    }

    /// Floats of a layer's vectors, and of those around the layers.
    fn vectors(&self) -> (usize, usize) {
        let (d, w, i) = (self.padded, self.attention_tiles * TILE, self.inner_tiles * TILE);
        (16 + 10 * d + 3 * w + 2 * i, 16 + 3 * d + self.output_tiles * TILE)
    }

    /// Bytes of all weights, about.
    fn weights(&self) -> usize {
        let (d, w, i) = (self.across(), self.attention_tiles, self.inner_tiles);
        let layer = 4 * d * w + (if self.gated { 3 } else { 2 }) * d * i;
        (self.layers * layer + d * (self.feature_tiles + self.output_tiles)) * TILE_BYTES
    }
}

/// Tiles of a group of weights, which is what a warp waits for.
fn unit(padded: usize) -> usize {
    (padded / TILE).min(8)
}

/// The two sublayers of a layer.
fn pair(layer: &[Sublayer]) -> Option<(&AttentionLayer, &FeedForward)> {
    let [first, second] = layer else { return None };
    match (&first.kind, &second.kind) {
        (SublayerKind::SelfAttention(a), SublayerKind::FeedForward(f))
            if takes_placement(&first.norm) && takes_placement(&second.norm) =>
        {
            Some((a, f))
        }
        _ => None,
    }
}

/// Layer norms before both sublayers, GELU without a gate.
fn is_plain(layer: &[Sublayer]) -> bool {
    layer.iter().all(|sublayer| {
        let norm =
            matches!(&sublayer.norm, NormPlacement::Pre(norm) if norm.kind == NormKind::Layer);
        let feed = match &sublayer.kind {
            SublayerKind::FeedForward(f) => f.gate.is_none() && f.activation == Activation::Gelu,
            _ => true,
        };
        norm && feed
    })
}

fn takes_norm(norm: &NormWeights) -> bool {
    !matches!(norm.kind, NormKind::Group(_))
}

fn takes_placement(placement: &NormPlacement) -> bool {
    match placement {
        NormPlacement::None => true,
        NormPlacement::Pre(norm) | NormPlacement::Post(norm) => takes_norm(norm),
        NormPlacement::Sandwich { .. } => false,
    }
}

/// An encoder with its weights on the device.
#[derive(Debug)]
pub(crate) struct EncoderSmall {
    x: ValueId,
    mask: Option<ValueId>,
    sizes: Sizes,
    /// Of 8 warps, each of so many groups.
    stream: u64,
    groups: usize,
    vectors: u64,
}

/// Packs the weights of a stack that the kernel takes.
pub(crate) fn load(
    op: &Stack,
    packer: &mut Packer<'_>,
) -> Result<Option<EncoderSmall>, DeviceError> {
    EncoderSmall::load(op, None, packer)
}

/// Where a launch reads and writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) x: u64,
    pub(super) y: u64,
    pub(super) header: u64,
    pub(super) mask: u64,
    pub(super) flag: u64,
    pub(super) counter: u64,
    /// As [`HostPages::left`](super::whole::HostPages::left).
    pub(super) left: Option<u64>,
}

impl EncoderSmall {
    pub(super) fn load(
        op: &Stack,
        ends: Option<&Ends>,
        packer: &mut Packer<'_>,
    ) -> Result<Option<EncoderSmall>, DeviceError> {
        let formats = matches!(packer.precision(), Precision::F16 | Precision::Bf16);
        if !packer.gpu().is_hopper() || packer.gpu().cluster_max < TILES_MAX as u32 || !formats {
            return Ok(None);
        }
        let Some(sizes) = Sizes::of(op, ends, packer) else { return Ok(None) };
        // The shortest rows must fit.
        let max = packer.gpu().shared_bytes_max;
        let fits = Share::of(&sizes, 4, false, 1, max).or(Share::of(&sizes, 1, true, 2, max));
        let fits = fits.is_some();
        if !fits || sizes.weights() > STREAM_BYTES_MAX {
            return Ok(None);
        }
        let mut weights = Vec::new();
        for product in ends.iter().flat_map(|ends| [ends.embedding, ends.head]) {
            weights.extend([Some(product.weight), product.bias]);
        }
        weights.extend(Op::EncoderStack(op.clone()).weights().into_iter().map(Some));
        let groups = stream_groups(&sizes, ends.is_some());
        let stream = packer.packed("encoder_small stream", &weights, |packer| {
            Stream::pack(op, ends, &sizes, packer).map(|stream| stream.finish(groups))
        })?;
        let vectors = packer.packed("encoder_small vectors", &weights, |packer| {
            pack_vectors(op, ends, &sizes, packer)
        })?;
        Ok(Some(EncoderSmall { x: op.x, mask: op.mask, sizes, stream, groups, vectors }))
    }

    /// Appends the launch, or nothing and `false` where rows are too long. `y` is what the stack
    /// writes.
    pub(crate) fn build(&self, y: ValueId, build: &mut Build<'_>) -> Result<bool, DeviceError> {
        let shape = build.shape(self.x);
        let addresses = Addresses {
            x: build.value(self.x),
            y: build.value(y),
            header: build.header(),
            mask: self.mask.map_or(0, |mask| build.value(mask)),
            flag: 0,
            counter: 0,
            left: None,
        };
        Ok(self.launch(shape[0], shape[1], addresses, build))
    }

    /// Appends the launch over `batch` rows of `time` positions.
    pub(super) fn launch(
        &self,
        batch: usize,
        time: usize,
        addresses: Addresses,
        build: &mut Build<'_>,
    ) -> bool {
        let sizes = &self.sizes;
        let keep = match sizes.keep {
            Keep::All => time,
            Keep::Last(n) => n,
        };
        let (tiles, shared) = (time.div_ceil(TILE), build.gpu().shared_bytes_max);
        if tiles == 0 || keep == 0 || batch == 0 {
            return true;
        }
        let Some(share) = Share::choose(sizes, time, batch, build.gpu().multiprocessors, shared)
        else {
            return false;
        };
        let whole = addresses.flag != 0;
        let option = |on: bool, bit: u32| if on { bit } else { 0 };
        let options = option(sizes.causal, CAUSAL)
            | option(sizes.gated, GATED)
            | option(whole, WHOLE)
            | option(sizes.final_norm, FINAL_NORM)
            | option(share.alias, ALIAS);
        let plain = sizes.plain && time == PLAIN.2;
        // One cluster, of which one block writes: it conducts.
        let one = batch == 1 && plain && share.mine == 1 && keep <= time - (tiles - 1) * TILE;
        let left = addresses.left.filter(|_| one && share.cluster > 0);
        let arguments = Arguments {
            x: addresses.x,
            y: addresses.y,
            header: addresses.header,
            mask: addresses.mask,
            stream: self.stream,
            vectors: self.vectors,
            flag: addresses.flag,
            counter: addresses.counter,
            left: left.unwrap_or(0),
            time: time as u32,
            keep: keep as u32,
            layers: sizes.layers as u32,
            width: sizes.width as u32,
            heads: sizes.heads as u32,
            head_tiles: sizes.head_tiles as u32,
            attention_tiles: sizes.attention_tiles as u32,
            inner_tiles: sizes.inner_tiles as u32,
            tiles: tiles as u32,
            rows_per_block: share.rows as u32,
            groups: self.groups as u32,
            options,
            features: sizes.features as u32,
            feature_tiles: sizes.feature_tiles as u32,
            outputs: sizes.outputs as u32,
            output_tiles: sizes.output_tiles as u32,
            batch: batch as u32,
            key_tiles: share.key_tiles as u32,
            inverse_heads: 1.0 / sizes.heads as f32,
            inverse_tiles: 1.0 / tiles as f32,
            inverse_width: 1.0 / sizes.width as f32,
            reserved: 0,
        };
        let format = if build.precision() == Precision::Bf16 { "bf16" } else { "f16" };
        let (padded, kind) = (sizes.padded, if share.cluster > 0 { "c" } else { "" });
        let family = if plain { "plain".to_owned() } else { format!("d{padded}") };
        let function = format!("encoder_small_{format}_{family}_t{}{kind}", share.mine);
        let counter = if whole { "encoder_whole" } else { "encoder_stack" };
        let grid = [share.grid(batch) as u32, 1, 1];
        let threads = [32 * WARPS as u32, 1, 1];
        let module =
            if format == "f16" { "encoder_small_hopper" } else { "encoder_small_bf16_hopper" };
        let counter = format!("{counter}-small-{format}");
        let launch = Launch::new(module, function, counter, grid, threads, arguments)
            .shared(share.shared as u32)
            .clusters(share.cluster.max(1) as u32);
        build.launch(if left.is_some() { launch.lingers() } else { launch });
        true
    }
}

/// How the tiles of rows are shared among blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    /// Tiles of a block.
    mine: usize,
    /// Blocks of a row's cluster; 0 where a block has whole rows.
    cluster: usize,
    /// Rows of a block.
    rows: usize,
    key_tiles: usize,
    /// Whether activations take the place of keys.
    alias: bool,
    /// Bytes of shared memory.
    shared: usize,
}

impl Share {
    /// With `mine` tiles a block, if a row's tiles and the shared memory allow it.
    fn of(sizes: &Sizes, mine: usize, clusters: bool, tiles: usize, max: u32) -> Option<Share> {
        let cluster = if clusters { tiles.div_ceil(mine) } else { 0 };
        // A cluster of one is no cluster, which its instructions need.
        if (clusters && !(2..=TILES_MAX).contains(&cluster)) || (!clusters && tiles > mine) {
            return None;
        }
        let rows = if clusters { 1 } else { mine / tiles };
        let key_tiles = tiles.next_power_of_two();
        let alias = !clusters && key_tiles == tiles;
        let keys = rows * key_tiles * sizes.attention_tiles * KEY_BYTES;
        let active = mine * sizes.inner_tiles * TILE_BYTES;
        let inner = sizes.attention_tiles.max(sizes.feature_tiles);
        let inner = if alias { inner } else { inner.max(sizes.inner_tiles) };
        let (layer, ends) = sizes.vectors();
        // Groups of a warp's ring: `DEPTH` of the instance.
        let depth = if mine == 2 { 3 } else { 4 };
        let shared = WARPS * depth * unit(sizes.padded) * TILE_BYTES
            + mine * (sizes.across() + inner) * TILE_BYTES
            + mine * TILE * (sizes.across() + 2) * 16
            + mine * TILE * 16
            + if alias { keys.max(active) } else { (1 + usize::from(clusters)) * keys }
            + 4 * (ends + 2 * layer)
            + 48;
        // The window passes through the place of keys and values.
        let staged = mine * TILE * sizes.features * 4;
        let fits = shared <= max as usize && staged <= keys;
        fits.then_some(Share { mine, cluster, rows, key_tiles, alias, shared })
    }

    /// The share that takes least time on so many multiprocessors.
    fn choose(sizes: &Sizes, time: usize, batch: usize, units: u32, max: u32) -> Option<Share> {
        let tiles = time.div_ceil(TILE);
        let shares = [(1, true), (2, true), (4, false)].map(|(mine, clusters)| {
            // Two tiles a block have an instance for plain stacks alone.
            let known = mine != 2 || (sizes.plain && time == PLAIN.2);
            if known { Share::of(sizes, mine, clusters, tiles, max) } else { None }
        });
        shares.into_iter().flatten().min_by_key(|share| {
            let waves = share.grid(batch).div_ceil(units as usize * share.filling() / 100);
            waves * share.cost()
        })
    }

    /// Blocks for a batch.
    fn grid(&self, batch: usize) -> usize {
        if self.cluster > 0 { batch * self.cluster } else { batch.div_ceil(self.rows) }
    }

    /// Percent of the multiprocessors that blocks of this kind find: on an H200 (2026-11-21) the
    /// driver finds room for 30 clusters of 4 and 66 of 2.
    fn filling(&self) -> usize {
        if self.cluster > 2 { 91 } else { 100 }
    }

    /// Microseconds of a block, launched back to back: H200, 2026-11-21, `transformer_small`.
    fn cost(&self) -> usize {
        match self.mine {
            1 => 19,
            2 => 26,
            _ => 34,
        }
    }
}

/// Groups of the longest warp's stream.
fn stream_groups(sizes: &Sizes, whole: bool) -> usize {
    // Warp 0 has a part of everything.
    let (d, w, i, unit) =
        (sizes.across(), sizes.attention_tiles, sizes.inner_tiles, unit(sizes.padded));
    let mine = |n: usize| n.div_ceil(WARPS);
    let up = if sizes.gated { 2 } else { 1 };
    let layer = 3 * mine(w) * d + mine(d) * w + up * mine(i) * d + mine(d) * i;
    let ends = if whole { mine(d) * sizes.feature_tiles + mine(sizes.output_tiles) * d } else { 0 };
    (sizes.layers * layer + ends) / unit
}

/// A matrix in host memory, rows by columns, zero beyond.
struct Host {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Host {
    fn read(id: WeightId, packer: &Packer<'_>) -> Result<Host, DeviceError> {
        let shape = packer.shape(id);
        Ok(Host { data: packer.read(id)?, rows: shape[0], columns: shape[1] })
    }

    fn at(&self, row: Option<usize>, column: Option<usize>) -> f32 {
        match (row, column) {
            (Some(row), Some(column)) if row < self.rows && column < self.columns => {
                self.data[row * self.columns + column]
            }
            _ => 0.0,
        }
    }
}

/// Weights in the order in which each warp multiplies.
struct Stream {
    bf16: bool,
    unit: usize,
    warps: [Vec<u8>; WARPS],
}

impl Stream {
    fn pack(
        op: &Stack,
        ends: Option<&Ends>,
        sizes: &Sizes,
        packer: &Packer<'_>,
    ) -> Result<Stream, DeviceError> {
        let bf16 = packer.precision() == Precision::Bf16;
        let warps = std::array::from_fn(|_| Vec::new());
        let mut stream = Stream { bf16, unit: unit(sizes.padded), warps };
        let across = sizes.across();
        if let Some(ends) = ends {
            let embedding = Host::read(ends.embedding.weight, packer)?;
            let at = |n, k| embedding.at(Some(n), Some(k));
            stream.product(across, sizes.feature_tiles, &at);
        }
        for (a, f) in op.layers.iter().filter_map(|layer| pair(layer)) {
            stream.layer(a, f, sizes, packer)?;
        }
        if let Some(ends) = ends {
            let head = Host::read(ends.head.weight, packer)?;
            stream.product(sizes.output_tiles, across, &|n, k| head.at(Some(n), Some(k)));
        }
        Ok(stream)
    }

    fn layer(
        &mut self,
        a: &AttentionLayer,
        f: &FeedForward,
        sizes: &Sizes,
        packer: &Packer<'_>,
    ) -> Result<(), DeviceError> {
        let (across, unit) = (sizes.across(), self.unit);
        let scale = score_scale(a);
        let [query, key, value] =
            [a.query, a.key, a.value].map(|product| Host::read(product.weight, packer));
        let (query, key, value) = (query?, key?, value?);
        let parts: [&dyn Fn(usize, usize) -> f32; 3] = [
            &|n, k| key.at(sizes.column(n), Some(k)),
            &|n, k| value.at(sizes.column(n), Some(k)),
            &|n, k| query.at(sizes.column(n), Some(k)) * scale,
        ];
        for n in 0..sizes.attention_tiles {
            for k in (0..across).step_by(unit) {
                parts.iter().for_each(|part| self.group(n % WARPS, n, k, part));
            }
        }
        let output = Host::read(a.output.weight, packer)?;
        self.product(across, sizes.attention_tiles, &|n, k| output.at(Some(n), sizes.column(k)));
        let up = Host::read(f.up.weight, packer)?;
        let up = |n, k| up.at(Some(n), Some(k));
        if let Some(gate) = &f.gate {
            let gate = Host::read(gate.weight, packer)?;
            for n in 0..sizes.inner_tiles {
                for k in (0..across).step_by(unit) {
                    self.group(n % WARPS, n, k, &up);
                    self.group(n % WARPS, n, k, &|n, k| gate.at(Some(n), Some(k)));
                }
            }
        } else {
            // A warp multiplies two of its tiles at a time.
            for first in (0..sizes.inner_tiles).filter(|n| n % (2 * WARPS) < WARPS) {
                for k in (0..across).step_by(unit) {
                    for n in [first, first + WARPS] {
                        if n < sizes.inner_tiles {
                            self.group(n % WARPS, n, k, &up);
                        }
                    }
                }
            }
        }
        let down = Host::read(f.down.weight, packer)?;
        self.product(across, sizes.inner_tiles, &|n, k| down.at(Some(n), Some(k)));
        Ok(())
    }

    /// All tiles of a product whose results are tiles of the warps in turn.
    fn product(&mut self, n: usize, k: usize, at: &dyn Fn(usize, usize) -> f32) {
        for n in 0..n {
            (0..k).step_by(self.unit).for_each(|k| self.group(n % WARPS, n, k, at));
        }
    }

    /// A group: outputs of tile `n` by inputs of the tiles from `k` on, in the order of the right
    /// operand of mma.m16n8k16, two of which make a tile.
    fn group(&mut self, warp: usize, n: usize, k: usize, at: &dyn Fn(usize, usize) -> f32) {
        let bytes = &mut self.warps[warp];
        for k in k..k + self.unit {
            for lane in 0..32 {
                for i in 0..8 {
                    let row = n * TILE + lane / 4 + i / 4 * 8;
                    let column = k * TILE + lane % 4 * 2 + i % 2 + i / 2 % 2 * 8;
                    let x = at(row, column);
                    bytes.extend(if self.bf16 {
                        half::bf16::from_f32(x).to_le_bytes()
                    } else {
                        half::f16::from_f32(x).to_le_bytes()
                    });
                }
            }
        }
    }

    /// One warp's groups after the other's, each as many.
    fn finish(self, groups: usize) -> Vec<u8> {
        let bytes = groups * self.unit * TILE_BYTES;
        let mut all = Vec::with_capacity(WARPS * bytes);
        for mut warp in self.warps {
            warp.resize(bytes, 0);
            all.extend(warp);
        }
        all
    }
}

impl Sizes {
    /// The column of all heads at a padded column, if it exists.
    fn column(&self, padded: usize) -> Option<usize> {
        let width = self.head_tiles * TILE;
        let (head, at) = (padded / width, padded % width);
        (head < self.heads && at < self.head).then_some(head * self.head + at)
    }
}

/// Scores are powers of two in the kernel.
fn score_scale(a: &AttentionLayer) -> f32 {
    a.scale * std::f32::consts::LOG2_E
}

/// Norms and biases, in the order of `Layer` in the kernel; those around the layers first.
fn pack_vectors(
    op: &Stack,
    ends: Option<&Ends>,
    sizes: &Sizes,
    packer: &Packer<'_>,
) -> Result<Vec<u8>, DeviceError> {
    let d = sizes.padded;
    let mut v: Vec<f32> = Vec::new();
    let read = |id: Option<WeightId>| id.map_or(Ok(Vec::new()), |id| packer.read(id));
    let extend = |v: &mut Vec<f32>, x: &[f32], n: usize| {
        v.extend((0..n).map(|i| x.get(i).copied().unwrap_or(0.0)));
    };
    let last = Affine::of(op.final_norm.as_ref(), packer)?;
    v.extend([last.kind, 0.0, 0.0, 0.0, last.eps]);
    v.resize(16, 0.0);
    extend(&mut v, &last.weight, d);
    extend(&mut v, &last.bias, d);
    extend(&mut v, &read(ends.and_then(|ends| ends.embedding.bias))?, d);
    extend(&mut v, &read(ends.and_then(|ends| ends.head.bias))?, sizes.output_tiles * TILE);
    for layer in &op.layers {
        let Some((a, f)) = pair(layer) else { continue };
        let (activation, slope) = f.activation.code();
        let norms: Result<Vec<[Affine; 2]>, _> =
            layer.iter().map(|sublayer| Affine::around(&sublayer.norm, packer)).collect();
        let norms = norms?.concat();
        v.extend(norms.iter().map(|norm| norm.kind));
        v.extend(norms.iter().map(|norm| norm.eps));
        v.extend([f32::from_bits(activation), slope]);
        v.extend([0.0; 6]);
        for norm in &norms {
            extend(&mut v, &norm.weight, d);
            extend(&mut v, &norm.bias, d);
        }
        for (product, scale) in [(a.query, score_scale(a)), (a.key, 1.0), (a.value, 1.0)] {
            let bias = read(product.bias)?;
            v.extend(
                (0..sizes.attention_tiles * TILE)
                    .map(|i| sizes.column(i).and_then(|i| bias.get(i)).map_or(0.0, |x| x * scale)),
            );
        }
        extend(&mut v, &read(a.output.bias)?, d);
        let inner = sizes.inner_tiles * TILE;
        extend(&mut v, &read(f.up.bias)?, inner);
        extend(&mut v, &read(f.gate.and_then(|gate| gate.bias))?, inner);
        extend(&mut v, &read(f.down.bias)?, d);
    }
    Ok(v.into_iter().flat_map(f32::to_le_bytes).collect())
}

/// A norm as the kernel reads it: kind (bits of a whole number), eps, scale, shift.
#[derive(Clone, Debug, Default)]
struct Affine {
    kind: f32,
    eps: f32,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Affine {
    fn of(norm: Option<&NormWeights>, packer: &Packer<'_>) -> Result<Affine, DeviceError> {
        let Some(norm) = norm else { return Ok(Affine::default()) };
        let known = [norm.weight, norm.bias];
        let trained = match norm.kind {
            NormKind::Batch { mean, variance } => {
                Some((packer.read(mean)?, packer.read(variance)?))
            }
            _ => None,
        };
        let width = match (known.into_iter().flatten().next(), &trained) {
            (Some(id), _) => packer.shape(id)[0],
            (None, Some((mean, _))) => mean.len(),
            // Neither scale nor shift: enough ones for every width.
            (None, None) => 128,
        };
        let mut weight = match norm.weight {
            Some(id) => packer.read(id)?.iter().map(|w| w + norm.weight_offset).collect(),
            None => vec![1.0; width],
        };
        let mut bias = norm.bias.map_or(Ok(vec![0.0; width]), |id| packer.read(id))?;
        let kind = match norm.kind {
            NormKind::Layer => 1,
            NormKind::Rms => 2,
            _ => 3,
        };
        for (i, (mean, variance)) in trained.iter().flat_map(|(m, v)| m.iter().zip(v)).enumerate() {
            weight[i] /= (variance + norm.eps).sqrt();
            bias[i] -= mean * weight[i];
        }
        Ok(Affine { kind: f32::from_bits(kind), eps: norm.eps, weight, bias })
    }

    /// Before and after a sublayer.
    fn around(placement: &NormPlacement, packer: &Packer<'_>) -> Result<[Affine; 2], DeviceError> {
        Ok(match placement {
            NormPlacement::Pre(norm) => [Affine::of(Some(norm), packer)?, Affine::default()],
            NormPlacement::Post(norm) => [Affine::default(), Affine::of(Some(norm), packer)?],
            NormPlacement::None | NormPlacement::Sandwich { .. } => Default::default(),
        })
    }
}
