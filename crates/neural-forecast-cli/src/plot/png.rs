//! Paints a scene into pixels and packs them as a PNG file, without any system font.

use super::font::Font;
use super::scene::{Anchor, Color, Point, Scene, Shape};
use tiny_skia::{
    FillRule, LineJoin, Paint, Path, PathBuilder, Pixmap, Stroke, StrokeDash, Transform,
};
use ttf_parser::OutlineBuilder;

/// Pixels of the file per pixel of the scene, so that the picture is sharp on dense screens.
const PIXELS_PER_UNIT: f32 = 2.0;

/// How far `bold` thickens an outline, as a share of the font size.
const BOLD_STROKE: f64 = 0.04;

/// The file's bytes; the same scene gives the same bytes.
///
/// # Errors
/// When the picture has no pixels, or the encoder refuses.
pub(super) fn file(scene: &Scene, font: &Font) -> Result<Vec<u8>, String> {
    let pixels = |length: f64| (length * f64::from(PIXELS_PER_UNIT)).round() as u32;
    let (width, height) = (pixels(scene.width), pixels(scene.height));
    let mut canvas = Pixmap::new(width, height)
        .ok_or_else(|| format!("a picture of {width}×{height} pixels cannot be painted"))?;
    for shape in &scene.shapes {
        paint(&mut canvas, shape, font);
    }
    encode(&canvas)
}

fn encode(canvas: &Pixmap) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, canvas.width(), canvas.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // The background is opaque, so the colours need no division by their alpha.
    let opaque: Vec<u8> =
        canvas.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    let mut writer = encoder.write_header().map_err(|e| format!("png: {e}"))?;
    writer.write_image_data(&opaque).map_err(|e| format!("png: {e}"))?;
    writer.finish().map_err(|e| format!("png: {e}"))?;
    Ok(bytes)
}

fn paint(canvas: &mut Pixmap, shape: &Shape, font: &Font) {
    let scaled = Transform::from_scale(PIXELS_PER_UNIT, PIXELS_PER_UNIT);
    match shape {
        Shape::Area { corners, fill } => {
            if let Some(path) = polygon(corners, true) {
                canvas.fill_path(&path, &ink(*fill), FillRule::Winding, scaled, None);
            }
        }
        Shape::Line { points, stroke, width, dash } => {
            let dash = dash.and_then(|d| StrokeDash::new(vec![d as f32, d as f32], 0.0));
            let line_join = LineJoin::Round;
            let style = Stroke { width: *width as f32, dash, line_join, ..Stroke::default() };
            if let Some(path) = polygon(points, false) {
                canvas.stroke_path(&path, &ink(*stroke), &style, scaled, None);
            }
        }
        Shape::Dot { center: (x, y), radius, fill } => {
            if let Some(path) = PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32) {
                canvas.fill_path(&path, &ink(*fill), FillRule::Winding, scaled, None);
            }
        }
        Shape::Text { at, anchor, size, bold, fill, text } => {
            let Some(path) = text_outline(font, text, *at, *anchor, *size) else { return };
            canvas.fill_path(&path, &ink(*fill), FillRule::Winding, scaled, None);
            if *bold {
                let style = Stroke { width: (size * BOLD_STROKE) as f32, ..Stroke::default() };
                canvas.stroke_path(&path, &ink(*fill), &style, scaled, None);
            }
        }
    }
}

fn ink(color: Color) -> Paint<'static> {
    let mut paint = Paint::default();
    let alpha = (color.alpha.clamp(0.0, 1.0) * 255.0).round() as u8;
    paint.set_color_rgba8(color.red, color.green, color.blue, alpha);
    paint.anti_alias = true;
    paint
}

fn polygon(points: &[Point], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (index, &(x, y)) in points.iter().enumerate() {
        match index {
            0 => path.move_to(x as f32, y as f32),
            _ => path.line_to(x as f32, y as f32),
        }
    }
    if closed {
        path.close();
    }
    path.finish()
}

fn text_outline(font: &Font, text: &str, at: Point, anchor: Anchor, size: f64) -> Option<Path> {
    let width = font.width(text, size);
    let left = match anchor {
        Anchor::Start => at.0,
        Anchor::Middle => at.0 - width / 2.0,
        Anchor::End => at.0 - width,
    };
    let scale = font.scale(size);
    let mut outline = Outline { path: PathBuilder::new(), origin: at, scale };
    font.layout(text, size, |glyph, x| {
        outline.origin = (left + x, at.1);
        font.outline(glyph, &mut outline);
    });
    outline.path.finish()
}

/// Turns font units (`y` upwards) into pixels (`y` downwards).
struct Outline {
    path: PathBuilder,
    origin: Point,
    scale: f64,
}

impl Outline {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        let right = self.origin.0 + f64::from(x) * self.scale;
        let down = self.origin.1 - f64::from(y) * self.scale;
        (right as f32, down as f32)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
