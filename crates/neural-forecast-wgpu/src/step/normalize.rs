//! `normalize` and `denormalize`.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{
    Affine, Center, Denormalize, Masked, Normalize, Spread, Statistics, ZeroSpread,
};
use neural_forecast_runtime::plan::ValueId;

use super::build::word;
use super::elementwise::ELEMENTS;
use super::packer::Packed;
use super::{Build, Loaded, Packer};
use crate::kernel;

/// Weight and bias of a learned map.
fn pack_affine(
    affine: Option<&Affine>,
    owner: &str,
    packer: &mut Packer<'_>,
) -> Result<Packed, DeviceError> {
    let weight = packer.optional(affine.map(|affine| affine.weight))?;
    let bias = packer.optional(affine.map(|affine| affine.bias))?;
    packer.pack(owner, &[&weight, &bias])
}

#[derive(Debug)]
pub(super) struct LoadedNormalize {
    op: Normalize,
    y: ValueId,
    statistics: ValueId,
    affine: Packed,
}

impl LoadedNormalize {
    pub(super) fn load(
        op: &Normalize,
        outputs: &[ValueId],
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let affine = pack_affine(op.affine.as_ref(), owner, packer)?;
        Ok(LoadedNormalize { op: op.clone(), y: outputs[0], statistics: outputs[1], affine })
    }

    /// Elements of the mask from a row, a position and a channel to the next.
    fn mask_strides(&self, b: &Build<'_>) -> [usize; 3] {
        match self.op.mask.map(|mask| b.shape(mask)) {
            None => [0; 3],
            Some(&[_, time]) => [time, 1, 0],
            Some(mask) => {
                let (time, channels) = (mask[1], mask[2]);
                [time * channels, channels, usize::from(channels > 1)]
            }
        }
    }

    fn constants(&self) -> [(&'static str, u32); 9] {
        let op = &self.op;
        let center = match op.scaler.center {
            Center::Zero => 0,
            Center::Mean => 1,
            Center::Median => 2,
            Center::Last => 3,
            Center::Minimum => 4,
            Center::Midrange => 5,
        };
        let spread = match op.scaler.spread {
            Spread::One => 0,
            Spread::Deviation => 1,
            Spread::SampleDeviation => 2,
            Spread::DeviationInside(_) => 3,
            Spread::MedianDeviation => 4,
            Spread::Range => 5,
            Spread::HalfRange => 6,
            Spread::MeanMagnitude => 7,
        };
        let zero = match op.scaler.zero {
            ZeroSpread::Keep => 0,
            ZeroSpread::Value(_) => 1,
            ZeroSpread::CenterMagnitude(_) => 2,
            ZeroSpread::Collapse(_) => 3,
        };
        [
            ("PREFIX", u32::from(op.statistics == Statistics::Prefix)),
            ("MASK", u32::from(op.mask.is_some())),
            ("MASKED_ZERO", u32::from(op.masked == Masked::Zero)),
            ("AFFINE", u32::from(op.affine.is_some())),
            ("RUNNING", u32::from(op.running.is_some())),
            ("CENTER", center),
            ("SPREAD", spread),
            ("ZERO", zero),
            ("ASINH", u32::from(op.scaler.asinh)),
        ]
    }
}

impl Loaded for LoadedNormalize {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.op;
        let shape = b.shape(op.x);
        let (rows, time, channels) = (shape[0], shape[1], shape[2]);
        let counted = match op.statistics {
            Statistics::First(n) => n,
            Statistics::Window | Statistics::Prefix => time,
        };
        let zero = match op.scaler.zero {
            ZeroSpread::Keep => 0.0,
            ZeroSpread::Value(x) | ZeroSpread::CenterMagnitude(x) | ZeroSpread::Collapse(x) => x,
        };
        let inside = match op.scaler.spread {
            Spread::DeviationInside(eps) => eps,
            _ => 0.0,
        };
        let elements = op.running.map_or(0, |state| b.state_elements(state));
        let new_carried = b.scratch(rows * elements);
        let carried = op.running.map_or(0, |state| b.state(state));
        let mut words = vec![b.value(op.x), op.mask.map_or(0, |mask| b.value(mask))];
        words.extend([b.value(self.y), b.value(self.statistics)]);
        words.extend([rows, time, channels, counted].map(word));
        words.extend(self.mask_strides(b).map(word));
        words.extend(&self.affine.places);
        words.extend([carried, new_carried]);
        words.extend([op.scaler.eps, zero, inside].map(f32::to_bits));
        let each = if op.statistics == Statistics::Prefix { time } else { channels };
        let grid = b.grid(self.y, rows, 1, each);
        let place = (self.affine.buffer, grid);
        b.dispatch(&kernel::NORMALIZE, &self.constants(), words, place)?;
        if op.running.is_some() && each > 0 {
            let new = NewState { from: new_carried, row: elements, first: 0, copied: elements };
            new.commit(b, (carried, elements), rows, self.y)?;
        }
        Ok(())
    }
}

/// New states of the rows of a run, on their way into the store.
pub(super) struct NewState {
    /// Of row 0, in the arena; elements to the next row.
    pub(super) from: u32,
    pub(super) row: usize,
    /// Where in a slot they begin, and how many they are.
    pub(super) first: usize,
    pub(super) copied: usize,
}

impl NewState {
    /// Copies them into a state, given by its place and its elements; rows are those of `value`.
    pub(super) fn commit(
        &self,
        b: &mut Build<'_>,
        (to, elements): (u32, usize),
        rows: usize,
        value: ValueId,
    ) -> Result<(), DeviceError> {
        let mut words = vec![self.from, word(self.row), to];
        words.extend([elements, rows, self.first, self.copied].map(word));
        let grid = b.grid(value, rows * self.copied, ELEMENTS, 1);
        b.dispatch(&kernel::COMMIT, &[], words, (0, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedDenormalize {
    op: Denormalize,
    y: ValueId,
    affine: Packed,
}

impl LoadedDenormalize {
    pub(super) fn load(
        op: &Denormalize,
        y: ValueId,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let affine = pack_affine(op.affine.as_ref(), owner, packer)?;
        Ok(LoadedDenormalize { op: op.clone(), y, affine })
    }
}

impl Loaded for LoadedDenormalize {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.op;
        let shape = b.shape(op.x);
        let statistics = b.shape(op.statistics);
        let (row, width) = (shape[1] * shape[2], shape[2]);
        let count: usize = shape.iter().product();
        let all = statistics[1] * statistics[2];
        // The last patch's pair, or the channels' shifts and then their scales.
        let (first, of_channel, to_scale, channels) = match op.prefix {
            true => (all - 2, 0, 1, 1),
            false => (0, 1, statistics[2], statistics[2]),
        };
        let outputs = if op.channel.is_some() { width } else { width / channels };
        let place = b.value(op.statistics) + word(first);
        let mut words = vec![b.value(op.x), b.value(self.y), word(count), word(row), word(width)];
        words.extend([place, word(all), word(of_channel), word(to_scale), word(outputs.max(1))]);
        words.push(word(op.channel.unwrap_or(0)));
        words.extend(&self.affine.places);
        words.push(op.affine.as_ref().map_or(0.0, |affine| affine.eps).to_bits());
        let constants =
            [("AFFINE", u32::from(op.affine.is_some())), ("ASINH", u32::from(op.scaler.asinh))];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::DENORMALIZE, &constants, words, (self.affine.buffer, grid))
    }
}
