//! Commands under the names of the bcc tools, for fingers and scripts that know those: the same
//! letters, columns and formats. They show netprobe's events, so where bcc is wrong they differ;
//! `docs/bcc.md` lists how. What bcc does not have is behind `-x`.

use std::{
    ffi::OsString, num::ParseIntError, path::Path, process::ExitCode, str::FromStr, time::Duration,
};

use anyhow::Result;
use clap::{Args, Subcommand};
use netprobe_common::header::Kind;

use super::{
    Global, filter,
    output::Output,
    parse_duration,
    stream::{self, Watch},
};
use crate::{probes, render::format::Format};

mod fields;
pub(super) mod help;
mod listing;
mod meter;
mod tcpaccept;
mod tcpconnect;
mod tcpconnlat;
mod tcpdrop;
mod tcplife;
mod tcpretrans;
mod tcpstates;
mod tcpsynbl;
mod tcptop;

/// The tools, by their bcc names.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Dropped packets with their kernel stacks, as bcc's tcpdrop prints them.
    #[command(args_override_self = true)]
    Tcpdrop(tcpdrop::Options),
    /// Retransmissions, as bcc's tcpretrans prints them.
    #[command(args_override_self = true)]
    Tcpretrans(tcpretrans::Options),
    /// Latency of outgoing connections, as bcc's tcpconnlat prints it.
    #[command(args_override_self = true)]
    Tcpconnlat(tcpconnlat::Options),
    /// Connections that ended, as bcc's tcplife prints them.
    #[command(args_override_self = true)]
    Tcplife(tcplife::Options),
    /// Depth of accept queues as histograms, as bcc's tcpsynbl prints them.
    #[command(args_override_self = true)]
    Tcpsynbl(tcpsynbl::Options),
    /// Changes of TCP states, as bcc's tcpstates prints them.
    #[command(args_override_self = true)]
    Tcpstates(tcpstates::Options),
    /// Bytes per connection and interval, as bcc's tcptop prints them.
    #[command(args_override_self = true)]
    Tcptop(tcptop::Options),
    /// Connections that came in, as bcc's tcpaccept prints them.
    #[command(args_override_self = true)]
    Tcpaccept(tcpaccept::Options),
    /// Outgoing connections as they begin, as bcc's tcpconnect prints them.
    #[command(args_override_self = true)]
    Tcpconnect(tcpconnect::Options),
}

/// The arguments with the command that the program's own name stands for, if it is one of these; Debian's packages end
/// theirs in `-bpfcc`.
pub(super) fn expand(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    let called = called.and_then(|name| name.to_str()).unwrap_or_default();
    let called = called.strip_suffix("-bpfcc").unwrap_or(called);
    if let Some((name, _)) = help::TEXTS.iter().find(|(name, _)| *name == called) {
        arguments[0] = "netprobe".into();
        arguments.insert(1, name.into());
    }
    arguments
}

/// Runs one.
pub(super) fn run(global: &Global, command: &Command) -> Result<ExitCode> {
    match command {
        Command::Tcpdrop(options) => options.tool().run(global),
        Command::Tcpretrans(options) => options.tool().run(global),
        Command::Tcpconnlat(options) => options.tool().run(global),
        Command::Tcplife(options) => options.tool().run(global),
        Command::Tcpsynbl(options) => tcpsynbl::run(global, options),
        Command::Tcpstates(options) => options.tool().run(global),
        Command::Tcptop(options) => tcptop::run(global, options),
        Command::Tcpaccept(options) => options.tool().run(global),
        Command::Tcpconnect(options) => options.tool().run(global),
    }
}

/// What all of them take beyond bcc, under long names only.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
struct Common {
    /// Only IPv4.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6 (sockets).
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Stop after this long (beyond bcc).
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Only this network namespace: inode number, process id, path or name (beyond bcc).
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
}

impl Common {
    /// The filter of the options that all tools have, of processes, and of an expression.
    fn filter(&self, pid: Option<u32>, expression: &[String]) -> filter::Options {
        filter::Options::all_of(
            (self.ipv4, self.ipv6),
            self.netns.clone(),
            pid,
            expression.join(" and "),
        )
    }
}

/// A list of ports as one value: of several lists argparse takes the last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports(Vec<u16>);

impl FromStr for Ports {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        // Python's int() takes blanks around a number.
        let ports = text.split(',').map(|port| port.trim().parse());
        ports.collect::<Result<_, _>>().map(Self)
    }
}

/// Any of these ports, as an expression on `sport` or `dport`.
fn ports(side: &str, ports: Option<&Ports>) -> Option<String> {
    let Ports(ports) = ports?;
    let tests = ports.iter().map(|port| format!("{side} = :{port}"));
    Some(format!("( {} )", tests.collect::<Vec<_>>().join(" or ")))
}

/// A tool that is a stream in another format.
struct Tool {
    kind: Kind,
    filter: filter::Options,
    duration: Option<Duration>,
    has_stacks: bool,
    format: Box<dyn Format>,
}

impl Tool {
    fn run(self, global: &Global) -> Result<ExitCode> {
        let spec = probes::of(self.kind);
        let watch = Watch {
            spec,
            request: stream::base_request(global, spec, RING_KIB, self.has_stacks),
            plan: self.filter.plan(spec)?,
            duration: self.duration,
            max_overhead: NO_LIMIT,
            shows_offsets: true,
            format: self.format,
            out: Output::open(None)?,
            packets: None,
        };
        watch.run(global)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What they may cost, as a share of the machine: bcc's tools leave nothing out.
const NO_LIMIT: f64 = 1.0;

/// Room for events, in KiB.
const RING_KIB: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches as _;

    #[test]
    fn the_name_of_the_program_is_a_command() {
        let cases = [
            (
                vec!["/usr/bin/tcplife", "-w"],
                vec!["netprobe", "tcplife", "-w"],
            ),
            (vec!["tcpdrop-bpfcc"], vec!["netprobe", "tcpdrop"]),
            (vec!["/x/netprobe", "drops"], vec!["/x/netprobe", "drops"]),
            (vec![], vec![]),
        ];
        for (given, expected) in cases {
            let given = given.into_iter().map(OsString::from);
            assert_eq!(expand(given), expected);
        }
    }

    /// What the tools print first, with all columns.
    fn headings(line: &[&str]) -> String {
        let line = ["bcc"].iter().chain(line);
        let tools = Command::augment_subcommands(clap::Command::new("bcc"));
        let command = Command::from_arg_matches(&tools.get_matches_from(line)).unwrap();
        let mut tool = match &command {
            Command::Tcpdrop(options) => options.tool(),
            Command::Tcpretrans(options) => options.tool(),
            Command::Tcpconnlat(options) => options.tool(),
            Command::Tcplife(options) => options.tool(),
            Command::Tcpstates(options) => options.tool(),
            Command::Tcpaccept(options) => options.tool(),
            Command::Tcpconnect(options) => options.tool(),
            Command::Tcpsynbl(_) | Command::Tcptop(_) => panic!("no stream"),
        };
        let mut out = Vec::new();
        tool.format.begin(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        out.lines().last().unwrap().to_owned()
    }

    #[test]
    fn wide_columns_stand_where_debians_release_has_them() {
        let life = "PID   COMM             IP LADDR                      LPORT RADDR                      RPORT  TX_KB  RX_KB MS";
        assert_eq!(headings(&["tcplife", "-w"]), life);
        let states = "SKADDR           C-PID C-COMM           IP LADDR                      LPORT RADDR                      RPORT OLDSTATE    -> NEWSTATE    MS";
        assert_eq!(headings(&["tcpstates", "-w"]), states);
    }

    #[test]
    fn the_help_explains_every_column() {
        for line in [
            &["tcpdrop", "-x"][..],
            &["tcpretrans", "-x", "-s"],
            &["tcpconnlat", "-x", "-t", "-L"],
            &["tcplife", "-x", "-t", "-T"],
            &["tcplife", "-x", "-s"],
            &["tcpstates", "-x", "-t", "-T"],
            &["tcpstates", "-s"],
            &["tcpaccept", "-x", "-t", "-T"],
            &["tcpconnect", "-x", "-t", "-U", "-L"],
        ] {
            let (_, text) = help::TEXTS
                .iter()
                .find(|(name, _)| *name == line[0])
                .unwrap();
            let headings = headings(line);
            let words = headings.split(|character: char| " ,>()".contains(character));
            for word in words.filter(|word| !matches!(*word, "" | "s" | "ms")) {
                assert!(text.contains(word), "{line:?}: {word}");
            }
        }
    }

    fn parsed(line: &[&str]) -> Command {
        let tools = Command::augment_subcommands(clap::Command::new("bcc"));
        let line = ["bcc"].iter().chain(line);
        Command::from_arg_matches(&tools.try_get_matches_from(line).unwrap()).unwrap()
    }

    #[test]
    fn of_an_option_that_is_given_twice_the_last_counts() {
        for tool in Command::augment_subcommands(clap::Command::new("bcc")).get_subcommands() {
            let line = [tool.get_name(), "-4", "-4", "-x", "-x"];
            let given = parsed(&line);
            assert_eq!(
                format!("{given:?}"),
                format!("{:?}", parsed(&[tool.get_name(), "-4", "-x"]))
            );
        }
        for (twice, once) in [
            (
                &["tcplife", "-T", "-T", "-p", "1", "-p", "2"][..],
                &["tcplife", "-T", "-p", "2"][..],
            ),
            (
                &["tcplife", "-L", "80", "-L", "443, 8443"],
                &["tcplife", "-L", "443,8443"],
            ),
            (
                &["tcpaccept", "-P", "1,2", "-P", "3"],
                &["tcpaccept", "-P", "3"],
            ),
            (&["tcptop", "-C", "-C", "5"], &["tcptop", "-C", "5"]),
        ] {
            assert_eq!(
                format!("{:?}", parsed(twice)),
                format!("{:?}", parsed(once))
            );
        }
    }

    #[test]
    fn ports_become_an_expression() {
        assert_eq!(ports("sport", None), None);
        let list = "80, 81".parse().unwrap();
        assert_eq!(
            ports("dport", Some(&list)).unwrap(),
            "( dport = :80 or dport = :81 )"
        );
        assert!("80,".parse::<Ports>().is_err());
    }
}
