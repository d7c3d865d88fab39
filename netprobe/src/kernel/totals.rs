//! What the programs have counted, summed over CPUs and over the places where they count.

use std::{collections::HashMap, hash::Hash};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Map, PerCpuArray, PerCpuHashMap, PerCpuValues},
};
use netprobe_common::{
    counters::{
        Count, CountKey, GroupKey, OTHER, PLACES, Place, SAMPLED_PLACES, SampledPlace, StackKey,
    },
    record::Plain,
};

use super::pod::Wire;

/// The groups of `--count`.
pub(super) fn groups(ebpf: &Ebpf) -> Result<Vec<(CountKey, Count)>> {
    groups_in(
        find(ebpf, "COUNTS")?,
        find(ebpf, "REST")?,
        find(ebpf, "BUSY")?,
    )
}

/// Marks, in what the programs leave zero, a group that they have not told apart.
pub const COARSE: u32 = 1;

/// What is counted, to be read while the programs are in other hands.
#[derive(Debug)]
pub struct Tally {
    counts: Map,
    rest: Map,
    busy: Map,
    groups: Map,
}

impl Tally {
    /// Takes the maps; once only.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name| {
            let map = ebpf.take_map(name);
            map.ok_or_else(|| anyhow!("the map {name} is taken"))
        };
        Ok(Self {
            counts: take("COUNTS")?,
            rest: take("REST")?,
            busy: take("BUSY")?,
            groups: take("GROUPS")?,
        })
    }

    /// The groups of `--count`, summed over CPUs.
    pub fn counts(&self) -> Result<Vec<(CountKey, Count)>> {
        groups_in(&self.counts, &self.rest, &self.busy)
    }

    /// The groups of `--count --by`, summed over CPUs; those that were told apart by no more than what `--count` alone groups
    /// by, to keep the cost low, are marked as [`COARSE`].
    pub fn groups(&self) -> Result<Vec<(GroupKey, Count)>> {
        let mut groups = Vec::new();
        each(&self.groups, |key, count| groups.push((key, count)))?;
        groups.retain(|(_, count)| count.events > 0);
        let coarse = self.counts()?.into_iter().map(|(key, count)| {
            let key = GroupKey {
                key,
                reserved: COARSE,
                ..GroupKey::zeroed()
            };
            (key, count)
        });
        groups.extend(coarse);
        Ok(groups)
    }
}

fn groups_in(counts: &Map, rest: &Map, busy: &Map) -> Result<Vec<(CountKey, Count)>> {
    let mut totals = hash(counts)?;
    totals.extend(hash(rest)?);
    each_place(busy, PLACES, |place: &Place| {
        totals
            .entry(place.key)
            .or_insert(Count::NONE)
            .add(&place.count);
    })?;
    Ok(some(totals))
}

/// A map of the object, by name.
pub(super) fn find<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Map> {
    ebpf.map(name).ok_or_else(|| anyhow!("no map {name}"))
}

/// Makes room for other groups. What is counted while a group is taken out may be lost, and places
/// keep their counts.
pub(super) fn forget_groups(ebpf: &mut Ebpf) -> Result<()> {
    for name in ["COUNTS", "REST"] {
        let map = ebpf.map_mut(name).ok_or_else(|| anyhow!("no map {name}"))?;
        let mut map: PerCpuHashMap<_, Wire<CountKey>, Wire<Count>> = PerCpuHashMap::try_from(map)?;
        let keys = map.keys().collect::<Result<Vec<_>, _>>();
        let keys = keys.with_context(|| format!("read {name}"))?;
        for key in keys.iter().filter(|Wire(key)| key.code != OTHER) {
            map.remove(key).with_context(|| format!("empty {name}"))?;
        }
    }
    let full = ebpf.map_mut("FULL").ok_or_else(|| anyhow!("no map FULL"))?;
    let mut full: PerCpuArray<_, u64> = PerCpuArray::try_from(full)?;
    let nowhere = vec![0; full.get(&0, 0).context("read FULL")?.len()];
    full.set(0, PerCpuValues::try_from(nowhere)?, 0)
        .context("clear FULL")
}

/// The stacks of a flame graph. What was sampled out after the last stack of its place and reason
/// counts for that stack.
pub(super) fn stacks(ebpf: &Ebpf) -> Result<Vec<(StackKey, Count)>> {
    let mut totals = hash(find(ebpf, "STACK_COUNTS")?)?;
    each_place(
        find(ebpf, "SAMPLED")?,
        SAMPLED_PLACES,
        |place: &SampledPlace| {
            let key = StackKey {
                kind: place.kind,
                code: place.code,
                stack: place.stack,
                ..StackKey::zeroed()
            };
            totals.entry(key).or_insert(Count::NONE).add(&place.owed);
        },
    )?;
    Ok(some(totals))
}

/// The map `name`.
pub(super) fn counted<K: Plain + Eq + Hash>(ebpf: &Ebpf, name: &str) -> Result<Vec<(K, Count)>> {
    Ok(some(
        hash(find(ebpf, name)?).with_context(|| format!("read {name}"))?,
    ))
}

fn some<K>(totals: HashMap<K, Count>) -> Vec<(K, Count)> {
    totals
        .into_iter()
        .filter(|(_, count)| count.events > 0)
        .collect()
}

fn hash<K: Plain + Eq + Hash>(map: &Map) -> Result<HashMap<K, Count>> {
    let mut totals = HashMap::new();
    each(map, |key: K, count| {
        totals.entry(key).or_insert(Count::NONE).add(&count);
    })?;
    Ok(totals)
}

/// Each key of a map of counts, with its sum over CPUs.
fn each<K: Plain>(map: &Map, mut each: impl FnMut(K, Count)) -> Result<()> {
    let map: PerCpuHashMap<_, Wire<K>, Wire<Count>> = PerCpuHashMap::try_from(map)?;
    for entry in &map {
        let (Wire(key), values) = entry.context("read a map of counts")?;
        let mut sum = Count::NONE;
        for Wire(count) in values.iter() {
            sum.add(count);
        }
        each(key, sum);
    }
    Ok(())
}

fn each_place<P: Plain>(map: &Map, places: u32, mut each: impl FnMut(&P)) -> Result<()> {
    let map: PerCpuArray<_, Wire<P>> = PerCpuArray::try_from(map)?;
    for index in 0..places {
        let values = map.get(&index, 0).context("read the busy groups")?;
        for Wire(place) in values.iter() {
            each(place);
        }
    }
    Ok(())
}
