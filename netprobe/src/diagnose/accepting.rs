//! How fast the connections of a listener are accepted, and how long they wait for it: from the
//! ends of its port's connections, its sockets before and after, and its queue in between.

use super::window::{Gap, Netns, Queue, Window, ratio};
use crate::observe::{diag::Clients, snapshot::Snapshot};

/// Waiting for this long to be accepted is no burst.
const LONG_S: f64 = 3.0;
/// From here on most clients have given up.
const TOO_LONG_S: f64 = 5.0;
/// Fewer that wait are somebody who knocked at a port that nobody uses.
const LEAST_WAITING: u32 = 3;
/// Fewer looks do not tell whether a queue is ever empty.
const LEAST_LOOKS: usize = 4;

/// What is known of how a listener's connections are accepted.
#[derive(Clone, Debug)]
pub(super) struct Accepting {
    /// Connections that came into its queue in the window, where they are known to be its own.
    pub(super) came: Option<u64>,
    /// Connections that were accepted from it, likewise.
    pub(super) accepted: Option<u64>,
    /// Where the two come from.
    pub(super) source: &'static str,
    /// How long the first in the queue waits so far, in seconds; the queue is first in, first out.
    pub(super) waited_s: Option<f64>,
    /// Connections by which the queue grows each second.
    pub(super) growth: f64,
    /// Whether it took in connections, was not empty again, and they wait too long.
    pub(super) waits_long: bool,
}

impl Accepting {
    /// Whether nothing at all was accepted.
    pub(super) fn is_stuck(&self) -> bool {
        self.accepted == Some(0)
    }

    /// Whether clients have given up by now.
    pub(super) fn is_hopeless(&self) -> bool {
        self.is_stuck() || self.waited_s.is_some_and(|waited| waited >= TOO_LONG_S)
    }
}

/// How the connections of this queue are accepted.
pub(super) fn of(window: &Window, netns: &Netns, queue: &Queue) -> Accepting {
    let grown = growth(queue);
    let (accepted, source) = accepted(window, netns, queue);
    let came = accepted.map(|accepted| accepted.saturating_add_signed(grown));
    let now = clients(&netns.after, queue.listener.port);
    let first_ms = now.and_then(|clients| clients.waiting_ms.iter().copied().max());
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let growth = grown as f64 / window.seconds.max(0.001);
    let is_never_empty = queue.depths.len() >= LEAST_LOOKS && queue.depths.iter().all(|d| *d > 0);
    let waited_s = first_ms.map(|ms| f64::from(ms) / 1000.0).or_else(|| {
        // Little's law, where the connections themselves could not be asked.
        let accepted = accepted.filter(|_| is_never_empty)?;
        Some(f64::from(queue.listener.queue) / window.rate(accepted.max(1)))
    });
    // Who came before the window and nobody since: a port that nobody uses.
    let is_used = grown > 0
        || came.is_some_and(|came| came > 0)
        || now.is_some_and(|now| {
            let mut waiting = now.waiting_ms.iter();
            waiting.any(|ms| f64::from(*ms) / 1000.0 < window.seconds)
        });
    Accepting {
        came,
        accepted,
        source,
        waited_s,
        growth,
        waits_long: is_used
            && queue.listener.queue >= LEAST_WAITING
            && waited_s.is_some_and(|waited| waited >= LONG_S),
    }
}

/// By how much the queue has grown in the window.
fn growth(queue: &Queue) -> i64 {
    let first = queue.depths.first().copied().unwrap_or(0);
    i64::from(queue.listener.queue) - i64::from(first)
}

/// How many were accepted, where it can be told for this listener, and who says so.
fn accepted(window: &Window, netns: &Netns, queue: &Queue) -> (Option<u64>, &'static str) {
    let port = queue.listener.port;
    let at_port = || {
        netns
            .queues
            .iter()
            .filter(|queue| queue.listener.port == port)
    };
    if at_port().nth(1).is_none()
        && window.watched_required("lifetimes").is_ok()
        && let Some(held) = held(netns, port)
    {
        // What was accepted is still open, or has ended; of what has ended some was reset while it
        // waited, and is counted by the queue until accept() returns it.
        let (inode, port) = (netns.inode.to_string(), port.to_string());
        let group = [
            ("role", "server"),
            ("service_port", port.as_str()),
            ("netns", inode.as_str()),
        ];
        let ended = window.events.count("lifetimes", &group);
        let accepted = ended.saturating_add_signed(held);
        return (Some(accepted), "lifetimes, sock_diag");
    }
    (
        namespace_accepted(netns, queue).unwrap_or(None),
        "Tcp.PassiveOpens, sock_diag",
    )
}

/// By how many connections more the application holds at a port than before, less those that were
/// reset in the queue.
fn held(netns: &Netns, port: u16) -> Option<i64> {
    clients(&netns.after, port)?;
    let [before, after] = [&netns.before, &netns.after].map(|snapshot| {
        let listeners = snapshot.sockets.iter().flat_map(|table| &table.listeners);
        let depths = listeners.filter(|listener| listener.port == port);
        let depth: i64 = depths.map(|listener| i64::from(listener.queue)).sum();
        let (open, waiting) = clients(snapshot, port).map_or((0, 0), |clients| {
            (i64::from(clients.open), clients.waiting_ms.len() as i64)
        });
        open - waiting - (depth - waiting).max(0)
    });
    Some(after - before)
}

/// From the counter of the namespace, where it tells: there is one listener, or nobody accepts.
fn namespace_accepted(netns: &Netns, queue: &Queue) -> Result<Option<u64>, Gap> {
    let came = netns.grown("Tcp.PassiveOpens")?;
    let into_queues: i64 = netns.queues.iter().map(|queue| growth(queue).max(0)).sum();
    if came <= into_queues.unsigned_abs() && growth(queue) >= 0 {
        return Ok(Some(0));
    }
    let is_only = netns.queues.len() == 1;
    Ok(is_only.then(|| came.saturating_add_signed(-growth(queue))))
}

fn clients(snapshot: &Snapshot, port: u16) -> Option<&Clients> {
    snapshot.sockets.as_ref()?.clients.get(&port)
}

/// Connection attempts to a port that this machine's own processes ended in the window, in any
/// namespace: each counts once, however often its SYN was sent again.
pub(super) fn local_attempts(window: &Window, port: u16) -> u64 {
    let port = port.to_string();
    let group = [("role", "client"), ("service_port", port.as_str())];
    window.events.count("lifetimes", &group)
}

/// Seconds that one process takes for one connection, if so many accept so many in the window.
pub(super) fn service_s(window: &Window, processes: usize, accepted: u64) -> f64 {
    ratio(processes as u64, accepted) * window.seconds
}
