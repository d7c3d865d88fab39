//! Settings that decide how much of a network namespace's traffic has room.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::fd::OwnedFd,
};

use rustix::fs::{Mode, OFlags, open, openat};

/// Values by the dotted name, with their words separated by one space.
pub type Sysctls = BTreeMap<&'static str, String>;

/// Every setting that a rule reads. Some exist in the initial namespace only.
pub const WANTED: &[&str] = &[
    "net.core.somaxconn",
    "net.core.netdev_max_backlog",
    "net.core.netdev_budget",
    "net.core.netdev_budget_usecs",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_orphan_retries",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.neigh.default.gc_thresh1",
    "net.ipv4.neigh.default.gc_thresh2",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv6.neigh.default.gc_thresh3",
    "net.ipv4.route.max_size",
    "net.ipv6.route.max_size",
    "net.ipv6.route.gc_thresh",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_syn_sent",
    "net.netfilter.nf_conntrack_tcp_timeout_syn_recv",
    "net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_last_ack",
    "net.netfilter.nf_conntrack_tcp_timeout_close",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
    "net.netfilter.nf_conntrack_icmp_timeout",
];

/// Those that one value of the machine stands for where a namespace has none of its own.
const OF_THE_MACHINE: &[&str] = &[
    "net.core.netdev_max_backlog",
    "net.core.netdev_budget",
    "net.core.netdev_budget_usecs",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.neigh.default.gc_thresh1",
    "net.ipv4.neigh.default.gc_thresh2",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv6.neigh.default.gc_thresh3",
];

/// Adds to the settings of a namespace those of the machine that hold there too.
pub fn complete(sysctls: &mut Sysctls, machine: &Sysctls) {
    for name in OF_THE_MACHINE {
        if let Some(value) = machine.get(name) {
            sysctls.entry(name).or_insert_with(|| value.clone());
        }
    }
}

/// The settings of the namespace that this thread is in. What does not exist is left out.
pub fn of_this_thread() -> Sysctls {
    let mut folders = Folders::default();
    WANTED
        .iter()
        .filter_map(|name| Some((*name, folders.read(name)?)))
        .collect()
}

/// The folders of one namespace, each opened once: the kernel finds `/proc/sys/net/ipv4` among those of all namespaces,
/// one by one, and with hundreds of them that takes longer than all else.
#[derive(Debug, Default)]
struct Folders(BTreeMap<String, Option<OwnedFd>>);

impl Folders {
    /// A setting; its first two words are the folder.
    fn read(&mut self, name: &str) -> Option<String> {
        let path = name.replace('.', "/");
        let (at, _) = path.match_indices('/').nth(1)?;
        let (folder, rest) = (&path[..at], &path[at + 1..]);
        let known = self.0.entry(folder.to_owned());
        let folder = known.or_insert_with(|| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            open(format!("/proc/sys/{folder}"), flags, Mode::empty()).ok()
        });
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(folder.as_ref()?, rest, flags, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).ok()?;
        Some(plain(&text))
    }
}

/// A value with its words separated by one space.
fn plain(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// One setting.
pub fn read(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(plain(&text))
}

/// How many ports a list such as `8080,9000-9010` reserves between `first` and `last`.
pub fn reserved_ports(ports: &str, first: u32, last: u32) -> u32 {
    let ranges = ports.split(',').filter_map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let [from, to] = [from, to].map(|port| port.trim().parse::<u32>().ok());
        Some((from?.max(first), to?.min(last)))
    });
    ranges.map(|(from, to)| (to + 1).saturating_sub(from)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_the_same_one_by_one_and_all_at_once() {
        let all = of_this_thread();
        assert!(all.contains_key("net.ipv4.tcp_mem"), "{all:?}");
        let steady = WANTED.iter().filter(|name| !name.ends_with("_count"));
        for name in steady {
            assert_eq!(all.get(name), read(name).as_ref(), "{name}");
        }
    }

    #[test]
    fn settings_of_the_machine_hold_where_a_namespace_has_none_of_its_own() {
        let machine = [("net.ipv4.tcp_mem", "1 2 3"), ("net.core.somaxconn", "9")];
        let machine: Sysctls = machine.map(|(name, value)| (name, value.to_owned())).into();
        let mut own = Sysctls::new();
        complete(&mut own, &machine);
        assert_eq!(
            own.get("net.ipv4.tcp_mem").map(String::as_str),
            Some("1 2 3")
        );
        assert_eq!(own.get("net.core.somaxconn"), None);
        own.insert("net.ipv4.tcp_mem", "7 8 9".to_owned());
        complete(&mut own, &machine);
        assert_eq!(
            own.get("net.ipv4.tcp_mem").map(String::as_str),
            Some("7 8 9")
        );
    }

    #[test]
    fn reserved_ports_count_only_inside_the_range() {
        let cases = [
            ("", 0),
            ("8080", 0),
            ("40000", 1),
            ("40000,40002-40004", 4),
            ("1-32769", 2),
            ("x,40000-y", 0),
            ("50000-40000", 0),
        ];
        for (list, expected) in cases {
            assert_eq!(reserved_ports(list, 32_768, 60_999), expected, "{list}");
        }
    }
}
