//! Runs the built program as its users do.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot read or write has failed")]

mod bad_input;
mod forecast;
mod process;
mod subcommands;
