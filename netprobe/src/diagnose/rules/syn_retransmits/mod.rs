//! SYNs or SYN-ACKs go unanswered and are sent again: connecting takes 1, 3, 7 s, or fails.

mod connects;
mod lost_here;
mod unanswered;

use self::{
    connects::{Connects, Ending},
    lost_here::LostHere,
    unanswered::Unanswered,
};
use super::super::{
    Explanation, Rule, Verdict, dropped,
    finding::{finding, somewhere},
    in_each,
    sizing::lasting,
    window::{Netns, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "syn-retransmits",
    title: "connection attempts go unanswered",
    check,
    explanation: Explanation {
        symptom: "Connect latency comes in steps of 1, 3, 7, 15 s, or connect() fails with ETIMEDOUT after two minutes.",
        cause: "A SYN without an answer is sent again by tcp_retransmit_timer() after 1 s, then twice as long, up to \
                tcp_syn_retries times; a SYN-ACK likewise. Something between the two ends drops it: the listener, a \
                firewall or conntrack on either machine, or the path.",
        recognised: "TCPSynRetrans grew; events name the destination. It is critical when next to no connect to it succeeds. It is found \
                     without that, too, where all connects to a destination fail with EHOSTUNREACH, or are given up by clients \
                     that wait for a quarter of a second or more, but not for the first SYN to be sent again. A namespace of this \
                     machine that was seen to drop the SYNs or SYN-ACKs (kfree_skb) is named, with the kernel's reason. Where \
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
/// Most of those who are silent that are named.
const MOST: usize = 4;

fn check(window: &Window) -> Verdict {
    let mut all = Vec::new();
    let scans = dropped::scans(window);
    let verdict = in_each(window, |netns| {
        let again = netns.grown("TcpExt.TCPSynRetrans")?;
        let again = unanswered::wanted(window, netns, &scans, again);
        let opened = netns.grown("Tcp.ActiveOpens")? + netns.grown("Tcp.PassiveOpens")?;
        if again >= LEAST && ratio(again, opened + again) >= MUCH {
            all.push(netns.inode);
        }
        Ok(Vec::new())
    });
    let is_hit = |netns: &&Netns| all.contains(&netns.inode);
    let hit = window.namespaces.iter().filter(is_hit);
    let hit: Vec<Unanswered<'_>> = hit
        .flat_map(|netns| Unanswered::of(window, netns, &scans))
        .collect();
    let (mut clients, servers): (Vec<_>, Vec<_>) = hit.into_iter().partition(Unanswered::is_client);
    for netns in &window.namespaces {
        for dead in Unanswered::dead(window, netns) {
            let is_known =
                |known: &Unanswered<'_>| known.netns.inode == netns.inode && known.names(&dead);
            // Where all are told that nobody is there, that says more.
            let is_told = |known: &Unanswered<'_>| known.is_of(&dead) && dead.is_unreachable();
            match clients.iter().position(is_known) {
                Some(place) if is_told(&clients[place]) && clients[place].silent.len() == 1 => {
                    clients[place] = dead;
                }
                Some(_) => {}
                None => clients.push(dead),
            }
        }
    }
    if clients.is_empty() && servers.is_empty() {
        return verdict;
    }
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

/// Whether none of what drops SYNs within this machine has dropped any, and all of it was looked at.
fn is_elsewhere(window: &Window) -> bool {
    // The other end, or a router, may be in another namespace of this machine.
    let mut dropped = window.events.of("drops").iter().peekable();
    let is_sample = dropped.peek().is_some() || window.events.count("drops", &[]) == 0;
    let is_sent = window.watched_required("drops").is_ok()
        && is_sample
        && !dropped.any(|event| lost_here::is_lost(window, event))
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
    let severity = if near.is_reached {
        Severity::Info
    } else if connects.as_ref().is_some_and(Connects::is_down) {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let confidence = if near.silent.is_empty() {
        Confidence::Low
    } else {
        Confidence::High
    };
    let end = near
        .end()
        .filter(|_| near.is_client() && !near.is_unreachable());
    let lost = end.and_then(|end| LostHere::of(window, end, &near.clients(window)));
    let summary = match &lost {
        Some(lost) => format!("{summary}{}", lost.words()),
        None => summary,
    };
    let found = finding(RULE.id, severity, confidence, summary);
    let found = sent_again(found, window, near);
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
        .hits(near.silent.iter().take(MOST).cloned())
        .hits(far_hits)
        .hits(nobody);
    match lost {
        Some(lost) => lost.add(found, window),
        None => found.command(advice(near, far), "none"),
    }
}

/// Adds how many were sent again, where that is what tells.
fn sent_again(found: Finding, window: &Window, near: &Unanswered<'_>) -> Finding {
    if near.ended.is_some() {
        return found;
    }
    found
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
        .since(window, near.netns, "TcpExt.TCPSynRetrans")
}

/// Where to look next.
fn advice(near: &Unanswered<'_>, far: Option<&Unanswered<'_>>) -> String {
    const OTHER_END: &str = "look at the other end: netprobe diagnose there tells whether its listener, firewall or conntrack drops \
                             them; if none does, it is the path (tcptraceroute, security groups)";
    if far.is_some() {
        return "look at what lies between the two namespaces: bridges, forwarding rules (nft list ruleset), tc, and the \
                listener's queues"
            .to_owned();
    }
    let enter = near.netns.enter();
    let address = near.end().map(|(address, _)| address.to_string());
    let address = address.unwrap_or_else(|| "ADDRESS".to_owned());
    match near.ended {
        Some((Ending::GivenUp { waited_ns }, _)) => format!(
            "{OTHER_END}; if it is far away, see that its clients wait long enough: they gave up after {}",
            lasting(waited_ns / 1000)
        ),
        Some((Ending::Unreachable { is_neighbour: true }, _)) => format!(
            "see whether that host is up and the address right: `{enter}ip route get {address}` shows the next hop, `{enter}ip \
             neigh` who does not answer"
        ),
        Some((Ending::Unreachable { .. }, _)) => format!(
            "`{enter}ip route get {address}` shows whether a route here says so; else a router or the firewall of the other end \
             does, by ICMP (tcpdump icmp)"
        ),
        None => OTHER_END.to_owned(),
    }
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
    let is_late = connects.is_some_and(|connects| connects.established > 0);
    let (how, fate) = if is_late {
        ("get their SYN-ACKs late or not", "lost or late")
    } else {
        ("lose their SYN-ACKs", "lost")
    };
    let (what, why) = match near.answered(window, far) {
        (answered, tried) if tried > 0 && answered * 2 >= tried => (
            how,
            format!(
                "the SYNs arrive and are answered ({answered} of {tried} that were looked at): the answers are {fate} on \
                 their way back"
            ),
        ),
        _ => (
            "lose segments",
            "both ends are on this machine: one of them, or what lies between them, drops"
                .to_owned(),
        ),
    };
    let place = near.netns.place();
    let tries = match near.ended {
        Some((Ending::GivenUp { waited_ns }, count)) => format!(
            "{count} connects{place} were given up within {}",
            lasting(waited_ns / 1000)
        ),
        Some((Ending::Unreachable { .. }, count)) => {
            format!("{count} connects{place} failed with EHOSTUNREACH")
        }
        None => format!("{} SYNs{place}", near.syns),
    };
    format!(
        "handshakes with {who} {what}: {tries} and {} SYN-ACKs{} were sent again in {:.0} s{share}; {why}",
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
    if let (Some(ended), Some(connects)) = (near.ended, connects) {
        return destination_is_dead(window, near, ended, connects);
    }
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
    format!(
        "{}{} {}: {} {what} were sent again in {:.0} s{timed_out}{}",
        who.map_or("a destination", |hit| hit.name.as_str()),
        near.netns.place(),
        answering(connects),
        near.again,
        window.seconds,
        elsewhere(window)
    )
}

/// Who drops them, if nobody here does.
fn elsewhere(window: &Window) -> &'static str {
    if is_elsewhere(window) {
        "; nobody on this machine was seen to drop them: the path or the peer"
    } else {
        ""
    }
}

/// A destination that no SYN was sent to again.
fn destination_is_dead(
    window: &Window,
    near: &Unanswered<'_>,
    (ending, count): (Ending, u64),
    connects: &Connects,
) -> String {
    let who = near.silent.first().map_or("", |hit| hit.name.as_str());
    let more = match near.silent.len() {
        0 | 1 => String::new(),
        all => format!(" (and {} more)", all - 1),
    };
    let (how, why) = match ending {
        Ending::GivenUp { waited_ns } => (
            format!(
                "were given up without an answer, within {}",
                lasting(waited_ns / 1000)
            ),
            elsewhere(window),
        ),
        Ending::Unreachable { is_neighbour } => (
            "failed with EHOSTUNREACH".to_owned(),
            if is_neighbour {
                "; nobody on the link answers for its address, or for that of the router (ARP, ND)"
            } else {
                ""
            },
        ),
    };
    let reached = if near.is_reached {
        "; its clients get through by the other family of addresses"
    } else {
        ""
    };
    format!(
        "{who}{more}{} takes no connection: {count} of {} connects seen in {:.0} s {how}{why}{reached}",
        near.netns.place(),
        connects.attempts,
        window.seconds
    )
}

#[cfg(test)]
mod tests;
