//! Addresses that are translated on the way (DNAT: `docker -p`, REDIRECT, a virtual server): what a client connects to
//! and where its packets come to are one service, which the client's own end tells.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    dropped,
    events::Event,
    places::{self, End},
    window::Window,
};

/// So many clients must agree: single ports are used again, and networks may have equal addresses.
const LEAST: usize = 3;

/// Pairs of ends that were seen to be one service.
#[derive(Debug, Default)]
pub(super) struct Translated(BTreeSet<(End, End)>);

impl Translated {
    /// All of a window.
    pub(super) fn of(window: &Window) -> Self {
        // By the end of a client, the services that it was seen to talk to: those that it asked for itself, and those that
        // its packets came to.
        let mut services = BTreeMap::<End, [BTreeSet<End>; 2]>::new();
        for kind in ["connects", "lifetimes", "retransmits", "drops", "resets"] {
            let is_asked_for = ["connects", "lifetimes", "retransmits"].contains(&kind);
            for event in window.events.of(kind) {
                if let Some((client, service)) = sides(kind, event)
                    && !client.0.is_loopback()
                {
                    let [asked_for, come_to] = services.entry(client).or_default();
                    let seen = if is_asked_for { asked_for } else { come_to };
                    seen.insert(service);
                }
            }
        }
        let mut seen = BTreeMap::<(End, End), usize>::new();
        for [asked_for, come_to] in services.values() {
            for one in asked_for {
                for other in come_to.difference(asked_for) {
                    *seen.entry((*one, *other)).or_default() += 1;
                }
            }
        }
        let pairs = seen.into_iter().filter(|(_, clients)| *clients >= LEAST);
        Self(pairs.map(|(pair, _)| pair).collect())
    }

    /// The other ends of a service.
    pub(super) fn others(&self, end: End) -> impl Iterator<Item = End> {
        self.0.iter().filter_map(move |(one, other)| {
            let is_one = *one == end;
            (is_one || *other == end).then_some(if is_one { *other } else { *one })
        })
    }
}

/// The end of the client and that of the service, where an event tells which is which.
fn sides(kind: &str, event: &Event) -> Option<(End, End)> {
    let (local, remote) = places::ends(event)?;
    let is_client = match kind {
        "connects" => true,
        "lifetimes" => event.is("role", "client"),
        "retransmits" if event.is("cause", "syn") => true,
        // The source of a SYN.
        "drops" if dropped::is_syn(event) => true,
        "resets" if event.is("cause", "no-listener") => false,
        _ => return None,
    };
    Some(if is_client {
        (local, remote)
    } else {
        (remote, local)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnose::fixtures::quiet, report::Value};

    /// The other ends of a service that so many clients connect to, whose SYNs are dropped on their way to another.
    fn others(clients: u16) -> Vec<End> {
        let mut window = quiet();
        let packet = |port: u16, to: [u8; 4], dport: u64| {
            [
                ("saddr", Value::Ip([10, 1, 0, 1].into())),
                ("sport", Value::Unsigned(port.into())),
                ("daddr", Value::Ip(to.into())),
                ("dport", Value::Unsigned(dport)),
            ]
        };
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
        translated.others(([10, 1, 0, 2].into(), 8080)).collect()
    }

    #[test]
    fn two_services_that_a_client_asks_for_from_the_same_port_are_two() {
        let mut window = quiet();
        for port in 40_000..40_010 {
            for service in [7077, 7202] {
                let connect = [
                    ("saddr", Value::Ip([10, 1, 0, 1].into())),
                    ("sport", Value::Unsigned(port)),
                    ("daddr", Value::Ip([10, 1, 0, 2].into())),
                    ("dport", Value::Unsigned(service)),
                ];
                window.event("connects", 1, &connect);
            }
        }
        let translated = Translated::of(&window);
        assert_eq!(translated.others(([10, 1, 0, 2].into(), 7202)).count(), 0);
    }

    #[test]
    fn what_several_clients_connect_to_and_come_to_is_one_service() {
        assert_eq!(others(3), [([10, 2, 0, 2].into(), 80)]);
        assert_eq!(others(2), []);
    }
}
