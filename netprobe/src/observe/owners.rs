//! Which process holds a socket, by the socket's inode number: from `/proc/PID/fd`.
//!
//! Sockets that were open before we came, and accepted ones, have no other owner. A scan is
//! slow on a busy machine, so all of them together may take a tenth of the time, after an allowance.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// A process, and the name of it.
type Holder = (u32, [u8; 16]);

/// Holders of sockets.
#[derive(Debug, Default)]
pub struct Owners {
    holders: HashMap<u64, Holder>,
    /// When the first scan began, and how long all of them took.
    first: Option<Instant>,
    spent: Duration,
}

/// Sockets that are remembered; beyond that only those that are still there.
const MOST: usize = 131_072;
/// Scanning may take this long at any time,
const ALLOWANCE: Duration = Duration::from_secs(2);
/// and beyond that one part in so many of the time that passes.
const SHARE: u32 = 10;

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
        self.learn();
        self.holders.get(&ino).copied()
    }

    /// Looks who holds which socket now, if a scan is due.
    pub fn learn(&mut self) {
        let begin = Instant::now();
        let first = *self.first.get_or_insert(begin);
        if self.spent > ALLOWANCE + begin.duration_since(first) / SHARE {
            return;
        }
        self.scan(Path::new("/proc"));
        self.spent += begin.elapsed();
    }

    /// Adds to what is known: the kernel gives no two sockets the same inode number, so that those of
    /// processes that are gone stay right. Of several processes that share a socket, the first is kept.
    fn scan(&mut self, proc: &Path) {
        if self.holders.len() > MOST {
            self.holders.clear();
        }
        let Ok(entries) = fs::read_dir(proc) else {
            return;
        };
        let mut held = HashMap::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
                scan_process(pid, &entry.path(), &mut held);
            }
        }
        self.holders.extend(held);
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
    fn an_open_socket_is_found_with_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let ino = socket_inode(link.to_str().unwrap()).unwrap();
        let (pid, comm) = Owners::default().of(ino).unwrap();
        assert_eq!(pid, std::process::id());
        assert_ne!(comm[0], 0);
    }
}
