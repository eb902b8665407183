//! What a checkpoint holds: architectures, parameters, memory in each precision, devices.
//!
//! Reads declarations only; nothing runs.

use neural_forecast_runtime::arena::ArenaPlan;
use neural_forecast_runtime::device::{Capabilities, Device, Precision, Support};
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::{Bucket, EntryKind};
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Format};
use crate::models::{Decoding, Network};

/// A checkpoint's description.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointReport {
    /// Which format it has.
    pub format: &'static str,
    /// Content hash of the weights.
    pub hash: String,
    /// Distance between stamps, where it says.
    pub frequency: Option<String>,
    /// Steps of a forecast.
    pub horizon: usize,
    /// Scaler of whole series, where it has one.
    pub local_scaler: Option<String>,
    /// Conformal method, where it has one.
    pub conformal: Option<String>,
    /// Networks.
    pub models: Vec<NetworkReport>,
}

/// A network's description.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkReport {
    /// Prefix of its columns.
    pub alias: String,
    /// Its architecture.
    pub architecture: String,
    /// The loss it was trained with.
    pub loss: String,
    /// Trained parameters.
    pub parameters: usize,
    /// Steps of a window.
    pub context: usize,
    /// Steps of a forecast.
    pub horizon: usize,
    /// `direct` or `recurrent`.
    pub decoding: &'static str,
    /// Suffixes of its columns.
    pub outputs: Vec<String>,
    /// Historic columns.
    pub historic: Vec<String>,
    /// Future columns.
    pub future: Vec<String>,
    /// Static columns.
    pub statics: Vec<String>,
    /// Bytes of weights in each precision, and of one row's values.
    pub memory: Vec<PrecisionMemory>,
    /// The ops of its plan in order.
    pub ops: Vec<&'static str>,
    /// Devices of this machine and whether they run it.
    pub devices: Vec<DeviceSupport>,
}

/// Memory in one precision.
#[derive(Clone, Debug, Serialize)]
pub struct PrecisionMemory {
    /// The precision's name.
    pub precision: &'static str,
    /// Bytes of weights as stored; a device's packing adds padding.
    pub weight_bytes: u64,
    /// Bytes of the values of one row.
    pub row_bytes: u64,
}

/// Whether a device runs a network.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceSupport {
    /// The device's id.
    pub device: String,
    /// Precisions in which it runs the network.
    pub precisions: Vec<&'static str>,
    /// Ops that it cannot run, with the reason.
    pub unsupported: Vec<String>,
}

/// Describes a checkpoint and what of it the devices run.
pub fn inspect(checkpoint: &Checkpoint, devices: &[&dyn Device]) -> CheckpointReport {
    CheckpointReport {
        format: match checkpoint.format {
            Format::NeuralForecast => "neuralforecast",
            Format::Native => "neural-forecast",
        },
        hash: checkpoint.hash.clone(),
        frequency: checkpoint.frequency.map(|frequency| frequency.to_string()),
        horizon: checkpoint.horizon,
        local_scaler: checkpoint.local_scaler.as_ref().map(|scaler| scaler.kind.clone()),
        conformal: checkpoint.conformal.as_ref().map(|scores| scores.method.clone()),
        models: checkpoint.models.iter().map(|network| describe(network, devices)).collect(),
    }
}

fn describe(network: &Network, devices: &[&dyn Device]) -> NetworkReport {
    let plan = &network.plan;
    let steps = plan.entry(EntryKind::Full).map_or(&[][..], |entry| &entry.steps);
    let length = plan.context.longest();
    let bucket = Bucket { batch: 1, length };
    let row_bytes =
        plan.entry(EntryKind::Full).map_or(0, |entry| ArenaPlan::new(entry, bucket).bytes() as u64);
    let memory = Precision::ALL
        .into_iter()
        .map(|precision| PrecisionMemory {
            precision: precision.name(),
            weight_bytes: (plan.parameters() * precision.weight_bytes()) as u64,
            row_bytes,
        })
        .collect();
    let exogenous = &network.exogenous;
    NetworkReport {
        alias: network.alias.clone(),
        architecture: network.architecture.clone(),
        loss: network.loss.clone(),
        parameters: network.parameters(),
        context: network.context,
        horizon: network.horizon,
        decoding: match network.decoding {
            Decoding::Direct => "direct",
            Decoding::Recurrent => "recurrent",
        },
        outputs: network.outputs.iter().map(|output| output.suffix.clone()).collect(),
        historic: exogenous.historic.clone(),
        future: exogenous.future.clone(),
        statics: exogenous.statics.clone(),
        memory,
        ops: steps.iter().map(|step| step.op.name()).collect(),
        devices: devices
            .iter()
            .map(|device| support(*device, steps.iter().map(|step| &step.op)))
            .collect(),
    }
}

fn support<'a>(device: &dyn Device, ops: impl Iterator<Item = &'a Op> + Clone) -> DeviceSupport {
    let Capabilities { id, precisions, .. } = device.capabilities();
    let mut unsupported: Vec<String> = ops
        .clone()
        .filter_map(|op| match device.support(op, Precision::F32) {
            Support::Unsupported(reason) => Some(format!("{}: {reason}", op.name())),
            _ => None,
        })
        .collect();
    unsupported.sort();
    unsupported.dedup();
    let runs = |precision: &Precision| {
        let refused = |op| matches!(device.support(op, *precision), Support::Unsupported(_));
        !ops.clone().any(refused)
    };
    DeviceSupport {
        device: id.clone(),
        precisions: precisions.iter().filter(|p| runs(p)).map(|p| p.name()).collect(),
        unsupported,
    }
}
