//! Which process holds a socket, by the socket's inode number: from `/proc/PID/fd`.
//!
//! Sockets that were open before we came, and accepted ones, have no other owner. What is known is looked
//! after: a socket may be handed to another process, and then its descriptor is not where it was.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use self::{
    budget::Budget,
    scan::{Held, is_running, newest, scan, scan_young},
};

use super::clock::{now_ns, thread_cpu};

pub use self::{
    budget::scans_put_off,
    scan::{Holder, scan_time, started_ns},
};

pub(super) use self::scan::measured;

mod budget;
mod scan;

/// Holders of sockets.
#[derive(Debug)]
pub struct Owners {
    proc: PathBuf,
    held: HashMap<u64, Held>,
    /// When processes were last seen to be there.
    there: HashMap<u32, u64>,
    /// When the last scan began.
    scanned_ns: u64,
    /// The newest task that the kernel had made by then, or when it was last looked for younger ones; if it says so.
    newest: Option<u32>,
    /// When that was.
    newest_ns: u64,
    budget: Budget,
    /// The first scan, while events are shown already.
    first: Option<JoinHandle<Found>>,
}

/// What a scan of everything found.
#[derive(Debug)]
struct Found {
    /// When it began, and the newest task by then.
    begin_ns: u64,
    newest: Option<u32>,
    /// On a machine under load a scan takes longer, but no more of this.
    cpu: Duration,
    held: HashMap<u64, Held>,
}

impl Default for Owners {
    fn default() -> Self {
        Self::of_proc(PathBuf::from("/proc"))
    }
}

/// Sockets that are remembered; beyond that only those that are still there.
const MOST: usize = 131_072;
/// Processes of which it is remembered that they are there.
const MOST_THERE: usize = 4096;
/// Another process may have begun to share a socket since it was looked for: how old a list of holders may
/// get in any case, and at most; between them half as old as what it is the list of.
const FRESH_NS: u64 = 250_000_000;
const STALE_NS: u64 = 5_000_000_000;
/// More new tasks than that are not looked at one by one.
const MOST_YOUNG: u32 = 1000;

impl Owners {
    fn of_proc(proc: PathBuf) -> Self {
        Self {
            proc,
            held: HashMap::new(),
            there: HashMap::new(),
            scanned_ns: 0,
            newest: None,
            newest_ns: 0,
            budget: Budget::default(),
            first: None,
        }
    }

    /// The process that held socket `ino` at `at_ns` or later, or else the last one that did; scans if it is not
    /// known and a scan is due. Of several, the one with the lowest id.
    pub fn of(&mut self, ino: u64, at_ns: u64) -> Option<(u32, [u8; 16])> {
        if ino == 0 {
            return None;
        }
        if !self.is_held(ino, at_ns) {
            self.finish_first_scan();
        }
        if !self.is_held(ino, at_ns) && self.budget.is_due(Instant::now()) {
            self.scan();
            let is_found = self.is_held(ino, at_ns);
            self.budget.has_found(is_found, Instant::now());
            if let Some(held) = self.held.get_mut(&ino).filter(|_| !is_found) {
                held.seen_ns = u64::MAX;
            }
        }
        let holder = self.held.get(&ino)?.holders.first()?;
        Some((holder.pid, holder.comm))
    }

    /// Every process that holds socket `ino` at `at_ns` or later, which has been there since `since_ns`. None if
    /// that cannot be said now.
    pub fn all(&mut self, ino: u64, at_ns: u64, since_ns: u64) -> &[Holder] {
        self.finish_first_scan();
        let (now_ns, now) = (now_ns(), Instant::now());
        let lasts = self.scanned_ns.saturating_sub(since_ns);
        let is_stale = now_ns - self.scanned_ns.min(now_ns) > lasts.clamp(FRESH_NS, STALE_NS);
        let is_known = |owners: &Self| {
            let held = owners.held.get(&ino);
            held.is_some_and(|held| {
                let still_holds = |holder: &Holder| holder.holds(&owners.proc, ino);
                let is_there = held.seen_ns != u64::MAX;
                is_there && (held.seen_ns >= at_ns || held.holders.iter().all(still_holds))
            })
        };
        let mut is_complete = is_known(self);
        if (is_stale || !is_complete) && self.budget.is_due(now) {
            self.scan();
            is_complete = is_known(self);
            self.budget.has_found(is_complete, Instant::now());
        }
        is_complete = is_complete && self.has_seen_young(at_ns);
        match self.held.get_mut(&ino) {
            Some(held) if is_complete => {
                held.seen_ns = held.seen_ns.max(now_ns);
                &held.holders
            }
            _ => &[],
        }
    }

    /// Adds what processes hold that began since the last look: a process that is forked shares all sockets. False if that
    /// can not be said of those that were there at `at_ns`.
    fn has_seen_young(&mut self, at_ns: u64) -> bool {
        let (Some(before), true) = (self.newest, self.newest_ns < at_ns) else {
            return true;
        };
        let (begin_ns, begin, now) = (now_ns(), thread_cpu(), Instant::now());
        let Some(newest) = newest(&self.proc) else {
            return true;
        };
        if newest != before {
            if !self.budget.has_time(now) {
                return false;
            }
            if newest < before || newest - before > MOST_YOUNG {
                self.scan();
                return true;
            }
            for (ino, young) in scan_young(&self.proc, before + 1..=newest) {
                match self.held.get_mut(&ino) {
                    Some(held) => held.add(young),
                    None => drop(self.held.insert(ino, young)),
                }
            }
            self.budget.spend(thread_cpu().saturating_sub(begin));
        }
        (self.newest, self.newest_ns) = (Some(newest), begin_ns);
        true
    }

    /// The processes that held socket `ino` when it was last looked for.
    pub fn last(&self, ino: u64) -> &[Holder] {
        self.held.get(&ino).map_or(&[], |held| &held.holders)
    }

    /// Whether a process is there, or was shortly before `at_ns`.
    pub fn has(&mut self, pid: u32, at_ns: u64) -> bool {
        if let Some(seen_ns) = self.there.get(&pid)
            && at_ns.abs_diff(*seen_ns) < FRESH_NS
        {
            return true;
        }
        let is_there = is_running(&self.proc, pid);
        if self.there.len() > MOST_THERE {
            self.there.clear();
        }
        if is_there {
            self.there.insert(pid, at_ns);
        }
        is_there
    }

    /// When a process was there at the latest; `None` if it has ended.
    pub fn started_ns(&self, pid: u32) -> Option<u64> {
        started_ns(&self.proc, pid)
    }

    /// Looks for them with no more than `share` of a CPU.
    #[must_use]
    pub fn limited(self, share: f64) -> Self {
        Self {
            budget: Budget::of_share(share),
            ..self
        }
    }

    /// Begins to look who holds which socket now. On a machine with very many descriptors that takes seconds,
    /// which only those wait for who ask before it is done.
    pub fn learn(&mut self) {
        let proc = self.proc.clone();
        let thread = thread::Builder::new().name("owners".to_owned());
        match thread.spawn(move || look(&proc)) {
            Ok(first) => self.first = Some(first),
            Err(error) => log::debug!("owners are not learnt: {error}"),
        }
    }

    fn finish_first_scan(&mut self) {
        if let Some(first) = self.first.take().and_then(|first| first.join().ok()) {
            self.keep(first);
            self.budget.forgive();
        }
    }

    fn scan(&mut self) {
        let found = look(&self.proc);
        self.keep(found);
    }

    /// Whether it is known who held the socket then or later. A holder that has it no more makes room for
    /// another that shared it.
    fn is_held(&mut self, ino: u64, at_ns: u64) -> bool {
        let Some(held) = self.held.get_mut(&ino) else {
            return false;
        };
        if held.seen_ns >= at_ns {
            return true;
        }
        let now_ns = now_ns();
        let holders = &mut held.holders;
        let holding = holders
            .iter()
            .position(|holder| holder.holds(&self.proc, ino));
        if let Some(index) = holding {
            holders.drain(..index);
            held.seen_ns = now_ns;
        }
        holding.is_some()
    }

    /// Adds to what is known: the kernel gives no two sockets the same inode number, so that those of
    /// processes that are gone stay right.
    fn keep(&mut self, found: Found) {
        if self.held.len() > MOST {
            self.held.clear();
        }
        if self.held.is_empty() {
            // Not a second table beside the first, which may be large.
            self.held = found.held;
        } else {
            self.held.extend(found.held);
        }
        self.scanned_ns = found.begin_ns;
        (self.newest, self.newest_ns) = (found.newest, found.begin_ns);
        self.budget.scanned(found.cpu);
    }
}

fn look(proc: &Path) -> Found {
    let (begin_ns, begin) = (now_ns(), thread_cpu());
    let (newest, held) = (newest(proc), scan(proc));
    Found {
        begin_ns,
        newest,
        cpu: thread_cpu().saturating_sub(begin),
        held,
    }
}

#[cfg(test)]
pub(super) mod tests;
