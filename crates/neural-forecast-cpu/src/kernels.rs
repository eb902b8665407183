//! The ops of a plan as kernels: what is packed when a plan is loaded, and what each does in a run.
//!
//! One variant an op, each a translation from the runtime's parameters to the modules that compute.
//! The mathematics is there, the memory is `program`'s.

use crate::attention::{self, AttentionScratch};
use crate::counters::{Counters, Precision, Stem, count};
use crate::elementwise::{Combine, Function, Map, Pair, Softmax, WeightedSum};
use crate::gemm::{self, Gemm, Packed, Scratch};
use crate::isa::Isa;
use crate::layout::{self, AXES_MAX, Copy};
use crate::memory::{Buffer, PerWorker, RowMap, Shared};
use crate::norm::{self, Norm};
use crate::rnn::{self, Rnn, Schedule, StateRows};
use crate::series;
use crate::team::Worker;
use neural_forecast_runtime::ops::{
    self, Activation, AttentionBias, BinaryKind, From, Initial, Keep, LinearAxis, Masked, NormKind,
    Op, Operand, PatchPad, PoolKind, Statistics, UnaryKind,
};
use neural_forecast_runtime::plan::{Bucket, StateId, Step, ValueId, WeightId};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};
use std::collections::HashMap;
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

/// Packs weights, each once whatever the number of steps that read it.
pub(crate) struct Packer<'a> {
    isa: Isa,
    precision: Precision,
    read: &'a dyn Fn(WeightId) -> Result<Vec<f32>, DeviceError>,
    shape: &'a dyn Fn(WeightId) -> Vec<usize>,
    plain: HashMap<WeightId, Arc<Vec<f32>>>,
    packed: HashMap<Vec<Option<WeightId>>, Vec<Arc<Packed>>>,
    recurrent: HashMap<String, Arc<Rnn>>,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(
        isa: Isa,
        precision: Precision,
        read: &'a dyn Fn(WeightId) -> Result<Vec<f32>, DeviceError>,
        shape: &'a dyn Fn(WeightId) -> Vec<usize>,
    ) -> Self {
        let (plain, packed, recurrent) = Default::default();
        Packer { isa, precision, read, shape, plain, packed, recurrent }
    }

    /// Bytes of everything packed so far.
    pub(crate) fn bytes(&self) -> usize {
        let plain: usize = self.plain.values().map(|w| w.len() * 4).sum();
        let packed: usize = self.packed.values().flatten().map(|p| p.bytes()).sum();
        plain + packed + self.recurrent.values().map(|rnn| rnn.bytes()).sum::<usize>()
    }

    pub(crate) fn load(&mut self, step: &Step) -> Result<Loaded, DeviceError> {
        let kernel = match &step.op {
            Op::Linear(op) => Kernel::Linear {
                packed: self.linear(op)?,
                norm: op.prologue.as_ref().map(|norm| self.norm(norm)).transpose()?,
                activation: activation(op.activation),
            },
            Op::Norm(op) => Kernel::Norm(self.norm(op)?),
            Op::Attention(op) => Kernel::Attention(self.attention(op)?),
            Op::RnnStack(op) => Kernel::Rnn(self.rnn(op)?),
            Op::EncoderStack(_) | Op::DecoderStack(_) => {
                let message = format!("op `{}` ({}) was not lowered", step.op.name(), step.label);
                return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
            }
            op => {
                let weights = op.weights().into_iter().map(|id| self.plain(id));
                Kernel::Plain(weights.collect::<Result<_, _>>()?)
            }
        };
        let first = step.op.weights().first().copied();
        let weight_shape = first.map(self.shape).unwrap_or_default();
        let states = step.op.states();
        Ok(Loaded { step: step.clone(), kernel, weight_shape, states })
    }

    fn plain(&mut self, id: WeightId) -> Result<Arc<Vec<f32>>, DeviceError> {
        if let Some(weight) = self.plain.get(&id) {
            return Ok(Arc::clone(weight));
        }
        let weight = Arc::new((self.read)(id)?);
        self.plain.insert(id, Arc::clone(&weight));
        Ok(weight)
    }

    fn linear(&mut self, op: &ops::Linear) -> Result<Vec<Arc<Packed>>, DeviceError> {
        let gate = op.gate.as_ref();
        let key = vec![Some(op.weight), op.bias, gate.map(|g| g.weight), gate.and_then(|g| g.bias)];
        if let Some(packed) = self.packed.get(&key) {
            return Ok(packed.clone());
        }
        let shape = (self.shape)(op.weight);
        let (heads, n, k) = match (op.axis, shape.as_slice()) {
            (LinearAxis::Heads(heads), &[_, n, k]) => (heads, n, k),
            (_, &[n, k]) => (1, n, k),
            _ => (1, 0, 0),
        };
        let mut weights = vec![((self.read)(op.weight)?, self.optional(op.bias)?)];
        if let Some(gate) = gate {
            weights.push(((self.read)(gate.weight)?, self.optional(gate.bias)?));
        }
        let biased = weights.iter().any(|(_, bias)| bias.is_some());
        let head = |h: usize| {
            let mut matrix = Vec::new();
            let mut bias = Vec::new();
            for (w, b) in &weights {
                matrix.extend_from_slice(&w[h * n * k..(h + 1) * n * k]);
                match b {
                    Some(b) => bias.extend_from_slice(&b[h * n..(h + 1) * n]),
                    None => bias.extend(std::iter::repeat_n(0.0, n)),
                }
            }
            let bias = biased.then_some(bias.as_slice());
            let groups = weights.len();
            let shape = (groups * n, k);
            Arc::new(Packed::new(self.isa, self.precision, &matrix, shape, groups, bias))
        };
        let packed: Vec<_> = (0..heads).map(head).collect();
        self.packed.insert(key, packed.clone());
        Ok(packed)
    }

    fn optional(&self, id: Option<WeightId>) -> Result<Option<Vec<f32>>, DeviceError> {
        id.map(self.read).transpose()
    }

    fn norm(&self, op: &ops::Norm) -> Result<Norm, DeviceError> {
        let weight = self.optional(op.weight)?;
        let weight = match (weight, op.weight_offset) {
            (Some(w), offset) => Some(w.iter().map(|w| w + offset).collect::<Vec<f32>>()),
            (None, _) => None,
        };
        let bias = self.optional(op.bias)?;
        let kind = match op.kind {
            NormKind::Layer => norm::Kind::Layer { groups: 1 },
            NormKind::Group(groups) => norm::Kind::Layer { groups },
            NormKind::Rms => norm::Kind::Rms,
            NormKind::Batch { mean, variance } => {
                let (mean, variance) = ((self.read)(mean)?, (self.read)(variance)?);
                let (weight, bias) = (weight.as_deref(), bias.as_deref());
                return Ok(Norm::batch(&mean, &variance, op.eps, weight, bias));
            }
        };
        Ok(Norm { kind, eps: op.eps, scale: weight, shift: bias })
    }

    fn attention(&self, op: &ops::Attention) -> Result<attention::Attention, DeviceError> {
        let head = op.head();
        if op.queries.len() > DEPTH_MAX {
            let depth = op.queries.len();
            let message = format!("attention adds scores of {depth} layers, at most {DEPTH_MAX}");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let bias = match op.bias {
            None => None,
            Some(AttentionBias::Weight(id)) => {
                let heads = (self.shape)(id).first().copied().unwrap_or(1);
                Some(attention::Bias::Weight { data: (self.read)(id)?, heads })
            }
            Some(AttentionBias::Relative { table, max_distance, bidirectional }) => {
                let buckets = (self.shape)(table).first().copied().unwrap_or(0);
                let data = (self.read)(table)?;
                // Beyond the maximal distance (and the exact half) the bucket is always the last.
                let origin = max_distance.max(buckets) + 1;
                let distances = 2 * origin + 1;
                let mut by_distance = vec![0.0; op.heads * distances];
                for (i, value) in by_distance.iter_mut().enumerate() {
                    let (h, d) = (i / distances, i % distances);
                    let relative = d as isize - origin as isize;
                    let bucket =
                        ops::relative_bucket(relative, buckets, max_distance, bidirectional);
                    *value = data[bucket * op.heads + h];
                }
                Some(attention::Bias::Relative { by_distance, distances, origin })
            }
        };
        let qk_norm = match &op.qk_norm {
            None => None,
            Some(n) => Some(attention::QkNorm {
                query: (self.read)(n.query)?,
                key: (self.read)(n.key)?,
                eps: n.eps,
            }),
        };
        let query_scale = self.optional(op.per_dim_scale)?.map(|scale| {
            let factor = std::f64::consts::LOG2_E / (head as f64).sqrt();
            let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
            scale.iter().map(|&w| (factor * softplus(f64::from(w))) as f32).collect()
        });
        Ok(attention::Attention {
            isa: self.isa,
            heads: op.heads,
            head,
            head_v: if op.mean_heads { op.values.width } else { op.values.width / op.heads },
            scales: op.scales.clone(),
            causal: op.causal,
            mean_heads: op.mean_heads,
            bias,
            rope: op.rope.map(|r| attention::Rope { theta: r.theta, skip_masked: r.skip_masked }),
            qk_norm,
            query_scale,
        })
    }

    fn rnn(&mut self, op: &ops::RnnStack) -> Result<Arc<Rnn>, DeviceError> {
        let key = format!("{:?} {:?} {} {:?}", op.cell, op.layers, op.hidden, op.projection);
        if let Some(rnn) = self.recurrent.get(&key) {
            return Ok(Arc::clone(rnn));
        }
        let cell = match op.cell {
            ops::Cell::Lstm => rnn::Cell::Lstm,
            ops::Cell::Gru => rnn::Cell::Gru,
            ops::Cell::RnnTanh => rnn::Cell::Tanh,
            ops::Cell::RnnRelu => rnn::Cell::Relu,
            ops::Cell::Slstm { heads } => rnn::Cell::Slstm { heads },
        };
        let mut layers = Vec::new();
        for layer in &op.layers {
            let own = layer.iter().map(|w| {
                Ok(OwnWeights {
                    w_ih: (self.read)(w.w_ih)?,
                    w_hh: (self.read)(w.w_hh)?,
                    b_ih: self.optional(w.b_ih)?,
                    b_hh: self.optional(w.b_hh)?,
                    w_hr: self.optional(w.w_hr)?,
                })
            });
            layers.push(own.collect::<Result<Vec<_>, DeviceError>>()?);
        }
        let views: Vec<Vec<rnn::Weights<'_>>> =
            layers.iter().map(|layer| layer.iter().map(OwnWeights::view).collect()).collect();
        let first = op.layers.first().and_then(|layer| layer.first());
        let inputs = match (cell, first) {
            (rnn::Cell::Slstm { .. }, _) | (_, None) => op.hidden,
            (_, Some(w)) => (self.shape)(w.w_ih).last().copied().unwrap_or(0),
        };
        let shape = (inputs, op.hidden, op.projection);
        let rnn = Arc::new(Rnn::new(self.isa, self.precision, cell, shape, &views));
        self.recurrent.insert(key, Arc::clone(&rnn));
        Ok(rnn)
    }
}

/// Weights of one direction while they are packed.
struct OwnWeights {
    w_ih: Vec<f32>,
    w_hh: Vec<f32>,
    b_ih: Option<Vec<f32>>,
    b_hh: Option<Vec<f32>>,
    w_hr: Option<Vec<f32>>,
}

impl OwnWeights {
    fn view(&self) -> rnn::Weights<'_> {
        rnn::Weights {
            w_ih: &self.w_ih,
            w_hh: &self.w_hh,
            b_ih: self.b_ih.as_deref(),
            b_hh: self.b_hh.as_deref(),
            w_hr: self.w_hr.as_deref(),
        }
    }
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
        let mut room = Room {
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
                    _ if op.prologue.is_some() => elements(op.x),
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
                    norm.run(c.isa, (c.at(op.x), c.at(self.out(0))), width, rows, worker);
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
            Kernel::Attention(_) => (Stem::Attention, Precision::F32),
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

    unsafe fn linear(
        &self,
        op: &ops::Linear,
        (packed, norm, activation): (&[Arc<Packed>], Option<&Norm>, gemm::Activation),
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let shape = c.shape(op.x);
        let width = shape.last().copied().unwrap_or(0);
        let out_width = c.shape(self.out(0)).last().copied().unwrap_or(0);
        let rows: usize = shape[..shape.len() - 1].iter().product();
        let gate = op.gate.as_ref().map(|gate| self::activation(gate.activation));
        let (mut x, y) = (c.at(op.x).cast_const(), c.at(self.out(0)));
        // SAFETY: values and room have the op's shapes; barriers order what workers exchange.
        unsafe {
            if op.axis == LinearAxis::Time {
                return self.over_time(op, &packed[0], activation, room, c, worker, scratch);
            }
            if let Some(norm) = norm {
                let to = shared(&room.floats);
                norm.run(c.isa, (x, to), width, worker.share(rows), worker);
                x = to;
                worker.barrier();
            }
            let heads = packed.len();
            let n = out_width / heads.max(1);
            for (h, weights) in packed.iter().enumerate() {
                let residual = op
                    .residual
                    .map(|r| (c.at(r).add(h * n).cast_const(), RowMap::dense(out_width)));
                let product = Gemm {
                    x_map: RowMap::dense(width),
                    y_map: RowMap::dense(out_width),
                    activation,
                    gate,
                    residual,
                    ..Gemm::new(x.add(h * weights.terms()), rows, weights, y.add(h * n))
                };
                product.run(c.isa, worker, scratch);
            }
        }
    }

    /// A product over time: channels become rows, and their results columns again.
    #[allow(clippy::too_many_arguments)] // the arguments of `linear`
    unsafe fn over_time(
        &self,
        op: &ops::Linear,
        weights: &Packed,
        activation: gemm::Activation,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let shape = c.shape(op.x);
        let (time, channels) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let outer: usize = shape[..shape.len() - 2].iter().product();
        let out = c.shape(self.out(0));
        let horizon = out[out.len() - 2];
        let rows = outer * channels;
        let gate = op.gate.as_ref().map(|gate| self::activation(gate.activation));
        // SAFETY: the room holds both transposed values; barriers order what workers exchange.
        unsafe {
            let turned = shared(&room.floats);
            let result = turned.add(rows * time);
            let mut strides = [0; AXES_MAX];
            strides[..3].copy_from_slice(&[time * channels, 1, channels]);
            let copy = Copy::dense(&[outer, channels, time], strides);
            copy.run(c.at(op.x), turned, worker);
            worker.barrier();
            let product = Gemm {
                y_map: RowMap::dense(horizon),
                activation,
                gate,
                ..Gemm::new(turned, rows, weights, result)
            };
            product.run(c.isa, worker, scratch);
            worker.barrier();
            let y = c.at(self.out(0));
            for i in worker.share(outer * horizon) {
                let (o, h) = (i / horizon, i % horizon);
                for k in 0..channels {
                    let at = i * channels + k;
                    let value = *result.add((o * channels + k) * horizon + h);
                    *y.add(at) = value + op.residual.map_or(0.0, |r| *c.at(r).add(at));
                }
            }
        }
    }

    unsafe fn attention(
        &self,
        op: &ops::Attention,
        kernel: &attention::Attention,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        // SAFETY: columns are inside their values; the room was made for this op.
        unsafe {
            let view = |columns: &ops::Columns| attention::View {
                at: c.at(columns.value).add(columns.start),
                stride: c.shape(columns.value)[2],
            };
            let mut queries = [attention::View { at: std::ptr::null(), stride: 0 }; DEPTH_MAX];
            let mut keys = queries;
            for (i, (q, k)) in op.queries.iter().zip(&op.keys).enumerate() {
                (queries[i], keys[i]) = (view(q), view(k));
            }
            let depth = op.queries.len();
            let keys_each = c.shape(op.keys[0].value)[1];
            let ring = op.ring.map(|ring| attention::Ring {
                keys: c.state_rows(ring.keys),
                values: c.state_rows(ring.values),
                position: c.state_rows(ring.position),
                capacity: c.states[ring.keys.index()].stride / op.keys[0].width,
                new_keys: shared(&room.pending[0]),
            });
            let call = attention::Call {
                queries: &queries[..depth],
                keys: &keys[..depth],
                values: view(&op.values),
                batch: c.shape(op.queries[0].value)[0],
                queries_each: c.shape(op.queries[0].value)[1],
                keys_each,
                key_mask: op.key_mask.map(|mask| c.at(mask).cast_const()),
                groups: op.groups.map(|groups| c.at(groups).cast_const().cast()),
                ring,
                y: c.at(self.out(0)),
            };
            if let Some(all) = &room.attention {
                kernel.run(&call, worker, all.get(worker.index()));
            }
            if ring.is_some() && worker.index() == 0 {
                // Values and visibility of the new rows: the arena may reuse theirs before the
                // commit.
                for row in 0..call.batch * keys_each {
                    let from = call.values.at.add(row * call.values.stride);
                    let to = shared(&room.pending[1]).add(row * op.values.width);
                    std::ptr::copy_nonoverlapping(from, to, op.values.width);
                    *shared(&room.pending[2]).add(row) =
                        call.key_mask.map_or(1.0, |mask| *mask.add(row));
                }
            }
        }
    }

    unsafe fn rnn(
        &self,
        op: &ops::RnnStack,
        rnn: &Rnn,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let Some(schedule) = &room.schedule else { return };
        let kinds = op.cell.states().len();
        let empty = StateRows::dense(std::ptr::null_mut(), 0);
        let (mut initial, mut finals) = ([empty; 4], [empty; 4]);
        let dense = |value: ValueId| {
            let shape = c.shape(value);
            StateRows::dense(c.at(value), shape[1] * shape[2])
        };
        let from = match (&op.initial, &op.states) {
            (Initial::Values(values), _) => {
                for (to, &value) in initial.iter_mut().zip(values) {
                    *to = dense(value);
                }
                true
            }
            (Initial::Slots, Some(states)) => {
                for (to, &slot) in initial.iter_mut().zip(&states.slots) {
                    *to = c.state_rows(slot);
                }
                true
            }
            _ => false,
        };
        let write = op.states.as_ref().is_some_and(|states| states.write);
        for (i, to) in finals.iter_mut().enumerate().take(kinds) {
            if op.finals {
                *to = dense(self.out(1 + i));
            } else if let (true, Some(pending)) = (write, room.pending.get(i)) {
                let stride = op.states.as_ref().map_or(0, |s| c.states[s.slots[i].index()].stride);
                *to = StateRows::dense(shared(pending), stride);
            }
        }
        let call = rnn::Call {
            x: c.at(op.x),
            batch: c.shape(op.x)[0],
            y: c.at(self.out(0)),
            initial: from.then_some(&initial[..kinds]),
            finals: (op.finals || write).then_some(&finals[..kinds]),
        };
        // SAFETY: values, states and room have the op's shapes.
        unsafe {
            rnn.run(&call, schedule, worker, scratch);
            if op.finals && write {
                worker.barrier();
                if worker.index() == 0 {
                    for (i, pending) in room.pending.iter().enumerate() {
                        let (from, n) = (c.at(self.out(1 + i)), c.elements(self.out(1 + i)));
                        std::ptr::copy_nonoverlapping(from, shared(pending), n);
                    }
                }
            }
        }
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

    unsafe fn normalize(
        &self,
        op: &ops::Normalize,
        affine: Option<(&[f32], &[f32])>,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let (x, y, statistics) = (c.at(op.x), c.at(self.out(0)), c.at(self.out(1)));
        let &[rows, time, channels] = c.shape(op.x) else { return };
        let prefix = op.statistics == Statistics::Prefix;
        let mask = op.mask.map(|mask| (c.at(mask), c.shape(mask)));
        let Some(lists) = &room.lists else { return };
        // SAFETY: all values have the shapes of the op's rule; workers take different rows (and
        // channels, where statistics are of a channel).
        unsafe {
            let (seen, sorted) = lists.get(worker.index());
            let observed = |b: usize, t: usize, k: usize| match mask {
                None => true,
                Some((mask, &[_, _, width])) => {
                    *mask.add((b * time + t) * width + k.min(width - 1)) != 0.0
                }
                Some((mask, _)) => *mask.add(b * time + t) != 0.0,
            };
            let carried = |b: usize, k: usize, width: usize| {
                op.running.map(|state| {
                    let at = c.state_rows(state).row(b);
                    let get = |i: usize| f64::from(*at.add(i * width + k));
                    series::Moments { count: get(0), mean: get(1), squares: get(2) }
                })
            };
            let carry = |b: usize, k: usize, width: usize, m: series::Moments| {
                if op.running.is_some() {
                    let at = shared(&room.pending[0]).add(b * 3 * width + k);
                    for (i, part) in [m.count, m.mean, m.squares].into_iter().enumerate() {
                        *at.add(i * width) = part as f32;
                    }
                }
            };
            let write = |b: usize, t: usize, k: usize, pair: (f64, f64)| {
                let at = (b * time + t) * channels + k;
                *y.add(at) = if op.masked == Masked::Zero && !observed(b, t, k) {
                    0.0
                } else {
                    let scaled = series::scale(&op.scaler, f64::from(*x.add(at)), pair);
                    let (w, shift) =
                        affine.map_or((1.0, 0.0), |(w, b)| (f64::from(w[k]), f64::from(b[k])));
                    (scaled * w + shift) as f32
                };
            };
            let value =
                |b: usize, t: usize, k: usize| f64::from(*x.add((b * time + t) * channels + k));
            if prefix {
                for b in worker.share(rows) {
                    seen.clear();
                    let before = carried(b, 0, 1);
                    let mut own = series::Moments::default();
                    for t in 0..time {
                        let old = seen.len();
                        seen.extend(
                            (0..channels).filter(|&k| observed(b, t, k)).map(|k| value(b, t, k)),
                        );
                        own = own.merge(series::Moments::of(&seen[old..]));
                        let all = before.map_or(own, |before| before.merge(own));
                        let pair = series::fit(&op.scaler, seen, all, sorted);
                        let at = statistics.add((b * time + t) * 2);
                        (*at, *at.add(1)) = (pair.0 as f32, pair.1 as f32);
                        for k in 0..channels {
                            write(b, t, k, pair);
                        }
                        carry(b, 0, 1, all);
                    }
                }
                return;
            }
            let until = match op.statistics {
                Statistics::First(n) => n.min(time),
                _ => time,
            };
            for item in worker.share(rows * channels) {
                let (b, k) = (item / channels, item % channels);
                seen.clear();
                seen.extend((0..until).filter(|&t| observed(b, t, k)).map(|t| value(b, t, k)));
                let own = series::Moments::of(seen);
                let all = carried(b, k, channels).map_or(own, |before| before.merge(own));
                carry(b, k, channels, all);
                let pair = series::fit(&op.scaler, seen, all, sorted);
                let at = statistics.add(b * 2 * channels + k);
                (*at, *at.add(channels)) = (pair.0 as f32, pair.1 as f32);
                for t in 0..time {
                    write(b, t, k, pair);
                }
            }
        }
    }

    unsafe fn denormalize(
        &self,
        op: &ops::Denormalize,
        affine: Option<(&[f32], &[f32])>,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let (x, y, statistics) = (c.at(op.x), c.at(self.out(0)), c.at(op.statistics));
        let &[rows, steps, width] = c.shape(op.x) else { return };
        let &[_, patches, last] = c.shape(op.statistics) else { return };
        let channels = if op.prefix { 1 } else { last };
        let outputs = (width / channels.max(1)).max(1);
        let eps = op.affine.map_or(0.0, |affine| f64::from(affine.eps));
        for row in worker.share(rows * steps) {
            let b = row / steps;
            for d in 0..width {
                let k = op.channel.unwrap_or(d / outputs);
                // SAFETY: the shape rule made statistics fit `x`.
                unsafe {
                    let (at, step) = match op.prefix {
                        true => (statistics.add((b * patches + patches - 1) * 2), 1),
                        false => (statistics.add(b * 2 * channels + k), channels),
                    };
                    let pair = (f64::from(*at), f64::from(*at.add(step)));
                    let mut value = f64::from(*x.add(row * width + d));
                    if let Some((w, shift)) = affine {
                        value = (value - f64::from(shift[k])) / (f64::from(w[k]) + eps);
                    }
                    *y.add(row * width + d) = series::unscale(&op.scaler, value, pair) as f32;
                }
            }
        }
    }

    unsafe fn patch(&self, op: &ops::Patch, c: &Context<'_>, worker: Worker<'_>) {
        let time = c.shape(op.x).last().copied().unwrap_or(0);
        let out = c.shape(self.out(0));
        let (windows, p) = (out[out.len() - 2], out[out.len() - 1]);
        let outer: usize = out[..out.len() - 2].iter().product();
        // Position of window 0 relative to the first step; negative where zeros come first.
        let first = match op.pad {
            PatchPad::DropFirst => time as isize - (p + op.stride * (windows - 1)) as isize,
            PatchPad::RepeatLast(_) => 0,
            PatchPad::ZeroFirst => time as isize - time.next_multiple_of(op.stride) as isize,
        };
        for i in worker.share(outer * windows) {
            let (row, window) = (i / windows, i % windows);
            for j in 0..p {
                let at = first + (window * op.stride + j) as isize;
                // SAFETY: the position is clamped to the row.
                unsafe {
                    *c.at(self.out(0)).add(i * p + j) = match at {
                        ..0 => 0.0,
                        at => *c.at(op.x).add(row * time + (at as usize).min(time - 1)),
                    };
                }
            }
        }
    }

    unsafe fn embedding(
        &self,
        op: &ops::Embedding,
        table: &[f32],
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let d = c.shape(self.out(0)).last().copied().unwrap_or(0);
        let rows = table.len().checked_div(d).unwrap_or(0);
        for i in worker.share(c.elements(op.indices)) {
            // SAFETY: the index is clamped to the table; the row is this worker's.
            unsafe {
                let index = *c.at(op.indices).cast::<i32>().add(i);
                let index = (index.max(0) as usize).min(rows.saturating_sub(1));
                let from = table[index * d..].as_ptr();
                std::ptr::copy_nonoverlapping(from, c.at(self.out(0)).add(i * d), d);
            }
        }
    }

    unsafe fn concat(&self, op: &ops::Concat, c: &Context<'_>, worker: Worker<'_>) {
        let to_strides = layout::strides(c.shape(self.out(0)));
        let mut start = 0;
        for &part in &op.parts {
            let shape = c.shape(part);
            let copy = Copy { to_strides, ..Copy::dense(shape, layout::strides(shape)) };
            // SAFETY: parts lie side by side in the result.
            unsafe {
                let to = c.at(self.out(0)).add(start * to_strides[op.axis]);
                copy.run(c.at(part), to, worker);
            }
            start += shape[op.axis];
        }
    }

    unsafe fn gather(&self, op: &ops::Gather, c: &Context<'_>, worker: Worker<'_>) {
        let (from, to) = (c.shape(op.x), c.shape(self.out(0)));
        let (n, m) = (from[op.axis], to[op.axis]);
        let inner: usize = from[op.axis + 1..].iter().product();
        let outer: usize = from[..op.axis].iter().product();
        if n == 0 {
            return;
        }
        for i in worker.share(outer * m) {
            // SAFETY: the index is clamped to the axis.
            unsafe {
                let index = *c.at(op.indices).cast::<i32>().add(i % m);
                let index = (index.max(0) as usize).min(n - 1);
                let from = c.at(op.x).add((i / m * n + index) * inner);
                std::ptr::copy_nonoverlapping(from, c.at(self.out(0)).add(i * inner), inner);
            }
        }
    }

    unsafe fn expand(
        &self,
        op: &ops::Expand,
        weight: Option<&[f32]>,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let to = c.shape(self.out(0));
        let mut strides = [0; AXES_MAX];
        let mut step = 1;
        for (axis, &n) in to.iter().enumerate().rev() {
            if axis != op.axis {
                strides[axis] = step;
                step *= n;
            }
        }
        let from = match (op.x, weight) {
            (Operand::Value(x), _) => c.at(x).cast_const(),
            (Operand::Weight(_), Some(weight)) => weight.as_ptr(),
            (Operand::Weight(_), None) => return,
        };
        // SAFETY: the repeated axis has stride 0, the others those of the source.
        unsafe { Copy::dense(to, strides).run(from, c.at(self.out(0)), worker) }
    }

    unsafe fn pool(&self, op: &ops::Pool, c: &Context<'_>, worker: Worker<'_>) {
        let (from, to) = (c.shape(op.x), c.shape(self.out(0)));
        let (n, m) = (from[op.axis], to[op.axis]);
        let inner: usize = from[op.axis + 1..].iter().product();
        let outer: usize = from[..op.axis].iter().product();
        let kernel = op.kernel.unwrap_or(n).max(1);
        for i in worker.share(outer * m) {
            let start = i % m * kernel;
            let window = start..(start + kernel).min(n);
            for d in 0..inner {
                // SAFETY: the window is inside the axis.
                unsafe {
                    let at = |t: usize| *c.at(op.x).add((i / m * n + t) * inner + d);
                    let elements = window.clone().map(at);
                    *c.at(self.out(0)).add(i * inner + d) = match op.kind {
                        PoolKind::Mean => {
                            let sum: f64 = elements.map(f64::from).sum();
                            (sum / window.len() as f64) as f32
                        }
                        PoolKind::Maximum => elements.fold(f32::NEG_INFINITY, |a, b| {
                            if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
                        }),
                    };
                }
            }
        }
    }

    unsafe fn unary(&self, op: &ops::Unary, c: &Context<'_>, worker: Worker<'_>) {
        let (x, y, n) = (c.at(op.x), c.at(self.out(0)), c.elements(op.x));
        let f = match op.kind {
            UnaryKind::Activation(activation) => Function::Activation(self::activation(activation)),
            UnaryKind::Asinh => Function::Asinh,
            UnaryKind::Sinh => Function::Sinh,
            UnaryKind::Exp => Function::Exp,
            UnaryKind::Sqrt => Function::Sqrt,
            UnaryKind::Affine { factor, offset } => Function::Affine(factor, offset),
            UnaryKind::Observed => Function::Observed,
            UnaryKind::NanToZero => Function::NanToZero,
            UnaryKind::Softmax => {
                let width = c.shape(op.x).last().copied().unwrap_or(0).max(1);
                let rows = worker.share(n / width);
                // SAFETY: the rows are this worker's.
                unsafe {
                    let (x, y) = (x.add(rows.start * width), y.add(rows.start * width));
                    c.isa.run(Softmax { x, y, rows: rows.len(), n: width });
                }
                return;
            }
        };
        let part = worker.share(n);
        // SAFETY: the part is this worker's.
        unsafe {
            c.isa.run(Map { x: x.add(part.start), y: y.add(part.start), n: part.len(), f });
        }
    }

    unsafe fn binary(
        &self,
        op: &ops::Binary,
        weight: Option<&[f32]>,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let f = match op.kind {
            BinaryKind::Add => Pair::Add,
            BinaryKind::Subtract => Pair::Subtract,
            BinaryKind::Multiply => Pair::Multiply,
            BinaryKind::Divide => Pair::Divide,
            BinaryKind::Maximum => Pair::Maximum,
        };
        let shape = c.shape(op.a);
        let (b, b_shape) = match (op.b, weight) {
            (Operand::Value(b), _) => (c.at(b).cast_const(), c.shape(b)),
            (Operand::Weight(_), Some(weight)) => (weight.as_ptr(), self.weight_shape()),
            (Operand::Weight(_), None) => return,
        };
        // Trailing axes that agree form one run of elements; a trailing axis of one in `b` alone is
        // a run against one element.
        let missing = shape.len() - b_shape.len();
        let agree =
            b_shape.iter().rev().zip(shape.iter().rev()).take_while(|(b, a)| b == a).count();
        let one = agree == 0 && !b_shape.is_empty();
        let run_axes =
            if b_shape.is_empty() || one { usize::from(!shape.is_empty()) } else { agree };
        let one = one || b_shape.is_empty();
        let inner: usize = shape[shape.len() - run_axes..].iter().product();
        let outer_axes = shape.len() - run_axes;
        let outer: usize = shape[..outer_axes].iter().product();
        let strides = layout::strides(b_shape);
        let combine = |first: usize, n: usize, b: *const f32| {
            // SAFETY: the run is this worker's; `b` holds as many elements, or the one.
            unsafe {
                let (a, y) = (c.at(op.a).add(first).cast_const(), c.at(self.out(0)).add(first));
                c.isa.run(Combine { a, b, one, y, n, f });
            }
        };
        if outer == 1 {
            let part = worker.share(inner);
            // SAFETY: `b` has `inner` elements unless it is one.
            let b = if one { b } else { unsafe { b.add(part.start) } };
            return combine(part.start, part.len(), b);
        }
        for i in worker.share(outer) {
            let (mut rest, mut at) = (i, 0);
            for axis in (0..outer_axes).rev() {
                let index = rest % shape[axis];
                rest /= shape[axis];
                if axis >= missing && b_shape[axis - missing] != 1 {
                    at += index * strides[axis - missing];
                }
            }
            // SAFETY: the offset is inside `b`, by its own strides.
            combine(i * inner, inner, unsafe { b.add(at) });
        }
    }

    unsafe fn weighted_sum(
        &self,
        op: &ops::WeightedSum,
        room: &Room,
        c: &Context<'_>,
        worker: Worker<'_>,
    ) {
        let shape = c.shape(op.x);
        let (n, d) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let outer: usize = shape[..shape.len() - 2].iter().product();
        let rows = worker.share(outer);
        // SAFETY: the rows are this worker's, and so is its part of the room.
        unsafe {
            let own = shared(&room.floats).add(worker.index() * n.next_multiple_of(16));
            c.isa.run(WeightedSum {
                w: c.at(op.weights).add(rows.start * n),
                weights: op.softmax.then_some(own),
                x: c.at(op.x).add(rows.start * n * d),
                y: c.at(self.out(0)).add(rows.start * d),
                rows: rows.len(),
                n,
                d,
            });
        }
    }
}
