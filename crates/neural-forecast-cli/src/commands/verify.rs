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
use neural_forecast::device;
use neural_forecast::forecaster::ForecastRequest;
use neural_forecast::verify::{PrecisionError, verify};

/// Measures and prints. A precision that gives something else than numbers is a failure.
pub(super) fn run(args: &VerifyArgs) -> Outcome {
    let model = Model::load(Some(&args.model))?;
    let device = device::open(args.device, &device_options(args.threads))?;
    let tables = tables(args, &model)?;
    let request = ForecastRequest {
        future: tables.future.as_ref(),
        statics: tables.statics.as_ref(),
        ..ForecastRequest::default()
    };
    let precisions = match args.precision.as_slice() {
        [] => device.device.capabilities().precisions.clone(),
        asked => asked.to_vec(),
    };
    let alive = Progress::spinner("verify");
    let found = verify(&model.checkpoint, &device, &precisions, &tables.history, &request)?;
    drop(alive);
    if args.json {
        print_json(&found)?;
    } else {
        let header = ["model", "precision", "error max", "error mean", "of range", "values"];
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
    let mut cells = vec![row.model.clone(), row.precision.to_string()];
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
