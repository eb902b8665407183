//! `unary`, `binary`, `weighted_sum` and `ramp`: what is left between the products.
//!
//! Not what follows a product at once: that is in the product's epilogue.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{
    self, Activation, Binary, BinaryKind, Operand, Unary, UnaryKind,
};
use neural_forecast_runtime::plan::ValueId;

use super::indexing::{Axes, Axis, BYTES, Divisor, ITEMS_MAX, blocks, joined, parts, strides};
use super::rows::Rows;
use super::{Build, Loaded, Packer};
use crate::launch::{Arguments, Launch};

const MODULE: &str = "elementwise";

/// Threads of a block of `unary` and `binary`.
const THREADS: usize = 256;

/// Threads of a block of `weighted_sum`, few so that small batches spread.
const SUM_THREADS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct UnaryArguments {
    x: u64,
    y: u64,
    elements: u32,
    a: f32,
    b: f32,
    zero: u32,
}

// SAFETY: mirrors `UnaryArguments`; 2 × 8 and 4 × 4 bytes, no padding.
unsafe impl Arguments for UnaryArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct SoftmaxArguments {
    x: u64,
    y: u64,
    rows: u32,
    width: u32,
    lanes: u32,
    zero: u32,
}

// SAFETY: mirrors `SoftmaxArguments`; 2 × 8 and 4 × 4 bytes, no padding.
unsafe impl Arguments for SoftmaxArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct BinaryArguments {
    a: u64,
    b: u64,
    y: u64,
    items: u32,
    kind: u32,
    b_axes: Axes,
}

// SAFETY: mirrors `BinaryArguments`; 3 × 8 and 2 × 4 bytes before `Axes`, which has none either.
unsafe impl Arguments for BinaryArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct WeightedSumArguments {
    weights: u64,
    x: u64,
    y: u64,
    items: u32,
    n: u32,
    d: u32,
    is_softmax: u32,
    vectors: Divisor,
}

// SAFETY: mirrors `WeightedSumArguments`; 3 × 8 and 8 × 4 bytes, no padding.
unsafe impl Arguments for WeightedSumArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct RampArguments {
    y: u64,
    start: f64,
    added: f64,
    factor: f64,
    elements: u64,
}

// SAFETY: mirrors `RampArguments`; 5 × 8 bytes, no padding.
unsafe impl Arguments for RampArguments {}

/// `unary`.
#[derive(Debug)]
pub(super) struct LoadedUnary {
    pub(super) op: Unary,
    pub(super) y: ValueId,
}

impl LoadedUnary {
    /// The function's name after `unary_`, and its parameters.
    fn function(&self) -> (&'static str, f32, f32) {
        match self.op.kind {
            UnaryKind::Activation(activation) => {
                let slope = activation.code().1;
                (activation_name(activation), slope, 0.0)
            }
            UnaryKind::Asinh => ("asinh", 0.0, 0.0),
            UnaryKind::Sinh => ("sinh", 0.0, 0.0),
            UnaryKind::Exp => ("exp", 0.0, 0.0),
            UnaryKind::Sqrt => ("sqrt", 0.0, 0.0),
            UnaryKind::Affine { factor, offset } => ("affine", factor, offset),
            UnaryKind::Observed => ("observed", 0.0, 0.0),
            UnaryKind::NanToZero => ("nan_to_zero", 0.0, 0.0),
            UnaryKind::Softmax => ("softmax", 0.0, 0.0),
        }
    }

    fn build_softmax(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.op.x);
        let width = shape.last().copied().unwrap_or(1);
        let rows = Rows::new("softmax", shape.iter().product::<usize>() / width.max(1), width)?;
        let (x, y) = (build.value(self.op.x), build.value(self.y));
        for part in rows.parts(1) {
            let at = (part.first * width) as u64 * BYTES;
            let arguments = SoftmaxArguments {
                x: x + at,
                y: y + at,
                rows: part.rows as u32,
                width: width as u32,
                lanes: rows.lanes(),
                zero: 0,
            };
            build.launch(part.launch(MODULE, "softmax", "unary-any-f32", arguments));
        }
        Ok(())
    }
}

impl Loaded for LoadedUnary {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        if self.op.kind == UnaryKind::Softmax {
            return self.build_softmax(build);
        }
        let (name, a, b) = self.function();
        let (x, y) = (build.value(self.op.x), build.value(self.y));
        let all: usize = build.shape(self.op.x).iter().product();
        for first in (0..all).step_by(ITEMS_MAX) {
            let elements = ITEMS_MAX.min(all - first);
            let at = first as u64 * BYTES;
            let arguments =
                UnaryArguments { x: x + at, y: y + at, elements: elements as u32, a, b, zero: 0 };
            // Two vectors of four a thread.
            let grid = blocks(elements, THREADS, 8);
            let function = format!("unary_{name}");
            let block = [THREADS as u32, 1, 1];
            build.launch(Launch::new(MODULE, function, "unary-any-f32", grid, block, arguments));
        }
        Ok(())
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Identity => "identity",
        Activation::Relu => "relu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu => "silu",
        Activation::Sigmoid => "sigmoid",
        Activation::Tanh => "tanh",
        Activation::Elu => "elu",
        Activation::Softplus => "softplus",
        Activation::LeakyRelu(_) => "leaky_relu",
        Activation::Selu => "selu",
    }
}

/// `binary`.
#[derive(Debug)]
pub(super) struct LoadedBinary {
    op: Binary,
    y: ValueId,
    /// Address and shape of a weight as second operand.
    weight: Option<(u64, Vec<usize>)>,
}

impl LoadedBinary {
    pub(super) fn load(
        op: &Binary,
        y: ValueId,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let weight = match op.b {
            Operand::Value(_) => None,
            Operand::Weight(id) => Some((packer.plain(id)?, packer.shape(id).to_vec())),
        };
        Ok(LoadedBinary { op: op.clone(), y, weight })
    }
}

impl Loaded for LoadedBinary {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.op.a).to_vec();
        if shape.contains(&0) {
            return Ok(());
        }
        let (b, b_shape) = match (&self.weight, self.op.b) {
            (Some((address, shape)), _) => (*address, shape.clone()),
            (None, Operand::Value(b)) => (build.value(b), build.shape(b).to_vec()),
            (None, Operand::Weight(_)) => return Ok(()),
        };
        let missing = shape.len() - b_shape.len();
        let (a_strides, b_strides) = (strides(&shape), strides(&b_shape));
        let axes = joined(shape.iter().enumerate().map(|(i, &size)| {
            let repeats = i < missing || b_shape[i - missing] == 1;
            let from = if repeats { 0 } else { b_strides[i - missing] };
            Axis { size, from, to: a_strides[i] }
        }));
        let kind = match self.op.kind {
            BinaryKind::Add => 0,
            BinaryKind::Subtract => 1,
            BinaryKind::Multiply => 2,
            BinaryKind::Divide => 3,
            BinaryKind::Maximum => 4,
        };
        let (function, wide, axes) = vectors(axes);
        let (a, y) = (build.value(self.op.a), build.value(self.y));
        parts(&axes, &mut |axes, from, to| {
            let items: usize = axes.iter().map(|axis| axis.size).product();
            let at = to as u64 * BYTES;
            let arguments = BinaryArguments {
                a: a + at,
                b: b + from as u64 * BYTES,
                y: y + at,
                items: items as u32,
                kind,
                b_axes: Axes::new(axes, |axis| axis.from)?,
            };
            let grid = blocks(items, THREADS, if wide { 2 } else { 4 });
            let block = [THREADS as u32, 1, 1];
            build.launch(Launch::new(MODULE, function, "binary-any-f32", grid, block, arguments));
            Ok(())
        })
    }
}

/// The kernel for these axes, whether its items are four elements, and the axes by its items.
fn vectors(mut axes: Vec<Axis>) -> (&'static str, bool, Vec<Axis>) {
    let Some((inner, outer)) = axes.split_last_mut() else { return ("binary_v1", false, axes) };
    let aligned = outer.iter().all(|axis| axis.from.is_multiple_of(4));
    let name = match inner.from {
        _ if inner.size % 4 != 0 => return ("binary_v1", false, axes),
        0 => "binary_v4_one",
        1 if aligned => "binary_v4",
        _ => return ("binary_v1", false, axes),
    };
    *inner = Axis { size: inner.size / 4, from: inner.from * 4, to: 4 };
    (name, true, axes)
}

/// `weighted_sum`.
#[derive(Debug)]
pub(super) struct LoadedWeightedSum {
    pub(super) op: ops::WeightedSum,
    pub(super) y: ValueId,
}

impl Loaded for LoadedWeightedSum {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let &[ref outer @ .., n, d] = build.shape(self.op.x) else { return Ok(()) };
        let rows: usize = outer.iter().product();
        let v = if d.is_multiple_of(4) { 4 } else { 1 };
        let vectors = d / v;
        if rows * vectors == 0 {
            return Ok(());
        }
        super::indexing::check("vectors of a weighted sum", vectors)?;
        super::indexing::check("weights of a weighted sum", n)?;
        let most = ITEMS_MAX / vectors;
        let (weights, x) = (build.value(self.op.weights), build.value(self.op.x));
        let y = build.value(self.y);
        for first in (0..rows).step_by(most) {
            let items = most.min(rows - first) * vectors;
            let arguments = WeightedSumArguments {
                weights: weights + (first * n) as u64 * BYTES,
                x: x + (first * n * d) as u64 * BYTES,
                y: y + (first * d) as u64 * BYTES,
                items: items as u32,
                n: n as u32,
                d: d as u32,
                is_softmax: u32::from(self.op.softmax),
                vectors: Divisor::new(vectors),
            };
            let (function, counter) = (format!("weighted_sum_v{v}"), "weighted_sum-any-f32");
            let (grid, block) = (blocks(items, SUM_THREADS, 1), [SUM_THREADS as u32, 1, 1]);
            build.launch(Launch::new(MODULE, function, counter, grid, block, arguments));
        }
        Ok(())
    }
}

/// `ramp`.
#[derive(Debug)]
pub(super) struct LoadedRamp {
    pub(super) op: ops::Ramp,
    pub(super) y: ValueId,
}

impl Loaded for LoadedRamp {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let elements: usize = build.shape(self.y).iter().product();
        if elements == 0 {
            return Ok(());
        }
        super::indexing::check("elements of a ramp", elements)?;
        let arguments = RampArguments {
            y: build.value(self.y),
            start: self.op.start,
            added: self.op.length_factor * build.bucket().length as f64,
            factor: self.op.factor,
            elements: elements as u64,
        };
        let (grid, block) = (blocks(elements, THREADS, 1), [THREADS as u32, 1, 1]);
        build.launch(Launch::new(MODULE, "ramp", "ramp-any-f32", grid, block, arguments));
        Ok(())
    }
}
