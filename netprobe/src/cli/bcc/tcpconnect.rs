//! `netprobe tcpconnect`: outgoing connections as they begin, or (with `-c`) how many.
//!
//! They are seen when the socket goes to SYN_SENT, in the caller's own task. The local port is
//! chosen only after that, so `-L` waits for the next change of state, or asks the kernel when
//! nobody answers.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    time::{Duration, Instant},
};

use clap::Args;
use netprobe_common::header::Kind;

use super::{
    Common, Ports, Tool,
    fields::{Fields, Times},
    ports,
};
use crate::{
    observe::sockets,
    render::format::Format,
    report::{Row, Summary, Value},
};

/// Options of `tcpconnect`.
#[derive(Args, Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a letter of the command line"
)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// Seconds since the first event too.
    #[arg(short, long)]
    timestamp: bool,
    /// Only this process.
    #[arg(short, long)]
    pid: Option<u32>,
    /// Only these remote ports.
    #[arg(short = 'P', long)]
    port: Option<Ports>,
    /// The local port too.
    #[arg(short = 'L', long)]
    lport: bool,
    /// The user too.
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Only this user.
    #[arg(short, long)]
    uid: Option<u64>,
    /// Only count, by both addresses and remote port.
    #[arg(short, long)]
    count: bool,
    /// The network namespace at the end.
    #[arg(short = 'x', long, conflicts_with = "count")]
    extended: bool,
}

impl Options {
    pub(super) fn tool(&self) -> Tool {
        let mut expression: Vec<String> = ports("dport", self.port.as_ref()).into_iter().collect();
        if self.count || !self.lport {
            expression.push("state syn-sent".to_owned());
        }
        let fields = Fields::of(Kind::States);
        let format: Box<dyn Format> = if self.count {
            Box::new(Counts {
                fields,
                uid: self.uid,
                targets: BTreeMap::new(),
                others: 0,
            })
        } else {
            Box::new(Connects {
                fields,
                times: Times::default(),
                waiting: HashMap::new(),
                asked: Instant::now(),
                options: self.clone(),
            })
        };
        Tool {
            kind: Kind::States,
            filter: self.common.filter(self.pid, &expression),
            duration: self.common.duration,
            has_stacks: false,
            format,
        }
    }
}

const BANNER: &str = "Tracing connect ... Hit Ctrl-C to end";
/// How often the kernel is asked for the ports of connects that nobody answers.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Connects that may wait for their port.
const WAITING: usize = 16_384;
/// Targets that are told apart; the rest is counted as one.
const TARGETS: usize = 65_536;

struct Connects {
    fields: Fields,
    times: Times,
    /// By the address of the socket.
    waiting: HashMap<String, Row>,
    asked: Instant,
    options: Options,
}

impl Format for Connects {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{BANNER}")?;
        if self.options.timestamp {
            write!(out, "{:<9}", "TIME(s)")?;
        }
        if self.options.print_uid {
            write!(out, "{:<6}", "UID")?;
        }
        write!(
            out,
            "{:<7} {:<12} {:<2} {:<16}",
            "PID", "COMM", "IP", "SADDR"
        )?;
        if self.options.lport {
            write!(out, " {:<6}", "LPORT")?;
        }
        write!(out, " {:<16} {:<6}", "DADDR", "DPORT")?;
        if self.options.extended {
            write!(out, " NETNS")?;
        }
        writeln!(out)
    }

    /// What comes after it began only completes its line.
    fn shows(&self, row: &Row) -> bool {
        is_of(self.fields, row, self.options.uid) && begins(self.fields, row)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        let fields = self.fields;
        if !is_of(fields, row, self.options.uid) {
            return Ok(());
        }
        let socket = fields.text(row, "socket");
        let sport = fields.number(row, "sport");
        if !begins(fields, row) {
            return match self.waiting.remove(&socket) {
                Some(begun) => self.line(out, &begun, sport),
                None => Ok(()),
            };
        }
        let must_wait = self.options.lport && sport == 0;
        if must_wait && self.waiting.len() < WAITING {
            self.waiting.insert(socket, row.clone());
            return Ok(());
        }
        self.line(out, row, sport)
    }

    fn idle(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.waiting.is_empty() || self.asked.elapsed() < ASK_EVERY {
            return Ok(());
        }
        self.asked = Instant::now();
        let fields = self.fields;
        let (connections, _refused) = sockets::open_connections(None).unwrap_or_default();
        let ports: HashMap<u64, u16> = connections
            .iter()
            .map(|connection| (connection.ino, connection.local.1))
            .collect();
        let port_of = |row: &Row| ports.get(&fields.number(row, "ino")).copied();
        let found: Vec<(String, u16)> = self
            .waiting
            .iter()
            .filter_map(|(socket, row)| Some((socket.clone(), port_of(row)?)))
            .collect();
        for (socket, port) in found {
            if let Some(row) = self.waiting.remove(&socket) {
                self.line(out, &row, u64::from(port))?;
            }
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write, _summary: &Summary) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.values().try_for_each(|row| self.line(out, row, 0))
    }
}

impl Connects {
    fn line(&mut self, out: &mut dyn Write, row: &Row, sport: u64) -> io::Result<()> {
        let fields = self.fields;
        if self.options.timestamp {
            write!(out, "{:<9.3}", self.times.since_first(row))?;
        }
        if self.options.print_uid {
            write!(out, "{:<6}", fields.number(row, "uid"))?;
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
            write!(out, " {sport:<6}")?;
        }
        write!(
            out,
            " {:<16} {:<6}",
            fields.address(row, "daddr"),
            fields.number(row, "dport")
        )?;
        if self.options.extended {
            write!(out, " {}", fields.number(row, "netns"))?;
        }
        writeln!(out)
    }
}

/// Counts by family, both addresses and remote port.
struct Counts {
    fields: Fields,
    uid: Option<u64>,
    targets: BTreeMap<(u8, String, String, u64), u64>,
    others: u64,
}

impl Format for Counts {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{BANNER}")
    }

    fn shows(&self, row: &Row) -> bool {
        is_of(self.fields, row, self.uid)
    }

    fn row(&mut self, _out: &mut dyn Write, row: &Row) -> io::Result<()> {
        if !self.shows(row) {
            return Ok(());
        }
        let fields = self.fields;
        let key = (
            fields.ip(row),
            fields.address(row, "saddr"),
            fields.address(row, "daddr"),
            fields.number(row, "dport"),
        );
        let has_room = self.targets.len() < TARGETS;
        match self.targets.get_mut(&key) {
            Some(count) => *count += 1,
            None if has_room => {
                self.targets.insert(key, 1);
            }
            None => self.others += 1,
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write, _summary: &Summary) -> io::Result<()> {
        writeln!(
            out,
            "\n{:<25} {:<25} {:<20} {:<10}",
            "LADDR", "RADDR", "RPORT", "CONNECTS"
        )?;
        let mut targets: Vec<_> = self.targets.iter().collect();
        // As bcc: IPv4 before IPv6, the largest first.
        targets.sort_by_key(|((ip, ..), count)| (*ip, std::cmp::Reverse(**count)));
        for ((_, local, remote, port), count) in targets {
            writeln!(out, "{local:<25} {remote:<25} {port:<20} {count:<10}")?;
        }
        if self.others > 0 {
            writeln!(out, "{:<72} {:<10}", "others", self.others)?;
        }
        Ok(())
    }
}

fn begins(fields: Fields, row: &Row) -> bool {
    *fields.value(row, "state") == Value::Word("SYN-SENT")
}

fn is_of(fields: Fields, row: &Row, uid: Option<u64>) -> bool {
    uid.is_none_or(|uid| fields.number(row, "uid") == uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bcc::fields::tests::row_of;

    #[test]
    fn a_change_of_state_that_completes_a_line_is_no_line_of_its_own() {
        let format = Counts {
            fields: Fields::of(Kind::States),
            uid: Some(1000),
            targets: BTreeMap::new(),
            others: 0,
        };
        let row = |state, uid| {
            let known = [("state", Value::Word(state)), ("uid", Value::Unsigned(uid))];
            row_of(Kind::States, &known)
        };
        assert!(format.shows(&row("SYN-SENT", 1000)));
        assert!(!format.shows(&row("SYN-SENT", 0)));
        let fields = format.fields;
        assert!(begins(fields, &row("SYN-SENT", 0)));
        assert!(!begins(fields, &row("ESTAB", 0)));
    }
}
