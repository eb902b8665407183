//! A case: a plan of one entry with random weights and inputs, and how close a device must come.
//!
//! Cases are the same on every machine: their numbers come from a counter-based generator.

use std::ops::Range;

use crate::device::{Data, Program, element_count};
use crate::ops::{Op, philox};
use crate::plan::{
    Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder, StateId, StateKind, ValueId,
    WeightId, sizes,
};
use crate::reference::Tensor;
use crate::weights::MemoryWeights;

/// Random numbers that depend on nothing but the seed and how many were drawn.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u32,
    drawn: u32,
}

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u32) -> Self {
        Random { seed, drawn: 0 }
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        self.drawn += 1;
        philox([self.drawn, 0, 0, 0], [self.seed, 0x6e66])[0]
    }

    /// Uniform in (−1, 1), exact in f32 (24 bits).
    pub fn signed(&mut self) -> f64 {
        crate::ops::uniform(self.bits()) * 2.0 - 1.0
    }

    /// Uniform below `n`, which is positive.
    pub fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }
}

/// How close is close: `|found − expected| ≤ absolute + relative · |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Whatever the magnitude.
    pub absolute: f64,
    /// Per magnitude.
    pub relative: f64,
}

impl Tolerance {
    /// What f32 arithmetic leaves of sums over `terms` numbers of about 1.
    pub fn sum(terms: usize) -> Self {
        let grown = (terms as f64).sqrt().max(1.0);
        Tolerance { absolute: 2e-6 * grown, relative: 2e-6 * grown }
    }

    /// Whether a number is close enough; NaN only to NaN, an infinity only to itself.
    pub fn accepts(&self, found: f64, expected: f64) -> bool {
        if expected.is_nan() || expected.is_infinite() {
            return found == expected || (found.is_nan() && expected.is_nan());
        }
        (found - expected).abs() <= self.absolute + self.relative * expected.abs()
    }
}

/// A plan with one entry, and everything to run it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique; begins with the op's name.
    pub name: String,
    /// The plan; its first entry is the one to run.
    pub plan: Plan,
    /// Which entry.
    pub entry: EntryKind,
    /// A bucket exactly as large as the inputs.
    pub bucket: Bucket,
    /// Weights of the plan.
    pub weights: MemoryWeights,
    /// Inputs in the entry's order; whole numbers where the input is `I32`.
    pub inputs: Vec<(String, Tensor)>,
    /// For f32 arithmetic.
    pub tolerance: Tolerance,
}

impl Case {
    /// The same case with `more` added to both tolerances: what a coarser precision may add.
    #[must_use]
    pub fn widened(&self, more: f64) -> Case {
        let Tolerance { absolute, relative } = self.tolerance;
        let tolerance = Tolerance { absolute: absolute + more, relative: relative + more };
        Case { tolerance, ..self.clone() }
    }

    /// Writes batch rows `rows` of every input to a program of a bucket of its own; an input
    /// without an axis of batches is written whole.
    ///
    /// # Panics
    /// If the case has no such rows.
    pub fn write(&self, program: &mut dyn Program, rows: Range<usize>) {
        let entry = self.plan.entry(self.entry).expect("a case has its entry");
        for (i, (input, (_, tensor))) in entry.inputs.iter().zip(&self.inputs).enumerate() {
            let value = entry.value(input.value);
            let data = match element_count(&value.shape, self.bucket).1 {
                0 => &tensor.data[..],
                row => &tensor.data[rows.start * row..rows.end * row],
            };
            match value.dtype {
                DType::F32 => {
                    let floats: Vec<f32> = data.iter().map(|&x| x as f32).collect();
                    program.write(i, Data::F32(&floats));
                }
                DType::I32 => {
                    let integers: Vec<i32> = data.iter().map(|&x| x as i32).collect();
                    program.write(i, Data::I32(&integers));
                }
            }
        }
    }
}

/// Builds a [`Case`].
#[derive(Debug)]
pub struct CaseBuilder {
    name: String,
    plan: PlanBuilder,
    bucket: Bucket,
    weights: MemoryWeights,
    inputs: Vec<(String, Tensor)>,
    random: Random,
    tolerance: Tolerance,
    entry: EntryKind,
}

impl CaseBuilder {
    /// An empty case; the numbers that it draws follow from its name.
    pub fn new(name: impl Into<String>, bucket: Bucket) -> Self {
        let name = name.into();
        let seed = name.bytes().fold(2_166_136_261, |hash: u32, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(16_777_619)
        });
        let context = Context::Free { max: bucket.length, multiple: 1 };
        let mut plan = PlanBuilder::new(name.clone(), context);
        plan.begin(EntryKind::Full);
        CaseBuilder {
            name,
            plan,
            bucket,
            weights: MemoryWeights::new(),
            inputs: Vec::new(),
            random: Random::new(seed),
            tolerance: Tolerance::sum(1),
            entry: EntryKind::Full,
        }
    }

    /// Makes the entry a `step` entry, which may have states. To be called first.
    pub fn stateful(mut self) -> Self {
        let context = Context::Free { max: self.bucket.length, multiple: 1 };
        self.plan = PlanBuilder::new(self.name.clone(), context);
        self.plan.begin(EntryKind::Step);
        self.entry = EntryKind::Step;
        self
    }

    /// Sets the tolerance to that of sums over this many terms.
    pub fn terms(&mut self, terms: usize) -> &mut Self {
        self.tolerance = Tolerance::sum(terms);
        self
    }

    /// An input of numbers in (−1, 1).
    pub fn input(&mut self, shape: &[Dim]) -> ValueId {
        let mut random = self.random.clone();
        let value = self.input_of(shape, DType::F32, &mut |_| random.signed());
        self.random = random;
        value
    }

    /// An input of ones and zeros, one in three zero.
    pub fn mask(&mut self, shape: &[Dim]) -> ValueId {
        let mut random = self.random.clone();
        let value =
            self.input_of(shape, DType::F32, &mut |_| f64::from(random.below(3).min(1) as u32));
        self.random = random;
        value
    }

    /// An input of whole numbers from `low` up to `high`, `high` excluded.
    pub fn integers(&mut self, shape: &[Dim], low: i32, high: i32) -> ValueId {
        let mut random = self.random.clone();
        let span = (high - low) as usize;
        let mut draw = |_: &[usize]| f64::from(low) + random.below(span) as f64;
        let value = self.input_of(shape, DType::I32, &mut draw);
        self.random = random;
        value
    }

    /// An input of given numbers.
    pub fn input_of(
        &mut self,
        shape: &[Dim],
        dtype: DType,
        element: &mut dyn FnMut(&[usize]) -> f64,
    ) -> ValueId {
        let name = format!("input{}", self.inputs.len());
        let tensor = Tensor::from_fn(sizes(shape, self.bucket), element);
        let value = self.plan.input(name.clone(), dtype, shape);
        self.inputs.push((name, tensor));
        value
    }

    /// A weight of numbers in (−1, 1) divided by the root of the length of its last axis.
    pub fn weight(&mut self, shape: &[usize]) -> WeightId {
        let scale = (shape.last().copied().unwrap_or(1).max(1) as f64).sqrt();
        self.weight_of(shape, |random| random.signed() / scale)
    }

    /// A weight of numbers in (−1, 1).
    pub fn bias(&mut self, length: usize) -> WeightId {
        self.weight_of(&[length], |random| random.signed())
    }

    /// A weight of numbers in (0.5, 1.5): scales and variances.
    pub fn positive(&mut self, length: usize) -> WeightId {
        self.weight_of(&[length], |random| 1.0 + random.signed() / 2.0)
    }

    fn weight_of(&mut self, shape: &[usize], mut f: impl FnMut(&mut Random) -> f64) -> WeightId {
        let name = format!("weight{}", self.weights.names().count());
        let elements = shape.iter().product();
        let elements: Vec<f32> = (0..elements).map(|_| f(&mut self.random) as f32).collect();
        self.weights.insert(name.clone(), shape, &elements);
        self.plan.weight(name, shape)
    }

    /// A state.
    pub fn state(&mut self, kind: StateKind, shape: &[usize]) -> StateId {
        self.plan.state(format!("{kind:?}"), kind, shape)
    }

    /// A step whose first value comes back.
    ///
    /// # Panics
    /// If the step breaks its op's shape rule.
    pub fn step(&mut self, op: impl Into<Op>) -> ValueId {
        self.steps(op)[0]
    }

    /// A step; all its values.
    ///
    /// # Panics
    /// If the step breaks its op's shape rule.
    pub fn steps(&mut self, op: impl Into<Op>) -> Vec<ValueId> {
        match self.plan.step(op) {
            Ok(values) => values,
            Err(error) => panic!("case `{}`: {error}", self.name),
        }
    }

    /// The case, with these outputs.
    ///
    /// # Panics
    /// If the plan does not finish.
    pub fn finish(mut self, outputs: &[ValueId]) -> Case {
        for (i, &value) in outputs.iter().enumerate() {
            self.plan.output(format!("output{i}"), value, Vec::new());
        }
        let plan = match self.plan.finish() {
            Ok(plan) => plan,
            Err(error) => panic!("case `{}`: {error}", self.name),
        };
        Case {
            name: self.name,
            plan,
            entry: self.entry,
            bucket: self.bucket,
            weights: self.weights,
            inputs: self.inputs,
            tolerance: self.tolerance,
        }
    }
}
