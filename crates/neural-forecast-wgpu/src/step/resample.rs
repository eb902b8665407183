//! `pool`, `interpolate`, `empirical_quantiles` and `sample`.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{
    Distribution, EmpiricalQuantiles, Interpolate, InterpolateKind, Pool, PoolKind, Sample,
};
use neural_forecast_runtime::plan::ValueId;

use super::build::word;
use super::elementwise::ELEMENTS;
use super::{Build, Loaded};
use crate::kernel;

#[derive(Debug)]
pub(super) struct LoadedPool {
    pub(super) op: Pool,
    pub(super) y: ValueId,
}

impl Loaded for LoadedPool {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let (x, y) = (b.shape(self.op.x), b.shape(self.y));
        let axis = self.op.axis;
        let count: usize = y.iter().product();
        let words = vec![
            b.value(self.op.x),
            b.value(self.y),
            word(count),
            word(x[axis]),
            word(y[axis]),
            word(self.op.kernel.unwrap_or(x[axis]).max(1)),
            word(x[axis + 1..].iter().product()),
        ];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        let mean = u32::from(self.op.kind == PoolKind::Mean);
        b.dispatch(&kernel::POOL, &[("MEAN", mean)], words, (0, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedInterpolate {
    pub(super) op: Interpolate,
    pub(super) y: ValueId,
}

impl LoadedInterpolate {
    /// The left knot of a point, and how far right of it the point lies.
    fn place(&self, point: usize, knots: usize) -> (i32, f32) {
        let center = (point as f64 + 0.5) * knots as f64 / self.op.size as f64 - 0.5;
        match self.op.kind {
            InterpolateKind::Nearest => ((point * knots / self.op.size) as i32, 0.0),
            InterpolateKind::Linear => {
                let center = center.max(0.0);
                (center.floor() as i32, center.fract() as f32)
            }
            InterpolateKind::Cubic => (center.floor() as i32, (center - center.floor()) as f32),
        }
    }
}

impl Loaded for LoadedInterpolate {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let knots = b.shape(self.op.x).last().copied().unwrap_or(1);
        let places = (0..self.op.size).map(|point| self.place(point, knots));
        let (left, right): (Vec<i32>, Vec<f32>) = places.unzip();
        let words: Vec<u32> = left.iter().map(|&knot| knot as u32).collect();
        let distances: Vec<u32> = right.iter().map(|t| t.to_bits()).collect();
        let places = b.constants(&[words, distances].concat());
        let count: usize = b.shape(self.y).iter().product();
        let words = vec![
            b.value(self.op.x),
            b.value(self.y),
            word(count),
            word(knots),
            word(self.op.size),
            places,
        ];
        let kind = match self.op.kind {
            InterpolateKind::Nearest => 0,
            InterpolateKind::Linear => 1,
            InterpolateKind::Cubic => 2,
        };
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::INTERPOLATE, &[("KIND", kind)], words, (0, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedQuantiles {
    pub(super) op: EmpiricalQuantiles,
    pub(super) y: ValueId,
}

impl Loaded for LoadedQuantiles {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let x = b.shape(self.op.x);
        let samples = x.last().copied().unwrap_or(1);
        let rows: usize = x[..x.len() - 1].iter().product();
        let levels = self.op.levels.len();
        let places = self.op.levels.iter().flat_map(|level| {
            let rank = level * (samples - 1) as f64;
            [rank.floor() as u32, rank.ceil() as u32, (rank.fract() as f32).to_bits()]
        });
        let places: Vec<u32> = places.collect();
        let places = b.constants(&places);
        let ranked = b.scratch(rows * samples);
        let (value, y) = (b.value(self.op.x), b.value(self.y));
        let words = vec![value, ranked, y, word(rows), word(samples), word(levels), places];
        for (pick, each) in [(0, samples), (1, levels)] {
            let grid = b.grid(self.y, rows * each, ELEMENTS, 1);
            let constants = [("PICK", pick)];
            b.dispatch(&kernel::EMPIRICAL_QUANTILES, &constants, words.clone(), (0, grid))?;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct LoadedSample {
    pub(super) op: Sample,
    pub(super) y: ValueId,
}

impl Loaded for LoadedSample {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let y = b.shape(self.y);
        let count: usize = y.iter().product();
        let words = vec![
            b.value(self.op.parameters),
            b.value(self.op.seed),
            b.value(self.y),
            word(count),
            word(y[1]),
            word(y[2]),
        ];
        let distribution = match self.op.distribution {
            Distribution::Normal => 0,
            Distribution::StudentT => 1,
        };
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::SAMPLE, &[("DISTRIBUTION", distribution)], words, (0, grid))
    }
}
