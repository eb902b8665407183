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
    /// Content hash of the weights, see [`weights_hash`].
    pub model_hash: String,
    /// Why the CPU stands in for another device; `None` where it does not.
    pub fallback: Option<String>,
    /// Launches of each kernel, as `{"gemm-avx512-f32": 3}` in JSON. A device counts for all its
    /// users, so runs of other threads at the same time are in here too. Empty where nobody asked.
    #[serde(serialize_with = "launches")]
    pub kernels: Vec<KernelCount>,
}

/// What was launched between two readings of a device's counters.
pub fn launched(before: &[KernelCount], after: &[KernelCount]) -> Vec<KernelCount> {
    let earlier = |kernel: &str| {
        before.iter().find(|count| count.kernel == kernel).map_or(0, |count| count.launches)
    };
    after
        .iter()
        .map(|count| KernelCount {
            kernel: count.kernel.clone(),
            launches: count.launches.saturating_sub(earlier(&count.kernel)),
        })
        .filter(|count| count.launches > 0)
        .collect()
}

/// Content hash of a plan's weights, 16 hexadecimal digits: FNV-1a over 64-bit words of the name,
/// shape and little-endian f32 elements of every weight in the plan's order. Tells weight sets
/// apart; it is no protection against anybody. A weight that the source lacks counts as empty.
pub fn weights_hash(plan: &Plan, source: &dyn WeightSource) -> String {
    let mut hash = Fnv::default();
    for weight in &plan.weights {
        hash.bytes(weight.name.as_bytes());
        weight.shape.iter().for_each(|&n| hash.word(n as u64));
        if let Some(view) = source.weight(&weight.name) {
            for pair in view.to_f32().chunks(2) {
                let high = pair.get(1).map_or(0, |x| x.to_bits());
                hash.word(u64::from(pair[0].to_bits()) | u64::from(high) << 32);
            }
        }
    }
    format!("{:016x}", hash.0)
}

struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn word(&mut self, word: u64) {
        // The rotation lets high bits, which a product alone only moves up, reach low ones.
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        self.word(bytes.len() as u64);
    }
}

fn precision_name<S: Serializer>(precision: &Precision, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(precision.name())
}

fn class_name<S: Serializer>(class: &KernelClass, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(class.name())
}

fn launches<S: Serializer>(kernels: &[KernelCount], s: S) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(kernels.len()))?;
    for count in kernels {
        map.serialize_entry(&count.kernel, &count.launches)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(kernel: &str, launches: u64) -> KernelCount {
        KernelCount { kernel: kernel.into(), launches }
    }

    #[test]
    fn launches_are_differences_of_readings() {
        let before = [count("gemm", 3), count("norm", 1)];
        let after = [count("attention", 2), count("gemm", 5), count("norm", 1)];
        assert_eq!(launched(&before, &after), [count("attention", 2), count("gemm", 2)]);
    }

    #[test]
    fn prints_names_rather_than_variants() {
        let info = RunInfo {
            device: "cpu".into(),
            precision: Precision::Bf16,
            kernel_class: KernelClass::Latency,
            model_hash: "00ff".into(),
            fallback: None,
            kernels: vec![count("gemm-avx2-bf16", 7)],
        };
        let json = serde_json::to_string(&info).unwrap();
        let expected = concat!(
            r#"{"device":"cpu","precision":"bf16","kernel_class":"latency","#,
            r#""model_hash":"00ff","fallback":null,"kernels":{"gemm-avx2-bf16":7}}"#
        );
        assert_eq!(json, expected);
    }
}
