//! How a command ends: an error is one line on standard error and an exit code.
//!
//! 1 is a failure, 2 is wrong usage. A reader that closes the pipe early is no failure.

use neural_forecast::{Error, ErrorKind};
use std::fmt;
use std::io;
use std::process::ExitCode;

/// Why a command did not do what it was asked to.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

/// The result of a command.
pub(crate) type Outcome = Result<(), Failure>;

impl Failure {
    /// Something went wrong: exit code 1.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    /// The command was asked something meaningless: exit code 2.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// The code that the process ends with.
    #[must_use]
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    /// One line, whatever is in the names that the message quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = if error.kind() == ErrorKind::Usage { 2 } else { 1 };
        Self { code, message: error.to_string() }
    }
}

/// Writing to standard output failed.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { code: 0, message: String::new() };
        }
        Self::new(format!("standard output: {error}"))
    }
}

impl From<clap::Error> for Failure {
    /// What was wrong and clap's tips, without the usage that `--help` shows.
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let kept = text
            .split("\n\n")
            .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more"))
            .map(|part| one_line(part.trim_start_matches("error: ")))
            .collect::<Vec<_>>();
        Self::usage(format!("{} (see --help)", kept.join("; ")))
    }
}

/// `text` with line breaks and their indentation as single spaces, other control characters
/// escaped.
fn one_line(text: &str) -> String {
    let joined = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let joined = joined.collect::<Vec<_>>().join(" ");
    joined
        .chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser as _;

    fn usage_error(line: &str) -> String {
        let words = std::iter::once("neural-forecast").chain(line.split(' '));
        Failure::from(Cli::try_parse_from(words).unwrap_err()).to_string()
    }

    #[test]
    fn usage_errors_are_one_line_that_names_the_flag() {
        let horizon = usage_error("forecast a.csv --horizon 0");
        assert!(horizon.contains("--horizon") && horizon.contains("1..="), "{horizon}");
        let misspelt = usage_error("forecast a.csv --horizn 3");
        assert!(misspelt.contains("--horizn") && misspelt.contains("'--horizon'"), "{misspelt}");
        let missing = usage_error("forecast");
        assert!(missing.contains("<INPUT>"), "{missing}");
        for text in [horizon, misspelt, missing] {
            assert!(!text.contains('\n') && !text.contains("Usage:"), "{text}");
        }
    }

    #[test]
    fn a_name_cannot_break_the_line_or_the_terminal() {
        let failure = Failure::new("series `a\n  b\u{1b}[2J`");
        assert_eq!(failure.to_string(), "series `a b\\u{1b}[2J`");
    }
}
