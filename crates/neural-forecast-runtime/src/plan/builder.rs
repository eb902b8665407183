//! Builds plans step by step; every step passes its op's shape rule before it is taken.
//!
//! Does not optimise: fusion and lowering rewrite finished plans.

use std::collections::HashMap;

use super::{
    Channel, Context, DType, Dim, ELEMENTS_MAX, Entry, EntryKind, Input, Output, Plan, State,
    StateId, StateKind, Step, Value, ValueId, Weight, WeightId,
};
use crate::error::PlanError;
use crate::ops::{Op, ShapeContext};

/// Collects weights, states and entries. Start an entry with [`PlanBuilder::begin`], add inputs,
/// steps and outputs, end it with the next `begin` or with [`PlanBuilder::finish`].
#[derive(Debug)]
pub struct PlanBuilder {
    plan: Plan,
    /// Weights of each name, so that declaring one does not search all.
    declared: HashMap<String, Vec<WeightId>>,
    open: Option<Entry>,
    scope: String,
}

impl PlanBuilder {
    /// An empty plan of an architecture.
    pub fn new(name: impl Into<String>, context: Context) -> Self {
        PlanBuilder {
            plan: Plan {
                name: name.into(),
                weights: Vec::new(),
                states: Vec::new(),
                context,
                entries: Vec::new(),
            },
            declared: HashMap::new(),
            open: None,
            scope: String::new(),
        }
    }

    /// Declares a weight; the same name with the same shape gives the same id.
    pub fn weight(&mut self, name: impl Into<String>, shape: &[usize]) -> WeightId {
        let name = name.into();
        let declared = self.declared.entry(name.clone()).or_default();
        let same = declared.iter().find(|id| self.plan.weights[id.index()].shape == shape);
        if let Some(id) = same {
            return *id;
        }
        let id = WeightId(self.plan.weights.len() as u32);
        declared.push(id);
        self.plan.weights.push(Weight { name, shape: shape.to_vec(), parts: Vec::new() });
        id
    }

    /// Declares a state slot.
    pub fn state(&mut self, name: impl Into<String>, kind: StateKind, shape: &[usize]) -> StateId {
        self.plan.states.push(State { name: name.into(), kind, shape: shape.to_vec() });
        StateId(self.plan.states.len() as u32 - 1)
    }

    /// Opens an entry; ends the one that is open.
    pub fn begin(&mut self, kind: EntryKind) {
        self.end();
        self.open = Some(Entry {
            kind,
            values: Vec::new(),
            inputs: Vec::new(),
            steps: Vec::new(),
            outputs: Vec::new(),
        });
    }

    /// Sets the prefix of the labels of the steps that follow, for messages and profiles.
    pub fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// A named input of the open entry.
    pub fn input(&mut self, name: impl Into<String>, dtype: DType, shape: &[Dim]) -> ValueId {
        let name = name.into();
        let value = self.value(name.clone(), dtype, shape.to_vec());
        self.entry().inputs.push(Input { name, value });
        value
    }

    /// Adds a step; returns the values it writes.
    pub fn step(&mut self, op: impl Into<Op>) -> Result<Vec<ValueId>, PlanError> {
        let op = op.into();
        let number = self.entry().steps.len();
        let label = if self.scope.is_empty() {
            format!("{}.{number}", op.name())
        } else {
            format!("{}.{}.{number}", self.scope, op.name())
        };
        let entry = self.open.as_ref().expect("`begin` opens an entry before its steps");
        for read in op.reads() {
            if read.index() >= entry.values.len() {
                return Err(PlanError::new(&label, format!("reads unknown value {read:?}")));
            }
        }
        let context = ShapeContext {
            plan: &self.plan,
            entry,
            place: format!("op `{}` ({label})", op.name()),
        };
        let shapes = op.shape(&context)?;
        let outputs = shapes
            .into_iter()
            .enumerate()
            .map(|(i, (dtype, shape))| self.value(format!("{label}#{i}"), dtype, shape))
            .collect::<Vec<_>>();
        self.entry().steps.push(Step { label, op, outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Adds a step that writes one value.
    pub fn one(&mut self, op: impl Into<Op>) -> Result<ValueId, PlanError> {
        let outputs = self.step(op)?;
        outputs.first().copied().ok_or_else(|| PlanError::new("plan", "the op writes no value"))
    }

    /// Names an output of the open entry.
    pub fn output(&mut self, name: impl Into<String>, value: ValueId, channels: Vec<Channel>) {
        self.entry().outputs.push(Output { name: name.into(), value, channels });
    }

    /// The shape of a value of the open entry.
    pub fn shape_of(&self, value: ValueId) -> &[Dim] {
        let entry = self.open.as_ref().expect("`begin` opens an entry before its values");
        &entry.value(value).shape
    }

    /// Ends the open entry and returns the plan.
    pub fn finish(mut self) -> Result<Plan, PlanError> {
        self.end();
        let place = || format!("plan `{}`", self.plan.name);
        let too_many = |what: &str, name: &str, shape: &dyn std::fmt::Debug| {
            let message = format!("{what} `{name}` of shape {shape:?} is too large");
            Err(PlanError::new(place(), message))
        };
        for weight in &self.plan.weights {
            if weight.elements() > ELEMENTS_MAX {
                return too_many("weight", &weight.name, &weight.shape);
            }
        }
        for state in &self.plan.states {
            let elements = state.shape.iter().fold(1, |count: usize, &n| count.saturating_mul(n));
            if elements > ELEMENTS_MAX {
                return too_many("state", &state.name, &state.shape);
            }
        }
        for (i, entry) in self.plan.entries.iter().enumerate() {
            if self.plan.entries[..i].iter().any(|e| e.kind == entry.kind) {
                let place = format!("plan `{}`", self.plan.name);
                return Err(PlanError::new(place, format!("two `{}` entries", entry.kind.name())));
            }
            let inputs = entry.inputs.iter().map(|input| ("inputs", &input.name));
            let outputs = entry.outputs.iter().map(|output| ("outputs", &output.name));
            let mut seen = Vec::new();
            for named in inputs.chain(outputs) {
                if seen.contains(&named) {
                    let place = format!("plan `{}`, entry `{}`", self.plan.name, entry.kind.name());
                    let (what, name) = named;
                    return Err(PlanError::new(place, format!("two {what} named `{name}`")));
                }
                seen.push(named);
            }
        }
        Ok(self.plan)
    }

    fn end(&mut self) {
        self.scope.clear();
        if let Some(entry) = self.open.take() {
            self.plan.entries.push(entry);
        }
    }

    fn value(&mut self, name: String, dtype: DType, shape: Vec<Dim>) -> ValueId {
        let entry = self.entry();
        entry.values.push(Value { name, shape, dtype });
        ValueId(entry.values.len() as u32 - 1)
    }

    fn entry(&mut self) -> &mut Entry {
        self.open.as_mut().expect("`begin` opens an entry before its values")
    }
}
