//! Services behind services: the one that the processes of a listener wait for, told by the connections that they have
//! to it, and its listener where that is watched, too; and what that one waits for in turn.

use std::{
    collections::{BTreeSet, HashSet},
    iter,
};

use super::{
    accepting::{self, Accepting},
    events::Event,
    places::{self, End},
    ports, resent,
    sizing::{counted, several, waiting},
    window::{Netns, Queue, Window, endpoint, ratio},
};
use crate::{observe::diag::SocketTable, report::diagnosis::Affected};

/// Most services that are looked at one behind the other.
const MOST_TIERS: usize = 4;
/// Processes that spend so much of their time with waiting until something is sent again need nothing else.
const LATE: f64 = 0.5;
/// The number of the state, as in include/net/tcp_states.h.
const SYN_SENT: usize = 2;

/// A service that the processes of a listener wait for.
#[derive(Clone)]
pub(super) struct Upstream<'a> {
    /// Where it is.
    end: End,
    /// The namespace of those that wait for it.
    netns: &'a Netns,
    /// Connections that those serve meanwhile.
    served: u64,
    /// Connections to it that are open.
    open: u32,
    /// Connections to it that wait for the answer to their SYN, in `connect()`.
    trying: u32,
    /// Whether most connects to it that ended have succeeded.
    is_answering: bool,
    /// For how long those that wait for it did so until what they had sent was sent again, in seconds, all of them together.
    resent_s: f64,
    /// Connections to it that are begun for each that is accepted from its clients, where both are known.
    each: Option<f64>,
    /// Its listener, where that is watched.
    listener: Option<(&'a Netns, &'a Queue)>,
    /// The service that it waits for itself, where nobody waits in its own queue.
    next: Option<Box<Self>>,
}

impl<'a> Upstream<'a> {
    /// What the processes of this listener wait for, which accept like this: a service that they connect to, and that they
    /// have nearly as many connections to as they serve.
    pub(super) fn of(
        window: &'a Window,
        netns: &'a Netns,
        queue: &Queue,
        accepting: &Accepting,
    ) -> Option<Self> {
        Self::within(window, netns, queue, accepting, MOST_TIERS)
    }

    fn within(
        window: &'a Window,
        netns: &'a Netns,
        queue: &Queue,
        accepting: &Accepting,
        tiers: usize,
    ) -> Option<Self> {
        let served = accepting.served?;
        let sockets = netns.after.sockets.as_ref()?;
        let waited_for = ends(window, netns, queue).into_iter().map(|end| {
            let (open, trying) = connections(sockets, &end);
            (open + trying, trying, end)
        });
        let (all, trying, end) = waited_for
            .filter(|(all, ..)| *all > 0 && is_most(*all, served))
            .max()?;
        let (connects, whose) = ports::connects(window, netns, end);
        let connects = Some(connects).filter(|connects| *connects > 0 && whose.is_empty());
        let accepted = accepting.accepted.filter(|accepted| *accepted > 0);
        let listener = places::listener(window, netns, end).and_then(|(home, found)| {
            let mut queues = home.queues.iter();
            Some((home, queues.find(|queue| queue.listener.ino == found.ino)?))
        });
        let found = Self {
            end,
            netns,
            served,
            open: all - trying,
            trying,
            is_answering: is_answering(window, netns, end),
            resent_s: resent::waited_s(window, netns, &pids(window, queue), end),
            each: connects
                .zip(accepted)
                .map(|(connects, accepted)| ratio(connects, accepted)),
            // Who waits for himself waits for nobody.
            listener: listener.filter(|(_, found)| found.listener.ino != queue.listener.ino),
            next: None,
        };
        let next = found.next(window, tiers).map(Box::new);
        Some(Self { next, ..found })
    }

    /// What it waits for itself, if it is not what all wait for.
    fn next(&self, window: &'a Window, tiers: usize) -> Option<Self> {
        let is_goal = self.is_goal() || self.is_late(window);
        let (netns, queue) = self.listener.filter(|_| !is_goal && tiers > 1)?;
        let mut accepting = accepting::of(window, netns, queue);
        let held = accepting.served?;
        // Of those that wait for it, connections may be idle that are kept for later.
        if is_most(self.open, held) {
            accepting.served = Some(held.min(self.served));
        }
        Self::within(window, netns, queue, &accepting, tiers - 1)
    }

    /// This one, what it waits for, and so on.
    fn all(&self) -> impl Iterator<Item = &Self> {
        iter::successors(Some(self), |tier| tier.next.as_deref())
    }

    /// Whether it is to blame: it has too much to do, or takes no connection.
    fn is_goal(&self) -> bool {
        self.queue().is_some() || self.is_silent()
    }

    /// Whether those that wait for it do so in `connect()`, and as a rule in vain. Where somebody always waits in its queue,
    /// that is why.
    fn is_silent(&self) -> bool {
        let is_waited_for = self.trying > 0 && is_most(self.trying, self.served);
        is_waited_for && !self.is_answering && self.queue().is_none()
    }

    /// Whether those that wait for it do so half of the time and more until what they sent is sent again: the way to it loses
    /// packets.
    fn is_late(&self, window: &Window) -> bool {
        self.queue().is_none() && self.resent_s >= LATE * self.served_s(window)
    }

    /// The time of all that serve those connections, in seconds.
    #[expect(clippy::cast_precision_loss, reason = "a few connections")]
    fn served_s(&self, window: &Window) -> f64 {
        self.served.max(1) as f64 * window.seconds
    }

    /// Its listener, if somebody always waits in its queue.
    fn queue(&self) -> Option<(&'a Netns, &'a Queue)> {
        self.listener
            .filter(|(_, queue)| accepting::is_always_waited_for(queue))
    }

    /// The listener that has too much to do: its own, or that of the one that it only passes on to.
    pub(super) fn busy(&self) -> Option<(&'a Netns, &'a Queue)> {
        self.all().find_map(Self::queue)
    }

    /// The one that takes no connection: this, or one behind it.
    pub(super) fn silent(&self) -> Option<&Self> {
        self.all().find(|tier| tier.is_silent())
    }

    /// The one to which packets are lost, so that who waits for it waits for them above all: this, or one behind it.
    pub(super) fn late(&self, window: &Window) -> Option<&Self> {
        self.all().find(|tier| tier.is_late(window))
    }

    /// For how long those that wait for it did so until what they had sent was sent again: in words, and in seconds.
    pub(super) fn lateness(&self, window: &Window) -> (String, f64) {
        let Self { resent_s, .. } = *self;
        let text = format!(
            "for at least {resent_s:.1} of {:.1} s of theirs, they waited until what they had sent to {} was sent again",
            self.served_s(window),
            self.name(window)
        );
        (text, resent_s)
    }

    /// Connections that come to the last one for each that is accepted by those who wait for the first, where it is known.
    pub(super) fn each(&self) -> Option<f64> {
        self.all().map(|tier| tier.each).product()
    }

    /// As the destination that findings of their own may be about.
    pub(super) fn destination(&self) -> Affected {
        Window::affected_destination(self.netns, self.end.0, self.end.1)
    }

    /// How it is called.
    fn name(&self, window: &Window) -> String {
        let end = endpoint(self.end.0, self.end.1);
        let holder = self
            .listener
            .and_then(|(_, queue)| window.holder(&queue.listener));
        holder.map_or(end.clone(), |holder| format!("{end} ({})", holder.comm))
    }

    /// How the one is called that all wait for, and those that only pass on to it.
    pub(super) fn path(&self, window: &Window) -> String {
        let mut names: Vec<String> = self.all().map(|tier| tier.name(window)).collect();
        let last = names.pop().unwrap_or_default();
        if names.is_empty() {
            return last;
        }
        format!("{last} through {}", names.join(" and "))
    }

    /// The connections to each, with their number.
    pub(super) fn connections(&self, window: &Window) -> Vec<(String, u64)> {
        let mut who = "it".to_owned();
        let told = self.all().map(|tier| {
            let name = tier.name(window);
            let served = counted(tier.served, "connection");
            let text = format!("while {who} serves {served}, {}", tier.are(&name));
            who = name;
            (text, u64::from(tier.open + tier.trying))
        });
        told.collect()
    }

    /// What its connections do.
    fn are(&self, name: &str) -> String {
        let trying = waiting(self.trying);
        if self.open == 0 {
            return format!("{trying} in connect() for {name} (SYN-SENT)");
        }
        let open = several(self.open.into(), "connection is", "connections are");
        match self.trying {
            0 => format!("{open} open to {name}"),
            _ => format!("{open} open to {name}, and {trying} in connect() (SYN-SENT)"),
        }
    }
}

/// Whether so many connections are nearly all that are served.
fn is_most(connections: u32, served: u64) -> bool {
    u64::from(connections) * 10 >= served * 8
}

/// The processes of a listener.
fn pids(window: &Window, queue: &Queue) -> HashSet<u32> {
    let holders = window.processes.holders(queue.listener.ino);
    holders.map(|holder| holder.pid).collect()
}

/// What the processes of a listener connect to, whether they get through or not.
fn ends(window: &Window, netns: &Netns, queue: &Queue) -> BTreeSet<End> {
    let pids = pids(window, queue);
    let connects = window.events.within("connects", netns.inode);
    let again = window.events.within("retransmits", netns.inode);
    let again = again.filter(|event| event.is("cause", "syn"));
    let is_own = |event: &&Event| event.small("pid").is_some_and(|pid| pids.contains(&pid));
    let own = connects.chain(again).filter(is_own);
    own.filter_map(|event| event.ip("daddr").zip(event.small("dport")))
        .collect()
}

/// Whether most connects from a namespace to an end that ended have succeeded.
fn is_answering(window: &Window, netns: &Netns, (address, port): End) -> bool {
    let connects = window.events.within("connects", netns.inode);
    let to = connects
        .filter(|event| event.ip("daddr") == Some(address) && event.small("dport") == Some(port));
    let (established, failed): (Vec<&Event>, Vec<&Event>) =
        to.partition(|event| event.is("outcome", "established"));
    established.len() > failed.len()
}

/// Connections of a namespace to an end: those that are open, and those whose SYN nobody has answered yet.
fn connections(sockets: &SocketTable, end: &End) -> (u32, u32) {
    let to = sockets.ports.iter();
    let to = to.filter(|(to, _)| (to.remote, to.port) == *end);
    let all: u32 = to.map(|(_, ports)| ports.open).sum();
    let established = sockets.quietness.get(end);
    let established = established.map_or(0, |quietness| quietness.connections);
    // The states are of the whole namespace.
    let trying = u32::try_from(sockets.states[SYN_SENT]).unwrap_or(u32::MAX);
    let trying = all.saturating_sub(established).min(trying);
    (all - trying, trying)
}
