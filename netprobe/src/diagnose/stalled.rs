//! Clients that believe to be connected with a listener of this machine, which does not know them: its accept queue was
//! full when their last ACK came. They send the same data again and again. The queue may be full only for the moment that
//! they do so, between two looks.

use std::collections::HashSet;

use super::{
    events::Event,
    overflow::Overflow,
    places::{self, End},
    window::{Netns, Queue, Window},
};
use crate::report::diagnosis::Finding;

/// Causes of retransmissions of data.
pub(super) const DATA: [&str; 4] = ["rto", "fast", "tlp", "other"];
/// As often goes out what nobody acknowledges; what is lost now and then does not.
pub(super) const LATE: u64 = 3;

/// How many such clients a queue has, where they are more than it holds, so that they fill it all at once; 0 otherwise.
pub(super) fn clients(window: &Window, home: &Netns, queue: &Queue) -> u64 {
    let listener = &queue.listener;
    let again = window.events.of("retransmits").iter();
    let to_it = again.filter(|event| {
        event.small("dport") == Some(listener.port)
            && event.number("attempt") >= Some(LATE)
            && is_data(event)
    });
    let ends: HashSet<End> = to_it
        .filter_map(|event| {
            let (from, to) = places::ends(event)?;
            let mut all = window.namespaces.iter();
            let seen_in = all.find(|netns| Some(netns.inode) == event.netns())?;
            let (there, found) = places::listener(window, seen_in, to)?;
            (there.inode == home.inode && found.ino == listener.ino).then_some(from)
        })
        .collect();
    let count = ends.len() as u64;
    if count <= u64::from(listener.limit) || does_send_again(window, home, listener.port) {
        return 0;
    }
    count
}

/// Whether the server has to send again, too: then the way between loses what both send.
fn does_send_again(window: &Window, home: &Netns, port: u16) -> bool {
    let mut own = window.events.within("retransmits", home.inode);
    own.any(|event| event.small("sport") == Some(port) && is_data(event))
}

/// Whether it is data that was sent again.
pub(super) fn is_data(event: &Event) -> bool {
    DATA.iter().any(|cause| event.is("cause", cause))
}

/// Adds them to what is said of their listener.
pub(super) fn add(found: Finding, window: &Window, netns: &Netns, overflow: &Overflow) -> Finding {
    let queue = overflow.queue.as_ref();
    let count = queue.map_or(0, |queue| clients(window, netns, queue));
    if count == 0 {
        return found;
    }
    let mut found = found.counted(
        format!("{count} clients that believe to be connected send the same data again and again, all at once"),
        count,
        "clients",
        "tcp_retransmit_skb",
    );
    // That it was not seen full says less.
    found.evidence.rotate_right(1);
    found
}
