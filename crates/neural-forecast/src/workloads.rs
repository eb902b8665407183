//! The benchmark suite's workloads by name, and their measurement.
//!
//! A workload is a network of the integration guide's two kinds with random weights, random windows
//! and a count of its work. Nothing is printed here, and no figure is kept: the command line and
//! `benches/` print what [`run`] returns.

mod measure;
mod options;
mod result;
mod verify;

use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::ops::Keep;
use neural_forecast_runtime::plan::Plan;

use crate::config::{LSTMConfig, TransformerConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::models::seeded::{Init, SplitMix, draw};
use crate::models::{lstm, transformer};

pub use measure::{run, run_each};
pub use options::{BenchOptions, Mode};
pub use result::{BenchResult, Latency, Positions};
pub use verify::verify;

/// A network, the windows it takes and the batches it is measured at.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its name in every table.
    pub name: &'static str,
    /// The network.
    pub network: Network,
    /// Features `F` of a window.
    pub features: usize,
    /// Batches on a CPU; in throughput enough rows to fill the tiles of every product, and
    /// activations of some tens of megabytes at most.
    pub cpu: Batches,
    /// Batches on a GPU; in throughput enough rows to fill it.
    pub gpu: Batches,
}

/// The batches at which a workload is measured where none is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Of the full-window mode.
    pub full_window: &'static [usize],
    /// Of the throughput mode.
    pub throughput: &'static [usize],
}

impl Batches {
    const fn new(full_window: &'static [usize], throughput: &'static [usize]) -> Self {
        Batches { full_window, throughput }
    }
}

/// The two kinds of networks.
#[derive(Clone, Debug, PartialEq)]
pub enum Network {
    /// Stacked LSTM, head on the last position.
    Lstm(LSTMConfig),
    /// Pre-norm encoder, head on the last position.
    Transformer(TransformerConfig),
}

/// All workloads in the order of the tables.
pub fn all() -> Vec<Workload> {
    vec![
        lstm("lstm_a", (50, 100), 100, 2, (&[512], &[16384])),
        lstm("lstm_b", (100, 250), 200, 3, (&[128], &[8192])),
        lstm("lstm_c", (100, 500), 1000, 4, (&[32], &[2048])),
        guide_lstm("lstm_guide_128", 128, Batches::new(&[1, 32, 512], &[512])),
        guide_lstm("lstm_guide_256", 256, Batches::new(&[1, 32], &[128])),
        Workload {
            name: "transformer_small",
            network: Network::Transformer(TransformerConfig {
                input_length: 64,
                output_length: 10,
                d_model: 128,
                num_heads: 8,
                num_layers: 3,
                d_ff: 256,
                dropout: 0.0,
                use_flash_attention: true,
            }),
            features: 16,
            cpu: Batches::new(&[1, 32, 512], &[512]),
            gpu: Batches::new(&[1, 32], &[1024, 8192]),
        },
        Workload {
            name: "transformer_guide",
            network: Network::Transformer(TransformerConfig {
                input_length: 512,
                output_length: 10,
                d_model: 768,
                num_heads: 12,
                num_layers: 6,
                d_ff: 3072,
                dropout: 0.0,
                use_flash_attention: true,
            }),
            features: 768,
            cpu: Batches::new(&[1], &[4]),
            gpu: Batches::new(&[1], &[16, 128]),
        },
    ]
}

/// The workload of this name.
///
/// # Errors
/// `Usage`: there is none; the message lists them.
pub fn named(name: &str) -> Result<Workload> {
    all().into_iter().find(|workload| workload.name == name).ok_or_else(|| {
        let names = all().iter().map(|w| w.name).collect::<Vec<_>>().join(", ");
        let message = format!("unknown workload `{name}`, expected one of {names}");
        Error::new(ErrorKind::Usage, message)
    })
}

fn lstm(
    name: &'static str,
    (time, features): (usize, usize),
    hidden_size: usize,
    num_layers: usize,
    (cpu, gpu): (&'static [usize], &'static [usize]),
) -> Workload {
    let config = LSTMConfig {
        input_length: time,
        output_length: 1,
        hidden_size,
        num_layers,
        use_bias: true,
        dropout: 0.0,
        bidirectional: false,
    };
    let network = Network::Lstm(config);
    let (cpu, gpu) = (Batches::new(&[1], cpu), Batches::new(&[1], gpu));
    Workload { name, network, features, cpu, gpu }
}

fn guide_lstm(name: &'static str, hidden_size: usize, cpu: Batches) -> Workload {
    let config = LSTMConfig {
        input_length: 100,
        output_length: 10,
        hidden_size,
        num_layers: 2,
        use_bias: true,
        dropout: 0.0,
        bidirectional: true,
    };
    let network = Network::Lstm(config);
    let gpu = Batches::new(&[1, 32], &[4096]);
    Workload { name, network, features: 10, cpu, gpu }
}

impl Workload {
    /// Time steps `T` of a window.
    pub fn time(&self) -> usize {
        match &self.network {
            Network::Lstm(config) => config.input_length,
            Network::Transformer(config) => config.input_length,
        }
    }

    /// Values of one window.
    pub fn window(&self) -> usize {
        self.time() * self.features
    }

    /// The plan, with the head on the last position or on all. Input `x` `[B, T, F]`, output
    /// `forecast`.
    ///
    /// # Errors
    /// `Config`: shapes that do not fit, which no workload of [`all`] has.
    pub fn plan(&self, positions: Positions) -> Result<Plan> {
        let keep = match positions {
            Positions::Last => Keep::Last(1),
            Positions::All => Keep::All,
        };
        let plan = match &self.network {
            Network::Lstm(config) => lstm::plan(config, self.features, keep),
            Network::Transformer(config) => transformer::plan(config, self.features, keep),
        };
        plan.map_err(|error| Error::new(ErrorKind::Config, error).context(self.name))
    }

    /// Random weights of a plan of this workload. A Transformer's are PyTorch's defaults. An LSTM's
    /// have variance 1/K over their K inputs instead of PyTorch's 1/3D, and 16/K where the inputs
    /// are hidden states of the layer below, which are about 1/4: with less, a stack of layers
    /// forecasts nearly the same number for every window.
    pub fn weights(&self, plan: &Plan, seed: u64) -> MemoryWeights {
        match &self.network {
            Network::Transformer(config) => {
                draw(plan, seed, |name| transformer::init(config, self.features, name))
            }
            Network::Lstm(config) => draw(plan, seed, |name| {
                let (inputs, gain) = match name {
                    _ if name.contains("bias") => return Init::Uniform(0.1),
                    _ if name.contains("weight_hh") => (config.hidden_size, 1.0),
                    _ if name.starts_with("rnn.weight_ih_l0") => (self.features, 1.0),
                    _ => (config.directions() * config.hidden_size, 4.0),
                };
                Init::Uniform(gain * (3.0 / inputs as f32).sqrt())
            }),
        }
    }

    /// `batch` windows of standard normal numbers, `[batch, T, F]`.
    pub fn inputs(&self, batch: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix::new(seed ^ 0x5eed_0f1a_7e57);
        (0..batch * self.window()).map(|_| random.normal()).collect()
    }

    /// Floating-point operations of the products of `batch` windows, a multiply-add being two, when
    /// every layer computes every position.
    pub fn flops_nominal(&self, batch: usize) -> u64 {
        self.flops(batch, self.time() as u64)
    }

    /// As [`Workload::flops_nominal`], without what a head on the last position never reads: the
    /// backward direction of the last recurrent layer runs one step, and the last encoder layer
    /// computes keys and values alone for the other positions.
    pub fn flops_last(&self, batch: usize) -> u64 {
        self.flops(batch, 1)
    }

    /// Where the last layer is read at `kept` positions. The head counts once a kept position.
    fn flops(&self, batch: usize, kept: u64) -> u64 {
        let (t, f) = (self.time() as u64, self.features as u64);
        let row = match &self.network {
            Network::Lstm(c) => {
                let (d, layers) = (c.hidden_size as u64, c.num_layers as u64);
                let directions = c.directions() as u64;
                let step = |inputs: u64| 2 * 4 * d * (inputs + d);
                let inputs = |layer: u64| if layer == 0 { f } else { directions * d };
                let whole: u64 = (0..layers).map(|l| directions * t * step(inputs(l))).sum();
                let unread = (directions - 1) * (t - kept) * step(inputs(layers - 1));
                whole - unread + kept * 2 * directions * d * c.output_length as u64
            }
            Network::Transformer(c) => {
                let (d, ff, layers) = (c.d_model as u64, c.d_ff as u64, c.num_layers as u64);
                let layer = |q: u64| q * (4 * d * d + 4 * d * ff + 4 * t * d) + t * 4 * d * d;
                let head = kept * 2 * d * c.output_length as u64;
                2 * t * f * d + (layers - 1) * layer(t) + layer(kept) + head
            }
        };
        batch as u64 * row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_tables() {
        let names: Vec<_> = all().iter().map(|w| w.name).collect();
        let expected = [
            "lstm_a",
            "lstm_b",
            "lstm_c",
            "lstm_guide_128",
            "lstm_guide_256",
            "transformer_small",
            "transformer_guide",
        ];
        assert_eq!(names, expected);
        assert!(named("lstm_d").unwrap_err().to_string().contains("lstm_guide_128"));
    }

    #[test]
    fn work_is_counted_as_by_hand() {
        // Two layers of 4 gates: 50 steps · 2 · 400 · (100 + 100), twice, and the head.
        assert_eq!(named("lstm_a").unwrap().flops_nominal(1), 2 * 50 * 2 * 400 * 200 + 50 * 200);
        assert_eq!(named("lstm_a").unwrap().flops_last(2), 2 * (2 * 50 * 2 * 400 * 200 + 200));
        let guide = named("lstm_guide_128").unwrap();
        let layers = [2 * 4 * 128 * (10 + 128), 2 * 4 * 128 * (256 + 128)];
        let last = 200 * layers[0] + 101 * layers[1] + 2 * 256 * 10;
        assert_eq!(guide.flops_last(1), last);
        let small = named("transformer_small").unwrap();
        let whole = 64 * (8 * 128 * 128 + 4 * 128 * 256 + 4 * 64 * 128);
        assert_eq!(small.flops_nominal(1), 2 * 64 * 16 * 128 + 3 * whole + 64 * 2 * 128 * 10);
        assert!(small.flops_last(1) < small.flops_nominal(1));
    }

    #[test]
    fn plans_and_weights_agree() {
        for workload in all() {
            for positions in [Positions::Last, Positions::All] {
                let plan = workload.plan(positions).unwrap();
                assert!(plan.parameters() > 100_000, "{}", workload.name);
                if plan.parameters() < 1_000_000 {
                    let weights = workload.weights(&plan, 1);
                    neural_forecast_runtime::device::check_weights(&plan, &weights).unwrap();
                }
            }
        }
    }
}
