//! Opens what a command reads: a file or standard input, and the model.
//!
//! Formats are the library's business; this only finds names and openings for it.

use neural_forecast::checkpoint::Checkpoint;
use neural_forecast::frame::{Format, ReadOptions};
use neural_forecast::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// An opened input with the name that errors give it.
pub(crate) struct Input {
    pub(crate) reader: Box<dyn Read>,
    pub(crate) name: String,
    format: Option<Format>,
}

impl Input {
    /// Opens `path`; `-` is standard input.
    ///
    /// # Errors
    /// Io, naming the path.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            let reader = Box::new(std::io::stdin().lock());
            return Ok(Self { reader, name: "standard input".into(), format: None });
        }
        let name = path.display().to_string();
        let failed = |error: std::io::Error| Error::from(error).context(&name);
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            let message = format!("{name}: expected a file, found a folder");
            return Err(Error::new(ErrorKind::Data, message));
        }
        Ok(Self { reader: Box::new(file), name, format: Format::from_path(path) })
    }

    /// `options` with the format that the name says, where they leave it open.
    pub(crate) fn options(&self, options: &ReadOptions) -> ReadOptions {
        ReadOptions { format: options.format.or(self.format), ..options.clone() }
    }
}

/// A model and where it came from.
pub(crate) struct Model {
    pub(crate) checkpoint: Checkpoint,
    /// Whether it is one of those in this binary, trained for no data in particular.
    pub(crate) shipped: bool,
}

impl Model {
    /// The model in a folder, or by its name in this binary; `None` is the default.
    ///
    /// # Errors
    /// Checkpoint or Unsupported, naming what is wrong with it.
    pub(crate) fn load(place: Option<&Path>) -> Result<Self> {
        let shipped = |checkpoint| Model { checkpoint, shipped: true };
        let Some(place) = place else {
            return neural_forecast::shipped::default_model().map(shipped);
        };
        // A folder wins over a name: what the user made is nearer than what we ship.
        if !place.exists()
            && let Some(name) = place.to_str().filter(|name| is_plain_name(name))
        {
            return neural_forecast::shipped::named(name).map(shipped);
        }
        let checkpoint = Checkpoint::open(place)?;
        Ok(Model { checkpoint, shipped: false })
    }

    /// What the model knows about its data, where the user says nothing.
    pub(crate) fn complete(&self, mut options: ReadOptions) -> ReadOptions {
        if self.shipped {
            return options;
        }
        let own = &self.checkpoint;
        let name = |asked: Option<String>, own: &str, usual: &str| {
            asked.or_else(|| (own != usual).then(|| own.to_string()))
        };
        let columns = options.columns;
        options.columns = neural_forecast::frame::Columns {
            id: name(columns.id, &own.id_column, "unique_id"),
            time: name(columns.time, &own.time_column, "ds"),
            target: name(columns.target, &own.target_column, "y"),
        };
        options.frequency = options.frequency.or(own.frequency);
        options
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.contains(['/', '\\', '.'])
}
