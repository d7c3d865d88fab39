//! From bytes of the ring to rows. Needs no kernel: names come from whoever implements
//! [`Names`], live or from a recording.

use std::{fmt, net::IpAddr, sync::Arc};

use netprobe_common::{
    header::{Header, Kind},
    owner::Owner,
    record::read,
};

use crate::{
    probes,
    report::{Row, Value},
};

/// Why a record could not be read. It is counted, not fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Too short for a header, or not of its kind's size.
    Length {
        /// Bytes at hand.
        got: usize,
        /// Bytes expected.
        want: usize,
    },
    /// A kind that this build does not know.
    Kind(u16),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { got, want } => write!(f, "record of {got} bytes where {want} belong"),
            Self::Kind(kind) => write!(f, "record of unknown kind {kind}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A connection that came in, as far as it matters who listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Its end here; any if the address is not known.
    pub local: (Option<IpAddr>, u16),
    /// Id of its control group (version 2), which it has from its listener; 0 is unknown.
    pub cgroup: u64,
    /// When its handshake ended, by `CLOCK_MONOTONIC`; `None` is at any time since we came.
    pub opened_ns: Option<u64>,
}

/// Looks up what the kernel sends as numbers. What is not looked up stays a number, or unknown.
pub trait Names {
    /// What is asked next is asked of this time, by `CLOCK_MONOTONIC`; `None` is now.
    fn at(&mut self, _monotonic_ns: Option<u64>) {}
    /// Name of a drop reason, without its `SKB_DROP_REASON_`.
    fn drop_reason(&mut self, code: u32) -> Value {
        Value::Text(Arc::from(code.to_string()))
    }
    /// Name of a reset reason, without its `SK_RST_REASON_`; the number if it is not known.
    fn reset_reason(&mut self, code: u32) -> Value {
        Value::Text(Arc::from(code.to_string()))
    }
    /// `function+0xoffset` of an address in the kernel's text.
    fn symbol(&mut self, address: u64) -> Value {
        Value::Text(Arc::from(format!("{address:#x}")))
    }
    /// Functions of a kernel stack, innermost first.
    fn stack(&mut self, _id: i32) -> Value {
        Value::Unknown
    }
    /// Process that owns a socket.
    fn owner(&mut self, owner: &Owner) -> Option<(u32, [u8; 16])> {
        (owner.pid != 0).then_some((owner.pid, owner.comm))
    }
    /// Path of the control group of a socket, from the root of version 2.
    fn cgroup(&mut self, owner: &Owner) -> Value {
        match owner.cgroup {
            0 => Value::Unknown,
            id => Value::Text(Arc::from(format!("cgroup:{id}"))),
        }
    }
    /// Process that listened where a connection came in, if that is certain; 0 and their name if there were
    /// several of one name.
    fn listener(&mut self, _arrival: &Arrival) -> Option<(u32, [u8; 16])> {
        None
    }
    /// Offset from `CLOCK_MONOTONIC` to Unix time, in nanoseconds.
    fn clock_offset_ns(&self) -> i64 {
        0
    }
}

/// Knows nothing; numbers stay numbers.
#[derive(Clone, Copy, Debug)]
pub struct NoNames;

impl Names for NoNames {}

/// The kind of a record, if it is one at all.
pub fn kind(bytes: &[u8]) -> Result<Kind, DecodeError> {
    let header: Header = read(bytes).ok_or(DecodeError::Length {
        got: bytes.len(),
        want: size_of::<Header>(),
    })?;
    Kind::from_raw(header.kind).ok_or(DecodeError::Kind(header.kind))
}

/// Decodes a record into `row`, whose memory is reused.
pub fn decode(bytes: &[u8], names: &mut dyn Names, row: &mut Row) -> Result<(), DecodeError> {
    let header: Header = read(bytes).ok_or(DecodeError::Length {
        got: bytes.len(),
        want: size_of::<Header>(),
    })?;
    let kind = kind(bytes)?;
    row.values.clear();
    row.packet.clear();
    row.packet.extend_from_slice(probes::packet(kind, bytes));
    names.at(Some(header.ts_ns));
    row.kind = kind.name();
    row.monotonic_ns = header.ts_ns;
    row.unix_ns = header
        .ts_ns
        .cast_signed()
        .wrapping_add(names.clock_offset_ns());
    (probes::of(kind).decode)(bytes, names, &mut row.values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::tests::Listens;

    fn empty_row() -> Row {
        Row::default()
    }

    #[test]
    fn names_are_asked_of_the_time_of_the_event() {
        let mut bytes = vec![0; Kind::Drops.size()];
        bytes[0] = 42;
        let mut names = Listens::default();
        decode(&bytes, &mut names, &mut empty_row()).unwrap();
        assert_eq!(names.at_ns, Some(42));
    }

    #[test]
    fn short_and_unknown_records_are_refused() {
        let mut row = empty_row();
        let refused = decode(&[0; 3], &mut NoNames, &mut row);
        assert_eq!(refused, Err(DecodeError::Length { got: 3, want: 16 }));
        let mut unknown = [0; 64];
        unknown[8] = 0xee;
        assert_eq!(
            decode(&unknown, &mut NoNames, &mut row),
            Err(DecodeError::Kind(0xee))
        );
    }
}
