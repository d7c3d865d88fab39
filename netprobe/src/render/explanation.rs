//! What a finding means, for eyes.

use std::io::{self, Write};

use super::page::Page;
use crate::report::diagnosis::Explained;

/// Lines are no longer than this.
const WIDTH: usize = 95;

/// Writes the explanation, for a terminal of `width` characters if it is one.
pub fn write(out: &mut dyn Write, explained: &Explained, width: Option<usize>) -> io::Result<()> {
    let out = &mut Page::new(out, width, WIDTH);
    out.wrapped("", &format!("{}: {}", explained.id, explained.title))?;
    let parts = [
        ("What people see", explained.symptom),
        ("How Linux gets there", explained.cause),
        ("How netprobe recognises it", explained.recognised),
    ];
    for (heading, text) in parts {
        writeln!(out, "\n{heading}")?;
        out.wrapped("  ", text)?;
    }
    writeln!(out, "\nWhat helps")?;
    for (text, risk) in explained.fixes {
        out.wrapped("  - ", text)?;
        if *risk != "none" {
            out.wrapped("    risk: ", risk)?;
        }
    }
    Ok(())
}
