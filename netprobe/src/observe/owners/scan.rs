//! What `/proc` says of descriptors: which process holds which socket, and since when a process is there.

use std::{
    collections::HashMap,
    fs,
    ops::RangeInclusive,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::super::{
    clock::{asleep_ns, now_ns, thread_cpu},
    processes::socket,
    stat,
};

/// A process that holds a socket, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, NUL padded.
    pub comm: [u8; 16],
    /// The descriptor.
    fd: u32,
}

impl Holder {
    /// Whether the descriptor is still this socket. That is one system call, and no process is mistaken for
    /// another that has got its id.
    pub(super) fn holds(&self, proc: &Path, ino: u64) -> bool {
        let target = fs::read_link(proc.join(format!("{}/fd/{}", self.pid, self.fd)));
        target.is_ok_and(|target| target.to_str().and_then(socket) == Some(ino))
    }
}

/// Who holds a socket.
#[derive(Debug)]
pub(super) struct Held {
    /// By process id: the first is the parent, as a rule.
    pub(super) holders: Vec<Holder>,
    /// They held it then, or later; `u64::MAX` once nobody does.
    pub(super) seen_ns: u64,
}

impl Held {
    /// Adds those that hold it too.
    pub(super) fn add(&mut self, others: Self) {
        for other in others.holders {
            if self.holders.iter().all(|holder| holder.pid != other.pid) {
                self.holders.push(other);
            }
        }
    }
}

/// CPU time that scans have taken so far, in nanoseconds.
static SCANNED_NS: AtomicU64 = AtomicU64::new(0);

/// CPU time that scans have taken so far, in all threads, and lists of listeners.
pub fn scan_time() -> Duration {
    Duration::from_nanos(SCANNED_NS.load(Ordering::Relaxed))
}

/// Does some `work`, whose CPU time in this thread counts as that of a scan.
pub(in super::super) fn measured<T>(work: impl FnOnce() -> T) -> T {
    let begin = thread_cpu();
    let done = work();
    let took = thread_cpu().saturating_sub(begin);
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    SCANNED_NS.fetch_add(took, Ordering::Relaxed);
    done
}

/// The holders of all sockets.
pub(super) fn scan(proc: &Path) -> HashMap<u64, Held> {
    let mut held = HashMap::new();
    let begin_ns = now_ns();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
            measured(|| scan_process(pid, &entry.path(), begin_ns, &mut held));
        }
    }
    held
}

/// The newest task, by its id: the last field of `/proc/loadavg`.
pub(super) fn newest(proc: &Path) -> Option<u32> {
    let load = fs::read_to_string(proc.join("loadavg")).ok()?;
    load.split_ascii_whitespace().last()?.parse().ok()
}

/// The holders of the sockets of those of these tasks that are processes, not threads.
pub(super) fn scan_young(proc: &Path, tasks: RangeInclusive<u32>) -> HashMap<u64, Held> {
    let mut held = HashMap::new();
    let begin_ns = now_ns();
    measured(|| {
        for pid in tasks {
            let process = proc.join(pid.to_string());
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            let group = status
                .lines()
                .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
            if group == Some(pid) {
                scan_process(pid, &process, begin_ns, &mut held);
            }
        }
    });
    held
}

/// Adds the sockets of a process.
fn scan_process(pid: u32, process: &Path, seen_ns: u64, held: &mut HashMap<u64, Held>) {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return;
    };
    let mut comm = None;
    for descriptor in descriptors.flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else {
            continue;
        };
        let Some(ino) = target.to_str().and_then(socket) else {
            continue;
        };
        let name = descriptor.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let comm = *comm.get_or_insert_with(|| read_comm(process));
        let held = held.entry(ino).or_insert_with(|| Held {
            holders: Vec::with_capacity(1),
            seen_ns,
        });
        if held.holders.last().is_none_or(|last| last.pid != pid) {
            held.holders.push(Holder { pid, comm, fd });
        }
    }
}

fn read_comm(process: &Path) -> [u8; 16] {
    let bytes = fs::read(process.join("comm")).unwrap_or_default();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let mut comm = [0; 16];
    let length = bytes.len().min(comm.len() - 1);
    comm[..length].copy_from_slice(&bytes[..length]);
    comm
}

/// When a process was there at the latest, by `CLOCK_MONOTONIC`; `None` if it has ended.
pub fn started_ns(proc: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(proc.join(format!("{pid}/stat"))).ok()?;
    Some(started_since_boot(&stat)?.saturating_sub(asleep_ns()))
}

/// Whether a process is there and has not ended, as one that waits for its parent has.
pub(super) fn is_running(proc: &Path, pid: u32) -> bool {
    let stat = fs::read_to_string(proc.join(format!("{pid}/stat"))).unwrap_or_default();
    stat::field(&stat, 3).is_some_and(|state| !matches!(state, "Z" | "X"))
}

/// The end of the clock tick in which a process began, by its `/proc/PID/stat`.
fn started_since_boot(stat: &str) -> Option<u64> {
    /// `USER_HZ` is 100.
    const TICK_NS: u64 = 10_000_000;
    let ticks: u64 = stat::field(stat, 22)?.parse().ok()?;
    ticks.checked_add(1)?.checked_mul(TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_process_is_rounded_up() {
        let stat = "77 (a ) R b) S 1 77 77 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1\n";
        assert_eq!(started_since_boot(stat), Some(47_120_000_000));
        assert_eq!(started_since_boot("77 (cut"), None);
    }

    #[test]
    fn this_process_began_before_now() {
        let began = started_ns(Path::new("/proc"), std::process::id()).unwrap();
        assert!(began <= now_ns() + 10_000_000);
        assert_eq!(started_ns(Path::new("/proc"), u32::MAX), None);
    }
}
