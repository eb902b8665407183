//! From a neuralforecast model's hyper-parameters to the definition of its network.
//!
//! Reads the constructor arguments that change what is computed. Defaults are those of the
//! framework's constructors, for arguments that a file does not have.

use serde_json::Value;

use super::tagged::{self, Fields, wrong};
use crate::error::{Error, ErrorKind, Result};
use crate::models::nhits::{Block, Interpolation, NhitsConfig, Pooling};
use crate::models::patchtst::{InstanceNorm, PatchTstConfig};
use crate::models::recurrent::{CellKind, Decoder, RecurrentConfig};
use crate::models::tft::{Recurrence, TftConfig};
use crate::models::{Definition, Exogenous, Nonlinearity, WindowConfig, WindowScaler};

/// Classes that can be loaded.
pub(crate) const CLASSES: &str = "LSTM, GRU, RNN, PatchTST, NHITS, TFT";

/// Most blocks of NHITS, so that a list of counts in a file cannot ask for endless ones.
const BLOCKS_MAX: usize = 1024;

/// What hyper-parameters say, apart from the loss.
pub(crate) struct Hyper {
    pub definition: Definition,
    pub exogenous: Exogenous,
    pub start_padding: bool,
}

/// Reads the hyper-parameters of a model of `class` whose loss has `outputs` outputs.
///
/// # Errors
/// Unsupported: another class, categorical columns, an activation without an op. Checkpoint: an
/// argument of another kind than the class takes.
pub(crate) fn read(class: &str, fields: Fields<'_>, outputs: usize) -> Result<Hyper> {
    let exogenous = Exogenous {
        historic: fields.names("hist_exog_list")?,
        future: fields.names("futr_exog_list")?,
        statics: fields.names("stat_exog_list")?,
    };
    let categorical = fields.names("cat_exog_list")?;
    if let Some(column) = categorical.first() {
        return Err(unsupported(format!(
            "categorical column `{column}` (`cat_exog_list`): embeddings of columns cannot be \
             loaded; train with numeric columns instead"
        )));
    }
    let recurrent = fields.flag("recurrent", false)?;
    let window = window(fields, &exogenous, outputs, recurrent)?;
    let definition = match class {
        "LSTM" => Definition::Recurrent(rnn(fields, window, CellKind::Lstm, recurrent)?),
        "GRU" => Definition::Recurrent(rnn(fields, window, CellKind::Gru, recurrent)?),
        "RNN" => Definition::Recurrent(rnn(fields, window, CellKind::Rnn, recurrent)?),
        "PatchTST" => Definition::PatchTst(patchtst(fields, window)?),
        "NHITS" => Definition::Nhits(nhits(fields, window)?),
        "TFT" => Definition::Tft(tft(fields, window)?),
        _ => {
            return Err(unsupported(format!(
                "architecture `{class}` cannot be loaded, expected one of {CLASSES}"
            )));
        }
    };
    let start_padding = fields.flag("start_padding_enabled", false)?;
    Ok(Hyper { definition, exogenous, start_padding })
}

fn window(
    fields: Fields<'_>,
    exogenous: &Exogenous,
    outputs: usize,
    recurrent: bool,
) -> Result<WindowConfig> {
    let horizon = fields.count("h", None)?;
    // The framework's rules: no input size is three horizons; a recurrent model sees one step
    // more, and may be given another window for forecasts.
    let default = i64::try_from(horizon.saturating_mul(3)).unwrap_or(i64::MAX);
    let positive = |value: i64, default: i64| if value < 1 { default } else { value };
    let size = positive(fields.integer("input_size", -1)?, default);
    let size = match recurrent {
        false => size,
        true => positive(fields.integer("inference_input_size", size)?, size).saturating_add(1),
    };
    let name = fields.text("scaler_type", "identity")?;
    let scaler = WindowScaler::from_name(name).ok_or_else(|| {
        unsupported(format!(
            "`scaler_type` is `{name}`, expected identity, standard, robust, minmax, minmax1, \
             invariant or revin"
        ))
    })?;
    Ok(WindowConfig {
        horizon,
        context: usize::try_from(size).unwrap_or(usize::MAX),
        scaler,
        exclude_target: fields.flag("exclude_insample_y", false)?,
        historic: exogenous.historic.len(),
        future: exogenous.future.len(),
        statics: exogenous.statics.len(),
        outputs,
    })
}

fn rnn(
    fields: Fields<'_>,
    window: WindowConfig,
    cell: CellKind,
    recurrent: bool,
) -> Result<RecurrentConfig> {
    let hidden = if cell == CellKind::Gru { 200 } else { 128 };
    let decoder = if recurrent {
        Decoder::Recurrent
    } else {
        Decoder::Direct {
            hidden: fields.count("decoder_hidden_size", 128)?,
            layers: fields.count("decoder_layers", 2)?,
            activation: activation(fields, "decoder_activation", "ReLU")?,
        }
    };
    Ok(RecurrentConfig {
        window,
        cell,
        layers: fields.count("encoder_n_layers", 2)?,
        hidden: fields.count("encoder_hidden_size", hidden)?,
        bias: fields.flag("encoder_bias", true)?,
        decoder,
    })
}

fn activation(fields: Fields<'_>, name: &str, default: &str) -> Result<Nonlinearity> {
    let value = fields.get(name).and_then(Value::as_str).unwrap_or(default);
    Nonlinearity::from_name(value).ok_or_else(|| {
        let known: Vec<&str> = Nonlinearity::ALL.iter().map(|(name, _)| *name).collect();
        unsupported(format!("`{name}` is `{value}`, expected one of {}", known.join(", ")))
    })
}

fn patchtst(fields: Fields<'_>, window: WindowConfig) -> Result<PatchTstConfig> {
    let stride = fields.count("stride", 8)?;
    let patch = fields.count("patch_len", 16)?.min(window.context.saturating_add(stride));
    let name = fields.text("activation", "gelu")?;
    let activation = match name.to_lowercase().as_str() {
        "gelu" => Nonlinearity::GELU,
        "relu" => Nonlinearity::ReLU,
        _ => {
            return Err(unsupported(format!("`activation` is `{name}`, expected gelu or relu")));
        }
    };
    let instance_norm = fields.flag("revin", true)?.then(|| {
        Ok::<_, Error>(InstanceNorm {
            affine: fields.flag("revin_affine", false)?,
            subtract_last: fields.flag("revin_subtract_last", true)?,
        })
    });
    Ok(PatchTstConfig {
        window,
        patch,
        stride,
        layers: fields.count("encoder_layers", 3)?,
        heads: fields.count("n_heads", 16)?,
        hidden: fields.count("hidden_size", 128)?,
        feed_forward: fields.count("linear_hidden_size", 256)?,
        activation,
        residual_scores: fields.flag("res_attention", true)?,
        pre_norm: fields.flag("batch_normalization", false)?,
        instance_norm: instance_norm.transpose()?,
    })
}

fn nhits(fields: Fields<'_>, window: WindowConfig) -> Result<NhitsConfig> {
    let stacks = fields.counts("n_blocks", &[1, 1, 1])?;
    let pools = fields.counts("n_pool_kernel_size", &[2, 2, 1])?;
    let downsamples = fields.counts("n_freq_downsample", &[4, 2, 1])?;
    let types = fields.names("stack_types")?;
    if let Some(name) = types.iter().find(|name| *name != "identity") {
        return Err(unsupported(format!("`stack_types` holds `{name}`, expected identity")));
    }
    let count = if fields.get("stack_types").is_some() { types.len() } else { 3 };
    if [stacks.len(), pools.len(), downsamples.len()].iter().any(|&n| n < count) {
        return Err(wrong(format!(
            "{count} stacks, but {} in `n_blocks`, {} in `n_pool_kernel_size`, {} in \
             `n_freq_downsample`",
            stacks.len(),
            pools.len(),
            downsamples.len()
        )));
    }
    let mut blocks = Vec::new();
    for ((&n, &pool), &downsample) in stacks.iter().zip(&pools).zip(&downsamples).take(count) {
        if blocks.len().saturating_add(n) > BLOCKS_MAX {
            return Err(wrong(format!("`n_blocks` asks for more than {BLOCKS_MAX} blocks")));
        }
        blocks.extend(std::iter::repeat_n(Block { pool, downsample }, n));
    }
    let pooling = match fields.text("pooling_mode", "MaxPool1d")? {
        "MaxPool1d" => Pooling::Maximum,
        "AvgPool1d" => Pooling::Mean,
        name => return Err(unsupported(format!("`pooling_mode` is `{name}`"))),
    };
    let interpolation = match fields.text("interpolation_mode", "linear")? {
        "linear" => Interpolation::Linear,
        "nearest" => Interpolation::Nearest,
        name if name.contains("cubic") => Interpolation::Cubic,
        name => return Err(unsupported(format!("`interpolation_mode` is `{name}`"))),
    };
    let dropout = fields.get("dropout_prob_theta").and_then(Value::as_f64).unwrap_or(0.0);
    Ok(NhitsConfig {
        window,
        blocks,
        units: units(fields)?,
        pooling,
        interpolation,
        activation: activation(fields, "activation", "ReLU")?,
        dropout: dropout > 0.0,
    })
}

fn tft(fields: Fields<'_>, window: WindowConfig) -> Result<TftConfig> {
    let targets = fields.count("tgt_size", 1)?;
    if targets != 1 {
        return Err(unsupported(format!("`tgt_size` is {targets}, expected 1")));
    }
    let name = fields.text("rnn_type", "lstm")?;
    let recurrence = match name.to_lowercase().as_str() {
        "lstm" => Recurrence::Lstm,
        "gru" => Recurrence::Gru,
        _ => return Err(unsupported(format!("`rnn_type` is `{name}`, expected lstm or gru"))),
    };
    Ok(TftConfig {
        window,
        hidden: fields.count("hidden_size", 128)?,
        heads: fields.count("n_head", 4)?,
        recurrence,
        layers: fields.count("n_rnn_layers", 1)?,
        one_initial_state: fields.flag("one_rnn_initial_state", false)?,
        activation: match fields.text("grn_activation", "ELU")? {
            // What its own table does not have is ELU to this class.
            "SiLU" | "Identity" => Nonlinearity::ELU,
            _ => activation(fields, "grn_activation", "ELU")?,
        },
    })
}

fn units(fields: Fields<'_>) -> Result<Vec<[usize; 2]>> {
    let Some(value) = fields.get("mlp_units") else { return Ok(vec![[512, 512]; 3]) };
    let pair = |value: &Value| <[usize; 2]>::try_from(tagged::counts(value)?).ok();
    let units: Option<Vec<[usize; 2]>> =
        value.as_array().and_then(|list| list.iter().map(pair).collect());
    units.ok_or_else(|| wrong("`mlp_units`: expected pairs of whole numbers".to_owned()))
}

#[cold]
fn unsupported(message: String) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
