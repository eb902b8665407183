//! The error of each precision on a workload, against the reference in f64.
//!
//! The forecasts of a checkpoint are `crate::verify`'s; here are the networks of the tables, over
//! many fresh windows, with the reference spread over this host's cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use neural_forecast_runtime::device::{
    Data, KernelClass, LoadOptions, Precision, Request, Resident, Run,
};
use neural_forecast_runtime::plan::{Bucket, EntryKind};
use neural_forecast_runtime::reference::load_weights;

use super::measure::reference_window;
use super::{Positions, Workload};
use crate::device::OpenDevice;
use crate::engine::device_error;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::verify::{PrecisionError, summary};

/// Seed of weights and windows.
const SEED: u64 = 1;

/// Forecasts `windows_max` fresh windows in each of `precisions`, or as many as the reference
/// computes in `seconds` (at least one a core), and compares. Once for each of `batches`, because
/// a device may serve another batch with another kernel; runs take that many windows, the last
/// run what is left.
///
/// # Errors
/// What the device reports; a precision that the device lacks is a row, not an error.
pub fn verify(
    workload: &Workload,
    open: &OpenDevice,
    precisions: &[Precision],
    batches: &[usize],
    windows_max: usize,
    seconds: f64,
) -> Result<Vec<PrecisionError>> {
    let plan = workload.plan(Positions::Last)?;
    let weights = workload.weights(&plan, SEED);
    let loaded = load_weights(&plan, &weights).map_err(device_error)?;
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let found = Mutex::new(Vec::new());
    let compute = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let late = number > 0 && start.elapsed().as_secs_f64() >= seconds;
            if number >= windows_max || late {
                return Ok(());
            }
            let window = reference_window(workload, &plan, &loaded, SEED, number)?;
            found.lock().unwrap_or_else(PoisonError::into_inner).push((number, window));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(compute)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(number, _)| *number);
    let windows: Vec<_> = found.into_iter().map(|(_, window)| window).collect();
    let mut rows = Vec::new();
    for &precision in precisions {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let loaded = open.device.load(&plan, &weights, &options).map_err(device_error);
        let mut resident = match loaded.context(workload.name) {
            Ok(resident) => resident,
            Err(error) => {
                rows.push(unavailable(workload, precision, None, error)?);
                continue;
            }
        };
        for &batch in batches {
            let pairs = forecasts(workload, &mut *resident, batch, &windows);
            rows.push(match pairs.context(workload.name) {
                Ok(pairs) => PrecisionError {
                    batch: Some(batch),
                    ..summary(workload.name, precision, &pairs)
                },
                Err(error) => unavailable(workload, precision, Some(batch), error)?,
            });
        }
    }
    Ok(rows)
}

/// The row of a precision or a batch that the device does not serve.
fn unavailable(
    workload: &Workload,
    precision: Precision,
    batch: Option<usize>,
    error: Error,
) -> Result<PrecisionError> {
    if error.kind() != ErrorKind::Unsupported {
        return Err(error);
    }
    let row = PrecisionError::unavailable(workload.name, precision, error.to_string());
    Ok(PrecisionError { batch, ..row })
}

/// Reference and forecast, element by element.
fn forecasts(
    workload: &Workload,
    resident: &mut dyn Resident,
    batch: usize,
    windows: &[(Vec<f32>, Vec<f64>)],
) -> Result<Vec<(f64, f64)>> {
    let request = Request {
        entry: EntryKind::Full,
        bucket: Bucket { batch, length: workload.time() },
        class: KernelClass::Latency,
    };
    let mut program = resident.compile(request).map_err(device_error)?;
    let mut pairs = Vec::new();
    for chunk in windows.chunks(batch.max(1)) {
        let x: Vec<f32> = chunk.iter().flat_map(|(x, _)| x.iter().copied()).collect();
        let mut y = vec![f32::NAN; chunk.iter().map(|(_, expected)| expected.len()).sum()];
        program.write(0, Data::F32(&x));
        let run = Run { rows: chunk.len(), slots: &[], cancel: None };
        program.submit(&run).map_err(device_error)?;
        program.wait().map_err(device_error)?;
        program.read(0, &mut y).map_err(device_error)?;
        let expected = chunk.iter().flat_map(|(_, expected)| expected.iter().copied());
        pairs.extend(expected.zip(y.iter().map(|&y| f64::from(y))));
    }
    Ok(pairs)
}
