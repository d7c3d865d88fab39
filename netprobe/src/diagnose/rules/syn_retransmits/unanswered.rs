//! SYNs and SYN-ACKs of a namespace that nobody answers, and who should.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use super::{
    super::super::{
        dropped,
        events::{Event, Owner},
        places::{self, End},
        window::{Netns, Window, ratio},
    },
    LEAST, MOST, MUCH,
    connects::{Connects, Dead, Ending, UNREACHABLE, dead},
};
use crate::report::diagnosis::Affected;

/// Fewer destinations are told one by one.
const SCATTERED: usize = 5;
/// So many that do not answer are a few of those that were connected to.
const FEW: f64 = 0.1;
/// After so long the first SYN is sent again (1 s), by a timer that may be late.
const FIRST_NS: u64 = 1_500_000_000;
/// Handshakes that are under way when counters are read.
const SLACK: u64 = 3;

/// Who tries port after port of an address, and is kept out by a firewall here.
pub(super) type Scans = HashSet<(IpAddr, IpAddr)>;

/// SYNs or SYN-ACKs of a namespace that nobody answers.
pub(super) struct Unanswered<'a> {
    pub(super) netns: &'a Netns,
    /// Those that were sent again, and of those, the SYNs and the SYN-ACKs.
    pub(super) again: u64,
    pub(super) syns: u64,
    pub(super) answers: u64,
    /// Who does not answer, the worst first.
    pub(super) silent: Vec<Affected>,
    /// How connects ended, where none was sent again: so many.
    pub(super) ended: Option<(Ending, u64)>,
    /// Whether the process gets through all the same, by the other family of addresses.
    pub(super) is_reached: bool,
    /// Whether they are few, beside much that goes well.
    pub(super) is_minor: bool,
    /// Whether they are many destinations, each of which was tried next to never.
    pub(super) is_scattered: bool,
}

impl<'a> Unanswered<'a> {
    /// What was sent again in a namespace. SYNs to a destination that takes no connect are one thing, however much goes
    /// well beside them; those that a firewall here keeps out another, and those that others do not answer a third, both
    /// unless they are little beside the connections that were `opened`.
    pub(super) fn of(window: &Window, netns: &'a Netns, scans: &Scans, opened: u64) -> Vec<Self> {
        let [again, syns, answers] = sent_again(window, netns, scans);
        let kept_out = kept_out(window);
        let sent = [again.saturating_sub(answers), syns, 0];
        let (mut found, few) = Self::down(window, netns, (scans, &kept_out), sent);
        let again = again.saturating_sub(found.iter().map(|down| down.again).sum());
        let syns = syns.saturating_sub(found.iter().map(|down| down.syns).sum());
        if again < LEAST || ratio(again, opened + again) < MUCH {
            found.extend(few);
            return found;
        }
        let cause = if answers > syns { "syn-ack" } else { "syn" };
        let down: Vec<Option<End>> = found.iter().map(Self::end).collect();
        let is_down = |event: &&Event| {
            let end = places::ends(event).map(|(_, remote)| remote);
            cause == "syn" && down.contains(&end)
        };
        let all: Vec<&Event> = window
            .events
            .within("retransmits", netns.inode)
            .filter(|event| event.is("cause", cause) && !is_of_scan(scans, event))
            .filter(|event| !is_down(event))
            .collect();
        let is_kept_out = |event: &&&Event| {
            let ends = places::ends(event);
            cause == "syn" && ends.is_some_and(|(_, remote)| kept_out.contains(&remote))
        };
        let (known, rest): (Vec<&Event>, Vec<&Event>) =
            all.iter().partition(|event| is_kept_out(event));
        let part = |events: Vec<&Event>| {
            let is_scattered = cause == "syn" && are_scattered(&events);
            let part = Self::part(netns, cause, (&events, all.len()), [again, syns, answers]);
            Self {
                is_minor: is_scattered && ratio(part.silent.len() as u64, opened) <= FEW,
                is_scattered,
                ..part
            }
        };
        if known.is_empty() {
            found.push(part(rest));
        } else {
            let parts = [rest, known].into_iter().filter(|part| !part.is_empty());
            found.extend(parts.map(part));
        }
        found
    }

    /// Destinations that take no connect and whose SYNs were sent again, but for those that a firewall here keeps out: the
    /// worst of those that many connects were to, each on its own, and the others. `counts` are of all SYNs, as for
    /// [`Self::part`].
    fn down(
        window: &Window,
        netns: &'a Netns,
        (scans, kept_out): (&Scans, &HashSet<End>),
        counts: [u64; 3],
    ) -> (Vec<Self>, Option<Self>) {
        let sent = window.events.within("retransmits", netns.inode);
        let sent = sent.filter(|event| event.is("cause", "syn") && !is_of_scan(scans, event));
        let sent: Vec<&Event> = sent.collect();
        let mut ends = BTreeMap::<End, Vec<&Event>>::new();
        for event in &sent {
            if let Some((_, remote)) =
                places::ends(event).filter(|ends| !kept_out.contains(&ends.1))
            {
                ends.entry(remote).or_default().push(event);
            }
        }
        ends.retain(|_, events| events.len() as u64 >= LEAST);
        let mut down = Vec::new();
        let mut few = Vec::new();
        for (end, events) in ends {
            match Connects::of(window, netns, end).filter(Connects::are_in_vain) {
                Some(connects) if connects.is_down() => down.push(events),
                Some(_) => few.extend(events),
                None => {}
            }
        }
        down.sort_by_key(|events| std::cmp::Reverse(events.len()));
        few.extend(down.drain(MOST.min(down.len())..).flatten());
        let part = |events: &[&Event]| Self::part(netns, "syn", (events, sent.len()), counts);
        let few = (!few.is_empty()).then(|| Self {
            is_minor: true,
            ..part(&few)
        });
        (down.iter().map(|events| part(events)).collect(), few)
    }

    /// What these of `all` events with a cause tell of, which are their part of what was sent `again`, and of the SYNs and
    /// the SYN-ACKs that were seen.
    fn part(
        netns: &'a Netns,
        cause: &str,
        (events, all): (&[&Event], usize),
        [again, syns, answers]: [u64; 3],
    ) -> Self {
        let of_all = |count: u64| {
            let part = (count * events.len() as u64).checked_div(all as u64);
            part.unwrap_or(count)
        };
        Self {
            netns,
            again: of_all(again),
            syns: of_all(syns),
            answers: of_all(answers),
            silent: silent(netns, events, cause),
            ended: None,
            is_reached: false,
            is_minor: false,
            is_scattered: false,
        }
    }

    /// Destinations that take no connect, though no SYN to them was sent again, by how that ends.
    pub(super) fn dead(window: &Window, netns: &'a Netns) -> Vec<Self> {
        let kept_out = kept_out(window);
        let mut parts = Vec::<Self>::new();
        let mut kinds = Vec::new();
        for found in dead(window, netns) {
            let kind = (
                kept_out.contains(&found.end),
                std::mem::discriminant(&found.ending),
                found.is_reached,
            );
            if let Some(place) = kinds.iter().position(|known| *known == kind) {
                parts[place].silent.push(affected(netns, &found));
                continue;
            }
            kinds.push(kind);
            parts.push(Self {
                netns,
                again: 0,
                syns: 0,
                answers: 0,
                silent: vec![affected(netns, &found)],
                ended: Some((found.ending, found.count)),
                is_reached: found.is_reached,
                is_minor: false,
                is_scattered: false,
            });
        }
        parts
    }

    pub(super) const fn is_client(&self) -> bool {
        self.answers <= self.syns
    }

    /// Whether connects are told that nobody is there.
    pub(super) const fn is_unreachable(&self) -> bool {
        matches!(self.ended, Some((Ending::Unreachable { .. }, _)))
    }

    /// Whether those who do not answer have answered, and the kernel takes no answer without data (TCP_DEFER_ACCEPT): it has
    /// thrown away one of each connection, and one for each SYN-ACK that was sent again; or it took what came for the first of
    /// these, as it does once it has waited long enough.
    pub(super) fn is_deferred(&self, window: &Window) -> bool {
        let ports: HashSet<u16> = self.silent.iter().filter_map(|hit| hit.port).collect();
        let completed: u64 = ports
            .iter()
            .map(|port| places::connections(window, self.netns, *port))
            .sum();
        let all = self.netns.grown("Tcp.PassiveOpens").unwrap_or(completed);
        let thrown_away = self.netns.grown("TcpExt.TCPDeferAcceptDrop").unwrap_or(0);
        let again = thrown_away.saturating_sub(completed.min(all));
        let mut events = window.events.within("retransmits", self.netns.inode);
        let is_late =
            |event: &Event| event.is("cause", "syn-ack") && event.number("attempt") > Some(1);
        let are_taken = thrown_away + SLACK >= all && !events.any(is_late);
        thrown_away > 0 && (again + SLACK >= self.answers || are_taken)
    }

    /// The address and port of who is silent most.
    pub(super) fn end(&self) -> Option<End> {
        let hit = self.silent.first()?;
        hit.address.zip(hit.port)
    }

    /// Whether one of the silent destinations of this one is the worst of the other.
    pub(super) fn names(&self, other: &Self) -> bool {
        let mut ends = self.silent.iter().map(|hit| hit.address.zip(hit.port));
        other.end().is_some() && ends.any(|end| end == other.end())
    }

    /// Whether the silent destination of this one is the listener of the other.
    pub(super) fn is_of(&self, server: &Self) -> bool {
        self.end().is_some() && self.end() == server.end()
    }

    /// How connects to the silent destination went, where they are seen.
    pub(super) fn connects(&self, window: &Window) -> Option<Connects> {
        Connects::of(window, self.netns, self.end()?)
    }

    /// Whether a SYN to the silent destination was lost in the window: one that was sent again twice in it, or so late that
    /// the attempt before was made in it, too.
    pub(super) fn is_lost_now(&self, window: &Window) -> bool {
        let again = window.events.within("retransmits", self.netns.inode);
        let again = again.filter(|event| event.is("cause", "syn"));
        let mut again = again.filter_map(|event| {
            let (local, remote) = places::ends(event)?;
            (Some(remote) == self.end()).then_some((local, event))
        });
        let mut seen = HashSet::new();
        again.any(|(local, event)| {
            let since_ns = event.at_ns.saturating_sub(window.began_ns);
            !seen.insert(local) || since_ns > waited_ns(event)
        })
    }

    /// Local ends of handshakes with the silent destination that went wrong.
    fn tried(&self, window: &Window) -> HashSet<End> {
        let Some(end) = self.end() else {
            return HashSet::new();
        };
        let near = |kind, (name, word): (&'static str, &'static str)| {
            let events = window.events.within(kind, self.netns.inode);
            events.filter_map(move |event| {
                let (local, remote) = places::ends(event).filter(|_| event.is(name, word))?;
                (remote == end).then_some(local)
            })
        };
        let told = UNREACHABLE.map(|errno| near("connects", ("errno", errno)));
        near("retransmits", ("cause", "syn"))
            .chain(near("connects", ("outcome", "aborted")))
            .chain(told.into_iter().flatten())
            .collect()
    }

    /// The addresses that the silent destination was asked from.
    pub(super) fn clients(&self, window: &Window) -> HashSet<IpAddr> {
        let tried = self.tried(window).into_iter();
        tried.map(|(address, _)| address).collect()
    }

    /// Of the handshakes with the silent destination that went wrong, as this end saw them, how many the other end
    /// was seen to answer, and how many there are.
    pub(super) fn answered(&self, window: &Window, far: &Self) -> (usize, usize) {
        let tried = self.tried(window);
        let events = window.events.within("retransmits", far.netns.inode);
        let answered: HashSet<End> = events
            .filter(|event| event.is("cause", "syn-ack"))
            .filter_map(|event| places::ends(event).filter(|(local, _)| Some(*local) == self.end()))
            .map(|(_, remote)| remote)
            .collect();
        (tried.intersection(&answered).count(), tried.len())
    }
}

/// How many SYNs and SYN-ACKs a namespace has sent again, and of those that were seen, the SYNs and the SYN-ACKs.
fn sent_again(window: &Window, netns: &Netns, scans: &Scans) -> [u64; 3] {
    let inode = netns.inode.to_string();
    let [syns, answers] = ["syn", "syn-ack"].map(|cause| {
        let group = [("cause", cause), ("netns", inode.as_str())];
        window.events.count("retransmits", &group)
    });
    let again = netns.grown("TcpExt.TCPSynRetrans").unwrap_or(0);
    let again = wanted(window, netns, scans, again);
    // The events are counted for a moment longer.
    let seen = syns + answers;
    let of_all = |count: u64| {
        let part = (count * again).checked_div(seen).unwrap_or(0);
        if seen > again { part } else { count }
    };
    [again, of_all(syns), of_all(answers)]
}

/// Whether these SYNs go to many destinations, and few to each.
fn are_scattered(events: &[&Event]) -> bool {
    let mut ends = BTreeMap::<End, u64>::new();
    for (_, remote) in events.iter().filter_map(|event| places::ends(event)) {
        *ends.entry(remote).or_default() += 1;
    }
    ends.len() >= SCATTERED && ends.values().all(|count| *count < LEAST)
}

/// Ends that a firewall of this machine was seen to keep SYNs from.
fn kept_out(window: &Window) -> HashSet<End> {
    let drops = window.events.of("drops").iter();
    drops
        .filter(|event| dropped::is_syn(event) && dropped::is_netfilter(|name| event.value(name)))
        .filter_map(|event| Some(places::ends(event)?.1))
        .collect()
}

fn affected(netns: &Netns, dead: &Dead) -> Affected {
    let (pid, comm) = dead.owner.clone();
    Affected {
        pid,
        comm,
        ..Window::affected_destination(netns, dead.end.0, dead.end.1)
    }
}

/// Whether a SYN goes to a port that nobody waits for an answer of.
fn is_of_scan(scans: &Scans, event: &Event) -> bool {
    let ends = event.ip("saddr").zip(event.ip("daddr"));
    ends.is_some_and(|ends| scans.contains(&ends))
}

/// Of so many SYNs and SYN-ACKs, those that are of no scan.
pub(super) fn wanted(window: &Window, netns: &Netns, scans: &Scans, again: u64) -> u64 {
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

/// How long ago the attempt before a SYN was made, at most: each waits twice as long as the one before.
fn waited_ns(event: &Event) -> u64 {
    let attempt = event.number("attempt").unwrap_or(1).clamp(1, 8);
    FIRST_NS << (attempt - 1)
}

/// Who does not answer, the worst first: destinations of SYNs, or listeners whose clients are silent.
fn silent(netns: &Netns, events: &[&Event], cause: &str) -> Vec<Affected> {
    let mut silent = BTreeMap::<_, (u32, Owner)>::new();
    for event in events {
        let end = if cause == "syn" {
            event.ip("daddr").zip(event.small::<u16>("dport"))
        } else {
            event.ip("saddr").zip(event.small::<u16>("sport"))
        };
        if let Some(end) = end {
            let entry = silent.entry(end).or_insert((0, event.owner()));
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
        .map(|((address, port), (_, (pid, comm)))| Affected {
            kind,
            pid,
            comm,
            ..Window::affected_destination(netns, address, port)
        });
    hits.collect()
}
