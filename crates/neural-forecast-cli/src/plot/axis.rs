//! Where the ticks of an axis stand and what they say: plain numbers, or moments in time.
//!
//! Times are whole seconds since 1970-01-01 00:00 UTC; nothing here knows time zones.

use jiff::civil::{DateTime, date};

const DAY_SECONDS: i64 = 86_400;

/// The years −9999 to 9999, less a day at either end.
const SECONDS_MIN: i64 = -377_705_000_000;
const SECONDS_MAX: i64 = 253_402_000_000;

/// A tick: its value and its label.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
    /// The wider unit (the day of an hour, the year of a month), where it differs from the tick
    /// before.
    pub(super) wider: Option<String>,
}

/// At most `count_max` round numbers inside `[low, high]`.
pub(super) fn number_ticks(low: f64, high: f64, count_max: usize) -> Vec<Tick> {
    let step = round_step((high - low) / count_max.max(1) as f64);
    if !(step.is_finite() && step > 0.0 && low.is_finite()) {
        return Vec::new();
    }
    let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    let largest = low.abs().max(high.abs());
    let tick = |index: f64| {
        let value = index * step;
        let label = if !(1e-3..1e7).contains(&largest) {
            let digits = (largest.log10().floor() - step.log10().floor()).clamp(0.0, 12.0) as usize;
            format!("{value:.digits$e}")
        } else {
            format!("{value:.decimals$}")
        };
        // A zero that rounding made negative is a zero; a minus sign is as wide as a plus.
        let negative = label.starts_with('-') && value != 0.0;
        let digits = label.trim_start_matches('-');
        let label = if negative { format!("−{digits}") } else { digits.to_string() };
        Tick { value, label, wider: None }
    };
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    let count = (last - first).clamp(-1.0, 2.0 * count_max as f64) + 1.0;
    (0..count as usize).map(|index| tick(first + index as f64)).collect()
}

/// The smallest of 1, 2, 5 · 10ⁿ that is at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|step| *step >= least).unwrap_or(least)
}

/// The distance between two time ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Seconds(i64),
    Months(i64),
}

impl Step {
    /// How long it is, for choosing; months count 30 days.
    fn seconds(self) -> i64 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Months(months) => months.saturating_mul(30 * DAY_SECONDS),
        }
    }
}

/// Steps that people count in, ascending.
const STEPS: [Step; 33] = [
    Step::Seconds(1),
    Step::Seconds(2),
    Step::Seconds(5),
    Step::Seconds(10),
    Step::Seconds(15),
    Step::Seconds(30),
    Step::Seconds(60),
    Step::Seconds(2 * 60),
    Step::Seconds(5 * 60),
    Step::Seconds(10 * 60),
    Step::Seconds(15 * 60),
    Step::Seconds(30 * 60),
    Step::Seconds(3600),
    Step::Seconds(2 * 3600),
    Step::Seconds(3 * 3600),
    Step::Seconds(6 * 3600),
    Step::Seconds(12 * 3600),
    Step::Seconds(DAY_SECONDS),
    Step::Seconds(2 * DAY_SECONDS),
    Step::Seconds(7 * DAY_SECONDS),
    Step::Seconds(14 * DAY_SECONDS),
    Step::Months(1),
    Step::Months(2),
    Step::Months(3),
    Step::Months(6),
    Step::Months(12),
    Step::Months(24),
    Step::Months(60),
    Step::Months(120),
    Step::Months(240),
    Step::Months(600),
    Step::Months(1200),
    Step::Months(12_000),
];

/// At most `count_max` round moments inside `[low, high]`, both in seconds.
pub(super) fn time_ticks(low: i64, high: i64, count_max: usize) -> Vec<Tick> {
    let (low, high) = (low.max(SECONDS_MIN), high.min(SECONDS_MAX));
    let span = (high - low).max(0);
    let fits = |step: &Step| span / step.seconds() < count_max.max(1) as i64;
    let Some(step) = STEPS.into_iter().find(fits) else { return Vec::new() };
    let mut ticks: Vec<Tick> = Vec::new();
    let mut shown = None;
    for seconds in moments(low, high, step) {
        let Some(moment) = civil(seconds) else { continue };
        let (label, wider) = label(moment, step);
        let changed = wider != shown;
        ticks.push(Tick { value: seconds as f64, label, wider: wider.clone().filter(|_| changed) });
        shown = wider;
    }
    ticks
}

fn moments(low: i64, high: i64, step: Step) -> Vec<i64> {
    match step {
        Step::Seconds(step) => {
            // Weeks begin on Monday: 1970-01-05.
            let origin = if step % (7 * DAY_SECONDS) == 0 { 4 * DAY_SECONDS } else { 0 };
            let first = (low - origin).div_euclid(step) * step + origin;
            let from = if first < low { first + step } else { first };
            (0..).map(|index| from + index * step).take_while(|moment| *moment <= high).collect()
        }
        Step::Months(step) => {
            let Some(start) = civil(low) else { return Vec::new() };
            let month = i64::from(start.year()) * 12 + i64::from(start.month()) - 1;
            let first = month.div_euclid(step) * step;
            (0..)
                .map_while(|index| month_start(first + index * step))
                .take_while(|moment| *moment <= high)
                .filter(|moment| *moment >= low)
                .collect()
        }
    }
}

/// Seconds of the first moment of a month, counted from January of the year 0.
fn month_start(month: i64) -> Option<i64> {
    let year = i16::try_from(month.div_euclid(12)).ok()?;
    let in_year = i8::try_from(month.rem_euclid(12) + 1).ok()?;
    let first = jiff::civil::Date::new(year, in_year, 1).ok()?;
    let days = first.since(date(1970, 1, 1)).ok()?.get_days();
    Some(i64::from(days) * DAY_SECONDS)
}

fn civil(seconds: i64) -> Option<DateTime> {
    let moment = jiff::Timestamp::from_second(seconds).ok()?;
    Some(jiff::tz::Offset::UTC.to_datetime(moment))
}

/// What a tick says, and the wider unit that it belongs to.
fn label(moment: DateTime, step: Step) -> (String, Option<String>) {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, day) = (moment.year(), moment.day());
    let month = MONTHS[usize::from(moment.month().unsigned_abs().clamp(1, 12)) - 1];
    let clock = format!("{:02}:{:02}", moment.hour(), moment.minute());
    match step {
        Step::Seconds(..60) => {
            (format!("{clock}:{:02}", moment.second()), Some(format!("{day} {month} {year}")))
        }
        Step::Seconds(..DAY_SECONDS) => (clock, Some(format!("{day} {month} {year}"))),
        Step::Seconds(_) => (format!("{day} {month}"), Some(year.to_string())),
        Step::Months(..12) => (month.to_string(), Some(year.to_string())),
        Step::Months(_) => (year.to_string(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> String {
        let text = |tick: &Tick| match &tick.wider {
            Some(wider) => format!("{}/{wider}", tick.label),
            None => tick.label.clone(),
        };
        ticks.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    /// Seconds of a stamp such as `2024-02-28T18:00:00`.
    fn at(stamp: &str) -> i64 {
        let moment: DateTime = stamp.parse().unwrap();
        jiff::tz::Offset::UTC.to_timestamp(moment).unwrap().as_second()
    }

    #[test]
    fn numbers_are_round_and_as_precise_as_their_step() {
        let cases = [
            (0.0, 10.0, "0 2 4 6 8 10"),
            (-1.0, 1.0, "−1.0 −0.5 0.0 0.5 1.0"),
            (0.001, 0.0042, "0.001 0.002 0.003 0.004"),
            (1e8, 3e8, "1.0e8 1.5e8 2.0e8 2.5e8 3.0e8"),
            (99_999.0, 100_003.0, "99999 100000 100001 100002 100003"),
        ];
        for (low, high, expected) in cases {
            assert_eq!(labels(&number_ticks(low, high, 5)), expected, "{low}..{high}");
        }
        assert_eq!(number_ticks(0.0, f64::INFINITY, 5), []);
        assert_eq!(number_ticks(f64::NAN, 1.0, 5), []);
        assert_eq!(number_ticks(1.0, 1.0, 5), []);
    }

    #[test]
    fn times_are_labelled_by_their_range() {
        let cases = [
            ("2024-02-28T18:10:00", "2024-02-29T18:00:00", "00:00/29 Feb 2024 06:00 12:00 18:00"),
            (
                "2024-01-01T00:00:00",
                "2024-01-01T00:00:04",
                "00:00:00/1 Jan 2024 00:00:01 00:00:02 \
              00:00:03 00:00:04",
            ),
            ("2023-12-20T00:00:00", "2024-01-12T00:00:00", "25 Dec/2023 1 Jan/2024 8 Jan"),
            ("2023-10-15T00:00:00", "2024-04-15T00:00:00", "Nov/2023 Jan/2024 Mar"),
            ("1990-06-01T00:00:00", "2012-01-01T00:00:00", "1995 2000 2005 2010"),
        ];
        for (low, high, expected) in cases {
            assert_eq!(labels(&time_ticks(at(low), at(high), 5)), expected, "{low}..{high}");
        }
    }

    #[test]
    fn impossible_ranges_have_few_ticks_and_do_not_fail() {
        for (low, high) in [(i64::MIN, i64::MAX), (0, i64::MAX), (i64::MAX, 0), (7, 7)] {
            assert!(time_ticks(low, high, 6).len() <= 7);
        }
    }
}
