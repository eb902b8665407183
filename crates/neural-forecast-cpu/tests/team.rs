//! The team under noise: meetings at every place with workers that sleep, yield, panic and come
//! late; and how devices share teams, cores and the environment's wishes.
//!
//! Does not time anything: a lost wake-up is a test that does not end, which the watch reports.

use neural_forecast_cpu::memory::PerWorker;
use neural_forecast_cpu::team::{Pin, Team, TeamOptions, Worker, allowed_cores};
use neural_forecast_cpu::{CpuDevice, CpuOptions, PIN_VARIABLE, SPIN_VARIABLE, THREADS_VARIABLE};
use neural_forecast_runtime::device::{Device, KernelClass, LoadOptions, Request, Run};
use neural_forecast_runtime::testing::{Case, cases};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Ends the process if what it watches takes minutes.
struct Watch(Arc<AtomicBool>);

impl Watch {
    fn over(name: &'static str) -> Watch {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        std::thread::spawn(move || {
            let start = Instant::now();
            while !seen.load(Ordering::Relaxed) {
                if start.elapsed() > Duration::from_secs(240) {
                    eprintln!("`{name}` hangs: a wake-up was lost");
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Watch(done)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fresh random numbers in each run of the test; the seed is printed when it fails.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_nanos() as u64);
        println!("seed {now}");
        Random(now | 1)
    }

    fn of(seed: u64, worker: usize) -> Random {
        Random(seed.wrapping_mul(2 * worker as u64 + 3) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Mostly nothing; sometimes a while, on the core or off it.
    fn noise(&mut self) {
        match self.below(64) {
            0 => std::thread::sleep(Duration::from_micros(self.below(300))),
            1..=4 => std::thread::yield_now(),
            5..=12 => busy(Duration::from_micros(self.below(20))),
            _ => {}
        }
    }
}

fn busy(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn team(workers: usize, spin: Duration) -> Team {
    let options = TeamOptions { spin, ..TeamOptions::new(workers) };
    Team::with(&options).expect("the system gives threads")
}

#[test]
fn barriers_hold_under_noise() {
    let _watch = Watch::over("barriers_hold_under_noise");
    let seed = Random::new().0;
    for workers in 1..=8 {
        let mut team = team(workers, Duration::from_micros(30));
        // Plain memory, so that a sanitizer sees what the barriers order and what they do not.
        let cells = PerWorker::new(workers, || 0u64);
        for run in 0..20 {
            team.run(|w| {
                let mut random = Random::of(seed + run, w.index());
                for round in 0..50 {
                    random.noise();
                    // SAFETY: between two barriers each worker borrows its own cell only.
                    unsafe { *cells.get(w.index()) = run * 50 + round };
                    random.noise();
                    w.barrier();
                    for other in 0..workers {
                        // SAFETY: nobody writes before the next barrier.
                        assert_eq!(unsafe { *cells.peek(other) }, run * 50 + round);
                    }
                    w.barrier();
                }
            })
            .expect("all rounds agree");
        }
    }
}

#[test]
fn announced_counts_carry_what_was_written() {
    let _watch = Watch::over("announced_counts_carry_what_was_written");
    let seed = Random::new().0;
    const STEPS: usize = 200;
    for workers in 2..=6 {
        let mut team = team(workers, Duration::from_micros(30));
        for run in 0..10 {
            let cells: Vec<_> = (0..workers).map(|_| PerWorker::new(STEPS, || 0u64)).collect();
            team.run(|w| {
                let mut random = Random::of(seed + run, w.index());
                for step in 0..STEPS {
                    let before = match w.index().checked_sub(1) {
                        None => run,
                        Some(other) => {
                            w.wait_for(other, step as u32 + 1);
                            // SAFETY: written before the count that was waited for.
                            unsafe { *cells[other].peek(step) }
                        }
                    };
                    random.noise();
                    // SAFETY: only this worker writes the cell, once, before it announces it.
                    unsafe { *cells[w.index()].get(step) = before + 1 };
                    w.announce(step as u32 + 1);
                }
            })
            .expect("no worker panics");
            for step in 0..STEPS {
                // SAFETY: the run is over.
                let last = unsafe { *cells[workers - 1].peek(step) };
                assert_eq!(last, run + workers as u64);
            }
        }
    }
}

/// Panics in one worker at one meeting; the others meet on, or leave.
fn panic_at(w: Worker<'_>, culprit: usize, place: usize, late: Duration) {
    for meeting in 0..6 {
        if w.index() == culprit && meeting == place {
            std::thread::sleep(late);
            // Quiet: no message on standard error.
            resume_unwind(Box::new(format!("worker {culprit} at meeting {place}")));
        }
        w.barrier();
    }
    // Nobody gets here without the culprit.
    resume_unwind(Box::new("a barrier let a worker through".to_owned()));
}

#[test]
fn a_panic_at_any_meeting_leaves_the_team_usable() {
    let _watch = Watch::over("a_panic_at_any_meeting_leaves_the_team_usable");
    for workers in 1..=5 {
        let mut team = team(workers, Duration::from_micros(20));
        for culprit in 0..workers {
            for place in 0..6 {
                // At once, and when the others have gone to sleep.
                for late in [Duration::ZERO, Duration::from_millis(8)] {
                    let outcome = team.run(|w| panic_at(w, culprit, place, late));
                    let message = outcome.expect_err("a worker panicked").to_string();
                    let expected = format!("worker {culprit} at meeting {place}");
                    assert!(message.contains(&expected), "{message}");
                    let met = AtomicUsize::new(0);
                    team.run(|w| {
                        met.fetch_add(1, Ordering::Relaxed);
                        w.barrier();
                        assert_eq!(met.load(Ordering::Relaxed), workers);
                        w.barrier();
                    })
                    .expect("the team is usable");
                }
            }
        }
    }
}

#[test]
fn a_panic_releases_who_waits_for_a_count() {
    let _watch = Watch::over("a_panic_releases_who_waits_for_a_count");
    let mut team = team(3, Duration::ZERO);
    for late in [0, 8] {
        let outcome = team.run(|w| match w.index() {
            0 => w.wait_for(1, 1),
            1 => w.wait_for(2, 7),
            _ => {
                w.announce(6);
                std::thread::sleep(Duration::from_millis(late));
                resume_unwind(Box::new("at step 6".to_owned()));
            }
        });
        assert!(outcome.expect_err("a worker panicked").to_string().contains("at step 6"));
        team.run(|w| {
            if w.index() > 0 {
                w.wait_for(w.index() - 1, 3);
            }
            w.announce(3);
        })
        .expect("counts begin anew");
    }
}

#[test]
fn no_entry_is_lost_around_the_spin_limit() {
    let _watch = Watch::over("no_entry_is_lost_around_the_spin_limit");
    let mut random = Random::new();
    for (workers, spin, entries) in [(2, 0, 2000), (2, 10, 3000), (2, 60, 3000), (4, 30, 1000)] {
        let mut team = team(workers, Duration::from_micros(spin));
        let mut hits = vec![0; workers];
        for _ in 0..entries {
            busy(Duration::from_micros(random.below(2 * spin + 10)));
            let cells = PerWorker::new(workers, || 0);
            // SAFETY: each worker takes its own.
            team.run(|w| unsafe { *cells.get(w.index()) += 1 }).expect("no worker panics");
            for (worker, hits) in hits.iter_mut().enumerate() {
                // SAFETY: the run is over.
                *hits += unsafe { *cells.peek(worker) };
            }
        }
        assert!(hits.iter().all(|&n| n == entries), "{hits:?} of {entries}");
    }
}

#[test]
fn no_meeting_is_lost_around_the_limits_of_its_wait() {
    let _watch = Watch::over("no_meeting_is_lost_around_the_limits_of_its_wait");
    let seed = Random::new().0;
    let mut team = team(2, Duration::from_micros(20));
    for run in 0..150 {
        let late = Random::of(seed, run).below(2500);
        let mut order = [0, 1];
        order.rotate_left(run % 2);
        team.run(|w| {
            if w.index() == order[0] {
                busy(Duration::from_micros(late));
            }
            w.barrier();
            if w.index() == order[1] {
                std::thread::sleep(Duration::from_micros(late));
            }
            w.announce(1);
            w.wait_for(1 - w.index(), 1);
        })
        .expect("no worker panics");
    }
}

#[test]
fn a_team_ends_in_any_state() {
    let _watch = Watch::over("a_team_ends_in_any_state");
    for spin in [Duration::ZERO, Duration::from_micros(200), Duration::from_secs(1)] {
        for pause in [0, 1] {
            for runs in 0..3 {
                let mut team = team(3, spin);
                for _ in 0..runs {
                    team.run(|w| w.barrier()).expect("no worker panics");
                }
                std::thread::sleep(Duration::from_millis(pause));
            }
        }
    }
}

#[test]
fn a_team_may_be_entered_from_any_thread() {
    let _watch = Watch::over("a_team_may_be_entered_from_any_thread");
    let team = std::sync::Mutex::new(team(3, Duration::from_micros(20)));
    let runs = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..100 {
                    let mut team = team.lock().expect("no panic");
                    team.run(|w| {
                        w.barrier();
                        runs.fetch_add(1, Ordering::Relaxed);
                    })
                    .expect("no worker panics");
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::Relaxed), 4 * 100 * 3);
}

#[cfg(target_os = "linux")]
#[test]
fn bound_workers_stay_on_their_cores_and_the_caller_is_left_alone() {
    let allowed = allowed_cores().expect("Linux says it");
    if allowed.len() < 2 {
        println!("skipped: one core");
        return;
    }
    for pin in [Pin::EachCore, Pin::Cores(vec![allowed[1], allowed[0]])] {
        let cores = pin.cores(2).expect("both are allowed");
        let options = TeamOptions { pin, ..TeamOptions::new(2) };
        let mut team = Team::with(&options).expect("the system binds them");
        team.run(|w| {
            let here = allowed_cores().expect("Linux says it");
            if w.index() == 0 {
                assert_eq!(here, allowed);
            } else {
                assert_eq!(here, [cores[w.index()]]);
            }
        })
        .expect("each is where it should be");
    }
}

#[test]
fn refused_cores_are_an_error() {
    for (pin, threads) in [(Pin::Cores(vec![0, 1023]), 2), (Pin::Cores(vec![0]), 3)] {
        let options =
            CpuOptions { threads: Some(threads), pin: Some(pin), ..CpuOptions::default() };
        let error = CpuDevice::new(options).expect_err("there are no such cores").to_string();
        assert!(error.contains("bind"), "{error}");
    }
}

/// What [`the_environment_is_heard`] runs with variables set.
#[test]
fn what_the_environment_said() {
    let Ok(expected) = std::env::var("EXPECTED") else { return };
    match CpuDevice::new(CpuOptions::default()) {
        Ok(device) => assert_eq!(format!("{:?}", device.capabilities().features), expected),
        Err(error) => assert!(error.to_string().contains(&expected), "{error}"),
    }
}

#[test]
fn the_environment_is_heard() {
    let program = std::env::current_exe().expect("a test knows its program");
    let isa = CpuDevice::new(CpuOptions { threads: Some(1), ..CpuOptions::default() });
    let isa = isa.expect("it opens").isa().name();
    let opened = |threads, spin, bound| {
        let isa = format!("(\"isa\", \"{isa}\"), (\"threads\", \"{threads}\")");
        format!("[{isa}, (\"idle spin\", \"{spin} µs\"){bound}]")
    };
    let cores = allowed_cores().unwrap_or_default();
    let mut wishes = vec![
        ([(THREADS_VARIABLE, "3"), (SPIN_VARIABLE, "0")], opened(3, 0, String::new())),
        ([(THREADS_VARIABLE, "1"), (SPIN_VARIABLE, "1234")], opened(1, 1234, String::new())),
        ([(THREADS_VARIABLE, "none"), (SPIN_VARIABLE, "0")], format!("{THREADS_VARIABLE} is")),
        ([(THREADS_VARIABLE, "0"), (SPIN_VARIABLE, "0")], "0 threads, expected 1 to".into()),
        ([(THREADS_VARIABLE, "1"), (SPIN_VARIABLE, "-1")], format!("{SPIN_VARIABLE} is")),
        ([(THREADS_VARIABLE, "1"), (PIN_VARIABLE, "all")], format!("{PIN_VARIABLE} is")),
    ];
    if let [_, second, ..] = cores[..] {
        let bound =
            format!(", (\"threads bound\", \"to cores [{second}], the calling thread not bound\")");
        let spin = neural_forecast_cpu::team::SPIN.as_micros();
        wishes.push((
            [(THREADS_VARIABLE, "2"), (PIN_VARIABLE, "each")],
            opened(2, spin as u64, bound),
        ));
    }
    for (variables, expected) in wishes {
        let output = std::process::Command::new(&program)
            .args(["--exact", "what_the_environment_said"])
            .env_remove(THREADS_VARIABLE)
            .env_remove(SPIN_VARIABLE)
            .env_remove(PIN_VARIABLE)
            .envs(variables)
            .env("EXPECTED", &expected)
            .output()
            .expect("the test can run itself");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{variables:?}: {text}");
    }
}

/// Runs a case again and again; whether the first bits ever change.
fn steady(device: &CpuDevice, case: &Case, runs: usize) -> bool {
    let batch = case.bucket.batch;
    let options = LoadOptions { state_slots: batch, ..LoadOptions::default() };
    let resident = device.load(&case.plan, &case.weights, &options);
    let mut resident = resident.expect("the device takes every case");
    let request = Request { entry: case.entry, bucket: case.bucket, class: KernelClass::Latency };
    let mut program = resident.compile(request).expect("it compiles");
    case.write(program.as_mut(), 0..batch);
    let mut first: Option<Vec<u32>> = None;
    let mut y = vec![0.0; program.info().output_elements[0].0];
    (0..runs).all(|_| {
        program.submit(&Run { rows: batch, ..Run::default() }).expect("it runs");
        program.wait().expect("it runs");
        program.read(0, &mut y).expect("it has run");
        let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
        *first.get_or_insert_with(|| bits.clone()) == bits
    })
}

#[test]
fn devices_and_callers_that_share_cores_do_not_disturb_one_another() {
    let _watch = Watch::over("devices_and_callers_that_share_cores_do_not_disturb_one_another");
    let open = |threads, alone_flops| {
        let options = CpuOptions {
            threads: Some(threads),
            alone_flops: Some(alone_flops),
            ..CpuOptions::default()
        };
        CpuDevice::new(options).expect("it opens")
    };
    // Two that share a team, one that runs on the calling thread, one with a team of its own.
    let devices = [open(2, 0), open(2, 0), open(2, u64::MAX), open(3, 0), open(1, 0)];
    let cases = cases();
    let stateless =
        |case: &&Case| case.plan.entry(case.entry).is_some_and(|entry| !entry.uses_states());
    let cases: Vec<&Case> = cases.iter().filter(stateless).step_by(9).collect();
    assert!(cases.len() >= 5, "{} cases", cases.len());
    std::thread::scope(|s| {
        for device in &devices {
            for half in 0..2 {
                let cases = &cases;
                s.spawn(move || {
                    for case in cases.iter().skip(half).step_by(2) {
                        assert!(steady(device, case, 20), "{}", case.name);
                    }
                });
            }
        }
    });
}
