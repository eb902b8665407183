//! Weights on their way to the device: read once, rearranged for a kernel, uploaded once.
//!
//! Knows no op: a step says what it needs under a key of its own.

use std::borrow::Cow;
use std::collections::HashMap;

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::{Precision, WeightSource, weight_f32};
use neural_forecast_runtime::plan::{Plan, StateId, WeightId};

use crate::gpu::Gpu;

/// Puts bytes into device memory, 256-byte aligned, under an owner's name, and says where.
pub(crate) type Upload<'a> = &'a mut dyn FnMut(&str, &[u8]) -> Result<u64, DeviceError>;

/// Packs weights, each once whatever the number of steps that read it.
pub(crate) struct Packer<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    source: &'a dyn WeightSource,
    precision: Precision,
    upload: Upload<'a>,
    known: HashMap<(Cow<'static, str>, Vec<Option<WeightId>>), u64>,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(
        gpu: &'a Gpu,
        plan: &'a Plan,
        source: &'a dyn WeightSource,
        precision: Precision,
        upload: Upload<'a>,
    ) -> Self {
        Packer { gpu, plan, source, precision, upload, known: HashMap::new() }
    }

    /// The GPU.
    pub(crate) fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// In which format weights are kept.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// A weight's shape.
    pub(crate) fn shape(&self, id: WeightId) -> &'a [usize] {
        &self.plan.weight(id).shape
    }

    /// The shape of a state of one sequence.
    pub(crate) fn state_shape(&self, id: StateId) -> &'a [usize] {
        &self.plan.state(id).shape
    }

    /// A weight's elements, row-major.
    pub(crate) fn read(&self, id: WeightId) -> Result<Vec<f32>, DeviceError> {
        weight_f32(self.plan, id, self.source)
    }

    /// The device address of weights in a layout of the caller's: made by `pack` the first time,
    /// known afterwards. `layout` names the arrangement and whatever else it depends on besides
    /// the weights; `weights` are those it is made of.
    pub(crate) fn packed(
        &mut self,
        layout: impl Into<Cow<'static, str>>,
        weights: &[Option<WeightId>],
        pack: impl FnOnce(&Self) -> Result<Vec<u8>, DeviceError>,
    ) -> Result<u64, DeviceError> {
        let key = (layout.into(), weights.to_vec());
        if let Some(&address) = self.known.get(&key) {
            return Ok(address);
        }
        let bytes = pack(self)?;
        let first = weights.iter().flatten().next();
        let layout = key.0.as_ref();
        let name = first.map_or(layout, |&id| self.plan.weight(id).name.as_str());
        let address = (self.upload)(&format!("`{name}` as {layout}"), &bytes)?;
        self.known.insert(key, address);
        Ok(address)
    }

    /// The device address of a weight as f32 in declared order.
    pub(crate) fn plain(&mut self, id: WeightId) -> Result<u64, DeviceError> {
        self.packed("f32", &[Some(id)], |packer| {
            Ok(packer.read(id)?.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
    }

    /// As [`Packer::plain`]; 0, which kernels take for absent, where there is none.
    pub(crate) fn optional(&mut self, id: Option<WeightId>) -> Result<u64, DeviceError> {
        id.map_or(Ok(0), |id| self.plain(id))
    }
}
