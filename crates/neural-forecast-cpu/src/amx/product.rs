//! The walk of a product: which rows and which columns of panels make a block, in which order.
//!
//! Rows go in pairs of tiles, 32 at a time; what is left, 1 to 31 rows, is one block of its own
//! with tiles just that high, rather than rows padded to 16: a multiplication takes as many cycles
//! as its tile of rows is high, no row past the end is read or written, and it costs one more
//! `LDTILECFG` a product. Columns go two tiles at a time beside two tiles of rows, four beside one,
//! across the boundaries of panels.

use super::block::{self, Block};
use super::{Arithmetic, TILE_BYTES, TILE_ROWS, TILE_WORDS, Tiles};

/// Rows of two tiles.
const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// Steps of `k` that `terms` terms take, the last one padded with zeros.
pub const fn steps_in<A: Arithmetic>(terms: usize) -> usize {
    terms.div_ceil(TILE_WORDS * A::TERMS)
}

/// Sums of all rows with all columns of some panels.
///
/// A panel is `vectors · 16` columns wide, word row after word row; word row `w` holds the terms
/// from `w · A::TERMS` on, the first in the lowest bits.
#[derive(Clone, Copy, Debug)]
pub struct Product<A: Arithmetic> {
    /// Rows, at least 1.
    pub rows: usize,
    /// Steps of `k`, see [`steps_in`].
    pub steps: usize,
    /// First row.
    pub input: *const u8,
    /// Bytes between rows: at least 64 a step. Rows on multiples of 64 bytes load without crossing
    /// cache lines.
    pub input_stride: usize,
    /// Panels.
    pub panels: usize,
    /// Vectors of 16 columns in a panel, 1 to 4.
    pub vectors: usize,
    /// First panel.
    pub weights: *const u32,
    /// Words between panels.
    pub panel_stride: usize,
    /// Sum of the first row with the first column.
    pub out: *mut A::Sum,
    /// Sums between rows.
    pub out_stride: usize,
    /// Sums between the first columns of neighbouring panels.
    pub out_panel_stride: usize,
    /// Whether to start from what `out` holds rather than from zero.
    pub accumulate: bool,
    /// Most steps that rows go through before the next columns: sums are stored and loaded again
    /// in between, which leaves their bits alone. See [`Product::steps_in_cache`].
    pub pass: usize,
}

impl<A: Arithmetic> Product<A> {
    /// Steps for which two columns of tiles fill half of a first-level cache of `bytes`: they stay
    /// there while the rows stream by.
    pub const fn steps_in_cache(bytes: usize) -> usize {
        let steps = bytes / 2 / (2 * TILE_ROWS * TILE_BYTES);
        if steps == 0 { 1 } else { steps }
    }

    /// Runs it, and leaves the tiles released.
    ///
    /// Bits of a sum depend on its row and its column alone: not on the number of rows, on the
    /// panels beside it, or on `pass`.
    ///
    /// # Safety
    /// `input` is readable for `rows` rows of `64 · steps` bytes, `weights` for `panels` panels of
    /// `16 · steps` word rows, `out` is writable for the `rows` rows of `16 · vectors` sums of
    /// every panel, initialised where `accumulate`, and nobody else touches these meanwhile.
    pub unsafe fn run<T: Tiles>(&self, tiles: &mut T) {
        assert!((1..=4).contains(&self.vectors), "a panel of {} vectors", self.vectors);
        assert!(self.pass > 0, "passes of no steps");
        if self.rows == 0 || self.panels == 0 {
            return;
        }
        let rest = self.rows % PAIR_ROWS;
        let paired = self.rows - rest;
        // SAFETY: the configurations are valid (1 to 16 rows each); the ranges of rows exist.
        unsafe {
            if paired > 0 {
                tiles.configure(&block::two_row_config(16));
                self.rows_in_pairs(tiles, 0, paired);
            }
            if rest > TILE_ROWS {
                tiles.configure(&block::two_row_config((rest - TILE_ROWS) as u8));
                self.rows_in_pairs(tiles, paired, self.rows);
            } else if rest > 0 {
                tiles.configure(&block::one_row_config(rest as u8));
                self.last_rows(tiles, paired);
            }
        }
        tiles.release();
    }

    /// Calls `f` with the first step, the number of steps, and whether sums exist already.
    #[inline(always)]
    fn passes(&self, mut f: impl FnMut(usize, usize, bool)) {
        let mut first = 0;
        loop {
            let steps = (self.steps - first).min(self.pass);
            f(first, steps, self.accumulate || first > 0);
            first += steps;
            if first >= self.steps {
                break;
            }
        }
    }

    /// Rows `from..to` in blocks of two tiles of rows.
    ///
    /// # Safety
    /// As [`Product::run`]; tiles are configured for two tiles of rows, the second as high as the
    /// last block needs.
    #[inline(always)]
    unsafe fn rows_in_pairs<T: Tiles>(&self, tiles: &mut T, from: usize, to: usize) {
        let columns = self.panels * self.vectors;
        self.passes(|first, steps, accumulate| {
            let mut column = 0;
            while column < columns {
                let wide = (columns - column).min(2);
                for row in (from..to).step_by(PAIR_ROWS) {
                    let block = self.block(row, column, wide, (first, steps), accumulate);
                    // SAFETY: the caller's.
                    unsafe {
                        match wide {
                            1 => block::two_rows::<T, A, 1>(tiles, &block),
                            _ => block::two_rows::<T, A, 2>(tiles, &block),
                        }
                    }
                }
                column += wide;
            }
        });
    }

    /// The rows from `row` on, all in one tile.
    ///
    /// # Safety
    /// As [`Product::run`]; tiles are configured for one tile of that many rows.
    #[inline(always)]
    unsafe fn last_rows<T: Tiles>(&self, tiles: &mut T, row: usize) {
        let columns = self.panels * self.vectors;
        self.passes(|first, steps, accumulate| {
            let mut column = 0;
            while column < columns {
                let wide = (columns - column).min(4);
                let block = self.block(row, column, wide, (first, steps), accumulate);
                // SAFETY: the caller's.
                unsafe {
                    match wide {
                        1 => block::one_row::<T, A, 1>(tiles, &block),
                        2 => block::one_row::<T, A, 2>(tiles, &block),
                        3 => block::one_row::<T, A, 3>(tiles, &block),
                        _ => block::one_row::<T, A, 4>(tiles, &block),
                    }
                }
                column += wide;
            }
        });
    }

    /// The block of the rows from `row` on and `wide` tiles of columns from `column` on. Pointers
    /// that such a block does not use repeat the last column, or point past the rows; they are not
    /// followed.
    #[inline(always)]
    fn block(
        &self,
        row: usize,
        column: usize,
        wide: usize,
        (first, steps): (usize, usize),
        accumulate: bool,
    ) -> Block {
        let width = self.vectors * TILE_WORDS;
        let input = self.input.wrapping_add(row * self.input_stride + first * TILE_BYTES);
        let at = |v: usize| {
            let column = column + v.min(wide - 1);
            (column / self.vectors, column % self.vectors * TILE_WORDS)
        };
        let weights = |v: usize| {
            let (panel, word) = at(v);
            let word = panel * self.panel_stride + first * TILE_ROWS * width + word;
            self.weights.wrapping_add(word).cast::<u8>()
        };
        let sums = |r: usize, v: usize| {
            let (panel, word) = at(v);
            let row = (row + r * TILE_ROWS) * self.out_stride;
            self.out.wrapping_add(row + panel * self.out_panel_stride + word).cast::<u8>()
        };
        let paired = row + TILE_ROWS < self.rows;
        let sums = match paired {
            true => [sums(0, 0), sums(0, 1), sums(1, 0), sums(1, 1)],
            false => [sums(0, 0), sums(0, 1), sums(0, 2), sums(0, 3)],
        };
        Block {
            steps,
            rows: [input, input.wrapping_add(TILE_ROWS * self.input_stride)],
            row_stride: self.input_stride,
            weights: [weights(0), weights(1), weights(2), weights(3)],
            weight_stride: width * size_of::<u32>(),
            weight_step: TILE_ROWS * width * size_of::<u32>(),
            sums,
            sum_stride: self.out_stride * size_of::<A::Sum>(),
            accumulate,
        }
    }
}
