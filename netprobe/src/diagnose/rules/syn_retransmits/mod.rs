//! SYNs or SYN-ACKs go unanswered and are sent again: connecting takes seconds, or fails.

mod advice;
mod connects;
mod lost_here;
mod routeless;
mod strangers;
mod unanswered;
mod unheard;
mod unrouted;
mod words;

use self::{
    connects::Connects, lost_here::LostHere, routeless::Routeless, strangers::Strangers,
    unanswered::Unanswered, unheard::Unheard, unrouted::Unrouted,
};
use super::super::{
    Explanation, Rule, Verdict, dropped,
    finding::{finding, somewhere},
    in_each,
    window::{Netns, Window},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "syn-retransmits",
    title: "connection attempts go unanswered",
    check,
    explanation: Explanation {
        symptom: "Connect latency comes in steps of 1, 3, 7, 15 s (1, 2, 3, 4, 5, 7, 11 s since Linux 6.5), or connect() fails with \
                  ETIMEDOUT after one or two minutes.",
        cause: "A SYN without an answer is sent again by tcp_retransmit_timer() after 1 s, then each time after twice as long, \
                tcp_syn_retries times in all (since Linux 6.5 the first four after 1 s each: tcp_syn_linear_timeouts, which come on \
                top); a SYN-ACK after twice as long each time. Something between the two ends drops it: the listener, a \
                firewall or conntrack on either machine, or the path.",
        recognised: "TCPSynRetrans grew; events name the destination. It is critical when next to no connect to it succeeds, and a note where many \
                     destinations that were tried once or twice are silent, a tenth of all or less. It is found \
                     without that, too, where all connects to a destination fail with EHOSTUNREACH, ENETUNREACH, EACCES or EINVAL, or are given up by clients \
                     that wait for a quarter of a second or more, but not for the first SYN to be sent again. A namespace of this \
                     machine that was seen to drop the SYNs or SYN-ACKs (kfree_skb) is named, with the kernel's reason, also \
                     where only the listener's is watched and the same clients try again and get through with none, or where the SYNs are for an \
                     address that it does not have. Where \
                     the listener is on this machine too and sends its SYN-ACKs again, that is one finding. A link of theirs that went down in the window is named (carrier_down_count). Listeners whose \
                     namespace has no route back (OutNoRoutes grew as ListenDrops did, and no queue was full) drop SYNs. Where connects that fail at once cannot be seen \
                     (without kprobes and fentry), a namespace is told in which more of them, or of other packets, found no route \
                     (OutNoRoutes) than connects did: as a warning if next to none did, and with low confidence. \
                     SYN-ACKs to public addresses that finish no handshake, each only one, beside far more that are \
                     finished, are forged or of a scan: a note. Whether a listener, the firewall or conntrack of this \
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
/// Who takes at most this share of the connections is down.
const DOWN: f64 = 0.05;

fn check(window: &Window) -> Verdict {
    let mut all = Vec::new();
    let scans = dropped::scans(window);
    let verdict = in_each(window, |netns| {
        let again = netns.grown("TcpExt.TCPSynRetrans")?;
        let opened = netns.grown("Tcp.ActiveOpens")? + netns.grown("Tcp.PassiveOpens")?;
        if unanswered::wanted(window, netns, &scans, again) >= LEAST {
            all.push((netns.inode, opened));
        }
        Ok(Vec::new())
    });
    let hit = all.into_iter().filter_map(|(inode, opened)| {
        let netns = window.namespace(inode)?;
        Some(Unanswered::of(window, netns, &scans, opened))
    });
    let hit: Vec<Unanswered<'_>> = hit.flatten().collect();
    let (mut clients, mut servers): (Vec<_>, Vec<_>) =
        hit.into_iter().partition(Unanswered::is_client);
    servers.retain(|server| !server.is_deferred(window));
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
    let routeless = Routeless::all(window);
    let unheard = unheard(window, &clients, &routeless);
    let no_route = |client: &Unanswered<'_>| {
        let end = client.end().filter(|_| !client.is_unreachable())?;
        let mut all = routeless.iter();
        all.find(|home| home.is_home_of(window, client.netns, end))
    };
    let ends = clients.iter().map(|client| {
        let far = servers.iter().find(|server| client.is_of(server));
        describe(window, client, far, no_route(client))
    });
    let mut found: Vec<Finding> = ends.collect();
    let is_told = |home: &Routeless<'_>| {
        let mut homes = clients.iter().filter_map(no_route);
        homes.any(|told| told.netns.inode == home.netns.inode)
    };
    let untold = routeless.iter().filter(|home| !is_told(home));
    found.extend(untold.map(|home| home.describe(window)));
    found.extend(unheard.iter().map(|unheard| unheard.describe(window)));
    let alone = servers
        .iter()
        .filter(|server| !clients.iter().any(|client| client.is_of(server)));
    found.extend(alone.map(|server| describe(window, server, None, None)));
    found.extend(unrouted(window, &routeless));
    if found.is_empty() {
        return verdict;
    }
    Verdict::Found(found)
}

/// Listeners that SYNs do not get to, unless a client of this machine or the lack of a route back tells why.
fn unheard<'a>(
    window: &'a Window,
    clients: &[Unanswered<'_>],
    routeless: &[Routeless<'_>],
) -> Vec<Unheard<'a>> {
    let is_told = |unheard: &Unheard<'_>| {
        let mut silent = clients.iter().flat_map(|client| &client.silent);
        silent.any(|hit| hit.address.zip(hit.port) == Some(unheard.end))
    };
    let has_route = |netns: &&Netns| !routeless.iter().any(|home| home.netns.inode == netns.inode);
    let all = window.namespaces.iter().filter(has_route);
    let all = all.flat_map(|netns| Unheard::all(window, netns));
    all.filter(|unheard| !is_told(unheard)).collect()
}

/// Namespaces that have no route for what they were to send, unless that is the answers of listeners.
fn unrouted(window: &Window, routeless: &[Routeless<'_>]) -> Vec<Finding> {
    let has_route = |netns: &Netns| !routeless.iter().any(|home| home.netns.inode == netns.inode);
    let all = Unrouted::all(window).into_iter();
    let untold = all.filter(|found| has_route(found.netns));
    untold.map(|found| found.describe(window)).collect()
}

/// What is wrong: seen at one end, and perhaps at the other too.
#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(
    window: &Window,
    near: &Unanswered<'_>,
    far: Option<&Unanswered<'_>>,
    no_route: Option<&Routeless<'_>>,
) -> Finding {
    let connects = if near.is_client() && !near.is_scattered {
        near.connects(window)
    } else {
        None
    };
    let end = near.end().filter(|_| near.is_client());
    let lost = end.and_then(|end| LostHere::of(window, end, &near.clients(window)));
    // What its own namespace refuses, connect() has told.
    let lost = lost.filter(|lost| !near.is_unreachable() || lost.is_beyond(near.netns));
    let strangers = Strangers::of(window, near);
    let is_noise = strangers
        .as_ref()
        .is_some_and(|strangers| strangers.is_noise);
    let summary = match far {
        _ if !near.is_client() => words::clients_are_silent(window, near, strangers.as_ref()),
        Some(far) => words::both_ends(window, (near, far), connects.as_ref()),
        None => words::destination_is_silent(window, near, (connects.as_ref(), lost.is_some())),
    };
    let severity = if near.is_reached || near.is_minor || is_noise {
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
    let why = match (&lost, no_route) {
        (Some(lost), _) => lost.words(),
        (None, Some(home)) => home.words(),
        (None, None) => String::new(),
    };
    let summary = format!("{summary}{why}");
    let found = finding(RULE.id, severity, confidence, summary);
    let found = sent_again(found, window, near);
    let found = match &strangers {
        Some(strangers) => strangers.add(found),
        None => found,
    };
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
    match (lost, no_route, strangers) {
        (Some(lost), ..) => lost.add(found, window),
        (None, Some(home), _) => home.add(found),
        (None, None, Some(them)) => found.command(advice::of_clients(near, &them), "none"),
        (None, None, None) => found.command(advice::advice(window, near, far), "none"),
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

#[cfg(test)]
mod tests;
