//! What a finding means, for eyes.

use std::io::{self, Write};

use crate::report::diagnosis::Explained;

/// Lines are no longer than this.
const WIDTH: usize = 96;

/// Writes the explanation.
pub fn write(out: &mut dyn Write, explained: &Explained) -> io::Result<()> {
    writeln!(out, "{}: {}", explained.id, explained.title)?;
    let parts = [
        ("What people see", explained.symptom),
        ("How Linux gets there", explained.cause),
        ("How netprobe recognises it", explained.recognised),
    ];
    for (heading, text) in parts {
        writeln!(out, "\n{heading}")?;
        paragraph(out, "  ", text)?;
    }
    writeln!(out, "\nWhat helps")?;
    for (text, risk) in explained.fixes {
        paragraph(out, "  - ", text)?;
        if *risk != "none" {
            paragraph(out, "    risk: ", risk)?;
        }
    }
    Ok(())
}

fn paragraph(out: &mut dyn Write, lead: &str, text: &str) -> io::Result<()> {
    let indent = " ".repeat(lead.len());
    let mut line = lead.to_owned();
    for word in text.split_ascii_whitespace() {
        if line.len() + word.len() >= WIDTH && line.len() > indent.len() {
            writeln!(out, "{}", line.trim_end())?;
            line.clone_from(&indent);
        }
        line.push_str(word);
        line.push(' ');
    }
    writeln!(out, "{}", line.trim_end())
}
