//! Where the workers of a run wait for each other: not at barriers, but where one needs what
//! another writes, for that one alone.
//!
//! Counts and waits are the team's; here is what the counts mean, and the noise that tests add.

use crate::team::Worker;
use std::cell::Cell;

/// A worker's side of a run of the stack: how often it has published. All workers publish equally
/// often in a run, so they begin with the same count, whatever they ran before.
pub(super) struct Meetings<'a> {
    worker: Worker<'a>,
    count: Cell<u32>,
}

impl<'a> Meetings<'a> {
    pub(super) fn new(worker: Worker<'a>) -> Self {
        Meetings { worker, count: Cell::new(worker.announced()) }
    }

    pub(super) fn worker(&self) -> Worker<'a> {
        self.worker
    }

    /// This worker's part of a step is written.
    #[inline]
    pub(super) fn publish(&self) {
        #[cfg(test)]
        noise::disturb();
        self.count.set(self.count.get() + 1);
        self.worker.announce(self.count.get());
    }

    /// Waits until the others have published as often as this worker.
    #[inline]
    pub(super) fn wait(&self) {
        for other in (0..self.worker.workers()).filter(|&other| other != self.worker.index()) {
            self.wait_for(other, self.count.get());
        }
    }

    /// How often this worker has published.
    pub(super) fn count(&self) -> u32 {
        self.count.get()
    }

    /// Publishes up to a count, so that all workers are equal again after such a series.
    pub(super) fn publish_until(&self, count: u32) {
        self.count.set(count);
        self.worker.announce(count);
    }

    /// Waits until worker `other` has published up to a count.
    #[inline]
    pub(super) fn wait_for(&self, other: usize, count: u32) {
        #[cfg(test)]
        noise::disturb();
        self.worker.wait_for(other, count);
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn stacks_that_follow_each_other_in_a_run_count_on() {
        for workers in [1, 2, 3, 5] {
            let cells: Vec<AtomicUsize> = (0..workers).map(|_| AtomicUsize::new(0)).collect();
            let mut team = Team::new(workers).unwrap();
            for _ in 0..20 {
                team.run(|w| {
                    for stack in 0..3 {
                        let meetings = Meetings::new(w);
                        for step in 1..40 {
                            let step = 100 * stack + step;
                            cells[w.index()].store(step, Ordering::Relaxed);
                            meetings.publish();
                            meetings.wait();
                            // Another may be a step ahead, never behind.
                            let seen = cells.iter().map(|c| c.load(Ordering::Relaxed));
                            assert!(seen.into_iter().all(|s| s == step || s == step + 1));
                        }
                        w.barrier();
                    }
                })
                .unwrap();
            }
        }
    }
}
