//! Services behind services: the one that the processes of a listener wait for, told by the connections that they have
//! open to it, and its listener where that is watched, too.

use std::collections::{BTreeSet, HashSet};

use super::{
    accepting,
    places::{self, End},
    ports,
    window::{Netns, Queue, Window, endpoint},
};

/// A service that the processes of a listener wait for.
#[derive(Clone)]
pub(super) struct Upstream<'a> {
    /// Where it is.
    pub(super) end: End,
    /// Connections that are open to it.
    pub(super) open: u32,
    /// Connections to it that were begun in the window; 0 if they are not known to be those of this namespace.
    pub(super) connects: u64,
    /// Its listener, where that is watched.
    pub(super) listener: Option<(&'a Netns, &'a Queue)>,
}

impl<'a> Upstream<'a> {
    /// What the processes of this listener wait for, which serve so many connections at once: a service that they connect
    /// to, and that they have nearly as many connections to.
    pub(super) fn of(
        window: &'a Window,
        netns: &'a Netns,
        queue: &Queue,
        served: u64,
    ) -> Option<Self> {
        let pids: HashSet<u32> = window
            .processes
            .holders(queue.listener.ino)
            .map(|holder| holder.pid)
            .collect();
        let connects = window.events.within("connects", netns.inode);
        let own =
            connects.filter(|event| event.small("pid").is_some_and(|pid| pids.contains(&pid)));
        let ends: BTreeSet<End> = own
            .filter_map(|event| event.ip("daddr").zip(event.small("dport")))
            .collect();
        let open = |end: &End| -> u32 {
            let sockets = netns.after.sockets.iter();
            let ports = sockets.flat_map(|sockets| &sockets.ports);
            let to = ports.filter(|(to, _)| (to.remote, to.port) == *end);
            to.map(|(_, ports)| ports.open).sum()
        };
        let waited_for = ends.into_iter().map(|end| (open(&end), end));
        let (open, end) = waited_for
            .filter(|(open, _)| *open > 0 && u64::from(*open) * 10 >= served * 8)
            .max()?;
        let (connects, whose) = ports::connects(window, netns, end.1);
        let listener = places::listener(window, netns, end).and_then(|(home, found)| {
            let mut queues = home.queues.iter();
            Some((home, queues.find(|queue| queue.listener.ino == found.ino)?))
        });
        Some(Self {
            end,
            open,
            connects: if whose.is_empty() { connects } else { 0 },
            // Who waits for himself waits for nobody.
            listener: listener.filter(|(_, found)| found.listener.ino != queue.listener.ino),
        })
    }

    /// Its listener, if it is the one that has too much to do: somebody always waits in its queue.
    pub(super) fn busy(&self) -> Option<(&'a Netns, &'a Queue)> {
        self.listener
            .filter(|(_, queue)| accepting::is_always_waited_for(queue))
    }

    /// How it is called.
    pub(super) fn name(&self, window: &Window) -> String {
        let end = endpoint(self.end.0, self.end.1);
        let holder = self
            .listener
            .and_then(|(_, queue)| window.holder(&queue.listener));
        holder.map_or(end.clone(), |holder| format!("{end} ({})", holder.comm))
    }
}
