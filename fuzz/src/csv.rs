//! Delimited text as series, as future values and as static features.

use neural_forecast::frame::{Format, GapPolicy, ReadOptions, read, read_future, read_static};

/// Reads `bytes` in every role that a CSV file may have.
pub fn run(bytes: &[u8]) {
    for gaps in [GapPolicy::Interpolate, GapPolicy::Keep] {
        let options = bounded(Format::Csv, gaps);
        let _ = read(bytes, "fuzz", &options);
        let _ = read_future(bytes, "fuzz", &options);
        let _ = read_static(bytes, "fuzz", &options);
    }
}

/// Small bounds, so that a fuzzer's time goes into paths and not into zeros.
pub(crate) fn bounded(format: Format, gaps: GapPolicy) -> ReadOptions {
    let format = Some(format);
    ReadOptions { format, gaps, max_bytes: 1 << 20, max_inserted: 10_000, ..Default::default() }
}
