//! The walk over rows and panels in f32 arithmetic, with weights kept as f32, f16 or bf16.
//!
//! Few rows are read in place, more are copied next to each other in blocks that L2 holds. Products
//! in lower arithmetic walk in [`super::low`].

use super::low::Low;
use super::parts::Parts;
use super::{Finish, Packed};
use crate::counters::Precision;
use crate::dot::registers::SUMS_AT_ONCE;
use crate::isa::Isa;
use crate::memory::{Buffer, Numbers, RowMap};
use crate::simd::{Kernel, Simd};
use crate::tile::{
    self, Args, Format, Half, HalfRows, K_BLOCK, ROW_STRIDE, ROWS_DIRECT, ROWS_MAX, Single,
};
use std::ops::Range;

/// Copied rows (times blocks of `k`) that one worker holds: 264 · 3136 bytes stay in L2 beside a
/// panel.
const COPIED_ROWS: usize = 264;
/// Rows of one pass where `k` needs a single block.
pub(super) const PASS_ROWS: usize = 264;
pub(super) const WIDTH_MAX: usize = 64;
/// Sums that wait for what follows: of a tile of floats over four panels, or of a pass of rows over
/// what tile registers take at once.
const SUMS: usize = {
    let (floats, pass) = (ROWS_MAX * WIDTH_MAX * 4, PASS_ROWS * WIDTH_MAX);
    let most = if floats > pass { floats } else { pass };
    if most > SUMS_AT_ONCE { most } else { SUMS_AT_ONCE }
};

/// What one worker needs to run products: copies of input rows, a widened panel, one tile, scales.
#[derive(Debug)]
pub struct Scratch {
    pub(super) copied: Buffer,
    pub(super) widened: Buffer,
    pub(super) tile: Buffer,
    /// Of each converted row.
    pub(super) scales: Buffer,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Scratch {
    /// Allocates it; about 0.9 MB.
    pub fn new() -> Self {
        Scratch {
            copied: Buffer::zeroed(COPIED_ROWS * ROW_STRIDE),
            widened: Buffer::zeroed(K_BLOCK * WIDTH_MAX),
            tile: Buffer::zeroed(SUMS),
            scales: Buffer::zeroed(PASS_ROWS),
        }
    }
}

/// Terms that another worker is still writing.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// Terms before this one are there.
    pub terms: usize,
    /// Returns when the others are.
    pub wait: &'a dyn Fn(),
}

impl std::fmt::Debug for Arrival<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// Rows times panels, with whatever follows.
#[derive(Clone, Debug)]
pub struct Product<'a, F> {
    /// Input `[rows, k]`.
    pub x: *const f32,
    /// Where its rows are.
    pub x_map: RowMap,
    /// Weights.
    pub weights: &'a Packed,
    /// Rows to compute.
    pub rows: Range<usize>,
    /// Panels to compute.
    pub panels: Range<usize>,
    /// Whether to walk the panels from the last to the first: alternating steps of a recurrence do,
    /// so that what is still in the cache is read first.
    pub backwards: bool,
    /// Which terms of the rows to wait for, if any: the first panels sum what is there meanwhile.
    pub arrival: Option<Arrival<'a>>,
    /// What follows.
    pub finish: F,
}

impl<F: Finish> Product<'_, F> {
    /// Runs it on the calling thread, over floats.
    ///
    /// # Safety
    /// `x` reaches what its map says, rows and panels exist, and `finish` may write what it writes.
    pub unsafe fn run(self, isa: Isa, scratch: &mut Scratch) {
        // SAFETY: the caller's.
        unsafe { self.run_from(Numbers::Floats, isa, scratch) }
    }

    /// Runs it on the calling thread, over an input kept as said; its map counts those numbers.
    ///
    /// # Safety
    /// As [`Product::run`]; halves only where [`Packed::takes_halves`].
    pub unsafe fn run_from(self, numbers: Numbers, isa: Isa, scratch: &mut Scratch) {
        debug_assert_eq!(self.weights.lanes, isa.lanes(), "weights were packed for another tier");
        if let Some(Arrival { wait, .. }) = self.arrival
            && !(self.weights.dot.is_none() && self.rows.len() <= ROWS_DIRECT)
        {
            // Rows are copied or converted first. In place, `few_rows` waits itself.
            wait();
        }
        match self.weights.dot {
            Some(dot) => isa.run(Low { product: self, numbers, dot, scratch }),
            None => isa.run(Part { product: self, scratch }),
        }
    }
}

/// A tile of rows in place, in the weights' format.
#[inline(always)]
unsafe fn direct<S: Simd>(s: S, w: &Packed, panels: Range<usize>, args: &Args<'_>) {
    let (m, vectors, panels) = (args.rows.len(), w.vectors_of(panels.start), panels.len());
    // SAFETY: the caller's.
    unsafe {
        match w.precision {
            Precision::F32 => tile::direct::<S, Single>(s, m, vectors, panels, args),
            Precision::F16 => tile::direct::<S, HalfRows>(s, m, vectors, panels, args),
            _ => tile::direct::<S, Half>(s, m, vectors, panels, args),
        }
    }
}

struct Part<'a, 's, F> {
    product: Product<'a, F>,
    scratch: &'s mut Scratch,
}

impl<F: Finish> Kernel for Part<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Product::run`'s caller grants the memory of these rows and panels.
        unsafe {
            if self.product.rows.len() <= ROWS_DIRECT {
                self.few_rows(s);
            } else {
                self.many_rows(s);
            }
        }
    }
}

impl<F: Finish> Part<'_, '_, F> {
    /// Rows read in place, several panels at once.
    #[inline(always)]
    unsafe fn few_rows<S: Simd>(self, s: S) {
        let Product { x, x_map, weights: w, rows, panels, backwards, mut arrival, finish } =
            self.product;
        let m = rows.len();
        let at_once = tile::panels_at_once::<S>(m, w.vectors);
        let parts = Parts::new(w, panels, at_once, |_| 1);
        let mut from = [std::ptr::null(); ROWS_DIRECT];
        let mut to = [std::ptr::null_mut(); ROWS_DIRECT];
        let buffer = self.scratch.tile.as_mut_ptr();
        // SAFETY: rows and panels are in range; the tile buffer holds 4 panels of 12 rows.
        unsafe {
            for (i, r) in rows.clone().enumerate() {
                from[i] = x.add(x_map.offset(r));
                to[i] = buffer.add(i * WIDTH_MAX * 4);
            }
            for i in 0..parts.len() {
                let panels = parts.part(if backwards { parts.len() - 1 - i } else { i });
                let p = panels.start;
                let args = Args {
                    k: w.k,
                    rows: &from[..m],
                    panel: w.panel(p, 0),
                    step: w.width_of(p),
                    panel_stride: w.panel_stride,
                    out: &to[..m],
                    out_stride: w.width(),
                    accumulate: false,
                };
                if let Some(Arrival { terms, wait }) = arrival.take() {
                    // The same accumulators, laid down while the wait lasts. Even, because
                    // weights may be pairs of terms.
                    let here = terms.min(w.k) & !1;
                    direct(s, w, panels.clone(), &Args { k: here, ..args });
                    wait();
                    let rows = from.map(|row| row.wrapping_add(here));
                    let rest = Args { k: w.k - here, rows: &rows[..m], ..args };
                    let rest = Args { panel: w.panel(p, here), accumulate: true, ..rest };
                    direct(s, w, panels.clone(), &rest);
                } else {
                    direct(s, w, panels.clone(), &args);
                }
                for (i, p) in panels.enumerate() {
                    for (m, r) in rows.clone().enumerate() {
                        finish.row(s, p, r, to[m].add(i * w.width()));
                    }
                }
            }
        }
    }

    /// Rows copied block by block.
    #[inline(always)]
    unsafe fn many_rows<S: Simd>(mut self, s: S) {
        let w = self.product.weights;
        let blocks = w.k.div_ceil(K_BLOCK).max(1);
        let block = w.k.div_ceil(blocks).next_multiple_of(2).max(2);
        let all = self.product.rows.clone();
        let waits = self.product.finish.place::<S>(self.product.panels.start, all.start).is_some();
        let together = if waits { 1 } else { blocks };
        let most = S::ROWS[w.vectors - 1];
        let pass = (COPIED_ROWS / together).clamp(most, PASS_ROWS);
        let passes = all.len().div_ceil(pass);
        for i in 0..passes {
            let rows = all.start + tile::tile_start(all.len(), passes, i)
                ..all.start + tile::tile_start(all.len(), passes, i + 1);
            for c in 0..blocks.div_ceil(together) {
                let terms = (c * together * block).min(w.k)..((c + 1) * together * block).min(w.k);
                // SAFETY: rows and terms are in range, and the copies fit: `pass · together`.
                unsafe {
                    self.copy_rows(rows.clone(), terms.clone(), block);
                    for i in 0..self.product.panels.len() {
                        let Range { start, end } = self.product.panels;
                        let p = if self.product.backwards { end - 1 - i } else { start + i };
                        self.panel_pass(s, p, rows.clone(), terms.clone(), block);
                    }
                }
            }
        }
    }

    /// Copies terms of rows into the scratch: block by block, row by row.
    #[inline(always)]
    unsafe fn copy_rows(&mut self, rows: Range<usize>, terms: Range<usize>, block: usize) {
        let to = self.scratch.copied.as_mut_ptr();
        for (b, start) in terms.clone().step_by(block).enumerate() {
            let n = block.min(terms.end - start);
            for (i, r) in rows.clone().enumerate() {
                // SAFETY: row and terms exist; at most `COPIED_ROWS` rows of blocks are copied.
                unsafe {
                    let from = self.product.x.add(self.product.x_map.offset(r) + start);
                    let to = to.add((b * rows.len() + i) * ROW_STRIDE);
                    std::ptr::copy_nonoverlapping(from, to, n);
                }
            }
        }
    }

    /// All copied rows times one panel.
    #[inline(always)]
    unsafe fn panel_pass<S: Simd>(
        &mut self,
        s: S,
        p: usize,
        rows: Range<usize>,
        terms: Range<usize>,
        block: usize,
    ) {
        let w = self.product.weights;
        let count = tile::tiles(rows.len(), S::ROWS[w.vectors_of(p) - 1]);
        let single = terms.len() <= block;
        // SAFETY: panel and terms exist; a block of a panel fits the scratch.
        let mut panel = unsafe { self.widen(s, p, terms.start, terms.len().min(block)) };
        for t in 0..count {
            let first = tile::tile_start(rows.len(), count, t);
            let m = tile::tile_start(rows.len(), count, t + 1) - first;
            // Without terms there is one empty block, whose sums are zero.
            for b in 0..terms.len().div_ceil(block).max(1) {
                let start = terms.start + b * block;
                let n = block.min(terms.end - start);
                // SAFETY: as above; the destination is this worker's part of the output.
                unsafe {
                    if !single {
                        panel = self.widen(s, p, start, n);
                    }
                    let x = self.scratch.copied.as_ptr();
                    let x = x.add((b * rows.len() + first) * ROW_STRIDE);
                    let r = rows.start + first;
                    self.tile(s, p, r..r + m, start..start + n, x, panel);
                }
            }
        }
    }

    /// Terms of a panel as floats: in place, or widened into the scratch.
    #[inline(always)]
    unsafe fn widen<S: Simd>(&mut self, s: S, p: usize, start: usize, n: usize) -> *const f32 {
        // SAFETY: the caller's.
        unsafe {
            match self.product.weights.precision {
                Precision::F32 => self.product.weights.panel(p, start),
                Precision::F16 => self.widen_from::<S, HalfRows>(s, p, start, n),
                _ => self.widen_from::<S, Half>(s, p, start, n),
            }
        }
    }

    /// Terms of a panel whose words are pairs, widened into the scratch.
    #[inline(always)]
    unsafe fn widen_from<S: Simd, W: Format>(
        &mut self,
        s: S,
        p: usize,
        start: usize,
        n: usize,
    ) -> *const f32 {
        let w = self.product.weights;
        let from = w.panel(p, start);
        let to = self.scratch.widened.as_mut_ptr();
        let width = w.width_of(p);
        for pair in 0..n.div_ceil(2) {
            for v in 0..w.vectors_of(p) {
                // SAFETY: pair and vector exist; `K_BLOCK` terms (an even number) fit the scratch.
                unsafe {
                    let at = from.add(pair * width + v * S::LANES);
                    let to = to.add(2 * pair * width + v * S::LANES);
                    s.store(to, W::even(s, at));
                    s.store(to.add(width), W::odd(s, at, width));
                }
            }
        }
        to
    }

    /// One tile over one block of terms; the sums of earlier blocks wait where `place` says, or in
    /// the tile buffer.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &mut self,
        s: S,
        p: usize,
        rows: Range<usize>,
        terms: Range<usize>,
        x: *const f32,
        panel: *const f32,
    ) {
        let (w, finish) = (self.product.weights, self.product.finish);
        let (m, carry, last) = (rows.len(), terms.start > 0, terms.end == w.k);
        let buffer = self.scratch.tile.as_mut_ptr();
        let mut out = [std::ptr::null_mut(); ROWS_MAX];
        // SAFETY: rows and columns are this worker's; the buffer holds `ROWS_MAX` rows.
        unsafe {
            for (i, out) in out.iter_mut().enumerate().take(m) {
                *out = buffer.add(i * WIDTH_MAX);
                match finish.place::<S>(p, rows.start + i) {
                    Some((place, columns)) if columns == w.width() => *out = place,
                    Some((place, columns)) if carry => {
                        std::ptr::copy_nonoverlapping(place, *out, columns);
                    }
                    _ => {}
                }
            }
            let args = Args {
                k: terms.len(),
                rows: &[x],
                panel,
                step: w.width_of(p),
                panel_stride: 0,
                out: &out[..m],
                out_stride: 0,
                accumulate: carry,
            };
            tile::copied(s, m, w.vectors_of(p), &args);
            for (i, out) in out.iter().enumerate().take(m) {
                if last {
                    finish.row(s, p, rows.start + i, *out);
                } else if let Some((place, columns)) = finish.place::<S>(p, rows.start + i)
                    && place != *out
                {
                    std::ptr::copy_nonoverlapping(*out, place, columns);
                }
            }
        }
    }
}
