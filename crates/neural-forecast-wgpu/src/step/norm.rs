//! `norm`, alone and before a product.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{Norm, NormKind};
use neural_forecast_runtime::plan::ValueId;

use super::build::word;
use super::packer::Packed;
use super::{Build, Loaded, Packer};
use crate::kernel;

/// Rows of a workgroup of `norm_row`, invocations of a row, and most fours that one of them has.
const ROWS: usize = 8;
const SHARE: usize = 16;
const FOURS_MAX: usize = 16;

/// A norm with its weights: scale, shift, trained mean and variance, those that it has.
#[derive(Debug)]
pub(super) struct PackedNorm {
    op: Norm,
    packed: Packed,
}

impl PackedNorm {
    pub(super) fn load(
        op: &Norm,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let (weight, bias) = (packer.optional(op.weight)?, packer.optional(op.bias)?);
        let (mean, variance) = match op.kind {
            NormKind::Batch { mean, variance } => (packer.read(mean)?, packer.read(variance)?),
            _ => (Vec::new(), Vec::new()),
        };
        let packed = packer.pack(owner, &[&weight, &bias, &mean, &variance])?;
        Ok(PackedNorm { op: op.clone(), packed })
    }

    /// Normalises rows of `width` from place to place; the rows are those of `value`.
    pub(super) fn push(
        &self,
        b: &mut Build<'_>,
        (from, to): (u32, u32),
        (rows, width): (usize, usize),
        value: ValueId,
    ) -> Result<(), DeviceError> {
        let (kind, groups) = match self.op.kind {
            NormKind::Layer => (0, 1),
            NormKind::Group(groups) => (0, groups),
            NormKind::Rms => (1, 1),
            NormKind::Batch { .. } => (2, 1),
        };
        let mut words = vec![from, to, word(rows), word(width), word(groups), word(width / groups)];
        words.extend(&self.packed.places);
        words.extend([self.op.eps.to_bits(), self.op.weight_offset.to_bits()]);
        let mut constants = vec![
            ("KIND", kind),
            ("WEIGHT", u32::from(self.op.weight.is_some())),
            ("BIAS", u32::from(self.op.bias.is_some())),
        ];
        let fours = width.div_ceil(4 * SHARE);
        let in_fours = width.is_multiple_of(4) && from % 4 == 0 && to % 4 == 0;
        if groups == 1 && kind != 2 && in_fours && (1..=FOURS_MAX).contains(&fours) {
            constants.push(("FOURS", word(fours)));
            let grid = b.grid(value, rows, ROWS, 1);
            return b.dispatch(&kernel::NORM_ROW, &constants, words, (self.packed.buffer, grid));
        }
        let grid = b.grid(value, rows, 1, groups);
        b.dispatch(&kernel::NORM, &constants, words, (self.packed.buffer, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedNorm {
    y: ValueId,
    norm: PackedNorm,
}

impl LoadedNorm {
    pub(super) fn load(
        op: &Norm,
        y: ValueId,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        Ok(LoadedNorm { y, norm: PackedNorm::load(op, owner, packer)? })
    }
}

impl Loaded for LoadedNorm {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let x = self.norm.op.x;
        let shape = b.shape(x);
        let width = shape.last().copied().unwrap_or(1);
        let rows = shape[..shape.len() - 1].iter().product();
        let places = (b.value(x), b.value(self.y));
        self.norm.push(b, places, (rows, width), self.y)
    }
}
