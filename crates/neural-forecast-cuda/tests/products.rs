//! Products in the tiles of Hopper's kernels: one and many tiles of each shape, edges of rows,
//! columns and K, every activation, residuals. Compared with the reference implementations.
//!
//! The runtime's shared cases, which `conformance` runs, stay below most of these. Without a GPU
//! nothing is tested, which is printed; `NF_REQUIRE=cuda` makes that a failure.

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::device::{Device, LoadOptions, Precision};
use neural_forecast_runtime::ops::{Activation, Linear};
use neural_forecast_runtime::plan::{Bucket, Dim};
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
