//! JSON tables: an array of records, JSON lines, and pandas' column orientations.
//!
//! Records are read one by one; the column orientations are held whole while they are read,
//! at roughly ten times the memory of their values. Column order is the input's own.

use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Deserializer;

use super::ReadOptions;
use super::cell::{Cell, Row, quote};
use super::source::{Input, io_error};
use super::table::{Origin, Purpose, Raw, Table};
use crate::error::{Error, Result};

/// A JSON value that keeps the order of its keys.
#[derive(Clone, Debug)]
enum Node {
    Null,
    Flag(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Object(Object),
}

type Object = Vec<(String, Node)>;

impl Node {
    fn cell(&self) -> Cell<'_> {
        match self {
            Node::Null => Cell::Missing,
            Node::Flag(flag) => Cell::Flag(*flag),
            Node::Integer(value) => Cell::Integer(*value),
            Node::Number(value) => Cell::Number(*value),
            Node::Text(text) => Cell::Text(text),
            Node::List(_) => Cell::Nested("a list"),
            Node::Object(_) => Cell::Nested("an object"),
        }
    }

    fn is_scalar(&self) -> bool {
        !matches!(self, Node::List(_) | Node::Object(_))
    }

    fn kind(&self) -> &'static str {
        match self {
            Node::List(_) => "a list",
            Node::Object(_) => "an object",
            _ => "a single value",
        }
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> std::result::Result<Node, E> {
        Ok(Node::Flag(flag))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Node, E> {
        Ok(Node::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Node, E> {
        Ok(i64::try_from(value).map_or(Node::Number(value as f64), Node::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> std::result::Result<Node, E> {
        Ok(Node::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Object(entries))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

pub(super) fn read(
    mut input: Input<impl Read>,
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    let mut sink = Records { origin, options, purpose, header: Vec::new(), table: None, count: 0 };
    match first_byte(&mut input, origin.name)? {
        b'[' => {
            let mut deserializer = Deserializer::from_reader(input);
            let mut fault = None;
            let seed = Items { sink: &mut sink, fault: &mut fault };
            let read = seed.deserialize(&mut deserializer).and_then(|()| deserializer.end());
            if let Some(fault) = fault {
                return Err(fault);
            }
            read.map_err(|error| syntax(error, origin))?;
            sink.finish()
        }
        _ => {
            let mut objects = Deserializer::from_reader(input).into_iter::<Node>();
            while let Some(node) = objects.next() {
                let node = node.map_err(|error| syntax(error, origin))?;
                match node {
                    Node::Object(entries) if sink.count == 0 && is_columnar(&entries) => {
                        if objects.next().is_some() {
                            return Err(origin.whole("holds more than one table"));
                        }
                        return columnar(entries, origin, options, purpose);
                    }
                    node => sink.push(node)?,
                }
            }
            sink.finish()
        }
    }
}

fn first_byte(input: &mut Input<impl Read>, name: &str) -> Result<u8> {
    use std::io::BufRead;
    loop {
        let bytes = input.fill_buf().map_err(|error| io_error(error, name))?;
        match bytes.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(at) => return Ok(bytes[at]),
            None if bytes.is_empty() => {
                return Err(Error::data(format!("{name}: is empty, expected JSON")));
            }
            None => {
                let blank = bytes.len();
                input.consume(blank);
            }
        }
    }
}

#[cold]
fn syntax(error: serde_json::Error, origin: Origin<'_>) -> Error {
    if error.is_io() {
        return io_error(error.into(), origin.name);
    }
    // Its own text ends in "at line 3 column 7".
    let truncated = if error.is_eof() { "is truncated: " } else { "" };
    origin.whole(format!("{truncated}{error}, expected valid JSON"))
}

/// Pushes the elements of an array one by one, keeping the first error of the table aside.
struct Items<'s, 'a> {
    sink: &'s mut Records<'a>,
    fault: &'s mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while let Some(node) = seq.next_element::<Node>()? {
            if let Err(fault) = self.sink.push(node) {
                *self.fault = Some(fault);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Records into rows: the first one names the columns.
struct Records<'a> {
    origin: Origin<'a>,
    options: &'a ReadOptions,
    purpose: Purpose,
    header: Vec<String>,
    table: Option<Table<'a>>,
    count: u64,
}

struct Nodes(Vec<Node>);

impl Row for Nodes {
    fn cell(&self, column: usize) -> Cell<'_> {
        self.0.get(column).map_or(Cell::Missing, Node::cell)
    }
}

impl Records<'_> {
    fn push(&mut self, node: Node) -> Result<()> {
        self.count += 1;
        let entries = match node {
            Node::Object(entries) => entries,
            // A bare list of numbers is one series.
            Node::List(_) => return Err(self.fault("a list, expected a record or a number")),
            scalar => vec![("y".to_owned(), scalar)],
        };
        if self.table.is_none() {
            self.header = entries.iter().map(|(name, _)| name.clone()).collect();
            self.table =
                Some(Table::new(self.origin, self.options, self.purpose, self.header.clone())?);
        }
        let row = self.aligned(entries)?;
        match &mut self.table {
            Some(table) => table.push(self.count, &row),
            None => Ok(()),
        }
    }

    /// A record's values in the order of the first record's keys.
    fn aligned(&self, entries: Object) -> Result<Nodes> {
        let same = entries.len() == self.header.len()
            && entries.iter().zip(&self.header).all(|((name, _), column)| name == column);
        if same {
            return Ok(Nodes(entries.into_iter().map(|(_, node)| node).collect()));
        }
        let mut row = vec![Node::Null; self.header.len()];
        for (name, node) in entries {
            match self.header.iter().position(|column| *column == name) {
                Some(at) => row[at] = node,
                None => {
                    return Err(
                        self.fault(&format!("column {}, expected those of record 1", quote(&name)))
                    );
                }
            }
        }
        Ok(Nodes(row))
    }

    #[cold]
    fn fault(&self, found: &str) -> Error {
        self.origin.at(self.count, format!("found {found}"))
    }

    fn finish(self) -> Result<Raw> {
        match self.table {
            Some(table) => table.finish(),
            None => Err(self.origin.whole("has no records, expected at least one")),
        }
    }
}

fn is_columnar(entries: &Object) -> bool {
    !entries.is_empty() && entries.iter().any(|(_, node)| !node.is_scalar())
}

/// `{"columns": [...], "data": [[...]]}`, `{"data": [{...}]}`, `{"columns": {...}}`,
/// `{"y": [...]}` and `{"y": {"0": …}}`.
fn columnar(
    mut entries: Object,
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    if holds(&entries, "data", "a list") && holds(&entries, "columns", "a list") {
        let names = field(&mut entries, "columns");
        let data = field(&mut entries, "data");
        return split(names, data, origin, options, purpose);
    }
    if holds(&entries, "data", "a list") && holds(&entries, "schema", "an object") {
        let mut sink =
            Records { origin, options, purpose, header: Vec::new(), table: None, count: 0 };
        for record in field(&mut entries, "data") {
            sink.push(record)?;
        }
        return sink.finish();
    }
    match entries.as_mut_slice() {
        // Unless it is a column called `columns`: that would hold values.
        [(name, Node::Object(inner))] if name == "columns" && is_columnar(inner) => {
            columns(std::mem::take(inner), origin, options, purpose)
        }
        _ => columns(entries, origin, options, purpose),
    }
}

fn holds(entries: &Object, name: &str, kind: &str) -> bool {
    entries.iter().any(|(key, node)| key == name && node.kind() == kind)
}

/// Takes a list out of an object; empty where it is none.
fn field(entries: &mut Object, name: &str) -> Vec<Node> {
    let found = entries.iter_mut().find(|(key, _)| key == name);
    match found.map(|(_, node)| std::mem::replace(node, Node::Null)) {
        Some(Node::List(items)) => items,
        _ => Vec::new(),
    }
}

fn split(
    columns: Vec<Node>,
    data: Vec<Node>,
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    let header: Vec<String> =
        columns.iter().map(|node| node.cell().id().unwrap_or_default().into_owned()).collect();
    let width = header.len();
    let mut table = Table::new(origin, options, purpose, header)?;
    for (place, row) in (1_u64..).zip(data) {
        match row {
            Node::List(cells) if cells.len() == width => table.push(place, &Nodes(cells))?,
            Node::List(cells) => {
                let found =
                    format!("found {} values, expected {width} as in `columns`", cells.len());
                return Err(origin.at(place, found));
            }
            other => {
                return Err(origin.at(place, format!("found {}, expected a list", other.kind())));
            }
        }
    }
    table.finish()
}

struct Across<'a> {
    columns: &'a [Vec<Node>],
    at: usize,
}

impl Row for Across<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        let column = self.columns.get(column).and_then(|column| column.get(self.at));
        column.map_or(Cell::Missing, Node::cell)
    }
}

fn columns(
    entries: Object,
    origin: Origin<'_>,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<Raw> {
    let mut header = Vec::with_capacity(entries.len());
    let mut columns: Vec<Vec<Node>> = Vec::with_capacity(entries.len());
    let mut keys: Option<Vec<String>> = None;
    for (name, node) in entries {
        let (column, labels) = match node {
            Node::List(items) => (items, None),
            Node::Object(items) => {
                let (labels, items): (Vec<String>, Vec<Node>) = items.into_iter().unzip();
                (items, Some(labels))
            }
            _ => {
                return Err(origin
                    .whole(format!("column {} is a single value, expected a list", quote(&name))));
            }
        };
        if let Some(first) = columns.first().filter(|first| first.len() != column.len()) {
            return Err(origin.whole(format!(
                "column {} has {} values, expected {} as in the first column",
                quote(&name),
                column.len(),
                first.len()
            )));
        }
        if let Some(labels) = labels {
            match &keys {
                Some(first) if *first != labels => {
                    return Err(origin.whole(format!(
                        "column {} has other row labels than the columns before it",
                        quote(&name)
                    )));
                }
                Some(_) => {}
                None => keys = Some(labels),
            }
        }
        header.push(name);
        columns.push(column);
    }
    let mut table = Table::new(origin, options, purpose, header)?;
    for at in 0..columns.first().map_or(0, Vec::len) {
        table.push(at as u64 + 1, &Across { columns: &columns, at })?;
    }
    table.finish()
}
