//! The chores of the workspace as a library, so that the gates run as ordinary tests too.
//!
//! Not part of the product: nothing that ships depends on it.
#![forbid(unsafe_code)]

pub mod instructions;
pub mod ptx;
pub mod tidy;

use std::path::{Path, PathBuf};

/// The folder that holds the workspace's `Cargo.toml`, found from where this package was built.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}
