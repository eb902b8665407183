//! The reference: every entry of every plan, computed naively in `f64`.
//!
//! The oracle of conformance tests and of `verify`. Each op's mathematics lives beside its
//! parameters in [`crate::ops`]; here they are run in order. Nothing is rounded between ops and no
//! code is shared with a backend. Not meant to be fast, beyond what keeps a check of a thousand
//! windows in minutes: products of vectors sum in several lanes.

mod device;
mod store;
mod tensor;

pub use device::ReferenceDevice;
pub(crate) use store::{Buffers, Flight, Loaded};
pub use tensor::Tensor;
pub(crate) use tensor::dot;

use crate::device::{WeightSource, check_weights, weight_f32};
use crate::error::{DeviceError, PlanError};
use crate::plan::{Bucket, DType, Dim, Entry, EntryKind, Plan, StateId, ValueId, WeightId, sizes};

/// What a reference implementation may look at while it runs.
pub(crate) struct ReferenceContext<'a> {
    entry: &'a Entry,
    bucket: Bucket,
    weights: &'a [Tensor],
    values: Vec<Option<Tensor>>,
    /// Before the run, `[B, …]` each.
    states: &'a [Tensor],
    /// After the run, where an op wrote them.
    written: Vec<Option<Tensor>>,
}

impl ReferenceContext<'_> {
    /// A value that an earlier step wrote.
    pub(crate) fn value(&self, id: ValueId) -> &Tensor {
        let value = self.values[id.index()].as_ref();
        value.expect("steps of a plan read what earlier steps wrote")
    }

    /// A weight.
    pub(crate) fn weight(&self, id: WeightId) -> &Tensor {
        &self.weights[id.index()]
    }

    /// The elements of a weight, if there is one.
    pub(crate) fn optional(&self, id: Option<WeightId>) -> Option<&[f64]> {
        id.map(|id| self.weight(id).data.as_slice())
    }

    /// A state as it was before the run, `[B, …]`.
    pub(crate) fn state(&self, id: StateId) -> &Tensor {
        &self.states[id.index()]
    }

    /// Sets what a state will be after the run. Ops of the same run still read the old one.
    pub(crate) fn set_state(&mut self, id: StateId, state: Tensor) {
        self.written[id.index()] = Some(state);
    }

    /// The bucket of the run; its batch is the number of rows.
    pub(crate) fn bucket(&self) -> Bucket {
        self.bucket
    }

    /// The numbers of a dimension.
    pub(crate) fn at(&self, dim: Dim) -> usize {
        dim.at(self.bucket)
    }
}

/// All weights of a plan, in its order, as `f64` (of their f32 values: a device never sees more).
pub fn load_weights(plan: &Plan, source: &dyn WeightSource) -> Result<Vec<Tensor>, DeviceError> {
    check_weights(plan, source)?;
    let ids = (0..plan.weights.len()).map(|i| WeightId(i as u32));
    ids.map(|id| {
        let elements = weight_f32(plan, id, source)?;
        Ok(Tensor::from_f32(plan.weight(id).shape.as_slice(), &elements))
    })
    .collect()
}

/// States of `rows` fresh sequences: one tensor `[rows, …]` of zeros per state of the plan.
pub fn zero_states(plan: &Plan, rows: usize) -> Vec<Tensor> {
    let shape = |inner: &[usize]| [&[rows], inner].concat();
    plan.states.iter().map(|state| Tensor::zeros(shape(&state.shape))).collect()
}

/// Runs one entry. `bucket.batch` is the number of rows that run (no row is padding), `inputs` are
/// named as the entry names them, `states` holds one tensor `[B, …]` per state of the plan
/// ([`zero_states`]) and is updated when the run has succeeded. Gives the outputs in the entry's
/// order.
///
/// # Errors
/// `Weights` where a weight is missing or misshapen; `Compile` where the plan has no such entry, an
/// input is missing or misshapen, or the entry does not fit into the bucket.
pub fn run_entry(
    plan: &Plan,
    entry: EntryKind,
    bucket: Bucket,
    weights: &dyn WeightSource,
    inputs: &[(&str, Tensor)],
    states: &mut Vec<Tensor>,
) -> Result<Vec<(String, Tensor)>, DeviceError> {
    let weights = load_weights(plan, weights)?;
    run_loaded(plan, entry, bucket, &weights, inputs, states)
}

/// As [`run_entry`], with weights from [`load_weights`].
pub fn run_loaded(
    plan: &Plan,
    entry: EntryKind,
    bucket: Bucket,
    weights: &[Tensor],
    inputs: &[(&str, Tensor)],
    states: &mut Vec<Tensor>,
) -> Result<Vec<(String, Tensor)>, DeviceError> {
    run_watched(plan, entry, bucket, weights, inputs, states, &mut |_| Ok(()))
}

/// As [`run_loaded`]; `watch` is called with the number of each step before it runs, and once with
/// the number of steps before states are committed. Its error ends the run, states untouched.
pub(crate) fn run_watched(
    plan: &Plan,
    entry: EntryKind,
    bucket: Bucket,
    weights: &[Tensor],
    inputs: &[(&str, Tensor)],
    states: &mut Vec<Tensor>,
    watch: &mut dyn FnMut(usize) -> Result<(), DeviceError>,
) -> Result<Vec<(String, Tensor)>, DeviceError> {
    let place = format!("plan `{}`", plan.name);
    let missing = || PlanError::new(&place, format!("has no entry `{}`", entry.name()));
    let entry = plan.entry(entry).ok_or_else(missing)?;
    check_states(plan, bucket, states)?;
    entry.check_bucket(bucket)?;
    let mut context = ReferenceContext {
        entry,
        bucket,
        weights,
        values: vec![None; entry.values.len()],
        states,
        written: vec![None; plan.states.len()],
    };
    bind_inputs(&mut context, &place, inputs)?;
    for (i, step) in entry.steps.iter().enumerate() {
        watch(i)?;
        let outputs = step.op.reference(&mut context);
        assert_eq!(outputs.len(), step.outputs.len(), "values written by {}", step.label);
        for (&id, output) in step.outputs.iter().zip(outputs) {
            let declared = sizes(&entry.value(id).shape, bucket);
            assert_eq!(output.shape, declared, "shape rule and reference of {}", step.label);
            context.values[id.index()] = Some(output);
        }
    }
    watch(entry.steps.len())?;
    let outputs = entry.outputs.iter();
    let outputs = outputs.map(|o| (o.name.clone(), context.value(o.value).clone())).collect();
    let written = context.written;
    for (state, written) in states.iter_mut().zip(written) {
        if let Some(written) = written {
            *state = written;
        }
    }
    Ok(outputs)
}

fn check_states(plan: &Plan, bucket: Bucket, states: &[Tensor]) -> Result<(), PlanError> {
    let place = || format!("plan `{}`", plan.name);
    if states.len() != plan.states.len() {
        let (found, expected) = (states.len(), plan.states.len());
        return Err(PlanError::new(place(), format!("{found} states, expected {expected}")));
    }
    for (state, declared) in states.iter().zip(&plan.states) {
        let expected = [&[bucket.batch], declared.shape.as_slice()].concat();
        if state.shape != expected {
            return Err(PlanError::new(
                place(),
                format!(
                    "state `{}` has shape {:?}, expected {expected:?}",
                    declared.name, state.shape
                ),
            ));
        }
    }
    Ok(())
}

fn bind_inputs(
    context: &mut ReferenceContext<'_>,
    place: &str,
    inputs: &[(&str, Tensor)],
) -> Result<(), PlanError> {
    for input in &context.entry.inputs {
        let declared = context.entry.value(input.value);
        let expected = sizes(&declared.shape, context.bucket);
        let name = &input.name;
        let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == name) else {
            return Err(PlanError::new(
                place,
                format!("input `{name}` of shape {expected:?} is missing"),
            ));
        };
        if tensor.shape != expected {
            return Err(PlanError::new(
                place,
                format!("input `{name}` has shape {:?}, expected {expected:?}", tensor.shape),
            ));
        }
        if declared.dtype == DType::I32 && tensor.data.iter().any(|x| x.fract() != 0.0) {
            return Err(PlanError::new(place, format!("input `{name}` must hold whole numbers")));
        }
        context.values[input.value.index()] = Some(tensor.clone());
    }
    if let Some((name, _)) = inputs.iter().find(|(n, _)| context.entry.input(n).is_none()) {
        return Err(PlanError::new(place, format!("has no input `{name}`")));
    }
    Ok(())
}
