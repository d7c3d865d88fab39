//! Connections that the peer refused: whether anybody listens there, after all, or next to it.

use std::collections::BTreeSet;

use super::{
    super::super::{
        finding::finding,
        places::{self, End},
        window::{Netns, Window, endpoint},
    },
    RULE, Reset, services,
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// Why a connection was refused.
enum Why {
    /// Nobody listens there, as far as can be seen.
    Nobody,
    /// The service listens there; something else refused.
    Rejected(String),
    /// It listens at other addresses of the same machine only.
    Beside {
        addresses: String,
        /// Whether connections of the namespace do get there.
        is_reached: bool,
    },
}

/// What is known of the end that refused.
fn why(window: &Window, netns: &Netns, end: End) -> Why {
    if let Some((_, listener)) = places::listener(window, netns, end) {
        let holder = window.holder(listener);
        let name = holder.map_or("a process", |process| process.comm.as_str());
        return Why::Rejected(name.to_owned());
    }
    let Some(home) = places::home(window, netns, end.0) else {
        return Why::Nobody;
    };
    let beside: BTreeSet<String> = places::at_port(home, end.1)
        .map(|listener| endpoint(listener.address, listener.port))
        .collect();
    if beside.is_empty() {
        return Why::Nobody;
    }
    let [inode, port] = [netns.inode.to_string(), end.1.to_string()];
    let reached = [
        ("outcome", "established"),
        ("dport", port.as_str()),
        ("netns", inode.as_str()),
    ];
    Why::Beside {
        addresses: beside.into_iter().collect::<Vec<_>>().join(", "),
        is_reached: window.events.count("connects", &reached) >= LEAST_REACHED,
    }
}

/// As many connections to the same port have found the service.
const LEAST_REACHED: u64 = 3;

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
pub(super) fn describe(
    window: &Window,
    netns: &Netns,
    port: Option<u16>,
    reset: &Reset,
) -> Finding {
    let mut hits = services(window, netns, "refused");
    hits.retain(|hit| port.is_none() || hit.port == port);
    let worst = hits.first().and_then(|hit| hit.address.zip(hit.port));
    let why = worst.map_or(Why::Nobody, |end| why(window, netns, end));
    let place = match (worst, port) {
        (Some((address, port)), _) => format!(" by {}", endpoint(address, port)),
        (None, Some(port)) => format!(" at port {port}"),
        (None, None) => String::new(),
    };
    let (severity, meaning, advice) = match why {
        Why::Nobody => (
            reset.severity,
            "nobody listens there".to_owned(),
            "start the service, or correct address and port",
        ),
        Why::Rejected(name) => (
            reset.severity,
            format!(
                "though {name} listens there: a firewall rule rejects them, or it began to listen only now"
            ),
            "look for the rule that rejects (nft list ruleset), at the address that was connected to and on the way to it",
        ),
        Why::Beside {
            addresses,
            is_reached,
        } => (
            if is_reached {
                Severity::Info
            } else {
                reset.severity
            },
            if is_reached {
                format!("the service listens at {addresses} only, where connections do get through")
            } else {
                format!("the service listens at {addresses} only")
            },
            "have the service listen at this address, too, or its clients connect to the one that it listens at",
        ),
    };
    if hits.is_empty() {
        hits.push(super::somewhere(netns));
    }
    finding(
        RULE.id,
        severity,
        Confidence::High,
        format!(
            "{} connections{} were refused{place} in {:.0} s: {meaning}",
            reset.count,
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!(
            "{} resets with cause refused: {:.0} % of the connections",
            reset.count,
            reset.share * 100.0
        ),
        reset.count,
        "resets",
        "resets",
    )
    .hits(hits)
    .command(advice, "none")
}
