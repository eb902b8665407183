//! Turns a frame and its forecast into a picture's panels.
//!
//! Reads the columns' names to find medians and intervals; draws nothing itself.

use crate::plot::{self, Interval, PANELS_MAX, Panel, Picture, Time};
use neural_forecast::forecaster::{Forecast, SeriesForecast};
use neural_forecast::frame::{Frame, Series};
use std::path::Path;

/// Observations before the forecast that a panel shows: so many horizons, but not too few.
const HISTORY_HORIZONS: usize = 4;
const HISTORY_MIN: usize = 48;

const MICROSECONDS: i64 = 1_000_000;

/// The picture of a forecast.
pub(super) fn of(input: &Path, frame: &Frame, forecast: &Forecast) -> Picture {
    let models = columns_by_model(forecast);
    let time = if frame.axis.is_integer() { Time::Steps } else { Time::Seconds };
    let pairs = frame.series.iter().zip(&forecast.series).take(PANELS_MAX);
    let panels = pairs.map(|(series, future)| panel(series, future, &models, time)).collect();
    let steps = forecast.series.first().map_or(0, |series| series.stamps.len());
    let name = match input.file_name() {
        Some(name) if input != Path::new("-") => name.to_string_lossy().into_owned(),
        _ => "standard input".into(),
    };
    let title = format!("{name}, {steps} steps ahead ({})", frame.frequency);
    Picture { title, time, panels, series_count: frame.series.len() }
}

fn panel(series: &Series, future: &SeriesForecast, models: &[ModelColumns], time: Time) -> Panel {
    let shown = (future.stamps.len() * HISTORY_HORIZONS).max(HISTORY_MIN).min(series.len());
    let first = series.len() - shown;
    let history = series.stamps[first..].iter().zip(&series.values[first..]);
    Panel {
        title: series.id.clone(),
        history: history.map(|(stamp, value)| (moment(*stamp, time), *value)).collect(),
        history_count: series.len(),
        forecasts: models.iter().map(|columns| forecast(columns, future, time)).collect(),
    }
}

fn moment(stamp: i64, time: Time) -> i64 {
    match time {
        Time::Seconds => stamp.div_euclid(MICROSECONDS),
        Time::Steps => stamp,
    }
}

fn forecast(model: &ModelColumns, future: &SeriesForecast, time: Time) -> plot::Forecast {
    let values = |at: usize| future.values.get(at).cloned().unwrap_or_default();
    let near = |wanted: f64| {
        let found = model.quantiles.iter().find(|(_, q)| (q - wanted).abs() < 1e-5);
        found.map(|(at, _)| values(*at))
    };
    let lower = model.quantiles.iter().filter(|(_, quantile)| *quantile < 0.5 - 1e-5);
    let intervals = lower.filter_map(|(at, low)| {
        let level = ((100.0 - 200.0 * low) * 1e3).round() / 1e3;
        Some(Interval { level, low: values(*at), high: near(1.0 - low)? })
    });
    plot::Forecast {
        model: model.name.clone(),
        times: future.stamps.iter().map(|stamp| moment(*stamp, time)).collect(),
        center: model.point.map(values).or_else(|| near(0.5)).unwrap_or_default(),
        intervals: intervals_to_show(intervals.collect()),
    }
}

/// Nested shades blur beyond two, so a model of many quantiles shows those nearest to 80 and 95.
fn intervals_to_show(mut intervals: Vec<Interval>) -> Vec<Interval> {
    const WANTED: [f64; 2] = [80.0, 95.0];
    if intervals.len() <= WANTED.len() {
        return intervals;
    }
    let nearest = |wanted: f64| {
        let distance = |i: &Interval| (i.level - wanted).abs();
        intervals.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).map(|i| i.level)
    };
    let kept: Vec<f64> = WANTED.iter().filter_map(|wanted| nearest(*wanted)).collect();
    intervals.retain(|interval| kept.contains(&interval.level));
    intervals
}

/// Where a model's forecasts stand among all columns.
struct ModelColumns {
    name: String,
    /// A column that is no quantile: the mean, or the only output.
    point: Option<usize>,
    /// Columns with their quantile.
    quantiles: Vec<(usize, f64)>,
}

fn columns_by_model(forecast: &Forecast) -> Vec<ModelColumns> {
    let mut first = 0;
    let runs = forecast.runs.iter().map(|run| {
        let columns = first..(first + run.columns).min(forecast.quantiles.len());
        first = columns.end;
        let quantile = |at: usize| forecast.quantiles[at];
        ModelColumns {
            name: run.model.clone(),
            point: columns.clone().find(|at| quantile(*at).is_none()),
            quantiles: columns.filter_map(|at| Some((at, quantile(at)?))).collect(),
        }
    });
    runs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_intervals_two_are_shown() {
        let interval = |level| Interval { level, low: vec![], high: vec![] };
        let all = [20.0, 40.0, 60.0, 80.0, 90.0].map(interval).to_vec();
        let levels: Vec<f64> = intervals_to_show(all).iter().map(|i| i.level).collect();
        assert_eq!(levels, [80.0, 90.0]);
    }
}
