//! `--count --by`: the groups that the kernel counted, joined to those that were asked for, and the
//! small ones joined to one.

use std::collections::BTreeMap;

use netprobe_common::{
    counters::{Count, CountKey, FlowKey},
    header::Kind,
    record::Plain,
};

use crate::{
    decode::{Names, NoNames},
    probes,
    report::{Total, Value},
};

/// Names of the columns that make a connection.
const FLOW: [&str; 4] = ["saddr", "sport", "daddr", "dport"];

/// What to group by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    names: Vec<&'static str>,
}

/// A word that nothing can be grouped by, and those that something can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The words that are known.
    pub known: Vec<&'static str>,
}

impl By {
    /// The groups that `words` name for a kind. `flow` is all four of a connection's ends.
    pub fn new(kind: Kind, words: &[String]) -> Result<Self, Unknown> {
        let group = (probes::of(kind).group)(&CountKey::zeroed(), &mut NoNames);
        let mut known: Vec<&'static str> = group.iter().map(|(name, _)| *name).collect();
        known.extend(
            FLOW.iter()
                .filter(|name| !group.iter().any(|(own, _)| own == *name)),
        );
        let mut names = Vec::new();
        for word in words {
            if word == "flow" {
                names.extend(FLOW);
                continue;
            }
            let found = known.iter().find(|name| **name == word);
            match found {
                Some(name) => names.push(*name),
                None => {
                    known.push("flow");
                    return Err(Unknown { known });
                }
            }
        }
        names.dedup();
        Ok(Self { names })
    }

    /// Whether the kernel must tell connections apart for it.
    pub fn needs_flows(&self, kind: Kind) -> bool {
        let group = (probes::of(kind).group)(&CountKey::zeroed(), &mut NoNames);
        let is_own = |name: &&str| group.iter().any(|(own, _)| own == name);
        !self.names.iter().all(|name| is_own(&name))
    }

    /// Joins totals that do not differ in what is asked for; the largest first, and what comes
    /// after `top` groups as one more, `other`.
    pub fn join(&self, totals: Vec<Total>, top: usize) -> Vec<Total> {
        let mut joined: BTreeMap<String, Total> = BTreeMap::new();
        for mut total in totals {
            total.group.retain(|(name, _)| self.names.contains(name));
            let place = |name| self.names.iter().position(|wanted| *wanted == name);
            total.group.sort_by_key(|(name, _)| place(*name));
            let key = format!("{:?}", total.group);
            let sum = joined.entry(key).or_insert_with(|| Total {
                events: 0,
                weight: 0,
                ..total.clone()
            });
            sum.events += total.events;
            sum.weight += total.weight;
        }
        let mut totals: Vec<Total> = joined.into_values().collect();
        totals.sort_by(|a, b| (b.events, b.weight).cmp(&(a.events, a.weight)));
        let rest: Vec<Total> = totals.drain(top.min(totals.len())..).collect();
        if let Some(first) = rest.first() {
            totals.push(Total {
                kind: first.kind,
                group: vec![("other", Value::Unsigned(rest.len() as u64))],
                events: rest.iter().map(|total| total.events).sum(),
                weight: rest.iter().map(|total| total.weight).sum(),
            });
        }
        totals
    }
}

/// Names what the kernel counted by connection.
pub fn flows(counts: Vec<(FlowKey, Count)>, names: &mut dyn Names) -> Vec<Total> {
    let totals = counts.into_iter().filter_map(|(key, count)| {
        let kind = u16::try_from(key.key.kind).ok().and_then(Kind::from_raw)?;
        let spec = probes::of(kind);
        let mut group = (spec.group)(&key.key, names);
        group.retain(|(name, _)| !FLOW.contains(name));
        group.extend(FLOW.into_iter().zip(probes::ends(&key)));
        Some(Total {
            kind: spec.name(),
            group,
            events: count.events,
            weight: count.weight,
        })
    });
    totals.collect()
}

/// What was added to each key since `before`.
pub fn since<K: Plain + PartialEq>(
    now: &[(K, Count)],
    before: &[(K, Count)],
    key: impl Fn(&K) -> Vec<u8>,
) -> Vec<(K, Count)> {
    let before: BTreeMap<Vec<u8>, Count> = before
        .iter()
        .map(|(known, count)| (key(known), *count))
        .collect();
    let new = now.iter().filter_map(|(known, count)| {
        let old = before.get(&key(known));
        let (events, weight) = old.map_or((0, 0), |old| (old.events, old.weight));
        let left = Count {
            events: count.events.saturating_sub(events),
            weight: count.weight.saturating_sub(weight),
        };
        (left.events > 0).then_some((*known, left))
    });
    new.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(reason: &'static str, dport: u64, events: u64) -> Total {
        Total {
            kind: "drops",
            group: vec![
                ("reason", Value::Word(reason)),
                ("dport", Value::Unsigned(dport)),
            ],
            events,
            weight: events * 10,
        }
    }

    fn by(words: &[&str]) -> By {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        By::new(Kind::Drops, &words).unwrap()
    }

    #[test]
    fn groups_that_differ_in_nothing_asked_for_are_one() {
        let totals = vec![total("a", 1, 5), total("a", 2, 6), total("b", 1, 20)];
        let joined = by(&["reason"]).join(totals, 9);
        let found: Vec<_> = joined
            .iter()
            .map(|total| (total.events, total.weight))
            .collect();
        assert_eq!(found, [(20, 200), (11, 110)]);
        assert_eq!(joined[1].group, [("reason", Value::Word("a"))]);
    }

    #[test]
    fn what_comes_after_the_top_is_other_and_nothing_is_lost() {
        let totals = vec![total("a", 1, 5), total("b", 2, 6), total("c", 3, 7)];
        let joined = by(&["dport", "reason"]).join(totals, 1);
        assert_eq!(joined.len(), 2);
        assert_eq!(joined[0].group[0], ("dport", Value::Unsigned(3)));
        assert_eq!(joined[1].group, [("other", Value::Unsigned(2))]);
        assert_eq!(joined.iter().map(|total| total.events).sum::<u64>(), 18);
    }

    #[test]
    fn only_connections_need_to_be_told_apart() {
        assert!(!by(&["reason", "dport", "netns"]).needs_flows(Kind::Drops));
        assert!(by(&["flow"]).needs_flows(Kind::Drops));
        assert!(by(&["saddr"]).needs_flows(Kind::Drops));
        let refused = By::new(Kind::Drops, &["colour".into()]).unwrap_err();
        assert!(refused.known.contains(&"reason") && refused.known.contains(&"flow"));
    }

    #[test]
    fn an_interval_has_only_what_is_new() {
        let key = |code| CountKey {
            code,
            ..CountKey::zeroed()
        };
        let count = |events| Count { events, weight: 1 };
        let bytes = |key: &CountKey| netprobe_common::record::bytes_of(key).to_vec();
        let before = [(key(1), count(3)), (key(2), count(4))];
        let now = [(key(1), count(3)), (key(2), count(6)), (key(3), count(1))];
        let new = since(&now, &before, bytes);
        let new: Vec<_> = new
            .iter()
            .map(|(key, count)| (key.code, count.events))
            .collect();
        assert_eq!(new, [(2, 2), (3, 1)]);
    }
}
