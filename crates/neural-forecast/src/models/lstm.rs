//! The integration guide's LSTM: a stacked LSTM and a linear head on the last position.
//!
//! PyTorch's `nn.LSTM(features, D, layers, bidirectional=…)` as `rnn` and `nn.Linear` as `head`,
//! under those names. Not neuralforecast's LSTM, which decodes step by step.

use neural_forecast_runtime::device::WeightSource;
use neural_forecast_runtime::ops::{Cell, Keep, Linear, Reshape, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::{
    Channel, Context, DType, Dim, EntryKind, PlanBuilder, WeightId,
};

use super::lazy::{self, Architecture, Lazy, Planned};
use super::rearranged::Rearranged;
use super::seeded::Init;
use crate::config::{LSTMConfig, check_features};
use crate::error::Result;

/// A stacked LSTM forecaster of a fixed window: `[batch, time, features]` in, `[batch,
/// output_length, 1]` out.
///
/// Making one is cheap: the number of features `F` is fixed, weights are read or drawn and the
/// network is made resident by the first forecast (or, for `F`, by
/// [`with_features`](LSTMModel::with_features) or a weight file). From then on another `F` is an
/// error. May be shared between threads; each gets a program of its own.
///
/// Without a weight file all weights are uniform in ±1/√D, PyTorch's default for its LSTM (the
/// head's ±1/√(width of its input)), from [`with_seed`](LSTMModel::with_seed)'s seed as
/// [`draw`](super::seeded::draw) documents.
///
/// ```
/// use neural_forecast::models::{LSTMModel, Model};
/// use neural_forecast::config::LSTMConfig;
/// use ndarray::Array3;
///
/// # fn main() { lstm_gpu_example().unwrap() }
/// #[tokio::main]
/// async fn lstm_gpu_example() -> Result<(), Box<dyn std::error::Error>> {
///     // Configure LSTM model
///     let config = LSTMConfig {
///         input_length: 100,
///         output_length: 10,
///         hidden_size: 256,
///         num_layers: 2,
///         use_bias: true,
///         dropout: 0.1,
///         bidirectional: true,
///     };
///
///     let mut model = LSTMModel::new_from_config(config)?;
/// #   let model = &mut model;
///
///     // Enable GPU acceleration
/// #   #[cfg(feature = "cuda")]
/// #   let here = matches!(neural_forecast::gpu::cuda::check_cuda_availability(), Ok(true));
/// #   #[cfg(feature = "cuda")]
/// #   if !here { println!("skipped: enable_cuda_acceleration, no CUDA device"); }
/// #   #[cfg(feature = "cuda")]
/// #   if here {
///     #[cfg(feature = "cuda")]
///     model.enable_cuda_acceleration().await?;
/// #   }
///
///     // Create sample input data
///     let input_data = Array3::ones((32, 100, 10)); // batch_size=32, seq_len=100, features=10
///
///     // GPU-accelerated inference
///     let output = model.predict(&input_data).await?;
///     println!("LSTM output shape: {:?}", output.shape());
/// #   assert_eq!(output.shape(), [32, 10, 1]);
/// #   assert!(output.iter().all(|y| y.is_finite()));
///
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct LSTMModel(Lazy<LSTMConfig>);

lazy::model!(LSTMModel, LSTMConfig);

impl Architecture for LSTMConfig {
    const NAME: &'static str = "LSTMModel";
    /// The first layer's input weights tell the features.
    const FEATURES_OF: &'static str = "rnn.weight_ih_l0";

    fn lengths(&self) -> (usize, usize) {
        (self.input_length, self.output_length)
    }

    fn check_features(&self, features: usize) -> Result<()> {
        check_features(features, self.input_length, self.hidden_size)
    }

    fn plan(&self, features: usize) -> Planned {
        plan(self, features, Keep::Last(1))
    }

    fn stored<'a>(&self, file: &'a dyn WeightSource) -> Result<Box<dyn WeightSource + 'a>> {
        Ok(Box::new(Rearranged::new(file)))
    }

    fn init(&self, _features: usize, name: &str) -> Init {
        init(self, name)
    }
}

/// The plan of an LSTM over `features` features. Input `x` `[B, T, F]`; output `forecast`
/// `[B, H, 1]` where the last position is kept, `[B, T', H]` where more are. What is not kept is
/// not computed: the last layer's backward direction then runs one step.
///
/// # Errors
/// Shapes that do not fit, which [`LSTMConfig::validate`] rules out.
pub fn plan(config: &LSTMConfig, features: usize, keep: Keep) -> Planned {
    let (d, h) = (config.hidden_size, config.output_length);
    let mut b = PlanBuilder::new("lstm", Context::Fixed(config.input_length));
    let width = config.directions() * d;
    let mut layers = Vec::with_capacity(config.num_layers);
    for layer in 0..config.num_layers {
        let inputs = if layer == 0 { features } else { width };
        let directions = ["", "_reverse"].into_iter().take(config.directions());
        layers.push(
            directions
                .map(|direction| recurrence(&mut b, config, layer, direction, inputs))
                .collect(),
        );
    }
    let head = b.weight("head.weight", &[h, width]);
    let head_bias = b.weight("head.bias", &[h]);
    b.begin(EntryKind::Full);
    let shape = [Dim::BATCH, config.input_length.into(), features.into()];
    let x = b.input("x", DType::F32, &shape);
    b.scope("rnn");
    let stack = RnnStack { keep, ..RnnStack::new(x, Cell::Lstm, d, layers) };
    let hidden = b.one(stack)?;
    b.scope("head");
    let forecast = b.one(Linear::new(hidden, head).bias(head_bias))?;
    finish(b, forecast, h, keep)
}

fn recurrence(
    b: &mut PlanBuilder,
    config: &LSTMConfig,
    layer: usize,
    direction: &str,
    inputs: usize,
) -> RnnWeights {
    let d = config.hidden_size;
    let mut named = |part: &str, shape: &[usize]| -> WeightId {
        b.weight(format!("rnn.{part}_l{layer}{direction}"), shape)
    };
    RnnWeights {
        w_ih: named("weight_ih", &[4 * d, inputs]),
        w_hh: named("weight_hh", &[4 * d, d]),
        b_ih: config.use_bias.then(|| named("bias_ih", &[4 * d])),
        b_hh: config.use_bias.then(|| named("bias_hh", &[4 * d])),
        w_hr: None,
    }
}

/// Names the forecast and ends the plan. One kept position of `h` values is `h` steps of one value.
pub(super) fn finish(
    mut b: PlanBuilder,
    forecast: neural_forecast_runtime::plan::ValueId,
    h: usize,
    keep: Keep,
) -> Planned {
    if keep == Keep::Last(1) {
        let shape = vec![Dim::BATCH, h.into(), Dim::Fixed(1)];
        let steps = b.one(Reshape { x: forecast, shape })?;
        b.output("forecast", steps, vec![Channel::Point]);
    } else {
        b.output("forecast", forecast, Vec::new());
    }
    b.finish()
}

/// PyTorch's default: the recurrence uniform in ±1/√D, the head in ±1/√(its inputs).
pub fn init(config: &LSTMConfig, name: &str) -> Init {
    let inputs = match name.starts_with("head.") {
        true => config.directions() * config.hidden_size,
        false => config.hidden_size,
    };
    Init::Uniform(1.0 / (inputs as f32).sqrt())
}
