//! How rules put a finding together.

use std::net::IpAddr;

use super::{
    sizing::{PERSIST, PERSIST_ELSEWHERE},
    window::{Netns, Window},
};
use crate::report::diagnosis::{Affected, Confidence, Evidence, Finding, Fix, FixKind, Severity};

/// Settings that are limits: whoever proposes to set one means to raise it.
const LIMITS: &[&str] = &[
    "fs.file-max",
    "fs.nr_open",
    "net.core.netdev_budget",
    "net.core.netdev_max_backlog",
    "net.core.somaxconn",
    "net.ipv4.neigh.default.gc_thresh1",
    "net.ipv4.neigh.default.gc_thresh2",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv6.neigh.default.gc_thresh1",
    "net.ipv6.neigh.default.gc_thresh2",
    "net.ipv6.neigh.default.gc_thresh3",
    "net.ipv6.route.max_size",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_max",
];

/// Settings below `net.ipv4`, `net.ipv6` and `net.netfilter` that are of the whole machine, or can be set in the initial namespace
/// only.
const OF_THE_MACHINE: &[&str] = &[
    "net.ipv4.neigh.default.gc_thresh1",
    "net.ipv4.neigh.default.gc_thresh2",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_mem",
    "net.ipv6.neigh.default.gc_thresh1",
    "net.ipv6.neigh.default.gc_thresh2",
    "net.ipv6.neigh.default.gc_thresh3",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_max",
];

/// Whether each network namespace has a setting of its own.
fn is_of_namespace(name: &str) -> bool {
    let trees = ["net.ipv4.", "net.ipv6.", "net.netfilter."];
    let is_below = trees.iter().any(|tree| name.starts_with(tree));
    (is_below && !OF_THE_MACHINE.contains(&name)) || name == "net.core.somaxconn"
}

/// Says of settings in which namespace they are to be made: that of what is hit first, unless the rule has said another.
pub(super) fn place_settings(findings: &mut [Finding], window: &Window) {
    for finding in findings {
        let mut inodes = finding.affected.iter().filter_map(|hit| hit.netns);
        let hit = inodes.find_map(|inode| window.namespace(inode));
        let enter = hit.map_or(String::new(), Netns::enter);
        for fix in &mut finding.fixes {
            let mut names = fix.set.iter().map(|(name, _)| name);
            if fix.kind != FixKind::Sysctl || !names.all(|name| is_of_namespace(name)) {
                continue;
            }
            if fix.enter.is_empty() {
                fix.enter.clone_from(&enter);
            }
            if !fix.enter.is_empty() {
                fix.text = fix.text.replace(PERSIST, PERSIST_ELSEWHERE);
            }
        }
    }
}

/// Takes out what would set a limit to what it already is, or lower, where the findings hit; and
/// fixes of which nothing remains.
pub(super) fn keep_raises(findings: &mut [Finding], window: &Window) {
    for finding in findings {
        let inodes = finding.affected.iter().filter_map(|hit| hit.netns);
        let hit = inodes.filter_map(|inode| window.namespace(inode));
        let places: Vec<&Netns> = hit.chain(window.initial()).collect();
        finding.fixes.retain_mut(|fix| {
            if fix.kind != FixKind::Sysctl || fix.set.is_empty() {
                return true;
            }
            fix.set.retain(|(name, value)| raises(&places, name, value));
            !fix.set.is_empty()
        });
    }
}

/// Whether a value is above the present one of a limit. Settings of other kinds are let through, and
/// those that cannot be read. What a namespace does not have is asked of the whole machine.
fn raises(places: &[&Netns], name: &str, value: &str) -> bool {
    let present = places.iter().find_map(|netns| netns.sysctl(name));
    match present.zip(value.parse::<u64>().ok()) {
        Some((present, value)) if LIMITS.contains(&name) => value > present,
        _ => true,
    }
}

/// Begins a finding.
pub(super) fn finding(
    id: &'static str,
    severity: Severity,
    confidence: Confidence,
    summary: String,
) -> Finding {
    Finding {
        id,
        severity,
        confidence,
        summary,
        evidence: Vec::new(),
        affected: Vec::new(),
        fixes: Vec::new(),
        behind: None,
        awaits: None,
        stops: Vec::new(),
    }
}

impl Finding {
    /// Adds a number that it rests on.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "evidence is for people")]
    pub(super) fn counted(
        self,
        text: impl Into<String>,
        value: u64,
        unit: &'static str,
        source: &str,
    ) -> Self {
        self.measured(text, value as f64, unit, source)
    }

    /// Adds a measure that it rests on.
    #[must_use]
    pub(super) fn measured(
        mut self,
        text: impl Into<String>,
        value: f64,
        unit: &'static str,
        source: &str,
    ) -> Self {
        self.evidence.push(Evidence {
            text: text.into(),
            value: Some(value),
            unit,
            source: source.to_owned(),
        });
        self
    }

    /// Adds how much a counter has counted so far.
    #[must_use]
    pub(super) fn since(self, window: &Window, netns: &Netns, counter: &'static str) -> Self {
        match netns.since(counter, window.seconds) {
            Some((so_far, text)) => self.counted(text, so_far, "events", counter),
            None => self,
        }
    }

    /// Adds who is hit.
    #[must_use]
    pub(super) fn hits(mut self, affected: impl IntoIterator<Item = Affected>) -> Self {
        self.affected.extend(affected);
        self
    }

    /// Adds a kernel setting to change.
    #[must_use]
    pub(super) fn sysctl(
        mut self,
        text: impl Into<String>,
        set: &[(&str, String)],
        risk: &'static str,
    ) -> Self {
        let set: Vec<(String, String)> = set
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        self.fixes.push(Fix {
            kind: FixKind::Sysctl,
            text: text.into(),
            set,
            enter: String::new(),
            risk,
            is_at_once: false,
        });
        self
    }

    /// As [`Finding::sysctl`] for another namespace than that of what is hit first.
    #[must_use]
    pub(super) fn sysctl_in(
        self,
        netns: &Netns,
        text: impl Into<String>,
        set: &[(&str, String)],
        risk: &'static str,
    ) -> Self {
        let mut found = self.sysctl(text, set, risk);
        if let Some(fix) = found.fixes.last_mut() {
            fix.enter = netns.enter();
        }
        found
    }

    /// Adds a change of the application.
    #[must_use]
    pub(super) fn application(
        mut self,
        text: impl Into<String>,
        set: &[(&str, String)],
        risk: &'static str,
    ) -> Self {
        self.fixes.push(Fix {
            kind: FixKind::Application,
            text: text.into(),
            set: set
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            enter: String::new(),
            risk,
            is_at_once: false,
        });
        self
    }

    /// Adds something to run or to look at.
    #[must_use]
    pub(super) fn command(mut self, text: impl Into<String>, risk: &'static str) -> Self {
        self.fixes.push(Fix {
            kind: FixKind::Command,
            text: text.into(),
            set: Vec::new(),
            enter: String::new(),
            risk,
            is_at_once: false,
        });
        self
    }
}

impl Finding {
    /// Says of the fix that was added last that it helps as soon as it is made: where only one fits on the screen, it is
    /// that.
    #[must_use]
    pub(super) fn at_once(mut self) -> Self {
        if let Some(fix) = self.fixes.last_mut() {
            fix.is_at_once = true;
        }
        self
    }
}

/// An address that is hit, or hits.
pub(super) fn host(kind: &'static str, address: IpAddr, netns: u32) -> Affected {
    Affected {
        kind,
        name: address.to_string(),
        netns: Some(netns),
        pid: None,
        comm: None,
        address: Some(address),
        port: None,
    }
}

/// Something that has a name and nothing else.
pub(super) fn named(kind: &'static str, name: impl Into<String>, netns: Option<u32>) -> Affected {
    Affected {
        kind,
        name: name.into(),
        netns,
        pid: None,
        comm: None,
        address: None,
        port: None,
    }
}

/// A namespace, where nothing smaller can be named.
pub(super) fn somewhere(netns: &Netns) -> Affected {
    let name = netns.name.clone();
    let name = name.unwrap_or_else(|| netns.inode.to_string());
    named("netns", name, Some(netns.inode))
}

/// A process.
pub(super) fn process(pid: Option<u32>, comm: Option<String>, netns: Option<u32>) -> Affected {
    Affected {
        kind: "process",
        name: comm.clone().unwrap_or_else(|| "-".to_owned()),
        netns,
        pid,
        comm,
        address: None,
        port: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::fixtures::quiet;

    #[test]
    fn no_limit_is_lowered_nor_set_to_what_it_is() {
        let mut window = quiet();
        window.set("net.core.somaxconn", "4096");
        window.set("net.ipv4.tcp_max_syn_backlog", "2048");
        let inode = window.netns().inode;
        let proposed = |value: &str| {
            let found = finding("x", Severity::Warning, Confidence::High, String::new());
            let set = [
                ("net.core.somaxconn", value.to_owned()),
                ("net.ipv4.tcp_max_syn_backlog", value.to_owned()),
            ];
            let found = found.hits([named("netns", "x", Some(inode))]);
            let lowers = [("net.ipv4.tcp_slow_start_after_idle", "0".to_owned())];
            found.sysctl("x", &set, "none").sysctl("y", &lowers, "none")
        };
        for (value, kept) in [("128", 0), ("2048", 0), ("4096", 1), ("8192", 2)] {
            let mut findings = [proposed(value)];
            keep_raises(&mut findings, &window);
            let sets: Vec<usize> = findings[0].fixes.iter().map(|fix| fix.set.len()).collect();
            let expected = if kept == 0 { vec![1] } else { vec![kept, 1] };
            assert_eq!(sets, expected, "{value}");
        }
    }

    #[test]
    fn a_setting_is_made_where_it_counts() {
        let mut window = quiet();
        window.set("net.ipv4.tcp_max_tw_buckets", "4096");
        window.grow(&[("TcpExt.TCPTimeWaitOverflow", 5000)]);
        let fix = |window: &Window| window.findings()[0].fixes[0].clone();
        let here = fix(&window);
        assert_eq!(here.enter, "");
        assert!(here.text.contains("/etc/sysctl.d"), "{}", here.text);
        window.namespaces[0].is_initial = false;
        window.namespaces[0].name = Some("s".to_owned());
        let there = fix(&window);
        assert_eq!(there.enter, "ip netns exec s ");
        assert!(!there.text.contains("/etc/sysctl.d"), "{}", there.text);
    }
}
