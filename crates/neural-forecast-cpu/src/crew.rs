//! The threads that compute and what each needs for it, shared by the devices of a process.
//!
//! Devices that ask for the same team get the same one and take turns, in the order of asking:
//! two teams at work would share the cores by time slices of the system, and each would wait at
//! every barrier for workers that are not running. What one thread does alone runs on the calling
//! thread, for as many callers at a time as the process may use cores; it waits for no team.
//! Not a scheduler: a run keeps its turn to the end.

use crate::gemm::Scratch;
use crate::memory::PerWorker;
use crate::team::{
    InTurn, Pin, StartError, Team, TeamError, TeamOptions, Turn, WORKERS_MAX, Worker, run_alone,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Environment variable with the number of threads, where the options leave it open.
pub const THREADS_VARIABLE: &str = "NF_CPU_THREADS";
/// Environment variable with the microseconds that an idle worker polls before it sleeps, where
/// the options leave it open.
pub const SPIN_VARIABLE: &str = "NF_CPU_SPIN_US";
/// Environment variable with the cores of the workers, where the options leave it open: `free`,
/// `each` or a list such as `0,2,4-7`.
pub const PIN_VARIABLE: &str = "NF_CPU_PIN";

/// A team, or none where one thread is asked for.
#[derive(Debug)]
pub(crate) struct Crew {
    together: Option<InTurn<Together>>,
}

#[derive(Debug)]
struct Together {
    team: Team,
    scratch: PerWorker<Scratch>,
}

/// What the options say, else the environment, else the default.
pub(crate) fn team_options(
    threads: Option<usize>,
    spin: Option<Duration>,
    pin: Option<Pin>,
) -> Result<TeamOptions, String> {
    let workers = match threads {
        Some(threads) => threads,
        None => {
            from_environment(THREADS_VARIABLE, "a number of threads", |text| text.parse().ok())?
                .unwrap_or_else(Team::default_workers)
        }
    };
    if workers == 0 || workers > WORKERS_MAX {
        return Err(format!("{workers} threads, expected 1 to {WORKERS_MAX}"));
    }
    let mut options = TeamOptions::new(workers);
    let microseconds = |text: &str| text.parse::<u32>().ok().map(u64::from);
    let spin = match spin {
        Some(spin) => Some(spin),
        None => from_environment(SPIN_VARIABLE, "a number of microseconds", microseconds)?
            .map(Duration::from_micros),
    };
    options.spin = spin.unwrap_or(options.spin);
    let expected = "`free`, `each` or a list of cores such as `0,2,4-7`";
    let pin = match pin {
        Some(pin) => Some(pin),
        None => from_environment(PIN_VARIABLE, expected, |text| text.parse().ok())?,
    };
    // By number, because "each" depends on the calling thread.
    let cores = pin.unwrap_or_default().cores(workers);
    let cores = cores.map_err(|e| format!("cannot bind threads to cores: {e}"))?;
    options.pin = if cores.is_empty() { Pin::Free } else { Pin::Cores(cores) };
    Ok(options)
}

fn from_environment<T>(
    variable: &str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, String> {
    let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let value = text.to_str().and_then(|text| parse(text.trim()));
    let wrong = || format!("{variable} is {text:?}, expected {expected}");
    value.map(Some).ok_or_else(wrong)
}

impl Crew {
    /// The process's crew for these options.
    ///
    /// # Errors
    /// If its team cannot be made.
    pub(crate) fn shared(options: &TeamOptions) -> Result<Arc<Crew>, StartError> {
        static CREWS: Mutex<Vec<(TeamOptions, Weak<Crew>)>> = Mutex::new(Vec::new());
        let mut crews = CREWS.lock().unwrap_or_else(PoisonError::into_inner);
        crews.retain(|(_, crew)| crew.strong_count() > 0);
        let same = crews.iter().find(|(of, _)| of == options);
        if let Some(crew) = same.and_then(|(_, crew)| crew.upgrade()) {
            return Ok(crew);
        }
        let together = match options.workers {
            1 => None,
            workers => {
                let scratch = PerWorker::new(workers, Scratch::new);
                Some(InTurn::new(Together { team: Team::with(options)?, scratch }))
            }
        };
        seats();
        let crew = Arc::new(Crew { together });
        crews.push((options.clone(), Arc::downgrade(&crew)));
        Ok(crew)
    }

    /// Runs the job once on every worker of the team, or on the calling thread only, with the
    /// worker's scratch.
    ///
    /// # Errors
    /// If a worker panicked.
    pub(crate) fn run(
        &self,
        alone: bool,
        job: impl Fn(Worker<'_>, &mut Scratch) + Sync,
    ) -> Result<(), TeamError> {
        match &self.together {
            Some(together) if !alone => {
                let mut turn = together.take();
                let Together { team, scratch } = &mut *turn;
                let scratch = &*scratch;
                team.run(|worker| {
                    // SAFETY: it is this run's turn, and each worker takes its own, once.
                    job(worker, unsafe { scratch.get(worker.index()) });
                })
            }
            _ => {
                let mut scratch = sit();
                run_alone(|worker| job(worker, &mut scratch))
            }
        }
    }
}

/// Scratch for as many threads as the process could use cores when it opened its first device.
fn seats() -> &'static [InTurn<Scratch>] {
    static SEATS: OnceLock<Vec<InTurn<Scratch>>> = OnceLock::new();
    let make = || (0..Team::default_workers()).map(|_| InTurn::new(Scratch::new())).collect();
    SEATS.get_or_init(make)
}

/// A free seat, or else a turn on one of them.
fn sit() -> Turn<'static, Scratch> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let seats = seats();
    let free = seats.iter().find_map(InTurn::try_take);
    free.unwrap_or_else(|| seats[NEXT.fetch_add(1, Ordering::Relaxed) % seats.len()].take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_options_share_a_crew() {
        let options = TeamOptions { spin: Duration::from_micros(7), ..TeamOptions::new(2) };
        let first = Crew::shared(&options).unwrap();
        assert!(Arc::ptr_eq(&first, &Crew::shared(&options).unwrap()));
        let other = TeamOptions { spin: Duration::from_micros(8), ..TeamOptions::new(2) };
        assert!(!Arc::ptr_eq(&first, &Crew::shared(&other).unwrap()));
    }

    #[test]
    fn lone_runs_do_not_wait_for_the_team() {
        let crew = Crew::shared(&TeamOptions::new(2)).unwrap();
        // From inside of a run of the team, so that its turn cannot have ended.
        let inner = Mutex::new(false);
        crew.run(false, |worker, _| {
            if worker.index() == 1 {
                let outcome = crew.run(true, |worker, _| {
                    assert_eq!((worker.index(), worker.workers()), (0, 1));
                    *inner.lock().unwrap() = true;
                });
                outcome.unwrap();
            }
            worker.barrier();
            assert!(*inner.lock().unwrap());
        })
        .unwrap();
    }

    #[test]
    fn more_callers_than_seats_all_get_one() {
        let crew = Crew::shared(&TeamOptions::new(1)).unwrap();
        let runs = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..2 * seats().len() + 1 {
                s.spawn(|| {
                    for _ in 0..500 {
                        let job = |_: Worker<'_>, _: &mut Scratch| {
                            runs.fetch_add(1, Ordering::Relaxed);
                        };
                        crew.run(true, job).unwrap();
                    }
                });
            }
        });
        assert_eq!(runs.load(Ordering::Relaxed), (2 * seats().len() + 1) * 500);
    }

    #[test]
    fn options_are_checked() {
        let threads = |threads| team_options(Some(threads), None, None);
        assert_eq!(threads(3).map(|options| options.workers), Ok(3));
        for absurd in [0, WORKERS_MAX + 1] {
            let error = threads(absurd).unwrap_err();
            assert!(error.contains(&format!("{absurd} threads, expected 1 to")), "{error}");
        }
    }
}
