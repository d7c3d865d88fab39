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

use crate::{
    diagnose::window::{Netns, Window},
    observe::{
        namespaces::{self, Namespace},
        processes::{self, Processes},
        snapshot::{self, Snapshot},
        softnet::{self, Softnet},
        sysctls,
    },
};

/// The shortest time between two glances.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest: whether a queue is full all the time must be seen within a few seconds.
const LONGEST: Duration = Duration::from_millis(400);
/// Otherwise glances may take one part in so many of the time of a CPU.
const SHARE: u32 = 200;

/// The watch, while it goes on.
pub(super) struct Watch {
    is_narrowed: bool,
    machine: Snapshot,
    softnet: Vec<Softnet>,
    processes: Processes,
    stop: Sender<()>,
    thread: JoinHandle<Vec<Namespaced>>,
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
    pub(super) fn start(found: Vec<Namespace>, is_narrowed: bool) -> Result<Self> {
        let before = namespaces::in_each(&found, |_| snapshot::of_this_thread())?;
        // One that cannot be entered has just ended, or is not ours to enter.
        let watched: Vec<Namespaced> = found
            .into_iter()
            .zip(before)
            .filter_map(|(namespace, before)| {
                let before = before.ok()?;
                Some(Namespaced {
                    namespace,
                    before,
                    glances: Netns::default(),
                })
            })
            .collect();
        let processes = scan(
            &watched
                .iter()
                .map(|watched| &watched.before)
                .collect::<Vec<_>>(),
            None,
        );
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || glance_until(watched, &stopped));
        Ok(Self {
            is_narrowed,
            machine: snapshot::of_the_machine(),
            softnet: softnet::read(),
            processes,
            stop,
            thread,
        })
    }

    /// Reads everything again. Returns what was seen, and what could not be.
    pub(super) fn finish(self, elapsed: Duration) -> Result<(Window, Vec<String>)> {
        drop(self.stop);
        let watched = self
            .thread
            .join()
            .map_err(|_panic| anyhow!("the thread that watches the queues panicked"))?;
        let (namespaces, rest): (Vec<Namespace>, Vec<(Snapshot, Netns)>) = watched
            .into_iter()
            .map(|watched| (watched.namespace, (watched.before, watched.glances)))
            .unzip();
        let after = namespaces::in_each(&namespaces, |_| snapshot::of_this_thread())?;
        let mut gaps = if self.is_narrowed {
            Vec::new()
        } else {
            gaps(&namespaces)
        };
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
        let processes = scan(&after, Some(&self.processes));
        gaps.extend(unseen(&processes));
        let softnet = self.softnet.into_iter().zip(softnet::read());
        let window = Window {
            seconds: elapsed.as_secs_f64(),
            namespaces: seen,
            vanished,
            machine: Some(machine),
            softnet: softnet.collect(),
            processes_before: self.processes,
            processes,
            files: processes::machine_files(),
            conntrack_entry_bytes: conntrack_entry_bytes(),
            page_bytes: rustix::param::page_size() as u64,
            ..Window::default()
        };
        Ok((window, gaps))
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
fn gaps(watched: &[Namespace]) -> Vec<String> {
    let known: HashSet<u32> = watched.iter().map(|namespace| namespace.inode).collect();
    let now = namespaces::all().unwrap_or_default();
    let late = now
        .iter()
        .filter(|namespace| !known.contains(&namespace.inode))
        .count();
    if late == 0 {
        return Vec::new();
    }
    vec![format!(
        "{late} network namespace(s) were not there at the beginning"
    )]
}

/// What there was no time for.
fn unseen(processes: &Processes) -> Option<String> {
    let what = if processes.is_cut {
        "not every process was looked at: there are too many"
    } else if processes.are_holders_cut {
        "who holds which socket is known of some processes only: there are too many file descriptors"
    } else {
        return None;
    };
    Some(what.to_owned())
}

/// Who holds the listeners.
fn scan(snapshots: &[&Snapshot], before: Option<&Processes>) -> Processes {
    let tables = snapshots
        .iter()
        .filter_map(|snapshot| snapshot.sockets.as_ref());
    let listeners = tables.flat_map(|table| &table.listeners);
    processes::scan(listeners.map(|listener| listener.ino).collect(), before)
}

fn glance_until(mut watched: Vec<Namespaced>, stopped: &Receiver<()>) -> Vec<Namespaced> {
    loop {
        let begin = Instant::now();
        for namespaced in &mut watched {
            // One that has gone shows nothing more.
            if namespaces::enter(&namespaced.namespace).is_ok() {
                namespaced.glances.add_glance(snapshot::glance());
            }
        }
        let pause = begin.elapsed().saturating_mul(SHARE);
        let pause = pause.clamp(SHORTEST, LONGEST);
        match stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return watched,
        }
    }
}

/// Size of an object of the slab `nf_conntrack`, where the kernel lists it.
fn conntrack_entry_bytes() -> Option<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = slabs
        .lines()
        .find(|line| line.starts_with("nf_conntrack "))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}
