//! Links of this machine that went down in the window: what was on its way there was lost.

use crate::report::diagnosis::{Finding, Severity};

use super::{
    sizing::counted,
    window::{Netns, Window},
};

/// What is found of lost segments.
const LOSSES: [&str; 2] = ["path-loss", "syn-retransmits"];
/// Most that are named.
const MOST: usize = 3;

/// A link that went down.
struct Down<'a> {
    netns: &'a Netns,
    name: &'a str,
    times: u32,
}

/// Tells of losses that links of the same namespaces went down.
pub(super) fn told(findings: Vec<Finding>, window: &Window) -> Vec<Finding> {
    let told = findings.into_iter().map(|finding| {
        if !LOSSES.contains(&finding.id) || finding.severity == Severity::Info {
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
        (times > 0).then_some(Down { netns, name, times })
    })
}

fn add(mut finding: Finding, downs: &[Down<'_>]) -> Finding {
    let Some(first) = downs.first() else {
        return finding;
    };
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
    let look = format!("`{enter}ip -s link show dev {name}`, ethtool, dmesg, the switch's port");
    finding = finding.command(format!("look at the link: {look}"), "none");
    finding.fixes.rotate_right(1);
    finding
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, observe::interfaces::Interface};

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
