//! `forecast`: series in, a table and a picture out.
//!
//! Everything is computed before anything is written, so that a failure leaves no output.

mod chunks;
mod picture;

use super::{count, open_device, print};
use crate::args::{BandArgs, ForecastArgs};
use crate::failure::{Failure, Outcome};
use crate::input::{Input, Model};
use crate::plot;
use neural_forecast::Result;
use neural_forecast::forecaster::{Forecast, ForecastRequest, Forecaster, ForecasterOptions};
use neural_forecast::frame::{
    ForecastColumns, ForecastFile, ForecastWriter, Format, Frame, FutureFrame, ReadOptions,
    StaticFrame, read, read_future, read_static, write_whole,
};
use neural_forecast::quantiles::Ask;
use serde_json::json;
use std::path::Path;

/// Forecasts and writes.
pub(super) fn run(args: &ForecastArgs) -> Outcome {
    let drawing = args.plot.as_deref().map(Drawing::of).transpose()?;
    let device = open_device(&args.run)?;
    let model = Model::load(args.model.as_deref())?;
    let options = model.complete(args.read.options());
    let frame = read_frame(&args.input, &options)?;
    let future = args.future.as_deref().map(|path| read_ahead(path, &options)).transpose()?;
    let statics = args.statics.as_deref().map(|path| read_statics(path, &options)).transpose()?;
    let request = ForecastRequest {
        horizon: args.horizon.map(count),
        intervals: ask(&args.bands),
        future: future.as_ref(),
        statics: statics.as_ref(),
        non_negative: args.non_negative,
        repair_crossing: !args.keep_crossings,
    };
    let settings =
        ForecasterOptions { precision: args.run.precision, ..ForecasterOptions::default() };
    let forecaster = Forecaster::new(model.checkpoint, &device, settings)?;
    let forecast = chunks::predict(&forecaster, &frame, &request)?;
    let image = drawing.map(|drawing| drawing.draw(&args.input, &frame, &forecast)).transpose()?;
    write(args, &frame, &forecast)?;
    if let (Some(path), Some(image)) = (&args.plot, image) {
        write_whole(path, &image)?;
    }
    notes(&frame, &forecast, !args.keep_crossings);
    Ok(())
}

/// What the flags ask of the quantiles.
pub(super) fn ask(bands: &BandArgs) -> Ask {
    if !bands.level.is_empty() {
        Ask::Levels(bands.level.clone())
    } else if !bands.quantiles.is_empty() {
        Ask::Quantiles(bands.quantiles.clone())
    } else {
        Ask::Trained
    }
}

/// Reads series from a file or standard input.
pub(super) fn read_frame(path: &Path, options: &ReadOptions) -> Result<Frame> {
    let input = Input::open(path)?;
    let options = input.options(options);
    read(input.reader, &input.name, &options)
}

/// Static features of a file, whose format is its own whatever the series' is.
pub(super) fn read_statics(path: &Path, options: &ReadOptions) -> Result<StaticFrame> {
    let input = Input::open(path)?;
    let options = input.options(&ReadOptions { format: None, ..options.clone() });
    read_static(input.reader, &input.name, &options)
}

/// Future values of a file.
pub(super) fn read_ahead(path: &Path, options: &ReadOptions) -> Result<FutureFrame> {
    let input = Input::open(path)?;
    let options = input.options(&ReadOptions { format: None, ..options.clone() });
    read_future(input.reader, &input.name, &options)
}

fn write(args: &ForecastArgs, frame: &Frame, forecast: &Forecast) -> Outcome {
    let columns = ForecastColumns::of(frame, forecast.columns.clone());
    match args.output.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let format = if args.json { Some(Format::Json) } else { args.format };
            if args.json {
                return Ok(write_whole(path, &json_object(columns, frame, forecast)?)?);
            }
            let mut file = ForecastFile::create(path, format, columns)?;
            for (id, stamps, values) in rows(forecast) {
                file.write(id, stamps, &values)?;
            }
            Ok(file.commit()?)
        }
        None if args.json => print(&json_object(columns, frame, forecast)?),
        None => {
            let format = args.format.unwrap_or(Format::Csv);
            print(&table(columns, format, forecast)?)
        }
    }
}

fn rows(forecast: &Forecast) -> impl Iterator<Item = (&str, &[i64], Vec<&[f32]>)> {
    forecast.series.iter().map(|series| {
        let values = series.values.iter().map(Vec::as_slice).collect();
        (series.id.as_str(), series.stamps.as_slice(), values)
    })
}

fn table(columns: ForecastColumns, format: Format, forecast: &Forecast) -> Result<Vec<u8>> {
    let mut writer = ForecastWriter::new(Vec::new(), format, columns)?;
    for (id, stamps, values) in rows(forecast) {
        writer.write(id, stamps, &values)?;
    }
    writer.finish()
}

/// Forecasts with how they were made.
fn json_object(
    columns: ForecastColumns,
    frame: &Frame,
    forecast: &Forecast,
) -> std::result::Result<Vec<u8>, Failure> {
    let about = json!({
        "runs": forecast.runs,
        "frequency": frame.frequency.to_string(),
        "input": {
            "series": frame.series.len(),
            "rows": frame.report.rows,
            "missing_stamps": frame.report.missing_stamps,
            "missing_values": frame.report.missing_values,
            "filled_values": frame.report.filled_values,
            "ignored_columns": frame.ignored_columns.iter().map(|c| &c.name).collect::<Vec<_>>(),
        },
    });
    let mut object = serde_json::to_vec(&about).map_err(Failure::new)?;
    // The records are written by the library, so that numbers look the same everywhere.
    object.pop();
    object.extend_from_slice(b",\"forecasts\":");
    object.extend_from_slice(table(columns, Format::Json, forecast)?.trim_ascii());
    object.extend_from_slice(b"}\n");
    Ok(object)
}

/// What the user should know and did not ask, one line each on standard error.
fn notes(frame: &Frame, forecast: &Forecast, sorted: bool) {
    for column in &frame.ignored_columns {
        eprintln!("note: column `{}` is left out: {}", column.name, column.reason);
    }
    let report = frame.report;
    if report.filled_values > 0 {
        eprintln!(
            "note: {} values were filled ({} stamps and {} values were missing; see --gaps)",
            report.filled_values, report.missing_stamps, report.missing_values
        );
    }
    for run in &forecast.runs {
        if let Some(reason) = &run.info.fallback {
            eprintln!("note: model `{}` ran on `{}`: {reason}", run.model, run.info.device);
        }
        if run.blocks > 1 {
            eprintln!("note: model `{}` was rolled out in {} blocks", run.model, run.blocks);
        }
        if run.crossings > 0 {
            let done = if sorted { "were sorted" } else { "were left so" };
            eprintln!(
                "note: model `{}`: quantiles crossed at {} steps and {done}",
                run.model, run.crossings
            );
        }
    }
}

/// A file format of pictures.
#[derive(Clone, Copy)]
enum Drawing {
    Svg,
    Png,
}

impl Drawing {
    /// By the file's name.
    fn of(path: &Path) -> std::result::Result<Self, Failure> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "svg" => Ok(Self::Svg),
            "png" => Ok(Self::Png),
            _ => Err(Failure::usage(format!(
                "--plot `{}`: expected a name that ends in .svg or .png",
                path.display()
            ))),
        }
    }

    fn draw(
        self,
        input: &Path,
        frame: &Frame,
        forecast: &Forecast,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let picture = picture::of(input, frame, forecast);
        let drawn = match self {
            Self::Svg => plot::svg(&picture).map(String::into_bytes),
            Self::Png => plot::png(&picture),
        };
        drawn.map_err(|error| Failure::new(format!("plot: {error}")))
    }
}
