//! What `diagnose` reads beside events: everything at the beginning and at the end of the window,
//! and a glance at the queues again and again in between, on a thread of its own.

use std::{
    collections::HashSet,
    fs,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use caps::Capability;

use crate::{
    diagnose::window::{Netns, Window},
    kernel::{
        keeper::Saving,
        privileges::{self, CannotRun},
    },
    observe::{
        clock::thread_cpu,
        descriptors, memory,
        namespaces::{self, Namespace},
        processes::{self, Processes},
        snapshot::{self, Snapshot},
        softnet, sysctls,
    },
};

/// The shortest time between two glances.
const SHORTEST: Duration = Duration::from_millis(100);
/// Otherwise glances may take one part in so many of the time of a CPU, up to this time between them.
const SHARE: u32 = 250;
const LONG: Duration = Duration::from_millis(400);
/// Of very many namespaces they may take more of it, up to this: whether a queue is full all the time must be seen within a few
/// seconds. The first are not held up by that, as a short window needs so many.
const MOST_SHARE: u32 = 150;
const LONGEST: Duration = Duration::from_secs(2);
const FIRST: u32 = 8;

/// The shortest time between two looks at connections while all are served.
const CONNECTIONS: Duration = Duration::from_secs(1);
/// They may take one part in so many of the time of a CPU; or one in so many where some stand still, as when they go on is
/// seen by looking again.
const CONNECTIONS_SHARE: u32 = 400;
const STILL_SHARE: u32 = 50;

/// The watch, while it goes on.
pub(super) struct Watch {
    is_narrowed: bool,
    /// Inode numbers of the namespaces that were there at the beginning.
    known: HashSet<u32>,
    unread: Unread,
    machine: Snapshot,
    processes: Processes,
    stop: Sender<()>,
    thread: JoinHandle<Glanced>,
}

/// Namespaces that are there and cannot be looked into.
#[derive(Debug, Default)]
struct Unread {
    /// Those that cannot be entered.
    barred: usize,
    /// Whether there may be more, of processes that nothing is told of.
    are_hidden: bool,
}

/// What reads all namespaces.
const READS_ALL: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE];

/// What tells who holds a socket.
pub(super) const READS_HOLDERS: [Capability; 2] =
    [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];

impl Unread {
    /// What is missing to read them.
    fn why(&self) -> Option<String> {
        if self.barred == 0 && !self.are_hidden {
            return None;
        }
        let needed = if self.are_hidden {
            &READS_ALL[..]
        } else {
            &READS_ALL[..1]
        };
        Some(match privileges::lacking(needed) {
            Some(missing) => format!("needs {missing}"),
            None => "netprobe is in another user namespace".to_owned(),
        })
    }

    /// What to say of them.
    fn gap(&self) -> Option<String> {
        let why = self.why()?;
        let what = match (self.barred, self.are_hidden) {
            (0, _) => "network namespaces of other users' processes".to_owned(),
            (barred, true) => {
                format!("{barred} network namespace(s), and those of other users' processes")
            }
            (barred, false) => format!("{barred} network namespace(s)"),
        };
        Some(format!("{what}: {why}"))
    }
}

/// What is looked at again and again.
struct Glanced {
    softnet: softnet::Watch,
    descriptors: descriptors::Watch,
    namespaces: Vec<Namespaced>,
}

/// A namespace and what was seen of it so far.
struct Namespaced {
    namespace: Namespace,
    before: Snapshot,
    glances: Netns,
}

impl Watch {
    /// Reads everything once, and begins to glance.
    ///
    /// Where `is_narrowed`, others than these are not missed.
    ///
    /// It glances less often while the programs in the kernel are `saving`.
    pub(super) fn start(found: Vec<Namespace>, is_narrowed: bool, saving: Saving) -> Result<Self> {
        let before = namespaces::in_each(&found, |_| snapshot::of_this_thread())?;
        let known: HashSet<u32> = found.iter().map(|namespace| namespace.inode).collect();
        let mut watched = Vec::new();
        for (namespace, before) in found.into_iter().zip(before) {
            match before {
                Ok(before) => watched.push(Namespaced {
                    namespace,
                    before,
                    glances: Netns::default(),
                }),
                Err(error) => log::debug!("{error:#}"),
            }
        }
        let unread = Unread {
            barred: known.len() - watched.len(),
            are_hidden: !is_narrowed
                && privileges::lacking(&READS_ALL).is_some()
                && namespaces::are_hidden(),
        };
        if let Some(why) = unread.why().filter(|_| watched.is_empty()) {
            let text = format!("no network namespace that was asked for can be entered: {why}");
            return Err(CannotRun::new(text).into());
        }
        let processes = scan(
            &watched
                .iter()
                .map(|watched| &watched.before)
                .collect::<Vec<_>>(),
            None,
        );
        let (stop, stopped) = mpsc::channel();
        let glanced = Glanced {
            softnet: softnet::Watch::start(),
            descriptors: descriptors::Watch::of(&processes),
            namespaces: watched,
        };
        let thread = thread::spawn(move || glance_until(glanced, &stopped, &saving));
        Ok(Self {
            is_narrowed,
            known,
            unread,
            machine: snapshot::of_the_machine(),
            processes,
            stop,
            thread,
        })
    }

    /// Reads everything again. Returns what was seen, and what could not be.
    pub(super) fn finish(self, elapsed: Duration) -> Result<(Window, Vec<String>)> {
        drop(self.stop);
        let glanced = self
            .thread
            .join()
            .map_err(|_panic| anyhow!("the thread that watches the queues panicked"))?;
        let (namespaces, rest): (Vec<Namespace>, Vec<(Snapshot, Netns)>) = glanced
            .namespaces
            .into_iter()
            .map(|watched| (watched.namespace, (watched.before, watched.glances)))
            .unzip();
        let after = namespaces::in_each(&namespaces, |_| snapshot::of_this_thread())?;
        let mut gaps: Vec<String> = self.unread.gap().into_iter().collect();
        if !self.is_narrowed {
            gaps.extend(late(&self.known));
        }
        let machine = machine(self.machine);
        let mut seen = Vec::new();
        let mut vanished = Vec::new();
        for ((namespace, (before, glances)), after) in namespaces.into_iter().zip(rest).zip(after) {
            match after {
                Ok(mut after) => {
                    sysctls::complete(&mut after.sysctls, &machine.after.sysctls);
                    seen.push(Netns {
                        inode: namespace.inode,
                        name: namespace.name,
                        is_initial: namespace.is_initial,
                        before,
                        after,
                        ..glances
                    });
                }
                Err(error) => {
                    vanished.push(namespace.inode);
                    gaps.push(format!("{error:#}"));
                }
            }
        }
        let after: Vec<&Snapshot> = seen.iter().map(|netns| &netns.after).collect();
        let mut processes = scan(&after, Some(&self.processes));
        processes.learn_pollers(&waited_for(&after));
        name_processes(&mut seen, &processes);
        gaps.extend(unseen(&processes));
        let window = Window {
            seconds: elapsed.as_secs_f64(),
            namespaces: seen,
            vanished,
            is_narrowed: self.is_narrowed,
            unread: self.unread.why().filter(|_| !self.is_narrowed),
            machine: Some(machine),
            softnet: glanced.softnet.finish(),
            peaks: glanced.descriptors.finish(),
            processes_before: self.processes,
            processes,
            files: processes::machine_files(),
            conntrack_entry_bytes: conntrack_entry_bytes(),
            buffer_pages: memory::buffer_pages(page_bytes()),
            page_bytes: page_bytes(),
            ..Window::default()
        };
        Ok((window, gaps))
    }
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// Finds a process in each namespace that has no name to enter it by.
fn name_processes(seen: &mut [Netns], processes: &Processes) {
    let is_nameless = |netns: &&Netns| !netns.is_initial && netns.name.is_none();
    let nameless = seen.iter().filter(is_nameless);
    let nameless: Vec<u32> = nameless.map(|netns| netns.inode).collect();
    if nameless.is_empty() {
        return;
    }
    let holders = processes
        .by_pid
        .values()
        .filter(|process| !process.sockets.is_empty());
    let holders = holders.map(|process| process.pid).collect();
    let found = namespaces::processes(&nameless, &holders);
    for netns in seen {
        netns.pid = found.get(&netns.inode).copied();
    }
}

/// The machine at the end of the window, from where netprobe was started: in the initial namespace, as
/// a rule.
fn machine(before: Snapshot) -> Netns {
    Netns {
        is_initial: true,
        before,
        after: snapshot::of_the_machine(),
        ..Netns::default()
    }
}

/// Namespaces that came during the window: what happened in them was counted, but not compared.
fn late(known: &HashSet<u32>) -> Option<String> {
    let now = namespaces::all().unwrap_or_default();
    let late = now
        .iter()
        .filter(|namespace| !known.contains(&namespace.inode))
        .count();
    (late > 0).then(|| format!("{late} network namespace(s) were not there at the beginning"))
}

/// What there was no time for, or no privilege.
fn unseen(processes: &Processes) -> Option<String> {
    let what = if processes.is_cut {
        "not every process was looked at: there are too many"
    } else if processes.are_holders_cut {
        "who holds which socket is known of some processes only: there are too many file descriptors"
    } else if processes.are_holders_hidden {
        let missing = privileges::lacking(&READS_HOLDERS).unwrap_or_default();
        return Some(format!(
            "sockets and descriptors of other users' processes: needs {missing}"
        ));
    } else {
        return None;
    };
    Some(what.to_owned())
}

/// Who holds the listeners; where requests are not read, also who holds the sockets whose peers take no more; and where
/// somebody waits, who holds those over which nothing goes.
fn scan(snapshots: &[&Snapshot], before: Option<&Processes>) -> Processes {
    let mut wanted = HashSet::new();
    for table in snapshots
        .iter()
        .filter_map(|snapshot| snapshot.sockets.as_ref())
    {
        wanted.extend(table.listeners.iter().map(|listener| listener.ino));
        let mut clients = table.clients.values();
        if before.is_some() && clients.any(|clients| clients.unread.is_any()) {
            wanted.extend(&table.held_up);
        }
        let waited_for = table.clients.values();
        let waited_for = waited_for.filter(|clients| !clients.waiting_ms.is_empty());
        let silent = waited_for.flat_map(|clients| &clients.silent);
        wanted.extend(silent.map(|silent| silent.ino));
    }
    let mut found = processes::scan(wanted, before);
    // A process that nobody may look at, whatever his privileges, is no reason to doubt all.
    found.are_holders_hidden &= privileges::lacking(&READS_HOLDERS).is_some();
    found
}

/// The listeners at ports where somebody waits in a queue.
fn waited_for(snapshots: &[&Snapshot]) -> Vec<u64> {
    let tables = snapshots
        .iter()
        .filter_map(|snapshot| snapshot.sockets.as_ref());
    let waited_for = tables.flat_map(|table| {
        let listeners = || table.listeners.iter();
        let ports: HashSet<u16> = listeners()
            .filter(|listener| listener.queue > 0)
            .map(|listener| listener.port)
            .collect();
        listeners()
            .filter(move |listener| ports.contains(&listener.port))
            .map(|listener| listener.ino)
    });
    waited_for.collect()
}

fn glance_until(mut glanced: Glanced, stopped: &Receiver<()>, saving: &Saving) -> Glanced {
    let mut connections_at = Instant::now() + CONNECTIONS;
    let mut rounds = 0;
    loop {
        let begin = Instant::now();
        let cpu = thread_cpu();
        glanced.softnet.look();
        let looks_at_connections = begin >= connections_at;
        // While the programs in the kernel must save, half of it.
        let saved = if saving.is_on() { 2 } else { 1 };
        let mut are_still = false;
        let mut waited_at = HashSet::new();
        for namespaced in &mut glanced.namespaces {
            // One that has gone shows nothing more.
            if namespaces::enter(&namespaced.namespace).is_ok() {
                let glance = snapshot::glance(looks_at_connections);
                are_still |= glance.late.iter().flatten().any(|late| late.is_still);
                let listeners = glance.listeners.iter();
                let waited = listeners.filter(|listener| listener.queue > 0);
                waited_at.extend(waited.map(|listener| listener.ino));
                namespaced.glances.add_glance(glance);
            }
        }
        glanced.descriptors.look(&waited_at);
        let spent = thread_cpu().saturating_sub(cpu);
        if looks_at_connections {
            let (share, least) = if are_still {
                (STILL_SHARE, SHORTEST)
            } else {
                (CONNECTIONS_SHARE, CONNECTIONS)
            };
            connections_at = begin + spent.saturating_mul(share * saved).max(least);
        }
        let is_first = rounds < FIRST;
        rounds += 1;
        match stopped.recv_timeout(pause(spent, saved, is_first)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return glanced,
        }
    }
}

/// How long to wait after glances that took so much of a CPU, of which a part is to be saved.
fn pause(spent: Duration, saved: u32, is_first: bool) -> Duration {
    let usual = spent.saturating_mul(SHARE * saved).clamp(SHORTEST, LONG);
    if is_first {
        return usual;
    }
    usual.max(spent.saturating_mul(MOST_SHARE).min(LONGEST))
}

/// Size of an object of the slab `nf_conntrack`, where the kernel lists it.
fn conntrack_entry_bytes() -> Option<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = slabs
        .lines()
        .find(|line| line.starts_with("nf_conntrack "))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glances_are_bounded_by_what_they_cost() {
        for (spent_us, saved, expected_ms) in [
            (50, 1, 100),
            (800, 1, 200),
            (800, 2, 400),
            (2000, 1, 400),
            (8000, 1, 1200),
            (8000, 2, 1200),
            (900_000, 1, 2000),
        ] {
            let spent = Duration::from_micros(spent_us);
            let expected = Duration::from_millis(expected_ms);
            assert_eq!(pause(spent, saved, false), expected, "{spent_us}");
            assert_eq!(pause(spent, saved, true), expected.min(LONG), "{spent_us}");
        }
    }
}
