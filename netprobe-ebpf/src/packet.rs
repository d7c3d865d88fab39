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
/// The offset of a fragment in an IPv4 header.
const OFFSET_IPV4: u16 = 0x1fff_u16.to_be();
/// The offset of a fragment in an IPv6 fragment header.
const OFFSET_IPV6: u16 = 0xfff8_u16.to_be();
/// Next header: a fragment.
const NEXTHDR_FRAGMENT: u8 = 44;

/// The parts of a TCP header that events carry.
pub(crate) struct Tcp {
    /// Sequence number, host byte order.
    pub(crate) seq: u32,
    /// The flags byte.
    pub(crate) flags: u8,
    /// 1 of a fragment that is not the first: only that has a TCP header. All that would be in it is zero.
    pub(crate) is_later: u8,
}

/// All bits of a packet's first fragment, none of later ones, whose offset in the header is not zero. Without a branch,
/// which would double the paths that the verifier follows.
#[inline(always)]
fn known(offset: u16) -> u64 {
    let is_first = u64::from(offset).wrapping_sub(1) >> 63;
    is_first.wrapping_neg()
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

/// Bytes of a packet from its IP header on, or from where the kernel has got to in it: `skb->len` without the header of the
/// link, which counts at the queues of a device.
#[inline(always)]
pub(crate) fn length<L: Load>(load: L, skb: u64) -> u32 {
    let head: u64 = load.field(skb, Field::SkbHead);
    let network: u16 = load.field(skb, Field::SkbNetworkHeader);
    let data: u64 = load.field(skb, Field::SkbData);
    let len: u32 = load.field(skb, Field::SkbLen);
    let link = (head + u64::from(network)).saturating_sub(data);
    len.saturating_sub(link as u32)
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
fn tcp(words: [u32; 4], known: u64, flow: &mut Flow) -> Tcp {
    let [ports, seq, _ack, flags] = words.map(|word| word & known as u32);
    let [sport0, sport1, dport0, dport1] = ports.to_ne_bytes();
    flow.sport = [sport0, sport1];
    flow.dport = [dport0, dport1];
    flow.protocol = IPPROTO_TCP;
    Tcp {
        seq: u32::from_be(seq),
        flags: flags.to_ne_bytes()[1],
        is_later: !known as u8 & 1,
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
    let known = known(load.at::<u16>(ip, 6) & OFFSET_IPV4);
    typed_tcp(load, header + u64::from(version_ihl & 0xf) * 4, known, flow)
}

/// As [`ipv6`], of a typed pointer to a header that TCP follows at once.
#[inline(always)]
fn typed_ipv6<L: Load>(load: L, ip: u64, header: u64, flow: &mut Flow) -> Option<Tcp> {
    flow.family = AF_INET6;
    flow.saddr = crate::sock::join([load.at(ip, 8), load.at(ip, 16)]);
    flow.daddr = crate::sock::join([load.at(ip, 24), load.at(ip, 32)]);
    typed_tcp(load, header + 40, known(0), flow)
}

#[inline(always)]
fn typed_tcp<L: Load>(load: L, header: u64, known: u64, flow: &mut Flow) -> Option<Tcp> {
    let header = load.cast(header, frozen(&CONFIG.headers.tcp))?;
    let (sport, dport): (u16, u16) = (load.at(header, 0), load.at(header, 2));
    let (seq, flags): (u32, u8) = (load.at(header, 4), load.at(header, 13));
    let ports = u32::from(sport) | u32::from(dport) << 16;
    let words = [ports.to_le(), seq, 0, (u32::from(flags) << 8).to_le()];
    Some(tcp(words, known, flow))
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
    let [_, _, high, low] = header[1].to_ne_bytes();
    let known = known(u16::from_ne_bytes([high, low]) & OFFSET_IPV4);
    if version_ihl & 0xf == 5 {
        let words = [header[5], header[6], header[7], header[8]];
        return Some(tcp(words, known, flow));
    }
    let length = u64::from(version_ihl & 0xf) * 4;
    Some(tcp(Probed.at(head, network + length), known, flow))
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
        let words = [
            ports as u32,
            (ports >> 32) as u32,
            flags as u32,
            (flags >> 32) as u32,
        ];
        return Some(tcp(words, known(0), flow));
    }
    let mut length = 40;
    let mut offset = 0;
    // Hop-by-hop, routing and destination options, and a fragment; more than three do not occur in practice.
    for _ in 0..3 {
        let is_fragment = next == NEXTHDR_FRAGMENT;
        if next != 0 && next != 43 && next != 60 && !is_fragment {
            break;
        }
        let [follows, size, high, low]: [u8; 4] = Probed.at(head, network + length);
        next = follows;
        if is_fragment {
            offset = u16::from_ne_bytes([high, low]) & OFFSET_IPV6;
            length += 8;
        } else {
            length += (u64::from(size) + 1) * 8;
        }
        // What follows in a later fragment is no header.
        if offset != 0 {
            break;
        }
    }
    if u16::from(next) != IPPROTO_TCP {
        return None;
    }
    Some(tcp(Probed.at(head, network + length), known(offset), flow))
}
