//! Connections that were accepted, and whose requests nobody reads.

use super::{
    super::super::{
        finding::finding,
        sizing::{counted, spoken},
        window::{Netns, Queue, Window},
    },
    RULE,
};
use crate::{
    observe::diag::{Clients, UNREAD_MS},
    report::diagnosis::{Confidence, Finding, Severity},
};

/// Fewer are clients of their own kind.
const LEAST: u32 = 3;

/// The listeners of a namespace whose accepted connections are not read.
pub(super) fn of(window: &Window, netns: &Netns) -> impl Iterator<Item = Finding> {
    let sockets = netns.after.sockets.iter();
    let clients = sockets.flat_map(|sockets| &sockets.clients);
    clients.filter_map(|(port, clients)| {
        let queue = netns.queue(None, *port)?;
        (clients.unread >= LEAST).then(|| describe(window, netns, queue, clients))
    })
}

fn describe(window: &Window, netns: &Netns, queue: &Queue, clients: &Clients) -> Finding {
    let port = queue.listener.port;
    let holder = window.holder(&queue.listener);
    let comm = holder.map_or("the application", |process| process.comm.as_str());
    let waits_s = f64::from(clients.unread_ms) / 1000.0;
    let severity = if clients.unread >= clients.served {
        Severity::Warning
    } else {
        Severity::Info
    };
    let found = finding(
        RULE.id,
        severity,
        Confidence::Medium,
        format!(
            "{comm} at port {port}{} has accepted {} and does not read what they sent, for up to {}: its workers are busy or \
             blocked",
            netns.place(),
            counted(clients.unread.into(), "connection"),
            spoken(waits_s),
        ),
    )
    .counted(
        format!(
            "{} with data that arrived and was not read for {} s or more (Recv-Q); over {} data went since",
            counted(clients.unread.into(), "accepted connection"),
            UNREAD_MS / 1000,
            clients.served
        ),
        clients.unread.into(),
        "connections",
        "sock_diag tcp_info",
    )
    .hits([window.affected_listener(netns, &queue.listener)]);
    let pid = holder.map(|process| process.pid);
    found
        .command(
            match pid {
                Some(pid) => format!(
                    "see what its workers wait for: netprobe flame offcpu --pid {pid}, or the stacks of its own kind (jstack {pid}, \
                     gdb -p {pid})"
                ),
                None => "see what its workers wait for: netprobe flame offcpu --netns NETNS".to_owned(),
            },
            "none",
        )
        .application(
            "if they are merely too few: more workers (threads of its pool, such as maxThreads), or have it accept no more than \
             it serves, so that clients are sent elsewhere instead of waiting here",
            &[],
            "each worker takes memory, and perhaps a connection of the database behind it",
        )
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, report::diagnosis::Severity};

    #[test]
    fn requests_that_nobody_reads_are_told_with_who_should() {
        let told = |unread: u32, served: u32| {
            let mut window = quiet();
            window.listen(8080, 128, &[0; 10]);
            window.serving(8080, unread + served, 0);
            let clients = window.sockets().clients.get_mut(&8080).unwrap();
            (clients.unread, clients.served) = (unread, served);
            clients.unread_ms = 12_000;
            window.findings()
        };
        let found = told(50, 5).remove(0);
        assert_eq!(
            (found.id, found.severity),
            ("long-held-connections", Severity::Warning)
        );
        let said = "server at port 8080 has accepted 50 connections and does not read what they sent, for up to 12 s";
        assert!(found.summary.contains(said), "{}", found.summary);
        assert!(found.fixes[0].text.contains("--pid 100"), "{found:?}");
        assert_eq!(told(5, 50)[0].severity, Severity::Info);
        assert!(told(2, 0).is_empty());
    }
}
