//! Everything that was seen in a window: the input of the rules, and their only one.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use super::events::Events;
use crate::{
    observe::{
        descriptors::Peak,
        diag::{Late, Listener},
        processes::{Process, Processes},
        snapshot::{Glance, Snapshot},
        softnet::Cpu,
    },
    report::{Probe, diagnosis::Affected},
};

/// Why a rule cannot say anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap(pub String);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// How long it was.
    pub seconds: f64,
    /// When it began, in nanoseconds of the monotonic clock.
    pub began_ns: u64,
    /// Every network namespace that was there from the beginning to the end.
    pub namespaces: Vec<Netns>,
    /// Inode numbers of those that were there at the beginning only.
    pub vanished: Vec<u32>,
    /// Whether there may be others that were not asked for.
    pub is_narrowed: bool,
    /// Why there may be others that could not be read.
    pub unread: Option<String>,
    /// Counters and settings that the whole machine has, also where it is not among the namespaces.
    pub machine: Option<Netns>,
    /// The receive backlog of each CPU.
    pub softnet: Vec<Cpu>,
    /// Processes with sockets at the beginning.
    pub processes_before: Processes,
    /// Processes with sockets at the end.
    pub processes: Processes,
    /// The most descriptors that processes had open while connections waited for them, by process id.
    pub peaks: BTreeMap<u32, Peak>,
    /// Files that are open on the machine, and how many may be.
    pub files: Option<(u64, u64)>,
    /// Size of an entry of the conntrack table in bytes, where the kernel says it.
    pub conntrack_entry_bytes: Option<u64>,
    /// Memory pages that buffers of the kernel may be taken from, where they can be counted.
    pub buffer_pages: Option<u64>,
    /// Size of a memory page in bytes.
    pub page_bytes: u64,
    /// Events.
    pub events: Events,
    /// What could be attached.
    pub probes: Vec<Probe>,
}

/// A network namespace in a window.
#[derive(Clone, Debug, Default)]
pub struct Netns {
    /// Its inode number.
    pub inode: u32,
    /// Its name in `ip netns`, if it has one.
    pub name: Option<String>,
    /// Whether it is that of process 1.
    pub is_initial: bool,
    /// A process that is in it, where it has no name to enter it by: one that listens there, if there is one.
    pub pid: Option<u32>,
    /// At the beginning.
    pub before: Snapshot,
    /// At the end.
    pub after: Snapshot,
    /// When one looked at its queues.
    pub looks: Vec<Instant>,
    /// How full the queue of each listener was, again and again.
    pub queues: Vec<Queue>,
    /// How many entries the conntrack table had, again and again.
    pub conntrack_counts: Vec<i64>,
    /// How many connections had come into accept queues so far, again and again.
    pub passive_opens: Vec<i64>,
    /// How many connection attempts full accept queues had turned away so far, as often.
    pub listen_overflows: Vec<i64>,
    /// How often one looked whether requests are read late.
    pub late_looks: usize,
    /// What was seen of services that read requests late, by port.
    pub late: BTreeMap<u16, Vec<Late>>,
    /// When services stood still longest, by port.
    pub standstills: BTreeMap<u16, Standstill>,
}

/// A service that stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standstill {
    /// When that was seen last.
    pub at: Instant,
    /// What was seen of its longest stop.
    pub still: Late,
    /// How often it stopped.
    pub stops: u32,
    /// For how long in all stops, in milliseconds.
    pub all_ms: u64,
    /// For how long at its last stop so far.
    pub last_ms: u32,
    /// Bytes that it had read by then.
    pub read: u64,
    /// Whether it read all the same, slowly: as one look differs from another of the same stop.
    pub is_reading: bool,
}

impl Standstill {
    /// What is seen `now`, for the first time.
    pub fn seen(still: Late, now: Instant) -> Self {
        Self {
            at: now,
            still,
            stops: 1,
            all_ms: still.longest_ms.into(),
            last_ms: still.longest_ms,
            read: still.read,
            is_reading: false,
        }
    }

    /// Adds what is seen `now`: of the last stop, if that has not ended meanwhile, or of another.
    fn see(&mut self, still: Late, now: Instant) {
        let is_same = now.saturating_duration_since(self.at) < still.longest();
        if is_same {
            let more = still.longest_ms.saturating_sub(self.last_ms);
            self.all_ms += u64::from(more);
            // Connections that are gone take with them what was read over them.
            self.is_reading |= still.read > self.read;
        } else {
            self.stops += 1;
            self.all_ms += u64::from(still.longest_ms);
        }
        (self.at, self.last_ms, self.read) = (now, still.longest_ms, still.read);
        if still.longest_ms >= self.still.longest_ms {
            self.still = still;
        }
    }
}

/// What a listener's queue was like, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The listener, as it was last seen.
    pub listener: Listener,
    /// How many connections waited each time.
    pub depths: Vec<u32>,
}

impl Queue {
    /// The share of the times that the queue was full, from 0 to 1.
    pub fn full_share(&self) -> f64 {
        self.share(|depth| depth >= self.listener.limit.max(1))
    }

    /// The share of the times that three quarters of the queue or more were taken, from 0 to 1.
    pub fn nearly_full_share(&self) -> f64 {
        self.share(|depth| u64::from(depth) * 4 >= u64::from(self.listener.limit.max(1)) * 3)
    }

    /// The share of the times that the queue had at most half its limit, from 0 to 1.
    pub fn slack_share(&self) -> f64 {
        self.share(|depth| depth <= self.listener.limit / 2)
    }

    /// The largest number that waited.
    pub fn deepest(&self) -> u32 {
        self.depths.iter().copied().max().unwrap_or(0)
    }

    fn share(&self, is_so: impl Fn(u32) -> bool) -> f64 {
        let times = self.depths.iter().filter(|depth| is_so(**depth)).count();
        ratio(times as u64, self.depths.len() as u64)
    }
}

/// One number as a part of another; 0 where there is nothing to divide by.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let share = part as f64 / whole as f64;
    share
}

impl Netns {
    /// How much a counter has grown in the window.
    pub fn grown(&self, name: &'static str) -> Result<u64, Gap> {
        let [before, after] =
            [&self.before, &self.after].map(|snapshot| snapshot.counters.get(name).copied());
        let Some((before, after)) = before.zip(after) else {
            return Err(Gap(format!("this kernel does not count {name}")));
        };
        u64::try_from(after - before)
            .map_err(|_negative| Gap(format!("{name} went backwards in the window")))
    }

    /// How much a counter has grown; 0 where the kernel has no such counter, e.g. before its
    /// module is loaded.
    pub fn grown_if_any(&self, name: &'static str) -> Result<u64, Gap> {
        if self.after.counters.contains_key(name) && !self.before.counters.contains_key(name) {
            return Err(Gap(format!("{name} appeared only during the window")));
        }
        if self.after.counters.contains_key(name) {
            self.grown(name)
        } else {
            Ok(0)
        }
    }

    /// What a counter has counted so far, and how long that would have taken at the rate of the window, in words. Since
    /// when it goes on nobody knows: it may have been faster before.
    pub fn since(&self, name: &'static str, seconds: f64) -> Option<(u64, String)> {
        let so_far = u64::try_from(*self.after.counters.get(name)?).ok()?;
        let grown = self.grown(name).ok().filter(|grown| *grown > 0)?;
        let seconds = seconds * ratio(so_far, grown);
        let whose = if self.is_initial {
            "since boot"
        } else {
            "since this namespace was made"
        };
        let spoken = super::sizing::spoken(seconds);
        Some((
            so_far,
            if so_far == grown {
                format!("{so_far} {whose}, all of them in this window")
            } else {
                format!("{so_far} {whose}: as many as in {spoken} at this rate")
            },
        ))
    }

    /// A gauge at the end of the window.
    pub fn gauge(&self, name: &'static str) -> Result<u64, Gap> {
        let value = self.after.counters.get(name).copied();
        value
            .and_then(|value| u64::try_from(value).ok())
            .ok_or_else(|| Gap(format!("this kernel does not show {name}")))
    }

    /// A setting that is one number.
    pub fn sysctl(&self, name: &str) -> Option<u64> {
        self.after.sysctls.get(name)?.parse().ok()
    }

    /// The words of a setting.
    pub fn sysctl_words(&self, name: &str) -> Vec<u64> {
        let text = self.after.sysctls.get(name).map_or("", String::as_str);
        text.split(' ')
            .filter_map(|word| word.parse().ok())
            .collect()
    }

    /// The queue of the listener at a port; the busiest, if several share it.
    pub fn queue(&self, address: Option<IpAddr>, port: u16) -> Option<&Queue> {
        let queues = self.queues.iter().filter(|queue| {
            queue.listener.port == port
                && address.is_none_or(|address| queue.listener.address == address)
        });
        queues.max_by_key(|queue| queue.deepest())
    }

    /// How it is called in a sentence: nothing for the initial one.
    pub fn place(&self) -> String {
        match (&self.name, self.is_initial) {
            (_, true) => String::new(),
            (Some(name), false) => format!(" in namespace {name}"),
            (None, false) => format!(" in namespace {}", self.inode),
        }
    }

    /// The same, with a word for the initial one.
    pub fn place_or_here(&self) -> String {
        match self.place() {
            place if place.is_empty() => " here".to_owned(),
            place => place,
        }
    }

    /// What runs a command in it: goes before the command, and is empty for the initial one.
    pub fn enter(&self) -> String {
        // A name that a shell would understand as something else is left to the reader.
        let plain = self.name.as_ref();
        let plain = plain.filter(|name| name.chars().all(is_plain));
        match (plain, &self.name, self.pid) {
            _ if self.is_initial => String::new(),
            (Some(name), ..) => format!("ip netns exec {name} "),
            (None, _, Some(pid)) => format!("nsenter --net=/proc/{pid}/ns/net "),
            (None, Some(_), None) => "ip netns exec NAME ".to_owned(),
            (None, None, None) => "nsenter --net=/proc/PID/ns/net ".to_owned(),
        }
    }

    /// Puts samples into the histories of queues.
    pub fn add_glance(&mut self, glance: Glance) {
        self.looks.push(glance.at);
        self.conntrack_counts.extend(glance.conntrack_count);
        self.passive_opens.extend(glance.passive_opens);
        self.listen_overflows.extend(glance.listen_overflows);
        self.late_looks += usize::from(glance.late.is_some());
        for still in glance.late.into_iter().flatten() {
            self.late.entry(still.port).or_default().push(still);
            if !still.is_still {
                continue;
            }
            let known = self.standstills.entry(still.port);
            known
                .and_modify(|known| known.see(still, glance.at))
                .or_insert_with(|| Standstill::seen(still, glance.at));
        }
        for listener in glance.listeners {
            let depth = listener.queue;
            let known = self
                .queues
                .iter_mut()
                .find(|queue| queue.listener.ino == listener.ino);
            match known {
                Some(queue) => {
                    queue.depths.push(depth);
                    queue.listener = listener;
                }
                None => self.queues.push(Queue {
                    listener,
                    depths: vec![depth],
                }),
            }
        }
    }
}

impl Window {
    /// An amount of the window per second.
    pub fn rate(&self, amount: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let amount = amount as f64;
        if self.seconds > 0.0 {
            amount / self.seconds
        } else {
            0.0
        }
    }

    /// When it ended, in nanoseconds of the monotonic clock.
    pub fn ended_ns(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a time of some seconds"
        )]
        let lasted_ns = (self.seconds * 1e9) as u64;
        self.began_ns.saturating_add(lasted_ns)
    }

    /// The namespace with this inode number, if it was watched.
    pub fn namespace(&self, inode: u32) -> Option<&Netns> {
        let mut namespaces = self.namespaces.iter();
        namespaces.find(|netns| netns.inode == inode)
    }

    /// The initial namespace, which shows what namespaces share; of the machine as a whole, if that
    /// namespace itself was not asked for.
    pub fn initial(&self) -> Option<&Netns> {
        let initial = self.namespaces.iter().find(|netns| netns.is_initial);
        initial.or(self.machine.as_ref())
    }

    /// Whether a probe sees all that it can; why not, otherwise.
    pub fn watched(&self, probe: &str) -> Result<(), Gap> {
        let Some(probe) = self.probes.iter().find(|found| found.name == probe) else {
            return Err(Gap(format!("the probe {probe} did not run")));
        };
        let missing = probe.hooks.iter().find_map(|hook| {
            let why = hook.state.as_ref().err()?;
            Some(Gap(format!(
                "{} does not see {}: {why}",
                probe.name, hook.sees
            )))
        });
        missing.map_or(Ok(()), Err)
    }

    /// Whether the required part of a probe is there.
    pub fn watched_required(&self, name: &str) -> Result<(), Gap> {
        let probe = self.probes.iter().find(|probe| probe.name == name);
        match probe {
            Some(probe) if probe.state() != "missing" => Ok(()),
            _ => Err(Gap(format!("the probe {name} does not work here"))),
        }
    }

    /// A process that holds the socket of a listener, for those that are hit.
    pub fn holder(&self, listener: &Listener) -> Option<&Process> {
        self.processes.holders(listener.ino).next()
    }

    /// A listener as one that is hit.
    pub fn affected_listener(&self, netns: &Netns, listener: &Listener) -> Affected {
        let holder = self.holder(listener);
        Affected {
            kind: "listener",
            name: endpoint(listener.address, listener.port),
            netns: Some(netns.inode),
            pid: holder.map(|process| process.pid),
            comm: holder.map(|process| process.comm.clone()),
            address: Some(listener.address),
            port: Some(listener.port),
        }
    }

    /// A service that was connected to.
    pub fn affected_destination(netns: &Netns, address: IpAddr, port: u16) -> Affected {
        Affected {
            kind: "destination",
            name: endpoint(address, port),
            netns: Some(netns.inode),
            pid: None,
            comm: None,
            address: Some(address),
            port: Some(port),
        }
    }
}

/// Whether a shell takes a character as it is.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-".contains(character)
}

/// What ss(8) shows the connections to an address by; the colons of IPv6 it would take for a port, and a shell the brackets.
pub fn ss_dst(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("dst {address}"),
        IpAddr::V6(address) => format!("'dst [{address}]'"),
    }
}

/// An address and port as people write them.
pub fn endpoint(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ss_is_told_where_an_address_of_ipv6_ends() {
        assert_eq!(ss_dst([10, 0, 0, 1].into()), "dst 10.0.0.1");
        assert_eq!(ss_dst("fd79:2::2".parse().unwrap()), "'dst [fd79:2::2]'");
    }

    fn netns(before: &[(&'static str, i64)], after: &[(&'static str, i64)]) -> Netns {
        let snapshot = |counters: &[(&'static str, i64)]| Snapshot {
            counters: counters.iter().copied().collect(),
            ..Snapshot::default()
        };
        Netns {
            before: snapshot(before),
            after: snapshot(after),
            ..Netns::default()
        }
    }

    #[test]
    fn what_was_counted_before_says_nothing_about_when_it_began() {
        const NAME: &str = "TcpExt.ListenOverflows";
        let told = |before, after| {
            let netns = netns(&[(NAME, before)], &[(NAME, after)]);
            netns.since(NAME, 5.0).map(|(_, text)| text)
        };
        // Of 5980, nearly all came in a storm of a few seconds.
        let stormy = "5980 since this namespace was made: as many as in 3 min at this rate";
        assert_eq!(told(5826, 5980).as_deref(), Some(stormy));
        let new = "154 since this namespace was made, all of them in this window";
        assert_eq!(told(0, 154).as_deref(), Some(new));
        assert_eq!(told(7, 7), None);
    }

    #[test]
    fn a_namespace_is_entered_by_its_name_or_by_a_process_in_it() {
        let enter = |name: Option<&str>, pid| {
            let netns = Netns {
                name: name.map(str::to_owned),
                pid,
                ..Netns::default()
            };
            netns.enter()
        };
        assert_eq!(enter(Some("blue"), Some(7)), "ip netns exec blue ");
        assert_eq!(
            enter(Some("a; b"), Some(7)),
            "nsenter --net=/proc/7/ns/net "
        );
        assert_eq!(enter(None, Some(7)), "nsenter --net=/proc/7/ns/net ");
        assert_eq!(enter(None, None), "nsenter --net=/proc/PID/ns/net ");
    }

    #[test]
    fn counters_that_are_missing_or_go_backwards_are_gaps_not_numbers() {
        const NAME: &str = "TcpExt.ListenOverflows";
        assert_eq!(netns(&[(NAME, 3)], &[(NAME, 10)]).grown(NAME), Ok(7));
        assert!(netns(&[(NAME, 10)], &[(NAME, 3)]).grown(NAME).is_err());
        assert!(netns(&[], &[(NAME, 3)]).grown(NAME).is_err());
        assert!(netns(&[(NAME, 3)], &[]).grown(NAME).is_err());
        assert_eq!(netns(&[], &[]).grown_if_any(NAME), Ok(0));
        assert!(netns(&[], &[(NAME, 3)]).grown_if_any(NAME).is_err());
    }
}
