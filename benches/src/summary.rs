//! What a group of benches found, beside what the machine can do at most.
//!
//! A case has two bounds: its operations at the machine's peak, and the bytes that it must read at
//! the rate of the memory level that holds them. The larger one applies, and the share of it that
//! was reached is what a kernel is judged by. The ceilings are measured in the same process, after
//! the benches, by all cores of the device.

use neural_forecast_cpu::Isa;
use neural_forecast_cpu::ceilings::Ceilings;
use neural_forecast_runtime::device::{Capabilities, Precision};

/// One timed case.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) precision: Precision,
    /// Median of a call, copies in and out included.
    pub(crate) seconds: f64,
    pub(crate) work: Work,
}

/// What a call must do at least.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Operations; a multiply-add is two.
    pub(crate) flops: u64,
    /// Bytes moved, repeated reads included.
    pub(crate) bytes: u64,
    /// Bytes that are gone through again and again, which decide the level that serves them.
    pub(crate) footprint: u64,
}

/// The bound that applies to a case.
struct Bound {
    name: &'static str,
    seconds: f64,
}

/// Prints the table; nothing without rows.
pub(crate) fn print(group: &str, capabilities: &Capabilities, rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let feature = |name: &str| {
        let found = capabilities.features.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    let isa = feature("isa").and_then(|name| Isa::named(Some(name)).ok());
    let workers = feature("threads").and_then(|n| n.parse().ok());
    let (Some(isa), Some(workers)) = (isa, workers) else {
        println!("\n{group} on {}: no ceilings, they are the CPU's", capabilities.name);
        return;
    };
    let ceilings = match Ceilings::measure(workers) {
        Ok(ceilings) => ceilings,
        Err(error) => {
            println!("\n{group}: no ceilings: {error}");
            return;
        }
    };
    println!("\n{group} on {}, {}, {workers} cores:\n", capabilities.name, isa.name());
    println!("| case | precision | µs | GFLOP/s | B/cycle | bound | % of it |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        println!("{}", line(row, &ceilings, isa));
    }
    println!();
}

fn line(row: &Row, ceilings: &Ceilings, isa: Isa) -> String {
    let Row { case, precision, seconds, work } = row;
    let clock = ceilings.clock;
    let cycle = clock.map_or("-".to_owned(), |c| format!("{:.1}", work.bytes as f64 / seconds / c));
    let (name, share) = match bound(work, *precision, ceilings, isa) {
        Some(Bound { name, seconds: least }) => (name, format!("{:.0}", 100.0 * least / seconds)),
        None => ("unknown", "-".to_owned()),
    };
    format!(
        "| {case} | {} | {:.2} | {:.1} | {cycle} | {name} | {share} |",
        precision.name(),
        seconds * 1e6,
        work.flops as f64 / seconds / 1e9,
    )
}

fn bound(work: &Work, precision: Precision, ceilings: &Ceilings, isa: Isa) -> Option<Bound> {
    let peak = ceilings.peak(isa, precision)?.all;
    let level = ceilings.level(usize::try_from(work.footprint).ok()?, ceilings.workers);
    let reading = ceilings.reading(level, isa)?.all;
    let arithmetic = Bound { name: "FLOP", seconds: work.flops as f64 / peak };
    let bytes = Bound { name: level.name(), seconds: work.bytes as f64 / reading };
    Some(if arithmetic.seconds >= bytes.seconds { arithmetic } else { bytes })
}
