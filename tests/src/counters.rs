//! What the kernel itself counted: the truth that netprobe's totals must equal.

use std::{collections::BTreeMap, fs, io};

/// All counters of a network namespace at one time.
#[derive(Clone, Debug)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// Those of the namespace that this thread is in.
    pub(crate) fn of_this_thread() -> Self {
        let mut counters = BTreeMap::new();
        for file in ["snmp", "netstat"] {
            named_lines(&read(file), &mut counters);
        }
        interfaces(&read("dev"), &mut counters);
        // Absent until the module is loaded.
        if let Ok(text) = fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack") {
            per_cpu(&text, "conntrack", &mut counters);
        }
        Self(counters)
    }

    /// The value of `name`, such as `Tcp.RetransSegs` or `TcpExt.ListenOverflows`.
    #[track_caller]
    pub fn get(&self, name: &str) -> i64 {
        let value = self.0.get(name);
        *value.unwrap_or_else(|| panic!("this kernel does not count {name}"))
    }

    /// How much `name` has grown since `before`.
    #[track_caller]
    pub fn grown(&self, before: &Self, name: &str) -> u64 {
        let growth = self.get(name) - before.0.get(name).copied().unwrap_or(0);
        u64::try_from(growth).unwrap_or_else(|_| panic!("{name} has shrunk by {}", -growth))
    }
}

/// TCP sockets whose timers may still send: half-open, closing, or with data in flight.
pub(crate) fn waiting_sockets() -> usize {
    const ESTABLISHED: &str = "01";
    const SENDING: [&str; 6] = ["02", "03", "04", "09", "0B", "0C"];
    let count = |file: &str| {
        let text = read(file);
        let waits = |line: &&str| {
            let mut words = line.split_ascii_whitespace().skip(3);
            let (state, queues) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            SENDING.contains(&state) || (state == ESTABLISHED && !queues.starts_with("00000000:"))
        };
        text.lines().skip(1).filter(waits).count()
    };
    count("tcp") + count("tcp6")
}

fn read(file: &str) -> String {
    let path = format!("/proc/thread-self/net/{file}");
    // Without IPv6 the files of IPv6 are missing.
    fs::read_to_string(&path).unwrap_or_else(|why| match why.kind() {
        io::ErrorKind::NotFound => String::new(),
        _ => panic!("read {path}: {why}"),
    })
}

/// Pairs of lines: `Group: name name …`, then `Group: value value …`.
fn named_lines(text: &str, into: &mut BTreeMap<String, i64>) {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let (group, names) = names.split_once(": ").expect("a line begins with a group");
        let (_, values) = values.split_once(": ").expect("a line begins with a group");
        for (name, value) in names.split(' ').zip(values.split(' ')) {
            // A few are unsigned and larger than any count of a test.
            into.insert(format!("{group}.{name}"), value.parse().unwrap_or(i64::MAX));
        }
    }
}

/// `interface: bytes packets errs drop …`, received first.
fn interfaces(text: &str, into: &mut BTreeMap<String, i64>) {
    for line in text.lines().skip(2) {
        let (name, values) = line.split_once(':').expect("an interface has a name");
        let dropped = values.split_ascii_whitespace().nth(3);
        let dropped = dropped.expect("an interface counts drops");
        let value = dropped.parse().expect("a counter is a number");
        into.insert(format!("{}.rx_dropped", name.trim()), value);
    }
}

/// A line of names, then one line of hexadecimal values for each CPU.
fn per_cpu(text: &str, group: &str, into: &mut BTreeMap<String, i64>) {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or("")
        .split_ascii_whitespace()
        .collect();
    for line in lines {
        for (name, value) in names.iter().zip(line.split_ascii_whitespace()) {
            let value = i64::from_str_radix(value, 16).expect("a counter is hexadecimal");
            *into.entry(format!("{group}.{name}")).or_default() += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_group_and_name() {
        let mut counters = BTreeMap::new();
        named_lines("Tcp: A B\nTcp: 1 -1\nIp: A\nIp: 7\n", &mut counters);
        assert_eq!(counters["Tcp.A"], 1);
        assert_eq!(counters["Tcp.B"], -1);
        assert_eq!(counters["Ip.A"], 7);
    }

    #[test]
    fn per_cpu_values_are_hexadecimal_and_added_up() {
        let mut counters = BTreeMap::new();
        per_cpu(
            "entries  drop\n00000001 0000000a\n00000001 00000010\n",
            "c",
            &mut counters,
        );
        assert_eq!(counters["c.drop"], 26);
    }
}
