//! Which instruction set serves this process, chosen once when the device opens.
//!
//! Never falls back silently: a tier that was asked for and is not there is an error. A tier has
//! all instructions of the ones before it; those that differ only in how they multiply bf16 and
//! bytes share their `f32` kernels.

#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512, Avx512Bf16, Avx512Fp16, Avx512Vnni};
use crate::simd::{Kernel, Portable, Simd};
use std::fmt;

/// The environment variable that forces a tier.
pub const ISA_VARIABLE: &str = "NF_CPU_ISA";

/// A tier with the proof that this machine has it.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    /// Plain Rust, on every machine.
    Portable(Portable),
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, VL and DQ.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// AVX-512 with VNNI: bytes are multiplied by `VPDPBUSD`.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    /// AVX-512 with VNNI and BF16: bf16 are multiplied by `VDPBF16PS`.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    /// AVX-512 with VNNI, BF16 and FP16.
    #[cfg(target_arch = "x86_64")]
    Avx512Fp16(Avx512Fp16),
    /// AVX-512 with VNNI, BF16 and FP16, and AMX: bf16 and bytes are multiplied in tile registers.
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
}

/// Names of all tiers, on whatever machine, each with all instructions of the ones before.
pub const TIERS: [&str; 7] =
    ["portable", "avx2", "avx512", "avx512-vnni", "avx512-bf16", "avx512-fp16", "amx"];

/// Why a tier cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaError {
    asked: String,
    known: bool,
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
        if self.known {
            write!(f, "this machine has no `{}` instructions, it has {found}", self.asked)
        } else {
            write!(
                f,
                "unknown instruction set `{}`, expected one of {} (this machine has {found})",
                self.asked,
                TIERS.join(", ")
            )
        }
    }
}

impl std::error::Error for IsaError {}

impl Isa {
    /// Every tier of this machine, the best one last.
    pub fn available() -> Vec<Isa> {
        let portable = Portable::new().map(Isa::Portable);
        #[cfg(target_arch = "x86_64")]
        let found = [
            portable,
            Avx2::new().map(Isa::Avx2),
            Avx512::new().map(Isa::Avx512),
            Avx512Vnni::new().map(Isa::Avx512Vnni),
            Avx512Bf16::new().map(Isa::Avx512Bf16),
            Avx512Fp16::new().map(Isa::Avx512Fp16),
            Amx::new().map(Isa::Amx),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let found = [portable];
        found.into_iter().flatten().collect()
    }

    /// The tier that serves unless another is asked for.
    pub fn best() -> Option<Isa> {
        Isa::available().pop()
    }

    /// The tier named `name`, or [`Isa::best`].
    ///
    /// # Errors
    /// If there is no such tier, or not on this machine.
    pub fn named(name: Option<&str>) -> Result<Isa, IsaError> {
        match name {
            None => Isa::best().ok_or(IsaError { asked: "portable".into(), known: true }),
            Some(name) => {
                Isa::available().into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
                    let known = TIERS.contains(&name);
                    IsaError { asked: name.to_owned(), known }
                })
            }
        }
    }

    /// The tier that [`ISA_VARIABLE`] names, or [`Isa::best`] where it is unset or empty.
    ///
    /// # Errors
    /// As [`Isa::named`].
    pub fn from_environment() -> Result<Isa, IsaError> {
        let value = std::env::var_os(ISA_VARIABLE).filter(|value| !value.is_empty());
        let value = value.map(|value| value.to_string_lossy().into_owned());
        Isa::named(value.as_deref())
    }

    /// Position in [`TIERS`].
    pub fn tier(self) -> usize {
        match self {
            Isa::Portable(_) => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => 1,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => 2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => 3,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Fp16(_) => 5,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_) => 6,
        }
    }

    /// One of [`TIERS`].
    pub fn name(self) -> &'static str {
        TIERS[self.tier()]
    }

    /// Floats in a vector.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Portable(_) => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_)
            | Isa::Avx512Vnni(_)
            | Isa::Avx512Bf16(_)
            | Isa::Avx512Fp16(_)
            | Isa::Amx(_) => Avx512::LANES,
        }
    }

    /// Most rows of a register tile of floats that is this many vectors wide.
    pub fn tile_rows(self, vectors: usize) -> usize {
        let rows = match self {
            Isa::Portable(_) => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_)
            | Isa::Avx512Vnni(_)
            | Isa::Avx512Bf16(_)
            | Isa::Avx512Fp16(_)
            | Isa::Amx(_) => Avx512::ROWS,
        };
        rows[vectors - 1]
    }

    /// Runs a kernel on this tier.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Portable(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(token) => token.base().vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(token) => token.vnni().base().vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Fp16(token) => token.bf16().vnni().base().vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(token) => token.vectors().vnni().base().vectorize(kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_named_in_order() {
        let available = Isa::available();
        assert!(available.is_sorted_by_key(|isa| isa.tier()));
        for isa in available {
            let name = match isa {
                Isa::Portable(_) => Portable::NAME,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(_) => Avx2::NAME,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(_) => Avx512::NAME,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni(_) => Avx512Vnni::NAME,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16(_) => Avx512Bf16::NAME,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Fp16(_) => Avx512Fp16::NAME,
                #[cfg(target_arch = "x86_64")]
                Isa::Amx(_) => Amx::NAME,
            };
            assert_eq!(isa.name(), name);
        }
    }

    #[test]
    fn a_forced_tier_is_that_tier_or_an_error() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(Some(isa.name())).map(|found| found.name()), Ok(isa.name()));
        }
        let error = Isa::named(Some("avx1024")).map(|isa| isa.name()).unwrap_err();
        assert!(error.to_string().contains("`avx1024`"), "{error}");
        assert!(error.to_string().contains("portable"), "{error}");
    }
}
