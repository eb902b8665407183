//! Features that come in tables of their own: future values of exogenous columns, and static
//! features with one row per series.
//!
//! Both are looked up by id and by column name; what is absent is an error that names it.

use std::collections::HashMap;
use std::io::Read;

use super::cell::quote;
use super::source::read_table;
use super::table::{Origin, Purpose, Raw};
use super::{Frame, IgnoredColumn, ReadOptions, Series};
use crate::calendar::TimeAxis;
use crate::error::{Error, Result};

/// Future values of exogenous columns: an id, a stamp, and columns.
#[derive(Clone, Debug)]
pub struct FutureFrame {
    name: String,
    columns: Features,
    series: Vec<Series>,
    index: HashMap<String, usize>,
    /// Without an id column one table serves every series.
    shared: bool,
    axis: TimeAxis,
}

/// Static features: an id, and columns.
#[derive(Clone, Debug)]
pub struct StaticFrame {
    name: String,
    columns: Features,
    rows: Vec<Series>,
    index: HashMap<String, usize>,
}

#[derive(Clone, Debug)]
struct Features {
    names: Vec<String>,
    ignored: Vec<IgnoredColumn>,
}

impl Features {
    fn index(&self, table: &str, name: &str) -> Result<usize> {
        if let Some(at) = self.names.iter().position(|column| column == name) {
            return Ok(at);
        }
        let why = match self.ignored.iter().find(|column| column.name == name) {
            Some(column) => format!("is not numeric: {}", column.reason),
            None => format!("is missing, found [{}]", self.names.join(", ")),
        };
        Err(Error::data(format!("{table}: feature column {} {why}", quote(name))))
    }
}

/// Reads future values of exogenous columns from `reader`; `name` stands for it in errors.
///
/// Takes every format that [`read`](super::read) takes, in long form. The target column, where
/// there is one, is a column like any other. `options.gaps` has no effect: a stamp that a
/// forecast needs must be there.
///
/// # Errors
/// As [`read`](super::read).
pub fn read_future(reader: impl Read, name: &str, options: &ReadOptions) -> Result<FutureFrame> {
    let (raw, _) = read_table(reader, name, options, Purpose::Future)?;
    let shared = raw.names.id.is_none();
    let Raw { series, exog, ignored, axis, .. } = raw;
    let columns = Features { names: exog, ignored };
    let index = series.iter().enumerate().map(|(at, one)| (one.id.clone(), at)).collect();
    Ok(FutureFrame { name: name.to_owned(), columns, series, index, shared, axis })
}

/// Reads static features from `reader`; `name` stands for it in errors.
///
/// # Errors
/// As [`read`](super::read), and Data where an id has two rows.
pub fn read_static(reader: impl Read, name: &str, options: &ReadOptions) -> Result<StaticFrame> {
    let (raw, unit) = read_table(reader, name, options, Purpose::Static)?;
    let origin = Origin { name, unit };
    for (row, places) in raw.series.iter().zip(&raw.places) {
        if let [first, second, ..] = places.as_slice() {
            return Err(origin.at(
                u64::from(*second),
                format!(
                    "series {} appears twice (first at {unit} {first}), expected one row per \
                     series",
                    quote(&row.id)
                ),
            ));
        }
    }
    let Raw { series: rows, exog, ignored, .. } = raw;
    let columns = Features { names: exog, ignored };
    let index = rows.iter().enumerate().map(|(at, row)| (row.id.clone(), at)).collect();
    Ok(StaticFrame { name: name.to_owned(), columns, rows, index })
}

impl FutureFrame {
    /// A frame's own exogenous columns as known ahead, for forecasts from within its history.
    pub fn from_frame(frame: &Frame) -> Self {
        let columns =
            Features { names: frame.exog_columns.clone(), ignored: frame.ignored_columns.clone() };
        let index = frame.series.iter().enumerate().map(|(at, one)| (one.id.clone(), at)).collect();
        FutureFrame {
            name: "the frame".to_owned(),
            columns,
            series: frame.series.clone(),
            index,
            shared: false,
            axis: frame.axis,
        }
    }

    /// The names of the numeric columns.
    pub fn columns(&self) -> &[String] {
        &self.columns.names
    }

    /// What the table's stamps are.
    pub fn axis(&self) -> TimeAxis {
        self.axis
    }

    /// The values of `columns` at `stamps` for one series, `[F][H]`.
    ///
    /// # Errors
    /// Data, naming the series, the column or the stamp that is absent or has no value.
    pub fn values(&self, id: &str, stamps: &[i64], columns: &[String]) -> Result<Vec<Vec<f32>>> {
        let at = if self.shared { Some(0) } else { self.index.get(id).copied() };
        let series = at.and_then(|at| self.series.get(at)).ok_or_else(|| {
            Error::data(format!("{}: series {} is missing", self.name, quote(id)))
        })?;
        let mut found = Vec::with_capacity(columns.len());
        for name in columns {
            let column = self.columns.index(&self.name, name)?;
            let values = series.exog.get(column).map_or(&[][..], Vec::as_slice);
            let picked: Result<Vec<f32>> =
                stamps.iter().map(|&stamp| self.value(series, values, stamp, name)).collect();
            found.push(picked?);
        }
        Ok(found)
    }

    fn value(&self, series: &Series, values: &[f32], stamp: i64, column: &str) -> Result<f32> {
        let at = series.stamps.binary_search(&stamp).ok();
        match at.and_then(|at| values.get(at)).copied() {
            Some(value) if !value.is_nan() => Ok(value),
            found => {
                let what = if found.is_some() { "is empty" } else { "is missing" };
                Err(Error::data(format!(
                    "{}: series {}: column {} {what} at {}, expected a value for every step of \
                     the horizon",
                    self.name,
                    quote(&series.id),
                    quote(column),
                    self.axis.text(stamp)
                )))
            }
        }
    }
}

impl StaticFrame {
    /// The names of the numeric columns.
    pub fn columns(&self) -> &[String] {
        &self.columns.names
    }

    /// The values of `columns` for one series, `[F]`.
    ///
    /// # Errors
    /// Data, naming the series or the column that is absent or has no value.
    pub fn values(&self, id: &str, columns: &[String]) -> Result<Vec<f32>> {
        let row = self.index.get(id).and_then(|&at| self.rows.get(at)).ok_or_else(|| {
            Error::data(format!("{}: series {} is missing", self.name, quote(id)))
        })?;
        let value = |name: &String| {
            let column = self.columns.index(&self.name, name)?;
            let value = row.exog.get(column).and_then(|column| column.first()).copied();
            value.filter(|value| !value.is_nan()).ok_or_else(|| {
                Error::data(format!(
                    "{}: series {}: feature {} is empty, expected a number",
                    self.name,
                    quote(id),
                    quote(name)
                ))
            })
        };
        columns.iter().map(value).collect()
    }
}
