//! The chores of the workspace as a library, so that the gates run as ordinary tests too.
//!
//! Not part of the product: nothing that ships depends on it.
#![forbid(unsafe_code)]

pub mod instructions;
pub mod ptx;
pub mod tidy;

use std::path::PathBuf;

/// The folder that holds the workspace's lock file.
///
/// Found from where cargo runs a package, not from where this one was built: checkouts that share
/// a target folder share the binary too, and each must see its own files.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = here.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
    root.unwrap_or(&here).to_path_buf()
}
