//! Whole products on emulated tile registers against the same products on vector registers: exact
//! for bytes, within rounding for bf16.

use super::tests::product;
use super::*;
use crate::counters::Precision;
use crate::dot::{Dot, registers};
use crate::random::Random;

/// Tiers of this machine whose panels suit tile registers, with the table that the vectors have.
fn tiers(precision: Precision) -> Vec<(Isa, &'static Dot)> {
    let sixteen = Isa::available().into_iter().filter(|isa| isa.lanes() == 16);
    sixteen.filter_map(|isa| Dot::of(isa, precision).map(|dot| (isa, dot))).collect()
}

/// The same weights, multiplied in emulated registers; few rows of bytes in vectors, if shared.
fn emulated(packed: &Packed, precision: Precision, vectors: &'static Dot, share: bool) -> Packed {
    let mut packed = packed.clone();
    packed.dot = Some(registers::emulated(precision, vectors, share));
    packed
}

/// Rows below, at and above tiles and passes; columns of part of a panel, of a group of panels with
/// a rest, of many.
const SIZES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (1, 9000, 5),
    (2, 400, 100),
    (16, 70, 33),
    (17, 48, 131),
    (31, 200, 64),
    (33, 65, 200),
    (270, 40, 70),
    (4, 331, 77),
    (5, 530, 1),
    (5, 331, 77),
];

#[test]
fn bytes_are_the_same_in_either_kind_of_register() {
    let mut random = Random::new("registers int8");
    for (isa, vectors) in tiers(Precision::Int8) {
        for (rows, n, k) in SIZES {
            let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
            let packed = Packed::new(isa, Precision::Int8, &w, (n, k), 1, Some(&b));
            let expected = product(isa, 1, &packed, &x, rows);
            for share in [false, true] {
                let tiles = emulated(&packed, Precision::Int8, vectors, share);
                let found = product(isa, 2, &tiles, &x, rows);
                assert!(found == expected, "{rows} x {n} x {k}, shared: {share}");
            }
        }
    }
}

#[test]
fn bf16_differ_by_rounding_and_not_by_batch_or_workers() {
    let mut random = Random::new("registers bf16");
    for (isa, vectors) in tiers(Precision::Bf16) {
        for (rows, n, k) in SIZES {
            let (x, w, b) = (random.floats(rows * k), random.floats(n * k), random.floats(n));
            let packed = Packed::new(isa, Precision::Bf16, &w, (n, k), 1, Some(&b));
            let tiles = emulated(&packed, Precision::Bf16, vectors, true);
            let expected = product(isa, 1, &packed, &x, rows);
            let found = product(isa, 1, &tiles, &x, rows);
            // Both round each of at most k sums of at most k terms below 1.
            let bound = 2.0 * 2f32.powi(-24) * (k as f32 + 1.0) * (k as f32 + 1.0);
            for (found, expected) in found.iter().zip(&expected) {
                let difference = (found - expected).abs();
                assert!(difference <= bound, "{rows} x {n} x {k}: {found}, not {expected}");
            }
            assert!(product(isa, 3, &tiles, &x, rows) == found, "{rows} x {n} x {k}, 3 workers");
            for r in [0, rows / 2, rows - 1] {
                let one = product(isa, 1, &tiles, &x[r * k..(r + 1) * k], 1);
                assert!(one == found[r * n..(r + 1) * n], "row {r} of {rows} x {n} x {k}");
            }
        }
    }
}
