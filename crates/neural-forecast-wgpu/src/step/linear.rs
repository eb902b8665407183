//! `linear`, and products that other ops are made of.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::KernelClass;
use neural_forecast_runtime::ops::{Linear, LinearAxis};
use neural_forecast_runtime::plan::ValueId;

use super::build::word;
use super::norm::PackedNorm;
use super::packer::Packed;
use super::{Build, Loaded, Packer, Part};
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
        if let Some(lanes) = b.cooperative()
            && self.is_in_fours(walk)
        {
            return self.push_cooperative(b, walk, lanes, (buffer, value));
        }
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
        let kernel = b.either(&kernel::LINEAR, &kernel::LINEAR_HALF);
        b.dispatch(kernel, &constants, words, (buffer, grid))
    }

    /// Whether rows and outputs lie side by side and at multiples of four, and nothing is gated.
    fn is_in_fours(&self, walk: &Walk) -> bool {
        let Walk { inputs, outputs, x, y, blocks, .. } = *walk;
        let places = [self.x, self.y, self.weight, self.bias.unwrap_or(0)];
        let strides = [inputs, outputs, x[0], x[1], y[0], y[1]];
        self.gate.is_none()
            && blocks[0] == 1
            && (x[2], y[2]) == (1, 1)
            && inputs > 0
            && places.iter().all(|place| place % 4 == 0)
            && self.residual.is_none_or(|place| place % 4 == 0)
            && strides.iter().all(|stride| stride % 4 == 0)
    }

    fn push_cooperative(
        &self,
        b: &mut Build<'_>,
        walk: &Walk,
        lanes: u32,
        (buffer, value): (usize, ValueId),
    ) -> Result<(), DeviceError> {
        let Walk { rows, inputs, outputs, inner, x, y, .. } = *walk;
        let four = |n: usize| word(n / 4);
        let mut words = vec![self.x / 4, self.y / 4, self.weight / 4, self.bias.unwrap_or(0) / 4];
        words.extend([self.residual.unwrap_or(0) / 4, word(rows), four(outputs), four(inputs)]);
        words.extend([word(inner), four(x[0]), four(x[1]), four(y[0]), four(y[1])]);
        words.push(self.function.1.to_bits());
        let each = rows.div_ceil(b.bucket().batch.max(1));
        let most = b.limits().max_compute_workgroup_storage_size as usize;
        let tile = Tile::of(b.class(), each, outputs, most);
        let [m, n] = tile.sides();
        let mut constants = tile.constants(lanes);
        constants.extend([
            ("BIAS", u32::from(self.bias.is_some())),
            ("RESIDUAL", u32::from(self.residual.is_some())),
            ("FUNCTION", self.function.0),
        ]);
        let grid = b.grid(value, rows, m, outputs.div_ceil(n));
        b.dispatch(&kernel::LINEAR_COOPERATIVE, &constants, words, (buffer, grid))
    }
}

/// How a workgroup of `linear_cooperative` shares its tile: along rows and outputs.
#[derive(Clone, Copy, Debug)]
struct Tile {
    /// Subgroups.
    groups: [usize; 2],
    /// Matrices of 16 by 16 of a subgroup.
    matrices: [usize; 2],
    /// Matrices of a slice along the inputs.
    depth: usize,
}

impl Tile {
    /// By the class, the rows of one row of the batch, the outputs and the bytes of workgroup
    /// memory; never by the batch.
    fn of(class: KernelClass, each: usize, outputs: usize, most: usize) -> Tile {
        let columns = if outputs > 64 { 2 } else { 1 };
        let large = Tile { groups: [2, 4], matrices: [4, columns], depth: 2 };
        match class {
            KernelClass::Throughput if large.bytes() <= most => large,
            KernelClass::Throughput => Tile { groups: [2, 2], matrices: [2, columns], depth: 2 },
            KernelClass::Latency if each >= 256 => {
                Tile { groups: [2, 2], matrices: [2, 2], depth: 2 }
            }
            KernelClass::Latency => Tile { groups: [2, 2], matrices: [1, 1], depth: 4 },
        }
    }

    /// Rows and outputs.
    fn sides(self) -> [usize; 2] {
        [0, 1].map(|i| 16 * self.groups[i] * self.matrices[i])
    }

    /// What the kernel must know of it, for subgroups of so many lanes.
    fn constants(self, lanes: u32) -> Vec<(&'static str, u32)> {
        let size = lanes as usize * self.groups[0] * self.groups[1];
        let loads = self.sides().map(|side| side * 4 * self.depth / size);
        vec![
            ("GROUPS_M", word(self.groups[0])),
            ("GROUPS_N", word(self.groups[1])),
            ("M", word(self.matrices[0])),
            ("N", word(self.matrices[1])),
            ("DEPTH", word(self.depth)),
            ("LANES", lanes),
            ("X_LOADS", word(loads[0])),
            ("W_LOADS", word(loads[1])),
        ]
    }

    /// Workgroup memory: slices of both operands, and sums on their way.
    fn bytes(self) -> usize {
        let [m, n] = self.sides();
        let slices = (m + n) * (4 * self.depth + 2) * 8;
        slices + self.groups[0] * self.groups[1] * 16 * (4 * self.matrices[1] + 1) * 16
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
        let (weight, bias) = (packer.read(op.weight)?, packer.optional(op.bias)?);
        let gate_weight = packer.optional(gate.map(|gate| gate.weight))?;
        let gate_bias = packer.optional(gate.and_then(|gate| gate.bias))?;
        let shape = packer.shape(op.weight);
        let outputs = match op.axis {
            LinearAxis::Heads(_) => shape[1],
            LinearAxis::Features | LinearAxis::Time => shape[0],
        };
        let parts = [
            Part::Product(&weight),
            Part::Single(&bias),
            Part::Product(&gate_weight),
            Part::Single(&gate_bias),
        ];
        let packed = packer.pack_parts(owner, &parts)?;
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

/// Every tile that there can be, with the bytes and the lanes that it is for.
#[cfg(test)]
fn tiles() -> Vec<(usize, u32, Tile)> {
    use KernelClass::{Latency, Throughput};
    let mut tiles = Vec::new();
    for (class, each, outputs) in
        [(Throughput, 64, 384), (Throughput, 64, 64), (Latency, 512, 768), (Latency, 1, 128)]
    {
        for most in [20 << 10, 32 << 10, 48 << 10] {
            let tile = Tile::of(class, each, outputs, most);
            tiles.extend([(most, 32, tile), (most, 64, tile)]);
        }
    }
    tiles
}

/// The constants of every variant of `linear_cooperative`.
#[cfg(test)]
pub(crate) fn cooperative_variants() -> Vec<crate::kernel::Constants> {
    let ends = [[0, 0, 0], [1, 0, 2], [1, 1, 0]];
    let variant = |(_, lanes, tile): (usize, u32, Tile), [bias, residual, function]: [u32; 3]| {
        let mut constants = tile.constants(lanes);
        constants.extend([("BIAS", bias), ("RESIDUAL", residual), ("FUNCTION", function)]);
        constants
    };
    tiles().into_iter().flat_map(|tile| ends.map(|end| variant(tile, end))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_and_are_shared_evenly() {
        for (most, lanes, tile) in tiles() {
            assert!(tile.bytes() <= most, "{tile:?} in {most}");
            let size = lanes as usize * tile.groups[0] * tile.groups[1];
            assert_eq!(size % (4 * tile.depth), 0, "{tile:?}");
            for side in tile.sides() {
                assert_eq!(side * 4 * tile.depth % size, 0, "{tile:?} of {lanes}");
            }
        }
    }

    #[test]
    fn a_tile_does_not_depend_on_the_batch() {
        for each in [1, 3, 5, 17, 64, 500] {
            let tile = |batch: usize| tile_rows(KernelClass::Latency, each * batch, batch);
            assert!([2, 7, 64].iter().all(|&batch| tile(batch) == tile(1)), "{each}");
            assert!(tile(1).is_power_of_two() && tile(1) <= ROWS_MAX);
        }
    }
}
