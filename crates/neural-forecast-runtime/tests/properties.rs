//! Properties of dimensions, buckets and arenas over random ones.

use neural_forecast_runtime::arena::{ALIGNMENT, ArenaPlan};
use neural_forecast_runtime::device::{Capabilities, DeviceKind, check_limits};
use neural_forecast_runtime::ops::{
    Activation, Binary, BinaryKind, Concat, Linear, Reshape, Slice, Unary,
};
use neural_forecast_runtime::plan::{
    Bucket, Context, DType, Dim, EntryKind, LengthDim, Plan, PlanBuilder, ValueId, elements,
};
use neural_forecast_runtime::recording::check_arena;
use proptest::prelude::*;

fn bucket() -> impl Strategy<Value = Bucket> {
    (1_usize..2000, 1_usize..10_000).prop_map(|(batch, length)| Bucket { batch, length })
}

/// A plan of random steps over `[B, 8]`, some of whose values are outputs.
fn random_plan(choices: &[(u8, usize, usize)], outputs: usize) -> Plan {
    let mut b = PlanBuilder::new("random", Context::Fixed(4));
    b.begin(EntryKind::Full);
    let wide = [Dim::BATCH, 8.into()];
    let mut values: Vec<ValueId> =
        (0..2).map(|i| b.input(format!("x{i}"), DType::F32, &wide)).collect();
    for &(kind, first, second) in choices {
        let (x, other) = (values[first % values.len()], values[second % values.len()]);
        let added = match kind % 5 {
            0 => b.one(Unary::activation(x, Activation::Tanh)),
            1 => b.one(Binary::values(x, BinaryKind::Add, other)),
            2 => {
                let joined = b.one(Concat { parts: vec![x, other], axis: 1 });
                joined.and_then(|joined| b.one(Slice::range(joined, 1, 3, 8)))
            }
            3 => {
                let folded = b.one(Reshape { x, shape: vec![Dim::Batch(2), 4.into()] });
                folded.and_then(|x| b.one(Reshape { x, shape: wide.to_vec() }))
            }
            _ => {
                let weight = b.weight("w", &[8, 8]);
                b.one(Linear::new(x, weight).residual(other))
            }
        };
        values.push(added.expect("the shapes fit"));
    }
    for i in 0..outputs.max(1) {
        b.output(format!("y{i}"), values[values.len() - 1 - i % values.len()], Vec::new());
    }
    b.finish().expect("the plan is whole")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dimensions_compute_what_their_formulas_say(
        bucket in bucket(), n in 1_usize..50, shift in -20_isize..20, stride in 1_usize..40,
        offset in 0_isize..5,
    ) {
        let length = bucket.length as isize;
        let windows = Dim::LENGTH.windows(shift, stride, offset).expect("the length is undivided");
        let quotient = (length + shift).div_euclid(stride as isize);
        prop_assert_eq!(windows.at(bucket), (quotient + offset).max(0) as usize);
        let repeated = windows.times(n).expect("small numbers");
        prop_assert_eq!(repeated.at(bucket), windows.at(bucket) * n);
        let longer = windows.sum(Dim::Fixed(n)).expect("one is fixed");
        prop_assert_eq!(longer.at(bucket) as isize, (quotient + offset + n as isize).max(0));
        prop_assert_eq!(Dim::Fixed(n).sum(windows), Some(longer));
        prop_assert_eq!(Dim::BATCH.times(n).map(|dim| dim.at(bucket)), Some(bucket.batch * n));
        prop_assert_eq!(windows.windows(0, 2, 0).is_some(), stride == 1, "divided once at most");
    }

    #[test]
    fn dimensions_never_overflow(
        times in any::<usize>(), shift in any::<isize>(), stride in any::<usize>(),
        offset in any::<isize>(), batch in any::<usize>(), length in any::<usize>(),
        n in any::<usize>(), m in any::<isize>(),
    ) {
        let bucket = Bucket { batch, length };
        let dims = [
            Dim::Fixed(times),
            Dim::Batch(times),
            Dim::Length(LengthDim { times, shift, stride, offset }),
        ];
        for dim in dims {
            dim.at(bucket);
            let derived = [dim.times(n), dim.plus(m), dim.windows(m, n, m), dim.sum(Dim::Fixed(n))];
            derived.into_iter().flatten().for_each(|dim| {
                dim.at(bucket);
            });
            elements(&[dim, dim, dim], bucket);
        }
    }

    #[test]
    fn length_buckets_hold_the_length_and_are_few(
        max in 1_usize..5000, multiple in 1_usize..64, length in 0_usize..5000,
    ) {
        let plan = random_plan(&[], 1);
        let plan = Plan { context: Context::Free { max, multiple }, ..plan };
        match plan.length_bucket(length) {
            None => prop_assert!(length > max),
            Some(bucket) => {
                prop_assert!(length <= bucket && bucket <= max.next_multiple_of(multiple));
                prop_assert!(bucket.is_multiple_of(multiple));
                prop_assert!(bucket <= multiple.max(2 * length.next_multiple_of(multiple)));
                prop_assert_eq!(plan.length_bucket(bucket.min(max)), Some(bucket));
            }
        }
    }

    #[test]
    fn batch_buckets_hold_the_rows(rows in any::<usize>(), largest in any::<usize>()) {
        let bucket = Plan::batch_bucket(rows, largest);
        prop_assert!(bucket >= 1 && bucket <= largest.max(1));
        prop_assert!(bucket >= rows.min(largest));
        prop_assert!(bucket.is_power_of_two() || bucket == largest);
    }

    #[test]
    fn values_that_live_together_share_no_bytes(
        choices in prop::collection::vec((0_u8..5, 0_usize..40, 0_usize..40), 0..40),
        outputs in 1_usize..4, batch in 1_usize..70,
    ) {
        let plan = random_plan(&choices, outputs);
        check_arena(&plan.entries[0], Bucket { batch, length: 4 });
    }
}

#[test]
fn a_chain_needs_the_room_of_two_links() {
    let choices: Vec<_> = (0..30).map(|i| (0, i + 1, 0)).collect();
    let plan = random_plan(&choices, 1);
    let bucket = Bucket { batch: 16, length: 4 };
    let arena = ArenaPlan::new(&plan.entries[0], bucket);
    // Two inputs, one output, and two intermediate values however long the chain is.
    let value = 16 * 8 * 4;
    assert_eq!(value % ALIGNMENT, 0);
    assert_eq!(arena.bytes(), 5 * value);
    let owners: Vec<&str> = arena.lines().iter().map(|line| line.owner.as_str()).collect();
    assert_eq!(owners, ["input `x0`", "input `x1`", "output `y0`", "intermediate values"]);
}

#[test]
fn buckets_of_absurd_contexts_do_not_overflow() {
    let plan = random_plan(&[], 1);
    let absurd = |max, multiple, length| {
        let context = Context::Free { max, multiple };
        Plan { context, ..plan.clone() }.length_bucket(length)
    };
    assert_eq!(absurd(usize::MAX, 2, 5), None, "no bucket ends at a multiple");
    assert_eq!(absurd(usize::MAX, 1, usize::MAX), Some(usize::MAX));
    assert_eq!(absurd(100, 0, 3), Some(4));
}

#[test]
fn limits_count_bindings_as_a_device_would_bind() {
    let mut b = PlanBuilder::new("limits", Context::Fixed(1));
    b.begin(EntryKind::Full);
    let x = b.input("x", DType::F32, &[Dim::BATCH, 256.into()]);
    let (weight, bias) = (b.weight("w", &[256, 256]), b.weight("b", &[256]));
    let y = b.one(Linear::new(x, weight).bias(bias)).expect("it fits");
    b.output("y", y, Vec::new());
    let plan = b.finish().expect("the plan is whole");
    let exceeded = |bindings_max, binding_bytes_max, batch| {
        let capabilities = Capabilities {
            kind: DeviceKind::Test,
            id: "test".into(),
            name: "test".into(),
            precisions: Vec::new(),
            memory_bytes: 0,
            bindings_max,
            binding_bytes_max,
            unified_memory: false,
            cooperative: false,
            peak_flops: Vec::new(),
            features: Vec::new(),
        };
        let limits =
            check_limits(&plan, &plan.entries[0], Bucket { batch, length: 1 }, &capabilities);
        limits.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>()
    };
    let weights = 256 * 256 * 4;
    assert!(exceeded(2, weights + 1024, 1).is_empty(), "an arena and packed weights");
    assert_eq!(exceeded(2, weights, 1), ["binds 3 buffers of 2"], "weights on their own");
    assert_eq!(exceeded(8, weights - 1, 1), ["binds 262144 bytes of 262143"]);
    // 200 rows of 1 KiB fit into a binding, input and output together do not.
    assert_eq!(exceeded(3, weights, 200), ["binds 4 buffers of 3"]);
}
