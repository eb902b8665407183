//! Per-series ("local") scalers as neuralforecast applies them around a model, in the formulas
//! and the precision of coreforecast 0.0.20 that it calls.
//!
//! Not the per-window scalers inside a model (`scaler_type`): those are operations of the plan.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// Below this a scale counts as 1, so that constant series stay finite. coreforecast's rule:
/// its float epsilon.
const SCALE_MIN: f32 = f32::EPSILON;

/// The scalers that `local_scaler_type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScalerKind {
    /// `standard`: mean and population standard deviation.
    Standard,
    /// `robust`: median and median absolute deviation.
    Robust,
    /// `robust-iqr`: median and interquartile range.
    RobustIqr,
    /// `minmax`: minimum and range.
    MinMax,
    /// `boxcox`: Box-Cox with the λ in [0, 2] of highest likelihood.
    BoxCox,
}

impl ScalerKind {
    /// The name that neuralforecast gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            ScalerKind::Standard => "standard",
            ScalerKind::Robust => "robust",
            ScalerKind::RobustIqr => "robust-iqr",
            ScalerKind::MinMax => "minmax",
            ScalerKind::BoxCox => "boxcox",
        }
    }
}

impl fmt::Display for ScalerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ScalerKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        use ScalerKind::{BoxCox, MinMax, Robust, RobustIqr, Standard};
        [Standard, Robust, RobustIqr, MinMax, BoxCox]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    format!(
                        "local scaler `{text}` is not known, expected standard, robust, \
                         robust-iqr, minmax or boxcox"
                    ),
                )
            })
    }
}

/// One series' scaler: a kind and its two statistics.
///
/// The statistics are those of a row of neuralforecast's `scalers_[column].stats_`: offset and
/// scale, or λ and 0 for Box-Cox.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaler {
    kind: ScalerKind,
    stats: [f32; 2],
}

impl Scaler {
    /// Statistics of `data` `[T]`, NaN left out. A series without a value has NaN statistics.
    ///
    /// (coreforecast leaves out leading NaN, and calls its result unspecified for others.)
    ///
    /// # Errors
    /// Data, when Box-Cox meets a negative value.
    pub fn fit(kind: ScalerKind, data: &[f32]) -> Result<Self> {
        let mut known: Vec<f32> = data.iter().copied().filter(|value| !value.is_nan()).collect();
        if known.is_empty() {
            return Ok(Scaler { kind, stats: [f32::NAN; 2] });
        }
        let stats = match kind {
            ScalerKind::Standard => {
                let mean = mean(&known);
                [mean as f32, variance(&known, mean).sqrt() as f32]
            }
            ScalerKind::Robust => {
                let median = quantile(&mut known, 0.5);
                known.iter_mut().for_each(|value| *value = (*value - median).abs());
                [median, quantile(&mut known, 0.5)]
            }
            ScalerKind::RobustIqr => {
                let median = quantile(&mut known, 0.5);
                let low = quantile(&mut known, 0.25);
                [median, quantile(&mut known, 0.75) - low]
            }
            ScalerKind::MinMax => {
                let low = known.iter().copied().fold(f32::INFINITY, f32::min);
                let high = known.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                [low, high - low]
            }
            ScalerKind::BoxCox => {
                if let Some(value) = known.iter().find(|&&value| value < 0.0) {
                    return Err(Error::data(format!(
                        "the boxcox scaler found the value {value}, expected none below 0"
                    )));
                }
                [boxcox_lambda(&known), 0.0]
            }
        };
        Ok(Scaler { kind, stats })
    }

    /// A scaler with given statistics, as a checkpoint stores them.
    pub fn from_stats(kind: ScalerKind, stats: [f32; 2]) -> Self {
        Scaler { kind, stats }
    }

    /// The kind.
    pub fn kind(&self) -> ScalerKind {
        self.kind
    }

    /// The statistics: offset and scale, or λ and 0.
    pub fn stats(&self) -> [f32; 2] {
        self.stats
    }

    /// Scales `data` in place; NaN stays NaN.
    pub fn transform(&self, data: &mut [f32]) {
        let [first, scale] = self.effective();
        match self.kind {
            ScalerKind::BoxCox => {
                data.iter_mut().for_each(|value| *value = boxcox(*value, first));
            }
            _ => data.iter_mut().for_each(|value| *value = (*value - first) / scale),
        }
    }

    /// Undoes [`Scaler::transform`] in place.
    pub fn inverse(&self, data: &mut [f32]) {
        let [first, scale] = self.effective();
        match self.kind {
            ScalerKind::BoxCox => {
                data.iter_mut().for_each(|value| *value = boxcox_inverse(*value, first));
            }
            _ => data.iter_mut().for_each(|value| *value = *value * scale + first),
        }
    }

    fn effective(&self) -> [f32; 2] {
        let [first, scale] = self.stats;
        [first, if scale.abs() < SCALE_MIN { 1.0 } else { scale }]
    }
}

fn mean(data: &[f32]) -> f64 {
    data.iter().map(|&value| f64::from(value)).sum::<f64>() / data.len() as f64
}

fn variance(data: &[f32], mean: f64) -> f64 {
    let square = |&value: &f32| (f64::from(value) - mean) * (f64::from(value) - mean);
    data.iter().map(square).sum::<f64>() / data.len() as f64
}

/// The linearly interpolated quantile; reorders `data`, which holds a value and no NaN. In f32
/// throughout, as coreforecast computes it.
fn quantile(data: &mut [f32], p: f32) -> f32 {
    let place = p * (data.len() - 1) as f32;
    let index = (place as usize).min(data.len() - 1);
    let share = place - index as f32;
    let (_, &mut at, above) = data.select_nth_unstable_by(index, f32::total_cmp);
    if share > 0.0 && !above.is_empty() {
        let next = above.iter().copied().fold(f32::INFINITY, f32::min);
        return at + share * (next - at);
    }
    at
}

fn boxcox(x: f32, lambda: f32) -> f32 {
    if lambda < 0.0 && x < 0.0 {
        return f32::NAN;
    }
    // coreforecast's bound for "λ is 0", in double.
    if f64::from(lambda.abs()) < 1e-19 {
        return x.ln();
    }
    if x > 0.0 {
        return (lambda * x.ln()).exp_m1() / lambda;
    }
    (-(lambda * (-x).ln()).exp() - 1.0) / lambda
}

fn boxcox_inverse(x: f32, lambda: f32) -> f32 {
    if lambda < 0.0 && lambda * x + 1.0 < 0.0 {
        return f32::NAN;
    }
    if lambda == 0.0 {
        return x.exp();
    }
    if lambda * x + 1.0 > 0.0 {
        return ((lambda * x).ln_1p() / lambda).exp();
    }
    -((-lambda * x - 1.0).ln() / lambda).exp()
}

/// The λ between 0 and 2 that minimises the negative log-likelihood of non-negative data.
///
/// Where a series varies by less than a hundredth of its size the likelihood is flat within
/// f32's rounding, and λ depends on the last bit of the platform's `log` and `exp`.
fn boxcox_lambda(data: &[f32]) -> f32 {
    let tolerance = f64::from(f64::from(f32::EPSILON).powf(0.25) as f32);
    brent(|lambda| loglik(lambda as f32, data), 0.0, 2.0, tolerance) as f32
}

/// The negative log-likelihood, rounded where coreforecast rounds.
fn loglik(lambda: f32, data: &[f32]) -> f64 {
    let logs: Vec<f32> = data.iter().map(|value| value.ln()).collect();
    let variance = if lambda == 0.0 {
        variance(&logs, mean(&logs))
    } else {
        let powers: Vec<f32> = logs.iter().map(|log| (lambda * log).exp() / lambda).collect();
        variance(&powers, mean(&powers))
    };
    let sum: f64 = logs.iter().map(|&log| f64::from(log)).sum();
    let half = data.len() as f64 / 2.0;
    f64::from(-((f64::from(lambda - 1.0) * sum - half * variance.ln()) as f32))
}

/// Brent's minimiser without derivatives (Algorithms for Minimization, 1973, chapter 5), with
/// the constants and the order of comparisons that coreforecast uses, so that NaN takes the
/// same branches.
fn brent(f: impl Fn(f64) -> f64, mut a: f64, mut b: f64, tolerance: f64) -> f64 {
    const GOLDEN: f64 = 0.381_966_0;
    /// The interval shrinks each round; this only bounds a broken function.
    const ROUNDS_MAX: usize = 1000;
    let eps = f64::EPSILON.sqrt();
    let third = tolerance / 3.0;
    let mut x = a + GOLDEN * (b - a);
    let (mut v, mut w) = (x, x);
    let mut fx = f(x);
    let (mut fv, mut fw) = (fx, fx);
    let (mut d, mut e) = (0.0_f64, 0.0_f64);
    for _ in 0..ROUNDS_MAX {
        let middle = (a + b) * 0.5;
        let tol = eps * x.abs() + third;
        let twice = tol * 2.0;
        if (x - middle).abs() <= twice - (b - a) * 0.5 {
            break;
        }
        let (mut p, mut q, mut r) = (0.0, 0.0, 0.0);
        if e.abs() > tol {
            r = (x - w) * (fx - fv);
            q = (x - v) * (fx - fw);
            p = (x - v) * q - (x - w) * r;
            q = (q - r) * 2.0;
            if q > 0.0 {
                p = -p;
            } else {
                q = -q;
            }
            r = e;
            e = d;
        }
        if p.abs() >= (q * 0.5 * r).abs() || p <= q * (a - x) || p >= q * (b - x) {
            e = if x < middle { b - x } else { a - x };
            d = GOLDEN * e;
        } else {
            d = p / q;
            let u = x + d;
            if u - a < twice || b - u < twice {
                d = if x >= middle { -tol } else { tol };
            }
        }
        let u = if d.abs() >= tol {
            x + d
        } else if d > 0.0 {
            x + tol
        } else {
            x - tol
        };
        let fu = f(u);
        if fu <= fx {
            if u < x {
                b = x;
            } else {
                a = x;
            }
            (v, w, x) = (w, x, u);
            (fv, fw, fx) = (fw, fx, fu);
        } else {
            if u < x {
                a = u;
            } else {
                b = u;
            }
            if fu <= fw || w == x {
                (v, fv) = (w, fw);
                (w, fw) = (u, fu);
            } else if fu <= fv || v == x || v == w {
                (v, fv) = (u, fu);
            }
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const REFERENCE: &str = include_str!("../tests/data/reference.json");

    fn numbers(value: &Value) -> Vec<f32> {
        let number = |value: &Value| value.as_f64().map_or(f32::NAN, |value| value as f32);
        value.as_array().unwrap().iter().map(number).collect()
    }

    fn assert_close(found: &[f32], expected: &[f32], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (&found, &expected) in found.iter().zip(expected) {
            let both_missing = found.is_nan() && expected.is_nan();
            let diff = (found - expected).abs();
            // The same formulas in the same precision: a few units in the last place.
            assert!(
                both_missing || found == expected || diff <= 1e-6 * expected.abs().max(1.0),
                "{what}: found {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn agrees_with_coreforecast() {
        let reference: Value = serde_json::from_str(REFERENCE).unwrap();
        let cases = reference["scalers"].as_array().unwrap();
        assert!(cases.len() > 40);
        for case in cases {
            let kind: ScalerKind = case["kind"].as_str().unwrap().parse().unwrap();
            let what = format!("{kind} of {}", case["series"]);
            let mut data = numbers(&case["data"]);
            let scaler = Scaler::fit(kind, &data).unwrap();
            let stats = numbers(&case["stats"]);
            if kind == ScalerKind::BoxCox && case["series"] == "large" {
                // The likelihood is flat within f32's rounding here, so that the last bit of
                // `log` decides: any λ of the same likelihood is right.
                let diff = loglik(scaler.stats()[0], &data) - loglik(stats[0], &data);
                assert!(diff.abs() <= 0.1, "{what}: {diff}");
            } else {
                assert_close(&scaler.stats(), &stats, &what);
            }
            let scaler = Scaler::from_stats(kind, [stats[0], stats[1]]);
            scaler.transform(&mut data);
            assert_close(&data, &numbers(&case["transformed"]), &what);
            let mut probe = numbers(&case["probe"]);
            scaler.inverse(&mut probe);
            assert_close(&probe, &numbers(&case["inverse"]), &what);
        }
    }

    #[test]
    fn boxcox_refuses_negative_values_and_names_are_checked() {
        let error = Scaler::fit(ScalerKind::BoxCox, &[1.0, -2.0]).unwrap_err().to_string();
        assert!(error.contains("found the value -2"), "{error}");
        let error = "zscore".parse::<ScalerKind>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[test]
    fn missing_values_inside_are_left_out() {
        let scaler = Scaler::fit(ScalerKind::Standard, &[1.0, f32::NAN, 3.0]).unwrap();
        assert_eq!(scaler.stats(), [2.0, 1.0]);
    }

    proptest! {
        #[test]
        fn inverse_undoes_transform(
            data in prop::collection::vec(0.01_f32..1000.0, 1..80),
            kind in prop::sample::select(vec![
                ScalerKind::Standard, ScalerKind::Robust, ScalerKind::RobustIqr,
                ScalerKind::MinMax, ScalerKind::BoxCox,
            ]),
        ) {
            let scaler = Scaler::fit(kind, &data).unwrap();
            let mut there = data.clone();
            scaler.transform(&mut there);
            scaler.inverse(&mut there);
            for (&back, &value) in there.iter().zip(&data) {
                // A small scale far from its offset loses digits to both.
                let size = value.abs().max(scaler.stats()[0].abs()).max(1.0);
                prop_assert!((back - value).abs() <= 2e-4 * size, "{kind}: {back} {value}");
            }
        }

        #[test]
        fn any_data_gives_a_scaler_or_an_error(data in prop::collection::vec(any::<f32>(), 0..30)) {
            for kind in ["standard", "robust", "robust-iqr", "minmax", "boxcox"] {
                if let Ok(scaler) = Scaler::fit(kind.parse().unwrap(), &data) {
                    let mut data = data.clone();
                    scaler.transform(&mut data);
                    scaler.inverse(&mut data);
                }
            }
        }
    }
}
