//! Products of activations with weights, with everything that can be fused to them.
//!
//! `Y[m, n] = residual + activation(X[m, k] · W[n, k]ᵀ + bias)`. Knows matrices, not ops: `linear`,
//! `rnn_stack`, `attention` and `encoder_stack` come here. Chooses among the kernels of
//! `ptx/gemm.cu` and, on Hopper, `ptx/gemm_hopper.cu`: by `n`, `k`, class and precision alone where
//! the choice shows in the bits, so that a row has the same bits whatever `m` is.

use neural_forecast_runtime::device::{KernelClass, Precision};
use neural_forecast_runtime::ops::Activation;
use neural_forecast_runtime::plan::WeightId;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::{Build, Packer, gemm_hopper};
use crate::gpu::Gpu;
use crate::launch::{Arguments, Launch};

/// Format of a matrix's elements in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

/// A row-major matrix in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) address: u64,
    pub(crate) element: Element,
    /// Elements from one row to the next, at least the columns. Multiples of 16 bytes, from an
    /// address that is one, are read fastest.
    pub(crate) stride: usize,
}

/// Weights `[n, k]` as products read them: rows padded with zeros to a multiple of 64 bytes.
/// F32 and Tf32 keep f32, F16 and Bf16 two bytes, Int8 and Fp8 (e4m3) one with a scale per row.
/// The elements of 8-bit rows are permuted in groups of 16 (`position_8bit`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    pub(crate) address: u64,
    pub(crate) precision: Precision,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// `[n]` f32 factors of the rows for Int8 and Fp8; else 0.
    pub(crate) scales: u64,
    /// The rows once more as `gemm_hopper` reads f32; 0 where it does not.
    pub(crate) split: u64,
}

impl Weights {
    /// `n` rows from `first` on.
    pub(crate) fn rows(&self, first: usize, n: usize) -> Weights {
        let after = |address: u64, row_bytes: usize| match address {
            0 => 0,
            address => address + (first * row_bytes) as u64,
        };
        Weights {
            address: after(self.address, self.stride * self.precision.weight_bytes()),
            scales: after(self.scales, size_of::<f32>()),
            split: after(self.split, gemm_hopper::split_stride(self.k) * size_of::<f32>()),
            n,
            ..*self
        }
    }
}

/// A product to launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    pub(crate) m: usize,
    /// `[m, k]`. F16 and Bf16 only where the weights' products are in that format (Int8 and Fp8
    /// multiply in F16).
    pub(crate) x: Matrix,
    pub(crate) w: Weights,
    /// `[n]` f32, or 0.
    pub(crate) bias: u64,
    pub(crate) activation: Activation,
    /// `[m, n]`, added last; may be `y` itself.
    pub(crate) residual: Option<Matrix>,
    /// `[m, n]`.
    pub(crate) y: Matrix,
}

impl Gemm {
    /// Appends the launches. `counter` is the op's name, for the counters.
    pub(crate) fn launch(&self, build: &mut Build<'_>, counter: &str) -> Result<(), DeviceError> {
        Product::new(*self).launch(build, counter)
    }
}

/// The second product of a gated unit, whose weights alternate with the first's
/// ([`pack_gated`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatePart {
    /// `[n]` f32, or 0.
    pub(crate) bias: u64,
    pub(crate) activation: Activation,
}

/// A [`Gemm`] with what few products need: a gate, independent products side by side, or
/// contraction along the axis before the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// With a gate, `w.n` counts the rows of both parts, padded; [`Product::outputs`] the results.
    pub(crate) gemm: Gemm,
    /// Results of a row of one product.
    pub(crate) outputs: usize,
    pub(crate) gate: Option<GatePart>,
    /// So many products: the rows of `x` and `y` lie side by side, `w` rows after one another.
    pub(crate) batches: usize,
    /// `x` is `[m / channels, k, channels]` and `y` and the residual `[m / channels, outputs,
    /// channels]`, contiguous.
    pub(crate) channels: Option<usize>,
    /// A few rows of each series, whatever the batch: the latency class multiplies them in the
    /// tiles that begin and end soonest, also where others serve more rows.
    pub(crate) few: bool,
}

impl Product {
    pub(crate) fn new(gemm: Gemm) -> Self {
        Product { gemm, outputs: gemm.w.n, gate: None, batches: 1, channels: None, few: false }
    }

    /// Appends the launches.
    pub(crate) fn launch(&self, build: &mut Build<'_>, counter: &str) -> Result<(), DeviceError> {
        if self.gemm.m == 0 || self.outputs == 0 || self.batches == 0 {
            return Ok(());
        }
        self.check()?;
        let few = self.few && build.class() == KernelClass::Latency;
        if self.is_plain() && !few && gemm_hopper::serves(&self.gemm, build.gpu(), build.class()) {
            return gemm_hopper::launch(&self.gemm, build, counter);
        }
        if let Some(steps) = self.few_steps(build.gpu()).filter(|_| few) {
            return self.launch_few(steps, build, counter);
        }
        if let Some(channels) = self.channels {
            return self.transposed(channels, build, counter)?.launch_tiles(build, counter);
        }
        self.launch_tiles(build, counter)
    }

    fn is_plain(&self) -> bool {
        self.gate.is_none() && self.batches == 1 && self.channels.is_none()
    }

    /// The format that f32 rows of `x` are rounded to in a pass of their own, if they are and rows
    /// without gaps serve as well.
    pub(crate) fn rounds(&self, build: &Build<'_>) -> Option<Element> {
        let served = self.is_plain() && gemm_hopper::serves(&self.gemm, build.gpu(), build.class());
        served.then(|| gemm_hopper::rounds(&self.gemm)).flatten()
    }

    /// The steps of K of the kernel of `ptx/gemm_few.cu` that takes the product, whatever `m` is.
    fn few_steps(&self, gpu: &Gpu) -> Option<usize> {
        const WARPS: usize = 8;
        const STEP: usize = 32;
        let Gemm { x, w, residual, y, .. } = self.gemm;
        let sixteen = matches!(w.precision, Precision::F16 | Precision::Bf16);
        let fours = |of: Matrix| of.stride.is_multiple_of(4) && of.address.is_multiple_of(16);
        let taken = self.is_plain()
            && gpu.is_hopper()
            && sixteen
            && x.element == product_element(w.precision)
            && x.address.is_multiple_of(16)
            && (x.stride | w.k | w.n).is_multiple_of(8)
            && fours(y)
            && residual.is_none_or(fours);
        let least = w.k.div_ceil(WARPS * STEP);
        [3, 6, 12].into_iter().find(|&steps| taken && steps >= least)
    }

    /// Appends the launch of a product of a few rows.
    fn launch_few(
        &self,
        steps: usize,
        build: &mut Build<'_>,
        counter: &str,
    ) -> Result<(), DeviceError> {
        let Gemm { m, w, .. } = self.gemm;
        let grid = [(w.n / 8) as u32, m.div_ceil(16) as u32, 1];
        if grid[1] > GRID_Y_MAX {
            return Err(refuse(format!("{m} rows")));
        }
        let name = w.precision.name();
        let launch = Launch::new(
            "gemm_few",
            format!("gemm_few{steps}_{name}"),
            format!("{counter}-mma-{name}"),
            grid,
            [256, 1, 1],
            self.arguments(),
        );
        build.launch(launch.programmatic());
        Ok(())
    }

    /// Appends the launch of the product itself, whose rows of `x` are rows in memory.
    fn launch_tiles(&self, build: &mut Build<'_>, counter: &str) -> Result<(), DeviceError> {
        let arguments = self.arguments();
        let tile = self.tile(build.class(), build.gpu());
        let (rows, columns) = (tile.rows as u32, tile.columns as u32);
        let grid =
            [arguments.w_rows.div_ceil(columns), arguments.m.div_ceil(rows), self.batches as u32];
        if grid[1] > GRID_Y_MAX {
            return Err(refuse(format!("{} rows", self.gemm.m)));
        }
        let function = format!("{}_{}", self.kernel(), tile.name);
        let counter = format!("{counter}-mma-{}", self.gemm.w.precision.name());
        let block = [tile.threads as u32, 1, 1];
        let launch = Launch::new("gemm", function, counter, grid, block, arguments);
        build.launch(launch.shared(self.shared_bytes(&tile) as u32).programmatic());
        Ok(())
    }

    /// The same product with the contracted axis of `x` last, in scratch memory, in the format of
    /// the products.
    fn transposed(
        &self,
        channels: usize,
        build: &mut Build<'_>,
        counter: &str,
    ) -> Result<Product, DeviceError> {
        const TILE: usize = 32;
        let Gemm { m, x, w, .. } = self.gemm;
        if x.element != Element::F32 {
            return Err(refuse(format!("{:?} inputs over time", x.element)));
        }
        let element = product_element(w.precision);
        let stride = w.k.next_multiple_of(8);
        let bytes = if element == Element::F32 { 4 } else { 2 };
        let to = build.scratch(m * stride * bytes);
        let outer = m / channels;
        let blocks = outer * w.k.div_ceil(TILE) * channels.div_ceil(TILE);
        if blocks > i32::MAX as usize {
            return Err(refuse(format!("{m} rows over time")));
        }
        let arguments = TransposeArguments {
            from: x.address,
            to,
            outer: outer as u32,
            k: w.k as u32,
            channels: channels as u32,
            to_row: stride as u32,
            element: element_code(element),
            reserved: 0,
        };
        let counter = format!("{counter}-transpose-{}", w.precision.name());
        let grid = [blocks as u32, 1, 1];
        let launch = Launch::new("gemm", "gemm_transpose", counter, grid, [256, 1, 1], arguments);
        if blocks > 0 {
            build.launch(launch.programmatic());
        }
        let x = Matrix { address: to, element, stride };
        Ok(Product { gemm: Gemm { x, ..self.gemm }, ..*self })
    }

    /// The kernel without its tile: how weights are stored, and what is converted to multiply.
    fn kernel(&self) -> &'static str {
        let converted = self.gemm.x.element == Element::F32;
        match (self.gemm.w.precision, converted) {
            (Precision::F32, _) => "gemm_f32",
            (Precision::Tf32, _) => "gemm_tf32",
            (Precision::F16, false) => "gemm_f16",
            (Precision::F16, true) => "gemm_f16_from_f32",
            (Precision::Bf16, false) => "gemm_bf16",
            (Precision::Bf16, true) => "gemm_bf16_from_f32",
            (Precision::Int8, false) => "gemm_int8",
            (Precision::Int8, true) => "gemm_int8_from_f32",
            (Precision::Fp8, false) => "gemm_fp8",
            (Precision::Fp8, true) => "gemm_fp8_from_f32",
        }
    }

    /// The tile to compute by. All tiles of a class give the same bits.
    fn tile(&self, class: KernelClass, gpu: &Gpu) -> Tile {
        let tiles: &[Tile] = match (class, self.gemm.w.precision) {
            (KernelClass::Latency, _) => &LATENCY_TILES,
            (KernelClass::Throughput, Precision::F32) => &THROUGHPUT_TILES_F32,
            (KernelClass::Throughput, _) => &THROUGHPUT_TILES,
        };
        let Gemm { m, w, .. } = self.gemm;
        let blocks = |tile: &Tile| {
            let columns = (w.n / self.batches).div_ceil(tile.columns);
            m.div_ceil(tile.rows) * columns * self.batches
        };
        let suits = |tile: &&Tile| {
            self.shared_bytes(tile) <= gpu.shared_bytes_max as usize
                && m >= tile.m_min
                && w.k >= tile.k_min
                && blocks(tile) >= tile.rounds_min * gpu.multiprocessors as usize
        };
        let smallest = tiles[tiles.len() - 1];
        tiles.iter().find(suits).copied().unwrap_or(smallest)
    }

    /// Shared memory of a block: its stages, or its sums in the end (`ptx/gemm_mma.cuh`).
    fn shared_bytes(&self, tile: &Tile) -> usize {
        const X_ROW_BYTES: usize = 128;
        let x_bytes = if self.gemm.x.element == Element::F32 { 4 } else { 2 };
        let w_row_bytes = X_ROW_BYTES / x_bytes * self.gemm.w.precision.weight_bytes();
        let stage = tile.slices * (tile.rows * X_ROW_BYTES + tile.columns * w_row_bytes);
        let sums = tile.slices * tile.rows * (tile.columns + 8) * size_of::<f32>();
        sums.max(stage * tile.stages)
    }

    /// Refuses what no kernel can address or read.
    fn check(&self) -> Result<(), DeviceError> {
        let Gemm { m, x, w, y, residual, .. } = self.gemm;
        let sizes = [m, w.n, w.k, self.batches, w.stride, x.stride, y.stride];
        if sizes.iter().any(|&size| size > i32::MAX as usize) || self.batches > 65_535 {
            return Err(refuse(format!("a product of {sizes:?} (m, n, k, batches, strides)")));
        }
        let of_weights = product_element(w.precision);
        let readable = x.element == Element::F32 || x.element == of_weights;
        if !readable {
            let (found, name) = (x.element, w.precision.name());
            return Err(refuse(format!("{found:?} inputs for {name} weights")));
        }
        let plain = residual.is_none_or(|r| self.channels.is_none() || r.element == y.element);
        if !plain {
            return Err(refuse("a product over time with mixed formats".to_owned()));
        }
        Ok(())
    }

    fn arguments(&self) -> GemmArguments {
        let Gemm { m, x, w, bias, activation, residual, y } = self.gemm;
        let (code, slope) = activation.code();
        let (gate_code, gate_slope) = self.gate.map_or((0, 0.0), |gate| gate.activation.code());
        let wide = |size: usize| size as u64;
        let mut arguments = GemmArguments {
            x: x.address,
            w: w.address,
            scales: w.scales,
            bias,
            gate_bias: self.gate.map_or(0, |gate| gate.bias),
            residual: residual.map_or(0, |r| r.address),
            y: y.address,
            x_row: wide(x.stride),
            y_outer: wide(y.stride),
            y_inner: 0,
            y_n: 1,
            residual_outer: residual.map_or(0, |r| wide(r.stride)),
            m: m as u32,
            n: self.outputs as u32,
            k: w.k as u32,
            inner: 1,
            w_stride: w.stride as u32,
            x_batch: w.k as u32,
            y_batch: self.outputs as u32,
            w_rows: (w.n / self.batches) as u32,
            residual_element: residual.map_or(0, |r| element_code(r.element)),
            y_element: element_code(y.element),
            activation: code,
            gate_activation: gate_code,
            slope,
            gate_slope,
            gated: u32::from(self.gate.is_some()),
            fast: u32::from(!matches!(w.precision, Precision::F32 | Precision::Tf32)),
        };
        if let Some(channels) = self.channels {
            arguments.inner = channels as u32;
            arguments.y_outer = wide(self.outputs * channels);
            arguments.y_inner = 1;
            arguments.y_n = wide(channels);
            arguments.residual_outer = arguments.y_outer;
        }
        arguments
    }
}

/// Most blocks along y.
const GRID_Y_MAX: u32 = 65_535;

/// The part of the product that a block makes, and how (`KERNEL` in `ptx/gemm.cu`).
#[derive(Clone, Copy, Debug)]
struct Tile {
    name: &'static str,
    rows: usize,
    columns: usize,
    /// Parts of k that are summed apart.
    slices: usize,
    stages: usize,
    threads: usize,
    /// Taken from so many rows, so long sums, and so many blocks a multiprocessor.
    m_min: usize,
    k_min: usize,
    rounds_min: usize,
}

impl Tile {
    const fn new(
        name: &'static str,
        [rows, columns, slices, stages, threads]: [usize; 5],
        [m_min, k_min, rounds_min]: [usize; 3],
    ) -> Self {
        Tile { name, rows, columns, slices, stages, threads, m_min, k_min, rounds_min }
    }
}

/// Largest first; the last one takes what is left. From times of all tiles at m 1 to 524288, n 10
/// to 4096 and k 16 to 4096 (H200, 2026-11-21): short sums are all beginnings and ends, which
/// smaller tiles overlap.
const THROUGHPUT_TILES: [Tile; 4] = [
    Tile::new("128x256", [128, 256, 1, 3, 256], [128, 512, 6]),
    Tile::new("128x128", [128, 128, 1, 3, 128], [128, 256, 2]),
    Tile::new("64x64", [64, 64, 1, 4, 128], [65, 0, 0]),
    Tile::new("16x64", [16, 64, 1, 6, 128], [0, 0, 0]),
];

const THROUGHPUT_TILES_F32: [Tile; 3] = [
    Tile::new("128x128", [128, 128, 1, 3, 256], [128, 256, 2]),
    THROUGHPUT_TILES[2],
    THROUGHPUT_TILES[3],
];

const LATENCY_TILES: [Tile; 3] = [
    Tile::new("64x64x4", [64, 64, 4, 3, 512], [33, 0, 0]),
    Tile::new("32x32x4", [32, 32, 4, 3, 512], [33, 0, 0]),
    Tile::new("16x16x4", [16, 16, 4, 4, 128], [0, 0, 0]),
];

/// `TransposeArguments` of `ptx/gemm.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct TransposeArguments {
    from: u64,
    to: u64,
    outer: u32,
    k: u32,
    channels: u32,
    to_row: u32,
    element: u32,
    reserved: u32,
}

// SAFETY: `#[repr(C)]`; 2 fields of 8 bytes, then 6 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/gemm.cu`, in its order.
unsafe impl Arguments for TransposeArguments {}

/// `GemmArguments` of `ptx/gemm.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct GemmArguments {
    x: u64,
    w: u64,
    scales: u64,
    bias: u64,
    gate_bias: u64,
    residual: u64,
    y: u64,
    x_row: u64,
    y_outer: u64,
    y_inner: u64,
    y_n: u64,
    residual_outer: u64,
    m: u32,
    n: u32,
    k: u32,
    inner: u32,
    w_stride: u32,
    x_batch: u32,
    y_batch: u32,
    w_rows: u32,
    residual_element: u32,
    y_element: u32,
    activation: u32,
    gate_activation: u32,
    slope: f32,
    gate_slope: f32,
    gated: u32,
    fast: u32,
}

// SAFETY: `#[repr(C)]`; 12 fields of 8 bytes, then 16 of 4, so nothing is padded; the fields are
// those of the struct in `ptx/gemm.cuh`, in its order.
unsafe impl Arguments for GemmArguments {}

/// In which format the products of weights of a precision read their inputs.
pub(crate) fn product_element(precision: Precision) -> Element {
    match precision {
        Precision::F32 | Precision::Tf32 => Element::F32,
        Precision::F16 | Precision::Int8 | Precision::Fp8 => Element::F16,
        Precision::Bf16 => Element::Bf16,
    }
}

fn element_code(element: Element) -> u32 {
    match element {
        Element::F32 => 0,
        Element::F16 => 1,
        Element::Bf16 => 2,
    }
}

fn refuse(what: String) -> DeviceError {
    DeviceError::new(DeviceErrorKind::Unsupported, format!("products have no kernel for {what}"))
}

/// Packs weights `[n_i, k]` (leading axes count as rows) under one another in the packer's
/// precision, as one matrix with `n = Σ n_i`. Absent ones are left out.
pub(crate) fn pack_weights(
    packer: &mut Packer<'_>,
    weights: &[Option<WeightId>],
) -> Result<Weights, DeviceError> {
    let mut k = None;
    let mut n = 0;
    for &id in weights.iter().flatten() {
        let (rows, columns) = rows_of(packer, id);
        if k.is_some_and(|k| k != columns) {
            let message = format!("weights of {k:?} and {columns} columns in one product");
            return Err(DeviceError::new(DeviceErrorKind::Weights, message));
        }
        k = Some(columns);
        n += rows;
    }
    let k = k.unwrap_or(0);
    let read = |packer: &Packer<'_>| {
        let mut all = Vec::with_capacity(n * k);
        for &id in weights.iter().flatten() {
            all.extend(packer.read(id)?);
        }
        Ok(all)
    };
    let packed = pack(packer, "rows", "row scales", weights, n, k, read)?;
    if packer.precision() != Precision::F32 || !gemm_hopper::wants_split(n, k, packer.gpu()) {
        return Ok(packed);
    }
    let split = packer.packed("split rows", weights, |packer| {
        Ok(bytes_of(&gemm_hopper::split_rows(&read(packer)?, k)))
    })?;
    Ok(Weights { split, ..packed })
}

/// Packs a weight `[n, k]` and its gate's as alternating groups of 8 rows, the last padded with
/// zeros: `n` of the result is twice `n` rounded up to 8. Leading axes are separate products, each
/// padded by itself.
pub(crate) fn pack_gated(
    packer: &mut Packer<'_>,
    value: WeightId,
    gate: WeightId,
) -> Result<Weights, DeviceError> {
    let shape = packer.shape(value);
    let k = shape.last().copied().unwrap_or(1);
    let rows = shape.len().checked_sub(2).map_or(1, |axis| shape[axis]);
    let products = shape.iter().rev().skip(2).product::<usize>();
    let padded = rows.next_multiple_of(GATE_ROWS);
    let both = [Some(value), Some(gate)];
    let n = 2 * padded * products;
    pack(packer, "gated rows", "gated row scales", &both, n, k, |packer| {
        let parts = [packer.read(value)?, packer.read(gate)?];
        let mut all = vec![0.0; n * k];
        for product in 0..products {
            for row in 0..rows {
                for (which, part) in parts.iter().enumerate() {
                    let group = row / GATE_ROWS * 2 + which;
                    let to = 2 * padded * product + group * GATE_ROWS + row % GATE_ROWS;
                    let from = product * rows + row;
                    all[to * k..][..k].copy_from_slice(&part[from * k..][..k]);
                }
            }
        }
        Ok(all)
    })
}

/// The biases of weights packed together, zeros for the absent: `lengths` says how long each is.
/// 0 where all are absent.
pub(crate) fn pack_biases(
    packer: &mut Packer<'_>,
    biases: &[Option<WeightId>],
    lengths: &[usize],
) -> Result<u64, DeviceError> {
    if biases.iter().all(Option::is_none) {
        return Ok(0);
    }
    packer.packed("biases", biases, |packer| {
        let mut all = Vec::new();
        for (&id, &length) in biases.iter().zip(lengths) {
            all.extend(id.map_or_else(|| Ok(vec![0.0; length]), |id| packer.read(id))?);
        }
        Ok(bytes_of(&all))
    })
}

/// The nearest number with 10 bits of mantissa, ties away from zero, as the kernels round.
pub(crate) fn round_tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits((x.to_bits() + 0x1000) & !0x1fff) } else { x }
}

/// Rows of values between rows of gates.
const GATE_ROWS: usize = 8;

/// Bytes that rows are padded to a multiple of.
const ROW_BYTES: usize = 64;

/// Elements from one row of weights to the next.
pub(super) fn weight_stride(k: usize, precision: Precision) -> usize {
    k.max(1).next_multiple_of(ROW_BYTES / precision.weight_bytes())
}

pub(super) fn rows_of(packer: &Packer<'_>, id: WeightId) -> (usize, usize) {
    let shape = packer.shape(id);
    let k = shape.last().copied().unwrap_or(1);
    (shape.iter().rev().skip(1).product(), k)
}

/// Uploads rows that `rows` gives as f32, in the packer's precision.
fn pack(
    packer: &mut Packer<'_>,
    layout: &'static str,
    scale_layout: &'static str,
    weights: &[Option<WeightId>],
    n: usize,
    k: usize,
    rows: impl Fn(&Packer<'_>) -> Result<Vec<f32>, DeviceError>,
) -> Result<Weights, DeviceError> {
    let precision = packer.precision();
    let stride = weight_stride(k, precision);
    let address = packer.packed(layout, weights, |packer| {
        Ok(encode(&rows(packer)?, k.max(1), stride, precision))
    })?;
    let scales = match precision {
        Precision::Int8 | Precision::Fp8 => packer.packed(scale_layout, weights, |packer| {
            let all = rows(packer)?;
            let scale = |row: &[f32]| row_scale(row, precision) * decoded_factor(precision);
            Ok(bytes_of(&all.chunks_exact(k.max(1)).map(scale).collect::<Vec<f32>>()))
        })?,
        _ => 0,
    };
    Ok(Weights { address, precision, n, k, stride, scales, split: 0 })
}

pub(super) fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Rows of `k` as bytes, each padded to `stride` elements.
pub(super) fn encode(rows: &[f32], k: usize, stride: usize, precision: Precision) -> Vec<u8> {
    let bytes = precision.weight_bytes();
    let mut packed = vec![0; rows.len() / k * stride * bytes];
    for (row, to) in rows.chunks_exact(k).zip(packed.chunks_exact_mut(stride * bytes)) {
        let scale = row_scale(row, precision);
        for (i, &x) in row.iter().enumerate() {
            match precision {
                Precision::F32 | Precision::Tf32 => {
                    to[4 * i..][..4].copy_from_slice(&x.to_le_bytes());
                }
                Precision::F16 => {
                    to[2 * i..][..2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
                }
                Precision::Bf16 => {
                    to[2 * i..][..2].copy_from_slice(&half::bf16::from_f32(x).to_le_bytes());
                }
                Precision::Int8 => {
                    let level = (x / scale).round_ties_even().clamp(-127.0, 127.0);
                    to[position_8bit(i)] = (level as i8).cast_unsigned();
                }
                Precision::Fp8 => to[position_8bit(i)] = e4m3(x / scale),
            }
        }
    }
    packed
}

/// Where element `k` of a row of 8-bit weights lies: in groups of 16, position `4t + j` holds
/// `2t + j` for `j < 2` and `2t + 6 + j` above, the four numbers that lane `t` of a quad multiplies
/// in one tensor-core product.
fn position_8bit(k: usize) -> usize {
    (k & !15) + (k & 7) / 2 * 4 + (k & 1) + (k & 8) / 4
}

/// What a row is divided by: its largest magnitude becomes the largest level. 1 for a row of zeros.
fn row_scale(row: &[f32], precision: Precision) -> f32 {
    let levels = if precision == Precision::Int8 { 127.0 } else { E4M3_MAX };
    let largest = row.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let scale = largest / levels;
    if scale > 0.0 { scale } else { 1.0 }
}

/// Kernels read an e4m3 byte as an f16 that is this many times smaller.
fn decoded_factor(precision: Precision) -> f32 {
    if precision == Precision::Fp8 { 256.0 } else { 1.0 }
}

/// The largest e4m3 number.
const E4M3_MAX: f32 = 448.0;

/// The nearest e4m3 number (four exponent bits with bias 7, three of mantissa, no infinity), ties
/// to even, saturated at ±448.
fn e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs().min(E4M3_MAX);
    // The step between neighbours is 2^(exponent − 3), and 2^−9 below the least normal number 2^−6.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let step = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    let steps = (magnitude / step).round_ties_even() as i32;
    // 8 to 16 steps, below 8 for subnormals; 16 carries into the exponent by itself.
    let code = (exponent + 6) * 8 + steps;
    sign | code as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an e4m3 byte means, by definition.
    fn meaning(byte: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let magnitude = match exponent {
            0 => mantissa * 2.0_f32.powi(-9),
            _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
        };
        if byte & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn e4m3_is_the_nearest_number() {
        for byte in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(e4m3(meaning(byte)), byte);
        }
        for i in 0..40_000_u32 {
            let x = (i as f32 - 20_000.0) * 0.0229;
            let found = meaning(e4m3(x));
            let nearest = (0..=0x7e)
                .chain(0x80..=0xfe)
                .map(meaning)
                .min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs()));
            assert_eq!((found - x).abs(), (nearest.unwrap() - x).abs(), "{x}");
        }
        assert_eq!(meaning(e4m3(1e9)), 448.0);
    }

    #[test]
    fn eight_bit_positions_are_a_permutation() {
        let mut seen: Vec<usize> = (0..48).map(position_8bit).collect();
        assert_eq!(&seen[..8], &[0, 1, 4, 5, 8, 9, 12, 13]);
        seen.sort_unstable();
        assert_eq!(seen, (0..48).collect::<Vec<_>>());
    }

    #[test]
    fn rows_are_padded_and_scaled() {
        let rows = [1.0, -2.0, 0.5, 0.0, 0.0, 0.0];
        let packed = encode(&rows, 3, 64, Precision::Int8);
        assert_eq!(packed.len(), 128);
        let found: Vec<i8> = (0..4).map(|k| packed[position_8bit(k)].cast_signed()).collect();
        assert_eq!(found, [64, -127, 32, 0]);
        assert!(packed[64..].iter().all(|&byte| byte == 0));
        assert_eq!(encode(&rows, 3, 32, Precision::F16)[..2], [0x00, 0x3c]);
    }
}
