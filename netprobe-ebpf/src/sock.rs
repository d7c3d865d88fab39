//! What a socket says about itself: its ends, namespace, state and owner.

use netprobe_common::{offsets::Field, record::Plain, records::Flow};

use crate::{
    cgroups, filter,
    load::{Load, has},
    maps::{CONFIG, frozen},
};

/// `AF_INET`.
pub(crate) const AF_INET: u16 = 2;
/// `AF_INET6`.
pub(crate) const AF_INET6: u16 = 10;
/// `IPPROTO_TCP`.
pub(crate) const IPPROTO_TCP: u16 = 6;

/// TCP states (`include/net/tcp_states.h`).
pub(crate) const TCP_ESTABLISHED: u8 = 1;
/// A SYN was sent.
pub(crate) const TCP_SYN_SENT: u8 = 2;
/// The handshake of an accepted connection, or a SYN crossed a SYN.
pub(crate) const TCP_SYN_RECV: u8 = 3;
/// This end has closed, and waits for the acknowledgement.
pub(crate) const TCP_FIN_WAIT1: u8 = 4;
/// This end has closed, and waits for the peer to.
pub(crate) const TCP_FIN_WAIT2: u8 = 5;
/// A small `inet_timewait_sock`, not a full socket.
pub(crate) const TCP_TIME_WAIT: u8 = 6;
/// Closed.
pub(crate) const TCP_CLOSE: u8 = 7;
/// The peer has closed.
pub(crate) const TCP_CLOSE_WAIT: u8 = 8;
/// The peer has closed, then this end, which waits for the acknowledgement.
pub(crate) const TCP_LAST_ACK: u8 = 9;
/// Listening.
pub(crate) const TCP_LISTEN: u8 = 10;
/// Both ends closed at once; this one waits for the acknowledgement.
pub(crate) const TCP_CLOSING: u8 = 11;
/// A small `request_sock`, not a full socket.
pub(crate) const TCP_NEW_SYN_RECV: u8 = 12;

/// Bits of `sk_flags` (`enum sock_flags`): the application has closed it.
pub(crate) const SOCK_DEAD: u32 = 1 << 0;
/// The peer has closed.
pub(crate) const SOCK_DONE: u32 = 1 << 1;
/// `SO_LINGER` is set.
pub(crate) const SOCK_LINGER: u32 = 1 << 4;

/// A `struct sock` (or the `sock_common` that smaller sockets begin with).
#[derive(Clone, Copy)]
pub(crate) struct Sock<L> {
    /// How its memory is read.
    pub(crate) load: L,
    /// Its address, not null.
    pub(crate) address: u64,
}

impl<L: Load> Sock<L> {
    /// The socket at `address`, unless that is null.
    #[inline(always)]
    pub(crate) fn new(load: L, address: u64) -> Option<Self> {
        if address == 0 {
            return None;
        }
        Some(Self { load, address })
    }

    /// Its TCP state.
    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        self.load.field(self.address, Field::SkcState)
    }

    /// Its address family.
    #[inline(always)]
    pub(crate) fn family(self) -> u16 {
        self.load.field(self.address, Field::SkcFamily)
    }

    /// Whether it is TCP over IPv4 or IPv6.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        self.load.field::<u16>(self.address, Field::SkProtocol) == IPPROTO_TCP
    }

    /// Whether `state` belongs to a `struct sock` in full.
    #[inline(always)]
    pub(crate) fn is_full(state: u8) -> bool {
        state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV
    }

    /// A field of the `tcp_sock` that it begins; zeroes if it is none.
    #[inline(always)]
    pub(crate) fn tcp_field<T: Plain>(self, field: Field) -> T {
        match self.load.tcp_sock(self.address) {
            Some(tcp) => self.load.field(tcp, field),
            None => T::zeroed(),
        }
    }

    /// Its flags, of [`SOCK_DEAD`] and so on.
    #[inline(always)]
    pub(crate) fn flags(self) -> u32 {
        self.load.field(self.address, Field::SkcFlags)
    }

    /// Its pending error as a negative errno; 0 is none.
    #[inline(always)]
    pub(crate) fn error(self) -> i32 {
        -self.load.field::<i32>(self.address, Field::SkErr)
    }

    /// Whether no file refers to it: it was closed, or not accepted yet.
    #[inline(always)]
    pub(crate) fn is_detached(self) -> bool {
        self.load.field::<u64>(self.address, Field::SkSocket) == 0
    }

    /// Its address, to follow pointers from.
    ///
    /// VERIFIER: for each pointer that is read through one it trusts, it searches all of the kernel's types for up to
    /// four names (`btf_nested_type_is_trusted`), on every path; that was a third of the time to start.
    #[inline(always)]
    fn untrusted(self) -> u64 {
        let cast = self.load.cast(self.address, frozen(&CONFIG.headers.sock));
        cast.unwrap_or(self.address)
    }

    /// Address of its network namespace.
    #[inline(always)]
    pub(crate) fn net(self) -> u64 {
        self.load.field(self.untrusted(), Field::SkcNet)
    }

    /// Inode number of its network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        filter::netns(self.load, self.net())
    }

    /// Fills in both ends, the local one as source.
    #[inline(always)]
    pub(crate) fn flow(self, flow: &mut Flow) {
        flow.family = self.family();
        flow.protocol = IPPROTO_TCP;
        flow.netns = self.netns();
        let local_port: u16 = self.load.field(self.address, Field::SkcNum);
        flow.sport = local_port.to_be_bytes();
        flow.dport = self.load.field(self.address, Field::SkcDport);
        flow.saddr = self.local_address(flow.family);
        flow.daddr = self.peer_address(flow.family);
    }

    /// Gives a packet of this socket, which names its own ends, their addresses as the socket has them: an IPv6 socket
    /// has IPv4 addresses mapped.
    #[inline(always)]
    pub(crate) fn adopt(self, flow: &mut Flow) {
        if flow.family == AF_INET && self.family() == AF_INET6 {
            flow.family = AF_INET6;
            flow.saddr = map_v4(&flow.saddr);
            flow.daddr = map_v4(&flow.daddr);
        }
    }

    /// As [`Sock::flow`] for a full socket that may be closed already: then only `inet_sport`
    /// still knows the local port.
    #[inline(always)]
    pub(crate) fn last_flow(self, flow: &mut Flow) {
        self.flow(flow);
        flow.sport = self.tcp_field(Field::InetSport);
    }

    /// The local address, IPv4 in the first four bytes.
    #[inline(always)]
    pub(crate) fn local_address(self, family: u16) -> [u8; 16] {
        self.ip(family, Field::SkcRcvSaddr, Field::SkcV6RcvSaddr)
    }

    /// The peer's address, IPv4 in the first four bytes.
    #[inline(always)]
    pub(crate) fn peer_address(self, family: u16) -> [u8; 16] {
        self.ip(family, Field::SkcDaddr, Field::SkcV6Daddr)
    }

    #[inline(always)]
    fn ip(self, family: u16, v4: Field, v6: Field) -> [u8; 16] {
        if family == AF_INET6 {
            let halves: [u64; 2] = [
                self.load.field(self.address, v6),
                self.load
                    .at(self.address, u64::from(crate::load::offset_of(v6)) + 8),
            ];
            return join(halves);
        }
        let word: u32 = self.load.field(self.address, v4);
        join([u64::from(word), 0])
    }

    /// Whether it is a copy of its listener, whose backlog an accepted socket keeps, or has listened itself.
    #[inline(always)]
    pub(crate) fn was_accepted(self) -> bool {
        self.load.field::<u32>(self.address, Field::SkMaxAckBacklog) != 0
    }

    /// Whether the application has closed it.
    #[inline(always)]
    pub(crate) fn is_dead(self) -> bool {
        self.flags() & SOCK_DEAD != 0
    }

    /// Id of the cgroup (version 2) that it was made in; 0 is unknown. Of a full socket only.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> u64 {
        let address = self.cgroup_address();
        if has(Field::SkCgroup) && address != 0 {
            let node: u64 = self.load.field(address, Field::CgroupKn);
            return self.load.field(node, Field::KernfsNodeId);
        }
        cgroups::id(address)
    }

    /// Address of that cgroup; 0 is unknown.
    #[inline(always)]
    pub(crate) fn cgroup_address(self) -> u64 {
        if has(Field::SkCgroup) {
            return self.load.field(self.untrusted(), Field::SkCgroup);
        }
        // A pointer unless one of the lowest bits says that it is something else (up to 5.15).
        let value: u64 = self.load.field(self.address, Field::SkCgroupVal);
        if value.is_multiple_of(4) { value } else { 0 }
    }

    /// Its inode number as `/proc/PID/fd` shows it; 0 once it is orphaned, or before `accept`.
    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        // A load through a null pointer reads zero too, but by way of a page fault.
        let socket: u64 = self.load.field(self.untrusted(), Field::SkSocket);
        if socket == 0 {
            return 0;
        }
        let file: u64 = self.load.field(socket, Field::SocketFile);
        if file == 0 {
            return 0;
        }
        let inode: u64 = self.load.field(file, Field::FileInode);
        self.load.field(inode, Field::InodeIno)
    }
}

/// Sixteen address bytes out of two words in memory order.
#[inline(always)]
pub(crate) fn join(halves: [u64; 2]) -> [u8; 16] {
    let [low, high] = halves.map(u64::to_ne_bytes);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low);
    bytes[8..].copy_from_slice(&high);
    bytes
}

/// `::ffff:a.b.c.d` of an IPv4 address.
#[inline(always)]
pub(crate) fn map_v4(address: &[u8; 16]) -> [u8; 16] {
    let [a, b, c, d, ..] = *address;
    join([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
}
