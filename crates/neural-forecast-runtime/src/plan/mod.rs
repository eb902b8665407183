//! Plans: what a forecaster computes, as a short list of model-level ops over named values.
//!
//! A plan is data. It knows no model, file or device: a model builds one with [`PlanBuilder`], the
//! shape rule of every op checks it while it is built, and a device compiles one of its entries for
//! a [`Bucket`] into a program. The batch `B` and the context length `L` are the only free
//! dimensions.

mod builder;
mod dim;

pub use builder::PlanBuilder;
pub use dim::{Bucket, Dim, LengthDim, elements, sizes};

use crate::ops::Op;

/// Most elements of a value or weight: 4 TiB of f32, so that byte counts and sums of them cannot
/// overflow.
pub const ELEMENTS_MAX: usize = 1 << 40;

/// A value of an entry: an input, or the result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

/// A weight of the plan, shared by all entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub(crate) u32);

/// A state slot declaration of the plan, shared by all entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId(pub(crate) u32);

impl ValueId {
    /// Position in [`Entry::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl WeightId {
    /// Position in [`Plan::weights`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl StateId {
    /// Position in [`Plan::states`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element type of a value. Masks are `F32` of 0 and 1, because WebGPU storage has no narrower
/// type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float. Devices may keep intermediate values narrower where the precision says so.
    F32,
    /// 32-bit signed integer: indices, group ids, lengths.
    I32,
}

/// A value's declaration.
#[derive(Clone, Debug)]
pub struct Value {
    /// For messages and memory lines.
    pub name: String,
    /// Row-major shape, the slowest axis first.
    pub shape: Vec<Dim>,
    /// Element type.
    pub dtype: DType,
}

/// A weight's declaration: the name under which the model's files hold it, and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Name in the weight source; for a weight made of several, a name for messages.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Empty for a weight that the source holds under `name`; else the weights of the source that
    /// are concatenated along the first axis (the fusion pass makes Q, K and V one product so).
    pub parts: Vec<String>,
}

impl Weight {
    /// Number of elements; `usize::MAX` where it is more than that.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |count: usize, &n| count.saturating_mul(n))
    }
}

/// What a state slot holds. Typed, so that an exported state can be checked before it is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Hidden state `h` of a recurrence, `[layers · directions, width]`.
    Hidden,
    /// Cell state `c`, `[layers · directions, width]`.
    Cell,
    /// Normaliser state `n` of an sLSTM.
    Normalizer,
    /// Stabiliser state `m` of an sLSTM.
    Stabilizer,
    /// Keys of a sliding window, `[capacity, width]`, written round-robin.
    KeyRing,
    /// Values of a sliding window, `[capacity, width]`, written round-robin.
    ValueRing,
    /// Rows ever written to a ring, `[1]`.
    RingPosition,
    /// Count, mean and sum of squared deviations of a scaler, `[3, channels]`.
    ScalerStatistics,
}

/// A state slot's declaration: the shape that one sequence occupies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// For messages and exports.
    pub name: String,
    /// What it holds.
    pub kind: StateKind,
    /// Shape for one sequence; a store holds it once per slot. Always `F32`, zero when reset.
    pub shape: Vec<usize>,
}

/// Which computation of the one weight set an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    /// A whole context in, a forecast out; touches no state.
    Full,
    /// A whole context in, the first output and the sequence's states out.
    Prefill,
    /// One more row of an autoregressive roll-out or of a stream; reads and writes states.
    Step,
    /// Off the clock, before a row arrives: everything that does not need the row.
    Prepare,
    /// On the clock, when the row is there: the rest.
    Infer,
}

impl EntryKind {
    /// The name in messages and tables.
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::Full => "full",
            EntryKind::Prefill => "prefill",
            EntryKind::Step => "step",
            EntryKind::Prepare => "prepare",
            EntryKind::Infer => "infer",
        }
    }
}

/// A named input of an entry.
#[derive(Clone, Debug)]
pub struct Input {
    /// Name in the contract between model and forecaster, for example `y`.
    pub name: String,
    /// The value that holds it.
    pub value: ValueId,
}

/// A named output of an entry.
#[derive(Clone, Debug)]
pub struct Output {
    /// Name, for example `forecast`.
    pub name: String,
    /// The value that holds it.
    pub value: ValueId,
    /// What each channel of the last axis means; empty where the axis is not channels.
    pub channels: Vec<Channel>,
}

/// The meaning of one output channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Channel {
    /// A point forecast or mean.
    Point,
    /// The quantile of this level, in (0, 1).
    Quantile(f64),
    /// A distribution's parameter, in the order the model documents.
    Parameter(&'static str),
}

/// One op of an entry with the values it writes.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it comes from in the model, for messages and profiles.
    pub label: String,
    /// What to compute and from what.
    pub op: Op,
    /// The values it writes, in the order that the op documents.
    pub outputs: Vec<ValueId>,
}

/// One entry point: inputs, steps in execution order, outputs.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which entry point.
    pub kind: EntryKind,
    /// All values, indexed by [`ValueId`].
    pub values: Vec<Value>,
    /// Named inputs.
    pub inputs: Vec<Input>,
    /// Steps; each reads only inputs and outputs of earlier steps.
    pub steps: Vec<Step>,
    /// Named outputs.
    pub outputs: Vec<Output>,
}

impl Entry {
    /// A value's declaration.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// The same entry without steps whose results nobody wants: no output depends on them and they
    /// write no state.
    pub(crate) fn without_unused_steps(&self) -> Entry {
        let mut wanted: Vec<ValueId> = self.outputs.iter().map(|output| output.value).collect();
        let mut steps = Vec::new();
        for step in self.steps.iter().rev() {
            let read = step.outputs.iter().any(|value| wanted.contains(value));
            if read || !step.op.states().is_empty() {
                wanted.extend(step.op.reads());
                steps.push(step.clone());
            }
        }
        steps.reverse();
        Entry { steps, ..self.clone() }.without_unused_values()
    }

    /// The same entry without values that nothing writes: what rewriting leaves behind would take
    /// room in the arena.
    pub(crate) fn without_unused_values(&self) -> Entry {
        let mut renamed: Vec<Option<ValueId>> = vec![None; self.values.len()];
        let written = self.inputs.iter().map(|input| input.value);
        let written = written.chain(self.steps.iter().flat_map(|s| s.outputs.iter().copied()));
        let mut values = Vec::new();
        for value in written {
            renamed[value.index()] = Some(ValueId(values.len() as u32));
            values.push(self.value(value).clone());
        }
        let new_id = |old: ValueId| {
            renamed[old.index()].expect("what an entry reads is an input or written by a step")
        };
        let mut entry = Entry { values, ..self.clone() };
        entry.inputs.iter_mut().for_each(|input| input.value = new_id(input.value));
        entry.outputs.iter_mut().for_each(|output| output.value = new_id(output.value));
        for step in &mut entry.steps {
            step.op.visit_values(&mut |id| *id = new_id(*id));
            step.outputs.iter_mut().for_each(|id| *id = new_id(*id));
        }
        entry
    }

    /// Whether any step reads or writes states.
    pub fn uses_states(&self) -> bool {
        self.steps.iter().any(|step| !step.op.states().is_empty())
    }

    /// Whether every step makes sense in a bucket: shape rules hold for any bucket, but whether a
    /// slice, a patch or the kept positions fit into the context length shows only here.
    ///
    /// # Errors
    /// The first step that does not fit, with what it needs and what the bucket gives it.
    pub fn check_bucket(&self, bucket: Bucket) -> Result<(), crate::PlanError> {
        for value in &self.values {
            let elements = elements(&value.shape, bucket);
            if elements > ELEMENTS_MAX {
                let place = format!("value `{}` in {bucket:?}", value.name);
                let message =
                    format!("has {elements} elements, at most {ELEMENTS_MAX} are possible");
                return Err(crate::PlanError::new(place, message));
            }
        }
        for step in &self.steps {
            if let Some(message) = step.op.misfit(self, bucket) {
                let place = format!("op `{}` ({}) in {bucket:?}", step.op.name(), step.label);
                return Err(crate::PlanError::new(place, message));
            }
        }
        Ok(())
    }

    /// The output of this name.
    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

/// Which context lengths a plan takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// Exactly this many steps.
    Fixed(usize),
    /// Any length up to `max`, compiled in buckets that are multiples of `multiple`.
    Free {
        /// Longest context in steps.
        max: usize,
        /// Bucket granularity, the patch length for patched models.
        multiple: usize,
    },
}

impl Context {
    /// The longest context in steps.
    pub fn longest(self) -> usize {
        match self {
            Context::Fixed(length) => length,
            Context::Free { max, .. } => max,
        }
    }
}

/// One weight set with its entry points.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The architecture's name, for messages.
    pub name: String,
    /// Weights of all entries.
    pub weights: Vec<Weight>,
    /// States of all entries.
    pub states: Vec<State>,
    /// Which context lengths it takes.
    pub context: Context,
    /// Entry points, at most one of a kind.
    pub entries: Vec<Entry>,
}

impl Plan {
    /// The entry of this kind.
    pub fn entry(&self, kind: EntryKind) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.kind == kind)
    }

    /// A weight's declaration.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.index()]
    }

    /// A state's declaration.
    pub fn state(&self, id: StateId) -> &State {
        &self.states[id.index()]
    }

    /// The same plan without weights that no step reads; fusion leaves some behind.
    pub(crate) fn without_unused_weights(&self) -> Plan {
        let steps = self.entries.iter().flat_map(|entry| &entry.steps);
        let mut used: Vec<WeightId> = steps.flat_map(|step| step.op.weights()).collect();
        used.sort_unstable();
        used.dedup();
        let weights = used.iter().map(|&id| self.weight(id).clone()).collect();
        let mut plan = Plan { weights, ..self.clone() };
        for step in plan.entries.iter_mut().flat_map(|entry| &mut entry.steps) {
            step.op.visit_weights(&mut |id| {
                let position = used.binary_search(id);
                *id = WeightId(position.expect("the used weights are listed") as u32);
            });
        }
        plan
    }

    /// Number of trained parameters.
    pub fn parameters(&self) -> usize {
        self.weights.iter().map(Weight::elements).fold(0, usize::saturating_add)
    }

    /// The smallest length bucket that holds a context of `length` steps; `None` if it is too long.
    /// Free lengths round up to `multiple · 2^k`, so that few programs serve all lengths.
    pub fn length_bucket(&self, length: usize) -> Option<usize> {
        match self.context {
            Context::Fixed(n) => (length <= n).then_some(n),
            Context::Free { max, multiple } => {
                if length > max {
                    return None;
                }
                let multiple = multiple.max(1);
                let largest = max.checked_next_multiple_of(multiple)?;
                let mut bucket = multiple;
                while bucket < length {
                    bucket = bucket.saturating_mul(2);
                }
                Some(bucket.min(largest))
            }
        }
    }

    /// The smallest batch bucket for `rows`: powers of two up to `largest`, then `largest` itself.
    pub fn batch_bucket(rows: usize, largest: usize) -> usize {
        let largest = largest.max(1);
        let power = rows.clamp(1, largest).checked_next_power_of_two();
        power.map_or(largest, |power| power.min(largest))
    }
}
