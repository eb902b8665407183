//! Configurations of the integration guide: which device, and the shape of its two models.
//!
//! Plain data with public fields, as the guide writes them; nothing here opens a device or holds a
//! weight. `validate` says what a network or a device cannot be.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Most parameters of a model that a configuration describes: 2³⁰, 4 GiB in single precision. A
/// mistyped width is an error, not an attempt to allocate everything.
pub const PARAMETERS_MAX: u64 = 1 << 30;

/// Most values of one window or one layer's activations of it (time steps times width).
pub const WINDOW_MAX: u64 = 1 << 28;

/// What to ask of a GPU. Every field is a wish or a limit; the default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GPUConfig {
    /// Most bytes of device memory to use; `None` is all that is free.
    pub memory_limit: Option<u64>,
    /// Whether freed buffers are kept for reuse.
    pub memory_pooling: bool,
    /// Whether buffers live in memory that host and device share, where there is such.
    pub use_unified_memory: bool,
    /// Least compute capability of an NVIDIA device, as (major, minor).
    pub compute_capability: Option<(u32, u32)>,
    /// Graphics interface to take: `vulkan`, `metal` or `dx12`.
    pub preferred_backend: Option<String>,
    /// A folder to keep the pipelines of a WebGPU adapter in, compiled, where its driver hands them
    /// out. It must be as trusted as the program itself.
    pub pipeline_folder: Option<PathBuf>,
    /// For how long a kernel that computes a whole forecast stays on an NVIDIA device after an
    /// answer, in microseconds, at most [`LINGER_US_MAX`]: a forecast that follows sooner needs no
    /// launch. 0, the default, for not at all: it pays only where forecasts follow one another
    /// closely, and meanwhile the kernel holds up to half of the device and takes power.
    pub linger_us: u32,
}

/// Longest time that a kernel may linger: beyond that a launch no longer matters.
pub const LINGER_US_MAX: u32 = 5_000;

impl GPUConfig {
    /// Checks what can be checked without a device.
    ///
    /// # Errors
    /// `Config`: a limit of zero bytes, or an unknown backend.
    pub fn validate(&self) -> Result<()> {
        if self.memory_limit == Some(0) {
            return Err(config("`memory_limit` is 0 bytes, expected at least 1"));
        }
        if self.linger_us > LINGER_US_MAX {
            let linger = self.linger_us;
            let message = format!("`linger_us` is {linger}, expected at most {LINGER_US_MAX}");
            return Err(config(message));
        }
        let known = ["vulkan", "metal", "dx12"];
        match self.preferred_backend.as_deref() {
            Some(name) if !known.contains(&name) => Err(config(format!(
                "`preferred_backend` is `{name}`, expected one of {}",
                known.join(", ")
            ))),
            _ => Ok(()),
        }
    }
}

/// A stacked LSTM with a linear head on the last position, see
/// [`LSTMModel`](crate::models::LSTMModel).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LSTMConfig {
    /// Time steps `T` of a window.
    pub input_length: usize,
    /// Steps `H` that are forecast.
    pub output_length: usize,
    /// Hidden width `D` of each direction.
    pub hidden_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Whether the recurrence has biases; the head always has one.
    pub use_bias: bool,
    /// Dropout while training; no effect on a forecast.
    pub dropout: f32,
    /// Whether each layer also runs backwards in time.
    pub bidirectional: bool,
}

impl Default for LSTMConfig {
    fn default() -> Self {
        LSTMConfig {
            input_length: 100,
            output_length: 10,
            hidden_size: 128,
            num_layers: 2,
            use_bias: true,
            dropout: 0.0,
            bidirectional: false,
        }
    }
}

impl LSTMConfig {
    /// Directions of each layer: 1 or 2.
    pub fn directions(&self) -> usize {
        if self.bidirectional { 2 } else { 1 }
    }

    /// Checks that such a network can be.
    ///
    /// # Errors
    /// `Config`: a length or width of 0, a dropout outside of [0, 1), or a network beyond
    /// [`PARAMETERS_MAX`] or [`WINDOW_MAX`].
    pub fn validate(&self) -> Result<()> {
        positive("input_length", self.input_length)?;
        positive("output_length", self.output_length)?;
        positive("hidden_size", self.hidden_size)?;
        positive("num_layers", self.num_layers)?;
        dropout(self.dropout)?;
        let (d, s) = (self.hidden_size as u128, self.num_layers as u128);
        // At least the recurrent weights; the input's depend on its features.
        let recurrent = d.saturating_mul(d).saturating_mul(4).saturating_mul(s);
        bounded("hidden_size", recurrent.saturating_mul(self.directions() as u128))?;
        bounded("output_length", d.saturating_mul(self.output_length as u128))?;
        window(self.input_length, self.hidden_size.saturating_mul(8))
    }
}

/// A pre-norm Transformer encoder with a linear head on the last position, see
/// [`TransformerModel`](crate::models::TransformerModel).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// Time steps `T` of a window.
    pub input_length: usize,
    /// Steps `H` that are forecast.
    pub output_length: usize,
    /// Width `D` of a position.
    pub d_model: usize,
    /// Attention heads; `d_model` is divisible by it.
    pub num_heads: usize,
    /// Layers.
    pub num_layers: usize,
    /// Inner width of the feed-forward sublayer.
    pub d_ff: usize,
    /// Dropout while training; no effect on a forecast.
    pub dropout: f32,
    /// Whether layers run fused. `false` runs every product, norm and attention as an op of its
    /// own, with its result in memory, to measure what fusion gains.
    pub use_flash_attention: bool,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        TransformerConfig {
            input_length: 64,
            output_length: 10,
            d_model: 128,
            num_heads: 8,
            num_layers: 3,
            d_ff: 256,
            dropout: 0.0,
            use_flash_attention: true,
        }
    }
}

impl TransformerConfig {
    /// Checks that such a network can be.
    ///
    /// # Errors
    /// `Config`: a length or width of 0, heads that do not divide `d_model`, a dropout outside of
    /// [0, 1), or a network beyond [`PARAMETERS_MAX`] or [`WINDOW_MAX`].
    pub fn validate(&self) -> Result<()> {
        positive("input_length", self.input_length)?;
        positive("output_length", self.output_length)?;
        positive("d_model", self.d_model)?;
        positive("num_heads", self.num_heads)?;
        positive("num_layers", self.num_layers)?;
        positive("d_ff", self.d_ff)?;
        dropout(self.dropout)?;
        if !self.d_model.is_multiple_of(self.num_heads) {
            return Err(config(format!(
                "`d_model` is {}, expected a multiple of `num_heads` = {}",
                self.d_model, self.num_heads
            )));
        }
        let (d, ff, s) = (self.d_model as u128, self.d_ff as u128, self.num_layers as u128);
        let products = d.saturating_mul(4).saturating_add(ff.saturating_mul(2));
        let layer = d.saturating_mul(products);
        bounded("d_model", layer.saturating_mul(s))?;
        bounded("output_length", d.saturating_mul(self.output_length as u128))?;
        window(self.input_length, self.d_ff.max(self.d_model.saturating_mul(3)))
    }
}

/// Checks the feature count that a window brings or `with_features` gives.
pub(crate) fn check_features(features: usize, input_length: usize, width: usize) -> Result<()> {
    positive("features", features)?;
    bounded("features", (features as u128).saturating_mul(width as u128).saturating_mul(4))?;
    window(input_length, features)
}

fn positive(field: &str, value: usize) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(config(format!("`{field}` is 0, expected at least 1"))) }
}

fn dropout(value: f32) -> Result<()> {
    // Written so that NaN fails.
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(config(format!("`dropout` is {value}, expected 0 or more and below 1")))
}

fn bounded(field: &str, parameters: u128) -> Result<()> {
    if parameters <= u128::from(PARAMETERS_MAX) {
        return Ok(());
    }
    Err(config(format!(
        "`{field}` gives {parameters} parameters, expected at most {PARAMETERS_MAX}"
    )))
}

fn window(length: usize, width: usize) -> Result<()> {
    let values = (length as u128).saturating_mul(width as u128);
    if values <= u128::from(WINDOW_MAX) {
        return Ok(());
    }
    Err(config(format!(
        "`input_length` is {length}, which gives {values} values a window, expected at most \
         {WINDOW_MAX}"
    )))
}

#[cold]
fn config(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<()>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_valid() {
        GPUConfig::default().validate().unwrap();
        LSTMConfig::default().validate().unwrap();
        TransformerConfig::default().validate().unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        let lstm = LSTMConfig::default();
        let cases: [(LSTMConfig, &str); 7] = [
            (LSTMConfig { input_length: 0, ..lstm.clone() }, "`input_length` is 0"),
            (LSTMConfig { output_length: 0, ..lstm.clone() }, "`output_length` is 0"),
            (LSTMConfig { hidden_size: 0, ..lstm.clone() }, "`hidden_size` is 0"),
            (LSTMConfig { num_layers: 0, ..lstm.clone() }, "`num_layers` is 0"),
            (LSTMConfig { dropout: f32::NAN, ..lstm.clone() }, "`dropout` is NaN"),
            (LSTMConfig { hidden_size: usize::MAX, ..lstm.clone() }, "`hidden_size` gives"),
            (LSTMConfig { input_length: usize::MAX, ..lstm }, "`input_length` is"),
        ];
        for (config, expected) in cases {
            let found = message(config.validate());
            assert!(found.contains(expected), "{found}");
        }
        let transformer = TransformerConfig { d_model: 100, num_heads: 8, ..Default::default() };
        let found = message(transformer.validate());
        assert_eq!(found, "`d_model` is 100, expected a multiple of `num_heads` = 8");
        let huge = TransformerConfig { num_layers: usize::MAX, ..Default::default() };
        assert!(message(huge.validate()).contains("parameters"));
    }

    #[test]
    fn gpu_limits_are_checked() {
        let none = GPUConfig { memory_limit: Some(0), ..Default::default() };
        assert!(message(none.validate()).contains("`memory_limit`"));
        let odd = GPUConfig { preferred_backend: Some("glide".into()), ..Default::default() };
        assert!(message(odd.validate()).contains("`glide`"));
    }
}
