//! What this machine can do at most: multiply-adds a second, bytes a second from each level of
//! memory, and how soon one core sees what another wrote. The benchmarks divide by these.
//!
//! Measured, in a second or two, with the team of threads that forecasts use; nothing is taken
//! from a data sheet. Best of several repeats, because a ceiling is what nothing disturbed. Not
//! part of the product: no kernel chooses by it.

mod arithmetic;
mod reads;

use crate::caches::Caches;
use crate::isa::{Isa, TIERS};
use crate::memory::Buffer;
use crate::team::{Team, TeamError};
use arithmetic::Arithmetic;
use neural_forecast_runtime::device::Precision;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much is done for a figure.
#[derive(Clone, Debug)]
struct Effort {
    /// How long one repeat takes at least; the clock's own resolution vanishes in it.
    repeat: Duration,
    /// Repeats of which the best counts.
    repeats: usize,
    /// Footprint of the reads from memory, where no cache is known to be larger, and at most.
    memory: std::ops::RangeInclusive<usize>,
}

/// How long the team is kept busy first: new threads begin on the core that made them, and it takes
/// a scheduler some milliseconds to spread them.
const SETTLE: Duration = Duration::from_millis(60);

/// Many short repeats, so that some fall where neither an interrupt nor a stranger's thread on the
/// same core disturbs.
const FULL: Effort =
    Effort { repeat: Duration::from_micros(200), repeats: 40, memory: 128 << 20..=512 << 20 };

/// Operations or bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// By one core while the others idle.
    pub one: f64,
    /// By all of the team at once, together.
    pub all: f64,
}

/// The most of one instruction.
#[derive(Clone, Debug)]
pub struct Peak {
    /// The instruction and its width.
    pub name: &'static str,
    /// Operations a second; a multiply-add is two.
    pub rates: Rates,
}

/// Where bytes are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A core's first level.
    L1,
    /// A core's second level.
    L2,
    /// The level that cores share.
    L3,
    /// Beyond all caches.
    Memory,
}

impl Level {
    /// `L1`, `L2`, `L3` or `memory`.
    pub fn name(self) -> &'static str {
        match self {
            Level::L1 => "L1",
            Level::L2 => "L2",
            Level::L3 => "L3",
            Level::Memory => "memory",
        }
    }
}

/// The most bytes from one level.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Where they lie.
    pub level: Level,
    /// Tier whose vectors load them.
    pub tier: &'static str,
    /// Bytes that each core goes through again and again.
    pub footprint: usize,
    /// Bytes a second.
    pub rates: Rates,
}

/// The ceilings of a machine.
#[derive(Clone, Debug)]
pub struct Ceilings {
    /// Cores that `all` means.
    pub workers: usize,
    /// Cycles a second of one core, by a chain of dependent instructions; `None` where there is no
    /// such chain for the architecture.
    pub clock: Option<f64>,
    /// Cache capacities, where the processor states them.
    pub caches: Option<Caches>,
    /// Arithmetic, slowest tier first.
    pub peaks: Vec<Peak>,
    /// Reads: all levels of a tier, then those of the next.
    pub readings: Vec<Reading>,
    /// Seconds from a store on one core to its sight on another; `None` for a team of one.
    pub hand_off: Option<f64>,
}

/// The tiers that differ in how wide their vectors are.
fn vector_tiers() -> Vec<Isa> {
    let mut tiers = Isa::available();
    tiers.dedup_by_key(|isa| isa.lanes());
    tiers
}

impl Ceilings {
    /// Measures this machine with a team of `workers`.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn measure(workers: usize) -> std::io::Result<Ceilings> {
        Ceilings::measure_with(workers, FULL)
    }

    fn measure_with(workers: usize, effort: Effort) -> std::io::Result<Ceilings> {
        let mut teams = Teams { one: Team::new(1)?, all: Team::new(workers)?, effort };
        let caches = Caches::stated();
        let workers = teams.all.workers();
        let begun = Instant::now();
        teams.all.run(|_| while begun.elapsed() < SETTLE {}).map_err(failed)?;
        let clock = clock(&mut teams)?;
        let hand_off = (workers > 1).then(|| hand_off(&mut teams)).transpose()?;
        let mut peaks = Vec::new();
        for arithmetic in Arithmetic::available() {
            let rates = teams.rates(arithmetic.operations as f64, |_, n| arithmetic.run(n))?;
            peaks.push(Peak { name: arithmetic.name, rates });
        }
        let readings = readings(&mut teams, caches)?;
        Ok(Ceilings { workers, clock, caches, peaks, readings, hand_off })
    }

    /// The most operations a second in `f32` on a tier.
    pub fn f32_peak(&self, isa: Isa) -> Option<Rates> {
        let tier = vector_tiers().iter().position(|tier| tier.lanes() == isa.lanes())?;
        self.peaks.get(tier).map(|peak| peak.rates)
    }

    /// The most operations a second over weights of a precision: by the instruction that the tier
    /// has for them, or in `f32`; `None` for bytes on a tier that has none, whose way of
    /// multiplying them is not measured.
    pub fn peak(&self, isa: Isa, precision: Precision) -> Option<Rates> {
        let of = |name: &str| self.peaks.iter().find(|peak| peak.name == name).map(|p| p.rates);
        let rank = |name: &str| TIERS.iter().position(|tier| *tier == name);
        let has = |tier: &str| rank(isa.name()) >= rank(tier);
        match precision {
            Precision::Bf16 if has("amx") => of(arithmetic::AMX_BF16),
            Precision::Int8 if has("amx") => of(arithmetic::AMX_INT8),
            Precision::F16 if has("avx512-fp16") => of(arithmetic::FP16),
            Precision::Bf16 if has("avx512-bf16") => of(arithmetic::BF16),
            Precision::Int8 if has("avx512-vnni") => of(arithmetic::INT8),
            Precision::Int8 => None,
            _ => self.f32_peak(isa),
        }
    }

    /// Where a loop over `footprint` bytes, split evenly over `workers`, finds them.
    pub fn level(&self, footprint: usize, workers: usize) -> Level {
        let share = footprint.div_ceil(workers.max(1));
        match self.caches {
            Some(caches) if share <= caches.l1 => Level::L1,
            Some(caches) if share <= caches.l2 => Level::L2,
            Some(caches) if footprint <= caches.l3 => Level::L3,
            _ => Level::Memory,
        }
    }

    /// The most bytes a second from a level with a tier's vectors.
    pub fn reading(&self, level: Level, isa: Isa) -> Option<Rates> {
        let tier = vector_tiers().into_iter().find(|tier| tier.lanes() == isa.lanes())?;
        let of = |reading: &&Reading| reading.level == level && reading.tier == tier.name();
        self.readings.iter().find(of).map(|reading| reading.rates)
    }
}

fn failed(error: TeamError) -> std::io::Error {
    std::io::Error::other(error)
}

struct Teams {
    one: Team,
    all: Team,
    effort: Effort,
}

impl Teams {
    /// Work a second of one core and of all, where `turn(worker, n)` does `n` times `work`.
    fn rates(&mut self, work: f64, turn: impl Fn(usize, usize) + Sync) -> std::io::Result<Rates> {
        let turns = calibrate(self.effort.repeat, |n| turn(0, n));
        let repeats = self.effort.repeats;
        let one = turns as f64 * work / best(&mut self.one, repeats, |_| turn(0, turns))?;
        if self.all.workers() == 1 {
            return Ok(Rates { one, all: one });
        }
        let all = turns as f64 * work * self.all.workers() as f64;
        let all = all / best(&mut self.all, repeats, |worker| turn(worker, turns))?;
        Ok(Rates { one, all })
    }
}

/// How many turns take `least`.
fn calibrate(least: Duration, turn: impl Fn(usize)) -> usize {
    let mut n = 1;
    loop {
        let start = Instant::now();
        turn(n);
        if start.elapsed() >= least || n > usize::MAX / 4 {
            return n;
        }
        n *= 2;
    }
}

/// Seconds of the fastest of several repeats of a job that all workers begin together.
fn best(team: &mut Team, repeats: usize, job: impl Fn(usize) + Sync) -> std::io::Result<f64> {
    let least = AtomicU64::new(u64::MAX);
    team.run(|worker| {
        for _ in 0..repeats {
            worker.barrier();
            let start = Instant::now();
            job(worker.index());
            worker.barrier();
            if worker.index() == 0 {
                least.fetch_min(start.elapsed().as_nanos().max(1) as u64, Ordering::Relaxed);
            }
        }
    })
    .map_err(failed)?;
    Ok(least.into_inner() as f64 / 1e9)
}

fn clock(teams: &mut Teams) -> std::io::Result<Option<f64>> {
    const CYCLES: usize = 800_000;
    if !reads::spend(CYCLES) {
        return Ok(None);
    }
    let seconds = best(&mut teams.one, teams.effort.repeats, |_| {
        reads::spend(CYCLES);
    })?;
    Ok(Some(CYCLES as f64 / seconds))
}

fn readings(teams: &mut Teams, caches: Option<Caches>) -> std::io::Result<Vec<Reading>> {
    let workers = teams.all.workers();
    let mut footprints = Vec::new();
    let whole = |bytes: usize| bytes / reads::BLOCK * reads::BLOCK;
    if let Some(Caches { l1, l2, l3 }) = caches {
        footprints.push((Level::L1, whole(l1 / 2)));
        footprints.push((Level::L2, whole(l2 / 2)));
        if l3 > 0 {
            // So much that little of it stays in L2, and that all cores' parts fit together.
            footprints.push((Level::L3, whole((l3 / (2 * workers)).min(8 * l2))));
        }
    }
    let bounds = &teams.effort.memory;
    let largest = caches.map_or(0, |caches| caches.l3.max(caches.l2));
    let memory = (4 * largest).clamp(*bounds.start(), *bounds.end()) / workers;
    footprints.push((Level::Memory, whole(memory)));
    let most = footprints.iter().map(|&(_, bytes)| bytes).max().unwrap_or(0);
    // Written, so that every page is the process's own and not the system's page of zeros.
    let buffer = |_| {
        let mut buffer = Buffer::zeroed(most / size_of::<f32>());
        buffer.as_mut_slice().fill(1.0);
        buffer
    };
    let buffers: Vec<Buffer> = (0..workers).map(buffer).collect();
    let mut readings = Vec::new();
    for isa in vector_tiers() {
        for &(level, footprint) in &footprints {
            let turn = |worker: usize, n: usize| {
                reads::read(isa, &buffers[worker].as_slice()[..footprint / size_of::<f32>()], n);
            };
            let rates = teams.rates(footprint as f64, turn)?;
            readings.push(Reading { level, tier: isa.name(), footprint, rates });
        }
    }
    Ok(readings)
}

/// One cache line (and its neighbour, which some processors fetch with it).
#[repr(align(128))]
struct Line(AtomicU64);

/// Two workers answer each other through one line; the others wait at the barrier.
fn hand_off(teams: &mut Teams) -> std::io::Result<f64> {
    const ROUNDS: u64 = 1_000;
    let line = Line(AtomicU64::new(0));
    let seconds = best(&mut teams.all, teams.effort.repeats, |worker| {
        // The line counts on from repeat to repeat; both sides see the same even number first.
        let base = match worker {
            0 | 1 => line.0.load(Ordering::Acquire) / (2 * ROUNDS) * (2 * ROUNDS),
            _ => return,
        };
        for round in 0..ROUNDS {
            let (wait, answer) = match worker {
                0 => (base + 2 * round, base + 2 * round + 1),
                _ => (base + 2 * round + 1, base + 2 * round + 2),
            };
            let mut polls = 0u32;
            while line.0.load(Ordering::Acquire) != wait {
                polls = polls.saturating_add(1);
                if polls > 100_000 {
                    std::thread::yield_now();
                }
            }
            line.0.store(answer, Ordering::Release);
        }
    })?;
    Ok(seconds / (2 * ROUNDS) as f64)
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.caches {
            Some(Caches { l1, l2, l3 }) => {
                let [l1, l2, l3] = [l1, l2, l3].map(|bytes| bytes >> 10);
                writeln!(f, "Caches: L1d {l1} KiB, L2 {l2} KiB, L3 {l3} KiB.")?;
            }
            None => writeln!(f, "Caches: unknown.")?,
        }
        match self.clock {
            Some(clock) => writeln!(f, "Clock: {:.2} GHz.", clock / 1e9)?,
            None => writeln!(f, "Clock: not measured on this architecture.")?,
        }
        if let Some(seconds) = self.hand_off {
            writeln!(f, "Hand-off of a cache line between two cores: {:.0} ns.", seconds * 1e9)?;
        }
        let cores = format!("{} cores", self.workers);
        writeln!(f, "\n| arithmetic | one core, Gop/s | op/cycle | {cores}, Gop/s |")?;
        writeln!(f, "|---|---|---|---|")?;
        let cycle =
            |rate: f64| self.clock.map_or("-".to_owned(), |clock| format!("{:.1}", rate / clock));
        for Peak { name, rates } in &self.peaks {
            let (one, all) = (rates.one / 1e9, rates.all / 1e9);
            writeln!(f, "| {name} | {one:.1} | {} | {all:.1} |", cycle(rates.one))?;
        }
        writeln!(f, "\n| reads | KiB a core | one core, GB/s | B/cycle | {cores}, GB/s |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for Reading { level, tier, footprint, rates } in &self.readings {
            let (one, all, level) = (rates.one / 1e9, rates.all / 1e9, level.name());
            let (cycle, kib) = (cycle(rates.one), footprint >> 10);
            writeln!(f, "| {level}, {tier} | {kib} | {one:.1} | {cycle} | {all:.1} |")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceilings(caches: Option<Caches>) -> Ceilings {
        let (peaks, readings) = (Vec::new(), Vec::new());
        Ceilings { workers: 2, clock: None, caches, peaks, readings, hand_off: None }
    }

    #[test]
    fn a_footprint_is_served_by_the_smallest_level_that_holds_it() {
        let caches = Caches { l1: 32 << 10, l2: 1 << 20, l3: 32 << 20 };
        let known = ceilings(Some(caches));
        assert_eq!(known.level(32 << 10, 1), Level::L1);
        assert_eq!(known.level((32 << 10) + 1, 1), Level::L2);
        assert_eq!(known.level(64 << 10, 2), Level::L1);
        assert_eq!(known.level((1 << 20) + 1, 1), Level::L3);
        // Two cores have two second levels, but one third.
        assert_eq!(known.level(2 << 20, 2), Level::L2);
        assert_eq!(known.level((32 << 20) + 1, 2), Level::Memory);
        assert_eq!(ceilings(Some(Caches { l3: 0, ..caches })).level(2 << 20, 1), Level::Memory);
        assert_eq!(ceilings(None).level(1, 1), Level::Memory);
    }

    #[test]
    fn the_measurement_is_whole() {
        // Emulators and sanitizers run this too.
        let memory = 1 << 20..=1 << 20;
        let effort = Effort { repeat: Duration::from_micros(20), repeats: 2, memory };
        let measured = Ceilings::measure_with(2, effort).expect("threads start");
        assert_eq!(measured.workers, 2);
        assert!(measured.hand_off.is_some_and(|seconds| seconds > 0.0));
        let tiers = vector_tiers();
        assert!(measured.peaks.len() >= tiers.len());
        for isa in tiers {
            for rates in [measured.f32_peak(isa), measured.reading(Level::Memory, isa)] {
                let rates = rates.expect("every tier has its loops");
                assert!(rates.one > 0.0 && rates.all > 0.0, "{rates:?}");
            }
        }
    }
}
