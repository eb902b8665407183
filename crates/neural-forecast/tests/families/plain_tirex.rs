//! TiRex without a plan: the framework's mathematics row by row, with and without its rounding.
//!
//! The oracle that tells the plan's difference from the framework apart from a mistake.

use neural_forecast::models::tirex;
use neural_forecast_runtime::reference::Tensor;

use super::fixture::Fixture;

/// TiRex as the framework computes it, written down plainly: `round` is applied where it rounds to
/// bfloat16, which is to the gates' inputs, the recurrent kernel, its product and the states.
pub(crate) struct PlainTirex<'a> {
    pub(crate) fixture: &'a Fixture,
    pub(crate) config: &'a tirex::Config,
    pub(crate) round: fn(f64) -> f64,
}

impl PlainTirex<'_> {
    /// Quantiles `[n·P, Q]` of the `patches` patches after one context.
    pub(crate) fn forecast(&self, context: &[f64], patches: usize) -> Vec<Vec<f64>> {
        let (p, levels) = (self.config.input_patch_size, self.config.quantiles.len());
        let seen: Vec<f64> = context.iter().copied().filter(|x| !x.is_nan()).collect();
        let count = seen.len() as f64;
        let mean = seen.iter().sum::<f64>() / count;
        let square = seen.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
        let scale = if square == 0.0 { mean.abs() + 1e-5 } else { square.sqrt() };
        let mut tokens: Vec<Vec<f64>> = context
            .chunks(p)
            .map(|patch| {
                let known = patch.iter().map(|x| if x.is_nan() { 0.0 } else { (x - mean) / scale });
                known.chain(patch.iter().map(|x| f64::from(!x.is_nan()))).collect()
            })
            .collect();
        tokens.extend(std::iter::repeat_n(vec![0.0; 2 * p], patches - 1));
        let embed = |x: &Vec<f64>| self.residual_block("input_patch_embedding", x);
        let mut tokens: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        for i in 0..self.config.block_kwargs.num_blocks {
            self.block(&format!("blocks.{i}"), &mut tokens);
        }
        let last = &tokens[tokens.len() - patches..];
        let heads = last.iter().map(|x| {
            let x = rms(x, &self.weight("out_norm.weight").data);
            self.residual_block("output_patch_embedding", &x)
        });
        let rows = heads.flat_map(|y| {
            let step = move |t: usize| (0..levels).map(|q| y[q * p + t] * scale + mean).collect();
            (0..p).map(step).collect::<Vec<Vec<f64>>>()
        });
        rows.collect()
    }

    fn block(&self, name: &str, tokens: &mut [Vec<f64>]) {
        let round = self.round;
        let weight = |part: &str| self.weight(&format!("{name}.{part}"));
        let heads = self.config.block_kwargs.num_heads;
        let (d, head) = (tokens[0].len(), tokens[0].len() / heads);
        let gates = ["fgate", "igate", "zgate", "ogate"]
            .map(|gate| weight(&format!("slstm_layer.{gate}.weight")));
        let kernel = weight("slstm_layer.slstm_cell._recurrent_kernel_");
        let bias = weight("slstm_layer.slstm_cell._bias_").data;
        let mut state = [vec![0.0; d], vec![0.0; d], vec![0.0; d], vec![0.0; d]];
        for x in tokens {
            let inner = rms(x, &weight("norm_slstm.weight").data);
            let raw = |gate: usize, unit: usize| {
                let (h, o) = (unit / head, unit % head);
                let product = |k: usize| gates[gate].at(&[h, o, k]) * inner[h * head + k];
                let input = round((0..head).map(product).sum());
                let back =
                    |k: usize| round(kernel.at(&[h, k, gate * head + o])) * state[0][h * head + k];
                let recurrent = round((0..head).map(back).sum());
                input + recurrent + bias[(h * 4 + gate) * head + o]
            };
            let sums: Vec<[f64; 4]> =
                (0..d).map(|unit| [0, 1, 2, 3].map(|gate| raw(gate, unit))).collect();
            for (unit, [i, f, z, o]) in sums.into_iter().enumerate() {
                let decayed = state[3][unit] - (-f.min(15.0)).exp().ln_1p();
                let m = if state[2][unit] == 0.0 { i } else { i.max(decayed) };
                let (ig, fg) = ((i - m).exp().min(1.0), (decayed - m).exp().min(1.0));
                let c = fg * state[1][unit] + ig * z.tanh();
                let n = fg * state[2][unit] + ig;
                let hidden = c / n / (1.0 + (-o).exp());
                for (state, new) in state.iter_mut().zip([hidden, c, n, m]) {
                    state[unit] = round(new);
                }
            }
            let scale = weight("slstm_layer.group_norm.weight").data;
            for (h, group) in state[0].chunks(head).enumerate() {
                let mean = group.iter().sum::<f64>() / head as f64;
                let var = group.iter().map(|y| (y - mean) * (y - mean)).sum::<f64>() / head as f64;
                for (k, y) in group.iter().enumerate() {
                    let unit = h * head + k;
                    x[unit] += (y - mean) / (var + 1e-5).sqrt() * (1.0 + scale[unit]);
                }
            }
            let inner = rms(x, &weight("norm_ffn.weight").data);
            let gate = affine(&weight("ffn.proj_up_gate.weight"), &inner);
            let up = affine(&weight("ffn.proj_up.weight"), &inner);
            let silu = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
            let down = affine(&weight("ffn.proj_down.weight"), &silu.collect::<Vec<f64>>());
            x.iter_mut().zip(down).for_each(|(x, y)| *x += y);
        }
    }

    fn residual_block(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let layer = |part: &str, x: &[f64]| {
            let y = affine(&self.weight(&format!("{name}.{part}_layer.weight")), x);
            let bias = self.weight(&format!("{name}.{part}_layer.bias")).data;
            y.iter().zip(bias).map(|(y, b)| y + b).collect::<Vec<f64>>()
        };
        let hidden: Vec<f64> = layer("hidden", x).iter().map(|x| x.max(0.0)).collect();
        layer("output", &hidden).iter().zip(layer("residual", x)).map(|(a, b)| a + b).collect()
    }

    fn weight(&self, name: &str) -> Tensor {
        self.fixture.tensor(&format!("w.{name}"))
    }
}

fn affine(weight: &Tensor, x: &[f64]) -> Vec<f64> {
    weight.rows().map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn rms(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + 1e-6).sqrt() * w).collect()
}

pub(crate) fn exact(x: f64) -> f64 {
    x
}

/// To the nearest bfloat16, ties to even, as finite f32 values round.
pub(crate) fn bfloat16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    let rounded = bits + 0x7fff + ((bits >> 16) & 1);
    f64::from(f32::from_bits(rounded & 0xffff_0000))
}
