//! Quantiles and levels: their column names, the ones a caller asks for out of those a model
//! was trained for, and the repair of crossing quantiles.
//!
//! Never invents a quantile: one between two trained ones is interpolated, one outside them is
//! refused by name.

use crate::error::{Error, Result};

/// Quantiles this near are the same: checkpoints keep them in `f32`.
const SAME: f64 = 1e-6;

/// The quantiles of a forecast that a caller wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Ask {
    /// What the model was trained for, under the names it was trained with.
    #[default]
    Trained,
    /// Intervals by their level in percent, `80` for 0.1 to 0.9, and the median.
    Levels(Vec<f64>),
    /// Quantiles between 0 and 1.
    Quantiles(Vec<f64>),
}

impl Ask {
    /// The quantiles asked for, ascending and distinct, with the median of levels left out.
    ///
    /// # Errors
    /// Usage, naming the level or quantile that is out of range.
    pub fn quantiles(&self) -> Result<Vec<f64>> {
        match self {
            Ask::Trained => Ok(Vec::new()),
            Ask::Levels(levels) => level_to_quantiles(levels),
            Ask::Quantiles(quantiles) => {
                quantiles.iter().try_for_each(|&quantile| check_quantile(quantile))?;
                Ok(sorted_unique(quantiles.clone()))
            }
        }
    }
}

/// The quantiles of levels in percent, ascending and distinct: `80` gives 0.1 and 0.9.
///
/// # Errors
/// Usage, naming a level below 0, or of 100 and more.
pub fn level_to_quantiles(levels: &[f64]) -> Result<Vec<f64>> {
    let mut quantiles = Vec::with_capacity(2 * levels.len());
    for &level in levels {
        check_level(level)?;
        quantiles.extend([(50.0 - level / 2.0) / 100.0, (50.0 + level / 2.0) / 100.0]);
    }
    Ok(sorted_unique(quantiles))
}

/// The quantiles and column suffixes of a model trained for `levels`, in the channel order of
/// neuralforecast's `MQLoss(level=…)`: the median, then ascending.
///
/// # Errors
/// As [`level_to_quantiles`].
pub fn level_outputs(levels: &[f64]) -> Result<(Vec<f32>, Vec<String>)> {
    let mut outputs = Vec::with_capacity(2 * levels.len());
    let mut seen: Vec<f64> = Vec::new();
    for &level in levels {
        check_level(level)?;
        if !seen.contains(&level) {
            seen.push(level);
            outputs.push((50.0 - level / 2.0, format!("-lo-{level}")));
            outputs.push((50.0 + level / 2.0, format!("-hi-{level}")));
        }
    }
    outputs.sort_by(|a, b| a.0.total_cmp(&b.0));
    outputs.insert(0, (50.0, "-median".to_owned()));
    // Rounded to f32 before the division, as the loss does.
    Ok(outputs.into_iter().map(|(percent, name)| (percent as f32 / 100.0, name)).unzip())
}

/// The column suffixes of a model trained for `quantiles`, in their order, as neuralforecast's
/// `MQLoss(quantiles=…)` names them: `-lo-80.0`, `-median`, `-hi-80.0`.
///
/// # Errors
/// Usage, naming a quantile outside 0 to 1.
pub fn quantile_outputs(quantiles: &[f64]) -> Result<Vec<String>> {
    let hundredths = |value: f64| (value * 100.0).round_ties_even() / 100.0;
    let name = |&quantile: &f64| {
        check_quantile(quantile)?;
        Ok(if quantile < 0.5 {
            format!("-lo-{:?}", hundredths(100.0 - 200.0 * quantile))
        } else if quantile > 0.5 {
            format!("-hi-{:?}", hundredths(100.0 - 200.0 * (1.0 - quantile)))
        } else {
            "-median".to_owned()
        })
    };
    quantiles.iter().map(name).collect()
}

pub(crate) fn check_level(level: f64) -> Result<()> {
    if (0.0..100.0).contains(&level) {
        return Ok(());
    }
    Err(Error::usage(format!("level {level} is out of range, expected 0 to below 100")))
}

pub(crate) fn check_quantile(quantile: f64) -> Result<()> {
    if quantile > 0.0 && quantile < 1.0 {
        return Ok(());
    }
    Err(Error::usage(format!("quantile {quantile} is out of range, expected between 0 and 1")))
}

fn sorted_unique(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values.dedup_by(|a, b| (*a - *b).abs() < SAME / 10.0);
    values
}

/// The quantile channels of a model: what each is, and which is above which.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantileHead {
    /// In channel order.
    quantiles: Vec<f64>,
    names: Vec<String>,
    /// Channels by ascending quantile.
    order: Vec<usize>,
}

impl QuantileHead {
    /// A head with `quantiles` `[Q]` in channel order and their column suffixes `[Q]`.
    ///
    /// # Errors
    /// Usage, when there are none, lengths differ, or a quantile is outside 0 to 1.
    pub fn new(quantiles: &[f32], names: Vec<String>) -> Result<Self> {
        if quantiles.is_empty() || quantiles.len() != names.len() {
            return Err(Error::usage(format!(
                "a quantile head has {} quantiles and {} names, expected as many of each, and \
                 at least one",
                quantiles.len(),
                names.len()
            )));
        }
        let quantiles: Vec<f64> = quantiles.iter().map(|&quantile| quantile.into()).collect();
        quantiles.iter().try_for_each(|&quantile| check_quantile(quantile))?;
        let mut order: Vec<usize> = (0..quantiles.len()).collect();
        order.sort_by(|&a, &b| quantiles[a].total_cmp(&quantiles[b]));
        Ok(QuantileHead { quantiles, names, order })
    }

    /// The quantiles `[Q]` in channel order.
    pub fn quantiles(&self) -> &[f64] {
        &self.quantiles
    }

    /// Sorts each row of `values` `[rows, Q]` so that no quantile lies above a higher one;
    /// returns how many rows that changed. Rows with NaN are left alone.
    pub fn repair(&self, values: &mut [f32]) -> usize {
        let mut repaired = 0;
        let mut sorted: Vec<f32> = Vec::with_capacity(self.order.len());
        for row in values.chunks_exact_mut(self.order.len()) {
            if !self.crosses(row) {
                continue;
            }
            repaired += 1;
            sorted.clear();
            sorted.extend_from_slice(row);
            sorted.sort_by(f32::total_cmp);
            for (&channel, &value) in self.order.iter().zip(&sorted) {
                row[channel] = value;
            }
        }
        repaired
    }

    /// How many rows of `values` `[rows, Q]` [`QuantileHead::repair`] would change.
    pub fn crossings(&self, values: &[f32]) -> usize {
        values.chunks_exact(self.order.len()).filter(|row| self.crosses(row)).count()
    }

    fn crosses(&self, row: &[f32]) -> bool {
        self.order.windows(2).any(|pair| row[pair[0]] > row[pair[1]])
            && !row.iter().any(|value| value.is_nan())
    }

    /// How to get what is asked for out of this head's channels.
    ///
    /// # Errors
    /// Usage, naming a quantile outside the trained ones.
    pub fn select(&self, ask: &Ask) -> Result<Selection> {
        let mut selection = Selection {
            channels: self.quantiles.len(),
            names: Vec::new(),
            quantiles: Vec::new(),
            picks: Vec::new(),
        };
        match ask {
            Ask::Trained => {
                for (channel, name) in self.names.iter().enumerate() {
                    selection.add(name.clone(), self.quantiles[channel], Pick::Channel(channel));
                }
            }
            Ask::Levels(_) => {
                selection.add("-median".into(), 0.5, self.pick(0.5)?);
                for quantile in ask.quantiles()? {
                    let level = level_name(quantile);
                    let side = if quantile < 0.5 { "lo" } else { "hi" };
                    if (quantile - 0.5).abs() > SAME {
                        selection.add(format!("-{side}-{level}"), quantile, self.pick(quantile)?);
                    }
                }
            }
            Ask::Quantiles(_) => {
                for quantile in ask.quantiles()? {
                    selection.add(format!("-ql{quantile}"), quantile, self.pick(quantile)?);
                }
            }
        }
        Ok(selection)
    }

    fn pick(&self, quantile: f64) -> Result<Pick> {
        let near = |&&channel: &&usize| (self.quantiles[channel] - quantile).abs() < SAME;
        if let Some(&channel) = self.order.iter().find(near) {
            return Ok(Pick::Channel(channel));
        }
        let above = self.order.iter().position(|&channel| self.quantiles[channel] > quantile);
        let pair =
            above.and_then(|at| Some((*self.order.get(at.checked_sub(1)?)?, *self.order.get(at)?)));
        let Some((low, high)) = pair else {
            let (first, last) = (self.order[0], self.order[self.order.len() - 1]);
            return Err(Error::usage(format!(
                "quantile {} is outside those the model was trained for, expected {} to {}",
                shown(quantile),
                shown(self.quantiles[first]),
                shown(self.quantiles[last])
            )));
        };
        let (from, to) = (self.quantiles[low], self.quantiles[high]);
        let share = ((quantile - from) / (to - from)) as f32;
        Ok(Pick::Between { low, high, share })
    }
}

/// A quantile without the noise of its `f32`.
fn shown(quantile: f64) -> f64 {
    (quantile * 1e6).round() / 1e6
}

/// The level in percent of a quantile, as it was asked for: 90, 97.5.
fn level_name(quantile: f64) -> f64 {
    ((100.0 - 200.0 * quantile).abs() * 1e6).round() / 1e6
}

/// Columns of a forecast, and how each comes out of a head's channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    channels: usize,
    names: Vec<String>,
    quantiles: Vec<f64>,
    picks: Vec<Pick>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pick {
    Channel(usize),
    Between { low: usize, high: usize, share: f32 },
}

impl Selection {
    fn add(&mut self, name: String, quantile: f64, pick: Pick) {
        self.names.push(name);
        self.quantiles.push(quantile);
        self.picks.push(pick);
    }

    /// The columns' suffixes: `-median`, `-lo-90`, … or `-ql0.3` for asked quantiles.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The columns' quantiles.
    pub fn quantiles(&self) -> &[f64] {
        &self.quantiles
    }

    /// Whether every column is one of the model's own, so that nothing is interpolated.
    pub fn is_exact(&self) -> bool {
        self.picks.iter().all(|pick| matches!(pick, Pick::Channel(_)))
    }

    /// The columns, each `[rows]`, out of `values` `[rows, Q]`, which are repaired.
    pub fn columns(&self, values: &[f32]) -> impl ExactSizeIterator<Item = Vec<f32>> {
        let rows = || values.chunks_exact(self.channels);
        self.picks.iter().map(move |&pick| match pick {
            Pick::Channel(channel) => rows().map(|row| row[channel]).collect(),
            Pick::Between { low, high, share } => {
                rows().map(|row| row[low] + (row[high] - row[low]) * share).collect()
            }
        })
    }
}

/// Raises negative forecasts to 0, for quantities that cannot be negative; returns how many.
pub fn clip_negative(values: &mut [f32]) -> usize {
    let mut clipped = 0;
    for value in values.iter_mut().filter(|value| **value < 0.0) {
        *value = 0.0;
        clipped += 1;
    }
    clipped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const REFERENCE: &str = include_str!("../tests/data/reference.json");

    fn floats(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    }

    fn texts(value: &Value) -> Vec<&str> {
        value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
    }

    #[test]
    fn names_and_order_are_those_of_neuralforecast() {
        let reference: Value = serde_json::from_str(REFERENCE).unwrap();
        for case in reference["names"]["levels"].as_array().unwrap() {
            let (quantiles, names) = level_outputs(&floats(&case["ask"])).unwrap();
            let expected: Vec<f32> =
                floats(&case["quantiles"]).into_iter().map(|quantile| quantile as f32).collect();
            assert_eq!(quantiles, expected);
            // The order of two names for one quantile (level 0) is not defined there.
            if !names.contains(&"-lo-0".to_owned()) {
                assert_eq!(names, texts(&case["names"]));
            }
        }
        for case in reference["names"]["quantiles"].as_array().unwrap() {
            assert_eq!(quantile_outputs(&floats(&case["ask"])).unwrap(), texts(&case["names"]));
        }
    }

    fn head() -> QuantileHead {
        let (quantiles, names) = level_outputs(&[80.0, 90.0]).unwrap();
        QuantileHead::new(&quantiles, names).unwrap()
    }

    #[test]
    fn asked_quantiles_are_picked_interpolated_or_refused() {
        // Channels: 0.5, 0.05, 0.1, 0.9, 0.95.
        let values = [5.0, 1.0, 2.0, 8.0, 9.0];
        let own = head().select(&Ask::Trained).unwrap();
        assert_eq!(own.names(), ["-median", "-lo-90", "-lo-80", "-hi-80", "-hi-90"]);
        assert_eq!(own.columns(&values).collect::<Vec<_>>(), [[5.0], [1.0], [2.0], [8.0], [9.0]]);
        let levels = head().select(&Ask::Levels(vec![80.0])).unwrap();
        assert_eq!(levels.names(), ["-median", "-lo-80", "-hi-80"]);
        assert_eq!(levels.columns(&values).collect::<Vec<_>>(), [[5.0], [2.0], [8.0]]);
        assert!(levels.is_exact());
        let between = head().select(&Ask::Quantiles(vec![0.7, 0.3, 0.3])).unwrap();
        assert_eq!(between.names(), ["-ql0.3", "-ql0.7"]);
        assert!(!between.is_exact());
        let columns: Vec<_> = between.columns(&values).collect();
        assert!((columns[0][0] - 3.5).abs() < 1e-5 && (columns[1][0] - 6.5).abs() < 1e-5);
        let odd = head().select(&Ask::Levels(vec![87.5])).unwrap();
        assert_eq!(odd.names(), ["-median", "-lo-87.5", "-hi-87.5"]);
        let error = head().select(&Ask::Levels(vec![95.0])).unwrap_err().to_string();
        assert_eq!(
            error,
            "quantile 0.025 is outside those the model was trained for, expected 0.05 to 0.95"
        );
        for ask in [Ask::Levels(vec![100.0]), Ask::Quantiles(vec![0.0]), Ask::Levels(vec![-1.0])] {
            assert!(head().select(&ask).unwrap_err().to_string().contains("out of range"));
        }
        assert!(head().select(&Ask::Quantiles(vec![f64::NAN])).is_err());
        assert!(QuantileHead::new(&[], Vec::new()).is_err());
        assert!(QuantileHead::new(&[1.5], vec!["x".into()]).is_err());
    }

    #[test]
    fn clipping_counts_what_it_raises() {
        let mut values = [-1.0, 0.0, 2.0, f32::NAN];
        assert_eq!(clip_negative(&mut values), 1);
        assert_eq!(values[..3], [0.0, 0.0, 2.0]);
        assert!(values[3].is_nan());
    }

    proptest! {
        #[test]
        fn repair_sorts_counts_and_keeps_the_values(
            values in prop::collection::vec(-10.0_f32..10.0, 0..20),
        ) {
            let head = head();
            let rows = values.len() / 5;
            let mut repaired = values[..rows * 5].to_vec();
            let count = head.repair(&mut repaired);
            let mut crossed = 0;
            for (row, before) in repaired.chunks(5).zip(values.chunks(5)) {
                // Channels by ascending quantile are 1, 2, 0, 3, 4.
                let ascending = [row[1], row[2], row[0], row[3], row[4]];
                prop_assert!(ascending.is_sorted());
                let was = [before[1], before[2], before[0], before[3], before[4]];
                crossed += usize::from(!was.is_sorted());
                let (mut a, mut b) = (row.to_vec(), before.to_vec());
                a.sort_by(f32::total_cmp);
                b.sort_by(f32::total_cmp);
                prop_assert_eq!(a, b);
            }
            prop_assert_eq!(count, crossed);
            prop_assert_eq!(head.repair(&mut repaired), 0);
        }
    }
}
