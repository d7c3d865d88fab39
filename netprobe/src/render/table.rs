//! Events as aligned lines, for eyes. A value wider than its column pushes the line rather than
//! being cut: a truncated address misleads. The columns of addresses are those of IPv4, until one comes that
//! needs more room; then all of them get it, and a heading of their own.

use std::{
    io::{self, Write},
    net::IpAddr,
};

use super::{duration, format::Format, text, time::Clock};
use crate::report::{Align, Column, Layout, Row, Shown, Summary, Value};

/// Writes a table, line by line.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(usize, &'static Column)>,
    /// What the columns of addresses have more than IPv4 needs.
    more: usize,
    stack: Option<usize>,
    clock: Clock,
    cell: String,
    line: String,
}

/// Characters of addresses: of IPv4, most of IPv6, and all.
const NARROW: usize = 15;
const WIDER: usize = 26;
const WIDEST: usize = 39;

/// The columns that a terminal of `width` characters has room for, by position; `None` when it is
/// not one. Those that are always shown, `needed` ones, and of the others as many as fit.
pub fn fitting(layout: Layout, width: Option<usize>, clock: &Clock, needed: &[&str]) -> Vec<usize> {
    let is_needed = |column: &Column| {
        let is_wanted = column.shown == Shown::Wide && needed.contains(&column.name);
        column.shown == Shown::Always || is_wanted
    };
    let columns = layout.columns.iter();
    let always: usize = columns
        .filter(|column| is_needed(column))
        .map(|column| column.width + 1)
        .sum();
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
        .filter(|(_, column)| is_needed(column) || column.shown == Shown::Wide && fits(column))
        .map(|(index, _)| index)
        .collect()
}

impl Table {
    /// A table of these columns of a layout, by position.
    pub fn new(layout: Layout, columns: &[usize], clock: Clock) -> Self {
        let column = |index: &usize| (*index, &layout.columns[*index]);
        Self {
            columns: columns.iter().map(column).collect(),
            more: 0,
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

    /// What the addresses of `row` need more than those of IPv4.
    fn needed(&self, row: &Row) -> usize {
        let addresses = self.columns.iter().map(|(index, _)| &row.values[*index]);
        let longest = addresses.filter_map(|value| match value {
            Value::Ip(address @ IpAddr::V6(_)) => {
                Some(text::Short::address(*address).as_str().len())
            }
            _ => None,
        });
        let longest = longest.max().unwrap_or(0);
        let fits = |width: &usize| longest <= *width;
        let width = [NARROW, WIDER].into_iter().find(fits);
        width.unwrap_or(WIDEST) - NARROW
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
            pad(&mut self.line, column.title, column, self.more);
        }
        self.flush(out)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        let more = self.needed(row);
        if more > self.more {
            self.more = more;
            self.begin(out)?;
        }
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
            pad(&mut self.line, &self.cell, column, self.more);
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

    /// Who reads a table in a file has not seen what stood on standard error.
    fn end(&mut self, out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
        match summary.not_shown() {
            0 => Ok(()),
            count => writeln!(
                out,
                "... {count} more events are not shown: lost, or left out to keep to --max-overhead"
            ),
        }
    }
}

fn pad(line: &mut String, cell: &str, column: &Column, more: usize) {
    let width = column.width + if column.is_address() { more } else { 0 };
    let fill = width.saturating_sub(cell.chars().count());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{render::time::Style, report::lacking};

    const LAYOUT: Layout = Layout {
        kind: "sample",
        columns: &[
            Column::text("daddr", "RADDR", NARROW, ""),
            Column::number("dport", "RPORT", 5, ""),
            Column::text("iface", "IFACE", 10, "").wide(),
            Column::number("netns", "NETNS", 10, "").wide(),
        ],
    };

    #[test]
    fn what_is_needed_is_shown_however_narrow_and_takes_its_room() {
        let clock = Clock::new(Style::OfDay);
        let of = |width, needed: &[&str]| fitting(LAYOUT, width, &clock, needed);
        assert_eq!(of(None, &[]), [0, 1]);
        assert_eq!(of(None, &["netns", "dport", "none"]), [0, 1, 3]);
        assert_eq!(of(Some(52), &[]), [0, 1, 2]);
        assert_eq!(of(Some(52), &["netns"]), [0, 1, 3]);
        assert_eq!(of(Some(63), &["netns"]), [0, 1, 2, 3]);
    }

    #[test]
    fn a_table_without_all_events_says_so() {
        let end = |events| {
            let mut table = Table::new(LAYOUT, &[0, 1], Clock::new(Style::OfDay));
            let mut out = Vec::new();
            table.end(&mut out, &lacking(events)).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(end(0), "");
        assert!(end(42).starts_with("... 42 more events are not shown"));
    }

    #[test]
    fn columns_stand_below_their_heading_whatever_the_family() {
        let mut table = Table::new(LAYOUT, &[0, 1], Clock::new(Style::OfDay));
        let mut out = Vec::new();
        table.begin(&mut out).unwrap();
        for address in [
            "10.0.0.1",
            "::1",
            "2001:db8::1:2:3:4",
            "10.0.0.2",
            "fd71:1:1111:2222:3333:4444:5555:1",
            "::2",
        ] {
            let values = [Value::Ip(address.parse().unwrap()), Value::Unsigned(443)];
            let row = Row {
                values: values.to_vec(),
                ..Row::default()
            };
            table.row(&mut out, &row).unwrap();
        }
        let out = String::from_utf8(out).unwrap();
        let ends: Vec<usize> = out.lines().map(str::len).collect();
        assert_eq!(ends[..3], [37; 3], "{out}");
        assert_eq!(ends[3..6], [48; 3], "{out}");
        assert_eq!(ends[6..], [61; 3], "{out}");
        let headings = out.lines().filter(|line| line.starts_with("TIME"));
        assert_eq!(headings.count(), 3, "{out}");
    }
}
