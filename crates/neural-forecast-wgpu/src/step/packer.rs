//! Weights on their way to the device: read once, rearranged for a kernel, laid side by side.
//!
//! What one dispatch reads must be in one buffer, so a step packs all of it together. Buffers are
//! filled one after the other, each at most as large as a binding may be. Where a plan is loaded in
//! half precision, weights of products are halves, two in a word; all others stay as they are.

use half::f16;
use neural_forecast_runtime::device::{Precision, WeightSource, weight_f32};
use neural_forecast_runtime::plan::{Plan, WeightId};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::build::word;

/// Elements from which a buffer is closed and another begun, so that no single one is huge: 64 MiB.
const BUFFER_ELEMENTS: usize = 16 << 20;

/// Elements that each part begins at a multiple of.
const ALIGNED: usize = 4;

/// Weights of a dispatch: which buffer, and where each part is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed {
    pub(crate) buffer: usize,
    /// In elements of the part's format.
    pub(crate) places: Vec<u32>,
}

/// A part of a step's weights.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    /// Operands of products, which take the precision of the plan.
    Product(&'a [f32]),
    /// Everything else.
    Single(&'a [f32]),
}

/// Packs the weights of a plan.
pub(crate) struct Packer<'a> {
    plan: &'a Plan,
    source: &'a dyn WeightSource,
    elements_max: usize,
    half: bool,
    buffers: Vec<Vec<f32>>,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(
        limits: &wgpu::Limits,
        plan: &'a Plan,
        source: &'a dyn WeightSource,
        precision: Precision,
    ) -> Self {
        let bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let half = precision == Precision::F16;
        let buffers = vec![Vec::new()];
        Packer { plan, source, elements_max: (bytes / 4) as usize, half, buffers }
    }

    /// Whether operands of products become halves.
    pub(crate) fn is_half(&self) -> bool {
        self.half
    }

    /// A weight's shape.
    pub(crate) fn shape(&self, id: WeightId) -> &'a [usize] {
        &self.plan.weight(id).shape
    }

    /// A weight's elements, row-major.
    pub(crate) fn read(&self, id: WeightId) -> Result<Vec<f32>, DeviceError> {
        weight_f32(self.plan, id, self.source)
    }

    /// As [`Packer::read`]; nothing where there is none.
    pub(crate) fn optional(&self, id: Option<WeightId>) -> Result<Vec<f32>, DeviceError> {
        id.map_or(Ok(Vec::new()), |id| self.read(id))
    }

    /// Places parts in one buffer. `owner` is who needs them, for the message.
    ///
    /// # Errors
    /// `OutOfMemory` where they are more than a binding may have.
    pub(crate) fn pack(&mut self, owner: &str, parts: &[&[f32]]) -> Result<Packed, DeviceError> {
        let parts: Vec<Part<'_>> = parts.iter().copied().map(Part::Single).collect();
        self.pack_parts(owner, &parts)
    }

    /// As [`Packer::pack`], with operands of products among them.
    pub(crate) fn pack_parts(
        &mut self,
        owner: &str,
        parts: &[Part<'_>],
    ) -> Result<Packed, DeviceError> {
        let words = |part: &Part<'_>| match part {
            Part::Product(part) if self.half => part.len().div_ceil(2),
            Part::Product(part) | Part::Single(part) => part.len(),
        };
        let all: usize = parts.iter().map(|part| words(part).next_multiple_of(ALIGNED)).sum();
        if all > self.elements_max {
            let (bytes, most) = (all * 4, self.elements_max * 4);
            let message = format!(
                "weights of {owner} take {bytes} bytes in one binding, the device has {most} at \
                 most"
            );
            return Err(DeviceError::new(DeviceErrorKind::OutOfMemory, message));
        }
        let used = self.buffers.last().map_or(0, Vec::len);
        if used > 0 && used + all > BUFFER_ELEMENTS.min(self.elements_max) {
            self.buffers.push(Vec::new());
        }
        let buffer = self.buffers.len() - 1;
        let into = &mut self.buffers[buffer];
        let mut places = Vec::new();
        for part in parts {
            match part {
                Part::Product(part) if self.half => {
                    places.push(word(into.len() * 2));
                    into.extend(part.chunks(2).map(halves));
                }
                Part::Product(part) | Part::Single(part) => {
                    places.push(word(into.len()));
                    into.extend_from_slice(part);
                }
            }
            into.resize(into.len().next_multiple_of(ALIGNED), 0.0);
        }
        Ok(Packed { buffer, places })
    }

    /// What the buffers hold.
    pub(crate) fn finish(self) -> Vec<Vec<f32>> {
        self.buffers
    }
}

/// One or two numbers in half precision as the bits of a word, the first in the lower half.
fn halves(pair: &[f32]) -> f32 {
    let bits = |x: &f32| u32::from(f16::from_f32(*x).to_bits());
    let (low, high) = (pair.first().map_or(0, bits), pair.get(1).map_or(0, bits));
    f32::from_bits(high << 16 | low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use neural_forecast_runtime::MemoryWeights;
    use neural_forecast_runtime::plan::Context;

    #[test]
    fn pairs_are_words() {
        assert_eq!(halves(&[1.0, -2.0]).to_bits(), 0xc000_3c00);
        assert_eq!(halves(&[0.5]).to_bits(), 0x3800);
    }

    #[test]
    fn what_no_binding_holds_is_refused_with_its_bytes() {
        let plan = Plan {
            name: "none".into(),
            weights: Vec::new(),
            states: Vec::new(),
            context: Context::Fixed(1),
            entries: Vec::new(),
        };
        let source = MemoryWeights::new();
        let limits =
            wgpu::Limits { max_storage_buffer_binding_size: 64, ..wgpu::Limits::defaults() };
        let mut packer = Packer::new(&limits, &plan, &source, Precision::F32);
        let first = packer.pack("a", &[&[1.0; 9], &[2.0; 3]]).expect("it fits");
        assert_eq!((first.buffer, first.places), (0, vec![0, 12]));
        let second = packer.pack("b", &[&[1.0]]).expect("it fits into another");
        assert_eq!((second.buffer, second.places), (1, vec![0]));
        let error = packer.pack("op `linear` (head)", &[&[0.0; 17]]).expect_err("it is too large");
        assert_eq!(error.kind(), DeviceErrorKind::OutOfMemory);
        for part in ["op `linear` (head)", "80 bytes", "64 at"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
