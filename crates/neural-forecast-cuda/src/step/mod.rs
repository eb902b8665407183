//! The ops of a plan as launches: what is packed when a plan is loaded, what each step launches.
//!
//! One file an op or family, each a translation from the runtime's parameters to kernels of the
//! `.cu` file of the same stem. Addresses and sizes are decided here; nothing is launched here.

mod attention;
mod build;
mod columns;
mod elementwise;
mod encoder_norm;
mod encoder_small;
mod encoder_stack;
mod encoder_whole;
pub(crate) mod gemm;
pub(crate) mod gemm_hopper;
mod gemm_normed;
mod gemm_shapes;
mod indexing;
mod layout;
mod linear;
pub(crate) mod norm;
mod normalize;
mod packer;
mod quantile;
mod resample;
mod rnn_batch;
mod rnn_latency;
mod rnn_stack;
mod rnn_whole;
mod rnn_wide;
mod rows;
pub(crate) mod whole;

pub(crate) use build::{Build, Places};
pub(crate) use packer::Packer;

use neural_forecast_runtime::device::Precision;
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::{DType, Entry, Step, ValueId};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::gpu::Gpu;
use gemm::Element;

/// A step with its weights on the device; shared by all programs of its entry.
pub(crate) trait Loaded: std::fmt::Debug + Send + Sync {
    /// Appends the launches that compute the step for a bucket. Called twice: once to learn how
    /// much scratch it needs, once with the addresses that it will run with. Must therefore depend
    /// on nothing but `build`.
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError>;

    /// The 16-bit format that the step rounds all of a value to before anything else. It then takes
    /// the value in that format too ([`Build::element`]), with the same results.
    fn rounds(&self, value: ValueId, build: &Build<'_>) -> Option<Element> {
        let _ = (value, build);
        None
    }
}

/// The formats that an entry's values are in: an input that nothing reads more of is in the 16 bits
/// that its only reader rounds it to. `build` has no formats yet.
pub(crate) fn value_elements(
    entry: &Entry,
    steps: &[Box<dyn Loaded>],
    build: &Build<'_>,
) -> Vec<Element> {
    let mut elements = vec![Element::F32; entry.values.len()];
    for value in entry.inputs.iter().map(|input| input.value) {
        let number = entry.value(value).dtype == DType::F32;
        let given_out = entry.outputs.iter().any(|output| output.value == value);
        let all = entry.steps.iter().zip(steps);
        let mut readers = all.filter(|(step, _)| step.op.reads().contains(&value));
        let rounded = readers.next().and_then(|(_, step)| step.rounds(value, build));
        if let Some(element) = rounded
            && number
            && !given_out
            && readers.next().is_none()
        {
            elements[value.index()] = element;
        }
    }
    elements
}

/// Whether an op has kernels of its own here; the others are lowered.
pub(crate) fn has_kernel(op: &Op, gpu: &Gpu, precision: Precision) -> bool {
    let _ = (gpu, precision);
    match op {
        Op::EncoderStack(op) => encoder_stack::takes(op),
        Op::DecoderStack(_) => false,
        Op::Linear(op) => op.prologue.is_none(),
        _ => true,
    }
}

/// A step that launches nothing.
#[derive(Debug)]
struct Nothing;

impl Loaded for Nothing {
    fn build(&self, _: &mut Build<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Packs and uploads what a step needs.
pub(crate) fn load(step: &Step, packer: &mut Packer<'_>) -> Result<Box<dyn Loaded>, DeviceError> {
    let y = step.outputs[0];
    match &step.op {
        Op::Linear(op) => Ok(Box::new(linear::LoadedLinear::load(op, step.outputs[0], packer)?)),
        Op::Normalize(op) => {
            Ok(Box::new(normalize::LoadedNormalize::load(op, &step.outputs, packer)?))
        }
        Op::Denormalize(op) => Ok(Box::new(normalize::LoadedDenormalize::load(op, y, packer)?)),
        Op::RnnStack(op) => Ok(Box::new(rnn_stack::LoadedRnn::load(op, &step.outputs, packer)?)),
        Op::Norm(op) => {
            let norm = norm::Norm::load(op, packer)?;
            Ok(Box::new(norm::LoadedNorm { x: op.x, y, norm }))
        }
        Op::Embedding(op) => Ok(Box::new(layout::LoadedEmbedding::load(op, y, packer)?)),
        Op::Concat(op) => Ok(Box::new(layout::LoadedConcat { op: op.clone(), y })),
        Op::Slice(op) => Ok(Box::new(layout::LoadedSlice { op: op.clone(), y })),
        Op::Gather(op) => Ok(Box::new(layout::LoadedGather { op: op.clone(), y })),
        Op::Transpose(op) => Ok(Box::new(layout::LoadedTranspose { op: op.clone(), y })),
        Op::Expand(op) => Ok(Box::new(layout::LoadedExpand::load(op, y, packer)?)),
        Op::Patch(op) => Ok(Box::new(layout::LoadedPatch { op: op.clone(), y })),
        Op::Pool(op) => Ok(Box::new(resample::LoadedPool { op: op.clone(), y })),
        Op::Interpolate(op) => Ok(Box::new(resample::LoadedInterpolate { op: op.clone(), y })),
        Op::Unary(op) => Ok(Box::new(elementwise::LoadedUnary { op: op.clone(), y })),
        Op::Binary(op) => Ok(Box::new(elementwise::LoadedBinary::load(op, y, packer)?)),
        Op::WeightedSum(op) => Ok(Box::new(elementwise::LoadedWeightedSum { op: op.clone(), y })),
        Op::Ramp(op) => Ok(Box::new(elementwise::LoadedRamp { op: op.clone(), y })),
        Op::EmpiricalQuantiles(op) => Ok(Box::new(quantile::LoadedQuantiles { op: op.clone(), y })),
        Op::Sample(op) => Ok(Box::new(quantile::LoadedSample { op: op.clone(), y })),
        Op::Attention(op) => Ok(Box::new(attention::LoadedAttention::load(op, y, packer)?)),
        Op::EncoderStack(op) => {
            Ok(Box::new(encoder_stack::LoadedEncoderStack::load(op, y, packer)?))
        }
        // The arena gives both values the same place.
        Op::Reshape(_) => Ok(Box::new(Nothing)),
        op => {
            let message = format!("op `{}` ({}) has no kernel", op.name(), step.label);
            Err(DeviceError::new(DeviceErrorKind::Unsupported, message))
        }
    }
}
