//! What the kernel counts per network namespace: `/proc/net/snmp`, `netstat`, `sockstat` and the
//! per-CPU tables of conntrack and neighbours. Only what some rule reads is kept, so that a machine
//! with a thousand namespaces stays cheap.

use std::{collections::BTreeMap, fs};

/// Values by the name in [`WANTED`].
pub type Counters = BTreeMap<&'static str, i64>;

/// Every counter and gauge that a rule reads, or that a stream is compared with.
pub const WANTED: &[&str] = &[
    "Ip.OutDiscards",
    "Ip.OutNoRoutes",
    "Ip6OutNoRoutes",
    "Ip6InNoRoutes",
    "Tcp.ActiveOpens",
    "Tcp.PassiveOpens",
    "Tcp.AttemptFails",
    "Tcp.EstabResets",
    "Tcp.CurrEstab",
    "Tcp.InSegs",
    "Tcp.InCsumErrors",
    "Tcp.OutSegs",
    "Tcp.RetransSegs",
    "Tcp.OutRsts",
    "TcpExt.SyncookiesSent",
    "TcpExt.SyncookiesRecv",
    "TcpExt.SyncookiesFailed",
    "TcpExt.TW",
    "TcpExt.TWRecycled",
    "TcpExt.ListenOverflows",
    "TcpExt.ListenDrops",
    "TcpExt.TCPTimeouts",
    "TcpExt.TCPLossProbes",
    "TcpExt.TCPFastRetrans",
    "TcpExt.TCPSlowStartRetrans",
    "TcpExt.TCPDeferAcceptDrop",
    "TcpExt.TCPSynRetrans",
    "TcpExt.TCPRetransFail",
    "TcpExt.TCPTimeWaitOverflow",
    "TcpExt.TCPReqQFullDoCookies",
    "TcpExt.TCPReqQFullDrop",
    "TcpExt.TCPAbortOnMemory",
    "TcpExt.TCPAbortOnTimeout",
    "TcpExt.TCPAbortOnData",
    "TcpExt.TCPAbortOnClose",
    "TcpExt.TCPMemoryPressures",
    "TcpExt.TCPMemoryPressuresChrono",
    "TcpExt.PruneCalled",
    "TcpExt.RcvPruned",
    "TcpExt.TCPBacklogDrop",
    "TcpExt.TCPRcvQDrop",
    "TcpExt.TCPSACKReorder",
    "TcpExt.TCPDSACKRecvSegs",
    "sockstat.TCP.inuse",
    "sockstat.TCP.orphan",
    "sockstat.TCP.tw",
    "sockstat.TCP.alloc",
    "sockstat.TCP.mem",
    "sockstat6.TCP6.inuse",
    "nf_conntrack.insert",
    "nf_conntrack.insert_failed",
    "nf_conntrack.drop",
    "nf_conntrack.early_drop",
    "arp_cache.entries",
    "arp_cache.table_fulls",
    "arp_cache.forced_gc_runs",
    "ndisc_cache.entries",
    "ndisc_cache.table_fulls",
    "rt_cache.entries",
    "rt_cache.gc_dst_overflow",
    "rt6_stats.entries",
];

/// The counters of the namespace that this thread is in.
pub fn of_this_thread() -> Counters {
    let mut counters = of_tcp();
    single_lines(&read("snmp6"), &mut counters);
    word_lines(&read("sockstat"), "sockstat", &mut counters);
    word_lines(&read("sockstat6"), "sockstat6", &mut counters);
    for table in ["arp_cache", "ndisc_cache", "rt_cache"] {
        per_cpu(&read(&format!("stat/{table}")), table, &mut counters);
    }
    route6(&read("rt6_stats"), &mut counters);
    counters
}

/// Those of them that count what streams see.
pub fn of_tcp() -> Counters {
    let mut counters = Counters::new();
    named_lines(&read("snmp"), &mut counters);
    named_lines(&read("netstat"), &mut counters);
    per_cpu(&read("stat/nf_conntrack"), "nf_conntrack", &mut counters);
    counters
}

/// A file of this thread's namespace. A module that is not loaded, or a kernel without it, has none.
fn read(file: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
}

/// Connections that came into accept queues of this thread's namespace so far, attempts that full ones turned away, and
/// connections that are established now.
pub fn queues() -> [Option<i64>; 3] {
    let mut counters = Counters::new();
    for file in ["snmp", "netstat"] {
        named_lines(&read(file), &mut counters);
    }
    [
        "Tcp.PassiveOpens",
        "TcpExt.ListenOverflows",
        "Tcp.CurrEstab",
    ]
    .map(|name| counters.get(name).copied())
}

fn keep(counters: &mut Counters, name: &str, value: i64) {
    if let Some(wanted) = WANTED.iter().find(|wanted| **wanted == name) {
        counters.insert(wanted, value);
    }
}

/// Pairs of lines, `Tcp: Name Name` and `Tcp: 1 2`.
pub(crate) fn named_lines(text: &str, counters: &mut Counters) {
    let mut lines = text.lines();
    while let Some((names, values)) = lines.next().zip(lines.next()) {
        let (Some((group, names)), Some((same, values))) =
            (names.split_once(':'), values.split_once(':'))
        else {
            continue;
        };
        if group != same {
            continue;
        }
        for (name, value) in names
            .split_ascii_whitespace()
            .zip(values.split_ascii_whitespace())
        {
            if let Ok(value) = value.parse() {
                keep(counters, &format!("{group}.{name}"), value);
            }
        }
    }
}

/// Lines of one name and value.
pub(crate) fn single_lines(text: &str, counters: &mut Counters) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if let Some((name, Ok(value))) = words.next().zip(words.next().map(str::parse)) {
            keep(counters, name, value);
        }
    }
}

/// Lines of words, `TCP: inuse 1 orphan 0`.
pub(crate) fn word_lines(text: &str, file: &str, counters: &mut Counters) {
    for line in text.lines() {
        let Some((group, words)) = line.split_once(':') else {
            continue;
        };
        let mut words = words.split_ascii_whitespace();
        while let Some((name, value)) = words.next().zip(words.next()) {
            if let Ok(value) = value.parse() {
                keep(counters, &format!("{file}.{group}.{name}"), value);
            }
        }
    }
}

/// A line of names, then one of hexadecimal values for each CPU. The column `entries` is the same
/// on every CPU; all others add up.
pub(crate) fn per_cpu(text: &str, table: &str, counters: &mut Counters) {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let mut sums = vec![None::<i64>; names.len()];
    for line in lines {
        for (index, value) in line.split_ascii_whitespace().enumerate() {
            let (Some(slot), Ok(value)) = (sums.get_mut(index), i64::from_str_radix(value, 16))
            else {
                continue;
            };
            *slot = Some(match *slot {
                Some(sum) if names[index] != "entries" => sum.saturating_add(value),
                _ => value,
            });
        }
    }
    for (name, sum) in names.iter().zip(sums) {
        if let Some(sum) = sum {
            keep(counters, &format!("{table}.{name}"), sum);
        }
    }
}

/// One line of hexadecimal numbers; the sixth counts the destinations in use.
pub(crate) fn route6(text: &str, counters: &mut Counters) {
    let sixth = text.split_ascii_whitespace().nth(5);
    if let Some(Ok(entries)) = sixth.map(|hex| i64::from_str_radix(hex, 16)) {
        keep(counters, "rt6_stats.entries", entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_paired_whatever_columns_come_and_go() {
        let mut counters = Counters::new();
        named_lines(
            "TcpExt: NewThing ListenOverflows ListenDrops\nTcpExt: 9 7 8\n\
             Tcp: MaxConn RetransSegs\nTcp: -1 5 77\nbroken\n",
            &mut counters,
        );
        assert_eq!(counters["TcpExt.ListenOverflows"], 7);
        assert_eq!(counters["TcpExt.ListenDrops"], 8);
        assert_eq!(counters["Tcp.RetransSegs"], 5);
        assert_eq!(counters.len(), 3);
    }

    #[test]
    fn socket_statistics_are_words() {
        let mut counters = Counters::new();
        word_lines(
            "sockets: used 34\nTCP: inuse 1 orphan 2 tw 3 alloc 4 mem 5\n",
            "sockstat",
            &mut counters,
        );
        assert_eq!(counters["sockstat.TCP.tw"], 3);
        assert_eq!(counters["sockstat.TCP.mem"], 5);
    }

    #[test]
    fn tables_per_cpu_add_up_but_for_their_entries() {
        let mut counters = Counters::new();
        per_cpu(
            "entries  clashres drop early_drop\n0000000a 00000001 00000010 00000001\n\
             0000000a 00000002 00000001 00000000\n",
            "nf_conntrack",
            &mut counters,
        );
        assert_eq!(counters["nf_conntrack.drop"], 0x11);
        assert_eq!(counters["nf_conntrack.early_drop"], 1);
        per_cpu(
            "entries table_fulls\n5 1\n5 2\n",
            "arp_cache",
            &mut counters,
        );
        assert_eq!(counters["arp_cache.entries"], 5);
        assert_eq!(counters["arp_cache.table_fulls"], 3);
    }

    #[test]
    fn rubbish_is_survived() {
        let texts = [
            "",
            "\n\n\n",
            "a",
            "a: b\na:",
            "\u{0}: \u{0}\n",
            "Tcp:\nTcp:\n",
            "x y\nzz zz\n",
            "entries drop\n0 99999999999999999999999 1 2 3\n",
        ];
        for text in texts {
            let mut counters = Counters::new();
            named_lines(text, &mut counters);
            single_lines(text, &mut counters);
            word_lines(text, "sockstat", &mut counters);
            per_cpu(text, "nf_conntrack", &mut counters);
            route6(text, &mut counters);
            assert!(counters.len() <= 1, "{text:?}: {counters:?}");
        }
    }
}
