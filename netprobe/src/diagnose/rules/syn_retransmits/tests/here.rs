//! SYNs that this machine loses itself.

use super::*;
use crate::observe::diag::SocketTable;

#[test]
fn nobody_else_is_blamed_where_this_machine_drops_syns_or_was_not_seen() {
    let silent = || {
        let mut window = quiet();
        window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6)]);
        window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
        window
    };
    let blames = |window: &Window| {
        let findings = window.findings();
        let found = findings.iter().find(|found| found.id == "syn-retransmits");
        found.unwrap().summary.contains("the peer")
    };
    assert!(blames(&silent()));
    let mut dropping = silent();
    dropping.total("drops", 12, &[("reason", Value::Word("NETFILTER_DROP"))]);
    dropping.event("drops", 12, &[("flags", Value::TcpFlags(2))]);
    assert!(!blames(&dropping));
    let mut blind = silent();
    blind.blind("drops");
    assert!(!blames(&blind));
    let mut refusing = silent();
    let mut server = refusing.namespaces[0].clone();
    server.inode += 1;
    server.after.counters.insert("TcpExt.ListenDrops", 12);
    refusing.namespaces.push(server);
    assert!(!blames(&refusing));
}

#[test]
fn a_namespace_that_drops_the_syns_itself_is_named_with_the_reason() {
    let found = silent("IP_RPFILTER");
    let summary = &found.summary;
    let said =
        "; SYNs are dropped here, by rp_filter: the route back to 10.0.0.1 does not lead over eth1";
    assert!(summary.ends_with(said), "{summary}");
    let set = &found.fixes[1].set[0];
    assert_eq!(
        (set.0.as_str(), set.1.as_str()),
        ("net.ipv4.conf.eth1.rp_filter", "2")
    );
    assert!(
        found
            .fixes
            .iter()
            .all(|fix| !fix.text.contains("other end"))
    );
    let summary = silent("XFRM_POLICY").summary;
    assert!(
        summary.ends_with("; SYNs are dropped here, as XFRM_POLICY"),
        "{summary}"
    );
    let summary = silent("NEIGH_FAILED").summary;
    assert!(summary.contains("nobody on the link answers"), "{summary}");
}

#[test]
fn what_nobody_waits_for_and_what_comes_twice_is_not_lost() {
    // Those of others may be forged: nobody waits for them.
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:5432");
    let forged = [
        ("reason", Value::Word("IP_INADDRERRORS")),
        ("flags", Value::TcpFlags(0x12)),
        ("saddr", Value::Ip([10, 0, 0, 2].into())),
        ("sport", Value::Unsigned(5432)),
        ("daddr", Value::Ip([192, 0, 2, 1].into())),
        ("dport", Value::Unsigned(41_000)),
    ];
    window.event("drops", 12, &forged);
    let summary = window.findings()[0].summary.clone();
    assert!(!summary.contains("dropped here"), "{summary}");
    // What is freed with its socket is not lost, nor what somebody only listened in to.
    for reason in ["QUEUE_PURGE", "OTHERHOST", "TCP_INVALID_SYN"] {
        let summary = silent(reason).summary;
        assert!(summary.ends_with("the path or the peer"), "{summary}");
    }
    // A SYN that comes again is answered again and freed.
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:5432");
    for (function, is_lost) in [("tcp_v4_rcv+0x1", false), ("ip_rcv_finish_core+0x1", true)] {
        let again = [
            ("reason", Value::Word("NOT_SPECIFIED")),
            ("location", Value::Text(function.into())),
            ("flags", Value::TcpFlags(2)),
        ];
        window.event("drops", 12, &again);
        window.total("drops", 12, &[("reason", Value::Word("NOT_SPECIFIED"))]);
        let blames = window.findings()[0]
            .summary
            .contains("the path or the peer");
        assert_eq!(blames, !is_lost, "{function}");
    }
}

/// What is said where SYNs to 10.0.0.2 are dropped, without a reason but with their sender's socket, in the namespace that
/// has the first of these addresses; another one has the other.
fn dropped_between(addresses: [[u8; 4]; 2], location: &'static str) -> String {
    let mut window = quiet();
    let more = [
        ("location", Value::Text(location.into())),
        ("state", Value::Word("SYN-SENT")),
    ];
    dropped_as(&mut window, 12, "NOT_SPECIFIED", &more);
    window.relocate(77);
    for (inode, address) in [77, 78].into_iter().zip(addresses) {
        let mut other = quiet().namespaces.remove(0);
        other.inode = inode;
        other.is_initial = false;
        other.after.addresses = [address.into()].into();
        window.namespaces.push(other);
    }
    sent_again(&mut window, 12, "10.0.0.2:5432");
    window.findings()[0].summary.clone()
}

#[test]
fn what_is_dropped_on_its_way_between_two_namespaces_is_lost_also_without_a_reason() {
    const CLIENT: [u8; 4] = [10, 0, 0, 1];
    const SERVER: [u8; 4] = [10, 0, 0, 2];
    const BRIDGE: [u8; 4] = [10, 0, 0, 9];
    let summary = dropped_between([SERVER, CLIENT], "do_xdp_generic+0x284");
    let said =
        "; SYNs are dropped in namespace 77, by an XDP program at eth1 (do_xdp_generic+0x284)";
    assert!(summary.ends_with(said), "{summary}");
    let summary = dropped_between([BRIDGE, SERVER], "br_handle_frame_finish+0x380");
    let said =
        "; SYNs are dropped in namespace 77, by the bridge there (br_handle_frame_finish+0x380)";
    assert!(summary.ends_with(said), "{summary}");
    // Who only listens in, and devices that free what they have sent: here, or on to another machine.
    for (addresses, location) in [
        ([BRIDGE, SERVER], "ip_rcv_core+0x1"),
        ([CLIENT, SERVER], "dev_kfree_skb_any_reason+0x1"),
        ([BRIDGE, CLIENT], "dev_kfree_skb_any_reason+0x1"),
    ] {
        let summary = dropped_between(addresses, location);
        assert!(!summary.contains("dropped in"), "{location}: {summary}");
    }
}

/// What is found where a router, which another namespace is, drops SYNs to 10.0.0.2:5432 for a reason.
fn dropped_by_router(
    reason: &'static str,
    location: &'static str,
    fail: fn(&mut Window),
) -> Finding {
    let mut window = quiet();
    let location = ("location", Value::Text(location.into()));
    dropped_as(&mut window, 12, reason, &[location]);
    window.relocate(77);
    let mut router = quiet().namespaces.remove(0);
    router.inode = 77;
    router.name = Some("router".to_owned());
    router.is_initial = false;
    router.after.addresses = [[10, 0, 0, 9].into()].into();
    window.namespaces.push(router);
    fail(&mut window);
    window.findings().remove(0)
}

#[test]
fn a_router_of_this_machine_that_has_no_route_is_named_with_the_command_that_shows_it() {
    let again: fn(&mut Window) = |window| sent_again(window, 12, "10.0.0.2:5432");
    let told: fn(&mut Window) = |window| {
        connects(window, 12, "10.0.0.2:5432", ("errno", "ENETUNREACH"), 1);
    };
    for (reason, location, fail, by) in [
        ("NOT_SPECIFIED", "ip_error+0x94", again, "ip_error+0x94"),
        ("IP_INNOROUTES", "ip_error+0x94", again, "IP_INNOROUTES"),
        (
            "IP_INNOROUTES",
            "ip6_pkt_discard+0x11",
            told,
            "IP_INNOROUTES",
        ),
        (
            "NOT_SPECIFIED",
            "ip6_pkt_drop+0x11",
            told,
            "ip6_pkt_drop+0x11",
        ),
    ] {
        let found = dropped_by_router(reason, location, fail);
        let said = format!(
            "; SYNs are dropped in namespace router, as there is no route to 10.0.0.2, or one that refuses ({by})"
        );
        assert!(found.summary.ends_with(&said), "{}", found.summary);
        assert!(!found.summary.contains("there is no route to it"));
        let fix = &found.fixes[0].text;
        assert!(
            fix.contains("`ip netns exec router ip route get 10.0.0.2`"),
            "{fix}"
        );
    }
    let summary = dropped_by_router("IP_INADDRERRORS", "ip_error+0x94", again).summary;
    assert!(summary.ends_with("and it does not forward"), "{summary}");
    for (reason, location) in [
        ("NEIGH_FAILED", "arp_error_report+0x1"),
        ("NOT_SPECIFIED", "neigh_invalidate+0x7e"),
    ] {
        let summary = dropped_by_router(reason, location, told).summary;
        let said = "; SYNs are dropped in namespace router, as nobody on the link answers";
        assert!(summary.contains(said), "{summary}");
    }
}

#[test]
fn what_a_firewall_here_rejects_stands_behind_it_also_beside_another_dead_host() {
    let mut window = quiet();
    sent_again(&mut window, 24, "10.0.0.2:5432");
    sent_again(&mut window, 6, "10.0.0.77:9004");
    dropped(&mut window, 30, "NETFILTER_DROP");
    window.netns().after.addresses = [[10, 0, 0, 1].into()].into();
    let findings = window.findings();
    let told: Vec<_> = findings
        .iter()
        .map(|found| (found.id, found.affected[0].port, found.behind))
        .collect();
    let expected = [
        ("firewall-drops", Some(5432), None),
        ("syn-retransmits", Some(9004), None),
        ("syn-retransmits", Some(5432), Some("firewall-drops")),
    ];
    assert_eq!(told, expected);
    let [other, own] = [1, 2].map(|place: usize| findings[place].evidence[0].value);
    assert_eq!((other, own), (Some(6.0), Some(24.0)));
}

#[test]
fn what_was_lost_before_the_window_is_not_said_to_be_lost_by_others() {
    let summary = |attempts_each: usize, drops: usize| {
        let mut window = quiet();
        connects(
            &mut window,
            20,
            "10.0.0.2:5432",
            ("outcome", "established"),
            900,
        );
        sent_again(&mut window, attempts_each, "10.0.0.2:5432");
        // More than the counter had when it was read.
        window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
        window.grow(&[("TcpExt.TCPSynRetrans", 8)]);
        dropped(&mut window, drops, "QDISC_DROP");
        let found = window.findings().remove(0);
        let [all, syns] = [0, 1].map(|place: usize| found.evidence[place].value);
        assert_eq!(all, syns);
        found.summary
    };
    assert!(summary(1, 0).ends_with("they may have been lost before this window"));
    assert!(
        summary(2, 0)
            .ends_with("nobody on this machine was seen to drop them: the path or the peer")
    );
    // Nor where it was seen to be lost.
    let said = summary(1, 8);
    let told = "sent again in 10 s; SYNs are dropped here, as QDISC_DROP";
    assert!(said.ends_with(told), "{said}");
}

#[test]
fn the_other_end_is_not_to_be_looked_at_where_it_is_watched() {
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:8000");
    let fix = |window: &Window| window.findings()[0].fixes[0].text.clone();
    assert!(fix(&window).starts_with("look at the other end"));
    routeless(&mut window, [0, 0, 0]);
    assert!(fix(&window).starts_with("look at what lies between the two namespaces"));
}

/// SYNs to a listener of this namespace, each client's sent again, that are dropped for a reason.
fn dropped_before_the_listener(reason: &'static str, tries: u64) -> Window {
    dropped_of([10, 0, 0, 9], reason, tries)
}

fn dropped_of(client: [u8; 4], reason: &'static str, tries: u64) -> Window {
    dropped_for(client, [10, 0, 0, 1], reason, tries)
}

fn dropped_for(client: [u8; 4], service: [u8; 4], reason: &'static str, tries: u64) -> Window {
    let mut window = quiet();
    window.listen(8080, 128, &[0; 10]);
    for port in 0..4 {
        for _ in 0..tries {
            let syn = [
                ("saddr", Value::Ip(client.into())),
                ("sport", Value::Unsigned(40_000 + port)),
                ("daddr", Value::Ip(service.into())),
                ("dport", Value::Unsigned(8080)),
                ("flags", Value::TcpFlags(2)),
                ("reason", Value::Text(reason.into())),
            ];
            window.event("drops", 1, &syn);
        }
    }
    window
}

#[test]
fn syns_for_an_address_that_a_server_does_not_have_are_told() {
    let mut window = dropped_for([10, 0, 0, 9], [10, 0, 0, 77], "IP_INADDRERRORS", 2);
    window.namespaces[0].after.addresses = [[10, 0, 0, 1].into()].into();
    let found = window.findings().remove(0);
    assert_eq!(
        (found.id, found.severity),
        ("syn-retransmits", Severity::Critical)
    );
    for said in [
        "10.0.0.77:8080 is not reached by 10.0.0.9, nor by anybody else",
        "for an address that it does not have",
    ] {
        assert!(found.summary.contains(said), "{}", found.summary);
    }
    // Nobody listens at that port here, and it may be meant for another machine.
    window.namespaces[0].queues.clear();
    window.namespaces[0].after.sockets = Some(SocketTable::default());
    assert_eq!(window.findings()[0].severity, Severity::Warning);
    // What is dropped on its way for another reason is its sender's to find.
    let mut window = dropped_for([10, 0, 0, 9], [10, 0, 0, 77], "XDP", 2);
    window.namespaces[0].after.addresses = [[10, 0, 0, 1].into()].into();
    assert!(window.findings().is_empty(), "{:#?}", window.findings());
}

#[test]
fn where_a_listeners_own_namespace_drops_syns_it_is_told_without_their_clients() {
    let findings = dropped_before_the_listener("TCP_MD5NOTFOUND", 2).findings();
    assert_eq!(findings[0].id, "syn-retransmits", "{findings:#?}");
    assert_eq!(findings[0].severity, Severity::Critical);
    assert!(
        findings[0].summary.contains("is not reached by 10.0.0.9"),
        "{}",
        findings[0].summary
    );
    assert!(findings[0].summary.contains("wants them signed"));
    // Nobody tries again who only forges addresses.
    let findings = dropped_before_the_listener("IP_RPFILTER", 1).findings();
    assert!(findings.is_empty(), "{findings:#?}");
    // Strangers try every port of a public address now and then.
    let findings = dropped_of([45, 1, 2, 3], "TCP_MD5NOTFOUND", 2).findings();
    assert!(findings.is_empty(), "{findings:#?}");
    // A filter that lets others through does its work.
    let mut window = dropped_before_the_listener("TC_INGRESS", 2);
    assert_eq!(window.findings()[0].severity, Severity::Critical);
    let other = [
        ("role", Value::Word("server")),
        ("result", Value::Word("fin")),
        ("sport", Value::Unsigned(8080)),
        ("daddr", Value::Ip([10, 0, 0, 8].into())),
    ];
    window.event("lifetimes", 5, &other);
    assert!(window.findings().is_empty(), "{:#?}", window.findings());
    // Late segments are no loss.
    let findings = dropped_before_the_listener("TCP_OLD_SEQUENCE", 2).findings();
    assert!(findings.is_empty(), "{findings:#?}");
}
