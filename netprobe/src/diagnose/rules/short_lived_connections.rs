//! Every request opens a connection of its own.

use super::super::{
    Explanation, Rule, Verdict,
    events::{Event, port_of, value_of},
    finding::{finding, named},
    in_each,
    sizing::{lasting, median},
    window::{Gap, Netns, Window, ratio},
};
use crate::{
    observe::snapshot::Snapshot,
    report::{
        Total, Value,
        diagnosis::{Confidence, Finding, Severity},
    },
};

pub(super) static RULE: Rule = Rule {
    id: "short-lived-connections",
    title: "every request opens a connection",
    check,
    explanation: Explanation {
        symptom: "Many new connections per second, each with one small request; ports and TIME_WAIT fill, latency has a \
                  handshake in it.",
        cause: "The client does not keep connections open: no keep-alive, or a proxy that speaks HTTP/1.0 to its upstream \
                (nginx does by default).",
        recognised: "The lifetimes probe saw most connections of a service end within a second after little data. By itself \
                     nothing fails, so it is a note.",
        fixes: &[(
            "keep-alive on that hop; nginx: `keepalive N` in the upstream, proxy_http_version 1.1, an empty Connection header",
            "idle connections hold workers of servers that have one per connection",
        )],
    },
};

/// Fewer per second are not worth a word.
const MANY: f64 = 20.0;
const SHORT_NS: u64 = 1_000_000_000;
const LITTLE: u64 = 64 << 10;

/// So large a part of them are most.
const MOST: f64 = 0.8;

/// Fewer say nothing of the others.
const LEAST_SEEN: usize = 10;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        window.watched_required("lifetimes")?;
        let inode = netns.inode.to_string();
        let group = [("netns", inode.as_str()), ("result", "fin")];
        let mut busiest = None::<(&Total, u16, &str)>;
        for total in window.events.groups("lifetimes", &group) {
            let port = port_of(total, "service_port");
            let role = match value_of(total, "role") {
                Value::Word(role) => Some(*role),
                _ => None,
            };
            if let Some((port, role)) = port.zip(role)
                && busiest.is_none_or(|(found, ..)| total.events > found.events)
            {
                busiest = Some((total, port, role));
            }
        }
        let Some((total, port, role)) = busiest else {
            return Ok(Vec::new());
        };
        if window.rate(total.events) < MANY {
            return Ok(Vec::new());
        }
        if ends(window, netns, (port, role)).count() < LEAST_SEEN {
            return Err(Gap(format!(
                "{} connections with port {port} ended, but too few of them were looked at, as there was too much else",
                total.events
            )));
        }
        let found = describe(window, netns, (total.events, port, role))?;
        Ok(found.into_iter().collect())
    })
}

/// How many connections of a service are open.
fn open(snapshot: &Snapshot, (port, role): (u16, &str)) -> u64 {
    let table = snapshot.sockets.as_ref();
    let open = table.map_or(0, |table| {
        if role == "server" {
            table.clients.get(&port).map_or(0, |clients| clients.open)
        } else {
            table.outgoing.get(&port).copied().unwrap_or(0)
        }
    });
    open.into()
}

/// The ends in order of connections of a service that were looked at: what failed was none.
fn ends<'a>(
    window: &'a Window,
    netns: &'a Netns,
    (port, role): (u16, &'a str),
) -> impl Iterator<Item = &'a Event> {
    let service = if role == "server" { "sport" } else { "dport" };
    let ends = window.events.within("lifetimes", netns.inode);
    ends.filter(move |event| {
        event.small(service) == Some(port) && event.is("role", role) && event.is("result", "fin")
    })
}

/// How long connections of a service live, in microseconds and in words.
struct Life {
    micros: u64,
    text: String,
    how: String,
}

/// How long most of the `count` that ended lived, if that is not long.
fn life(
    window: &Window,
    netns: &Netns,
    (count, port, role): (u64, u16, &str),
) -> Result<Option<Life>, Gap> {
    let seen: Vec<(Option<u64>, u64)> = ends(window, netns, (port, role))
        .filter_map(|event| {
            let bytes = event.number("bytes_sent")? + event.number("bytes_received")?;
            Some((event.number("duration_ns"), bytes))
        })
        .collect();
    let little = seen.iter().filter(|(_, bytes)| *bytes < LITTLE).count();
    let known: Vec<u64> = seen.iter().filter_map(|(duration, _)| *duration).collect();
    // How long one lived is not known where it was open before the window, or where so many are opened that only some are
    // followed: those are like the others.
    let unknown = ratio((seen.len() - known.len()) as u64, seen.len() as u64);
    let [before, after] = [&netns.before, &netns.after].map(|at| open(at, (port, role)));
    let old = ratio(before.min(count), count).min(unknown);
    if ratio(little as u64, seen.len() as u64) < MOST || old > 1.0 - MOST {
        return Ok(None);
    }
    if known.len() >= LEAST_SEEN {
        let short = known.iter().filter(|duration| **duration < SHORT_NS);
        let short = ratio(short.count() as u64, known.len() as u64);
        let micros = median(&known).unwrap_or(0) / 1000;
        let text = lasting(micros);
        return Ok((short * (1.0 - old) >= MOST).then(|| Life {
            micros,
            how: format!("half of them lived no longer than {text}"),
            text,
        }));
    }
    if netns.before.sockets.is_none() || netns.after.sockets.is_none() {
        return Err(Gap(format!(
            "{count} connections with port {port} ended, but how long they lived is known of too few"
        )));
    }
    // Little's law; where none was open, one is the most that was overlooked.
    let open = u64::midpoint(before, after).max(1);
    let mean_s = ratio(open, count) * window.seconds;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    let micros = (mean_s * 1e6) as u64;
    let text = format!("{} on average", lasting(micros));
    Ok((micros * 1000 < SHORT_NS).then(|| Life {
        micros,
        how: format!("{open} open at once, on average, of {count} that ended: each lived {text}"),
        text,
    }))
}

fn describe(
    window: &Window,
    netns: &Netns,
    (count, port, role): (u64, u16, &str),
) -> Result<Option<Finding>, Gap> {
    let Some(Life { micros, text, how }) = life(window, netns, (count, port, role))? else {
        return Ok(None);
    };
    let rate = window.rate(count);
    let mut service = named(
        if role == "server" {
            "listener"
        } else {
            "destination"
        },
        format!("port {port}"),
        Some(netns.inode),
    );
    service.port = Some(port);
    let side = if role == "server" { "at" } else { "to" };
    Ok(Some(
        finding(
            RULE.id,
            Severity::Info,
            Confidence::High,
            format!(
                "connections {side} port {port}{} live {text}: {rate:.0} new ones each second, one for each request",
                netns.place()
            ),
        )
        .counted(
            format!("{count} connections came and went, {rate:.1}/s"),
            count,
            "connections",
            "lifetimes",
        )
        .counted(how, micros, "us", "lifetimes")
        .measured(
            format!("kept open, they would save {rate:.0} handshakes/s and {:.0} ports in TIME_WAIT", rate * 60.0),
            rate * 60.0,
            "ports",
            "connections/s x 60 s",
        )
        .hits([service])
        .application(
            "use keep-alive on that hop (nginx to its upstream: keepalive N, proxy_http_version 1.1, an empty Connection \
             header)",
            &[("keepalive", "on".to_owned())],
            "idle connections hold workers of servers that have one per connection",
        ),
    ))
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{Verdict, fixtures::quiet, window::Window},
        report::{Value, diagnosis::Severity},
    };

    fn lives(duration_ns: u64, count: u64) -> Window {
        let mut window = quiet();
        let role = ("role", Value::Word("server"));
        let group = [
            ("result", Value::Word("fin")),
            role.clone(),
            ("service_port", Value::Unsigned(80)),
        ];
        window.total("lifetimes", count, &group);
        let life = [
            role,
            ("result", Value::Word("fin")),
            ("sport", Value::Unsigned(80)),
            ("duration_ns", Value::Unsigned(duration_ns)),
            ("bytes_sent", Value::Unsigned(500)),
            ("bytes_received", Value::Unsigned(100)),
        ];
        window.event("lifetimes", 100, &life);
        window
    }

    #[test]
    fn many_short_ones_are_a_note_and_long_or_few_ones_nothing() {
        let findings = lives(400_000, 5000).findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("short-lived-connections", Severity::Info)
        );
        assert_eq!(findings[0].affected[0].port, Some(80));
        assert!(lives(30_000_000_000, 5000).ids().is_empty());
        assert!(lives(400_000, 50).ids().is_empty());
    }

    #[test]
    fn what_failed_or_was_open_before_the_window_was_not_short() {
        // A client without ports: nothing begins, and what ends is older than the window.
        let mut window = lives(400_000, 5000);
        window.events.forget("lifetimes");
        for (result, duration) in [("fin", None), ("failed", Some(44_000))] {
            let life = [
                ("role", Value::Word("server")),
                ("result", Value::Word(result)),
                ("sport", Value::Unsigned(80)),
                ("bytes_sent", Value::Unsigned(0)),
                ("bytes_received", Value::Unsigned(0)),
                (
                    "duration_ns",
                    duration.map_or(Value::Unknown, Value::Unsigned),
                ),
            ];
            window.event("lifetimes", 100, &life);
        }
        let before = window.netns().before.sockets.as_mut().unwrap();
        before.clients.entry(80).or_default().open = 5000;
        assert_eq!(window.verdict("short-lived-connections"), Verdict::Ok);
    }

    #[test]
    fn so_many_that_only_some_are_followed_are_like_those() {
        // Of most it is not known how long they lived, and 20 were open before the window.
        let mut window = lives(400_000, 50_000);
        let life = [
            ("role", Value::Word("server")),
            ("result", Value::Word("fin")),
            ("sport", Value::Unsigned(80)),
            ("bytes_sent", Value::Unsigned(500)),
            ("bytes_received", Value::Unsigned(100)),
        ];
        window.event("lifetimes", 300, &life);
        let before = window.netns().before.sockets.as_mut().unwrap();
        before.clients.entry(80).or_default().open = 20;
        assert_eq!(window.ids(), ["short-lived-connections"]);
        // None was followed: 10 open at once, on average, of 5000/s.
        window.events.forget("lifetimes");
        window.event("lifetimes", 300, &life);
        let findings = window.findings();
        let summary = &findings[0].summary;
        assert!(summary.contains("live 2.0 ms on average"), "{summary}");
        // As many are open as end in two seconds.
        for seen in ["before", "after"] {
            let netns = window.netns();
            let snapshot = if seen == "before" {
                &mut netns.before
            } else {
                &mut netns.after
            };
            let sockets = snapshot.sockets.as_mut().unwrap();
            sockets.clients.entry(80).or_default().open = 9000;
        }
        assert_eq!(window.verdict("short-lived-connections"), Verdict::Ok);
    }

    #[test]
    fn many_that_nobody_looked_at_are_no_verdict() {
        let mut window = lives(400_000, 5000);
        window.events.forget("lifetimes");
        let verdict = window.verdict("short-lived-connections");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    }
}
