//! Layer, RMS, batch (eval) and group normalisation of rows.
//!
//! Sums run over a fixed number of lanes and end in a fixed tree, so bits do not depend on the
//! batch. Batch normalisation is folded into one scale and one shift when it is loaded.

use crate::counters::{Precision, Stem, count};
use crate::isa::Isa;
use crate::memory::Numbers;
use crate::simd::{Kernel, Simd};
use crate::team::Worker;
use std::ops::Range;

/// Which statistics a row is normalised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Mean and variance of each of this many groups of the row.
    Layer {
        /// 1 for layer normalisation.
        groups: usize,
    },
    /// Mean square of the row.
    Rms,
    /// None: the scale and shift hold trained statistics.
    Fixed,
}

/// A norm with its weights.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Statistics.
    pub kind: Kind,
    /// Inside the root.
    pub eps: f32,
    /// `[D]`, 1 where absent.
    pub scale: Option<Vec<f32>>,
    /// `[D]`, 0 where absent.
    pub shift: Option<Vec<f32>>,
}

impl Norm {
    /// Batch normalisation by trained statistics.
    pub fn batch(
        mean: &[f32],
        variance: &[f32],
        eps: f32,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
    ) -> Norm {
        let scale: Vec<f64> = variance
            .iter()
            .enumerate()
            .map(|(d, &v)| {
                let weight = weight.map_or(1.0, |w| f64::from(w[d]));
                weight / (f64::from(v) + f64::from(eps)).sqrt()
            })
            .collect();
        let shift = mean.iter().zip(&scale).enumerate().map(|(d, (&mean, scale))| {
            (bias.map_or(0.0, |b| f64::from(b[d])) - f64::from(mean) * scale) as f32
        });
        let shift = Some(shift.collect());
        let scale = Some(scale.iter().map(|&s| s as f32).collect());
        Norm { kind: Kind::Fixed, eps, scale, shift }
    }

    /// Normalises `rows` of `width` floats from `x` to `y` (may be the same where floats are kept).
    ///
    /// # Safety
    /// `x` holds the rows and `y` as many numbers, and nobody else writes them.
    pub unsafe fn run(
        &self,
        isa: Isa,
        (x, y, y_numbers): (*const f32, *mut f32, Numbers),
        width: usize,
        rows: Range<usize>,
        worker: Worker<'_>,
    ) {
        if worker.index() == 0 {
            count(Stem::Norm, isa, Precision::F32);
        }
        isa.run(Rows { norm: self, x, y, y_numbers, width, rows });
    }
}

struct Rows<'a> {
    norm: &'a Norm,
    x: *const f32,
    y: *mut f32,
    y_numbers: Numbers,
    width: usize,
    rows: Range<usize>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let norm = self.norm;
        for r in self.rows {
            // SAFETY: `Norm::run`'s caller grants the row.
            let (x, y) = unsafe {
                let y = self.y_numbers.at(self.y, r * self.width);
                (self.x.add(r * self.width), y.cast_mut())
            };
            let groups = match norm.kind {
                Kind::Layer { groups } => groups,
                _ => 1,
            };
            let n = self.width / groups.max(1);
            for g in 0..groups {
                let at = g * n;
                // SAFETY: the group is inside the row; weights are as wide as the row.
                unsafe {
                    let x = x.add(at);
                    let (mean, factor) = match norm.kind {
                        Kind::Layer { .. } => {
                            let mean = sum(s, x, n, 0.0, false) / n as f32;
                            let variance = sum(s, x, n, mean, true) / n as f32;
                            (mean, 1.0 / (variance + norm.eps).sqrt())
                        }
                        Kind::Rms => {
                            let square = sum(s, x, n, 0.0, true) / n as f32;
                            (0.0, 1.0 / (square + norm.eps).sqrt())
                        }
                        Kind::Fixed => (0.0, 1.0),
                    };
                    let scale = norm.scale.as_ref().map(|w| w.as_ptr().add(at));
                    let shift = norm.shift.as_ref().map(|b| b.as_ptr().add(at));
                    let mut d = 0;
                    while d < n {
                        let rest = n - d;
                        let mut v = s.sub(s.load_first(x.add(d), rest), s.splat(mean));
                        v = s.mul(v, s.splat(factor));
                        let zero = s.splat(0.0);
                        let shift = shift.map_or(zero, |b| s.load_first(b.add(d), rest));
                        v = match scale {
                            Some(w) => s.fma(v, s.load_first(w.add(d), rest), shift),
                            None => s.add(v, shift),
                        };
                        match self.y_numbers {
                            Numbers::Floats => s.store_first(y.add(at + d), v, rest),
                            Numbers::Halves => {
                                s.store_halves(y.cast::<u16>().add(at + d), v, rest);
                            }
                        }
                        d += S::LANES;
                    }
                }
            }
        }
    }
}

/// Sum of `n` floats less `center`, or of their squares.
#[inline(always)]
unsafe fn sum<S: Simd>(s: S, x: *const f32, n: usize, center: f32, square: bool) -> f32 {
    let c = s.splat(center);
    let mut acc = s.splat(0.0);
    let mut d = 0;
    // SAFETY: the caller grants `n` floats.
    unsafe {
        while d + S::LANES <= n {
            let v = s.sub(s.load(x.add(d)), c);
            acc = if square { s.fma(v, v, acc) } else { s.add(acc, v) };
            d += S::LANES;
        }
        if d < n {
            // Lanes beyond the end must add nothing, whatever the centre.
            let mut tail = [0.0f32; 16];
            s.store_first(tail.as_mut_ptr(), s.sub(s.load_first(x.add(d), n - d), c), n - d);
            let v = s.load(tail.as_ptr());
            acc = if square { s.fma(v, v, acc) } else { s.add(acc, v) };
        }
    }
    s.sum(acc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::bf16_bits;
    use crate::random::Random;

    fn layer(x: &[f64], eps: f64) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        x.iter().map(|x| (x - mean) / (variance + eps).sqrt()).collect()
    }

    #[test]
    fn every_width_matches_the_definition() {
        let mut random = Random::new("norm");
        let eps = 1e-5;
        for isa in Isa::available() {
            for width in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 127, 768, 1009] {
                let rows = 3;
                // An offset, so that a variance by squares alone would lose its digits.
                let x: Vec<f32> = random.floats(rows * width).iter().map(|x| x + 9.0).collect();
                let (w, b) = (random.floats(width), random.floats(width));
                let groups = if width % 3 == 0 { 3 } else { 1 };
                for kind in [Kind::Layer { groups: 1 }, Kind::Layer { groups }, Kind::Rms] {
                    let (scale, shift) = (Some(w.clone()), Some(b.clone()));
                    let norm = Norm { kind, eps, scale, shift };
                    let mut y = vec![f32::NAN; x.len()];
                    let at = (x.as_ptr(), y.as_mut_ptr(), Numbers::Floats);
                    let mut halves = vec![0u16; x.len()];
                    let to_halves = (x.as_ptr(), halves.as_mut_ptr().cast(), Numbers::Halves);
                    // SAFETY: all hold the rows.
                    unsafe {
                        norm.run(isa, at, width, 0..rows, Worker::alone());
                        norm.run(isa, to_halves, width, 0..rows, Worker::alone());
                    }
                    let rounded = y.iter().map(|&y| bf16_bits(y) as u16);
                    assert!(rounded.eq(halves), "{kind:?} {width}: not the floats rounded");
                    for r in 0..rows {
                        let row: Vec<f64> =
                            x[r * width..(r + 1) * width].iter().map(|&x| f64::from(x)).collect();
                        let eps = f64::from(eps);
                        let expected = match kind {
                            Kind::Layer { groups } => {
                                let parts = row.chunks(width / groups);
                                parts.flat_map(|part| layer(part, eps)).collect()
                            }
                            _ => {
                                let square = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                                row.iter().map(|x| x / (square + eps).sqrt()).collect::<Vec<_>>()
                            }
                        };
                        for (d, e) in expected.iter().enumerate() {
                            let e = e * f64::from(w[d]) + f64::from(b[d]);
                            let found = f64::from(y[r * width + d]);
                            let error = (found - e).abs();
                            // Rounding the mean costs digits where the spread is small beside it.
                            let group =
                                width / if kind == (Kind::Layer { groups }) { groups } else { 1 };
                            let own = &row[d / group * group..(d / group + 1) * group];
                            let mean = own.iter().sum::<f64>() / group as f64;
                            let spread = own.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                            let spread = (spread / group as f64 + eps).sqrt();
                            assert!(
                                error <= 3e-6 * (1.0 + 10.0 / spread),
                                "{kind:?} {width}: {found}, expected {e}"
                            );
                        }
                    }
                }
            }
        }
    }
}
