//! The error of each precision against the reference implementations in f64.
//!
//! Measures forecasts, in the units of the series: what a user sees, scalers and heads included.

use std::sync::Arc;

use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::reference::ReferenceDevice;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::device::OpenDevice;
use crate::error::{ErrorKind, Result};
use crate::forecaster::{Forecast, ForecastRequest, Forecaster, ForecasterOptions};
use crate::frame::Frame;

/// How far one precision is from the reference on one network.
#[derive(Clone, Debug, Serialize)]
pub struct PrecisionError {
    /// The network's alias.
    pub model: String,
    /// The precision's name.
    pub precision: &'static str,
    /// Windows that a run of the device took together; none for a checkpoint, whose forecaster
    /// makes its own batches.
    pub batch: Option<usize>,
    /// Numbers compared.
    pub values: usize,
    /// Largest |difference| / max(1, |reference|); NaN if any forecast is not a number.
    pub error_max: f64,
    /// Mean of the same.
    pub error_mean: f64,
    /// Largest |difference| as a share of the largest |reference|.
    pub error_of_range: f64,
    /// Why there is no figure, where the device does not compute in this precision.
    pub unavailable: Option<String>,
}

impl PrecisionError {
    /// A row without figures, and why.
    pub(crate) fn unavailable(model: &str, precision: Precision, why: String) -> Self {
        PrecisionError {
            model: model.to_string(),
            precision: precision.name(),
            batch: None,
            values: 0,
            error_max: f64::NAN,
            error_mean: f64::NAN,
            error_of_range: f64::NAN,
            unavailable: Some(why),
        }
    }
}

/// Forecasts a frame on a device in each of `precisions` and in f64, and compares.
///
/// # Errors
/// Those of [`Forecaster::predict`]; a precision that the device lacks is a row, not an error.
pub fn verify(
    checkpoint: &Checkpoint,
    open: &OpenDevice,
    precisions: &[Precision],
    frame: &Frame,
    request: &ForecastRequest<'_>,
) -> Result<Vec<PrecisionError>> {
    let request = ForecastRequest { repair_crossing: false, ..request.clone() };
    let device = Arc::new(ReferenceDevice::new());
    let reference = OpenDevice { device, fallback: None };
    let options = ForecasterOptions::default();
    let expected =
        Forecaster::new(checkpoint.clone(), &reference, options)?.predict(frame, &request)?;
    let aliases: Vec<&str> = checkpoint.models.iter().map(|model| model.alias.as_str()).collect();
    let mut rows = Vec::new();
    for &precision in precisions {
        let options = ForecasterOptions { precision, ..ForecasterOptions::default() };
        let found = Forecaster::new(checkpoint.clone(), open, options)
            .and_then(|forecaster| forecaster.predict(frame, &request));
        match found {
            Ok(found) => rows.extend(compare(precision, &aliases, &expected, &found)),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                let why = error.to_string();
                let row = |alias: &&str| PrecisionError::unavailable(alias, precision, why.clone());
                rows.extend(aliases.iter().map(row));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

fn compare(
    precision: Precision,
    aliases: &[&str],
    expected: &Forecast,
    found: &Forecast,
) -> Vec<PrecisionError> {
    let mut rows = Vec::with_capacity(aliases.len());
    let mut columns = 0;
    for (number, alias) in aliases.iter().enumerate() {
        // Columns are grouped by network, in the checkpoint's order.
        let width = expected.runs.get(number).map_or(0, |run| run.columns);
        let pairs: Vec<(f64, f64)> = expected
            .series
            .iter()
            .zip(&found.series)
            .flat_map(|(a, b)| {
                let range = columns..columns + width;
                a.values[range.clone()].iter().zip(&b.values[range])
            })
            .flat_map(|(a, b)| a.iter().zip(b))
            .map(|(&a, &b)| (f64::from(a), f64::from(b)))
            .collect();
        columns += width;
        rows.push(summary(alias, precision, &pairs));
    }
    rows
}

pub(crate) fn summary(alias: &str, precision: Precision, pairs: &[(f64, f64)]) -> PrecisionError {
    // `f64::max` drops NaN; this fold keeps the first one it meets.
    let largest = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0.0, |m: f64, x| if x <= m || m.is_nan() { m } else { x })
    };
    let relative = |&(a, b): &(f64, f64)| (a - b).abs() / a.abs().max(1.0);
    let range = largest(&mut pairs.iter().map(|(a, _)| a.abs()));
    let difference = largest(&mut pairs.iter().map(|(a, b)| (a - b).abs()));
    PrecisionError {
        model: alias.to_string(),
        precision: precision.name(),
        batch: None,
        values: pairs.len(),
        error_max: largest(&mut pairs.iter().map(relative)),
        error_mean: pairs.iter().map(relative).sum::<f64>() / pairs.len().max(1) as f64,
        error_of_range: if range > 0.0 { difference / range } else { difference },
        unavailable: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_forecast_shows() {
        let row = summary("m", Precision::F32, &[(1.0, 1.0), (2.0, f64::NAN), (3.0, 3.0)]);
        assert!(row.error_max.is_nan() && row.error_mean.is_nan());
        let row = summary("m", Precision::F32, &[(1.0, 1.5), (-8.0, -8.0)]);
        assert_eq!((row.error_max, row.error_of_range), (0.5, 0.0625));
    }
}
