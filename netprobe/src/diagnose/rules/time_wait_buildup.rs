//! Connections in TIME_WAIT pile up, and will soon take all local ports of a destination.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each, places,
    ports::{Range, connects, fullest, reuses, to_service},
    sizing::PERSIST,
    window::{Netns, Window, endpoint, ratio},
};
use crate::{
    observe::diag::{Destination, Ports},
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "time-wait-buildup",
    title: "connections in TIME_WAIT pile up",
    check,
    explanation: Explanation {
        symptom: "Tens of thousands of connections in TIME_WAIT; port-search-cost and ephemeral-ports-exhausted follow.",
        cause: "The end that closes first waits 60 s (TCP_TIMEWAIT_LEN) in TIME_WAIT, so that late packets are not taken \
                for those of a new connection: tcp_time_wait(). At a server that costs memory; at a client each one also \
                holds a local port of that destination.",
        recognised: "The socket tables hold over half of a destination's local ports in TIME_WAIT, or over half of \
                     tcp_max_tw_buckets is used. IPv4 connections of IPv6 sockets are counted as what they are: IPv4.",
        fixes: &[
            (
                "keep connections open, or let the other side close first",
                "none",
            ),
            (
                "net.ipv4.tcp_tw_reuse=1 (or 2, for loopback): connect() takes such ports again after 1 s; needs timestamps",
                "only for outgoing connections; never tcp_tw_recycle, which broke clients behind NAT and is gone since 4.12",
            ),
        ],
    },
};

const MUCH: f64 = 0.5;
/// Ports that are held, of those that there are to choose from; those bound by a program itself, or before the range was
/// changed, are beyond these.
fn of_range(held: u32, usable: u32) -> String {
    if held <= usable {
        format!("{held} of {usable}")
    } else {
        format!("{held} (more than the {usable} of the range)")
    }
}

/// Fewer are no build-up anywhere, however small the range.
const LEAST: u32 = 20;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let waiting = netns.gauge("sockstat.TCP.tw")?;
        let buckets = netns
            .sysctl("net.ipv4.tcp_max_tw_buckets")
            .unwrap_or(u64::MAX);
        if let Some((range, (destination, ports))) = Range::of(netns).zip(fullest(netns)) {
            let held = ratio(ports.time_wait.into(), range.usable().into());
            if held >= MUCH && ports.time_wait >= LEAST {
                let place = endpoint(destination.remote, destination.port);
                let is_full = ports.used() >= range.usable();
                let load = Load::of(window, netns, (&destination, is_full));
                let found = finding(
                    RULE.id,
                    // Ports that are taken again stop nobody, nor do those that nobody needs.
                    if load == Load::Over || reuses(netns, &destination) {
                        Severity::Info
                    } else {
                        Severity::Warning
                    },
                    if matches!(load, Load::Unseen | Load::Left) {
                        Confidence::Medium
                    } else {
                        Confidence::High
                    },
                    format!(
                        "{} local ports for {place}{} wait in TIME_WAIT: {}",
                        of_range(ports.time_wait, range.usable()),
                        netns.place(),
                        load.words()
                    ),
                )
                .counted(
                    format!(
                        "{} ports in TIME_WAIT, {} in use",
                        ports.time_wait, ports.open
                    ),
                    ports.time_wait.into(),
                    "ports",
                    "sock_diag",
                )
                .hits([Window::affected_destination(
                    netns,
                    destination.remote,
                    destination.port,
                )]);
                return Ok(vec![client(found, window, netns)]);
            }
        }
        if ratio(waiting, buckets) >= MUCH && waiting >= u64::from(LEAST) {
            return Ok(vec![server(netns, waiting, buckets)]);
        }
        Ok(Vec::new())
    })
}

/// What a load does that holds ports in TIME_WAIT.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// It goes on.
    On,
    /// Connections go on, but it is the other side that closes those first.
    Left,
    /// Nobody connects any more: what it has left expires.
    Over,
    /// No connect was seen, but those that find no port are not seen here.
    Unseen,
}

impl Load {
    fn of(window: &Window, netns: &Netns, (destination, is_full): (&Destination, bool)) -> Self {
        let [before, after] = [&netns.before, &netns.after].map(|snapshot| {
            let sockets = snapshot.sockets.as_ref()?;
            Some(sockets.ports.get(destination).map_or(0, Ports::used))
        });
        let is_growing = before
            .zip(after)
            .is_none_or(|(before, after)| after > before);
        let service = (destination.remote, destination.port);
        let connects = if window.watched_required("connects").is_ok() {
            to_service(window, netns, service)
        } else {
            connects(window, netns, service).0
        };
        if is_growing || connects > 0 {
            if is_left(window, netns, destination) {
                Self::Left
            } else {
                Self::On
            }
        } else if is_full && window.watched("connects").is_err() {
            Self::Unseen
        } else {
            Self::Over
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::On => "this side closes first",
            Self::Left => {
                "earlier connections left them; of those that end now the other side closes first"
            }
            Self::Over => "nobody connects any more, and they are free again within 60 s",
            Self::Unseen => {
                "no connect was seen, so either the load is over or none finds a port, which cannot be seen here"
            }
        }
    }
}

/// Fewer ends of connections tell nothing.
const ENDS: usize = 5;

/// Whether none of the connections to a destination that ended while they were looked at went to TIME_WAIT here.
fn is_left(window: &Window, netns: &Netns, destination: &Destination) -> bool {
    let ends = window.events.within("lifetimes", netns.inode);
    let service = (destination.remote, destination.port);
    let ends: Vec<_> = ends
        .filter(|end| {
            end.is("role", "client")
                && !end.is("result", "failed")
                && places::ends(end).is_some_and(|(_, remote)| remote == service)
        })
        .collect();
    ends.len() >= ENDS && !ends.iter().any(|end| end.is("time_wait", "yes"))
}

/// Of the connections that went to TIME_WAIT while they were looked at, how many did so as client, and how many in all.
fn closers(window: &Window, netns: &Netns) -> (usize, usize) {
    let ends = window.events.within("lifetimes", netns.inode);
    let waiting: Vec<_> = ends.filter(|end| end.is("time_wait", "yes")).collect();
    let clients = waiting.iter().filter(|end| end.is("role", "client"));
    (clients.count(), waiting.len())
}

fn client(found: Finding, window: &Window, netns: &Netns) -> Finding {
    let reuse = netns.sysctl("net.ipv4.tcp_tw_reuse").unwrap_or(0);
    let timestamps = netns.sysctl("net.ipv4.tcp_timestamps").unwrap_or(1);
    let (clients, looked_at) = closers(window, netns);
    let found = found.counted(
        format!("tcp_tw_reuse is {reuse}, tcp_timestamps {timestamps}"),
        reuse,
        "",
        "sysctl",
    );
    let found = if looked_at == 0 {
        found
    } else {
        found.counted(
            format!("of {looked_at} connections that went to TIME_WAIT as they were looked at, {clients} did so as client"),
            looked_at as u64,
            "connections",
            "lifetimes",
        )
    };
    let found = found.application(
            "keep connections open, or let the server close first: TIME_WAIT holds a port only at the end that closes first",
            &[("keepalive", "on".to_owned())],
            "the other side must allow as many open connections",
    );
    if reuse == 1 {
        return found;
    }
    let mut set = vec![("net.ipv4.tcp_tw_reuse", "1".to_owned())];
    if timestamps == 0 {
        set.push(("net.ipv4.tcp_timestamps", "1".to_owned()));
    }
    found.sysctl(
        format!("let connect() take ports again that wait for more than 1 s; {PERSIST}; never tcp_tw_recycle"),
        &set,
        "a middlebox that strips timestamps may mix up old and new connections",
    )
}

fn server(netns: &Netns, waiting: u64, buckets: u64) -> Finding {
    finding(
        RULE.id,
        Severity::Warning,
        Confidence::Medium,
        format!(
            "{waiting} connections{} wait in TIME_WAIT, of {buckets} that have room: this side closes first",
            netns.place()
        ),
    )
    .counted(format!("{waiting} of {buckets}"), waiting, "connections", "/proc/net/sockstat tw")
    .hits([somewhere(netns)])
    .application(
        "let clients close first, or keep connections open: at a server TIME_WAIT costs memory, not ports",
        &[("keepalive", "on".to_owned())],
        "idle connections may hold workers",
    )
}

#[cfg(test)]
mod tests {
    use super::of_range;
    use crate::{
        diagnose::{Verdict, fixtures::quiet, window::Window},
        report::{Value, diagnosis::Severity},
    };

    #[test]
    fn ports_that_wait_are_a_build_up_and_open_ones_are_not() {
        for (time_wait, open, expected) in [(20_000, 10, true), (10, 20_000, false)] {
            let mut window = quiet();
            window.hold_ports(80, time_wait, open, 0);
            window.netns().before = window.netns().after.clone();
            let found = window.ids().contains(&"time-wait-buildup");
            assert_eq!(found, expected, "{time_wait}");
        }
    }

    #[test]
    fn ports_beyond_the_range_are_none_of_it() {
        assert_eq!(of_range(40, 51), "40 of 51");
        assert_eq!(of_range(127, 51), "127 (more than the 51 of the range)");
    }

    #[test]
    fn what_a_load_has_left_behind_is_a_note() {
        let mut window = quiet();
        window.set("net.ipv4.ip_local_port_range", "30000 31999");
        window.hold_ports(80, 2000, 0, 1000);
        window.netns().before.sockets = window.netns().after.sockets.clone();
        let found = window.findings();
        assert_eq!(
            (found[0].id, found[0].severity),
            ("time-wait-buildup", Severity::Info)
        );
        assert!(
            found[0].summary.contains("nobody connects any more"),
            "{}",
            found[0].summary
        );
        assert!(
            found[0]
                .evidence
                .iter()
                .all(|seen| !seen.text.contains("of 0 "))
        );
        // Where a search that fails is not seen, nobody knows; it does not fail while some are free.
        let mut blind = window.clone();
        blind.blind("connects");
        let found = &blind.findings()[0];
        assert_eq!(found.severity, Severity::Warning);
        assert!(
            found.summary.contains("cannot be seen here"),
            "{}",
            found.summary
        );
        blind.set("net.ipv4.ip_local_port_range", "30000 32999");
        assert_eq!(blind.findings()[0].severity, Severity::Info);
        // As many come as go.
        window.total("connects", 300, &[("dport", Value::Unsigned(80))]);
        assert_eq!(window.findings()[0].severity, Severity::Warning);
    }

    #[test]
    fn what_fills_the_ports_comes_before_the_search_that_it_makes_long() {
        let told = |time_wait: &'static str| {
            let mut window = quiet();
            window.set("net.ipv4.ip_local_port_range", "30000 31999");
            window.set("net.ipv4.tcp_tw_reuse", "0");
            window.hold_ports(80, 1600, 2, 800);
            window.netns().before.sockets = window.netns().after.sockets.clone();
            let service = [
                ("daddr", Value::Ip([10, 0, 0, 2].into())),
                ("dport", Value::Unsigned(80)),
            ];
            let search = [("search_ns", Value::Unsigned(700_000))];
            window.event("connects", 300, &[&service[..], &search].concat());
            window.total("connects", 300, &[("dport", Value::Unsigned(80))]);
            let life = [
                ("role", Value::Word("client")),
                ("result", Value::Word("fin")),
                ("time_wait", Value::Word(time_wait)),
                ("saddr", Value::Ip([10, 0, 0, 1].into())),
                ("sport", Value::Unsigned(30_001)),
            ];
            window.event("lifetimes", 300, &[&service[..], &life].concat());
            window.told()
        };
        let [search, waiting] = ["port-search-cost", "time-wait-buildup"];
        assert_eq!(told("yes")[..2], [(waiting, None), (search, Some(waiting))]);
        // Earlier connections left them: nothing that goes on now fills them.
        assert_eq!(told("no")[..2], [(search, None), (waiting, Some(search))]);
    }

    #[test]
    fn a_server_is_measured_by_its_buckets() {
        let mut window = quiet();
        window.grow(&[("sockstat.TCP.tw", 50_000)]);
        assert!(window.ids().is_empty());
        window.grow(&[("sockstat.TCP.tw", 50_000)]);
        assert_eq!(window.ids(), ["time-wait-buildup"]);
    }

    #[test]
    fn ports_that_may_be_taken_again_are_no_warning() {
        let severity = |window: &Window| match window.verdict("time-wait-buildup") {
            Verdict::Found(found) => found[0].severity,
            verdict => panic!("{verdict:?}"),
        };
        let mut window = quiet();
        window.set("net.ipv4.ip_local_port_range", "20000 20999");
        window.hold_ports(80, 900, 1, 450);
        window.set("net.ipv4.tcp_tw_reuse", "0");
        assert_eq!(severity(&window), Severity::Warning);
        window.set("net.ipv4.tcp_tw_reuse", "1");
        assert_eq!(severity(&window), Severity::Info);
        // Nor will they ever be used up.
        assert_eq!(window.ids(), ["time-wait-buildup"]);
        window.set("net.ipv4.tcp_timestamps", "0");
        assert_eq!(severity(&window), Severity::Warning);
    }
}
