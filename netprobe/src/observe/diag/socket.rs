//! Sockets as `sock_diag` lists them: `struct inet_diag_msg`, and of `struct tcp_info` what is asked of it.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;

use super::super::netlink::{self, attributes, u32_at};
use super::{
    CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT_1, LAST_ACK, LISTEN, PERSIST, QUIET_MS, RETRANSMIT,
    SENDING,
};

const NETLINK_SOCK_DIAG: isize = 4;
/// Lists both families in one walk over the hash table, which all namespaces share: as ss(8) does.
const TCPDIAG_GETSOCK: u16 = 18;
const AF_INET: u8 = 2;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// What the headers of a request have at most, with a TLS handshake before them: web servers allow for 8 KiB.
const SMALL: u64 = 8 << 10;
/// Length of `struct inet_diag_msg`, after which attributes begin.
const MESSAGE: usize = 72;

/// What the kernel says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(super) state: u8,
    pub(super) timer: u8,
    /// Until that timer fires, in milliseconds.
    pub(super) timer_ms: u32,
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

    /// Bytes in its receive queue, in which a FIN takes a place as well.
    pub(super) fn unread_bytes(&self) -> u32 {
        let fin = u32::from(self.state == CLOSE_WAIT);
        self.receive_queue.saturating_sub(fin)
    }

    /// What has arrived, was not read by who accepted it, and after which he sent nothing: who sends serves, whether or not he
    /// reads.
    pub(super) fn unread(&self) -> Option<Waiting> {
        let is_open = matches!(self.state, ESTABLISHED | CLOSE_WAIT);
        let info = self.info.filter(|_| is_open && self.ino != 0)?;
        let bytes = self.unread_bytes();
        (bytes > 0 && info.since_sent_ms >= info.since_received_ms).then(|| Waiting {
            bytes,
            read: info.bytes_received.saturating_sub(bytes.into()),
            ms: info.since_received_ms,
        })
    }

    /// Bytes in its queues.
    pub(super) fn queued(&self) -> u64 {
        u64::from(self.receive_queue) + u64::from(self.send_queue)
    }

    /// Whether data waits until the peer takes more: its window is closed, or the path is full.
    pub(super) fn is_held_up(&self) -> bool {
        matches!(self.state, ESTABLISHED | CLOSE_WAIT)
            && self.info.is_some_and(|info| info.unsent > 0)
    }

    /// How long an application that has accepted it could send nothing, as the peer's window is closed, in milliseconds.
    pub(super) fn zero_window_ms(&self) -> Option<u32> {
        let is_probing = self.timer == PERSIST && self.ino != 0 && self.is_held_up();
        self.info
            .filter(|_| is_probing)
            .map(|info| info.since_sent_ms)
    }

    /// What is known of it, if something waits to be acknowledged after a timeout.
    pub(super) fn unanswered(&self) -> Option<Info> {
        let is_sending = self.timer == RETRANSMIT && SENDING.contains(&self.state);
        self.info.filter(|info| is_sending && info.backed_off > 0)
    }

    /// Bytes of data in each segment that waits to be acknowledged, on average. A FIN of its own has none.
    pub(super) fn waiting_bytes(&self) -> Option<u32> {
        let info = self.info?;
        let is_closed = matches!(self.state, FIN_WAIT_1 | LAST_ACK | CLOSING);
        let has_fin = u32::from(is_closed && info.unsent == 0);
        let bytes = self.send_queue.saturating_sub(info.unsent + has_fin);
        let segments = info.in_flight.saturating_sub(has_fin).max(1);
        (info.in_flight > 0).then(|| bytes.div_ceil(segments))
    }
}

/// Data in a receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Bytes that wait to be read.
    pub(super) bytes: u32,
    /// Bytes that were read until now.
    pub(super) read: u64,
    /// Since the last of them arrived, in milliseconds.
    pub(super) ms: u32,
}

/// Of `struct tcp_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// Since data went either way.
    pub(super) idle_ms: u32,
    /// Since data was sent, or the connection was made.
    pub(super) since_sent_ms: u32,
    /// Since data was received.
    pub(super) since_received_ms: u32,
    /// Since the peer acknowledged anything.
    pub(super) unheard_ms: u32,
    pub(super) srtt_us: u32,
    pub(super) min_rtt_us: u32,
    pub(super) rto_us: u32,
    pub(super) bytes_acked: u64,
    /// Bytes that were received in order; 0 before Linux 4.2.
    pub(super) bytes_received: u64,
    /// Segments sent and not acknowledged.
    pub(super) in_flight: u32,
    /// Timeouts in a row.
    pub(super) backed_off: u8,
    /// How often the timeout was doubled meanwhile.
    pub(super) doubled: u8,
    /// Bytes that were written and not sent yet.
    pub(super) unsent: u32,
    /// Segments with data that were sent, also again.
    pub(super) data_segments: u32,
    /// Segments that were sent again.
    pub(super) resent: u32,
}

impl Info {
    /// How long ago what the peer does not acknowledge was sent for the first time: each timeout was twice as long as the
    /// one before, and the last attempt is known.
    pub(super) fn sent_first_ms(&self) -> u64 {
        let now = u64::from(self.rto_us);
        let first = now.checked_shr(self.doubled.into()).unwrap_or(0);
        (now - first) / 1000 + u64::from(self.since_sent_ms)
    }

    /// How long the peer had not been heard of by then, in milliseconds.
    pub(super) fn quiet_before_ms(&self) -> u32 {
        let quiet = u64::from(self.unheard_ms).saturating_sub(self.sent_first_ms());
        u32::try_from(quiet).unwrap_or(u32::MAX)
    }

    /// Whether something arrived and nothing was sent since: a request without an answer, not a connection that is kept
    /// for the next one.
    pub(super) const fn is_asked(&self) -> bool {
        let is_first = self.since_received_ms == self.since_sent_ms && self.bytes_acked <= 1;
        self.bytes_received > 0 && (self.since_received_ms < self.since_sent_ms || is_first)
    }

    /// Whether all that ever came is less than a request may be, the last of it not long ago, and nothing was sent for long.
    pub(super) const fn is_slow_request(&self) -> bool {
        let is_small = self.bytes_received > 0 && self.bytes_received <= SMALL;
        is_small && self.since_sent_ms >= QUIET_MS && self.since_received_ms < QUIET_MS
    }

    /// Whether the peer has acknowledged data; the first byte is that of the SYN.
    pub(super) const fn has_arrived(&self) -> bool {
        self.bytes_acked > 1
    }

    /// Bytes in each segment that arrived, on average; `None` where none did.
    pub(super) fn arrived_bytes(&self) -> Option<u32> {
        let waiting = self.resent.saturating_add(self.in_flight);
        let segments = self.data_segments.saturating_sub(waiting);
        let mean = self.bytes_acked.checked_div(u64::from(segments))?;
        Some(u32::try_from(mean).unwrap_or(u32::MAX))
    }
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
        timer_ms: u32_at(message, 52)?,
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
        since_received_ms: u32_at(bytes, 52)?,
        idle_ms: u32_at(bytes, 44)?.min(u32_at(bytes, 52)?),
        unheard_ms: u32_at(bytes, 56)?,
        srtt_us: u32_at(bytes, 68)?,
        min_rtt_us: u32_at(bytes, 148).unwrap_or(0),
        rto_us: u32_at(bytes, 8)?,
        bytes_acked: netlink::u64_at(bytes, 120).unwrap_or(0),
        bytes_received: netlink::u64_at(bytes, 128).unwrap_or(0),
        in_flight: u32_at(bytes, 24)?,
        backed_off: *bytes.get(2)?,
        doubled: *bytes.get(4)?,
        unsent: u32_at(bytes, 144).unwrap_or(0),
        data_segments: u32_at(bytes, 156).unwrap_or(0),
        resent: u32_at(bytes, 100).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fourth attempt after timeouts of 200, 400 and 800 ms, 100 ms ago.
    fn unanswered() -> Socket {
        let bytes = [0; 160];
        Socket {
            state: ESTABLISHED,
            timer: 1,
            timer_ms: 0,
            local: [10, 0, 0, 1].into(),
            local_port: 40_000,
            remote: [10, 0, 0, 2].into(),
            remote_port: 80,
            receive_queue: 0,
            send_queue: 100,
            ino: 7,
            is_v6_only: false,
            info: info(&bytes).map(|info| Info {
                rto_us: 1_600_000,
                since_sent_ms: 100,
                unheard_ms: 6500,
                backed_off: 3,
                doubled: 3,
                in_flight: 1,
                ..info
            }),
        }
    }

    #[test]
    fn a_slow_request_is_little_that_still_comes_and_had_no_answer() {
        let slow = Info {
            bytes_received: 27,
            since_sent_ms: 12_000,
            since_received_ms: 900,
            ..unanswered().info.unwrap()
        };
        assert!(slow.is_slow_request());
        for other in [
            // Nothing comes any more; an upload; answered a moment ago; nothing ever came.
            Info {
                since_received_ms: 11_000,
                ..slow
            },
            Info {
                bytes_received: 1 << 20,
                ..slow
            },
            Info {
                since_sent_ms: 900,
                ..slow
            },
            Info {
                bytes_received: 0,
                ..slow
            },
        ] {
            assert!(!other.is_slow_request(), "{other:?}");
        }
    }

    #[test]
    fn how_quiet_it_was_before_follows_from_the_attempts_since() {
        let info = unanswered().info.unwrap();
        assert_eq!(info.sent_first_ms(), 1500);
        assert_eq!(info.quiet_before_ms(), 5000);
        // It was heard of right before.
        let busy = Info {
            unheard_ms: 1510,
            ..info
        };
        assert_eq!(busy.quiet_before_ms(), 10);
        let much = Info {
            doubled: 255,
            ..info
        };
        assert_eq!(much.sent_first_ms(), 1700);
    }

    #[test]
    fn a_fin_is_nothing_to_read_and_who_sends_serves() {
        let unread = |state, receive_queue, ino, since_sent_ms| {
            let info = unanswered().info.map(|info| Info {
                since_sent_ms,
                since_received_ms: 4000,
                bytes_received: 100,
                ..info
            });
            let socket = Socket {
                state,
                receive_queue,
                ino,
                info,
                ..unanswered()
            };
            let waiting = socket.unread();
            waiting.map(|waiting| (waiting.bytes, waiting.read, waiting.ms))
        };
        assert_eq!(unread(ESTABLISHED, 1, 7, 5000), Some((1, 99, 4000)));
        assert_eq!(unread(ESTABLISHED, 0, 7, 5000), None);
        assert_eq!(unread(CLOSE_WAIT, 1, 7, 5000), None);
        assert_eq!(unread(CLOSE_WAIT, 3, 7, 5000), Some((2, 98, 4000)));
        // Nobody has accepted it.
        assert_eq!(unread(ESTABLISHED, 1, 0, 5000), None);
        // It was answered without being read.
        assert_eq!(unread(ESTABLISHED, 1, 7, 100), None);
    }

    #[test]
    fn segments_that_wait_are_as_large_as_what_was_sent_of_the_queue() {
        let socket = unanswered();
        assert_eq!(socket.waiting_bytes(), Some(100));
        let with = |state, send_queue, in_flight, unsent| {
            let info = socket.info.map(|info| Info {
                in_flight,
                unsent,
                ..info
            });
            let socket = Socket {
                state,
                send_queue,
                info,
                ..socket
            };
            socket.waiting_bytes()
        };
        assert_eq!(with(ESTABLISHED, 100_000, 10, 85_520), Some(1448));
        // A FIN that waits behind data that was not sent yet.
        assert_eq!(with(FIN_WAIT_1, 20_001, 11, 4073), Some(1448));
        // Data, and the FIN after it.
        assert_eq!(with(FIN_WAIT_1, 101, 2, 0), Some(100));
        assert_eq!(with(FIN_WAIT_1, 1, 1, 0), Some(0));
        assert_eq!(with(ESTABLISHED, 0, 0, 0), None);
    }

    #[test]
    fn what_arrived_is_told_from_what_was_sent_in_vain() {
        let info = unanswered().info.map(|info| Info {
            bytes_acked: 2801,
            data_segments: 6,
            resent: 3,
            ..info
        });
        assert_eq!(info.unwrap().arrived_bytes(), Some(1400));
        assert_eq!(unanswered().info.unwrap().arrived_bytes(), None);
    }

    #[test]
    fn cut_messages_are_no_sockets() {
        for length in 0..MESSAGE {
            assert_eq!(parse(&vec![AF_INET; length]), None, "{length}");
        }
        assert!(parse(&[AF_INET; MESSAGE]).is_some());
        assert_eq!(info(&[0; 60]), None);
    }
}
