//! Gates over the whole workspace, run by `cargo test`. Not a library: it exports nothing.
#![forbid(unsafe_code)]

#[cfg(test)]
mod corpora;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod tidy;

/// The README's Rust code, compiled and run as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
