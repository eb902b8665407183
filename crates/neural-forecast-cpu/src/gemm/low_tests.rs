//! Products in lower arithmetic against the same rounded numbers multiplied exactly. What holds in
//! every precision is tested beside, in `tests`.

use super::tests::{SIZES, product, tiers};
use super::*;
use crate::counters::Precision;
use crate::dot::{Dot, TERMS_MAX, bf16_bits};
use crate::random::Random;

/// Pairs of tier and precision whose inputs are converted.
fn converting() -> impl Iterator<Item = (Isa, Precision)> {
    tiers().into_iter().filter(|&(isa, precision)| Dot::of(isa, precision).is_some())
}

/// Bytes and their scale, from the definition: the largest magnitude becomes 127.
fn quantised(row: &[f32]) -> (Vec<i64>, f32) {
    let most = row.iter().fold(0f32, |most, x| most.max(x.abs()));
    if most == 0.0 {
        return (vec![0; row.len()], 0.0);
    }
    let factor = 127.0 / most;
    (row.iter().map(|x| (x * factor).round_ties_even() as i64).collect(), most / 127.0)
}

#[test]
fn bytes_are_multiplied_exactly_and_scaled_once() {
    let mut random = Random::new("low int8");
    for (rows, n, k) in SIZES {
        let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
        let mut expected = Vec::new();
        let of = |m: &[f32], i: usize| quantised(&m[i * k..(i + 1) * k]);
        let columns: Vec<_> = (0..n).map(|j| of(&w, j)).collect();
        for r in 0..rows {
            let (x, sx) = of(&x, r);
            for ((w, sw), b) in columns.iter().zip(&b) {
                let sum: i64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                expected.push(sum as f32 * (sx * sw) + b);
            }
        }
        for isa in Isa::available() {
            let packed = Packed::new(isa, Precision::Int8, &w, (n, k), 1, Some(&b));
            let y = product(isa, 2, &packed, &x, rows);
            assert!(y == expected, "{} {rows}x{n}x{k}", isa.name());
        }
    }
}

#[test]
fn bytes_are_as_close_as_half_a_step_of_both_sides() {
    let mut random = Random::new("low int8 error");
    let isa = Isa::available().pop().unwrap();
    for (rows, n, k) in [(1, 40, 100), (9, 33, 257)] {
        let (x, w) = (random.floats(rows * k), random.floats(n * k));
        let packed = Packed::new(isa, Precision::Int8, &w, (n, k), 1, None);
        let y = product(isa, 1, &packed, &x, rows);
        for (i, y) in y.iter().enumerate() {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            let step = |v: &[f32]| f64::from(v.iter().fold(0f32, |m, v| m.max(v.abs()))) / 127.0;
            let (dx, dw) = (step(x) / 2.0, step(w) / 2.0);
            let (mut exact, mut bound) = (0.0, 1e-5);
            for (x, w) in x.iter().zip(w) {
                let (x, w) = (f64::from(*x), f64::from(*w));
                exact += x * w;
                bound += x.abs() * dw + w.abs() * dx + dx * dw;
            }
            let error = (f64::from(*y) - exact).abs();
            assert!(error <= bound, "{rows}x{n}x{k} [{i}]: {error} above {bound}");
        }
    }
}

#[test]
fn pairs_are_multiplied_after_rounding_both_sides() {
    let mut random = Random::new("low bf16");
    let round = |v: &[f32]| -> Vec<f64> {
        v.iter().map(|v| f64::from(f32::from_bits(bf16_bits(*v) << 16))).collect()
    };
    for (isa, _) in converting().filter(|(_, p)| *p == Precision::Bf16) {
        for (rows, n, k) in SIZES {
            let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
            let packed = Packed::new(isa, Precision::Bf16, &w, (n, k), 1, Some(&b));
            let y = product(isa, 2, &packed, &x, rows);
            let (x, w) = (round(&x), round(&w));
            for (i, y) in y.iter().enumerate() {
                let terms = x[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]);
                let (sum, most) = terms
                    .fold((0.0, 0.0), |(sum, most), (x, w)| (sum + x * w, most + (x * w).abs()));
                // The terms are exact; every addition rounds, the bias's too.
                let bound = 2f64.powi(-24) * ((k as f64 + 1.0) * most + 2.0);
                let error = (f64::from(*y) - sum - f64::from(b[i % n])).abs();
                assert!(error <= bound, "{} {rows}x{n}x{k}: {error} {bound}", isa.name());
            }
        }
    }
}

#[test]
fn a_bad_row_spoils_itself_and_a_zero_row_is_the_bias() {
    let mut random = Random::new("low rows");
    for (isa, precision) in converting() {
        for rows in [3, 14] {
            let (n, k) = (40, 37);
            let (mut x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
            let packed = Packed::new(isa, precision, &w, (n, k), 1, Some(&b));
            x[..k].fill(0.0);
            let good = product(isa, 1, &packed, &x, rows);
            assert_eq!(good[..n], b, "{}", isa.name());
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = x.clone();
                x[2 * k - 1] = bad;
                let y = product(isa, 1, &packed, &x, rows);
                assert!(y[n..2 * n].iter().all(|y| !y.is_finite()), "{}", isa.name());
                assert!(y[..n] == good[..n] && y[2 * n..] == good[2 * n..], "{}", isa.name());
            }
        }
    }
}

#[test]
fn small_products_keep_floats_where_bytes_were_asked_for() {
    for (shape, expected) in [
        ((100, 16), Precision::F32),
        ((16, 100), Precision::F32),
        ((17, 17), Precision::Int8),
        ((17, TERMS_MAX + 1), Precision::Int8),
    ] {
        assert_eq!(kept(Precision::Int8, shape), expected, "{shape:?}");
        assert_eq!(kept(Precision::Bf16, shape), Precision::Bf16);
        assert_eq!(kept(Precision::F32, shape), Precision::F32);
    }
    let isa = Isa::available().pop().unwrap();
    let long = vec![1.0; TERMS_MAX + 1];
    let long = Packed::new(isa, Precision::Int8, &long, (1, TERMS_MAX + 1), 1, None);
    assert_eq!(long.precision(), Precision::Bf16, "too long for bytes");
}

#[test]
fn the_longest_rows_fit_and_longer_bf16_is_widened() {
    let mut random = Random::new("low long");
    for isa in Isa::available() {
        for (precision, k) in
            [(Precision::Int8, TERMS_MAX), (Precision::Bf16, TERMS_MAX), (Precision::Bf16, 65_537)]
        {
            let (rows, n) = (14, 3);
            // All of one sign and the largest there is: nothing may saturate.
            let (x, w) = (vec![-1.0; rows * k], random.floats(n * k));
            let w: Vec<f32> = w.iter().map(|w| if *w < 0.9 { 1.0 } else { 0.5 }).collect();
            let packed = Packed::new(isa, precision, &w, (n, k), 1, None);
            let y = product(isa, 1, &packed, &x, rows);
            for (i, y) in y.iter().enumerate() {
                let exact: f64 = w[i % n * k..][..k].iter().map(|w| -f64::from(*w)).sum();
                // Half of 127 is no byte: off by one part in 127 of one term in twenty.
                let bound = if precision == Precision::Int8 { 5e-4 } else { 1e-6 };
                let error = (f64::from(*y) - exact).abs();
                assert!(error <= bound * exact.abs(), "{} {k}: {y} {exact}", isa.name());
            }
        }
    }
}
