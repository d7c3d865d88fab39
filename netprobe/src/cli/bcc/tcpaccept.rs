//! `netprobe tcpaccept`: connections that came in and were accepted.

use std::io::{self, Write};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Common, Ports, Tool,
    fields::{Fields, Times},
    ports,
};
use crate::{render::format::Format, report::Row};

/// Options of `tcpaccept`.
#[derive(Args, Clone, Debug)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// The time of day too.
    #[arg(short = 'T', long)]
    time: bool,
    /// Seconds since the first event too.
    #[arg(short = 't', long)]
    timestamp: bool,
    /// Only this process.
    #[arg(short, long)]
    pid: Option<u32>,
    /// Only these local ports.
    #[arg(short = 'P', long)]
    port: Option<Ports>,
    /// More columns at the end: how long it waited, how many still wait, how many may.
    #[arg(short = 'x', long)]
    extended: bool,
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        let expression: Vec<String> = ports("sport", self.port.as_ref()).into_iter().collect();
        Tool {
            kind: Kind::Accepts,
            filter: self.common.filter(self.pid, &expression),
            duration: self.common.duration,
            has_stacks: false,
            format: Box::new(Accepts {
                fields: Fields::of(Kind::Accepts),
                times: Times::default(),
                options: self.clone(),
            }),
        }
    }
}

struct Accepts {
    fields: Fields,
    times: Times,
    options: Options,
}

impl Format for Accepts {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.options.time {
            write!(out, "{:<9}", "TIME")?;
        }
        if self.options.timestamp {
            write!(out, "{:<9}", "TIME(s)")?;
        }
        write!(
            out,
            "{:<7} {:<12} {:<2} {:<16} {:<5} {:<16} {:<5}",
            "PID", "COMM", "IP", "RADDR", "RPORT", "LADDR", "LPORT"
        )?;
        if self.options.extended {
            write!(out, " WAIT(ms) ACCEPTQ LIMIT")?;
        }
        writeln!(out)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        let fields = self.fields;
        if self.options.time {
            write!(out, "{:<9}", self.times.of_day(row))?;
        }
        if self.options.timestamp {
            write!(out, "{:<9.3}", self.times.since_first(row))?;
        }
        write!(
            out,
            "{:<7} {:<12} {:<2} {:<16} {:<5} {:<16} {:<5}",
            fields.number(row, "pid"),
            fields.comm(row, 12),
            fields.ip(row),
            fields.address(row, "daddr"),
            fields.number(row, "dport"),
            fields.address(row, "saddr"),
            fields.number(row, "sport"),
        )?;
        if self.options.extended {
            let waited_ms = fields.milliseconds(row, "waited_ns", 3);
            let waiting = fields.text(row, "accept_queue");
            let limit = fields.text(row, "accept_limit");
            write!(out, " {waited_ms:>8} {waiting:>7} {limit:>5}")?;
        }
        writeln!(out)
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

    #[test]
    fn an_unknown_wait_is_no_short_one() {
        for (waited, expected) in [(Value::Unknown, "-"), (Value::Unsigned(0), "0.000")] {
            let mut format = <Line<Options>>::parse_from(["tcpaccept", "-x"])
                .options
                .tool()
                .format;
            let mut out = Vec::new();
            let row = row_of(Kind::Accepts, &[("waited_ns", waited)]);
            format.row(&mut out, &row).unwrap();
            let line = String::from_utf8(out).unwrap();
            assert_eq!(
                line.split_whitespace().nth_back(2),
                Some(expected),
                "{line}"
            );
        }
    }
}
