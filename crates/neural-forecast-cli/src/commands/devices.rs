//! `devices`: what models run on, and why not on the rest.

use super::{bytes, device_options, print, print_json};
use crate::args::DevicesArgs;
use crate::failure::Outcome;
use neural_forecast::device::{DeviceReport, list};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Prints every device that this build knows.
pub(super) fn run(args: &DevicesArgs) -> Outcome {
    let reports = list(&device_options(args.threads));
    if args.json {
        return print_json(&reports.iter().map(as_json).collect::<Vec<_>>());
    }
    let mut out = String::new();
    for report in &reports {
        describe(&mut out, report);
    }
    print(out.as_bytes())
}

fn describe(out: &mut String, report: &DeviceReport) {
    let can = match &report.state {
        Err(reason) => {
            let _ = writeln!(out, "{}: unavailable: {reason}", report.id);
            return;
        }
        Ok(can) => can,
    };
    let precisions: Vec<&str> = can.precisions.iter().map(|p| p.name()).collect();
    let _ = writeln!(out, "{}: {}", report.id, can.name);
    let _ = writeln!(out, "  memory: {}", bytes(can.memory_bytes));
    let _ = writeln!(out, "  precisions: {}", precisions.join(", "));
    for (name, value) in &can.features {
        let _ = writeln!(out, "  {name}: {value}");
    }
}

fn as_json(report: &DeviceReport) -> Value {
    match &report.state {
        Err(reason) => json!({"id": report.id, "available": false, "reason": reason}),
        Ok(can) => {
            let features: Map<String, Value> =
                can.features.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            json!({
                "id": report.id,
                "available": true,
                "name": can.name,
                "memory_bytes": can.memory_bytes,
                "precisions": can.precisions.iter().map(|p| p.name()).collect::<Vec<_>>(),
                "features": features,
            })
        }
    }
}
