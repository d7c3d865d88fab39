//! Segments that arrive damaged: by a device that offloads checksums wrongly, as a rule, as of tunnels and virtual machines.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::super::{
        finding::{finding, host, named, somewhere},
        window::{Gap, Netns, Window, ratio},
    },
    RULE,
};
use crate::report::diagnosis::{Affected, Confidence, Finding, Severity};

/// Fewer are what cables and strangers do.
const LEAST: u64 = 10;
/// The same, as a part of what comes.
const NOTABLE: f64 = 0.001;

/// What was dropped of segments with a wrong checksum, if it is more than now and then.
pub(super) fn damaged(window: &Window, netns: &Netns) -> Result<Option<Finding>, Gap> {
    let damaged = netns.grown("Tcp.InCsumErrors")?;
    let came = netns.grown("Tcp.InSegs")?.max(damaged);
    let share = ratio(damaged, came);
    if damaged < LEAST || share < NOTABLE {
        return Ok(None);
    }
    let hits = seen(window, netns);
    let from = match hits.first() {
        Some(hit) if hit.kind == "source" => {
            format!(", most of those that were looked at from {}", hit.name)
        }
        _ => String::new(),
    };
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::High,
        format!(
            "{damaged} segments{} arrived damaged in {:.0} s and were dropped: {:.1} % of all{from}",
            netns.place(),
            window.seconds,
            share * 100.0
        ),
    )
    .counted(
        format!("{damaged} of {came} segments had a wrong checksum"),
        damaged,
        "segments",
        "Tcp.InCsumErrors, Tcp.InSegs",
    )
    .hits(hits)
    .command(
        "look for what damages them: a device that offloads checksums wrongly (tunnels and virtual machines, as a rule; ethtool -K \
         DEVICE tx off at the sender shows it), a cable, a virtual switch",
        "none",
    );
    Ok(Some(found))
}

/// Where they come from, by the drops that were looked at: the busiest address, and the interface.
fn seen(window: &Window, netns: &Netns) -> Vec<Affected> {
    let mut sources = BTreeMap::<IpAddr, usize>::new();
    let mut interface = None;
    for drop in window.events.within("drops", netns.inode) {
        if !drop.is("reason", "TCP_CSUM") {
            continue;
        }
        if let Some(address) = drop.ip("saddr") {
            *sources.entry(address).or_default() += 1;
        }
        interface = interface.or_else(|| drop.text("iface"));
    }
    let all: usize = sources.values().sum();
    let heaviest = sources.into_iter().max_by_key(|(_, count)| *count);
    // Forged addresses are all different.
    let source = heaviest.filter(|(_, count)| count * 2 > all);
    let source = source.map(|(address, _)| host("source", address, netns.inode));
    let interface = interface.map(|name| named("interface", name, Some(netns.inode)));
    let hits: Vec<_> = source.into_iter().chain(interface).collect();
    if hits.is_empty() {
        vec![somewhere(netns)]
    } else {
        hits
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{fixtures::quiet, window::Window},
        report::{Value, diagnosis::Severity},
    };

    fn damaged(of: i64) -> Window {
        let mut window = quiet();
        window.grow(&[("Tcp.InCsumErrors", 50), ("Tcp.InSegs", of)]);
        window
    }

    #[test]
    fn damaged_segments_are_told_with_where_they_come_from() {
        let mut window = damaged(1000);
        let found = &window.findings()[0];
        assert_eq!(
            (found.id, found.severity),
            ("receive-path-drops", Severity::Warning)
        );
        assert!(
            found.summary.starts_with("50 segments"),
            "{}",
            found.summary
        );
        let drop = [
            ("reason", Value::Word("TCP_CSUM")),
            ("saddr", Value::Ip([10, 0, 0, 9].into())),
            ("iface", Value::Text("vxlan0".into())),
        ];
        window.event("drops", 50, &drop);
        let found = &window.findings()[0];
        let names: Vec<&str> = found.affected.iter().map(|hit| hit.name.as_str()).collect();
        assert_eq!(names, ["10.0.0.9", "vxlan0"]);
        assert!(found.summary.contains("from 10.0.0.9"), "{}", found.summary);
    }

    #[test]
    fn a_few_of_many_are_what_cables_do() {
        assert!(damaged(1_000_000).ids().is_empty());
    }
}
