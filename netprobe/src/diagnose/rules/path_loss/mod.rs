//! Segments are lost between this machine and a peer.

mod cut;
mod gone;
mod here;
mod one;
mod queue;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use self::{cut::Cut, gone::Gone, here::Here, one::scaled, queue::RoundTrips};
use super::super::{
    Explanation, Rule, Verdict,
    bufferbloat::delayed,
    dropped,
    events::Event,
    finding::{finding, host, somewhere},
    in_each, links, overflow,
    sizing::counted,
    stalled::{DATA, LATE, is_data},
    window::{Netns, Queue, Window, ratio},
};
use crate::report::diagnosis::{Affected, Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "path-loss",
    title: "the path loses or delays packets",
    check,
    explanation: Explanation {
        symptom: "Throughput sags, retransmits grow, round-trip times swing; this machine has CPU and queues to spare.",
        cause: "A segment whose acknowledgement does not come is sent again: by tcp_fastretrans_alert() when later segments \
                were acknowledged (fast), by a tail loss probe, or by tcp_retransmit_timer() when nothing comes at all \
                (RTO), which also begins anew with a window of one.",
        recognised: "Over one per cent of segments were sent again, by the counters and by the events, to addresses outside of the \
                     namespace, or of those to a destination (each is told, up to four), of those that this side connects to, and no queue or firewall of this machine dropped them, nor had the peer got them before (DSACK): those findings would come first. What goes again and again to a listener of this machine whose \
                     accept queue did not take its clients is told with that listener. The peer or the path is said to be gone only where the same segments go out three times and more, and no other \
                     connection with the peer goes well. Otherwise it is what single connections send; an MTU is to blame only \
                     where the segments that wait (sock_diag) are larger than those that arrive. It is critical where three connections \
                     or more with a destination send in vain, and nothing was heard of it for 3 s over any that ever brought it data. \
                     Peers that acknowledge nothing any more have gone, a note, where more go on or each fell silent at a time \
                     of its own. A median round-trip time of three times its own minimum or more says that a queue on the path \
                     is full (bufferbloat), and so does one that has nearly doubled (1.7 times, 5 ms more) where ten segments \
                     or more are in flight to fill it; below 1.2 times it is clean loss, in between not known. A link of the \
                     namespaces that are hit which went down in the window is named (carrier_down_count), and one that carries \
                     packets is found on its own. A queue that loses nothing is told by active connections with ten segments or \
                     more in flight, whose round trip takes three times its minimum and 50 ms more, at the beginning of the \
                     window and at its end; a note, unless half of the active connections suffer.",
        fixes: &[
            (
                "look at the path: mtr, the interface counters of the devices on it",
                "none",
            ),
            (
                "large packets are lost: an MTU on the path whose ICMP is filtered; net.ipv4.tcp_mtu_probing=1 finds it",
                "none",
            ),
            (
                "a queue on the path: BBR (net.ipv4.tcp_congestion_control) fills it less",
                "other flows on that path may get less",
            ),
        ],
    },
};

const LEAST: u64 = 10;
const MUCH: f64 = 0.01;

/// Retransmissions to one address and port.
#[derive(Default)]
struct Peer {
    total: u32,
    /// How many went out for the third time or later, of those that are known.
    late: u32,
    /// Round-trip times when segments were sent again, in microseconds.
    srtt_us: Vec<u64>,
}

/// Segments that were sent again, but for those that had arrived.
struct Loss {
    /// The address that all were sent to, where only those are counted.
    address: Option<IpAddr>,
    lost: u64,
    sent: u64,
    /// What the peers had twice.
    needless: u64,
    rto: u64,
    fast: u64,
    tlp: u64,
}

fn check(window: &Window) -> Verdict {
    let verdict = lost_segments(window);
    let mut found = match &verdict {
        Verdict::Found(found) => found.clone(),
        _ => Vec::new(),
    };
    match links::lost(RULE.id, window, &found) {
        Some(lost) => {
            found.insert(0, lost);
            Verdict::Found(found)
        }
        None => verdict,
    }
}

fn lost_segments(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let again = netns.grown("Tcp.RetransSegs")?;
        let handshakes = netns.grown("TcpExt.TCPSynRetrans")?;
        // OutSegs leaves out what was sent again.
        let sent = netns.grown("Tcp.OutSegs")? + again;
        // Who says that he had it before has lost nothing: it was acknowledged late.
        let needless = netns.grown_if_any("TcpExt.TCPDSACKRecvSegs")?;
        let counted = again.saturating_sub(handshakes + needless);
        if counted < LEAST {
            return Ok(delayed(RULE.id, window, netns).into_iter().collect());
        }
        let gone = Gone::of(window, netns);
        let all = Loss::of((window, netns), &gone, (counted, needless, sent));
        let mut told = Loss::to_each(window, netns, needless);
        let lost: u64 = told.iter().map(|one| one.lost).sum();
        // Most of what is lost is lost there, and what goes well elsewhere says nothing of it.
        if lost == 0 || lost * 2 < all.lost {
            told = vec![all];
            told.retain(Loss::is_much);
        }
        let found: Vec<Finding> = told
            .iter()
            .map(|loss| describe(window, netns, loss, &gone))
            .collect();
        if found.is_empty() {
            let delayed = delayed(RULE.id, window, netns);
            let gone = gone.describe(window, netns);
            return Ok(delayed.into_iter().chain(gone).collect());
        }
        Ok(found)
    })
}

impl Loss {
    fn percent(&self) -> f64 {
        ratio(self.lost, self.sent) * 100.0
    }

    /// Whether a segment that was sent again belongs to it.
    fn is_of(&self, event: &Event, gone: &Gone<'_>) -> bool {
        self.address.map_or_else(
            || !gone.has_missed(event),
            |only| event.ip("daddr") == Some(only),
        )
    }

    fn is_much(&self) -> bool {
        self.lost >= LEAST && ratio(self.lost, self.sent) >= MUCH
    }

    /// Adds how many were sent again, and how that was decided.
    fn add(&self, found: Finding) -> Finding {
        let Self {
            address,
            lost,
            sent,
            needless,
            rto,
            fast,
            tlp,
        } = *self;
        let percent = self.percent();
        let of = if address.is_some() {
            ""
        } else {
            " of the namespace"
        };
        let found = if needless == 0 {
            found
        } else {
            found.counted(
                format!("{needless} more had arrived, and were acknowledged late"),
                needless,
                "segments",
                "TcpExt.TCPDSACKRecvSegs",
            )
        };
        found
            .measured(
                format!("{lost} of {sent} segments{of} sent again, {percent:.1} %"),
                percent,
                "percent",
                if address.is_some() {
                    "tcp_retransmit_skb, tcp_info data_segs_out"
                } else {
                    "Tcp.RetransSegs, Tcp.OutSegs"
                },
            )
            .counted(
                format!(
                    "{fast} fast, {rto} after a timeout, {}",
                    counted(tlp, "tail loss probe")
                ),
                rto,
                "retransmits",
                "tcp_retransmit_skb",
            )
    }

    /// The two counters lie in two files, read one after the other, so their difference may be
    /// handshakes only; and what stays within the machine crosses no path. Both are told by the
    /// events, where they are seen.
    fn of(
        (window, netns): (&Window, &Netns),
        gone: &Gone<'_>,
        (counted, needless, sent): (u64, u64, u64),
    ) -> Self {
        let inode = netns.inode.to_string();
        let refusing = overflow::refusing(window);
        let events = window.events.within("retransmits", netns.inode);
        let events: Vec<&Event> = events.filter(|event| is_data(event)).collect();
        let is_lost = |event: &Event| is_away(netns, event, &refusing) && !gone.has_missed(event);
        let lost_of = |count: u64, is_meant: &dyn Fn(&Event) -> bool| {
            let meant = events.iter().filter(|event| is_meant(event));
            let lost = meant.clone().filter(|event| is_lost(event)).count() as u64;
            (count * lost)
                .checked_div(meant.count() as u64)
                .unwrap_or(count)
        };
        let counts = DATA.map(|cause| {
            let group = [("cause", cause), ("netns", inode.as_str())];
            (cause, window.events.count("retransmits", &group))
        });
        let seen: u64 = counts.iter().map(|(_, count)| count).sum();
        let lost = if window.watched_required("retransmits").is_ok() {
            counted.min(seen)
        } else {
            counted
        };
        let lost = lost_of(lost, &|_| true);
        let [rto, fast, tlp, _] =
            counts.map(|(cause, count)| lost_of(count, &|event| event.is("cause", cause)));
        Self {
            address: None,
            lost,
            sent,
            needless,
            rto,
            fast,
            tlp,
        }
    }
}

/// Whether the path is to blame for a segment, rather than this machine.
fn is_away(netns: &Netns, event: &Event, refusing: &[&Queue]) -> bool {
    !is_within(netns, event) && !is_refused(event, refusing)
}

/// Whether a segment stays within its namespace: to itself, by whatever address.
fn is_within(netns: &Netns, event: &Event) -> bool {
    let Some(remote) = event.ip("daddr") else {
        return false;
    };
    let sockets = netns.after.sockets.as_ref();
    let mut listeners = sockets.into_iter().flat_map(|table| &table.listeners);
    remote.is_loopback()
        || event.ip("saddr") == Some(remote)
        || listeners.any(|listener| listener.address == remote)
}

/// Whether it goes to a listener of this machine that ignores it, as its accept queue is full.
fn is_refused(event: &Event, refusing: &[&Queue]) -> bool {
    let remote = event.ip("daddr").zip(event.small::<u16>("dport"));
    remote.is_some_and(|(address, port)| {
        let mut listeners = refusing.iter().map(|queue| &queue.listener);
        listeners.any(|listener| listener.port == port && listener.takes(address))
    })
}

/// Whom what was lost was sent to, the worst first.
fn peers(
    (window, netns): (&Window, &Netns),
    loss: &Loss,
    gone: &Gone<'_>,
) -> Vec<((IpAddr, u16), Peer)> {
    let mut peers = BTreeMap::<(IpAddr, u16), Peer>::new();
    let refusing = overflow::refusing(window);
    for event in window.events.within("retransmits", netns.inode) {
        let end = event.ip("daddr").zip(event.small::<u16>("dport"));
        let is_lost = is_data(event) && is_away(netns, event, &refusing);
        let Some(end) = end.filter(|_| is_lost && loss.is_of(event, gone)) else {
            continue;
        };
        let peer = peers.entry(end).or_default();
        peer.total += 1;
        peer.late += u32::from(event.number("attempt") >= Some(LATE));
        peer.srtt_us
            .extend(event.number("srtt_us").filter(|srtt| *srtt > 0));
    }
    let mut peers: Vec<_> = peers.into_iter().collect();
    peers.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.total));
    peers
}

fn describe(window: &Window, netns: &Netns, loss: &Loss, gone: &Gone<'_>) -> Finding {
    let fast = loss.fast;
    let peers = peers((window, netns), loss, gone);
    let worst = peers.first();
    let address = worst.map(|((address, _), _)| *address);
    let cut = Cut::of(window, netns, loss, &peers);
    let large = address.and_then(|address| too_large_bytes(netns, address));
    let others = address.map_or(0, |address| others(window, netns, address));
    let here = address.and_then(|address| Here::of(window, netns, address));
    // Where nothing is acknowledged, nothing is known of queues.
    let answered = worst.filter(|_| fast > 0 || !is_in_vain(&peers));
    let trips =
        answered.and_then(|((address, _), peer)| RoundTrips::of(window, netns, *address, peer));
    let filled = trips
        .as_ref()
        .filter(|trips| trips.is_filled() && is_most(&peers, trips.address));
    let kind = match (&here, filled) {
        (Some(here), _) => here.words(),
        (None, Some(trips)) => trips.words(),
        (None, None) => kind(fast, &peers, (others, large), cut.is_some()),
    };
    let severity = if cut.is_some() {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let confidence = if fast > 0 || cut.is_some() {
        Confidence::High
    } else {
        Confidence::Medium
    };
    let summary = summary((window, netns), loss, &peers, cut.is_some());
    let found = finding(RULE.id, severity, confidence, format!("{summary}{kind}"));
    let found = match cut {
        Some(cut) => cut.add(found),
        None => found,
    };
    let found = loss.add(found);
    let found = match &trips {
        Some(trips) => trips.add(found),
        None => found,
    };
    let nobody = worst.is_none().then(|| somewhere(netns));
    let found = found.hits(nobody);
    let hits = destinations(netns, &peers);
    if let Some(here) = here {
        return here.add(found.hits(hits), netns);
    }
    if let Some(trips) = filled {
        return trips.relieve(found.hits(hits));
    }
    let found = match (address, large) {
        (Some(address), Some(_)) if is_of_single_ones(fast, &peers, others) => {
            large_packets(found, netns, address)
        }
        _ => found,
    };
    look(found.hits(hits), window)
}

/// Where to look for what loses them.
fn look(found: Finding, window: &Window) -> Finding {
    found.command(
        if dropped::are_segments_dropped(window) {
            "rule out the firewall of this machine first, which drops segments too (firewall-drops); then look at the \
             path: mtr, and the counters of the devices on it"
        } else {
            "look at the path: mtr, and the counters of the devices on it; no setting of this machine loses these packets"
        },
        "none",
    )
}

/// What is lost on the way to whom, and how much.
fn summary(
    (window, netns): (&Window, &Netns),
    loss: &Loss,
    peers: &[((IpAddr, u16), Peer)],
    is_cut: bool,
) -> String {
    let place = netns.place();
    let hosts: BTreeSet<IpAddr> = peers.iter().map(|((address, _), _)| *address).collect();
    let to = match (hosts.first(), hosts.len()) {
        (Some(address), 1) => format!(" to {address}"),
        (_, 0) => String::new(),
        (_, count) => format!(" to {count} hosts"),
    };
    let what = if is_cut {
        format!("no data that is sent{to}{place} arrives")
    } else {
        format!("the path{to}{place} loses packets")
    };
    let of = if loss.address.is_some() {
        "those to it"
    } else {
        "all that was sent"
    };
    let most = peers.first().filter(|_| hosts.len() > 1);
    let most = most.map_or(String::new(), |((worst, _), _)| {
        let to_it = peers.iter().filter(|((address, _), _)| address == worst);
        let total: u32 = to_it.map(|(_, peer)| peer.total).sum();
        let total = scaled(total.into(), window.events.weight("retransmits"));
        format!(", {total} of them to {worst}")
    });
    format!(
        "{what}: {} segments ({:.1} % of {of}) were sent again in {:.0} s{most}",
        loss.lost,
        loss.percent(),
        window.seconds
    )
}

/// What comes after the loss. Where a request is one segment, no later ones can be acknowledged: that
/// fast retransmits are missing says nothing then.
fn kind(
    fast: u64,
    peers: &[((IpAddr, u16), Peer)],
    (others, large): (u64, Option<u32>),
    is_cut: bool,
) -> String {
    let total: u32 = peers.iter().map(|(_, peer)| peer.total).sum();
    if fast > 0 {
        "; acknowledgements still come, so the path lives but drops".to_owned()
    } else if total == 0 {
        String::new()
    } else if is_of_single_ones(fast, peers, others) {
        let why = match large {
            Some(bytes) => format!(
                "it is large packets that are lost (an MTU): segments of {bytes} bytes wait, and no connection with it has \
                 sent such ones that arrived"
            ),
            None if is_cut => "what listens there takes nobody (its accept queue is full), something on the way lets nothing \
                               but handshakes through, or the peer has gone since"
                .to_owned(),
            None => "it is what single connections send that is lost: something on the way (NAT, firewall, load balancer) \
                     has forgotten them, or their peer is gone"
                .to_owned(),
        };
        format!(
            "; the same segments go out three times and more, though {others} other connections with it began or ended well \
             meanwhile: {why}"
        )
    } else if is_in_vain(peers) {
        "; the same segments go out three times and more: the peer or the path is gone, or drops whole trains".to_owned()
    } else {
        "; few segments go out more than twice, so the path lives but drops".to_owned()
    }
}

/// Whether half of what is lost, or more, is lost on the way to one address.
fn is_most(peers: &[((IpAddr, u16), Peer)], address: IpAddr) -> bool {
    let sum = |is_meant: &dyn Fn(IpAddr) -> bool| -> u32 {
        let meant = peers.iter().filter(|((to, _), _)| is_meant(*to));
        meant.map(|(_, peer)| peer.total).sum()
    };
    sum(&|to| to == address) * 2 >= sum(&|_| true)
}

/// Whether the same segments go out again and again.
fn is_in_vain(peers: &[((IpAddr, u16), Peer)]) -> bool {
    let sum = |part: fn(&Peer) -> u32| -> u32 { peers.iter().map(|(_, peer)| part(peer)).sum() };
    sum(|peer| peer.late) * 3 >= sum(|peer| peer.total).max(1)
}

/// Whether it is single connections that lose what they send, as others get through.
fn is_of_single_ones(fast: u64, peers: &[((IpAddr, u16), Peer)], others: u64) -> bool {
    fast == 0 && others > 0 && is_in_vain(peers)
}

/// The size of what waits for its acknowledgement in vain, if it may be lost for that.
fn too_large_bytes(netns: &Netns, address: IpAddr) -> Option<u32> {
    let sockets = netns.after.sockets.as_ref()?;
    sockets.paths.get(&address)?.too_large_bytes()
}

/// How to see whether large packets are all that is lost.
fn large_packets(found: Finding, netns: &Netns, address: IpAddr) -> Finding {
    // Ethernet's 1500 bytes without the headers of IP and ICMP.
    let size = if address.is_ipv4() { 1472 } else { 1452 };
    let enter = netns.enter();
    found.command(
        format!(
            "see whether large packets get through: `{enter}ping -M do -s {size} {address}`, and with -s 1200; if only the latter \
             does, let ICMP \"fragmentation needed\" (\"packet too big\") pass on the way, or set net.ipv4.tcp_mtu_probing=1"
        ),
        "none",
    )
}

/// How many connections with an address began or ended well in the window.
fn others(window: &Window, netns: &Netns, address: IpAddr) -> u64 {
    let well = |kind, (name, word): (&'static str, &'static str)| {
        let events = window.events.within(kind, netns.inode);
        let well =
            events.filter(move |event| event.is(name, word) && event.ip("daddr") == Some(address));
        well.count() as u64
    };
    well("lifetimes", ("result", "fin")).max(well("connects", ("outcome", "established")))
}

/// The addresses that segments are lost to, the worst first; with the port where it is one service.
fn destinations(netns: &Netns, peers: &[((IpAddr, u16), Peer)]) -> Vec<Affected> {
    let mut found = Vec::<(Affected, usize)>::new();
    for ((address, port), _) in peers {
        let known = found
            .iter_mut()
            .find(|(hit, _)| hit.address == Some(*address));
        match known {
            Some((_, ports)) => *ports += 1,
            None => found.push((Window::affected_destination(netns, *address, *port), 1)),
        }
    }
    let hits = found
        .into_iter()
        .take(4)
        .map(|(hit, ports)| match hit.address {
            Some(address) if ports > 1 => host("destination", address, netns.inode),
            _ => hit,
        });
    hits.collect()
}

#[cfg(test)]
mod tests;
