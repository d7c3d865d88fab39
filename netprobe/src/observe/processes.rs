//! Processes with sockets: who holds which listener, how many file descriptors are left, and whether those that have none
//! left speak TCP.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{clock::thread_cpu, stat};

/// A scan ends here; a machine may have more descriptors than there is time.
const PATIENCE: Duration = Duration::from_millis(400);
/// Most descriptors of a process whose target is looked at; listeners are opened early.
const LOOKED_AT: usize = 20_000;

/// A process that holds a listener or many descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as it chose it.
    pub comm: String,
    /// What its first thread does, as in ps(1): `R`, `S`, `D`, `T` …
    pub state: Option<char>,
    /// Open descriptors.
    pub fds: u64,
    /// Where `open` and `accept` begin to fail (EMFILE).
    pub fd_limit: u64,
    /// How far it may raise that itself.
    pub fd_hard_limit: u64,
    /// Its unit of systemd(1), if it has one.
    pub unit: Option<String>,
    /// Inode numbers of the wanted sockets that it holds.
    pub sockets: Vec<u64>,
    /// Its network namespace, where it has [no descriptors](Self::has_no_descriptors).
    pub netns: Option<u32>,
    /// Whether it is seen to hold a TCP socket; looked at only where it has no descriptors.
    pub has_tcp: bool,
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
}

impl Processes {
    /// The processes that hold a socket, the lowest id first: the parent, as a rule.
    pub fn holders(&self, ino: u64) -> impl Iterator<Item = &Process> {
        self.by_pid
            .values()
            .filter(move |process| process.sockets.contains(&ino))
    }
}

/// Looks at every process; `wanted` are the inode numbers of the sockets whose holders matter.
#[expect(clippy::implicit_hasher, reason = "only ours are asked for")]
pub fn scan(wanted: &HashSet<u64>) -> Processes {
    let mut found = Processes::default();
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
        processes.extend(counted(pid, &entry.path()));
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
            process.sockets = sockets(&path, wanted);
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
fn descriptors(folder: &Path) -> Option<u64> {
    let size = fs::metadata(folder).ok()?.len();
    if size > 0 {
        return Some(size);
    }
    Some(fs::read_dir(folder).ok()?.flatten().count() as u64)
}

/// The wanted sockets that a process holds.
fn sockets(process: &Path, wanted: &HashSet<u64>) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return Vec::new();
    };
    let targets = descriptors
        .flatten()
        .take(LOOKED_AT)
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets
        .filter_map(|target| socket(target.to_str()?))
        .filter(|ino| wanted.contains(ino))
        .collect()
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
    process.state = stat::field(&stat, 3).and_then(|state| state.chars().next());
    process.unit = unit(&fs::read_to_string(path.join("cgroup")).unwrap_or_default());
    if process.has_no_descriptors() {
        let netns = fs::metadata(path.join("ns/net"));
        process.netns = netns.ok().and_then(|netns| netns.ino().try_into().ok());
    }
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
    }

    #[test]
    fn the_holder_of_a_listener_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let ino = socket(link.to_str().unwrap()).unwrap();
        let found = scan(&HashSet::from([ino]));
        let holder = found.holders(ino).next().unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(holder.fds > 0 && holder.fd_limit > holder.fds);
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
