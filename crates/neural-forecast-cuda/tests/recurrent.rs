//! Recurrent stacks beyond the shared cases: wide layers, a step at a time; widths around those of
//! slices and tiles; what is not computed because nobody keeps it. Compared with the reference
//! implementation, in f32 and in half precision, with the kernels of either class.
//!
//! Without a GPU nothing is tested, which is printed; `NF_REQUIRE=cuda` makes that a failure.

use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::device::{LoadOptions, Precision};
use neural_forecast_runtime::ops::{Cell, Initial, Keep, Linear, RnnStack, RnnStates, RnnWeights};
use neural_forecast_runtime::plan::{Bucket, Dim, StateKind};
use neural_forecast_runtime::testing::{Case, CaseBuilder, conform_all, device_or_skip};

/// Compares in f32, f16 and bf16; `more` is what f16 may add to the tolerances, bf16 eight times.
fn check(cases: &[Case], more: f64) {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    for (precision, more) in
        [(Precision::F32, 0.0), (Precision::F16, more), (Precision::Bf16, 8.0 * more)]
    {
        let cases: Vec<Case> = cases.iter().map(|case| case.widened(more)).collect();
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let (ran, failures) = conform_all(&device, &cases, &options);
        let name = precision.name();
        assert_eq!(ran + failures.len(), cases.len(), "{name}: cases were not run");
        assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n"));
    }
}

/// What a stack has besides its cell and sizes.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    time: usize,
    inputs: usize,
    hidden: usize,
    projection: Option<usize>,
    layers: usize,
    directions: usize,
}

fn layers(c: &mut CaseBuilder, cell: Cell, shape: Shape) -> Vec<Vec<RnnWeights>> {
    let Shape { hidden, projection, directions, .. } = shape;
    let (gates, width) = (cell.gates(), projection.unwrap_or(hidden));
    let mut lane = |inputs: usize| {
        let (w_ih, w_hh) = match cell {
            Cell::Slstm { heads } => {
                let head = hidden / heads;
                (vec![gates, heads, head, head], vec![gates, heads, head, head])
            }
            _ => (vec![gates * hidden, inputs], vec![gates * hidden, width]),
        };
        RnnWeights {
            w_ih: c.weight(&w_ih),
            w_hh: c.weight(&w_hh),
            b_ih: Some(c.bias(gates * hidden)),
            b_hh: None,
            w_hr: projection.map(|p| c.weight(&[p, hidden])),
        }
    };
    let inputs = |l: usize| if l == 0 { shape.inputs } else { directions * width };
    (0..shape.layers).map(|l| (0..directions).map(|_| lane(inputs(l))).collect()).collect()
}

fn stack(cell: Cell, shape: Shape, keep: Keep, finals: bool) -> Case {
    let name = format!(
        "{cell:?} {}x{}x{}->{} ({:?}) {}x{} {keep:?} {finals}",
        shape.rows,
        shape.time,
        shape.inputs,
        shape.hidden,
        shape.projection,
        shape.layers,
        shape.directions
    );
    let mut c = CaseBuilder::new(name, Bucket { batch: shape.rows, length: shape.time });
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, shape.inputs.into()]);
    let layers = layers(&mut c, cell, shape);
    c.terms(4 * shape.hidden * shape.time);
    let stack = RnnStack::new(x, cell, shape.hidden, layers);
    let y = c.steps(RnnStack { keep, finals, projection: shape.projection, ..stack });
    c.finish(&y)
}

const SMALL: Shape =
    Shape { rows: 3, time: 4, inputs: 7, hidden: 24, projection: None, layers: 2, directions: 1 };

#[test]
fn wide_layers_of_every_cell() {
    let mut cases = Vec::new();
    for cell in [Cell::Lstm, Cell::Gru, Cell::RnnTanh, Cell::RnnRelu] {
        let wide = Shape { hidden: 257, ..SMALL };
        cases.push(stack(cell, wide, Keep::All, true));
        cases.push(stack(cell, Shape { directions: 2, ..wide }, Keep::Last(1), false));
        cases.push(stack(cell, Shape { directions: 2, ..wide }, Keep::Last(2), false));
    }
    let heads = Shape { hidden: 264, inputs: 264, ..SMALL };
    cases.push(stack(Cell::Slstm { heads: 3 }, heads, Keep::All, true));
    for directions in [1, 2] {
        let projected = Shape { hidden: 300, projection: Some(33), directions, ..SMALL };
        cases.push(stack(Cell::Lstm, projected, Keep::Last(3), true));
    }
    check(&cases, 0.02);
}

#[test]
fn widths_around_those_of_slices() {
    let mut cases = Vec::new();
    for hidden in [1, 15, 16, 17, 28, 29, 40, 52, 53, 64, 65, 100, 104, 105, 200, 320] {
        for directions in [1, 2] {
            let shape = Shape { rows: 66, hidden, directions, ..SMALL };
            cases.push(stack(Cell::Lstm, shape, Keep::All, true));
            cases.push(stack(Cell::Lstm, Shape { layers: 1, ..shape }, Keep::Last(1), false));
        }
    }
    check(&cases, 0.01);
}

#[test]
fn rows_around_those_of_tiles() {
    let mut cases = Vec::new();
    for rows in [1, 63, 64, 65, 127, 129, 300] {
        let shape = Shape { rows, time: 11, ..SMALL };
        cases.push(stack(Cell::Lstm, shape, Keep::All, true));
        cases.push(stack(Cell::Gru, shape, Keep::Last(5), false));
        cases.push(stack(Cell::Lstm, Shape { directions: 2, ..shape }, Keep::Last(3), false));
    }
    check(&cases, 0.01);
}

#[test]
fn many_layers_and_a_long_window() {
    let deep = Shape { layers: 10, time: 3, ..SMALL };
    let long = Shape { time: 70, layers: 3, ..SMALL };
    // Weights of 1400 x 1408 halves a slice do not fit a multiprocessor.
    let streamed = Shape { inputs: 1400, hidden: 260, layers: 1, ..SMALL };
    let streamed_both = Shape { directions: 2, layers: 2, ..streamed };
    let mut cases = vec![
        stack(Cell::Lstm, deep, Keep::All, true),
        stack(Cell::Lstm, long, Keep::All, true),
        stack(Cell::Lstm, long, Keep::Last(1), false),
    ];
    for shape in [streamed, streamed_both] {
        cases.push(stack(Cell::Lstm, shape, Keep::All, true));
        cases.push(stack(Cell::Lstm, Shape { rows: 130, ..shape }, Keep::Last(1), false));
    }
    check(&cases, 0.02);
}

#[test]
fn stacks_wider_than_a_cluster() {
    // Few cases: what takes long is packing the weights.
    let wide = Shape { rows: 1, time: 9, inputs: 9, hidden: 800, layers: 1, ..SMALL };
    let two = Shape { layers: 2, time: 5, ..wide };
    let mut cases = vec![
        stack(Cell::Lstm, two, Keep::Last(3), true),
        stack(Cell::Lstm, Shape { rows: 9, ..two }, Keep::All, false),
        // More chunks of input sums than there is room for.
        stack(Cell::Lstm, Shape { time: 34, ..wide }, Keep::All, false),
        stack(Cell::Gru, Shape { rows: 3, ..wide }, Keep::Last(1), true),
        stack(Cell::RnnTanh, Shape { rows: 2, ..wide }, Keep::All, false),
        stack(Cell::RnnRelu, wide, Keep::All, true),
        stack(Cell::Lstm, Shape { directions: 2, ..two }, Keep::Last(2), false),
        // More lanes than fit at once; a last group of one unit; all k-steps of eight warps.
        stack(Cell::Lstm, Shape { layers: 6, time: 2, ..wide }, Keep::Last(1), true),
    ];
    for hidden in [761, 1024, 1025] {
        cases.push(stack(Cell::Lstm, Shape { hidden, time: 2, ..wide }, Keep::Last(2), true));
    }
    // The whole forecast in one launch.
    for rows in [1, 9] {
        let bucket = Bucket { batch: rows, length: two.time };
        let mut c = CaseBuilder::new(format!("{rows} forecasts of 2 x 800"), bucket);
        let x = c.input(&[Dim::BATCH, Dim::LENGTH, two.inputs.into()]);
        let layers = layers(&mut c, Cell::Lstm, two);
        let (weight, bias) = (c.weight(&[3, two.hidden]), c.bias(3));
        c.terms(4 * two.hidden * two.time);
        let stack = RnnStack::new(x, Cell::Lstm, two.hidden, layers);
        let last = c.step(RnnStack { keep: Keep::Last(1), ..stack });
        let y = c.step(Linear::new(last, weight).bias(Some(bias)));
        cases.push(c.finish(&[y]));
    }
    check(&cases, 0.02);
}

#[test]
fn wide_layers_from_slots() {
    let mut cases = Vec::new();
    for cell in [Cell::Lstm, Cell::Gru] {
        for hidden in [40, 280, 780] {
            let bucket = Bucket { batch: 5, length: 3 };
            let mut c =
                CaseBuilder::new(format!("{cell:?} {hidden} from slots"), bucket).stateful();
            let shape = Shape { hidden, ..SMALL };
            let x = c.input(&[Dim::BATCH, Dim::LENGTH, shape.inputs.into()]);
            let kinds = cell.states().iter();
            let slots = kinds.map(|&kind: &StateKind| c.state(kind, &[2, hidden])).collect();
            let layers = layers(&mut c, cell, shape);
            c.terms(4 * hidden * 9);
            let states = Some(RnnStates { slots, write: true });
            let stack = RnnStack::new(x, cell, hidden, layers);
            let y = c.steps(RnnStack { initial: Initial::Slots, states, finals: true, ..stack });
            cases.push(c.finish(&y));
        }
    }
    check(&cases, 0.02);
}
