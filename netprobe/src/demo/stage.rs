//! What an incident is made of: hosts, settings, and processes with something to do.
//!
//! A stage is data. It says how the incident looks and, with [`super::Scenario`], how it looks after
//! its cure; [`super::incident`] makes it real.

use std::fmt::Display;

use super::{network::Host, workload::Workload};

/// The set-up of an incident.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// Whether a router is between client and server.
    pub is_routed: bool,
    /// Sysctls: the host, the dotted name, the value.
    pub sysctls: Vec<(Host, &'static str, String)>,
    /// Sysctls that only the machine as a whole has: the dotted name and the value.
    pub machine: Vec<(&'static str, String)>,
    /// Rules of nft(8), by host.
    pub firewall: Vec<(Host, String)>,
    /// Hosts whose connection tracking tables are emptied once the settings are made.
    pub forgetful: Vec<Host>,
    /// What tc(8) puts at a host's first interface: `netem delay 20ms`.
    pub queues: Vec<(Host, &'static str)>,
    /// Who does what, in the order of their start.
    pub processes: Vec<Process>,
    /// What shows that the incident is there; all of it must.
    pub signs: Vec<Sign>,
}

/// A process on a host.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Where it runs.
    pub host: Host,
    /// What it is called, at most 15 bytes.
    pub name: &'static str,
    /// What it does.
    pub workload: Workload,
}

/// Something that grows while the incident goes on, and how much of it shows that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A counter of the kernel, such as `TcpExt.ListenOverflows`.
    Counter(Host, &'static str, u64),
    /// Sockets in TIME_WAIT.
    TimeWait(Host, u64),
    /// Failures with this errno that a process met.
    Failures(&'static str, i32, u64),
    /// Requests that a process had answered, or that it answered.
    Answered(&'static str, u64),
    /// Connections that a process began or accepted.
    Started(&'static str, u64),
    /// Connections that a process gave up.
    GaveUp(&'static str, u64),
}

impl Stage {
    /// A server and a client of it, on two hosts, with no fault.
    pub fn new(serve: super::workload::Serve, request: super::workload::Request) -> Self {
        let processes = vec![
            Process {
                host: Host::Server,
                name: SERVER_NAME,
                workload: Workload::Serve(serve),
            },
            Process {
                host: Host::Client,
                name: CLIENT_NAME,
                workload: Workload::Request(request),
            },
        ];
        Self {
            processes,
            ..Self::default()
        }
    }

    /// With a sysctl on one host.
    #[must_use]
    pub fn sysctl(mut self, host: Host, name: &'static str, value: impl Display) -> Self {
        self.sysctls.push((host, name, value.to_string()));
        self
    }

    /// With a sysctl that all of this machine shares: for machines that may be harmed.
    #[must_use]
    pub fn machine(mut self, name: &'static str, value: impl Display) -> Self {
        self.machine.push((name, value.to_string()));
        self
    }

    /// With rules of nft(8) on one host.
    #[must_use]
    pub fn firewall(mut self, host: Host, rules: impl Into<String>) -> Self {
        self.firewall.push((host, rules.into()));
        self
    }

    /// With an empty connection tracking table on one host to begin with.
    #[must_use]
    pub fn forgets(mut self, host: Host) -> Self {
        self.forgetful.push(host);
        self
    }

    /// With a queueing discipline at the interface of a host.
    #[must_use]
    pub fn queue(mut self, host: Host, discipline: &'static str) -> Self {
        self.queues.push((host, discipline));
        self
    }

    /// With one more process.
    #[must_use]
    pub fn process(mut self, host: Host, name: &'static str, workload: Workload) -> Self {
        self.processes.push(Process {
            host,
            name,
            workload,
        });
        self
    }

    /// With something more that shows that it is there.
    #[must_use]
    pub fn sign(mut self, sign: Sign) -> Self {
        self.signs.push(sign);
        self
    }

    /// With a router between client and server.
    #[must_use]
    pub fn routed(mut self) -> Self {
        self.is_routed = true;
        self
    }

    /// The programs of this machine that it needs.
    pub fn tools(&self) -> Vec<&'static str> {
        let firewall = (!self.firewall.is_empty()).then_some("nft");
        let queues = (!self.queues.is_empty()).then_some("tc");
        firewall.into_iter().chain(queues).collect()
    }
}

/// What the server of a demo is called.
pub const SERVER_NAME: &str = "demo-server";
/// What the client of a demo is called.
pub const CLIENT_NAME: &str = "demo-client";
