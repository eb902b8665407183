//! What is packed when a plan is loaded: each weight once, whatever the number of steps that read
//! it.
//!
//! Does not run anything; what is packed here is run by the modules beside it.

use super::{DEPTH_MAX, Kernel, Loaded, activation};
use crate::attention;
use crate::counters::Precision;
use crate::f16;
use crate::gemm::{self, Packed};
use crate::isa::Isa;
use crate::norm::{self, Norm};
use crate::rnn::{self, Rnn};
use neural_forecast_runtime::ops::{self, AttentionBias, LinearAxis, NormKind, Op};
use neural_forecast_runtime::plan::{Plan, Step, WeightId};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};
use std::collections::HashMap;
use std::sync::Arc;

/// Packs weights, each once whatever the number of steps that read it.
pub(crate) struct Packer<'a> {
    isa: Isa,
    precision: Precision,
    read: &'a dyn Fn(WeightId) -> Result<Vec<f32>, DeviceError>,
    plan: &'a Plan,
    plain: HashMap<WeightId, Arc<Vec<f32>>>,
    packed: HashMap<Vec<Option<WeightId>>, Vec<Arc<Packed>>>,
    recurrent: HashMap<String, Arc<Rnn>>,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(
        isa: Isa,
        precision: Precision,
        read: &'a dyn Fn(WeightId) -> Result<Vec<f32>, DeviceError>,
        plan: &'a Plan,
    ) -> Self {
        let (plain, packed, recurrent) = Default::default();
        Packer { isa, precision, read, plan, plain, packed, recurrent }
    }

    /// Bytes of everything packed so far.
    pub(crate) fn bytes(&self) -> usize {
        let plain: usize = self.plain.values().map(|w| w.len() * 4).sum();
        let packed: usize = self.packed.values().flatten().map(|p| p.bytes()).sum();
        plain + packed + self.recurrent.values().map(|rnn| rnn.bytes()).sum::<usize>()
    }

    pub(crate) fn load(&mut self, step: &Step) -> Result<Loaded, DeviceError> {
        let kernel = match &step.op {
            Op::Linear(op) => {
                let packed = self.linear(op)?;
                let norm = op.prologue.as_ref().map(|norm| self.norm(norm)).transpose()?;
                let asked = activation(op.activation);
                let activation = packed.iter().fold(asked, |f, packed| f.after(packed));
                Kernel::Linear { packed, norm, activation }
            }
            Op::Norm(op) => Kernel::Norm(self.norm(op)?),
            Op::Attention(op) => Kernel::Attention(self.attention(op)?),
            Op::RnnStack(op) => Kernel::Rnn(self.rnn(op)?),
            Op::EncoderStack(_) | Op::DecoderStack(_) => {
                let message = format!("op `{}` ({}) was not lowered", step.op.name(), step.label);
                return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
            }
            op => {
                let weights = op.weights().into_iter().map(|id| self.plain(id));
                Kernel::Plain(weights.collect::<Result<_, _>>()?)
            }
        };
        let first = step.op.weights().first().copied();
        let weight_shape = first.map(|id| self.shape(id).to_vec()).unwrap_or_default();
        let states = step.op.states();
        Ok(Loaded { step: step.clone(), kernel, weight_shape, states, halves: Vec::new() })
    }

    fn shape(&self, id: WeightId) -> &'a [usize] {
        &self.plan.weight(id).shape
    }

    /// A weight that products multiply, if it fits the precision.
    fn matrix(&self, id: WeightId) -> Result<Vec<f32>, DeviceError> {
        let weight = (self.read)(id)?;
        let large = |w: &&f32| w.is_finite() && w.abs() >= f16::OVERFLOW;
        if self.precision == Precision::F16
            && let Some(large) = weight.iter().find(large)
        {
            let name = &self.plan.weight(id).name;
            let message =
                format!("weight `{name}` holds {large:e}, f16 holds numbers to 65504: use bf16");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        Ok(weight)
    }

    fn plain(&mut self, id: WeightId) -> Result<Arc<Vec<f32>>, DeviceError> {
        if let Some(weight) = self.plain.get(&id) {
            return Ok(Arc::clone(weight));
        }
        let weight = Arc::new((self.read)(id)?);
        self.plain.insert(id, Arc::clone(&weight));
        Ok(weight)
    }

    fn linear(&mut self, op: &ops::Linear) -> Result<Vec<Arc<Packed>>, DeviceError> {
        let gate = op.gate.as_ref();
        let key = vec![Some(op.weight), op.bias, gate.map(|g| g.weight), gate.and_then(|g| g.bias)];
        if let Some(packed) = self.packed.get(&key) {
            return Ok(packed.clone());
        }
        let (heads, n, k) = match (op.axis, self.shape(op.weight)) {
            (LinearAxis::Heads(heads), &[_, n, k]) => (heads, n, k),
            (_, &[n, k]) => (1, n, k),
            _ => (1, 0, 0),
        };
        let mut weights = vec![(self.matrix(op.weight)?, self.optional(op.bias)?)];
        if let Some(gate) = gate {
            weights.push((self.matrix(gate.weight)?, self.optional(gate.bias)?));
        }
        let biased = weights.iter().any(|(_, bias)| bias.is_some());
        let head = |h: usize| {
            let mut matrix = Vec::new();
            let mut bias = Vec::new();
            for (w, b) in &weights {
                matrix.extend_from_slice(&w[h * n * k..(h + 1) * n * k]);
                match b {
                    Some(b) => bias.extend_from_slice(&b[h * n..(h + 1) * n]),
                    None => bias.extend(std::iter::repeat_n(0.0, n)),
                }
            }
            let bias = biased.then_some(bias.as_slice());
            let groups = weights.len();
            let shape = (groups * n, k);
            let precision = gemm::kept(self.precision, shape);
            Arc::new(Packed::new(self.isa, precision, &matrix, shape, groups, bias))
        };
        let packed: Vec<_> = (0..heads).map(head).collect();
        self.packed.insert(key, packed.clone());
        Ok(packed)
    }

    fn optional(&self, id: Option<WeightId>) -> Result<Option<Vec<f32>>, DeviceError> {
        id.map(self.read).transpose()
    }

    fn norm(&self, op: &ops::Norm) -> Result<Norm, DeviceError> {
        let weight = self.optional(op.weight)?;
        let weight = match (weight, op.weight_offset) {
            (Some(w), offset) => Some(w.iter().map(|w| w + offset).collect::<Vec<f32>>()),
            (None, _) => None,
        };
        let bias = self.optional(op.bias)?;
        let kind = match op.kind {
            NormKind::Layer => norm::Kind::Layer { groups: 1 },
            NormKind::Group(groups) => norm::Kind::Layer { groups },
            NormKind::Rms => norm::Kind::Rms,
            NormKind::Batch { mean, variance } => {
                let (mean, variance) = ((self.read)(mean)?, (self.read)(variance)?);
                let (weight, bias) = (weight.as_deref(), bias.as_deref());
                return Ok(Norm::batch(&mean, &variance, op.eps, weight, bias));
            }
        };
        Ok(Norm { kind, eps: op.eps, scale: weight, shift: bias })
    }

    fn attention(&self, op: &ops::Attention) -> Result<attention::Attention, DeviceError> {
        let head = op.head();
        if op.queries.len() > DEPTH_MAX {
            let depth = op.queries.len();
            let message = format!("attention adds scores of {depth} layers, at most {DEPTH_MAX}");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let bias = match op.bias {
            None => None,
            Some(AttentionBias::Weight(id)) => {
                let heads = self.shape(id).first().copied().unwrap_or(1);
                Some(attention::Bias::Weight { data: (self.read)(id)?, heads })
            }
            Some(AttentionBias::Relative { table, max_distance, bidirectional }) => {
                let buckets = self.shape(table).first().copied().unwrap_or(0);
                let data = (self.read)(table)?;
                // Beyond the maximal distance (and the exact half) the bucket is always the last.
                let origin = max_distance.max(buckets) + 1;
                let distances = 2 * origin + 1;
                let mut by_distance = vec![0.0; op.heads * distances];
                for (i, value) in by_distance.iter_mut().enumerate() {
                    let (h, d) = (i / distances, i % distances);
                    let relative = d as isize - origin as isize;
                    let bucket =
                        ops::relative_bucket(relative, buckets, max_distance, bidirectional);
                    *value = data[bucket * op.heads + h];
                }
                Some(attention::Bias::Relative { by_distance, distances, origin })
            }
        };
        let qk_norm = match &op.qk_norm {
            None => None,
            Some(n) => Some(attention::QkNorm {
                query: (self.read)(n.query)?,
                key: (self.read)(n.key)?,
                eps: n.eps,
            }),
        };
        let query_scale = self.optional(op.per_dim_scale)?.map(|scale| {
            let factor = std::f64::consts::LOG2_E / (head as f64).sqrt();
            let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
            scale.iter().map(|&w| (factor * softplus(f64::from(w))) as f32).collect()
        });
        Ok(attention::Attention {
            isa: self.isa,
            precision: self.precision,
            heads: op.heads,
            head,
            head_v: if op.mean_heads { op.values.width } else { op.values.width / op.heads },
            scales: op.scales.clone(),
            causal: op.causal,
            mean_heads: op.mean_heads,
            bias,
            rope: op.rope.map(|r| attention::Rope { theta: r.theta, skip_masked: r.skip_masked }),
            qk_norm,
            query_scale,
        })
    }

    fn rnn(&mut self, op: &ops::RnnStack) -> Result<Arc<Rnn>, DeviceError> {
        let key = format!("{:?} {:?} {} {:?}", op.cell, op.layers, op.hidden, op.projection);
        if let Some(rnn) = self.recurrent.get(&key) {
            return Ok(Arc::clone(rnn));
        }
        let cell = match op.cell {
            ops::Cell::Lstm => rnn::Cell::Lstm,
            ops::Cell::Gru => rnn::Cell::Gru,
            ops::Cell::RnnTanh => rnn::Cell::Tanh,
            ops::Cell::RnnRelu => rnn::Cell::Relu,
            ops::Cell::Slstm { heads } => rnn::Cell::Slstm { heads },
        };
        let mut layers = Vec::new();
        for layer in &op.layers {
            let own = layer.iter().map(|w| {
                Ok(OwnWeights {
                    w_ih: self.matrix(w.w_ih)?,
                    w_hh: self.matrix(w.w_hh)?,
                    b_ih: self.optional(w.b_ih)?,
                    b_hh: self.optional(w.b_hh)?,
                    w_hr: w.w_hr.map(|id| self.matrix(id)).transpose()?,
                })
            });
            layers.push(own.collect::<Result<Vec<_>, DeviceError>>()?);
        }
        let views: Vec<Vec<rnn::Weights<'_>>> =
            layers.iter().map(|layer| layer.iter().map(OwnWeights::view).collect()).collect();
        let first = op.layers.first().and_then(|layer| layer.first());
        let inputs = match (cell, first) {
            (rnn::Cell::Slstm { .. }, _) | (_, None) => op.hidden,
            (_, Some(w)) => self.shape(w.w_ih).last().copied().unwrap_or(0),
        };
        let shape = (inputs, op.hidden, op.projection);
        let rnn = Arc::new(Rnn::new(self.isa, self.precision, cell, shape, &views));
        self.recurrent.insert(key, Arc::clone(&rnn));
        Ok(rnn)
    }
}

/// Weights of one direction while they are packed.
struct OwnWeights {
    w_ih: Vec<f32>,
    w_hh: Vec<f32>,
    b_ih: Option<Vec<f32>>,
    b_hh: Option<Vec<f32>>,
    w_hr: Option<Vec<f32>>,
}

impl OwnWeights {
    fn view(&self) -> rnn::Weights<'_> {
        rnn::Weights {
            w_ih: &self.w_ih,
            w_hh: &self.w_hh,
            b_ih: self.b_ih.as_deref(),
            b_hh: self.b_hh.as_deref(),
            w_hr: self.w_hr.as_deref(),
        }
    }
}
