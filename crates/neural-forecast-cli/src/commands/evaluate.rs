//! `evaluate`: how good a model's forecasts are on data whose future is known.
//!
//! The windows, the seasonal naive forecast beside the models, and the metrics are the library's.

use super::forecast::{ask, read_frame, read_statics};
use super::{count, open_device, print, print_json, table};
use crate::args::EvaluateArgs;
use crate::failure::{Failure, Outcome};
use crate::input::Model;
use crate::progress::Progress;
use neural_forecast::evaluate::{EvaluateOptions, ModelAccuracy, evaluate};
use neural_forecast::forecaster::{ForecastRequest, Forecaster, ForecasterOptions};
use neural_forecast::frame::{Frame, GapPolicy, ReadOptions, Series};
use std::collections::HashMap;
use std::path::Path;

/// Evaluates and prints.
pub(super) fn run(args: &EvaluateArgs) -> Outcome {
    let device = open_device(&args.run)?;
    let model = Model::load(args.model.as_deref())?;
    let options = model.complete(args.read.options());
    let horizon = args.horizon.map_or(model.checkpoint.horizon, count);
    let mut frame = read_frame(&args.data, &options)?;
    if let Some(path) = &args.actual {
        append(&mut frame, path, &options, horizon)?;
    }
    let statics = args.statics.as_deref().map(|path| read_statics(path, &options)).transpose()?;
    let settings =
        ForecasterOptions { precision: args.run.precision, ..ForecasterOptions::default() };
    let forecaster = Forecaster::new(model.checkpoint, &device, settings)?;
    let request = ForecastRequest {
        horizon: Some(horizon),
        intervals: ask(&args.bands),
        statics: statics.as_ref(),
        ..ForecastRequest::default()
    };
    let options = EvaluateOptions {
        windows: count(args.windows),
        step: args.step.map(count),
        season: args.season.map(count),
    };
    let alive = Progress::spinner("evaluate");
    let found = evaluate(&forecaster, &frame, &request, options)
        .map_err(|error| error.context(args.data.display()))?;
    drop(alive);
    if args.json {
        return print_json(&found);
    }
    let header = ["model", "MASE", "sMAPE", "WQL", "MSE", "MAE", "coverage", "forecasts"];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(found.models.iter().map(as_row));
    let (windows, season) = (found.windows, found.season);
    let about = format!("horizon {horizon}, windows {windows}, season {season}\n");
    if found.skipped > 0 {
        eprintln!("note: {} windows of series too short for them are left out", found.skipped);
    }
    print(format!("{about}{}", table(&rows)).as_bytes())
}

/// Puts the first `horizon` values of each series of another file behind those of `frame`.
fn append(
    frame: &mut Frame,
    path: &Path,
    options: &ReadOptions,
    horizon: usize,
) -> Result<(), Failure> {
    let options = ReadOptions { format: None, gaps: GapPolicy::Keep, ..options.clone() };
    let later = read_frame(path, &options)?;
    let by_id: HashMap<&str, &Series> =
        later.series.iter().map(|series| (series.id.as_str(), series)).collect();
    let mut all = std::mem::take(&mut frame.series);
    for series in &mut all {
        let found = by_id.get(series.id.as_str());
        let Some(values) = found.and_then(|found| found.values.get(..horizon)) else {
            return Err(Failure::new(format!(
                "{}: expected {horizon} values of series `{}`, found {}",
                path.display(),
                series.id,
                found.map_or(0, |found| found.len())
            )));
        };
        if !series.exog.is_empty() {
            return Err(Failure::usage("--actual: expected data without exogenous columns"));
        }
        let stamps = frame.future_stamps(series, horizon)?;
        series.stamps.extend(stamps);
        series.values.extend_from_slice(values);
    }
    frame.series = all;
    Ok(())
}

fn as_row(found: &ModelAccuracy) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or("-".to_string(), |v| format!("{v:.4}"));
    let report = &found.report;
    let coverage: Vec<String> = report
        .intervals
        .iter()
        .filter_map(|i| Some(format!("{}%: {:.1}%", i.level, 100.0 * i.coverage?)))
        .collect();
    let coverage = if coverage.is_empty() { "-".to_string() } else { coverage.join(" ") };
    let mut row = vec![found.model.clone()];
    row.extend([report.mase, report.smape, report.wql, report.mse, report.mae].map(number));
    row.extend([coverage, report.forecasts.to_string()]);
    row
}
