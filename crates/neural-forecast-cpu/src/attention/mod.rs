//! Softmax attention by panels of queries and blocks of keys, with a running maximum: no `T × T`
//! matrix exists.
//!
//! A unit of work is one head of one row (of one group and position, where attention runs over the
//! batch). It gathers the keys and values that are visible at all, row by row as they are, and
//! walks panels of queries (`panel`), a query a lane. Because hidden keys are left out before
//! anything is summed, padding a context does not change bits.
//!
//! Does not project and does not read plans; `program` translates those.

use crate::counters::{Precision, Stem, count};
use crate::dot::Dot;
use crate::isa::Isa;
use crate::memory::Numbers;
use crate::rnn::StateRows;
use crate::team::Worker;

mod gather;
mod low;
mod panel;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

pub use gather::AttentionScratch;
use panel::Unit;

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
    /// Below `f32`, products are in bf16 on tiers that multiply it.
    pub precision: Precision,
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

/// Rows of queries, keys or values: row `(b, t)` starts `(b · T + t) · stride` numbers after `at`.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// First row.
    pub at: *const f32,
    /// Numbers between rows.
    pub stride: usize,
    /// How they are kept; halves only where [`Attention::takes_halves`].
    pub numbers: Numbers,
}

impl View {
    /// Rows of floats.
    pub fn floats(at: *const f32, stride: usize) -> View {
        View { at, stride, numbers: Numbers::Floats }
    }

    /// The first of row `row`'s numbers from `column` on.
    ///
    /// # Safety
    /// The row and the column exist.
    unsafe fn row(&self, row: usize, column: usize) -> *const f32 {
        // SAFETY: the caller's.
        unsafe { self.numbers.at(self.at, row * self.stride + column) }
    }
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
    /// How it is kept; floats with `mean_heads`.
    pub y_numbers: Numbers,
}

// SAFETY: pointers to memory that the workers of one run share by disjoint parts.
unsafe impl Send for Call<'_> {}
// SAFETY: as above.
unsafe impl Sync for Call<'_> {}

impl Attention {
    /// How its products are computed, if not in `f32`.
    fn dot(&self) -> Option<&'static Dot> {
        match self.precision {
            // Products of values and keys in f16 would not reach what the weights keep.
            Precision::F32 | Precision::F16 => None,
            #[cfg(all(test, target_arch = "x86_64"))]
            _ if tests::in_tile_registers() => tests::emulated(self.isa),
            _ => Dot::of(self.isa, Precision::Bf16),
        }
    }

    /// In which precision it multiplies.
    pub fn counted(&self) -> Precision {
        if self.dot().is_some() { Precision::Bf16 } else { Precision::F32 }
    }

    /// Whether it reads queries, keys and values that are kept as bf16: where it multiplies in bf16
    /// and does nothing with them before.
    pub fn takes_halves(&self) -> bool {
        self.dot().is_some() && self.rope.is_none() && self.qk_norm.is_none()
    }

    /// Floats between gathered values.
    fn value_pitch(&self) -> usize {
        self.head_v.next_multiple_of(panel::VALUES_TILE)
    }

    fn depth(&self) -> usize {
        self.scales.len()
    }

    /// Numbers of a query or key: a head of each pair.
    fn terms(&self) -> usize {
        self.depth() * self.head
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
        AttentionScratch::new(self, batch, queries, keys)
    }

    /// This worker's part of a run. Ends without a barrier.
    ///
    /// # Safety
    /// The pointers of `call` reach what its fields say, `scratch` was made for its shape, all
    /// workers pass the same call, and nobody else touches its memory meanwhile.
    pub unsafe fn run(&self, call: &Call<'_>, worker: Worker<'_>, scratch: &mut AttentionScratch) {
        assert!(call.y_numbers == Numbers::Floats || !self.mean_heads, "means are kept as floats");
        if worker.index() == 0 {
            count(Stem::Attention, self.isa, self.counted());
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
                let mut seen = None;
                for unit in 0..call.keys_each * heads {
                    if number % worker.workers() == worker.index() {
                        let (t, head) = (unit / heads, unit % heads);
                        // SAFETY: the caller's.
                        unsafe {
                            if seen.replace(t) != Some(t) {
                                see_group(call, members, t, scratch);
                            }
                            self.heads_of(call, head, scratch);
                        }
                    }
                    number += 1;
                }
            }
            scratch.order = order;
            return;
        }
        // Few units: split the queries too, each part gathering the keys for itself.
        let units = call.batch * heads;
        let panels = call.queries_each.div_ceil(self.isa.lanes());
        let parts = match worker.workers() {
            1 => 1,
            w if units.is_multiple_of(w) || units >= 8 * w => 1,
            w => w.min(panels.max(1)),
        };
        let mut seen = None;
        for unit in worker.share(units * parts) {
            let (lists, head) = (unit / heads, unit % heads);
            // SAFETY: the caller's.
            unsafe {
                if seen.replace(lists) != Some(lists) {
                    let (b, part) = (lists / parts, lists % parts);
                    let start = panels * part / parts * self.isa.lanes();
                    let end = panels * (part + 1) / parts * self.isa.lanes();
                    let queries = start..end.min(call.queries_each);
                    match &call.ring {
                        Some(ring) => self.see_ring(call, ring, b, queries, scratch),
                        None => self.see_time(call, b, queries, scratch),
                    }
                    scratch.keeps_keys = part == 0;
                }
                self.heads_of(call, head, scratch);
            }
        }
    }

    /// Lists earlier keys and this run's, and which of them each query sees.
    unsafe fn see_ring(
        &self,
        call: &Call<'_>,
        ring: &Ring,
        b: usize,
        queries: std::ops::Range<usize>,
        scratch: &mut AttentionScratch,
    ) {
        scratch.clear();
        // SAFETY: the caller's: one position a slot.
        let written = unsafe { *ring.position.row(b) } as i64;
        let capacity = ring.capacity as i64;
        for position in (written - capacity).max(0)..written {
            scratch.key(position.rem_euclid(capacity) as u32, position, position);
        }
        scratch.ring_keys = scratch.key_rows.len();
        let mut next = written;
        for t in 0..call.queries_each {
            let position = next;
            // SAFETY: the caller's.
            if unsafe { call.visible(b, t) } {
                scratch.key((b * call.keys_each + t) as u32, next, next);
                next += 1;
            }
            if queries.contains(&t) {
                scratch.query((b * call.queries_each + t) as u32, position, position);
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
    }

    /// Lists the keys of a row, and which of them each query sees.
    unsafe fn see_time(
        &self,
        call: &Call<'_>,
        b: usize,
        queries: std::ops::Range<usize>,
        scratch: &mut AttentionScratch,
    ) {
        scratch.clear();
        let skip = self.rope.is_some_and(|rope| rope.skip_masked);
        for j in 0..call.keys_each {
            // SAFETY: the caller's.
            if unsafe { call.visible(b, j) } {
                let turn = if skip { scratch.key_rows.len() } else { j };
                scratch.key((b * call.keys_each + j) as u32, j as i64, turn as i64);
            }
        }
        let all = scratch.key_rows.len();
        let shift = call.keys_each as i64 - call.queries_each as i64;
        for i in queries {
            let position = i as i64 + shift;
            let (mut turn, mut until) = (position, all);
            if skip {
                turn = scratch.key_positions.partition_point(|&k| k < position) as i64;
            }
            if self.causal {
                until = scratch.key_positions.partition_point(|&k| k <= position);
            }
            scratch.query((b * call.queries_each + i) as u32, position, turn);
            scratch.spans.push((0, until as u32));
        }
    }

    /// One head over the gathered keys and queries, or all heads where they share a result.
    unsafe fn heads_of(&self, call: &Call<'_>, head: usize, scratch: &mut AttentionScratch) {
        let heads = if self.mean_heads { 0..self.heads } else { head..head + 1 };
        for head in heads {
            self.isa.run(Unit { op: self, call, head, scratch: &mut *scratch });
        }
    }
}

impl Call<'_> {
    /// Whether key `j` of row `b` is visible.
    ///
    /// # Safety
    /// The mask is there, if there is one.
    unsafe fn visible(&self, b: usize, j: usize) -> bool {
        // SAFETY: the caller's: a mask of `[batch, Tk]`.
        self.key_mask.is_none_or(|mask| unsafe { *mask.add(b * self.keys_each + j) } != 0.0)
    }
}

/// Lists the members of a group at one position: all see all that are visible.
unsafe fn see_group(call: &Call<'_>, members: &[u32], t: usize, scratch: &mut AttentionScratch) {
    scratch.clear();
    for &b in members {
        let row = b * call.keys_each as u32 + t as u32;
        scratch.query(row, 0, 0);
        // SAFETY: the caller's.
        if unsafe { call.visible(b as usize, t) } {
            scratch.key(row, 0, 0);
        }
    }
    let keys = scratch.key_rows.len() as u32;
    scratch.spans.resize(members.len(), (0, keys));
}
