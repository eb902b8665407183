//! `empirical_quantiles` and `sample`: from samples to quantiles, and from a distribution's
//! parameters to samples.
//!
//! Random numbers come from Philox 4x32-10, a counter-based generator: the sample at a position
//! depends on seed and position alone, never on the batch it travelled in.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};

/// Parameters of `empirical_quantiles`: `[…, S] → […, Q]`, linear interpolation between order
/// statistics (`torch.quantile`'s default). Writes one value.
#[derive(Clone, Debug, PartialEq)]
pub struct EmpiricalQuantiles {
    /// Samples along the last axis.
    pub x: ValueId,
    /// Levels in `[0, 1]`.
    pub levels: Vec<f64>,
}

/// A distribution that can be sampled, with its parameters in the order of the last axis of
/// `parameters`. Parameters are in their natural domain (a model applies softplus before).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Mean, standard deviation. Box–Muller.
    Normal,
    /// Degrees of freedom, location, scale. Bailey's polar form.
    StudentT,
}

/// Parameters of `sample`: `[B, H, parameters] → [B, H, count]`. Writes one value.
///
/// Sample `s` at `(row, step)` uses the Philox block with key `seed[row]` (its two halves) and
/// counter `(s, step, 0, 0)`; its first two words become the two uniforms in (0, 1).
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Distribution parameters.
    pub parameters: ValueId,
    /// Which distribution.
    pub distribution: Distribution,
    /// Samples per position.
    pub count: usize,
    /// `[B, 2]`, `I32`: the seed of each row, so that a row samples alike in any batch.
    pub seed: ValueId,
}

impl Distribution {
    /// How many parameters it has.
    pub fn parameters(self) -> usize {
        match self {
            Distribution::Normal => 2,
            Distribution::StudentT => 3,
        }
    }
}

impl EmpiricalQuantiles {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let mut out = c.shape(self.x).to_vec();
        if c.fixed("the samples", out.last())? == 0 {
            return Err(c.error("quantiles of no samples"));
        }
        if !self.levels.iter().all(|level| (0.0..=1.0).contains(level)) {
            return Err(c.error(format!("levels {:?} must be in [0, 1]", self.levels)));
        }
        if let Some(last) = out.last_mut() {
            *last = Dim::Fixed(self.levels.len());
        }
        Ok(vec![(DType::F32, out)])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}

impl Sample {
    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let parameters = c.expect_rank("parameters", self.parameters, 3, "[B, H, parameters]")?;
        let wanted = self.distribution.parameters();
        if parameters[2] != Dim::Fixed(wanted) {
            return Err(c.error(format!(
                "{:?} has {wanted} parameters, `parameters` has shape {parameters:?}",
                self.distribution
            )));
        }
        c.expect_value("seed", self.seed, &[parameters[0], Dim::Fixed(2)], "[B, 2]")?;
        if c.entry.value(self.seed).dtype != DType::I32 {
            return Err(c.error("`seed` must be i32"));
        }
        Ok(vec![(DType::F32, vec![parameters[0], parameters[1], self.count.into()])])
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.parameters);
        visit(&mut self.seed);
    }

    pub(crate) fn visit_weights(&mut self, _: &mut dyn FnMut(&mut WeightId)) {}
}
