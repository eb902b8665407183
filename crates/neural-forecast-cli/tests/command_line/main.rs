//! Runs the built program as its users do.
#![forbid(unsafe_code)]

mod bad_input;
mod forecast;
mod process;
mod subcommands;
