//! GFLOP/s of the products on this machine, and what that is a cycle:
//! `cargo run --release --example kernels [workers]`.
//!
//! For tuning tiles and blocks; the project's benchmarks are elsewhere.

use neural_forecast_cpu::counters::Precision;
use neural_forecast_cpu::gemm::{Gemm, Packed, Scratch};
use neural_forecast_cpu::memory::Shared;
use neural_forecast_cpu::{Isa, team::Team};
use std::time::Instant;

/// Cycles of the core in a second: a step of xorshift is six dependent operations of a cycle each
/// on every x86 of this century.
fn clock() -> f64 {
    let (mut best, mut x) = (f64::MAX, 0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..20 {
        let (start, n) = (Instant::now(), 2_000_000);
        for _ in 0..n {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(n));
        std::hint::black_box(x);
    }
    6.0 / best
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let isa = Isa::from_environment()?;
    let wanted: Option<usize> = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let hertz = clock();
    println!(
        "{} at {:.2} GHz | workers, precision, M x N x K, microseconds, GFLOP/s, FLOP a cycle of a \
         core",
        isa.name(),
        hertz / 1e9
    );
    for workers in [1, 2].into_iter().filter(|w| wanted.is_none_or(|n| n == *w)) {
        let mut team = Team::new(workers)?;
        for precision in [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8] {
            for (m, n, k) in [
                (1, 400, 100),
                (1, 800, 200),
                (1, 4000, 1000),
                (2, 400, 100),
                (4, 400, 100),
                (8, 400, 100),
                (32, 400, 100),
                (50, 400, 100),
                (512, 400, 100),
                (32, 4000, 1000),
                (64, 256, 128),
                (64, 128, 256),
                (512, 768, 768),
                (512, 3072, 768),
                (512, 768, 3072),
            ] {
                let (x, w) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
                let mut y = vec![0.0f32; m * n];
                let packed = Packed::new(isa, precision, &w, (n, k), 1, None);
                let (xp, yp) = (Shared(x.as_ptr().cast_mut()), Shared(y.as_mut_ptr()));
                let mut best = f64::MAX;
                let repeats = (2_000_000_000 / (2 * m * n * k)).clamp(3, 2000);
                team.run(|worker| {
                    let (xp, yp) = (xp, yp);
                    let gemm = Gemm::new(xp.0, m, &packed, yp.0);
                    let mut scratch = Scratch::new();
                    for _ in 0..repeats {
                        // SAFETY: `x` and `y` outlive the run and have the product's shape.
                        unsafe { gemm.run(isa, worker, &mut scratch) };
                        worker.barrier();
                    }
                })?;
                for _ in 0..5 {
                    let start = Instant::now();
                    team.run(|worker| {
                        let (xp, yp) = (xp, yp);
                        let gemm = Gemm::new(xp.0, m, &packed, yp.0);
                        let mut scratch = Scratch::new();
                        for _ in 0..repeats {
                            // SAFETY: as above.
                            unsafe { gemm.run(isa, worker, &mut scratch) };
                            worker.barrier();
                        }
                    })?;
                    best = best.min(start.elapsed().as_secs_f64() / repeats as f64);
                }
                let flops = 2.0 * (m * n * k) as f64;
                println!(
                    "{workers} {:4} {m:4} x {n:4} x {k:4} {:9.2} {:7.1} {:6.1}",
                    precision.name(),
                    best * 1e6,
                    flops / best / 1e9,
                    flops / best / hertz / workers as f64
                );
            }
        }
    }
    Ok(())
}
