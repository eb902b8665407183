//! One cell of a table as its source gives it, and its reading as a number or an id.
//!
//! Knows neither columns nor lines: `table` turns what is wrong here into an error that names
//! them.

use std::borrow::Cow;

/// A cell, borrowed from the row it is in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cell<'a> {
    Missing,
    Text(&'a str),
    Integer(i64),
    Number(f64),
    Flag(bool),
    /// Microseconds since the epoch, from a source that has typed stamps.
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    Micros(i64),
    /// Something that is no value, by its name: "a list".
    Nested(&'static str),
}

/// A row of cells, however its source stores it.
pub(super) trait Row {
    /// The cell of a column; `Missing` beyond the last one.
    fn cell(&self, column: usize) -> Cell<'_>;
}

/// Why a cell is no usable number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    NotANumber,
    Infinite,
    TooLarge,
}

impl Fault {
    pub(super) fn expected(self) -> &'static str {
        match self {
            Fault::NotANumber => "expected a number",
            Fault::Infinite => "expected a finite number",
            Fault::TooLarge => "expected a number within f32 (below 3.4e38)",
        }
    }
}

/// Whether text stands for a missing value: empty, `NA`, `N/A`, `NaN`, `null`, `None`, `<NA>`,
/// `NaT`, in any case.
pub(super) fn is_missing(text: &str) -> bool {
    const TOKENS: [&str; 7] = ["na", "n/a", "nan", "null", "none", "<na>", "nat"];
    let text = text.trim();
    text.is_empty()
        || (text.len() <= 4 && TOKENS.iter().any(|token| token.eq_ignore_ascii_case(text)))
}

impl<'a> Cell<'a> {
    /// The cell as a number, NaN where it is missing.
    pub(super) fn number(self) -> Result<f32, Fault> {
        let (value, finite) = match self {
            Cell::Missing => return Ok(f32::NAN),
            Cell::Text(text) => return text_number(text),
            Cell::Integer(value) => (value as f32, true),
            Cell::Number(value) if value.is_nan() => return Ok(f32::NAN),
            Cell::Number(value) => (value as f32, value.is_finite()),
            Cell::Flag(_) | Cell::Micros(_) | Cell::Nested(_) => return Err(Fault::NotANumber),
        };
        match (value.is_finite(), finite) {
            (true, _) => Ok(value),
            (false, true) => Err(Fault::TooLarge),
            (false, false) => Err(Fault::Infinite),
        }
    }

    /// As [`Cell::number`], with truth values as 1 and 0, as pandas stores indicator columns.
    pub(super) fn feature(self) -> Result<f32, Fault> {
        match self {
            Cell::Flag(flag) => Ok(f32::from(u8::from(flag))),
            Cell::Text(text) if text.trim().eq_ignore_ascii_case("true") => Ok(1.0),
            Cell::Text(text) if text.trim().eq_ignore_ascii_case("false") => Ok(0.0),
            _ => self.number(),
        }
    }

    pub(super) fn is_missing(self) -> bool {
        match self {
            Cell::Missing => true,
            Cell::Text(text) => is_missing(text),
            Cell::Number(value) => value.is_nan(),
            _ => false,
        }
    }

    /// The cell as an id; `None` where it is missing or nested.
    pub(super) fn id(self) -> Option<Cow<'a, str>> {
        match self {
            Cell::Text(text) => Some(text.trim()).filter(|text| !text.is_empty()).map(Cow::from),
            Cell::Integer(value) => Some(value.to_string().into()),
            Cell::Number(value) => Some(value.to_string().into()),
            Cell::Flag(flag) => Some(flag.to_string().into()),
            Cell::Micros(micros) => Some(micros.to_string().into()),
            Cell::Missing | Cell::Nested(_) => None,
        }
    }

    /// The cell as an error message quotes it.
    pub(super) fn quoted(self) -> String {
        match self {
            Cell::Missing => "nothing".into(),
            Cell::Text(text) => quote(text.trim()),
            Cell::Integer(value) => format!("`{value}`"),
            Cell::Number(value) => format!("`{value}`"),
            Cell::Flag(flag) => format!("`{flag}`"),
            Cell::Micros(_) => "a timestamp".into(),
            Cell::Nested(what) => what.into(),
        }
    }
}

fn text_number(text: &str) -> Result<f32, Fault> {
    let text = text.trim();
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() || value.is_nan() => Ok(value),
        // `inf` is spelled with letters; an infinity made of digits is an overflow.
        Ok(_) if text.bytes().any(|byte| byte.is_ascii_digit()) => Err(Fault::TooLarge),
        Ok(_) => Err(Fault::Infinite),
        Err(_) if is_missing(text) => Ok(f32::NAN),
        Err(_) => Err(Fault::NotANumber),
    }
}

/// Foreign text inside backticks: control characters escaped, long text cut.
pub(super) fn quote(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let mut shown = String::from("`");
    for (count, char) in text.chars().enumerate() {
        if count == SHOWN_MAX {
            shown.push('…');
            break;
        }
        if char.is_control() { shown.extend(char.escape_default()) } else { shown.push(char) }
    }
    shown.push('`');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_missing_values_and_faults() {
        let good = [("1", 1.0), (" -2.5 ", -2.5), ("1e3", 1000.0), ("+.5", 0.5), ("5.", 5.0)];
        for (text, value) in good {
            assert_eq!(Cell::Text(text).number(), Ok(value), "{text}");
        }
        for text in ["", "  ", "NA", "n/a", "NaN", "nan", "NULL", "None", "<NA>", "-nan"] {
            assert!(Cell::Text(text).number().is_ok_and(f32::is_nan), "{text}");
        }
        for text in ["abc", "1,5", "1 2", "0x10", "1_000", "--1", "é", "True"] {
            assert_eq!(Cell::Text(text).number(), Err(Fault::NotANumber), "{text}");
        }
        for text in ["inf", "-Infinity"] {
            assert_eq!(Cell::Text(text).number(), Err(Fault::Infinite), "{text}");
        }
        assert_eq!(Cell::Text("1e39").number(), Err(Fault::TooLarge));
        assert_eq!(Cell::Number(1e300).number(), Err(Fault::TooLarge));
        assert_eq!(Cell::Number(f64::INFINITY).number(), Err(Fault::Infinite));
        assert_eq!(Cell::Text("True").feature(), Ok(1.0));
        assert_eq!(Cell::Flag(false).feature(), Ok(0.0));
    }

    #[test]
    fn quoting_is_short_and_printable() {
        assert_eq!(quote("a\nb"), "`a\\nb`");
        assert_eq!(quote(&"x".repeat(100)).chars().count(), 43);
    }
}
