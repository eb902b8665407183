//! Conformal prediction intervals around point forecasts, as neuralforecast computes them from
//! the cross-validation scores in a checkpoint.
//!
//! Does not run the cross-validation that makes the scores; that belongs to training.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::quantiles::{Ask, check_level};

/// How scores become intervals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// `conformal_distribution`: quantiles of the forecast plus and minus each score.
    #[default]
    Distribution,
    /// `conformal_error`: the forecast plus and minus quantiles of the scores.
    Error,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Distribution => "conformal_distribution",
            Method::Error => "conformal_error",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "conformal_distribution" => Ok(Method::Distribution),
            "conformal_error" => Ok(Method::Error),
            _ => Err(Error::new(
                ErrorKind::Checkpoint,
                format!(
                    "prediction interval method `{text}` is not known, expected \
                     conformal_distribution or conformal_error"
                ),
            )),
        }
    }
}

/// Absolute cross-validation errors of one model, `[N, W, H]`: N series in the checkpoint's
/// order, W windows, H steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    windows: usize,
    horizon: usize,
    values: Vec<f64>,
}

impl Scores {
    /// Scores of `windows` windows of `horizon` steps for as many series as `values` has room
    /// for.
    ///
    /// # Errors
    /// Checkpoint, when the values are not a whole number of series, or one is not finite.
    pub fn new(windows: usize, horizon: usize, values: Vec<f64>) -> Result<Self> {
        let per_series = windows.checked_mul(horizon).filter(|&size| size > 0);
        if per_series.is_none_or(|size| !values.len().is_multiple_of(size)) {
            return Err(Error::new(
                ErrorKind::Checkpoint,
                format!(
                    "conformity scores have {} values, expected a multiple of {windows} windows \
                     of {horizon} steps",
                    values.len()
                ),
            ));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::new(
                ErrorKind::Checkpoint,
                format!("conformity score {at} is {}, expected a finite number", values[at]),
            ));
        }
        Ok(Scores { windows, horizon, values })
    }

    /// The number of series N.
    pub fn series(&self) -> usize {
        self.values.len() / (self.windows * self.horizon)
    }

    /// The intervals of one series around `forecast` `[h]`, h ≤ H.
    ///
    /// Levels are sorted, and give `-lo-90, -lo-80, -hi-80, -hi-90`; quantiles are sorted and
    /// give `-ql0.1`, …; [`Ask::Trained`] gives none.
    ///
    /// # Errors
    /// Usage for a level or quantile out of range; Unsupported for more steps than there are
    /// scores; Data for a series that has none.
    pub fn intervals(
        &self,
        series: usize,
        forecast: &[f32],
        method: Method,
        ask: &Ask,
    ) -> Result<Vec<Interval>> {
        let size = self.windows * self.horizon;
        let start = series.checked_mul(size);
        let scores = start.and_then(|start| self.values.get(start..start.checked_add(size)?));
        let scores = scores.ok_or_else(|| {
            Error::data(format!(
                "series {series} has no conformity scores, expected one of {}",
                self.series()
            ))
        })?;
        if forecast.len() > self.horizon {
            return Err(Error::unsupported(format!(
                "conformal intervals reach {} steps, found a horizon of {}",
                self.horizon,
                forecast.len()
            )));
        }
        let mut intervals = columns(ask)?;
        let cuts: Vec<f64> = intervals.iter().map(|interval| interval.quantile).collect();
        let mut sample = Vec::with_capacity(2 * self.windows);
        for (step, &mean) in forecast.iter().enumerate() {
            let mean = f64::from(mean);
            let scores = scores.iter().skip(step).step_by(self.horizon);
            sample.clear();
            match method {
                Method::Distribution => {
                    sample.extend(scores.flat_map(|score| [mean - score, mean + score]));
                }
                Method::Error => sample.extend(scores),
            }
            sample.sort_by(f64::total_cmp);
            for (at, interval) in intervals.iter_mut().enumerate() {
                let value = match method {
                    Method::Distribution => quantile(&sample, cuts[at]),
                    // The lower side takes the quantile from the other end of the list, as
                    // neuralforecast does: for levels that is 1 − q.
                    Method::Error if cuts[at] < 0.5 => {
                        mean - quantile(&sample, cuts[cuts.len() - 1 - at])
                    }
                    Method::Error if cuts[at] > 0.5 => mean + quantile(&sample, cuts[at]),
                    Method::Error => mean,
                };
                interval.values.push(value as f32);
            }
        }
        Ok(intervals)
    }
}

/// One column of intervals.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// The column's suffix: `-lo-90`, `-ql0.1`.
    pub name: String,
    /// Its quantile.
    pub quantile: f64,
    /// Its values `[h]`.
    pub values: Vec<f32>,
}

fn columns(ask: &Ask) -> Result<Vec<Interval>> {
    let column = |name, quantile| Interval { name, quantile, values: Vec::new() };
    match ask {
        Ask::Trained => Ok(Vec::new()),
        Ask::Quantiles(_) => {
            let quantiles = ask.quantiles()?.into_iter();
            Ok(quantiles.map(|quantile| column(format!("-ql{quantile}"), quantile)).collect())
        }
        Ask::Levels(levels) => {
            levels.iter().try_for_each(|&level| check_level(level))?;
            let mut levels = levels.clone();
            levels.sort_by(f64::total_cmp);
            levels.dedup();
            let low = levels
                .iter()
                .rev()
                .map(|level| column(format!("-lo-{level}"), (100.0 - level) / 200.0));
            let high = levels
                .iter()
                .map(|level| column(format!("-hi-{level}"), 1.0 - (100.0 - level) / 200.0));
            Ok(low.chain(high).collect())
        }
    }
}

/// The linearly interpolated quantile of a sorted sample, as numpy has it.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let index = (place as usize).min(sorted.len() - 1);
    let share = place - index as f64;
    let low = sorted[index];
    let high = sorted[(index + 1).min(sorted.len() - 1)];
    // numpy rounds from the nearer end.
    if share < 0.5 { low + (high - low) * share } else { high - (high - low) * (1.0 - share) }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const REFERENCE: &str = include_str!("../tests/data/reference.json");

    fn floats(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    }

    #[test]
    fn agrees_with_neuralforecast() {
        let reference: Value = serde_json::from_str(REFERENCE).unwrap();
        let reference = &reference["conformal"];
        let (windows, horizon) = (3, 4);
        let scores = Scores::new(windows, horizon, floats(&reference["scores"])).unwrap();
        assert_eq!(scores.series(), 2);
        let forecast: Vec<f32> =
            floats(&reference["forecast"]).into_iter().map(|value| value as f32).collect();
        for case in reference["cases"].as_array().unwrap() {
            let method: Method = case["method"].as_str().unwrap().parse().unwrap();
            let ask = match &case["level"] {
                Value::Null => Ask::Quantiles(floats(&case["quantiles"])),
                levels => Ask::Levels(floats(levels)),
            };
            for series in 0..2 {
                let around = &forecast[series * horizon..][..horizon];
                let found = scores.intervals(series, around, method, &ask).unwrap();
                let names: Vec<String> =
                    found.iter().map(|interval| format!("M{}", interval.name)).collect();
                assert_eq!(Value::from(names), case["columns"]);
                for step in 0..horizon {
                    let expected = floats(&case["values"][series * horizon + step]);
                    for (interval, expected) in found.iter().zip(expected) {
                        let diff = (f64::from(interval.values[step]) - expected).abs();
                        assert!(diff <= 1e-6 * expected.abs().max(1.0), "{method} {interval:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(Scores::new(2, 3, vec![0.0; 7]).is_err());
        assert!(Scores::new(0, 3, Vec::new()).is_err());
        assert!(Scores::new(1, 1, vec![f64::NAN]).is_err());
        let scores = Scores::new(2, 2, vec![1.0; 4]).unwrap();
        let ask = Ask::Levels(vec![80.0]);
        let error = scores.intervals(0, &[0.0; 3], Method::Error, &ask).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(scores.intervals(1, &[0.0; 2], Method::Error, &ask).is_err());
        assert!(scores.intervals(0, &[0.0], Method::Error, &Ask::Levels(vec![100.0])).is_err());
        assert!(scores.intervals(0, &[0.0], Method::Error, &Ask::Trained).unwrap().is_empty());
        assert!("conformal".parse::<Method>().is_err());
    }
}
