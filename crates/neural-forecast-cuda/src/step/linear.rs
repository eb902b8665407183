//! `linear`: one product along features, time or head by head, with its gate and residual.
//!
//! Not the norm before it: an op with a prologue is lowered.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{Activation, Linear, LinearAxis};
use neural_forecast_runtime::plan::ValueId;

use super::gemm::{Element, GatePart, Gemm, Matrix, Product, Weights, pack_gated, pack_weights};
use super::{Build, Loaded, Packer};

/// A product with its weights on the device.
#[derive(Debug)]
pub(crate) struct LoadedLinear {
    x: ValueId,
    residual: Option<ValueId>,
    y: ValueId,
    axis: LinearAxis,
    weights: Weights,
    /// Results of a row of one product.
    outputs: usize,
    bias: u64,
    activation: Activation,
    gate: Option<GatePart>,
}

impl LoadedLinear {
    pub(crate) fn load(
        op: &Linear,
        y: ValueId,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let shape = packer.shape(op.weight);
        let outputs = shape[shape.len() - 2];
        let weights = match &op.gate {
            Some(gate) => pack_gated(packer, op.weight, gate.weight)?,
            None => pack_weights(packer, &[Some(op.weight)])?,
        };
        let gate = match &op.gate {
            Some(gate) => {
                Some(GatePart { bias: packer.optional(gate.bias)?, activation: gate.activation })
            }
            None => None,
        };
        Ok(LoadedLinear {
            x: op.x,
            residual: op.residual,
            y,
            axis: op.axis,
            weights,
            outputs,
            bias: packer.optional(op.bias)?,
            activation: op.activation,
            gate,
        })
    }
}

impl LoadedLinear {
    fn product(&self, build: &Build<'_>) -> Product {
        let shape = build.shape(self.x);
        let last = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product::<usize>();
        let (batches, channels) = match self.axis {
            LinearAxis::Features => (1, None),
            LinearAxis::Heads(heads) => (heads, None),
            LinearAxis::Time => (1, Some(last)),
        };
        // Rows over time are series times channels; those of one channel lie in memory as they are.
        let outer = shape.iter().rev().skip(2).product::<usize>();
        let (m, stride, channels) = match channels {
            None => (rows, last, None),
            Some(1) => (outer, self.weights.k, None),
            Some(channels) => (outer * channels, last, Some(channels)),
        };
        let width = batches * self.outputs;
        let matrix = |address, stride| Matrix { address, element: Element::F32, stride };
        let residual = self.residual.map(|id| matrix(build.value(id), width));
        Product {
            gemm: Gemm {
                m,
                x: Matrix { element: build.element(self.x), ..matrix(build.value(self.x), stride) },
                w: self.weights,
                bias: self.bias,
                activation: self.activation,
                residual,
                y: matrix(build.value(self.y), width),
            },
            outputs: self.outputs,
            gate: self.gate,
            batches,
            channels,
            few: false,
        }
    }
}

impl Loaded for LoadedLinear {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        self.product(build).launch(build, "linear")
    }

    fn rounds(&self, value: ValueId, build: &Build<'_>) -> Option<Element> {
        let alone = value == self.x && self.residual != Some(value);
        alone.then(|| self.product(build).rounds(build)).flatten()
    }
}
