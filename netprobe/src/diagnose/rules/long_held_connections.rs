//! Quiet clients hold connections, and with them workers, while others wait in the queue.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, host},
    in_each,
    window::{Netns, Queue, Window, ratio},
};
use crate::{
    observe::diag::{Clients, QUIET_MS},
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "long-held-connections",
    title: "quiet connections hold the workers",
    check,
    explanation: Explanation {
        symptom: "All workers of a server are busy, though there is little traffic; new clients wait.",
        cause: "A server with a worker for each connection (Apache prefork, php-fpm, many databases) cannot serve anybody \
                else while a client keeps its connection open without asking for anything. No counter of the kernel shows \
                that; sock_diag knows when data last went over each connection.",
        recognised: "A listener's queue does not empty, while at least half of its established connections carried no data \
                     for ten seconds.",
        fixes: &[
            (
                "shorter keep-alive and read timeouts",
                "clients connect more often",
            ),
            ("an event-driven proxy in front", "one more hop"),
        ],
    },
};

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let Some(sockets) = netns.after.sockets.as_ref() else {
            return Ok(Vec::new());
        };
        let held = sockets.clients.iter().filter_map(|(port, clients)| {
            let queue = netns.queue(None, *port)?;
            let waits = queue.depths.iter().all(|depth| *depth > 0) && queue.depths.len() >= 4;
            let is_quiet = clients.quiet > queue.listener.queue
                && ratio(clients.quiet.into(), clients.established.into()) >= 0.5;
            (waits && is_quiet).then(|| describe(window, netns, queue, clients))
        });
        Ok(held.collect())
    })
}

fn describe(window: &Window, netns: &Netns, queue: &Queue, clients: &Clients) -> Finding {
    let port = queue.listener.port;
    let longest_s = clients.quietest_ms / 1000;
    let mut heaviest: Vec<_> = clients.quiet_clients.iter().collect();
    heaviest.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    finding(
        RULE.id,
        Severity::Warning,
        Confidence::Medium,
        format!(
            "{} of {} connections at port {port}{} are quiet for over {} s (up to {longest_s} s) while {} wait to be accepted",
            clients.quiet,
            clients.established,
            netns.place(),
            QUIET_MS / 1000,
            queue.listener.queue
        ),
    )
    .counted(
        format!("{} of {} carried no data for {} s", clients.quiet, clients.established, QUIET_MS / 1000),
        clients.quiet.into(),
        "connections",
        "sock_diag tcp_info",
    )
    .counted(
        format!("{} connections wait in the queue", queue.listener.queue),
        queue.listener.queue.into(),
        "connections",
        "sock_diag",
    )
    .hits([window.affected_listener(netns, &queue.listener)])
    .hits(heaviest.into_iter().take(3).map(|(address, _)| host("source", *address, netns.inode)))
    .application(
        "shorten the server's keep-alive and read timeouts, so that quiet clients give their worker back",
        &[],
        "clients connect more often",
    )
    .command("see which they are: netprobe lifetimes --open --longest", "none")
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, observe::diag::Clients};

    #[test]
    fn quiet_connections_matter_only_while_others_wait() {
        for (depth, expected) in [(3, true), (0, false)] {
            let mut window = quiet();
            window.listen(9000, 10, &[depth; 10]);
            let clients = Clients {
                established: 20,
                quiet: 17,
                quietest_ms: 60_000,
                ..Clients::default()
            };
            window.sockets().clients.insert(9000, clients);
            let found = window.ids().contains(&"long-held-connections");
            assert_eq!(found, expected, "{depth}");
        }
    }
}
