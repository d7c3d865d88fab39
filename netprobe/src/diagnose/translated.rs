//! Addresses that are translated on the way (DNAT: `docker -p`, REDIRECT, a virtual server): what a client connects to
//! and where its packets come to are one service, which the client's own end tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    dropped,
    events::Event,
    places::{self, End},
    window::Window,
};

/// So many clients must agree: single ports are used again, and networks may have equal addresses.
const LEAST: usize = 3;

/// Pairs of ends that were seen to be one service: what was asked for, and what that came to.
#[derive(Debug, Default)]
pub(super) struct Translated(BTreeSet<(End, End)>);

impl Translated {
    /// All of a window.
    pub(super) fn of(window: &Window) -> Self {
        // By the end of a client, the services that it was seen to talk to: those that it asked for itself, and those that
        // its packets came to.
        let mut services = BTreeMap::<End, [BTreeSet<End>; 2]>::new();
        // Ports are used again, and events may be a sample: what an address asks for from any port is not translated.
        let mut all_asked_for = BTreeSet::<(IpAddr, End)>::new();
        for kind in ["connects", "lifetimes", "retransmits", "drops", "resets"] {
            for event in window.events.of(kind) {
                if let Some((client, service, is_asked_for)) = sides(kind, event)
                    && !client.0.is_loopback()
                {
                    let [asked_for, come_to] = services.entry(client).or_default();
                    if is_asked_for {
                        asked_for.insert(service);
                        all_asked_for.insert((client.0, service));
                    } else {
                        come_to.insert(service);
                    }
                }
            }
        }
        let mut seen = BTreeMap::<(End, End), usize>::new();
        for (client, [asked_for, come_to]) in &services {
            let is_led_to = |service: &&End| !all_asked_for.contains(&(client.0, **service));
            for one in asked_for {
                for other in come_to.iter().filter(is_led_to) {
                    *seen.entry((*one, *other)).or_default() += 1;
                }
            }
        }
        let pairs = seen.into_iter().filter(|(_, clients)| *clients >= LEAST);
        Self(pairs.map(|(pair, _)| pair).collect())
    }

    /// Where what is sent to an end comes to.
    pub(super) fn leads_to(&self, end: End) -> impl Iterator<Item = End> {
        let pairs = self
            .0
            .iter()
            .filter(move |(asked_for, _)| *asked_for == end);
        pairs.map(|(_, come_to)| *come_to)
    }
}

/// The end of the client and that of the service, where an event tells which is which, and whether it is the client's own
/// end that tells it.
fn sides(kind: &str, event: &Event) -> Option<(End, End, bool)> {
    let (local, remote) = places::ends(event)?;
    let (is_client, is_asked_for) = match kind {
        "connects" => (true, true),
        "lifetimes" if event.is("role", "client") => (true, true),
        "retransmits" if event.is("cause", "syn") => (true, true),
        "resets" if event.is("cause", "refused") => (true, true),
        // The source of a SYN.
        "drops" if dropped::is_syn(event) => (true, false),
        "resets" if event.is("cause", "no-listener") => (false, false),
        _ => return None,
    };
    Some(if is_client {
        (local, remote, is_asked_for)
    } else {
        (remote, local, is_asked_for)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnose::fixtures::quiet, report::Value};

    fn packet(port: u16, to: [u8; 4], dport: u64) -> [(&'static str, Value); 4] {
        [
            ("saddr", Value::Ip([10, 1, 0, 1].into())),
            ("sport", Value::Unsigned(port.into())),
            ("daddr", Value::Ip(to.into())),
            ("dport", Value::Unsigned(dport)),
        ]
    }

    /// Where a service leads to that so many clients connect to, whose SYNs are dropped on their way to another.
    fn led_to(clients: u16) -> Vec<End> {
        let mut window = quiet();
        for port in 40_000..40_000 + clients {
            window.event("connects", 1, &packet(port, [10, 1, 0, 2], 8080));
            let drop = [
                &packet(port, [10, 2, 0, 2], 80)[..],
                &[("flags", Value::TcpFlags(2))],
            ]
            .concat();
            window.event("drops", 1, &drop);
        }
        let translated = Translated::of(&window);
        translated.leads_to(([10, 1, 0, 2].into(), 8080)).collect()
    }

    #[test]
    fn two_services_that_a_client_asks_for_from_the_same_port_are_two() {
        let mut window = quiet();
        for port in 40_000..40_010 {
            for service in [7077, 7202] {
                window.event("connects", 1, &packet(port, [10, 1, 0, 2], service));
            }
        }
        assert_eq!(Translated::of(&window).0, BTreeSet::new());
    }

    #[test]
    fn a_sample_of_what_is_asked_for_and_refused_is_no_translation() {
        let mut window = quiet();
        for port in 40_000..40_010 {
            window.event("connects", 1, &packet(port, [10, 1, 0, 2], 9000));
            // What the kernel of the service sends, from its side.
            let answer = [
                ("saddr", Value::Ip([10, 1, 0, 2].into())),
                ("sport", Value::Unsigned(9001)),
                ("daddr", Value::Ip([10, 1, 0, 1].into())),
                ("dport", Value::Unsigned(port.into())),
                ("cause", Value::Word("no-listener")),
            ];
            window.event("resets", 1, &answer);
        }
        // Other connects to the same end were seen from other ports only.
        let refused = [
            &packet(50_000, [10, 1, 0, 2], 9001)[..],
            &[("cause", Value::Word("refused"))],
        ];
        window.event("resets", 1, &refused.concat());
        assert_eq!(Translated::of(&window).0, BTreeSet::new());
    }

    #[test]
    fn what_several_clients_connect_to_and_come_to_is_one_service() {
        assert_eq!(led_to(3), [([10, 2, 0, 2].into(), 80)]);
        assert_eq!(led_to(2), []);
    }
}
