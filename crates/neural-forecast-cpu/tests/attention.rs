//! Attention over more keys than one tile holds, against a plain `f64` sum: the running maximum,
//! the rescaling of what was summed before it, and what masks and causality hide.
//!
//! Small shapes with every option are the conformance cases; these are the long ones.

use neural_forecast_cpu::Isa;
use neural_forecast_cpu::attention::{Attention, Call, View};
use neural_forecast_cpu::counters::Precision;
use neural_forecast_cpu::dot::{Dot, bf16_bits};
use neural_forecast_cpu::memory::{Numbers, Shared};
use neural_forecast_cpu::team::Team;

/// Numbers in (−1, 1).
fn floats(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

struct Shape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    head: usize,
    head_v: usize,
}

struct Case {
    shape: Shape,
    causal: bool,
    mask: Option<Vec<f32>>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(seed: u64, shape: Shape, causal: bool, masked: bool) -> Case {
        let Shape { batch, queries, keys, heads, head, head_v } = shape;
        let q = floats(seed, batch * queries * heads * head);
        let mut k = floats(seed + 1, batch * keys * heads * head);
        // Later keys score higher, so the maximum moves in every tile.
        for (i, x) in k.iter_mut().enumerate() {
            let j = i / (heads * head) % keys;
            *x *= 1.0 + 12.0 * j as f32 / keys as f32;
        }
        let v = floats(seed + 2, batch * keys * heads * head_v);
        let mask = masked.then(|| {
            let draw = floats(seed + 3, batch * keys);
            draw.into_iter().map(|x| if x > -0.3 { 1.0 } else { 0.0 }).collect()
        });
        Case { shape, causal, mask, q, k, v }
    }

    fn run(&self, isa: Isa, workers: usize) -> Vec<f32> {
        self.run_in(Precision::F32, isa, workers)
    }

    fn run_in(&self, precision: Precision, isa: Isa, workers: usize) -> Vec<f32> {
        let each = [&self.q, &self.k, &self.v].map(|x| (x.as_ptr(), Numbers::Floats));
        self.run_over(each, precision, isa, workers)
    }

    /// Over given queries, keys and values.
    fn run_over(
        &self,
        each: [(*const f32, Numbers); 3],
        precision: Precision,
        isa: Isa,
        workers: usize,
    ) -> Vec<f32> {
        let Shape { batch, queries, keys, heads, head, head_v } = self.shape;
        let op = Attention {
            isa,
            precision,
            heads,
            head,
            head_v,
            scales: vec![0.7],
            causal: self.causal,
            mean_heads: false,
            bias: None,
            rope: None,
            qk_norm: None,
            query_scale: None,
        };
        let mut y = vec![f32::NAN; batch * queries * heads * head_v];
        let to = Shared(y.as_mut_ptr());
        let each = each.map(|(at, numbers)| (Shared(at.cast_mut()), numbers));
        let mut team = Team::new(workers).expect("the system gives threads");
        let ran = team.run(|worker| {
            let view = |i: usize, width: usize| {
                let (at, numbers) = &each[i];
                View { at: at.get().cast_const(), stride: heads * width, numbers: *numbers }
            };
            let call = Call {
                queries: &[view(0, head)],
                keys: &[view(1, head)],
                values: view(2, head_v),
                batch,
                queries_each: queries,
                keys_each: keys,
                key_mask: self.mask.as_ref().map(|mask| mask.as_ptr()),
                groups: None,
                ring: None,
                y: to.get(),
                y_numbers: Numbers::Floats,
            };
            let mut scratch = op.scratch(batch, queries, keys, false);
            // SAFETY: all arrays have the call's shape and outlive it.
            unsafe { op.run(&call, worker, &mut scratch) }
        });
        ran.expect("no worker panics");
        y
    }

    fn expected(&self, b: usize, i: usize, h: usize) -> Vec<f64> {
        self.expected_of(b, i, h, |x| x)
    }

    /// The plain sum of queries (scaled), keys and values that went through `rounded`.
    fn expected_of(&self, b: usize, i: usize, h: usize, rounded: fn(f32) -> f32) -> Vec<f64> {
        let Shape { queries, keys, heads, head, head_v, .. } = self.shape;
        let last = i as isize + keys as isize - queries as isize;
        let visible = |j: &usize| {
            let open = self.mask.as_ref().is_none_or(|mask| mask[b * keys + j] != 0.0);
            open && (!self.causal || *j as isize <= last)
        };
        let row = |x: &[f32], t: usize, time: usize, width: usize| -> Vec<f64> {
            let at = ((b * time + t) * heads + h) * width;
            x[at..at + width].iter().map(|&x| f64::from(rounded(x))).collect()
        };
        let scaled: Vec<f32> = self.q.iter().map(|q| q * 0.7).collect();
        let q = row(&scaled, i, queries, head);
        let seen: Vec<usize> = (0..keys).filter(visible).collect();
        let score = |j: &usize| {
            let k = row(&self.k, *j, keys, head);
            q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut y = vec![0.0; head_v];
        for (j, w) in seen.iter().zip(&weights) {
            for (y, v) in y.iter_mut().zip(row(&self.v, *j, keys, head_v)) {
                *y += w * v / total;
            }
        }
        y
    }
}

#[test]
fn long_contexts_match_the_plain_sum() {
    let shapes = [
        (1, 33, 1700, 2, 16, 16),
        (2, 3, 768, 1, 64, 64),
        (1, 5, 769, 3, 7, 5),
        (2, 13, 1537, 2, 80, 33),
        (1, 1, 2000, 1, 800, 4),
        (3, 64, 64, 8, 16, 16),
        (1, 512, 512, 1, 64, 64),
        (2, 127, 127, 3, 8, 8),
        (1, 128, 128, 1, 64, 8),
        (1, 17, 129, 8, 13, 9),
        (1, 31, 31, 2, 8, 17),
        (1, 32, 257, 1, 16, 16),
        (1, 1, 1, 1, 1, 1),
        (2, 15, 16, 1, 3, 2),
    ];
    for isa in Isa::available() {
        for (n, &(batch, queries, keys, heads, head, head_v)) in shapes.iter().enumerate() {
            for (causal, masked) in [(false, false), (true, false), (true, true)] {
                let shape = Shape { batch, queries, keys, heads, head, head_v };
                let case = Case::new(n as u64 * 10 + 1, shape, causal, masked);
                let y = case.run(isa, 1);
                for b in 0..batch {
                    for i in (0..queries).step_by(7) {
                        for h in 0..heads {
                            let at = ((b * queries + i) * heads + h) * head_v;
                            for (found, e) in y[at..at + head_v].iter().zip(case.expected(b, i, h))
                            {
                                let error = (f64::from(*found) - e).abs();
                                let tier = isa.name();
                                assert!(error <= 3e-5, "{tier} shape {n}: {found}, expected {e}");
                            }
                        }
                    }
                }
                for workers in [2, 3] {
                    assert!(case.run(isa, workers) == y, "{workers} workers, shape {n}");
                }
            }
        }
    }
}

#[test]
fn bf16_products_are_products_of_rounded_numbers() {
    let shapes = [
        (1, 33, 300, 2, 16, 16),
        (1, 512, 512, 1, 64, 64),
        (2, 13, 129, 3, 7, 5),
        (3, 64, 64, 8, 16, 16),
        (1, 17, 127, 1, 33, 17),
        (2, 1, 1, 1, 1, 1),
        (1, 5, 0, 1, 4, 4),
    ];
    for isa in Isa::available() {
        for (n, &(batch, queries, keys, heads, head, head_v)) in shapes.iter().enumerate() {
            for (causal, masked) in [(false, false), (true, false), (true, true)] {
                let shape = Shape { batch, queries, keys, heads, head, head_v };
                let case = Case::new(n as u64 * 10 + 900, shape, causal, masked);
                let y = case.run_in(Precision::Bf16, isa, 1);
                let (tier, name) = (isa.name(), format!("shape {n}"));
                for workers in [2, 3] {
                    let same = case.run_in(Precision::Bf16, isa, workers) == y;
                    assert!(same, "{tier} {name}: {workers} workers");
                }
                if Dot::of(isa, Precision::Bf16).is_none() {
                    assert!(y == case.run(isa, 1), "{tier} {name}: not the products of floats");
                    continue;
                }
                for b in 0..batch {
                    for i in (0..queries).step_by(5) {
                        for h in 0..heads {
                            let at = ((b * queries + i) * heads + h) * head_v;
                            let rounded = |x: f32| f32::from_bits(bf16_bits(x) << 16);
                            let expected = case.expected_of(b, i, h, rounded);
                            for (found, e) in y[at..at + head_v].iter().zip(expected) {
                                // What is left is the rounding of weights: 2⁻⁹ of each.
                                let error = (f64::from(*found) - e).abs();
                                assert!(error <= 3e-3, "{tier} {name}: {found}, expected {e}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_kept_as_bf16_is_as_if_widened_first() {
    for isa in Isa::available().into_iter().filter(|isa| Dot::of(*isa, Precision::Bf16).is_some()) {
        for (n, &(queries, keys, head, head_v)) in
            [(1, 1, 1, 1), (40, 70, 5, 3), (33, 131, 16, 17), (70, 300, 64, 64)].iter().enumerate()
        {
            for bad in [None, Some(f32::INFINITY)] {
                let shape = Shape { batch: 2, queries, keys, heads: 2, head, head_v };
                let mut case = Case::new(n as u64 + 70, shape, n % 2 == 1, n == 1);
                if let Some(bad) = bad {
                    let middle = case.v.len() / 2;
                    case.v[middle] = bad;
                }
                let halves = [&mut case.q, &mut case.k, &mut case.v].map(|x| {
                    let halves: Vec<u16> = x.iter().map(|&x| bf16_bits(x) as u16).collect();
                    for (x, &half) in x.iter_mut().zip(&halves) {
                        *x = f32::from_bits(u32::from(half) << 16);
                    }
                    halves
                });
                let each = halves.each_ref().map(|x| (x.as_ptr().cast(), Numbers::Halves));
                let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let expected = bits(case.run_in(Precision::Bf16, isa, 1));
                for workers in [1, 2] {
                    let found = bits(case.run_over(each, Precision::Bf16, isa, workers));
                    assert!(found == expected, "{} shape {n} {bad:?}", isa.name());
                }
            }
        }
    }
}

#[test]
fn nothing_to_attend_to_is_zero() {
    for isa in Isa::available() {
        let shape = Shape { batch: 2, queries: 5, keys: 0, heads: 3, head: 4, head_v: 7 };
        let y = Case::new(3, shape, false, false).run(isa, 2);
        assert!(y.len() == 2 * 5 * 3 * 7 && y.iter().all(|&y| y == 0.0), "{}", isa.name());
        // All keys hidden, and causality that hides all keys from the first queries.
        let shape = Shape { batch: 1, queries: 4, keys: 9, heads: 1, head: 4, head_v: 7 };
        let mut case = Case::new(4, shape, false, true);
        case.mask = Some(vec![0.0; 9]);
        assert!(case.run(isa, 1).iter().all(|&y| y == 0.0), "{}", isa.name());
        let shape = Shape { batch: 1, queries: 9, keys: 4, heads: 1, head: 4, head_v: 7 };
        let y = Case::new(4, shape, true, false).run(isa, 1);
        let (hidden, seen) = y.split_at(5 * 7);
        assert!(hidden.iter().all(|&y| y == 0.0) && seen.iter().all(|&y| y != 0.0));
        let shape = Shape { batch: 1, queries: 0, keys: 9, heads: 1, head: 4, head_v: 7 };
        assert!(Case::new(4, shape, true, false).run(isa, 2).is_empty());
    }
}

#[test]
fn what_is_not_a_number_reaches_those_who_see_it() {
    for isa in Isa::available() {
        for (bad, in_values) in [(f32::NAN, true), (f32::INFINITY, true), (f32::NAN, false)] {
            let shape = Shape { batch: 1, queries: 150, keys: 150, heads: 2, head: 16, head_v: 16 };
            let clean = Case::new(8, shape, true, false);
            let shape = Shape { batch: 1, queries: 150, keys: 150, heads: 2, head: 16, head_v: 16 };
            let mut dirty = Case::new(8, shape, true, false);
            // Number 3 of key 70 of the second head.
            let at = (70 * 2 + 1) * 16 + 3;
            if in_values {
                dirty.v[at] = bad
            } else {
                dirty.k[at] = bad
            }
            let (y, expected) = (dirty.run(isa, 2), clean.run(isa, 1));
            for (i, (found, clean)) in y.iter().zip(&expected).enumerate() {
                let (query, head, d) = (i / 32, i / 16 % 2, i % 16);
                let reached = query >= 70 && head == 1 && (!in_values || d == 3);
                let tier = isa.name();
                if reached {
                    assert!(!found.is_finite(), "{tier} {bad}: [{query}, {head}, {d}] is {found}");
                } else {
                    assert!(found == clean, "{tier} {bad}: [{query}, {head}, {d}] is {found}");
                }
            }
        }
    }
}

#[test]
fn hidden_keys_leave_no_trace() {
    // The same visible keys with hidden ones between them, whose values are not even numbers.
    for isa in Isa::available() {
        let shape = Shape { batch: 1, queries: 4, keys: 70, heads: 2, head: 8, head_v: 8 };
        let mut padded = Case::new(5, shape, false, true);
        let mask = padded.mask.clone().unwrap();
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for (j, &open) in mask.iter().enumerate() {
            let row = j * 16..(j + 1) * 16;
            if open != 0.0 {
                k.extend_from_slice(&padded.k[row.clone()]);
                v.extend_from_slice(&padded.v[row]);
            } else {
                padded.k[row.clone()].fill(f32::NAN);
                padded.v[row].fill(f32::NAN);
            }
        }
        let keys = k.len() / 16;
        let shape = Shape { batch: 1, queries: 4, keys, heads: 2, head: 8, head_v: 8 };
        let dense = Case { shape, causal: false, mask: None, q: padded.q.clone(), k, v };
        assert!(padded.run(isa, 1) == dense.run(isa, 1), "{}", isa.name());
    }
}
