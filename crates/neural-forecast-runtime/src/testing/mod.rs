//! Test support for everything that computes plans: small random cases of every op, and the
//! comparison of a device with the reference.
//!
//! Not used by anything that forecasts. What is wrong here panics or is reported as text, because
//! only tests and the `verify` command call it.

mod case;
mod conform;
mod ops;
mod recurrent;
mod require;
mod scaling;
mod sequence;

pub use case::{Case, CaseBuilder, Random, Tolerance};
pub use conform::{compare, conform, conform_all};
#[cfg(test)]
pub(crate) use ops::ACTIVATIONS;
pub use require::device_or_skip;

/// Every case: each op with adversarial sizes (1, around a tile, prime), and stacks.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    ops::products(&mut cases);
    ops::elementwise(&mut cases);
    ops::movement(&mut cases);
    ops::resampling(&mut cases);
    scaling::normalize(&mut cases);
    recurrent::rnn_stacks(&mut cases);
    sequence::attention(&mut cases);
    sequence::stacks(&mut cases);
    cases
}
