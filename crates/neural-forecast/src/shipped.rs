//! The models inside the library: small forecasters for data that nobody has trained on yet.
//!
//! Their folders are `models/` at the top of the repository, with the recipe that made them and
//! their measured accuracy. A model of one's own is read with [`Checkpoint::open`].

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// A model's folder: names of files and their bytes.
type Files = &'static [(&'static str, &'static [u8])];

/// Every model with the name it goes by; the first is the default, because it is the more accurate
/// of the two on series that no model has seen (see the cards in `models/`).
static MODELS: [(&str, Files); 2] = [
    (
        "patchtst",
        &[
            ("configuration.json", include_bytes!("../models/patchtst/configuration.json")),
            ("PatchTST_0.safetensors", include_bytes!("../models/patchtst/PatchTST_0.safetensors")),
        ],
    ),
    (
        "lstm",
        &[
            ("configuration.json", include_bytes!("../models/lstm/configuration.json")),
            ("LSTM_0.safetensors", include_bytes!("../models/lstm/LSTM_0.safetensors")),
        ],
    ),
];

/// The names of all models, the default first.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _)| *name)
}

/// The default model.
///
/// # Errors
/// None in a sound build: its own files are malformed.
pub fn default_model() -> Result<Checkpoint> {
    named(MODELS[0].0)
}

/// The model of this name. It fits series of any frequency: its own is taken out.
///
/// # Errors
/// Usage: there is none; the message lists them.
pub fn named(name: &str) -> Result<Checkpoint> {
    let Some((name, files)) = MODELS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = names().collect();
        return Err(Error::usage(format!(
            "model `{name}` is neither a folder nor one of the shipped models ({})",
            known.join(", ")
        )));
    };
    let checkpoint = Checkpoint::from_static(files)
        .map_err(|error| error.context(format!("shipped model `{name}`")))?;
    Ok(Checkpoint { frequency: None, ..checkpoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_loads_and_fits_any_frequency() {
        for name in names() {
            let checkpoint = named(name).unwrap();
            assert!(!checkpoint.models.is_empty(), "{name}");
            assert!(checkpoint.frequency.is_none(), "{name}");
        }
        assert!(default_model().is_ok());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = named("gpt").unwrap_err().to_string();
        assert!(error.contains("gpt") && error.contains("patchtst, lstm"), "{error}");
    }
}
