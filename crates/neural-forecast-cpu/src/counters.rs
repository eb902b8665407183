//! How often each kernel served, so that a test or a user can see which one it was.
//!
//! Not a profiler: calls, not time.

use crate::isa::Isa;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// As given.
    F32,
    /// Rounded to bf16 when packed, widened to `f32` when multiplied.
    Bf16,
}

impl Precision {
    /// `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
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

/// Calls by kernel: of a device, or of the process.
#[derive(Debug)]
pub struct Counters([[AtomicU64; 6]; STEMS.len()]);

static PROCESS: Counters = Counters::new();

impl Default for Counters {
    fn default() -> Self {
        Counters::new()
    }
}

impl Counters {
    /// None yet.
    pub const fn new() -> Self {
        Counters([const { [const { AtomicU64::new(0) }; 6] }; STEMS.len()])
    }

    /// Counts one call.
    #[inline]
    pub fn count(&self, stem: Stem, isa: Isa, precision: Precision) {
        let tier = TIERS.iter().position(|tier| *tier == isa.name()).unwrap_or(0);
        self.0[stem as usize][column(tier, precision)].fetch_add(1, Ordering::Relaxed);
    }

    /// Calls by kernel name, for example `gemm-avx512-f32`; names without calls are left out.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let mut calls = BTreeMap::new();
        for (row, (_, stem)) in STEMS.iter().enumerate() {
            for (tier, name) in TIERS.iter().enumerate() {
                for precision in [Precision::F32, Precision::Bf16] {
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
    tier * 2 + usize::from(precision == Precision::Bf16)
}

/// Counts one call in the process's counters.
#[inline]
pub fn count(stem: Stem, isa: Isa, precision: Precision) {
    PROCESS.count(stem, isa, precision);
}

const TIERS: [&str; 3] = ["portable", "avx2", "avx512"];

/// Calls of the process so far, whichever device made them.
pub fn snapshot() -> BTreeMap<String, u64> {
    PROCESS.snapshot()
}
