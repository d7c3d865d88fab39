//! A connection that came in and was taken up.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// A connection that a process accepted or, where that cannot be seen, that was established.
    pub struct Accept {
        /// Common to all events.
        pub header: Header,
        /// Local end first.
        pub flow: Flow,
        /// The task that called `accept`.
        pub owner: Owner,
        /// From the end of the handshake to `accept`, in nanoseconds; 0 is unknown.
        pub waited_ns: u64,
        /// Connections that still wait (`sk_ack_backlog`); [`NO_QUEUE`] is unknown.
        pub accept_queue: u32,
        /// How many may wait (`sk_max_ack_backlog`).
        pub accept_limit: u32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// A [`Seen`], raw.
        pub seen: u32,
    }
}

/// `accept_queue` where the listener is not at hand.
pub const NO_QUEUE: u32 = u32::MAX;

/// What was seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Seen {
    /// The end of the handshake; nobody need have called `accept`.
    Established = 0,
    /// The return of `accept`.
    Accepted = 1,
}

impl Seen {
    /// Its name; an unknown number reads `established`.
    pub const fn name_of(raw: u32) -> &'static str {
        match raw {
            1 => "accepted",
            _ => "established",
        }
    }
}
