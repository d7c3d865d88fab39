//! Processes with sockets: who holds which listener, how many file descriptors are left, and whether those that have none
//! left speak TCP.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{clock::thread_cpu, cpu_limits::CpuLimits, stat};

/// A scan ends here; a machine may have more descriptors than there is time.
const PATIENCE: Duration = Duration::from_millis(400);
/// Most descriptors of a process whose target is looked at; listeners are opened early.
const LOOKED_AT: usize = 20_000;
/// The same where what it waits for is looked for, and how much of that is read.
const LOOKED_AT_FOR_POLLS: usize = 256;
const MOST_POLLED: u64 = 1 << 20;
/// How long that may take.
const PATIENCE_FOR_POLLS: Duration = Duration::from_millis(100);

/// A process that holds a listener or many descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The process that it is a child of.
    pub parent: u32,
    /// Its name, as it chose it.
    pub comm: String,
    /// What its first thread does, as in ps(1): `R`, `S`, `D`, `T` …
    pub state: Option<char>,
    /// How long its first thread has run or waited for a CPU so far, in nanoseconds.
    pub runnable_ns: u64,
    /// Of that, how long it has waited.
    pub waited_ns: u64,
    /// What its control groups allow it of the CPUs.
    pub cpu_limits: CpuLimits,
    /// Open descriptors.
    pub fds: u64,
    /// Where `open` and `accept` begin to fail (EMFILE).
    pub fd_limit: u64,
    /// How far it may raise that itself.
    pub fd_hard_limit: u64,
    /// Where they fail for its parent, if that is a process of the same name: what started both allows as many.
    pub parent_fd_limit: Option<u64>,
    /// Its unit of systemd(1), if it has one.
    pub unit: Option<String>,
    /// Inode numbers of the wanted sockets that it holds.
    pub sockets: Vec<u64>,
    /// Its network namespace, where it has used half of its descriptors.
    pub netns: Option<u32>,
    /// Whether it is seen to hold a TCP socket; looked at only where it has no descriptors.
    pub has_tcp: bool,
    /// How long all its threads have run or waited for a CPU so far, in nanoseconds; looked at only where it has no
    /// descriptors.
    pub threads_ns: u64,
}

impl Process {
    /// Whether it has no file descriptors left, or so few that it has none now and then.
    pub const fn has_no_descriptors(&self) -> bool {
        self.fds.saturating_mul(10) >= self.fd_limit.saturating_mul(9)
    }
}

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// By process id: those that hold a wanted socket, and those that have used half of their
    /// descriptors.
    pub by_pid: BTreeMap<u32, Process>,
    /// Whether the scan ran out of time before it had counted the descriptors of every process.
    pub is_cut: bool,
    /// Whether it ran out of time before it had looked what they all are, those of the fullest processes first.
    pub are_holders_cut: bool,
    /// Whether there are processes whose descriptors we may not look at.
    pub are_holders_hidden: bool,
    /// Of sockets that several processes hold, those of them that wait for it with epoll(7), where there are such.
    pollers: HashMap<u64, Vec<u32>>,
    looks: Looks,
}

/// Which descriptors were looked at, so that the next scan need not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Looks {
    /// The sockets that were wanted.
    wanted: HashSet<u64>,
    /// The processes that were looked at, with the numbers of the descriptors that are wanted sockets.
    held: HashMap<u32, Vec<Held>>,
}

/// A descriptor of a process, and the socket that it is.
type Held = (u32, u64);

impl Processes {
    /// The processes that hold a socket, the lowest id first: the parent, as a rule. Where it is known who of them waits
    /// for the socket, the others do not count.
    pub fn holders(&self, ino: u64) -> impl Iterator<Item = &Process> {
        let pollers = self.pollers.get(&ino);
        self.by_pid.values().filter(move |process| {
            process.sockets.contains(&ino)
                && pollers.is_none_or(|pollers| pollers.contains(&process.pid))
        })
    }

    /// Learns who waits for these sockets with epoll(7), of those that several processes hold: each worker of a server may
    /// have a listener of its own that all others have inherited.
    pub fn learn_pollers(&mut self, sockets: &[u64]) {
        let begin = thread_cpu();
        for ino in sockets {
            let holders: Vec<u32> = self.holders(*ino).map(|process| process.pid).collect();
            if holders.len() < 2 || self.pollers.contains_key(ino) {
                continue;
            }
            let mut pollers = Vec::new();
            for pid in holders {
                if thread_cpu().saturating_sub(begin) > PATIENCE_FOR_POLLS {
                    return;
                }
                if polls(&PathBuf::from(format!("/proc/{pid}")), *ino) {
                    pollers.push(pid);
                }
            }
            if !pollers.is_empty() {
                self.pollers.insert(*ino, pollers);
            }
        }
    }
}

/// Whether a process waits for a socket with epoll(7).
fn polls(process: &Path, ino: u64) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
    let mut descriptors = descriptors.flatten().take(LOOKED_AT_FOR_POLLS);
    descriptors.any(|descriptor| {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        if target.to_str() != Some("anon_inode:[eventpoll]") {
            return false;
        }
        let polled = File::open(process.join("fdinfo").join(descriptor.file_name()));
        let mut text = String::new();
        let read = polled.and_then(|file| file.take(MOST_POLLED).read_to_string(&mut text));
        read.is_ok() && is_polled(&text, ino)
    })
}

/// Whether a socket is in `/proc/PID/fdinfo/FD` of an epoll: `tfd: 6 events: 2019 data: 0 pos:0 ino:2f3a sdev:8`, of which the
/// inode number is hexadecimal.
fn is_polled(fdinfo: &str, ino: u64) -> bool {
    let wanted = format!(" ino:{ino:x} ");
    fdinfo.lines().any(|line| line.contains(&wanted))
}

/// Looks at every process; `wanted` are the inode numbers of the sockets whose holders matter. What a scan `before` saw
/// is not searched for again.
#[expect(clippy::implicit_hasher, reason = "only ours are asked for")]
pub fn scan(wanted: HashSet<u64>, before: Option<&Processes>) -> Processes {
    let mut found = Processes {
        looks: Looks {
            wanted,
            ..Looks::default()
        },
        ..Processes::default()
    };
    let before = before.map(|before| &before.looks);
    let begin = thread_cpu();
    let is_late = || thread_cpu().saturating_sub(begin) > PATIENCE;
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if is_late() {
            found.is_cut = true;
            break;
        }
        let process = counted(pid, &entry.path());
        found.are_holders_hidden |= process.is_none() && is_hidden(&entry.path());
        processes.extend(process);
    }
    // What is full matters in any case.
    processes.sort_by_key(|process| {
        std::cmp::Reverse(process.fds.saturating_mul(100) / process.fd_limit.max(1))
    });
    for mut process in processes {
        let path = PathBuf::from(format!("/proc/{}", process.pid));
        if is_late() {
            found.are_holders_cut = true;
        } else {
            found.are_holders_hidden = found.are_holders_hidden || is_hidden(&path);
            let held = found.looks.held(process.pid, &path, before);
            process.sockets = held.iter().map(|(_, ino)| *ino).collect();
            found.looks.held.insert(process.pid, held);
            process.has_tcp = process.has_no_descriptors() && has_tcp(&path);
        }
        if process.sockets.is_empty() && process.fds * 2 < process.fd_limit {
            continue;
        }
        describe(&mut process, &path);
        found.by_pid.insert(process.pid, process);
    }
    found
}

/// Whether we may not look at the descriptors of a process.
fn is_hidden(process: &Path) -> bool {
    let looked = fs::read_link(process.join("fd/0"));
    looked.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// A process with the number of its descriptors, and their limits.
fn counted(pid: u32, path: &Path) -> Option<Process> {
    let limits = fs::read_to_string(path.join("limits")).unwrap_or_default();
    let (fd_limit, fd_hard_limit) = open_files(&limits)?;
    Some(Process {
        pid,
        fds: descriptors(&path.join("fd"))?,
        fd_limit,
        fd_hard_limit,
        ..Process::default()
    })
}

/// How many descriptors there are: since Linux 6.2 the size of the folder, before that its entries.
pub(super) fn descriptors(folder: &Path) -> Option<u64> {
    let size = fs::metadata(folder).ok()?.len();
    if size > 0 {
        return Some(size);
    }
    Some(fs::read_dir(folder).ok()?.flatten().count() as u64)
}

impl Looks {
    /// The wanted sockets that a process holds: those of `before`, if they are still there and nothing else is wanted.
    fn held(&self, pid: u32, process: &Path, before: Option<&Self>) -> Vec<Held> {
        let before = before.filter(|before| self.wanted.is_subset(&before.wanted));
        let known = before.and_then(|before| before.held.get(&pid));
        let is_there = |(descriptor, ino): &Held| {
            let target = fs::read_link(process.join(format!("fd/{descriptor}")));
            target.is_ok_and(|target| target.to_str().and_then(socket) == Some(*ino))
        };
        match known {
            Some(known) if known.iter().all(is_there) => {
                let mut held = known.clone();
                held.retain(|(_, ino)| self.wanted.contains(ino));
                held
            }
            _ => sockets(process, &self.wanted),
        }
    }
}

/// The wanted sockets that a process holds.
fn sockets(process: &Path, wanted: &HashSet<u64>) -> Vec<Held> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
    let held = descriptors
        .flatten()
        .take(LOOKED_AT)
        .filter_map(|descriptor| {
            let target = fs::read_link(descriptor.path()).ok()?;
            let ino = socket(target.to_str()?).filter(|ino| wanted.contains(ino))?;
            Some((descriptor.file_name().to_str()?.parse().ok()?, ino))
        });
    held.collect()
}

/// Whether one of the descriptors is a TCP socket; of sockets only the kernel is asked, as a file may be on a server
/// that does not answer.
fn has_tcp(process: &Path) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
    let paths = descriptors
        .flatten()
        .take(LOOKED_AT)
        .map(|descriptor| descriptor.path());
    let is_socket = |path: &PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        target.to_str().and_then(socket).is_some()
    };
    let mut sockets = paths.filter(is_socket);
    sockets.any(|path| {
        // `sockfs_xattr_get`: the name of the protocol, and a zero byte.
        let mut name = [0; 32];
        let length = rustix::fs::getxattr(&path, "system.sockprotoname", &mut name);
        let name = length.ok().and_then(|length| name.get(..length));
        name.is_some_and(|name| {
            let name = name.strip_suffix(b"\0").unwrap_or(name);
            matches!(name, b"TCP" | b"TCPv6" | b"MPTCP" | b"MPTCPv6")
        })
    })
}

/// Adds who the process is, and what it does.
fn describe(process: &mut Process, path: &Path) {
    let comm = fs::read(path.join("comm")).unwrap_or_default();
    process.comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned();
    let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
    process.state = stat::state(&stat);
    process.parent = stat::field(&stat, 4).map_or(0, |pid| pid.parse().unwrap_or(0));
    let times = times(&fs::read_to_string(path.join("schedstat")).unwrap_or_default());
    (process.runnable_ns, process.waited_ns) = (times.iter().sum(), times[1]);
    let groups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
    process.unit = unit(&groups);
    process.cpu_limits = CpuLimits::of(&groups);
    let parent = PathBuf::from(format!("/proc/{}", process.parent));
    if process.parent > 0 && fs::read(parent.join("comm")).is_ok_and(|name| name == comm) {
        let limits = fs::read_to_string(parent.join("limits")).unwrap_or_default();
        process.parent_fd_limit = open_files(&limits).map(|(soft, _)| soft);
    }
    if process.fds.saturating_mul(2) >= process.fd_limit {
        let netns = fs::metadata(path.join("ns/net"));
        process.netns = netns.ok().and_then(|netns| netns.ino().try_into().ok());
    }
    if process.has_no_descriptors() {
        process.threads_ns = threads_ns(&path.join("task"));
    }
}

/// Most threads of a process that are looked at.
const THREADS: usize = 256;

/// The times of all threads of a process.
fn threads_ns(folder: &Path) -> u64 {
    let threads = fs::read_dir(folder).into_iter().flatten().flatten();
    let times = threads.take(THREADS).flat_map(|thread| {
        times(&fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default())
    });
    times.sum()
}

/// The time on a CPU and that spent waiting for one, in nanoseconds, which `/proc/PID/schedstat` begins with.
fn times(schedstat: &str) -> [u64; 2] {
    let mut times = schedstat.split_ascii_whitespace();
    let mut next = || times.next().and_then(|time| time.parse().ok());
    [next().unwrap_or(0), next().unwrap_or(0)]
}

/// The number in `socket:[12345]`.
pub(crate) fn socket(target: &str) -> Option<u64> {
    let number = target.strip_prefix("socket:[")?.strip_suffix(']')?;
    number.parse().ok()
}

/// The soft and the hard limit in `/proc/PID/limits`.
pub(crate) fn open_files(limits: &str) -> Option<(u64, u64)> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut values = line.split_ascii_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        value => value.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

/// The last unit in `/proc/PID/cgroup`.
pub(crate) fn unit(cgroup: &str) -> Option<String> {
    let paths = cgroup.lines().filter_map(|line| line.rsplit(':').next());
    let mut names = paths.flat_map(|path| path.rsplit('/'));
    names
        .find(|name| name.strip_suffix(".service").is_some())
        .map(str::to_owned)
}

/// Files that are open on the machine, and how many may be: `/proc/sys/fs/file-nr`.
pub fn machine_files() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").ok()?;
    let mut words = text.split_ascii_whitespace();
    let used = words.next()?.parse().ok()?;
    Some((used, words.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, os::fd::AsRawFd};

    #[test]
    fn limits_and_units_are_found() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 \
                    unlimited            files\n";
        assert_eq!(open_files(text), Some((1024, u64::MAX)));
        assert_eq!(open_files("Max open files"), None);
        let cgroup = "0::/system.slice/nginx.service\n";
        assert_eq!(unit(cgroup).as_deref(), Some("nginx.service"));
        assert_eq!(unit("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(times("100 20 3\n"), [100, 20]);
        assert_eq!(times(""), [0, 0]);
    }

    #[test]
    fn the_holder_of_a_listener_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let ino = socket(link.to_str().unwrap()).unwrap();
        let found = scan(HashSet::from([ino]), None);
        let holder = found.holders(ino).next().unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(holder.fds > 0 && holder.fd_limit > holder.fds);
    }

    #[test]
    fn who_waits_for_a_socket_is_told_by_its_inode() {
        let fdinfo = "pos:\t0\nflags:\t02\ntfd:        6 events:     2019 data:                0  pos:0 ino:2f3a sdev:8\n";
        assert!(is_polled(fdinfo, 0x2f3a));
        assert!(!is_polled(fdinfo, 0x2f3));
        assert!(!is_polled(fdinfo, 0x8));
    }

    #[test]
    fn a_scan_knows_of_the_one_before_what_is_still_so() {
        let [kept, closed] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ino = |listener: &TcpListener| {
            let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
            socket(link.to_str().unwrap()).unwrap()
        };
        let (is_kept, is_closed) = (ino(&kept), ino(&closed));
        let pid = std::process::id();
        let wanted = HashSet::from([is_kept, is_closed]);
        let mut before = scan(wanted.clone(), None);
        let held = |found: &Processes, ino| found.holders(ino).any(|holder| holder.pid == pid);
        assert!(held(&before, is_kept) && held(&before, is_closed));
        drop(closed);
        let after = scan(wanted.clone(), Some(&before));
        assert!(held(&after, is_kept) && !held(&after, is_closed));
        // What it held is believed, not searched for: here that it was nothing.
        before.looks.held.insert(pid, Vec::new());
        let after = scan(wanted, Some(&before));
        assert!(!held(&after, is_kept));
        // Until there is a listener that was not there.
        let new = TcpListener::bind("127.0.0.1:0").unwrap();
        let after = scan(HashSet::from([is_kept, ino(&new)]), Some(&before));
        assert!(held(&after, is_kept) && held(&after, ino(&new)));
    }

    #[test]
    fn a_tcp_socket_is_told_from_other_descriptors() {
        let mut without = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let is_found = has_tcp(&PathBuf::from(format!("/proc/{}", without.id())));
        without.kill().unwrap();
        without.wait().unwrap();
        assert!(!is_found);
        let _socket = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(has_tcp(Path::new("/proc/self")));
    }
}
