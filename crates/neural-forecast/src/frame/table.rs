//! Rows into series: finds the columns of a long or a wide table and collects its series.
//!
//! Sources (delimited text, JSON, Parquet) push rows here one by one; this file does not know
//! where they come from, and leaves gaps and frequencies to `gaps`.

use std::collections::HashMap;

use super::cell::{Cell, Fault, Row, quote};
use super::{Columns, ReadOptions, Series};
use crate::calendar::{StampFormat, TimeAxis, parse_compact, parse_stamp};
use crate::error::{Error, Result};

const ID_NAMES: [&str; 4] = ["unique_id", "item_id", "series_id", "id"];
const TIME_NAMES: [&str; 5] = ["ds", "timestamp", "date", "datetime", "time"];
const TARGET_NAMES: [&str; 3] = ["y", "target", "value"];

/// Where rows come from, for error messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// The file's name.
    pub(super) name: &'a str,
    /// What a row's number counts: "line", "record", "row".
    pub(super) unit: &'static str,
}

impl Origin<'_> {
    #[cold]
    pub(super) fn at(&self, place: u64, message: impl std::fmt::Display) -> Error {
        Error::data(format!("{}: {} {place}: {message}", self.name, self.unit))
    }

    #[cold]
    pub(super) fn whole(&self, message: impl std::fmt::Display) -> Error {
        Error::data(format!("{}: {message}", self.name))
    }
}

/// What a table is read for, so that only the columns it must have are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Series with a target.
    History,
    /// Future values of exogenous columns: ids and stamps, and no target.
    Future,
    /// Static features: ids, one row each, and neither stamps nor target.
    Static,
}

/// A column left out because a cell of it is no number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredColumn {
    /// The column's name.
    pub name: String,
    /// Why: where, what was found, what was expected.
    pub reason: String,
}

/// Series as they were in the source, sorted by stamp, without duplicates, gaps still in them.
pub(super) struct Raw {
    pub(super) series: Vec<Series>,
    /// The place of each stamp in the source, per series; saturates at `u32::MAX`.
    pub(super) places: Vec<Vec<u32>>,
    pub(super) names: Columns,
    pub(super) exog: Vec<String>,
    pub(super) ignored: Vec<IgnoredColumn>,
    pub(super) axis: TimeAxis,
    /// Whether the source had stamps; without them they are 1, 2, 3, …
    pub(super) has_time: bool,
    pub(super) rows: u64,
}

#[derive(Debug)]
enum Layout {
    Long(Long),
    Wide { time: Option<usize>, targets: Vec<usize> },
}

#[derive(Debug)]
struct Long {
    id: Option<usize>,
    time: Option<usize>,
    target: Option<usize>,
    exog: Vec<Exog>,
}

#[derive(Debug)]
struct Exog {
    column: usize,
    /// Set at the first cell that is no number.
    fault: Option<String>,
}

#[derive(Default)]
struct Building {
    series: Series,
    places: Vec<u32>,
    unsorted: bool,
}

/// Collects pushed rows into series.
pub(super) struct Table<'a> {
    origin: Origin<'a>,
    columns: &'a Columns,
    purpose: Purpose,
    header: Vec<String>,
    layout: Option<Layout>,
    stamps: StampReader,
    building: Vec<Building>,
    index: HashMap<String, usize>,
    /// The series of the previous row: most files keep a series together.
    current: usize,
    rows: u64,
}

impl<'a> Table<'a> {
    pub(super) fn new(
        origin: Origin<'a>,
        options: &'a ReadOptions,
        purpose: Purpose,
        header: Vec<String>,
    ) -> Result<Self> {
        let header: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
        let mut seen = HashMap::new();
        for (at, name) in header.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            if let Some(first) = seen.insert(name.as_str(), at) {
                return Err(origin.whole(format!(
                    "column {} appears twice (columns {} and {}), expected distinct names",
                    quote(name),
                    first + 1,
                    at + 1
                )));
            }
        }
        let integer = options.frequency.map(|frequency| frequency.is_integer());
        Ok(Table {
            origin,
            columns: &options.columns,
            purpose,
            header,
            layout: None,
            stamps: StampReader::new(integer, origin.unit == "record"),
            building: Vec::new(),
            index: HashMap::new(),
            current: 0,
            rows: 0,
        })
    }

    /// Takes one row; `place` is its number in the source.
    pub(super) fn push(&mut self, place: u64, row: &impl Row) -> Result<()> {
        self.rows += 1;
        let mut layout = match self.layout.take() {
            Some(layout) => layout,
            None => self.choose_layout(row)?,
        };
        let pushed = match &mut layout {
            Layout::Long(long) => self.push_long(long, place, row),
            Layout::Wide { time, targets } => self.push_wide(*time, targets, place, row),
        };
        self.layout = Some(layout);
        pushed
    }

    fn push_long(&mut self, long: &mut Long, place: u64, row: &impl Row) -> Result<()> {
        let at = self.series_of(long, place, row)?;
        let origin = self.origin;
        let header = &self.header;
        let building = &mut self.building[at];
        let stamp = match long.time {
            Some(column) => {
                let cell = row.cell(column);
                let stamp = self.stamps.read(cell);
                stamp.map_err(|expected| fault(origin, place, header, column, cell, &expected))?
            }
            None => building.next_index(),
        };
        building.stamp(stamp, place);
        if let Some(column) = long.target {
            let cell = row.cell(column);
            building.series.values.push(
                cell.number()
                    .map_err(|what| fault(origin, place, header, column, cell, what.expected()))?,
            );
        }
        for (slot, exog) in building.series.exog.iter_mut().zip(&mut long.exog) {
            exog.push(slot, row, place, origin);
        }
        Ok(())
    }

    /// The index of the series that a row of a long table belongs to; a new one at its first row.
    fn series_of(&mut self, long: &Long, place: u64, row: &impl Row) -> Result<usize> {
        let Some(column) = long.id else {
            if self.building.is_empty() {
                let name = long.target.and_then(|column| self.header.get(column));
                let id = name.map_or("series", String::as_str).to_owned();
                self.building.push(Building::new(id, long.exog.len()));
            }
            return Ok(0);
        };
        let cell = row.cell(column);
        let id = cell.id().ok_or_else(|| {
            fault(self.origin, place, &self.header, column, cell, "expected an id")
        })?;
        if self.building.get(self.current).is_none_or(|building| building.series.id != *id) {
            self.current = match self.index.get(&*id) {
                Some(&at) => at,
                None => {
                    let at = self.building.len();
                    self.building.push(Building::new(id.to_string(), long.exog.len()));
                    self.index.insert(id.into_owned(), at);
                    at
                }
            };
        }
        Ok(self.current)
    }

    fn push_wide(
        &mut self,
        time: Option<usize>,
        targets: &[usize],
        place: u64,
        row: &impl Row,
    ) -> Result<()> {
        let origin = self.origin;
        let header = &self.header;
        if self.building.is_empty() {
            let names = targets.iter().filter_map(|&column| header.get(column));
            self.building = names.map(|name| Building::new(name.clone(), 0)).collect();
        }
        let mut stamp = None;
        if let Some(column) = time {
            let cell = row.cell(column);
            stamp = Some(
                self.stamps
                    .read(cell)
                    .map_err(|expected| fault(origin, place, header, column, cell, &expected))?,
            );
        }
        for (&column, building) in targets.iter().zip(&mut self.building) {
            let cell = row.cell(column);
            let value = cell
                .number()
                .map_err(|what| fault(origin, place, header, column, cell, what.expected()))?;
            building.stamp(stamp.unwrap_or_else(|| building.next_index()), place);
            building.series.values.push(value);
        }
        Ok(())
    }

    /// The series of all rows, each sorted by stamp.
    pub(super) fn finish(mut self) -> Result<Raw> {
        let origin = self.origin;
        let Some(layout) = self.layout.take() else {
            return Err(origin.whole("has no rows, expected at least one below its header"));
        };
        let axis = self.stamps.axis();
        let (names, has_time, exog) = match layout {
            Layout::Long(Long { id, time, target, exog }) => {
                (self.header_names(id, time, target), time.is_some(), exog)
            }
            Layout::Wide { time, .. } => {
                (self.header_names(None, time, None), time.is_some(), Vec::new())
            }
        };
        let kept: Vec<bool> = exog.iter().map(|exog| exog.fault.is_none()).collect();
        let mut raw = Raw {
            series: Vec::with_capacity(self.building.len()),
            places: Vec::with_capacity(self.building.len()),
            names,
            exog: Vec::new(),
            ignored: Vec::new(),
            axis,
            has_time,
            rows: self.rows,
        };
        for exog in exog {
            let name = self.header.get(exog.column).cloned().unwrap_or_default();
            match exog.fault {
                Some(reason) => raw.ignored.push(IgnoredColumn { name, reason }),
                None => raw.exog.push(name),
            }
        }
        for mut building in self.building {
            building.sort(origin, axis)?;
            let mut keep = kept.iter();
            building.series.exog.retain(|_| keep.next().copied().unwrap_or(false));
            raw.series.push(building.series);
            raw.places.push(building.places);
        }
        Ok(raw)
    }

    fn header_names(
        &self,
        id: Option<usize>,
        time: Option<usize>,
        target: Option<usize>,
    ) -> Columns {
        let name = |column: Option<usize>| column.and_then(|at| self.header.get(at)).cloned();
        Columns { id: name(id), time: name(time), target: name(target) }
    }

    fn choose_layout(&self, row: &impl Row) -> Result<Layout> {
        let id = self.find("id", self.columns.id.as_deref(), &ID_NAMES)?;
        let time = match self.purpose {
            Purpose::Static => None,
            _ => match self.find("time", self.columns.time.as_deref(), &TIME_NAMES)? {
                Some(column) => Some(column),
                None => self.only_date(row)?,
            },
        };
        let mut target = match self.purpose {
            Purpose::History => {
                self.find("target", self.columns.target.as_deref(), &TARGET_NAMES)?
            }
            Purpose::Future | Purpose::Static => None,
        };
        let rest = |target: Option<usize>| -> Vec<usize> {
            let taken = [id, time, target];
            (0..self.header.len())
                .filter(|&column| !taken.contains(&Some(column)) && !self.is_row_index(column))
                .collect()
        };
        let others = rest(target);
        match (self.purpose, target, id, others.as_slice()) {
            (Purpose::Future, ..) if time.is_none() || others.is_empty() => {
                return Err(self.lacks("a time column and at least one feature column"));
            }
            (Purpose::Static, ..) if id.is_none() || others.is_empty() => {
                return Err(self.lacks("an id column and at least one feature column"));
            }
            (Purpose::History, None, Some(_), [only]) => target = Some(*only),
            (Purpose::History, None, Some(_), _) => {
                return Err(self.lacks("a target column (y, target, value or --target-col)"));
            }
            (Purpose::History, None, None, _) => return self.wide(time, others, row),
            _ => {}
        }
        let exog = rest(target).into_iter().map(|column| Exog { column, fault: None }).collect();
        Ok(Layout::Long(Long { id, time, target, exog }))
    }

    fn wide(&self, time: Option<usize>, targets: Vec<usize>, row: &impl Row) -> Result<Layout> {
        if targets.is_empty() {
            return Err(self.lacks("at least one column of numbers"));
        }
        let text = targets.iter().find(|&&column| row.cell(column).number().is_err());
        match text {
            // A file of one column holds nothing but its series: the value is at fault.
            Some(&column) if targets.len() > 1 || time.is_some() => Err(self.lacks(&format!(
                "only numbers beside a time column, or an id and a target column, named by \
                 --id-col and --target-col ({} holds {})",
                quote(self.header.get(column).map_or("", String::as_str)),
                row.cell(column).quoted()
            ))),
            _ => Ok(Layout::Wide { time, targets }),
        }
    }

    #[cold]
    fn lacks(&self, expected: &str) -> Error {
        const SHOWN_MAX: usize = 12;
        let mut found: Vec<String> =
            self.header.iter().take(SHOWN_MAX).map(|name| quote(name)).collect();
        if self.header.len() > SHOWN_MAX {
            found.push(format!("… ({} in all)", self.header.len()));
        }
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        self.origin.whole(format!("found columns {found}, expected {expected}"))
    }

    fn find(&self, role: &str, asked: Option<&str>, known: &[&str]) -> Result<Option<usize>> {
        let position = |wanted: &str| {
            self.header
                .iter()
                .position(|name| name == wanted)
                .or_else(|| self.header.iter().position(|name| name.eq_ignore_ascii_case(wanted)))
        };
        match asked {
            None => Ok(known.iter().find_map(|name| position(name))),
            Some(name) => match position(name) {
                Some(at) => Ok(Some(at)),
                None => Err(self.lacks(&format!("the {role} column {}", quote(name)))),
            },
        }
    }

    /// The one column that holds a date, whatever its name.
    fn only_date(&self, row: &impl Row) -> Result<Option<usize>> {
        let mut dates = (0..self.header.len()).filter(|&column| match row.cell(column) {
            Cell::Text(text) => parse_stamp(text).is_some(),
            Cell::Micros(_) => true,
            _ => false,
        });
        match (dates.next(), dates.next()) {
            (Some(_), Some(_)) => {
                Err(self.lacks("one column of dates, or one named by --time-col"))
            }
            (first, _) => Ok(first),
        }
    }

    /// The row numbers that pandas writes by default, under no name.
    fn is_row_index(&self, column: usize) -> bool {
        self.header.get(column).is_some_and(|name| {
            name.is_empty()
                || name == "__index_level_0__"
                || name.strip_prefix("Unnamed: ").is_some_and(|n| n.parse::<u32>().is_ok())
        })
    }
}

#[cold]
fn fault(
    origin: Origin<'_>,
    place: u64,
    header: &[String],
    column: usize,
    cell: Cell<'_>,
    expected: &str,
) -> Error {
    let name = header.get(column).map_or("", String::as_str);
    origin.at(place, format!("column {}: found {}, {expected}", quote(name), cell.quoted()))
}

impl Exog {
    fn push(&mut self, slot: &mut Vec<f32>, row: &impl Row, place: u64, origin: Origin<'_>) {
        if self.fault.is_some() {
            return;
        }
        let cell = row.cell(self.column);
        match cell.feature() {
            Ok(value) => slot.push(value),
            Err(fault) => {
                self.fault = Some(format!(
                    "{} {place}: found {}, {}",
                    origin.unit,
                    cell.quoted(),
                    Fault::expected(fault)
                ));
            }
        }
    }
}

impl Building {
    fn new(id: String, exog: usize) -> Self {
        let series = Series { id, exog: vec![Vec::new(); exog], ..Series::default() };
        Building { series, ..Building::default() }
    }

    fn next_index(&self) -> i64 {
        self.series.stamps.last().map_or(1, |last| last.saturating_add(1))
    }

    fn stamp(&mut self, stamp: i64, place: u64) {
        if self.series.stamps.last().is_some_and(|&last| last >= stamp) {
            self.unsorted = true;
        }
        self.series.stamps.push(stamp);
        self.places.push(u32::try_from(place).unwrap_or(u32::MAX));
    }

    /// Sorts by stamp; equal stamps are an error that names both places.
    fn sort(&mut self, origin: Origin<'_>, axis: TimeAxis) -> Result<()> {
        if !self.unsorted {
            return Ok(());
        }
        let stamps = &self.series.stamps;
        let mut order: Vec<usize> = (0..stamps.len()).collect();
        order.sort_by_key(|&at| stamps[at]);
        for pair in order.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            if stamps[first] == stamps[second] {
                return Err(origin.at(
                    u64::from(self.places[second]),
                    format!(
                        "series {} has stamp {} twice (first at {} {}), expected one row per \
                         stamp",
                        quote(&self.series.id),
                        axis.text(stamps[first]),
                        origin.unit,
                        self.places[first]
                    ),
                ));
            }
        }
        self.series.stamps = reordered(&self.series.stamps, &order);
        self.series.values = reordered(&self.series.values, &order);
        self.places = reordered(&self.places, &order);
        for column in &mut self.series.exog {
            *column = reordered(column, &order);
        }
        Ok(())
    }
}

/// `items` in `order`; columns without items (a dropped exogenous one, no target) stay as they
/// are.
fn reordered<T: Copy>(items: &[T], order: &[usize]) -> Vec<T> {
    order.iter().filter_map(|&at| items.get(at)).copied().collect()
}

/// Reads stamps of one kind: the first one decides which.
pub(super) struct StampReader {
    kind: Option<StampKind>,
    format: StampFormat,
    /// What the asked frequency needs, if one was asked.
    integer: Option<bool>,
    /// pandas writes stamps to JSON as milliseconds since the epoch.
    epoch_millis: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StampKind {
    Integer,
    Millis,
    Compact,
    Text,
    Typed,
}

impl StampReader {
    pub(super) fn new(integer: Option<bool>, epoch_millis: bool) -> Self {
        StampReader { kind: None, format: StampFormat::default(), integer, epoch_millis }
    }

    pub(super) fn axis(&self) -> TimeAxis {
        match self.kind {
            None | Some(StampKind::Integer) => TimeAxis::Integer,
            _ => TimeAxis::DateTime(self.format),
        }
    }

    /// The stamp in a cell, or what was expected instead.
    pub(super) fn read(&mut self, cell: Cell<'_>) -> std::result::Result<i64, String> {
        let kind = match self.kind {
            Some(kind) => kind,
            None => self.decide(cell)?,
        };
        let stamp = match (kind, cell) {
            (StampKind::Text, Cell::Text(text)) => parse_stamp(text),
            (StampKind::Compact, Cell::Text(text)) => parse_compact(text),
            (StampKind::Compact, Cell::Integer(value)) => parse_compact(&value.to_string()),
            (StampKind::Integer, Cell::Integer(value)) => return Ok(value),
            (StampKind::Integer, Cell::Text(text)) => {
                return text
                    .trim()
                    .parse()
                    .map_err(|_| "expected an integer stamp like the first one".to_owned());
            }
            (StampKind::Millis, Cell::Integer(value)) => value.checked_mul(1000).and_then(typed),
            (StampKind::Typed, Cell::Micros(value)) => typed(value),
            _ => None,
        };
        let Some((stamp, format)) = stamp else {
            return Err(match kind {
                StampKind::Text => "expected a date like 2024-01-31 or 2024-01-31 18:00:00",
                StampKind::Compact => "expected a date like 20240131, as the first stamp is",
                StampKind::Integer => "expected an integer stamp like the first one",
                StampKind::Millis => "expected milliseconds since 1970, as the first stamp is",
                StampKind::Typed => "expected a timestamp between the years 1 and 9999",
            }
            .to_owned());
        };
        if self.kind.is_none() {
            self.format = format;
        } else {
            self.format.merge(format);
        }
        self.kind = Some(kind);
        Ok(stamp)
    }

    fn decide(&mut self, cell: Cell<'_>) -> std::result::Result<StampKind, String> {
        let integer = match cell {
            Cell::Text(text) => text.trim().parse::<i64>().ok(),
            Cell::Integer(value) => Some(value),
            _ => None,
        };
        let kind = match (cell, integer) {
            (Cell::Micros(_), _) => StampKind::Typed,
            (_, Some(_)) if self.integer == Some(true) => StampKind::Integer,
            (_, Some(value)) if parse_compact(&value.to_string()).is_some() => StampKind::Compact,
            (_, Some(value)) if self.epoch_millis && value.unsigned_abs() >= 100_000_000_000 => {
                StampKind::Millis
            }
            (_, Some(_)) => StampKind::Integer,
            _ => StampKind::Text,
        };
        match (self.integer, kind == StampKind::Integer) {
            (Some(true), false) => {
                Err("expected an integer stamp, as the frequency is an integer".to_owned())
            }
            (Some(false), true) => {
                Err("expected a date, as the frequency is one of dates".to_owned())
            }
            _ => {
                if kind == StampKind::Integer {
                    self.kind = Some(kind);
                }
                Ok(kind)
            }
        }
    }
}

fn typed(micros: i64) -> Option<(i64, StampFormat)> {
    crate::calendar::in_range(micros).then(|| (micros, StampFormat::for_stamp(micros)))
}
