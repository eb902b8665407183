//! Series in, forecasts out: tables of time series, read from and written to CSV, JSON, Parquet.
//!
//! [`read`] takes any of four shapes and finds out which it has: **long** (`unique_id`, `ds`,
//! `y` and exogenous columns, under these or the usual other names), **wide** (a time column
//! and one column per series), **M4** (one row per series: an id, then its values) and a
//! **single column**. Series keep the order in which they first appear (neuralforecast sorts
//! them by id: see [`Frame::sorted_by_id`]), rows are sorted by stamp, and the result is on the
//! grid of one frequency, its gaps filled by a [`GapPolicy`].
//!
//! What this is not: a data frame library. There is no join, no group-by, and no text column.

mod cell;
mod delimited;
mod features;
mod gaps;
mod json;
#[cfg(feature = "parquet")]
mod parquet;
mod source;
mod table;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::calendar::{Frequency, TimeAxis};
use crate::error::{Error, Result};

pub use self::features::{FutureFrame, StaticFrame, read_future, read_static};
pub use self::gaps::GapPolicy;
pub use self::table::IgnoredColumn;
pub use self::write::{ForecastColumns, ForecastFile, ForecastWriter, write_whole};

use self::table::{Purpose, Raw};

/// One series on its frequency's grid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its id: a cell of the id column, a column's name, or an M4 row's first cell.
    pub id: String,
    /// Stamps `[T]`: microseconds since 1970 in UTC or integers, see [`Frame::axis`]; increasing.
    pub stamps: Vec<i64>,
    /// Target values `[T]`; NaN is missing.
    pub values: Vec<f32>,
    /// Exogenous columns `[F][T]`, in the order of [`Frame::exog_columns`]; NaN is missing.
    pub exog: Vec<Vec<f32>>,
}

impl Series {
    /// The number of time steps T.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no time step.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The last stamp.
    pub fn last_stamp(&self) -> Option<i64> {
        self.stamps.last().copied()
    }
}

/// Many series on the grid of one frequency.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// The series, in the order of their first appearance.
    pub series: Vec<Series>,
    /// The name of the id column, `unique_id` where the input had none.
    pub id_column: String,
    /// The name of the time column, `ds` where the input had none.
    pub time_column: String,
    /// The name of the target column, `y` where the input had none.
    pub target_column: String,
    /// The names of the exogenous columns, in input order.
    pub exog_columns: Vec<String>,
    /// Columns of the input that hold text, and were left out.
    pub ignored_columns: Vec<IgnoredColumn>,
    /// What stamps are and how they looked in the input.
    pub axis: TimeAxis,
    /// The distance between neighbouring stamps: asked for, or inferred.
    pub frequency: Frequency,
    /// What reading found and changed.
    pub report: ReadReport,
}

/// What reading found and changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Rows of the input (series, where each row is one).
    pub rows: u64,
    /// Stamps that the grid has and the input lacked.
    pub missing_stamps: usize,
    /// Target values that were missing in rows that were there.
    pub missing_values: usize,
    /// Target values that the gap policy made up.
    pub filled_values: usize,
}

impl Frame {
    /// A frame of series made in code, under neuralforecast's column names.
    ///
    /// # Errors
    /// Data, when lengths disagree or stamps are not on the grid of `frequency`.
    pub fn from_series(
        axis: TimeAxis,
        frequency: Frequency,
        exog_columns: Vec<String>,
        series: Vec<Series>,
    ) -> Result<Self> {
        for one in &series {
            let lengths_agree = one.stamps.len() == one.values.len()
                && one.exog.len() == exog_columns.len()
                && one.exog.iter().all(|column| column.len() == one.values.len());
            if !lengths_agree {
                return Err(Error::data(format!(
                    "series `{}` has {} stamps, {} values and {} exogenous columns, expected \
                     equal lengths and {} columns",
                    one.id,
                    one.stamps.len(),
                    one.values.len(),
                    one.exog.len(),
                    exog_columns.len()
                )));
            }
            let off = one
                .stamps
                .windows(2)
                .find(|pair| frequency.steps_between(pair[0], pair[1]) != Some(1));
            if let Some(pair) = off {
                return Err(Error::data(format!(
                    "series `{}`: stamp {} does not follow {} by one step of `{frequency}`",
                    one.id,
                    axis.text(pair[1]),
                    axis.text(pair[0])
                )));
            }
        }
        Ok(Frame {
            series,
            id_column: "unique_id".into(),
            time_column: "ds".into(),
            target_column: "y".into(),
            exog_columns,
            ignored_columns: Vec::new(),
            axis,
            frequency,
            report: ReadReport::default(),
        })
    }

    /// The frame with its series sorted by id, as neuralforecast has them.
    #[must_use]
    pub fn sorted_by_id(mut self) -> Self {
        self.series.sort_by(|a, b| a.id.cmp(&b.id));
        self
    }

    /// The same columns, axis and frequency over other series.
    #[must_use]
    pub fn with_series(&self, series: Vec<Series>) -> Self {
        Frame {
            series,
            id_column: self.id_column.clone(),
            time_column: self.time_column.clone(),
            target_column: self.target_column.clone(),
            exog_columns: self.exog_columns.clone(),
            ignored_columns: self.ignored_columns.clone(),
            axis: self.axis,
            frequency: self.frequency,
            report: self.report,
        }
    }

    /// Where an exogenous column is.
    ///
    /// # Errors
    /// Data, when the frame has no such column or it holds text; the message says which.
    pub fn exog_index(&self, name: &str) -> Result<usize> {
        if let Some(at) = self.exog_columns.iter().position(|column| column == name) {
            return Ok(at);
        }
        match self.ignored_columns.iter().find(|column| column.name == name) {
            Some(column) => Err(Error::data(format!(
                "exogenous column `{name}` is not numeric: {}",
                column.reason
            ))),
            None => Err(Error::data(format!(
                "exogenous column `{name}` is missing, found [{}]",
                self.exog_columns.join(", ")
            ))),
        }
    }

    /// The `horizon` stamps after a series' last one; the axis to print them with is
    /// `self.axis.for_frequency(&self.frequency)`.
    ///
    /// # Errors
    /// Data, when the series is empty or its future leaves the calendar.
    pub fn future_stamps(&self, series: &Series, horizon: usize) -> Result<Vec<i64>> {
        let last = series
            .last_stamp()
            .ok_or_else(|| Error::data(format!("series `{}` is empty", series.id)))?;
        self.frequency.future(last, horizon)
    }

    fn from_raw(raw: Raw, origin: table::Origin<'_>, options: &ReadOptions) -> Result<Self> {
        let frequency = gaps::frequency_of(&raw, origin, options.frequency)?;
        let Raw { mut series, places, names, exog, ignored, axis, rows, .. } = raw;
        let mut report = ReadReport { rows, ..ReadReport::default() };
        let grid = gaps::Grid { origin, axis, frequency, policy: options.gaps };
        let mut budget = options.max_inserted;
        for (one, places) in series.iter_mut().zip(&places) {
            grid.regularise(one, places, &mut budget, &mut report)?;
        }
        Ok(Frame {
            series,
            id_column: names.id.unwrap_or_else(|| "unique_id".into()),
            time_column: names.time.unwrap_or_else(|| "ds".into()),
            target_column: names.target.unwrap_or_else(|| "y".into()),
            exog_columns: exog,
            ignored_columns: ignored,
            axis,
            frequency,
            report,
        })
    }
}

/// Names of columns; `None` finds them by the usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The series' id; found under `unique_id`, `item_id`, `series_id`, `id`.
    pub id: Option<String>,
    /// The stamp; found under `ds`, `timestamp`, `date`, `datetime`, `time`, or as the only
    /// column of dates.
    pub time: Option<String>,
    /// The target; found under `y`, `target`, `value`.
    pub target: Option<String>,
}

/// How a table is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Delimited text: comma, semicolon or tab.
    Csv,
    /// An array of records, JSON lines, or one of pandas' column orientations.
    Json,
    /// Apache Parquet; needs the feature `parquet`.
    Parquet,
}

impl Format {
    /// The format that a file's name says it has.
    pub fn from_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "csv" | "tsv" | "txt" => Some(Format::Csv),
            "json" | "jsonl" | "ndjson" => Some(Format::Json),
            "parquet" | "pq" => Some(Format::Parquet),
            _ => None,
        }
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "csv" => Ok(Format::Csv),
            "json" => Ok(Format::Json),
            "parquet" => Ok(Format::Parquet),
            _ => Err(Error::usage(format!(
                "format `{text}` is not known, expected csv, json or parquet"
            ))),
        }
    }
}

/// How to read a table.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadOptions {
    /// The format; `None` goes by the file's first bytes.
    pub format: Option<Format>,
    /// Names of columns.
    pub columns: Columns,
    /// The delimiter of text; `None` takes the most frequent of `,`, `;`, tab in the first line.
    pub delimiter: Option<u8>,
    /// The frequency; `None` infers it. A table without stamps has integer ones and step 1
    /// whatever is asked here.
    pub frequency: Option<Frequency>,
    /// What to do with missing stamps and values.
    pub gaps: GapPolicy,
    /// Bytes that are read at most; a longer input is an error.
    pub max_bytes: u64,
    /// Cells (stamps × columns) that gaps may add in all; more is an error.
    pub max_inserted: usize,
}

impl Default for ReadOptions {
    /// Finds everything out itself; at most 4 GiB of input and 10 million added cells (40 MB of
    /// values).
    fn default() -> Self {
        ReadOptions {
            format: None,
            columns: Columns::default(),
            delimiter: None,
            frequency: None,
            gaps: GapPolicy::default(),
            max_bytes: 4 << 30,
            max_inserted: 10_000_000,
        }
    }
}

/// Reads series from `reader`; `name` stands for it in errors.
///
/// # Errors
/// Data, naming the line (or record, or row), the column, what was found and what was expected;
/// Io; Unsupported for Parquet without its feature.
///
/// ```
/// use neural_forecast::frame::{ReadOptions, read};
///
/// let csv = "unique_id,ds,y\na,2024-01-31,1\na,2024-02-29,2\na,2024-03-31,4\n";
/// let frame = read(csv.as_bytes(), "sales.csv", &ReadOptions::default())?;
/// assert_eq!(frame.frequency.to_string(), "ME");
/// let future = frame.future_stamps(&frame.series[0], 1)?;
/// assert_eq!(frame.axis.text(future[0]), "2024-04-30");
/// # Ok::<(), neural_forecast::Error>(())
/// ```
pub fn read(reader: impl Read, name: &str, options: &ReadOptions) -> Result<Frame> {
    let (raw, unit) = source::read_table(reader, name, options, Purpose::History)?;
    Frame::from_raw(raw, table::Origin { name, unit }, options)
}

/// Reads series from a file; see [`read`].
///
/// # Errors
/// As [`read`], and Io when the file cannot be opened.
pub fn read_path(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Frame> {
    let path = path.as_ref();
    let (file, name, options) = open(path, options)?;
    read(file, &name, &options)
}

/// Opens `path` and fixes the format by its name where the options leave it open.
fn open(path: &Path, options: &ReadOptions) -> Result<(File, String, ReadOptions)> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| Error::from(error).context(&name))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Error::data(format!("{name}: is a folder, expected a file")));
    }
    let mut options = options.clone();
    options.format = options.format.or_else(|| Format::from_path(path));
    Ok((file, name, options))
}

#[cfg(test)]
mod tests;
