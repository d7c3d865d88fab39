//! What every event begins with, and the one list of event kinds.

use crate::record;
use crate::record::Plain;
use crate::records::{
    accepts::Accept, connects::Connect, conntrack::TableFull, drops::Drop, lifetimes::Lifetime,
    listeners::Refusal, resets::Reset, retransmits::Retransmit, states::StateChange,
    time_wait::TimeWait,
};

record! {
    /// The first bytes of every event.
    pub struct Header {
        /// When, in nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
        pub ts_ns: u64,
        /// The [`Kind`] of the event, raw.
        pub kind: u16,
        /// Size of the whole record in bytes.
        pub len: u16,
        /// The CPU that saw it.
        pub cpu: u32,
    }
}

/// A record that is sent as an event.
pub trait Event: Plain {
    /// Its kind, as the header carries it.
    const KIND: Kind;
}

macro_rules! kinds {
    ($( $(#[$meta:meta])* $variant:ident = $raw:literal, $name:literal, $record:ty; )+) => {
        /// The kinds of event, one per probe; the number is the wire value and counter index.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Kind { $( $(#[$meta])* $variant = $raw ),+ }

        impl Kind {
            /// Every kind, in wire order.
            pub const ALL: &'static [Self] = &[ $( Self::$variant ),+ ];

            /// The kind with this wire value.
            pub const fn from_raw(raw: u16) -> Option<Self> {
                match raw { $( $raw => Some(Self::$variant), )+ _ => None }
            }

            /// Its name on the command line and in JSON.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name ),+ }
            }

            /// The size of its record in bytes.
            pub const fn size(self) -> usize {
                match self { $( Self::$variant => size_of::<$record>() ),+ }
            }
        }

        $(
            impl Event for $record { const KIND: Kind = Kind::$variant; }
            const _: () = assert!(size_of::<$record>().is_multiple_of(8), "records keep 8-byte alignment");
        )+
    };
}

kinds! {
    /// Packets that the kernel threw away.
    Drops = 0, "drops", Drop;
    /// Segments that TCP sent again.
    Retransmits = 1, "retransmits", Retransmit;
    /// Outgoing connections: how long, and how they ended.
    Connects = 2, "connects", Connect;
    /// Connections that a listener refused for want of room.
    Listeners = 3, "listeners", Refusal;
    /// Connections that a full conntrack table refused.
    Conntrack = 4, "conntrack", TableFull;
    /// Resets that were sent or received.
    Resets = 5, "resets", Reset;
    /// Connections that have ended.
    Lifetimes = 6, "lifetimes", Lifetime;
    /// Connections that entered TIME_WAIT.
    TimeWait = 7, "time-wait", TimeWait;
    /// Changes of TCP states.
    States = 8, "states", StateChange;
    /// Connections that came in and were accepted.
    Accepts = 9, "accepts", Accept;
}

// Wire values are the counter indices, so they count up from zero without a gap.
const _: () = {
    let mut index = 0;
    while index < Kind::ALL.len() {
        assert!(Kind::ALL[index] as usize == index);
        index += 1;
    }
};
