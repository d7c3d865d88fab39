//! A TCP packet's own headers, which are there also when no socket is.

use netprobe_common::{
    offsets::Field,
    records::{Flow, drops::HEAD},
};

use crate::{
    load::{Load, Probed},
    maps::{CONFIG, frozen},
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

/// Copies the beginning of a packet, from its IP header on.
#[inline(always)]
pub(crate) fn copy<L: Load>(load: L, skb: u64, head: &mut [u8; HEAD]) {
    let start: u64 = load.field(skb, Field::SkbHead);
    let network: u16 = load.field(skb, Field::SkbNetworkHeader);
    crate::load::copy(start + u64::from(network), head);
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
    let headers = &CONFIG.headers;
    if protocol == ETH_P_IP {
        if let Some(ip) = load.cast(head + network, frozen(&headers.ipv4)) {
            return typed_ipv4(load, ip, head + network, flow);
        }
        ipv4(head, network, flow)
    } else {
        if let Some(ip) = load.cast(head + network, frozen(&headers.ipv6))
            && u16::from(load.at::<u8>(ip, 6)) == IPPROTO_TCP
        {
            return typed_ipv6(load, ip, head + network, flow);
        }
        ipv6(head, network, flow)
    }
}

/// The parts of the TCP header that begins with these words.
#[inline(always)]
fn tcp(words: [u32; 4], flow: &mut Flow) -> Tcp {
    let [sport0, sport1, dport0, dport1] = words[0].to_ne_bytes();
    flow.sport = [sport0, sport1];
    flow.dport = [dport0, dport1];
    flow.protocol = IPPROTO_TCP;
    Tcp {
        seq: u32::from_be(words[1]),
        flags: words[3].to_ne_bytes()[1],
    }
}

/// As [`ipv4`], of a typed pointer to the header.
#[inline(always)]
fn typed_ipv4<L: Load>(load: L, ip: u64, header: u64, flow: &mut Flow) -> Option<Tcp> {
    let version_ihl: u8 = load.at(ip, 0);
    if u16::from(load.at::<u8>(ip, 9)) != IPPROTO_TCP || version_ihl >> 4 != 4 {
        return None;
    }
    flow.family = AF_INET;
    flow.saddr = crate::sock::join([u64::from(load.at::<u32>(ip, 12)), 0]);
    flow.daddr = crate::sock::join([u64::from(load.at::<u32>(ip, 16)), 0]);
    typed_tcp(load, header + u64::from(version_ihl & 0xf) * 4, flow)
}

/// As [`ipv6`], of a typed pointer to a header that TCP follows at once.
#[inline(always)]
fn typed_ipv6<L: Load>(load: L, ip: u64, header: u64, flow: &mut Flow) -> Option<Tcp> {
    flow.family = AF_INET6;
    flow.saddr = crate::sock::join([load.at(ip, 8), load.at(ip, 16)]);
    flow.daddr = crate::sock::join([load.at(ip, 24), load.at(ip, 32)]);
    typed_tcp(load, header + 40, flow)
}

#[inline(always)]
fn typed_tcp<L: Load>(load: L, header: u64, flow: &mut Flow) -> Option<Tcp> {
    let header = load.cast(header, frozen(&CONFIG.headers.tcp))?;
    flow.sport = load.at(header, 0);
    flow.dport = load.at(header, 2);
    flow.protocol = IPPROTO_TCP;
    let seq: u32 = load.at(header, 4);
    Some(Tcp {
        seq: u32::from_be(seq),
        flags: load.at(header, 13),
    })
}

/// Without a type, packet bytes are read by helper; both headers at once unless there are IP
/// options.
#[inline(always)]
fn ipv4(head: u64, network: u64, flow: &mut Flow) -> Option<Tcp> {
    let header: [u32; 9] = Probed.at(head, network);
    let version_ihl = header[0].to_ne_bytes()[0];
    let protocol = header[2].to_ne_bytes()[1];
    if u16::from(protocol) != IPPROTO_TCP || version_ihl >> 4 != 4 {
        return None;
    }
    flow.family = AF_INET;
    flow.saddr = crate::sock::join([u64::from(header[3]), 0]);
    flow.daddr = crate::sock::join([u64::from(header[4]), 0]);
    if version_ihl & 0xf == 5 {
        return Some(tcp([header[5], header[6], header[7], header[8]], flow));
    }
    let length = u64::from(version_ihl & 0xf) * 4;
    Some(tcp(Probed.at(head, network + length), flow))
}

/// As [`ipv4`]; the fixed header is 40 bytes, and extensions may follow it.
#[inline(always)]
fn ipv6(head: u64, network: u64, flow: &mut Flow) -> Option<Tcp> {
    let header: [u64; 7] = Probed.at(head, network);
    flow.family = AF_INET6;
    flow.saddr = crate::sock::join([header[1], header[2]]);
    flow.daddr = crate::sock::join([header[3], header[4]]);
    let mut next = header[0].to_ne_bytes()[6];
    if u16::from(next) == IPPROTO_TCP {
        let (ports, flags) = (header[5], header[6]);
        return Some(tcp(
            [
                ports as u32,
                (ports >> 32) as u32,
                flags as u32,
                (flags >> 32) as u32,
            ],
            flow,
        ));
    }
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
    Some(tcp(Probed.at(head, network + length), flow))
}
