//! The products of attention in bf16, on tiers that multiply it: queries, keys, values and weights
//! are rounded, sums and the softmax between the products stay `f32`.
//!
//! Keys and values are rows of words, queries and weights panels of them, as [`crate::dot`] lays
//! them out. Values are turned, because their products run over keys. The sums of each block of
//! keys are added to those before it.

use super::panel::{KEY_BLOCK, Lanes, Unit};
use crate::dot::{self, Dot, WORDS_MULTIPLE};
use crate::memory::Buffer;
use crate::simd::Simd;
use crate::vecmath;
use std::ops::Range;

/// Words of a row of so many terms: an odd number of cache lines, so that equal words of a tile's
/// rows do not fall into one set of L1.
fn words(terms: usize) -> usize {
    WORDS_MULTIPLE * (terms.div_ceil(2).div_ceil(WORDS_MULTIPLE) | 1)
}

/// Word rows of a panel of so many terms, with those that tile registers multiply beyond them.
fn whole_words(terms: usize) -> usize {
    terms.div_ceil(2).next_multiple_of(WORDS_MULTIPLE)
}

/// Word rows of a panel beyond its terms become zero: what earlier panels left there need not be
/// finite.
///
/// # Safety
/// `panel` is writable for [`whole_words`] of the terms.
unsafe fn pad(panel: *mut f32, terms: usize, width: usize) {
    let rows = terms.div_ceil(2)..whole_words(terms);
    // SAFETY: the caller's.
    unsafe { std::ptr::write_bytes(panel.add(rows.start * width), 0, rows.len() * width) }
}

/// What products in bf16 need beside the gathered floats.
#[derive(Debug, Default)]
pub(super) struct LowScratch {
    /// `[keys][words of terms]`
    keys: Buffer,
    /// `[columns][keys]`, floats.
    turned: Buffer,
    /// `[columns][words of keys]`
    values: Buffer,
    /// A panel of queries, `[words of terms][lanes]`.
    queries: Buffer,
    /// A block's sums, `[columns][lanes]`.
    sums: Buffer,
}

impl LowScratch {
    pub(super) fn new(terms: usize, columns: usize, keys: usize, panel: usize) -> Self {
        LowScratch {
            keys: Buffer::zeroed(keys * words(terms)),
            turned: Buffer::zeroed(columns.next_multiple_of(16) * keys.next_multiple_of(16)),
            values: Buffer::zeroed(columns * words(keys)),
            queries: Buffer::zeroed(whole_words(terms) * panel),
            sums: Buffer::zeroed(columns * panel),
        }
    }

    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) fn each_mut(&mut self) -> [&mut Buffer; 5] {
        let LowScratch { keys, turned, values, queries, sums } = self;
        [keys, turned, values, queries, sums]
    }

    /// Bytes of its buffers.
    pub(super) fn bytes(&self) -> usize {
        let buffers = [&self.keys, &self.turned, &self.values, &self.queries, &self.sums];
        buffers.iter().map(|buffer| buffer.len() * 4).sum()
    }
}

impl Unit<'_> {
    /// The gathered keys and values as rows of words.
    #[inline(always)]
    pub(super) unsafe fn rows_to_words<S: Simd>(&mut self, s: S, dot: &Dot) {
        let (terms, columns) = (self.op.terms(), self.op.head_v);
        let count = self.scratch.key_rows.len();
        let (pitch, value_pitch) = (words(terms), words(count));
        let turned_pitch = count.next_multiple_of(S::LANES);
        let from = self.scratch.keys.as_ptr();
        let low = &mut self.scratch.low;
        for j in 0..count {
            // SAFETY: key `j` was gathered; its words are allocated.
            unsafe {
                let to = low.keys.as_mut_ptr().add(j * pitch).cast();
                dot.convert(from.add(j * terms), terms, to, pitch);
            }
        }
        let from_pitch = self.op.value_pitch();
        for j in (0..count).step_by(S::LANES) {
            for d in (0..columns).step_by(S::LANES) {
                let mut square = [s.splat(0.0); 16];
                // SAFETY: values were gathered with their pitch; turned, they have whole squares.
                unsafe {
                    let from = self.scratch.values.as_ptr().add(j * from_pitch + d);
                    for (i, x) in square.iter_mut().enumerate().take(S::LANES.min(count - j)) {
                        *x = s.load_first(from.add(i * from_pitch), columns - d);
                    }
                    s.turn(&mut square);
                    let to = low.turned.as_mut_ptr().add(d * turned_pitch + j);
                    for (i, x) in square.iter().enumerate().take(S::LANES.min(columns - d)) {
                        s.store(to.add(i * turned_pitch), *x);
                    }
                }
            }
        }
        for d in 0..columns {
            // SAFETY: column `d` was turned; its words are allocated.
            unsafe {
                let from = low.turned.as_ptr().add(d * turned_pitch);
                let to = low.values.as_mut_ptr().add(d * value_pitch).cast();
                dot.convert(from, count, to, value_pitch);
            }
        }
    }

    /// The gathered panel of queries as words.
    #[inline(always)]
    pub(super) unsafe fn queries_to_words<S: Simd>(&mut self, s: S, width: usize) {
        let terms = self.op.terms();
        // SAFETY: the panel has room for whole words.
        unsafe { pad(self.scratch.low.queries.as_mut_ptr(), terms, width) }
        for term in (0..terms).step_by(2) {
            for lanes in (0..width).step_by(S::LANES) {
                // SAFETY: the panel holds its terms, the words half as many.
                unsafe {
                    let from = self.scratch.queries.as_ptr().add(term * width + lanes);
                    let mut odd = s.splat(0.0);
                    if term + 1 < terms {
                        odd = s.load(from.add(width));
                    }
                    let to = self.scratch.low.queries.as_mut_ptr();
                    s.store_pairs(to.add(term / 2 * width + lanes).cast(), s.load(from), odd);
                }
            }
        }
    }

    /// Scores of a block of keys.
    #[inline(always)]
    pub(super) unsafe fn scores_low(&mut self, dot: &Dot, keys: Range<usize>, vectors: usize) {
        let (terms, width) = (self.op.terms(), vectors * self.op.isa.lanes());
        let pitch = words(terms);
        for key in keys.clone().step_by(dot.rows(vectors)) {
            // SAFETY: keys and queries are words by now; the block holds the keys' scores.
            unsafe {
                dot.tile(&dot::Args {
                    words: terms.div_ceil(2),
                    x: self.scratch.low.keys.as_ptr().add(key * pitch).cast(),
                    x_stride: pitch,
                    rows: dot.rows(vectors).min(keys.end - key),
                    panel: self.scratch.low.queries.as_ptr().cast(),
                    vectors,
                    panels: 1,
                    panel_stride: 0,
                    out: self.scratch.weights.as_mut_ptr().add((key - keys.start) * width).cast(),
                    out_stride: width,
                });
            }
        }
    }

    /// Turns the block's scores into weights relative to each lane's running maximum, the weights
    /// of two keys a word, in place. Gives the factor of what was summed before. The exponentials
    /// are as exact as weights need that become bf16.
    #[inline(always)]
    pub(super) unsafe fn soften_low<S: Simd, const V: usize>(
        &mut self,
        s: S,
        keys: usize,
        lanes: &mut Lanes<S, V>,
    ) -> [S::V; V] {
        let weights = self.scratch.weights.as_mut_ptr();
        let log2_e = s.splat(std::f32::consts::LOG2_E);
        let before = lanes.maximum;
        let mut factor = before;
        // SAFETY: the block holds `keys` scores of a panel; a pair's row is not behind the rows
        // that were read.
        unsafe {
            let mut center = lanes.center(s, weights, keys);
            for (v, factor) in factor.iter_mut().enumerate() {
                // Exactly one where the maximum stays: a block that a query does not see must leave
                // no trace in its sums.
                let shift = s.mul(s.sub(before[v], center[v]), log2_e);
                *factor = vecmath::rough_exp2_negative(s, shift);
                lanes.total[v] = s.mul(lanes.total[v], *factor);
                center[v] = s.mul(center[v], log2_e);
            }
            for j in (0..keys).step_by(2) {
                for (v, center) in center.iter().enumerate() {
                    let minus = s.sub(s.splat(0.0), *center);
                    let at = weights.add((j * V + v) * S::LANES);
                    let even = s.fma(s.load(at), log2_e, minus);
                    let even = vecmath::rough_exp2_negative(s, even);
                    lanes.total[v] = s.add(lanes.total[v], even);
                    let mut odd = s.splat(0.0);
                    if j + 1 < keys {
                        odd = s.fma(s.load(at.add(V * S::LANES)), log2_e, minus);
                        odd = vecmath::rough_exp2_negative(s, odd);
                        lanes.total[v] = s.add(lanes.total[v], odd);
                    }
                    s.store_weights(weights.add((j / 2 * V + v) * S::LANES).cast(), even, odd);
                }
            }
            pad(weights, keys, V * S::LANES);
        }
        factor
    }

    /// Adds the block's values, weighted by pairs, to the sums: what was summed `before` times its
    /// factors, if there was any.
    #[inline(always)]
    pub(super) unsafe fn weigh_low<S: Simd, const V: usize>(
        &mut self,
        s: S,
        dot: &Dot,
        keys: Range<usize>,
        before: Option<[S::V; V]>,
    ) {
        debug_assert!(keys.start.is_multiple_of(KEY_BLOCK));
        let (columns, width) = (self.op.head_v, V * S::LANES);
        let pitch = words(self.scratch.key_rows.len());
        let to = match before {
            None => self.scratch.sums.as_mut_ptr(),
            Some(_) => self.scratch.low.sums.as_mut_ptr(),
        };
        // SAFETY: values and weights are words by now; both buffers of sums hold all columns.
        unsafe {
            for d in (0..columns).step_by(dot.rows(V)) {
                dot.tile(&dot::Args {
                    words: keys.len().div_ceil(2),
                    x: self.scratch.low.values.as_ptr().add(d * pitch + keys.start / 2).cast(),
                    x_stride: pitch,
                    rows: dot.rows(V).min(columns - d),
                    panel: self.scratch.weights.as_ptr().cast(),
                    vectors: V,
                    panels: 1,
                    panel_stride: 0,
                    out: to.add(d * width).cast(),
                    out_stride: width,
                });
            }
            let Some(factors) = before else { return };
            let sums = self.scratch.sums.as_mut_ptr();
            for d in 0..columns {
                for (v, factor) in factors.iter().enumerate() {
                    let i = (d * V + v) * S::LANES;
                    let sum = s.fma(s.load(sums.add(i)), *factor, s.load(to.add(i)));
                    s.store(sums.add(i), sum);
                }
            }
        }
    }
}
