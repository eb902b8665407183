//! `attention`: heads prepared where they are rotated or normalised, the attention itself, and the
//! ring's new rows.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{Attention, AttentionBias, Columns, Rope, relative_bucket};
use neural_forecast_runtime::plan::{ValueId, WeightId};

use super::attention_cooperative::Tile;
use super::build::word;
use super::elementwise::ELEMENTS;
use super::packer::Packed;
use super::{Build, Loaded, Packer, unsupported};
use crate::kernel;

/// Columns of a value head that an invocation each takes at a time, and how many times.
const COLUMNS: usize = 64;
const BLOCKS_MAX: usize = 4;

/// Queries of a workgroup.
const QUERIES: usize = 4;

/// Queries of a workgroup where an invocation has one of its own, how many there must be for that,
/// and most columns of a head, which it holds in registers.
const TILE_QUERIES: usize = 64;
const TILE_FROM: usize = 16;
const TILE_HEAD: usize = 64;

#[derive(Debug)]
pub(super) struct LoadedAttention {
    op: Attention,
    y: ValueId,
    /// Norms of queries and keys, factor of each query dimension, bias table or matrix.
    packed: Packed,
    /// Buckets of a table, or heads of a matrix.
    bias_rows: usize,
}

/// Where queries, keys or values of a run lie: first element, elements from a row and from a
/// position to the next.
#[derive(Clone, Copy)]
struct Lie {
    place: u32,
    row: usize,
    step: usize,
}

impl LoadedAttention {
    pub(super) fn load(
        op: &Attention,
        y: ValueId,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let bias = op.bias.map(|bias| match bias {
            AttentionBias::Relative { table, .. } => table,
            AttentionBias::Weight(matrix) => matrix,
        });
        let (query, key) = (op.qk_norm.map(|norm| norm.query), op.qk_norm.map(|norm| norm.key));
        let parts = [
            packer.optional(query)?,
            packer.optional(key)?,
            factors(op.per_dim_scale, packer)?,
            packer.optional(bias)?,
        ];
        let bias_rows = bias.map_or(1, |bias| packer.shape(bias)[0]);
        let packed = packer.pack(owner, &parts.each_ref().map(Vec::as_slice))?;
        Ok(LoadedAttention { op: op.clone(), y, packed, bias_rows })
    }

    /// Rotates, normalises and scales queries or keys, where any of it is asked for.
    fn prepared(
        &self,
        b: &mut Build<'_>,
        columns: &Columns,
        first: isize,
        (norm, factor): (Option<u32>, Option<u32>),
    ) -> Result<Lie, DeviceError> {
        let op = &self.op;
        let shape = b.shape(columns.value);
        let (rows, time, step) = (shape[0], shape[1], shape[2]);
        let x = b.value(columns.value) + word(columns.start);
        if op.rope.is_none() && norm.is_none() && factor.is_none() {
            return Ok(Lie { place: x, row: time * step, step });
        }
        let width = columns.width;
        let y = b.scratch(rows * time * width);
        let turns = op.rope.map_or(0, |rope| b.constants(&turns(rope, op.head())));
        let mode = match op.rope {
            None => 0,
            Some(_) if op.ring.is_some() => 3,
            Some(rope) if rope.skip_masked && op.key_mask.is_some() => 2,
            Some(_) => 1,
        };
        let mask_time = op.key_mask.map_or(0, |mask| b.shape(mask)[1]);
        let mask = op.key_mask.map_or(0, |mask| b.value(mask));
        let position = op.ring.map_or(0, |ring| b.state(ring.position));
        let eps = op.qk_norm.map_or(0.0, |norm| norm.eps);
        let mut words = vec![x, word(step), y];
        words.extend([rows, time, op.heads, op.head()].map(word));
        // Two's complement, as the kernel reads it.
        words.extend([first as i32 as u32, turns, norm.unwrap_or(0), factor.unwrap_or(0)]);
        words.extend([eps.to_bits(), mask, word(mask_time), position]);
        let constants = [
            ("ROPE", mode),
            ("NORM", u32::from(norm.is_some())),
            ("FACTOR", u32::from(factor.is_some())),
            ("MASK", u32::from(op.key_mask.is_some())),
        ];
        let grid = b.grid(self.y, rows * time * op.heads, ELEMENTS, 1);
        let place = (self.packed.buffer, grid);
        b.dispatch(&kernel::ATTENTION_PREPARE, &constants, words, place)?;
        Ok(Lie { place: y, row: time * width, step: width })
    }

    /// The buckets of all distances between a key and a query, from the smallest on.
    fn buckets(&self, b: &mut Build<'_>, first: isize, count: usize) -> u32 {
        let Some(AttentionBias::Relative { max_distance, bidirectional, .. }) = self.op.bias else {
            return 0;
        };
        let bucket = |i: usize| {
            let distance = first + i as isize;
            word(relative_bucket(distance, self.bias_rows, max_distance, bidirectional))
        };
        let buckets: Vec<u32> = (0..count).map(bucket).collect();
        b.constants(&buckets)
    }

    /// Whether `attention_tile` serves: many queries, small heads, and nothing out of the ordinary.
    fn is_tiled(&self, head_v: usize, queries: usize) -> bool {
        let op = &self.op;
        op.queries.len() == 1
            && op.ring.is_none()
            && op.groups.is_none()
            && op.bias.is_none()
            && !op.mean_heads
            && op.head() == head_v
            && head_v.is_multiple_of(4)
            && head_v <= TILE_HEAD
            && queries >= TILE_FROM
    }

    /// How subgroups share it, and their lanes, where they do: as `attention_tile`, where heads are
    /// matrices and everything lies at multiples of four.
    fn cooperative(
        &self,
        b: &Build<'_>,
        [queries, keys]: [usize; 2],
        lies: [Lie; 4],
    ) -> Option<(Tile, u32)> {
        let (head, lanes) = (self.op.head(), b.cooperative()?);
        let in_fours = |lie: Lie| [lie.place as usize, lie.row, lie.step].map(|n| n % 4) == [0; 3];
        let tile = Tile::of(head, queries, keys)?;
        let most = b.limits().max_compute_workgroup_storage_size as usize;
        let size = b.limits().max_compute_invocations_per_workgroup as usize;
        let fits = tile.bytes() <= most && tile.invocations(lanes) <= size;
        (fits && lies.into_iter().all(in_fours)).then_some((tile, lanes))
    }

    /// This run's rows into the ring.
    fn append(&self, b: &mut Build<'_>, keys: Lie, values: Lie) -> Result<(), DeviceError> {
        let Some(ring) = self.op.ring else { return Ok(()) };
        let shape = b.shape(self.op.keys[0].value);
        let (rows, time) = (shape[0], shape[1]);
        let key_width = self.op.keys[0].width;
        let capacity = b.state_elements(ring.keys) / key_width;
        let mut words = vec![keys.place, word(keys.row), word(keys.step)];
        words.extend([values.place, word(values.row), word(values.step), word(rows), word(time)]);
        words.push(self.op.key_mask.map_or(0, |mask| b.value(mask)));
        words.extend([b.state(ring.keys), b.state(ring.values), b.state(ring.position)]);
        words.extend([capacity, key_width, self.op.values.width].map(word));
        let constants = [("MASK", u32::from(self.op.key_mask.is_some()))];
        let grid = b.grid(self.y, rows, 1, 1);
        b.dispatch(&kernel::ATTENTION_RING, &constants, words, (0, grid))
    }
}

/// `1 / (ln 2 · √head) · softplus(w)` of each dimension.
fn factors(scale: Option<WeightId>, packer: &Packer<'_>) -> Result<Vec<f32>, DeviceError> {
    let weights = packer.optional(scale)?;
    let root = (weights.len() as f64).sqrt();
    let factor = |&w: &f32| {
        let w = f64::from(w);
        let softplus = w.max(0.0) + (-w.abs()).exp().ln_1p();
        (std::f64::consts::LOG2_E / root * softplus) as f32
    };
    Ok(weights.iter().map(factor).collect())
}

/// Turns of each pair of dimensions for 1, 64 and 4096 positions, without whole ones.
fn turns(rope: Rope, head: usize) -> Vec<u32> {
    let pair = |j: usize| {
        let exponent = -2.0 * j as f64 / head as f64;
        let turns = f64::from(rope.theta).powf(exponent) / std::f64::consts::TAU;
        [1.0, 64.0, 4096.0].map(|times| ((turns * times).fract() as f32).to_bits())
    };
    (0..head / 2).flat_map(pair).collect()
}

impl Loaded for LoadedAttention {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.op;
        let head_v = if op.mean_heads { op.values.width } else { op.values.width / op.heads };
        let blocks = head_v.div_ceil(COLUMNS);
        if blocks > BLOCKS_MAX {
            let most = COLUMNS * BLOCKS_MAX;
            let message = format!("value heads of {head_v} columns on WebGPU, at most {most}");
            return Err(unsupported(message));
        }
        let rows = b.shape(op.queries[0].value)[0];
        let queries = b.shape(op.queries[0].value)[1];
        let time = b.shape(op.keys[0].value)[1];
        let over_groups = op.groups.is_some();
        let capacity = op.ring.map_or(0, |ring| b.state_elements(ring.keys) / op.keys[0].width);
        let shift = time as isize - queries as isize;

        // The outer index is the row, or the position where rows attend to rows.
        let turned = |lie: Lie| match over_groups {
            true => [word(lie.step), word(lie.row)],
            false => [word(lie.row), word(lie.step)],
        };
        let place = |part: usize, there: bool| there.then_some(self.packed.places[part]);
        let norm = op.qk_norm.is_some();
        let query_extras = (place(0, norm), place(2, op.per_dim_scale.is_some()));
        let mut depths = Vec::new();
        let mut keys = Lie { place: 0, row: 0, step: 0 };
        let mut asked = keys;
        for ((query, key), scale) in op.queries.iter().zip(&op.keys).zip(&op.scales) {
            let query = self.prepared(b, query, shift, query_extras)?;
            asked = query;
            keys = self.prepared(b, key, 0, (place(1, norm), None))?;
            depths.push(query.place);
            depths.extend(turned(query));
            depths.push(keys.place);
            depths.extend(turned(keys));
            depths.push(scale.to_bits());
        }
        let all = b.shape(op.values.value)[2];
        let values = b.value(op.values.value) + word(op.values.start);
        let values = Lie { place: values, row: time * all, step: all };
        let width = op.values.width;
        let result = Lie { place: b.value(self.y), row: queries * width, step: width };
        let mask = Lie {
            place: op.key_mask.map_or(0, |mask| b.value(mask)),
            row: op.key_mask.map_or(0, |mask| b.shape(mask)[1]),
            step: 1,
        };
        let (distance_first, distances) = match op.ring {
            Some(_) => (1 - capacity as isize, capacity + time - 1),
            None => (1 - time as isize, (time + queries).saturating_sub(1)),
        };
        if self.is_tiled(head_v, queries)
            && time > 0
            && let Some((tile, lanes)) =
                self.cooperative(b, [queries, time], [asked, keys, values, result])
        {
            let lies = [asked, keys, values, result];
            let mut words: Vec<u32> = lies
                .into_iter()
                .flat_map(|lie| [lie.place, word(lie.row), word(lie.step)])
                .collect();
            words.extend([rows, queries, time, op.heads].map(word));
            words.extend([shift as i32 as u32, mask.place, word(mask.row)]);
            words.push(op.scales[0].to_bits());
            let mut constants = tile.constants(lanes);
            constants.extend([
                ("CAUSAL", u32::from(op.causal)),
                ("MASK", u32::from(op.key_mask.is_some())),
            ]);
            let times = op.heads * queries.div_ceil(tile.queries());
            let place = (self.packed.buffer, b.grid(self.y, rows, 1, times));
            return b.dispatch(&kernel::ATTENTION_COOPERATIVE, &constants, words, place);
        }
        let depths = b.constants(&depths);
        let buckets = self.buckets(b, distance_first, distances);
        let (outer, inner, keys_seen) = match (over_groups, op.ring.is_some()) {
            (true, _) => (queries, rows, rows),
            (false, true) => (rows, queries, capacity + time),
            (false, false) => (rows, queries, time),
        };
        let mut words = vec![depths, values.place];
        words.extend(turned(values));
        words.push(result.place);
        words.extend(turned(result));
        words.extend([outer, inner, keys_seen, op.heads, op.head(), head_v].map(word));
        words.extend([shift as i32 as u32, mask.place]);
        words.extend(turned(mask));
        words.extend([buckets, distance_first as i32 as u32]);
        words.extend([self.packed.places[3], word(self.bias_rows)]);
        words.push(op.groups.map_or(0, |groups| b.value(groups)));
        words.push(word(rows / b.bucket().batch.max(1)));
        let state = |id: Option<_>| id.map_or(0, |id| b.state(id));
        words.push(state(op.ring.map(|ring| ring.keys)));
        words.push(state(op.ring.map(|ring| ring.values)));
        words.push(state(op.ring.map(|ring| ring.position)));
        words.extend([capacity, op.keys[0].width, width].map(word));
        let bias = match op.bias {
            Some(AttentionBias::Relative { .. }) => 1,
            // A matrix says nothing of the rows of a ring.
            Some(AttentionBias::Weight(_)) if op.ring.is_none() => 2,
            _ => 0,
        };
        if self.is_tiled(head_v, queries) {
            let constants = [
                ("FOURS", word(head_v / 4)),
                ("CAUSAL", u32::from(op.causal)),
                ("MASK", u32::from(op.key_mask.is_some())),
            ];
            let times = op.heads * queries.div_ceil(TILE_QUERIES);
            let place = (self.packed.buffer, b.grid(self.y, rows, 1, times));
            return b.dispatch(&kernel::ATTENTION_TILE, &constants, words, place);
        }
        let constants = [
            ("DEPTHS", word(op.queries.len())),
            ("BLOCKS", word(blocks)),
            ("CAUSAL", u32::from(op.causal)),
            ("MASK", u32::from(op.key_mask.is_some())),
            ("BIAS", bias),
            ("GROUPS", u32::from(over_groups)),
            ("RING", u32::from(op.ring.is_some())),
            ("MEAN", u32::from(op.mean_heads)),
        ];
        let each = if op.mean_heads { 1 } else { op.heads };
        let times = each * inner.div_ceil(QUERIES);
        let grid = match over_groups {
            true => b.fixed_grid(outer, 1, times),
            false => b.grid(self.y, outer, 1, times),
        };
        b.dispatch(&kernel::ATTENTION, &constants, words, (self.packed.buffer, grid))?;
        self.append(b, keys, values)
    }
}
