//! Accuracy of forecasts: MASE, sMAPE, MSE, MAE, RMSE, WQL, SQL, MSIS, coverage, OWA.
//!
//! Does not forecast (but for the seasonal naive that others are measured against) and does not
//! cut windows; `evaluate` does.
//!
//! Rules for all: missing actual values (NaN) are left out; a NaN forecast of a known value
//! makes the result NaN, so that it cannot hide; lengths that differ, nothing to compare, and a
//! denominator of zero make the result `None`, undefined.

use crate::error::{Error, Result};

/// A mean over what is known.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn extend(&mut self, other: Mean) {
        self.sum += other.sum;
        self.count += other.count;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

impl FromIterator<f64> for Mean {
    fn from_iter<I: IntoIterator<Item = f64>>(items: I) -> Self {
        let mut mean = Mean::default();
        items.into_iter().for_each(|item| mean.add(item));
        mean
    }
}

/// Pairs of known actual values and their forecasts.
fn pairs<'a>(
    actual: &'a [f32],
    forecast: &'a [f32],
) -> Option<impl Iterator<Item = (f64, f64)> + 'a> {
    (actual.len() == forecast.len()).then(|| {
        let pairs = actual.iter().zip(forecast).filter(|(actual, _)| !actual.is_nan());
        pairs.map(|(&actual, &forecast)| (f64::from(actual), f64::from(forecast)))
    })
}

fn mean_of(actual: &[f32], forecast: &[f32], loss: impl Fn(f64, f64) -> f64) -> Option<Mean> {
    Some(pairs(actual, forecast)?.map(|(actual, forecast)| loss(actual, forecast)).collect())
}

/// Mean absolute error.
pub fn mae(actual: &[f32], forecast: &[f32]) -> Option<f64> {
    mean_of(actual, forecast, |y, f| (y - f).abs())?.get()
}

/// Mean squared error.
pub fn mse(actual: &[f32], forecast: &[f32]) -> Option<f64> {
    mean_of(actual, forecast, |y, f| (y - f) * (y - f))?.get()
}

/// Root of the mean squared error.
pub fn rmse(actual: &[f32], forecast: &[f32]) -> Option<f64> {
    mse(actual, forecast).map(f64::sqrt)
}

/// Symmetric mean absolute percentage error as M4 defines it, 0 to 200: the mean of
/// `200·|y − f| / (|y| + |f|)`, where 0 against 0 counts 0.
pub fn smape(actual: &[f32], forecast: &[f32]) -> Option<f64> {
    let loss = |y: f64, f: f64| {
        let size = y.abs() + f.abs();
        if size == 0.0 { 0.0 } else { 200.0 * (y - f).abs() / size }
    };
    mean_of(actual, forecast, loss)?.get()
}

/// The in-sample error of the seasonal naive forecast, `mean |y_t − y_{t−m}|`, by which MASE,
/// SQL and MSIS are scaled. `None` for a season of 0, a history that has no pair, or one that
/// repeats exactly.
pub fn seasonal_error(history: &[f32], season: usize) -> Option<f64> {
    if season == 0 {
        return None;
    }
    let later = history.get(season..)?;
    let steps = later.iter().zip(history).map(|(&y, &before)| f64::from(y) - f64::from(before));
    let mean: Mean = steps.filter(|step| !step.is_nan()).map(f64::abs).collect();
    mean.get().filter(|&error| error > 0.0)
}

/// Mean absolute scaled error: MAE over [`seasonal_error`].
pub fn mase(actual: &[f32], forecast: &[f32], history: &[f32], season: usize) -> Option<f64> {
    Some(mae(actual, forecast)? / seasonal_error(history, season)?)
}

/// Mean quantile loss `2·max(q·(y − f), (q − 1)·(y − f))`; at the median it is the MAE.
pub fn quantile_loss(actual: &[f32], forecast: &[f32], quantile: f64) -> Option<f64> {
    mean_of(actual, forecast, |y, f| pinball(y, f, quantile))?.get()
}

fn pinball(actual: f64, forecast: f64, quantile: f64) -> f64 {
    let error = actual - forecast;
    // Written so that NaN stays NaN: `max` would drop it.
    2.0 * if error < 0.0 { (quantile - 1.0) * error } else { quantile * error }
}

/// Weighted quantile loss: per quantile the sum of quantile losses over the sum of `|y|`, then
/// the mean over quantiles. `forecasts` are quantiles and their forecasts `[H]`. `None` where
/// all actual values are 0.
pub fn wql(actual: &[f32], forecasts: &[(f64, &[f32])]) -> Option<f64> {
    let mut weighted = WeightedQuantileLoss::default();
    weighted.add(actual, forecasts)?;
    weighted.get()
}

/// Scaled quantile loss: the mean over quantiles of [`quantile_loss`] over [`seasonal_error`].
pub fn sql(
    actual: &[f32],
    forecasts: &[(f64, &[f32])],
    history: &[f32],
    season: usize,
) -> Option<f64> {
    let scale = seasonal_error(history, season)?;
    let mut mean = Mean::default();
    for &(quantile, forecast) in forecasts {
        mean.add(quantile_loss(actual, forecast, quantile)? / scale);
    }
    mean.get()
}

/// Mean scaled interval score of M4 for the interval `[low, high]` of `level` percent: its
/// width, plus 2/α times what lies outside (α = 1 − level/100), over [`seasonal_error`].
pub fn msis(
    actual: &[f32],
    (low, high): (&[f32], &[f32]),
    level: f64,
    history: &[f32],
    season: usize,
) -> Option<f64> {
    if actual.len() != high.len() {
        return None;
    }
    let alpha = 1.0 - level / 100.0;
    let below =
        mean_of(actual, low, |y, low| if y < low { 2.0 / alpha * (low - y) } else { 0.0 * low })?;
    let above =
        mean_of(
            actual,
            high,
            |y, high| {
                if y > high { 2.0 / alpha * (y - high) } else { 0.0 * high }
            },
        )?;
    let width: Mean = actual
        .iter()
        .zip(low.iter().zip(high))
        .filter(|(actual, _)| !actual.is_nan())
        .map(|(_, (&low, &high))| f64::from(high) - f64::from(low))
        .collect();
    Some((width.get()? + below.get()? + above.get()?) / seasonal_error(history, season)?)
}

/// The share of actual values within `[low, high]`, 0 to 1.
pub fn coverage(actual: &[f32], (low, high): (&[f32], &[f32])) -> Option<f64> {
    inside(actual, low, high)?.get()
}

fn inside(actual: &[f32], low: &[f32], high: &[f32]) -> Option<Mean> {
    if actual.len() != low.len() || actual.len() != high.len() {
        return None;
    }
    let bounds = actual.iter().zip(low.iter().zip(high)).filter(|(actual, _)| !actual.is_nan());
    Some(
        bounds
            .map(|(y, (low, high))| match low.is_nan() || high.is_nan() {
                true => f64::NAN,
                false => f64::from(u8::from(low <= y && y <= high)),
            })
            .collect(),
    )
}

/// Overall weighted average of M4: the mean of sMAPE and MASE, each over that of Naive 2.
/// `None` where Naive 2 makes no error.
pub fn owa(smape: f64, mase: f64, naive2_smape: f64, naive2_mase: f64) -> Option<f64> {
    let defined = naive2_smape > 0.0 && naive2_mase > 0.0;
    defined.then(|| 0.5 * (smape / naive2_smape + mase / naive2_mase))
}

/// The seasonal naive forecast `[horizon]`: the last season repeated. A history shorter than a
/// season repeats its last value; an empty one gives NaN.
pub fn seasonal_naive(history: &[f32], season: usize, horizon: usize) -> Vec<f32> {
    let season = if season == 0 || season > history.len() { 1 } else { season };
    let last = history.get(history.len().saturating_sub(season)..).unwrap_or_default();
    if last.is_empty() {
        return vec![f32::NAN; horizon];
    }
    last.iter().copied().cycle().take(horizon).collect()
}

/// Sums of the weighted quantile loss over any number of series.
#[derive(Clone, Debug, Default)]
struct WeightedQuantileLoss {
    /// A quantile, and the sum of its losses.
    losses: Vec<(f64, f64)>,
    weight: f64,
}

impl WeightedQuantileLoss {
    fn add(&mut self, actual: &[f32], forecasts: &[(f64, &[f32])]) -> Option<()> {
        for &(quantile, forecast) in forecasts {
            let loss: f64 = pairs(actual, forecast)?.map(|(y, f)| pinball(y, f, quantile)).sum();
            match self.losses.iter_mut().find(|(known, _)| *known == quantile) {
                Some((_, sum)) => *sum += loss,
                None => self.losses.push((quantile, loss)),
            }
        }
        self.weight += pairs(actual, actual)?.map(|(y, _)| y.abs()).sum::<f64>();
        Some(())
    }

    fn get(&self) -> Option<f64> {
        let defined = self.weight > 0.0 && !self.losses.is_empty();
        let mean = || {
            self.losses.iter().map(|(_, loss)| loss / self.weight).sum::<f64>()
                / self.losses.len() as f64
        };
        defined.then(mean)
    }
}

/// One forecast beside what happened.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// What happened `[H]`; NaN is unknown.
    pub actual: &'a [f32],
    /// The point forecast `[H]`: the median, or the model's only output.
    pub point: &'a [f32],
    /// Quantiles and their forecasts `[H]`; may be empty.
    pub quantiles: &'a [(f64, &'a [f32])],
    /// What the forecast was made from `[T]`, for the scale of MASE, SQL and MSIS.
    pub history: &'a [f32],
}

/// Gathers the accuracy of many forecasts: MASE, sMAPE, SQL and MSIS are means over forecasts
/// (as in M4), the others are taken over all steps at once (as in GluonTS).
#[derive(Clone, Debug)]
pub struct Evaluation {
    season: usize,
    forecasts: usize,
    undefined: usize,
    absolute: Mean,
    squared: Mean,
    smape: Mean,
    mase: Mean,
    sql: Mean,
    weighted: WeightedQuantileLoss,
    intervals: Vec<IntervalSums>,
}

#[derive(Clone, Copy, Debug)]
struct IntervalSums {
    level: f64,
    inside: Mean,
    msis: Mean,
}

/// The accuracy of many forecasts; `None` is undefined.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    /// How many forecasts were compared.
    pub forecasts: usize,
    /// How many of them have no scale (a history that repeats exactly or is shorter than a
    /// season), and so no part in `mase`, `sql` and `msis`.
    pub undefined: usize,
    /// Mean absolute error.
    pub mae: Option<f64>,
    /// Mean squared error.
    pub mse: Option<f64>,
    /// Root of `mse`.
    pub rmse: Option<f64>,
    /// Symmetric mean absolute percentage error, 0 to 200.
    pub smape: Option<f64>,
    /// Mean absolute scaled error.
    pub mase: Option<f64>,
    /// Mean weighted quantile loss.
    pub wql: Option<f64>,
    /// Scaled quantile loss.
    pub sql: Option<f64>,
    /// Per symmetric pair of quantiles: its level in percent, coverage and MSIS.
    pub intervals: Vec<IntervalReport>,
}

/// The accuracy of an interval forecast.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct IntervalReport {
    /// The level in percent that the interval should cover.
    pub level: f64,
    /// The share it covered, 0 to 1.
    pub coverage: Option<f64>,
    /// Mean scaled interval score.
    pub msis: Option<f64>,
}

impl Evaluation {
    /// An evaluation of series with `season` steps a season.
    pub fn new(season: usize) -> Self {
        Evaluation {
            season,
            forecasts: 0,
            undefined: 0,
            absolute: Mean::default(),
            squared: Mean::default(),
            smape: Mean::default(),
            mase: Mean::default(),
            sql: Mean::default(),
            weighted: WeightedQuantileLoss::default(),
            intervals: Vec::new(),
        }
    }

    /// Adds one forecast.
    ///
    /// # Errors
    /// Usage, when lengths differ.
    pub fn add(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        let Outcome { actual, point, quantiles, history } = *outcome;
        let lengths = || quantiles.iter().map(|(_, forecast)| forecast.len());
        if point.len() != actual.len() || lengths().any(|length| length != actual.len()) {
            return Err(Error::usage(format!(
                "a forecast of {} steps is compared with {} actual values, expected as many",
                lengths().chain([point.len()]).find(|&length| length != actual.len()).unwrap_or(0),
                actual.len()
            )));
        }
        self.forecasts += 1;
        let extend = |sum: &mut Mean, mean: Option<Mean>| sum.extend(mean.unwrap_or_default());
        extend(&mut self.absolute, mean_of(actual, point, |y, f| (y - f).abs()));
        extend(&mut self.squared, mean_of(actual, point, |y, f| (y - f) * (y - f)));
        let put = |sum: &mut Mean, value: Option<f64>| value.into_iter().for_each(|v| sum.add(v));
        put(&mut self.smape, smape(actual, point));
        self.undefined += usize::from(seasonal_error(history, self.season).is_none());
        put(&mut self.mase, mase(actual, point, history, self.season));
        put(&mut self.sql, sql(actual, quantiles, history, self.season));
        if self.weighted.add(actual, quantiles).is_none() {
            return Ok(());
        }
        for &(quantile, low) in quantiles.iter().filter(|(quantile, _)| *quantile < 0.5 - 1e-6) {
            let mirrored = |(other, _): &&(f64, &[f32])| (other + quantile - 1.0).abs() < 1e-6;
            let Some(&(_, high)) = quantiles.iter().find(mirrored) else { continue };
            let level = ((100.0 - 200.0 * quantile) * 1e4).round() / 1e4;
            let found = inside(actual, low, high).unwrap_or_default();
            let sums = self.interval(level);
            sums.inside.extend(found);
            let score = msis(actual, (low, high), level, history, self.season);
            put(&mut self.interval(level).msis, score);
        }
        Ok(())
    }

    fn interval(&mut self, level: f64) -> &mut IntervalSums {
        let at = self.intervals.iter().position(|sums| sums.level == level).unwrap_or_else(|| {
            let (inside, msis) = (Mean::default(), Mean::default());
            self.intervals.push(IntervalSums { level, inside, msis });
            self.intervals.len() - 1
        });
        &mut self.intervals[at]
    }

    /// The accuracy so far.
    pub fn report(&self) -> Report {
        let mse = self.squared.get();
        let mut intervals: Vec<IntervalReport> = self
            .intervals
            .iter()
            .map(|sums| IntervalReport {
                level: sums.level,
                coverage: sums.inside.get(),
                msis: sums.msis.get(),
            })
            .collect();
        intervals.sort_by(|a, b| a.level.total_cmp(&b.level));
        Report {
            forecasts: self.forecasts,
            undefined: self.undefined,
            mae: self.absolute.get(),
            mse,
            rmse: mse.map(f64::sqrt),
            smape: self.smape.get(),
            mase: self.mase.get(),
            wql: self.weighted.get(),
            sql: self.sql.get(),
            intervals,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::frame::{ReadOptions, read_path};

    const REFERENCE: &str = include_str!("../tests/data/reference.json");

    fn assert_close(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        let diff = (found - expected).abs();
        assert!(diff <= 1e-6 * expected.abs().max(1.0), "found {found}, expected {expected}");
    }

    #[test]
    fn agrees_with_utilsforecast() {
        let reference: Value = serde_json::from_str(REFERENCE).unwrap();
        let reference = &reference["metrics"];
        let column = |name: &str| -> Vec<f32> {
            let items = reference[name].as_array().unwrap().iter();
            items.map(|item| item.as_f64().unwrap() as f32).collect()
        };
        let expected = |name: &str| reference[name].as_f64().unwrap();
        let (history, actual, point) = (column("train"), column("actual"), column("point"));
        let (low, high) = (column("low"), column("high"));
        let scale = seasonal_error(&history, 4).unwrap();
        assert_close(mae(&actual, &point), expected("mae"));
        assert_close(mse(&actual, &point), expected("mse"));
        assert_close(rmse(&actual, &point), expected("rmse"));
        // utilsforecast halves and does not multiply by 100; it omits quantile loss's factor 2.
        assert_close(smape(&actual, &point), 200.0 * expected("smape"));
        assert_close(mase(&actual, &point, &history, 4), expected("mase"));
        assert_close(quantile_loss(&actual, &low, 0.1), 2.0 * expected("quantile_loss"));
        let scaled = sql(&actual, &[(0.1, &low)], &history, 4);
        assert_close(scaled, 2.0 * expected("scaled_quantile_loss"));
        assert_close(coverage(&actual, (&low, &high)), expected("coverage"));
        let interval = msis(&actual, (&low, &high), 80.0, &history, 4);
        assert_close(interval, expected("winkler") / scale);
        let sum: f64 = actual.iter().map(|&y| f64::from(y).abs()).sum();
        let weighted = 2.0 * expected("quantile_loss") * actual.len() as f64 / sum;
        assert_close(wql(&actual, &[(0.1, &low)]), weighted);

        let mut evaluation = Evaluation::new(4);
        let quantiles: [(f64, &[f32]); 2] = [(0.1, &low), (0.9, &high)];
        let outcome =
            Outcome { actual: &actual, point: &point, quantiles: &quantiles, history: &history };
        evaluation.add(&outcome).unwrap();
        evaluation.add(&outcome).unwrap();
        let report = evaluation.report();
        assert_eq!((report.forecasts, report.undefined), (2, 0));
        assert_close(report.mase, expected("mase"));
        assert_close(report.rmse, expected("rmse"));
        assert_eq!(report.intervals.len(), 1);
        assert_close(Some(report.intervals[0].level), 80.0);
        assert_close(report.intervals[0].coverage, expected("coverage"));
        assert_close(report.intervals[0].msis, expected("winkler") / scale);
        assert_close(report.wql, wql(&actual, &quantiles).unwrap());
        let short = Outcome { point: &point[1..], ..outcome };
        assert!(evaluation.add(&short).is_err());
    }

    #[test]
    fn missing_values_are_left_out_and_missing_forecasts_show() {
        let nan = f32::NAN;
        assert_eq!(mae(&[1.0, nan, 3.0], &[2.0, 9.0, 3.0]), Some(0.5));
        assert!(mae(&[1.0, 2.0], &[1.0, nan]).is_some_and(f64::is_nan));
        assert!(smape(&[1.0, 2.0], &[1.0, nan]).is_some_and(f64::is_nan));
        assert!(quantile_loss(&[1.0], &[nan], 0.3).is_some_and(f64::is_nan));
        assert!(coverage(&[1.0], (&[nan], &[2.0])).is_some_and(f64::is_nan));
        let interval = msis(&[1.0], (&[0.0], &[nan]), 80.0, &[1.0, 2.0], 1);
        assert!(interval.is_some_and(f64::is_nan));
        assert_eq!(mae(&[nan], &[1.0]), None);
        assert_eq!(mae(&[1.0], &[]), None);
        assert_eq!(coverage(&[1.0], (&[0.0], &[])), None);
    }

    #[test]
    fn zero_denominators_are_undefined() {
        assert_eq!(seasonal_error(&[1.0, 2.0, 1.0, 2.0], 2), None);
        assert_eq!(seasonal_error(&[1.0, 2.0], 2), None);
        assert_eq!(seasonal_error(&[1.0, 2.0], 0), None);
        assert_eq!(seasonal_error(&[], 1), None);
        assert_eq!(mase(&[1.0], &[2.0], &[3.0, 3.0], 1), None);
        assert_eq!(smape(&[0.0, 1.0], &[0.0, 1.0]), Some(0.0));
        assert_eq!(wql(&[0.0], &[(0.5, &[1.0])]), None);
        assert_eq!(wql(&[1.0], &[]), None);
        assert_eq!(owa(1.0, 1.0, 0.0, 1.0), None);
        assert_eq!(owa(2.0, 3.0, 4.0, 3.0), Some(0.75));
    }

    #[test]
    fn the_seasonal_naive_repeats_the_last_season() {
        assert_eq!(seasonal_naive(&[1.0, 2.0, 3.0, 4.0], 3, 5), [2.0, 3.0, 4.0, 2.0, 3.0]);
        assert_eq!(seasonal_naive(&[1.0, 2.0], 3, 2), [2.0, 2.0]);
        assert!(seasonal_naive(&[], 3, 2).iter().all(|value| value.is_nan()));
    }

    /// The seasonal naive forecast's published MASE on M4 hourly is 1.193.
    #[test]
    fn m4_hourly_seasonal_naive_has_its_known_mase() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
        let read = |name: &str| read_path(folder.join(name), &ReadOptions::default());
        if !folder.join("m4_hourly_train.csv").exists() {
            eprintln!("skipped: no M4 hourly data beside the checkout");
            return;
        }
        let (train, test) = (read("m4_hourly_train.csv").unwrap(), read("m4_hourly_test.csv"));
        let test = test.unwrap();
        assert_eq!((train.series.len(), test.series.len()), (414, 414));
        let mut evaluation = Evaluation::new(24);
        for (history, actual) in train.series.iter().zip(&test.series) {
            assert_eq!(history.id, actual.id);
            let point = seasonal_naive(&history.values, 24, 48);
            let outcome = Outcome {
                actual: &actual.values,
                point: &point,
                quantiles: &[],
                history: &history.values,
            };
            evaluation.add(&outcome).unwrap();
        }
        let mase = evaluation.report().mase.unwrap();
        assert!((mase - 1.193).abs() < 5e-4, "{mase}");
    }
}
