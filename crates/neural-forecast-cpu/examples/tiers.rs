//! What products reach on each instruction tier of this machine, on one core, as a table for
//! `benches/RESULTS.md`: `cargo run --release --example tiers`; `NF_CPU_ISA` picks one tier.
//!
//! A share is of the bound that applies: the tier's own arithmetic at the peak that this machine
//! has of it, or the weights at the rate of the cache level that holds them, both measured first.
//! In two cases there is none: the peak of bytes below VNNI is not measured, and figures of
//! weights that the tier widens are held against `f32`'s peak.

use neural_forecast_cpu::ceilings::Ceilings;
use neural_forecast_cpu::counters::Precision;
use neural_forecast_cpu::gemm::{Gemm, Packed, Scratch};
use neural_forecast_cpu::isa::ISA_VARIABLE;
use neural_forecast_cpu::{Isa, team::Worker};
use neural_forecast_runtime::device::Precision as Asked;
use std::time::{Duration, Instant};

/// Rows, outputs, terms: steps of three recurrences, a window's input products, a wide
/// feed-forward.
const SHAPES: [(usize, usize, usize); 5] =
    [(1, 400, 100), (1, 800, 200), (1, 4000, 1000), (50, 400, 100), (512, 3072, 768)];
const PRECISIONS: [(Precision, Asked, u64); 4] = [
    (Precision::F32, Asked::F32, 4),
    (Precision::F16, Asked::F16, 2),
    (Precision::Bf16, Asked::Bf16, 2),
    (Precision::Int8, Asked::Int8, 1),
];
/// How long a repeat takes at least, and how many there are; the best counts.
const REPEAT: Duration = Duration::from_millis(4);
const REPEATS: usize = 9;

/// Seconds of one product.
fn time(isa: Isa, precision: Precision, (m, n, k): (usize, usize, usize)) -> f64 {
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
    let (x, w, mut y) = (wave(m * k), wave(n * k), vec![0.0f32; m * n]);
    let packed = Packed::new(isa, precision, &w, (n, k), 1, None);
    let mut scratch = Scratch::new();
    let mut turns = |count: usize| {
        let start = Instant::now();
        for _ in 0..count {
            let gemm = Gemm::new(x.as_ptr(), m, &packed, y.as_mut_ptr());
            // SAFETY: `x` and `y` have the product's shape, and this thread alone uses them.
            unsafe { gemm.run(isa, Worker::alone(), &mut scratch) };
        }
        start.elapsed()
    };
    let mut count = 1;
    while turns(count) < REPEAT {
        count *= 2;
    }
    let best = (0..REPEATS).map(|_| turns(count)).min().unwrap_or_default();
    best.as_secs_f64() / count as f64
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let forced = std::env::var_os(ISA_VARIABLE).is_some_and(|value| !value.is_empty());
    let tiers = if forced { vec![Isa::from_environment()?] } else { Isa::available() };
    let ceilings = Ceilings::measure(1)?;
    println!("{ceilings}");
    print!("| product | weights |");
    tiers.iter().for_each(|isa| print!(" {} |", isa.name()));
    println!("\n|---|---|{}", "---|".repeat(tiers.len()));
    for (m, n, k) in SHAPES {
        for (precision, asked, width) in PRECISIONS {
            print!("| {m} × {n} × {k} | {} |", precision.name());
            for &isa in &tiers {
                let (flops, bytes) = ((2 * m * n * k) as f64, (n * k) as u64 * width);
                let seconds = time(isa, precision, (m, n, k));
                let arithmetic = ceilings.peak(isa, asked).map(|peak| flops / peak.one);
                let level = ceilings.level(bytes as usize, 1);
                let reading = ceilings.reading(level, isa).map(|rate| bytes as f64 / rate.one);
                let share = match (arithmetic, reading) {
                    (Some(a), Some(r)) if a >= r => format!("{:.0}%", 100.0 * a / seconds),
                    (Some(_), Some(r)) => format!("{:.0}% {}", 100.0 * r / seconds, level.name()),
                    _ => "-".to_owned(),
                };
                print!(" {:.0}, {share} |", flops / seconds / 1e9);
            }
            println!();
        }
    }
    Ok(())
}
