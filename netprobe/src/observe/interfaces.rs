//! Interfaces of a network namespace and the queues in front of them.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::{IpAddr, Ipv6Addr},
};

use anyhow::Result;

use super::netlink::{self, attributes, u32_at};

const NETLINK_ROUTE: isize = 0;
const RTM_GETLINK: u16 = 18;
const RTM_GETQDISC: u16 = 38;
const RTM_GETADDR: u16 = 22;
/// Somebody has taken the interface up.
const IFF_UP: u32 = 1;
/// It has a link.
const IFF_LOWER_UP: u32 = 1 << 16;
/// Both.
const UP: u32 = IFF_UP | IFF_LOWER_UP;
/// Most addresses that are remembered.
const ADDRESSES: usize = 4096;

/// What an interface has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Received but dropped: by the device for want of room, or because nobody wanted them.
    pub rx_dropped: u64,
    /// Lost by the device: its ring was full, or it could not keep up.
    pub rx_missed: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Not sent: it had no room for them, or whoever it hands them to did not take them. What a qdisc drops is not in it.
    pub tx_dropped: u64,
    /// Packets that may wait in it (`txqueuelen`).
    pub tx_queue_len: u32,
    /// What it hands packets to.
    pub output: Output,
    /// How often its link went down (`carrier_down_count`); of bridges, which lose it with their last port, 0.
    pub link_downs: u32,
    /// Whether its link is down now, though nobody has taken the interface down.
    pub is_without_link: bool,
    /// Whether it is up and has a link.
    pub is_up: bool,
}

/// What an interface hands packets to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// A program, or a virtual machine: a queue that it reads.
    Tun,
    /// The other end of a pair.
    Veth,
    /// Hardware, or what looks like it.
    Device,
    /// Another interface, which counts itself what it drops; or not known.
    #[default]
    Other,
}

impl Output {
    /// As the kind of the driver tells.
    fn of(kind: &str) -> Self {
        match kind {
            "tun" => Self::Tun,
            "veth" => Self::Veth,
            "" => Self::Device,
            _ => Self::Other,
        }
    }
}

/// A queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// The interface that it is in front of.
    pub interface: String,
    /// Its kind, such as `fq_codel`.
    pub kind: String,
    /// Its handle, which tells several of one interface apart.
    pub handle: u32,
    /// Packets it has dropped.
    pub drops: u32,
    /// Packets in it now.
    pub queued: u32,
    /// Bytes in it now.
    pub backlog_bytes: u32,
    /// Bytes it has passed on.
    pub bytes: u64,
}

/// The interfaces of the namespace that this thread is in, by name.
pub fn of_this_thread() -> BTreeMap<String, Interface> {
    let mut found = BTreeMap::new();
    let listed = links(|link| {
        if let Some(mut interface) = link.statistics.and_then(statistics64) {
            interface.tx_queue_len = link.queue_len;
            interface.output = Output::of(&link.kind);
            interface.is_up = link.flags & UP == UP;
            if link.kind != "bridge" {
                interface.link_downs = link.downs;
                interface.is_without_link = link.flags & UP == IFF_UP;
            }
            found.insert(link.name, interface);
        }
    });
    if listed.is_ok() && !found.is_empty() {
        return found;
    }
    parse(&fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
}

/// The addresses of the namespace that this thread is in, up to a bound; those of loopback, which every
/// namespace has, are left out.
pub fn addresses() -> Result<HashSet<IpAddr>> {
    let mut found = HashSet::new();
    // struct ifaddrmsg
    netlink::list(NETLINK_ROUTE, RTM_GETADDR, &[0; 8], |message| {
        let address = address(message).filter(|address| !address.is_loopback());
        if found.len() < ADDRESSES {
            found.extend(address);
        }
    })?;
    Ok(found)
}

/// The local address in a `struct ifaddrmsg` and its attributes.
fn address(message: &[u8]) -> Option<IpAddr> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(message.get(8..)?) {
        match kind {
            IFA_ADDRESS => address = Some(value),
            IFA_LOCAL => local = Some(value),
            _ => {}
        }
    }
    // The far end of a point-to-point link is IFA_ADDRESS.
    let bytes = local.or(address)?;
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    let bytes = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(bytes).to_canonical())
}

/// An interface as the kernel lists it.
#[derive(Default)]
struct Link<'a> {
    index: u32,
    flags: u32,
    name: String,
    /// `struct rtnl_link_stats64`.
    statistics: Option<&'a [u8]>,
    /// Its driver's kind, such as `veth`; of hardware nothing.
    kind: String,
    downs: u32,
    queue_len: u32,
}

impl<'a> Link<'a> {
    /// Reads `struct ifinfomsg` and its attributes.
    fn of(message: &'a [u8]) -> Option<Self> {
        let mut link = Self {
            index: u32_at(message, 4)?,
            flags: u32_at(message, 8)?,
            ..Self::default()
        };
        for (attribute, value) in attributes(message.get(16..)?) {
            match attribute {
                // IFLA_IFNAME
                3 => link.name = text(value),
                // IFLA_TXQLEN
                13 => link.queue_len = u32_at(value, 0)?,
                // IFLA_LINKINFO, and in it IFLA_INFO_KIND
                18 => {
                    let kind = attributes(value).find(|(attribute, _)| *attribute == 1);
                    link.kind = kind.map_or_else(String::new, |(_, kind)| text(kind));
                }
                // IFLA_STATS64
                23 => link.statistics = Some(value),
                // IFLA_CARRIER_DOWN_COUNT
                48 => link.downs = u32_at(value, 0)?,
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

/// Every interface.
fn links(mut each: impl FnMut(Link<'_>)) -> Result<()> {
    // struct ifinfomsg
    netlink::list(NETLINK_ROUTE, RTM_GETLINK, &[0; 16], |message| {
        if let Some(link) = Link::of(message) {
            each(link);
        }
    })
}

pub(crate) fn statistics64(bytes: &[u8]) -> Option<Interface> {
    let at = |index: usize| netlink::u64_at(bytes, index * 8);
    Some(Interface {
        rx_packets: at(0)?,
        tx_packets: at(1)?,
        rx_bytes: at(2)?,
        tx_bytes: at(3)?,
        rx_dropped: at(6)?,
        tx_dropped: at(7)?,
        // rx_over_errors, rx_fifo_errors and rx_missed_errors
        rx_missed: at(11)?.saturating_add(at(14)?).saturating_add(at(15)?),
        ..Interface::default()
    })
}

pub(crate) fn parse(text: &str) -> BTreeMap<String, Interface> {
    let lines = text.lines().filter_map(|line| {
        let (name, values) = line.split_once(':')?;
        let values: Vec<u64> = values
            .split_ascii_whitespace()
            .filter_map(|value| value.parse().ok())
            .collect();
        let at = |index: usize| values.get(index).copied();
        Some((
            name.trim().to_owned(),
            Interface {
                rx_bytes: at(0)?,
                rx_packets: at(1)?,
                rx_dropped: at(3)?,
                rx_missed: at(4)?,
                tx_bytes: at(8)?,
                tx_packets: at(9)?,
                tx_dropped: at(11)?,
                ..Interface::default()
            },
        ))
    });
    lines.collect()
}

/// The names of the interfaces of the namespace that this thread is in, by index.
pub fn names() -> Result<BTreeMap<u32, String>> {
    let mut names = BTreeMap::new();
    links(|link| {
        names.insert(link.index, link.name);
    })?;
    Ok(names)
}

/// The queueing disciplines of the namespace that this thread is in.
pub fn qdiscs() -> Result<Vec<Qdisc>> {
    let names = names()?;
    let mut qdiscs = Vec::new();
    // struct tcmsg
    netlink::list(NETLINK_ROUTE, RTM_GETQDISC, &[0; 20], |message| {
        qdiscs.extend(qdisc(message, &names));
    })?;
    Ok(qdiscs)
}

pub(crate) fn qdisc(message: &[u8], names: &BTreeMap<u32, String>) -> Option<Qdisc> {
    let index = u32_at(message, 4)?;
    let mut qdisc = Qdisc {
        interface: names.get(&index).cloned()?,
        kind: String::new(),
        handle: u32_at(message, 8)?,
        drops: 0,
        queued: 0,
        backlog_bytes: 0,
        bytes: 0,
    };
    for (kind, value) in attributes(message.get(20..)?) {
        match kind {
            // TCA_KIND
            1 => qdisc.kind = text(value),
            // TCA_STATS2
            7 => statistics(value, &mut qdisc),
            _ => {}
        }
    }
    Some(qdisc)
}

fn statistics(nested: &[u8], qdisc: &mut Qdisc) {
    for (kind, value) in attributes(nested) {
        match kind {
            // TCA_STATS_BASIC
            1 => qdisc.bytes = netlink::u64_at(value, 0).unwrap_or(0),
            // TCA_STATS_QUEUE: qlen, backlog, drops
            3 => {
                qdisc.queued = u32_at(value, 0).unwrap_or(0);
                qdisc.backlog_bytes = u32_at(value, 4).unwrap_or(0);
                qdisc.drops = u32_at(value, 8).unwrap_or(0);
            }
            _ => {}
        }
    }
}

/// A name that ends with NUL.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_that_of_this_end_and_cut_messages_are_none() {
        let mut message = vec![2, 32, 0, 0, 1, 0, 0, 0];
        message.extend([8, 0, 1, 0, 10, 0, 0, 2]);
        assert_eq!(address(&message), Some([10, 0, 0, 2].into()));
        message.extend([8, 0, 2, 0, 10, 0, 0, 1]);
        assert_eq!(address(&message), Some([10, 0, 0, 1].into()));
        for length in 0..16 {
            assert_eq!(address(&message[..length]), None, "{length}");
        }
    }

    #[test]
    fn interfaces_are_read_by_position() {
        let text = "Inter-|   Receive   |  Transmit\n face |bytes packets\n    lo: 10 2 0 3 4 0 0 0 \
                    20 5 0 6 0 0 0 0\nshort: 1 2\n\nx\n";
        let found = parse(text);
        assert_eq!(found.len(), 1);
        let lo = found["lo"];
        assert_eq!((lo.rx_bytes, lo.rx_dropped, lo.rx_missed), (10, 3, 4));
        assert_eq!((lo.tx_bytes, lo.tx_packets, lo.tx_dropped), (20, 5, 6));
    }

    #[test]
    fn an_interface_is_told_by_its_flags_its_queue_and_what_it_hands_packets_to() {
        let mut message = vec![0; 16];
        message[8..12].copy_from_slice(&UP.to_ne_bytes());
        message.extend([8, 0, 3, 0, b't', b'u', b'n', 0]);
        message.extend([8, 0, 13, 0]);
        message.extend(50_u32.to_ne_bytes());
        message.extend([12, 0, 18, 0, 8, 0, 1, 0, b't', b'u', b'n', 0]);
        let link = Link::of(&message).unwrap();
        assert_eq!((link.flags & UP, link.queue_len), (UP, 50));
        assert_eq!(Output::of(&link.kind), Output::Tun);
        assert_eq!(Output::of("vlan"), Output::Other);
    }

    #[test]
    fn cut_messages_are_no_qdiscs() {
        let names = BTreeMap::from([(0, "lo".to_owned())]);
        for length in 0..20 {
            assert_eq!(qdisc(&vec![0; length], &names), None, "{length}");
        }
        assert!(qdisc(&[0; 20], &names).is_some());
    }

    #[test]
    fn this_namespace_has_queues_with_names() {
        let Ok(found) = qdiscs() else {
            println!("SKIP this kernel does not list queues");
            return;
        };
        assert!(
            found.iter().all(|qdisc| !qdisc.kind.is_empty()),
            "{found:?}"
        );
    }
}
