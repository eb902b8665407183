//! Draws forecasts: one panel a series, its history, the median and the shaded intervals.
//!
//! The same input gives the same bytes, as SVG or PNG, whatever fonts the machine has. Nothing
//! here reads data or forecasts; it is handed both.

mod axis;
mod font;
mod layout;
mod png;
mod scene;
mod svg;

use font::Font;

/// Panels in one picture at most; a picture says how many series it leaves out.
pub const PANELS_MAX: usize = 6;

/// What the horizontal axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Seconds since 1970-01-01 00:00 UTC, labelled as dates and hours.
    Seconds,
    /// Plain steps, labelled as numbers.
    Steps,
}

/// A range that the future stays in with a stated probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// Probability in percent, such as 80.
    pub level: f64,
    /// Lower bounds, one a forecast step.
    pub low: Vec<f32>,
    /// Upper bounds, one a forecast step.
    pub high: Vec<f32>,
}

/// What one model says about one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// The model's name, as the legend shows it.
    pub model: String,
    /// The moment of each forecast step.
    pub times: Vec<i64>,
    /// The median, or the mean of a model without quantiles, one a forecast step.
    pub center: Vec<f32>,
    /// The intervals, in any order.
    pub intervals: Vec<Interval>,
}

/// One series with its forecasts.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// The series' name.
    pub title: String,
    /// The observations to show, oldest first; NaN breaks the line.
    pub history: Vec<(i64, f32)>,
    /// How many observations the series has in all.
    pub history_count: usize,
    /// One entry a model.
    pub forecasts: Vec<Forecast>,
}

/// Everything a picture shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The heading.
    pub title: String,
    /// What the horizontal axis counts.
    pub time: Time,
    /// The panels; those beyond [`PANELS_MAX`] are not drawn but counted in the heading.
    pub panels: Vec<Panel>,
    /// How many series there are in all, drawn or not.
    pub series_count: usize,
}

/// The picture as an SVG document.
///
/// # Errors
/// When the typeface in the binary cannot be read.
pub fn svg(picture: &Picture) -> Result<String, String> {
    let font = typeface()?;
    Ok(svg::document(&layout::scene(picture, &font)))
}

/// The picture as a PNG file.
///
/// # Errors
/// When the typeface in the binary cannot be read or the picture cannot be painted.
pub fn png(picture: &Picture) -> Result<Vec<u8>, String> {
    let font = typeface()?;
    png::file(&layout::scene(picture, &font), &font)
}

fn typeface() -> Result<Font, String> {
    Font::new().ok_or_else(|| "the typeface in this binary cannot be read".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let interval = Interval { level: 80.0, low: vec![1.0, 1.5], high: vec![3.0, 4.0] };
        let forecast = Forecast {
            model: "LSTM".into(),
            times: vec![7200, 10_800],
            center: vec![2.0, 2.5],
            intervals: vec![interval],
        };
        let panel = Panel {
            title: "a<b".into(),
            history: vec![(0, 1.0), (3600, 2.0)],
            history_count: 40,
            forecasts: vec![forecast],
        };
        Picture { title: "t".into(), time: Time::Seconds, panels: vec![panel], series_count: 1 }
    }

    #[test]
    fn the_same_picture_gives_the_same_bytes() {
        assert_eq!(svg(&picture()), svg(&picture()));
        assert_eq!(png(&picture()), png(&picture()));
    }

    #[test]
    fn an_svg_names_what_it_shows() {
        let document = svg(&picture()).unwrap();
        let texts = ["a&lt;b", "LSTM", "80% interval", "observed", "last 2 of 40 observations"];
        for text in texts {
            assert!(document.contains(&format!(">{text}<")), "{text} is missing");
        }
    }

    #[test]
    fn a_png_can_be_read_back_and_is_not_blank() {
        let bytes = png(&picture()).unwrap();
        let decoder = ::png::Decoder::new(std::io::Cursor::new(bytes));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let dark = pixels.iter().filter(|value| **value < 128).count();
        assert!(dark > 1000, "{dark} dark values");
    }
}
