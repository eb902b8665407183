//! `normalize` and `denormalize`: scaling a window by statistics of itself, and back.
//!
//! Every scaler of the supported families is one `(shift, scale)` per row and channel, computed
//! over the masked time axis, so that undoing it is one multiply-add. Not the per-series scalers of
//! a training set: the forecaster applies those before a window exists.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, StateId, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// What is subtracted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Center {
    /// 0.
    Zero,
    /// Mean.
    Mean,
    /// Lower median: the smaller of the two middle values of an even count.
    Median,
    /// The last observed value.
    Last,
    /// Minimum.
    Minimum,
    /// Half-way between minimum and maximum.
    Midrange,
}

/// What is divided by, before the zero rule and `eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// 1.
    One,
    /// Population standard deviation `√(Σ(x − mean)² / n)`, around the mean whatever the centre.
    Deviation,
    /// Sample standard deviation `√(Σ(x − mean)² / (n − 1))`; 0 for one observation.
    SampleDeviation,
    /// `√(var + eps)`: as `Deviation` with this inside the root.
    DeviationInside(f32),
    /// Lower median of `|x − median|`; where that is 0, the standard deviation times
    /// 0.6744897501960817.
    MedianDeviation,
    /// Maximum − minimum.
    Range,
    /// Half of that.
    HalfRange,
    /// Mean of `|x|`.
    MeanMagnitude,
}

/// What replaces a spread of exactly zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ZeroSpread {
    /// Nothing: it stays zero.
    Keep,
    /// This number.
    Value(f32),
    /// `|centre|` plus this number.
    CenterMagnitude(f32),
    /// Nothing, but windows are divided by 1 where the spread (with `eps`) is below this number:
    /// the statistics keep the spread as it is, so that forecasts of a constant series collapse
    /// onto its centre.
    Collapse(f32),
}

/// Over which positions statistics are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistics {
    /// All observed positions of the row: `x` is `[B, T, C]`, statistics are `[B, 2, C]`.
    Window,
    /// The first this many positions only, so that known future values do not leak into the scale.
    First(usize),
    /// All observed positions up to and including each patch: `x` is `[B, N, P]`, statistics are
    /// `[B, N, 2]`.
    Prefix,
}

/// A scaler, by its parts. `x' = (x − centre) / (zero_rule(spread) + eps)`, then `asinh` if asked.
/// A row without any observed position has centre 0 and scale 1 (after which the zero rule has
/// nothing to do).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaler {
    /// What is subtracted.
    pub center: Center,
    /// What is divided by.
    pub spread: Spread,
    /// What replaces a zero spread.
    pub zero: ZeroSpread,
    /// Added to the spread after the zero rule.
    pub eps: f32,
    /// Whether `asinh` follows (and `sinh` precedes the way back).
    pub asinh: bool,
}

/// What happens at masked positions of the scaled value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masked {
    /// They are scaled like the others.
    Scaled,
    /// They become 0, whatever they held, NaN included.
    Zero,
}

/// A learned affine map per channel after scaling: `x'·weight + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// `[C]`.
    pub weight: WeightId,
    /// `[C]`.
    pub bias: WeightId,
    /// Added to the weight when it is divided by on the way back.
    pub eps: f32,
}

/// Parameters of `normalize`. Writes the scaled value (shape of `x`) and the statistics: shift and
/// scale, in that order, shaped as [`Statistics`] says.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalize {
    /// Input, `[B, T, C]` (`[B, N, P]` with [`Statistics::Prefix`]).
    pub x: ValueId,
    /// 1 where observed: shape of `x`, or `[B, T]` (`[B, T, 1]`) for all channels alike. Absent
    /// means that all is observed. Masked positions are never read into a statistic, NaN included.
    pub mask: Option<ValueId>,
    /// How.
    pub scaler: Scaler,
    /// Over which positions.
    pub statistics: Statistics,
    /// What masked positions become.
    pub masked: Masked,
    /// Learned map after scaling.
    pub affine: Option<Affine>,
    /// A [`crate::plan::StateKind::ScalerStatistics`] slot that carries count, mean and squared
    /// deviations over runs, `[3, C]` (`Center::Mean` with a spread around the mean only). Prefix
    /// statistics continue those of earlier runs, and their slot is `[3, 1]`.
    pub running: Option<StateId>,
}

/// Parameters of `denormalize`: `y = unscale(x)` with the statistics of a [`Normalize`]. Writes one
/// value of the shape of `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Denormalize {
    /// Scaled forecasts `[B, H, C · O]`, channels outer.
    pub x: ValueId,
    /// Statistics `[B, 2, C]`, or `[B, N, 2]` of a prefix scaler, of which the last patch's are
    /// used.
    pub statistics: ValueId,
    /// Whether `statistics` are of a prefix scaler.
    pub prefix: bool,
    /// The one channel whose statistics apply to all of `x`; `None` matches channels.
    pub channel: Option<usize>,
    /// The scaler that made them (its `asinh` is undone).
    pub scaler: Scaler,
    /// The learned map to undo first: `(x − bias) / (weight + eps)`.
    pub affine: Option<Affine>,
}

impl Scaler {
    /// Leaves values as they are.
    pub const IDENTITY: Scaler = Scaler {
        center: Center::Zero,
        spread: Spread::One,
        zero: ZeroSpread::Keep,
        eps: 0.0,
        asinh: false,
    };

    /// Mean and population standard deviation; a zero deviation becomes 1.
    pub const fn standard(eps: f32) -> Scaler {
        Scaler {
            center: Center::Mean,
            spread: Spread::Deviation,
            zero: ZeroSpread::Value(1.0),
            eps,
            asinh: false,
        }
    }

    /// Lower median and median absolute deviation; a zero spread becomes 1.
    pub const fn robust(eps: f32) -> Scaler {
        Scaler {
            center: Center::Median,
            spread: Spread::MedianDeviation,
            zero: ZeroSpread::Value(1.0),
            eps,
            asinh: false,
        }
    }
}

impl Normalize {
    /// Scales a whole window.
    pub fn window(x: ValueId, mask: Option<ValueId>, scaler: Scaler) -> Self {
        Normalize {
            x,
            mask,
            scaler,
            statistics: Statistics::Window,
            masked: Masked::Scaled,
            affine: None,
            running: None,
        }
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.expect_rank("x", self.x, 3, "[B, T, C]")?;
        if let Some(mask) = self.mask {
            let mask = c.shape(mask);
            let fits = mask == x
                || (mask.len() == 2 && mask == &x[..2])
                || (mask.len() == 3 && mask[..2] == x[..2] && mask[2] == Dim::Fixed(1));
            if !fits {
                return Err(c.error(format!("`mask` has shape {mask:?}, expected {x:?} or [B, T]")));
            }
        }
        let statistics = match self.statistics {
            Statistics::Prefix => vec![x[0], x[1], Dim::Fixed(2)],
            Statistics::Window => vec![x[0], Dim::Fixed(2), x[2]],
            Statistics::First(n) => {
                if x[1].fixed().is_some_and(|t| n > t) {
                    return Err(c.error(format!("statistics of {n} of {:?} positions", x[1])));
                }
                vec![x[0], Dim::Fixed(2), x[2]]
            }
        };
        if let Some(affine) = &self.affine {
            affine.check(c, c.fixed("the channels of `x`", x.last())?)?;
        }
        if let Some(state) = self.running {
            let channels = match self.statistics {
                Statistics::Prefix => 1,
                _ => c.fixed("the channels of `x`", x.last())?,
            };
            let deviation = matches!(
                self.scaler.spread,
                Spread::Deviation | Spread::SampleDeviation | Spread::DeviationInside(_)
            );
            if c.state(state) != [3, channels]
                || self.scaler.center != Center::Mean
                || !deviation
                || matches!(self.statistics, Statistics::First(_))
            {
                return Err(c.error(format!(
                    "running statistics need mean and deviation over windows or prefixes and a \
                     state of shape [3, {channels}], found {:?}",
                    c.state(state)
                )));
            }
        }
        Ok(vec![(DType::F32, x.to_vec()), (DType::F32, statistics)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
        self.mask.iter_mut().for_each(visit);
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        self.affine.iter_mut().for_each(|affine| affine.visit(visit));
    }
}

impl Affine {
    fn check(&self, c: &ShapeContext<'_>, channels: usize) -> Result<(), PlanError> {
        c.expect_weight("affine.weight", self.weight, &[channels], "[channels]")?;
        c.expect_weight("affine.bias", self.bias, &[channels], "[channels]")
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        visit(&mut self.weight);
        visit(&mut self.bias);
    }
}

impl Denormalize {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.expect_rank("x", self.x, 3, "[B, H, C·O]")?;
        let statistics = c.expect_rank("statistics", self.statistics, 3, "[B, 2, C]")?;
        let channels = if self.prefix {
            1
        } else {
            c.fixed("the channels of `statistics`", statistics.last())?
        };
        let pair = if self.prefix { statistics[2] } else { statistics[1] };
        let width = c.fixed("the last axis of `x`", x.last())?;
        let fits = match self.channel {
            Some(channel) => channel < channels,
            None => channels > 0 && width % channels == 0,
        };
        if !fits || pair != Dim::Fixed(2) || statistics[0] != x[0] {
            return Err(c.error(format!(
                "statistics {statistics:?} (channel {:?}) do not fit `x` {x:?}",
                self.channel
            )));
        }
        if let Some(affine) = &self.affine {
            affine.check(c, channels)?;
        }
        Ok(vec![(DType::F32, x.to_vec())])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
        visit(&mut self.statistics);
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        self.affine.iter_mut().for_each(|affine| affine.visit(visit));
    }
}

/// Count, mean and sum of squared deviations.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn of(observed: &[f64]) -> Moments {
        let count = observed.len() as f64;
        let mean = if observed.is_empty() { 0.0 } else { observed.iter().sum::<f64>() / count };
        let squares = observed.iter().map(|x| (x - mean) * (x - mean)).sum();
        Moments { count, mean, squares }
    }

    /// Moments of both samples together (Chan, Golub and LeVeque, 1979).
    fn merge(self, other: Moments) -> Moments {
        let count = self.count + other.count;
        if count == 0.0 {
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

    fn deviation(self) -> f64 {
        (self.squares / self.count).sqrt()
    }
}

/// The smaller of the two middle values of an even count; NaN if any value is.
fn lower_median(values: &[f64]) -> f64 {
    if values.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

/// The smallest and the largest value; NaN if any value is.
fn extremes(values: &[f64]) -> (f64, f64) {
    if values.iter().any(|x| x.is_nan()) {
        return (f64::NAN, f64::NAN);
    }
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    (smallest, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

impl Scaler {
    /// Shift and scale by the statistics of what was observed; `moments` may cover more than that.
    fn fit(&self, observed: &[f64], moments: Moments) -> (f64, f64) {
        if moments.count == 0.0 {
            return (0.0, 1.0);
        }
        let (smallest, largest) = extremes(observed);
        let center = match self.center {
            Center::Zero => 0.0,
            Center::Mean => moments.mean,
            Center::Median => lower_median(observed),
            Center::Last => observed[observed.len() - 1],
            Center::Minimum => smallest,
            Center::Midrange => (smallest + largest) / 2.0,
        };
        let spread = match self.spread {
            Spread::One => 1.0,
            Spread::Deviation => moments.deviation(),
            Spread::SampleDeviation => (moments.squares / (moments.count - 1.0).max(1.0)).sqrt(),
            Spread::DeviationInside(eps) => {
                (moments.squares / moments.count + f64::from(eps)).sqrt()
            }
            Spread::MedianDeviation => {
                let median = lower_median(observed);
                let distances: Vec<f64> = observed.iter().map(|x| (x - median).abs()).collect();
                match lower_median(&distances) {
                    0.0 => moments.deviation() * 0.674_489_750_196_081_7,
                    distance => distance,
                }
            }
            Spread::Range => largest - smallest,
            Spread::HalfRange => (largest - smallest) / 2.0,
            Spread::MeanMagnitude => {
                observed.iter().map(|x| x.abs()).sum::<f64>() / observed.len() as f64
            }
        };
        let spread = match self.zero {
            ZeroSpread::Value(value) if spread == 0.0 => f64::from(value),
            ZeroSpread::CenterMagnitude(extra) if spread == 0.0 => center.abs() + f64::from(extra),
            _ => spread,
        };
        (center, spread + f64::from(self.eps))
    }

    fn scale(&self, x: f64, (shift, scale): (f64, f64)) -> f64 {
        let divisor = match self.zero {
            ZeroSpread::Collapse(limit) if scale < f64::from(limit) => 1.0,
            _ => scale,
        };
        let scaled = (x - shift) / divisor;
        if self.asinh { scaled.asinh() } else { scaled }
    }

    fn unscale(&self, x: f64, (shift, scale): (f64, f64)) -> f64 {
        let x = if self.asinh { x.sinh() } else { x };
        x * scale + shift
    }
}

impl Normalize {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let mask = self.mask.map(|mask| c.value(mask));
        let observed = |b: usize, t: usize, k: usize| match mask {
            None => true,
            Some(mask) if mask.shape.len() == 2 => mask.at(&[b, t]) != 0.0,
            Some(mask) => mask.at(&[b, t, k.min(mask.shape[2] - 1)]) != 0.0,
        };
        let (statistics, state) = match self.statistics {
            Statistics::Prefix => self.prefixes(c, x, &observed),
            Statistics::Window => self.windows(c, x, x.shape[1], &observed),
            Statistics::First(n) => self.windows(c, x, n, &observed),
        };
        let affine = self.affine.map(|a| (&c.weight(a.weight).data, &c.weight(a.bias).data));
        let y = Tensor::from_fn(x.shape.as_slice(), |at| {
            let (b, t, k) = (at[0], at[1], at[2]);
            if self.masked == Masked::Zero && !observed(b, t, k) {
                return 0.0;
            }
            let pair = |i| match self.statistics {
                Statistics::Prefix => statistics.at(&[b, t, i]),
                _ => statistics.at(&[b, i, k]),
            };
            let scaled = self.scaler.scale(x.at(at), (pair(0), pair(1)));
            affine.map_or(scaled, |(weight, bias)| scaled * weight[k] + bias[k])
        });
        if let (Some(id), Some(state)) = (self.running, state) {
            c.set_state(id, state);
        }
        vec![y, statistics]
    }

    /// Statistics `[B, 2, C]` of the first `time` positions, and the merged running state.
    fn windows(
        &self,
        c: &ReferenceContext<'_>,
        x: &Tensor,
        time: usize,
        observed: &dyn Fn(usize, usize, usize) -> bool,
    ) -> (Tensor, Option<Tensor>) {
        let (rows, channels) = (x.shape[0], x.shape[2]);
        let mut statistics = Tensor::zeros([rows, 2, channels]);
        let mut state = self.running.map(|id| c.state(id).clone());
        for b in 0..rows {
            for k in 0..channels {
                let seen = (0..time).filter(|&t| observed(b, t, k));
                let seen: Vec<f64> = seen.map(|t| x.at(&[b, t, k])).collect();
                let mut moments = Moments::of(&seen);
                if let Some(state) = &mut state {
                    let carried = Moments {
                        count: state.at(&[b, 0, k]),
                        mean: state.at(&[b, 1, k]),
                        squares: state.at(&[b, 2, k]),
                    };
                    moments = carried.merge(moments);
                    *state.at_mut(&[b, 0, k]) = moments.count;
                    *state.at_mut(&[b, 1, k]) = moments.mean;
                    *state.at_mut(&[b, 2, k]) = moments.squares;
                }
                let (shift, scale) = self.scaler.fit(&seen, moments);
                *statistics.at_mut(&[b, 0, k]) = shift;
                *statistics.at_mut(&[b, 1, k]) = scale;
            }
        }
        (statistics, state)
    }

    /// Statistics `[B, N, 2]` of all patches up to and including each, after those of earlier runs,
    /// and the running state after the last.
    fn prefixes(
        &self,
        c: &ReferenceContext<'_>,
        x: &Tensor,
        observed: &dyn Fn(usize, usize, usize) -> bool,
    ) -> (Tensor, Option<Tensor>) {
        let (rows, patches, length) = (x.shape[0], x.shape[1], x.shape[2]);
        let mut statistics = Tensor::zeros([rows, patches, 2]);
        let mut state = self.running.map(|id| c.state(id).clone());
        for b in 0..rows {
            let carried = state.as_ref().map(|state| Moments {
                count: state.at(&[b, 0, 0]),
                mean: state.at(&[b, 1, 0]),
                squares: state.at(&[b, 2, 0]),
            });
            let mut seen = Vec::new();
            for n in 0..patches {
                let positions = (0..length).filter(|&p| observed(b, n, p));
                seen.extend(positions.map(|p| x.at(&[b, n, p])));
                let mut moments = Moments::of(&seen);
                if let (Some(carried), Some(state)) = (carried, &mut state) {
                    moments = carried.merge(moments);
                    *state.at_mut(&[b, 0, 0]) = moments.count;
                    *state.at_mut(&[b, 1, 0]) = moments.mean;
                    *state.at_mut(&[b, 2, 0]) = moments.squares;
                }
                let (shift, scale) = self.scaler.fit(&seen, moments);
                *statistics.at_mut(&[b, n, 0]) = shift;
                *statistics.at_mut(&[b, n, 1]) = scale;
            }
        }
        (statistics, state)
    }
}

impl Denormalize {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let (x, statistics) = (c.value(self.x), c.value(self.statistics));
        let channels = if self.prefix { 1 } else { statistics.shape[2] };
        let outputs = x.shape[2] / channels;
        let affine = self.affine.map(|a| (&c.weight(a.weight).data, &c.weight(a.bias).data, a.eps));
        let y = Tensor::from_fn(x.shape.as_slice(), |at| {
            let (b, k) = (at[0], self.channel.unwrap_or(at[2] / outputs.max(1)));
            let pair = |i| match self.prefix {
                true => statistics.at(&[b, statistics.shape[1] - 1, i]),
                false => statistics.at(&[b, i, k]),
            };
            let x = affine.map_or(x.at(at), |(weight, bias, eps)| {
                (x.at(at) - bias[k]) / (weight[k] + f64::from(eps))
            });
            self.scaler.unscale(x, (pair(0), pair(1)))
        });
        vec![y]
    }
}
