//! Quiet connections that nothing answers any more, while others with the same peer go on: what has forgotten them
//! drops what they send, without a word.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    super::super::{
        events::{Event, Owner},
        finding::{finding, process},
        places::{self, End},
        received::LEAST,
        sizing::{median, spoken},
        window::{Gap, Netns, Window, endpoint},
    },
    RULE, advise_keepalive, part,
};
use crate::{
    observe::diag::{IN_VAIN, Unanswered},
    report::diagnosis::{Confidence, Finding, Severity},
};

/// A single attempt may be a probe that came too soon; where connections die of mere loss, others need two.
const TWICE: u64 = 2;
/// A connection whose peer was heard of since was not quiet.
const QUIET_MS: u32 = 1000;
/// So many that were looked at tell what the others were like.
const ENOUGH: u64 = 8;
/// A path that is gone for a part of the window answers handshakes in the other; of one that lives, no more than one in
/// so many is lost.
const MANY_MUTE: u64 = 20;
/// Causes of retransmissions of data.
const CAUSES: [&str; 4] = ["rto", "fast", "tlp", "other"];

/// Connections to one service, by local port.
#[derive(Default)]
struct Service {
    /// Sent the same again twice, or more often.
    lossy: BTreeSet<u16>,
    /// Sent the same again so often that nothing is thought to come any more.
    late: BTreeSet<u16>,
    /// Timed out.
    timed_out: BTreeSet<u16>,
    /// Ended in another way than in order.
    cut: BTreeSet<u16>,
    /// Wait for an acknowledgement at the end of the window.
    unanswered: BTreeMap<u16, Unanswered>,
    owner: Option<Owner>,
}

/// Those of a service that nothing answered to the end, after they had been quiet.
struct Dead {
    /// How long they were quiet, the shortest first, in milliseconds.
    quiet_ms: Vec<u32>,
    /// All that nothing answered.
    all: usize,
}

/// Connections that go on meanwhile.
struct Others {
    count: u64,
    /// Whether they are to the same service, rather than to another of that peer.
    is_same_service: bool,
}

/// A finding for each service that lost quiet connections so.
pub(super) fn check(window: &Window, netns: &Netns) -> Vec<Finding> {
    let services = services(window, netns).into_iter();
    let found = services.filter_map(|(end, service)| {
        let dead = service.dead(netns, end)?;
        if is_for_size(netns, end.0) {
            return None;
        }
        let others = Others::of(window, netns, end)?;
        Some(describe(window, netns, (end, &service), (&dead, &others)))
    });
    found.collect()
}

/// Whether enough of what was sent again was looked at.
pub(super) fn check_seen(window: &Window, netns: &Netns) -> Result<(), Gap> {
    let inode = netns.inode.to_string();
    let counted = CAUSES.map(|cause| {
        let group = [("cause", cause), ("netns", inode.as_str())];
        window.events.count("retransmits", &group)
    });
    let counted: u64 = counted.iter().sum();
    let seen = window.events.within("retransmits", netns.inode);
    let seen = seen.filter(|event| is_data(event)).count() as u64;
    if seen < ENOUGH && seen * 2 < counted && counted - seen >= ENOUGH {
        return Err(Gap(format!(
            "{counted} segments were sent again, but too few of them were looked at, as there was too much else"
        )));
    }
    Ok(())
}

/// Whether what gets no answer may be lost for its size instead, which path-loss tells.
fn is_for_size(netns: &Netns, address: IpAddr) -> bool {
    let path = netns.after.sockets.as_ref();
    let path = path.and_then(|table| table.paths.get(&address));
    path.is_some_and(|path| path.too_large_bytes().is_some())
}

fn is_data(event: &Event) -> bool {
    CAUSES.iter().any(|cause| event.is("cause", cause))
}

fn services(window: &Window, netns: &Netns) -> BTreeMap<End, Service> {
    let mut services = BTreeMap::<End, Service>::new();
    for event in window.events.within("retransmits", netns.inode) {
        let Some((local, remote)) = places::ends(event).filter(|_| is_data(event)) else {
            continue;
        };
        let service = services.entry(remote).or_default();
        let attempt = event.number("attempt").unwrap_or(0);
        if attempt >= TWICE {
            service.lossy.insert(local.1);
        }
        if attempt >= u64::from(IN_VAIN) {
            service.late.insert(local.1);
            service.owner.get_or_insert_with(|| event.owner());
        }
    }
    for event in window.events.within("lifetimes", netns.inode) {
        let Some((local, remote)) = places::ends(event).filter(|_| !event.is("result", "fin"))
        else {
            continue;
        };
        let service = services.entry(remote).or_default();
        service.cut.insert(local.1);
        if event.is("result", "timeout") {
            service.timed_out.insert(local.1);
            service.owner.get_or_insert_with(|| event.owner());
        }
    }
    let after = netns.after.sockets.iter();
    for ((address, port, local), unanswered) in after.flat_map(|table| &table.unanswered) {
        let service = services.entry((*address, *port)).or_default();
        service.unanswered.insert(*local, *unanswered);
    }
    services
}

impl Service {
    /// `None` where it was not quiet ones that died, where busy ones lost something, too, or where those that did came
    /// through: a path that is gone for a while takes all.
    fn dead(&self, netns: &Netns, end: End) -> Option<Dead> {
        let in_vain = self
            .unanswered
            .iter()
            .filter(|(_, unanswered)| unanswered.timeouts >= IN_VAIN);
        let mut dead: BTreeSet<u16> = in_vain.map(|(local, _)| *local).collect();
        dead.extend(&self.timed_out);
        dead.extend(self.late.intersection(&self.cut));
        let quiet = |local: &u16| self.quiet_ms(netns, end, *local);
        let mut quiet_ms: Vec<u32> = dead.iter().filter_map(quiet).collect();
        quiet_ms.sort_unstable();
        // Quiet ones that are not dead by now either had no time for it, or were answered in the end.
        let is_answered =
            |local: &u16| !self.unanswered.contains_key(local) && !self.cut.contains(local);
        let troubled: BTreeSet<u16> = self.lossy.union(&dead).copied().collect();
        let contrary = troubled.iter().filter(|local| {
            let is_dead = dead.contains(local);
            quiet(local).is_none() || !is_dead && is_answered(local)
        });
        let is_quiet = quiet_ms.len() >= LEAST && contrary.count() * 4 <= quiet_ms.len();
        is_quiet.then_some(Dead {
            quiet_ms,
            all: dead.len(),
        })
    }

    /// How long a connection had been quiet when it was used again, or at least when the window began.
    fn quiet_ms(&self, netns: &Netns, (address, port): End, local: u16) -> Option<u32> {
        if let Some(unanswered) = self.unanswered.get(&local) {
            return Some(unanswered.quiet_ms).filter(|quiet| *quiet >= QUIET_MS);
        }
        let before = netns.before.sockets.as_ref()?;
        before.unheard_ms.get(&(address, port, local)).copied()
    }
}

impl Others {
    /// Those with the service, or if there are none with others of its address. `None` where handshakes get no answer
    /// either.
    fn of(window: &Window, netns: &Netns, end: End) -> Option<Self> {
        let same = going_on(window, netns, |remote| remote == end);
        if same > 0 {
            let is_mute = mute(window, netns, |remote| remote.0 == end.0) * MANY_MUTE > same;
            return (!is_mute).then_some(Self {
                count: same,
                is_same_service: true,
            });
        }
        let count = going_on(window, netns, |remote| remote.0 == end.0);
        let is_mute = mute(window, netns, |remote| remote == end) > 0
            || mute(window, netns, |remote| remote.0 == end.0) * MANY_MUTE > count;
        (count > 0 && !is_mute).then_some(Self {
            count,
            is_same_service: false,
        })
    }

    fn words(&self, address: IpAddr, port: u16) -> (String, String) {
        if self.is_same_service {
            (
                "with it".to_owned(),
                format!("with {}", endpoint(address, port)),
            )
        } else {
            let at = format!("with other ports of {address}");
            (at.clone(), at)
        }
    }
}

/// How many handshakes with some services got no answer, or a late one.
fn mute(window: &Window, netns: &Netns, is_of: impl Fn(End) -> bool) -> u64 {
    let again = window.events.within("retransmits", netns.inode);
    let again = again.filter(|event| event.is("cause", "syn"));
    let given_up = window.events.within("connects", netns.inode);
    let given_up = given_up.filter(|event| event.is("outcome", "aborted"));
    let ends = again.chain(given_up).filter_map(places::ends);
    let mute: BTreeSet<u16> = ends
        .filter(|(_, remote)| is_of(*remote))
        .map(|(local, _)| local.1)
        .collect();
    mute.len() as u64
}

/// How many connections with some services are open and heard of, have ended in order, or began.
fn going_on(window: &Window, netns: &Netns, is_of: impl Fn(End) -> bool) -> u64 {
    let after = netns.after.sockets.iter();
    let open = after.flat_map(|table| &table.quietness);
    let open: u64 = open
        .filter(|(end, _)| is_of(**end))
        .map(|(_, quietness)| u64::from(quietness.heard))
        .sum();
    let well = |kind, (name, word): (&'static str, &'static str)| {
        let events = window.events.within(kind, netns.inode);
        let well = events.filter(|event| {
            event.is(name, word) && places::ends(event).is_some_and(|(_, to)| is_of(to))
        });
        well.count() as u64
    };
    let ended = well("lifetimes", ("result", "fin"));
    (open + ended).max(well("connects", ("outcome", "established")))
}

fn describe(
    window: &Window,
    netns: &Netns,
    ((address, port), service): (End, &Service),
    (dead, others): (&Dead, &Others),
) -> Finding {
    let half = f64::from(median(&dead.quiet_ms).unwrap_or(0)) / 1e3;
    let wanted = part(half, 4.0);
    let (pid, comm) = service.owner.clone().unwrap_or_default();
    let whose = comm
        .as_ref()
        .map_or(String::new(), |comm| format!(" of {comm}"));
    let count = dead.quiet_ms.len();
    let (with_it, with_whom) = others.words(address, port);
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::Medium,
        format!(
            "{count} quiet connections{whose}{} with {address} (port {port}) got no answer any more in {:.0} s, when they were \
             used again, while {} others {with_it} go on: something on the way has forgotten them, and drops what they send",
            netns.place(),
            window.seconds,
            others.count
        ),
    )
    .counted(
        format!(
            "{count} of {} connections that sent the same again and again, or timed out, had been silent before: half of \
             them for {half:.1} s or more",
            dead.all
        ),
        count as u64,
        "connections",
        "tcp_retransmit_skb, lifetimes, tcp_info last_ack_recv",
    )
    .counted(
        format!("{} connections {with_whom} are heard of", others.count),
        others.count,
        "connections",
        "tcp_info, lifetimes, connects",
    )
    .hits([Window::affected_destination(netns, address, port)])
    .hits(pid.map(|pid| process(Some(pid), comm, Some(netns.inode))));
    let why = format!(
        "a quarter of those {}; when it forgets is not known, so halve it again if connections go on to die",
        spoken(half)
    );
    advise_keepalive(found, wanted, &why)
}
