//! `cargo xtask TASK`: the chores of the workspace. Not part of the product.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let root = xtask::workspace_root();
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => xtask::tidy::run(&root),
        _ => {
            eprintln!("usage: cargo xtask tidy");
            ExitCode::from(2)
        }
    }
}
