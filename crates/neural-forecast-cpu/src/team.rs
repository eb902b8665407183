//! A small team of threads that enters a forecast together and walks the same steps.
//!
//! Not a task pool: no queues, no stealing, no nesting. Every worker runs the same function with
//! its index, takes its share of each kernel, and meets the others at barriers. The caller is
//! worker 0, so a team of one has no threads and no synchronisation at all.
//!
//! All meetings are signals (`signal`): the entry of a run, each worker's end of it, barriers, and
//! the counts that one worker announces and another waits for. A barrier is a dissemination
//! barrier, ⌈log₂ workers⌉ rounds in which each worker raises a number of its own and waits for one
//! other's.
//!
//! Every wait is bounded before it sleeps. Between runs workers spin for [`TeamOptions::spin`], so
//! that a stream of forecasts finds them awake; inside a run a worker that waits long does so for
//! one that is not running, and only sleep gives that one the core. A worker that panics poisons
//! the run: the others leave at their next meeting, asleep or not, and [`Team::run`] reports the
//! panic as an error.
//!
//! Why not rayon 1.12 (two threads of a virtual Zen 4, idle otherwise; medians): entering a run
//! takes 0.3 to 0.5 µs while the other worker spins and 24 to 34 µs when it sleeps, a `broadcast`
//! of rayon 12 and 70 µs; 100 steps of 1.9 µs take 16 to 35 µs more than their work with barriers
//! and 184 µs more with a `join` each. Where a stranger occupies a core, rayon's tails are the
//! better ones (p99 of the same 100 steps 0.3 ms over the work against 4 to 6 ms): one of its
//! threads takes both halves of a step, which a team with fixed shares cannot. A barrier of
//! two exchanges takes 0.05 µs, the same with plain stores as well, one counter and a generation
//! 0.12 µs.

mod pin;
mod signal;
mod turn;

pub use pin::{Pin, PinError, allowed_cores, pin_this_thread};
pub use turn::{InTurn, Turn};

use self::signal::{Alone, Signal};
use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most workers of a team.
pub const WORKERS_MAX: usize = 64;
/// How long an idle worker spins before it sleeps, where nothing else is asked for.
pub const SPIN: Duration = Duration::from_micros(50);
/// How long a worker inside a run polls for another before it sleeps: about as long as a sleeping
/// thread needs to wake (25 to 115 µs on a virtual machine with idle cores).
const MEETING_SPIN: Duration = Duration::from_micros(100);

/// How a team is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TeamOptions {
    /// Workers (at least 1, at most [`WORKERS_MAX`]), the caller included.
    pub workers: usize,
    /// How long a worker without work polls for more before it sleeps; with zero it sleeps at
    /// once.
    pub spin: Duration,
    /// Cores of the workers. The caller's thread, worker 0, is left as it is.
    pub pin: Pin,
}

impl TeamOptions {
    /// A team of so many workers, otherwise as usual.
    pub fn new(workers: usize) -> Self {
        TeamOptions { workers, spin: SPIN, pin: Pin::Free }
    }
}

type Job = *const (dyn Fn(Worker<'_>) + Sync);

/// The way into a run: one pair of cache lines, so that a worker that sees the number has the job.
struct Entry {
    /// Runs so far.
    entered: Signal,
    /// What the run that was entered last does; nothing more, if there is none.
    job: UnsafeCell<Option<Job>>,
}
// SAFETY: the job is written by the caller of a run while all workers are between runs, which the
// signals `entered` and `finished` order; the pointee is `Sync`, and `Team::run` keeps it alive
// until every worker is done with it.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

/// Where the workers of a run meet.
struct Meeting {
    workers: usize,
    /// Of each round of a barrier, each worker's number of barriers.
    rounds: Vec<Alone<Signal>>,
    /// What each worker has announced: the run's number above, its count in the run below.
    counts: Vec<Alone<Signal>>,
    poisoned: AtomicBool,
}

struct Hall {
    entry: Alone<Entry>,
    meeting: Meeting,
    /// The last run that each worker but the caller is done with.
    finished: Vec<Alone<Signal>>,
    panic: Mutex<Option<String>>,
    idle_spin: Duration,
}

/// A member of the team inside a run.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    index: usize,
    /// The run's number, above the counts of [`Worker::announce`].
    run: u64,
    meeting: &'a Meeting,
}

/// The threads. Dropping it ends them.
pub struct Team {
    hall: Arc<Hall>,
    threads: Vec<JoinHandle<()>>,
    runs: u64,
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

/// A team that could not be made.
#[derive(Debug)]
pub enum StartError {
    /// The system gives no more threads.
    Thread(io::Error),
    /// Its threads cannot be bound to the cores that were asked for.
    Pin(PinError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Thread(error) => write!(f, "no thread for a worker: {error}"),
            StartError::Pin(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> io::Error {
        match error {
            StartError::Thread(error) => error,
            StartError::Pin(error) => io::Error::new(io::ErrorKind::InvalidInput, error),
        }
    }
}

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
            rounds: Vec::new(),
            counts: Vec::new(),
            poisoned: AtomicBool::new(false),
        };
        Worker { index: 0, run: 0, meeting: &ALONE }
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
            self.meeting.barrier(self.index);
        }
    }

    /// Tells the others a count, for example of steps done. It begins at 0 with each run and only
    /// grows, to less than 2³¹. What this worker wrote before is visible to whoever has waited for
    /// it.
    #[inline]
    pub fn announce(self, count: u32) {
        if let Some(own) = self.meeting.counts.get(self.index) {
            own.0.raise(self.run << COUNT_BITS | u64::from(count));
        }
    }

    /// Waits until another worker has announced the count, or a greater one.
    ///
    /// # Panics
    /// If there is no such worker.
    #[inline]
    pub fn wait_for(self, other: usize, count: u32) {
        let count = self.run << COUNT_BITS | u64::from(count);
        self.meeting.wait(&self.meeting.counts[other].0, count);
    }

    /// What this worker announced last in this run.
    #[inline]
    pub fn announced(self) -> u32 {
        let word = self.meeting.counts.get(self.index).map_or(0, |own| own.0.value());
        (word & ((1 << COUNT_BITS) - 1)) as u32
    }
}

/// Bits of a count that a worker announces; the run's number is above them.
const COUNT_BITS: u32 = 31;

impl Meeting {
    fn new(workers: usize) -> Meeting {
        let (rounds, counts) = if workers == 1 {
            (0, 0)
        } else {
            (workers.next_power_of_two().ilog2() as usize, workers)
        };
        let signals = |n| (0..n).map(|_| Alone(Signal::new())).collect();
        Meeting {
            workers,
            rounds: signals(rounds * workers),
            counts: signals(counts),
            poisoned: AtomicBool::new(false),
        }
    }

    fn barrier(&self, index: usize) {
        // Every worker has met as often as any other, so its own number is everybody's.
        let number = self.rounds[index].0.value() + 1;
        let mut distance = 1;
        for round in self.rounds.chunks_exact(self.workers) {
            round[index].0.raise(number);
            let other = if index >= distance { index } else { index + self.workers } - distance;
            self.wait(&round[other].0, number);
            distance *= 2;
        }
    }

    #[inline]
    fn wait(&self, signal: &Signal, value: u64) {
        if !signal.wait(value, MEETING_SPIN, Some(&self.poisoned)) {
            resume_unwind(Box::new(Left));
        }
    }

    /// Makes everybody leave who waits or will wait.
    fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
        self.rounds.iter().chain(&self.counts).for_each(|signal| signal.0.wake());
    }

    /// Makes it fit for the next run, once all have left.
    fn recover(&self) {
        self.rounds.iter().for_each(|signal| signal.0.reset(0));
        self.poisoned.store(false, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds these locks; a poisoned one still holds valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hall {
    /// Runs the job as worker `index`; a panic is recorded and poisons the meeting.
    fn work(&self, index: usize, run: u64, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let worker = Worker { index, run, meeting: &self.meeting };
        // Also for runs without counts: numbers a great many runs behind would compare wrong.
        worker.announce(0);
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(worker))) {
            if !payload.is::<Left>() {
                lock(&self.panic).get_or_insert_with(|| describe(&*payload));
            }
            self.meeting.poison();
        }
    }

    /// The life of worker `index`.
    fn serve(&self, index: usize) {
        for run in 1.. {
            self.entry.0.entered.wait(run, self.idle_spin, None);
            // SAFETY: the caller of the run wrote it before it raised `entered`, and writes again
            // only after this worker has raised `finished`.
            let Some(job) = (unsafe { *self.entry.0.job.get() }) else { return };
            // SAFETY: `Team::run` keeps the job alive until this worker has finished the run.
            self.work(index, run, unsafe { &*job });
            self.finished[index - 1].0.raise(run);
        }
    }
}

fn describe(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".into())
}

/// Runs `job` on the calling thread as a team of one: no lock, no atomic, no other thread.
///
/// # Errors
/// If it panicked.
pub fn run_alone(job: impl FnOnce(Worker<'_>)) -> Result<(), TeamError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| job(Worker::alone())));
    outcome.map_err(|payload| TeamError { message: describe(&*payload) })
}

impl Team {
    /// A team of so many workers, otherwise as usual.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(workers: usize) -> Result<Team, StartError> {
        Team::with(&TeamOptions::new(workers))
    }

    /// A team.
    ///
    /// # Errors
    /// If the system gives no more threads, or refuses to bind them as asked.
    pub fn with(options: &TeamOptions) -> Result<Team, StartError> {
        let workers = options.workers.clamp(1, WORKERS_MAX);
        let cores = options.pin.cores(workers).map_err(StartError::Pin)?;
        let hall = Arc::new(Hall {
            entry: Alone(Entry { entered: Signal::new(), job: UnsafeCell::new(None) }),
            meeting: Meeting::new(workers),
            finished: (1..workers).map(|_| Alone(Signal::new())).collect(),
            panic: Mutex::new(None),
            idle_spin: options.spin,
        });
        let mut team = Team { hall, threads: Vec::with_capacity(workers - 1), runs: 0 };
        for index in 1..workers {
            let hall = Arc::clone(&team.hall);
            let thread = std::thread::Builder::new().name(format!("forecast-{index}"));
            // On failure `team` is dropped, which ends the threads that already exist.
            let thread = match cores.get(index) {
                None => thread.spawn(move || hall.serve(index)),
                Some(&core) => {
                    let (tell, told) = std::sync::mpsc::sync_channel(1);
                    let thread = thread.spawn(move || {
                        let bound = pin_this_thread(core);
                        let serves = bound.is_ok();
                        if tell.send(bound).is_ok() && serves {
                            hall.serve(index);
                        }
                    });
                    if let Ok(Err(error)) = told.recv() {
                        return Err(StartError::Pin(PinError::refused(index, core, &error)));
                    }
                    thread
                }
            };
            team.threads.push(thread.map_err(StartError::Thread)?);
        }
        Ok(team)
    }

    /// As many workers as this process may use cores: the calling thread's affinity and, on Linux,
    /// the cgroup's quota (rounded down) included, as they are now.
    pub fn default_workers() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get()).min(WORKERS_MAX)
    }

    /// Workers, including the caller.
    pub fn workers(&self) -> usize {
        self.hall.meeting.workers
    }

    /// Lets the workers begin the next run, or leave.
    fn enter(&mut self, job: Option<Job>) {
        self.runs += 1;
        let entry = &self.hall.entry.0;
        // SAFETY: all workers have finished the run before and read nothing before they enter.
        unsafe { *entry.job.get() = job };
        entry.entered.raise(self.runs);
    }

    /// Runs `job` once on every worker and returns when all are done.
    ///
    /// # Errors
    /// If any worker panicked; the team stays usable.
    pub fn run(&mut self, job: impl Fn(Worker<'_>) + Sync) -> Result<(), TeamError> {
        if self.threads.is_empty() {
            return run_alone(job);
        }
        let job: &(dyn Fn(Worker<'_>) + Sync) = &job;
        // SAFETY: only the lifetime is erased; this function does not return (nor unwind, `work`
        // catches) before every worker has finished with the job.
        let posted = unsafe { std::mem::transmute::<&(dyn Fn(Worker<'_>) + Sync), Job>(job) };
        self.enter(Some(posted));
        let hall = &*self.hall;
        hall.work(0, self.runs, job);
        for finished in &hall.finished {
            finished.0.wait(self.runs, MEETING_SPIN, None);
        }
        if hall.meeting.poisoned.load(Ordering::Relaxed) {
            hall.meeting.recover();
            let message = lock(&hall.panic).take().unwrap_or_else(|| "unknown".into());
            return Err(TeamError { message });
        }
        Ok(())
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.enter(None);
        for thread in self.threads.drain(..) {
            // A worker catches every panic of its jobs, so there is nothing to report.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

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
