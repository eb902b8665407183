//! A recurrent forecaster as one kernel: input from host memory, stack, head, output and flag.
//!
//! Recognises an [`RnnStack`] whose last position goes through one plain [`Linear`], with nothing
//! but reshapes between and after. The kernels are
//! [`super::rnn_latency`]'s and [`super::rnn_wide`]'s.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::KernelClass;
use neural_forecast_runtime::ops::{Initial, Keep, Linear, Op, RnnStack};
use neural_forecast_runtime::plan::{Dim, Entry, ValueId};

use super::rnn_latency::{Ends, Head, RnnLatency};
use super::rnn_wide::RnnWide;
use super::whole::{self, HostPages, Whole};
use super::{Build, Packer};

/// A stack and its head with their weights on the device.
#[derive(Debug)]
pub(crate) struct WholeRnn {
    stack: Stack,
    /// `[outputs, width]` and `[outputs]` or 0, f32.
    weights: u64,
    bias: u64,
    outputs: usize,
}

/// The kernels that serve the stack.
#[derive(Debug)]
enum Stack {
    Latency(RnnLatency),
    Wide(RnnWide),
}

impl Stack {
    fn load(
        op: &RnnStack,
        values: &[ValueId],
        packer: &mut Packer<'_>,
    ) -> Result<Option<Stack>, DeviceError> {
        if let Some(latency) = RnnLatency::load(op, values, packer)? {
            return Ok(Some(Stack::Latency(latency)));
        }
        Ok(RnnWide::load(op, values, packer)?.map(Stack::Wide))
    }
}

impl WholeRnn {
    /// Packs an entry that is a stack and a head.
    pub(crate) fn load(
        entry: &Entry,
        packer: &mut Packer<'_>,
    ) -> Result<Option<Self>, DeviceError> {
        let Some((stack, values, head)) = recognised(entry) else {
            return Ok(None);
        };
        let Some(stack) = Stack::load(stack, values, packer)? else {
            return Ok(None);
        };
        let outputs = packer.shape(head.weight).first().copied().unwrap_or(0);
        let bias = packer.optional(head.bias)?;
        Ok(Some(WholeRnn { stack, weights: packer.plain(head.weight)?, bias, outputs }))
    }
}

/// The stack, its values and the head, where the entry is that and no more.
fn recognised(entry: &Entry) -> Option<(&RnnStack, &[ValueId], &Linear)> {
    let ([input], [output]) = (entry.inputs.as_slice(), entry.outputs.as_slice()) else {
        return None;
    };
    let (first, rest) = entry.steps.split_first()?;
    let Op::RnnStack(stack) = &first.op else {
        return None;
    };
    let plain = stack.initial == Initial::Zero && stack.states.is_none() && !stack.finals;
    if !plain || stack.keep != Keep::Last(1) || stack.x != input.value {
        return None;
    }
    let width = Dim::from(stack.directions() * stack.width());
    let head = whole::head(entry, rest, first.outputs[0], &width, output.value)?;
    Some((stack, first.outputs.as_slice(), head))
}

impl Whole for WholeRnn {
    fn build(&self, build: &mut Build<'_>, pages: &HostPages) -> Result<bool, DeviceError> {
        if build.class() != KernelClass::Latency {
            return Ok(false);
        }
        let head = Head {
            weights: self.weights,
            bias: self.bias,
            outputs: self.outputs,
            y: pages.outputs[0],
            flag: pages.flag,
            left: pages.left,
        };
        let ends = Ends { header: pages.header, x: pages.inputs[0], y: 0, head: Some(head) };
        match &self.stack {
            Stack::Latency(stack) => stack.launch(build, &ends, "rnn_whole"),
            Stack::Wide(stack) => stack.launch(build, &ends, "rnn_whole"),
        }
        Ok(true)
    }
}
