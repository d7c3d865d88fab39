//! Clients that do not read what they are sent: their windows are closed, and whoever sends to them waits in send().

use super::sizing::{bytes, spoken};
use crate::{observe::diag::Clients, report::diagnosis::Finding};

/// Whether this is what most of so many connections are held by.
pub(super) fn holds(clients: &Clients, connections: u32) -> bool {
    let stuck = clients.zero_window.connections;
    stuck > 0 && stuck * 2 >= connections
}

/// Adds what helps against it.
pub(super) fn advise(found: Finding, clients: &Clients) -> Finding {
    let stuck = clients.zero_window;
    let wait = if stuck.connections == 1 {
        "1 connection that it holds waits for a client that does".to_owned()
    } else {
        format!(
            "{} connections that it holds wait for clients that do",
            stuck.connections
        )
    };
    let text = format!(
        "{wait} not read what it sends (window closed for {}, {} wait): limit how long a send may take (send_timeout of nginx, \
         SO_SNDTIMEO, TCP_USER_TIMEOUT), or have a proxy that buffers answers in front",
        spoken(f64::from(stuck.longest_ms) / 1000.0),
        bytes(stuck.bytes)
    );
    found
        .application(text, &[], "who reads slowly gets no more")
        .at_once()
}
