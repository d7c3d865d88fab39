//! Segments that a namespace of this machine threw away on their way: then it is no path to somewhere else that loses them.

use std::{collections::HashMap, net::IpAddr};

use super::super::super::{
    dropped,
    finding::somewhere,
    places,
    window::{Netns, Window},
};
use crate::report::diagnosis::Finding;

/// Fewer are chance.
const LEAST: u64 = 3;
/// The reason for what is larger than the MTU of the next link, and may not be cut.
const TOO_BIG: &str = "PKT_TOO_BIG";

/// Segments between a namespace and an address that a namespace dropped, for one reason.
pub(super) struct Here<'a> {
    netns: &'a Netns,
    reason: String,
    count: u64,
}

impl<'a> Here<'a> {
    /// What most of what `sender` sends to an address was lost by, if that is on this machine. What rules drop has a finding
    /// of its own.
    pub(super) fn of(window: &'a Window, sender: &Netns, address: IpAddr) -> Option<Self> {
        let mut reasons = HashMap::<(u32, String), u64>::new();
        for event in window.events.of("drops") {
            let is_its = places::ends(event)
                .is_some_and(|(from, to)| to.0 == address && places::is_local(sender, from.0));
            let reason = dropped::reason(event).filter(|reason| dropped::is_loss(reason));
            if let (Some(inode), Some(reason)) = (event.netns(), reason)
                && is_its
                && !dropped::is_of_handshake(event)
                && !dropped::is_netfilter(|name| event.value(name))
            {
                *reasons.entry((inode, reason)).or_default() += 1;
            }
        }
        let ((inode, reason), count) = reasons.into_iter().max_by_key(|(_, count)| *count)?;
        let netns = window.namespace(inode)?;
        (count >= LEAST).then_some(Self {
            netns,
            reason,
            count,
        })
    }

    /// What to add to the summary.
    pub(super) fn words(&self) -> String {
        let why = if self.reason == TOO_BIG {
            ": they are larger than the MTU of the next link, and the ICMP that says so does not come back"
        } else {
            ""
        };
        format!(
            "; it is no path elsewhere: segments are dropped{}, as {}{why}",
            self.netns.place_or_here(),
            self.reason
        )
    }

    /// Adds the number that it rests on, and what helps.
    pub(super) fn add(&self, found: Finding, sender: &Netns) -> Finding {
        let (place, enter) = (self.netns.place_or_here(), self.netns.enter());
        let found = found
            .counted(
                format!(
                    "{} segments to it dropped{place}: {}",
                    self.count, self.reason
                ),
                self.count,
                "segments",
                "kfree_skb",
            )
            .hits([somewhere(self.netns)]);
        if self.reason == TOO_BIG {
            return found
                .command(
                    format!(
                        "let ICMP \"fragmentation needed\" (\"packet too big\") leave and pass: `{enter}nft list ruleset`; or give \
                         all links of the way one MTU: `{enter}ip link`"
                    ),
                    "none",
                )
                .sysctl_in(
                    sender,
                    format!("or have the sender{} find the size that gets through", sender.place()),
                    &[("net.ipv4.tcp_mtu_probing", "1".to_owned())],
                    "connections over such a path begin slowly",
                );
        }
        found.command(dropped::LOOK, "none")
    }
}
