//! Which cores threads run on: what the process may use, and threads bound to one core each.
//!
//! Binds threads of the team only; a thread of the caller is bound by [`pin_this_thread`], which
//! the caller has to call. Linux; elsewhere every request is refused, not ignored.

use std::fmt;
use std::io;
use std::str::FromStr;

/// Whether the threads of a team are bound to cores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pin {
    /// The system places them.
    #[default]
    Free,
    /// Worker `i` is bound to the `i`-th core that the process may use.
    EachCore,
    /// Worker `i` is bound to the `i`-th core of the list, which has one core a worker.
    Cores(Vec<usize>),
}

/// A text that is no [`Pin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinError(String);

impl PinError {
    pub(super) fn refused(worker: usize, core: usize, error: &io::Error) -> PinError {
        PinError(format!("worker {worker} cannot be bound to core {core}: {error}"))
    }
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PinError {}

impl FromStr for Pin {
    type Err = PinError;

    /// `free`, `each`, or a list of cores such as `0,2,4-7`.
    fn from_str(text: &str) -> Result<Pin, PinError> {
        match text {
            "free" => return Ok(Pin::Free),
            "each" => return Ok(Pin::EachCore),
            _ => {}
        }
        let wrong = || {
            PinError(format!("cores `{text}`, expected `free`, `each` or a list such as `0,2,4-7`"))
        };
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&n| n < CORES_MAX);
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
            if first > last {
                return Err(wrong());
            }
            cores.extend(first..=last);
        }
        Ok(Pin::Cores(cores))
    }
}

impl Pin {
    /// The core of each worker; empty where they are free.
    ///
    /// # Errors
    /// If the list has not one core a worker, repeats one, or names one that the process may not
    /// use; if the system does not say which those are.
    pub fn cores(&self, workers: usize) -> Result<Vec<usize>, PinError> {
        let listed = match self {
            Pin::Free => return Ok(Vec::new()),
            Pin::EachCore => None,
            Pin::Cores(cores) => Some(cores),
        };
        let allowed = allowed_cores();
        let allowed = allowed.map_err(|e| PinError(format!("cannot bind threads: {e}")))?;
        let cores = listed.unwrap_or(&allowed);
        let enough = if listed.is_some() { cores.len() == workers } else { cores.len() >= workers };
        if !enough {
            let message = format!("{} cores to bind {workers} workers to", cores.len());
            return Err(PinError(message));
        }
        for (i, core) in cores.iter().enumerate() {
            if !allowed.contains(core) {
                let message = format!("core {core}, expected one of {allowed:?}");
                return Err(PinError(message));
            }
            if cores[..i].contains(core) {
                return Err(PinError(format!("core {core} for two workers")));
            }
        }
        Ok(cores[..workers].to_vec())
    }
}

/// Cores that the system's call can name.
const CORES_MAX: usize = 1024;

/// Cores that the calling thread may run on, ascending.
///
/// # Errors
/// If the system does not say.
#[cfg(target_os = "linux")]
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: an array of integers, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as long as said and written only within.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `core` is below the set's length.
    Ok((0..CORES_MAX).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Binds the calling thread to one core, until it is bound anew.
///
/// # Errors
/// If the system refuses: the core does not exist or the process may not use it.
#[cfg(target_os = "linux")]
pub fn pin_this_thread(core: usize) -> io::Result<()> {
    if core >= CORES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: an array of integers, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is below the set's length.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set is as long as said and only read.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cores that the calling thread may run on, ascending.
///
/// # Errors
/// Always: this system has no such call, or none that is used here.
#[cfg(not(target_os = "linux"))]
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "not on this system"))
}

/// Binds the calling thread to one core, until it is bound anew.
///
/// # Errors
/// Always: this system has no such call, or none that is used here.
#[cfg(not(target_os = "linux"))]
pub fn pin_this_thread(_core: usize) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "not on this system"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_parse() {
        let cores = |text: &str| text.parse::<Pin>();
        assert_eq!(cores("free"), Ok(Pin::Free));
        assert_eq!(cores("each"), Ok(Pin::EachCore));
        assert_eq!(cores("3"), Ok(Pin::Cores(vec![3])));
        assert_eq!(cores("0,2,4-6"), Ok(Pin::Cores(vec![0, 2, 4, 5, 6])));
        for text in ["", "a", "1,", "2-1", "-1", "1-", "0-99999999999", "1 2"] {
            let error = cores(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn free_workers_have_no_cores() {
        assert_eq!(Pin::Free.cores(3), Ok(vec![]));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn impossible_cores_are_refused_by_name() {
        let allowed = allowed_cores().unwrap();
        let absent = (0..).find(|core| !allowed.contains(core)).unwrap();
        let refused = |pin: Pin, workers| pin.cores(workers).unwrap_err().to_string();
        let message = refused(Pin::Cores(vec![absent]), 1);
        assert!(message.contains(&format!("core {absent}, expected one of")), "{message}");
        let message = refused(Pin::Cores(vec![allowed[0], allowed[0]]), 2);
        assert!(message.contains("for two workers"), "{message}");
        let message = refused(Pin::Cores(vec![allowed[0]]), 2);
        assert!(message.contains("1 cores to bind 2 workers"), "{message}");
        let message = refused(Pin::EachCore, allowed.len() + 1);
        assert!(message.contains("cores to bind"), "{message}");
        assert_eq!(Pin::EachCore.cores(allowed.len()), Ok(allowed));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_bound_thread_may_use_one_core_and_a_team_follows() {
        let core = *allowed_cores().unwrap().last().unwrap();
        // In a thread of its own: the binding lasts.
        let thread = std::thread::spawn(move || {
            pin_this_thread(core).unwrap();
            (allowed_cores().unwrap(), crate::team::Team::default_workers())
        });
        assert_eq!(thread.join().unwrap(), (vec![core], 1));
    }
}
