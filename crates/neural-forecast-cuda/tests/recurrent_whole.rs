//! Recurrent forecasters as one launch, from host memory to host memory: a stack and a head in f16
//! with the kernels of the latency class, compared with the reference; the bits of a row alone and
//! of a row among others; that the kernel meant for them served them.
//!
//! Without a GPU nothing is tested, which is printed; `NF_REQUIRE=cuda` makes that a failure.
//! `times_of_the_workloads`, ignored unless asked for, prints how long they take.

mod lingering;

use std::time::Instant;

use lingering::{served, with_pauses};
use neural_forecast_cuda::{CudaDevice, CudaOptions};
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Precision, Program, Request, Run,
};
use neural_forecast_runtime::ops::{Cell, Keep, Linear, Reshape, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::reference::ReferenceDevice;
use neural_forecast_runtime::testing::{Case, CaseBuilder, compare, device_or_skip};

/// How the names of kernels of whole recurrences begin.
const KERNELS: &str = "rnn_whole";

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    time: usize,
    features: usize,
    hidden: usize,
    layers: usize,
    directions: usize,
    outputs: usize,
}

const LSTM_A: Shape =
    Shape { rows: 1, time: 50, features: 100, hidden: 100, layers: 2, directions: 1, outputs: 1 };
const LSTM_B: Shape = Shape { time: 100, features: 250, hidden: 200, layers: 3, ..LSTM_A };
const GUIDE_128: Shape =
    Shape { rows: 1, time: 100, features: 10, hidden: 128, layers: 2, directions: 2, outputs: 10 };
const GUIDE_256: Shape = Shape { hidden: 256, ..GUIDE_128 };

fn forecaster(cell: Cell, shape: Shape) -> Case {
    let Shape { rows, time, features, hidden, layers, directions, outputs } = shape;
    let name = format!("{cell:?} {rows}x{time}x{features} {layers}x{directions}x{hidden}");
    let mut c = CaseBuilder::new(name, Bucket { batch: rows, length: time });
    let x = c.input(&[Dim::BATCH, Dim::LENGTH, features.into()]);
    let mut layer = |inputs: usize| RnnWeights {
        w_ih: c.weight(&[cell.gates() * hidden, inputs]),
        w_hh: c.weight(&[cell.gates() * hidden, hidden]),
        b_ih: Some(c.bias(cell.gates() * hidden)),
        b_hh: Some(c.bias(cell.gates() * hidden)),
        w_hr: None,
    };
    let inputs = |l: usize| if l == 0 { features } else { directions * hidden };
    let layers = (0..layers).map(|l| (0..directions).map(|_| layer(inputs(l))).collect()).collect();
    let stack = RnnStack { keep: Keep::Last(1), ..RnnStack::new(x, cell, hidden, layers) };
    let y = c.step(stack);
    let (weight, bias) = (c.weight(&[outputs, directions * hidden]), c.bias(outputs));
    let y = c.step(Linear::new(y, weight).bias(Some(bias)));
    let y = c.step(Reshape { x: y, shape: vec![Dim::BATCH, outputs.into()] });
    c.finish(&[y])
}

fn program(
    device: &dyn Device,
    case: &Case,
    precision: Precision,
    more: usize,
) -> Box<dyn Program> {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let mut resident = device.load(&case.plan, &case.weights, &options).expect("the plan loads");
    let bucket = Bucket { batch: case.bucket.batch + more, ..case.bucket };
    let request = Request { entry: case.entry, bucket, class: KernelClass::Latency };
    resident.compile(request).expect("the program compiles")
}

fn run(program: &mut dyn Program, case: &Case, rows: std::ops::Range<usize>) -> Vec<f32> {
    let count = rows.len();
    case.write(program, rows);
    program.submit(&Run { rows: count, slots: &[], cancel: None }).expect("submitted");
    program.wait().expect("the run succeeds");
    let mut output = vec![f32::NAN; program.info().output_elements[0].1 * count];
    program.read(0, &mut output).expect("read");
    output
}

fn check(device: &CudaDevice, case: &Case) -> Result<(), String> {
    let rows = case.bucket.batch;
    let expected =
        run(program(&ReferenceDevice::new(), case, Precision::F32, 0).as_mut(), case, 0..rows);
    let mut exact = program(device, case, Precision::F16, 0);
    let found = run(exact.as_mut(), case, 0..rows);
    let worst = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| f64::from(a - b).abs() / f64::from(b.abs()).max(1.0));
    println!("{}: error {:.1e}", case.name, worst.fold(0.0, f64::max));
    compare(&found, &expected, case.widened(2e-3).tolerance)?;
    if run(exact.as_mut(), case, 0..rows) != found {
        return Err("bits differ between two equal runs".into());
    }
    let width = found.len() / rows;
    let mut larger = program(device, case, Precision::F16, 3);
    for row in [0, rows / 2, rows - 1] {
        for program in [&mut exact, &mut larger] {
            if run(program.as_mut(), case, row..row + 1) != found[row * width..][..width] {
                return Err(format!("bits of row {row} depend on the other rows"));
            }
        }
    }
    Ok(())
}

#[test]
fn forecasts_of_every_width() {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    let mut shapes = vec![LSTM_A, GUIDE_128, Shape { rows: 35, time: 9, ..GUIDE_128 }];
    for hidden in [1, 7, 32, 33, 64, 65, 100, 104, 105, 128, 129, 256] {
        for directions in [1, 2] {
            let shape = Shape { rows: 3, time: 6, features: 7, hidden, directions, ..LSTM_A };
            shapes.push(shape);
            shapes.push(Shape { rows: 34, layers: 3, ..shape });
        }
    }
    for time in [1, 2, 3, 4, 5, 17] {
        shapes.push(Shape { rows: 2, time, ..LSTM_A });
        shapes.push(Shape { rows: 2, time, ..GUIDE_128 });
    }
    let mut cases: Vec<Case> = shapes.into_iter().map(|s| forecaster(Cell::Lstm, s)).collect();
    cases.push(forecaster(Cell::Gru, Shape { rows: 9, time: 7, ..LSTM_A }));
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| check(&device, case).err().map(|e| format!("{}: {e}", case.name)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Forecasts with pauses around the time that kernels linger.
fn forecasts_with_pauses(device: &CudaDevice, linger_us: u32, shape: Shape, forecasts: usize) {
    let options = CudaOptions { linger_us, ..CudaOptions::default() };
    let lingering = CudaDevice::open(0, options).expect("it opened before");
    let case = forecaster(Cell::Lstm, shape);
    let mut plain = program(device, &case, Precision::F16, 0);
    let mut kept = program(&lingering, &case, Precision::F16, 0);
    let stays = (&lingering, linger_us, KERNELS);
    let (_, without) = with_pauses(&case.name, plain.as_mut(), kept.as_mut(), stays, forecasts);
    // More blocks than the GPU holds at once cannot stay.
    let small = shape.hidden * shape.layers * shape.directions <= 512;
    assert!(!small || without > 0, "{}: never lingered", case.name);
}

#[test]
fn lingering_changes_no_bits() {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    let narrow = Shape { rows: 3, time: 7, features: 5, hidden: 33, ..LSTM_A };
    let short = Shape { rows: 8, time: 2, features: 3, hidden: 100, layers: 1, ..LSTM_A };
    let odd = Shape { rows: 2, time: 5, layers: 3, ..LSTM_A };
    for shape in [LSTM_A, LSTM_B, GUIDE_128, GUIDE_256, narrow, short, odd] {
        forecasts_with_pauses(&device, 20, shape, 1000);
    }
}

#[test]
#[ignore = "takes a while"]
fn a_hundred_thousand_forecasts_with_pauses() {
    let opened = CudaDevice::open(0, CudaOptions::default());
    let Some(device) = device_or_skip("cuda", opened) else { return };
    forecasts_with_pauses(&device, 10, LSTM_A, 100_000);
}

/// Programs that linger take turns, and none of them keeps another, or memory calls, waiting.
#[test]
fn kernels_that_linger_make_room() {
    let options = CudaOptions { linger_us: 5000, ..CudaOptions::default() };
    let Some(device) = device_or_skip("cuda", CudaDevice::open(0, options)) else { return };
    let cases = [LSTM_A, GUIDE_128].map(|shape| forecaster(Cell::Lstm, shape));
    let programs = || {
        let new = |case: &Case| program(&device, case, Precision::F16, 0);
        cases.iter().map(new).collect::<Vec<Box<dyn Program>>>()
    };
    let mut kept = programs();
    let expected: Vec<Vec<f32>> =
        kept.iter_mut().zip(&cases).map(|(p, case)| run(p.as_mut(), case, 0..1)).collect();
    let begun = Instant::now();
    for i in 0..50 {
        // New programs allocate; old ones are dropped while they linger.
        let mut fresh = programs();
        for _ in 0..3 {
            for (j, case) in cases.iter().enumerate() {
                assert_eq!(run(kept[j].as_mut(), case, 0..1), expected[j], "{i}: {}", case.name);
                assert_eq!(run(fresh[j].as_mut(), case, 0..1), expected[j], "{i}: {}", case.name);
            }
        }
        if i % 2 == 0 {
            kept = fresh;
        }
    }
    println!("{:.1} ms a round", begun.elapsed().as_secs_f64() * 20.0);
}

#[test]
#[ignore = "prints times, for a GPU that does nothing else"]
fn times_of_the_workloads() {
    for linger_us in [0, 200] {
        let options = CudaOptions { linger_us, ..CudaOptions::default() };
        let Some(device) = device_or_skip("cuda", CudaDevice::open(0, options)) else { return };
        println!("lingering for {linger_us} us");
        times(&device);
    }
}

fn times(device: &CudaDevice) {
    let workloads = [
        ("lstm_a", LSTM_A),
        ("lstm_a, twice the steps", Shape { time: 100, ..LSTM_A }),
        ("lstm_b", LSTM_B),
        ("lstm_guide_128", GUIDE_128),
        ("lstm_guide_128, 32 rows", Shape { rows: 32, ..GUIDE_128 }),
        ("lstm_guide_256", GUIDE_256),
        ("lstm_guide_256, 32 rows", Shape { rows: 32, ..GUIDE_256 }),
    ];
    for (name, shape) in workloads {
        let case = forecaster(Cell::Lstm, shape);
        let mut program = program(device, &case, Precision::F16, 0);
        let x: Vec<f32> = case.inputs[0].1.data.iter().map(|&x| x as f32).collect();
        let mut y = vec![0.0; program.info().output_elements[0].0];
        let mut once = |program: &mut dyn Program| {
            let begun = Instant::now();
            program.write(0, Data::F32(&x));
            let run = Run { rows: shape.rows, slots: &[], cancel: None };
            program.submit(&run).expect("submitted");
            program.wait().expect("the run succeeds");
            program.read(0, &mut y).expect("read");
            begun.elapsed().as_secs_f64() * 1e6
        };
        for _ in 0..300 {
            once(program.as_mut());
        }
        let before = served(device, KERNELS);
        let mut times: Vec<f64> = (0..4000).map(|_| once(program.as_mut())).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[(share * (times.len() - 1) as f64) as usize];
        let [p50, p99, p999, most] = [0.5, 0.99, 0.999, 1.0].map(at);
        let launches = served(device, KERNELS).0 - before.0;
        println!(
            "{name}: p50 {p50:.1} us, p99 {p99:.1}, p99.9 {p999:.1}, max {most:.1}, {launches} \
             launches"
        );
    }
}
