//! The network of a demo: anonymous namespaces joined by cables.
//!
//! A namespace lives as long as a process or a file descriptor refers to it. All of these die with
//! netprobe, however it ends, so nothing has to be taken down and nothing can be left behind.

use std::{
    fs::{self, File},
    io::Write,
    net::Ipv4Addr,
    os::{fd::AsFd, fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::{
    ctnetlink,
    rtnetlink::{self, End, LOOPBACK},
};
use crate::kernel::privileges::CannotRun;

/// Address of the connecting host.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Address of the listening host.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
/// Addresses of the router, towards the client and towards the server.
const ROUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 254), Ipv4Addr::new(10, 77, 1, 254)];
/// Client and server without a router see each other at once.
const DIRECT_PREFIX: u8 = 16;
const ROUTED_PREFIX: u8 = 24;

/// Interface of the client, of the server, and of the router towards the client.
pub const INTERFACE: &str = "eth0";
/// Interface of the router towards the server.
const SECOND_INTERFACE: &str = "eth1";
const FIRST: End = End {
    index: 2,
    name: INTERFACE,
};
const SECOND: End = End {
    index: 3,
    name: SECOND_INTERFACE,
};

/// A host of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Connects.
    Client,
    /// Between the two, if the demo has one.
    Router,
    /// Listens.
    Server,
}

impl Host {
    /// What it is called in the output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Router => "router",
            Self::Server => "server",
        }
    }
}

/// A network namespace that has no name.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// A new one, in which only loopback is up.
    fn new() -> Result<Self> {
        let netns = on_a_thread(|| {
            #[expect(
                deprecated,
                reason = "unsafe where file tables are unshared; here only the namespace is, of a \
                          thread that does nothing else"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNET).context("make a network namespace")?;
            let file = File::open("/proc/thread-self/ns/net").context("open a new namespace")?;
            rtnetlink::up(LOOPBACK)?;
            Ok(file)
        })?;
        let netns = Self(netns);
        // A socket whose process was killed keeps its namespace until its last packet is answered.
        netns.set("net.ipv4.tcp_orphan_retries", "1")?;
        Ok(netns)
    }

    /// Inode number, which names it in events and `--netns`.
    pub fn inode(&self) -> Result<u32> {
        let inode = self.0.metadata().context("stat a namespace")?.ino();
        u32::try_from(inode).context("inode numbers of namespaces have 32 bits")
    }

    /// Where another process finds it, as long as this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in it, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            enter(&self.0)?;
            work()
        })
    }

    /// Sets a sysctl of this namespace by its dotted name.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name);
        self.run(|| fs::write(&path, value).with_context(|| format!("set {name} to {value:?}")))
    }

    /// Empties its connection tracking table.
    pub(super) fn forget_connections(&self) -> Result<()> {
        self.run(ctnetlink::forget_all)
    }

    /// Runs a tool in it, giving it `input` to read.
    pub(super) fn tool(&self, words: &[&str], input: &str) -> Result<()> {
        let Some((program, arguments)) = words.split_first() else {
            return Ok(());
        };
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|why| CannotRun::new(format!("cannot run {program}: {why}")))?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin
                    .write_all(input.as_bytes())
                    .context("write its input")?;
            }
            let output = child.wait_with_output().context("wait for its end")?;
            if !output.status.success() {
                let complaint = String::from_utf8_lossy(&output.stderr);
                // A kernel without the module that it needs is the usual reason.
                let why = format!("{}: {}", words.join(" "), complaint.trim());
                return Err(CannotRun::new(why).into());
            }
            Ok(())
        })
    }
}

/// The namespaces of a demo.
#[derive(Debug)]
pub struct Network {
    client: Netns,
    router: Option<Netns>,
    server: Netns,
}

impl Network {
    /// Client and server with a cable between them, or two cables and a router.
    pub(super) fn new(is_routed: bool) -> Result<Self> {
        let (client, server) = (Netns::new()?, Netns::new()?);
        if is_routed {
            return Self::routed(client, server);
        }
        client.run(|| {
            rtnetlink::cable(&FIRST, &FIRST, server.0.as_fd())?;
            rtnetlink::address(FIRST.index, CLIENT, DIRECT_PREFIX)?;
            rtnetlink::up(FIRST.index)
        })?;
        server.run(|| {
            rtnetlink::address(FIRST.index, SERVER, DIRECT_PREFIX)?;
            rtnetlink::up(FIRST.index)?;
            rtnetlink::default_route(CLIENT)
        })?;
        client.run(|| rtnetlink::default_route(SERVER))?;
        Ok(Self {
            client,
            router: None,
            server,
        })
    }

    fn routed(client: Netns, server: Netns) -> Result<Self> {
        let router = Netns::new()?;
        let ends = [
            (&client, CLIENT, FIRST, ROUTER[0]),
            (&server, SERVER, SECOND, ROUTER[1]),
        ];
        for (netns, address, end, gateway) in ends {
            router.run(|| {
                rtnetlink::cable(&end, &FIRST, netns.0.as_fd())?;
                rtnetlink::address(end.index, gateway, ROUTED_PREFIX)?;
                rtnetlink::up(end.index)
            })?;
            netns.run(|| {
                rtnetlink::address(FIRST.index, address, ROUTED_PREFIX)?;
                rtnetlink::up(FIRST.index)?;
                rtnetlink::default_route(gateway)
            })?;
        }
        router.set("net.ipv4.ip_forward", "1")?;
        Ok(Self {
            client,
            router: Some(router),
            server,
        })
    }

    /// The namespace of a host.
    pub fn of(&self, host: Host) -> Result<&Netns> {
        match host {
            Host::Client => Ok(&self.client),
            Host::Router => self.router.as_ref().context("this demo has no router"),
            Host::Server => Ok(&self.server),
        }
    }

    /// Every host with its namespace.
    pub fn hosts(&self) -> impl Iterator<Item = (Host, &Netns)> {
        let router = self.router.iter().map(|netns| (Host::Router, netns));
        let ends = [(Host::Client, &self.client), (Host::Server, &self.server)];
        ends.into_iter().chain(router)
    }
}

/// The file of a sysctl.
pub(super) fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

/// Moves this thread into the namespace at `path`, for good.
pub(super) fn enter_path(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    enter(&file)
}

fn enter(file: &File) -> Result<()> {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .context("enter a network namespace")
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, work);
        let worker = worker.context("start a thread")?;
        worker
            .join()
            .map_err(|_panic| anyhow!("a thread panicked"))?
    })
}
