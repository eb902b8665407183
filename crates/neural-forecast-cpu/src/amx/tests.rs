//! The kernels on emulated tiles against references in `f64` and in wide integers, and, where the
//! machine has AMX, the instructions against the emulation.

use super::*;
use crate::random::Random;

/// Rows, terms, panels, vectors, and how much wider than needed the strides are.
#[derive(Clone, Copy, Debug)]
struct Size {
    rows: usize,
    terms: usize,
    panels: usize,
    vectors: usize,
    slack: usize,
    pass: usize,
}

/// Inputs and weights as they are and as the tiles want them, and the sums' buffer.
struct Case<A: Arithmetic, N> {
    size: Size,
    /// `[rows, terms]`
    x: Vec<N>,
    /// `[columns, terms]`
    w: Vec<N>,
    input: Vec<u8>,
    input_stride: usize,
    weights: Vec<u32>,
    panel_stride: usize,
    out_stride: usize,
    out_panel_stride: usize,
    _dot: std::marker::PhantomData<A>,
}

/// What the sums' buffer holds before, and whether the sums start from that.
#[derive(Clone, Copy)]
struct Begin<A: Arithmetic> {
    fill: A::Sum,
    accumulate: bool,
}

/// A term's bytes.
trait Term: Copy {
    const BYTES: usize;
    fn input(self) -> [u8; 2];
    fn weight(self) -> [u8; 2];
}

/// bf16, held as the float.
impl Term for f32 {
    const BYTES: usize = 2;
    fn input(self) -> [u8; 2] {
        [(self.to_bits() >> 16) as u8, (self.to_bits() >> 24) as u8]
    }
    fn weight(self) -> [u8; 2] {
        self.input()
    }
}

/// A byte: unsigned as an input, signed as a weight.
impl Term for i32 {
    const BYTES: usize = 1;
    fn input(self) -> [u8; 2] {
        [u8::try_from(self).expect("an unsigned byte"), 0]
    }
    fn weight(self) -> [u8; 2] {
        [i8::try_from(self).expect("a signed byte").cast_unsigned(), 0]
    }
}

impl<A: Arithmetic, N: Term> Case<A, N> {
    fn new(
        size: Size,
        random: &mut Random,
        x: fn(&mut Random) -> N,
        w: fn(&mut Random) -> N,
    ) -> Self {
        let Size { rows, terms, panels, vectors, slack, .. } = size;
        let (steps, width) = (steps_in::<A>(terms), vectors * 16);
        let x: Vec<N> = (0..rows * terms).map(|_| x(random)).collect();
        let w: Vec<N> = (0..panels * width * terms).map(|_| w(random)).collect();
        let input_stride = 64 * (steps + slack);
        let mut input = vec![0xffu8; rows * input_stride];
        for row in 0..rows {
            input[row * input_stride..][..64 * steps].fill(0);
            for k in 0..terms {
                let at = row * input_stride + k * N::BYTES;
                input[at..at + N::BYTES].copy_from_slice(&x[row * terms + k].input()[..N::BYTES]);
            }
        }
        let panel_stride = 16 * steps * width + 16 * slack;
        let mut weights = vec![0u32; panels * panel_stride];
        for column in 0..panels * width {
            for k in 0..terms {
                let (word, byte) = (k / A::TERMS, k % A::TERMS * N::BYTES);
                let at = column / width * panel_stride + word * width + column % width;
                let mut bytes = weights[at].to_le_bytes();
                bytes[byte..byte + N::BYTES]
                    .copy_from_slice(&w[column * terms + k].weight()[..N::BYTES]);
                weights[at] = u32::from_le_bytes(bytes);
            }
        }
        let out_panel_stride = width + slack;
        let out_stride = panels * out_panel_stride + slack;
        let _dot = std::marker::PhantomData;
        Case {
            size,
            x,
            w,
            input,
            input_stride,
            weights,
            panel_stride,
            out_stride,
            out_panel_stride,
            _dot,
        }
    }

    /// The sums of rows `from..to`. The buffer holds `fill` before: what the sums start from where
    /// `accumulate`, and what must still lie between rows and panels afterwards.
    fn run<T: Tiles>(
        &self,
        tiles: &mut T,
        (from, to): (usize, usize),
        begin: Begin<A>,
    ) -> Vec<A::Sum> {
        let Size { panels, vectors, terms, pass, .. } = self.size;
        let (rows, width) = (to - from, vectors * 16);
        let mut out = vec![begin.fill; (rows + 1) * self.out_stride];
        let product = Product::<A> {
            rows,
            steps: steps_in::<A>(terms),
            input: self.input[from * self.input_stride..].as_ptr(),
            input_stride: self.input_stride,
            panels,
            vectors,
            weights: self.weights.as_ptr(),
            panel_stride: self.panel_stride,
            out: out.as_mut_ptr(),
            out_stride: self.out_stride,
            out_panel_stride: self.out_panel_stride,
            accumulate: begin.accumulate,
            pass,
        };
        // SAFETY: the buffers were made for these sizes and strides.
        unsafe { product.run(tiles) };
        let mut sums = Vec::with_capacity(rows * panels * width);
        for (i, sum) in out.iter().enumerate() {
            let (row, at) = (i / self.out_stride, i % self.out_stride);
            let (panel, column) = (at / self.out_panel_stride, at % self.out_panel_stride);
            if row < rows && panel < panels && column < width {
                sums.push(*sum);
            } else {
                assert_eq!(*sum, begin.fill, "outside, {:?}", self.size);
            }
        }
        sums
    }

    /// Input row and weight column of sum `i` of all.
    fn terms_of(&self, i: usize) -> impl Iterator<Item = (N, N)> + Clone {
        let (terms, columns) = (self.size.terms, self.columns());
        let x = &self.x[i / columns * terms..][..terms];
        let w = &self.w[i % columns * terms..][..terms];
        x.iter().copied().zip(w.iter().copied())
    }

    fn columns(&self) -> usize {
        self.size.panels * self.size.vectors * 16
    }
}

fn sizes() -> Vec<Size> {
    let mut sizes = Vec::new();
    for (i, rows) in [1, 2, 4, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 97].into_iter().enumerate() {
        for (j, terms) in [0, 1, 31, 32, 33, 63, 64, 65, 131, 257].into_iter().enumerate() {
            let vectors = 1 + (i + j) % 4;
            let panels = [1, 2, 3][(i + 2 * j) % 3];
            let pass = [1, 2, 3, 100][(3 * i + j) % 4];
            sizes.push(Size { rows, terms, panels, vectors, slack: (i + j) % 3, pass });
        }
    }
    for vectors in 1..=4 {
        for panels in 1..=5 {
            sizes.push(Size { rows: 19, terms: 70, panels, vectors, slack: 1, pass: 2 });
            sizes.push(Size { rows: 3, terms: 70, panels, vectors, slack: 0, pass: 5 });
        }
    }
    sizes
}

fn bf16(random: &mut Random) -> f32 {
    f32::from_bits(random.float().to_bits() & 0xffff_0000)
}

fn small_integer(random: &mut Random) -> f32 {
    (random.bits() % 17) as f32 - 8.0
}

fn unsigned(random: &mut Random) -> i32 {
    (random.bits() % 256) as i32
}

fn signed(random: &mut Random) -> i32 {
    (random.bits() % 256) as i32 - 128
}

#[test]
fn bf16_sums_are_those_of_f64() {
    let mut random = Random::new("amx bf16");
    for size in sizes() {
        let case = Case::<Bf16, f32>::new(size, &mut random, bf16, |r| 4.0 * bf16(r));
        let begin = Begin { fill: 0.75, accumulate: size.rows % 2 == 0 };
        let mut tiles = Emulated::new();
        let sums = case.run(&mut tiles, (0, size.rows), begin);
        assert!(!tiles.configured(), "released");
        // 16 fused multiply-adds and one sum of two in a step, one addition a step.
        let roundings = (17 + steps_in::<Bf16>(size.terms)) as f64;
        for (i, sum) in sums.iter().enumerate() {
            let products = case.terms_of(i).map(|(x, w)| f64::from(x) * f64::from(w));
            let begin = if begin.accumulate { f64::from(begin.fill) } else { 0.0 };
            let exact = begin + products.clone().sum::<f64>();
            let magnitude = begin + products.map(f64::abs).sum::<f64>();
            let tolerance = roundings * magnitude * 2.0f64.powi(-24);
            let difference = (f64::from(*sum) - exact).abs();
            assert!(difference <= tolerance, "{size:?}, sum {i}: {sum}, not {exact}");
        }
    }
}

#[test]
fn bf16_sums_of_small_integers_are_exact() {
    let mut random = Random::new("amx bf16 integers");
    for size in sizes() {
        let case = Case::<Bf16, f32>::new(size, &mut random, small_integer, small_integer);
        let begin = Begin { fill: -5.0, accumulate: true };
        let sums = case.run(&mut Emulated::new(), (0, size.rows), begin);
        for (i, sum) in sums.iter().enumerate() {
            let exact = case.terms_of(i).map(|(x, w)| x as i64 * w as i64).sum::<i64>() - 5;
            assert_eq!(*sum, exact as f32, "{size:?}, sum {i}");
        }
    }
}

#[test]
fn int8_sums_are_exact_at_the_extremes_too() {
    let mut random = Random::new("amx int8");
    for (n, size) in sizes().into_iter().enumerate() {
        let case = match n % 5 {
            0 => Case::<Int8, i32>::new(size, &mut random, |_| 255, |_| -128),
            1 => Case::<Int8, i32>::new(size, &mut random, |_| 255, |_| 127),
            _ => Case::<Int8, i32>::new(size, &mut random, unsigned, signed),
        };
        let begin = Begin { fill: -7, accumulate: n % 2 == 0 };
        let sums = case.run(&mut Emulated::new(), (0, size.rows), begin);
        for (i, sum) in sums.iter().enumerate() {
            let products = case.terms_of(i).map(|(x, w)| i64::from(x) * i64::from(w));
            let exact = products.sum::<i64>() - if begin.accumulate { 7 } else { 0 };
            assert_eq!(i64::from(*sum), exact, "{size:?}, sum {i}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_rows_of_the_call_or_on_the_passes() {
    let mut random = Random::new("amx bits");
    let size = Size { rows: 83, terms: 203, panels: 3, vectors: 3, slack: 0, pass: 100 };
    let mut case = Case::<Bf16, f32>::new(size, &mut random, bf16, bf16);
    let begin = Begin { fill: 0.0, accumulate: false };
    let columns = case.columns();
    let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
    let all = bits(&case.run(&mut Emulated::new(), (0, 83), begin));
    for (from, to) in [(0, 1), (1, 3), (5, 21), (7, 24), (16, 48), (3, 80), (82, 83)] {
        for pass in [1, 3, 7, 100] {
            case.size.pass = pass;
            let some = bits(&case.run(&mut Emulated::new(), (from, to), begin));
            assert_eq!(some, all[from * columns..to * columns], "rows {from}..{to}, {pass} steps");
        }
    }
}

#[test]
fn a_product_takes_two_configurations_at_most_and_no_row_too_many() {
    let mut random = Random::new("amx work");
    for size in sizes() {
        let case = Case::<Bf16, f32>::new(size, &mut random, bf16, bf16);
        let mut tiles = Emulated::new();
        case.run(&mut tiles, (0, size.rows), Begin { fill: 0.0, accumulate: false });
        let executed = tiles.executed();
        let wanted = usize::from(size.rows >= 32) + usize::from(size.rows % 32 > 0);
        assert_eq!(executed.configurations, wanted, "{size:?}");
        let multiplications = steps_in::<Bf16>(size.terms) * size.panels * size.vectors;
        assert_eq!(executed.dot_rows, multiplications * size.rows, "{size:?}");
        assert_eq!(executed.dots, multiplications * size.rows.div_ceil(16), "{size:?}");
    }
}

/// Where the machine has no AMX there is no token to run the instructions with, and what is left to
/// check is that.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_instructions_agree_with_the_emulation_where_there_are_any() {
    let Some(mut amx) = Amx::new() else {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let usable = ["amx_tile", "amx_bf16", "amx_int8"].iter().all(|flag| flags.contains(flag));
        assert!(!usable, "the system lists AMX, so there must be a token");
        return;
    };
    let mut random = Random::new("amx instructions");
    for size in sizes() {
        let rows = (0, size.rows);
        let case = Case::<Bf16, f32>::new(size, &mut random, bf16, bf16);
        let begin = Begin { fill: 0.5, accumulate: size.rows % 2 == 0 };
        let found = case.run(&mut amx, rows, begin);
        let expected = case.run(&mut Emulated::new(), rows, begin);
        let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "bf16, {size:?}");
        let case = Case::<Int8, i32>::new(size, &mut random, unsigned, signed);
        let begin = Begin { fill: 3, accumulate: size.rows % 2 == 0 };
        let expected = case.run(&mut Emulated::new(), rows, begin);
        assert_eq!(case.run(&mut amx, rows, begin), expected, "int8, {size:?}");
    }
}
