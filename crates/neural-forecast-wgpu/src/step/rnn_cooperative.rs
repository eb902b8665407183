//! How `rnn_cooperative` shares a recurrence of many series: which stacks it takes, their weights
//! in the order of its matrices, and the constants of its text.

use neural_forecast_runtime::ops::{Cell, RnnStack};

use super::build::word;

/// Rows, columns and depth of a matrix.
const SIDE: usize = 16;

/// Most sixteens of units, which are subgroups of a workgroup: more leave an invocation too few
/// registers for the weights, and their sums take more workgroup memory than most devices have.
const UNIT_TILES_MAX: usize = 8;

/// Most sixteens of inputs that are operands beside the outputs of the step before; more are
/// multiplied beforehand, all steps at once.
const X_TILES_MAX: usize = 2;

/// Most matrices of weights of a gate that stay in registers: at four registers a matrix and lane,
/// those of four gates take 160 of the 255 that a lane can have on the devices at hand.
const KEPT_MAX: usize = 10;

/// Matrices along the rows of a workgroup, one after the other.
const PASSES: usize = 2;

/// How one direction of one layer is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    pub(super) gates: usize,
    pub(super) hidden: usize,
    pub(super) inputs: usize,
    /// Sixteens of units; of inputs that are operands too, none where their sums are there before.
    pub(super) units: usize,
    pub(super) x: usize,
}

impl Tiling {
    /// The shape of a direction with so many inputs, where the kernel takes such stacks.
    pub(super) fn of(op: &RnnStack, inputs: usize) -> Option<Tiling> {
        let units = op.hidden.div_ceil(SIDE);
        let takes = op.projection.is_none()
            && !matches!(op.cell, Cell::Slstm { .. })
            && op.hidden.is_multiple_of(4)
            && (1..=UNIT_TILES_MAX).contains(&units);
        // A GRU's new gate weighs the sum over its outputs apart from the one over its inputs.
        let x = if op.cell == Cell::Gru { 0 } else { inputs.div_ceil(SIDE) };
        let x = if x > X_TILES_MAX { 0 } else { x };
        takes.then_some(Tiling { gates: op.cell.gates(), hidden: op.hidden, inputs, units, x })
    }

    /// Whether the inputs are operands of the same products.
    pub(super) fn is_joint(self) -> bool {
        self.x > 0
    }

    /// Rows of a workgroup.
    pub(super) fn rows(self) -> usize {
        SIDE * PASSES
    }

    /// Matrices along the operands.
    fn depth(self) -> usize {
        self.x + self.units
    }

    /// Bytes of workgroup memory: the operands of all rows, and sums of a matrix's rows.
    pub(super) fn bytes(self) -> usize {
        let operands = self.rows() * (4 * self.depth() + 2) * 8;
        operands + self.units * SIDE * (4 * self.gates + 1) * 16
    }

    /// Weights `[gates · hidden, inputs]` and `[gates · hidden, hidden]` matrix by matrix: for each
    /// sixteen of units and gate all matrices along the operands, in each unit by unit; zeros
    /// beyond the last unit and operand.
    pub(super) fn pack(self, w_ih: &[f32], w_hh: &[f32]) -> Vec<f32> {
        let Tiling { gates, hidden, inputs, units, x } = self;
        let mut packed = Vec::with_capacity(units * gates * self.depth() * SIDE * SIDE);
        for tile in 0..units * gates {
            let (first, gate) = (tile / gates * SIDE, tile % gates);
            for k in 0..self.depth() {
                let (weights, width, from) = match k.checked_sub(x) {
                    None => (w_ih, inputs, k * SIDE),
                    Some(k) => (w_hh, hidden, k * SIDE),
                };
                for place in 0..SIDE * SIDE {
                    let (unit, input) = (first + place / SIDE, from + place % SIDE);
                    let is_weight = unit < hidden && input < width;
                    let at = (gate * hidden + unit) * width + input;
                    packed.push(if is_weight { weights[at] } else { 0.0 });
                }
            }
        }
        packed
    }

    /// Constants of the kernel's text, for subgroups of so many lanes.
    pub(super) fn constants(self, lanes: u32) -> Vec<(&'static str, u32)> {
        let lanes = lanes as usize;
        let kept = self.depth().min(KEPT_MAX);
        vec![
            ("UNIT_TILES", word(self.units)),
            ("LANES", word(lanes)),
            ("M", 1),
            ("PASSES", word(PASSES)),
            ("X_TILES", word(self.x)),
            ("KEPT", word(kept)),
            ("STREAMED", word(self.depth() - kept)),
            ("X_LOADS", word((4 * SIDE * self.x).div_ceil(lanes * self.units))),
            ("ITEMS", word(4 * SIDE / lanes)),
            ("HIDDEN", word(self.hidden)),
            ("INPUTS", word(self.inputs)),
        ]
    }
}

/// Constants of the kernel's text in every kind of variant.
#[cfg(test)]
pub(crate) fn recurrence_variants() -> Vec<crate::kernel::Constants> {
    let mut variants = Vec::new();
    for (cell, gates) in [(0, 4), (1, 3), (2, 1)] {
        for (hidden, x, lanes) in [(128, 1, 32), (100, 0, 32), (20, 2, 64), (64, 0, 64)] {
            let tiling = Tiling { gates, hidden, inputs: 9 * x, units: hidden.div_ceil(SIDE), x };
            let mut constants = tiling.constants(lanes);
            constants.extend([("CELL", cell), ("GATES", word(gates)), ("BIAS", 1), ("BEGIN", 2)]);
            variants.push(constants);
        }
    }
    variants
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lie_matrix_by_matrix() {
        let tiling = Tiling { gates: 2, hidden: 20, inputs: 3, units: 2, x: 1 };
        let w_ih: Vec<f32> = (0..2 * 20 * 3).map(|i| 1.0 + i as f32).collect();
        let w_hh: Vec<f32> = (0..2 * 20 * 20).map(|i| -1.0 - i as f32).collect();
        let packed = tiling.pack(&w_ih, &w_hh);
        assert_eq!(packed.len(), 2 * 2 * 3 * 256);
        let at = |unit: usize, gate: usize, k: usize| {
            packed[(((unit / 16 * 2 + gate) * 3 + k / 16) * 16 + unit % 16) * 16 + k % 16]
        };
        assert_eq!(at(17, 1, 2), w_ih[(20 + 17) * 3 + 2]);
        assert_eq!(at(3, 0, 16 + 18), w_hh[3 * 20 + 18]);
        // No such input, no such output, no such unit.
        assert_eq!([at(0, 0, 3), at(0, 0, 16 + 20), at(20, 1, 16)], [0.0; 3]);
        let kept = packed.iter().filter(|&&w| w != 0.0).count();
        assert_eq!(kept, w_ih.len() + w_hh.len());
    }
}
