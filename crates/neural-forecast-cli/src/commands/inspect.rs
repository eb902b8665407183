//! `inspect`: what a model is, what it weighs, and what runs it.

use super::{bytes, facts, print, print_json};
use crate::args::InspectArgs;
use crate::failure::Outcome;
use crate::input::Model;
use neural_forecast::device::{self, DeviceChoice, DeviceOptions};
use neural_forecast::inspect::{CheckpointReport, NetworkReport, inspect};
use std::fmt::Write as _;

/// Loads the model and prints what is known.
pub(super) fn run(args: &InspectArgs) -> Outcome {
    let checkpoint = Model::load(Some(&args.model))?.checkpoint;
    let cpu = device::open(DeviceChoice::Cpu, &DeviceOptions::default())?;
    let report = inspect(&checkpoint, &[cpu.device.as_ref()]);
    if args.json { print_json(&report) } else { print(as_text(&report).as_bytes()) }
}

fn as_text(report: &CheckpointReport) -> String {
    let none = || "-".to_string();
    let mut rows = vec![
        row("format", report.format.to_string()),
        row("hash", report.hash.clone()),
        row("frequency", report.frequency.clone().unwrap_or_else(none)),
        row("scaler of series", report.local_scaler.clone().unwrap_or_else(none)),
        row("conformal intervals", report.conformal.clone().unwrap_or_else(none)),
    ];
    let mut out = facts(&rows);
    for network in &report.models {
        let _ = writeln!(out, "\n{}", network.alias);
        rows = of_network(network);
        for memory in &network.memory {
            let (weights, values) = (bytes(memory.weight_bytes), bytes(memory.row_bytes));
            let text = format!("{weights} of weights, {values} for each series in flight");
            rows.push(row(&format!("  memory in {}", memory.precision), text));
        }
        for device in &network.devices {
            let mut text = device.precisions.join(", ");
            if !device.unsupported.is_empty() {
                let _ = write!(text, " (not: {})", device.unsupported.join("; "));
            }
            rows.push(row(&format!("  runs on {}", device.device), text));
        }
        out.push_str(&facts(&rows));
    }
    out
}

fn row(name: &str, fact: String) -> (String, String) {
    (name.to_string(), fact)
}

fn of_network(network: &NetworkReport) -> Vec<(String, String)> {
    let list = |names: &[String]| if names.is_empty() { "-".into() } else { names.join(", ") };
    let column = |suffix: &String| format!("{}{suffix}", network.alias);
    let outputs: Vec<String> = network.outputs.iter().map(column).collect();
    vec![
        row("  architecture", format!("{}, {}", network.architecture, network.decoding)),
        row("  loss", network.loss.clone()),
        row("  parameters", network.parameters.to_string()),
        row("  context", format!("{} steps", network.context)),
        row("  horizon", format!("{} steps", network.horizon)),
        row("  columns", list(&outputs)),
        row("  historic inputs", list(&network.historic)),
        row("  future inputs", list(&network.future)),
        row("  static inputs", list(&network.statics)),
    ]
}
