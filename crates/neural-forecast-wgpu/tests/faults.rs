//! What goes wrong on a device: clear errors with their kind, no panic, and other work goes on.

use neural_forecast_runtime::DeviceErrorKind;
use neural_forecast_runtime::device::{
    Cancel, Data, Device, KernelClass, LoadOptions, Program, Request, Resident, Run,
};
use neural_forecast_runtime::ops::Linear;
use neural_forecast_runtime::plan::{Bucket, Dim};
use neural_forecast_runtime::testing::{Case, CaseBuilder, cases, device_or_skip};
use neural_forecast_wgpu::{WgpuDevice, WgpuOptions, adapters};

const WIDTH: usize = 64;

fn device(options: WgpuOptions) -> Option<WgpuDevice> {
    device_or_skip("wgpu", WgpuDevice::open(0, options))
}

/// A product of rows of 64.
fn product() -> Case {
    let mut c = CaseBuilder::new("linear", Bucket { batch: 2, length: 1 });
    let x = c.input(&[Dim::BATCH, WIDTH.into()]);
    let (weight, bias) = (c.weight(&[WIDTH, WIDTH]), c.bias(WIDTH));
    let y = c.step(Linear::new(x, weight).bias(bias));
    c.finish(&[y])
}

fn load(device: &WgpuDevice, case: &Case) -> Box<dyn Resident> {
    let options = LoadOptions { state_slots: case.bucket.batch, ..LoadOptions::default() };
    device.load(&case.plan, &case.weights, &options).expect("it loads")
}

fn request(case: &Case, batch: usize) -> Request {
    let bucket = Bucket { batch, ..case.bucket };
    Request { entry: case.entry, bucket, class: KernelClass::Latency }
}

fn run(program: &mut dyn Program) -> Result<Vec<f32>, DeviceErrorKind> {
    program.write(0, Data::F32(&[0.5; WIDTH]));
    program.submit(&Run { rows: 1, ..Run::default() }).map_err(|error| error.kind())?;
    program.wait().map_err(|error| error.kind())?;
    let mut y = vec![f32::NAN; WIDTH];
    program.read(0, &mut y).map_err(|error| error.kind())?;
    Ok(y)
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let error = WgpuDevice::open(4096, WgpuOptions::default()).expect_err("nobody has so many");
    assert_eq!(error.kind(), DeviceErrorKind::Unsupported, "{error}");
    let options = WgpuOptions { backend: Some("glide".into()), ..WgpuOptions::default() };
    let error = WgpuDevice::open(0, options).expect_err("there is no such backend");
    assert!(error.to_string().contains("`glide`"), "{error}");
    // What this build of wgpu has no code for is like what the machine lacks.
    #[cfg(target_os = "linux")]
    assert_eq!(
        adapters(Some("metal")).expect_err("not on this system").kind(),
        DeviceErrorKind::Unsupported
    );
}

#[test]
fn adapters_are_listed_with_what_they_are() {
    let Some(adapters) = device_or_skip("wgpu", adapters(None)) else { return };
    for (i, adapter) in adapters.iter().enumerate() {
        assert_eq!(adapter.ordinal, i);
        assert!(!adapter.name.is_empty() && !adapter.backend.is_empty(), "{adapter:?}");
    }
}

#[test]
fn a_lost_device_says_so_and_others_go_on() {
    let Some(lost) = device(WgpuOptions::default()) else { return };
    let Some(other) = device(WgpuOptions::default()) else { return };
    let case = product();
    let (mut resident, mut healthy) = (load(&lost, &case), load(&other, &case));
    let compile = |resident: &mut Box<dyn Resident>| resident.compile(request(&case, 2));
    let mut program = compile(&mut resident).expect("it compiles");
    let mut unharmed = compile(&mut healthy).expect("it compiles");
    let expected = run(unharmed.as_mut()).expect("it runs");
    assert_eq!(run(program.as_mut()).expect("it runs"), expected);

    program.write(0, Data::F32(&[0.5; WIDTH]));
    program.submit(&Run { rows: 1, ..Run::default() }).expect("it is submitted");
    lost.destroy();
    let error = program.wait().expect_err("the device is gone");
    assert_eq!(error.kind(), DeviceErrorKind::Lost, "{error}");
    assert_eq!(run(program.as_mut()), Err(DeviceErrorKind::Lost));
    let error = compile(&mut resident).expect_err("nothing compiles");
    assert_eq!(error.kind(), DeviceErrorKind::Lost, "{error}");
    let again = lost.load(&case.plan, &case.weights, &LoadOptions::default());
    assert_eq!(again.expect_err("nothing loads").kind(), DeviceErrorKind::Lost);

    assert_eq!(run(unharmed.as_mut()).expect("it runs on"), expected);
}

#[test]
fn memory_limits_are_kept_with_the_number() {
    let limited = WgpuOptions { memory_bytes_max: Some(20_000), ..WgpuOptions::default() };
    let Some(device) = device(limited) else { return };
    let case = product();
    let mut resident = load(&device, &case);
    let error = resident.compile(request(&case, 64)).expect_err("it is too much");
    assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory, "{error}");
    assert!(error.to_string().contains("20000"), "{error}");
    // What was refused has given its bytes back.
    let mut program = resident.compile(request(&case, 1)).expect("a small one fits");
    assert_eq!(run(program.as_mut()).map(|y| y.len()), Ok(WIDTH));
}

#[test]
fn a_program_beyond_the_binding_limit_is_refused_with_the_number() {
    let least = WgpuOptions { minimum_limits: true, ..WgpuOptions::default() };
    let Some(device) = device(least) else { return };
    let case = product();
    let mut resident = load(&device, &case);
    // Two values of 64 MiB and a little.
    let batch = (64 << 20) / (4 * WIDTH) + 1;
    let error = resident.compile(request(&case, batch)).expect_err("it is too large");
    assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory, "{error}");
    assert!(error.to_string().contains("134217728"), "{error}");
}

#[test]
fn a_cancelled_run_leaves_states_and_kernels_alone() {
    let Some(device) = device(WgpuOptions::default()) else { return };
    let name = "rnn_stack Lstm from slots 4";
    let case = cases().into_iter().find(|case| case.name == name).expect("it is a case");
    let mut resident = load(&device, &case);
    let mut program = resident.compile(request(&case, 2)).expect("it compiles");
    let before = resident.export_state(1).expect("states come out");
    let cancel = Cancel::new();
    cancel.cancel();
    let stopped = Run { rows: 1, slots: &[1], cancel: Some(cancel) };
    let (_, row) = program.info().input_elements[0];
    program.write(0, Data::F32(&vec![0.25; row]));
    program.submit(&stopped).expect("it is submitted");
    let error = program.wait().expect_err("it was cancelled");
    assert_eq!(error.kind(), DeviceErrorKind::Cancelled, "{error}");
    assert_eq!(resident.export_state(1).expect("states come out"), before);
    assert!(device.kernel_counts().is_empty(), "{:?}", device.kernel_counts());

    // The same run goes through afterwards, in its slot alone.
    program.submit(&Run { cancel: None, ..stopped }).expect("it is submitted");
    program.wait().expect("it runs");
    assert_ne!(resident.export_state(1).expect("states come out"), before);
    assert_eq!(resident.export_state(0).expect("states come out"), before, "another slot");
    resident.reset_state(1).expect("it is set to zero");
    assert_eq!(resident.export_state(1).expect("states come out"), before);
    assert!(device.kernel_counts().iter().any(|count| count.kernel == "rnn_row-wgsl-f32"));
}
