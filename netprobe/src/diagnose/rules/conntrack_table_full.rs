//! The connection tracking table is full: packets that would begin a connection are dropped, while
//! established connections go on.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, host, somewhere},
    in_each,
    sizing::{PERSIST, bytes, roomy, seconds_left, spoken},
    window::{Gap, Netns, Window, endpoint, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "conntrack-table-full",
    title: "the connection tracking table is full",
    check,
    explanation: Explanation {
        symptom: "New connections stall or die while established ones work; dmesg says \"nf_conntrack: table full, \
                  dropping packet\" at best once.",
        cause: "Each new flow needs an entry. __nf_conntrack_alloc() counts entries of the namespace; above \
                nf_conntrack_max it tries early_drop() of unassured entries and otherwise returns -ENOMEM, upon which \
                nf_conntrack_in() drops the packet and counts `drop`. TCP entries stay for nf_conntrack_tcp_timeout_* \
                after their last packet: 120 s in TIME_WAIT, 5 days when established.",
        recognised: "The conntrack probe saw allocations fail, or `drop` grew while the table was at its maximum. \
                     Packets that a firewall rule drops leave `drop` alone and are firewall-drops.",
        fixes: &[
            (
                "raise net.netfilter.nf_conntrack_max (initial namespace), and the hash size with it",
                "kernel memory: entries x slab object size; it cannot be swapped",
            ),
            (
                "shorten nf_conntrack_tcp_timeout_time_wait and _established",
                "too short and a NAT forgets connections that are only quiet (see idle-reset)",
            ),
            (
                "do not track the heaviest flow: a raw rule with NOTRACK",
                "rules by connection state and NAT do not work for it any more",
            ),
        ],
    },
};

const DROP: &str = "nf_conntrack.drop";
/// A table may shrink between the last drop and our last look.
const NEARLY: f64 = 0.95;
/// From here on a growing table is worth a warning.
const FILLING: f64 = 0.7;
/// What fills later than this is not forecast.
const HORIZON_S: f64 = 3600.0;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let inode = netns.inode.to_string();
        let refused = window
            .events
            .count("conntrack", &[("netns", &inode), ("protocol", "tcp")])
            .max(window.events.count("conntrack", &[("netns", &inode)]));
        let Some(table) = Table::of(netns) else {
            return if refused > 0 {
                Err(Gap(
                    "the size of the conntrack table cannot be read".to_owned()
                ))
            } else {
                Ok(Vec::new())
            };
        };
        let dropped = netns.grown_if_any(DROP);
        let is_full = ratio(table.highest, table.max) >= NEARLY;
        if refused > 0 || (is_full && dropped.as_ref().is_ok_and(|dropped| *dropped > 0)) {
            let dropped = dropped.unwrap_or(refused).max(refused);
            return Ok(vec![full(window, netns, &table, (refused, dropped))]);
        }
        // Full, but without the counter nobody can say that anything was dropped.
        if is_full {
            dropped?;
        }
        Ok(filling(window, netns, &table).into_iter().collect())
    })
}

/// How full the table is.
struct Table {
    count: u64,
    highest: u64,
    max: u64,
    growth: i64,
}

impl Table {
    fn of(netns: &Netns) -> Option<Self> {
        let max = netns.sysctl("net.netfilter.nf_conntrack_max")?;
        let count = netns.sysctl("net.netfilter.nf_conntrack_count")?;
        let first = netns.conntrack_counts.first().copied();
        let highest = netns.conntrack_counts.iter().copied().max().unwrap_or(0);
        Some(Self {
            count,
            highest: count.max(u64::try_from(highest).unwrap_or(0)),
            max,
            growth: first.map_or(0, |first| count.cast_signed() - first),
        })
    }
}

fn full(window: &Window, netns: &Netns, table: &Table, (refused, dropped): (u64, u64)) -> Finding {
    let confidence = if refused > 0 {
        Confidence::High
    } else {
        Confidence::Medium
    };
    let rate = window.rate(dropped);
    let found = finding(
        RULE.id,
        Severity::Critical,
        confidence,
        format!(
            "the connection tracking table{} is full ({} of {}): {dropped} packets that would begin a connection were \
             dropped in {:.0} s",
            netns.place(),
            table.highest,
            table.max,
            window.seconds
        ),
    )
    .counted(
        format!("{} entries of {}", table.highest, table.max),
        table.highest,
        "entries",
        "net.netfilter.nf_conntrack_count",
    )
    .counted(
        format!("{dropped} packets dropped for want of an entry, {rate:.1}/s"),
        dropped,
        "packets",
        "/proc/net/stat/nf_conntrack drop",
    )
    .hits([somewhere(netns)]);
    let found = if refused > 0 {
        found.counted(
            format!("{refused} failed allocations were seen as they happened"),
            refused,
            "events",
            "__nf_conntrack_alloc",
        )
    } else {
        found
    };
    let found = heaviest(found.since(window, netns, DROP), window, netns);
    fixes(found, window, netns, (table, dropped))
}

/// Who fills it: of the refused, or else of those that have an entry.
fn heaviest(mut found: Finding, window: &Window, netns: &Netns) -> Finding {
    let mut wanted = std::collections::BTreeMap::<_, u32>::new();
    for event in window.events.within("conntrack", netns.inode) {
        if let Some((address, port)) = event.ip("daddr").zip(event.small::<u16>("dport")) {
            *wanted.entry((address, port)).or_default() += 1;
        }
    }
    if let Some(((address, port), _)) = wanted.iter().max_by_key(|(_, count)| **count) {
        found = found.hits([Window::affected_destination(netns, *address, *port)]);
    }
    let Some(entries) = netns
        .after
        .conntrack
        .as_ref()
        .filter(|entries| entries.sampled > 0)
    else {
        return found;
    };
    let share = |count: u32| ratio(count.into(), entries.sampled.into()) * 100.0;
    if let Some(((address, port), count)) =
        entries.destinations.iter().max_by_key(|(_, count)| **count)
    {
        let share = share(*count);
        found = found.measured(
            format!(
                "{share:.0} % of entries are for {}",
                endpoint(*address, *port)
            ),
            share,
            "percent",
            "/proc/net/nf_conntrack",
        );
        if wanted.is_empty() {
            found = found.hits([Window::affected_destination(netns, *address, *port)]);
        }
    }
    if let Some((address, count)) = entries.sources.iter().max_by_key(|(_, count)| **count) {
        let share = share(*count);
        found = found
            .measured(
                format!("{share:.0} % of entries come from {address}"),
                share,
                "percent",
                "/proc/net/nf_conntrack",
            )
            .hits([host("source", *address, netns.inode)]);
    }
    if let Some((state, count)) = entries.states.iter().max_by_key(|(_, count)| **count) {
        let share = share(*count);
        found = found.measured(
            format!("{share:.0} % of entries are {state}"),
            share,
            "percent",
            "/proc/net/nf_conntrack",
        );
    }
    found
}

fn fixes(
    found: Finding,
    window: &Window,
    netns: &Netns,
    (table, dropped): (&Table, u64),
) -> Finding {
    let opened =
        netns.grown("Tcp.PassiveOpens").unwrap_or(0) + netns.grown("Tcp.ActiveOpens").unwrap_or(0);
    // What a router forwards opens nothing here, but fills the table.
    let growth = u64::try_from(table.growth).unwrap_or(0);
    let arrivals = window.rate((opened + dropped).max(growth));
    let keep_s = netns
        .sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait")
        .unwrap_or(120);
    let buckets = netns.sysctl("net.netfilter.nf_conntrack_buckets");
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let (demand, max) = (arrivals * keep_s as f64, table.max as f64);
    let measured = roomy(demand.max(max));
    // The kernel makes as many buckets as its memory has room for entries.
    let room = buckets.filter(|buckets| dropped > 0 && *buckets > measured);
    let wanted = room.map_or(measured, u64::next_power_of_two);
    let memory = window.conntrack_entry_bytes.map_or(String::new(), |size| {
        format!(", {} at {size} bytes each", bytes(wanted * size))
    });
    let mut set = vec![("net.netfilter.nf_conntrack_max", wanted.to_string())];
    if buckets.is_some_and(|buckets| buckets * 4 < wanted) {
        set.push((
            "net.netfilter.nf_conntrack_buckets",
            (wanted / 4).to_string(),
        ));
    }
    let waiting = if dropped > 0 {
        " (of clients that wait for the full table: more come once it has room)"
    } else {
        ""
    };
    let why = if room.is_some() {
        "so as many as it has buckets for".to_owned()
    } else {
        format!("at least the {} of now, and half as much again", table.max)
    };
    let found = found.sysctl(
        format!(
            "raise nf_conntrack_max to {wanted}: {arrivals:.0} new connections/s{waiting} x {keep_s} s in TIME_WAIT = \
             {demand:.0}, {why}{memory}; {PERSIST}"
        ),
        &set,
        "kernel memory that cannot be swapped; writable in the initial namespace only",
    );
    found
        .sysctl(
            format!("or forget closed connections sooner: after 30 s instead of {keep_s} s"),
            &[(
                "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
                "30".to_owned(),
            )],
            "late packets of old connections are taken for invalid",
        )
        .command(
            "or do not track the heaviest flow, that of port PORT: nft 'add table inet raw; add chain inet raw prerouting \
             { type filter hook prerouting priority raw; }; add rule inet raw prerouting tcp dport PORT notrack; \
             add chain inet raw output { type filter hook output priority raw; }; add rule inet raw output tcp sport \
             PORT notrack'",
            "rules by connection state, and NAT, do not work for that flow any more",
        )
}

/// Not full yet, but soon.
fn filling(window: &Window, netns: &Netns, table: &Table) -> Option<Finding> {
    if ratio(table.count, table.max) < FILLING {
        return None;
    }
    let per_second = window.rate(u64::try_from(table.growth).ok()?);
    let left = seconds_left(table.count, table.max, per_second)?;
    if left > HORIZON_S {
        return None;
    }
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::Medium,
        format!(
            "the connection tracking table{} will be full in {} ({} of {}, {per_second:.0} more each second)",
            netns.place(),
            spoken(left),
            table.count,
            table.max
        ),
    )
    .counted(
        format!("{} entries of {}", table.count, table.max),
        table.count,
        "entries",
        "net.netfilter.nf_conntrack_count",
    )
    .measured(
        format!("full in {} at {per_second:.1} more per second", spoken(left)),
        left,
        "s",
        "net.netfilter.nf_conntrack_count",
    )
    .hits([somewhere(netns)]);
    Some(fixes(found, window, netns, (table, 0)))
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{Verdict, fixtures::quiet},
        report::{
            Value,
            diagnosis::{Confidence, Severity},
        },
    };

    fn full() -> crate::diagnose::window::Window {
        let mut window = quiet();
        window.set("net.netfilter.nf_conntrack_max", "200");
        window.set("net.netfilter.nf_conntrack_count", "200");
        window.netns().conntrack_counts = vec![200; 10];
        window.grow(&[("nf_conntrack.drop", 1000)]);
        window
    }

    #[test]
    fn drops_of_a_full_table_are_found_by_counters_and_sure_with_events() {
        let mut window = full();
        assert_eq!(window.findings()[0].confidence, Confidence::Medium);
        let group = [
            ("protocol", Value::Word("tcp")),
            ("dport", Value::Unsigned(80)),
        ];
        window.total("conntrack", 1000, &group);
        let first = &window.findings()[0];
        assert_eq!(
            (first.id, first.severity),
            ("conntrack-table-full", Severity::Critical)
        );
        assert_eq!(first.confidence, Confidence::High);
        // Anything else is printed escaped, and cannot be run.
        assert!(first.fixes.iter().all(|fix| fix.text.is_ascii()));
        // 100 arrivals/s x 120 s = 12,000, and half as much again.
        let (name, value) = &first.fixes[0].set[0];
        assert_eq!(
            (name.as_str(), value.as_str()),
            ("net.netfilter.nf_conntrack_max", "32768")
        );
    }

    #[test]
    fn the_rate_of_clients_that_wait_for_a_full_table_is_no_measure_of_its_size() {
        let mut window = full();
        // 3 attempts/s come through the table of 200; many more wait.
        window.grow(&[("nf_conntrack.drop", -970)]);
        window.set("net.netfilter.nf_conntrack_buckets", "8192");
        let size = |window: &crate::diagnose::window::Window| {
            let fix = window.findings()[0].fixes[0].clone();
            (fix.set[0].1.clone(), fix.text)
        };
        let (value, text) = size(&window);
        assert_eq!(value, "8192", "{text}");
        let said = "3 new connections/s (of clients that wait for the full table: more come once it has room)";
        assert!(text.contains(said), "{text}");
        assert!(
            text.contains("= 360, so as many as it has buckets for"),
            "{text}"
        );
        // What is measured to be more than that counts.
        window.set("net.netfilter.nf_conntrack_buckets", "256");
        assert_eq!(size(&window).0, "1024");
    }

    #[test]
    fn a_table_that_fills_with_what_is_forwarded_is_sized_by_its_growth() {
        let mut window = quiet();
        window.set("net.netfilter.nf_conntrack_max", "1000");
        window.set("net.netfilter.nf_conntrack_count", "800");
        window.netns().conntrack_counts = vec![300, 800];
        // 50/s x 120 s = 6000, and half as much again.
        let findings = window.findings();
        assert_eq!(findings[0].fixes[0].set[0].1, "16384");
    }

    #[test]
    fn drops_of_a_table_with_room_have_another_reason() {
        let mut window = full();
        window.set("net.netfilter.nf_conntrack_max", "100000");
        assert_eq!(window.verdict("conntrack-table-full"), Verdict::Ok);
    }

    #[test]
    fn a_full_table_without_its_counter_is_not_a_verdict() {
        let mut window = full();
        window
            .netns()
            .after
            .counters
            .insert("nf_conntrack.drop", -1);
        let verdict = window.verdict("conntrack-table-full");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    }

    #[test]
    fn a_table_that_fills_is_forecast() {
        let mut window = quiet();
        window.set("net.netfilter.nf_conntrack_max", "1000");
        window.set("net.netfilter.nf_conntrack_count", "800");
        window.netns().conntrack_counts = vec![700, 750, 800];
        let first = &window.findings()[0];
        assert_eq!(first.severity, Severity::Warning);
        assert!(first.summary.contains("full in 20 s"), "{}", first.summary);
    }
}
