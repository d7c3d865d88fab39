//! Quiet connections that nothing answers any more, while others with the same service go on: what has forgotten them
//! drops what they send, without a word.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::super::{
        events::{Event, Owner},
        finding::{finding, process},
        places::{self, End},
        received::LEAST,
        sizing::{median, spoken},
        window::{Netns, Window, endpoint},
    },
    RULE, advise_keepalive, part,
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// What goes out for the third time finds nobody; what is lost now and then arrives.
const LATE: u64 = 3;
/// A single attempt may be a probe that came too soon; where connections die of mere loss, others need two.
const TWICE: u64 = 2;
/// Causes of retransmissions of data.
const CAUSES: [&str; 4] = ["rto", "fast", "tlp", "other"];

/// Connections to one service, by local port.
#[derive(Default)]
struct Service {
    /// Sent the same again twice, or more often.
    lossy: BTreeSet<u16>,
    /// Of those, ones that nothing answers.
    dead: BTreeSet<u16>,
    owner: Option<Owner>,
}

/// A finding for each service that lost quiet connections so.
pub(super) fn check(window: &Window, netns: &Netns) -> Vec<Finding> {
    let services = services(window, netns).into_iter();
    let found = services.filter_map(|(end, service)| {
        let quiet_ms = quiet_ms(netns, end, &service)?;
        let others = others(window, netns, end);
        (others > 0).then(|| describe(window, netns, (end, service), (&quiet_ms, others)))
    });
    found.collect()
}

fn services(window: &Window, netns: &Netns) -> BTreeMap<End, Service> {
    let mut services = BTreeMap::<End, Service>::new();
    let mut add = |event: &Event, (is_lossy, is_dead): (bool, bool)| {
        let Some((local, remote)) = places::ends(event) else {
            return;
        };
        let service = services.entry(remote).or_default();
        if is_lossy {
            service.lossy.insert(local.1);
        }
        if is_dead {
            service.dead.insert(local.1);
            service.owner.get_or_insert_with(|| event.owner());
        }
    };
    for event in window.events.within("retransmits", netns.inode) {
        if CAUSES.iter().any(|cause| event.is("cause", cause)) {
            let attempt = event.number("attempt").unwrap_or(0);
            add(event, (attempt >= TWICE, attempt >= LATE));
        }
    }
    for event in window.events.within("lifetimes", netns.inode) {
        if event.is("result", "timeout") {
            add(event, (true, true));
        }
    }
    services
}

/// How long the dead ones had been quiet when the window began, the shortest first; `None` where it was not quiet ones
/// that died, or where others lost something, too.
fn quiet_ms(netns: &Netns, (address, port): End, service: &Service) -> Option<Vec<u32>> {
    let before = netns.before.sockets.as_ref()?;
    let quiet = |local: &u16| before.unheard_ms.get(&(address, port, *local)).copied();
    let mut times: Vec<u32> = service.dead.iter().filter_map(quiet).collect();
    times.sort_unstable();
    let alive = service.lossy.difference(&service.dead);
    // Those that were quiet have had no time to die yet.
    let lossy = alive.filter(|local| quiet(local).is_none()).count();
    let is_quiet = times.len() >= LEAST && times.len() * 2 > service.dead.len();
    (is_quiet && lossy * 4 <= service.dead.len()).then_some(times)
}

/// How many other connections with the service go on, or began.
fn others(window: &Window, netns: &Netns, end: End) -> u64 {
    let after = netns.after.sockets.as_ref();
    let open = after.and_then(|table| table.quietness.get(&end));
    let open = open.map_or(0, |quietness| u64::from(quietness.heard));
    let began = window
        .events
        .within("connects", netns.inode)
        .filter(|event| {
            event.is("outcome", "established")
                && places::ends(event).is_some_and(|(_, remote)| remote == end)
        });
    open.max(began.count() as u64)
}

fn describe(
    window: &Window,
    netns: &Netns,
    ((address, port), service): (End, Service),
    (quiet_ms, others): (&[u32], u64),
) -> Finding {
    let half = f64::from(median(quiet_ms).unwrap_or(0)) / 1e3;
    let wanted = part(half, 4.0);
    let (pid, comm) = service.owner.unwrap_or_default();
    let whose = comm
        .as_ref()
        .map_or(String::new(), |comm| format!(" of {comm}"));
    let count = quiet_ms.len();
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::Medium,
        format!(
            "{count} quiet connections{whose}{} with {address} (port {port}) got no answer any more in {:.0} s, when they were \
             used again, while {others} others with it go on: something on the way has forgotten them, and drops what they send",
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!(
            "{count} of {} connections that sent the same again and again, or timed out, had been silent: half of them for \
             {half:.1} s or more when the window began",
            service.dead.len()
        ),
        count as u64,
        "connections",
        "tcp_retransmit_skb, lifetimes, tcp_info last_ack_recv",
    )
    .counted(
        format!("{others} connections with {} are heard of", endpoint(address, port)),
        others,
        "connections",
        "tcp_info, connects",
    )
    .hits([Window::affected_destination(netns, address, port)])
    .hits(pid.map(|pid| process(Some(pid), comm, Some(netns.inode))));
    let why = format!(
        "a quarter of those {}; when it forgets is not known, so halve it again if connections go on to die",
        spoken(half)
    );
    advise_keepalive(found, wanted, &why)
}
