//! `norm`: layer, RMS, batch (eval) and group normalisation.
//!
//! Not the scaling of series (`normalize`).

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{self, NormKind};
use neural_forecast_runtime::plan::ValueId;

use super::indexing::{BYTES, Divisor, ITEMS_MAX, blocks, check};
use super::rows::Rows;
use super::{Build, Loaded, Packer};
use crate::launch::{Arguments, Launch};

const MODULE: &str = "norm";

/// Threads of a block of a batch norm.
const THREADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct NormArguments {
    x: u64,
    y: u64,
    weight: u64,
    bias: u64,
    groups: Divisor,
    rows: u32,
    width: u32,
    lanes: u32,
    kind: u32,
    eps: f32,
    weight_offset: f32,
}

// SAFETY: mirrors `NormArguments`; 4 × 8 and 10 × 4 bytes, no padding.
unsafe impl Arguments for NormArguments {}

#[repr(C)]
#[derive(Clone, Copy)]
struct BatchNormArguments {
    x: u64,
    y: u64,
    trained: u64,
    items: u32,
    width: u32,
    vectors: Divisor,
}

// SAFETY: mirrors `BatchNormArguments`; 3 × 8 and 6 × 4 bytes, no padding.
unsafe impl Arguments for BatchNormArguments {}

/// A norm with its weights on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    kind: Kind,
    weight: u64,
    bias: u64,
    weight_offset: f32,
    eps: f32,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Layer {
        groups: usize,
    },
    Rms,
    /// Mean, scale and shift of each feature.
    Batch {
        trained: u64,
    },
}

impl Norm {
    pub(crate) fn load(op: &ops::Norm, packer: &mut Packer<'_>) -> Result<Norm, DeviceError> {
        let kind = match op.kind {
            NormKind::Layer => Kind::Layer { groups: 1 },
            NormKind::Group(groups) => Kind::Layer { groups },
            NormKind::Rms => Kind::Rms,
            NormKind::Batch { .. } => Kind::Batch { trained: trained(op, packer)? },
        };
        let (weight, bias) = match kind {
            Kind::Batch { .. } => (0, 0),
            _ => (packer.optional(op.weight)?, packer.optional(op.bias)?),
        };
        Ok(Norm { kind, weight, bias, weight_offset: op.weight_offset, eps: op.eps })
    }

    /// Appends the launches that normalise `rows` rows of `width` elements, dense in `x` and `y`,
    /// which may be the same. `counter` is the op's name, for the counters.
    pub(crate) fn launch(
        &self,
        build: &mut Build<'_>,
        counter: &str,
        (rows, width): (usize, usize),
        x: u64,
        y: u64,
    ) -> Result<(), DeviceError> {
        let counter = format!("{counter}-any-f32");
        let groups = match self.kind {
            Kind::Layer { groups } => groups,
            Kind::Rms => 1,
            Kind::Batch { trained } => {
                return batch(build, &counter, (rows, width), trained, x, y);
            }
        };
        let of_group = Rows::new("norm", rows * groups, width / groups)?;
        let width = width / groups;
        for part in of_group.parts(groups) {
            let at = (part.first * width) as u64 * BYTES;
            let arguments = NormArguments {
                x: x + at,
                y: y + at,
                weight: self.weight,
                bias: self.bias,
                groups: Divisor::new(groups),
                rows: part.rows as u32,
                width: width as u32,
                lanes: of_group.lanes(),
                kind: u32::from(matches!(self.kind, Kind::Rms)),
                eps: self.eps,
                weight_offset: self.weight_offset,
            };
            build.launch(part.launch(MODULE, "norm", &counter, arguments));
        }
        Ok(())
    }
}

/// Mean, scale and shift of each feature: `(x − mean) · scale + shift`.
fn trained(op: &ops::Norm, packer: &mut Packer<'_>) -> Result<u64, DeviceError> {
    let NormKind::Batch { mean, variance } = op.kind else { return Ok(0) };
    let weights = [Some(mean), Some(variance), op.weight, op.bias];
    let layout = format!("batch norm with eps {} and offset {}", op.eps, op.weight_offset);
    packer.packed(layout, &weights, |packer| {
        let means = packer.read(mean)?;
        let variances = packer.read(variance)?;
        let weights = op.weight.map(|id| packer.read(id)).transpose()?;
        let shifts = op.bias.map(|id| packer.read(id)).transpose()?;
        let scale = |d: usize| {
            let weight =
                weights.as_ref().map_or(1.0, |w| f64::from(w[d]) + f64::from(op.weight_offset));
            (weight / (f64::from(variances[d]) + f64::from(op.eps)).sqrt()) as f32
        };
        let features = means.len();
        let mut packed = means;
        packed.extend((0..features).map(scale));
        packed.extend(shifts.unwrap_or_else(|| vec![0.0; features]));
        Ok(packed.iter().flat_map(|x| x.to_le_bytes()).collect())
    })
}

/// Appends the launches of a batch norm.
fn batch(
    build: &mut Build<'_>,
    counter: &str,
    (rows, width): (usize, usize),
    trained: u64,
    x: u64,
    y: u64,
) -> Result<(), DeviceError> {
    if rows * width == 0 {
        return Ok(());
    }
    check("features of a norm", width)?;
    let v = if width.is_multiple_of(4) { 4 } else { 1 };
    let vectors = width / v;
    let most = ITEMS_MAX / vectors;
    for first in (0..rows).step_by(most) {
        let items = most.min(rows - first) * vectors;
        let at = (first * width) as u64 * BYTES;
        let arguments = BatchNormArguments {
            x: x + at,
            y: y + at,
            trained,
            items: items as u32,
            width: width as u32,
            vectors: Divisor::new(vectors),
        };
        let grid = blocks(items, THREADS, if v == 4 { 2 } else { 4 });
        let block = [THREADS as u32, 1, 1];
        let function = format!("batch_norm_v{v}");
        build.launch(Launch::new(MODULE, function, counter, grid, block, arguments));
    }
    Ok(())
}

/// `norm`.
#[derive(Debug)]
pub(super) struct LoadedNorm {
    pub(super) x: ValueId,
    pub(super) y: ValueId,
    pub(super) norm: Norm,
}

impl Loaded for LoadedNorm {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.x);
        let width = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().product::<usize>() / width.max(1);
        let (x, y) = (build.value(self.x), build.value(self.y));
        self.norm.launch(build, "norm", (rows, width), x, y)
    }
}
