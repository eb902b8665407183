//! The accuracy of a forecaster on known data, over rolling windows.
//!
//! Cuts every series before each window, forecasts, and compares with what followed. Does not tune
//! anything, and never shows a model what it is compared with (future columns excepted, which are
//! known ahead by definition).

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::forecaster::{Forecast, ForecastRequest, Forecaster};
use crate::frame::{Frame, FutureFrame, Series};
use crate::metrics::{Evaluation, Outcome, Report, seasonal_naive};

/// How to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct EvaluateOptions {
    /// Number of windows at the end of each series.
    pub windows: usize,
    /// Steps between the starts of windows; `None` is the horizon.
    pub step: Option<usize>,
    /// Steps in a season; `None` is the frequency's usual season.
    pub season: Option<usize>,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        EvaluateOptions { windows: 1, step: None, season: None }
    }
}

/// The accuracy of one model, or of the seasonal naive forecast.
#[derive(Clone, Debug, Serialize)]
pub struct ModelAccuracy {
    /// The network's alias, or `SeasonalNaive`.
    pub model: String,
    /// Its accuracy.
    #[serde(flatten)]
    pub report: Report,
}

/// An evaluation of a frame.
#[derive(Clone, Debug, Serialize)]
pub struct Accuracy {
    /// Steps of each forecast.
    pub horizon: usize,
    /// Steps in a season.
    pub season: usize,
    /// Windows per series.
    pub windows: usize,
    /// Series too short for a window, left out of it.
    pub skipped: usize,
    /// One row a model, the seasonal naive forecast last.
    pub models: Vec<ModelAccuracy>,
}

/// Evaluates a forecaster on a frame.
///
/// # Errors
/// `Usage`: no windows; `Data`: every series is too short; those of [`Forecaster::predict`].
pub fn evaluate(
    forecaster: &Forecaster,
    frame: &Frame,
    request: &ForecastRequest<'_>,
    options: EvaluateOptions,
) -> Result<Accuracy> {
    let horizon = request.horizon.unwrap_or(forecaster.checkpoint().horizon);
    let step = options.step.unwrap_or(horizon);
    if options.windows == 0 || step == 0 || horizon == 0 {
        let message = "windows, step and horizon must be at least 1";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let season = options.season.unwrap_or_else(|| frame.frequency.season());
    let aliases: Vec<String> = forecaster.networks().map(|n| n.alias.clone()).collect();
    let mut models: Vec<Evaluation> =
        (0..=aliases.len()).map(|_| Evaluation::new(season)).collect();
    let ahead = FutureFrame::from_frame(frame);
    let mut skipped = 0;
    for window in (0..options.windows).rev() {
        let held_out = horizon + window * step;
        let (cut, rows) = cut(frame, held_out);
        skipped += frame.series.len() - rows.len();
        if rows.is_empty() {
            continue;
        }
        let future = request.future.or(Some(&ahead));
        let request = ForecastRequest { horizon: Some(horizon), future, ..request.clone() };
        let forecast = forecaster.predict(&cut, &request)?;
        for (at, &row) in rows.iter().enumerate() {
            let history = &cut.series[at].values;
            let start = history.len();
            let actual = &frame.series[row].values[start..start + horizon];
            add(&mut models, &forecast, at, actual, history, season)?;
        }
    }
    if skipped == frame.series.len() * options.windows {
        return Err(Error::data(format!(
            "every series has fewer than {} values, expected a history before {} windows of \
             {horizon} steps",
            horizon + (options.windows - 1) * step + 1,
            options.windows
        )));
    }
    let names = aliases.into_iter().chain(["SeasonalNaive".to_string()]);
    let models = names
        .zip(&models)
        .map(|(model, evaluation)| ModelAccuracy { model, report: evaluation.report() })
        .collect();
    Ok(Accuracy { horizon, season, windows: options.windows, skipped, models })
}

/// The frame without the last `held_out` values of each series, and which series are left.
fn cut(frame: &Frame, held_out: usize) -> (Frame, Vec<usize>) {
    let mut rows = Vec::new();
    let mut series = Vec::new();
    for (row, one) in frame.series.iter().enumerate() {
        let kept = one.len().saturating_sub(held_out);
        if !one.values[..kept].iter().any(|value| !value.is_nan()) {
            continue;
        }
        rows.push(row);
        series.push(Series {
            id: one.id.clone(),
            stamps: one.stamps[..kept].to_vec(),
            values: one.values[..kept].to_vec(),
            exog: one.exog.iter().map(|column| column[..kept].to_vec()).collect(),
        });
    }
    (frame.with_series(series), rows)
}

/// Adds one series' forecasts of all models.
fn add(
    models: &mut [Evaluation],
    forecast: &Forecast,
    at: usize,
    actual: &[f32],
    history: &[f32],
    season: usize,
) -> Result<()> {
    let values = &forecast.series[at].values;
    let mut first = 0;
    for (evaluation, run) in models.iter_mut().zip(&forecast.runs) {
        let columns = first..first + run.columns;
        first = columns.end;
        let quantiles: Vec<(f64, &[f32])> = columns
            .clone()
            .filter_map(|column| Some((forecast.quantiles[column]?, values[column].as_slice())))
            .collect();
        let point = columns
            .clone()
            .find(|&column| forecast.quantiles[column].is_none_or(|q| (q - 0.5).abs() < 1e-6))
            .unwrap_or(columns.start);
        let point = values[point].as_slice();
        evaluation.add(&Outcome { actual, point, quantiles: &quantiles, history })?;
    }
    if let Some(naive) = models.last_mut() {
        let point = seasonal_naive(history, season, actual.len());
        naive.add(&Outcome { actual, point: &point, quantiles: &[], history })?;
    }
    Ok(())
}
