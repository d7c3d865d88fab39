//! connect() finds no local port any more for one destination, or soon will not.

use std::collections::BTreeMap;

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, process},
    in_each,
    sizing::{PERSIST, seconds_left, spoken},
    window::{Gap, Netns, Window, endpoint, ratio},
};
use crate::{
    observe::{
        diag::{Destination, Ports},
        sysctls::reserved_ports,
    },
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
                     tables, fill the range. A refusal by the peer is ECONNREFUSED and no case of this.",
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

/// With fewer ports held than this share the error has another reason.
const NEARLY: f64 = 0.9;
/// From here on it is worth a warning, if it grows.
const FILLING: f64 = 0.7;
/// What fills later than this is not forecast.
const HORIZON_S: f64 = 600.0;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let inode = netns.inode.to_string();
        let group = [("errno", "EADDRNOTAVAIL"), ("netns", inode.as_str())];
        let failed = window.events.count("connects", &group);
        let range = Range::of(netns);
        let fullest = fullest(netns);
        let (Some(range), Some((destination, ports))) = (range, fullest) else {
            return if failed > 0 {
                Err(Gap(format!(
                    "{failed} connects failed with EADDRNOTAVAIL, but ports in use cannot be counted"
                )))
            } else {
                Ok(Vec::new())
            };
        };
        let held = ratio(ports.used().into(), range.usable().into());
        if failed > 0 && held < NEARLY {
            return Err(Gap(format!(
                "{failed} connects failed with EADDRNOTAVAIL, but no destination holds more than {} of {} ports: \
                 perhaps there is no usable local address",
                ports.used(),
                range.usable()
            )));
        }
        let place = Place {
            window,
            netns,
            range,
            destination,
            ports,
        };
        if failed > 0 {
            return Ok(vec![place.exhausted(failed)]);
        }
        if ports.used() >= range.usable() {
            // The probe must have seen the failures, if there were any.
            window.watched_required("connects")?;
        }
        Ok(place.filling(held).into_iter().collect())
    })
}

/// The ports that the kernel chooses from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    first: u32,
    last: u32,
    reserved: u32,
}

impl Range {
    pub(super) fn of(netns: &Netns) -> Option<Self> {
        let words = netns.sysctl_words("net.ipv4.ip_local_port_range");
        let [first, last] = <[u64; 2]>::try_from(words).ok()?;
        let [first, last] = [first, last].map(|port| u32::try_from(port).unwrap_or(0));
        let reserved = netns.after.sysctls.get("net.ipv4.ip_local_reserved_ports");
        Some(Self {
            first,
            last,
            reserved: reserved.map_or(0, |list| reserved_ports(list, first, last)),
        })
    }

    pub(super) const fn usable(&self) -> u32 {
        (self.last + 1)
            .saturating_sub(self.first)
            .saturating_sub(self.reserved)
    }
}

/// The destination that holds most ports, now or at the beginning of the window.
pub(super) fn fullest(netns: &Netns) -> Option<(Destination, Ports)> {
    let tables = [&netns.after, &netns.before].map(|snapshot| snapshot.sockets.as_ref());
    let mut most = None::<(Destination, Ports)>;
    for table in tables.into_iter().flatten() {
        for (destination, ports) in &table.ports {
            if most.is_none_or(|(_, found)| ports.used() > found.used()) {
                most = Some((*destination, *ports));
            }
        }
    }
    most
}

/// Whether connect() may take a port again that has been in TIME_WAIT for a second.
pub(super) fn reuses(netns: &Netns, destination: &Destination) -> bool {
    let is_local = destination.remote.is_loopback();
    let reuse = netns.sysctl("net.ipv4.tcp_tw_reuse").unwrap_or(0);
    let has_timestamps = netns.sysctl("net.ipv4.tcp_timestamps") != Some(0);
    has_timestamps && (reuse == 1 || (reuse == 2 && is_local))
}

/// How many connects there were to a port, and whose they are if it is known of the namespace only.
pub(super) fn connects(window: &Window, netns: &Netns, port: u16) -> (u64, &'static str) {
    let (port, inode) = (port.to_string(), netns.inode.to_string());
    let group = [("dport", port.as_str()), ("netns", inode.as_str())];
    let seen = window.events.count("connects", &group);
    if seen > 0 && window.watched_required("connects").is_ok() {
        return (seen, "");
    }
    // A search that fails opens nothing.
    let failed = [("errno", "EADDRNOTAVAIL"), ("netns", inode.as_str())];
    let failed = window.events.count("connects", &failed);
    let opened = netns.grown("Tcp.ActiveOpens").unwrap_or(0);
    (opened + failed, " of the whole namespace")
}

struct Place<'a> {
    window: &'a Window,
    netns: &'a Netns,
    range: Range,
    destination: Destination,
    ports: Ports,
}

impl Place<'_> {
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
                "{comm}{} cannot connect to {service}: {failed} connects failed with EADDRNOTAVAIL, as {} of {} local \
                 ports are in use",
                self.netns.place(),
                self.ports.used(),
                self.range.usable()
            ),
        )
        .counted(
            format!("{failed} connects failed with EADDRNOTAVAIL in {:.0} s", self.window.seconds),
            failed,
            "connects",
            "connects",
        );
        let found = self.occupancy(found).hits(who);
        self.fixes(found)
    }

    fn filling(&self, held: f64) -> Option<Finding> {
        // Ports that may be taken again run out only when they are in use.
        let is_reused = reuses(self.netns, &self.destination)
            && ratio(self.ports.open.into(), self.range.usable().into()) < FILLING;
        if held < FILLING || is_reused {
            return None;
        }
        let before = self.netns.before.sockets.as_ref()?;
        let before = before.ports.get(&self.destination).map_or(0, Ports::used);
        let growth = self
            .window
            .rate(self.ports.used().saturating_sub(before).into());
        let left = seconds_left(self.ports.used().into(), self.range.usable().into(), growth)?;
        if left > HORIZON_S {
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
        Some(self.fixes(self.occupancy(found)))
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
        for event in self.window.events.within("connects", self.netns.inode) {
            if event.is("errno", "EADDRNOTAVAIL") {
                *callers
                    .entry((event.small::<u32>("pid"), event.text("comm")))
                    .or_default() += 1;
            }
        }
        let mut callers: Vec<_> = callers.into_iter().collect();
        callers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let named = callers.into_iter().filter(|((pid, _), _)| pid.is_some());
        named
            .take(3)
            .map(|((pid, comm), _)| process(pid, comm, Some(self.netns.inode)))
            .collect()
    }

    fn fixes(&self, found: Finding) -> Finding {
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
        let widest = 65_535_u32 + 1 - 1024 - self.range.reserved;
        let found = if self.range.usable() * 10 < widest * 9 {
            found.sysctl(
                format!(
                    "widen the port range to 1024-65535: {} more ports; {PERSIST}",
                    widest.saturating_sub(self.range.usable())
                ),
                &[("net.ipv4.ip_local_port_range", "1024 65535".to_owned())],
                "put ports that services listen at into net.ipv4.ip_local_reserved_ports first",
            )
        } else {
            found
        };
        found.application(
            format!(
                "give the service more addresses or ports, or connect from more local addresses: each pair has {} ports",
                self.range.usable()
            ),
            &[],
            "none",
        )
    }

    /// For ports in TIME_WAIT: not to close what is needed again.
    fn keep_open(&self, found: Finding) -> Finding {
        if !self.is_share(self.ports.time_wait) {
            return found;
        }
        let (connects, whose) = connects(self.window, self.netns, self.destination.port);
        let rate = self.window.rate(connects);
        let needed = rate * 60.0;
        found.application(
            format!(
                "keep connections to {} open (keep-alive, a pool): {rate:.1} connects/s{whose} x 60 s in TIME_WAIT = \
                 {needed:.0} ports, where {} exist; this frees up to {}",
                endpoint(self.destination.remote, self.destination.port),
                self.range.usable(),
                self.ports.time_wait
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
                 ({enter}ss -tnp dst {remote} dport = :{port})",
                self.ports.open,
                endpoint(remote, port)
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
        found.sysctl(
            format!(
                "let connect() take ports in TIME_WAIT again: tcp_tw_reuse from {reuse} to 1 frees up to {} ports that \
                 wait for more than 1 s; {PERSIST}",
                self.ports.time_wait
            ),
            &set,
            "a middlebox that strips timestamps may mix up old and new connections",
        )
    }
}

#[cfg(test)]
mod tests;
