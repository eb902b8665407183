//! The walk over rows and panels in lower arithmetic: rows are converted once into the worker's
//! scratch, then tiles of them meet panels of the same arithmetic.
//!
//! Few rows take several panels at once, which is the matrix-vector product. A row's conversion
//! depends on the row alone, so bits depend neither on neighbours nor on who computes what. Does
//! not know how a tier multiplies; that is [`Dot`]'s.

use super::parts::Parts;
use super::product::{PASS_ROWS, Product, Scratch};
use super::{Finish, Packed};
use crate::dot::{Args, Dot, WORDS_MULTIPLE};
use crate::memory::Numbers;
use crate::simd::{Kernel, Simd};
use crate::tile;
use std::ops::Range;

/// A product with what multiplies it.
pub(super) struct Low<'a, 's, F> {
    pub(super) product: Product<'a, F>,
    /// How its input is kept.
    pub(super) numbers: Numbers,
    pub(super) dot: &'static Dot,
    pub(super) scratch: &'s mut Scratch,
}

/// Geometry of converted rows, in words.
#[derive(Clone, Copy)]
struct Converted {
    /// Words that hold terms.
    words: usize,
    /// With padding.
    padded: usize,
    /// Between rows: an odd number of cache lines, so that equal terms of a tile's rows do not
    /// fall into one set of L1.
    stride: usize,
}

impl Converted {
    fn new(w: &Packed) -> Self {
        let words = w.k.div_ceil(w.terms_per_word());
        let padded = words.next_multiple_of(WORDS_MULTIPLE);
        Converted { words, padded, stride: 16 * (padded.div_ceil(16) | 1) }
    }
}

impl<F: Finish> Kernel for Low<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let shape = Converted::new(self.product.weights);
        let all = self.product.rows.clone();
        // At least one row fits: that is what limits the terms of lower arithmetic.
        let most = (self.scratch.copied.len() / shape.stride).min(PASS_ROWS);
        let passes = all.len().div_ceil(most);
        for i in 0..passes {
            let rows = all.start + tile::tile_start(all.len(), passes, i)
                ..all.start + tile::tile_start(all.len(), passes, i + 1);
            // SAFETY: `Product::run`'s caller grants the memory of these rows and panels, and the
            // scratch holds a pass.
            unsafe {
                self.convert(rows.clone(), shape);
                self.panels(s, rows, shape);
            }
        }
    }
}

impl<F: Finish> Low<'_, '_, F> {
    /// Rows into the scratch, with their scales.
    unsafe fn convert(&mut self, rows: Range<usize>, shape: Converted) {
        let (to, k) = (self.scratch.copied.as_mut_ptr().cast::<u32>(), self.product.weights.k);
        for (i, r) in rows.enumerate() {
            // SAFETY: the row exists, and the scratch holds a pass of converted rows.
            let scale = unsafe {
                let x = self.numbers.at(self.product.x, self.product.x_map.offset(r));
                let to = to.add(i * shape.stride);
                match self.numbers {
                    Numbers::Floats => self.dot.convert(x, k, to, shape.padded),
                    Numbers::Halves => self.dot.convert_halves(x.cast(), k, to, shape.padded),
                }
            };
            self.scratch.scales.as_mut_slice()[i] = scale;
        }
    }

    /// Converted rows times this product's panels.
    #[inline(always)]
    unsafe fn panels<S: Simd>(&mut self, s: S, rows: Range<usize>, shape: Converted) {
        let Product { weights: w, ref panels, backwards, .. } = self.product;
        let at_once = self.dot.panels_at_once(rows.len(), w.vectors);
        let few = |left| self.dot.panels_of_rest(left);
        let parts = Parts::new(w, panels.clone(), at_once, few);
        for i in 0..parts.len() {
            let panels = parts.part(if backwards { parts.len() - 1 - i } else { i });
            let tiles = tile::tiles(rows.len(), self.dot.rows(w.vectors_of(panels.start)));
            for t in 0..tiles {
                let tile = tile::tile_start(rows.len(), tiles, t)
                    ..tile::tile_start(rows.len(), tiles, t + 1);
                // SAFETY: these panels, and rows of the pass.
                unsafe { self.tile(s, panels.clone(), rows.start, tile, shape) }
            }
        }
    }

    /// One tile and what follows: rows `tile` of a pass that starts at row `first`.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &mut self,
        s: S,
        panels: Range<usize>,
        first: usize,
        tile: Range<usize>,
        shape: Converted,
    ) {
        let (w, finish) = (self.product.weights, self.product.finish);
        let (width, sums) = (w.width(), self.scratch.tile.as_mut_ptr());
        let out_stride = width * panels.len();
        debug_assert!(tile.len() * out_stride <= self.scratch.tile.len());
        let rows = first + tile.start..first + tile.end;
        for p in panels.clone() {
            finish.expect(p, rows.clone());
        }
        // SAFETY: rows, panels and word rows exist; the tile buffer holds the sums.
        unsafe {
            let x = self.scratch.copied.as_ptr().cast::<u32>();
            self.dot.tile(&Args {
                words: shape.words,
                x: x.add(tile.start * shape.stride),
                x_stride: shape.stride,
                rows: tile.len(),
                panel: w.panel(panels.start, 0).cast(),
                vectors: w.vectors_of(panels.start),
                panels: panels.len(),
                panel_stride: w.panel_stride,
                out: sums.cast(),
                out_stride,
            });
            for (i, p) in panels.enumerate() {
                let sums = sums.add(i * width);
                self.scale(s, p, tile.clone(), sums, out_stride);
                finish.rows(s, p, rows.clone(), sums, out_stride);
            }
        }
    }

    /// Sums of scaled numbers in panel `p` become floats.
    #[inline(always)]
    unsafe fn scale<S: Simd>(
        &mut self,
        s: S,
        p: usize,
        tile: Range<usize>,
        sums: *mut f32,
        stride: usize,
    ) {
        let w = self.product.weights;
        let Some((scales, offsets)) = w.panel_ends(p) else { return };
        for v in 0..w.vectors_of(p) {
            let at = v * S::LANES;
            // SAFETY: scales, offsets and each row's sums hold the panel's width.
            unsafe {
                let by_column = s.load(scales.add(at));
                for (m, by_row) in self.scratch.scales.as_slice()[tile.clone()].iter().enumerate() {
                    let sums = sums.add(m * stride + at);
                    let sum = match offsets {
                        Some(offsets) => s.load_difference(sums.cast(), offsets.add(at)),
                        None => s.load(sums),
                    };
                    s.store(sums, s.mul(sum, s.mul(s.splat(*by_row), by_column)));
                }
            }
        }
    }
}
