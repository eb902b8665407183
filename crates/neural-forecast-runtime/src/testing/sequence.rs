//! Cases of `attention`, `encoder_stack` and `decoder_stack`.

use super::ops::bucket;
use super::{Case, CaseBuilder};
use crate::ops::{
    Activation, Attention, AttentionBias, AttentionLayer, Columns, FeedForward, Keep, KeyValueRing,
    NormKind, NormPlacement, NormWeights, Op, Product, QkNorm, Rope, Stack, Sublayer, SublayerKind,
};
use crate::plan::{Dim, StateKind};

/// Queries, keys and values as columns of one value `[B, T, 3 · width]`.
fn packed(c: &mut CaseBuilder, heads: usize, head: usize) -> Attention {
    let width = heads * head;
    let value = c.input(&[Dim::BATCH, Dim::LENGTH, (3 * width).into()]);
    let columns = |i: usize| Columns { value, start: i * width, width };
    c.terms(4 * head);
    Attention::new(columns(0), columns(1), columns(2), heads, 1.0 / (head as f32).sqrt())
}

pub(super) fn attention(cases: &mut Vec<Case>) {
    for (rows, time, heads, head) in [
        (1, 1, 1, 1),
        (3, 7, 2, 4),
        (2, 16, 4, 8),
        (2, 17, 3, 16),
        (1, 65, 1, 33),
        (5, 12, 8, 2),
        (1, 150, 2, 40),
    ] {
        for causal in [false, true] {
            let name = format!("attention {rows}x{time} {heads}x{head} causal {causal}");
            let mut c = CaseBuilder::new(name, bucket(rows, time));
            let plain = Attention { causal, ..packed(&mut c, heads, head) };
            let y = c.step(plain.clone());
            let mask = c.mask(&[Dim::BATCH, Dim::LENGTH]);
            let masked = c.step(Attention { key_mask: Some(mask), ..plain });
            cases.push(c.finish(&[y, masked]));
        }
    }
    let (heads, head, time) = (3, 8, 11);
    let mut variant = |name: &str, change: &dyn Fn(&mut CaseBuilder, &mut Attention)| {
        let mut c = CaseBuilder::new(format!("attention {name}"), bucket(3, time));
        let mut attention = packed(&mut c, heads, head);
        change(&mut c, &mut attention);
        let y = c.step(attention);
        cases.push(c.finish(&[y]));
    };
    for bidirectional in [false, true] {
        variant(&format!("relative bias, both ways {bidirectional}"), &|c, a| {
            let table = c.weight(&[8, heads]);
            a.bias = Some(AttentionBias::Relative { table, max_distance: 9, bidirectional });
            a.causal = !bidirectional;
        });
    }
    variant("rotary", &|_, a| a.rope = Some(Rope { theta: 10_000.0, skip_masked: false }));
    variant("rotary, normalised, scaled by dimension", &|c, a| {
        a.rope = Some(Rope { theta: 100.0, skip_masked: false });
        a.qk_norm = Some(QkNorm { query: c.positive(head), key: c.positive(head), eps: 1e-6 });
        a.per_dim_scale = Some(c.bias(head));
        a.scales = vec![1.0];
        a.causal = true;
    });
    variant("rotary by visible rows", &|c, a| {
        a.rope = Some(Rope { theta: 100.0, skip_masked: true });
        a.qk_norm = Some(QkNorm { query: c.positive(head), key: c.positive(head), eps: 1e-6 });
        a.key_mask = Some(c.mask(&[Dim::BATCH, Dim::LENGTH]));
        a.causal = true;
    });
    variant("over groups", &|c, a| {
        a.groups = Some(c.integers(&[Dim::BATCH], 0, 2));
        a.key_mask = Some(c.mask(&[Dim::BATCH, Dim::LENGTH]));
    });
    variant("with scores of another depth", &|c, a| {
        let width = heads * head;
        let value = c.input(&[Dim::BATCH, Dim::LENGTH, (2 * width).into()]);
        a.queries.push(Columns { value, start: 0, width });
        a.keys.push(Columns { value, start: width, width });
        a.scales.push(0.5);
    });
    variant("with one value head", &|_, a| {
        a.values.width = 5;
        a.mean_heads = true;
    });
    across(cases);
    rings(cases);
}

/// Other numbers of queries than keys, and bias matrices.
fn across(cases: &mut Vec<Case>) {
    for (queries, heads) in [(1, 2), (5, 1), (12, 4)] {
        let mut c = CaseBuilder::new(format!("attention of {queries} over a memory"), bucket(3, 9));
        let width = heads * 6;
        let q = c.input(&[Dim::BATCH, queries.into(), width.into()]);
        let k = c.input(&[Dim::BATCH, Dim::LENGTH, width.into()]);
        let v = c.input(&[Dim::BATCH, Dim::LENGTH, (heads * 4).into()]);
        let mask = c.mask(&[Dim::BATCH, Dim::LENGTH]);
        let (q, k) = (Columns::all(q, width), Columns::all(k, width));
        let plain = Attention::new(q, k, Columns::all(v, heads * 4), heads, 0.4);
        c.terms(24);
        let masked = c.step(Attention { key_mask: Some(mask), ..plain.clone() });
        let causal = c.step(Attention { causal: true, ..plain });
        cases.push(c.finish(&[masked, causal]));
    }
    for shared in [1, 3] {
        let name = format!("attention with a bias matrix of {shared} heads");
        let mut c = CaseBuilder::new(name, bucket(2, 1));
        let (queries, keys, width) = (4, 7, 12);
        let q = c.input(&[Dim::BATCH, queries.into(), width.into()]);
        let kv = c.input(&[Dim::BATCH, keys.into(), (2 * width).into()]);
        let bias = c.weight(&[shared, queries, keys]);
        c.terms(12);
        let k = Columns { value: kv, start: 0, width };
        let v = Columns { value: kv, start: width, width };
        let plain = Attention::new(Columns::all(q, width), k, v, 3, 0.5);
        let y = c.step(Attention { bias: Some(AttentionBias::Weight(bias)), ..plain });
        cases.push(c.finish(&[y]));
    }
}

/// Rings of several capacities, stepped by one row and by several.
fn rings(cases: &mut Vec<Case>) {
    for (time, capacity, causal) in [(1, 1, true), (1, 2, true), (3, 4, true), (2, 8, false)] {
        let name = format!("attention over a ring of {capacity} by {time} causal {causal}");
        let mut c = CaseBuilder::new(name, bucket(3, 1)).stateful();
        let (heads, head) = (2, 4);
        let width = heads * head;
        let value = c.input(&[Dim::BATCH, time.into(), (3 * width).into()]);
        let columns = |i: usize| Columns { value, start: i * width, width };
        let ring = KeyValueRing {
            keys: c.state(StateKind::KeyRing, &[capacity, width]),
            values: c.state(StateKind::ValueRing, &[capacity, width]),
            position: c.state(StateKind::RingPosition, &[1]),
        };
        c.terms(16);
        let plain = Attention::new(columns(0), columns(1), columns(2), heads, 0.5);
        let rope = Some(Rope { theta: 100.0, skip_masked: false });
        let y = c.step(Attention { ring: Some(ring), causal, rope, ..plain });
        cases.push(c.finish(&[y]));
    }
}

fn product(c: &mut CaseBuilder, outputs: usize, inputs: usize, bias: bool) -> Product {
    Product { weight: c.weight(&[outputs, inputs]), bias: bias.then(|| c.bias(outputs)) }
}

fn norm(c: &mut CaseBuilder, d: usize, kind: usize) -> NormWeights {
    let (weight, bias) = (Some(c.positive(d)), Some(c.bias(d)));
    let layer = NormWeights { kind: NormKind::Layer, weight, weight_offset: 0.0, bias, eps: 1e-5 };
    match kind {
        0 => layer,
        1 => NormWeights { kind: NormKind::Rms, bias: None, ..layer },
        _ => {
            let kind = NormKind::Batch { mean: c.bias(d), variance: c.positive(d) };
            NormWeights { kind, ..layer }
        }
    }
}

fn attention_layer(c: &mut CaseBuilder, d: usize, memory: usize, heads: usize) -> AttentionLayer {
    let head = 4;
    let bias = d.is_multiple_of(2);
    AttentionLayer {
        query: product(c, heads * head, d, bias),
        key: product(c, heads * head, memory, bias),
        value: product(c, heads * head, memory, bias),
        output: product(c, d, heads * head, bias),
        heads,
        head,
        scale: 0.5,
        causal: false,
        bias: None,
        rope: None,
        qk_norm: None,
        per_dim_scale: None,
    }
}

fn feed_forward(c: &mut CaseBuilder, d: usize, gated: bool, activation: Activation) -> FeedForward {
    let ff = 2 * d + 1;
    FeedForward {
        up: product(c, ff, d, true),
        gate: gated.then(|| product(c, ff, d, false)),
        down: product(c, d, ff, true),
        activation,
    }
}

pub(super) fn stacks(cases: &mut Vec<Case>) {
    for (what, norms) in
        ["none", "pre", "post", "sandwich"].into_iter().enumerate().map(|(i, w)| (w, i))
    {
        for keep in [Keep::All, Keep::Last(1), Keep::Last(3)] {
            for (kind, width) in [(0, 8), (1, 7), (2, 12)] {
                let name = format!("encoder_stack {what} norm {kind} width {width} {keep:?}");
                let mut c = CaseBuilder::new(name, bucket(2, 6));
                let x = c.input(&[Dim::BATCH, Dim::LENGTH, width.into()]);
                let mask = c.mask(&[Dim::BATCH, Dim::LENGTH]);
                let mut layers = Vec::new();
                for l in 0..2 {
                    let place = |c: &mut CaseBuilder| match norms {
                        0 => NormPlacement::None,
                        1 => NormPlacement::Pre(norm(c, width, kind)),
                        2 => NormPlacement::Post(norm(c, width, kind)),
                        _ => NormPlacement::Sandwich {
                            before: norm(c, width, kind),
                            after: norm(c, width, kind),
                        },
                    };
                    let mut a = attention_layer(&mut c, width, width, 2);
                    a.causal = kind == 1;
                    a.rope = (kind == 2).then_some(Rope { theta: 100.0, skip_masked: norms == 1 });
                    let attention =
                        Sublayer { kind: SublayerKind::SelfAttention(a), norm: place(&mut c) };
                    let activation = if l == 0 { Activation::Gelu } else { Activation::Relu };
                    let f = feed_forward(&mut c, width, norms == 1, activation);
                    let feed = Sublayer { kind: SublayerKind::FeedForward(f), norm: place(&mut c) };
                    layers.push(vec![attention, feed]);
                }
                let final_norm = (norms != 2).then(|| norm(&mut c, width, kind));
                c.terms(400);
                let mask = (kind != 0).then_some(mask);
                let stack = Stack { mask, keep, final_norm, ..Stack::new(x, layers) };
                let y = c.step(Op::EncoderStack(stack));
                cases.push(c.finish(&[y]));
            }
        }
    }
    special(cases);
    decoders(cases);
}

/// Residual scores, relative bias, bias matrices, group attention, normalised queries.
fn special(cases: &mut Vec<Case>) {
    for keep in [Keep::All, Keep::Last(2)] {
        let mut stack = |name: &str,
                         change: &dyn Fn(&mut CaseBuilder, &mut AttentionLayer),
                         finish: &dyn Fn(&mut CaseBuilder, &mut Stack)| {
            let mut c = CaseBuilder::new(format!("encoder_stack {name} {keep:?}"), bucket(4, 5));
            let width = 8;
            let x = c.input(&[Dim::BATCH, 5.into(), width.into()]);
            let mut layers = Vec::new();
            for _ in 0..3 {
                let mut a = attention_layer(&mut c, width, width, 2);
                change(&mut c, &mut a);
                let norm = NormPlacement::Post(norm(&mut c, width, 2));
                let attention = Sublayer { kind: SublayerKind::SelfAttention(a), norm };
                let f = feed_forward(&mut c, width, false, Activation::Gelu);
                let norm = NormPlacement::Pre(self::norm(&mut c, width, 1));
                layers.push(vec![attention, Sublayer { kind: SublayerKind::FeedForward(f), norm }]);
            }
            let mut stack = Stack { keep, ..Stack::new(x, layers) };
            finish(&mut c, &mut stack);
            c.terms(600);
            let y = c.step(Op::EncoderStack(stack));
            cases.push(c.finish(&[y]));
        };
        stack("residual scores", &|_, _| (), &|_, s| s.residual_scores = true);
        stack(
            "residual rotated scores",
            &|_, a| a.rope = Some(Rope { theta: 50.0, skip_masked: false }),
            &|_, s| {
                s.residual_scores = true;
            },
        );
        stack(
            "relative bias",
            &|c, a| {
                let table = c.weight(&[6, 2]);
                let (max_distance, bidirectional) = (5, true);
                a.bias = Some(AttentionBias::Relative { table, max_distance, bidirectional });
            },
            &|_, _| (),
        );
        stack(
            "bias matrix",
            &|c, a| a.bias = Some(AttentionBias::Weight(c.weight(&[1, 5, 5]))),
            &|_, _| (),
        );
        stack(
            "normalised queries",
            &|c, a| {
                a.qk_norm = Some(QkNorm { query: c.positive(4), key: c.positive(4), eps: 1e-6 });
                a.per_dim_scale = Some(c.bias(4));
                a.rope = Some(Rope { theta: 50.0, skip_masked: false });
                a.causal = true;
            },
            &|_, _| (),
        );
        stack("groups", &|_, _| (), &|c, s| {
            s.groups = Some(c.integers(&[Dim::BATCH], 0, 2));
            s.mask = Some(c.mask(&[Dim::BATCH, 5.into()]));
            for layer in &mut s.layers {
                let a = attention_layer(c, 8, 8, 2);
                let norm = NormPlacement::Pre(norm(c, 8, 1));
                layer.insert(1, Sublayer { kind: SublayerKind::GroupAttention(a), norm });
            }
        });
    }
}

fn decoders(cases: &mut Vec<Case>) {
    for (time, memory_width, keep) in [(1, 8, Keep::All), (4, 6, Keep::All), (4, 8, Keep::Last(1))]
    {
        let name = format!("decoder_stack {time} over a memory of {memory_width} {keep:?}");
        let mut c = CaseBuilder::new(name, bucket(3, 7));
        let width = 8;
        let x = c.input(&[Dim::BATCH, time.into(), width.into()]);
        let memory = c.input(&[Dim::BATCH, Dim::LENGTH, memory_width.into()]);
        let mask = c.mask(&[Dim::BATCH, Dim::LENGTH]);
        let mut layers = Vec::new();
        for _ in 0..2 {
            let mut own = attention_layer(&mut c, width, width, 2);
            own.causal = true;
            let cross = attention_layer(&mut c, width, memory_width, 2);
            let f = feed_forward(&mut c, width, false, Activation::Relu);
            let kinds = [
                SublayerKind::SelfAttention(own),
                SublayerKind::CrossAttention(cross),
                SublayerKind::FeedForward(f),
            ];
            let place = |c: &mut CaseBuilder| NormPlacement::Pre(norm(c, width, 1));
            layers.push(
                kinds.into_iter().map(|kind| Sublayer { kind, norm: place(&mut c) }).collect(),
            );
        }
        let final_norm = Some(norm(&mut c, width, 1));
        c.terms(400);
        let stack = Stack {
            memory: Some(memory),
            memory_mask: Some(mask),
            final_norm,
            keep,
            ..Stack::new(x, layers)
        };
        let y = c.step(Op::DecoderStack(stack));
        cases.push(c.finish(&[y]));
    }
}
