//! Cases of `rnn_stack`: every cell, one and two directions, projected, from values and slots.

use super::ops::bucket;
use super::{Case, CaseBuilder};
use crate::ops::{Cell, Initial, Keep, RnnStack, RnnStates, RnnWeights};
use crate::plan::{Dim, StateKind};

/// Weights of a stack of this size.
pub(super) fn weights(
    c: &mut CaseBuilder,
    cell: Cell,
    (inputs, hidden, projection): (usize, usize, Option<usize>),
    (layers, directions): (usize, usize),
    bias: bool,
) -> Vec<Vec<RnnWeights>> {
    let gates = cell.gates();
    let width = projection.unwrap_or(hidden);
    let mut layer = |inputs: usize| {
        let (input_shape, hidden_shape) = match cell {
            Cell::Slstm { heads } => {
                let head = hidden / heads;
                (vec![gates, heads, head, head], vec![gates, heads, head, head])
            }
            _ => (vec![gates * hidden, inputs], vec![gates * hidden, width]),
        };
        RnnWeights {
            w_ih: c.weight(&input_shape),
            w_hh: c.weight(&hidden_shape),
            b_ih: bias.then(|| c.bias(gates * hidden)),
            b_hh: bias.then(|| c.bias(gates * hidden)),
            w_hr: projection.map(|p| c.weight(&[p, hidden])),
        }
    };
    let inputs = |l: usize| if l == 0 { inputs } else { directions * width };
    (0..layers).map(|l| (0..directions).map(|_| layer(inputs(l))).collect()).collect()
}

pub(super) fn rnn_stacks(cases: &mut Vec<Case>) {
    let cells = [Cell::Lstm, Cell::Gru, Cell::RnnTanh, Cell::RnnRelu, Cell::Slstm { heads: 2 }];
    for cell in cells {
        let even = matches!(cell, Cell::Slstm { .. });
        for (rows, time, inputs, hidden) in [
            (1, 1, 1, 1_usize),
            (3, 5, 7, 8),
            (8, 9, 16, 16),
            (5, 4, 3, 33),
            (2, 13, 17, 64),
            (9, 6, 20, 130),
        ] {
            let hidden = if even { hidden.next_multiple_of(2) } else { hidden };
            let inputs = if even { hidden } else { inputs };
            for (layers, directions) in [(1, 1), (2, 1), (1, 2), (3, 2)] {
                // One large stack a cell is enough: the reference is slow.
                if (directions == 2 && even) || (hidden > 100 && (layers, directions) != (2, 1)) {
                    continue;
                }
                let name = format!(
                    "rnn_stack {cell:?} {rows}x{time}x{inputs}->{hidden} {layers}x{directions}"
                );
                let mut c = CaseBuilder::new(name, bucket(rows, time));
                let x = c.input(&[Dim::BATCH, Dim::LENGTH, inputs.into()]);
                let size = (inputs, hidden, None);
                let layers = weights(&mut c, cell, size, (layers, directions), rows != 3);
                c.terms(4 * hidden * time);
                let keep = if rows == 8 { Keep::Last(2) } else { Keep::All };
                let finals = rows != 1;
                let stack = RnnStack { keep, finals, ..RnnStack::new(x, cell, hidden, layers) };
                let y = c.steps(stack);
                cases.push(c.finish(&y));
            }
        }
    }
    projected(cases);
    initial(cases);
    slots(cases);
}

fn projected(cases: &mut Vec<Case>) {
    for (layers, directions, hidden, p) in [(1, 1, 8, 3), (2, 1, 17, 1), (2, 2, 16, 5)] {
        let name = format!("rnn_stack projected {hidden}->{p} {layers}x{directions}");
        let mut c = CaseBuilder::new(name, bucket(3, 6));
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, 4.into()]);
        let size = (4, hidden, Some(p));
        let layers = weights(&mut c, Cell::Lstm, size, (layers, directions), true);
        c.terms(100);
        let stack = RnnStack::new(x, Cell::Lstm, hidden, layers);
        let y = c.steps(RnnStack { projection: Some(p), finals: true, ..stack });
        cases.push(c.finish(&y));
    }
}

fn initial(cases: &mut Vec<Case>) {
    for cell in [Cell::Lstm, Cell::Gru] {
        let mut c = CaseBuilder::new(format!("rnn_stack {cell:?} from values"), bucket(3, 6));
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, 4.into()]);
        let states = cell.states().iter();
        let states = states.map(|_| c.input(&[Dim::BATCH, 4.into(), 9.into()])).collect();
        let layers = weights(&mut c, cell, (4, 9, None), (2, 2), true);
        c.terms(100);
        let stack = RnnStack::new(x, cell, 9, layers);
        let y = c.steps(RnnStack { initial: Initial::Values(states), finals: true, ..stack });
        cases.push(c.finish(&y));
    }
}

fn slots(cases: &mut Vec<Case>) {
    let cells = [Cell::Lstm, Cell::Gru, Cell::RnnTanh, Cell::RnnRelu, Cell::Slstm { heads: 2 }];
    for cell in cells {
        for time in [1, 4] {
            let name = format!("rnn_stack {cell:?} from slots {time}");
            let mut c = CaseBuilder::new(name, bucket(5, time)).stateful();
            let x = c.input(&[Dim::BATCH, Dim::LENGTH, 10.into()]);
            let kinds = cell.states().iter();
            let slots = kinds.map(|&kind: &StateKind| c.state(kind, &[2, 10])).collect();
            let layers = weights(&mut c, cell, (10, 10, None), (2, 1), true);
            c.terms(200);
            let stack = RnnStack::new(x, cell, 10, layers);
            let states = Some(RnnStates { slots, write: true });
            let y = c.steps(RnnStack { initial: Initial::Slots, states, ..stack });
            cases.push(c.finish(&y));
        }
    }
}
