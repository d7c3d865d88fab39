//! `netprobe tcpstates`: changes of TCP states and the time between them.

use std::io::{self, Write};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Common, Ports, Tool,
    fields::{Fields, Times, milliseconds},
    ports,
};
use crate::{render::format::Format, report::Row};

/// Options of `tcpstates`.
#[derive(Args, Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a letter of the command line"
)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// The time of day too.
    #[arg(short = 'T', long)]
    time: bool,
    /// Seconds since the first event too.
    #[arg(short = 't', long)]
    timestamp: bool,
    /// Wider columns, with room for IPv6.
    #[arg(short, long)]
    wide: bool,
    /// Comma-separated values.
    #[arg(short = 's', long)]
    csv: bool,
    /// Only these local ports.
    #[arg(short = 'L', long, value_name = "PORT")]
    localport: Option<Ports>,
    /// Only these remote ports.
    #[arg(short = 'D', long, value_name = "PORT")]
    remoteport: Option<Ports>,
    /// The network namespace at the end.
    #[arg(short = 'x', long)]
    extended: bool,
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        let expression = [
            ports("sport", self.localport.as_ref()),
            ports("dport", self.remoteport.as_ref()),
        ];
        let expression: Vec<String> = expression.into_iter().flatten().collect();
        Tool {
            kind: Kind::States,
            filter: self.common.filter(None, &expression),
            duration: self.common.duration,
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
        let options = &self.options;
        let (time, stamp, rest) = if options.csv {
            (
                "TIME,",
                "TIME(s),",
                "SKADDR,C-PID,C-COMM,IP,LADDR,LPORT,RADDR,RPORT,OLDSTATE,NEWSTATE,MS".to_owned(),
            )
        } else if options.wide {
            let rest = format!(
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
            );
            ("TIME     ", "TIME(s)   ", rest)
        } else {
            let rest = format!(
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
            );
            ("TIME     ", "TIME(s)   ", rest)
        };
        let time = if options.time { time } else { "" };
        let stamp = if options.timestamp { stamp } else { "" };
        let extra = match (options.extended, options.csv) {
            (false, _) => "",
            (true, true) => ",NETNS",
            (true, false) => " NETNS",
        };
        writeln!(out, "{time}{stamp}{rest}{extra}")
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        let fields = self.fields;
        let is_csv = self.options.csv;
        if self.options.time {
            let time = self.times.of_day(row);
            let end = if is_csv { ',' } else { ' ' };
            write!(out, "{time:<8}{end}")?;
        }
        if self.options.timestamp {
            let seconds = self.times.since_first(row);
            if is_csv {
                write!(out, "{seconds:.6},")?;
            } else {
                write!(out, "{seconds:<9.6} ")?;
            }
        }
        let (socket, pid) = (fields.text(row, "socket"), fields.number(row, "pid"));
        let (sport, dport) = (fields.number(row, "sport"), fields.number(row, "dport"));
        let [local, remote] = ["saddr", "daddr"].map(|end| fields.address(row, end));
        let [old, new] = ["old_state", "state"].map(|state| fields.state(row, state));
        let ms = milliseconds(fields.number(row, "in_state_ns"));
        let ip = fields.ip(row);
        if is_csv {
            let comm = fields.comm(row, 16).replace(',', "_");
            write!(
                out,
                "{socket},{pid},{comm},{ip},{local},{sport},{remote},{dport},{old},{new},{ms:.3}"
            )?;
        } else if self.options.wide {
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
            let end = if is_csv { ',' } else { ' ' };
            write!(out, "{end}{}", fields.number(row, "netns"))?;
        }
        writeln!(out)
    }
}
