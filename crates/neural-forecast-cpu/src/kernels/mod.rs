//! The ops of a plan as kernels: what is packed when a plan is loaded, and what each does in a run.
//!
//! One variant an op, each a translation from the runtime's parameters to the modules that compute.
//! The mathematics is there, the memory is `device`'s. This file holds what a step is and who runs
//! it; packing and the families of ops have a file each.

mod attend;
mod elements;
mod halves;
mod load;
mod products;
mod recur;
mod scaling;

pub(crate) use halves::keep_halves;
pub(crate) use load::Packer;

use crate::attention::{self, AttentionScratch};
use crate::counters::{Counters, Precision, Stem, count};
use crate::gemm::{self, Packed, Scratch};
use crate::isa::Isa;
use crate::layout::{self, AXES_MAX, Copy};
use crate::memory::{Buffer, Numbers, PerWorker, Shared};
use crate::norm::Norm;
use crate::rnn::{Rnn, Schedule, StateRows};
use crate::series;
use crate::team::Worker;
use crate::together;
use neural_forecast_runtime::ops::{Activation, From, Keep, LinearAxis, Op};
use neural_forecast_runtime::plan::{Bucket, StateId, Step, ValueId};
use std::sync::Arc;

/// Most pairs of queries and keys whose scores one attention adds: one a layer of a model with
/// residual scores.
const DEPTH_MAX: usize = 64;

/// A step with its weights packed; shared by all programs of its entry.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) step: Step,
    kernel: Kernel,
    /// Shape of the first weight.
    weight_shape: Vec<usize>,
    /// States that it reads or writes.
    states: Vec<StateId>,
    /// Values that it reads or writes as bf16.
    halves: Vec<ValueId>,
}

#[derive(Debug)]
enum Kernel {
    Linear {
        packed: Vec<Arc<Packed>>,
        norm: Option<Norm>,
        activation: gemm::Activation,
    },
    Norm(Norm),
    Attention(attention::Attention),
    Rnn(Arc<Rnn>),
    /// Ops that read weights as they are, in the order of [`Op::weights`].
    Plain(Vec<Arc<Vec<f32>>>),
}

fn activation(activation: Activation) -> gemm::Activation {
    match activation {
        Activation::Identity => gemm::Activation::Identity,
        Activation::Relu => gemm::Activation::Relu,
        Activation::Gelu => gemm::Activation::Gelu,
        Activation::GeluTanh => gemm::Activation::GeluTanh,
        Activation::Silu => gemm::Activation::Silu,
        Activation::Sigmoid => gemm::Activation::Sigmoid,
        Activation::Tanh => gemm::Activation::Tanh,
        Activation::Elu => gemm::Activation::Elu { alpha: 1.0, scale: 1.0 },
        Activation::Selu => gemm::Activation::Elu { alpha: 1.673_263_2, scale: 1.050_701 },
        Activation::Softplus => gemm::Activation::Softplus,
        Activation::LeakyRelu(slope) => gemm::Activation::LeakyRelu(slope),
    }
}

/// A state's slots: slot `s` starts `s · stride` floats after `at`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    pub(crate) at: *mut f32,
    pub(crate) stride: usize,
}

/// What a run gives to its kernels.
pub(crate) struct Context<'a> {
    pub(crate) isa: Isa,
    /// The device's.
    pub(crate) counters: &'a Counters,
    /// First float of each value.
    pub(crate) places: &'a [Shared],
    /// Shape of each value for the rows of this run.
    pub(crate) shapes: &'a [Vec<usize>],
    pub(crate) rows: usize,
    pub(crate) length: usize,
    pub(crate) slots: &'a [u32],
    /// Each state of the plan.
    pub(crate) states: &'a [Slots],
}

// SAFETY: the pointers are into memory that the workers of one run share by disjoint parts.
unsafe impl Sync for Context<'_> {}

impl Context<'_> {
    fn at(&self, value: ValueId) -> *mut f32 {
        self.places[value.index()].0
    }

    fn shape(&self, value: ValueId) -> &[usize] {
        &self.shapes[value.index()]
    }

    fn elements(&self, value: ValueId) -> usize {
        self.shape(value).iter().product()
    }

    fn state_rows(&self, state: StateId) -> StateRows {
        let slots = self.states[state.index()];
        StateRows { at: Shared(slots.at), stride: slots.stride, slots: self.slots.as_ptr() }
    }
}

/// A step's own memory in one program.
#[derive(Debug)]
pub(crate) struct Room {
    /// Whether the workers split the step's rows, each taking the same rows in every such step.
    by_rows: bool,
    /// Intermediate floats that all workers share.
    floats: Buffer,
    /// New states until the run is committed, in the order of [`Op::states`].
    pending: Vec<Buffer>,
    schedule: Option<Schedule>,
    attention: Option<PerWorker<AttentionScratch>>,
    /// Two lists a worker, for medians and order statistics.
    lists: Option<PerWorker<(Vec<f64>, Vec<f64>)>>,
}

impl Room {
    /// Bytes of its buffers.
    pub(crate) fn bytes(&mut self) -> usize {
        let floats = self.floats.len() + self.pending.iter().map(Buffer::len).sum::<usize>();
        let schedule = self.schedule.as_ref().map_or(0, Schedule::bytes);
        let attention = self.attention.iter_mut().flat_map(PerWorker::iter_mut);
        floats * 4 + schedule + attention.map(|scratch| scratch.bytes()).sum::<usize>()
    }
}

fn plain_stem(op: &Op) -> Stem {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::WeightedSum(_) => Stem::Elementwise,
        Op::Normalize(_)
        | Op::Denormalize(_)
        | Op::Pool(_)
        | Op::Interpolate(_)
        | Op::EmpiricalQuantiles(_)
        | Op::Sample(_) => Stem::Series,
        _ => Stem::Layout,
    }
}

fn shared(buffer: &Buffer) -> *mut f32 {
    buffer.as_ptr().cast_mut()
}

fn kept(keep: Keep, steps: usize) -> usize {
    match keep {
        Keep::All => steps,
        Keep::Last(n) => n.min(steps),
    }
}

impl Loaded {
    /// Memory for runs of a bucket, given the shapes in it.
    pub(crate) fn room(
        &self,
        shapes: &[Vec<usize>],
        bucket: Bucket,
        workers: usize,
        state_elements: &dyn Fn(StateId) -> usize,
    ) -> Room {
        let shape = |value: ValueId| shapes[value.index()].as_slice();
        let elements = |value: ValueId| shape(value).iter().product::<usize>();
        let split = self.split_rows(shapes, workers).is_some();
        let mut room = Room {
            by_rows: split,
            floats: Buffer::default(),
            pending: Vec::new(),
            schedule: None,
            attention: None,
            lists: None,
        };
        let lists = |n: usize| {
            Some(PerWorker::new(workers, || (Vec::with_capacity(n), Vec::with_capacity(n))))
        };
        match (&self.step.op, &self.kernel) {
            (Op::Linear(op), _) => {
                let floats = match op.axis {
                    LinearAxis::Time => elements(op.x) + elements(self.step.outputs[0]),
                    _ if op.prologue.is_some() && split => elements(op.x),
                    _ if op.prologue.is_some() => workers * elements(op.x),
                    _ => 0,
                };
                room.floats = Buffer::zeroed(floats);
            }
            (Op::RnnStack(op), Kernel::Rnn(rnn)) => {
                let steps = shape(op.x)[1];
                room.schedule =
                    Some(rnn.schedule(bucket.batch, steps, kept(op.keep, steps), workers));
                room.pending = self.pending_states(bucket.batch, state_elements);
            }
            (Op::Attention(op), Kernel::Attention(kernel)) => {
                let (queries, keys) = (shape(op.queries[0].value)[1], shape(op.keys[0].value)[1]);
                let earlier =
                    op.ring.map_or(0, |ring| state_elements(ring.keys) / op.keys[0].width.max(1));
                let grouped = op.groups.is_some();
                let make = || kernel.scratch(bucket.batch, queries, keys + earlier, grouped);
                room.attention = Some(PerWorker::new(workers, make));
                if op.ring.is_some() {
                    let rows = bucket.batch * keys;
                    let widths = [op.keys[0].width, op.values.width, 1];
                    room.pending = widths.map(|w| Buffer::zeroed(rows * w)).into();
                }
            }
            (Op::Normalize(op), _) => {
                let x = shape(op.x);
                room.lists = lists(x[1] * x[2]);
                room.pending = self.pending_states(bucket.batch, state_elements);
            }
            (Op::EmpiricalQuantiles(op), _) => {
                room.lists = lists(shape(op.x).last().copied().unwrap_or(0));
            }
            (Op::WeightedSum(op), _) => {
                let n = shape(op.weights).last().copied().unwrap_or(0);
                room.floats = Buffer::zeroed(workers * n.next_multiple_of(16));
            }
            _ => {}
        }
        room
    }

    /// The rows that workers split, each going through the step with its own, if it is such a step
    /// and there are enough of them.
    pub(crate) fn split_rows(&self, shapes: &[Vec<usize>], workers: usize) -> Option<usize> {
        let x = together::by_rows(&self.step.op)?;
        let (_, leading) = shapes[x.index()].split_last()?;
        let rows = leading.iter().product();
        together::splits(rows, workers).then_some(rows)
    }

    /// Whether few rows should be shared by all workers rather than split over them.
    pub(crate) fn prefers_together(&self, batch: usize, workers: usize) -> bool {
        match &self.kernel {
            Kernel::Rnn(rnn) => !rnn.splits_rows(batch, workers),
            _ => false,
        }
    }

    /// Whether rows of the batch do not meet in this step.
    pub(crate) fn keeps_rows_apart(&self) -> bool {
        !matches!(&self.step.op, Op::Attention(op) if op.groups.is_some())
    }

    fn pending_states(&self, batch: usize, elements: &dyn Fn(StateId) -> usize) -> Vec<Buffer> {
        self.states.iter().map(|&state| Buffer::zeroed(batch * elements(state))).collect()
    }

    /// This worker's part of the step. The caller follows it with a barrier.
    ///
    /// # Safety
    /// `context` describes live memory of the plan's values and states; `room` was made for its
    /// bucket; all workers pass the same; nobody else touches that memory.
    pub(crate) unsafe fn run(
        &self,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        if worker.index() == 0 {
            let (stem, precision) = self.counted();
            c.counters.count(stem, c.isa, precision);
        }
        // SAFETY: the caller's.
        unsafe {
            match (&self.step.op, &self.kernel) {
                (Op::Linear(op), Kernel::Linear { packed, norm, activation }) => {
                    let parts = (packed.as_slice(), norm.as_ref(), *activation);
                    self.linear(op, parts, room, c, worker, scratch);
                }
                (Op::Norm(op), Kernel::Norm(norm)) => {
                    let width = c.shape(op.x).last().copied().unwrap_or(0);
                    let rows = worker.share(c.elements(op.x).checked_div(width).unwrap_or(0));
                    let at = (c.at(op.x).cast_const(), c.at(self.out(0)), Numbers::Floats);
                    norm.run(c.isa, at, width, rows, worker);
                }
                (Op::Attention(op), Kernel::Attention(kernel)) => {
                    self.attention(op, kernel, room, c, worker);
                }
                (Op::RnnStack(op), Kernel::Rnn(rnn)) => {
                    self.rnn(op, rnn, room, c, worker, scratch);
                }
                (op, Kernel::Plain(weights)) => self.plain(op, weights, room, c, worker),
                (op, _) => unreachable!("`{}` was loaded as another kernel", op.name()),
            }
        }
    }

    /// Under which name a run of the step counts.
    fn counted(&self) -> (Stem, Precision) {
        match &self.kernel {
            Kernel::Linear { packed, .. } => {
                (Stem::Gemm, packed.first().map_or(Precision::F32, |p| p.precision()))
            }
            Kernel::Norm(_) => (Stem::Norm, Precision::F32),
            Kernel::Attention(attention) => (Stem::Attention, attention.counted()),
            Kernel::Rnn(rnn) => rnn.counted(),
            Kernel::Plain(_) => (plain_stem(&self.step.op), Precision::F32),
        }
    }

    fn weight_shape(&self) -> &[usize] {
        &self.weight_shape
    }

    fn out(&self, i: usize) -> ValueId {
        self.step.outputs[i]
    }

    /// Puts new states into their slots, after the last step of a run that was not cancelled.
    ///
    /// # Safety
    /// As [`Loaded::run`], by one thread.
    pub(crate) unsafe fn commit(&self, room: &Room, c: &Context<'_>) {
        // SAFETY: the caller's; slots were checked against the store.
        unsafe {
            match &self.step.op {
                Op::Attention(op) => {
                    let Some(ring) = op.ring else { return };
                    let time = c.shape(op.keys[0].value)[1];
                    let capacity = c.states[ring.keys.index()].stride / op.keys[0].width;
                    let [keys, values, visible] = &room.pending[..] else { return };
                    for b in 0..c.rows {
                        let position = c.state_rows(ring.position).row(b);
                        let mut next = *position as usize;
                        for row in b * time..(b + 1) * time {
                            if *visible.as_ptr().add(row) == 0.0 {
                                continue;
                            }
                            for (new, state) in [(keys, ring.keys), (values, ring.values)] {
                                let width = c.states[state.index()].stride / capacity;
                                let to = c.state_rows(state).row(b).add(next % capacity * width);
                                let from = new.as_ptr().add(row * width);
                                std::ptr::copy_nonoverlapping(from, to, width);
                            }
                            next += 1;
                        }
                        *position = next as f32;
                    }
                }
                Op::RnnStack(op) if !op.states.as_ref().is_some_and(|s| s.write) => {}
                _ => {
                    for (&state, pending) in self.states.iter().zip(&room.pending) {
                        let n = c.states[state.index()].stride;
                        for b in 0..c.rows {
                            let to = c.state_rows(state).row(b);
                            std::ptr::copy_nonoverlapping(pending.as_ptr().add(b * n), to, n);
                        }
                    }
                }
            }
        }
    }
}

impl Loaded {
    unsafe fn plain(
        &self,
        op: &Op,
        weights: &[Arc<Vec<f32>>],
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let stem = plain_stem(op);
        if worker.index() == 0 {
            count(stem, c.isa, Precision::F32);
        }
        let weight = |i: usize| weights.get(i).map(|w| w.as_slice());
        // SAFETY: values have the op's shapes; every worker writes its own share.
        unsafe {
            match op {
                Op::Normalize(op) => self.normalize(op, weight(0).zip(weight(1)), room, c, worker),
                Op::Denormalize(op) => self.denormalize(op, weight(0).zip(weight(1)), c, worker),
                Op::Patch(op) => self.patch(op, c, worker),
                Op::Embedding(op) => self.embedding(op, weight(0).unwrap_or(&[]), c, worker),
                Op::Concat(op) => self.concat(op, c, worker),
                Op::Slice(op) => {
                    let (from, to) = (c.shape(op.x), c.shape(self.out(0)));
                    let start = match op.from {
                        From::Start(start) => start,
                        From::End => from[op.axis] - to[op.axis],
                    };
                    let strides = layout::strides(from);
                    let from = c.at(op.x).add(start * strides[op.axis]);
                    Copy::dense(to, strides).run(from, c.at(self.out(0)), worker);
                }
                Op::Gather(op) => self.gather(op, c, worker),
                Op::Transpose(op) => {
                    let strides = layout::strides(c.shape(op.x));
                    let mut turned = [0; AXES_MAX];
                    for (to, &axis) in turned.iter_mut().zip(&op.permutation) {
                        *to = strides[axis];
                    }
                    let copy = Copy::dense(c.shape(self.out(0)), turned);
                    copy.run(c.at(op.x), c.at(self.out(0)), worker);
                }
                Op::Expand(op) => self.expand(op, weight(0), c, worker),
                Op::Ramp(op) => {
                    if worker.index() == 0 {
                        let length = op.length_factor * c.length as f64;
                        for i in 0..c.elements(self.out(0)) {
                            let value = (op.start + i as f64 + length) * op.factor;
                            *c.at(self.out(0)).add(i) = value as f32;
                        }
                    }
                }
                Op::Pool(op) => self.pool(op, c, worker),
                Op::Interpolate(op) => {
                    let n = c.shape(op.x).last().copied().unwrap_or(1).max(1);
                    for row in worker.share(c.elements(op.x) / n) {
                        let knots = std::slice::from_raw_parts(c.at(op.x).add(row * n), n);
                        for i in 0..op.size {
                            *c.at(self.out(0)).add(row * op.size + i) =
                                series::interpolate(op.kind, knots, op.size, i);
                        }
                    }
                }
                Op::Unary(op) => self.unary(op, c, worker),
                Op::Binary(op) => self.binary(op, weight(0), c, worker),
                Op::WeightedSum(op) => self.weighted_sum(op, room, c, worker),
                Op::EmpiricalQuantiles(op) => {
                    let (n, q) =
                        (c.shape(op.x).last().copied().unwrap_or(1).max(1), op.levels.len());
                    let Some(lists) = &room.lists else { return };
                    let (_, sorted) = lists.get(worker.index());
                    for row in worker.share(c.elements(op.x) / n) {
                        let samples = std::slice::from_raw_parts(c.at(op.x).add(row * n), n);
                        let y = c.at(self.out(0)).add(row * q);
                        let y = std::slice::from_raw_parts_mut(y, q);
                        series::quantiles(samples, &op.levels, sorted, y);
                    }
                }
                Op::Sample(op) => {
                    let shape = c.shape(op.parameters);
                    let (steps, width) = (shape[1], shape[2]);
                    for i in worker.share(shape[0] * steps) {
                        let at = c.at(op.parameters).add(i * width);
                        let parameters = std::slice::from_raw_parts(at, width);
                        let seed = c.at(op.seed).cast::<u32>().add(i / steps * 2);
                        let seed = [*seed, *seed.add(1)];
                        for s in 0..op.count {
                            *c.at(self.out(0)).add(i * op.count + s) =
                                series::sample(op.distribution, parameters, seed, i % steps, s);
                        }
                    }
                }
                // The arena gives both values one place.
                Op::Reshape(_) => {}
                other => unreachable!("`{}` has a kernel of its own", other.name()),
            }
        }
    }
}
