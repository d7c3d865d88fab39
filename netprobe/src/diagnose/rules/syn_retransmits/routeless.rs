//! Namespaces whose listeners drop SYNs because there is no route back to who sent them: no packet goes out, and of their
//! clients only those of this machine are known.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    super::super::{
        finding::{finding, host, somewhere},
        places::{self, End},
        sizing::counted,
        syn_backlog::Refused,
        window::{Gap, Netns, Window, ratio},
    },
    DOWN, LEAST, MOST, MUCH, RULE,
};
use crate::{
    observe::diag::Listener,
    report::diagnosis::{Confidence, Finding, Severity},
};

/// The two counters are of the same SYNs if the smaller is so much of the larger.
const SAME: f64 = 0.9;

/// A namespace that has no route back to clients.
pub(super) struct Routeless<'a> {
    pub(super) netns: &'a Netns,
    /// SYNs that its listeners dropped, and no queue was full.
    dropped: u64,
    /// Packets that it had no route for.
    unrouted: u64,
    /// Handshakes that were completed meanwhile.
    completed: u64,
    /// Clients of this machine that tried in vain.
    sources: BTreeSet<IpAddr>,
    /// What they tried to reach, or else the only listener.
    listener: Option<&'a Listener>,
}

impl<'a> Routeless<'a> {
    /// All of them.
    pub(super) fn all(window: &'a Window) -> Vec<Self> {
        let all = window.namespaces.iter();
        let found = all.filter_map(|netns| Self::of(window, netns).ok().flatten());
        found.collect()
    }

    fn of(window: &'a Window, netns: &'a Netns) -> Result<Option<Self>, Gap> {
        let full = netns.grown("TcpExt.ListenOverflows")? + Refused::of(window, netns)?.dropped();
        let dropped = netns.grown("TcpExt.ListenDrops")?.saturating_sub(full);
        let unrouted =
            netns.grown_if_any("Ip.OutNoRoutes")? + netns.grown_if_any("Ip6OutNoRoutes")?;
        let completed = netns.grown("Tcp.PassiveOpens")?;
        let lost = dropped.min(unrouted);
        if lost < LEAST || ratio(lost, completed + lost) < MUCH {
            return Ok(None);
        }
        let tries = tries(window, netns);
        let end = tries
            .first()
            .and_then(|(_, to)| places::listener(window, netns, *to));
        let listeners = netns
            .after
            .sockets
            .as_ref()
            .map(|table| table.listeners.as_slice());
        let only = listeners.and_then(|all| all.first().filter(|_| all.len() == 1));
        Ok(Some(Self {
            netns,
            dropped,
            unrouted,
            completed,
            sources: tries.into_iter().map(|(from, _)| from).collect(),
            listener: end.map(|(_, listener)| listener).or(only),
        }))
    }

    fn lost(&self) -> u64 {
        self.dropped.min(self.unrouted)
    }

    /// Whether an end is in this namespace.
    pub(super) fn is_home_of(&self, window: &Window, seen_in: &Netns, end: End) -> bool {
        let home = places::listener(window, seen_in, end);
        home.is_some_and(|(home, _)| home.inode == self.netns.inode)
    }

    /// The namespace, as the subject of a sentence.
    fn subject(&self) -> String {
        match self.netns.place().strip_prefix(" in ") {
            Some(place) => place.to_owned(),
            None => "this machine".to_owned(),
        }
    }

    /// Who cannot be answered.
    fn who(&self) -> String {
        match self.sources.first() {
            Some(source) if self.sources.len() == 1 => source.to_string(),
            Some(source) => format!("{source} and {} more", self.sources.len() - 1),
            None => "who sent them".to_owned(),
        }
    }

    /// What to add to the summary of a client of this machine.
    pub(super) fn words(&self) -> String {
        format!(
            "; they arrive, but {} has no route back to {}: the listener drops them",
            self.subject(),
            self.who()
        )
    }

    /// A finding of its own, where no client of this machine tells of it.
    pub(super) fn describe(&self, window: &Window) -> Finding {
        let listener = self
            .listener
            .map(|listener| window.affected_listener(self.netns, listener));
        let whose = listener
            .as_ref()
            .map_or("its listeners".to_owned(), |hit| hit.name.clone());
        let rest = match self.completed {
            0 => "; no handshake completes".to_owned(),
            completed => format!("; {} completed", counted(completed, "other handshake")),
        };
        let severity = if ratio(self.completed, self.completed + self.lost()) <= DOWN {
            Severity::Critical
        } else {
            Severity::Warning
        };
        let (less, more) = (self.lost(), self.dropped.max(self.unrouted));
        let confidence = if ratio(less, more) >= SAME {
            Confidence::High
        } else {
            Confidence::Medium
        };
        let summary = format!(
            "{} has no route back to {}: {} to {whose} {} dropped in {:.0} s{rest}",
            self.subject(),
            if self.sources.is_empty() {
                "some of its clients".to_owned()
            } else {
                self.who()
            },
            counted(self.lost(), "SYN"),
            if self.lost() == 1 { "was" } else { "were" },
            window.seconds
        );
        let place = listener.unwrap_or_else(|| somewhere(self.netns));
        let found = finding(RULE.id, severity, confidence, summary).hits([place]);
        self.add(found)
    }

    /// Adds what it rests on, and what helps.
    pub(super) fn add(&self, found: Finding) -> Finding {
        let place = self.netns.place();
        let hits = self.sources.iter().take(MOST);
        let hits = hits.map(|source| host("source", *source, self.netns.inode));
        let enter = self.netns.enter();
        let look = match self.sources.first() {
            Some(source) => format!("`{enter}ip route get {source}` shows that there is none"),
            None => format!(
                "`{enter}ip route` and `{enter}ip -6 route` show those it has, `{enter}tcpdump -ni any tcp` who asks"
            ),
        };
        found
            .counted(
                format!("{} dropped{place}, though no queue was full", counted(self.dropped, "SYN")),
                self.dropped,
                "SYNs",
                "TcpExt.ListenDrops less ListenOverflows, TCPReqQFullDrop",
            )
            .counted(
                format!("{} without a route{place}", counted(self.unrouted, "packet")),
                self.unrouted,
                "packets",
                "IpOutNoRoutes, Ip6OutNoRoutes",
            )
            .hits(hits)
            .command(
                format!("give it a route back, or a default route: {look}; one made by hand is gone after a reboot"),
                "none",
            )
    }
}

/// SYNs to a namespace that clients of this machine sent again: who, and to what.
fn tries(window: &Window, netns: &Netns) -> Vec<(IpAddr, End)> {
    let again = window.events.of("retransmits").iter();
    let again = again.filter(|event| event.is("cause", "syn"));
    let given_up = window.events.of("connects").iter();
    let given_up = given_up.filter(|event| event.is("outcome", "aborted"));
    let tries = again.chain(given_up).filter_map(|event| {
        let (from, to) = places::ends(event)?;
        let is_here = netns.after.addresses.contains(&to.0) && event.netns() != Some(netns.inode);
        is_here.then_some((from.0, to))
    });
    tries.collect()
}
