//! How often each kernel served, so that a test or a user can see which one it was.
//!
//! Not a profiler: calls, not time.

use crate::isa::{Isa, TIERS};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// How weights are kept and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// As given.
    F32,
    /// Weights rounded to f16 when packed. From tier `avx512-fp16` on inputs are rounded too, and
    /// both are multiplied and summed in f16, in short chains; below, weights are widened to `f32`
    /// and inputs are not rounded: another kernel class with other bits, and fewer errors. The same
    /// with more than [`crate::dot::TERMS_MAX`] terms.
    F16,
    /// Weights rounded to bf16 when packed. From tier `avx512-bf16` on inputs are rounded too and
    /// multiplied as they are (but with more than [`crate::dot::TERMS_MAX`] terms); below, weights
    /// are widened to `f32` and inputs are not rounded: another kernel class with other bits.
    Bf16,
    /// Weights as bytes with a scale an output, inputs as bytes with a scale a row, integer sums.
    Int8,
}

/// All precisions.
const PRECISIONS: [Precision; 4] =
    [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];

impl Precision {
    /// `f32`, `f16`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}

macro_rules! stems {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// Kernels that are counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Stem { $($variant),* }

        const STEMS: &[(Stem, &str)] = &[$((Stem::$variant, $name)),*];
    };
}

stems! {
    Gemm = "gemm",
    RnnLstm = "rnn-lstm",
    RnnGru = "rnn-gru",
    RnnTanh = "rnn-tanh",
    RnnRelu = "rnn-relu",
    RnnSlstm = "rnn-slstm",
    Attention = "attention",
    Norm = "norm",
    Elementwise = "elementwise",
    Layout = "layout",
    Series = "series",
}

const COLUMNS: usize = TIERS.len() * PRECISIONS.len();

/// Calls by kernel: of a device, or of the process.
#[derive(Debug)]
pub struct Counters([[AtomicU64; COLUMNS]; STEMS.len()]);

static PROCESS: Counters = Counters::new();

impl Default for Counters {
    fn default() -> Self {
        Counters::new()
    }
}

impl Counters {
    /// None yet.
    pub const fn new() -> Self {
        Counters([const { [const { AtomicU64::new(0) }; COLUMNS] }; STEMS.len()])
    }

    /// Counts one call.
    #[inline]
    pub fn count(&self, stem: Stem, isa: Isa, precision: Precision) {
        let column = column(isa.tier(), precision);
        self.0[stem as usize][column].fetch_add(1, Ordering::Relaxed);
    }

    /// Calls by kernel name, which is what it computes, the tier that serves, and the precision
    /// (the part after the last dash), for example `gemm-avx512-f32` or `gemm-avx512-bf16-int8`;
    /// names without calls are left out.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let mut calls = BTreeMap::new();
        for (row, (_, stem)) in STEMS.iter().enumerate() {
            for (tier, name) in TIERS.iter().enumerate() {
                for precision in PRECISIONS {
                    let n = self.0[row][column(tier, precision)].load(Ordering::Relaxed);
                    if n > 0 {
                        calls.insert(format!("{stem}-{name}-{}", precision.name()), n);
                    }
                }
            }
        }
        calls
    }
}

fn column(tier: usize, precision: Precision) -> usize {
    tier * PRECISIONS.len() + precision as usize
}

/// Counts one call in the process's counters.
#[inline]
pub fn count(stem: Stem, isa: Isa, precision: Precision) {
    PROCESS.count(stem, isa, precision);
}

/// Calls of the process so far, whichever device made them.
pub fn snapshot() -> BTreeMap<String, u64> {
    PROCESS.snapshot()
}
