//! Hand-made TCP packets, sent as they are from the client's end of a cable to the server's.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{CLIENT, Family, SERVER};
use crate::netns::INTERFACE;

/// TCP flags.
pub mod flags {
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Ends one at once.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// What there is of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All of it.
    Whole,
    /// It is the first of several fragments.
    First,
    /// It is a later fragment: what looks like a TCP header is none.
    Later,
}

impl Shape {
    /// The offset of the fragment in bytes, and whether more of them follow.
    const fn fragment(self) -> (u16, bool) {
        match self {
            Self::Whole => (0, false),
            Self::First => (0, true),
            Self::Later => (80, false),
        }
    }
}

/// A TCP packet without payload, from the client to the server.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Port of the client.
    pub sport: u16,
    /// Port of the server.
    pub dport: u16,
    /// See [`flags`].
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Whether its checksum is right.
    pub is_intact: bool,
    /// What there is of it.
    pub shape: Shape,
}

impl Packet {
    /// A packet with these flags to this port of the server.
    pub const fn new(family: Family, flags: u8, dport: u16) -> Self {
        Self {
            family,
            sport: 40_000,
            dport,
            flags,
            seq: 1_000_000,
            is_intact: true,
            shape: Shape::Whole,
        }
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0x77, 0, 0, 0, 2, 2, 0x77, 0, 0, 0, 1];
        let mut tcp = self.tcp();
        let length = u8::try_from(tcp.len()).expect("a header is short");
        let mut pseudo = vec![0, 6, 0, length];
        let ends = match self.family {
            Family::V6 => [CLIENT.1.octets(), SERVER.1.octets()].concat(),
            Family::V4 | Family::Mapped => [CLIENT.0.octets(), SERVER.0.octets()].concat(),
        };
        pseudo.extend(&ends);
        pseudo.extend(&tcp);
        let mut sum = checksum(&pseudo);
        if !self.is_intact {
            sum[0] ^= 0x55;
        }
        tcp[16..18].copy_from_slice(&sum);
        bytes.extend(match self.family {
            Family::V6 => self.ipv6(&ends, length),
            Family::V4 | Family::Mapped => self.ipv4(&ends, length),
        });
        bytes.extend(tcp);
        bytes
    }

    /// The type of the frame and the IPv4 header, of so many bytes of TCP.
    fn ipv4(&self, ends: &[u8], length: u8) -> Vec<u8> {
        let fragment = match self.shape.fragment() {
            (0, false) => 0x4000,
            (offset, more) => (offset / 8) | (u16::from(more) << 13),
        };
        let [high, low] = fragment.to_be_bytes();
        let mut ip = vec![0x45, 0, 0, 20 + length, 0, 1, high, low, 64, 6, 0, 0];
        ip.extend(ends);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        [&[8, 0][..], &ip].concat()
    }

    /// The type of the frame, the IPv6 header, and one for a fragment, of so many bytes of TCP.
    fn ipv6(&self, ends: &[u8], length: u8) -> Vec<u8> {
        let (next, extension) = match self.shape.fragment() {
            (0, false) => (6, vec![]),
            (offset, more) => {
                let [high, low] = (offset | u16::from(more)).to_be_bytes();
                (44, vec![6, 0, high, low, 0, 0, 0, 1])
            }
        };
        let length = length + u8::try_from(extension.len()).expect("it is short");
        let ip = [0x86, 0xdd, 0x60, 0, 0, 0, 0, length, next, 64];
        [&ip, ends, &extension].concat()
    }

    fn tcp(&self) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(20);
        tcp.extend(self.sport.to_be_bytes());
        tcp.extend(self.dport.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(1_u32.to_be_bytes());
        tcp.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp
    }
}

/// The internet checksum.
pub(super) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        _ => u32::from(pair[0]) << 8,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

/// The bare cable.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Opens the cable of the namespace that this thread is in.
    pub fn open() -> Self {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor for us.
        let wire = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: all zeroes is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = 17;
        address.sll_ifindex = index();
        let length = u32::try_from(size_of_val(&address)).expect("an address is short");
        // SAFETY: the address is as long as it is said to be.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "bind: {}", io::Error::last_os_error());
        wire
    }

    /// Sends a packet.
    pub fn send(&self, packet: &Packet) {
        assert_eq!(self.flood(packet, 1), 1, "{}", io::Error::last_os_error());
    }

    /// Sends a packet up to `count` times, as fast as it goes; says how many times it was sent.
    pub fn flood(&self, packet: &Packet, count: usize) -> u64 {
        const BATCH: usize = 64;
        let mut bytes = packet.bytes();
        let mut part = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: all zeroes is a valid `mmsghdr`.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; BATCH];
        let mut sent = 0;
        let mut left = count;
        while left > 0 {
            let batch = u32::try_from(left.min(BATCH)).expect("a batch is small");
            // SAFETY: there are that many messages, and each points to `bytes` through `part`.
            let result =
                unsafe { libc::sendmmsg(self.0.as_raw_fd(), messages.as_mut_ptr(), batch, 0) };
            let Ok(accepted) = usize::try_from(result) else {
                break;
            };
            sent += accepted;
            left -= accepted;
        }
        u64::try_from(sent).expect("a count has 64 bits")
    }
}

fn index() -> i32 {
    let name = std::ffi::CString::new(INTERFACE).expect("a name has no NUL");
    // SAFETY: the name is terminated.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no {INTERFACE} in this namespace");
    index.cast_signed()
}
