//! A server that read nothing and answered nobody for a while, and went on.

use std::time::Duration;

use super::{
    super::super::{
        accepting,
        finding::finding,
        pause::{self, REASONS},
        sizing::{counted, spoken},
        window::{Netns, Queue, Standstill, Window},
    },
    RULE,
    unread::{self, LEAST},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// Shorter ones are how some applications work.
const LONG_S: f64 = 2.0;
/// Connections are looked at so often, in seconds.
const LOOKS_S: f64 = 1.0;

/// The listeners of a namespace whose application stood still.
pub(super) fn of(window: &Window, netns: &Netns) -> impl Iterator<Item = Finding> {
    let seen = netns.standstills.values();
    let still = seen.filter(|standstill| !standstill.is_reading);
    still.filter_map(|standstill| {
        let still = standstill.still;
        let queue = netns.queue(None, still.port)?;
        let is_pause = || {
            let accepting = accepting::of(window, netns, queue);
            pause::longest(window, netns, queue, &accepting).is_some()
        };
        let is_news =
            still.connections >= LEAST && !unread::is_told(netns, still.port) && !is_pause();
        is_news.then(|| describe(window, netns, queue, standstill))
    })
}

fn describe(window: &Window, netns: &Netns, queue: &Queue, standstill: &Standstill) -> Finding {
    let still = standstill.still;
    let seconds = f64::from(still.longest_ms) / 1000.0;
    let holder = window.holder(&queue.listener);
    let comm = holder.map_or("the application", |process| process.comm.as_str());
    let all = Duration::from_millis(standstill.all_ms).as_secs_f64();
    let severity = if all >= LONG_S {
        Severity::Warning
    } else {
        Severity::Info
    };
    finding(
        RULE.id,
        severity,
        Confidence::Medium,
        format!(
            "{comm} at port {}{} stood still {}: it read and sent nothing over any connection, while {} waited \
             with a request",
            still.port,
            netns.place(),
            match standstill.stops {
                1 => format!("for at least {seconds:.1} s{}", until(netns, standstill, "")),
                stops => format!(
                    "{stops} times, for at least {all:.1} s in all and {seconds:.1} s at a time{}",
                    until(netns, standstill, "the last time "),
                ),
            },
            counted(still.connections.into(), "client"),
        ),
    )
    .counted(
        format!(
            "over {} data waited to be read (Recv-Q), and over none was anything read or sent",
            counted(still.connections.into(), "accepted connection"),
        ),
        still.connections.into(),
        "connections",
        "sock_diag tcp_info, each second",
    )
    .hits([window.affected_listener(netns, &queue.listener)])
    .application(
        format!("find what blocks it: {REASONS}, or one slow request that all others wait for"),
        &[],
        "none",
    )
    .command(
        match holder {
            Some(process) => format!(
                "see where it waits when it happens again: netprobe flame offcpu --pid {} --min-block 1s -d 60s (or what it does \
                 instead: netprobe flame cpu)",
                process.pid
            ),
            None => "see where it waits when it happens again: netprobe flame offcpu --min-block 1s -d 60s".to_owned(),
        },
        "none",
    )
}

/// When it was last seen to stand still, in words.
fn until(netns: &Netns, standstill: &Standstill, what: &str) -> String {
    let ended = netns.after.listed;
    let ago = ended.map_or(0.0, |ended| {
        ended.saturating_duration_since(standstill.at).as_secs_f64()
    });
    if ago <= LOOKS_S {
        return String::new();
    }
    format!(" ({what}until {} ago)", spoken(ago))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::{
        diagnose::{
            fixtures::quiet,
            window::{Standstill, Window},
        },
        observe::{diag::Late, snapshot::Glance},
        report::diagnosis::Severity,
    };

    fn with(connections: u32, longest_ms: u32) -> Window {
        let mut window = quiet();
        window.listen(6379, 511, &[0; 10]);
        let at = Instant::now();
        let still = Late {
            is_still: true,
            port: 6379,
            connections,
            longest_ms,
            read: 900,
        };
        let netns = window.netns();
        netns.after.listed = Some(at + Duration::from_secs(4));
        netns.standstills.insert(6379, Standstill::seen(still, at));
        window
    }

    #[test]
    fn who_stood_still_is_told_with_for_how_long_and_when() {
        let found = with(50, 2700).findings().remove(0);
        assert_eq!(
            (found.id, found.severity),
            ("long-held-connections", Severity::Warning)
        );
        let said = "server at port 6379 stood still for at least 2.7 s (until 4 s ago)";
        assert!(found.summary.contains(said), "{}", found.summary);
        assert!(found.fixes[1].text.contains("--pid 100"), "{found:?}");
        assert_eq!(with(50, 1200).findings()[0].severity, Severity::Info);
        assert!(with(2, 2700).findings().is_empty(), "a few clients");
    }

    /// Later looks: after how long, how long it has stood still, and how much it has read.
    fn see<const N: usize>(window: &mut Window, looks: [(u64, u32, u64); N]) {
        let netns = window.netns();
        let at = netns.standstills[&6379].at;
        for (after_ms, longest_ms, read) in looks {
            netns.add_glance(Glance {
                at: at + Duration::from_millis(after_ms),
                late: Some(vec![Late {
                    is_still: true,
                    port: 6379,
                    connections: 50,
                    longest_ms,
                    read,
                }]),
                listeners: Vec::new(),
                conntrack_count: None,
                passive_opens: None,
                listen_overflows: None,
            });
        }
    }

    #[test]
    fn who_stands_still_again_and_again_is_told_with_all_of_it() {
        let mut window = with(50, 1200);
        // It goes on, and is over; then there is another.
        see(&mut window, [(500, 1700, 900), (3000, 1100, 1800)]);
        let found = window.findings().remove(0);
        assert_eq!(found.severity, Severity::Warning);
        let said = "stood still 2 times, for at least 2.8 s in all and 1.7 s at a time: it read";
        assert!(found.summary.contains(said), "{}", found.summary);
    }

    #[test]
    fn who_reads_a_little_now_and_then_does_not_stand_still() {
        let mut window = with(50, 12_000);
        see(&mut window, [(1000, 13_000, 950)]);
        assert!(window.findings().is_empty());
        // Clients that leave take with them what was read.
        let mut window = with(50, 12_000);
        see(&mut window, [(1000, 13_000, 850)]);
        assert_eq!(window.findings().len(), 1);
    }

    #[test]
    fn who_still_reads_nothing_is_told_once() {
        let mut window = with(50, 4000);
        let clients = window.sockets().clients.entry(6379).or_default();
        (clients.held, clients.unread.now) = (50, 50);
        (clients.unread.connections, clients.unread.longest_ms) = (50, 5000);
        let found = window.findings();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].summary.contains("does not read"), "{found:?}");
    }
}
