//! Who takes what: whether a run stays on the calling thread, is shared step by step, or is split
//! by rows of the batch.
//!
//! Decided once, when an entry is compiled, from its shapes and this machine's caches.

use crate::caches::Caches;
use crate::kernels::Loaded;
use neural_forecast_runtime::arena::ArenaPlan;
use neural_forecast_runtime::device::Request;
use neural_forecast_runtime::ops::Op;
use neural_forecast_runtime::plan::{Bucket, Dim, Entry};

/// How the team takes a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The calling thread alone: less work than waking another would cost.
    Alone,
    /// All workers walk the same steps together, with a barrier after each.
    Together,
    /// Each worker walks the steps alone, with some rows of the batch at a time: this many.
    Apart(usize),
}

/// Operations below which one thread is done before a sleeping worker has woken (tens of
/// microseconds).
pub(crate) const ALONE_FLOPS: u64 = 4_000_000;
/// Rows at a time that fill the tiles of a recurrence.
const APART_ROWS_RECURRENT: usize = 24;
/// Most rows at a time.
const APART_ROWS: usize = 48;

impl Way {
    pub(crate) fn choose(
        entry: &Entry,
        steps: &[Loaded],
        request: Request,
        workers: usize,
        (flops, alone): (u64, u64),
    ) -> Way {
        let batch = request.bucket.batch;
        if flops < alone {
            return Way::Alone;
        }
        let by_rows = |shape: &[Dim]| {
            matches!(shape.first(), Some(Dim::Batch(_)))
                || !shape.iter().any(|dim| matches!(dim, Dim::Batch(_)))
        };
        let separable = entry.values.iter().all(|value| by_rows(&value.shape))
            && steps.iter().all(Loaded::keeps_rows_apart);
        let together = steps.iter().any(|step| step.prefers_together(batch, workers));
        if !separable || together || batch < workers || batch == 1 {
            return Way::Together;
        }
        // New states wait in a worker's memory until the run is committed, so it goes once.
        if entry.uses_states() {
            return Way::Apart(batch.div_ceil(workers));
        }
        let one = ArenaPlan::new(entry, Bucket { batch: 1, ..request.bucket }).bytes();
        let recurrent = steps.iter().any(|step| matches!(step.step.op, Op::RnnStack(_)));
        let least = if recurrent { APART_ROWS_RECURRENT } else { 1 };
        // Half of a core's L2 for values, the other half for weights and copies.
        let rows = (Caches::of_this_machine().l2 / 2 / one.max(1)).clamp(least, APART_ROWS);
        let pieces = batch.div_ceil(rows).next_multiple_of(workers);
        Way::Apart(batch.div_ceil(pieces))
    }
}
