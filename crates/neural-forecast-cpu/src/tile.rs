//! The register tile under every product: `M` rows times `P` panels of `V` vectors.
//!
//! One accumulator per output element, `k` ascending, one fused multiply-add per term: so the bits
//! of an element depend on its row and its column of weights and on nothing else: not on the batch,
//! the tile it fell into, or the blocking of `k` (an accumulator that is stored and re-loaded is
//! the same accumulator). Everything that multiplies matrices in this crate goes through here.
//!
//! Does not know what the sums are for; epilogues are the callers'.

use crate::simd::{Kernel, Simd};

/// Most rows of a tile on any tier.
pub const ROWS_MAX: usize = 12;
/// Terms of `k` that copied rows hold. A tile of them and its panel stream from L2, which keeps up;
/// smaller blocks would store and re-load the sums (Xeon with 48 KiB and 2 MiB,
/// `examples/kernels.rs`,
/// 2026-11-21).
pub const K_BLOCK: usize = 768;
/// Floats between copied rows: a constant, so that the tile addresses all its rows from one
/// register, and no multiple of 4 KiB, so that they do not evict each other.
pub const ROW_STRIDE: usize = K_BLOCK + 16;
/// Rows up to which a tile reads its input in place.
pub const ROWS_DIRECT: usize = 4;

/// How weights lie in a panel.
pub trait Format: Copy + 'static {
    /// Term `k` even of a pair at `p`.
    /// # Safety
    /// `p` points into a panel with a vector left.
    unsafe fn even<S: Simd>(s: S, p: *const f32) -> S::V;
    /// Term `k` odd of a pair at `p`; `step` floats lie between terms.
    /// # Safety
    /// As `even`.
    unsafe fn odd<S: Simd>(s: S, p: *const f32, step: usize) -> S::V;
    /// Panel words that a pair of terms takes, in units of a term's width.
    const PAIR: usize;
}

/// A float a word, terms one after another.
#[derive(Clone, Copy, Debug)]
pub struct Single;
/// Two bf16 a word: the even term in the low half, the odd term in the high half.
#[derive(Clone, Copy, Debug)]
pub struct Half;

/// Two f16 a word in the place of [`Half`]'s pairs, but a vector at a time: in the words of one
/// vector of columns all their even terms lie before all their odd terms, as the conversion of a
/// whole vector wants them.
#[derive(Clone, Copy, Debug)]
pub struct HalfRows;

impl Format for Single {
    #[inline(always)]
    unsafe fn even<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn odd<S: Simd>(s: S, p: *const f32, step: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load(p.add(step)) }
    }
    const PAIR: usize = 2;
}

impl Format for Half {
    #[inline(always)]
    unsafe fn even<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load_low(p.cast()) }
    }
    #[inline(always)]
    unsafe fn odd<S: Simd>(s: S, p: *const f32, _: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load_high(p.cast()) }
    }
    const PAIR: usize = 1;
}

impl Format for HalfRows {
    #[inline(always)]
    unsafe fn even<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's: the vector's words hold twice as many f16.
        unsafe { s.load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn odd<S: Simd>(s: S, p: *const f32, _: usize) -> S::V {
        // SAFETY: as above.
        unsafe { s.load_f16(p.cast::<u16>().add(S::LANES)) }
    }
    const PAIR: usize = 1;
}

/// Where the `M` input rows are.
pub trait Rows: Copy {
    /// Term `k` of row `m`.
    /// # Safety
    /// Row `m` and term `k` exist.
    unsafe fn at(self, m: usize, k: usize) -> *const f32;
}

/// Rows read where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Direct<const M: usize>([*const f32; M]);

/// Rows copied [`ROW_STRIDE`] apart.
#[derive(Clone, Copy, Debug)]
pub struct Copied(*const f32);

impl<const M: usize> Rows for Direct<M> {
    #[inline(always)]
    unsafe fn at(self, m: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's.
        unsafe { self.0[m].add(k) }
    }
}

impl Rows for Copied {
    #[inline(always)]
    unsafe fn at(self, m: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(m * ROW_STRIDE + k) }
    }
}

/// One call: inputs, weights, destination.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    /// Terms.
    pub k: usize,
    /// Input rows; one pointer for copied rows.
    pub rows: &'a [*const f32],
    /// First panel at the first term (of a pair).
    pub panel: *const f32,
    /// Words between terms: the panel's width.
    pub step: usize,
    /// Words between panels.
    pub panel_stride: usize,
    /// Output rows.
    pub out: &'a [*mut f32],
    /// Floats between the outputs of neighbouring panels.
    pub out_stride: usize,
    /// Whether to start from what `out` holds rather than from zero.
    pub accumulate: bool,
}

struct Tile<'a, F, R, const M: usize, const V: usize, const P: usize> {
    args: Args<'a>,
    rows: R,
    format: std::marker::PhantomData<F>,
}

// Indices rather than iterators: the three arrays are walked together, and the loops must unroll.
#[allow(clippy::needless_range_loop)]
impl<F: Format, R: Rows, const M: usize, const V: usize, const P: usize> Kernel
    for Tile<'_, F, R, M, V, P>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Args { k, panel, step, panel_stride, out, out_stride, accumulate, .. } = self.args;
        let rows = self.rows;
        let mut acc = [[[s.splat(0.0); V]; P]; M];
        // SAFETY: `run`'s caller grants `M` rows of `k` terms, `P` panels of them, and `M` output
        // rows of `P · V` vectors.
        unsafe {
            if accumulate {
                for m in 0..M {
                    for p in 0..P {
                        for v in 0..V {
                            let at = out[m].add(p * out_stride + v * S::LANES);
                            acc[m][p][v] = s.load(at);
                        }
                    }
                }
            }
            let mut b = panel;
            let mut t = 0;
            while t + 2 <= k {
                let mut even = [[s.splat(0.0); V]; P];
                for p in 0..P {
                    for v in 0..V {
                        even[p][v] = F::even(s, b.add(p * panel_stride + v * S::LANES));
                    }
                }
                for m in 0..M {
                    let x = s.splat(*rows.at(m, t));
                    for p in 0..P {
                        for v in 0..V {
                            acc[m][p][v] = s.fma(x, even[p][v], acc[m][p][v]);
                        }
                    }
                }
                let mut odd = [[s.splat(0.0); V]; P];
                for p in 0..P {
                    for v in 0..V {
                        odd[p][v] = F::odd(s, b.add(p * panel_stride + v * S::LANES), step);
                    }
                }
                for m in 0..M {
                    let x = s.splat(*rows.at(m, t + 1));
                    for p in 0..P {
                        for v in 0..V {
                            acc[m][p][v] = s.fma(x, odd[p][v], acc[m][p][v]);
                        }
                    }
                }
                b = b.add(F::PAIR * step);
                t += 2;
            }
            if t < k {
                for m in 0..M {
                    let x = s.splat(*rows.at(m, t));
                    for p in 0..P {
                        for v in 0..V {
                            let w = F::even(s, b.add(p * panel_stride + v * S::LANES));
                            acc[m][p][v] = s.fma(x, w, acc[m][p][v]);
                        }
                    }
                }
            }
            for m in 0..M {
                for p in 0..P {
                    for v in 0..V {
                        s.store(out[m].add(p * out_stride + v * S::LANES), acc[m][p][v]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn call<S: Simd, F: Format, R: Rows, const M: usize, const V: usize, const P: usize>(
    s: S,
    args: &Args<'_>,
    rows: R,
) {
    debug_assert!(args.out.len() >= M);
    let format = std::marker::PhantomData::<F>;
    s.vectorize(Tile::<F, R, M, V, P> { args: *args, rows, format });
}

/// Panels that one call of [`direct`] takes at once, so that there are enough accumulators in
/// flight to hide the latency of the multiply-add.
#[inline(always)]
pub fn panels_at_once<S: Simd>(rows: usize, vectors: usize) -> usize {
    let wide = S::LANES == 16;
    match (rows, vectors) {
        (1, 1 | 2) => 4,
        (1, _) => 2,
        (2, 1 | 2) if wide => 4,
        (2, 3 | 4) | (3 | 4, 1 | 2) if wide => 2,
        _ => 1,
    }
}

/// A tile whose rows are read in place: at most [`ROWS_DIRECT`] rows; `panels` is 1 or what
/// [`panels_at_once`] says.
///
/// # Safety
/// The pointers of `args` reach `rows` inputs, `panels` panels of `vectors` vectors and as many
/// outputs.
pub unsafe fn direct<S: Simd, F: Format>(
    s: S,
    rows: usize,
    vectors: usize,
    panels: usize,
    args: &Args<'_>,
) {
    macro_rules! cases {
        ($(($m:literal, $v:literal, $p:literal)),*) => {
            match (rows, vectors, panels) {
                $(($m, $v, $p) => {
                    let mut at = [std::ptr::null(); $m];
                    at.copy_from_slice(&args.rows[..$m]);
                    // SAFETY: the caller's.
                    unsafe { call::<S, F, Direct<$m>, $m, $v, $p>(s, args, Direct(at)) }
                })*
                _ => unreachable!("no tile of {rows} rows, {vectors} vectors, {panels} panels"),
            }
        };
    }
    cases!(
        (1, 1, 1),
        (1, 2, 1),
        (1, 3, 1),
        (1, 4, 1),
        (2, 1, 1),
        (2, 2, 1),
        (2, 3, 1),
        (2, 4, 1),
        (3, 1, 1),
        (3, 2, 1),
        (3, 3, 1),
        (3, 4, 1),
        (4, 1, 1),
        (4, 2, 1),
        (4, 3, 1),
        (4, 4, 1),
        (1, 1, 4),
        (1, 2, 4),
        (1, 3, 2),
        (1, 4, 2),
        (2, 1, 4),
        (2, 2, 4),
        (2, 3, 2),
        (2, 4, 2),
        (3, 1, 2),
        (3, 2, 2),
        (4, 1, 2),
        (4, 2, 2)
    );
}

/// A tile over rows that were copied [`ROW_STRIDE`] apart, at most `S::ROWS[vectors − 1]` of them,
/// and one panel of floats.
///
/// # Safety
/// As [`direct`]; `args.rows[0]` is the first copied row and `args.k` at most [`K_BLOCK`].
pub unsafe fn copied<S: Simd>(s: S, rows: usize, vectors: usize, args: &Args<'_>) {
    macro_rules! cases {
        ($($v:literal: $($m:literal)*;)*) => {
            match (rows, vectors) {
                $($(($m, $v) => {
                    // SAFETY: the caller's.
                    unsafe { call::<S, Single, Copied, $m, $v, 1>(s, args, Copied(args.rows[0])) }
                })*)*
                _ => unreachable!("no tile of {rows} rows, {vectors} vectors"),
            }
        };
    }
    cases!(
        1: 1 2 3 4 5 6 7 8 9 10 11 12;
        2: 1 2 3 4 5 6 7 8 9 10 11 12;
        3: 1 2 3 4 5 6 7 8;
        4: 1 2 3 4 5 6;
    );
}

/// Splits `rows` into tiles of nearly equal height, at most `most` each: the number of tiles.
#[inline(always)]
pub fn tiles(rows: usize, most: usize) -> usize {
    rows.div_ceil(most)
}

/// First row of tile `i` of `count` over `rows` rows.
#[inline(always)]
pub fn tile_start(rows: usize, count: usize, i: usize) -> usize {
    rows * i / count
}
