//! Cases of recurrences that no workgroup holds, for what runs them and for what only compiles
//! them.

use neural_forecast_runtime::ops::{Cell, Keep, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::testing::{Case, CaseBuilder};

/// More units than a workgroup takes, in and not in its tile.
const WIDE: usize = 1034;

fn case(cell: Cell, projection: Option<usize>, directions: usize) -> Case {
    let name = format!("rnn_stack {cell:?} of {WIDE} projected {projection:?} x{directions}");
    let mut c = CaseBuilder::new(name, Bucket { batch: 2, length: 3 });
    let inputs = if matches!(cell, Cell::Slstm { .. }) { WIDE } else { 3 };
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, inputs.into()]);
    let gates = cell.gates();
    let width = projection.unwrap_or(WIDE);
    let layer = (0..directions)
        .map(|_| {
            let (ih, hh) = match cell {
                Cell::Slstm { heads } => {
                    let head = WIDE / heads;
                    (vec![gates, heads, head, head], vec![gates, heads, head, head])
                }
                _ => (vec![gates * WIDE, inputs], vec![gates * WIDE, width]),
            };
            RnnWeights {
                w_ih: c.weight(&ih),
                w_hh: c.weight(&hh),
                b_ih: Some(c.bias(gates * WIDE)),
                b_hh: None,
                w_hr: projection.map(|p| c.weight(&[p, WIDE])),
            }
        })
        .collect();
    c.terms(4 * WIDE * 3);
    let keep = if directions == 2 { Keep::Last(2) } else { Keep::All };
    let stack =
        RnnStack { projection, keep, finals: true, ..RnnStack::new(x, cell, WIDE, vec![layer]) };
    let y = c.steps(stack);
    c.finish(&y)
}

/// Every kind of cell that has another number of gates or a projection, and time backwards.
pub(crate) fn wide() -> Vec<Case> {
    vec![
        case(Cell::Lstm, None, 2),
        case(Cell::Lstm, Some(5), 1),
        case(Cell::Gru, None, 1),
        case(Cell::Slstm { heads: 2 }, None, 1),
    ]
}
