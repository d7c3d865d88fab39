//! One value of an event or of a group, whatever it is of.

use std::{net::IpAddr, sync::Arc};

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Value {
    /// Unknown, or not applicable; shown as `-` and `null`.
    Unknown,
    /// A count or size.
    Unsigned(u64),
    /// A number that may be negative.
    Signed(i64),
    /// An address.
    Ip(IpAddr),
    /// A word of a fixed vocabulary.
    Word(&'static str),
    /// Text that was looked up.
    Text(Arc<str>),
    /// A task or interface name: bytes that anybody chose.
    Name([u8; 16]),
    /// The flags byte of a TCP header.
    TcpFlags(u8),
    /// Function names, innermost first.
    Stack(Arc<[Arc<str>]>),
}

impl Value {
    /// A name, or unknown if it is empty.
    pub const fn name(bytes: [u8; 16]) -> Self {
        if bytes[0] == 0 {
            Self::Unknown
        } else {
            Self::Name(bytes)
        }
    }

    /// A number, or unknown if it is zero.
    pub fn nonzero(number: impl Into<u64>) -> Self {
        match number.into() {
            0 => Self::Unknown,
            number => Self::Unsigned(number),
        }
    }
}

/// The bytes of a NUL-padded name up to its end.
pub fn name_bytes(name: &[u8; 16]) -> &[u8] {
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    &name[..end]
}
