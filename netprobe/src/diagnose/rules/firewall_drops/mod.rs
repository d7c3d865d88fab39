//! A firewall rule of this machine drops packets of connections that somebody wants.

mod past;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use past::Past;

use super::super::{
    Explanation, Rule, Verdict,
    clashes::Clashes,
    dropped::{self, Service},
    events::{port_of, value_of},
    finding::{finding, somewhere},
    in_each,
    places::{self, End},
    window::{Gap, Netns, Window, endpoint, ratio},
};
use crate::report::diagnosis::{Affected, Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "firewall-drops",
    title: "a local firewall rule drops wanted packets",
    check,
    explanation: Explanation {
        symptom: "SYNs vanish on this machine; connections to one port or peer time out, others work.",
        cause: "A rule of nftables or iptables says drop: nf_hook_slow() frees the packet with reason NETFILTER_DROP. \
                A full conntrack table drops at the same place, for another reason, and so does address translation without a \
                free port.",
        recognised: "Packets were dropped by netfilter, and not for want of a conntrack entry: the place of the drop says so \
                     (nft_do_chain, from 6.7 on), or there were more than allocations that failed (__nf_conntrack_alloc; \
                     without kprobes, than conntrack counts as `drop`). It is critical \
                     when they were of a connection that a process of this machine opens or listens for, in whichever of the \
                     watched namespaces it is (containers behind a FORWARD chain). On their way through, packets of \
                     open connections are missed if their sender sends them again, twice or more. Where other clients get through to the \
                     listener and those that are kept out have no connection with it, the firewall does its work, unless a \
                     process in a watched namespace is seen to send its SYNs again or to be refused; so it does at ports \
                     that nobody listens at, to strangers and to who tries ten of them or more: that is only noted. One connect of this \
                     machine whose SYN was dropped twice is a warning, if nobody gets through. Where a \
                     quarter of the window, and 2 s, went by without such a packet and those clients get through \
                     since, the rule is gone, and it is a warning.",
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
        let found = describe(window, netns, &drops)?;
        if found.severity == Severity::Info {
            check_seen(window, netns)?;
        }
        Ok(vec![found])
    })
}

/// Whether packets to each service of this machine were looked at, or too few to matter were dropped.
fn check_seen(window: &Window, netns: &Netns) -> Result<(), Gap> {
    let mut ports = BTreeMap::<u16, u64>::new();
    let inode = netns.inode.to_string();
    let group = [("netns", inode.as_str())];
    for total in window.events.groups("drops", &group) {
        let port = port_of(total, "dport");
        let port = port.filter(|_| dropped::is_netfilter(|name| value_of(total, name)));
        if let Some(port) = port {
            *ports.entry(port).or_default() += total.events;
        }
    }
    let events = window.events.within("drops", netns.inode);
    let seen = events.filter(|event| dropped::is_netfilter(|name| event.value(name)));
    let seen: BTreeSet<Option<u16>> = seen.map(|event| event.small("dport")).collect();
    let is_served = |port: u16| {
        let mut namespaces = window.namespaces.iter();
        namespaces.any(|home| places::at_port(home, port).next().is_some())
    };
    let unseen = ports.into_iter().find(|(port, count)| {
        *count >= u64::from(dropped::LEAST) && !seen.contains(&Some(*port)) && is_served(*port)
    });
    unseen.map_or(Ok(()), |(port, count)| {
        Err(Gap(format!(
            "{count} packets to port {port} were dropped by netfilter, and none of them was looked at, as there was too much \
             else"
        )))
    })
}

/// Packets of TCP that netfilter dropped.
#[derive(Clone, Copy, Debug, Default)]
struct Drops {
    /// Where the place says that a rule did.
    surely: u64,
    /// Where a hook said so: of a rule, or of conntrack.
    either: u64,
    /// Those that conntrack had no entry or no port for.
    conntrack: u64,
}

impl Drops {
    fn of(window: &Window, netns: &Netns) -> Result<Self, Gap> {
        let inode = netns.inode.to_string();
        let group = [("netns", inode.as_str())];
        let mut drops = Self::default();
        let groups = window.events.groups("drops", &group);
        for total in groups.filter(|total| dropped::is_netfilter(|name| value_of(total, name))) {
            if dropped::is_of_rules(value_of(total, "location")) {
                drops.surely += total.events;
            } else {
                drops.either += total.events;
            }
        }
        if drops.either > 0 {
            // Both programs count the same packets; the counter has those of other protocols, too.
            drops.conntrack = if window.watched_required("conntrack").is_ok() {
                let tcp = [("netns", inode.as_str()), ("protocol", "tcp")];
                let clashes = Clashes::of(window, netns)?.map_or(0, |clashes| clashes.syns);
                window.events.count("conntrack", &tcp) + clashes
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

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
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
    let mut is_gone = false;
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
            let past = Past::of(window, dropped, &services);
            is_gone = past.is_some_and(|past| past.is_over);
            let (severity, confidence) = match service.is_one_connect {
                true => (Severity::Warning, Confidence::Medium),
                false if is_gone => (Severity::Warning, Confidence::High),
                false => (Severity::Critical, Confidence::High),
            };
            let summary = missing(window, netns, (*end, service), (missed, rest), past);
            let found = finding(RULE.id, severity, confidence, summary);
            Past::evidence(window, dropped, &services, found)
        }
        _ => finding(
            RULE.id,
            Severity::Info,
            Confidence::High,
            format!(
                "a firewall rule{} dropped {dropped} packets in {:.0} s, {}",
                netns.place(),
                window.seconds,
                at_its_work(window, dropped, &services)
            ),
        ),
    };
    let hook = services.first().map_or("", |(_, service)| service.hook);
    let enter = netns.enter();
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
                "{}find the rule{} and let the flow pass in front of it: `{enter}nft list ruleset` shows the counters of \
                 rules that have one; `{enter}nft monitor trace` follows packets",
                if is_gone {
                    "the rule is gone, as it seems; if it comes back: "
                } else {
                    ""
                },
                if hook.is_empty() {
                    String::new()
                } else {
                    format!(" (a chain of hook {hook})")
                },
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
    ((address, port), service): (End, &Service),
    (packets, rest): (u64, usize),
    past: Option<Past>,
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
        _ if let Some(past) = past => past.since(),
        (Some(_), 0) if !service.missing.is_empty() => "; nobody gets through to it",
        (Some(_), _) if service.content > 0 => "; others get through to it",
        _ => "",
    };
    format!(
        "a firewall rule{} {verb} {packets} packets {}, {direction} {}{whose}{also}{clients}{through}",
        netns.place(),
        past.map_or_else(|| format!("in {:.0} s", window.seconds), Past::spoken),
        endpoint(address, port)
    )
}

/// Whether one of the ends is in a namespace that is watched.
fn is_ours(window: &Window, (end, service): &(End, Service)) -> bool {
    let mut ends = service.strangers.iter().chain([&end.0]);
    ends.any(|address| {
        let mut all = window.namespaces.iter();
        all.any(|netns| netns.after.addresses.contains(address))
    })
}

/// Why what was dropped is not missed.
fn at_its_work(window: &Window, dropped: u64, services: &[(End, Service)]) -> String {
    let listeners = services
        .iter()
        .filter(|(_, service)| service.home.is_some());
    let most = listeners.max_by_key(|(_, service)| service.others);
    let Some(((address, port), service)) = most else {
        let is_between = |hook: &str| services.iter().any(|(_, service)| service.hook == hook);
        return if is_between("forward") && services.iter().any(|service| is_ours(window, service)) {
            "on their way through; nobody here was seen to miss them".to_owned()
        } else if is_between("forward") {
            "between other machines: nobody here misses them".to_owned()
        } else {
            "to ports that nobody listens at: the firewall at its work".to_owned()
        };
    };
    let all: u32 = services.iter().map(|(_, service)| service.others).sum();
    // The events are a sample of what was counted.
    let share = dropped * u64::from(service.others) / u64::from(all.max(1));
    let (some, rest) = if service.others == all {
        (String::new(), "")
    } else {
        (format!("{share} of them "), "; the rest to other ports")
    };
    let service_name = endpoint(*address, *port);
    let whose = service.process.as_ref();
    let whose = whose.map_or(String::new(), |comm| format!(" ({comm})"));
    let strangers = listed(&service.strangers);
    let why = if service.is_stray && !service.strangers.is_empty() {
        "whose other packets get through: of connections that have ended, it seems, or that conntrack has forgotten".to_owned()
    } else if service.through > 0 {
        format!(
            "while {} get through to it: the firewall at its work, unless they should",
            people(service.through)
        )
    } else {
        return format!(
            "{some}to {service_name}{whose} from {strangers}: too few to say that somebody misses them, though nobody was \
             seen to get through{rest}"
        );
    };
    format!("{some}to {service_name}{whose} from {strangers}, {why}{rest}")
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
        .filter(|total| dropped::is_netfilter(|name| value_of(total, name)))
        .filter_map(|total| Some((port_of(total, "dport")?, total.events)));
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
        service.hook = "ingress, prerouting or input";
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
mod tests;
