//! The one module of this crate that talks to the operating system in `unsafe` terms: files mapped
//! read-only.
//!
//! Not a file format: it hands out bytes.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file's bytes, mapped read-only: pages come in when they are touched and belong to the page
/// cache, so that opening is quick and weights are not held twice.
///
/// The length is the file's at the time of opening, which no later read exceeds. **Limit:** whoever
/// rewrites the file in place while it is mapped changes what is read, and whoever truncates it
/// makes reads beyond its new end fail with a bus error, which ends the process. No program can
/// prevent that portably; replace model files by renaming a new file over the old one, which a
/// mapping survives.
#[derive(Debug)]
pub struct Map {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl Map {
    /// Maps a regular file.
    ///
    /// # Errors
    /// Where the file cannot be opened or mapped, is not a regular file, or is too long for the
    /// address space.
    pub fn open(path: &Path) -> io::Result<Map> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            let message = format!("`{}` is not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let length = usize::try_from(metadata.len()).map_err(|_| {
            let message = format!("`{}` of {} bytes is too long", path.display(), metadata.len());
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })?;
        if length == 0 {
            return Ok(Map { map: None });
        }
        // SAFETY:
        // 1. `file` is open for reading and `length` is its length just now, so the mapping lies
        //    within the file.
        // 2. The mapping is private to this value and read-only; memory is never written through
        //    it, and its bytes are handed out only borrowed from `self`, so none outlives it.
        // 3. Every bit pattern is a valid `u8`. What remains is a change of the file by somebody
        //    else while it is mapped; the type's documentation forbids it to the caller, and
        //    nothing in this workspace writes to a file that it maps.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(&file) }?;
        Ok(Map { map: Some(map) })
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir();
        folder.join(format!("neural-forecast-map-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_mapped_file_has_its_bytes_even_when_replaced() {
        let (path, other) = (scratch("bytes"), scratch("other"));
        std::fs::write(&path, b"weights").expect("the temporary folder is writable");
        let map = Map::open(&path).expect("the file was just written");
        assert_eq!(&*map, b"weights");
        std::fs::write(&other, b"new").expect("the temporary folder is writable");
        std::fs::rename(&other, &path).expect("renaming within a folder");
        assert_eq!(map.bytes(), b"weights", "the old file lives as long as its mapping");
        assert_eq!(Map::open(&path).expect("the new file").bytes(), b"new");
        std::fs::remove_file(&path).expect("the file is ours");
    }

    #[test]
    fn empty_absent_and_irregular_files() {
        let path = scratch("empty");
        std::fs::write(&path, b"").expect("the temporary folder is writable");
        assert!(Map::open(&path).expect("an empty file is a file").is_empty());
        std::fs::remove_file(&path).expect("the file is ours");
        let absent = Map::open(&path).expect_err("the file is gone");
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        assert!(Map::open(&std::env::temp_dir()).is_err(), "a folder is no file");
    }
}
