//! Replays the fuzzers' saved inputs, and small changes of each, through the same functions.
//!
//! Searching for new inputs is `fuzz/smoke`'s business.

use neural_forecast_fuzz::{TARGETS, Target};
use std::path::PathBuf;

/// Changed copies of each saved input.
const CHANGES: u64 = 64;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = xtask::workspace_root().join("fuzz/corpus").join(name);
    let mut found: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    found.sort();
    found
}

/// A copy of `bytes` with one thing wrong: cut short, a byte changed, or a piece repeated.
fn changed(bytes: &[u8], seed: u64) -> Vec<u8> {
    // SplitMix64: enough to scatter places, the same on every machine.
    let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^= mixed >> 27;
    let mut copy = bytes.to_vec();
    if copy.is_empty() {
        return mixed.to_le_bytes().to_vec();
    }
    let at = (mixed >> 8) as usize % copy.len();
    match seed % 3 {
        0 => copy.truncate(at),
        1 => copy[at] ^= (mixed & 0xff) as u8 | 1,
        _ => copy.extend_from_slice(&bytes[at..]),
    }
    copy
}

fn replay(name: &str, run: Target) {
    let saved = corpus(name);
    assert!(saved.len() >= 5, "fuzz/corpus/{name} holds {} inputs", saved.len());
    for (path, bytes) in &saved {
        // A panic names its place; the input is named here, before it runs.
        println!("{}", path.display());
        run(bytes);
        (0..CHANGES).for_each(|seed| run(&changed(bytes, seed)));
    }
}

#[test]
fn every_saved_input_of_every_target_returns() {
    for (name, run) in TARGETS {
        replay(name, run);
    }
}

#[test]
fn every_folder_of_saved_inputs_belongs_to_a_target() {
    let folder = xtask::workspace_root().join("fuzz/corpus");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|(target, _)| name == *target), "{name:?} has no target");
    }
}
