//! The connection tracking table holds connections that nobody has any more.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    sizing::PERSIST,
    window::{Gap, Netns, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "conntrack-stale-entries",
    title: "the connection tracking table keeps dead connections",
    check,
    explanation: Explanation {
        symptom: "The table grows and never shrinks; raising its maximum only delays the day that it is full.",
        cause: "An ESTABLISHED entry stays for nf_conntrack_tcp_timeout_established (5 days by default) after its last \
                packet. A peer that vanishes, or a path that goes around this machine one way, never sends the FIN that \
                would shorten that (tcp_packet() in nf_conntrack_proto_tcp.c).",
        recognised: "A sample of the table has far more ESTABLISHED entries than this namespace has connections (where \
                     it does not forward), or most of them had no packet for ten minutes. On a machine that forwards, \
                     quiet and dead connections look the same.",
        fixes: &[
            (
                "lower net.netfilter.nf_conntrack_tcp_timeout_established to 600 s, say",
                "connections that are quiet for longer are forgotten: NAT breaks them unless they use keepalive",
            ),
            (
                "delete the entries made before, which keep the timeout that they were made with: conntrack -D -p tcp \
                 --state ESTABLISHED",
                "connections through NAT that are still open are cut",
            ),
            ("find who leaves connections without closing them", "none"),
        ],
    },
};

const TIMEOUT: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
/// No packet for this long.
const QUIET_S: u64 = 600;
/// Below this share of the table it is no problem.
const MUCH: f64 = 0.5;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let count = netns.sysctl("net.netfilter.nf_conntrack_count");
        let max = netns.sysctl("net.netfilter.nf_conntrack_max");
        let Some((count, max)) = count.zip(max) else {
            return Ok(Vec::new());
        };
        if ratio(count, max) < MUCH {
            return Ok(Vec::new());
        }
        let Some(entries) = netns.after.conntrack.as_ref() else {
            return Err(Gap(
                "the entries of the conntrack table cannot be read".to_owned()
            ));
        };
        let sampled = u64::from(entries.sampled);
        let established = u64::from(entries.states.get("ESTABLISHED").copied().unwrap_or(0));
        let timeout = netns.sysctl(TIMEOUT).unwrap_or(0);
        let left = |left_s: &&u32| u64::from(**left_s) + QUIET_S <= timeout;
        let quiet = entries.established_left_s.iter().filter(left).count() as u64;
        let live = netns
            .after
            .sockets
            .as_ref()
            .map(|sockets| sockets.states[1]);
        let forwards = netns.sysctl("net.ipv4.ip_forward").unwrap_or(0) != 0;
        let is_quiet = ratio(quiet, sampled) >= MUCH;
        let is_dead = !forwards
            && ratio(established, sampled) >= MUCH
            && live.is_some_and(|live| {
                ratio(established, sampled) * ratio(count, 1) > 4.0 * ratio(live, 1) + 16.0
            });
        if !is_quiet && !is_dead {
            return Ok(Vec::new());
        }
        Ok(vec![describe(
            netns,
            &Table {
                count,
                max,
                established: ratio(established, sampled),
                quiet: ratio(quiet, sampled),
                live,
                timeout,
                is_dead,
            },
        )])
    })
}

struct Table {
    count: u64,
    max: u64,
    established: f64,
    quiet: f64,
    live: Option<u64>,
    timeout: u64,
    is_dead: bool,
}

fn describe(netns: &Netns, table: &Table) -> Finding {
    let confidence = if table.is_dead {
        Confidence::High
    } else {
        Confidence::Medium
    };
    let percent = table.established * 100.0;
    let live = table.live.map_or_else(String::new, |live| {
        format!(", where {live} connections are open")
    });
    let found = finding(
        RULE.id,
        Severity::Warning,
        confidence,
        format!(
            "the connection tracking table{} ({} of {}) holds on to dead connections: {percent:.0} % of its entries \
             are ESTABLISHED{live}",
            netns.place(),
            table.count,
            table.max
        ),
    )
    .measured(
        format!("{percent:.0} % of entries are ESTABLISHED{live}"),
        percent,
        "percent",
        "/proc/net/nf_conntrack, sock_diag",
    )
    .measured(
        format!(
            "{:.0} % of entries are established without a packet for {QUIET_S} s",
            table.quiet * 100.0
        ),
        table.quiet * 100.0,
        "percent",
        "/proc/net/nf_conntrack",
    )
    .counted(
        format!("they are kept for {} s after their last packet", table.timeout),
        table.timeout,
        "s",
        TIMEOUT,
    )
    .hits([somewhere(netns)]);
    let found = if table.timeout > QUIET_S {
        found.sysctl(
            format!("forget them after {QUIET_S} s instead of {} s; {PERSIST}", table.timeout),
            &[(TIMEOUT, QUIET_S.to_string())],
            "connections that are quiet for longer are forgotten: NAT breaks them unless they use keepalive",
        )
    } else {
        found
    };
    found
        .command(
            delete(netns),
            "connections through NAT that are still open are cut",
        )
        .command("find who leaves connections without closing them", "none")
}

/// What takes out the entries that are there.
fn delete(netns: &Netns) -> String {
    format!(
        "then delete what is there, which keeps the timeout that it was made with: `{}conntrack -D -p tcp --state ESTABLISHED`",
        netns.enter()
    )
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{fixtures::quiet, window::Window},
        observe::conntrack::Entries,
    };

    fn table(established: u32, left_s: u32) -> Window {
        let mut window = quiet();
        window.set("net.netfilter.nf_conntrack_max", "200");
        window.set("net.netfilter.nf_conntrack_count", "160");
        window.set("net.ipv4.ip_forward", "0");
        window.netns().after.conntrack = Some(Entries {
            sampled: 160,
            states: [("ESTABLISHED".to_owned(), established)].into(),
            established_left_s: vec![left_s; established as usize],
            ..Entries::default()
        });
        window
    }

    #[test]
    fn entries_without_connections_are_dead() {
        let window = table(150, 431_990);
        assert_eq!(window.ids(), ["conntrack-stale-entries"]);
        assert_eq!(window.findings()[0].fixes[0].set[0].1, "600");
    }

    #[test]
    fn entries_of_open_connections_and_of_forwarded_ones_are_not() {
        let mut window = table(150, 431_990);
        window.sockets().states[1] = 150;
        assert!(window.ids().is_empty());
        let mut window = table(150, 431_990);
        window.set("net.ipv4.ip_forward", "1");
        assert!(window.ids().is_empty());
        let mut window = table(150, 400_000);
        window.set("net.ipv4.ip_forward", "1");
        assert_eq!(window.ids(), ["conntrack-stale-entries"]);
    }
}
