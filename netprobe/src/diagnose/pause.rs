//! The times within a window in which an application accepted nothing from a listener's queue though somebody waited in it,
//! from how full the queue was and how many connections came in between looks.

use super::{
    accepting::Accepting,
    fifo,
    window::{Netns, Queue, Window},
};

/// Shorter ones are how applications work.
const LEAST_S: f64 = 1.0;
/// Queues and counters are not read in the same instant: so many may seem to have been accepted in a pause.
const SLACK: f64 = 2.0;
/// What is accepted from others in a pause is no more than this part of what comes in as much time.
const FEW: f64 = 0.1;

/// Fewer that wait are no measure of what came in a pause.
const MANY: u32 = 10;

/// Why an application does not accept for a while.
pub(super) const REASONS: &str = "garbage collection, a lock, a blocking call in the thread that accepts, a stop (SIGSTOP, \
                                  cgroup freezer, CPU quota)";

/// A time in which nothing was accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pause {
    /// For how long, at least.
    pub(super) seconds: f64,
    /// Whether it lasted when the window began.
    pub(super) is_older: bool,
    /// Whether it lasts at the end of the window.
    pub(super) lasts: bool,
    /// Whether it was the application, rather than bursts for which the queue was full in one piece.
    pub(super) is_certain: bool,
    /// Connections that come each second, as far as they are known.
    pub(super) arrivals: f64,
    /// How many waited when it ended.
    pub(super) waiting: u32,
}

/// A look at the queue.
#[derive(Clone, Copy)]
struct Look {
    /// How many seconds before the end.
    ago: f64,
    /// How many waited.
    depth: u32,
    /// How many had come so far into any queue of the namespace.
    came: i64,
}

/// The longest pause, if there was one.
pub(super) fn longest(
    window: &Window,
    netns: &Netns,
    queue: &Queue,
    accepting: &Accepting,
) -> Option<Pause> {
    let longest = |pauses: Vec<Pause>| {
        let mut pauses = pauses.into_iter();
        let first = pauses.next()?;
        Some(pauses.fold(first, |longest, pause| {
            if pause.seconds > longest.seconds {
                pause
            } else {
                longest
            }
        }))
    };
    if let Some(pause) = longest(certain(window, netns, queue, accepting)) {
        return Some(pause);
    }
    // Where others are accepted from meanwhile, the counter does not tell whom.
    if fifo::is_only_busy(netns, accepting) {
        return None;
    }
    let limit = queue.listener.limit.max(1);
    let looks = looks(window, netns, queue)?;
    let full = stretches(&looks, |from, to| from.depth >= limit && to.depth >= limit);
    let rate = arrivals(window, netns, accepting).unwrap_or(0.0);
    let full = full
        .into_iter()
        .map(|ends| pause(&looks, ends, (rate, false)));
    longest(full.collect())
}

/// Each time in which it was the application that did not accept, in order.
pub(super) fn certain(
    window: &Window,
    netns: &Netns,
    queue: &Queue,
    accepting: &Accepting,
) -> Vec<Pause> {
    let looks = looks(window, netns, queue);
    let Some((looks, arrivals)) = looks.zip(arrivals(window, netns, accepting)) else {
        return Vec::new();
    };
    let accepted = |from: &Look, to: &Look| {
        #[expect(clippy::cast_precision_loss, reason = "a few connections")]
        let came = (to.came - from.came) as f64;
        came - (f64::from(to.depth) - f64::from(from.depth))
    };
    let found = stretches(&looks, |from, to| {
        let few = (arrivals * (from.ago - to.ago) * FEW).max(SLACK);
        to.depth > 0 && accepted(from, to) <= few
    });
    let found = found.into_iter();
    found
        .map(|ends| pause(&looks, ends, (arrivals, true)))
        .collect()
}

impl Pause {
    /// Whether so many came in it that a few which seem to have been accepted are a mistake of the two counts.
    pub(super) fn is_sure(&self) -> bool {
        self.arrivals * self.seconds * FEW >= SLACK && self.waiting >= MANY
    }
}

fn pause(looks: &[Look], (from, to): (usize, usize), (arrivals, is_certain): (f64, bool)) -> Pause {
    Pause {
        seconds: looks[from].ago - looks[to].ago,
        is_older: from == 0,
        lasts: to + 1 == looks.len(),
        is_certain,
        arrivals,
        waiting: looks[to].depth,
    }
}

/// The looks, where as many were counted as the queue was looked at.
fn looks(window: &Window, netns: &Netns, queue: &Queue) -> Option<Vec<Look>> {
    let depths = fifo::looks(window, netns, queue);
    let counts = &netns.passive_opens;
    let looks = if netns.looks.is_empty() {
        depths.len()
    } else {
        netns.looks.len()
    };
    let is_told = counts.len() == looks;
    let first = counts.len().checked_sub(depths.len()).filter(|_| is_told)?;
    let looks = depths.into_iter().zip(&counts[first..]);
    Some(
        looks
            .map(|((ago, depth), came)| Look {
                ago,
                depth,
                came: *came,
            })
            .collect(),
    )
}

/// Connections that come to it each second, each counted once: of the whole window, in which those that were turned away
/// came again.
fn arrivals(window: &Window, netns: &Netns, accepting: &Accepting) -> Option<f64> {
    let all = netns.grown("Tcp.PassiveOpens").ok();
    let own = accepting.came.or(all.filter(|_| netns.queues.len() == 1))?;
    (own > 0).then(|| window.rate(own))
}

/// The longest run of looks by its first and last, in which somebody always waits after the first, and of which `is_one`
/// holds of the first and each later one; and the longest of those before and after it.
fn stretches(looks: &[Look], is_one: impl Fn(&Look, &Look) -> bool) -> Vec<(usize, usize)> {
    let seconds = |(from, to): (usize, usize)| looks[from].ago - looks[to].ago;
    let runs = looks.iter().enumerate().map(|(from, first)| {
        let later = looks[from + 1..].iter();
        (
            from,
            from + later.take_while(|look| is_one(first, look)).count(),
        )
    });
    let mut runs: Vec<_> = runs
        .filter(|run| looks[run.0].depth > 0 && seconds(*run) >= LEAST_S)
        .collect();
    // Of equal ones the first.
    runs.sort_by(|a, b| seconds(*b).total_cmp(&seconds(*a)));
    let mut apart: Vec<(usize, usize)> = Vec::new();
    for run in runs {
        if apart
            .iter()
            .all(|other| run.1 <= other.0 || run.0 >= other.1)
        {
            apart.push(run);
        }
    }
    apart.sort_unstable();
    apart
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnose::fixtures::quiet, report::Value};

    /// 40 come each second for 10 s to a queue of 32, which is looked at ten times a second; between the looks `from` and
    /// `to` nobody accepts, or `slowly` so many at each.
    fn paused(from: usize, to: usize, slowly: u32) -> Window {
        let mut window = quiet();
        let (mut depth, mut came, mut turned_away) = (0, 0, 0);
        let (mut depths, mut opens, mut overflows) = (Vec::new(), Vec::new(), Vec::new());
        for look in 0..100 {
            let room = 33 - depth;
            let arrive = 4.min(
                room + if (from..to).contains(&look) {
                    slowly
                } else {
                    4
                },
            );
            came += i64::from(arrive);
            turned_away += i64::from(4 - arrive);
            depth = if (from..to).contains(&look) {
                (depth + arrive).saturating_sub(slowly)
            } else {
                0
            };
            depths.push(depth);
            opens.push(came);
            overflows.push(turned_away);
        }
        window.listen(9000, 32, &depths);
        window.grow(&[
            ("Tcp.PassiveOpens", came + turned_away),
            ("TcpExt.ListenOverflows", turned_away),
        ]);
        window.netns().passive_opens = opens;
        window.netns().listen_overflows = overflows;
        window
    }

    fn summary_and_fixes(window: &Window) -> (String, Vec<String>) {
        let findings = window.findings();
        let found = &findings[0];
        assert_eq!(found.id, "accept-queue-overflow");
        let fixes = found.fixes.iter().map(|fix| fix.text.clone());
        (found.summary.clone(), fixes.collect())
    }

    #[test]
    fn a_pause_of_the_application_is_no_burst_and_its_length_sizes_the_queue() {
        let window = paused(20, 50, 0);
        let (summary, fixes) = summary_and_fixes(&window);
        assert!(
            summary.contains("server did not accept for 2.9 s") && !summary.contains("burst"),
            "{summary}"
        );
        assert!(fixes[0].contains("find out why pid 100"), "{fixes:?}");
        assert!(
            fixes[1].contains("40.0 arrivals/s x 2.9 s without accept()"),
            "{fixes:?}"
        );
        // It began before the window.
        let (summary, _) = summary_and_fixes(&paused(0, 30, 0));
        assert!(
            summary.contains("did not accept for 2.9 s or more"),
            "{summary}"
        );
    }

    #[test]
    fn a_pause_that_lasts_is_not_told_as_over_and_gives_no_size() {
        let (summary, fixes) = summary_and_fixes(&paused(80, 100, 0));
        let said = "is full now; in 10 s 47 attempts were turned away: server has not accepted for 1.9 s so far";
        assert!(summary.contains(said), "{summary}");
        assert!(
            fixes[0].contains("find out why pid 100 does not call accept()"),
            "{fixes:?}"
        );
        assert!(fixes[1].contains("look again once it accepts"), "{fixes:?}");
        // One that is over is no "now and then".
        let (summary, _) = summary_and_fixes(&paused(20, 50, 0));
        assert!(summary.contains("was full for a while;"), "{summary}");
    }

    #[test]
    fn who_accepts_slowly_for_a_while_does_not_pause() {
        let (summary, fixes) = summary_and_fixes(&paused(20, 50, 2));
        assert!(summary.contains("too short for the bursts"), "{summary}");
        assert!(!fixes[0].contains("find out why"), "{fixes:?}");
    }

    #[test]
    fn beside_others_that_are_accepted_from_nobody_knows_which_it_was() {
        let mut window = paused(20, 50, 0);
        window.listen(80, 511, &[0; 100]);
        for (look, opens) in window.netns().passive_opens.iter_mut().enumerate() {
            *opens += i64::try_from(look).unwrap() * 50;
        }
        window.grow(&[("Tcp.PassiveOpens", 5000)]);
        let (summary, _) = summary_and_fixes(&window);
        assert!(
            summary.contains("full for 2.2 s in one piece")
                && summary.contains("or server did not accept"),
            "{summary}"
        );
        // Its own connections, where they are known: others are few.
        let mut window = paused(20, 50, 0);
        window.listen(80, 511, &[0; 100]);
        window.serving(9000, 1, 400);
        let ended = [
            ("role", Value::Word("server")),
            ("service_port", Value::Unsigned(80)),
        ];
        window.total("lifetimes", 20, &ended);
        let (summary, _) = summary_and_fixes(&window);
        assert!(summary.contains("did not accept for 2.9 s"), "{summary}");
    }
}
