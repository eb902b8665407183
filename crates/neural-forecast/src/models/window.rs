//! The window of a neuralforecast model: its inputs, its scaling and the way back.
//!
//! Reproduces `TemporalNorm`: statistics of each column over the available steps of the context,
//! applied to all its steps, undone on forecasts of the target. Not the scaling of whole series.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Binary, BinaryKind, Center, Denormalize, Normalize, Operand, Ramp, Scaler, Spread, UnaryKind,
    ZeroSpread,
};
use neural_forecast_runtime::plan::{Context, DType, Dim, PlanBuilder, ValueId};
use serde::{Deserialize, Serialize};

use super::blocks::{self, LAYERS_MAX, SIZE_MAX, check_sizes, in_range};
use crate::weights::Weights;

/// Added to every scale; neuralforecast's constant.
pub(crate) const SCALE_EPS: f32 = 1e-6;

/// Name of the derived weight that a `revin` forecast is multiplied by, `[1]`.
pub(crate) const REVIN_SCALE: &str = "scaler.revin_scale";

/// Name of the derived weight that is added to a `revin` forecast, `[1]`.
pub(crate) const REVIN_SHIFT: &str = "scaler.revin_shift";

/// `scaler_type` of a neuralforecast model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowScaler {
    /// Leaves values as they are.
    #[default]
    Identity,
    /// Mean and population standard deviation.
    Standard,
    /// Lower median and median absolute deviation.
    Robust,
    /// Minimum and range, to 0..1.
    MinMax,
    /// Minimum and range, to −1..1.
    MinMax1,
    /// `asinh` after `robust`.
    Invariant,
    /// As `standard`, with a learned affine map on the way back.
    Revin,
}

impl WindowScaler {
    /// The scaler of this neuralforecast name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "identity" => WindowScaler::Identity,
            "standard" => WindowScaler::Standard,
            "robust" => WindowScaler::Robust,
            "minmax" => WindowScaler::MinMax,
            "minmax1" => WindowScaler::MinMax1,
            "invariant" => WindowScaler::Invariant,
            "revin" => WindowScaler::Revin,
            _ => return None,
        })
    }

    fn scaler(self) -> Option<Scaler> {
        Some(match self {
            WindowScaler::Identity => return None,
            WindowScaler::Standard | WindowScaler::Revin => Scaler::standard(SCALE_EPS),
            WindowScaler::Robust => Scaler::robust(SCALE_EPS),
            WindowScaler::Invariant => Scaler { asinh: true, ..Scaler::robust(SCALE_EPS) },
            WindowScaler::MinMax | WindowScaler::MinMax1 => Scaler {
                center: Center::Minimum,
                spread: Spread::Range,
                zero: ZeroSpread::Value(1.0),
                eps: SCALE_EPS,
                asinh: false,
            },
        })
    }
}

/// What a window holds and how it is scaled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Horizon `H` in steps.
    pub horizon: usize,
    /// Context `L` in steps; one more than `input_size` for a recurrent model.
    pub context: usize,
    /// Scaling by the window's own statistics.
    pub scaler: WindowScaler,
    /// Whether the network sees zeros instead of the target.
    pub exclude_target: bool,
    /// Number of historic columns `X`.
    pub historic: usize,
    /// Number of future columns `F`.
    pub future: usize,
    /// Number of static columns `S`.
    pub statics: usize,
    /// Number of outputs `O`.
    pub outputs: usize,
}

/// The values of a window, scaled.
pub(crate) struct Window {
    /// `[B, L, 1]`.
    pub target: ValueId,
    /// `[B, L, 1]`.
    pub mask: Option<ValueId>,
    /// `[B, L, X]`.
    pub historic: Option<ValueId>,
    /// `[B, L + H, F]`.
    pub future: Option<ValueId>,
    /// `[B, S]`, as given.
    pub statics: Option<ValueId>,
    /// Shift and scale of the target, `[B, 2, 1]`.
    pub statistics: Option<ValueId>,
    /// Shift and scale of the future columns, `[B, 2, F]`.
    pub future_statistics: Option<ValueId>,
}

impl WindowConfig {
    /// Checks the numbers, so that plans stay within bounds.
    pub(crate) fn check(&self, place: &str) -> Result<(), PlanError> {
        let sizes = [("h", self.horizon), ("input_size", self.context), ("outputs", self.outputs)];
        check_sizes(place, &sizes)?;
        for (name, columns) in [
            ("hist_exog_list", self.historic),
            ("futr_exog_list", self.future),
            ("stat_exog_list", self.statics),
        ] {
            in_range(place, name, columns, 0, LAYERS_MAX)?;
        }
        in_range(place, "input_size + h", self.context + self.horizon, 2, SIZE_MAX)
    }

    /// The context as a plan declares it.
    pub(crate) fn plan_context(&self) -> Context {
        Context::Fixed(self.context)
    }

    /// Declares the inputs of an entry for a horizon, and scales them. `mask` asks for the mask
    /// even where no scaler needs it.
    pub(crate) fn begin(
        &self,
        b: &mut PlanBuilder,
        horizon: usize,
        mask: bool,
    ) -> Result<Window, PlanError> {
        b.scope("window");
        let length = self.context;
        let input = |b: &mut PlanBuilder, name: &str, steps: usize, columns: usize| {
            let shape = [Dim::BATCH, steps.into(), columns.into()];
            (columns > 0).then(|| b.input(name, DType::F32, &shape))
        };
        let y = b.input("y", DType::F32, &[Dim::BATCH, length.into(), 1.into()]);
        let mask = (mask || self.scaler != WindowScaler::Identity)
            .then(|| b.input("mask", DType::F32, &[Dim::BATCH, length.into(), 1.into()]));
        let historic = input(b, "hist_exog", length, self.historic);
        let future = input(b, "futr_exog", length + horizon, self.future);
        let statics = (self.statics > 0)
            .then(|| b.input("stat_exog", DType::F32, &[Dim::BATCH, self.statics.into()]));
        let (mut target, statistics) = self.scale(b, y, mask)?;
        if self.exclude_target {
            target = blocks::affine(b, target, 0.0, 0.0)?;
        }
        let historic = historic.map(|x| self.scale(b, x, mask)).transpose()?;
        let future = match (future, mask) {
            (Some(x), Some(mask)) if self.scaler != WindowScaler::Identity => {
                // Statistics come from the context alone: the horizon counts as not available.
                let rest = zeros(b, &[horizon, 1])?;
                let mask = blocks::concat(b, &[mask, rest], 1)?;
                Some(self.scale(b, x, Some(mask))?)
            }
            (future, _) => future.map(|x| (x, None)),
        };
        Ok(Window {
            target,
            mask,
            historic: historic.map(|(x, _)| x),
            future: future.map(|(x, _)| x),
            statics,
            statistics,
            future_statistics: future.and_then(|(_, statistics)| statistics),
        })
    }

    /// Undoes the scaling of the target on `forecast` `[B, H, O]`.
    pub(crate) fn unscale(
        &self,
        b: &mut PlanBuilder,
        forecast: ValueId,
        statistics: Option<ValueId>,
    ) -> Result<ValueId, PlanError> {
        let (Some(scaler), Some(statistics)) = (self.scaler.scaler(), statistics) else {
            return Ok(forecast);
        };
        b.scope("window");
        let x = match self.scaler {
            WindowScaler::MinMax1 => blocks::affine(b, forecast, 0.5, 0.5)?,
            WindowScaler::Revin => {
                let scale = b.weight(REVIN_SCALE, &[1]);
                b.one(Binary::weight(forecast, BinaryKind::Multiply, scale))?
            }
            _ => forecast,
        };
        let channel = Some(0);
        let op = Denormalize { x, statistics, prefix: false, channel, scaler, affine: None };
        let y = b.one(op)?;
        if self.scaler != WindowScaler::Revin {
            return Ok(y);
        }
        let shift = b.weight(REVIN_SHIFT, &[1]);
        b.one(Binary::weight(y, BinaryKind::Add, shift))
    }

    /// Makes the weights of the way back that the framework folds into the scale at run time.
    pub(crate) fn rearrange(&self, weights: &mut Weights) -> Result<(), PlanError> {
        if self.scaler != WindowScaler::Revin {
            return Ok(());
        }
        let columns = 1 + self.historic + self.future;
        for (name, made) in
            [("scaler.revin_weight", REVIN_SCALE), ("scaler.revin_bias", REVIN_SHIFT)]
        {
            // One for each scaled column, the target first; only the target goes back.
            let stored = super::elements(weights, name, &[1, 1, columns, 1])?;
            let target = stored[0];
            let scale = made == REVIN_SCALE;
            let value = if scale { target.max(0.0) + SCALE_EPS } else { target };
            weights.remove(name);
            weights.insert(made, &[1], &[value]);
        }
        Ok(())
    }

    /// Scales `x` `[B, T, C]` by statistics `[B, 2, C]` of a window before it.
    pub(crate) fn scale_by(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        statistics: Option<ValueId>,
    ) -> Result<ValueId, PlanError> {
        let Some(statistics) = statistics else { return Ok(x) };
        let (shift, scale) = blocks::shift_and_scale(b, statistics)?;
        let x = blocks::binary(b, x, BinaryKind::Subtract, shift)?;
        let x = blocks::binary(b, x, BinaryKind::Divide, scale)?;
        match self.scaler {
            WindowScaler::MinMax1 => blocks::affine(b, x, 2.0, -1.0),
            WindowScaler::Invariant => blocks::unary(b, x, UnaryKind::Asinh),
            _ => Ok(x),
        }
    }

    /// Scales columns; gives their statistics too.
    fn scale(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        mask: Option<ValueId>,
    ) -> Result<(ValueId, Option<ValueId>), PlanError> {
        let Some(scaler) = self.scaler.scaler() else { return Ok((x, None)) };
        let values = b.step(Normalize::window(x, mask, scaler))?;
        let (scaled, statistics) = (values[0], values[1]);
        if self.scaler == WindowScaler::MinMax1 {
            return Ok((blocks::affine(b, scaled, 2.0, -1.0)?, Some(statistics)));
        }
        Ok((scaled, Some(statistics)))
    }
}

/// Zeros, `[B, …shape]`.
pub(crate) fn zeros(b: &mut PlanBuilder, shape: &[usize]) -> Result<ValueId, PlanError> {
    let count = shape.iter().product::<usize>();
    let ramp = Ramp { start: 0.0, length_factor: 0.0, factor: 0.0, count: count.into() };
    let flat = b.one(ramp)?;
    let rows = blocks::expand(b, Operand::Value(flat), 0, Dim::BATCH)?;
    let shape: Vec<Dim> =
        std::iter::once(Dim::BATCH).chain(shape.iter().map(|&n| n.into())).collect();
    blocks::reshape(b, rows, &shape)
}
