//! What the integration guide's two models share: they come to life with their first forecast.
//!
//! Knows arrays, seeds and weight files. Does not know layers: an [`Architecture`] does.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use ndarray::Array3;
use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, KernelCount, Precision, WeightSource,
};
use neural_forecast_runtime::plan::{EntryKind, Plan};

use super::seeded::{Init, draw};
use crate::device::{self, DeviceChoice, DeviceOptions, OpenDevice};
use crate::engine::{Engine, EngineOptions, lock};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::run_info::{RunInfo, launched, weights_hash};
use crate::weights::Weights;

/// A plan, or why there is none.
pub(super) type Planned = std::result::Result<Plan, PlanError>;

/// A configuration that describes a network once the number of features is known.
pub(super) trait Architecture: fmt::Debug + Send + Sync {
    /// The model's name in messages.
    const NAME: &'static str;
    /// The weight `[…, F]` whose shape tells the features of a weight file.
    const FEATURES_OF: &'static str;

    /// Time steps in, steps out.
    fn lengths(&self) -> (usize, usize);
    /// Whether such a number of features is possible.
    fn check_features(&self, features: usize) -> Result<()>;
    /// The plan: input `x` `[B, T, F]`, output `forecast` `[B, H, 1]`.
    fn plan(&self, features: usize) -> Planned;
    /// Where a weight is drawn from if there is no file.
    fn init(&self, features: usize, name: &str) -> Init;
    /// Whether the plan is fused and its stacks stay whole.
    fn fused(&self) -> bool {
        true
    }
    /// The name in a file of what the plan calls `name`.
    fn stored_name<'a>(&self, name: &'a str) -> &'a str {
        name
    }
    /// A file's weights under the plan's names.
    fn stored<'a>(&self, file: &'a dyn WeightSource) -> Result<Box<dyn WeightSource + 'a>>;
}

/// A model that is built when it is first asked.
#[derive(Debug)]
pub(super) struct Lazy<A> {
    architecture: A,
    seed: u64,
    precision: Precision,
    device: Option<OpenDevice>,
    features: Option<usize>,
    stored: Option<Stored>,
    built: OnceLock<Built>,
    /// Held while one thread builds; the others wait for its result.
    building: Mutex<()>,
    /// Launches of the last run that counted them; `None` before the first run.
    last: Mutex<Option<Vec<KernelCount>>>,
}

/// Weights that a file holds, and its name for messages.
#[derive(Debug)]
struct Stored {
    name: String,
    weights: Weights,
}

#[derive(Debug)]
struct Built {
    features: usize,
    engine: Engine,
    device: Arc<dyn Device>,
    info: RunInfo,
}

impl<A: Architecture> Lazy<A> {
    pub(super) fn new(architecture: A) -> Self {
        Lazy {
            architecture,
            seed: 0,
            precision: Precision::F32,
            device: None,
            features: None,
            stored: None,
            built: OnceLock::new(),
            building: Mutex::new(()),
            last: Mutex::new(None),
        }
    }

    pub(super) fn architecture(&self) -> &A {
        &self.architecture
    }

    pub(super) fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.reset()
    }

    pub(super) fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self.reset()
    }

    pub(super) fn device(mut self, device: OpenDevice) -> Self {
        self.device = Some(device);
        self.reset()
    }

    /// As [`Lazy::device`] of a model that is already somebody's.
    #[cfg(any(feature = "cuda", feature = "gpu"))]
    pub(super) fn move_to(&mut self, device: OpenDevice) {
        self.device = Some(device);
        self.built = OnceLock::new();
        self.last = Mutex::new(None);
    }

    pub(super) fn features(mut self, features: usize) -> Result<Self> {
        self.architecture.check_features(features)?;
        if let Some(fixed) = self.features.filter(|&fixed| fixed != features) {
            return Err(self.wrong_features(fixed, features));
        }
        self.features = Some(features);
        Ok(self.reset())
    }

    /// Weights of a file, which fix the features.
    pub(super) fn weights(mut self, name: String, weights: Weights) -> Result<Self> {
        let (of, missing) = (A::FEATURES_OF, ErrorKind::Checkpoint);
        let features = weights.weight(of).and_then(|view| view.shape.get(1).copied());
        let features = features.ok_or_else(|| {
            let message = format!("tensor `{of}` of shape [width, features] is missing");
            Error::new(missing, message).context(&name)
        })?;
        self = self.features(features)?;
        self.stored = Some(Stored { name, weights });
        Ok(self.reset())
    }

    /// Whatever was built before a setting changed is built again.
    fn reset(mut self) -> Self {
        self.built = OnceLock::new();
        self.last = Mutex::new(None);
        self
    }

    #[cold]
    fn wrong_features(&self, expected: usize, found: usize) -> Error {
        Error::new(
            ErrorKind::Usage,
            format!("{} takes {expected} features, found {found}", A::NAME),
        )
    }

    fn built(&self, features: usize) -> Result<&Built> {
        if let Some(built) = self.built.get() {
            return Ok(built);
        }
        let _alone = lock(&self.building);
        if let Some(built) = self.built.get() {
            return Ok(built);
        }
        let built = self.build(features)?;
        Ok(self.built.get_or_init(|| built))
    }

    fn build(&self, features: usize) -> Result<Built> {
        let fixed = self.features.unwrap_or(features);
        if fixed != features {
            return Err(self.wrong_features(fixed, features));
        }
        self.architecture.check_features(features)?;
        let plan = self
            .architecture
            .plan(features)
            .map_err(|error| Error::new(ErrorKind::Config, error).context(A::NAME))?;
        match &self.stored {
            None => {
                let init = |name: &str| self.architecture.init(features, name);
                self.load(features, &draw(&plan, self.seed, init), plan)
            }
            Some(Stored { name, weights }) => {
                self.check_names(&plan, weights).context(name)?;
                let stored = self.architecture.stored(weights).context(name)?;
                self.load(features, &*stored, plan).context(name)
            }
        }
    }

    /// A tensor that the network does not have means that the file is another network's.
    fn check_names(&self, plan: &Plan, weights: &Weights) -> Result<()> {
        let stored = |name: &str| {
            plan.weights.iter().any(|w| self.architecture.stored_name(&w.name) == name)
        };
        match weights.names().find(|name| !stored(name)) {
            None => Ok(()),
            Some(name) => {
                let message = format!("tensor `{name}` is none of this {}'s", A::NAME);
                Err(Error::new(ErrorKind::Checkpoint, message))
            }
        }
    }

    fn load(&self, features: usize, weights: &dyn WeightSource, plan: Plan) -> Result<Built> {
        let opened = match &self.device {
            Some(opened) => opened.clone(),
            None => device::open(DeviceChoice::Auto, &DeviceOptions::default())?,
        };
        let fused = self.architecture.fused();
        let options = EngineOptions {
            precision: self.precision,
            class: KernelClass::Latency,
            fuse: fused,
            lower: !fused,
        };
        let info = RunInfo {
            device: opened.device.capabilities().id.clone(),
            precision: options.precision,
            kernel_class: options.class,
            model_hash: weights_hash(&plan, weights),
            fallback: opened.fallback,
            kernels: Vec::new(),
        };
        let engine = Engine::new(&*opened.device, plan, weights, options)?;
        Ok(Built { features, engine, device: opened.device, info })
    }

    /// The forecast; launches are counted where asked.
    pub(super) fn predict(
        &self,
        input: &Array3<f32>,
        count: bool,
    ) -> Result<(Array3<f32>, RunInfo)> {
        let (time, horizon) = self.architecture.lengths();
        let (batch, steps, features) = input.dim();
        if steps != time {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{} takes windows of {time} time steps, found shape [{batch}, {steps}, \
                     {features}]",
                    A::NAME
                ),
            ));
        }
        let built = self.built(features)?;
        if built.features != features {
            return Err(self.wrong_features(built.features, features));
        }
        let before = if count { built.device.kernel_counts() } else { Vec::new() };
        let forecast = built.run(input, horizon)?;
        let mut info = built.info.clone();
        if count {
            info.kernels = launched(&before, &built.device.kernel_counts());
        }
        *lock(&self.last) = Some(info.kernels.clone());
        let shape = (batch, horizon, 1);
        let forecast = Array3::from_shape_vec(shape, forecast)
            .map_err(|error| Error::new(ErrorKind::Device, error).context(A::NAME))?;
        Ok((forecast, info))
    }

    pub(super) fn last_run(&self) -> Option<RunInfo> {
        let kernels = lock(&self.last).clone()?;
        let built = self.built.get()?;
        Some(RunInfo { kernels, ..built.info.clone() })
    }
}

impl Built {
    /// In chunks that the engine's memory bound allows; the bits of a row do not depend on them.
    fn run(&self, input: &Array3<f32>, horizon: usize) -> Result<Vec<f32>> {
        let batch = input.dim().0;
        let mut forecast = Vec::with_capacity(batch * horizon);
        let row = input.dim().1 * input.dim().2;
        let contiguous = input.as_standard_layout();
        let values = contiguous.as_slice().unwrap_or_default();
        for chunk in values.chunks(row * self.engine.rows_max()) {
            let rows = chunk.len() / row;
            let inputs = [("x", Data::F32(chunk))];
            let outputs = self.engine.run(EntryKind::Full, rows, &inputs, &[])?;
            outputs.into_iter().for_each(|output| forecast.extend(output));
        }
        Ok(forecast)
    }
}

/// Checks that a file has a tensor of a shape.
pub(super) fn expect_tensor(file: &dyn WeightSource, name: &str, shape: &[usize]) -> Result<()> {
    let message = match file.weight(name) {
        Some(view) if view.shape == shape => return Ok(()),
        Some(view) => {
            format!("tensor `{name}` has shape {:?}, expected {shape:?}", view.shape)
        }
        None => format!("tensor `{name}` of shape {shape:?} is missing"),
    };
    Err(Error::new(ErrorKind::Checkpoint, message))
}

/// The constructors, settings and trait of a model over [`Lazy`].
macro_rules! model {
    ($model:ident, $config:ident) => {
        impl $model {
            /// A model of this shape, on the default device, in `f32`, with seed 0.
            ///
            /// # Errors
            /// `Config`: what the configuration's `validate` says.
            pub fn new_from_config(config: $config) -> crate::error::Result<Self> {
                config.validate()?;
                Ok($model(Lazy::new(config)))
            }

            /// Fixes the number of features before the first forecast.
            ///
            /// # Errors
            /// `Config`: 0 or too many; `Usage`: another number was fixed before.
            pub fn with_features(self, features: usize) -> crate::error::Result<Self> {
                self.0.features(features).map($model)
            }

            /// Sets the seed from which weights are drawn where there is no file.
            #[must_use]
            pub fn with_seed(self, seed: u64) -> Self {
                $model(self.0.seed(seed))
            }

            /// Sets the number format of weights and products.
            #[must_use]
            pub fn with_precision(
                self,
                precision: neural_forecast_runtime::device::Precision,
            ) -> Self {
                $model(self.0.precision(precision))
            }

            /// Sets the device, so that several models share one.
            #[must_use]
            pub fn with_device(self, device: crate::device::OpenDevice) -> Self {
                $model(self.0.device(device))
            }

            /// Moves the model to the first NVIDIA GPU; weights are uploaded by the next forecast.
            ///
            /// # Errors
            /// `Device`: no driver, no GPU, or one that cannot be used; the model stays where it
            /// was.
            #[cfg(feature = "cuda")]
            pub async fn enable_cuda_acceleration(&mut self) -> crate::error::Result<()> {
                let choice = crate::device::DeviceChoice::Cuda(0);
                let options = crate::device::DeviceOptions::default();
                self.0.move_to(crate::device::open(choice, &options)?);
                Ok(())
            }

            /// Moves the model to a WebGPU adapter, whose device several models may share; weights
            /// are uploaded by the next forecast. Without a backend it stays where it is.
            ///
            /// # Errors
            /// None; whether the device takes the model shows with its first forecast.
            #[cfg(feature = "gpu")]
            pub async fn initialize(
                &mut self,
                backend: Option<&crate::gpu::GPUBackend>,
            ) -> crate::error::Result<()> {
                if let Some(backend) = backend {
                    self.0.move_to(backend.open_device());
                }
                Ok(())
            }

            /// Takes weights from a safetensors file, under PyTorch's names, instead of drawing
            /// them; fixes the number of features too. The first forecast compares them with the
            /// network.
            ///
            /// # Errors
            /// `Io`, `Checkpoint`: the file cannot be read or does not tell the features.
            pub fn with_weights(
                self,
                path: impl AsRef<std::path::Path>,
            ) -> crate::error::Result<Self> {
                let path = path.as_ref();
                let weights = crate::checkpoint::open_weights(path)?;
                self.with_stored_weights(path.display().to_string(), weights)
            }

            /// As `with_weights` with weights from anywhere. `name` says in messages from where.
            ///
            /// # Errors
            /// `Checkpoint`: they do not tell the features; the first forecast compares the rest.
            pub fn with_stored_weights(
                self,
                name: impl Into<String>,
                weights: crate::weights::Weights,
            ) -> crate::error::Result<Self> {
                self.0.weights(name.into(), weights).map($model)
            }

            /// The configuration.
            pub fn config(&self) -> &$config {
                self.0.architecture()
            }
        }

        impl super::Model for $model {
            fn predict_with_info(
                &self,
                input: &ndarray::Array3<f32>,
            ) -> crate::error::Result<(ndarray::Array3<f32>, crate::run_info::RunInfo)> {
                self.0.predict(input, true)
            }

            fn predict_blocking(
                &self,
                input: &ndarray::Array3<f32>,
            ) -> crate::error::Result<ndarray::Array3<f32>> {
                self.0.predict(input, false).map(|(output, _)| output)
            }

            fn last_run(&self) -> Option<crate::run_info::RunInfo> {
                self.0.last_run()
            }
        }
    };
}

pub(super) use model;
