//! Norms without kernels of their own: Hopper's products make up for them.
//!
//! `norm(x) · Wᵀ + b = r · (x · (W·γ)ᵀ) − r · μ · Σ(W·γ) + (W · β + b)`: products read the residual
//! stream as it is, in 16 bits, and scale their sums by what statistics of its rows say, which the
//! product that made the stream has left. Rounding is relative to the stream's numbers, not to
//! their distance from the mean, and what 16 bits cannot hold is infinite, as in a network that is
//! all in 16 bits. The latency class's way for norms ahead of a sublayer; [`Normed::load`] says of
//! which.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::ops::{Activation, NormKind, NormWeights};
use neural_forecast_runtime::plan::WeightId;

use super::gemm::{Element, Gemm, Matrix, Weights, bytes_of, encode, rows_of, weight_stride};
use super::gemm_hopper::{self, Side, Statistics};
use super::{Build, Packer};
use crate::launch::{Arguments, Launch};

/// Most groups of columns of a row: `4 · QUAD_GROUPS` of `ptx/gemm_hopper.cuh`.
const GROUPS_MAX: usize = 32;

/// Smallest products whose tiles are worth it, as `gemm_hopper` has it.
const TERMS_MIN: usize = 256 * 256;

/// Weights of a product whose inputs are normalised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normed {
    /// Rows scaled by the norm's weights.
    w: Weights,
    /// `[2, n]`: biases with what the norm's shifts come to, sums of `w`'s rows.
    biases: u64,
    activation: Activation,
    rms: bool,
    eps: f32,
}

/// The residual stream as such products read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described {
    /// In 16 bits.
    pub(crate) h: Matrix,
    pub(crate) statistics: Statistics,
}

impl Described {
    /// A stream of so many columns, copied to `h`, with statistics at `address`.
    pub(crate) fn of(columns: usize, h: Matrix, address: u64) -> Option<Described> {
        let of_group = gemm_hopper::stream_columns(columns)?;
        let (groups, columns) = (columns / of_group, of_group);
        let statistics = Statistics { address, groups, columns };
        (groups <= GROUPS_MAX).then_some(Described { h, statistics })
    }

    /// Bytes of the statistics of a row of so many columns, at most.
    pub(crate) const fn row_bytes() -> usize {
        GROUPS_MAX * 8
    }
}

impl Normed {
    /// Packs the weights `[n, k]` of products of the same inputs under one another, if the kernels
    /// take them with that norm.
    pub(crate) fn load(
        packer: &mut Packer<'_>,
        parts: &[(WeightId, Option<WeightId>)],
        activation: Activation,
        norm: &NormWeights,
    ) -> Result<Option<Normed>, DeviceError> {
        let precision = packer.precision();
        let sizes: Vec<_> = parts.iter().map(|part| rows_of(packer, part.0)).collect();
        let n = sizes.iter().map(|size| size.0).sum();
        let k = sizes.first().map_or(0, |size| size.1);
        let rms = match norm.kind {
            NormKind::Layer => false,
            NormKind::Rms => true,
            NormKind::Batch { .. } | NormKind::Group(_) => return Ok(None),
        };
        let taken = gemm_hopper::norms(n, activation, precision, packer.gpu())
            && n * k >= TERMS_MIN
            && k.is_multiple_of(8)
            && sizes.iter().all(|size| size.1 == k)
            && gemm_hopper::stream_columns(k).is_some_and(|columns| k / columns <= GROUPS_MAX);
        if !taken {
            return Ok(None);
        }
        let offset = norm.weight_offset;
        let mut ids: Vec<_> = parts.iter().map(|part| Some(part.0)).collect();
        ids.extend([norm.weight, norm.bias]);
        let stride = weight_stride(k, precision);
        let layout = format!("rows scaled by a norm with offset {offset}");
        let scaled = |packer: &Packer<'_>| -> Result<Vec<u8>, DeviceError> {
            let scales = norm.weight.map(|id| packer.read(id)).transpose()?;
            let mut all = Vec::with_capacity(n * k);
            for part in parts {
                all.extend(packer.read(part.0)?);
            }
            for row in all.chunks_exact_mut(k) {
                for (x, scale) in row.iter_mut().zip(scales.iter().flatten()) {
                    *x *= scale + offset;
                }
            }
            Ok(encode(&all, k, stride, precision))
        };
        let address = packer.packed(layout, &ids, |packer| scaled(packer))?;
        ids.extend(parts.iter().map(|part| part.1));
        let layout = format!("biases behind a norm with offset {offset}");
        let biases = packer.packed(layout, &ids, |packer| {
            let shifts = norm.bias.map(|id| packer.read(id)).transpose()?;
            let mut biases = Vec::with_capacity(2 * n);
            for &(weight, bias) in parts {
                let bias = bias.map(|id| packer.read(id)).transpose()?;
                for (i, row) in packer.read(weight)?.chunks_exact(k).enumerate() {
                    let terms = row.iter().zip(shifts.iter().flatten());
                    let shift: f64 = terms.map(|(&w, &b)| f64::from(w) * f64::from(b)).sum();
                    let own = bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
                    biases.push((own + shift) as f32);
                }
            }
            let rows = scaled(packer)?;
            biases.extend(rows.chunks_exact(2 * stride).map(|row| sum_of(row, precision)));
            Ok(bytes_of(&biases))
        })?;
        let w = Weights { address, precision, n, k, stride, scales: 0, split: 0 };
        Ok(Some(Normed { w, biases, activation, rms, eps: norm.eps }))
    }

    /// Appends the product of `m` rows: `y = activation(norm(x) · Wᵀ + b)`.
    pub(crate) fn launch(
        &self,
        m: usize,
        from: &Described,
        y: Matrix,
        build: &mut Build<'_>,
        counter: &str,
    ) -> Result<(), DeviceError> {
        let Normed { w, biases, activation, rms, eps } = *self;
        let gemm = Gemm { m, x: from.h, w, bias: biases, activation, residual: None, y };
        let side = Side::Normed { statistics: from.statistics, rms, eps };
        gemm_hopper::launch_with(&gemm, &side, build, counter)
    }
}

/// The sum of 16-bit numbers as products read them.
fn sum_of(row: &[u8], precision: Precision) -> f32 {
    let number = |pair: &[u8]| {
        let bits = u16::from_le_bytes([pair[0], pair[1]]);
        match precision {
            Precision::Bf16 => half::bf16::from_bits(bits).to_f64(),
            _ => half::f16::from_bits(bits).to_f64(),
        }
    };
    row.chunks_exact(2).map(number).sum::<f64>() as f32
}

/// Appends a product that makes the residual stream, and what describes it: in one launch where its
/// tiles are the fastest, else apart. Both give the same bits.
pub(crate) fn launch_stream(
    gemm: &Gemm,
    to: &Described,
    build: &mut Build<'_>,
    counter: &str,
) -> Result<(), DeviceError> {
    let Described { h, statistics } = *to;
    if gemm_hopper::streams(gemm.m, (gemm.w.n, gemm.w.k), statistics.columns, build.gpu()) {
        return gemm_hopper::launch_with(gemm, &Side::Stream { statistics, h }, build, counter);
    }
    gemm_hopper::launch(gemm, build, counter)?;
    describe(gemm.m, gemm.y, to, build, counter);
    Ok(())
}

/// Appends the launch that copies `m` rows of f32 to 16 bits and describes them.
pub(crate) fn describe(m: usize, x: Matrix, to: &Described, build: &mut Build<'_>, counter: &str) {
    const THREADS: usize = 256;
    let Described { h, statistics } = *to;
    let name = if h.element == Element::Bf16 { "bf16" } else { "f16" };
    let arguments = StatisticsArguments {
        x: x.address,
        h: h.address,
        statistics: statistics.address,
        rows: m as u32,
        x_stride: x.stride as u32,
        h_stride: h.stride as u32,
        groups: statistics.groups as u32,
    };
    let blocks = (m * statistics.groups * 4).div_ceil(THREADS);
    let launch = Launch::new(
        "encoder",
        format!("encoder_statistics{}_{name}", statistics.columns),
        format!("{counter}-statistics-f32"),
        [blocks as u32, 1, 1],
        [THREADS as u32, 1, 1],
        arguments,
    );
    build.launch(launch.programmatic());
}

/// `StatisticsArguments` of `ptx/encoder.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct StatisticsArguments {
    x: u64,
    h: u64,
    statistics: u64,
    rows: u32,
    x_stride: u32,
    h_stride: u32,
    groups: u32,
}

// SAFETY: `#[repr(C)]`; three fields of 8 bytes, four of 4, so nothing is padded; the fields are
// those of the struct in `ptx/encoder.cu`, in its order.
unsafe impl Arguments for StatisticsArguments {}
