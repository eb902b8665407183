//! `unary`, `binary`, `weighted_sum` and `ramp`.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{
    Binary, BinaryKind, Operand, Ramp, Unary, UnaryKind, WeightedSum,
};
use neural_forecast_runtime::plan::ValueId;

use super::build::word;
use super::layout::{Axes, aligned_at_the_end, broadcast};
use super::packer::Packed;
use super::{Build, Loaded, Packer};
use crate::kernel;

/// Elements of a workgroup of the kernels that take one an invocation.
pub(super) const ELEMENTS: usize = 64;

#[derive(Debug)]
pub(super) struct LoadedUnary {
    pub(super) op: Unary,
    pub(super) y: ValueId,
}

impl Loaded for LoadedUnary {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = b.shape(self.op.x);
        let count: usize = shape.iter().product();
        let (x, y) = (b.value(self.op.x), b.value(self.y));
        let (function, factor, offset) = match self.op.kind {
            UnaryKind::Softmax => {
                let width = shape.last().copied().unwrap_or(1);
                let rows = count.checked_div(width).unwrap_or(0);
                let words = vec![x, y, word(rows), word(width)];
                let grid = b.grid(self.y, rows, 1, 1);
                return b.dispatch(&kernel::SOFTMAX, &[], words, (0, grid));
            }
            UnaryKind::Activation(function) => {
                let (number, slope) = function.code();
                (number, slope, 0.0)
            }
            UnaryKind::Asinh => (11, 0.0, 0.0),
            UnaryKind::Sinh => (12, 0.0, 0.0),
            UnaryKind::Exp => (13, 0.0, 0.0),
            UnaryKind::Sqrt => (14, 0.0, 0.0),
            UnaryKind::Affine { factor, offset } => (15, factor, offset),
            UnaryKind::Observed => (16, 0.0, 0.0),
            UnaryKind::NanToZero => (17, 0.0, 0.0),
        };
        let words = vec![x, y, word(count), factor.to_bits(), offset.to_bits()];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::UNARY, &[("FUNCTION", function)], words, (0, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedBinary {
    op: Binary,
    y: ValueId,
    /// Of a weight: its shape, and where it is.
    weight: Option<(Vec<usize>, Packed)>,
}

impl LoadedBinary {
    pub(super) fn load(
        op: &Binary,
        y: ValueId,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let weight = match op.b {
            Operand::Value(_) => None,
            Operand::Weight(id) => {
                let elements = packer.read(id)?;
                Some((packer.shape(id).to_vec(), packer.pack(owner, &[&elements])?))
            }
        };
        Ok(LoadedBinary { op: op.clone(), y, weight })
    }
}

impl Loaded for LoadedBinary {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = b.shape(self.op.a);
        let (operand, from, buffer) = match (&self.weight, self.op.b) {
            (Some((shape, packed)), _) => (shape.as_slice(), packed.places[0], packed.buffer),
            (None, Operand::Value(id)) => (b.shape(id), b.value(id), 0),
            (None, Operand::Weight(_)) => unreachable!("a weight was packed when it was loaded"),
        };
        let sizes = aligned_at_the_end(shape, 1)?;
        let strides = broadcast(shape, operand)?;
        let count: usize = shape.iter().product();
        let function = match self.op.kind {
            BinaryKind::Add => 0,
            BinaryKind::Subtract => 1,
            BinaryKind::Multiply => 2,
            BinaryKind::Divide => 3,
            BinaryKind::Maximum => 4,
        };
        let Axes(s) = sizes;
        let Axes(t) = strides;
        let mut words = vec![s[2], s[3], s[4], s[5], s[0], s[1], t[0], t[1]];
        words.extend([t[2], t[3], t[4], t[5]]);
        words.extend([b.value(self.op.a), from, b.value(self.y), word(count)]);
        let constants = [("FUNCTION", function), ("WEIGHT", u32::from(self.weight.is_some()))];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::BINARY, &constants, words, (buffer, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedWeightedSum {
    pub(super) op: WeightedSum,
    pub(super) y: ValueId,
}

impl Loaded for LoadedWeightedSum {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = b.shape(self.op.x);
        let (n, d) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let rows: usize = shape[..shape.len() - 2].iter().product();
        let places = [b.value(self.op.weights), b.value(self.op.x), b.value(self.y)];
        let mut words = places.to_vec();
        words.extend([word(rows), word(n), word(d)]);
        let grid = b.grid(self.y, rows, 1, 1);
        let constants = [("SOFTMAX", u32::from(self.op.softmax))];
        b.dispatch(&kernel::WEIGHTED_SUM, &constants, words, (0, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedRamp {
    pub(super) op: Ramp,
    pub(super) y: ValueId,
}

impl Loaded for LoadedRamp {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let count: usize = b.shape(self.y).iter().product();
        let start = self.op.start + self.op.length_factor * b.bucket().length as f64;
        let (start, factor) = (start as f32, self.op.factor as f32);
        let words = vec![b.value(self.y), word(count), start.to_bits(), factor.to_bits()];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::RAMP, &[], words, (0, grid))
    }
}
