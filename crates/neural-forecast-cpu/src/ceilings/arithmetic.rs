//! Loops that do nothing but multiply and add, in registers.
//!
//! Enough independent accumulators that latency is hidden, few enough that they stay in the
//! sixteen registers of the older tiers.

#[cfg(target_arch = "x86_64")]
use crate::amx::{Amx, TILE_ROWS, TILE_WORDS, TileConfig, Tiles};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};
use std::hint::black_box;

/// Accumulators: two multiply-adds a cycle with a latency of six cycles (a product and a sum on the
/// portable tier; fused ones take four or five).
const CHAINS: usize = 12;

/// Name of the loop of bf16 dot products.
pub(super) const BF16: &str = "bf16 VDPBF16PS, 512 bit";
/// Name of the loop of int8 dot products.
pub(super) const INT8: &str = "int8 VPDPBUSD, 512 bit";

/// Name of the loop of f16 multiply-adds.
pub(super) const FP16: &str = "f16 VFMADDPH, 512 bit";
/// Name of the loop of bf16 products of tile registers.
pub(super) const AMX_BF16: &str = "bf16 TDPBF16PS, tiles";
/// Name of the loop of int8 products of tile registers.
pub(super) const AMX_INT8: &str = "int8 TDPBUSD, tiles";

/// A loop of one instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arithmetic {
    /// The instruction, or what stands for it on the portable tier.
    pub(super) name: &'static str,
    /// Operations of a round; a multiply-add is two.
    pub(super) operations: usize,
    body: Body,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Fma(Isa),
    /// What the portable tier compiles to on every x86-64: arrays of accumulators would not stay in
    /// registers there.
    #[cfg(target_arch = "x86_64")]
    Sse,
    #[cfg(target_arch = "x86_64")]
    Dot(x86::Dot),
    #[cfg(target_arch = "x86_64")]
    Tiles(Amx, Terms),
}

/// What tile registers multiply.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
enum Terms {
    Bf16,
    Int8,
}

impl Arithmetic {
    /// Every loop that this machine can run.
    pub(super) fn available() -> Vec<Arithmetic> {
        let fma = |isa: Isa| Arithmetic {
            name: match isa.name() {
                "portable" => "f32 multiply, add (portable)",
                "avx2" => "f32 FMA, 256 bit",
                _ => "f32 FMA, 512 bit",
            },
            operations: 2 * CHAINS * isa.lanes(),
            body: match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Portable(_) => Body::Sse,
                _ => Body::Fma(isa),
            },
        };
        #[allow(unused_mut)]
        let mut all: Vec<Arithmetic> = super::vector_tiers().into_iter().map(fma).collect();
        #[cfg(target_arch = "x86_64")]
        all.extend(x86::Dot::available().into_iter().map(|dot| Arithmetic {
            name: dot.name(),
            operations: CHAINS * dot.operations(),
            body: Body::Dot(dot),
        }));
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = Amx::new() {
            let sums = TILE_ROWS * TILE_WORDS * TILE_WORDS;
            for (name, terms, each) in [(AMX_BF16, Terms::Bf16, 2), (AMX_INT8, Terms::Int8, 4)] {
                let operations = 2 * TILE_SUMS * sums * each;
                all.push(Arithmetic { name, operations, body: Body::Tiles(amx, terms) });
            }
        }
        all
    }

    /// Runs the loop.
    pub(super) fn run(self, rounds: usize) {
        match self.body {
            Body::Fma(isa) => black_box(isa.run(Fma { rounds })),
            #[cfg(target_arch = "x86_64")]
            Body::Sse => black_box(x86::sse(rounds)),
            #[cfg(target_arch = "x86_64")]
            Body::Dot(dot) => black_box(dot.run(rounds)),
            #[cfg(target_arch = "x86_64")]
            Body::Tiles(amx, terms) => black_box(tiles(amx, terms, rounds)),
        };
    }
}

/// Tiles of sums in flight: a product takes 16 cycles, and its sum is there after 52.
#[cfg(target_arch = "x86_64")]
const TILE_SUMS: usize = 4;

/// Products of full tiles into four tiles of sums, which start at zero and stay there.
#[cfg(target_arch = "x86_64")]
fn tiles(mut amx: Amx, terms: Terms, rounds: usize) -> f32 {
    let config = TileConfig::with_rows([TILE_ROWS as u8; crate::amx::TILES]);
    // SAFETY: the configuration is valid and of full tiles throughout, so all shapes match, and
    // the three tiles of each product differ.
    unsafe {
        amx.configure(&config);
        for _ in 0..rounds {
            match terms {
                Terms::Bf16 => {
                    amx.dot_bf16::<0, 6, 7>();
                    amx.dot_bf16::<1, 6, 7>();
                    amx.dot_bf16::<2, 6, 7>();
                    amx.dot_bf16::<3, 6, 7>();
                }
                Terms::Int8 => {
                    amx.dot_u8s8::<0, 6, 7>();
                    amx.dot_u8s8::<1, 6, 7>();
                    amx.dot_u8s8::<2, 6, 7>();
                    amx.dot_u8s8::<3, 6, 7>();
                }
            }
        }
        amx.release();
    }
    0.0
}

struct Fma {
    rounds: usize,
}

impl Kernel for Fma {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        // Each value depends on the one before, so that no product can be hoisted; it tends to 1.
        let (half, term) = (simd.splat(black_box(0.5)), simd.splat(black_box(0.5)));
        let mut chains = [simd.splat(black_box(0.0)); CHAINS];
        for _ in 0..self.rounds {
            for chain in &mut chains {
                *chain = simd.fma(*chain, half, term);
            }
        }
        chains.into_iter().map(|chain| simd.sum(chain)).sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CHAINS, black_box};
    use std::arch::x86_64::*;

    /// A multiply-add or dot-product instruction, held as proof that the machine has it.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct Dot {
        instruction: Instruction,
    }

    #[derive(Clone, Copy, Debug)]
    enum Instruction {
        Bf16,
        Int8,
        Fp16,
    }

    impl Dot {
        pub(super) fn available() -> Vec<Dot> {
            let f = is_x86_feature_detected!("avx512f");
            let bf16 = f && is_x86_feature_detected!("avx512bf16");
            let int8 = f && is_x86_feature_detected!("avx512vnni");
            let fp16 = f && is_x86_feature_detected!("avx512fp16");
            let found = [
                bf16.then_some(Instruction::Bf16),
                int8.then_some(Instruction::Int8),
                fp16.then_some(Instruction::Fp16),
            ];
            found.into_iter().flatten().map(|instruction| Dot { instruction }).collect()
        }

        pub(super) fn name(self) -> &'static str {
            match self.instruction {
                Instruction::Bf16 => super::BF16,
                Instruction::Int8 => super::INT8,
                Instruction::Fp16 => super::FP16,
            }
        }

        /// Operations of one instruction.
        pub(super) fn operations(self) -> usize {
            match self.instruction {
                Instruction::Bf16 | Instruction::Fp16 => 2 * 32,
                Instruction::Int8 => 2 * 64,
            }
        }

        pub(super) fn run(self, rounds: usize) -> f32 {
            match self.instruction {
                // SAFETY: a `Bf16` is only made where avx512f and avx512bf16 were detected.
                Instruction::Bf16 => unsafe { bf16(rounds) },
                // SAFETY: an `Int8` is only made where avx512f and avx512vnni were detected.
                Instruction::Int8 => unsafe { int8(rounds) },
                // SAFETY: an `Fp16` is only made where avx512f and avx512fp16 were detected.
                Instruction::Fp16 => unsafe { fp16(rounds) },
            }
        }
    }

    /// Products and sums of 128 bits.
    pub(super) fn sse(rounds: usize) -> f32 {
        // SAFETY: every x86-64 has SSE2.
        unsafe { sse2(rounds) }
    }

    #[target_feature(enable = "sse2")]
    fn sse2(rounds: usize) -> f32 {
        let (half, term) = (_mm_set1_ps(black_box(0.5)), _mm_set1_ps(black_box(0.5)));
        let mut chains = [_mm_set1_ps(black_box(0.0)); CHAINS];
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm_add_ps(_mm_mul_ps(*chain, half), term);
            }
        }
        let mut lanes = [0.0f32; 4 * CHAINS];
        for (lanes, chain) in lanes.chunks_exact_mut(4).zip(chains) {
            // SAFETY: each chunk has four floats, and the store needs no alignment.
            unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), chain) };
        }
        lanes.iter().sum()
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16(rounds: usize) -> f32 {
        // 1 in both halves of a word.
        let ones = _mm512_set1_epi32(black_box(0x3f80_3f80));
        // SAFETY: both types are 512 bits of which every pattern is a value.
        let ones: __m512bh = unsafe { std::mem::transmute(ones) };
        let mut chains = [_mm512_set1_ps(black_box(0.0)); CHAINS];
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, ones, ones);
            }
        }
        chains.into_iter().map(|chain| _mm512_reduce_add_ps(chain)).sum()
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8(rounds: usize) -> f32 {
        let ones = _mm512_set1_epi8(black_box(1));
        let mut chains = [_mm512_set1_epi32(black_box(0)); CHAINS];
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm512_dpbusd_epi32(*chain, ones, ones);
            }
        }
        let sums = chains.into_iter().map(|chain| _mm512_reduce_add_epi32(chain));
        sums.fold(0i32, i32::wrapping_add) as f32
    }

    #[target_feature(enable = "avx512f,avx512fp16")]
    fn fp16(rounds: usize) -> f32 {
        let ones = _mm512_castsi512_ph(_mm512_set1_epi16(black_box(0x3c00)));
        let mut chains = [_mm512_castsi512_ph(_mm512_set1_epi16(black_box(0))); CHAINS];
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm512_fmadd_ph(ones, ones, *chain);
            }
        }
        let mut sum = 0.0;
        for chain in chains {
            let mut halves = [0u16; 32];
            // SAFETY: the array has 32 halves, and the store needs no alignment.
            unsafe {
                _mm512_storeu_si512(halves.as_mut_ptr().cast(), _mm512_castph_si512(chain));
            }
            sum += halves.into_iter().map(crate::f16::f16_value).sum::<f32>();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loop_computes_what_its_instruction_does() {
        for isa in crate::ceilings::vector_tiers() {
            // 1 − 2⁻ⁿ in every lane of every chain.
            let expected = (1.0 - 0.5f32.powi(10)) * (CHAINS * isa.lanes()) as f32;
            assert_eq!(isa.run(Fma { rounds: 10 }), expected, "{}", isa.name());
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(x86::sse(10), (1.0 - 0.5f32.powi(10)) * (4 * CHAINS) as f32);
        #[cfg(target_arch = "x86_64")]
        for dot in x86::Dot::available() {
            // Every product is 1, so the lanes add up to the multiply-adds done.
            let expected = (10 * CHAINS * dot.operations() / 2) as f32;
            assert_eq!(dot.run(10), expected, "{}", dot.name());
        }
    }
}
