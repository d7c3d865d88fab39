//! Events as comma-separated values (RFC 4180): one line of column names, then one per event.
//!
//! The last column is empty, but in the last line where the file lacks events: that has their number there, and nothing else.

use std::io::{self, Write};

use super::{format::Format, text, time::Clock};
use crate::report::{Column, Layout, Row, Summary, Value};

/// Writes CSV, line by line.
#[derive(Debug)]
pub struct Csv {
    columns: Vec<(usize, &'static Column)>,
    clock: Clock,
    cell: String,
    line: String,
}

impl Csv {
    /// With these columns of a layout, by position.
    pub fn new(layout: Layout, columns: &[usize], clock: Clock) -> Self {
        let column = |index: &usize| (*index, &layout.columns[*index]);
        Self {
            columns: columns.iter().map(column).collect(),
            clock,
            cell: String::new(),
            line: String::new(),
        }
    }
}

impl Format for Csv {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.line.clear();
        self.line.push_str("time");
        for (_, column) in &self.columns {
            self.line.push(',');
            self.line.push_str(column.name);
        }
        writeln!(out, "{},not_shown", self.line)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        self.line.clear();
        self.line.push_str(self.clock.format(row).trim_start());
        for (index, _) in &self.columns {
            self.line.push(',');
            let value = &row.values[*index];
            // An unknown value is an empty field, so that numbers stay numbers.
            if *value != Value::Unknown {
                self.cell.clear();
                text::push(&mut self.cell, value);
                push_quoted(&mut self.line, &self.cell);
            }
        }
        writeln!(out, "{},", self.line)
    }

    fn end(&mut self, out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
        match summary.not_shown() {
            0 => Ok(()),
            count => writeln!(out, "{},{count}", ",".repeat(self.columns.len())),
        }
    }
}

/// Quotes what would split a line or a field. What a spreadsheet would take for a formula, and
/// anybody may name a task so, gets an apostrophe before it.
fn push_quoted(line: &mut String, cell: &str) {
    let is_formula = cell.starts_with(['=', '+', '@', '\t']);
    if !is_formula && !cell.contains([',', '"', '\n', '\r']) {
        line.push_str(cell);
        return;
    }
    line.push('"');
    if is_formula {
        line.push('\'');
    }
    line.push_str(&cell.replace('"', "\"\""));
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{render::time::Style, report::lacking};

    #[test]
    fn what_is_missing_is_a_last_line_with_as_many_fields() {
        const LAYOUT: Layout = Layout {
            kind: "sample",
            columns: &[
                Column::text("comm", "COMM", 9, ""),
                Column::number("dport", "RPORT", 5, ""),
            ],
        };
        let written = |events| {
            let mut csv = Csv::new(LAYOUT, &[0, 1], Clock::new(Style::Monotonic));
            let row = Row {
                values: vec![Value::Word("nginx"), Value::Unsigned(443)],
                ..Row::default()
            };
            let mut out = Vec::new();
            csv.begin(&mut out).unwrap();
            csv.row(&mut out, &row).unwrap();
            csv.end(&mut out, &lacking(events)).unwrap();
            String::from_utf8(out).unwrap()
        };
        let all = "time,comm,dport,not_shown\n0.000000,nginx,443,\n";
        assert_eq!(written(0), all);
        assert_eq!(written(656_409), format!("{all},,,656409\n"));
    }

    #[test]
    fn fields_stay_fields() {
        for (cell, expected) in [
            ("nginx", "nginx"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=cmd|x", "\"'=cmd|x\""),
            ("-5", "-5"),
        ] {
            let mut line = String::new();
            push_quoted(&mut line, cell);
            assert_eq!(line, expected);
        }
    }
}
