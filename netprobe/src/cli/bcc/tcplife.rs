//! `netprobe tcplife`: connections that ended, how long they lived and what went over them.

use std::io::{self, Write};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Tool,
    fields::{Fields, Times},
    listing::Listing,
};
use crate::{
    render::format::Format,
    report::{Row, Value},
};

/// Options of `tcplife`.
#[derive(Args, Clone, Debug)]
pub(in super::super) struct Options {
    #[command(flatten)]
    listing: Listing,
    /// Only this process.
    #[arg(short, long)]
    pid: Option<u32>,
    /// Also those that were open before, and at the end: role, result, who closed first,
    /// retransmits, round-trip time.
    #[arg(short = 'x', long)]
    extended: bool,
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        let Listing { common, .. } = &self.listing;
        Tool {
            kind: Kind::Lifetimes,
            filter: common.filter(self.pid, &self.listing.ports()),
            duration: common.duration,
            has_stacks: false,
            format: Box::new(Lives {
                fields: Fields::of(Kind::Lifetimes),
                times: Times::default(),
                options: self.clone(),
            }),
        }
    }
}

struct Lives {
    fields: Fields,
    times: Times,
    options: Options,
}

/// What `-x` adds, as column of the event and as heading.
const EXTRA: [(&str, &str); 5] = [
    ("role", "ROLE"),
    ("result", "RESULT"),
    ("closer", "CLOSER"),
    ("retransmits", "RETR"),
    ("srtt_us", "SRTT_US"),
];

impl Format for Lives {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let (options, listing) = (&self.options, &self.options.listing);
        listing.begin(out)?;
        let headings = if listing.csv {
            "PID,COMM,IP,LADDR,LPORT,RADDR,RPORT,TX_KB,RX_KB,MS".to_owned()
        } else if listing.wide {
            format!(
                "{:<5} {:<16} {:<2} {:<26} {:<5} {:<26} {:<5} {:>6} {:>6} MS",
                "PID", "COMM", "IP", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB"
            )
        } else {
            format!(
                "{:<5} {:<10} {:<15} {:<5} {:<15} {:<5} {:>5} {:>5} MS",
                "PID", "COMM", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB"
            )
        };
        write!(out, "{headings}")?;
        if options.extended {
            for (_, title) in EXTRA {
                write!(out, "{}{title}", listing.separator())?;
            }
        }
        writeln!(out)
    }

    fn shows(&self, row: &Row) -> bool {
        let is_known = *self.fields.value(row, "duration_ns") != Value::Unknown;
        is_known || self.options.extended
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        if !self.shows(row) {
            return Ok(());
        }
        let (fields, listing) = (self.fields, &self.options.listing);
        listing.times(out, &mut self.times, row)?;
        let kib = |name| fields.number(row, name) / 1024;
        let (pid, sport) = (fields.number(row, "pid"), fields.number(row, "sport"));
        let (dport, ip) = (fields.number(row, "dport"), fields.ip(row));
        let [local, remote] = ["saddr", "daddr"].map(|end| fields.address(row, end));
        let (sent, received) = (kib("bytes_sent"), kib("bytes_received"));
        let ms = fields.milliseconds(row, "duration_ns", 2);
        if listing.csv {
            let comm = fields.comm(row, 16).replace(',', "_");
            write!(
                out,
                "{pid},{comm},{ip},{local},{sport},{remote},{dport},{sent},{received},{ms}"
            )?;
        } else if listing.wide {
            let comm = fields.comm(row, 16);
            write!(
                out,
                "{pid:<5} {comm:<16} {ip:<2} {local:<26} {sport:<5} {remote:<26} {dport:<5} \
                 {sent:>6} {received:>6} {ms}"
            )?;
        } else {
            let comm = fields.comm(row, 10);
            write!(
                out,
                "{pid:<5} {comm:<10} {local:<15} {sport:<5} {remote:<15} {dport:<5} \
                 {sent:>5} {received:>5} {ms}"
            )?;
        }
        if self.options.extended {
            for (name, _) in EXTRA {
                write!(out, "{}{}", listing.separator(), fields.text(row, name))?;
            }
        }
        writeln!(out)
    }
}
