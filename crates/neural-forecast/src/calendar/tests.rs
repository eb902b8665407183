//! Calendar tests: pandas' own answers, properties, and refusals.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const REFERENCE: &str = include_str!("../../tests/data/reference.json");

fn stamp(text: &str) -> i64 {
    parse_stamp(text).unwrap().0
}

fn freq(text: &str) -> Frequency {
    text.parse().unwrap()
}

#[test]
fn steps_as_pandas_does() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let cases = reference["calendar"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let name = case["freq"].as_str().unwrap();
        let last = case["last"].as_str().unwrap();
        let frequency = freq(name);
        let expected: Vec<i64> =
            case["next"].as_array().unwrap().iter().map(|s| stamp(s.as_str().unwrap())).collect();
        let found = frequency.future(stamp(last), expected.len()).unwrap();
        assert_eq!(found, expected, "{name} after {last}");
        assert_eq!(frequency.to_string(), case["name"].as_str().unwrap());
    }
}

#[test]
fn old_names_print_as_new_ones() {
    let cases = [
        ("H", "h"),
        ("T", "min"),
        ("S", "s"),
        ("L", "ms"),
        ("M", "ME"),
        ("Q", "QE-DEC"),
        ("A", "YE-DEC"),
        ("AS", "YS-JAN"),
        ("Y", "YE-DEC"),
        ("W", "W-SUN"),
        ("60min", "h"),
        ("24h", "D"),
        ("1D12h", "36h"),
        ("2Q-NOV", "2QE-NOV"),
        ("1", "1"),
        ("24", "24"),
        ("b", "B"),
        ("0015min", "15min"),
        (" D ", "D"),
    ];
    for (old, new) in cases {
        assert_eq!(freq(old).to_string(), new, "{old}");
        assert_eq!(freq(new), freq(old));
    }
}

#[test]
fn refuses_what_is_no_frequency() {
    let bad = [
        "",
        " ",
        "0",
        "0h",
        "-1",
        "-1h",
        "1.5h",
        "x",
        "m",
        "W-XYZ",
        "QE-FOO",
        "B-MON",
        "BME",
        "99999999999999999999h",
        "1000000000000001",
        "h5",
        "D-",
        "MS-JAN",
        "é",
        "1é",
        "ns",
    ];
    for text in bad {
        let error = text.parse::<Frequency>().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Usage, "{text}");
        assert!(error.to_string().contains("expected a name as pandas has it"), "{error}");
    }
}

#[test]
fn leaving_the_calendar_is_an_error() {
    for (name, last) in [("YE", "9998-12-31"), ("D", "9999-12-29"), ("B", "9999-12-29")] {
        let error = freq(name).future(stamp(last), 3).unwrap_err().to_string();
        assert!(error.contains("leave the calendar's range"), "{error}");
    }
    assert!(freq("1").advance(i64::MAX, 1).is_err());
    assert!(freq("1000000000h").advance(0, usize::MAX).is_err());
    assert!(freq("1000000000YE").advance(0, 7).is_err());
    assert!(freq("ME").advance(i64::MAX, 1).is_err());
    assert!(freq("B").advance(i64::MIN, 1).is_err());
}

fn inferred(stamps: &[&str]) -> Result<Frequency> {
    let stamps: Vec<i64> = stamps.iter().map(|text| stamp(text)).collect();
    infer(TimeAxis::DateTime(StampFormat::default()), [stamps.as_slice()].into_iter())
}

#[test]
fn infers_each_kind() {
    let cases: [(&[&str], &str); 13] = [
        (&["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00"], "h"),
        (&["2024-01-01 00:00", "2024-01-01 00:15", "2024-01-01 00:30"], "15min"),
        (&["2024-01-05", "2024-01-06", "2024-01-07", "2024-01-08"], "D"),
        (&["2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"], "B"),
        (&["2024-01-01", "2024-01-08", "2024-01-15"], "W-MON"),
        (&["2024-01-07", "2024-01-21", "2024-02-04"], "2W-SUN"),
        (&["2024-01-31", "2024-02-29", "2024-03-31"], "ME"),
        (&["2024-01-01", "2024-02-01", "2024-03-01"], "MS"),
        (&["2023-12-31", "2024-03-31", "2024-06-30"], "QE-DEC"),
        (&["2023-02-01", "2023-05-01", "2023-08-01"], "QS-FEB"),
        (&["2021-12-31", "2022-12-31", "2023-12-31"], "YE-DEC"),
        (&["2021-04-01", "2022-04-01", "2023-04-01"], "YS-APR"),
        // A gap: the most common step wins.
        (&["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-09"], "D"),
    ];
    for (stamps, name) in cases {
        assert_eq!(inferred(stamps).unwrap().to_string(), name, "{stamps:?}");
    }
}

#[test]
fn cannot_infer_from_too_little_or_from_mid_month() {
    let error = inferred(&["2024-01-01", "2024-01-02"]).unwrap_err().to_string();
    assert!(error.contains("--freq"), "{error}");
    let error = inferred(&["2024-01-15", "2024-02-15", "2024-03-15", "2024-04-15"]).unwrap_err();
    assert!(error.to_string().contains("neither month starts nor month ends"), "{error}");
}

#[test]
fn integer_stamps_have_integer_steps() {
    let stamps = [10, 20, 30, 50];
    let found = infer(TimeAxis::Integer, [&stamps[..]].into_iter()).unwrap();
    assert_eq!(found, Frequency::integer(10).unwrap());
    assert_eq!(found.future(50, 2).unwrap(), [60, 70]);
    assert_eq!(found.steps_between(10, 50), Some(4));
    assert_eq!(found.steps_between(10, 55), None);
}

#[test]
fn a_series_on_the_fifteenth_is_on_the_grid_of_months() {
    let months = freq("MS");
    assert_eq!(months.steps_between(stamp("2024-01-15"), stamp("2024-03-15")), Some(2));
    assert!(!months.is_anchor(stamp("2024-01-15")));
    assert!(months.is_anchor(stamp("2024-01-01")));
    assert_eq!(freq("D").steps_between(stamp("2024-01-01"), stamp("2024-01-02 06:00")), None);
    assert_eq!(freq("B").steps_between(stamp("2024-01-05"), stamp("2024-01-08")), Some(1));
}

#[test]
fn seasons_are_the_usual_ones() {
    let cases = [
        ("h", 24),
        ("15min", 96),
        ("D", 1),
        ("B", 5),
        ("W", 1),
        ("ME", 12),
        ("QS", 4),
        ("YE", 1),
        ("6h", 4),
        ("7h", 1),
        ("1", 1),
        ("s", 3600),
        ("2MS", 6),
    ];
    for (name, season) in cases {
        assert_eq!(freq(name).season(), season, "{name}");
    }
}

fn any_frequency() -> impl Strategy<Value = Frequency> {
    let names = [
        "us", "ms", "s", "min", "h", "D", "B", "W-MON", "W-SUN", "W-THU", "ME", "MS", "QE-DEC",
        "QE-JAN", "QS-JAN", "QS-FEB", "YE-DEC", "YE-JUN", "YS-JAN", "YS-SEP",
    ];
    (prop::sample::select(names.to_vec()), 1..40_i64)
        .prop_map(|(name, step)| format!("{step}{name}").parse().unwrap())
}

/// Stamps from the years 1000 to 3000.
fn any_stamp() -> impl Strategy<Value = i64> {
    -30_600_000_000_000_000..32_500_000_000_000_000_i64
}

proptest! {
    #[test]
    fn names_round_trip(frequency in any_frequency()) {
        prop_assert_eq!(frequency.to_string().parse::<Frequency>().unwrap(), frequency);
    }

    #[test]
    fn steps_grow_are_anchors_and_count_themselves(
        frequency in any_frequency(),
        start in any_stamp(),
    ) {
        let first = frequency.advance(start, 1).unwrap();
        prop_assert!(first > start);
        let future = frequency.future(first, 20).unwrap();
        let mut previous = first;
        for (i, &next) in future.iter().enumerate() {
            prop_assert!(next > previous);
            prop_assert!(frequency.is_anchor(next));
            prop_assert_eq!(frequency.advance(previous, 1).unwrap(), next);
            prop_assert_eq!(frequency.steps_between(first, next), Some(i as i64 + 1));
            previous = next;
        }
    }

    #[test]
    fn inference_finds_a_frequency_that_makes_the_same_stamps(
        frequency in any_frequency(),
        start in any_stamp(),
    ) {
        // Multiples of business days are left to --freq: their steps have no one length.
        prop_assume!(frequency.unit != Unit::BusinessDay || frequency.step == 1);
        let stamps = frequency.future(start, 60).unwrap();
        let axis = TimeAxis::DateTime(StampFormat::default());
        let found = infer(axis, [stamps.as_slice()].into_iter()).unwrap();
        prop_assert_eq!(found.future(stamps[0], 59).unwrap(), &stamps[1..], "found {}", found);
    }

    #[test]
    fn any_text_parses_or_fails(text in "\\PC{0,24}") {
        let _ = text.parse::<Frequency>();
        let _ = parse_stamp(&text);
    }

    #[test]
    fn stamps_survive_writing_and_reading(micros in any_stamp()) {
        let format = StampFormat::for_stamp(micros);
        let text = TimeAxis::DateTime(format).text(micros);
        prop_assert_eq!(parse_stamp(&text).map(|(stamp, _)| stamp), Some(micros), "{}", text);
    }
}
