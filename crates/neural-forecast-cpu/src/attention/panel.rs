//! One head of attention over gathered keys: panels of queries, a query a lane.
//!
//! Scores lie key by key, `[keys][lanes]`: so the running maximum, the exponentials and the totals
//! are lane by lane and need no sums across a vector, and neither keys nor values are turned. Both
//! products are the same loop: a number of the gathered rows, the same for all lanes, times a
//! vector. Every output is one accumulator over the terms (or keys) ascending.

use super::{Attention, AttentionScratch, Bias, Call};
use crate::dot::Dot;
use crate::memory::Numbers;
use crate::simd::{Kernel, Simd};
use crate::vecmath;

/// Keys of one tile of scores: the most on any tier.
pub(super) const KEYS_TILE: usize = 8;
/// Columns of one tile of sums: the most on any tier.
pub(super) const VALUES_TILE: usize = 8;
/// Keys whose weights are held at a time. With two vectors of 16 queries these are 16 KiB: half of
/// an L1 of 32 KiB, the other half being for the rows that pass (EPYC 9004 and Xeon,
/// `examples/encoder.rs`, 2026-11-21).
pub(super) const KEY_BLOCK: usize = 128;

pub(super) struct Unit<'a> {
    pub(super) op: &'a Attention,
    pub(super) call: &'a Call<'a>,
    pub(super) head: usize,
    pub(super) scratch: &'a mut AttentionScratch,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let queries = self.scratch.query_rows.len();
        // SAFETY: `Attention::run`'s caller grants the call's memory; the scratch has its shape.
        unsafe {
            self.gather_keys(s);
            let finite = self.gather_values(s);
            // Values of a pair of keys are multiplied together: what is not finite would reach the
            // queries that see only the other one, so such a unit is computed in `f32`.
            let low = self.op.dot().filter(|_| finite);
            if let Some(dot) = low {
                self.rows_to_words(s, dot);
            }
            let spans = &self.scratch.spans;
            // A weight of zero hides a value only if the value is finite. Else queries that see
            // different keys go one by one, each over its own keys alone.
            let apart = !finite && spans.iter().any(|span| *span != spans[0]);
            let most = if apart { 1 } else { 2 * S::LANES };
            let mut first = 0;
            while first < queries {
                let count = most.min(queries - first);
                // As many rows of a tile as keep the accumulators in registers.
                match (S::LANES > 8, count > S::LANES) {
                    (true, true) => self.panel::<S, 8, 2>(s, low, first, count),
                    (true, false) => self.panel::<S, 8, 1>(s, low, first, count),
                    (false, true) => self.panel::<S, 4, 2>(s, low, first, count),
                    (false, false) => self.panel::<S, 4, 1>(s, low, first, count),
                }
                first += count;
            }
        }
    }
}

/// What each lane of a panel has seen so far.
pub(super) struct Lanes<S: Simd, const V: usize> {
    pub(super) maximum: [S::V; V],
    pub(super) total: [S::V; V],
}

impl<S: Simd, const V: usize> Lanes<S, V> {
    /// Takes the maximum of a block of scores in, and gives the number to subtract from them: zero
    /// without any finite score, because then exp(−∞) is 0.
    ///
    /// # Safety
    /// `scores` holds the panel's scores of `keys` keys.
    #[inline(always)]
    pub(super) unsafe fn center(&mut self, s: S, scores: *const f32, keys: usize) -> [S::V; V] {
        for j in 0..keys {
            for (v, top) in self.maximum.iter_mut().enumerate() {
                // A score that is NaN leaves the maximum, and reaches the total later.
                // SAFETY: the caller's.
                *top = s.max(unsafe { s.load(scores.add((j * V + v) * S::LANES)) }, *top);
            }
        }
        let mut center = self.maximum;
        for center in &mut center {
            let none = s.less(*center, s.splat(f32::MIN));
            *center = s.select(none, s.splat(0.0), *center);
        }
        center
    }
}

impl Unit<'_> {
    /// `count` queries from `first` on, over all keys that any of them sees.
    #[inline(always)]
    unsafe fn panel<S: Simd, const M: usize, const V: usize>(
        &mut self,
        s: S,
        low: Option<&Dot>,
        first: usize,
        count: usize,
    ) {
        let width = V * S::LANES;
        let pitch = self.op.value_pitch();
        let spans = &self.scratch.spans[first..first + count];
        let start = spans.iter().map(|span| span.0 as usize).min().unwrap_or(0);
        let end = spans.iter().map(|span| span.1 as usize).max().unwrap_or(0);
        let mut lanes: Lanes<S, V> =
            Lanes { maximum: [s.splat(f32::NEG_INFINITY); V], total: [s.splat(0.0); V] };
        // SAFETY: everything below stays inside the scratch, which has the call's shape.
        unsafe {
            self.gather_queries(s, first, count, width);
            if low.is_some() {
                self.queries_to_words(s, width);
            }
            let mut base = start / KEY_BLOCK * KEY_BLOCK;
            let mut fresh = true;
            while base < end {
                // Blocks begin at the same keys for every panel, so that totals add up alike.
                // Pairs of keys are the same for every panel, too.
                let from = if low.is_some() { base } else { base.max(start) };
                let keys = from..end.min(base + KEY_BLOCK);
                match low {
                    Some(dot) => self.scores_low(dot, keys.clone(), V),
                    None => {
                        for key in keys.clone().step_by(M) {
                            self.scores::<S, M, V>(s, key, key - keys.start);
                        }
                    }
                }
                self.add_bias(first..first + count, keys.clone(), width);
                self.hide::<S, V>(s, first..first + count, keys.clone());
                match low {
                    Some(dot) => {
                        let before = self.soften_low(s, keys.len(), &mut lanes);
                        let before = (!fresh).then_some(before);
                        self.weigh_low::<S, V>(s, dot, keys.clone(), before);
                    }
                    None => {
                        self.soften(s, keys.len(), &mut lanes, fresh);
                        for d in (0..pitch).step_by(M) {
                            self.weigh::<S, M, V>(s, d, keys.clone(), fresh);
                        }
                    }
                }
                fresh = false;
                base += KEY_BLOCK;
            }
            self.finish(s, first..first + count, lanes.total);
        }
    }

    /// Scores of `M` keys from `key` on, to rows `row…` of the block.
    #[inline(always)]
    unsafe fn scores<S: Simd, const M: usize, const V: usize>(
        &mut self,
        s: S,
        key: usize,
        row: usize,
    ) {
        let (terms, width) = (self.op.terms(), V * S::LANES);
        let mut acc = [[s.splat(0.0); V]; M];
        // SAFETY: a tile of zeros follows the gathered keys; the block has room for a whole tile,
        // because blocks are whole tiles long.
        unsafe {
            let keys = self.scratch.keys.as_ptr().add(key * terms);
            let queries = self.scratch.queries.as_ptr();
            for t in 0..terms {
                let mut q = [s.splat(0.0); V];
                for (v, q) in q.iter_mut().enumerate() {
                    *q = s.load(queries.add(t * width + v * S::LANES));
                }
                for (m, acc) in acc.iter_mut().enumerate() {
                    let k = s.splat(*keys.add(m * terms + t));
                    for v in 0..V {
                        acc[v] = s.fma(k, q[v], acc[v]);
                    }
                }
            }
            let to = self.scratch.weights.as_mut_ptr().add(row * width);
            for (m, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    s.store(to.add(m * width + v * S::LANES), *acc);
                }
            }
        }
    }

    /// Adds the bias of each query to its scores of `keys`.
    #[inline(always)]
    fn add_bias(
        &mut self,
        queries: std::ops::Range<usize>,
        keys: std::ops::Range<usize>,
        width: usize,
    ) {
        let Some(bias) = &self.op.bias else { return };
        for (lane, i) in queries.enumerate() {
            let position = self.scratch.query_positions[i];
            let query = self.scratch.query_rows[i] as usize % self.call.queries_each;
            for (row, j) in keys.clone().enumerate() {
                let key = self.scratch.key_positions[j];
                let value = match bias {
                    Bias::Relative { by_distance, distances, origin } => {
                        let at = (key - position + *origin as i64).clamp(0, *distances as i64 - 1);
                        by_distance[self.head * distances + at as usize]
                    }
                    Bias::Weight { data, heads } => {
                        let head = self.head.min(heads - 1);
                        let row = head * self.call.queries_each + query;
                        data[row * self.call.keys_each + key as usize]
                    }
                };
                self.scratch.weights.as_mut_slice()[row * width + lane] += value;
            }
        }
    }

    /// Scores that a query does not see become −∞.
    #[inline(always)]
    unsafe fn hide<S: Simd, const V: usize>(
        &mut self,
        s: S,
        queries: std::ops::Range<usize>,
        keys: std::ops::Range<usize>,
    ) {
        let spans = &self.scratch.spans[queries];
        let all =
            |&(from, until): &(u32, u32)| from as usize <= keys.start && until as usize >= keys.end;
        if spans.iter().all(all) {
            return;
        }
        // Lanes without a query are as the last one. Positions of keys are exact in a float.
        let (mut from, mut until) = ([0.0f32; 32], [0.0f32; 32]);
        for lane in 0..V * S::LANES {
            let (start, end) = spans[lane.min(spans.len() - 1)];
            from[lane] = start as f32;
            until[lane] = end as f32;
        }
        let hidden = s.splat(f32::NEG_INFINITY);
        for (row, j) in keys.enumerate() {
            let key = s.splat(j as f32);
            for v in 0..V {
                // SAFETY: the block holds its keys' scores; a panel is at most 32 lanes.
                unsafe {
                    let at = self.scratch.weights.as_mut_ptr().add((row * V + v) * S::LANES);
                    let mut x = s.load(at);
                    x = s.select(s.less(key, s.load(from.as_ptr().add(v * S::LANES))), hidden, x);
                    let seen = s.less(key, s.load(until.as_ptr().add(v * S::LANES)));
                    s.store(at, s.select(seen, x, hidden));
                }
            }
        }
    }

    /// Turns the block's scores into weights relative to each lane's running maximum, and rescales
    /// what was summed before.
    #[inline(always)]
    unsafe fn soften<S: Simd, const V: usize>(
        &mut self,
        s: S,
        keys: usize,
        lanes: &mut Lanes<S, V>,
        fresh: bool,
    ) {
        let weights = self.scratch.weights.as_mut_ptr();
        let before = lanes.maximum;
        // SAFETY: the block holds `keys` scores of a panel, the sums their pitch.
        unsafe {
            let center = lanes.center(s, weights, keys);
            for (v, center) in center.iter().enumerate() {
                if !fresh {
                    let factor = vecmath::exp(s, s.sub(before[v], *center));
                    lanes.total[v] = s.mul(lanes.total[v], factor);
                    let sums = self.scratch.sums.as_mut_ptr();
                    for d in 0..self.op.head_v {
                        let at = sums.add((d * V + v) * S::LANES);
                        s.store(at, s.mul(s.load(at), factor));
                    }
                }
            }
            for j in 0..keys {
                for (v, center) in center.iter().enumerate() {
                    let at = weights.add((j * V + v) * S::LANES);
                    let weight = vecmath::exp(s, s.sub(s.load(at), *center));
                    lanes.total[v] = s.add(lanes.total[v], weight);
                    s.store(at, weight);
                }
            }
        }
    }

    /// Adds the block's values, weighted, to the sums of `M` columns from `d` on.
    #[inline(always)]
    unsafe fn weigh<S: Simd, const M: usize, const V: usize>(
        &mut self,
        s: S,
        d: usize,
        keys: std::ops::Range<usize>,
        fresh: bool,
    ) {
        let pitch = self.op.value_pitch();
        let mut acc = [[s.splat(0.0); V]; M];
        // SAFETY: values are gathered with their pitch; the sums hold it too.
        unsafe {
            let sums = self.scratch.sums.as_mut_ptr().add(d * V * S::LANES);
            if !fresh {
                for (m, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = s.load(sums.add((m * V + v) * S::LANES));
                    }
                }
            }
            let mut values = self.scratch.values.as_ptr().add(keys.start * pitch + d);
            let mut weights = self.scratch.weights.as_ptr();
            for _ in keys {
                let mut w = [s.splat(0.0); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = s.load(weights.add(v * S::LANES));
                }
                for (m, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*values.add(m));
                    for v in 0..V {
                        acc[v] = s.fma(x, w[v], acc[v]);
                    }
                }
                values = values.wrapping_add(pitch);
                weights = weights.wrapping_add(V * S::LANES);
            }
            for (m, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    s.store(sums.add((m * V + v) * S::LANES), *acc);
                }
            }
        }
    }

    /// The sums over their totals, a query a row, to the output; zeros without keys.
    #[inline(always)]
    unsafe fn finish<S: Simd, const V: usize>(
        &mut self,
        s: S,
        queries: std::ops::Range<usize>,
        total: [S::V; V],
    ) {
        let op = self.op;
        let (n, width) = (op.head_v, V * S::LANES);
        let heads = if op.mean_heads { op.heads as f32 } else { 1.0 };
        let later = op.mean_heads && self.head > 0;
        for (v, total) in total.into_iter().enumerate() {
            // What no key has added to has a total below the smallest number; NaN has not.
            let empty = s.less(total, s.splat(f32::from_bits(1)));
            let share = s.div(s.splat(1.0), s.mul(total, s.splat(heads)));
            let lanes = queries.start + v * S::LANES..queries.end;
            for d in (0..n).step_by(S::LANES) {
                let mut square = [s.splat(0.0); 16];
                // SAFETY: the sums hold `n` columns.
                unsafe {
                    let sums = self.scratch.sums.as_ptr().add(d * width + v * S::LANES);
                    for (i, x) in square.iter_mut().enumerate().take(S::LANES.min(n - d)) {
                        let y = s.mul(s.load(sums.add(i * width)), share);
                        *x = s.select(empty, s.splat(0.0), y);
                    }
                }
                s.turn(&mut square);
                for (x, i) in square.iter().zip(lanes.clone()).take(S::LANES) {
                    let row = self.scratch.query_rows[i] as usize;
                    let start =
                        if op.mean_heads { row * n } else { (row * op.heads + self.head) * n };
                    // SAFETY: the query's row is this unit's part of the output.
                    unsafe {
                        if self.call.y_numbers == Numbers::Halves {
                            let to = self.call.y.cast::<u16>().add(start + d);
                            s.store_halves(to, *x, n - d);
                            continue;
                        }
                        let to = self.call.y.add(start + d);
                        let mut x = *x;
                        if later {
                            x = s.add(s.load_first(to, n - d), x);
                        }
                        s.store_first(to, x, n - d);
                    }
                }
            }
        }
    }
}
