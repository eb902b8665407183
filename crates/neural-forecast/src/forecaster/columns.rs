//! From a network's output channels to the columns of a forecast: trained quantiles, asked ones,
//! conformal intervals.
//!
//! Decides before anything runs whether a network can give what is asked, so that a refusal costs
//! nothing.

use neural_forecast_runtime::plan::Channel;

use super::{ForecastRequest, SeriesForecast};
use crate::checkpoint::ConformalScores;
use crate::conformal::{Method, Scores};
use crate::error::{Error, ErrorKind, Result};
use crate::models::Network;
use crate::quantiles::{Ask, QuantileHead, Selection, clip_negative};

/// The columns of one network's forecasts.
#[derive(Debug)]
pub(super) struct ColumnPlan {
    alias: String,
    /// Channels of the network, `O`.
    outputs: usize,
    names: Vec<String>,
    quantiles: Vec<Option<f64>>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The channels as they are.
    Channels,
    /// Quantile channels, and what is selected of them.
    Quantiles(QuantileHead, Selection),
    /// A point forecast with conformal intervals around it.
    Conformal { scores: Scores, ids: Vec<String>, method: Method },
}

/// Column suffixes, their quantiles, and where the columns come from.
type Found = (Vec<String>, Vec<Option<f64>>, Source);

impl ColumnPlan {
    /// The columns that `ask` means for a network.
    ///
    /// # Errors
    /// `Unsupported` or `Usage`: quantiles that the network cannot give, by its name.
    pub(super) fn new(
        network: &Network,
        ask: &Ask,
        conformal: Option<&ConformalScores>,
    ) -> Result<ColumnPlan> {
        let (suffixes, quantiles, source) = source(network, ask, conformal)
            .map_err(|error| error.context(format!("model `{}`", network.alias)))?;
        let alias = network.alias.clone();
        let names = suffixes.iter().map(|suffix| format!("{alias}{suffix}")).collect();
        Ok(ColumnPlan { alias, outputs: network.outputs.len(), names, quantiles, source })
    }

    /// Their names.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Their quantiles; `None` for a point forecast.
    pub(super) fn quantiles(&self) -> &[Option<f64>] {
        &self.quantiles
    }

    /// Appends a series' columns, made from its forecast `[H, O]`, which `unscale` brings back to
    /// the units of the series; returns the number of steps at which quantiles crossed.
    pub(super) fn columns(
        &self,
        forecast: &mut [f32],
        request: &ForecastRequest<'_>,
        unscale: impl Fn(&mut [f32]),
        series: &mut SeriesForecast,
    ) -> Result<usize> {
        let first = series.values.len();
        let mut crossings = 0;
        match &self.source {
            Source::Channels => {
                unscale(forecast);
                series.values.extend((0..self.outputs).map(|c| self.channel(forecast, c)));
            }
            Source::Quantiles(head, selection) => {
                unscale(forecast);
                crossings = if request.repair_crossing {
                    head.repair(forecast)
                } else {
                    head.crossings(forecast)
                };
                series.values.extend(selection.columns(forecast));
            }
            Source::Conformal { scores, ids, method } => {
                let at = ids.iter().position(|id| *id == series.id).ok_or_else(|| {
                    Error::data(format!(
                        "model `{}` has no conformity scores of series `{}`: its intervals are \
                         for the series it was validated on",
                        self.alias, series.id
                    ))
                })?;
                // neuralforecast adds its scores to forecasts that are still scaled, and scales
                // back what comes out; a folder's intervals are what its `predict` gives.
                let point = self.channel(forecast, 0);
                let intervals = scores.intervals(at, &point, *method, &request.intervals)?;
                series.values.push(point);
                series.values.extend(intervals.into_iter().map(|interval| interval.values));
                series.values[first..].iter_mut().for_each(|column| unscale(column));
            }
        }
        if request.non_negative {
            for column in &mut series.values[first..] {
                clip_negative(column);
            }
        }
        Ok(crossings)
    }

    /// One channel of a forecast `[H, O]`.
    fn channel(&self, forecast: &[f32], channel: usize) -> Vec<f32> {
        forecast.chunks_exact(self.outputs).map(|step| step[channel]).collect()
    }
}

fn source(network: &Network, ask: &Ask, conformal: Option<&ConformalScores>) -> Result<Found> {
    let names = |network: &Network| -> Vec<String> {
        network.outputs.iter().map(|output| output.suffix.clone()).collect()
    };
    let quantiles: Vec<f32> = network
        .outputs
        .iter()
        .filter_map(|output| match output.channel {
            Channel::Quantile(level) => Some(level as f32),
            _ => None,
        })
        .collect();
    if quantiles.len() == network.outputs.len() {
        let head = QuantileHead::new(&quantiles, names(network))?;
        let selection = head.select(ask)?;
        let quantiles = selection.quantiles().iter().copied().map(Some).collect();
        return Ok((selection.names().to_vec(), quantiles, Source::Quantiles(head, selection)));
    }
    if *ask == Ask::Trained {
        let quantile = |channel| match channel {
            Channel::Quantile(level) => Some(level),
            _ => None,
        };
        let quantiles = network.outputs.iter().map(|output| quantile(output.channel)).collect();
        return Ok((names(network), quantiles, Source::Channels));
    }
    let Some(conformal) = conformal else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "was trained with {} and has no quantiles, and its checkpoint has no conformal \
                 intervals",
                network.loss
            ),
        ));
    };
    conformal_source(network, ask, conformal)
}

fn conformal_source(network: &Network, ask: &Ask, stored: &ConformalScores) -> Result<Found> {
    let column = format!("{}{}", network.alias, network.outputs[0].suffix);
    let errors = stored.errors.get(&column).ok_or_else(|| {
        let message = format!("has no conformity scores in column `{column}` of its checkpoint");
        Error::new(ErrorKind::Checkpoint, message)
    })?;
    let mut ids: Vec<String> = Vec::new();
    for id in &stored.ids {
        if ids.last() != Some(id) {
            ids.push(id.clone());
        }
    }
    let scores = Scores::new(stored.windows, network.horizon, errors.clone())?;
    let rows = errors.len();
    if scores.series() != ids.len() || stored.ids.len() != rows {
        return Err(Error::new(
            ErrorKind::Checkpoint,
            format!(
                "has {rows} conformity scores for {} series, expected {} windows of {} steps each",
                ids.len(),
                stored.windows,
                network.horizon
            ),
        ));
    }
    let method: Method = stored.method.parse()?;
    // The column names do not depend on the forecast: those of an empty one are the same.
    let intervals = scores.intervals(0, &[], method, ask)?;
    let mut names = vec![network.outputs[0].suffix.clone()];
    let mut quantiles = vec![None];
    for interval in intervals {
        names.push(interval.name);
        quantiles.push(Some(interval.quantile));
    }
    Ok((names, quantiles, Source::Conformal { scores, ids, method }))
}
