//! Places a picture's parts: heading, legend, panels with their axes, lines and shaded intervals.
//!
//! Produces a scene; writes no file format.

use super::axis::{Tick, number_ticks, time_ticks};
use super::font::Font;
use super::scene::{Anchor, Color, Point, Scene, Shape};
use super::{Forecast, PANELS_MAX, Panel, Picture, Time};

const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 24.0;
const HEAD_HEIGHT: f64 = 70.0;
/// Room left of a panel for its numbers.
const NUMBERS_WIDTH: f64 = 64.0;
/// Room below a panel for two lines of time labels.
const TIMES_HEIGHT: f64 = 42.0;
const PANEL_TITLE_HEIGHT: f64 = 26.0;
/// A single panel may be taller than one of several.
const PLOT_HEIGHT_ALONE: f64 = 320.0;
const PLOT_HEIGHT_SHARED: f64 = 190.0;

const TITLE_SIZE: f64 = 18.0;
const LABEL_SIZE: f64 = 12.0;

const INK: Color = Color::rgb(0x22_22_22);
const QUIET: Color = Color::rgb(0x66_66_66);
const GRID: Color = Color::rgb(0xe6_e6_e6);
const HISTORY: Color = Color::rgb(0x33_33_33);

/// Okabe and Ito's palette, in an order in which neighbours differ for every kind of colour
/// vision; a seventh model takes the first colour again.
const MODELS: [Color; 6] = [
    Color::rgb(0x00_72_b2),
    Color::rgb(0xd5_5e_00),
    Color::rgb(0x00_9e_73),
    Color::rgb(0xcc_79_a7),
    Color::rgb(0xe6_9f_00),
    Color::rgb(0x56_b4_e9),
];

/// Opacity of an interval, alone; nested ones add up towards the median.
const SHADE_ALPHA: f32 = 0.18;

/// Lays the whole picture out.
pub(super) fn scene(picture: &Picture, font: &Font) -> Scene {
    let panels = &picture.panels[..picture.panels.len().min(PANELS_MAX)];
    let plot_height = if panels.len() > 1 { PLOT_HEIGHT_SHARED } else { PLOT_HEIGHT_ALONE };
    let panel_height = PANEL_TITLE_HEIGHT + plot_height + TIMES_HEIGHT;
    let height = HEAD_HEIGHT + panel_height * panels.len() as f64 + MARGIN / 2.0;
    let mut scene = Scene::new(WIDTH, height);
    heading(&mut scene, picture, panels.len(), font);
    legend(&mut scene, panels, font);
    for (index, panel) in panels.iter().enumerate() {
        let top = HEAD_HEIGHT + panel_height * index as f64;
        panel_title(&mut scene, panel, top, font);
        let top = top + PANEL_TITLE_HEIGHT;
        let frame = Frame::new(panel, picture.time, (top, top + plot_height), font);
        frame.draw(&mut scene, panel);
    }
    scene
}

fn text(at: Point, anchor: Anchor, size: f64, fill: Color, text: impl Into<String>) -> Shape {
    Shape::Text { at, anchor, size, bold: false, fill, text: text.into() }
}

fn bold(shape: Shape) -> Shape {
    match shape {
        Shape::Text { at, anchor, size, fill, text, .. } => {
            Shape::Text { at, anchor, size, bold: true, fill, text }
        }
        other => other,
    }
}

fn heading(scene: &mut Scene, picture: &Picture, shown: usize, font: &Font) {
    let title = font.fit(&picture.title, TITLE_SIZE, 640.0);
    let at = (MARGIN, MARGIN + 8.0);
    scene.shapes.push(bold(text(at, Anchor::Start, TITLE_SIZE, INK, title)));
    if picture.series_count > shown {
        let note = format!("showing {shown} of {} series", picture.series_count);
        let at = (WIDTH - MARGIN, MARGIN + 8.0);
        scene.shapes.push(text(at, Anchor::End, LABEL_SIZE, QUIET, note));
    }
}

/// What each colour means, once for all panels.
fn legend(scene: &mut Scene, panels: &[Panel], font: &Font) {
    let y = MARGIN + 32.0;
    let mut x = MARGIN;
    let entry = |scene: &mut Scene, x: &mut f64, label: &str, swatch: &dyn Fn(f64) -> Shape| {
        let label = font.fit(label, LABEL_SIZE, 220.0);
        let end = *x + 34.0 + font.width(&label, LABEL_SIZE);
        if end > WIDTH - MARGIN {
            return;
        }
        scene.shapes.push(swatch(*x));
        let at = (*x + 30.0, y + 4.0);
        scene.shapes.push(text(at, Anchor::Start, LABEL_SIZE, INK, label));
        *x = end + 18.0;
    };
    let line = |stroke: Color, width: f64| {
        move |x: f64| Shape::Line { points: vec![(x, y), (x + 24.0, y)], stroke, width, dash: None }
    };
    let block = |fill: Color| {
        move |x: f64| {
            let (top, bottom) = (y - 6.0, y + 6.0);
            let corners = vec![(x, top), (x + 24.0, top), (x + 24.0, bottom), (x, bottom)];
            Shape::Area { corners, fill }
        }
    };
    entry(scene, &mut x, "observed", &line(HISTORY, 1.4));
    for (index, forecast) in panels.first().map_or(&[][..], |p| &p.forecasts).iter().enumerate() {
        let color = MODELS[index % MODELS.len()];
        entry(scene, &mut x, &forecast.model, &line(color, 2.2));
        let levels = levels_widest_first(forecast);
        for (depth, (level, _)) in levels.iter().enumerate().rev() {
            // Nested intervals lie on each other, so the inner one is as dark as all of them.
            let shade = 1.0 - (1.0 - SHADE_ALPHA).powi(depth as i32 + 1);
            entry(scene, &mut x, &format!("{level}% interval"), &block(color.alpha(shade)));
        }
    }
}

fn levels_widest_first(forecast: &Forecast) -> Vec<(f64, usize)> {
    let mut levels: Vec<(f64, usize)> =
        forecast.intervals.iter().enumerate().map(|(index, i)| (i.level, index)).collect();
    levels.sort_by(|a, b| b.0.total_cmp(&a.0));
    levels
}

fn panel_title(scene: &mut Scene, panel: &Panel, top: f64, font: &Font) {
    let y = top + PANEL_TITLE_HEIGHT - 10.0;
    let title = font.fit(&panel.title, 13.0, 560.0);
    scene.shapes.push(bold(text((MARGIN + NUMBERS_WIDTH, y), Anchor::Start, 13.0, INK, title)));
    if panel.history_count > panel.history.len() {
        let note = format!("last {} of {} observations", panel.history.len(), panel.history_count);
        scene.shapes.push(text((WIDTH - MARGIN, y), Anchor::End, LABEL_SIZE, QUIET, note));
    }
}

/// The rectangle of one panel, and how values map into it.
struct Frame {
    top: f64,
    bottom: f64,
    left: f64,
    right: f64,
    times: (i64, i64),
    values: (f64, f64),
    across: Vec<Tick>,
    up: Vec<Tick>,
}

impl Frame {
    fn new(panel: &Panel, time: Time, (top, bottom): (f64, f64), font: &Font) -> Self {
        let times = time_range(panel);
        let values = value_range(panel);
        let (left, right) = (MARGIN + NUMBERS_WIDTH, WIDTH - MARGIN);
        let up = number_ticks(values.0, values.1, ((bottom - top) / 32.0) as usize);
        let count_max = ((right - left) / 80.0) as usize;
        let across = match time {
            Time::Seconds => time_ticks(times.0, times.1, count_max),
            Time::Steps => step_ticks(times, count_max),
        };
        let across = without_overlaps(across, font, (right - left) / span(times));
        Self { top, bottom, left, right, times, values, across, up }
    }

    fn x(&self, time: f64) -> f64 {
        let share = (time - self.times.0 as f64) / span(self.times);
        self.left + share * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.values.0) / (self.values.1 - self.values.0);
        self.bottom - share * (self.bottom - self.top)
    }

    fn point(&self, time: i64, value: f32) -> Point {
        (self.x(time as f64), self.y(f64::from(value)))
    }

    fn draw(&self, scene: &mut Scene, panel: &Panel) {
        self.grid(scene);
        for (index, forecast) in panel.forecasts.iter().enumerate() {
            self.shades(scene, forecast, MODELS[index % MODELS.len()]);
        }
        let last = panel.history.iter().rev().find(|(_, value)| value.is_finite()).copied();
        if let Some((time, _)) = panel.history.last() {
            self.origin(scene, *time);
        }
        self.line(scene, &panel.history, HISTORY, 1.4);
        let forecasts = panel.forecasts.iter().filter(|forecast| !forecast.center.is_empty());
        for (index, forecast) in forecasts.enumerate() {
            let steps = forecast.times.iter().copied().zip(forecast.center.iter().copied());
            // The line starts at the last observation, so that the eye can follow it.
            let points: Vec<(i64, f32)> = last.into_iter().chain(steps).collect();
            self.line(scene, &points, MODELS[index % MODELS.len()], 2.2);
        }
        self.axes(scene);
    }

    fn grid(&self, scene: &mut Scene) {
        for tick in &self.up {
            let y = self.y(tick.value);
            scene.line(vec![(self.left, y), (self.right, y)], GRID, 1.0);
        }
        for tick in &self.across {
            let x = self.x(tick.value);
            scene.line(vec![(x, self.top), (x, self.bottom)], GRID, 1.0);
        }
    }

    /// A dashed line where observation ends and forecast begins.
    fn origin(&self, scene: &mut Scene, time: i64) {
        let x = self.x(time as f64);
        scene.shapes.push(Shape::Line {
            points: vec![(x, self.top), (x, self.bottom)],
            stroke: Color::rgb(0x99_99_99),
            width: 1.0,
            dash: Some(4.0),
        });
    }

    fn axes(&self, scene: &mut Scene) {
        let (left, right, bottom) = (self.left, self.right, self.bottom);
        scene.line(vec![(left, self.top), (left, bottom), (right, bottom)], QUIET, 1.0);
        for tick in &self.up {
            let at = (left - 8.0, self.y(tick.value) + 4.0);
            scene.shapes.push(text(at, Anchor::End, LABEL_SIZE, INK, &tick.label));
        }
        for tick in &self.across {
            let x = self.x(tick.value);
            scene.line(vec![(x, bottom), (x, bottom + 4.0)], QUIET, 1.0);
            let at = (x, bottom + 18.0);
            scene.shapes.push(text(at, Anchor::Middle, LABEL_SIZE, INK, &tick.label));
            if let Some(wider) = &tick.wider {
                let at = (x, bottom + 33.0);
                scene.shapes.push(text(at, Anchor::Middle, LABEL_SIZE - 1.0, QUIET, wider));
            }
        }
    }

    /// A line through the points, broken where a value is missing; a lone point is a dot.
    fn line(&self, scene: &mut Scene, points: &[(i64, f32)], stroke: Color, width: f64) {
        for run in points.split(|(_, value)| !value.is_finite()) {
            let placed: Vec<Point> =
                run.iter().map(|(time, value)| self.point(*time, *value)).collect();
            match placed.as_slice() {
                [] => {}
                [center] => {
                    scene.shapes.push(Shape::Dot { center: *center, radius: width, fill: stroke });
                }
                _ => scene.line(placed, stroke, width),
            }
        }
    }

    fn shades(&self, scene: &mut Scene, forecast: &Forecast, color: Color) {
        for (_, index) in levels_widest_first(forecast) {
            let interval = &forecast.intervals[index];
            let steps: Vec<(i64, f32, f32)> = forecast
                .times
                .iter()
                .zip(interval.low.iter().zip(&interval.high))
                .map(|(time, (low, high))| (*time, *low, *high))
                .collect();
            for run in steps.split(|(_, low, high)| !(low.is_finite() && high.is_finite())) {
                self.shade(scene, run, color.alpha(SHADE_ALPHA));
            }
        }
    }

    fn shade(&self, scene: &mut Scene, run: &[(i64, f32, f32)], fill: Color) {
        let upper = run.iter().map(|(time, _, high)| self.point(*time, *high));
        let lower = run.iter().rev().map(|(time, low, _)| self.point(*time, *low));
        let mut corners: Vec<Point> = upper.chain(lower).collect();
        // A single step has no width of its own; it gets that of a mark.
        if let [high, low] = corners[..] {
            let (left, right) = (high.0 - 3.0, high.0 + 3.0);
            corners = vec![(left, high.1), (right, high.1), (right, low.1), (left, low.1)];
        }
        if !corners.is_empty() {
            scene.shapes.push(Shape::Area { corners, fill });
        }
    }
}

fn span(times: (i64, i64)) -> f64 {
    (times.1 as f64 - times.0 as f64).max(1.0)
}

fn time_range(panel: &Panel) -> (i64, i64) {
    let history = panel.history.iter().map(|(time, _)| *time);
    let future = panel.forecasts.iter().flat_map(|f| f.times.iter().copied());
    let all: Vec<i64> = history.chain(future).collect();
    let low = all.iter().min().copied().unwrap_or(0);
    (low, all.iter().max().copied().unwrap_or(low))
}

/// The range of everything drawn, with some air; never empty.
fn value_range(panel: &Panel) -> (f64, f64) {
    let history = panel.history.iter().map(|(_, value)| *value);
    let future = panel.forecasts.iter().flat_map(|f| {
        let bounds = f.intervals.iter().flat_map(|i| i.low.iter().chain(&i.high));
        f.center.iter().chain(bounds).copied()
    });
    let finite = history.chain(future).filter(|value| value.is_finite()).map(f64::from);
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return (0.0, 1.0);
    }
    // A flat line still needs a scale: a tenth of its height, or one where that is nothing.
    let spread = if high > low { high - low } else { (high.abs() * 0.1).max(1e-6) };
    let spread = if high == 0.0 && low == 0.0 { 1.0 } else { spread };
    (low - spread * 0.05, high + spread * 0.05)
}

fn step_ticks(times: (i64, i64), count_max: usize) -> Vec<Tick> {
    let ticks = number_ticks(times.0 as f64, times.1 as f64, count_max);
    ticks.into_iter().filter(|tick| tick.value.fract() == 0.0).collect()
}

/// Drops a wider unit that would touch the one before it.
fn without_overlaps(mut ticks: Vec<Tick>, font: &Font, pixels_per_unit: f64) -> Vec<Tick> {
    let mut free_from = f64::NEG_INFINITY;
    for tick in &mut ticks {
        let Some(wider) = &tick.wider else { continue };
        let (center, half) = (tick.value * pixels_per_unit, font.width(wider, LABEL_SIZE) / 2.0);
        if center - half < free_from {
            tick.wider = None;
        } else {
            free_from = center + half + 6.0;
        }
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(history: &[f32], center: &[f32], spread: f32) -> Panel {
        let steps = history.len() as i64;
        let interval = |level: f64, spread: f32| super::super::Interval {
            level,
            low: center.iter().map(|v| v - spread).collect(),
            high: center.iter().map(|v| v + spread).collect(),
        };
        Panel {
            title: "a".into(),
            history: history.iter().enumerate().map(|(i, v)| (i as i64, *v)).collect(),
            history_count: history.len(),
            forecasts: vec![Forecast {
                model: "LSTM".into(),
                times: (steps..steps + center.len() as i64).collect(),
                center: center.to_vec(),
                intervals: vec![interval(80.0, spread), interval(90.0, 2.0 * spread)],
            }],
        }
    }

    fn picture(panels: Vec<Panel>) -> Picture {
        let series_count = panels.len();
        Picture { title: "t".into(), time: Time::Steps, panels, series_count }
    }

    fn inside(scene: &Scene) -> bool {
        let fits = |(x, y): &Point| {
            (-0.01..=scene.width + 0.01).contains(x) && (-0.01..=scene.height + 0.01).contains(y)
        };
        scene.shapes.iter().all(|shape| match shape {
            Shape::Area { corners, .. } => corners.iter().all(fits),
            Shape::Line { points, .. } => points.iter().all(fits),
            Shape::Dot { center, .. } => fits(center),
            Shape::Text { at, .. } => fits(at),
        })
    }

    #[test]
    fn everything_lies_inside_the_picture_whatever_the_values() {
        let font = Font::new().unwrap();
        let cases: [(&[f32], &[f32], f32); 9] = [
            (&[1.0, 2.0, 3.0], &[4.0, 5.0], 1.0),
            (&[0.0; 4], &[0.0; 2], 0.0),
            (&[5.0], &[5.0], 0.0),
            (&[f32::NAN; 3], &[f32::NAN; 2], 1.0),
            (&[1.0, f32::NAN, 3.0], &[f32::INFINITY, 1.0], 1.0),
            (&[f32::MAX, f32::MIN], &[0.0], f32::MAX),
            (&[1e-30, 2e-30], &[1e-30], 1e-31),
            (&[1e8, 1e8 + 8.0], &[1e8], 0.0),
            (&[], &[], 0.0),
        ];
        for (history, center, spread) in cases {
            let scene = scene(&picture(vec![panel(history, center, spread)]), &font);
            assert!(inside(&scene), "{history:?} {center:?} {spread}");
        }
    }

    #[test]
    fn series_beyond_the_cap_are_counted_in_the_heading() {
        let font = Font::new().unwrap();
        let panels = vec![panel(&[1.0, 2.0], &[3.0], 1.0); PANELS_MAX + 3];
        let scene = scene(&picture(panels), &font);
        let note = format!("showing {PANELS_MAX} of {} series", PANELS_MAX + 3);
        let says = |shape: &Shape| matches!(shape, Shape::Text { text, .. } if *text == note);
        assert!(scene.shapes.iter().any(says));
    }

    #[test]
    fn a_missing_value_breaks_the_line() {
        let font = Font::new().unwrap();
        let history = [1.0, 2.0, f32::NAN, 4.0, 5.0, f32::NAN, 7.0];
        let scene = scene(&picture(vec![panel(&history, &[], 0.0)]), &font);
        let drawn = |shape: &&Shape| match shape {
            Shape::Line { stroke, points, .. } => *stroke == HISTORY && points.len() == 2,
            Shape::Dot { .. } => true,
            _ => false,
        };
        // The legend's swatch, two pieces of line and one lone dot.
        assert_eq!(scene.shapes.iter().filter(drawn).count(), 4);
    }
}
