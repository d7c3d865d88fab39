//! The connection tracking table is full, or address translation has no free port: packets that would begin a connection
//! are dropped, while established connections go on.

mod demand;
mod flows;
mod ports;

use demand::Demand;
use flows::{heaviest, untrack};

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    sizing::{PERSIST, SPARED, bytes, roomy, seconds_left, spoken},
    window::{Gap, Netns, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "conntrack-table-full",
    title: "the connection tracking table is full, or address translation has no free port",
    check,
    explanation: Explanation {
        symptom: "New connections stall or die while established ones work; dmesg says \"nf_conntrack: table full, \
                  dropping packet\" at best once.",
        cause: "Each new flow needs an entry. __nf_conntrack_alloc() counts entries of the namespace; above \
                nf_conntrack_max it tries early_drop() of unassured entries and otherwise returns -ENOMEM, upon which \
                nf_conntrack_in() drops the packet and counts `drop`. TCP entries stay for nf_conntrack_tcp_timeout_* \
                after their last packet: 120 s in TIME_WAIT, 5 days when established. Translation of the source (SNAT, \
                masquerade) needs a port that no other connection to the same destination has: where it finds none, \
                __nf_conntrack_confirm() meets the other's entry, drops the packet, and counts `insert_failed` and `drop`.",
        recognised: "The conntrack probe saw allocations fail, or `drop` grew while the table was at its maximum. \
                     Packets that a firewall rule drops leave `drop` alone and are firewall-drops. Without a free port: \
                     `insert_failed` grew, and netfilter dropped SYNs whose source was translated already, the same ones again \
                     and again (sequence number); which ports are taken /proc/net/nf_conntrack tells, where the kernel has \
                     it. SYNs that are dropped once only met another in the race for the same port: a warning from one each second \
                     on, and else a note.",
        fixes: &[
            (
                "raise net.netfilter.nf_conntrack_max (initial namespace), and the hash size with it",
                "kernel memory: entries x slab object size; it cannot be swapped",
            ),
            (
                "shorten the nf_conntrack_tcp_timeout_* of the state that most entries are in (time_wait, as a rule)",
                "too short and a NAT forgets connections that are only quiet (see idle-reset)",
            ),
            (
                "do not track the heaviest flow: a raw rule with NOTRACK",
                "rules by connection state and NAT do not work for it any more",
            ),
            (
                "without free ports: a wider range of ports in the rule that translates, or more addresses (snat to \
                 FIRST-LAST)",
                "the other end sees those addresses",
            ),
        ],
    },
};

const DROP: &str = "nf_conntrack.drop";
/// A table may shrink between the last drop and our last look.
const NEARLY: f64 = 0.95;
/// From here on a growing table is worth a warning.
const FILLING: f64 = 0.7;
/// From here on it is, if it will be full in no more than this many seconds, and before what comes now expires.
const BEGUN: f64 = 0.25;
const SOON_S: f64 = 60.0;
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
                Ok(ports::found(window, netns)?.into_iter().collect())
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
        let found = [ports::found(window, netns)?, filling(window, netns, &table)];
        Ok(found.into_iter().flatten().collect())
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
    let found = heaviest(found, window, netns);
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
    let found = found.since(window, netns, DROP);
    fixes(found, window, netns, (table, dropped))
}

/// A time that late packets of a connection do not take.
const SHORTER_S: u64 = 30;

fn fixes(
    found: Finding,
    window: &Window,
    netns: &Netns,
    (table, dropped): (&Table, u64),
) -> Finding {
    // What a router forwards opens nothing here, but fills the table.
    let growth = u64::try_from(table.growth).unwrap_or(0);
    let demand = Demand::of(window, netns, (table.highest, dropped, growth));
    let found = raise(found, (window, netns), table, (&demand, dropped));
    let found = shorten(found, table, &demand);
    untrack(found, window, netns)
}

/// Room for what comes.
fn raise(
    found: Finding,
    (window, netns): (&Window, &Netns),
    table: &Table,
    (demand, dropped): (&Demand, u64),
) -> Finding {
    let buckets = netns.sysctl("net.netfilter.nf_conntrack_buckets");
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let measured = roomy((demand.ended() + demand.open).max(table.max as f64));
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
    let why = if room.is_some() {
        "so as many as it has buckets for".to_owned()
    } else {
        format!("at least the {} of now, {SPARED}", table.max)
    };
    let open = if demand.open > 0.0 {
        format!(", and {:.0} that are open", demand.open)
    } else {
        String::new()
    };
    found.sysctl(
        format!(
            "raise nf_conntrack_max to {wanted}: {:.0} new {}/s{} x {:.0} s {} = {:.0}{open}, {why}{memory}; \
             {PERSIST}",
            demand.arrivals,
            demand.what(),
            demand.how_counted,
            demand.keep_s(),
            demand.place(),
            demand.ended(),
        ),
        &set,
        "kernel memory that cannot be swapped; writable in the initial namespace only",
    )
}

/// Shorter times, where what comes then has room; and fewer open connections, where they fill the table.
fn shorten(found: Finding, table: &Table, demand: &Demand) -> Finding {
    #[expect(clippy::cast_precision_loss, reason = "a few seconds, and a size")]
    let (shorter_s, highest) = (SHORTER_S as f64, table.highest as f64);
    if demand.open * 2.0 >= highest.max(1.0) {
        return found.application(
            format!(
                "or have fewer connections open at once: {:.0} entries are of open ones (ESTABLISHED), and stay until those are \
                 closed; see conntrack-stale-entries for those that are forgotten",
                demand.open
            ),
            &[],
            "with a smaller pool requests wait for a connection",
        );
    }
    let Some(ends) = demand.cured_by(shorter_s, table.max) else {
        return found;
    };
    found.sysctl(
        format!(
            "or forget {} in {} sooner, after {SHORTER_S} s instead of {:.0} s: that frees {:.0} of {:.0} entries once the \
             old ones have expired, and what comes then has room",
            demand.what(),
            ends.spelt(),
            ends.keep_s,
            ends.entries * (1.0 - shorter_s / ends.keep_s),
            ends.entries,
        ),
        &[(ends.setting, SHORTER_S.to_string())],
        "late packets of old connections are taken for invalid",
    )
}

/// Not full yet, but soon.
fn filling(window: &Window, netns: &Netns, table: &Table) -> Option<Finding> {
    let per_second = window.rate(u64::try_from(table.growth).ok()?);
    let left = seconds_left(table.count, table.max, per_second)?;
    let share = ratio(table.count, table.max);
    let is_soon = share >= BEGUN && left <= SOON_S && {
        // Until the first of those that come now expire, as many come as it has room for.
        let demand = Demand::of(
            window,
            netns,
            (table.count, 0, table.growth.cast_unsigned()),
        );
        goes_on(netns, table.growth) && left <= demand.keep_s()
    };
    if left > HORIZON_S || !(share >= FILLING || is_soon) {
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

/// Whether it was no burst at the beginning of the window only: it has grown at half the rate or more since the middle.
fn goes_on(netns: &Netns, growth: i64) -> bool {
    let counts = &netns.conntrack_counts;
    let middle = counts.get(counts.len() / 2).copied();
    let last = counts.last().copied();
    last.zip(middle)
        .is_none_or(|(last, middle)| (last - middle) * 4 >= growth)
}

#[cfg(test)]
mod tests;
