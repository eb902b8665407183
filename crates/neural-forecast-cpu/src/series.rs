//! What is done to series rather than to layers: scaling by statistics of a window, pooling,
//! resampling, quantiles of samples, sampling.
//!
//! Statistics are formed in `f64`, because a window of large values would lose its spread in `f32`;
//! these ops read each element a few times and never matter beside a product.

use neural_forecast_runtime::ops::{
    Center, Distribution, InterpolateKind, Scaler, Spread, ZeroSpread, philox,
};

/// Count, mean and sum of squared deviations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Observations.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// Their squared deviations from it.
    pub squares: f64,
}

impl Moments {
    /// Of these values.
    pub fn of(values: &[f64]) -> Moments {
        if values.is_empty() {
            return Moments::default();
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        Moments { count, mean, squares }
    }

    /// Of both.
    pub fn merge(self, other: Moments) -> Moments {
        let count = self.count + other.count;
        if other.count == 0.0 {
            return self;
        }
        let delta = other.mean - self.mean;
        Moments {
            count,
            mean: self.mean + delta * other.count / count,
            squares: self.squares
                + other.squares
                + delta * delta * self.count * other.count / count,
        }
    }
}

/// The smaller of the two middle values; NaN if any is. Reorders them.
fn lower_median(values: &mut [f64]) -> f64 {
    if values.is_empty() || values.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let middle = (values.len() - 1) / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Shift and scale of a scaler. `moments` may cover more than `observed`; `sorted` is room.
pub fn fit(
    scaler: &Scaler,
    observed: &[f64],
    moments: Moments,
    sorted: &mut Vec<f64>,
) -> (f64, f64) {
    if moments.count == 0.0 {
        return (0.0, 1.0);
    }
    let nan = observed.iter().any(|x| x.is_nan());
    let extreme = |start: f64, pick: fn(f64, f64) -> f64| {
        if nan { f64::NAN } else { observed.iter().copied().fold(start, pick) }
    };
    let smallest = || extreme(f64::INFINITY, f64::min);
    let largest = || extreme(f64::NEG_INFINITY, f64::max);
    let mut median = |of: &mut dyn Iterator<Item = f64>| {
        sorted.clear();
        sorted.extend(of);
        lower_median(sorted)
    };
    let deviation = (moments.squares / moments.count).sqrt();
    let center = match scaler.center {
        Center::Zero => 0.0,
        Center::Mean => moments.mean,
        Center::Median => median(&mut observed.iter().copied()),
        Center::Last => observed.last().copied().unwrap_or(0.0),
        Center::Minimum => smallest(),
        Center::Midrange => (smallest() + largest()) / 2.0,
    };
    let spread = match scaler.spread {
        Spread::One => 1.0,
        Spread::Deviation => deviation,
        Spread::SampleDeviation => (moments.squares / (moments.count - 1.0).max(1.0)).sqrt(),
        Spread::DeviationInside(eps) => (moments.squares / moments.count + f64::from(eps)).sqrt(),
        Spread::MedianDeviation => {
            let middle = median(&mut observed.iter().copied());
            match median(&mut observed.iter().map(|x| (x - middle).abs())) {
                0.0 => deviation * 0.674_489_750_196_081_7,
                distance => distance,
            }
        }
        Spread::Range => largest() - smallest(),
        Spread::HalfRange => (largest() - smallest()) / 2.0,
        Spread::MeanMagnitude => {
            observed.iter().map(|x| x.abs()).sum::<f64>() / observed.len() as f64
        }
    };
    let spread = match scaler.zero {
        ZeroSpread::Value(value) if spread == 0.0 => f64::from(value),
        ZeroSpread::CenterMagnitude(extra) if spread == 0.0 => center.abs() + f64::from(extra),
        _ => spread,
    };
    (center, spread + f64::from(scaler.eps))
}

/// A value scaled.
pub fn scale(scaler: &Scaler, x: f64, (shift, spread): (f64, f64)) -> f64 {
    let divisor = match scaler.zero {
        ZeroSpread::Collapse(limit) if spread < f64::from(limit) => 1.0,
        _ => spread,
    };
    let scaled = (x - shift) / divisor;
    if scaler.asinh { scaled.asinh() } else { scaled }
}

/// A value scaled back.
pub fn unscale(scaler: &Scaler, x: f64, (shift, spread): (f64, f64)) -> f64 {
    let x = if scaler.asinh { x.sinh() } else { x };
    x * spread + shift
}

/// Point `i` of `size` between these knots, PyTorch's `align_corners = false`.
pub fn interpolate(kind: InterpolateKind, knots: &[f32], size: usize, i: usize) -> f32 {
    let n = knots.len();
    let center = (i as f64 + 0.5) * n as f64 / size as f64 - 0.5;
    match kind {
        InterpolateKind::Nearest => knots[i * n / size],
        InterpolateKind::Linear => {
            let center = center.max(0.0);
            let left = (center.floor() as usize).min(n - 1);
            let right = (left + 1).min(n - 1);
            let t = center - left as f64;
            (f64::from(knots[left]) * (1.0 - t) + f64::from(knots[right]) * t) as f32
        }
        InterpolateKind::Cubic => {
            let left = center.floor();
            let t = center - left;
            let knot =
                |offset: f64| f64::from(knots[(left + offset).clamp(0.0, n as f64 - 1.0) as usize]);
            let near = |d: f64| (1.25 * d - 2.25) * d * d + 1.0;
            let far = |d: f64| ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0;
            let inner = knot(0.0) * near(t) + knot(1.0) * near(1.0 - t);
            (knot(-1.0) * far(t + 1.0) + inner + knot(2.0) * far(2.0 - t)) as f32
        }
    }
}

/// Quantiles of samples, linear between order statistics; `sorted` is room.
pub fn quantiles(samples: &[f32], levels: &[f64], sorted: &mut Vec<f64>, y: &mut [f32]) {
    sorted.clear();
    sorted.extend(samples.iter().map(|&x| f64::from(x)));
    let unknown = sorted.iter().any(|x| x.is_nan());
    sorted.sort_unstable_by(f64::total_cmp);
    for (y, level) in y.iter_mut().zip(levels) {
        let rank = level * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
        *y = if unknown { f32::NAN } else { (below + (above - below) * rank.fract()) as f32 };
    }
}

/// Sample `s` of a row and step.
pub fn sample(
    distribution: Distribution,
    parameters: &[f32],
    seed: [u32; 2],
    step: usize,
    s: usize,
) -> f32 {
    let words = philox([s as u32, step as u32, 0, 0], seed);
    let uniform = |word: u32| (f64::from(word >> 9) + 0.5) / f64::from(1 << 23);
    let (u, v) = (uniform(words[0]), uniform(words[1]));
    let p = |i: usize| f64::from(parameters[i]);
    let turn = (std::f64::consts::TAU * v).cos();
    let x = match distribution {
        Distribution::Normal => p(0) + p(1) * (-2.0 * u.ln()).sqrt() * turn,
        Distribution::StudentT => {
            let radius = (p(0) * (u.powf(-2.0 / p(0)) - 1.0)).sqrt();
            p(1) + p(2) * radius * turn
        }
    };
    x as f32
}
