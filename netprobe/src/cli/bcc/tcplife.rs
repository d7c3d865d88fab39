//! `netprobe tcplife`: connections that ended, how long they lived and what went over them.

use std::io::{self, Write};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Common, Ports, Tool,
    fields::{Fields, Times},
    ports,
};
use crate::{
    render::format::Format,
    report::{Row, Value},
};

/// Options of `tcplife`.
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
    /// Only this process.
    #[arg(short, long)]
    pid: Option<u32>,
    /// Only these local ports.
    #[arg(short = 'L', long, value_name = "PORT")]
    localport: Option<Ports>,
    /// Only these remote ports.
    #[arg(short = 'D', long, value_name = "PORT")]
    remoteport: Option<Ports>,
    /// Also those that were open before, and at the end: role, result, who closed first,
    /// retransmits, round-trip time.
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
            kind: Kind::Lifetimes,
            filter: self.common.filter(self.pid, &expression),
            duration: self.common.duration,
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
        let options = &self.options;
        let (time, stamp, rest) = if options.csv {
            (
                "TIME,",
                "TIME(s),",
                "PID,COMM,IP,LADDR,LPORT,RADDR,RPORT,TX_KB,RX_KB,MS".to_owned(),
            )
        } else if options.wide {
            let rest = format!(
                "{:<5} {:<16} {:<2} {:<26} {:<5} {:<26} {:<5} {:>6} {:>6} MS",
                "PID", "COMM", "IP", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB"
            );
            ("TIME     ", "TIME(s)   ", rest)
        } else {
            let rest = format!(
                "{:<5} {:<10} {:<15} {:<5} {:<15} {:<5} {:>5} {:>5} MS",
                "PID", "COMM", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB"
            );
            ("TIME     ", "TIME(s)   ", rest)
        };
        let time = if options.time { time } else { "" };
        let stamp = if options.timestamp { stamp } else { "" };
        write!(out, "{time}{stamp}{rest}")?;
        if options.extended {
            for (_, title) in EXTRA {
                write!(out, "{}{title}", self.separator())?;
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
        let fields = self.fields;
        self.times(out, row)?;
        let kib = |name| fields.number(row, name) / 1024;
        let (pid, sport) = (fields.number(row, "pid"), fields.number(row, "sport"));
        let (dport, ip) = (fields.number(row, "dport"), fields.ip(row));
        let [local, remote] = ["saddr", "daddr"].map(|end| fields.address(row, end));
        let (sent, received) = (kib("bytes_sent"), kib("bytes_received"));
        let ms = fields.milliseconds(row, "duration_ns", 2);
        if self.options.csv {
            let comm = fields.comm(row, 16).replace(',', "_");
            write!(
                out,
                "{pid},{comm},{ip},{local},{sport},{remote},{dport},{sent},{received},{ms}"
            )?;
        } else if self.options.wide {
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
                write!(out, "{}{}", self.separator(), fields.text(row, name))?;
            }
        }
        writeln!(out)
    }
}

impl Lives {
    const fn separator(&self) -> char {
        if self.options.csv { ',' } else { ' ' }
    }

    fn times(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        let is_csv = self.options.csv;
        if self.options.time {
            let time = self.times.of_day(row);
            if is_csv {
                write!(out, "{time},")?;
            } else {
                write!(out, "{time:<8} ")?;
            }
        }
        if self.options.timestamp {
            let seconds = self.times.since_first(row);
            if is_csv {
                write!(out, "{seconds:.6},")?;
            } else {
                write!(out, "{seconds:<9.6} ")?;
            }
        }
        Ok(())
    }
}
