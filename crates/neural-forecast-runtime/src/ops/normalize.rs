//! `normalize` and `denormalize`: scaling a window by statistics of itself, and back.
//!
//! Every scaler of the supported families is one `(shift, scale)` per row and channel, computed over
//! the masked time axis, so that undoing it is one multiply-add. Not the per-series scalers of a
//! training set: the forecaster applies those before a window exists.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, StateId, ValueId, WeightId};

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
    /// deviations over runs (`Center::Mean` with `Spread::Deviation*` only).
    pub running: Option<StateId>,
}

/// Parameters of `denormalize`: `y = unscale(x)` with the statistics of a [`Normalize`]. Writes one
/// value of the shape of `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Denormalize {
    /// Scaled forecasts `[B, H, C · O]`, channels outer.
    pub x: ValueId,
    /// Statistics `[B, 2, C]`, or `[B, N, 2]` of a prefix scaler, of which the last patch's are used.
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
            let channels = c.fixed("the channels of `x`", x.last())?;
            let deviation = matches!(self.scaler.spread, Spread::Deviation | Spread::DeviationInside(_));
            if c.state(state) != [3, channels]
                || self.scaler.center != Center::Mean
                || !deviation
                || self.statistics != Statistics::Window
            {
                return Err(c.error(format!(
                    "running statistics need mean and deviation over windows and a state of shape \
                     [3, {channels}], found {:?}",
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
