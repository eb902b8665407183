//! Products on the tile registers of Intel's AMX: bf16 pairs summed in `f32`, `u8 × s8` quads
//! summed in `i32`.
//!
//! The kernels (`product`) are written once over [`Tiles`], the handful of tile instructions that
//! they need. [`Amx`] runs the instructions; [`Emulated`] does in plain Rust what Intel's manual
//! says that they do, and panics where a processor would fault, so every size, stride, tail and
//! blocking is tested on machines without AMX.
//!
//! # Which machine has run this
//! A Xeon of the fifth generation (family 6, model 207, 2.1 GHz, virtual, 2026-11-21):
//! `examples/amx_check` found no bit of 1,435,000 sums in 500 random products different from
//! [`Emulated`], in bf16 of moderate size, around the least normal number and of any bits, and in
//! bytes of any sign. It multiplied at 2,626 GFLOP/s in bf16 and 5,319 in bytes a core, everything
//! in registers; 512 rows of 768 terms with 768 columns at 336 and 1,935.
//!
//! # What to expect, in cycles
//! A multiplication of full tiles (16 rows, 16 columns, 32 bf16 or 64 bytes of `k`) takes 16 cycles
//! of the multiplier and its sums are ready after 52, so three to four tiles of sums must be in
//! flight; loading a tile takes 8 cycles from L1 and over 16 from L2 (as published; not measured).
//! With 2 × 2 tiles of sums a step of `k` takes 64 cycles and 4 tile loads: 32 cycles of loading
//! from L1, so the multiplier is the bound while the panel stays in L1 and the rows stream from L2.
//! Up to 16 rows one tile of rows meets up to four tiles of weights: `rows` cycles a
//! multiplication, so the loads of weights are the bound, as they are of `VDPBF16PS`, which reads
//! the same bytes. That is why tiles serve one row of bf16 too, and why one kernel class serves
//! every number of rows: `lstm_b` takes 0.9 ms in tiles and 1.3 in vectors. What was measured stays
//! behind that: a step of 2 × 2 tiles takes some 170 cycles in bytes and 500 in bf16 where rows and
//! sums exceed L1. Asking for rows or weights 1 to 4 steps ahead did not help (few rows lost 10 to
//! 40%).

mod block;
mod emulated;
mod product;
#[cfg(target_arch = "x86_64")]
mod real;
#[cfg(test)]
mod tests;

pub use emulated::Emulated;
pub use product::{Product, steps_in};
#[cfg(target_arch = "x86_64")]
pub use real::Amx;

/// Rows of a tile register.
pub const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile register.
pub const TILE_BYTES: usize = 64;
/// Words of a row of a tile register: columns of sums, or word rows of `k` in a step.
pub const TILE_WORDS: usize = 16;
/// Tile registers.
pub const TILES: usize = 8;

/// The operand of `LDTILECFG`: the shape of each tile register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile; 8 unused.
    bytes: [u16; 16],
    /// Rows of each tile; 8 unused.
    rows: [u8; 16],
}

const _: () = assert!(size_of::<TileConfig>() == 64);

impl TileConfig {
    /// Palette 1 with full rows of 64 bytes: tile `i` has `rows[i]` rows, of which 1 to 16 are
    /// valid.
    pub const fn with_rows(rows: [u8; TILES]) -> Self {
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes: [0; 16],
            rows: [0; 16],
        };
        let mut i = 0;
        while i < TILES {
            config.bytes[i] = TILE_BYTES as u16;
            config.rows[i] = rows[i];
            i += 1;
        }
        config
    }
}

/// The tile instructions that the kernels are written over.
///
/// A register number is 0 to 7. The state is the executing thread's: between `configure` and
/// `release` the value stays on its thread and nothing else on that thread uses tiles.
pub trait Tiles {
    /// `LDTILECFG`: shapes of all tiles, which become zero.
    ///
    /// # Safety
    /// `config` is valid (palette 1; rows and bytes both 0, or rows 1 to 16 and bytes 4 to 64).
    unsafe fn configure(&mut self, config: &TileConfig);
    /// `TILEZERO`.
    ///
    /// # Safety
    /// Tile `T` is configured.
    unsafe fn zero<const T: u8>(&mut self);
    /// `TILELOADD`: row `i` from `from + i · stride` bytes.
    ///
    /// # Safety
    /// Tile `T` is configured and each of its rows is readable there.
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize);
    /// `TILESTORED`: row `i` to `to + i · stride` bytes.
    ///
    /// # Safety
    /// Tile `T` is configured and each of its rows is writable there.
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize);
    /// `TDPBF16PS`: `C += A · B`, pairs of bf16 a word, sums in `f32`.
    ///
    /// # Safety
    /// The three tiles differ, are configured, and their shapes match: `C` `m × n`, `A` `m × k`,
    /// `B` `k × n` words.
    unsafe fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self);
    /// `TDPBUSD`: `C += A · B`, four unsigned bytes a word of `A`, four signed of `B`, sums in
    /// `i32` that wrap.
    ///
    /// # Safety
    /// As [`Tiles::dot_bf16`].
    unsafe fn dot_u8s8<const C: u8, const A: u8, const B: u8>(&mut self);
    /// `TILERELEASE`: no tile is configured any more, and the kernel need not save them.
    fn release(&mut self);
}

/// What a word of `k` holds, and so which instruction multiplies.
pub trait Arithmetic: Copy + 'static {
    /// A sum: four bytes.
    type Sum: Copy + Default + PartialEq + std::fmt::Debug;
    /// Terms of `k` in a word.
    const TERMS: usize;
    /// `C += A · B`.
    ///
    /// # Safety
    /// As [`Tiles::dot_bf16`].
    unsafe fn dot<T: Tiles, const C: u8, const A: u8, const B: u8>(tiles: &mut T);
}

/// Two bf16 a word, the even term in the low half; sums in `f32`.
///
/// The sums of a step of 32 terms: even terms and odd terms apart, `k` ascending, each term one
/// fused multiply-add; then even plus odd; then that is added to the sum so far. Every operation
/// rounds to nearest even, takes subnormal inputs as zero, and flushes subnormal results to zero,
/// whatever MXCSR says.
#[derive(Clone, Copy, Debug)]
pub struct Bf16;
/// Four bytes a word, low byte first: rows unsigned, weights signed; sums in `i32`, exact while
/// they fit (`k` up to 65,793).
#[derive(Clone, Copy, Debug)]
pub struct Int8;

impl Arithmetic for Bf16 {
    type Sum = f32;
    const TERMS: usize = 2;
    #[inline(always)]
    unsafe fn dot<T: Tiles, const C: u8, const A: u8, const B: u8>(tiles: &mut T) {
        // SAFETY: the caller's.
        unsafe { tiles.dot_bf16::<C, A, B>() }
    }
}

impl Arithmetic for Int8 {
    type Sum = i32;
    const TERMS: usize = 4;
    #[inline(always)]
    unsafe fn dot<T: Tiles, const C: u8, const A: u8, const B: u8>(tiles: &mut T) {
        // SAFETY: the caller's.
        unsafe { tiles.dot_u8s8::<C, A, B>() }
    }
}
