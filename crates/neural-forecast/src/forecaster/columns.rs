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
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The channels as they are.
    Channels(Vec<String>, Vec<Option<f64>>),
    /// Quantile channels, and what is selected of them.
    Quantiles(QuantileHead, Selection),
    /// A point forecast with conformal intervals of these column suffixes around it.
    Conformal {
        scores: Scores,
        ids: Vec<String>,
        method: Method,
        names: Vec<String>,
        quantiles: Vec<Option<f64>>,
    },
}

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
        let source = source(network, ask, conformal)
            .map_err(|error| error.context(format!("model `{}`", network.alias)))?;
        Ok(ColumnPlan { alias: network.alias.clone(), source })
    }

    /// Their names.
    pub(super) fn names(&self) -> Vec<String> {
        let named = |names: &[String]| -> Vec<String> {
            names.iter().map(|name| format!("{}{name}", self.alias)).collect()
        };
        match &self.source {
            Source::Channels(names, _) | Source::Conformal { names, .. } => named(names),
            Source::Quantiles(_, selection) => named(selection.names()),
        }
    }

    /// Their quantiles; `None` for a point forecast.
    pub(super) fn quantiles(&self) -> Vec<Option<f64>> {
        match &self.source {
            Source::Channels(_, quantiles) | Source::Conformal { quantiles, .. } => {
                quantiles.clone()
            }
            Source::Quantiles(_, selection) => {
                selection.quantiles().iter().copied().map(Some).collect()
            }
        }
    }

    /// Appends a series' columns, made from its channels `[O][H]`, which `unscale` brings back to
    /// the units of the series; returns the number of steps at which quantiles crossed.
    pub(super) fn columns(
        &self,
        mut channels: Vec<Vec<f32>>,
        request: &ForecastRequest<'_>,
        unscale: &dyn Fn(&mut [Vec<f32>]),
        series: &mut SeriesForecast,
    ) -> Result<usize> {
        let mut crossings = 0;
        let mut columns = match &self.source {
            Source::Channels(..) => {
                unscale(&mut channels);
                channels
            }
            Source::Quantiles(head, selection) => {
                unscale(&mut channels);
                let mut rows = steps(&channels);
                crossings = if request.repair_crossing {
                    head.repair(&mut rows)
                } else {
                    head.repair(&mut rows.clone())
                };
                selection.columns(&rows)
            }
            Source::Conformal { scores, ids, method, .. } => {
                let at = ids.iter().position(|id| *id == series.id).ok_or_else(|| {
                    Error::data(format!(
                        "model `{}` has no conformity scores of series `{}`: its intervals are \
                         for the series it was validated on",
                        self.alias, series.id
                    ))
                })?;
                // neuralforecast adds its scores to forecasts that are still scaled, and scales
                // back what comes out; a folder's intervals are what its `predict` gives.
                let intervals = scores.intervals(at, &channels[0], *method, &request.intervals)?;
                channels.truncate(1);
                channels.extend(intervals.into_iter().map(|interval| interval.values));
                unscale(&mut channels);
                channels
            }
        };
        if request.non_negative {
            for column in &mut columns {
                clip_negative(column);
            }
        }
        series.values.append(&mut columns);
        Ok(crossings)
    }
}

/// Channels `[O][H]` as rows `[H, O]`.
fn steps(channels: &[Vec<f32>]) -> Vec<f32> {
    let steps = channels.first().map_or(0, Vec::len);
    let mut rows = Vec::with_capacity(steps * channels.len());
    for step in 0..steps {
        rows.extend(channels.iter().map(|channel| channel[step]));
    }
    rows
}

fn source(network: &Network, ask: &Ask, conformal: Option<&ConformalScores>) -> Result<Source> {
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
        return Ok(Source::Quantiles(head, selection));
    }
    if *ask == Ask::Trained {
        let quantile = |channel| match channel {
            Channel::Quantile(level) => Some(level),
            _ => None,
        };
        let quantiles = network.outputs.iter().map(|output| quantile(output.channel)).collect();
        return Ok(Source::Channels(names(network), quantiles));
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

fn conformal_source(network: &Network, ask: &Ask, stored: &ConformalScores) -> Result<Source> {
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
    Ok(Source::Conformal { scores, ids, method, names, quantiles })
}
