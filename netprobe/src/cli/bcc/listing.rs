//! What tcplife and tcpstates have in common: their letters, and how their lines begin.

use std::io::{self, Write};

use clap::Args;

use super::{Common, Ports, fields::Times, ports};
use crate::report::Row;

/// The options that both have.
#[derive(Args, Clone, Debug)]
#[group(skip)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a letter of the command line"
)]
pub(super) struct Listing {
    #[command(flatten)]
    pub(super) common: Common,
    /// The time of day too.
    #[arg(short = 'T', long)]
    time: bool,
    /// Seconds since the first event too.
    #[arg(short = 't', long)]
    timestamp: bool,
    /// Wider columns, with room for IPv6.
    #[arg(short, long)]
    pub(super) wide: bool,
    /// Comma-separated values.
    #[arg(short = 's', long)]
    pub(super) csv: bool,
    /// Only these local ports.
    #[arg(short = 'L', long, value_name = "PORT")]
    localport: Option<Ports>,
    /// Only these remote ports.
    #[arg(short = 'D', long, value_name = "PORT")]
    remoteport: Option<Ports>,
}

impl Listing {
    /// The ports that are asked for, as expressions.
    pub(super) fn ports(&self) -> Vec<String> {
        let both = [
            ports("sport", self.localport.as_ref()),
            ports("dport", self.remoteport.as_ref()),
        ];
        both.into_iter().flatten().collect()
    }

    /// What stands between columns.
    pub(super) const fn separator(&self) -> char {
        if self.csv { ',' } else { ' ' }
    }

    /// The headings of the times.
    pub(super) fn begin(&self, out: &mut dyn Write) -> io::Result<()> {
        let (time, stamp) = if self.csv {
            ("TIME,", "TIME(s),")
        } else {
            ("TIME     ", "TIME(s)   ")
        };
        let time = if self.time { time } else { "" };
        let stamp = if self.timestamp { stamp } else { "" };
        write!(out, "{time}{stamp}")
    }

    /// The times of a row.
    pub(super) fn times(
        &self,
        out: &mut dyn Write,
        times: &mut Times,
        row: &Row,
    ) -> io::Result<()> {
        let end = self.separator();
        if self.time {
            write!(out, "{:<8}{end}", times.of_day(row))?;
        }
        let width = if self.csv { 0 } else { 9 };
        if self.timestamp {
            write!(out, "{:<width$.6}{end}", times.since_first(row))?;
        }
        Ok(())
    }
}
