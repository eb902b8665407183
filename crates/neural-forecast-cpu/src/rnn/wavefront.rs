//! Layers as a pipeline: each worker runs its list of tasks, chunks of steps of a layer, as soon as
//! the workers that it waits for have published theirs.
//!
//! One direction only: a backward layer needs the whole of the one before. The recurrent weights of
//! a layer stay in a core's cache for a chunk at least, and the input products of a chunk read
//! their weights once.

use super::block::Block;
use super::meetings::Meetings;
use super::pass::Pass;
use crate::gemm::Scratch;

impl Block<'_> {
    /// This worker's tasks. Ends with a barrier, because other rows may follow.
    ///
    /// # Safety
    /// As [`super::Rnn::run`]; the schedule holds tasks.
    pub(super) unsafe fn wavefront(&self, meetings: &Meetings<'_>, scratch: &mut Scratch) {
        let (worker, s) = (meetings.worker(), self.schedule);
        let before = meetings.count();
        for task in &s.tasks[worker.index()] {
            // SAFETY: in this mode each layer has its own memory and output sequence.
            let pass: Pass<'_> =
                unsafe { self.pass(task.layer, 0, &self.rnn.layers[task.layer][0], s.steps, None) };
            let done = task.chunk * s.chunk;
            let n = s.chunk.min(s.steps - done);
            for (other, count) in task.after.into_iter().flatten() {
                meetings.wait_for(other, before + count);
            }
            if task.after[0].is_some() {
                pass.fetch(done, n);
            }
            // SAFETY: what the task reads is published, and only the task after it in its layer
            // touches the same memory.
            unsafe {
                if done == 0 {
                    pass.enter();
                }
                pass.chunk(done, n, scratch);
                if done + n == s.steps {
                    pass.leave();
                }
            }
            meetings.publish();
        }
        meetings.publish_until(before + s.longest);
        worker.barrier();
    }
}
