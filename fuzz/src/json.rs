//! JSON as series, as future values and as static features.

use crate::csv::bounded;
use neural_forecast::frame::{Format, GapPolicy, read, read_future, read_static};

/// Reads `bytes` in every role that a JSON file may have.
pub fn run(bytes: &[u8]) {
    let options = bounded(Format::Json, GapPolicy::Ffill);
    let _ = read(bytes, "fuzz", &options);
    let _ = read_future(bytes, "fuzz", &options);
    let _ = read_static(bytes, "fuzz", &options);
}
