//! `rnn_stack`: stacked recurrences over time, uni- or bidirectional, projected, with carried
//! state.
//!
//! Does not hold a forecaster's decoder: that is a `linear` after it. Gate orders are fixed here
//! and nowhere else: LSTM `i, f, g, o`; GRU `r, z, n`; sLSTM `i, f, z, o`; importers permute to
//! these.
//!
//! The sums of a gate are two: `(W_ih·x + b_ih) + (W_hh·h + b_hh)`, each accumulated on its own and
//! added once, so that a streaming tick which has the second sum ready gives the bits of the
//! window.

use super::elementwise::{sigmoid, softplus};
use super::{Keep, ShapeContext, Shapes};
use crate::error::PlanError;
use crate::plan::{DType, Dim, StateId, StateKind, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor, dot};

/// The recurrence of one layer. `a`, `b`, … are the gate sums defined in the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// `c' = σ(f)·c + σ(i)·tanh(g)`, `h' = σ(o)·tanh(c')`, then the projection if there is one.
    Lstm,
    /// `r = σ`, `z = σ`, `n = tanh(W_in·x + b_in + r·(W_hn·h + b_hn))`, `h' = (1 − z)·n + z·h`.
    Gru,
    /// `h' = tanh(a)`.
    RnnTanh,
    /// `h' = max(a, 0)`.
    RnnRelu,
    /// Scalar LSTM with exponential input gate and stabiliser, block-diagonal over this many heads,
    /// see [`RnnStack`].
    Slstm {
        /// Heads; `hidden` is divisible by it.
        heads: usize,
    },
}

/// Weights of one direction of one layer; `G` gates, `D` hidden, `K` inputs, `R` recurrent inputs
/// (`D`, or the projection's width).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RnnWeights {
    /// `[G·D, K]`; sLSTM: `[G, heads, D/heads, D/heads]` (output, then input), no mixing of heads.
    pub w_ih: WeightId,
    /// `[G·D, R]`; sLSTM: `[G, heads, D/heads, D/heads]`.
    pub w_hh: WeightId,
    /// `[G·D]`.
    pub b_ih: Option<WeightId>,
    /// `[G·D]`.
    pub b_hh: Option<WeightId>,
    /// Projection `[P, D]` of `h`, LSTM only.
    pub w_hr: Option<WeightId>,
}

/// Where the initial state comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Initial {
    /// Zeros.
    Zero,
    /// Values shaped `[B, S · directions, width]`, one per state of the cell in the order `h`, `c`
    /// (LSTM), `h` (GRU, RNN), `h`, `c`, `n`, `m` (sLSTM).
    Values(Vec<ValueId>),
    /// The slots named in [`RnnStates`].
    Slots,
}

/// State slots of a stack, one per state of the cell in the order above, each shaped
/// `[S · directions, width]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RnnStates {
    /// Slots.
    pub slots: Vec<StateId>,
    /// Whether the final state is written back.
    pub write: bool,
}

/// Parameters of `rnn_stack`. Writes the output `[B, T', directions · width]` of the last layer,
/// then, if `finals`, the final states `[B, S · directions, width]` in the cell's order.
///
/// sLSTM step (stabilised exponential gating): with `lf = logσ(f) + m` and `m' = max(i, lf)` (and
/// `m' = i` while `n` is 0), `ig = min(e^(i − m'), 1)`, `fg = min(e^(lf − m'), 1)`,
/// `c' = fg·c + ig·tanh(z)`, `n' = fg·n + ig`, `h' = σ(o)·c'/n'`.
#[derive(Clone, Debug, PartialEq)]
pub struct RnnStack {
    /// Input `[B, T, K]`.
    pub x: ValueId,
    /// Recurrence of all layers.
    pub cell: Cell,
    /// Hidden width `D`.
    pub hidden: usize,
    /// Width of the projected `h`, LSTM only.
    pub projection: Option<usize>,
    /// Layers, each with one direction or two (forward, backward).
    pub layers: Vec<Vec<RnnWeights>>,
    /// Initial state.
    pub initial: Initial,
    /// State slots that are read or written.
    pub states: Option<RnnStates>,
    /// Which positions of the last layer are written.
    pub keep: Keep,
    /// Whether final states are outputs too.
    pub finals: bool,
}

impl Cell {
    /// Gates per unit.
    pub fn gates(self) -> usize {
        match self {
            Cell::Lstm | Cell::Slstm { .. } => 4,
            Cell::Gru => 3,
            Cell::RnnTanh | Cell::RnnRelu => 1,
        }
    }

    /// The states it carries, in order.
    pub fn states(self) -> &'static [StateKind] {
        use StateKind::{Cell as C, Hidden, Normalizer, Stabilizer};
        match self {
            Cell::Lstm => &[Hidden, C],
            Cell::Gru | Cell::RnnTanh | Cell::RnnRelu => &[Hidden],
            Cell::Slstm { .. } => &[Hidden, C, Normalizer, Stabilizer],
        }
    }
}

impl RnnStack {
    /// A stack from zero state with all positions written.
    pub fn new(x: ValueId, cell: Cell, hidden: usize, layers: Vec<Vec<RnnWeights>>) -> Self {
        RnnStack {
            x,
            cell,
            hidden,
            projection: None,
            layers,
            initial: Initial::Zero,
            states: None,
            keep: Keep::All,
            finals: false,
        }
    }

    /// Directions of each layer.
    pub fn directions(&self) -> usize {
        self.layers.first().map_or(1, Vec::len)
    }

    /// Width of `h`: the projection's, or the hidden width.
    pub fn width(&self) -> usize {
        self.projection.unwrap_or(self.hidden)
    }

    /// Width of one state.
    pub fn state_width(&self, kind: StateKind) -> usize {
        if kind == StateKind::Hidden { self.width() } else { self.hidden }
    }

    pub(crate) fn shape(&self, c: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        let x = c.expect_rank("x", self.x, 3, "[B, T, K]")?;
        let directions = self.directions();
        if self.layers.is_empty() || !(1..=2).contains(&directions) || self.hidden == 0 {
            return Err(c.error("needs a layer, one or two directions and a hidden width"));
        }
        if self.projection.is_some() && self.cell != Cell::Lstm {
            return Err(c.error("only an LSTM is projected"));
        }
        let mut inputs = c.fixed("the features of `x`", x.last())?;
        for (l, layer) in self.layers.iter().enumerate() {
            if layer.len() != directions {
                return Err(c.error(format!("layer {l} has {} directions", layer.len())));
            }
            for weights in layer {
                self.check(c, l, weights, inputs)?;
            }
            inputs = self.width().saturating_mul(directions);
        }
        let rows = self.layers.len() * directions;
        let kinds = self.cell.states();
        let finals = kinds
            .iter()
            .map(|&kind| vec![x[0], rows.into(), self.state_width(kind).into()])
            .collect::<Vec<Vec<Dim>>>();
        match &self.initial {
            Initial::Values(values) if values.len() == kinds.len() => {
                for (value, shape) in values.iter().zip(&finals) {
                    c.expect_value("initial", *value, shape, "[B, S·directions, width]")?;
                }
            }
            Initial::Slots if self.states.is_some() => {}
            Initial::Zero => {}
            other => return Err(c.error(format!("initial state {other:?} is incomplete"))),
        }
        for (slot, &kind) in self.states.iter().flat_map(|s| s.slots.iter()).zip(kinds) {
            let expected = [rows, self.state_width(kind)];
            if c.state(*slot) != expected {
                let found = c.state(*slot);
                return Err(c.error(format!("state has shape {found:?}, expected {expected:?}")));
            }
        }
        if self.states.as_ref().is_some_and(|s| s.slots.len() != kinds.len()) {
            return Err(c.error(format!("{:?} carries {} states", self.cell, kinds.len())));
        }
        let time = c.kept(self.keep, x[1])?;
        let mut shapes =
            vec![(DType::F32, vec![x[0], time, self.width().saturating_mul(directions).into()])];
        if self.finals {
            shapes.extend(finals.into_iter().map(|shape| (DType::F32, shape)));
        }
        Ok(shapes)
    }

    fn check(
        &self,
        c: &ShapeContext<'_>,
        layer: usize,
        w: &RnnWeights,
        inputs: usize,
    ) -> Result<(), PlanError> {
        let (d, g) = (self.hidden, self.cell.gates());
        let rows = d.saturating_mul(g);
        let name = |part: &str| format!("layer {layer} {part}");
        if let Cell::Slstm { heads } = self.cell {
            if heads == 0 || d % heads != 0 || inputs != d {
                return Err(c.error(format!(
                    "an sLSTM of width {d} and {heads} heads cannot take {inputs} inputs"
                )));
            }
            let shape = [g, heads, d / heads, d / heads];
            c.expect_weight(&name("w_ih"), w.w_ih, &shape, "[gates, heads, outputs, inputs]")?;
            c.expect_weight(&name("w_hh"), w.w_hh, &shape, "[gates, heads, outputs, inputs]")?;
        } else {
            c.expect_weight(&name("w_ih"), w.w_ih, &[rows, inputs], "[gates·D, inputs]")?;
            c.expect_weight(&name("w_hh"), w.w_hh, &[rows, self.width()], "[gates·D, width]")?;
        }
        for (part, bias) in [("b_ih", w.b_ih), ("b_hh", w.b_hh)] {
            if let Some(bias) = bias {
                c.expect_weight(&name(part), bias, &[rows], "[gates·D]")?;
            }
        }
        match (self.projection, w.w_hr) {
            (Some(p), Some(w_hr)) => c.expect_weight(&name("w_hr"), w_hr, &[p, d], "[width, D]"),
            (None, None) => Ok(()),
            _ => Err(c.error(format!("layer {layer}: projection and `w_hr` go together"))),
        }
    }

    pub(crate) fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        visit(&mut self.x);
        if let Initial::Values(values) = &mut self.initial {
            values.iter_mut().for_each(visit);
        }
    }

    pub(crate) fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        for w in self.layers.iter_mut().flatten() {
            visit(&mut w.w_ih);
            visit(&mut w.w_hh);
            w.b_ih.iter_mut().for_each(&mut *visit);
            w.b_hh.iter_mut().for_each(&mut *visit);
            w.w_hr.iter_mut().for_each(&mut *visit);
        }
    }
}

/// The states of one layer and direction for one row, in the cell's order.
type CellState = Vec<Vec<f64>>;

impl RnnStack {
    pub(crate) fn reference(&self, c: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        let x = c.value(self.x);
        let (rows, time) = (x.shape[0], x.shape[1]);
        let kinds = self.cell.states();
        let directions = self.directions();
        let state_rows = self.layers.len() * directions;
        let shape = |kind: &StateKind| [rows, state_rows, self.state_width(*kind)];
        let mut finals: Vec<Tensor> = kinds.iter().map(|k| Tensor::zeros(shape(k))).collect();
        let mut y = Vec::new();
        for b in 0..rows {
            let mut inputs: Vec<Vec<f64>> = (0..time).map(|t| vector(x, b, t).to_vec()).collect();
            for (l, layer) in self.layers.iter().enumerate() {
                let mut outputs = vec![Vec::new(); time];
                for (d, weights) in layer.iter().enumerate() {
                    let row = l * directions + d;
                    let mut state = self.initial_state(c, b, row);
                    for i in 0..time {
                        // The second direction runs from the end.
                        let t = if d == 0 { i } else { time - 1 - i };
                        self.cell_step(c, weights, &inputs[t], &mut state);
                        outputs[t].extend_from_slice(&state[0]);
                    }
                    for (all, one) in finals.iter_mut().zip(&state) {
                        let width = one.len();
                        let start = (b * state_rows + row) * width;
                        all.data[start..start + width].copy_from_slice(one);
                    }
                }
                inputs = outputs;
            }
            let kept = match self.keep {
                Keep::All => time,
                Keep::Last(n) => n,
            };
            y.extend(inputs[time - kept..].iter().flatten());
        }
        if let Some(states) = self.states.as_ref().filter(|states| states.write) {
            for (&slot, state) in states.slots.iter().zip(&finals) {
                c.set_state(slot, state.clone());
            }
        }
        let width = directions * self.width();
        let kept = y.len() / (rows * width).max(1);
        let mut outputs = vec![Tensor::new([rows, kept, width], y)];
        if self.finals {
            outputs.extend(finals);
        }
        outputs
    }

    /// The initial states of state row `row` (layer and direction) of batch row `b`.
    fn initial_state(&self, c: &ReferenceContext<'_>, b: usize, row: usize) -> CellState {
        let kinds = self.cell.states().iter().enumerate();
        let states = kinds.map(|(i, &kind)| match (&self.initial, &self.states) {
            (Initial::Values(values), _) => vector(c.value(values[i]), b, row).to_vec(),
            (Initial::Slots, Some(states)) => vector(c.state(states.slots[i]), b, row).to_vec(),
            _ => vec![0.0; self.state_width(kind)],
        });
        states.collect()
    }

    /// One time step of one direction of one layer.
    fn cell_step(
        &self,
        c: &ReferenceContext<'_>,
        weights: &RnnWeights,
        x: &[f64],
        state: &mut CellState,
    ) {
        let d = self.hidden;
        let first = self.sums(c, weights.w_ih, weights.b_ih, x);
        let second = self.sums(c, weights.w_hh, weights.b_hh, &state[0]);
        let sum = |gate: usize, j: usize| first[gate * d + j] + second[gate * d + j];
        let mut hidden = vec![0.0; d];
        for j in 0..d {
            hidden[j] = match self.cell {
                Cell::RnnTanh => sum(0, j).tanh(),
                Cell::RnnRelu => crate::ops::Activation::Relu.apply(sum(0, j)),
                Cell::Gru => {
                    let (r, z) = (sigmoid(sum(0, j)), sigmoid(sum(1, j)));
                    let n = (first[2 * d + j] + r * second[2 * d + j]).tanh();
                    (1.0 - z) * n + z * state[0][j]
                }
                Cell::Lstm => {
                    let (i, f) = (sigmoid(sum(0, j)), sigmoid(sum(1, j)));
                    let (g, o) = (sum(2, j).tanh(), sigmoid(sum(3, j)));
                    state[1][j] = f * state[1][j] + i * g;
                    o * state[1][j].tanh()
                }
                Cell::Slstm { .. } => {
                    let (i, f, z, o) = (sum(0, j), sum(1, j), sum(2, j), sum(3, j));
                    let decayed = -softplus(-f) + state[3][j];
                    let m = if state[2][j] == 0.0 { i } else { i.max(decayed) };
                    let (ig, fg) = ((i - m).exp().min(1.0), (decayed - m).exp().min(1.0));
                    state[1][j] = fg * state[1][j] + ig * z.tanh();
                    state[2][j] = fg * state[2][j] + ig;
                    state[3][j] = m;
                    sigmoid(o) * state[1][j] / state[2][j]
                }
            };
        }
        state[0] = match weights.w_hr {
            None => hidden,
            Some(w_hr) => {
                let rows = c.weight(w_hr).rows();
                rows.map(|row| dot(row, &hidden)).collect()
            }
        };
    }

    /// `W·v + b` of all gates, `[G · D]`; head by head for an sLSTM.
    fn sums(
        &self,
        c: &ReferenceContext<'_>,
        weight: WeightId,
        bias: Option<WeightId>,
        v: &[f64],
    ) -> Vec<f64> {
        let w = c.weight(weight);
        let (outputs, inputs) = (self.cell.gates() * self.hidden, w.width());
        let sum = |n: usize| {
            let start = match self.cell {
                // Output `n` belongs to unit `n mod D`, whose head is `unit / inputs`.
                Cell::Slstm { .. } => n % self.hidden / inputs * inputs,
                _ => 0,
            };
            let row = &w.data[n * inputs..(n + 1) * inputs];
            dot(row, &v[start..start + inputs])
        };
        let bias = c.optional(bias);
        (0..outputs).map(|n| sum(n) + bias.map_or(0.0, |bias| bias[n])).collect()
    }
}

/// The vector at `[b, t]` of a tensor of rank 3.
fn vector(x: &Tensor, b: usize, t: usize) -> &[f64] {
    let start = (b * x.shape[1] + t) * x.shape[2];
    &x.data[start..start + x.shape[2]]
}
