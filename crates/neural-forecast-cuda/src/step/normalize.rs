//! `normalize` and `denormalize`: scaling a window by statistics of itself, and back.
//!
//! Not the normalisation of features (`norm`).

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{
    self, Affine, Center, Denormalize, Masked, Normalize, Spread, Statistics, ZeroSpread,
};
use neural_forecast_runtime::plan::ValueId;

use super::indexing::{BYTES, Divisor, ITEMS_MAX, blocks, check};
use super::{Build, Loaded, Packer, columns};
use crate::launch::{Arguments, Launch};

const MODULE: &str = "normalize";

/// Threads of a block of `denormalize`, and of prefix statistics: `PREFIX_THREADS`.
const THREADS: usize = 256;

/// Longest window that a warp holds in its registers, and most bytes of shared memory for a tile.
const SHORT_MAX: usize = 1024;
const SHORT_BYTES: usize = 40 << 10;

/// Most channels of a block of short windows: `SHORT_THREADS` / 32.
const SHORT_CHANNELS: usize = 16;

/// Rows of a block of short windows of one channel, few so that small batches spread.
const SHORT_ROWS: usize = 4;

/// Bytes of shared memory that a thread of `normalize_windows_long` needs: `FirstPass`.
const ROOM: usize = 48;

/// What `ptx/normalize.cu` takes for every channel.
const ALL_CHANNELS: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Scaler {
    center: u32,
    spread: u32,
    zero: u32,
    is_asinh: u32,
    inside: f32,
    value: f32,
    eps: f32,
    reserved: u32,
}

impl Scaler {
    fn new(scaler: &ops::Scaler) -> Scaler {
        let center = match scaler.center {
            Center::Zero => 0,
            Center::Mean => 1,
            Center::Median => 2,
            Center::Last => 3,
            Center::Minimum => 4,
            Center::Midrange => 5,
        };
        let (spread, inside) = match scaler.spread {
            Spread::One => (0, 0.0),
            Spread::Deviation => (1, 0.0),
            Spread::SampleDeviation => (2, 0.0),
            Spread::DeviationInside(eps) => (3, eps),
            Spread::MedianDeviation => (4, 0.0),
            Spread::Range => (5, 0.0),
            Spread::HalfRange => (6, 0.0),
            Spread::MeanMagnitude => (7, 0.0),
        };
        let (zero, value) = match scaler.zero {
            ZeroSpread::Keep => (0, 0.0),
            ZeroSpread::Value(value) => (1, value),
            ZeroSpread::CenterMagnitude(extra) => (2, extra),
            ZeroSpread::Collapse(limit) => (3, limit),
        };
        let (is_asinh, eps) = (u32::from(scaler.asinh), scaler.eps);
        Scaler { center, spread, zero, is_asinh, inside, value, eps, reserved: 0 }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormalizeArguments {
    x: u64,
    mask: u64,
    y: u64,
    statistics: u64,
    weight: u64,
    bias: u64,
    header: u64,
    state: u64,
    new_state: u64,
    time: u64,
    until: u64,
    channels: u32,
    mask_width: u32,
    tile: u32,
    slots: u32,
    tiles: u32,
    is_zeroed: u32,
    batch: u32,
    pitch: u32,
    by_tile: Divisor,
    scaler: Scaler,
}

// SAFETY: mirrors `NormalizeArguments`; 11 × 8 and 20 × 4 bytes, no padding.
unsafe impl Arguments for NormalizeArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct DenormalizeArguments {
    x: u64,
    y: u64,
    shift: u64,
    scale: u64,
    weight: u64,
    bias: u64,
    row_stride: u64,
    items: u32,
    channel: u32,
    width: Divisor,
    steps: Divisor,
    outputs: Divisor,
    affine_eps: f32,
    is_asinh: u32,
}

// SAFETY: mirrors `DenormalizeArguments`; 7 × 8 and 16 × 4 bytes, no padding.
unsafe impl Arguments for DenormalizeArguments {}

/// Addresses of a learned map's weight and bias; 0 for none.
fn affine(affine: Option<&Affine>, packer: &mut Packer<'_>) -> Result<(u64, u64), DeviceError> {
    match affine {
        None => Ok((0, 0)),
        Some(affine) => Ok((packer.plain(affine.weight)?, packer.plain(affine.bias)?)),
    }
}

/// `normalize`.
#[derive(Debug)]
pub(super) struct LoadedNormalize {
    op: Normalize,
    y: ValueId,
    statistics: ValueId,
    affine: (u64, u64),
}

impl LoadedNormalize {
    pub(super) fn load(
        op: &Normalize,
        outputs: &[ValueId],
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let affine = affine(op.affine.as_ref(), packer)?;
        Ok(LoadedNormalize { op: op.clone(), y: outputs[0], statistics: outputs[1], affine })
    }
}

/// A kernel with its blocks, and what they hold.
#[derive(Debug)]
struct Plan {
    function: String,
    blocks: usize,
    threads: usize,
    shared: usize,
    /// Channels of a block, blocks of a row, threads of a channel, and floats of a step.
    tile: usize,
    tiles: usize,
    slots: usize,
    pitch: usize,
}

impl Plan {
    fn new(op: &Normalize, (batch, time, channels): (usize, usize, usize)) -> Plan {
        let medians =
            op.scaler.center == Center::Median || op.scaler.spread == Spread::MedianDeviation;
        let extremes = medians
            || matches!(op.scaler.center, Center::Last | Center::Minimum | Center::Midrange)
            || matches!(
                op.scaler.spread,
                Spread::Range | Spread::HalfRange | Spread::MeanMagnitude
            );
        if op.statistics == Statistics::Prefix {
            let function =
                if extremes { "normalize_prefixes_extremes" } else { "normalize_prefixes" };
            let (tile, tiles, slots, pitch) = (1, 1, 1, 1);
            let (function, threads, shared) = (function.to_owned(), THREADS, 0);
            return Plan { function, blocks: batch, threads, shared, tile, tiles, slots, pitch };
        }
        if time > SHORT_MAX {
            let columns::Tiles { tile, tiles, slots, threads } =
                columns::Tiles::new(channels, time);
            let (function, shared) = ("normalize_windows_long".to_owned(), threads * ROOM);
            let blocks = batch * tiles;
            return Plan { function, blocks, threads, shared, tile, tiles, slots, pitch: 1 };
        }
        // A lane has this many steps, and a warp sorts them all.
        let each = time.div_ceil(32).max(1).next_power_of_two();
        let sorted = 33 * each * 4;
        let function = format!("normalize_windows_{each}");
        if channels == 1 {
            let (threads, blocks) = (32 * SHORT_ROWS, batch.div_ceil(SHORT_ROWS));
            let shared = if medians { SHORT_ROWS * sorted } else { 0 };
            let (tile, tiles, slots, pitch) = (1, 1, 1, 1);
            return Plan { function, blocks, threads, shared, tile, tiles, slots, pitch };
        }
        // Steps are an odd number of floats apart, so that a channel meets every bank.
        let series = if medians { sorted } else { 4 * time };
        let most = ((SHORT_BYTES / series.max(1)).saturating_sub(1) | 1).min(SHORT_CHANNELS);
        let tiles = channels.div_ceil(most);
        let tile = channels.div_ceil(tiles.max(1)).max(1);
        let pitch = tile | 1;
        let shared = (time * pitch * 4).max(if medians { tile * sorted } else { 0 });
        let (blocks, threads) = (batch * tiles, 32 * tile);
        Plan { function, blocks, threads, shared, tile, tiles, slots: 1, pitch }
    }
}

impl Loaded for LoadedNormalize {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.op;
        let &[batch, time, channels] = build.shape(op.x) else { return Ok(()) };
        // Medians are counted in 32 bits.
        check("positions of a scaled row", time)?;
        check("channels of a scaled window", channels)?;
        if op.statistics == Statistics::Prefix {
            check("elements of all patches", time * channels)?;
        }
        let until = match op.statistics {
            Statistics::First(n) => n.min(time),
            _ => time,
        };
        let plan = Plan::new(op, (batch, time, channels));
        check("blocks of a scaler", plan.blocks)?;
        if plan.blocks == 0 {
            return Ok(());
        }
        let mask_width = match op.mask.map(|mask| build.shape(mask)) {
            Some(&[_, _, width]) => width,
            _ => 1,
        };
        let (state, new_state) =
            op.running.map_or((0, 0), |id| (build.state(id), build.new_state(id)));
        let arguments = NormalizeArguments {
            x: build.value(op.x),
            mask: op.mask.map_or(0, |mask| build.value(mask)),
            y: build.value(self.y),
            statistics: build.value(self.statistics),
            weight: self.affine.0,
            bias: self.affine.1,
            header: build.header(),
            state,
            new_state,
            time: time as u64,
            until: until as u64,
            channels: channels as u32,
            mask_width: mask_width as u32,
            tile: plan.tile as u32,
            slots: plan.slots as u32,
            tiles: plan.tiles as u32,
            is_zeroed: u32::from(op.masked == Masked::Zero),
            batch: batch as u32,
            pitch: plan.pitch as u32,
            by_tile: Divisor::new(plan.tile),
            scaler: Scaler::new(&op.scaler),
        };
        let (grid, block) = ([plan.blocks as u32, 1, 1], [plan.threads as u32, 1, 1]);
        let counter = "normalize-any-f32";
        let launch = Launch::new(MODULE, plan.function, counter, grid, block, arguments);
        build.launch(launch.shared(plan.shared as u32));
        Ok(())
    }
}

/// `denormalize`.
#[derive(Debug)]
pub(super) struct LoadedDenormalize {
    op: Denormalize,
    y: ValueId,
    affine: (u64, u64),
}

impl LoadedDenormalize {
    pub(super) fn load(
        op: &Denormalize,
        y: ValueId,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let affine = affine(op.affine.as_ref(), packer)?;
        Ok(LoadedDenormalize { op: op.clone(), y, affine })
    }
}

impl Loaded for LoadedDenormalize {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.op;
        let &[batch, steps, width] = build.shape(op.x) else { return Ok(()) };
        let &[_, second, third] = build.shape(op.statistics) else { return Ok(()) };
        let row = steps * width;
        if batch * row == 0 {
            return Ok(());
        }
        check("elements of a forecast", row)?;
        // Where a row's shift and scale are: `[N, 2]`, of the last patch, or `[2, C]`.
        let (channels, row_stride, first, apart) = match op.prefix {
            true => (1, second * 2, second.saturating_sub(1) * 2, 1),
            false => (third, 2 * third, 0, third),
        };
        let statistics = build.value(op.statistics) + first as u64 * BYTES;
        let (x, y) = (build.value(op.x), build.value(self.y));
        let most = ITEMS_MAX / row;
        for start in (0..batch).step_by(most) {
            let items = most.min(batch - start) * row;
            let at = (start * row) as u64 * BYTES;
            let shift = statistics + (start * row_stride) as u64 * BYTES;
            let arguments = DenormalizeArguments {
                x: x + at,
                y: y + at,
                shift,
                scale: shift + apart as u64 * BYTES,
                weight: self.affine.0,
                bias: self.affine.1,
                row_stride: row_stride as u64,
                items: items as u32,
                channel: op.channel.map_or(ALL_CHANNELS, |channel| channel as u32),
                width: Divisor::new(width),
                steps: Divisor::new(steps),
                outputs: Divisor::new((width / channels).max(1)),
                affine_eps: op.affine.map_or(0.0, |affine| affine.eps),
                is_asinh: u32::from(op.scaler.asinh),
            };
            let (grid, block) = (blocks(items, THREADS, 4), [THREADS as u32, 1, 1]);
            let counter = "denormalize-any-f32";
            build.launch(Launch::new(MODULE, "denormalize", counter, grid, block, arguments));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neural_forecast_runtime::plan::PlanBuilder;

    #[test]
    fn short_windows_fit_their_blocks() {
        let context = neural_forecast_runtime::plan::Context::Free { max: 1, multiple: 1 };
        let mut plan = PlanBuilder::new("tests", context);
        plan.begin(neural_forecast_runtime::plan::EntryKind::Full);
        let x = plan.input("x", neural_forecast_runtime::plan::DType::F32, &[]);
        for scaler in [ops::Scaler::standard(0.0), ops::Scaler::robust(0.0)] {
            let op = Normalize::window(x, None, scaler);
            for time in 0..=SHORT_MAX {
                for channels in [1, 2, 3, 7, 16, 17, 33, 321] {
                    let plan = Plan::new(&op, (1, time, channels));
                    assert!(plan.tile * plan.tiles >= channels, "{time} by {channels}: {plan:?}");
                    assert!(plan.threads >= 32 * plan.tile && plan.threads <= 512);
                    assert!(plan.shared <= 48 << 10, "{time} by {channels}: {plan:?}");
                    assert!(channels == 1 || plan.shared >= time * plan.pitch * 4);
                }
            }
        }
    }
}
