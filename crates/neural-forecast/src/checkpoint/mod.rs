//! Checkpoints: folders and files of trained models, read into [`Checkpoint`].
//!
//! Reads what neuralforecast saves (format 2) and the project's own format. Does not run anything,
//! and trusts nothing in a file: every number is checked before it is used.

use std::collections::BTreeMap;

use crate::calendar::Frequency;
use crate::models::Network;

/// Which format a checkpoint was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder written by neuralforecast 3.2 or later (format 2).
    NeuralForecast,
    /// The project's own file.
    Native,
}

/// A per-series scaler of the training framework, by its framework name, with the statistics it was
/// fitted with. The framework fits scalers anew on whatever frame it forecasts; the statistics
/// matter only for forecasts of the very series that are stored in the checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalScaler {
    /// `standard`, `robust`, `robust-iqr`, `minmax` or `boxcox`.
    pub kind: String,
    /// For each scaled column two numbers a series, in the order of [`Checkpoint::ids`].
    pub statistics: BTreeMap<String, Vec<[f32; 2]>>,
}

/// Errors of cross-validation that conformal intervals are made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConformalScores {
    /// `conformal_distribution` or `conformal_error`.
    pub method: String,
    /// Number of validation windows.
    pub windows: usize,
    /// Steps between windows.
    pub step: usize,
    /// The series of each row; rows are grouped by series, then by window, then by step.
    pub ids: Vec<String>,
    /// For each output column (alias and suffix) its absolute errors, row by row.
    pub errors: BTreeMap<String, Vec<f64>>,
}

/// One or several networks that were saved together, with what their forecasts need.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Networks, in the order of their files' names.
    pub models: Vec<Network>,
    /// Distance between stamps; `None` where the format does not say.
    pub frequency: Option<Frequency>,
    /// Name of the series column.
    pub id_column: String,
    /// Name of the stamp column.
    pub time_column: String,
    /// Name of the target column.
    pub target_column: String,
    /// The horizon of the checkpoint, the models' own.
    pub horizon: usize,
    /// Scaler of target and temporal columns, fitted to each series before windows are cut.
    pub local_scaler: Option<LocalScaler>,
    /// Scaler of static columns, fitted over all series.
    pub static_scaler: Option<LocalScaler>,
    /// Conformal intervals.
    pub conformal: Option<ConformalScores>,
    /// Series of the training data, where the checkpoint names them.
    pub ids: Vec<String>,
    /// Which format it was read from.
    pub format: Format,
    /// What a native file says about its training; empty otherwise.
    pub training: BTreeMap<String, String>,
    /// FNV-1a over the weights' names, shapes and bytes, 64 bits as 16 hex digits. Tells models
    /// apart; not cryptographic.
    pub hash: String,
}
