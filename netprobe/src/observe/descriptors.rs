//! How many descriptors processes have open, again and again: a limit that is reached for some seconds is not seen by looking
//! before and after them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use super::processes::{Processes, descriptors};

/// What lies further apart is not one stretch of time.
const STRETCH: Duration = Duration::from_secs(2);
/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(250);
/// They may take one part in so many of the time of a CPU.
const SHARE: u32 = 500;

/// The most descriptors that a process was seen to have open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peak {
    /// So many.
    pub most: u64,
    /// For how long it had none left, as far as was seen.
    pub full: Duration,
}

/// Looks at the descriptors of processes while connections wait at their listeners.
#[derive(Debug, Default)]
pub struct Watch {
    /// The processes that hold a listener, by its inode number, and their limits.
    holders: HashMap<u64, Vec<(u32, u64)>>,
    looks: BTreeMap<u32, Looks>,
    next: Option<Instant>,
}

/// What was seen of a process.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    peak: Peak,
    /// When it was last seen to have none left, if it had none at the last look.
    full_at: Option<Instant>,
}

impl Watch {
    /// Watches the holders of the listeners that a scan has found.
    pub fn of(found: &Processes) -> Self {
        let mut watch = Self::default();
        for process in found.by_pid.values() {
            for ino in &process.sockets {
                let holders = watch.holders.entry(*ino).or_default();
                holders.push((process.pid, process.fd_limit));
            }
        }
        watch
    }

    /// Looks at who holds these listeners, if it is time to.
    pub fn look(&mut self, listeners: &HashSet<u64>) {
        let now = Instant::now();
        if listeners.is_empty() || self.next.is_some_and(|next| now < next) {
            return;
        }
        let holders = listeners.iter().filter_map(|ino| self.holders.get(ino));
        let holders: BTreeMap<u32, u64> = holders.flatten().copied().collect();
        for (pid, limit) in holders {
            if let Some(open) = descriptors(Path::new(&format!("/proc/{pid}/fd"))) {
                self.looks.entry(pid).or_default().add(now, (open, limit));
            }
        }
        self.next = Some(now + now.elapsed().saturating_mul(SHARE).max(SHORTEST));
    }

    /// The most that each was seen to have open.
    pub fn finish(self) -> BTreeMap<u32, Peak> {
        let looks = self.looks.into_iter();
        looks.map(|(pid, looks)| (pid, looks.peak)).collect()
    }
}

impl Looks {
    fn add(&mut self, now: Instant, (open, limit): (u64, u64)) {
        self.peak.most = self.peak.most.max(open);
        let is_full = open + 1 >= limit;
        if let Some(since) = self.full_at.filter(|_| is_full) {
            let stretch = now.saturating_duration_since(since);
            self.peak.full += if stretch < STRETCH {
                stretch
            } else {
                Duration::ZERO
            };
        }
        self.full_at = is_full.then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_without_any_left_is_what_lies_between_looks_that_see_none() {
        let began = Instant::now();
        let mut looks = Looks::default();
        for (ms, open) in [
            (0, 10),
            (500, 64),
            (1000, 64),
            (1500, 64),
            (2000, 20),
            (9000, 64),
            (15_000, 64),
        ] {
            looks.add(began + Duration::from_millis(ms), (open, 64));
        }
        let expected = Peak {
            most: 64,
            full: Duration::from_secs(1),
        };
        assert_eq!(looks.peak, expected);
    }

    #[test]
    fn who_holds_a_listener_is_looked_at() {
        use crate::observe::processes::Process;
        let process = Process {
            pid: std::process::id(),
            fd_limit: 1,
            sockets: vec![7],
            ..Process::default()
        };
        let mut found = Processes::default();
        found.by_pid.insert(process.pid, process);
        let mut watch = Watch::of(&found);
        watch.look(&HashSet::from([8]));
        assert_eq!(watch.looks.len(), 0);
        watch.next = None;
        watch.look(&HashSet::from([7]));
        assert!(watch.finish()[&std::process::id()].most > 2);
    }
}
