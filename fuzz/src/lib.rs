//! What the fuzzers run: one function a target, from any bytes to nothing. It must return.
//!
//! The same functions replay the saved inputs in `corpus/` as ordinary tests. No target looks at
//! what comes out, only at whether it comes out: right results are the tests' business.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod checkpoint;
pub mod csv;
pub mod json;

/// A target: any bytes in.
pub type Target = fn(&[u8]);

/// Every target with the name of its program and of its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 7] = [
    ("arguments", arguments::run),
    ("configuration", checkpoint::configuration),
    ("csv", csv::run),
    ("hyper_parameters", checkpoint::hyper_parameters),
    ("json", json::run),
    ("network", checkpoint::network),
    ("safetensors", checkpoint::safetensors),
];
