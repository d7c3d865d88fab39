//! Whether what a rule dropped is past: when the first and the last packet that is missed was dropped, and whether its
//! clients get through since.

use std::net::IpAddr;

use super::super::super::{
    dropped::{Service, Times},
    places::{self, End},
    window::Window,
};
use crate::report::diagnosis::Finding;

/// So much of a window without a drop is no mere pause between attempts,
const SILENT_SHARE: f64 = 0.25;
/// if it is so many seconds, too.
const SILENT_S: f64 = 2.0;
/// As many packets of a sample tell when the last one was dropped.
const SAMPLE: u64 = 100;

/// Drops of which the last is long ago.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    /// From the first to the last, in seconds.
    lasted_s: f64,
    /// From the last to the end of the window.
    ago_s: f64,
    /// Whether those who missed the packets get through since: the rule is gone.
    pub(super) is_over: bool,
}

impl Past {
    /// Of packets that somebody misses; `None` if they may be dropped still.
    pub(super) fn of(window: &Window, dropped: u64, services: &[(End, Service)]) -> Option<Self> {
        let times = times(window, dropped, services)?;
        let lasted_s = seconds(times.first_ns, times.last_ns);
        let ago_s = window.seconds - seconds(window.began_ns, times.last_ns);
        if ago_s < SILENT_S.max(window.seconds * SILENT_SHARE) {
            return None;
        }
        // What is sent again is so at twice the distance each time: the next may be to come.
        let is_silent = ago_s > lasted_s + SILENT_S;
        let is_over = |end: End, service: &Service| {
            let mut clients = service.missing.iter();
            let is_served = |client: &IpAddr| is_served(window, (end, service), *client, times);
            if is_silent {
                clients.any(is_served)
            } else {
                times.are_syns && !service.missing.is_empty() && clients.all(is_served)
            }
        };
        let mut missed = services.iter().filter(|(_, service)| service.wanted > 0);
        Some(Self {
            lasted_s,
            ago_s,
            is_over: missed.all(|(end, service)| is_over(*end, service)),
        })
    }

    /// When it was, in words.
    pub(super) fn spoken(self) -> String {
        format!(
            "within {:.1} s, the last one {:.0} s ago",
            self.lasted_s, self.ago_s
        )
    }

    /// What became of its clients.
    pub(super) const fn since(self) -> &'static str {
        if self.is_over {
            "; they get through since"
        } else {
            "; none of them was seen to get through since"
        }
    }

    /// Adds when the first and the last was dropped, where that is known.
    pub(super) fn evidence(
        window: &Window,
        dropped: u64,
        services: &[(End, Service)],
        found: Finding,
    ) -> Finding {
        let Some(times) = times(window, dropped, services) else {
            return found;
        };
        let into = |at_ns| seconds(window.began_ns, at_ns);
        let last_s = into(times.last_ns);
        found.measured(
            format!(
                "the first of those that are missed was dropped {:.1} s into the window, the last {last_s:.1} s",
                into(times.first_ns)
            ),
            last_s,
            "s",
            "kfree_skb",
        )
    }
}

/// When what is missed was dropped; `None` where that is not known of enough of it.
fn times(window: &Window, dropped: u64, services: &[(End, Service)]) -> Option<Times> {
    let mut probes = window.probes.iter();
    let is_whole = probes
        .any(|probe| probe.name == "drops" && probe.lost() == 0 && probe.counters.sampled_out == 0);
    let seen = services.iter().map(|(_, service)| {
        let packets = service.wanted + service.others;
        u64::from(packets)
    });
    let seen: u64 = seen.sum();
    // What was dropped while counters were read is in one count only. Where some were not looked at, they may be the last.
    let is_sampled = is_whole && (seen >= SAMPLE || seen * 10 >= dropped * 9);
    if window.began_ns == 0 || !(is_sampled || seen >= dropped) {
        return None;
    }
    let missed = services.iter().filter(|(_, service)| service.wanted > 0);
    let mut all: Option<Times> = None;
    for (_, service) in missed {
        all = Some(service.times?.and(all));
    }
    all.filter(|times| times.first_ns > 0)
}

/// Whether a client has come through to the service with a connection that began after the last drop.
fn is_served(
    window: &Window,
    (end, service): (End, &Service),
    client: IpAddr,
    times: Times,
) -> bool {
    let is_later = |at_ns: u64, took_ns: Option<u64>| {
        took_ns.is_some_and(|took_ns| at_ns.saturating_sub(took_ns) > times.last_ns)
    };
    let mut opened = window.events.of("connects").iter();
    let mut ended = window.events.of("lifetimes").iter();
    opened.any(|event| {
        event.is("outcome", "established")
            && places::ends(event).is_some_and(|(local, remote)| remote == end && local.0 == client)
            && is_later(event.at_ns, event.number("latency_ns"))
    }) || ended.any(|event| {
        let is_between = |(local, remote): (End, End)| {
            if event.is("role", "server") {
                event.netns() == service.home && local.1 == end.1 && remote.0 == client
            } else {
                remote == end && local.0 == client
            }
        };
        !event.is("result", "failed")
            && places::ends(event).is_some_and(is_between)
            && is_later(event.at_ns, event.number("duration_ns"))
    })
}

#[expect(clippy::cast_precision_loss, reason = "a time to read")]
fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}
