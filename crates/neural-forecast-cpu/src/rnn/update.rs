//! The state update of a vector of units, in registers behind their recurrent sums.

use super::Cell;
use crate::counters::Precision;
use crate::gemm::{Finish, Packed};
use crate::simd::Simd;
use crate::vecmath::{self, Exact, Gates, Rough};

/// The state update that follows the recurrent product of a vector of units.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    pub(super) cell: Cell,
    /// Of the input products: their bias is added here.
    pub(super) inputs: &'a Packed,
    /// Of the recurrent product.
    pub(super) weights: &'a Packed,
    pub(super) units: usize,
    /// Input sums of the first panel of the first row; rows lie a panel's width apart.
    pub(super) sums: *const f32,
    /// Floats between the input sums of neighbouring panels.
    pub(super) sums_stride: usize,
    pub(super) h: *const f32,
    pub(super) h_stride: usize,
    /// `c`, `n`, `m`
    pub(super) states: [*mut f32; 3],
    pub(super) stride: usize,
    pub(super) next: *mut f32,
    pub(super) y: Option<*mut f32>,
    pub(super) y_stride: usize,
}

impl Finish for Update<'_> {
    #[inline(always)]
    fn place<S: Simd>(&self, _: usize, _: usize) -> Option<(*mut f32, usize)> {
        None
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, p: usize, r: usize, sums: *const f32) {
        // SAFETY: the caller's.
        unsafe {
            match self.weights.precision() {
                Precision::F32 | Precision::F16 => self.panel::<S, Exact>(s, p, r, sums),
                // Sums of terms of 8 bits are not worth more.
                _ => self.panel::<S, Rough>(s, p, r, sums),
            }
        }
    }
}

/// Both sums of one vector of units, with their biases. Lanes beyond the panel's units hold
/// whatever lies there.
#[derive(Clone, Copy)]
struct Sums {
    /// Columns from gate to gate.
    apart: usize,
    input: *const f32,
    input_bias: Option<*const f32>,
    recurrent: *const f32,
    recurrent_bias: Option<*const f32>,
}

#[inline(always)]
unsafe fn biased<S: Simd>(s: S, sums: *const f32, bias: Option<*const f32>, at: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let sum = s.load(sums.add(at));
        bias.map_or(sum, |bias| s.add(sum, s.load(bias.add(at))))
    }
}

impl Sums {
    /// Sums from column `at` of the panel on.
    unsafe fn from(self, at: usize) -> Sums {
        // SAFETY: the caller's.
        unsafe {
            Sums {
                apart: self.apart,
                input: self.input.add(at),
                input_bias: self.input_bias.map(|bias| bias.add(at)),
                recurrent: self.recurrent.add(at),
                recurrent_bias: self.recurrent_bias.map(|bias| bias.add(at)),
            }
        }
    }

    #[inline(always)]
    unsafe fn input<S: Simd>(&self, s: S, gate: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { biased(s, self.input, self.input_bias, gate * self.apart) }
    }

    #[inline(always)]
    unsafe fn recurrent<S: Simd>(&self, s: S, gate: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { biased(s, self.recurrent, self.recurrent_bias, gate * self.apart) }
    }

    #[inline(always)]
    unsafe fn gate<S: Simd>(&self, s: S, gate: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.add(self.input(s, gate), self.recurrent(s, gate)) }
    }
}

/// The first `n` lanes; without a mask where that is all of them.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.load(p) } else { s.load_first(p, n) } }
}

/// Stores the first `n` lanes; without a mask where that is all of them.
#[inline(always)]
unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::V, n: usize) {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.store(p, v) } else { s.store_first(p, v, n) } }
}

impl Update<'_> {
    /// The units of panel `p` of row `r`.
    #[inline(always)]
    unsafe fn panel<S: Simd, G: Gates>(&self, s: S, p: usize, r: usize, sums: *const f32) {
        let width = self.weights.width();
        // SAFETY: the caller's; offsets stay inside the panel.
        unsafe {
            let sums = Sums {
                apart: self.weights.apart(p),
                input: self.sums.add(p * self.sums_stride + r * width),
                input_bias: self.inputs.panel_bias(p),
                recurrent: sums,
                recurrent_bias: self.weights.panel_bias(p),
            };
            if self.cell.gates() > 1 {
                return self.units::<S, G>(s, p * S::LANES, r, sums);
            }
            // One gate: a panel is several vectors of units.
            let mut at = 0;
            while at < width && p * width + at < self.units {
                self.units::<S, G>(s, p * width + at, r, sums.from(at));
                at += S::LANES;
            }
        }
    }

    /// Updates one vector of units from `unit` on.
    #[inline(always)]
    unsafe fn units<S: Simd, G: Gates>(&self, s: S, unit: usize, r: usize, sums: Sums) {
        let n = (self.units - unit).min(S::LANES);
        let next_stride = if self.next_is_hidden() { self.stride } else { self.h_stride };
        // SAFETY: the panel's units, and row `r` of every array, exist.
        unsafe {
            let at = r * self.stride + unit;
            let h = match self.cell {
                Cell::Lstm => {
                    let c = self.states[0].add(at);
                    let forget = G::sigmoid(s, sums.gate(s, 1));
                    let new = G::sigmoid_tanh(s, sums.gate(s, 0), sums.gate(s, 2));
                    let new = s.fma(forget, load(s, c, n), new);
                    store(s, c, new, n);
                    G::sigmoid_tanh(s, sums.gate(s, 3), new)
                }
                Cell::Gru => {
                    let old = load(s, self.h.add(r * self.h_stride + unit), n);
                    let reset = G::sigmoid(s, sums.gate(s, 0));
                    let z = G::sigmoid(s, sums.gate(s, 1));
                    let new = s.fma(reset, sums.recurrent(s, 2), sums.input(s, 2));
                    let new = G::tanh(s, new);
                    s.fma(s.sub(s.splat(1.0), z), new, s.mul(z, old))
                }
                Cell::Tanh => G::tanh(s, sums.gate(s, 0)),
                Cell::Relu => vecmath::relu(s, sums.gate(s, 0)),
                Cell::Slstm { .. } => self.slstm(s, at, n, &sums),
            };
            store(s, self.next.add(r * next_stride + unit), h, n);
            if let Some(y) = self.y {
                store(s, y.add(r * self.y_stride + unit), h, n);
            }
        }
    }

    /// The sLSTM's states at `at`; its gates are exact in every precision, because its normaliser
    /// divides by a sum of them.
    #[inline(always)]
    unsafe fn slstm<S: Simd>(&self, s: S, at: usize, n: usize, sums: &Sums) -> S::V {
        // SAFETY: the caller's.
        unsafe {
            let [c, n_at, m_at] = self.states.map(|state| state.add(at));
            let (i, f) = (sums.gate(s, 0), sums.gate(s, 1));
            let z = vecmath::tanh(s, sums.gate(s, 2));
            let o = vecmath::sigmoid(s, sums.gate(s, 3));
            let (c_old, n_old) = (load(s, c, n), load(s, n_at, n));
            let softplus = s.map(s.sub(s.splat(0.0), f), vecmath::softplus);
            let lf = s.sub(load(s, m_at, n), softplus);
            // While n is 0 nothing has been stored, and the stabiliser starts at i.
            let started = s.less(s.splat(0.0), s.abs(n_old));
            let m = s.select(started, s.max(i, lf), i);
            let one = s.splat(1.0);
            let ig = s.min(one, vecmath::exp(s, s.sub(i, m)));
            let fg = s.min(one, vecmath::exp(s, s.sub(lf, m)));
            let c_new = s.fma(fg, c_old, s.mul(ig, z));
            let n_new = s.fma(fg, n_old, ig);
            store(s, c, c_new, n);
            store(s, n_at, n_new, n);
            store(s, m_at, m, n);
            s.mul(o, s.div(c_new, n_new))
        }
    }

    /// Whether `next` holds unprojected rows of `stride` rather than `h` rows.
    #[inline(always)]
    fn next_is_hidden(&self) -> bool {
        self.h_stride != self.stride
    }
}

/// Keeps the sums of the input products, panel after panel, each `[rows, width]`: what the update
/// of a tile reads lies together.
#[derive(Clone, Copy)]
pub(super) struct Keep {
    pub(super) at: *mut f32,
    /// Rows of the product.
    pub(super) rows: usize,
    /// Of a panel.
    pub(super) width: usize,
}

impl Finish for Keep {
    #[inline(always)]
    fn place<S: Simd>(&self, p: usize, r: usize) -> Option<(*mut f32, usize)> {
        // SAFETY: callers pass a row and a panel of this product.
        Some((unsafe { self.at.add((p * self.rows + r) * self.width) }, self.width))
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, p: usize, r: usize, sums: *const f32) {
        let Some((to, width)) = self.place::<S>(p, r) else { return };
        if to.cast_const() == sums {
            return;
        }
        for at in (0..width).step_by(S::LANES) {
            // SAFETY: both hold a panel's width, a whole number of vectors.
            unsafe { s.store(to.add(at), s.load(sums.add(at))) };
        }
    }
}
