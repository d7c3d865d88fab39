//! A process, or the machine, has no file descriptors left: accept() fails and the queue fills.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named, process},
    sizing::{roomy, seconds_left, spoken},
    window::{Netns, Window, ratio},
};
use crate::{
    observe::processes::Process,
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "fd-exhaustion",
    title: "file descriptors are used up",
    check,
    explanation: Explanation {
        symptom: "\"Too many open files\" in the log of a server; new clients hang while old ones work.",
        cause: "accept4(), socket() and open() take a descriptor (__alloc_fd(), alloc_fd()); above RLIMIT_NOFILE of the \
                process they return -EMFILE, above fs.file-max of the machine -ENFILE. accept4() fails without taking \
                the connection, so the accept queue fills up behind it.",
        recognised: "A process that holds a listener has as many descriptors open as its limit allows. It is critical \
                     when connections wait in its queue meanwhile. From 90 % on it is a warning.",
        fixes: &[
            (
                "raise LimitNOFILE= of the unit (systemctl edit), then restart; prlimit --nofile for a running process",
                "select(2) cannot handle descriptors above 1023",
            ),
            (
                "find the leak, if the number only ever grows: ls -l /proc/PID/fd",
                "none",
            ),
        ],
    },
};

const NEARLY: f64 = 0.9;

fn check(window: &Window) -> Verdict {
    let mut found: Vec<Finding> = machine(window).into_iter().collect();
    let processes = window.processes.by_pid.values();
    found.extend(processes.filter_map(|process| exhausted(window, process)));
    if !found.is_empty() {
        Verdict::Found(found)
    } else if window.processes.is_cut {
        Verdict::NotEnoughData("there are too many processes to look at them all".to_owned())
    } else {
        Verdict::Ok
    }
}

/// The listener of a process with most connections waiting.
fn waiting<'a>(window: &'a Window, holder: &Process) -> Option<(&'a Netns, u16, u32)> {
    let queues = window
        .namespaces
        .iter()
        .flat_map(|netns| netns.queues.iter().map(move |queue| (netns, queue)));
    queues
        .filter(|(_, queue)| holder.sockets.contains(&queue.listener.ino))
        .map(|(netns, queue)| (netns, queue.listener.port, queue.listener.queue))
        .max_by_key(|(_, _, waiting)| *waiting)
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn exhausted(window: &Window, holder: &Process) -> Option<Finding> {
    let used = ratio(holder.fds, holder.fd_limit);
    if used < NEARLY || holder.sockets.is_empty() {
        return None;
    }
    let is_full = holder.fds + 1 >= holder.fd_limit;
    let waiting = waiting(window, holder);
    let queued = waiting.map_or(0, |(_, _, queued)| queued);
    let place = waiting.map_or(String::new(), |(netns, port, _)| {
        format!(" at port {port}{}", netns.place())
    });
    let severity = if is_full && queued > 0 {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let what = if is_full {
        format!("has no file descriptors left; {queued} connections wait to be accepted")
    } else {
        format!(
            "will soon have no file descriptors left{}",
            forecast(window, holder)
        )
    };
    let found = finding(
        RULE.id,
        severity,
        if is_full && queued > 0 {
            Confidence::High
        } else {
            Confidence::Medium
        },
        format!(
            "{} (pid {}){place} {what}: {} of {}",
            holder.comm, holder.pid, holder.fds, holder.fd_limit
        ),
    )
    .counted(
        format!("{} descriptors of {} are open", holder.fds, holder.fd_limit),
        holder.fds,
        "descriptors",
        "/proc/PID/fd, RLIMIT_NOFILE",
    )
    .counted(
        format!("{queued} connections wait in its accept queue"),
        queued.into(),
        "connections",
        "sock_diag",
    )
    .hits([process(
        Some(holder.pid),
        Some(holder.comm.clone()),
        waiting.map(|(netns, ..)| netns.inode),
    )])
    .hits(waiting.map(|(netns, port, _)| {
        let mut listener = named("listener", format!("port {port}"), Some(netns.inode));
        listener.port = Some(port);
        listener.pid = Some(holder.pid);
        listener.comm = Some(holder.comm.clone());
        listener
    }));
    Some(fixes(found, holder, queued))
}

/// When the last one is gone, if their number grows.
fn forecast(window: &Window, holder: &Process) -> String {
    let before = window.processes_before.by_pid.get(&holder.pid);
    let growth = before.map_or(0, |before| holder.fds.saturating_sub(before.fds));
    seconds_left(holder.fds, holder.fd_limit, window.rate(growth)).map_or(String::new(), |left| {
        format!(" (in {} at this rate)", spoken(left))
    })
}

fn fixes(found: Finding, holder: &Process, queued: u32) -> Finding {
    let needed = holder.fds + u64::from(queued);
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy(needed as f64).max(4096);
    let unit = holder
        .unit
        .as_deref()
        .map_or("its unit".to_owned(), str::to_owned);
    found
        .application(
            format!(
                "set LimitNOFILE={wanted} in {unit} ({} open + {queued} waiting, and half as much again) and restart it",
                holder.fds
            ),
            &[("LimitNOFILE", wanted.to_string())],
            "select(2) cannot handle descriptors above 1023",
        )
        .command(
            format!("without a restart: prlimit --pid {} --nofile={wanted}:{wanted}", holder.pid),
            "gone when it restarts",
        )
}

fn machine(window: &Window) -> Option<Finding> {
    let (used, max) = window.files?;
    if ratio(used, max) < NEARLY {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy(used as f64);
    let severity = if used >= max {
        Severity::Critical
    } else {
        Severity::Warning
    };
    Some(
        finding(
            RULE.id,
            severity,
            Confidence::High,
            format!(
                "the machine has {used} of {max} files open: soon nothing can be opened (ENFILE)"
            ),
        )
        .counted(
            format!("{used} files of {max}"),
            used,
            "files",
            "/proc/sys/fs/file-nr",
        )
        .sysctl(
            format!("raise the limit: {used} and half as much again"),
            &[("fs.file-max", wanted.to_string())],
            "kernel memory: about 256 bytes for each file",
        ),
    )
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, report::diagnosis::Severity};

    #[test]
    fn a_server_without_descriptors_comes_before_its_full_queue() {
        let mut window = quiet();
        window.listen(80, 10, &[11; 10]);
        window.grow(&[("TcpExt.ListenOverflows", 50)]);
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        (server.fds, server.fd_limit) = (64, 64);
        let findings = window.findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("fd-exhaustion", Severity::Critical)
        );
        assert_eq!(findings[0].fixes[0].set[0].1, "4096");
        assert_eq!(findings[1].id, "application-not-accepting");
        assert_eq!(findings[1].behind, Some("fd-exhaustion"));
    }

    #[test]
    fn a_server_near_its_limit_is_a_warning_with_a_forecast() {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        window.processes_before = window.processes.clone();
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        server.fds = 1000;
        let findings = window.findings();
        assert_eq!(findings[0].severity, Severity::Warning);
        // 24 are left, and 98 more are taken each second.
        assert!(
            findings[0].summary.contains("(in 0 s at this rate)"),
            "{}",
            findings[0].summary
        );
    }

    #[test]
    fn a_machine_without_files_is_found() {
        let mut window = quiet();
        window.files = Some((99_000, 100_000));
        assert_eq!(window.ids(), ["fd-exhaustion"]);
    }
}
