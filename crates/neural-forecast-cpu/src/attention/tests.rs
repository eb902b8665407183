//! Attention in emulated tile registers, which multiply whole words and so read what lies beyond a
//! panel's terms. Against vectors, after scratch full of NaN.

use super::*;
use crate::dot::registers;
use crate::memory::Buffer;
use crate::random::Random;
use std::cell::Cell;

thread_local! {
    static REGISTERS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread multiplies in emulated tile registers.
pub(super) fn in_tile_registers() -> bool {
    REGISTERS.get()
}

pub(super) fn emulated(isa: Isa) -> Option<&'static Dot> {
    Dot::of(isa, Precision::Bf16).map(|dot| registers::emulated(Precision::Bf16, dot, true))
}

impl AttentionScratch {
    fn poison(&mut self) {
        let poison = |buffer: &mut Buffer| buffer.as_mut_slice().fill(f32::NAN);
        self.low.each_mut().into_iter().for_each(poison);
        [&mut self.weights, &mut self.sums].into_iter().for_each(poison);
    }
}

/// Rows, queries, keys, heads, numbers of a query, of a value.
type Shape = (usize, usize, usize, usize, usize, usize);

struct Case {
    shape: Shape,
    causal: bool,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    /// Rows `rows` of it.
    fn run(&self, isa: Isa, rows: std::ops::Range<usize>, tiles: bool) -> Vec<f32> {
        let (_, queries, keys, heads, head, head_v) = self.shape;
        let op = Attention {
            isa,
            precision: Precision::Bf16,
            heads,
            head,
            head_v,
            scales: vec![0.5],
            causal: self.causal,
            mean_heads: false,
            bias: None,
            rope: None,
            qk_norm: None,
            query_scale: None,
        };
        REGISTERS.set(tiles);
        let view = |x: &[f32], each: usize, width: usize| {
            View::floats(x[rows.start * each * width..].as_ptr(), width)
        };
        let mut y = vec![f32::NAN; rows.len() * queries * heads * head_v];
        let call = Call {
            queries: &[view(&self.q, queries, heads * head)],
            keys: &[view(&self.k, keys, heads * head)],
            values: view(&self.v, keys, heads * head_v),
            batch: rows.len(),
            queries_each: queries,
            keys_each: keys,
            key_mask: None,
            groups: None,
            ring: None,
            y: y.as_mut_ptr(),
            y_numbers: Numbers::Floats,
        };
        let mut scratch = op.scratch(rows.len(), queries, keys, false);
        scratch.poison();
        // SAFETY: all arrays have the call's shape, and one worker runs all of it.
        unsafe { op.run(&call, Worker::alone(), &mut scratch) };
        REGISTERS.set(false);
        y
    }
}

#[test]
fn padding_of_panels_is_no_term() {
    let mut random = Random::new("attention in tile registers");
    let shapes: [Shape; 7] = [
        (1, 1, 1, 1, 1, 1),
        (2, 5, 3, 2, 4, 7),
        (2, 33, 31, 1, 16, 16),
        (1, 40, 129, 2, 33, 17),
        (2, 17, 127, 1, 7, 5),
        (1, 70, 300, 1, 64, 64),
        (3, 64, 64, 2, 32, 32),
    ];
    let tiers = Isa::available();
    for isa in tiers.into_iter().filter(|isa| isa.lanes() == 16 && emulated(*isa).is_some()) {
        for shape in shapes {
            for causal in [false, true] {
                let (batch, queries, keys, heads, head, head_v) = shape;
                let case = Case {
                    shape,
                    causal,
                    q: random.floats(batch * queries * heads * head),
                    k: random.floats(batch * keys * heads * head),
                    v: random.floats(batch * keys * heads * head_v),
                };
                let name = format!("{} {shape:?} causal {causal}", isa.name());
                let expected = case.run(isa, 0..batch, false);
                let found = case.run(isa, 0..batch, true);
                for (found, expected) in found.iter().zip(&expected) {
                    // Scores that round apart become weights that do, by 2⁻⁸ at most each.
                    let difference = (found - expected).abs();
                    assert!(difference <= 8e-3, "{name}: {found}, expected {expected}");
                }
                let each = found.len() / batch;
                for b in 0..batch {
                    let one = case.run(isa, b..b + 1, true);
                    assert!(one == found[b * each..(b + 1) * each], "{name}: row {b} alone");
                }
            }
        }
    }
}
