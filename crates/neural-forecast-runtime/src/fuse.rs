//! Fusion: fewer, larger steps that compute the same.
//!
//! Five rewrites, in this order, each only where nobody else reads the value that disappears:
//! 1. product, then activation → the product's epilogue;
//! 2. two products of the same input, multiplied → one product with a gate;
//! 3. product, then a sum with a value of the same shape → the product's residual;
//! 4. products of the same input that only attention reads (queries, keys, values) → one product
//!    with its weights one below the other, and column ranges of its result;
//! 5. norm, then product → the product's prologue.
//!
//! The result computes the same numbers up to rounding. Does not look inside stack ops (those are
//! fused by the kernel that runs them) and does not reorder anything that writes a state.

use crate::ops::{
    Activation, Binary, BinaryKind, Columns, Gate, Linear, LinearAxis, Norm, Op, Operand, Unary,
    UnaryKind,
};
use crate::plan::{Dim, Entry, Plan, Step, Value, ValueId, Weight, WeightId};

/// What the pass may do beyond what is always a gain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FuseOptions {
    /// Whether a norm that several products read goes into each of them, which computes it once
    /// per product. Off: only a norm with a single reader becomes a prologue.
    pub repeat_norms: bool,
}

/// How many rewrites of each kind were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FusionReport {
    /// Activations that became epilogues.
    pub activations: usize,
    /// Pairs of products that became gated products.
    pub gates: usize,
    /// Sums that became residuals.
    pub residuals: usize,
    /// Products that were merged into another one.
    pub merged: usize,
    /// Norms that became prologues.
    pub prologues: usize,
}

impl FusionReport {
    /// Steps that disappeared.
    pub fn steps_saved(&self) -> usize {
        self.activations + 2 * self.gates + self.residuals + self.merged + self.prologues
    }
}

/// Fuses all entries with default options.
pub fn fuse(plan: &Plan) -> Plan {
    fuse_with(plan, FuseOptions::default()).0
}

/// Fuses all entries; says what was done.
pub fn fuse_with(plan: &Plan, options: FuseOptions) -> (Plan, FusionReport) {
    let mut fused = plan.clone();
    let mut report = FusionReport::default();
    let Plan { entries, weights, .. } = &mut fused;
    for entry in entries {
        let mut pass = Pass { entry, weights, report: &mut report };
        pass.activations();
        pass.gates();
        pass.residuals();
        pass.merge();
        pass.prologues(options);
        *entry = entry.without_unused_values();
    }
    (fused.without_unused_weights(), report)
}

struct Pass<'a> {
    entry: &'a mut Entry,
    weights: &'a mut Vec<Weight>,
    report: &'a mut FusionReport,
}

impl Pass<'_> {
    /// The step that writes a value, and the product in it, if it is one.
    fn product(&self, value: ValueId) -> Option<(usize, &Linear)> {
        let step = self.entry.steps.iter().position(|step| step.outputs.contains(&value))?;
        match &self.entry.steps[step].op {
            Op::Linear(linear) => Some((step, linear)),
            _ => None,
        }
    }

    /// Whether one step reads the value, once, and the value is no output.
    fn read_once(&self, value: ValueId) -> bool {
        let steps = self.entry.steps.iter();
        let reads = steps.flat_map(|step| step.op.reads()).filter(|&read| read == value).count();
        reads == 1 && self.entry.outputs.iter().all(|output| output.value != value)
    }

    fn shape(&self, value: ValueId) -> &[Dim] {
        &self.entry.value(value).shape
    }

    fn activations(&mut self) {
        let mut j = 0;
        while j < self.entry.steps.len() {
            let found = match &self.entry.steps[j].op {
                Op::Unary(Unary { x, kind: UnaryKind::Activation(activation) }) => {
                    self.plain(*x).map(|i| (i, *activation))
                }
                _ => None,
            };
            match found {
                Some((i, activation)) => {
                    let removed = self.entry.steps.remove(j);
                    let product = &mut self.entry.steps[i];
                    if let Op::Linear(linear) = &mut product.op {
                        linear.activation = activation;
                    }
                    product.outputs = removed.outputs;
                    self.report.activations += 1;
                }
                None => j += 1,
            }
        }
    }

    /// The step of a product without activation, gate and residual whose value is read once.
    fn plain(&self, value: ValueId) -> Option<usize> {
        let (step, linear) = self.product(value)?;
        let plain = linear.activation == Activation::Identity
            && linear.gate.is_none()
            && linear.residual.is_none();
        (plain && self.read_once(value)).then_some(step)
    }

    fn gates(&mut self) {
        let mut j = 0;
        while j < self.entry.steps.len() {
            match self.gated(j) {
                Some((first, second, linear)) => {
                    let outputs = self.entry.steps.remove(j).outputs;
                    let label = self.entry.steps[first].label.clone();
                    // Both read the same input, so the earlier place serves.
                    let (low, high) = (first.min(second), first.max(second));
                    self.entry.steps[low] = Step { label, op: linear.into(), outputs };
                    self.entry.steps.remove(high);
                    self.report.gates += 1;
                    j -= 1;
                }
                None => j += 1,
            }
        }
    }

    /// The steps of the value and the gate that step `j` multiplies, and the gated product.
    fn gated(&self, j: usize) -> Option<(usize, usize, Linear)> {
        let Op::Binary(Binary { a, b: Operand::Value(b), kind: BinaryKind::Multiply }) =
            &self.entry.steps[j].op
        else {
            return None;
        };
        let open = |value: ValueId| {
            self.product(value).filter(|(_, linear)| {
                linear.gate.is_none() && linear.residual.is_none() && self.read_once(value)
            })
        };
        let (mut value, mut gate) = (open(*a)?, open(*b)?);
        let same = value.1.x == gate.1.x
            && value.1.axis == gate.1.axis
            && value.1.prologue == gate.1.prologue
            && self.shape(*a) == self.shape(*b);
        if !same {
            return None;
        }
        // The product commutes; the side with an activation is what people call the gate.
        if gate.1.activation == Activation::Identity {
            std::mem::swap(&mut value, &mut gate);
        }
        let linear = Linear {
            gate: Some(Gate {
                weight: gate.1.weight,
                bias: gate.1.bias,
                activation: gate.1.activation,
            }),
            ..value.1.clone()
        };
        Some((value.0, gate.0, linear))
    }

    fn residuals(&mut self) {
        let mut j = 0;
        while j < self.entry.steps.len() {
            let found = match &self.entry.steps[j].op {
                Op::Binary(Binary { a, b: Operand::Value(b), kind: BinaryKind::Add })
                    if self.shape(*a) == self.shape(*b) =>
                {
                    // A later product is preferred: then the other side's is not held up.
                    let either = [(*a, *b), (*b, *a)].into_iter();
                    either.filter_map(|(y, r)| Some((self.open(y)?, r))).max_by_key(|(i, _)| *i)
                }
                _ => None,
            };
            if let Some((i, residual)) = found {
                // The product moves to where its residual is there.
                let outputs = std::mem::take(&mut self.entry.steps[j].outputs);
                let mut step = self.entry.steps[i].clone();
                step.outputs = outputs;
                if let Op::Linear(linear) = &mut step.op {
                    linear.residual = Some(residual);
                }
                self.entry.steps[j] = step;
                self.entry.steps.remove(i);
                self.report.residuals += 1;
            } else {
                j += 1;
            }
        }
    }

    /// The step of a product that can take a residual and whose value is read once.
    fn open(&self, value: ValueId) -> Option<usize> {
        let (step, linear) = self.product(value)?;
        (linear.residual.is_none() && self.read_once(value)).then_some(step)
    }

    fn merge(&mut self) {
        let mut i = 0;
        while i < self.entry.steps.len() {
            let group = self.mergeable(i);
            if group.len() > 1 {
                self.merge_group(&group);
            }
            i += 1;
        }
    }

    /// Step `i` and the later products that can be computed with it.
    fn mergeable(&self, i: usize) -> Vec<usize> {
        let Some(first) = self.columns_only(i) else { return Vec::new() };
        let same = |linear: &Linear| {
            linear.x == first.x
                && linear.prologue == first.prologue
                && linear.bias.is_some() == first.bias.is_some()
        };
        let later = i..self.entry.steps.len();
        later.filter(|&j| self.columns_only(j).is_some_and(same)).collect()
    }

    /// The plain product of step `i`, if only attention reads it, as columns.
    fn columns_only(&self, i: usize) -> Option<&Linear> {
        let step = &self.entry.steps[i];
        let Op::Linear(linear) = &step.op else { return None };
        let plain = linear.axis == LinearAxis::Features
            && linear.activation == Activation::Identity
            && linear.gate.is_none()
            && linear.residual.is_none();
        let value = *step.outputs.first()?;
        let mut readers = self.entry.steps.iter().filter(|step| step.op.reads().contains(&value));
        let columns = readers.all(|step| match &step.op {
            // A mask or groups are values of other shapes; they are no products.
            Op::Attention(a) => a.key_mask != Some(value) && a.groups != Some(value),
            _ => false,
        });
        let output = self.entry.outputs.iter().any(|output| output.value == value);
        (plain && columns && !output).then_some(linear)
    }

    /// One product in the place of the group's first.
    fn merge_group(&mut self, group: &[usize]) {
        let members: Vec<(Linear, ValueId)> = group
            .iter()
            .filter_map(|&i| match &self.entry.steps[i].op {
                Op::Linear(linear) => Some((linear.clone(), self.entry.steps[i].outputs[0])),
                _ => None,
            })
            .collect();
        let weights: Vec<WeightId> = members.iter().map(|(linear, _)| linear.weight).collect();
        let biases: Vec<WeightId> = members.iter().filter_map(|(linear, _)| linear.bias).collect();
        let weight = self.joined(&weights);
        let bias = (!biases.is_empty()).then(|| self.joined(&biases));
        let mut shape = self.shape(members[0].1).to_vec();
        let width = self.weights[weight.index()].shape[0];
        if let Some(last) = shape.last_mut() {
            *last = Dim::Fixed(width);
        }
        let first = &mut self.entry.steps[group[0]];
        let name = format!("{}#merged", first.label);
        let merged = ValueId(self.entry.values.len() as u32);
        first.op = Linear { weight, bias, ..members[0].0.clone() }.into();
        first.outputs = vec![merged];
        let dtype = self.entry.value(members[0].1).dtype;
        self.entry.values.push(Value { name, shape, dtype });
        let mut start = 0;
        for (linear, value) in &members {
            for step in &mut self.entry.steps {
                if let Op::Attention(a) = &mut step.op {
                    let columns = a.queries.iter_mut().chain(&mut a.keys).chain([&mut a.values]);
                    for columns in columns.filter(|columns| columns.value == *value) {
                        *columns =
                            Columns { value: merged, start: start + columns.start, ..*columns };
                    }
                }
            }
            start += self.weights[linear.weight.index()].shape[0];
        }
        for &i in group[1..].iter().rev() {
            self.entry.steps.remove(i);
        }
        self.report.merged += group.len() - 1;
    }

    /// The weight that is these weights one below the other.
    fn joined(&mut self, parts: &[WeightId]) -> WeightId {
        let parts: Vec<&Weight> = parts.iter().map(|id| &self.weights[id.index()]).collect();
        let names: Vec<&str> = parts.iter().map(|weight| weight.name.as_str()).collect();
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|weight| weight.shape[0]).sum();
        let sources = parts.iter().flat_map(|weight| match weight.parts.is_empty() {
            true => vec![weight.name.clone()],
            false => weight.parts.clone(),
        });
        let joined = Weight { name: names.join("+"), shape, parts: sources.collect() };
        if let Some(i) = self.weights.iter().position(|weight| *weight == joined) {
            return WeightId(i as u32);
        }
        self.weights.push(joined);
        WeightId(self.weights.len() as u32 - 1)
    }

    fn prologues(&mut self, options: FuseOptions) {
        let mut i = 0;
        while i < self.entry.steps.len() {
            let Some(norm) = self.prologue(i, options) else {
                i += 1;
                continue;
            };
            let value = self.entry.steps[i].outputs[0];
            for step in &mut self.entry.steps {
                if let Op::Linear(linear) = &mut step.op
                    && linear.x == value
                {
                    linear.x = norm.x;
                    linear.prologue = Some(norm.clone());
                }
            }
            self.entry.steps.remove(i);
            self.report.prologues += 1;
        }
    }

    /// The norm of step `i`, if its readers can all take it as their prologue.
    fn prologue(&self, i: usize, options: FuseOptions) -> Option<Norm> {
        let step = &self.entry.steps[i];
        let Op::Norm(norm) = &step.op else { return None };
        let value = *step.outputs.first()?;
        let readers = self.entry.steps.iter().filter(|step| step.op.reads().contains(&value));
        let readers: Vec<&Step> = readers.collect();
        let takes = |step: &&Step| match &step.op {
            Op::Linear(linear) => {
                linear.x == value
                    && linear.axis == LinearAxis::Features
                    && linear.prologue.is_none()
                    && linear.residual != Some(value)
            }
            _ => false,
        };
        let few = readers.len() == 1 || (readers.len() > 1 && options.repeat_norms);
        let output = self.entry.outputs.iter().any(|output| output.value == value);
        (few && !output && readers.iter().all(takes)).then(|| norm.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{has_epilogue, is_stack, lower};
    use crate::plan::Bucket;
    use crate::reference::{Tensor, run_entry, zero_states};
    use crate::testing::{Case, CaseBuilder, Tolerance, cases};

    fn run(case: &Case, plan: &Plan) -> Vec<(String, Tensor)> {
        let inputs: Vec<_> = case.inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        let mut states = zero_states(plan, case.bucket.batch);
        let ran = run_entry(plan, case.entry, case.bucket, &case.weights, &inputs, &mut states);
        ran.unwrap_or_else(|error| panic!("{}: {error}", case.name))
    }

    fn check(case: &Case, options: FuseOptions) -> FusionReport {
        let plain = |op: &Op| match op {
            Op::Linear(linear) => !has_epilogue(linear),
            other => !is_stack(other),
        };
        let lowered = lower(&case.plan, &plain).expect("every case lowers");
        let (fused, report) = fuse_with(&lowered, options);
        let steps = |plan: &Plan| plan.entries[0].steps.len();
        assert_eq!(steps(&lowered) - steps(&fused), report.steps_saved(), "{}", case.name);
        let close = Tolerance { absolute: 1e-9, relative: 1e-9 };
        for ((name, found), (_, expected)) in run(case, &fused).iter().zip(run(case, &case.plan)) {
            assert_eq!(found.shape, expected.shape, "{} {name}", case.name);
            for (found, expected) in found.data.iter().zip(&expected.data) {
                let accepted = close.accepts(*found, *expected);
                assert!(accepted, "{} {name}: {found}, expected {expected}", case.name);
            }
        }
        report
    }

    #[test]
    fn fused_plans_compute_what_the_ops_compute() {
        let mut total = FusionReport::default();
        for case in cases() {
            for repeat_norms in [false, true] {
                let report = check(&case, FuseOptions { repeat_norms });
                total.activations += report.activations;
                total.gates += report.gates;
                total.residuals += report.residuals;
                total.merged += report.merged;
                total.prologues += report.prologues;
            }
        }
        let kinds =
            [total.activations, total.gates, total.residuals, total.merged, total.prologues];
        assert!(kinds.iter().all(|&count| count > 20), "{total:?}");
    }

    #[test]
    fn a_pre_norm_layer_becomes_five_steps() {
        let name = "encoder_stack pre norm 0 width 8 All";
        let case = cases().into_iter().find(|case| case.name == name).expect("it is a case");
        let lowered = lower(&case.plan, &|op| !is_stack(op)).expect("it lowers");
        let (fused, report) = fuse_with(&lowered, FuseOptions { repeat_norms: true });
        let labels: Vec<&str> = fused.entries[0].steps.iter().map(|step| step.op.name()).collect();
        // norm+QKV, attention, output+residual, norm+up·gate, down+residual; twice, and a norm.
        let layer = ["linear", "attention", "linear", "linear", "linear"];
        assert_eq!(labels, [&layer[..], &layer[..], &["norm"]].concat());
        assert_eq!((report.merged, report.prologues), (4, 4));
        let merged = fused.weights.iter().filter(|weight| weight.parts.len() == 3).count();
        assert_eq!(merged, 4, "weights and biases of queries, keys and values of two layers");
    }

    /// Random chains of products, activations, sums, products of values and norms.
    fn random_case(number: u32) -> Case {
        let mut c = CaseBuilder::new(format!("random {number}"), Bucket { batch: 2, length: 3 });
        let mut random = crate::testing::Random::new(number);
        let width = 6;
        let mut values = vec![c.input(&[Dim::BATCH, Dim::LENGTH, width.into()])];
        for _ in 0..14 {
            // Late values are likelier, so that chains form.
            let late = values.len() - 1 - random.below(values.len().min(3));
            let x = values[late];
            let other = values[random.below(values.len())];
            let next = match random.below(6) {
                0 | 1 => {
                    let bias = (random.below(2) == 0).then(|| c.bias(width));
                    let weight = c.weight(&[width, width]);
                    c.step(Linear::new(x, weight).bias(bias))
                }
                2 => {
                    let activations = crate::testing::ACTIVATIONS;
                    c.step(Unary::activation(x, activations[random.below(activations.len())]))
                }
                3 => c.step(Binary::values(x, BinaryKind::Add, other)),
                4 => c.step(Binary::values(x, BinaryKind::Multiply, other)),
                _ => {
                    let (weight, bias) = (c.positive(width), c.bias(width));
                    c.step(Norm::layer(x, weight, bias, 1e-2))
                }
            };
            values.push(next);
        }
        let last = values[values.len() - 1];
        let any = values[1 + random.below(values.len() - 1)];
        c.finish(&[last, any])
    }

    #[test]
    fn random_plans_compute_the_same_when_fused() {
        let mut saved = 0;
        for number in 0..400 {
            let options = FuseOptions { repeat_norms: number % 2 == 0 };
            saved += check(&random_case(number), options).steps_saved();
        }
        assert!(saved > 300, "only {saved} steps saved");
    }
}
