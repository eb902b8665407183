//! The command line of `neural-forecast` as a library, so that each part can be tested alone.
//!
//! No modelling happens here: the crate `neural-forecast` forecasts, this one reads flags, shows
//! progress, draws and writes.
#![forbid(unsafe_code)]

pub mod args;
mod commands;
mod failure;
mod input;
pub mod plot;
mod progress;

use args::Cli;
use clap::Parser as _;
use failure::{Failure, Outcome};
use std::process::ExitCode;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            let message = failure.to_string();
            if !message.is_empty() {
                eprintln!("error: {message}");
            }
            failure.code()
        }
        // The panic has already printed its message and place.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> Outcome {
    match Cli::try_parse() {
        Ok(cli) => commands::run(cli.command),
        // `--help` and `--version` are answers, and so is the help for a bare command.
        Err(answer) if !answer.use_stderr() => Ok(answer.print()?),
        Err(error) if error.kind() == HELP_FOR_NOTHING => {
            eprint!("{}", error.render());
            Err(Failure::usage(""))
        }
        Err(error) => Err(error.into()),
    }
}

const HELP_FOR_NOTHING: clap::error::ErrorKind =
    clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
