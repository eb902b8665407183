//! Products with packed weights: `y = epilogue(x·Wᵀ)`.
//!
//! Weights are packed once, when a model is loaded, into panels a few vectors wide in which the
//! terms of `k` follow each other. Few rows stream panels side by side (that is the matrix-vector
//! product); more rows are copied next to each other in blocks that L2 holds. Bits do not depend on
//! the number of rows, see [`crate::tile`].
//!
//! `packed` lays weights out, `parts` groups panels, `product` walks rows and panels in f32
//! arithmetic, `low` in bf16 and int8, `epilogue` ends a product. Does not decide who computes what
//! beyond an even split of rows or panels over the team.

mod epilogue;
mod low;
#[cfg(test)]
mod low_tests;
mod packed;
mod parts;
mod product;
#[cfg(all(test, target_arch = "x86_64"))]
mod registers_tests;
#[cfg(test)]
mod tests;

pub use epilogue::{Activation, Finish};
pub use packed::{Packed, kept};
pub use product::{Arrival, Product, Scratch};

use crate::counters::{Stem, count};
use crate::isa::Isa;
use crate::memory::{Numbers, RowMap};
use crate::simd::Simd;
use crate::team::Worker;
use crate::tile::ROWS_DIRECT;
use std::ops::Range;

/// One product. Pointers rather than slices, because workers write disjoint parts of one output.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Input `[rows, k]`.
    pub x: *const f32,
    /// Where its rows are.
    pub x_map: RowMap,
    /// How it is kept; halves only where [`Packed::takes_halves`].
    pub x_numbers: Numbers,
    /// Number of rows.
    pub rows: usize,
    /// Weights.
    pub weights: &'a Packed,
    /// Output `[rows, n]`; `[rows, n/2]` where gated; all columns of all panels where `padded`.
    pub y: *mut f32,
    /// Where its rows are.
    pub y_map: RowMap,
    /// How it is kept; halves only where [`Packed::gives_halves`].
    pub y_numbers: Numbers,
    /// Whether to write the columns in panel order with their padding.
    pub padded: bool,
    /// Applied to the product and its bias.
    pub activation: Activation,
    /// With weights of two groups: the first, activated, times this function of the second.
    pub gate: Option<Activation>,
    /// Added last; laid out as the output.
    pub residual: Option<(*const f32, RowMap)>,
}

impl<'a> Gemm<'a> {
    /// A plain product of dense rows.
    pub fn new(x: *const f32, rows: usize, weights: &'a Packed, y: *mut f32) -> Self {
        Gemm {
            x,
            x_map: RowMap::dense(weights.k),
            x_numbers: Numbers::Floats,
            rows,
            weights,
            y,
            y_map: RowMap::dense(weights.n),
            y_numbers: Numbers::Floats,
            padded: false,
            activation: Activation::Identity,
            gate: None,
            residual: None,
        }
    }

    /// This worker's part of the product, split evenly over the team. No barrier.
    ///
    /// # Safety
    /// `x`, `y` and `residual` reach what their maps say, nobody else writes what this call reads
    /// or reads what it writes, and all workers pass the same product.
    pub unsafe fn run(&self, isa: Isa, worker: Worker<'_>, scratch: &mut Scratch) {
        if worker.index() == 0 {
            count(Stem::Gemm, isa, self.weights.precision);
        }
        let (rows, panels) = self.share(worker);
        // SAFETY: the caller's.
        unsafe { self.run_part(isa, rows, panels, scratch) }
    }

    /// This worker's part of the product, split evenly by rows however few they are: so the rows
    /// that a worker writes here are those it reads in a step that is split alike. No barrier.
    ///
    /// # Safety
    /// As [`Gemm::run`].
    pub unsafe fn run_rows(&self, isa: Isa, worker: Worker<'_>, scratch: &mut Scratch) {
        if worker.index() == 0 {
            count(Stem::Gemm, isa, self.weights.precision);
        }
        // SAFETY: the caller's.
        unsafe { self.run_part(isa, worker.share(self.rows), 0..self.weights.panels, scratch) }
    }

    /// By rows where every worker gets enough of them to fill tiles, else by panels.
    fn share(&self, worker: Worker<'_>) -> (Range<usize>, Range<usize>) {
        let panels = self.weights.panels;
        if self.rows >= worker.workers() * (ROWS_DIRECT + 4) || panels < worker.workers() {
            (worker.share(self.rows), 0..panels)
        } else {
            (0..self.rows, worker.share(panels))
        }
    }

    /// The given rows and panels, by the calling thread alone.
    ///
    /// # Safety
    /// As [`Gemm::run`], and the ranges exist.
    pub unsafe fn run_part(
        &self,
        isa: Isa,
        rows: Range<usize>,
        panels: Range<usize>,
        scratch: &mut Scratch,
    ) {
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        assert_eq!(self.weights.lanes, isa.lanes(), "weights were packed for another tier");
        assert!(self.gate.is_none() || self.weights.groups == 2, "a gate needs two groups");
        let (takes, gives) = (self.weights.takes_halves(), self.weights.gives_halves());
        assert!(self.x_numbers == Numbers::Floats || takes, "these weights take floats only");
        assert!(self.y_numbers == Numbers::Floats || gives, "these weights give floats only");
        let product = Product {
            x: self.x,
            x_map: self.x_map,
            weights: self.weights,
            rows,
            panels,
            backwards: false,
            arrival: None,
            finish: *self,
        };
        // SAFETY: the caller's.
        unsafe { product.run_from(self.x_numbers, isa, scratch) }
    }

    /// Columns of panel `p` that the output has.
    #[inline(always)]
    pub(super) fn columns<S: Simd>(&self, p: usize) -> usize {
        let w = self.weights;
        if self.gate.is_some() {
            return (w.n / 2 - p * S::LANES).min(S::LANES);
        }
        if self.padded { w.width() } else { (w.n - p * w.width()).min(w.width()) }
    }
}
