//! Compiled pipelines in a folder: written by one device, taken by the next, refused with the
//! reason where they are broken or another's. Whatever the folder holds, forecasts are the same.

use std::fs;
use std::path::{Path, PathBuf};

use neural_forecast_runtime::device::LoadOptions;
use neural_forecast_runtime::testing::{Case, cases, conform, device_or_skip};
use neural_forecast_wgpu::{PipelineCacheReport, PipelinesFound, WgpuDevice, WgpuOptions};

fn open(folder: &Path) -> Option<WgpuDevice> {
    let pipeline_folder = Some(folder.to_owned());
    let options = WgpuOptions { pipeline_folder, ..WgpuOptions::default() };
    device_or_skip("wgpu", WgpuDevice::open(0, options))
}

fn a_case() -> Case {
    let case = cases().into_iter().find(|case| case.name.starts_with("linear"));
    case.expect("products are among the cases")
}

/// Opens a device on the folder, compiles and runs a case on it.
fn start(folder: &Path, case: &Case) -> Option<PipelineCacheReport> {
    let device = open(folder)?;
    assert_eq!(conform(&device, case, &LoadOptions::default()), Ok(true), "{}", case.name);
    Some(device.pipeline_cache().expect("a folder was named"))
}

fn refusal(report: &PipelineCacheReport) -> &str {
    match &report.found {
        PipelinesFound::Refused { reason } => reason,
        found => panic!("{found:?}, expected a refusal"),
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_second_start_takes_what_the_first_compiled_and_nothing_else() {
    let folder = Folder(std::env::temp_dir().join(format!("nf-cache-{}", std::process::id())));
    let folder = &folder.0;
    let case = a_case();
    let Some(first) = start(folder, &case) else { return };
    if let PipelinesFound::Refused { reason } = &first.found {
        println!("skipped: {reason}");
        return;
    }
    assert_eq!(first.found, PipelinesFound::Nothing);
    let saved = first.saved.clone().expect("pipelines were made").expect("they were written");
    assert!(saved > 0);
    let whole = fs::read(&first.path).expect("the file is there");
    assert!(whole.len() > saved);

    let second = start(folder, &case).expect("it was there a moment ago");
    assert_eq!(second.found, PipelinesFound::Taken { bytes: saved });
    assert_eq!(second.path, first.path);

    // A bit of the driver's data; then the name of another driver with its own right checksum is
    // the unit tests'; then what is no such file at all.
    let mut broken = whole.clone();
    *broken.last_mut().expect("it is not empty") ^= 1;
    for (bytes, why) in [(&broken[..], "checksum"), (&whole[..20], "cut short"), (b"{}", "not a")] {
        fs::write(&first.path, bytes).expect("it is written");
        let report = start(folder, &case).expect("it was there a moment ago");
        let reason = refusal(&report);
        assert!(reason.contains(why), "{reason}");
        assert!(reason.contains(&*first.path.to_string_lossy()), "{reason}");
        // It was written anew.
        let again = start(folder, &case).expect("it was there a moment ago");
        assert!(matches!(again.found, PipelinesFound::Taken { .. }), "{again:?}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_harms_nothing() {
    let Some(device) = device_or_skip("wgpu", WgpuDevice::open(0, WgpuOptions::default())) else {
        return;
    };
    assert_eq!(device.pipeline_cache(), None, "nobody named a folder");
    // A file where the folder should be.
    let path = std::env::temp_dir().join(format!("nf-no-folder-{}", std::process::id()));
    fs::write(&path, "a file").expect("it is written");
    let report = start(&path, &a_case()).expect("it was there a moment ago");
    fs::remove_file(&path).expect("it is ours");
    if let Some(saved) = report.saved {
        assert!(saved.expect_err("it is no folder").contains(&*path.to_string_lossy()));
    }
}
