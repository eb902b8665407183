//! `completions`: the script that teaches a shell the flags.

use super::print;
use crate::args::{Cli, CompletionsArgs};
use crate::failure::Outcome;
use clap::CommandFactory as _;

/// Prints the script.
pub(super) fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "neural-forecast", &mut script);
    print(&script)
}
