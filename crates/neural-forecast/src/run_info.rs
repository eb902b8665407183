//! How a result was made: one struct for the library, the command line's JSON and the server.
//!
//! Says what ran, not how long it took: that is the benchmark's business.

use neural_forecast_runtime::device::{KernelClass, KernelCount, Precision, WeightSource};
use neural_forecast_runtime::plan::Plan;
use serde::ser::{SerializeMap, Serializer};

/// Device, precision, kernels and weights behind a result, and why it was not the device that was
/// asked for.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RunInfo {
    /// The device's id, for example `cpu`.
    pub device: String,
    /// Number format of weights and products.
    #[serde(serialize_with = "precision_name")]
    pub precision: Precision,
    /// Which kernels.
    #[serde(serialize_with = "class_name")]
    pub kernel_class: KernelClass,
    /// Content hash of the weights, see [`ContentHash`].
    pub model_hash: String,
    /// Why the CPU stands in for another device; `None` where it does not.
    pub fallback: Option<String>,
    /// Launches of each kernel, as `{"gemm-avx512-f32": 3}` in JSON, and beside them as
    /// `"rnn_whole-latency-f16 lingering"` the runs that one served without a launch. A device
    /// counts for all its users, so runs of other threads at the same time are in here too. Empty
    /// where nobody asked.
    #[serde(serialize_with = "launches")]
    pub kernels: Vec<KernelCount>,
}

/// What was launched between two readings of a device's counters.
pub fn launched(before: &[KernelCount], after: &[KernelCount]) -> Vec<KernelCount> {
    let earlier = |kernel: &str| {
        let known = before.iter().find(|count| count.kernel == kernel);
        known.map_or((0, 0), |count| (count.launches, count.lingering))
    };
    after
        .iter()
        .map(|count| {
            let (launches, lingering) = earlier(&count.kernel);
            KernelCount {
                kernel: count.kernel.clone(),
                launches: count.launches.saturating_sub(launches),
                lingering: count.lingering.saturating_sub(lingering),
            }
        })
        .filter(|count| count.launches + count.lingering > 0)
        .collect()
}

/// Content hash of weights as results carry it. Tells weight sets apart; it is no protection
/// against anybody.
///
/// Four independent multiply-and-rotate lanes over 32 bytes at a time, so that hashing costs less
/// than reading; a step is a bijection of its lane, so that no single changed byte is lost.
#[derive(Clone, Debug, Default)]
pub struct ContentHash {
    lanes: [u64; 4],
}

impl ContentHash {
    /// 2⁶⁴ divided by the golden ratio, odd.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Adds the weights of a plan in its order: name, shape, element type and bytes of each. A
    /// weight that the source has not is left out.
    pub fn weights(&mut self, plan: &Plan, source: &dyn WeightSource) {
        for weight in &plan.weights {
            let Some(view) = source.weight(&weight.name) else { continue };
            self.update(weight.name.as_bytes());
            view.shape.iter().for_each(|n| self.update(&(*n as u64).to_le_bytes()));
            self.update(&[view.dtype as u8]);
            self.update(view.bytes);
        }
    }

    /// 16 hexadecimal digits.
    pub fn finish(self) -> String {
        let hash = self.lanes.into_iter().fold(Self::FACTOR, |hash, lane| {
            let mixed = (hash ^ lane).wrapping_mul(Self::FACTOR);
            mixed ^ (mixed >> 32)
        });
        format!("{hash:016x}")
    }

    fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<32>();
        blocks.iter().for_each(|block| self.block(block));
        // The length keeps a padded end apart from zeros.
        let mut last = [0; 32];
        last[..rest.len()].copy_from_slice(rest);
        self.block(&last);
        let mut length = [0; 32];
        length[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.block(&length);
    }

    fn block(&mut self, block: &[u8; 32]) {
        for (lane, word) in self.lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            let mixed = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(Self::FACTOR);
            *lane = mixed.rotate_left(29).wrapping_add(Self::FACTOR);
        }
    }
}

/// The content hash of one plan's weights.
pub fn weights_hash(plan: &Plan, source: &dyn WeightSource) -> String {
    let mut hash = ContentHash::default();
    hash.weights(plan, source);
    hash.finish()
}

fn precision_name<S: Serializer>(precision: &Precision, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(precision.name())
}

fn class_name<S: Serializer>(class: &KernelClass, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(class.name())
}

fn launches<S: Serializer>(kernels: &[KernelCount], s: S) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(None)?;
    for count in kernels {
        map.serialize_entry(&count.kernel, &count.launches)?;
        if count.lingering > 0 {
            let name = format!("{} lingering", count.kernel);
            map.serialize_entry(&name, &count.lingering)?;
        }
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(kernel: &str, launches: u64) -> KernelCount {
        KernelCount { kernel: kernel.into(), launches, lingering: 0 }
    }

    #[test]
    fn launches_are_differences_of_readings() {
        let before = [count("gemm", 3), count("norm", 1)];
        let after = [count("attention", 2), count("gemm", 5), count("norm", 1)];
        assert_eq!(launched(&before, &after), [count("attention", 2), count("gemm", 2)]);
    }

    #[test]
    fn every_byte_and_length_counts() {
        let hash = |bytes: &[u8]| {
            let mut hash = ContentHash::default();
            hash.update(bytes);
            hash.finish()
        };
        let bytes: Vec<u8> = (0..100).collect();
        let mut seen = std::collections::BTreeSet::from([hash(&bytes), hash(&bytes[..99])]);
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 0x40;
            seen.insert(hash(&changed));
        }
        assert!(seen.insert(hash(&[])) && seen.insert(hash(&[0])) && seen.insert(hash(&[0, 0])));
        assert_eq!(seen.len(), bytes.len() + 5);
        assert_eq!(hash(&bytes).len(), 16);
    }

    #[test]
    fn prints_names_rather_than_variants() {
        let info = RunInfo {
            device: "cpu".into(),
            precision: Precision::Bf16,
            kernel_class: KernelClass::Latency,
            model_hash: "00ff".into(),
            fallback: None,
            kernels: vec![
                count("gemm-avx2-bf16", 7),
                KernelCount { lingering: 2, ..count("rnn", 1) },
            ],
        };
        let json = serde_json::to_string(&info).unwrap();
        let expected = concat!(
            r#"{"device":"cpu","precision":"bf16","kernel_class":"latency","#,
            r#""model_hash":"00ff","fallback":null,"kernels":{"gemm-avx2-bf16":7,"#,
            r#""rnn":1,"rnn lingering":2}}"#
        );
        assert_eq!(json, expected);
    }
}
