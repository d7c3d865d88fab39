//! Too many handshakes are under way at a listener: half-open connections fill its SYN backlog.

use std::collections::HashSet;

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, host, somewhere},
    in_each,
    sizing::{PERSIST, roomy},
    window::{Gap, Netns, Window, ratio},
};
use crate::report::{
    Value,
    diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "syn-backlog-full",
    title: "a listener's SYN backlog is full",
    check,
    explanation: Explanation {
        symptom: "SYNs go unanswered, or are answered with cookies, and many handshakes stay half open.",
        cause: "Each SYN that is answered takes a request in the listener's backlog until its final ACK. When \
                inet_csk_reqsk_queue_is_full() (as many as the accept queue may hold), tcp_conn_request() sends a \
                cookie (TCPReqQFullDoCookies) or drops the SYN (TCPReqQFullDrop). Without cookies, the last quarter of \
                tcp_max_syn_backlog is kept for peers that are known.",
        recognised: "TCPReqQFullDrop or TCPReqQFullDoCookies grew, or the listeners probe saw such refusals. If hardly any \
                     of the handshakes is completed it is a flood, or the answers are lost; else it is load. A full accept \
                     queue fills the backlog too: then that comes first.",
        fixes: &[
            (
                "raise the listen() backlog and somaxconn (they bound the backlog), and tcp_max_syn_backlog",
                "memory: about 0.3 KiB for each half-open connection",
            ),
            (
                "net.ipv4.tcp_syncookies=1",
                "connections made from cookies have no window scaling unless timestamps are on",
            ),
            ("a flood: filter its sources upstream", "they may be forged"),
        ],
    },
};

/// Handshakes of a load are completed; of a flood, next to none.
const FLOOD: f64 = 0.2;
/// Fewer are no flood.
const LEAST_FLOOD: u64 = 50;
const STAGES: [&str; 3] = ["syn-backlog", "syn-reserved", "syn-cookie"];

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let inode = netns.inode.to_string();
        let [backlog, reserved, cookie] = STAGES.map(|stage| {
            window
                .events
                .count("listeners", &[("stage", stage), ("netns", &inode)])
        });
        let dropped = (netns.grown("TcpExt.TCPReqQFullDrop")? + reserved).max(backlog + reserved);
        let cookies = netns.grown("TcpExt.TCPReqQFullDoCookies")?.max(cookie);
        if dropped + cookies == 0 {
            return Ok(Vec::new());
        }
        Ok(vec![describe(window, netns, (dropped, cookies))?])
    })
}

/// The port where most were refused, or else where most are half open.
fn port(window: &Window, netns: &Netns) -> Option<u16> {
    let inode = netns.inode.to_string();
    let group = [("netns", inode.as_str())];
    let is_ours = |value: &Value| matches!(value, Value::Word(stage) if STAGES.contains(stage));
    let groups = window.events.groups("listeners", &group).filter(|total| {
        total
            .group
            .iter()
            .any(|(name, value)| *name == "stage" && is_ours(value))
    });
    let most = groups.max_by_key(|total| total.events);
    let seen = most.and_then(|total| {
        total.group.iter().find_map(|(name, value)| match value {
            Value::Unsigned(port) if *name == "listener_port" => u16::try_from(*port).ok(),
            _ => None,
        })
    });
    seen.or_else(|| {
        let clients = &netns.after.sockets.as_ref()?.clients;
        let (port, clients) = clients
            .iter()
            .max_by_key(|(_, clients)| clients.half_open)?;
        (clients.half_open > 0).then_some(*port)
    })
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(
    window: &Window,
    netns: &Netns,
    (dropped, cookies): (u64, u64),
) -> Result<Finding, Gap> {
    let port = port(window, netns);
    let queue = port.and_then(|port| netns.queue(None, port));
    let completed = netns.grown("Tcp.PassiveOpens")?;
    let attempts = dropped + cookies;
    let sources: HashSet<_> = window
        .events
        .within("listeners", netns.inode)
        .filter_map(|event| event.ip("saddr"))
        .chain(
            port.and_then(|port| netns.after.sockets.as_ref()?.clients.get(&port))
                .into_iter()
                .flat_map(|clients| clients.half_open_sources.iter().copied()),
        )
        .collect();
    let is_flood = attempts >= LEAST_FLOOD && ratio(completed, attempts) < FLOOD;
    let kind = if is_flood {
        format!(
            "hardly any handshake is completed: a flood from {} sources, or the answers do not arrive",
            sources.len()
        )
    } else {
        "handshakes do complete: too many at once".to_owned()
    };
    let (severity, how) = if dropped > 0 {
        (Severity::Critical, format!("{dropped} SYNs were dropped"))
    } else {
        (
            Severity::Warning,
            format!("{cookies} SYNs were answered with cookies"),
        )
    };
    let confidence = match window.watched("listeners") {
        Ok(()) => Confidence::High,
        Err(_) => Confidence::Medium,
    };
    let place = port.map_or("a listener".to_owned(), |port| {
        format!("the listener at port {port}")
    });
    let found = finding(
        RULE.id,
        severity,
        confidence,
        format!(
            "the SYN backlog of {place}{} is full: {how} in {:.0} s; {kind}",
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!("{dropped} SYNs dropped"),
        dropped,
        "SYNs",
        "TcpExt.TCPReqQFullDrop",
    )
    .counted(
        format!("{cookies} SYNs answered with a cookie"),
        cookies,
        "SYNs",
        "TcpExt.TCPReqQFullDoCookies",
    )
    .counted(
        format!("{completed} handshakes completed meanwhile"),
        completed,
        "connections",
        "Tcp.PassiveOpens",
    )
    .counted(
        format!("{} different sources seen", sources.len()),
        sources.len() as u64,
        "addresses",
        "listeners, sock_diag",
    )
    .hits(queue.map(|queue| window.affected_listener(netns, &queue.listener)));
    let found = if queue.is_none() {
        found.hits([somewhere(netns)])
    } else {
        found
    };
    let found = match sources.iter().next() {
        Some(source) if is_flood && sources.len() == 1 => {
            found.hits([host("source", *source, netns.inode)])
        }
        _ => found,
    };
    Ok(fixes(
        found,
        netns,
        (attempts, is_flood),
        queue.map_or(0, |queue| queue.listener.limit),
    ))
}

fn fixes(found: Finding, netns: &Netns, (attempts, is_flood): (u64, bool), limit: u32) -> Finding {
    let found = if netns.sysctl("net.ipv4.tcp_syncookies") == Some(0) {
        found.sysctl(
            format!("answer with cookies when the backlog is full; {PERSIST}"),
            &[("net.ipv4.tcp_syncookies", "1".to_owned())],
            "connections made from cookies have no window scaling unless timestamps are on",
        )
    } else {
        found
    };
    if is_flood {
        return found.command(
            "find out where they come from (netprobe listeners --json) and filter that upstream",
            "sources may be forged",
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy((u64::from(limit) + attempts) as f64).clamp(128, 65_535);
    found
        .sysctl(
            format!(
                "make room for {limit} + {attempts} handshakes and half as many again; {PERSIST}"
            ),
            &[
                ("net.core.somaxconn", wanted.to_string()),
                ("net.ipv4.tcp_max_syn_backlog", wanted.to_string()),
            ],
            "memory: about 0.3 KiB for each half-open connection",
        )
        .application(
            format!("and have the application listen with a backlog of {wanted}, then restart it"),
            &[("listen_backlog", wanted.to_string())],
            "a longer queue hides a slow application",
        )
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, report::diagnosis::Severity};

    #[test]
    fn load_and_floods_are_told_apart_by_what_completes() {
        let mut window = quiet();
        window.listen(80, 10, &[0; 10]);
        window.grow(&[("TcpExt.TCPReqQFullDrop", 100), ("Tcp.PassiveOpens", 900)]);
        let findings = window.findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("syn-backlog-full", Severity::Critical)
        );
        assert!(findings[0].summary.contains("too many at once"));
        let mut window = quiet();
        window.grow(&[
            ("TcpExt.TCPReqQFullDoCookies", 1000),
            ("Tcp.PassiveOpens", 3),
        ]);
        let findings = window.findings();
        assert_eq!(findings[0].severity, Severity::Warning);
        assert!(findings[0].summary.contains("flood"));
        assert!(findings[0].fixes.iter().all(|fix| fix.set.is_empty()));
    }

    #[test]
    fn a_full_accept_queue_comes_first() {
        let mut window = quiet();
        window.listen(80, 10, &[11; 10]);
        window.grow(&[
            ("TcpExt.TCPReqQFullDrop", 100),
            ("TcpExt.ListenOverflows", 100),
        ]);
        let findings = window.findings();
        assert_eq!(findings[0].id, "application-not-accepting");
        assert_eq!(findings[1].behind, Some("application-not-accepting"));
    }
}
