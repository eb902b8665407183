//! Weights drawn at random from a seed, for models that have no file.
//!
//! Not for training: the draw is documented so that results repeat, nothing more.

use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::plan::Plan;

/// Distribution of one weight's elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in ±bound.
    Uniform(f32),
    /// All equal.
    Constant(f32),
}

/// Draws every weight of a plan; `init` says from which distribution, by name.
///
/// Each weight has a generator of its own, so that it depends on the seed and its name alone, not
/// on what else a model has: element `i` is `(u − ½) · 2 · bound` with `u` the upper 24 bits of
/// output `i + 1` of SplitMix64, as a fraction of 2²⁴, whose state starts at `seed` xor the FNV-1a
/// hash of the name.
pub fn draw(plan: &Plan, seed: u64, init: impl Fn(&str) -> Init) -> MemoryWeights {
    let mut weights = MemoryWeights::new();
    for weight in plan.weights.iter().filter(|weight| weight.parts.is_empty()) {
        let elements = weight.shape.iter().product();
        let elements = match init(&weight.name) {
            Init::Uniform(bound) => uniform(seed ^ name_hash(&weight.name), elements, bound),
            Init::Constant(value) => vec![value; elements],
        };
        weights.insert(weight.name.as_str(), &weight.shape, &elements);
    }
    weights
}

/// SplitMix64: one addition and one mix a number.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator; any seed is a good one.
    pub fn new(seed: u64) -> Self {
        SplitMix(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1), a multiple of 2⁻²⁴.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f32 {
        // 1 − u is never 0, so the logarithm is finite.
        let radius = (-2.0 * f64::from(1.0 - self.unit()).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.unit());
        (radius * angle.cos()) as f32
    }
}

fn uniform(state: u64, elements: usize, bound: f32) -> Vec<f32> {
    let mut random = SplitMix::new(state);
    (0..elements).map(|_| (random.unit() - 0.5) * 2.0 * bound).collect()
}

fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_bounded_and_repeat() {
        let values = uniform(7, 10_000, 0.25);
        assert!(values.iter().all(|v| v.abs() <= 0.25));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() <= 0.01, "mean {mean}");
        assert!((square - 0.25 * 0.25 / 3.0).abs() <= 1e-3, "mean square {square}");
        assert_eq!(values, uniform(7, 10_000, 0.25));
        assert_ne!(values, uniform(8, 10_000, 0.25));
    }

    #[test]
    fn normals_have_unit_variance() {
        let mut random = SplitMix::new(3);
        let values: Vec<f32> = (0..20_000).map(|_| random.normal()).collect();
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((square - 1.0).abs() <= 0.05, "mean square {square}");
    }
}
