//! A firewall rule of this machine drops packets of connections that somebody wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::super::{
    Explanation, Rule, Verdict,
    dropped::{self, Service},
    finding::{finding, somewhere},
    in_each,
    places::{self, End},
    window::{Gap, Netns, Window, endpoint, ratio},
};
use crate::report::{
    Value,
    diagnosis::{Affected, Confidence, Finding, Severity},
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
                     when they were of a connection that a process of this machine opens or listens for, in whichever of the \
                     watched namespaces it is (containers behind a FORWARD chain). Where other clients get through to the \
                     listener and those that are kept out have no connection with it, the firewall does its work, as it does \
                     at ports that nobody listens at: that is only noted, with the addresses.",
        fixes: &[
            (
                "find the rule: nft list ruleset (its counters; with ip netns exec NAME in front of it in another \
                 namespace), or nft monitor trace with meta nftrace set 1",
                "tracing is verbose on a busy machine",
            ),
            ("allow the flow in front of that rule", "it is open then"),
        ],
    },
};

/// What rules drop must be so much of what is not surely theirs: counts of two programs that are read
/// one after the other differ by what happens in between.
const BEYOND: f64 = 0.1;
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
        for total in groups.filter(|total| dropped::is_netfilter(|name| value(&total.group, name)))
        {
            if dropped::is_of_rules(value(&total.group, "location")) {
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

fn value<'a>(group: &'a [(&'static str, Value)], name: &str) -> &'a Value {
    let found = group.iter().find(|(found, _)| *found == name);
    found.map_or(&Value::Unknown, |(_, value)| value)
}

fn describe(window: &Window, netns: &Netns, drops: &Drops) -> Result<Finding, Gap> {
    let dropped = drops.by_rules();
    if netns.after.sockets.is_none() {
        return Err(Gap(
            "packets were dropped by a firewall, but sockets cannot be listed".to_owned(),
        ));
    }
    let mut services = dropped::services(window, netns);
    if services.is_empty() {
        services = by_port(window, netns)?;
    }
    let wanted = services.iter().filter(|(_, service)| service.wanted > 0);
    let hits: Vec<_> = wanted
        .take(4)
        .map(|(end, service)| hit(netns, *end, service))
        .collect();
    let found = match services.first() {
        Some((end, service)) if service.wanted > 0 => {
            let sum = |part: fn(&Service) -> u32| -> u64 {
                services
                    .iter()
                    .map(|(_, service)| u64::from(part(service)))
                    .sum()
            };
            let missed = sum(|service| service.wanted);
            // The events are a sample of what was counted.
            let missed = dropped * missed / (missed + sum(|service| service.others)).max(1);
            let rest = services
                .iter()
                .filter(|(_, service)| service.wanted > 0)
                .count()
                - 1;
            finding(
                RULE.id,
                Severity::Critical,
                Confidence::High,
                missing(window, netns, *end, service, (missed, rest)),
            )
        }
        _ => finding(
            RULE.id,
            Severity::Info,
            Confidence::High,
            format!(
                "a firewall rule{} dropped {dropped} packets in {:.0} s, {}",
                netns.place(),
                window.seconds,
                at_its_work(&services)
            ),
        ),
    };
    let hook = services.first().map_or("", |(_, service)| service.hook);
    Ok(found
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
            format!(
                "find the rule{} and let the flow pass in front of it: `{}` shows the counters of rules that have one; \
                 `{}` follows packets",
                if hook.is_empty() {
                    String::new()
                } else {
                    format!(" (a chain of hook {hook})")
                },
                places::command_in(netns, "nft list ruleset"),
                places::command_in(netns, "nft monitor trace"),
            ),
            "tracing is verbose on a busy machine",
        ))
}

/// The service that is hit, in the namespace of its listener if that is known.
fn hit(netns: &Netns, (address, port): End, service: &Service) -> Affected {
    let mut affected = Window::affected_destination(netns, address, port);
    affected.comm.clone_from(&service.process);
    if let Some(home) = service.home {
        affected.kind = "listener";
        affected.netns = Some(home);
    }
    affected
}

/// What a rule does to those who miss the packets.
fn missing(
    window: &Window,
    netns: &Netns,
    (address, port): End,
    service: &Service,
    (packets, rest): (u64, usize),
) -> String {
    let direction = if service.home.is_some() {
        "to the listener"
    } else {
        "of connections to"
    };
    let whose = service.process.as_ref();
    let whose = whose.map_or(String::new(), |comm| format!(" ({comm})"));
    let also = match rest {
        0 => String::new(),
        1 => " and to one more service".to_owned(),
        rest => format!(" and to {rest} more services"),
    };
    let verb = if service.is_rejected {
        "rejected"
    } else {
        "dropped"
    };
    let clients = if service.missing.is_empty() {
        String::new()
    } else {
        format!(" from {}", listed(&service.missing))
    };
    let through = match (service.home, service.through) {
        (Some(_), 0) if !service.missing.is_empty() => "; nobody gets through to it",
        _ => "",
    };
    format!(
        "a firewall rule{} {verb} {packets} packets in {:.0} s, {direction} {}{whose}{also}{clients}{through}",
        netns.place(),
        window.seconds,
        endpoint(address, port)
    )
}

/// Why what was dropped is not missed.
fn at_its_work(services: &[(End, Service)]) -> String {
    let listeners = services
        .iter()
        .filter(|(_, service)| service.home.is_some());
    let most = listeners.max_by_key(|(_, service)| service.others);
    let Some(((address, port), service)) = most else {
        let is_between = |hook: &str| services.iter().any(|(_, service)| service.hook == hook);
        return if is_between("forward") {
            "between other machines: nobody here misses them".to_owned()
        } else {
            "to ports that nobody listens at: the firewall at its work".to_owned()
        };
    };
    let service_name = endpoint(*address, *port);
    let whose = service.process.as_ref();
    let whose = whose.map_or(String::new(), |comm| format!(" ({comm})"));
    let strangers = listed(&service.strangers);
    if service.is_stray && !service.strangers.is_empty() {
        format!(
            "to {service_name}{whose} from {strangers}, whose other packets get through: of connections that have ended or \
             that conntrack has forgotten"
        )
    } else if service.through > 0 {
        format!(
            "to {service_name}{whose} from {strangers}, while {} get through to it: the firewall at its work, unless \
             they should",
            people(service.through)
        )
    } else {
        format!(
            "to {service_name}{whose} from {strangers}: too few to say that somebody misses them, though nobody was \
             seen to get through"
        )
    }
}

fn people(count: usize) -> String {
    match count {
        1 => "connections of 1 other address".to_owned(),
        count => format!("connections of {count} other addresses"),
    }
}

/// The first of some addresses.
fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    const MOST: usize = 3;
    let mut words: Vec<String> = addresses.iter().take(MOST).map(IpAddr::to_string).collect();
    if addresses.len() > MOST {
        words.push(format!("{} more", addresses.len() - MOST));
    }
    words.join(", ")
}

/// The listeners that packets were for, by the ports of the totals, where none was seen as it happened.
fn by_port(window: &Window, netns: &Netns) -> Result<Vec<(End, Service)>, Gap> {
    let inode = netns.inode.to_string();
    let group = [("netns", inode.as_str())];
    let groups = window.events.groups("drops", &group);
    let ports = groups
        .filter(|total| dropped::is_netfilter(|name| value(&total.group, name)))
        .filter_map(|total| match value(&total.group, "dport") {
            Value::Unsigned(port) => Some((u16::try_from(*port).ok()?, total.events)),
            _ => None,
        });
    let mut services = BTreeMap::<End, Service>::new();
    for (port, events) in ports {
        // Where others get through, the drops may be of strangers.
        let listener = places::at_port(netns, port).next();
        let Some(listener) = listener.filter(|_| places::clients(window, netns, port).is_empty())
        else {
            continue;
        };
        let service = services.entry((listener.address, port)).or_default();
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        service.wanted = service.wanted.saturating_add(events);
        service.home = Some(netns.inode);
        service.hook = "input or prerouting";
        service.process = window.holder(listener).map(|process| process.comm.clone());
    }
    services.retain(|_, service| service.wanted >= dropped::LEAST);
    if services.is_empty() {
        return Err(Gap(
            "packets were dropped by netfilter, but none was seen closely enough to say whose"
                .to_owned(),
        ));
    }
    Ok(services.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{
            Verdict,
            fixtures::quiet,
            window::{Netns, Window},
        },
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

    /// Packets that a rule drops, from and to these ends.
    fn syns(window: &mut Window, from: [u8; 4], to: ([u8; 4], u64), packets: usize) {
        let reason = ("reason", Value::Word("NETFILTER_DROP"));
        window.total("drops", packets as u64, std::slice::from_ref(&reason));
        let packet = [
            reason,
            ("saddr", Value::Ip(from.into())),
            ("sport", Value::Unsigned(40_000)),
            ("daddr", Value::Ip(to.0.into())),
            ("dport", Value::Unsigned(to.1)),
            ("flags", Value::TcpFlags(2)),
        ];
        window.event("drops", packets, &packet);
    }

    fn client_of(window: &mut Window, port: u16, client: [u8; 4]) {
        let clients = window.sockets().clients.entry(port).or_default();
        clients.sources.insert(client.into());
    }

    #[test]
    fn strangers_that_are_kept_out_while_others_get_through_are_named_and_no_incident() {
        const APP: [u8; 4] = [10, 0, 0, 7];
        const SCANNER: [u8; 4] = [10, 99, 9, 9];
        let mut window = quiet();
        window.listen(5432, 128, &[0; 10]);
        syns(&mut window, SCANNER, ([10, 0, 0, 1], 5432), 27);
        // As long as nobody gets through, it may be a client.
        assert_eq!(window.findings()[0].severity, Severity::Critical);
        client_of(&mut window, 5432, APP);
        let findings = window.findings();
        assert_eq!(findings[0].severity, Severity::Info);
        let summary = &findings[0].summary;
        assert!(
            summary.contains("10.99.9.9") && summary.contains("10.0.0.1:5432 (server)"),
            "{summary}"
        );
        // One that has connections is no stranger.
        syns(&mut window, APP, ([10, 0, 0, 1], 5432), 27);
        let findings = window.findings();
        assert_eq!(findings[0].severity, Severity::Critical);
        let summary = &findings[0].summary;
        assert!(
            summary.contains("27 packets") && summary.contains("from 10.0.0.7"),
            "{summary}"
        );
    }

    #[test]
    fn now_and_then_a_knock_from_the_internet_is_missed_by_nobody() {
        let knocked = |packets| {
            let mut window = quiet();
            window.listen(22, 128, &[0; 10]);
            syns(&mut window, [203, 0, 113, 5], ([10, 0, 0, 1], 22), packets);
            window.findings()[0].severity
        };
        assert_eq!(knocked(10), Severity::Info);
        assert_eq!(knocked(100), Severity::Critical);
    }

    #[test]
    fn what_a_router_drops_is_missed_by_the_ends_in_other_namespaces() {
        const ROUTER: u32 = 77;
        let mut window = quiet();
        let mut router = Netns {
            inode: ROUTER,
            name: Some("router".to_owned()),
            is_initial: false,
            ..window.netns().clone()
        };
        router.after.addresses = [[10, 0, 0, 254].into()].into();
        window.namespaces.push(router);
        syns(&mut window, [10, 0, 0, 1], ([10, 9, 9, 9], 443), 30);
        // It happened there.
        window.relocate(ROUTER);
        assert_eq!(window.findings()[0].severity, Severity::Info);
        assert!(
            window.findings()[0]
                .summary
                .contains("between other machines")
        );
        // The client is in another namespace.
        window.netns().after.addresses = [[10, 0, 0, 1].into()].into();
        let findings = window.findings();
        assert_eq!(findings[0].severity, Severity::Critical);
        assert_eq!(findings[0].affected[0].kind, "destination");
        let fix = &findings[0].fixes[0].text;
        assert!(
            fix.contains("ip netns exec router nft list ruleset") && fix.contains("hook forward"),
            "{fix}"
        );
        // Or the listener is.
        window.netns().after.addresses = [[10, 9, 9, 9].into()].into();
        window.listen(443, 128, &[0; 10]);
        window.sockets().listeners[0].address = [0, 0, 0, 0].into();
        let findings = window.findings();
        assert_eq!(
            (findings[0].severity, findings[0].affected[0].kind),
            (Severity::Critical, "listener")
        );
    }

    #[test]
    fn refused_clients_tell_that_a_rule_rejects() {
        let mut window = quiet();
        window.listen(6379, 128, &[0; 10]);
        syns(&mut window, [10, 0, 0, 9], ([10, 0, 0, 1], 6379), 30);
        assert!(window.findings()[0].summary.contains("dropped"));
        window.total("resets", 30, &[("cause", Value::Word("refused"))]);
        let refused = [
            ("direction", Value::Word("received")),
            ("cause", Value::Word("refused")),
            ("saddr", Value::Ip([10, 0, 0, 9].into())),
            ("sport", Value::Unsigned(40_000)),
            ("daddr", Value::Ip([10, 0, 0, 1].into())),
            ("dport", Value::Unsigned(6379)),
        ];
        window.event("resets", 30, &refused);
        let findings = window.findings();
        assert!(
            findings[0].summary.contains("rejected 30 packets"),
            "{}",
            findings[0].summary
        );
        let behind: Vec<_> = findings
            .iter()
            .map(|found| (found.id, found.behind))
            .collect();
        assert_eq!(
            behind,
            [("firewall-drops", None), ("resets", Some("firewall-drops"))]
        );
        assert!(
            findings[1].summary.contains("though server listens there"),
            "{}",
            findings[1].summary
        );
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
