//! What the connections that wait in a listener's queue tell: the queue is first in, first out, so
//! that who waited at some look and how long everybody waits at the end say what was accepted since.

use super::{
    accepting::Accepting,
    window::{Netns, Queue, Window},
};
use crate::observe::snapshot::Snapshot;

/// Fewer do not tell whether they came at once or one by one.
const LEAST_WAITING: usize = 6;
/// A look and the list of connections are not of the same instant.
const SLACK_S: f64 = 0.05;
/// The last look before the first in the queue came is no further from it than this.
const NEAR_S: f64 = 0.5;
/// Fewer that were accepted give no rate.
const LEAST_ACCEPTED: u32 = 5;
/// Fewer looks say nothing about how a queue is emptied.
const LEAST_LOOKS: usize = 4;

/// How a queue is emptied that looks full all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emptied {
    /// Whole, after a pause: a longer one would hold what comes in the pauses.
    InGulps,
    /// One by one or not at all: a longer one would fill just the same.
    Slowly,
    /// It cannot be told.
    Unknown,
}

/// Since when nothing was accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stall {
    /// For how long, at least.
    pub(super) seconds: f64,
    /// How many waited then.
    pub(super) waited: u32,
    /// Whether it is so since the window began.
    pub(super) is_whole: bool,
}

/// How long each connection of a port waits so far, in seconds.
fn ages(snapshot: &Snapshot, port: u16) -> Vec<f64> {
    let table = snapshot.sockets.as_ref();
    let clients = table.and_then(|table| table.clients.get(&port));
    let waiting = clients.map_or(&[][..], |clients| &clients.waiting_ms);
    waiting.iter().map(|ms| f64::from(*ms) / 1000.0).collect()
}

/// The looks at a queue: how many seconds before the end, and how many waited.
pub(super) fn looks(window: &Window, netns: &Netns, queue: &Queue) -> Vec<(f64, u32)> {
    let count = queue.depths.len();
    let end = netns.after.listed;
    let times = netns.looks.len().checked_sub(count);
    let times = times.map(|first| &netns.looks[first..]);
    let looks = queue.depths.iter().enumerate().map(|(index, depth)| {
        let at = times.and_then(|times| times.get(index)).copied();
        #[expect(clippy::cast_precision_loss, reason = "a few looks")]
        let evenly = window.seconds * (count - 1 - index) as f64 / count as f64;
        let ago = end.zip(at).map_or(evenly, |(end, at)| {
            end.saturating_duration_since(at).as_secs_f64()
        });
        (ago, *depth)
    });
    looks.collect()
}

/// How many waited at the other listeners of the port at the look that was the `last`-th from the end.
fn beside(netns: &Netns, queue: &Queue, last: usize) -> u32 {
    let others = netns.queues.iter().filter(|other| {
        other.listener.port == queue.listener.port && other.listener.ino != queue.listener.ino
    });
    let depths = others.filter_map(|other| other.depths.iter().rev().nth(last));
    depths.sum()
}

/// The longest time in which nothing was accepted up to the end: everybody who waited then still
/// waits. Who was reset meanwhile is not listed any more, and then nothing is known.
pub(super) fn stall(window: &Window, netns: &Netns, queue: &Queue) -> Option<Stall> {
    let ages = ages(&netns.after, queue.listener.port);
    let looks = looks(window, netns, queue);
    let count = looks.len();
    let mut looks = looks.into_iter().enumerate();
    looks.find_map(|(index, (ago, depth))| {
        let older = ages.iter().filter(|age| **age >= ago - SLACK_S).count();
        let waited = depth + beside(netns, queue, count - 1 - index);
        let is_stalled = depth > 0 && u32::try_from(older).is_ok_and(|older| older >= waited);
        is_stalled.then_some(Stall {
            seconds: ago,
            waited: depth,
            is_whole: index == 0,
        })
    })
}

/// Connections per second that came lately and that were accepted lately: since the first that waits
/// came, all those before it were accepted, and nobody after it.
pub(super) fn lately(window: &Window, netns: &Netns, queue: &Queue) -> Option<(f64, f64)> {
    let ages = ages(&netns.after, queue.listener.port);
    let first = ages.iter().copied().reduce(f64::max)?;
    let away = |ago: f64| (ago - first).abs();
    let mut looks = looks(window, netns, queue);
    looks.sort_by(|a, b| away(a.0).total_cmp(&away(b.0)));
    let (ago, before) = *looks.first()?;
    let is_known = is_alone(netns, queue) && away(ago) <= NEAR_S && before >= LEAST_ACCEPTED;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let came = ages.len() as f64 / first.max(SLACK_S);
    is_known.then(|| (came, f64::from(before) / first.max(SLACK_S)))
}

/// How the queue is emptied, from the connections of this listener alone, or from the counter of the
/// namespace where all that it counted came here.
pub(super) fn emptied(
    window: &Window,
    netns: &Netns,
    queue: &Queue,
    accepting: &Accepting,
) -> Emptied {
    if accepting.is_stuck() || accepting.is_stalled() {
        return Emptied::Slowly;
    }
    let by_waiting = by_waiting(window, netns, queue, accepting);
    match (by_waiting, is_only_busy(netns, accepting)) {
        (Emptied::Unknown, true) => by_counter(netns, queue),
        _ => by_waiting,
    }
}

/// Who came at once after a pause waits for about as long as the others; who came one by one, as others
/// were accepted, does not.
fn by_waiting(window: &Window, netns: &Netns, queue: &Queue, accepting: &Accepting) -> Emptied {
    let (limit, port) = (queue.listener.limit as usize, queue.listener.port);
    let is_told =
        |ages: &[f64]| ages.len() >= LEAST_WAITING && ages.len() * 4 >= limit * 3 && limit > 0;
    let span = |ages: &[f64]| {
        let longest = ages.iter().copied().fold(0.0, f64::max);
        (ages.iter().copied().fold(longest, f64::min), longest)
    };
    let came_at_once = |ages: &[f64]| {
        let (shortest, longest) = span(ages);
        is_told(ages) && shortest * 2.0 >= longest
    };
    let [before, after] = [&netns.before, &netns.after].map(|seen| ages(seen, port));
    let (_, longest) = span(&after);
    if !is_alone(netns, queue) || !ages_known(queue, &after) {
        return Emptied::Unknown;
    }
    // With longer pauses there was hardly more than one: nothing comes again and again.
    let is_short = longest * 3.0 <= window.seconds;
    let rate = accepting.accepted.map(|accepted| window.rate(accepted));
    #[expect(clippy::cast_precision_loss, reason = "a time")]
    let evenly_s = rate.map(|rate| after.len() as f64 / rate.max(0.001));
    match evenly_s.filter(|_| is_told(&after)) {
        _ if is_short && (came_at_once(&after) || came_at_once(&before)) => Emptied::InGulps,
        // They came faster than the others are accepted on average.
        Some(evenly_s) if is_short && longest * 3.0 < evenly_s => Emptied::InGulps,
        Some(evenly_s) if longest * 2.0 >= evenly_s && gap(after) * 2.0 < evenly_s => {
            Emptied::Slowly
        }
        _ => Emptied::Unknown,
    }
}

/// The longest time in which nobody came, since the first of those that wait.
fn gap(mut ages: Vec<f64>) -> f64 {
    ages.push(0.0);
    ages.sort_by(f64::total_cmp);
    let gaps = ages.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.fold(0.0, f64::max)
}

/// Whether most of those that wait were listed with their times.
fn ages_known(queue: &Queue, ages: &[f64]) -> bool {
    ages.len() * 4 >= queue.listener.queue as usize * 3
}

/// Most of the time nothing comes into the queue, and when something does, it fills it.
fn by_counter(netns: &Netns, queue: &Queue) -> Emptied {
    let admitted = netns.passive_opens.windows(2).map(|pair| pair[1] - pair[0]);
    let admitted: Vec<i64> = admitted.collect();
    let gulps = admitted.iter().filter(|count| **count > 0);
    let (count, sum) = gulps.fold((0, 0), |(count, sum), gulp| (count + 1, sum + gulp));
    let is_in_gulps = count > 0
        && admitted.len() >= LEAST_LOOKS
        && usize::try_from(count).is_ok_and(|count| count * 2 <= admitted.len())
        && sum >= count * i64::from(queue.listener.limit);
    if is_in_gulps {
        Emptied::InGulps
    } else {
        Emptied::Slowly
    }
}

/// Whether nearly all connections that came into queues of the namespace came into this one.
pub(super) fn is_only_busy(netns: &Netns, accepting: &Accepting) -> bool {
    let all = netns.grown("Tcp.PassiveOpens").unwrap_or(u64::MAX);
    netns.queues.len() == 1
        || accepting
            .came
            .is_some_and(|came| came.saturating_mul(20) >= all.saturating_mul(19))
}

/// Whether no other listener has the port.
pub(super) fn is_alone(netns: &Netns, queue: &Queue) -> bool {
    let mut others = netns.queues.iter();
    !others.any(|other| {
        other.listener.port == queue.listener.port && other.listener.ino != queue.listener.ino
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagnose::{accepting, fixtures::quiet},
        report::diagnosis::Confidence,
    };

    /// A queue of ten that is full at every look beside busy listeners, with these that wait at the end,
    /// of 200 that were accepted in 10 s.
    fn full(waiting_ms: Vec<u32>) -> Window {
        let mut window = quiet();
        window.listen(80, 511, &[0; 10]);
        window.listen(9100, 10, &[11; 10]);
        window.grow(&[("TcpExt.ListenOverflows", 900), ("Tcp.PassiveOpens", 1600)]);
        window.netns().passive_opens = (0..10).map(|look| look * 160).collect();
        window.waiting(9100, 11, 0);
        let clients = window.sockets().clients.get_mut(&9100).unwrap();
        clients.waiting_ms = waiting_ms;
        clients.held = 1;
        let group = [
            ("role", crate::report::Value::Word("server")),
            ("service_port", crate::report::Value::Unsigned(9100)),
        ];
        window.total("lifetimes", 200, &group);
        // Those that waited before the window are gone from its own list.
        let before = window.netns().before.sockets.as_mut().unwrap();
        before.clients.get_mut(&9100).unwrap().waiting_ms = (0..11).map(|n| n * 50).collect();
        window
    }

    fn ids_and_set(window: &Window) -> (&'static str, Vec<String>) {
        let findings = window.findings();
        let set = findings[0].fixes.iter().flat_map(|fix| &fix.set);
        (findings[0].id, set.map(|(name, _)| name.clone()).collect())
    }

    #[test]
    fn gulps_are_seen_beside_the_healthy_traffic_of_other_listeners() {
        // All came 600 ms ago, within 50 ms, as soon as the queue had been emptied.
        let window = full((0..11).map(|number| 600 - number * 5).collect());
        assert_eq!(
            ids_and_set(&window),
            ("accept-queue-overflow", vec!["listen_backlog".to_owned()])
        );
        // A part of it is taken, again and again: nobody knows what a longer one would do.
        let window = full(
            (0..11)
                .map(|n| if n < 4 { 1500 - n } else { 700 - n })
                .collect(),
        );
        assert_eq!(window.findings()[0].confidence, Confidence::Low);
        // One every 50 ms, as others were accepted.
        let window = full((0..11).map(|number| number * 50).collect());
        assert_eq!(
            ids_and_set(&window),
            ("application-not-accepting", vec!["workers".to_owned()])
        );
    }

    #[test]
    fn who_cannot_be_told_from_others_is_less_certain_and_a_longer_queue_is_not_ruled_out() {
        let certain = full((0..11).map(|number| number * 50).collect());
        let mut unsure = certain.clone();
        unsure.sockets().clients.clear();
        let [certain, unsure] = [certain, unsure].map(|window| window.findings().remove(0));
        assert_eq!(certain.id, unsure.id);
        assert!(unsure.confidence < certain.confidence);
        assert_eq!(unsure.confidence, Confidence::Low);
        let rules_out = |found: &crate::report::diagnosis::Finding| {
            let mut fixes = found.fixes.iter();
            fixes.any(|fix| fix.text.contains("do not make the queue longer"))
        };
        assert!(rules_out(&certain) && !rules_out(&unsure));
    }

    #[test]
    fn a_stall_is_as_long_as_all_who_waited_still_wait() {
        let mut window = quiet();
        // Accepted at once for 6 s, then nothing: 20/s pile up.
        window.listen(8080, 4096, &[0, 0, 0, 0, 0, 0, 20, 40, 60, 80]);
        window.waiting(8080, 0, 0);
        let waiting = (0..80).map(|number| number * 50).collect();
        let clients = window.sockets().clients.get_mut(&8080).unwrap();
        clients.waiting_ms = waiting;
        let netns = &window.namespaces[0];
        let found = stall(&window, netns, &netns.queues[0]).unwrap();
        assert!((found.seconds - 3.0).abs() < 0.1, "{found:?}");
        assert!(!found.is_whole);
        // A slow one has accepted some of those.
        let slow = &mut window.netns().queues[0];
        slow.depths = vec![40, 45, 50, 55, 60, 65, 70, 75, 80, 80];
        let netns = &window.namespaces[0];
        let found = stall(&window, netns, &netns.queues[0]);
        assert!(found.is_none_or(|found| found.seconds < 0.5), "{found:?}");
        let (came, accepted) = lately(&window, netns, &netns.queues[0]).unwrap();
        assert!((15.0..25.0).contains(&came), "{came}");
        assert!((15.0..20.0).contains(&accepted), "{accepted}");
        let accepting = accepting::of(&window, netns, &netns.queues[0]);
        assert!(!accepting.is_stalled());
    }
}
