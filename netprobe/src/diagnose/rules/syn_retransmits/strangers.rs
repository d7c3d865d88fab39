//! Who does not finish handshakes with a listener. From the internet SYNs come whose addresses are forged, or that only
//! look whether somebody listens: nobody waits for their answers.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use super::{
    super::super::{
        dropped,
        places::{self, End},
        sizing::several,
        window::{Netns, Window},
    },
    unanswered::Unanswered,
};
use crate::report::diagnosis::Finding;

/// Handshakes that are completed for each that a stranger does not finish: fewer may be clients that are not reached.
const COMPLETED: u64 = 4;
/// Most addresses that are named.
const NAMED: usize = 3;

/// Those who were sent SYN-ACKs again.
pub(super) struct Strangers {
    /// Handshakes of the window that were seen to be unfinished; those that began before aside.
    handshakes: u64,
    /// Whose they are.
    sources: BTreeSet<IpAddr>,
    /// Connections of the listener in the window.
    completed: u64,
    /// Whether nobody need care.
    pub(super) is_noise: bool,
}

impl Strangers {
    /// Those of the listener that has most of them, if it is listeners that get no answer. Nobody need care where those of
    /// the others are such, too.
    pub(super) fn of(window: &Window, near: &Unanswered<'_>) -> Option<Self> {
        let listeners = near.silent.iter().filter(|_| !near.is_client());
        let ends = listeners.filter_map(|hit| hit.address.zip(hit.port));
        let mut all = ends.map(|end| Self::at(window, near.netns, end));
        let mut most = all.next()?;
        most.is_noise &= all.all(|other| other.is_noise);
        Some(most)
    }

    fn at(window: &Window, netns: &Netns, end: End) -> Self {
        let events = window.events.within("retransmits", netns.inode);
        let answers = events.filter(|event| event.is("cause", "syn-ack"));
        let remotes = answers.filter_map(|event| {
            let (local, remote) = places::ends(event)?;
            (local == end).then_some((remote, event.number("attempt").unwrap_or(1)))
        });
        let remotes: Vec<(End, u64)> = remotes.collect();
        let ends: HashSet<End> = remotes.iter().map(|(remote, _)| *remote).collect();
        // One that nobody finishes is sent answers for half a minute: how many there are is told by the first of them.
        let first = remotes.iter().filter(|(_, attempt)| *attempt == 1);
        let begun: HashSet<&End> = first.map(|(remote, _)| remote).collect();
        let sources: BTreeSet<IpAddr> = ends.iter().map(|(address, _)| *address).collect();
        let handshakes = begun.len() as u64;
        let completed = places::connections(window, netns, end.1);
        let known = places::clients(window, netns, end.1);
        let is_foreign = |source: &IpAddr| {
            !dropped::is_private(*source)
                && !known.contains(source)
                && places::homes(window, netns, *source).is_empty()
        };
        // A client that misses its answer tries again; a flood has a rule of its own once it does harm.
        let is_few = if window.rate(handshakes) < dropped::KNOCKS_PER_S {
            handshakes <= completed
        } else {
            handshakes * COMPLETED <= completed
        };
        let is_noise = !sources.is_empty()
            && completed > 0
            && sources.len() == ends.len()
            && is_few
            && window.events.weight("retransmits") < 1.5
            && sources.iter().all(is_foreign);
        Self {
            handshakes,
            sources,
            completed,
            is_noise,
        }
    }

    /// What is said where nobody need care.
    pub(super) fn noise(&self, who: &str, place: &str, seconds: f64) -> String {
        format!(
            "{} with {who}{place} {} not finished in {seconds:.0} s, each of a stranger that finished none, beside {}: forged \
             addresses or a scan, as every public service gets",
            several(self.handshakes, "handshake", "handshakes"),
            if self.handshakes == 1 { "was" } else { "were" },
            several(self.completed, "connection", "connections"),
        )
    }

    /// The first of them.
    pub(super) fn listed(&self) -> String {
        let mut words: Vec<String> = self
            .sources
            .iter()
            .take(NAMED)
            .map(IpAddr::to_string)
            .collect();
        if self.sources.len() > NAMED {
            words.push(format!("{} more", self.sources.len() - NAMED));
        }
        words.join(", ")
    }

    /// Adds how many they are.
    pub(super) fn add(&self, found: Finding) -> Finding {
        if self.sources.is_empty() {
            return found;
        }
        found.counted(
            format!(
                "{} unfinished, older ones aside; all are of {}: {}",
                several(self.handshakes, "handshake", "handshakes"),
                several(self.sources.len() as u64, "address", "addresses"),
                self.listed()
            ),
            self.sources.len() as u64,
            "addresses",
            "tcp_retransmit_synack",
        )
    }
}
