//! `--count --by flow`: exact counts by connection.

use netprobe_common::{
    counters::{CountKey, FlowKey, OTHER},
    record::Plain,
};

use crate::{emit::Sighting, maps::FLOW_COUNTS};

/// Counts a sighting under its connection, or under `OTHER`; false if there was no room for it.
#[inline(always)]
pub(crate) fn count(sighting: &Sighting<'_>) -> bool {
    let flow = sighting.flow;
    let mut key = FlowKey {
        key: sighting.key,
        saddr: flow.saddr,
        daddr: flow.daddr,
        sport: flow.sport,
        dport: flow.dport,
        family: flow.family,
        reserved: 0,
    };
    if add(&key, sighting.weight) {
        return true;
    }
    key = FlowKey {
        key: CountKey {
            kind: sighting.key.kind,
            code: OTHER,
            ..CountKey::zeroed()
        },
        ..FlowKey::zeroed()
    };
    add(&key, sighting.weight);
    false
}

#[inline(always)]
fn add(key: &FlowKey, weight: u64) -> bool {
    crate::maps::count(&FLOW_COUNTS, key, weight)
}
