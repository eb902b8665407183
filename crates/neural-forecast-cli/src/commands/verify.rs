//! `verify`: the error of each precision against the reference in f64, on forecasts.
//!
//! Without data it invents series that suit the model, so that every model can be verified.

mod invented;

use super::forecast::{read_ahead, read_frame, read_statics};
use super::{count, device_options, print, print_json, table};
use crate::args::VerifyArgs;
use crate::failure::{Failure, Outcome};
use crate::input::Model;
use crate::progress::Progress;
use invented::Tables;
use neural_forecast::Precision;
use neural_forecast::device::{self, OpenDevice};
use neural_forecast::forecaster::ForecastRequest;
use neural_forecast::verify::{PrecisionError, verify};
use neural_forecast::workloads;

/// Measures and prints. A precision that gives something else than numbers is a failure.
pub(super) fn run(args: &VerifyArgs) -> Outcome {
    let device = device::open(args.device, &device_options(args.threads))?;
    let precisions = match args.precision.as_slice() {
        [] => device.device.capabilities().precisions.clone(),
        asked => asked.to_vec(),
    };
    let alive = Progress::spinner("verify");
    // A folder of that name is meant before a network of the tables is.
    let workload = args.model.to_str().filter(|_| !args.model.exists());
    let found = match workload.and_then(|name| workloads::named(name).ok()) {
        Some(workload) => {
            let windows = count(args.windows);
            let batches: Vec<usize> = args.batch.iter().map(|&batch| count(batch)).collect();
            workloads::verify(&workload, &device, &precisions, &batches, windows, args.seconds)?
        }
        None => verify_model(args, &device, &precisions)?,
    };
    drop(alive);
    if args.json {
        print_json(&found)?;
    } else {
        let header =
            ["model", "precision", "batch", "error max", "error mean", "of range", "values"];
        let mut rows = vec![header.map(String::from).to_vec()];
        rows.extend(found.iter().map(as_row));
        print(table(&rows).as_bytes())?;
    }
    let broken = |row: &&PrecisionError| row.unavailable.is_none() && !row.error_max.is_finite();
    match found.iter().find(broken) {
        Some(row) => Err(Failure::new(format!(
            "model `{}` in {}: expected numbers, found NaN or infinity",
            row.model, row.precision
        ))),
        None => Ok(()),
    }
}

fn verify_model(
    args: &VerifyArgs,
    device: &OpenDevice,
    precisions: &[Precision],
) -> Result<Vec<PrecisionError>, Failure> {
    let model = Model::load(Some(&args.model))?;
    let tables = tables(args, &model)?;
    let request = ForecastRequest {
        future: tables.future.as_ref(),
        statics: tables.statics.as_ref(),
        ..ForecastRequest::default()
    };
    Ok(verify(&model.checkpoint, device, precisions, &tables.history, &request)?)
}

fn tables(args: &VerifyArgs, model: &Model) -> Result<Tables, Failure> {
    let Some(data) = &args.data else {
        return Ok(invented::tables(&model.checkpoint, count(args.series))?);
    };
    let options = model.complete(args.read.options());
    let future = args.future.as_deref().map(|path| read_ahead(path, &options)).transpose()?;
    let statics = args.statics.as_deref().map(|path| read_statics(path, &options)).transpose()?;
    Ok(Tables { history: read_frame(data, &options)?, future, statics })
}

fn as_row(row: &PrecisionError) -> Vec<String> {
    let batch = row.batch.map_or_else(|| String::from("-"), |batch| batch.to_string());
    let mut cells = vec![row.model.clone(), row.precision.to_string(), batch];
    match &row.unavailable {
        Some(reason) => cells.push(format!("unavailable: {reason}")),
        None => {
            let errors = [row.error_max, row.error_mean, row.error_of_range];
            cells.extend(errors.map(|error| format!("{error:.1e}")));
            cells.push(row.values.to_string());
        }
    }
    cells
}
