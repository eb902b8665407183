//! `slice`, `concat`, `transpose`, `expand`, `gather`, `embedding` and `patch`: data movement.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{
    Concat, Embedding, Expand, From, Gather, Operand, Patch, PatchPad, Slice, Transpose,
};
use neural_forecast_runtime::plan::ValueId;

use super::build::word;
use super::elementwise::ELEMENTS;
use super::packer::Packed;
use super::{Build, Loaded, Packer, unsupported};
use crate::kernel;

/// Axes that kernels over strides have.
const AXES: usize = 6;

/// Six sizes or strides, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axes(pub(super) [u32; AXES]);

/// Numbers of axes aligned at the last one, those missing in front being `missing`.
pub(super) fn aligned_at_the_end(axes: &[usize], missing: u32) -> Result<Axes, DeviceError> {
    if axes.len() > AXES {
        let rank = axes.len();
        return Err(unsupported(format!("a value of {rank} axes on WebGPU, at most {AXES}")));
    }
    let mut all = [missing; AXES];
    for (to, &from) in all[AXES - axes.len()..].iter_mut().zip(axes) {
        *to = word(from);
    }
    Ok(Axes(all))
}

/// Elements from one position of each axis to the next.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Strides by which an operand is walked under the axes of `shape`: 0 where it repeats.
pub(super) fn broadcast(shape: &[usize], operand: &[usize]) -> Result<Axes, DeviceError> {
    let missing = shape.len() - operand.len();
    let own = strides(operand);
    let walked: Vec<usize> = (0..shape.len())
        .map(|axis| match axis.checked_sub(missing) {
            Some(inner) if operand[inner] != 1 => own[inner],
            _ => 0,
        })
        .collect();
    aligned_at_the_end(&walked, 0)
}

/// Elements moved: sizes of the walk, strides where they come from and go to.
struct Move<'a> {
    sizes: &'a [usize],
    from: (u32, &'a [usize]),
    to: (u32, &'a [usize]),
    /// The buffer of packed weights that they come from.
    weights: Option<usize>,
}

fn push(b: &mut Build<'_>, y: ValueId, walk: &Move<'_>) -> Result<(), DeviceError> {
    let Axes(s) = aligned_at_the_end(walk.sizes, 1)?;
    let Axes(f) = aligned_at_the_end(walk.from.1, 0)?;
    let Axes(t) = aligned_at_the_end(walk.to.1, 0)?;
    let count: usize = walk.sizes.iter().product();
    let mut words = vec![s[2], s[3], s[4], s[5], s[0], s[1], f[0], f[1]];
    words.extend([f[2], f[3], f[4], f[5], t[2], t[3], t[4], t[5], t[0], t[1]]);
    words.extend([walk.from.0, walk.to.0, word(count)]);
    let constants = [("WEIGHT", u32::from(walk.weights.is_some()))];
    let grid = b.grid(y, count, ELEMENTS, 1);
    b.dispatch(&kernel::LAYOUT, &constants, words, (walk.weights.unwrap_or(0), grid))
}

#[derive(Debug)]
pub(super) struct LoadedSlice {
    pub(super) op: Slice,
    pub(super) y: ValueId,
}

impl Loaded for LoadedSlice {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let (x, y) = (b.shape(self.op.x), b.shape(self.y));
        let (from, to) = (strides(x), strides(y));
        let axis = self.op.axis;
        let start = match self.op.from {
            From::Start(start) => start,
            From::End => x[axis] - y[axis],
        };
        let place = b.value(self.op.x) + word(start * from[axis]);
        let to = (b.value(self.y), to.as_slice());
        push(b, self.y, &Move { sizes: y, from: (place, &from), to, weights: None })
    }
}

#[derive(Debug)]
pub(super) struct LoadedConcat {
    pub(super) op: Concat,
    pub(super) y: ValueId,
}

impl Loaded for LoadedConcat {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let to = strides(b.shape(self.y));
        let mut start = 0;
        for &part in &self.op.parts {
            let shape = b.shape(part);
            let place = b.value(self.y) + word(start * to[self.op.axis]);
            let from = strides(shape);
            let from = (b.value(part), from.as_slice());
            push(b, self.y, &Move { sizes: shape, from, to: (place, &to), weights: None })?;
            start += shape[self.op.axis];
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct LoadedTranspose {
    pub(super) op: Transpose,
    pub(super) y: ValueId,
}

impl Loaded for LoadedTranspose {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let own = strides(b.shape(self.op.x));
        let from: Vec<usize> = self.op.permutation.iter().map(|&axis| own[axis]).collect();
        let sizes = b.shape(self.y);
        let to = strides(sizes);
        let (from, to) = ((b.value(self.op.x), from.as_slice()), (b.value(self.y), to.as_slice()));
        push(b, self.y, &Move { sizes, from, to, weights: None })
    }
}

#[derive(Debug)]
pub(super) struct LoadedExpand {
    op: Expand,
    y: ValueId,
    weight: Option<(Vec<usize>, Packed)>,
}

impl LoadedExpand {
    pub(super) fn load(
        op: &Expand,
        y: ValueId,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let weight = match op.x {
            Operand::Value(_) => None,
            Operand::Weight(id) => {
                let elements = packer.read(id)?;
                Some((packer.shape(id).to_vec(), packer.pack(owner, &[&elements])?))
            }
        };
        Ok(LoadedExpand { op: op.clone(), y, weight })
    }
}

impl Loaded for LoadedExpand {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let (shape, place, weights) = match (&self.weight, self.op.x) {
            (Some((shape, packed)), _) => (shape.as_slice(), packed.places[0], Some(packed.buffer)),
            (None, Operand::Value(id)) => (b.shape(id), b.value(id), None),
            (None, Operand::Weight(_)) => unreachable!("a weight was packed when it was loaded"),
        };
        let mut from = strides(shape);
        from.insert(self.op.axis, 0);
        let sizes = b.shape(self.y);
        let to = strides(sizes);
        let to = (b.value(self.y), to.as_slice());
        push(b, self.y, &Move { sizes, from: (place, &from), to, weights })
    }
}

#[derive(Debug)]
pub(super) struct LoadedGather {
    pub(super) op: Gather,
    pub(super) y: ValueId,
}

impl Loaded for LoadedGather {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let (x, y) = (b.shape(self.op.x), b.shape(self.y));
        let inner: usize = x[self.op.axis + 1..].iter().product();
        let picked = y[self.op.axis];
        let count: usize = y.iter().product();
        let words = vec![
            b.value(self.op.x),
            b.value(self.op.indices),
            b.value(self.y),
            word(count),
            word(x[self.op.axis]),
            word(picked),
            word(inner),
        ];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::GATHER, &[], words, (0, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedEmbedding {
    op: Embedding,
    y: ValueId,
    rows: usize,
    width: usize,
    packed: Packed,
}

impl LoadedEmbedding {
    pub(super) fn load(
        op: &Embedding,
        y: ValueId,
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let table = packer.read(op.table)?;
        let shape = packer.shape(op.table);
        let (rows, width) = (shape[0], shape[1]);
        let packed = packer.pack(owner, &[&table])?;
        Ok(LoadedEmbedding { op: op.clone(), y, rows, width, packed })
    }
}

impl Loaded for LoadedEmbedding {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let count: usize = b.shape(self.y).iter().product();
        let words = vec![
            self.packed.places[0],
            b.value(self.op.indices),
            b.value(self.y),
            word(count),
            word(self.rows),
            1,
            word(self.width),
        ];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::GATHER, &[("WEIGHT", 1)], words, (self.packed.buffer, grid))
    }
}

#[derive(Debug)]
pub(super) struct LoadedPatch {
    pub(super) op: Patch,
    pub(super) y: ValueId,
}

impl Loaded for LoadedPatch {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let (x, y) = (b.shape(self.op.x), b.shape(self.y));
        let time = x[x.len() - 1];
        let windows = y[y.len() - 2];
        let (length, stride) = (self.op.length, self.op.stride);
        let (dropped, zeros) = match self.op.pad {
            PatchPad::DropFirst => (time - (length + stride * (windows.max(1) - 1)), 0),
            PatchPad::RepeatLast(_) => (0, 0),
            PatchPad::ZeroFirst => (0, time.next_multiple_of(stride) - time),
        };
        let count: usize = y.iter().product();
        let words = vec![
            b.value(self.op.x),
            b.value(self.y),
            word(count),
            word(time),
            word(windows),
            word(length),
            word(stride),
            word(dropped),
            word(zeros),
        ];
        let grid = b.grid(self.y, count, ELEMENTS, 1);
        b.dispatch(&kernel::PATCH, &[], words, (0, grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broadcast_axis_has_no_stride() {
        let Axes(walked) = broadcast(&[3, 5, 17], &[1, 17]).expect("it has few axes");
        assert_eq!(walked, [0, 0, 0, 0, 0, 1]);
        let Axes(walked) = broadcast(&[3, 5, 17], &[3, 5, 1]).expect("it has few axes");
        assert_eq!(walked, [0, 0, 0, 5, 1, 0]);
        let error = aligned_at_the_end(&[2; 7], 1).expect_err("it has seven");
        assert!(error.to_string().contains("7 axes"), "{error}");
    }
}
