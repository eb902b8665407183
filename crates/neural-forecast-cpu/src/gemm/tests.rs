//! Products in f32 arithmetic against sums in `f64` that share no code with them.

use super::*;
use crate::counters::Precision;
use crate::dot::{Dot, bf16_bits};
use crate::random::Random;
use crate::team::Team;

/// Sums in `f64`, one after another: shares nothing with the tiles.
pub(super) fn reference(x: &[f32], w: &[f32], b: &[f32], n: usize, k: usize) -> Vec<f64> {
    let rows = x.len().checked_div(k).unwrap_or(1);
    let mut y = Vec::with_capacity(rows * n);
    for r in 0..rows {
        for j in 0..n {
            let terms = (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[j * k + i]));
            y.push(terms.sum::<f64>() + f64::from(b[j]));
        }
    }
    y
}

pub(super) fn close(found: &[f32], expected: &[f64], k: usize, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    // A sum of k products of numbers below 1 in f32: rounding grows like k in the worst case.
    let bound = 1e-6 * (k as f64).sqrt().max(1.0) * 4.0;
    for (i, (&y, &e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(y) - e).abs();
        assert!(error <= bound * e.abs().max(1.0), "{what}: [{i}] is {y}, expected {e}");
    }
}

pub(super) fn product(isa: Isa, workers: usize, w: &Packed, x: &[f32], rows: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * w.outputs()];
    let gemm = Gemm::new(x.as_ptr(), rows, w, y.as_mut_ptr());
    let shared = (crate::memory::Shared(gemm.x.cast_mut()), crate::memory::Shared(gemm.y));
    let mut team = Team::new(workers).unwrap();
    team.run(|worker| {
        let (x, y) = (shared.0, shared.1);
        let gemm = Gemm::new(x.0, rows, w, y.0);
        // SAFETY: `x` and `y` outlive the run and have the product's shape.
        unsafe { gemm.run(isa, worker, &mut Scratch::new()) }
    })
    .unwrap();
    y
}

pub(super) const SIZES: [(usize, usize, usize); 22] = [
    (1, 1, 1),
    (1, 5, 3),
    (1, 32, 100),
    (1, 400, 100),
    (2, 33, 7),
    (3, 129, 64),
    (4, 31, 65),
    (5, 1, 1),
    (5, 17, 2),
    (12, 32, 384),
    (13, 48, 385),
    (11, 47, 383),
    (23, 7, 131),
    (25, 97, 11),
    (50, 400, 100),
    (1, 64, 1000),
    (7, 96, 1000),
    (260, 33, 20),
    (37, 130, 770),
    (0, 5, 5),
    (5, 5, 0),
    (1, 5, 0),
];

#[test]
fn every_tier_agrees_with_the_sums() {
    let mut random = Random::new("gemm");
    for isa in Isa::available() {
        for (rows, n, k) in SIZES {
            let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
            let packed = Packed::new(isa, Precision::F32, &w, (n, k), 1, Some(&b));
            let y = product(isa, 2, &packed, &x, rows);
            let mut expected = reference(&x, &w, &b, n, k);
            if k == 0 {
                expected = (0..rows * n).map(|i| f64::from(b[i % n])).collect();
            }
            close(&y, &expected, k, &format!("{} {rows}x{n}x{k}", isa.name()));
        }
    }
}

#[test]
fn widened_bf16_weights_are_rounded_weights() {
    let mut random = Random::new("gemm bf16");
    let widens = |isa: &Isa| Dot::of(*isa, Precision::Bf16).is_none();
    for isa in Isa::available().into_iter().filter(widens) {
        for (rows, n, k) in SIZES {
            let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
            let rounded: Vec<f32> = w.iter().map(|&w| f32::from_bits(bf16_bits(w) << 16)).collect();
            let half = Packed::new(isa, Precision::Bf16, &w, (n, k), 1, Some(&b));
            let full = Packed::new(isa, Precision::F32, &rounded, (n, k), 1, Some(&b));
            let (half, full) = (product(isa, 1, &half, &x, rows), product(isa, 1, &full, &x, rows));
            assert_eq!(half, full, "{} {rows}x{n}x{k}", isa.name());
        }
    }
}

#[test]
fn bits_do_not_depend_on_batch_or_workers() {
    let mut random = Random::new("gemm batch");
    for isa in Isa::available() {
        for (rows, n, k) in [(29, 70, 1000), (300, 33, 129), (6, 200, 50)] {
            let (x, w) = (random.floats(rows * k), random.floats(n * k));
            let packed = Packed::new(isa, Precision::F32, &w, (n, k), 1, None);
            let all = product(isa, 1, &packed, &x, rows);
            assert_eq!(all, product(isa, 2, &packed, &x, rows));
            for r in 0..rows {
                let one = product(isa, 1, &packed, &x[r * k..(r + 1) * k], 1);
                assert_eq!(one, all[r * n..(r + 1) * n], "row {r} on {}", isa.name());
            }
        }
    }
}

#[test]
fn epilogues_follow_their_definition() {
    let mut random = Random::new("gemm epilogue");
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for isa in Isa::available() {
        for (rows, n, k) in [(1, 10, 6), (3, 64, 33), (14, 50, 400), (40, 37, 1000)] {
            let (x, w, b) =
                (random.floats(rows * k), random.floats(2 * n * k), random.floats(2 * n));
            let r = random.floats(rows * n);
            let sums = reference(&x, &w, &b, 2 * n, k);
            let packed = Packed::new(isa, Precision::F32, &w, (2 * n, k), 2, Some(&b));
            let mut y = vec![f32::NAN; rows * n];
            let gemm = Gemm {
                y_map: RowMap::dense(n),
                activation: Activation::Elu { alpha: 1.0, scale: 1.0 },
                gate: Some(Activation::Sigmoid),
                residual: Some((r.as_ptr(), RowMap::dense(n))),
                ..Gemm::new(x.as_ptr(), rows, &packed, y.as_mut_ptr())
            };
            // SAFETY: all arrays have the product's shape.
            unsafe { gemm.run(isa, Worker::alone(), &mut Scratch::new()) }
            let expected: Vec<f64> = (0..rows * n)
                .map(|i| {
                    let at = i / n * 2 * n + i % n;
                    let a = sums[at];
                    let elu = if a < 0.0 { a.exp_m1() } else { a };
                    elu * sigmoid(sums[at + n]) + f64::from(r[i])
                })
                .collect();
            close(&y, &expected, k, &format!("{} {rows}x{n}x{k}", isa.name()));
        }
    }
}

#[test]
fn rows_may_be_steps_of_sequences() {
    let mut random = Random::new("gemm rows");
    for isa in Isa::available() {
        let (batch, steps, k, n) = (5, 7, 10, 40);
        let (x, w) = (random.floats(batch * steps * k), random.floats(n * k));
        let packed = Packed::new(isa, Precision::F32, &w, (n, k), 1, None);
        let all = product(isa, 1, &packed, &x, batch * steps);
        let (from, len) = (2, 3);
        let mut y = vec![f32::NAN; batch * steps * n];
        let gemm = Gemm {
            x_map: RowMap::sequences(len, k, steps * k),
            y_map: RowMap::sequences(len, n, steps * n),
            // SAFETY: step `from` exists in input and output.
            ..unsafe {
                let y = y.as_mut_ptr().add(from * n);
                Gemm::new(x.as_ptr().add(from * k), batch * len, &packed, y)
            }
        };
        // SAFETY: both maps stay inside their arrays.
        unsafe { gemm.run(isa, Worker::alone(), &mut Scratch::new()) }
        for (i, (&y, &e)) in y.iter().zip(&all).enumerate() {
            let step = i / n % steps;
            let inside = (from..from + len).contains(&step);
            assert!(if inside { y == e } else { y.is_nan() }, "step {step}");
        }
    }
}
