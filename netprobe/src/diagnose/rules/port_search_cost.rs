//! connect() takes long to find a free local port, and burns CPU meanwhile.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    places::End,
    ports::{Place, Range, connects, reuses, to_service},
    sizing::PERSIST,
    window::{Gap, Netns, Window, endpoint, ratio},
};
use crate::{
    observe::diag::Destination,
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "port-search-cost",
    title: "connect() searches long for a free port",
    check,
    explanation: Explanation {
        symptom: "System CPU is high and connect() is slow, but nothing fails yet; a flame graph shows \
                  __inet_check_established under inet_hash_connect.",
        cause: "__inet_hash_connect() tries one port after the other, first those of one parity. For each it walks the \
                chain of connections with the same hash (__inet_check_established). When most ports of a destination \
                are held, often by TIME_WAIT, nearly the whole range is tried for each connect().",
        recognised: "The time of the search was measured around inet_hash_connect: most searches took over 50 us while \
                     over half of the destination's ports are held. Without function probes it cannot be measured.",
        fixes: &[
            (
                "keep connections open: each one kept is a search saved",
                "the other side must allow it",
            ),
            (
                "widen the range, or allow reuse of TIME_WAIT (tcp_tw_reuse=1)",
                "see ephemeral-ports-exhausted",
            ),
        ],
    },
};

/// A search among free ports takes a few microseconds.
const SLOW_NS: u64 = 50_000;
/// With fewer ports held, a slow search has another reason.
const HELD: f64 = 0.5;
/// Fewer connects per second cost next to nothing.
const MANY: f64 = 20.0;
/// With so many ports of one parity held, connect() has to look at nearly all of them before it turns
/// to the other parity.
const CONCLUSIVE: f64 = 0.95;
/// Fewer searches are no sample.
const LEAST: usize = 10;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let busiest = Range::of(netns).and_then(|range| busiest(window, netns, range));
        let Some((place, mut times)) = busiest else {
            return Ok(Vec::new());
        };
        let Place {
            range,
            destination,
            ports,
            ..
        } = place;
        let (searches, _) = connects(window, netns, (destination.remote, destination.port));
        if window.rate(searches) < MANY {
            return Ok(Vec::new());
        }
        if times.len() < LEAST {
            let of_parity = ports.odd.max(ports.used() - ports.odd);
            // Ports that may be taken again end a search as free ones do.
            if reuses(netns, &destination)
                || ratio(of_parity.into(), u64::from(range.usable()) / 2) < CONCLUSIVE
            {
                return Err(Gap(format!(
                    "{} of {} ports for {} are held, but the time of the search cannot be measured",
                    ports.used(),
                    range.usable(),
                    endpoint(destination.remote, destination.port)
                )));
            }
            return Ok(vec![place.concluded()]);
        }
        times.sort_unstable();
        let median = times[times.len() / 2];
        if median < SLOW_NS {
            return Ok(Vec::new());
        }
        let longest = times[times.len() - 1];
        Ok(vec![place.describe(median, longest)])
    })
}

/// Of the destinations that hold many ports, the one whose connects searched longest in all, with the time of each search
/// that was seen, in nanoseconds; where that is not known, the one with the most connects.
fn busiest<'a>(
    window: &'a Window,
    netns: &'a Netns,
    range: Range,
) -> Option<(Place<'a>, Vec<u64>)> {
    let full = Place::all(window, netns, range)
        .filter(|place| place.share() >= HELD && is_searched(window, netns, place.service()));
    let searched = full.map(|place| {
        let times = place
            .connects()
            .filter_map(|event| event.number("search_ns"));
        let times = times.collect();
        (place, times)
    });
    searched.max_by_key(|(place, times): &(Place<'_>, Vec<u64>)| {
        let (connects, _) = connects(window, netns, place.service());
        (times.iter().sum::<u64>(), connects, place.ports.used())
    })
}

/// Whether anything connects to a service; not if others are seen to be connected to, and this is not.
fn is_searched(window: &Window, netns: &Netns, service: End) -> bool {
    let inode = netns.inode.to_string();
    window.watched_required("connects").is_err()
        || to_service(window, netns, service) > 0
        || window
            .events
            .count("connects", &[("netns", inode.as_str())])
            == 0
}

impl Place<'_> {
    /// Where the search cannot be timed: with all ports of the preferred parity held, each connect()
    /// looks at all of them before it tries the others (`__inet_hash_connect`).
    fn concluded(&self) -> Finding {
        let (searches, whose) = connects(self.window, self.netns, self.service());
        let rate = self.window.rate(searches);
        let held = self.held();
        let summary = format!(
            "connect(){} looks at half of the local ports or more to find a free one, {rate:.0} times a second{whose}: \
             {held} (concluded: the search cannot be timed here)",
            self.netns.place()
        );
        let found = finding(RULE.id, Severity::Warning, Confidence::Low, summary).measured(
            held,
            rate,
            "connects/s",
            "connects, sock_diag, Tcp.ActiveOpens",
        );
        self.helped(found)
    }

    fn held(&self) -> String {
        let ports = self.ports;
        format!(
            "{:.0} % of the ports for {} are held: {} odd, {} even, {} of them in TIME_WAIT",
            self.share() * 100.0,
            endpoint(self.destination.remote, self.destination.port),
            ports.odd,
            ports.used() - ports.odd,
            ports.time_wait
        )
    }

    fn describe(&self, median: u64, longest: u64) -> Finding {
        let candidates = self
            .connects()
            .filter_map(|event| event.number("candidates"));
        let tried = candidates.max().unwrap_or(0);
        let held = self.held();
        let found = finding(
            RULE.id,
            Severity::Warning,
            Confidence::High,
            format!(
                "connect(){} searches {} us for a free local port (up to {} us): {held}",
                self.netns.place(),
                median / 1000,
                longest / 1000
            ),
        )
        .counted(
            format!("half of the searches took over {} us", median / 1000),
            median,
            "ns",
            "inet_hash_connect",
        )
        .counted(held, self.ports.used().into(), "ports", "sock_diag");
        let found = if tried > 0 {
            found.counted(
                format!("up to {tried} ports were tried for one connect()"),
                tried,
                "ports",
                "__inet_check_established",
            )
        } else {
            found
        };
        self.helped(found)
    }

    /// Whom it hits, and what helps.
    fn helped(&self, found: Finding) -> Finding {
        let Destination { remote, port, .. } = self.destination;
        let found = found
            .hits([Window::affected_destination(self.netns, remote, port)])
            .hits([somewhere(self.netns)])
            .application(
                "keep connections to that destination open and use them again: each connect() saved is a search saved",
                &[("keepalive", "on".to_owned())],
                "the other side must allow as many open connections",
            );
        self.roomier(found).command(
            "see where the time goes: netprobe flame port-search -o search.svg",
            "none",
        )
    }

    /// With as many free ports as held ones a search ends after a few.
    fn roomier(&self, found: Finding) -> Finding {
        let used = self.ports.used();
        let range = self.range.widened(used * 2);
        if range.usable() <= self.range.usable() {
            return found;
        }
        let Range { first, last, .. } = range;
        found.sysctl(
            format!(
                "or widen the range of ports to {first}-{last}: twice the {used} that are held, so that a search ends after a \
                 few; {PERSIST}"
            ),
            &[("net.ipv4.ip_local_port_range", format!("{first} {last}"))],
            "put ports that services listen at into net.ipv4.ip_local_reserved_ports first",
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{Verdict, fixtures::quiet, window::Window},
        report::{Value, diagnosis::Confidence},
    };

    fn searching(search_ns: u64, time_wait: u32) -> Window {
        let mut window = quiet();
        window.hold_ports(80, time_wait, 0, time_wait / 2);
        window.netns().before = window.netns().after.clone();
        window.grow(&[("Tcp.ActiveOpens", 4000)]);
        let search = [
            ("search_ns", Value::Unsigned(search_ns)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(80)),
        ];
        window.event("connects", 50, &search);
        window
    }

    #[test]
    fn the_destination_that_is_searched_for_is_named_not_the_fullest() {
        let mut window = searching(400_000, 20_000);
        window.hold_ports(9001, 25_000, 0, 12_500);
        let findings = window.findings();
        let found = findings.iter().find(|found| found.id == "port-search-cost");
        let found = found.unwrap();
        assert_eq!(found.affected[0].name, "10.0.0.2:80");
        // Of 28,232 ports 20,000 are held.
        let set = &found.fixes[1].set[0];
        assert_eq!(set.1, "25536 65535");
    }

    #[test]
    fn a_slow_search_among_held_ports_is_found() {
        assert!(
            searching(400_000, 20_000)
                .ids()
                .contains(&"port-search-cost")
        );
        assert_eq!(
            searching(4000, 20_000).verdict("port-search-cost"),
            Verdict::Ok
        );
        assert_eq!(
            searching(400_000, 200).verdict("port-search-cost"),
            Verdict::Ok
        );
    }

    #[test]
    fn without_its_time_there_is_no_verdict() {
        let mut window = searching(0, 20_000);
        window.events = crate::diagnose::events::Events::default();
        let verdict = window.verdict("port-search-cost");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    }

    #[test]
    fn what_nobody_connects_to_any_more_is_not_searched_for() {
        let mut window = searching(0, 28_000);
        window.events = crate::diagnose::events::Events::default();
        for ports in window.sockets().ports.values_mut() {
            ports.odd = 14_000;
        }
        window.total("connects", 80, &[("dport", Value::Unsigned(8000))]);
        assert_eq!(window.verdict("port-search-cost"), Verdict::Ok);
        window.total("connects", 800, &[("dport", Value::Unsigned(80))]);
        assert!(window.ids().contains(&"port-search-cost"));
    }

    #[test]
    fn without_its_time_a_parity_that_is_full_tells_with_little_confidence() {
        let mut window = searching(0, 20_000);
        window.events = crate::diagnose::events::Events::default();
        for ports in window.sockets().ports.values_mut() {
            ports.odd = 14_000;
        }
        let findings = window.findings();
        let found = findings.iter().find(|found| found.id == "port-search-cost");
        assert_eq!(found.map(|found| found.confidence), Some(Confidence::Low));
    }
}
