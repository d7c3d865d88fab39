//! A server that had no descriptors left for a part of the window, while connections waited, and has some again.

use std::time::Duration;

use super::{
    super::super::{finding::finding, sizing, window::Window},
    MOST_NAMED, RULE, fixes, hit, listener, queues, who,
};
use crate::{
    observe::{descriptors::Peak, processes::Process},
    report::diagnosis::{Confidence, Finding, Severity},
};

/// Less was a moment.
const LEAST: Duration = Duration::from_millis(500);

/// The most that a process had open, if it had none left then, and has some now.
pub(super) fn peak<'a>(window: &'a Window, process: &Process) -> Option<&'a Peak> {
    let peak = window.peaks.get(&process.pid)?;
    let was_full = peak.most + 1 >= process.fd_limit && peak.full >= LEAST;
    let is_full = process.fds + 1 >= process.fd_limit;
    (was_full && !is_full && !process.sockets.is_empty()).then_some(peak)
}

/// The finding, if any of the processes of a service was in want, and none is.
pub(super) fn check(window: &Window, holders: &[&Process]) -> Option<Finding> {
    let in_want = holders.iter().filter_map(|holder| {
        let peak = peak(window, holder)?;
        Some((*holder, peak))
    });
    let in_want: Vec<_> = in_want.collect();
    let longest = in_want.iter().max_by_key(|(_, peak)| peak.full);
    let (holder, peak) = longest.filter(|_| in_want.len() == holders.len())?;
    // One more for a moment, as a descriptor is given back late.
    let most = peak.most.min(holder.fd_limit);
    let waiting = queues(window, holder).max_by_key(|(_, queue)| queue.deepest());
    let (place, queued) = waiting.map_or((String::new(), 0), |(netns, queue)| {
        let port = queue.listener.port;
        (format!(" at port {port}{}", netns.place()), queue.deepest())
    });
    let who = who(holders, holder);
    let told = waiting.map(|(netns, queue)| (netns, queue.listener.port, queued));
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::High,
        format!(
            "{who}{place} had no file descriptors left for {:.1} s of {:.0} ({} of {} were open, {} are now); meanwhile up to {} waited to be accepted",
            peak.full.as_secs_f64(),
            window.seconds,
            most,
            holder.fd_limit,
            holder.fds,
            sizing::counted(queued.into(), "connection")
        ),
    )
    .counted(
        format!(
            "{most} descriptors of {} were open in pid {}, for {:.1} s",
            holder.fd_limit,
            holder.pid,
            peak.full.as_secs_f64()
        ),
        most,
        "descriptors",
        "/proc/PID/fd, RLIMIT_NOFILE",
    )
    .counted(
        format!("up to {} in the accept queue", sizing::waiting(queued)),
        queued.into(),
        "connections",
        "sock_diag",
    )
    .hits([hit(holder, told)])
    .hits(told.map(|(netns, port, _)| listener(holder, netns, port)));
    let pids: Vec<u32> = holders.iter().map(|holder| holder.pid).collect();
    let others = in_want.iter().filter(|(other, _)| other.pid != holder.pid);
    let found = found.hits(
        others
            .take(MOST_NAMED - 1)
            .map(|(other, _)| hit(other, told)),
    );
    let at_peak = Process {
        fds: most,
        ..(*holder).clone()
    };
    Some(fixes(found, (&at_peak, false), &pids, queued))
}
