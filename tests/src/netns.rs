//! Private network namespaces, and a cable between two of them.
//!
//! Traffic of a test stays in its namespaces, and their counters begin at zero. Everything is
//! gone when the last thread, process and file that refer to a namespace are.

use std::{
    fmt::Display,
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt,
    },
    process::{Command, Stdio, id},
    thread,
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::{counters::Counters, traffic::offload, wait_until};

/// Name of the interface at both ends of a [`Cable`].
pub const INTERFACE: &str = "np0";

/// A network namespace of this test.
#[derive(Debug)]
pub struct Netns {
    file: File,
    inum: u32,
}

impl Netns {
    /// A new one, in which only loopback is up.
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: only the namespace of this short-lived thread changes, no file descriptors.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("make a network namespace");
            Self::of_this_thread()
        });
        let netns = made.join().expect("make a network namespace");
        netns.ip("link set lo up");
        netns
    }

    /// The one that this thread is in.
    pub fn of_this_thread() -> Self {
        let file = File::open("/proc/thread-self/ns/net").expect("open the network namespace");
        let inum = file.metadata().expect("stat the network namespace").ino();
        let inum = u32::try_from(inum).expect("a namespace's inode number has 32 bits");
        Self { file, inum }
    }

    /// Inode number, which names it in events and `--netns`.
    pub const fn inum(&self) -> u32 {
        self.inum
    }

    /// Moves this thread into it, for good.
    pub fn enter(&self) {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("enter a network namespace");
    }

    /// Runs `work` in it, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter();
                work()
            });
            match worker.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Where ip(8) finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.file.as_raw_fd())
    }

    /// Runs commands of ip(8) in it, one per line.
    #[track_caller]
    pub fn ip(&self, batch: &str) -> String {
        self.command("ip", &["-batch", "-"], batch)
    }

    /// Loads rules of nft(8) into it.
    #[track_caller]
    pub fn nft(&self, rules: &str) -> String {
        self.command("nft", &["-f", "-"], rules)
    }

    /// Drops the packets of protocol `inet` that `matching` describes, at `hook`, and counts them.
    #[track_caller]
    pub fn firewall(&self, hook: &str, matching: &str) -> Firewall<'_> {
        self.nft(&format!(
            "table inet netprobe {{\n\
             chain drops {{ type filter hook {hook} priority -300; {matching} counter drop; }}\n\
             }}\n"
        ));
        Firewall { netns: self }
    }

    /// Sets a sysctl by its dotted name.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: impl Display) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let value = format!("{value}");
        self.run(|| fs::write(&path, value).unwrap_or_else(|why| panic!("write {path}: {why}")));
    }

    /// Its counters now.
    pub fn counters(&self) -> Counters {
        self.run(Counters::of_this_thread)
    }

    /// Waits until no TCP timer can fire in it any more.
    #[track_caller]
    pub fn wait_for_silence(&self) {
        wait_until("all connections had ended", || {
            self.run(crate::counters::waiting_sockets) == 0
        });
    }

    fn command(&self, program: &str, arguments: &[&str], input: &str) -> String {
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|why| panic!("run {program}: {why}"));
            let mut stdin = child.stdin.take().expect("standard input is a pipe");
            stdin.write_all(input.as_bytes()).expect("write its input");
            drop(stdin);
            let output = child.wait_with_output().expect("read its output");
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program}: {complaint}\n{input}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

/// A rule that drops packets; taken out when this is dropped.
#[derive(Debug)]
pub struct Firewall<'a> {
    netns: &'a Netns,
}

impl Firewall<'_> {
    /// Packets that it has dropped.
    pub fn dropped(&self) -> u64 {
        let chain = self
            .netns
            .command("nft", &["list", "chain", "inet", "netprobe", "drops"], "");
        let (_, count) = chain
            .split_once("counter packets ")
            .expect("the rule has a counter");
        let digits = count.split(' ').next().unwrap_or_default();
        digits.parse().expect("the counter is a number")
    }

    /// Lets everything pass from here on, and says what was dropped until then.
    pub fn open(self) -> u64 {
        // In front of it: a rule that is read and then deleted could drop in between.
        self.netns.nft("insert rule inet netprobe drops accept");
        self.dropped()
    }
}

impl Drop for Firewall<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.netns.nft("delete table inet netprobe");
        }
    }
}

/// Two namespaces with a cable between them, IPv4 and IPv6.
#[derive(Debug)]
pub struct Cable {
    /// Has the addresses [`crate::traffic::CLIENT`].
    pub client: Netns,
    /// Has the addresses [`crate::traffic::SERVER`].
    pub server: Netns,
}

impl Cable {
    /// Two new namespaces; the addresses are the same in every cable.
    pub fn new() -> Self {
        let (client, server) = (Netns::new(), Netns::new());
        let peer = server.path();
        client.ip(&format!(
            "link add {INTERFACE} address 02:77:00:00:00:01 type veth \
             peer name {INTERFACE} address 02:77:00:00:00:02 netns {peer}\n{}",
            end("1", "2")
        ));
        server.ip(&end("2", "1"));
        for netns in [&client, &server] {
            // Each packet is one packet in the firewall's counters.
            netns.run(|| offload::receive(INTERFACE, false));
        }
        wait_until("the cable carried", || {
            let flags = client.command("ip", &["-o", "link", "show", INTERFACE], "");
            flags.contains("LOWER_UP")
        });
        Self { client, server }
    }
}

impl Default for Cable {
    fn default() -> Self {
        Self::new()
    }
}

/// Addresses of one end, and neighbours that need not be asked for.
fn end(mine: &str, other: &str) -> String {
    format!(
        "address add 10.77.0.{mine}/24 dev {INTERFACE}\n\
         address add fd77::{mine}/64 dev {INTERFACE} nodad\n\
         link set {INTERFACE} up\n\
         neighbor add 10.77.0.{other} lladdr 02:77:00:00:00:0{other} dev {INTERFACE} nud permanent\n\
         neighbor add fd77::{other} lladdr 02:77:00:00:00:0{other} dev {INTERFACE} nud permanent\n"
    )
}
