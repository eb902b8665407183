//! Threads that help a program's own to write large inputs, shared by the programs of a device.
//!
//! Not a thread pool: one caller at a time hands all helpers the same work, takes part in it, and
//! leaves when none of them is at it any more; who finds them busy works alone. A helper looks for
//! more work for a while before it sleeps: waking five takes longer than writing 1.5 MB does with
//! them (45 us against 21, where one thread takes 105; H200's host, 2026-11-21).

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most helpers: with the caller as many threads as reach the bus's rate.
const HELPERS_MAX: usize = 5;
/// How long a helper looks for work before it sleeps: longer than the run of most programs that
/// are called again at once.
const AWAKE: Duration = Duration::from_micros(500);
/// Looks between two looks at the clock.
const SPINS: usize = 64;

/// `State`: helpers at work in the low bits, then whether the work is open to more, then which
/// work it is.
const OPEN: u64 = 1 << 8;
const NUMBER: u32 = 9;

/// What a caller wants done by everybody.
type Work = dyn Fn() + Sync;

#[derive(Debug)]
pub(crate) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

struct Shared {
    state: AtomicU64,
    /// Written only while the state is closed and nobody is at work.
    work: UnsafeCell<Option<*const Work>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    panicked: AtomicBool,
}

// SAFETY: the state says who may touch `work` (see there), and what it points to is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Crew {
    /// As many as are useful where other threads have work too; fewer where the system gives no
    /// more.
    pub(crate) fn new() -> Crew {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Crew::of((processors / 2).saturating_sub(1).min(HELPERS_MAX))
    }

    fn of(count: usize) -> Crew {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let start = |i: usize| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("cuda-helper-{i}"));
            builder.spawn(move || shared.help()).ok()
        };
        let threads = (0..count).map_while(start).collect();
        Crew { shared, threads, turn: Mutex::new(()) }
    }

    /// Threads that work together, the caller among them.
    pub(crate) fn hands(&self) -> usize {
        1 + self.threads.len()
    }

    /// Calls `work` here, after `first`, and by all helpers that come in time. When it returns,
    /// nobody is at it. `work` must leave nothing undone where only the caller does it.
    ///
    /// # Panics
    /// If `work` or `first` does, here or in a helper.
    pub(crate) fn run(&self, first: impl FnOnce(), work: &(dyn Fn() + Sync)) {
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let Some(_turn) = turn.filter(|_| !self.threads.is_empty()) else {
            first();
            return work();
        };
        let shared = &*self.shared;
        let number = (shared.state.load(Ordering::Relaxed) >> NUMBER) + 1;
        // SAFETY: only the lifetime changes. Crew call it between the opening below and the
        // end of `Opened`, which waits for them also where `work` panics here.
        let work_of_all = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static Work>(work) };
        // SAFETY: the state is closed and counts nobody: the last `Opened` of the turn's owners
        // has seen to it.
        unsafe { *shared.work.get() = Some(std::ptr::from_ref(work_of_all)) };
        shared.state.store(number << NUMBER | OPEN, Ordering::SeqCst);
        let opened = Opened(shared);
        // Either this sees the sleeper or the sleeper, which counts itself first, the work.
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.lock());
            shared.wake.notify_all();
        }
        first();
        work();
        drop(opened);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a helper panicked");
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock());
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // Crew catch panics of the work, and have none of their own.
            let _ = thread.join();
        }
    }
}

/// Work that helpers may join until this is dropped, which waits for those that have.
struct Opened<'a>(&'a Shared);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let state = &self.0.state;
        state.fetch_and(!OPEN, Ordering::AcqRel);
        while state.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            std::hint::spin_loop();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.sleep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a helper does until it is stopped.
    fn help(&self) {
        let mut seen = 0;
        while let Some(number) = self.join(seen) {
            seen = number;
            // SAFETY: this thread is counted, so the owner of the turn waits for it and neither
            // writes `work` nor lets what it points to go; it was written before the opening.
            let work = unsafe { (*self.work.get()).map(|work| &*work) };
            let result = catch_unwind(AssertUnwindSafe(|| work.map_or((), |work| work())));
            if result.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// The number of open work that this thread has not been at and is now counted for; none when
    /// it is to stop.
    fn join(&self, seen: u64) -> Option<u64> {
        let mut begun = Instant::now();
        loop {
            for _ in 0..SPINS {
                let state = self.state.load(Ordering::Acquire);
                if self.is_new(state, seen) {
                    let counted = self.state.compare_exchange(
                        state,
                        state + 1,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                    if counted.is_ok() {
                        return Some(state >> NUMBER);
                    }
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if begun.elapsed() >= AWAKE {
                self.sleep_until_new(seen);
                begun = Instant::now();
            }
        }
    }

    fn is_new(&self, state: u64, seen: u64) -> bool {
        state & OPEN != 0 && state >> NUMBER != seen
    }

    fn sleep_until_new(&self, seen: u64) {
        let mut asleep = self.lock();
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !self.is_new(self.state.load(Ordering::SeqCst), seen)
            && !self.stop.load(Ordering::SeqCst)
        {
            asleep = self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every piece is done once, whoever does it.
    fn divide(helpers: &Crew, pieces: usize) {
        let done: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
        let next = AtomicUsize::new(0);
        let mut first = 0;
        let work = || {
            while let Some(piece) = done.get(next.fetch_add(1, Ordering::Relaxed)) {
                piece.fetch_add(1, Ordering::Relaxed);
            }
        };
        helpers.run(|| first += 1, &work);
        assert_eq!(first, 1);
        assert!(done.iter().all(|piece| piece.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn pieces_are_done_once_by_any_number_of_helpers() {
        for count in 0..4 {
            let helpers = Crew::of(count);
            assert!(helpers.hands() <= 1 + count);
            for pieces in [0, 1, 2, 7, 1000] {
                (0..50).for_each(|_| divide(&helpers, pieces));
            }
        }
    }

    #[test]
    fn sleepers_wake_and_stop() {
        let helpers = Crew::of(2);
        for _ in 0..3 {
            std::thread::sleep(4 * AWAKE);
            divide(&helpers, 100);
        }
        std::thread::sleep(4 * AWAKE);
    }

    #[test]
    fn callers_at_the_same_time_do_their_own_work() {
        let helpers = Crew::of(2);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..200).for_each(|i| divide(&helpers, i % 13)));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_next_one_works() {
        let helpers = Crew::of(2);
        let result = catch_unwind(AssertUnwindSafe(|| helpers.run(|| (), &|| panic!("as asked"))));
        assert!(result.is_err());
        // Of a helper that came late, the caller may hear the next time.
        let _ = catch_unwind(AssertUnwindSafe(|| divide(&helpers, 10)));
        divide(&helpers, 10);
    }
}
