//! The table of neighbours (ARP, NDP) is full: packets to hosts on the link that are not in it
//! cannot be sent.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named},
    sizing::{PERSIST, SPARED, roomy, several},
    window::{Gap, Netns, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "neighbour-table-full",
    title: "the neighbour (ARP, NDP) table is full",
    check,
    explanation: Explanation {
        symptom: "The host answers some peers on its link and not others; the console is fine, CPU and memory are free.",
        cause: "neigh_alloc() refuses a new entry with more than gc_thresh3 entries in the table (all namespaces \
                together) when neigh_forced_gc() finds nothing to free; __neigh_create() returns -ENOBUFS and the \
                packet is dropped. The kernel logs \"neighbor table overflow\", rate limited.",
        recognised: "table_fulls of arp_cache or ndisc_cache grew in the window: the kernel counts exactly this.",
        fixes: &[
            (
                "raise net.ipv4.neigh.default.gc_thresh1/2/3 (and ipv6) above the number of peers on the link",
                "memory: about 0.4 KiB for each entry",
            ),
            (
                "make the link smaller: route between subnets instead of one large one",
                "a change of the network",
            ),
        ],
    },
};

/// The tables: counters, entries, and the prefix of their settings.
const TABLES: [(&str, &str, &str, &str); 2] = [
    (
        "ARP",
        "arp_cache.table_fulls",
        "arp_cache.entries",
        "net.ipv4.neigh.default",
    ),
    (
        "NDP",
        "ndisc_cache.table_fulls",
        "ndisc_cache.entries",
        "net.ipv6.neigh.default",
    ),
];
const NEARLY: f64 = 0.9;
/// No table is made larger than this for those that were refused: some 25 MiB.
const LARGEST: u64 = 65_536;

fn check(window: &Window) -> Verdict {
    let Some(initial) = window.initial() else {
        return Verdict::NotEnoughData(
            "the kernel shows the neighbour tables in the initial namespace only".to_owned(),
        );
    };
    let mut found = Vec::new();
    for table in TABLES {
        match describe(window, initial, table) {
            Ok(finding) => found.extend(finding),
            Err(Gap(why)) => return Verdict::NotEnoughData(why),
        }
    }
    if found.is_empty() {
        Verdict::Ok
    } else {
        Verdict::Found(found)
    }
}

fn describe(
    window: &Window,
    netns: &Netns,
    (name, fulls, entries, prefix): (&str, &'static str, &'static str, &str),
) -> Result<Option<Finding>, Gap> {
    let refused = netns.grown_if_any(fulls)?;
    let used = netns.gauge(entries).unwrap_or(0);
    let limit_name = format!("{prefix}.gc_thresh3");
    let limit = netns.sysctl(&limit_name);
    let is_near = limit.is_some_and(|limit| ratio(used, limit) >= NEARLY);
    if refused == 0 && !is_near {
        return Ok(None);
    }
    let room = limit.map_or_else(|| "its limit".to_owned(), |limit| limit.to_string());
    let (severity, summary) = if refused > 0 {
        (
            Severity::Critical,
            format!(
                "the {name} table is full ({used} entries, limit {room}): {refused} new neighbours were refused in \
                 {:.0} s",
                window.seconds
            ),
        )
    } else {
        (
            Severity::Warning,
            format!("the {name} table is nearly full: {used} of {room} entries"),
        )
    };
    let (wanted, arithmetic) = size(used, limit, refused);
    let set = [1, 2, 3].map(|step| {
        let value = wanted >> (3 - step);
        (format!("{prefix}.gc_thresh{step}"), value.to_string())
    });
    let set: Vec<(&str, String)> = set
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    Ok(Some(
        finding(RULE.id, severity, Confidence::High, summary)
            .counted(
                format!("{refused} entries refused"),
                refused,
                "entries",
                fulls,
            )
            .counted(
                format!("{used} entries of {room}"),
                used,
                "entries",
                entries,
            )
            .hits([named("table", name, None)])
            .sysctl(
                format!("make room: {arithmetic}; {PERSIST}"),
                &set,
                "memory: about 0.4 KiB for each entry",
            ),
    ))
}

/// How many entries must have room: those that are there, which are no more than the limit, and those that were refused.
fn size(used: u64, limit: Option<u64>, refused: u64) -> (u64, String) {
    let now = used.max(limit.unwrap_or(0));
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let [all, least] = [now + refused, now].map(|needed| roomy(needed as f64));
    // One that tries every address, as a scan does, needs no room for all of them.
    let wanted = all.min(least.max(LARGEST));
    let entries = if used < now {
        format!("room for {now} now")
    } else {
        format!("{} now", several(used, "entry", "entries"))
    };
    let arithmetic = match refused {
        0 => format!("{entries}, {SPARED}"),
        _ if wanted < all => format!(
            "{entries} + at most {refused} refused (who tried again is counted again) would need more than {wanted}: see first \
             whether somebody tries every address of the link"
        ),
        _ => format!(
            "{entries} + at most {refused} refused (who tried again is counted again), {SPARED}"
        ),
    };
    (wanted, arithmetic)
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, report::diagnosis::Severity};

    #[test]
    fn a_refused_neighbour_is_found_and_the_table_sized() {
        let mut window = quiet();
        window.grow(&[("arp_cache.table_fulls", 3), ("arp_cache.entries", 1024)]);
        let findings = window.findings();
        assert_eq!(findings[0].id, "neighbour-table-full");
        assert_eq!(findings[0].severity, Severity::Critical);
        let values: Vec<_> = findings[0].fixes[0]
            .set
            .iter()
            .map(|(_, value)| value)
            .collect();
        assert_eq!(values, ["512", "1024", "2048"]);
    }

    #[test]
    fn the_size_is_that_of_those_who_want_in_and_not_of_those_who_got_in() {
        let sized = |refused: i64| {
            let mut window = quiet();
            window.set("net.ipv4.neigh.default.gc_thresh3", "64");
            window.grow(&[
                ("arp_cache.table_fulls", refused),
                ("arp_cache.entries", 65),
            ]);
            let fix = window.findings()[0].fixes[0].clone();
            (fix.set[2].1.clone(), fix.text)
        };
        let (value, text) = sized(1188);
        assert_eq!(value, "2048");
        let arithmetic = "65 entries now + at most 1188 refused (who tried again is counted again), and half as much again";
        assert!(text.contains(arithmetic), "{text}");
        // A scan of a large network is not given room.
        let (value, text) = sized(10_000_000);
        assert_eq!(value, "65536");
        assert!(text.contains("tries every address"), "{text}");
    }

    #[test]
    fn a_table_with_room_is_fine() {
        let mut window = quiet();
        window.grow(&[("arp_cache.entries", 500)]);
        assert!(window.ids().is_empty());
    }
}
