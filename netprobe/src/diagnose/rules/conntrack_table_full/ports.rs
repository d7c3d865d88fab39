//! Address translation without free ports: the table has room, and new connections are turned away all the same.

use std::collections::BTreeSet;

use super::{
    super::super::{
        clashes::{Clashes, INSERT_FAILED},
        finding::{finding, somewhere},
        window::{Gap, Netns, Window, endpoint},
    },
    RULE, Table,
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// Ports that a translation has for each destination where its rule gives no range: from 1024 on.
const DEFAULT_PORTS: usize = 64_512;
/// More per second that are turned away once are worth a warning.
const RACES_PER_S: f64 = 1.0;
/// More destinations are not named.
const NAMED: usize = 4;

/// What is turned away for want of a port.
pub(super) fn found(window: &Window, netns: &Netns) -> Result<Option<Finding>, Gap> {
    let clashes = Clashes::of(window, netns)?.filter(|clashes| clashes.syns > 0);
    Ok(clashes.map(|clashes| {
        let found = if clashes.again > 0 {
            exhausted(window, netns, &clashes)
        } else {
            raced(window, netns, &clashes)
        };
        found.since(window, netns, INSERT_FAILED)
    }))
}

/// What is sent again is turned away again: there is no free port.
fn exhausted(window: &Window, netns: &Netns, clashes: &Clashes) -> Finding {
    let ports = Ports::of(netns, clashes);
    let taken = ports
        .taken
        .as_ref()
        .map_or_else(String::new, |taken| format!(" ({taken})"));
    let found = begin(
        window,
        netns,
        clashes,
        Severity::Critical,
        format!(
            "the translation of source addresses (NAT){} finds no free port: {} SYNs to {} were dropped in {:.0} s{taken}",
            netns.place_or_here(),
            clashes.syns,
            named(clashes),
            window.seconds,
        ),
    );
    let found = found.counted(
        format!(
            "{} of {} SYNs that were looked at were dropped twice or more: to send them again does not help",
            clashes.again, clashes.looked_at
        ),
        clashes.again as u64,
        "connections",
        "kfree_skb NETFILTER_DROP",
    );
    let enter = netns.enter();
    let rule = format!("`{enter}nft list ruleset` or `{enter}iptables-save -t nat` shows the rule");
    let found = if ports.width < DEFAULT_PORTS / 2 {
        found.command(
            format!(
                "let the rule that translates use more ports: without a range (masquerade, snat to ADDRESS) it has {DEFAULT_PORTS} \
                 for each destination; {rule}"
            ),
            "connections that are open keep their ports",
        )
    } else {
        found
    };
    found
        .command(
            format!(
                "or translate to more addresses (snat to FIRST-LAST): each has as many ports again for each destination; {rule}"
            ),
            "the other end sees those addresses, and has to let them in",
        )
        .application(
            "or have fewer connections open through it at once: close idle ones, or share them (keep-alive, a pool)",
            &[],
            "with a smaller pool requests wait for a connection",
        )
}

/// Each was turned away once: two flows took the same port at the same moment.
fn raced(window: &Window, netns: &Netns, clashes: &Clashes) -> Finding {
    let severity = if window.rate(clashes.syns) >= RACES_PER_S {
        Severity::Warning
    } else {
        Severity::Info
    };
    let found = begin(
        window,
        netns,
        clashes,
        severity,
        format!(
            "{} SYNs to {} were dropped{} in {:.0} s, none of them twice: the port that their source was translated to was taken just \
         then; they are sent again 1 s later",
            clashes.syns,
            named(clashes),
            netns.place_or_here(),
            window.seconds,
        ),
    );
    found.command(
        "have ports chosen at random, so that fewer connections try for the same one: masquerade fully-random in nft, \
         --random-fully in iptables",
        "connections do not keep their source port",
    )
}

fn begin(
    window: &Window,
    netns: &Netns,
    clashes: &Clashes,
    severity: Severity,
    summary: String,
) -> Finding {
    let found = finding(RULE.id, severity, Confidence::High, summary).counted(
        format!(
            "{} SYNs dropped as another flow has the same addresses and ports, {:.1}/s",
            clashes.syns,
            window.rate(clashes.syns)
        ),
        clashes.syns,
        "packets",
        "/proc/net/stat/nf_conntrack insert_failed, kfree_skb NETFILTER_DROP",
    );
    let found = match Table::of(netns) {
        Some(table) => found.counted(
            format!(
                "{} entries of {}: the table has room",
                table.highest, table.max
            ),
            table.highest,
            "entries",
            "net.netfilter.nf_conntrack_count",
        ),
        None => found,
    };
    let affected = |(address, port): &_| Window::affected_destination(netns, *address, *port);
    let mut found = found
        .hits([somewhere(netns)])
        .hits(clashes.services.iter().take(NAMED).map(affected));
    found.stops = clashes.services.iter().map(affected).collect();
    found
}

fn named(clashes: &Clashes) -> String {
    let mut services = clashes.services.iter();
    let first = services
        .next()
        .map_or_else(String::new, |(address, port)| endpoint(*address, *port));
    match services.len() {
        0 => first,
        1 => format!("{first} and one more service"),
        rest => format!("{first} and {rest} more services"),
    }
}

/// The ports that sources are translated to.
struct Ports {
    /// How many there are at least, from the first to the last.
    width: usize,
    /// Those that are taken, in words.
    taken: Option<String>,
}

impl Ports {
    /// Towards the first of the services.
    fn of(netns: &Netns, clashes: &Clashes) -> Self {
        let entries = netns.after.conntrack.as_ref();
        let taken = entries.zip(clashes.services.first());
        let taken = taken
            .and_then(|(entries, service)| entries.translated.get(&(clashes.source, *service)));
        let span = |ports: &BTreeSet<u16>| ports.first().copied().zip(ports.last().copied());
        let width = |(first, last): (u16, u16)| usize::from(last - first) + 1;
        let words = taken
            .zip(taken.and_then(span))
            .map(|(taken, (first, last))| {
                let all = if width((first, last)) == taken.len() {
                    "all "
                } else {
                    ""
                };
                format!(
                    "{all}{} ports of {} from {first} to {last} are taken",
                    taken.len(),
                    clashes.source
                )
            });
        let known: BTreeSet<u16> = taken
            .into_iter()
            .flatten()
            .chain(&clashes.tried)
            .copied()
            .collect();
        Self {
            width: span(&known).map_or(0, width),
            taken: words,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{Verdict, fixtures::quiet, window::Window},
        observe::conntrack::Entries,
        report::{
            Value,
            diagnosis::{Confidence, Severity},
        },
    };

    const SERVER: [u8; 4] = [10, 2, 0, 2];
    const GATEWAY: [u8; 4] = [10, 2, 0, 1];

    /// A gateway that has 50 ports for 10.2.0.2:8090, all of them taken, and drops so many SYNs, each so often.
    fn gateway(syns: u64, times: u64) -> Window {
        let mut window = quiet();
        window.netns().is_initial = false;
        window.netns().name = Some("gw".to_owned());
        window.netns().after.addresses = [GATEWAY.into(), [10, 1, 0, 1].into()].into();
        let mut entries = Entries {
            sampled: 50,
            ..Entries::default()
        };
        let ports = (20_000..20_050).collect();
        entries
            .translated
            .insert((GATEWAY.into(), (SERVER.into(), 8090)), ports);
        window.netns().after.conntrack = Some(entries);
        let dropped = (syns * times).cast_signed();
        window.grow(&[
            ("nf_conntrack.insert_failed", dropped),
            ("nf_conntrack.drop", dropped),
        ]);
        let reason = ("reason", Value::Word("NETFILTER_DROP"));
        let location = ("location", Value::Text("nf_hook_slow+0x7d".into()));
        let total = [reason.clone(), location.clone()];
        window.total("drops", syns * times, &total);
        for number in 0..syns * times {
            let packet = [
                reason.clone(),
                location.clone(),
                ("saddr", Value::Ip(GATEWAY.into())),
                ("sport", Value::Unsigned(20_000 + number % 50)),
                ("daddr", Value::Ip(SERVER.into())),
                ("dport", Value::Unsigned(8090)),
                ("flags", Value::TcpFlags(2)),
                ("seq", Value::Unsigned(number % syns)),
            ];
            window.event("drops", 1, &packet);
        }
        window
    }

    #[test]
    fn a_gateway_without_free_ports_is_told_with_the_destination_and_nobodys_rule() {
        let mut window = gateway(100, 3);
        let findings = window.findings();
        assert_eq!(window.ids(), ["conntrack-table-full"]);
        let found = &findings[0];
        assert_eq!(
            (found.severity, found.confidence),
            (Severity::Critical, Confidence::High)
        );
        let told = "the translation of source addresses (NAT) in namespace gw finds no free port: 300 SYNs to 10.2.0.2:8090 \
                    were dropped in 10 s (all 50 ports of 10.2.0.1 from 20000 to 20049 are taken)";
        assert_eq!(found.summary, told);
        assert!(found.fixes[0].text.contains("more ports"));
        assert!(
            found.fixes[0]
                .text
                .contains("ip netns exec gw nft list ruleset")
        );
        let hit = &found.affected[1];
        assert_eq!(
            (hit.kind, hit.name.as_str()),
            ("destination", "10.2.0.2:8090")
        );
        // Its clients, in another namespace, follow from that.
        let mut client = window.netns().clone();
        client.inode = 78;
        client.after.addresses = [[10, 1, 0, 2].into()].into();
        client.after.conntrack = None;
        client.after.counters = client.before.counters.clone();
        client.after.counters.insert("TcpExt.TCPSynRetrans", 300);
        let mut other = quiet();
        let ends = [
            ("cause", Value::Word("syn")),
            ("saddr", Value::Ip([10, 1, 0, 2].into())),
            ("sport", Value::Unsigned(40_000)),
            ("daddr", Value::Ip(SERVER.into())),
            ("dport", Value::Unsigned(8090)),
        ];
        other.event("retransmits", 300, &ends);
        other.total("retransmits", 300, &ends[..1]);
        other.relocate(78);
        for event in other.events.of("retransmits") {
            window.events.keep("retransmits", event.clone());
        }
        window.events.totals.extend(other.events.totals);
        window.namespaces.push(client);
        let told = window.told();
        let expected = ("syn-retransmits", Some("conntrack-table-full"));
        assert!(told.contains(&expected), "{told:?}");
    }

    #[test]
    fn without_function_probes_or_a_listing_it_is_told_by_the_counters_and_drops() {
        let mut window = gateway(100, 3);
        window.netns().after.conntrack = None;
        window.blind("conntrack");
        let found = window.findings().remove(0);
        assert_eq!(found.id, "conntrack-table-full");
        assert!(
            found.summary.ends_with("were dropped in 10 s"),
            "{}",
            found.summary
        );
        assert_eq!(window.verdict("firewall-drops"), Verdict::Ok);
    }

    #[test]
    fn races_for_a_port_are_a_note_unless_there_are_many() {
        for (syns, expected) in [(5, Severity::Info), (50, Severity::Warning)] {
            let found = gateway(syns, 1).findings().remove(0);
            assert_eq!(found.severity, expected, "{}", found.summary);
            assert!(
                found.summary.contains("none of them twice"),
                "{}",
                found.summary
            );
            assert!(found.fixes[0].text.contains("fully-random"));
        }
    }

    #[test]
    fn a_rule_that_drops_beside_flows_of_other_protocols_that_clash_is_that_rule() {
        let mut window = gateway(100, 3);
        // From a client, and not translated: a rule.
        window.netns().after.addresses = [[10, 1, 0, 1].into()].into();
        window.netns().after.conntrack = None;
        assert_eq!(window.verdict("conntrack-table-full"), Verdict::Ok);
        assert!(matches!(
            window.verdict("firewall-drops"),
            Verdict::Found(_)
        ));
    }
}
