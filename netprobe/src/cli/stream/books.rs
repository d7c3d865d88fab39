//! Whether a run has seen as many events as the kernel itself has counted meanwhile.

use netprobe_common::{
    counters::{Count, CountKey, OTHER},
    header::Kind,
    records::{listeners::Stage, resets::Direction},
};

use super::super::filter::Plan;
use crate::{
    kernel::session::{Request, Session},
    observe::{
        counters::{self, Counters},
        namespaces::{self, Namespace},
    },
    report::Reconciled,
};

/// A counter of the kernel, of what a probe sees.
struct Oracle {
    kind: Kind,
    unit: &'static str,
    /// Its name, as nstat(8) shows it with a point.
    counter: &'static str,
    /// What it counts beyond that.
    but: Option<&'static str>,
    /// How many of a group it counts.
    seen: fn(&CountKey, &Count) -> u64,
}

const ORACLES: [Oracle; 6] = [
    Oracle {
        kind: Kind::Retransmits,
        unit: "segments",
        counter: "Tcp.RetransSegs",
        // Counted before the attempt, which may fail further down.
        but: Some("TcpExt.TCPRetransFail"),
        seen: |_, count| count.weight,
    },
    Oracle {
        kind: Kind::Listeners,
        unit: "overflows of accept queues",
        counter: "TcpExt.ListenOverflows",
        but: None,
        seen: |key, count| of_stages(key, count, &[Stage::SynAcceptQueue, Stage::AckAcceptQueue]),
    },
    Oracle {
        kind: Kind::Listeners,
        unit: "SYNs dropped for a full backlog",
        counter: "TcpExt.TCPReqQFullDrop",
        but: None,
        seen: |key, count| of_stages(key, count, &[Stage::SynBacklog]),
    },
    Oracle {
        kind: Kind::Listeners,
        unit: "SYNs answered with a cookie",
        counter: "TcpExt.TCPReqQFullDoCookies",
        but: None,
        seen: |key, count| of_stages(key, count, &[Stage::SynCookie]),
    },
    Oracle {
        kind: Kind::Conntrack,
        unit: "packets dropped for a full table",
        counter: "nf_conntrack.drop",
        but: None,
        seen: |_, count| count.events,
    },
    Oracle {
        kind: Kind::Resets,
        unit: "resets sent",
        counter: "Tcp.OutRsts",
        but: None,
        seen: |key, count| {
            let is_sent = key.location >> 8 == Direction::Sent as u64;
            if is_sent { count.events } else { 0 }
        },
    },
];

fn of_stages(key: &CountKey, count: &Count, stages: &[Stage]) -> u64 {
    let is_one = stages.iter().any(|stage| *stage as u32 == key.code);
    if is_one { count.events } else { 0 }
}

/// Room for the groups of a run that shows events and counts only to compare.
const GROUPS: u32 = 1024;

/// What the kernel counts, read on both sides of the moments at which the programs come and go: events in between may
/// have been seen, or not.
pub(super) struct Books {
    kind: Kind,
    namespaces: Vec<Namespace>,
    readings: Vec<Vec<Option<Counters>>>,
}

impl Books {
    /// Before the programs are attached, has the kernel side count; `None` if nothing counts the same.
    pub(super) fn open(request: &mut Request, plan: &Plan) -> Option<Self> {
        let [spec] = request.probes[..] else {
            return None;
        };
        let is_known = ORACLES.iter().any(|oracle| oracle.kind == spec.kind);
        if !is_known || !plan.wants_all() || request.config.by != 0 {
            return None;
        }
        if request.config.count == 0 {
            request.config.count = 1;
            request.sizes.counts = GROUPS;
        }
        let mut books = Self {
            kind: spec.kind,
            namespaces: namespaces::all().ok()?,
            readings: Vec::new(),
        };
        books.read();
        Some(books)
    }

    /// Reads again: when the programs are attached, before they are taken out, and after that.
    pub(super) fn read(&mut self) {
        let read = namespaces::in_each(&self.namespaces, |_| counters::of_tcp());
        let read = read.unwrap_or_default().into_iter();
        self.readings.push(read.map(Result::ok).collect());
    }

    /// Compares with what was seen; nothing if some of it cannot be compared.
    pub(super) fn close(
        mut self,
        session: &Session,
        totals: &[(CountKey, Count)],
    ) -> Vec<Reconciled> {
        self.read();
        let hooks = session.probes().iter().flat_map(|(_, hooks)| hooks);
        let [opened, began, ended, closed] = &self.readings[..] else {
            return Vec::new();
        };
        let is_other = |(key, _): &(CountKey, Count)| key.code == OTHER;
        if { hooks }.any(|hook| hook.result.is_err()) || totals.iter().any(is_other) {
            return Vec::new();
        }
        let oracles = ORACLES.iter().filter(|oracle| oracle.kind == self.kind);
        let reconciled = oracles.map(|oracle| {
            let mut sum = Reconciled {
                unit: oracle.unit,
                counter: oracle.name(),
                seen: 0,
                least: 0,
                most: 0,
            };
            let readings = began.iter().zip(ended).zip(opened.iter().zip(closed));
            for (namespace, readings) in self.namespaces.iter().zip(readings) {
                let ((Some(began), Some(ended)), (Some(opened), Some(closed))) = readings else {
                    continue;
                };
                sum.least += oracle.grown(began, ended);
                sum.most += oracle.grown(opened, closed);
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

impl Oracle {
    fn name(&self) -> String {
        match self.but {
            Some(but) => format!("{} - {but}", self.counter),
            None => self.counter.to_owned(),
        }
    }

    fn grown(&self, before: &Counters, after: &Counters) -> u64 {
        let read = |counters: &Counters| {
            let of = |name: &str| counters.get(name).copied().unwrap_or(0);
            of(self.counter) - self.but.map_or(0, of)
        };
        u64::try_from(read(after) - read(before)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_attempt_is_taken_off() {
        let retransmits = &ORACLES[0];
        let before = Counters::from([("Tcp.RetransSegs", 10), ("TcpExt.TCPRetransFail", 1)]);
        let after = Counters::from([("Tcp.RetransSegs", 25), ("TcpExt.TCPRetransFail", 3)]);
        assert_eq!(retransmits.grown(&before, &after), 13);
        assert_eq!(
            retransmits.name(),
            "Tcp.RetransSegs - TcpExt.TCPRetransFail"
        );
    }

    #[test]
    fn every_counter_is_one_that_is_read() {
        for oracle in &ORACLES {
            for name in [Some(oracle.counter), oracle.but].into_iter().flatten() {
                assert!(counters::WANTED.contains(&name), "{name}");
            }
        }
    }
}
