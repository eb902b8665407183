//! A number that one thread raises and others wait for: what all meetings of the team are made of.
//!
//! Not a lock and not a queue. The number and the mark "somebody sleeps" share one word, so raising
//! it is one exchange, which also says whether there is anybody to wake; a wake-up cannot be lost,
//! because both sides change that word. Waiting is a bounded spin, which offers the core to others
//! once, then sleep.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::lock;

/// The lowest bit of the word: somebody sleeps on it. The number is in the bits above.
const SLEEPER: u64 = 1;
/// Polls without a pause. The other core's write arrives within about 60 ns, and a pause alone can
/// take about as long, so the usual wait should not contain one.
const POLLS_TIGHT: u32 = 64;
/// Polls with a pause between two looks at the clock, which take some tens of nanoseconds each.
const POLLS_PAUSED: u32 = 32;

/// A value alone on its pair of cache lines, which some processors fetch together.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Alone<T>(pub(crate) T);

/// When a waiting thread offers its core to others once: whoever it waits for may be one of them,
/// placed on the same core. Once, because each offer can cost a whole time slice of a stranger.
const OFFER_AFTER: Duration = Duration::from_micros(10);

/// The number. Only one thread at a time may raise it.
#[derive(Debug)]
pub(crate) struct Signal {
    word: AtomicU64,
    /// Held by whoever is about to sleep, until they do.
    bed: Mutex<()>,
    raised: Condvar,
}

impl Signal {
    pub(crate) const fn new() -> Signal {
        Signal { word: AtomicU64::new(0), bed: Mutex::new(()), raised: Condvar::new() }
    }

    /// The number, modulo 2⁶³. Exact for the thread that raises it; says nothing about other
    /// memory.
    #[inline]
    pub(crate) fn value(&self) -> u64 {
        self.word.load(Ordering::Relaxed) >> 1
    }

    /// Sets the number while nobody waits for it.
    pub(crate) fn reset(&self, value: u64) {
        self.word.store(value << 1, Ordering::Relaxed);
    }

    /// Raises the number. Whoever has waited for it sees what this thread wrote before.
    #[inline]
    pub(crate) fn raise(&self, value: u64) {
        // As fast as a plain store, measured: the wait of the others ends when the line reaches
        // them, and this thread's next load does not depend on it.
        if self.word.swap(value << 1, Ordering::AcqRel) & SLEEPER != 0 {
            self.wake();
        }
    }

    /// Wakes all sleepers to look again, for one of the reasons in [`Signal::wait`].
    #[cold]
    #[inline(never)]
    pub(crate) fn wake(&self) {
        // Whoever held the bed before this sleeps now; whoever takes it after sees the change.
        drop(lock(&self.bed));
        self.raised.notify_all();
    }

    /// Whether the number has got to `value`. Numbers that wrap around compare right while they
    /// are less than 2⁶² apart.
    #[inline]
    pub(crate) fn reached(&self, value: u64) -> bool {
        let word = self.word.load(Ordering::Acquire) & !SLEEPER;
        word.wrapping_sub(value << 1) as i64 >= 0
    }

    /// Waits until the number has got to `value`, polling for the time of `spin` and asleep after
    /// that; `false` if `stop` was set first (and [`Signal::wake`] called, for those who sleep).
    #[inline]
    pub(crate) fn wait(&self, value: u64, spin: Duration, stop: Option<&AtomicBool>) -> bool {
        for _ in 0..POLLS_TIGHT {
            if self.reached(value) {
                return true;
            }
        }
        self.wait_long(value, spin, stop)
    }

    #[cold]
    #[inline(never)]
    fn wait_long(&self, value: u64, spin: Duration, stop: Option<&AtomicBool>) -> bool {
        let stopped = || stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
        let (mut start, mut offered) = (None, false);
        while !spin.is_zero() {
            for _ in 0..POLLS_PAUSED {
                if self.reached(value) {
                    return true;
                }
                std::hint::spin_loop();
            }
            if stopped() {
                return false;
            }
            let waited = start.get_or_insert_with(Instant::now).elapsed();
            if waited >= spin {
                break;
            }
            if waited >= OFFER_AFTER && !offered {
                offered = true;
                std::thread::yield_now();
            }
        }
        self.sleep(value, stopped)
    }

    fn sleep(&self, value: u64, stopped: impl Fn() -> bool) -> bool {
        let mut bed = lock(&self.bed);
        loop {
            if self.reached(value) {
                return true;
            }
            if stopped() {
                return false;
            }
            let word = self.word.load(Ordering::Relaxed);
            // A number raised since the look above must be looked at again: from here on, who
            // raises it meets the mark, and waits for the bed before it wakes.
            let marked = word | SLEEPER;
            let exchange =
                self.word.compare_exchange(word, marked, Ordering::Relaxed, Ordering::Relaxed);
            if exchange.is_err() || self.reached(value) {
                continue;
            }
            bed = self.raised.wait(bed).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}
