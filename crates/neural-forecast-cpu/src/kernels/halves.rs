//! Which values of an entry are kept as bf16 between steps: those that one product or attention
//! writes, and that only products and attentions read which round them anyway. They take half of
//! the memory, and their numbers are rounded once, not by each reader.
//!
//! Decided when a plan is loaded, from its steps and the tier alone: so bits depend neither on the
//! batch nor on the number of workers.

use super::{Kernel, Loaded};
use crate::gemm::Packed;
use crate::memory::Numbers;
use neural_forecast_runtime::ops::{LinearAxis, Op};
use neural_forecast_runtime::plan::{Entry, ValueId};

/// Marks the values of `entry` that its steps keep as bf16.
pub(crate) fn keep_halves(entry: &Entry, steps: &mut [Loaded]) {
    for i in 0..steps.len() {
        let Some(value) = steps[i].gives_halves() else { continue };
        if entry.outputs.iter().any(|output| output.value == value) {
            continue;
        }
        let reads = |step: &&mut Loaded| step.step.op.reads().contains(&value);
        let mut readers: Vec<_> = steps.iter_mut().filter(reads).collect();
        if readers.is_empty() || !readers.iter().all(|step| step.takes_halves(value)) {
            continue;
        }
        readers.iter_mut().for_each(|step| step.halves.push(value));
        steps[i].halves.push(value);
    }
}

impl Loaded {
    /// How the step reads or writes a value.
    pub(super) fn numbers(&self, value: ValueId) -> Numbers {
        if self.halves.contains(&value) { Numbers::Halves } else { Numbers::Floats }
    }

    /// The weights of a product over features, if that is what the step is.
    fn product(&self) -> Option<&Packed> {
        match (&self.step.op, &self.kernel) {
            (Op::Linear(op), Kernel::Linear { packed, .. }) if op.axis != LinearAxis::Time => {
                let [packed] = packed.as_slice() else { return None };
                Some(packed)
            }
            _ => None,
        }
    }

    /// Its output, if it can write bf16.
    fn gives_halves(&self) -> Option<ValueId> {
        let gives = match &self.kernel {
            Kernel::Attention(kernel) => !kernel.mean_heads,
            _ => self.product().is_some_and(Packed::gives_halves),
        };
        gives.then(|| self.out(0))
    }

    /// Whether `value` may be bf16 wherever the step reads it.
    fn takes_halves(&self, value: ValueId) -> bool {
        match (&self.step.op, &self.kernel) {
            (Op::Linear(op), _) => {
                let takes = self.product().is_some_and(Packed::takes_halves);
                takes && op.x == value && op.prologue.is_none() && op.residual != Some(value)
            }
            (Op::Attention(op), Kernel::Attention(kernel)) => {
                let others = [op.key_mask, op.groups];
                kernel.takes_halves() && op.ring.is_none() && !others.contains(&Some(value))
            }
            _ => false,
        }
    }
}
