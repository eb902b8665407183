//! The norms of an encoder stack as launches of `ptx/encoder.cu`: rows normalised, copied or
//! converted, with a residual added.
//!
//! Those that products make up for are `gemm_normed`'s.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{NormKind, NormWeights};

use super::encoder_stack::{COUNTER, refuse};
use super::gemm::{Element, Matrix};
use super::{Build, Packer};
use crate::launch::{Arguments, Launch};

/// A norm's weights on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadedNorm {
    kind: u32,
    weight: u64,
    bias: u64,
    mean: u64,
    variance: u64,
    offset: f32,
    eps: f32,
}

/// Copies and converts.
pub(super) const NO_NORM: LoadedNorm =
    LoadedNorm { kind: 0, weight: 0, bias: 0, mean: 0, variance: 0, offset: 0.0, eps: 0.0 };

impl LoadedNorm {
    pub(super) fn load(norm: &NormWeights, packer: &mut Packer<'_>) -> Result<Self, DeviceError> {
        let (kind, mean, variance) = match norm.kind {
            NormKind::Layer => (1, 0, 0),
            NormKind::Rms => (2, 0, 0),
            NormKind::Batch { mean, variance } => (3, packer.plain(mean)?, packer.plain(variance)?),
            NormKind::Group(_) => return Err(refuse("group norms".to_owned())),
        };
        Ok(LoadedNorm {
            kind,
            weight: packer.optional(norm.weight)?,
            bias: packer.optional(norm.bias)?,
            mean,
            variance,
            offset: norm.weight_offset,
            eps: norm.eps,
        })
    }
}

/// Rows of f32: row `i` of batch row `b` begins `b · outer + i · inner` floats on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) address: u64,
    pub(super) batch: usize,
    pub(super) each: usize,
    pub(super) outer: usize,
    pub(super) inner: usize,
}

impl Rows {
    pub(super) fn dense(address: u64, batch: usize, each: usize, width: usize) -> Rows {
        Rows { address, batch, each, outer: each * width, inner: width }
    }

    pub(super) fn count(&self) -> usize {
        self.batch * self.each
    }

    /// The last rows of each batch row.
    pub(super) fn last(self, n: usize) -> Rows {
        let skipped = (self.each - n) * self.inner;
        Rows { address: self.address + 4 * skipped as u64, each: n, ..self }
    }

    /// As a matrix, if all rows are equally far apart.
    pub(super) fn matrix(&self) -> Option<Matrix> {
        let stride = match (self.batch, self.each) {
            (0 | 1, _) => self.inner,
            (_, 0 | 1) => self.outer,
            _ if self.outer == self.each * self.inner => self.inner,
            _ => return None,
        };
        Some(Matrix { address: self.address, element: Element::F32, stride })
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormArguments {
    x: u64,
    residual: u64,
    weight: u64,
    bias: u64,
    mean: u64,
    variance: u64,
    y: u64,
    h: u64,
    x_outer: u64,
    x_inner: u64,
    residual_outer: u64,
    residual_inner: u64,
    rows: u32,
    per: u32,
    width: u32,
    h_stride: u32,
    kind: u32,
    element: u32,
    offset: f32,
    eps: f32,
}

// SAFETY: `#[repr(C)]`; 12 fields of 8 bytes, then 8 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/encoder.cu`, in its order.
unsafe impl Arguments for NormArguments {}

/// Appends the launch of one norm of rows of `width` numbers.
pub(super) fn launch_norm(
    build: &mut Build<'_>,
    norm: &LoadedNorm,
    rows: Rows,
    width: usize,
    (residual, y): (Option<Rows>, Option<u64>),
    h: Option<Matrix>,
) -> Result<(), DeviceError> {
    if rows.count() == 0 {
        return Ok(());
    }
    let count = |what: &str, n: usize| u32::try_from(n).map_err(|_| refuse(format!("{n} {what}")));
    let wide = |r: Option<Rows>, of: fn(Rows) -> usize| r.map_or(0, |r| of(r) as u64);
    let arguments = NormArguments {
        x: rows.address,
        residual: residual.map_or(0, |r| r.address),
        weight: norm.weight,
        bias: norm.bias,
        mean: norm.mean,
        variance: norm.variance,
        y: y.unwrap_or(0),
        h: h.map_or(0, |h| h.address),
        x_outer: rows.outer as u64,
        x_inner: rows.inner as u64,
        residual_outer: wide(residual, |r| r.outer),
        residual_inner: wide(residual, |r| r.inner),
        rows: count("rows", rows.count())?,
        per: count("positions", rows.each)?,
        width: count("columns", width)?,
        h_stride: count("columns", h.map_or(0, |h| h.stride))?,
        kind: norm.kind,
        element: match h.map(|h| h.element) {
            Some(Element::F16) => 1,
            Some(Element::Bf16) => 2,
            _ => 0,
        },
        offset: norm.offset,
        eps: norm.eps,
    };
    const WARPS: usize = 4;
    let aligned = |r: Rows| r.address.is_multiple_of(16) && (r.outer | r.inner).is_multiple_of(4);
    let statistics = matches!(norm.kind, 1 | 2);
    // A warp holds 128 numbers in each of so many groups.
    let held = [2, 4, 6, 8].into_iter().find(|held| width <= held * 128);
    let held = held.filter(|_| {
        let sides = aligned(rows) && residual.is_none_or(aligned);
        statistics && width.is_multiple_of(4) && sides
    });
    let function = match (held, h.map(|h| h.element)) {
        (None, _) => "encoder_norm_any".to_owned(),
        (Some(held), Some(Element::F16)) => format!("encoder_norm_h{held}_f16"),
        (Some(held), Some(Element::Bf16)) => format!("encoder_norm_h{held}_bf16"),
        (Some(held), _) => format!("encoder_norm_h{held}_f32"),
    };
    let grid = [count("rows", rows.count().div_ceil(WARPS))?, 1, 1];
    let block = [32 * WARPS as u32, 1, 1];
    let counter = format!("{COUNTER}-norm-f32");
    build.launch(Launch::new("encoder", function, counter, grid, block, arguments).programmatic());
    Ok(())
}
