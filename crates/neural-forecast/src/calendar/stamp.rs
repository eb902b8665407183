//! Stamps as text: reading them, and writing them back in the look they came in.
//!
//! Knows no frequencies and no series. Everything is UTC: a stamp with an offset is converted,
//! a stamp without one is taken as UTC, so daylight saving never enters.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::Offset;

use super::Frequency;

/// Microseconds in a day.
pub(super) const DAY_US: i64 = 86_400_000_000;

/// What the stamps of a series are, and how they looked in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeAxis {
    /// Plain integers: 1, 2, 3.
    Integer,
    /// Instants in UTC, as microseconds since 1970-01-01T00:00:00Z.
    DateTime(StampFormat),
}

impl TimeAxis {
    /// Whether stamps are plain integers.
    pub fn is_integer(self) -> bool {
        self == TimeAxis::Integer
    }

    /// The same axis, fine enough for stamps that `frequency` makes: dates become dates with a
    /// time once a step is shorter than a day.
    #[must_use]
    pub fn for_frequency(self, frequency: &Frequency) -> Self {
        match self {
            TimeAxis::Integer => self,
            TimeAxis::DateTime(mut format) => {
                let mut needed = frequency.needed_precision();
                if format.precision <= Precision::Day && needed == Precision::Minute {
                    // Dates that need a time get seconds as well, as pandas prints them.
                    needed = Precision::Second;
                }
                format.precision = format.precision.max(needed);
                TimeAxis::DateTime(format)
            }
        }
    }

    /// Appends `stamp` as text to `out`.
    pub fn write(self, stamp: i64, out: &mut String) {
        match self {
            TimeAxis::Integer => {
                let _ = write!(out, "{stamp}");
            }
            TimeAxis::DateTime(format) => format.write(stamp, out),
        }
    }

    /// `stamp` as text.
    pub fn text(self, stamp: i64) -> String {
        let mut out = String::with_capacity(26);
        self.write(stamp, &mut out);
        out
    }
}

/// How a date is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DateStyle {
    Dashes,
    Slashes,
    Compact,
}

/// The finest field that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Precision {
    Month,
    Day,
    Minute,
    Second,
    /// Seconds with this many digits after the point, 1 to 6.
    Fraction(u8),
}

/// The look of datetime stamps: `2024-01-31`, `2024/01/31`, `2024-01-31T00:00:00Z`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampFormat {
    date: DateStyle,
    precision: Precision,
    t_separator: bool,
    utc_mark: bool,
}

impl Default for StampFormat {
    /// `2024-01-31`, or `2024-01-31 00:00:00` where a frequency needs a time.
    fn default() -> Self {
        StampFormat {
            date: DateStyle::Dashes,
            precision: Precision::Day,
            t_separator: false,
            utc_mark: false,
        }
    }
}

impl StampFormat {
    /// The finest of both precisions, otherwise the look of `self`.
    pub(crate) fn merge(&mut self, other: StampFormat) {
        if other.precision > self.precision {
            self.precision = other.precision;
            self.t_separator = other.t_separator;
            self.utc_mark = other.utc_mark;
        }
    }

    /// The default look with as many digits as `stamp` needs.
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    pub(crate) fn for_stamp(stamp: i64) -> Self {
        let of_second = stamp.rem_euclid(1_000_000);
        let precision = if stamp.rem_euclid(DAY_US) == 0 {
            Precision::Day
        } else if of_second == 0 {
            Precision::Second
        } else if of_second % 1000 == 0 {
            Precision::Fraction(3)
        } else {
            Precision::Fraction(6)
        };
        StampFormat { precision, ..StampFormat::default() }
    }

    fn write(self, stamp: i64, out: &mut String) {
        let Some(at) = to_civil(stamp) else {
            // Stamps are range-checked where they are made; a foreign one is still printed.
            let _ = write!(out, "{stamp}us");
            return;
        };
        let (year, month, day) = (at.year(), at.month(), at.day());
        let _ = match (self.date, self.precision) {
            (DateStyle::Dashes, Precision::Month) if day == 1 => {
                write!(out, "{year:04}-{month:02}")
            }
            (DateStyle::Slashes, Precision::Month) if day == 1 => {
                write!(out, "{year:04}/{month:02}")
            }
            (DateStyle::Dashes, _) => write!(out, "{year:04}-{month:02}-{day:02}"),
            (DateStyle::Slashes, _) => write!(out, "{year:04}/{month:02}/{day:02}"),
            (DateStyle::Compact, _) => write!(out, "{year:04}{month:02}{day:02}"),
        };
        if self.precision <= Precision::Day {
            return;
        }
        out.push(if self.t_separator { 'T' } else { ' ' });
        let _ = write!(out, "{:02}:{:02}", at.hour(), at.minute());
        if self.precision >= Precision::Second {
            let _ = write!(out, ":{:02}", at.second());
        }
        if let Precision::Fraction(digits) = self.precision {
            let micros = at.subsec_nanosecond() / 1000;
            let scale = 10_i32.pow(6 - u32::from(digits.min(6)));
            let _ = write!(out, ".{:0width$}", micros / scale, width = usize::from(digits.min(6)));
        }
        if self.utc_mark {
            out.push('Z');
        }
    }
}

/// Reads one datetime stamp: `YYYY-MM-DD`, `YYYY/MM/DD`, `YYYY-MM`, each with an optional
/// ` HH:MM[:SS[.ffffff]]` (or `T` in between) and an optional `Z` or `±HH[:MM]`.
///
/// Returns microseconds since the epoch in UTC and the look; `None` where the text is no such
/// stamp, names a day that does not exist, or is finer than a microsecond.
pub fn parse_stamp(text: &str) -> Option<(i64, StampFormat)> {
    let mut scan = Scan { bytes: text.trim().as_bytes(), at: 0 };
    let year = scan.digits(4, 4)?;
    let date = match scan.next()? {
        b'-' => DateStyle::Dashes,
        b'/' => DateStyle::Slashes,
        _ => return None,
    };
    let month = scan.digits(1, 2)?;
    let mut format = StampFormat { date, precision: Precision::Month, ..StampFormat::default() };
    let mut day = 1;
    if let Some(separator) = scan.next() {
        if separator != if date == DateStyle::Dashes { b'-' } else { b'/' } {
            return None;
        }
        day = scan.digits(1, 2)?;
        format.precision = Precision::Day;
    }
    let midnight = civil_micros(year, month, day)?;
    let Some(separator) = scan.next() else { return Some((midnight, format)) };
    format.t_separator = match separator {
        b'T' | b't' => true,
        b' ' => false,
        _ => return None,
    };
    let of_day = scan.clock(&mut format)?;
    let offset = scan.zone(&mut format)?;
    let stamp = midnight.checked_add(of_day)?.checked_sub(offset)?;
    to_civil(stamp).map(|_| (stamp, format))
}

/// Reads an eight-digit date, `YYYYMMDD`, of the years 1900 to 2100.
pub(crate) fn parse_compact(text: &str) -> Option<(i64, StampFormat)> {
    let mut scan = Scan { bytes: text.trim().as_bytes(), at: 0 };
    let (year, month, day) = (scan.digits(4, 4)?, scan.digits(2, 2)?, scan.digits(2, 2)?);
    if scan.next().is_some() || !(1900..=2100).contains(&year) {
        return None;
    }
    let format = StampFormat { date: DateStyle::Compact, ..StampFormat::default() };
    Some((civil_micros(year, month, day)?, format))
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// A number of `least` to `most` digits.
    fn digits(&mut self, least: usize, most: usize) -> Option<i64> {
        let mut value = 0;
        let mut count = 0;
        while count < most {
            let Some(byte) = self.peek().filter(u8::is_ascii_digit) else { break };
            value = value * 10 + i64::from(byte - b'0');
            self.at += 1;
            count += 1;
        }
        (count >= least).then_some(value)
    }

    /// `HH:MM[:SS[.fraction]]` as microseconds of the day.
    fn clock(&mut self, format: &mut StampFormat) -> Option<i64> {
        let hour = self.digits(1, 2).filter(|&hour| hour < 24)?;
        if self.next()? != b':' {
            return None;
        }
        let minute = self.digits(2, 2).filter(|&minute| minute < 60)?;
        format.precision = Precision::Minute;
        let mut micros = (hour * 60 + minute) * 60_000_000;
        if self.peek() == Some(b':') {
            self.at += 1;
            micros += self.digits(2, 2).filter(|&second| second < 60)? * 1_000_000;
            format.precision = Precision::Second;
            if self.peek() == Some(b'.') {
                self.at += 1;
                micros += self.fraction(format)?;
            }
        }
        Some(micros)
    }

    /// Digits after the point as microseconds; finer digits must be zero.
    fn fraction(&mut self, format: &mut StampFormat) -> Option<i64> {
        let start = self.at;
        let mut micros = 0;
        let mut place = 100_000;
        while let Some(byte) = self.peek().filter(u8::is_ascii_digit) {
            let digit = i64::from(byte - b'0');
            if place == 0 && digit != 0 {
                return None;
            }
            micros += digit * place;
            place /= 10;
            self.at += 1;
        }
        let digits = (self.at - start).min(6);
        format.precision = Precision::Fraction(u8::try_from(digits).ok().filter(|&d| d > 0)?);
        Some(micros)
    }

    /// The offset from UTC in microseconds, up to the end of the text.
    fn zone(&mut self, format: &mut StampFormat) -> Option<i64> {
        let rest = self.bytes.get(self.at..)?;
        match rest.trim_ascii_start() {
            [] => return Some(0),
            [b'Z' | b'z'] | b"UTC" => {
                format.utc_mark = true;
                return Some(0);
            }
            _ => {}
        }
        let sign = match self.next()? {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let hours = self.digits(2, 2).filter(|&hours| hours < 24)?;
        if self.peek() == Some(b':') {
            self.at += 1;
        }
        let minutes = if self.peek().is_some() { self.digits(2, 2)? } else { 0 };
        if self.next().is_some() || minutes >= 60 {
            return None;
        }
        // The output is in UTC, and says so wherever the input named its offset.
        format.utc_mark = true;
        Some(sign * (hours * 60 + minutes) * 60_000_000)
    }
}

fn civil_micros(year: i64, month: i64, day: i64) -> Option<i64> {
    let date =
        Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, i8::try_from(day).ok()?);
    Some(day_of(date.ok()?)? * DAY_US)
}

/// The UTC date and time of a stamp; `None` outside the calendar's range.
pub(super) fn to_civil(stamp: i64) -> Option<DateTime> {
    Timestamp::from_microsecond(stamp).ok().map(|at| Offset::UTC.to_datetime(at))
}

/// Days since 1970-01-01 of a date; `None` outside the calendar's range.
pub(super) fn day_of(date: Date) -> Option<i64> {
    let at = Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
    Some(at.as_second().div_euclid(86_400))
}

/// The date that is `day` days after 1970-01-01; `None` outside the calendar's range.
pub(super) fn date_of(day: i64) -> Option<Date> {
    to_civil(day.checked_mul(DAY_US)?).map(|at| at.date())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_documented_form() {
        let cases = [
            ("1970-01-01", 0),
            ("1970-01-02", DAY_US),
            ("1969-12-31", -DAY_US),
            ("1970/01/02", DAY_US),
            ("1970/1/2", DAY_US),
            ("1970-02", 31 * DAY_US),
            ("1970-01-01 01:00", 3_600_000_000),
            ("1970-01-01T01:00:01", 3_601_000_000),
            ("1970-01-01 00:00:00.5", 500_000),
            ("1970-01-01 00:00:00.000001000", 1),
            ("1970-01-01T01:00:00Z", 3_600_000_000),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T01:00:00+0100", 0),
            ("1970-01-01T01:00:00+01", 0),
            ("1970-01-01T00:00:00-00:30", 1_800_000_000),
            (" 1970-01-01 ", 0),
        ];
        for (text, micros) in cases {
            assert_eq!(parse_stamp(text).map(|(stamp, _)| stamp), Some(micros), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_stamp() {
        let bad = [
            "",
            "x",
            "2024",
            "2024-13-01",
            "2024-02-30",
            "2023-02-29",
            "2024-01-01 24:00",
            "2024-01-01 10:60",
            "2024-01-01 10:00:61",
            "2024-01-01 10",
            "2024-01-01x",
            "2024-01/01",
            "2024-01-01 10:00:00.",
            "2024-01-01 10:00:00.0000001",
            "99999-01-01",
            "2024-01-01T10:00:00+25:00",
            "2024-01-01T10:00:00+1",
            "01/02/2024",
            "2024-1-1-1",
            "9999-12-31 23:59:59",
            "é2024-01-01",
            "2024-01-0é",
        ];
        for text in bad {
            assert_eq!(parse_stamp(text), None, "{text}");
        }
        for text in ["20240230", "18991231", "2024010", "202401011"] {
            assert_eq!(parse_compact(text), None, "{text}");
        }
    }

    #[test]
    fn writes_in_the_look_it_read() {
        let same = [
            "2024-02-29",
            "2024/02/29",
            "2024-02",
            "2024-02-29 10:30",
            "2024-02-29 10:30:05",
            "2024-02-29T10:30:05Z",
            "2024-02-29 10:30:05.250",
            "2024-02-29T10:30:05.000001",
        ];
        for text in same {
            let (stamp, format) = parse_stamp(text).unwrap();
            assert_eq!(TimeAxis::DateTime(format).text(stamp), text);
        }
        let (stamp, format) = parse_compact("20240229").unwrap();
        assert_eq!(TimeAxis::DateTime(format).text(stamp), "20240229");
        assert_eq!(TimeAxis::Integer.text(-3), "-3");
    }

    #[test]
    fn dates_gain_a_time_only_where_the_frequency_needs_it() {
        let (stamp, format) = parse_stamp("2024-02-29").unwrap();
        let text = |freq: &str| {
            let freq: Frequency = freq.parse().unwrap();
            TimeAxis::DateTime(format).for_frequency(&freq).text(stamp)
        };
        assert_eq!(text("D"), "2024-02-29");
        assert_eq!(text("ME"), "2024-02-29");
        assert_eq!(text("h"), "2024-02-29 00:00:00");
        assert_eq!(text("500ms"), "2024-02-29 00:00:00.000");
        let (stamp, format) = parse_stamp("2024-02-29 10:15").unwrap();
        let axis = TimeAxis::DateTime(format);
        assert_eq!(axis.for_frequency(&"15min".parse().unwrap()).text(stamp), "2024-02-29 10:15");
    }
}
