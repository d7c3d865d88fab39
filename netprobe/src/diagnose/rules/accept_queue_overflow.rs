//! A listener's queue is too short for the bursts that come: it is full now and then, and empty in
//! between, so a longer one would help.

use super::super::{
    Explanation, Rule, Verdict,
    accepting::{self, Accepting},
    fifo::Emptied,
    finding::{finding, somewhere},
    in_each,
    overflow::{self, Overflow},
    sizing::{PERSIST, counted, roomy},
    window::{Netns, Window},
};
use crate::{
    observe::processes::Process,
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "accept-queue-overflow",
    title: "a listener's accept queue is too short",
    check,
    explanation: Explanation {
        symptom: "Clients time out or see latencies of 1, 3, 7, 15 s while the CPU is idle and the port is open.",
        cause: "A finished handshake waits in the listener's accept queue until the application calls accept(). \
                The queue holds min(listen() argument, net.core.somaxconn), fixed when listen() is called. When \
                sk_acceptq_is_full(), tcp_conn_request() drops SYNs and tcp_v4_syn_recv_sock() drops the final ACK; \
                both count ListenOverflows. The client retransmits after 1, 3, 7 s.",
        recognised: "ListenOverflows grew; the listeners probe names the listener and stage. The queue was sampled \
                     and was not full all the time: the application does empty it. If it is always full, the rule \
                     application-not-accepting holds instead, because a longer queue would only wait longer.",
        fixes: &[
            (
                "raise net.core.somaxconn, then the listen() backlog, then restart or reload the application",
                "a listener keeps its limit until it calls listen() again; each waiting connection takes about 2 KiB",
            ),
            (
                "accept faster: more acceptors, SO_REUSEPORT, no work between accept() calls",
                "SO_REUSEPORT spreads connections by hash, not by load",
            ),
        ],
    },
};

/// A shorter queue saves nothing.
const SMALLEST: u64 = 128;

fn check(window: &Window) -> Verdict {
    let mut explained = None;
    let verdict = in_each(window, |netns| {
        let (others, short): (Vec<_>, Vec<_>) = overflow::of(window, netns)?
            .into_iter()
            .map(|overflow| (elsewhere(window, netns, &overflow), overflow))
            .partition(|(why, _)| why.is_some());
        explained = explained.or_else(|| others.into_iter().find_map(|(why, _)| why));
        Ok(short
            .iter()
            .map(|(_, overflow)| describe(window, netns, overflow))
            .collect())
    });
    match (verdict, explained) {
        (Verdict::Ok, Some(why)) => Verdict::OkBecause(why.to_owned()),
        (verdict, _) => verdict,
    }
}

/// Why an overflow is not the fault of a short queue.
fn elsewhere(window: &Window, netns: &Netns, overflow: &Overflow) -> Option<&'static str> {
    let queue = overflow.queue.as_ref()?;
    let mut holders = window.processes.holders(queue.listener.ino);
    if overflow.is_pinned() {
        Some("queues overflow, but they are always full: see application-not-accepting")
    } else if is_waiting(&accepting::of(window, netns, queue)) {
        Some("queues overflow, but what is in them is not accepted: see application-not-accepting")
    } else if holders.any(Process::has_no_descriptors) {
        Some("queues overflow, but accept() fails for want of file descriptors: see fd-exhaustion")
    } else {
        None
    }
}

const fn is_waiting(accepting: &Accepting) -> bool {
    accepting.waits_long || accepting.is_stalled()
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(window: &Window, netns: &Netns, overflow: &Overflow) -> Finding {
    let who = match &overflow.queue {
        Some(queue) => {
            let holder = window.holder(&queue.listener);
            let comm = holder.map_or(String::new(), |process| format!("{}, ", process.comm));
            format!(
                "the listener at port {} ({comm}queue of {})",
                queue.listener.port, queue.listener.limit
            )
        }
        None => match overflow.port {
            Some(port) => format!("the listener at port {port}"),
            None => "a listener".to_owned(),
        },
    };
    let rate = window.rate(overflow.refused);
    let (confidence, why) = if overflow.is_undecided() {
        (
            Confidence::Low,
            "it was not looked at often enough to tell a short queue from an application that does not accept",
        )
    } else {
        (
            overflow.confidence,
            "its accept queue is too short for the bursts",
        )
    };
    let found = finding(
        RULE.id,
        Severity::Critical,
        confidence,
        format!(
            "{who}{} is full now and then; in {:.0} s {}: {why}",
            netns.place(),
            window.seconds,
            overflow.turned_away()
        ),
    )
    .counted(
        format!(
            "{} refused by {}, {rate:.1}/s",
            counted(overflow.refused, "attempt"),
            if overflow.others == 0 {
                "a full accept queue"
            } else {
                "all full accept queues of this namespace"
            }
        ),
        overflow.refused,
        "attempts",
        "TcpExt.ListenOverflows",
    );
    let found = match &overflow.queue {
        None => found,
        Some(queue) => found
            .counted(
                format!(
                    "the queue held up to {} of {}",
                    queue.deepest(),
                    queue.listener.limit
                ),
                u64::from(queue.deepest()),
                "connections",
                "sock_diag",
            )
            .measured(
                format!(
                    "it was full at {:.0} % of {} looks{}",
                    queue.full_share() * 100.0,
                    queue.depths.len(),
                    match overflow.emptied {
                        Emptied::InGulps => ", but taken whole now and then",
                        _ if overflow.is_undecided() => "",
                        _ => ": the application does empty it",
                    }
                ),
                queue.full_share() * 100.0,
                "percent",
                "sock_diag",
            )
            .hits([window.affected_listener(netns, &queue.listener)]),
    };
    let found = if found.affected.is_empty() {
        found.hits([somewhere(netns)])
    } else {
        found
    };
    fixes(
        found.since(window, netns, "TcpExt.ListenOverflows"),
        netns,
        overflow,
    )
}

/// Room for those that waited and those that were turned away in the same pause of the application: however long one
/// watches.
fn fixes(found: Finding, netns: &Netns, overflow: &Overflow) -> Finding {
    let limit = u64::from(
        overflow
            .queue
            .as_ref()
            .map_or(0, |queue| queue.listener.limit),
    );
    let turned_away = overflow.at_once;
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy((limit + turned_away) as f64).clamp(SMALLEST, 65_535);
    let arithmetic = format!(
        "{limit} waiting + {}{turned_away} turned away before they are accepted, and half as much again, rounded up to a \
         power of two and to no less than {SMALLEST}",
        if overflow.is_at_most { "at most " } else { "" }
    );
    let somaxconn = netns.sysctl("net.core.somaxconn");
    let is_capped = somaxconn.is_some_and(|somaxconn| somaxconn < wanted);
    let found = match somaxconn {
        Some(somaxconn) if is_capped => found.sysctl(
            format!("first raise somaxconn from {somaxconn} to {wanted} ({arithmetic}); {PERSIST}"),
            &[("net.core.somaxconn", wanted.to_string())],
            "none by itself: it is an upper limit for listen()",
        ),
        _ => found,
    };
    let binding = match somaxconn {
        Some(somaxconn) if limit >= somaxconn => "the limit is that of somaxconn",
        _ => "the limit is the listen() argument",
    };
    found.application(
        format!(
            "{} the application listen with a backlog of {wanted} ({arithmetic}; {binding}) and restart it: a \
             queue keeps its limit until listen() is called again",
            if is_capped { "then have" } else { "have" }
        ),
        &[("listen_backlog", wanted.to_string())],
        "a longer queue hides a slow application: latency grows instead of errors",
    )
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{Verdict, fixtures::quiet},
        report::{Value, diagnosis::Confidence},
    };

    const BURSTS: [u32; 10] = [0, 0, 11, 0, 3, 0, 11, 0, 0, 0];

    #[test]
    fn bursts_that_overflow_a_short_queue_are_its_fault() {
        let mut window = quiet();
        window.listen(80, 10, &BURSTS);
        window.grow(&[("TcpExt.ListenOverflows", 50), ("TcpExt.ListenDrops", 50)]);
        let findings = window.findings();
        let first = &findings[0];
        assert_eq!(first.id, "accept-queue-overflow");
        assert_eq!(first.confidence, Confidence::Medium);
        assert_eq!(first.affected[0].port, Some(80));
        assert_eq!(first.affected[0].comm.as_deref(), Some("server"));
        // 10 + 5 within a second and half as much again is 23; not below 128.
        let listen = first.fixes.last().unwrap();
        assert_eq!(
            listen.set,
            [("listen_backlog".to_owned(), "128".to_owned())]
        );
    }

    #[test]
    fn the_probe_names_the_listener_and_makes_it_certain() {
        let mut window = quiet();
        window.listen(80, 10, &BURSTS);
        window.listen(81, 10, &[0; 10]);
        window.set("net.core.somaxconn", "10");
        window.grow(&[("TcpExt.ListenOverflows", 500)]);
        let group = [
            ("stage", Value::Word("syn-accept-queue")),
            ("listener_port", Value::Unsigned(81)),
        ];
        window.total("listeners", 500, &group);
        window.netns().listen_overflows = vec![0, 0, 0, 500, 500, 500, 500, 500, 500, 500];
        let findings = window.findings();
        assert_eq!(findings[0].affected[0].port, Some(81));
        assert_eq!(findings[0].confidence, Confidence::High);
        let set: Vec<_> = findings[0].fixes.iter().flat_map(|fix| &fix.set).collect();
        // 510 and half as much again, as a power of two; both limits, somaxconn first.
        assert_eq!(
            set[0],
            &("net.core.somaxconn".to_owned(), "1024".to_owned())
        );
        assert_eq!(set[1], &("listen_backlog".to_owned(), "1024".to_owned()));
    }

    #[test]
    fn the_size_does_not_depend_on_how_long_one_watches() {
        // Every second the application pauses, and 60 are turned away meanwhile.
        let wanted = |seconds: i64| {
            let mut window = quiet();
            #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
            let length = seconds as f64;
            window.seconds = length;
            let looks: Vec<u32> = (0..seconds * 10)
                .map(|look| [0, 17][usize::from(look % 10 < 5)])
                .collect();
            window.listen(8081, 16, &looks);
            window.grow(&[("TcpExt.ListenOverflows", 60 * seconds)]);
            window.netns().listen_overflows = (0..seconds * 10)
                .map(|look| look / 10 * 60 + (look % 10).min(4) * 15)
                .collect();
            let findings = window.findings();
            assert_eq!(findings[0].id, "accept-queue-overflow");
            findings[0].fixes[0].set[0].1.clone()
        };
        assert_eq!(wanted(4), "128");
        assert_eq!(wanted(24), "128");
    }

    #[test]
    fn the_size_is_that_of_a_pause_and_not_of_a_second() {
        let mut window = quiet();
        window.listen(8080, 5, &[5, 0, 3, 5, 0, 4, 5, 1, 0, 5]);
        // Each 50 ms the application takes the 6 that wait, and 97 are turned away, 20 of them new.
        window.grow(&[
            ("TcpExt.ListenOverflows", 19_400),
            ("Tcp.PassiveOpens", 1200),
        ]);
        window.netns().listen_overflows = (0..100).map(|look| look * 194).collect();
        window.netns().passive_opens = (0..100).map(|look| look * 12).collect();
        let said = |window: &crate::diagnose::window::Window| {
            let fix = window.findings()[0].fixes.last().unwrap().clone();
            (fix.set[0].1.clone(), fix.text)
        };
        let (wanted, text) = said(&window);
        assert!(
            text.contains("5 waiting + at most 97 turned away"),
            "{text}"
        );
        assert_eq!(wanted, "256");
        // The clients are of this machine: 4000 attempts among the 20,600.
        let group = [
            ("role", Value::Word("client")),
            ("service_port", Value::Unsigned(8080)),
        ];
        window.total("lifetimes", 4000, &group);
        let (wanted, text) = said(&window);
        assert!(text.contains("5 waiting + 19 turned away"), "{text}");
        assert_eq!(wanted, "128");
    }

    #[test]
    fn a_burst_needs_room_for_all_of_it_though_each_tries_again_later() {
        let mut window = quiet();
        window.listen(8080, 16, &[0, 17, 0, 0, 0, 0, 0, 0, 0, 0]);
        // 500 at once; who is turned away tries again after 1, 3 and 7 s.
        window.grow(&[("TcpExt.ListenOverflows", 1800), ("Tcp.PassiveOpens", 68)]);
        let looks = (0..100).map(|look| match look {
            0 => 0,
            1..12 => 483,
            12..32 => 949,
            32..72 => 1398,
            _ => 1800,
        });
        window.netns().listen_overflows = looks.collect();
        window.netns().passive_opens = (0..100).map(|look| i64::from(look > 0) * 17).collect();
        let group = [
            ("role", Value::Word("client")),
            ("service_port", Value::Unsigned(8080)),
        ];
        window.total("lifetimes", 500, &group);
        let fix = window.findings()[0].fixes.last().unwrap().clone();
        assert!(
            fix.text.contains("16 waiting + at most 483"),
            "{}",
            fix.text
        );
        assert_eq!(fix.set[0].1, "1024");
    }

    #[test]
    fn a_queue_is_not_too_short_where_descriptors_are_missing() {
        let mut window = quiet();
        window.listen(80, 10, &BURSTS);
        window.grow(&[("TcpExt.ListenOverflows", 50)]);
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        (server.fds, server.fd_limit) = (64, 64);
        assert_eq!(window.ids(), ["fd-exhaustion"]);
        let verdict = window.verdict("accept-queue-overflow");
        assert!(matches!(verdict, Verdict::OkBecause(_)), "{verdict:?}");
    }

    #[test]
    fn a_queue_that_is_always_full_is_not_too_short() {
        let mut window = quiet();
        window.listen(80, 10, &[11; 10]);
        window.grow(&[("TcpExt.ListenOverflows", 50)]);
        assert_eq!(window.ids(), ["application-not-accepting"]);
        assert!(matches!(
            window.verdict("accept-queue-overflow"),
            Verdict::OkBecause(_)
        ));
    }

    #[test]
    fn a_queue_that_is_emptied_in_gulps_is_too_short_for_the_pauses() {
        let mut window = quiet();
        window.listen(80, 10, &[11; 10]);
        window.grow(&[("TcpExt.ListenOverflows", 50), ("Tcp.PassiveOpens", 22)]);
        window.netns().passive_opens = vec![0, 0, 0, 11, 11, 11, 11, 11, 22, 22];
        assert_eq!(window.ids(), ["accept-queue-overflow"]);
        // One by one is not in gulps.
        window.netns().passive_opens = vec![0, 2, 4, 7, 9, 11, 14, 17, 20, 22];
        assert_eq!(window.ids(), ["application-not-accepting"]);
    }

    #[test]
    fn counters_that_went_backwards_or_are_missing_give_no_verdict() {
        let mut window = quiet();
        window.grow(&[("TcpExt.ListenOverflows", -5)]);
        let verdict = window.verdict("accept-queue-overflow");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
        let mut window = quiet();
        window.netns().after.counters.clear();
        let verdict = window.verdict("accept-queue-overflow");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    }
}
