//! Links of this machine that went down in the window: what was on its way there was lost.

use crate::report::diagnosis::{Confidence, Finding, Severity};

use super::{
    finding::{finding, named},
    sizing::counted,
    window::{Netns, Window},
};

/// What is found of lost segments.
const LOSSES: [&str; 2] = ["path-loss", "syn-retransmits"];
/// Most that are named.
const MOST: usize = 3;
/// A link over which less went in the window, but for what its two ends say by themselves when it is up again, is not in use.
const LEAST_PACKETS: u64 = 50;

/// A link that went down.
struct Down<'a> {
    netns: &'a Netns,
    name: &'a str,
    times: u32,
    /// Packets in the window, both ways.
    packets: u64,
    is_without_link: bool,
}

/// Links in use that went down, but for those of namespaces of which losses are told anyhow.
pub(super) fn lost(id: &'static str, window: &Window, told: &[Finding]) -> Option<Finding> {
    let is_told = |netns: &Netns| {
        let told = told.iter().filter(|found| found.severity > Severity::Info);
        let mut hit = told.flat_map(|found| &found.affected);
        hit.any(|hit| hit.netns == Some(netns.inode))
    };
    let untold = window.namespaces.iter().filter(|netns| !is_told(netns));
    let downs = untold.flat_map(downs_of);
    let mut downs: Vec<Down<'_>> = downs.filter(|down| down.packets >= LEAST_PACKETS).collect();
    downs.sort_by_key(|down| std::cmp::Reverse(down.times));
    downs.truncate(MOST);
    let names = downs.iter().map(|down| {
        let now = if down.is_without_link {
            ", and is down now"
        } else {
            ""
        };
        let times = counted(down.times.into(), "time");
        format!("{}{} {times}{now}", down.name, down.netns.place())
    });
    let names: Vec<String> = names.collect();
    let summary = format!(
        "links that are in use went down in {:.0} s: {}; what is sent meanwhile is lost, or comes late",
        window.seconds,
        names.join("; ")
    );
    let hits = downs
        .iter()
        .map(|down| named("interface", down.name, Some(down.netns.inode)));
    let found = finding(id, Severity::Warning, Confidence::High, summary).hits(hits);
    (!downs.is_empty()).then(|| evidence(found, &downs))
}

/// Tells of losses that links of the same namespaces went down.
pub(super) fn told(findings: Vec<Finding>, window: &Window) -> Vec<Finding> {
    let told = findings.into_iter().map(|finding| {
        let is_of_links = finding.affected.iter().any(|hit| hit.kind == "interface");
        if !LOSSES.contains(&finding.id) || finding.severity == Severity::Info || is_of_links {
            return finding;
        }
        let is_hit = |netns: &&Netns| {
            let mut hit = finding.affected.iter();
            hit.any(|hit| hit.netns == Some(netns.inode))
        };
        let hit = window.namespaces.iter().filter(is_hit);
        let downs: Vec<Down<'_>> = hit.flat_map(downs_of).take(MOST).collect();
        add(finding, &downs)
    });
    told.collect()
}

/// Whether a link of a namespace went down.
pub(super) fn went_down(netns: &Netns) -> bool {
    downs_of(netns).next().is_some()
}

/// The links of a namespace that went down.
fn downs_of(netns: &Netns) -> impl Iterator<Item = Down<'_>> {
    let after = netns.after.interfaces.iter();
    after.filter_map(|(name, after)| {
        let before = netns.before.interfaces.get(name)?;
        let times = after.link_downs.checked_sub(before.link_downs)?;
        let packets = after.rx_packets.saturating_sub(before.rx_packets)
            + after.tx_packets.saturating_sub(before.tx_packets);
        (times > 0).then_some(Down {
            netns,
            name,
            times,
            packets,
            is_without_link: after.is_without_link,
        })
    })
}

fn add(mut finding: Finding, downs: &[Down<'_>]) -> Finding {
    if downs.is_empty() {
        return finding;
    }
    let names = downs
        .iter()
        .map(|down| format!("{}{}", down.name, down.netns.place()));
    let names: Vec<String> = names.collect();
    let links = if downs.len() == 1 { "link" } else { "links" };
    finding.summary = format!(
        "{}; meanwhile the {links} of {} went down",
        finding.summary,
        names.join(", ")
    );
    evidence(finding, downs)
}

/// Adds how often they went down, and where to look.
fn evidence(mut finding: Finding, downs: &[Down<'_>]) -> Finding {
    let Some(first) = downs.first() else {
        return finding;
    };
    for down in downs {
        let (name, times) = (down.name, counted(down.times.into(), "time"));
        let place = down.netns.place();
        finding = finding.counted(
            format!("the link of {name}{place} went down {times}"),
            down.times.into(),
            "times",
            "carrier_down_count",
        );
    }
    let (enter, name) = (first.netns.enter(), first.name);
    let look = format!(
        "`{enter}ip -s link show dev {name}`, ethtool, dmesg, the switch's port; `{enter}ip -ts monitor link` tells for how \
         long it is down"
    );
    let mut finding = finding.command(format!("look at the link: {look}"), "none");
    finding.fixes.rotate_right(1);
    finding
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::fixtures::quiet,
        observe::interfaces::Interface,
        report::{Value, diagnosis::Severity},
    };

    #[test]
    fn a_link_in_use_that_went_down_is_told_on_its_own() {
        let window = |packets, is_without_link| {
            let mut window = quiet();
            let link = |link_downs, rx_packets| Interface {
                rx_packets,
                link_downs,
                is_without_link,
                ..Interface::default()
            };
            let netns = window.netns();
            netns
                .before
                .interfaces
                .insert("eth0".to_owned(), link(3, 0));
            netns
                .after
                .interfaces
                .insert("eth0".to_owned(), link(6, packets));
            window
        };
        let finding = &window(1000, false).findings()[0];
        assert_eq!(
            (finding.id, finding.severity),
            ("path-loss", Severity::Warning)
        );
        let said = "links that are in use went down in 10 s: eth0 3 times; what is sent meanwhile is lost, or comes late";
        assert_eq!(finding.summary, said);
        assert_eq!(finding.affected[0].name, "eth0");
        let finding = &window(1000, true).findings()[0];
        assert!(finding.summary.contains("eth0 3 times, and is down now;"));
        assert_eq!(window(20, false).findings(), []);
        // What follows from it.
        let mut window = window(1000, false);
        window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 100)]);
        window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
        let again = [
            ("cause", Value::Word("syn")),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(5432)),
        ];
        window.event("retransmits", 12, &again);
        let told = [("path-loss", None), ("syn-retransmits", Some("path-loss"))];
        assert_eq!(window.told(), told);
    }

    #[test]
    fn a_link_that_went_down_is_told_with_what_was_lost_meanwhile() {
        let mut window = quiet();
        let downs = |link_downs| Interface {
            link_downs,
            ..Interface::default()
        };
        let netns = window.netns();
        for (name, before, after) in [("eth0", 3, 4), ("eth1", 7, 7)] {
            netns
                .before
                .interfaces
                .insert(name.to_owned(), downs(before));
            netns.after.interfaces.insert(name.to_owned(), downs(after));
        }
        assert_eq!(window.told(), []);
        window.grow(&[
            ("Tcp.RetransSegs", 400),
            ("TcpExt.TCPSynRetrans", 400),
            ("Tcp.ActiveOpens", 1000),
        ]);
        let finding = &window.findings()[0];
        let end = "; meanwhile the link of eth0 went down";
        assert!(finding.summary.ends_with(end), "{}", finding.summary);
        let evidence = &finding.evidence.last().unwrap().text;
        assert_eq!(evidence, "the link of eth0 went down 1 time");
        assert!(finding.fixes[0].text.contains("ip -s link show dev eth0"));
    }
}
