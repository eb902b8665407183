//! The tile instructions in plain Rust, after Intel's manual (SDM volume 2, "TDPBF16PS" and its
//! neighbours), to test the kernels anywhere and the processor against.
//!
//! Panics where a processor raises #UD or #GP. Does not model which NaN comes out of several, nor
//! resuming after a page fault (`start_row`), which user code never sees.

use super::{TILE_BYTES, TILE_ROWS, TILES, TileConfig, Tiles};

/// Eight tile registers.
#[derive(Clone, Debug)]
pub struct Emulated {
    config: Option<TileConfig>,
    tiles: [[[u8; TILE_BYTES]; TILE_ROWS]; TILES],
    /// `LDTILECFG`s and multiplications so far.
    executed: Executed,
}

/// How many instructions ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// `LDTILECFG`.
    pub configurations: usize,
    /// `TDP…`.
    pub dots: usize,
    /// Rows of sums that those took: what the multiplier is busy with.
    pub dot_rows: usize,
}

impl Default for Emulated {
    fn default() -> Self {
        Emulated::new()
    }
}

impl Emulated {
    /// Not configured.
    pub fn new() -> Self {
        let tiles = [[[0; TILE_BYTES]; TILE_ROWS]; TILES];
        Emulated { config: None, tiles, executed: Executed::default() }
    }

    /// Whether a configuration is loaded.
    pub fn configured(&self) -> bool {
        self.config.is_some()
    }

    /// What ran so far.
    pub fn executed(&self) -> Executed {
        self.executed
    }

    /// Rows and bytes of a row of tile `t`.
    fn shape(&self, t: u8) -> (usize, usize) {
        let config = self.config.expect("#UD: tiles are not configured");
        let t = usize::from(t);
        assert!(t < TILES, "#UD: no tile {t}");
        let (rows, bytes) = (usize::from(config.rows[t]), usize::from(config.bytes[t]));
        assert!(rows > 0, "#UD: tile {t} is not configured");
        assert!(bytes % 4 == 0, "#UD: {bytes} bytes a row of tile {t} are no whole words");
        (rows, bytes)
    }

    fn word(&self, t: u8, row: usize, word: usize) -> [u8; 4] {
        let at = &self.tiles[usize::from(t)][row][4 * word..4 * word + 4];
        [at[0], at[1], at[2], at[3]]
    }

    /// Checks the shapes, then replaces each word of `C` by `f(word, words of A's row, words of B's
    /// column)`.
    fn dot(
        &mut self,
        (c, a, b): (u8, u8, u8),
        f: impl Fn([u8; 4], &[[u8; 4]], &[[u8; 4]]) -> [u8; 4],
    ) {
        assert!(c != a && a != b && c != b, "#UD: tiles {c}, {a}, {b} are not three");
        let (shape_c, shape_a, shape_b) = (self.shape(c), self.shape(a), self.shape(b));
        let (m, n, k) = (shape_c.0, shape_c.1 / 4, shape_b.0);
        assert!(shape_a.0 == m, "#UD: {m} rows of sums, {} of inputs", shape_a.0);
        assert!(shape_a.1 / 4 == k, "#UD: {} words of inputs, {k} of weights", shape_a.1 / 4);
        assert!(shape_b.1 / 4 == n, "#UD: {n} columns of sums, {} of weights", shape_b.1 / 4);
        for row in 0..m {
            let inputs: Vec<_> = (0..k).map(|i| self.word(a, row, i)).collect();
            for column in 0..n {
                let weights: Vec<_> = (0..k).map(|i| self.word(b, i, column)).collect();
                let sum = f(self.word(c, row, column), &inputs, &weights);
                self.tiles[usize::from(c)][row][4 * column..4 * column + 4].copy_from_slice(&sum);
            }
        }
        self.executed.dots += 1;
        self.executed.dot_rows += m;
    }
}

/// The bf16 in two bytes, widened.
fn widen(low: u8, high: u8) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([low, high])) << 16)
}

/// A subnormal is a zero of its sign.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// `a · b + c`, rounded once to nearest even; subnormal inputs are zeros, tiny results too.
fn fma(a: f32, b: f32, c: f32) -> f32 {
    // Halfway between the smallest normal and the float before it, were that normal: what is below
    // is tiny however it is rounded. `f64` holds the sum exactly wherever that matters: the product
    // of two bf16 has 16 bits, and near the limit it is no smaller than 2⁻²⁵ of `c`.
    const TINY: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1u64 << 25) as f64);
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let exact = f64::from(a) * f64::from(b) + f64::from(c);
    let rounded = a.mul_add(b, c);
    if exact.abs() < TINY { 0.0f32.copysign(rounded) } else { rounded }
}

/// `a + b`: a subnormal sum of two normal numbers is exact, so flushing it is all.
fn add(a: f32, b: f32) -> f32 {
    flush(flush(a) + flush(b))
}

impl Tiles for Emulated {
    unsafe fn configure(&mut self, config: &TileConfig) {
        assert!(config.palette == 1, "#GP: palette {}", config.palette);
        assert!(config.start_row == 0, "start row {} is not modelled", config.start_row);
        assert!(config.reserved == [0; 14], "#GP: reserved bytes");
        for t in 0..2 * TILES {
            let (rows, bytes) = (usize::from(config.rows[t]), usize::from(config.bytes[t]));
            assert!(t < TILES || rows == 0 && bytes == 0, "#GP: shape of tile {t}");
            assert!(rows <= TILE_ROWS, "#GP: {rows} rows of tile {t}");
            assert!(bytes <= TILE_BYTES, "#GP: {bytes} bytes a row of tile {t}");
            assert!((rows == 0) == (bytes == 0), "#GP: tile {t} of {rows} rows of {bytes} bytes");
        }
        self.executed.configurations += 1;
        self.config = Some(*config);
        self.tiles = [[[0; TILE_BYTES]; TILE_ROWS]; TILES];
    }

    unsafe fn zero<const T: u8>(&mut self) {
        self.shape(T);
        self.tiles[usize::from(T)] = [[0; TILE_BYTES]; TILE_ROWS];
    }

    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        let (rows, bytes) = self.shape(T);
        let tile = &mut self.tiles[usize::from(T)];
        *tile = [[0; TILE_BYTES]; TILE_ROWS];
        for (i, row) in tile.iter_mut().enumerate().take(rows) {
            // SAFETY: the caller grants the tile's rows, `bytes` each, at most a register's row.
            unsafe { std::ptr::copy_nonoverlapping(from.add(i * stride), row.as_mut_ptr(), bytes) };
        }
    }

    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize) {
        let (rows, bytes) = self.shape(T);
        for (i, row) in self.tiles[usize::from(T)].iter().enumerate().take(rows) {
            // SAFETY: the caller grants the tile's rows, `bytes` each, at most a register's row.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), to.add(i * stride), bytes) };
        }
    }

    unsafe fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self) {
        self.dot((C, A, B), |sum, inputs, weights| {
            let (mut even, mut odd) = (0.0, 0.0);
            for (x, w) in inputs.iter().zip(weights) {
                even = fma(widen(x[0], x[1]), widen(w[0], w[1]), even);
                odd = fma(widen(x[2], x[3]), widen(w[2], w[3]), odd);
            }
            add(f32::from_le_bytes(sum), add(even, odd)).to_le_bytes()
        });
    }

    unsafe fn dot_u8s8<const C: u8, const A: u8, const B: u8>(&mut self) {
        self.dot((C, A, B), |sum, inputs, weights| {
            let mut total = i32::from_le_bytes(sum);
            for (x, w) in inputs.iter().zip(weights) {
                for (x, w) in x.iter().zip(w) {
                    total = total.wrapping_add(i32::from(*x) * i32::from(w.cast_signed()));
                }
            }
            total.to_le_bytes()
        });
    }

    fn release(&mut self) {
        self.config = None;
        self.tiles = [[[0; TILE_BYTES]; TILE_ROWS]; TILES];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_results_are_flushed_as_if_the_exponent_had_no_limit() {
        let least = f32::MIN_POSITIVE;
        let power = |n: i32| 2.0f32.powi(n);
        // least − 2⁻¹⁵¹ lies halfway and rounds up to `least`; a bit less is tiny and becomes zero
        // although rounding among subnormals would have made `least` of it.
        assert_eq!(fma(-power(-75), power(-76), least).to_bits(), least.to_bits());
        assert_eq!(fma(-1.5 * power(-75), power(-76), least).to_bits(), 0);
        assert_eq!((-1.5 * power(-75)).mul_add(power(-76), least), least);
        assert_eq!(fma(1.5 * power(-75), power(-76), -least).to_bits(), (-0.0f32).to_bits());
        // Subnormal inputs count as zeros, with their sign.
        assert_eq!(fma(power(-130), power(100), 0.0), 0.0);
        assert_eq!(add(power(-130), 1.0), 1.0);
        assert_eq!(add(least * 1.5, -least).to_bits(), 0);
        assert_eq!(fma(-power(-130), 1.0, -0.0).to_bits(), (-0.0f32).to_bits());
        assert!(fma(f32::INFINITY, 0.0, 1.0).is_nan());
    }

    fn configured(rows: [u8; TILES]) -> Emulated {
        let mut tiles = Emulated::new();
        // SAFETY: the emulation checks the configuration itself.
        unsafe { tiles.configure(&TileConfig::with_rows(rows)) };
        tiles
    }

    fn panics(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let payload = std::panic::catch_unwind(f).expect_err("a fault");
        payload.downcast_ref::<String>().cloned().unwrap_or_else(|| {
            payload.downcast_ref::<&str>().map(|s| (*s).to_owned()).unwrap_or_default()
        })
    }

    #[test]
    fn what_faults_on_a_processor_panics_here() {
        // SAFETY: the emulation checks every precondition of these operations itself.
        unsafe {
            assert!(panics(|| Emulated::new().zero::<0>()).starts_with("#UD: tiles are not"));
            assert!(panics(|| _ = configured([17; 8])).starts_with("#GP: 17 rows"));
            assert!(panics(|| _ = configured([0; 8])).starts_with("#GP: tile 0 of 0 rows"));
            let mut palette = TileConfig::with_rows([1; 8]);
            palette.palette = 2;
            assert!(panics(|| Emulated::new().configure(&palette)).starts_with("#GP: palette 2"));
            let mut wide = TileConfig::with_rows([1; 8]);
            wide.bytes[3] = 68;
            assert!(panics(|| Emulated::new().configure(&wide)).starts_with("#GP: 68 bytes"));
            let mut ninth = TileConfig::with_rows([1; 8]);
            ninth.rows[8] = 1;
            assert!(panics(|| Emulated::new().configure(&ninth)).starts_with("#GP: shape"));
            let same = panics(|| configured([16; 8]).dot_bf16::<0, 1, 1>());
            assert!(same.contains("are not three"), "{same}");
            let rows = panics(|| configured([16, 5, 16, 16, 16, 16, 16, 16]).dot_u8s8::<0, 1, 2>());
            assert!(rows.starts_with("#UD: 16 rows of sums, 5"), "{rows}");
            let depth = panics(|| configured([5, 5, 15, 1, 1, 1, 1, 1]).dot_bf16::<0, 1, 2>());
            assert!(depth.starts_with("#UD: 16 words of inputs, 15"), "{depth}");
            let released = panics(|| {
                let mut tiles = configured([16; 8]);
                tiles.release();
                tiles.dot_bf16::<0, 1, 2>();
            });
            assert!(released.starts_with("#UD: tiles are not"), "{released}");
        }
    }

    #[test]
    fn integer_sums_wrap() {
        let mut tiles = configured([16; 8]);
        let (inputs, weights) = ([255u8; 1024], [127u8; 1024]);
        let mut sums = [i32::MAX; 256];
        // SAFETY: each array holds a whole tile.
        unsafe {
            tiles.load::<0>(sums.as_ptr().cast(), 64);
            tiles.load::<1>(inputs.as_ptr(), 64);
            tiles.load::<2>(weights.as_ptr(), 64);
            tiles.dot_u8s8::<0, 1, 2>();
            tiles.store::<0>(sums.as_mut_ptr().cast(), 64);
        }
        assert_eq!(sums, [i32::MAX.wrapping_add(64 * 255 * 127); 256]);
    }
}
