//! Whether a run has seen as many events as the kernel itself has counted meanwhile.

use std::collections::BTreeMap;

use netprobe_common::counters::{Count, CountKey, OTHER};

use super::super::filter::{Plan, Whole};
use crate::{
    kernel::session::{Request, Session},
    observe::{
        counters::{self, Counters},
        namespaces::{self, Namespace},
        sysctls,
    },
    probes::{Oracle, ProbeSpec},
    report::Reconciled,
};

/// Room for the groups of a run that shows events and counts only to compare.
const GROUPS: u32 = 1024;

/// The counters of each namespace, by its inode number.
type Reading = BTreeMap<u32, Sheet>;

/// What a namespace counts.
#[derive(Debug)]
struct Sheet {
    counters: Counters,
    /// Those of the oracles' counters that count something else as well, by its settings.
    inflated: Vec<&'static str>,
}

/// What the kernel counts, read on both sides of the moments at which the programs come and go: events in between may
/// have been seen, or not. No namespace is held meanwhile: it would outlive its container.
pub(super) struct Books {
    spec: &'static ProbeSpec,
    wanted: Whole,
    readings: Vec<Reading>,
}

impl Books {
    /// Before the programs are attached, has the kernel side count; `None` if nothing counts the same.
    pub(super) fn open(request: &mut Request, plan: &Plan) -> Option<Self> {
        let mut books = Self::unread(request, plan)?;
        books.read();
        Some(books)
    }

    fn unread(request: &mut Request, plan: &Plan) -> Option<Self> {
        let [spec] = request.probes[..] else {
            return None;
        };
        if spec.oracles.is_empty() {
            return None;
        }
        let wanted = plan.whole_namespaces()?;
        if request.config.count == 0 && request.config.by == 0 {
            request.config.count = 1;
            request.sizes.counts = GROUPS;
        }
        Some(Self {
            spec,
            wanted,
            readings: Vec::new(),
        })
    }

    /// Reads again, as when the programs are attached.
    pub(super) fn read(&mut self) {
        let mut namespaces = namespaces::all().unwrap_or_default();
        namespaces.retain(|namespace| self.wanted.has(namespace.inode));
        let oracles = self.spec.oracles;
        let read = |namespace: &Namespace| {
            let sheet = Sheet {
                counters: counters::of_tcp(),
                inflated: inflated(oracles, sysctls::read),
            };
            (namespace.inode, sheet)
        };
        let read = namespaces::in_each(&namespaces, read).unwrap_or_default();
        self.readings
            .push(read.into_iter().filter_map(Result::ok).collect());
    }

    /// Compares with what was seen; nothing if some of it cannot be compared.
    pub(super) fn compare(
        &self,
        session: &Session,
        totals: &[(CountKey, Count)],
    ) -> Vec<Reconciled> {
        let hooks = session.probes().iter().flat_map(|(_, hooks)| hooks);
        if { hooks }.any(|hook| hook.result.is_err()) || session.has_lost_module() {
            return Vec::new();
        }
        if totals.iter().any(|(key, _)| key.code == OTHER) {
            log::warn!("not compared with the kernel's counters: there were too many groups");
            return Vec::new();
        }
        let oracles = self.spec.oracles.iter();
        let reconciled = oracles.filter_map(|oracle| reconcile(oracle, &self.readings, totals));
        reconciled.collect()
    }
}

/// Compares one counter with what was seen, in the namespaces where it counts just that.
fn reconcile(
    oracle: &Oracle,
    readings: &[Reading],
    totals: &[(CountKey, Count)],
) -> Option<Reconciled> {
    let [opened, began, ended, closed] = readings else {
        return None;
    };
    let is_inflated = |inode: &u32| {
        let mut sheets = readings.iter().filter_map(|reading| reading.get(inode));
        sheets.any(|sheet| sheet.inflated.contains(&oracle.counter))
    };
    let mut sum = Reconciled {
        unit: oracle.unit,
        counter: name(oracle),
        seen: 0,
        least: 0,
        most: 0,
        elsewhere: 0,
        not_compared: 0,
        not_where: oracle.not_where,
    };
    for (inode, closed) in closed {
        if is_inflated(inode) {
            sum.not_compared += 1;
            continue;
        }
        if let Some(ended) = ended.get(inode) {
            sum.least += grown(oracle, counters(began, *inode), &ended.counters);
        }
        sum.most += grown(oracle, counters(opened, *inode), &closed.counters);
    }
    for (key, count) in totals.iter().filter(|(key, _)| !is_inflated(&key.netns)) {
        let is_there = closed.contains_key(&key.netns);
        let seen = (oracle.seen)(key, count);
        *(if is_there {
            &mut sum.seen
        } else {
            &mut sum.elsewhere
        }) += seen;
    }
    Some(sum)
}

fn counters(reading: &Reading, inode: u32) -> Option<&Counters> {
    reading.get(&inode).map(|sheet| &sheet.counters)
}

/// Which counters count something else as well, where settings are as `read` tells.
fn inflated(oracles: &[Oracle], read: impl Fn(&str) -> Option<String>) -> Vec<&'static str> {
    let is_so = |oracle: &&Oracle| {
        let setting = oracle.not_where;
        setting.is_some_and(|setting| read(setting.name).as_deref() == Some(setting.value))
    };
    let inflated = oracles.iter().filter(is_so);
    inflated.map(|oracle| oracle.counter).collect()
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

/// By how much it has grown; from nothing where the namespace was not there before.
fn grown(oracle: &Oracle, before: Option<&Counters>, after: &Counters) -> u64 {
    let read = |counters: &Counters| {
        let of = |name: &str| counters.get(name).copied().unwrap_or(0);
        of(oracle.counter) - oracle.but.map_or(0, of)
    };
    let before = before.filter(|before| is_same(before, after));
    u64::try_from(read(after) - before.map_or(0, read)).unwrap_or(0)
}

/// Whether these may be of one namespace: the number of one that has gone is given to the next, which begins to count
/// anew.
fn is_same(before: &Counters, after: &Counters) -> bool {
    const GAUGE: &str = "Tcp.CurrEstab";
    let mut counts = before.iter().filter(|(name, _)| **name != GAUGE);
    counts.all(|(name, before)| after.get(name).is_none_or(|after| before <= after))
}

#[cfg(test)]
mod tests {
    use netprobe_common::{config::Config, counters::BY_DADDR, header::Kind, record::Plain as _};

    use super::{super::super::filter, *};
    use crate::{
        kernel::load::Sizes,
        probes::{self, PROBES},
    };

    #[test]
    fn what_is_told_apart_by_more_is_compared_and_counted_once() {
        let retransmits = probes::of(Kind::Retransmits);
        let plan = filter::Options::default().plan(retransmits).unwrap();
        for (by, count) in [(0, 1), (BY_DADDR, 0)] {
            let mut config = Config::zeroed();
            config.by = by;
            let mut request = Request {
                probes: vec![retransmits],
                config,
                sizes: Sizes::NONE,
                windowed: None,
            };
            assert!(Books::unread(&mut request, &plan).is_some(), "{by}");
            assert_eq!(request.config.count, count);
        }
    }

    #[test]
    fn a_failed_attempt_is_taken_off() {
        let [retransmits] = probes::of(Kind::Retransmits).oracles else {
            panic!("one counter counts segments");
        };
        let before = Counters::from([("Tcp.RetransSegs", 10), ("TcpExt.TCPRetransFail", 1)]);
        let after = Counters::from([("Tcp.RetransSegs", 25), ("TcpExt.TCPRetransFail", 3)]);
        assert_eq!(grown(retransmits, Some(&before), &after), 13);
        assert_eq!(name(retransmits), "Tcp.RetransSegs - TcpExt.TCPRetransFail");
    }

    #[test]
    fn a_namespace_that_came_later_has_counted_from_nothing() {
        let [retransmits] = probes::of(Kind::Retransmits).oracles else {
            panic!("one counter counts segments");
        };
        let now = Counters::from([("Tcp.RetransSegs", 25), ("Tcp.OutSegs", 90)]);
        assert_eq!(grown(retransmits, None, &now), 25);
        // It has the number of one that was there before.
        let other = Counters::from([("Tcp.RetransSegs", 3), ("Tcp.OutSegs", 95)]);
        assert_eq!(grown(retransmits, Some(&other), &now), 25);
        let gauge = Counters::from([("Tcp.RetransSegs", 3), ("Tcp.CurrEstab", 95)]);
        assert_eq!(grown(retransmits, Some(&gauge), &now), 22);
    }

    #[test]
    fn cookies_are_not_compared_where_every_syn_gets_one() {
        let oracles = probes::of(Kind::Listeners).oracles;
        let [always, when_full] = ["2", "1"].map(|value| {
            inflated(oracles, |name| {
                (name == "net.ipv4.tcp_syncookies").then(|| value.to_owned())
            })
        });
        assert_eq!(always, ["TcpExt.TCPReqQFullDoCookies"]);
        assert!(when_full.is_empty());
        let reading = |cookies: i64| -> Reading {
            let sheet = |inflated: &Vec<&'static str>| Sheet {
                counters: Counters::from([("TcpExt.TCPReqQFullDoCookies", cookies)]),
                inflated: inflated.clone(),
            };
            [(1, sheet(&always)), (2, sheet(&when_full))].into()
        };
        let readings = [reading(5), reading(5), reading(17), reading(17)];
        let oracle = oracles.iter().find(|oracle| oracle.not_where.is_some());
        let oracle = oracle.unwrap();
        let full = |netns, events| {
            let count = Count {
                events,
                ..Count::NONE
            };
            let keys = (0..16).map(|code| CountKey {
                netns,
                code,
                ..CountKey::zeroed()
            });
            let mut cookies = keys.filter(|key| (oracle.seen)(key, &count) > 0);
            (cookies.next().unwrap(), count)
        };
        let sum = reconcile(oracle, &readings, &[full(1, 3), full(2, 12)]).unwrap();
        assert_eq!((sum.seen, sum.least, sum.most), (12, 12, 12));
        assert_eq!((sum.elsewhere, sum.not_compared), (0, 1));
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
