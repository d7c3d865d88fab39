//! Quiet clients hold connections, and with them workers, while others wait in the queue; or clients are not served though
//! their connections were accepted.

mod standstill;
mod unread;

use super::super::{
    Explanation, Rule, Verdict, accepting,
    finding::{finding, host},
    in_each, overflow,
    sizing::{counted, waiting},
    slow_requests,
    window::{Netns, Queue, Window, ratio},
    zero_window,
};
use crate::{
    observe::diag::{Clients, QUIET_MS},
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "long-held-connections",
    title: "connections hold the workers, or wait for one",
    check,
    explanation: Explanation {
        symptom: "All workers of a server are busy, though there is little traffic; new clients wait.",
        cause: "A server with a worker for each connection (Apache prefork, php-fpm, many databases) cannot serve anybody \
                else while a client keeps its connection open without asking for anything. No counter of the kernel shows \
                that; sock_diag knows when data last went over each connection. A server that accepts more connections than it has \
                workers for (Tomcat, many pools of threads) leaves the requests of the others in the receive queues of \
                their sockets (tcp_data_queue()), where nobody reads them.",
        recognised: "Connections wait in a listener's queue for 3 s or more, or it is always full, while at least half of \
                     those that were accepted carried no data for ten seconds, or brought no more than 8 KiB in all and had no answer for as long \
                     (slow loris). Or what three clients or more have sent over accepted \
                     connections was not read for 3 s or more (Recv-Q of ss -tn): a warning if these are as many as those \
                     that were served meanwhile, else a note; so is it where three requests or more had waited for a second or more at four of five \
                     looks, one each second, if fewer are served at once. Or at a look, one each second, three clients or more had waited \
                     for a second or more, and nothing was read or sent over any connection of the service: it stood still, \
                     as in a long garbage collection, even if it went on since; a warning from 2 s on.",
        fixes: &[
            (
                "shorter keep-alive and read timeouts",
                "clients connect more often",
            ),
            (
                "a limit for how long a whole request may take (client_header_timeout, RequestReadTimeout, timeout http-request), and \
                 for the connections of one address, where requests come byte by byte",
                "clients with a bad uplink are cut off",
            ),
            (
                "a limit for how long a send may take (send_timeout, SO_SNDTIMEO, TCP_USER_TIMEOUT), where clients do not read what \
                 they are sent",
                "who reads slowly gets no more",
            ),
            ("an event-driven proxy in front", "one more hop"),
        ],
    },
};

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let Some(sockets) = netns.after.sockets.as_ref() else {
            return Ok(Vec::new());
        };
        let overflows = overflow::of(window, netns);
        let held = sockets.clients.iter().filter_map(|(port, clients)| {
            let queue = netns.queue(None, *port)?;
            // Where attempts are turned away, the queue is full of those that wait.
            let is_full = overflows
                .iter()
                .flatten()
                .any(|overflow| overflow.port == Some(*port) && overflow.is_pinned());
            let waits = is_full || accepting::of(window, netns, queue).waits_long;
            let quiet = clients.quiet_since_accepted();
            let is_quiet = quiet > 0 && ratio(quiet.into(), clients.established.into()) >= 0.5;
            if waits && is_quiet {
                return Some(describe(window, netns, queue, clients));
            }
            let is_slow = slow_requests::holds(clients, clients.held);
            (waits && is_slow).then(|| describe_slow(window, netns, queue, clients))
        });
        Ok(held
            .chain(unread::of(window, netns))
            .chain(standstill::of(window, netns))
            .collect())
    })
}

fn describe(window: &Window, netns: &Netns, queue: &Queue, clients: &Clients) -> Finding {
    let port = queue.listener.port;
    let (quiet, longest_s) = (clients.quiet_since_accepted(), clients.quietest_ms / 1000);
    let mut heaviest: Vec<_> = clients.quiet_clients.iter().collect();
    heaviest.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::Medium,
        format!(
            "{} of {} at port {port}{} {} quiet for over {} s (up to {longest_s} s) while {} in the queue",
            quiet,
            counted(clients.established.into(), "accepted connection"),
            netns.place(),
            if quiet == 1 { "is" } else { "are" },
            QUIET_MS / 1000,
            waiting(queue.listener.queue)
        ),
    )
    .counted(
        format!("{} of {} accepted connections carried no data for {} s", quiet, clients.established, QUIET_MS / 1000),
        quiet.into(),
        "connections",
        "sock_diag tcp_info",
    )
    .counted(
        format!("{} in the queue", waiting(queue.listener.queue)),
        queue.listener.queue.into(),
        "connections",
        "sock_diag",
    )
    .hits([window.affected_listener(netns, &queue.listener)])
    .hits(heaviest.into_iter().take(3).map(|(address, _)| host("source", *address, netns.inode)));
    let found = if zero_window::holds(clients, quiet) {
        zero_window::advise(found, clients)
    } else {
        found.application(
            "shorten the server's keep-alive and read timeouts, so that quiet clients give their worker back",
            &[],
            "clients connect more often",
        )
    };
    see_which(found)
}

fn describe_slow(window: &Window, netns: &Netns, queue: &Queue, clients: &Clients) -> Finding {
    let port = queue.listener.port;
    let slow = clients.slow_requests.connections;
    let words = slow_requests::words(clients);
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::Medium,
        format!(
            "{slow} of {} at port {port}{} brought {words} (slow loris, or clients with a bad uplink), while {} in the queue",
            counted(clients.held.into(), "accepted connection"),
            netns.place(),
            waiting(queue.listener.queue)
        ),
    )
    .counted(
        format!("{slow} of {} accepted connections brought {words}", clients.held),
        slow.into(),
        "connections",
        "sock_diag tcp_info",
    )
    .hits([window.affected_listener(netns, &queue.listener)])
    .hits(slow_requests::hits(netns, clients));
    see_which(slow_requests::advise(found, clients))
}

fn see_which(found: Finding) -> Finding {
    found.command(
        "see which they are: netprobe lifetimes --open --longest",
        "none",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagnose::fixtures::quiet,
        observe::diag::{Silent, SlowRequests, ZeroWindow},
    };

    #[test]
    fn quiet_connections_matter_only_while_others_wait() {
        for (before, came, expected) in [(10, 51, true), (0, 0, false)] {
            let mut window = quiet();
            window.listen(9000, 100, &[before + came; 10]);
            window.waiting(9000, before, came);
            // Fewer than those that wait: one worker each.
            let clients = window.sockets().clients.get_mut(&9000).unwrap();
            (clients.established, clients.quiet) = (8, 8);
            clients.open += 8;
            clients.quietest_ms = 60_000;
            let before = window.netns().before.sockets.as_mut().unwrap();
            before.clients.get_mut(&9000).unwrap().open += 8;
            let found = window.ids().contains(&"long-held-connections");
            assert_eq!(found, expected, "{came}");
        }
    }

    #[test]
    fn clients_that_do_not_read_are_told_from_idle_ones() {
        let mut window = quiet();
        window.listen(9000, 100, &[61; 10]);
        window.waiting(9000, 10, 51);
        window.serving(9000, 3, 0);
        let clients = window.sockets().clients.get_mut(&9000).unwrap();
        (clients.established, clients.quiet) = (3, 3);
        clients.zero_window = ZeroWindow {
            connections: 3,
            longest_ms: 18_000,
            bytes: 1_800_000,
        };
        let findings = window.findings();
        for id in ["application-not-accepting", RULE.id] {
            let found = findings.iter().find(|found| found.id == id).unwrap();
            let said = "3 connections that it holds wait for clients that do not read what it sends (window closed for 18 s, ";
            assert!(found.fixes[0].text.starts_with(said), "{:?}", found.fixes);
        }
    }

    #[test]
    fn requests_that_come_byte_by_byte_hold_the_workers() {
        let mut window = quiet();
        window.listen(9000, 100, &[61; 10]);
        window.waiting(9000, 10, 51);
        window.serving(9000, 3, 0);
        let clients = window.sockets().clients.get_mut(&9000).unwrap();
        clients.established = 3;
        clients.slow_requests = SlowRequests {
            connections: 3,
            longest_ms: 24_000,
            most_bytes: 40,
            clients: [([10, 0, 0, 9].into(), 3)].into(),
        };
        let findings = window.findings();
        let found = findings.iter().find(|found| found.id == RULE.id).unwrap();
        let said = "3 of 3 accepted connections at port 9000 brought no more than 40 bytes each in up to 24 s, and no answer";
        assert!(found.summary.starts_with(said), "{}", found.summary);
        assert_eq!(found.affected[1].name, "10.0.0.9");
        let first = findings
            .iter()
            .find(|found| found.id == "application-not-accepting");
        let advice = &first.unwrap().fixes[0].text;
        assert!(advice.contains("client_header_timeout"), "{advice}");
        let clients = window.sockets().clients.get_mut(&9000).unwrap();
        clients.slow_requests.connections = 1;
        assert!(!window.ids().contains(&RULE.id));
    }

    #[test]
    fn who_was_accepted_after_a_long_wait_is_not_quiet() {
        let mut window = quiet();
        window.listen(9000, 100, &[61; 10]);
        window.waiting(9000, 10, 51);
        let clients = window.sockets().clients.get_mut(&9000).unwrap();
        (clients.established, clients.quiet) = (4, 4);
        let waited_ms = clients.waiting_ms.iter().max().unwrap();
        let held = |ms, ino| Silent { ms, ino };
        clients.silent = vec![
            held(QUIET_MS + waited_ms - 1, 7),
            held(60_000 + waited_ms, 8),
        ];
        let findings = window.findings();
        let found = findings.iter().find(|found| found.id == RULE.id).unwrap();
        assert!(found.summary.starts_with("3 of 4 "), "{}", found.summary);
    }
}
