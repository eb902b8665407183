//! Cases of `normalize` and `denormalize`: every centre with every spread, masks, prefixes, carried
//! statistics, and constant or empty rows.

use super::ops::bucket;
use super::{Case, CaseBuilder};
use crate::ops::{
    Affine, Center, Denormalize, Masked, Normalize, Scaler, Spread, Statistics, ZeroSpread,
};
use crate::plan::{DType, Dim, StateKind, ValueId};

const CENTERS: [Center; 6] =
    [Center::Zero, Center::Mean, Center::Median, Center::Last, Center::Minimum, Center::Midrange];

const SPREADS: [Spread; 8] = [
    Spread::One,
    Spread::Deviation,
    Spread::SampleDeviation,
    Spread::DeviationInside(1e-5),
    Spread::MedianDeviation,
    Spread::Range,
    Spread::HalfRange,
    Spread::MeanMagnitude,
];

/// Data of any scale: row 1 is constant, row 2 mostly so, row 3 is entirely masked.
fn data(c: &mut CaseBuilder, time: usize, channels: usize) -> (ValueId, ValueId) {
    let shape = [Dim::BATCH, Dim::LENGTH, channels.into()];
    let mut element = |at: &[usize]| match at[0] {
        1 => 2.5,
        2 if at[1] % 5 != 3 => -1.25,
        _ => (at[1] * 7 % 11) as f64 * 3.5 - 4.0 + at[2] as f64 * 10.0,
    };
    let x = c.input_of(&shape, DType::F32, &mut element);
    let mut observed =
        |at: &[usize]| f64::from(at[0] != 3 && !(at[1] * 5 + at[0]).is_multiple_of(4) || time == 1);
    let mask = c.input_of(&shape[..2], DType::F32, &mut observed);
    (x, mask)
}

pub(super) fn normalize(cases: &mut Vec<Case>) {
    for center in CENTERS {
        for spread in SPREADS {
            for (time, channels) in [(1, 1), (13, 3), (64, 1)] {
                let name = format!("normalize {center:?} {spread:?} {time}x{channels}");
                let mut c = CaseBuilder::new(name, bucket(4, time));
                let (x, mask) = data(&mut c, time, channels);
                let zero = ZeroSpread::Value(1.0);
                let scaler = Scaler { center, spread, zero, eps: 1e-6, asinh: time == 13 };
                let y = c.steps(Normalize::window(x, Some(mask), scaler));
                let undo = Denormalize {
                    x: y[0],
                    statistics: y[1],
                    prefix: false,
                    channel: None,
                    scaler,
                    affine: None,
                };
                let back = c.step(undo);
                c.terms(400);
                cases.push(c.finish(&[y[0], y[1], back]));
            }
        }
    }
    options(cases);
    prefixes(cases);
    running(cases);
}

fn options(cases: &mut Vec<Case>) {
    let mut c = CaseBuilder::new("normalize with a learned map and zeroed gaps", bucket(5, 12));
    let (x, mask) = data(&mut c, 12, 3);
    let (weight, bias) = (c.positive(3), c.bias(3));
    let affine = Some(Affine { weight, bias, eps: 1e-3 });
    let zero = ZeroSpread::CenterMagnitude(1e-5);
    let scaler = Scaler { zero, ..Scaler::standard(0.0) };
    let normalize = Normalize {
        statistics: Statistics::First(9),
        masked: Masked::Zero,
        affine,
        ..Normalize::window(x, Some(mask), scaler)
    };
    let y = c.steps(normalize);
    let forecast = c.input(&[Dim::BATCH, 4.into(), 6.into()]);
    let single = c.input(&[Dim::BATCH, 4.into(), 2.into()]);
    let undo =
        Denormalize { x: forecast, statistics: y[1], prefix: false, channel: None, scaler, affine };
    let each = c.step(undo.clone());
    let one = c.step(Denormalize { x: single, channel: Some(2), ..undo });
    c.terms(100);
    cases.push(c.finish(&[y[0], y[1], each, one]));

    let mut c = CaseBuilder::new("normalize with a mask of the whole shape", bucket(3, 10));
    let shape = [Dim::BATCH, Dim::LENGTH, 2.into()];
    let mut element = |at: &[usize]| match (at[0] + at[1] + at[2]) % 4 {
        0 => f64::NAN,
        n => n as f64 * (at[1] + 1) as f64,
    };
    let x = c.input_of(&shape, DType::F32, &mut element);
    let mut observed = |at: &[usize]| f64::from(!(at[0] + at[1] + at[2]).is_multiple_of(4));
    let mask = c.input_of(&shape, DType::F32, &mut observed);
    let normalize = Normalize::window(x, Some(mask), Scaler::robust(1e-6));
    let y = c.steps(Normalize { masked: Masked::Zero, ..normalize });
    c.terms(10);
    cases.push(c.finish(&y));

    let mut c = CaseBuilder::new("normalize without a mask", bucket(2, 33));
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, 2.into()]);
    let y = c.steps(Normalize::window(x, None, Scaler::standard(1e-5)));
    c.terms(33);
    cases.push(c.finish(&y));
}

fn prefixes(cases: &mut Vec<Case>) {
    prefix(cases, "normalize by prefixes of patches", Scaler::standard(1e-6), false);
    let zero = ZeroSpread::Collapse(1e-6);
    let scaler = Scaler { zero, ..Scaler::standard(0.0) };
    prefix(cases, "normalize by prefixes that may collapse", scaler, false);
    prefix(cases, "normalize by carried prefixes", scaler, true);
}

fn prefix(cases: &mut Vec<Case>, name: &str, scaler: Scaler, carried: bool) {
    let mut c = CaseBuilder::new(name, bucket(4, 5));
    if carried {
        c = c.stateful();
    }
    let shape = [Dim::BATCH, 5.into(), 8.into()];
    let x = c.input(&shape);
    let mut observed = |at: &[usize]| f64::from(at[0] != 3 && at[1] * 8 + at[2] > 3 * at[0]);
    let mask = c.input_of(&shape, DType::F32, &mut observed);
    let forecast = c.input(&[Dim::BATCH, 3.into(), 4.into()]);
    let running = carried.then(|| c.state(StateKind::ScalerStatistics, &[3, 1]));
    let normalize = Normalize {
        statistics: Statistics::Prefix,
        masked: Masked::Zero,
        running,
        ..Normalize::window(x, Some(mask), scaler)
    };
    let y = c.steps(normalize);
    let undo = Denormalize {
        x: forecast,
        statistics: y[1],
        prefix: true,
        channel: None,
        scaler,
        affine: None,
    };
    let back = c.step(undo);
    c.terms(100);
    cases.push(c.finish(&[y[0], y[1], back]));
}

fn running(cases: &mut Vec<Case>) {
    for (time, channels) in [(1, 1), (6, 3)] {
        let name = format!("normalize with carried statistics {time}x{channels}");
        let mut c = CaseBuilder::new(name, bucket(4, time)).stateful();
        let (x, mask) = data(&mut c, time, channels);
        let state = c.state(StateKind::ScalerStatistics, &[3, channels]);
        let normalize = Normalize::window(x, Some(mask), Scaler::standard(1e-3));
        let y = c.steps(Normalize { running: Some(state), ..normalize });
        c.terms(100);
        cases.push(c.finish(&y));
    }
}
