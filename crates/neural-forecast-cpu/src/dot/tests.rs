//! Every tile of every tier against sums that share no code with them: exact integers, and `f64`
//! with a bound for bf16, and each rounding of f16 in integers.

use super::*;
use crate::memory::Buffer;
use crate::random::Random;

#[cfg(target_arch = "x86_64")]
thread_local! {
    static EMULATES_F16: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether what this thread packs is multiplied by the emulation of f16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn emulates_f16() -> bool {
    EMULATES_F16.get()
}

/// The emulation of f16 for vectors that it suits.
#[cfg(target_arch = "x86_64")]
pub(crate) fn emulated_f16(isa: Isa) -> Option<&'static Dot> {
    let sixteen = isa.lanes() == 16;
    crate::simd::Simd::new().filter(|_| sixteen).map(fp16::emulated::f16)
}

/// Calls `test` twice: with what this machine has of f16 in `f16` arithmetic, if anything, and with
/// the emulation.
#[cfg(target_arch = "x86_64")]
pub(crate) fn native_and_emulated(test: impl Fn(Isa, &str)) {
    for emulate in [false, true] {
        EMULATES_F16.set(emulate);
        let mut tiers = Isa::available().into_iter();
        let tier = tiers.rfind(|isa| Dot::of(*isa, Precision::F16).is_some());
        if let Some(isa) = tier {
            test(isa, if emulate { "emulated" } else { isa.name() });
        }
    }
    EMULATES_F16.set(false);
}

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

/// `even + odd` of each chain in turn, every term rounded as the definition has it.
#[cfg(target_arch = "x86_64")]
fn sum_of_chains(pairs: &[(u32, u32)]) -> f32 {
    use fp16::emulated::multiply_add;
    let mut sum = 0.0f32;
    for (i, chain) in pairs.chunks(16).enumerate() {
        let half = |shift: u32| {
            let terms = chain.iter().map(|&(x, w)| ((x >> shift) as u16, (w >> shift) as u16));
            // Negative zero is the sum of nothing.
            crate::f16::f16_value(terms.fold(0x8000, |sum, (x, w)| multiply_add(x, w, sum)))
        };
        let (even, odd) = (half(0), half(16));
        sum = if i == 0 { even + odd } else { sum + even + odd };
    }
    sum
}

#[cfg(target_arch = "x86_64")]
#[test]
fn half_tiles_round_each_term_as_the_definition_has_it() {
    let mut random = Random::new("dot f16");
    let mut random = move |any: bool| {
        let bits = random.bits();
        // Any bits at all, or numbers of the size that scaled rows and columns have.
        let half = |bits: u64| {
            if any {
                bits as u16
            } else {
                (bits & 0x83ff) as u16 | (0x2c00 + (bits >> 40 & 0x1000)) as u16
            }
        };
        u32::from(half(bits)) | u32::from(half(bits >> 16)) << 16
    };
    let random = std::cell::RefCell::new(&mut random);
    native_and_emulated(|isa, name| {
        let dot = Dot::of(isa, Precision::F16).expect("a table");
        for shape in shapes(dot) {
            for words in [0, 1, 2, 15, 16, 17, 33, 97] {
                for any in [false, true] {
                    let word = |_| random.borrow_mut()(any);
                    let mut tile = Tile::run(dot, isa.lanes(), shape, words, word);
                    for m in 0..shape.0 {
                        for c in 0..tile.columns(shape.0) {
                            let expected = sum_of_chains(&tile.pairs(m, c));
                            let found = tile.sum(shape.0, m, c);
                            let same = found.to_bits() == expected.to_bits();
                            let same = same || found.is_nan() && expected.is_nan();
                            assert!(same, "{name} {shape:?} {words}: {found:e} {expected:e}");
                        }
                    }
                }
            }
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_emulated_multiply_add_is_the_nearest_f16() {
    use crate::f16::{f16_bits, f16_value};
    use fp16::emulated::multiply_add;
    let mut random = Random::new("f16 multiply-add");
    let value = |half: u16| f64::from(f16_value(half));
    for i in 0..300_000 {
        let bits = random.bits();
        let [a, b] = [bits as u16, (bits >> 16) as u16];
        // Half of the sums cancel most of the product.
        let product = f16_bits((value(a) * value(b)) as f32);
        let c = if i % 2 == 0 {
            (bits >> 32) as u16
        } else {
            (product ^ 0x8000).wrapping_add((bits >> 32 & 3) as u16)
        };
        // A product has 22 digits and is exact; the sum is rounded by less than 2⁻⁵² of it.
        let exact = value(a) * value(b) + value(c);
        let found = value(multiply_add(a, b, c));
        if exact.is_nan() || found.is_nan() {
            assert!(exact.is_nan() && found.is_nan(), "{a:#x} {b:#x} {c:#x}: {found}");
        } else if exact.abs() >= 65_520.0 {
            assert_eq!(found, f64::INFINITY.copysign(exact), "{a:#x} {b:#x} {c:#x}");
        } else {
            let unit = 2f64.powi((exact.abs().log2().floor() as i32).clamp(-14, 15) - 10);
            let off = (found - exact).abs();
            assert!(off <= unit * (0.5 + 1e-9), "{a:#x} {b:#x} {c:#x}: {found:e} {exact:e}");
        }
    }
    // Ties to even, upwards and downwards, normal and subnormal; signs of zero.
    let (one, tiny) = (0x3c00, 1);
    for (a, b, c, expected) in [
        (f16_bits(2f32.powi(-11)), one, one, one),
        (f16_bits(2f32.powi(-11)), one, one + 1, one + 2),
        (tiny, f16_bits(0.5), 0, 0),
        (tiny, f16_bits(0.5), 1, 2),
        (tiny, f16_bits(-0.5), 0, 0x8000),
        (one, one, one | 0x8000, 0),
        (0x8000, one, 0x8000, 0x8000),
        (0x8000, one, 0, 0),
        (0x7c00, 0, one, 0x7e00),
        (0x7c00, one, 0xfc00, 0x7e00),
        (0x7bff, one, 0x4c00, 0x7c00),
        (0x7bff, one, 0x4bff, 0x7bff),
    ] {
        assert_eq!(multiply_add(a, b, c), expected, "{a:#x} {b:#x} {c:#x}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn rows_of_f16_are_scaled_by_powers_of_two_and_rounded_to_even() {
    use crate::f16::f16_bits;
    let mut random = Random::new("dot f16 rows");
    let random = std::cell::RefCell::new(&mut random);
    native_and_emulated(|isa, name| {
        let dot = Dot::of(isa, Precision::F16).expect("a table");
        for k in [0, 1, 2, 15, 16, 17, 31, 32, 33, 100, 1009] {
            for scale in [1.0, 1e-30, 1e30, 3e-39, f32::MAX / 2.0] {
                let mut x: Vec<f32> =
                    random.borrow_mut().floats(k).iter().map(|x| x * scale).collect();
                for (i, x) in x.iter_mut().enumerate() {
                    match i % 11 {
                        3 => *x = f32::NAN,
                        4 => *x = f32::NEG_INFINITY,
                        5 => *x = scale * 1e-6,
                        _ => {}
                    }
                }
                let finite = x.iter().copied().filter(|x| x.is_finite());
                let most = finite.fold(0f32, |most, x| most.max(x.abs()));
                let (words, up) = converted(dot, &x, 2);
                let what = format!("{name} {k} {scale:e}");
                assert_eq!(f64::from(up).log2().fract(), 0.0, "{what}: {up:e} is no power of two");
                let top = f64::from(most) / f64::from(up);
                assert!(top < 4.0 && (most < 1e-37 || top >= 1.0), "{what}: {top}");
                for (i, word) in words.iter().enumerate() {
                    for (half, at) in [(word & 0xffff, 2 * i), (word >> 16, 2 * i + 1)] {
                        let scaled = |&x: &f32| f16_bits((f64::from(x) / f64::from(up)) as f32);
                        let expected = x.get(at).map_or(0, scaled);
                        let nan = x.get(at).is_some_and(|x| x.is_nan());
                        let same = half == u32::from(expected) || nan && half & 0x7fff > 0x7c00;
                        assert!(same, "{what}, term {at}: {half:#x} {expected:#x}");
                    }
                }
            }
        }
    });
}
