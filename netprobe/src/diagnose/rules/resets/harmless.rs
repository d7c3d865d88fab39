//! Resets that nobody misses anything for. The last words of a protocol (close_notify of TLS, QUIT, Terminate) are said to
//! an end that has closed already: HTTPS servers that close after each answer, or after some time without requests, see
//! this all day. And a health check closes as soon as it is connected, when the greeting of the service comes.

use std::collections::BTreeMap;

use super::{
    super::super::{
        events::port_of,
        farewells::is_farewell,
        finding::{finding, somewhere},
        places,
        window::{Netns, Window, ratio},
    },
    LEAST, MUCH, RULE, Reset, services,
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// Why what comes after the end, or is unread at it, is reset.
const CAUSES: [&str; 2] = ["data-after-close", "unread-data"];
/// What comes after such a reset belongs to no connection any more.
const FOLLOWING: [&str; 2] = ["time-wait", "unexpected-ack"];

/// Resets at a service that are harmless.
pub(super) struct Harmless {
    count: u64,
    /// How many were looked at, and are known for what they are.
    seen: usize,
    farewells: usize,
    checks: usize,
}

/// The services of a namespace whose resets are harmless, but for fewer than clients that leave early have.
pub(super) fn at_services(window: &Window, netns: &Netns) -> BTreeMap<u16, Harmless> {
    let mut ports = BTreeMap::<u16, u64>::new();
    let inode = netns.inode.to_string();
    for cause in CAUSES {
        let group = [("cause", cause), ("netns", inode.as_str())];
        for total in window.events.groups("resets", &group) {
            if let Some(port) = port_of(total, "service_port") {
                *ports.entry(port).or_default() += total.events;
            }
        }
    }
    let harmless = ports.into_iter().filter_map(|(port, count)| {
        let harmless = Harmless::of(window, netns, (port, count));
        let connections = places::connections(window, netns, port).max(count);
        harmless.is_all(connections).then_some((port, harmless))
    });
    harmless.collect()
}

/// Whether the cause of a reset may be one of those, or what follows them.
pub(super) fn explain(cause: &str) -> bool {
    CAUSES.contains(&cause) || FOLLOWING.contains(&cause)
}

impl Harmless {
    fn of(window: &Window, netns: &Netns, (port, count): (u16, u64)) -> Self {
        let resets = window.events.within("resets", netns.inode);
        let resets = resets.filter(|reset| {
            [reset.small("sport"), reset.small("dport")].contains(&Some(port))
                && CAUSES.iter().any(|cause| reset.is("cause", cause))
        });
        let mut harmless = Self {
            count,
            seen: 0,
            farewells: 0,
            checks: 0,
        };
        let ended = window.events.ended();
        let are_all = ended.are_all(window.events.count("lifetimes", &[]));
        for reset in resets {
            if is_farewell(reset) {
                harmless.seen += 1;
                harmless.farewells += 1;
                continue;
            }
            // Beside very many other connections it says nothing that the end of this one was not looked at.
            let was_check = ended.was_check(reset);
            harmless.seen += usize::from(was_check.is_some() || are_all);
            harmless.checks += usize::from(was_check == Some(true));
        }
        harmless
    }

    fn recognised(&self) -> usize {
        self.farewells + self.checks
    }

    /// Whether so few of them are anything else that it is nothing.
    fn is_all(&self, connections: u64) -> bool {
        if self.recognised() == 0 || self.recognised() * 2 < self.seen {
            return false;
        }
        let others = ratio((self.seen - self.recognised()) as u64, self.seen as u64);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let [count, least, connections] = [self.count, LEAST, connections].map(|n| n as f64);
        let others = others * count;
        others < least || others < MUCH * connections
    }

    /// What they are, and what most of those that were looked at were recognised by.
    fn words(&self) -> [&'static str; 2] {
        if self.farewells >= self.checks {
            [
                "one end said its farewell, as the close_notify of TLS, to an end that had closed already",
                "were of data that is as long as a farewell, and no request",
            ]
        } else {
            [
                "clients closed as soon as they were connected, without a word, as health checks do, and the greeting of \
                 the service came after that",
                "were of connections that a client closed within a second and had sent nothing on",
            ]
        }
    }
}

/// A note for each service, with how many resets it is of.
pub(super) fn check(
    window: &Window,
    netns: &Netns,
    services: &BTreeMap<u16, Harmless>,
) -> Vec<(u64, Finding)> {
    let notes = services.iter().filter_map(|(port, harmless)| {
        let connections = places::connections(window, netns, *port);
        Reset::weigh(harmless.count, connections, false)?;
        Some((harmless.count, describe(window, netns, *port, harmless)))
    });
    notes.collect()
}

fn describe(window: &Window, netns: &Netns, port: u16, harmless: &Harmless) -> Finding {
    let hits = CAUSES
        .iter()
        .flat_map(|cause| services(window, netns, cause));
    let hit = hits.filter(|hit| hit.port == Some(port)).take(1);
    let hits: Vec<_> = hit.collect();
    let place = hits.first().map_or_else(
        || format!("port {port}"),
        |hit| format!("{} {}", hit.kind, hit.name),
    );
    let [what, how] = harmless.words();
    let found = finding(
        RULE.id,
        Severity::Info,
        Confidence::High,
        format!(
            "{} resets{} ({place}) in {:.0} s are harmless: {what}",
            harmless.count,
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!(
            "{} of {} that were looked at {how}",
            harmless.farewells.max(harmless.checks),
            harmless.seen
        ),
        harmless.recognised() as u64,
        "resets",
        "resets",
    );
    let found = if hits.is_empty() {
        found.hits([somewhere(netns)])
    } else {
        found.hits(hits)
    };
    found.command("nothing needs to be done", "none")
}
