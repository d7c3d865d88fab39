//! Listeners whose queue has room, but whose application accepts nothing for a second or more, again and again: their
//! clients wait, and none is turned away.

use super::super::super::{
    accepting,
    finding::finding,
    overflow,
    pause::{self, Pause},
    sizing::counted,
    window::{Netns, Queue, Window},
};
use super::RULE;
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// Pauses that take up a smaller share of the window are a note.
const LARGE: f64 = 0.5;

/// The listeners of a namespace that have such pauses, but for those at ports that are told already. What overflows is
/// told by accept-queue-overflow.
pub(super) fn of(window: &Window, netns: &Netns, told: &[u16]) -> Vec<Finding> {
    let Ok(overflows) = overflow::of(window, netns) else {
        return Vec::new();
    };
    let is_told = |port: u16| {
        let mut overflowing = overflows.iter().filter_map(|overflow| overflow.port);
        told.contains(&port) || overflowing.any(|other| other == port)
    };
    let queues = netns.queues.iter();
    let queues = queues.filter(|queue| !is_told(queue.listener.port));
    let found = queues.filter_map(|queue| {
        let accepting = accepting::of(window, netns, queue);
        let mut pauses = pause::certain(window, netns, queue, &accepting);
        pauses.retain(Pause::is_sure);
        (!pauses.is_empty()).then(|| describe(window, netns, queue, &pauses))
    });
    found.collect()
}

fn describe(window: &Window, netns: &Netns, queue: &Queue, pauses: &[Pause]) -> Finding {
    let holder = window.holder(&queue.listener);
    let comm = holder.map_or("the application", |process| process.comm.as_str());
    let longest_s = pauses.iter().map(|pause| pause.seconds).fold(0.0, f64::max);
    let all_s: f64 = pauses.iter().map(|pause| pause.seconds).sum();
    let waiting = pauses.iter().map(|pause| pause.waiting).max().unwrap_or(0);
    let lasts = pauses.last().is_some_and(|pause| pause.lasts);
    let accepts = match (pauses.len(), lasts) {
        (1, true) => format!("has not accepted for {longest_s:.1} s so far"),
        (1, false) => format!("did not accept for {longest_s:.1} s in one piece"),
        _ => format!("does not accept for up to {longest_s:.1} s in one piece, again and again"),
    };
    let severity = if all_s >= window.seconds * LARGE {
        Severity::Warning
    } else {
        Severity::Info
    };
    let who = holder.map_or("the application".to_owned(), |process| {
        format!("pid {}", process.pid)
    });
    finding(
        RULE.id,
        severity,
        Confidence::Medium,
        format!(
            "{comm} at port {}{} {accepts}: up to {waiting} connections waited for that in its queue of {}, and none was \
             turned away",
            queue.listener.port,
            netns.place(),
            queue.listener.limit
        ),
    )
    .measured(
        format!(
            "nothing was accepted for {all_s:.1} of {:.1} s, in {}, while somebody waited all the time",
            window.seconds,
            counted(pauses.len() as u64, "pause")
        ),
        all_s,
        "s",
        "Tcp.PassiveOpens, sock_diag",
    )
    .measured(
        format!("{:.1} connections/s come to it", pauses[0].arrivals),
        pauses[0].arrivals,
        "connections/s",
        "sock_diag, lifetimes",
    )
    .hits([window.affected_listener(netns, &queue.listener)])
    .application(
        format!(
            "find out why {who} does not call accept() for {longest_s:.1} s: {}",
            pause::REASONS
        ),
        &[],
        "none",
    )
}
