//! The tile that every implementation instantiates, over what one vector of a tier can do.
//!
//! One accumulator per output, words ascending. Knows no instruction.

use super::Args;

/// Sums, weights and terms of one vector.
pub(super) trait Unit {
    /// A vector of sums.
    type Sum: Copy;
    /// A vector of words of weights, ready to be multiplied.
    type Weights: Copy;
    /// One word of terms in every lane, ready to be multiplied.
    type Terms: Copy;
    /// Words in a vector.
    const LANES: usize;

    /// # Safety
    /// The machine has the unit's instructions.
    unsafe fn zero() -> Self::Sum;
    /// # Safety
    /// As `zero`; `p` is readable for `LANES` words.
    unsafe fn weights(p: *const u32) -> Self::Weights;
    /// # Safety
    /// As `zero`; `x` is readable.
    unsafe fn terms(x: *const u32) -> Self::Terms;
    /// `sum` plus the products of all terms of the words.
    /// # Safety
    /// As `zero`.
    unsafe fn add(sum: Self::Sum, x: Self::Terms, w: Self::Weights) -> Self::Sum;
    /// # Safety
    /// As `zero`; `p` is writable for `LANES` words.
    unsafe fn store(p: *mut u32, sum: Self::Sum);
}

/// Rows whose addresses are one pointer plus 0, 1 or 2 strides, which x86 computes for free.
const SHARED: usize = 3;

/// `M` rows times `P` panels of `V` vectors.
///
/// # Safety
/// As [`super::Dot::tile`], and the machine has the unit's instructions.
// Indices rather than iterators: the arrays are walked together, and the loops must unroll.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) unsafe fn tile<U: Unit, const M: usize, const V: usize, const P: usize>(a: &Args) {
    let Args { words, x, x_stride, panel, panel_stride, out, out_stride, .. } = *a;
    let width = V * U::LANES;
    // SAFETY: the caller grants `M` rows of `words` words, `P` panels of as many word rows, and
    // `M` rows of `P · width` sums.
    unsafe {
        let mut acc = [[[U::zero(); V]; P]; M];
        let mut rows = [x; M];
        for m in 0..M {
            rows[m] = x.add(m / SHARED * SHARED * x_stride);
        }
        let mut b = panel;
        for t in 0..words {
            let mut w = [[U::weights(b); V]; P];
            for p in 0..P {
                for v in 0..V {
                    w[p][v] = U::weights(b.add(p * panel_stride + v * U::LANES));
                }
            }
            for m in 0..M {
                let x = U::terms(rows[m].add(m % SHARED * x_stride + t));
                for p in 0..P {
                    for v in 0..V {
                        acc[m][p][v] = U::add(acc[m][p][v], x, w[p][v]);
                    }
                }
            }
            b = b.add(width);
        }
        for m in 0..M {
            for p in 0..P {
                for v in 0..V {
                    U::store(out.add(m * out_stride + p * width + v * U::LANES), acc[m][p][v]);
                }
            }
        }
    }
}

/// Defines the function that runs the tile of a unit: rows for each number of vectors, then what
/// takes several panels (rows, vectors, panels).
macro_rules! tiles {
    (
        $(#[$attribute:meta])* $name:ident = $unit:ty;
        $($v:literal: $($m:literal)*;)*
        $(($rows:literal, $vectors:literal, $panels:literal))*
    ) => {
        unsafe fn $name(args: &Args) {
            $(#[$attribute])*
            unsafe fn one<const M: usize, const V: usize, const P: usize>(args: &Args) {
                // SAFETY: the caller's.
                unsafe { tile::<$unit, M, V, P>(args) }
            }
            let Args { rows, vectors, panels, .. } = *args;
            // SAFETY: the caller's; the numbers are those of the tile.
            unsafe {
                match (rows, vectors, panels) {
                    $($(($m, $v, 1) => one::<$m, $v, 1>(args),)*)*
                    $(($rows, $vectors, $panels) => one::<$rows, $vectors, $panels>(args),)*
                    _ => unreachable!("no tile of {rows} rows, {panels} x {vectors} vectors"),
                }
            }
        }
    };
}
pub(super) use tiles;

/// Tiles of an instruction that adds a whole vector of products at once: as many accumulators as 32
/// registers hold beside weights and terms.
#[cfg(target_arch = "x86_64")]
macro_rules! tiles_of_one_instruction {
    ($(#[$attribute:meta])* $name:ident = $unit:ty) => {
        tiles! {
            $(#[$attribute])*
            $name = $unit;
            1: 1 2 3 4 5 6 7 8 9 10 11 12;
            2: 1 2 3 4 5 6 7 8 9 10 11 12;
            3: 1 2 3 4 5 6 7 8;
            4: 1 2 3 4 5 6;
            (1, 1, 4) (1, 2, 4) (1, 3, 2) (1, 4, 2) (2, 1, 4) (2, 2, 4) (2, 3, 2) (2, 4, 2)
            (3, 1, 2) (3, 2, 2) (4, 1, 2) (4, 2, 2)
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use tiles_of_one_instruction;
