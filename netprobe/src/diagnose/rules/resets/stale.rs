//! Connections that the peer had closed in order, or closed just then, and that were used all the same: a pool that does
//! not look, or that keeps them for as long as the service does.

use super::{
    super::super::{
        finding::{finding, process},
        places::{self, End},
        received::{self, LEAST, Received},
        window::{Netns, Window, endpoint},
    },
    RULE, Reset, ended,
    idle_timeout::{Pauses, span},
};
use crate::report::diagnosis::{Confidence, Finding};

/// A finding for each service whose connections are used after their end, with how many are.
pub(super) fn check(window: &Window, netns: &Netns, opened: u64) -> Vec<(u64, Finding)> {
    let services = received::by_service(window, netns);
    let stale = services
        .into_iter()
        .filter(|(_, received)| used(received) >= LEAST)
        // A service that is gone does not end idle connections.
        .filter(|(end, received)| !ended::tells_of(window, netns, *end, used(received) as u64));
    let found = stale.filter_map(|(end, received)| {
        let count = used(&received) as u64;
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

/// How many were used after their end.
fn used(received: &Received) -> usize {
    received.closed_ns.len() + received.crossed
}

/// When the service closed the connections, why they were used, and what they have to be given up sooner than.
fn words(received: &mut Received, service: &str) -> [String; 3] {
    received.closed_ns.sort_unstable();
    let times = &received.closed_ns;
    let sooner = format!("sooner than {service} does (its configuration says when)");
    if times.len() >= received.crossed {
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let [first, last] = [times[0], times[times.len() - 1]].map(|ns| ns as f64 / 1e9);
        return [
            format!("that {service} had closed {} before", span(first, last)),
            "its pool keeps connections that the service ends when they are idle".to_owned(),
            sooner,
        ];
    }
    let closed = format!("while {service} closed them");
    let pauses = Pauses::among(received.pauses_ns.iter().copied(), received.crossed);
    match pauses.map(|pauses| (pauses.words(), pauses.timeout_s())) {
        Some((quiet, Some(s))) => [
            closed,
            format!(
                "they had been without a request for {quiet}: an idle timeout of {s:.1} s there, which the next request crosses on \
                 its way"
            ),
            format!("well before {s:.1} s"),
        ],
        Some((quiet, None)) => [
            closed,
            format!(
                "they had been without a request for {quiet}: it ends connections that are idle, and the next request crosses that on \
                 its way"
            ),
            sooner,
        ],
        None => [
            closed,
            "it ends connections that are in use (a limit of requests or of time for each, or a restart)".to_owned(),
            sooner,
        ],
    }
}

fn describe(
    window: &Window,
    netns: &Netns,
    (address, port): End,
    mut received: Received,
    reset: &Reset,
) -> Finding {
    let service = endpoint(address, port);
    let [closed, why, sooner] = words(&mut received, &service);
    let (pid, comm) = received.owner.unwrap_or_default();
    let whose = comm
        .as_ref()
        .map_or_else(|| "a client".to_owned(), ToString::to_string);
    let found = finding(
        RULE.id,
        reset.severity,
        Confidence::High,
        format!(
            "{whose}{} wrote to {} connections {closed}, and was reset, in {:.0} s: {why}",
            netns.place(),
            reset.count,
            window.seconds
        ),
    )
    .counted(
        format!(
            "{} resets received after the peer's FIN, with data that it did not acknowledge: {:.0} % of the connections",
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
                "have the pool give up idle connections {sooner}, or test them before use, and try again on another what may be sent \
                 twice"
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
