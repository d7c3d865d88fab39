//! Connections that were quiet for a while are reset: something on the way has forgotten them, or the
//! peer has had enough of them.

mod silent;

use super::super::{
    Explanation, Rule, Verdict,
    events::port_of,
    finding::{finding, process},
    in_each,
    places::{self, End},
    received::{self, Peer, Received},
    sizing::{PERSIST, spoken},
    window::{Netns, Window, endpoint},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

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
                sockets that asked for it (SO_KEEPALIVE). Or the peer itself closes connections that carried no data for a \
                time, with SO_LINGER 0; keepalive does not count as data.",
        recognised: "Resets were received on established connections whose peer had not been heard of for over a second. It is \
                     the peer's timeout where its process was seen to close them (a peer on this machine), where keepalive \
                     probes were answered until then (ss -o, tcp_info), and most likely where all came after the same time; \
                     something that forgets is asked only when a connection is used again, after \
                     different times, none shorter than its own; it is that, too, where the peer is on this machine and sent no reset. Something that drops what it has forgotten is \
                     told by connections that had been quiet for over a second when they were used again, and get no answer to \
                     the end (three timeouts in a row, or ETIMEDOUT), while others with the same service, or else with \
                     the same address, go on and lose nothing. Resets of \
                     busy connections are resets instead.",
        fixes: &[
            (
                "a timeout of the peer: raise it, or have the pool close first or send something (SELECT 1, PING) within it",
                "more open connections there",
            ),
            (
                "a device that forgets: SO_KEEPALIVE with TCP_KEEPIDLE well below the shortest pause that was reset, in the application or its driver",
                "a packet per connection and interval",
            ),
            (
                "net.ipv4.tcp_keepalive_time as far below it (for sockets with SO_KEEPALIVE)",
                "dead peers are noticed sooner, too",
            ),
            (
                "close idle connections of a pool before that",
                "more new connections",
            ),
        ],
    },
};

/// Of times of a timer, most are no further apart than this part of them; use of a pool is less regular.
const TIMER_SPREAD: f64 = 0.1;
const MS: f64 = 1e6;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        window.watched_required("resets")?;
        let services = received::by_service(window, netns);
        let quiet = services
            .into_iter()
            .filter(|(_, received)| received.is_of_quiet_ones());
        let mut found: Vec<Finding> = quiet
            .map(|(peer, received)| describe(window, netns, peer, received))
            .collect();
        found.extend(silent::check(window, netns));
        if found.is_empty() {
            received::check_seen(window, netns)?;
            silent::check_seen(window, netns)?;
        }
        Ok(found)
    })
}

/// Who ended the quiet connections.
#[derive(Debug, PartialEq)]
enum Culprit {
    /// The peer's own timer: its process closed them on purpose.
    Closer(Option<String>),
    /// The peer's own timer: keepalive probes were answered all the time, by a peer that still knew them.
    DespiteKeepalive { quietest_ms: u32 },
    /// All after the same time, as by a timer; of the peer, most likely.
    Timer,
    /// What answered does not know the connection.
    Forgetful,
    /// After different times, as by something that forgets them and is asked when they are used again.
    LikelyForgetful,
}

impl Culprit {
    fn of(window: &Window, netns: &Netns, peer: End, received: &Received) -> Self {
        match received.peer() {
            Some(Peer::Closed { comm, .. }) => return Self::Closer(comm.clone()),
            Some(Peer::Forgot) => return Self::Forgetful,
            None if is_innocent(window, netns, peer) => return Self::Forgetful,
            None => {}
        }
        let tables = [&netns.before, &netns.after];
        let tables = tables.into_iter().filter_map(|seen| seen.sockets.as_ref());
        let seen = tables.filter_map(|table| table.quietness.get(&peer));
        let (connections, kept_alive, quietest_ms) = seen.fold((0, 0, 0), |sum, seen| {
            (
                sum.0 + seen.connections,
                sum.1 + seen.kept_alive,
                seen.quietest_ms.max(sum.2),
            )
        });
        // Those that were used just now have had no time for a probe.
        if kept_alive * 8 >= connections.max(1) {
            return Self::DespiteKeepalive { quietest_ms };
        }
        if is_regular(&received.quiet_ns) {
            Self::Timer
        } else {
            Self::LikelyForgetful
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Closer(comm) => format!(
                "{} closes connections that are quiet for so long",
                comm.as_deref().unwrap_or("the peer's process")
            ),
            Self::DespiteKeepalive { quietest_ms } => format!(
                "keepalive was answered meanwhile, so that nothing has forgotten them: the peer closes connections that \
                 have carried no data for a time (up to {} was seen)",
                spoken(f64::from(*quietest_ms) / 1e3)
            ),
            Self::Timer => "all after the same time, by an idle timeout of the peer, or as something on the way had forgotten \
                            them by then"
                .to_owned(),
            Self::Forgetful | Self::LikelyForgetful => {
                "something on the way has forgotten them, and answers what they send with a reset".to_owned()
            }
        }
    }

    const fn confidence(&self) -> Confidence {
        match self {
            Self::Timer | Self::LikelyForgetful => Confidence::Medium,
            _ => Confidence::High,
        }
    }
}

/// Whether the peer is on this machine and has sent no such reset, so that something on the way did.
fn is_innocent(window: &Window, netns: &Netns, (address, port): End) -> bool {
    let has_sent = |home: &Netns| {
        let inode = home.inode.to_string();
        let group = [("netns", inode.as_str()), ("direction", "sent")];
        let mut sent = window.events.groups("resets", &group);
        // Who takes an end for the client counts it by the other port, at which nobody listens.
        sent.any(|total| {
            port_of(total, "service_port")
                .is_none_or(|sent| sent == port || places::at_port(home, sent).next().is_none())
        })
    };
    let homes = places::homes(window, netns, address);
    let is_elsewhere = |home: &&Netns| home.inode != netns.inode && !has_sent(home);
    !homes.is_empty() && homes.iter().all(is_elsewhere)
}

/// Whether sorted times are nearly equal, as those of a timer, or of clients that all pause for as long.
fn is_regular(times: &[u64]) -> bool {
    let part = |percent: usize| seconds(times[(times.len() - 1) * percent / 100]);
    part(90) - part(10) <= part(50) * TIMER_SPREAD
}

/// After how many seconds without a packet a namespace here forgets connections, if that explains resets after `low`.
fn forgets_after(window: &Window, low: f64) -> Option<(u64, &Netns)> {
    let tracking = window
        .namespaces
        .iter()
        .filter(|netns| netns.sysctl("net.netfilter.nf_conntrack_count") > Some(0));
    let timeouts = tracking.filter_map(|netns| {
        let timeout = netns.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established")?;
        Some((timeout, netns))
    });
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let sooner = timeouts.filter(|(timeout, _)| *timeout as f64 <= low + 1.0);
    sooner.min_by_key(|(timeout, _)| *timeout)
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / (1000.0 * MS)
}

/// A time, or a range of times.
fn span(low: f64, high: f64) -> String {
    let [from, to] = [spoken(low), spoken(high)];
    if from == to {
        from
    } else {
        format!("{from} to {to}")
    }
}

/// The same to a tenth of a second.
fn exactly(low: f64, high: f64) -> String {
    if high - low < 0.1 {
        format!("{low:.1} s")
    } else {
        format!("{low:.1} to {high:.1} s")
    }
}

/// A part of a time in whole seconds, for what must happen well within it.
fn part(time: f64, parts: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a bounded positive number"
    )]
    let part = (time / parts).floor().clamp(1.0, 3600.0) as u64;
    part
}

fn describe(window: &Window, netns: &Netns, peer: End, mut received: Received) -> Finding {
    received.quiet_ns.sort_unstable();
    let times = &received.quiet_ns;
    let (low, high) = (seconds(times[0]), seconds(times[times.len() - 1]));
    let culprit = Culprit::of(window, netns, peer, &received);
    let keepalive = netns.sysctl("net.ipv4.tcp_keepalive_time").unwrap_or(7200);
    let (pid, comm) = received.owner.clone().unwrap_or_default();
    let whose = comm
        .as_ref()
        .map_or(String::new(), |comm| format!(" of {comm}"));
    let (address, port) = peer;
    let found = finding(
        RULE.id,
        Severity::Warning,
        culprit.confidence(),
        format!(
            "{} quiet connections{whose}{} with {address} (port {port}) were reset in {:.0} s, after {} without a word: {}",
            times.len(),
            netns.place(),
            window.seconds,
            span(low, high),
            culprit.words()
        ),
    )
    .counted(
        format!(
            "{} resets received after {} of silence",
            times.len(),
            exactly(low, high)
        ),
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
    .hits([Window::affected_destination(netns, address, port)])
    .hits(pid.map(|pid| process(Some(pid), comm, Some(netns.inode))));
    let limit = match culprit {
        Culprit::DespiteKeepalive { quietest_ms } => f64::from(quietest_ms) / 1e3,
        _ => low,
    };
    match culprit {
        Culprit::Closer(_) | Culprit::DespiteKeepalive { .. } => {
            against_timer(found, peer, limit, true)
        }
        Culprit::Forgetful | Culprit::LikelyForgetful => {
            against_forgetting(found, window, &received.quiet_ns)
        }
        Culprit::Timer => {
            let found = against_forgetting(found, window, &received.quiet_ns);
            against_timer(found, peer, limit, false)
        }
    }
}

/// What helps against an idle timeout of the peer, which only data resets.
fn against_timer(found: Finding, (address, port): End, limit: f64, is_sure: bool) -> Finding {
    let service = endpoint(address, port);
    // Where it may be a device, the pause does not tell how much sooner that forgets.
    let parts = if is_sure { 2.0 } else { 4.0 };
    found
        .application(
            if is_sure {
                format!("raise the idle timeout of the service at {service} above the longest pause of its clients")
            } else {
                format!(
                    "or, if the service at {service} has an idle timeout (its configuration says), raise it above the longest \
                     pause of its clients: keepalive does not help against that"
                )
            },
            &[],
            "more open connections there",
        )
        .application(
            format!(
                "or have the pool close connections that are idle for {} s, or ask something over them (SELECT 1, PING) as \
                 often: {} of {limit:.1} s in whole seconds{}",
                part(limit, parts),
                if is_sure { "half" } else { "a quarter" },
                if is_sure {
                    "; TCP keepalive is no data, and does not help"
                } else {
                    ""
                }
            ),
            &[],
            "more new connections, or a request per connection and interval",
        )
}

/// What helps against a device that forgets: a packet before it does. The shortest pause is no shorter than its timeout;
/// where pauses of all lengths were seen it is near to it, and otherwise nobody knows.
fn against_forgetting(found: Finding, window: &Window, times: &[u64]) -> Finding {
    let low = seconds(times[0]);
    let (parts, word) = if is_regular(times) {
        (4.0, "a quarter")
    } else {
        (2.0, "half")
    };
    let guessed = part(low, parts);
    let known = forgets_after(window, low)
        .map(|(timeout, netns)| ((timeout / 2).max(1), timeout, netns))
        .filter(|(wanted, ..)| *wanted <= guessed);
    let (wanted, why) = match known {
        Some((wanted, timeout, netns)) => (
            wanted,
            format!(
                "half of the {timeout} s after which conntrack{} forgets (nf_conntrack_tcp_timeout_established)",
                netns.place_or_here()
            ),
        ),
        None => (
            guessed,
            format!(
                "{word} of {low:.1} s in whole seconds: what forgets does so after {low:.1} s or less, so halve it again if \
                 resets go on"
            ),
        ),
    };
    advise_keepalive(found, wanted, &why)
}

/// A packet per connection and interval keeps it in mind.
fn advise_keepalive(found: Finding, wanted: u64, why: &str) -> Finding {
    found
        .application(
            format!(
                "turn on keepalive in the application: SO_KEEPALIVE with TCP_KEEPIDLE {wanted} s, {why}"
            ),
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
mod tests;
