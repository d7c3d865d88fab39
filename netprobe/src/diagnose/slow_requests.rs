//! Clients that send their requests byte by byte (slow loris, or a bad uplink): whoever waits for the rest serves nobody else.

use super::{
    finding::host,
    sizing::{several, spoken},
    window::Netns,
};
use crate::{
    observe::diag::Clients,
    report::diagnosis::{Affected, Finding},
};

/// Whether this is what most of so many connections are held by.
pub(super) fn holds(clients: &Clients, connections: u32) -> bool {
    let slow = clients.slow_requests.connections;
    slow > 0 && slow * 2 >= connections
}

/// How slow they are.
pub(super) fn words(clients: &Clients) -> String {
    let slow = &clients.slow_requests;
    format!(
        "no more than {} bytes each in up to {}, and no answer",
        slow.most_bytes,
        spoken(f64::from(slow.longest_ms) / 1000.0)
    )
}

/// Who they are, those with most connections first.
pub(super) fn hits(netns: &Netns, clients: &Clients) -> Vec<Affected> {
    let mut heaviest: Vec<_> = clients.slow_requests.clients.iter().collect();
    heaviest.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let heaviest = heaviest.into_iter().take(3);
    heaviest
        .map(|(address, _)| host("source", *address, netns.inode))
        .collect()
}

/// Adds what helps against it.
pub(super) fn advise(found: Finding, clients: &Clients) -> Finding {
    let slow = u64::from(clients.slow_requests.connections);
    let held = several(
        slow,
        "connection that it holds has brought",
        "connections that it holds have brought",
    );
    let text = format!(
        "{held} {} (slow loris, or a bad uplink): limit how long a whole request may take \
         (client_header_timeout of nginx, RequestReadTimeout of Apache, timeout http-request of HAProxy), or have such a proxy in front, which \
         waits for the rest without a worker; and limit the connections of one address",
        words(clients)
    );
    found
        .application(text, &[], "clients with a bad uplink are cut off")
        .at_once()
}
