//! The tile instructions of this machine against their emulation, then what they reach:
//! `cargo run --release --example amx_check [compare]`; with `compare`, no rates.
//!
//! One command that proves the AMX kernels on a processor. Fails where a bit differs, and where
//! there is no AMX.

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    check::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    eprintln!("AMX exists on x86-64 only");
    std::process::ExitCode::FAILURE
}

#[cfg(target_arch = "x86_64")]
mod check {
    use neural_forecast_cpu::amx::{
        Amx, Arithmetic, Bf16, Emulated, Int8, Product, TILE_ROWS, TileConfig, Tiles, steps_in,
    };
    use std::process::ExitCode;
    use std::time::Instant;

    struct Random(u64);

    impl Random {
        fn word(&mut self) -> u32 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as u32
        }
    }

    /// How the words of inputs and weights are drawn.
    type Words = fn(&mut Random) -> u32;

    /// Two bf16 of magnitude 2⁻⁸ to 2⁸.
    fn moderate(random: &mut Random) -> u32 {
        let half = |bits: u32| (bits & 0x807f) | ((119 + (bits >> 7 & 15)) << 7);
        let bits = random.word();
        half(bits & 0xffff) | half(bits >> 16) << 16
    }

    /// Two bf16 at the least normal magnitudes and below, whose products vanish or barely do not.
    fn tiny(random: &mut Random) -> u32 {
        let half = |bits: u32| (bits & 0x807f) | ((bits >> 7 & 1) * 63 + (bits >> 8 & 1)) << 7;
        let bits = random.word();
        half(bits & 0xffff) | half(bits >> 16) << 16
    }

    /// Any bits: infinities, NaNs, subnormals too.
    fn any(random: &mut Random) -> u32 {
        random.word()
    }

    /// Four bytes of 0 to 127.
    fn seven_bits(random: &mut Random) -> u32 {
        random.word() & 0x7f7f_7f7f
    }

    /// Sums of a product, how many differ, and the first that does beside what it should be.
    struct Differences<A: Arithmetic> {
        sums: usize,
        wrong: usize,
        first: Option<(A::Sum, A::Sum)>,
    }

    /// Runs one random product both ways.
    fn differ<A: Arithmetic>(
        amx: &mut Amx,
        random: &mut Random,
        (inputs, weights): (Words, Words),
        same: fn(A::Sum, A::Sum) -> bool,
        begin: fn(u32) -> A::Sum,
    ) -> Differences<A> {
        let mut below = |n: u32| (random.word() % n) as usize;
        let (rows, steps, panels, vectors) = (1 + below(70), below(6), 1 + below(3), 1 + below(4));
        let (pass, accumulate) = (1 + below(4), below(2) == 1);
        let (words, width) = (16 * steps, 16 * vectors);
        let x: Vec<u32> = (0..rows * words).map(|_| inputs(random)).collect();
        let w: Vec<u32> = (0..panels * words * width).map(|_| weights(random)).collect();
        let mut found: Vec<A::Sum> =
            (0..rows * panels * width).map(|_| begin(inputs(random))).collect();
        let mut expected = found.clone();
        let mut product = Product::<A> {
            rows,
            steps,
            input: x.as_ptr().cast(),
            input_stride: 4 * words,
            panels,
            vectors,
            weights: w.as_ptr(),
            panel_stride: words * width,
            out: found.as_mut_ptr(),
            out_stride: panels * width,
            out_panel_stride: width,
            accumulate,
            pass,
        };
        // SAFETY: the buffers were made for these sizes and strides.
        unsafe {
            product.run(amx);
            product.out = expected.as_mut_ptr();
            product.run(&mut Emulated::new());
        }
        let wrong = found.iter().zip(&expected).filter(|(a, b)| !same(**a, **b));
        let first = wrong.clone().next().map(|(a, b)| (*a, *b));
        Differences { sums: found.len(), wrong: wrong.count(), first }
    }

    fn same_float(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    /// Compares random products; whether all agree.
    fn compare<A: Arithmetic>(
        name: &str,
        amx: &mut Amx,
        random: &mut Random,
        words: (Words, Words),
        same: fn(A::Sum, A::Sum) -> bool,
        begin: fn(u32) -> A::Sum,
    ) -> bool {
        let (mut sums, mut wrong, mut first) = (0, 0, None);
        for _ in 0..100 {
            let found = differ::<A>(amx, random, words, same, begin);
            sums += found.sums;
            wrong += found.wrong;
            first = first.or(found.first);
        }
        println!("{name}: {sums} sums in 100 products, {wrong} differ from the emulation");
        if let Some((found, expected)) = first {
            println!("    for example {found:?} instead of {expected:?}");
        }
        wrong == 0 && sums > 0
    }

    fn all_agree(amx: &mut Amx, random: &mut Random) -> bool {
        let word = |bits: u32| f32::from_bits(bits & 0xffff_0000);
        let byte = |a: i32, b: i32| a == b;
        let integer = |bits: u32| bits.cast_signed();
        let agreed = [
            compare::<Bf16>("bf16", amx, random, (moderate, moderate), same_float, word),
            compare::<Bf16>("bf16, tiny", amx, random, (tiny, tiny), same_float, word),
            compare::<Bf16>("bf16, any bits", amx, random, (any, any), same_float, word),
            compare::<Int8>("int8, weights 0..=127", amx, random, (any, seven_bits), byte, integer),
            compare::<Int8>("int8, any weights", amx, random, (any, any), byte, integer),
        ];
        agreed.iter().all(|agreed| *agreed)
    }

    /// Multiplications of full tiles with everything in registers: their rate in operations a
    /// second.
    fn peak<A: Arithmetic>(amx: &mut Amx) -> f64 {
        const REPEATS: usize = 1_000_000;
        let mut best = f64::MAX;
        for _ in 0..5 {
            // SAFETY: all tiles are configured, full, and the three of each operation differ.
            unsafe {
                amx.configure(&TileConfig::with_rows([TILE_ROWS as u8; 8]));
                let start = Instant::now();
                for _ in 0..REPEATS {
                    A::dot::<Amx, 0, 4, 6>(amx);
                    A::dot::<Amx, 1, 4, 7>(amx);
                    A::dot::<Amx, 2, 5, 6>(amx);
                    A::dot::<Amx, 3, 5, 7>(amx);
                }
                best = best.min(start.elapsed().as_secs_f64());
            }
            amx.release();
        }
        (REPEATS * 4 * 2 * 16 * 16 * 16 * A::TERMS) as f64 / best
    }

    /// The rate of one product in operations a second.
    fn rate<A: Arithmetic>(amx: &mut Amx, (rows, terms, columns): (usize, usize, usize)) -> f64 {
        let (steps, vectors) = (steps_in::<A>(terms), 2);
        let (words, width) = (16 * steps, 16 * vectors);
        let panels = columns.div_ceil(width);
        // Whole cache lines, for loads that do not cross them.
        let x = vec![Line([0; 16]); rows * steps];
        let w = vec![Line([0; 16]); panels * words * vectors];
        let mut sums = vec![A::Sum::default(); rows * panels * width];
        let product = Product::<A> {
            rows,
            steps,
            input: x.as_ptr().cast(),
            input_stride: 64 * steps,
            panels,
            vectors,
            weights: w.as_ptr().cast(),
            panel_stride: words * width,
            out: sums.as_mut_ptr(),
            out_stride: panels * width,
            out_panel_stride: width,
            accumulate: false,
            pass: Product::<A>::steps_in_cache(amx.l1()),
        };
        let operations = 2 * rows * terms * columns;
        let repeats = (4_000_000_000 / operations).clamp(3, 100_000);
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            for _ in 0..repeats {
                // SAFETY: the buffers were made for these sizes and strides.
                unsafe { product.run(amx) };
            }
            best = best.min(start.elapsed().as_secs_f64() / repeats as f64);
        }
        std::hint::black_box(&mut sums);
        operations as f64 / best
    }

    /// A cache line of words.
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Line(#[allow(dead_code)] [u32; 16]);

    fn rates<A: Arithmetic>(name: &str, amx: &mut Amx) {
        println!("{name}: {:.0} GFLOP/s in registers", peak::<A>(amx) * 1e-9);
        for (rows, terms, columns) in [
            (1, 100, 400),
            (1, 200, 800),
            (1, 1000, 4000),
            (16, 128, 512),
            (32, 128, 512),
            (64, 256, 128),
            (512, 768, 768),
            (512, 3072, 768),
        ] {
            let rate = rate::<A>(amx, (rows, terms, columns)) * 1e-9;
            println!("{name}: {rows} rows, {terms} terms, {columns} columns: {rate:.0} GFLOP/s");
        }
    }

    pub(super) fn main() -> ExitCode {
        let Some(mut amx) = Amx::new() else {
            eprintln!("no AMX with bf16 and int8, or the system does not lend it to this process");
            return ExitCode::FAILURE;
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let given = std::env::var("NF_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| now.map_or(1, |now| now.as_nanos() as u64));
        println!("NF_SEED={seed}");
        let agree = all_agree(&mut amx, &mut Random(seed));
        if std::env::args().nth(1).as_deref() != Some("compare") {
            rates::<Bf16>("bf16", &mut amx);
            rates::<Int8>("int8", &mut amx);
        }
        if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
