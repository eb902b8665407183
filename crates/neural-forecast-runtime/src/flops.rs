//! How many floating-point operations an entry takes in a bucket.
//!
//! Counts what its steps execute (a multiply-add is two, a transcendental function one), not what a
//! cleverer algorithm would need.

use crate::ops::{
    AttentionLayer, Cell, FeedForward, Keep, NormPlacement, Normalize, Op, RnnStack, Stack,
    SublayerKind,
};
use crate::plan::{Bucket, Entry, Plan, ValueId, WeightId, elements};

/// Operations of one full-bucket run.
pub fn flops(plan: &Plan, entry: &Entry, bucket: Bucket) -> u64 {
    let counter = Counter { plan, entry, bucket };
    let steps = entry.steps.iter();
    let total = steps.map(|step| counter.op(&step.op, step.outputs.first().copied())).sum();
    // Counted with room to spare, because nobody has asked yet whether the bucket fits into memory.
    u128::min(total, u64::MAX.into()) as u64
}

struct Counter<'a> {
    plan: &'a Plan,
    entry: &'a Entry,
    bucket: Bucket,
}

impl Counter<'_> {
    fn op(&self, op: &Op, output: Option<ValueId>) -> u128 {
        let written = output.map_or(0, |value| self.elements(value));
        match op {
            Op::Linear(op) => {
                let products = 1 + u128::from(op.gate.is_some());
                let prologue = op.prologue.as_ref().map_or(0, |_| 4 * self.elements(op.x));
                // The contracted axis is the weight's last one whichever axis of `x` it is.
                products * written * (2 * self.last(op.weight) + 1) + prologue
            }
            Op::Attention(op) => {
                let keys = match op.groups {
                    Some(_) => self.size(op.keys[0].value, 0),
                    None => self.size(op.keys[0].value, 1),
                };
                let ring = op.ring.map_or(0, |ring| {
                    self.plan.state(ring.keys).shape.first().copied().unwrap_or(0) as u128
                });
                let queries = self.size(op.queries[0].value, 0) * self.size(op.queries[0].value, 1);
                let scores = op.queries.iter().map(|q| q.width as u128).sum::<u128>();
                let heads = if op.mean_heads { op.heads as u128 } else { 1 };
                let values = op.values.width as u128 * heads;
                queries * (keys + ring) * (2 * scores + 2 * values + 4 * op.heads as u128)
            }
            Op::RnnStack(op) => self.rnn(op),
            Op::EncoderStack(op) | Op::DecoderStack(op) => self.stack(op),
            Op::Norm(op) => 5 * self.elements(op.x),
            Op::Normalize(Normalize { x, .. }) => 7 * self.elements(*x),
            Op::Denormalize(_) => 2 * written,
            Op::WeightedSum(op) => 2 * self.elements(op.x),
            Op::Pool(op) => self.elements(op.x),
            Op::Interpolate(_) => 7 * written,
            Op::Unary(_) | Op::Binary(_) | Op::EmpiricalQuantiles(_) => written,
            Op::Sample(_) => 40 * written,
            Op::Patch(_) | Op::Embedding(_) | Op::Concat(_) | Op::Slice(_) | Op::Gather(_) => 0,
            Op::Transpose(_) | Op::Expand(_) | Op::Reshape(_) | Op::Ramp(_) => 0,
        }
    }

    fn rnn(&self, op: &RnnStack) -> u128 {
        let steps = self.size(op.x, 0) * self.size(op.x, 1);
        let weights = op.layers.iter().flatten();
        let products = weights.map(|w| {
            let all = [Some(w.w_ih), Some(w.w_hh), w.w_hr];
            all.into_iter().flatten().map(|w| self.count(w)).sum::<u128>()
        });
        let units = (op.hidden * op.layers.len() * op.directions()) as u128;
        let gates = match op.cell {
            Cell::Lstm => 10,
            Cell::Gru => 9,
            Cell::RnnTanh | Cell::RnnRelu => 1,
            Cell::Slstm { .. } => 20,
        };
        steps * (2 * products.sum::<u128>() + units * (gates + 2 * op.cell.gates() as u128))
    }

    fn stack(&self, op: &Stack) -> u128 {
        let (rows, time) = (self.size(op.x, 0), self.size(op.x, 1));
        let width = self.size(op.x, 2);
        let memory = op.memory.map_or(0, |memory| self.size(memory, 1));
        let sublayers: Vec<_> = op.layers.iter().flatten().collect();
        let narrow = match op.keep {
            Keep::All => sublayers.len(),
            Keep::Last(_) => {
                let kind =
                    |s: &&crate::ops::Sublayer| matches!(s.kind, SublayerKind::SelfAttention(_));
                sublayers.iter().rposition(kind).unwrap_or(0)
            }
        };
        let kept = if let Keep::Last(n) = op.keep { n as u128 } else { time };
        let mut depth = 0;
        let mut total = 0;
        for (i, sublayer) in sublayers.iter().enumerate() {
            let queries = if i >= narrow { kept } else { time };
            let norms = match sublayer.norm {
                NormPlacement::None => 0,
                NormPlacement::Pre(_) | NormPlacement::Post(_) => 1,
                NormPlacement::Sandwich { .. } => 2,
            };
            total += rows * queries * width * (5 * norms + 1);
            total += rows
                * match &sublayer.kind {
                    SublayerKind::SelfAttention(a) => {
                        depth = if op.residual_scores { depth + 1 } else { 1 };
                        self.attention(a, queries, time, time, depth)
                    }
                    SublayerKind::CrossAttention(a) => {
                        self.attention(a, queries, memory, memory, 1)
                    }
                    SublayerKind::GroupAttention(a) => self.attention(a, queries, rows, queries, 1),
                    SublayerKind::FeedForward(f) => queries * self.feed_forward(f),
                };
        }
        total + op.final_norm.map_or(0, |_| 5 * rows * kept * width)
    }

    fn attention(
        &self,
        a: &AttentionLayer,
        queries: u128,
        keys: u128,
        projected: u128,
        depth: u128,
    ) -> u128 {
        let heads = (a.heads * a.head) as u128;
        let outer = self.count(a.query.weight) + self.count(a.output.weight);
        let inner = self.count(a.key.weight) + self.count(a.value.weight);
        2 * queries * outer
            + 2 * projected * inner
            + queries * keys * (2 * heads * (depth + 1) + 4 * a.heads as u128)
    }

    fn feed_forward(&self, f: &FeedForward) -> u128 {
        let products = [Some(f.up), f.gate, Some(f.down)].into_iter().flatten();
        2 * products.map(|product| self.count(product.weight)).sum::<u128>()
    }

    fn elements(&self, value: ValueId) -> u128 {
        elements(&self.entry.value(value).shape, self.bucket) as u128
    }

    fn size(&self, value: ValueId, axis: usize) -> u128 {
        self.entry.value(value).shape.get(axis).map_or(1, |dim| dim.at(self.bucket)) as u128
    }

    fn count(&self, weight: WeightId) -> u128 {
        self.plan.weight(weight).shape.iter().product::<usize>() as u128
    }

    fn last(&self, weight: WeightId) -> u128 {
        self.plan.weight(weight).shape.last().copied().unwrap_or(0) as u128
    }
}
