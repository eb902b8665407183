//! Forecasts many series in chunks, so that a progress bar has something to count.
//!
//! A series' numbers do not depend on its chunk. What couples series (a scaler of static columns, a
//! multivariate network) is forecast in one piece.

use crate::progress::Progress;
use neural_forecast::Result;
use neural_forecast::forecaster::{Forecast, ForecastRequest, Forecaster, ModelRun};
use neural_forecast::frame::Frame;

/// Series of a chunk: seconds of work at most, and far more than a program takes at once.
const CHUNK: usize = 1024;

/// As [`Forecaster::predict`], showing progress.
///
/// # Errors
/// As [`Forecaster::predict`].
pub(super) fn predict(
    forecaster: &Forecaster,
    frame: &Frame,
    request: &ForecastRequest<'_>,
) -> Result<Forecast> {
    let coupled = forecaster.checkpoint().static_scaler.is_some()
        || forecaster.networks().any(|network| network.series.is_some());
    if coupled || frame.series.len() <= CHUNK {
        let _alive = Progress::spinner("forecast");
        return forecaster.predict(frame, request);
    }
    let progress = Progress::new("forecast", frame.series.len() as u64);
    let mut whole: Option<Forecast> = None;
    for chunk in frame.series.chunks(CHUNK) {
        let part = forecaster.predict(&frame.with_series(chunk.to_vec()), request)?;
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => append(whole, part),
        }
        progress.set(whole.as_ref().map_or(0, |whole| whole.series.len() as u64));
    }
    // A frame of more than one chunk has a first one.
    whole.map_or_else(|| forecaster.predict(frame, request), Ok)
}

fn append(whole: &mut Forecast, part: Forecast) {
    whole.series.extend(part.series);
    for (run, more) in whole.runs.iter_mut().zip(part.runs) {
        add(run, more);
    }
}

fn add(run: &mut ModelRun, more: ModelRun) {
    run.crossings += more.crossings;
    for launched in more.info.kernels {
        match run.info.kernels.iter_mut().find(|known| known.kernel == launched.kernel) {
            Some(known) => {
                known.launches += launched.launches;
                known.lingering += launched.lingering;
            }
            None => run.info.kernels.push(launched),
        }
    }
}
