//! Services that ended, or were restarted, with connections open: what their clients sent afterwards was reset. That is
//! no defect of how the application closes connections, and whoever still wants the service is refused, which is told
//! for itself.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::super::{
        events::{Event, Owner, port_of},
        finding::{finding, somewhere},
        places::{self, End},
        window::{Netns, Window, endpoint},
    },
    RULE, Reset,
};
use crate::{
    observe::{diag::Listener, processes::Process},
    report::diagnosis::{Affected, Confidence, Finding, Severity},
};

/// Why what comes for connections of a process that is gone is reset.
pub(super) const CAUSES: [&str; 4] = [
    "data-after-close",
    "unread-data",
    "time-wait",
    "no-connection",
];
/// From so many different ends on it is a service that they were connected to.
const CLIENTS: usize = 5;

/// What is known of a service that is not there any more.
pub(super) struct Ended<'a> {
    /// What listened when the window began.
    listener: Option<&'a Listener>,
    /// Whether something else listens there now.
    is_anew: bool,
}

/// The services of a namespace that ended in the window or before it, by port, of those that resets were sent for.
pub(super) fn services<'a>(window: &Window, netns: &'a Netns) -> BTreeMap<u16, Ended<'a>> {
    let inode = netns.inode.to_string();
    let mut ports = BTreeSet::new();
    for cause in CAUSES {
        let group = [("cause", cause), ("netns", inode.as_str())];
        let groups = window.events.groups("resets", &group);
        ports.extend(groups.filter_map(|total| port_of(total, "service_port")));
    }
    let ended = ports
        .into_iter()
        .filter_map(|port| Some((port, service(window, netns, port)?)));
    ended.collect()
}

/// Whether the service at a port is one of those, as far as the namespace can tell.
pub(super) fn service<'a>(window: &Window, netns: &'a Netns, port: u16) -> Option<Ended<'a>> {
    let [before, after] = [&netns.before, &netns.after].map(|seen| seen.sockets.as_ref());
    let (before, after) = before.zip(after)?;
    let is_at = |listener: &&Listener| listener.port == port;
    let mut old = before.listeners.iter().filter(is_at);
    let mut new = after.listeners.iter().filter(is_at);
    let is_anew = new.clone().next().is_some();
    let Some(listener) = old.clone().next() else {
        // It ended before the window.
        let is_service = !is_anew && clients(window, netns, port) >= CLIENTS;
        return is_service.then_some(Ended {
            listener: None,
            is_anew,
        });
    };
    let has_stayed = new.any(|new| old.any(|old| old.ino == new.ino));
    (!has_stayed).then_some(Ended {
        listener: Some(listener),
        is_anew,
    })
}

/// Whether a service of this machine is gone, and most of `count` resets that its clients received are told of there.
pub(super) fn tells_of(window: &Window, seen_in: &Netns, (address, port): End, count: u64) -> bool {
    let homes = places::homes(window, seen_in, address);
    homes.iter().any(|home| {
        service(window, home, port).is_some() && counted(window, home, port) * 2 > count
    })
}

/// How many resets were sent for connections to a port.
fn counted(window: &Window, netns: &Netns, port: u16) -> u64 {
    let [inode, number] = [netns.inode.to_string(), port.to_string()];
    let count = |cause| {
        let group = [
            ("cause", cause),
            ("direction", "sent"),
            ("netns", inode.as_str()),
            ("service_port", number.as_str()),
        ];
        window.events.count("resets", &group)
    };
    CAUSES.into_iter().map(count).sum()
}

/// How many different ends had connections to a port of this machine that were reset. What belongs to no connection and
/// has no data may be a scan, or an answer to a forged address.
fn clients(window: &Window, netns: &Netns, port: u16) -> usize {
    let sent = sent(window, netns, port)
        .filter(|reset| !reset.is("cause", "no-connection") || reset.number("data") > Some(0));
    let remotes: BTreeSet<End> = sent
        .filter_map(places::ends)
        .map(|(_, remote)| remote)
        .collect();
    remotes.len()
}

/// The resets that were sent for connections to a port, as far as they were seen.
fn sent<'a>(
    window: &'a Window,
    netns: &Netns,
    port: u16,
) -> impl Iterator<Item = &'a Event> + use<'a> {
    let resets = window.events.within("resets", netns.inode);
    resets.filter(move |event| {
        event.is("direction", "sent")
            && CAUSES.iter().any(|cause| event.is("cause", cause))
            && event.small("sport") == Some(port)
    })
}

/// A finding for each, with how many resets it is of.
pub(super) fn check(
    window: &Window,
    netns: &Netns,
    ended: &BTreeMap<u16, Ended<'_>>,
    opened: u64,
) -> Vec<(u64, Finding)> {
    let found = ended.iter().filter_map(|(port, ended)| {
        let count = counted(window, netns, *port);
        let connections = places::connections(window, netns, *port);
        let connections = if connections == 0 {
            opened
        } else {
            connections
        };
        let reset = Reset::weigh(count, connections, false)?;
        Some((count, describe(window, netns, (*port, ended), &reset)))
    });
    found.collect()
}

/// The processes whose connections with an end of this machine were reset, each with its namespace, the busiest first.
fn hit(window: &Window, local: &BTreeSet<End>) -> Vec<(Owner, End, u32)> {
    let mut owners = BTreeMap::<(Owner, End, u32), usize>::new();
    for event in window.events.of("resets") {
        let Some(((_, service), netns)) = places::ends(event).zip(event.netns()) else {
            continue;
        };
        let is_named = event.text("comm").is_some();
        if event.is("direction", "received") && local.contains(&service) && is_named {
            *owners.entry((event.owner(), service, netns)).or_default() += 1;
        }
    }
    let mut owners: Vec<_> = owners.into_iter().collect();
    owners.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    owners.into_iter().map(|(owner, _)| owner).take(3).collect()
}

/// Who listened, where, what became of it, and whose connections were open.
fn words(
    ended: &Ended<'_>,
    (holder, is_reopened): (Option<&Process>, bool),
    (port, local): (u16, &BTreeSet<End>),
    clients: &[(Owner, End, u32)],
) -> [String; 4] {
    let who = holder.map_or_else(
        || "the process".to_owned(),
        |holder| format!("{} (pid {})", holder.comm, holder.pid),
    );
    let place = local.first().map_or_else(
        || format!("port {port}"),
        |(address, port)| endpoint(*address, *port),
    );
    let what = if is_reopened {
        "closed its listener and opened it again"
    } else if ended.is_anew {
        "was replaced by another"
    } else if ended.listener.is_some() {
        "ended or closed its listener, and nobody listens there any more"
    } else {
        "is gone, and nobody listens there"
    };
    let names: BTreeSet<String> = clients
        .iter()
        .filter_map(|((_, comm), ..)| comm.clone())
        .collect();
    let whose = if names.is_empty() {
        "its clients".to_owned()
    } else {
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    [who, place, what.to_owned(), whose]
}

fn describe(
    window: &Window,
    netns: &Netns,
    (port, ended): (u16, &Ended<'_>),
    reset: &Reset,
) -> Finding {
    let ends = sent(window, netns, port).filter_map(places::ends);
    let local: BTreeSet<End> = ends.map(|(local, _)| local).collect();
    let holder = ended.listener.and_then(|listener| {
        let mut holders = window.processes_before.holders(listener.ino);
        holders.next()
    });
    let mut now = places::at_port(netns, port).flat_map(|new| window.processes.holders(new.ino));
    let is_reopened = holder.is_some_and(|holder| now.any(|now| now.pid == holder.pid));
    let clients = hit(window, &local);
    let [who, place, what, whose] = words(ended, (holder, is_reopened), (port, &local), &clients);
    let count = reset.count;
    let found = finding(
        RULE.id,
        Severity::Info,
        Confidence::High,
        format!(
            "{who} that listened at {place}{} {what}, with connections of {whose} still open: {count} times they were used \
             after that, and reset, in {:.0} s",
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!("{count} resets for connections of a service that is gone"),
        count,
        "resets",
        "resets",
    );
    let listeners = local.iter().take(1).map(|(address, port)| Affected {
        kind: "listener",
        pid: holder.map(|holder| holder.pid),
        comm: holder.map(|holder| holder.comm.clone()),
        ..Window::affected_destination(netns, *address, *port)
    });
    let found = found.hits(listeners).hits(clients.into_iter().map(
        |((pid, comm), (address, port), inode)| Affected {
            pid,
            comm,
            netns: Some(inode),
            ..Window::affected_destination(netns, address, port)
        },
    ));
    let found = if found.affected.is_empty() {
        found.hits([somewhere(netns)])
    } else {
        found
    };
    found.command(
        "if it was stopped on purpose (scale-down, deployment), have its clients stop using it first, and try again elsewhere on \
         the end of a connection; if not, its log and the kernel's (OOM, segfault) say why it ended",
        "none",
    )
}
