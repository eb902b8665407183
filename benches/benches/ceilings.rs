//! What this machine can do at most, as the other benches' summaries use it.
//!
//! No criterion: one shot, best of several repeats.

use neural_forecast_benches::ceilings::Ceilings;
use neural_forecast_cpu::team::Team;

fn main() {
    let measured = Ceilings::measure(Team::default_workers());
    print!("{}", measured.unwrap_or_else(|error| panic!("no threads: {error}")));
}
