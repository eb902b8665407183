//! The integration guide's models end to end: parity with PyTorch, shapes, sharing, provenance.
//!
//! Runs on the CPU; backends that arrive later add their devices here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;

use ndarray::{Array3, s};
use neural_forecast::ErrorKind;
use neural_forecast::config::{LSTMConfig, TransformerConfig};
use neural_forecast::models::{LSTMModel, Model, TransformerModel};
use neural_forecast::weights::Weights;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The windows and forecasts that `make_guide_models.py` saved.
fn windows(name: &str) -> (Array3<f32>, Vec<f64>) {
    let text = std::fs::read_to_string(data(name)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |key: &str| -> Vec<f64> {
        json[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let shape: Vec<usize> = numbers("x_shape").iter().map(|&n| n as usize).collect();
    let x = numbers("x").iter().map(|&x| x as f32).collect();
    (Array3::from_shape_vec((shape[0], shape[1], shape[2]), x).unwrap(), numbers("y"))
}

fn assert_close(found: &Array3<f32>, expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (&found, &expected) in found.iter().zip(expected) {
        let error = (f64::from(found) - expected).abs() / expected.abs().max(1.0);
        assert!(error <= 1e-5, "{found}, PyTorch has {expected}");
    }
}

fn guide_lstm() -> LSTMConfig {
    LSTMConfig {
        input_length: 7,
        output_length: 4,
        hidden_size: 5,
        num_layers: 2,
        use_bias: true,
        dropout: 0.1,
        bidirectional: true,
    }
}

fn guide_transformer() -> TransformerConfig {
    TransformerConfig {
        input_length: 6,
        output_length: 4,
        d_model: 8,
        num_heads: 2,
        num_layers: 2,
        d_ff: 12,
        dropout: 0.1,
        use_flash_attention: true,
    }
}

/// Values of both signs that no two windows share.
fn sample(batch: usize, time: usize, features: usize) -> Array3<f32> {
    Array3::from_shape_fn((batch, time, features), |(b, t, f)| {
        ((b * 131 + t * 17 + f * 7) as f32 * 0.37).sin() * 2.0
    })
}

#[test]
fn lstm_equals_pytorch() {
    let (x, y) = windows("guide_lstm.json");
    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let model = model.with_weights(data("guide_lstm.safetensors")).unwrap();
    let output = model.predict_blocking(&x).unwrap();
    assert_eq!(output.shape(), [2, 4, 1]);
    assert_close(&output, &y);
}

#[test]
fn transformer_equals_pytorch_fused_and_materialised() {
    let (x, y) = windows("guide_transformer.json");
    for use_flash_attention in [true, false] {
        let config = TransformerConfig { use_flash_attention, ..guide_transformer() };
        let model = TransformerModel::new_from_config(config).unwrap();
        let model = model.with_weights(data("guide_transformer.safetensors")).unwrap();
        let output = model.predict_blocking(&x).unwrap();
        assert_eq!(output.shape(), [2, 4, 1]);
        assert_close(&output, &y);
    }
}

#[test]
fn weights_of_another_network_are_refused_by_name() {
    let file = data("guide_lstm.safetensors");
    let refuse = |config: LSTMConfig, expected: &str| {
        let model = LSTMModel::new_from_config(config).unwrap().with_weights(&file).unwrap();
        let error = model.predict_blocking(&sample(1, 7, 3)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("guide_lstm.safetensors"), "{text}");
    };
    refuse(LSTMConfig { bidirectional: false, ..guide_lstm() }, "_reverse`");
    refuse(LSTMConfig { use_bias: false, ..guide_lstm() }, "`rnn.bias_hh_l0`");
    refuse(LSTMConfig { num_layers: 3, ..guide_lstm() }, "_l2`");
    refuse(LSTMConfig { hidden_size: 6, ..guide_lstm() }, "expected [24");

    let transformer = TransformerModel::new_from_config(guide_transformer()).unwrap();
    let error = transformer.with_weights(&file).unwrap_err();
    assert!(error.to_string().contains("`embed.weight`"), "{error}");
    let missing = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let error = missing.with_weights(data("absent.safetensors")).unwrap_err();
    assert!(error.to_string().contains("absent.safetensors"), "{error}");

    let mut joint = Weights::new();
    joint.insert("embed.weight", &[8, 3], &[0.5; 24]);
    joint.insert("encoder.layers.0.self_attn.in_proj_weight", &[23, 8], &[0.5; 184]);
    let model = TransformerModel::new_from_config(guide_transformer()).unwrap();
    let model = model.with_stored_weights("memory", joint).unwrap();
    let error = model.predict_blocking(&sample(1, 6, 3)).unwrap_err().to_string();
    assert!(error.contains("has shape [23, 8], expected [24, 8]"), "{error}");
}

#[test]
fn shapes_are_checked_and_features_are_fixed_by_the_first_window() {
    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    assert!(model.last_run().is_none());
    let error = model.predict_blocking(&sample(2, 6, 3)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let text = error.to_string();
    assert_eq!(text, "LSTMModel takes windows of 7 time steps, found shape [2, 6, 3]");
    assert_eq!(model.predict_blocking(&sample(0, 7, 3)).unwrap().shape(), [0, 4, 1]);
    model.predict_blocking(&sample(2, 7, 3)).unwrap();
    let error = model.predict_blocking(&sample(2, 7, 4)).unwrap_err();
    assert_eq!(error.to_string(), "LSTMModel takes 3 features, found 4");

    let model = TransformerModel::new_from_config(guide_transformer()).unwrap();
    let model = model.with_features(2).unwrap();
    let error = model.predict_blocking(&sample(1, 6, 3)).unwrap_err();
    assert_eq!(error.to_string(), "TransformerModel takes 2 features, found 3");
    let error = model.with_features(3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);

    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    assert_eq!(model.predict_blocking(&sample(1, 7, 0)).unwrap_err().kind(), ErrorKind::Config);
    assert!(LSTMModel::new_from_config(LSTMConfig { num_layers: 0, ..guide_lstm() }).is_err());
}

#[test]
fn a_batch_has_the_bits_of_its_rows() {
    assert_batch_invariant(&LSTMModel::new_from_config(guide_lstm()).unwrap(), 7);
    assert_batch_invariant(&TransformerModel::new_from_config(guide_transformer()).unwrap(), 6);
}

fn assert_batch_invariant(model: &impl Model, time: usize) {
    let x = sample(5, time, 3);
    let together = model.predict_blocking(&x).unwrap();
    for row in 0..5 {
        let alone = x.slice(s![row..row + 1, .., ..]).to_owned();
        let alone = model.predict_blocking(&alone).unwrap();
        assert_eq!(together.slice(s![row..row + 1, .., ..]), alone, "row {row}");
    }
    // The same windows in another memory layout.
    let mut turned = Array3::zeros((3, time, 5));
    turned.assign(&x.view().reversed_axes());
    assert_eq!(model.predict_blocking(&turned.reversed_axes()).unwrap(), together);
}

#[test]
fn seeds_repeat_and_differ() {
    let predict = |seed| {
        let model = LSTMModel::new_from_config(guide_lstm()).unwrap().with_seed(seed);
        let (output, info) = model.predict_with_info(&sample(2, 7, 3)).unwrap();
        assert!(output.iter().all(|y| y.is_finite()));
        (output, info.model_hash)
    };
    assert_eq!(predict(1), predict(1));
    let ((a, a_hash), (b, b_hash)) = (predict(1), predict(2));
    assert_ne!(a, b);
    assert_ne!(a_hash, b_hash);
}

#[test]
fn a_result_says_how_it_was_made() {
    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let (_, info) = model.predict_with_info(&sample(2, 7, 3)).unwrap();
    assert_eq!(info.precision.name(), "f32");
    assert_eq!(info.kernel_class.name(), "latency");
    assert_eq!(info.model_hash.len(), 16);
    assert!(!info.device.is_empty());
    assert_eq!(info.fallback, None);
    assert_eq!(model.last_run(), Some(info));
}

#[test]
fn one_model_serves_several_threads() {
    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let expected: Vec<_> = {
        let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
        (1..5).map(|n| model.predict_blocking(&sample(n, 7, 3)).unwrap()).collect()
    };
    std::thread::scope(|scope| {
        for (n, expected) in (1..5).zip(&expected) {
            let model = &model;
            scope.spawn(move || {
                for _ in 0..3 {
                    assert_eq!(model.predict_blocking(&sample(n, 7, 3)).unwrap(), *expected);
                }
            });
        }
    });
}

#[test]
fn the_async_form_gives_the_same() {
    let model = TransformerModel::new_from_config(guide_transformer()).unwrap();
    let x = sample(2, 6, 3);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let output = runtime.block_on(model.predict(&x)).unwrap();
    assert_eq!(output, model.predict_blocking(&x).unwrap());
    // A dropped future did nothing.
    drop(model.predict(&x));
}

/// The first NVIDIA GPU; where there is none the caller's test says so and ends, unless
/// `NF_REQUIRE` names `cuda`.
#[cfg(feature = "cuda")]
fn cuda() -> Option<neural_forecast::device::OpenDevice> {
    use neural_forecast::device::{DeviceChoice, DeviceOptions, open};
    let opened = open(DeviceChoice::Cuda(0), &DeviceOptions::default());
    neural_forecast_runtime::testing::device_or_skip("cuda", opened)
}

#[cfg(feature = "cuda")]
#[test]
fn models_on_cuda_equal_pytorch() {
    let Some(opened) = cuda() else { return };
    let (x, y) = windows("guide_lstm.json");
    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let model = model.with_weights(data("guide_lstm.safetensors")).unwrap();
    let model = model.with_device(opened.clone());
    let (output, info) = model.predict_with_info(&x).unwrap();
    assert_close(&output, &y);
    assert_eq!(info.device, "cuda:0");
    assert!(info.fallback.is_none() && !info.kernels.is_empty(), "{info:?}");
    let (x, y) = windows("guide_transformer.json");
    for use_flash_attention in [true, false] {
        let config = TransformerConfig { use_flash_attention, ..guide_transformer() };
        let model = TransformerModel::new_from_config(config).unwrap();
        let model = model.with_weights(data("guide_transformer.safetensors")).unwrap();
        let model = model.with_device(opened.clone());
        assert_close(&model.predict_blocking(&x).unwrap(), &y);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_batch_on_cuda_has_the_bits_of_its_rows() {
    let Some(opened) = cuda() else { return };
    for precision in [neural_forecast::Precision::F32, neural_forecast::Precision::F16] {
        let lstm = LSTMModel::new_from_config(guide_lstm()).unwrap().with_precision(precision);
        assert_batch_invariant(&lstm.with_device(opened.clone()), 7);
        let transformer = TransformerModel::new_from_config(guide_transformer()).unwrap();
        let transformer = transformer.with_precision(precision);
        assert_batch_invariant(&transformer.with_device(opened.clone()), 6);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn acceleration_is_enabled_or_refused_and_the_model_still_forecasts() {
    let mut model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let before = model.predict_blocking(&sample(2, 7, 3)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    match runtime.block_on(model.enable_cuda_acceleration()) {
        Ok(()) => {
            let (after, info) = model.predict_with_info(&sample(2, 7, 3)).unwrap();
            assert_eq!(info.device, "cuda:0");
            for (a, b) in after.iter().zip(&before) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} on CUDA, {b} before");
            }
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Device, "{error}");
            assert!(error.to_string().contains("cuda:0"), "{error}");
            assert_eq!(model.predict_blocking(&sample(2, 7, 3)).unwrap(), before);
        }
    }
}

/// The first WebGPU adapter; where there is none the caller's test says so and ends, unless
/// `NF_REQUIRE` names `wgpu`.
#[cfg(feature = "gpu")]
fn webgpu() -> Option<neural_forecast::gpu::GPUBackend> {
    use neural_forecast::gpu::GPUBackend;
    let opened = GPUBackend::on(0, neural_forecast::config::GPUConfig::default());
    neural_forecast_runtime::testing::device_or_skip("wgpu", opened)
}

#[cfg(feature = "gpu")]
#[test]
fn models_on_webgpu_equal_pytorch() {
    let Some(backend) = webgpu() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (x, y) = windows("guide_lstm.json");
    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let mut model = model.with_weights(data("guide_lstm.safetensors")).unwrap();
    runtime.block_on(model.initialize(Some(&backend))).unwrap();
    let (output, info) = model.predict_with_info(&x).unwrap();
    assert_close(&output, &y);
    assert_eq!(info.device, "gpu:0");
    let loops = info.kernels.iter().find(|count| count.kernel == "rnn_row-wgsl-f32");
    assert!(info.fallback.is_none() && loops.is_some_and(|n| n.launches == 4), "{info:?}");
    let (x, y) = windows("guide_transformer.json");
    for use_flash_attention in [true, false] {
        let config = TransformerConfig { use_flash_attention, ..guide_transformer() };
        let model = TransformerModel::new_from_config(config).unwrap();
        let mut model = model.with_weights(data("guide_transformer.safetensors")).unwrap();
        runtime.block_on(model.initialize(Some(&backend))).unwrap();
        // Without a backend a model stays where it is.
        runtime.block_on(model.initialize(None)).unwrap();
        assert_close(&model.predict_blocking(&x).unwrap(), &y);
        assert_eq!(model.last_run().unwrap().device, "gpu:0");
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_batch_on_webgpu_has_the_bits_of_its_rows() {
    let Some(backend) = webgpu() else { return };
    let lstm = LSTMModel::new_from_config(guide_lstm()).unwrap();
    assert_batch_invariant(&lstm.with_device(backend.open_device()), 7);
    let transformer = TransformerModel::new_from_config(guide_transformer()).unwrap();
    assert_batch_invariant(&transformer.with_device(backend.open_device()), 6);
}

#[cfg(feature = "gpu")]
#[test]
fn a_precision_that_webgpu_lacks_is_refused_by_name() {
    let Some(backend) = webgpu() else { return };
    let model = LSTMModel::new_from_config(guide_lstm()).unwrap();
    let model = model.with_precision(neural_forecast::Precision::Bf16);
    let error = model.with_device(backend.open_device()).predict_blocking(&sample(1, 7, 3));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("`bf16`"), "{error}");
}
