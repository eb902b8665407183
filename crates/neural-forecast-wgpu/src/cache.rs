//! Compiled pipelines that outlive a process: a file in a folder, where the driver hands out what
//! it compiled (Vulkan alone does).
//!
//! A file is whole or absent, carries a checksum and who made it, and is never a reason to fail:
//! what is corrupt or another driver's is refused with the reason and written anew. The folder must
//! be as trusted as the program, since a driver takes what it is given as its own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::experiments;
use crate::health::{Health, checked};

/// What every file begins with; the last figure is the format's version.
const MAGIC: &[u8; 8] = b"NFPIPES1";

/// A file that is larger was not written here.
const BYTES_MAX: u64 = 1 << 28;

/// What a folder held when a device was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipelinesFound {
    /// No file for this adapter.
    Nothing,
    /// A file whose pipelines the driver was given.
    Taken {
        /// Bytes that the driver was given.
        bytes: usize,
    },
    /// A file that is not used, or no way to use one.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What became of a cache of pipelines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineCacheReport {
    /// The file.
    pub path: PathBuf,
    /// What it held.
    pub found: PipelinesFound,
    /// Bytes of pipelines when it was last written, or why it was not.
    pub saved: Option<Result<usize, String>>,
}

/// The cache of one device.
#[derive(Debug)]
pub(crate) struct PipelineCache {
    /// None where the adapter offers none.
    cache: Option<wgpu::PipelineCache>,
    /// Who made what is in the file.
    maker: String,
    report: Mutex<PipelineCacheReport>,
    /// How many pipelines there were when it was last written.
    written: AtomicUsize,
}

impl PipelineCache {
    /// Opens the file of an adapter in a folder.
    ///
    /// # Errors
    /// `Lost`, `OutOfMemory`; never because of the file.
    pub(crate) fn open(
        folder: &Path,
        info: &wgpu::AdapterInfo,
        (device, health): (&wgpu::Device, &Health),
    ) -> Result<PipelineCache, DeviceError> {
        let key = wgpu::util::pipeline_cache_key(info);
        let path = folder.join(key.as_deref().unwrap_or("pipelines"));
        let maker = format!("{} {} {}", info.name, info.driver, info.driver_info);
        let offered = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let (cache, found) = if offered && key.is_some() {
            let (data, found) = match read(&path, &maker) {
                Ok(data) => {
                    let bytes = data.len();
                    (Some(data), PipelinesFound::Taken { bytes })
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    (None, PipelinesFound::Nothing)
                }
                Err(error) => (None, refused(&path, &error)),
            };
            give(device, health, (&path, data), found)?
        } else {
            let reason = format!("{} ({}) offers no pipeline cache", info.name, info.backend);
            (None, PipelinesFound::Refused { reason })
        };
        let report = Mutex::new(PipelineCacheReport { path, found, saved: None });
        Ok(PipelineCache { cache, maker, report, written: AtomicUsize::new(0) })
    }

    /// What pipelines are made with.
    pub(crate) fn handle(&self) -> Option<wgpu::PipelineCache> {
        self.cache.clone()
    }

    /// Writes the file if there are other than the `made` pipelines of the last time. That it
    /// cannot be written is in the report and harms nothing.
    pub(crate) fn save(&self, made: usize) {
        let Some(cache) = &self.cache else { return };
        if self.written.swap(made, Ordering::AcqRel) == made {
            return;
        }
        let Some(data) = cache.get_data() else { return };
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let written = write(&report.path, &self.maker, &data);
        let failed = |error: io::Error| format!("{}: {error}", report.path.display());
        report.saved = Some(written.map(|()| data.len()).map_err(failed));
    }

    pub(crate) fn report(&self) -> PipelineCacheReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn refused(path: &Path, error: &dyn std::fmt::Display) -> PipelinesFound {
    PipelinesFound::Refused { reason: format!("{}: {error}", path.display()) }
}

/// Makes the driver's cache, of what was found if it takes that, else an empty one.
fn give(
    device: &wgpu::Device,
    health: &Health,
    (path, data): (&Path, Option<Vec<u8>>),
    found: PipelinesFound,
) -> Result<(Option<wgpu::PipelineCache>, PipelinesFound), DeviceError> {
    let place = (DeviceErrorKind::Compile, "pipeline cache");
    let create = |data: Option<&[u8]>| {
        checked(device, health, place, || experiments::pipeline_cache(device, data))
    };
    let refusal = match create(data.as_deref()) {
        Ok(cache) => return Ok((Some(cache), found)),
        Err(error) if data.is_none() => return Err(error),
        Err(error) => refused(path, &error),
    };
    health.check_lost()?;
    Ok((Some(create(None)?), refusal))
}

/// 64-bit FNV-1a: finds what a disk or a copy broke, no protection from malice.
fn checksum(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().copied().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// What a file holds, if this maker wrote it and nothing of it changed since.
fn read(path: &Path, maker: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(invalid(format!("more than {BYTES_MAX} bytes of pipelines")));
    }
    unpack(&bytes, maker).map(<[u8]>::to_vec).map_err(invalid)
}

fn unpack<'a>(bytes: &'a [u8], maker: &str) -> Result<&'a [u8], String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("not a file of pipelines of this version")?;
    let short = || format!("cut short: {} bytes", bytes.len());
    let (sum, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (found, data) =
        rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
    if checksum(&[found, data]) != u64::from_le_bytes(*sum) {
        return Err("corrupt: its checksum is another one".to_owned());
    }
    if found != maker.as_bytes() {
        let found = String::from_utf8_lossy(found);
        return Err(format!("made by `{found}`, expected `{maker}`"));
    }
    Ok(data)
}

/// Puts a file in its place, whole.
fn write(path: &Path, maker: &str, data: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        let length = maker.len() as u32;
        file.write_all(MAGIC)?;
        file.write_all(&checksum(&[maker.as_bytes(), data]).to_le_bytes())?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(maker.as_bytes())?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        // What is left of it; that it cannot be removed says no more than the error does.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_whole_and_from_its_maker_alone() {
        let folder = std::env::temp_dir().join(format!("nf-pipelines-{}", std::process::id()));
        let path = folder.join("unit");
        write(&path, "this driver", b"compiled").expect("it is written");
        assert_eq!(read(&path, "this driver").expect("it is whole"), b"compiled");
        let foreign = read(&path, "that driver").expect_err("it is another's").to_string();
        assert!(
            foreign.contains("`this driver`") && foreign.contains("`that driver`"),
            "{foreign}"
        );
        let whole = fs::read(&path).expect("it is there");
        fs::remove_dir_all(&folder).expect("it is ours");
        assert_eq!(read(&path, "").expect_err("it is gone").kind(), io::ErrorKind::NotFound);
        assert_eq!(unpack(&whole, "this driver"), Ok(&b"compiled"[..]));
        for length in 0..whole.len() {
            assert!(unpack(&whole[..length], "this driver").is_err(), "cut to {length}");
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0x10;
            assert!(unpack(&broken, "this driver").is_err(), "byte {at} changed");
        }
    }
}
