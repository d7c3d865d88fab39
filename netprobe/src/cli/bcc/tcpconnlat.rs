//! `netprobe tcpconnlat`: how long outgoing connections took to be established.

use std::io::{self, Write};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Common, Tool,
    fields::{Fields, Times, milliseconds},
};
use crate::{
    render::format::Format,
    report::{Row, Value},
};

/// Options of `tcpconnlat`.
#[derive(Args, Clone, Debug)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// Seconds since the first event too.
    #[arg(short, long)]
    timestamp: bool,
    /// Only this process.
    #[arg(short, long)]
    pid: Option<u32>,
    /// The local port too.
    #[arg(short = 'L', long)]
    lport: bool,
    /// Only those that took at least so many milliseconds.
    #[arg(value_name = "DURATION_MS", default_value_t = 0.0, value_parser = positive)]
    duration_ms: f64,
    /// Failed connects too, and at the end: outcome, errno, SYNs sent.
    #[arg(short = 'x', long)]
    extended: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 => Ok(number),
        _ => Err("expected a positive number of milliseconds".to_owned()),
    }
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        Tool {
            kind: Kind::Connects,
            filter: self.common.filter(self.pid, &[]),
            duration: self.common.duration,
            has_stacks: false,
            format: Box::new(Latencies {
                fields: Fields::of(Kind::Connects),
                times: Times::default(),
                options: self.clone(),
            }),
        }
    }
}

struct Latencies {
    fields: Fields,
    times: Times,
    options: Options,
}

impl Format for Latencies {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.options.timestamp {
            write!(out, "{:<9}", "TIME(s)")?;
        }
        write!(
            out,
            "{:<7} {:<12} {:<2} {:<16}",
            "PID", "COMM", "IP", "SADDR"
        )?;
        if self.options.lport {
            write!(out, " {:<6}", "LPORT")?;
        }
        write!(out, " {:<16} {:<5} LAT(ms)", "DADDR", "DPORT")?;
        if self.options.extended {
            write!(out, " OUTCOME     ERRNO         SYNS")?;
        }
        writeln!(out)
    }

    fn shows(&self, row: &Row) -> bool {
        let fields = self.fields;
        let is_established = *fields.value(row, "outcome") == Value::Word("established");
        // One that began before us has no latency.
        let Value::Unsigned(latency_ns) = *fields.value(row, "latency_ns") else {
            return false;
        };
        (is_established || self.options.extended)
            && milliseconds(latency_ns) >= self.options.duration_ms
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        if !self.shows(row) {
            return Ok(());
        }
        let fields = self.fields;
        let latency_ms = milliseconds(fields.number(row, "latency_ns"));
        if self.options.timestamp {
            write!(out, "{:<9.3}", self.times.since_first(row))?;
        }
        write!(
            out,
            "{:<7} {:<12} {:<2} {:<16}",
            fields.number(row, "pid"),
            fields.comm(row, 12),
            fields.ip(row),
            fields.address(row, "saddr")
        )?;
        if self.options.lport {
            write!(out, " {:<6}", fields.number(row, "sport"))?;
        }
        write!(
            out,
            " {:<16} {:<5} {latency_ms:.2}",
            fields.address(row, "daddr"),
            fields.number(row, "dport")
        )?;
        if self.options.extended {
            let outcome = fields.text(row, "outcome");
            let errno = fields.text(row, "errno");
            let syns = fields.text(row, "syn_attempts");
            write!(out, " {outcome:<11} {errno:<13} {syns}")?;
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bcc::fields::tests::{Line, row_of};
    use clap::Parser;

    #[test]
    fn what_has_no_line_is_not_said_to_be_shown() {
        let row = row_of(
            Kind::Connects,
            &[
                ("outcome", Value::Word("established")),
                ("latency_ns", Value::Unsigned(3_000_000)),
            ],
        );
        for (limit, is_shown) in [("0", true), ("3", true), ("10", false)] {
            let mut format = <Line<Options>>::parse_from(["tcpconnlat", limit])
                .options
                .tool()
                .format;
            let mut out = Vec::new();
            format.row(&mut out, &row).unwrap();
            assert_eq!(format.shows(&row), is_shown, "{limit}");
            assert_eq!(!out.is_empty(), is_shown, "{limit}");
        }
    }
}
