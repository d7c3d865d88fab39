//! A closed connection whose address pair is kept from use for a while.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// A connection that entered TIME_WAIT, or found no room there.
    pub struct TimeWait {
        /// Common to all events.
        pub header: Header,
        /// Local end first.
        pub flow: Flow,
        /// The task that opened the connection, or else the one that closed it.
        pub owner: Owner,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// A [`super::Role`], raw.
        pub role: u8,
        /// An [`Outcome`], raw.
        pub outcome: u8,
        /// TCP state that it waits in: TIME_WAIT, or FIN_WAIT2 until the peer closes too.
        pub state: u8,
        /// Reserved, zero.
        pub reserved: u8,
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// This kernel cannot be asked.
    Unknown = 0,
    /// It waits.
    Entered = 1,
    /// There was no room: the connection was forgotten at once (`TCPTimeWaitOverflow`).
    Refused = 2,
}

impl Outcome {
    /// Its name; `None` where it is unknown.
    pub const fn name_of(raw: u8) -> Option<&'static str> {
        match raw {
            1 => Some("entered"),
            2 => Some("refused"),
            _ => None,
        }
    }
}
