//! Connects that find no route, where those that fail at once cannot be seen one by one: the namespace counts them, with all
//! else that it was to send and has no route for.

use std::net::IpAddr;

use super::{
    super::super::{
        finding::{finding, somewhere},
        sizing::counted,
        window::{Gap, Netns, Window, ratio},
    },
    DOWN, RULE,
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// Fewer, or fewer each second, are of a multicast, a clock, or the health check of a host that is not there.
const LEAST: u64 = 10;
const SELDOM: f64 = 1.5;

/// A namespace that has no route for much of what it was to send.
pub(super) struct Unrouted<'a> {
    pub(super) netns: &'a Netns,
    /// Connects and packets without a route over IPv4 and IPv6, as far as it has addresses of these.
    v4: Option<u64>,
    v6: Option<u64>,
    /// Connects that found one.
    opened: u64,
}

impl<'a> Unrouted<'a> {
    /// All of them.
    pub(super) fn all(window: &'a Window) -> Vec<Self> {
        if window.watched("connects").is_ok() {
            return Vec::new();
        }
        let all = window.namespaces.iter();
        let found = all.filter_map(|netns| Self::of(netns).ok());
        found.filter(|found| found.is_much(window)).collect()
    }

    fn of(netns: &'a Netns) -> Result<Self, Gap> {
        // Who has no address but those of its links expects no route.
        let counts = |is_family: fn(&IpAddr) -> bool, name| {
            let mut addresses = netns.after.addresses.iter();
            let has_any = addresses.any(is_family);
            has_any.then(|| netns.grown_if_any(name)).transpose()
        };
        Ok(Self {
            netns,
            v4: counts(is_v4, "Ip.OutNoRoutes")?,
            v6: counts(is_v6, "Ip6OutNoRoutes")?,
            opened: netns.grown("Tcp.ActiveOpens")?,
        })
    }

    fn all_packets(&self) -> u64 {
        self.v4.unwrap_or(0) + self.v6.unwrap_or(0)
    }

    /// Whether that is much beside the connects that did find one.
    fn is_much(&self, window: &Window) -> bool {
        let all = self.all_packets();
        all >= LEAST && window.rate(all) >= SELDOM && all >= self.opened
    }

    /// Whether next to nothing finds a route. Who has none over IPv6 falls back on IPv4.
    fn is_cut_off(&self, window: &Window) -> bool {
        let packets = self.v4.or(self.v6).unwrap_or(0);
        packets >= LEAST
            && window.rate(packets) >= SELDOM
            && ratio(self.opened, self.opened + packets) <= DOWN
    }

    /// A finding of its own.
    pub(super) fn describe(&self, window: &Window) -> Finding {
        let Self { netns, opened, .. } = self;
        let place = netns.place();
        let severity = if self.is_cut_off(window) {
            Severity::Warning
        } else {
            Severity::Info
        };
        let summary = format!(
            "{} or packets found no route{place} in {:.0} s, while {} did: they fail with ENETUNREACH (network is unreachable); \
             whose they are, and where to, cannot be seen on this kernel",
            counted(self.all_packets(), "connect"),
            window.seconds,
            counted(*opened, "connect"),
        );
        let mut found = finding(RULE.id, severity, Confidence::Low, summary);
        for (family, count, name) in [
            ("IPv4", self.v4, "Ip.OutNoRoutes"),
            ("IPv6", self.v6, "Ip6OutNoRoutes"),
        ] {
            if let Some(count) = count.filter(|count| *count > 0) {
                let text = format!("{count} without a route over {family}{place}");
                found = found.counted(text, count, "packets", name);
                found = found.since(window, netns, name);
            }
        }
        let enter = netns.enter();
        found
            .counted(
                format!("{} sent SYNs", counted(*opened, "connect")),
                *opened,
                "connects",
                "Tcp.ActiveOpens",
            )
            .hits([somewhere(netns)])
            .command(
                format!(
                    "see whether a route is missing, as a rule the default route: `{enter}ip route` and `{enter}ip -6 route` show \
                     those there are, the log of who fails has the address; one made by hand is gone after a reboot"
                ),
                "none",
            )
    }
}

/// Whether it is an IPv4 address that routes lead to.
fn is_v4(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_link_local())
}

/// Whether it is an IPv6 address that routes lead to.
fn is_v6(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unicast_link_local())
}
