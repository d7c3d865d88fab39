//! How long processes wait until what they sent is sent again, from the events of the `retransmits` probe.

use std::collections::{BTreeMap, HashSet};

use super::{
    events::Event,
    places::End,
    window::{Netns, Window},
};

/// `TCP_TIMEOUT_INIT` and `TCP_RTO_MIN` of include/net/tcp.h: a SYN is not sent again sooner than this after the one before,
/// nor is data after a timeout.
const SYN_S: f64 = 1.0;
const DATA_S: f64 = 0.2;
/// Timeouts after which it is not doubled any more: `TCP_RTO_MAX` is 120 s.
const MOST_DOUBLED: u64 = 9;

/// For how long, in seconds, open connections of these processes to an end waited at least, all of them together, until what
/// they had sent was sent again.
pub(super) fn waited_s(window: &Window, netns: &Netns, pids: &HashSet<u32>, end: End) -> f64 {
    let again = window.events.within("retransmits", netns.inode);
    let own = again.filter(|event| {
        let is_own = event.small("pid").is_some_and(|pid| pids.contains(&pid));
        is_own && event.ip("daddr").zip(event.small("dport")) == Some(end)
    });
    let mut connections = BTreeMap::<Option<u16>, Vec<&Event>>::new();
    for event in own {
        let events = connections.entry(event.small("sport")).or_default();
        events.push(event);
    }
    let waited_s: f64 = connections.into_values().map(of_one_s).sum();
    waited_s * window.events.weight("retransmits")
}

/// As [`waited_s`], of one connection: no longer each time than since it was sent again before.
fn of_one_s(mut events: Vec<&Event>) -> f64 {
    events.sort_by_key(|event| event.at_ns);
    let first = events.first().map_or(0.0, |event| timeout_s(event));
    let later = events.windows(2).map(|pair| {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let since_s = pair[1].at_ns.saturating_sub(pair[0].at_ns) as f64 / 1e9;
        timeout_s(pair[1]).min(since_s)
    });
    first + later.sum::<f64>()
}

/// The shortest timeout after which this is sent again. Who has closed does not wait for it.
#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn timeout_s(event: &Event) -> f64 {
    let attempt = event.number("attempt").unwrap_or(1);
    let doubled = attempt.saturating_sub(1).min(MOST_DOUBLED);
    if event.is("cause", "syn") {
        SYN_S
    } else if event.is("cause", "rto") && event.is("state", "ESTAB") {
        DATA_S * (1_u64 << doubled) as f64
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{diagnose::fixtures::quiet, report::Value};

    #[test]
    fn each_connection_waits_for_its_timeouts_and_once_for_what_is_sent_again_at_once() {
        let mut window = quiet();
        let mut again = |at_ms: u64, cause: &'static str, attempt: u64, state: &'static str| {
            let event = [
                ("pid", Value::Unsigned(100)),
                ("daddr", Value::Ip([10, 0, 0, 2].into())),
                ("dport", Value::Unsigned(9001)),
                ("sport", Value::Unsigned(40_000)),
                ("cause", Value::Word(cause)),
                ("attempt", Value::Unsigned(attempt)),
                ("state", Value::Word(state)),
            ];
            window.event("retransmits", 1, &event);
            window.events.date_last("retransmits", at_ms * 1_000_000);
        };
        // 1 s, 1 s, 0.2 s, 0.4 s, and 1 ms; who closes at once does not wait.
        again(1000, "syn", 1, "SYN-SENT");
        again(2000, "syn", 2, "SYN-SENT");
        again(3000, "rto", 1, "ESTAB");
        again(3400, "rto", 2, "ESTAB");
        again(3401, "rto", 1, "ESTAB");
        again(3402, "fast", 1, "ESTAB");
        again(5000, "rto", 1, "FIN-WAIT-1");
        let waited_ms = |pid: u32, port| {
            let end = ([10, 0, 0, 2].into(), port);
            let waited_s = waited_s(&window, &window.namespaces[0], &[pid].into(), end);
            Duration::from_secs_f64(waited_s).as_millis()
        };
        for (pid, port, expected) in [(100, 9001, 2601), (101, 9001, 0), (100, 9002, 0)] {
            assert_eq!(waited_ms(pid, port), expected);
        }
    }
}
