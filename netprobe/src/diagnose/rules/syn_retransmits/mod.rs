//! SYNs or SYN-ACKs go unanswered and are sent again: connecting takes 1, 3, 7 s, or fails.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use super::super::{
    Explanation, Rule, Verdict, dropped,
    events::Event,
    finding::{finding, somewhere},
    in_each,
    window::{Netns, Window, ratio},
};
use crate::report::{
    Value,
    diagnosis::{Affected, Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "syn-retransmits",
    title: "connection attempts go unanswered",
    check,
    explanation: Explanation {
        symptom: "Connect latency comes in steps of 1, 3, 7, 15 s, or connect() fails with ETIMEDOUT after two minutes.",
        cause: "A SYN without an answer is sent again by tcp_retransmit_timer() after 1 s, then twice as long, up to \
                tcp_syn_retries times; a SYN-ACK likewise. Something between the two ends drops it: the listener, a \
                firewall or conntrack on either machine, or the path.",
        recognised: "TCPSynRetrans grew; events name the destination. It is critical when next to no connect to it succeeds. Where \
                     the listener is on this machine too and sends its SYN-ACKs again, that is one finding. Whether a listener, the firewall or conntrack of this \
                     machine is at fault is told by their own findings, which come first. It is said to be the path or the \
                     peer only where no SYN was seen to be dropped in any namespace of this machine (kfree_skb, conntrack), and no \
                     listener or conntrack of those that were watched counted one (ListenDrops, TCPReqQFullDrop, drop).",
        fixes: &[
            (
                "look at the other end (netprobe diagnose there): listener, firewall, conntrack",
                "none",
            ),
            (
                "check that the address is right and answers: a route, a security group",
                "none",
            ),
        ],
    },
};

const LEAST: u64 = 3;
const MUCH: f64 = 0.02;

/// A destination that takes at most this share of the connects is down.
const DOWN: f64 = 0.05;
/// Fewer connects are not "all of them".
const LEAST_CONNECTS: u64 = 5;

/// SYNs or SYN-ACKs of a namespace that were sent again.
struct Unanswered<'a> {
    netns: &'a Netns,
    again: u64,
    syns: u64,
    answers: u64,
    /// Who does not answer, the worst first.
    silent: Vec<Affected>,
}

/// Connects to a destination, among those that were seen.
struct Connects {
    attempts: u64,
    established: u64,
}

fn check(window: &Window) -> Verdict {
    let mut all = Vec::new();
    let scans = dropped::scans(window);
    let verdict = in_each(window, |netns| {
        let again = netns.grown("TcpExt.TCPSynRetrans")?;
        let again = wanted(window, netns, &scans, again);
        let opened = netns.grown("Tcp.ActiveOpens")? + netns.grown("Tcp.PassiveOpens")?;
        if again >= LEAST && ratio(again, opened + again) >= MUCH {
            all.push(netns.inode);
        }
        Ok(Vec::new())
    });
    let is_hit = |netns: &&Netns| all.contains(&netns.inode);
    let hit = window.namespaces.iter().filter(is_hit);
    let hit: Vec<Unanswered<'_>> = hit
        .map(|netns| Unanswered::of(window, netns, &scans))
        .collect();
    if hit.is_empty() {
        return verdict;
    }
    let (clients, servers): (Vec<_>, Vec<_>) = hit.into_iter().partition(Unanswered::is_client);
    let ends = clients.iter().map(|client| {
        let far = servers.iter().find(|server| client.is_of(server));
        describe(window, client, far)
    });
    let mut found: Vec<Finding> = ends.collect();
    let alone = servers
        .iter()
        .filter(|server| !clients.iter().any(|client| client.is_of(server)));
    found.extend(alone.map(|server| describe(window, server, None)));
    Verdict::Found(found)
}

impl<'a> Unanswered<'a> {
    fn of(window: &Window, netns: &'a Netns, scans: &Scans) -> Self {
        let inode = netns.inode.to_string();
        let [syns, answers] = ["syn", "syn-ack"].map(|cause| {
            let group = [("cause", cause), ("netns", inode.as_str())];
            window.events.count("retransmits", &group)
        });
        let cause = if answers > syns { "syn-ack" } else { "syn" };
        Self {
            netns,
            again: wanted(
                window,
                netns,
                scans,
                netns.grown("TcpExt.TCPSynRetrans").unwrap_or(0),
            ),
            syns,
            answers,
            silent: silent(window, netns, scans, cause),
        }
    }

    const fn is_client(&self) -> bool {
        self.answers <= self.syns
    }

    /// The address and port of who is silent most.
    fn end(&self) -> Option<(IpAddr, u16)> {
        let hit = self.silent.first()?;
        hit.address.zip(hit.port)
    }

    /// Whether the silent destination of this one is the listener of the other.
    fn is_of(&self, server: &Self) -> bool {
        self.end().is_some() && self.end() == server.end()
    }

    /// How connects to the silent destination went, where they are seen.
    fn connects(&self, window: &Window) -> Option<Connects> {
        let (address, port) = self.end()?;
        window.watched_required("connects").ok()?;
        let is_to = |event: &&Event| {
            event.ip("daddr") == Some(address) && event.small("dport") == Some(port)
        };
        let ended = window
            .events
            .within("connects", self.netns.inode)
            .filter(is_to);
        let (mut attempts, mut established) = (0, 0);
        let mut ports = HashSet::new();
        for event in ended {
            attempts += 1;
            established += u64::from(event.is("outcome", "established"));
            ports.insert(event.number("sport"));
        }
        // A connect without a time limit of its own does not end within the window. Where connects
        // are a sample, their ports do not tell which ones are still waiting.
        if window.events.weight("connects") < 1.5 {
            let waiting = window.events.within("retransmits", self.netns.inode);
            let waiting = waiting
                .filter(|event| event.is("cause", "syn"))
                .filter(is_to);
            let waiting: HashSet<_> = waiting.map(|event| event.number("sport")).collect();
            attempts += waiting.difference(&ports).count() as u64;
        }
        Some(Connects {
            attempts,
            established,
        })
    }
}

impl Connects {
    fn is_down(&self) -> bool {
        self.attempts >= LEAST_CONNECTS && ratio(self.established, self.attempts) <= DOWN
    }
}

/// Who tries port after port of an address, and is kept out by a firewall here.
type Scans = HashSet<(IpAddr, IpAddr)>;

/// Whether a SYN goes to a port that nobody waits for an answer of.
fn is_of_scan(scans: &Scans, event: &Event) -> bool {
    let ends = event.ip("saddr").zip(event.ip("daddr"));
    ends.is_some_and(|ends| scans.contains(&ends))
}

/// Of so many SYNs and SYN-ACKs, those that are of no scan.
fn wanted(window: &Window, netns: &Netns, scans: &Scans, again: u64) -> u64 {
    if scans.is_empty() {
        return again;
    }
    let (mut all, mut rest) = (0_u64, 0_u64);
    for event in window.events.within("retransmits", netns.inode) {
        if event.is("cause", "syn") || event.is("cause", "syn-ack") {
            all += 1;
            rest += u64::from(!is_of_scan(scans, event));
        }
    }
    (again * rest).checked_div(all).unwrap_or(again)
}

/// Who does not answer, the worst first: destinations of SYNs, or listeners whose clients are silent.
fn silent(window: &Window, netns: &Netns, scans: &Scans, cause: &str) -> Vec<Affected> {
    let mut silent = BTreeMap::<_, (u32, Option<u32>, Option<String>)>::new();
    for event in window.events.within("retransmits", netns.inode) {
        if !event.is("cause", cause) || is_of_scan(scans, event) {
            continue;
        }
        let end = if cause == "syn" {
            event.ip("daddr").zip(event.small::<u16>("dport"))
        } else {
            event.ip("saddr").zip(event.small::<u16>("sport"))
        };
        if let Some(end) = end {
            let entry = silent
                .entry(end)
                .or_insert((0, event.small("pid"), event.text("comm")));
            entry.0 += 1;
        }
    }
    let mut silent: Vec<_> = silent.into_iter().collect();
    silent.sort_by_key(|(_, (count, ..))| std::cmp::Reverse(*count));
    let kind = if cause == "syn" {
        "destination"
    } else {
        "listener"
    };
    let hits = silent
        .into_iter()
        .take(4)
        .map(|((address, port), (_, pid, comm))| Affected {
            kind,
            pid,
            comm,
            ..Window::affected_destination(netns, address, port)
        });
    hits.collect()
}

/// Whether none of what drops SYNs within this machine has dropped any, and all of it was looked at.
fn is_elsewhere(window: &Window) -> bool {
    const SYN: u8 = 2;
    // The other end, or a router, may be in another namespace of this machine.
    let mut dropped = window.events.of("drops").iter().peekable();
    let is_sample = dropped.peek().is_some() || window.events.count("drops", &[]) == 0;
    let is_syn =
        |event: &Event| matches!(event.value("flags"), Value::TcpFlags(flags) if flags & SYN > 0);
    let is_sent = window.watched_required("drops").is_ok()
        && is_sample
        && !dropped.any(is_syn)
        && window.events.count("conntrack", &[]) == 0;
    let counters = [
        "TcpExt.ListenDrops",
        "TcpExt.TCPReqQFullDrop",
        "nf_conntrack.drop",
    ];
    let is_quiet = |netns: &Netns| {
        let quiet = |name| netns.grown_if_any(name) == Ok(0);
        counters.into_iter().all(quiet)
    };
    is_sent && window.namespaces.iter().all(is_quiet) && window.vanished.is_empty()
}

/// What is wrong: seen at one end, and perhaps at the other too.
#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(window: &Window, near: &Unanswered<'_>, far: Option<&Unanswered<'_>>) -> Finding {
    let connects = if near.is_client() {
        near.connects(window)
    } else {
        None
    };
    let summary = match far {
        _ if !near.is_client() => clients_are_silent(window, near),
        Some(far) => both_ends(window, (near, far), connects.as_ref()),
        None => destination_is_silent(window, near, connects.as_ref()),
    };
    let severity = if connects.as_ref().is_some_and(Connects::is_down) {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let confidence = if near.silent.is_empty() {
        Confidence::Low
    } else {
        Confidence::High
    };
    let found = finding(RULE.id, severity, confidence, summary)
        .counted(
            format!("{} SYNs and SYN-ACKs sent again", near.again),
            near.again,
            "segments",
            "TcpExt.TCPSynRetrans",
        )
        .counted(
            format!("{} of them SYNs, {} SYN-ACKs", near.syns, near.answers),
            near.syns,
            "SYNs",
            "tcp_retransmit_skb, tcp_retransmit_synack",
        )
        .since(window, near.netns, "TcpExt.TCPSynRetrans");
    let found = match far {
        Some(far) => found.counted(
            format!("{} SYN-ACKs sent again{}", far.answers, far.netns.place()),
            far.answers,
            "SYN-ACKs",
            "tcp_retransmit_synack",
        ),
        None => found,
    };
    let found = match &connects {
        Some(connects) if connects.attempts > 0 => found.counted(
            format!(
                "{} of {} connects seen to it succeeded",
                connects.established, connects.attempts
            ),
            connects.established,
            "connects",
            "connects, retransmits",
        ),
        _ => found,
    };
    let nobody = near.silent.is_empty().then(|| somewhere(near.netns));
    let far_hits = far
        .into_iter()
        .filter_map(|far| far.silent.first().cloned());
    let found = found
        .hits(near.silent.iter().cloned())
        .hits(far_hits)
        .hits(nobody);
    if far.is_some() {
        return found.command(
            "look at what lies between the two namespaces: bridges, forwarding rules (nft list ruleset), tc, and the \
             listener's queues",
            "none",
        );
    }
    found.command(
        "look at the other end: netprobe diagnose there tells whether its listener, firewall or conntrack drops them; if \
         none does, it is the path (tcptraceroute, security groups)",
        "none",
    )
}

fn clients_are_silent(window: &Window, near: &Unanswered<'_>) -> String {
    let who = near.silent.first().map_or("", |hit| hit.name.as_str());
    // The counter is of the whole namespace.
    let listeners = near.netns.after.sockets.as_ref();
    let is_only = listeners.is_some_and(|table| table.listeners.len() == 1);
    let completed = near.netns.grown("Tcp.PassiveOpens").unwrap_or(0);
    let (some, rest) = if is_only && completed > 0 {
        (
            "some ",
            format!(", while {completed} handshakes completed there"),
        )
    } else {
        ("", String::new())
    };
    format!(
        "{some}clients of {who}{} do not answer: {} SYN-ACKs were sent again in {:.0} s{rest}; they, or the way back to \
         them, are at fault",
        near.netns.place(),
        near.answers,
        window.seconds
    )
}

/// How much a destination answers, if it does at all.
fn answering(connects: Option<&Connects>) -> String {
    match connects {
        Some(connects) if connects.attempts > 0 && connects.established == connects.attempts => {
            format!(
                "answers late (all {} connects seen succeed)",
                connects.attempts
            )
        }
        Some(connects) if connects.established > 0 => format!(
            "answers only {} of {} connects seen",
            connects.established, connects.attempts
        ),
        Some(connects) if connects.is_down() => {
            format!(
                "does not answer (all {} connects seen fail or wait)",
                connects.attempts
            )
        }
        _ => "does not answer".to_owned(),
    }
}

fn both_ends(
    window: &Window,
    (near, far): (&Unanswered<'_>, &Unanswered<'_>),
    connects: Option<&Connects>,
) -> String {
    let who = near.silent.first().map_or("", |hit| hit.name.as_str());
    let share = connects.filter(|connects| connects.attempts > 0);
    let share = share.map_or(String::new(), |connects| {
        format!(
            ", and {} of {} connects succeed",
            connects.established, connects.attempts
        )
    });
    format!(
        "handshakes with {who} lose segments on both sides: {} SYNs{} and {} SYN-ACKs{} were sent again in {:.0} s{share}; \
         both ends are on this machine: one of them, or what lies between them, drops",
        near.syns,
        near.netns.place(),
        far.answers,
        far.netns.place(),
        window.seconds
    )
}

fn destination_is_silent(
    window: &Window,
    near: &Unanswered<'_>,
    connects: Option<&Connects>,
) -> String {
    let inode = near.netns.inode.to_string();
    let group = [("errno", "ETIMEDOUT"), ("netns", inode.as_str())];
    let timed_out = match window.events.count("connects", &group) {
        0 => String::new(),
        count => format!(", {count} connects timed out"),
    };
    let who = near.silent.first();
    // Counted, but not seen as they happened.
    let what = if near.syns == 0 {
        "SYNs or SYN-ACKs"
    } else {
        "SYNs"
    };
    let elsewhere = if is_elsewhere(window) {
        "; nobody on this machine was seen to drop them: the path or the peer"
    } else {
        ""
    };
    format!(
        "{}{} {}: {} {what} were sent again in {:.0} s{timed_out}{elsewhere}",
        who.map_or("a destination", |hit| hit.name.as_str()),
        near.netns.place(),
        answering(connects),
        near.again,
        window.seconds
    )
}

#[cfg(test)]
mod tests;
