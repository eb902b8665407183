//! Softmax attention by tiles of queries and keys, with a running maximum: no `T × T` matrix
//! exists.
//!
//! A unit of work is one head of one row (of one group and position, where attention runs over the
//! batch). It gathers the keys that are visible at all, packs them as panels, and walks tiles of
//! queries; both products are the register tiles of [`crate::tile`]. Because hidden keys are left
//! out before anything is summed, padding a context does not change bits.
//!
//! Does not project and does not read plans; `program` translates those.

use crate::counters::{Precision, Stem, count};
use crate::isa::Isa;
use crate::memory::Buffer;
use crate::rnn::StateRows;
use crate::simd::{Kernel, Simd};
use crate::team::Worker;
use crate::tile::{self, Args, K_BLOCK, ROW_STRIDE, ROWS_MAX};
use crate::vecmath;

/// Added to the scores.
#[derive(Clone, Debug)]
pub enum Bias {
    /// `by_distance[h · distances + (key − query) + origin]`, distances clamped to the table.
    Relative {
        /// One row of distances a head.
        by_distance: Vec<f32>,
        /// Distances of a row.
        distances: usize,
        /// Index of distance 0.
        origin: usize,
    },
    /// `[heads or 1, Tq, Tk]`.
    Weight {
        /// Elements.
        data: Vec<f32>,
        /// 1, or the number of heads.
        heads: usize,
    },
}

/// Rotary positions.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Whether masked positions are not counted.
    pub skip_masked: bool,
}

/// RMS normalisation of each head's queries and keys.
#[derive(Clone, Debug)]
pub struct QkNorm {
    /// `[head]`
    pub query: Vec<f32>,
    /// `[head]`
    pub key: Vec<f32>,
    /// Inside the root.
    pub eps: f32,
}

/// What stays the same from run to run.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Tier.
    pub isa: Isa,
    /// Heads.
    pub heads: usize,
    /// Width of a head of queries and keys.
    pub head: usize,
    /// Width of a head of values.
    pub head_v: usize,
    /// Scale of each pair of queries and keys.
    pub scales: Vec<f32>,
    /// Whether later positions are hidden.
    pub causal: bool,
    /// One value head, and the mean over heads as the result.
    pub mean_heads: bool,
    /// Added to the scores.
    pub bias: Option<Bias>,
    /// Rotary positions.
    pub rope: Option<Rope>,
    /// Normalised queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Multiplies each query dimension.
    pub query_scale: Option<Vec<f32>>,
}

/// Rows of queries, keys or values: row `(b, t)` starts `(b · T + t) · stride` floats after `at`.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// First row.
    pub at: *const f32,
    /// Floats between rows.
    pub stride: usize,
}

/// Keys and values of earlier runs, and where this run's are put until it is committed.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// `[capacity, heads · head]` a slot.
    pub keys: StateRows,
    /// `[capacity, heads · head_v]` a slot.
    pub values: StateRows,
    /// `[1]` a slot.
    pub position: StateRows,
    /// Rows kept.
    pub capacity: usize,
    /// Prepared keys of this run, `[batch, T, heads · head]`.
    pub new_keys: *mut f32,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// As many as scales.
    pub queries: &'a [View],
    /// As many as queries.
    pub keys: &'a [View],
    /// Values.
    pub values: View,
    /// Rows.
    pub batch: usize,
    /// Queries a row.
    pub queries_each: usize,
    /// Keys a row.
    pub keys_each: usize,
    /// `[batch, Tk]`, 1 where visible.
    pub key_mask: Option<*const f32>,
    /// `[batch]`: attention runs over the batch.
    pub groups: Option<*const i32>,
    /// Earlier keys.
    pub ring: Option<Ring>,
    /// `[batch, Tq, heads · head_v]`, or one head wide with `mean_heads`.
    pub y: *mut f32,
}

// SAFETY: pointers to memory that the workers of one run share by disjoint parts.
unsafe impl Send for Call<'_> {}
// SAFETY: as above.
unsafe impl Sync for Call<'_> {}

/// One worker's memory for runs of one shape.
#[derive(Debug)]
pub struct AttentionScratch {
    queries: Buffer,
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    sums: Buffer,
    row: Buffer,
    /// Own row (or ring index) of each gathered key, and its position.
    key_rows: Vec<u32>,
    key_positions: Vec<i64>,
    key_turns: Vec<i64>,
    query_rows: Vec<u32>,
    query_positions: Vec<i64>,
    query_turns: Vec<i64>,
    /// Keys `from..until` are visible to each query.
    spans: Vec<(u32, u32)>,
    order: Vec<u32>,
}

impl Attention {
    fn depth(&self) -> usize {
        self.scales.len()
    }

    fn value_vectors(&self) -> usize {
        self.head_v.div_ceil(self.isa.lanes()).clamp(1, 2)
    }

    /// Memory for runs of up to `batch` rows of `queries` queries and `keys` keys (those of a ring
    /// included).
    pub fn scratch(
        &self,
        batch: usize,
        queries: usize,
        keys: usize,
        groups: bool,
    ) -> AttentionScratch {
        let (queries, keys) = if groups { (batch, batch) } else { (queries, keys) };
        let lanes = self.isa.lanes();
        let terms = self.depth() * self.head;
        let value_width = self.value_vectors() * lanes;
        let value_columns = self.head_v.next_multiple_of(value_width);
        AttentionScratch {
            queries: Buffer::zeroed(terms.div_ceil(K_BLOCK).max(1) * ROWS_MAX * ROW_STRIDE),
            keys: Buffer::zeroed(terms * keys.next_multiple_of(2 * lanes)),
            values: Buffer::zeroed(keys * value_columns),
            scores: Buffer::zeroed(ROWS_MAX * ROW_STRIDE),
            sums: Buffer::zeroed(ROWS_MAX * value_columns),
            row: Buffer::zeroed(self.head),
            key_rows: Vec::with_capacity(keys),
            key_positions: Vec::with_capacity(keys),
            key_turns: Vec::with_capacity(keys),
            query_rows: Vec::with_capacity(queries),
            query_positions: Vec::with_capacity(queries),
            query_turns: Vec::with_capacity(queries),
            spans: Vec::with_capacity(queries),
            order: Vec::with_capacity(batch),
        }
    }

    /// This worker's part of a run. Ends without a barrier.
    ///
    /// # Safety
    /// The pointers of `call` reach what its fields say, `scratch` was made for its shape, all
    /// workers pass the same call, and nobody else touches its memory meanwhile.
    pub unsafe fn run(&self, call: &Call<'_>, worker: Worker<'_>, scratch: &mut AttentionScratch) {
        if worker.index() == 0 {
            count(Stem::Attention, self.isa, Precision::F32);
        }
        let heads = if self.mean_heads { 1 } else { self.heads };
        if let Some(groups) = call.groups {
            // SAFETY: the caller's: one group a row.
            let group = |b: u32| unsafe { *groups.add(b as usize) };
            let mut order = std::mem::take(&mut scratch.order);
            order.clear();
            order.extend(0..call.batch as u32);
            order.sort_unstable_by_key(|&b| (group(b), b));
            let segments = order.chunk_by(|&a, &b| group(a) == group(b));
            let mut number = 0;
            for members in segments {
                for unit in 0..call.keys_each * heads {
                    if number % worker.workers() == worker.index() {
                        // SAFETY: the caller's.
                        unsafe {
                            self.group_unit(call, members, unit / heads, unit % heads, scratch)
                        };
                    }
                    number += 1;
                }
            }
            scratch.order = order;
            return;
        }
        // Few units: split the queries too, each part packing the keys for itself.
        let units = call.batch * heads;
        let rows = self.tile_rows();
        let most = call.queries_each.div_ceil(rows).max(1);
        let parts = match worker.workers() {
            1 => 1,
            w if units.is_multiple_of(w) || units >= 8 * w => 1,
            w => w.min(most),
        };
        for unit in worker.share(units * parts) {
            let (unit, part) = (unit / parts, unit % parts);
            let tiles = most * part / parts..most * (part + 1) / parts;
            let queries = tiles.start * rows..(tiles.end * rows).min(call.queries_each);
            // SAFETY: the caller's.
            unsafe { self.time_unit(call, unit / heads, unit % heads, queries, scratch) };
        }
    }

    fn tile_rows(&self) -> usize {
        match self.isa {
            Isa::Portable(_) => crate::simd::Portable::ROWS[1],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => crate::simd::Avx2::ROWS[1],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => crate::simd::Avx512::ROWS[1],
        }
    }

    unsafe fn group_unit(
        &self,
        call: &Call<'_>,
        members: &[u32],
        t: usize,
        head: usize,
        scratch: &mut AttentionScratch,
    ) {
        let time = call.keys_each;
        scratch.clear();
        for &b in members {
            let row = b * time as u32 + t as u32;
            scratch.query(row, 0, 0);
            // SAFETY: the caller's: a mask of `[batch, Tk]`.
            if call.key_mask.is_none_or(|mask| unsafe { *mask.add(row as usize) } != 0.0) {
                scratch.key(row, 0, 0);
            }
        }
        let keys = scratch.key_rows.len() as u32;
        scratch.spans.resize(members.len(), (0, keys));
        // SAFETY: the caller's.
        unsafe { self.heads_of(call, head, 0, scratch) }
    }

    unsafe fn time_unit(
        &self,
        call: &Call<'_>,
        b: usize,
        head: usize,
        queries: std::ops::Range<usize>,
        scratch: &mut AttentionScratch,
    ) {
        if queries.is_empty() {
            return;
        }
        scratch.clear();
        let visible = |j: usize| {
            // SAFETY: the caller's: a mask of `[batch, Tk]`.
            call.key_mask.is_none_or(|mask| unsafe { *mask.add(b * call.keys_each + j) } != 0.0)
        };
        let first_query = b * call.queries_each;
        let first_key = b * call.keys_each;
        if let Some(ring) = call.ring {
            // SAFETY: the caller's: one position a slot.
            let written = unsafe { *ring.position.row(b) } as i64;
            let capacity = ring.capacity as i64;
            for position in (written - capacity).max(0)..written {
                scratch.key(position.rem_euclid(capacity) as u32, position, position);
            }
            let old = scratch.key_rows.len();
            let mut next = written;
            for t in 0..call.queries_each {
                let position = next;
                if visible(t) {
                    scratch.key((first_key + t) as u32, next, next);
                    next += 1;
                }
                if queries.contains(&t) {
                    scratch.query((first_query + t) as u32, position, position);
                    let until = scratch.key_rows.len() as u32;
                    scratch.spans.push((0, until));
                }
            }
            let all = scratch.key_rows.len() as u32;
            for i in 0..scratch.spans.len() {
                let position = scratch.query_positions[i];
                let from = scratch.key_positions.partition_point(|&k| k <= position - capacity);
                let until = if self.causal { scratch.spans[i].1 } else { all };
                scratch.spans[i] = (from as u32, until);
            }
            // SAFETY: the caller's.
            unsafe { self.heads_of(call, head, old, scratch) }
            return;
        }
        let skip = self.rope.is_some_and(|rope| rope.skip_masked);
        for j in (0..call.keys_each).filter(|&j| visible(j)) {
            let turn = if skip { scratch.key_rows.len() } else { j };
            scratch.key((first_key + j) as u32, j as i64, turn as i64);
        }
        let shift = call.keys_each as i64 - call.queries_each as i64;
        for i in queries {
            let position = i as i64 + shift;
            let seen = scratch.key_positions.partition_point(|&k| k <= position);
            let before = scratch.key_positions.partition_point(|&k| k < position);
            let turn = if skip { before as i64 } else { position };
            scratch.query((first_query + i) as u32, position, turn);
            let until = if self.causal { seen } else { scratch.key_rows.len() };
            scratch.spans.push((0, until as u32));
        }
        // SAFETY: the caller's.
        unsafe { self.heads_of(call, head, 0, scratch) }
    }

    /// One head over the gathered keys and queries, or all heads where they share a result.
    unsafe fn heads_of(
        &self,
        call: &Call<'_>,
        head: usize,
        ring_keys: usize,
        scratch: &mut AttentionScratch,
    ) {
        let heads = if self.mean_heads { 0..self.heads } else { head..head + 1 };
        for head in heads {
            self.isa.run(Unit { op: self, call, head, ring_keys, scratch: &mut *scratch });
        }
    }
}

impl AttentionScratch {
    fn clear(&mut self) {
        self.key_rows.clear();
        self.key_positions.clear();
        self.key_turns.clear();
        self.query_rows.clear();
        self.query_positions.clear();
        self.query_turns.clear();
        self.spans.clear();
    }

    fn key(&mut self, row: u32, position: i64, turn: i64) {
        self.key_rows.push(row);
        self.key_positions.push(position);
        self.key_turns.push(turn);
    }

    fn query(&mut self, row: u32, position: i64, turn: i64) {
        self.query_rows.push(row);
        self.query_positions.push(position);
        self.query_turns.push(turn);
    }

    /// Bytes of its buffers.
    pub fn bytes(&self) -> usize {
        let buffers =
            [&self.queries, &self.keys, &self.values, &self.scores, &self.sums, &self.row];
        buffers.iter().map(|b| b.len() * 4).sum()
    }
}

struct Unit<'a> {
    op: &'a Attention,
    call: &'a Call<'a>,
    head: usize,
    /// Gathered keys that come from the ring; the others are this run's.
    ring_keys: usize,
    scratch: &'a mut AttentionScratch,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // SAFETY: `Attention::run`'s caller grants the call's memory; the scratch has its shape.
        unsafe {
            self.pack_keys::<S>();
            self.pack_values(s);
            let count = self.scratch.query_rows.len().div_ceil(S::ROWS[1]);
            for tile in 0..count {
                let first = tile * S::ROWS[1];
                let rows = S::ROWS[1].min(self.scratch.query_rows.len() - first);
                self.tile(s, first, rows);
            }
        }
    }
}

impl Unit<'_> {
    /// One head of a row, rotated and normalised, into the row buffer.
    unsafe fn prepare(&mut self, from: *const f32, turn: i64, norm: Option<&[f32]>) {
        let n = self.op.head;
        let row = &mut self.scratch.row.as_mut_slice()[..n];
        // SAFETY: the caller grants a head of the row.
        row.copy_from_slice(unsafe { std::slice::from_raw_parts(from, n) });
        if let Some(rope) = self.op.rope {
            let (low, high) = row.split_at_mut(n / 2);
            for (j, (a, b)) in low.iter_mut().zip(high).enumerate() {
                let frequency = f64::from(rope.theta).powf(-2.0 * j as f64 / n as f64);
                let (sin, cos) = (turn as f64 * frequency).sin_cos();
                let (x, y) = (f64::from(*a), f64::from(*b));
                *a = (x * cos - y * sin) as f32;
                *b = (y * cos + x * sin) as f32;
            }
        }
        if let (Some(weight), Some(qk_norm)) = (norm, &self.op.qk_norm) {
            let square = row.iter().map(|x| x * x).sum::<f32>() / n as f32;
            let scale = 1.0 / (square + qk_norm.eps).sqrt();
            for (x, w) in row.iter_mut().zip(weight) {
                *x = *x * scale * w;
            }
        }
    }

    fn plain(&self) -> bool {
        self.op.rope.is_none() && self.op.qk_norm.is_none()
    }

    /// Keys as panels of two vectors of keys, term by term: `[panel][depth · head][2 · lanes]`.
    #[inline(always)]
    unsafe fn pack_keys<S: Simd>(&mut self) {
        let (op, n) = (self.op, self.op.head);
        let width = 2 * S::LANES;
        let terms = op.depth() * n;
        let count = self.scratch.key_rows.len();
        let plain = self.plain();
        for j in 0..count {
            let to = self.scratch.keys.as_mut_ptr();
            // SAFETY: key rows exist in call or ring; the panels hold all keys.
            unsafe {
                let to = to.add(j / width * terms * width + j % width);
                let row = self.scratch.key_rows[j] as usize;
                for (p, view) in self.call.keys.iter().enumerate() {
                    let own = view.at.add(row * view.stride + self.head * n);
                    let from = match self.call.ring {
                        Some(ring) if j < self.ring_keys => {
                            let b = self.scratch.query_rows[0] as usize / self.call.queries_each;
                            let slot = ring.keys.row(b).cast_const();
                            slot.add(row * op.heads * n + self.head * n)
                        }
                        _ if plain => own,
                        _ => {
                            let norm = op.qk_norm.as_ref().map(|norm| norm.key.as_slice());
                            self.prepare(own, self.scratch.key_turns[j], norm);
                            self.scratch.row.as_ptr()
                        }
                    };
                    let to = to.add(p * n * width);
                    for d in 0..n {
                        *to.add(d * width) = *from.add(d);
                    }
                    if let (Some(ring), true) = (self.call.ring, j >= self.ring_keys) {
                        let kept = ring.new_keys.add(row * op.heads * n + self.head * n);
                        std::ptr::copy_nonoverlapping(from, kept, n);
                    }
                }
            }
        }
        // Columns without a key must hold numbers, because their scores are computed.
        let padded = count.next_multiple_of(width);
        for j in count..padded {
            for d in 0..terms {
                // SAFETY: the panels are allocated in whole.
                unsafe {
                    let to = self.scratch.keys.as_mut_ptr();
                    *to.add(j / width * terms * width + d * width + j % width) = 0.0;
                }
            }
        }
    }

    /// Values as panels of one or two vectors of columns, key by key: `[panel][key][width]`.
    #[inline(always)]
    unsafe fn pack_values<S: Simd>(&mut self, s: S) {
        let op = self.op;
        let n = op.head_v;
        let width = op.value_vectors() * S::LANES;
        let count = self.scratch.key_rows.len();
        let column = if op.mean_heads { 0 } else { self.head * n };
        let all = if op.mean_heads { n } else { op.heads * n };
        for j in 0..count {
            let row = self.scratch.key_rows[j] as usize;
            // SAFETY: key rows exist in call or ring; the panels hold all keys.
            unsafe {
                let from = match self.call.ring {
                    Some(ring) if j < self.ring_keys => {
                        let b = self.scratch.query_rows[0] as usize / self.call.queries_each;
                        ring.values.row(b).cast_const().add(row * all + column)
                    }
                    _ => self.call.values.at.add(row * self.call.values.stride + column),
                };
                for p in 0..n.div_ceil(width) {
                    let to = self.scratch.values.as_mut_ptr().add((p * count + j) * width);
                    for v in 0..op.value_vectors() {
                        let at = p * width + v * S::LANES;
                        let x = s.load_first(from.wrapping_add(at), n.saturating_sub(at));
                        s.store(to.add(v * S::LANES), x);
                    }
                }
            }
        }
    }

    /// Queries into copied rows, scaled.
    #[inline(always)]
    unsafe fn copy_queries<S: Simd>(&mut self, s: S, first: usize, rows: usize) {
        let (op, n) = (self.op, self.op.head);
        let plain = self.plain();
        for r in 0..rows {
            let row = self.scratch.query_rows[first + r] as usize;
            for (p, view) in self.call.queries.iter().enumerate() {
                // SAFETY: query rows exist; the copies hold all depths.
                unsafe {
                    let mut from = view.at.add(row * view.stride + self.head * n);
                    if !plain {
                        let norm = op.qk_norm.as_ref().map(|norm| norm.query.as_slice());
                        self.prepare(from, self.scratch.query_turns[first + r], norm);
                        from = self.scratch.row.as_ptr();
                    }
                    let scale = s.splat(op.scales[p]);
                    // Terms of one head may cross a block, so they are copied in runs.
                    let mut d = 0;
                    while d < n {
                        let term = p * n + d;
                        let run = (n - d).min(K_BLOCK - term % K_BLOCK).min(S::LANES);
                        let mut x = s.mul(s.load_first(from.add(d), run), scale);
                        if let Some(by_dim) = &op.query_scale {
                            x = s.mul(x, s.load_first(by_dim.as_ptr().add(d), run));
                        }
                        let block = term / K_BLOCK * ROWS_MAX + r;
                        let to = self.scratch.queries.as_mut_ptr();
                        s.store_first(to.add(block * ROW_STRIDE + term % K_BLOCK), x, run);
                        d += run;
                    }
                }
            }
        }
    }

    /// One tile of queries over all tiles of keys.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&mut self, s: S, first: usize, rows: usize) {
        let op = self.op;
        let width = 2 * S::LANES;
        let value_width = op.value_vectors() * S::LANES;
        let value_panels = op.head_v.div_ceil(value_width);
        let count = self.scratch.key_rows.len();
        let spans = first..first + rows;
        let end = spans.clone().map(|i| self.scratch.spans[i].1 as usize).max().unwrap_or(0);
        let start = spans.map(|i| self.scratch.spans[i].0 as usize).min().unwrap_or(0);
        let mut maximum = [f32::NEG_INFINITY; ROWS_MAX];
        let mut total = [0.0f32; ROWS_MAX];
        // SAFETY: everything below stays inside the scratch, which has the call's shape.
        unsafe {
            self.copy_queries(s, first, rows);
            let scores = self.scratch.scores.as_mut_ptr();
            let sums = self.scratch.sums.as_mut_ptr();
            let columns = value_panels * value_width;
            let mut base = start / K_BLOCK * K_BLOCK;
            let mut fresh = true;
            while base < end {
                let keys = K_BLOCK.min(end - base);
                for panel in 0..keys.div_ceil(width) {
                    self.scores(s, rows, base / width + panel, scores.add(panel * width));
                }
                for r in 0..rows {
                    let (from, until) = self.scratch.spans[first + r];
                    let from = (from as usize).max(base) - base;
                    let until = (until as usize).min(base + keys).max(base + from) - base;
                    let row = scores.add(r * ROW_STRIDE);
                    self.add_bias(first + r, base, from..until, row);
                    let sum = sums.add(r * columns);
                    let (max, tot) = (&mut maximum[r], &mut total[r]);
                    let padded = keys.next_multiple_of(S::LANES);
                    soften(s, row, from..until, padded, max, tot, sum, columns, fresh);
                }
                for p in 0..value_panels {
                    let mut out = [std::ptr::null_mut(); ROWS_MAX];
                    for (r, out) in out.iter_mut().enumerate().take(rows) {
                        *out = sums.add(r * columns + p * value_width);
                    }
                    let panel = self.scratch.values.as_ptr();
                    let args = Args {
                        k: keys,
                        rows: &[scores.cast_const()],
                        panel: panel.add((p * count + base) * value_width),
                        step: value_width,
                        panel_stride: 0,
                        out: &out[..rows],
                        out_stride: 0,
                        accumulate: !fresh,
                    };
                    tile::copied(s, rows, op.value_vectors(), &args);
                }
                fresh = false;
                base += K_BLOCK;
            }
            for (r, total) in total.iter().enumerate().take(rows) {
                let sum = (!fresh).then(|| sums.add(r * columns).cast_const());
                self.finish(s, first + r, sum, *total);
            }
        }
    }

    /// Scores of a tile of queries with one panel of keys.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: S, rows: usize, panel: usize, to: *mut f32) {
        let width = 2 * S::LANES;
        let terms = self.op.depth() * self.op.head;
        for block in 0..terms.div_ceil(K_BLOCK) {
            let start = block * K_BLOCK;
            let mut out = [std::ptr::null_mut(); ROWS_MAX];
            // SAFETY: the caller's; panels and copied queries hold all terms.
            unsafe {
                for (r, out) in out.iter_mut().enumerate().take(rows) {
                    *out = to.add(r * ROW_STRIDE);
                }
                let keys = self.scratch.keys.as_ptr();
                let queries = self.scratch.queries.as_ptr();
                let args = Args {
                    k: K_BLOCK.min(terms - start),
                    rows: &[queries.add(block * ROWS_MAX * ROW_STRIDE)],
                    panel: keys.add((panel * terms + start) * width),
                    step: width,
                    panel_stride: 0,
                    out: &out[..rows],
                    out_stride: 0,
                    accumulate: block > 0,
                };
                tile::copied(s, rows, 2, &args);
            }
        }
    }

    /// Adds the bias of query `i` to the scores of keys `base + span`.
    #[inline(always)]
    unsafe fn add_bias(&self, i: usize, base: usize, span: std::ops::Range<usize>, row: *mut f32) {
        let Some(bias) = &self.op.bias else { return };
        let position = self.scratch.query_positions[i];
        for j in span {
            let key = self.scratch.key_positions[base + j];
            let value = match bias {
                Bias::Relative { by_distance, distances, origin } => {
                    let at = (key - position + *origin as i64).clamp(0, *distances as i64 - 1);
                    by_distance[self.head * distances + at as usize]
                }
                Bias::Weight { data, heads } => {
                    let (queries, keys) = (self.call.queries_each, self.call.keys_each);
                    let query = self.scratch.query_rows[i] as usize % queries;
                    let head = self.head.min(heads - 1);
                    data[(head * queries + query) * keys + key as usize]
                }
            };
            // SAFETY: the span is inside the row of scores.
            unsafe { *row.add(j) += value }
        }
    }

    /// The weighted sums of query `i` over their total, to the output; zeros without keys.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, i: usize, sums: Option<*const f32>, total: f32) {
        let op = self.op;
        let (n, row) = (op.head_v, self.scratch.query_rows[i] as usize);
        // SAFETY: the row is this unit's part of the output.
        unsafe {
            let to = match op.mean_heads {
                true => self.call.y.add(row * n),
                false => self.call.y.add((row * op.heads + self.head) * n),
            };
            let share = if op.mean_heads { total * op.heads as f32 } else { total };
            let mut d = 0;
            while d < n {
                let mut x = s.splat(0.0);
                if let (Some(sums), true) = (sums, total != 0.0) {
                    x = s.div(s.load(sums.add(d)), s.splat(share));
                }
                if op.mean_heads && self.head > 0 {
                    x = s.add(s.load_first(to.add(d), n - d), x);
                }
                s.store_first(to.add(d), x, n - d);
                d += S::LANES;
            }
        }
    }
}

/// Turns a row of scores into weights relative to the running maximum, and rescales what was summed
/// before. Scores outside `span` become 0.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the state of one row of a loop, inlined into it
unsafe fn soften<S: Simd>(
    s: S,
    row: *mut f32,
    span: std::ops::Range<usize>,
    padded: usize,
    maximum: &mut f32,
    total: &mut f32,
    sums: *mut f32,
    columns: usize,
    fresh: bool,
) {
    // SAFETY: the caller grants `padded` scores and `columns` sums.
    unsafe {
        for j in (0..span.start).chain(span.end..padded) {
            *row.add(j) = f32::NEG_INFINITY;
        }
        let mut top = s.splat(f32::NEG_INFINITY);
        let mut j = 0;
        while j < padded {
            top = s.max(top, s.load(row.add(j)));
            j += S::LANES;
        }
        let top = s.maximum(top);
        let new = if top > *maximum { top } else { *maximum };
        // Without any finite score there is nothing to subtract: exp(−∞) is 0.
        let center = s.splat(if new == f32::NEG_INFINITY { 0.0 } else { new });
        let mut sum = s.splat(0.0);
        j = 0;
        while j < padded {
            let x = vecmath::exp(s, s.sub(s.load(row.add(j)), center));
            s.store(row.add(j), x);
            sum = s.add(sum, x);
            j += S::LANES;
        }
        let mut sum = s.sum(sum);
        if !fresh && new != *maximum {
            let factor = vecmath::exp(s, s.sub(s.splat(*maximum), center));
            let mut d = 0;
            while d < columns {
                s.store(sums.add(d), s.mul(s.load(sums.add(d)), factor));
                d += S::LANES;
            }
            sum += *total * s.maximum(factor);
        } else {
            sum += *total;
        }
        *total = sum;
        *maximum = new;
    }
}
