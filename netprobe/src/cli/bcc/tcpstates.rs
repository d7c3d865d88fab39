//! `netprobe tcpstates`: changes of TCP states and the time between them.

use std::io::{self, Write};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Tool,
    fields::{Fields, Times, milliseconds},
    listing::Listing,
};
use crate::{render::format::Format, report::Row};

/// Options of `tcpstates`.
#[derive(Args, Clone, Debug)]
pub(in super::super) struct Options {
    #[command(flatten)]
    listing: Listing,
    /// The network namespace at the end.
    #[arg(short = 'x', long)]
    extended: bool,
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        let Listing { common, .. } = &self.listing;
        Tool {
            kind: Kind::States,
            filter: common.filter(None, &self.listing.ports()),
            duration: common.duration,
            has_stacks: false,
            format: Box::new(Changes {
                fields: Fields::of(Kind::States),
                times: Times::default(),
                options: self.clone(),
            }),
        }
    }
}

struct Changes {
    fields: Fields,
    times: Times,
    options: Options,
}

impl Format for Changes {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let (options, listing) = (&self.options, &self.options.listing);
        listing.begin(out)?;
        let headings = if listing.csv {
            "SKADDR,C-PID,C-COMM,IP,LADDR,LPORT,RADDR,RPORT,OLDSTATE,NEWSTATE,MS".to_owned()
        } else if listing.wide {
            format!(
                "{:<16} {:<5} {:<16} {:<2} {:<26} {:<5} {:<26} {:<5} {:<11} -> {:<11} MS",
                "SKADDR",
                "C-PID",
                "C-COMM",
                "IP",
                "LADDR",
                "LPORT",
                "RADDR",
                "RPORT",
                "OLDSTATE",
                "NEWSTATE"
            )
        } else {
            format!(
                "{:<16} {:<5} {:<10} {:<15} {:<5} {:<15} {:<5} {:<11} -> {:<11} MS",
                "SKADDR",
                "C-PID",
                "C-COMM",
                "LADDR",
                "LPORT",
                "RADDR",
                "RPORT",
                "OLDSTATE",
                "NEWSTATE"
            )
        };
        write!(out, "{headings}")?;
        if options.extended {
            write!(out, "{}NETNS", listing.separator())?;
        }
        writeln!(out)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        let fields = self.fields;
        let listing = &self.options.listing;
        listing.times(out, &mut self.times, row)?;
        let (socket, pid) = (fields.text(row, "socket"), fields.number(row, "pid"));
        let (sport, dport) = (fields.number(row, "sport"), fields.number(row, "dport"));
        let [local, remote] = ["saddr", "daddr"].map(|end| fields.address(row, end));
        let [old, new] = ["old_state", "state"].map(|state| fields.state(row, state));
        let ms = milliseconds(fields.number(row, "in_state_ns"));
        let ip = fields.ip(row);
        if listing.csv {
            let comm = fields.comm(row, 16).replace(',', "_");
            write!(
                out,
                "{socket},{pid},{comm},{ip},{local},{sport},{remote},{dport},{old},{new},{ms:.3}"
            )?;
        } else if listing.wide {
            let comm = fields.comm(row, 16);
            write!(
                out,
                "{socket:<16} {pid:<5} {comm:<16} {ip:<2} {local:<26} {sport:<5} {remote:<26} \
                 {dport:<5} {old:<11} -> {new:<11} {ms:.3}"
            )?;
        } else {
            let comm = fields.comm(row, 10);
            write!(
                out,
                "{socket:<16} {pid:<5} {comm:<10} {local:<15} {sport:<5} {remote:<15} {dport:<5} \
                 {old:<11} -> {new:<11} {ms:.3}"
            )?;
        }
        if self.options.extended {
            write!(
                out,
                "{}{}",
                listing.separator(),
                fields.number(row, "netns")
            )?;
        }
        writeln!(out)
    }
}
