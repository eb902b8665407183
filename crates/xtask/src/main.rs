//! `cargo xtask TASK`: the chores of the workspace. Not part of the product.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let root = xtask::workspace_root();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("tidy") => xtask::tidy::run(&root),
        Some("instructions") => xtask::instructions::run(&root, &arguments[1..]),
        Some("ptx") => xtask::ptx::run(&root, &arguments[1..]),
        _ => {
            eprintln!(
                "usage: cargo xtask tidy
       cargo xtask instructions [--check|--write]
       cargo xtask ptx [--check|--check-all] [NAME…]"
            );
            ExitCode::from(2)
        }
    }
}
