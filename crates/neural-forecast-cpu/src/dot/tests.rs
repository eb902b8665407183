//! Every tile of every tier against sums that share no code with them: exact integers, and `f64`
//! with a bound for bf16.

use super::*;
use crate::memory::Buffer;
use crate::random::Random;

/// Tables of a precision on this machine.
fn tables(precision: Precision) -> Vec<(Isa, &'static Dot)> {
    let of = |isa| Dot::of(isa, precision).map(|dot| (isa, dot));
    Isa::available().into_iter().filter_map(of).collect()
}

/// Shapes (rows, vectors, panels) that a table takes.
fn shapes(dot: &Dot) -> Vec<(usize, usize, usize)> {
    let mut shapes = Vec::new();
    for vectors in 1..=4 {
        for rows in 1..=dot.rows(vectors).min(70) {
            shapes.push((rows, vectors, 1));
            if dot.panels_at_once(rows, vectors) > 1 {
                shapes.push((rows, vectors, dot.panels_at_once(rows, vectors)));
            }
        }
    }
    shapes
}

/// Words of one tile: converted rows, panels, and what the tile makes of them.
struct Tile {
    words: usize,
    stride: usize,
    width: usize,
    x: Buffer,
    w: Buffer,
    sums: Buffer,
}

impl Tile {
    fn run(
        dot: &Dot,
        lanes: usize,
        (rows, vectors, panels): (usize, usize, usize),
        words: usize,
        mut word: impl FnMut(bool) -> u32,
    ) -> Tile {
        let padded = words.next_multiple_of(WORDS_MULTIPLE);
        let (stride, width) = (padded + WORDS_MULTIPLE, vectors * lanes);
        let panel_stride = padded * width;
        let mut x = Buffer::zeroed(rows * stride);
        let mut w = Buffer::zeroed(panels * panel_stride);
        // What lies between rows must not be read; padding of rows and of panels is zero.
        x.as_mut_words().fill(u32::MAX);
        for row in x.as_mut_words().chunks_mut(stride) {
            row[..words].iter_mut().for_each(|x| *x = word(true));
            row[words..padded].fill(0);
        }
        for panel in w.as_mut_words().chunks_mut(panel_stride.max(1)) {
            panel[..words * width].iter_mut().for_each(|w| *w = word(false));
        }
        let mut sums = Buffer::zeroed(rows * panels * width);
        sums.as_mut_slice().fill(f32::NAN);
        let args = Args {
            words,
            x: x.as_ptr().cast(),
            x_stride: stride,
            rows,
            panel: w.as_ptr().cast(),
            vectors,
            panels,
            panel_stride,
            out: sums.as_mut_ptr().cast(),
            out_stride: panels * width,
        };
        // SAFETY: the buffers have the tile's shape.
        unsafe { dot.tile(&args) };
        Tile { words, stride, width, x, w, sums }
    }

    /// The words that meet in the sum of row `m` and column `c` of all panels.
    fn pairs(&mut self, m: usize, c: usize) -> Vec<(u32, u32)> {
        let panel_stride = self.words.next_multiple_of(WORDS_MULTIPLE) * self.width;
        let start = c / self.width * panel_stride + c % self.width;
        let (x, w) = (self.x.as_mut_words(), self.w.as_mut_words());
        (0..self.words).map(|t| (x[m * self.stride + t], w[start + t * self.width])).collect()
    }

    fn sum(&self, rows: usize, m: usize, c: usize) -> f32 {
        self.sums.as_slice()[m * (self.sums.len() / rows) + c]
    }

    fn columns(&self, rows: usize) -> usize {
        self.sums.len() / rows
    }
}

#[test]
fn integer_tiles_are_exact() {
    let mut random = Random::new("dot int8");
    for (isa, dot) in tables(Precision::Int8) {
        for shape in shapes(dot) {
            for words in [0, 1, 2, 15, 16, 17, 97] {
                let weight = |bits: u64| match bits % 8 {
                    0 => -127,
                    1 => 127,
                    _ => ((bits >> 8) % 255) as i32 - 127,
                };
                let mut tile = Tile::run(dot, isa.lanes(), shape, words, |input| {
                    let bytes = (0..4).map(|_| match (input, random.bits()) {
                        (true, bits) if bits % 8 == 0 => 255,
                        (true, bits) => (bits >> 8) as u8,
                        (false, bits) => weight(bits) as u8,
                    });
                    u32::from_le_bytes(bytes.collect::<Vec<u8>>().try_into().unwrap())
                });
                for m in 0..shape.0 {
                    for c in 0..tile.columns(shape.0) {
                        let expected: i64 = tile
                            .pairs(m, c)
                            .iter()
                            .flat_map(|(x, w)| x.to_le_bytes().into_iter().zip(w.to_le_bytes()))
                            .map(|(x, w)| i64::from(x) * i64::from(w as i8))
                            .sum();
                        let found = tile.sum(shape.0, m, c).to_bits() as i32;
                        let tier = isa.name();
                        assert_eq!(i64::from(found), expected, "{tier} {shape:?} {words} words");
                    }
                }
            }
        }
    }
}

#[test]
fn integer_sums_do_not_saturate_at_the_longest_row() {
    for (isa, dot) in tables(Precision::Int8) {
        for weight in [-127i8, 127] {
            let tile = Tile::run(dot, isa.lanes(), (1, 1, 1), TERMS_MAX / 4, |input| match input {
                true => u32::MAX,
                false => u32::from_le_bytes([weight as u8; 4]),
            });
            let expected = TERMS_MAX as i64 * 255 * i64::from(weight);
            for c in 0..tile.columns(1) {
                let found = tile.sum(1, 0, c).to_bits() as i32;
                assert_eq!(i64::from(found), expected, "{}", isa.name());
            }
        }
    }
}

/// A finite bf16 that is not subnormal.
fn some_bf16(random: &mut Random) -> u32 {
    bf16_bits(random.float() * 2f32.powi((random.bits() % 8) as i32 - 4))
}

fn halves(word: u32) -> [f64; 2] {
    [word << 16, word & 0xffff_0000].map(|bits| f64::from(f32::from_bits(bits)))
}

#[test]
fn pair_tiles_round_only_their_sums() {
    let mut random = Random::new("dot bf16");
    for (isa, dot) in tables(Precision::Bf16) {
        for shape in shapes(dot) {
            for words in [0, 1, 2, 15, 16, 17, 97] {
                let mut tile = Tile::run(dot, isa.lanes(), shape, words, |_| {
                    some_bf16(&mut random) | some_bf16(&mut random) << 16
                });
                for m in 0..shape.0 {
                    for c in 0..tile.columns(shape.0) {
                        let pairs = tile.pairs(m, c);
                        let terms = pairs.iter().flat_map(|&(x, w)| {
                            let (x, w) = (halves(x), halves(w));
                            [x[0] * w[0], x[1] * w[1]]
                        });
                        let (sum, most) =
                            terms.fold((0.0, 0.0), |(s, m): (f64, f64), t| (s + t, m + t.abs()));
                        // Products of bf16 are exact in f32; each of two additions a word rounds.
                        let bound = 2.0 * words as f64 * 2f64.powi(-24) * most;
                        let error = (f64::from(tile.sum(shape.0, m, c)) - sum).abs();
                        let tier = isa.name();
                        assert!(error <= bound, "{tier} {shape:?} {words} words: {error} {bound}");
                    }
                }
            }
        }
    }
}

#[test]
fn pair_tiles_carry_infinities_and_nan_and_flush_subnormals() {
    let one = bf16_bits(1.0);
    let tiny = 1u32;
    for (isa, dot) in tables(Precision::Bf16) {
        let sum = |x: u32, w: u32| {
            let tile = Tile::run(dot, isa.lanes(), (1, 1, 1), 3, |input| if input { x } else { w });
            tile.sum(1, 0, 0)
        };
        assert_eq!(sum(bf16_bits(f32::INFINITY), one), f32::INFINITY);
        assert_eq!(sum(one, bf16_bits(f32::NEG_INFINITY)), f32::NEG_INFINITY);
        assert!(sum(bf16_bits(f32::INFINITY), 0).is_nan());
        assert!(sum(bf16_bits(f32::NAN), one).is_nan());
        assert!(sum(one, bf16_bits(f32::NAN)).is_nan());
        // The smallest subnormal times 2⁶³ is a normal number, but the instruction reads zero.
        assert_eq!(sum(tiny, bf16_bits(2f32.powi(63))), 0.0);
        assert_eq!(sum(bf16_bits(2f32.powi(-100)), bf16_bits(2f32.powi(-40))), 0.0);
    }
}

fn converted(dot: &Dot, x: &[f32], terms_per_word: usize) -> (Vec<u32>, f32) {
    let words = x.len().div_ceil(terms_per_word).next_multiple_of(WORDS_MULTIPLE);
    let mut to = Buffer::zeroed(words);
    to.as_mut_words().fill(0x5555_5555);
    // SAFETY: both hold what is converted.
    let scale = unsafe { dot.convert(x.as_ptr(), x.len(), to.as_mut_ptr().cast(), words) };
    (to.as_mut_words().to_vec(), scale)
}

#[test]
fn rows_of_pairs_are_rounded_to_even() {
    let mut random = Random::new("dot pairs");
    for (_, dot) in tables(Precision::Bf16) {
        for k in [0, 1, 2, 15, 16, 17, 31, 32, 33, 100, 1009] {
            let mut x: Vec<f32> = random.floats(k);
            for (i, x) in x.iter_mut().enumerate() {
                match i % 11 {
                    3 => *x = f32::NAN,
                    4 => *x = f32::NEG_INFINITY,
                    5 => *x = f32::MAX,
                    // Halfway between neighbours, and next to it.
                    6 => *x = f32::from_bits(0x3f80_8000),
                    7 => *x = f32::from_bits(0x3f81_8000),
                    8 => *x = f32::from_bits(0x3f80_8001),
                    _ => {}
                }
            }
            let (words, scale) = converted(dot, &x, 2);
            assert_eq!(scale, 1.0);
            for (i, word) in words.iter().enumerate() {
                for (half, at) in [(word & 0xffff, 2 * i), (word >> 16, 2 * i + 1)] {
                    let expected = x.get(at).map_or(0, |&x| bf16_bits(x));
                    assert_eq!(half, expected, "term {at} of {k}");
                }
            }
            assert!(x.get(3).is_none_or(|_| f32::from_bits(words[1] & 0xffff_0000).is_nan()));
        }
        let (words, _) = converted(dot, &[f32::MIN_POSITIVE / 4.0, -1e-42], 2);
        assert_eq!(words[0] & 0x7fff_7fff, 0, "subnormals are zero");
    }
}

#[test]
fn rows_of_bytes_are_the_nearest_multiples_on_every_tier() {
    let mut random = Random::new("dot bytes");
    for k in [0, 1, 3, 4, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1009] {
        for scale in [1.0, 1e-30, 1e30, 3e-36] {
            // Unaligned by one float.
            let mut x: Vec<f32> = random.floats(k + 1).iter().map(|x| x * scale).collect();
            if let Some(x) = x.get_mut(1) {
                // Else the smallest scale may be that of a row that counts as zero.
                *x = scale;
            }
            let most = x[1..].iter().fold(0f64, |most, &x| most.max(f64::from(x).abs()));
            let mut first = None;
            for (isa, dot) in tables(Precision::Int8) {
                let (words, factor) = converted(dot, &x[1..], 4);
                assert!((f64::from(factor) * 127.0 - most).abs() <= most * 1e-6, "{k} {factor}");
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                for (i, byte) in bytes.iter().enumerate() {
                    let exact = x[1..].get(i).map_or(0.0, |&x| f64::from(x) / most * 127.0);
                    let off = (f64::from(*byte) - 128.0 - exact).abs();
                    assert!(off <= 0.5001, "{} {k} [{i}]: {byte}, {exact}", isa.name());
                }
                let same = first.get_or_insert_with(|| (bytes.clone(), factor));
                assert!(*same == (bytes, factor), "{} {k} {scale}", isa.name());
            }
        }
    }
}

#[test]
fn rows_of_bytes_know_zero_and_what_is_not_finite() {
    for (isa, dot) in tables(Precision::Int8) {
        for x in [vec![0.0; 70], vec![-0.0; 3], vec![1e-40; 33], vec![MAGNITUDE_ZERO / 2.0; 5]] {
            let (words, factor) = converted(dot, &x, 4);
            assert!(words.iter().all(|w| *w == 0x8080_8080), "{}", isa.name());
            assert_eq!(factor, 0.0);
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 16, 32, 69] {
                let mut x = vec![0.5; 70];
                x[at] = bad;
                assert!(converted(dot, &x, 4).1.is_nan(), "{} {bad} at {at}", isa.name());
            }
        }
    }
}

#[test]
fn bf16_are_converted_as_if_they_were_widened_first() {
    let mut random = Random::new("dot halves");
    for precision in [Precision::Bf16, Precision::Int8] {
        for (isa, dot) in tables(precision).into_iter().filter(|(_, dot)| dot.takes_halves()) {
            for k in [0, 1, 2, 15, 16, 17, 31, 33, 64, 65, 131, 768] {
                for special in [None, Some(f32::NAN), Some(f32::INFINITY), Some(0.0)] {
                    let mut halves: Vec<u16> =
                        random.floats(k).iter().map(|x| bf16_bits(x * 9.0) as u16).collect();
                    match special {
                        Some(0.0) => halves.fill(0),
                        Some(x) if k > 0 => halves[k / 2] = bf16_bits(x) as u16,
                        _ => {}
                    }
                    let floats: Vec<f32> =
                        halves.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect();
                    let terms = if precision == Precision::Bf16 { 2 } else { 4 };
                    let words = k.div_ceil(terms).next_multiple_of(WORDS_MULTIPLE);
                    let (mut found, mut expected) = (vec![!0u32; words], vec![!0u32; words]);
                    // SAFETY: both outputs hold the words.
                    let scales = unsafe {
                        let scale =
                            dot.convert_halves(halves.as_ptr(), k, found.as_mut_ptr(), words);
                        [scale, dot.convert(floats.as_ptr(), k, expected.as_mut_ptr(), words)]
                    };
                    let name = format!("{} {k} {special:?}", isa.name());
                    assert_eq!(scales[0].to_bits(), scales[1].to_bits(), "{name}");
                    assert_eq!(found, expected, "{name}");
                }
            }
        }
    }
}
