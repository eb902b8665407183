//! The state update of a vector of units, in registers behind their recurrent sums.

use super::Cell;
use crate::gemm::{Finish, Packed};
use crate::simd::Simd;
use crate::vecmath;

/// The state update that follows the recurrent product of a vector of units.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    pub(super) cell: Cell,
    pub(super) weights: &'a Packed,
    pub(super) units: usize,
    pub(super) gates: *const f32,
    pub(super) gates_stride: usize,
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
        let width = self.weights.width();
        // SAFETY: the caller's; offsets stay inside the panel.
        unsafe {
            let gates = self.gates.add(r * self.gates_stride + p * width);
            let bias = self.weights.panel_bias(p);
            if self.cell.gates() > 1 {
                return self.units(s, p * S::LANES, r, gates, sums, bias);
            }
            // One gate: a panel is several vectors of units.
            let mut at = 0;
            while at < width && p * width + at < self.units {
                let bias = bias.map(|bias| bias.add(at));
                self.units(s, p * width + at, r, gates.add(at), sums.add(at), bias);
                at += S::LANES;
            }
        }
    }
}

impl Update<'_> {
    /// Updates one vector of units from `unit` on; their gates, sums and biases lie `LANES` apart.
    #[inline(always)]
    unsafe fn units<S: Simd>(
        &self,
        s: S,
        unit: usize,
        r: usize,
        gates: *const f32,
        sums: *const f32,
        bias: Option<*const f32>,
    ) {
        let n = (self.units - unit).min(S::LANES);
        let next_stride = if self.next_is_hidden() { self.stride } else { self.h_stride };
        // SAFETY: the panel's units, and row `r` of every array, exist.
        unsafe {
            macro_rules! input {
                ($g:expr) => {
                    s.load(gates.add($g * S::LANES))
                };
            }
            macro_rules! recurrent {
                ($g:expr) => {{
                    let sum = s.load(sums.add($g * S::LANES));
                    match bias {
                        Some(bias) => s.add(sum, s.load(bias.add($g * S::LANES))),
                        None => sum,
                    }
                }};
            }
            macro_rules! gate {
                ($g:expr) => {
                    s.add(input!($g), recurrent!($g))
                };
            }
            let at = r * self.stride + unit;
            let one = s.splat(1.0);
            let h = match self.cell {
                Cell::Lstm => {
                    let c = self.states[0].add(at);
                    let i = vecmath::sigmoid(s, gate!(0));
                    let f = vecmath::sigmoid(s, gate!(1));
                    let g = vecmath::tanh(s, gate!(2));
                    let o = vecmath::sigmoid(s, gate!(3));
                    let new = s.fma(f, s.load_first(c, n), s.mul(i, g));
                    s.store_first(c, new, n);
                    s.mul(o, vecmath::tanh(s, new))
                }
                Cell::Gru => {
                    let old = s.load_first(self.h.add(r * self.h_stride + unit), n);
                    let reset = vecmath::sigmoid(s, gate!(0));
                    let z = vecmath::sigmoid(s, gate!(1));
                    let new = vecmath::tanh(s, s.fma(reset, recurrent!(2), input!(2)));
                    s.fma(s.sub(one, z), new, s.mul(z, old))
                }
                Cell::Tanh => vecmath::tanh(s, gate!(0)),
                Cell::Relu => vecmath::relu(s, gate!(0)),
                Cell::Slstm { .. } => {
                    let [c, n_at, m_at] = self.states.map(|state| state.add(at));
                    let (i, f) = (gate!(0), gate!(1));
                    let z = vecmath::tanh(s, gate!(2));
                    let o = vecmath::sigmoid(s, gate!(3));
                    let (c_old, n_old) = (s.load_first(c, n), s.load_first(n_at, n));
                    let lf = s.sub(
                        s.load_first(m_at, n),
                        s.map(s.sub(s.splat(0.0), f), vecmath::softplus),
                    );
                    // While n is 0 nothing has been stored, and the stabiliser starts at i.
                    let started = s.less(s.splat(0.0), s.abs(n_old));
                    let m = s.select(started, s.max(i, lf), i);
                    let ig = s.min(one, vecmath::exp(s, s.sub(i, m)));
                    let fg = s.min(one, vecmath::exp(s, s.sub(lf, m)));
                    let c_new = s.fma(fg, c_old, s.mul(ig, z));
                    let n_new = s.fma(fg, n_old, ig);
                    s.store_first(c, c_new, n);
                    s.store_first(n_at, n_new, n);
                    s.store_first(m_at, m, n);
                    s.mul(o, s.div(c_new, n_new))
                }
            };
            s.store_first(self.next.add(r * next_stride + unit), h, n);
            if let Some(y) = self.y {
                s.store_first(y.add(r * self.y_stride + unit), h, n);
            }
        }
    }

    /// Whether `next` holds unprojected rows of `stride` rather than `h` rows.
    #[inline(always)]
    fn next_is_hidden(&self) -> bool {
        self.h_stride != self.stride
    }
}
