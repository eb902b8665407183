//! The closed list of model-level ops: parameters, shape rules, reference implementations.
//!
//! Ops are data. Each lives in one file named after it, holds the ids of what it reads, states its
//! shapes, and carries a reference implementation in `f64` that shares no code with any backend.
//! Values are row-major; weights of products are `[outputs, inputs]` as PyTorch stores them.
//!
//! The list is closed on purpose: a backend handles every op (itself or by the shared lowering in
//! [`crate::lower`]), so a new architecture is a new plan and no new backend code.

mod attention;
mod elementwise;
mod embedding;
mod interpolate;
mod layout;
mod linear;
mod norm;
mod normalize;
mod patch;
mod pool;
mod quantile;
mod rnn_stack;
mod stack;

pub use attention::{
    Attention, AttentionBias, Columns, KeyValueRing, QkNorm, Rope, relative_bucket,
};
pub use elementwise::{Activation, Binary, BinaryKind, Operand, Unary, UnaryKind, WeightedSum};
pub use embedding::Embedding;
pub use interpolate::{Interpolate, InterpolateKind};
pub use layout::{Concat, Expand, From, Gather, Ramp, Reshape, Slice, Transpose};
pub use linear::{Gate, Linear, LinearAxis};
pub use norm::{Norm, NormKind};
pub use normalize::{
    Affine, Center, Denormalize, Masked, Normalize, Scaler, Spread, Statistics, ZeroSpread,
};
pub use patch::{Patch, PatchPad};
pub use pool::{Pool, PoolKind};
pub(crate) use quantile::uniform;
pub use quantile::{Distribution, EmpiricalQuantiles, Sample, philox};
pub use rnn_stack::{Cell, Initial, RnnStack, RnnStates, RnnWeights};
pub use stack::{
    AttentionLayer, FeedForward, NormPlacement, NormWeights, Product, Stack, Sublayer, SublayerKind,
};

use crate::error::PlanError;
use crate::plan::{Bucket, DType, Dim, Entry, Plan, StateId, ValueId, WeightId};
use crate::reference::{ReferenceContext, Tensor};

/// Which positions of a time axis a sequence op must produce. What is not kept is not computed,
/// where the op's definition allows that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Every position.
    All,
    /// The last `n` positions.
    Last(usize),
}

/// One model-level op. See each parameter struct for its mathematics.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Op {
    /// Scale a window by statistics of itself.
    Normalize(Normalize),
    /// Undo a [`Normalize`] on forecasts.
    Denormalize(Denormalize),
    /// Cut a time axis into patches.
    Patch(Patch),
    /// Affine map with fused epilogue.
    Linear(Linear),
    /// Layer, RMS, batch (eval) or group normalisation.
    Norm(Norm),
    /// Softmax attention.
    Attention(Attention),
    /// Stacked recurrence.
    RnnStack(RnnStack),
    /// Stacked self-attention and feed-forward sublayers.
    EncoderStack(Stack),
    /// As the encoder stack, with cross attention to a memory.
    DecoderStack(Stack),
    /// Rows of a table by index.
    Embedding(Embedding),
    /// Join along an axis.
    Concat(Concat),
    /// Part of an axis.
    Slice(Slice),
    /// Positions of an axis by index.
    Gather(Gather),
    /// Permuted axes.
    Transpose(Transpose),
    /// A new axis along which a value repeats.
    Expand(Expand),
    /// The same elements under another shape; never copies.
    Reshape(Reshape),
    /// An arithmetic progression along a new value.
    Ramp(Ramp),
    /// Maximum or mean over windows of an axis.
    Pool(Pool),
    /// Resample the last axis.
    Interpolate(Interpolate),
    /// A function of each element.
    Unary(Unary),
    /// A function of two broadcast operands.
    Binary(Binary),
    /// Weights times vectors, optionally through a softmax.
    WeightedSum(WeightedSum),
    /// Quantiles of samples.
    EmpiricalQuantiles(EmpiricalQuantiles),
    /// Samples of a distribution from a counter-based generator.
    Sample(Sample),
}

/// What a shape rule may look at.
pub struct ShapeContext<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) entry: &'a Entry,
    pub(crate) place: String,
}

/// The element types and shapes that an op writes.
pub type Shapes = Vec<(DType, Vec<Dim>)>;

impl<'a> ShapeContext<'a> {
    /// Shape of a value.
    pub fn shape(&self, id: ValueId) -> &'a [Dim] {
        &self.entry.value(id).shape
    }

    /// Shape of a weight.
    pub fn weight(&self, id: WeightId) -> &'a [usize] {
        &self.plan.weight(id).shape
    }

    /// Shape of a state slot.
    pub fn state(&self, id: StateId) -> &'a [usize] {
        &self.plan.state(id).shape
    }

    /// An error at this op.
    #[cold]
    pub fn error(&self, message: impl Into<String>) -> PlanError {
        PlanError::new(&self.place, message)
    }

    /// Checks a weight's shape; `meaning` names the axes, for example `"[outputs, inputs]"`.
    pub fn expect_weight(
        &self,
        what: &str,
        id: WeightId,
        expected: &[usize],
        meaning: &str,
    ) -> Result<(), PlanError> {
        let weight = self.plan.weight(id);
        if weight.shape == expected {
            return Ok(());
        }
        Err(self.error(format!(
            "`{what}` (`{}`) has shape {:?}, expected {meaning} = {expected:?}",
            weight.name, weight.shape
        )))
    }

    /// Checks a value's whole shape.
    pub fn expect_value(
        &self,
        what: &str,
        id: ValueId,
        expected: &[Dim],
        meaning: &str,
    ) -> Result<(), PlanError> {
        let found = self.shape(id);
        if found == expected {
            return Ok(());
        }
        Err(self.error(format!("`{what}` has shape {found:?}, expected {meaning} = {expected:?}")))
    }

    /// Checks a value's rank.
    pub fn expect_rank(
        &self,
        what: &str,
        id: ValueId,
        rank: usize,
        meaning: &str,
    ) -> Result<&'a [Dim], PlanError> {
        let found = self.shape(id);
        if found.len() == rank {
            return Ok(found);
        }
        Err(self.error(format!("`{what}` has shape {found:?}, expected {meaning}")))
    }

    /// A dimension that must not depend on the bucket.
    pub fn fixed(&self, what: &str, dim: Option<&Dim>) -> Result<usize, PlanError> {
        match dim.and_then(|d| d.fixed()) {
            Some(n) => Ok(n),
            None => Err(self.error(format!("{what} must be a fixed dimension, found {dim:?}"))),
        }
    }

    /// Checks that an axis exists.
    pub fn axis(&self, axis: usize, shape: &[Dim]) -> Result<(), PlanError> {
        if axis < shape.len() {
            return Ok(());
        }
        Err(self.error(format!("axis {axis} does not exist in shape {shape:?}")))
    }

    /// How many positions `keep` leaves of `dim`.
    pub fn kept(&self, keep: Keep, dim: Dim) -> Result<Dim, PlanError> {
        match (keep, dim) {
            (Keep::All, dim) => Ok(dim),
            (Keep::Last(n), Dim::Fixed(t)) if n > t => {
                Err(self.error(format!("keeps the last {n} of {t} positions")))
            }
            (Keep::Last(n), _) => Ok(Dim::Fixed(n)),
        }
    }
}

/// Calls `$body` with `$inner` bound to the parameter struct, whatever the op.
macro_rules! for_op {
    ($op:expr, $inner:ident => $body:expr) => {
        match $op {
            Op::Normalize($inner) => $body,
            Op::Denormalize($inner) => $body,
            Op::Patch($inner) => $body,
            Op::Linear($inner) => $body,
            Op::Norm($inner) => $body,
            Op::Attention($inner) => $body,
            Op::RnnStack($inner) => $body,
            Op::EncoderStack($inner) => $body,
            Op::DecoderStack($inner) => $body,
            Op::Embedding($inner) => $body,
            Op::Concat($inner) => $body,
            Op::Slice($inner) => $body,
            Op::Gather($inner) => $body,
            Op::Transpose($inner) => $body,
            Op::Expand($inner) => $body,
            Op::Reshape($inner) => $body,
            Op::Ramp($inner) => $body,
            Op::Pool($inner) => $body,
            Op::Interpolate($inner) => $body,
            Op::Unary($inner) => $body,
            Op::Binary($inner) => $body,
            Op::WeightedSum($inner) => $body,
            Op::EmpiricalQuantiles($inner) => $body,
            Op::Sample($inner) => $body,
        }
    };
}

impl Op {
    /// The op's name: the stem of its files in every backend, of its kernels and of its benches.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Normalize(_) => "normalize",
            Op::Denormalize(_) => "denormalize",
            Op::Patch(_) => "patch",
            Op::Linear(_) => "linear",
            Op::Norm(_) => "norm",
            Op::Attention(_) => "attention",
            Op::RnnStack(_) => "rnn_stack",
            Op::EncoderStack(_) => "encoder_stack",
            Op::DecoderStack(_) => "decoder_stack",
            Op::Embedding(_) => "embedding",
            Op::Concat(_) => "concat",
            Op::Slice(_) => "slice",
            Op::Gather(_) => "gather",
            Op::Transpose(_) => "transpose",
            Op::Expand(_) => "expand",
            Op::Reshape(_) => "reshape",
            Op::Ramp(_) => "ramp",
            Op::Pool(_) => "pool",
            Op::Interpolate(_) => "interpolate",
            Op::Unary(_) => "unary",
            Op::Binary(_) => "binary",
            Op::WeightedSum(_) => "weighted_sum",
            Op::EmpiricalQuantiles(_) => "empirical_quantiles",
            Op::Sample(_) => "sample",
        }
    }

    /// The shapes it writes, or why it does not fit.
    pub fn shape(&self, context: &ShapeContext<'_>) -> Result<Shapes, PlanError> {
        for_op!(self, op => op.shape(context))
    }

    /// Why it cannot be computed in a bucket, if it cannot.
    pub(crate) fn misfit(&self, entry: &Entry, bucket: Bucket) -> Option<String> {
        let length = |x: ValueId, axis: usize| {
            entry.value(x).shape.get(axis).map_or(0, |dim| dim.at(bucket))
        };
        let kept = |keep: Keep, found: usize| match keep {
            Keep::Last(n) if n > found => Some(format!("keeps the last {n} of {found} positions")),
            _ => None,
        };
        match self {
            Op::Slice(op) => {
                let (found, wanted) = (length(op.x, op.axis), op.length.at(bucket));
                let start = if let From::Start(start) = op.from { start } else { 0 };
                (start.saturating_add(wanted) > found).then(|| {
                    let axis = op.axis;
                    format!(
                        "takes {wanted} positions from {start} of axis {axis}, which has {found}"
                    )
                })
            }
            Op::Patch(op) => {
                let found = entry.value(op.x).shape.last().map_or(0, |dim| dim.at(bucket));
                let repeated = if let PatchPad::RepeatLast(n) = op.pad { n } else { 0 };
                let short = match op.pad {
                    PatchPad::ZeroFirst => found == 0,
                    _ => found.saturating_add(repeated) < op.length,
                };
                let p = op.length;
                short.then(|| format!("needs {p} steps for a patch, found {found}"))
            }
            Op::Normalize(op) => match op.statistics {
                Statistics::First(n) if n > length(op.x, 1) => {
                    Some(format!("statistics of {n} of {} positions", length(op.x, 1)))
                }
                _ => None,
            },
            Op::Reshape(op) => {
                let found = crate::plan::elements(&entry.value(op.x).shape, bucket);
                let wanted = crate::plan::elements(&op.shape, bucket);
                (found != wanted).then(|| format!("{found} elements cannot become {wanted}"))
            }
            Op::RnnStack(op) => kept(op.keep, length(op.x, 1)),
            Op::EncoderStack(op) | Op::DecoderStack(op) => kept(op.keep, length(op.x, 1)),
            Op::Gather(op) if length(op.x, op.axis) == 0 => {
                Some(format!("gathers from axis {}, which is empty", op.axis))
            }
            _ => None,
        }
    }

    /// Computes it in `f64`, on what the context holds.
    pub(crate) fn reference(&self, context: &mut ReferenceContext<'_>) -> Vec<Tensor> {
        for_op!(self, op => op.reference(context))
    }

    /// The values it reads.
    pub fn reads(&self) -> Vec<ValueId> {
        let mut reads = Vec::new();
        self.clone().visit_values(&mut |id| reads.push(*id));
        reads
    }

    /// Visits every value id that it reads; passes that rewrite plans rename through this.
    pub fn visit_values(&mut self, visit: &mut dyn FnMut(&mut ValueId)) {
        for_op!(self, op => op.visit_values(visit))
    }

    /// The weights it reads.
    pub fn weights(&self) -> Vec<WeightId> {
        let mut weights = Vec::new();
        self.clone().visit_weights(&mut |id| weights.push(*id));
        weights
    }

    /// Visits every weight id that it reads.
    pub fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut WeightId)) {
        for_op!(self, op => op.visit_weights(visit))
    }

    /// The states it reads or writes.
    pub fn states(&self) -> Vec<StateId> {
        match self {
            Op::Normalize(op) => op.running.into_iter().collect(),
            Op::Attention(op) => {
                op.ring.iter().flat_map(|ring| [ring.keys, ring.values, ring.position]).collect()
            }
            Op::RnnStack(op) => {
                op.states.iter().flat_map(|states| states.slots.iter().copied()).collect()
            }
            _ => Vec::new(),
        }
    }
}

macro_rules! into_op {
    ($($name:ident),*) => {
        $(impl std::convert::From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*
    };
}

into_op!(
    Normalize,
    Denormalize,
    Patch,
    Linear,
    Norm,
    Attention,
    RnnStack,
    Embedding,
    Concat,
    Slice,
    Gather,
    Transpose,
    Expand,
    Reshape,
    Ramp,
    Pool,
    Interpolate,
    Unary,
    Binary,
    WeightedSum,
    EmpiricalQuantiles,
    Sample
);
