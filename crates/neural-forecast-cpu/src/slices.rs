//! Kernels over plain slices, for callers who bring arrays rather than plans.
//!
//! Safe: lengths are checked here, and what is shared between workers never overlaps. Not the way
//! of a forecast, whose weights are packed once; a product here packs its right side every time.

use crate::counters::{Precision, Stem, count};
use crate::crew::Crew;
use crate::gemm::{Activation, Gemm, Packed, Scratch};
use crate::isa::Isa;
use crate::memory::Shared;
use crate::simd::{Kernel, Simd};
use crate::team::{TeamError, TeamOptions, WORKERS_MAX, Worker};
use crate::vecmath;
use std::sync::Arc;

/// Elements below which work stays on the calling thread: waking a sleeping worker takes tens of
/// microseconds, and a thousand elements take about one.
const SHARED_ELEMENTS_MIN: usize = 1 << 16;
/// Multiply-adds that take as long as one element.
const PRODUCTS_PER_ELEMENT: usize = 32;

/// Kernels on the process's team. Calls from several threads take turns where they are large;
/// small ones stay on the calling thread.
#[derive(Debug)]
pub struct SliceKernels {
    isa: Isa,
    crew: Arc<Crew>,
    workers: usize,
}

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairwise {
    /// `a + b`
    Add,
    /// `a − b`
    Subtract,
    /// `a · b`
    Multiply,
}

impl SliceKernels {
    /// Kernels of a tier on a team of `workers`.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(isa: Isa, workers: usize) -> std::io::Result<Self> {
        let workers = workers.clamp(1, WORKERS_MAX);
        let crew = Crew::shared(&TeamOptions::new(workers))?;
        Ok(SliceKernels { isa, crew, workers })
    }

    /// The tier.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Workers of the team, the caller included.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// `c = a · b` of row-major `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`. Each element is one
    /// accumulator over `k` ascending, whatever the team.
    ///
    /// # Errors
    /// If a worker panicked.
    ///
    /// # Panics
    /// If a slice has not its matrix's length.
    pub fn matmul(
        &self,
        a: &[f32],
        b: &[f32],
        c: &mut [f32],
        (m, n, k): (usize, usize, usize),
    ) -> Result<(), TeamError> {
        let length = |rows: usize, columns: usize| rows.checked_mul(columns);
        assert_eq!(Some(a.len()), length(m, k), "elements of `a` [{m}, {k}]");
        assert_eq!(Some(b.len()), length(k, n), "elements of `b` [{k}, {n}]");
        assert_eq!(Some(c.len()), length(m, n), "elements of `c` [{m}, {n}]");
        if c.is_empty() {
            return Ok(());
        }
        if k == 0 {
            c.fill(0.0);
            return Ok(());
        }
        let packed = Packed::from_terms(self.isa, b, (n, k));
        let (x, y) = (Shared(a.as_ptr().cast_mut()), Shared(c.as_mut_ptr()));
        let work = m.saturating_mul(n).saturating_mul(k) / PRODUCTS_PER_ELEMENT;
        self.run(work, |worker, scratch| {
            let (x, y) = (&x, &y);
            let gemm = Gemm::new(x.0.cast_const(), m, &packed, y.0);
            // SAFETY: `a` and `c` are dense and as long as asserted; `a` is only read, `c` is
            // borrowed exclusively and written by these workers alone, all with the same product.
            unsafe { gemm.run(self.isa, worker, scratch) }
        })
    }

    /// `y = f(x)` element by element.
    ///
    /// # Errors
    /// If a worker panicked.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn map(&self, f: Activation, x: &[f32], y: &mut [f32]) -> Result<(), TeamError> {
        assert_eq!(x.len(), y.len(), "elements of `x` and `y`");
        count(Stem::Elementwise, self.isa, Precision::F32);
        self.split(y, 1, |first, part| {
            self.isa.run(Map { f, x: &x[first..first + part.len()], y: part });
        })
    }

    /// `y = f(a, b)` element by element.
    ///
    /// # Errors
    /// If a worker panicked.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn pairwise(
        &self,
        f: Pairwise,
        a: &[f32],
        b: &[f32],
        y: &mut [f32],
    ) -> Result<(), TeamError> {
        assert_eq!((a.len(), b.len()), (y.len(), y.len()), "elements of `a`, `b` and `y`");
        count(Stem::Elementwise, self.isa, Precision::F32);
        self.split(y, 1, |first, part| {
            let range = first..first + part.len();
            self.isa.run(Pair { f, a: &a[range.clone()], b: &b[range], y: part });
        })
    }

    /// Softmax of each row of `width` elements, the maximum subtracted first.
    ///
    /// # Errors
    /// If a worker panicked.
    ///
    /// # Panics
    /// If the lengths differ or are no whole number of rows.
    pub fn softmax(&self, x: &[f32], y: &mut [f32], width: usize) -> Result<(), TeamError> {
        assert_eq!(x.len(), y.len(), "elements of `x` and `y`");
        if x.is_empty() {
            return Ok(());
        }
        assert!(width > 0 && x.len().is_multiple_of(width), "{} in rows of {width}", x.len());
        count(Stem::Elementwise, self.isa, Precision::F32);
        self.split(y, width, |first, part| {
            let x = &x[first..first + part.len()];
            for (x, y) in x.chunks_exact(width).zip(part.chunks_exact_mut(width)) {
                self.isa.run(Softmax { x, y });
            }
        })
    }

    /// Gives each worker a range of whole pieces of `y`, with the index of its first element.
    fn split(
        &self,
        y: &mut [f32],
        piece: usize,
        kernel: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<(), TeamError> {
        let (pieces, work, at) = (y.len() / piece, y.len(), Shared(y.as_mut_ptr()));
        self.run(work, |worker, _| {
            let at = &at;
            let share = worker.share(pieces);
            let (first, length) = (share.start * piece, share.len() * piece);
            // SAFETY: shares are disjoint ranges inside of `y`, which is borrowed exclusively.
            let part = unsafe { std::slice::from_raw_parts_mut(at.0.add(first), length) };
            kernel(first, part);
        })
    }

    fn run(
        &self,
        work: usize,
        job: impl Fn(Worker<'_>, &mut Scratch) + Sync,
    ) -> Result<(), TeamError> {
        self.crew.run(work < SHARED_ELEMENTS_MIN, job)
    }
}

struct Map<'a> {
    f: Activation,
    x: &'a [f32],
    y: &'a mut [f32],
}

/// Applies `function(arguments…, vector)` to all elements.
macro_rules! each {
    ($map:expr, $s:expr, $function:path[$($argument:expr),*]) => {
        let s = $s;
        for (x, y) in $map.x.chunks(S::LANES).zip($map.y.chunks_mut(S::LANES)) {
            // SAFETY: both chunks hold `x.len()` floats, which is at most `LANES`.
            unsafe {
                if x.len() == S::LANES {
                    s.store(y.as_mut_ptr(), $function($($argument,)* s.load(x.as_ptr())));
                } else {
                    let v = s.load_first(x.as_ptr(), x.len());
                    s.store_first(y.as_mut_ptr(), $function($($argument,)* v), x.len());
                }
            }
        }
    };
}

impl Kernel for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // One loop a function, so that its constants stay in registers. A macro rather than a
        // closure: a closure has not the features of the function around it.
        match self.f {
            Activation::Relu => {
                each!(self, s, vecmath::relu[s]);
            }
            Activation::Sigmoid => {
                each!(self, s, vecmath::sigmoid[s]);
            }
            Activation::Tanh => {
                each!(self, s, vecmath::tanh[s]);
            }
            Activation::Gelu => {
                each!(self, s, vecmath::gelu[s]);
            }
            other => {
                each!(self, s, Activation::apply[other, s]);
            }
        }
    }
}

struct Pair<'a> {
    f: Pairwise,
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Pair<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.a.chunks(S::LANES).zip(self.b.chunks(S::LANES));
        for ((a, b), y) in inputs.zip(self.y.chunks_mut(S::LANES)) {
            // SAFETY: the chunks are equally long, at most `LANES` floats.
            unsafe {
                let (a, b) = (s.load_first(a.as_ptr(), a.len()), s.load_first(b.as_ptr(), b.len()));
                let v = match self.f {
                    Pairwise::Add => s.add(a, b),
                    Pairwise::Subtract => s.sub(a, b),
                    Pairwise::Multiply => s.mul(a, b),
                };
                s.store_first(y.as_mut_ptr(), v, y.len());
            }
        }
    }
}

struct Softmax<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut most = s.splat(f32::NEG_INFINITY);
        let mut tail = f32::NEG_INFINITY;
        for x in self.x.chunks(S::LANES) {
            if x.len() == S::LANES {
                // SAFETY: the chunk holds `LANES` floats.
                most = s.max(most, unsafe { s.load(x.as_ptr()) });
            } else {
                tail = x.iter().fold(tail, |most, &x| most.max(x));
            }
        }
        let most = s.splat(s.maximum(most).max(tail));
        let mut sum = s.splat(0.0);
        let mut last = 0.0;
        for (x, y) in self.x.chunks(S::LANES).zip(self.y.chunks_mut(S::LANES)) {
            // SAFETY: both chunks hold `x.len()` floats, at most `LANES`.
            unsafe {
                let e = vecmath::exp(s, s.sub(s.load_first(x.as_ptr(), x.len()), most));
                s.store_first(y.as_mut_ptr(), e, y.len());
                if x.len() == S::LANES {
                    sum = s.add(sum, e);
                } else {
                    last = y.iter().sum();
                }
            }
        }
        let total = s.splat(s.sum(sum) + last);
        for y in self.y.chunks_mut(S::LANES) {
            // SAFETY: the chunk holds `y.len()` floats, at most `LANES`.
            unsafe {
                let v = s.div(s.load_first(y.as_ptr(), y.len()), total);
                s.store_first(y.as_mut_ptr(), v, y.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn kernels() -> impl Iterator<Item = SliceKernels> {
        let tiers = Isa::available().into_iter();
        tiers.flat_map(|isa| [1, 2].map(|n| SliceKernels::new(isa, n).unwrap()))
    }

    #[test]
    fn products_match_the_naive_sum() {
        let mut random = Random::new("slices::matmul");
        let sizes =
            [(0, 3, 2), (1, 1, 0), (1, 1, 1), (5, 3, 2), (13, 33, 17), (97, 65, 64), (70, 96, 600)];
        for kernels in kernels() {
            for (m, n, k) in sizes {
                let (a, b) = (random.floats(m * k), random.floats(k * n));
                let mut c = vec![f32::NAN; m * n];
                kernels.matmul(&a, &b, &mut c, (m, n, k)).unwrap();
                for (i, &c) in c.iter().enumerate() {
                    let terms =
                        (0..k).map(|t| f64::from(a[i / n * k + t]) * f64::from(b[t * n + i % n]));
                    let error = (f64::from(c) - terms.sum::<f64>()).abs();
                    assert!(error <= 1e-6 * (k as f64 + 1.0), "{m} {n} {k}: {error}");
                }
            }
        }
    }

    #[test]
    fn elements_and_rows_match_the_standard_library() {
        let mut random = Random::new("slices::map");
        for kernels in kernels() {
            for n in [0, 1, 7, 8, 15, 16, 17, 1009, 200_003] {
                let (a, b) = (random.floats(n), random.floats(n));
                let mut y = vec![f32::NAN; n];
                kernels.map(Activation::Relu, &a, &mut y).unwrap();
                assert!(a.iter().zip(&y).all(|(a, y)| a.max(0.0) == *y), "relu {n}");
                kernels.map(Activation::Tanh, &a, &mut y).unwrap();
                assert!(a.iter().zip(&y).all(|(a, y)| (a.tanh() - y).abs() <= 1e-6), "tanh {n}");
                kernels.pairwise(Pairwise::Subtract, &a, &b, &mut y).unwrap();
                assert!(a.iter().zip(&b).zip(&y).all(|((a, b), y)| a - b == *y), "subtract {n}");
            }
            for (rows, width) in [(0, 4), (1, 1), (3, 5), (4, 16), (7, 33), (300, 1009)] {
                let x: Vec<f32> = random.floats(rows * width).iter().map(|x| x * 50.0).collect();
                let mut y = vec![f32::NAN; x.len()];
                kernels.softmax(&x, &mut y, width).unwrap();
                for (x, y) in x.chunks(width).zip(y.chunks(width)) {
                    let most = x.iter().fold(f64::MIN, |most, &x| most.max(f64::from(x)));
                    let total: f64 = x.iter().map(|&x| (f64::from(x) - most).exp()).sum();
                    for (&x, &y) in x.iter().zip(y) {
                        let expected = (f64::from(x) - most).exp() / total;
                        assert!((f64::from(y) - expected).abs() <= 1e-6, "{rows} x {width}");
                    }
                }
            }
        }
    }
}
