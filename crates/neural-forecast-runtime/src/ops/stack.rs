//! `encoder_stack` and `decoder_stack`: layers of attention and feed-forward sublayers with their
//! norms and residuals, as one op that a backend may run as one kernel.
//!
//! A layer is a list of sublayers rather than a fixed pair, so that self, cross and group attention
//! and sandwich norms are all the same op. Backends without a fused form get [`crate::lower`].

use super::attention::relative_bucket;
use super::elementwise::{softmax, softplus};
use super::linear::product;
use super::{Activation, AttentionBias, Keep, NormKind, QkNorm, Rope, ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor, dot};

/// Weights of a norm of the stack's kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormWeights {
    /// Layer, RMS or batch.
    pub kind: NormKind,
    /// Scale `[D]`.
    pub weight: Option<WeightId>,
    /// Added to the scale.
    pub weight_offset: f32,
    /// Shift `[D]`.
    pub bias: Option<WeightId>,
    /// Inside the root.
    pub eps: f32,
}

/// An affine map's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// `[outputs, inputs]`.
    pub weight: WeightId,
    /// `[outputs]`.
    pub bias: Option<WeightId>,
}

/// Where the norms of a sublayer sit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormPlacement {
    /// `x + f(norm(x))`.
    Pre(NormWeights),
    /// `norm(x + f(x))`.
    Post(NormWeights),
    /// `x + after(f(before(x)))`.
    Sandwich {
        /// Before the function.
        before: NormWeights,
        /// After it, inside the residual.
        after: NormWeights,
    },
    /// `x + f(x)`.
    None,
}

/// An attention sublayer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionLayer {
    /// Queries, `[heads · head, D]`.
    pub query: Product,
    /// Keys.
    pub key: Product,
    /// Values.
    pub value: Product,
    /// Output, `[D, heads · head]`.
    pub output: Product,
    /// Number of heads.
    pub heads: usize,
    /// Width of a head.
    pub head: usize,
    /// Scale of the scores.
    pub scale: f32,
    /// Whether later positions are hidden.
    pub causal: bool,
    /// Added to the scores.
    pub bias: Option<AttentionBias>,
    /// Rotary positions.
    pub rope: Option<Rope>,
    /// Normalised queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Learned scale of each query dimension.
    pub per_dim_scale: Option<WeightId>,
}

/// A feed-forward sublayer: `down(activation(up(x)))`, or with a gate `down(activation(gate(x)) ⊙
/// up(x))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForward {
    /// `[ff, D]`.
    pub up: Product,
    /// `[ff, D]`.
    pub gate: Option<Product>,
    /// `[D, ff]`.
    pub down: Product,
    /// Of the gate if there is one, else of `up`.
    pub activation: Activation,
}

/// What a sublayer computes.
#[derive(Clone, Debug, PartialEq)]
pub enum SublayerKind {
    /// Over the positions of the row.
    SelfAttention(AttentionLayer),
    /// Queries from the row, keys and values from the memory.
    CrossAttention(AttentionLayer),
    /// Over the rows of the batch that share a group, position by position.
    GroupAttention(AttentionLayer),
    /// Feed-forward.
    FeedForward(FeedForward),
}

/// One sublayer with its norms; the residual is always there.
#[derive(Clone, Debug, PartialEq)]
pub struct Sublayer {
    /// What it computes.
    pub kind: SublayerKind,
    /// Where its norms sit.
    pub norm: NormPlacement,
}

/// Parameters of `encoder_stack` and `decoder_stack`. Writes `[B, T', D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Input `[B, T, D]`.
    pub x: ValueId,
    /// Layers of sublayers.
    pub layers: Vec<Vec<Sublayer>>,
    /// `[B, T]`: 1 where a position may be attended to.
    pub mask: Option<ValueId>,
    /// Memory `[B, M, D]` of cross attention.
    pub memory: Option<ValueId>,
    /// `[B, M]`: 1 where a memory position may be attended to.
    pub memory_mask: Option<ValueId>,
    /// Groups `[B]`, `I32`, of group attention.
    pub groups: Option<ValueId>,
    /// Whether self-attention adds the scores of all earlier layers to its own (before softmax).
    pub residual_scores: bool,
    /// Norm after the last layer.
    pub final_norm: Option<NormWeights>,
    /// Which positions are written; the last layer computes no others.
    pub keep: Keep,
}

impl Stack {
    /// A stack without mask, memory or groups.
    pub fn new(x: ValueId, layers: Vec<Vec<Sublayer>>) -> Self {
        Stack {
            x,
            layers,
            mask: None,
            memory: None,
            memory_mask: None,
            groups: None,
            residual_scores: false,
            final_norm: None,
            keep: Keep::All,
        }
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.expect_rank("x", self.x, 3, "[B, T, D]")?;
        let d = c.fixed("the last axis of `x`", x.last())?;
        if let Some(mask) = self.mask {
            c.expect_value("mask", mask, &x[..2], "[B, T]")?;
        }
        if let Some(memory) = self.memory {
            let shape = c.expect_rank("memory", memory, 3, "[B, M, D]")?;
            if shape[0] != x[0] {
                return Err(c.error("`memory` has another batch than `x`"));
            }
            if let Some(mask) = self.memory_mask {
                c.expect_value("memory_mask", mask, &shape[..2], "[B, M]")?;
            }
        }
        if let Some(groups) = self.groups {
            c.expect_value("groups", groups, &x[..1], "[B]")?;
        }
        for (l, sublayer) in
            self.layers.iter().enumerate().flat_map(|(l, layer)| layer.iter().map(move |s| (l, s)))
        {
            self.check(c, l, d, sublayer)?;
        }
        if let Some(norm) = &self.final_norm {
            norm.check(c, "final norm", d)?;
        }
        let time = c.kept(self.keep, x[1])?;
        Ok(vec![(DType::F32, vec![x[0], time, x[2]])])
    }

    fn check(
        &self,
        c: &ShapeContext<'_>,
        l: usize,
        d: usize,
        sublayer: &Sublayer,
    ) -> Result<(), PlanError> {
        match &sublayer.norm {
            NormPlacement::Pre(norm) | NormPlacement::Post(norm) => {
                norm.check(c, &format!("layer {l} norm"), d)?;
            }
            NormPlacement::Sandwich { before, after } => {
                before.check(c, &format!("layer {l} norm before"), d)?;
                after.check(c, &format!("layer {l} norm after"), d)?;
            }
            NormPlacement::None => {}
        }
        match &sublayer.kind {
            SublayerKind::SelfAttention(a) => a.check(c, l, d, d),
            SublayerKind::GroupAttention(a) if a.causal || a.bias.is_some() || a.rope.is_some() => {
                Err(c.error(format!("layer {l}: attention over groups has no order or bias")))
            }
            SublayerKind::GroupAttention(a) if self.groups.is_some() => a.check(c, l, d, d),
            SublayerKind::GroupAttention(_) => {
                Err(c.error(format!("layer {l} attends over groups, and there are none")))
            }
            SublayerKind::CrossAttention(a) => match self.memory {
                Some(memory) => {
                    let m = c.fixed("the last axis of `memory`", c.shape(memory).last())?;
                    a.check(c, l, d, m)
                }
                None => Err(c.error(format!("layer {l} attends to a memory, and there is none"))),
            },
            SublayerKind::FeedForward(f) => {
                let ff = *c.weight(f.up.weight).first().unwrap_or(&0);
                f.up.check(c, &format!("layer {l} up"), ff, d)?;
                if let Some(gate) = &f.gate {
                    gate.check(c, &format!("layer {l} gate"), ff, d)?;
                }
                f.down.check(c, &format!("layer {l} down"), d, ff)
            }
        }
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
        for id in [&mut self.mask, &mut self.memory, &mut self.memory_mask, &mut self.groups] {
            id.iter_mut().for_each(&mut *visit);
        }
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        for sublayer in self.layers.iter_mut().flatten() {
            match &mut sublayer.norm {
                NormPlacement::Pre(norm) | NormPlacement::Post(norm) => norm.visit(visit),
                NormPlacement::Sandwich { before, after } => {
                    before.visit(visit);
                    after.visit(visit);
                }
                NormPlacement::None => {}
            }
            match &mut sublayer.kind {
                SublayerKind::SelfAttention(a)
                | SublayerKind::CrossAttention(a)
                | SublayerKind::GroupAttention(a) => a.visit(visit),
                SublayerKind::FeedForward(f) => {
                    f.up.visit(visit);
                    f.gate.iter_mut().for_each(|gate| gate.visit(visit));
                    f.down.visit(visit);
                }
            }
        }
        self.final_norm.iter_mut().for_each(|norm| norm.visit(visit));
    }
}

impl NormWeights {
    /// The norm op of these weights.
    pub fn op(&self, x: ValueId) -> super::Norm {
        super::Norm {
            x,
            kind: self.kind,
            weight: self.weight,
            weight_offset: self.weight_offset,
            bias: self.bias,
            eps: self.eps,
        }
    }

    fn check(&self, c: &ShapeContext<'_>, what: &str, d: usize) -> Result<(), PlanError> {
        let fixed = [crate::plan::Dim::Fixed(d)];
        // The norm's own rule, with this place in the message.
        let place = ShapeContext { place: format!("{} {what}", c.place), ..*c };
        self.op(ValueId(0)).check(&place, &fixed)
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        if let NormKind::Batch { mean, variance } = &mut self.kind {
            visit(mean);
            visit(variance);
        }
        self.weight.iter_mut().for_each(&mut *visit);
        self.bias.iter_mut().for_each(visit);
    }
}

impl Product {
    fn check(
        &self,
        c: &ShapeContext<'_>,
        what: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<(), PlanError> {
        c.expect_weight(what, self.weight, &[outputs, inputs], "[outputs, inputs]")?;
        match self.bias {
            Some(bias) => c.expect_weight(what, bias, &[outputs], "[outputs]"),
            None => Ok(()),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        visit(&mut self.weight);
        self.bias.iter_mut().for_each(visit);
    }
}

impl AttentionLayer {
    fn check(
        &self,
        c: &ShapeContext<'_>,
        l: usize,
        d: usize,
        memory: usize,
    ) -> Result<(), PlanError> {
        let width = self.heads.saturating_mul(self.head);
        if width == 0 || (self.rope.is_some() && !self.head.is_multiple_of(2)) {
            return Err(c.error(format!("layer {l}: {} heads of {}", self.heads, self.head)));
        }
        self.check_bias(c, l)?;
        self.query.check(c, &format!("layer {l} query"), width, d)?;
        self.key.check(c, &format!("layer {l} key"), width, memory)?;
        self.value.check(c, &format!("layer {l} value"), width, memory)?;
        self.output.check(c, &format!("layer {l} output"), d, width)
    }

    /// Bias matrices depend on the lengths and are checked by the attention op when lowered.
    fn check_bias(&self, c: &ShapeContext<'_>, l: usize) -> Result<(), PlanError> {
        if let Some(AttentionBias::Relative { table, bidirectional, .. }) = self.bias {
            let buckets = *c.weight(table).first().unwrap_or(&0);
            if buckets == 0 || (bidirectional && !buckets.is_multiple_of(2)) {
                return Err(c.error(format!("layer {l}: {buckets} buckets of relative positions")));
            }
            let what = format!("layer {l} bias");
            c.expect_weight(&what, table, &[buckets, self.heads], "[buckets, heads]")?;
        }
        if let Some(norm) = &self.qk_norm {
            c.expect_weight(
                &format!("layer {l} qk_norm.query"),
                norm.query,
                &[self.head],
                "[head]",
            )?;
            c.expect_weight(&format!("layer {l} qk_norm.key"), norm.key, &[self.head], "[head]")?;
        }
        match self.per_dim_scale {
            Some(scale) => {
                c.expect_weight(&format!("layer {l} per_dim_scale"), scale, &[self.head], "[head]")
            }
            None => Ok(()),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        for product in [&mut self.query, &mut self.key, &mut self.value, &mut self.output] {
            product.visit(visit);
        }
        match &mut self.bias {
            Some(AttentionBias::Relative { table, .. }) => visit(table),
            Some(AttentionBias::Weight(bias)) => visit(bias),
            None => {}
        }
        if let Some(norm) = &mut self.qk_norm {
            visit(&mut norm.query);
            visit(&mut norm.key);
        }
        self.per_dim_scale.iter_mut().for_each(visit);
    }
}

impl Stack {
    /// Layer by layer as the parameters say, all positions; not by way of the lowering, which is
    /// tested against this.
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let mut x = c.value(self.x).clone();
        let mut depth = Vec::new();
        for sublayer in self.layers.iter().flatten() {
            let mut run = |input: &Tensor| self.sublayer(c, &sublayer.kind, input, &mut depth);
            let norm = |norm: &NormWeights, x: &Tensor| norm.op(self.x).apply(c, x);
            x = match &sublayer.norm {
                NormPlacement::None => add(&x, run(&x)),
                NormPlacement::Pre(before) => add(&x, run(&norm(before, &x))),
                NormPlacement::Post(after) => norm(after, &add(&x, run(&x))),
                NormPlacement::Sandwich { before, after } => {
                    add(&x, norm(after, &run(&norm(before, &x))))
                }
            };
        }
        if let Some(norm) = &self.final_norm {
            x = norm.op(self.x).apply(c, &x);
        }
        let (rows, time, width) = (x.shape[0], x.shape[1], x.shape[2]);
        let kept = match self.keep {
            Keep::All => time,
            Keep::Last(n) => n,
        };
        vec![Tensor::from_fn([rows, kept, width], |at| x.at(&[at[0], time - kept + at[1], at[2]]))]
    }

    /// One sublayer without norms and residual. `depth` collects queries, keys and scales of the
    /// self-attention of earlier layers.
    fn sublayer(
        &self,
        c: &ReferenceContext<'_>,
        kind: &SublayerKind,
        x: &Tensor,
        depth: &mut Vec<(Tensor, Tensor, f64)>,
    ) -> Tensor {
        match kind {
            SublayerKind::SelfAttention(a) => {
                let mask = self.mask.map(|mask| c.value(mask));
                self.attention(c, a, x, x, mask, Over::Time(depth))
            }
            SublayerKind::CrossAttention(a) => {
                let memory = self.memory.expect("the shape rule demands a memory");
                let mask = self.memory_mask.map(|mask| c.value(mask));
                self.attention(c, a, x, c.value(memory), mask, Over::Time(&mut Vec::new()))
            }
            SublayerKind::GroupAttention(a) => {
                let groups = self.groups.expect("the shape rule demands groups");
                let mask = self.mask.map(|mask| c.value(mask));
                self.attention(c, a, x, x, mask, Over::Groups(&c.value(groups).data))
            }
            SublayerKind::FeedForward(f) => {
                let up = f.up.of(c, x);
                let inner = match &f.gate {
                    None => map(up, |x| f.activation.apply(x)),
                    Some(gate) => {
                        let gate = map(gate.of(c, x), |x| f.activation.apply(x));
                        Tensor::from_fn(up.shape.as_slice(), |at| up.at(at) * gate.at(at))
                    }
                };
                f.down.of(c, &inner)
            }
        }
    }

    fn attention(
        &self,
        c: &ReferenceContext<'_>,
        a: &AttentionLayer,
        x: &Tensor,
        memory: &Tensor,
        mask: Option<&Tensor>,
        mut over: Over<'_>,
    ) -> Tensor {
        let (rows, queries, keys) = (x.shape[0], x.shape[1], memory.shape[1]);
        let shift = keys as isize - queries as isize;
        let mut q = a.query.of(c, x);
        let mut k = a.key.of(c, memory);
        let v = a.value.of(c, memory);
        a.prepare(c, &mut q, shift, mask, a.qk_norm.map(|n| n.query));
        a.prepare(c, &mut k, 0, mask, a.qk_norm.map(|n| n.key));
        if let Some(scale) = a.per_dim_scale {
            let scale = &c.weight(scale).data;
            let factor = std::f64::consts::LOG2_E / (a.head as f64).sqrt();
            for (i, q) in q.data.iter_mut().enumerate() {
                *q *= factor * softplus(scale[i % a.head]);
            }
        }
        let own = (q, k, f64::from(a.scale));
        let (groups, depth) = match &mut over {
            Over::Time(depth) => {
                if !self.residual_scores {
                    depth.clear();
                }
                depth.push(own);
                (None, std::mem::take(*depth))
            }
            Over::Groups(groups) => (Some(*groups), vec![own]),
        };
        let mut y = Tensor::zeros([rows, queries, a.heads * a.head]);
        for b in 0..rows {
            for i in 0..queries {
                // Which (row, position) pairs the query may see.
                let mut visible: Vec<[usize; 2]> = match groups {
                    Some(groups) => {
                        (0..rows).filter(|&r| groups[r] == groups[b]).map(|r| [r, i]).collect()
                    }
                    None => (0..keys)
                        .filter(|&j| !a.causal || j as isize <= i as isize + shift)
                        .map(|j| [b, j])
                        .collect(),
                };
                visible.retain(|key| mask.is_none_or(|mask| mask.at(key) != 0.0));
                for h in 0..if visible.is_empty() { 0 } else { a.heads } {
                    let score = |&key: &[usize; 2]| {
                        let scores = depth.iter().map(|(q, k, scale)| {
                            let (q, k) = (a.head_of(q, [b, i], h), a.head_of(k, key, h));
                            scale * dot(q, k)
                        });
                        scores.sum::<f64>() + a.bias_at(c, h, i, key[1], shift)
                    };
                    let mut weights: Vec<f64> = visible.iter().map(score).collect();
                    softmax(&mut weights);
                    let mut mean = vec![0.0; a.head];
                    for (weight, &key) in weights.iter().zip(&visible) {
                        for (mean, v) in mean.iter_mut().zip(a.head_of(&v, key, h)) {
                            *mean += weight * v;
                        }
                    }
                    for (d, mean) in mean.into_iter().enumerate() {
                        *y.at_mut(&[b, i, h * a.head + d]) = mean;
                    }
                }
            }
        }
        if let Over::Time(kept) = over {
            *kept = depth;
        }
        a.output.of(c, &y)
    }
}

/// What attention of a stack runs over, with what it needs for that.
enum Over<'a> {
    /// Positions of the row; queries, keys and scales of this and earlier layers are collected.
    Time(&'a mut Vec<(Tensor, Tensor, f64)>),
    /// Rows of the batch that have the same number.
    Groups(&'a [f64]),
}

impl AttentionLayer {
    /// Rotates queries or keys, then normalises them head by head.
    fn prepare(
        &self,
        c: &ReferenceContext<'_>,
        x: &mut Tensor,
        first: isize,
        mask: Option<&Tensor>,
        norm: Option<WeightId>,
    ) {
        let (time, half) = (x.shape[1], self.head / 2);
        for (i, head) in x.data.chunks_exact_mut(self.head).enumerate() {
            let index = (i / self.heads % time) as isize + first;
            if let Some(rope) = self.rope {
                let position = match mask.filter(|_| rope.skip_masked) {
                    Some(mask) => {
                        let row = i / (self.heads * time);
                        let before = (0..index).filter(|&j| mask.at(&[row, j as usize]) != 0.0);
                        before.count() as isize
                    }
                    None => index,
                };
                let before = head.to_vec();
                for j in 0..half {
                    let exponent = -2.0 * j as f64 / self.head as f64;
                    let angle = position as f64 * f64::from(rope.theta).powf(exponent);
                    head[j] = before[j] * angle.cos() - before[j + half] * angle.sin();
                    head[j + half] = before[j + half] * angle.cos() + before[j] * angle.sin();
                }
            }
            if let (Some(weight), Some(qk_norm)) = (norm, self.qk_norm) {
                let mean = head.iter().map(|x| x * x).sum::<f64>() / self.head as f64;
                let root = (mean + f64::from(qk_norm.eps)).sqrt();
                for (x, w) in head.iter_mut().zip(&c.weight(weight).data) {
                    *x = *x / root * w;
                }
            }
        }
    }

    /// Head `h` of the vector at (row, position).
    fn head_of<'a>(&self, x: &'a Tensor, at: [usize; 2], h: usize) -> &'a [f64] {
        let start = (at[0] * x.shape[1] + at[1]) * x.shape[2] + h * self.head;
        &x.data[start..start + self.head]
    }

    fn bias_at(
        &self,
        c: &ReferenceContext<'_>,
        head: usize,
        query: usize,
        key: usize,
        shift: isize,
    ) -> f64 {
        match self.bias {
            None => 0.0,
            Some(AttentionBias::Relative { table, max_distance, bidirectional }) => {
                let table = c.weight(table);
                let relative = key as isize - (query as isize + shift);
                let buckets = table.shape[0];
                let bucket = relative_bucket(relative, buckets, max_distance, bidirectional);
                table.at(&[bucket, head])
            }
            Some(AttentionBias::Weight(bias)) => {
                let bias = c.weight(bias);
                bias.at(&[if bias.shape[0] == 1 { 0 } else { head }, query, key])
            }
        }
    }
}

impl Product {
    fn of(&self, c: &ReferenceContext<'_>, x: &Tensor) -> Tensor {
        product(x, c.weight(self.weight), c.optional(self.bias))
    }
}

/// The sum of two tensors of one shape.
fn add(a: &Tensor, b: Tensor) -> Tensor {
    let data: Vec<f64> = a.data.iter().zip(b.data).map(|(a, b)| a + b).collect();
    Tensor::new(a.shape.as_slice(), data)
}

/// A function of every element.
fn map(mut x: Tensor, f: impl Fn(f64) -> f64) -> Tensor {
    x.data.iter_mut().for_each(|x| *x = f(*x));
    x
}
