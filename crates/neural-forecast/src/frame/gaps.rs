//! Onto the grid: finds missing stamps, inserts them, fills missing values by a policy.
//!
//! Never moves a stamp and never thins a series: a stamp off the grid is an error.

use super::cell::quote;
use super::table::{Origin, Raw};
use super::{ReadReport, Series};
use crate::calendar::{Frequency, TimeAxis, infer};
use crate::error::{Error, Result};

/// What to do with stamps that a series skips and with target values that are missing.
///
/// Exogenous columns follow the same policy in the rows that the target keeps. Under every
/// policy but `Error` and `Keep`, a series begins at its first value: missing values before it
/// cannot be known from it, so those rows are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GapPolicy {
    /// Any missing stamp or value is an error.
    Error,
    /// The last value is carried forward.
    Ffill,
    /// A straight line between the neighbours; the last value is carried to the end. The
    /// default.
    #[default]
    Interpolate,
    /// Zeros, as for intermittent demand.
    Zero,
    /// NaN, for models that mask missing values themselves.
    Keep,
}

impl std::str::FromStr for GapPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "error" => Ok(GapPolicy::Error),
            "ffill" => Ok(GapPolicy::Ffill),
            "interpolate" => Ok(GapPolicy::Interpolate),
            "zero" => Ok(GapPolicy::Zero),
            "keep" => Ok(GapPolicy::Keep),
            _ => Err(Error::usage(format!(
                "gap policy `{text}` is not known, expected error, ffill, interpolate, zero or \
                 keep"
            ))),
        }
    }
}

/// The frequency of a table: 1 without stamps, the asked one, or the inferred one.
pub(super) fn frequency_of(
    raw: &Raw,
    origin: Origin<'_>,
    asked: Option<Frequency>,
) -> Result<Frequency> {
    match asked {
        _ if !raw.has_time => Frequency::integer(1),
        Some(frequency) => Ok(frequency),
        None => infer(raw.axis, raw.series.iter().map(|series| series.stamps.as_slice()))
            .map_err(|error| error.context(origin.name)),
    }
}

/// The grid that every series of a table is put on.
pub(super) struct Grid<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) axis: TimeAxis,
    pub(super) frequency: Frequency,
    pub(super) policy: GapPolicy,
}

impl Grid<'_> {
    /// Inserts missing stamps and fills missing values. `places` are the stamps' places in the
    /// source; `budget` is how many cells may still be added.
    pub(super) fn regularise(
        &self,
        series: &mut Series,
        places: &[u32],
        budget: &mut usize,
        report: &mut ReadReport,
    ) -> Result<()> {
        let missing = self.count_missing(series, places)?;
        if missing > 0 {
            let cells = missing.saturating_mul(1 + series.exog.len());
            *budget = budget.checked_sub(cells).ok_or_else(|| {
                self.fault(series, format!(
                    "filling its {missing} missing stamps of `{}` goes beyond the limit of added \
                     cells, expected fewer gaps or a coarser frequency",
                    self.frequency
                ))
            })?;
            self.insert_missing(series, missing)?;
            report.missing_stamps += missing;
        }
        let empty = series.values.iter().filter(|value| value.is_nan()).count();
        report.missing_values += empty - missing;
        if empty > 0 {
            self.fill(series, places, report)?;
        }
        for column in &mut series.exog {
            fill_column(column, self.policy);
        }
        Ok(())
    }

    /// How many stamps the series skips; an error where one is off the grid.
    fn count_missing(&self, series: &Series, places: &[u32]) -> Result<usize> {
        let mut missing = 0_usize;
        for (at, pair) in series.stamps.windows(2).enumerate() {
            let steps = self.frequency.steps_between(pair[0], pair[1]).filter(|&steps| steps > 0);
            let Some(steps) = steps else {
                return Err(self.off_grid(series, places, at));
            };
            if steps > 1 && self.policy == GapPolicy::Error {
                return Err(self.fault(
                    series,
                    format!(
                        "{}stamp {} is missing before {}, expected every step of `{}`",
                        self.place(places, at + 1),
                        self.axis.text(self.frequency.advance(pair[0], 1)?),
                        self.axis.text(pair[1]),
                        self.frequency
                    ),
                ));
            }
            missing = missing.saturating_add(usize::try_from(steps - 1).unwrap_or(usize::MAX));
        }
        Ok(missing)
    }

    fn insert_missing(&self, series: &mut Series, missing: usize) -> Result<()> {
        let length = series.stamps.len() + missing;
        let columns = series.exog.len();
        let mut full = Series {
            id: std::mem::take(&mut series.id),
            stamps: Vec::with_capacity(length),
            values: Vec::with_capacity(length),
            exog: vec![Vec::with_capacity(length); columns],
        };
        for (at, &stamp) in series.stamps.iter().enumerate() {
            if let Some(&previous) = full.stamps.last() {
                let steps = self.frequency.steps_between(previous, stamp).unwrap_or(1);
                for step in 1..usize::try_from(steps).unwrap_or(1) {
                    full.stamps.push(self.frequency.advance(previous, step)?);
                    full.values.push(f32::NAN);
                    full.exog.iter_mut().for_each(|column| column.push(f32::NAN));
                }
            }
            full.stamps.push(stamp);
            // A table of future features has no target.
            full.values.extend(series.values.get(at));
            for (column, source) in full.exog.iter_mut().zip(&series.exog) {
                column.extend(source.get(at));
            }
        }
        *series = full;
        Ok(())
    }

    fn fill(&self, series: &mut Series, places: &[u32], report: &mut ReadReport) -> Result<()> {
        let first = series.values.iter().position(|value| !value.is_nan());
        match (self.policy, first) {
            (GapPolicy::Keep, _) => return Ok(()),
            (GapPolicy::Error, _) => {
                let at = series.values.iter().position(|value| value.is_nan()).unwrap_or(0);
                return Err(self.fault(
                    series,
                    format!(
                        "{}the value at {} is missing, expected a number",
                        self.place(places, at),
                        self.axis.text(series.stamps[at])
                    ),
                ));
            }
            (_, None) => {
                return Err(self.fault(series, "has no values, expected at least one".into()));
            }
            (_, Some(first)) => {
                series.stamps.drain(..first);
                series.values.drain(..first);
                series.exog.iter_mut().for_each(|column| drop(column.drain(..first)));
            }
        }
        report.filled_values += series.values.iter().filter(|value| value.is_nan()).count();
        fill_column(&mut series.values, self.policy);
        Ok(())
    }

    #[cold]
    fn off_grid(&self, series: &Series, places: &[u32], at: usize) -> Error {
        let (stamp, before) = (series.stamps[at + 1], series.stamps[at]);
        self.fault(
            series,
            format!(
                "{}stamp {} is no whole number of steps of `{}` after {}{}",
                self.place(places, at + 1),
                self.axis.text(stamp),
                self.frequency,
                self.axis.text(before),
                places.get(at).map(|p| format!(" ({} {p})", self.origin.unit)).unwrap_or_default(),
            ),
        )
    }

    fn place(&self, places: &[u32], at: usize) -> String {
        places.get(at).map(|place| format!("{} {place}: ", self.origin.unit)).unwrap_or_default()
    }

    #[cold]
    fn fault(&self, series: &Series, message: String) -> Error {
        self.origin.whole(format!("series {}: {message}", quote(&series.id)))
    }
}

/// Fills NaN; what comes before the first value takes that value.
fn fill_column(column: &mut [f32], policy: GapPolicy) {
    match policy {
        GapPolicy::Keep | GapPolicy::Error => return,
        GapPolicy::Zero => {
            column.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = 0.0);
            return;
        }
        GapPolicy::Ffill | GapPolicy::Interpolate => {}
    }
    let Some(first) = column.iter().position(|value| !value.is_nan()) else { return };
    let start = column[first];
    column[..first].fill(start);
    let mut known = first;
    for at in first + 1..column.len() {
        if column[at].is_nan() {
            continue;
        }
        let (left, right) = (f64::from(column[known]), f64::from(column[at]));
        let width = (at - known) as f64;
        let run = &mut column[known + 1..at];
        for (step, value) in run.iter_mut().enumerate() {
            let share = if policy == GapPolicy::Ffill { 0.0 } else { (step + 1) as f64 / width };
            *value = (left + (right - left) * share) as f32;
        }
        known = at;
    }
    let end = column[known];
    column[known + 1..].fill(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_by_each_policy() {
        let nan = f32::NAN;
        let column = [nan, 1.0, nan, nan, 4.0, nan];
        let filled = |policy| {
            let mut column = column;
            fill_column(&mut column, policy);
            column
        };
        assert_eq!(filled(GapPolicy::Interpolate), [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!(filled(GapPolicy::Ffill), [1.0, 1.0, 1.0, 1.0, 4.0, 4.0]);
        assert_eq!(filled(GapPolicy::Zero), [0.0, 1.0, 0.0, 0.0, 4.0, 0.0]);
        assert!(filled(GapPolicy::Keep)[0].is_nan());
    }
}
