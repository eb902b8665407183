//! Gates over the whole workspace, run by `cargo test`. Not a library: it exports nothing.
#![forbid(unsafe_code)]

#[cfg(test)]
mod corpora;
#[cfg(test)]
mod tidy;
