//! `netprobe tcpretrans`: retransmissions, or (with `-c`) how many per connection.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Common, Tool,
    fields::{Fields, Times},
};
use crate::{
    render::format::Format,
    report::{Row, Summary, Value},
};

/// Options of `tcpretrans`.
#[derive(Args, Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a letter of the command line"
)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// The sequence number too.
    #[arg(short, long)]
    sequence: bool,
    /// Tail loss probes as such (`L`).
    #[arg(short, long)]
    lossprobe: bool,
    /// Only count, per connection, and show the counts at the end.
    #[arg(short, long)]
    count: bool,
    /// Attempts that sent nothing too, and at the end: owner's name, cause, attempt, segments, why nothing went out.
    #[arg(short = 'x', long)]
    extended: bool,
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        let fields = Fields::of(Kind::Retransmits);
        let format: Box<dyn Format> = if self.count {
            Box::new(Counts {
                fields,
                connections: BTreeMap::new(),
                others: 0,
            })
        } else {
            Box::new(Events {
                fields,
                times: Times::default(),
                options: self.clone(),
            })
        };
        Tool {
            kind: Kind::Retransmits,
            filter: self.common.filter(None, &[]),
            duration: self.common.duration,
            has_stacks: false,
            format,
        }
    }
}

struct Events {
    fields: Fields,
    times: Times,
    options: Options,
}

impl Events {
    /// The state, and the sequence number if it is wanted, as bcc writes them; of one width where more follows.
    fn state(&self, state: &str, sequence: &str) -> String {
        let options = &self.options;
        let (text, width) = if options.sequence {
            (format!(" {state:<12} {sequence}"), 24)
        } else {
            (format!(" {state}"), 13)
        };
        let width = if options.extended { width } else { 0 };
        format!("{text:<width$}")
    }
}

impl Format for Events {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "Tracing retransmits ... Hit Ctrl-C to end")?;
        write!(
            out,
            "{:<8} {:<7} {:<2} {:<20} {:1}> {:<20}",
            "TIME", "PID", "IP", "LADDR:LPORT", "T", "RADDR:RPORT"
        )?;
        write!(out, "{}", self.state("STATE", "SEQ       "))?;
        if self.options.extended {
            write!(out, " COMM             CAUSE   TRY SEGS ERR")?;
        }
        writeln!(out)
    }

    fn shows(&self, row: &Row) -> bool {
        self.options.extended || went_out(self.fields, row)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        if !self.shows(row) {
            return Ok(());
        }
        let fields = self.fields;
        let is_probe = *fields.value(row, "cause") == Value::Word("tlp");
        write!(
            out,
            "{:<8} {:<7} {:<2} {:<20} {:1}> {:<20}",
            self.times.of_day(row),
            fields.number(row, "pid"),
            fields.ip(row),
            fields.end(row, "saddr", "sport"),
            if is_probe && self.options.lossprobe {
                'L'
            } else {
                'R'
            },
            fields.end(row, "daddr", "dport"),
        )?;
        let sequence = fields.number(row, "seq").to_string();
        let state = self.state(&fields.state(row, "state"), &sequence);
        write!(out, "{state}")?;
        if self.options.extended {
            write!(
                out,
                " {:<16} {:<7} {:>3} {:>4} {}",
                fields.comm(row, 16),
                fields.text(row, "cause"),
                fields.text(row, "attempt"),
                fields.text(row, "segs"),
                fields.text(row, "err"),
            )?;
        }
        writeln!(out)
    }
}

/// Whether anything was sent again: from 6.17 on the kernel tells of attempts that failed, too.
fn went_out(fields: Fields, row: &Row) -> bool {
    *fields.value(row, "err") == Value::Unknown
}

/// Connections that are told apart; the rest is counted as one.
const CONNECTIONS: usize = 65_536;

/// Counts by family and both ends.
struct Counts {
    fields: Fields,
    connections: BTreeMap<(u8, String, String), u64>,
    others: u64,
}

impl Format for Counts {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "Tracing retransmits ... Hit Ctrl-C to end")
    }

    fn shows(&self, row: &Row) -> bool {
        went_out(self.fields, row)
    }

    fn row(&mut self, _out: &mut dyn Write, row: &Row) -> io::Result<()> {
        if !self.shows(row) {
            return Ok(());
        }
        let fields = self.fields;
        let end = |address, port| {
            let address = fields.address(row, address);
            format!("[{address}]#{}", fields.number(row, port))
        };
        let key = (fields.ip(row), end("saddr", "sport"), end("daddr", "dport"));
        let has_room = self.connections.len() < CONNECTIONS;
        match self.connections.get_mut(&key) {
            Some(count) => *count += 1,
            None if has_room => {
                self.connections.insert(key, 1);
            }
            None => self.others += 1,
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write, _summary: &Summary) -> io::Result<()> {
        writeln!(
            out,
            "\n{:<25} {:<25} {:<10}",
            "LADDR:LPORT", "RADDR:RPORT", "RETRANSMITS"
        )?;
        let mut counts: Vec<_> = self.connections.iter().collect();
        // As bcc: IPv4 before IPv6, the largest last.
        counts.sort_by_key(|((ip, ..), count)| (*ip, **count));
        for ((_, local, remote), count) in counts {
            writeln!(out, "{local:<20} <-> {remote:<20} {count:>10}")?;
        }
        if self.others > 0 {
            writeln!(out, "{:<45} {:>10}", "other connections", self.others)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::bcc::fields::tests::{Line, row_of},
        report::Value,
    };
    use clap::Parser;

    fn shown(letters: &str, err: &Value) -> (bool, String) {
        let line = <Line<Options>>::parse_from(
            ["tcpretrans"].into_iter().chain(letters.split_whitespace()),
        );
        let mut format = line.options.tool().format;
        let row = row_of(Kind::Retransmits, &[("err", err.clone())]);
        let mut out = Vec::new();
        format.row(&mut out, &row).unwrap();
        (format.shows(&row), String::from_utf8(out).unwrap())
    }

    #[test]
    fn with_x_the_headings_stand_above_what_they_name() {
        for letters in ["-x", "-x -s"] {
            let line =
                <Line<Options>>::parse_from(["tcpretrans"].into_iter().chain(letters.split(' ')));
            let mut format = line.options.tool().format;
            let mut out = Vec::new();
            format.begin(&mut out).unwrap();
            let head = String::from_utf8(out).unwrap();
            let head = head.lines().nth(1).unwrap();
            let (_, row) = shown(letters, &Value::Word("EBUSY"));
            assert_eq!(head.find("ERR"), row.find("EBUSY"), "{head}\n{row}");
        }
    }

    #[test]
    fn an_attempt_that_sent_nothing_is_no_retransmission() {
        assert!(shown("", &Value::Unknown).0);
        assert!(shown("-c", &Value::Unknown).0);
        let busy = Value::Word("EBUSY");
        assert_eq!(shown("", &busy), (false, String::new()));
        assert!(!shown("-c", &busy).0);
        let (is_shown, line) = shown("-x", &busy);
        assert!(is_shown && line.trim_end().ends_with(" EBUSY"), "{line}");
    }
}
