//! Products in the tiles of Hopper's kernels: one and many tiles of each shape, edges of rows,
//! columns and K, every activation, residuals. Compared with the reference implementations.
//!
//! The runtime's shared cases, which `conformance` runs, stay below most of these. Without a GPU
//! nothing is tested, which is printed; `NF_REQUIRE=cuda` makes that a failure.

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Precision, Request, Run,
};
use neural_forecast_runtime::ops::{Activation, Linear, Reshape};
use neural_forecast_runtime::plan::{Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder};
use neural_forecast_runtime::testing::{Case, CaseBuilder, conform_all, device_or_skip};

/// The first GPU, unless there is none and nobody insists.
fn device() -> Option<CudaDevice> {
    device_or_skip("cuda", CudaDevice::open(0, CudaOptions::default()))
}

/// A product of `batch · length` rows.
fn product(
    (batch, length): (usize, usize),
    (k, n): (usize, usize),
    activation: Activation,
    residual: bool,
) -> Case {
    let name = format!("{} rows of {k} to {n}, {activation:?}", batch * length);
    let mut c = CaseBuilder::new(name, Bucket { batch, length });
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, k.into()]);
    let (weight, bias) = (c.weight(&[n, k]), c.bias(n));
    let mut linear = Linear::new(x, weight).bias(bias).activation(activation);
    if residual {
        linear = linear.residual(c.input(&[Dim::BATCH, Dim::LENGTH, n.into()]));
    }
    c.terms(k);
    let y = c.step(linear);
    c.finish(&[y])
}

#[test]
fn products_in_tiles() {
    let Some(device) = device() else { return };
    let mut cases = Vec::new();
    let activations = [
        Activation::Identity,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::Tanh,
    ];
    for (i, activation) in activations.into_iter().enumerate() {
        cases.push(product((3, 43), (72, 136), activation, i % 2 == 0));
    }
    for rows in [(1, 1), (1, 63), (1, 64), (5, 13), (1, 127), (2, 64), (3, 43), (1, 257)] {
        cases.push(product(rows, (200, 264), Activation::Identity, true));
        cases.push(product(rows, (320, 1000), Activation::Gelu, false));
    }
    // Several tiles a block, of each shape; K that ends inside of a stage.
    cases.push(product((3, 100), (260, 2304), Activation::Identity, false));
    cases.push(product((4, 500), (1000, 136), Activation::Identity, true));
    cases.push(product((90, 211), (72, 516), Activation::Relu, true));
    cases.push(product((90, 211), (264, 512), Activation::Identity, false));
    // Tiles of 48 and of 144 columns.
    cases.push(product((5, 100), (264, 480), Activation::Relu, true));
    cases.push(product((1, 1), (72, 96), Activation::Identity, true));
    cases.push(product((7, 64), (640, 2304), Activation::Identity, true));
    // What rounding weights and inputs to 11 and 8 bits leaves of sums of magnitude about 1.
    for (precision, more) in [
        (Precision::F32, 0.0),
        (Precision::Tf32, 1e-3),
        (Precision::F16, 1e-3),
        (Precision::Bf16, 8e-3),
    ] {
        let options = LoadOptions { fuse: false, precision, ..LoadOptions::default() };
        let cases: Vec<Case> = cases.iter().map(|case| case.widened(more)).collect();
        let (ran, failures) = conform_all(&device, &cases, &options);
        assert!(failures.is_empty(), "{}: {}", precision.name(), failures.join("\n"));
        assert_eq!(ran, cases.len(), "{}: cases were not run", precision.name());
    }
    let counts = device.kernel_counts();
    let made: u64 =
        counts.iter().filter(|c| c.kernel.starts_with("linear-wgmma")).map(|c| c.launches).sum();
    println!("{made} warpgroup products");
}

/// Features in and out of [`passed`].
const WIDTHS: (usize, usize) = (320, 96);

/// A product of `[B, L, 320]`, and if wanted the input as it is, so that all of its bits are read.
fn passed(too: bool) -> Plan {
    let (k, n) = WIDTHS;
    let mut plan = PlanBuilder::new("passed", Context::Fixed(64));
    let (weight, bias) = (plan.weight("w", &[n, k]), plan.weight("b", &[n]));
    plan.begin(EntryKind::Full);
    let shape = [Dim::BATCH, Dim::LENGTH, k.into()];
    let x = plan.input("x", DType::F32, &shape);
    let y = plan.step(Linear::new(x, weight).bias(bias)).expect("it is legal")[0];
    plan.output("y", y, Vec::new());
    if too {
        let same = plan.step(Reshape { x, shape: shape.to_vec() }).expect("it is legal")[0];
        plan.output("x", same, Vec::new());
    }
    plan.finish().expect("it is complete")
}

#[test]
fn inputs_rounded_on_their_way_give_the_same_bits() {
    let Some(device) = device() else { return };
    let (k, n) = WIDTHS;
    // Subnormals of f16 among them, and ties.
    let number = |i: usize| {
        let x = ((i * 7_919) % 20_011) as f32 / 4096.0 - 2.4;
        if i.is_multiple_of(101) { x * 1e-6 } else { x }
    };
    let mut weights = MemoryWeights::new();
    weights.insert("w", &[n, k], &(0..n * k).map(|i| 0.05 * number(i)).collect::<Vec<_>>());
    weights.insert("b", &[n], &(0..n).map(number).collect::<Vec<_>>());
    for precision in [Precision::F16, Precision::Bf16] {
        for class in [KernelClass::Latency, KernelClass::Throughput] {
            // Read from mapped memory, copied while it is written, copied by the engine.
            for batch in [1, 3, 16, 260] {
                let run = |too| {
                    let options = LoadOptions { precision, ..LoadOptions::default() };
                    let mut resident =
                        device.load(&passed(too), &weights, &options).expect("it loads");
                    let bucket = Bucket { batch, length: 64 };
                    let request = Request { entry: EntryKind::Full, bucket, class };
                    let mut program = resident.compile(request).expect("it compiles");
                    let mut all = Vec::new();
                    for rows in [batch, batch.div_ceil(2), batch] {
                        let x: Vec<f32> =
                            (0..rows * 64 * k).map(|i| number(i + all.len())).collect();
                        program.write(0, Data::F32(&x));
                        program.submit(&Run { rows, ..Run::default() }).expect("it starts");
                        program.wait().expect("it runs");
                        let mut y = vec![f32::NAN; rows * 64 * n];
                        program.read(0, &mut y).expect("it is there");
                        assert!(y.iter().all(|y| y.is_finite()), "{batch} of {precision:?}");
                        all.extend(y.into_iter().map(f32::to_bits));
                    }
                    all
                };
                let (rounded, whole) = (run(false), run(true));
                assert!(rounded == whole, "batch {batch}, {precision:?}, {}", class.name());
            }
        }
    }
}
