//! Where the time of an encoder goes on this machine, op by op: `cargo run --release --example
//! encoder [small|guide|patchtst] [--bf16 | --int8] [--workers N]`. One line an op: how often a
//! forward pass has it, microseconds as measured (the least of many repeats, weights in the cache
//! as between neighbouring steps), and how much of the multiply-add peak of this core that is,
//! which the example measures first.
//!
//! For tuning this crate; the project's benchmarks are elsewhere.

use neural_forecast_cpu::attention::{Attention, AttentionScratch, Call, View};
use neural_forecast_cpu::counters::Precision;
use neural_forecast_cpu::dot::bf16_bits;
use neural_forecast_cpu::gemm::{Activation, Gemm, Packed, Scratch};
use neural_forecast_cpu::memory::{Numbers, RowMap, Shared};
use neural_forecast_cpu::norm::{Kind, Norm};
use neural_forecast_cpu::simd::{Kernel, Simd};
use neural_forecast_cpu::team::{Team, Worker};
use neural_forecast_cpu::{Isa, vecmath};
use std::time::{Duration, Instant};

/// Independent multiply-adds, as many as hide each other's latency.
struct Peak(usize);

impl Kernel for Peak {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = std::hint::black_box((0.999, 1e-3));
        let (a, b) = (s.splat(a), s.splat(b));
        let mut acc = [s.splat(1.0); 12];
        for _ in 0..self.0 {
            for acc in &mut acc {
                *acc = s.fma(*acc, a, b);
            }
        }
        acc.into_iter().map(|acc| s.sum(acc)).sum()
    }
}

/// Functions of each number of a row.
struct Each<'a>(&'a mut [f32], bool);

impl Kernel for Each<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.0.chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk holds a vector.
            unsafe {
                let v = s.load(x.as_ptr());
                let y = if self.1 { vecmath::gelu(s, v) } else { vecmath::exp(s, v) };
                // Kept out of the next repeat's input: the function is timed on one distribution.
                s.store(x.as_mut_ptr(), s.fma(y, s.splat(0.0), v));
            }
        }
    }
}

/// The least time of many repeats.
fn least(mut once: impl FnMut()) -> f64 {
    let (mut least, begin) = (Duration::MAX, Instant::now());
    let mut repeats = 0;
    while repeats < 5 || (repeats < 3000 && begin.elapsed() < Duration::from_millis(300)) {
        let start = Instant::now();
        once();
        least = least.min(start.elapsed());
        repeats += 1;
    }
    least.as_secs_f64()
}

struct Shape {
    name: &'static str,
    steps: usize,
    features: usize,
    d: usize,
    heads: usize,
    ff: usize,
    layers: usize,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "small", steps: 64, features: 16, d: 128, heads: 8, ff: 256, layers: 3 },
    Shape { name: "guide", steps: 512, features: 768, d: 768, heads: 12, ff: 3072, layers: 6 },
    // The default of neuralforecast: 12 patches of 16 of a window of 104.
    Shape { name: "patchtst", steps: 12, features: 16, d: 128, heads: 16, ff: 256, layers: 3 },
];

struct Bench {
    isa: Isa,
    precision: Precision,
    team: Team,
    /// Operations a second of the workers together.
    peak: f64,
    total: f64,
}

impl Bench {
    fn line(&mut self, op: &str, times: usize, flops: f64, seconds: f64) {
        println!(
            "{op:22} x {times:2} {:10.2} µs each {:10.2} µs {:6.1}% of peak",
            seconds * 1e6,
            seconds * 1e6 * times as f64,
            100.0 * flops / seconds / self.peak
        );
        self.total += seconds * times as f64;
    }

    fn product(
        &mut self,
        (op, times): (&str, usize),
        (rows, n, k): (usize, usize, usize),
        activation: Activation,
        residual: bool,
        (from, to): (Numbers, Numbers),
    ) {
        let x: Vec<f32> = (0..rows * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let w: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.73).sin() * 0.1).collect();
        let b = vec![0.1f32; n];
        let packed = Packed::new(self.isa, self.precision, &w, (n, k), 1, Some(&b));
        // As in a program: what only products read is kept as bf16 where they round it anyway.
        let floats = |able: bool, asked| if able { asked } else { Numbers::Floats };
        let x_numbers = floats(packed.takes_halves(), from);
        let y_numbers = floats(packed.gives_halves() && packed.takes_halves(), to);
        let (mut y, r) = (vec![0.0f32; rows * n], vec![0.5f32; rows * n]);
        let mut scratch: Vec<_> = (0..self.team.workers()).map(|_| Scratch::new()).collect();
        let scratch: Vec<_> = scratch.iter_mut().map(|s| std::ptr::from_mut(s) as usize).collect();
        let (isa, to) = (self.isa, Shared(y.as_mut_ptr()));
        let (x, r) = (Shared(x.as_ptr().cast_mut()), Shared(r.as_ptr().cast_mut()));
        let seconds = least(|| {
            let job = |worker: Worker<'_>| {
                let gemm = Gemm {
                    activation: activation.after(&packed),
                    x_numbers,
                    y_numbers,
                    residual: residual.then(|| (r.get().cast_const(), RowMap::dense(n))),
                    ..Gemm::new(x.get(), rows, &packed, to.get())
                };
                let scratch = scratch[worker.index()] as *mut Scratch;
                // SAFETY: arrays have the product's shape; every worker has its own scratch.
                unsafe { gemm.run(isa, worker, &mut *scratch) }
            };
            self.team.run(job).expect("no worker panics");
        });
        self.line(op, times, 2.0 * (rows * n * k) as f64, seconds);
    }

    fn norm(&mut self, times: usize, rows: usize, d: usize) {
        let norm = Norm {
            kind: Kind::Layer { groups: 1 },
            eps: 1e-5,
            scale: Some(vec![1.0; d]),
            shift: Some(vec![0.0; d]),
        };
        let x: Vec<f32> = (0..rows * d).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut y = vec![0.0f32; rows * d];
        let (x, y, isa) = (Shared(x.as_ptr().cast_mut()), Shared(y.as_mut_ptr()), self.isa);
        let low = Packed::new(isa, self.precision, &[], (0, 0), 1, None).takes_halves();
        let numbers = if low { Numbers::Halves } else { Numbers::Floats };
        let seconds = least(|| {
            let job = |worker: Worker<'_>| {
                let at = (x.get().cast_const(), y.get(), numbers);
                // SAFETY: both hold the rows.
                unsafe { norm.run(isa, at, d, worker.share(rows), worker) }
            };
            self.team.run(job).expect("no worker panics");
        });
        self.line("norm", times, 8.0 * (rows * d) as f64, seconds);
    }

    fn attention(&mut self, op: &str, times: usize, shape: &Shape, queries: usize) {
        let (head, keys) = (shape.d / shape.heads, shape.steps);
        let attention = Attention {
            isa: self.isa,
            precision: self.precision,
            heads: shape.heads,
            head,
            head_v: head,
            scales: vec![1.0 / (head as f32).sqrt()],
            causal: false,
            mean_heads: false,
            bias: None,
            rope: None,
            qk_norm: None,
            query_scale: None,
        };
        let mut x: Vec<f32> = (0..keys * 3 * shape.d).map(|i| (i as f32 * 0.37).sin()).collect();
        let numbers = match attention.takes_halves() {
            true => Numbers::Halves,
            false => Numbers::Floats,
        };
        if numbers == Numbers::Halves {
            for i in 0..x.len() / 2 {
                x[i] = f32::from_bits(bf16_bits(x[2 * i]) | bf16_bits(x[2 * i + 1]) << 16);
            }
        }
        let mut y = vec![0.0f32; queries * shape.d];
        let mut scratch: Vec<_> =
            (0..self.team.workers()).map(|_| attention.scratch(1, queries, keys, false)).collect();
        let scratch: Vec<_> = scratch.iter_mut().map(|s| std::ptr::from_mut(s) as usize).collect();
        let (x, y) = (Shared(x.as_ptr().cast_mut()), Shared(y.as_mut_ptr()));
        let seconds = least(|| {
            let job = |worker: Worker<'_>| {
                let view = |part: usize| {
                    let (at, stride) = (x.get().cast_const(), 3 * shape.d);
                    // SAFETY: each part begins inside the rows.
                    View { at: unsafe { numbers.at(at, part * shape.d) }, stride, numbers }
                };
                let call = Call {
                    queries: &[view(0)],
                    keys: &[view(1)],
                    values: view(2),
                    batch: 1,
                    queries_each: queries,
                    keys_each: keys,
                    key_mask: None,
                    groups: None,
                    ring: None,
                    y: y.get(),
                    y_numbers: numbers,
                };
                let scratch = scratch[worker.index()] as *mut AttentionScratch;
                // SAFETY: arrays have the call's shape; every worker has its own scratch.
                unsafe { attention.run(&call, worker, &mut *scratch) }
            };
            self.team.run(job).expect("no worker panics");
        });
        self.line(op, times, 4.0 * (queries * keys * shape.d) as f64, seconds);
    }

    fn each(&mut self, op: &str, n: usize, gelu: bool) {
        let mut x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 3.0 - 1.0).collect();
        let isa = self.isa;
        let seconds = least(|| isa.run(Each(&mut x, gelu)));
        println!("{op:22}      {:10.3} ns a number, one worker", seconds * 1e9 / n as f64);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let workers = arguments.iter().position(|a| a == "--workers");
    let workers = workers.and_then(|i| arguments.get(i + 1)?.parse().ok()).unwrap_or(1);
    let asked = |flag: &str| arguments.iter().any(|a| a == flag);
    let precision = match () {
        () if asked("--bf16") => Precision::Bf16,
        () if asked("--int8") => Precision::Int8,
        () => Precision::F32,
    };
    let isa = Isa::from_environment()?;
    let rounds = 20_000;
    let mut sum = 0.0;
    let seconds = least(|| sum += isa.run(Peak(std::hint::black_box(rounds))));
    let one = (rounds * 12 * isa.lanes() * 2) as f64 / seconds;
    println!("{}: {:.1} GFLOP/s a core ({sum:.0})", isa.name(), one / 1e9);
    for shape in &SHAPES {
        let named = arguments.first().filter(|a| !a.starts_with("--"));
        if named.is_some_and(|a| a != shape.name) {
            continue;
        }
        let (t, d, ff, l) = (shape.steps, shape.d, shape.ff, shape.layers);
        let team = Team::new(workers)?;
        let peak = one * team.workers() as f64;
        let mut b = Bench { isa, precision, team, peak, total: 0.0 };
        println!("{}, {} workers, {}", shape.name, workers, precision.name());
        let plain = Activation::Identity;
        let (floats, halves) = (Numbers::Floats, Numbers::Halves);
        let (own, both, taken) = ((floats, floats), (halves, halves), (halves, floats));
        b.product(("embedding", 1), (t, d, shape.features), plain, false, own);
        b.norm(2 * l - 1, t, d);
        b.product(("query, key, value", l - 1), (t, 3 * d, d), plain, false, both);
        b.product(("key, value (last)", 1), (t, 2 * d, d), plain, false, both);
        b.attention("attention", l - 1, shape, t);
        b.attention("attention, one query", 1, shape, 1);
        b.product(("output + residual", l - 1), (t, d, d), plain, true, taken);
        b.product(("up + GELU", l - 1), (t, ff, d), Activation::Gelu, false, both);
        b.product(("up alone", 0), (t, ff, d), plain, false, both);
        b.product(("down + residual", l - 1), (t, d, ff), plain, true, taken);
        b.product(("one row: output", 2), (1, d, d), plain, true, taken);
        b.product(("one row: up + GELU", 1), (1, ff, d), Activation::Gelu, false, both);
        b.product(("one row: down", 1), (1, d, ff), plain, true, taken);
        println!("{:22}      {:10.2} µs", "sum", b.total * 1e6);
        b.each("GELU", 4096, true);
        b.each("exp", 4096, false);
    }
    Ok(())
}
