//! Activation functions by the names under which PyTorch and configurations have them.
//!
//! Only those that a plan can compute; a name that is not here is refused by whoever reads it.

use neural_forecast_runtime::ops::Activation;
use serde::{Deserialize, Serialize};

/// A named activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nonlinearity {
    /// `max(x, 0)`.
    ReLU,
    /// `ln(1 + e^x)`; above 20 PyTorch takes `x`, which is the same number in f32.
    Softplus,
    /// Hyperbolic tangent.
    Tanh,
    /// Scaled exponential linear unit.
    SELU,
    /// `max(x, 0.01·x)`.
    LeakyReLU,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// By the error function.
    GELU,
    /// Exponential linear unit.
    ELU,
    /// `x · sigmoid(x)`.
    SiLU,
    /// `x`.
    Identity,
}

impl Nonlinearity {
    /// Those that there are, by their PyTorch names.
    pub const ALL: [(&'static str, Nonlinearity); 10] = [
        ("ReLU", Nonlinearity::ReLU),
        ("Softplus", Nonlinearity::Softplus),
        ("Tanh", Nonlinearity::Tanh),
        ("SELU", Nonlinearity::SELU),
        ("LeakyReLU", Nonlinearity::LeakyReLU),
        ("Sigmoid", Nonlinearity::Sigmoid),
        ("GELU", Nonlinearity::GELU),
        ("ELU", Nonlinearity::ELU),
        ("SiLU", Nonlinearity::SiLU),
        ("Identity", Nonlinearity::Identity),
    ];

    /// The activation of this PyTorch name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, it)| *it)
    }

    /// As a product ends with it.
    pub fn activation(self) -> Activation {
        match self {
            Nonlinearity::ReLU => Activation::Relu,
            Nonlinearity::Softplus => Activation::Softplus,
            Nonlinearity::Tanh => Activation::Tanh,
            Nonlinearity::SELU => Activation::Selu,
            Nonlinearity::LeakyReLU => Activation::LeakyRelu(0.01),
            Nonlinearity::Sigmoid => Activation::Sigmoid,
            Nonlinearity::GELU => Activation::Gelu,
            Nonlinearity::ELU => Activation::Elu,
            Nonlinearity::SiLU => Activation::Silu,
            Nonlinearity::Identity => Activation::Identity,
        }
    }
}
