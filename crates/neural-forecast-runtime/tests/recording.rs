//! The device contract through the recording device: all cases through every persona, and what
//! happens when things go wrong.

use neural_forecast_runtime::device::{
    Cancel, Data, Device, KernelClass, LoadOptions, Program, Request, Residency, Resident, Run,
};
use neural_forecast_runtime::ops::{Linear, Op};
use neural_forecast_runtime::plan::{Bucket, Context, DType, Dim, EntryKind, PlanBuilder};
use neural_forecast_runtime::recording::{Call, Fault, Persona, RecordingDevice, check_arena};
use neural_forecast_runtime::reference::Tensor;
use neural_forecast_runtime::testing::{Case, cases, conform_all};
use neural_forecast_runtime::{DeviceErrorKind, MemoryWeights, prepare};

fn case(name: &str) -> Case {
    let found = cases().into_iter().find(|case| case.name == name);
    found.unwrap_or_else(|| panic!("no case `{name}`"))
}

/// A recurrence over four state slots per row.
fn stateful() -> Case {
    case("rnn_stack Lstm from slots 4")
}

fn load(device: &RecordingDevice, case: &Case) -> Box<dyn Resident> {
    let options = LoadOptions { state_slots: 8, ..LoadOptions::default() };
    device.load(&case.plan, &case.weights, &options).expect("the plan loads")
}

fn request(case: &Case) -> Request {
    Request { entry: case.entry, bucket: case.bucket, class: KernelClass::Latency }
}

fn compile(resident: &mut dyn Resident, case: &Case) -> Box<dyn Program> {
    resident.compile(request(case)).expect("the entry compiles")
}

fn write(program: &mut dyn Program, case: &Case) {
    for (i, (_, tensor)) in case.inputs.iter().enumerate() {
        program.write(i, Data::F32(&tensor.to_f32()));
    }
}

const SLOTS: [u32; 5] = [7, 0, 3, 2, 5];

fn run<'a>(case: &Case) -> Run<'a> {
    Run { rows: case.bucket.batch, slots: &SLOTS[..case.bucket.batch], cancel: None }
}

#[test]
fn every_case_fits_every_persona() {
    let cases = cases();
    for persona in Persona::ALL {
        for (fuse, lower) in [(true, false), (true, true), (false, true)] {
            let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
            let device = RecordingDevice::new(persona);
            let (ran, failures) = conform_all(&device, &cases, &options);
            assert!(failures.is_empty(), "{persona:?}: {}", failures.join("\n"));
            assert_eq!(ran, cases.len(), "{persona:?}");
        }
    }
}

#[test]
fn a_device_without_stack_kernels_gets_lowered_plans() {
    let case = case("encoder_stack pre norm 0 width 8 All");
    let launched = |persona| {
        let device = RecordingDevice::new(persona);
        let mut resident = load(&device, &case);
        let mut program = compile(resident.as_mut(), &case);
        write(program.as_mut(), &case);
        program.submit(&Run { rows: 1, slots: &[], cancel: None }).expect("it starts");
        while !program.poll() {}
        program.wait().expect("it runs");
        let counts = device.kernel_counts().into_iter();
        counts.map(|count| (count.kernel, count.launches)).collect::<Vec<_>>()
    };
    assert_eq!(launched(Persona::CudaGraph), [("encoder_stack-recording-f64".to_string(), 1)]);
    let lowered = launched(Persona::WebGpuMinimum);
    let kernels: Vec<&str> = lowered.iter().map(|(kernel, _)| kernel.as_str()).collect();
    let expected = ["attention", "linear", "norm"].map(|op| format!("{op}-recording-f64"));
    assert_eq!(kernels, expected);
}

#[test]
fn asynchronous_runs_finish_some_polls_later_and_are_logged() {
    let case = stateful();
    let device = RecordingDevice::new(Persona::CudaGraph);
    let mut resident = load(&device, &case);
    let mut program = compile(resident.as_mut(), &case);
    assert_eq!(program.info().residency, Residency::Exclusive { units: 8 });
    write(program.as_mut(), &case);
    assert!(program.poll(), "nothing is in flight");
    program.submit(&run(&case)).expect("it starts");
    assert_eq!([program.poll(), program.poll(), program.poll()], [false, false, true]);
    program.wait().expect("it runs");
    let elements = program.info().output_elements[0].0;
    let mut output = vec![0.0; elements];
    program.read(0, &mut output).expect("it is read");
    drop(program);
    let log = device.log();
    let submitted = Call::Submit { program: 0, rows: 5, slots: SLOTS.to_vec() };
    assert!(log.contains(&submitted));
    assert!(log.contains(&Call::Wait { program: 0, error: None }));
    assert!(log.contains(&Call::Read { program: 0, output: 0, elements }));
    assert_eq!(log.last(), Some(&Call::Drop { program: 0 }));
}

#[test]
fn fewer_rows_than_the_bucket_give_the_same_rows() {
    let case = case("linear 8x16->16 all");
    let device = RecordingDevice::new(Persona::Cpu);
    let mut resident = load(&device, &case);
    let mut program = compile(resident.as_mut(), &case);
    let mut rows_of = |rows: usize| {
        for (i, (_, tensor)) in case.inputs.iter().enumerate() {
            let row = tensor.data.len() / case.bucket.batch;
            program.write(i, Data::F32(&tensor.to_f32()[..rows * row]));
        }
        program.submit(&Run { rows, ..Run::default() }).expect("it starts");
        program.wait().expect("it runs");
        let mut output = vec![0.0; program.info().output_elements[0].1 * rows];
        program.read(0, &mut output).expect("it is read");
        output
    };
    let all = rows_of(8);
    let some = rows_of(3);
    assert_eq!(some, all[..some.len()]);
}

/// The states of all slots after a run that `prepare_run` spoils, and what the run said.
fn spoiled(fault: Option<Fault>, cancel: Option<Cancel>) -> (Vec<Vec<Vec<f32>>>, DeviceErrorKind) {
    let case = stateful();
    let device = RecordingDevice::new(Persona::CudaGraph);
    let mut resident = load(&device, &case);
    let mut program = compile(resident.as_mut(), &case);
    write(program.as_mut(), &case);
    program.submit(&run(&case)).expect("it starts");
    program.wait().expect("the first run succeeds");
    let before: Vec<_> = (0..8).map(|slot| resident.export_state(slot).expect("states")).collect();
    assert!(before[7][0].iter().any(|&x| x != 0.0), "the first run wrote states");
    fault.into_iter().for_each(|fault| device.inject(fault));
    program.submit(&Run { cancel, ..run(&case) }).expect("it starts");
    while !program.poll() {}
    // Sticky: until it is waited for, the error answers every submit.
    let again = program.submit(&run(&case)).expect_err("the error was not waited for").kind();
    let error = program.wait().expect_err("the run is spoiled").kind();
    assert_eq!(again, error);
    let after: Vec<_> = (0..8).map(|slot| resident.export_state(slot).expect("states")).collect();
    assert_eq!(after, before, "states after {error:?}");
    program.submit(&run(&case)).expect("the next run starts");
    program.wait().expect("the next run succeeds");
    let after = (0..8).map(|slot| resident.export_state(slot).expect("states")).collect();
    (after, error)
}

#[test]
fn a_cancelled_or_failed_run_leaves_states_alone() {
    let raised = Cancel::new();
    raised.cancel();
    let (expected, error) = spoiled(None, Some(raised));
    assert_eq!(error, DeviceErrorKind::Cancelled);
    // The entry has one step, and step 1 is the commit of its states.
    for step in 0..2 {
        let fault = Fault::Cancel { run: 1, step };
        assert_eq!(spoiled(Some(fault), None), (expected.clone(), DeviceErrorKind::Cancelled));
        let fault = Fault::Kernel { run: 1, step };
        assert_eq!(spoiled(Some(fault), None), (expected.clone(), DeviceErrorKind::Execution));
    }
}

#[test]
fn a_lost_device_stays_lost() {
    let case = stateful();
    let device = RecordingDevice::new(Persona::Cpu);
    device.inject(Fault::Lost { run: 0 });
    let mut resident = load(&device, &case);
    let mut program = compile(resident.as_mut(), &case);
    write(program.as_mut(), &case);
    program.submit(&run(&case)).expect("it starts");
    let lost = |error: neural_forecast_runtime::DeviceError| {
        assert_eq!(error.kind(), DeviceErrorKind::Lost, "{error}");
    };
    lost(program.wait().expect_err("the device goes away"));
    lost(program.wait().expect_err("and stays away"));
    lost(program.submit(&run(&case)).expect_err("and stays away"));
    lost(program.read(0, &mut [0.0]).expect_err("and stays away"));
    lost(resident.export_state(0).expect_err("and stays away"));
    lost(resident.reset_state(0).expect_err("and stays away"));
    lost(resident.compile(request(&case)).expect_err("and stays away"));
    lost(device.load(&case.plan, &case.weights, &LoadOptions::default()).expect_err("as well"));
}

#[test]
fn memory_runs_out_where_it_should() {
    let case = case("linear 8x16->16 all");
    let device = RecordingDevice::new(Persona::Cpu);
    device.inject(Fault::OutOfMemory { compile: 1 });
    let mut resident = load(&device, &case);
    let program = compile(resident.as_mut(), &case);
    let error = resident.compile(request(&case)).expect_err("the fault was planned");
    assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory);

    let weights: u64 = resident.memory().iter().map(|line| line.bytes).sum();
    let values: u64 = program.info().memory.iter().map(|line| line.bytes).sum();
    let limited = |most| {
        let options = LoadOptions { memory_bytes_max: Some(most), ..LoadOptions::default() };
        device.load(&case.plan, &case.weights, &options)
    };
    let error = limited(weights - 1).expect_err("the weights do not fit");
    assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory);
    let mut resident = limited(weights + values).expect("the weights fit");
    let program = resident.compile(request(&case)).expect("one program fits");
    let error = resident.compile(request(&case)).expect_err("two do not");
    assert_eq!(
        error.to_string(),
        format!(
            "out of memory: the program's values need {values} bytes beside {}, limit {}",
            weights + values,
            weights + values
        )
    );
    drop(program);
    resident.compile(request(&case)).expect("the first gave its bytes back");
}

#[test]
fn weights_are_checked_before_anything_else() {
    let case = case("linear 8x16->16 all");
    let device = RecordingDevice::new(Persona::Cpu);
    let mut weights = case.weights.clone();
    weights.remove("weight0");
    let load = |weights: &MemoryWeights| {
        let loaded = device.load(&case.plan, weights, &LoadOptions::default());
        loaded.expect_err("a weight is wrong").to_string()
    };
    assert_eq!(load(&weights), "weights: tensor `weight0` of shape [16, 16] is missing");
    weights.insert("weight0", &[16, 15], &[0.0; 240]);
    let expected = "weights: tensor `weight0` has shape [16, 15], expected [16, 16]";
    assert_eq!(load(&weights), expected);
}

#[test]
fn a_weight_larger_than_a_binding_is_refused_by_the_small_device() {
    let mut b = PlanBuilder::new("wide", Context::Fixed(1));
    b.begin(EntryKind::Full);
    let x = b.input("x", DType::F32, &[Dim::BATCH, 8.into()]);
    let rows = (128 << 20) / 32 + 1;
    let weight = b.weight("w", &[rows, 8]);
    let y = b.one(Linear::new(x, weight)).expect("the shapes fit");
    b.output("y", y, Vec::new());
    let plan = b.finish().expect("the plan is whole");
    let mut weights = MemoryWeights::new();
    weights.insert("w", &[rows, 8], &vec![0.0; rows * 8]);
    let device = RecordingDevice::new(Persona::WebGpuMinimum);
    let loaded = device.load(&plan, &weights, &LoadOptions::default());
    let request = Request {
        entry: EntryKind::Full,
        bucket: Bucket { batch: 1, length: 1 },
        class: KernelClass::Throughput,
    };
    let error = loaded.expect("loading binds nothing").compile(request).expect_err("too large");
    let expected = "unsupported: step `linear.0` binds 134217760 bytes of 134217728";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn arenas_of_all_cases_hold_what_is_read() {
    for case in cases() {
        for (fuse, lower) in [(true, false), (true, true), (false, true)] {
            let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
            let (plan, _) = prepare(&case.plan, &options, &|_: &Op| true).expect("it prepares");
            for batch in [1, case.bucket.batch, 64] {
                check_arena(&plan.entries[0], Bucket { batch, ..case.bucket });
            }
        }
    }
}

fn flying(persona: Persona) -> (Box<dyn Resident>, Box<dyn Program>, Case) {
    let case = stateful();
    let mut resident = load(&RecordingDevice::new(persona), &case);
    let mut program = compile(resident.as_mut(), &case);
    write(program.as_mut(), &case);
    program.submit(&run(&case)).expect("it starts");
    (resident, program, case)
}

#[test]
#[should_panic(expected = "the caller broke the contract: a run was submitted while a run is in")]
fn submitting_twice_is_a_breach() {
    let (_resident, mut program, case) = flying(Persona::Cpu);
    let _ = program.submit(&run(&case));
}

#[test]
#[should_panic(expected = "the caller broke the contract: an output was read while a run is in")]
fn reading_in_flight_is_a_breach() {
    let (_resident, mut program, _) = flying(Persona::CudaGraph);
    let _ = program.read(0, &mut [0.0]);
}

#[test]
#[should_panic(expected = "the caller broke the contract: an input was written while a run is in")]
fn writing_in_flight_is_a_breach() {
    let (_resident, mut program, case) = flying(Persona::CudaGraph);
    write(program.as_mut(), &case);
}

#[test]
#[should_panic(expected = "the caller broke the contract: `wait` would block in a browser")]
fn blocking_in_a_browser_is_a_breach() {
    let (_resident, mut program, _) = flying(Persona::WebGpuMinimum);
    let _ = program.wait();
}

#[test]
#[should_panic(expected = "are exclusive and in flight together")]
fn two_exclusive_programs_at_once_are_a_breach() {
    let (mut resident, _first, case) = flying(Persona::CudaGraph);
    let mut second = compile(resident.as_mut(), &case);
    write(second.as_mut(), &case);
    let _ = second.submit(&run(&case));
}

#[test]
#[should_panic(expected = "the caller broke the contract: slot 8 of 8")]
fn a_slot_out_of_range_is_a_breach() {
    let case = stateful();
    let mut resident = load(&RecordingDevice::new(Persona::Cpu), &case);
    let mut program = compile(resident.as_mut(), &case);
    let _ = program.submit(&Run { rows: 1, slots: &[8], cancel: None });
}

#[test]
#[should_panic(expected = "the caller broke the contract: two rows share slot 1")]
fn a_shared_slot_is_a_breach() {
    let case = stateful();
    let mut resident = load(&RecordingDevice::new(Persona::Cpu), &case);
    let mut program = compile(resident.as_mut(), &case);
    let _ = program.submit(&Run { rows: 2, slots: &[1, 1], cancel: None });
}

#[test]
#[should_panic(expected = "the caller broke the contract: 6 rows in a bucket of 5")]
fn too_many_rows_are_a_breach() {
    let case = stateful();
    let mut resident = load(&RecordingDevice::new(Persona::Cpu), &case);
    let mut program = compile(resident.as_mut(), &case);
    let _ = program.submit(&Run { rows: 6, slots: &[0, 1, 2, 3, 4, 5], cancel: None });
}

#[test]
#[should_panic(expected = "input `input0` takes rows of 40 elements, 200 at most, found 41")]
fn half_a_row_is_a_breach() {
    let case = stateful();
    let mut resident = load(&RecordingDevice::new(Persona::Cpu), &case);
    let mut program = compile(resident.as_mut(), &case);
    program.write(0, Data::F32(&[0.0; 41]));
}

#[test]
#[should_panic(expected = "the caller broke the contract: no run has succeeded")]
fn reading_before_any_run_is_a_breach() {
    let case = stateful();
    let mut resident = load(&RecordingDevice::new(Persona::Cpu), &case);
    let mut program = compile(resident.as_mut(), &case);
    let _ = program.read(0, &mut [0.0]);
}

#[test]
fn exported_states_continue_on_another_device() {
    let case = stateful();
    let finish = |program: &mut dyn Program| {
        write(program, &case);
        program.submit(&run(&case)).expect("it starts");
        while !program.poll() {}
        program.wait().expect("it runs");
        let mut output = vec![0.0; program.info().output_elements[0].0];
        program.read(0, &mut output).expect("it is read");
        output
    };
    let mut first = load(&RecordingDevice::new(Persona::CudaGraph), &case);
    let mut program = compile(first.as_mut(), &case);
    let fresh = finish(program.as_mut());
    let mut second = load(&RecordingDevice::new(Persona::WebGpuMinimum), &case);
    for &slot in &SLOTS {
        let states = first.export_state(slot).expect("states");
        second.import_state(slot, &states).expect("the same plan");
    }
    let continued = finish(program.as_mut());
    let mut elsewhere = compile(second.as_mut(), &case);
    assert_eq!(finish(elsewhere.as_mut()), continued);
    assert!(continued != fresh, "states matter");
    for &slot in &SLOTS {
        second.reset_state(slot).expect("the slot exists");
    }
    assert_eq!(finish(elsewhere.as_mut()), fresh);
}

#[test]
fn a_reference_tensor_rounds_to_what_is_written() {
    let tensor = Tensor::new([2], [0.1, -0.25]);
    assert_eq!(tensor.to_f32(), [0.1_f32, -0.25]);
}
