//! The forecaster on the shipped models: golden forecasts, chunks and threads that change no bit,
//! refusals by name.
#![allow(clippy::unwrap_used, reason = "a test that cannot read has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use neural_forecast::device::{self, DeviceChoice, DeviceOptions};
use neural_forecast::forecaster::{ForecastRequest, Forecaster, ForecasterOptions, HORIZON_MAX};
use neural_forecast::frame::{Frame, ReadOptions, read_path};
use neural_forecast::quantiles::Ask;
use neural_forecast::{ErrorKind, Precision, shipped};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name)
}

fn history() -> Frame {
    read_path(golden("input.csv"), &ReadOptions::default()).unwrap()
}

fn forecaster(name: &str, precision: Precision, threads: Option<usize>) -> Forecaster {
    let open =
        device::open(DeviceChoice::Cpu, &DeviceOptions { threads, ..Default::default() }).unwrap();
    let options = ForecasterOptions { precision, ..ForecasterOptions::default() };
    Forecaster::new(shipped::named(name).unwrap(), &open, options).unwrap()
}

fn raw<'a>() -> ForecastRequest<'a> {
    ForecastRequest { repair_crossing: false, ..ForecastRequest::default() }
}

#[test]
fn golden_forecasts_are_neuralforecast_s() {
    let frame = history();
    for (name, precision, tolerance) in [
        ("lstm", Precision::F32, 1e-4),
        ("patchtst", Precision::F32, 1e-4),
        // What bf16 costs on these models, where a tier rounds the inputs of products and attention
        // too: 0.125 was seen at the 90% bound of a random walk of magnitude 1.
        ("lstm", Precision::Bf16, 0.05),
        ("patchtst", Precision::Bf16, 0.2),
    ] {
        let forecast = forecaster(name, precision, None).predict(&frame, &raw()).unwrap();
        let mut reader = csv::Reader::from_path(golden(&format!("{name}.csv"))).unwrap();
        let headers: Vec<String> =
            reader.headers().unwrap().iter().skip(2).map(str::to_string).collect();
        assert_eq!(forecast.columns, headers);
        let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.unwrap()).collect();
        for series in &forecast.series {
            let theirs: Vec<&csv::StringRecord> =
                rows.iter().filter(|row| row[0] == series.id).collect();
            assert_eq!(theirs.len(), series.stamps.len(), "{}", series.id);
            for (column, values) in series.values.iter().enumerate() {
                for (row, &value) in theirs.iter().zip(values) {
                    let reference: f32 = row[column + 2].parse().unwrap();
                    let error = (value - reference).abs() / reference.abs().max(1.0);
                    let of = (&series.id, &forecast.columns[column]);
                    assert!(error <= tolerance, "{name} {of:?}: {value}, not {reference}");
                }
            }
        }
    }
}

#[test]
fn a_series_has_the_same_bits_alone_in_a_crowd_and_on_any_number_of_threads() {
    let frame = history();
    let crowd: Vec<_> = (0..70).flat_map(|_| frame.series.clone()).collect();
    let crowd = frame.with_series(crowd);
    for name in shipped::names() {
        for precision in [Precision::F32, Precision::Bf16] {
            let together = forecaster(name, precision, Some(2)).predict(&crowd, &raw()).unwrap();
            let single = forecaster(name, precision, Some(1));
            for (at, series) in frame.series.iter().enumerate() {
                let alone =
                    single.predict(&frame.with_series(vec![series.clone()]), &raw()).unwrap();
                for copy in (at..crowd.series.len()).step_by(frame.series.len()) {
                    let bits = |values: &Vec<Vec<f32>>| -> Vec<u32> {
                        values.iter().flatten().map(|value| value.to_bits()).collect()
                    };
                    let crowded = &together.series[copy].values;
                    assert_eq!(bits(crowded), bits(&alone.series[0].values), "{name} {copy}");
                }
            }
        }
    }
}

#[test]
fn several_threads_share_one_forecaster() {
    let frame = history();
    let shared = Arc::new(forecaster("lstm", Precision::F32, Some(1)));
    let expected = shared.predict(&frame, &raw()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (shared, frame, expected) = (shared.clone(), &frame, &expected);
            scope.spawn(move || {
                for _ in 0..5 {
                    let found = shared.predict(frame, &raw()).unwrap();
                    for (a, b) in found.series.iter().zip(&expected.series) {
                        assert_eq!(a.values, b.values);
                    }
                }
            });
        }
    });
}

#[test]
fn what_cannot_be_given_is_refused_by_name() {
    let frame = history();
    let lstm = forecaster("lstm", Precision::F32, Some(1));
    let refusal = |request: ForecastRequest<'_>| lstm.predict(&frame, &request).unwrap_err();
    let horizon = |horizon| ForecastRequest { horizon: Some(horizon), ..raw() };
    let error = refusal(horizon(0));
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("the horizon is 0"), "{error}");
    assert_eq!(refusal(horizon(HORIZON_MAX + 1)).kind(), ErrorKind::Usage);
    let error = refusal(ForecastRequest { intervals: Ask::Levels(vec![99.0]), ..raw() });
    assert!(error.to_string().contains("`LSTM`") && error.to_string().contains("0.005"), "{error}");
    let error = refusal(ForecastRequest { intervals: Ask::Quantiles(vec![1.5]), ..raw() });
    assert!(error.to_string().contains("1.5"), "{error}");
}

#[test]
fn quantiles_between_trained_ones_are_between_them_and_never_cross() {
    let frame = history();
    let intervals = Ask::Quantiles(vec![0.1, 0.15, 0.2, 0.5]);
    let request = ForecastRequest { intervals, non_negative: true, ..ForecastRequest::default() };
    let forecast = forecaster("lstm", Precision::F32, None).predict(&frame, &request).unwrap();
    assert_eq!(forecast.columns, ["LSTM-ql0.1", "LSTM-ql0.15", "LSTM-ql0.2", "LSTM-ql0.5"]);
    assert_eq!(forecast.quantiles, [Some(0.1), Some(0.15), Some(0.2), Some(0.5)]);
    for series in &forecast.series {
        for step in 0..series.stamps.len() {
            let row: Vec<f32> = series.values.iter().map(|column| column[step]).collect();
            assert!(row.windows(2).all(|pair| pair[0] <= pair[1]), "{} {row:?}", series.id);
            assert!(row.iter().all(|&value| value >= 0.0), "{} {row:?}", series.id);
        }
    }
}

#[test]
fn a_longer_horizon_starts_as_the_own_one() {
    let frame = history();
    let lstm = forecaster("lstm", Precision::F32, None);
    let own = lstm.predict(&frame, &raw()).unwrap();
    let long = lstm.predict(&frame, &ForecastRequest { horizon: Some(61), ..raw() }).unwrap();
    assert_eq!(long.runs[0].blocks, 3);
    for (own, long) in own.series.iter().zip(&long.series) {
        assert_eq!(long.stamps.len(), 61);
        for (own, long) in own.values.iter().zip(&long.values) {
            assert_eq!(own[..], long[..own.len()]);
            assert!(long.iter().all(|value| value.is_finite()));
        }
    }
}
