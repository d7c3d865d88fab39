//! Events as aligned lines, for eyes. A value wider than its column pushes the line rather than
//! being cut: a truncated address misleads.

use std::io::{self, Write};

use super::{duration, format::Format, text, time::Clock};
use crate::report::{Align, Column, Layout, Row, Shown, Value};

/// Writes a table, line by line.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(usize, &'static Column)>,
    stack: Option<usize>,
    clock: Clock,
    cell: String,
    line: String,
}

/// The columns that a terminal of `width` characters has room for, by position; `None` when it is
/// not one. Those that are always shown, and of the others as many as fit.
pub fn fitting(layout: Layout, width: Option<usize>, clock: &Clock) -> Vec<usize> {
    let width_of = |shown: Shown| {
        let columns = layout.columns.iter();
        let columns = columns.filter(move |column| column.shown == shown);
        columns.map(|column| column.width + 1)
    };
    let always: usize = width_of(Shown::Always).sum();
    let mut left = width
        .unwrap_or(0)
        .saturating_sub(clock.style().width() + 1 + always);
    let mut fits = |column: &Column| {
        let rest = left.checked_sub(column.width + 1);
        // The first that does not fit ends it, so that columns do not come and go at random.
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let columns = layout.columns.iter().enumerate();
    columns
        .filter(|(_, column)| match column.shown {
            Shown::Always => true,
            Shown::Wide => fits(column),
            Shown::Never => false,
        })
        .map(|(index, _)| index)
        .collect()
}

impl Table {
    /// A table of these columns of a layout, by position.
    pub fn new(layout: Layout, columns: &[usize], clock: Clock) -> Self {
        let column = |index: &usize| (*index, &layout.columns[*index]);
        Self {
            columns: columns.iter().map(column).collect(),
            stack: None,
            clock,
            cell: String::new(),
            line: String::new(),
        }
    }

    /// Writes the stack of each event below it.
    #[must_use]
    pub fn with_stacks(self, layout: Layout) -> Self {
        let position = layout
            .columns
            .iter()
            .position(|column| column.name == "stack");
        Self {
            stack: position,
            ..self
        }
    }

    fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.line.trim_end())
    }
}

impl Format for Table {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.line.clear();
        let width = self.clock.style().width();
        let padding = width.saturating_sub(4) + 1;
        self.line.push_str("TIME");
        self.line.extend(std::iter::repeat_n(' ', padding));
        for (_, column) in &self.columns {
            pad(&mut self.line, column.title, column);
        }
        self.flush(out)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        self.line.clear();
        self.line.push_str(self.clock.format(row));
        self.line.push(' ');
        for (index, column) in &self.columns {
            self.cell.clear();
            match (&row.values[*index], duration::unit_ns(column.name)) {
                (Value::Unsigned(number), Some(unit_ns)) => {
                    duration::push(&mut self.cell, number.saturating_mul(unit_ns));
                }
                (value, _) => text::push(&mut self.cell, value),
            }
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
