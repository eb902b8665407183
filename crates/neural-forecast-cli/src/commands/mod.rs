//! One file a subcommand; this one calls them and holds what they share.

mod bench;
mod completions;
mod devices;
mod evaluate;
mod forecast;
mod inspect;
mod verify;

use crate::args::{Command, RunArgs};
use crate::failure::{Failure, Outcome};
use neural_forecast::Result;
use neural_forecast::device::{self, DeviceOptions, OpenDevice};
use serde::Serialize;
use std::io::Write as _;

/// Runs a subcommand.
///
/// # Errors
/// Whatever keeps it from doing what it was asked to, as one line.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Forecast(args) => forecast::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

/// A count that clap has already bounded.
fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn device_options(threads: Option<u64>) -> DeviceOptions {
    DeviceOptions { threads: threads.map(count), ..DeviceOptions::default() }
}

fn open_device(args: &RunArgs) -> Result<OpenDevice> {
    let mut options = device_options(args.threads);
    options.gpu.linger_us = args.linger;
    device::open(args.device, &options)
}

/// Prints to standard output at once, so that a failure before leaves nothing there.
fn print(text: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    Ok(out.flush()?)
}

fn print_json(value: &impl Serialize) -> Outcome {
    let mut text = serde_json::to_vec_pretty(value).map_err(Failure::new)?;
    text.push(b'\n');
    print(&text)
}

/// Rows of cells as text, each column as wide as its widest cell; numbers stand right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let number = cell.starts_with(|c: char| c.is_ascii_digit() || c == '-');
            let cell = if number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line.push_str(&cell);
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Names with what is to be said of each, the names as wide as the widest.
fn facts(rows: &[(String, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, fact)| format!("{name:<width$}  {fact}\n")).collect()
}

/// A count of bytes for people.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [vec!["name".into(), "n".into()], vec!["a".into(), "10".into()]];
        assert_eq!(table(&rows), "name  n\na     10\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn bytes_are_readable() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
    }
}
