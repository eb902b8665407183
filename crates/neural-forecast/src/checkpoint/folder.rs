//! The files of a checkpoint: in a folder, mapped; or in memory.
//!
//! Knows names and bytes, not what is in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neural_forecast_runtime::sys::Map;

use crate::error::{Error, ErrorKind, Result};
use crate::weights::Bytes;

/// Largest configuration that is read, in bytes: it lists every series and every training stamp
/// at most once.
const CONFIGURATION_BYTES_MAX: usize = 256 << 20;

/// Where files come from.
pub(crate) enum Folder {
    /// A folder with the names of its files.
    Disk(PathBuf, Vec<String>),
    /// Files in memory.
    Memory(BTreeMap<String, Arc<dyn Bytes>>),
}

impl Folder {
    /// The files of a folder.
    ///
    /// # Errors
    /// Io: it cannot be listed.
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        let failed = |error: std::io::Error| Error::from(error).context(path.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            // A name that is not UTF-8 belongs to no format that is read here.
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(Folder::Disk(path.to_owned(), names))
    }

    /// Files in memory, copied.
    pub(crate) fn from_bytes(files: &[(&str, &[u8])]) -> Folder {
        let file = |(name, bytes): &(&str, &[u8])| {
            let bytes: Arc<dyn Bytes> = Arc::new(bytes.to_vec());
            ((*name).to_owned(), bytes)
        };
        Folder::Memory(files.iter().map(file).collect())
    }

    /// Files that live as long as the program.
    pub(crate) fn from_static(files: &'static [(&'static str, &'static [u8])]) -> Folder {
        let file = |(name, bytes): &(&'static str, &'static [u8])| {
            let bytes: Arc<dyn Bytes> = Arc::new(*bytes);
            ((*name).to_owned(), bytes)
        };
        Folder::Memory(files.iter().map(file).collect())
    }

    /// The names of its files, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Folder::Disk(_, names) => names.iter().map(String::as_str).collect(),
            Folder::Memory(files) => files.keys().map(String::as_str).collect(),
        }
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names().contains(&name)
    }

    /// How messages call a file.
    pub(crate) fn display(&self, name: &str) -> String {
        match self {
            Folder::Disk(path, _) => path.join(name).display().to_string(),
            Folder::Memory(_) => name.to_owned(),
        }
    }

    /// How messages call the folder.
    pub(crate) fn place(&self) -> String {
        match self {
            Folder::Disk(path, _) => path.display().to_string(),
            Folder::Memory(_) => "checkpoint in memory".to_owned(),
        }
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// Io: it is not there or cannot be mapped. The message names it.
    pub(crate) fn bytes(&self, name: &str) -> Result<Arc<dyn Bytes>> {
        match self {
            Folder::Disk(path, _) => map(&path.join(name)),
            Folder::Memory(files) => files.get(name).cloned().ok_or_else(|| {
                Error::new(ErrorKind::Checkpoint, format!("file `{name}` is missing"))
            }),
        }
    }

    /// The text of a JSON file.
    ///
    /// # Errors
    /// As [`Folder::bytes`]; Checkpoint: it is too long or not UTF-8. The message names it.
    pub(crate) fn text(&self, name: &str) -> Result<String> {
        let bytes = self.bytes(name)?;
        let bytes = bytes.bytes();
        let wrong = |message: String| {
            Error::new(ErrorKind::Checkpoint, message).context(self.display(name))
        };
        if bytes.len() > CONFIGURATION_BYTES_MAX {
            let found = bytes.len();
            return Err(wrong(format!(
                "{found} bytes, expected at most {CONFIGURATION_BYTES_MAX}"
            )));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| wrong(format!("not UTF-8 at byte {}", error.valid_up_to())))?;
        Ok(text.to_owned())
    }
}

/// A file's bytes, mapped.
///
/// # Errors
/// Io: it cannot be mapped, or is no regular file. The message names it.
pub(crate) fn map(path: &Path) -> Result<Arc<dyn Bytes>> {
    let failed = |error: std::io::Error| Error::from(error).context(path.display());
    // Asked before opening, because opening a pipe waits for its other end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        let message = "not a regular file";
        return Err(Error::new(ErrorKind::Io, message).context(path.display()));
    }
    Ok(Arc::new(Map::open(path).map_err(failed)?))
}
