//! Benchmarks of the workspace. Not a library: it exports nothing.
#![forbid(unsafe_code)]
