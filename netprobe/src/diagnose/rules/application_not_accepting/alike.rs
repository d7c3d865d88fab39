//! Listeners of the same processes that nobody accepts from, such as those of a process that hangs, or that a port scan has left
//! connections at: one finding, of the worst of them.

use std::cmp::Reverse;

use super::{
    super::super::sizing::{counted, several},
    case::Case,
};
use crate::report::diagnosis::Finding;

/// More ports are not named.
const MOST_NAMED: usize = 8;

/// A listener, and others that are like it.
pub(super) struct Alike<'a, 'b> {
    worst: &'b Case<'a>,
    others: Vec<&'b Case<'a>>,
}

impl<'a, 'b> Alike<'a, 'b> {
    /// Puts together those that are alike.
    pub(super) fn all(cases: &'b [Case<'a>]) -> Vec<Self> {
        let mut worst_first: Vec<&Case<'a>> = cases.iter().collect();
        let depth = |case: &Case<'_>| case.queue.deepest();
        worst_first.sort_by_key(|case| (Reverse((case.severity(), depth(case))), case.port()));
        let mut all: Vec<Self> = Vec::new();
        for case in worst_first {
            match all.iter_mut().find(|alike| alike.takes(case)) {
                Some(alike) => alike.others.push(case),
                None => all.push(Self {
                    worst: case,
                    others: Vec::new(),
                }),
            }
        }
        for alike in &mut all {
            alike.others.sort_by_key(|case| case.port());
        }
        all
    }

    fn takes(&self, case: &Case<'_>) -> bool {
        let both = [self.worst, case];
        both.iter().all(|case| is_plain(case))
            && self.worst.netns.inode == case.netns.inode
            && holders(self.worst) == holders(case)
    }

    /// One finding for all.
    pub(super) fn describe(&self) -> Finding {
        let mut found = self.worst.describe();
        if self.others.is_empty() {
            return found;
        }
        let count = self.others.len() as u64;
        let more = several(count, "more listener", "more listeners");
        found.summary = format!("{}; likewise at {more} of {}", found.summary, self.whose());
        let ports = self.others.iter().map(|case| case.port().to_string());
        let mut named: Vec<String> = ports.take(MOST_NAMED).collect();
        if self.others.len() > MOST_NAMED {
            named.push("...".to_owned());
        }
        let queued = self.others.iter();
        let queued = queued
            .map(|case| u64::from(case.queue.listener.queue))
            .sum();
        let listeners = self.others.iter();
        let listeners = listeners.map(|case| {
            case.window
                .affected_listener(case.netns, &case.queue.listener)
        });
        found
            .counted(
                format!(
                    "{} in the queues of the others, at {} {}",
                    counted(queued, "connection"),
                    if count == 1 { "port" } else { "ports" },
                    named.join(", ")
                ),
                queued,
                "connections",
                "sock_diag",
            )
            .hits(listeners)
    }

    /// Whose listeners they are.
    fn whose(&self) -> String {
        match holders(self.worst).as_slice() {
            [] => "processes that are not known".to_owned(),
            [pid] => format!("pid {pid}"),
            pids => format!("its {} processes", pids.len()),
        }
    }
}

/// Whether all there is to say of a listener is that nobody accepts from it.
fn is_plain(case: &Case<'_>) -> bool {
    (case.accepting.is_stuck() || case.accepting.is_left)
        && case.overflow.is_none()
        && case.waits_for.is_none()
        && case.silent().is_none()
        && case.before.is_empty()
}

/// The processes that have a listener, by their ids.
fn holders(case: &Case<'_>) -> Vec<u32> {
    let holders = case.window.processes.holders(case.queue.listener.ino);
    let mut pids: Vec<u32> = holders.map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}
