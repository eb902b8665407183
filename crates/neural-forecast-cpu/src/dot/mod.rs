//! Register tiles of products in lower arithmetic: bf16 and f16 pairs into f32 sums, bytes into
//! integers.
//!
//! A [`Dot`] is one arithmetic on one tier: how a row of inputs is converted, and how a tile of
//! converted rows meets panels of weights. Kernels are reached through a table rather than through
//! a type, so that the walk over rows and panels and all epilogues are compiled once a vector
//! width, not once an instruction set. Nobody has a table without the tier's token.
//!
//! Layouts, the same for every implementation:
//! * A word is 32 bits: two bf16 or f16 (the even term in the low half) or four bytes (term `4w`
//!   in the lowest). Word rows of panels and converted rows are padded to [`WORDS_MULTIPLE`] words
//!   with terms that add nothing.
//! * Word row `w` of a panel is its width of consecutive words.
//! * Weights are bf16, f16 of 1 to 2 at most (an output's largest) or signed bytes in −127..=127;
//!   inputs are bf16, f16 of 1 to 2 at most (a row's largest) or bytes offset by 128.
//!
//! Semantics: `VDPBF16PS` rounds to nearest even whatever the thread's mode, takes subnormal bf16
//! as zero and flushes subnormal sums; Intel's manual has it add the two products of a pair one
//! after the other, which tests bound but do not pin. A sum has one accumulator over ascending
//! pairs. Integer sums are exact: all tiers agree on them. Sums of f16 are `fp16`'s.
//! Not here: scales, biases and whatever else follows a sum.

#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16;
mod portable;
pub(crate) mod registers;
mod unit;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::counters::Precision;
use crate::isa::Isa;

/// Word rows of panels and words of converted rows are a multiple of this.
pub const WORDS_MULTIPLE: usize = 16;
/// Most terms of a product in lower arithmetic: `65 536 · 255 · 127` is below 2³¹, and a converted
/// row fits a worker's scratch.
pub const TERMS_MAX: usize = 1 << 16;
/// Largest magnitude of a row that counts as zero when rows become bytes, 2⁻¹¹⁹: the scale of
/// anything above is a normal number, and so is its inverse.
pub const MAGNITUDE_ZERO: f32 = 1.504_632_8e-36;

/// One tile: some converted rows times some neighbouring panels.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Words of a row that hold terms. Up to the next multiple of [`WORDS_MULTIPLE`] rows and
    /// panels hold terms that add nothing.
    pub words: usize,
    /// First converted row, on a cache line.
    pub x: *const u32,
    /// Words between converted rows, whole cache lines.
    pub x_stride: usize,
    /// Converted rows: at most [`Dot::rows`] of the vectors.
    pub rows: usize,
    /// First word row of the first panel, on a cache line.
    pub panel: *const u32,
    /// Vectors of a panel.
    pub vectors: usize,
    /// Panels: 1, or what [`Dot::panels_at_once`] or [`Dot::panels_of_rest`] says.
    pub panels: usize,
    /// Words between panels.
    pub panel_stride: usize,
    /// Sums of the first row: `f32` or `i32`, panel after panel.
    pub out: *mut u32,
    /// Words between the sums of neighbouring rows.
    pub out_stride: usize,
}

/// An arithmetic of a tier.
#[derive(Debug)]
pub struct Dot {
    rows: [usize; 4],
    panels: fn(usize, usize) -> usize,
    tile: Multiply,
    convert: Convert<f32>,
    convert_halves: Option<Convert<u16>>,
}

/// Converts so many numbers to so many words and gives their scale.
type Convert<T> = unsafe fn(*const T, usize, *mut u32, usize) -> f32;

/// What runs a tile.
#[derive(Debug)]
enum Multiply {
    /// Vector registers.
    Vectors(unsafe fn(&Args)),
    /// Tile registers.
    Tiles(registers::Multiplier),
}

impl Dot {
    /// How a tier multiplies in a precision; `None` if it has no lower arithmetic for it, and its
    /// weights are widened.
    pub fn of(isa: Isa, precision: Precision) -> Option<&'static Dot> {
        match (precision, isa) {
            (Precision::F32, _) => None,
            #[cfg(all(test, target_arch = "x86_64"))]
            (Precision::F16, isa) if tests::emulates_f16() => tests::emulated_f16(isa),
            #[cfg(target_arch = "x86_64")]
            (Precision::F16, Isa::Avx512Fp16(token)) => Some(fp16::f16(token)),
            #[cfg(target_arch = "x86_64")]
            (Precision::F16, Isa::Amx(token)) => Some(fp16::f16(token.fp16())),
            (Precision::F16, _) => None,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx512Bf16(token)) => Some(x86::bf16(token)),
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx512Fp16(token)) => Some(x86::bf16(token.bf16())),
            #[cfg(target_arch = "x86_64")]
            (_, Isa::Amx(token)) => Some(registers::amx(token, precision)),
            (Precision::Bf16, _) => None,
            (Precision::Int8, Isa::Portable(_)) => Some(portable::int8()),
            #[cfg(target_arch = "x86_64")]
            (Precision::Int8, Isa::Avx2(token)) => Some(x86::int8_avx2(token)),
            #[cfg(target_arch = "x86_64")]
            (Precision::Int8, Isa::Avx512(token)) => Some(x86::int8_avx512(token)),
            #[cfg(target_arch = "x86_64")]
            (Precision::Int8, Isa::Avx512Vnni(token)) => Some(x86::int8_vnni(token)),
            #[cfg(target_arch = "x86_64")]
            (Precision::Int8, Isa::Avx512Bf16(token)) => Some(x86::int8_vnni(token.vnni())),
            #[cfg(target_arch = "x86_64")]
            (Precision::Int8, Isa::Avx512Fp16(token)) => Some(x86::int8_vnni(token.bf16().vnni())),
        }
    }

    /// Most rows of a tile over panels of 1 to 4 vectors.
    pub fn rows(&self, vectors: usize) -> usize {
        self.rows[vectors - 1]
    }

    /// Panels that a tile of so many rows takes at once.
    pub fn panels_at_once(&self, rows: usize, vectors: usize) -> usize {
        (self.panels)(rows, vectors)
    }

    /// Panels that a tile takes where fewer are left than [`Dot::panels_at_once`]: 1, or all of
    /// them.
    pub fn panels_of_rest(&self, left: usize) -> usize {
        match self.tile {
            Multiply::Vectors(_) => 1,
            Multiply::Tiles(_) => left.max(1),
        }
    }

    /// Writes the sums of a tile.
    ///
    /// # Safety
    /// The pointers of `args` reach what its fields say, and the number of rows and panels is one
    /// that this table takes.
    pub unsafe fn tile(&self, args: &Args) {
        // SAFETY: the caller's; whoever has the table has the tier.
        unsafe {
            match &self.tile {
                Multiply::Vectors(tile) => tile(args),
                Multiply::Tiles(multiplier) => multiplier.tile(args),
            }
        }
    }

    /// Converts `k` floats at `x` to `words` words, and returns their scale: 1 for bf16; for f16 a
    /// power of two; for bytes the largest magnitude over 127, 0 if that is at most
    /// [`MAGNITUDE_ZERO`], and NaN if an input is not finite.
    ///
    /// # Safety
    /// `x` reaches `k` floats and `to` `words` words, which are a multiple of [`WORDS_MULTIPLE`]
    /// and hold `k` terms.
    pub unsafe fn convert(&self, x: *const f32, k: usize, to: *mut u32, words: usize) -> f32 {
        // SAFETY: the caller's; whoever has the table has the tier.
        unsafe { (self.convert)(x, k, to, words) }
    }

    /// Whether it converts bf16, too.
    pub fn takes_halves(&self) -> bool {
        self.convert_halves.is_some()
    }

    /// [`Dot::convert`] of `k` bf16, as if they were widened first.
    ///
    /// # Panics
    /// Unless [`Dot::takes_halves`].
    ///
    /// # Safety
    /// As [`Dot::convert`], of bf16.
    pub unsafe fn convert_halves(
        &self,
        x: *const u16,
        k: usize,
        to: *mut u32,
        words: usize,
    ) -> f32 {
        let convert = self.convert_halves.expect("a table that takes halves");
        // SAFETY: the caller's; whoever has the table has the tier.
        unsafe { convert(x, k, to, words) }
    }
}

/// [`Dot::convert_halves`] where words are pairs: they lie in memory as rows of bf16 do.
unsafe fn pairs_of_halves(x: *const u16, k: usize, to: *mut u32, words: usize) -> f32 {
    let to = to.cast::<u16>();
    // SAFETY: the caller grants `k` bf16 and `words` words, which hold `k` terms.
    unsafe {
        std::ptr::copy_nonoverlapping(x, to, k);
        std::ptr::write_bytes(to.add(k), 0, 2 * words - k);
    }
    1.0
}

/// Rounds to bf16, ties to even; NaN stays NaN.
pub fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) | 0x40;
    }
    (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
}

/// The factor from floats to bytes and the factor back, of a row whose largest magnitude has these
/// bits. A factor of NaN makes every sum of the row NaN.
pub fn byte_scales(magnitude: u32) -> (f32, f32) {
    let most = f32::from_bits(magnitude);
    if !most.is_finite() {
        (0.0, f32::NAN)
    } else if most < MAGNITUDE_ZERO {
        (0.0, 0.0)
    } else {
        (127.0 / most, most / 127.0)
    }
}

/// The factor to f16 and the factor back, both powers of two, of numbers whose largest finite
/// magnitude has these bits: it becomes 1 to 2.
pub fn half_scales(magnitude: u32) -> (f32, f32) {
    // Neither factor leaves the normal numbers: the largest become up to 4, subnormals stay below
    // 1.
    let exponent = (magnitude >> 23).clamp(1, 253);
    (f32::from_bits((254 - exponent) << 23), f32::from_bits(exponent << 23))
}

/// Bits of a magnitude, 0 where it is not finite.
pub fn finite_magnitude(x: f32) -> u32 {
    if x.is_finite() { x.to_bits() & 0x7fff_ffff } else { 0 }
}

#[cfg(test)]
pub(crate) mod tests;
