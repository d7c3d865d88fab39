//! What has arrived over accepted connections and was not read: the requests of clients that nobody serves, or what a
//! reader takes in its own time.

use std::collections::HashMap;

use super::{LARGEST, socket::Socket};

/// What has arrived and was not read for this long is not merely about to be, in milliseconds.
pub const UNREAD_MS: u32 = 3000;
/// Whoever reads at all has read this in that time, in bytes.
pub(super) const SMALL: u32 = 32 << 10;

/// The accepted connections of a port over which something arrived that was not read, and nothing was sent since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// With a little that arrived, however long ago.
    pub now: u32,
    /// With a little that arrived [`UNREAD_MS`] ago or earlier.
    pub connections: u32,
    /// The longest time since then, in milliseconds.
    pub longest_ms: u32,
    /// With more than a little, by inode number of the socket; up to a bound.
    large: HashMap<u64, Large>,
}

/// A receive queue that takes its time to be read, or is not read at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Large {
    /// Bytes that were read.
    read: u64,
    /// Since data arrived, in milliseconds.
    waits_ms: u32,
}

impl Unread {
    /// Adds a socket; whether it is one of these, for as long as [`UNREAD_MS`].
    pub(super) fn add(&mut self, socket: &Socket) -> bool {
        let Some(waiting) = socket.unread() else {
            return false;
        };
        let is_old = waiting.ms >= UNREAD_MS;
        if waiting.bytes > SMALL {
            if self.large.len() < LARGEST {
                let large = Large {
                    read: waiting.read,
                    waits_ms: waiting.ms,
                };
                self.large.insert(socket.ino.into(), large);
            }
            return is_old;
        }
        self.now += 1;
        if is_old {
            self.connections += 1;
            self.longest_ms = self.longest_ms.max(waiting.ms);
        }
        is_old
    }

    /// Whether there may be any that nobody reads from.
    pub fn is_any(&self) -> bool {
        self.connections > 0 || !self.large.is_empty()
    }

    /// How many of these connections nobody has read from for [`UNREAD_MS`], and for how long, in milliseconds: large
    /// queues only where nothing was read since `before`.
    pub fn since(&self, before: Option<&Self>) -> (u32, u32) {
        let mut sum = (self.connections, self.longest_ms);
        for (ino, large) in &self.large {
            let earlier = before.and_then(|before| before.large.get(ino));
            let is_stuck = earlier.is_some_and(|earlier| earlier.read == large.read);
            if is_stuck && large.waits_ms >= UNREAD_MS {
                sum = (sum.0 + 1, sum.1.max(large.waits_ms));
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(read: u64, waits_ms: u32) -> Unread {
        Unread {
            large: HashMap::from([(7, Large { read, waits_ms })]),
            ..Unread::default()
        }
    }

    #[test]
    fn a_large_queue_is_stuck_only_if_nothing_was_read_meanwhile() {
        let after = large(50_000, 9000);
        assert_eq!(after.since(Some(&large(50_000, 1000))), (1, 9000));
        // Read in steps: what arrives in between is a matter of the window.
        assert_eq!(after.since(Some(&large(20_000, 1000))), (0, 0));
        assert_eq!(after.since(None), (0, 0));
        assert_eq!(large(50_000, 100).since(Some(&large(50_000, 50))), (0, 0));
    }
}
