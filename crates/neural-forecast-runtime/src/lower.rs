//! Lowering: rewriting ops that a device has no kernel for into smaller ones.
//!
//! Stacks become norms, products, attention and sums; stacked recurrences become one recurrence a
//! layer; products with an epilogue become plain products and elementwise ops. The result computes
//! the same numbers up to rounding. Does not fuse: that is [`fuse`](mod@crate::fuse), usually run
//! after.
//!
//! What is not lowered: a recurrence whose states live in slots (a slot holds all its layers), and
//! a bidirectional layer (there is no op that turns time around).

use crate::error::PlanError;
use crate::ops::{
    Activation, Attention, AttentionBias, AttentionLayer, Binary, BinaryKind, Columns, Concat,
    FeedForward, Gate, Initial, Keep, Linear, NormPlacement, Op, Product, RnnStack, ShapeContext,
    Slice, Stack, SublayerKind, Unary,
};
use crate::plan::{Dim, Entry, Plan, Step, Value, ValueId};

/// Rewrites every op that `supports` refuses and that has a lowering, in all entries. Ops without a
/// lowering stay, supported or not. Weights, states, inputs and outputs are those of `plan`; labels
/// begin with the label of the step that they come from.
///
/// # Errors
/// Where a lowered step breaks a shape rule, which the shape rule of the op it comes from should
/// have refused.
pub fn lower(plan: &Plan, supports: &dyn Fn(&Op) -> bool) -> Result<Plan, PlanError> {
    let mut lowered = Plan { entries: Vec::new(), ..plan.clone() };
    for entry in &plan.entries {
        let entry = Writer::rewrite(plan, entry, supports)?;
        lowered.entries.push(entry);
    }
    Ok(lowered)
}

/// Whether an op is a stack: what [`crate::device::LoadOptions::lower`] lowers in any case.
pub fn is_stack(op: &Op) -> bool {
    match op {
        Op::EncoderStack(_) | Op::DecoderStack(_) => true,
        Op::RnnStack(op) => op.layers.len() > 1,
        _ => false,
    }
}

/// Whether a product does more than multiply and add a bias.
pub fn has_epilogue(linear: &Linear) -> bool {
    linear.prologue.is_some()
        || linear.activation != Activation::Identity
        || linear.gate.is_some()
        || linear.residual.is_some()
}

/// Writes the lowered entry while the old one is walked.
struct Writer<'a> {
    plan: &'a Plan,
    supports: &'a dyn Fn(&Op) -> bool,
    entry: Entry,
    /// The new value of each old one.
    renamed: Vec<Option<ValueId>>,
    /// Label of the step being lowered.
    scope: String,
}

impl<'a> Writer<'a> {
    fn rewrite(
        plan: &'a Plan,
        entry: &Entry,
        supports: &'a dyn Fn(&Op) -> bool,
    ) -> Result<Entry, PlanError> {
        let fresh = Entry {
            kind: entry.kind,
            values: Vec::new(),
            inputs: Vec::new(),
            steps: Vec::new(),
            outputs: Vec::new(),
        };
        let renamed = vec![None; entry.values.len()];
        let mut writer = Writer { plan, supports, entry: fresh, renamed, scope: String::new() };
        for input in &entry.inputs {
            let value = writer.value(entry.value(input.value).clone());
            writer.renamed[input.value.index()] = Some(value);
            writer.entry.inputs.push(crate::plan::Input { name: input.name.clone(), value });
        }
        for step in &entry.steps {
            let mut op = step.op.clone();
            op.visit_values(&mut |id| *id = writer.new_id(*id));
            writer.scope.clone_from(&step.label);
            let outputs = writer.lowered(op)?;
            for (old, new) in step.outputs.iter().zip(outputs) {
                writer.renamed[old.index()] = Some(new);
                writer.entry.values[new.index()].name.clone_from(&entry.value(*old).name);
            }
        }
        for output in &entry.outputs {
            let value = writer.new_id(output.value);
            writer.entry.outputs.push(crate::plan::Output { value, ..output.clone() });
        }
        Ok(writer.entry)
    }

    fn new_id(&self, old: ValueId) -> ValueId {
        self.renamed[old.index()].expect("steps of a plan read what earlier steps wrote")
    }

    fn value(&mut self, value: Value) -> ValueId {
        self.entry.values.push(value);
        ValueId(self.entry.values.len() as u32 - 1)
    }

    /// The op itself where it is supported or has no lowering, else its lowering.
    fn lowered(&mut self, op: Op) -> Result<Vec<ValueId>, PlanError> {
        if (self.supports)(&op) {
            return self.push("", op);
        }
        match op {
            Op::EncoderStack(stack) | Op::DecoderStack(stack) => Ok(vec![self.stack(&stack)?]),
            Op::RnnStack(stack) if stack.layers.len() > 1 && stack.states.is_none() => {
                self.rnn_stack(&stack)
            }
            Op::Linear(linear) if has_epilogue(&linear) => Ok(vec![self.linear(&linear)?]),
            other => self.push("", other),
        }
    }

    /// Adds a step, lowered in turn where it must be. `part` is appended to the label.
    fn step(&mut self, part: &str, op: impl Into<Op>) -> Result<ValueId, PlanError> {
        let scope = self.scope.clone();
        self.scope = format!("{scope}.{part}");
        let outputs = self.lowered(op.into());
        self.scope = scope;
        outputs?.first().copied().ok_or_else(|| PlanError::new(part, "the op writes no value"))
    }

    /// Adds a step as it is.
    fn push(&mut self, part: &str, op: Op) -> Result<Vec<ValueId>, PlanError> {
        let label =
            if part.is_empty() { self.scope.clone() } else { format!("{}.{part}", self.scope) };
        let place = format!("op `{}` ({label})", op.name());
        let shapes = op.shape(&ShapeContext { plan: self.plan, entry: &self.entry, place })?;
        let mut outputs = Vec::new();
        for (i, (dtype, shape)) in shapes.into_iter().enumerate() {
            outputs.push(self.value(Value { name: format!("{label}#{i}"), shape, dtype }));
        }
        self.entry.steps.push(Step { label, op, outputs: outputs.clone() });
        Ok(outputs)
    }

    fn shape(&self, value: ValueId) -> &[Dim] {
        &self.entry.value(value).shape
    }

    /// Norm, products, activation, gate and residual, each as an op of its own.
    fn linear(&mut self, linear: &Linear) -> Result<ValueId, PlanError> {
        let mut x = linear.x;
        if let Some(norm) = &linear.prologue {
            let mut norm = norm.clone();
            norm.x = x;
            x = self.step("norm", norm)?;
        }
        let plain = |weight, bias| Linear::new(x, weight).bias(bias).along(linear.axis);
        let mut y = self.step("product", plain(linear.weight, linear.bias))?;
        y = self.activated("activation", y, linear.activation)?;
        if let Some(Gate { weight, bias, activation }) = linear.gate {
            let gate = self.step("gate", plain(weight, bias))?;
            let gate = self.activated("gate.activation", gate, activation)?;
            y = self.step("gated", Binary::values(y, BinaryKind::Multiply, gate))?;
        }
        if let Some(residual) = linear.residual {
            y = self.step("residual", Binary::values(y, BinaryKind::Add, residual))?;
        }
        Ok(y)
    }

    fn activated(&mut self, part: &str, x: ValueId, f: Activation) -> Result<ValueId, PlanError> {
        match f {
            Activation::Identity => Ok(x),
            f => self.step(part, Unary::activation(x, f)),
        }
    }

    /// One recurrence a layer. Only for stacks without state slots.
    fn rnn_stack(&mut self, stack: &RnnStack) -> Result<Vec<ValueId>, PlanError> {
        let directions = stack.directions();
        let mut x = stack.x;
        let mut finals: Vec<Vec<ValueId>> = Vec::new();
        for (l, layer) in stack.layers.iter().enumerate() {
            let initial = match &stack.initial {
                Initial::Values(values) => {
                    let mut slices = Vec::new();
                    for &value in values {
                        let rows = Slice::range(value, 1, l * directions, directions);
                        slices.push(self.step(&format!("layer{l}.initial"), rows)?);
                    }
                    Initial::Values(slices)
                }
                other => other.clone(),
            };
            let last = l + 1 == stack.layers.len();
            let keep = if last { stack.keep } else { Keep::All };
            let layers = vec![layer.clone()];
            let layer = RnnStack { x, layers, initial, keep, ..stack.clone() };
            let outputs = self.push(&format!("layer{l}"), Op::RnnStack(layer))?;
            x = outputs[0];
            finals.push(outputs[1..].to_vec());
        }
        let mut outputs = vec![x];
        for state in 0..finals.first().map_or(0, Vec::len) {
            let parts = finals.iter().map(|layer| layer[state]).collect();
            outputs.push(self.step("finals", Concat { parts, axis: 1 })?);
        }
        Ok(outputs)
    }

    /// A stack sublayer by sublayer. From the last self-attention on, only the positions that are
    /// kept are computed.
    fn stack(&mut self, stack: &Stack) -> Result<ValueId, PlanError> {
        let sublayers: Vec<_> = stack
            .layers
            .iter()
            .enumerate()
            .flat_map(|(l, layer)| layer.iter().map(move |sublayer| (l, sublayer)))
            .collect();
        let mut walk =
            Walk { stack, x: stack.x, mask: stack.mask, narrow: None, depth: Vec::new() };
        let kept = match stack.keep {
            Keep::Last(n) if self.shape(stack.x)[1] != Dim::Fixed(n) => Some(n),
            _ => None,
        };
        let own = |(_, sublayer): &(usize, &crate::ops::Sublayer)| {
            matches!(sublayer.kind, SublayerKind::SelfAttention(_))
        };
        let narrow_from = sublayers.iter().rposition(own).unwrap_or(0);
        if sublayers.is_empty()
            && let Some(n) = kept
        {
            walk.x = self.step("kept", Slice::last(walk.x, 1, n))?;
        }
        for (i, (l, sublayer)) in sublayers.into_iter().enumerate() {
            walk.narrow = kept.filter(|_| i == narrow_from);
            let scope = self.scope.clone();
            self.scope = format!("{scope}.layer{l}.{}", name(&sublayer.kind));
            self.sublayer(&mut walk, sublayer)?;
            self.scope = scope;
        }
        match &stack.final_norm {
            Some(norm) => self.step("final_norm", norm.op(walk.x)),
            None => Ok(walk.x),
        }
    }

    fn sublayer(
        &mut self,
        walk: &mut Walk<'_>,
        sublayer: &crate::ops::Sublayer,
    ) -> Result<(), PlanError> {
        let own = matches!(sublayer.kind, SublayerKind::SelfAttention(_));
        // Everything but self-attention works position by position: cut first.
        if let (Some(n), false) = (walk.narrow, own) {
            walk.x = self.step("kept", Slice::last(walk.x, 1, n))?;
            if let Some(mask) = walk.mask {
                walk.mask = Some(self.step("kept_mask", Slice::last(mask, 1, n))?);
            }
            walk.narrow = None;
        }
        let input = match &sublayer.norm {
            NormPlacement::Pre(norm) | NormPlacement::Sandwich { before: norm, .. } => {
                self.step("norm", norm.op(walk.x))?
            }
            NormPlacement::Post(_) | NormPlacement::None => walk.x,
        };
        let mut y = match &sublayer.kind {
            SublayerKind::SelfAttention(a) => self.self_attention(walk, a, input)?,
            SublayerKind::CrossAttention(a) => {
                let missing = || PlanError::new(&self.scope, "there is no memory");
                let memory = walk.stack.memory.ok_or_else(missing)?;
                let mut attention = self.projected(a, input, memory)?;
                attention.key_mask = walk.stack.memory_mask;
                let y = self.step("attention", attention)?;
                self.product("output", &a.output, y)?
            }
            SublayerKind::GroupAttention(a) => {
                let mut attention = self.projected(a, input, input)?;
                attention.key_mask = walk.mask;
                attention.groups = walk.stack.groups;
                let y = self.step("attention", attention)?;
                self.product("output", &a.output, y)?
            }
            SublayerKind::FeedForward(f) => self.feed_forward(f, input)?,
        };
        if let NormPlacement::Sandwich { after, .. } = &sublayer.norm {
            y = self.step("norm_after", after.op(y))?;
        }
        if let Some(n) = walk.narrow {
            walk.x = self.step("kept", Slice::last(walk.x, 1, n))?;
            if let Some(mask) = walk.mask {
                walk.mask = Some(self.step("kept_mask", Slice::last(mask, 1, n))?);
            }
        }
        walk.x = self.step("residual", Binary::values(walk.x, BinaryKind::Add, y))?;
        if let NormPlacement::Post(norm) = &sublayer.norm {
            walk.x = self.step("norm", norm.op(walk.x))?;
        }
        Ok(())
    }

    /// Self-attention of all positions, or of the last ones over all.
    fn self_attention(
        &mut self,
        walk: &mut Walk<'_>,
        a: &AttentionLayer,
        input: ValueId,
    ) -> Result<ValueId, PlanError> {
        // Queries of earlier layers, and a bias matrix, are there for all positions: then the
        // result is cut, not the query.
        let whole = walk.stack.residual_scores || matches!(a.bias, Some(AttentionBias::Weight(_)));
        let queries = match walk.narrow {
            Some(n) if !whole => self.step("kept_queries", Slice::last(input, 1, n))?,
            _ => input,
        };
        let mut attention = self.projected(a, queries, input)?;
        attention.key_mask = walk.stack.mask;
        if walk.stack.residual_scores {
            walk.depth.push((attention.queries[0], attention.keys[0], a.scale));
            attention.queries = walk.depth.iter().map(|(query, _, _)| *query).collect();
            attention.keys = walk.depth.iter().map(|(_, key, _)| *key).collect();
            attention.scales = walk.depth.iter().map(|(_, _, scale)| *scale).collect();
        }
        let mut y = self.step("attention", attention)?;
        if let (Some(n), true) = (walk.narrow, whole) {
            y = self.step("kept_attention", Slice::last(y, 1, n))?;
        }
        self.product("output", &a.output, y)
    }

    /// Attention of projected queries over projected keys and values.
    fn projected(
        &mut self,
        a: &AttentionLayer,
        queries: ValueId,
        memory: ValueId,
    ) -> Result<Attention, PlanError> {
        let width = a.heads * a.head;
        let query = Columns::all(self.product("query", &a.query, queries)?, width);
        let key = Columns::all(self.product("key", &a.key, memory)?, width);
        let values = Columns::all(self.product("value", &a.value, memory)?, width);
        Ok(Attention {
            causal: a.causal,
            bias: a.bias,
            rope: a.rope,
            qk_norm: a.qk_norm,
            per_dim_scale: a.per_dim_scale,
            ..Attention::new(query, key, values, a.heads, a.scale)
        })
    }

    fn feed_forward(&mut self, f: &FeedForward, x: ValueId) -> Result<ValueId, PlanError> {
        let up = self.product("up", &f.up, x)?;
        let inner = match &f.gate {
            None => self.activated("activation", up, f.activation)?,
            Some(gate) => {
                let gate = self.product("gate", gate, x)?;
                let gate = self.activated("activation", gate, f.activation)?;
                self.step("gated", Binary::values(up, BinaryKind::Multiply, gate))?
            }
        };
        self.product("down", &f.down, inner)
    }

    fn product(&mut self, part: &str, p: &Product, x: ValueId) -> Result<ValueId, PlanError> {
        self.step(part, Linear::new(x, p.weight).bias(p.bias))
    }
}

/// Where the lowering of a stack is.
struct Walk<'a> {
    stack: &'a Stack,
    x: ValueId,
    /// The stack's mask, cut when `x` is.
    mask: Option<ValueId>,
    /// Set in the sublayer that goes from all positions to the last ones.
    narrow: Option<usize>,
    /// Queries, keys and scales of earlier self-attention, for residual scores.
    depth: Vec<(Columns, Columns, f32)>,
}

fn name(kind: &SublayerKind) -> &'static str {
    match kind {
        SublayerKind::SelfAttention(_) => "self_attention",
        SublayerKind::CrossAttention(_) => "cross_attention",
        SublayerKind::GroupAttention(_) => "group_attention",
        SublayerKind::FeedForward(_) => "feed_forward",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{run_entry, zero_states};
    use crate::testing::{Case, Tolerance, cases};

    fn run(case: &Case, plan: &Plan) -> Vec<(String, crate::reference::Tensor)> {
        let inputs: Vec<_> = case.inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        let mut states = zero_states(plan, case.bucket.batch);
        let ran = run_entry(plan, case.entry, case.bucket, &case.weights, &inputs, &mut states);
        ran.unwrap_or_else(|error| panic!("{}: {error}", case.name))
    }

    #[test]
    fn lowered_plans_compute_what_the_ops_compute() {
        let supported = |op: &Op| match op {
            Op::Linear(linear) => !has_epilogue(linear),
            other => !is_stack(other),
        };
        let mut lowered_cases = 0;
        for case in cases() {
            let lowered = lower(&case.plan, &supported).expect("every case lowers");
            let steps = &lowered.entries[0].steps;
            let stateful = case.plan.entries[0].uses_states();
            assert!(stateful || steps.iter().all(|step| supported(&step.op)), "{}", case.name);
            lowered_cases += usize::from(steps.len() > case.plan.entries[0].steps.len());
            let close = Tolerance { absolute: 1e-9, relative: 1e-9 };
            for ((name, found), (_, expected)) in
                run(&case, &lowered).iter().zip(run(&case, &case.plan))
            {
                assert_eq!(found.shape, expected.shape, "{} {name}", case.name);
                for (found, expected) in found.data.iter().zip(&expected.data) {
                    let accepted = close.accepts(*found, *expected);
                    assert!(accepted, "{} {name}: {found}, expected {expected}", case.name);
                }
            }
        }
        assert!(lowered_cases > 100, "only {lowered_cases} cases were lowered");
    }

    #[test]
    fn only_kept_positions_are_computed() {
        let case = cases()
            .into_iter()
            .find(|case| case.name == "encoder_stack pre norm 0 width 8 Last(1)");
        let plan = case.expect("there is such a case").plan;
        let lowered = lower(&plan, &|op| !is_stack(op)).expect("it lowers");
        let entry = &lowered.entries[0];
        let step = |label: &str| {
            let step = entry.steps.iter().find(|step| step.label.ends_with(label));
            &entry.value(step.unwrap_or_else(|| panic!("no step `{label}`")).outputs[0]).shape
        };
        assert_eq!(step("layer0.feed_forward.up")[1], Dim::LENGTH);
        assert_eq!(step("layer1.self_attention.key")[1], Dim::LENGTH);
        assert_eq!(step("layer1.self_attention.query")[1], Dim::Fixed(1));
        assert_eq!(step("layer1.feed_forward.up")[1], Dim::Fixed(1));
        assert!(entry.steps.iter().all(|step| step.label.starts_with("encoder_stack.0")));
    }

    #[test]
    fn what_is_supported_stays() {
        for case in cases().into_iter().step_by(7) {
            let same = lower(&case.plan, &|_| true).expect("nothing is lowered");
            let labels = |plan: &Plan| -> Vec<String> {
                plan.entries[0].steps.iter().map(|step| step.label.clone()).collect()
            };
            assert_eq!(labels(&same), labels(&case.plan));
        }
    }
}
