//! The one list of probes. Each file says what its event means to a person in an incident, what
//! it attaches to, and how its record becomes a row.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netprobe_common::{
    counters::{Count, CountKey, GroupKey},
    header::{Header, Kind},
    offsets::Field,
    record::{Plain, read},
    records::{Flow, Owner, Role},
};

use errno::errno;

use crate::{
    decode::{Arrival, DecodeError, Names},
    report::{Column, Setting, Value},
};

pub mod accepts;
pub mod connects;
pub mod conntrack;
pub mod drops;
mod errno;
pub mod lifetimes;
pub mod listeners;
pub mod resets;
pub mod retransmits;
pub mod states;
pub mod time_wait;

/// Every probe, in the order of [`Kind`].
pub static PROBES: &[&ProbeSpec] = &[
    &drops::SPEC,
    &retransmits::SPEC,
    &connects::SPEC,
    &listeners::SPEC,
    &conntrack::SPEC,
    &resets::SPEC,
    &lifetimes::SPEC,
    &time_wait::SPEC,
    &states::SPEC,
    &accepts::SPEC,
];

/// A kind of event: what it means, where it comes from, how it reads.
#[derive(Debug)]
pub struct ProbeSpec {
    /// The event.
    pub kind: Kind,
    /// What it tells, in one line.
    pub about: &'static str,
    /// Where its programs attach.
    pub hooks: &'static [Hook],
    /// Fields without which its events are not worth sending.
    pub needs: &'static [Field],
    /// What its programs remember between events.
    pub keeps: Keeps,
    /// What its rows hold.
    pub columns: &'static [Column],
    /// Tests of a filter that its programs make, beside those of the flow.
    pub kernel_tests: &'static [KernelTest],
    /// What a weight of 1 is in totals and flame graphs, or the column that is added up.
    pub weight: &'static str,
    /// Turns a record into the values of a row.
    pub decode: Decode,
    /// What the events counted under a key share.
    pub group: fn(&CountKey, &mut dyn Names) -> Vec<(&'static str, Value)>,
    /// The name of a code, which roots the stacks of a flame graph.
    pub code: fn(u32, &mut dyn Names) -> Value,
    /// What the kernel counts as well.
    pub oracles: &'static [Oracle],
}

/// A counter of the kernel, of what a probe sees.
#[derive(Debug)]
pub struct Oracle {
    /// What is counted, in the plural.
    pub unit: &'static str,
    /// Its name, as nstat(8) shows it with a point.
    pub counter: &'static str,
    /// Another one that counts what this one has too many of.
    pub but: Option<&'static str>,
    /// How many of a group of `--count` it counts.
    pub seen: fn(&CountKey, &Count) -> u64,
    /// Where it counts something else as well.
    pub not_where: Option<Setting>,
}

/// Turns a record into the values of a row.
pub type Decode = fn(&[u8], &mut dyn Names, &mut Vec<Value>) -> Result<(), DecodeError>;

impl ProbeSpec {
    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.kind.name()
    }
}

/// The probe of a kind.
pub fn of(kind: Kind) -> &'static ProbeSpec {
    PROBES[kind as usize]
}

/// What the programs of a probe remember between events; the kernel allocates room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing.
    Nothing,
    /// Who opened or closed a socket.
    Owners,
    /// Connects under way.
    Connects,
    /// Every open connection: its age and owner.
    Lives,
    /// The same, and since when it is in its state.
    States,
}

/// A test that the programs of some probes make, see `netprobe_common::filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTest {
    /// Of the TCP state (`filter::admits_state`).
    State,
    /// Of the drop reason (`filter::admits_reason`).
    Reason,
    /// Of the interface, by name or index (`filter::admits_interface`).
    Interface,
    /// Of the cgroup of the socket (`cgroups::admits`), where this kernel keeps it.
    Cgroup,
    /// Of the process that called, by id or name (`filter::admits_caller`).
    Caller,
}

/// A place in the kernel that a probe watches.
#[derive(Debug)]
pub struct Hook {
    /// What is seen there.
    pub sees: &'static str,
    /// Whether the probe is of no use without it.
    pub required: bool,
    /// Whether its programs only note down what the probe [`ProbeSpec::keeps`]: of several probes that keep the
    /// same, one does it for all.
    pub only_remembers: bool,
    /// The module that must be loaded, if it is in one.
    pub module: Option<&'static str>,
    /// The ways to watch it, best first; each is taken as a whole or not at all.
    pub ways: &'static [&'static [Attach]],
}

/// One program at one place.
#[derive(Debug)]
pub struct Attach {
    /// The program in the object.
    pub program: &'static str,
    /// Its type.
    pub via: Via,
    /// The tracepoint or function.
    pub target: &'static str,
    /// The program of another probe at the same place that does this one's work too, for less than two cost, if it
    /// is told to (`Config::joined`).
    pub within: Option<&'static str>,
}

impl Attach {
    /// The same, within `program` where that runs.
    #[must_use]
    pub const fn or_within(self, program: &'static str) -> Self {
        Self {
            within: Some(program),
            ..self
        }
    }

    /// What the kernel's BTF calls the target; `None` if the program finds it otherwise.
    pub fn type_name(&self) -> Option<String> {
        match self.via {
            Via::TpBtf => Some(format!("btf_trace_{}", self.target)),
            Via::Fentry | Via::Fexit => Some(self.target.to_owned()),
            Via::Kprobe | Via::Kretprobe => None,
        }
    }
}

/// A type of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Typed tracepoint (`BPF_TRACE_RAW_TP`).
    TpBtf,
    /// Function entry by trampoline.
    Fentry,
    /// Function exit by trampoline.
    Fexit,
    /// Function entry by breakpoint.
    Kprobe,
    /// Function return by breakpoint.
    Kretprobe,
}

impl Via {
    /// Its name, as in bpftool(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
        }
    }

    /// The program `program` of this type at `target`.
    pub const fn on(self, target: &'static str, program: &'static str) -> Attach {
        Attach {
            program,
            via: self,
            target,
            within: None,
        }
    }
}

/// The headers of the packet that a record of `kind` carries; none if it carries no packet.
pub fn packet(kind: Kind, bytes: &[u8]) -> &[u8] {
    match kind {
        Kind::Drops => drops::packet(bytes),
        _ => &[],
    }
}

/// Reads the record of a probe, which must be of exactly the size that this build knows.
fn record<T: Plain>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() != size_of::<T>() {
        return Err(DecodeError::Length {
            got: bytes.len(),
            want: size_of::<T>(),
        });
    }
    read(bytes).ok_or(DecodeError::Length {
        got: bytes.len(),
        want: size_of::<T>(),
    })
}

/// An address of the wire. An IPv4 connection of an IPv6 socket is shown as what it is: IPv4.
fn ip(family: u16, bytes: [u8; 16]) -> Value {
    match family {
        2 => {
            let [a, b, c, d, ..] = bytes;
            Value::Ip(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        10 => Value::Ip(Ipv6Addr::from(bytes).to_canonical()),
        _ => Value::Unknown,
    }
}

/// `ipv4`, `ipv6`, or `ipv4-mapped` for IPv4 on an IPv6 socket.
fn family(flow: &Flow) -> Value {
    match flow.family {
        2 => Value::Word("ipv4"),
        10 if Ipv6Addr::from(flow.daddr).to_ipv4_mapped().is_some() => Value::Word("ipv4-mapped"),
        10 => Value::Word("ipv6"),
        _ => Value::Unknown,
    }
}

/// A port of the wire.
fn port(bytes: [u8; 2]) -> Value {
    Value::Unsigned(u64::from(u16::from_be_bytes(bytes)))
}

/// Addresses and ports of a connection that was counted: source, then destination.
pub(crate) fn ends(key: &GroupKey) -> [Value; 4] {
    if key.family == 0 {
        return [const { Value::Unknown }; 4];
    }
    let is_drop = key.key.kind == Kind::Drops as u32;
    let port = |bytes: [u8; 2]| match bytes {
        // Of a later fragment.
        [0, 0] if is_drop => Value::Unknown,
        bytes => port(bytes),
    };
    [
        ip(key.family, key.saddr),
        port(key.sport),
        ip(key.family, key.daddr),
        port(key.dport),
    ]
}

/// The four values of [`FLOW`].
fn flow(flow: &Flow) -> [Value; 4] {
    [
        ip(flow.family, flow.saddr),
        port(flow.sport),
        ip(flow.family, flow.daddr),
        port(flow.dport),
    ]
}

/// The values of `pid`, `comm` and `ino`.
fn owner(owner: &Owner, names: &mut dyn Names) -> [Value; 3] {
    let (pid, comm) = match names.owner(owner) {
        Some((pid, comm)) => (Value::nonzero(pid), Value::name(comm)),
        None => (Value::Unknown, Value::Unknown),
    };
    [pid, comm, Value::nonzero(owner.ino)]
}

/// Where the listener of a group listens.
pub(crate) fn listener(key: &GroupKey) -> Value {
    ip(key.listener_family, key.listener)
}

/// The process of a group, as `pid` and `comm`.
pub(crate) fn process(key: &GroupKey, names: &mut dyn Names) -> [Value; 2] {
    let is_server = match u16::try_from(key.key.kind).ok().and_then(Kind::from_raw) {
        Some(Kind::Accepts) => true,
        // There the kernel counts the role in the place of a code location.
        Some(Kind::Lifetimes | Kind::TimeWait) => key.key.location == Role::Server as u64,
        _ => false,
    };
    // It was counted at any time so far.
    names.at(None);
    let flow = Flow {
        saddr: key.saddr,
        family: key.family,
        sport: key.key.port,
        netns: key.key.netns,
        ..Flow::zeroed()
    };
    let [pid, comm, _ino] = if is_server {
        accepted_owner(&key.owner, &flow, None, names)
    } else {
        owner(&key.owner, names)
    };
    [pid, comm]
}

/// The value of [`CGROUP`].
pub(crate) fn cgroup(owner: &Owner, names: &mut dyn Names) -> Value {
    names.cgroup(owner)
}

/// The column of the cgroup, which names a container or service.
pub(crate) const CGROUP: Column = Column::text(
    "cgroup",
    "CGROUP",
    30,
    "control group (version 2) of the socket, such as a container or service; `id N` where nobody knows its path",
)
.wide();

/// As [`owner`], for a socket that was accepted at a time, or at any time since we came: if it has no owner
/// yet, or none any more, it is that of the listener if that is certain.
fn accepted_owner(
    owner: &Owner,
    flow: &Flow,
    opened_ns: Option<u64>,
    names: &mut dyn Names,
) -> [Value; 3] {
    let found = self::owner(owner, names);
    if found[0] != Value::Unknown {
        return found;
    }
    let [_, _, ino] = found;
    let address = match ip(flow.family, flow.saddr) {
        Value::Ip(address) => Some(address),
        _ => None,
    };
    let arrival = Arrival {
        netns: flow.netns,
        local: (address, u16::from_be_bytes(flow.sport)),
        cgroup: owner.cgroup,
        opened_ns,
    };
    match names.listener(&arrival) {
        Some((pid, comm)) => [Value::nonzero(pid), Value::name(comm), ino],
        None => [Value::Unknown, Value::Unknown, ino],
    }
}

/// When a connection was opened that has been open for so long at an event; `None` if that was not seen.
fn opened_ns(header: &Header, age_ns: u64) -> Option<u64> {
    (age_ns != 0).then(|| header.ts_ns.saturating_sub(age_ns))
}

/// Which end of a connection this machine is.
fn role(raw: u8) -> Value {
    Role::name_of(raw).map_or(Value::Unknown, Value::Word)
}

/// A TCP state by its number (`include/net/tcp_states.h`), spelled as in ss(8).
pub(crate) fn tcp_state(number: u8) -> Value {
    Value::Word(match number {
        1 => "ESTAB",
        2 => "SYN-SENT",
        3 => "SYN-RECV",
        4 => "FIN-WAIT-1",
        5 => "FIN-WAIT-2",
        6 => "TIME-WAIT",
        7 => "UNCONN",
        8 => "CLOSE-WAIT",
        9 => "LAST-ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        12 => "NEW-SYN-RECV",
        _ => return Value::Unknown,
    })
}

#[cfg(test)]
pub(crate) mod tests;
