//! Connections that the peer had closed in order, and that were used all the same: a pool that does not look.

use super::{
    super::super::{
        finding::{finding, process},
        places::{self, End},
        received::{self, LEAST, Received},
        window::{Netns, Window, endpoint},
    },
    RULE, Reset, ended,
};
use crate::report::diagnosis::{Confidence, Finding};

/// A finding for each service whose connections are used after their end, with how many are.
pub(super) fn check(window: &Window, netns: &Netns, opened: u64) -> Vec<(u64, Finding)> {
    let services = received::by_service(window, netns);
    let stale = services
        .into_iter()
        .filter(|(_, received)| received.closed_ns.len() >= LEAST)
        // A service that is gone does not end idle connections.
        .filter(|(end, received)| {
            !ended::tells_of(window, netns, *end, received.closed_ns.len() as u64)
        });
    let found = stale.filter_map(|(end, received)| {
        let count = received.closed_ns.len() as u64;
        let connections = places::connections(window, netns, end.1);
        let connections = if connections == 0 {
            opened
        } else {
            connections
        };
        let reset = Reset::weigh(count, connections, true)?;
        Some((count, describe(window, netns, end, received, &reset)))
    });
    found.collect()
}

fn describe(
    window: &Window,
    netns: &Netns,
    (address, port): End,
    mut received: Received,
    reset: &Reset,
) -> Finding {
    received.closed_ns.sort_unstable();
    let times = &received.closed_ns;
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let [first, last] = [times[0], times[times.len() - 1]].map(|ns| ns as f64 / 1e9);
    let [first, last] = [first, last].map(|seconds| format!("{seconds:.1}"));
    let closed = if first == last {
        first
    } else {
        format!("{first} to {last}")
    };
    let (pid, comm) = received.owner.unwrap_or_default();
    let whose = comm
        .as_ref()
        .map_or_else(|| "a client".to_owned(), ToString::to_string);
    let service = endpoint(address, port);
    let found = finding(
        RULE.id,
        reset.severity,
        Confidence::High,
        format!(
            "{whose}{} wrote to {} connections that {service} had closed {closed} s before, and was reset, in \
             {:.0} s: its pool keeps connections that the service ends when they are idle",
            netns.place(),
            reset.count,
            window.seconds
        ),
    )
    .counted(
        format!(
            "{} resets received after the peer's FIN: {:.0} % of the connections",
            reset.count,
            reset.share * 100.0
        ),
        reset.count,
        "resets",
        "tcp_receive_reset",
    );
    found
        .hits([Window::affected_destination(netns, address, port)])
        .hits(pid.map(|pid| process(Some(pid), comm, Some(netns.inode))))
        .application(
            format!(
                "have the pool give up idle connections sooner than {service} does (its configuration says when), or test them \
                 before use and try again on another"
            ),
            &[],
            "more new connections",
        )
        .application(
            "or raise the idle timeout of the service above the longest pause of its clients; TCP keepalive does not help",
            &[],
            "more open connections there",
        )
}
