//! What a run of `connects` adds up to: latencies, failures by errno, waits for a SYN to be sent
//! again, and which destinations are concerned. Bounded, whatever comes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::report::{Column, ConnectView, Destination, Row, Total, Value};

/// Destinations that are told apart; the rest is one.
const DESTINATIONS: usize = 4096;
/// Destinations that are shown.
const SHOWN: usize = 10;
/// A connect that was answered after its SYN was sent again took whole seconds and, beyond them,
/// no more than this.
const BEYOND_NS: u64 = 500_000_000;
/// A timer counts ticks, which lag on a machine whose host takes time from it: it fires as much as
/// this before the whole second.
const EARLY_NS: u64 = 50_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// Adds connects up.
#[derive(Debug)]
pub struct Connects {
    places: Places,
    established: u64,
    failed: BTreeMap<String, u64>,
    latency: BTreeMap<u32, u64>,
    attempts: BTreeMap<u64, u64>,
    steps: BTreeMap<u64, u64>,
    destinations: HashMap<(Option<u64>, IpAddr, u64), Destination>,
    other: Destination,
}

/// Where the values are.
#[derive(Debug)]
struct Places {
    outcome: usize,
    errno: usize,
    latency: usize,
    attempts: usize,
    address: usize,
    port: usize,
    netns: usize,
}

impl Connects {
    /// For rows with these columns; `None` if they are not those of connects.
    pub fn new(columns: &[Column]) -> Option<Self> {
        let place = |name| columns.iter().position(|column| column.name == name);
        Some(Self {
            places: Places {
                outcome: place("outcome")?,
                errno: place("errno")?,
                latency: place("latency_ns")?,
                attempts: place("syn_attempts")?,
                address: place("daddr")?,
                port: place("dport")?,
                netns: place("netns")?,
            },
            established: 0,
            failed: BTreeMap::new(),
            latency: BTreeMap::new(),
            attempts: BTreeMap::new(),
            steps: BTreeMap::new(),
            destinations: HashMap::new(),
            other: Destination::default(),
        })
    }

    /// Adds a connect.
    pub fn add(&mut self, row: &Row) {
        let number = |place: usize| match row.values[place] {
            Value::Unsigned(number) => Some(number),
            _ => None,
        };
        let attempts = number(self.places.attempts).unwrap_or(0);
        let latency_ns = number(self.places.latency);
        *self.attempts.entry(attempts).or_default() += 1;
        let is_established = row.values[self.places.outcome] == Value::Word("established");
        let failure = failure(
            &row.values[self.places.outcome],
            &row.values[self.places.errno],
        );
        if is_established {
            self.established += 1;
            if let Some(ns) = latency_ns {
                *self.latency.entry(magnitude(ns)).or_default() += 1;
                if let Some(step) = step(ns, attempts) {
                    *self.steps.entry(step).or_default() += 1;
                }
            }
        } else {
            *self.failed.entry(failure.clone()).or_default() += 1;
        }
        let destination = self.destination(row);
        destination.connects += 1;
        if !is_established {
            destination.failed += 1;
            destination.unanswered += u64::from(is_unanswered(&failure, attempts));
        }
        destination.sent_again += attempts.saturating_sub(1);
        destination.worst_ns = destination.worst_ns.max(latency_ns);
    }

    fn destination(&mut self, row: &Row) -> &mut Destination {
        let Value::Ip(address) = row.values[self.places.address] else {
            return &mut self.other;
        };
        let Value::Unsigned(port) = row.values[self.places.port] else {
            return &mut self.other;
        };
        let netns = match row.values[self.places.netns] {
            Value::Unsigned(netns) => Some(netns),
            _ => None,
        };
        let key = (netns, address, port);
        let has_room = self.destinations.len() < DESTINATIONS;
        if !has_room && !self.destinations.contains_key(&key) {
            return &mut self.other;
        }
        let found = self.destinations.entry(key).or_default();
        found.netns = netns;
        found.end = Some((address, port));
        found
    }

    /// The sums; destinations with the most failures first, then those with the most connects.
    pub fn finish(&self) -> ConnectView {
        let mut destinations: Vec<Destination> = self.destinations.values().cloned().collect();
        let mut namespaces: Vec<Option<u64>> = destinations.iter().map(|one| one.netns).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        destinations.sort_by_key(|destination| {
            let Destination {
                failed,
                connects,
                sent_again,
                end,
                netns,
                ..
            } = destination;
            (
                Reverse(*failed),
                Reverse(*sent_again),
                Reverse(*connects),
                *end,
                *netns,
            )
        });
        let mut other = self.other.clone();
        for left_out in destinations.drain(SHOWN.min(destinations.len())..) {
            other.add(&left_out);
        }
        ConnectView {
            established: self.established,
            failed: self.failed.clone().into_iter().collect(),
            are_all: false,
            shown: self.attempts.values().sum(),
            latency: self.latency.clone().into_iter().collect(),
            attempts: self.attempts.clone().into_iter().collect(),
            steps: self.steps.clone().into_iter().collect(),
            destinations,
            other,
            has_many_netns: namespaces.len() > 1,
        }
    }
}

/// Puts what the kernel counted in the place of what was shown: it has counted all.
pub fn count_all(view: &mut ConnectView, totals: &[Total]) {
    view.established = 0;
    view.are_all = true;
    let mut failed = BTreeMap::new();
    for total in totals {
        let value = |wanted| {
            let mut group = total.group.iter();
            group.find_map(|(name, value)| (*name == wanted).then_some(value))
        };
        let unknown = &Value::Unknown;
        let [outcome, errno] = ["outcome", "errno"].map(|name| value(name).unwrap_or(unknown));
        if (outcome, errno) == (&Value::Word("established"), unknown) {
            view.established += total.events;
        } else {
            *failed.entry(failure(outcome, errno)).or_default() += total.events;
        }
    }
    view.failed = failed.into_iter().collect();
}

/// Stands for the errno where the application closed before an answer came.
const CLOSED: &str = "closed";

/// Errno of a failure, or [`CLOSED`].
fn failure(outcome: &Value, errno: &Value) -> String {
    match (outcome, errno) {
        (_, Value::Word(errno)) => (*errno).to_owned(),
        (_, Value::Text(errno)) => errno.to_string(),
        (Value::Word("aborted"), _) => CLOSED.to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Whether nobody answered a SYN that was sent: until the kernel gave up, or the application did, which few let wait for
/// two minutes.
fn is_unanswered(failure: &str, attempts: u64) -> bool {
    failure == "ETIMEDOUT" || (failure == CLOSED && attempts > 0)
}

/// The power of two of microseconds that a time is below.
const fn magnitude(ns: u64) -> u32 {
    u64::BITS - (ns / 1000).leading_zeros()
}

/// Whole seconds that a connect waited until its SYN was sent again and answered: 1, 3, 7, 15 where
/// the kernel doubles the time, 1, 2, 3, 4 where it does so later.
const fn step(ns: u64, attempts: u64) -> Option<u64> {
    let ns = ns + EARLY_NS;
    let (seconds, beyond) = (ns / SECOND_NS, ns % SECOND_NS);
    if attempts > 1 && seconds > 0 && beyond < EARLY_NS + BEYOND_NS {
        Some(seconds)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes;
    use std::net::Ipv4Addr;

    fn row(outcome: &'static str, errno: &Value, ms: u64, syns: u64, last: u8) -> Row {
        let columns = probes::connects::SPEC.columns;
        let values = columns.iter().map(|column| match column.name {
            "outcome" => Value::Word(outcome),
            "errno" => errno.clone(),
            "latency_ns" => Value::nonzero(ms * 1_000_000),
            "syn_attempts" => Value::Unsigned(syns),
            "daddr" => Value::Ip(Ipv4Addr::new(10, 0, 0, last).into()),
            "dport" => Value::Unsigned(443),
            _ => Value::Unknown,
        });
        Row {
            values: values.collect(),
            ..Row::default()
        }
    }

    fn sum(rows: &[Row]) -> ConnectView {
        let mut connects = Connects::new(probes::connects::SPEC.columns).unwrap();
        for row in rows {
            connects.add(row);
        }
        connects.finish()
    }

    #[test]
    fn failures_are_by_errno_and_silence_is_by_destination() {
        let view = sum(&[
            row("established", &Value::Unknown, 1, 1, 1),
            row("failed", &Value::Word("ECONNREFUSED"), 1, 1, 2),
            row("failed", &Value::Word("ETIMEDOUT"), 127_000, 7, 2),
            row("aborted", &Value::Unknown, 50, 1, 1),
        ]);
        assert_eq!(view.established, 1);
        let failed: Vec<(&str, u64)> = view.failed.iter().map(|(name, n)| (&**name, *n)).collect();
        assert_eq!(
            failed,
            [("ECONNREFUSED", 1), ("ETIMEDOUT", 1), ("closed", 1)]
        );
        let worst = &view.destinations[0];
        assert_eq!(worst.end, Some((Ipv4Addr::new(10, 0, 0, 2).into(), 443)));
        assert_eq!(
            (worst.failed, worst.unanswered, worst.sent_again),
            (2, 1, 6)
        );
    }

    #[test]
    fn who_gives_up_before_an_answer_comes_had_none() {
        let view = sum(&[
            row("aborted", &Value::Unknown, 1_000, 1, 1),
            row("aborted", &Value::Unknown, 7_500, 4, 1),
            // No SYN was sent.
            row("aborted", &Value::Unknown, 1, 0, 1),
            row("failed", &Value::Word("EHOSTUNREACH"), 3_000, 3, 1),
        ]);
        let to = &view.destinations[0];
        assert_eq!((to.connects, to.failed, to.unanswered), (4, 4, 2));
    }

    #[test]
    fn a_time_that_is_not_known_is_not_the_worst() {
        let refused = Value::Word("ECONNREFUSED");
        let unknown = row("failed", &Value::Word("ETIMEDOUT"), 0, 4, 1);
        assert_eq!(
            sum(std::slice::from_ref(&unknown)).destinations[0].worst_ns,
            None
        );
        let view = sum(&[unknown, row("failed", &refused, 3, 1, 1)]);
        assert_eq!(view.destinations[0].worst_ns, Some(3_000_000));
    }

    #[test]
    fn what_was_not_shown_is_in_the_sums_that_the_kernel_counted() {
        let mut view = sum(&[row("failed", &Value::Word("ECONNREFUSED"), 1, 1, 2)]);
        assert_eq!((view.shown, view.are_all), (1, false));
        let total = |outcome, errno, events| Total {
            kind: "connects",
            group: vec![("outcome", Value::Word(outcome)), ("errno", errno)],
            events,
            weight: 0,
        };
        let totals = [
            total("failed", Value::Word("ECONNREFUSED"), 61),
            total("failed", Value::Word("EACCES"), 2),
            total("failed", Value::Word("ECONNREFUSED"), 1),
            total("established", Value::Unknown, 5),
            total("aborted", Value::Unknown, 3),
        ];
        count_all(&mut view, &totals);
        let failed: Vec<(&str, u64)> = view.failed.iter().map(|(name, n)| (&**name, *n)).collect();
        assert_eq!(failed, [("EACCES", 2), ("ECONNREFUSED", 62), ("closed", 3)]);
        assert_eq!((view.established, view.shown, view.are_all), (5, 1, true));
        assert_eq!(view.destinations[0].connects, 1);
    }

    #[test]
    fn the_staircase_is_whole_seconds_after_a_second_syn() {
        let rows: Vec<Row> = [
            (1_020, 2),
            (3_050, 3),
            (6_998, 4),
            (15_400, 5),
            (900, 2),
            (1_700, 2),
            (2_000, 1),
        ]
        .map(|(ms, syns)| row("established", &Value::Unknown, ms, syns, 1))
        .into();
        assert_eq!(sum(&rows).steps, [(1, 1), (3, 1), (7, 1), (15, 1)]);
    }

    #[test]
    fn latencies_are_counted_below_powers_of_two() {
        assert_eq!(
            (magnitude(999), magnitude(1_000), magnitude(3_999)),
            (0, 1, 2)
        );
        let rows = [1, 1, 2].map(|ms| row("established", &Value::Unknown, ms, 1, 1));
        assert_eq!(sum(&rows).latency, [(10, 2), (11, 1)]);
    }

    #[test]
    fn the_same_address_in_another_namespace_is_another_destination() {
        let columns = probes::connects::SPEC.columns;
        let place = columns.iter().position(|column| column.name == "netns");
        let refused = Value::Word("ECONNREFUSED");
        let of = |netns, mut row: Row| {
            row.values[place.unwrap()] = Value::Unsigned(netns);
            row
        };
        let rows = [
            of(7, row("established", &Value::Unknown, 1, 1, 1)),
            of(8, row("failed", &refused, 1, 1, 1)),
            of(7, row("established", &Value::Unknown, 1, 1, 1)),
        ];
        let view = sum(&rows);
        let found = view.destinations.iter();
        let found: Vec<_> = found.map(|to| (to.netns, to.connects, to.failed)).collect();
        assert_eq!(found, [(Some(8), 1, 1), (Some(7), 2, 0)]);
        assert!(view.has_many_netns);
        assert!(!sum(&rows[..1]).has_many_netns);
    }

    #[test]
    fn destinations_beyond_those_shown_are_one() {
        let rows: Vec<Row> = (0..15)
            .map(|last| row("established", &Value::Unknown, 1, 1, last))
            .collect();
        let view = sum(&rows);
        assert_eq!((view.destinations.len(), view.other.connects), (SHOWN, 5));
    }
}
