//! Checkpoint files: what is read, what is refused with which message, what is written.
//!
//! Not the numbers of forecasts: those are compared in `modules.rs` and `folders.rs`. Files are
//! made here or taken from `tests/fixtures` and broken one thing at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use neural_forecast::checkpoint::{self, Checkpoint, Format};
use neural_forecast::models::Decoding;
use neural_forecast::{Error, ErrorKind};
use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::plan::Channel;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn bytes_of(path: &str) -> Vec<u8> {
    std::fs::read(fixture(path)).unwrap()
}

/// The files of a fixture's folder.
fn files_of(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fixture(name).join("checkpoint");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let file = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    entries.map(file).collect()
}

fn open_files(files: &[(String, Vec<u8>)]) -> Result<Checkpoint, Error> {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    Checkpoint::from_bytes(&files)
}

/// A safetensors file as its parts.
struct Parts {
    header: Value,
    data: Vec<u8>,
}

impl Parts {
    fn of(file: &[u8]) -> Parts {
        let (size, rest) = file.split_at(8);
        let size = u64::from_le_bytes(size.try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&rest[..size]).unwrap();
        Parts { header, data: rest[size..].to_vec() }
    }

    fn file(&self) -> Vec<u8> {
        with_header(&self.header.to_string(), &self.data)
    }

    /// Changes the metadata JSON `hyper_parameters`.
    fn hyper(&mut self, change: impl FnOnce(&mut Value)) {
        let text = &mut self.header["__metadata__"]["hyper_parameters"];
        let mut hyper: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        change(&mut hyper);
        *text = Value::String(hyper.to_string());
    }
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn read_one(file: &[u8]) -> Result<Checkpoint, Error> {
    Checkpoint::from_bytes(&[("LSTM_0.safetensors", file)])
}

/// The file is refused as this kind, with a message of one line that holds these parts.
fn refused(file: &[u8], kind: ErrorKind, parts: &[&str]) {
    let error = read_one(file).expect_err(parts[0]);
    check_error(&error, kind, parts);
    assert!(error.to_string().starts_with("LSTM_0.safetensors: "), "{error}");
}

fn check_error(error: &Error, kind: ErrorKind, parts: &[&str]) {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{message}` has no `{part}`");
    }
    assert_eq!(error.kind(), kind, "{message}");
}

const LSTM: &str = "nf_local_standard/checkpoint/LSTM_0.safetensors";

fn lstm() -> Parts {
    Parts::of(&bytes_of(LSTM))
}

#[test]
fn a_folder_says_what_its_forecasts_need() {
    let checkpoint = Checkpoint::open(fixture("nf_exog_local/checkpoint")).unwrap();
    assert_eq!(checkpoint.format, Format::NeuralForecast);
    assert_eq!(checkpoint.frequency.unwrap().to_string(), "h");
    assert_eq!(checkpoint.horizon, 6);
    let aliases: Vec<&str> = checkpoint.models.iter().map(|model| model.alias.as_str()).collect();
    assert_eq!(aliases, ["LSTM", "NHITS"]);
    let local = checkpoint.local_scaler.unwrap();
    assert_eq!(local.kind, "standard");
    let columns: Vec<&String> = local.statistics.keys().collect();
    assert_eq!(columns, ["futr1", "futr2", "hist1", "hist2", "y"]);
    assert!(local.statistics["y"].iter().all(|[mean, scale]| mean.is_finite() && *scale > 0.0));
    assert_eq!(checkpoint.static_scaler.unwrap().kind, "minmax");
    let exogenous = &checkpoint.models[0].exogenous;
    assert!(!exogenous.is_empty() && exogenous.future.contains(&"futr1".to_owned()));
}

#[test]
fn names_scores_and_series_are_read() {
    let checkpoint = Checkpoint::open(fixture("nf_columns/checkpoint")).unwrap();
    let columns = [checkpoint.id_column, checkpoint.time_column, checkpoint.target_column];
    assert_eq!(columns, ["item", "when", "sales"]);
    let conformal =
        Checkpoint::open(fixture("nf_conformal_error/checkpoint")).unwrap().conformal.unwrap();
    assert_eq!(
        (conformal.method.as_str(), conformal.windows, conformal.step),
        ("conformal_error", 3, 1)
    );
    assert_eq!(conformal.ids.len(), 2 * 3 * 6);
    assert_eq!((conformal.ids[0].as_str(), conformal.ids[35].as_str()), ("a", "b"));
    assert_eq!(conformal.errors.keys().collect::<Vec<_>>(), ["LSTM", "NHITS"]);
    assert!(conformal.errors["LSTM"].iter().all(|error| *error >= 0.0));
    let stored = Checkpoint::open(fixture("nf_with_dataset/checkpoint")).unwrap();
    assert_eq!(stored.ids, ["a", "b"]);
    let integer = Checkpoint::open(fixture("nf_freq_integer5/checkpoint")).unwrap();
    assert_eq!(integer.frequency.unwrap().to_string(), "5");
}

#[test]
fn equal_aliases_are_numbered_as_the_framework_does() {
    let mut files = files_of("nf_local_standard");
    for number in [1, 2] {
        files.push((format!("LSTM_{number}.safetensors"), bytes_of(LSTM)));
    }
    let checkpoint = open_files(&files).unwrap();
    let aliases: Vec<&str> = checkpoint.models.iter().map(|model| model.alias.as_str()).collect();
    assert_eq!(aliases, ["LSTM", "LSTM1", "LSTM2"]);
}

#[test]
fn quantiles_keep_the_networks_order() {
    let checkpoint = Checkpoint::open(fixture("nf_lstm/checkpoint")).unwrap();
    let network = checkpoint.models.iter().find(|m| m.outputs.len() > 1).unwrap();
    assert_eq!(network.loss, "MQLoss");
    let median = network.feedback.map(|i| network.outputs[i].clone()).unwrap();
    assert_eq!((median.suffix.as_str(), median.channel), ("-median", Channel::Quantile(0.5)));
    for output in &network.outputs {
        // Stored as f32, meant as decimals: 0.05, not 0.05000000074505806.
        let Channel::Quantile(level) = output.channel else { panic!("{output:?}") };
        assert!(format!("{level}").len() <= 5, "{level}");
    }
    let recurrent = Checkpoint::open(fixture("nf_recurrent/checkpoint")).unwrap();
    for network in &recurrent.models {
        assert_eq!(network.decoding, Decoding::Recurrent);
        let window = if network.alias == "LstmOne" { 9 } else { 18 };
        assert_eq!(network.context, window + 1, "{}", network.alias);
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let good = bytes_of(LSTM);
    assert!(read_one(&good).is_ok());
    let checkpoint = ErrorKind::Checkpoint;
    refused(&[], checkpoint, &["0 bytes"]);
    refused(&good[..7], checkpoint, &["7 bytes"]);
    refused(&good[..20], checkpoint, &["header of", "at most 12"]);
    refused(&good[..good.len() - 1], checkpoint, &["tensor `", "the file holds"]);
    let longer = [&good[..], b"!"].concat();
    refused(&longer, checkpoint, &["1 bytes after the last tensor"]);
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    refused(&huge, checkpoint, &["header of 18446744073709551615 bytes", "at most 2"]);
    refused(&with_header("\u{0}", &[]), checkpoint, &["header is not what safetensors has"]);
    refused(&with_header("[]", &[]), checkpoint, &["expected an object of tensors"]);
    let mut bytes = with_header("{\"a\":1}", &[]);
    bytes[9] = 0xff;
    refused(&bytes, checkpoint, &["not UTF-8 at byte 1"]);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    refused(&with_header(&format!("{{\"a\":{deep}}}"), &[]), checkpoint, &["header"]);
}

#[test]
fn entries_that_lie_are_refused() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let one = |entry: String| with_header(&format!(r#"{{"a":{entry}}}"#), &[0; 8]);
    let checkpoint = ErrorKind::Checkpoint;
    refused(&one(entry("F32", "[2]", "[0,9]")), checkpoint, &["tensor `a`", "0..9", "holds 8"]);
    refused(&one(entry("F32", "[2]", "[8,0]")), checkpoint, &["tensor `a`", "8..0"]);
    refused(&one(entry("F32", "[3]", "[0,8]")), checkpoint, &["`a`", "[3]", "not take 8 bytes"]);
    let product = "[4611686018427387904,4]";
    refused(
        &one(entry("F32", product, "[0,8]")),
        checkpoint,
        &["tensor `a`", "4611686018427387904"],
    );
    let zero = "[9223372036854775807,9223372036854775807,0]";
    refused(&one(entry("F32", zero, "[0,0]")), checkpoint, &["tensor `a`"]);
    refused(&one(entry("F4", "[2]", "[0,8]")), checkpoint, &["tensor `a`", "unknown dtype `F4`"]);
    refused(&one(entry("F32", "[-1]", "[0,8]")), checkpoint, &["header", "-1"]);
    refused(&one(entry("F32", "[2.5]", "[0,8]")), checkpoint, &["header", "2.5"]);
    let rank = "[1,1,1,1,1,1,1,1,2]";
    refused(&one(entry("F32", rank, "[0,8]")), checkpoint, &["tensor `a`", "9 axes"]);
    let gap = one(entry("F32", "[1]", "[4,8]"));
    refused(&gap, checkpoint, &["4 bytes before tensor `a` belong to no tensor"]);
    let two = |a: &str, b: &str| {
        let (a, b) = (entry("F32", "[1]", a), entry("F32", "[1]", b));
        with_header(&format!(r#"{{"a":{a},"b":{b}}}"#), &[0; 8])
    };
    refused(&two("[0,4]", "[0,4]"), checkpoint, &["tensors `a` and `b` overlap"]);
    refused(&two("[0,4]", "[2,6]"), checkpoint, &["tensors `a` and `b` overlap"]);
    let twice =
        format!(r#"{{"a":{},"a":{}}}"#, entry("F32", "[1]", "[0,4]"), entry("F32", "[1]", "[4,8]"));
    refused(&with_header(&twice, &[0; 8]), checkpoint, &["`a` comes twice"]);
    let metadata = r#"{"__metadata__":{"k":"1","k":"2"}}"#;
    refused(&with_header(metadata, &[]), checkpoint, &["metadata `k` comes twice"]);
    refused(&with_header(r#"{"__metadata__":{"k":1}}"#, &[]), checkpoint, &["header"]);
    refused(&with_header("{}", &[]), checkpoint, &["neither", "nf_format"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let name = "hist_encoder.weight_ih_l0";
    let checkpoint = ErrorKind::Checkpoint;
    let mut file = lstm();
    let entry = file.header.as_object_mut().unwrap().remove(name).unwrap();
    file.header["other"] = entry.clone();
    refused(&file.file(), checkpoint, &["tensor `hist_encoder.weight_ih_l0`", "is missing"]);
    let mut file = lstm();
    let shape = file.header[name]["shape"].clone();
    file.header[name]["shape"] = json!([shape[1], shape[0]]);
    refused(
        &file.file(),
        checkpoint,
        &["`hist_encoder.weight_ih_l0` has shape [1, ", "expected ["],
    );
    let mut file = lstm();
    file.header[name]["dtype"] = json!("I32");
    refused(&file.file(), checkpoint, &["tensor `hist_encoder.weight_ih_l0` of floats"]);
    let mut file = lstm();
    let end = file.data.len();
    file.header["surplus"] = json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]});
    file.data.extend([0; 4]);
    refused(&file.file(), checkpoint, &["tensor `surplus` belongs to no part of the network"]);
}

#[test]
fn hyper_parameters_that_cannot_be_are_refused() {
    let checkpoint = ErrorKind::Checkpoint;
    let changed = |name: &str, value: Value| {
        let mut file = lstm();
        file.hyper(|hyper| hyper[name] = value);
        file.file()
    };
    refused(&changed("h", json!(0)), checkpoint, &["`h` is 0"]);
    refused(&changed("h", json!(-3)), checkpoint, &["`h` is -3"]);
    refused(&changed("h", json!("six")), checkpoint, &["`h` is `six`", "a whole number"]);
    refused(&changed("h", json!(1u64 << 40)), checkpoint, &["`h`"]);
    refused(&changed("h", Value::Null), checkpoint, &["`h` is missing"]);
    refused(&changed("encoder_hidden_size", json!(u64::MAX)), checkpoint, &["encoder_hidden_size"]);
    refused(&changed("encoder_n_layers", json!(1_000_000)), checkpoint, &["encoder_n_layers"]);
    refused(&changed("encoder_hidden_size", json!(7)), checkpoint, &["tensor `", "expected ["]);
    refused(&changed("encoder_bias", json!(1)), checkpoint, &["`encoder_bias` is 1"]);
    refused(&changed("hist_exog_list", json!([1.5, {}])), checkpoint, &["hist_exog_list"]);
    refused(&changed("loss", json!([])), checkpoint, &["`loss` is a list"]);
    let unsupported = ErrorKind::Unsupported;
    refused(
        &changed("scaler_type", json!("quantum")),
        unsupported,
        &["`scaler_type` is `quantum`"],
    );
    refused(&changed("decoder_activation", json!("Mish")), unsupported, &["`Mish`", "ReLU"]);
    refused(&changed("cat_exog_list", json!(["colour"])), unsupported, &["`colour`"]);
    let loss = |cls: &str| json!({"__nf__": "loss", "cls": cls, "args": {}});
    for (cls, why) in [
        ("IQLoss", "quantile as an input"),
        ("DistributionLoss", "samples of a distribution"),
        ("GMM", "samples of a distribution"),
        ("MyLoss", "not one of neuralforecast's"),
    ] {
        refused(&changed("loss", loss(cls)), unsupported, &[cls, why]);
    }
    let mut file = lstm();
    file.header["__metadata__"]["model_class"] = json!("Informer");
    refused(&file.file(), unsupported, &["architecture `Informer`", "LSTM, GRU, RNN"]);
    let mut file = lstm();
    file.header["__metadata__"]["nf_format"] = json!("3");
    refused(&file.file(), unsupported, &["`nf_format` is `3`, expected `2`"]);
    let mut file = lstm();
    file.header["__metadata__"]["hyper_parameters"] = json!("{");
    refused(&file.file(), checkpoint, &["metadata `hyper_parameters`"]);
    let mut file = lstm();
    file.hyper(|hyper| {
        hyper["recurrent"] = json!(true);
        hyper["h"] = json!(100_000);
    });
    refused(&file.file(), checkpoint, &["`horizon` is 100000"]);
}

#[test]
fn the_largest_configurations_are_refused_or_read_in_reasonable_time() {
    // Not timed; a reader that took these without bounds would not come back.
    let names =
        |prefix: &str| -> Vec<String> { (0..1024).map(|i| format!("{prefix}{i}")).collect() };
    let hyper = json!({
        "h": 1000, "input_size": 1000, "encoder_layers": 1024, "encoder_n_layers": 1024,
        "decoder_layers": 1024, "n_rnn_layers": 1024, "hidden_size": 64, "n_heads": 4,
        "hist_exog_list": names("h"), "futr_exog_list": names("f"), "stat_exog_list": names("s"),
        "stack_types": vec!["identity"; 1024], "n_blocks": vec![1; 1024],
        "n_pool_kernel_size": vec![1; 1024], "n_freq_downsample": vec![1; 1024],
        "mlp_units": vec![[8, 8]; 1024],
    });
    checkpoint::fuzz_hyper_parameters(hyper.to_string().as_bytes());
    let mut file = Parts::of(&files_of("nf_nhits").swap_remove(1).1);
    file.header["__metadata__"]["model_class"] = json!("NHITS");
    file.hyper(|old| {
        for (name, value) in hyper.as_object().unwrap() {
            old[name] = value.clone();
        }
    });
    refused(&file.file(), ErrorKind::Checkpoint, &["number of affine maps"]);
}

#[test]
fn folders_that_are_none_say_what_to_do() {
    let folder = |files: &[(&str, &[u8])]| Checkpoint::from_bytes(files).unwrap_err();
    let error = folder(&[("LSTM_0.ckpt", b"PK"), ("configuration.pkl", b"")]);
    check_error(&error, ErrorKind::Unsupported, &["LSTM_0.ckpt", "neuralforecast.migrate"]);
    let error = folder(&[("config.json", b"{}"), ("model.safetensors", b"")]);
    check_error(&error, ErrorKind::Unsupported, &["Hugging Face", "config.json"]);
    let error = folder(&[("notes.txt", b"")]);
    check_error(&error, ErrorKind::Checkpoint, &["no `configuration.json`"]);
    let error = Checkpoint::open("/nowhere/at/all").unwrap_err();
    check_error(&error, ErrorKind::Io, &["/nowhere/at/all"]);
    let error = Checkpoint::open(fixture("nf_lstm")).unwrap_err();
    check_error(&error, ErrorKind::Checkpoint, &["nf_lstm", "no `configuration.json`"]);

    let error = Checkpoint::open("/dev/null").unwrap_err();
    check_error(&error, ErrorKind::Io, &["/dev/null", "not a regular file"]);

    let mut files = files_of("nf_lstm");
    files.retain(|(name, _)| name == "configuration.json");
    check_error(&open_files(&files).unwrap_err(), ErrorKind::Checkpoint, &["no model in it"]);
}

#[test]
fn configurations_that_lie_are_refused() {
    let changed = |fixture: &str, change: &dyn Fn(&mut Value)| {
        let mut files = files_of(fixture);
        let file = files.iter_mut().find(|(name, _)| name == "configuration.json").unwrap();
        let mut value: Value = serde_json::from_slice(&file.1).unwrap();
        change(&mut value);
        file.1 = value.to_string().into_bytes();
        open_files(&files).unwrap_err()
    };
    let checkpoint = ErrorKind::Checkpoint;
    let error = changed("nf_lstm", &|v| v["nf_format"] = json!("1"));
    check_error(&error, ErrorKind::Unsupported, &["configuration.json", "`nf_format` is `1`"]);
    let error = changed("nf_lstm", &|v| v["configuration"]["freq"] = json!("fortnight"));
    check_error(&error, ErrorKind::Usage, &["configuration.json", "`freq`", "fortnight"]);
    let error = changed("nf_lstm", &|v| v["configuration"]["freq"] = json!([1]));
    check_error(&error, checkpoint, &["`freq` is a list"]);
    let error = changed("nf_lstm", &|v| v["configuration"] = json!(3));
    check_error(&error, checkpoint, &["`configuration` is 3"]);
    let error = changed("nf_lstm", &|v| v["configuration"]["id_col"] = json!(3));
    check_error(&error, checkpoint, &["`id_col` is 3"]);
    let scaler = "nf_local_standard";
    let error = changed(scaler, &|v| v["configuration"]["local_scaler_type"] = json!("cube"));
    check_error(&error, ErrorKind::Config, &["`cube`"]);
    let key = "__hparams__.scalers_.y.stats_";
    let error = changed(scaler, &|v| {
        v["configuration"]["scalers_"]["y"]["stats_"]["key"] = json!("elsewhere");
    });
    check_error(&error, checkpoint, &["tensor `elsewhere` is missing"]);
    let mut files = files_of(scaler);
    let sidecar = files.iter_mut().find(|(name, _)| name == "configuration.safetensors").unwrap();
    let mut parts = Parts::of(&sidecar.1);
    let elements: u64 = parts.header[key]["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .product();
    parts.header[key]["shape"] = json!([elements]);
    sidecar.1 = parts.file();
    let error = open_files(&files).unwrap_err();
    check_error(&error, checkpoint, &["statistics of `y`", "two numbers a series"]);
    let error = changed("nf_conformal_error", &|v| {
        v["configuration"]["_cs_df"]["columns"][0][1]["data"]["values"] = json!(["a"]);
    });
    check_error(&error, checkpoint, &["column `LSTM` of `_cs_df` has 36 rows, expected 1"]);
    let mut files = files_of("nf_lstm");
    let file = files.iter_mut().find(|(name, _)| name == "configuration.json").unwrap();
    file.1 = b"{\"nf_format\": \"2\"".to_vec();
    check_error(&open_files(&files).unwrap_err(), checkpoint, &["configuration.json", "not JSON"]);
    let file = files.iter_mut().find(|(name, _)| name == "configuration.json").unwrap();
    file.1 = vec![0xff, 0xfe];
    check_error(&open_files(&files).unwrap_err(), checkpoint, &["configuration.json", "UTF-8"]);
}

/// A folder for files of one test, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("nf-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_native_file_holds_the_network_that_was_saved() {
    let scratch = Scratch::new("native");
    for folder in ["nf_lstm", "nf_recurrent", "nf_patchtst", "nf_nhits", "nf_exog", "nf_scalers"] {
        let mut saved = open_files(&files_of(folder)).unwrap();
        saved.training.insert("steps".into(), "3000".into());
        for (i, network) in saved.models.iter().enumerate() {
            let path = scratch.0.join(format!("{i}.safetensors"));
            saved.save(i, &path).unwrap();
            let read = Checkpoint::open(&path).unwrap();
            assert_eq!(read.format, Format::Native);
            assert_eq!(read.training, saved.training);
            assert_eq!(read.frequency, saved.frequency);
            let [found] = &read.models[..] else { panic!("{} networks", read.models.len()) };
            assert_eq!(found.alias, network.alias);
            assert_eq!(found.outputs, network.outputs);
            assert_eq!(found.feedback, network.feedback);
            assert_eq!(found.exogenous, network.exogenous);
            assert_eq!(format!("{:?}", found.plan), format!("{:?}", network.plan));
            for weight in &network.plan.weights {
                let (a, b) =
                    (found.weights.weight(&weight.name), network.weights.weight(&weight.name));
                assert_eq!(a.unwrap().bytes, b.unwrap().bytes, "{}", weight.name);
            }
            // The same file again, byte for byte.
            let again = scratch.0.join("again.safetensors");
            read.save(0, &again).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
            assert_eq!(read.hash, Checkpoint::open(&again).unwrap().hash);
        }
    }
    let left: Vec<_> = std::fs::read_dir(&scratch.0).unwrap().collect();
    assert!(left.iter().all(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "safetensors")
    }));
}

#[test]
fn native_files_are_checked_like_others() {
    let scratch = Scratch::new("native-bad");
    let path = scratch.0.join("network.safetensors");
    let saved = Checkpoint::open(fixture("nf_lstm/checkpoint")).unwrap();
    saved.save(0, &path).unwrap();
    let good = Parts::of(&std::fs::read(&path).unwrap());
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut header = good.header.clone();
        change(&mut header);
        with_header(&header.to_string(), &good.data)
    };
    let metadata = |key: &'static str, from: &'static str, to: &'static str| {
        changed(&move |header| {
            let text = &mut header["__metadata__"][key];
            let replaced = text.as_str().unwrap().replace(from, to);
            assert_ne!(replaced, text.as_str().unwrap());
            *text = json!(replaced);
        })
    };
    let checkpoint = ErrorKind::Checkpoint;
    let version = metadata("neural_forecast.format_version", "1", "2");
    refused(&version, ErrorKind::Unsupported, &["format_version` is `2`, expected `1`"]);
    let network = "neural_forecast.network";
    refused(&metadata(network, "\"lstm\"", "\"lost\""), checkpoint, &[network, "lost"]);
    refused(&metadata(network, "\"alias\"", "\"name\""), checkpoint, &[network, "name"]);
    refused(
        &metadata(network, "\"historic\":[]", "\"historic\":[\"x\"]"),
        checkpoint,
        &["1 historic"],
    );
    refused(
        &metadata(network, "\"context\":", "\"context\":1000000000"),
        checkpoint,
        &["input_size"],
    );
    let series = "neural_forecast.series";
    refused(&metadata(series, "\"h\"", "\"never\""), ErrorKind::Usage, &["never"]);
    let missing = changed(&|header| {
        header["__metadata__"].as_object_mut().unwrap().remove("neural_forecast.series");
    });
    refused(&missing, checkpoint, &["metadata `neural_forecast.series` is missing"]);
    let error = saved.save(99, &path).unwrap_err();
    check_error(&error, ErrorKind::Usage, &["network 99 of"]);
    let scored = Checkpoint::open(fixture("nf_conformal_error/checkpoint")).unwrap();
    let error = scored.save(0, &path).unwrap_err();
    check_error(&error, ErrorKind::Unsupported, &["conformal scores"]);
    let scaled = Checkpoint::open(fixture("nf_exog_local/checkpoint")).unwrap();
    scaled.save(0, &path).unwrap();
    let read = Checkpoint::open(&path).unwrap();
    let kinds = [read.local_scaler.unwrap().kind, read.static_scaler.unwrap().kind];
    assert_eq!(kinds, ["standard", "minmax"]);
}

#[test]
fn the_hash_follows_the_weights() {
    let good = bytes_of(LSTM);
    let hash = read_one(&good).unwrap().hash;
    assert_eq!(hash.len(), 16);
    assert_eq!(hash, read_one(&good).unwrap().hash);
    let mut changed = good;
    let last = changed.len() - 1;
    changed[last] ^= 1;
    assert_ne!(hash, read_one(&changed).unwrap().hash);
}

/// A small generator for mutations: xorshift, seeded.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), self.below(256) as u8),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 if at < bytes.len() => bytes[at] = b"0123456789-.eE[]{}\",:ntf"[self.below(24)],
                _ if at < bytes.len() => bytes[at] = self.below(256) as u8,
                _ => {}
            }
        }
    }
}

#[test]
fn no_bytes_make_a_reader_panic() {
    let mut random = Random(0x5eed);
    let mut files = vec![bytes_of(LSTM)];
    for name in ["nf_nhits", "nf_patchtst"] {
        let mut found = files_of(name);
        found.retain(|(name, _)| name != "configuration.json");
        files.push(found.swap_remove(0).1);
    }
    let configuration = bytes_of("nf_conformal_error/checkpoint/configuration.json");
    for file in &files {
        let hyper = Parts::of(file).header["__metadata__"]["hyper_parameters"].clone();
        let hyper = hyper.as_str().unwrap().as_bytes().to_vec();
        let header_end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        for _ in 0..400 {
            // Mutations of the header keep the data in place.
            let mut header = file[..header_end].to_vec();
            random.mutate(&mut header);
            let broken = [header.as_slice(), &file[header_end..]].concat();
            checkpoint::fuzz_safetensors(&broken);
            checkpoint::fuzz_network(&broken);
            let mut broken = hyper.clone();
            random.mutate(&mut broken);
            checkpoint::fuzz_hyper_parameters(&broken);
            let mut broken = configuration.clone();
            random.mutate(&mut broken);
            checkpoint::fuzz_configuration(&broken);
        }
    }
}
