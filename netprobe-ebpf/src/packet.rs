//! A TCP packet's own headers, which are there also when no socket is.

use netprobe_common::{
    offsets::Field,
    records::{
        Flow,
        drops::{FLAGS_END, HEAD, PORTS_END, SEQ_END, TCP_HEADER, reaches},
    },
};

use crate::{
    load::{Load, Probed},
    maps::{CONFIG, frozen},
    sock::{AF_INET, AF_INET6, IPPROTO_TCP},
};

const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();
/// Bits of the fragment's offset in an IPv4 header.
const OFFSET_IPV4: u16 = 0x1fff_u16.to_be();
/// Bits of the fragment's offset in an IPv6 fragment header.
const OFFSET_IPV6: u16 = 0xfff8_u16.to_be();
/// Next header: a fragment.
const FRAGMENT: u8 = 44;

/// The parts of a TCP header that events carry.
pub(crate) struct Tcp {
    /// Sequence number, host byte order.
    pub(crate) seq: u32,
    /// The flags byte.
    pub(crate) flags: u8,
    /// Bytes of the header that the packet does not have.
    pub(crate) lacks: u8,
}

impl Tcp {
    /// Forgets what was read from beyond the end of the packet.
    #[inline(always)]
    fn known(mut self, flow: &mut Flow) -> Self {
        if !reaches(self.lacks, FLAGS_END) {
            self.flags = 0;
        }
        if !reaches(self.lacks, SEQ_END) {
            self.seq = 0;
        }
        if !reaches(self.lacks, PORTS_END) {
            flow.sport = [0; 2];
            flow.dport = [0; 2];
        }
        self
    }
}

/// Where a packet is in memory.
#[derive(Clone, Copy)]
struct Packet {
    /// Its IP header.
    start: u64,
    /// The end of what can be read of it, if that may be anywhere: TCP takes only packets with a whole header.
    end: Option<u64>,
}

impl Packet {
    /// Bytes that a TCP header so many bytes after the IP header lacks.
    #[inline(always)]
    fn lacks(self, length: u64) -> u8 {
        let Some(end) = self.end else { return 0 };
        let there = end.saturating_sub(self.start + length);
        TCP_HEADER - there.min(u64::from(TCP_HEADER)) as u8
    }

    /// The same after an IPv4 header: a later fragment has no TCP header at all.
    #[inline(always)]
    fn lacks_ipv4(self, length: u64, fragment: u16) -> u8 {
        if self.end.is_none() || fragment & OFFSET_IPV4 == 0 {
            self.lacks(length)
        } else {
            TCP_HEADER
        }
    }
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

/// Bytes of a packet from its IP header on, or from where the kernel has got to in it.
#[inline(always)]
pub(crate) fn length<L: Load>(load: L, skb: u64) -> u32 {
    let head: u64 = load.field(skb, Field::SkbHead);
    let network: u16 = load.field(skb, Field::SkbNetworkHeader);
    let data: u64 = load.field(skb, Field::SkbData);
    let len: u32 = load.field(skb, Field::SkbLen);
    // At the queues of a device the header of its link counts too.
    let link = (head + u64::from(network)).saturating_sub(data);
    len.saturating_sub(link as u32)
}

/// Reads addresses and ports of the TCP packet in `skb` into `flow`; `None` if it is not one. It is one that TCP has
/// taken.
#[inline(always)]
pub(crate) fn read<L: Load>(load: L, skb: u64, flow: &mut Flow) -> Option<Tcp> {
    read_up_to(load, skb, None, flow)
}

/// As [`read`], of a packet that may be a fragment, or too short for what it claims to be.
#[inline(always)]
pub(crate) fn read_any<L: Load>(load: L, skb: u64, flow: &mut Flow) -> Option<Tcp> {
    let tail: u32 = load.field(skb, Field::SkbTail);
    let tcp = read_up_to(load, skb, Some(u64::from(tail)), flow)?;
    Some(tcp.known(flow))
}

#[inline(always)]
fn read_up_to<L: Load>(load: L, skb: u64, tail: Option<u64>, flow: &mut Flow) -> Option<Tcp> {
    let protocol: u16 = load.field(skb, Field::SkbProtocol);
    if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
        return None;
    }
    let head: u64 = load.field(skb, Field::SkbHead);
    let network: u16 = load.field(skb, Field::SkbNetworkHeader);
    let packet = Packet {
        start: head + u64::from(network),
        end: tail.map(|tail| head + tail),
    };
    let headers = &CONFIG.headers;
    if protocol == ETH_P_IP {
        match load.cast(packet.start, frozen(&headers.ipv4)) {
            Some(ip) => typed_ipv4(load, ip, packet, flow),
            None => ipv4(packet, flow),
        }
    } else {
        match load.cast(packet.start, frozen(&headers.ipv6)) {
            Some(ip) if u16::from(load.at::<u8>(ip, 6)) == IPPROTO_TCP => {
                typed_ipv6(load, ip, packet, flow)
            }
            _ => ipv6(packet, flow),
        }
    }
}

/// The parts of the TCP header that begins with these words.
#[inline(always)]
fn tcp(words: [u32; 4], lacks: u8, flow: &mut Flow) -> Tcp {
    let [sport0, sport1, dport0, dport1] = words[0].to_ne_bytes();
    flow.sport = [sport0, sport1];
    flow.dport = [dport0, dport1];
    flow.protocol = IPPROTO_TCP;
    Tcp {
        seq: u32::from_be(words[1]),
        flags: words[3].to_ne_bytes()[1],
        lacks,
    }
}

/// As [`ipv4`], of a typed pointer to the header.
#[inline(always)]
fn typed_ipv4<L: Load>(load: L, ip: u64, packet: Packet, flow: &mut Flow) -> Option<Tcp> {
    let version_ihl: u8 = load.at(ip, 0);
    if u16::from(load.at::<u8>(ip, 9)) != IPPROTO_TCP || version_ihl >> 4 != 4 {
        return None;
    }
    flow.family = AF_INET;
    flow.saddr = crate::sock::join([u64::from(load.at::<u32>(ip, 12)), 0]);
    flow.daddr = crate::sock::join([u64::from(load.at::<u32>(ip, 16)), 0]);
    let length = u64::from(version_ihl & 0xf) * 4;
    let lacks = packet.lacks_ipv4(length, load.at(ip, 6));
    typed_tcp(load, packet.start + length, lacks, flow)
}

/// As [`ipv6`], of a typed pointer to a header that TCP follows at once.
#[inline(always)]
fn typed_ipv6<L: Load>(load: L, ip: u64, packet: Packet, flow: &mut Flow) -> Option<Tcp> {
    flow.family = AF_INET6;
    flow.saddr = crate::sock::join([load.at(ip, 8), load.at(ip, 16)]);
    flow.daddr = crate::sock::join([load.at(ip, 24), load.at(ip, 32)]);
    typed_tcp(load, packet.start + 40, packet.lacks(40), flow)
}

#[inline(always)]
fn typed_tcp<L: Load>(load: L, header: u64, lacks: u8, flow: &mut Flow) -> Option<Tcp> {
    let header = load.cast(header, frozen(&CONFIG.headers.tcp))?;
    flow.sport = load.at(header, 0);
    flow.dport = load.at(header, 2);
    flow.protocol = IPPROTO_TCP;
    let seq: u32 = load.at(header, 4);
    Some(Tcp {
        seq: u32::from_be(seq),
        flags: load.at(header, 13),
        lacks,
    })
}

/// Without a type, packet bytes are read by helper; both headers at once unless there are IP
/// options.
#[inline(always)]
fn ipv4(packet: Packet, flow: &mut Flow) -> Option<Tcp> {
    let header: [u32; 9] = Probed.at(packet.start, 0);
    let version_ihl = header[0].to_ne_bytes()[0];
    let protocol = header[2].to_ne_bytes()[1];
    if u16::from(protocol) != IPPROTO_TCP || version_ihl >> 4 != 4 {
        return None;
    }
    flow.family = AF_INET;
    flow.saddr = crate::sock::join([u64::from(header[3]), 0]);
    flow.daddr = crate::sock::join([u64::from(header[4]), 0]);
    let length = u64::from(version_ihl & 0xf) * 4;
    let [_, _, high, low] = header[1].to_ne_bytes();
    let lacks = packet.lacks_ipv4(length, u16::from_ne_bytes([high, low]));
    let words = if length == 20 {
        [header[5], header[6], header[7], header[8]]
    } else {
        Probed.at(packet.start, length)
    };
    Some(tcp(words, lacks, flow))
}

/// As [`ipv4`]; the fixed header is 40 bytes, and extensions may follow it.
#[inline(always)]
fn ipv6(packet: Packet, flow: &mut Flow) -> Option<Tcp> {
    let header: [u64; 7] = Probed.at(packet.start, 0);
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
        return Some(tcp(words, packet.lacks(40), flow));
    }
    let mut length = 40;
    let mut is_later = false;
    // Hop-by-hop, routing and destination options, and a fragment; more than three do not occur in practice.
    for _ in 0..3 {
        let is_fragment = next == FRAGMENT && packet.end.is_some();
        let is_extension = next == 0 || next == 43 || next == 60 || is_fragment;
        if !is_extension || is_later || packet.lacks(length) > TCP_HEADER - 8 {
            break;
        }
        let [follows, size, high, low]: [u8; 4] = Probed.at(packet.start, length);
        if is_fragment {
            is_later = u16::from_ne_bytes([high, low]) & OFFSET_IPV6 != 0;
            length += 8;
        } else {
            length += (u64::from(size) + 1) * 8;
        }
        next = follows;
    }
    if u16::from(next) != IPPROTO_TCP {
        return None;
    }
    let lacks = if is_later {
        TCP_HEADER
    } else {
        packet.lacks(length)
    };
    Some(tcp(Probed.at(packet.start, length), lacks, flow))
}
