//! Servers that keep a descriptor in reserve, as libuv does, to accept whom they cannot serve, and close: nobody waits in
//! their queue.

use super::super::{
    super::{
        places,
        window::{Netns, Window, ratio},
    },
    resets::CLOSED_EARLY,
};
use crate::observe::processes::Process;

/// Fewer are clients that leave early, as some of any service do.
const LEAST: u64 = 5;
/// So are less than this part of the connections.
const MUCH: f64 = 0.05;

/// The listener of a process that most connections were closed unserved at, its port, and how many they were.
pub(super) fn most<'a>(window: &'a Window, holder: &Process) -> Option<(&'a Netns, u16, u64)> {
    let listeners = window.namespaces.iter().flat_map(|netns| {
        let table = netns.after.sockets.as_ref();
        let listeners = table.into_iter().flat_map(|table| &table.listeners);
        listeners.map(move |listener| (netns, listener))
    });
    let own = listeners.filter(|(_, listener)| holder.sockets.contains(&listener.ino));
    let closed = own.map(|(netns, listener)| {
        let [inode, port] = [netns.inode.to_string(), listener.port.to_string()];
        let by_cause = CLOSED_EARLY.map(|cause| {
            let group = [("cause", cause), ("netns", &inode), ("service_port", &port)];
            window.events.count("resets", &group)
        });
        let unanswered = unanswered(window, netns, listener.port);
        (
            netns,
            listener.port,
            by_cause.iter().sum::<u64>() + unanswered,
        )
    });
    let many = closed.filter(|(netns, port, closed)| {
        let all = places::connections(window, netns, *port);
        *closed >= LEAST && ratio(*closed, all.max(*closed)) >= MUCH
    });
    many.max_by_key(|(.., closed)| *closed)
}

/// Connections that a server closed in order and sent nothing to, where some were seen, of those that ended.
fn unanswered(window: &Window, netns: &Netns, port: u16) -> u64 {
    let ends = window.events.within("lifetimes", netns.inode);
    let ends = ends.filter(|end| end.is("role", "server") && end.small("sport") == Some(port));
    let (mut unanswered, mut all) = (0, 0);
    for end in ends {
        let is_closed = end.is("result", "fin") && end.is("closer", "local");
        unanswered += u64::from(is_closed && end.number("bytes_sent") == Some(0));
        all += 1;
    }
    let [inode, port] = [netns.inode.to_string(), port.to_string()];
    let group = [
        ("role", "server"),
        ("netns", &inode),
        ("service_port", &port),
    ];
    let ended = window.events.count("lifetimes", &group);
    (ended * unanswered).checked_div(all).unwrap_or(0)
}
