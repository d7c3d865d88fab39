//! `--count --by`: the groups that the kernel counted, joined to those that were asked for, and the
//! small ones joined to one.

use std::{
    cmp::{self, Reverse},
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use netprobe_common::{
    counters::{
        BY_CGROUP, BY_DADDR, BY_DPORT, BY_FLOW, BY_LISTENER, BY_PROCESS, BY_SADDR, BY_SPORT,
        BY_STACK, Count, CountKey, GroupKey,
    },
    header::Kind,
    record::{Plain, bytes_of},
};

use super::summary::{self, GATHERED, is_port};
use crate::{
    decode::{Names, NoNames},
    kernel::totals::COARSE,
    probes::{self, ProbeSpec},
    report::{Group, Named, Total, Value},
};

/// Names of the columns that make a connection.
const FLOW: [&str; 4] = ["saddr", "sport", "daddr", "dport"];
/// The bit of `Config::by` for each of them.
const FLOW_BITS: [u32; 4] = [BY_SADDR, BY_SPORT, BY_DADDR, BY_DPORT];
/// Names of the columns that make a process.
const PROCESS: [&str; 2] = ["pid", "comm"];

/// A word for several columns, or for one that the kernel counts by only if it is asked to.
struct Extra {
    word: &'static str,
    names: &'static [&'static str],
    /// What the kernel must count by, a bit of `Config::by`.
    by: u32,
}

const EXTRAS: [Extra; 5] = [
    Extra {
        word: "flow",
        names: &FLOW,
        by: BY_FLOW,
    },
    Extra {
        word: "process",
        names: &PROCESS,
        by: BY_PROCESS,
    },
    Extra {
        word: "listener",
        names: &["listener", "listener_port"],
        by: BY_LISTENER,
    },
    Extra {
        word: "stack",
        names: &["stack"],
        by: BY_STACK,
    },
    Extra {
        word: "cgroup",
        names: &["cgroup"],
        by: BY_CGROUP,
    },
];

/// What to group by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    names: Vec<&'static str>,
    /// What the kernel must count by beyond its groups, bits of `Config::by`.
    bits: u32,
    /// Whether groups are to differ in the port that the kernel counts by anyhow.
    has_port: bool,
}

/// A word that nothing can be grouped by, and those that something can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The words that are known.
    pub known: Vec<&'static str>,
}

impl By {
    /// The groups that `words` name for a kind: what it counts by anyhow, columns of the connection
    /// and of its owner, and words for several of these.
    pub fn new(kind: Kind, words: &[String]) -> Result<Self, Unknown> {
        let (own, extras) = offered(kind);
        let mut by = Self {
            names: Vec::new(),
            bits: 0,
            has_port: false,
        };
        for word in words {
            let is_asked = |name: &&&'static str| **name == word;
            if let Some(name) = own.iter().find(is_asked) {
                by.names.push(name);
            } else if let Some(extra) = extras.iter().find(|extra| extra.word == word) {
                by.names.extend(extra.names);
                let is_own = |name: &&str| own.contains(name);
                by.bits |= if extra.names.iter().all(is_own) {
                    0
                } else {
                    extra.by
                };
            } else if let Some((name, extra)) = extras.iter().find_map(|extra| {
                let name = extra.names.iter().find(is_asked)?;
                Some((name, extra))
            }) {
                by.names.push(name);
                by.bits |= extra.by;
            } else {
                return Err(Unknown { known: known(kind) });
            }
        }
        by.names.dedup();
        if by.bits & BY_FLOW != 0 {
            let asked = FLOW.iter().zip(FLOW_BITS);
            let asked = asked.filter(|(name, _)| by.names.contains(name));
            let asked = asked.fold(0, |bits, (_, bit)| bits | bit);
            by.bits = (by.bits & !BY_FLOW) | asked;
        }
        by.has_port = own
            .iter()
            .any(|name| is_port(name) && by.names.contains(name));
        Ok(by)
    }

    /// The groups that the kernel counts anyhow.
    pub fn usual(kind: Kind) -> Self {
        let (names, _extras) = offered(kind);
        Self {
            has_port: names.iter().any(is_port),
            names,
            bits: 0,
        }
    }

    /// What the kernel must count by beyond its groups, bits of `Config::by`; 0 is nothing.
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Whether groups are to differ in the port that the kernel counts by anyhow.
    pub const fn has_port(&self) -> bool {
        self.has_port
    }

    /// What matters of a group: that its port found the map full does only if the port was asked for.
    pub fn narrow(&self, key: &CountKey) -> CountKey {
        let any_port = if self.has_port { key.any_port } else { 0 };
        CountKey { any_port, ..*key }
    }

    /// Joins what was counted and does not differ in what is asked for, as `name` names it; the largest first, and what
    /// comes after `top` groups as one more, `other`. Names of groups that are not shown are not kept.
    pub fn join<K: Plain>(
        &self,
        counts: &[(K, Count)],
        top: usize,
        mut name: impl FnMut(&K) -> Option<Named>,
    ) -> Vec<Total> {
        let mut name = |key| {
            let mut named = name(key)?;
            self.keep_asked(&mut named.group);
            Some(named)
        };
        let mut joined: HashMap<[u64; 2], (&K, Count)> = HashMap::new();
        for (key, count) in counts {
            let Some(named) = name(key) else { continue };
            let (first, sum) = joined.entry(digest(&named)).or_insert((key, Count::NONE));
            *first = cmp::min_by_key(key, *first, |key| bytes_of(*key));
            sum.add(count);
        }
        let mut joined: Vec<_> = joined.into_values().collect();
        joined.sort_unstable_by_key(|(key, count)| {
            (Reverse((count.events, count.weight)), bytes_of(*key))
        });
        let rest = joined.split_off(top.min(joined.len()));
        let shown = joined
            .iter()
            .filter_map(|(key, count)| Some(name(key)?.total(*count)));
        let mut totals: Vec<Total> = shown.collect();
        if let Some(named) = rest.first().and_then(|(key, _)| name(key)) {
            let mut sum = Count::NONE;
            for (_, count) in &rest {
                sum.add(count);
            }
            let other = Named {
                group: vec![("other", Value::Unsigned(rest.len() as u64))],
                ..named
            };
            totals.push(other.total(sum));
        }
        totals
    }

    /// Leaves the columns that are asked for, in the order in which they were.
    fn keep_asked(&self, group: &mut Group) {
        group.retain(|(name, _)| *name == GATHERED || self.names.contains(name));
        group.sort_by_key(|(name, _)| self.names.iter().position(|wanted| wanted == name));
    }
}

/// What stands for a group whose name is not kept: 65,536 of them all differ but for one time in 2^97.
fn digest(named: &Named) -> [u64; 2] {
    [0, 1].map(|half| {
        let mut hasher = DefaultHasher::new();
        half.hash(&mut hasher);
        named.hash(&mut hasher);
        hasher.finish()
    })
}

/// What a kind is counted by anyhow, and what it can be counted by beyond that.
fn offered(kind: Kind) -> (Vec<&'static str>, Vec<&'static Extra>) {
    let spec = probes::of(kind);
    let group = (spec.group)(&CountKey::zeroed(), &mut NoNames);
    let is_column = |name: &str| spec.columns.iter().any(|column| column.name == name);
    let extras = EXTRAS
        .iter()
        .filter(|extra| extra.names.iter().all(|name| is_column(name)));
    let own = group.iter().map(|(name, _)| *name);
    (own.collect(), extras.collect())
}

/// All words that events of a kind can be grouped by.
pub fn known(kind: Kind) -> Vec<&'static str> {
    let (own, extras) = offered(kind);
    let mut known = own;
    for extra in extras {
        for name in extra.names.iter().chain([&extra.word]) {
            if !known.contains(name) {
                known.push(name);
            }
        }
    }
    known
}

/// Names what the kernel counted by `bits` of `Config::by`.
pub fn name(key: &GroupKey, bits: u32, names: &mut dyn Names) -> Option<Named> {
    let kind = u16::try_from(key.key.kind).ok().and_then(Kind::from_raw)?;
    let spec = probes::of(kind);
    Some(Named {
        kind: spec.name(),
        group: group(spec, key, bits, names),
    })
}

fn group(spec: &ProbeSpec, key: &GroupKey, bits: u32, names: &mut dyn Names) -> Group {
    let mut group = (spec.group)(&key.key, names);
    group.extend(gathered(key, bits).map(|why| (GATHERED, why)));
    if bits & BY_FLOW != 0 {
        group.retain(|(name, _)| !FLOW.contains(name));
        group.extend(FLOW.into_iter().zip(probes::ends(key)));
    }
    if bits & BY_PROCESS != 0 {
        group.extend(PROCESS.into_iter().zip(probes::process(key, names)));
    }
    if bits & BY_LISTENER != 0 {
        group.push(("listener", probes::listener(key)));
    }
    if bits & BY_CGROUP != 0 {
        group.push(("cgroup", probes::cgroup(&key.owner, names)));
    }
    if bits & BY_STACK != 0 {
        group.push(("stack", names.stack(key.stack)));
    }
    group
}

/// Why it is no group of its own, if it is none.
fn gathered(key: &GroupKey, bits: u32) -> Option<Value> {
    let is_coarse = key.reserved == COARSE || (bits & BY_FLOW != 0 && key.family == 0);
    let why = is_coarse.then_some(Value::Word("not-told-apart"));
    summary::gathered(&key.key).or(why)
}

/// What was added to each key since `before`.
pub fn since<K: Plain>(now: &[(K, Count)], before: &[(K, Count)]) -> Vec<(K, Count)> {
    let before: HashMap<&[u8], &Count> = before
        .iter()
        .map(|(known, count)| (bytes_of(known), count))
        .collect();
    let new = now.iter().filter_map(|(known, count)| {
        let left = count.since(before.get(bytes_of(known)).unwrap_or(&&Count::NONE));
        (left.events > 0).then_some((*known, left))
    });
    new.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(code: u32, port: u16, events: u64) -> (CountKey, Count) {
        let key = CountKey {
            code,
            port: port.to_be_bytes(),
            ..CountKey::zeroed()
        };
        let weight = events * 10;
        (key, Count { events, weight })
    }

    fn name(key: &CountKey) -> Named {
        let port = u16::from_be_bytes(key.port);
        Named {
            kind: "drops",
            group: vec![
                ("reason", Value::Unsigned(key.code.into())),
                ("dport", Value::Unsigned(port.into())),
            ],
        }
    }

    fn by(words: &[&str]) -> By {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        By::new(Kind::Drops, &words).unwrap()
    }

    #[test]
    fn groups_that_differ_in_nothing_asked_for_are_one() {
        let counts = [counted(7, 1, 5), counted(7, 2, 6), counted(8, 1, 20)];
        let joined = by(&["reason"]).join(&counts, 9, |key| Some(name(key)));
        let found: Vec<_> = joined
            .iter()
            .map(|total| (total.events, total.weight))
            .collect();
        assert_eq!(found, [(20, 200), (11, 110)]);
        assert_eq!(joined[1].group, [("reason", Value::Unsigned(7))]);
    }

    #[test]
    fn what_comes_after_the_top_is_other_and_nothing_is_lost() {
        let counts = [counted(7, 1, 5), counted(8, 2, 6), counted(9, 3, 7)];
        let joined = by(&["dport", "reason"]).join(&counts, 1, |key| Some(name(key)));
        assert_eq!(joined.len(), 2);
        assert_eq!(joined[0].group[0], ("dport", Value::Unsigned(3)));
        assert_eq!(joined[1].group, [("other", Value::Unsigned(2))]);
        assert_eq!(joined.iter().map(|total| total.events).sum::<u64>(), 18);
    }

    #[test]
    fn what_is_not_grouped_by_anything_is_told_apart_by_all_and_has_a_top_too() {
        let counts: Vec<_> = (1..=9)
            .map(|port| counted(7, port, u64::from(port)))
            .collect();
        let joined = By::usual(Kind::Drops).join(&counts, 2, |key| Some(name(key)));
        assert_eq!(joined[0].group.len(), 2);
        assert_eq!(joined[2].group, [("other", Value::Unsigned(7))]);
        assert_eq!(joined.iter().map(|total| total.events).sum::<u64>(), 45);
    }

    #[test]
    fn the_kernel_counts_by_more_only_where_it_must() {
        for (kind, words, expected) in [
            (Kind::Drops, "reason,dport,netns", 0),
            (Kind::Drops, "flow", BY_FLOW),
            (Kind::Drops, "saddr", BY_SADDR),
            (Kind::Drops, "dport,saddr", BY_SADDR | BY_DPORT),
            (Kind::Lifetimes, "saddr,daddr,result", BY_SADDR | BY_DADDR),
            (Kind::Lifetimes, "saddr,flow", BY_FLOW),
            (Kind::Drops, "reason,process", BY_PROCESS),
            (Kind::Drops, "comm,stack", BY_PROCESS | BY_STACK),
            (Kind::Resets, "cgroup", BY_CGROUP),
            (Kind::Listeners, "listener_port", 0),
            (Kind::Listeners, "listener", BY_LISTENER),
        ] {
            let words: Vec<String> = words.split(',').map(str::to_owned).collect();
            let by = By::new(kind, &words).unwrap();
            assert_eq!(by.bits(), expected, "{words:?}");
        }
    }

    #[test]
    fn what_a_kind_lacks_is_no_group() {
        for (kind, word) in [
            (Kind::Drops, "colour"),
            (Kind::Drops, "listener"),
            (Kind::Conntrack, "process"),
        ] {
            let refused = By::new(kind, &[word.into()]).unwrap_err();
            assert!(refused.known.contains(&"flow") && refused.known.contains(&"stack"));
            assert!(!refused.known.contains(&word));
        }
    }

    #[test]
    fn a_process_is_one_group_whatever_its_sockets() {
        let count = Count {
            events: 2,
            weight: 3,
        };
        let mut key = GroupKey::zeroed();
        key.owner.pid = 7;
        key.owner.comm[0] = b'x';
        let counts = vec![(key, count), (GroupKey { stack: 5, ..key }, count)];
        let by = By::new(Kind::Drops, &["process".into()]).unwrap();
        let joined = by.join(&counts, 9, |key| super::name(key, by.bits(), &mut NoNames));
        assert_eq!(joined.len(), 1);
        assert_eq!(joined[0].events, 4);
        assert_eq!(joined[0].group[0], ("pid", Value::Unsigned(7)));
    }

    #[test]
    fn what_was_not_told_apart_says_why() {
        use netprobe_common::counters::OTHER;
        let count = Count {
            events: 5,
            weight: 6,
        };
        let zero = GroupKey::zeroed();
        let of = |code| CountKey { code, ..zero.key };
        let fine = GroupKey {
            family: 2,
            dport: 443_u16.to_be_bytes(),
            ..zero
        };
        let coarse = GroupKey {
            reserved: COARSE,
            ..zero
        };
        let full = GroupKey {
            key: of(OTHER),
            ..zero
        };
        let by = by(&["dport", "flow"]);
        let counts = [(fine, count), (coarse, count), (full, count)];
        let joined = by.join(&counts, 9, |key| super::name(key, by.bits(), &mut NoNames));
        let first: Vec<_> = joined.iter().map(|total| &total.group[0]).collect();
        assert_eq!(joined.len(), 3);
        for expected in ["map-full", "not-told-apart"] {
            assert!(
                first.contains(&&(GATHERED, Value::Word(expected))),
                "{first:?}"
            );
        }
        // Also where everything else is the same.
        let by = self::by(&["process"]);
        let counts = [(zero, count), (coarse, count)];
        let joined = by.join(&counts, 9, |key| super::name(key, by.bits(), &mut NoNames));
        assert_eq!(joined.len(), 2);
    }

    #[test]
    fn a_port_that_found_the_map_full_matters_only_to_those_who_asked_for_it() {
        let (fine, count) = counted(7, 1, 5);
        let full = CountKey {
            port: [0; 2],
            any_port: 1,
            ..fine
        };
        let counts = [(fine, count), (full, count)];
        let joined = |by: &By| {
            by.join(&counts, 9, |key| {
                summary::name(&by.narrow(key), &mut NoNames)
            })
        };
        let by_reason = joined(&by(&["reason"]));
        assert_eq!((by_reason.len(), by_reason[0].events), (1, 10));
        assert_eq!(by_reason[0].group[0].0, "reason");
        for by in [by(&["reason", "dport"]), By::usual(Kind::Drops)] {
            let joined = joined(&by);
            assert_eq!(joined.len(), 2);
            let is_gathered = |total: &&Total| total.group[0].0 == GATHERED;
            assert_eq!(joined.iter().filter(is_gathered).count(), 1);
        }
    }

    #[test]
    fn an_interval_has_only_what_is_new() {
        let key = |code| CountKey {
            code,
            ..CountKey::zeroed()
        };
        let count = |events| Count { events, weight: 1 };
        let before = [(key(1), count(3)), (key(2), count(4))];
        let now = [(key(1), count(3)), (key(2), count(6)), (key(3), count(1))];
        let new = since(&now, &before);
        let new: Vec<_> = new
            .iter()
            .map(|(key, count)| (key.code, count.events))
            .collect();
        assert_eq!(new, [(2, 2), (3, 1)]);
    }
}
