//! A value that threads use in turn, in the order in which they asked.
//!
//! Not a scheduler: everybody waits their turn, whatever they bring.

use super::signal::{Alone, Signal};
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Waiting threads spread over so many signals, so that the end of a turn wakes the next thread
/// and not all of them.
const SIGNALS: usize = 16;

/// The value. Taking it without contention is one addition and one exchange, as with a mutex.
pub struct InTurn<T> {
    next: AtomicU64,
    /// Turn `t` begins when number `t % SIGNALS` has got to `t`.
    begun: [Alone<Signal>; SIGNALS],
    value: UnsafeCell<T>,
}

// SAFETY: turns exclude each other, so the value is used by one thread at a time.
unsafe impl<T: Send> Sync for InTurn<T> {}

/// A turn; its end begins the next one.
pub struct Turn<'a, T> {
    owner: &'a InTurn<T>,
    number: u64,
}

impl<T> InTurn<T> {
    /// Nobody's turn.
    pub fn new(value: T) -> Self {
        let begun = [const { Alone(Signal::new()) }; SIGNALS];
        InTurn { next: AtomicU64::new(0), begun, value: value.into() }
    }

    /// Waits for the calling thread's turn.
    pub fn take(&self) -> Turn<'_, T> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Without a spin: the run that it waits for uses all cores.
        self.begun[number as usize % SIGNALS].0.wait(number, Duration::ZERO, None);
        Turn { owner: self, number }
    }

    /// A turn, if nobody else has one or waits for one.
    pub fn try_take(&self) -> Option<Turn<'_, T>> {
        let number = self.next.load(Ordering::Relaxed);
        if !self.begun[number as usize % SIGNALS].0.reached(number) {
            return None;
        }
        // Whoever gets the number has the turn: it has begun.
        let after = number.wrapping_add(1);
        let got =
            self.next.compare_exchange(number, after, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        // Made only then: the end of a turn that nobody got would begin the next one too early.
        got.then(|| Turn { owner: self, number })
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: it is this turn; the one before has ended, the next begins when this is dropped.
        unsafe { &*self.owner.value.get() }
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.owner.value.get() }
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let next = self.number.wrapping_add(1);
        self.owner.begun[next as usize % SIGNALS].0.raise(next);
    }
}

impl<T> fmt::Debug for InTurn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTurn").field("taken", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_exclude_each_other() {
        let value = InTurn::new((0u64, 0u64));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for i in 0..2000 {
                        // Some ask politely first.
                        let free = if i % 3 == 0 { None } else { value.try_take() };
                        let mut turn = free.unwrap_or_else(|| value.take());
                        let (a, b) = *turn;
                        assert_eq!(a, b);
                        turn.0 = a + 1;
                        if i % 64 == 0 {
                            std::thread::yield_now();
                        }
                        turn.1 = b + 1;
                    }
                });
            }
        });
        assert_eq!(*value.take(), (8000, 8000));
    }

    #[test]
    fn turns_come_in_the_order_of_asking() {
        // More threads than signals, which ask one after another while the first turn lasts.
        const THREADS: u64 = 20;
        let order = InTurn::new(Vec::new());
        std::thread::scope(|s| {
            let first = order.take();
            for thread in 0..THREADS {
                let order = &order;
                s.spawn(move || order.take().push(thread));
                while order.next.load(Ordering::Relaxed) < thread + 2 {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.take(), (0..THREADS).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_ends_the_turn() {
        let value = InTurn::new(1);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut turn = value.take();
            *turn = 2;
            std::panic::resume_unwind(Box::new("in a turn"));
        }));
        assert!(outcome.is_err());
        assert_eq!(*value.take(), 2);
    }
}
