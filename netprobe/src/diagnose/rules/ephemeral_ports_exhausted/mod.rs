//! connect() finds no local port any more for one destination, or soon will not.

mod room;

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    Explanation, Rule, Verdict,
    events::Event,
    finding::{finding, process},
    in_each,
    places::End,
    ports::{Place, Range, connects, reuses},
    sizing::{PERSIST, seconds_left, spoken},
    window::{Gap, Window, endpoint, ratio, ss_dst},
};
use crate::{
    observe::diag::{Destination, Ports},
    report::diagnosis::{Affected, Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "ephemeral-ports-exhausted",
    title: "no local port is left for a destination",
    check,
    explanation: Explanation {
        symptom: "connect() fails with \"99: Cannot assign requested address\" (EADDRNOTAVAIL), to one upstream only.",
        cause: "A connection is known by (local address, local port, remote address, remote port). \
                __inet_hash_connect() tries the ports of net.ipv4.ip_local_port_range; __inet_check_established() \
                refuses each that a connection to the same destination holds, TIME_WAIT included, unless \
                tcp_twsk_unique() may take it over (tcp_tw_reuse). When all are held it returns -EADDRNOTAVAIL.",
        recognised: "connects failed with EADDRNOTAVAIL and the ports of that destination, counted in the socket \
                     tables, fill the range. A refusal by the peer is ECONNREFUSED and no case of this. A program that \
                     calls bind() before connect() fails there, with EADDRINUSE, and nothing tells of it: where all ports \
                     are held and no connect() failed, it is a warning of low confidence.",
        fixes: &[
            (
                "ports in TIME_WAIT: keep connections to that upstream open (HTTP keep-alive, a pool)",
                "the upstream must allow as many open connections",
            ),
            (
                "ports of open connections: limit the pool, or find what does not close them",
                "with a smaller pool requests wait for a connection",
            ),
            (
                "net.ipv4.tcp_tw_reuse=1: ports in TIME_WAIT for more than 1 s may be taken again (needs tcp_timestamps)",
                "a middlebox that strips timestamps may mix up old and new connections",
            ),
            (
                "widen net.ipv4.ip_local_port_range",
                "reserve the ports that services listen at with ip_local_reserved_ports",
            ),
            (
                "more addresses or ports at the destination, or more local addresses with IP_BIND_ADDRESS_NO_PORT",
                "none",
            ),
        ],
    },
};

const EADDRNOTAVAIL: &str = "EADDRNOTAVAIL";
/// With fewer ports held than this share the error has another reason.
const NEARLY: f64 = 0.9;
/// From here on the next one fails, as a rule: a few ports are free for a moment.
const FULL: f64 = 0.99;
/// From here on it is worth a warning, if it grows.
const FILLING: f64 = 0.7;
/// From here on it is, if the range is full before ports in TIME_WAIT are free again.
const BEGUN: f64 = 0.25;
/// How long a port stays in TIME_WAIT, in seconds.
const TIME_WAIT_S: f64 = 60.0;
/// A range has room for this much of what is needed.
const SPARE: f64 = 1.5;
/// What fills later than this is not forecast.
const HORIZON_S: f64 = 600.0;

/// More of them are not told one by one.
const MOST_NAMED: usize = 4;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let inode = netns.inode.to_string();
        let group = [("errno", EADDRNOTAVAIL), ("netns", inode.as_str())];
        let failed = window.events.count("connects", &group);
        let range = Range::of(netns);
        let places: Option<Vec<_>> = range.map(|range| Place::all(window, netns, range).collect());
        let places = places.unwrap_or_default();
        let Some(most) = places.first() else {
            return if failed > 0 {
                Err(Gap(format!(
                    "{failed} connects failed with EADDRNOTAVAIL, but ports in use cannot be counted"
                )))
            } else {
                Ok(Vec::new())
            };
        };
        if failed > 0 && most.share() < NEARLY {
            return Err(Gap(format!(
                "{failed} connects failed with EADDRNOTAVAIL, but no destination holds more than {} of {} ports: \
                 perhaps there is no usable local address",
                most.ports.used(),
                most.range.usable()
            )));
        }
        if failed > 0 {
            return exhausted(&places, failed);
        }
        if most.ports.used() >= most.range.usable() {
            // The probe must have seen the failures, if there were any.
            window.watched_required("connects")?;
        }
        let filling = places
            .iter()
            .filter_map(|place| place.filling().or_else(|| place.taken()));
        Ok(filling.take(MOST_NAMED).collect())
    })
}

/// The destinations that connects failed to, most of them first.
fn exhausted(places: &[Place<'_>], failed: u64) -> Result<Vec<Finding>, Gap> {
    let candidates = candidates(places);
    let missed = candidates
        .iter()
        .map(|place| (place.failures(&candidates), *place));
    let mut missed: Vec<(u64, &Place<'_>)> = missed.filter(|(failures, _)| *failures > 0).collect();
    missed.sort_by_key(|(failures, _)| std::cmp::Reverse(*failures));
    if missed.is_empty() {
        // Where nobody said to which port, the fullest is the likely one.
        let first = candidates.first().ok_or_else(|| {
            Gap(format!(
                "{failed} connects failed with EADDRNOTAVAIL to a destination that holds no ports any more"
            ))
        })?;
        missed.push((failed, first));
    }
    missed.truncate(MOST_NAMED);
    let findings = missed.into_iter();
    Ok(findings
        .map(|(count, place)| place.exhausted(count))
        .collect())
}

/// Those that connects were seen to fail to: if one holds ports of several local addresses, the full ones. At ports where
/// none was seen, those that hold nearly all: what an earlier load has left may do so as well.
fn candidates<'a>(places: &'a [Place<'a>]) -> Vec<&'a Place<'a>> {
    let full = &places[..places.partition_point(|place| place.share() >= NEARLY)];
    let Some(first) = places.first() else {
        return Vec::new();
    };
    let failed = first.window.events.within("connects", first.netns.inode);
    let failed = failed.filter(|event| event.is("errno", EADDRNOTAVAIL));
    let aimed: BTreeSet<End> = failed
        .filter_map(|event| Some((event.ip("daddr")?, event.small("dport")?)))
        .collect();
    let is_seen_at = |port| aimed.iter().any(|(_, seen)| *seen == port);
    let unseen = full
        .iter()
        .filter(|place| !is_seen_at(place.destination.port));
    let seen = aimed.iter().flat_map(|end| {
        let of_it = |place: &&Place<'_>| place.service() == *end;
        let all: Vec<_> = full.iter().filter(of_it).collect();
        let fullest = places.iter().find(of_it).filter(|_| all.is_empty());
        all.into_iter().chain(fullest)
    });
    seen.chain(unseen).collect()
}

impl Place<'_> {
    /// Connects to it that found no port: the kernel counts them by port, and what was seen of single ones tells
    /// destinations at equal ports apart.
    fn failures(&self, candidates: &[&Place<'_>]) -> u64 {
        let (inode, port) = (
            self.netns.inode.to_string(),
            self.destination.port.to_string(),
        );
        let group = [
            ("errno", EADDRNOTAVAIL),
            ("netns", inode.as_str()),
            ("dport", port.as_str()),
        ];
        let at_port = self.window.events.count("connects", &group);
        let shared = candidates.iter();
        let shared = shared.filter(|place| place.destination.port == self.destination.port);
        let seen = shared.map(|place| place.failed_events().count() as u64);
        let seen: Vec<u64> = seen.collect();
        if seen.len() < 2 {
            return at_port;
        }
        at_port * self.failed_events().count() as u64 / seen.iter().sum::<u64>().max(1)
    }

    /// What was seen of them.
    fn failed_events(&self) -> impl Iterator<Item = &Event> {
        let connects = self.connects();
        connects.filter(|event| event.is("errno", EADDRNOTAVAIL))
    }

    fn exhausted(&self, failed: u64) -> Finding {
        let who = self.callers();
        let comm = who
            .first()
            .and_then(|process| process.comm.clone())
            .unwrap_or_else(|| "a process".to_owned());
        let service = endpoint(self.destination.remote, self.destination.port);
        let confidence = match self.window.watched("connects") {
            Ok(()) => Confidence::High,
            Err(_) => Confidence::Medium,
        };
        let found = finding(
            RULE.id,
            Severity::Critical,
            confidence,
            format!(
                "{comm}{} cannot connect to {service}: {failed} connects failed with EADDRNOTAVAIL, as {}",
                self.netns.place(),
                self.in_use()
            ),
        )
        .counted(
            format!("{failed} connects failed with EADDRNOTAVAIL in {:.0} s", self.window.seconds),
            failed,
            "connects",
            "connects",
        );
        let found = self.occupancy(found).hits(who);
        self.fixes(found, None)
    }

    /// How many of its ports are in use.
    fn in_use(&self) -> String {
        let (used, usable) = (self.ports.used(), self.range.usable());
        if self.share() >= NEARLY {
            format!("{used} of {usable} local ports are in use")
        } else {
            format!("all {usable} local ports are in use at times ({used} when looked at)")
        }
    }

    fn filling(&self) -> Option<Finding> {
        // Ports that may be taken again run out only when they are in use.
        let is_reused = reuses(self.netns, &self.destination)
            && ratio(self.ports.open.into(), self.range.usable().into()) < FILLING;
        if is_reused {
            return None;
        }
        let before = self.netns.before.sockets.as_ref()?;
        let before = before.ports.get(&self.destination).copied();
        let before = before.unwrap_or_default();
        let growth = self.ports.used().saturating_sub(before.used());
        let growth = self.window.rate(growth.into());
        let left = seconds_left(self.ports.used().into(), self.range.usable().into(), growth)?;
        // While the first ports in TIME_WAIT are not free again, a range fills that is too small for what comes in that time.
        let is_short = growth * TIME_WAIT_S >= f64::from(self.range.usable());
        let is_soon = is_short && left <= TIME_WAIT_S && self.share() >= BEGUN;
        if left > HORIZON_S || !(self.share() >= FILLING || is_soon) {
            return None;
        }
        let service = endpoint(self.destination.remote, self.destination.port);
        let found = finding(
            RULE.id,
            Severity::Warning,
            Confidence::Medium,
            format!(
                "local ports for {service}{} will be used up in {}: {} of {}, {growth:.0} more each second",
                self.netns.place(),
                spoken(left),
                self.ports.used(),
                self.range.usable()
            ),
        )
        .measured(
            format!("used up in {} at {growth:.1} more per second", spoken(left)),
            left,
            "s",
            "sock_diag",
        );
        let open = self
            .window
            .rate(self.ports.open.saturating_sub(before.open).into());
        Some(self.fixes(
            self.occupancy(found),
            Some(open).filter(|open| open * 2.0 >= growth),
        ))
    }

    /// All ports are held, and no connect() was seen to find none: nothing may want more of them, or it calls bind() first,
    /// whose failure leaves no trace.
    fn taken(&self) -> Option<Finding> {
        let Ports { open, .. } = self.ports;
        let usable = self.range.usable();
        let is_full = |ports: u32| usable > 0 && ratio(ports.into(), usable.into()) >= FULL;
        if !is_full(self.ports.used()) {
            return None;
        }
        // What a load has left in TIME_WAIT is no failure, unless somebody goes on.
        let is_open = ratio(open.into(), self.ports.used().into()) >= FILLING;
        let goes_on = !reuses(self.netns, &self.destination) && self.connects().next().is_some();
        if !is_open && !goes_on {
            return None;
        }
        let service = endpoint(self.destination.remote, self.destination.port);
        let found = finding(
            RULE.id,
            Severity::Warning,
            Confidence::Low,
            format!(
                "{} of {usable} local ports for {service}{} are held: one more bind() before connect() fails with EADDRINUSE, \
                 which the kernel shows to nobody else, and connect() alone with EADDRNOTAVAIL, which was not seen",
                self.ports.used(),
                self.netns.place(),
            ),
        );
        Some(self.fixes(self.occupancy(found), None))
    }

    fn occupancy(&self, found: Finding) -> Finding {
        let Range { first, last, .. } = self.range;
        found
            .counted(
                format!(
                    "{} of {} ports ({first}-{last}) from {} are held: {} in TIME_WAIT, {} open",
                    self.ports.used(),
                    self.range.usable(),
                    self.destination.local,
                    self.ports.time_wait,
                    self.ports.open
                ),
                self.ports.used().into(),
                "ports",
                "sock_diag",
            )
            .hits([Window::affected_destination(
                self.netns,
                self.destination.remote,
                self.destination.port,
            )])
    }

    /// Processes whose connects failed, the busiest first.
    fn callers(&self) -> Vec<Affected> {
        let mut callers = BTreeMap::<_, u32>::new();
        for event in self.failed_events() {
            *callers
                .entry((event.small::<u32>("pid"), event.text("comm")))
                .or_default() += 1;
        }
        let mut callers: Vec<_> = callers.into_iter().collect();
        callers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let named = callers.into_iter().filter(|((pid, _), _)| pid.is_some());
        named
            .take(3)
            .map(|((pid, comm), _)| process(pid, comm, Some(self.netns.inode)))
            .collect()
    }

    /// What helps; `growth` are the open connections that come on top each second, where those are what fills the range.
    fn fixes(&self, found: Finding, growth: Option<f64>) -> Finding {
        // Whichever holds more ports comes first; what would free none is not said.
        let Ports {
            time_wait, open, ..
        } = self.ports;
        let found = if open >= time_wait {
            self.keep_open(self.close(found))
        } else {
            self.close(self.keep_open(found))
        };
        let found = self.reuse(found);
        let found = self.widen(found, growth);
        found.application(
            format!(
                "give the service more addresses or ports, or connect from more local addresses (bind them with \
                 IP_BIND_ADDRESS_NO_PORT): each pair of addresses has {} ports more",
                self.range.usable()
            ),
            &[],
            "none",
        )
    }

    /// Connects per second that want a port of it, in numbers and in words. Who searches in vain is slow: there as many want
    /// one as did before.
    fn demand(&self) -> (f64, String) {
        let (tried, whose) = connects(self.window, self.netns, self.service());
        let rate = self.window.rate(tried);
        let most = self.ports.ages.most_per_second();
        if self.failures(&[]) > 0 && most > rate {
            let known = "as many went into TIME_WAIT when most did";
            return (most, format!("{most:.1} connects/s ({known})"));
        }
        (rate, format!("{rate:.1} connects/s{whose}"))
    }

    /// For ports in TIME_WAIT: not to close what is needed again.
    fn keep_open(&self, found: Finding) -> Finding {
        if !self.is_share(self.ports.time_wait) {
            return found;
        }
        let (rate, connects) = self.demand();
        let (needed, usable) = (rate * TIME_WAIT_S, self.range.usable());
        let time_wait = self.ports.time_wait;
        let why = if needed > f64::from(usable) {
            format!("{connects} x 60 s in TIME_WAIT = {needed:.0} ports, where {usable} exist")
        } else {
            format!("{time_wait} of {usable} ports are in TIME_WAIT, for 60 s each")
        };
        found.application(
            format!(
                "keep connections to {} open (keep-alive, a pool): {why}; this frees up to {time_wait}",
                endpoint(self.destination.remote, self.destination.port),
            ),
            &[("keepalive", "on".to_owned())],
            "the other side must allow as many open connections",
        )
    }

    /// For ports of open connections: to have fewer of them.
    fn close(&self, found: Finding) -> Finding {
        if !self.is_share(self.ports.open) {
            return found;
        }
        let Destination { remote, port, .. } = self.destination;
        let enter = self.netns.enter();
        found.application(
            format!(
                "have fewer connections open at once: {} to {} are; limit the pool, or find what does not close them \
                 ({enter}ss -tnp {} dport = :{port})",
                self.ports.open,
                endpoint(remote, port),
                ss_dst(remote)
            ),
            &[],
            "with a smaller pool requests wait for a connection",
        )
    }

    /// Whether so many ports are worth a fix: a tenth of what is held, at least.
    fn is_share(&self, ports: u32) -> bool {
        ports > 0 && u64::from(ports) * 10 >= u64::from(self.ports.used())
    }

    fn reuse(&self, found: Finding) -> Finding {
        let reuse = self.netns.sysctl("net.ipv4.tcp_tw_reuse").unwrap_or(0);
        if reuses(self.netns, &self.destination) || !self.is_share(self.ports.time_wait) {
            return found;
        }
        let mut set = vec![("net.ipv4.tcp_tw_reuse", "1".to_owned())];
        if self.netns.sysctl("net.ipv4.tcp_timestamps") == Some(0) {
            set.push(("net.ipv4.tcp_timestamps", "1".to_owned()));
        }
        let found = found.sysctl(
            format!(
                "let connect() take ports in TIME_WAIT again: tcp_tw_reuse from {reuse} to 1 frees up to {} ports that \
                 wait for more than 1 s; {PERSIST}",
                self.ports.time_wait
            ),
            &set,
            "a middlebox that strips timestamps may mix up old and new connections",
        );
        // Where most ports are of open connections, this alone does not help.
        if self.ports.time_wait >= self.ports.open {
            found.at_once()
        } else {
            found
        }
    }
}

#[cfg(test)]
mod tests;
