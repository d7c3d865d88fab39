//! The connection tracking table: how full, with what, and whose.
//!
//! The table of a busy machine is long, so only its beginning is looked at. Entries are listed by
//! hash, so that is a fair sample.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    net::IpAddr,
};

/// Most entries that are looked at.
const SAMPLE: u32 = 20_000;
/// The state of UDP flows that went both ways for a while, which stay longer than others.
pub const UDP_STREAM: &str = "udp [ASSURED]";
/// Most addresses that are told apart.
const ADDRESSES: usize = 4096;

/// Protocols whose flows have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// From its name in the table, in events, and in rules of nft(8).
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }

    /// Its name in the table, in events, and in rules of nft(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What is in the table, of the entries that were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// How many were looked at.
    pub sampled: u32,
    /// By TCP state; other protocols by their name, and [`UDP_STREAM`].
    pub states: BTreeMap<String, u32>,
    /// Seconds until established ones are forgotten, if no packet comes.
    pub established_left_s: Vec<u32>,
    /// Of connections within this machine, from one of its addresses to the same, or over loopback.
    pub local: u32,
    /// By source address.
    pub sources: BTreeMap<IpAddr, u32>,
    /// By destination address and port.
    pub destinations: BTreeMap<(IpAddr, u16), u32>,
    /// By protocol and port of the destination, up to a bound.
    pub services: BTreeMap<(Protocol, u16), u32>,
    /// By zone, where one is set.
    pub zones: BTreeMap<u16, u32>,
    /// Ports that the source of TCP connections is translated to, by the address that it is translated to and the service,
    /// as that knows itself.
    pub translated: BTreeMap<(IpAddr, (IpAddr, u16)), BTreeSet<u16>>,
}

/// The table of the namespace that this thread is in; `None` where it cannot be read. One that `is_empty` is not looked
/// through: the kernel goes through that of all namespaces, each time.
pub fn of_this_thread(is_empty: bool) -> Option<Entries> {
    let file = File::open("/proc/thread-self/net/nf_conntrack").ok()?;
    let mut entries = Entries::default();
    if is_empty {
        return Some(entries);
    }
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while entries.sampled < SAMPLE {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => entries.add(&String::from_utf8_lossy(&line)),
        }
    }
    Some(entries)
}

impl Entries {
    /// `ipv4 2 tcp 6 431999 ESTABLISHED src=… dst=… sport=… dport=… src=… … zone=1 use=2`
    pub(crate) fn add(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace().skip(2);
        let Some(protocol) = words.next() else { return };
        // The number of the protocol, which the name has said already.
        words.next();
        let mut state = protocol;
        let mut left_s = None::<u32>;
        let mut ways = Vec::<Way>::with_capacity(2);
        for word in words {
            match word.split_once('=') {
                Some(("zone", value)) => {
                    *self.zones.entry(value.parse().unwrap_or(0)).or_default() += 1;
                }
                Some((name, value)) => Way::read(&mut ways, name, value),
                None if word == "[ASSURED]" && state == "udp" => state = UDP_STREAM,
                None if left_s.is_none() && word.parse::<u32>().is_ok() => {
                    left_s = word.parse().ok();
                }
                None if word
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte == b'_') =>
                {
                    state = word;
                }
                None => {}
            }
        }
        self.sampled += 1;
        if state == "ESTABLISHED" {
            self.established_left_s.extend(left_s);
        }
        if self.states.len() < 64 || self.states.contains_key(state) {
            *self.states.entry(state.to_owned()).or_default() += 1;
        }
        self.add_ways(protocol, &ways);
    }

    fn add_ways(&mut self, protocol: &str, ways: &[Way]) {
        let way = ways.first().copied().unwrap_or_default();
        let is_local = |to: &IpAddr| to.is_loopback() || way.source == Some(*to);
        self.local += u32::from(way.destination.as_ref().is_some_and(is_local));
        if let Some(source) = way.source.filter(|from| is_told(&self.sources, from)) {
            *self.sources.entry(source).or_default() += 1;
        }
        let destination = way.destination.map(|to| (to, way.dport));
        if let Some(destination) = destination.filter(|to| is_told(&self.destinations, to)) {
            *self.destinations.entry(destination).or_default() += 1;
        }
        let service = Protocol::of(protocol).map(|protocol| (protocol, way.dport));
        if let Some(service) = service.filter(|service| is_told(&self.services, service)) {
            *self.services.entry(service).or_default() += 1;
        }
        let back = ways.get(1).filter(|_| protocol == Protocol::Tcp.name());
        let back = back.filter(|back| (back.destination, back.dport) != (way.source, way.sport));
        let ends = back.and_then(|back| Some((back.destination?, (back.source?, back.sport))));
        if let Some((back, ends)) = back.zip(ends.filter(|ends| is_told(&self.translated, ends))) {
            self.translated.entry(ends).or_default().insert(back.dport);
        }
    }
}

/// The addresses and ports of an entry, one way.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    sport: u16,
    dport: u16,
}

impl Way {
    /// Takes in one more word of a line, which tells one way after the other, each from its source on.
    fn read(ways: &mut Vec<Self>, name: &str, value: &str) {
        if name == "src" {
            ways.push(Self::default());
        }
        let Some(way) = ways.last_mut() else { return };
        match name {
            "src" => way.source = value.parse().ok(),
            "dst" => way.destination = value.parse().ok(),
            "sport" => way.sport = value.parse().unwrap_or(0),
            "dport" => way.dport = value.parse().unwrap_or(0),
            _ => {}
        }
    }
}

/// Whether one more is counted: of those that are told apart already each is.
fn is_told<K: Ord, V>(counts: &BTreeMap<K, V>, key: &K) -> bool {
    counts.len() < ADDRESSES || counts.contains_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_counted_by_state_and_by_the_original_direction() {
        let mut entries = Entries::default();
        let lines = [
            "ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=4000 dport=80 \
             src=10.0.0.2 dst=10.0.0.1 sport=80 dport=4000 [ASSURED] mark=0 zone=3 use=2\n",
            "ipv6     10 udp      17 29 src=::1 dst=::2 sport=5 dport=53 [UNREPLIED] src=::2 dst=::1\n",
            "",
            "x",
        ];
        for line in lines {
            entries.add(line);
        }
        assert_eq!(entries.sampled, 2);
        assert_eq!(entries.states["ESTABLISHED"], 1);
        assert_eq!(entries.states["udp"], 1);
        assert_eq!(entries.services[&(Protocol::Udp, 53)], 1);
        assert_eq!(entries.services[&(Protocol::Tcp, 80)], 1);
        assert_eq!(entries.established_left_s, [431_999]);
        assert_eq!(entries.destinations[&("10.0.0.2".parse().unwrap(), 80)], 1);
        assert_eq!(entries.sources[&"10.0.0.1".parse().unwrap()], 1);
        assert_eq!(entries.zones[&3], 1);
        assert_eq!(entries.local, 0);
        for to in ["127.0.0.1", "10.0.0.1"] {
            entries.add(&format!(
                "ipv4 2 tcp 6 9 CLOSE src=10.0.0.1 dst={to} sport=4000 dport=80"
            ));
        }
        assert_eq!(entries.local, 2);
        entries.add(
            "ipv4 2 udp 17 119 src=10.0.0.1 dst=10.0.0.2 sport=5 dport=53 src=10.0.0.2 dst=10.0.0.1 sport=53 dport=5 \
             [ASSURED] mark=0 use=1",
        );
        assert_eq!((entries.states["udp"], entries.states[UDP_STREAM]), (1, 1));
    }

    #[test]
    fn ports_that_sources_are_translated_to_are_told_by_service() {
        let mut entries = Entries::default();
        for (protocol, to) in [("tcp 6", 20_007), ("tcp 6", 20_008), ("udp 17", 20_009)] {
            entries.add(&format!(
                "ipv4 2 {protocol} 9 src=10.0.1.2 dst=10.0.9.9 sport=4000 dport=80 src=10.0.2.2 dst=10.0.2.1 sport=8080 \
                 dport={to} [ASSURED] use=2"
            ));
        }
        // Of one whose destination only is translated, the source is the same.
        entries.add(
            "ipv4 2 tcp 6 9 src=10.0.1.2 dst=10.0.9.9 sport=4001 dport=80 src=10.0.2.2 dst=10.0.1.2 sport=8080 dport=4001",
        );
        let [gateway, server]: [IpAddr; 2] = [[10, 0, 2, 1].into(), [10, 0, 2, 2].into()];
        let expected = ((gateway, (server, 8080)), [20_007, 20_008].into());
        assert_eq!(entries.translated, [expected].into());
        assert_eq!(entries.destinations[&([10, 0, 9, 9].into(), 80)], 4);
    }
}
