//! `pool` and `interpolate`: an axis at another resolution.
//!
//! Not quantiles of samples (`quantile`).

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{Interpolate, InterpolateKind, Pool, PoolKind};
use neural_forecast_runtime::plan::ValueId;

use super::columns::Tiles;
use super::indexing::{BYTES, Divisor, ITEMS_MAX, blocks, check};
use super::{Build, Loaded};
use crate::launch::{Arguments, Launch};

const MODULE: &str = "resample";

/// Threads of a block with an output a thread.
const THREADS: usize = 256;

/// Longest window that a single thread goes over. Chosen, not measured.
const SHORT_MAX: usize = 16;

#[repr(C)]
#[derive(Clone, Copy)]
struct PoolArguments {
    x: u64,
    y: u64,
    n: u64,
    kernel: u64,
    items: u32,
    inner: u32,
    is_mean: u32,
    tile: u32,
    slots: u32,
    tiles: u32,
    inner_items: Divisor,
    windows: Divisor,
}

// SAFETY: mirrors `PoolArguments`; 4 × 8 and 14 × 4 bytes, no padding.
unsafe impl Arguments for PoolArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct InterpolateArguments {
    x: u64,
    y: u64,
    items: u32,
    knots: u32,
    kind: u32,
    zero: u32,
    size: Divisor,
}

// SAFETY: mirrors `InterpolateArguments`; 2 × 8 and 8 × 4 bytes, no padding.
unsafe impl Arguments for InterpolateArguments {}

/// `pool`.
#[derive(Debug)]
pub(super) struct LoadedPool {
    pub(super) op: Pool,
    pub(super) y: ValueId,
}

impl Loaded for LoadedPool {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let (from, to) = (build.shape(self.op.x), build.shape(self.y));
        let axis = self.op.axis;
        let (n, windows) = (from[axis], to[axis]);
        let inner: usize = from[axis + 1..].iter().product();
        let outer: usize = from[..axis].iter().product();
        if outer * windows * inner == 0 {
            return Ok(());
        }
        let kernel = self.op.kernel.unwrap_or(n).max(1);
        let tiles = Tiles::new(inner, kernel.min(n));
        let is_long = kernel.min(n) > SHORT_MAX;
        let inner_items = if is_long { tiles.tiles } else { inner };
        check("elements behind a pooled axis", inner)?;
        check("results of a pooled row", windows * inner_items)?;
        let most = ITEMS_MAX / (windows * inner_items);
        let (x, y) = (build.value(self.op.x), build.value(self.y));
        for first in (0..outer).step_by(most) {
            let items = most.min(outer - first) * windows * inner_items;
            let arguments = PoolArguments {
                x: x + (first * n * inner) as u64 * BYTES,
                y: y + (first * windows * inner) as u64 * BYTES,
                n: n as u64,
                kernel: kernel as u64,
                items: items as u32,
                inner: inner as u32,
                is_mean: u32::from(self.op.kind == PoolKind::Mean),
                tile: tiles.tile as u32,
                slots: tiles.slots as u32,
                tiles: tiles.tiles as u32,
                inner_items: Divisor::new(inner_items),
                windows: Divisor::new(windows),
            };
            let (function, grid, threads, shared) = match is_long {
                // An f64 a thread.
                true => ("pool_long", [items as u32, 1, 1], tiles.threads, tiles.threads * 8),
                false => ("pool_short", blocks(items, THREADS, 1), THREADS, 0),
            };
            let block = [threads as u32, 1, 1];
            let launch = Launch::new(MODULE, function, "pool-any-f32", grid, block, arguments);
            build.launch(launch.shared(shared as u32));
        }
        Ok(())
    }
}

/// `interpolate`.
#[derive(Debug)]
pub(super) struct LoadedInterpolate {
    pub(super) op: Interpolate,
    pub(super) y: ValueId,
}

impl Loaded for LoadedInterpolate {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.op.x);
        let Some((&knots, outer)) = shape.split_last() else { return Ok(()) };
        let (rows, size) = (outer.iter().product::<usize>(), self.op.size);
        check("knots", knots)?;
        check("interpolated points", size)?;
        let most = ITEMS_MAX / size.max(1);
        let (x, y) = (build.value(self.op.x), build.value(self.y));
        for first in (0..rows).step_by(most) {
            let items = most.min(rows - first) * size;
            let arguments = InterpolateArguments {
                x: x + (first * knots) as u64 * BYTES,
                y: y + (first * size) as u64 * BYTES,
                items: items as u32,
                knots: knots as u32,
                kind: match self.op.kind {
                    InterpolateKind::Nearest => 0,
                    InterpolateKind::Linear => 1,
                    InterpolateKind::Cubic => 2,
                },
                zero: 0,
                size: Divisor::new(size),
            };
            let (grid, block) = (blocks(items, THREADS, 1), [THREADS as u32, 1, 1]);
            let counter = "interpolate-any-f32";
            build.launch(Launch::new(MODULE, "interpolate", counter, grid, block, arguments));
        }
        Ok(())
    }
}
