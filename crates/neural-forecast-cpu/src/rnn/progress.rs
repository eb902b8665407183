//! How far each worker of a run has come: counters that only grow, so that whoever needs what
//! another writes waits for that one alone and nobody else.
//!
//! Not a barrier. One cache line goes one way; nobody sleeps, so no wake-up can be lost; a wait
//! leaves when the run is poisoned ([`Worker::wait_until`]).

use crate::team::Worker;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A counter alone on its pair of cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

/// A counter for each worker.
#[derive(Debug)]
pub(super) struct Progress(Vec<Counter>);

impl Progress {
    pub(super) fn new(workers: usize) -> Progress {
        Progress((0..workers).map(|_| Counter::default()).collect())
    }

    /// Back to zero; all workers call it, and nobody passes before all counters are. So a run that
    /// a panic cut short leaves nothing behind.
    pub(super) fn start(&self, worker: Worker<'_>) {
        self.0[worker.index()].0.store(0, Ordering::Relaxed);
        worker.barrier();
    }

    /// What this worker wrote so far may be read by those who wait for `count`.
    #[inline]
    pub(super) fn publish(&self, worker: Worker<'_>, count: usize) {
        #[cfg(test)]
        noise::disturb();
        debug_assert!(count >= self.0[worker.index()].0.load(Ordering::Relaxed));
        self.0[worker.index()].0.store(count, Ordering::Release);
    }

    /// Returns when worker `other` has published `count` or more.
    #[inline]
    pub(super) fn wait(&self, worker: Worker<'_>, other: usize, count: usize) {
        #[cfg(test)]
        noise::disturb();
        let counter = &self.0[other].0;
        worker.wait_until(|| counter.load(Ordering::Acquire) >= count);
    }

    /// Returns when all the other workers have published `count` or more.
    #[inline]
    pub(super) fn wait_all(&self, worker: Worker<'_>, count: usize) {
        for other in (0..self.0.len()).filter(|&other| other != worker.index()) {
            self.wait(worker, other, count);
        }
    }
}

/// A worker's side of a run: how often it has published, which is the same sequence of events for
/// all workers.
pub(super) struct Meetings<'a> {
    progress: &'a Progress,
    worker: Worker<'a>,
    count: Cell<usize>,
}

impl<'a> Meetings<'a> {
    pub(super) fn new(progress: &'a Progress, worker: Worker<'a>) -> Self {
        Meetings { progress, worker, count: Cell::new(0) }
    }

    pub(super) fn worker(&self) -> Worker<'a> {
        self.worker
    }

    /// Before anything else.
    pub(super) fn start(&self) {
        self.progress.start(self.worker);
    }

    /// This worker's part of a step is written.
    #[inline]
    pub(super) fn publish(&self) {
        self.count.set(self.count.get() + 1);
        self.progress.publish(self.worker, self.count.get());
    }

    /// Waits until the others have published as often as this worker.
    #[inline]
    pub(super) fn wait(&self) {
        self.progress.wait_all(self.worker, self.count.get());
    }

    /// Waits until worker `other` has published once more than this worker.
    #[inline]
    pub(super) fn wait_ahead(&self, other: usize) {
        self.progress.wait(self.worker, other, self.count.get() + 1);
    }
}

/// Scheduling noise for tests: workers stop for a moment where they publish and wait.
#[cfg(test)]
pub(super) mod noise {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    static SEED: AtomicU64 = AtomicU64::new(0);
    thread_local! { static STATE: Cell<u64> = const { Cell::new(0) } }

    /// Switches the noise on (any other seed than 0) or off.
    pub(in super::super) fn set(seed: u64) {
        SEED.store(seed, Ordering::Relaxed);
    }

    pub(super) fn disturb() {
        let seed = SEED.load(Ordering::Relaxed);
        if seed == 0 {
            return;
        }
        let state = STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
        STATE.set(state);
        match state >> 59 {
            0 => std::thread::sleep(Duration::from_micros(state >> 32 & 63)),
            1..4 => std::thread::yield_now(),
            4..8 => (0..(state >> 32) & 1023).for_each(|_| std::hint::spin_loop()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::Team;
    use std::panic::resume_unwind;

    #[test]
    fn what_was_written_before_a_count_is_seen_after_it() {
        for workers in [2, 3, 5] {
            let progress = Progress::new(workers);
            let cells: Vec<AtomicUsize> = (0..workers).map(|_| AtomicUsize::new(0)).collect();
            let mut team = Team::new(workers).unwrap();
            for _ in 0..50 {
                team.run(|w| {
                    progress.start(w);
                    for step in 1..40 {
                        cells[w.index()].store(step, Ordering::Relaxed);
                        progress.publish(w, step);
                        progress.wait_all(w, step);
                        // Another may be a step ahead, never behind.
                        let seen = cells.iter().map(|c| c.load(Ordering::Relaxed));
                        assert!(seen.into_iter().all(|s| s == step || s == step + 1));
                    }
                    w.barrier();
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn a_panic_ends_a_wait_and_the_next_run_starts_from_zero() {
        for (workers, culprit) in [(2, 0), (2, 1), (3, 2)] {
            let progress = Progress::new(workers);
            let mut team = Team::new(workers).unwrap();
            for _ in 0..20 {
                let error = team.run(|w| {
                    progress.start(w);
                    progress.publish(w, 7);
                    if w.index() == culprit {
                        // Quiet: no message on standard error.
                        resume_unwind(Box::new("step 8".to_owned()));
                    }
                    progress.wait_all(w, 8);
                });
                assert!(error.unwrap_err().to_string().contains("step 8"));
                team.run(|w| {
                    progress.start(w);
                    let mine = progress.0[w.index()].0.load(Ordering::Relaxed);
                    assert_eq!(mine, 0);
                    progress.publish(w, 1);
                    progress.wait_all(w, 1);
                })
                .unwrap();
            }
        }
    }
}
