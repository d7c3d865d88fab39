//! Text for eyes, in lines that are no longer than the terminal has room for.

use std::io::{self, Write};

use super::text::harmless;

/// Lines that continue another are indented no further.
const LARGEST_INDENT: usize = 11;
/// Terminals that are narrower than this break lines themselves.
const NARROWEST: usize = 20;

/// Where text goes.
pub(super) struct Page<'a> {
    out: &'a mut dyn Write,
    /// Characters of a line, at most.
    width: usize,
}

impl<'a> Page<'a> {
    /// A page whose lines are no longer than `longest`, and fit a terminal of `width` characters if it is one.
    pub(super) fn new(out: &'a mut dyn Write, width: Option<usize>, longest: usize) -> Self {
        // A terminal that does not say how wide it is has none.
        let width = width.filter(|width| *width > 0).unwrap_or(longest);
        let width = width.max(NARROWEST).min(longest);
        Self { out, width }
    }

    /// Writes a text in lines that are not too long; what follows the first is indented like it.
    pub(super) fn wrapped(&mut self, lead: &str, text: &str) -> io::Result<()> {
        let text = harmless(text);
        let mut line = lead.to_owned();
        let indent = " ".repeat(lead.chars().count().min(LARGEST_INDENT));
        let mut is_empty = true;
        for word in text.split(' ') {
            if !is_empty && line.chars().count() + 1 + word.chars().count() > self.width {
                writeln!(self.out, "{}", line.trim_end())?;
                line.clone_from(&indent);
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        writeln!(self.out, "{}", line.trim_end())
    }
}

impl Write for Page<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let lines = |width| {
            let mut out = Vec::new();
            let text = "65 connections were refused by 127.0.0.1:9 in 2 s";
            Page::new(&mut out, width, 30)
                .wrapped("  - ", text)
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        let narrow = "  - 65 connections\n    were refused by\n    127.0.0.1:9 in 2\n    s\n";
        assert_eq!(lines(Some(20)), narrow);
        assert_eq!(lines(Some(5)), narrow);
        for wide in [None, Some(0), Some(31), Some(500)] {
            assert_eq!(lines(wide).lines().count(), 3, "{wide:?}");
        }
    }
}
