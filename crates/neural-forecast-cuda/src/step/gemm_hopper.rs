//! Products of 16-bit and f32 weights on Hopper's warpgroup tensor cores.
//!
//! `ptx/gemm_hopper.cuh` in launches: which products it serves, in which tiles, with which tensor
//! maps. Tf32 is f32 that the copies round on their way; f32 comes split in two. Each result is one
//! sum over all of K in order, so its bits do not depend on the tile, and the tile may depend on
//! `m`. What is not served, `gemm` launches.

use neural_forecast_runtime::device::{KernelClass, Precision};
use neural_forecast_runtime::ops::Activation;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::Build;
use super::gemm::{Element, Gemm, Matrix, Weights, round_tf32};
use super::gemm_shapes::{
    LARGE, NORMED, PAIR_F32, SLIM_48, SLIM_144, SMALL, SMALL_F32, STREAM_48, STREAM_64, Shape, WIDE,
};
use crate::driver::{Panels, TensorMap};
use crate::gpu::Gpu;
use crate::launch::{Arguments, Launch};

/// The family of activations that are a floor: what slim shapes have.
const LINEAR: &str = "linear";

/// Bytes of a row of a stage and of a panel.
pub(super) const ROW_BYTES: usize = 128;

/// How the kernels of a precision multiply.
#[derive(Clone, Copy, Debug)]
struct Format {
    /// Of `x` and `w` in memory.
    element: Element,
    /// The kernels' fat binary.
    module: &'static str,
    /// Whether f32 becomes tf32 on its way to the tensor cores.
    rounded: bool,
    /// Whether weights come as two numbers of tf32 each ([`Weights::split`]).
    split: bool,
    shapes: &'static [Shape],
}

impl Format {
    fn of(precision: Precision) -> Option<Format> {
        let half = Format {
            element: Element::F16,
            module: "gemm_hopper",
            rounded: false,
            split: false,
            shapes: &[LARGE, WIDE, SMALL, SLIM_48, SLIM_144],
        };
        let wide = Format {
            element: Element::F32,
            module: "gemm_tf32_hopper",
            shapes: &[LARGE, WIDE, SMALL],
            ..half
        };
        match precision {
            Precision::F16 => Some(half),
            Precision::Bf16 => Some(Format { element: Element::Bf16, ..half }),
            Precision::Tf32 => Some(Format { rounded: true, ..wide }),
            Precision::F32 => Some(Format {
                module: "gemm_f32_hopper",
                split: true,
                shapes: &[PAIR_F32, SMALL_F32],
                ..wide
            }),
            Precision::Int8 | Precision::Fp8 => None,
        }
    }

    /// Elements of K in a stage.
    fn k_block(&self) -> usize {
        ROW_BYTES / bytes(self.element)
    }
}

/// Rows of X whose products with all of W are made before the next: they stay in level-2 cache
/// while W passes.
const GROUP_ROWS: usize = 2048;

/// Smallest `n` and `k` that whole tiles are worth it for.
const N_MIN: usize = 32;
const K_MIN: usize = 32;

/// Whether [`launch`] computes a product, by everything but `m`.
pub(crate) fn serves(gemm: &Gemm, gpu: &Gpu, class: KernelClass) -> bool {
    let Gemm { x, w, activation, residual, y, .. } = gemm;
    let Some(format) = Format::of(w.precision) else {
        return false;
    };
    let element = format.element;
    // Few columns of few rows, in little time: kernels that split K are ahead.
    let small = class == KernelClass::Latency && w.n * w.k < 256 * 256;
    // 16-bit products narrow f32 rows first, wherever they lie.
    let narrowed = element != Element::F32 && x.element == Element::F32;
    let readable = narrowed || x.element == element && is_aligned(x);
    let writable = |matrix: &Matrix| {
        is_aligned(matrix) && (matrix.element == Element::F32 || matrix.element == element)
    };
    gpu.is_hopper()
        && gpu.shared_bytes_max >= LARGE.shared_bytes()
        && w.n >= N_MIN
        && w.k >= K_MIN
        && !small
        && (!format.split || w.split != 0)
        && coefficients(*activation, w.precision).is_some()
        && readable
        && writable(y)
        && residual.as_ref().is_none_or(writable)
}

/// Means and squared deviations of groups of columns of a matrix's rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statistics {
    /// `[m, groups, 2]` f32.
    pub(crate) address: u64,
    pub(crate) groups: usize,
    pub(crate) columns: usize,
}

/// What a product does beside itself: `Side` of `ptx/gemm_hopper.cuh`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Plain,
    /// `x` is normalised, described by its statistics; `w` and `bias`, behind which are the sums
    /// of `w`'s rows, hold the norm's weights.
    Normed {
        statistics: Statistics,
        rms: bool,
        eps: f32,
    },
    /// `y`, in f32, is written in 16 bits too and described, in groups of a tile's columns.
    Stream {
        statistics: Statistics,
        h: Matrix,
    },
}

impl Side {
    /// The shapes that have it.
    fn shapes(&self, format: &Format) -> &'static [Shape] {
        match self {
            Side::Plain => format.shapes,
            Side::Normed { .. } => &NORMED,
            Side::Stream { statistics, .. } if statistics.columns == STREAM_48.columns => {
                &[STREAM_48]
            }
            Side::Stream { .. } => &[STREAM_64],
        }
    }

    fn arguments(&self) -> SideArguments {
        let of = |statistics: &Statistics| SideArguments {
            statistics: statistics.address,
            groups: statistics.groups as u32,
            group_columns: statistics.columns as u32,
            ..SideArguments::default()
        };
        match self {
            Side::Plain => SideArguments::default(),
            Side::Normed { statistics, rms, eps } => {
                SideArguments { rms: u32::from(*rms), eps: *eps, ..of(statistics) }
            }
            Side::Stream { statistics, h } => {
                SideArguments { h_at: h.address, h_stride: h.stride as u32, ..of(statistics) }
            }
        }
    }
}

/// Whether so wide a product with an activation can make up for a norm of its inputs, in 16 bits.
pub(crate) fn norms(n: usize, activation: Activation, precision: Precision, gpu: &Gpu) -> bool {
    let slim = NORMED.iter().any(|shape| shape.slim && n.is_multiple_of(shape.columns));
    let large = NORMED.iter().all(|shape| shape.shared_bytes() <= gpu.shared_bytes_max);
    let sixteen = matches!(precision, Precision::F16 | Precision::Bf16);
    gpu.is_hopper() && slim && large && sixteen && coefficients(activation, precision).is_some()
}

/// The columns of a tile that describes the residual stream: by them its bits differ.
pub(crate) fn stream_columns(n: usize) -> Option<usize> {
    let by_preference = [STREAM_48.columns, STREAM_64.columns];
    by_preference.into_iter().find(|&columns| n.is_multiple_of(columns))
}

/// Whether tiles that describe the stream are the fastest, so that nobody need describe it later.
pub(crate) fn streams(m: usize, (n, k): (usize, usize), columns: usize, gpu: &Gpu) -> bool {
    let stream = if columns == STREAM_48.columns { STREAM_48 } else { STREAM_64 };
    let k_blocks = k.div_ceil(ROW_BYTES / 2);
    stream.estimate_us(m, n, k_blocks, gpu) <= LARGE.estimate_us(m, n, k_blocks, gpu)
}

/// Appends the launches of a product that [`serves`] takes. `counter` is the op's name.
///
/// # Errors
/// If the driver refuses a tensor map, naming the matrix.
pub(crate) fn launch(gemm: &Gemm, build: &mut Build<'_>, counter: &str) -> Result<(), DeviceError> {
    launch_with(gemm, &Side::Plain, build, counter)
}

/// As [`launch`], with what the product does beside itself.
///
/// # Errors
/// If the driver refuses a tensor map, naming the matrix.
pub(crate) fn launch_with(
    gemm: &Gemm,
    side: &Side,
    build: &mut Build<'_>,
    counter: &str,
) -> Result<(), DeviceError> {
    let Gemm { m, w, bias, activation, residual, y, .. } = *gemm;
    let Some((kind, gate)) = coefficients(activation, w.precision) else {
        return Err(refuse(&format!("the activation {activation:?}")));
    };
    let Some(format) = Format::of(w.precision) else {
        return Err(refuse(&format!("weights of {}", w.precision.name())));
    };
    let gpu = build.gpu();
    let k_blocks = w.k.div_ceil(format.k_block());
    let slim = !matches!(side, Side::Plain) || kind == LINEAR && bias.is_multiple_of(8);
    let shape = Shape::fastest(side.shapes(&format), slim, (m, w.n, k_blocks), gpu);
    let x = narrow(gemm, format, build, counter);
    let maps = Maps { build, m, shape, format };
    let arguments = GemmStep {
        x: maps.of_inputs(&x, w.k)?,
        w: maps.of_weights(&w)?,
        y: maps.of(&y, w.n, shape.group_rows())?,
        residual: match &residual {
            Some(residual) => maps.of(residual, w.n, shape.rows())?,
            None => TensorMap::NONE,
        },
        bias,
        gate,
        n: w.n as u32,
        tiles: Tiles::of(&shape, m, w.n, k_blocks),
        y_f32: u32::from(y.element == Element::F32),
        residual_bits: residual.map_or(0, |residual| 8 * bytes(residual.element) as u32),
        y_at: y.address,
        residual_at: residual.map_or(0, |residual| residual.address),
        m: m as u32,
        y_stride: y.stride as u32,
        residual_stride: residual.map_or(0, |residual| residual.stride as u32),
        side: side.arguments(),
    };
    let name = w.precision.name();
    let kernel = match shape.kinds {
        true => format!("gemm_{}_{kind}_{name}", shape.name),
        false => format!("gemm_{}_{name}", shape.name),
    };
    let counter = format!("{counter}-wgmma-{}", w.precision.name());
    build.launch(shape.launch(format.module, kernel, counter, (m, w.n), gpu, arguments));
    Ok(())
}

/// The format that `x` is copied in where it is f32, if the copy has rows without gaps.
pub(crate) fn rounds(gemm: &Gemm) -> Option<Element> {
    let Gemm { x, w, .. } = gemm;
    let dense = x.stride == w.k && row_stride(w.k) == w.k;
    let element = Format::of(w.precision)?.element;
    (dense && x.element == Element::F32 && element != Element::F32).then_some(element)
}

/// `x` in the weights' format: itself, or a copy in scratch memory that a launch makes.
fn narrow(gemm: &Gemm, format: Format, build: &mut Build<'_>, counter: &str) -> Matrix {
    let Gemm { m, x, w, .. } = *gemm;
    let element = format.element;
    if x.element == element {
        return x;
    }
    let stride = row_stride(w.k);
    let to = build.scratch(m * stride * bytes(element));
    let threads = m * stride / 8;
    let arguments = NarrowRows {
        from: x.address,
        to,
        from_stride: x.stride as u64,
        rows: m as u32,
        columns: w.k as u32,
        to_stride: stride as u32,
        reserved: 0,
    };
    let name = w.precision.name();
    let launch = Launch::new(
        "gemm_hopper",
        format!("narrow_{name}"),
        format!("{counter}-narrow-{name}"),
        [threads.div_ceil(256) as u32, 1, 1],
        [256, 1, 1],
        arguments,
    );
    build.launch(launch.programmatic());
    Matrix { address: to, element, stride }
}

/// Elements from row to row of a 16-bit matrix with rows of 128 bytes, which copies read fastest:
/// others cost up to a third of a product.
pub(crate) fn row_stride(columns: usize) -> usize {
    columns.next_multiple_of(ROW_BYTES / 2)
}

/// Numbers of `w` that lie together in [`split_rows`]: as many of K as a stage has.
const SPLIT: usize = ROW_BYTES / 4;

/// Floats from row to row of weights that [`split_rows`] made.
pub(crate) fn split_stride(k: usize) -> usize {
    2 * k.next_multiple_of(SPLIT)
}

/// Whether products of f32 weights `[n, k]` are made here, and want them split.
pub(crate) fn wants_split(n: usize, k: usize, gpu: &Gpu) -> bool {
    gpu.is_hopper() && n >= N_MIN && k >= K_MIN
}

/// Rows of `k` f32 numbers as pairs of tf32 whose sum they are to 22 bits: of every [`SPLIT`] the
/// first of each pair, then the second.
pub(crate) fn split_rows(rows: &[f32], k: usize) -> Vec<f32> {
    let stride = split_stride(k);
    let mut all = vec![0.0; rows.len() / k.max(1) * stride];
    for (row, to) in rows.chunks_exact(k.max(1)).zip(all.chunks_exact_mut(stride)) {
        for (i, &x) in row.iter().enumerate() {
            let at = i / SPLIT * 2 * SPLIT + i % SPLIT;
            let high = round_tf32(x);
            to[at] = high;
            // What is not finite stays what it is, and has no rest.
            to[at + SPLIT] = if x.is_finite() { round_tf32(x - high) } else { 0.0 };
        }
    }
    all
}

fn bytes(element: Element) -> usize {
    match element {
        Element::F32 => 4,
        Element::F16 | Element::Bf16 => 2,
    }
}

/// Whether a tensor map can describe it.
fn is_aligned(matrix: &Matrix) -> bool {
    matrix.address.is_multiple_of(16) && (matrix.stride * bytes(matrix.element)).is_multiple_of(16)
}

fn refuse(what: &str) -> DeviceError {
    let message = format!("Hopper's products have no kernel for {what}");
    DeviceError::new(DeviceErrorKind::Unsupported, message)
}

/// Makes tensor maps for a launch; none while addresses are not real.
struct Maps<'a, 'b> {
    build: &'a Build<'b>,
    m: usize,
    shape: Shape,
    format: Format,
}

impl Maps<'_, '_> {
    fn of(
        &self,
        matrix: &Matrix,
        columns: usize,
        box_rows: usize,
    ) -> Result<TensorMap, DeviceError> {
        self.panels(matrix, (self.m, columns), box_rows, false)
    }

    fn of_inputs(&self, x: &Matrix, k: usize) -> Result<TensorMap, DeviceError> {
        self.panels(x, (self.m, k), self.shape.rows(), self.format.rounded)
    }

    fn of_weights(&self, w: &Weights) -> Result<TensorMap, DeviceError> {
        let Format { element, rounded, split, .. } = self.format;
        let rows = self.shape.columns / self.shape.cluster;
        if split {
            let stride = split_stride(w.k);
            let matrix = Matrix { address: w.split, element, stride };
            return self.panels(&matrix, (w.n, stride), rows, false);
        }
        let matrix = Matrix { address: w.address, element, stride: w.stride };
        self.panels(&matrix, (w.n, w.k), rows, rounded)
    }

    fn panels(
        &self,
        matrix: &Matrix,
        (rows, columns): (usize, usize),
        box_rows: usize,
        rounded: bool,
    ) -> Result<TensorMap, DeviceError> {
        if self.build.is_sizing() {
            return Ok(TensorMap::NONE);
        }
        TensorMap::of(&Panels {
            address: matrix.address,
            element_bytes: bytes(matrix.element),
            rows,
            columns,
            stride: matrix.stride,
            box_rows,
            rounded,
        })
    }
}

/// The kernels' activation: its family, and the numbers that make it of the family. Families are
/// `max(x, floor)` and `(scale · x + shift) · σ + offset` with
/// `σ = 1 / (1 + 2^−(x · (c0 + c1·x² + c2·x⁴)))`, x² at most 36.
fn coefficients(activation: Activation, precision: Precision) -> Option<(&'static str, Gate)> {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let linear = |floor| Some((LINEAR, Gate { floor, ..Gate::default() }));
    let gated = |polynomial, scale, shift, offset| {
        Some(("gated", Gate { floor: 0.0, polynomial, scale, shift, offset }))
    };
    match activation {
        Activation::Identity => linear(f32::NEG_INFINITY),
        Activation::Relu => linear(0.0),
        // A kernel of its own, to 3e-7.
        Activation::Gelu if precision == Precision::F32 => Some(("gelu", Gate::default())),
        // The polynomial that comes nearest to ln(Φ(x) / Φ(−x)) / x, weighted so that the result
        // is at most 2.6e-5 from x · Φ(x) everywhere: an eighteenth of f16's rounding at 1.
        Activation::Gelu => gated([2.301_121_3, 0.106_775_76, -0.001_014_269_2], 1.0, 0.0, 0.0),
        Activation::GeluTanh => {
            let first = 2.0 * 0.797_884_6 * LOG2_E;
            gated([first, first * 0.044_715, 0.0], 1.0, 0.0, 0.0)
        }
        Activation::Silu => gated([LOG2_E, 0.0, 0.0], 1.0, 0.0, 0.0),
        Activation::Sigmoid => gated([LOG2_E, 0.0, 0.0], 0.0, 1.0, 0.0),
        Activation::Tanh => gated([2.0 * LOG2_E, 0.0, 0.0], 0.0, 2.0, -1.0),
        Activation::Elu | Activation::Softplus | Activation::LeakyRelu(_) | Activation::Selu => {
            None
        }
    }
}

/// Numbers of an activation, as [`coefficients`] explains them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Gate {
    floor: f32,
    polynomial: [f32; 3],
    scale: f32,
    shift: f32,
    offset: f32,
}

/// How many tiles there are, and in which order they are made.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Tiles {
    k_blocks: u32,
    rows: u32,
    columns: u32,
    group: u32,
}

impl Tiles {
    fn of(shape: &Shape, m: usize, n: usize, k_blocks: usize) -> Tiles {
        let (rows, columns) = shape.tiles(m, n);
        Tiles {
            k_blocks: k_blocks as u32,
            rows: rows as u32,
            columns: columns as u32,
            group: (GROUP_ROWS / (shape.rows() * shape.cluster)) as u32,
        }
    }
}

/// `GemmStep` of `ptx/gemm_hopper.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct GemmStep {
    x: TensorMap,
    w: TensorMap,
    y: TensorMap,
    residual: TensorMap,
    bias: u64,
    gate: Gate,
    n: u32,
    tiles: Tiles,
    y_f32: u32,
    residual_bits: u32,
    y_at: u64,
    residual_at: u64,
    m: u32,
    y_stride: u32,
    residual_stride: u32,
    side: SideArguments,
}

/// The last fields of `GemmStep`. Not aligned as a struct of `u64` is: they follow a `u32`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed(4))]
struct SideArguments {
    rms: u32,
    statistics: u64,
    h_at: u64,
    groups: u32,
    group_columns: u32,
    eps: f32,
    h_stride: u32,
}

const _: () = assert!(std::mem::offset_of!(GemmStep, side) + 4 == 608);
const _: () = assert!(size_of::<GemmStep>() == 640);

// SAFETY: `#[repr(C)]`; four maps of 128 bytes, 8 bytes, 14 fields of 4, two of 8, four of 4, two
// of 8, four of 4, in all 640 bytes, so that nothing is padded; the fields are those of the struct
// in `ptx/gemm_hopper.cuh`, in its order.
unsafe impl Arguments for GemmStep {}

/// `NarrowRows` of `ptx/gemm_hopper.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct NarrowRows {
    from: u64,
    to: u64,
    from_stride: u64,
    rows: u32,
    columns: u32,
    to_stride: u32,
    reserved: u32,
}

// SAFETY: `#[repr(C)]`; three fields of 8 bytes, four of 4, so nothing is padded; the fields are
// those of the struct in `ptx/gemm_hopper.cu`, in its order.
unsafe impl Arguments for NarrowRows {}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel computes it, but for the rounding of its power and reciprocal (2 ulp).
    fn gated(gate: &Gate, x: f32) -> f32 {
        let [c0, c1, c2] = gate.polynomial;
        let square = (x * x).min(36.0);
        let exponent = -x * (c2.mul_add(square, c1)).mul_add(square, c0);
        (gate.scale * x + gate.shift) / (1.0 + exponent.exp2()) + gate.offset
    }

    #[test]
    fn smooth_activations_are_near_their_definitions() {
        let of = |activation| coefficients(activation, Precision::F16).unwrap().1;
        // Φ by Simpson's rule from −12.
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (step, mut below) = (1.0 / 512.0, 0.0);
        for i in -6144_i32..6144 {
            let x = f64::from(i) * step;
            let logistic = 1.0 / (1.0 + (-x).exp());
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            for (activation, expected, bound) in [
                (Activation::Gelu, x * below, 2.7e-5),
                (Activation::GeluTanh, 0.5 * x * (1.0 + inner.tanh()), 2e-6),
                (Activation::Silu, x * logistic, 2e-6),
                (Activation::Sigmoid, logistic, 1e-6),
                (Activation::Tanh, x.tanh(), 1e-6),
            ] {
                let found = f64::from(gated(&of(activation), x as f32));
                assert!((found - expected).abs() <= bound, "{activation:?} of {x}: {found}");
            }
            let middle = density(x + step / 2.0);
            below += step / 6.0 * (density(x) + 4.0 * middle + density(x + step));
        }
    }

    #[test]
    fn split_rows_add_up() {
        let k = 33;
        let rows: Vec<f32> = (0..2 * k).map(|i| (i as f32 - 20.0).exp2() / 3.0).collect();
        let split = split_rows(&rows, k);
        assert_eq!(split.len(), 2 * split_stride(k));
        assert_eq!(split_stride(k), 128);
        let mut found = 0.0_f64;
        for (r, row) in rows.chunks(k).enumerate() {
            for (i, &x) in row.iter().enumerate() {
                let at = r * 128 + i / 32 * 64 + i % 32;
                let pair = [split[at], split[at + 32]];
                assert!(pair.iter().all(|part| part.to_bits() & 0x1fff == 0), "{pair:?}");
                let rest = (f64::from(pair[0]) + f64::from(pair[1]) - f64::from(x)).abs();
                assert!(rest <= f64::from(x) * 2.0_f64.powi(-22), "{x}: {pair:?}");
                found += f64::from(pair[0]) + f64::from(pair[1]);
            }
        }
        let all: f64 = split.iter().map(|&x| f64::from(x)).sum();
        assert_eq!(all, found, "what is not of a row is zero");
        let odd = split_rows(&[f32::INFINITY, f32::NEG_INFINITY], 1);
        assert_eq!([odd[0], odd[32], odd[64]], [f32::INFINITY, 0.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn shapes_fit_and_grow_with_the_rows() {
        let gpu = Gpu::typical((9, 0));
        let sides = [NORMED[0], NORMED[1], NORMED[2], STREAM_48, STREAM_64];
        for shape in
            sides.into_iter().chain([LARGE, WIDE, SMALL, SLIM_48, SLIM_144, PAIR_F32, SMALL_F32])
        {
            assert!(shape.shared_bytes() <= 232_448, "{}: {}", shape.name, shape.shared_bytes());
            let whole = shape.slim || shape.columns.is_multiple_of(64 * shape.cluster);
            assert!(whole, "{}", shape.name);
        }
        let shapes = [LARGE, WIDE, SMALL, SLIM_48, SLIM_144];
        let of =
            |slim, m, n, k: usize| Shape::fastest(&shapes, slim, (m, n, k.div_ceil(64)), &gpu).name;
        assert_eq!(of(true, 512, 768, 768), "slim48");
        assert_eq!(of(true, 512, 2304, 768), "slim144");
        assert_eq!(of(true, 512, 768, 3072), "small");
        assert_eq!(of(false, 1, 768, 768), "small");
        assert_eq!(of(false, 512, 3072, 768), "wide");
        assert_eq!(of(true, 512, 800, 768), "small");
        assert_eq!(of(true, 2048, 4000, 1000), "large");
        assert_eq!(of(true, 65_536, 768, 768), "large");
    }

    #[test]
    fn products_are_taken_whatever_their_rows() {
        let gpu = Gpu::typical((9, 0));
        let matrix = |stride| Matrix { address: 256, element: Element::F32, stride };
        let gemm = |m, n: usize, k: usize, precision| Gemm {
            m,
            x: matrix(k),
            w: Weights { address: 256, precision, n, k, stride: k, scales: 0, split: 0 },
            bias: 0,
            activation: Activation::Gelu,
            residual: None,
            y: matrix(n),
        };
        for m in [1, 7, 100_000] {
            for class in [KernelClass::Latency, KernelClass::Throughput] {
                let taken = |gemm: &Gemm| serves(gemm, &gpu, class);
                assert!(taken(&gemm(m, 768, 768, Precision::F16)));
                assert!(taken(&gemm(m, 768, 768, Precision::Bf16)));
                assert!(taken(&gemm(m, 768, 768, Precision::Tf32)));
                let f32 = gemm(m, 768, 768, Precision::F32);
                assert!(!taken(&f32), "not split");
                assert!(taken(&Gemm { w: Weights { split: 256, ..f32.w }, ..f32 }));
                assert!(!taken(&gemm(m, 768, 770, Precision::Tf32)), "rows of 3080 bytes");
                assert!(!taken(&gemm(m, 10, 768, Precision::F16)), "rows of 40 bytes");
                assert!(!taken(&Gemm {
                    activation: Activation::Selu,
                    ..gemm(m, 768, 768, Precision::F16)
                }));
            }
        }
        assert!(!serves(
            &gemm(9, 768, 768, Precision::F16),
            &Gpu::typical((8, 0)),
            KernelClass::Throughput
        ));
    }
}
