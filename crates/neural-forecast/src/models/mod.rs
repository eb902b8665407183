//! Architectures: one file a family, each builds a plan from its configuration.
//!
//! Does not run anything: devices run plans. The trait [`Model`] is the integration guide's face of
//! its own two models.

mod blocks;
pub mod chronos2;
pub mod chronos_bolt;
pub mod deepar;
pub mod hf_patchtst;
pub mod itransformer;
mod lazy;
pub mod lstm;
mod model;
mod network;
pub mod nhits;
mod nonlinearity;
pub mod patchtst;
pub mod rearranged;
pub mod recurrent;
pub mod seeded;
pub mod tft;
pub mod timesfm;
pub mod tirex;
pub mod transformer;
mod window;

pub use lstm::LSTMModel;
pub use model::Model;
pub use network::{Decoding, Exogenous, Network, OutputColumn};
pub(crate) use network::{Definition, elements};
pub use nonlinearity::Nonlinearity;
pub use transformer::TransformerModel;
pub use window::{WindowConfig, WindowScaler};
