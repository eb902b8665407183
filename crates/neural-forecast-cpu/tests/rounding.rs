//! What bf16 and f16 cost an encoder is the rounding of what products multiply, and nothing else: a
//! small PatchTST (post-norm, batch norms, GELU, all patches into one head) on every tier against
//! the same network in `f64` whose products round their operands where the tier does. Tiers that
//! sum in f16 round inputs and sums, too, and may be off by some times of that.
//!
//! Where only weights are rounded, the engine is that network to the digits of `f32`. Where inputs
//! are rounded, too, it cannot be over several layers: one number that falls to the other side of a
//! tie is off by a whole bf16 step, and so are soon many behind it. There the errors of engine and
//! emulation against `f64` must be alike in size; that each product and attention alone multiplies
//! exactly the rounded numbers is tested where they are.

use neural_forecast_cpu::counters::Precision as Kept;
use neural_forecast_cpu::dot::{Dot, bf16_bits};
use neural_forecast_cpu::f16::{f16_bits, f16_value};
use neural_forecast_cpu::{CpuDevice, CpuOptions, Isa};
use neural_forecast_runtime::device::{
    Data, Device, KernelClass, LoadOptions, Precision, Request, Run, weight_f32,
};
use neural_forecast_runtime::ops::{
    Activation, AttentionLayer, FeedForward, Linear, NormKind, NormPlacement, NormWeights, Op,
    Product, Reshape, Stack, Sublayer, SublayerKind,
};
use neural_forecast_runtime::plan::{Bucket, Dim, WeightId};
use neural_forecast_runtime::testing::{Case, CaseBuilder};

const BATCH: usize = 3;
const PATCHES: usize = 13;
const LENGTH: usize = 16;
const D: usize = 64;
const HEADS: usize = 4;
const HEAD: usize = D / HEADS;
const FF: usize = 96;
const LAYERS: usize = 3;
const HORIZON: usize = 24;
const EPS: f32 = 1e-5;

mod libm {
    unsafe extern "C" {
        pub(super) safe fn erf(x: f64) -> f64;
    }
}

/// A network by its weights' names in the plan.
struct Network {
    case: Case,
    embedding: Product,
    layers: Vec<Layer>,
    head: Product,
}

struct Layer {
    attention: AttentionLayer,
    norms: [BatchNorm; 2],
    forward: FeedForward,
}

/// Mean, variance, weight, bias.
type BatchNorm = [WeightId; 4];

fn product(b: &mut CaseBuilder, n: usize, k: usize) -> Product {
    Product { weight: b.weight(&[n, k]), bias: Some(b.bias(n)) }
}

fn network(seed: usize) -> Network {
    let bucket = Bucket { batch: BATCH, length: PATCHES };
    let mut b = CaseBuilder::new(format!("rounding {seed}"), bucket);
    let x = b.input(&[Dim::BATCH, PATCHES.into(), LENGTH.into()]);
    let embedding = product(&mut b, D, LENGTH);
    let x = b.step(Linear::new(x, embedding.weight).bias(embedding.bias));
    let (mut layers, mut stack) = (Vec::new(), Vec::new());
    for _ in 0..LAYERS {
        let attention = AttentionLayer {
            query: product(&mut b, D, D),
            key: product(&mut b, D, D),
            value: product(&mut b, D, D),
            output: product(&mut b, D, D),
            heads: HEADS,
            head: HEAD,
            scale: 1.0 / (HEAD as f32).sqrt(),
            causal: false,
            bias: None,
            rope: None,
            qk_norm: None,
            per_dim_scale: None,
        };
        let forward = FeedForward {
            up: product(&mut b, FF, D),
            gate: None,
            down: product(&mut b, D, FF),
            activation: Activation::Gelu,
        };
        let norms: [BatchNorm; 2] =
            [(); 2].map(|()| [b.bias(D), b.positive(D), b.positive(D), b.bias(D)]);
        let placed = norms.map(|[mean, variance, weight, bias]| {
            NormPlacement::Post(NormWeights {
                kind: NormKind::Batch { mean, variance },
                weight: Some(weight),
                weight_offset: 0.0,
                bias: Some(bias),
                eps: EPS,
            })
        });
        stack.push(vec![
            Sublayer { kind: SublayerKind::SelfAttention(attention.clone()), norm: placed[0] },
            Sublayer { kind: SublayerKind::FeedForward(forward), norm: placed[1] },
        ]);
        layers.push(Layer { attention, norms, forward });
    }
    let h = b.step(Op::EncoderStack(Stack::new(x, stack)));
    let flat = b.step(Reshape { x: h, shape: vec![Dim::BATCH, (PATCHES * D).into()] });
    let head = product(&mut b, HORIZON, PATCHES * D);
    let y = b.step(Linear::new(flat, head.weight).bias(head.bias));
    Network { case: b.finish(&[y]), embedding, layers, head }
}

/// What is rounded, to bf16 unless it says otherwise, before it is multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rounds {
    Nothing,
    /// To f16, on tiers that widen: weights.
    WeightsF16,
    /// Tiers that widen bf16 weights.
    Weights,
    /// Tiers that multiply bf16: queries, keys, values and their weights in attention, too.
    Both,
}

fn rounded(x: f64) -> f64 {
    f64::from(f32::from_bits(bf16_bits(x as f32) << 16))
}

impl Rounds {
    fn weight(self, x: f64) -> f64 {
        match self {
            Rounds::Nothing => x,
            Rounds::WeightsF16 => f64::from(f16_value(f16_bits(x as f32))),
            Rounds::Weights | Rounds::Both => rounded(x),
        }
    }

    fn input(self, x: f64) -> f64 {
        if self == Rounds::Both { rounded(x) } else { x }
    }
}

impl Network {
    fn weights(&self, id: WeightId) -> Vec<f64> {
        let weights = weight_f32(&self.case.plan, id, &self.case.weights).expect("the weight");
        weights.into_iter().map(f64::from).collect()
    }

    /// Rows of `k` times the weights, row by row.
    fn multiply(&self, rounds: Rounds, product: &Product, x: &[f64], k: usize) -> Vec<f64> {
        let (w, b) = (self.weights(product.weight), self.weights(product.bias.expect("a bias")));
        let w: Vec<f64> = w.into_iter().map(|w| rounds.weight(w)).collect();
        let mut y = Vec::new();
        for row in x.chunks(k) {
            let row: Vec<f64> = row.iter().map(|&x| rounds.input(x)).collect();
            for (w, b) in w.chunks(k).zip(&b) {
                y.push(row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + b);
            }
        }
        y
    }

    fn normalize(&self, norm: &BatchNorm, x: &mut [f64]) {
        let [mean, variance, weight, bias] = norm.map(|id| self.weights(id));
        for row in x.chunks_mut(D) {
            for (d, x) in row.iter_mut().enumerate() {
                let spread = (variance[d] + f64::from(EPS)).sqrt();
                *x = (*x - mean[d]) / spread * weight[d] + bias[d];
            }
        }
    }

    fn attend(&self, rounds: Rounds, layer: &AttentionLayer, x: &[f64]) -> Vec<f64> {
        let each = [&layer.query, &layer.key, &layer.value];
        let [q, k, v] = each.map(|product| self.multiply(rounds, product, x, D));
        let mut y = vec![0.0; x.len()];
        for b in 0..BATCH {
            for h in 0..HEADS {
                let at = |t: usize, d: usize| (b * PATCHES + t) * D + h * HEAD + d;
                for i in 0..PATCHES {
                    let score = |j: usize| -> f64 {
                        let scale = f64::from(layer.scale);
                        let terms = (0..HEAD)
                            .map(|d| rounds.input(q[at(i, d)] * scale) * rounds.input(k[at(j, d)]));
                        terms.sum()
                    };
                    let scores: Vec<f64> = (0..PATCHES).map(score).collect();
                    let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..HEAD {
                        let terms = weights.iter().enumerate();
                        let sum: f64 =
                            terms.map(|(j, &w)| rounds.input(w) * rounds.input(v[at(j, d)])).sum();
                        y[at(i, d)] = sum / total;
                    }
                }
            }
        }
        self.multiply(rounds, &layer.output, &y, D)
    }

    /// The forecast in `f64`.
    fn forecast(&self, rounds: Rounds) -> Vec<f64> {
        let x = self.case.inputs[0].1.to_f32();
        let x: Vec<f64> = x.into_iter().map(f64::from).collect();
        let mut x = self.multiply(rounds, &self.embedding, &x, LENGTH);
        for layer in &self.layers {
            let y = self.attend(rounds, &layer.attention, &x);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            self.normalize(&layer.norms[0], &mut x);
            let mut up = self.multiply(rounds, &layer.forward.up, &x, D);
            for x in &mut up {
                *x *= 0.5 * (1.0 + libm::erf(*x * std::f64::consts::FRAC_1_SQRT_2));
            }
            let y = self.multiply(rounds, &layer.forward.down, &up, FF);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            self.normalize(&layer.norms[1], &mut x);
        }
        self.multiply(rounds, &self.head, &x, PATCHES * D)
    }

    fn run(&self, isa: Isa, precision: Precision) -> Vec<f64> {
        let options = CpuOptions { isa: Some(isa.name().into()), ..CpuOptions::default() };
        let device = CpuDevice::new(options).expect("this machine has the instruction set");
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let loaded = device.load(&self.case.plan, &self.case.weights, &options);
        let request = Request {
            entry: self.case.entry,
            bucket: self.case.bucket,
            class: KernelClass::Throughput,
        };
        let mut program = loaded.expect("it loads").compile(request).expect("it compiles");
        program.write(0, Data::F32(&self.case.inputs[0].1.to_f32()));
        program.submit(&Run { rows: BATCH, ..Run::default() }).expect("it runs");
        program.wait().expect("it ends");
        let mut y = vec![0.0; BATCH * HORIZON];
        program.read(0, &mut y).expect("a finished run can be read");
        y.into_iter().map(f64::from).collect()
    }
}

/// Largest difference, and its root mean square.
fn apart(a: &[f64], b: &[f64]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
    assert!(differences.iter().all(|d| d.is_finite()));
    let square = differences.iter().map(|d| d * d).sum::<f64>() / differences.len() as f64;
    (differences.iter().fold(0.0, |most, &d| d.max(most)), square.sqrt())
}

#[test]
fn what_f16_costs_an_encoder_is_rounding() {
    let networks: Vec<Network> = (0..8).map(network).collect();
    let of = |rounds| networks.iter().flat_map(|n| n.forecast(rounds)).collect::<Vec<f64>>();
    let (exact, emulated) = (of(Rounds::Nothing), of(Rounds::WeightsF16));
    let (_, cost) = apart(&emulated, &exact);
    assert!(cost > 1e-5, "rounding changes nothing: {cost:e}");
    for isa in Isa::available() {
        let found = networks.iter().flat_map(|network| network.run(isa, Precision::F16));
        let found: Vec<f64> = found.collect();
        let ((_, off), (left, _)) = (apart(&found, &exact), apart(&found, &emulated));
        println!("{}: rounding costs {cost:.2e}, the engine {off:.2e}", isa.name());
        let tier = isa.name();
        if Dot::of(isa, Kept::F16).is_some() {
            assert!(off <= 6.0 * cost, "{tier}: {off:e} where rounding weights costs {cost:e}");
        } else {
            assert!(left <= 1e-5, "{tier}: {left:e} from what rounding makes");
        }
    }
}

#[test]
fn what_bf16_costs_an_encoder_is_rounding() {
    let networks: Vec<Network> = (0..8).map(network).collect();
    let exact: Vec<f64> = networks.iter().flat_map(|n| n.forecast(Rounds::Nothing)).collect();
    for isa in Isa::available() {
        let run = |precision| -> Vec<f64> {
            networks.iter().flat_map(|network| network.run(isa, precision)).collect()
        };
        let tier = isa.name();
        let (plain, _) = apart(&run(Precision::F32), &exact);
        assert!(plain <= 1e-5, "{tier}: f32 is off by {plain:e}");
        let both = Dot::of(isa, Kept::Bf16).is_some();
        let rounds = if both { Rounds::Both } else { Rounds::Weights };
        let emulated: Vec<f64> = networks.iter().flat_map(|n| n.forecast(rounds)).collect();
        let (most, cost) = apart(&emulated, &exact);
        let bf16 = run(Precision::Bf16);
        let ((_, found), (left, _)) = (apart(&bf16, &exact), apart(&bf16, &emulated));
        println!("{tier}: rounding costs {cost:.2e} (at most {most:.2e}), the engine {found:.2e}");
        assert!((0.8..1.25).contains(&(found / cost)), "{tier}: {found:e} beside {cost:e}");
        assert!(both || left <= 1e-5, "{tier}: {left:e} from what rounding makes");
    }
}
