//! The end of a run: the accounting of every probe, and the totals of `--count`.

use netprobe_common::{
    counters::{Count, CountKey, OTHER},
    header::Kind,
};

use crate::{
    decode::Names,
    probes,
    report::{Named, Total, Value},
};

/// Names the groups of `--count` and sorts them, largest first.
pub fn totals(counts: Vec<(CountKey, Count)>, names: &mut dyn Names) -> Vec<Total> {
    let mut totals: Vec<Total> = counts
        .into_iter()
        .filter_map(|(key, count)| Some(name(&key, names)?.total(count)))
        .collect();
    totals.sort_by(|a, b| (a.kind, b.events, b.weight).cmp(&(b.kind, a.events, a.weight)));
    totals
}

/// What stands before the columns of a group in which those are gathered that could not be told apart.
pub(super) const GATHERED: &str = "gathered";

/// Why it is no group of its own, if it is none.
pub(super) fn gathered(key: &CountKey) -> Option<Value> {
    (key.any_port != 0 || key.code == OTHER).then_some(Value::Word("map-full"))
}

/// Whether a column is a port.
pub(super) fn is_port(name: &&str) -> bool {
    name.ends_with("port")
}

/// Events whose port found the map full, but nothing else of their group.
pub fn without_port(counts: &[(CountKey, Count)]) -> u64 {
    let counts = counts.iter().filter(|(key, _)| key.any_port != 0);
    counts.map(|(_, count)| count.events).sum()
}

/// Names a group of `--count`.
pub fn name(key: &CountKey, names: &mut dyn Names) -> Option<Named> {
    let kind = u16::try_from(key.kind).ok().and_then(Kind::from_raw)?;
    let spec = probes::of(kind);
    let mut group = (spec.group)(key, names);
    if key.any_port != 0 || key.code == OTHER {
        for (_, value) in group.iter_mut().filter(|(name, _)| is_port(name)) {
            *value = Value::Unknown;
        }
    }
    if let Some(why) = gathered(key) {
        group.insert(0, (GATHERED, why));
    }
    Some(Named {
        kind: spec.name(),
        group,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::NoNames;
    use netprobe_common::record::Plain;

    #[test]
    fn larger_groups_come_first_within_their_kind() {
        let key = |code| CountKey {
            kind: Kind::Retransmits as u32,
            code,
            ..CountKey::zeroed()
        };
        let counts = vec![
            (
                key(1),
                Count {
                    events: 2,
                    weight: 9,
                },
            ),
            (
                key(4),
                Count {
                    events: 5,
                    weight: 5,
                },
            ),
        ];
        let events: Vec<u64> = totals(counts, &mut NoNames)
            .iter()
            .map(|total| total.events)
            .collect();
        assert_eq!(events, [5, 2]);
    }
}
