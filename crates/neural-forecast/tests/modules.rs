//! neuralforecast's networks one by one: plans from their own files, run on the reference ops
//! against what the framework's modules returned.
//!
//! No scaling and no windows: those are in the tests of whole folders. Fixtures lie in
//! `tests/fixtures/modules`; more are read from `../shared/fixtures/modules` where that folder is
//! beside the checkout.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixture;

use std::collections::BTreeMap;
use std::path::Path;

use neural_forecast::checkpoint::Checkpoint;
use neural_forecast::models::{Decoding, Network};
use neural_forecast_runtime::plan::{Bucket, EntryKind};
use neural_forecast_runtime::reference::{Tensor, run_entry, zero_states};
use serde_json::{Value, json};

use fixture::{Fixture, fixtures};

impl Fixture {
    /// The file that neuralforecast would have saved, with these hyper-parameters on top.
    fn saved(&self, class: &str, changes: Value) -> Vec<u8> {
        let mut hyper = self.config.as_object().unwrap().clone();
        hyper.insert("scaler_type".into(), json!("identity"));
        let outputs = hyper.get("outputs").and_then(Value::as_u64).unwrap_or(1);
        let loss = match hyper.get("loss").and_then(Value::as_str) {
            None => json!({"__nf__": "loss", "cls": "MAE", "args": {}}),
            Some(cls) => {
                let names: Vec<String> = (0..outputs).map(|i| format!("-{i}")).collect();
                let key = json!({"__nf__": "tensor", "key": "loss.quantiles", "kind": "torch"});
                json!({"__nf__": "loss", "cls": cls, "args": {},
                       "state": {"output_names": names, "quantiles": key}})
            }
        };
        hyper.insert("loss".into(), loss);
        for (name, value) in changes.as_object().unwrap() {
            hyper.insert(name.clone(), value.clone());
        }
        let metadata = json!({
            "nf_format": "2", "model_class": class,
            "hyper_parameters": Value::Object(hyper).to_string(), "shared": "{}",
        });
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), metadata);
        let mut data = Vec::new();
        for (name, stored) in &self.tensors {
            let Some(name) = name.strip_prefix("w.") else { continue };
            let begin = data.len();
            data.extend_from_slice(&stored.bytes);
            let offsets = [begin, data.len()];
            header.insert(
                name.into(),
                json!({"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}),
            );
        }
        let header = Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
    }

    fn network(&self, class: &str, changes: Value) -> Network {
        let file = self.saved(class, changes);
        let name = format!("{}_0.safetensors", self.name);
        let checkpoint = Checkpoint::from_bytes(&[(&name, &file)]);
        let mut checkpoint = checkpoint.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        checkpoint.models.pop().unwrap()
    }
}

/// The forecast of a network for the rows of these inputs.
fn forecast(network: &Network, inputs: &[(&str, Tensor)]) -> Tensor {
    let entry = network.plan.entry(EntryKind::Full).unwrap();
    let read: Vec<(&str, Tensor)> =
        inputs.iter().filter(|(name, _)| entry.input(name).is_some()).cloned().collect();
    let batch = inputs[0].1.shape[0];
    let bucket = Bucket { batch, length: network.context };
    let mut states = zero_states(&network.plan, batch);
    let kind = EntryKind::Full;
    let outputs = run_entry(&network.plan, kind, bucket, &network.weights, &read, &mut states);
    let mut outputs = outputs.unwrap_or_else(|error| panic!("{}: {error}", network.alias));
    assert_eq!(outputs[0].0, "forecast");
    outputs.remove(0).1
}

fn check(name: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.iter().zip(expected) {
        let tolerance = 1e-5 * expected.abs().max(1.0);
        assert!((found - expected).abs() <= tolerance, "{name}: {found}, expected {expected}");
    }
}

fn check_all(prefix: &str, class: &str) {
    for fixture in fixtures(prefix) {
        if fixture.config.get("recurrent").is_some_and(|flag| flag == true) {
            check_teacher_forced(&fixture, class);
            continue;
        }
        let network = fixture.network(class, json!({}));
        assert_eq!(network.decoding, Decoding::Direct);
        let inputs = [
            ("y", "in.insample_y"),
            ("mask", "in.insample_mask"),
            ("hist_exog", "in.hist_exog"),
            ("futr_exog", "in.futr_exog"),
            ("stat_exog", "in.stat_exog"),
        ];
        let inputs: Vec<(&str, Tensor)> = inputs
            .into_iter()
            .filter(|(_, stored)| fixture.holds(stored))
            .map(|(name, stored)| (name, fixture.tensor(stored)))
            .collect();
        let expected = fixture.tensor("out.y");
        let found = forecast(&network, &inputs);
        assert_eq!(found.shape, expected.shape, "{}", fixture.name);
        check(&fixture.name, &found.data, &expected.data);
    }
}

/// The module of a recurrent network returns the output after each of its last steps, given what
/// came before it. Each is a one-step forecast from a shorter window.
fn check_teacher_forced(fixture: &Fixture, class: &str) {
    let y = fixture.tensor("in.insample_y");
    let expected = fixture.tensor("out.y");
    let (rows, steps) = (y.shape[0], y.shape[1]);
    let (returned, outputs) = (expected.shape[1], expected.shape[2]);
    assert_eq!(outputs, 1, "{}", fixture.name);
    for step in 0..returned {
        let length = steps - returned + step + 1;
        // A recurrent network sees one step more than its input size.
        let network = fixture.network(class, json!({"h": 1, "input_size": length - 1}));
        assert_eq!((network.context, network.decoding), (length, Decoding::Recurrent));
        let window = Tensor::from_fn([rows, length, 1], |at| y.at(at));
        let found = forecast(&network, &[("y", window)]);
        let expected: Vec<f64> = (0..rows).map(|row| expected.at(&[row, step, 0])).collect();
        check(&format!("{} step {step}", fixture.name), &found.data, &expected);
    }
}

#[test]
fn lstm_is_the_frameworks() {
    check_all("nf_lstm", "LSTM");
}

#[test]
fn gru_is_the_frameworks() {
    check_all("nf_gru", "GRU");
}

#[test]
fn rnn_is_the_frameworks() {
    check_all("nf_rnn", "RNN");
}

#[test]
fn patchtst_is_the_frameworks() {
    check_all("nf_patchtst", "PatchTST");
}

#[test]
fn nhits_is_the_frameworks() {
    check_all("nf_nhits", "NHITS");
}

#[test]
fn tft_is_the_frameworks() {
    check_all("nf_tft", "TFT");
}

#[test]
fn other_horizons_are_for_recurrent_networks() {
    let fixture = fixtures("nf_gru_recurrent").remove(0);
    let network = fixture.network("GRU", json!({}));
    let longer = network.plan_for(11).unwrap();
    let output = longer.entry(EntryKind::Full).unwrap().outputs[0].value;
    let shape = &longer.entry(EntryKind::Full).unwrap().value(output).shape;
    assert_eq!(format!("{shape:?}"), "[B, 11, 1]");
    assert!(network.plan_for(0).unwrap_err().to_string().contains("horizon is 0"));
    let direct = fixtures("nf_gru").remove(0).network("GRU", json!({}));
    let error = direct.plan_for(11).unwrap_err().to_string();
    assert_eq!(error, "model `nf_gru` forecasts 8 steps at once, not 11");
}

#[test]
fn unrolled_steps_follow_one_another() {
    // Forecasts of a shorter horizon are the beginning of those of a longer one, and each is what
    // a window that ends with the ones before it gives.
    let fixture = fixtures("nf_rnn_recurrent").remove(0);
    let y = fixture.tensor("in.insample_y");
    let (rows, steps) = (y.shape[0], y.shape[1]);
    let short = fixture.network("RNN", json!({"input_size": steps - 1, "h": 2}));
    let long = fixture.network("RNN", json!({"input_size": steps - 1, "h": 5}));
    let two = forecast(&short, &[("y", y.clone())]);
    let five = forecast(&long, &[("y", y.clone())]);
    for row in 0..rows {
        let begin: Vec<f64> = (0..2).map(|step| five.at(&[row, step, 0])).collect();
        let first: Vec<f64> = (0..2).map(|step| two.at(&[row, step, 0])).collect();
        assert_eq!(begin, first);
    }
    let extended = Tensor::from_fn([rows, steps + 4, 1], |at| match at[1].checked_sub(steps) {
        None => y.at(at),
        Some(step) => five.at(&[at[0], step, 0]),
    });
    let one = fixture.network("RNN", json!({"input_size": steps + 3, "h": 1}));
    let last = forecast(&one, &[("y", extended)]);
    let expected: Vec<f64> = (0..rows).map(|row| five.at(&[row, 4, 0])).collect();
    check("the fifth step", &last.data, &expected);
}

/// The outputs of an entry by name.
fn outputs(
    network: &Network,
    entry: EntryKind,
    inputs: &[(&str, Tensor)],
    states: &mut Vec<Tensor>,
) -> BTreeMap<String, Tensor> {
    let batch = inputs[0].1.shape[0];
    let bucket = Bucket { batch, length: network.context };
    let declared = network.plan.entry(entry).unwrap();
    let read: Vec<(&str, Tensor)> =
        inputs.iter().filter(|(name, _)| declared.input(name).is_some()).cloned().collect();
    let found = run_entry(&network.plan, entry, bucket, &network.weights, &read, states);
    found.unwrap().into_iter().collect()
}

#[test]
fn prefill_and_steps_are_the_unrolled_forecast() {
    let fixtures_of = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let mut networks = Vec::new();
    for folder in ["nf_recurrent", "nf_exog"] {
        let path = fixtures_of.join(folder).join("checkpoint");
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name.ends_with("_0.safetensors") {
                networks.append(&mut Checkpoint::open(&path).unwrap().models);
            }
        }
    }
    networks.retain(|network| network.decoding == Decoding::Recurrent);
    assert!(networks.iter().any(|network| !network.exogenous.is_empty()));
    assert!(networks.iter().any(|network| network.outputs.len() > 1));
    for network in &networks {
        let (rows, length, horizon) = (2, network.context, network.horizon);
        let wave = |shape: [usize; 3], phase: f64| {
            Tensor::from_fn(shape, |at| {
                let position = (31 * at[0] + at[1]) as f64 + 7.0 * at[2] as f64;
                5.0 * (0.37 * position + phase).sin() + 0.1 * position
            })
        };
        let columns = &network.exogenous;
        let future = wave([rows, length + horizon, columns.future.len()], 2.0);
        let statics = columns.statics.len();
        let future_at = |from: usize, steps: usize| {
            let shape = [rows, steps, columns.future.len()];
            Tensor::from_fn(shape, |at| future.at(&[at[0], from + at[1], at[2]]))
        };
        let mut inputs = vec![
            ("y", wave([rows, length, 1], 0.0)),
            ("mask", Tensor::from_fn([rows, length, 1], |at| f64::from(u8::from(at[1] > 2)))),
            ("hist_exog", wave([rows, length, columns.historic.len()], 1.0)),
            ("futr_exog", future.clone()),
            ("stat_exog", Tensor::from_fn([rows, statics], |at| 0.3 * at[1] as f64 - 0.2)),
        ];
        let unrolled = forecast(network, &inputs);

        let mut states = zero_states(&network.plan, rows);
        inputs[3].1 = future_at(0, length + 1);
        let prefill = outputs(network, EntryKind::Prefill, &inputs, &mut states);
        let mut step = prefill.clone();
        let channels = network.outputs.len();
        for i in 0..horizon {
            let name = format!("{} step {i}", network.alias);
            let expected: Vec<f64> = (0..rows * channels)
                .map(|j| unrolled.at(&[j / channels, i, j % channels]))
                .collect();
            check(&name, &step["forecast"].data, &expected);
            if i + 1 == horizon {
                break;
            }
            let mut inputs = vec![
                ("feedback", step["feedback"].clone()),
                ("futr_exog", future_at(length + i + 1, 1)),
                inputs[4].clone(),
            ];
            for name in ["statistics", "futr_statistics"] {
                inputs.extend(prefill.get(name).map(|value| (name, value.clone())));
            }
            step = outputs(network, EntryKind::Step, &inputs, &mut states);
        }
    }
}
