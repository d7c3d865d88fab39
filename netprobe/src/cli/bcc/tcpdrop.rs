//! `netprobe tcpdrop`: dropped packets, each with its kernel stack.

use std::io::{self, Write};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Common, Tool,
    fields::{Fields, Times},
};
use crate::{
    render::{format::Format, text},
    report::{Row, Value},
};

/// Options of `tcpdrop`.
#[derive(Args, Clone, Debug)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// Only the network namespace with this inode number.
    #[arg(long, value_name = "INODE", conflicts_with_all = ["pid_netns", "netns"])]
    netns_id: Option<u32>,
    /// Only the network namespace of this process.
    #[arg(long, value_name = "PID", conflicts_with = "netns")]
    pid_netns: Option<u32>,
    /// More columns at the end: owner's name, function, interface, bytes.
    #[arg(short = 'x', long)]
    extended: bool,
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        let mut common = self.common.clone();
        if let Some(inode) = self.netns_id {
            common.netns = Some(inode.to_string());
        }
        if let Some(pid) = self.pid_netns {
            common.netns = Some(format!("pid:{pid}"));
        }
        Tool {
            kind: Kind::Drops,
            filter: common.filter(None, Vec::new()),
            duration: common.duration,
            has_stacks: true,
            format: Box::new(Drops {
                fields: Fields::of(Kind::Drops),
                times: Times::default(),
                is_extended: self.extended,
            }),
        }
    }
}

struct Drops {
    fields: Fields,
    times: Times,
    is_extended: bool,
}

impl Format for Drops {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let extra = if self.is_extended {
            " COMM             LOCATION                     IFACE      LEN"
        } else {
            ""
        };
        writeln!(
            out,
            "{:<8} {:<7} {:<2} {:<20} > {:<20} {:<20} REASON (CODE){extra}",
            "TIME", "PID", "IP", "SADDR:SPORT", "DADDR:DPORT", "STATE (FLAGS)"
        )
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        let fields = self.fields;
        let state = fields.state(row, "state");
        let flags = fields.text(row, "flags");
        write!(
            out,
            "{:<8} {:<7} {:<2} {:<20} > {:<20} {:<20} {} ({})",
            self.times.of_day(row),
            fields.number(row, "pid"),
            fields.ip(row),
            fields.end(row, "saddr", "sport"),
            fields.end(row, "daddr", "dport"),
            format!("{state} ({flags})"),
            fields.text(row, "reason"),
            fields.number(row, "reason_code"),
        )?;
        if self.is_extended {
            let location = fields.text(row, "location");
            let iface = fields.text(row, "iface");
            let len = fields.number(row, "len");
            let comm = fields.comm(row, 16);
            write!(out, " {comm:<16} {location:<28} {iface:<10} {len}")?;
        }
        writeln!(out)?;
        if let Value::Stack(frames) = fields.value(row, "stack") {
            for frame in frames.iter() {
                let mut line = String::new();
                text::push(&mut line, &Value::Text(frame.clone()));
                writeln!(out, "\t{line}")?;
            }
        }
        writeln!(out)
    }
}
