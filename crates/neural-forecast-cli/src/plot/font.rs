//! The one typeface of the pictures, carried in the binary so that none need be installed.
//!
//! Measures text for the layout and gives outlines to the PNG writer. No kerning, no shaping.

use ttf_parser::{Face, GlyphId, OutlineBuilder};

/// DejaVu Sans, cut down by `fonts/subset.sh`; its licence is `fonts/LICENSE`.
static BYTES: &[u8] = include_bytes!("../../fonts/DejaVuSans-subset.ttf");

/// The typeface, ready to measure and to outline.
pub(super) struct Font {
    face: Face<'static>,
}

impl Font {
    /// Reads the typeface in the binary; `None` would mean a broken build and is tested for.
    pub(super) fn new() -> Option<Self> {
        Face::parse(BYTES, 0).ok().map(|face| Self { face })
    }

    /// Width of `text` in pixels at a font size in pixels.
    pub(super) fn width(&self, text: &str, size: f64) -> f64 {
        let units: u64 = text.chars().map(|c| u64::from(self.advance(self.glyph(c)))).sum();
        units as f64 * self.scale(size)
    }

    /// `text`, shortened with an ellipsis where it is wider than `width` pixels.
    pub(super) fn fit(&self, text: &str, size: f64, width: f64) -> String {
        if self.width(text, size) <= width {
            return text.into();
        }
        let mut kept: Vec<char> = text.chars().collect();
        loop {
            let shown: String = kept.iter().chain(&['…']).collect();
            if kept.is_empty() || self.width(&shown, size) <= width {
                return shown;
            }
            kept.pop();
        }
    }

    /// Calls `place` for each character: where it starts (pixels from the start of the text).
    pub(super) fn layout(&self, text: &str, size: f64, mut place: impl FnMut(GlyphId, f64)) {
        let mut x = 0.0;
        for c in text.chars() {
            let glyph = self.glyph(c);
            place(glyph, x);
            x += f64::from(self.advance(glyph)) * self.scale(size);
        }
    }

    /// Draws the outline of a character in font units, `y` upwards.
    pub(super) fn outline(&self, glyph: GlyphId, builder: &mut dyn OutlineBuilder) {
        self.face.outline_glyph(glyph, builder);
    }

    /// Pixels per font unit.
    pub(super) fn scale(&self, size: f64) -> f64 {
        size / f64::from(self.face.units_per_em())
    }

    /// A character outside of the typeface shows as the box of glyph 0.
    fn glyph(&self, c: char) -> GlyphId {
        self.face.glyph_index(c).unwrap_or(GlyphId(0))
    }

    fn advance(&self, glyph: GlyphId) -> u16 {
        self.face.glyph_hor_advance(glyph).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_typeface_in_the_binary_is_sound() {
        let font = Font::new().unwrap();
        assert!(font.width("W", 10.0) > font.width("i", 10.0));
        assert!(font.width("0", 20.0) > 0.0);
        for c in "Aa0…−µéЖΩ·–".chars() {
            assert_ne!(font.glyph(c), GlyphId(0), "`{c}` is missing");
        }
    }

    #[test]
    fn long_texts_are_shortened() {
        let font = Font::new().unwrap();
        assert_eq!(font.fit("short", 10.0, 500.0), "short");
        let fitted = font.fit(&"long ".repeat(100), 10.0, 60.0);
        assert!(fitted.ends_with('…') && font.width(&fitted, 10.0) <= 60.0);
        assert_eq!(font.fit("anything", 10.0, 0.0), "…");
    }
}
