//! Layers as a pipeline: each worker runs its layers a chunk of steps at a time, as soon as the
//! worker of the layers before has published that chunk.
//!
//! One direction only: a backward layer needs the whole of the one before. The recurrent weights of
//! a layer stay in one core's cache, and the input products of a chunk read their weights once.

use super::block::Block;
use super::meetings::Meetings;
use super::pass::Pass;
use crate::gemm::Scratch;

impl Block<'_> {
    /// This worker's layers. Ends with a barrier, because other rows may follow.
    ///
    /// # Safety
    /// As [`super::Rnn::run`]; the schedule holds stages.
    pub(super) unsafe fn wavefront(&self, meetings: &Meetings<'_>, scratch: &mut Scratch) {
        let (worker, s) = (meetings.worker(), self.schedule);
        let stage = s.stages[worker.index()].clone();
        let pass = |l: usize| -> Pass<'_> {
            // SAFETY: in this mode each layer has its own memory and output sequence.
            unsafe { self.pass(l, 0, &self.rnn.layers[l][0], s.steps, None) }
        };
        // SAFETY: layers before this stage's first are read where their worker has published, and
        // nobody else touches the memory of this stage's layers.
        unsafe {
            for l in stage.clone() {
                pass(l).enter();
            }
            let mut done = 0;
            while done < s.steps {
                let n = s.chunk.min(s.steps - done);
                if stage.start > 0 && !stage.is_empty() {
                    meetings.wait_ahead(worker.index() - 1);
                    pass(stage.start).fetch(done, n);
                }
                for l in stage.clone() {
                    pass(l).chunk(done, n, scratch);
                }
                meetings.publish();
                done += n;
            }
            for l in stage {
                pass(l).leave();
            }
        }
        worker.barrier();
    }
}
