//! Kernels over rows: which one, and how many threads. Mirrors `ptx/rows.cuh`.
//!
//! The choice depends on a row's length alone, and so do the bits of a row.

use neural_forecast_runtime::DeviceError;

use super::indexing::{ITEMS_MAX, check};
use crate::launch::{Arguments, Launch};

/// Longest rows that a team of lanes holds in registers, of single elements and of vectors.
const SHORT_MAX: usize = 1024;
const SHORT_VECTORS_MAX: usize = 512;

/// Vectors of a lane that kernels exist for.
const PER: [usize; 5] = [1, 2, 4, 8, 16];

/// Single elements of a lane that kernels exist for.
const PER_SINGLE: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32];

/// Single elements that a lane gets before a row is spread over more lanes: fewer, and a warp's
/// instructions serve too few rows; more, and its lanes read too far apart. Reckoned from the
/// bandwidth of rows of 33 and 130 elements (H200, 2026-11-21).
const SINGLE: usize = 5;

/// Threads of a block of several short rows, few so that small batches spread.
const SHORT_THREADS: usize = 128;

/// Threads of a block with one long row: `LONG_THREADS`.
const LONG_THREADS: u32 = 512;

/// Rows of one length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    rows: usize,
    /// Elements of an access.
    vector: usize,
    /// Lanes of a team, 0 for a block a row.
    lanes: usize,
    /// Vectors of a lane.
    per: usize,
}

/// Rows of one launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowsPart {
    pub(super) first: usize,
    pub(super) rows: usize,
    all: Rows,
}

impl Rows {
    /// Of so many rows of so many elements. `what` names them in an error.
    pub(super) fn new(what: &str, rows: usize, width: usize) -> Result<Rows, DeviceError> {
        check(&format!("elements of a row of {what}"), width)?;
        let vector = if width.is_multiple_of(4) { 4 } else { 1 };
        let vectors = (width / vector).max(1);
        let (most, wanted, kernels) = match vector {
            1 => (SHORT_MAX, vectors.div_ceil(SINGLE), PER_SINGLE.as_slice()),
            _ => (SHORT_VECTORS_MAX, vectors, PER.as_slice()),
        };
        let lanes = wanted.next_power_of_two().min(32);
        let needed = vectors.div_ceil(lanes);
        let per = kernels.iter().copied().find(|&per| per >= needed && vectors <= most);
        let (lanes, per) = per.map_or((0, 0), |per| (lanes, per));
        Ok(Rows { rows: if width == 0 { 0 } else { rows }, vector, lanes, per })
    }

    /// What kernels take as `lanes`.
    pub(super) fn lanes(&self) -> u32 {
        self.lanes as u32
    }

    /// The launches; the first row of each but the first is a multiple of `period`.
    pub(super) fn parts(self, period: usize) -> impl Iterator<Item = RowsPart> {
        let most = ITEMS_MAX / self.lanes.max(1);
        let most = (most / period * period).max(period);
        (0..self.rows).step_by(most).map(move |first| RowsPart {
            first,
            rows: most.min(self.rows - first),
            all: self,
        })
    }
}

impl RowsPart {
    /// The launch of kernel `stem` for these rows.
    pub(super) fn launch<A: Arguments>(
        &self,
        module: &'static str,
        stem: &str,
        counter: &str,
        arguments: A,
    ) -> Launch {
        let Rows { vector, lanes, per, .. } = self.all;
        let (function, blocks, threads) = match lanes {
            0 => (format!("{stem}_v{vector}_long"), self.rows, LONG_THREADS),
            lanes => (
                format!("{stem}_v{vector}_{per}"),
                (self.rows * lanes).div_ceil(SHORT_THREADS),
                SHORT_THREADS as u32,
            ),
        };
        Launch::new(module, function, counter, [blocks as u32, 1, 1], [threads, 1, 1], arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teams_hold_their_rows() {
        for width in 1..=4 * SHORT_VECTORS_MAX {
            let Rows { vector, lanes, per, .. } = Rows::new("tests", 1, width).unwrap();
            let is_short = width <= SHORT_MAX || vector == 4;
            assert_eq!(lanes > 0, is_short, "{width}");
            assert!(!is_short || lanes * vector * per >= width, "{width}");
        }
    }
}
