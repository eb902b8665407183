//! The way from bytes to rows: limits the input, tells its format, hands it to that format.

use std::io::{self, BufReader, Cursor, Read};

use super::table::{Origin, Purpose, Raw};
use super::{Format, ReadOptions, delimited, json};
use crate::error::{Error, ErrorKind, Result};

/// As much of an input as is looked at to tell its format; 64 KiB holds any sane header.
const PREFIX_MAX: u64 = 1 << 16;

/// An input whose first bytes are known, and which ends in an error beyond a limit.
pub(super) type Input<R> = BufReader<io::Chain<Cursor<Vec<u8>>, Limited<R>>>;

/// Reads a table; also returns what its places count ("line", "record", "row").
pub(super) fn read_table(
    reader: impl Read,
    name: &str,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<(Raw, &'static str)> {
    let (input, prefix) = open(reader, name, options)?;
    let format = options.format.unwrap_or_else(|| sniff(&prefix));
    match format {
        Format::Csv => {
            let origin = Origin { name, unit: "line" };
            Ok((delimited::read(input, &prefix, origin, options, purpose)?, "line"))
        }
        Format::Json => {
            let origin = Origin { name, unit: "record" };
            Ok((json::read(input, origin, options, purpose)?, "record"))
        }
        Format::Parquet => parquet(input, name, options, purpose),
    }
}

#[cfg(feature = "parquet")]
fn parquet(
    input: Input<impl Read>,
    name: &str,
    options: &ReadOptions,
    purpose: Purpose,
) -> Result<(Raw, &'static str)> {
    let origin = Origin { name, unit: "row" };
    Ok((super::parquet::read(input, origin, options, purpose)?, "row"))
}

#[cfg(not(feature = "parquet"))]
fn parquet(
    _: Input<impl Read>,
    name: &str,
    _: &ReadOptions,
    _: Purpose,
) -> Result<(Raw, &'static str)> {
    Err(Error::unsupported(format!(
        "{name}: is Parquet, and this build lacks the feature `parquet`"
    )))
}

fn open<R: Read>(reader: R, name: &str, options: &ReadOptions) -> Result<(Input<R>, Vec<u8>)> {
    let mut limited = Limited { inner: reader, left: options.max_bytes, limit: options.max_bytes };
    let mut prefix = Vec::new();
    limited
        .by_ref()
        .take(PREFIX_MAX)
        .read_to_end(&mut prefix)
        .map_err(|error| io_error(error, name))?;
    let whole = |message: &str| Error::data(format!("{name}: {message}"));
    if prefix.is_empty() {
        return Err(whole("is empty, expected a header and rows"));
    }
    if prefix.starts_with(&[0x1f, 0x8b]) {
        return Err(whole("is gzip-compressed, expected it unpacked"));
    }
    if prefix.starts_with(&[0xff, 0xfe]) || prefix.starts_with(&[0xfe, 0xff]) {
        return Err(whole("line 1: is UTF-16, expected UTF-8"));
    }
    if prefix.starts_with(&[0xef, 0xbb, 0xbf]) {
        prefix.drain(..3);
    }
    if prefix.iter().all(u8::is_ascii_whitespace) && (prefix.len() as u64) < PREFIX_MAX - 3 {
        return Err(whole("is empty, expected a header and rows"));
    }
    let input = BufReader::with_capacity(1 << 16, Cursor::new(prefix.clone()).chain(limited));
    Ok((input, prefix))
}

fn sniff(prefix: &[u8]) -> Format {
    if prefix.starts_with(b"PAR1") {
        return Format::Parquet;
    }
    match prefix.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{' | b'[') => Format::Json,
        _ => Format::Csv,
    }
}

/// An I/O error of `name`; an input beyond its limit is the data's fault.
#[cold]
pub(super) fn io_error(error: io::Error, name: &str) -> Error {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return Error::new(ErrorKind::Data, error).context(name);
    }
    Error::from(error).context(name)
}

/// Fails once more than its limit has been read.
pub(super) struct Limited<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => {
                self.left = left;
                Ok(count)
            }
            None => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("is longer than the limit of {} bytes", self.limit),
            )),
        }
    }
}
