//! Resets that established connections received while they were in use: the peer has a reason, which this
//! end does not hear of.

use super::{
    super::super::{
        finding::finding,
        places::{self, End},
        received::{self, Peer, Received},
        sizing::median,
        window::{Netns, Window, endpoint},
    },
    CAUSES, RULE, Reset, ended,
};
use crate::report::diagnosis::{Affected, Confidence, Finding};

/// A finding for each service whose connections end so, with how many do.
pub(super) fn check(window: &Window, netns: &Netns, opened: u64) -> Vec<(u64, Finding)> {
    let services = received::by_service(window, netns);
    let mut seen_at_port = std::collections::BTreeMap::<u16, usize>::new();
    for ((_, port), received) in &services {
        *seen_at_port.entry(*port).or_default() += received.seen();
    }
    let busy = services.iter().filter(|(_, received)| {
        // What quiet ones received is idle-reset's.
        !received.is_of_quiet_ones() && received.seen() > 0
    });
    let found = busy.filter_map(|(end, received)| {
        if is_told_there(window, end.1) || received::is_unseen(window, netns, end.1) {
            return None;
        }
        let (seen, of) = (received.seen() as u64, seen_at_port[&end.1] as u64);
        // The events are a sample of what was counted, of connections in whatever state.
        let all = received::looked_at(window, netns, end.1).max(of);
        let counted = received::counted(window, netns, end.1).max(all);
        let count = counted * seen / all;
        if ended::tells_of(window, netns, *end, count) {
            return None;
        }
        let connections = places::connections(window, netns, end.1);
        let connections = if connections == 0 {
            opened
        } else {
            connections
        };
        let reset = Reset::weigh(count, connections * seen / of, true)?;
        Some((count, describe(window, netns, *end, received, &reset)))
    });
    found.collect()
}

/// Whether the same resets are found where they were sent, with their reason.
fn is_told_there(window: &Window, port: u16) -> bool {
    let port = port.to_string();
    let count = |cause| {
        let group = [
            ("cause", cause),
            ("direction", "sent"),
            ("service_port", port.as_str()),
        ];
        window.events.count("resets", &group)
    };
    let told = CAUSES.iter().filter(|(_, is_bad, _)| *is_bad);
    let told: u64 = told.map(|(cause, ..)| count(cause)).sum();
    let received = [("direction", "received"), ("service_port", port.as_str())];
    told * 2 > window.events.count("resets", &received)
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(
    window: &Window,
    netns: &Netns,
    (address, port): End,
    received: &Received,
    reset: &Reset,
) -> Finding {
    let (pid, comm) = received.owner.clone().unwrap_or_default();
    let whose = comm.as_ref();
    let whose = whose.map_or(String::new(), |comm| format!(" of {comm}"));
    let peer = endpoint(address, port);
    let age = median(&received.ages_ns);
    #[expect(clippy::cast_precision_loss, reason = "a time for people")]
    let age = age.map(|ns| ns as f64 / 1e6);
    let after = age.map_or(String::new(), |ms| {
        format!(", half of them within {:.0} ms of their opening", ms.ceil())
    });
    let why = match received.peer() {
        Some(Peer::Closed { cause, comm }) => format!(
            ": {} there closed them with a reset ({cause}) instead of an end",
            comm.as_deref().unwrap_or("the process")
        ),
        Some(Peer::Forgot) => ": what answers there does not know these connections".to_owned(),
        None => ": the peer, or a proxy or firewall on the way, ended them".to_owned(),
    };
    let found = finding(
        RULE.id,
        reset.severity,
        Confidence::High,
        format!(
            "{} connections{whose}{} to {peer} were reset by the peer in {:.0} s, {:.0} % of all to it, while they were \
             established{after}{why}",
            reset.count,
            netns.place(),
            window.seconds,
            reset.share * 100.0
        ),
    )
    .counted(
        format!(
            "{} resets received in state ESTAB: {:.0} % of the connections to port {port}",
            reset.count,
            reset.share * 100.0
        ),
        reset.count,
        "resets",
        "tcp_receive_reset, lifetimes",
    );
    let found = match age {
        Some(ms) => found.measured(
            format!("they were {ms:.1} ms old, in the middle"),
            ms,
            "ms",
            "resets",
        ),
        None => found,
    };
    found
        .hits([Affected {
            pid,
            comm,
            ..Window::affected_destination(netns, address, port)
        }])
        .command(
            format!(
                "look at the peer {peer} at that time: does its process crash, close without reading all of the request, or \
                 close with SO_LINGER 0 (its log; netprobe resets there tells the cause); is a proxy, load balancer or \
                 intrusion prevention in between"
            ),
            "none",
        )
}
