//! Plans of the families whose loaders come later, run on the reference ops against the frameworks'
//! own outputs.
//!
//! Not the models that checkpoints load today, which have tests of their own. Fixtures lie in
//! `tests/fixtures/modules`; more of them are read from `../shared/fixtures/modules` where that
//! folder is beside the checkout.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neural_forecast::models::{
    Nonlinearity, WindowConfig, WindowScaler, chronos_bolt, chronos2, deepar, hf_patchtst,
    itransformer, tft, timesfm, tirex,
};
use neural_forecast_runtime::device::{LoadOptions, WeightSource, WeightType, WeightView};
use neural_forecast_runtime::plan::{Bucket, Channel, Context, EntryKind, Plan};
use neural_forecast_runtime::prepare;
use neural_forecast_runtime::reference::{Tensor, run_entry, zero_states};
use serde_json::Value;

/// One file: a network's weights (`w.…`), its inputs (`in.…`) and outputs (`out.…`).
struct Fixture {
    name: String,
    config: Value,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Fixture {
    fn read(path: &Path) -> Fixture {
        let file = std::fs::read(path).unwrap();
        let (size, rest) = file.split_at(8);
        let size = u64::from_le_bytes(size.try_into().unwrap()) as usize;
        let (header, data) = rest.split_at(size);
        let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
        let config = header["__metadata__"]["config"].as_str().unwrap();
        let tensors = header.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, h)| {
            let numbers = |key: &str| -> Vec<usize> {
                let list = h[key].as_array().unwrap().iter();
                list.map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let range = numbers("data_offsets");
            let stored = Stored {
                dtype: h["dtype"].as_str().unwrap().to_owned(),
                shape: numbers("shape"),
                bytes: data[range[0]..range[1]].to_vec(),
            };
            (name.clone(), stored)
        });
        Fixture {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            config: serde_json::from_str(config).unwrap(),
            tensors: tensors.collect(),
        }
    }

    fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor(&self, name: &str) -> Tensor {
        let stored = self.tensors.get(name).unwrap_or_else(|| panic!("{} has {name}", self.name));
        let data: Vec<f64> = match stored.dtype.as_str() {
            "F32" => {
                let chunks = stored.bytes.as_chunks::<4>().0.iter();
                chunks.map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            "I64" => {
                let chunks = stored.bytes.as_chunks::<8>().0.iter();
                chunks.map(|b| i64::from_le_bytes(*b) as f64).collect()
            }
            other => panic!("{name} is {other}"),
        };
        Tensor::new(stored.shape.clone(), data)
    }

    fn config<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.config.clone()).unwrap()
    }
}

impl WeightSource for Fixture {
    fn weight(&self, name: &str) -> Option<WeightView<'_>> {
        let stored = self.tensors.get(&format!("w.{name}"))?;
        let (shape, bytes) = (stored.shape.as_slice(), stored.bytes.as_slice());
        (stored.dtype == "F32").then_some(WeightView { dtype: WeightType::F32, shape, bytes })
    }
}

/// All fixtures whose names begin so: the committed ones, which must exist, and the shared ones.
fn fixtures(prefix: &str) -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let committed = found(&root.join("tests/fixtures/modules"), prefix);
    assert!(!committed.is_empty(), "no committed fixture `{prefix}…`");
    let shared = found(&root.join("../shared/fixtures/modules"), prefix);
    if shared.is_empty() {
        println!("skipped: no shared fixture `{prefix}…`");
    }
    committed.iter().chain(&shared).map(|path| Fixture::read(path)).collect()
}

fn found(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(prefix) && name.ends_with(".safetensors")
        })
        .collect();
    paths.sort();
    paths
}

/// Outputs of one entry by name, from fresh states; whatever a device makes of the plan, stacks
/// lowered to layers and steps fused or not, computes the same.
fn run(
    plan: &Plan,
    entry: EntryKind,
    weights: &dyn WeightSource,
    inputs: &[(&str, Tensor)],
    length: usize,
) -> BTreeMap<String, Tensor> {
    let bucket = Bucket { batch: inputs[0].1.shape[0], length };
    let outputs = |plan: &Plan| {
        let mut states = zero_states(plan, bucket.batch);
        let outputs = run_entry(plan, entry, bucket, weights, inputs, &mut states).unwrap();
        outputs.into_iter().collect::<BTreeMap<String, Tensor>>()
    };
    let wanted = outputs(plan);
    for (fuse, lower) in [(true, false), (false, true), (true, true)] {
        let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
        let (prepared, _) = prepare(plan, &options, &|_| true).unwrap();
        for (name, output) in outputs(&prepared) {
            let off = distance(&output, &wanted[&name]);
            let how = format!("{} {name}, fused {fuse}, lowered {lower}", plan.name);
            assert!(off <= 1e-9, "{how}: off by {off:.3e}");
        }
    }
    wanted
}

/// Largest |difference| / max(1, |wanted|); infinite where either is no number.
fn distance(found: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(found.shape, wanted.shape);
    let pairs = found.data.iter().zip(&wanted.data);
    let distances = pairs.map(|(f, w)| (f - w).abs() / w.abs().max(1.0));
    distances.fold(0.0, |worst, off| if off.is_nan() { f64::INFINITY } else { off.max(worst) })
}

fn assert_close(name: &str, found: &Tensor, wanted: &Tensor, tolerance: f64) {
    let off = distance(found, wanted);
    println!("{name}: {off:.2e}");
    assert!(off <= tolerance, "{name}: off by {off:.3e}, allowed {tolerance:.0e}");
}

/// The bar of parity: the frameworks compute in f32, the reference in f64.
const PARITY: f64 = 1e-5;

/// Chronos-Bolt's bars. Two of its fixtures are ill-conditioned: the framework itself, run entirely
/// in f64, is 2.63e-5 and 1.643e-4 away from its own f32 outputs, which is where the plan is.
fn bolt_parity(fixture: &Fixture) -> f64 {
    match fixture.name.as_str() {
        "chronos_bolt" => 5e-5,
        "chronos_bolt_truncated" => 2e-4,
        _ => PARITY,
    }
}

fn ones(like: &Tensor) -> Tensor {
    Tensor::from_fn(like.shape.clone(), |_| 1.0)
}

/// `[B, A, C]` to `[B, C, A]`.
fn swapped(x: &Tensor) -> Tensor {
    let [b, a, c] = x.shape[..] else { panic!("rank of {:?}", x.shape) };
    Tensor::from_fn([b, c, a], |i| x.at(&[i[0], i[2], i[1]]))
}

/// Rows `0 .. rows` of a tensor.
fn first_rows(x: &Tensor, rows: usize) -> Tensor {
    let mut shape = x.shape.clone();
    shape[0] = rows;
    Tensor::from_fn(shape, |i| x.at(i))
}

/// `[B, L]` with NaN before it up to `length`, or its last `length` steps.
fn to_length(x: &Tensor, length: usize) -> Tensor {
    let [rows, have] = x.shape[..] else { panic!("rank of {:?}", x.shape) };
    Tensor::from_fn([rows, length], |i| {
        let t = (i[1] + have).checked_sub(length);
        t.map_or(f64::NAN, |t| x.at(&[i[0], t]))
    })
}

#[test]
fn hf_patchtst_matches_transformers() {
    for fixture in fixtures("hf_patchtst") {
        let config: hf_patchtst::Config = fixture.config();
        let plan = hf_patchtst::plan(&config).unwrap();
        let y = fixture.tensor("in.past_values");
        let mask = if fixture.holds("in.past_observed_mask") {
            fixture.tensor("in.past_observed_mask")
        } else {
            ones(&y)
        };
        let inputs = [("y", y), ("mask", mask)];
        let found = run(&plan, EntryKind::Full, &fixture, &inputs, config.context_length);
        let name = &fixture.name;
        if fixture.holds("out.y") {
            assert_close(name, &found["forecast"], &fixture.tensor("out.y"), PARITY);
        } else {
            let (loc, scale) = (fixture.tensor("out.loc"), fixture.tensor("out.scale"));
            let outputs: Vec<&String> = found.keys().collect();
            assert_eq!(outputs.len(), 1 + usize::from(fixture.holds("out.param2")) + 1);
            // The framework's parameters are of the scaled series; an affine map unscales them.
            let order: &[&str] = if fixture.holds("out.param2") {
                &["df", "loc", "scale"]
            } else {
                &["loc", "scale"]
            };
            for (i, &parameter) in order.iter().enumerate() {
                let raw = fixture.tensor(&format!("out.param{i}"));
                let wanted = Tensor::from_fn(raw.shape.clone(), |at| {
                    let pair = |x: &Tensor| x.at(&[at[0], 0, at[2]]);
                    match parameter {
                        "df" => raw.at(at),
                        "loc" => raw.at(at) * pair(&scale) + pair(&loc),
                        _ => raw.at(at) * pair(&scale),
                    }
                });
                assert_close(&format!("{name} {parameter}"), &found[parameter], &wanted, PARITY);
            }
        }
        // Any batch gives a row the same result.
        for rows in 1..inputs[0].1.shape[0] {
            let fewer =
                [("y", first_rows(&inputs[0].1, rows)), ("mask", first_rows(&inputs[1].1, rows))];
            let fewer = run(&plan, EntryKind::Full, &fixture, &fewer, config.context_length);
            for (output, tensor) in &fewer {
                assert_eq!(*tensor, first_rows(&found[output], rows), "{name} {output}");
            }
        }
    }
}

#[test]
fn hf_patchtst_refuses_by_name() {
    use hf_patchtst::Config;
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        hf_patchtst::plan(&config).unwrap_err().to_string()
    };
    let error = refused(&|c| c.share_projection = false);
    assert_eq!(error, "hf_patchtst: `share_projection` is `false`, expected true");
    let error = refused(&|c| {
        (c.loss, c.distribution_output) = (Some("nll".into()), "negative_binomial".into())
    });
    assert!(error.contains("`negative_binomial`, expected `student_t` or `normal`"), "{error}");
    let error = refused(&|c| c.num_attention_heads = 0);
    assert!(error.contains("does not divide into 0 heads"), "{error}");
    let error = refused(&|c| c.patch_length = 33);
    assert!(error.contains("`patch_length` is 33, expected 1 to 32"), "{error}");
    let error = refused(&|c| c.d_model = usize::MAX);
    assert!(error.contains("`d_model` is"), "{error}");
}

#[test]
fn itransformer_matches_neuralforecast() {
    for fixture in fixtures("nf_itransformer") {
        let config: itransformer::Config = fixture.config();
        let plan = itransformer::plan(&config).unwrap();
        let weights = itransformer::rearrange(&config, &fixture).unwrap();
        let inputs = [("y", fixture.tensor("in.insample_y"))];
        let found = run(&plan, EntryKind::Full, &weights, &inputs, config.input_size);
        assert_close(&fixture.name, &found["forecast"], &fixture.tensor("out.y"), PARITY);
    }
}

#[test]
fn itransformer_takes_future_columns() {
    let columns = vec!["a".to_owned(), "b".to_owned()];
    let config = itransformer::Config {
        h: 4,
        input_size: 6,
        n_series: 3,
        hidden_size: 4,
        n_heads: 2,
        d_ff: 5,
        outputs: 2,
        futr_exog_list: columns,
        ..itransformer::Config::default()
    };
    let plan = itransformer::plan(&config).unwrap();
    let entry = plan.entry(EntryKind::Full).unwrap();
    let shape = format!("{:?}", entry.value(entry.input("futr_exog").unwrap().value).shape);
    assert_eq!(shape, "[B, 2, 10, 3]");
    let shape = format!("{:?}", entry.value(entry.output("forecast").unwrap().value).shape);
    assert_eq!(shape, "[B, 4, 6]");
}

fn deepar_config(fixture: &Fixture) -> deepar::DeepArConfig {
    let number = |key: &str| fixture.config[key].as_u64().map_or(0, |n| n as usize);
    deepar::DeepArConfig {
        window: WindowConfig {
            horizon: number("h"),
            context: number("input_size"),
            outputs: number("outputs"),
            ..WindowConfig::default()
        },
        layers: number("lstm_n_layers"),
        hidden: number("lstm_hidden_size"),
        decoder_layers: number("decoder_hidden_layers"),
        decoder_hidden: number("decoder_hidden_size"),
        activation: Nonlinearity::ReLU,
        distribution: deepar::Distribution::StudentT,
    }
}

/// The framework's forward gives what it makes of each of the last steps of a window: `prefill`
/// over the steps before and `step` over these give the same.
#[test]
fn deepar_matches_neuralforecast() {
    for fixture in fixtures("nf_deepar") {
        let config = deepar_config(&fixture);
        let y = fixture.tensor("in.insample_y");
        let raw = fixture.tensor("out.y");
        // The framework's scale_decouple at location 0 and scale 1.
        let softplus = |x: f64| x.exp().ln_1p();
        let wanted = Tensor::from_fn(raw.shape.clone(), |at| match at[2] {
            0 => 3.0 + softplus(raw.at(at)),
            1 => raw.at(at),
            _ => 0.1 + softplus(raw.at(at)),
        });
        let (rows, horizon) = (y.shape[0], config.window.horizon);
        let context = config.window.context + 1 - horizon;
        let window = WindowConfig { context, ..config.window.clone() };
        let start = deepar::plan(&deepar::DeepArConfig { window, ..config.clone() }).unwrap();
        let mut states = zero_states(&start, rows);
        let mut input = Tensor::from_fn([rows, context, 1], |at| y.at(at));
        for step in 0..horizon {
            let entry = if step == 0 { EntryKind::Prefill } else { EntryKind::Step };
            let outputs = continued(&start, entry, &fixture, &[("y", input)], &mut states);
            let at = Tensor::from_fn([rows, 1, 3], |i| wanted.at(&[i[0], step, i[2]]));
            assert_close(&format!("{} {step}", fixture.name), &outputs["forecast"], &at, PARITY);
            let next = (context + step).min(y.shape[1] - 1);
            input = Tensor::from_fn([rows, 1, 1], |i| y.at(&[i[0], next, 0]));
        }
        deepar_unrolls(&fixture, &config, &y);
    }
}

/// `full` is `prefill` and then `step` on every mean.
fn deepar_unrolls(fixture: &Fixture, config: &deepar::DeepArConfig, y: &Tensor) {
    let plan = deepar::plan(config).unwrap();
    let inputs = [("y", y.clone())];
    let full = run(&plan, EntryKind::Full, fixture, &inputs, config.window.context);
    let full = &full["forecast"];
    let mut states = zero_states(&plan, y.shape[0]);
    let mut input = y.clone();
    for step in 0..config.window.horizon {
        let entry = if step == 0 { EntryKind::Prefill } else { EntryKind::Step };
        let outputs = continued(&plan, entry, fixture, &[("y", input)], &mut states);
        let forecast = &outputs["forecast"];
        let wanted = Tensor::from_fn(forecast.shape.clone(), |i| full.at(&[i[0], step, i[2]]));
        assert_close(&format!("{} full {step}", fixture.name), forecast, &wanted, 1e-12);
        input = outputs["feedback"].clone();
    }
}

#[test]
fn deepar_has_all_its_shapes() {
    for scaler in [WindowScaler::Identity, WindowScaler::Robust, WindowScaler::Invariant] {
        let window = WindowConfig {
            horizon: 4,
            context: 9,
            scaler,
            historic: 2,
            future: 3,
            statics: 1,
            outputs: 2,
            ..WindowConfig::default()
        };
        let config = deepar::DeepArConfig {
            window,
            layers: 3,
            hidden: 6,
            decoder_layers: 2,
            decoder_hidden: 5,
            activation: Nonlinearity::Tanh,
            distribution: deepar::Distribution::Normal,
        };
        let plan = deepar::plan(&config).unwrap();
        for (entry, future, forecast) in [
            (EntryKind::Full, "[B, 13, 3]", "[B, 4, 2]"),
            (EntryKind::Prefill, "[B, 10, 3]", "[B, 1, 2]"),
            (EntryKind::Step, "[B, 1, 3]", "[B, 1, 2]"),
        ] {
            let entry = plan.entry(entry).unwrap();
            let shape = |value| format!("{:?}", entry.value(value).shape);
            assert_eq!(shape(entry.input("futr_exog").unwrap().value), future);
            assert_eq!(shape(entry.output("forecast").unwrap().value), forecast);
        }
        let revin = WindowConfig { scaler: WindowScaler::Revin, ..config.window.clone() };
        let revin = deepar::plan(&deepar::DeepArConfig { window: revin, ..config });
        assert!(revin.unwrap_err().to_string().contains("`scaler_type` is `revin`"));
    }
}

/// Outputs of one entry by name, from and into states.
fn continued(
    plan: &Plan,
    entry: EntryKind,
    weights: &dyn WeightSource,
    inputs: &[(&str, Tensor)],
    states: &mut Vec<Tensor>,
) -> BTreeMap<String, Tensor> {
    let batch = inputs[0].1.shape[0];
    let length = match plan.context {
        Context::Fixed(length) => length,
        Context::Free { max, .. } => max,
    };
    let outputs = run_entry(plan, entry, Bucket { batch, length }, weights, inputs, states);
    outputs.unwrap().into_iter().collect()
}

fn bolt_config(fixture: &Fixture) -> chronos_bolt::Config {
    let mut config = fixture.config["t5"].clone();
    config["chronos_config"] = fixture.config["chronos_config"].clone();
    serde_json::from_value(config).unwrap()
}

#[test]
fn chronos_bolt_matches_chronos() {
    for fixture in fixtures("chronos_bolt") {
        let config = bolt_config(&fixture);
        let plan = chronos_bolt::plan(&config).unwrap();
        let longest = config.chronos_config.context_length;
        let context = fixture.tensor("in.context");
        let wanted = swapped(&fixture.tensor("out.q"));
        // Lengths that end inside a patch, fill it, and are longer than the series.
        let length = context.shape[1].min(longest);
        let patch = config.chronos_config.input_patch_size;
        for length in [length, length.next_multiple_of(patch), longest] {
            let inputs = [("y", to_length(&context, length))];
            let found = run(&plan, EntryKind::Full, &fixture, &inputs, length);
            let name = format!("{} at {length}", fixture.name);
            assert_close(&name, &found["forecast"], &wanted, bolt_parity(&fixture));
        }
    }
}

/// The pipeline's roll-out, as the forecaster does it: paths of quantiles, and their quantiles.
#[test]
fn chronos_bolt_rolls_out_as_the_pipeline() {
    for fixture in fixtures("chronos_bolt").iter().filter(|f| f.holds("out.q_long")) {
        let config = bolt_config(fixture);
        let plan = chronos_bolt::plan(&config).unwrap();
        let f = &config.chronos_config;
        let (levels, horizon) = (f.quantiles.len(), f.prediction_length);
        let context = fixture.tensor("in.context");
        let wanted = swapped(&fixture.tensor("out.q_long"));
        let [rows, steps, _] = wanted.shape[..] else { panic!("rank") };
        let forecast = |y: Tensor| {
            let length = y.shape[1].min(f.context_length);
            let inputs = [("y", to_length(&y, length))];
            run(&plan, EntryKind::Full, fixture, &inputs, length)["forecast"].clone()
        };
        let mut found = vec![forecast(context.clone())];
        // `[B · Q, L]`: the context once for each quantile.
        let mut paths = Tensor::from_fn([rows * levels, context.shape[1]], |i| {
            context.at(&[i[0] / levels, i[1]])
        });
        while found.len() * horizon < steps {
            let last = found.last().unwrap();
            let known = paths.shape[1];
            paths = Tensor::from_fn([rows * levels, known + horizon], |i| {
                if i[1] < known {
                    paths.at(i)
                } else {
                    last.at(&[i[0] / levels, i[1] - known, i[0] % levels])
                }
            });
            let next = forecast(paths.clone());
            found.push(Tensor::from_fn([rows, horizon, levels], |i| {
                let mut all: Vec<f64> = (0..levels * levels)
                    .map(|s| next.at(&[i[0] * levels + s / levels, i[1], s % levels]))
                    .collect();
                all.sort_by(f64::total_cmp);
                let place = f.quantiles[i[2]] * (all.len() - 1) as f64;
                let (below, part) = (place.floor() as usize, place.fract());
                all[below] + part * (all[(below + 1).min(all.len() - 1)] - all[below])
            }));
        }
        let joined = Tensor::from_fn(wanted.shape.clone(), |i| {
            found[i[1] / horizon].at(&[i[0], i[1] % horizon, i[2]])
        });
        assert_close(&format!("{} roll-out", fixture.name), &joined, &wanted, bolt_parity(fixture));
    }
}

fn chronos2_config(fixture: &Fixture) -> chronos2::Config {
    // The older fixture names no widths; they follow from its weights, the heads from its maker.
    let mut config = fixture.config.get("core").cloned().unwrap_or_else(|| {
        serde_json::json!({"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4})
    });
    config["chronos_config"] = fixture.config.clone();
    serde_json::from_value(config).unwrap()
}

#[test]
fn chronos2_matches_chronos() {
    for fixture in fixtures("chronos2") {
        let config = chronos2_config(&fixture);
        let context = fixture.tensor("in.context");
        let groups = fixture.tensor("in.group_ids");
        let wanted = swapped(&fixture.tensor("out.q"));
        let horizon = wanted.shape[1];
        let future = fixture.holds("in.future_covariates").then(|| {
            let known = fixture.tensor("in.future_covariates");
            Tensor::from_fn([known.shape[0], horizon], |i| {
                if i[1] < known.shape[1] { known.at(i) } else { f64::NAN }
            })
        });
        let mut alone = groups.data.clone();
        alone.dedup();
        let alone = alone.len() == groups.data.len();
        let patch = config.chronos_config.input_patch_size;
        for grouped in [true, false] {
            // Where every series is its own group, the shortcut is the same function.
            if !grouped && !alone {
                continue;
            }
            let (output_patches, future) = (horizon / patch, future.as_ref());
            let shape = chronos2::Shape { output_patches, grouped, future: future.is_some() };
            let plan = chronos2::plan(&config, shape).unwrap();
            let length = context.shape[1];
            let longest = config.chronos_config.context_length;
            for length in [length, length.next_multiple_of(patch), longest] {
                let mut inputs = vec![("y", to_length(&context, length))];
                if grouped {
                    inputs.push(("groups", groups.clone()));
                }
                if let Some(future) = future {
                    inputs.push(("future", future.clone()));
                }
                let found = run(&plan, EntryKind::Full, &fixture, &inputs, length);
                let name = format!("{} at {length}, grouped {grouped}", fixture.name);
                assert_close(&name, &found["forecast"], &wanted, PARITY);
            }
        }
    }
}

fn tft_config(fixture: &Fixture) -> tft::TftConfig {
    let c = &fixture.config;
    let number = |key: &str, default| c[key].as_u64().map_or(default, |n| n as usize);
    let columns = |key: &str| c[key].as_array().map_or(0, Vec::len);
    tft::TftConfig {
        window: WindowConfig {
            horizon: number("h", 0),
            context: number("input_size", 0),
            scaler: WindowScaler::Identity,
            historic: columns("hist_exog_list"),
            future: columns("futr_exog_list"),
            statics: columns("stat_exog_list"),
            outputs: 1,
            ..WindowConfig::default()
        },
        hidden: number("hidden_size", 128),
        heads: number("n_head", 4),
        recurrence: serde_json::from_value(c.get("rnn_type").cloned().unwrap_or("lstm".into()))
            .unwrap(),
        layers: number("n_rnn_layers", 1),
        one_initial_state: false,
        activation: Nonlinearity::ELU,
    }
}

#[test]
fn tft_matches_neuralforecast() {
    for fixture in fixtures("nf_tft") {
        let config = tft_config(&fixture);
        let plan = tft::plan(&config, vec![Channel::Point]).unwrap();
        let weights = tft::rearrange(&config, &fixture).unwrap();
        let mut inputs = vec![("y", fixture.tensor("in.insample_y"))];
        for name in ["hist_exog", "futr_exog", "stat_exog"] {
            if fixture.holds(&format!("in.{name}")) {
                inputs.push((name, fixture.tensor(&format!("in.{name}"))));
            }
        }
        let found = run(&plan, EntryKind::Full, &weights, &inputs, config.window.context);
        assert_close(&fixture.name, &found["forecast"], &fixture.tensor("out.y"), PARITY);
    }
}

#[test]
fn tft_has_all_its_shapes() {
    for recurrence in [tft::Recurrence::Lstm, tft::Recurrence::Gru] {
        for (one_initial_state, statics, layers) in [(false, 3, 2), (true, 1, 3), (false, 0, 1)] {
            let window = WindowConfig {
                horizon: 5,
                context: 12,
                scaler: WindowScaler::Robust,
                historic: 2,
                future: 3,
                statics,
                outputs: 3,
                ..WindowConfig::default()
            };
            let activation = Nonlinearity::ReLU;
            let (hidden, heads) = (6, 3);
            let config = tft::TftConfig {
                window,
                hidden,
                heads,
                recurrence,
                layers,
                one_initial_state,
                activation,
            };
            let plan = tft::plan(&config, Vec::new()).unwrap();
            let entry = plan.entry(EntryKind::Full).unwrap();
            let shape = &entry.value(entry.output("forecast").unwrap().value).shape;
            assert_eq!(format!("{shape:?}"), "[B, 5, 3]");
            let contexts = plan.weights.iter().filter(|w| {
                w.name.starts_with("static_encoder.context_grns") && w.name.ends_with("lin_a.bias")
            });
            let each = if one_initial_state { 1 } else { layers };
            let states = if recurrence == tft::Recurrence::Lstm { 2 } else { 1 };
            assert_eq!(contexts.count(), if statics > 0 { 2 + states * each } else { 0 });
        }
    }
}

fn tirex_config(fixture: &Fixture) -> tirex::Config {
    let mut config = fixture.config.clone();
    if config.get("train_ctx_len").is_none() {
        config["train_ctx_len"] = 64.into();
    }
    serde_json::from_value(config).unwrap()
}

/// TiRex as the framework computes it, written down plainly: `round` is applied where it rounds to
/// bfloat16, which is to the gates' inputs, the recurrent kernel, its product and the states.
struct PlainTirex<'a> {
    fixture: &'a Fixture,
    config: &'a tirex::Config,
    round: fn(f64) -> f64,
}

impl PlainTirex<'_> {
    /// Quantiles `[n·P, Q]` of the `patches` patches after one context.
    fn forecast(&self, context: &[f64], patches: usize) -> Vec<Vec<f64>> {
        let (p, levels) = (self.config.input_patch_size, self.config.quantiles.len());
        let seen: Vec<f64> = context.iter().copied().filter(|x| !x.is_nan()).collect();
        let count = seen.len() as f64;
        let mean = seen.iter().sum::<f64>() / count;
        let square = seen.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
        let scale = if square == 0.0 { mean.abs() + 1e-5 } else { square.sqrt() };
        let mut tokens: Vec<Vec<f64>> = context
            .chunks(p)
            .map(|patch| {
                let known = patch.iter().map(|x| if x.is_nan() { 0.0 } else { (x - mean) / scale });
                known.chain(patch.iter().map(|x| f64::from(!x.is_nan()))).collect()
            })
            .collect();
        tokens.extend(std::iter::repeat_n(vec![0.0; 2 * p], patches - 1));
        let embed = |x: &Vec<f64>| self.residual_block("input_patch_embedding", x);
        let mut tokens: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        for i in 0..self.config.block_kwargs.num_blocks {
            self.block(&format!("blocks.{i}"), &mut tokens);
        }
        let last = &tokens[tokens.len() - patches..];
        let heads = last.iter().map(|x| {
            let x = rms(x, &self.weight("out_norm.weight").data);
            self.residual_block("output_patch_embedding", &x)
        });
        let rows = heads.flat_map(|y| {
            let step = move |t: usize| (0..levels).map(|q| y[q * p + t] * scale + mean).collect();
            (0..p).map(step).collect::<Vec<Vec<f64>>>()
        });
        rows.collect()
    }

    fn block(&self, name: &str, tokens: &mut [Vec<f64>]) {
        let round = self.round;
        let weight = |part: &str| self.weight(&format!("{name}.{part}"));
        let heads = self.config.block_kwargs.num_heads;
        let (d, head) = (tokens[0].len(), tokens[0].len() / heads);
        let gates = ["fgate", "igate", "zgate", "ogate"]
            .map(|gate| weight(&format!("slstm_layer.{gate}.weight")));
        let kernel = weight("slstm_layer.slstm_cell._recurrent_kernel_");
        let bias = weight("slstm_layer.slstm_cell._bias_").data;
        let mut state = [vec![0.0; d], vec![0.0; d], vec![0.0; d], vec![0.0; d]];
        for x in tokens {
            let inner = rms(x, &weight("norm_slstm.weight").data);
            let raw = |gate: usize, unit: usize| {
                let (h, o) = (unit / head, unit % head);
                let product = |k: usize| gates[gate].at(&[h, o, k]) * inner[h * head + k];
                let input = round((0..head).map(product).sum());
                let back =
                    |k: usize| round(kernel.at(&[h, k, gate * head + o])) * state[0][h * head + k];
                let recurrent = round((0..head).map(back).sum());
                input + recurrent + bias[(h * 4 + gate) * head + o]
            };
            let sums: Vec<[f64; 4]> =
                (0..d).map(|unit| [0, 1, 2, 3].map(|gate| raw(gate, unit))).collect();
            for (unit, [i, f, z, o]) in sums.into_iter().enumerate() {
                let decayed = state[3][unit] - (-f.min(15.0)).exp().ln_1p();
                let m = if state[2][unit] == 0.0 { i } else { i.max(decayed) };
                let (ig, fg) = ((i - m).exp().min(1.0), (decayed - m).exp().min(1.0));
                let c = fg * state[1][unit] + ig * z.tanh();
                let n = fg * state[2][unit] + ig;
                let hidden = c / n / (1.0 + (-o).exp());
                for (state, new) in state.iter_mut().zip([hidden, c, n, m]) {
                    state[unit] = round(new);
                }
            }
            let scale = weight("slstm_layer.group_norm.weight").data;
            for (h, group) in state[0].chunks(head).enumerate() {
                let mean = group.iter().sum::<f64>() / head as f64;
                let var = group.iter().map(|y| (y - mean) * (y - mean)).sum::<f64>() / head as f64;
                for (k, y) in group.iter().enumerate() {
                    let unit = h * head + k;
                    x[unit] += (y - mean) / (var + 1e-5).sqrt() * (1.0 + scale[unit]);
                }
            }
            let inner = rms(x, &weight("norm_ffn.weight").data);
            let gate = affine(&weight("ffn.proj_up_gate.weight"), &inner);
            let up = affine(&weight("ffn.proj_up.weight"), &inner);
            let silu = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
            let down = affine(&weight("ffn.proj_down.weight"), &silu.collect::<Vec<f64>>());
            x.iter_mut().zip(down).for_each(|(x, y)| *x += y);
        }
    }

    fn residual_block(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let layer = |part: &str, x: &[f64]| {
            let y = affine(&self.weight(&format!("{name}.{part}_layer.weight")), x);
            let bias = self.weight(&format!("{name}.{part}_layer.bias")).data;
            y.iter().zip(bias).map(|(y, b)| y + b).collect::<Vec<f64>>()
        };
        let hidden: Vec<f64> = layer("hidden", x).iter().map(|x| x.max(0.0)).collect();
        layer("output", &hidden).iter().zip(layer("residual", x)).map(|(a, b)| a + b).collect()
    }

    fn weight(&self, name: &str) -> Tensor {
        self.fixture.tensor(&format!("w.{name}"))
    }
}

fn affine(weight: &Tensor, x: &[f64]) -> Vec<f64> {
    weight.rows().map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn rms(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + 1e-6).sqrt() * w).collect()
}

fn exact(x: f64) -> f64 {
    x
}

/// To the nearest bfloat16, ties to even, as finite f32 values round.
fn bfloat16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    let rounded = bits + 0x7fff + ((bits >> 16) & 1);
    f64::from(f32::from_bits(rounded & 0xffff_0000))
}

fn config_steps(fixture: &Fixture) -> usize {
    fixture.config["steps"].as_u64().unwrap() as usize
}

/// The framework's default roll-out, as the forecaster does it: one patch at a time, each from a
/// new window that ends in the patches of unknowns already forecast.
fn default_roll_out(fixture: &Fixture, config: &tirex::Config, steps: usize) -> Tensor {
    let plain = PlainTirex { fixture, config, round: bfloat16 };
    let p = config.input_patch_size;
    let mut context = fixture.tensor("in.context");
    let mut rows = vec![Vec::new(); context.shape[0]];
    while rows[0].len() < steps {
        let window = to_length(&context, config.train_ctx_len);
        for (row, window) in rows.iter_mut().zip(window.rows()) {
            row.extend(plain.forecast(window, 1));
        }
        let known = context.shape[1];
        context = Tensor::from_fn([context.shape[0], known + p], |i| {
            if i[1] < known { context.at(i) } else { f64::NAN }
        });
    }
    Tensor::from_fn([rows.len(), steps, config.quantiles.len()], |i| rows[i[0]][i[1]][i[2]])
}

/// The plan against the framework's mathematics in f64, and those against the framework's outputs
/// with its rounding to bfloat16. Directly, plan and framework differ by that rounding.
#[test]
fn tirex_matches_tirex() {
    for fixture in fixtures("tirex") {
        let name = &fixture.name;
        let config = tirex_config(&fixture);
        let (length, p) = (config.train_ctx_len, config.input_patch_size);
        let weights = tirex::rearrange(&config, &fixture).unwrap();
        let context = to_length(&fixture.tensor("in.context"), length);
        let accelerated = fixture.holds("out.q_accelerated");
        let wanted = if accelerated { "out.q_accelerated" } else { "out.q" };
        let wanted = swapped(&fixture.tensor(wanted));
        let patches = if accelerated { wanted.shape[1].div_ceil(p) } else { 1 };
        let steps = if accelerated { wanted.shape[1] } else { p };
        let plain = |round| {
            let plain = PlainTirex { fixture: &fixture, config: &config, round };
            let rows: Vec<_> = context.rows().map(|row| plain.forecast(row, patches)).collect();
            Tensor::from_fn([rows.len(), steps, wanted.shape[2]], |i| rows[i[0]][i[1]][i[2]])
        };
        let plan = tirex::plan(&config, patches).unwrap();
        let inputs = [("y", context.clone())];
        let full = run(&plan, EntryKind::Full, &weights, &inputs, length);
        let found =
            Tensor::from_fn([context.shape[0], steps, wanted.shape[2]], |i| full["forecast"].at(i));
        let wanted = Tensor::from_fn(found.shape.clone(), |i| wanted.at(i));
        assert_close(&format!("{name} plan, plain"), &found, &plain(exact), 1e-9);
        assert_close(&format!("{name} plain in bf16"), &plain(bfloat16), &wanted, PARITY);
        assert_close(&format!("{name} plan"), &found, &wanted, 5e-2);
        if accelerated {
            let steps = config_steps(&fixture);
            let wanted = swapped(&fixture.tensor("out.q"));
            let found = default_roll_out(&fixture, &config, steps);
            assert_close(&format!("{name} default roll-out"), &found, &wanted, PARITY);
        }
        // Step by step over unknown patches: the same function.
        let mut states = zero_states(&plan, context.shape[0]);
        let mut outputs = continued(&plan, EntryKind::Prefill, &weights, &inputs, &mut states);
        let statistics = outputs["statistics"].clone();
        for patch in 0..patches {
            let part = Tensor::from_fn(outputs["forecast"].shape.clone(), |i| {
                full["forecast"].at(&[i[0], patch * p + i[1], i[2]])
            });
            assert_close(&format!("{name} step {patch}"), &outputs["forecast"], &part, 1e-12);
            let unknown = Tensor::from_fn([context.shape[0], p], |_| f64::NAN);
            let inputs = [("y", unknown), ("statistics", statistics.clone())];
            outputs = continued(&plan, EntryKind::Step, &weights, &inputs, &mut states);
        }
    }
}

#[test]
fn timesfm_matches_transformers() {
    for fixture in fixtures("timesfm_hf") {
        let config: timesfm::Config = fixture.config();
        let plan = timesfm::plan(&config, 1).unwrap();
        let weights = timesfm::rearrange(&config, &fixture).unwrap();
        let context = to_length(&fixture.tensor("in.context"), config.context_length);
        let inputs = [("y", context.clone())];
        let found = run(&plan, EntryKind::Full, &weights, &inputs, config.context_length);
        let name = &fixture.name;
        assert_close(name, &found["forecast"], &fixture.tensor("out.full"), PARITY);
        let found = rolled_out(&config, &weights, &context, 1);
        assert_close(&format!("{name} by prefill"), &found, &fixture.tensor("out.full"), PARITY);
    }
}

#[test]
fn timesfm_matches_its_own_package() {
    for fixture in fixtures("timesfm_native") {
        let mut settings = fixture.config.clone();
        for flag in ["normalize_inputs", "use_continuous_quantile_head", "force_flip_invariance", "fix_quantile_crossing"] {
            settings[flag] = fixture.config["forecast"][flag].clone();
        }
        settings["context_length"] = fixture.config["forecast"]["max_context"].clone();
        let config: timesfm::Config = serde_json::from_value(settings).unwrap();
        let weights = timesfm::rearrange(&config, &fixture).unwrap();
        let context = interpolated(&to_length(&fixture.tensor("in.context"), config.context_length));
        let wanted = fixture.tensor("out.q");
        // The package clips forecasts of series without negative values; the forecaster does here.
        let clipped = |found: &Tensor| {
            Tensor::from_fn(found.shape.clone(), |i| {
                let row = &context.data[i[0] * context.width()..][..context.width()];
                let positive = row.iter().all(|x| x.is_nan() || *x >= 0.0);
                if positive { found.at(i).max(0.0) } else { found.at(i) }
            })
        };
        let patches = wanted.shape[1].div_ceil(config.horizon_length);
        let found = clipped(&rolled_out(&config, &weights, &context, patches));
        let found = Tensor::from_fn(wanted.shape.clone(), |i| found.at(i));
        assert_close(&format!("{} roll-out", fixture.name), &found, &wanted, PARITY);

        let plan = timesfm::plan(&config, 1).unwrap();
        let inputs = [("y", context.clone())];
        let found = run(&plan, EntryKind::Full, &weights, &inputs, config.context_length);
        let found = clipped(&found["forecast"]);
        let near = Tensor::from_fn(found.shape.clone(), |i| wanted.at(i));
        assert_close(&format!("{} full", fixture.name), &found, &near, PARITY);
        timesfm_naive(&fixture, &config);
    }
}

/// The package's plain decoding without any flag, over lengths that do and do not fill a patch.
fn timesfm_naive(fixture: &Fixture, config: &timesfm::Config) {
    let full = fixture.tensor("in.full");
    for (row, length) in [(0, 60), (1, 37)] {
        let config = timesfm::Config {
            context_length: usize::next_multiple_of(length, config.patch_length),
            use_continuous_quantile_head: false,
            force_flip_invariance: false,
            normalize_inputs: false,
            fix_quantile_crossing: false,
            ..config.clone()
        };
        let weights = timesfm::rearrange(&config, fixture).unwrap();
        let padding = config.context_length - length;
        let context = Tensor::from_fn([1, config.context_length], |i| {
            if i[1] < padding { f64::NAN } else { full.at(&[row, full.shape[1] - length + i[1] - padding]) }
        });
        let wanted = fixture.tensor(&format!("out.naive{row}"));
        let found = rolled_out(&config, &weights, &context, wanted.shape[0].div_ceil(config.horizon_length));
        let found = Tensor::from_fn(wanted.shape.clone(), |i| found.at(&[0, i[0], i[1]]));
        assert_close(&format!("{} naive{row}", fixture.name), &found, &wanted, PARITY);
    }
}

/// A forecast by prefill and steps, as the forecaster makes it.
fn rolled_out(
    config: &timesfm::Config,
    weights: &dyn WeightSource,
    context: &Tensor,
    patches: usize,
) -> Tensor {
    let plan = timesfm::plan(config, patches).unwrap();
    let rows = context.shape[0];
    let m = config.quantiles.len() + 1;
    let pass = |sign: f64| {
        let y = Tensor::from_fn(context.shape.clone(), |i| sign * context.at(i));
        let mut states = zero_states(&plan, rows);
        let mut forecasts = vec![Vec::new(); rows];
        let mut input = y;
        let mut first = None;
        for patch in 0..patches {
            let entry = if patch == 0 { EntryKind::Prefill } else { EntryKind::Step };
            let outputs = continued(&plan, entry, weights, &[("y", input)], &mut states);
            for (row, forecast) in forecasts.iter_mut().zip(outputs["forecast"].to_f32().chunks(config.horizon_length * m)) {
                row.extend_from_slice(forecast);
            }
            input = outputs["feedback"].clone();
            first.get_or_insert(outputs);
        }
        (forecasts, first.unwrap())
    };
    let (plus, first) = pass(1.0);
    let minus = config.force_flip_invariance.then(|| pass(-1.0));
    let spread = |outputs: &BTreeMap<String, Tensor>, row: usize| -> Vec<f32> {
        let Some(spread) = outputs.get("spread") else { return Vec::new() };
        let size = spread.data.len() / rows;
        spread.to_f32()[row * size..][..size].to_vec()
    };
    let mut data = Vec::new();
    for row in 0..rows {
        let (ours, theirs) = (spread(&first, row), minus.as_ref().map(|(_, f)| spread(f, row)));
        let rollout = timesfm::Rollout { forecast: &plus[row], spread: &ours };
        let negative = minus.as_ref().zip(theirs.as_ref()).map(|((forecasts, _), spread)| {
            timesfm::Rollout { forecast: &forecasts[row], spread }
        });
        let statistics = first.get("statistics");
        let pair = statistics.map_or((0.0, 1.0), |s| (s.at(&[row, 0, 0]) as f32, s.at(&[row, 1, 0]) as f32));
        let combined = timesfm::combine(config, rollout, negative, pair).unwrap();
        data.extend(combined.iter().map(|&x| f64::from(x)));
    }
    Tensor::new([rows, patches * config.horizon_length, m], data)
}

/// Inner gaps filled linearly, as the package and the forecaster do.
fn interpolated(x: &Tensor) -> Tensor {
    let mut filled = x.clone();
    for row in filled.data.chunks_mut(x.width()) {
        let known: Vec<usize> = (0..row.len()).filter(|&t| !row[t].is_nan()).collect();
        for pair in known.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            for t in a + 1..b {
                row[t] = row[a] + (row[b] - row[a]) * (t - a) as f64 / (b - a) as f64;
            }
        }
    }
    filled
}
