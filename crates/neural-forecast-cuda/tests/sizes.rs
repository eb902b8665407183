//! Ops at the sizes where their kernels change: short and long rows, tiles of a transpose, many
//! parts, sorted and counted quantiles. Compared with the reference implementations.
//!
//! The runtime's shared cases, which `conformance` runs, stay below most of these. Without a GPU
//! nothing is tested, which is printed; `NF_REQUIRE=cuda` makes that a failure.

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{Data, Device, KernelClass, LoadOptions, Request, Run};
use neural_forecast_runtime::ops::{
    Binary, BinaryKind, Center, Concat, Denormalize, Distribution, Embedding, EmpiricalQuantiles,
    Expand, From, Gather, Interpolate, InterpolateKind, Masked, Norm, NormKind, Normalize, Operand,
    Patch, PatchPad, Pool, PoolKind, Sample, Scaler, Slice, Spread, Statistics, Transpose, Unary,
    UnaryKind, WeightedSum, ZeroSpread,
};
use neural_forecast_runtime::plan::{
    Bucket, Context, DType, Dim, EntryKind, PlanBuilder, StateKind, ValueId,
};
use neural_forecast_runtime::testing::{Case, CaseBuilder, Random, conform_all, device_or_skip};

/// The first GPU, unless there is none and nobody insists.
fn device() -> Option<CudaDevice> {
    device_or_skip("cuda", CudaDevice::open(0, CudaOptions::default()))
}

fn check(cases: &[Case]) {
    let Some(device) = device() else { return };
    let options = LoadOptions { fuse: false, ..LoadOptions::default() };
    let (ran, failures) = conform_all(&device, cases, &options);
    assert_eq!(ran + failures.len(), cases.len(), "cases were not run");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn case(name: impl Into<String>, batch: usize, length: usize) -> CaseBuilder {
    CaseBuilder::new(name, Bucket { batch, length })
}

#[test]
fn rows_of_every_kernel() {
    let mut cases = Vec::new();
    for width in [
        1, 2, 5, 6, 9, 17, 31, 33, 65, 127, 161, 257, 321, 511, 513, 1022, 1023, 1025, 4097, 8, 64,
        132, 256, 260, 512, 768, 1020, 1024, 1028, 2048, 2052, 9000,
    ] {
        let mut c = case(format!("rows of {width}"), 3, 5);
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, width.into()]);
        let (weight, bias) = (c.positive(width), c.bias(width));
        let (mean, variance) = (c.bias(width), c.positive(width));
        let layer = Norm::layer(x, weight, bias, 1e-5);
        let outputs = [
            c.step(layer.clone()),
            c.step(Norm { weight_offset: 1.0, ..Norm::rms(x, weight, 1e-6) }),
            c.step(Norm { kind: NormKind::Batch { mean, variance }, ..layer }),
            c.step(Unary { x, kind: UnaryKind::Softmax }),
        ];
        c.terms(width.min(400));
        cases.push(c.finish(&outputs));
    }
    for (groups, width) in [(3, 7), (3, 700), (2, 1500), (5, 4)] {
        let mut c = case(format!("{groups} groups of {width}"), 2, 3);
        let d = groups * width;
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, d.into()]);
        let (weight, bias) = (c.positive(d), c.bias(d));
        let kind = NormKind::Group(groups);
        c.terms(30);
        let y = c.step(Norm { kind, ..Norm::layer(x, weight, bias, 1e-5) });
        cases.push(c.finish(&[y]));
    }
    check(&cases);
}

#[test]
fn transposes_and_copies() {
    let mut cases = Vec::new();
    for (t, d) in [
        (512, 7),
        (7, 512),
        (2, 600),
        (600, 2),
        (64, 64),
        (33, 65),
        (100, 321),
        (1, 2000),
        (40, 31),
        (1025, 3),
        (96, 7),
        (2, 3),
        (30, 32),
        (2, 500),
    ] {
        let mut c = case(format!("transpose {t} by {d}"), 7, t);
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, d.into()]);
        let y = c.step(Transpose { x, permutation: vec![0, 2, 1] });
        cases.push(c.finish(&[y]));
    }
    let mut c = case("transpose of five axes", 2, 40);
    let x = c.input(&[Dim::BATCH, 3.into(), Dim::LENGTH, 2.into(), 36.into()]);
    let permutations =
        [[0, 1, 4, 3, 2], [0, 4, 3, 2, 1], [0, 3, 1, 2, 4], [0, 2, 4, 1, 3], [0, 4, 1, 2, 3]];
    let turned = permutations.map(|p| c.step(Transpose { x, permutation: p.to_vec() }));
    cases.push(c.finish(&turned));

    let mut c = case("expand of three axes", 2, 6);
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, 8.into()]);
    let y = [1, 2, 3].map(|axis| c.step(Expand { x: Operand::Value(x), axis, count: 5.into() }));
    cases.push(c.finish(&y));

    let mut c = case("gather rows of 64 and of 3", 2, 50);
    let indices = c.integers(&[70.into()], -3, 60);
    let wide = c.input(&[Dim::BATCH, Dim::LENGTH, 64.into()]);
    let narrow = c.input(&[Dim::BATCH, 4.into(), Dim::LENGTH, 3.into()]);
    let table = c.weight(&[9, 64]);
    let items = c.integers(&[Dim::BATCH, Dim::LENGTH], -2, 11);
    let y = [
        c.step(Gather { x: wide, axis: 1, indices }),
        c.step(Gather { x: narrow, axis: 2, indices }),
        c.step(Embedding { indices: items, table }),
    ];
    cases.push(c.finish(&y));

    let mut c = case("patches of a long row", 2, 1003);
    let x = c.input(&[Dim::BATCH, Dim::LENGTH]);
    let y = [(16, 8, PatchPad::RepeatLast(8)), (32, 32, PatchPad::ZeroFirst)]
        .map(|(length, stride, pad)| c.step(Patch { x, length, stride, pad }));
    cases.push(c.finish(&y));
    check(&cases);
}

#[test]
fn joined_parts() {
    let mut cases = Vec::new();
    for widths in [vec![1; 40], vec![4; 17], vec![8, 4, 16], vec![512, 3], vec![7, 0, 5]] {
        let mut c = case(format!("concat of {widths:?}"), 3, 9);
        let parts: Vec<ValueId> = widths
            .iter()
            .map(|&width| c.input(&[Dim::BATCH, Dim::LENGTH, Dim::Fixed(width)]))
            .collect();
        let y = c.step(Concat { parts, axis: 2 });
        cases.push(c.finish(&[y]));
    }
    let mut c = case("slices of aligned and other columns", 3, 9);
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, 48.into()]);
    let slices = [(4, 12), (3, 12), (0, 48), (40, 8), (5, 0), (47, 1)].map(|(start, length)| {
        c.step(Slice { x, axis: 2, from: From::Start(start), length: Dim::Fixed(length) })
    });
    let rows = c.step(Slice::last(x, 1, 5));
    cases.push(c.finish(&[&slices[..], &[rows]].concat()));
    check(&cases);
}

#[test]
fn elementwise_ops_of_every_kernel() {
    let mut cases = Vec::new();
    let shapes: [&[usize]; 7] =
        [&[8], &[5, 8], &[3, 1, 8], &[3, 1, 1], &[1, 5, 1], &[2, 3, 5, 8], &[2, 1, 5, 1]];
    for (i, b_shape) in shapes.into_iter().enumerate() {
        let mut c = case(format!("binary with {b_shape:?}"), 3, 2);
        let a = c.input(&[Dim::BATCH, 2.into(), 3.into(), 5.into(), 8.into()]);
        let b = c.weight(b_shape);
        let kind = if i % 2 == 0 { BinaryKind::Subtract } else { BinaryKind::Maximum };
        let y = c.step(Binary::weight(a, kind, b));
        cases.push(c.finish(&[y]));
    }
    for elements in [4095, 4096, 10_007] {
        let mut c = case(format!("unary of {elements}"), 2, 1);
        let x = c.input(&[Dim::BATCH, elements.into()]);
        let kind = UnaryKind::Affine { factor: 3.0, offset: 1.0 };
        let y = c.step(Unary { x, kind });
        cases.push(c.finish(&[y]));
    }
    for (n, d) in [(100, 128), (33, 6), (1, 4)] {
        let mut c = case(format!("weighted sum of {n} by {d}"), 2, 3);
        let weights = c.input(&[Dim::BATCH, Dim::LENGTH, n.into()]);
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, n.into(), d.into()]);
        c.terms(n);
        let y = c.step(WeightedSum { weights, x, softmax: true });
        cases.push(c.finish(&[y]));
    }
    check(&cases);
}

#[test]
fn scalers_of_short_and_long_windows() {
    let mut cases = Vec::new();
    let robust = Scaler::robust(1e-6);
    let range = Scaler {
        center: Center::Last,
        spread: Spread::Range,
        zero: ZeroSpread::Value(1.0),
        eps: 0.0,
        asinh: false,
    };
    let sizes = [
        (2, 5),
        (31, 1),
        (32, 2),
        (33, 1),
        (65, 3),
        (96, 17),
        (255, 4),
        (512, 33),
        (700, 40),
        (1023, 1),
        (1024, 9),
        (1025, 1),
        (3000, 2),
        (50, 321),
    ];
    for (time, channels) in sizes {
        for (scaler, what) in
            [(Scaler::standard(1e-5), "standard"), (robust, "robust"), (range, "range")]
        {
            for masked in 0..3 {
                let mut c = case(format!("{what} {time} by {channels}, mask {masked}"), 3, time);
                let shape = [Dim::BATCH, Dim::LENGTH, channels.into()];
                let mut random = Random::new(time as u32);
                // Row 1 is constant but for a few, all lie far from zero.
                let mut element = |at: &[usize]| match at[0] {
                    1 if at[1] % 7 != 3 => 1000.25,
                    _ => 1000.0 + 10.0 * random.signed() + at[2] as f64,
                };
                let x = c.input_of(&shape, DType::F32, &mut element);
                let mask = match masked {
                    0 => None,
                    1 => Some(c.mask(&shape[..2])),
                    _ => Some(c.mask(&shape)),
                };
                let statistics = match masked {
                    1 => Statistics::First(time / 2 + 1),
                    _ => Statistics::Window,
                };
                let kind = if masked == 2 { Masked::Zero } else { Masked::Scaled };
                let normalize = Normalize::window(x, mask, scaler);
                let y = c.steps(Normalize { statistics, masked: kind, ..normalize });
                let undo = Denormalize {
                    x: y[0],
                    statistics: y[1],
                    prefix: false,
                    channel: None,
                    scaler,
                    affine: None,
                };
                let back = c.step(undo);
                c.terms(20);
                cases.push(c.finish(&[y[0], y[1], back]));
            }
        }
    }
    check(&cases);
}

#[test]
fn running_scalers_of_long_windows() {
    let mut cases = Vec::new();
    for (time, channels) in [(40, 35), (600, 2), (1500, 1)] {
        let mut c = case(format!("running {time} by {channels}"), 3, time).stateful();
        let shape = [Dim::BATCH, Dim::LENGTH, channels.into()];
        let x = c.input(&shape);
        let mask = c.mask(&shape[..2]);
        let state = c.state(StateKind::ScalerStatistics, &[3, channels]);
        let normalize = Normalize::window(x, Some(mask), Scaler::standard(1e-3));
        let y = c.steps(Normalize { running: Some(state), ..normalize });
        c.terms(100);
        cases.push(c.finish(&y));
    }
    check(&cases);
}

#[test]
fn prefixes_of_many_patches() {
    let mut cases = Vec::new();
    let midrange = Scaler {
        center: Center::Midrange,
        spread: Spread::MeanMagnitude,
        zero: ZeroSpread::Value(1.0),
        eps: 1e-6,
        asinh: true,
    };
    let last = Scaler { center: Center::Last, ..Scaler::standard(1e-4) };
    for (patches, length) in [(1, 1), (33, 5), (256, 3), (257, 20), (600, 33)] {
        for (scaler, what) in
            [(Scaler::standard(1e-5), "standard"), (midrange, "midrange"), (last, "last")]
        {
            let mut c = case(format!("{what} prefixes {patches} by {length}"), 2, 1);
            let shape = [Dim::BATCH, patches.into(), length.into()];
            let x = c.input(&shape);
            let mask = c.mask(&shape);
            let normalize = Normalize::window(x, Some(mask), scaler);
            let y = c.steps(Normalize { statistics: Statistics::Prefix, ..normalize });
            c.terms(100);
            cases.push(c.finish(&y));
        }
    }
    for (patches, length) in [(1, 7), (6, 40)] {
        let mut c = case(format!("robust prefixes {patches} by {length}"), 2, 1);
        let shape = [Dim::BATCH, patches.into(), length.into()];
        let x = c.input(&shape);
        let mask = c.mask(&shape[..2]);
        let normalize = Normalize::window(x, Some(mask), Scaler::robust(1e-3));
        let y = c.steps(Normalize { statistics: Statistics::Prefix, ..normalize });
        c.terms(20);
        cases.push(c.finish(&y));
    }
    check(&cases);
}

#[test]
fn pools_resamplings_and_samples() {
    let mut cases = Vec::new();
    for kind in [PoolKind::Mean, PoolKind::Maximum] {
        for (n, kernel, inner) in
            [(300, Some(64), 40), (1000, None, 3), (17, Some(17), 1), (40, Some(16), 33)]
        {
            let mut c = case(format!("pool {kind:?} {n} by {kernel:?} of {inner}"), 2, n);
            let shape = [Dim::BATCH, Dim::LENGTH, Dim::Fixed(inner)];
            let mut random = Random::new(7);
            let mut element = |at: &[usize]| match (at[0], at[1]) {
                (1, 5) => f64::NAN,
                _ => random.signed(),
            };
            let x = c.input_of(&shape, DType::F32, &mut element);
            let y = c.step(Pool { x, axis: 1, kernel, kind });
            cases.push(c.finish(&[y]));
        }
    }
    let mut c = case("interpolate to a long row", 2, 1);
    let x = c.input(&[Dim::BATCH, 700.into()]);
    c.terms(30);
    let y = [InterpolateKind::Nearest, InterpolateKind::Linear, InterpolateKind::Cubic]
        .map(|kind| c.step(Interpolate { x, size: 3001, kind }));
    cases.push(c.finish(&y));
    for samples in
        [1, 3, 31, 32, 33, 64, 65, 128, 129, 500, 512, 513, 1000, 1024, 1025, 8192, 8193, 20_000]
    {
        let mut c = case(format!("quantiles of {samples}"), 2, 3);
        let mut random = Random::new(samples as u32);
        let mut element = |at: &[usize]| match (at[0], at[1]) {
            (1, 1) if at[2] == samples / 2 => f64::NAN,
            (1, 2) => random.below(3) as f64 - 1.0,
            _ => random.signed(),
        };
        let shape = [Dim::BATCH, Dim::LENGTH, samples.into()];
        let x = c.input_of(&shape, DType::F32, &mut element);
        let levels: Vec<f64> = (0..70).map(|i| f64::from(i) / 69.0).collect();
        let y = c.step(EmpiricalQuantiles { x, levels });
        cases.push(c.finish(&[y]));
    }
    for (distribution, width) in [(Distribution::Normal, 2), (Distribution::StudentT, 3)] {
        let mut c = case(format!("1000 samples of {distribution:?}"), 3, 4);
        let mut element = |at: &[usize]| (2.5 + at[1] as f64) / (at[2] + 1) as f64;
        let shape = [Dim::BATCH, Dim::LENGTH, width.into()];
        let parameters = c.input_of(&shape, DType::F32, &mut element);
        let seed = c.integers(&[Dim::BATCH, 2.into()], i32::MIN / 2, i32::MAX / 2);
        c.terms(100);
        let y = c.step(Sample { parameters, distribution, count: 1000, seed });
        cases.push(c.finish(&[y]));
    }
    check(&cases);
}

/// Values of more elements than 32 bits count, whose ends are looked at; the expected numbers are
/// reckoned here, because the reference would take hours.
#[test]
#[ignore = "takes 60 GB of device memory"]
fn values_of_more_than_two_to_the_31_elements() {
    let Some(device) = device() else { return };
    let long = (1 << 29) + 7;
    let mut plan = PlanBuilder::new("large", Context::Free { max: 1, multiple: 1 });
    plan.begin(EntryKind::Full);
    let x = plan.input("x", DType::F32, &[Dim::BATCH, 4.into()]);
    let mut step = |op: neural_forecast_runtime::ops::Op| plan.step(op).unwrap()[0];
    let repeated = Expand { x: Operand::Value(x), axis: 1, count: Dim::Fixed(long) };
    let repeated = step(repeated.into());
    let kind = UnaryKind::Affine { factor: 2.0, offset: 1.0 };
    let affine = step(Unary { x: repeated, kind }.into());
    let turned = step(Transpose { x: affine, permutation: vec![0, 2, 1] }.into());
    let turned_end = step(Slice::last(turned, 2, 3).into());
    let sum = step(Binary::values(affine, BinaryKind::Add, repeated).into());
    let both = step(Concat { parts: vec![affine, sum], axis: 2 }.into());
    let kind = NormKind::Layer;
    let (weight, bias, weight_offset) = (None, None, 0.0);
    let normed = step(Norm { x: both, kind, weight, weight_offset, bias, eps: 0.0 }.into());
    let normed_end = step(Slice::last(normed, 1, 1).into());
    let softmax = step(Unary { x: both, kind: UnaryKind::Softmax }.into());
    let softmax_end = step(Slice::last(softmax, 1, 1).into());
    for (name, value) in [("turned", turned_end), ("normed", normed_end), ("softmax", softmax_end)]
    {
        plan.output(name, value, Vec::new());
    }
    let plan = plan.finish().unwrap();
    let options = LoadOptions { fuse: false, ..LoadOptions::default() };
    let mut resident = device.load(&plan, &MemoryWeights::new(), &options).unwrap();
    let bucket = Bucket { batch: 1, length: 1 };
    let request = Request { entry: EntryKind::Full, bucket, class: KernelClass::Throughput };
    let mut program = resident.compile(request).unwrap();
    let numbers = [0.5f32, -1.0, 2.0, 0.25];
    program.write(0, Data::F32(&numbers));
    program.submit(&Run { rows: 1, ..Run::default() }).unwrap();
    program.wait().unwrap();

    let affine = numbers.map(|x| 2.0 * x + 1.0);
    let both: Vec<f32> = affine.into_iter().chain(numbers.map(|x| 3.0 * x + 1.0)).collect();
    let mean = both.iter().sum::<f32>() / 8.0;
    let deviation = (both.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 8.0).sqrt();
    let total: f32 = both.iter().map(|x| x.exp()).sum();
    let expected = [
        affine.iter().flat_map(|&x| [x; 3]).collect::<Vec<f32>>(),
        both.iter().map(|x| (x - mean) / deviation).collect(),
        both.iter().map(|x| x.exp() / total).collect(),
    ];
    for (i, expected) in expected.iter().enumerate() {
        let mut found = vec![0.0; expected.len()];
        program.read(i, &mut found).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "output {i}: {found}, expected {expected}");
        }
    }
}
