//! A firewall rule of this machine drops packets of connections that somebody wants.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use super::super::{
    Explanation, Rule, Verdict,
    events::Event,
    finding::{finding, somewhere},
    in_each,
    window::{Gap, Netns, Window, endpoint, ratio},
};
use crate::report::{
    Value,
    diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "firewall-drops",
    title: "a local firewall rule drops wanted packets",
    check,
    explanation: Explanation {
        symptom: "SYNs vanish on this machine; connections to one port or peer time out, others work.",
        cause: "A rule of nftables or iptables says drop: nf_hook_slow() frees the packet with reason NETFILTER_DROP. \
                A full conntrack table drops at the same place, for another reason.",
        recognised: "Packets were dropped by netfilter, and not for want of a conntrack entry: the place of the drop says so \
                     (nft_do_chain, from 6.7 on), or there were more than allocations that failed (__nf_conntrack_alloc; \
                     without kprobes, than conntrack counts as `drop`). It is critical \
                     when they were of a connection that a process here opens or listens for; drops of packets to ports \
                     that nobody listens at are the firewall doing its work, and only noted.",
        fixes: &[
            (
                "find the rule: nft list ruleset (its counters), or nft monitor trace with meta nftrace set 1",
                "tracing is verbose on a busy machine",
            ),
            ("allow the flow in front of that rule", "it is open then"),
        ],
    },
};

/// What rules drop must be so much of what is not surely theirs: counts of two programs that are read
/// one after the other differ by what happens in between.
const BEYOND: f64 = 0.1;
/// Functions that only rules lead to.
const OF_RULES: [&str; 3] = ["nft_do_chain", "ipt_do_table", "ip6t_do_table"];

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        window.watched_required("drops")?;
        let drops = Drops::of(window, netns)?;
        if drops.by_rules() == 0 {
            return Ok(Vec::new());
        }
        Ok(vec![describe(window, netns, &drops)?])
    })
}

/// Packets of TCP that netfilter dropped.
#[derive(Clone, Copy, Debug, Default)]
struct Drops {
    /// Where the place says that a rule did.
    surely: u64,
    /// Where a hook said so: of a rule, or of conntrack.
    either: u64,
    /// Those that conntrack had no entry for.
    conntrack: u64,
}

impl Drops {
    fn of(window: &Window, netns: &Netns) -> Result<Self, Gap> {
        let inode = netns.inode.to_string();
        let group = [("netns", inode.as_str())];
        let mut drops = Self::default();
        let groups = window.events.groups("drops", &group);
        for total in groups.filter(|total| is_netfilter(|name| value(&total.group, name))) {
            if is_of_rules(value(&total.group, "location")) {
                drops.surely += total.events;
            } else {
                drops.either += total.events;
            }
        }
        if drops.either > 0 {
            // Both programs count the same packets; the counter has those of other protocols, too.
            drops.conntrack = if window.watched_required("conntrack").is_ok() {
                let tcp = [("netns", inode.as_str()), ("protocol", "tcp")];
                window.events.count("conntrack", &tcp)
            } else {
                netns.grown_if_any("nf_conntrack.drop")?
            };
        }
        Ok(drops)
    }

    /// Those that no full table explains.
    fn by_rules(self) -> u64 {
        let rest = self.either.saturating_sub(self.conntrack);
        if self.conntrack > 0 && ratio(rest, self.either) < BEYOND {
            return self.surely;
        }
        self.surely + rest
    }
}

fn is_of_rules(location: &Value) -> bool {
    matches!(location, Value::Text(function) if OF_RULES.iter().any(|name| function.starts_with(name)))
}

fn value<'a>(group: &'a [(&'static str, Value)], name: &str) -> &'a Value {
    let found = group.iter().find(|(found, _)| *found == name);
    found.map_or(&Value::Unknown, |(_, value)| value)
}

/// Whether netfilter dropped it. Kernels without drop reasons name the function.
fn is_netfilter<'a>(value: impl Fn(&str) -> &'a Value) -> bool {
    match (value("reason"), value("location")) {
        (Value::Text(reason), _) => **reason == *"NETFILTER_DROP",
        (Value::Word(reason), _) => *reason == "NETFILTER_DROP",
        (Value::Unknown, location @ Value::Text(function)) => {
            function.starts_with("nf_hook_slow") || is_of_rules(location)
        }
        _ => false,
    }
}

/// Packets to or from one service.
#[derive(Default)]
struct Service {
    packets: u32,
    process: Option<String>,
    is_wanted: bool,
    is_incoming: bool,
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(window: &Window, netns: &Netns, drops: &Drops) -> Result<Finding, Gap> {
    let dropped = drops.by_rules();
    let sockets = netns.after.sockets.as_ref().ok_or_else(|| {
        Gap("packets were dropped by a firewall, but sockets cannot be listed".to_owned())
    })?;
    let listening: HashSet<u16> = sockets
        .listeners
        .iter()
        .map(|listener| listener.port)
        .collect();
    let mut services = BTreeMap::<(IpAddr, u16), Service>::new();
    for event in window.events.within("drops", netns.inode) {
        if is_netfilter(|name| event.value(name)) {
            add(&mut services, event, &listening);
        }
    }
    if services.is_empty() {
        services = by_port(window, netns, &listening)?;
    }
    let mut services: Vec<_> = services.into_iter().collect();
    services.sort_by_key(|(_, service)| std::cmp::Reverse((service.is_wanted, service.packets)));
    let worst = services.first();
    let (severity, what) = match worst {
        Some(((address, port), service)) if service.is_wanted => {
            let direction = if service.is_incoming {
                "to the listener"
            } else {
                "of connections to"
            };
            let whose = service
                .process
                .as_ref()
                .map_or(String::new(), |comm| format!(" ({comm})"));
            (
                Severity::Critical,
                format!("{direction} {}{whose}", endpoint(*address, *port)),
            )
        }
        _ => (
            Severity::Info,
            "to ports that nobody listens at: the firewall at its work".to_owned(),
        ),
    };
    let hits = services
        .iter()
        .filter(|(_, service)| service.is_wanted)
        .take(4)
        .map(|((address, port), service)| {
            let mut affected = Window::affected_destination(netns, *address, *port);
            affected.comm.clone_from(&service.process);
            if service.is_incoming {
                affected.kind = "listener";
            }
            affected
        });
    let found = finding(
        RULE.id,
        severity,
        Confidence::High,
        format!(
            "a firewall rule{} dropped {dropped} packets in {:.0} s, {what}",
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        if drops.conntrack > 0 {
            format!(
                "{dropped} packets dropped by netfilter, beside {} for want of a conntrack entry",
                drops.conntrack
            )
        } else {
            format!("{dropped} packets dropped by netfilter, none for want of a conntrack entry")
        },
        dropped,
        "packets",
        if drops.surely > 0 {
            "kfree_skb NETFILTER_DROP in nft_do_chain"
        } else {
            "kfree_skb NETFILTER_DROP"
        },
    )
    .hits(hits)
    .hits([somewhere(netns)])
    .command(
        "find the rule and let the flow pass in front of it: nft list ruleset shows the counters of rules that have one; \
         nft monitor trace follows packets",
        "tracing is verbose on a busy machine",
    );
    Ok(found)
}

/// The listeners that packets were for, by the ports of the totals, where none was seen as it happened.
fn by_port(
    window: &Window,
    netns: &Netns,
    listening: &HashSet<u16>,
) -> Result<BTreeMap<(IpAddr, u16), Service>, Gap> {
    let inode = netns.inode.to_string();
    let group = [("netns", inode.as_str())];
    let groups = window.events.groups("drops", &group);
    let ports = groups
        .filter(|total| is_netfilter(|name| value(&total.group, name)))
        .filter_map(|total| match value(&total.group, "dport") {
            Value::Unsigned(port) => Some((u16::try_from(*port).ok()?, total.events)),
            _ => None,
        });
    let mut services = BTreeMap::new();
    for (port, events) in ports.filter(|(port, _)| listening.contains(port)) {
        let anywhere = IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED);
        let service: &mut Service = services.entry((anywhere, port)).or_default();
        service.packets = service
            .packets
            .saturating_add(u32::try_from(events).unwrap_or(u32::MAX));
        service.is_wanted = true;
        service.is_incoming = true;
    }
    if services.is_empty() {
        return Err(Gap(
            "packets were dropped by netfilter, but none was seen closely enough to say whose"
                .to_owned(),
        ));
    }
    Ok(services)
}

fn add(services: &mut BTreeMap<(IpAddr, u16), Service>, event: &Event, listening: &HashSet<u16>) {
    let ends = event
        .ip("saddr")
        .zip(event.small::<u16>("sport"))
        .zip(event.ip("daddr").zip(event.small::<u16>("dport")));
    let Some((source, destination)) = ends else {
        return;
    };
    let has_socket = event.text("state").is_some() || event.number("pid").is_some();
    let flags = match event.value("flags") {
        Value::TcpFlags(flags) => *flags,
        _ => 0,
    };
    let is_answer = flags & 0x12 == 0x12 || listening.contains(&source.1);
    let key = if is_answer { source } else { destination };
    let service = services.entry(key).or_default();
    service.packets += 1;
    service.is_incoming |= listening.contains(&key.1);
    service.is_wanted |= has_socket || listening.contains(&key.1) || flags & 0x12 == 0x12;
    if service.process.is_none() {
        service.process = event.text("comm");
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{Verdict, fixtures::quiet, window::Window},
        report::{Value, diagnosis::Severity},
    };

    fn dropping(window: &mut Window, port: u64, packets: u64) {
        dropping_in(window, port, packets, "nf_hook_slow+0xab");
    }

    fn dropping_in(window: &mut Window, port: u64, packets: u64, location: &str) {
        let reason = ("reason", Value::Word("NETFILTER_DROP"));
        let location = ("location", Value::Text(location.into()));
        window.total("drops", packets, &[reason.clone(), location.clone()]);
        let packet = [
            reason,
            location,
            ("saddr", Value::Ip([10, 0, 0, 9].into())),
            ("sport", Value::Unsigned(40_000)),
            ("daddr", Value::Ip([10, 0, 0, 1].into())),
            ("dport", Value::Unsigned(port)),
            ("flags", Value::TcpFlags(2)),
        ];
        window.event("drops", 30, &packet);
    }

    #[test]
    fn syns_to_a_listener_that_a_rule_drops_are_critical_and_scans_are_not() {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        dropping(&mut window, 80, 30);
        let findings = window.findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("firewall-drops", Severity::Critical)
        );
        assert_eq!(findings[0].affected[0].port, Some(80));
        let mut window = quiet();
        dropping(&mut window, 23, 30);
        assert_eq!(window.findings()[0].severity, Severity::Info);
    }

    fn full(window: &mut Window, refused: u64) {
        window.set("net.netfilter.nf_conntrack_max", "200");
        window.set("net.netfilter.nf_conntrack_count", "200");
        window.grow(&[("nf_conntrack.drop", refused.cast_signed())]);
    }

    #[test]
    fn drops_of_a_full_conntrack_table_are_not_those_of_a_rule() {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        // Programs are read one after the other: one packet more is nobody's rule.
        dropping(&mut window, 80, 301);
        full(&mut window, 300);
        window.total("conntrack", 300, &[("protocol", Value::Word("tcp"))]);
        assert_eq!(window.verdict("firewall-drops"), Verdict::Ok);
        assert_eq!(window.ids(), ["conntrack-table-full"]);
        // Without function probes the counter tells.
        window
            .events
            .totals
            .retain(|total| total.kind != "conntrack");
        window.blind("conntrack");
        assert_eq!(window.verdict("firewall-drops"), Verdict::Ok);
        // What is lost of other protocols is no excuse for a rule.
        full(&mut window, 5000);
        dropping_in(&mut window, 80, 20, "nft_do_chain+0x1c [nf_tables]");
        let Verdict::Found(found) = window.verdict("firewall-drops") else {
            panic!("the place says that a rule did");
        };
        assert!(found[0].summary.contains("dropped 20 packets"), "{found:?}");
    }

    #[test]
    fn a_rule_beside_a_full_table_is_found_by_what_the_table_does_not_explain() {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        dropping(&mut window, 80, 400);
        full(&mut window, 300);
        window.total("conntrack", 300, &[("protocol", Value::Word("tcp"))]);
        assert_eq!(window.ids(), ["conntrack-table-full", "firewall-drops"]);
    }

    #[test]
    fn where_every_event_was_lost_the_totals_tell_the_listener_or_nobody_is_named() {
        let lost = |port| {
            let mut window = quiet();
            window.listen(80, 128, &[0; 10]);
            let reason = ("reason", Value::Word("NETFILTER_DROP"));
            window.total("drops", 30, &[reason, ("dport", Value::Unsigned(port))]);
            window
        };
        let findings = lost(80).findings();
        assert_eq!(findings[0].severity, Severity::Critical);
        assert_eq!(findings[0].affected[0].port, Some(80));
        let verdict = lost(23).verdict("firewall-drops");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    }

    #[test]
    fn a_counter_that_went_backwards_is_no_verdict_on_rules() {
        let mut window = quiet();
        window.blind("conntrack");
        dropping(&mut window, 80, 30);
        window.grow(&[("nf_conntrack.drop", -5)]);
        let verdict = window.verdict("firewall-drops");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    }

    #[test]
    fn other_drops_are_not_the_firewalls() {
        let mut window = quiet();
        window.total("drops", 30, &[("reason", Value::Word("NO_SOCKET"))]);
        assert!(window.ids().is_empty());
    }
}
