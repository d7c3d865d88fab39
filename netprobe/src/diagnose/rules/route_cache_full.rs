//! The cache of IPv6 destinations is full, on kernels that still limit it.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    sizing::{PERSIST, SPARED, roomy},
    window::{Window, ratio},
};
use crate::report::diagnosis::{Confidence, Severity};

pub(super) static RULE: Rule = Rule {
    id: "route-cache-full",
    title: "the route cache is full",
    check,
    explanation: Explanation {
        symptom: "IPv6 connections fail with ENETUNREACH or hang, though the route is there; dmesg may say \"dst cache \
                  overflow\".",
        cause: "Each IPv6 destination with a path MTU or redirect of its own takes a dst entry. Until 6.2, dst_alloc() \
                fails when ip6_dst_gc() cannot bring them below net.ipv6.route.max_size (4096 by default); some old \
                kernels also leak them. Linux 6.3 removed the limit, long-term series took that change over, and IPv4 \
                has had none since 3.6.",
        recognised: "rt6_stats shows as many dst entries as max_size allows. It is critical only if the kernel also \
                     found no routes (Ip6OutNoRoutes, Ip6InNoRoutes). With far more entries than that the kernel does not \
                     keep to the limit, and nothing is wrong.",
        fixes: &[
            (
                "raise net.ipv6.route.max_size",
                "memory: about 0.5 KiB for each entry",
            ),
            ("update the kernel: 6.3 and later have no limit", "a reboot"),
        ],
    },
};

/// From here on the default of newer kernels, which means no limit.
const UNLIMITED: u64 = 1 << 30;
const NEARLY: f64 = 0.95;
/// A kernel that keeps to the limit exceeds it by no more than what its CPUs have not added up yet.
const NOT_KEPT: f64 = 1.5;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let Some(limit) = netns.sysctl("net.ipv6.route.max_size") else {
            return Ok(Vec::new());
        };
        let entries = netns.gauge("rt6_stats.entries").unwrap_or(0);
        if limit == 0 || limit >= UNLIMITED || !(NEARLY..NOT_KEPT).contains(&ratio(entries, limit))
        {
            return Ok(Vec::new());
        }
        let unreachable =
            netns.grown_if_any("Ip6OutNoRoutes")? + netns.grown_if_any("Ip6InNoRoutes")?;
        let (severity, confidence) = if unreachable > 0 && entries >= limit {
            (Severity::Critical, Confidence::Medium)
        } else {
            (Severity::Warning, Confidence::Low)
        };
        #[expect(clippy::cast_precision_loss, reason = "a size")]
        let wanted = roomy(entries as f64);
        Ok(vec![
            finding(
                RULE.id,
                severity,
                confidence,
                format!(
                    "the IPv6 route cache{} is full: {entries} of {limit} entries, {unreachable} packets found no route",
                    netns.place()
                ),
            )
            .counted(
                format!("{entries} dst entries of {limit}"),
                entries,
                "entries",
                "/proc/net/rt6_stats",
            )
            .counted(
                format!("{unreachable} packets without a route"),
                unreachable,
                "packets",
                "Ip6OutNoRoutes, Ip6InNoRoutes",
            )
            .hits([somewhere(netns)])
            .sysctl(
                format!("make room: {entries}, {SPARED}; {PERSIST}"),
                &[("net.ipv6.route.max_size", wanted.to_string())],
                "memory: about 0.5 KiB for each entry",
            ),
        ])
    })
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, report::diagnosis::Severity};

    #[test]
    fn a_full_cache_is_critical_only_if_routes_are_missing() {
        let mut window = quiet();
        window.set("net.ipv6.route.max_size", "4096");
        window.grow(&[("rt6_stats.entries", 4100)]);
        assert_eq!(window.findings()[0].severity, Severity::Warning);
        window.grow(&[("Ip6OutNoRoutes", 7)]);
        assert_eq!(window.findings()[0].severity, Severity::Critical);
        window.set("net.ipv6.route.max_size", "2147483647");
        assert!(window.ids().is_empty());
        // Nobody keeps to this one.
        window.set("net.ipv6.route.max_size", "1024");
        assert!(window.ids().is_empty());
    }
}
