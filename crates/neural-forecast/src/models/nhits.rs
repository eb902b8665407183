//! neuralforecast's NHITS: MLP blocks over pooled residuals of the window, whose forecasts are
//! interpolated and summed.
//!
//! The framework runs over the window backwards. Here time runs forwards: pooling windows are
//! aligned at the end, and the weights that meet backward axes are reversed at load.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, BinaryKind, Interpolate, InterpolateKind, Linear, Operand, Pool, PoolKind,
};
use neural_forecast_runtime::plan::{Channel, Dim, EntryKind, Plan, PlanBuilder, ValueId};
use serde::{Deserialize, Serialize};

use super::blocks::{self, LAYERS_MAX, check_sizes, in_range};
use super::nonlinearity::Nonlinearity;
use super::window::{Window, WindowConfig};
use crate::weights::Weights;

/// Most affine maps of all blocks together; the default has 15.
const MAPS_MAX: usize = 4096;

/// `pooling_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// `MaxPool1d`.
    Maximum,
    /// `AvgPool1d`.
    Mean,
}

/// `interpolation_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Linear between knots.
    Linear,
    /// The nearest knot.
    Nearest,
    /// Cubic convolution; only with one output.
    Cubic,
}

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// `n_pool_kernel_size` of its stack.
    pub pool: usize,
    /// `n_freq_downsample` of its stack.
    pub downsample: usize,
}

/// The hyper-parameters that matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NhitsConfig {
    /// Inputs, outputs and scaling.
    pub window: WindowConfig,
    /// Blocks of all stacks.
    pub blocks: Vec<Block>,
    /// `mlp_units`: inputs and outputs of each hidden layer, the same for all blocks.
    pub units: Vec<[usize; 2]>,
    /// How inputs are pooled.
    pub pooling: Pooling,
    /// How forecasts are interpolated.
    pub interpolation: Interpolation,
    /// `activation`.
    pub activation: Nonlinearity,
    /// Whether `dropout_prob_theta` is above 0: dropout then counts as a layer in names.
    pub dropout: bool,
}

/// Builds the plan of a configuration.
///
/// # Errors
/// A number that is out of its range.
pub fn plan(config: &NhitsConfig, channels: Vec<Channel>) -> Result<Plan, PlanError> {
    config.check()?;
    let WindowConfig { context, horizon, outputs, .. } = config.window;
    let mut b = PlanBuilder::new("NHITS", config.window.plan_context());
    b.begin(EntryKind::Full);
    let window = config.window.begin(&mut b, horizon, true)?;
    let flat = [Dim::BATCH, context.into()];
    let mut residual = blocks::reshape(&mut b, window.target, &flat)?;
    let mask = window.mask.ok_or_else(|| PlanError::new("NHITS", "has no mask"))?;
    let mask = blocks::reshape(&mut b, mask, &flat)?;
    // The last value is the forecast that blocks correct.
    let last = blocks::slice(&mut b, residual, 1, context - 1, 1)?;
    let last = blocks::reshape(&mut b, last, &[Dim::BATCH])?;
    let level = blocks::expand(&mut b, Operand::Value(last), 1, horizon)?;
    let mut forecast = blocks::expand(&mut b, Operand::Value(level), 2, outputs)?;
    for i in 0..config.blocks.len() {
        b.scope(format!("blocks.{i}"));
        let theta = config.theta(&mut b, i, residual, &window)?;
        if i + 1 < config.blocks.len() {
            let backcast = blocks::slice(&mut b, theta, 1, 0, context)?;
            let rest = blocks::binary(&mut b, residual, BinaryKind::Subtract, backcast)?;
            residual = blocks::binary(&mut b, rest, BinaryKind::Multiply, mask)?;
        }
        let knots = config.knots(i);
        let part = blocks::slice(&mut b, theta, 1, context, outputs * knots)?;
        let part = blocks::reshape(&mut b, part, &[Dim::BATCH, outputs.into(), knots.into()])?;
        let kind = match config.interpolation {
            Interpolation::Linear => InterpolateKind::Linear,
            Interpolation::Nearest => InterpolateKind::Nearest,
            Interpolation::Cubic => InterpolateKind::Cubic,
        };
        let part = b.one(Interpolate { x: part, size: horizon, kind })?;
        let part = blocks::transpose(&mut b, part, &[0, 2, 1])?;
        forecast = blocks::binary(&mut b, forecast, BinaryKind::Add, part)?;
    }
    let forecast = config.window.unscale(&mut b, forecast, window.statistics)?;
    b.output("forecast", forecast, channels);
    b.finish()
}

/// Reverses the axes of weights that the framework keeps backwards in time.
///
/// # Errors
/// A weight is missing or has another shape.
pub(crate) fn rearrange(config: &NhitsConfig, weights: &mut Weights) -> Result<(), PlanError> {
    config.check()?;
    let context = config.window.context;
    let first = config.units.first().map_or(0, |unit| unit[0]);
    for i in 0..config.blocks.len() {
        let name = config.layer(i, 0);
        let shape = [first, config.inputs(i)];
        let mut stored = super::elements(weights, &format!("{name}.weight"), &shape)?;
        for row in stored.chunks_exact_mut(shape[1].max(1)) {
            row[..config.pooled(i)].reverse();
        }
        weights.remove(&format!("{name}.weight"));
        weights.insert(forwards(&name, "weight"), &shape, &stored);

        let name = config.layer(i, config.units.len() + 1);
        let width = config.units.last().map_or(0, |unit| unit[1]);
        let shape = [config.outputs(i), width];
        let stored = super::elements(weights, &format!("{name}.weight"), &shape)?;
        let (backcast, knots) = stored.split_at(context * width);
        let mut moved: Vec<f32> =
            backcast.chunks_exact(width.max(1)).rev().flatten().copied().collect();
        moved.extend(knots);
        weights.remove(&format!("{name}.weight"));
        weights.insert(forwards(&name, "weight"), &shape, &moved);

        let shape = [config.outputs(i)];
        let mut bias = super::elements(weights, &format!("{name}.bias"), &shape)?;
        bias[..context].reverse();
        weights.remove(&format!("{name}.bias"));
        weights.insert(forwards(&name, "bias"), &shape, &bias);
    }
    Ok(())
}

/// Name of a weight whose backward axis was reversed.
fn forwards(layer: &str, part: &str) -> String {
    format!("{layer}.forwards.{part}")
}

impl NhitsConfig {
    fn check(&self) -> Result<(), PlanError> {
        let place = "NHITS";
        self.window.check(place)?;
        in_range(place, "number of blocks", self.blocks.len(), 1, LAYERS_MAX)?;
        in_range(place, "length of mlp_units", self.units.len(), 1, LAYERS_MAX)?;
        let maps = self.blocks.len() * (self.units.len() + 2);
        in_range(place, "number of affine maps", maps, 1, MAPS_MAX)?;
        for block in &self.blocks {
            check_sizes(
                place,
                &[("n_pool_kernel_size", block.pool), ("n_freq_downsample", block.downsample)],
            )?;
        }
        for [inputs, outputs] in &self.units {
            check_sizes(place, &[("mlp_units", *inputs), ("mlp_units", *outputs)])?;
        }
        for pair in self.units.windows(2) {
            // The framework builds such layers and fails when it first runs them.
            if pair[0][1] != pair[1][0] {
                let message = format!("`mlp_units` {pair:?} do not fit together");
                return Err(PlanError::new(place, message));
            }
        }
        if self.interpolation == Interpolation::Cubic && self.window.outputs > 1 {
            let message = "cubic interpolation has one output, found several";
            return Err(PlanError::new(place, message));
        }
        Ok(())
    }

    /// Pooled steps of the context.
    fn pooled(&self, block: usize) -> usize {
        self.window.context.div_ceil(self.blocks[block].pool)
    }

    /// Width of a block's input.
    fn inputs(&self, block: usize) -> usize {
        let WindowConfig { context, horizon, historic, future, statics, .. } = self.window;
        let ahead = (context + horizon).div_ceil(self.blocks[block].pool);
        self.pooled(block) * (1 + historic) + ahead * future + statics
    }

    /// Knots of a block's forecast, for each output.
    fn knots(&self, block: usize) -> usize {
        (self.window.horizon / self.blocks[block].downsample).max(1)
    }

    /// Width of a block's result: backcast, then knots.
    fn outputs(&self, block: usize) -> usize {
        self.window.context + self.window.outputs * self.knots(block)
    }

    /// Name of affine map `j` of a block: the first, one for each unit, the last.
    fn layer(&self, block: usize, j: usize) -> String {
        let step = if self.dropout { 3 } else { 2 };
        let index = if j < 2 { j } else { 1 + (j - 1) * step };
        format!("blocks.{block}.layers.{index}")
    }

    /// Backcast and knots `[B, outputs]` of a block.
    fn theta(
        &self,
        b: &mut PlanBuilder,
        i: usize,
        residual: ValueId,
        window: &Window,
    ) -> Result<ValueId, PlanError> {
        let mut x = self.input(b, i, residual, window)?;
        let mut width = self.inputs(i);
        let first = self.units.first().map_or(0, |unit| unit[0]);
        let name = self.layer(i, 0);
        let weight = b.weight(forwards(&name, "weight"), &[first, width]);
        let bias = b.weight(format!("{name}.bias"), &[first]);
        x = b.one(Linear::new(x, weight).bias(bias))?;
        width = first;
        let activation: Activation = self.activation.activation();
        for (j, unit) in self.units.iter().enumerate() {
            let linear = blocks::linear(b, x, &self.layer(i, j + 1), [unit[1], width], true);
            x = b.one(linear.activation(activation))?;
            width = unit[1];
        }
        let name = self.layer(i, self.units.len() + 1);
        let weight = b.weight(forwards(&name, "weight"), &[self.outputs(i), width]);
        let bias = b.weight(forwards(&name, "bias"), &[self.outputs(i)]);
        b.one(Linear::new(x, weight).bias(bias))
    }

    /// A block's input: pooled residual, pooled columns, statics, `[B, inputs]`.
    fn input(
        &self,
        b: &mut PlanBuilder,
        i: usize,
        residual: ValueId,
        window: &Window,
    ) -> Result<ValueId, PlanError> {
        let WindowConfig { context, horizon, historic, future, .. } = self.window;
        let pool = self.blocks[i].pool;
        let mut parts = Vec::new();
        // Backwards the incomplete window is the last; forwards it is the first.
        let odd = context % pool;
        if odd > 0 {
            let start = blocks::slice(b, residual, 1, 0, odd)?;
            parts.push(self.pool(b, start, None)?);
        }
        if context > odd {
            let rest = match odd {
                0 => residual,
                _ => blocks::slice(b, residual, 1, odd, context - odd)?,
            };
            parts.push(self.pool(b, rest, Some(pool))?);
        }
        for (columns, x, length) in
            [(historic, window.historic, context), (future, window.future, context + horizon)]
        {
            if let Some(x) = x {
                let x = self.pool(b, x, Some(pool))?;
                let width = length.div_ceil(pool) * columns;
                parts.push(blocks::reshape(b, x, &[Dim::BATCH, width.into()])?);
            }
        }
        parts.extend(window.statics);
        match parts[..] {
            [one] => Ok(one),
            _ => blocks::concat(b, &parts, 1),
        }
    }

    /// Pools axis 1; without a kernel all of it.
    fn pool(
        &self,
        b: &mut PlanBuilder,
        x: ValueId,
        kernel: Option<usize>,
    ) -> Result<ValueId, PlanError> {
        if kernel == Some(1) {
            return Ok(x);
        }
        let kind = match self.pooling {
            Pooling::Maximum => PoolKind::Maximum,
            Pooling::Mean => PoolKind::Mean,
        };
        b.one(Pool { x, axis: 1, kernel, kind })
    }
}
