//! How often each kernel was launched since a device opened: what backends whose programs are lists
//! of launches count with.
//!
//! A program counts its runs; the launches of a run are known when it is compiled, so nothing is
//! looked up while it runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::device::KernelCount;

/// The counts of one device.
#[derive(Debug, Default)]
pub struct Counters {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    programs: Vec<Weak<Runs>>,
    /// What programs that are gone launched, and served without a launch.
    past: BTreeMap<String, Count>,
}

/// Of one kernel: launches, and runs that it served without one.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    launches: u64,
    lingering: u64,
}

/// The runs of one program, and what each launches.
#[derive(Debug)]
pub struct Runs {
    launches: BTreeMap<String, u64>,
    runs: AtomicU64,
    lingering: AtomicU64,
    counters: Arc<Counters>,
}

impl Counters {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // Counts are changed one at a time, so that a panic leaves them whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to count a program's runs, each of which launches these kernels.
    pub fn program<'a>(self: &Arc<Self>, kernels: impl Iterator<Item = &'a str>) -> Arc<Runs> {
        let mut launches = BTreeMap::new();
        for kernel in kernels {
            *launches.entry(kernel.to_owned()).or_insert(0) += 1;
        }
        let runs = Arc::new(Runs {
            launches,
            runs: AtomicU64::new(0),
            lingering: AtomicU64::new(0),
            counters: Arc::clone(self),
        });
        self.lock().programs.push(Arc::downgrade(&runs));
        runs
    }

    /// All counts, by name.
    pub fn snapshot(&self) -> Vec<KernelCount> {
        // Collected first: dropping the last handle of a program locks the counts.
        let (alive, mut counts) = {
            let known = self.lock();
            let alive: Vec<Arc<Runs>> = known.programs.iter().filter_map(Weak::upgrade).collect();
            (alive, known.past.clone())
        };
        alive.iter().for_each(|runs| runs.add_to(&mut counts));
        let counts = counts.into_iter();
        counts
            .map(|(kernel, Count { launches, lingering })| KernelCount {
                kernel,
                launches,
                lingering,
            })
            .collect()
    }
}

impl Runs {
    /// Counts a run.
    pub fn count(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a run that the program's kernels served because they were still on the device.
    pub fn count_lingering(&self) {
        self.lingering.fetch_add(1, Ordering::Relaxed);
    }

    fn add_to(&self, counts: &mut BTreeMap<String, Count>) {
        let runs = self.runs.load(Ordering::Relaxed);
        let lingering = self.lingering.load(Ordering::Relaxed);
        for (kernel, launches) in self.launches.iter().filter(|_| runs + lingering > 0) {
            let count = counts.entry(kernel.clone()).or_default();
            count.launches += launches * runs;
            count.lingering += launches * lingering;
        }
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        let mut known = self.counters.lock();
        known.programs.retain(|program| program.strong_count() > 0);
        self.add_to(&mut known.past);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_outlive_their_program() {
        let counters = Arc::new(Counters::default());
        let first = counters.program(["a", "b", "a"].into_iter());
        let second = counters.program(["b"].into_iter());
        first.count();
        first.count();
        second.count();
        second.count_lingering();
        let counts = |counters: &Counters| {
            let counts = counters.snapshot().into_iter();
            counts.map(|count| (count.kernel, count.launches, count.lingering)).collect::<Vec<_>>()
        };
        let expected = [("a".to_owned(), 4, 0), ("b".to_owned(), 3, 1)];
        assert_eq!(counts(&counters), expected);
        drop(first);
        assert_eq!(counts(&counters), expected);
        drop(second);
        assert_eq!(counts(&counters), expected);
    }
}
