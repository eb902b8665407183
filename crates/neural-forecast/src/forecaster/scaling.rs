//! Scaling of whole series before windows are cut, as a checkpoint's local scalers want it, and
//! the way back.
//!
//! Not the scaling of a window by its own statistics: that is inside the plan.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{ForecastRequest, Forecaster};
use crate::checkpoint::LocalScaler;
use crate::error::Result;
use crate::frame::{Frame, StaticFrame};
use crate::scale::{Scaler, ScalerKind};

/// The scalers of a frame's series, fitted to them.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    /// For the target, one a series; empty without a local scaler.
    target: Vec<Scaler>,
    /// For each exogenous column that a network uses, one a series.
    columns: BTreeMap<String, Vec<Scaler>>,
    /// For each static column that a network uses.
    statics: BTreeMap<String, Scaler>,
}

impl Scaling {
    /// Fits the checkpoint's local scalers to the frame, as neuralforecast does for a frame that is
    /// passed to `predict`.
    pub(super) fn fit(
        forecaster: &Forecaster,
        frame: &Frame,
        request: &ForecastRequest<'_>,
    ) -> Result<Scaling> {
        let mut scaling = Scaling::default();
        let checkpoint = forecaster.checkpoint();
        if let Some(local) = &checkpoint.local_scaler {
            scaling.fit_local(local, forecaster, frame)?;
        }
        if let (Some(scaler), Some(statics)) = (&checkpoint.static_scaler, request.statics) {
            scaling.fit_statics(scaler, forecaster, frame, statics)?;
        }
        Ok(scaling)
    }

    fn fit_local(
        &mut self,
        local: &LocalScaler,
        forecaster: &Forecaster,
        frame: &Frame,
    ) -> Result<()> {
        let kind: ScalerKind = local.kind.parse()?;
        let fit = |id: &str, data: &[f32]| {
            Scaler::fit(kind, data).map_err(|error| error.context(format!("series `{id}`")))
        };
        self.target = frame
            .series
            .iter()
            .map(|series| fit(&series.id, &series.values))
            .collect::<Result<_>>()?;
        let exogenous = forecaster.networks().map(|network| &network.exogenous);
        for name in exogenous.flat_map(|names| names.historic.iter().chain(&names.future)) {
            if self.columns.contains_key(name) {
                continue;
            }
            let at = frame.exog_index(name)?;
            let scalers = frame
                .series
                .iter()
                .map(|series| fit(&series.id, &series.exog[at]))
                .collect::<Result<_>>()?;
            self.columns.insert(name.clone(), scalers);
        }
        Ok(())
    }

    fn fit_statics(
        &mut self,
        scaler: &LocalScaler,
        forecaster: &Forecaster,
        frame: &Frame,
        statics: &StaticFrame,
    ) -> Result<()> {
        let kind: ScalerKind = scaler.kind.parse()?;
        for name in forecaster.networks().flat_map(|network| &network.exogenous.statics) {
            if self.statics.contains_key(name) {
                continue;
            }
            let column = std::slice::from_ref(name);
            let mut values = Vec::with_capacity(frame.series.len());
            for series in &frame.series {
                values.extend(statics.values(&series.id, column)?);
            }
            self.statics.insert(name.clone(), Scaler::fit(kind, &values)?);
        }
        Ok(())
    }

    /// The last `steps` values of a series' target, or all where there are fewer, scaled.
    pub(super) fn target<'a>(&self, frame: &'a Frame, row: usize, steps: usize) -> Cow<'a, [f32]> {
        let values = &frame.series[row].values;
        let values = &values[values.len().saturating_sub(steps)..];
        match self.target.get(row) {
            Some(scaler) => {
                let mut scaled = values.to_vec();
                scaler.transform(&mut scaled);
                Cow::Owned(scaled)
            }
            None => Cow::Borrowed(values),
        }
    }

    /// A series' exogenous column over its history, scaled.
    pub(super) fn column(&self, frame: &Frame, row: usize, name: &str) -> Result<Vec<f32>> {
        let mut column = frame.series[row].exog[frame.exog_index(name)?].clone();
        self.apply(row, name, &mut column);
        Ok(column)
    }

    /// Scales values of an exogenous column of a series.
    pub(super) fn apply(&self, row: usize, name: &str, values: &mut [f32]) {
        if let Some(scaler) = self.columns.get(name).and_then(|scalers| scalers.get(row)) {
            scaler.transform(values);
        }
    }

    /// Static columns of a series, scaled.
    pub(super) fn statics(
        &self,
        frame: &StaticFrame,
        id: &str,
        names: &[String],
    ) -> Result<Vec<f32>> {
        let mut values = frame.values(id, names)?;
        for (value, name) in values.iter_mut().zip(names) {
            if let Some(scaler) = self.statics.get(name) {
                scaler.transform(std::slice::from_mut(value));
            }
        }
        Ok(values)
    }

    /// Undoes the target's scaling on forecasts of a series, in any order.
    pub(super) fn undo(&self, row: usize, forecasts: &mut [f32]) {
        if let Some(scaler) = self.target.get(row) {
            scaler.inverse(forecasts);
        }
    }
}
