//! Whether a run has seen as many events as the kernel itself has counted meanwhile.

use netprobe_common::counters::{Count, CountKey, OTHER};

use super::super::filter::Plan;
use crate::{
    kernel::session::{Request, Session},
    observe::{
        counters::{self, Counters},
        namespaces::{self, Namespace},
    },
    probes::{Oracle, ProbeSpec},
    report::Reconciled,
};

/// Room for the groups of a run that shows events and counts only to compare.
const GROUPS: u32 = 1024;

/// What the kernel counts, read on both sides of the moments at which the programs come and go: events in between may
/// have been seen, or not.
pub(super) struct Books {
    spec: &'static ProbeSpec,
    namespaces: Vec<Namespace>,
    readings: Vec<Vec<Option<Counters>>>,
}

impl Books {
    /// Before the programs are attached, has the kernel side count; `None` if nothing counts the same.
    pub(super) fn open(request: &mut Request, plan: &Plan) -> Option<Self> {
        let [spec] = request.probes[..] else {
            return None;
        };
        if spec.oracles.is_empty() || request.config.by != 0 {
            return None;
        }
        let wanted = plan.whole_namespaces()?;
        if request.config.count == 0 {
            request.config.count = 1;
            request.sizes.counts = GROUPS;
        }
        let mut namespaces = namespaces::all().ok()?;
        namespaces.retain(|namespace| wanted.has(namespace.inode));
        let mut books = Self {
            spec,
            namespaces,
            readings: Vec::new(),
        };
        books.read();
        Some(books)
    }

    /// Reads again, as when the programs are attached.
    pub(super) fn read(&mut self) {
        let read = namespaces::in_each(&self.namespaces, |_| counters::of_tcp());
        let read = read.unwrap_or_default().into_iter();
        self.readings.push(read.map(Result::ok).collect());
    }

    /// Compares with what was seen; nothing if some of it cannot be compared.
    pub(super) fn compare(
        &self,
        session: &Session,
        totals: &[(CountKey, Count)],
    ) -> Vec<Reconciled> {
        let hooks = session.probes().iter().flat_map(|(_, hooks)| hooks);
        let [opened, began, ended, closed] = &self.readings[..] else {
            return Vec::new();
        };
        let is_other = |(key, _): &(CountKey, Count)| key.code == OTHER;
        if { hooks }.any(|hook| hook.result.is_err()) || totals.iter().any(is_other) {
            return Vec::new();
        }
        let reconciled = self.spec.oracles.iter().map(|oracle| {
            let mut sum = Reconciled {
                unit: oracle.unit,
                counter: name(oracle),
                seen: 0,
                least: 0,
                most: 0,
            };
            let readings = began.iter().zip(ended).zip(opened.iter().zip(closed));
            for (namespace, readings) in self.namespaces.iter().zip(readings) {
                let ((Some(began), Some(ended)), (Some(opened), Some(closed))) = readings else {
                    continue;
                };
                sum.least += grown(oracle, began, ended);
                sum.most += grown(oracle, opened, closed);
                let here = totals
                    .iter()
                    .filter(|(key, _)| key.netns == namespace.inode);
                sum.seen += here
                    .map(|(key, count)| (oracle.seen)(key, count))
                    .sum::<u64>();
            }
            sum
        });
        reconciled.collect()
    }
}

/// Takes the programs out, and reads before and after that; not before, if that is too late. Returns the firings that the
/// kernel skipped, for each probe.
pub(super) fn detach(session: &mut Session, books: &mut Option<Books>) -> Vec<Option<u64>> {
    if let Some(books) = books.as_mut().filter(|_| !session.is_detached()) {
        books.read();
    }
    let missed = session.detach();
    if let Some(books) = books {
        books.read();
    }
    missed
}

fn name(oracle: &Oracle) -> String {
    match oracle.but {
        Some(but) => format!("{} - {but}", oracle.counter),
        None => oracle.counter.to_owned(),
    }
}

fn grown(oracle: &Oracle, before: &Counters, after: &Counters) -> u64 {
    let read = |counters: &Counters| {
        let of = |name: &str| counters.get(name).copied().unwrap_or(0);
        of(oracle.counter) - oracle.but.map_or(0, of)
    };
    u64::try_from(read(after) - read(before)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use netprobe_common::header::Kind;

    use super::*;
    use crate::probes::{self, PROBES};

    #[test]
    fn a_failed_attempt_is_taken_off() {
        let [retransmits] = probes::of(Kind::Retransmits).oracles else {
            panic!("one counter counts segments");
        };
        let before = Counters::from([("Tcp.RetransSegs", 10), ("TcpExt.TCPRetransFail", 1)]);
        let after = Counters::from([("Tcp.RetransSegs", 25), ("TcpExt.TCPRetransFail", 3)]);
        assert_eq!(grown(retransmits, &before, &after), 13);
        assert_eq!(name(retransmits), "Tcp.RetransSegs - TcpExt.TCPRetransFail");
    }

    #[test]
    fn every_counter_is_one_that_is_read() {
        for oracle in PROBES.iter().flat_map(|spec| spec.oracles) {
            for name in [Some(oracle.counter), oracle.but].into_iter().flatten() {
                assert!(counters::WANTED.contains(&name), "{name}");
            }
        }
    }
}
