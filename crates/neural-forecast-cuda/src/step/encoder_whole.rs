//! An encoder forecaster as one kernel: input from host memory, embedding, layers, head, output and
//! flag.
//!
//! Recognises a plain [`Linear`], an [`EncoderStack`](Op::EncoderStack) that
//! [`super::encoder_small`] takes, and a plain [`Linear`], with nothing but reshapes around them.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::KernelClass;
use neural_forecast_runtime::ops::{Linear, Op, Product, Stack};
use neural_forecast_runtime::plan::{Entry, ValueId};

use super::encoder_small::{Addresses, EncoderSmall, Ends};
use super::whole::{self, HostPages, Whole};
use super::{Build, Packer};

/// A counter of blocks and a place for the sequence number.
const FLAG_BYTES: usize = 8;

/// An encoder between two products, with the weights on the device.
#[derive(Debug)]
pub(crate) struct WholeEncoder {
    /// `[B, T, features]`.
    input: ValueId,
    stack: EncoderSmall,
}

impl WholeEncoder {
    /// Packs an entry that is an embedding, an encoder and a head.
    pub(crate) fn load(
        entry: &Entry,
        packer: &mut Packer<'_>,
    ) -> Result<Option<Self>, DeviceError> {
        let Some((input, stack, ends)) = recognised(entry) else {
            return Ok(None);
        };
        let stack = EncoderSmall::load(stack, Some(&ends), packer)?;
        Ok(stack.map(|stack| WholeEncoder { input, stack }))
    }
}

/// The input, the encoder and what is around it, where the entry is that and no more.
fn recognised(entry: &Entry) -> Option<(ValueId, &Stack, Ends)> {
    let ([input], [output]) = (entry.inputs.as_slice(), entry.outputs.as_slice()) else {
        return None;
    };
    let [first, second, rest @ ..] = entry.steps.as_slice() else { return None };
    let (Op::Linear(embedding), Op::EncoderStack(stack)) = (&first.op, &second.op) else {
        return None;
    };
    let joined = embedding.x == input.value && stack.x == first.outputs[0];
    let three = entry.value(input.value).shape.len() == 3;
    if !joined || !three || !whole::is_plain(embedding) || stack.mask.is_some() {
        return None;
    }
    let value = second.outputs[0];
    let width = entry.value(value).shape.last()?;
    let head = whole::head(entry, rest, value, width, output.value)?;
    let product = |linear: &Linear| Product { weight: linear.weight, bias: linear.bias };
    let ends = Ends { embedding: product(embedding), head: product(head) };
    Some((input.value, stack, ends))
}

impl Whole for WholeEncoder {
    fn build(&self, build: &mut Build<'_>, pages: &HostPages) -> Result<bool, DeviceError> {
        if build.class() != KernelClass::Latency {
            return Ok(false);
        }
        let [batch, time, _] = *build.shape(self.input) else { return Ok(false) };
        let addresses = Addresses {
            x: pages.inputs[0],
            y: pages.outputs[0],
            header: pages.header,
            mask: 0,
            flag: pages.flag,
            counter: build.persistent(FLAG_BYTES),
            left: pages.left,
        };
        // Nothing to compute is no kernel that sets the flag.
        Ok(batch * time > 0 && self.stack.launch(batch, time, addresses, build))
    }
}
