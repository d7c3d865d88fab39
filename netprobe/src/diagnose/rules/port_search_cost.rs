//! connect() takes long to find a free local port, and burns CPU meanwhile.

use super::{
    super::{
        Explanation, Rule, Verdict,
        finding::{finding, somewhere},
        in_each,
        sizing::PERSIST,
        window::{Gap, Netns, Window, endpoint, ratio},
    },
    ephemeral_ports_exhausted::{Range, connects, fullest, reuses},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

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
        let Some((range, (destination, ports))) = Range::of(netns).zip(fullest(netns)) else {
            return Ok(Vec::new());
        };
        let held = ratio(ports.used().into(), range.usable().into());
        let (searches, _) = connects(window, netns, destination.port);
        if held < HELD || window.rate(searches) < MANY {
            return Ok(Vec::new());
        }
        let searches = window.events.within("connects", netns.inode);
        let mut times: Vec<u64> = searches
            .filter_map(|event| event.number("search_ns"))
            .collect();
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
            return Ok(vec![concluded(window, netns, &held_text(netns, held))]);
        }
        times.sort_unstable();
        let median = times[times.len() / 2];
        if median < SLOW_NS {
            return Ok(Vec::new());
        }
        let longest = times[times.len() - 1];
        Ok(vec![describe(
            window,
            netns,
            (median, longest),
            &held_text(netns, held),
        )])
    })
}

/// Where the search cannot be timed: with all ports of the preferred parity held, each connect()
/// looks at all of them before it tries the others (`__inet_hash_connect`).
fn concluded(window: &Window, netns: &Netns, held: &str) -> Finding {
    let (searches, whose) = fullest(netns).map_or((0, ""), |(destination, _)| {
        connects(window, netns, destination.port)
    });
    let rate = window.rate(searches);
    let summary = format!(
        "connect(){} looks at half of the local ports or more to find a free one, {rate:.0} times a second{whose}: {held} (concluded: the search cannot be timed here)",
        netns.place()
    );
    let found = finding(RULE.id, Severity::Warning, Confidence::Low, summary).measured(
        held.to_owned(),
        rate,
        "connects/s",
        "connects, sock_diag, Tcp.ActiveOpens",
    );
    helped(found, netns)
}

fn held_text(netns: &Netns, held: f64) -> String {
    fullest(netns).map_or(String::new(), |(destination, ports)| {
        format!(
            "{:.0} % of the ports for {} are held: {} odd, {} even, {} of them in TIME_WAIT",
            held * 100.0,
            endpoint(destination.remote, destination.port),
            ports.odd,
            ports.used() - ports.odd,
            ports.time_wait
        )
    })
}

fn describe(window: &Window, netns: &Netns, (median, longest): (u64, u64), held: &str) -> Finding {
    let candidates = window
        .events
        .within("connects", netns.inode)
        .filter_map(|event| event.number("candidates"));
    let tried = candidates.max().unwrap_or(0);
    let service = fullest(netns).map(|(destination, _)| destination);
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::High,
        format!(
            "connect(){} searches {} us for a free local port (up to {} us): {held}",
            netns.place(),
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
    .counted(
        held.to_owned(),
        service.map_or(0, |_| 1),
        "destinations",
        "sock_diag",
    );
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
    helped(found, netns)
}

/// Whom it hits, and what helps.
fn helped(found: Finding, netns: &Netns) -> Finding {
    let service = fullest(netns).map(|(destination, _)| destination);
    found
        .hits(
            service
                .map(|service| Window::affected_destination(netns, service.remote, service.port)),
        )
        .hits([somewhere(netns)])
        .application(
            "keep connections to that destination open and use them again: each connect() saved is a search saved",
            &[("keepalive", "on".to_owned())],
            "the other side must allow as many open connections",
        )
        .sysctl(
            format!("or widen the range of ports; {PERSIST}"),
            &[("net.ipv4.ip_local_port_range", "1024 65535".to_owned())],
            "put ports that services listen at into net.ipv4.ip_local_reserved_ports first",
        )
        .command(
            "see where the time goes: netprobe flame port-search -o search.svg",
            "none",
        )
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
        let search = [("search_ns", Value::Unsigned(search_ns))];
        window.event("connects", 50, &search);
        window
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
