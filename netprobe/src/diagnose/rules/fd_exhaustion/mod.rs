//! A process, or the machine, has no file descriptors left: accept() fails and the queue fills, or
//! nothing can be connected to.

use std::collections::{BTreeMap, BTreeSet};

mod past;
mod turned_away;

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named, process},
    sizing::{self, SPARED, roomy, seconds_left, spoken},
    window::{Netns, Queue, Window, ratio},
};
use crate::{
    observe::processes::Process,
    report::diagnosis::{Affected, Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "fd-exhaustion",
    title: "file descriptors are used up",
    check,
    explanation: Explanation {
        symptom: "\"Too many open files\" in the log of a server or a client; new connections hang or fail while old \
                  ones work.",
        cause: "accept4(), socket() and open() take a descriptor (__alloc_fd(), alloc_fd()); above RLIMIT_NOFILE of the \
                process they return -EMFILE, above fs.file-max of the machine -ENFILE. accept4() fails without taking \
                the connection, so the accept queue fills up behind it.",
        recognised: "A process that holds a listener has as many descriptors open as its limit allows. It is critical \
                     when connections wait in its queue meanwhile, or are closed unserved as soon as they are accepted (libuv keeps a \
                     descriptor in reserve for that). While connections wait it is looked at again and again: where none was left for half a \
                     second or more, and some are at the end, it is a warning. From 90 % on it is a warning. Processes that hold \
                     the same listeners, as preforked workers do, are one finding. From 70 % on it is one, too, where the number \
                     grows so that none is left within 10 min, and from 50 % on within 1 min. A process that only connects is \
                     weighed when it holds a TCP socket or was seen to connect: critical when it is at its limit from the \
                     beginning to the end, runs, and no connect of it gets through meanwhile; else a warning, as nothing \
                     shows that it wants more.",
        fixes: &[
            (
                "raise LimitNOFILE= of the unit (systemctl edit), then restart; prlimit --nofile for a running process; where it \
                 lowers its own limit (nginx worker_rlimit_nofile), there",
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
/// From here on a forecast is worth a warning.
const FILLING: f64 = 0.7;
/// From here on it is, if none is left within a minute.
const BEGUN: f64 = 0.5;
/// In seconds.
const SOON_S: f64 = 60.0;
/// What fills later than this is not forecast.
const HORIZON_S: f64 = 600.0;
/// By less than this part of the limit the number may well swing.
const SWING: f64 = 0.03;
/// So few more are no leak.
const LEAST_GROWN: f64 = 4.0;
/// No server is given less.
const LEAST_WANTED: u64 = 4096;
/// Most processes of a service that are named.
const MOST_NAMED: usize = 8;

fn check(window: &Window) -> Verdict {
    let mut found: Vec<Finding> = machine(window).into_iter().collect();
    for holders in services(window) {
        found.extend(past::check(window, &holders).or_else(|| exhausted(window, &holders)));
    }
    if !found.is_empty() {
        Verdict::Found(found)
    } else if window.processes.is_cut {
        Verdict::NotEnoughData("there are too many processes to look at them all".to_owned())
    } else if window.processes.are_holders_hidden {
        Verdict::NotEnoughData("processes of other users cannot be looked at".to_owned())
    } else {
        Verdict::Ok
    }
}

/// The listener of a process with most connections waiting.
fn waiting<'a>(window: &'a Window, holder: &Process) -> Option<(&'a Netns, u16, u32)> {
    let queues = queues(window, holder);
    let waiting = queues.map(|(netns, queue)| (netns, queue.listener.port, queue.listener.queue));
    waiting.max_by_key(|(_, _, waiting)| *waiting)
}

/// The queues of the listeners of a process.
fn queues<'a>(
    window: &'a Window,
    holder: &Process,
) -> impl Iterator<Item = (&'a Netns, &'a Queue)> {
    let queues = window
        .namespaces
        .iter()
        .flat_map(|netns| netns.queues.iter().map(move |queue| (netns, queue)));
    queues.filter(|(_, queue)| holder.sockets.contains(&queue.listener.ino))
}

/// What processes have in common that are one service: their listeners, or where they have none their name and place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Service<'a> {
    Of(BTreeSet<u64>),
    Client(&'a str, Option<u32>),
}

/// The processes that are near their limit, or at it where they hold no listener; those of one service, such as
/// preforked workers, together. The fullest comes first.
fn services(window: &Window) -> Vec<Vec<&Process>> {
    let mut services: BTreeMap<Service<'_>, Vec<&Process>> = BTreeMap::new();
    for process in window.processes.by_pid.values() {
        let service = if !process.sockets.is_empty() {
            let is_near = ratio(process.fds, process.fd_limit) >= NEARLY;
            (is_near || left_s(window, process).is_some() || past::peak(window, process).is_some())
                .then(|| Service::Of(process.sockets.iter().copied().collect()))
        } else if (process.fds >= process.fd_limit || left_s(window, process).is_some())
            && connects(window, process)
        {
            Some(Service::Client(&process.comm, process.netns))
        } else {
            None
        };
        if let Some(service) = service {
            services.entry(service).or_default().push(process);
        }
    }
    let mut services: Vec<_> = services.into_values().collect();
    for holders in &mut services {
        holders.sort_by_key(|holder| (holder.fd_limit.saturating_sub(holder.fds), holder.pid));
    }
    services
}

/// Whether a process that only connects can open nothing any more: it was at its limit all the time, as far as was
/// seen, and ran, but none of its connects got through. One that sleeps wants nothing.
fn is_stuck(window: &Window, process: &Process) -> bool {
    let before = window.processes_before.by_pid.get(&process.pid);
    let is_full = |process: &Process| process.fds >= process.fd_limit;
    let mut connects = window.events.of("connects").iter();
    process.sockets.is_empty()
        && is_full(process)
        && before.is_some_and(|before| is_full(before) && process.threads_ns > before.threads_ns)
        && !connects.any(|connect| {
            connect.small("pid") == Some(process.pid) && connect.is("outcome", "established")
        })
}

/// Whether a process without a listener needs its descriptors for TCP, in a namespace that is watched.
fn connects(window: &Window, process: &Process) -> bool {
    let mut connects = window.events.of("connects").iter();
    home(window, process).is_some()
        && (process.has_tcp || connects.any(|connect| connect.small("pid") == Some(process.pid)))
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn exhausted(window: &Window, holders: &[&Process]) -> Option<Finding> {
    let holder = *holders.first()?;
    let is_client = holder.sockets.is_empty();
    let is_full = holder.fds + 1 >= holder.fd_limit;
    let waiting = waiting(window, holder);
    let queued = waiting.map_or(0, |(_, _, queued)| queued);
    let turned_away = turned_away::most(window, holder).filter(|_| is_full && queued == 0);
    // Of several listeners, that which fails.
    let waiting = turned_away.map_or(waiting, |(netns, port, _)| Some((netns, port, queued)));
    let place = match waiting {
        Some((netns, port, _)) => format!(" at port {port}{}", netns.place()),
        None if is_client => home(window, holder).map_or(String::new(), Netns::place),
        None => String::new(),
    };
    let who = who(holders, holder);
    let is_stuck = holders.iter().any(|holder| is_stuck(window, holder));
    let severity = if is_full && queued > 0 || is_stuck || turned_away.is_some() {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let open = format!("{} of {} are open", holder.fds, holder.fd_limit);
    let what = if let (false, Some(left)) = (is_full, left_s(window, holder)) {
        format!(
            "file descriptors for {} only: {open}, {:.1} more each second",
            spoken(left),
            growth(window, holder)
        )
    } else if is_client {
        format!("no file descriptors left ({open}): it can open no connection (EMFILE)")
    } else if let Some((.., closed)) = turned_away {
        format!(
            "no file descriptors left ({open}): it closed {} unserved",
            sizing::counted(closed, "connection")
        )
    } else if is_full {
        format!(
            "no file descriptors left ({open}); {} to be accepted",
            sizing::waiting(queued)
        )
    } else {
        format!("nearly no file descriptors left: {open}")
    };
    let found = finding(
        RULE.id,
        severity,
        if is_full && (queued > 0 || turned_away.is_some()) {
            Confidence::High
        } else {
            Confidence::Medium
        },
        format!(
            "{who}{place} {} {what}",
            if holders.len() == 1 { "has" } else { "have" },
        ),
    )
    .counted(
        format!(
            "{} descriptors of {} are open in pid {}",
            holder.fds, holder.fd_limit, holder.pid
        ),
        holder.fds,
        "descriptors",
        "/proc/PID/fd, RLIMIT_NOFILE",
    );
    let found = if is_client && is_stuck {
        found.counted(
            format!(
                "it had none left when the {:.0} s began either, ran in them, and opened no connection",
                window.seconds
            ),
            0,
            "connections",
            "/proc/PID/fd, connects",
        )
    } else if is_client {
        found
    } else {
        found.counted(
            format!("{} in the accept queue", sizing::waiting(queued)),
            queued.into(),
            "connections",
            "sock_diag",
        )
    };
    let found = match turned_away {
        Some((.., closed)) => found.counted(
            format!(
                "{closed} connections to it were reset because it closed them with data unread"
            ),
            closed,
            "connections",
            "resets",
        ),
        None => found,
    };
    let found = found
        .hits([hit(holder, waiting)])
        .hits(waiting.map(|(netns, port, _)| listener(holder, netns, port)))
        .hits(
            holders
                .iter()
                .take(MOST_NAMED)
                .skip(1)
                .map(|holder| hit(holder, waiting)),
        )
        .hits(beside(window, holder, waiting));
    let pids: Vec<u32> = holders.iter().map(|holder| holder.pid).collect();
    let is_growing = left_s(window, holder).is_some();
    Some(fixes(found, (holder, is_growing), &pids, queued))
}

/// The processes of a service, of which one is the worst.
fn who(holders: &[&Process], worst: &Process) -> String {
    match holders.len() {
        1 => format!("{} (pid {})", worst.comm, worst.pid),
        count => format!("{count} processes of {}", worst.comm),
    }
}

/// A listener of a process.
fn listener(holder: &Process, netns: &Netns, port: u16) -> Affected {
    let mut listener = named("listener", format!("port {port}"), Some(netns.inode));
    listener.port = Some(port);
    listener.pid = Some(holder.pid);
    listener.comm = Some(holder.comm.clone());
    listener
}

/// The listeners of a process where somebody waits, but for the one that is told.
fn beside(window: &Window, holder: &Process, told: Option<(&Netns, u16, u32)>) -> Vec<Affected> {
    let told = told.map(|(netns, port, _)| (netns.inode, port));
    let waiting = queues(window, holder)
        .filter(|(_, queue)| queue.listener.queue > 0)
        .map(|(netns, queue)| (netns, queue.listener.port))
        .filter(|(netns, port)| Some((netns.inode, *port)) != told);
    waiting
        .map(|(netns, port)| listener(holder, netns, port))
        .collect()
}

/// The namespace of a process, if it is watched.
fn home<'a>(window: &'a Window, process: &Process) -> Option<&'a Netns> {
    window.namespace(process.netns?)
}

/// A process that is hit, in the namespace of its listener, or its own where it has none.
fn hit(holder: &Process, waiting: Option<(&Netns, u16, u32)>) -> Affected {
    let own = holder.netns.filter(|_| holder.sockets.is_empty());
    let netns = waiting.map_or(own, |(netns, ..)| Some(netns.inode));
    process(Some(holder.pid), Some(holder.comm.clone()), netns)
}

/// By how many they become more each second.
fn growth(window: &Window, holder: &Process) -> f64 {
    let before = window.processes_before.by_pid.get(&holder.pid);
    let grown = before.map_or(0, |before| holder.fds.saturating_sub(before.fds));
    window.rate(grown)
}

/// When the last one is gone, if most are, and their number grows by more than it may swing.
fn left_s(window: &Window, holder: &Process) -> Option<f64> {
    let growth = growth(window, holder);
    let left = seconds_left(holder.fds, holder.fd_limit, growth)?;
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let swing = (holder.fd_limit as f64 * SWING).max(LEAST_GROWN);
    let share = ratio(holder.fds, holder.fd_limit);
    let is_filling = share >= FILLING && left <= HORIZON_S || share >= BEGUN && left <= SOON_S;
    (is_filling && growth * window.seconds >= swing).then_some(left)
}

/// Takes so many connections as it was told to, and sets its limit of descriptors by that.
const MEMCACHED: &str = "memcached";

/// Who must raise the limit of a process, and where: what started it, unless it has lowered its own.
fn where_to_raise(holder: &Process, wanted: u64) -> (String, &'static str) {
    if holder.comm == MEMCACHED {
        let text = format!(
            "have it take {wanted} connections (-c): it sets its own limit of descriptors by that"
        );
        return (text, "-c");
    }
    let place = match &holder.unit {
        Some(unit) => format!("set LimitNOFILE={wanted} in {unit}"),
        None => format!(
            "give it {wanted} where it is started (LimitNOFILE= of a unit, docker run --ulimit nofile={wanted}, ulimit -n)"
        ),
    };
    let lowered = holder
        .parent_fd_limit
        .filter(|parent| *parent > holder.fd_limit);
    let Some(parent) = lowered else {
        return (place, "LimitNOFILE");
    };
    let setting = match holder.comm.as_str() {
        "nginx" => "worker_rlimit_nofile",
        "php-fpm" => "rlimit_files",
        _ => "RLIMIT_NOFILE",
    };
    let first = if parent < wanted {
        format!("{place}, and then ")
    } else {
        String::new()
    };
    (
        format!(
            "{first}raise its own limit to {wanted} in its configuration ({setting}): it is {} by that, where its parent (pid {}) \
             has {parent}",
            holder.fd_limit, holder.parent
        ),
        setting,
    )
}

fn fixes(
    found: Finding,
    (holder, is_growing): (&Process, bool),
    pids: &[u32],
    queued: u32,
) -> Finding {
    let needed = holder.fds + u64::from(queued);
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy(needed as f64).max(LEAST_WANTED);
    let each = pids
        .iter()
        .take(MOST_NAMED)
        .map(|pid| format!("prlimit --pid {pid} --nofile={wanted}:{wanted}"));
    let each = each.collect::<Vec<_>>().join("; ");
    let (raise, setting) = where_to_raise(holder, wanted);
    let is_client = holder.sockets.is_empty();
    let waiting = if is_client {
        String::new()
    } else {
        format!(" + {queued} waiting")
    };
    let found = found
        .application(
            format!(
                "{raise} ({} open{waiting}, {SPARED} and to no less than {LEAST_WANTED}) and restart it",
                holder.fds
            ),
            &[(setting, wanted.to_string())],
            "select(2) cannot handle descriptors above 1023",
        );
    // Its limit of connections stays what it was.
    let found = if holder.comm == MEMCACHED {
        found
    } else {
        let others = if pids.len() > MOST_NAMED {
            "; and so on for the others"
        } else {
            ""
        };
        let text = format!("without a restart: {each}{others}");
        found.command(text, "gone when it restarts").at_once()
    };
    if !is_client && !is_growing {
        return found;
    }
    found.command(
        format!(
            "see whether it closes what it opens, as no limit is enough for a leak: ls -l /proc/{}/fd",
            holder.pid
        ),
        "none",
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
            format!("raise the limit: {used}, {SPARED}"),
            &[("fs.file-max", wanted.to_string())],
            "kernel memory: about 256 bytes for each file",
        ),
    )
}

#[cfg(test)]
mod tests;
