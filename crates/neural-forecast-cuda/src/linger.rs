//! The host's half of kernels that stay on the device for a while after they have answered, and
//! serve the next runs of their program without a launch.
//!
//! The device's half, with the argument why no run is lost and none served twice, is
//! `ptx/linger.cuh`. Does not launch: a program does, where this says so.
//!
//! A kernel that lingers holds multiprocessors that do nothing, and the calls of the driver that
//! wait for the device wait for it. So whoever is about to launch something else, to allocate or to
//! free asks those that linger to leave ([`Guests::ask_all`]), which takes a few microseconds;
//! what is missed leaves when its time is up.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use neural_forecast_runtime::DeviceError;

/// The words that host and device share. Only accessed atomically.
pub(crate) trait Words: fmt::Debug + Send + Sync {
    /// The launch that is to leave; the host's.
    fn leave(&self) -> &AtomicU32;
    /// The last run that was answered; the device's.
    fn flag(&self) -> &AtomicU32;
    /// The last launch that left; the device's.
    fn left(&self) -> &AtomicU32;
}

/// What became of a run that a kernel on the device was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It is done.
    Answered,
    /// Neither answered, nor has the kernel left.
    Waiting,
    /// The kernel left without serving it: a launch must.
    Gone,
}

/// A program's kernel, where it may linger.
#[derive(Debug)]
pub(crate) struct Guest {
    words: Box<dyn Words>,
    /// The run for which the kernel on the device was launched; 0 where there is none.
    launch: AtomicU32,
}

impl Guest {
    pub(crate) fn new(words: Box<dyn Words>) -> Guest {
        Guest { words, launch: AtomicU32::new(0) }
    }

    /// Whether a kernel may be on the device, so that a run is asked for by its number in the
    /// header alone. If so, [`Guest::look`] says what comes of it.
    pub(crate) fn is_here(&self) -> bool {
        let launch = self.launch.load(Ordering::Relaxed);
        if launch != 0 && self.words.left().load(Ordering::Acquire) == launch {
            self.launch.store(0, Ordering::Relaxed);
            return false;
        }
        launch != 0
    }

    /// Looks at a run whose number was written to the header while the kernel was here.
    pub(crate) fn look(&self, run: u32) -> Seen {
        let answered = || self.words.flag().load(Ordering::Acquire) == run;
        if answered() {
            return Seen::Answered;
        }
        if self.is_here() {
            return Seen::Waiting;
        }
        // The flag of what it served was written before it said that it left.
        if answered() { Seen::Answered } else { Seen::Gone }
    }

    /// Has the kernel leave after the run that it is at. No run that it was asked for is lost.
    pub(crate) fn ask(&self) {
        let launch = self.launch.load(Ordering::Relaxed);
        if launch != 0 {
            self.words.leave().store(launch, Ordering::Release);
        }
    }

    /// Forgets a kernel that ended without saying so.
    pub(crate) fn forget(&self) {
        self.launch.store(0, Ordering::Relaxed);
    }
}

/// The kernels of a device that may linger.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    all: Mutex<Vec<Weak<Guest>>>,
    /// Whether there were ever any.
    some: AtomicBool,
}

/// Kept while none is launched that lingers.
pub(crate) type Asked<'a> = Option<MutexGuard<'a, Vec<Weak<Guest>>>>;

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Guest>>> {
        // Every change of the list is a single call, so that a panic leaves it whole.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a program's kernel known.
    pub(crate) fn add(&self, guest: &Arc<Guest>) {
        let mut all = self.lock();
        all.retain(|guest| guest.strong_count() > 0);
        all.push(Arc::downgrade(guest));
        self.some.store(true, Ordering::Relaxed);
    }

    /// Asks all to leave. None is launched while the result is kept.
    pub(crate) fn ask_all(&self) -> Asked<'_> {
        if !self.some.load(Ordering::Relaxed) {
            return None;
        }
        let all = self.lock();
        all.iter().filter_map(Weak::upgrade).for_each(|guest| guest.ask());
        Some(all)
    }

    /// Launches a kernel that lingers, for a run; all others are asked to leave.
    pub(crate) fn launch(
        &self,
        guest: &Guest,
        run: u32,
        launch: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let _asked = self.ask_all();
        launch()?;
        guest.launch.store(run, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    /// What the device has: the words, and how often each run was served.
    #[derive(Debug, Default)]
    struct Shared {
        sequence: AtomicU32,
        leave: AtomicU32,
        flag: AtomicU32,
        left: AtomicU32,
        /// Launches that are on the device.
        resident: AtomicU32,
        served: Vec<AtomicU32>,
        launches: AtomicU64,
    }

    #[derive(Debug)]
    struct TestWords(Arc<Shared>);

    impl Words for TestWords {
        fn leave(&self) -> &AtomicU32 {
            &self.0.leave
        }
        fn flag(&self) -> &AtomicU32 {
            &self.0.flag
        }
        fn left(&self) -> &AtomicU32 {
            &self.0.left
        }
    }

    /// Numbers that look random (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }

        /// Nothing, other threads first, or a few microseconds.
        fn pause(&mut self) {
            match self.below(4) {
                0 => std::thread::yield_now(),
                1 => (0..self.below(2000)).for_each(|_| std::hint::spin_loop()),
                2 if self.below(50) == 0 => std::thread::sleep(Duration::from_micros(50)),
                _ => {}
            }
        }
    }

    /// A launch, as `next_run` of `ptx/linger.cuh` has it; `patience` looks instead of time.
    fn kernel(shared: &Shared, seed: u64) {
        let mut random = Random(seed);
        assert_eq!(shared.resident.fetch_add(1, Ordering::SeqCst), 0, "two kernels at once");
        let launch = shared.sequence.load(Ordering::Acquire);
        let mut run = launch;
        'runs: loop {
            random.pause();
            shared.served[run as usize].fetch_add(1, Ordering::Relaxed);
            shared.flag.store(run, Ordering::Release);
            for _ in 0..random.below(30) {
                random.pause();
                if shared.leave.load(Ordering::Relaxed) == launch {
                    break 'runs;
                }
                let now = shared.sequence.load(Ordering::Acquire);
                if now != run {
                    run = now;
                    continue 'runs;
                }
            }
            break;
        }
        random.pause();
        // What follows in the stream starts when this has ended.
        shared.resident.fetch_sub(1, Ordering::SeqCst);
        shared.left.store(launch, Ordering::Release);
    }

    #[test]
    fn every_run_is_served_once_whenever_the_kernel_leaves() {
        const RUNS: u32 = 500;
        for seed in 1..=3 {
            let served = (0..=RUNS).map(|_| AtomicU32::new(0)).collect();
            let shared = Arc::new(Shared { served, ..Shared::default() });
            let guests = Guests::default();
            let guest = Arc::new(Guest::new(Box::new(TestWords(Arc::clone(&shared)))));
            guests.add(&guest);
            let mut random = Random(seed * 7919);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // Somebody who wants the device now and then.
                scope.spawn(|| {
                    let mut random = Random(seed * 104_729);
                    while !stop.load(Ordering::Relaxed) {
                        (0..20).for_each(|_| random.pause());
                        drop(guests.ask_all());
                    }
                });
                for run in 1..=RUNS {
                    random.pause();
                    let rung = guest.is_here();
                    shared.sequence.store(run, Ordering::Release);
                    let mut launch = || {
                        shared.launches.fetch_add(1, Ordering::Relaxed);
                        let (shared, seed) = (Arc::clone(&shared), random.below(u64::MAX).max(1));
                        let launched = guests.launch(&guest, run, || {
                            scope.spawn(move || kernel(&shared, seed));
                            Ok(())
                        });
                        launched.expect("it launches");
                    };
                    if !rung {
                        launch();
                    }
                    loop {
                        match guest.look(run) {
                            Seen::Answered => break,
                            Seen::Waiting => std::thread::yield_now(),
                            Seen::Gone => launch(),
                        }
                    }
                    assert_eq!(shared.served[run as usize].load(Ordering::Relaxed), 1, "{run}");
                }
                stop.store(true, Ordering::Relaxed);
                guest.ask();
            });
            let served = shared.served.iter().skip(1).map(|n| n.load(Ordering::Relaxed));
            assert!(served.eq((1..=RUNS).map(|_| 1)), "each once");
            let launches = shared.launches.load(Ordering::Relaxed);
            assert!((2..u64::from(RUNS)).contains(&launches), "{launches} launches of {RUNS}");
        }
    }
}
