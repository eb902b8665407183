//! Packing a stack's weights for a tier: gates interleaved, so that the tile of a vector of units
//! ends with all their gates, the last units' as narrow as they go, and heads apart.

use super::{Cell, Direction, Head, Rnn, Weights};
use crate::counters::Precision;
use crate::gemm::{self, Packed};
use crate::isa::Isa;

impl Rnn {
    /// Packs a stack for a tier. `layers[l]` holds one direction or two.
    pub fn new(
        isa: Isa,
        precision: Precision,
        cell: Cell,
        (inputs, hidden, projection): (usize, usize, Option<usize>),
        layers: &[Vec<Weights<'_>>],
    ) -> Rnn {
        let width = projection.unwrap_or(hidden);
        let directions = layers.first().map_or(1, Vec::len);
        let pack = |layer: usize, w: &Weights<'_>| {
            let k = if layer == 0 { inputs } else { directions * width };
            let heads = pack_heads(isa, precision, cell, (k, hidden, width), w);
            let projection = w.w_hr.zip(projection);
            let projection = projection.map(|(w, p)| {
                let precision = gemm::kept(precision, (p, hidden));
                Packed::new(isa, precision, w, (p, hidden), 1, None)
            });
            Direction { heads, projection }
        };
        let layers = layers
            .iter()
            .enumerate()
            .map(|(l, layer)| layer.iter().map(|w| pack(l, w)).collect())
            .collect();
        Rnn { isa, cell, hidden, width, inputs, layers, precision }
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        let heads = self.layers.iter().flatten().flat_map(|d| &d.heads);
        let heads: usize = heads.map(|h| h.w_ih.bytes() + h.w_hh.bytes()).sum();
        let projections = self.layers.iter().flatten().filter_map(|d| d.projection.as_ref());
        heads + projections.map(Packed::bytes).sum::<usize>()
    }
}

fn pack_heads(
    isa: Isa,
    precision: Precision,
    cell: Cell,
    (inputs, hidden, width): (usize, usize, usize),
    w: &Weights<'_>,
) -> Vec<Head> {
    let (gates, heads) = (cell.gates(), cell.heads());
    if !matches!(cell, Cell::Slstm { .. }) {
        let n = gates * hidden;
        let pack = |w: &[f32], k: usize, bias: Option<&[f32]>| {
            Packed::gates(isa, gemm::kept(precision, (n, k)), w, (n, k), gates, bias)
        };
        let (w_ih, w_hh) = (pack(w.w_ih, inputs, w.b_ih), pack(w.w_hh, width, w.b_hh));
        return vec![Head { w_ih, w_hh }];
    }
    let d = hidden / heads;
    let take = |matrix: &[f32], head: usize, k: usize| -> Vec<f32> {
        let part = |gate: usize| {
            let start = (gate * heads + head) * d * k;
            matrix[start..start + d * k].iter().copied()
        };
        (0..gates).flat_map(part).collect()
    };
    let pack = |matrix: &[f32], bias: Option<&[f32]>, head: usize| {
        let matrix = take(matrix, head, d);
        let bias = bias.map(|bias| take(bias, head, 1));
        let (shape, bias) = ((gates * d, d), bias.as_deref());
        Packed::gates(isa, gemm::kept(precision, shape), &matrix, shape, gates, bias)
    };
    let head = |h| Head { w_ih: pack(w.w_ih, w.b_ih, h), w_hh: pack(w.w_hh, w.b_hh, h) };
    (0..heads).map(head).collect()
}
