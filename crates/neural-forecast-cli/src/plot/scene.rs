//! What a picture is made of: rectangles, lines, areas and texts at fixed places.
//!
//! Knows nothing of series or axes, and nothing of file formats: `svg` and `png` write a scene.

/// An opaque or see-through colour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Color {
    pub(super) red: u8,
    pub(super) green: u8,
    pub(super) blue: u8,
    /// 0 is invisible, 1 is opaque.
    pub(super) alpha: f32,
}

impl Color {
    /// From `0xRRGGBB`.
    pub(super) const fn rgb(hex: u32) -> Self {
        let [_, red, green, blue] = hex.to_be_bytes();
        Self { red, green, blue, alpha: 1.0 }
    }

    pub(super) const fn alpha(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }
}

/// A point in pixels, from the top left corner.
pub(super) type Point = (f64, f64);

/// Which end of a text stands at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// One thing to draw.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// A closed area.
    Area { corners: Vec<Point>, fill: Color },
    /// A line through points; `dash` is the length of a dash and of a gap.
    Line { points: Vec<Point>, stroke: Color, width: f64, dash: Option<f64> },
    /// A disc.
    Dot { center: Point, radius: f64, fill: Color },
    /// One line of text on its baseline.
    Text { at: Point, anchor: Anchor, size: f64, bold: bool, fill: Color, text: String },
}

/// A picture: its size in pixels and its shapes, the later ones on top.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) shapes: Vec<Shape>,
}

impl Scene {
    /// An empty white picture.
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut scene = Self { width, height, shapes: Vec::new() };
        scene.rect((0.0, 0.0), (width, height), Color::rgb(0xff_ff_ff));
        scene
    }

    pub(super) fn rect(&mut self, (left, top): Point, (width, height): Point, fill: Color) {
        let (right, bottom) = (left + width, top + height);
        let corners = vec![(left, top), (right, top), (right, bottom), (left, bottom)];
        self.shapes.push(Shape::Area { corners, fill });
    }

    pub(super) fn line(&mut self, points: Vec<Point>, stroke: Color, width: f64) {
        self.shapes.push(Shape::Line { points, stroke, width, dash: None });
    }
}
