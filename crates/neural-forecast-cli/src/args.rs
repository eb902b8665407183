//! The flags of every subcommand, as clap reads them. No flag is interpreted twice: what needs the
//! library's own types is parsed into them here.

use clap::{Args, Parser, Subcommand};
use neural_forecast::Precision;
use neural_forecast::calendar::Frequency;
use neural_forecast::config::LINGER_US_MAX;
use neural_forecast::device::DeviceChoice;
use neural_forecast::frame::{Columns, Format, GapPolicy, ReadOptions};
use neural_forecast::workloads::Mode;
use std::path::PathBuf;

/// Most threads that may be asked for.
const THREADS_MAX: u64 = 1024;
/// Longest horizon that may be asked for, in steps.
const HORIZON_MAX: u64 = 100_000;

/// Forecasts time series with neural networks, on this machine, without Python.
#[derive(Debug, Parser)]
#[command(name = "neural-forecast", version, propagate_version = true)]
#[command(after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage.\n\
Environment: NEURAL_FORECAST_DEVICE names the device where --device is left out; \
FORCE_CPU_FALLBACK=1 puts the CPU in the place of any other device.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Forecast the series of a CSV, JSON or Parquet file
    Forecast(ForecastArgs),
    /// Show what models run on: names, features, or why a device is unavailable
    Devices(DevicesArgs),
    /// Show a model: architecture, parameters, precisions, memory
    Inspect(InspectArgs),
    /// Measure a model on known data over rolling windows: MASE, sMAPE, WQL, MSE, MAE, coverage
    Evaluate(EvaluateArgs),
    /// Measure the error of each precision against a reference in f64
    Verify(VerifyArgs),
    /// Measure latency and throughput of the benchmark workloads
    Bench(BenchArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
}

/// Flags of `forecast`.
#[derive(Args, Debug)]
pub struct ForecastArgs {
    /// CSV, JSON or Parquet file in long, wide or single-column form; `-` is standard input
    pub input: PathBuf,
    /// Folder of a model, or the name of one in this binary [default: patchtst]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Steps to forecast [default: the model's own]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=HORIZON_MAX))]
    pub horizon: Option<u64>,
    /// Intervals or quantiles.
    #[command(flatten)]
    pub bands: BandArgs,
    /// What it runs on.
    #[command(flatten)]
    pub run: RunArgs,
    /// Known future values of exogenous columns: id, time and columns
    #[arg(long, value_name = "FILE")]
    pub future: Option<PathBuf>,
    /// Static features: id and columns
    #[arg(long = "static", value_name = "FILE")]
    pub statics: Option<PathBuf>,
    /// Never forecast below zero
    #[arg(long)]
    pub non_negative: bool,
    /// Leave quantiles that cross as the model gives them, instead of sorting them
    #[arg(long)]
    pub keep_crossings: bool,
    /// Write the forecasts here instead of standard output (`-`)
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Format of the forecasts [default: by the output's name, else csv]
    #[arg(long)]
    pub format: Option<Format>,
    /// Draw history, median and intervals, as SVG or PNG by the name
    #[arg(long, value_name = "FILE.svg|FILE.png", num_args = 0..=1)]
    #[arg(default_missing_value = "forecast.svg")]
    pub plot: Option<PathBuf>,
    /// Print forecasts, run and warnings as one JSON object
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// How the input is read.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Which intervals or quantiles a forecast has.
#[derive(Args, Debug)]
pub struct BandArgs {
    /// Intervals by their probability in percent, such as 80,90 [default: the model's own]
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', value_parser = level)]
    #[arg(conflicts_with = "quantiles")]
    pub level: Vec<f64>,
    /// Quantiles, such as 0.1,0.5,0.9
    #[arg(long, value_name = "Q,…", value_delimiter = ',', value_parser = quantile)]
    pub quantiles: Vec<f64>,
}

/// What a model runs on.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// auto, cpu, cuda, cuda:N, gpu or gpu:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Number format of weights and products: f32, bf16 or int8; f16, tf32 and fp8 on NVIDIA GPUs
    #[arg(long, default_value = "f32")]
    pub precision: Precision,
    /// Threads of the CPU engine [default: all that this process may use]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    pub threads: Option<u64>,
    /// How long an NVIDIA GPU keeps the kernel of a whole forecast after an answer, so that the
    /// next one needs no launch; holds multiprocessors and takes power meanwhile
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(LINGER_US_MAX)))]
    pub linger: u32,
}

/// How the input is read.
#[derive(Args, Debug)]
#[command(next_help_heading = "Input")]
pub struct ReadArgs {
    /// Column of the series' ids [default: the model's own name, or unique_id, item_id, …]
    #[arg(long, value_name = "COLUMN")]
    pub id_col: Option<String>,
    /// Column of the stamps [default: ds, timestamp, date, datetime or time]
    #[arg(long, value_name = "COLUMN")]
    pub time_col: Option<String>,
    /// Column of the values [default: y, target or value]
    #[arg(long, value_name = "COLUMN")]
    pub target_col: Option<String>,
    /// Distance between stamps, as in pandas: h, B, W-SUN, ME, 15min [default: the model's, or
    /// inferred]
    #[arg(long)]
    pub freq: Option<Frequency>,
    /// Missing stamps and values: error, ffill, interpolate, zero or keep [default: interpolate]
    #[arg(long)]
    pub gaps: Option<GapPolicy>,
    /// Format of the input [default: by its name, else by its first bytes]
    #[arg(long, value_name = "FORMAT")]
    pub input_format: Option<Format>,
}

impl ReadArgs {
    /// As the library takes them.
    #[must_use]
    pub fn options(&self) -> ReadOptions {
        ReadOptions {
            format: self.input_format,
            columns: Columns {
                id: self.id_col.clone(),
                time: self.time_col.clone(),
                target: self.target_col.clone(),
            },
            frequency: self.freq,
            gaps: self.gaps.unwrap_or_default(),
            ..ReadOptions::default()
        }
    }
}

/// Flags of `devices`.
#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// Threads of the CPU engine [default: all that this process may use]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    pub threads: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Folder of a model, or the name of one in this binary
    pub model: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `evaluate`.
#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// CSV, JSON or Parquet file with the known values; `-` is standard input
    pub data: PathBuf,
    /// Folder of a model, or the name of one in this binary [default: patchtst]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Steps of each forecast [default: the model's own]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=HORIZON_MAX))]
    pub horizon: Option<u64>,
    /// Forecasts of each series, from the end backwards
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub windows: u64,
    /// Steps between the starts of two windows [default: the horizon]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=HORIZON_MAX))]
    pub step: Option<u64>,
    /// Steps of a season, for MASE [default: the frequency's own, such as 24 for hours]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=HORIZON_MAX))]
    pub season: Option<u64>,
    /// Intervals or quantiles.
    #[command(flatten)]
    pub bands: BandArgs,
    /// Values that follow those of DATA, as in the test files of competitions; instead of windows
    #[arg(long, value_name = "FILE", conflicts_with_all = ["windows", "step"])]
    pub actual: Option<PathBuf>,
    /// Static features: id and columns
    #[arg(long = "static", value_name = "FILE")]
    pub statics: Option<PathBuf>,
    /// What it runs on.
    #[command(flatten)]
    pub run: RunArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How the input is read.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Flags of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Folder of a model, the name of one in this binary, or a workload of `bench`
    pub model: PathBuf,
    /// Series to forecast [default: invented ones]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// How many series are invented
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    #[arg(conflicts_with = "data")]
    pub series: u64,
    /// Fresh windows of a workload that are compared, at most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub windows: u64,
    /// Windows of a workload a run; each batch is verified, as kernels may differ
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 64])]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub batch: Vec<u64>,
    /// No reference of a workload's window is begun after this many seconds
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    pub seconds: f64,
    /// auto, cpu, cuda, cuda:N, gpu or gpu:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Precisions to measure [default: all that the device computes in]
    #[arg(long, value_name = "PRECISION,…", value_delimiter = ',')]
    pub precision: Vec<Precision>,
    /// Threads of the CPU engine [default: all that this process may use]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    pub threads: Option<u64>,
    /// Known future values of exogenous columns: id, time and columns
    #[arg(long, value_name = "FILE", requires = "data")]
    pub future: Option<PathBuf>,
    /// Static features: id and columns
    #[arg(long = "static", value_name = "FILE", requires = "data")]
    pub statics: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How the data is read.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Flags of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// A workload's name, or all
    #[arg(long, default_value = "all", value_name = "NAME|all")]
    pub workload: String,
    /// Rows of a batch [default: each of the workload's own]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub batch: Option<u64>,
    /// full-window (latency of one call) or throughput (forecasts per second at a large batch)
    #[arg(long, default_value = "full-window")]
    pub mode: Mode,
    /// Seconds of measurement for each row of the table
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// Fresh windows of each row that are compared with the reference in f64, at most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub error_windows: u64,
    /// What it runs on.
    #[command(flatten)]
    pub run: RunArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

fn level(text: &str) -> Result<f64, String> {
    let value: f64 = text.trim().parse().map_err(|_| "expected a number".to_string())?;
    if value > 0.0 && value < 100.0 {
        return Ok(value);
    }
    Err("expected a percentage above 0 and below 100".into())
}

fn quantile(text: &str) -> Result<f64, String> {
    let value: f64 = text.trim().parse().map_err(|_| "expected a number".to_string())?;
    if value > 0.0 && value < 1.0 {
        return Ok(value);
    }
    Err("expected a quantile above 0 and below 1".into())
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_string())?;
    if value > 0.0 && value <= 3600.0 {
        return Ok(value);
    }
    Err("expected seconds above 0 and at most 3600".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_the_default_model() {
        let default = neural_forecast::shipped::names().next().unwrap();
        let help = Cli::command().find_subcommand_mut("forecast").unwrap().render_help();
        assert!(help.to_string().contains(&format!("[default: {default}]")));
    }

    #[test]
    fn values_outside_their_range_are_refused() {
        let refused = [
            "forecast a.csv --horizon 0",
            "forecast a.csv --horizon 9999999",
            "forecast a.csv --level 100",
            "forecast a.csv --level nan",
            "forecast a.csv --quantiles 1.5",
            "forecast a.csv --quantiles 0.5 --level 80",
            "forecast a.csv --freq fortnight",
            "forecast a.csv --device tpu",
            "forecast a.csv --threads 0",
            "forecast a.csv --gaps guess",
            "forecast a.csv --format xlsx",
            "evaluate a.csv --windows 0",
            "bench --mode fast",
            "completions dos",
        ];
        for line in refused {
            let words = std::iter::once("neural-forecast").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
