//! Against a reference in `f64` that goes unit by unit, and against itself in other shapes.

use super::cost::Model;
use super::meetings::noise;
use super::pipeline::Pipeline;
use super::schedule::Way;
use super::*;
use crate::caches::Caches;
use crate::random::Random;
use crate::team::Team;

#[derive(Clone)]
struct Own {
    w_ih: Vec<f32>,
    w_hh: Vec<f32>,
    b_ih: Vec<f32>,
    b_hh: Vec<f32>,
    w_hr: Option<Vec<f32>>,
}

struct Case {
    cell: Cell,
    inputs: usize,
    hidden: usize,
    projection: Option<usize>,
    layers: Vec<Vec<Own>>,
}

impl Case {
    fn new(
        random: &mut Random,
        cell: Cell,
        (inputs, hidden, projection): (usize, usize, Option<usize>),
        layers: usize,
        directions: usize,
    ) -> Case {
        let width = projection.unwrap_or(hidden);
        let g = cell.gates();
        let mut make = |l: usize| {
            let k = if l == 0 { inputs } else { directions * width };
            let (ih, hh) = match cell {
                Cell::Slstm { heads } => (g * hidden * hidden / heads, g * hidden * hidden / heads),
                _ => (g * hidden * k, g * hidden * width),
            };
            let scale = 1.5 / (k.max(width).max(1) as f32).sqrt();
            let mut scaled =
                |n| -> Vec<f32> { random.floats(n).into_iter().map(|x| x * scale).collect() };
            Own {
                w_ih: scaled(ih),
                w_hh: scaled(hh),
                b_ih: scaled(g * hidden),
                b_hh: scaled(g * hidden),
                w_hr: projection.map(|p| scaled(p * hidden)),
            }
        };
        let layers = (0..layers).map(|l| (0..directions).map(|_| make(l)).collect()).collect();
        Case { cell, inputs, hidden, projection, layers }
    }

    fn packed(&self, isa: Isa, precision: Precision) -> Rnn {
        fn view(own: &Own) -> Weights<'_> {
            Weights {
                w_ih: &own.w_ih,
                w_hh: &own.w_hh,
                b_ih: Some(&own.b_ih),
                b_hh: Some(&own.b_hh),
                w_hr: own.w_hr.as_deref(),
            }
        }
        let layers: Vec<Vec<Weights<'_>>> =
            self.layers.iter().map(|layer| layer.iter().map(view).collect()).collect();
        let shape = (self.inputs, self.hidden, self.projection);
        Rnn::new(isa, precision, self.cell, shape, &layers)
    }

    fn width(&self) -> usize {
        self.projection.unwrap_or(self.hidden)
    }

    /// Unit by unit in `f64`; `states[i][row][unit]`, updated.
    fn reference(&self, x: &[f32], steps: usize, states: &mut [Vec<Vec<f64>>]) -> Vec<f64> {
        let mut sequence: Vec<Vec<f64>> = (0..steps)
            .map(|t| {
                x[t * self.inputs..(t + 1) * self.inputs].iter().map(|&x| f64::from(x)).collect()
            })
            .collect();
        for (l, layer) in self.layers.iter().enumerate() {
            let mut out = vec![Vec::new(); steps];
            for (d, w) in layer.iter().enumerate() {
                let row = l * layer.len() + d;
                let mut state: Vec<Vec<f64>> = states.iter().map(|s| s[row].clone()).collect();
                for i in 0..steps {
                    let t = if d == 1 { steps - 1 - i } else { i };
                    self.reference_step(w, &sequence[t], &mut state);
                    out[t].extend_from_slice(&state[0]);
                }
                for (s, state) in states.iter_mut().zip(state) {
                    s[row] = state;
                }
            }
            sequence = out;
        }
        sequence.concat()
    }

    fn reference_step(&self, w: &Own, x: &[f64], state: &mut [Vec<f64>]) {
        let d = self.hidden;
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        let sum = |matrix: &[f32], bias: &[f32], row: usize, v: &[f64]| -> f64 {
            let (k, from) = match self.cell {
                Cell::Slstm { heads } => (d / heads, row % d / (d / heads) * (d / heads)),
                _ => (v.len(), 0),
            };
            let terms = (0..k).map(|i| f64::from(matrix[row * k + i]) * v[from + i]);
            terms.sum::<f64>() + f64::from(bias[row])
        };
        let h = state[0].clone();
        let a = |g: usize, u: usize| sum(&w.w_ih, &w.b_ih, g * d + u, x);
        let b = |g: usize, u: usize| sum(&w.w_hh, &w.b_hh, g * d + u, &h);
        let mut new = vec![0.0; d];
        for (u, new) in new.iter_mut().enumerate() {
            let gate = |g: usize| a(g, u) + b(g, u);
            *new = match self.cell {
                Cell::Lstm => {
                    let c = &mut state[1][u];
                    *c = sigma(gate(1)) * *c + sigma(gate(0)) * gate(2).tanh();
                    sigma(gate(3)) * c.tanh()
                }
                Cell::Gru => {
                    let n = (a(2, u) + sigma(gate(0)) * b(2, u)).tanh();
                    let z = sigma(gate(1));
                    (1.0 - z) * n + z * h[u]
                }
                Cell::Tanh => gate(0).tanh(),
                Cell::Relu => gate(0).max(0.0),
                Cell::Slstm { .. } => {
                    let (i, f) = (gate(0), gate(1));
                    let lf = sigma(f).ln() + state[3][u];
                    let m = if state[2][u] == 0.0 { i } else { i.max(lf) };
                    let (ig, fg) = ((i - m).exp().min(1.0), (lf - m).exp().min(1.0));
                    state[1][u] = fg * state[1][u] + ig * gate(2).tanh();
                    state[2][u] = fg * state[2][u] + ig;
                    state[3][u] = m;
                    sigma(gate(3)) * state[1][u] / state[2][u]
                }
            };
        }
        if let Some(w_hr) = &w.w_hr {
            let project =
                |row: usize| (0..d).map(|u| f64::from(w_hr[row * d + u]) * new[u]).sum::<f64>();
            new = (0..self.width()).map(project).collect();
        }
        state[0] = new;
    }
}

struct Result {
    y: Vec<f32>,
    finals: Vec<Vec<f32>>,
}

fn run(
    rnn: &Rnn,
    workers: usize,
    x: &[f32],
    (batch, steps, keep): (usize, usize, usize),
    initial: Option<&[Vec<f32>]>,
    with_finals: bool,
) -> Result {
    let schedule = rnn.schedule(batch, steps, keep, workers);
    run_as(rnn, &schedule, x, batch, initial, with_finals)
}

fn run_as(
    rnn: &Rnn,
    schedule: &Schedule,
    x: &[f32],
    batch: usize,
    initial: Option<&[Vec<f32>]>,
    with_finals: bool,
) -> Result {
    let (keep, workers) = (schedule.keep, schedule.workers);
    let rows = rnn.layers.len() * rnn.directions();
    let widths: Vec<usize> =
        (0..rnn.cell.states()).map(|i| if i == 0 { rnn.width } else { rnn.hidden }).collect();
    let mut y = vec![f32::NAN; batch * keep * rnn.directions() * rnn.width];
    let mut finals: Vec<Vec<f32>> =
        widths.iter().map(|w| vec![f32::NAN; batch * rows * w]).collect();
    let view = |s: &[f32], w: usize| StateRows::dense(s.as_ptr().cast_mut(), rows * w);
    let initial_rows: Option<Vec<StateRows>> =
        initial.map(|s| s.iter().zip(&widths).map(|(s, &w)| view(s, w)).collect());
    let final_rows: Vec<StateRows> = finals
        .iter_mut()
        .zip(&widths)
        .map(|(s, &w)| StateRows::dense(s.as_mut_ptr(), rows * w))
        .collect();
    let call = Call {
        x: x.as_ptr(),
        batch,
        y: y.as_mut_ptr(),
        initial: initial_rows.as_deref(),
        finals: with_finals.then_some(&final_rows),
    };
    let mut team = Team::new(workers).unwrap();
    // Twice: a second run must not see the first.
    for _ in 0..2 {
        team.run(|worker| {
            // SAFETY: all arrays have the call's shape and outlive it.
            unsafe { rnn.run(&call, schedule, worker, &mut Scratch::new()) }
        })
        .unwrap();
    }
    Result { y, finals }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let slstm = Cell::Slstm { heads: 4 };
    vec![
        Case::new(random, Cell::Lstm, (3, 5, None), 1, 1),
        Case::new(random, Cell::Lstm, (10, 32, None), 2, 2),
        Case::new(random, Cell::Lstm, (7, 33, Some(3)), 3, 1),
        Case::new(random, Cell::Lstm, (7, 20, Some(5)), 2, 2),
        Case::new(random, Cell::Gru, (1, 17, None), 2, 2),
        Case::new(random, Cell::Gru, (4, 48, None), 3, 1),
        Case::new(random, Cell::Tanh, (4, 15, None), 2, 2),
        Case::new(random, Cell::Relu, (4, 64, None), 1, 1),
        Case::new(random, slstm, (32, 32, None), 2, 1),
        Case::new(random, slstm, (72, 72, None), 1, 1),
    ]
}

#[test]
fn every_cell_follows_its_definition() {
    let mut random = Random::new("rnn");
    for case in cases(&mut random) {
        for isa in Isa::available() {
            let rnn = case.packed(isa, Precision::F32);
            let rows = case.layers.len() * rnn.directions();
            for (batch, steps, keep) in [(1, 1, 1), (1, 9, 1), (3, 7, 7), (17, 5, 2)] {
                let x = random.floats(batch * steps * case.inputs);
                let width = |i| if i == 0 { case.width() } else { case.hidden };
                let mut initial: Vec<Vec<f32>> = (0..case.cell.states())
                    .map(|i| random.floats(batch * rows * width(i)))
                    .collect();
                if let Some(n) = initial.get_mut(2) {
                    n.iter_mut().for_each(|n| *n = n.abs() + 0.1);
                }
                for start in [None, Some(&initial[..])] {
                    let found = run(&rnn, 2, &x, (batch, steps, keep), start, true);
                    let out = rnn.directions() * case.width();
                    for b in 0..batch {
                        let of = |i: usize, s: &Vec<f32>| -> Vec<Vec<f64>> {
                            let w = width(i);
                            let row = |r: usize| {
                                let at = (b * rows + r) * w;
                                let s = s[at..at + w].iter();
                                s.map(|&s| if start.is_some() { f64::from(s) } else { 0.0 })
                                    .collect()
                            };
                            (0..rows).map(row).collect()
                        };
                        let mut states: Vec<_> =
                            initial.iter().enumerate().map(|(i, s)| of(i, s)).collect();
                        let n = steps * case.inputs;
                        let y = case.reference(&x[b * n..(b + 1) * n], steps, &mut states);
                        let y = &y[(steps - keep) * out..];
                        let mine = &found.y[b * keep * out..(b + 1) * keep * out];
                        for (f, e) in mine.iter().zip(y) {
                            let error = (f64::from(*f) - e).abs();
                            assert!(error <= 2e-5, "{:?} {f} {e} {}", case.cell, isa.name());
                        }
                        for (i, state) in states.iter().enumerate() {
                            let w = width(i) * rows;
                            let mine = &found.finals[i][b * w..(b + 1) * w];
                            for (f, e) in mine.iter().zip(state.concat()) {
                                let error = (f64::from(*f) - e).abs();
                                assert!(error <= 5e-5, "{:?} state {i}: {f} {e}", case.cell);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_batch_workers_or_what_is_kept() {
    let mut random = Random::new("rnn bits");
    for case in cases(&mut random) {
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8] {
                let rnn = case.packed(isa, precision);
                let (batch, steps) = (53, 6);
                let x = random.floats(batch * steps * case.inputs);
                let all = run(&rnn, 1, &x, (batch, steps, steps), None, false).y;
                for workers in [2, 3] {
                    let other = run(&rnn, workers, &x, (batch, steps, steps), None, true).y;
                    assert!(all == other, "{:?} {workers} workers", case.cell);
                }
                let out = rnn.directions() * case.width();
                for b in [0, 1, 26, 52] {
                    let n = steps * case.inputs;
                    let x = &x[b * n..(b + 1) * n];
                    for (workers, keep) in [(1, steps), (2, 1), (1, 1), (2, 2)] {
                        let one = run(&rnn, workers, x, (1, steps, keep), None, false).y;
                        let end = (b + 1) * steps * out;
                        assert!(
                            one == all[end - keep * out..end],
                            "{:?} row {b} {} {workers} {keep}",
                            case.cell,
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_window_equals_its_steps() {
    let mut random = Random::new("rnn steps");
    let case = Case::new(&mut random, Cell::Lstm, (10, 24, None), 2, 1);
    for isa in Isa::available() {
        let rnn = case.packed(isa, Precision::F32);
        let steps = 11;
        let x = random.floats(steps * case.inputs);
        let window = run(&rnn, 2, &x, (1, steps, 1), None, true);
        let mut states: Vec<Vec<f32>> = vec![vec![0.0; 2 * 24]; 2];
        let mut last = Vec::new();
        for t in 0..steps {
            let x = &x[t * case.inputs..(t + 1) * case.inputs];
            let tick = run(&rnn, 1, x, (1, 1, 1), Some(&states), true);
            states = tick.finals;
            last = tick.y;
        }
        assert_eq!((window.y, window.finals), (last, states), "{}", isa.name());
    }
}

/// Many ways for several workers to share a run of so many steps: by rows, by units, and by
/// pipelines of layers with costs that differ, so that layers change workers.
fn ways(layers: usize, directions: usize, workers: usize, steps: usize) -> Vec<Way> {
    let mut ways = vec![Way::Rows, Way::Units];
    if directions > 1 {
        return ways;
    }
    for dearest in 0..=layers {
        for (chunk, hand_off) in [(1, 0.0), (1, 0.7), (3, 0.0), (3, 4.0), (8, 0.1)] {
            let cost = |layer| if layer == dearest { 3.0 } else { 1.0 };
            let costs: Vec<f64> = (0..layers).map(cost).collect();
            let chunks = steps.div_ceil(chunk);
            ways.push(Way::Layers(Pipeline::new(&costs, chunks, chunk, workers, hand_off)));
        }
    }
    ways
}

#[test]
fn every_way_to_share_gives_the_bits_of_one_worker() {
    let mut random = Random::new("rnn ways");
    let mut cases = cases(&mut random);
    cases.push(Case::new(&mut random, Cell::Lstm, (6, 100, None), 2, 1));
    cases.push(Case::new(&mut random, Cell::Lstm, (3, 40, None), 4, 1));
    cases.push(Case::new(&mut random, Cell::Tanh, (3, 130, None), 2, 1));
    cases.push(Case::new(&mut random, Cell::Slstm { heads: 2 }, (40, 40, None), 3, 1));
    let mut turn = 0;
    for (i, case) in cases.iter().enumerate() {
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8] {
                let rnn = case.packed(isa, precision);
                let (batch, steps) = ([1, 2, 4, 5][i % 4], 11);
                let x = random.floats(batch * steps * case.inputs);
                let rows = case.layers.len() * rnn.directions();
                let initial: Vec<Vec<f32>> = (0..case.cell.states())
                    .map(|i| if i == 0 { case.width() } else { case.hidden })
                    .map(|width| random.floats(batch * rows * width))
                    .map(|state| state.into_iter().map(|s| s.abs() + 0.1).collect())
                    .collect();
                for (keep, start) in [(1, None), (steps, Some(&initial[..]))] {
                    let alone = rnn.schedule(batch, steps, keep, 1);
                    let finals = start.is_some();
                    let alone = run_as(&rnn, &alone, &x, batch, start, finals);
                    assert!(alone.y.iter().all(|y| y.is_finite()), "{:?}", case.cell);
                    for workers in [2, 3] {
                        // Every tier and precision meets a third of the ways, another one each
                        // time.
                        turn += 1;
                        let ways = ways(case.layers.len(), rnn.directions(), workers, steps);
                        for way in ways.into_iter().skip(turn % 3).step_by(3) {
                            let what = format!("{:?} {} {way:?}", case.cell, isa.name());
                            let shape = (batch, steps, keep);
                            let schedule = rnn.schedule_as(way, shape, workers);
                            let found = run_as(&rnn, &schedule, &x, batch, start, finals);
                            assert!(found.y == alone.y, "{what}");
                            assert!(!finals || found.finals == alone.finals, "{what}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn hand_overs_survive_scheduling_noise() {
    let mut random = Random::new("rnn noise");
    let projected = Case::new(&mut random, Cell::Lstm, (5, 48, Some(20)), 3, 1);
    let plain = Case::new(&mut random, Cell::Gru, (5, 70, None), 3, 1);
    let heads = Case::new(&mut random, Cell::Slstm { heads: 4 }, (64, 64, None), 2, 1);
    let Some(isa) = Isa::available().pop() else { return };
    for case in [projected, plain, heads] {
        let rnn = case.packed(isa, Precision::F32);
        let (batch, steps) = (2, 23);
        let x = random.floats(batch * steps * case.inputs);
        let alone = run(&rnn, 1, &x, (batch, steps, steps), None, true);
        for seed in 1..3 {
            noise::set(seed);
            for workers in [2, 3, 4] {
                for way in ways(case.layers.len(), 1, workers, steps) {
                    let what = format!("{:?} {way:?} seed {seed}", case.cell);
                    let schedule = rnn.schedule_as(way, (batch, steps, steps), workers);
                    let found = run_as(&rnn, &schedule, &x, batch, None, true);
                    assert!(found.y == alone.y && found.finals == alone.finals, "{what}");
                }
            }
        }
        noise::set(0);
    }
}

#[test]
fn a_worker_ahead_does_not_write_where_another_reads() {
    // Units are split, chunks are followed by a shorter one, and a worker that has finished a chunk
    // lays down the input sums of the next while another still reads those of this one.
    let mut random = Random::new("rnn chunks");
    let cases = [
        Case::new(&mut random, Cell::Gru, (5, 70, None), 2, 1),
        Case::new(&mut random, Cell::Lstm, (5, 100, None), 1, 1),
    ];
    let Some(isa) = Isa::available().pop() else { return };
    for case in cases {
        for precision in [Precision::F32, Precision::Int8] {
            let rnn = case.packed(isa, precision);
            let (batch, steps) = (2, 300);
            let x = random.floats(batch * steps * case.inputs);
            let alone = run(&rnn, 1, &x, (batch, steps, steps), None, true);
            for workers in [2, 3] {
                let schedule = rnn.schedule_as(Way::Units, (batch, steps, steps), workers);
                let (whole, last) = (schedule.chunk, steps % schedule.chunk);
                assert!(whole < steps / 2 && 0 < last && last < whole, "{whole} {last}");
                for seed in 1..4 {
                    noise::set(seed);
                    let found = run_as(&rnn, &schedule, &x, batch, None, true);
                    noise::set(0);
                    let same = found.y == alone.y && found.finals == alone.finals;
                    assert!(same, "{:?} {precision:?} {workers} workers, seed {seed}", case.cell);
                }
            }
        }
    }
}

#[test]
fn the_cost_model_orders_what_was_measured() {
    let mut random = Random::new("rnn cost");
    // Narrower vectors take longer for the same weights, and hand over less often.
    let Ok(isa) = Isa::named(Some("avx512")) else {
        println!("skipped: what was measured was measured with AVX-512");
        return;
    };
    let caches = Caches { l1: 32 << 10, l2: 1 << 20, l3: 32 << 20 };
    let mut pipeline = |inputs, hidden, layers, directions, (rows, steps, workers)| {
        let shape = (inputs, hidden, None);
        let case = Case::new(&mut random, Cell::Lstm, shape, layers, directions);
        let rnn = case.packed(isa, Precision::F32);
        Model { rnn: &rnn, caches, rows, steps }.pipeline(workers)
    };
    // Two layers that each fit a core's L2, three of which one changes workers.
    for (layers, shape) in [(2, (100, 100)), (3, (250, 200)), (4, (16, 64))] {
        let shared = pipeline(shape.0, shape.1, layers, 1, (1, 100, 2)).unwrap();
        let [first, second] = [&shared.tasks[0], &shared.tasks[1]].map(Vec::len);
        // The first layer's tasks may take longer.
        let apart = first.abs_diff(second);
        assert!(apart <= first.max(second) / 4, "{layers} layers: {first} and {second}");
        assert!(shared.chunk < 50, "{shared:?}");
    }
    // Layers that fit no core's caches; a single layer, one step, two directions and one worker
    // have nothing to pipeline.
    assert_eq!(pipeline(50, 1000, 2, 1, (1, 100, 2)), None);
    assert_eq!(pipeline(100, 100, 1, 1, (1, 50, 2)), None);
    assert_eq!(pipeline(100, 100, 2, 1, (1, 1, 2)), None);
    assert_eq!(pipeline(10, 32, 2, 2, (1, 50, 2)), None);
    assert_eq!(pipeline(100, 100, 2, 1, (1, 50, 1)), None);
}
