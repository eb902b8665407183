//! Half-precision floats as bits: what packing rounds to and what tiers without an instruction for
//! it widen by. IEEE 754 binary16: 11 bits of significand, magnitudes to 65,504, subnormals down to
//! 2⁻²⁴.
//!
//! Knows no arithmetic on them: products widen to `f32` first.

/// Magnitudes from here on round to infinity: halfway between 65,504 and 2¹⁶.
pub const OVERFLOW: f32 = 65_520.0;

/// Rounds to f16, ties to even, with subnormals; overflow becomes infinity, NaN stays NaN and
/// becomes quiet.
pub fn f16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    let half = if magnitude > 0x7f80_0000 {
        // Quiet, with the payload that fits.
        0x7e00 | (magnitude >> 13 & 0x3ff)
    } else if magnitude >= OVERFLOW.to_bits() {
        0x7c00
    } else if magnitude >= 0x3880_0000 {
        // From 2⁻¹⁴ on: the exponent's bias changes from 127 to 15, and 13 digits are rounded away.
        let rebiased = magnitude - (112 << 23);
        (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13
    } else {
        // Adding 1/2 aligns the digits so that one unit is 2⁻²⁴; the addition rounds to even.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    };
    sign | half as u16
}

/// The number of these bits, which `f32` holds exactly; NaN stays NaN.
#[inline(always)]
pub fn f16_value(half: u16) -> f32 {
    // Masks rather than branches: so the compiler widens whole vectors of a panel at a time. Inside
    // a tile it does not: there the portable tier is eight times as slow as with `f32`, twice as
    // fast as with branches.
    let set = |condition: bool| u32::from(condition).wrapping_neg();
    let half = u32::from(half);
    let (sign, magnitude) = ((half & 0x8000) << 16, half & 0x7fff);
    let digits = magnitude << 13;
    // The exponent's bias changes from 15 to 127; the largest exponent becomes the largest.
    let special = set(magnitude >= 0x7c00) & 112 << 23;
    let normal = digits + (112 << 23) + special;
    // So many units of 2⁻²⁴ beside 2⁻¹⁴, which is taken away again: exact.
    let beside = 113 << 23;
    let subnormal = (f32::from_bits(digits + beside) - f32::from_bits(beside)).to_bits();
    let small = set(magnitude < 0x400);
    f32::from_bits(sign | subnormal & small | normal & !small)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::random::Random;
    use crate::simd::{Kernel, Simd};

    /// From the definition: sign, exponent, significand.
    fn defined(half: u16) -> f64 {
        let (exponent, digits) = (i32::from(half >> 10 & 31), f64::from(half & 0x3ff));
        let magnitude = match exponent {
            0 => digits * 2f64.powi(-24),
            31 if digits == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1024.0 + digits) * 2f64.powi(exponent - 25),
        };
        if half >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_f16_is_the_number_of_its_definition() {
        for half in 0..=u16::MAX {
            let (found, expected) = (f16_value(half), defined(half));
            if expected.is_nan() {
                assert!(found.is_nan(), "{half:#x}: {found}");
                assert_eq!(f16_bits(found), half | 0x200, "{half:#x}");
            } else {
                assert_eq!(f64::from(found).to_bits(), expected.to_bits(), "{half:#x}");
                assert_eq!(f16_bits(found), half, "{half:#x}");
            }
        }
    }

    #[test]
    fn what_lies_between_is_rounded_to_the_nearest_and_ties_to_even() {
        for low in 0..0x7c00u16 {
            let high = low + 1;
            // The neighbour of the largest is where the next number would be.
            let above = if high == 0x7c00 { 65_536.0 } else { defined(high) };
            // Both have 11 digits, so that their mean has 12.
            let mean = (defined(low) + above) / 2.0;
            let tie = mean as f32;
            assert_eq!(f64::from(tie), mean, "{low:#x}");
            let even = low + (low & 1);
            for (x, expected) in [(tie.next_down(), low), (tie, even), (tie.next_up(), high)] {
                assert_eq!(f16_bits(x), expected, "{x:e} beside {low:#x}");
                assert_eq!(f16_bits(-x), expected | 0x8000, "{x:e} beside {low:#x}");
            }
        }
    }

    #[test]
    fn extremes_are_rounded_as_the_standard_has_it() {
        assert_eq!(OVERFLOW, 65_520.0);
        for (x, expected) in [
            (0.0, 0),
            (f32::from_bits(1), 0),
            (2f32.powi(-25), 0),
            (2f32.powi(-25).next_up(), 1),
            (OVERFLOW.next_down(), 0x7bff),
            (OVERFLOW, 0x7c00),
            (f32::MAX, 0x7c00),
            (f32::INFINITY, 0x7c00),
        ] {
            assert_eq!(f16_bits(x), expected, "{x:e}");
            assert_eq!(f16_bits(-x), expected | 0x8000, "{x:e}");
        }
        assert!(f16_value(f16_bits(f32::from_bits(0x7f80_0001))).is_nan());
    }

    #[test]
    fn each_step_of_random_numbers_is_half_a_unit_at_most() {
        let mut random = Random::new("f16");
        for _ in 0..100_000 {
            let x = random.float() * 2f32.powi((random.bits() % 48) as i32 - 30);
            let (found, unit) = (f16_value(f16_bits(x)), x.abs().max(2f32.powi(-14)));
            if x.abs() < OVERFLOW {
                assert!((found - x).abs() <= unit * 2f32.powi(-11), "{x:e} became {found:e}");
            }
        }
    }

    /// Widens all patterns.
    struct Widen<'a>(&'a [u16], &'a mut [f32]);

    impl Kernel for Widen<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (from, to) in self.0.chunks_exact(S::LANES).zip(self.1.chunks_exact_mut(S::LANES)) {
                // SAFETY: both chunks have `LANES` numbers.
                unsafe { s.store(to.as_mut_ptr(), s.load_f16(from.as_ptr())) };
            }
        }
    }

    #[test]
    fn every_tier_widens_to_the_same_bits() {
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        for isa in Isa::available() {
            let mut found = vec![0.0; halves.len()];
            isa.run(Widen(&halves, &mut found));
            for (half, found) in halves.iter().zip(found) {
                let expected = f16_value(*half);
                let same = found.to_bits() == expected.to_bits();
                let same = same || found.is_nan() && expected.is_nan();
                assert!(same, "{} {half:#x}: {found:e}, not {expected:e}", isa.name());
            }
        }
    }
}
