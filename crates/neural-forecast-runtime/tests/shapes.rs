//! Shape rules refuse what does not fit, and their messages name the thing, what was expected and
//! what was found.

use neural_forecast_runtime::ops::{
    Activation, Attention, AttentionBias, AttentionLayer, Binary, BinaryKind, Cell, Center,
    Columns, Concat, Denormalize, Distribution, Embedding, EmpiricalQuantiles, Expand, FeedForward,
    Gather, Initial, Interpolate, InterpolateKind, Keep, KeyValueRing, Linear, LinearAxis, Norm,
    NormKind, NormPlacement, Normalize, Op, Operand, Patch, PatchPad, Pool, PoolKind, Product,
    Reshape, RnnStack, RnnStates, RnnWeights, Rope, Sample, Scaler, Slice, Spread, Stack,
    Statistics, Sublayer, SublayerKind, Transpose, WeightedSum,
};
use neural_forecast_runtime::plan::{
    Bucket, Channel, Context, DType, Dim, EntryKind, PlanBuilder, StateId, StateKind, ValueId,
    WeightId,
};

/// Values and weights to refer to: `x` `[B, L, 6]`, `m` `[B, 4]`, `i` `[B, L]` of integers.
struct Bench {
    plan: PlanBuilder,
    x: ValueId,
    m: ValueId,
    i: ValueId,
}

impl Bench {
    fn new() -> Self {
        let mut plan = PlanBuilder::new("bench", Context::Free { max: 64, multiple: 1 });
        plan.begin(EntryKind::Full);
        let x = plan.input("x", DType::F32, &[Dim::BATCH, Dim::LENGTH, 6.into()]);
        let m = plan.input("m", DType::F32, &[Dim::BATCH, 4.into()]);
        let i = plan.input("i", DType::I32, &[Dim::BATCH, Dim::LENGTH]);
        Bench { plan, x, m, i }
    }

    fn w(&mut self, shape: &[usize]) -> WeightId {
        self.plan.weight(format!("w{shape:?}"), shape)
    }

    fn v(&mut self, shape: &[Dim]) -> ValueId {
        self.plan.input(format!("v{shape:?}"), DType::F32, shape)
    }

    fn s(&mut self, shape: &[usize]) -> StateId {
        self.plan.state("state", StateKind::Hidden, shape)
    }
}

fn attention(b: &Bench) -> Attention {
    let columns = Columns::all(b.x, 6);
    Attention::new(columns, columns, columns, 2, 1.0)
}

fn rnn(b: &mut Bench) -> RnnStack {
    let weights =
        RnnWeights { w_ih: b.w(&[20, 6]), w_hh: b.w(&[20, 5]), b_ih: None, b_hh: None, w_hr: None };
    RnnStack::new(b.x, Cell::Lstm, 5, vec![vec![weights]])
}

fn layer(b: &mut Bench) -> AttentionLayer {
    let square = Product { weight: b.w(&[6, 6]), bias: None };
    AttentionLayer {
        query: square,
        key: square,
        value: square,
        output: square,
        heads: 2,
        head: 3,
        scale: 1.0,
        causal: false,
        bias: None,
        rope: None,
        qk_norm: None,
        per_dim_scale: None,
    }
}

fn stack(b: &Bench, kind: SublayerKind) -> Op {
    Op::EncoderStack(Stack::new(b.x, vec![vec![Sublayer { kind, norm: NormPlacement::None }]]))
}

type Build = Box<dyn Fn(&mut Bench) -> Op>;

fn case(op: impl Fn(&mut Bench) -> Op + 'static, message: &str) -> (Build, String) {
    (Box::new(op), message.to_string())
}

#[track_caller]
fn check(cases: Vec<(Build, String)>) {
    let mut wrong = Vec::new();
    for (build, expected) in cases {
        let mut bench = Bench::new();
        let op = build(&mut bench);
        let name = op.name();
        bench.plan.scope("model.layer");
        let found = match bench.plan.step(op) {
            Ok(_) => "no error".to_string(),
            Err(error) => error.to_string(),
        };
        let expected = format!("op `{name}` (model.layer.{name}.0): {expected}");
        if found != expected {
            wrong.push(format!("found    {found}\nexpected {expected}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn products_and_norms() {
    check(vec![
        case(
            |b| Linear::new(b.x, b.w(&[3, 5])).into(),
            "`weight` (`w[3, 5]`) has shape [3, 5], expected [outputs, inputs] = [3, 6]",
        ),
        case(
            |b| Linear::new(b.x, b.w(&[3, 6])).bias(b.w(&[4])).into(),
            "`bias` (`w[4]`) has shape [4], expected [outputs] = [3]",
        ),
        case(
            |b| Linear::new(b.x, b.w(&[3, 6])).along(LinearAxis::Time).into(),
            "the time axis of `x` must be a fixed dimension, found Some(L)",
        ),
        case(
            |b| Linear::new(b.x, b.w(&[4, 3, 6])).along(LinearAxis::Heads(4)).into(),
            "6 features do not divide into 4 heads",
        ),
        case(
            |b| Linear::new(b.x, b.w(&[6, 6])).residual(b.m).into(),
            "`residual` has shape [B, 4], expected the output's shape = [B, L, 6]",
        ),
        case(
            |b| Norm::layer(b.x, b.w(&[6]), b.w(&[5]), 0.0).into(),
            "`bias` (`w[5]`) has shape [5], expected [features] = [6]",
        ),
        case(
            |b| Norm { kind: NormKind::Group(4), ..Norm::rms(b.x, b.w(&[6]), 0.0) }.into(),
            "6 features do not divide into 4 groups",
        ),
    ]);
}

#[test]
fn elementwise_and_movement() {
    check(vec![
        case(
            |b| Binary::values(b.x, BinaryKind::Add, b.m).into(),
            "`b` has shape [B, 4], which does not broadcast to [B, L, 6]",
        ),
        case(
            |b| WeightedSum { weights: b.m, x: b.x, softmax: true }.into(),
            "`weights` has shape [B, 4] and `x` [B, L, 6], expected […, N] and […, N, D]",
        ),
        case(|b| Embedding { indices: b.x, table: b.w(&[3, 2]) }.into(), "`indices` must be i32"),
        case(
            |b| Embedding { indices: b.i, table: b.w(&[3]) }.into(),
            "`table` has shape [3], expected [rows, D]",
        ),
        case(
            |b| Concat { parts: vec![b.x, b.m], axis: 1 }.into(),
            "cannot join [B, 4] to [B, L, 6] along axis 1",
        ),
        case(|_| Concat { parts: vec![], axis: 1 }.into(), "joins no parts"),
        case(
            |b| Slice::range(b.m, 1, 2, 3).into(),
            "takes 3 positions from 2 of axis 1, which has 4",
        ),
        case(|b| Slice::last(b.x, 3, 1).into(), "axis 3 does not exist in shape [B, L, 6]"),
        case(
            |b| Gather { x: b.x, axis: 1, indices: b.i }.into(),
            "`indices` has shape [B, L], expected [M]",
        ),
        case(
            |b| Transpose { x: b.x, permutation: vec![0, 2, 2] }.into(),
            "[0, 2, 2] does not permute [B, L, 6]",
        ),
        case(
            |b| Expand { x: Operand::Value(b.m), axis: 3, count: 2.into() }.into(),
            "cannot insert axis 3 into [B, 4]",
        ),
        case(
            |b| Reshape { x: b.x, shape: vec![Dim::BATCH, Dim::LENGTH, 7.into()] }.into(),
            "[B, L, 6] has not the elements of [B, L, 7]",
        ),
        case(
            |b| {
                let m = b.v(&[Dim::BATCH, 4.into(), 15.into()]);
                Patch { x: m, length: 16, stride: 8, pad: PatchPad::DropFirst }.into()
            },
            "no patch of 16 steps at stride 8 fits into 15 steps",
        ),
        case(
            |b| {
                let pad = PatchPad::RepeatLast(usize::MAX);
                Patch { x: b.m, length: usize::MAX, stride: usize::MAX, pad }.into()
            },
            &format!("no patch of {0} steps at stride {0} fits into 4 steps", usize::MAX),
        ),
        case(
            |b| Pool { x: b.m, axis: 1, kernel: Some(usize::MAX), kind: PoolKind::Mean }.into(),
            &format!("cannot pool 4 by {}", usize::MAX),
        ),
        case(
            |b| Patch { x: b.x, length: 4, stride: 2, pad: PatchPad::ZeroFirst }.into(),
            "padding in front needs stride 2 = length 4",
        ),
        case(
            |b| Pool { x: b.x, axis: 1, kernel: Some(0), kind: PoolKind::Mean }.into(),
            "cannot pool L by 0",
        ),
        case(
            |b| Interpolate { x: b.m, size: 0, kind: InterpolateKind::Linear }.into(),
            "cannot resample 4 knots to 0 points",
        ),
        case(
            |b| EmpiricalQuantiles { x: b.m, levels: vec![1.5] }.into(),
            "levels [1.5] must be in [0, 1]",
        ),
        case(
            |b| {
                let distribution = Distribution::StudentT;
                Sample { parameters: b.x, distribution, count: 3, seed: b.i }.into()
            },
            "StudentT has 3 parameters, `parameters` has shape [B, L, 6]",
        ),
    ]);
}

#[test]
fn scalers() {
    check(vec![
        case(
            |b| Normalize::window(b.x, Some(b.m), Scaler::IDENTITY).into(),
            "`mask` has shape [B, 4], expected [B, L, 6] or [B, T]",
        ),
        case(
            |b| Normalize::window(b.m, None, Scaler::IDENTITY).into(),
            "`x` has shape [B, 4], expected [B, T, C]",
        ),
        case(
            |b| {
                let x = b.v(&[Dim::BATCH, 3.into(), 1.into()]);
                let statistics = Statistics::First(4);
                Normalize { statistics, ..Normalize::window(x, None, Scaler::IDENTITY) }.into()
            },
            "statistics of 4 of 3 positions",
        ),
        case(
            |b| {
                let scaler =
                    Scaler { center: Center::Median, spread: Spread::Range, ..Scaler::IDENTITY };
                let running = Some(b.s(&[3, 6]));
                Normalize { running, ..Normalize::window(b.x, None, scaler) }.into()
            },
            "running statistics need mean and deviation over windows or prefixes and a state of \
             shape [3, 6], found [3, 6]",
        ),
        case(
            |b| {
                let statistics = b.v(&[Dim::BATCH, 2.into(), 4.into()]);
                let scaler = Scaler::IDENTITY;
                let (prefix, channel, affine) = (false, None, None);
                Denormalize { x: b.x, statistics, prefix, channel, scaler, affine }.into()
            },
            "statistics [B, 2, 4] (channel None) do not fit `x` [B, L, 6]",
        ),
    ]);
}

#[test]
fn attention_rules() {
    let relative = |table| AttentionBias::Relative { table, max_distance: 9, bidirectional: true };
    check(vec![
        case(
            |b| Attention { heads: 4, ..attention(b) }.into(),
            "6 columns do not divide into 4 heads",
        ),
        case(
            |b| {
                let mut a = attention(b);
                a.values.start = 1;
                a.into()
            },
            "`values` take columns 1..7 of 6",
        ),
        case(
            |b| {
                let mut a = attention(b);
                a.values = Columns { start: usize::MAX, ..a.values };
                a.into()
            },
            "`values` take columns 18446744073709551615..18446744073709551615 of 6",
        ),
        case(
            |b| {
                let mut a = attention(b);
                a.scales.clear();
                a.into()
            },
            "1 queries, 1 keys, 0 scales and 2 heads do not fit",
        ),
        case(
            |b| Attention { key_mask: Some(b.m), ..attention(b) }.into(),
            "`key_mask` has shape [B, 4], expected [B, Tk] = [B, L]",
        ),
        case(
            |b| {
                Attention { rope: Some(Rope { theta: 1.0, skip_masked: false }), ..attention(b) }
                    .into()
            },
            "rotary positions need an even head, found 3",
        ),
        case(
            move |b| Attention { bias: Some(relative(b.w(&[8, 3]))), ..attention(b) }.into(),
            "`bias` (`w[8, 3]`) has shape [8, 3], expected [buckets, heads] = [8, 2]",
        ),
        case(
            move |b| Attention { bias: Some(relative(b.w(&[7, 2]))), ..attention(b) }.into(),
            "7 buckets of relative positions",
        ),
        case(
            |b| {
                let groups = Some(b.v(&[Dim::BATCH]));
                Attention { groups, causal: true, ..attention(b) }.into()
            },
            "attention over the batch has no time order, bias or ring",
        ),
        case(
            |b| {
                let keys = b.s(&[4, 6]);
                let ring = Some(KeyValueRing { keys, values: keys, position: keys });
                Attention { ring, ..attention(b) }.into()
            },
            "a ring needs slots [capacity, width], [1] and one key set",
        ),
    ]);
}

#[test]
fn recurrences() {
    check(vec![
        case(
            |b| RnnStack { hidden: 4, ..rnn(b) }.into(),
            "`layer 0 w_ih` (`w[20, 6]`) has shape [20, 6], expected [gates·D, inputs] = [16, 6]",
        ),
        case(
            |b| RnnStack { hidden: usize::MAX, ..rnn(b) }.into(),
            &format!(
                "`layer 0 w_ih` (`w[20, 6]`) has shape [20, 6], \
                 expected [gates·D, inputs] = [{}, 6]",
                usize::MAX
            ),
        ),
        case(
            |b| RnnStack { projection: Some(2), cell: Cell::Gru, ..rnn(b) }.into(),
            "only an LSTM is projected",
        ),
        case(
            |b| RnnStack { projection: Some(5), ..rnn(b) }.into(),
            "layer 0: projection and `w_hr` go together",
        ),
        case(
            |b| RnnStack { initial: Initial::Values(vec![b.m]), ..rnn(b) }.into(),
            "initial state Values([ValueId(1)]) is incomplete",
        ),
        case(
            |b| {
                let states = Some(RnnStates { slots: vec![b.s(&[1, 5])], write: true });
                RnnStack { states, ..rnn(b) }.into()
            },
            "Lstm carries 2 states",
        ),
        case(
            |b| {
                let states = Some(RnnStates { slots: vec![b.s(&[1, 4]); 2], write: true });
                RnnStack { states, ..rnn(b) }.into()
            },
            "state has shape [1, 4], expected [1, 5]",
        ),
        case(
            |b| {
                let x = b.v(&[Dim::BATCH, 3.into(), 6.into()]);
                RnnStack { x, keep: Keep::Last(4), ..rnn(b) }.into()
            },
            "keeps the last 4 of 3 positions",
        ),
        case(
            |b| RnnStack { cell: Cell::Slstm { heads: 5 }, ..rnn(b) }.into(),
            "an sLSTM of width 5 and 5 heads cannot take 6 inputs",
        ),
    ]);
}

#[test]
fn stacks() {
    check(vec![
        case(
            |b| {
                let a = AttentionLayer { head: 4, ..layer(b) };
                stack(b, SublayerKind::SelfAttention(a))
            },
            "`layer 0 query` (`w[6, 6]`) has shape [6, 6], expected [outputs, inputs] = [8, 6]",
        ),
        case(
            |b| {
                let a = AttentionLayer { heads: usize::MAX, head: 2, ..layer(b) };
                stack(b, SublayerKind::SelfAttention(a))
            },
            &format!(
                "`layer 0 query` (`w[6, 6]`) has shape [6, 6], \
                 expected [outputs, inputs] = [{}, 6]",
                usize::MAX
            ),
        ),
        case(
            |b| {
                let a = layer(b);
                stack(b, SublayerKind::CrossAttention(a))
            },
            "layer 0 attends to a memory, and there is none",
        ),
        case(
            |b| {
                let a = layer(b);
                stack(b, SublayerKind::GroupAttention(a))
            },
            "layer 0 attends over groups, and there are none",
        ),
        case(
            |b| {
                let a = AttentionLayer { causal: true, ..layer(b) };
                stack(b, SublayerKind::GroupAttention(a))
            },
            "layer 0: attention over groups has no order or bias",
        ),
        case(
            |b| {
                let f = FeedForward {
                    up: Product { weight: b.w(&[9, 6]), bias: None },
                    gate: None,
                    down: Product { weight: b.w(&[6, 8]), bias: None },
                    activation: Activation::Relu,
                };
                stack(b, SublayerKind::FeedForward(f))
            },
            "`layer 0 down` (`w[6, 8]`) has shape [6, 8], expected [outputs, inputs] = [6, 9]",
        ),
    ]);
}

#[test]
fn whole_plans() {
    let mut b = PlanBuilder::new("twice", Context::Fixed(1));
    for _ in 0..2 {
        b.begin(EntryKind::Full);
        let x = b.input("x", DType::F32, &[Dim::BATCH]);
        b.output("y", x, vec![Channel::Point]);
    }
    let error = b.finish().expect_err("one entry of a kind").to_string();
    assert_eq!(error, "plan `twice`: two `full` entries");

    let mut b = PlanBuilder::new("alike", Context::Fixed(1));
    b.begin(EntryKind::Step);
    let x = b.input("x", DType::F32, &[Dim::BATCH]);
    b.output("y", x, Vec::new());
    b.output("y", x, Vec::new());
    let error = b.finish().expect_err("names are unique").to_string();
    assert_eq!(error, "plan `alike`, entry `step`: two outputs named `y`");

    let mut b = PlanBuilder::new("huge", Context::Fixed(1));
    b.weight("w", &[usize::MAX, 2]);
    let error = b.finish().expect_err("no machine holds it").to_string();
    let expected = format!("plan `huge`: weight `w` of shape [{}, 2] is too large", usize::MAX);
    assert_eq!(error, expected);
}

#[test]
fn buckets_that_do_not_fit() {
    let mut b = PlanBuilder::new("buckets", Context::Free { max: 64, multiple: 1 });
    b.begin(EntryKind::Full);
    let x = b.input("x", DType::F32, &[Dim::BATCH, Dim::LENGTH]);
    let patches = Patch { x, length: 8, stride: 4, pad: PatchPad::DropFirst };
    let patches = b.one(patches).expect("it fits somewhere");
    let last = b.one(Slice::last(patches, 1, 3)).expect("it fits somewhere");
    b.output("y", last, Vec::new());
    let plan = b.finish().expect("the plan is whole");
    let at = |batch, length| {
        let checked = plan.entries[0].check_bucket(Bucket { batch, length });
        checked.map_err(|error| error.to_string())
    };
    assert_eq!(at(2, 16), Ok(()));
    let expected = "op `patch` (patch.0) in Bucket { batch: 2, length: 7 }: \
                    needs 8 steps for a patch, found 7";
    assert_eq!(at(2, 7), Err(expected.to_string()));
    let expected = "op `slice` (slice.1) in Bucket { batch: 2, length: 12 }: \
                    takes 3 positions from 0 of axis 1, which has 2";
    assert_eq!(at(2, 12), Err(expected.to_string()));
    assert!(at(usize::MAX, 16).is_err(), "more elements than any memory");
}
