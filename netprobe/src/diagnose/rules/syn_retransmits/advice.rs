//! Where to look next, where nobody was seen to drop anything.

use super::{
    super::super::{places, sizing::lasting, window::Window},
    connects::Ending,
    strangers::Strangers,
    unanswered::Unanswered,
};

const OTHER_END: &str = "look at the other end: netprobe diagnose there tells whether its listener, firewall or conntrack drops \
                         them; if none does, it is the path (tcptraceroute, security groups)";

/// Of one that does not answer, or whose clients do not.
pub(super) fn advice(
    window: &Window,
    near: &Unanswered<'_>,
    far: Option<&Unanswered<'_>>,
) -> String {
    let is_home = near.is_client()
        && near.end().is_some_and(|end| {
            places::listener(window, near.netns, end)
                .is_some_and(|(home, _)| home.inode != near.netns.inode)
        });
    if far.is_some() || (is_home && !near.is_unreachable()) {
        return "look at what lies between the two namespaces: bridges, forwarding rules (nft list ruleset), tc, and the \
                listener's queues"
            .to_owned();
    }
    let enter = near.netns.enter();
    let address = near.end().map(|(address, _)| address.to_string());
    let address = address.unwrap_or_else(|| "ADDRESS".to_owned());
    match near.ended {
        Some((Ending::GivenUp { waited_ns }, _)) => format!(
            "{OTHER_END}; if it is far away, see that its clients wait long enough: they gave up after {}",
            lasting(waited_ns / 1000)
        ),
        Some((
            Ending::Unreachable {
                is_neighbour: true, ..
            },
            _,
        )) => format!(
            "see whether that host is up and the address right: `{enter}ip route get {address}` shows the next hop, `{enter}ip \
             neigh` who does not answer"
        ),
        Some((Ending::Unreachable { .. }, _)) => format!(
            "`{enter}ip route get {address}` shows whether a route here says so; else a router or the firewall of the other end \
             does, by ICMP (tcpdump icmp)"
        ),
        None => OTHER_END.to_owned(),
    }
}

/// Of clients that do not finish their handshakes.
pub(super) fn of_clients(near: &Unanswered<'_>, strangers: &Strangers) -> String {
    let enter = near.netns.enter();
    if strangers.is_noise {
        return format!(
            "nothing, unless clients complain: `{enter}ss -Htn state syn-recv` shows who is half open now"
        );
    }
    let who = strangers.listed();
    if who.is_empty() {
        return OTHER_END.to_owned();
    }
    format!(
        "look at the way back to them ({who}): `{enter}ip route get` shows where the SYN-ACKs go; then at their end: netprobe \
         diagnose there tells whether its firewall or conntrack drops them"
    )
}
