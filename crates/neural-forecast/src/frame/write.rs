//! Forecasts out: long tables as neuralforecast names their columns, to a stream or to a file
//! that appears only once it is complete.
//!
//! Writes one series at a time, so that memory does not grow with their number.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Format, Frame};
use crate::calendar::TimeAxis;
use crate::error::{Error, Result, ResultExt as _};

/// The columns of a table of forecasts.
#[derive(Clone, Debug, PartialEq)]
pub struct ForecastColumns {
    /// The id column's name.
    pub id: String,
    /// The time column's name.
    pub time: String,
    /// How stamps are printed.
    pub axis: TimeAxis,
    /// The forecasts' names: `LSTM-median`, `LSTM-lo-90`, …
    pub values: Vec<String>,
}

impl ForecastColumns {
    /// The columns of forecasts for `frame`: its names, and stamps in its input's look.
    pub fn of(frame: &Frame, values: Vec<String>) -> Self {
        ForecastColumns {
            id: frame.id_column.clone(),
            time: frame.time_column.clone(),
            axis: frame.axis.for_frequency(&frame.frequency),
            values,
        }
    }
}

/// Writes forecasts series by series to a stream.
///
/// CSV and JSON print the shortest text that reads back as the same `f32`; NaN is an empty
/// field in CSV and `null` in JSON. JSON is an array of records.
pub struct ForecastWriter<W: Write + Send> {
    columns: ForecastColumns,
    sink: Sink<W>,
    /// One series' rows.
    text: String,
    rows: u64,
}

enum Sink<W: Write + Send> {
    Csv(BufWriter<W>),
    /// The keys of a record, quoted and ready to print: id, time, then values.
    Json(BufWriter<W>, Vec<String>),
    #[cfg(feature = "parquet")]
    Parquet(Box<super::parquet::Writer<W>>),
}

impl<W: Write + Send> ForecastWriter<W> {
    /// Starts a table on `writer`.
    ///
    /// # Errors
    /// Io; Unsupported for Parquet without its feature.
    pub fn new(writer: W, format: Format, columns: ForecastColumns) -> Result<Self> {
        let sink = match format {
            Format::Csv => {
                let mut writer = BufWriter::with_capacity(1 << 16, writer);
                let mut header = String::new();
                let names = [&columns.id, &columns.time].into_iter().chain(&columns.values);
                for (at, name) in names.enumerate() {
                    if at > 0 {
                        header.push(',');
                    }
                    push_field(name, &mut header);
                }
                header.push('\n');
                writer.write_all(header.as_bytes())?;
                Sink::Csv(writer)
            }
            Format::Json => {
                let mut writer = BufWriter::with_capacity(1 << 16, writer);
                writer.write_all(b"[")?;
                let names = [&columns.id, &columns.time].into_iter().chain(&columns.values);
                Sink::Json(writer, names.map(|name| json_text(name)).collect())
            }
            Format::Parquet => parquet_sink(writer, &columns)?,
        };
        Ok(ForecastWriter { columns, sink, text: String::new(), rows: 0 })
    }

    /// Writes one series: `stamps` `[H]` and, for each column, `values` `[H]`.
    ///
    /// # Errors
    /// Io; Usage when the lengths are not those.
    pub fn write(&mut self, id: &str, stamps: &[i64], values: &[&[f32]]) -> Result<()> {
        let lengths_agree = values.len() == self.columns.values.len()
            && values.iter().all(|column| column.len() == stamps.len());
        if !lengths_agree {
            return Err(Error::usage(format!(
                "forecasts of series `{id}` have {} columns, expected {} of {} steps",
                values.len(),
                self.columns.values.len(),
                stamps.len()
            )));
        }
        self.text.clear();
        match &mut self.sink {
            Sink::Csv(writer) => {
                csv_rows(id, self.columns.axis, stamps, values, &mut self.text);
                writer.write_all(self.text.as_bytes())?;
            }
            Sink::Json(writer, keys) => {
                let first = self.rows == 0;
                json_rows(id, self.columns.axis, stamps, values, (keys, first), &mut self.text);
                writer.write_all(self.text.as_bytes())?;
            }
            #[cfg(feature = "parquet")]
            Sink::Parquet(writer) => writer.write(id, stamps, values)?,
        }
        self.rows += stamps.len() as u64;
        Ok(())
    }

    /// Ends the table, flushes it and gives the stream back.
    ///
    /// # Errors
    /// Io.
    pub fn finish(self) -> Result<W> {
        let writer = match self.sink {
            Sink::Csv(writer) => writer,
            Sink::Json(mut writer, _) => {
                writer.write_all(if self.rows == 0 { b"]\n" } else { b"\n]\n" })?;
                writer
            }
            #[cfg(feature = "parquet")]
            Sink::Parquet(writer) => return writer.finish(),
        };
        writer.into_inner().map_err(|error| Error::from(error.into_error()))
    }
}

#[cfg(feature = "parquet")]
fn parquet_sink<W: Write + Send>(writer: W, columns: &ForecastColumns) -> Result<Sink<W>> {
    Ok(Sink::Parquet(Box::new(super::parquet::Writer::new(writer, columns)?)))
}

#[cfg(not(feature = "parquet"))]
fn parquet_sink<W: Write + Send>(_: W, _: &ForecastColumns) -> Result<Sink<W>> {
    Err(Error::unsupported("writing Parquet needs the feature `parquet`, which this build lacks"))
}

fn csv_rows(id: &str, axis: TimeAxis, stamps: &[i64], values: &[&[f32]], out: &mut String) {
    let mut quoted = String::new();
    push_field(id, &mut quoted);
    for (step, &stamp) in stamps.iter().enumerate() {
        out.push_str(&quoted);
        out.push(',');
        axis.write(stamp, out);
        for column in values {
            out.push(',');
            let value = column[step];
            if !value.is_nan() {
                let _ = write!(out, "{value:?}");
            }
        }
        out.push('\n');
    }
}

fn json_rows(
    id: &str,
    axis: TimeAxis,
    stamps: &[i64],
    values: &[&[f32]],
    (keys, mut first): (&[String], bool),
    out: &mut String,
) {
    let id = json_text(id);
    for (step, &stamp) in stamps.iter().enumerate() {
        out.push_str(if first { "\n{" } else { ",\n{" });
        first = false;
        let mut keys = keys.iter();
        let mut key = || keys.next().map_or("\"\"", String::as_str);
        let _ = write!(out, "{}:{id},{}:", key(), key());
        let quote = if axis.is_integer() { "" } else { "\"" };
        out.push_str(quote);
        axis.write(stamp, out);
        out.push_str(quote);
        for column in values {
            let value = column[step];
            if value.is_finite() {
                let _ = write!(out, ",{}:{value:?}", key());
            } else {
                let _ = write!(out, ",{}:null", key());
            }
        }
        out.push('}');
    }
}

/// A field of CSV, in quotes where its text needs them.
fn push_field(text: &str, out: &mut String) {
    let plain = !text.contains([',', '"', '\n', '\r']) && text.trim() == text;
    if plain && !text.is_empty() {
        out.push_str(text);
        return;
    }
    out.push('"');
    for char in text.chars() {
        if char == '"' {
            out.push('"');
        }
        out.push(char);
    }
    out.push('"');
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Writes forecasts to a file that appears only once it is complete: a temporary file in the
/// same folder, synced and renamed by [`ForecastFile::commit`], removed if that is never called.
///
/// A path that names a pipe or a device is written directly.
pub struct ForecastFile {
    writer: ForecastWriter<File>,
    target: PathBuf,
    temporary: Option<Temporary>,
}

impl ForecastFile {
    /// Starts a table at `path`; `format: None` goes by the file's name, CSV where that says
    /// nothing.
    ///
    /// # Errors
    /// Io when the folder cannot be written; Unsupported for Parquet without its feature.
    pub fn create(
        path: impl AsRef<Path>,
        format: Option<Format>,
        columns: ForecastColumns,
    ) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let format = format.or_else(|| Format::from_path(path)).unwrap_or(Format::Csv);
        // A link is followed, so that it stays a link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let special = fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file());
        let (file, temporary) = if special {
            let file = OpenOptions::new().write(true).open(&target).with_context(|| &name)?;
            (file, None)
        } else {
            let (file, temporary) = Temporary::beside(&target).with_context(|| &name)?;
            (file, Some(temporary))
        };
        let writer = ForecastWriter::new(file, format, columns).with_context(|| &name)?;
        Ok(ForecastFile { writer, target, temporary })
    }

    /// Writes one series; see [`ForecastWriter::write`].
    ///
    /// # Errors
    /// As [`ForecastWriter::write`].
    pub fn write(&mut self, id: &str, stamps: &[i64], values: &[&[f32]]) -> Result<()> {
        let target = &self.target;
        self.writer.write(id, stamps, values).with_context(|| target.display())
    }

    /// Ends the table and puts the file in its place.
    ///
    /// # Errors
    /// Io; then nothing has changed at the path.
    pub fn commit(self) -> Result<()> {
        let ForecastFile { writer, target, temporary } = self;
        let name = || target.display();
        let file = writer.finish().with_context(name)?;
        match temporary {
            Some(temporary) => {
                file.sync_all().with_context(name)?;
                temporary.rename(&target).with_context(name)
            }
            None => Ok(()),
        }
    }
}

/// Creates `path` with `bytes` in one step: whole or not at all.
///
/// # Errors
/// Io; then nothing has changed at the path.
pub fn write_whole(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = || path.display();
    if fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        return fs::write(&target, bytes).with_context(name);
    }
    let (mut file, temporary) = Temporary::beside(&target).with_context(name)?;
    file.write_all(bytes).with_context(name)?;
    file.sync_all().with_context(name)?;
    temporary.rename(&target).with_context(name)
}

/// A file beside its target that is removed unless it is renamed.
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn beside(target: &Path) -> std::io::Result<(File, Self)> {
        let stem = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut attempt = 0_u32;
        loop {
            let name = format!(".{stem}.{}-{attempt}.tmp", std::process::id());
            let path = target.with_file_name(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((file, Temporary { path, renamed: false })),
                Err(error)
                    if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn rename(mut self, target: &Path) -> std::io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        // The rename is durable once the folder is synced; where a folder cannot be opened for
        // that, the file is still whole.
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}
