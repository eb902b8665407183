//! `empirical_quantiles` and `sample`: from samples to quantiles, and from a distribution's
//! parameters to samples.
//!
//! Not pooling or interpolation (`resample`).

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{Distribution, EmpiricalQuantiles, Sample};
use neural_forecast_runtime::plan::ValueId;

use super::indexing::{BYTES, Divisor, ITEMS_MAX, blocks, check};
use super::{Build, Loaded};
use crate::launch::{Arguments, Launch};

const MODULE: &str = "quantile";

/// Most levels of a launch: `LEVELS_MAX`.
const LEVELS_MAX: usize = 64;

/// Most samples that a warp sorts in its registers, and the warps of a block that does.
const SHORT_MAX: usize = 1024;
const WARPS: usize = 4;

/// Most samples that are sorted in shared memory, 32 KiB; more are searched.
const SORTED_MAX: usize = 8192;

/// Most threads of a block that sorts or searches: `COLUMN_THREADS`.
const THREADS_MAX: usize = 512;

/// Threads of a block that draws.
const DRAW_THREADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Level {
    fraction: f64,
    below: u32,
    above: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct QuantileArguments {
    x: u64,
    y: u64,
    samples: u32,
    padded: u32,
    row_levels: u32,
    levels: u32,
    rows: u32,
    zero: u32,
    level: [Level; LEVELS_MAX],
}

// SAFETY: mirrors `QuantileArguments`; 2 × 8 and 6 × 4 bytes, then levels of 16 without padding.
unsafe impl Arguments for QuantileArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct SampleArguments {
    parameters: u64,
    seed: u64,
    y: u64,
    items: u32,
    zero: u32,
    count: Divisor,
    steps: Divisor,
}

// SAFETY: mirrors `SampleArguments`; 3 × 8 and 10 × 4 bytes, no padding.
unsafe impl Arguments for SampleArguments {}

/// `empirical_quantiles`.
#[derive(Debug)]
pub(super) struct LoadedQuantiles {
    pub(super) op: EmpiricalQuantiles,
    pub(super) y: ValueId,
}

impl Loaded for LoadedQuantiles {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.op.x);
        let Some((&samples, outer)) = shape.split_last() else { return Ok(()) };
        let rows: usize = outer.iter().product();
        check("samples of a quantile", samples)?;
        let padded = samples.next_power_of_two();
        let (function, threads, shared) = if samples <= SHORT_MAX {
            (format!("quantiles_{}", padded.div_ceil(32)), 32 * WARPS, 0)
        } else if samples <= SORTED_MAX {
            let threads = (padded / 2).min(THREADS_MAX);
            ("quantiles_sorted".to_owned(), threads, padded as u64 * BYTES)
        } else {
            ("quantiles_counted".to_owned(), THREADS_MAX, 0)
        };
        let last = (samples - 1) as f64;
        let level = |level: &f64| {
            let rank = level * last;
            let (below, above) = (rank.floor() as u32, rank.ceil() as u32);
            Level { fraction: rank.fract(), below, above }
        };
        let (x, y) = (build.value(self.op.x), build.value(self.y));
        for (i, levels) in self.op.levels.chunks(LEVELS_MAX).enumerate() {
            let mut found = [Level::default(); LEVELS_MAX];
            found.iter_mut().zip(levels).for_each(|(found, l)| *found = level(l));
            for first in (0..rows).step_by(ITEMS_MAX) {
                let part = ITEMS_MAX.min(rows - first);
                let blocks = if samples <= SHORT_MAX { part.div_ceil(WARPS) } else { part };
                let start = first * self.op.levels.len() + i * LEVELS_MAX;
                let arguments = QuantileArguments {
                    x: x + (first * samples) as u64 * BYTES,
                    y: y + start as u64 * BYTES,
                    samples: samples as u32,
                    padded: padded as u32,
                    row_levels: self.op.levels.len() as u32,
                    levels: levels.len() as u32,
                    rows: part as u32,
                    zero: 0,
                    level: found,
                };
                let (grid, block) = ([blocks as u32, 1, 1], [threads as u32, 1, 1]);
                let counter = "empirical_quantiles-any-f32";
                let launch =
                    Launch::new(MODULE, function.as_str(), counter, grid, block, arguments);
                build.launch(launch.shared(shared as u32));
            }
        }
        Ok(())
    }
}

/// `sample`.
#[derive(Debug)]
pub(super) struct LoadedSample {
    pub(super) op: Sample,
    pub(super) y: ValueId,
}

impl Loaded for LoadedSample {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let &[batch, steps, width] = build.shape(self.op.parameters) else { return Ok(()) };
        let row = steps * self.op.count;
        if batch * row == 0 {
            return Ok(());
        }
        check("samples of a row", row)?;
        let function = match self.op.distribution {
            Distribution::Normal => "sample_normal",
            Distribution::StudentT => "sample_student_t",
        };
        let most = ITEMS_MAX / row;
        let (parameters, seed) = (build.value(self.op.parameters), build.value(self.op.seed));
        let y = build.value(self.y);
        for first in (0..batch).step_by(most) {
            let items = most.min(batch - first) * row;
            let arguments = SampleArguments {
                parameters: parameters + (first * steps * width) as u64 * BYTES,
                seed: seed + (first * 2) as u64 * BYTES,
                y: y + (first * row) as u64 * BYTES,
                items: items as u32,
                zero: 0,
                count: Divisor::new(self.op.count),
                steps: Divisor::new(steps),
            };
            let (grid, block) = (blocks(items, DRAW_THREADS, 1), [DRAW_THREADS as u32, 1, 1]);
            build.launch(Launch::new(MODULE, function, "sample-any-f32", grid, block, arguments));
        }
        Ok(())
    }
}
