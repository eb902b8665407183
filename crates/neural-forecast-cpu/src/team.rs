//! A small team of threads that enters a forecast together and walks the same steps.
//!
//! Not a task pool: no queues, no stealing, no nesting. Every worker runs the same function with
//! its index, takes its share of each kernel, and meets the others at barriers. The caller is
//! worker 0, so a team of one has no threads and no synchronisation at all.
//!
//! Waiting is a bounded spin, then a yield to the scheduler; between forecasts workers spin briefly
//! and then sleep. A worker that panics poisons the run: the others leave at their next barrier,
//! and [`Team::run`] reports the panic as an error.

use std::any::Any;
use std::fmt;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most workers of a team.
pub const WORKERS_MAX: usize = 64;
/// How long an idle worker spins before it sleeps: a stream of forecasts finds it awake, a pause
/// costs no CPU.
const IDLE_SPIN: Duration = Duration::from_micros(50);
/// Polls at a barrier before the thread offers its core to others. A step of a recurrence is a few
/// microseconds; a wait this long means that the other worker is not running.
const BARRIER_POLLS: u32 = 500;

/// A value alone on its pair of cache lines.
#[repr(align(128))]
struct Alone<T>(T);

type Job = *const (dyn Fn(Worker<'_>) + Sync);

struct Posted(Option<Job>);
// SAFETY: the pointee is `Sync`, and `Team::run` keeps it alive until every worker is done with it.
unsafe impl Send for Posted {}

struct Meeting {
    workers: usize,
    arrived: Alone<AtomicUsize>,
    generation: Alone<AtomicUsize>,
    poisoned: AtomicBool,
}

struct Hall {
    meeting: Meeting,
    epoch: Alone<AtomicUsize>,
    finished: Alone<AtomicUsize>,
    job: Mutex<Posted>,
    wake: Condvar,
    closing: AtomicBool,
    panic: Mutex<Option<String>>,
}

/// A member of the team inside a run.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    index: usize,
    meeting: &'a Meeting,
}

/// The threads. Dropping it ends them.
pub struct Team {
    hall: Arc<Hall>,
    threads: Vec<JoinHandle<()>>,
}

/// A worker panicked; holds its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeamError {
    message: String,
}

impl fmt::Display for TeamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a worker of the CPU device panicked: {}", self.message)
    }
}

impl std::error::Error for TeamError {}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("workers", &self.workers()).finish()
    }
}

/// Unwinds a worker out of a poisoned run; never reported itself.
struct Left;

impl<'a> Worker<'a> {
    /// A worker on its own, for kernels outside a team.
    pub fn alone() -> Worker<'static> {
        static ALONE: Meeting = Meeting {
            workers: 1,
            arrived: Alone(AtomicUsize::new(0)),
            generation: Alone(AtomicUsize::new(0)),
            poisoned: AtomicBool::new(false),
        };
        Worker { index: 0, meeting: &ALONE }
    }

    /// This worker, from 0.
    #[inline]
    pub fn index(self) -> usize {
        self.index
    }

    /// Workers in the team.
    #[inline]
    pub fn workers(self) -> usize {
        self.meeting.workers
    }

    /// This worker's share of `n` equal pieces.
    #[inline]
    pub fn share(self, n: usize) -> std::ops::Range<usize> {
        let w = self.workers();
        n * self.index / w..n * (self.index + 1) / w
    }

    /// Waits until every worker is here; what they wrote before is visible after.
    #[inline]
    pub fn barrier(self) {
        if self.meeting.workers > 1 {
            self.meeting.wait();
        }
    }
}

impl Meeting {
    #[inline]
    fn wait(&self) {
        let generation = self.generation.0.load(Ordering::Relaxed);
        // Release what this worker wrote, acquire what the earlier arrivals wrote.
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.generation.0.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut polls = 0u32;
        while self.generation.0.load(Ordering::Acquire) == generation {
            if self.poisoned.load(Ordering::Relaxed) {
                resume_unwind(Box::new(Left));
            }
            polls = polls.saturating_add(1);
            if polls > BARRIER_POLLS {
                std::thread::yield_now();
            } else if polls > 64 {
                spin_loop();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // No code panics while it holds these locks; a poisoned one still holds valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hall {
    /// Runs the job as worker `index`; a panic is recorded and poisons the meeting.
    fn work(&self, index: usize, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let worker = Worker { index, meeting: &self.meeting };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(worker))) {
            if !payload.is::<Left>() {
                lock(&self.panic).get_or_insert_with(|| describe(&*payload));
            }
            self.meeting.poisoned.store(true, Ordering::Relaxed);
        }
    }

    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.next(seen) {
            seen = epoch;
            let posted = lock(&self.job).0;
            if let Some(job) = posted {
                // SAFETY: `Team::run` keeps the job alive until `finished` counts this worker.
                self.work(index, unsafe { &*job });
            }
            self.finished.0.fetch_add(1, Ordering::Release);
        }
    }

    /// The next epoch after `seen`; `None` when the team closes.
    fn next(&self, seen: usize) -> Option<usize> {
        let start = Instant::now();
        let mut polls = 0u32;
        loop {
            let epoch = self.epoch.0.load(Ordering::Acquire);
            if epoch != seen {
                return (!self.closing.load(Ordering::Relaxed)).then_some(epoch);
            }
            spin_loop();
            polls += 1;
            if polls.is_multiple_of(64) && start.elapsed() > IDLE_SPIN {
                break;
            }
        }
        let mut posted = lock(&self.job);
        while self.epoch.0.load(Ordering::Acquire) == seen {
            posted = self.wake.wait(posted).unwrap_or_else(PoisonError::into_inner);
        }
        drop(posted);
        (!self.closing.load(Ordering::Relaxed)).then(|| self.epoch.0.load(Ordering::Acquire))
    }

    fn post(&self, job: Option<Job>) {
        let mut posted = lock(&self.job);
        posted.0 = job;
        // Under the lock, so that a worker about to sleep cannot miss it.
        self.epoch.0.fetch_add(1, Ordering::Release);
        drop(posted);
        self.wake.notify_all();
    }
}

fn describe(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".into())
}

impl Team {
    /// A team of `workers` (at least 1, at most [`WORKERS_MAX`]) including the caller.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(workers: usize) -> std::io::Result<Team> {
        let workers = workers.clamp(1, WORKERS_MAX);
        let hall = Arc::new(Hall {
            meeting: Meeting {
                workers,
                arrived: Alone(AtomicUsize::new(0)),
                generation: Alone(AtomicUsize::new(0)),
                poisoned: AtomicBool::new(false),
            },
            epoch: Alone(AtomicUsize::new(0)),
            finished: Alone(AtomicUsize::new(0)),
            job: Mutex::new(Posted(None)),
            wake: Condvar::new(),
            closing: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Team { hall, threads: Vec::with_capacity(workers - 1) };
        for index in 1..workers {
            let hall = Arc::clone(&team.hall);
            let thread = std::thread::Builder::new().name(format!("forecast-{index}"));
            // On failure `team` is dropped, which ends the threads that already exist.
            team.threads.push(thread.spawn(move || hall.serve(index))?);
        }
        Ok(team)
    }

    /// As many workers as this process may use cores (affinity and cgroup quota included).
    pub fn default_workers() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get()).min(WORKERS_MAX)
    }

    /// Workers, including the caller.
    pub fn workers(&self) -> usize {
        self.hall.meeting.workers
    }

    /// Runs `job` once on every worker and returns when all are done.
    ///
    /// # Errors
    /// If any worker panicked; the team stays usable.
    pub fn run(&mut self, job: impl Fn(Worker<'_>) + Sync) -> Result<(), TeamError> {
        let hall = &*self.hall;
        if self.threads.is_empty() {
            hall.work(0, &job);
        } else {
            let job: &(dyn Fn(Worker<'_>) + Sync) = &job;
            // SAFETY: only the lifetime is erased; this function does not return (nor unwind,
            // `work` catches) before every worker has finished with the job.
            let posted = unsafe { std::mem::transmute::<&(dyn Fn(Worker<'_>) + Sync), Job>(job) };
            hall.finished.0.store(0, Ordering::Relaxed);
            hall.post(Some(posted));
            hall.work(0, job);
            let mut polls = 0u32;
            while hall.finished.0.load(Ordering::Acquire) < self.threads.len() {
                polls = polls.saturating_add(1);
                if polls > BARRIER_POLLS { std::thread::yield_now() } else { spin_loop() }
            }
        }
        if hall.meeting.poisoned.swap(false, Ordering::Relaxed) {
            hall.meeting.arrived.0.store(0, Ordering::Relaxed);
            let message = lock(&hall.panic).take().unwrap_or_else(|| "unknown".into());
            return Err(TeamError { message });
        }
        Ok(())
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.hall.closing.store(true, Ordering::Relaxed);
        self.hall.post(None);
        for thread in self.threads.drain(..) {
            // A worker catches every panic of its jobs, so there is nothing to report.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_see_what_the_others_wrote_before_a_barrier() {
        for workers in [1, 2, 3] {
            let mut team = Team::new(workers).unwrap();
            let cells: Vec<AtomicUsize> = (0..workers).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..200 {
                team.run(|w| {
                    cells[w.index()].store(round, Ordering::Relaxed);
                    w.barrier();
                    assert!(cells.iter().all(|c| c.load(Ordering::Relaxed) == round));
                    w.barrier();
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        let mut team = Team::new(3).unwrap();
        for n in [0, 1, 2, 3, 7, 100] {
            let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            team.run(|w| {
                for i in w.share(n) {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_team_lives_on() {
        for (workers, culprit) in [(1, 0), (2, 0), (2, 1), (3, 1)] {
            let mut team = Team::new(workers).unwrap();
            let error = team
                .run(|w| {
                    if w.index() == culprit {
                        // Quiet: no message on standard error.
                        resume_unwind(Box::new("tile of 13 rows".to_owned()));
                    }
                    w.barrier();
                    w.barrier();
                })
                .unwrap_err();
            assert!(error.to_string().contains("tile of 13 rows"), "{error}");
            let sum = AtomicUsize::new(0);
            team.run(|w| {
                w.barrier();
                sum.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(sum.load(Ordering::Relaxed), workers);
        }
    }
}
