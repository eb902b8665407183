//! `empirical_quantiles` and `sample`: from samples to quantiles, and from a distribution's
//! parameters to samples.
//!
//! Random numbers come from Philox 4x32-10, a counter-based generator: the sample at a position
//! depends on seed and position alone, never on the batch it travelled in.

use super::{ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

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
/// counter `(s, step, 0, 0)`; its first two words `w` become the two uniforms
/// `u`, `v` = `(⌊w / 2⁹⌋ + ½) / 2²³` in (0, 1), which are exact in f32. A standard normal is
/// `√(−2 ln u) · cos(2πv)`, a Student's t with `ν` degrees `√(ν (u^(−2/ν) − 1)) · cos(2πv)`.
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

impl EmpiricalQuantiles {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let mut y = Vec::new();
        for row in x.rows() {
            let mut sorted = row.to_vec();
            sorted.sort_by(f64::total_cmp);
            let unknown = row.iter().any(|x| x.is_nan());
            y.extend(self.levels.iter().map(|level| {
                let rank = level * (sorted.len() - 1) as f64;
                let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
                if unknown { f64::NAN } else { below + (above - below) * rank.fract() }
            }));
        }
        let mut shape = x.shape.clone();
        let last = shape.len() - 1;
        shape[last] = self.levels.len();
        vec![Tensor::new(shape, y)]
    }
}

impl Sample {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let (parameters, seed) = (c.value(self.parameters), c.value(self.seed));
        let (rows, steps) = (parameters.shape[0], parameters.shape[1]);
        let y = Tensor::from_fn([rows, steps, self.count], |at| {
            let (row, step, sample) = (at[0], at[1], at[2]);
            let half = |i| seed.at(&[row, i]) as i64 as u32;
            let words = philox([sample as u32, step as u32, 0, 0], [half(0), half(1)]);
            let (u, v) = (uniform(words[0]), uniform(words[1]));
            let parameter = |i| parameters.at(&[row, step, i]);
            let turn = (std::f64::consts::TAU * v).cos();
            match self.distribution {
                Distribution::Normal => parameter(0) + parameter(1) * (-2.0 * u.ln()).sqrt() * turn,
                Distribution::StudentT => {
                    let freedom = parameter(0);
                    let radius = (freedom * (u.powf(-2.0 / freedom) - 1.0)).sqrt();
                    parameter(1) + parameter(2) * radius * turn
                }
            }
        });
        vec![y]
    }
}

/// Philox 4x32-10 (Salmon et al., 2011): four random words of a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        let (high, low) = (|p: u64| (p >> 32) as u32, |p: u64| p as u32);
        c = [high(b) ^ c[1] ^ k[0], low(b), high(a) ^ c[3] ^ k[1], low(a)];
    }
    c
}

/// A word as a number in (0, 1): its upper 23 bits and a half, divided by 2^23. Exact in f32.
pub(crate) fn uniform(word: u32) -> f64 {
    (f64::from(word >> 9) + 0.5) / f64::from(1 << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_has_the_published_words() {
        // Known-answer vectors of the authors' Random123 library.
        let all = u32::MAX;
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([all; 4], [all; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniforms_are_inside_the_open_interval_in_f32() {
        for word in [0, 1, 511, 512, u32::MAX] {
            let u = uniform(word) as f32;
            assert_eq!(f64::from(u), uniform(word));
            assert!(u > 0.0 && u < 1.0);
        }
    }
}
