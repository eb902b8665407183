//! Fresh numbers for tests, with the seed printed so that a failure can be repeated.
//!
//! `NF_SEED` repeats a run. Not for forecasts: those sample with a counter-based generator.

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by `NF_SEED` or the clock.
    pub(crate) fn new(what: &str) -> Self {
        let given = std::env::var("NF_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = given.unwrap_or_else(|| now.map_or(1, |d| d.as_nanos() as u64));
        println!("{what}: NF_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (−1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}
