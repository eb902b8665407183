//! Cases of what subgroups share where they multiply matrices together; everywhere else they are
//! cases like all others.

use neural_forecast_runtime::ops::{
    Attention, Cell, Columns, Initial, Keep, RnnStack, RnnStates, RnnWeights,
};
use neural_forecast_runtime::plan::{Bucket, Dim, StateKind};
use neural_forecast_runtime::testing::{Case, CaseBuilder};

/// Layers of recurrences that subgroups share, with weights of their own.
fn layers_of(
    c: &mut CaseBuilder,
    cell: Cell,
    (inputs, hidden): (usize, usize),
    (layers, directions): (usize, usize),
    biases: [bool; 2],
) -> Vec<Vec<RnnWeights>> {
    let rows = cell.gates() * hidden;
    let mut layer = |inputs: usize| RnnWeights {
        w_ih: c.weight(&[rows, inputs]),
        w_hh: c.weight(&[rows, hidden]),
        b_ih: biases[0].then(|| c.bias(rows)),
        b_hh: biases[1].then(|| c.bias(rows)),
        w_hr: None,
    };
    let inputs = |l: usize| if l == 0 { inputs } else { directions * hidden };
    (0..layers).map(|l| (0..directions).map(|_| layer(inputs(l))).collect()).collect()
}

/// Attention that subgroups share where they can: heads of one matrix and more, queries and keys at
/// and beside a tile's number, causal and masked.
pub(crate) fn attentions() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, time, heads, head) in
        [(3, 64, 2, 16), (2, 65, 1, 32), (1, 130, 2, 64), (5, 17, 3, 48), (1, 16, 1, 64)]
    {
        for causal in [false, true] {
            let name = format!("attention shared {rows}x{time} {heads}x{head} causal {causal}");
            let mut c = CaseBuilder::new(name, Bucket { batch: rows, length: time });
            let width = heads * head;
            let value = c.input(&[Dim::BATCH, Dim::LENGTH, (3 * width).into()]);
            let columns = |i: usize| Columns { value, start: i * width, width };
            let scale = 1.0 / (head as f32).sqrt();
            let plain = Attention::new(columns(0), columns(1), columns(2), heads, scale);
            let plain = Attention { causal, ..plain };
            c.terms(4 * head);
            let y = c.step(plain.clone());
            let mask = c.mask(&[Dim::BATCH, Dim::LENGTH]);
            let masked = c.step(Attention { key_mask: Some(mask), ..plain });
            cases.push(c.finish(&[y, masked]));
        }
    }
    cases
}

/// Recurrences that subgroups share where they can: units at and beside multiples of sixteen, more
/// rows than a workgroup has, few inputs and many, a bias or none, the last positions alone.
pub(crate) fn recurrences() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [
        // Rows, time, inputs, units, layers, directions, biases.
        (37, 7, 10, 128, 2, 2, [true, true]),
        (33, 6, 40, 100, 1, 1, [true, false]),
        (16, 5, 16, 48, 2, 1, [false, true]),
        (65, 3, 17, 20, 1, 2, [false, false]),
        (2, 9, 33, 112, 1, 2, [true, true]),
    ];
    for cell in [Cell::Lstm, Cell::Gru, Cell::RnnTanh, Cell::RnnRelu] {
        for (rows, time, inputs, hidden, layers, directions, biases) in sizes {
            let name = format!(
                "rnn_stack shared {cell:?} {rows}x{time}x{inputs}->{hidden} {layers}x{directions}"
            );
            let mut c = CaseBuilder::new(name, Bucket { batch: rows, length: time });
            let x = c.input(&[Dim::BATCH, Dim::LENGTH, inputs.into()]);
            let layers = layers_of(&mut c, cell, (inputs, hidden), (layers, directions), biases);
            c.terms(4 * hidden * time);
            let (keep, finals) = match rows % 2 {
                0 => (Keep::All, true),
                _ => (Keep::Last(2), false),
            };
            let stack = RnnStack { keep, finals, ..RnnStack::new(x, cell, hidden, layers) };
            let y = c.steps(stack);
            cases.push(c.finish(&y));
        }
    }
    for cell in [Cell::Lstm, Cell::Gru] {
        let mut c = CaseBuilder::new(
            format!("rnn_stack shared {cell:?} from slots"),
            Bucket { batch: 35, length: 4 },
        )
        .stateful();
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, 10.into()]);
        let kinds = cell.states().iter();
        let slots = kinds.map(|&kind: &StateKind| c.state(kind, &[2, 36])).collect();
        let layers = layers_of(&mut c, cell, (10, 36), (2, 1), [true, true]);
        c.terms(4 * 36 * 4);
        let states = Some(RnnStates { slots, write: true });
        let stack = RnnStack::new(x, cell, 36, layers);
        let y = c.steps(RnnStack { initial: Initial::Slots, states, ..stack });
        cases.push(c.finish(&y));
    }
    cases
}
