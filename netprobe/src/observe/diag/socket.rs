//! Sockets as `sock_diag` lists them: `struct inet_diag_msg`, and of `struct tcp_info` what is asked of it.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;

use super::super::netlink::{self, attributes, u32_at};
use super::{CLOSE_WAIT, ESTABLISHED, LISTEN};

const NETLINK_SOCK_DIAG: isize = 4;
/// Lists both families in one walk over the hash table, which all namespaces share: as ss(8) does.
const TCPDIAG_GETSOCK: u16 = 18;
const AF_INET: u8 = 2;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// Length of `struct inet_diag_msg`, after which attributes begin.
const MESSAGE: usize = 72;

/// What the kernel says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(super) state: u8,
    pub(super) timer: u8,
    pub(super) local: IpAddr,
    pub(super) local_port: u16,
    pub(super) remote: IpAddr,
    pub(super) remote_port: u16,
    pub(super) receive_queue: u32,
    pub(super) send_queue: u32,
    pub(super) ino: u32,
    /// Of a listener: IPV6_V6ONLY.
    pub(super) is_v6_only: bool,
    pub(super) info: Option<Info>,
}

impl Socket {
    /// How long it waits to be accepted. Nobody holds it yet, so it has no inode; and nobody has sent
    /// anything over it, so it counts from the end of the handshake, where `tcp_create_openreq_child`
    /// set the time of the last data sent.
    pub(super) fn waiting_ms(&self) -> Option<u32> {
        let is_waiting = self.ino == 0 && matches!(self.state, ESTABLISHED | CLOSE_WAIT);
        self.info
            .filter(|_| is_waiting)
            .map(|info| info.since_sent_ms)
    }
}

/// Of `struct tcp_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// Since data went either way.
    pub(super) idle_ms: u32,
    /// Since data was sent, or the connection was made.
    pub(super) since_sent_ms: u32,
    /// Since the peer acknowledged anything.
    pub(super) unheard_ms: u32,
    pub(super) srtt_us: u32,
    pub(super) min_rtt_us: u32,
    pub(super) rto_us: u32,
    pub(super) bytes_acked: u64,
    /// Segments sent and not acknowledged.
    pub(super) in_flight: u32,
    /// Timeouts in a row.
    pub(super) backed_off: u8,
}

/// Hands over every socket of both families in one of the `states`.
pub(super) fn visit(states: u32, mut each: impl FnMut(&Socket)) -> Result<()> {
    netlink::list(
        NETLINK_SOCK_DIAG,
        TCPDIAG_GETSOCK,
        &request(states),
        |message| {
            if let Some(socket) = parse(message) {
                each(&socket);
            }
        },
    )
}

/// `struct inet_diag_req`
fn request(states: u32) -> Vec<u8> {
    let extensions = if states == 1 << LISTEN {
        0
    } else {
        1 << (INET_DIAG_INFO - 1)
    };
    // No family, no lengths of addresses, and no address or port.
    let mut request = vec![0, 0, 0, extensions];
    request.extend([0; 48]);
    request.extend(states.to_ne_bytes());
    request.extend([0; 4]);
    request
}

/// `struct inet_diag_msg` and its attributes.
pub(crate) fn parse(message: &[u8]) -> Option<Socket> {
    let family = *message.first()?;
    let port = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let address = |at: usize| {
        let bytes: [u8; 16] = *message.get(at..)?.first_chunk()?;
        Some(match family {
            AF_INET => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
            _ => Ipv6Addr::from(bytes).to_canonical(),
        })
    };
    Some(Socket {
        state: *message.get(1)?,
        timer: *message.get(2)?,
        local_port: port(4)?,
        remote_port: port(6)?,
        local: address(8)?,
        remote: address(24)?,
        receive_queue: u32_at(message, 56)?,
        send_queue: u32_at(message, 60)?,
        ino: u32_at(message, 68)?,
        is_v6_only: attributes(message.get(MESSAGE..)?)
            .any(|(kind, value)| kind == INET_DIAG_SKV6ONLY && value.first() == Some(&1)),
        info: attributes(message.get(MESSAGE..)?)
            .find_map(|(kind, value)| (kind == INET_DIAG_INFO).then(|| info(value)))
            .flatten(),
    })
}

/// Times since data was last sent and received, and round-trip times.
fn info(bytes: &[u8]) -> Option<Info> {
    Some(Info {
        since_sent_ms: u32_at(bytes, 44)?,
        idle_ms: u32_at(bytes, 44)?.min(u32_at(bytes, 52)?),
        unheard_ms: u32_at(bytes, 56)?,
        srtt_us: u32_at(bytes, 68)?,
        min_rtt_us: u32_at(bytes, 148).unwrap_or(0),
        rto_us: u32_at(bytes, 8)?,
        bytes_acked: netlink::u64_at(bytes, 120).unwrap_or(0),
        in_flight: u32_at(bytes, 24)?,
        backed_off: *bytes.get(2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_messages_are_no_sockets() {
        for length in 0..MESSAGE {
            assert_eq!(parse(&vec![AF_INET; length]), None, "{length}");
        }
        assert!(parse(&[AF_INET; MESSAGE]).is_some());
        assert_eq!(info(&[0; 60]), None);
    }
}
