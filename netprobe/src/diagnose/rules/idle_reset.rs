//! Connections that were quiet for a while are reset or time out when they are used again: something
//! on the way has forgotten them.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use super::super::{
    Explanation, Rule, Verdict,
    events::Event,
    finding::{finding, host},
    in_each,
    sizing::{PERSIST, spoken},
    window::{Netns, Window},
};
use crate::report::diagnosis::{Affected, Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "idle-reset",
    title: "quiet connections are reset",
    check,
    explanation: Explanation {
        symptom: "\"Connection reset by peer\" or a timeout on connections that were quiet: pools, replication, IMAP, behind a \
                  NAT, firewall or load balancer.",
        cause: "A device on the way keeps state for each connection and forgets it after a while (often 60, 90, 350 s). The \
                next packet meets nothing: it is dropped, or answered with a reset that tcp_reset() takes. TCP itself \
                would keep a quiet connection for ever: keepalive begins after tcp_keepalive_time (7200 s), and only for \
                sockets that asked for it (SO_KEEPALIVE).",
        recognised: "Resets were received on established connections whose peer had not been heard of for over a second, and \
                     those times are alike for one destination. Resets of busy connections are resets instead.",
        fixes: &[
            (
                "SO_KEEPALIVE with TCP_KEEPIDLE below the observed time, in the application or its driver",
                "a packet per connection and interval",
            ),
            (
                "net.ipv4.tcp_keepalive_time below the observed time (for sockets with SO_KEEPALIVE)",
                "dead peers are noticed sooner, too",
            ),
            (
                "close idle connections of a pool before that",
                "more new connections",
            ),
        ],
    },
};

/// A connection that heard of its peer since was not quiet.
const QUIET_NS: u64 = 1_000_000_000;
/// Fewer are no pattern.
const LEAST: usize = 3;
/// Times are alike if most of them are within this factor of the shortest.
const ALIKE: u64 = 2;

/// Quiet connections to one service that were reset.
#[derive(Default)]
struct Cluster {
    idle_ns: Vec<u64>,
    owner: Option<(Option<u32>, Option<String>)>,
}

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        window.watched_required("resets")?;
        let own = sent_on_purpose(window);
        let mut clusters = BTreeMap::<(IpAddr, u16), Cluster>::new();
        let mut busy = BTreeMap::<(IpAddr, u16), usize>::new();
        for event in window.events.within("resets", netns.inode) {
            let Some((peer, idle_ns)) = reset(event) else {
                continue;
            };
            if ends(event).is_some_and(|(local, remote)| own.contains(&(remote, local))) {
                continue;
            }
            if idle_ns < QUIET_NS {
                *busy.entry(peer).or_default() += 1;
                continue;
            }
            let cluster = clusters.entry(peer).or_default();
            cluster.idle_ns.push(idle_ns);
            cluster
                .owner
                .get_or_insert_with(|| (event.small("pid"), event.text("comm")));
        }
        Ok(clusters
            .into_iter()
            .filter(|(peer, cluster)| {
                cluster.idle_ns.len() >= LEAST
                    && cluster.idle_ns.len() > busy.get(peer).copied().unwrap_or(0)
            })
            .map(|(peer, cluster)| describe(window, netns, peer, cluster))
            .collect())
    })
}

/// An address and port.
type End = (IpAddr, u16);

/// Why an end of this machine resets a connection that it knows. One that has forgotten it answers
/// without a connection.
const ON_PURPOSE: [&str; 9] = [
    "data-after-close",
    "unread-data",
    "linger-0",
    "disconnect",
    "listener-closed",
    "timeout",
    "orphan",
    "killed",
    "refused",
];

/// The local and remote ends of connections that this machine reset itself, in any namespace: their
/// peers, if they are here too, were not forgotten by anything on the way.
fn sent_on_purpose(window: &Window) -> HashSet<(End, End)> {
    let sent = window.events.of("resets").iter().filter(|event| {
        event.is("direction", "sent") && ON_PURPOSE.iter().any(|cause| event.is("cause", cause))
    });
    sent.filter_map(ends).collect()
}

fn ends(event: &Event) -> Option<(End, End)> {
    let end = |address, port| event.ip(address).zip(event.small::<u16>(port));
    end("saddr", "sport").zip(end("daddr", "dport"))
}

/// The peer and the quiet time of a reset that an established connection received.
fn reset(event: &Event) -> Option<((IpAddr, u16), u64)> {
    // In CLOSE-WAIT the peer had closed in order before: an answer that came too late, not a connection
    // that somebody forgot.
    if !event.is("direction", "received") || !event.is("state", "ESTAB") {
        return None;
    }
    let [sport, dport] = ["sport", "dport"].map(|name| event.small::<u16>(name));
    // The service is the end with the lower port, as a rule; clients take high ones.
    let port = sport?.min(dport?);
    Some(((event.ip("daddr")?, port), event.number("idle_ns")?))
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(
    window: &Window,
    netns: &Netns,
    (address, port): (IpAddr, u16),
    mut cluster: Cluster,
) -> Finding {
    cluster.idle_ns.sort_unstable();
    let times = &cluster.idle_ns;
    let (shortest, longest) = (times[0], times[times.len() - 1]);
    let alike = times
        .iter()
        .filter(|time| **time <= shortest * ALIKE)
        .count();
    let is_alike = alike * 10 >= times.len() * 8;
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let [low, high] = [shortest, longest].map(|ns| ns as f64 / 1e9);
    let keepalive = netns.sysctl("net.ipv4.tcp_keepalive_time").unwrap_or(7200);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a bounded positive number"
    )]
    let wanted = (low / 2.0).floor().clamp(1.0, 3600.0) as u64;
    let (pid, comm) = cluster.owner.unwrap_or_default();
    let whose = comm
        .as_ref()
        .map_or(String::new(), |comm| format!(" of {comm}"));
    finding(
        RULE.id,
        Severity::Warning,
        if is_alike { Confidence::High } else { Confidence::Medium },
        format!(
            "{} quiet connections{whose}{} with {address} (port {port}) were reset in {:.0} s, after {} to {} without a \
             word: something on the way has forgotten them",
            times.len(),
            netns.place(),
            window.seconds,
            spoken(low),
            spoken(high)
        ),
    )
    .counted(
        format!("{} resets received after {low:.1} to {high:.1} s of silence", times.len()),
        times.len() as u64,
        "resets",
        "tcp_receive_reset",
    )
    .counted(
        format!("keepalive would begin after {keepalive} s, for sockets that asked for it"),
        keepalive,
        "s",
        "net.ipv4.tcp_keepalive_time",
    )
    .hits([Affected {
        port: Some(port),
        ..host("destination", address, netns.inode)
    }])
    .hits(pid.map(|pid| super::super::finding::process(Some(pid), comm, Some(netns.inode))))
    .application(
        format!("turn on keepalive in the application: SO_KEEPALIVE with TCP_KEEPIDLE {wanted} s, half of the {low:.0} s observed"),
        &[("TCP_KEEPIDLE", wanted.to_string())],
        "a packet per connection and interval",
    )
    .sysctl(
        format!("or for all sockets that have SO_KEEPALIVE already; {PERSIST}"),
        &[
            ("net.ipv4.tcp_keepalive_time", wanted.to_string()),
            ("net.ipv4.tcp_keepalive_intvl", wanted.min(30).to_string()),
        ],
        "dead peers are noticed sooner, too",
    )
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{fixtures::quiet, window::Window},
        report::Value,
    };

    fn resets(idle_s: &[f64]) -> Window {
        resets_in("ESTAB", idle_s)
    }

    fn resets_in(state: &'static str, idle_s: &[f64]) -> Window {
        let mut window = quiet();
        for idle_s in idle_s {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small positive number"
            )]
            let reset = [
                ("direction", Value::Word("received")),
                ("state", Value::Word(state)),
                ("sport", Value::Unsigned(41_000)),
                ("daddr", Value::Ip([10, 0, 0, 2].into())),
                ("dport", Value::Unsigned(3306)),
                ("idle_ns", Value::Unsigned((idle_s * 1e9) as u64)),
            ];
            window.event("resets", 1, &reset);
        }
        window
    }

    #[test]
    fn a_cluster_of_quiet_times_is_a_device_that_forgets() {
        let window = resets(&[90.0, 91.5, 95.0, 92.0]);
        let findings = window.findings();
        assert_eq!(findings[0].id, "idle-reset");
        assert_eq!(findings[0].affected[0].port, Some(3306));
        assert_eq!(findings[0].fixes[0].set[0].1, "45");
    }

    #[test]
    fn peers_here_that_reset_on_purpose_have_not_forgotten() {
        let ends = |local: [u8; 4], sport, remote: [u8; 4], dport| {
            [
                ("saddr", Value::Ip(local.into())),
                ("sport", Value::Unsigned(sport)),
                ("daddr", Value::Ip(remote.into())),
                ("dport", Value::Unsigned(dport)),
            ]
        };
        for (cause, expected) in [("listener-closed", false), ("no-connection", true)] {
            let mut window = quiet();
            for port in 40_000..40_005 {
                let mut sent = ends([10, 0, 0, 2], 80, [10, 0, 0, 1], port).to_vec();
                sent.extend([
                    ("direction", Value::Word("sent")),
                    ("cause", Value::Word(cause)),
                ]);
                window.event("resets", 1, &sent);
                let mut received = ends([10, 0, 0, 1], port, [10, 0, 0, 2], 80).to_vec();
                received.extend([
                    ("direction", Value::Word("received")),
                    ("state", Value::Word("ESTAB")),
                    ("idle_ns", Value::Unsigned(6_000_000_000)),
                ]);
                window.event("resets", 1, &received);
            }
            assert_eq!(window.ids().contains(&"idle-reset"), expected, "{cause}");
        }
    }

    #[test]
    fn resets_of_busy_connections_are_the_applications() {
        assert!(!resets(&[0.1, 0.0, 0.2, 0.01]).ids().contains(&"idle-reset"));
        // One quiet one among many.
        assert!(
            !resets(&[0.1, 0.0, 0.2, 0.01, 5.0])
                .ids()
                .contains(&"idle-reset")
        );
        assert!(!resets(&[90.0, 91.0]).ids().contains(&"idle-reset"));
    }

    #[test]
    fn answers_that_come_long_after_the_peer_has_closed_are_not_forgotten_connections() {
        let late = resets_in("CLOSE-WAIT", &[27.0, 28.0, 29.0, 31.0]);
        assert!(!late.ids().contains(&"idle-reset"));
        let forgotten = resets(&[27.0, 28.0, 29.0, 31.0]);
        assert!(forgotten.ids().contains(&"idle-reset"));
    }
}
