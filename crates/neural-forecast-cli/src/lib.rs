//! The command line of `neural-forecast` as a library: every subcommand, testable without a process.
//!
//! No modelling happens here: the crate `neural-forecast` forecasts, this one reads flags, shows
//! progress, draws and writes.
#![forbid(unsafe_code)]

pub mod plot;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
