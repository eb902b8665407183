//! Delimited text: long and wide tables, M4's one row per series, and a single column.
//!
//! Takes quotes, CRLF and a byte-order mark; does not take decimal commas or comment lines.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use csv::{ByteRecord, ReaderBuilder, Terminator};

use super::cell::{Cell, Row, quote};
use super::source::{Input, io_error};
use super::table::{Origin, Purpose, Raw, Table};
use super::{Columns, ReadOptions, Series};
use crate::calendar::{TimeAxis, parse_stamp};
use crate::error::{Error, Result};

pub(super) fn read(
    input: Input<impl Read>,
    prefix: &[u8],
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    match options.delimiter.or_else(|| sniff_delimiter(prefix)) {
        Some(delimiter) => {
            Rows::new(input, delimiter, terminator(prefix), origin).read(options, purpose)
        }
        None => single_column(input, origin, options, purpose),
    }
}

/// The most frequent delimiter of the first line outside quotes; `None` where it has none.
fn sniff_delimiter(prefix: &[u8]) -> Option<u8> {
    let mut counts = [(b',', 0), (b';', 0), (b'\t', 0)];
    let mut quoted = false;
    for &byte in prefix.iter().skip_while(|byte| byte.is_ascii_whitespace()) {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => break,
            _ if quoted => {}
            _ => counts.iter_mut().filter(|(d, _)| *d == byte).for_each(|(_, n)| *n += 1),
        }
    }
    // Of equally frequent ones the first: `max_by_key` would return the last.
    let (delimiter, count) = counts.into_iter().rev().max_by_key(|&(_, count)| count)?;
    (count > 0).then_some(delimiter)
}

/// Lines end in `\n`, so that lines are counted exactly (a `\r` before it is trimmed as blank);
/// only a file without any is taken to end its lines in `\r`.
fn terminator(prefix: &[u8]) -> Terminator {
    if prefix.contains(&b'\n') { Terminator::Any(b'\n') } else { Terminator::CRLF }
}

/// A record whose fields are known to be UTF-8.
struct Fields<'a>(&'a ByteRecord);

impl Row for Fields<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        match self.0.get(column).map(std::str::from_utf8) {
            Some(Ok(text)) => Cell::Text(text),
            _ => Cell::Missing,
        }
    }
}

struct Rows<'a, R> {
    reader: csv::Reader<R>,
    origin: Origin<'a>,
    record: ByteRecord,
    /// The line on which `record` begins.
    line: u64,
}

impl<'a, R: Read> Rows<'a, R> {
    fn new(input: R, delimiter: u8, terminator: Terminator, origin: Origin<'a>) -> Self {
        let reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .terminator(terminator)
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(1 << 16)
            .from_reader(input);
        Rows { reader, origin, record: ByteRecord::new(), line: 0 }
    }

    /// Reads the next record that is no blank line; `false` at the end.
    fn advance(&mut self) -> Result<bool> {
        while self.advance_any()? {
            let blank = self.record.len() == 1 && self.record.as_slice().trim_ascii().is_empty();
            if !blank {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn advance_any(&mut self) -> Result<bool> {
        let more = self.reader.read_byte_record(&mut self.record).map_err(|error| {
            match error.into_kind() {
                csv::ErrorKind::Io(error) => io_error(error, self.origin.name),
                kind => self.origin.whole(format!("{kind:?}")),
            }
        })?;
        if !more {
            return Ok(false);
        }
        // The reader knows where it looked for the record; blank lines may lie before its start.
        // Quoted fields may hold line ends, which lie after it.
        let bytes = self.record.as_slice();
        let inner = bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.line = self.record.position().map_or(0, csv::Position::line);
        let after = self.reader.position().line();
        self.line = self.line.max(after.saturating_sub(inner + 1));
        if !bytes.is_ascii() {
            for (column, field) in self.record.iter().enumerate() {
                if std::str::from_utf8(field).is_err() {
                    return Err(self.origin.at(
                        self.line,
                        format!("column {} is not UTF-8, expected UTF-8 text", column + 1),
                    ));
                }
            }
        }
        Ok(true)
    }

    fn texts(&self) -> Vec<String> {
        let fields = self.record.iter().map(String::from_utf8_lossy);
        fields.map(|field| field.trim().to_owned()).collect()
    }

    fn read(mut self, options: &ReadOptions, purpose: Purpose) -> Result<Raw> {
        if !self.advance()? {
            return Err(self.origin.whole("is empty, expected a header and rows"));
        }
        let header = self.texts();
        if purpose == Purpose::History && options.columns == Columns::default() {
            if is_m4_header(&header) {
                return self.read_m4(Some(header.len()));
            }
            if is_m4_row(&header) {
                return self.read_m4(None);
            }
        }
        if header.iter().all(|name| Cell::Text(name).number().is_ok()) {
            return Err(self.origin.at(
                self.line,
                format!("found only numbers ({} columns), expected a header", header.len()),
            ));
        }
        if let Some(date) = header.iter().find(|name| parse_stamp(name).is_some()) {
            return Err(self
                .origin
                .at(self.line, format!("found the date {}, expected a header", quote(date))));
        }
        let width = header.len();
        let mut table = Table::new(self.origin, options, purpose, header)?;
        while self.advance()? {
            if self.record.len() != width {
                return Err(self.origin.at(
                    self.line,
                    format!("found {} fields, expected {width} as in line 1", self.record.len()),
                ));
            }
            table.push(self.line, &Fields(&self.record))?;
        }
        table.finish()
    }

    /// One series a row. `width` is that of the header; without one the current record is data.
    fn read_m4(mut self, width: Option<usize>) -> Result<Raw> {
        let mut raw = Raw {
            series: Vec::new(),
            places: Vec::new(),
            names: Columns::default(),
            exog: Vec::new(),
            ignored: Vec::new(),
            axis: TimeAxis::Integer,
            has_time: false,
            rows: 0,
        };
        let mut seen: HashMap<String, u64> = HashMap::new();
        let mut more = width.is_none() || self.advance()?;
        while more {
            let series = self.m4_series(width)?;
            if let Some(first) = seen.insert(series.id.clone(), self.line) {
                return Err(self.origin.at(
                    self.line,
                    format!(
                        "series {} appears twice (first at line {first}), expected one row per \
                         series",
                        quote(&series.id)
                    ),
                ));
            }
            raw.places.push(Vec::new());
            raw.series.push(series);
            raw.rows += 1;
            more = self.advance()?;
        }
        if raw.series.is_empty() {
            return Err(self.origin.whole("has no rows, expected at least one below its header"));
        }
        Ok(raw)
    }

    fn m4_series(&self, width: Option<usize>) -> Result<Series> {
        let at = |message: String| self.origin.at(self.line, message);
        if let Some(width) = width.filter(|&width| self.record.len() > width) {
            return Err(at(format!(
                "found {} fields, expected at most {width} as in line 1",
                self.record.len()
            )));
        }
        let fields = Fields(&self.record);
        let id = fields.cell(0).id().ok_or_else(|| at("column 1: found no id".to_owned()))?;
        // Shorter series are padded with blanks to the longest one's width.
        let mut end = self.record.len();
        while end > 1 && fields.cell(end - 1).is_missing() {
            end -= 1;
        }
        if end == 1 {
            return Err(at(format!("series {} has no values", quote(&id))));
        }
        let mut values = Vec::with_capacity(end - 1);
        for column in 1..end {
            let cell = fields.cell(column);
            values.push(cell.number().map_err(|fault| {
                let (found, expected) = (cell.quoted(), fault.expected());
                at(format!("column {}: found {found}, {expected}", column + 1))
            })?);
        }
        let stamps = (1..=values.len()).map(|step| step as i64).collect();
        Ok(Series { id: id.into_owned(), stamps, values, exog: Vec::new() })
    }
}

/// `V1, V2, …, Vn`, or an id column before `V`s or numbers, as M4's files begin.
fn is_m4_header(header: &[String]) -> bool {
    let numbered = |name: &String| {
        let digits = name.strip_prefix(['V', 'v']).unwrap_or(name);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let id = |name: &String| {
        ["unique_id", "item_id", "series_id", "id"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
            || (name.starts_with(['V', 'v']) && numbered(name))
    };
    match header {
        [first, rest @ ..] => rest.len() >= 2 && id(first) && rest.iter().all(numbered),
        [] => false,
    }
}

/// An id and at least two numbers: a row of M4 without a header above it.
fn is_m4_row(fields: &[String]) -> bool {
    match fields {
        [first, rest @ ..] => {
            Cell::Text(first).number().is_err()
                && parse_stamp(first).is_none()
                && rest.len() >= 2
                && rest.iter().all(|field| Cell::Text(field).number().is_ok())
                && !Cell::Text(&rest[0]).is_missing()
        }
        [] => false,
    }
}

/// One number a line, with or without a name in the first one. Blank lines between numbers are
/// missing values; blank lines at the end are nothing.
fn single_column(
    mut input: Input<impl Read>,
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    let mut table = None;
    let mut blanks = 0_u64;
    let mut line = Vec::new();
    for place in 1_u64.. {
        line.clear();
        // A line that never ends is bounded by the input's limit.
        if input.read_until(b'\n', &mut line).map_err(|e| io_error(e, origin.name))? == 0 {
            break;
        }
        let text = std::str::from_utf8(&line)
            .map_err(|_| origin.at(place, "is not UTF-8, expected UTF-8 text"))?
            .trim();
        if text.is_empty() {
            blanks += u64::from(table.is_some());
            continue;
        }
        let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
        let table = match &mut table {
            Some(table) => table,
            none => {
                let named = Cell::Text(text).number().is_err();
                let name = if named { text } else { "y" };
                let new = Table::new(origin, options, purpose, vec![name.to_owned()])?;
                let new = none.insert(new);
                if named {
                    continue;
                }
                new
            }
        };
        for missed in (1..=std::mem::take(&mut blanks)).rev() {
            table.push(place - missed, &Single(""))?;
        }
        table.push(place, &Single(text))?;
    }
    table.map_or_else(
        || Err(Error::data(format!("{}: is empty, expected a column of numbers", origin.name))),
        Table::finish,
    )
}

struct Single<'a>(&'a str);

impl Row for Single<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        if column == 0 { Cell::Text(self.0) } else { Cell::Missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_counted_outside_quotes() {
        assert_eq!(sniff_delimiter(b"a,b;c,d\n;;;;;"), Some(b','));
        assert_eq!(sniff_delimiter(b"\"a,b,c\";d\n"), Some(b';'));
        assert_eq!(sniff_delimiter(b"a\tb\r\n"), Some(b'\t'));
        assert_eq!(sniff_delimiter(b"value\n1\n"), None);
        assert_eq!(sniff_delimiter(b"a,b;c"), Some(b','));
    }

    #[test]
    fn m4_is_told_by_its_header_or_its_row() {
        let names = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        assert!(is_m4_header(&names("V1,V2,V3")));
        assert!(is_m4_header(&names("id,V2,V3")));
        assert!(is_m4_header(&names("unique_id,1,2,3")));
        assert!(!is_m4_header(&names("date,V1,V2")));
        assert!(!is_m4_header(&names("unique_id,ds,y")));
        assert!(is_m4_row(&names("H1,605,586")));
        assert!(!is_m4_row(&names("H1,2024-01-01,5")));
    }
}
