//! The subcommands beside `forecast`, each run once or twice as a user would.

use crate::process::{Folder, repository, visitors};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn help_and_version_are_answers() {
    let folder = Folder::new("other-help");
    let help = folder.run(&["--help"]).success();
    let commands = ["forecast", "devices", "inspect", "evaluate", "verify", "bench", "completions"];
    for command in commands {
        assert!(help.contains(command), "{command} is missing");
        let own = folder.run(&[command, "--help"]).success();
        assert!(own.contains("Usage: neural-forecast"), "{command}: {own}");
    }
    assert!(folder.run(&["--version"]).success().contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(folder.run(&[]).code, 2);
}

#[test]
fn devices_are_listed_with_reasons_for_the_absent() {
    let folder = Folder::new("other-devices");
    let text = folder.run(&["devices"]).success();
    assert!(text.contains("cpu: ") && text.contains("unavailable"), "{text}");
    let all = json(&folder.run(&["devices", "--json"]).success());
    let cpu = &all.as_array().unwrap()[0];
    assert_eq!((&cpu["id"], &cpu["available"]), (&"cpu".into(), &true.into()));
    assert!(cpu["precisions"].as_array().unwrap().contains(&"f32".into()), "{cpu}");
    let absent = &all.as_array().unwrap()[1];
    assert!(absent["reason"].as_str().unwrap().contains("CUDA"), "{absent}");
}

#[test]
fn a_model_is_described() {
    let folder = Folder::new("other-inspect");
    let text = folder.run(&["inspect", "lstm"]).success();
    for part in ["architecture", "LSTM", "parameters", "horizon", "memory in f32", "runs on"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let model = repository("tests/fixtures/nf_exog_local/checkpoint");
    let report = json(&folder.run(&["inspect", &model, "--json"]).success());
    assert!(report["models"][0]["parameters"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_model_is_evaluated_beside_the_seasonal_naive_forecast() {
    let folder = Folder::new("other-evaluate");
    let arguments = ["evaluate", &visitors(), "--windows", "3", "--json"];
    let report = json(&folder.run(&arguments).success());
    let models = report["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    for model in models {
        let mase = model["mase"].as_f64().unwrap();
        assert!(mase.is_finite() && mase > 0.0, "{model}");
        assert_eq!(model["forecasts"], 6);
    }
    let coverage = models[0]["intervals"][0]["coverage"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&coverage), "{coverage}");
    let text = folder.run(&["evaluate", &visitors()]).success();
    assert!(text.contains("MASE") && text.contains("WQL"), "{text}");
}

#[test]
fn known_values_may_stand_in_a_second_file() {
    let folder = Folder::new("other-actual");
    let all = std::fs::read_to_string(visitors()).unwrap();
    let lines: Vec<&str> = all.lines().filter(|line| line.starts_with("station")).collect();
    let write = |name: &str, lines: &[&str]| {
        let text = format!("unique_id,ds,y\n{}\n", lines.join("\n"));
        folder.file(name, text).to_str().unwrap().to_string()
    };
    let (past, later) = lines.split_at(lines.len() - 24);
    let (past, later, whole) =
        (write("past.csv", past), write("later.csv", later), write("whole.csv", &lines));
    let horizon = ["--horizon", "24", "--json"];
    let apart = [&["evaluate", &past, "--actual", &later], &horizon[..]].concat();
    let whole = [&["evaluate", &whole], &horizon[..]].concat();
    assert_eq!(folder.run(&apart).success(), folder.run(&whole).success());
}

#[test]
fn too_short_a_series_is_not_evaluated() {
    let folder = Folder::new("other-short");
    folder.file("short.csv", "ds,y\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n");
    let line = folder.run(&["evaluate", "short.csv", "--horizon", "5"]).failure(1);
    assert!(line.contains("short.csv"), "{line}");
}

#[test]
fn each_precision_is_verified_against_f64() {
    let folder = Folder::new("other-verify");
    let found = json(&folder.run(&["verify", "lstm", "--series", "3", "--json"]).success());
    let f32_row = &found.as_array().unwrap()[0];
    assert_eq!(f32_row["precision"], "f32");
    let error = f32_row["error_max"].as_f64().unwrap();
    assert!(error <= 1e-3, "{f32_row}");
    // A model with exogenous columns gets series that have them.
    let model = repository("tests/fixtures/nf_exog_local/checkpoint");
    let text = folder.run(&["verify", &model, "--series", "2"]).success();
    assert!(text.contains("f32"), "{text}");
    let data = ["verify", "lstm", "--data", &visitors(), "--precision", "f32", "--json"];
    assert_eq!(json(&folder.run(&data).success()).as_array().unwrap().len(), 1);
}

#[test]
fn a_workload_is_verified_at_each_batch() {
    let folder = Folder::new("other-verify-workload");
    let name = ["verify", "transformer_small", "--windows", "3", "--precision", "f32"];
    let found = json(&folder.run(&[&name[..], &["--batch", "1,2", "--json"]].concat()).success());
    let rows = found.as_array().unwrap();
    let batches: Vec<_> = rows.iter().map(|row| row["batch"].as_u64()).collect();
    assert_eq!(batches, [Some(1), Some(2)]);
    for row in rows {
        // The reference of all three windows may take longer than is waited for.
        assert!(row["values"].as_u64().unwrap() >= 10, "{row}");
        assert!(row["error_max"].as_f64().unwrap() <= 1e-5, "{row}");
    }
}

#[test]
fn a_workload_is_measured_in_both_modes() {
    let folder = Folder::new("other-bench");
    for mode in ["full-window", "throughput"] {
        let quick = ["--seconds", "0.01", "--batch", "2"];
        let name = ["bench", "--workload", "transformer_small", "--mode", mode];
        let text = folder.run(&[&name[..], &quick[..]].concat()).success();
        assert!(text.contains("transformer_small") && text.contains("p50"), "{text}");
        let rows = folder.run(&[&name[..], &quick[..], &["--json"]].concat()).success();
        let rows = json(&rows);
        assert_eq!(rows[0]["workload"], "transformer_small");
        assert_eq!(rows[0]["batch"], 2);
        assert!(rows[0]["p50_us"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn completions_know_the_flags() {
    let folder = Folder::new("other-completions");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = folder.run(&["completions", shell]).success();
        assert!(script.contains("forecast") && script.contains("horizon"), "{shell}");
    }
}
