//! Weights in the order in which tiles read them: packed once, when a model is loaded.
//!
//! Knows layouts, not products: who reads a panel and what follows is elsewhere.

use crate::counters::Precision;
use crate::dot::{
    Dot, TERMS_MAX, WORDS_MULTIPLE, bf16_bits, byte_scales, finite_magnitude, half_scales,
};
use crate::f16::f16_bits;
use crate::isa::Isa;
use crate::memory::Buffer;

/// Outputs and terms up to which [`kept`] keeps `f32` weights instead of bytes.
const BYTES_ABOVE: usize = 16;

/// Weights in the order in which the tiles of one tier read them, with their bias.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Outputs.
    pub(super) n: usize,
    /// Terms.
    pub(super) k: usize,
    /// Outputs are this many interleaved groups of `n / groups`: a panel holds one vector of each.
    pub(super) groups: usize,
    pub(super) vectors: usize,
    /// Vectors of the last panel: fewer where it is packed narrow.
    pub(super) last_vectors: usize,
    pub(super) lanes: usize,
    pub(super) precision: Precision,
    pub(super) panels: usize,
    pub(super) panel_stride: usize,
    data: Buffer,
    bias: Option<Buffer>,
    /// How rows meet panels in lower arithmetic; `None` where weights are multiplied as `f32`.
    pub(super) dot: Option<&'static Dot>,
    /// Of bytes, and of f16 that are multiplied as such: what turns their sums into floats.
    ends: Option<Ends>,
}

/// What turns sums of scaled weights into floats, for the columns of all panels.
#[derive(Clone, Debug)]
struct Ends {
    /// Of bytes the largest weight of an output over 127, NaN where a weight is not finite; of f16
    /// a power of two.
    scales: Buffer,
    /// Of bytes: `128 · Σw` as integers, what the offset of the inputs adds to a sum.
    offsets: Option<Buffer>,
}

impl Packed {
    /// Packs `weights` `[n, k]` for a tier. With `groups` above 1 (at most 4), output `g · n/groups
    /// + j` is group `g` of unit `j`, and one panel holds all groups of a vector of units.
    ///
    /// Weights that asked for bytes and have more than [`TERMS_MAX`] terms are kept as bf16, which
    /// [`Packed::precision`] says.
    ///
    /// # Panics
    /// If the lengths differ from the shape.
    pub fn new(
        isa: Isa,
        precision: Precision,
        weights: &[f32],
        (n, k): (usize, usize),
        groups: usize,
        bias: Option<&[f32]>,
    ) -> Packed {
        Packed::with(isa, precision, weights, (n, k), (groups, false), bias)
    }

    /// Packs as [`Packed::new`], but for a last panel that has not all its lanes: there the groups
    /// lie as many columns apart as there are units left instead of a vector each, in as few
    /// vectors as hold them. Of 100 units in vectors of 16 that is one vector of the last four
    /// gates and not four.
    ///
    /// # Panics
    /// If the lengths differ from the shape.
    pub fn gates(
        isa: Isa,
        precision: Precision,
        weights: &[f32],
        shape: (usize, usize),
        groups: usize,
        bias: Option<&[f32]>,
    ) -> Packed {
        Packed::with(isa, precision, weights, shape, (groups, true), bias)
    }

    fn with(
        isa: Isa,
        precision: Precision,
        weights: &[f32],
        (n, k): (usize, usize),
        (groups, narrow): (usize, bool),
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
        let precision = match precision {
            Precision::Int8 if k > TERMS_MAX => Precision::Bf16,
            _ => precision,
        };
        let dot = if k <= TERMS_MAX { Dot::of(isa, precision) } else { None };
        let panel_stride = word_rows(precision, k) * width;
        let columns = panels * width;
        let units = n / groups % lanes;
        let last_vectors = match narrow && groups > 1 && units > 0 {
            true => (groups * units).div_ceil(lanes),
            false => vectors,
        };
        let unused = (vectors - last_vectors) * lanes * word_rows(precision, k);
        let bytes = precision == Precision::Int8;
        let ends = (bytes || precision == Precision::F16 && dot.is_some()).then(|| Ends {
            scales: Buffer::zeroed(columns),
            offsets: bytes.then(|| Buffer::zeroed(columns)),
        });
        let mut packed = Packed {
            n,
            k,
            groups,
            vectors,
            last_vectors,
            lanes,
            precision,
            panels,
            panel_stride,
            data: Buffer::zeroed((panels * panel_stride).saturating_sub(unused)),
            bias: bias.map(|_| Buffer::zeroed(columns)),
            dot,
            ends,
        };
        for panel in 0..panels {
            for column in 0..packed.width_of(panel) {
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
        let apart = self.apart(panel);
        let (group, unit) = (column / apart, panel * self.lanes + column % apart);
        let units = self.n / self.groups;
        (group < self.groups && unit < units).then(|| group * units + unit)
    }

    fn pack_row(&mut self, panel: usize, column: usize, row: &[f32]) {
        let (width, start) = (self.width_of(panel), panel * self.panel_stride + column);
        match self.precision {
            Precision::F32 => {
                for (k, &w) in row.iter().enumerate() {
                    self.data.as_mut_slice()[start + k * width] = w;
                }
            }
            Precision::F16 if self.dot.is_some() => self.pack_halves(start, (panel, column), row),
            // As `HalfRows` reads them.
            Precision::F16 => {
                let (lane, vector) = (column % self.lanes, start - column % self.lanes);
                for (k, &w) in row.iter().enumerate() {
                    let word = vector + k / 2 * width + (k % 2 * self.lanes + lane) / 2;
                    let shift = 16 * (lane % 2);
                    self.data.as_mut_words()[word] |= u32::from(f16_bits(w)) << shift;
                }
            }
            Precision::Bf16 => {
                for (k, pair) in row.chunks(2).enumerate() {
                    let high = pair.get(1).map_or(0, |&w| bf16_bits(w));
                    self.data.as_mut_words()[start + k * width] = bf16_bits(pair[0]) | high << 16;
                }
            }
            Precision::Int8 => self.pack_bytes(start, (panel, column), row),
        }
    }

    /// Bytes of one output from word `start` on, and what its sums need.
    fn pack_bytes(&mut self, start: usize, (panel, column): (usize, usize), row: &[f32]) {
        let (width, column) = (self.width_of(panel), panel * self.width() + column);
        let most = row.iter().map(|w| w.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
        let (down, up) = byte_scales(most);
        let byte = |w: &f32| (w * down).round_ties_even() as i8;
        for (w, terms) in row.chunks(4).enumerate() {
            let bytes = terms.iter().map(|w| u32::from(byte(w) as u8)).enumerate();
            self.data.as_mut_words()[start + w * width] = bytes.map(|(i, b)| b << (8 * i)).sum();
        }
        let sum: i32 = row.iter().map(|w| i32::from(byte(w))).sum();
        if let Some(Ends { scales, offsets: Some(offsets) }) = &mut self.ends {
            scales.as_mut_slice()[column] = up;
            offsets.as_mut_words()[column] = (128 * sum) as u32;
        }
    }

    /// f16 of one output from word `start` on, scaled, and what its sums need.
    fn pack_halves(&mut self, start: usize, (panel, column): (usize, usize), row: &[f32]) {
        let (width, column) = (self.width_of(panel), panel * self.width() + column);
        let (down, up) = half_scales(row.iter().map(|&w| finite_magnitude(w)).max().unwrap_or(0));
        for (k, pair) in row.chunks(2).enumerate() {
            let half = |w: &f32| u32::from(f16_bits(w * down));
            let high = pair.get(1).map_or(0, half);
            self.data.as_mut_words()[start + k * width] = half(&pair[0]) | high << 16;
        }
        if let Some(ends) = &mut self.ends {
            ends.scales.as_mut_slice()[column] = up;
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

    /// Columns of a panel, padding included: what lies between those of neighbouring panels in sums
    /// and biases. The weights of a narrow last panel have fewer.
    pub fn width(&self) -> usize {
        self.vectors * self.lanes
    }

    /// Vectors of panel `p`.
    pub(super) fn vectors_of(&self, p: usize) -> usize {
        if p + 1 == self.panels { self.last_vectors } else { self.vectors }
    }

    /// Columns of the weights of panel `p`.
    pub(super) fn width_of(&self, p: usize) -> usize {
        self.vectors_of(p) * self.lanes
    }

    /// Columns between the groups of panel `p`: a vector, or the units of a narrow one.
    pub(crate) fn apart(&self, p: usize) -> usize {
        if self.vectors_of(p) < self.vectors {
            self.n / self.groups - p * self.lanes
        } else {
            self.lanes
        }
    }

    /// Columns of all panels, padding included.
    pub fn padded_outputs(&self) -> usize {
        self.panels * self.width()
    }

    /// Whether weights are widened to `f32` before they are multiplied.
    pub(crate) fn widens(&self) -> bool {
        self.precision != Precision::F32 && self.dot.is_none()
    }

    /// Whether its products read inputs that are kept as bf16.
    pub fn takes_halves(&self) -> bool {
        self.dot.is_some_and(Dot::takes_halves)
    }

    /// Whether its products can keep their results as bf16: those that sum all terms in one go, of
    /// numbers that have no more digits.
    pub fn gives_halves(&self) -> bool {
        self.dot.is_some() && self.precision != Precision::F16
    }

    /// How weights are kept.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        let offsets = |ends: &Ends| ends.offsets.as_ref().map_or(0, Buffer::len);
        let ends = self.ends.as_ref().map_or(0, |ends| ends.scales.len() + offsets(ends));
        4 * (self.data.len() + ends + self.bias.as_ref().map_or(0, Buffer::len))
    }

    /// Terms of a word.
    pub(super) fn terms_per_word(&self) -> usize {
        terms_per_word(self.precision)
    }

    /// Scales of panel `p`, where weights are scaled, and offsets, where they are bytes.
    pub(super) fn panel_ends(&self, p: usize) -> Option<(*const f32, Option<*const i32>)> {
        let at = p * self.width();
        // SAFETY: callers pass a panel of this matrix.
        self.ends.as_ref().map(|Ends { scales, offsets }| unsafe {
            let offsets = offsets.as_ref().map(|offsets| offsets.as_ptr().add(at).cast());
            (scales.as_ptr().add(at), offsets)
        })
    }

    /// Panel `p` from term `k` (the first of a word) on.
    pub(crate) fn panel(&self, p: usize, k: usize) -> *const f32 {
        let words = k / self.terms_per_word();
        let offset = p * self.panel_stride + words * self.width_of(p);
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

fn terms_per_word(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::F16 | Precision::Bf16 => 2,
        Precision::Int8 => 4,
    }
}

/// Word rows of a panel of `k` terms, padding included.
fn word_rows(precision: Precision, k: usize) -> usize {
    match precision {
        Precision::F32 => k,
        _ => k.div_ceil(terms_per_word(precision)).next_multiple_of(WORDS_MULTIPLE),
    }
}

/// How the weights `[n, k]` of a model in precision `asked` are kept. Small products gain no time
/// by bytes and lose digits where it shows: an input layer over a few features of unlike size would
/// share one scale between them, and a head's few outputs are the forecast itself. With random
/// weights (`examples/workloads.rs`, a Zen 4, 2026-11-21) `f32` up to 16 terms took the error of a
/// small transformer's forecast from 3.2% to 1.6% of f32's root mean square, `f32` up to 16 outputs
/// that of a bidirectional LSTM from 0.12% to 0.09%, both at the same latency.
pub fn kept(asked: Precision, (n, k): (usize, usize)) -> Precision {
    match asked {
        Precision::Int8 if n.min(k) <= BYTES_ABOVE => Precision::F32,
        _ => asked,
    }
}
