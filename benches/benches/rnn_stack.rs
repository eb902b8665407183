//! `rnn_stack`: the workloads' recurrences and a GRU of the same width.

use criterion::{Criterion, criterion_group, criterion_main};
use neural_forecast_benches::{Bench, Case};
use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::ops::{Cell, Keep, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::PlanBuilder;

struct Shape {
    name: &'static str,
    cell: Cell,
    time: usize,
    features: usize,
    hidden: usize,
    layers: usize,
    directions: usize,
}

fn weights(b: &mut PlanBuilder, s: &Shape) -> Vec<Vec<RnnWeights>> {
    let gates = s.cell.gates() * s.hidden;
    let mut direction = |layer: usize, direction: usize| {
        let inputs = if layer == 0 { s.features } else { s.directions * s.hidden };
        let name = |part: &str| format!("{part}.{layer}.{direction}");
        RnnWeights {
            w_ih: b.weight(name("w_ih"), &[gates, inputs]),
            w_hh: b.weight(name("w_hh"), &[gates, s.hidden]),
            b_ih: Some(b.weight(name("b_ih"), &[gates])),
            b_hh: Some(b.weight(name("b_hh"), &[gates])),
            w_hr: None,
        }
    };
    (0..s.layers).map(|l| (0..s.directions).map(|d| direction(l, d)).collect()).collect()
}

fn case(s: &Shape, batch: usize) -> Case {
    let (steps, layers, directions) = (s.time as u64, s.layers, s.directions);
    // Recurrent weights every step but the first, whose state is zero; the last layer's backward
    // direction ends after its first step, because only the last position is kept.
    let last_backward = format!("w_hh.{}.1", layers - 1);
    let times = move |name: &str| match name.strip_prefix("w_hh") {
        Some(_) if directions == 2 && name == last_backward => 0,
        Some(_) => steps - 1,
        None => 1,
    };
    let case = Case::new(format!("{}/{batch}", s.name), batch, &[&[s.time, s.features]], |b, x| {
        let layers = weights(b, s);
        let stack = RnnStack::new(x[0], s.cell, s.hidden, layers);
        b.one(RnnStack { keep: Keep::Last(1), ..stack })
    });
    case.rereads(times)
}

fn rnn_stack(c: &mut Criterion) {
    let lstm = |name, time, features, hidden, layers, directions| {
        let cell = Cell::Lstm;
        Shape { name, cell, time, features, hidden, layers, directions }
    };
    let a = lstm("lstm_a", 50, 100, 100, 2, 1);
    let b = lstm("lstm_b", 100, 250, 200, 3, 1);
    let guide_128 = lstm("lstm_guide_128", 100, 10, 128, 2, 2);
    let guide_256 = lstm("lstm_guide_256", 100, 10, 256, 2, 2);
    let gru = Shape { name: "gru_a", cell: Cell::Gru, ..lstm("", 50, 100, 100, 2, 1) };
    let precisions = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];
    let mut bench = Bench::new(c, "rnn_stack").precisions(&precisions);
    for (shape, batches) in
        [(&a, &[1, 32][..]), (&b, &[1]), (&guide_128, &[1, 32]), (&guide_256, &[1]), (&gru, &[1])]
    {
        for &batch in batches {
            bench.flops(&case(shape, batch));
        }
    }
    bench.finish();
}

criterion_group!(benches, rnn_stack);
criterion_main!(benches);
