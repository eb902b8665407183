//! One worker's memory for attention, and what is gathered into it: keys, values and queries of one
//! head, compact, prepared and scaled.
//!
//! Does not multiply; [`super::panel`] does.

use super::low::LowScratch;
use super::panel::{KEY_BLOCK, KEYS_TILE, Unit};
use super::{Attention, View};
use crate::memory::{Buffer, Numbers};
use crate::simd::Simd;

/// One worker's memory for runs of one shape.
#[derive(Debug)]
pub struct AttentionScratch {
    /// A panel of queries, `[terms][lanes]`.
    pub(super) queries: Buffer,
    /// `[keys][terms]`, followed by a tile of zeros.
    pub(super) keys: Buffer,
    /// `[keys][value pitch]`, zeros beyond the head.
    pub(super) values: Buffer,
    /// Scores, then weights, of a block of keys: `[keys][lanes]`.
    pub(super) weights: Buffer,
    /// Weighted sums of values, `[value pitch][lanes]`.
    pub(super) sums: Buffer,
    row: Buffer,
    /// Empty where products are in `f32`.
    pub(super) low: LowScratch,
    /// Own row (or ring index) of each gathered key, and its position.
    pub(super) key_rows: Vec<u32>,
    pub(super) key_positions: Vec<i64>,
    key_turns: Vec<i64>,
    pub(super) query_rows: Vec<u32>,
    pub(super) query_positions: Vec<i64>,
    query_turns: Vec<i64>,
    /// Keys `from..until` are visible to each query.
    pub(super) spans: Vec<(u32, u32)>,
    pub(super) order: Vec<u32>,
    /// Gathered keys that come from the ring; the others are this run's.
    pub(super) ring_keys: usize,
    /// Whether this worker's part of the queries is the one that keeps the prepared keys.
    pub(super) keeps_keys: bool,
}

impl AttentionScratch {
    pub(super) fn new(op: &Attention, batch: usize, queries: usize, keys: usize) -> Self {
        let panel = 2 * op.isa.lanes();
        let pitch = op.value_pitch();
        let low = match op.dot() {
            Some(_) => LowScratch::new(op.terms(), op.head_v, keys, panel),
            None => LowScratch::default(),
        };
        AttentionScratch {
            low,
            queries: Buffer::zeroed(op.terms() * panel),
            keys: Buffer::zeroed(op.terms() * (keys + KEYS_TILE)),
            values: Buffer::zeroed(keys * pitch),
            weights: Buffer::zeroed(KEY_BLOCK * panel),
            sums: Buffer::zeroed(pitch * panel),
            row: Buffer::zeroed(op.head),
            key_rows: Vec::with_capacity(keys),
            key_positions: Vec::with_capacity(keys),
            key_turns: Vec::with_capacity(keys),
            query_rows: Vec::with_capacity(queries),
            query_positions: Vec::with_capacity(queries),
            query_turns: Vec::with_capacity(queries),
            spans: Vec::with_capacity(queries),
            order: Vec::with_capacity(batch),
            ring_keys: 0,
            keeps_keys: false,
        }
    }

    pub(super) fn clear(&mut self) {
        self.key_rows.clear();
        self.key_positions.clear();
        self.key_turns.clear();
        self.query_rows.clear();
        self.query_positions.clear();
        self.query_turns.clear();
        self.spans.clear();
        self.ring_keys = 0;
        self.keeps_keys = false;
    }

    pub(super) fn key(&mut self, row: u32, position: i64, turn: i64) {
        self.key_rows.push(row);
        self.key_positions.push(position);
        self.key_turns.push(turn);
    }

    pub(super) fn query(&mut self, row: u32, position: i64, turn: i64) {
        self.query_rows.push(row);
        self.query_positions.push(position);
        self.query_turns.push(turn);
    }

    /// Bytes of its buffers.
    pub fn bytes(&self) -> usize {
        let buffers =
            [&self.queries, &self.keys, &self.values, &self.weights, &self.sums, &self.row];
        buffers.iter().map(|b| b.len() * 4).sum::<usize>() + self.low.bytes()
    }
}

impl Unit<'_> {
    fn plain(&self) -> bool {
        self.op.rope.is_none() && self.op.qk_norm.is_none()
    }

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

    /// The slot of the ring that belongs to the row of the gathered queries.
    fn ring_row(&self) -> usize {
        self.scratch.query_rows[0] as usize / self.call.queries_each
    }

    /// Keys one below the other, the pairs' heads side by side.
    #[inline(always)]
    pub(super) unsafe fn gather_keys<S: Simd>(&mut self, s: S) {
        let (op, n) = (self.op, self.op.head);
        let terms = op.terms();
        let count = self.scratch.key_rows.len();
        let plain = self.plain();
        if let (true, None, [view]) = (plain, self.call.ring, self.call.keys) {
            let to = self.scratch.keys.as_mut_ptr();
            for (j, &row) in self.scratch.key_rows.iter().enumerate() {
                // SAFETY: key rows exist; the buffer holds all keys.
                unsafe {
                    let from = view.row(row as usize, self.head * n);
                    copy(s, view.numbers, from, to.add(j * terms), n);
                }
            }
        } else {
            // SAFETY: the caller's.
            unsafe { self.gather_prepared_keys(s) }
        }
        // A tile's keys beyond the last one must be numbers, because their scores are computed.
        let after = count * terms..(count + KEYS_TILE) * terms;
        self.scratch.keys.as_mut_slice()[after].fill(0.0);
    }

    /// Keys that come from a ring, are rotated or normalised, or are several.
    #[inline(always)]
    unsafe fn gather_prepared_keys<S: Simd>(&mut self, s: S) {
        let (op, n) = (self.op, self.op.head);
        let (terms, plain) = (op.terms(), self.plain());
        for j in 0..self.scratch.key_rows.len() {
            let row = self.scratch.key_rows[j] as usize;
            // SAFETY: key rows exist in call or ring; the buffer holds all keys.
            unsafe {
                for (p, view) in self.call.keys.iter().enumerate() {
                    let mut numbers = Numbers::Floats;
                    let from = match self.call.ring {
                        Some(ring) if j < self.scratch.ring_keys => {
                            let slot = ring.keys.row(self.ring_row()).cast_const();
                            slot.add(row * op.heads * n + self.head * n)
                        }
                        _ if plain => {
                            numbers = view.numbers;
                            view.row(row, self.head * n)
                        }
                        _ => {
                            let norm = op.qk_norm.as_ref().map(|norm| norm.key.as_slice());
                            let own = view.row(row, self.head * n);
                            self.prepare(own, self.scratch.key_turns[j], norm);
                            self.scratch.row.as_ptr()
                        }
                    };
                    let to = self.scratch.keys.as_mut_ptr().add(j * terms + p * n);
                    copy(s, numbers, from, to, n);
                    let own_key = j >= self.scratch.ring_keys && self.scratch.keeps_keys;
                    if let (Some(ring), true) = (self.call.ring, own_key) {
                        let kept = ring.new_keys.add(row * op.heads * n + self.head * n);
                        std::ptr::copy_nonoverlapping(from, kept, n);
                    }
                }
            }
        }
    }

    /// Values one below the other. Says whether all of them are finite.
    #[inline(always)]
    pub(super) unsafe fn gather_values<S: Simd>(&mut self, s: S) -> bool {
        let (op, n) = (self.op, self.op.head_v);
        let pitch = op.value_pitch();
        let column = if op.mean_heads { 0 } else { self.head * n };
        let all = if op.mean_heads { n } else { op.heads * n };
        let mut sum = s.splat(0.0);
        for j in 0..self.scratch.key_rows.len() {
            let row = self.scratch.key_rows[j] as usize;
            // SAFETY: key rows exist in call or ring; the buffer holds all values, and what follows
            // a head up to the pitch stays zero.
            unsafe {
                let (numbers, from) = match self.call.ring {
                    Some(ring) if j < self.scratch.ring_keys => {
                        let slot = ring.values.row(self.ring_row()).cast_const();
                        (Numbers::Floats, slot.add(row * all + column))
                    }
                    _ => (self.call.values.numbers, self.call.values.row(row, column)),
                };
                let to = self.scratch.values.as_mut_ptr().add(j * pitch);
                let mut d = 0;
                while d < n {
                    let x = load(s, numbers, from, d, n - d);
                    // 0 · x is 0, or NaN for what is not finite.
                    sum = s.fma(x, s.splat(0.0), sum);
                    s.store_first(to.add(d), x, n - d);
                    d += S::LANES;
                }
            }
        }
        s.sum(sum) == 0.0
    }

    /// `count` queries from `first` on as a panel: a query a lane, scaled; lanes without a query
    /// are zero.
    #[inline(always)]
    pub(super) unsafe fn gather_queries<S: Simd>(
        &mut self,
        s: S,
        first: usize,
        count: usize,
        width: usize,
    ) {
        let (op, n) = (self.op, self.op.head);
        for (p, view) in self.call.queries.iter().enumerate() {
            let scale = s.splat(op.scales[p]);
            for lanes in (0..width).step_by(S::LANES) {
                for d in (0..n).step_by(S::LANES) {
                    let mut square = [s.splat(0.0); 16];
                    for (r, x) in square.iter_mut().enumerate().take(S::LANES) {
                        if lanes + r >= count {
                            break;
                        }
                        // SAFETY: the query and its columns exist.
                        unsafe {
                            let from = self.query(view, first + lanes + r);
                            *x = s.mul(load(s, view.numbers, from, d, n - d), scale);
                            if let Some(by_dim) = &op.query_scale {
                                let by_dim = s.load_first(by_dim.as_ptr().add(d), n - d);
                                *x = s.mul(*x, by_dim);
                            }
                        }
                    }
                    s.turn(&mut square);
                    for (i, x) in square.iter().enumerate().take(S::LANES.min(n - d)) {
                        // SAFETY: the panel holds all terms.
                        unsafe {
                            let to = self.scratch.queries.as_mut_ptr();
                            s.store(to.add((p * n + d + i) * width + lanes), *x);
                        }
                    }
                }
            }
        }
    }

    /// The head of gathered query `i`, as it is or prepared.
    #[inline(always)]
    unsafe fn query(&mut self, view: &View, i: usize) -> *const f32 {
        let row = self.scratch.query_rows[i] as usize;
        // SAFETY: query rows exist.
        unsafe {
            let from = view.row(row, self.head * self.op.head);
            if self.plain() {
                return from;
            }
            let norm = self.op.qk_norm.as_ref().map(|norm| norm.query.as_slice());
            self.prepare(from, self.scratch.query_turns[i], norm);
            self.scratch.row.as_ptr()
        }
    }
}

/// Numbers `d…` of `from` as floats, at most `n` of them.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, numbers: Numbers, from: *const f32, d: usize, n: usize) -> S::V {
    // SAFETY: the caller grants the numbers.
    unsafe {
        match numbers {
            Numbers::Floats => s.load_first(from.add(d), n),
            Numbers::Halves => s.load_halves(from.cast::<u16>().add(d), n),
        }
    }
}

/// Copies `n` numbers as floats.
#[inline(always)]
unsafe fn copy<S: Simd>(s: S, numbers: Numbers, from: *const f32, to: *mut f32, n: usize) {
    let mut d = 0;
    while d < n {
        // SAFETY: the caller grants `n` numbers of both.
        unsafe { s.store_first(to.add(d), load(s, numbers, from, d, n - d), n - d) }
        d += S::LANES;
    }
}
