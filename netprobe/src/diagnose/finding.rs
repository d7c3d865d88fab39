//! How rules put a finding together.

use std::net::IpAddr;

use super::window::{Netns, Window};
use crate::report::diagnosis::{Affected, Confidence, Evidence, Finding, Fix, FixKind, Severity};

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

    /// Adds since when a counter grows, at least.
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
            risk,
        });
        self
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
            risk,
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
            risk,
        });
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
