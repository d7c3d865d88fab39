//! A TCP packet's own headers, which are there also when no socket is.

use netprobe_common::{offsets::Field, records::Flow};

use crate::{
    load::{Load, Probed},
    sock::{AF_INET, AF_INET6, IPPROTO_TCP},
};

const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();

/// The parts of a TCP header that events carry.
pub(crate) struct Tcp {
    /// Sequence number, host byte order.
    pub(crate) seq: u32,
    /// The flags byte.
    pub(crate) flags: u8,
}

/// Whether `skb` is an IPv4 packet.
#[inline(always)]
pub(crate) fn is_ipv4<L: Load>(load: L, skb: u64) -> bool {
    load.field::<u16>(skb, Field::SkbProtocol) == ETH_P_IP
}

/// Reads addresses and ports of the TCP packet in `skb` into `flow`; `None` if it is not one.
#[inline(always)]
pub(crate) fn read<L: Load>(load: L, skb: u64, flow: &mut Flow) -> Option<Tcp> {
    let protocol: u16 = load.field(skb, Field::SkbProtocol);
    if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
        return None;
    }
    let head: u64 = load.field(skb, Field::SkbHead);
    let network: u16 = load.field(skb, Field::SkbNetworkHeader);
    let network = u64::from(network);
    let transport = if protocol == ETH_P_IP {
        network + ipv4(head, network, flow)?
    } else {
        network + ipv6(head, network, flow)?
    };
    // Packet bytes have no BTF type, so they are read by helper in every program type.
    let header: [u32; 4] = Probed.at(head, transport);
    let [sport0, sport1, dport0, dport1] = header[0].to_ne_bytes();
    flow.sport = [sport0, sport1];
    flow.dport = [dport0, dport1];
    Some(Tcp {
        seq: u32::from_be(header[1]),
        flags: header[3].to_ne_bytes()[1],
    })
}

/// Reads an IPv4 header and returns its length, if TCP comes next.
#[inline(always)]
fn ipv4(head: u64, network: u64, flow: &mut Flow) -> Option<u64> {
    let header: [u32; 5] = Probed.at(head, network);
    let version_ihl = header[0].to_ne_bytes()[0];
    let protocol = header[2].to_ne_bytes()[1];
    if u16::from(protocol) != IPPROTO_TCP || version_ihl >> 4 != 4 {
        return None;
    }
    flow.family = AF_INET;
    flow.protocol = IPPROTO_TCP;
    flow.saddr = crate::sock::join([u64::from(header[3]), 0]);
    flow.daddr = crate::sock::join([u64::from(header[4]), 0]);
    Some(u64::from(version_ihl & 0xf) * 4)
}

/// Reads an IPv6 header and returns its length with extensions, if TCP comes next.
#[inline(always)]
fn ipv6(head: u64, network: u64, flow: &mut Flow) -> Option<u64> {
    let header: [u64; 5] = Probed.at(head, network);
    let mut next = header[0].to_ne_bytes()[6];
    let mut length = 40;
    // Hop-by-hop, routing and destination options; more than three do not occur in practice.
    for _ in 0..3 {
        if next != 0 && next != 43 && next != 60 {
            break;
        }
        let extension: [u8; 2] = Probed.at(head, network + length);
        next = extension[0];
        length += (u64::from(extension[1]) + 1) * 8;
    }
    if u16::from(next) != IPPROTO_TCP {
        return None;
    }
    flow.family = AF_INET6;
    flow.protocol = IPPROTO_TCP;
    flow.saddr = crate::sock::join([header[1], header[2]]);
    flow.daddr = crate::sock::join([header[3], header[4]]);
    Some(length)
}
