//! Owners of sockets, in this machine's `/proc` and in one that is made up.

use super::*;
use std::{
    fs,
    net::TcpListener,
    os::{fd::AsRawFd, unix::fs::symlink},
    time::Duration,
};

use super::super::{clock::asleep_ns, processes::socket};

/// A `/proc` that is made up.
pub(in super::super) struct Proc(PathBuf);

impl Proc {
    pub(in super::super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("np-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(in super::super) fn owners(&self) -> Owners {
        Owners::of_proc(self.0.clone())
    }

    /// A process that began at a time.
    pub(in super::super) fn process(&self, pid: u32, comm: &str, started_ns: u64) {
        let process = self.0.join(pid.to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), format!("{comm}\n")).unwrap();
        // Its end of the tick must not be after `started_ns`.
        let ticks = ((started_ns + asleep_ns()) / 10_000_000).saturating_sub(1);
        let fields = "0 ".repeat(18);
        fs::write(
            process.join("stat"),
            format!("{pid} ({comm}) S {fields}{ticks} 0\n"),
        )
        .unwrap();
    }

    /// As the kernel makes them: the newest has the highest id.
    fn forked(&self, pid: u32, comm: &str) {
        self.process(pid, comm, 0);
        fs::write(
            self.0.join(format!("{pid}/status")),
            format!("Name:\t{comm}\nTgid:\t{pid}\n"),
        )
        .unwrap();
        fs::write(self.0.join("loadavg"), format!("0.1 0.1 0.1 1/99 {pid}\n")).unwrap();
    }

    pub(in super::super) fn open(&self, pid: u32, fd: u32, ino: u64) {
        symlink(format!("socket:[{ino}]"), self.descriptor(pid, fd)).unwrap();
    }

    pub(in super::super) fn close(&self, pid: u32, fd: u32) {
        fs::remove_file(self.descriptor(pid, fd)).unwrap();
    }

    pub(in super::super) fn end(&self, pid: u32) {
        fs::remove_dir_all(self.0.join(pid.to_string())).unwrap();
    }

    fn descriptor(&self, pid: u32, fd: u32) -> PathBuf {
        self.0.join(format!("{pid}/fd/{fd}"))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn pid_of(owners: &mut Owners, ino: u64) -> Option<u32> {
    owners.of(ino, now_ns()).map(|(pid, _)| pid)
}

#[test]
fn an_open_socket_is_found_with_its_process() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
    let ino = socket(link.to_str().unwrap()).unwrap();
    let (pid, comm) = Owners::default().of(ino, now_ns()).unwrap();
    assert_eq!(pid, std::process::id());
    assert_ne!(comm[0], 0);
}

#[test]
fn what_was_learnt_at_the_beginning_is_known_when_the_socket_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
    let ino = socket(link.to_str().unwrap()).unwrap();
    let mut owners = Owners::default();
    owners.learn();
    owners.finish_first_scan();
    drop(listener);
    assert_eq!(pid_of(&mut owners, ino), Some(std::process::id()));
    assert_eq!(pid_of(&mut Owners::default(), ino), None);
}

#[test]
fn a_socket_that_was_handed_on_belongs_to_who_has_it_now() {
    let proc = Proc::new("handed-on");
    proc.process(100, "acceptor", 0);
    proc.process(200, "receiver", 0);
    proc.open(100, 4, 77);
    let mut owners = proc.owners();
    assert_eq!(pid_of(&mut owners, 77), Some(100));
    proc.open(200, 9, 77);
    proc.close(100, 4);
    assert_eq!(pid_of(&mut owners, 77), Some(200));
    proc.end(200);
    assert_eq!(pid_of(&mut owners, 77), Some(200), "the last one");
}

#[test]
fn of_those_that_share_a_socket_one_that_still_has_it_is_named() {
    let proc = Proc::new("shared");
    for (pid, comm) in [(100, "parent"), (200, "worker")] {
        proc.process(pid, comm, 0);
        proc.open(pid, 4, 77);
    }
    let mut owners = proc.owners();
    assert_eq!(pid_of(&mut owners, 77), Some(100));
    assert_eq!(owners.last(77).len(), 2);
    proc.close(100, 4);
    assert_eq!(pid_of(&mut owners, 77), Some(200));
}

#[test]
fn a_list_of_holders_is_none_when_one_of_them_is_gone_and_it_is_not_due_to_look_again() {
    let proc = Proc::new("holders");
    for pid in [100, 200] {
        proc.process(pid, "worker", 0);
        proc.open(pid, 4, 77);
    }
    let mut owners = proc.owners();
    assert_eq!(owners.all(77, now_ns(), 0).len(), 2);
    proc.end(200);
    owners.budget.spend(Duration::from_mins(1));
    assert_eq!(owners.all(77, now_ns(), 0).len(), 0);
    owners.budget = Budget::default();
    assert_eq!(owners.all(77, now_ns(), 0).len(), 1);
}

#[test]
fn a_process_that_was_forked_since_the_last_look_shares_the_socket() {
    let proc = Proc::new("forked");
    proc.forked(100, "parent");
    proc.open(100, 4, 77);
    let mut owners = proc.owners();
    let pids = |owners: &mut Owners| -> Vec<u32> {
        let holders = owners.all(77, now_ns(), 0);
        holders.iter().map(|holder| holder.pid).collect()
    };
    assert_eq!(pids(&mut owners), [100]);
    proc.forked(102, "child");
    proc.open(102, 4, 77);
    // A thread of it has the same descriptors.
    proc.forked(103, "thread");
    proc.open(103, 4, 77);
    fs::write(proc.0.join("103/status"), "Tgid:\t102\n").unwrap();
    assert_eq!(pids(&mut owners), [100, 102]);
    proc.forked(104, "unseen");
    owners.budget.spend(Duration::from_mins(1));
    assert_eq!(pids(&mut owners), [0; 0], "it cannot be said");
}

#[test]
fn a_process_that_waits_for_its_parent_is_not_there_any_more() {
    let proc = Proc::new("owners-zombie");
    proc.process(7, "server", now_ns());
    let mut owners = proc.owners();
    assert!(owners.has(7, 0) && !owners.has(8, 0));
    let stat = proc.0.join("7/stat");
    let ended = fs::read_to_string(&stat).unwrap().replace(") S ", ") Z ");
    fs::write(stat, ended).unwrap();
    // What was seen shortly before is not looked at again.
    assert!(owners.has(7, FRESH_NS / 2));
    assert!(!owners.has(7, 2 * FRESH_NS));
}
