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

#[cfg(target_arch = "x86_64")]
#[test]
fn halves_are_multiplied_in_chains_after_scaling_and_rounding_both_sides() {
    use crate::dot::tests::native_and_emulated;
    use crate::dot::{finite_magnitude, half_scales};
    use crate::f16::{f16_bits, f16_value};
    // A matrix whose rows are scaled and rounded, and their scales.
    let round = |v: &[f32], k: usize| -> (Vec<f64>, Vec<f64>) {
        let scale =
            |row: &[f32]| half_scales(row.iter().map(|&x| finite_magnitude(x)).max().unwrap_or(0));
        let scales: Vec<(f32, f32)> = v.chunks(k.max(1)).map(scale).collect();
        let rounded = v.iter().enumerate().map(|(i, x)| {
            let (down, up) = scales[i / k];
            f64::from(f16_value(f16_bits(x * down))) * f64::from(up)
        });
        (rounded.collect(), scales.iter().map(|&(_, up)| f64::from(up)).collect())
    };
    let mut random = Random::new("low f16");
    for (rows, n, k) in SIZES {
        // Rows and columns of unlike size: without scales their products would overflow.
        let mut x = random.floats(rows * k);
        let mut w = random.floats(n * k);
        let b = random.floats(n);
        x.iter_mut().enumerate().for_each(|(i, x)| *x *= 1e6f32.powi((i / k) as i32 % 3 - 1));
        w.iter_mut().enumerate().for_each(|(i, w)| *w *= 1e4f32.powi((i / k) as i32 % 3 - 1));
        let ((rx, sx), (rw, sw)) = (round(&x, k), round(&w, k));
        native_and_emulated(|isa, name| {
            let packed = Packed::new(isa, Precision::F16, &w, (n, k), 1, Some(&b));
            let y = product(isa, 2, &packed, &x, rows);
            for (i, y) in y.iter().enumerate() {
                let (r, j) = (i / n, i % n);
                let terms = rx[r * k..][..k].iter().zip(&rw[j * k..][..k]);
                let (sum, most) = terms
                    .fold((0.0, 0.0), |(sum, most), (x, w)| (sum + x * w, most + (x * w).abs()));
                let subnormal = if k > 0 { k as f64 * 2f64.powi(-25) * sx[r] * sw[j] } else { 0.0 };
                let chains = 16.5 * 2f64.powi(-11) * most + subnormal;
                let floats = 2f64.powi(-24) * (k as f64 + 3.0) * (most + 1.0);
                let error = (f64::from(*y) - sum - f64::from(b[j])).abs();
                assert!(error <= chains + floats, "{name} {rows}x{n}x{k} [{i}]: {error}");
            }
            for workers in [1, 3] {
                let other = product(isa, workers, &packed, &x, rows);
                assert!(other == y, "{name} {rows}x{n}x{k} by {workers}");
            }
            for r in [0, rows / 2, rows.saturating_sub(1)].into_iter().filter(|&r| r < rows) {
                let one = product(isa, 1, &packed, &x[r * k..(r + 1) * k], 1);
                assert!(one == y[r * n..(r + 1) * n], "{name} row {r} of {rows}x{n}x{k}");
            }
        });
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn rows_and_weights_of_f16_carry_infinities_and_nan() {
    crate::dot::tests::native_and_emulated(|isa, name| {
        let (n, k) = (3, 40);
        let (mut x, mut w) = (vec![1e30; k], vec![1e-30; n * k]);
        let y = |x: &[f32], w: &[f32]| {
            product(isa, 1, &Packed::new(isa, Precision::F16, w, (n, k), 1, None), x, 1)
        };
        assert!(y(&x, &w).iter().all(|y| (y - 40.0).abs() < 0.1), "{name}");
        w[k + 7] = f32::NEG_INFINITY;
        let found = y(&x, &w);
        assert!(found[1] == f32::NEG_INFINITY && (found[0] - 40.0).abs() < 0.1, "{name}");
        x[8] = f32::INFINITY;
        let found = y(&x, &w);
        assert!(found[0] == f32::INFINITY && found[1].is_nan(), "{name}: {found:?}");
        x[8] = f32::NAN;
        assert!(y(&x, &w).iter().all(|y| y.is_nan()), "{name}");
    });
}
