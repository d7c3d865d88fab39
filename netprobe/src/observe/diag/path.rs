//! Round-trip times to one address, and whether they are spent in a queue.

use super::socket::Info;

/// Most round-trip times that are kept of one address.
const LONGEST: usize = 64;
/// Data went over an active connection in the last second.
const ACTIVE_MS: u32 = 1000;
/// A round-trip time of so many times its minimum is spent in a queue.
pub const SWOLLEN: u32 = 3;
/// A minimum below this is within a machine, where scheduling alone makes it swing.
pub const LOCAL_US: u32 = 1000;
/// Less than this may be acknowledgements that the peer delays (40 ms, TCP_DELACK_MIN).
const DELAYED_US: u32 = 50_000;
/// So many segments in flight are acknowledged at once, two by two.
pub const TRAIN: u32 = 10;
/// A request is fewer segments.
const SEVERAL: u32 = 3;

/// Segments up to this many bytes pass everywhere: the smallest MTU that is worth a thought (576, RFC 1122).
const SMALL_BYTES: u32 = 576;

/// Round-trip times to one address, and the sizes of what arrives there and what does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Connections.
    pub connections: u32,
    /// Connections over which data went in the last second.
    pub active: u32,
    /// Of the active ones, those whose round trip is a large multiple of its own minimum (see
    /// [`SWOLLEN`]).
    pub swollen: u32,
    /// Of the swollen ones, those with many segments in flight: they fill a queue, and none of their
    /// acknowledgements is delayed by the peer for want of data.
    pub filling: u32,
    /// Segments in flight, of the active ones that have several in flight and wait after no timeout: bulk, where they are many.
    pub in_flight: u32,
    /// Bytes that all connections have sent so far and that were acknowledged.
    pub arrived_bytes: u64,
    /// Smoothed round-trip times in microseconds, up to a bound.
    pub srtts_us: Vec<u32>,
    /// The smallest round-trip time that was ever measured, in microseconds; 0 is unknown.
    pub min_rtt_us: u32,
    /// Bytes per segment of those that nothing acknowledges though they were sent again and again, up to a bound.
    pub stuck_bytes: Vec<u32>,
    /// Bytes per segment that arrived, of the connection that sends the largest.
    pub arriving_bytes: u32,
    /// Segments with data that all connections have sent so far, those that were sent again included
    /// (`tcpi_data_segs_out`).
    pub data_segments: u64,
    /// Since the peer was last heard of over a connection that has brought it data, in milliseconds; `None` where none has.
    pub unheard_ms: Option<u32>,
    /// Connections with data that was sent again after a timeout and waits for its acknowledgement.
    pub waiting: u32,
    /// How long ago the first of that data was sent for the first time, in milliseconds.
    pub waiting_ms: u32,
}

impl Path {
    pub(super) fn add(&mut self, info: Info) {
        self.connections += 1;
        self.data_segments += u64::from(info.data_segments);
        self.arrived_bytes += info.bytes_acked;
        if self.srtts_us.len() < LONGEST {
            self.srtts_us.push(info.srtt_us);
        }
        self.add_arrived(info);
        if info.min_rtt_us == 0 {
            return;
        }
        if self.min_rtt_us == 0 || info.min_rtt_us < self.min_rtt_us {
            self.min_rtt_us = info.min_rtt_us;
        }
        let is_active = info.idle_ms <= ACTIVE_MS;
        let is_swollen = is_active
            && info.min_rtt_us >= LOCAL_US
            && info.srtt_us / SWOLLEN >= info.min_rtt_us
            && info.srtt_us - info.min_rtt_us >= DELAYED_US;
        let is_sending = is_active && info.backed_off == 0;
        self.active += u32::from(is_active);
        self.swollen += u32::from(is_swollen);
        self.filling += u32::from(is_swollen && is_sending && info.in_flight >= TRAIN);
        if is_sending && info.in_flight >= SEVERAL {
            self.in_flight += info.in_flight;
        }
    }

    fn add_arrived(&mut self, info: Info) {
        let arrived = info.arrived_bytes().unwrap_or(0);
        self.arriving_bytes = arrived.max(self.arriving_bytes);
        if info.has_arrived() {
            let ms = info.unheard_ms;
            self.unheard_ms = Some(self.unheard_ms.map_or(ms, |known| known.min(ms)));
        }
    }

    /// Adds a connection with data that was sent again after a timeout, and what of it arrived before.
    pub(super) fn add_waiting(&mut self, info: Info) {
        self.add_arrived(info);
        let first_ms = u32::try_from(info.sent_first_ms()).unwrap_or(u32::MAX);
        self.waiting += 1;
        self.waiting_ms = self.waiting_ms.max(first_ms);
    }

    /// Whether data waits for its acknowledgement, and nothing was heard of the peer since it was sent for the first time.
    pub fn is_unheard(&self) -> bool {
        let is_since = |ms| ms >= self.waiting_ms;
        self.waiting > 0 && self.unheard_ms.is_none_or(is_since)
    }

    /// Adds what a connection has sent in vain.
    pub(super) fn add_stuck(&mut self, bytes: u32) {
        if self.stuck_bytes.len() < LONGEST {
            self.stuck_bytes.push(bytes);
        }
    }

    /// The size of segments that wait for their acknowledgement in vain, in bytes, where most are larger than all that
    /// arrive, and than what every path takes: it may be for their size.
    pub fn too_large_bytes(&self) -> Option<u32> {
        let mut sizes = self.stuck_bytes.clone();
        sizes.sort_unstable();
        let bytes = sizes.get(sizes.len() / 2).copied()?;
        let is_larger = u64::from(bytes) * 4 > u64::from(self.arriving_bytes) * 5;
        (is_larger && bytes > SMALL_BYTES).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far() -> Info {
        Info {
            idle_ms: 0,
            since_sent_ms: 0,
            since_received_ms: 0,
            unheard_ms: 0,
            srtt_us: 122_000,
            min_rtt_us: 30_000,
            rto_us: 300_000,
            bytes_acked: 0,
            bytes_received: 0,
            in_flight: 100,
            backed_off: 0,
            doubled: 0,
            unsent: 0,
            data_segments: 0,
            resent: 0,
        }
    }

    #[test]
    fn only_active_connections_with_a_long_queue_before_them_are_swollen() {
        let far = far();
        let cases = [
            (far, (1, 1)),
            (
                Info {
                    in_flight: 1,
                    ..far
                },
                (1, 0),
            ),
            // A timeout is no queue.
            (
                Info {
                    backed_off: 1,
                    ..far
                },
                (1, 0),
            ),
            (
                Info {
                    idle_ms: 5000,
                    ..far
                },
                (0, 0),
            ),
            // Within a machine.
            (
                Info {
                    min_rtt_us: 40,
                    ..far
                },
                (0, 0),
            ),
            (
                Info {
                    srtt_us: 70_000,
                    ..far
                },
                (0, 0),
            ),
            // A delayed acknowledgement.
            (
                Info {
                    srtt_us: 45_000,
                    min_rtt_us: 5000,
                    ..far
                },
                (0, 0),
            ),
        ];
        for (info, expected) in cases {
            let mut path = Path::default();
            path.add(info);
            assert_eq!((path.swollen, path.filling), expected, "{info:?}");
        }
    }

    #[test]
    fn a_peer_is_heard_of_over_connections_that_have_brought_it_data() {
        let unheard = |connections: &[(u64, u32)]| {
            let mut path = Path::default();
            for (bytes_acked, unheard_ms) in connections {
                path.add(Info {
                    bytes_acked: *bytes_acked,
                    unheard_ms: *unheard_ms,
                    ..far()
                });
            }
            path.unheard_ms
        };
        assert_eq!(unheard(&[(0, 9), (1, 10)]), None);
        assert_eq!(unheard(&[(2, 700), (900, 40), (1, 10)]), Some(40));
    }

    #[test]
    fn a_peer_is_unheard_since_the_first_of_what_it_does_not_acknowledge() {
        // The fourth attempt after timeouts of 200, 400 and 800 ms, 100 ms ago.
        let waiting = Info {
            rto_us: 1_600_000,
            backed_off: 3,
            doubled: 3,
            since_sent_ms: 100,
            bytes_acked: 900,
            unheard_ms: 4000,
            ..far()
        };
        let mut path = Path::default();
        assert!(!path.is_unheard());
        path.add_waiting(waiting);
        path.add_stuck(100);
        assert_eq!((path.waiting, path.waiting_ms), (1, 1500));
        assert!(path.is_unheard());
        path.add(Info {
            bytes_acked: 900,
            unheard_ms: 1400,
            ..far()
        });
        assert!(!path.is_unheard());
    }
}
