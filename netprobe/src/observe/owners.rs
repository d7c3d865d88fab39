//! Which process holds a socket, by the socket's inode number: from `/proc/PID/fd`.
//!
//! Sockets that were open before we came, and accepted ones, have no other owner. A scan is
//! slow on a busy machine, so all of them together may take a small part of the time, after an allowance; and
//! while they do not find what was asked for, as with sockets that are closed already, they get rare.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::processes::cpu_time;

/// A process, and the name of it.
type Holder = (u32, [u8; 16]);

/// Holders of sockets.
#[derive(Debug, Default)]
pub struct Owners {
    holders: HashMap<u64, Holder>,
    budget: Budget,
    /// The first scan, while events are shown already.
    first: Option<JoinHandle<(HashMap<u64, Holder>, Duration)>>,
}

/// CPU time that scans have taken so far, in nanoseconds.
static SCANNED_NS: AtomicU64 = AtomicU64::new(0);

/// CPU time that scans have taken so far, in all threads.
pub fn scan_time() -> Duration {
    Duration::from_nanos(SCANNED_NS.load(Ordering::Relaxed))
}

/// Sockets that are remembered; beyond that only those that are still there.
const MOST: usize = 131_072;

impl Owners {
    /// The process that holds socket `ino`, or held it when it was last seen; scans if it is not known
    /// and a scan is due.
    pub fn of(&mut self, ino: u64) -> Option<Holder> {
        if ino == 0 {
            return None;
        }
        if let Some(holder) = self.holders.get(&ino) {
            return Some(*holder);
        }
        self.finish_first_scan();
        if let Some(holder) = self.holders.get(&ino) {
            return Some(*holder);
        }
        let now = Instant::now();
        if self.budget.is_due(now) {
            self.keep(scan(Path::new("/proc")));
            self.budget.spend(now.elapsed());
            let is_found = self.holders.contains_key(&ino);
            self.budget.has_found(is_found, Instant::now());
        }
        self.holders.get(&ino).copied()
    }

    /// Begins to look who holds which socket now. On a machine with very many descriptors that takes seconds,
    /// which only those wait for who ask before it is done.
    pub fn learn(&mut self) {
        let scan = || {
            let begin = Instant::now();
            (scan(Path::new("/proc")), begin.elapsed())
        };
        let thread = thread::Builder::new().name("owners".to_owned());
        match thread.spawn(scan) {
            Ok(first) => self.first = Some(first),
            Err(error) => log::debug!("owners are not learnt: {error}"),
        }
    }

    fn finish_first_scan(&mut self) {
        if let Some((held, took)) = self.first.take().and_then(|first| first.join().ok()) {
            self.keep(held);
            self.budget.spend(took);
        }
    }

    /// Adds to what is known: the kernel gives no two sockets the same inode number, so that those of
    /// processes that are gone stay right.
    fn keep(&mut self, held: HashMap<u64, Holder>) {
        if self.holders.len() > MOST {
            self.holders.clear();
        }
        self.holders.extend(held);
    }
}

/// The holders of all sockets; of several processes that share one, the first.
fn scan(proc: &Path) -> HashMap<u64, Holder> {
    let mut held = HashMap::new();
    let mut last = cpu_time();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
            scan_process(pid, &entry.path(), &mut held);
        }
        let now = cpu_time();
        let took = u64::try_from(now.saturating_sub(last).as_nanos()).unwrap_or(u64::MAX);
        SCANNED_NS.fetch_add(took, Ordering::Relaxed);
        last = now;
    }
    held
}

/// When scans are due.
#[derive(Debug, Default)]
struct Budget {
    /// When the first scan began, and how long all of them took.
    first: Option<Instant>,
    spent: Duration,
    /// Not before this, after scans in vain, and how long it was waited the last time.
    next: Option<Instant>,
    pause: Duration,
}

impl Budget {
    /// Scans may take this long at any time,
    const ALLOWANCE: Duration = Duration::from_millis(500);
    /// and beyond that one part in so many of the time that passes.
    const SHARE: u32 = 50;
    /// How long is waited after one scan in vain, and at most after many.
    const SHORTEST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    fn is_due(&mut self, now: Instant) -> bool {
        let first = *self.first.get_or_insert(now);
        let has_time = self.spent <= Self::ALLOWANCE + now.duration_since(first) / Self::SHARE;
        has_time && self.next.is_none_or(|next| now >= next)
    }

    fn spend(&mut self, time: Duration) {
        self.spent += time;
    }

    /// Whether the last scan was of use.
    fn has_found(&mut self, is_found: bool, now: Instant) {
        if is_found {
            self.pause = Duration::ZERO;
            self.next = None;
        } else {
            self.pause = (self.pause * 2).clamp(Self::SHORTEST, Self::LONGEST);
            self.next = Some(now + self.pause);
        }
    }
}

/// Adds the sockets of a process.
fn scan_process(pid: u32, process: &Path, holders: &mut HashMap<u64, Holder>) {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return;
    };
    let mut comm = None;
    for descriptor in descriptors.flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else {
            continue;
        };
        let Some(ino) = target.to_str().and_then(socket_inode) else {
            continue;
        };
        let comm = *comm.get_or_insert_with(|| read_comm(process));
        holders.entry(ino).or_insert((pid, comm));
    }
}

/// The number in `socket:[12345]`.
fn socket_inode(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn read_comm(process: &Path) -> [u8; 16] {
    let bytes = fs::read(process.join("comm")).unwrap_or_default();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let mut comm = [0; 16];
    let length = bytes.len().min(comm.len() - 1);
    comm[..length].copy_from_slice(&bytes[..length]);
    comm
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, os::fd::AsRawFd};

    #[test]
    fn only_sockets_have_inodes() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        for other in ["pipe:[1]", "socket:[]", "socket:[x]", "/tmp/socket:[1]"] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }

    #[test]
    fn scans_in_vain_get_rare_and_one_that_finds_is_followed_by_another() {
        let mut budget = Budget::default();
        let begin = Instant::now();
        let mut scans = 0;
        for millisecond in 0..10_000 {
            let now = begin + Duration::from_millis(millisecond);
            if budget.is_due(now) {
                scans += 1;
                budget.has_found(false, now);
            }
        }
        assert_eq!(scans, 10, "50 ms, then twice as long each time, up to 2 s");
        budget.has_found(true, begin);
        assert!(budget.is_due(begin) && budget.is_due(begin));
    }

    #[test]
    fn scans_take_no_more_than_their_share() {
        let mut budget = Budget::default();
        let begin = Instant::now();
        assert!(budget.is_due(begin));
        budget.spend(Duration::from_secs(1));
        assert!(!budget.is_due(begin + Duration::from_secs(24)));
        assert!(budget.is_due(begin + Duration::from_secs(26)));
    }

    #[test]
    fn an_open_socket_is_found_with_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let ino = socket_inode(link.to_str().unwrap()).unwrap();
        let (pid, comm) = Owners::default().of(ino).unwrap();
        assert_eq!(pid, std::process::id());
        assert_ne!(comm[0], 0);
    }

    #[test]
    fn what_was_learnt_at_the_beginning_is_known_when_the_socket_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let ino = socket_inode(link.to_str().unwrap()).unwrap();
        let mut owners = Owners::default();
        owners.learn();
        owners.finish_first_scan();
        drop(listener);
        assert_eq!(owners.of(ino).unwrap().0, std::process::id());
        assert_eq!(Owners::default().of(ino), None);
    }
}
