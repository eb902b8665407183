//! What this machine can do at most: `cargo run --release -p neural-forecast-cpu --example
//! ceilings [workers]`.
//!
//! The same table as `cargo bench -p neural-forecast-benches --bench ceilings`, without building
//! the benches.

use neural_forecast_cpu::ceilings::Ceilings;
use neural_forecast_cpu::team::Team;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let workers = std::env::args().nth(1).map(|n| n.parse()).transpose()?;
    print!("{}", Ceilings::measure(workers.unwrap_or_else(Team::default_workers))?);
    Ok(())
}
