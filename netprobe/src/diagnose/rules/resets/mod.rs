//! Connections are reset while they are in use, by reason.

use std::collections::{BTreeMap, BTreeSet};

mod closed_early;
mod ended;
mod harmless;
mod idle_timeout;
mod refusals;
mod scan;
mod stale;
mod unexplained;

pub(super) use closed_early::CAUSES as CLOSED_EARLY;

use super::super::{
    Explanation, Rule, Verdict,
    events::{Owner, port_of, value_of},
    finding::{finding, somewhere},
    in_each,
    places::{self, End},
    received,
    window::{Netns, Window, ratio},
};
use crate::report::{
    Value,
    diagnosis::{Affected, Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "resets",
    title: "connections are reset",
    check,
    explanation: Explanation {
        symptom: "\"Connection reset by peer\", \"connection refused\" or \"broken pipe\" under load.",
        cause: "A reset has a reason: nobody listens at the port (tcp_v4_send_reset()), the application closed with data \
                unread or got data after it closed (tcp_close(), tcp_rcv_state_process()), it closed with SO_LINGER 0, \
                keepalive or tcp_user_timeout gave up, or the kernel did (orphans, memory).",
        recognised: "The resets probe counts them by direction and cause. Deliberate ones (SO_LINGER 0, disconnect) and those \
                     to ports that nobody listens at are only noted, as is what is below one in twenty of the connections of \
                     a service: some clients of any service leave early. Resets that established connections received, \
                     although they were in use, are told by destination, whatever the peer sent them for; so are those of connections that the \
                     peer had closed in order, and that were written to all the same: while it closed, or long after. Where most of \
                     those that a service here closed had been without data for half a second or more, it is its idle timeout. What is refused at one \
                     address while the same process gets through at another of the same machine (localhost as ::1 and 127.0.0.1) \
                     is only noted. It is critical where a destination that is asked more often than health checks do (8 times a \
                     second) refuses every connect, and where a service closes a third of its connections or more as soon as it has accepted \
                     them, unread. What clients of a service that ended meanwhile, or was restarted, send on their \
                     open connections is only noted. So are those of the last words of a protocol (close_notify of TLS, QUIT), \
                     recognised by the length of the data, that are said to an end that has closed already, and of health checks that \
                     close as soon as they are connected. A firewall is named only where one of this machine was seen to drop the SYNs.",
        fixes: &[
            (
                "received in use: look at the peer (its log, netprobe resets there), and at a proxy in between",
                "none",
            ),
            (
                "written to after the peer had closed, or while it did: have the pool give up idle connections before the service does",
                "more new connections",
            ),
            (
                "unread data: have the server read requests to their end before it closes",
                "none",
            ),
            ("refused: start the service, or correct the port", "none"),
            ("timeout: see path-loss and idle-reset", "none"),
        ],
    },
};

/// Most services that are named.
const MOST_NAMED: usize = 8;
const LEAST: u64 = 5;
/// The part of a service's connections that is worth a note.
const NOTABLE: f64 = 0.01;
/// The part that is a failure: fewer are clients that leave, as some do of any service.
const MUCH: f64 = 0.05;

/// Causes, how bad they are, and what they mean.
const CAUSES: &[(&str, bool, &str)] = &[
    (
        "unread-data",
        true,
        "the application closed without reading all that had come",
    ),
    (
        "data-after-close",
        true,
        "data came for a connection that the application had closed",
    ),
    (
        "listener-closed",
        true,
        "the listener was closed before it accepted",
    ),
    (
        "timeout",
        true,
        "keepalive or the user timeout had no answer",
    ),
    ("orphan", true, "the kernel gave up a closed connection"),
    ("refused", true, "the peer refused the connection"),
    (
        "no-listener",
        false,
        "SYNs came for ports that nobody listens at",
    ),
    (
        "no-connection",
        false,
        "packets came that belong to no connection",
    ),
    (
        "time-wait",
        false,
        "packets came for connections in TIME_WAIT",
    ),
    (
        "unexpected-ack",
        false,
        "acknowledgements that belong to no handshake",
    ),
    (
        "linger-0",
        false,
        "the application closed with SO_LINGER 0, on purpose",
    ),
    (
        "disconnect",
        false,
        "the application disconnected, on purpose",
    ),
    ("killed", false, "somebody killed the sockets (ss -K)"),
];

/// Resets with one cause, or from one peer.
struct Reset {
    count: u64,
    /// How many there were at all addresses of the port.
    at_port: u64,
    severity: Severity,
    /// How many connections there were beside, and what part of them it is.
    share: f64,
    /// Of connects that were refused, those of one address of several.
    worst_end: Option<refusals::Worst>,
    /// Other services that it is as bad with: their ports, and how many resets.
    beside: Vec<(Option<u16>, u64)>,
}

impl Reset {
    /// Of `count` among `connections`; `None` where that is nothing.
    fn weigh(count: u64, connections: u64, is_bad: bool) -> Option<Self> {
        let share = ratio(count, connections.max(count));
        if count < LEAST || share < NOTABLE {
            return None;
        }
        let severity = if is_bad && share >= MUCH {
            Severity::Warning
        } else {
            Severity::Info
        };
        Some(Self {
            count,
            at_port: count,
            severity,
            share,
            worst_end: None,
            beside: Vec::new(),
        })
    }
}

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        window.watched_required("resets")?;
        let opened = netns.grown("Tcp.ActiveOpens")? + netns.grown("Tcp.PassiveOpens")?;
        let ended = ended::services(window, netns);
        let mut harmless = harmless::at_services(window, netns);
        harmless.retain(|port, _| !ended.contains_key(port));
        let mut found = ended::check(window, netns, &ended, opened);
        found.extend(harmless::check(window, netns, &harmless));
        let mut early = Vec::new();
        for (cause, is_bad, meaning) in CAUSES {
            let is_told = |port: u16| {
                ended::CAUSES.contains(cause) && ended.contains_key(&port)
                    || harmless::explain(cause) && harmless.contains_key(&port)
            };
            let mut services = weighed(window, netns, cause, (opened, *is_bad));
            services.retain(|(port, _)| !port.is_some_and(is_told));
            if *cause == "refused" {
                let refusals = services.into_iter().map(|(port, reset)| {
                    let finding = if port.is_none() && scan::is_scan(window, netns) {
                        scan::describe(window, netns, &reset)
                    } else {
                        refusals::describe(window, netns, port, &reset)
                    };
                    (reset.count, finding)
                });
                found.extend(refusals);
            } else if let Some((port, reset)) = worst(services) {
                let mut hits = self::services(window, netns, cause);
                hits.retain(|hit| !hit.port.is_some_and(is_told));
                hits.sort_by_key(|hit| port.is_some() && hit.port != port);
                let finding = describe(window, netns, (cause, meaning, hits), (port, &reset));
                if closed_early::CAUSES.contains(cause) {
                    early.push((reset.count, finding, *meaning));
                } else {
                    found.push((reset.count, finding));
                }
            }
        }
        found.extend(closed_early::merge(window, netns, early));
        found.extend(unexplained::check(window, netns, opened));
        found.extend(stale::check(window, netns, opened));
        if found.is_empty() {
            received::check_seen(window, netns)?;
        }
        found.sort_by_key(|(count, finding)| std::cmp::Reverse((finding.severity, *count)));
        // One of them explains the others, as a rule: each reset is sent and received.
        Ok(found
            .into_iter()
            .take(3)
            .map(|(_, finding)| finding)
            .collect())
    })
}

/// The resets of a cause by the port of the service, as part of its connections: one service that fails
/// is not hidden by another that is busy.
fn weighed(
    window: &Window,
    netns: &Netns,
    cause: &str,
    (opened, is_bad): (u64, bool),
) -> Vec<(Option<u16>, Reset)> {
    let inode = netns.inode.to_string();
    let group = [("cause", cause), ("netns", inode.as_str())];
    let mut ports = BTreeMap::<Option<u16>, u64>::new();
    for total in window.events.groups("resets", &group) {
        *ports.entry(port_of(total, "service_port")).or_default() += total.events;
    }
    let weighed = ports.into_iter().filter_map(|(port, count)| {
        let connections = port.map_or(0, |port| places::connections(window, netns, port));
        // Where connections are not counted by service, all of the namespace have to do.
        let connections = if connections == 0 {
            opened
        } else {
            connections
        };
        // One instance of many that share the port may be all that somebody has.
        let worst_end = port
            .filter(|_| cause == "refused")
            .and_then(|port| refusals::at_worst_end(window, netns, port, count));
        let (part, connections) = worst_end.as_ref().map_or((count, connections), |worst| {
            (worst.refused, worst.connections)
        });
        let reset = Reset {
            at_port: count,
            worst_end,
            ..Reset::weigh(part, connections, is_bad)?
        };
        Some((port, reset))
    });
    weighed.collect()
}

/// The worst of them by its port, with those beside that are as bad.
fn worst(mut services: Vec<(Option<u16>, Reset)>) -> Option<(Option<u16>, Reset)> {
    services.sort_by_key(|(_, reset)| std::cmp::Reverse((reset.severity, reset.count)));
    let mut services = services.into_iter();
    let (port, mut worst) = services.next()?;
    let as_bad = services.filter(|(_, reset)| reset.severity == worst.severity);
    worst.beside = as_bad.map(|(port, reset)| (port, reset.count)).collect();
    Some((port, worst))
}

impl Reset {
    /// What the other services have.
    fn beside_words(&self) -> String {
        let beside = self.beside.iter().map(|(port, count)| match port {
            Some(port) => format!("; {count} more at port {port}"),
            None => format!("; {count} more of others"),
        });
        beside.take(3).collect()
    }
}

/// Whether somebody listens at an end, or did when the window began; taken to be so where that is not known.
fn is_listened_at(netns: &Netns, (address, port): End) -> bool {
    let tables = [&netns.before, &netns.after].map(|seen| seen.sockets.as_ref());
    if tables.contains(&None) {
        return true;
    }
    let mut listeners = tables
        .into_iter()
        .flatten()
        .flat_map(|table| &table.listeners);
    listeners.any(|listener| listener.port == port && listener.takes(address))
}

/// The services that it hits, the worst first.
fn services(window: &Window, netns: &Netns, cause: &str) -> Vec<Affected> {
    let mut services = BTreeMap::<_, (u32, Owner)>::new();
    for event in window.events.within("resets", netns.inode) {
        if !event.is("cause", cause) {
            continue;
        }
        let Some((local, remote)) = places::ends(event) else {
            continue;
        };
        let is_server = local.1 < remote.1;
        let (kind, end) = match (is_server, is_listened_at(netns, local)) {
            (true, true) => ("listener", local),
            // What comes for a port that nobody listens at is sent to it all the same.
            (true, false) => ("destination", local),
            (false, _) => ("destination", remote),
        };
        let entry = services.entry((end, kind)).or_insert((0, event.owner()));
        entry.0 += 1;
    }
    let mut services: Vec<_> = services.into_iter().collect();
    services.sort_by_key(|(_, (count, ..))| std::cmp::Reverse(*count));
    let hits =
        services
            .into_iter()
            .take(MOST_NAMED)
            .map(|(((address, port), kind), (_, (pid, comm)))| Affected {
                kind,
                pid,
                comm,
                ..Window::affected_destination(netns, address, port)
            });
    hits.collect()
}

/// What the kernel says of resets with a cause.
fn reasons(window: &Window, netns: &Netns, cause: &str) -> Vec<String> {
    let inode = netns.inode.to_string();
    let group = [("cause", cause), ("netns", inode.as_str())];
    let groups = window.events.groups("resets", &group);
    let reasons = groups.filter_map(|total| match value_of(total, "reason") {
        Value::Text(reason) => Some(reason.to_string()),
        _ => None,
    });
    let all: BTreeSet<_> = reasons.collect();
    all.into_iter().take(3).collect()
}

fn describe(
    window: &Window,
    netns: &Netns,
    (cause, meaning, mut hits): (&str, &str, Vec<Affected>),
    (port, reset): (Option<u16>, &Reset),
) -> Finding {
    let (count, severity) = (reset.count, reset.severity);
    // What is told is of one port; those of more ports than can be told apart are at no single one.
    hits.sort_by_key(|hit| hit.port != port);
    let worst = hits
        .first()
        .filter(|hit| port.is_some() && hit.port == port);
    let place = worst.map_or(String::new(), |hit| format!(" ({} {})", hit.kind, hit.name));
    if hits.is_empty() {
        hits.push(somewhere(netns));
    }
    let reasons = reasons(window, netns, cause);
    let beside = reset.beside_words();
    let found = finding(
        RULE.id,
        severity,
        Confidence::High,
        format!(
            "{count} resets{}{place} in {:.0} s: {meaning}{beside}",
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!(
            "{count} resets with cause {cause}: {:.0} % of the connections",
            reset.share * 100.0
        ),
        count,
        "resets",
        "resets",
    );
    let found = if reasons.is_empty() {
        found
    } else {
        found.counted(
            format!("the kernel's reason: {}", reasons.join(", ")),
            count,
            "resets",
            "tcp_send_reset",
        )
    };
    let advice = match cause {
        "unread-data" => "have the application read to the end before it closes",
        "data-after-close" => {
            "have the application wait for the peer's end (shutdown, then read) before it closes"
        }
        "timeout" => "the peer is gone: see whether path-loss is found too",
        _ => "netprobe resets shows each of them with its process",
    };
    found.hits(hits).command(advice, "none")
}

#[cfg(test)]
mod tests;
