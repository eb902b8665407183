//! `forecast` as a user runs it: inputs, outputs, pictures, and equality with neuralforecast.

use crate::process::{Folder, repository, visitors};
use serde_json::Value;

/// Cells of a table of text.
fn cells(csv: &str) -> Vec<Vec<&str>> {
    csv.lines().map(|line| line.split(',').collect()).collect()
}

#[test]
fn without_flags_the_default_model_forecasts_every_series() {
    let folder = Folder::new("forecast-default");
    let table = folder.run(&["forecast", &visitors()]).success();
    let rows = cells(&table);
    assert_eq!(rows[0][..2], ["unique_id", "ds"]);
    assert!(rows[0].iter().any(|name| name.ends_with("-median")), "{:?}", rows[0]);
    let horizon = (rows.len() - 1) / 2;
    assert!(horizon >= 24, "{horizon} steps");
    assert_eq!(rows[1][..2], ["old-town", "2026-04-06 00:00:00"]);
    assert_eq!(rows[1 + horizon][..2], ["station", "2026-04-06 00:00:00"]);
    for row in &rows[1..] {
        assert_eq!(row.len(), rows[0].len());
        assert!(row[2..].iter().all(|cell| cell.parse::<f32>().unwrap().is_finite()), "{row:?}");
    }
    assert_eq!(folder.names(), [""; 0], "a file appeared that nobody asked for");
}

#[test]
fn the_same_bits_come_again_whatever_the_threads() {
    let folder = Folder::new("forecast-again");
    let once = folder.run(&["forecast", &visitors()]).success();
    assert!(once == folder.run(&["forecast", &visitors()]).success(), "another run differs");
    for threads in ["1", "2", "3"] {
        let again = folder.run(&["forecast", &visitors(), "--threads", threads]).success();
        assert!(once == again, "{threads} threads give other numbers");
    }
}

#[test]
fn a_series_forecasts_the_same_alone_and_in_company() {
    let folder = Folder::new("forecast-alone");
    let all = std::fs::read_to_string(visitors()).unwrap();
    let station = |line: &&str| line.starts_with("unique_id") || line.starts_with("station");
    let alone: Vec<&str> = all.lines().filter(station).collect();
    let alone = folder.run_with(&["forecast", "-"], &[], alone.join("\n").as_bytes()).success();
    let both = folder.run(&["forecast", &visitors()]).success();
    let both: Vec<&str> = both.lines().filter(station).collect();
    let alone: Vec<&str> = alone.trim_end().lines().collect();
    assert!(alone == both, "alone:\n{}\nin company:\n{}", alone[1], both[1]);
}

#[test]
fn horizon_level_and_quantiles_shape_the_table() {
    let folder = Folder::new("forecast-shape");
    let visitors = visitors();
    let header = |extra: &[&str]| {
        let arguments = [&["forecast", &visitors, "--model", "lstm"], extra].concat();
        let table = folder.run(&arguments).success();
        let lines = table.lines().count();
        (table.lines().next().unwrap().to_string(), lines)
    };
    assert_eq!(header(&["--horizon", "7"]).1, 1 + 2 * 7);
    // Far beyond the model's own horizon.
    assert_eq!(header(&["--horizon", "150"]).1, 1 + 2 * 150);
    let (names, _) = header(&["--level", "80"]);
    assert_eq!(names, "unique_id,ds,LSTM-median,LSTM-lo-80,LSTM-hi-80");
    let (names, _) = header(&["--quantiles", "0.1,0.5"]);
    assert_eq!(names.split(',').count(), 4, "{names}");
}

#[test]
fn the_output_goes_where_and_how_it_is_asked() {
    let folder = Folder::new("forecast-output");
    let printed = folder.run(&["forecast", &visitors()]).success();
    folder.run(&["forecast", &visitors(), "--output", "table.csv"]).success();
    assert!(std::fs::read_to_string(folder.path("table.csv")).unwrap() == printed);
    folder.run(&["forecast", &visitors(), "-o", "table.json"]).success();
    let text = std::fs::read_to_string(folder.path("table.json")).unwrap();
    let records: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(records.as_array().unwrap().len(), printed.lines().count() - 1);
    assert_eq!(records[0]["unique_id"], "old-town");
    let dashed = folder.run(&["forecast", &visitors(), "-o", "-", "--format", "csv"]).success();
    assert!(dashed == printed);
    assert_eq!(folder.names(), ["table.csv", "table.json"]);
}

#[test]
fn json_says_how_the_forecast_was_made() {
    let folder = Folder::new("forecast-json");
    let text = folder.run(&["forecast", &visitors(), "--json", "--horizon", "3"]).success();
    let all: Value = serde_json::from_str(&text).unwrap();
    let run = &all["runs"][0];
    assert_eq!(run["device"], "cpu");
    assert_eq!(run["precision"], "f32");
    assert_eq!(run["fallback"], Value::Null);
    assert_eq!(run["model_hash"].as_str().unwrap().len(), 16);
    assert!(!run["kernels"].as_object().unwrap().is_empty());
    assert_eq!(all["forecasts"].as_array().unwrap().len(), 6);
    assert_eq!(all["frequency"], "h");
    assert_eq!(all["input"]["series"], 2);
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_goes_out_and_comes_in() {
    let folder = Folder::new("forecast-parquet");
    folder.run(&["forecast", &visitors(), "-o", "a.parquet", "--level", "80"]).success();
    let columns = ["--target-col", "LSTM-median", "--model", "lstm"];
    folder.run(&["forecast", &visitors(), "-o", "b.parquet", "--model", "lstm"]).success();
    let again = [&["forecast", "b.parquet", "--horizon", "2"], &columns[..]].concat();
    assert_eq!(folder.run(&again).success().lines().count(), 5);
}

#[test]
fn a_plot_is_drawn_in_the_format_of_its_name() {
    let folder = Folder::new("forecast-plot");
    folder.run(&["forecast", &visitors(), "-o", "t.csv", "--plot", "p.svg"]).success();
    folder.run(&["forecast", &visitors(), "-o", "t.csv", "--plot", "p.png"]).success();
    let svg = std::fs::read_to_string(folder.path("p.svg")).unwrap();
    for text in ["old-town", "station", "observed", "80% interval", "90% interval"] {
        assert!(svg.contains(&format!(">{text}<")), "{text} is missing");
    }
    let png = std::fs::read(folder.path("p.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.len() > 20_000, "{} bytes", png.len());
    folder.run(&["forecast", &visitors(), "-o", "t.csv", "--plot"]).success();
    assert_eq!(folder.names(), ["forecast.svg", "p.png", "p.svg", "t.csv"]);
}

#[test]
fn wide_single_column_and_short_inputs_are_understood() {
    let folder = Folder::new("forecast-forms");
    let values: Vec<String> = (0..60).map(|t| format!("{}", 10 + t % 7)).collect();
    let single = folder.file("single.csv", values.join("\n"));
    let horizon = ["--horizon", "5"];
    let run = |path: &std::path::Path| {
        let path = path.to_str().unwrap().to_string();
        folder.run(&[&["forecast", &path], &horizon[..]].concat()).success()
    };
    assert_eq!(run(&single).lines().count(), 6);
    let day = |t: usize| format!("2024-{:02}-{:02}", 1 + t / 28, 1 + t % 28);
    let wide = (0..27).map(|t| format!("{},{t},{}\n", day(t), 2 * t)).collect::<String>();
    let table = run(&folder.file("wide.csv", format!("date,north,south\n{wide}")));
    assert_eq!(table.lines().count(), 11);
    assert!(table.contains("north,2024-01-28,"), "{table}");
    let short = "ds,y\n2024-01-31,1\n2024-02-29,2\n2024-03-31,3\n";
    let table = run(&folder.file("short.csv", short));
    assert!(table.contains(",2024-04-30,") && table.contains(",2024-05-31,"), "{table}");
}

#[test]
fn the_device_can_be_named_by_flag_and_by_environment() {
    let folder = Folder::new("forecast-device");
    let visitors = visitors();
    // No machine has that many GPUs: so it is with a driver, without one, without the feature.
    let absent = folder.run(&["forecast", &visitors, "--device", "cuda:4096"]).failure(1);
    assert!(absent.contains("device `cuda:4096` is not available: "), "{absent}");
    let variable = [("NEURAL_FORECAST_DEVICE", "gpu:4096")];
    let absent = folder.run_with(&["forecast", &visitors], &variable, b"").failure(1);
    assert!(absent.contains("device `gpu:4096` is not available: "), "{absent}");
    let forced = [("FORCE_CPU_FALLBACK", "1")];
    let ran = folder.run_with(&["forecast", &visitors, "--device", "cuda"], &forced, b"");
    assert!(ran.err.starts_with("note: ") && ran.err.contains("cuda"), "{}", ran.err);
    let plain = folder.run(&["forecast", &visitors]).success();
    assert!(ran.success() == plain, "the fallback gives other numbers");
}

/// Compares a forecast with neuralforecast's own, cell by cell.
fn equals_predict(fixtures: &str, fixture: &str, flags: &[&str]) {
    let folder = Folder::new(&format!("forecast-{fixture}"));
    let place = |name: &str| repository(&format!("{fixtures}/{fixture}/{name}"));
    let (model, input) = (place("checkpoint"), place("input.csv"));
    let files: Vec<String> = flags.iter().map(|flag| place(flag)).collect();
    // Barely trained networks cross their quantiles, and neuralforecast leaves them so.
    let mut arguments = vec!["forecast", &input, "--model", &model, "--keep-crossings"];
    for (flag, file) in flags.iter().zip(&files) {
        arguments.extend([if *flag == "future.csv" { "--future" } else { "--static" }, file]);
    }
    let found = folder.run(&arguments).success();
    let expected = std::fs::read_to_string(place("expected.csv")).unwrap();
    let (found, expected) = (cells(&found), cells(&expected));
    assert_eq!(found.len(), expected.len(), "rows of {fixture}");
    let keys = |row: &[&str]| format!("{} {}", row[0], row[1]);
    let mut compared = 0;
    for (column, name) in expected[0].iter().enumerate().skip(2) {
        let own = found[0].iter().position(|own| own == name);
        let own = own.unwrap_or_else(|| panic!("{fixture}: no column {name} in {:?}", found[0]));
        for row in &expected[1..] {
            let same = found[1..].iter().find(|other| keys(other) == keys(row));
            let same = same.unwrap_or_else(|| panic!("{fixture}: no row {}", keys(row)));
            let (a, b): (f64, f64) = (same[own].parse().unwrap(), row[column].parse().unwrap());
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{fixture} {name}: {a}, not {b}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn a_folder_saved_by_neuralforecast_forecasts_as_its_predict() {
    let own = "tests/fixtures";
    for fixture in ["nf_lstm", "nf_patchtst", "nf_columns", "nf_freq_month_end"] {
        equals_predict(own, fixture, &[]);
    }
    equals_predict(own, "nf_exog_local", &["future.csv", "static.csv"]);
    for fixture in ["nf_basic", "nf_robust_local"] {
        let shared = "../shared/fixtures";
        if std::path::Path::new(&repository(&format!("{shared}/{fixture}"))).exists() {
            equals_predict(shared, fixture, &[]);
        } else {
            println!("skipped: {shared}/{fixture} is not beside the checkout");
        }
    }
}
