//! Whole-forecast kernels: one launch that reads its inputs from mapped host memory, computes an
//! entire entry, and writes its outputs and the completion flag back.
//!
//! What makes one forecast fast: no copies, one launch, no stream synchronisation. A recogniser
//! looks at an entry after fusion and takes it or leaves it; what no recogniser takes runs step by
//! step. The bits are those of the step-by-step kernels of the latency class, or the whole kernel
//! serves every bucket of that class.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::ops::{Activation, Linear, LinearAxis, Op, Reshape};
use neural_forecast_runtime::plan::{Dim, Entry, Step, ValueId};

use super::encoder_whole::WholeEncoder;
use super::rnn_whole::WholeRnn;
use super::{Build, Packer};

/// Mapped host memory of a program, as addresses that the device may use.
///
/// What is dear (H200, PCIe 5, 2026-11-21; on top of 4.3 µs for a graph of one kernel that reads
/// nothing and announces its end): a first read 1.2 µs, after that about 30 GB/s; reads of the same
/// line are not merged but served one after another, about 1 µs each block and 30 ns each thread.
/// So one thread of the grid reads the header, each byte of an input is read once (20 KB in 1.3 µs
/// by bulk copies of up to 16 KB into shared memory, 64 KB in 2.1), and blocks that want the same
/// get it from one another. Writes up to 20 KB cost nothing, 256 KB 4.5 µs.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostPages {
    /// The run header (`RunHeader` in `ptx/run.cuh`), written by the host before the launch.
    pub(crate) header: u64,
    /// Each input of the entry, in order; full buckets.
    pub(crate) inputs: Vec<u64>,
    /// Each output of the entry, in order; full buckets.
    pub(crate) outputs: Vec<u64>,
    /// A `u32` that must become the header's sequence number, with release order at system scope,
    /// after every output has been written.
    pub(crate) flag: u64,
    /// Where the kernel may linger (`ptx/linger.cuh`): a `u32` that becomes the launch's number
    /// when it leaves. A launch that makes use of it is marked ([`Launch::lingers`]).
    ///
    /// [`Launch::lingers`]: crate::launch::Launch::lingers
    pub(crate) left: Option<u64>,
}

/// An entry that one kernel computes.
pub(crate) trait Whole: std::fmt::Debug + Send + Sync {
    /// Appends the one launch that does everything, or nothing and `false` where this bucket or
    /// class is better served step by step. Called twice, as `Loaded::build`.
    fn build(&self, build: &mut Build<'_>, pages: &HostPages) -> Result<bool, DeviceError>;
}

/// Every recogniser that takes the entry; the first that serves a bucket is used.
pub(crate) fn load(
    entry: &Entry,
    packer: &mut Packer<'_>,
) -> Result<Vec<Box<dyn Whole>>, DeviceError> {
    let mut all: Vec<Box<dyn Whole>> = Vec::new();
    if let Some(rnn) = WholeRnn::load(entry, packer)? {
        all.push(Box::new(rnn));
    }
    if let Some(encoder) = WholeEncoder::load(entry, packer)? {
        all.push(Box::new(encoder));
    }
    Ok(all)
}

/// A product over features with nothing but its bias around it.
pub(super) fn is_plain(linear: &Linear) -> bool {
    linear.axis == LinearAxis::Features
        && linear.activation == Activation::Identity
        && linear.prologue.is_none()
        && linear.gate.is_none()
        && linear.residual.is_none()
}

/// The one plain product of rows of `width` features that leads from `value` to `output`, where
/// `steps` are that, reshapes around it, and no more.
pub(super) fn head<'a>(
    entry: &'a Entry,
    steps: &'a [Step],
    mut value: ValueId,
    width: &Dim,
    output: ValueId,
) -> Option<&'a Linear> {
    let mut head = None;
    for step in steps {
        match &step.op {
            Op::Linear(linear) if linear.x == value && head.is_none() => {
                if entry.value(value).shape.last() != Some(width) || !is_plain(linear) {
                    return None;
                }
                head = Some(linear);
            }
            Op::Reshape(Reshape { x, .. }) if *x == value => {}
            _ => return None,
        }
        value = step.outputs[0];
    }
    head.filter(|_| value == output)
}
