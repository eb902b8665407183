//! Products with packed weights: `y = epilogue(x·Wᵀ)`.
//!
//! Weights are packed once, when a model is loaded, into panels a few vectors wide in which the
//! terms of `k` follow each other. Few rows read their input in place and stream panels side by
//! side (that is the matrix-vector product); more rows are copied next to each other in blocks that
//! L2 holds. Bits do not depend on the number of rows, see [`crate::tile`].
//!
//! Does not decide who computes what beyond an even split of rows or panels over the team.

use crate::counters::{Precision, Stem, count};
use crate::isa::Isa;
use crate::memory::{Buffer, RowMap};
use crate::simd::{Kernel, Simd};
use crate::team::Worker;
use crate::tile::{self, Args, Half, K_BLOCK, ROW_STRIDE, ROWS_DIRECT, ROWS_MAX, Single};
use crate::vecmath;
use std::ops::Range;

/// Copied rows (times blocks of `k`) that one worker holds: 264 · 3136 bytes stay in L2 beside a
/// panel.
const COPIED_ROWS: usize = 264;
/// Rows of one pass where `k` needs a single block.
const PASS_ROWS: usize = 264;
const WIDTH_MAX: usize = 64;

/// Function that ends a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x · Φ(x)`
    Gelu,
    /// GELU by tanh.
    GeluTanh,
    /// `x · sigmoid(x)`
    Silu,
    /// `1 / (1 + e^−x)`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x` above 0, `alpha · (e^x − 1)` below, all times `scale`.
    Elu {
        /// Factor below 0.
        alpha: f32,
        /// Factor everywhere.
        scale: f32,
    },
    /// `ln(1 + e^x)`
    Softplus,
    /// `x` above 0, `slope · x` below.
    LeakyRelu(f32),
}

impl Activation {
    /// Applies it to a vector.
    #[inline(always)]
    pub fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        match self {
            Activation::Identity => x,
            Activation::Relu => vecmath::relu(s, x),
            Activation::Gelu => vecmath::gelu(s, x),
            Activation::GeluTanh => vecmath::gelu_tanh(s, x),
            Activation::Silu => vecmath::silu(s, x),
            Activation::Sigmoid => vecmath::sigmoid(s, x),
            Activation::Tanh => vecmath::tanh(s, x),
            Activation::Elu { alpha, scale } => {
                let negative = s.mul(s.splat(alpha), vecmath::exp_m1_negative(s, x));
                s.mul(s.splat(scale), s.select(s.less(x, s.splat(0.0)), negative, x))
            }
            Activation::Softplus => s.map(x, vecmath::softplus),
            Activation::LeakyRelu(slope) => {
                s.select(s.less(x, s.splat(0.0)), s.mul(x, s.splat(slope)), x)
            }
        }
    }
}

/// Weights in the order in which the tiles of one tier read them, with their bias.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Outputs.
    n: usize,
    /// Terms.
    k: usize,
    /// Outputs are this many interleaved groups of `n / groups`: a panel holds one vector of each.
    groups: usize,
    vectors: usize,
    lanes: usize,
    precision: Precision,
    panels: usize,
    panel_stride: usize,
    data: Buffer,
    bias: Option<Buffer>,
}

/// Rounds to bf16, ties to even; NaN stays NaN.
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) | 0x40;
    }
    (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
}

impl Packed {
    /// Packs `weights` `[n, k]` for a tier. With `groups` above 1 (at most 4), output `g · n/groups
    /// + j` is group `g` of unit `j`, and one panel holds all groups of a vector of units.
    pub fn new(
        isa: Isa,
        precision: Precision,
        weights: &[f32],
        (n, k): (usize, usize),
        groups: usize,
        bias: Option<&[f32]>,
    ) -> Packed {
        assert_eq!(weights.len(), n * k, "weights of a {n} x {k} product");
        assert!((1..=4).contains(&groups) && n % groups == 0, "{n} outputs in {groups} groups");
        let lanes = isa.lanes();
        let vectors = match groups {
            1 => match n.div_ceil(lanes) {
                few @ 1..=3 => few,
                _ => 2,
            },
            _ => groups,
        };
        let width = vectors * lanes;
        let panels = (n / groups).div_ceil(width / groups);
        let words = match precision {
            Precision::F32 => k,
            Precision::Bf16 => k.div_ceil(2),
        };
        let panel_stride = words * width;
        let mut packed = Packed {
            n,
            k,
            groups,
            vectors,
            lanes,
            precision,
            panels,
            panel_stride,
            data: Buffer::zeroed(panels * panel_stride),
            bias: bias.map(|_| Buffer::zeroed(panels * width)),
        };
        for panel in 0..panels {
            for column in 0..width {
                if let Some(row) = packed.output(panel, column) {
                    packed.pack_row(panel, column, &weights[row * k..(row + 1) * k]);
                    if let (Some(to), Some(from)) = (&mut packed.bias, bias) {
                        to.as_mut_slice()[panel * width + column] = from[row];
                    }
                }
            }
        }
        packed
    }

    /// Packs `terms` `[k, n]`, the transpose of what [`Packed::new`] takes, without rounding: the
    /// columns of a panel lie next to each other already.
    pub fn from_terms(isa: Isa, terms: &[f32], (n, k): (usize, usize)) -> Packed {
        assert_eq!(terms.len(), n * k, "terms of a {n} x {k} product");
        let mut packed = Packed::new(isa, Precision::F32, &[], (n, 0), 1, None);
        let width = packed.width();
        packed.k = k;
        packed.panel_stride = k * width;
        packed.data = Buffer::zeroed(packed.panels * packed.panel_stride);
        for (i, to) in packed.data.as_mut_slice().chunks_exact_mut(width).enumerate() {
            let (panel, term) = (i / k, i % k);
            let first = panel * width;
            let columns = width.min(n - first);
            to[..columns].copy_from_slice(&terms[term * n + first..][..columns]);
        }
        packed
    }

    /// The output that a column of a panel computes; `None` for padding.
    fn output(&self, panel: usize, column: usize) -> Option<usize> {
        if self.groups == 1 {
            let row = panel * self.width() + column;
            return (row < self.n).then_some(row);
        }
        let unit = panel * self.lanes + column % self.lanes;
        let units = self.n / self.groups;
        (unit < units).then(|| column / self.lanes * units + unit)
    }

    fn pack_row(&mut self, panel: usize, column: usize, row: &[f32]) {
        let (width, start) = (self.width(), panel * self.panel_stride + column);
        match self.precision {
            Precision::F32 => {
                for (k, &w) in row.iter().enumerate() {
                    self.data.as_mut_slice()[start + k * width] = w;
                }
            }
            Precision::Bf16 => {
                for (k, pair) in row.chunks(2).enumerate() {
                    let high = pair.get(1).map_or(0, |&w| bf16_bits(w));
                    self.data.as_mut_words()[start + k * width] = bf16_bits(pair[0]) | high << 16;
                }
            }
        }
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.n
    }

    /// Terms.
    pub fn terms(&self) -> usize {
        self.k
    }

    /// Panels.
    pub fn panels(&self) -> usize {
        self.panels
    }

    /// Vectors of a panel.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// Columns of a panel, padding included.
    pub fn width(&self) -> usize {
        self.vectors * self.lanes
    }

    /// Columns of all panels, padding included.
    pub fn padded_outputs(&self) -> usize {
        self.panels * self.width()
    }

    /// How weights are kept.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        4 * (self.data.len() + self.bias.as_ref().map_or(0, Buffer::len))
    }

    /// Panel `p` from term `k` (even where weights are pairs) on.
    pub(crate) fn panel(&self, p: usize, k: usize) -> *const f32 {
        let words = match self.precision {
            Precision::F32 => k,
            Precision::Bf16 => k / 2,
        };
        let offset = p * self.panel_stride + words * self.width();
        debug_assert!(offset <= self.data.len());
        // SAFETY: callers pass a panel and a term of this matrix.
        unsafe { self.data.as_ptr().add(offset) }
    }

    /// Bias of panel `p`.
    pub(crate) fn panel_bias(&self, p: usize) -> Option<*const f32> {
        // SAFETY: callers pass a panel of this matrix.
        self.bias.as_ref().map(|bias| unsafe { bias.as_ptr().add(p * self.width()) })
    }
}

/// What one worker needs to run products: copies of input rows, a widened panel, one tile.
#[derive(Debug)]
pub struct Scratch {
    copied: Buffer,
    widened: Buffer,
    tile: Buffer,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Scratch {
    /// Allocates it; about 0.9 MB.
    pub fn new() -> Self {
        Scratch {
            copied: Buffer::zeroed(COPIED_ROWS * ROW_STRIDE),
            widened: Buffer::zeroed(K_BLOCK * WIDTH_MAX),
            tile: Buffer::zeroed(ROWS_MAX * WIDTH_MAX * 4),
        }
    }
}

/// One product. Pointers rather than slices, because workers write disjoint parts of one output.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Input `[rows, k]`.
    pub x: *const f32,
    /// Where its rows are.
    pub x_map: RowMap,
    /// Number of rows.
    pub rows: usize,
    /// Weights.
    pub weights: &'a Packed,
    /// Output `[rows, n]`; `[rows, n/2]` where gated; all columns of all panels where `padded`.
    pub y: *mut f32,
    /// Where its rows are.
    pub y_map: RowMap,
    /// Whether to write the columns in panel order with their padding.
    pub padded: bool,
    /// Applied to the product and its bias.
    pub activation: Activation,
    /// With weights of two groups: the first, activated, times this function of the second.
    pub gate: Option<Activation>,
    /// Added last; laid out as the output.
    pub residual: Option<(*const f32, RowMap)>,
}

impl<'a> Gemm<'a> {
    /// A plain product of dense rows.
    pub fn new(x: *const f32, rows: usize, weights: &'a Packed, y: *mut f32) -> Self {
        Gemm {
            x,
            x_map: RowMap::dense(weights.k),
            rows,
            weights,
            y,
            y_map: RowMap::dense(weights.n),
            padded: false,
            activation: Activation::Identity,
            gate: None,
            residual: None,
        }
    }

    /// This worker's part of the product, split evenly over the team. No barrier.
    ///
    /// # Safety
    /// `x`, `y` and `residual` reach what their maps say, nobody else writes what this call reads
    /// or reads what it writes, and all workers pass the same product.
    pub unsafe fn run(&self, isa: Isa, worker: Worker<'_>, scratch: &mut Scratch) {
        if worker.index() == 0 {
            count(Stem::Gemm, isa, self.weights.precision);
        }
        let (rows, panels) = self.share(worker);
        // SAFETY: the caller's.
        unsafe { self.run_part(isa, rows, panels, scratch) }
    }

    /// By rows where every worker gets enough of them to fill tiles, else by panels.
    fn share(&self, worker: Worker<'_>) -> (Range<usize>, Range<usize>) {
        let panels = self.weights.panels;
        if self.rows >= worker.workers() * (ROWS_DIRECT + 4) || panels < worker.workers() {
            (worker.share(self.rows), 0..panels)
        } else {
            (0..self.rows, worker.share(panels))
        }
    }

    /// The given rows and panels, by the calling thread alone.
    ///
    /// # Safety
    /// As [`Gemm::run`], and the ranges exist.
    pub unsafe fn run_part(
        &self,
        isa: Isa,
        rows: Range<usize>,
        panels: Range<usize>,
        scratch: &mut Scratch,
    ) {
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        assert_eq!(self.weights.lanes, isa.lanes(), "weights were packed for another tier");
        assert!(self.gate.is_none() || self.weights.groups == 2, "a gate needs two groups");
        let product = Product {
            x: self.x,
            x_map: self.x_map,
            weights: self.weights,
            rows,
            panels,
            backwards: false,
            finish: *self,
        };
        // SAFETY: the caller's.
        unsafe { product.run(isa, scratch) }
    }

    /// Columns of panel `p` that the output has.
    #[inline(always)]
    fn columns<S: Simd>(&self, p: usize) -> usize {
        let w = self.weights;
        if self.gate.is_some() {
            return (w.n / 2 - p * S::LANES).min(S::LANES);
        }
        if self.padded { w.width() } else { (w.n - p * w.width()).min(w.width()) }
    }
}

/// What happens to finished sums, and where unfinished ones may wait.
pub trait Finish: Copy {
    /// Where the sums of a panel of a row may be kept, and how many of its columns: in place where
    /// that is the whole panel. `None` if there is no such place; then all terms are summed in one
    /// go.
    fn place<S: Simd>(&self, p: usize, r: usize) -> Option<(*mut f32, usize)>;

    /// Takes the finished sums of panel `p` of row `r`.
    ///
    /// # Safety
    /// `sums` holds the panel's width; the row and the panel are of the product being run.
    unsafe fn row<S: Simd>(&self, s: S, p: usize, r: usize, sums: *const f32);
}

impl Finish for Gemm<'_> {
    #[inline(always)]
    fn place<S: Simd>(&self, p: usize, r: usize) -> Option<(*mut f32, usize)> {
        if self.gate.is_some() {
            return None;
        }
        // SAFETY: callers pass a row and a panel of this product.
        let at = unsafe { self.y.add(self.y_map.offset(r) + p * self.weights.width()) };
        Some((at, self.columns::<S>(p)))
    }

    /// Bias, activation, gate and residual, from `sums` to the output (maybe the same place).
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, p: usize, r: usize, sums: *const f32) {
        let w = self.weights;
        let bias = w.panel_bias(p);
        let columns = self.columns::<S>(p);
        let start = if self.gate.is_some() { p * S::LANES } else { p * w.width() };
        // SAFETY: `sums` and `bias` hold the panel's width; output and residual its columns.
        unsafe {
            let y = self.y.add(self.y_map.offset(r) + start);
            let residual = self.residual.map(|(at, map)| at.add(map.offset(r) + start));
            let plain = self.activation == Activation::Identity && residual.is_none();
            if plain && bias.is_none() && self.gate.is_none() && y.cast_const() == sums {
                return;
            }
            if columns == w.width() && self.gate.is_none() {
                for v in 0..w.vectors {
                    let at = v * S::LANES;
                    let mut value = self.activation.apply(s, biased(s, sums, bias, at));
                    if let Some(residual) = residual {
                        value = s.add(s.load(residual.add(at)), value);
                    }
                    s.store(y.add(at), value);
                }
                return;
            }
            let vectors = if self.gate.is_some() { 1 } else { w.vectors };
            for v in 0..vectors {
                let at = v * S::LANES;
                if at >= columns {
                    break;
                }
                let mut value = self.activation.apply(s, biased(s, sums, bias, at));
                if let Some(gate) = self.gate {
                    value = s.mul(value, gate.apply(s, biased(s, sums, bias, S::LANES)));
                }
                if let Some(residual) = residual {
                    value = s.add(s.load_first(residual.add(at), columns - at), value);
                }
                s.store_first(y.add(at), value, columns - at);
            }
        }
    }
}

/// Rows times panels, with whatever follows.
#[derive(Clone, Debug)]
pub struct Product<'a, F> {
    /// Input `[rows, k]`.
    pub x: *const f32,
    /// Where its rows are.
    pub x_map: RowMap,
    /// Weights.
    pub weights: &'a Packed,
    /// Rows to compute.
    pub rows: Range<usize>,
    /// Panels to compute.
    pub panels: Range<usize>,
    /// Whether to walk the panels from the last to the first: alternating steps of a recurrence do,
    /// so that what is still in the cache is read first.
    pub backwards: bool,
    /// What follows.
    pub finish: F,
}

impl<F: Finish> Product<'_, F> {
    /// Runs it on the calling thread.
    ///
    /// # Safety
    /// `x` reaches what its map says, rows and panels exist, and `finish` may write what it writes.
    pub unsafe fn run(self, isa: Isa, scratch: &mut Scratch) {
        isa.run(Part { product: self, scratch });
    }
}

struct Part<'a, 's, F> {
    product: Product<'a, F>,
    scratch: &'s mut Scratch,
}

impl<F: Finish> Kernel for Part<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Product::run`'s caller grants the memory of these rows and panels.
        unsafe {
            if self.product.rows.len() <= ROWS_DIRECT {
                self.few_rows(s);
            } else {
                self.many_rows(s);
            }
        }
    }
}

impl<F: Finish> Part<'_, '_, F> {
    /// Rows read in place, several panels at once.
    #[inline(always)]
    unsafe fn few_rows<S: Simd>(self, s: S) {
        let Product { x, x_map, weights: w, rows, panels, backwards, finish } = self.product;
        let m = rows.len();
        let at_once = tile::panels_at_once::<S>(m, w.vectors);
        let groups = panels.len() / at_once;
        let singles = panels.len() % at_once;
        let mut from = [std::ptr::null(); ROWS_DIRECT];
        let mut to = [std::ptr::null_mut(); ROWS_DIRECT];
        let buffer = self.scratch.tile.as_mut_ptr();
        // SAFETY: rows and panels are in range; the tile buffer holds 4 panels of 12 rows.
        unsafe {
            for (i, r) in rows.clone().enumerate() {
                from[i] = x.add(x_map.offset(r));
                to[i] = buffer.add(i * WIDTH_MAX * 4);
            }
            for i in 0..groups + singles {
                let i = if backwards { groups + singles - 1 - i } else { i };
                let (p, count) = if i < groups {
                    (panels.start + i * at_once, at_once)
                } else {
                    (panels.start + groups * at_once + i - groups, 1)
                };
                let args = Args {
                    k: w.k,
                    rows: &from[..m],
                    panel: w.panel(p, 0),
                    step: w.width(),
                    panel_stride: w.panel_stride,
                    out: &to[..m],
                    out_stride: w.width(),
                    accumulate: false,
                };
                match w.precision {
                    Precision::F32 => tile::direct::<S, Single>(s, m, w.vectors, count, &args),
                    Precision::Bf16 => tile::direct::<S, Half>(s, m, w.vectors, count, &args),
                }
                for i in 0..count {
                    for (m, r) in rows.clone().enumerate() {
                        finish.row(s, p + i, r, to[m].add(i * w.width()));
                    }
                }
            }
        }
    }

    /// Rows copied block by block.
    #[inline(always)]
    unsafe fn many_rows<S: Simd>(mut self, s: S) {
        let w = self.product.weights;
        let blocks = w.k.div_ceil(K_BLOCK).max(1);
        let block = w.k.div_ceil(blocks).next_multiple_of(2).max(2);
        let all = self.product.rows.clone();
        let waits = self.product.finish.place::<S>(self.product.panels.start, all.start).is_some();
        let together = if waits { 1 } else { blocks };
        let most = S::ROWS[w.vectors - 1];
        let pass = (COPIED_ROWS / together).clamp(most, PASS_ROWS);
        let passes = all.len().div_ceil(pass);
        for i in 0..passes {
            let rows = all.start + tile::tile_start(all.len(), passes, i)
                ..all.start + tile::tile_start(all.len(), passes, i + 1);
            for c in 0..blocks.div_ceil(together) {
                let terms = (c * together * block).min(w.k)..((c + 1) * together * block).min(w.k);
                // SAFETY: rows and terms are in range, and the copies fit: `pass · together`.
                unsafe {
                    self.copy_rows(rows.clone(), terms.clone(), block);
                    for i in 0..self.product.panels.len() {
                        let Range { start, end } = self.product.panels;
                        let p = if self.product.backwards { end - 1 - i } else { start + i };
                        self.panel_pass(s, p, rows.clone(), terms.clone(), block);
                    }
                }
            }
        }
    }

    /// Copies terms of rows into the scratch: block by block, row by row.
    #[inline(always)]
    unsafe fn copy_rows(&mut self, rows: Range<usize>, terms: Range<usize>, block: usize) {
        let to = self.scratch.copied.as_mut_ptr();
        for (b, start) in terms.clone().step_by(block).enumerate() {
            let n = block.min(terms.end - start);
            for (i, r) in rows.clone().enumerate() {
                // SAFETY: row and terms exist; at most `COPIED_ROWS` rows of blocks are copied.
                unsafe {
                    let from = self.product.x.add(self.product.x_map.offset(r) + start);
                    let to = to.add((b * rows.len() + i) * ROW_STRIDE);
                    std::ptr::copy_nonoverlapping(from, to, n);
                }
            }
        }
    }

    /// All copied rows times one panel.
    #[inline(always)]
    unsafe fn panel_pass<S: Simd>(
        &mut self,
        s: S,
        p: usize,
        rows: Range<usize>,
        terms: Range<usize>,
        block: usize,
    ) {
        let w = self.product.weights;
        let count = tile::tiles(rows.len(), S::ROWS[w.vectors - 1]);
        let single = terms.len() <= block;
        // SAFETY: panel and terms exist; a block of a panel fits the scratch.
        let mut panel = unsafe { self.widen(s, p, terms.start, terms.len().min(block)) };
        for t in 0..count {
            let first = tile::tile_start(rows.len(), count, t);
            let m = tile::tile_start(rows.len(), count, t + 1) - first;
            // Without terms there is one empty block, whose sums are zero.
            for b in 0..terms.len().div_ceil(block).max(1) {
                let start = terms.start + b * block;
                let n = block.min(terms.end - start);
                // SAFETY: as above; the destination is this worker's part of the output.
                unsafe {
                    if !single {
                        panel = self.widen(s, p, start, n);
                    }
                    let x = self.scratch.copied.as_ptr();
                    let x = x.add((b * rows.len() + first) * ROW_STRIDE);
                    let r = rows.start + first;
                    self.tile(s, p, r..r + m, start..start + n, x, panel);
                }
            }
        }
    }

    /// Terms of a panel as floats: in place, or widened into the scratch.
    #[inline(always)]
    unsafe fn widen<S: Simd>(&mut self, s: S, p: usize, start: usize, n: usize) -> *const f32 {
        let w = self.product.weights;
        let from = w.panel(p, start);
        if w.precision == Precision::F32 {
            return from;
        }
        let to = self.scratch.widened.as_mut_ptr();
        let width = w.width();
        for pair in 0..n.div_ceil(2) {
            for v in 0..w.vectors {
                // SAFETY: pair and vector exist; `K_BLOCK` terms (an even number) fit the scratch.
                unsafe {
                    let at = from.add(pair * width + v * S::LANES).cast();
                    let to = to.add(2 * pair * width + v * S::LANES);
                    s.store(to, s.load_low(at));
                    s.store(to.add(width), s.load_high(at));
                }
            }
        }
        to
    }

    /// One tile over one block of terms; the sums of earlier blocks wait where `place` says, or in
    /// the tile buffer.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &mut self,
        s: S,
        p: usize,
        rows: Range<usize>,
        terms: Range<usize>,
        x: *const f32,
        panel: *const f32,
    ) {
        let (w, finish) = (self.product.weights, self.product.finish);
        let (m, carry, last) = (rows.len(), terms.start > 0, terms.end == w.k);
        let buffer = self.scratch.tile.as_mut_ptr();
        let mut out = [std::ptr::null_mut(); ROWS_MAX];
        // SAFETY: rows and columns are this worker's; the buffer holds `ROWS_MAX` rows.
        unsafe {
            for (i, out) in out.iter_mut().enumerate().take(m) {
                *out = buffer.add(i * WIDTH_MAX);
                match finish.place::<S>(p, rows.start + i) {
                    Some((place, columns)) if columns == w.width() => *out = place,
                    Some((place, columns)) if carry => {
                        std::ptr::copy_nonoverlapping(place, *out, columns);
                    }
                    _ => {}
                }
            }
            let args = Args {
                k: terms.len(),
                rows: &[x],
                panel,
                step: w.width(),
                panel_stride: 0,
                out: &out[..m],
                out_stride: 0,
                accumulate: carry,
            };
            tile::copied(s, m, w.vectors, &args);
            for (i, out) in out.iter().enumerate().take(m) {
                if last {
                    finish.row(s, p, rows.start + i, *out);
                } else if let Some((place, columns)) = finish.place::<S>(p, rows.start + i)
                    && place != *out
                {
                    std::ptr::copy_nonoverlapping(*out, place, columns);
                }
            }
        }
    }
}

/// The vector at `at`, with its bias.
#[inline(always)]
unsafe fn biased<S: Simd>(s: S, sums: *const f32, bias: Option<*const f32>, at: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let sum = s.load(sums.add(at));
        match bias {
            Some(bias) => s.add(sum, s.load(bias.add(at))),
            None => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::team::Team;

    /// Sums in `f64`, one after another: shares nothing with the tiles.
    fn reference(x: &[f32], w: &[f32], b: &[f32], n: usize, k: usize) -> Vec<f64> {
        let rows = x.len().checked_div(k).unwrap_or(1);
        let mut y = Vec::with_capacity(rows * n);
        for r in 0..rows {
            for j in 0..n {
                let terms = (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[j * k + i]));
                y.push(terms.sum::<f64>() + f64::from(b[j]));
            }
        }
        y
    }

    fn close(found: &[f32], expected: &[f64], k: usize, what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        // A sum of k products of numbers below 1 in f32: rounding grows like k in the worst case.
        let bound = 1e-6 * (k as f64).sqrt().max(1.0) * 4.0;
        for (i, (&y, &e)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(y) - e).abs();
            assert!(error <= bound * e.abs().max(1.0), "{what}: [{i}] is {y}, expected {e}");
        }
    }

    fn product(isa: Isa, workers: usize, w: &Packed, x: &[f32], rows: usize) -> Vec<f32> {
        let mut y = vec![f32::NAN; rows * w.outputs()];
        let gemm = Gemm::new(x.as_ptr(), rows, w, y.as_mut_ptr());
        let shared = (crate::memory::Shared(gemm.x.cast_mut()), crate::memory::Shared(gemm.y));
        let mut team = Team::new(workers).unwrap();
        team.run(|worker| {
            let (x, y) = (shared.0, shared.1);
            let gemm = Gemm::new(x.0, rows, w, y.0);
            // SAFETY: `x` and `y` outlive the run and have the product's shape.
            unsafe { gemm.run(isa, worker, &mut Scratch::new()) }
        })
        .unwrap();
        y
    }

    const SIZES: [(usize, usize, usize); 22] = [
        (1, 1, 1),
        (1, 5, 3),
        (1, 32, 100),
        (1, 400, 100),
        (2, 33, 7),
        (3, 129, 64),
        (4, 31, 65),
        (5, 1, 1),
        (5, 17, 2),
        (12, 32, 384),
        (13, 48, 385),
        (11, 47, 383),
        (23, 7, 131),
        (25, 97, 11),
        (50, 400, 100),
        (1, 64, 1000),
        (7, 96, 1000),
        (260, 33, 20),
        (37, 130, 770),
        (0, 5, 5),
        (5, 5, 0),
        (1, 5, 0),
    ];

    #[test]
    fn every_tier_agrees_with_the_sums() {
        let mut random = Random::new("gemm");
        for isa in Isa::available() {
            for (rows, n, k) in SIZES {
                let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
                let packed = Packed::new(isa, Precision::F32, &w, (n, k), 1, Some(&b));
                let y = product(isa, 2, &packed, &x, rows);
                let mut expected = reference(&x, &w, &b, n, k);
                if k == 0 {
                    expected = (0..rows * n).map(|i| f64::from(b[i % n])).collect();
                }
                close(&y, &expected, k, &format!("{} {rows}x{n}x{k}", isa.name()));
            }
        }
    }

    #[test]
    fn bf16_weights_are_rounded_weights() {
        let mut random = Random::new("gemm bf16");
        for isa in Isa::available() {
            for (rows, n, k) in SIZES {
                let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
                let rounded: Vec<f32> =
                    w.iter().map(|&w| f32::from_bits(bf16_bits(w) << 16)).collect();
                let half = Packed::new(isa, Precision::Bf16, &w, (n, k), 1, Some(&b));
                let full = Packed::new(isa, Precision::F32, &rounded, (n, k), 1, Some(&b));
                let (half, full) =
                    (product(isa, 1, &half, &x, rows), product(isa, 1, &full, &x, rows));
                assert_eq!(half, full, "{} {rows}x{n}x{k}", isa.name());
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_batch_or_workers() {
        let mut random = Random::new("gemm batch");
        for isa in Isa::available() {
            for (rows, n, k) in [(29, 70, 1000), (300, 33, 129), (6, 200, 50)] {
                let (x, w) = (random.floats(rows * k), random.floats(n * k));
                let packed = Packed::new(isa, Precision::F32, &w, (n, k), 1, None);
                let all = product(isa, 1, &packed, &x, rows);
                assert_eq!(all, product(isa, 2, &packed, &x, rows));
                for r in 0..rows {
                    let one = product(isa, 1, &packed, &x[r * k..(r + 1) * k], 1);
                    assert_eq!(one, all[r * n..(r + 1) * n], "row {r} on {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn epilogues_follow_their_definition() {
        let mut random = Random::new("gemm epilogue");
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for isa in Isa::available() {
            for (rows, n, k) in [(1, 10, 6), (3, 64, 33), (14, 50, 400), (40, 37, 1000)] {
                let (x, w, b) =
                    (random.floats(rows * k), random.floats(2 * n * k), random.floats(2 * n));
                let r = random.floats(rows * n);
                let sums = reference(&x, &w, &b, 2 * n, k);
                let packed = Packed::new(isa, Precision::F32, &w, (2 * n, k), 2, Some(&b));
                let mut y = vec![f32::NAN; rows * n];
                let gemm = Gemm {
                    y_map: RowMap::dense(n),
                    activation: Activation::Elu { alpha: 1.0, scale: 1.0 },
                    gate: Some(Activation::Sigmoid),
                    residual: Some((r.as_ptr(), RowMap::dense(n))),
                    ..Gemm::new(x.as_ptr(), rows, &packed, y.as_mut_ptr())
                };
                // SAFETY: all arrays have the product's shape.
                unsafe { gemm.run(isa, Worker::alone(), &mut Scratch::new()) }
                let expected: Vec<f64> = (0..rows * n)
                    .map(|i| {
                        let at = i / n * 2 * n + i % n;
                        let a = sums[at];
                        let elu = if a < 0.0 { a.exp_m1() } else { a };
                        elu * sigmoid(sums[at + n]) + f64::from(r[i])
                    })
                    .collect();
                close(&y, &expected, k, &format!("{} {rows}x{n}x{k}", isa.name()));
            }
        }
    }

    #[test]
    fn rows_may_be_steps_of_sequences() {
        let mut random = Random::new("gemm rows");
        for isa in Isa::available() {
            let (batch, steps, k, n) = (5, 7, 10, 40);
            let (x, w) = (random.floats(batch * steps * k), random.floats(n * k));
            let packed = Packed::new(isa, Precision::F32, &w, (n, k), 1, None);
            let all = product(isa, 1, &packed, &x, batch * steps);
            let (from, len) = (2, 3);
            let mut y = vec![f32::NAN; batch * steps * n];
            let gemm = Gemm {
                x_map: RowMap::sequences(len, k, steps * k),
                y_map: RowMap::sequences(len, n, steps * n),
                // SAFETY: step `from` exists in input and output.
                ..unsafe {
                    let y = y.as_mut_ptr().add(from * n);
                    Gemm::new(x.as_ptr().add(from * k), batch * len, &packed, y)
                }
            };
            // SAFETY: both maps stay inside their arrays.
            unsafe { gemm.run(isa, Worker::alone(), &mut Scratch::new()) }
            for (i, (&y, &e)) in y.iter().zip(&all).enumerate() {
                let step = i / n % steps;
                let inside = (from..from + len).contains(&step);
                assert!(if inside { y == e } else { y.is_nan() }, "step {step}");
            }
        }
    }
}
