//! `linear`, and products that other ops are made of.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::KernelClass;
use neural_forecast_runtime::ops::{Linear, LinearAxis};
use neural_forecast_runtime::plan::ValueId;

use super::build::word;
use super::norm::PackedNorm;
use super::packer::Packed;
use super::{Build, Loaded, Packer};
use crate::kernel;

/// Invocations of a tile along the outputs, each with four of them.
const COLUMNS: usize = 16;

/// Most invocations of a tile along the rows, each with four of them.
const ROWS_MAX: usize = 16;

/// Where the rows, inputs and outputs of a product lie; see `wgsl/linear.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) inner: usize,
    /// Outer and inner stride, stride of an input.
    pub(super) x: [usize; 3],
    pub(super) y: [usize; 3],
    /// Blocks, after how many their inputs repeat, elements between blocks of x and y.
    pub(super) blocks: [usize; 4],
}

impl Walk {
    /// Contiguous rows.
    pub(super) fn plain(rows: usize, inputs: usize, outputs: usize) -> Walk {
        let (x, y) = ([inputs, 0, 1], [outputs, 0, 1]);
        Walk { rows, inputs, outputs, inner: 1, x, y, blocks: [1, 1, 0, 0] }
    }
}

/// A product with what follows it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Product {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) weight: u32,
    pub(super) bias: Option<u32>,
    pub(super) function: (u32, f32),
    /// Weight, bias, function.
    pub(super) gate: Option<(u32, Option<u32>, (u32, f32))>,
    pub(super) residual: Option<u32>,
}

impl Product {
    /// Dispatches it; its rows are those of `value`.
    pub(super) fn push(
        &self,
        b: &mut Build<'_>,
        walk: &Walk,
        buffer: usize,
        value: ValueId,
    ) -> Result<(), DeviceError> {
        let Walk { rows, inputs, outputs, inner, x, y, blocks } = *walk;
        let (gate, gate_bias, (gate_function, gate_slope)) = self.gate.unwrap_or_default();
        let sizes = [rows, outputs, inputs, inner, x[0], x[1], x[2], y[0], y[1], y[2]];
        let mut words = vec![self.x, self.y, self.weight, self.bias.unwrap_or(0)];
        words.extend([gate, gate_bias.unwrap_or(0), self.residual.unwrap_or(0)]);
        words.extend(sizes.into_iter().chain(blocks).map(word));
        words.extend([self.function.1.to_bits(), gate_slope.to_bits()]);
        let tile = tile_rows(b.class(), rows, b.bucket().batch);
        let constants = [
            ("ROWS", word(tile)),
            ("COLUMNS", word(COLUMNS)),
            ("BIAS", u32::from(self.bias.is_some())),
            ("GATE", u32::from(self.gate.is_some())),
            ("GATE_BIAS", u32::from(gate_bias.is_some())),
            ("RESIDUAL", u32::from(self.residual.is_some())),
            ("FUNCTION", self.function.0),
            ("GATE_FUNCTION", gate_function),
        ];
        let times = outputs.div_ceil(4 * COLUMNS) * blocks[0];
        let grid = b.grid(value, rows, 4 * tile, times);
        b.dispatch(&kernel::LINEAR, &constants, words, (buffer, grid))
    }
}

/// Invocations of a tile along the rows: by the class and the rows of one row of the batch, so that
/// the kernel does not depend on the batch.
fn tile_rows(class: KernelClass, rows: usize, batch: usize) -> usize {
    match class {
        KernelClass::Throughput => ROWS_MAX,
        KernelClass::Latency => {
            let each = rows.div_ceil(batch.max(1));
            each.div_ceil(4).next_power_of_two().min(ROWS_MAX)
        }
    }
}

#[derive(Debug)]
pub(super) struct LoadedLinear {
    op: Linear,
    y: ValueId,
    norm: Option<PackedNorm>,
    /// Weight, bias, weight and bias of the gate.
    packed: Packed,
    outputs: usize,
}

impl LoadedLinear {
    pub(super) fn load(
        op: &Linear,
        y: ValueId,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let norm = op.prologue.as_ref();
        let norm = norm.map(|norm| PackedNorm::load(norm, owner, packer)).transpose()?;
        let gate = op.gate.as_ref();
        let parts = [
            packer.read(op.weight)?,
            packer.optional(op.bias)?,
            packer.optional(gate.map(|gate| gate.weight))?,
            packer.optional(gate.and_then(|gate| gate.bias))?,
        ];
        let shape = packer.shape(op.weight);
        let outputs = match op.axis {
            LinearAxis::Heads(_) => shape[1],
            LinearAxis::Features | LinearAxis::Time => shape[0],
        };
        let packed = packer.pack(owner, &parts.each_ref().map(Vec::as_slice))?;
        Ok(LoadedLinear { op: op.clone(), y, norm, packed, outputs })
    }

    fn walk(&self, shape: &[usize]) -> Walk {
        let last = shape.last().copied().unwrap_or(1);
        let outputs = self.outputs;
        let outer: usize = shape[..shape.len() - 1].iter().product();
        match self.op.axis {
            LinearAxis::Features => Walk::plain(outer, last, outputs),
            LinearAxis::Heads(heads) => {
                let inputs = last / heads;
                Walk {
                    x: [last, 0, 1],
                    y: [heads * outputs, 0, 1],
                    blocks: [heads, heads, inputs, outputs],
                    ..Walk::plain(outer, inputs, outputs)
                }
            }
            LinearAxis::Time => {
                let time = shape[shape.len() - 2];
                let rows: usize = shape[..shape.len() - 2].iter().product();
                Walk {
                    inner: last,
                    x: [time * last, 1, last],
                    y: [outputs * last, 1, last],
                    ..Walk::plain(rows * last, time, outputs)
                }
            }
        }
    }
}

impl Loaded for LoadedLinear {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = b.shape(self.op.x);
        let walk = self.walk(shape);
        let mut x = b.value(self.op.x);
        if let Some(norm) = &self.norm {
            let to = b.scratch(walk.rows * walk.inputs);
            norm.push(b, (x, to), (walk.rows, walk.inputs), self.y)?;
            x = to;
        }
        let place = |part: usize| self.packed.places[part];
        let gate = self
            .op
            .gate
            .as_ref()
            .map(|gate| (place(2), gate.bias.map(|_| place(3)), gate.activation.code()));
        let product = Product {
            x,
            y: b.value(self.y),
            weight: place(0),
            bias: self.op.bias.map(|_| place(1)),
            function: self.op.activation.code(),
            gate,
            residual: self.op.residual.map(|id| b.value(id)),
        };
        product.push(b, &walk, self.packed.buffer, self.y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_does_not_depend_on_the_batch() {
        for each in [1, 3, 5, 17, 64, 500] {
            let tile = |batch: usize| tile_rows(KernelClass::Latency, each * batch, batch);
            assert!([2, 7, 64].iter().all(|&batch| tile(batch) == tile(1)), "{each}");
            assert!(tile(1).is_power_of_two() && tile(1) <= ROWS_MAX);
        }
    }
}
