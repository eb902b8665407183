//! The reference implementations against numbers worked out by hand or by other programs.
//!
//! Random cases and devices are `conformance`; this file is what makes the reference trustworthy.

use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::ops::{
    Activation, Affine, Attention, AttentionBias, Binary, BinaryKind, Cell, Center, Columns,
    Concat, Denormalize, Distribution, Embedding, EmpiricalQuantiles, Gate, Gather, Initial,
    Interpolate, InterpolateKind, Keep, KeyValueRing, Linear, LinearAxis, Masked, Norm, NormKind,
    Normalize, Op, Patch, PatchPad, Pool, PoolKind, QkNorm, Ramp, RnnStack, RnnStates, RnnWeights,
    Rope, Sample, Scaler, Slice, Spread, Statistics, Transpose, Unary, UnaryKind, WeightedSum,
    ZeroSpread, relative_bucket,
};
use neural_forecast_runtime::plan::{
    Bucket, Context, DType, Dim, EntryKind, PlanBuilder, StateId, StateKind, ValueId, WeightId,
};
use neural_forecast_runtime::reference::{Tensor, run_entry, zero_states};

/// A plan of fixed shapes under construction, with its numbers.
struct Bench {
    plan: PlanBuilder,
    weights: MemoryWeights,
    inputs: Vec<(String, Tensor)>,
}

impl Bench {
    fn new() -> Self {
        let mut plan = PlanBuilder::new("bench", Context::Fixed(10));
        plan.begin(EntryKind::Full);
        Bench { plan, weights: MemoryWeights::new(), inputs: Vec::new() }
    }

    /// An input whose first axis is the batch.
    fn input(&mut self, shape: &[usize], data: &[f64]) -> ValueId {
        self.typed(DType::F32, shape, data)
    }

    fn typed(&mut self, dtype: DType, shape: &[usize], data: &[f64]) -> ValueId {
        let name = format!("x{}", self.inputs.len());
        let mut dims: Vec<Dim> = shape.iter().map(|&n| n.into()).collect();
        dims[0] = Dim::BATCH;
        self.inputs.push((name.clone(), Tensor::new(shape, data)));
        self.plan.input(name, dtype, &dims)
    }

    fn weight(&mut self, shape: &[usize], data: &[f32]) -> WeightId {
        let name = format!("w{}", self.weights.names().count());
        self.weights.insert(name.clone(), shape, data);
        self.plan.weight(name, shape)
    }

    fn one(&mut self, op: impl Into<Op>) -> ValueId {
        self.plan.one(op).expect("the shapes fit")
    }

    /// Runs once; the outputs in order.
    fn run(self, outputs: &[ValueId]) -> Vec<Tensor> {
        self.stream(outputs, 1).remove(0)
    }

    /// Runs several times with states carried over.
    fn stream(mut self, outputs: &[ValueId], runs: usize) -> Vec<Vec<Tensor>> {
        for (i, &output) in outputs.iter().enumerate() {
            self.plan.output(format!("y{i}"), output, Vec::new());
        }
        let plan = self.plan.finish().expect("the plan is whole");
        let batch = self.inputs.first().map_or(1, |(_, tensor)| tensor.shape[0]);
        let bucket = Bucket { batch, length: 10 };
        let inputs: Vec<_> = self.inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        let mut states = zero_states(&plan, batch);
        let runs = (0..runs).map(|_| {
            let ran =
                run_entry(&plan, EntryKind::Full, bucket, &self.weights, &inputs, &mut states);
            ran.expect("it runs").into_iter().map(|(_, tensor)| tensor).collect()
        });
        runs.collect()
    }
}

#[track_caller]
fn close(found: &Tensor, shape: &[usize], expected: &[f64]) {
    assert_eq!(found.shape, shape);
    assert_eq!(found.data.len(), expected.len());
    for (found, expected) in found.data.iter().zip(expected) {
        // Weights and parameters are f32, so what they name is known to 1e-7.
        assert!((found - expected).abs() <= 2e-7, "{found}, expected {expected}");
    }
}

#[test]
fn a_product_adds_its_residual_last() {
    let mut b = Bench::new();
    let x = b.input(&[1, 2], &[1.0, 2.0]);
    let residual = b.input(&[1, 1], &[10.0]);
    // value = relu(1·1 + 2·(−2) + 0.5) = 0, then the other one: relu(1 + 4 + 0.5) = 5.5.
    let (weight, bias) = (b.weight(&[1, 2], &[1.0, -2.0]), b.weight(&[1], &[0.5]));
    let other = b.weight(&[1, 2], &[1.0, 2.0]);
    let gate = Gate { weight, bias: Some(bias), activation: Activation::Identity };
    let zero =
        b.one(Linear::new(x, weight).bias(bias).activation(Activation::Relu).residual(residual));
    let all = Linear::new(x, other).bias(bias).activation(Activation::Relu).gate(gate);
    let all = b.one(all.residual(residual));
    let y = b.run(&[zero, all]);
    close(&y[0], &[1, 1], &[10.0]);
    close(&y[1], &[1, 1], &[5.5 * -2.5 + 10.0]);
}

#[test]
fn products_contract_time_and_heads() {
    let mut b = Bench::new();
    let x = b.input(&[1, 3, 2], &[1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
    let weight = b.weight(&[1, 3], &[1.0, 0.0, -1.0]);
    let bias = b.weight(&[1], &[0.5]);
    let time = b.one(Linear::new(x, weight).bias(bias).along(LinearAxis::Time));
    let heads = b.weight(&[2, 1, 1], &[3.0, -1.0]);
    let headwise = b.one(Linear::new(x, heads).along(LinearAxis::Heads(2)));
    let y = b.run(&[time, headwise]);
    close(&y[0], &[1, 1, 2], &[-1.5, -19.5]);
    close(&y[1], &[1, 3, 2], &[3.0, -10.0, 6.0, -20.0, 9.0, -30.0]);
}

#[test]
fn norms_follow_their_formulas() {
    let mut b = Bench::new();
    let x = b.input(&[1, 4], &[1.0, 3.0, 10.0, 20.0]);
    let (weight, bias) =
        (b.weight(&[4], &[1.0, 2.0, 1.0, 1.0]), b.weight(&[4], &[0.0, 0.5, 0.0, 0.0]));
    let (mean, variance) = (b.weight(&[4], &[1.0; 4]), b.weight(&[4], &[4.0; 4]));
    let layer = Norm::layer(x, weight, bias, 0.0);
    let group = b.one(Norm { kind: NormKind::Group(2), ..layer.clone() });
    let offset = b.one(Norm { kind: NormKind::Group(2), weight_offset: 1.0, ..layer.clone() });
    let batch = b.one(Norm { kind: NormKind::Batch { mean, variance }, ..layer.clone() });
    let rms = b.one(Norm { kind: NormKind::Rms, bias: None, weight: None, ..layer.clone() });
    let layer = b.one(Norm { eps: 1.0, ..layer });
    let y = b.run(&[group, offset, batch, rms, layer]);
    close(&y[0], &[1, 4], &[-1.0, 2.5, -1.0, 1.0]);
    close(&y[1], &[1, 4], &[-2.0, 3.5, -2.0, 2.0]);
    close(&y[2], &[1, 4], &[0.0, 2.5, 4.5, 9.5]);
    let root = (510.0_f64 / 4.0).sqrt();
    close(&y[3], &[1, 4], &[1.0 / root, 3.0 / root, 10.0 / root, 20.0 / root]);
    // Mean 8.5, population variance 55.25, and 1 inside the root: divided by 7.5.
    close(&y[4], &[1, 4], &[-1.0, 2.0 * (-5.5 / 7.5) + 0.5, 0.2, 11.5 / 7.5]);
}

/// Outputs and final states of the recurrences above.
const LSTM: &[f64] = &[0.074_428_036_751_757_7, -0.005_833_076_450_867_678];
const LSTM_STATES: &[f64] = &[-0.005_833_076_450_867_678, -0.014_025_413_730_984_343];
const PROJECTED: &[f64] = &[-0.148_856_073_503_515_4, 0.069_341_917_572_026_97];
const PROJECTED_STATES: &[f64] = &[0.069_341_917_572_026_97, -0.075_538_304_568_363_69];
const GRU: &[f64] = &[0.097_206_324_533_282_41, -0.063_538_762_424_472_22];
const SLSTM: &[f64] = &[0.141_887_320_934_300_84, 0.005_056_137_954_295_494];
const SLSTM_STATES: &[f64] = &[
    0.005_056_137_954_295_494,
    0.018_647_415_368_565_845,
    1.485_824_538_005_649_2,
    0.030_943_660_467_150_413,
];

/// One unit with these input weights, recurrent weights and biases per gate.
fn unit(b: &mut Bench, gates: usize, shape: &[usize], projection: Option<f32>) -> RnnWeights {
    let (input, hidden) = ([0.1, 0.2, 0.3, 0.4], [0.5, -0.6, 0.7, -0.8]);
    let (b_ih, b_hh) = ([0.01, 0.02, 0.03, 0.04], [0.05, 0.06, 0.07, 0.08]);
    RnnWeights {
        w_ih: b.weight(shape, &input[..gates]),
        w_hh: b.weight(shape, &hidden[..gates]),
        b_ih: Some(b.weight(&[gates], &b_ih[..gates])),
        b_hh: Some(b.weight(&[gates], &b_hh[..gates])),
        w_hr: projection.map(|p| b.weight(&[1, 1], &[p])),
    }
}

#[test]
fn recurrences_give_numbers_computed_elsewhere() {
    // Two steps of one unit, by a dozen lines of Python written from the papers.
    type Known = (Cell, Option<f32>, &'static [f64], &'static [f64]);
    let known: [Known; 4] = [
        (Cell::Lstm, None, LSTM, LSTM_STATES),
        (Cell::Lstm, Some(-2.0), PROJECTED, PROJECTED_STATES),
        (Cell::Gru, None, GRU, &GRU[1..]),
        (Cell::Slstm { heads: 1 }, None, SLSTM, SLSTM_STATES),
    ];
    for (cell, projection, outputs, states) in known {
        let mut b = Bench::new();
        let x = b.input(&[1, 2, 1], &[0.5, -1.0]);
        let gates = cell.gates();
        let shape = if let Cell::Slstm { .. } = cell { vec![4, 1, 1, 1] } else { vec![gates, 1] };
        let weights = unit(&mut b, gates, &shape, projection);
        let stack = RnnStack::new(x, cell, 1, vec![vec![weights]]);
        let projection = projection.map(|_| 1);
        let y = b.plan.step(RnnStack { projection, finals: true, ..stack }).expect("it fits");
        let found = b.run(&y);
        close(&found[0], &[1, 2, 1], outputs);
        for (state, &expected) in found[1..].iter().zip(states) {
            close(state, &[1, 1, 1], &[expected]);
        }
        assert_eq!(found.len() - 1, states.len(), "{cell:?}");
    }
}

#[test]
fn the_second_direction_runs_from_the_end() {
    let mut b = Bench::new();
    let x = b.input(&[1, 3, 1], &[0.1, 0.2, 0.3]);
    // h' = tanh(x + h): forward sums up prefixes, backward suffixes.
    let mut one = || {
        let (w_ih, w_hh) = (b.weight(&[1, 1], &[1.0]), b.weight(&[1, 1], &[1.0]));
        RnnWeights { w_ih, w_hh, b_ih: None, b_hh: None, w_hr: None }
    };
    let layers = vec![vec![one(), one()]];
    let stack = RnnStack { finals: true, ..RnnStack::new(x, Cell::RnnTanh, 1, layers) };
    let last = RnnStack { keep: Keep::Last(1), ..stack.clone() };
    let y = b.plan.step(stack).expect("it fits");
    let last = b.plan.step(last).expect("it fits")[0];
    let found = b.run(&[y[0], y[1], last]);
    let forward = [
        0.1_f64.tanh(),
        (0.2 + 0.1_f64.tanh()).tanh(),
        (0.3 + (0.2 + 0.1_f64.tanh()).tanh()).tanh(),
    ];
    let back = [
        0.3_f64.tanh(),
        (0.2 + 0.3_f64.tanh()).tanh(),
        (0.1 + (0.2 + 0.3_f64.tanh()).tanh()).tanh(),
    ];
    let outputs = [forward[0], back[2], forward[1], back[1], forward[2], back[0]];
    close(&found[0], &[1, 3, 2], &outputs);
    close(&found[1], &[1, 2, 1], &[forward[2], back[2]]);
    close(&found[2], &[1, 1, 2], &outputs[4..]);
}

#[test]
fn states_carry_a_stream() {
    let known = |steps: usize, carried: bool| {
        let mut b = Bench::new();
        let inputs: Vec<f64> = if carried { vec![0.5] } else { vec![0.5; steps] };
        let x = b.input(&[1, inputs.len(), 1], &inputs);
        let layers =
            vec![vec![unit(&mut b, 4, &[4, 1], None)], vec![unit(&mut b, 4, &[4, 1], None)]];
        let mut stack = RnnStack::new(x, Cell::Lstm, 1, layers);
        if carried {
            let mut state = |kind| b.plan.state(format!("{kind:?}"), kind, &[2, 1]);
            let slots = vec![state(StateKind::Hidden), state(StateKind::Cell)];
            stack.initial = Initial::Slots;
            stack.states = Some(RnnStates { slots, write: true });
        }
        let y = b.one(stack);
        let runs = b.stream(&[y], if carried { steps } else { 1 });
        runs.last().and_then(|run| run[0].data.last().copied()).expect("there is an output")
    };
    assert!((known(4, true) - known(4, false)).abs() <= 1e-15);
}

#[test]
fn equal_scores_average_the_values_that_are_visible() {
    let mut b = Bench::new();
    let q = b.input(&[1, 3, 2], &[0.0; 6]);
    let v = b.input(&[1, 3, 2], &[1.0, -1.0, 3.0, 5.0, 8.0, 2.0]);
    let mask = b.input(&[1, 3], &[1.0, 1.0, 0.0]);
    let none = b.input(&[1, 3], &[0.0; 3]);
    let (q, v) = (Columns::all(q, 2), Columns::all(v, 2));
    let plain = Attention::new(q, q, v, 2, 1.0);
    let all = b.one(plain.clone());
    let causal = b.one(Attention { causal: true, ..plain.clone() });
    let masked = b.one(Attention { key_mask: Some(mask), ..plain.clone() });
    let blind = b.one(Attention { key_mask: Some(none), ..plain.clone() });
    let mean = b.one(Attention { mean_heads: true, ..plain });
    let y = b.run(&[all, causal, masked, blind, mean]);
    close(&y[0], &[1, 3, 2], &[4.0, 2.0, 4.0, 2.0, 4.0, 2.0]);
    close(&y[1], &[1, 3, 2], &[1.0, -1.0, 2.0, 2.0, 4.0, 2.0]);
    close(&y[2], &[1, 3, 2], &[2.0; 6]);
    close(&y[3], &[1, 3, 2], &[0.0; 6]);
    // Two heads over one value of width 2, averaged: the same mean.
    close(&y[4], &[1, 3, 2], &[4.0, 2.0, 4.0, 2.0, 4.0, 2.0]);
}

#[test]
fn scores_of_several_depths_add_up() {
    let mut b = Bench::new();
    let q = b.input(&[1, 1, 1], &[1.0]);
    let k = b.input(&[1, 2, 2], &[1.0, 10.0, 2.0, 20.0]);
    let v = b.input(&[1, 2, 1], &[0.0, 1.0]);
    let (first, second) =
        (Columns { value: k, start: 0, width: 1 }, Columns { value: k, start: 1, width: 1 });
    let q = Columns::all(q, 1);
    let mut attention = Attention::new(q, first, Columns::all(v, 1), 1, 0.5);
    attention.queries.push(q);
    attention.keys.push(second);
    attention.scales.push(0.1);
    let bias = b.weight(&[1, 1, 2], &[0.0, 3.0]);
    let plain = b.one(attention.clone());
    let biased = b.one(Attention { bias: Some(AttentionBias::Weight(bias)), ..attention });
    let y = b.run(&[plain, biased]);
    // Scores 0.5 + 1 and 1 + 2: the difference is 1.5, with bias 4.5.
    close(&y[0], &[1, 1, 1], &[1.0 / (1.0 + (-1.5_f64).exp())]);
    close(&y[1], &[1, 1, 1], &[1.0 / (1.0 + (-4.5_f64).exp())]);
}

#[test]
fn relative_positions_fall_into_the_buckets_of_t5() {
    // 32 buckets up to distance 128, as in every Chronos-Bolt: exact up to 7, then logarithmic.
    let both = |relative| relative_bucket(relative, 32, 128, true);
    let found = [0, -1, -7, -8, -15, -16, -32, -64, -127, -1000, 1, 7, 8, 16, 1000].map(both);
    assert_eq!(found, [0, 1, 7, 8, 9, 10, 12, 14, 15, 15, 17, 23, 24, 26, 31]);
    // One direction: the future is bucket 0, 16 exact ones.
    let past = |relative| relative_bucket(relative, 32, 128, false);
    assert_eq!([5, 0, -1, -15, -16, -32, -127, -128].map(past), [0, 0, 1, 15, 16, 21, 31, 31]);
}

#[test]
fn rotary_positions_turn_halves() {
    // One key that equals the query: its weight against a zero key shows the turned product.
    let mut b = Bench::new();
    let q = b.input(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let k = b.input(&[1, 3, 4], &[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let v = b.input(&[1, 3, 1], &[1.0, 0.0, 0.0]);
    let plain = Attention::new(Columns::all(q, 4), Columns::all(k, 4), Columns::all(v, 1), 1, 0.1);
    let y = b.one(Attention { rope: Some(Rope { theta: 100.0, skip_masked: false }), ..plain });
    let y = b.run(&[y]);
    // The query is the last of three rows, at position 2; the key is at 0. Pairs (1, 3) and (2, 4)
    // turn by 2 · 1 and 2 · 100^(−1/2).
    let score = 0.1 * ((1.0 + 9.0) * 2.0_f64.cos() + (4.0 + 16.0) * 0.2_f64.cos());
    close(&y[0], &[1, 1, 1], &[score.exp() / (score.exp() + 2.0)]);
}

#[test]
fn queries_are_normalised_and_scaled_by_dimension() {
    let mut b = Bench::new();
    let q = b.input(&[1, 1, 2], &[3.0, 4.0]);
    let k = b.input(&[1, 2, 2], &[6.0, 8.0, 1.0, -1.0]);
    let v = b.input(&[1, 2, 1], &[1.0, 0.0]);
    let (query, key) = (b.weight(&[2], &[2.0, 1.0]), b.weight(&[2], &[1.0, 1.0]));
    let scale = b.weight(&[2], &[0.0, 0.0]);
    let plain = Attention::new(Columns::all(q, 2), Columns::all(k, 2), Columns::all(v, 1), 1, 1.0);
    let qk_norm = Some(QkNorm { query, key, eps: 0.0 });
    let y = b.one(Attention { qk_norm, per_dim_scale: Some(scale), ..plain });
    let y = b.run(&[y]);
    // Roots of mean squares: 3.5355 and 7.0711 and 1. softplus(0) / ln 2 = 1, so q is divided by
    // √2.
    let root = 12.5_f64.sqrt();
    let (a, c) = (6.0 / root / 2.0_f64.sqrt(), 4.0 / root / 2.0_f64.sqrt());
    let (first, second) = (a * 3.0 / root + c * 4.0 / root, a - c);
    close(&y[0], &[1, 1, 1], &[1.0 / (1.0 + (second - first).exp())]);
}

#[test]
fn groups_attend_across_the_batch() {
    let mut b = Bench::new();
    let q = b.input(&[3, 2, 1], &[0.0; 6]);
    let v = b.input(&[3, 2, 1], &[1.0, 10.0, 2.0, 20.0, 6.0, 60.0]);
    let groups = b.typed(DType::I32, &[3], &[4.0, 9.0, 4.0]);
    let mask = b.input(&[3, 2], &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    let (q, v) = (Columns::all(q, 1), Columns::all(v, 1));
    let plain = Attention { groups: Some(groups), ..Attention::new(q, q, v, 1, 1.0) };
    let y = b.one(Attention { key_mask: Some(mask), ..plain });
    close(&b.run(&[y])[0], &[3, 2, 1], &[3.5, 10.0, 2.0, 20.0, 3.5, 10.0]);
}

/// A causal stream of 7 rows over a ring of 3, in runs of `cut` rows, masked rows inserted in front
/// of each run.
fn over_ring(cut: usize, padding: usize) -> Vec<f64> {
    let rows: Vec<[f64; 3]> = (0..7)
        .map(|t| [0.3 * t as f64 - 0.7, (t as f64 * 1.3).sin(), (t as f64 * 0.4).cos()])
        .collect();
    let mut outputs = Vec::new();
    let mut carried: Option<Vec<Tensor>> = None;
    for run in rows.chunks(cut) {
        let mut b = PlanBuilder::new("ring", Context::Fixed(1));
        b.begin(EntryKind::Step);
        let time = run.len() + padding;
        let x = b.input("x", DType::F32, &[Dim::BATCH, time.into(), 6.into()]);
        let mask = b.input("mask", DType::F32, &[Dim::BATCH, time.into()]);
        let mut state =
            |name: &str, kind, shape: &[usize]| -> StateId { b.state(name, kind, shape) };
        let ring = KeyValueRing {
            keys: state("keys", StateKind::KeyRing, &[3, 2]),
            values: state("values", StateKind::ValueRing, &[3, 2]),
            position: state("position", StateKind::RingPosition, &[1]),
        };
        let columns = |i: usize| Columns { value: x, start: 2 * i, width: 2 };
        let plain = Attention::new(columns(0), columns(1), columns(2), 1, 0.9);
        let (causal, rope, key_mask) =
            (true, Some(Rope { theta: 10.0, skip_masked: false }), Some(mask));
        let y = b.one(Attention { ring: Some(ring), causal, rope, key_mask, ..plain });
        b.output("y", y.expect("it fits"), Vec::new());
        let plan = b.finish().expect("the plan is whole");
        let bucket = Bucket { batch: 1, length: 1 };
        let row = |at: &[usize]| match at[1].checked_sub(padding) {
            Some(t) => run[t][at[2] / 2] * if at[2].is_multiple_of(2) { 1.0 } else { -0.6 },
            None => f64::NAN,
        };
        let x = Tensor::from_fn([1, time, 6], row);
        let mask = Tensor::from_fn([1, time], |at| f64::from(at[1] >= padding));
        let states = carried.get_or_insert_with(|| zero_states(&plan, 1));
        let inputs = [("x", x), ("mask", mask)];
        let weights = MemoryWeights::new();
        let ran = run_entry(&plan, EntryKind::Step, bucket, &weights, &inputs, states);
        let y = ran.expect("it runs").remove(0).1;
        outputs.extend_from_slice(&y.data[2 * padding..]);
        assert_eq!(states[2].data, [outputs.len() as f64 / 2.0]);
    }
    outputs
}

#[test]
fn a_ring_gives_the_same_however_the_stream_is_cut() {
    let expected = over_ring(1, 0);
    for (cut, padding) in [(2, 0), (3, 0), (1, 2), (2, 1)] {
        let found = over_ring(cut, padding);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-12, "cut {cut}, padding {padding}");
        }
    }
    // The first row sees only itself.
    assert!((expected[0] - 1.0).abs() <= 1e-12 && (expected[1] + 0.6).abs() <= 1e-12);
}

fn scaled(x: &[f64], mask: &[f64], scaler: Scaler) -> [f64; 2] {
    let mut b = Bench::new();
    let value = b.input(&[1, x.len(), 1], x);
    let mask = b.input(&[1, x.len()], mask);
    let y = b.plan.step(Normalize::window(value, Some(mask), scaler)).expect("it fits");
    let statistics = b.run(&[y[1]]).remove(0);
    assert_eq!(statistics.shape, [1, 2, 1]);
    [statistics.data[0], statistics.data[1]]
}

#[test]
fn scalers_have_their_statistics() {
    let x = [4.0, 1.0, f64::NAN, 2.0, 9.0];
    let mask = [1.0, 1.0, 0.0, 1.0, 1.0];
    let scaler = |center, spread| Scaler { center, spread, ..Scaler::IDENTITY };
    let table = [
        (Center::Zero, Spread::One, [0.0, 1.0]),
        // Mean 4, squared deviations 0 + 9 + 4 + 25.
        (Center::Mean, Spread::Deviation, [4.0, 9.5_f64.sqrt()]),
        (Center::Mean, Spread::DeviationInside(0.5), [4.0, 10.0_f64.sqrt()]),
        // The lower of 2 and 4; distances 2, 1, 0, 7, whose lower median is 1.
        (Center::Median, Spread::MedianDeviation, [2.0, 1.0]),
        (Center::Last, Spread::Range, [9.0, 8.0]),
        (Center::Minimum, Spread::HalfRange, [1.0, 4.0]),
        (Center::Midrange, Spread::MeanMagnitude, [5.0, 4.0]),
    ];
    for (center, spread, expected) in table {
        assert_eq!(scaled(&x, &mask, scaler(center, spread)), expected, "{center:?} {spread:?}");
    }
    // More than half equal: the median deviation is 0, and the standard deviation stands in.
    let found =
        scaled(&[5.0, 5.0, 5.0, 9.0], &[1.0; 4], scaler(Center::Median, Spread::MedianDeviation));
    assert_eq!(found, [5.0, 3.0_f64.sqrt() * 0.674_489_750_196_081_7]);
}

#[test]
fn constant_and_empty_rows_have_rules() {
    let constant = |zero, eps| {
        let scaler = Scaler { zero, eps, ..Scaler::standard(0.0) };
        scaled(&[-3.0, -3.0], &[1.0, 1.0], scaler)
    };
    assert_eq!(constant(ZeroSpread::Keep, 0.5), [-3.0, 0.5]);
    assert_eq!(constant(ZeroSpread::Value(1.0), 0.5), [-3.0, 1.5]);
    assert_eq!(constant(ZeroSpread::CenterMagnitude(0.25), 0.0), [-3.0, 3.25]);
    assert_eq!(scaled(&[7.0, f64::NAN], &[0.0, 0.0], Scaler::robust(0.5)), [0.0, 1.0]);
}

#[test]
fn scaling_is_undone() {
    let mut b = Bench::new();
    let data: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7) * 3.0 - 5.0).collect();
    let x = b.input(&[1, 6, 2], &data);
    let (weight, bias) = (b.weight(&[2], &[2.0, -0.5]), b.weight(&[2], &[0.25, 1.0]));
    let scaler = Scaler { asinh: true, ..Scaler::standard(1e-3) };
    let affine = Some(Affine { weight, bias, eps: 0.0 });
    let normalize = Normalize { affine, ..Normalize::window(x, None, scaler) };
    let y = b.plan.step(normalize).expect("it fits");
    let undo =
        Denormalize { x: y[0], statistics: y[1], prefix: false, channel: None, scaler, affine };
    let back = b.one(undo);
    close(&b.run(&[back])[0], &[1, 6, 2], &data);
}

#[test]
fn outputs_of_a_channel_are_unscaled_together() {
    let mut b = Bench::new();
    let statistics = b.input(&[1, 2, 2], &[10.0, 20.0, 2.0, 3.0]);
    let x = b.input(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let scaler = Scaler::standard(0.0);
    let undo = Denormalize { x, statistics, prefix: false, channel: None, scaler, affine: None };
    let each = b.one(undo.clone());
    let second = b.one(Denormalize { channel: Some(1), ..undo });
    let y = b.run(&[each, second]);
    close(&y[0], &[1, 1, 4], &[12.0, 14.0, 29.0, 32.0]);
    close(&y[1], &[1, 1, 4], &[23.0, 26.0, 29.0, 32.0]);
}

#[test]
fn prefixes_see_no_later_patch_and_gaps_become_zero() {
    let mut b = Bench::new();
    let x = b.input(&[1, 3, 2], &[f64::NAN, 4.0, 8.0, 12.0, 0.0, 0.0]);
    let mask = b.input(&[1, 3, 2], &[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    let scaler = Scaler::standard(0.0);
    let normalize = Normalize {
        statistics: Statistics::Prefix,
        masked: Masked::Zero,
        ..Normalize::window(x, Some(mask), scaler)
    };
    let y = b.plan.step(normalize).expect("it fits");
    let undo =
        Denormalize { x, statistics: y[1], prefix: true, channel: None, scaler, affine: None };
    let back = b.one(undo);
    let y = b.run(&[y[0], y[1], back]);
    let deviation = 27.0_f64.sqrt();
    close(&y[1], &[1, 3, 2], &[0.0, 1.0, 10.0, 2.0, 5.0, deviation]);
    close(&y[0], &[1, 3, 2], &[0.0, 0.0, -1.0, 1.0, -5.0 / deviation, -5.0 / deviation]);
    assert!((y[2].data[1] - (4.0 * deviation + 5.0)).abs() <= 1e-12, "by the last patch");
}

#[test]
fn carried_statistics_are_those_of_all_rows_so_far() {
    let mut b = Bench::new();
    let x = b.input(&[1, 2, 1], &[1.0, 5.0]);
    let state = b.plan.state("scaler", StateKind::ScalerStatistics, &[3, 1]);
    let normalize = Normalize::window(x, None, Scaler::standard(0.0));
    let y = b.plan.step(Normalize { running: Some(state), ..normalize }).expect("it fits");
    let runs = b.stream(&[y[1]], 3);
    // The same window again and again: mean and deviation stay 3 and 2.
    for run in &runs {
        close(&run[0], &[1, 2, 1], &[3.0, 2.0]);
    }
}

#[test]
fn patches_are_cut_as_their_padding_says() {
    let patch = |pad, length, stride| {
        let mut b = Bench::new();
        let x = b.input(&[1, 5], &[1.0, 2.0, 3.0, 4.0, 5.0]);
        let y = b.one(Patch { x, length, stride, pad });
        b.run(&[y]).remove(0)
    };
    let (first, last) = (PatchPad::DropFirst, PatchPad::RepeatLast(1));
    close(&patch(first, 2, 2), &[1, 2, 2], &[2.0, 3.0, 4.0, 5.0]);
    close(&patch(first, 3, 1), &[1, 3, 3], &[1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 3.0, 4.0, 5.0]);
    close(&patch(last, 4, 2), &[1, 2, 4], &[1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 5.0, 5.0]);
    close(&patch(last, 4, 3), &[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let expected = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
    close(&patch(PatchPad::ZeroFirst, 3, 3), &[1, 2, 3], &expected);
}

#[test]
fn pools_and_interpolations_are_those_of_pytorch() {
    let mut b = Bench::new();
    let x = b.input(&[1, 3], &[1.0, 5.0, 2.0]);
    let knots = b.input(&[1, 2], &[1.0, 2.0]);
    let pulse = b.input(&[1, 5], &[0.0, 0.0, 1.0, 0.0, 0.0]);
    let pool = |kernel, kind| Pool { x, axis: 1, kernel, kind };
    let largest = b.one(pool(Some(2), PoolKind::Maximum));
    let mean = b.one(pool(Some(2), PoolKind::Mean));
    let whole = b.one(pool(None, PoolKind::Mean));
    let resample = |x, size, kind| Interpolate { x, size, kind };
    let nearest = b.one(resample(x, 5, InterpolateKind::Nearest));
    let linear = b.one(resample(knots, 4, InterpolateKind::Linear));
    let cubic = b.one(resample(pulse, 10, InterpolateKind::Cubic));
    let y = b.run(&[largest, mean, whole, nearest, linear, cubic]);
    close(&y[0], &[1, 2], &[5.0, 2.0]);
    close(&y[1], &[1, 2], &[3.0, 2.0]);
    close(&y[2], &[1, 1], &[8.0 / 3.0]);
    close(&y[3], &[1, 5], &[1.0, 1.0, 5.0, 5.0, 2.0]);
    close(&y[4], &[1, 4], &[1.0, 1.25, 1.75, 2.0]);
    // The kernel of a = −0.75 at quarters: −0.0352, 0.2617, 0.8789, −0.1055.
    let (a, b, c, d) = (-0.03515625, 0.26171875, 0.87890625, -0.10546875);
    close(&y[5], &[1, 10], &[0.0, a, d, b, c, c, b, d, a, 0.0]);
}

#[test]
fn quantiles_interpolate_between_order_statistics() {
    let mut b = Bench::new();
    // torch.quantile([0, 1, 2, 3], 0.6) is 1.8.
    let x = b.input(&[2, 4], &[3.0, 0.0, 2.0, 1.0, 1.0, f64::NAN, 1.0, 1.0]);
    let y = b.one(EmpiricalQuantiles { x, levels: vec![0.0, 0.6, 1.0] });
    let y = b.run(&[y]).remove(0);
    close(&Tensor::new([3], &y.data[..3]), &[3], &[0.0, 1.8, 3.0]);
    assert!(y.data[3..].iter().all(|x| x.is_nan()), "NaN samples have NaN quantiles");
}

#[test]
fn samples_follow_their_distribution_and_their_seed() {
    let samples = |rows: &[[f64; 2]], distribution, parameters: &[f64]| {
        let mut b = Bench::new();
        let all: Vec<f64> = rows.iter().flat_map(|_| parameters.to_vec()).collect();
        let width = parameters.len();
        let parameters = b.input(&[rows.len(), 1, width], &all);
        let seed = b.typed(DType::I32, &[rows.len(), 2], rows.as_flattened());
        let y = b.one(Sample { parameters, distribution, count: 20_000, seed });
        b.run(&[y]).remove(0).data
    };
    let normal = samples(&[[1.0, 2.0], [-5.0, 7.0]], Distribution::Normal, &[3.0, 0.5]);
    let alone = samples(&[[-5.0, 7.0]], Distribution::Normal, &[3.0, 0.5]);
    assert_eq!(alone, normal[20_000..], "a row samples alike in any batch");
    let moments = |samples: &[f64]| {
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        let square = |x: &f64| (x - mean) * (x - mean);
        (mean, samples.iter().map(square).sum::<f64>() / samples.len() as f64)
    };
    let (mean, variance) = moments(&alone);
    assert!((mean - 3.0).abs() <= 0.02 && (variance - 0.25).abs() <= 0.01, "{mean} {variance}");
    // Eight degrees of freedom: variance 8 / 6, times the scale squared.
    let student = samples(&[[0.0, 3.0]], Distribution::StudentT, &[8.0, -1.0, 2.0]);
    let (mean, variance) = moments(&student);
    let difference = (variance - 4.0 * 8.0 / 6.0).abs();
    assert!((mean + 1.0).abs() <= 0.06 && difference <= 0.3, "{mean} {variance}");
}

#[test]
fn indices_outside_are_clamped() {
    let mut b = Bench::new();
    let indices = b.typed(DType::I32, &[3], &[-1.0, 1.0, 7.0]);
    let x = b.input(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let table = b.weight(&[2, 1], &[10.0, 20.0]);
    let rows = b.one(Embedding { indices, table });
    let columns = b.one(Gather { x, axis: 1, indices });
    let y = b.run(&[rows, columns]);
    close(&y[0], &[3, 1], &[10.0, 20.0, 20.0]);
    close(&y[1], &[3, 3], &[1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0, 6.0]);
}

#[test]
fn movement_keeps_elements_and_their_order() {
    let mut b = Bench::new();
    let x = b.input(&[1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let turned = b.one(Transpose { x, permutation: vec![0, 2, 1] });
    let last = b.one(Slice::last(x, 2, 2));
    let joined = b.one(Concat { parts: vec![last, x], axis: 2 });
    let ramp = b.one(Ramp { start: 1.0, length_factor: -1.0, factor: 0.5, count: 3.into() });
    let sum = b.one(Binary::values(x, BinaryKind::Subtract, ramp));
    let y = b.run(&[turned, joined, sum]);
    close(&y[0], &[1, 3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    close(&y[1], &[1, 2, 5], &[2.0, 3.0, 1.0, 2.0, 3.0, 5.0, 6.0, 4.0, 5.0, 6.0]);
    // The context is 10 long: the ramp is −4.5, −4, −3.5.
    close(&y[2], &[1, 2, 3], &[5.5, 6.0, 6.5, 8.5, 9.0, 9.5]);
}

#[test]
fn sums_may_be_weighted_by_a_softmax() {
    let mut b = Bench::new();
    let weights = b.input(&[1, 2], &[2.0_f64.ln(), 0.0]);
    let x = b.input(&[1, 2, 2], &[3.0, 6.0, 9.0, 0.0]);
    let soft = b.one(WeightedSum { weights, x, softmax: true });
    let plain = b.one(WeightedSum { weights, x, softmax: false });
    let y = b.run(&[soft, plain]);
    close(&y[0], &[1, 2], &[5.0, 4.0]);
    close(&y[1], &[1, 2], &[3.0 * 2.0_f64.ln(), 6.0 * 2.0_f64.ln()]);
}

#[test]
fn functions_of_gaps() {
    let mut b = Bench::new();
    let x = b.input(&[1, 3], &[f64::NAN, -2.0, 0.5]);
    let mut unary = |kind| b.plan.one(Unary { x, kind }).expect("it fits");
    let y = [unary(UnaryKind::Observed), unary(UnaryKind::NanToZero)];
    let negated = unary(UnaryKind::Affine { factor: -1.0, offset: 0.25 });
    let y = b.run(&[y[0], y[1], negated]);
    close(&y[0], &[1, 3], &[0.0, 1.0, 1.0]);
    close(&y[1], &[1, 3], &[0.0, -2.0, 0.5]);
    assert!(y[2].data[0].is_nan() && y[2].data[1..] == [2.25, -0.25]);
}
