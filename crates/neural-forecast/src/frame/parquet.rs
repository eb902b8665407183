//! Parquet tables: long and wide ones in, forecasts out (feature `parquet`).
//!
//! Columns are read by their Parquet types; the Arrow schema that a writer may have left in the
//! file is not followed. Reads the whole file into memory, as Parquet keeps its index at the end.

use std::io::{Read, Write as IoWrite};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::cell::{Cell, Row};
use super::source::{Input, io_error};
use super::table::{Origin, Purpose, Raw, Table};
use super::{ForecastColumns, ReadOptions};
use crate::calendar::TimeAxis;
use crate::error::{Error, ErrorKind, Result};

/// Rows that are decoded, or encoded, at a time.
const BATCH_ROWS: usize = 1 << 16;

pub(super) fn read(
    mut input: Input<impl Read>,
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(|error| io_error(error, origin.name))?;
    // The decoder is not ours and checks less than it should: a panic on a malformed file
    // becomes an error here.
    catch_unwind(AssertUnwindSafe(|| read_bytes(bytes.into(), origin, options, purpose)))
        .unwrap_or_else(|_| Err(origin.whole("is malformed Parquet")))
}

fn read_bytes(
    bytes: Bytes,
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    let malformed = |error: &dyn std::fmt::Display| {
        let text = error.to_string().replace('\n', " ");
        origin.whole(format!("is malformed Parquet: {text}"))
    };
    let arrow = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, arrow)
        .map_err(|error| malformed(&error))?;
    let header = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    let batches = builder.with_batch_size(BATCH_ROWS).build().map_err(|error| malformed(&error))?;
    let mut table = Table::new(origin, options, purpose, header)?;
    let mut place = 0;
    for batch in batches {
        let batch = batch.map_err(|error| malformed(&error))?;
        for at in 0..batch.num_rows() {
            place += 1;
            table.push(place, &BatchRow { columns: batch.columns(), at })?;
        }
    }
    table.finish()
}

struct BatchRow<'a> {
    columns: &'a [ArrayRef],
    at: usize,
}

impl Row for BatchRow<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        match self.columns.get(column) {
            Some(array) if !array.is_null(self.at) => value(array, self.at),
            _ => Cell::Missing,
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef, at: usize) -> Option<T::Native> {
    array.as_primitive_opt::<T>().map(|array| array.value(at))
}

fn value(array: &ArrayRef, at: usize) -> Cell<'_> {
    let micros = |value: i64, scale: i64| value.checked_mul(scale).map(Cell::Micros);
    let cell = match array.data_type() {
        DataType::Utf8 => array.as_string_opt::<i32>().map(|array| Cell::Text(array.value(at))),
        DataType::Boolean => array.as_boolean_opt().map(|array| Cell::Flag(array.value(at))),
        DataType::Float32 => primitive::<Float32Type>(array, at).map(|v| Cell::Number(v.into())),
        DataType::Float64 => primitive::<Float64Type>(array, at).map(Cell::Number),
        DataType::Int8 => primitive::<Int8Type>(array, at).map(|v| Cell::Integer(v.into())),
        DataType::Int16 => primitive::<Int16Type>(array, at).map(|v| Cell::Integer(v.into())),
        DataType::Int32 => primitive::<Int32Type>(array, at).map(|v| Cell::Integer(v.into())),
        DataType::Int64 => primitive::<Int64Type>(array, at).map(Cell::Integer),
        DataType::UInt8 => primitive::<UInt8Type>(array, at).map(|v| Cell::Integer(v.into())),
        DataType::UInt16 => primitive::<UInt16Type>(array, at).map(|v| Cell::Integer(v.into())),
        DataType::UInt32 => primitive::<UInt32Type>(array, at).map(|v| Cell::Integer(v.into())),
        DataType::UInt64 => primitive::<UInt64Type>(array, at)
            .map(|v| i64::try_from(v).map_or(Cell::Number(v as f64), Cell::Integer)),
        DataType::Date32 => {
            primitive::<Date32Type>(array, at).and_then(|v| micros(v.into(), 86_400_000_000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            primitive::<TimestampMillisecondType>(array, at).and_then(|v| micros(v, 1000))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            primitive::<TimestampMicrosecondType>(array, at).and_then(|v| micros(v, 1))
        }
        // Finer than a microsecond is no stamp of ours.
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            primitive::<TimestampNanosecondType>(array, at)
                .filter(|v| v % 1000 == 0)
                .and_then(|v| micros(v / 1000, 1))
        }
        _ => None,
    };
    cell.unwrap_or(Cell::Nested("a value of an unsupported type or range"))
}

/// Collects rows of forecasts into batches and writes them, Snappy-compressed.
pub(super) struct Writer<W: IoWrite + Send> {
    inner: ArrowWriter<W>,
    schema: Arc<Schema>,
    axis: TimeAxis,
    ids: Vec<String>,
    stamps: Vec<i64>,
    values: Vec<Vec<f32>>,
}

impl<W: IoWrite + Send> Writer<W> {
    pub(super) fn new(writer: W, columns: &ForecastColumns) -> Result<Self> {
        let time = match columns.axis {
            TimeAxis::Integer => DataType::Int64,
            TimeAxis::DateTime(_) => DataType::Timestamp(TimeUnit::Microsecond, None),
        };
        let mut fields = vec![
            Field::new(&columns.id, DataType::Utf8, false),
            Field::new(&columns.time, time, false),
        ];
        fields.extend(columns.values.iter().map(|name| Field::new(name, DataType::Float32, true)));
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let inner =
            ArrowWriter::try_new(writer, Arc::clone(&schema), Some(properties)).map_err(failed)?;
        Ok(Writer {
            inner,
            schema,
            axis: columns.axis,
            ids: Vec::new(),
            stamps: Vec::new(),
            values: vec![Vec::new(); columns.values.len()],
        })
    }

    pub(super) fn write(&mut self, id: &str, stamps: &[i64], values: &[&[f32]]) -> Result<()> {
        self.ids.extend(std::iter::repeat_n(id.to_owned(), stamps.len()));
        self.stamps.extend_from_slice(stamps);
        for (column, new) in self.values.iter_mut().zip(values) {
            column.extend_from_slice(new);
        }
        if self.stamps.len() >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    pub(super) fn finish(mut self) -> Result<W> {
        self.flush()?;
        self.inner.into_inner().map_err(failed)
    }

    fn flush(&mut self) -> Result<()> {
        let stamps = std::mem::take(&mut self.stamps);
        if stamps.is_empty() {
            return Ok(());
        }
        let ids = std::mem::take(&mut self.ids);
        let stamps: ArrayRef = match self.axis {
            TimeAxis::Integer => Arc::new(Int64Array::from(stamps)),
            TimeAxis::DateTime(_) => Arc::new(TimestampMicrosecondArray::from(stamps)),
        };
        let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(ids)), stamps];
        for column in &mut self.values {
            let values = std::mem::take(column).into_iter();
            let values = values.map(|value| (!value.is_nan()).then_some(value));
            columns.push(Arc::new(values.collect::<Float32Array>()));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| Error::new(ErrorKind::Io, error))?;
        self.inner.write(&batch).map_err(failed)
    }
}

#[cold]
fn failed(error: parquet::errors::ParquetError) -> Error {
    Error::new(ErrorKind::Io, error.to_string().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::super::{ForecastWriter, Format, Frame, read};
    use super::*;

    fn table() -> Vec<u8> {
        let text = "unique_id,ds,y\na,2024-01-31,1\na,2024-02-29,\na,2024-03-31,3\n";
        let frame = read(text.as_bytes(), "data.csv", &ReadOptions::default()).unwrap();
        let columns = ForecastColumns::of(&frame, vec!["y".into(), "x".into()]);
        let mut writer = ForecastWriter::new(Vec::new(), Format::Parquet, columns).unwrap();
        let values = [1.5, f32::NAN, 3.5];
        writer.write("b", &frame.series[0].stamps, &[&values, &[7.0; 3]]).unwrap();
        writer.write("a", &frame.series[0].stamps, &[&[1.0; 3], &[8.0; 3]]).unwrap();
        writer.finish().unwrap()
    }

    fn read_table(bytes: &[u8]) -> Result<Frame> {
        read(bytes, "data.parquet", &ReadOptions::default())
    }

    #[test]
    fn what_is_written_reads_back() {
        let frame = read_table(&table()).unwrap();
        let ids: Vec<&str> = frame.series.iter().map(|series| series.id.as_str()).collect();
        assert_eq!(ids, ["b", "a"]);
        assert_eq!(frame.frequency.to_string(), "ME");
        assert_eq!(frame.series[0].values, [1.5, 2.5, 3.5]);
        assert_eq!(frame.series[1].exog, [[8.0; 3]]);
        assert_eq!(frame.axis.text(frame.series[0].stamps[1]), "2024-02-29");
    }

    #[test]
    fn wrong_columns_name_their_row() {
        let options = ReadOptions {
            columns: super::super::Columns { time: Some("y".into()), ..Default::default() },
            ..ReadOptions::default()
        };
        let error = read(&table()[..], "data.parquet", &options).unwrap_err().to_string();
        assert!(error.starts_with("data.parquet: row 1: column `y`: found `1.5`"), "{error}");
    }

    #[test]
    fn malformed_files_are_errors() {
        let good = table();
        for end in [4, 5, good.len() / 2, good.len() - 1] {
            let error = read_table(&good[..end]).unwrap_err().to_string();
            assert!(error.contains("malformed Parquet"), "{error}");
        }
        let mut state = 1_u64;
        for _ in 0..300 {
            let mut bytes = good.clone();
            for _ in 0..2 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::try_from(state >> 33).unwrap() % (bytes.len() - 4) + 4;
                bytes[at] ^= u8::try_from(state >> 20 & 0xff).unwrap();
            }
            // The reader must not abort the process; most mutations are errors.
            let _ = read_table(&bytes);
        }
    }
}
