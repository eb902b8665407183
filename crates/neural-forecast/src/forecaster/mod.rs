//! The way of one forecast: frame, windows, runs on a device, columns.
//!
//! Knows series, columns and horizons. Does not know architectures (plans do) or devices (the
//! contract does). Forecasters are `Send + Sync`: several threads may call one at once.
//!
//! # Longer horizons
//! A horizon beyond a direct network's own is rolled out block by block: the median (or the only
//! output) of a block is taken as if it had been observed, as neuralforecast does. Intervals of
//! later blocks are those of the network given that median; they do not widen with the uncertainty
//! of what was fed back. A recurrent network goes on step by step instead. Networks with historic
//! columns cannot be rolled out, because those columns are not known ahead.

mod columns;
mod scaling;
mod track;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use neural_forecast_runtime::arena::MemoryLine;
use neural_forecast_runtime::device::{Data, Device, KernelClass, Precision};
use neural_forecast_runtime::plan::EntryKind;

use self::columns::ColumnPlan;
use self::scaling::Scaling;
use self::track::{Inputs, Source, Track};
use crate::checkpoint::Checkpoint;
use crate::device::OpenDevice;
use crate::engine::{Engine, EngineOptions, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Frame, FutureFrame, Series, StaticFrame};
use crate::models::{Decoding, Network};
use crate::quantiles::Ask;
use crate::run_info::{RunInfo, launched};
use crate::weights::Weights;

/// Longest horizon of a request, in steps. Bounds the memory of a request, not of a model.
pub const HORIZON_MAX: usize = 100_000;

/// Longest horizon for which a recurrent network is compiled: its plan has a step for each.
pub const RECURRENT_HORIZON_MAX: usize = 4096;

/// Horizons for which a recurrent network stays compiled, its own among them.
const ENGINES_MAX: usize = 4;

/// How a forecaster runs its networks.
#[derive(Clone, Debug)]
pub struct ForecasterOptions {
    /// Number format of weights and products.
    pub precision: Precision,
    /// Which kernels.
    pub class: KernelClass,
}

impl Default for ForecasterOptions {
    fn default() -> Self {
        ForecasterOptions { precision: Precision::F32, class: KernelClass::Latency }
    }
}

/// What to forecast.
#[derive(Clone, Debug)]
pub struct ForecastRequest<'a> {
    /// Steps ahead; `None` is the checkpoint's own horizon.
    pub horizon: Option<usize>,
    /// Which intervals or quantiles; the default is the networks' own outputs.
    pub intervals: Ask,
    /// Future values of the columns that the networks know ahead.
    pub future: Option<&'a FutureFrame>,
    /// Static columns.
    pub statics: Option<&'a StaticFrame>,
    /// Whether forecasts below zero become zero.
    pub non_negative: bool,
    /// Whether quantiles that cross are sorted (and counted). Off gives the network's numbers as
    /// they are; crossings are counted all the same.
    pub repair_crossing: bool,
}

impl Default for ForecastRequest<'_> {
    fn default() -> Self {
        ForecastRequest {
            horizon: None,
            intervals: Ask::Trained,
            future: None,
            statics: None,
            non_negative: false,
            repair_crossing: true,
        }
    }
}

/// Forecasts of a frame's series.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// Names of the columns: the networks' aliases with what each column is.
    pub columns: Vec<String>,
    /// The quantile of each column; `None` for a point forecast.
    pub quantiles: Vec<Option<f64>>,
    /// One for each series of the frame, in its order.
    pub series: Vec<SeriesForecast>,
    /// How each network ran, in the checkpoint's order.
    pub runs: Vec<ModelRun>,
}

/// The forecast of one series.
#[derive(Clone, Debug)]
pub struct SeriesForecast {
    /// The series.
    pub id: String,
    /// Stamps `[H]`.
    pub stamps: Vec<i64>,
    /// Values `[columns][H]`.
    pub values: Vec<Vec<f32>>,
}

/// How one network of a forecast ran.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ModelRun {
    /// The network's alias.
    pub model: String,
    /// Device, precision, kernels, weights.
    #[serde(flatten)]
    pub info: RunInfo,
    /// Steps at which quantiles crossed.
    pub crossings: usize,
    /// Columns of the forecast that are this network's.
    pub columns: usize,
    /// Blocks of the roll-out; 1 where the network's own horizon reached.
    pub blocks: usize,
}

/// Networks of one checkpoint on one device.
#[derive(Debug)]
pub struct Forecaster {
    models: Vec<Loaded>,
    device: Arc<dyn Device>,
    fallback: Option<String>,
    options: ForecasterOptions,
    checkpoint: Checkpoint,
}

/// A network with its engines by horizon.
#[derive(Debug)]
struct Loaded {
    network: Network,
    /// The columns of its own outputs, which most requests want.
    trained: ColumnPlan,
    engines: Mutex<BTreeMap<usize, Arc<Engine>>>,
}

impl Forecaster {
    /// Puts a checkpoint's networks on a device.
    ///
    /// # Errors
    /// `Device`, `Checkpoint`, `Unsupported`: what [`Engine::new`] says of a network.
    pub fn new(
        checkpoint: Checkpoint,
        open: &OpenDevice,
        options: ForecasterOptions,
    ) -> Result<Forecaster> {
        let mut forecaster = Forecaster {
            models: Vec::new(),
            device: open.device.clone(),
            fallback: open.fallback.clone(),
            options,
            checkpoint: Checkpoint { models: Vec::new(), ..checkpoint },
        };
        for network in checkpoint.models {
            let trained = ColumnPlan::new(&network, &Ask::Trained, None)?;
            let mut loaded = Loaded { network, trained, engines: Mutex::new(BTreeMap::new()) };
            forecaster.engine(&loaded, loaded.network.horizon)?;
            // Packed weights live on the device; only a recurrent network is compiled again.
            if loaded.network.decoding == Decoding::Direct {
                loaded.network.weights = Weights::new();
            }
            forecaster.models.push(loaded);
        }
        Ok(forecaster)
    }

    /// The networks.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.models.iter().map(|loaded| &loaded.network)
    }

    /// The checkpoint without its networks.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Memory of each network on the device: alias, named lines of weights and states, and named
    /// lines of a program of `rows` rows.
    pub fn memory(&self, rows: usize) -> Result<Vec<(String, Vec<MemoryLine>)>> {
        let mut all = Vec::new();
        for loaded in &self.models {
            let engine = self.engine(loaded, loaded.network.horizon)?;
            let mut lines = engine.memory();
            lines.extend(engine.program_memory(EntryKind::Full, rows)?);
            all.push((loaded.network.alias.clone(), lines));
        }
        Ok(all)
    }

    /// Forecasts every series of a frame with every network.
    ///
    /// Series go in chunks whose memory is bounded; a series' numbers do not depend on the chunk.
    /// Scalers of whole series are fitted to the frame, as neuralforecast does for a frame that is
    /// passed to `predict`.
    ///
    /// # Errors
    /// `Usage`: a horizon of 0 or beyond [`HORIZON_MAX`]; `Unsupported`: intervals or a horizon
    /// that a network cannot give, by its name; `Data`: missing columns, future values, values.
    pub fn predict(&self, frame: &Frame, request: &ForecastRequest<'_>) -> Result<Forecast> {
        let horizon = request.horizon.unwrap_or(self.checkpoint.horizon);
        if !(1..=HORIZON_MAX).contains(&horizon) {
            let message = format!("the horizon is {horizon}, expected 1 to {HORIZON_MAX}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        // Every refusal comes before the first run.
        let conformal = self.checkpoint.conformal.as_ref();
        let made = match &request.intervals {
            Ask::Trained => Vec::new(),
            ask => self
                .networks()
                .map(|network| ColumnPlan::new(network, ask, conformal))
                .collect::<Result<Vec<_>>>()?,
        };
        let plan = |number: usize| made.get(number).unwrap_or(&self.models[number].trained);
        let columns: usize = (0..self.models.len()).map(|n| plan(n).names().len()).sum();
        let scaling = Scaling::fit(self, frame, request)?;
        let mut forecast = Forecast {
            columns: Vec::with_capacity(columns),
            quantiles: Vec::with_capacity(columns),
            series: Vec::with_capacity(frame.series.len()),
            runs: Vec::with_capacity(self.models.len()),
        };
        for series in &frame.series {
            let stamps = frame.future_stamps(series, horizon)?;
            let (id, values) = (series.id.clone(), Vec::with_capacity(columns));
            forecast.series.push(SeriesForecast { id, stamps, values });
        }
        for (number, loaded) in self.models.iter().enumerate() {
            let plan = plan(number);
            let call = Call { forecaster: self, loaded, frame, request, horizon, plan };
            let run = call.run(&scaling, &mut forecast.series)?;
            forecast.columns.extend_from_slice(plan.names());
            forecast.quantiles.extend_from_slice(plan.quantiles());
            forecast.runs.push(run);
        }
        Ok(forecast)
    }

    /// The engine of a network for a horizon, compiled at its first use.
    fn engine(&self, loaded: &Loaded, horizon: usize) -> Result<Arc<Engine>> {
        let mut engines = lock(&loaded.engines);
        if let Some(engine) = engines.get(&horizon) {
            return Ok(engine.clone());
        }
        let network = &loaded.network;
        let options = EngineOptions {
            precision: self.options.precision,
            class: self.options.class,
            ..EngineOptions::default()
        };
        let plan = network.plan_for(horizon)?;
        let engine = Engine::new(self.device.as_ref(), plan, &network.weights, options)
            .map_err(|error| error.context(format!("model `{}`", network.alias)))?;
        let engine = Arc::new(engine);
        // Each holds packed weights of its own: a caller that tries every horizon must not fill
        // the memory.
        if engines.len() >= ENGINES_MAX
            && let Some(other) = engines.keys().copied().find(|&h| h != network.horizon)
        {
            engines.remove(&other);
        }
        engines.insert(horizon, engine.clone());
        Ok(engine)
    }
}

/// One network's part of a request.
struct Call<'a> {
    forecaster: &'a Forecaster,
    loaded: &'a Loaded,
    frame: &'a Frame,
    request: &'a ForecastRequest<'a>,
    horizon: usize,
    plan: &'a ColumnPlan,
}

impl Call<'_> {
    fn run(&self, scaling: &Scaling, into: &mut [SeriesForecast]) -> Result<ModelRun> {
        let network = &self.loaded.network;
        let (block, blocks) = self.blocks()?;
        let engine = self.forecaster.engine(self.loaded, block)?;
        let before = self.forecaster.device.kernel_counts();
        let mut crossings = 0;
        let mut inputs = Inputs::default();
        for first in (0..self.frame.series.len()).step_by(engine.rows_max()) {
            let rows = first..(first + engine.rows_max()).min(self.frame.series.len());
            let mut raw = self.chunk(&engine, rows.clone(), block, blocks, scaling, &mut inputs)?;
            let stride = raw.len() / rows.len();
            for (row, raw) in rows.zip(raw.chunks_exact_mut(stride)) {
                let undo = |values: &mut [f32]| scaling.undo(row, values);
                let asked = &mut raw[..self.horizon * network.outputs.len()];
                crossings += self.plan.columns(asked, self.request, undo, &mut into[row])?;
            }
        }
        let after = self.forecaster.device.kernel_counts();
        let info = RunInfo {
            device: self.forecaster.device.capabilities().id.clone(),
            precision: self.forecaster.options.precision,
            kernel_class: self.forecaster.options.class,
            model_hash: self.forecaster.checkpoint.hash.clone(),
            fallback: self.forecaster.fallback.clone(),
            kernels: launched(&before, &after),
        };
        let columns = self.plan.names().len();
        Ok(ModelRun { model: network.alias.clone(), info, crossings, columns, blocks })
    }

    /// Steps of one block, and how many blocks reach the horizon.
    fn blocks(&self) -> Result<(usize, usize)> {
        let network = &self.loaded.network;
        let (own, wanted) = (network.horizon, self.horizon);
        let refuse = |why: &str| {
            Err(Error::unsupported(format!(
                "model `{}` forecasts {own} steps and cannot be rolled out to {wanted}: {why}",
                network.alias
            )))
        };
        if wanted <= own {
            return Ok((own, 1));
        }
        if !network.exogenous.historic.is_empty() {
            return refuse("its historic columns are not known ahead");
        }
        if network.decoding == Decoding::Recurrent {
            if wanted > RECURRENT_HORIZON_MAX {
                return refuse(&format!("its steps are compiled up to {RECURRENT_HORIZON_MAX}"));
            }
            return Ok((wanted, 1));
        }
        if network.feedback.is_none() {
            return refuse("it was trained without a median to feed back");
        }
        Ok((own, wanted.div_ceil(own)))
    }

    /// Forecasts of a chunk of series, each `[steps, O]` with at least as many steps as were asked
    /// for, still scaled.
    fn chunk(
        &self,
        engine: &Engine,
        rows: std::ops::Range<usize>,
        block: usize,
        blocks: usize,
        scaling: &Scaling,
        inputs: &mut Inputs,
    ) -> Result<Vec<f32>> {
        let network = &self.loaded.network;
        let outputs = network.outputs.len();
        let mut tracks =
            rows.clone().map(|row| self.track(row, scaling)).collect::<Result<Vec<Track>>>()?;
        let mut whole = Vec::new();
        for number in 0..blocks {
            inputs.clear();
            tracks.iter().for_each(|track| track.fill(network, block, number * block, inputs));
            let forecast = self.run_block(engine, tracks.len(), inputs)?;
            if blocks == 1 {
                return Ok(forecast);
            }
            let stride = blocks * block * outputs;
            whole.resize(tracks.len() * stride, 0.0);
            let into = whole.chunks_exact_mut(stride);
            for ((row, track), into) in
                forecast.chunks_exact(block * outputs).zip(&mut tracks).zip(into)
            {
                into[number * row.len()..][..row.len()].copy_from_slice(row);
                if let (Some(channel), true) = (network.feedback, number + 1 < blocks) {
                    track.feed_back(row.iter().skip(channel).step_by(outputs).copied());
                }
            }
        }
        Ok(whole)
    }

    fn run_block(&self, engine: &Engine, rows: usize, inputs: &Inputs) -> Result<Vec<f32>> {
        let given = [
            ("y", Data::F32(&inputs.y)),
            ("mask", Data::F32(&inputs.mask)),
            ("hist_exog", Data::F32(&inputs.historic)),
            ("futr_exog", Data::F32(&inputs.future)),
            ("stat_exog", Data::F32(&inputs.statics)),
        ];
        let mut outputs = engine.run(EntryKind::Full, rows, &given, &[])?;
        let named = engine
            .plan()
            .entry(EntryKind::Full)
            .and_then(|entry| entry.outputs.iter().position(|output| output.name == "forecast"));
        match named {
            Some(index) => Ok(outputs.swap_remove(index)),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                format!("model `{}` has no output `forecast`", self.loaded.network.alias),
            )),
        }
    }

    fn track(&self, row: usize, scaling: &Scaling) -> Result<Track> {
        let network = &self.loaded.network;
        let series = &self.frame.series[row];
        let names = &network.exogenous;
        let scaled = |names: &[String]| -> Result<Vec<Vec<f32>>> {
            names.iter().map(|name| scaling.column(self.frame, row, name)).collect()
        };
        let (historic, known) = (scaled(&names.historic)?, scaled(&names.future)?);
        let ahead = self.ahead(row, series, scaling)?;
        let statics = match self.request.statics {
            _ if names.statics.is_empty() => Vec::new(),
            Some(frame) => scaling.statics(frame, &series.id, &names.statics)?,
            None => {
                return Err(Error::data(format!(
                    "model `{}` needs the static columns [{}], expected a static table",
                    network.alias,
                    names.statics.join(", ")
                )));
            }
        };
        let values = scaling.target(self.frame, row, network.context);
        let source = Source {
            id: &series.id,
            values: &values,
            historic: historic.iter().map(Vec::as_slice).collect(),
            known: known.iter().map(Vec::as_slice).collect(),
            ahead,
            statics,
        };
        Track::new(source, network.context, names)
    }

    /// Future columns over the horizon, scaled.
    fn ahead(&self, row: usize, series: &Series, scaling: &Scaling) -> Result<Vec<Vec<f32>>> {
        let network = &self.loaded.network;
        let names = &network.exogenous.future;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let Some(future) = self.request.future else {
            return Err(Error::data(format!(
                "model `{}` needs future values of [{}], expected a future table",
                network.alias,
                names.join(", ")
            )));
        };
        // A network's own horizon may be longer than what is asked; it needs its inputs whole.
        let steps = self.horizon.max(network.horizon);
        let stamps = self.frame.future_stamps(series, steps)?;
        let mut columns = future.values(&series.id, &stamps, names)?;
        for (column, name) in columns.iter_mut().zip(names) {
            scaling.apply(row, name, column);
        }
        Ok(columns)
    }
}
