//! A storm of drops: resets to a closed port of loopback, as fast as the CPUs go or at a rate.
//!
//! A reset is never answered, so each packet that is sent is one that TCP drops (`NO_SOCKET`).

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use super::packet::checksum;
use crate::netns::Netns;

/// Packets that one system call sends.
const BATCH: usize = 256;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Threads that send, each on a CPU of its own.
    pub senders: u32,
    /// Packets per second over all senders; none is as fast as it goes.
    pub rate: Option<u64>,
    /// How many different connections the packets belong to; each ten to a port.
    pub flows: u32,
    /// The one that it begins with.
    pub first: u32,
}

impl Storm {
    /// One connection, as fast as it goes on all CPUs.
    pub fn full() -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self {
            senders: u32::try_from(cpus).unwrap_or(1),
            rate: None,
            flows: 1,
            first: 0,
        }
    }

    /// Sends for so long; says how many packets were sent, all of which TCP has dropped by then.
    pub fn rage(self, netns: &Netns, length: Duration) -> u64 {
        thread::scope(|scope| {
            let senders: Vec<_> = (0..self.senders)
                .map(|index| {
                    scope.spawn(move || {
                        netns.enter();
                        self.send(index, length)
                    })
                })
                .collect();
            let sent = senders.into_iter().map(thread::ScopedJoinHandle::join);
            sent.map(|sent| sent.expect("a sender goes on to the end"))
                .sum()
        })
    }

    fn send(self, index: u32, length: Duration) -> u64 {
        let socket = raw_socket();
        let mut packets = Packets::new();
        let (began, mut sent, mut flow) = (Instant::now(), 0, self.first + index);
        while began.elapsed() < length {
            if let Some(rate) = self.rate {
                let due = began.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000;
                if u128::from(sent) * u128::from(self.senders) > due {
                    thread::sleep(Duration::from_micros(100));
                    continue;
                }
            }
            if self.flows > 1 {
                flow = packets.of_flows(flow, self.flows, self.senders);
            }
            sent += packets.send(&socket);
        }
        sent
    }
}

/// A batch of packets, ready to be sent again and again.
struct Packets {
    bytes: Vec<[u8; 40]>,
}

impl Packets {
    fn new() -> Self {
        Self {
            bytes: vec![reset(0); BATCH],
        }
    }

    /// Makes them belong to the flows from `first` on; returns the one after the last.
    fn of_flows(&mut self, first: u32, flows: u32, step: u32) -> u32 {
        let mut flow = first;
        for packet in &mut self.bytes {
            *packet = reset(flow);
            flow = (flow + step) % flows;
        }
        flow
    }

    fn send(&mut self, socket: &OwnedFd) -> u64 {
        let mut address = loopback();
        let mut parts: Vec<libc::iovec> = self
            .bytes
            .iter_mut()
            .map(|packet| libc::iovec {
                iov_base: packet.as_mut_ptr().cast(),
                iov_len: packet.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all zeroes is a valid `mmsghdr`.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = (&raw mut address).cast();
                message.msg_hdr.msg_namelen = 16;
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let count = u32::try_from(messages.len()).expect("a batch is small");
        // SAFETY: there are that many messages, and what they point to outlives the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        u64::try_from(sent).unwrap_or_else(|_| panic!("sendmmsg: {}", io::Error::last_os_error()))
    }
}

/// A reset from a client of 10.x.y.z that depends on `flow`, to one of some closed ports.
fn reset(flow: u32) -> [u8; 40] {
    let mut packet = [0; 40];
    let [_, _, port_high, port_low] = (flow % 50_000 + 10_000).to_be_bytes();
    let [_, a, b, c] = (flow / 50_000 + 1).to_be_bytes();
    let source = [127, a, b, c];
    packet[..20].copy_from_slice(&[
        0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 127, 0, 0, 1,
    ]);
    packet[12..16].copy_from_slice(&source);
    let port = 9 + u8::try_from(flow % 10).expect("less than ten");
    packet[20..40].copy_from_slice(&[
        port_high, port_low, 0, port, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 4, 0, 0, 0, 0, 0, 0,
    ]);
    let mut pseudo = vec![0, 6, 0, 20];
    pseudo.extend(&packet[12..40]);
    let sum = checksum(&pseudo);
    packet[36..38].copy_from_slice(&sum);
    packet
}

fn loopback() -> libc::sockaddr_in {
    // SAFETY: all zeroes is a valid `sockaddr_in`.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = 2;
    address.sin_addr.s_addr = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    address
}

fn raw_socket() -> OwnedFd {
    // SAFETY: no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_RAW,
        )
    };
    assert!(fd >= 0, "raw socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
