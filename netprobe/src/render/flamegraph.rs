//! A flame graph as SVG, drawn by inferno.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use inferno::flamegraph::{
    self, Direction, Options, TextTruncateDirection,
    color::{BasicPalette, Color, MultiPalette, Palette as Colours, PaletteMap},
};

use super::{folded, layers, origins, text};
use crate::report::{Flame, Palette};

/// How a graph looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// The root is at the top.
    pub is_inverted: bool,
    /// The colours.
    pub palette: Palette,
}

/// Draws the graph; of nothing a picture that says so.
pub fn write(out: &mut dyn Write, flame: &Flame, style: Style) -> Result<()> {
    if flame.stacks.is_empty() {
        let caption = Caption {
            title: &flame.title,
            subtitle: &flame.subtitle,
            unit: flame.unit,
        };
        return write_nothing(out, caption, "nothing was seen");
    }
    let lines: Vec<String> = flame.stacks.iter().map(folded::line).collect();
    let mut colours = match style.palette {
        Palette::Tcp => colours(&lines, |frame| Some(layers::colour(frame))),
        Palette::Java => colours(&lines, origins::colour),
        _ => PaletteMap::default(),
    };
    let mut options = options(&flame.title, &flame.subtitle, flame.unit, style);
    options.palette_map = Some(&mut colours);
    lines_to(out, &mut options, &lines, style)
}

/// The colours that some frames of folded stacks have; inferno chooses those of others.
fn colours(lines: &[String], colour: impl Fn(&str) -> Option<Color>) -> PaletteMap {
    let mut colours = PaletteMap::default();
    for line in lines {
        let stack = line.rsplit_once(' ').map_or(&**line, |(stack, _)| stack);
        for frame in stack.split(';') {
            if colours.get(frame).is_none()
                && let Some(colour) = colour(frame)
            {
                colours.insert(frame, colour);
            }
        }
    }
    colours
}

/// Draws a picture without frames, that says `why`.
pub fn write_nothing(out: &mut dyn Write, caption: Caption<'_>, why: &str) -> Result<()> {
    let [title, subtitle, unit] = [caption.title, caption.subtitle, caption.unit].map(escaped);
    writeln!(
        out,
        "<?xml version=\"1.0\" standalone=\"no\"?>\n\
         <svg version=\"1.1\" width=\"1200\" height=\"100\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#f8f8f8\"/>\n\
         <g font-family=\"monospace\" font-size=\"12\" text-anchor=\"middle\">\n\
         <text x=\"600\" y=\"24\" font-size=\"17\">{title}</text>\n\
         <text x=\"600\" y=\"48\">{subtitle}</text>\n\
         <text x=\"600\" y=\"76\">no {unit}: {why}</text>\n\
         </g>\n</svg>"
    )
    .context("draw the flame graph")
}

/// Text for XML.
fn escaped(text: &str) -> String {
    let text = text::visible(text).replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

/// What stands above a graph and in it.
#[derive(Clone, Copy, Debug)]
pub struct Caption<'a> {
    /// In large letters.
    pub title: &'a str,
    /// Below it.
    pub subtitle: &'a str,
    /// What the widths are.
    pub unit: &'a str,
}

/// Draws the difference of two profiles, given as lines with two weights.
pub fn write_difference(
    out: &mut dyn Write,
    caption: Caption<'_>,
    lines: &[String],
    style: Style,
) -> Result<()> {
    if lines.is_empty() {
        bail!("both profiles are empty, so there is nothing to draw");
    }
    let mut options = options(caption.title, caption.subtitle, caption.unit, style);
    lines_to(out, &mut options, lines, style)
}

fn lines_to(
    out: &mut dyn Write,
    options: &mut Options<'_>,
    lines: &[String],
    style: Style,
) -> Result<()> {
    let lines = lines.iter().map(String::as_str);
    if style.palette != Palette::Tcp {
        return flamegraph::from_lines(options, lines, out).context("draw the flame graph");
    }
    let mut svg = Vec::new();
    flamegraph::from_lines(options, lines, &mut svg).context("draw the flame graph")?;
    with_legend(out, &svg).context("draw the legend")
}

fn options<'a>(title: &str, subtitle: &str, unit: &str, style: Style) -> Options<'a> {
    let mut options = Options::default();
    options.title = text::visible(title);
    options.subtitle = Some(text::visible(subtitle));
    options.count_name = text::visible(unit);
    options.hash = true;
    // As flamegraph.pl does: the end of a name says less than its beginning.
    options.text_truncate_direction = TextTruncateDirection::Right;
    options.colors = match style.palette {
        Palette::Hot | Palette::Tcp => Colours::Basic(BasicPalette::Hot),
        Palette::Mem => Colours::Basic(BasicPalette::Mem),
        Palette::Red => Colours::Basic(BasicPalette::Red),
        Palette::Aqua => Colours::Basic(BasicPalette::Aqua),
        Palette::Java => Colours::Multi(MultiPalette::Java),
        Palette::Io => Colours::Basic(BasicPalette::Io),
    };
    if style.is_inverted {
        options.direction = Direction::Inverted;
    }
    options
}

/// Adds the legend of the layers at the end of a finished picture.
fn with_legend(out: &mut dyn Write, svg: &[u8]) -> io::Result<()> {
    let end = b"</svg>";
    // The outermost element is the last to be closed.
    let at = svg
        .windows(end.len())
        .rposition(|window| window == end)
        .unwrap_or(svg.len());
    // A picture that is drawn inside of another closes twice; the legend goes inside.
    out.write_all(&svg[..at])?;
    out.write_all(layers::legend().as_bytes())?;
    out.write_all(&svg[at..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Folded, Profile};
    use std::{sync::Arc, time::Duration};

    #[test]
    fn of_nothing_there_is_a_picture_that_says_so() {
        let flame = Flame {
            title: "drops of <a> & b".to_owned(),
            subtitle: "host".to_owned(),
            unit: "packets",
            palette: Palette::Hot,
            profile: Profile {
                name: "drops",
                unit: "count",
                elapsed: Duration::ZERO,
                unix_ns: 0,
                period_ns: 0,
            },
            stacks: Vec::new(),
        };
        let mut svg = Vec::new();
        write(&mut svg, &flame, Style::default()).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        assert!(svg.contains("drops of &lt;a&gt; &amp; b"), "{svg}");
        assert!(svg.contains("no packets: nothing was seen"), "{svg}");
        assert!(svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn captions_have_no_control_characters() {
        let bad = "a\u{1b}[31m\u{1}\u{ffff}";
        let caption = Caption {
            title: bad,
            subtitle: bad,
            unit: bad,
        };
        let style = Style::default();
        let mut svg = Vec::new();
        write_nothing(&mut svg, caption, "nothing was seen").unwrap();
        write_difference(&mut svg, caption, &["a 1 2".to_owned()], style).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        let shown = svg.matches("a\\u{1b}[31m\\u{1}\\u{ffff}").count();
        assert!(shown >= 6, "{svg}");
        let is_bad = |letter: char| letter.is_control() && letter != '\n' || letter == '\u{ffff}';
        assert!(!svg.contains(is_bad), "{svg}");
    }

    #[test]
    fn threads_with_numbers_are_drawn_each_and_not_as_a_difference() {
        let stacks = (3..6).map(|number| Folded {
            frames: vec![Arc::from(format!("worker {number}"))],
            weight: 20,
        });
        let flame = Flame {
            title: String::new(),
            subtitle: String::new(),
            unit: "samples",
            palette: Palette::Hot,
            profile: Profile {
                name: "samples",
                unit: "count",
                elapsed: Duration::ZERO,
                unix_ns: 0,
                period_ns: 0,
            },
            stacks: stacks.collect(),
        };
        let mut svg = Vec::new();
        write(&mut svg, &flame, Style::default()).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        for number in 3..6 {
            let title = format!("worker_{number} (20 samples, 33.33%)");
            assert!(svg.contains(&title), "{svg}");
        }
    }
}
