//! The trait by which the integration guide's models are asked for a forecast.
//!
//! Not a loaded checkpoint: that is [`super::Network`], which the forecaster runs over series.

use ndarray::Array3;

use crate::error::Result;
use crate::run_info::RunInfo;

/// A model that takes arrays and gives arrays.
///
/// ```
/// use neural_forecast::config::LSTMConfig;
/// use neural_forecast::models::{LSTMModel, Model};
/// use ndarray::Array3;
///
/// let config = LSTMConfig { input_length: 24, output_length: 6, ..LSTMConfig::default() };
/// let model = LSTMModel::new_from_config(config)?;
/// let (output, info) = model.predict_with_info(&Array3::ones((2, 24, 3)))?;
/// assert_eq!(output.shape(), [2, 6, 1]);
/// println!("computed on {} in {}", info.device, info.precision.name());
/// # Ok::<(), neural_forecast::Error>(())
/// ```
pub trait Model: Send + Sync {
    /// A forecast `[batch, output_length, 1]` of windows `[batch, time, features]`, with how it was
    /// made. Blocks until it is there.
    ///
    /// # Errors
    /// `Usage`: the window's shape is not the model's; `Config`: a configuration that no network
    /// can have; `Checkpoint`: weights that do not fit; `Device`: what the device reports.
    fn predict_with_info(&self, input: &Array3<f32>) -> Result<(Array3<f32>, RunInfo)>;

    /// As [`Model::predict_with_info`], the forecast alone.
    ///
    /// # Errors
    /// As there.
    fn predict_blocking(&self, input: &Array3<f32>) -> Result<Array3<f32>> {
        self.predict_with_info(input).map(|(output, _)| output)
    }

    /// As [`Model::predict_blocking`] for callers in an async function. The work is done when the
    /// future is first polled, on the polling thread: there is no runtime in this library. Callers
    /// whose executor must not block move it to a thread for blocking work.
    ///
    /// # Errors
    /// As [`Model::predict_with_info`].
    fn predict(&self, input: &Array3<f32>) -> impl Future<Output = Result<Array3<f32>>> + Send
    where
        Self: Sized,
    {
        async move { self.predict_blocking(input) }
    }

    /// How the last forecast of this model was made; `None` before the first.
    fn last_run(&self) -> Option<RunInfo>;
}
