//! One block of sums kept in tiles while `k` passes by: 1 × (1 to 4) or 2 × (1 or 2) tiles.
//!
//! Registers: sums 0 to 3, rows 4 and 5, weights 6 and 7 (with one tile of rows also 5). Each sum
//! is the same sequence of operations whatever the block: start, then one multiplication a step of
//! `k`, ascending. Loads stand just before the first multiplication that needs them, so that they
//! run beside the multiplications before it.

use super::{Arithmetic, TILE_BYTES, TileConfig, Tiles};

/// Pointers of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Steps of `k`: 64 bytes of a row, 16 word rows of a panel.
    pub(super) steps: usize,
    /// First byte of the first row of each tile of rows, at the first step.
    pub(super) rows: [*const u8; 2],
    /// Bytes between rows.
    pub(super) row_stride: usize,
    /// First byte of each tile of weights, at the first step.
    pub(super) weights: [*const u8; 4],
    /// Bytes between word rows.
    pub(super) weight_stride: usize,
    /// Bytes between steps of weights.
    pub(super) weight_step: usize,
    /// First byte of each tile of sums: `[v]` with one tile of rows, `[2 · r + v]` with two.
    pub(super) sums: [*mut u8; 4],
    /// Bytes between rows of sums.
    pub(super) sum_stride: usize,
    /// Whether to start from what `sums` holds rather than from zero.
    pub(super) accumulate: bool,
}

/// Shapes for one tile of `rows` rows (1 to 16): sums and rows that high, weights full.
pub(super) const fn one_row_config(rows: u8) -> TileConfig {
    TileConfig::with_rows([rows, rows, rows, rows, rows, 16, 16, 16])
}

/// Shapes for two tiles of rows, the second of `rows` rows (1 to 16).
pub(super) const fn two_row_config(rows: u8) -> TileConfig {
    TileConfig::with_rows([16, 16, rows, rows, 16, rows, 16, 16])
}

#[inline(always)]
unsafe fn start<T: Tiles, const C: u8>(tiles: &mut T, block: &Block) {
    // SAFETY: the caller's; tile `C` of sums exists.
    unsafe {
        if block.accumulate {
            tiles.load::<C>(block.sums[C as usize].cast_const(), block.sum_stride);
        } else {
            tiles.zero::<C>();
        }
    }
}

#[inline(always)]
unsafe fn finish<T: Tiles, const C: u8>(tiles: &mut T, block: &Block) {
    // SAFETY: the caller's; tile `C` of sums exists.
    unsafe { tiles.store::<C>(block.sums[C as usize], block.sum_stride) }
}

/// One tile of rows, `V` tiles of weights.
///
/// # Safety
/// [`one_row_config`] is loaded, and the pointers reach what the block says: that many rows, `V`
/// tiles of weights and of sums.
#[inline(always)]
pub(super) unsafe fn one_row<T: Tiles, A: Arithmetic, const V: usize>(
    tiles: &mut T,
    block: &Block,
) {
    const { assert!(1 <= V && V <= 4) }
    let (mut rows, mut at) = (block.rows[0], block.weights);
    // SAFETY: the caller grants all tiles that are touched: `V` of weights and sums, `steps` times.
    unsafe {
        start::<T, 0>(tiles, block);
        if V > 1 {
            start::<T, 1>(tiles, block);
        }
        if V > 2 {
            start::<T, 2>(tiles, block);
        }
        if V > 3 {
            start::<T, 3>(tiles, block);
        }
        for _ in 0..block.steps {
            tiles.load::<4>(rows, block.row_stride);
            tiles.load::<5>(at[0], block.weight_stride);
            A::dot::<T, 0, 4, 5>(tiles);
            if V > 1 {
                tiles.load::<6>(at[1], block.weight_stride);
                A::dot::<T, 1, 4, 6>(tiles);
            }
            if V > 2 {
                tiles.load::<7>(at[2], block.weight_stride);
                A::dot::<T, 2, 4, 7>(tiles);
            }
            if V > 3 {
                tiles.load::<5>(at[3], block.weight_stride);
                A::dot::<T, 3, 4, 5>(tiles);
            }
            rows = rows.wrapping_add(TILE_BYTES);
            at = at.map(|p| p.wrapping_add(block.weight_step));
        }
        finish::<T, 0>(tiles, block);
        if V > 1 {
            finish::<T, 1>(tiles, block);
        }
        if V > 2 {
            finish::<T, 2>(tiles, block);
        }
        if V > 3 {
            finish::<T, 3>(tiles, block);
        }
    }
}

/// Two tiles of rows, `V` tiles of weights.
///
/// # Safety
/// As [`one_row`], with [`two_row_config`].
#[inline(always)]
pub(super) unsafe fn two_rows<T: Tiles, A: Arithmetic, const V: usize>(
    tiles: &mut T,
    block: &Block,
) {
    const { assert!(1 <= V && V <= 2) }
    let (mut rows, mut at) = (block.rows, [block.weights[0], block.weights[1]]);
    // SAFETY: the caller grants all tiles that are touched: two of rows, `V` of weights, `2 · V` of
    // sums, `steps` times.
    unsafe {
        start::<T, 0>(tiles, block);
        start::<T, 2>(tiles, block);
        if V > 1 {
            start::<T, 1>(tiles, block);
            start::<T, 3>(tiles, block);
        }
        for _ in 0..block.steps {
            tiles.load::<4>(rows[0], block.row_stride);
            tiles.load::<6>(at[0], block.weight_stride);
            A::dot::<T, 0, 4, 6>(tiles);
            if V > 1 {
                tiles.load::<7>(at[1], block.weight_stride);
                A::dot::<T, 1, 4, 7>(tiles);
            }
            tiles.load::<5>(rows[1], block.row_stride);
            A::dot::<T, 2, 5, 6>(tiles);
            if V > 1 {
                A::dot::<T, 3, 5, 7>(tiles);
            }
            rows = rows.map(|p| p.wrapping_add(TILE_BYTES));
            at = at.map(|p| p.wrapping_add(block.weight_step));
        }
        finish::<T, 0>(tiles, block);
        finish::<T, 2>(tiles, block);
        if V > 1 {
            finish::<T, 1>(tiles, block);
            finish::<T, 3>(tiles, block);
        }
    }
}
