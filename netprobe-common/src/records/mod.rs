//! One file per probe: the record that it sends. Shared parts ([`Flow`], [`Owner`]) live here.

pub use crate::{flow::Flow, owner::Owner};

pub mod accepts;
pub mod connects;
pub mod conntrack;
pub mod drops;
pub mod lifetimes;
pub mod listeners;
pub mod resets;
pub mod retransmits;
pub mod states;
pub mod time_wait;

/// `stack` of a record that carries none.
pub const NO_STACK: i32 = -1;

/// Which end of a connection this machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// It opened the connection (`connect`).
    Client = 1,
    /// It accepted the connection.
    Server = 2,
}

impl Role {
    /// Its name; `None` for an unknown number.
    pub const fn name_of(raw: u8) -> Option<&'static str> {
        match raw {
            1 => Some("client"),
            2 => Some("server"),
            _ => None,
        }
    }
}
