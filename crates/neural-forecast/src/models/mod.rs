//! Architectures: one file a family, each builds a plan from its configuration.
//!
//! Does not run anything: devices run plans. The trait [`Model`] is the integration guide's face of
//! its own two models.

mod model;

pub use model::Model;
