//! Energy counters of the processor, where the host shows them.
//!
//! A reading of other people's work too: the counters are the package's, not this process's.

use std::fs;
use std::path::PathBuf;

const DOMAINS: &str = "/sys/class/powercap";

/// Counters of all processor packages, in joules; each wraps at its own range.
#[derive(Clone, Debug)]
pub(super) struct EnergyMeter {
    packages: Vec<Package>,
}

#[derive(Clone, Debug)]
struct Package {
    counter: PathBuf,
    range_uj: u64,
    start_uj: u64,
}

impl EnergyMeter {
    /// Starts metering; `None` where the host shows no readable counter.
    pub(super) fn start() -> Option<EnergyMeter> {
        let entries = fs::read_dir(DOMAINS).ok()?.flatten();
        let packages: Vec<Package> = entries
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of one.
            .filter(|e| e.file_name().to_string_lossy().matches(':').count() == 1)
            .filter_map(|e| Package::new(e.path()))
            .collect();
        (!packages.is_empty()).then_some(EnergyMeter { packages })
    }

    /// Joules since the start; `None` where a counter can no longer be read.
    pub(super) fn joules(&self) -> Option<f64> {
        let used = |package: &Package| {
            let now = read(&package.counter)?;
            Some(elapsed(package.start_uj, now, package.range_uj))
        };
        let used = self.packages.iter().map(used).collect::<Option<Vec<u64>>>()?;
        Some(used.into_iter().map(|uj| uj as f64).sum::<f64>() / 1e6)
    }
}

impl Package {
    fn new(domain: PathBuf) -> Option<Package> {
        let counter = domain.join("energy_uj");
        let range_uj = read(&domain.join("max_energy_range_uj"))?;
        let start_uj = read(&counter)?;
        Some(Package { counter, range_uj, start_uj })
    }
}

fn read(path: &std::path::Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Microjoules from one reading to the next, across at most one wrap.
fn elapsed(start: u64, now: u64, range: u64) -> u64 {
    now.checked_sub(start).unwrap_or_else(|| range.saturating_sub(start).saturating_add(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_wrap() {
        assert_eq!(elapsed(10, 25, 100), 15);
        assert_eq!(elapsed(90, 5, 100), 15);
        assert_eq!(elapsed(100, 0, 100), 0);
    }

    #[test]
    fn a_meter_reads_or_is_absent() {
        match EnergyMeter::start() {
            Some(meter) => assert!(meter.joules().is_some_and(|joules| joules >= 0.0)),
            None => println!("skipped: this host shows no energy counters"),
        }
    }
}
