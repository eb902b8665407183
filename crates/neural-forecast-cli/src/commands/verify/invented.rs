//! Series for a model that nobody has data for at hand: rhythms, walks and noise of many scales,
//! with every column that the model takes. The same each time.
//!
//! They say nothing about accuracy; they exercise the arithmetic.

use neural_forecast::Result;
use neural_forecast::calendar::{TimeAxis, parse_stamp};
use neural_forecast::checkpoint::Checkpoint;
use neural_forecast::frame::{
    Frame, FutureFrame, ReadOptions, StaticFrame, read, read_future, read_static,
};
use neural_forecast::models::Network;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Everything that a forecast is made from.
pub(super) struct Tables {
    pub(super) history: Frame,
    pub(super) future: Option<FutureFrame>,
    pub(super) statics: Option<StaticFrame>,
}

/// Tables of `count` series, or of as many as a multivariate model needs.
///
/// # Errors
/// Data, when the model's frequency cannot carry its context from the year 2000 on.
pub(super) fn tables(checkpoint: &Checkpoint, count: usize) -> Result<Tables> {
    let models = &checkpoint.models;
    let names = |of: fn(&Network) -> &[String]| -> Vec<String> {
        models.iter().flat_map(of).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    };
    let historic = names(|m| &m.exogenous.historic);
    let future = names(|m| &m.exogenous.future);
    let statics = names(|m| &m.exogenous.statics);
    let count = models.iter().find_map(|m| m.series).unwrap_or(count);
    let context = models.iter().map(|m| m.context).max().unwrap_or(1) + 1;
    let horizon = models.iter().map(|m| m.horizon).max().unwrap_or(1);
    let stamps = stamps(checkpoint, context + horizon)?;
    let (past, ahead) = stamps.split_at(context);

    let mut random = Random(1);
    let known: Vec<String> = historic.iter().chain(&future).cloned().collect();
    let mut text = header(&["unique_id", "ds", "y"], &known);
    let mut later = header(&["unique_id", "ds"], &future);
    let mut fixed = header(&["unique_id"], &statics);
    for series in 0..count {
        let mut values = Values::new(&mut random);
        for stamp in past {
            let _ = write!(text, "s{series},{stamp},{}", values.next(&mut random));
            line(&mut text, known.len(), &mut random);
        }
        for stamp in ahead {
            let _ = write!(later, "s{series},{stamp}");
            line(&mut later, future.len(), &mut random);
        }
        let _ = write!(fixed, "s{series}");
        line(&mut fixed, statics.len(), &mut random);
    }
    let options = ReadOptions { frequency: checkpoint.frequency, ..ReadOptions::default() };
    let name = "invented series";
    let has = |names: &[String]| !names.is_empty();
    Ok(Tables {
        history: read(text.as_bytes(), name, &options)?,
        future: has(&future).then(|| read_future(later.as_bytes(), name, &options)).transpose()?,
        statics: has(&statics)
            .then(|| read_static(fixed.as_bytes(), name, &options))
            .transpose()?,
    })
}

/// Stamps on the model's grid; hours where it has none.
fn stamps(checkpoint: &Checkpoint, count: usize) -> Result<Vec<String>> {
    let hours = || "h".parse();
    let frequency = checkpoint.frequency.map_or_else(hours, Ok)?;
    let start = parse_stamp("2000-01-01 00:00:00");
    let (first, axis) = match start {
        Some((first, format)) if !frequency.is_integer() => (first, TimeAxis::DateTime(format)),
        _ => (0, TimeAxis::Integer),
    };
    Ok(frequency.future(first, count)?.into_iter().map(|stamp| axis.text(stamp)).collect())
}

fn header(first: &[&str], more: &[String]) -> String {
    let quoted = more.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
    let names: Vec<String> = first.iter().map(ToString::to_string).chain(quoted).collect();
    names.join(",") + "\n"
}

fn line(text: &mut String, columns: usize, random: &mut Random) {
    for _ in 0..columns {
        let _ = write!(text, ",{}", random.normal());
    }
    text.push('\n');
}

/// One series: a level, a rhythm and a walk, all of a random scale.
struct Values {
    scale: f64,
    level: f64,
    period: f64,
    walk: f64,
    step: f64,
}

impl Values {
    fn new(random: &mut Random) -> Self {
        let scale = 10_f64.powf(random.unit() * 4.0 - 1.0);
        let level = scale * (3.0 + random.normal());
        Self { scale, level, period: 4.0 + random.unit() * 40.0, walk: 0.0, step: 0.0 }
    }

    fn next(&mut self, random: &mut Random) -> f32 {
        self.step += 1.0;
        self.walk += 0.1 * random.normal();
        let rhythm = (self.step / self.period * std::f64::consts::TAU).sin();
        (self.level + self.scale * (rhythm + self.walk)) as f32
    }
}

/// SplitMix64, so that the series are the same everywhere.
struct Random(u64);

impl Random {
    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Nearly standard normal: twelve uniform numbers, less their mean.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}
