//! Frequencies and the stamps they make: parsing pandas' names, inference, calendar-correct steps.
//!
//! Not a time-zone library: every stamp is UTC (see [`parse_stamp`]), so a day has 24 hours.
//!
//! A step follows pandas' offsets. Ticks (`D` and shorter) add a duration; anchored frequencies
//! (`B`, `W`, `ME`, `QS`, …) go to the n-th anchor strictly after a stamp's date and keep its
//! time of day, which is also how pandas rolls forward from a stamp that is on no anchor.

mod stamp;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;

use crate::error::{Error, Result};

pub(crate) use self::stamp::parse_compact;
use self::stamp::{DAY_US, Precision, date_of, day_of, to_civil};
pub use self::stamp::{StampFormat, TimeAxis, parse_stamp};

/// Ticks with their pandas names, longest first, in microseconds.
const TICKS: [(&str, i64); 6] = [
    ("D", DAY_US),
    ("h", 3_600_000_000),
    ("min", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1000),
    ("us", 1),
];
const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
/// Monday first, as the anchors of weeks are counted.
const WEEKDAYS: [&str; 7] = ["MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];
/// 1970-01-01 was a Thursday, three days after a Monday.
const EPOCH_WEEKDAY: i64 = 3;
/// Steps and multiples stay below this: an hour in nanoseconds, as integer stamps may have it,
/// fits; sums of two never overflow.
const STEP_MAX: i64 = 1_000_000_000_000_000;

/// The distance between neighbouring stamps of a series: a pandas offset, or an integer step.
///
/// Parses from pandas' names, old and new: `h|H`, `min|T`, `s|S`, `ms|L`, `us|U`, `D`, `B`,
/// `W`, `W-MON`…`W-SUN`, `ME|M`, `MS`, `QE|Q|QS` and `YE|Y|A|YS|AS` with an optional month
/// (`QE-NOV`), each with an optional multiple (`15min`, `2W`), sums of ticks (`1D12h`), and a
/// bare positive integer for integer stamps. Prints as pandas' newest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frequency {
    unit: Unit,
    /// Integers, microseconds of a tick, or a count of anchors; at least 1.
    step: i64,
}

/// Months are 0 for January to 11; weekdays are 0 for Monday to 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    Index,
    Tick,
    BusinessDay,
    Week(i64),
    /// Anchors in months ≡ `month` modulo `period` months, on their last or first day.
    Months {
        period: i64,
        month: i64,
        end: bool,
    },
}

impl Frequency {
    /// A step of `step` for integer stamps.
    ///
    /// # Errors
    /// When `step` is 0 or beyond 10^15.
    pub fn integer(step: u64) -> Result<Self> {
        match i64::try_from(step) {
            Ok(step) if (1..=STEP_MAX).contains(&step) => Ok(Frequency { unit: Unit::Index, step }),
            _ => {
                Err(Error::usage(format!("integer frequency is {step}, expected 1 to {STEP_MAX}")))
            }
        }
    }

    /// Whether this is a step between integer stamps.
    pub fn is_integer(&self) -> bool {
        self.unit == Unit::Index
    }

    /// The length of the usual season in steps, as GluonTS and the M4 competition have it:
    /// an hour of seconds, a day of minutes or hours, a week of business days, a year of months
    /// or quarters, otherwise 1; divided by the multiple where that divides it, else 1.
    pub fn season(&self) -> usize {
        let (season, step) = match self.unit {
            Unit::Index | Unit::Week(_) => (1, 1),
            Unit::Tick if self.step % DAY_US == 0 => (1, 1),
            Unit::Tick if self.step % 3_600_000_000 == 0 => (24, self.step / 3_600_000_000),
            Unit::Tick if self.step % 60_000_000 == 0 => (1440, self.step / 60_000_000),
            Unit::Tick if self.step % 1_000_000 == 0 => (3600, self.step / 1_000_000),
            Unit::Tick => (1, 1),
            Unit::BusinessDay => (5, self.step),
            Unit::Months { period, .. } => (12, period.saturating_mul(self.step)),
        };
        if season % step == 0 { usize::try_from(season / step).unwrap_or(1) } else { 1 }
    }

    /// The stamp `n` ≥ 1 steps after `stamp`.
    ///
    /// # Errors
    /// Data, where that is outside the calendar (years to 9999) or the integers.
    pub fn advance(&self, stamp: i64, n: usize) -> Result<i64> {
        i64::try_from(n)
            .ok()
            .and_then(|n| self.step.checked_mul(n))
            .and_then(|count| self.add(stamp, count))
            .ok_or_else(|| {
                Error::data(format!(
                    "{n} steps of `{self}` after {} leave the calendar's range",
                    self.describe(stamp)
                ))
            })
    }

    /// The `horizon` stamps that follow `last`.
    ///
    /// # Errors
    /// As [`Frequency::advance`].
    pub fn future(&self, last: i64, horizon: usize) -> Result<Vec<i64>> {
        if matches!(self.unit, Unit::Index | Unit::Tick) && horizon > 0 {
            // Equal steps: where the first and the last are in the calendar, all are.
            let (first, end) = (self.advance(last, 1)?, self.advance(last, horizon)?);
            debug_assert_eq!(end - first, self.step * (horizon as i64 - 1));
            return Ok((0..horizon as i64).map(|n| first + self.step * n).collect());
        }
        (1..=horizon).map(|n| self.advance(last, n)).collect()
    }

    /// How many steps lie between two stamps: `None` where `to` is not on the grid of `from`.
    ///
    /// Anchored frequencies compare the anchors on or after each date, so that a series stamped
    /// on the 15th has the grid of `MS` as well as one stamped on the 1st.
    pub fn steps_between(&self, from: i64, to: i64) -> Option<i64> {
        let distance = match self.unit {
            Unit::Index | Unit::Tick => to.checked_sub(from)?,
            _ if from.rem_euclid(DAY_US) != to.rem_euclid(DAY_US) => return None,
            _ => self.anchor_from(to)?.checked_sub(self.anchor_from(from)?)?,
        };
        (distance % self.step == 0).then_some(distance / self.step)
    }

    /// Whether `stamp` is one of this frequency's anchors; ticks and integers have none, so that
    /// every stamp is.
    pub fn is_anchor(&self, stamp: i64) -> bool {
        match self.unit {
            Unit::Index | Unit::Tick => true,
            _ => {
                let day = stamp.div_euclid(DAY_US);
                self.anchor_until(day).and_then(|index| self.anchor_day(index)) == Some(day)
            }
        }
    }

    fn needed_precision(&self) -> Precision {
        match self.unit {
            Unit::Months { end: false, .. } => Precision::Month,
            Unit::Tick if self.step % DAY_US == 0 => Precision::Day,
            Unit::Tick if self.step % 60_000_000 == 0 => Precision::Minute,
            Unit::Tick if self.step % 1_000_000 == 0 => Precision::Second,
            Unit::Tick if self.step % 1000 == 0 => Precision::Fraction(3),
            Unit::Tick => Precision::Fraction(6),
            _ => Precision::Day,
        }
    }

    fn describe(&self, stamp: i64) -> String {
        let format = StampFormat::default();
        let axis = if self.is_integer() { TimeAxis::Integer } else { TimeAxis::DateTime(format) };
        axis.for_frequency(self).text(stamp)
    }

    /// `count` is in the units of `step`.
    fn add(&self, stamp: i64, count: i64) -> Option<i64> {
        match self.unit {
            Unit::Index => stamp.checked_add(count),
            Unit::Tick => stamp.checked_add(count).filter(|&stamp| to_civil(stamp).is_some()),
            _ => {
                let (day, of_day) = (stamp.div_euclid(DAY_US), stamp.rem_euclid(DAY_US));
                let index = self.anchor_until(day)?.checked_add(count)?;
                let stamp = self.anchor_day(index)?.checked_mul(DAY_US)?.checked_add(of_day)?;
                to_civil(stamp).map(|_| stamp)
            }
        }
    }

    /// The index of the first anchor on or after a stamp's date.
    fn anchor_from(&self, stamp: i64) -> Option<i64> {
        let day = stamp.div_euclid(DAY_US);
        let index = self.anchor_until(day)?;
        if self.anchor_day(index)? == day { Some(index) } else { index.checked_add(1) }
    }

    /// The index of the last anchor on or before a day. Indices count anchors, from an
    /// arbitrary zero.
    fn anchor_until(&self, day: i64) -> Option<i64> {
        match self.unit {
            Unit::Index | Unit::Tick => Some(day),
            Unit::BusinessDay => {
                let days = day.checked_add(EPOCH_WEEKDAY)?;
                Some(days.div_euclid(7) * 5 + days.rem_euclid(7).min(4))
            }
            Unit::Week(weekday) => {
                Some(day.checked_add(EPOCH_WEEKDAY)?.checked_sub(weekday)?.div_euclid(7))
            }
            Unit::Months { period, month, end } => {
                let date = date_of(day)?;
                let mut months = i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
                if end && date != date.last_of_month() {
                    months -= 1;
                }
                Some((months - month).div_euclid(period))
            }
        }
    }

    /// The day of the anchor with this index.
    fn anchor_day(&self, index: i64) -> Option<i64> {
        match self.unit {
            Unit::Index | Unit::Tick => Some(index),
            Unit::BusinessDay => index
                .div_euclid(5)
                .checked_mul(7)?
                .checked_add(index.rem_euclid(5))?
                .checked_sub(EPOCH_WEEKDAY),
            Unit::Week(weekday) => {
                index.checked_mul(7)?.checked_add(weekday)?.checked_sub(EPOCH_WEEKDAY)
            }
            Unit::Months { period, month, end } => {
                let months = index.checked_mul(period)?.checked_add(month)?;
                let year = i16::try_from(months.div_euclid(12)).ok()?;
                let month = i8::try_from(months.rem_euclid(12) + 1).ok()?;
                let first = Date::new(year, month, 1).ok()?;
                day_of(if end { first.last_of_month() } else { first })
            }
        }
    }
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, name, anchor) = match self.unit {
            Unit::Index => return write!(f, "{}", self.step),
            Unit::Tick => {
                let tick = TICKS.iter().find(|(_, micros)| self.step % micros == 0);
                let (name, micros) = tick.copied().unwrap_or(("us", 1));
                (self.step / micros, name, None)
            }
            Unit::BusinessDay => (self.step, "B", None),
            Unit::Week(weekday) => (self.step, "W", name_at(&WEEKDAYS, weekday)),
            Unit::Months { period, month, end } => {
                let name = match (period, end) {
                    (12, true) => "YE",
                    (12, false) => "YS",
                    (3, true) => "QE",
                    (3, false) => "QS",
                    (_, true) => "ME",
                    (_, false) => "MS",
                };
                (self.step, name, if period == 1 { None } else { name_at(&MONTHS, month) })
            }
        };
        if step != 1 {
            write!(f, "{step}")?;
        }
        f.write_str(name)?;
        anchor.map_or(Ok(()), |anchor| write!(f, "-{anchor}"))
    }
}

fn name_at(names: &[&'static str], index: i64) -> Option<&'static str> {
    usize::try_from(index).ok().and_then(|index| names.get(index)).copied()
}

impl FromStr for Frequency {
    type Err = Error;

    /// Parses a pandas frequency name or a positive integer; see [`Frequency`].
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Error::usage(format!(
                "frequency `{text}` {why}, expected a name as pandas has it (h, 15min, D, B, \
                 W-SUN, ME, MS, QE-DEC, YS-JAN, …) or an integer step"
            ))
        };
        let (step, name) = split_multiple(text.trim())
            .ok_or_else(|| refuse(&format!("has a multiple outside 1 to {STEP_MAX}")))?;
        if name.is_empty() {
            let step = step.ok_or_else(|| refuse("is empty"))?;
            return Ok(Frequency { unit: Unit::Index, step });
        }
        let step = step.unwrap_or(1);
        if let Some(unit) = anchored(name) {
            return Ok(Frequency { unit, step });
        }
        match ticks(text.trim()) {
            Some(step) => Ok(Frequency { unit: Unit::Tick, step }),
            None if name == "m" => Err(refuse("is ambiguous (`min` is a minute, `ME` a month)")),
            None => Err(refuse("is not known")),
        }
    }
}

/// Leading digits as a multiple, and the rest; `None` where the multiple is out of range.
fn split_multiple(text: &str) -> Option<(Option<i64>, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, name) = text.split_at(end);
    if digits.is_empty() {
        return Some((None, name));
    }
    let step = digits.parse().ok().filter(|step| (1..=STEP_MAX).contains(step))?;
    Some((Some(step), name))
}

fn anchored(name: &str) -> Option<Unit> {
    let (stem, anchor) = match name.split_once('-') {
        Some((stem, anchor)) => (stem, Some(anchor.to_ascii_uppercase())),
        None => (name, None),
    };
    let place = |names: &[&str], default: usize| match &anchor {
        None => i64::try_from(default).ok(),
        Some(anchor) => {
            names.iter().position(|name| name == anchor).and_then(|at| i64::try_from(at).ok())
        }
    };
    let months = |period: i64, month: i64, end: bool| Unit::Months {
        period,
        month: month.rem_euclid(period),
        end,
    };
    match stem {
        "B" | "b" if anchor.is_none() => Some(Unit::BusinessDay),
        "W" | "w" => place(&WEEKDAYS, 6).map(Unit::Week),
        "M" | "ME" if anchor.is_none() => Some(months(1, 0, true)),
        "MS" if anchor.is_none() => Some(months(1, 0, false)),
        // The month of a quarter is kept for its name: QE-DEC and QE-MAR are the same grid.
        "Q" | "QE" => Some(Unit::Months { period: 3, month: place(&MONTHS, 11)?, end: true }),
        "QS" => Some(Unit::Months { period: 3, month: place(&MONTHS, 0)?, end: false }),
        "Y" | "YE" | "A" => Some(months(12, place(&MONTHS, 11)?, true)),
        "YS" | "AS" => Some(months(12, place(&MONTHS, 0)?, false)),
        _ => None,
    }
}

/// A sum of ticks (`90min`, `1D12h`) in microseconds.
fn ticks(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_i64;
    while !rest.is_empty() {
        let (step, tail) = split_multiple(rest)?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (name, tail) = tail.split_at(end);
        let micros = match name.trim() {
            "d" | "D" => DAY_US,
            "h" | "H" => 3_600_000_000,
            "min" | "T" | "t" => 60_000_000,
            "s" | "S" => 1_000_000,
            "ms" | "L" | "l" => 1000,
            "us" | "U" | "u" => 1,
            _ => return None,
        };
        total = total.checked_add(micros.checked_mul(step.unwrap_or(1))?)?;
        rest = tail;
    }
    (total > 0).then_some(total)
}

/// The frequency of sorted series: their most common step, recognised as a month's, quarter's or
/// year's end or start, a week, or business days where every stamp agrees.
///
/// # Errors
/// Data, when no series has three stamps, or when the most common step is no pandas frequency.
pub fn infer<'a>(
    axis: TimeAxis,
    series: impl Iterator<Item = &'a [i64]> + Clone,
) -> Result<Frequency> {
    if !series.clone().any(|stamps| stamps.len() >= 3) {
        return Err(Error::data(
            "a frequency cannot be inferred from fewer than 3 stamps in a series, give it \
             with --freq",
        ));
    }
    let step = most_common(
        series
            .clone()
            .flat_map(|stamps| stamps.windows(2).map(|pair| pair[1].saturating_sub(pair[0]))),
    )
    .filter(|&step| step > 0)
    .ok_or_else(|| Error::data("a frequency cannot be inferred from repeated stamps"))?;
    if axis.is_integer() {
        return Frequency::integer(step.unsigned_abs()).map_err(|_| {
            Error::data(format!("no frequency fits the stamps: their most common step is {step}"))
        });
    }
    let stamps = series.clone().flatten().copied();
    let of_day = stamps.clone().next().unwrap_or(0).rem_euclid(DAY_US);
    let whole_days =
        step % DAY_US == 0 && stamps.clone().all(|stamp| stamp.rem_euclid(DAY_US) == of_day);
    let days = step / DAY_US;
    let unit = if !whole_days {
        None
    } else if days == 1 {
        business_days(series)
    } else if days >= 28 {
        Some(month_frequency(series)?)
    } else if days % 7 == 0 {
        same_weekday(stamps).map(|weekday| Frequency { unit: Unit::Week(weekday), step: days / 7 })
    } else {
        None
    };
    Ok(unit.unwrap_or(Frequency { unit: Unit::Tick, step }))
}

/// The most common item; of equally common ones the smallest.
fn most_common(items: impl Iterator<Item = i64>) -> Option<i64> {
    let mut counts: HashMap<i64, u64> = HashMap::new();
    // Runs of one step are the rule, so that the map is touched once a run.
    let mut run = (0, 0);
    for item in items {
        if item == run.0 {
            run.1 += 1;
        } else {
            *counts.entry(run.0).or_default() += run.1;
            run = (item, 1);
        }
    }
    *counts.entry(run.0).or_default() += run.1;
    counts
        .into_iter()
        .filter(|&(_, count)| count > 0)
        .max_by_key(|&(item, count)| (count, Reverse(item)))
        .map(|(item, _)| item)
}

/// Business days, where no stamp is on a weekend and some series steps over one.
fn business_days<'a>(series: impl Iterator<Item = &'a [i64]> + Clone) -> Option<Frequency> {
    let weekday = |stamp: i64| (stamp.div_euclid(DAY_US) + EPOCH_WEEKDAY).rem_euclid(7);
    let over_weekend = series.clone().any(|stamps| {
        stamps.windows(2).any(|pair| weekday(pair[0]) == 4 && pair[1] - pair[0] == 3 * DAY_US)
    });
    let weekdays_only = series.flatten().all(|&stamp| weekday(stamp) < 5);
    (over_weekend && weekdays_only).then_some(Frequency { unit: Unit::BusinessDay, step: 1 })
}

fn same_weekday(mut stamps: impl Iterator<Item = i64>) -> Option<i64> {
    let weekday = |stamp: i64| (stamp.div_euclid(DAY_US) + EPOCH_WEEKDAY).rem_euclid(7);
    let first = weekday(stamps.next()?);
    stamps.all(|stamp| weekday(stamp) == first).then_some(first)
}

/// Month, quarter or year steps, where every stamp is a month's first or last day; weeks where
/// every stamp has one weekday.
fn month_frequency<'a>(series: impl Iterator<Item = &'a [i64]> + Clone) -> Result<Frequency> {
    let dates = || series.clone().flatten().filter_map(|&s| date_of(s.div_euclid(DAY_US)));
    let month_index = |stamp: i64| {
        date_of(stamp.div_euclid(DAY_US))
            .map_or(0, |date| i64::from(date.year()) * 12 + i64::from(date.month()) - 1)
    };
    let end = dates().all(|date| date == date.last_of_month());
    if !end && !dates().all(|date| date.day() == 1) {
        return not_months(series);
    }
    let steps = series.clone().flat_map(|stamps| {
        stamps.windows(2).map(|pair| month_index(pair[1]) - month_index(pair[0]))
    });
    let step = most_common(steps).filter(|&step| step > 0).unwrap_or(1);
    let month = series.clone().flatten().next().map_or(0, |&stamp| month_index(stamp));
    let month = month.rem_euclid(12);
    let one_phase = |period: i64| {
        series.clone().flatten().all(|&s| (month_index(s) - month).rem_euclid(period) == 0)
    };
    let (period, month) = if step % 12 == 0 && one_phase(12) {
        (12, month)
    } else if step % 3 == 0 && one_phase(3) {
        // pandas names a quarter's grid by its last quarter's end or its first one's start.
        (3, if end { 9 + month % 3 } else { month % 3 })
    } else {
        (1, 0)
    };
    Ok(Frequency { unit: Unit::Months { period, month, end }, step: step / period })
}

fn not_months<'a>(series: impl Iterator<Item = &'a [i64]> + Clone) -> Result<Frequency> {
    let stamps = series.clone().flatten().copied();
    let steps = series.flat_map(|stamps| stamps.windows(2).map(|pair| pair[1] - pair[0]));
    let step = most_common(steps.clone()).unwrap_or(DAY_US);
    let regular = steps.clone().all(|other| other % step == 0);
    match same_weekday(stamps) {
        Some(weekday) if regular && step % (7 * DAY_US) == 0 => {
            Ok(Frequency { unit: Unit::Week(weekday), step: step / (7 * DAY_US) })
        }
        _ if regular => Ok(Frequency { unit: Unit::Tick, step }),
        _ => Err(Error::data(
            "no frequency fits the stamps: their steps are months long, but they are neither \
             month starts nor month ends, give it with --freq",
        )),
    }
}

/// Whether a stamp in microseconds is within the calendar.
pub(crate) fn in_range(micros: i64) -> bool {
    to_civil(micros).is_some_and(|at| at.year() >= 1)
}

#[cfg(test)]
mod tests;
