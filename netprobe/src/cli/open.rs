//! `netprobe lifetimes --open`: connections that are open now, also those from before us.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use caps::Capability;
use netprobe_common::counters::Counters;

use super::{absent, filter, stream};
use crate::{
    filter::{
        Error, Expression, Origin, Predicate, check_columns, contradiction, matcher::Matcher,
    },
    kernel::privileges,
    observe::{
        cgroups::{self, Paths},
        clock::{now_ns, unix_ns},
        namespaces,
        owners::{Holder, Owners},
        seniority::{self, Numbers},
        sockets::{self, OpenConnection},
    },
    probes,
    report::{Column, Hook, Layout, Probe, Row, Summary, Value},
};

pub(super) const LAYOUT: Layout = Layout {
    kind: "open",
    columns: &[
        Column::number(
            "pid",
            "PID",
            7,
            "process that holds the socket; of several, the first that the filter admits",
        ),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text(
            "role",
            "ROLE",
            6,
            "client if it was opened from here, server if it was accepted",
        ),
        Column::text("saddr", "LADDR", 15, "local address"),
        Column::number("sport", "LPORT", 5, "local port"),
        Column::text("daddr", "RADDR", 15, "remote address"),
        Column::number("dport", "RPORT", 5, "remote port"),
        Column::text("state", "STATE", 10, "TCP state, as in ss(8)"),
        Column::number(
            "age_ns",
            "AGE",
            7,
            "since it was established, where that is known",
        ),
        Column::number(
            "age_at_least_ns",
            "AGE>=",
            7,
            "it was established no later than this",
        ),
        Column::number("idle_ns", "IDLE", 7, "since data last went either way"),
        Column::number("bytes_sent", "SENT", 10, "bytes of data sent"),
        Column::number("bytes_received", "RECEIVED", 10, "bytes of data received"),
        Column::number("retransmits", "RETR", 4, "segments sent again"),
        Column::number("srtt_us", "SRTT", 7, "smoothed round-trip time").wide(),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
        probes::CGROUP,
        Column::text("family", "FAMILY", 11, "ipv4, ipv6 or ipv4-mapped").hidden(),
        Column::number("ino", "INODE", 8, "inode number of the socket").hidden(),
    ],
};

/// Lists them, the longest open first if that is wanted.
pub(super) fn run(options: &stream::Options, is_longest: bool) -> Result<ExitCode> {
    let matcher = matcher(options.filter())?;
    let began = Instant::now();
    let netns = options.filter().netns()?;
    let (mut connections, mut refused) = sockets::open_connections(netns)?;
    if netns.is_none() {
        refused.extend(hidden_namespaces());
    }
    for error in &refused {
        log::warn!("not seen: {error:#}");
    }
    if is_longest {
        seniority::oldest_first(&mut connections, Numbers::now()?);
    } else {
        // In place: there may be very many.
        connections.sort_unstable_by_key(|open| (open.netns, open.local, open.remote));
    }
    let mut out = options.open()?;
    let mut format = options.format(LAYOUT, out.width())?;
    format.begin(&mut out)?;
    let mut holders = Holders {
        owners: Owners::default(),
        cgroups: Paths::default(),
        have_classes: cgroups::have_classes(),
    };
    let unix_ns = unix_ns();
    let mut listed = Vec::new();
    for connection in &connections {
        if let Some(row) = wanted_row(unix_ns, connection, &mut holders, &matcher) {
            format.row(&mut out, &row)?;
            out.end_record();
            listed.push(connection);
        }
    }
    let counted = (connections.len(), listed.len());
    format.end(&mut out, &summarize(began.elapsed(), &refused, counted))?;
    out.flush()?;
    if is_longest {
        explain_order(&listed);
    }
    Ok(ExitCode::SUCCESS)
}

/// That there may be network namespaces of which nobody knows, for want of a capability.
pub(super) fn hidden_namespaces() -> Option<anyhow::Error> {
    let lacking = privileges::lacking(&[Capability::CAP_SYS_PTRACE])?;
    let hidden = "network namespaces of processes that may not be looked at";
    namespaces::are_hidden().then(|| anyhow!("{hidden}: this needs {lacking}"))
}

/// What was asked, and which namespaces did not answer: of `counted` connections, all and those that were wanted.
fn summarize(
    elapsed: Duration,
    refused: &[anyhow::Error],
    (found, listed): (usize, usize),
) -> Summary {
    let hook = |state| Hook {
        sees: "connections that are open",
        required: false,
        state,
    };
    let refused = refused.iter().map(|error| hook(Err(format!("{error:#}"))));
    let probe = Probe {
        name: LAYOUT.kind,
        about: "connections that are open now",
        weight: "connections",
        hooks: [hook(Ok("sock_diag"))].into_iter().chain(refused).collect(),
        counters: Counters {
            fired: found as u64,
            delivered: found as u64,
            ..Counters::ZERO
        },
        decode_errors: 0,
        filtered_user: (found - listed) as u64,
        unwritten: 0,
        missed: None,
    };
    Summary {
        elapsed,
        probes: vec![probe],
        totals: Vec::new(),
        cost: None,
        connects: None,
        reconciled: Vec::new(),
    }
}

/// The filter; all of it is tested here.
fn matcher(options: &filter::Options) -> Result<Matcher> {
    let expression = options.expression()?;
    check_columns(&expression, LAYOUT.kind, |name| {
        LAYOUT.columns.iter().any(|column| column.name == name)
    })?;
    contradiction::check(&expression)?;
    check_states(&expression)?;
    absent::warn(&expression);
    Ok(Matcher::new(expression, LAYOUT.columns))
}

/// Refuses a filter that wants only sockets in states that are not listed.
fn check_states(expression: &Expression) -> Result<(), Error> {
    let listed = Expression::test(
        Predicate::State(sockets::LISTED),
        Origin::option("lifetimes --open".to_owned()),
    );
    let both = Expression::all([listed, expression.clone()]);
    contradiction::check(&both).map_err(|error| Error {
        message: "--open lists connections, and none in TIME-WAIT, SYN-RECV, LISTEN or CLOSE: `ss -tan` shows those"
            .to_owned(),
        ..error
    })
}

/// An order that is not that of any column is explained.
fn explain_order(connections: &[&OpenConnection]) {
    let count = seniority::without_age(connections);
    if count > 0 {
        log::info!(
            "data went both ways over {count} of {}: the kernel does not tell their age, only that it is at least AGE>=; \
             they stand as high among the others as the numbers of their sockets, which rise with time, allow",
            connections.len()
        );
    }
}

/// Who holds sockets.
struct Holders {
    owners: Owners,
    cgroups: Paths,
    have_classes: bool,
}

/// The row of a connection, with the first of its holders that the filter admits.
fn wanted_row(
    unix_ns: i64,
    connection: &OpenConnection,
    holders: &mut Holders,
    matcher: &Matcher,
) -> Option<Row> {
    // One scan finds them all.
    let _first = holders.owners.of(connection.ino, 0);
    let sharing: Vec<Holder> = holders.owners.last(connection.ino).to_vec();
    let mut owners: Vec<Option<(u32, [u8; 16])>> = sharing
        .iter()
        .map(|holder| Some((holder.pid, holder.comm)))
        .collect();
    if owners.is_empty() {
        owners.push(None);
    }
    owners
        .into_iter()
        .map(|owner| row(unix_ns, connection, owner, holders))
        .find(|row| matcher.admits(row))
}

fn row(
    unix_ns: i64,
    connection: &OpenConnection,
    owner: Option<(u32, [u8; 16])>,
    holders: &mut Holders,
) -> Row {
    let known = connection.cgroup.and_then(|id| holders.cgroups.of(id));
    let cgroup = match known {
        // The kernel tells the root of a socket that has a class instead of a group.
        Some(path) if !(&*path == "/" && holders.have_classes) => Some(path),
        known => owner
            .and_then(|(pid, _)| cgroups::of_process(pid))
            .or(known),
    };
    let cgroup = cgroup.map_or(Value::Unknown, Value::Text);
    let traffic = connection.traffic;
    let count = |value: Option<u64>| value.map_or(Value::Unknown, Value::Unsigned);
    Row {
        unix_ns,
        monotonic_ns: now_ns(),
        kind: LAYOUT.kind,
        packet: Vec::new(),
        values: vec![
            owner.map_or(Value::Unknown, |(pid, _)| Value::nonzero(pid)),
            owner.map_or(Value::Unknown, |(_, comm)| Value::name(comm)),
            match connection.is_server {
                Some(true) => Value::Word("server"),
                Some(false) => Value::Word("client"),
                None => Value::Unknown,
            },
            Value::Ip(connection.local.0),
            Value::Unsigned(u64::from(connection.local.1)),
            Value::Ip(connection.remote.0),
            Value::Unsigned(u64::from(connection.remote.1)),
            probes::tcp_state(connection.state),
            count(traffic.and_then(|traffic| traffic.age).map(nanos)),
            count(traffic.map(|traffic| nanos(traffic.least_age))),
            count(traffic.map(|traffic| nanos(traffic.idle))),
            count(traffic.map(|traffic| traffic.bytes_sent)),
            count(traffic.map(|traffic| traffic.bytes_received)),
            count(traffic.map(|traffic| u64::from(traffic.retransmits))),
            count(traffic.map(|traffic| u64::from(traffic.srtt_us))),
            Value::nonzero(connection.netns),
            cgroup,
            Value::Word(connection.family),
            Value::nonzero(connection.ino),
        ],
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::OwnedFd,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_list_without_some_namespace_is_not_complete() {
        let summary = |refused: &[anyhow::Error]| summarize(Duration::ZERO, refused, (5, 3));
        assert!(summary(&[]).is_complete());
        let refused = anyhow!("enter network namespace 7");
        let summary = summary(&[refused]);
        assert!(!summary.is_complete());
        let [probe] = &summary.probes[..] else {
            panic!("one list is one probe");
        };
        assert_eq!((probe.state(), probe.shown()), ("partial", 3));
        assert_eq!(probe.counters.unexplained(), 0);
    }

    #[test]
    fn states_that_are_not_listed_are_refused() {
        let of = |text: &str| {
            let text = text.to_owned();
            matcher(&filter::Options::all_of((false, false), None, None, text))
        };
        for text in [
            "state = time-wait",
            "state bucket",
            "dport = :443 and state listening",
        ] {
            let refused = of(text).unwrap_err().to_string();
            assert!(refused.contains("ss -tan"), "{refused}");
        }
        for text in [
            "state connected",
            "state = time-wait or dport = :443",
            "state fin-wait-2",
        ] {
            assert!(of(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_shared_socket_is_listed_under_the_holder_that_is_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connections, _refused) = match sockets::open_connections(None) {
            Ok(found) => found,
            Err(error) => {
                println!("SKIP this kernel does not list sockets: {error:#}");
                return;
            }
        };
        let local = near.local_addr().unwrap();
        let Some(shared) = connections
            .iter()
            .find(|open| open.local == (local.ip(), local.port()))
        else {
            println!("SKIP sockets of this namespace are not listed");
            return;
        };
        let mut worker = Command::new("cat")
            .stdin(OwnedFd::from(near.try_clone().unwrap()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for pid in [std::process::id(), worker.id()] {
            let wanted = filter::Options::all_of((false, false), None, Some(pid), String::new());
            let mut holders = Holders {
                owners: Owners::default(),
                cgroups: Paths::default(),
                have_classes: false,
            };
            let matcher = matcher(&wanted).unwrap();
            let row = wanted_row(0, shared, &mut holders, &matcher).unwrap();
            assert_eq!(row.values[0], Value::Unsigned(u64::from(pid)));
        }
        drop((near, listener));
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
}
