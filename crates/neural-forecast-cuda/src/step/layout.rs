//! `concat`, `slice`, `gather`, `embedding`, `transpose`, `expand`, `patch`: data movement.
//!
//! No arithmetic. `reshape` is not here: it launches nothing.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{
    self, Concat, Embedding, Expand, From, Gather, Operand, PatchPad, Slice, Transpose,
};
use neural_forecast_runtime::plan::ValueId;

use super::indexing::{
    Axes, Axis, BYTES, Divisor, ITEMS_MAX, blocks, check, joined, parts, strides,
};
use super::{Build, Loaded, Packer};
use crate::launch::{Arguments, Launch};

const MODULE: &str = "layout";

/// Threads of a block.
const THREADS: usize = 256;

/// Most parts that a launch joins.
const PARTS_MAX: usize = 16;

/// Elements of a tile and the longest of its sides: `TILE`, `TILE_SIDE_MAX`.
const TILE: usize = 2048;
const TILE_SIDE_MAX: usize = 1024;

/// Positions of a tile along the innermost axis of the source: one line of the cache.
const TILE_LINE: usize = 32;

/// Axes up to this long are not cut.
const TILE_SHORT: usize = 64;

/// Smaller dense matrices are transposed several a block; other small turns are copied element by
/// element, which lie in a few lines of the cache.
const TURN_MIN: usize = 1024;

/// A launch of one of this family's kernels, on items of one or four elements.
fn launch<A: Arguments>(
    function: &str,
    counter: &str,
    items: usize,
    v: usize,
    arguments: A,
) -> Launch {
    let grid = blocks(items, THREADS, if v == 4 { 2 } else { 4 });
    let function = format!("{function}_v{v}");
    Launch::new(MODULE, function, counter, grid, [THREADS as u32, 1, 1], arguments)
}

// --- concat, slice -------------------------------------------------------------------------------

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Part {
    from: u64,
    stride: u64,
    start: u32,
    zero: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct JoinArguments {
    y: u64,
    stride: u64,
    width: Divisor,
    items: u32,
    parts: u32,
    part: [Part; PARTS_MAX],
}

// SAFETY: mirrors `JoinArguments`; 2 × 8 and 6 × 4 bytes, then parts of 24 bytes without padding.
unsafe impl Arguments for JoinArguments {}

/// Columns of rows in device memory.
#[derive(Clone, Copy, Debug)]
struct Columns {
    address: u64,
    /// Elements from one row to the next.
    stride: usize,
    width: usize,
}

/// Puts columns side by side into the rows of `y`.
fn join(build: &mut Build<'_>, counter: &str, rows: usize, sources: &[Columns], y: u64) {
    let stride: usize = sources.iter().map(|source| source.width).sum();
    let aligned = |source: &Columns| {
        source.address.is_multiple_of(4 * BYTES)
            && source.stride.is_multiple_of(4)
            && source.width.is_multiple_of(4)
    };
    let v = if sources.iter().all(aligned) { 4 } else { 1 };
    // No part is wider than a launch.
    let pieces: Vec<Columns> = sources
        .iter()
        .flat_map(|source| {
            (0..source.width).step_by(ITEMS_MAX / PARTS_MAX).map(|first| Columns {
                address: source.address + first as u64 * BYTES,
                width: (ITEMS_MAX / PARTS_MAX).min(source.width - first),
                ..*source
            })
        })
        .collect();
    let mut start = 0;
    for pieces in pieces.chunks(PARTS_MAX) {
        let width: usize = pieces.iter().map(|piece| piece.width).sum();
        let most = (ITEMS_MAX / width).max(1);
        for first in (0..rows).step_by(most) {
            let mut part = [Part::default(); PARTS_MAX];
            let mut column = 0;
            for (part, piece) in part.iter_mut().zip(pieces) {
                *part = Part {
                    from: piece.address + (first * piece.stride) as u64 * BYTES,
                    stride: (piece.stride / v) as u64,
                    start: (column / v) as u32,
                    zero: 0,
                };
                column += piece.width;
            }
            let items = most.min(rows - first) * (width / v);
            let arguments = JoinArguments {
                y: y + (first * stride + start) as u64 * BYTES,
                stride: (stride / v) as u64,
                width: Divisor::new(width / v),
                items: items as u32,
                parts: pieces.len() as u32,
                part,
            };
            build.launch(launch("join", counter, items, v, arguments));
        }
        start += width;
    }
}

/// `concat`.
#[derive(Debug)]
pub(super) struct LoadedConcat {
    pub(super) op: Concat,
    pub(super) y: ValueId,
}

impl Loaded for LoadedConcat {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let rows: usize = build.shape(self.y)[..self.op.axis].iter().product();
        let source = |&part: &ValueId| {
            let width = build.shape(part)[self.op.axis..].iter().product();
            Columns { address: build.value(part), stride: width, width }
        };
        let sources: Vec<Columns> = self.op.parts.iter().map(source).collect();
        let y = build.value(self.y);
        join(build, "concat-any-f32", rows, &sources, y);
        Ok(())
    }
}

/// `slice`.
#[derive(Debug)]
pub(super) struct LoadedSlice {
    pub(super) op: Slice,
    pub(super) y: ValueId,
}

impl Loaded for LoadedSlice {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let (from, to) = (build.shape(self.op.x), build.shape(self.y));
        let axis = self.op.axis;
        let first = match self.op.from {
            From::Start(start) => start,
            From::End => from[axis] - to[axis],
        };
        let inner: usize = from[axis + 1..].iter().product();
        let rows: usize = from[..axis].iter().product();
        let source = Columns {
            address: build.value(self.op.x) + (first * inner) as u64 * BYTES,
            stride: from[axis] * inner,
            width: to[axis] * inner,
        };
        let y = build.value(self.y);
        join(build, "slice-any-f32", rows, &[source], y);
        Ok(())
    }
}

// --- gather, embedding ---------------------------------------------------------------------------

#[repr(C)]
#[derive(Clone, Copy)]
struct GatherArguments {
    x: u64,
    indices: u64,
    y: u64,
    items: u32,
    n: u32,
    inner: Divisor,
    m: Divisor,
}

// SAFETY: mirrors `GatherArguments`; 3 × 8 and 10 × 4 bytes, no padding.
unsafe impl Arguments for GatherArguments {}

/// Rows `[outer, n, inner]` of `x` by `m` indices, into `[outer, m, inner]`.
#[derive(Clone, Copy, Debug)]
struct Rows {
    x: u64,
    outer: usize,
    n: usize,
    inner: usize,
    indices: u64,
    m: usize,
}

fn gather(build: &mut Build<'_>, counter: &str, rows: Rows, y: u64) -> Result<(), DeviceError> {
    let Rows { x, outer, n, inner, indices, m } = rows;
    if outer * m * inner == 0 {
        return Ok(());
    }
    check("elements of a gathered row", inner)?;
    check("rows to gather from", n)?;
    let v = if inner.is_multiple_of(4) { 4 } else { 1 };
    let each = (ITEMS_MAX / inner).max(1);
    // As many outer rows as fit, or parts of the indices of one.
    let (outers, indices_max) = if m <= each { (each / m, m) } else { (1, each) };
    for o in (0..outer).step_by(outers) {
        for i in (0..m).step_by(indices_max) {
            let (outers, m_here) = (outers.min(outer - o), indices_max.min(m - i));
            let items = outers * m_here * inner / v;
            let arguments = GatherArguments {
                x: x + (o * n * inner) as u64 * BYTES,
                indices: indices + i as u64 * BYTES,
                y: y + ((o * m + i) * inner) as u64 * BYTES,
                items: items as u32,
                n: n as u32,
                inner: Divisor::new(inner / v),
                m: Divisor::new(m_here),
            };
            build.launch(launch("gather", counter, items, v, arguments));
        }
    }
    Ok(())
}

/// `gather`.
#[derive(Debug)]
pub(super) struct LoadedGather {
    pub(super) op: Gather,
    pub(super) y: ValueId,
}

impl Loaded for LoadedGather {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.op.x);
        let axis = self.op.axis;
        let rows = Rows {
            x: build.value(self.op.x),
            outer: shape[..axis].iter().product(),
            n: shape[axis],
            inner: shape[axis + 1..].iter().product(),
            indices: build.value(self.op.indices),
            m: build.shape(self.op.indices).iter().product(),
        };
        let y = build.value(self.y);
        gather(build, "gather-any-f32", rows, y)
    }
}

/// `embedding`.
#[derive(Debug)]
pub(super) struct LoadedEmbedding {
    indices: ValueId,
    y: ValueId,
    table: u64,
    rows: usize,
    width: usize,
}

impl LoadedEmbedding {
    pub(super) fn load(
        op: &Embedding,
        y: ValueId,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let (indices, shape) = (op.indices, packer.shape(op.table));
        let (rows, width) = (shape[0], shape[1]);
        Ok(LoadedEmbedding { indices, y, table: packer.plain(op.table)?, rows, width })
    }
}

impl Loaded for LoadedEmbedding {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let rows = Rows {
            x: self.table,
            outer: 1,
            n: self.rows,
            inner: self.width,
            indices: build.value(self.indices),
            m: build.shape(self.indices).iter().product(),
        };
        let y = build.value(self.y);
        gather(build, "embedding-any-f32", rows, y)
    }
}

// --- transpose, expand ---------------------------------------------------------------------------

#[repr(C)]
#[derive(Clone, Copy)]
struct CopyArguments {
    x: u64,
    y: u64,
    items: u32,
    zero: u32,
    from: Axes,
}

// SAFETY: mirrors `CopyArguments`; 2 × 8 and 2 × 4 bytes before `Axes`, which has no padding.
unsafe impl Arguments for CopyArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct TurnArguments {
    x: u64,
    y: u64,
    from_z: u64,
    to_a: u64,
    size_a: u32,
    size_z: u32,
    tile_a: Divisor,
    tile_z: Divisor,
    tiles_a: Divisor,
    tiles_z: Divisor,
    from: Axes,
    to: Axes,
}

// SAFETY: mirrors `TurnArguments`; 4 × 8 and 18 × 4 bytes, then two `Axes`, which have no padding
// and begin at a multiple of 8.
unsafe impl Arguments for TurnArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct TurnSmallArguments {
    x: u64,
    y: u64,
    elements: u64,
    chunk: u32,
    zero: u32,
    a: Divisor,
    z: Divisor,
}

// SAFETY: mirrors `TurnSmallArguments`; 3 × 8 and 10 × 4 bytes, no padding.
unsafe impl Arguments for TurnSmallArguments {}

/// Copies along axes (joined, the outermost first) into a dense result.
fn copy(
    build: &mut Build<'_>,
    counter: &str,
    mut axes: Vec<Axis>,
    x: u64,
    y: u64,
) -> Result<(), DeviceError> {
    if axes.iter().any(|axis| axis.size == 0) {
        return Ok(());
    }
    if let Some((innermost, outer)) = axes.split_last() {
        let turned = outer.iter().position(|axis| axis.from == 1 && innermost.from > 1);
        let matrix = |a: usize| outer[a].size * innermost.size;
        if let Some(a) = turned.filter(|&a| matrix(a) >= TURN_MIN) {
            return turn(build, counter, &axes, a, x, y);
        }
        if let Some((a, others)) = outer.split_last()
            && (a.from, a.to, innermost.from) == (1, innermost.size, a.size)
            && others.iter().all(|axis| axis.from == axis.to)
            && others.len() < 2
        {
            let matrices = others.iter().map(|axis| axis.size).product();
            return turn_small(build, counter, (matrices, a.size, innermost.size), x, y);
        }
    }
    let mut v = 1;
    if let Some((innermost, outer)) = axes.split_last_mut()
        && innermost.from == 1
        && innermost.size.is_multiple_of(4)
        && outer.iter().all(|axis| axis.from.is_multiple_of(4))
    {
        v = 4;
        innermost.size /= 4;
        for axis in outer {
            (axis.from, axis.to) = (axis.from / 4, axis.to / 4);
        }
    }
    parts(&axes, &mut |axes, from, to| {
        let items: usize = axes.iter().map(|axis| axis.size).product();
        let arguments = CopyArguments {
            x: x + (from * v) as u64 * BYTES,
            y: y + (to * v) as u64 * BYTES,
            items: items as u32,
            zero: 0,
            from: Axes::new(axes, |axis| axis.from)?,
        };
        build.launch(launch("copy", counter, items, v, arguments));
        Ok(())
    })
}

/// The sides of a tile: a short axis whole, else lines of the cache along the source's innermost
/// axis, and as much of the other as fits. Tiles of an axis are about equally long.
fn tile(size_a: usize, size_z: usize) -> (usize, usize) {
    let even = |size: usize, most: usize| {
        let tiles = size.div_ceil(most);
        size.div_ceil(tiles).next_multiple_of(8).min(most).min(size)
    };
    let rest = |side: usize| match TILE / side {
        rest if rest > TILE_LINE => rest.min(TILE_SIDE_MAX) / 8 * 8,
        rest => rest,
    };
    if size_z < size_a && size_z < TILE_SHORT {
        return (even(size_a, rest(size_z)), size_z);
    }
    let tile_a = if size_a <= TILE_SHORT { size_a } else { even(size_a, TILE_LINE) };
    (tile_a, even(size_z, rest(tile_a)))
}

/// Copies where axis `a`, innermost in the source, is not the innermost of the result.
fn turn(
    build: &mut Build<'_>,
    counter: &str,
    axes: &[Axis],
    a: usize,
    x: u64,
    y: u64,
) -> Result<(), DeviceError> {
    let (axis_a, axis_z) = (axes[a], axes[axes.len() - 1]);
    check("positions of a transposed axis", axis_a.size.max(axis_z.size))?;
    let (tile_a, tile_z) = tile(axis_a.size, axis_z.size);
    let (tiles_a, tiles_z) = (axis_a.size.div_ceil(tile_a), axis_z.size.div_ceil(tile_z));
    // A launch has no more elements than items, so that blocks can be numbered whatever the tiles.
    let whole = Axis { size: tiles_a * tiles_z, from: 0, to: 0 };
    let others = axes[..axes.len() - 1].iter().enumerate().filter(|(i, _)| *i != a);
    let others: Vec<Axis> = others.map(|(_, axis)| *axis).chain([whole]).collect();
    parts(&others, &mut |axes, from, to| {
        let Some((last, others)) = axes.split_last() else { return Ok(()) };
        check("tiles of a transposed matrix", whole.size)?;
        debug_assert_eq!(last.size, whole.size, "tiles are not cut");
        let grid: usize = axes.iter().map(|axis| axis.size).product();
        let arguments = TurnArguments {
            x: x + from as u64 * BYTES,
            y: y + to as u64 * BYTES,
            from_z: axis_z.from as u64,
            to_a: axis_a.to as u64,
            size_a: axis_a.size as u32,
            size_z: axis_z.size as u32,
            tile_a: Divisor::new(tile_a),
            tile_z: Divisor::new(tile_z),
            tiles_a: Divisor::new(tiles_a),
            tiles_z: Divisor::new(tiles_z),
            from: Axes::new(others, |axis| axis.from)?,
            to: Axes::new(others, |axis| axis.to)?,
        };
        let block = [THREADS as u32, 1, 1];
        let rounds = (tile_a * tile_z).div_ceil(THREADS).next_power_of_two().clamp(2, 8);
        let function = format!("turn_{rounds}");
        build.launch(Launch::new(MODULE, function, counter, [grid as u32, 1, 1], block, arguments));
        Ok(())
    })
}

/// Transposes dense matrices `[z, a]` of less than [`TURN_MIN`] elements.
fn turn_small(
    build: &mut Build<'_>,
    counter: &str,
    (matrices, a, z): (usize, usize, usize),
    x: u64,
    y: u64,
) -> Result<(), DeviceError> {
    let of_block = TILE / (a * z);
    let blocks = matrices.div_ceil(of_block);
    check("blocks of matrices", blocks)?;
    let arguments = TurnSmallArguments {
        x,
        y,
        elements: (matrices * a * z) as u64,
        chunk: (of_block * a * z) as u32,
        zero: 0,
        a: Divisor::new(a),
        z: Divisor::new(z),
    };
    let (grid, block) = ([blocks as u32, 1, 1], [THREADS as u32, 1, 1]);
    build.launch(Launch::new(MODULE, "turn_small", counter, grid, block, arguments));
    Ok(())
}

/// `transpose`.
#[derive(Debug)]
pub(super) struct LoadedTranspose {
    pub(super) op: Transpose,
    pub(super) y: ValueId,
}

impl Loaded for LoadedTranspose {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let (from, to) = (strides(build.shape(self.op.x)), build.shape(self.y));
        let turned = self.op.permutation.iter().map(|&axis| from[axis]);
        let axes = to.iter().zip(turned).zip(strides(to));
        let axes = joined(axes.map(|((&size, from), to)| Axis { size, from, to }));
        let (x, y) = (build.value(self.op.x), build.value(self.y));
        copy(build, "transpose-any-f32", axes, x, y)
    }
}

/// `expand`.
#[derive(Debug)]
pub(super) struct LoadedExpand {
    op: Expand,
    y: ValueId,
    /// Address of a weight that is repeated.
    weight: u64,
}

impl LoadedExpand {
    pub(super) fn load(
        op: &Expand,
        y: ValueId,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let weight = match op.x {
            Operand::Value(_) => 0,
            Operand::Weight(id) => packer.plain(id)?,
        };
        Ok(LoadedExpand { op: op.clone(), y, weight })
    }
}

impl Loaded for LoadedExpand {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let to = build.shape(self.y);
        let mut source = to.to_vec();
        source.remove(self.op.axis);
        let mut from = strides(&source);
        from.insert(self.op.axis, 0);
        let axes = to.iter().zip(from).zip(strides(to));
        let axes = joined(axes.map(|((&size, from), to)| Axis { size, from, to }));
        let x = match self.op.x {
            Operand::Value(x) => build.value(x),
            Operand::Weight(_) => self.weight,
        };
        let y = build.value(self.y);
        copy(build, "expand-any-f32", axes, x, y)
    }
}

// --- patch ---------------------------------------------------------------------------------------

#[repr(C)]
#[derive(Clone, Copy)]
struct PatchArguments {
    x: u64,
    y: u64,
    first: i64,
    time: u64,
    stride: u64,
    items: u32,
    zero: u32,
    length: Divisor,
    windows: Divisor,
}

// SAFETY: mirrors `PatchArguments`; 5 × 8 and 10 × 4 bytes, no padding.
unsafe impl Arguments for PatchArguments {}

/// `patch`.
#[derive(Debug)]
pub(super) struct LoadedPatch {
    pub(super) op: ops::Patch,
    pub(super) y: ValueId,
}

impl Loaded for LoadedPatch {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let time = build.shape(self.op.x).last().copied().unwrap_or(0);
        let &[ref outer @ .., windows, length] = build.shape(self.y) else { return Ok(()) };
        let rows: usize = outer.iter().product();
        let row = windows * length;
        if rows * row * time == 0 {
            return Ok(());
        }
        check("elements of a row's patches", row)?;
        let stride = self.op.stride;
        let first = match self.op.pad {
            PatchPad::DropFirst => time as i64 - (length + stride * (windows - 1)) as i64,
            PatchPad::RepeatLast(_) => 0,
            PatchPad::ZeroFirst => time as i64 - time.next_multiple_of(stride) as i64,
        };
        let most = ITEMS_MAX / row;
        let (x, y) = (build.value(self.op.x), build.value(self.y));
        for start in (0..rows).step_by(most) {
            let items = most.min(rows - start) * row;
            let arguments = PatchArguments {
                x: x + (start * time) as u64 * BYTES,
                y: y + (start * row) as u64 * BYTES,
                first,
                time: time as u64,
                stride: stride as u64,
                items: items as u32,
                zero: 0,
                length: Divisor::new(length),
                windows: Divisor::new(windows),
            };
            let (grid, block) = (blocks(items, THREADS, 4), [THREADS as u32, 1, 1]);
            build.launch(Launch::new(MODULE, "patch", "patch-any-f32", grid, block, arguments));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_their_memory() {
        for a in 2..200 {
            for z in [2, 3, 7, 31, 32, 33, 63, 64, 65, 100, 513, 5000] {
                for (a, z) in [(a, z), (z, a)] {
                    let (tile_a, tile_z) = tile(a, z);
                    assert!(tile_a * tile_z <= TILE, "{a} by {z}");
                    assert!((tile_a | 1) * tile_z <= TILE + TILE_SIDE_MAX, "{a} by {z}");
                    assert!(tile_a.min(tile_z) > 0 && tile_a <= a && tile_z <= z);
                    assert!(tile_a.max(tile_z) <= TILE_SIDE_MAX);
                }
            }
        }
    }
}
