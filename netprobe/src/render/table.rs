//! Events as aligned lines, for eyes. A value wider than its column pushes the line rather than
//! being cut: a truncated address misleads.

use std::io::{self, Write};

use super::text;
use crate::report::{Align, Column, Layout, Row, Shown, Value};

/// Writes a table, line by line.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(usize, &'static Column)>,
    stack: Option<usize>,
    cell: String,
    line: String,
}

/// Terminals at least this wide get the wide columns.
const WIDE: usize = 160;

impl Table {
    /// A table for a terminal of `width` characters; `None` when it is not one.
    pub fn new(layout: Layout, width: Option<usize>) -> Self {
        let is_wide = width.is_some_and(|width| width >= WIDE);
        let columns = layout
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| match column.shown {
                Shown::Always => true,
                Shown::Wide => is_wide,
                Shown::Never => false,
            })
            .collect();
        Self {
            columns,
            stack: None,
            cell: String::new(),
            line: String::new(),
        }
    }

    /// Writes the stack of each event below it.
    pub fn show_stacks(&mut self, layout: Layout, wanted: bool) {
        let position = layout
            .columns
            .iter()
            .position(|column| column.name == "stack");
        self.stack = position.filter(|_| wanted);
    }

    /// Writes the headings.
    pub fn heading(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.line.clear();
        self.line.push_str("TIME            ");
        for (_, column) in &self.columns {
            pad(&mut self.line, column.title, column);
        }
        self.flush(out)
    }

    /// Writes an event; `time` is its time of day.
    pub fn row(&mut self, out: &mut dyn Write, row: &Row, time: &str) -> io::Result<()> {
        self.line.clear();
        self.line.push_str(time);
        self.line.push(' ');
        for (index, column) in &self.columns {
            self.cell.clear();
            text::push(&mut self.cell, &row.values[*index]);
            pad(&mut self.line, &self.cell, column);
        }
        self.flush(out)?;
        if let Some(Value::Stack(frames)) = self.stack.map(|index| &row.values[index]) {
            for frame in frames.iter() {
                self.cell.clear();
                text::push(&mut self.cell, &Value::Text(frame.clone()));
                writeln!(out, "\t{}", self.cell)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.line.trim_end())
    }
}

fn pad(line: &mut String, cell: &str, column: &Column) {
    let fill = column.width.saturating_sub(cell.chars().count());
    let spaces = std::iter::repeat_n(' ', fill);
    match column.align {
        Align::Left => {
            line.push_str(cell);
            line.extend(spaces);
        }
        Align::Right => {
            line.extend(spaces);
            line.push_str(cell);
        }
    }
    line.push(' ');
}
