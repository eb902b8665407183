//! How inputs get to a device and outputs back: nothing is copied where memory is shared, no more
//! than is new where it is not, and recordings made ahead never show.

use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Program, Request, Resident, Run,
};
use neural_forecast_runtime::ops::{Activation, Linear, Unary};
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::testing::{Case, CaseBuilder, device_or_skip};
use neural_forecast_wgpu::{WgpuDevice, WgpuOptions};

const WIDTH: usize = 64;
const BATCH: usize = 3;

/// Bytes of a row in and of a row out.
const ROW: u64 = 4 * WIDTH as u64;

/// Bytes of the run header of a program without states.
const HEADER: u64 = 16;

fn device(without_mappable: bool) -> Option<WgpuDevice> {
    let options = WgpuOptions { without_mappable, ..WgpuOptions::default() };
    device_or_skip("wgpu", WgpuDevice::open(0, options))
}

/// Whether host and device share memory that can be mapped, which software adapters do.
fn shares(device: &WgpuDevice) -> bool {
    let capabilities = device.capabilities();
    let mappable = ("mappable_storage".to_owned(), "yes".to_owned());
    capabilities.unified_memory && capabilities.features.contains(&mappable)
}

/// A product of rows of 64.
fn product() -> Case {
    let mut c = CaseBuilder::new("linear", Bucket { batch: BATCH, length: 1 });
    let x = c.input(&[Dim::BATCH, WIDTH.into()]);
    let (weight, bias) = (c.weight(&[WIDTH, WIDTH]), c.bias(WIDTH));
    let y = c.step(Linear::new(x, weight).bias(bias));
    c.finish(&[y])
}

fn program(device: &WgpuDevice) -> (Box<dyn Resident>, Box<dyn Program>) {
    let case = product();
    let options = LoadOptions::default();
    let mut resident = device.load(&case.plan, &case.weights, &options).expect("it loads");
    let request = Request { entry: case.entry, bucket: case.bucket, class: KernelClass::Latency };
    let program = resident.compile(request).expect("it compiles");
    (resident, program)
}

fn row(seed: usize) -> [f32; WIDTH] {
    std::array::from_fn(|i| ((i * 7 + seed * 31) % 17) as f32 / 8.0 - 1.0)
}

fn run(program: &mut dyn Program, rows: usize) -> Vec<f32> {
    program.submit(&Run { rows, ..Run::default() }).expect("it is submitted");
    program.wait().expect("it runs");
    let mut y = vec![f32::NAN; WIDTH * rows];
    program.read(0, &mut y).expect("it is read");
    y
}

fn write(program: &mut dyn Program, rows: &[[f32; WIDTH]]) {
    program.write(0, Data::F32(rows.as_flattened()));
}

#[test]
fn forecasts_copy_nothing_where_memory_is_shared() {
    let Some(device) = device(false) else { return };
    if !shares(&device) {
        println!("skipped: {} has memory of its own", device.capabilities().name);
        return;
    }
    let (_resident, mut program) = program(&device);
    for seed in 0..3 {
        write(program.as_mut(), &[row(seed); BATCH]);
        let y = run(program.as_mut(), BATCH);
        assert!(y.iter().all(|y| y.is_finite()));
    }
    assert_eq!(device.staged_bytes(), 0, "nothing was copied, not even weights");
}

#[test]
fn no_more_is_copied_than_is_new() {
    let Some(device) = device(true) else { return };
    let (_resident, mut program) = program(&device);
    assert!(device.staged_bytes() > ROW * WIDTH as u64, "the weights were copied");
    let copied = |program: &mut dyn Program, rows: usize| {
        let before = device.staged_bytes();
        run(program, rows);
        device.staged_bytes() - before
    };
    write(program.as_mut(), &[row(0)]);
    assert_eq!(copied(program.as_mut(), 1), HEADER + ROW + ROW);
    write(program.as_mut(), &[row(1)]);
    assert_eq!(copied(program.as_mut(), 1), ROW + ROW, "the header is the last run's");
    assert_eq!(copied(program.as_mut(), 1), ROW, "nothing was written");
    write(program.as_mut(), &[row(2), row(3)]);
    assert_eq!(copied(program.as_mut(), 2), HEADER + 2 * ROW + 2 * ROW);
}

#[test]
fn runs_may_differ_from_what_was_recorded_ahead() {
    for without_mappable in [false, true] {
        let Some(device) = device(without_mappable) else { return };
        let (_resident, mut alone) = program(&device);
        let mut single = |seed: usize| {
            write(alone.as_mut(), &[row(seed)]);
            run(alone.as_mut(), 1)
        };
        let rows: Vec<Vec<f32>> = (0..8).map(&mut single).collect();
        let (_resident, mut program) = program(&device);
        let mut check = |written: &[usize], expected: &[usize]| {
            let written: Vec<_> = written.iter().map(|&seed| row(seed)).collect();
            if !written.is_empty() {
                write(program.as_mut(), &written);
            }
            let expected: Vec<f32> = expected.iter().flat_map(|&i| rows[i].clone()).collect();
            assert_eq!(run(program.as_mut(), rows_of(&expected)), expected, "{without_mappable}");
        };
        check(&[0, 1, 2], &[0, 1, 2]);
        check(&[3, 4, 5], &[3, 4, 5]);
        // Fewer rows, then as before: what was written stays.
        check(&[6], &[6]);
        check(&[], &[6, 4, 5]);
        check(&[], &[6, 4]);
        // More is written than the next run takes.
        check(&[7, 0, 1], &[7]);
        check(&[], &[7, 0, 1]);
        check(&[2, 3], &[2, 3]);
    }
}

fn rows_of(outputs: &[f32]) -> usize {
    outputs.len() / WIDTH
}

#[test]
fn inputs_of_many_pieces_arrive_whole() {
    // Five pieces and a little; several writers, and rows that end within a piece.
    const WIDE: usize = 460_003;
    let mut c = CaseBuilder::new("unary", Bucket { batch: 3, length: 1 });
    let x = c.input(&[Dim::BATCH, WIDE.into()]);
    let y = c.step(Unary::activation(x, Activation::Relu));
    let case = c.finish(&[y]);
    for without_mappable in [false, true] {
        let Some(device) = device(without_mappable) else { return };
        let loaded = device.load(&case.plan, &case.weights, &LoadOptions::default());
        let mut resident = loaded.expect("it loads");
        let class = KernelClass::Throughput;
        let request = Request { entry: case.entry, bucket: case.bucket, class };
        let mut program = resident.compile(request).expect("it compiles");
        for (seed, rows) in [(0, 3), (1, 2), (2, 3)] {
            let number = |i: usize| ((i * 31 + seed * 7) % 8191) as f32 - 4000.0;
            let x: Vec<f32> = (0..rows * WIDE).map(number).collect();
            program.write(0, Data::F32(&x));
            program.submit(&Run { rows, ..Run::default() }).expect("it is submitted");
            program.wait().expect("it runs");
            let mut y = vec![f32::NAN; x.len()];
            program.read(0, &mut y).expect("it is read");
            let wrong = x.iter().zip(&y).position(|(x, y)| *y != x.max(0.0));
            assert_eq!(wrong, None, "rows {rows}, copied: {without_mappable}");
        }
    }
}

#[test]
fn the_clock_is_read_once_it_is_asked_for() {
    let Some(device) = device(false) else { return };
    let has_clock = ("timestamps".to_owned(), "yes".to_owned());
    let has_clock = device.capabilities().features.contains(&has_clock);
    let (_resident, mut program) = program(&device);
    write(program.as_mut(), &[row(0)]);
    let expected = run(program.as_mut(), 1);
    assert_eq!(program.device_us(), None, "nobody asked");
    program.time_runs().expect("it has a clock or it has none");
    assert_eq!(program.device_us(), None, "nothing ran since");
    for _ in 0..3 {
        assert_eq!(run(program.as_mut(), 1), expected);
        let time = program.device_us();
        assert_eq!(time.is_some(), has_clock);
        assert!(time.is_none_or(|us| (0.0..1e7).contains(&us)), "{time:?}");
    }
}
