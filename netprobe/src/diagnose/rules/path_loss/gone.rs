//! Clients that have gone, as phones do: nothing that is sent to them is acknowledged any more, while others are heard of. What
//! goes out to them again and again is lost, but no path is to blame for it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    super::super::{
        events::Event,
        finding::{finding, host},
        sizing::several,
        stalled::is_data,
        window::{Netns, Window},
    },
    LEAST, RULE,
    one::scaled,
    others,
};
use crate::{
    observe::diag::Path,
    report::diagnosis::{Confidence, Finding, Severity},
};

/// Acknowledgements that were on their way when the first segment was lost.
const ON_ITS_WAY_MS: u32 = 1000;
/// So many do not leave at the same moment, if they are one of so many connections or more.
const SEVERAL: usize = 3;
const MANY: u32 = 10;
/// Most of them that are named.
const MOST: usize = 4;

/// Clients that do not acknowledge anything any more.
#[derive(Default)]
pub(super) struct Gone<'a> {
    peers: BTreeMap<IpAddr, &'a Path>,
    /// Connections with others, heard of since.
    others: u32,
    /// When the window ended, in nanoseconds of the monotonic clock.
    ended_ns: u64,
}

impl<'a> Gone<'a> {
    /// Those of a namespace; none where several, or most of what it talks to, may have gone at once: then it is the way to them.
    pub(super) fn of(window: &Window, netns: &'a Netns) -> Self {
        let Some(table) = &netns.after.sockets else {
            return Self::default();
        };
        // Who opened connections to a peer misses it.
        let opened: BTreeSet<IpAddr> = table.unanswered.keys().map(|(to, ..)| *to).collect();
        let unheard = table.paths.iter();
        let unheard =
            unheard.filter(|(address, path)| path.is_unheard() && !opened.contains(*address));
        // Where other connections go well, it is not the peer that has gone.
        let peers: BTreeMap<IpAddr, &Path> = unheard
            .filter(|(address, _)| others(window, netns, **address) == 0)
            .map(|(address, path)| (*address, path))
            .collect();
        let first_ms = peers.values().map(|path| path.waiting_ms).max();
        let first_ms = first_ms.unwrap_or(0);
        let heard = table.paths.values();
        let heard = heard.filter(|path| path.unheard_ms.is_some_and(|ms| ms < first_ms));
        let others = heard.map(|path| path.connections).sum();
        let waiting: u32 = peers.values().map(|path| path.waiting).sum();
        let are_several = peers.len() >= SEVERAL && waiting * MANY >= others;
        let are_many = are_several || waiting >= others;
        if are_many && may_have_gone_at_once(&peers, first_ms) {
            return Self::default();
        }
        Self {
            peers,
            others,
            ended_ns: window.ended_ns(),
        }
    }

    /// Whether a segment was sent again to one of them, and nothing was heard of it since.
    pub(super) fn has_missed(&self, event: &Event) -> bool {
        let path = event.ip("daddr").and_then(|to| self.peers.get(&to));
        path.is_some_and(|path| {
            let since_ms = self.ended_ns.saturating_sub(event.at_ns) / 1_000_000;
            path.unheard_ms.is_none_or(|ms| since_ms <= ms.into())
        })
    }

    /// What is told of them, if much was sent to them in vain.
    pub(super) fn describe(&self, window: &Window, netns: &Netns) -> Option<Finding> {
        let events = window.events.within("retransmits", netns.inode);
        let missed: Vec<&Event> = events
            .filter(|event| is_data(event) && self.has_missed(event))
            .collect();
        let again = scaled(missed.len() as u64, window.events.weight("retransmits"));
        let mut gone: Vec<_> = self.peers.iter().collect();
        gone.retain(|(_, path)| !path.stuck_bytes.is_empty());
        gone.sort_by_key(|(_, path)| Reverse(path.waiting));
        let summary = self.summary(netns, &gone, &missed)?;
        let hits = gone.iter().take(MOST);
        let hits = hits.map(|(address, _)| host("destination", **address, netns.inode));
        let found = finding(RULE.id, Severity::Info, Confidence::High, summary)
            .counted(
                format!("{again} segments were sent again to them, in vain"),
                again,
                "segments",
                "tcp_retransmit_skb, tcp_info backoff, last_ack_recv",
            )
            .hits(hits)
            .application(
                "nothing to mend: each connection ends by itself when the kernel gives up (net.ipv4.tcp_retries2, some 15 \
                 minutes); TCP_USER_TIMEOUT (30 s) or pings of the application end it sooner",
                &[],
                "who is away for longer than that has to connect again",
            );
        (again >= LEAST).then_some(found)
    }

    fn summary(
        &self,
        netns: &Netns,
        gone: &[(&IpAddr, &&Path)],
        missed: &[&Event],
    ) -> Option<String> {
        let (first, _) = gone.first()?;
        let count: u32 = gone.iter().map(|(_, path)| path.waiting).sum();
        let connections = several(count.into(), "connection", "connections");
        let ports = missed.iter().filter_map(|event| event.small("sport"));
        let ports: BTreeSet<u16> = ports
            .filter(|port| netns.queue(None, *port).is_some())
            .collect();
        let of_port = match (ports.first(), ports.len()) {
            (Some(port), 1) => format!(" of port {port}"),
            _ => String::new(),
        };
        let (more, fate) = match gone.len() - 1 {
            0 => (String::new(), "this peer has gone, as phones do"),
            more => (
                format!(" and {more} more"),
                "these peers have gone, as phones do",
            ),
        };
        let silent = gone
            .iter()
            .map(|(_, path)| path.unheard_ms.unwrap_or(path.waiting_ms));
        let longest = f64::from(silent.max().unwrap_or(0)) / 1e3;
        let meanwhile = if self.others > 0 {
            ", while others are heard of"
        } else {
            ""
        };
        Some(format!(
            "{connections}{of_port}{} with {first}{more} had nothing acknowledged for up to {longest:.0} s{meanwhile}: {fate}",
            netns.place()
        ))
    }
}

/// Whether there is a moment after all that was heard of them, and before all that they missed.
fn may_have_gone_at_once(peers: &BTreeMap<IpAddr, &Path>, first_ms: u32) -> bool {
    let mut heard = peers.values().filter_map(|path| path.unheard_ms);
    heard.all(|ms| ms.saturating_add(ON_ITS_WAY_MS) >= first_ms)
}
