//! How fast the connections of a listener are accepted, and how long they wait for it: from the
//! ends of its port's connections, its sockets before and after, and its queue in between.

use super::{
    fifo::{self, Stall},
    halted::{self, Halt},
    places,
    window::{Gap, Netns, Queue, Window, ratio},
};
use crate::observe::{
    diag::{Clients, QUIET_MS},
    snapshot::Snapshot,
};

/// Waiting for this long to be accepted is no burst.
const LONG_S: f64 = 3.0;
/// Nor is this, where the queue was long all the time, or grew.
const STEADY_S: f64 = 1.0;
/// From here on most clients have given up.
const TOO_LONG_S: f64 = 5.0;
/// Fewer that wait are somebody who knocked at a port that nobody uses.
pub(super) const LEAST_WAITING: u32 = 3;
/// Fewer that came give no rate, and are no use of a port: somebody scans, or knocks.
const LEAST_ARRIVALS: u64 = 5;
/// Whoever came in this time came lately, in milliseconds.
const LATELY_MS: u32 = 60_000;
/// Fewer looks do not tell whether a queue is ever empty.
const LEAST_LOOKS: usize = 4;
/// Who is served in this time is served in far less than a connection is silent for ([`QUIET_MS`]).
const SERVED_S: f64 = 2.5;
/// A queue that is never shorter than this share of its longest is as long all the time.
const STEADY: f64 = 0.6;
/// Of a queue that shrank to less than this share something was worked off.
const WORKED_OFF: f64 = 0.9;
/// A process that is stopped accepts nothing; this is no mere glance of a debugger.
const STOPPED_S: f64 = 1.0;
/// Workers are busy all the time if their queue is empty at no more than this share of the looks.
const IDLE_SHARE: f64 = 0.15;

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
    /// Of those in the queue, ones whose clients have closed.
    pub(super) hung_up: u32,
    /// Connections by which the queue grows each second; 0 where too few came to tell.
    pub(super) growth: f64,
    /// Whether it took in connections, was not empty again, and they wait too long.
    pub(super) waits_long: bool,
    /// Whether its connections wait too long and none was accepted, but nobody came in the window, or hardly anybody comes,
    /// nor waits.
    pub(super) is_left: bool,
    /// Since when nothing was accepted, if that is too long, but others were accepted before.
    pub(super) stall: Option<Stall>,
    /// Connections per second that came, and that were accepted, while the processes were busy.
    pub(super) busy: Option<(f64, f64)>,
    /// Connections that its processes hold at once, where they are known to be its own; without the silent ones.
    pub(super) served: Option<u64>,
    /// Connections that they hold as well, but over which nothing goes, though others are served in far less time, by inode
    /// number: each may be of a worker that hangs.
    pub(super) silent: Vec<u64>,
}

impl Accepting {
    /// Whether nothing at all was accepted.
    pub(super) fn is_stuck(&self) -> bool {
        self.accepted == Some(0)
    }

    /// Whether nothing is accepted any more, though it was before.
    pub(super) const fn is_stalled(&self) -> bool {
        self.stall.is_some()
    }

    /// Whether clients have given up by now, or will.
    pub(super) fn is_hopeless(&self) -> bool {
        self.is_stuck()
            || self.is_stalled()
            || self.waited_s.is_some_and(|waited| waited >= TOO_LONG_S)
    }
}

/// How the connections of this queue are accepted.
pub(super) fn of(window: &Window, netns: &Netns, queue: &Queue) -> Accepting {
    let grown = growth(queue);
    let stall = fifo::stall(window, netns, queue);
    let (accepted, source) = match (accepted(window, netns, queue), stall) {
        ((None, _), Some(stall)) if stall.is_whole => (Some(0), "sock_diag tcp_info"),
        (known, _) => known,
    };
    let came = accepted.map(|accepted| accepted.saturating_add_signed(grown));
    let now = clients(&netns.after, queue.listener.port);
    let first_ms = now.and_then(|clients| clients.waiting_ms.iter().copied().max());
    let is_never_empty = queue.depths.len() >= LEAST_LOOKS && queue.depths.iter().all(|d| *d > 0);
    let waited_s = first_ms.map(|ms| f64::from(ms) / 1000.0).or_else(|| {
        // Little's law, where the connections themselves could not be asked; a queue that does not
        // grow may be emptied at once now and then.
        let accepted = accepted.filter(|_| is_never_empty && grown > 0)?;
        Some(f64::from(queue.listener.queue) / window.rate(accepted.max(1)))
    });
    let hung_up = now.filter(|_| fifo::is_alone(netns, queue));
    let hung_up = hung_up.map_or(0, |now| now.hung_up.min(queue.listener.queue));
    // Who came before the window and nobody since, or a few who have hung up: a port that nobody uses.
    let is_deserted = accepted == Some(0)
        && queue.listener.queue - hung_up < LEAST_WAITING
        && lately(now).max(came.unwrap_or(0)) < LEAST_ARRIVALS;
    let is_used = !is_deserted && (grown > 0 || came > Some(0) || has_new(window, now));
    let is_long = |stall: &Stall| {
        stall.seconds >= LONG_S
            || stall.seconds >= STOPPED_S
                && halted::all(window, queue).is_some_and(Halt::is_deliberate)
    };
    let is_left = !is_used
        && accepted.is_none_or(|accepted| accepted == 0)
        && (queue.listener.queue >= LEAST_WAITING || queue.listener.queue > queue.listener.limit)
        && queue.depths.len() >= LEAST_LOOKS
        && queue
            .depths
            .iter()
            .all(|depth| *depth > 0 && (is_deserted || *depth == queue.listener.queue))
        && waited_s.is_some_and(|waited| waited >= TOO_LONG_S);
    let stall = stall.filter(|stall| is_long(stall) && accepted != Some(0));
    let (served, silent) = served(window, netns, queue, accepted);
    let long_s = if is_overrun(queue) { STEADY_S } else { LONG_S };
    Accepting {
        came,
        accepted,
        source,
        waited_s,
        hung_up,
        growth: rate_of_growth(window, queue, stall),
        waits_long: is_used
            && queue.listener.queue >= LEAST_WAITING
            && (stall.is_some() || waited_s.is_some_and(|waited| waited >= long_s)),
        is_left,
        stall,
        busy: busy(window, netns, queue, came.zip(accepted)),
        served,
        silent,
    }
}

/// Whether somebody waits who came in the window.
fn has_new(window: &Window, now: Option<&Clients>) -> bool {
    let mut waiting = now.into_iter().flat_map(|clients| &clients.waiting_ms);
    waiting.any(|ms| f64::from(*ms) / 1000.0 < window.seconds)
}

/// By how many connections the queue grows each second, since nothing is accepted any more, or in the window.
fn rate_of_growth(window: &Window, queue: &Queue, stall: Option<Stall>) -> f64 {
    let (grown, seconds) = match stall {
        Some(stall) if stall.seconds >= STOPPED_S && !stall.is_whole => (
            i64::from(queue.listener.queue) - i64::from(stall.waited),
            stall.seconds,
        ),
        _ => (growth(queue), window.seconds.max(0.001)),
    };
    if grown.unsigned_abs() < LEAST_ARRIVALS {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = grown as f64 / seconds;
    rate
}

/// Whether as many come as are accepted, or more, and not in a burst: the queue was about as long at all looks, or longer at
/// all at the end than at any at the beginning, and nothing of it was worked off.
fn is_overrun(queue: &Queue) -> bool {
    let looks = &queue.depths;
    let (earlier, later) = looks.split_at(looks.len() / 2);
    let [Some(least), Some(most)] = [looks.iter().min(), looks.iter().max()] else {
        return false;
    };
    let is_steady = *least >= LEAST_WAITING && f64::from(*least) >= STEADY * f64::from(*most);
    let grows = *least > 0
        && later.iter().min() > earlier.iter().max()
        && growth(queue).unsigned_abs() >= LEAST_ARRIVALS
        && f64::from(queue.listener.queue) >= WORKED_OFF * f64::from(*most);
    // What is full is told by how it is emptied.
    let has_room = *most < queue.listener.limit;
    looks.len() >= 2 * LEAST_LOOKS && has_room && (is_steady || grows)
}

/// How many of those that wait came lately.
fn lately(now: Option<&Clients>) -> u64 {
    let waiting = now.into_iter().flat_map(|clients| &clients.waiting_ms);
    waiting.filter(|ms| **ms < LATELY_MS).count() as u64
}

/// How many connections its processes hold at once: who serves has accepted, has read, and has not closed. A list that takes long
/// shows some that were closed beside those that came instead, so that the fewer count, if all were busy at the beginning.
/// And how many more they hold that are silent for longer than they can have waited in the queue, if those are the exception.
fn served(
    window: &Window,
    netns: &Netns,
    queue: &Queue,
    accepted: Option<u64>,
) -> (Option<u64>, Vec<u64>) {
    let port = queue.listener.port;
    let held = |snapshot| {
        clients(snapshot, port).map(|clients| {
            // Who reads nothing at all serves nonetheless.
            let read = clients.held.saturating_sub(clients.unread.now);
            u64::from(if read == 0 { clients.held } else { read })
        })
    };
    let was_busy = queue.depths.first().is_some_and(|depth| *depth > 0);
    let before = held(&netns.before).filter(|held| was_busy && *held > 0);
    let after = held(&netns.after).filter(|held| *held > 0);
    let fewer = match (before, after) {
        (Some(before), Some(after)) => Some(before.min(after)),
        (before, after) => after.or(before),
    };
    let all = fewer.filter(|_| is_one_service(window, netns, queue));
    let hanging = clients(&netns.after, port).map_or(Vec::new(), silent);
    let silent = hanging.len() as u64;
    let Some(busy) = all.and_then(|all| all.checked_sub(silent)) else {
        return (all, Vec::new());
    };
    let rate = window.rate(accepted.unwrap_or(0));
    #[expect(clippy::cast_precision_loss, reason = "a few connections")]
    let is_quick = busy as f64 <= rate * SERVED_S;
    // Where each of many processes has one connection, it is clear that those do nothing else.
    let processes = window.processes.holders(queue.listener.ino).count() as u64;
    let is_one_each = processes > 1 && busy + silent <= processes;
    if busy > 0 && is_quick && (is_one_each || silent <= busy) {
        (Some(busy), hanging)
    } else {
        (all, Vec::new())
    }
}

/// The connections that have been silent since they were accepted, though what they asked was read.
fn silent(clients: &Clients) -> Vec<u64> {
    let waited_ms = clients.waiting_ms.iter().copied().max().unwrap_or(0);
    let silent = clients.silent.iter();
    let silent = silent.filter(|silent| silent.ms >= QUIET_MS + waited_ms);
    silent.map(|silent| silent.ino).collect()
}

/// Of the queues of an address and port that processes share by `SO_REUSEPORT`, how many are emptied while this one is not,
/// and how many there are; `None` if it is the only one, or no other is emptied.
pub(super) fn shared(netns: &Netns, queue: &Queue) -> Option<(usize, usize)> {
    let own = &queue.listener;
    let sharing = netns
        .queues
        .iter()
        .filter(|other| (other.listener.address, other.listener.port) == (own.address, own.port));
    let (sharing, all) = (sharing.clone(), sharing.count());
    let is_emptied = |other: &&Queue| {
        other.listener.ino != own.ino
            && other.listener.queue == 0
            && other.depths.len() >= LEAST_LOOKS
            && other.slack_share() >= 1.0 - IDLE_SHARE
    };
    let emptied = sharing.filter(is_emptied).count();
    (emptied > 0).then_some((emptied, all))
}

/// Whether somebody waits in the queue whenever one looks, but for what had just been accepted.
pub(super) fn is_always_waited_for(queue: &Queue) -> bool {
    let idle = queue.depths.iter().filter(|depth| **depth == 0).count();
    queue.depths.len() >= LEAST_LOOKS
        && queue.listener.queue > 0
        && ratio(idle as u64, queue.depths.len() as u64) <= IDLE_SHARE
}

/// What came and what was accepted each second while the processes were busy: in the whole window, if
/// somebody waited all the time, or else since the first that still waits came.
fn busy(
    window: &Window,
    netns: &Netns,
    queue: &Queue,
    counted: Option<(u64, u64)>,
) -> Option<(f64, f64)> {
    let idle = queue.depths.iter().filter(|depth| **depth == 0).count();
    if ratio(idle as u64, queue.depths.len() as u64) <= IDLE_SHARE {
        return counted.map(|(came, accepted)| (window.rate(came), window.rate(accepted)));
    }
    fifo::lately(window, netns, queue)
}

/// By how much the queue has grown in the window.
fn growth(queue: &Queue) -> i64 {
    let first = queue.depths.first().copied().unwrap_or(0);
    i64::from(queue.listener.queue) - i64::from(first)
}

/// How many were accepted, where it can be told for this listener, and who says so.
fn accepted(window: &Window, netns: &Netns, queue: &Queue) -> (Option<u64>, &'static str) {
    let port = queue.listener.port;
    if window.watched_required("lifetimes").is_ok()
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
        // Listeners that share the port cannot be told apart, if one of them accepts.
        if accepted == 0 || is_one_service(window, netns, queue) {
            return (Some(accepted), "lifetimes, sock_diag");
        }
    }
    (
        namespace_accepted(netns, queue).unwrap_or(None),
        "Tcp.PassiveOpens, sock_diag",
    )
}

/// Whether all listeners at the port are of the same processes, as 0.0.0.0:80 and \[::\]:80 are.
pub(super) fn is_one_service(window: &Window, netns: &Netns, queue: &Queue) -> bool {
    let holders = |queue: &Queue| -> Vec<u32> {
        let holders = window.processes.holders(queue.listener.ino);
        holders.map(|holder| holder.pid).collect()
    };
    let own = holders(queue);
    let mut queues = netns.queues.iter();
    queues.all(|other| {
        other.listener.port != queue.listener.port
            || other.listener.ino == queue.listener.ino
            || holders(other).iter().any(|pid| own.contains(pid))
    })
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
            let waiting = i64::try_from(clients.waiting_ms.len()).unwrap_or(i64::MAX);
            (i64::from(clients.open), waiting)
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

/// Connection attempts to the service at a port of a namespace that this machine's own processes began in the window, in
/// any namespace: those that ended in it, and by how many more are open than before. Each counts once, however often its
/// SYN was sent again.
pub(super) fn local_attempts(window: &Window, service: &Netns, port: u16) -> u64 {
    let namespaces = window.namespaces.iter();
    let attempts = namespaces.map(|netns| {
        let open = |snapshot: &Snapshot| {
            let table = snapshot.sockets.as_ref();
            table.map_or(0, |table| table.outgoing.get(&port).copied().unwrap_or(0))
        };
        let more = i64::from(open(&netns.after)) - i64::from(open(&netns.before));
        let [inode, number] = [netns.inode.to_string(), port.to_string()];
        let group = [
            ("role", "client"),
            ("netns", inode.as_str()),
            ("service_port", number.as_str()),
        ];
        let ended = window.events.count("lifetimes", &group);
        let (here, all) = destined(window, netns, (service, port));
        let attempts = ended.saturating_add_signed(more);
        (attempts * here).checked_div(all).unwrap_or(attempts)
    });
    attempts.sum()
}

/// How many of the connections that were seen to end in a namespace of clients went to the service, of those to its port.
fn destined(window: &Window, clients: &Netns, (service, port): (&Netns, u16)) -> (u64, u64) {
    let ends = window.events.within("lifetimes", clients.inode);
    let ends = ends.filter(|end| end.is("role", "client") && end.small("dport") == Some(port));
    let (mut here, mut all) = (0, 0);
    for address in ends.filter_map(|end| end.ip("daddr")) {
        let home = places::listener(window, clients, (address, port));
        here += u64::from(home.is_some_and(|(home, _)| home.inode == service.inode));
        all += 1;
    }
    (here, all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnose::fixtures::quiet, report::Value};

    #[test]
    fn accepted_is_what_is_held_and_what_has_ended() {
        let mut window = quiet();
        window.listen(8080, 4096, &[260, 400, 500, 580]);
        window.waiting(8080, 260, 320);
        // 77 were accepted and have ended; 10 are served still.
        let group = [
            ("role", Value::Word("server")),
            ("service_port", Value::Unsigned(8080)),
        ];
        window.total("lifetimes", 77, &group);
        window.sockets().clients.get_mut(&8080).unwrap().open += 10;
        let netns = &window.namespaces[0];
        let accepting = of(&window, netns, &netns.queues[0]);
        assert_eq!((accepting.accepted, accepting.came), (Some(87), Some(407)));
        assert!(accepting.waits_long && !accepting.is_stuck());
    }

    #[test]
    fn a_queue_that_is_long_all_the_time_is_told_before_its_clients_wait_for_long() {
        let waits = |depths: &[u32], waited_ms| {
            let mut window = quiet();
            window.listen(8080, 512, depths);
            window.waiting(8080, 0, *depths.last().unwrap());
            let clients = window.sockets().clients.get_mut(&8080).unwrap();
            clients.waiting_ms = vec![waited_ms; clients.waiting_ms.len()];
            let netns = &window.namespaces[0];
            of(&window, netns, &netns.queues[0]).waits_long
        };
        let growing = [2, 4, 6, 9, 11, 13, 14, 17, 20, 22];
        assert!(waits(&growing, 2200));
        assert!(!waits(&growing, 900));
        let steady = [25, 26, 24, 26, 22, 26, 25, 23, 26, 26];
        assert!(waits(&steady, 2600));
        assert!(!waits(&steady, 900));
        // Bursts, which are worked off, and one that comes at the end.
        assert!(!waits(&[2, 2, 2, 2, 2, 40, 35, 30, 25, 20], 2200));
        assert!(!waits(&[40, 36, 32, 28, 26, 24, 20, 16, 12, 8], 2200));
        assert!(!waits(&[0, 0, 0, 0, 0, 0, 0, 5, 15, 25], 2200));
    }

    #[test]
    fn what_was_reset_while_it_waited_was_not_accepted() {
        let mut window = quiet();
        window.listen(8080, 4096, &[40, 60, 80, 100]);
        window.waiting(8080, 40, 60);
        // 30 of those that wait were reset by their clients: they have ended, and are still counted.
        let group = [
            ("role", Value::Word("server")),
            ("service_port", Value::Unsigned(8080)),
        ];
        window.total("lifetimes", 30, &group);
        let clients = window.sockets().clients.get_mut(&8080).unwrap();
        clients.waiting_ms.truncate(70);
        clients.open = 70;
        let netns = &window.namespaces[0];
        assert!(of(&window, netns, &netns.queues[0]).is_stuck());
    }

    #[test]
    fn what_is_served_at_once_is_held_by_the_processes_of_this_listener_alone() {
        let mut window = quiet();
        window.listen(80, 10, &[11; 10]);
        window.serving(80, 2, 100);
        let served = |window: &Window| {
            let netns = &window.namespaces[0];
            of(window, netns, &netns.queues[0]).served
        };
        let set = |window: &mut Window, held: u32| {
            window.sockets().clients.get_mut(&80).unwrap().held = held;
        };
        // One more was accepted before the list was at its end.
        set(&mut window, 3);
        assert_eq!(served(&window), Some(2));
        // Idle at first: only the end counts.
        window.netns().queues[0].depths[0] = 0;
        assert_eq!(served(&window), Some(3));
        set(&mut window, 0);
        assert_eq!(served(&window), None);
        set(&mut window, 3);
        let mut other = window.netns().queues[0].clone();
        other.listener.ino += 1;
        window.netns().queues.push(other);
        assert_eq!(served(&window), None);
    }

    #[test]
    fn listeners_of_others_at_the_same_port_are_not_mixed_up() {
        let accepted = |is_shared: bool, is_stuck: bool| {
            let mut window = quiet();
            window.listen(80, 511, &[10, 40, 70, 100]);
            window.waiting(80, 10, 90);
            if !is_stuck {
                let clients = window.sockets().clients.get_mut(&80).unwrap();
                clients.waiting_ms.iter_mut().for_each(|ms| *ms /= 4);
            }
            let mut other = window.netns().queues[0].clone();
            other.listener.ino += 1;
            other.listener.address = [127, 0, 0, 1].into();
            other.depths = vec![0; 4];
            if is_shared {
                let server = window.processes.by_pid.get_mut(&100).unwrap();
                server.sockets.push(other.listener.ino);
            }
            window.netns().queues.push(other);
            let group = [
                ("role", Value::Word("server")),
                ("service_port", Value::Unsigned(80)),
            ];
            window.total("lifetimes", 500, &group);
            window.grow(&[("Tcp.PassiveOpens", 590)]);
            let netns = &window.namespaces[0];
            of(&window, netns, &netns.queues[0]).accepted
        };
        assert_eq!(accepted(true, false), Some(500));
        assert_eq!(accepted(false, false), None);
        // All who waited at the first look still wait: the others accepted those connections.
        assert_eq!(accepted(false, true), Some(0));
    }

    #[test]
    fn attempts_at_another_service_of_the_same_port_are_none_of_this_one() {
        let attempts = |to: [u8; 4]| {
            let mut window = quiet();
            window.listen(9000, 16, &[0]);
            window.namespaces[0].after.addresses = [[10, 0, 0, 1].into()].into();
            let group = [
                ("role", Value::Word("client")),
                ("service_port", Value::Unsigned(9000)),
            ];
            window.total("lifetimes", 80, &group);
            for address in [[10, 0, 0, 1], to] {
                let end = [
                    ("role", Value::Word("client")),
                    ("daddr", Value::Ip(address.into())),
                    ("dport", Value::Unsigned(9000)),
                ];
                window.event("lifetimes", 4, &end);
            }
            local_attempts(&window, &window.namespaces[0], 9000)
        };
        assert_eq!(attempts([10, 0, 0, 1]), 80);
        assert_eq!(attempts([10, 0, 0, 2]), 40);
    }
}
