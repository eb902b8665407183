//! Products in f32 arithmetic against sums in `f64` that share no code with them; and what holds in
//! every precision: bits, epilogues, strides, values kept as bf16.

use super::*;
use crate::counters::Precision;
use crate::dot::{Dot, bf16_bits};
use crate::f16::{f16_bits, f16_value};
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

/// All tiers in all precisions.
pub(super) fn tiers() -> Vec<(Isa, Precision)> {
    let all = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];
    Isa::available().into_iter().flat_map(|isa| all.map(|precision| (isa, precision))).collect()
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
fn widened_weights_are_rounded_weights() {
    let mut random = Random::new("gemm widened");
    let widens = |&(isa, precision): &(Isa, Precision)| {
        matches!(precision, Precision::F16 | Precision::Bf16) && Dot::of(isa, precision).is_none()
    };
    for (isa, precision) in tiers().into_iter().filter(widens) {
        let round = |&w: &f32| match precision {
            Precision::F16 => f16_value(f16_bits(w)),
            _ => f32::from_bits(bf16_bits(w) << 16),
        };
        for (rows, n, k) in SIZES {
            let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
            let rounded: Vec<f32> = w.iter().map(round).collect();
            let half = Packed::new(isa, precision, &w, (n, k), 1, Some(&b));
            let full = Packed::new(isa, Precision::F32, &rounded, (n, k), 1, Some(&b));
            let (half, full) = (product(isa, 1, &half, &x, rows), product(isa, 1, &full, &x, rows));
            assert_eq!(half, full, "{} {rows}x{n}x{k}", isa.name());
        }
    }
}

#[test]
fn bits_do_not_depend_on_batch_or_workers() {
    let mut random = Random::new("gemm batch");
    for (isa, precision) in tiers() {
        for (rows, n, k) in [(29, 70, 1000), (600, 33, 129), (6, 200, 50)] {
            let (x, w) = (random.floats(rows * k), random.floats(n * k));
            let packed = Packed::new(isa, precision, &w, (n, k), 1, None);
            let all = product(isa, 1, &packed, &x, rows);
            for workers in [2, 3] {
                assert_eq!(all, product(isa, workers, &packed, &x, rows));
            }
            for r in 0..rows {
                let one = product(isa, 1, &packed, &x[r * k..(r + 1) * k], 1);
                assert_eq!(one, all[r * n..(r + 1) * n], "row {r} on {}", isa.name());
            }
        }
    }
}

/// Ends of products: function, gate, whether there is a residual.
const ENDS: [(Activation, Option<Activation>, bool); 7] = [
    (Activation::Identity, None, false),
    (Activation::Identity, None, true),
    (Activation::Gelu, None, false),
    (Activation::GeluClose, None, true),
    (Activation::Relu, None, true),
    (Activation::Elu { alpha: 1.0, scale: 1.0 }, Some(Activation::Sigmoid), true),
    (Activation::Relu, Some(Activation::Sigmoid), false),
];

mod libm {
    unsafe extern "C" {
        pub(super) safe fn erf(x: f64) -> f64;
    }
}

/// The function of an activation in [`ENDS`].
fn function(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu | Activation::GeluClose => {
            0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
        }
        Activation::Elu { .. } => x.max(x.exp_m1().min(0.0)),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        other => unreachable!("{other:?} is not in the list"),
    }
}

#[test]
fn epilogues_follow_the_plain_product() {
    let mut random = Random::new("gemm epilogue");
    for (isa, precision) in tiers() {
        for (rows, n, k) in [(1, 10, 6), (3, 64, 33), (14, 50, 400), (40, 37, 1000)] {
            for (activation, gate, added) in ENDS {
                let groups = if gate.is_some() { 2 } else { 1 };
                let (x, w) = (random.floats(rows * k), random.floats(groups * n * k));
                let (b, r) = (random.floats(groups * n), random.floats(rows * n));
                let plain = Packed::new(isa, precision, &w, (groups * n, k), 1, Some(&b));
                let sums = product(isa, 1, &plain, &x, rows);
                let packed = Packed::new(isa, precision, &w, (groups * n, k), groups, Some(&b));
                let mut y = vec![f32::NAN; rows * n];
                let gemm = Gemm {
                    y_map: RowMap::dense(n),
                    activation,
                    gate,
                    residual: added.then_some((r.as_ptr(), RowMap::dense(n))),
                    ..Gemm::new(x.as_ptr(), rows, &packed, y.as_mut_ptr())
                };
                // SAFETY: all arrays have the product's shape.
                unsafe { gemm.run(isa, Worker::alone(), &mut Scratch::new()) }
                let end = |i: usize| {
                    let at = i / n * groups * n + i % n;
                    let value = function(activation, f64::from(sums[at]));
                    let factor = gate.map_or(1.0, |gate| function(gate, f64::from(sums[at + n])));
                    value * factor + if added { f64::from(r[i]) } else { 0.0 }
                };
                let expected: Vec<f64> = (0..rows * n).map(end).collect();
                let what = format!("{} {rows}x{n}x{k} {activation:?} {gate:?}", isa.name());
                // `close` scales its bound with the root of the terms: 128 ulp.
                let terms = if activation == Activation::GeluClose { 16 } else { 1 };
                close(&y, &expected, terms, &what);
            }
        }
    }
}

#[test]
fn rows_may_be_steps_of_sequences_and_unaligned() {
    let mut random = Random::new("gemm rows");
    for (isa, precision) in tiers() {
        let (batch, steps, k, n) = (5, 7, 11, 40);
        let (x, w) = (random.floats(batch * steps * k), random.floats(n * k));
        let packed = Packed::new(isa, precision, &w, (n, k), 1, None);
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
            assert!(if inside { y == e } else { y.is_nan() }, "{} step {step}", isa.name());
        }
    }
}

#[test]
fn values_kept_as_bf16_are_the_floats_rounded() {
    let mut random = Random::new("gemm halves");
    let mut able = 0;
    for (isa, precision) in tiers() {
        for (rows, n, k) in [(1, 10, 6), (3, 64, 33), (14, 51, 400), (40, 37, 1000), (300, 96, 65)]
        {
            for (activation, gate, added) in ENDS {
                let groups = if gate.is_some() { 2 } else { 1 };
                let (mut x, w) = (random.floats(rows * k), random.floats(groups * n * k));
                let (b, r) = (random.floats(groups * n), random.floats(rows * n));
                let packed = Packed::new(isa, precision, &w, (groups * n, k), groups, Some(&b));
                if !packed.takes_halves() || !packed.gives_halves() {
                    continue;
                }
                able += 1;
                let halves: Vec<u16> = x.iter().map(|&x| bf16_bits(x) as u16).collect();
                for (x, &half) in x.iter_mut().zip(&halves) {
                    *x = f32::from_bits(u32::from(half) << 16);
                }
                let mut floats = vec![f32::NAN; rows * n];
                let mut found = vec![0xffff_u16; rows * n + 1];
                let from_floats = Gemm {
                    y_map: RowMap::dense(n),
                    activation,
                    gate,
                    residual: added.then_some((r.as_ptr(), RowMap::dense(n))),
                    ..Gemm::new(x.as_ptr(), rows, &packed, floats.as_mut_ptr())
                };
                let from_halves = Gemm {
                    x: halves.as_ptr().cast(),
                    x_numbers: Numbers::Halves,
                    y: found.as_mut_ptr().cast(),
                    y_numbers: Numbers::Halves,
                    ..from_floats
                };
                for gemm in [from_floats, from_halves] {
                    // SAFETY: all arrays have the product's shape.
                    unsafe { gemm.run(isa, Worker::alone(), &mut Scratch::new()) }
                }
                let expected = floats.iter().map(|&y| bf16_bits(y) as u16);
                let (tier, after) = (isa.name(), found.pop());
                assert!(expected.eq(found), "{tier} {rows}x{n}x{k} {activation:?} {gate:?}");
                assert_eq!(after, Some(0xffff), "{tier}: written beyond the output");
            }
        }
    }
    let some = Isa::available().into_iter().any(|isa| Dot::of(isa, Precision::Bf16).is_some());
    assert!(able > 0 || !some, "no product took bf16");
}
