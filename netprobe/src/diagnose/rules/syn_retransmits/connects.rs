//! How connects to a destination went, where they are seen; and destinations that take none, although no
//! SYN to them was sent again: clients gave up before that, or were told that nobody is there.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use super::{
    super::super::{
        events::{Event, Owner, port_of},
        places::{self, End},
        window::{Netns, Window, ratio},
    },
    DOWN, lost_here,
};

/// What connect() fails with where routes, the neighbours on the link or the other end say so.
pub(super) const UNREACHABLE: [&str; 4] = ["EHOSTUNREACH", "ENETUNREACH", "EACCES", "EINVAL"];
/// Fewer connects are not "all of them".
const LEAST_CONNECTS: u64 = 5;
/// Who waits less does not wait for an answer: it comes from another continent in that time.
const PATIENT_NS: u64 = 250_000_000;

/// Connects to a destination, among those that were seen.
pub(super) struct Connects {
    pub(super) attempts: u64,
    pub(super) established: u64,
    /// All were seen, or none to the port got through.
    is_certain: bool,
}

impl Connects {
    /// Those from a namespace to one address and port.
    pub(super) fn of(window: &Window, netns: &Netns, (address, port): End) -> Option<Self> {
        window.watched_required("connects").ok()?;
        let is_to = |event: &&Event| {
            event.ip("daddr") == Some(address) && event.small("dport") == Some(port)
        };
        let ended = window.events.within("connects", netns.inode).filter(is_to);
        let again = window.events.within("retransmits", netns.inode);
        let again: HashSet<_> = again
            .filter(|event| event.is("cause", "syn"))
            .filter(is_to)
            .map(|event| event.number("sport"))
            .collect();
        let (mut attempts, mut established) = (0, 0);
        let mut ports = HashSet::new();
        for event in ended {
            // One that sent nothing in the window says nothing of it.
            if is_older(window, event) && !again.contains(&event.number("sport")) {
                continue;
            }
            attempts += 1;
            established += u64::from(event.is("outcome", "established"));
            ports.insert(event.number("sport"));
        }
        // A connect without a time limit of its own does not end within the window. Where connects
        // are a sample, their ports do not tell which ones are still waiting.
        let is_certain = window.events.weight("connects") < 1.5 || is_deaf(window, netns, port);
        if is_certain {
            attempts += again.difference(&ports).count() as u64;
        }
        Some(Self {
            attempts,
            established,
            is_certain,
        })
    }

    /// Whether certainly none succeeded.
    pub(super) const fn are_in_vain(&self) -> bool {
        self.is_certain && self.established == 0 && self.attempts > 0
    }

    pub(super) fn is_down(&self) -> bool {
        self.attempts >= LEAST_CONNECTS && ratio(self.established, self.attempts) <= DOWN
    }
}

/// Whether no connect to a port succeeded, by the kernel's count of all.
fn is_deaf(window: &Window, netns: &Netns, port: u16) -> bool {
    let inode = netns.inode.to_string();
    let group = [("outcome", "established"), ("netns", inode.as_str())];
    let mut ports = window.events.groups("connects", &group);
    // Those of many ports may be of this one.
    !ports.any(|total| port_of(total, "dport").is_none_or(|found| found == port))
}

/// How connects ended without a SYN that was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client closed after so long without an answer, at most.
    GivenUp { waited_ns: u64 },
    /// The kernel of the client says that it cannot be reached.
    Unreachable {
        /// In which words.
        errno: &'static str,
        /// Whether nobody on the link answered for the address of the next hop.
        is_neighbour: bool,
    },
}

/// A destination that takes no connect.
#[derive(Debug)]
pub(super) struct Dead {
    pub(super) end: End,
    pub(super) ending: Ending,
    pub(super) count: u64,
    pub(super) owner: Owner,
    /// Whether the same process gets through to that port by the other family of addresses.
    pub(super) is_reached: bool,
}

/// What was seen of the connects to a destination.
#[derive(Default)]
struct Tally {
    given_up: u64,
    waited_ns: u64,
    unreachable: [u64; UNREACHABLE.len()],
    owner: Option<Owner>,
}

/// Destinations of a namespace that take no connect, though it is not SYNs sent again that tell; the one with most
/// attempts first.
pub(super) fn dead(window: &Window, netns: &Netns) -> Vec<Dead> {
    let mut tallies = BTreeMap::<End, Tally>::new();
    for event in window.events.within("connects", netns.inode) {
        let Some((_, remote)) = places::ends(event) else {
            continue;
        };
        let waited_ns = event.number("latency_ns").unwrap_or(0);
        let is_given_up = event.is("outcome", "aborted") && waited_ns >= PATIENT_NS;
        let errno = UNREACHABLE
            .iter()
            .position(|errno| event.is("errno", errno));
        if !is_given_up && errno.is_none() {
            continue;
        }
        let tally = tallies.entry(remote).or_default();
        tally.given_up += u64::from(is_given_up);
        if let Some(count) = errno.and_then(|errno| tally.unreachable.get_mut(errno)) {
            *count += 1;
        }
        if is_given_up {
            tally.waited_ns = tally.waited_ns.max(waited_ns);
        }
        tally.owner.get_or_insert_with(|| event.owner());
    }
    let dead = tallies
        .into_iter()
        .filter_map(|(end, tally)| Dead::of(window, netns, end, tally));
    let mut dead: Vec<Dead> = dead.collect();
    dead.sort_by_key(|dead| std::cmp::Reverse(dead.count));
    dead
}

impl Dead {
    fn of(window: &Window, netns: &Netns, end: End, tally: Tally) -> Option<Self> {
        let connects = Connects::of(window, netns, end)?;
        let told = UNREACHABLE.into_iter().zip(tally.unreachable);
        let (errno, unreachable) = told.rev().max_by_key(|(_, count)| *count)?;
        let count = tally.given_up.max(unreachable);
        if !connects.is_down() || count < LEAST_CONNECTS {
            return None;
        }
        let ending = if tally.given_up > unreachable {
            Ending::GivenUp {
                waited_ns: tally.waited_ns,
            }
        } else {
            Ending::Unreachable {
                errno,
                is_neighbour: has_no_neighbour(window, netns, end),
            }
        };
        let owner = tally.owner.unwrap_or_default();
        let is_reached = is_reached(window, netns, end, owner.1.as_deref());
        Some(Self {
            end,
            ending,
            count,
            owner,
            is_reached,
        })
    }
}

/// Whether a connect was given up that had begun before the window.
fn is_older(window: &Window, event: &Event) -> bool {
    let began_ns = event
        .at_ns
        .checked_sub(event.number("latency_ns").unwrap_or(0));
    event.is("outcome", "aborted")
        && event.at_ns > 0
        && began_ns.is_some_and(|began_ns| began_ns < window.began_ns)
}

/// Whether SYNs to an end were dropped as nobody answered for the address of the next hop.
fn has_no_neighbour(window: &Window, netns: &Netns, end: End) -> bool {
    let mut drops = window.events.within("drops", netns.inode);
    drops.any(|event| {
        lost_here::has_no_neighbour(event)
            && places::ends(event).is_some_and(|(_, remote)| remote == end)
    })
}

/// Whether a process gets through to a port by the other family of addresses: it falls back on that.
fn is_reached(window: &Window, netns: &Netns, (address, port): End, comm: Option<&str>) -> bool {
    let is_other = |other: IpAddr| other.is_ipv4() != address.is_ipv4();
    let mut connects = window.events.within("connects", netns.inode);
    connects.any(|event| {
        event.is("outcome", "established")
            && event.small("dport") == Some(port)
            && event.ip("daddr").is_some_and(is_other)
            && event.text("comm").as_deref() == comm
    })
}
