//! Who listened when a connection came in, asked of the kernel. A connection that nobody holds any more, or
//! not yet, has no owner but the process that held the listener it came through.
//!
//! That is said only where it is certain: of several processes, also of one before and one after a restart,
//! none is named, but the name that all of them have.

use std::{
    collections::HashMap,
    thread::{self, JoinHandle},
};

use super::{clock::now_ns, owners::Owners, sockets};
use crate::decode::Arrival;

use self::seen::{Listing, Seen};

mod seen;

/// The listeners of every namespace, and those that were there before.
#[derive(Debug, Default)]
pub struct Listeners {
    seen: HashMap<(u32, u16), Vec<Seen>>,
    /// When they were first listed, and when last: begin and end of that.
    begun_ns: u64,
    listed_ns: (u64, u64),
    /// Those that ended before are forgotten.
    forgotten_ns: u64,
    gone: usize,
    /// When processes began, until listeners are listed again.
    started: HashMap<u32, Option<u64>>,
    /// The first listing, while events are shown already.
    first: Option<JoinHandle<Option<Listing>>>,
}

/// Listeners that are gone are remembered up to so many.
const MOST_GONE: usize = 4096;
/// How old a listing may get while listeners are asked for, and while what is asked for is not in it.
const STALE_NS: u64 = 1_000_000_000;
const PAUSE_NS: u64 = 100_000_000;
/// Listing takes no more than one part in so many of the time.
const SHARE: u64 = 200;

impl Listeners {
    /// Begins to list what listens now.
    pub fn learn(&mut self) {
        let thread = thread::Builder::new().name("listeners".to_owned());
        match thread.spawn(list) {
            Ok(first) => self.first = Some(first),
            Err(error) => log::debug!("listeners are not learnt: {error}"),
        }
    }

    /// The process that held the listener of a connection which had an event at `at_ns`. If there were several, 0
    /// and the name that all of them have.
    pub fn of(
        &mut self,
        arrival: &Arrival,
        at_ns: u64,
        owners: &mut Owners,
    ) -> Option<(u32, [u8; 16])> {
        self.take_first();
        let asked_ns = arrival.opened_ns.unwrap_or(at_ns);
        if self.listed_ns.0 < asked_ns && self.is_due(STALE_NS) {
            self.list();
        }
        let found = self.owner(arrival, at_ns, owners);
        if found.is_some() || self.listed_ns.0 >= asked_ns || !self.is_due(PAUSE_NS) {
            return found;
        }
        self.list();
        self.owner(arrival, at_ns, owners)
    }

    /// Lists what listens now, if that is due, and learns who holds what is new: it may be gone when it is asked for.
    pub fn refresh(&mut self, owners: &mut Owners) {
        if self
            .first
            .as_ref()
            .is_some_and(|first| !first.is_finished())
            || !self.is_due(STALE_NS)
        {
            return;
        }
        self.take_first();
        let before_ns = self.listed_ns.0;
        self.list();
        let all = self.seen.values().flatten();
        let new: Vec<(u64, u64)> = all
            .filter(|seen| seen.is_there() && seen.unborn_ns >= before_ns)
            .map(|seen| (seen.listener.ino, seen.born_ns))
            .collect();
        for (ino, born_ns) in new {
            let _holders = owners.all(ino, now_ns(), born_ns);
        }
    }

    fn is_due(&self, pause_ns: u64) -> bool {
        let (begin_ns, end_ns) = self.listed_ns;
        let took_ns = end_ns - begin_ns;
        now_ns().saturating_sub(end_ns) >= pause_ns.max(took_ns * SHARE)
    }

    fn take_first(&mut self) {
        let first = self.first.take().and_then(|first| first.join().ok());
        if let Some(listing) = first.flatten() {
            self.take(&listing);
        }
    }

    fn list(&mut self) {
        if let Some(listing) = list() {
            self.take(&listing);
        }
    }

    /// Compares with what listened before.
    fn take(&mut self, listing: &Listing) {
        let (begin_ns, end_ns) = listing.taken_ns;
        for listener in &listing.listeners {
            let slot = (listener.netns, listener.local.1);
            let seen = self.seen.entry(slot).or_default();
            let known = seen
                .iter_mut()
                .find(|seen| seen.listener.ino == listener.ino && seen.is_there());
            match known {
                Some(known) => known.listed_ns = begin_ns,
                None => seen.push(Seen {
                    listener: *listener,
                    unborn_ns: self.listed_ns.0,
                    born_ns: end_ns,
                    listed_ns: begin_ns,
                    gone_ns: u64::MAX,
                }),
            }
        }
        let all = self.seen.values_mut().flatten();
        for seen in all.filter(|seen| seen.is_there() && seen.listed_ns < begin_ns) {
            seen.gone_ns = end_ns;
            self.gone += 1;
        }
        if self.gone > MOST_GONE {
            self.seen.retain(|_slot, seen| {
                seen.retain(Seen::is_there);
                !seen.is_empty()
            });
            self.gone = 0;
            self.forgotten_ns = end_ns;
        }
        if self.begun_ns == 0 {
            self.begun_ns = end_ns;
        }
        self.listed_ns = listing.taken_ns;
        self.started.clear();
    }

    /// As [`Listeners::of`], of what is known.
    fn owner(
        &mut self,
        arrival: &Arrival,
        at_ns: u64,
        owners: &mut Owners,
    ) -> Option<(u32, [u8; 16])> {
        let from_ns = arrival.opened_ns.unwrap_or(self.begun_ns);
        let until_ns = arrival.opened_ns.unwrap_or(at_ns).max(from_ns);
        if from_ns < self.forgotten_ns {
            return None;
        }
        let slot = self.seen.get(&(arrival.netns, arrival.local.1))?;
        let mut found: Option<(u32, [u8; 16])> = None;
        let candidates = seen::candidates(slot, arrival, from_ns, until_ns);
        // What came at any time did not come before anything listened.
        let first_ns = candidates.iter().map(|seen| seen.born_ns).min();
        let open_ns = match arrival.opened_ns {
            Some(opened_ns) => opened_ns,
            None => first_ns?.max(from_ns),
        };
        for seen in candidates {
            let ino = seen.listener.ino;
            let holders = if seen.is_there() {
                owners.all(ino, until_ns, seen.born_ns)
            } else {
                owners.last(ino)
            };
            if holders.is_empty() {
                return None;
            }
            for holder in holders {
                found = match found {
                    None => Some((holder.pid, holder.comm)),
                    Some((pid, comm)) if comm == holder.comm => {
                        Some((if pid == holder.pid { pid } else { 0 }, comm))
                    }
                    Some(_) => return None,
                };
            }
        }
        let (pid, comm) = found?;
        if pid == 0 {
            return Some((pid, comm));
        }
        let started = self.started.entry(pid);
        let started_ns = *started.or_insert_with(|| owners.started_ns(pid));
        // One that began later has it from another, or has got the id of another.
        started_ns
            .is_some_and(|started_ns| started_ns <= open_ns)
            .then_some((pid, comm))
    }
}

/// What listens now.
fn list() -> Option<Listing> {
    let begin_ns = now_ns();
    match sockets::listeners() {
        Ok(listeners) => Some(Listing {
            taken_ns: (begin_ns, now_ns()),
            listeners,
        }),
        Err(error) => {
            log::debug!("who listens is not known: {error:#}");
            None
        }
    }
}

#[cfg(test)]
mod tests;
