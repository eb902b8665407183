//! Plans of the families whose loaders come later, run on the reference ops against the frameworks'
//! own outputs.
//!
//! Not the models that checkpoints load today, which have tests of their own. Fixtures lie in
//! `tests/fixtures/modules`; more of them are read from `../shared/fixtures/modules` where that
//! folder is beside the checkout.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixture;
#[path = "families/plain_tirex.rs"]
mod plain_tirex;

use std::collections::BTreeMap;

use fixture::{Fixture, fixtures};
use neural_forecast::models::{
    Nonlinearity, WindowConfig, WindowScaler, chronos_bolt, chronos2, deepar, hf_patchtst,
    itransformer, tft, timesfm, tirex,
};
use neural_forecast_cpu::{CpuDevice, CpuOptions};
use neural_forecast_runtime::device::{LoadOptions, WeightSource};
use neural_forecast_runtime::plan::{Bucket, Channel, Context, DType, EntryKind, Plan, sizes};
use neural_forecast_runtime::reference::{Tensor, run_entry, zero_states};
use neural_forecast_runtime::testing::{Case, Tolerance, conform};
use neural_forecast_runtime::{MemoryWeights, prepare};
use plain_tirex::{PlainTirex, bfloat16, exact};

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
fn the_others_refuse_by_name() {
    fn refused<T>(result: Result<T, neural_forecast_runtime::PlanError>, expected: &str) {
        let Err(error) = result else { panic!("accepted, expected `{expected}`") };
        let error = error.to_string();
        assert!(error.contains(expected), "{error}");
    }
    let feed_forward_proj = "gated-gelu".to_owned();
    let bolt = chronos_bolt::Config { feed_forward_proj, ..chronos_bolt::Config::default() };
    refused(chronos_bolt::plan(&bolt), "`feed_forward_proj` is `gated-gelu`, expected `relu`");
    let mut bolt = chronos_bolt::Config::default();
    bolt.chronos_config.input_patch_stride = 8;
    refused(chronos_bolt::plan(&bolt), "`input_patch_stride` is 8, expected 16 to 16");
    let mut two = chronos2::Config::default();
    let shape = |output_patches| chronos2::Shape { output_patches, grouped: false, future: false };
    refused(chronos2::plan(&two, shape(0)), "`output patches` is 0, expected 1 to 64");
    refused(chronos2::plan(&two, shape(65)), "`output patches` is 65, expected 1 to 64");
    (two.num_heads, two.d_kv) = (1 << 20, 1 << 20);
    refused(chronos2::plan(&two, shape(1)), "`num_heads · d_kv` is");
    two.chronos_config.quantiles = vec![0.5, 1.0];
    two.num_heads = 1;
    two.d_kv = 2;
    refused(chronos2::plan(&two, shape(1)), "`quantiles` are [0.5, 1.0]");
    let mut timesfm = timesfm::Config { decode_index: 10, ..timesfm::Config::default() };
    refused(timesfm::plan(&timesfm, 1), "`decode_index` is 10, expected 1 to 9");
    timesfm.decode_index = 5;
    timesfm.context_length = 100;
    refused(timesfm::plan(&timesfm, 1), "`context_length` is 100, expected a multiple of 32");
    timesfm.context_length = 512;
    timesfm.num_key_value_heads = Some(4);
    refused(timesfm::plan(&timesfm, 1), "`num_key_value_heads` is 4, expected 16 to 16");
    timesfm.num_key_value_heads = None;
    refused(timesfm::plan(&timesfm, 1 << 20), "`patches of context and roll-out` is");
    let mut itransformer = itransformer::Config { n_heads: 3, ..itransformer::Config::default() };
    refused(itransformer::plan(&itransformer), "width 512 does not divide into 3 heads");
    (itransformer.n_heads, itransformer.n_series, itransformer.outputs) = (8, 1 << 20, 1 << 20);
    refused(itransformer::plan(&itransformer), "`n_series · outputs` is");
    // A tensor of another shape than the configuration says.
    let fixture = &fixtures("tirex")[0];
    let mut tirex = tirex_config(fixture);
    tirex.block_kwargs.num_heads = 1;
    refused(tirex::rearrange(&tirex, fixture), "has shape [2, 4, 4], expected [1, 8, 8]");
    tirex.train_ctx_len = 63;
    refused(tirex::plan(&tirex, 1), "`train_ctx_len` is 63, expected a multiple of 8");
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
    let length = plan.context.longest();
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
        for flag in [
            "normalize_inputs",
            "use_continuous_quantile_head",
            "force_flip_invariance",
            "fix_quantile_crossing",
        ] {
            settings[flag] = fixture.config["forecast"][flag].clone();
        }
        settings["context_length"] = fixture.config["forecast"]["max_context"].clone();
        let config: timesfm::Config = serde_json::from_value(settings).unwrap();
        let weights = timesfm::rearrange(&config, &fixture).unwrap();
        let context =
            interpolated(&to_length(&fixture.tensor("in.context"), config.context_length));
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
            if i[1] < padding {
                f64::NAN
            } else {
                full.at(&[row, full.shape[1] - length + i[1] - padding])
            }
        });
        let wanted = fixture.tensor(&format!("out.naive{row}"));
        let found = rolled_out(
            &config,
            &weights,
            &context,
            wanted.shape[0].div_ceil(config.horizon_length),
        );
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
            for (row, forecast) in forecasts
                .iter_mut()
                .zip(outputs["forecast"].to_f32().chunks(config.horizon_length * m))
            {
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
        let negative = minus
            .as_ref()
            .zip(theirs.as_ref())
            .map(|((forecasts, _), spread)| timesfm::Rollout { forecast: &forecasts[row], spread });
        let statistics = first.get("statistics");
        let pair = statistics
            .map_or((0.0, 1.0), |s| (s.at(&[row, 0, 0]) as f32, s.at(&[row, 1, 0]) as f32));
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

/// Weights of any name in the shapes that a plan declares, drawn from a fixed sequence; scales and
/// variances are near 1.
fn seeded(plan: &Plan) -> MemoryWeights {
    let mut weights = MemoryWeights::new();
    let mut state = 7_u32;
    for weight in &plan.weights {
        let around = if weight.name.ends_with("running_var") { 1.0 } else { 0.0 };
        let elements: Vec<f32> = (0..weight.shape.iter().product::<usize>())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                around + (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect();
        weights.insert(weight.name.clone(), &weight.shape, &elements);
    }
    weights
}

/// Runs an entry on made-up inputs of a bucket: finite outputs of the declared shapes, and the CPU
/// engine's outputs and states close to them, the same bits in any batch.
fn runs_in(plan: &Plan, kind: EntryKind, batch: usize, length: usize) {
    let entry = plan.entry(kind).unwrap();
    let bucket = Bucket { batch, length };
    let place = format!("{} {} in {bucket:?}", plan.name, kind.name());
    entry.check_bucket(bucket).unwrap();
    let inputs = entry.inputs.iter().map(|input| {
        let value = entry.value(input.value);
        let tensor = Tensor::from_fn(sizes(&value.shape, bucket), |i| {
            let at = i.iter().fold(0, |at, i| at * 5 + i) as f64;
            match (input.name.as_str(), value.dtype) {
                (_, DType::I32) => (i[0] / 2) as f64,
                // Series that begin later, and covariates with gaps.
                ("y", _) if i.len() == 2 && kind != EntryKind::Step && i[1] < 3 * i[0] => f64::NAN,
                ("future", _) if (i[0] + i[1]).is_multiple_of(3) => f64::NAN,
                ("mask", _) => 1.0,
                ("statistics", _) => 1.5,
                _ => (at * 0.7).sin() + 2.0,
            }
        });
        (input.name.clone(), tensor)
    });
    let case = Case {
        name: place.clone(),
        plan: plan.clone(),
        entry: kind,
        bucket,
        weights: seeded(plan),
        inputs: inputs.collect(),
        // Errors of f32 grow through the layers; the fixtures hold the plans to more.
        tolerance: Tolerance { absolute: 2e-4, relative: 2e-4 },
    };
    let named: Vec<(&str, Tensor)> =
        case.inputs.iter().map(|(name, x)| (name.as_str(), x.clone())).collect();
    let mut states = zero_states(plan, batch);
    let outputs = run_entry(plan, kind, bucket, &case.weights, &named, &mut states).unwrap();
    assert!(!outputs.is_empty(), "{place}");
    for (name, output) in outputs {
        let declared = &entry.value(entry.output(&name).unwrap().value).shape;
        assert_eq!(output.shape, sizes(declared, bucket), "{place}: {name}");
        assert!(output.data.iter().all(|x| x.is_finite()), "{place}: {name} is not finite");
    }
    let cpu = CpuDevice::new(CpuOptions { threads: Some(2), ..Default::default() }).unwrap();
    for (fuse, lower) in [(true, false), (false, true)] {
        let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
        let ran = conform(&cpu, &case, &options);
        assert_eq!(ran, Ok(true), "{place} on the CPU, fused {fuse}, lowered {lower}");
    }
}

#[test]
fn patched_families_run_at_any_length() {
    let bolt = chronos_bolt::Config {
        d_model: 8,
        d_ff: 12,
        d_kv: 4,
        num_layers: 2,
        num_heads: 2,
        ..chronos_bolt::Config::default()
    };
    let two = chronos2::Config {
        d_model: 8,
        d_ff: 12,
        d_kv: 4,
        num_layers: 2,
        num_heads: 2,
        ..chronos2::Config::default()
    };
    let bolt = chronos_bolt::plan(&bolt).unwrap();
    let mut plans = vec![bolt];
    for (grouped, future) in [(false, false), (true, false), (false, true), (true, true)] {
        let shape = chronos2::Shape { output_patches: 3, grouped, future };
        plans.push(chronos2::plan(&two, shape).unwrap());
    }
    for plan in &plans {
        for (batch, length) in [(1, 16), (2, 33), (5, 64), (3, 1), (1, 160)] {
            runs_in(plan, EntryKind::Full, batch, length);
        }
        // Any length that the plan takes has a bucket, and longer ones have none.
        let Context::Free { max, multiple } = plan.context else { panic!("{}", plan.name) };
        assert!(plan.length_bucket(1).is_some_and(|bucket| bucket.is_multiple_of(multiple)));
        assert!(plan.length_bucket(max).is_some());
        assert_eq!(plan.length_bucket(max + 1), None);
    }
}

#[test]
fn all_entries_run_at_any_batch() {
    let window = |outputs, context| WindowConfig {
        horizon: 3,
        context,
        scaler: WindowScaler::Robust,
        historic: 1,
        future: 2,
        statics: 2,
        outputs,
        ..WindowConfig::default()
    };
    let deepar = deepar::plan(&deepar::DeepArConfig {
        window: window(3, 7),
        layers: 2,
        hidden: 5,
        decoder_layers: 1,
        decoder_hidden: 4,
        activation: Nonlinearity::ReLU,
        distribution: deepar::Distribution::StudentT,
    });
    let tft = tft::TftConfig {
        window: window(2, 9),
        hidden: 4,
        heads: 2,
        recurrence: tft::Recurrence::Gru,
        layers: 2,
        one_initial_state: true,
        activation: Nonlinearity::ELU,
    };
    let tirex = tirex::Config {
        input_patch_size: 4,
        output_patch_size: 4,
        quantiles: vec![0.1, 0.5, 0.9],
        block_kwargs: tirex::Blocks {
            embedding_dim: 8,
            num_heads: 2,
            num_blocks: 2,
            ffn_proj_factor: 2.0,
        },
        input_ff_dim: 6,
        train_ctx_len: 20,
    };
    let timesfm = timesfm::Config {
        patch_length: 2,
        context_length: 12,
        horizon_length: 4,
        output_quantile_len: 8,
        hidden_size: 8,
        intermediate_size: 6,
        num_attention_heads: 2,
        num_hidden_layers: 2,
        fix_quantile_crossing: true,
        ..timesfm::Config::default()
    };
    let itransformer = itransformer::Config {
        h: 4,
        input_size: 6,
        n_series: 3,
        hidden_size: 4,
        n_heads: 2,
        d_ff: 5,
        outputs: 2,
        futr_exog_list: vec!["a".to_owned()],
        ..itransformer::Config::default()
    };
    let patchtst = hf_patchtst::Config {
        num_input_channels: 3,
        context_length: 30,
        patch_length: 5,
        patch_stride: 4,
        d_model: 8,
        num_attention_heads: 2,
        num_hidden_layers: 2,
        ffn_dim: 6,
        channel_attention: true,
        ..hf_patchtst::Config::default()
    };
    let plans = [
        deepar,
        tft::plan(&tft, vec![Channel::Point; 2]),
        tirex::plan(&tirex, 2),
        timesfm::plan(&timesfm, 3),
        itransformer::plan(&itransformer),
        hf_patchtst::plan(&patchtst),
    ];
    for plan in plans {
        let plan = plan.unwrap();
        let Context::Fixed(length) = plan.context else { panic!("{}", plan.name) };
        for entry in &plan.entries {
            for batch in [1, 2, 5] {
                runs_in(&plan, entry.kind, batch, length);
            }
        }
    }
}

/// The published networks, by the parameter counts that their makers or their files state.
#[test]
fn published_sizes_have_their_parameters() {
    for (widths, millions) in [
        ([256, 1024, 64, 4, 4], 8.65),
        ([384, 1536, 64, 4, 8], 21.2),
        ([512, 2048, 64, 6, 8], 47.7),
        ([768, 3072, 64, 12, 12], 205.3),
    ] {
        let [d_model, d_ff, d_kv, num_layers, num_heads] = widths;
        let config = chronos_bolt::Config {
            d_model,
            d_ff,
            d_kv,
            num_layers,
            num_heads,
            ..chronos_bolt::Config::default()
        };
        // Beside these the files hold the decoder's relative positions, which have no effect.
        let plan = chronos_bolt::plan(&config).unwrap();
        let found = (plan.parameters() + 32 * num_heads) as f64 / 1e6;
        assert!((found - millions).abs() <= 0.06, "Chronos-Bolt {d_model}: {found} million");
    }
    let quantiles = (1..=21).map(|i| f64::from(i) / 22.0).collect();
    let mut config = chronos2::Config { d_model: 768, d_ff: 3072, ..chronos2::Config::default() };
    (config.num_layers, config.num_heads) = (12, 12);
    config.chronos_config.quantiles = quantiles;
    let shape = chronos2::Shape { output_patches: 4, grouped: true, future: true };
    let found = chronos2::plan(&config, shape).unwrap().parameters() as f64 / 1e6;
    assert!((found - 119.5).abs() <= 0.06, "Chronos-2: {found} million");
    let config = tirex::Config {
        input_patch_size: 32,
        output_patch_size: 32,
        quantiles: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        block_kwargs: tirex::Blocks {
            embedding_dim: 512,
            num_heads: 4,
            num_blocks: 12,
            ffn_proj_factor: 2.6667,
        },
        input_ff_dim: 2048,
        train_ctx_len: 2048,
    };
    let found = tirex::plan(&config, 1).unwrap().parameters() as f64 / 1e6;
    assert!((found - 35.29).abs() <= 0.01, "TiRex: {found} million");
}
