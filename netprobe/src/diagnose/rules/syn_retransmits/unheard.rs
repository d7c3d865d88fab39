//! Listeners whose clients' SYNs their own namespace drops before them, and addresses that it is sent SYNs for and does not have,
//! as it looks from there alone: no counter of handshakes tells, and the clients may be anywhere.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{
    super::super::{
        dropped,
        finding::{finding, host},
        places::{self, End},
        window::{Netns, Window},
    },
    MOST, RULE,
    lost_here::{self, LostHere},
};
use crate::{
    observe::diag::Listener,
    report::diagnosis::{Confidence, Finding, Severity},
};

/// So many connects that try again are no chance.
const LEAST: usize = 3;

/// A listener that SYNs do not get to, or an address that is not there.
pub(super) struct Unheard<'a> {
    netns: &'a Netns,
    listener: Option<&'a Listener>,
    pub(super) end: End,
    /// Who sends them, and gets through with none.
    clients: HashSet<IpAddr>,
    /// Connects of theirs that were seen to try again: who forges addresses does not.
    connects: usize,
    /// Whether others get through.
    is_heard: bool,
    lost: LostHere<'a>,
}

impl<'a> Unheard<'a> {
    /// Those of a namespace.
    pub(super) fn all(window: &'a Window, netns: &'a Netns) -> Vec<Self> {
        let mut tries = HashMap::<End, HashMap<End, u32>>::new();
        for event in window.events.within("drops", netns.inode) {
            let is_lost = lost_here::is_lost(window, event)
                && !lost_here::is_answer(event)
                && !dropped::is_netfilter(|name| event.value(name));
            if let Some((from, to)) = places::ends(event).filter(|_| is_lost) {
                *tries.entry(to).or_default().entry(from).or_default() += 1;
            }
        }
        let found = tries
            .into_iter()
            .filter_map(|(end, tries)| Self::of(window, netns, end, &tries));
        let mut found: Vec<Self> = found.collect();
        found.sort_by_key(|unheard| (std::cmp::Reverse(unheard.connects), unheard.end));
        found
    }

    fn of(
        window: &'a Window,
        netns: &'a Netns,
        end: End,
        tries: &HashMap<End, u32>,
    ) -> Option<Self> {
        let listener = places::listener(window, netns, end);
        // Who gets through to the port does so at another address.
        let heard = listener.map_or_else(HashSet::new, |_| places::clients(window, netns, end.1));
        let again = tries.iter().filter(|(_, tries)| **tries > 1);
        let again: Vec<IpAddr> = again
            .map(|(from, _)| from.0)
            .filter(|address| !heard.contains(address))
            .collect();
        let is_elsewhere = listener.is_some_and(|(home, _)| home.inode != netns.inode);
        if is_elsewhere || again.len() < LEAST {
            return None;
        }
        let connects = again.len();
        let clients: HashSet<IpAddr> = again.into_iter().collect();
        let lost = LostHere::of(window, end, &clients)?;
        if listener.is_none() && !lost.is_misaddressed() {
            return None;
        }
        let is_stranger = |client: &IpAddr| {
            !dropped::is_private(*client) && places::homes(window, netns, *client).is_empty()
        };
        let is_noise =
            window.rate(connects as u64) < dropped::KNOCKS_PER_S && clients.iter().all(is_stranger);
        // A filter that keeps some out while others get through does its work.
        let is_at_work = !heard.is_empty() && lost.is_deliberate();
        if is_noise || is_at_work {
            return None;
        }
        Some(Self {
            netns,
            listener: listener.map(|(_, listener)| listener),
            end,
            clients,
            connects,
            is_heard: !heard.is_empty(),
            lost,
        })
    }

    /// A finding of its own, where no client of this machine tells of it.
    pub(super) fn describe(&self, window: &Window) -> Finding {
        // An address that is not here may be meant for another machine.
        let is_meant =
            self.listener.is_some() || places::at_port(self.netns, self.end.1).next().is_some();
        let severity = if self.is_heard || !is_meant {
            Severity::Warning
        } else {
            Severity::Critical
        };
        let hit = self.listener.map_or_else(
            || Window::affected_destination(self.netns, self.end.0, self.end.1),
            |listener| window.affected_listener(self.netns, listener),
        );
        let comm = hit
            .comm
            .as_ref()
            .map_or(String::new(), |comm| format!(" of {comm}"));
        let first = self.clients.iter().min();
        let first = first.map_or(String::new(), IpAddr::to_string);
        let who = match self.clients.len() {
            1 => first,
            all => format!("{first} and {} more", all - 1),
        };
        let others = if self.is_heard {
            ""
        } else {
            ", nor by anybody else"
        };
        let summary = format!(
            "{}{comm}{} is not reached by {who}{others}: {} connects were seen to try again in {:.0} s{}",
            hit.name,
            self.netns.place(),
            self.connects,
            window.seconds,
            self.lost.words()
        );
        let sources = self.clients.iter().take(MOST);
        let sources = sources.map(|client| host("source", *client, self.netns.inode));
        let found = finding(RULE.id, severity, Confidence::High, summary)
            .hits([hit])
            .hits(sources);
        self.lost.add(found, window)
    }
}
