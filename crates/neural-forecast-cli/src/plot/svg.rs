//! Writes a scene as an SVG document. The text stays text: viewers can search and scale it.

use super::scene::{Anchor, Color, Point, Scene, Shape};
use std::fmt::Write as _;

const FONTS: &str = "DejaVu Sans, Verdana, Arial, sans-serif";

/// The document. The same scene gives the same bytes.
pub(super) fn document(scene: &Scene) -> String {
    let (width, height) = (number(scene.width), number(scene.height));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{FONTS}\">\n"
    );
    for shape in &scene.shapes {
        out.push_str(&element(shape));
        out.push('\n');
    }
    out.push_str("</svg>\n");
    out
}

fn element(shape: &Shape) -> String {
    match shape {
        Shape::Area { corners, fill } => {
            format!("<polygon points=\"{}\" {}/>", list(corners), paint("fill", *fill))
        }
        Shape::Line { points, stroke, width, dash } => {
            let dashes =
                dash.map_or(String::new(), |d| format!(" stroke-dasharray=\"{0} {0}\"", number(d)));
            format!(
                "<polyline points=\"{}\" fill=\"none\" {} stroke-width=\"{}\" \
                 stroke-linejoin=\"round\"{dashes}/>",
                list(points),
                paint("stroke", *stroke),
                number(*width)
            )
        }
        Shape::Dot { center: (x, y), radius, fill } => format!(
            "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" {}/>",
            number(*x),
            number(*y),
            number(*radius),
            paint("fill", *fill)
        ),
        Shape::Text { at: (x, y), anchor, size, bold, fill, text } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            format!(
                "<text x=\"{}\" y=\"{}\" font-size=\"{}\" text-anchor=\"{anchor}\"{} {}>{}</text>",
                number(*x),
                number(*y),
                number(*size),
                if *bold { " font-weight=\"bold\"" } else { "" },
                paint("fill", *fill),
                escape(text)
            )
        }
    }
}

fn paint(kind: &str, color: Color) -> String {
    let mut out = format!("{kind}=\"#{:02x}{:02x}{:02x}\"", color.red, color.green, color.blue);
    if color.alpha < 1.0 {
        let _ = write!(out, " {kind}-opacity=\"{}\"", number(f64::from(color.alpha)));
    }
    out
}

fn list(points: &[Point]) -> String {
    let pairs: Vec<String> =
        points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
    pairs.join(" ")
}

/// Hundredths of a pixel, without the zeros at the end.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0".into() } else { short.into() }
}

/// Characters that XML gives a meaning are escaped, those it forbids are replaced.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_break_the_document() {
        assert_eq!(escape("a<b> & \"c\"\u{0}\n"), "a&lt;b&gt; &amp; &quot;c&quot;\u{fffd}\u{fffd}");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(1.0, "1"), (0.125, "0.12"), (-0.001, "0"), (12.30, "12.3"), (100.0, "100")];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }
}
