//! One series on its way through a forecast: the window a network sees, and what is fed back.
//!
//! Works in the units of the network's inputs; scaling a whole series is done before and undone
//! after.

use crate::error::{Error, Result};
use crate::models::{Exogenous, Network};

/// The inputs of one series, long enough for all blocks of a roll-out.
#[derive(Debug)]
pub(super) struct Track {
    /// Target: the last `L` steps, 0 where unavailable, then what was fed back.
    y: Vec<f32>,
    /// 1 where the target is available.
    mask: Vec<f32>,
    /// Historic columns `[X][L]`.
    historic: Vec<Vec<f32>>,
    /// Future columns `[F][L + horizon]`.
    future: Vec<Vec<f32>>,
    /// Static columns `[S]`.
    statics: Vec<f32>,
}

/// The inputs of a chunk of series, as one run of a program takes them.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub(super) y: Vec<f32>,
    pub(super) mask: Vec<f32>,
    pub(super) historic: Vec<f32>,
    pub(super) future: Vec<f32>,
    pub(super) statics: Vec<f32>,
}

/// What a track is made from: the whole series, scaled.
pub(super) struct Source<'a> {
    pub(super) id: &'a str,
    pub(super) values: &'a [f32],
    /// Historic columns over the history.
    pub(super) historic: Vec<&'a [f32]>,
    /// Future columns over the history.
    pub(super) known: Vec<&'a [f32]>,
    /// The same columns over the whole horizon.
    pub(super) ahead: Vec<Vec<f32>>,
    pub(super) statics: Vec<f32>,
}

impl Track {
    /// The last `context` steps of a series, padded on the left with unavailable zeros.
    pub(super) fn new(source: Source<'_>, context: usize, names: &Exogenous) -> Result<Track> {
        let tail = tail(source.values, context);
        let padding = context - tail.len();
        let (mut y, mut mask) = (Vec::with_capacity(context), Vec::with_capacity(context));
        y.resize(padding, 0.0);
        y.extend(tail.iter().map(|value| if value.is_nan() { 0.0 } else { *value }));
        mask.resize(padding, 0.0);
        mask.extend(tail.iter().map(|value| if value.is_nan() { 0.0 } else { 1.0 }));
        if !mask.contains(&1.0) {
            let id = source.id;
            return Err(Error::data(format!(
                "series `{id}` has no value in its last {context} steps, expected at least one"
            )));
        }
        let columns = |columns: &[&[f32]], names: &[String]| -> Result<Vec<Vec<f32>>> {
            columns.iter().zip(names).map(|(c, name)| padded(source.id, name, c, context)).collect()
        };
        let historic = columns(&source.historic, &names.historic)?;
        let mut future = columns(&source.known, &names.future)?;
        for (column, ahead) in future.iter_mut().zip(&source.ahead) {
            column.extend_from_slice(ahead);
        }
        Ok(Track { y, mask, historic, future, statics: source.statics })
    }

    /// Appends the inputs of the block that starts `done` steps after the history.
    pub(super) fn fill(&self, network: &Network, horizon: usize, done: usize, into: &mut Inputs) {
        let context = network.context;
        into.y.extend_from_slice(tail(&self.y, context));
        into.mask.extend_from_slice(tail(&self.mask, context));
        for step in 0..context {
            into.historic.extend(self.historic.iter().map(|column| column[step]));
        }
        // A roll-out's last block may reach past the horizon: what is unknown there repeats the
        // last known value, and the steps it influences are cut off.
        for step in done..done + context + horizon {
            let last = |column: &Vec<f32>| column[step.min(column.len().saturating_sub(1))];
            into.future.extend(self.future.iter().map(last));
        }
        into.statics.extend_from_slice(&self.statics);
    }

    /// Takes forecasts as if they had been observed.
    pub(super) fn feed_back(&mut self, forecasts: impl Iterator<Item = f32>) {
        self.y.extend(forecasts);
        self.mask.resize(self.y.len(), 1.0);
    }
}

impl Inputs {
    pub(super) fn clear(&mut self) {
        let Inputs { y, mask, historic, future, statics } = self;
        [y, mask, historic, future, statics].into_iter().for_each(Vec::clear);
    }
}

fn tail(values: &[f32], length: usize) -> &[f32] {
    &values[values.len().saturating_sub(length)..]
}

fn padded(id: &str, name: &str, column: &[f32], context: usize) -> Result<Vec<f32>> {
    let tail = tail(column, context);
    if let Some(back) = tail.iter().rev().position(|value| value.is_nan()) {
        return Err(Error::data(format!(
            "series `{id}`: exogenous column `{name}` has no value {back} steps before the end of \
             the history, expected a number in each of the last {context} steps"
        )));
    }
    let mut out = vec![0.0; context - tail.len()];
    out.extend_from_slice(tail);
    Ok(out)
}
