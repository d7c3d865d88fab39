//! What the programs have counted, summed over CPUs and over the places where they count.

use std::{collections::HashMap, hash::Hash};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{PerCpuArray, PerCpuHashMap},
};
use netprobe_common::{
    counters::{
        Count, CountKey, FlowKey, OTHER, PLACES, Place, SAMPLED_PLACES, SampledPlace, StackKey,
    },
    record::Plain,
};

use super::pod::Wire;

/// The groups of `--count`.
pub(super) fn groups(ebpf: &Ebpf) -> Result<Vec<(CountKey, Count)>> {
    let mut totals = hash(ebpf, "COUNTS")?;
    each_place(ebpf, "BUSY", PLACES, |place: &Place| {
        totals
            .entry(place.key)
            .or_insert(Count::NONE)
            .add(&place.count);
    })?;
    Ok(some(totals))
}

/// Makes room for other groups. What is counted while a group is taken out may be lost, and places
/// keep their counts.
pub(super) fn forget_groups(ebpf: &mut Ebpf) -> Result<()> {
    let map = ebpf
        .map_mut("COUNTS")
        .ok_or_else(|| anyhow!("no map COUNTS"))?;
    let mut map: PerCpuHashMap<_, Wire<CountKey>, Wire<Count>> = PerCpuHashMap::try_from(map)?;
    let keys: Vec<Wire<CountKey>> = map
        .keys()
        .collect::<Result<_, _>>()
        .context("read COUNTS")?;
    for key in keys.iter().filter(|Wire(key)| key.code != OTHER) {
        map.remove(key).context("empty COUNTS")?;
    }
    Ok(())
}

/// The stacks of a flame graph. What was sampled out after the last stack of its place and reason
/// counts for that stack.
pub(super) fn stacks(ebpf: &Ebpf) -> Result<Vec<(StackKey, Count)>> {
    let mut totals = hash(ebpf, "STACK_COUNTS")?;
    each_place(ebpf, "SAMPLED", SAMPLED_PLACES, |place: &SampledPlace| {
        let key = StackKey {
            kind: place.kind,
            code: place.code,
            stack: place.stack,
            ..StackKey::zeroed()
        };
        totals.entry(key).or_insert(Count::NONE).add(&place.owed);
    })?;
    Ok(some(totals))
}

/// The map `name`.
pub(super) fn counted<K: Plain + Eq + Hash>(ebpf: &Ebpf, name: &str) -> Result<Vec<(K, Count)>> {
    Ok(some(hash(ebpf, name)?))
}

/// The connections of `--count --by flow`.
pub(super) fn flows(ebpf: &Ebpf) -> Result<Vec<(FlowKey, Count)>> {
    Ok(some(hash(ebpf, "FLOW_COUNTS")?))
}

fn some<K>(totals: HashMap<K, Count>) -> Vec<(K, Count)> {
    totals
        .into_iter()
        .filter(|(_, count)| count.events > 0)
        .collect()
}

fn hash<K: Plain + Eq + Hash>(ebpf: &Ebpf, name: &str) -> Result<HashMap<K, Count>> {
    let map = ebpf.map(name).ok_or_else(|| anyhow!("no map {name}"))?;
    let map: PerCpuHashMap<_, Wire<K>, Wire<Count>> = PerCpuHashMap::try_from(map)?;
    let mut totals = HashMap::new();
    for entry in &map {
        let (Wire(key), values) = entry.with_context(|| format!("read {name}"))?;
        let sum: &mut Count = totals.entry(key).or_insert(Count::NONE);
        for Wire(count) in values.iter() {
            sum.add(count);
        }
    }
    Ok(totals)
}

fn each_place<P: Plain>(
    ebpf: &Ebpf,
    name: &str,
    places: u32,
    mut each: impl FnMut(&P),
) -> Result<()> {
    let map = ebpf.map(name).ok_or_else(|| anyhow!("no map {name}"))?;
    let map: PerCpuArray<_, Wire<P>> = PerCpuArray::try_from(map)?;
    for index in 0..places {
        let values = map.get(&index, 0).with_context(|| format!("read {name}"))?;
        for Wire(place) in values.iter() {
            each(place);
        }
    }
    Ok(())
}
