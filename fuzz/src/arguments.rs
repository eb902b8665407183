//! The words of a command line.

use clap::Parser;
use neural_forecast_cli::args::Cli;

/// Parses `bytes`, one word a line, as arguments. Runs nothing.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let words = std::iter::once("neural-forecast").chain(text.split('\n'));
    let _ = Cli::try_parse_from(words);
}
