//! Every case on the reference device: the cases are valid plans, and the device keeps the contract
//! that other devices are compared by.

use std::collections::BTreeSet;

use neural_forecast_runtime::device::LoadOptions;
use neural_forecast_runtime::reference::ReferenceDevice;
use neural_forecast_runtime::testing::{cases, conform_all};

#[test]
fn the_reference_conforms_to_itself() {
    let cases = cases();
    let device = ReferenceDevice::new();
    let (ran, failures) = conform_all(&device, &cases, &LoadOptions::default());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(ran, cases.len());
}

#[test]
fn every_op_has_a_case_and_names_are_unique() {
    let cases = cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    let steps = cases.iter().flat_map(|case| &case.plan.entries).flat_map(|entry| &entry.steps);
    let ops: BTreeSet<&str> = steps.map(|step| step.op.name()).collect();
    let all = [
        "attention",
        "binary",
        "concat",
        "decoder_stack",
        "denormalize",
        "embedding",
        "empirical_quantiles",
        "encoder_stack",
        "expand",
        "gather",
        "interpolate",
        "linear",
        "norm",
        "normalize",
        "patch",
        "pool",
        "ramp",
        "reshape",
        "rnn_stack",
        "sample",
        "slice",
        "transpose",
        "unary",
        "weighted_sum",
    ];
    assert_eq!(ops, all.into_iter().collect());
}
