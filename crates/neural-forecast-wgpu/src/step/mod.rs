//! The ops of a plan as dispatches: what is packed when a plan is loaded, what each step runs.
//!
//! One file an op or family, each a translation from the runtime's parameters to kernels of the
//! `.wgsl` file of the same name. Places and sizes are decided here; nothing is dispatched here.

mod attention;
mod attention_cooperative;
mod build;
mod elementwise;
mod layout;
mod linear;
mod norm;
mod normalize;
mod packer;
mod resample;
mod rnn_cooperative;
mod rnn_stack;

#[cfg(test)]
pub(crate) use attention_cooperative::attention_variants;
pub(crate) use build::{Build, Dispatch, Grid, Means, Places};
#[cfg(test)]
pub(crate) use linear::cooperative_variants;
pub(crate) use packer::{Packer, Part};
#[cfg(test)]
pub(crate) use rnn_cooperative::recurrence_variants;

use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::Step;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

/// A step with its weights on the device; shared by all programs of its entry.
pub(crate) trait Loaded: std::fmt::Debug + Send + Sync {
    /// Appends the dispatches that compute the step for a bucket. Called twice: once to learn how
    /// much scratch and how many constants it needs, once with the places that it will run with.
    /// Must therefore depend on nothing but `build`.
    ///
    /// # Errors
    /// `Unsupported` where a size is beyond what the kernels can do, with the size.
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError>;
}

/// Whether an op has kernels of its own here; of the others the stacks are lowered.
pub(crate) fn has_kernel(op: &Op) -> bool {
    !matches!(op, Op::EncoderStack(_) | Op::DecoderStack(_))
}

/// A step that dispatches nothing.
#[derive(Debug)]
struct Nothing;

impl Loaded for Nothing {
    fn build(&self, _: &mut Build<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[cold]
fn unsupported(message: String) -> DeviceError {
    DeviceError::new(DeviceErrorKind::Unsupported, message)
}

/// Packs what a step needs.
pub(crate) fn load(step: &Step, packer: &mut Packer<'_>) -> Result<Box<dyn Loaded>, DeviceError> {
    let y = step.outputs[0];
    let owner = format!("op `{}` ({})", step.op.name(), step.label);
    let owner = owner.as_str();
    Ok(match &step.op {
        Op::Linear(op) => Box::new(linear::LoadedLinear::load(op, y, owner, packer)?),
        Op::Norm(op) => Box::new(norm::LoadedNorm::load(op, y, owner, packer)?),
        Op::Normalize(op) => {
            Box::new(normalize::LoadedNormalize::load(op, &step.outputs, owner, packer)?)
        }
        Op::Denormalize(op) => Box::new(normalize::LoadedDenormalize::load(op, y, owner, packer)?),
        Op::RnnStack(op) => Box::new(rnn_stack::LoadedRnn::load(op, &step.outputs, owner, packer)?),
        Op::Attention(op) => Box::new(attention::LoadedAttention::load(op, y, owner, packer)?),
        Op::Embedding(op) => Box::new(layout::LoadedEmbedding::load(op, y, owner, packer)?),
        Op::Concat(op) => Box::new(layout::LoadedConcat { op: op.clone(), y }),
        Op::Slice(op) => Box::new(layout::LoadedSlice { op: op.clone(), y }),
        Op::Gather(op) => Box::new(layout::LoadedGather { op: op.clone(), y }),
        Op::Transpose(op) => Box::new(layout::LoadedTranspose { op: op.clone(), y }),
        Op::Expand(op) => Box::new(layout::LoadedExpand::load(op, y, owner, packer)?),
        Op::Patch(op) => Box::new(layout::LoadedPatch { op: op.clone(), y }),
        Op::Pool(op) => Box::new(resample::LoadedPool { op: op.clone(), y }),
        Op::Interpolate(op) => Box::new(resample::LoadedInterpolate { op: op.clone(), y }),
        Op::EmpiricalQuantiles(op) => Box::new(resample::LoadedQuantiles { op: op.clone(), y }),
        Op::Sample(op) => Box::new(resample::LoadedSample { op: op.clone(), y }),
        Op::Unary(op) => Box::new(elementwise::LoadedUnary { op: op.clone(), y }),
        Op::Binary(op) => Box::new(elementwise::LoadedBinary::load(op, y, owner, packer)?),
        Op::WeightedSum(op) => Box::new(elementwise::LoadedWeightedSum { op: op.clone(), y }),
        Op::Ramp(op) => Box::new(elementwise::LoadedRamp { op: op.clone(), y }),
        // The arena gives both values the same place.
        Op::Reshape(_) => Box::new(Nothing),
        _ => return Err(unsupported(format!("{owner} has no kernel on WebGPU"))),
    })
}
